"Mean Teachers of other libraries: what is ours around them, and what they learn from where they are installed."
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT/"tools"))
import semi_peers

from ctseg.data.toys import toy_set

needs_torch_em = pytest.mark.skipif(not all(map(find_spec, ("monai", "torch_em"))), reason="needs both libraries")
needs_pymic = pytest.mark.skipif(not find_spec("pymic"), reason="needs PyMIC")


@pytest.fixture
def clock(monkeypatch):
    "Processor time that passes by one second a look."
    seconds = iter(range(1000))
    monkeypatch.setattr(semi_peers.time, "process_time", lambda: next(seconds))


def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.)


def test_a_budget_counts_its_steps_and_lets_the_rate_fall_to_zero(clock):
    budget, sgd, rates = semi_peers.Budget(10), optimizer(), []
    while budget.next_step(sgd) is not None:
        rates.append(sgd.param_groups[0]["lr"])
    assert budget.steps == len(rates) == 9
    assert semi_peers.RATE > rates[0] and rates == sorted(rates, reverse=True) and rates[-1] < rates[0]/10


def test_batches_end_with_the_budget_and_repeat_no_slice(clock):
    batches = [*semi_peers.UntilSpent(6, 0, semi_peers.Budget(5), optimizer())]
    assert len(batches) == 4
    assert all(len(set(batch)) == semi_peers.TORCH_EM_BATCH and max(batch) < 6 for batch in batches)
    assert len(next(iter(semi_peers.UntilSpent(3, 0)))) == 3  # fewer slices than a batch wants


def test_images_are_standardised_one_by_one():
    images = torch.rand(3, 1, 8, 8)*torch.tensor([1., 5., 0.]).view(3, 1, 1, 1) + 2
    made = semi_peers.Standardised(torch.nn.Identity())(images)
    assert torch.allclose(made.mean((1, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(made[:2].std((1, 2, 3), correction=0), torch.ones(2), atol=1e-4)
    assert made.isfinite().all()


def annotated_and_unlabelled():
    slices = toy_set(32, 12, size=32)[0]
    return slices[np.flatnonzero(slices.labelled)], slices.images[~slices.labelled]


@needs_torch_em
@pytest.mark.parametrize("masked", [False, True])
def test_targets_of_torch_em_say_what_was_examined_where_they_are_masked(masked):
    slices, _ = annotated_and_unlabelled()
    image, target = semi_peers.Annotated(slices, masked, 0)[0]
    classes = len(slices.classes)
    assert image.shape == (1, 32, 32) and len(target) == classes*(1 + masked)
    if masked:
        assert np.array_equal(target[classes:, 0, 0].bool().numpy(), slices.known[0])


@needs_torch_em
@pytest.mark.parametrize("masked", [False, True])
def test_torch_em_trains_for_so_much_time(masked):
    slices, unlabelled = annotated_and_unlabelled()
    net, steps = semi_peers.train_torch_em(slices, unlabelled, 2, 0, masked)
    assert steps > 0 and not net.training
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, len(slices.classes), 32, 32)


@needs_pymic
def test_pymic_trains_for_so_much_time():
    slices, unlabelled = annotated_and_unlabelled()
    net, steps = semi_peers.train_pymic(slices, unlabelled, 2, 0, True)
    assert steps > 0 and not net.training
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, len(slices.classes) + 1, 32, 32)


@needs_pymic
@pytest.mark.parametrize("repaired", [False, True])
def test_the_teacher_of_pymic_follows_its_student_only_when_repaired(repaired, monkeypatch):
    agents = []
    make = semi_peers.pymic_agent

    def watched(settings, repaired):
        agents.append(make(settings, repaired))
        return agents[-1]
    monkeypatch.setattr(semi_peers, "pymic_agent", watched)
    slices, unlabelled = annotated_and_unlabelled()
    semi_peers.train_pymic(slices, unlabelled, 1, 0, repaired)
    teacher, student = (list(net.parameters()) for net in (agents[0].net_ema, agents[0].net))
    assert any(weights.any() for weights in teacher) == repaired
    assert all(weights.any() for weights in student[:1])
