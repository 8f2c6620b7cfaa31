"The loop under the accidents of real life: short of memory, not finite, deadlines between two steps."
import math
import warnings

import numpy as np
import pytest
import torch
from helpers.runs import contents
from helpers.toys import tiny, toy

from ctseg.core.errors import InputError
from ctseg.data.augment import MILD
from ctseg.losses.registry import create_loss
from ctseg.models import create_model
from ctseg.recipes.fit import fit
from ctseg.training import loop
from ctseg.training.deadline import Stopped
from ctseg.training.loop import Trainer
from ctseg.training.method import Method, Phase
from ctseg.training.setup import ComputeSettings, ScheduleSettings, Setup
from ctseg.training.step import step_gradients


def trainer(model=None, method=None, pieces=1, **schedule):
    slices = toy(labelled=24)
    loss = create_loss("masked")
    torch.manual_seed(0)
    setup = Setup(
        ScheduleSettings(**{"epochs": 2, "lr": 1e-3, **schedule}),
        ComputeSettings(pieces=pieces),
        MILD,
        progress=False,
    )
    return Trainer(
        model or create_model("attunet", 1, 3, width=4), loss, Phase("train", slices, method), setup
    )


def fails_above(limit, error=torch.OutOfMemoryError("fake")):
    torch.manual_seed(0)
    model = create_model("attunet", 1, 3, width=4)

    def check(module, args):
        if len(args[0]) > limit: raise error
    model.register_forward_pre_hook(check)
    return model


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("fake"), RuntimeError("[enforce fail] "
                                                                                "DefaultCPUAllocator: "
                                                                                "can't allocate memory: "
                                                                                "you tried")])
def test_out_of_memory_halves_the_pieces_and_is_the_same_as_having_asked_for_them(error):
    a, b = trainer(fails_above(2, error)), trainer(pieces=4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        a.fit()
        b.fit()
    # each time told once
    assert (
        a.progress.pieces == 4
        and [f"{n} pieces" in str(w.message) for n, w in zip((2, 4), said)] == [True, True]
        and len(said) == 2
    )
    assert [r["loss"] for r in a.progress.history] == [r["loss"] for r in b.progress.history]
    assert all(
        torch.equal(x, y)
        for x, y in zip(a.learner.raw.state_dict().values(), b.learner.raw.state_dict().values())
    )


def test_memory_for_one_image_suffices():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        t = trainer(fails_above(1), batch_size=6)
        t.fit()
    assert t.progress.pieces == 6  # 2, 4, 6: not "a single image" before one has been tried


def test_pieces_add_up_to_the_whole_where_nothing_depends_on_the_batch():
    norms = []
    for pieces in (1, 2, 3, 4, 8):  # 3: pieces of 3, 3 and 2 images
        torch.manual_seed(0)
        model = torch.nn.Conv2d(1, 3, 3, padding=1)
        loss, slices = create_loss("masked", reduction="image", w_dice=0.), toy(n=24, labelled=24, every=True)
        t = Trainer(model, loss, Phase("train", slices), Setup(ScheduleSettings(epochs=1), progress=False))
        norms.append(step_gradients(t.stepper, t.labelled.batches(0)[0], step=0, pieces=pieces))
    assert np.allclose(norms, norms[0], rtol=1e-6)


def test_memory_that_never_suffices_is_told():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="single image"): trainer(fails_above(0)).fit()


def test_other_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="something else"):
        trainer(fails_above(2, RuntimeError("something else"))).fit()


class NaN(Method):
    def __init__(self, steps, where): self.steps, self.where = steps, where

    def loss(self, ctx, views):
        loss = super().loss(ctx, views)
        if ctx.step not in self.steps: return loss
        if self.where == "loss": return loss*math.nan
        first = next(ctx.student.model.parameters())
        return loss + (first*0).sqrt().sum() if self.where == "gradient" else loss


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_leaves_nothing_behind(where):
    t = trainer(method=NaN([2], where))
    for index in t.labelled.batches(0)[:2]: t.step(index)
    before = {k: v.clone() for k, v in t.learner.raw.state_dict().items()}
    assert math.isnan(t.step(t.labelled.batches(0)[2]))
    assert (
        all(torch.equal(v, before[k]) for k, v in t.learner.raw.state_dict().items())
        and t.progress.skipped == 1
        and t.learner.ema.steps == 2
    )
    assert math.isfinite(t.step(t.labelled.batches(1)[0])) and t.progress.in_a_row == 0


def test_too_many_such_steps_end_the_run_and_name_the_images():
    t = trainer(method=NaN(range(1, 99), "loss"), skip_limit=3, epochs=9)
    with pytest.raises(InputError, match="3 steps in a row") as e: t.fit()
    names = str(e.value).split("last batch: ")[1].split(", ")
    assert len(names) == 8 and set(names) <= set(t.labelled.slices.names)


def fit_some(tmp_path, epochs, *settings):
    "A run that is cut when so many epochs are done."
    real = loop.end_epoch
    def cut(session):
        real(session)
        if session.progress.epoch == epochs: raise Stopped("cut")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(loop, "end_epoch", cut)
        fit(
            toy(),
            tiny("masked", "fold=-1", "epochs=3", *settings),
            tmp_path/"run",
            device="cpu",
            progress=False,
        )


def test_pieces_may_change_when_a_run_goes_on(tmp_path):
    """Two processes that ran out of memory are told to; nothing that is trained is lost, and no piece is
    forgotten later."""
    with pytest.raises(Stopped): fit_some(tmp_path, 1)
    seen, real = [], Trainer.step
    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            Trainer,
            "step",
            lambda self, index: seen.append((self.progress.step, self.progress.pieces)) or real(self, index),
        )
        fit(
            toy(),
            tiny("masked", "fold=-1", "epochs=3", "pieces=2"),
            tmp_path/"run",
            device="cpu",
            progress=False,
            resume=True,
        )
    assert seen == [(n, 2) for n in range(3, 9)]  # the first epoch had steps 0, 1, 2
    with pytest.raises(InputError, match="width = 4, not 8"):
        fit(
            toy(),
            tiny("masked", "fold=-1", "epochs=3", "width=8"),
            tmp_path/"run",
            device="cpu",
            progress=False,
            resume=True,
        )


def test_float16_goes_on_where_there_is_none(tmp_path):
    "A session on one card, the next on another: the scaler's state has nowhere to go."
    with pytest.raises(Stopped): fit_some(tmp_path, 1)
    state = next((tmp_path/"run"/"checkpoints"/"supervised").glob("*/state.pt"))
    kept = torch.load(state, weights_only=True)
    torch.save(
        kept
        | {
            "scaler": {
                "scale": 65536.,
                "growth_factor": 2.,
                "backoff_factor": .5,
                "growth_interval": 2000,
                "_growth_tracker": 0,
            }
        },
        state,
    )
    fit(
        toy(),
        tiny("masked", "fold=-1", "epochs=3"),
        tmp_path/"run",
        device="cpu",
        progress=False,
        resume=True,
    )
    fit(toy(), tiny("masked", "fold=-1", "epochs=3"), tmp_path/"whole", device="cpu", progress=False)
    assert contents(tmp_path/"run") == contents(tmp_path/"whole")


def test_a_batch_that_the_processes_cannot_share_is_told(monkeypatch):
    monkeypatch.setattr("ctseg.training.streams.world", lambda: 2)
    with pytest.raises(InputError, match="multiple of the 2 processes"): trainer(batch_size=3)
