"Networks with pretrained encoders: their files, their vision transformers, their two learning rates."
import pytest
import torch
from helpers.networks import refused
from helpers.toys import make
from safetensors.torch import save_file

from ctseg.core.errors import InputError
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
    source = (
        smp.encoders.get_encoder(encoder, in_channels=3) if native else import_timm().create_model(encoder)
    )
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


@pytest.mark.parametrize("name", ["unet:tf_efficientnet_lite0", "unet++:resnet18", "fpn:resnet18", "deeplabv3+:resnet18", "fpn:mit_b0"])
def test_encode_and_decode_are_the_librarys_network(offline, name):
    "The halves, joined, answer as segmentation-models-pytorch's own forward pass does, at any width."
    from ctseg.models.encoders import Halves, build_halves
    decoder, _, encoder = name.partition(":")
    torch.manual_seed(0)
    ours = create_model(name, 1, 3, pretrained=False, width=4).eval()
    theirs = build_halves(Halves(decoder, encoder, 1, 3, width=4)).eval()
    for half in ("encoder", "decoder"):
        getattr(theirs, half).load_state_dict(getattr(ours, half).state_dict())
    theirs.segmentation_head.load_state_dict(ours.out.state_dict())
    x = torch.rand(2, 1, 64, 96)
    with torch.no_grad(): assert torch.allclose(ours(x), theirs((x - ours.mean)/ours.deviation), atol=1e-5)


def test_width_is_that_of_the_decoder(offline):
    count = lambda **kw: sum(p.numel() for p in make("unet:resnet18", **kw).decoder.parameters())
    assert count() == count(width=16) > 2*count(width=8) > 4*count(width=4)
    assert make("unet:resnet18", width=5).head.in_channels == 5


def test_a_light_decoder_stops_at_half_the_resolution(offline):
    light, plain = (
        make("unet:resnet18", light=True, half=True, width=4).eval(),
        make("unet:resnet18", width=4).eval(),
    )
    assert sum(p.numel() for p in light.decoder.parameters()) < sum(
        p.numel() for p in plain.decoder.parameters()
    )
    assert light.head.in_channels == 8
    sizes = []
    light.decoder.register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape[-2:])))
    with torch.no_grad(): assert light(torch.rand(1, 1, 61, 47)).shape == (1, 7, 61, 47)
    assert sizes == [(32, 32)]
    for word in ("light", "half"):
        refused(f"{word} is for unet", "fpn:resnet18", 1, 3, pretrained=False, **{word: True})


@pytest.mark.parametrize("name, given, message", [
    ("unet++:mit_b0", {}, "unet.*:mit_b0: .* refuses it"), ("fpn:resnet18", dict(width=3), "refuses it.*24"), ("fpnn:resnet18", {}, "did you mean fpn"),
    ("unet:mit_b0", dict(frozen_levels=1), "leave frozen_levels out"), ("unet:resnet18", dict(statistics="ct"), "statistics"),
])
def test_halves_that_the_library_refuses_end_in_one_line(offline, name, given, message):
    refused(message, name, 1, 3, pretrained=False, **given)


@pytest.mark.parametrize("name", ["unet:resnet18", "unet:tf_efficientnet_lite0", "unet:convnext_atto"])
def test_frozen_levels_stay_as_they_are_and_the_others_learn(offline, name):
    model = create_model(name, 1, 3, pretrained=False, frozen_levels=2).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], .1)
    model(torch.rand(2, 1, 64, 64)).square().mean().backward()
    optimiser.step()
    names = model.encoder.model.feature_info.module_name()
    place = lambda n: n.replace("_", ".")
    same = {k for k, v in model.state_dict().items() if torch.equal(v, before[k])}
    at = lambda level: [k for k in before if place(k).startswith(place(f"encoder.model.{names[level]}."))]
    for level in (0, 1): assert set(at(level)) <= same, level
    for level in (2, 3): assert not {k for k in at(level) if k.endswith("weight")} <= same, level
    assert not {k for k in before if k.startswith("decoder")} <= same


@pytest.mark.parametrize("encoder, "
                         "expected", [("tf_efficientnet_lite0", (.5, .5)), ("resnet18", (.449, .226)), ("mit_b0", (.449, .226))])
def test_grey_values_are_normalised_as_the_encoder_knows_them(offline, encoder, expected):
    model = create_model(f"unet:{encoder}", 1, 3, pretrained=False)
    assert (model.mean, model.deviation) == pytest.approx(expected, abs=1e-3)
    assert (create_model(f"unet:{encoder}", 1, 3, pretrained=False, statistics="imagenet").mean) == .449
