"Every network of the zoo keeps the contract of `EncoderDecoder`, on odd sizes."
import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.toys import SMALL_NETWORKS, make
from safetensors.torch import save_file

from ctseg.models import list_models
from ctseg.models.base import deep_supervised


def test_small_stands_for_every_listed_model():
    "Each listed name has its family among the small ones, so a new architecture cannot be forgotten here."
    listed = {n.partition(":")[0] for n in list_models() if n != "tiny-for-tests"}
    assert listed <= {n.partition(":")[0] for n in SMALL_NETWORKS}


@pytest.mark.parametrize("size", [(61, 47), (64, 64), (7, 90)])
@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_every_network_keeps_the_contract(name, size):
    """Any size; forward is decode(encode); channels as declared; from high to low resolution; the input is
    left alone."""
    model = make(name, presence=5).eval()
    x = torch.rand(2, 1, *size)
    kept = x.clone()
    with torch.no_grad():
        features = model.encode(x)
        logits, presence = model(x, presence=True)
        by_halves, plain = model.decode(model.encode(x), size), model(x)
    assert torch.equal(x, kept)
    assert logits.shape == (2, 7, *size) and presence.shape == (2, 5)
    assert torch.equal(logits, by_halves) and torch.equal(logits, plain)
    assert tuple(f.shape[1] for f in features) == tuple(model.channels)
    sides = [f.shape[-1] for f in features]
    assert sides == sorted(sides, reverse=True)
    assert isinstance(model.head, torch.nn.Conv2d) and model.head.out_channels == 7


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_gradient_reaches_every_parameter(name):
    model = make(name, 3, presence=3).train()
    if name.startswith("nnunet"): model.deep_supervision = True
    out, presence = model(torch.rand(2, 1, 64, 64), presence=True)
    truth = torch.randint(0, 3, (2, 64, 64))
    loss = deep_supervised(
        lambda logits, mask, known, weight: F.cross_entropy(logits, mask), out, truth, None
    )
    (loss + presence.square().mean()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", SMALL_NETWORKS)
@pytest.mark.parametrize("classes", [1, 54])
def test_number_of_outputs(name, classes):
    model = make(name, classes).eval()
    with torch.no_grad(): assert model(torch.rand(1, 1, 64, 64)).shape == (1, classes, 64, 64)


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_weights_round_trip(name, tmp_path):
    "Weights go through safetensors (no shared tensors) and a copy; a seeded rebuild is the same network."
    model = make(name).eval()
    save_file(model.state_dict(), tmp_path/"w.safetensors")
    x = torch.rand(1, 1, 64, 64)
    others = make(name, weights=tmp_path/"w.safetensors"), copy.deepcopy(model), make(name)
    with torch.no_grad():
        for other in others: assert torch.equal(model(x), other.eval()(x))


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_decoder_uses_every_feature(name):
    """Changing any one of the features changes the logits: no skip is forgotten, but for those that a
    decoder is not meant to read."""
    unread = {"fpn": {0}, "deeplabv3+": {0, 2, 3}}.get(name.partition(":")[0], set())
    model = make(name).eval()
    with torch.no_grad():
        features = model.encode(torch.rand(1, 1, 64, 64))
        base = model.decode(features, (64, 64))
        for i in range(len(features)):
            other = [f + torch.randn_like(f) if j == i else f for j, f in enumerate(features)]
            assert torch.allclose(model.decode(other, (64, 64)), base) == (i in unread), i
