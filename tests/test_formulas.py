"What each method's name promises, number by number: a wrong factor, rate or mask here trains as smoothly as the right one."
import math

import numpy as np
import pytest
import torch
from test_methods import toy
from test_train import tiny

from ctseg.device import pick_device
from ctseg.losses import consistency_loss
from ctseg.methods.mean_teacher import ramp_up
from ctseg.pseudo import IMAGE_SCORES, image_confidence
from ctseg.recipes import METHODS
from ctseg.train import Job, Run, Trainer, generator

CPU = pick_device("cpu")
FOUR = torch.arange(4)


def phases(folder, name, *settings, slices=None) -> dict[str, Trainer]:
    "The trainers of a recipe's phases as they stand before the first step. What they give the next phase is no average of trained weights but their start, disturbed."
    seen = {}

    def fit(self, on_epoch=None):
        seen[self.phase], rng = self, generator("cpu", self.phase)
        for w in self.ema.model.parameters(): w += torch.randn(w.shape, generator=rng)*.3
        return self.ema.model
    recipe = tiny(name, "fold=-1", "augment=none", *settings)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Trainer, "fit", fit)
        METHODS[recipe.method](Job(recipe, toy() if slices is None else slices, Run(folder), CPU, progress=False))
    return seen


def starts_from(t: Trainer, before: Trainer): return all(torch.equal(a, b) for a, b in zip(t.raw.state_dict().values(), before.ema.model.state_dict().values()))


# ---- how long, how fast, from where

def test_a_second_phase_of_unimatch_has_its_own_length_and_rate(tmp_path):
    for second, epochs in [(.5, 4), (2, 16), (.01, 1)]:
        first, then = phases(tmp_path/str(second), "ctseg", "epochs=8", "lr=0.01", "second_lr=0.003", f"second={second}").values()
        assert [(t.phase, t.epochs, t.lr) for t in (first, then)] == [("supervised", 8, .01), ("unimatch", epochs, .003)]
        assert starts_from(then, first)
    alone, = phases(tmp_path/"alone", "ctseg", "epochs=8", "lr=0.01", "second_lr=0.003", "warm=no").values()
    assert (alone.phase, alone.epochs, alone.lr) == ("unimatch", 8, .01)


@pytest.mark.parametrize("keep", [4, 13, 24])
def test_pretraining_takes_as_many_steps_as_a_supervised_phase(tmp_path, keep):
    seen = phases(tmp_path, "seed-pretrain-finetune", "epochs=12", f"keep={keep}", slices=toy(36, labelled=12))
    assert len(seen["pretrain"].slices) == keep and seen["pretrain"].total == seen["teacher"].total == 12*3


@pytest.mark.parametrize("name, before", [("seed-pretrain-finetune", "pretrain"), ("self-training", "student")])
def test_a_fine_tune_goes_on_gently_with_the_truth_alone(tmp_path, name, before):
    seen = phases(tmp_path, name, "finetune_epochs=5", "finetune_lr=0.0004", "lr=0.01")
    t = seen["finetune"]
    assert (t.epochs, t.lr) == (5, .0004) and starts_from(t, seen[before]) and not starts_from(seen[before], seen[next(iter(seen))])
    assert t.slices.names == toy()[toy().labelled].names and np.array_equal(t.slices.known, toy().known[:12]) and t.extra is None


@pytest.mark.parametrize("ema", [0, .1])
def test_the_average_has_the_decay_of_the_recipe(tmp_path, ema):
    t = phases(tmp_path, "masked", f"ema={ema}")["supervised"]
    before = [w.clone() for w in t.ema.model.parameters()]
    t.step(FOUR)
    for old, avg, new in zip(before, t.ema.model.parameters(), t.raw.parameters()): assert torch.allclose(avg, ema*old + (1 - ema)*new, atol=1e-6)


# ---- consistency

def test_the_ramp_is_that_of_the_paper():
    assert [ramp_up(s, 10) for s in (0, 5, 10, 99)] == pytest.approx([math.exp(-5), math.exp(-5/4), 1, 1])
    assert ramp_up(0, 0) == 1


@pytest.mark.parametrize("name", ["mean-teacher", "unimatch"])
def test_the_weight_of_consistency_grows_over_the_ramp(tmp_path, name):
    t = phases(tmp_path, name, "epochs=10", "ramp=0.4", "consistency=3", "warm=no", "feature_dropout=0", "tau=0.5")[name]
    t.raw.eval()  # with batch statistics an answer would depend on what else is asked
    views = t.look(FOUR)
    plain = t.supervise(*t.answers(views["labelled"]), views["labelled"])

    def term(step):
        t.step_no = step
        return (t.method.loss(t, views) - plain).item()
    assert t.total == 30 and abs(term(29)) > .05
    assert [term(s)/term(29) for s in (0, 6, 12)] == pytest.approx([math.exp(-5), math.exp(-5/4), 1], abs=1e-3)


