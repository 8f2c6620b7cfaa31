# %% [markdown]
# # Phases
#
# > The trainings of a job, one after the other: each is carried out, or loaded if it has finished.

# %%
#| default_exp runs.phases

# %%
#| export
import contextlib
import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from ctseg.core.errors import InputError
from ctseg.core.parallel import must_be_alike, rank
from ctseg.core.schema import COUNT, anything, fields, listed, number
from ctseg.models.base import place
from ctseg.runs.folder import Run, write_rows
from ctseg.runs.job import Job
from ctseg.runs.notes import EpochNotes, Watcher, device_in_words
from ctseg.training.checkpoints import Checkpoints, save_weights
from ctseg.training.method import Phase, go_through

# %%
#| hide
import tempfile
from pathlib import Path

import torch

from ctseg.data.toys import toy_set
from ctseg.runs.recipe import Recipe, loss_settings

# %% [markdown]
# A [method](../training/50_method.ipynb) yields its phases one after the other and gets each trained network back. Whether this was trained a moment ago or lay in the run folder makes no difference to it. So a run that was cut is continued by going through all phases once more: those that have finished are loaded.
#
# ## A phase that has finished
#
# It has left its averaged network, its history, and the number of pieces that its batches had to be cut into.

# %%
#| export
_EPOCHS = listed(fields({"epoch": COUNT, "dice": anything}))
_FINAL = fields({"history": _EPOCHS, "pieces": number(1, whole=True)})

def check_final(state: dict[str, Any]) -> None:
    "Raises unless the state of a finished phase says what is needed of it."
    _FINAL(state)


# %%
check_final({"history": [{"epoch": 1, "dice": 0.5}], "pieces": 1})


# %%
#| export
def tell_if_lost(run: Run, phase: str) -> None:
    "Warn if `history.csv` tells of a phase of which nothing is kept; a damaged history is written again anyhow."
    kept = any((run/"checkpoints"/phase).glob("[!.]*"))
    if kept or not (run/"history.csv").exists(): return
    with contextlib.suppress(InputError):
        epochs = int((run.read_history().phase == phase).sum())
        if not epochs: return
        problem = f"{epochs} epochs of it are in history.csv, and no checkpoint is left"
        warnings.warn(f"{run.folder}: phase {phase} is trained again: {problem}")


# %%
with tempfile.TemporaryDirectory() as d, warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    write_rows([{"phase": "supervised", "epoch": n} for n in (1, 2)], Path(d)/"history.csv")
    tell_if_lost(Run(d), "supervised")
    tell_if_lost(Run(d), "refine")
print(*(str(w.message).replace(d, "…") for w in told))


# %%
#| export
def load_finished(model: nn.Module, job: Job, phase: str) -> dict[str, Any] | None:
    "What a finished phase has left, its averaged weights loaded into `model`; None where it has not finished."
    run = job.run
    checkpoints = Checkpoints(run/"checkpoints"/phase)
    state = checkpoints.final({"ema": model}, check_final)
    folder = f"in {run.folder}: it must be on a disk of all of them"
    must_be_alike(state is not None, f"the processes do not see the same finished phases {folder}")
    if state is None:
        if not rank(): tell_if_lost(run, phase)
        return None
    place(model, job.device, job.recipe.compute.channels_last).eval().requires_grad_(False)
    if not rank(): checkpoints.drop_steps()
    return state


def keep_result(model: nn.Module, history: list[dict], run: Run) -> None:
    "The weights that predict until the next phase is over, and the history. A finished run stays what it is."
    if rank() or run.finished: return
    write_rows(history, run/"history.csv")
    save_weights(model, run.weights)


# %%
toy_recipe = Recipe("toy", loss=loss_settings("marginal")(log_dice=True)).change(
    width=4, epochs=2, folds=4, lr=5e-3
)
job = Job(toy_recipe, toy_set(24, 16)[0], Run("nowhere"), progress=False)
print(load_finished(job.networks.make(), job, "supervised"))


# %% [markdown]
# ## All of them
#
# `carry_out` goes through the phases of the method, `train` runs or loads one.

# %%
#| export
class Phases:
    "The phases of a job, as they are trained or loaded; `watchers` are called after each epoch."
    def __init__(self, job: Job, watchers: Iterable[Watcher] = ()):
        self.job = job
        self.notes = EpochNotes(job.run, device_in_words(job.plan), job.setup.progress, watchers)
        self.completed: list[str] = []  # by name
        self.history: list[dict] = []  # a row for each epoch of these
        self.pieces = job.recipe.compute.pieces  # a batch that was too large for one phase is so for the next

    def carry_out(self) -> nn.Module:
        "Go through the phases of the recipe's method; the final model."
        return go_through(self.job.method.phases(self.job), self.train)

    def train(self, phase: Phase) -> nn.Module:
        "The averaged model of one phase: trained, or loaded if the phase has finished."
        job, earlier, model = self.job, list(self.history), self.job.networks.take()
        state = load_finished(model, job, phase.name)
        if state is None:
            trainer = job.trainer(model, phase, self.pieces)
            model = trainer.fit(on_epoch=lambda t: self.notes.note(earlier + t.progress.history))
            history, self.pieces = trainer.progress.history, trainer.progress.pieces
        else:
            history, self.pieces = state["history"], max(self.pieces, state["pieces"])
        self.history = earlier + history
        self.completed.append(phase.name)
        keep_result(model, self.history, job.run)
        return model


# %%
with tempfile.TemporaryDirectory() as d:
    job = Job(toy_recipe, toy_set(24, 16)[0], Run(d), progress=False)
    phases = Phases(job)
    model = phases.carry_out()
    print(
        phases.completed,
        [round(row["loss"], 3) for row in phases.history],
        sorted(p.name for p in Path(d).iterdir()),
    )
    again = Phases(Job(toy_recipe, toy_set(24, 16)[0], Run(d), progress=False)).carry_out()  # loaded
assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
