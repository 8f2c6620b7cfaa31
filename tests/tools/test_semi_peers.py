"Mean Teachers of other libraries: what is ours around them, and what they learn from where they are installed."
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT/"data_sample"
import peers
import semi_peers

from ctseg.core.optional import import_timm
from ctseg.data.toys import toy_set

needs_torch_em = pytest.mark.skipif(not all(map(find_spec, ("monai", "torch_em"))), reason="needs both libraries")
needs_pymic = pytest.mark.skipif(not find_spec("pymic"), reason="needs PyMIC")


def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.)


def test_a_budget_counts_its_steps_and_lets_the_rate_fall_to_zero():
    budget, sgd, rates = semi_peers.Budget(9), optimizer(), []
    while budget.next_step(sgd) is not None:
        rates.append(sgd.param_groups[0]["lr"])
    assert budget.steps == len(rates) == 9
    assert semi_peers.RATE == rates[0] and rates == sorted(rates, reverse=True) and rates[-1] < rates[0]/10


def test_batches_end_with_the_budget_and_repeat_no_slice():
    batches = [*semi_peers.UntilSpent(6, 0, semi_peers.Budget(4), optimizer())]
    assert len(batches) == 4
    assert all(len(set(batch)) == semi_peers.EXAMPLE_BATCH and max(batch) < 6 for batch in batches)
    assert len(next(iter(semi_peers.UntilSpent(3, 0)))) == 3  # fewer slices than a batch wants


def test_a_peer_learns_from_the_annotated_slices_and_gets_the_others(monkeypatch):
    slices, calls = toy_set(32, 12, size=32)[0], []
    peer = semi_peers.Peer(lambda *args: calls.append(args), False, True, rate=2.5)
    monkeypatch.setitem(semi_peers.PEERS, "torch-em-zeros", peer)
    semi_peers.train("torch-em-zeros", slices, 10, 7)
    (annotated, unlabelled, *rest), = calls
    assert annotated.labelled.all() and len(annotated) == 12 and len(unlabelled) == 20
    assert rest == [10, 7, False]
    with pytest.raises(SystemExit, match="leave out --bf16"):
        semi_peers.train("torch-em-zeros", slices, 10, 7, bf16=True)


@pytest.mark.parametrize("asked, steps", [(["--seconds", "4"], 10), (["--steps", "3", "--bf16"], 3)])
def test_seconds_are_counted_in_steps(tmp_path, monkeypatch, asked, steps):
    made = []

    def train(name, slices, steps, seed, bf16):
        assert bf16 == ("--bf16" in asked)
        made.append((name, steps, len(slices), slices.images.shape[1:]))
        return peers.monai_network(len(slices.classes) + 1).eval()
    monkeypatch.setattr(peers, "monai_network", lambda outputs: torch.nn.Conv2d(1, outputs, 1))
    toys = {"x": peers.Peer(peers.monai_network, None, True, rate=2.5)}
    options = ["x", "--data", str(SAMPLE), "--labelled", "20", "--size", "32", "--seeds", "5", *asked]
    monkeypatch.setattr(sys, "argv", ["peers.py", *options, "--out", str(tmp_path)])
    for _ in range(2):  # what is there is not trained again
        peers.main("a description", toys, tmp_path/"unused", train)
    assert made == [("x", steps, made[0][2], (32, 32))]
    with np.load(tmp_path/"x-20-s5.npz") as kept:
        facts = json.loads(str(kept["facts"]))
        assert facts["steps"] == steps and facts["labelled"] == 20
        assert facts["size"] == 32 and facts["bf16"] == ("--bf16" in asked)
        assert kept["dice_argmax"].shape == kept["truth"].shape


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
    assert image.shape == (1, 32, 32)
    if masked:
        assert len(target) == 2*classes
        assert np.array_equal(target[classes:, 0, 0].bool().numpy(), slices.known[0])
    else:
        assert len(target) == 1 + classes and (target.sum(0) == 1).all()


class Watched(Exception):
    "What a trainer was given."


@needs_torch_em
@pytest.mark.parametrize("masked", [False, True])
def test_torch_em_is_told_of_classes_that_are_absent_but_not_of_unexamined_ones(masked, monkeypatch):
    import_timm()  # torchvision, which torch-em needs, must be imported as ctseg does
    from torch_em import self_training

    def stop(**settings): raise Watched(settings)
    monkeypatch.setattr(self_training, "MeanTeacherTrainer", stop)
    slices, unlabelled = annotated_and_unlabelled()
    with pytest.raises(Watched) as caught:
        semi_peers.train_torch_em(slices, unlabelled, 2, 0, masked)
    loss_of = caught.value.args[0]["supervised_loss"]
    classes = len(slices.classes)
    logits = torch.zeros(2, classes + (not masked), 8, 8, requires_grad=True)
    target = torch.zeros(2, classes*2 if masked else classes + 1, 8, 8)
    if masked:
        target[0, classes:] = 1  # the first slice was examined, nothing was found
    else:
        target[:, 0] = 1
    loss_of(lambda _: logits, None, target).backward()
    drawn = logits.grad if masked else logits.grad[:, 1:]
    assert (drawn[0] > 0).all()
    assert (drawn[1] == 0).all() if masked else (drawn[1] > 0).all()


@needs_torch_em
@pytest.mark.parametrize("masked", [False, True])
def test_torch_em_trains_for_so_many_steps(masked, monkeypatch):
    budgets = []

    class Kept(semi_peers.Budget):
        def __init__(self, limit):
            super().__init__(limit)
            budgets.append(self)
    monkeypatch.setattr(semi_peers, "Budget", Kept)
    slices, unlabelled = annotated_and_unlabelled()
    net = semi_peers.train_torch_em(slices, unlabelled, 3, 0, masked)
    assert budgets[0].steps == 3 and not net.training
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, len(slices.classes) + (not masked), 32, 32)


def pymic_agents(monkeypatch) -> list:
    "The agents that are made from now on."
    agents, make = [], semi_peers.pymic_agent

    def watched(settings, repaired):
        agents.append(make(settings, repaired))
        return agents[-1]
    monkeypatch.setattr(semi_peers, "pymic_agent", watched)
    return agents


@needs_pymic
@pytest.mark.parametrize("repaired", [False, True])
def test_the_teacher_of_pymic_follows_its_student_only_when_repaired(repaired, monkeypatch):
    agents = pymic_agents(monkeypatch)
    slices, unlabelled = annotated_and_unlabelled()
    net = semi_peers.train_pymic(slices, unlabelled, 3, 0, repaired)
    assert not net.training
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, len(slices.classes) + 1, 32, 32)
    teacher, student = (list(net.parameters()) for net in (agents[0].net_ema, agents[0].net))
    assert any(weights.any() for weights in teacher) == repaired
    assert all(weights.any() for weights in student[:1])