@pytest.mark.parametrize("presence", [0, .5])
def test_a_student_pays_for_its_distance_to_the_teacher(tmp_path, presence):
    "Pixel by pixel; what a presence head says has a loss of its own."
    losses = []
    for weight in (0, 1, 3):
        seen = phases(tmp_path/str(weight), "teacher-student", f"consistency={weight}", f"presence={presence}")
        t = seen["student"]
        t.raw.eval()
        views = t.look(FOUR)
        losses.append(t.method.loss(t, views).item())
    student, teacher = (t.loss.probabilities(model(views["kept"].image)) for model in (t.raw, seen["teacher"].ema.model))
    distance = consistency_loss(student, teacher).item()
    assert distance > 1e-3 and np.subtract(losses[1:], losses[0]) == pytest.approx([distance, 3*distance], rel=1e-3)


def test_nothing_is_settled_for_unimatch_below_its_certainty(tmp_path):
    for tau, settles in [(1, False), (.5, True)]:
        t = phases(tmp_path/str(tau), "ctseg", "cutmix=0", f"tau={tau}")["unimatch"]
        views = t.look(FOUR)
        truth, seen = views["labelled"], views["strong 0"]
        more = seen.known[:4] & ~(truth.known[:, :, None, None] | (truth.mask > 0)[:, None])
        assert more.any() == seen.known[4:].any() == settles
        assert torch.equal(seen.mask[:4], truth.mask) or settles


# ---- disturbances

def test_whole_channels_are_dropped_from_the_weak_view_alone(tmp_path):
    t = phases(tmp_path, "unimatch", "feature_dropout=0.25")["unimatch"]
    asked, answers = [], t.answers

    def spy(*views, between):
        asked.append((between, [len(v) for v in views]))
        return answers(*views, between=between)
    t.answers = spy
    t.gradients(FOUR)
    (between, lengths), = asked
    out, = between([torch.ones(sum(lengths), 400, 2, 2)])
    rest, weak = out[:-lengths[-1]], out[-lengths[-1]:]
    assert len(weak) == 8 and (rest == 1).all()
    dropped = (weak == 0).all((2, 3))
    assert torch.allclose(weak[~dropped], torch.tensor(1/.75)) and not torch.equal(dropped[0], dropped[1])
    assert (dropped.float().mean(1) - .25).abs().max() < .1


@pytest.mark.parametrize("cutmix", [0, 1])
def test_students_of_self_training_see_ruined_and_mixed_pictures(tmp_path, cutmix):
    seen = phases(tmp_path, "self-training", "rounds=2", f"cutmix={cutmix}")
    for name, noisy in [("teacher-1-1", False), ("teacher-2-1", True), ("student", True)]:
        t = seen[name]
        view = t.look(torch.arange(len(t.slices)))["labelled"][:len(t.slices)]
        image, mask = ((a != torch.from_numpy(b)).flatten(1).any(1) for a, b in ((view.image[:, 0], t.slices.images/np.float32(255)), (view.mask, t.slices.masks)))
        assert image.all() == image.any() == noisy and mask.any() == (noisy and cutmix == 1), name


def test_where_a_teacher_is_unsure_a_student_still_hears_what_people_examined(tmp_path):
    t = phases(tmp_path, "self-training", "cutmix=0", "pixel=0.6")["student"]
    n, people = len(t.slices), torch.from_numpy(toy().known[:12])
    view = t.look(torch.arange(n))["labelled"][:n]
    heard = view.known if view.known.ndim == 4 else view.known[:, :, None, None]
    if view.weight is not None: heard = heard & (view.weight > 0)
    assert heard.expand(-1, -1, 32, 32)[people].all()
    assert not heard.expand(-1, -1, 32, 32)[torch.from_numpy(t.slices.known) & ~people].all()  # or no pixel was unsure


# ---- how sure a teacher is

@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_by_every_score_a_surer_map_ranks_higher(activation):
    disc = torch.zeros(4, 8, 8, dtype=torch.bool)
    disc[:, 2:6, 2:6] = True
    sure = torch.tensor([.4, .6, .8, .97]).view(4, 1, 1) + torch.zeros(4, 8, 8)  # of the disc inside, of background outside; the rest is shared
    prob = torch.stack([torch.where(disc, sure, (1 - sure)/2), (1 - sure)/2], 1)
    scores = image_confidence(prob, disc.long(), activation)
    assert set(scores) == set(IMAGE_SCORES) - {"agreement"}
    for name, s in scores.items(): assert (s.diff() > 0).all() and s.min() >= 0 and s.max() <= 1, name
