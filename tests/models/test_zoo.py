"From a name to a network: mistakes end in one line, and the networks have the published sizes."
import importlib

import pytest
from helpers.networks import refused

from ctseg.models import create_model
from ctseg.models.base import count_parameters
from ctseg.models.zoo import model_keywords


@pytest.mark.parametrize("match, args, kw", [
    ("did you mean attunet", ("atunet",), {}),
    ("did you mean missformer", ("missfromer",), {}),
    ("did you mean unet:resnet34 or", ("unet",), {}),
    ("did you mean segformer:mit_b3", ("segformer",), {}),
    ("attunet has no pretrained encoder; 'frozen' is for unet:…", ("attunet",), dict(frozen=True)),
    ("did you mean width", ("attunet",), dict(widht=4)),
    ("in_chans is 0", ("attunet", 0), {}),
    ("out_chans is 0", ("uctransnet", 1, 0), {}),
    ("out_chans is -3", ("missformer", 1, -3), {}),
    ("width is 0", ("missformer",), dict(width=0)),
    ("even number", ("missformer",), dict(width=5)),
    ("width is 1.5", ("attunet",), dict(width=1.5)),
    ("image_size is 0", ("uctransnet",), dict(image_size=0)),
    ("classes is -1", ("attunet",), dict(width=4, presence=-1)),
    ("no such weights file", ("attunet",), dict(width=4, weights="nowhere.pth")),
])
def test_impossible_networks_are_refused(match, args, kw):
    refused(match, *args, **kw)


@pytest.mark.parametrize("name", ["nnunet", "nnunet-resenc", "unet:resnet34"])
def test_a_missing_package_is_told_with_its_extra(monkeypatch, name):
    "Without the optional packages the error names the extra."
    optional = ("segmentation_models_pytorch", "dynamic_network_architectures")
    real_import = importlib.import_module

    def refuse(module, *args, **kw):
        if module.startswith(optional): raise ImportError(f"No module named {module!r}")
        return real_import(module, *args, **kw)
    monkeypatch.setattr(importlib, "import_module", refuse)
    refused(r"pip install 'ctseg\[zoo\]'", name)


@pytest.mark.parametrize("name, in_chans, out_chans, published", [
    ("attunet", 3, 1, 34_878_573),
    ("attunet", 1, 55, 34_880_931),
    ("missformer", 3, 9, 35_452_745),
    ("uctransnet", 3, 1, 66_430_657),
])
def test_counts_published(name, in_chans, out_chans, published):
    "Parameter counts at the published settings; see the notebooks for the sources."
    assert count_parameters(create_model(name, in_chans, out_chans)) == published


def test_the_keywords_of_a_network_are_told():
    assert "width" in model_keywords("attunet")
