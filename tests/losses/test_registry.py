"Losses by name."
import pytest

from ctseg.losses.fused import MaskedSigmoidLoss
from ctseg.losses.registry import LOSSES, create_loss


def test_a_loss_is_created_by_name_or_refused_with_a_hint():
    assert type(create_loss("masked", reduction="image")) is MaskedSigmoidLoss
    for name, kw, tell in (
        ("maskd", {}, "did you mean masked"),
        ("masked", {"w_dic": 1}, "did you mean w_dice"),
        ("masked", {"reduction": "images"}, "image"),
    ):
        with pytest.raises(ValueError, match=tell): create_loss(name, **kw)


@pytest.mark.parametrize("name", LOSSES)
def test_every_name_makes_its_loss(name):
    assert type(create_loss(name)) is LOSSES.get(name).build
