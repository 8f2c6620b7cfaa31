"What the tests of networks share."
import pytest

from ctseg.core.optional import import_timm


@pytest.fixture
def offline(monkeypatch):
    "The optional packages, and no hub."
    import_timm()
    pytest.importorskip("segmentation_models_pytorch")
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
