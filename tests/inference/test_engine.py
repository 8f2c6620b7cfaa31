"Networks answered by other engines than PyTorch."
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ctseg.core.device import DevicePlan, pick_device
from ctseg.core.errors import InputError
from ctseg.inference.engine import (
    ENGINES,
    CompiledNetwork,
    available,
    engine_of,
    with_engine,
)
from ctseg.inference.graph import GraphNetwork
from ctseg.inference.loop import Member
from ctseg.losses.registry import create_loss
from ctseg.models.zoo import create_model

FP32 = pick_device("cpu", "fp32")
SIZES = [(64, 64), (61, 47), (96, 32)]


def member(name="attunet", **settings):
    torch.manual_seed(0)
    return Member(create_model(name, 1, 4, **settings).eval(), create_loss("marginal"))


@pytest.mark.parametrize("size", SIZES + [(7, 130)])
def test_graph_pads_as_the_network_does(size):
    network, x = member(width=8).model, torch.rand(2, 1, *size)
    with torch.inference_mode():
        assert torch.allclose(GraphNetwork(network)(x)[0], network(x), atol=1e-6)


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
@pytest.mark.parametrize("network", [
    dict(width=8), dict(width=8, presence=3),
])
def test_engines_agree_with_torch(engine, network, monkeypatch):
    monkeypatch.setattr("ctseg.inference.engine.AT_A_TIME", 2*61*47)  # the first two at a time, the larger one by one
    if not available(engine): pytest.skip(f"{engine} is not installed")
    plain = member(**network)
    other = with_engine(plain, engine, FP32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a network that falls back to PyTorch warns
        for size in SIZES[:2]:
            x = torch.rand(3, 1, *size)
            expected, found = plain.probabilities(x, FP32), other.probabilities(x, FP32)
            assert (expected - found).abs().max() < 1e-4
            assert (expected.argmax(1) == found.argmax(1)).float().mean() >= .999


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_engines_answer_beside_bfloat16(engine):
    "A graph is not recorded in the precision in which PyTorch computes around it."
    if not available(engine): pytest.skip(f"{engine} is not installed")
    plain, plan = member(width=8), pick_device("cpu", "bf16")
    other = with_engine(plain, engine, plan)
    x = torch.rand(3, 1, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected, found = plain.probabilities(x, plan), other.probabilities(x, plan)
    assert other.model.graphs[32, 32] is not None
    assert (expected - found).abs().max() < 1e-2


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_batches_do_not_share_memory(engine):
    if not available(engine): pytest.skip(f"{engine} is not installed")
    plain = member(width=8)
    other = with_engine(plain, engine, FP32).model
    x = torch.rand(2, 2, 1, 32, 32)
    first = other(x[0])
    kept = first.clone()
    other(x[1])
    assert torch.equal(first, kept)


class Positions(nn.Module):
    "Freezes the image's width into its graph."
    def forward(self, x):
        places = torch.tensor(np.linspace(0, 9, x.shape[-1]), dtype=torch.float32)
        return torch.cat([x*0 + places, x], 1)


def test_a_frozen_size_is_found_out():
    if not available("openvino"): pytest.skip("openvino is not installed")
    plain = Member(Positions(), create_loss("marginal"))
    other = with_engine(plain, "openvino", FP32)
    for size in ((32, 32), (32, 48)):
        x = torch.rand(1, 1, *size)
        with warnings.catch_warnings(record=True): found = other.probabilities(x, FP32)
        assert torch.allclose(found, plain.probabilities(x, FP32), atol=1e-5)


class Elsewhere(CompiledNetwork):
    "An engine with a fault."
    fault = staticmethod(lambda x: 1/0)
    def graph(self, shape): return type(self).fault


@pytest.mark.parametrize("fault, word", [
    (lambda x: 1/0, "ZeroDivisionError"),
    (lambda x: [np.full((len(x), 4, *x.shape[2:]), np.nan, np.float32)], "differs"),
    (lambda x: [np.zeros((len(x), 4, *x.shape[2:]), np.float32) + 3], "differs"),
    (lambda x: [np.zeros((1, 4, 2, 2), np.float32)], "differs"),
])
def test_a_faulty_engine_is_not_believed(fault, word, monkeypatch):
    monkeypatch.setattr(Elsewhere, "fault", staticmethod(fault))
    plain, x = member(width=8), torch.rand(2, 1, 32, 32)
    other = replace(plain, model=Elsewhere(plain.model, "openvino", FP32))
    with pytest.warns(UserWarning, match=f"{word}.*PyTorch answers instead"):
        found = other.probabilities(x, FP32)
    assert torch.allclose(found, plain.probabilities(x, FP32), atol=1e-6)


@pytest.mark.parametrize("shift, kept", [(0, True), (.2, False)])
def test_in_bfloat16_more_than_rounding_is_found_out(shift, kept, monkeypatch):
    plain, plan, x = member(width=8), pick_device("cpu", "bf16"), torch.rand(2, 1, 32, 32)
    exact = CompiledNetwork(plain.model, "openvino", FP32).by_torch(x)[0].numpy()
    monkeypatch.setattr(Elsewhere, "fault", staticmethod(lambda x: [exact + np.float32(shift)]))
    network = Elsewhere(plain.model, "openvino", plan)
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        network(x)
    assert (network.graphs[32, 32] is not None) == kept == (not messages)


def test_auto_goes_by_no_clock(monkeypatch):
    if not available("openvino"): pytest.skip("openvino is not installed")
    for clock in ("time", "process_time", "perf_counter", "monotonic"):
        monkeypatch.setattr(f"time.{clock}", lambda: pytest.fail("a clock was read"))
    plain, x = member(width=8), torch.rand(5, 1, 32, 32)
    by_rule, by_name = (with_engine(plain, engine, FP32) for engine in ("auto", "openvino"))
    assert engine_of(plain.model) == "torch" and engine_of(by_rule.model) == "openvino"
    assert torch.equal(by_rule.probabilities(x, FP32), by_name.probabilities(x, FP32))
    assert engine_of(by_rule.model) == "openvino"


def test_auto_leaves_what_openvino_cannot_do_to_torch(monkeypatch):
    if not available("openvino"): pytest.skip("openvino is not installed")
    plain, x = member(width=8), torch.rand(2, 1, 32, 32)
    by_rule = with_engine(plain, "auto", FP32)
    monkeypatch.setattr(CompiledNetwork, "graph", lambda self, shape: lambda x: 1/0)
    with pytest.warns(UserWarning, match="openvino fails .*PyTorch answers instead"):
        found = by_rule.probabilities(x, FP32)
    assert torch.equal(found, plain.probabilities(x, FP32))
    assert engine_of(by_rule.model) == "torch"


@pytest.mark.parametrize("presence", [0, 3])
def test_the_length_of_a_batch_changes_nothing(presence, monkeypatch):
    "The last piece is filled up, so each image is computed as it is in a full one."
    if not available("openvino"): pytest.skip("openvino is not installed")
    monkeypatch.setattr("ctseg.inference.engine.AT_A_TIME", 4*32*32)
    plain, x = member(width=8, **{"presence": presence} if presence else {}), torch.rand(9, 1, 32, 32)
    other = with_engine(plain, "openvino", FP32)
    whole = other.probabilities(x, FP32)
    assert (whole - plain.probabilities(x, FP32)).abs().max() < 1e-4
    for parts in (x.split(4), x.split(5), x.split(1)):
        found = torch.cat([other.probabilities(part, FP32) for part in parts])
        assert torch.equal(found, whole)


def test_requests_that_cannot_be_met(monkeypatch):
    plain = member(width=8)
    with pytest.raises(InputError, match="tensorrt"): with_engine(plain, "tensorrt", FP32)
    gpu = DevicePlan(torch.device("cuda:0"), "fp16", "Tesla T4", (7, 5))
    for engine in ("openvino", "onnx"):
        with pytest.raises(InputError, match="computes on a CPU"): with_engine(plain, engine, gpu)
    assert with_engine(plain, "auto", gpu) is plain
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert with_engine(plain, "auto", FP32) is plain
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(InputError, match=r"pip install 'ctseg\[openvino\]'"):
        with_engine(plain, "openvino", FP32)
    assert ENGINES[0] == "auto"
