"Files of weights, and logits at several sizes."
import copy
import pickle
import warnings

import pytest
import torch
from helpers.networks import refused
from helpers.toys import make
from safetensors.torch import save_file
from torch import nn

from ctseg.core.errors import InputError
from ctseg.models.base import deep_supervised, depthwise_in_float32, read_weights


def test_weights_of_another_network(tmp_path):
    p = tmp_path/"w.safetensors"
    save_file(make("attunet").state_dict(), p)
    unlike = r"of another architecture.*down.0.0.weight is \(4, 1, 3, 3\), the model has \(8, 1, 3, 3\)"
    refused(unlike, "attunet", 1, 7, width=8, weights=p)
    refused("of another architecture.*is missing", "missformer", 1, 7, width=4, weights=p)


@pytest.mark.parametrize("name", ["bad.safetensors", "bad.pth"])
def test_damaged_weights(tmp_path, name):
    p = tmp_path/"w.safetensors"
    save_file(make("attunet").state_dict(), p)
    for bad in (p.read_bytes()[:200], b"", b"not a model"):
        (tmp_path/name).write_bytes(bad)
        refused("damaged", "attunet", 1, 7, width=4, weights=tmp_path/name)


def test_a_pickle_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self): return print, ("ran",)
    torch.save({"a": Evil()}, tmp_path/"evil.pth")
    with pytest.raises(InputError, match="more than tensors"): read_weights(tmp_path/"evil.pth")
    (tmp_path/"plain.pth").write_bytes(pickle.dumps(Evil()))
    with warnings.catch_warnings(action="error"), pytest.raises(InputError, match="more than tensors"):
        read_weights(tmp_path/"plain.pth")


@pytest.mark.parametrize("name", [1, "itself"])
def test_what_is_no_state_dict_is_told(tmp_path, name):
    "Names that are numbers; a dictionary that holds itself ended never."
    state = {1: torch.zeros(1)}
    if name == "itself": state["model"] = state
    torch.save(state, tmp_path/"w.pth")
    with pytest.raises(InputError, match="no state dict"): read_weights(tmp_path/"w.pth")


def test_deep_supervision():
    "A list in training mode only when asked for; its weights halve and sum to one."
    model = make("nnunet", deep_supervision=True)
    x = torch.rand(1, 1, 61, 47)
    sizes = [tuple(logits.shape[-2:]) for logits in model.train()(x)]
    assert sizes[0] == (61, 47) and sizes[1] == (31, 24)
    assert torch.is_tensor(model.eval()(x)) and torch.is_tensor(make("nnunet").train()(x))
    finest_is_one = [torch.full((1, 1, 8//2**i, 8//2**i), float(i == 0)) for i in range(3)]
    share = deep_supervised(lambda logits, *_: logits.mean(), finest_is_one, torch.zeros(1, 8, 8), None)
    assert abs(share.item() - 4/7) < 1e-6


def test_coarse_sizes_teach_nobody_that_a_small_structure_is_absent():
    """A 3x3 structure that falls between the rows of a coarser size is unknown there; one that is absent
    stays absent.

    Rows are where the network's strides put them.
    """
    seen = []
    sizes = [(130, 130), (65, 65), (33, 33), (17, 17), (9, 9)]
    mask = torch.zeros(1, 130, 130, dtype=torch.long)
    mask[0, 65:68, 65:68] = 1
    mask[0, :, 128:] = 3

    def note(logits, mask, known, weight):
        seen.append((mask, known[0].tolist()))
        return logits.sum()
    deep_supervised(note, [torch.zeros(1, 4, *s) for s in sizes], mask, torch.tensor([[True, True, True]]))
    for small, known in seen:
        assert known == [bool((small == 1).any()), True, True] and (small[0, :, -1] == 3).all()
    assert [known[0] for _, known in seen] == [True, True, False, False, False]


class SameSize(nn.Conv2d):
    "A convolution with a forward of its own, as timm has."
    def forward(self, x): return super().forward(x)[..., :4, :4]


@pytest.mark.parametrize("kind", [nn.Conv2d, SameSize])
def test_depthwise_convolutions_train_in_float32(kind):
    torch.manual_seed(0)
    net = depthwise_in_float32(nn.Sequential(kind(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)))
    plain, x = copy.deepcopy(net), torch.rand(1, 8, 9, 9)
    assert plain[0].forward.args[0] is plain[0] is not net[0]  # a copy computes with its own weights
    assert "forward" not in vars(net[1]) and list(net.state_dict()) == list(plain.state_dict())
    pickle.loads(pickle.dumps(plain))
    del plain[0].forward
    assert torch.equal(net(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        trained, usual = net[0](x), plain[0](x)
        with torch.no_grad(): assert torch.equal(net(x), plain(x))  # prediction stays as it was
    assert trained.dtype == usual.dtype == torch.bfloat16
    assert torch.equal(trained, plain[0](x).bfloat16())
    trained.float().sum().backward()
    assert net[0].weight.grad.dtype == torch.float32 and net[0].weight.grad.abs().sum() > 0
