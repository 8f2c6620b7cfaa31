"Mean Teacher, number by number: a wrong factor, rate or mask here trains as smoothly as the right one."
import math

import pytest
import torch
from helpers.phases import FOUR, loss_of, make_job, make_views, phases

from ctseg.data.batches import Batch
from ctseg.losses.registry import create_loss
from ctseg.methods.mean_teacher import disagreement
from ctseg.methods.unimatch import complete_batch
from ctseg.methods.unknown import unknown_cells
from ctseg.training.method import METHODS, Phase
from ctseg.training.step import Teacher


@pytest.mark.parametrize("name", ["mean-teacher", "unimatch"])
def test_the_weight_of_consistency_grows_over_the_ramp(tmp_path, name):
    cold = {"unimatch": ["supervised_first=no", "feature_dropout=0", "tau=0.5"], "mean-teacher": []}[name]
    t = phases(tmp_path, name, "epochs=10", "ramp=0.4", "consistency=3", *cold)[name]
    t.learner.raw.eval()  # with batch statistics an answer would depend on what else is asked
    views = make_views(t)
    plain = loss_of(t, {"labelled": views["labelled"]})

    def term(step):
        return (loss_of(t, views, step) - plain).item()
    assert t.total == 30 and abs(term(29)) > .05
    assert [term(s)/term(29) for s in (0, 6, 12)] == pytest.approx(
        [math.exp(-5), math.exp(-5/4), 1], abs=1e-3
    )


def test_consistency_does_not_turn_unknown_into_background():
    """One free pixel with an unknown structure and one that people looked for in vain: between loss and
    teacher, the student ends at the teacher's shares of what is open."""
    loss, mask, known = (
        create_loss("marginal", w_dice=0.),
        torch.zeros(1, 1, 1, dtype=torch.long),
        torch.tensor([[False, True]]),
    )
    teacher, where = torch.tensor([.45, .4]).view(1, 2, 1, 1), unknown_cells(mask, known)
    z = torch.tensor([.1, .3, .6]).log().view(1, 3, 1, 1).requires_grad_()
    opt = torch.optim.Adam([z], lr=.05)
    for _ in range(400):
        opt.zero_grad()
        (
            loss(z, mask, known) + disagreement(loss.probabilities(z), teacher, where, loss.activation)
        ).backward()
        opt.step()
    assert torch.allclose(z.softmax(1).flatten(), torch.tensor([.25, .75, 0]), atol=.02)


def test_a_teacher_that_contradicts_the_truth_is_heard_of_background_only():
    """The left kidney was looked for in vain, the right one not looked for; what a teacher sure of the left
    one has left over is no evidence of the right one."""
    # contradicts, and would draw the right one; contradicts, else nothing; is sure of the right one
    p = torch.tensor([[.97, .97, .001], [.029, .0, .98]]).reshape(1, 2, 1, 3)
    b = Batch(
        torch.zeros(1, 1, 1, 3),
        torch.zeros(1, 1, 3, dtype=torch.long),
        torch.tensor([[True, False]]),
        None,
        torch.tensor([0]),
    )
    completed = complete_batch(b, p, .9, "softmax")
    assert completed.known[0, :, 0].int().tolist() == [
        [1, 1, 1],
        [0, 1, 1],
    ] and completed.mask.flatten().tolist() == [0, 0, 2]
    student = torch.full((1, 2, 1, 3), .4, requires_grad=True)
    disagreement(student, p, unknown_cells(b.mask, b.known), "softmax").backward()
    assert student.grad[..., 0].abs().max() == 0 and (student.grad[0, 1, 0, 1:].abs() > 0).all()


@pytest.mark.parametrize("C", [3, 54])
def test_consistency_means_the_same_for_any_number_of_classes(C):
    a, b = (torch.zeros(1, C, 2, 2).index_fill(1, torch.tensor([c]), 1.) for c in (0, 1))
    assert disagreement(a, b, torch.ones(1, C, 2, 2, dtype=torch.bool), "softmax") == 2


@pytest.mark.parametrize("name", ["mean-teacher", "teacher-student"])
def test_consistency_leaves_a_presence_head_unasked_on_both_sides(tmp_path, monkeypatch, name):
    """The student's pixels are compared with the teacher's pixels; with the teacher's presence in its
    answer alone, the two could never agree."""
    settings = {"mean-teacher": ["perturb=none"], "teacher-student": ["keep=4"]}[name]
    job = make_job(tmp_path, name, "presence=1", "loss=masked", *settings)
    model = job.networks.make()
    torch.nn.init.constant_(model.presence.linear.bias, -3.)  # presence far from 1
    asked, real = [], Teacher.__call__

    def ask(self, image, presence=False):
        asked.append(presence)
        out = real(self, image, presence)
        assert torch.equal(out, job.loss.probabilities(self.model(image).detach().float()))
        return out
    monkeypatch.setattr(Teacher, "__call__", ask)
    method = METHODS.get(name)(job.recipe.method)
    t = job.trainer(
        model,
        Phase(
            "x", job.labelled, method, job.unlabelled, teacher=model if name == "teacher-student" else None
        ),
    )
    t.learner.ema.model.eval()
    loss_of(t, make_views(t, FOUR))
    assert asked == [False]
