"Networks with pretrained encoders: their files, their vision transformers, their two learning rates."
import pytest
import torch
from helpers.networks import refused
from helpers.toys import make
from safetensors.torch import save_file

from ctseg.core.files import InputError
from ctseg.core.optional import import_timm
from ctseg.models import create_model
from ctseg.models.encoders import param_groups


def test_halves_that_do_not_fit(offline):
    refused("unknown decoder", "unnet:resnet18", 1, 7, pretrained=False)
    refused("plain vision transformers", "dpt:resnet18", 1, 7, pretrained=False)


@pytest.mark.parametrize("name", ["segformer:mit_b0", "dpt:vit_tiny_patch16_224"])
def test_encoder_file(offline, tmp_path, name):
    "A file of encoder weights arrives in the encoder; the file of another encoder is refused."
    import segmentation_models_pytorch as smp
    encoder = name.partition(":")[2]
    native = encoder.startswith("mit")
    torch.manual_seed(1)
    source = smp.encoders.get_encoder(encoder, in_channels=3) if native else import_timm().create_model(encoder)
    state = source.state_dict()
    p = tmp_path/"model.safetensors"
    save_file(state, p)
    model = create_model(name, 1, 3, weights=p)
    ours = (model.encoder if native else model.encoder.model).state_dict()
    same = [k for k, v in state.items() if k in ours and ours[k].shape == v.shape]
    assert len(same) > .9*len(ours) and all(torch.equal(ours[k], state[k]) for k in same)
    refused("resnet18|of another architecture", "unet:resnet18", 1, 3, weights=p)


def test_dinov2_patches_are_resampled(offline, tmp_path):
    "14-pixel patches become 16-pixel ones, and the pretrained numbers are still there."
    name = "vit_small_patch14_dinov2.lvd142m"
    source = import_timm().create_model(name)
    save_file(source.state_dict(), tmp_path/"model.safetensors")
    model = create_model(f"dpt:{name}", 1, 3, weights=tmp_path/"model.safetensors").eval()
    vit = model.encoder.model
    assert vit.patch_embed.proj.weight.shape[-2:] == (16, 16)
    assert torch.equal(vit.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)
    assert torch.equal(vit.pos_embed, source.pos_embed)
    with torch.no_grad(): assert model(torch.rand(1, 1, 61, 47)).shape == (1, 3, 61, 47)


def test_frozen_encoder(offline):
    model = make("unet:resnet18", frozen=True, norm="group").train()
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert not model.encoder.training and model.decoder.training
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.decoder.modules())


def test_two_learning_rates(offline):
    groups = param_groups(make("unet:resnet18"), 3e-4, 1e-5)
    assert sorted(g["lr"] for g in groups) == [1e-5, 3e-4]
    with pytest.raises(InputError, match="no pretrained encoder"): param_groups(make("attunet"), 1e-3, 1e-4)
    assert len(param_groups(make("attunet"), 1e-3)) == 1
