# %% [markdown]
# # Job
#
# > A recipe at work on a set of slices: phases that are run, or loaded if they have finished.

# %%
#| default_exp runs.job

# %%
#| export
import contextlib
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ctseg.core.device import DevicePlan, pick_device
from ctseg.core.errors import InputError
from ctseg.core.parallel import agree, must_be_alike, on_main, rank, world
from ctseg.core.schema import anything, fields, listed, number
from ctseg.data.augmentations import make_augment
from ctseg.data.slices import SliceSet
from ctseg.losses.registry import make_loss
from ctseg.models.base import place
from ctseg.models.settings import make_model
from ctseg.runs.contents import COUNT, write_pseudo
from ctseg.runs.folder import Run, write_rows
from ctseg.runs.network import working_size
from ctseg.runs.recipe import Recipe
from ctseg.runs.split import split_slices, unexamined_as_absent
from ctseg.training.checkpoints import Checkpoints, drop_steps, save_weights
from ctseg.training.curves import Watch
from ctseg.training.deadline import Deadline, Stopped
from ctseg.training.loop import Trainer
from ctseg.training.method import METHODS, Method, Phase, go_through
from ctseg.training.randomness import derived_seed
from ctseg.training.setup import ScheduleSettings, Setup

# %%
#| hide
import tempfile
from pathlib import Path

from ctseg.data.toys import toy_set
from ctseg.runs.recipe import loss_settings


# %% [markdown]
# Teacher and student, pretraining and fine-tuning, rounds of self-training: all are **phases in a row**, each a training of its own. A job holds what they share: the slices, the folder, the device.
#
# ## What a job notes
#
# Methods and the loop tell the job what is worth keeping, and it writes that into the run folder.

# %%
#| export
def pseudo_rows(scores: dict[str, np.ndarray], names: Iterable[str], kept: set[str]) -> list[dict[str, Any]]:
    "A row for each pseudo-labelled image: its name, whether it is kept, its confidences [N] by name."
    rows = []
    for i, name in enumerate(names):
        confidences = {score: round(float(values[i]), 5) for score, values in scores.items()}
        rows.append({"image": name, "kept": int(name in kept)} | confidences)
    return rows


# %%
pseudo_rows({"sdc": np.array([.9, .4])}, ["7.png", "8.png"], {"7.png"})


# %%
#| export
def timings_so_far(run: Run) -> list[dict[str, Any]]:
    "The rows of `timings.csv`; a damaged table is begun again, with a warning: no training stops for it."
    try:
        return run.read_timings()
    except InputError as e:
        warnings.warn(f"{e}; its rows are lost")
        return []


# %%
#| export
class Notes:
    "What is kept in the run folder while a recipe is at work."
    def __init__(self, run: Run, unlabelled: SliceSet, where: str, progress: bool):
        self.run, self.unlabelled, self.where, self.progress = run, unlabelled, where, progress
        self.watch: Watch | None = None
        self.clock = time.monotonic()

    def epoch(self, history: list[dict]) -> None:
        "After each epoch: `history.csv`, `timings.csv`, and curves for whoever is watching."
        write_rows(history, self.run/"history.csv")
        seconds, row = time.monotonic() - self.clock, history[-1]
        self.clock = time.monotonic()
        epoch = {"phase": row["phase"], "epoch": row["epoch"]}
        timing = epoch | {"seconds": round(seconds, 2), "where": self.where}
        write_rows(timings_so_far(self.run) + [timing], self.run/"timings.csv")
        if self.progress and self.watch is None:
            self.watch = Watch()
        if self.watch: self.watch(history)

    def pseudo(self, pseudo: Any, kept: SliceSet) -> None:
        "What a teacher said of each unlabelled image, and whether it is kept."
        names, chosen = self.unlabelled.names, set(kept.names)
        write_rows(pseudo_rows(pseudo.scores, names, chosen), self.run/"pseudo_labels.csv")
        flags = np.array([n in chosen for n in names])
        arrays = {"labels": pseudo.labels, "kept": flags, "names": np.array(names)}
        write_pseudo(arrays | pseudo.scores, self.run/"pseudo_labels.npz")


# %%
#| export
def completed_cells(before: SliceSet, after: SliceSet) -> list[dict[str, Any]]:
    "A row for each class: how many cells people gave, and how many teachers added."
    absent = before.known & ~before.present
    present_added = after.present & ~before.known
    absent_added = after.known & ~before.known & ~after.present
    columns = {"present": before.present, "absent": absent, "present added": present_added,
               "absent added": absent_added}
    counts = {name: cells.sum(0) for name, cells in columns.items()}  # of each class
    rows = []
    for c, name in enumerate(before.classes.names):
        rows.append({"class": name} | {k: int(n[c]) for k, n in counts.items()})
    return rows


# %%
slices, truth = toy_set(24, 12)
filled = replace(slices, masks=truth, known=np.ones_like(slices.known))
for row in completed_cells(slices, filled): print(row)


# %% [markdown]
# ## The job
#
# `train` runs one phase, or loads its result if it has finished. `carry_out` goes through the phases of a method and hands each model back to it.

# %%
#| export
@dataclass(frozen=True)
class JobOptions:
    "What is seldom given to a job."
    deadline: Deadline | None = None
    watchers: tuple[Callable[[list[dict]], None], ...] = ()  # called with the history after each epoch
    start: Callable[[nn.Module, nn.Module], None] | None = None  # start(model, loss): earlier weights
    teach: Callable | None = None  # see `Setup`: an earlier network teaches its classes
    taught: np.ndarray | None = None  # bool [C]: these classes
    memory: float | None = None  # see `Setup`


# %%
print(JobOptions())


# %%
#| export
class JobBase:
    "What a recipe's phases share: slices, loss, method, device, notes."
    def __init__(
        self, recipe: Recipe, slices: SliceSet, run: Run,
        plan: DevicePlan | None = None, # None: the device at hand
        seed: int = 0, progress: bool = True, options: JobOptions = JobOptions(),
    ):
        if seed < 0: raise InputError(f"seed = {seed}: expected 0 or more")
        self.recipe, self.run, self.plan, self.seed = recipe, run, plan or pick_device(), seed
        self.options = options
        slices = slices.with_context(recipe.data.context)
        self.split = split_slices(slices, recipe.data, seed, options.taught)
        self.loss = make_loss(recipe.loss, slices.classes.unions)
        self.method: Method = METHODS.get(recipe.method.name)(recipe.method)
        self.where = f"{self.plan}, {world()} processes" if world() > 1 else str(self.plan)
        self.notes = Notes(run, self.split.unlabelled, self.where, progress)
        self.setup = Setup(
            schedule=recipe.schedule, compute=recipe.compute, seed=seed, plan=self.plan, progress=progress,
            augment=make_augment(recipe.augment, slices.classes), holdout=self.split.holdout,
            image_size=working_size(recipe, slices.images.shape[1:]) or None,
            presence=recipe.model.presence, rare_power=recipe.data.rare_power, folder=run/"checkpoints",
            deadline=options.deadline, teach=options.teach, memory=options.memory)
        self.history: list[dict] = []
        self.completed: list[str] = []  # phases
        self.pieces = recipe.compute.pieces


# %%
toy_recipe = Recipe("toy", loss=loss_settings("marginal")(log_dice=True)).change(
    width=4, epochs=2, folds=4, lr=5e-3
)
job = JobBase(toy_recipe, toy_set(24, 16)[0], Run("nowhere"), progress=False)
print(job.where.partition(" ")[0], len(job.split.labelled), "slices to learn from,", job.loss.activation)


# %% [markdown]
# Methods see the parts of the split and of the recipe that concern them.

# %%
#| export
class JobData(JobBase):
    "What `Method.phases` may read."
    @property
    def labelled(self) -> SliceSet:
        "Annotated slices to learn from."
        return self.split.labelled

    @property
    def unlabelled(self) -> SliceSet:
        "Slices without annotation to learn from."
        return self.split.unlabelled

    @property
    def holdout(self) -> SliceSet:
        "Annotated slices to be scored on."
        return self.split.holdout

    @property
    def schedule(self) -> ScheduleSettings:
        "The schedule of the recipe."
        return self.recipe.schedule

    @property
    def device(self) -> torch.device:
        "Where to compute."
        return self.plan.device

    @property
    def image_size(self) -> int | None:
        "Height and width that the network works at; None: the images' own."
        return self.setup.image_size


# %%
job = JobData(toy_recipe, toy_set(24, 16)[0], Run("nowhere"), progress=False)
print(len(job.labelled), len(job.unlabelled), len(job.holdout), job.schedule, job.image_size)


# %%
#| export
def reason_to_stop(watchers: Iterable[Callable[[list[dict]], None]], history: list[dict]) -> str:
    "Call each watcher with the history; why one of them has raised `Stopped`, or ''."
    reasons = []
    for watcher in watchers:
        try:
            watcher(history)
        except Stopped as e:
            reasons.append(str(e) or "a callback")
    return "; ".join(reasons)


# %%
def patience(history):
    if len(history) == 3: raise Stopped("no longer better")

print([reason_to_stop([patience], [{}]*n) for n in (2, 3)])


# %%
#| export
class NotedJob(JobData):
    "What a method may tell a job, and what whoever watches is told."
    def in_time(self, what: str, together: bool = True) -> Callable[[Iterable], Iterable] | None:
        """What loops outside of training go through their batches with, to stop in time; None: nothing limits them.

        Several processes that do the work `together` stop together."""
        deadline = self.setup.deadline
        if deadline is None: return None
        return lambda items: deadline.each(items, what, agree if together else bool)

    def note_pseudo(self, pseudo: Any, kept: SliceSet) -> None:
        "Keep what the teacher said of the unlabelled slices, and which of them are used."
        if not rank(): self.notes.pseudo(pseudo, kept)

    def note_completed(self, before: SliceSet, after: SliceSet) -> None:
        "Keep how many cells of each class people gave and how many teachers added."
        if not rank():
            write_rows(completed_cells(before, after), self.run/"pseudo_cells.csv")

    def note_epoch(self, history: list[dict]) -> None:
        "Keep the history so far, and call the watchers; `Stopped` in every process if one of them wants that."
        if not rank(): self.notes.epoch(history)
        # asked also where this process has no watcher: trackers are open in process 0 only
        reason = on_main(lambda: reason_to_stop(self.options.watchers, history))
        if agree(bool(reason)):
            raise Stopped(f"{reason or 'another process'}: stopped after {len(history)} epochs")


# %%
with tempfile.TemporaryDirectory() as d:
    job = NotedJob(toy_recipe, toy_set(24, 16)[0], Run(d), progress=False)
    examined = replace(job.labelled, known=np.ones_like(job.labelled.known))
    job.note_completed(job.labelled, examined)
    print((Path(d)/"pseudo_cells.csv").read_text())

# %%
job = NotedJob(
    toy_recipe, toy_set(24, 16)[0], Run("nowhere"), progress=False, options=JobOptions(watchers=(patience,))
)
job.notes.epoch = print
try: job.note_epoch([{}]*3)
except Stopped as e: print(e)


# %%
#| export
class ModelJob(NotedJob):
    "A job that makes networks."
    prepared: nn.Module | None = None  # the network of the next phase, made to be looked at

    def make_model(self) -> nn.Module:
        "A fresh model of the recipe, its weights a function of the seed."
        torch.manual_seed(derived_seed(self.seed, "weights"))
        classes = len(self.labelled.classes)
        start = self.options.start
        model = make_model(
            self.recipe.model, self.loss.out_chans(classes), classes, self.image_size,
            trained=start is not None, in_chans=self.recipe.data.channels)
        for head in getattr(model, "heads", [model.head]):
            self.loss.init_head(head, classes)
        if start: start(model, self.loss)
        return model

    def prepare_model(self) -> nn.Module:
        "The network of the next phase, to be looked at and not to be changed."
        self.prepared = self.make_model()
        return self.prepared

    def next_model(self) -> nn.Module:
        "The network of the next phase: the one that was prepared, else a fresh one, which has the same weights."
        model, self.prepared = self.prepared, None
        return self.make_model() if model is None else model


# %%
#| export
class PhaseJob(ModelJob):
    "A job that trains phases."
    def trainer(self, model: nn.Module, phase: Phase) -> Trainer:
        "The trainer of one phase, set up as the recipe says."
        setup = replace(self.setup, compute=replace(self.recipe.compute, pieces=self.pieces))
        phase = replace(phase, slices=unexamined_as_absent(phase.slices, self.options.taught))
        return Trainer(model, self.loss, phase, setup)

    def keep(self, model: nn.Module) -> None:
        "The history, and the weights that predict until the next phase is over. A finished run stays what it is."
        if rank() or self.run.finished: return
        write_rows(self.history, self.run/"history.csv")
        save_weights(model, self.run.weights)


# %%
job = PhaseJob(toy_recipe, toy_set(24, 16)[0], Run("nowhere"), progress=False)
print(job.trainer(job.make_model(), Phase("supervised", job.labelled)).total, "steps")

# %% [markdown]
# `fit` makes a network before the run begins, to see whether that works. This one is then trained, since making another takes as long again. The weights are the same in either case.

# %%
checked = job.prepare_model()
assert job.next_model() is checked
fresh = job.next_model()
assert fresh is not checked
for name, values in fresh.state_dict().items(): assert torch.equal(values, checked.state_dict()[name])

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
class Job(PhaseJob):
    "A recipe at work on a set of slices."
    def carry_out(self) -> nn.Module:
        "Go through the phases of the recipe's method; the final model."
        return go_through(self.method.phases(self), self.train)

    def train(self, phase: Phase) -> nn.Module:
        "The averaged model of one phase: trained, or loaded if the phase has finished."
        model, earlier = self.next_model(), list(self.history)
        checkpoints = Checkpoints(self.run/"checkpoints"/phase.name)
        state = checkpoints.final({"ema": model}, check_final)
        folder = f"in {self.run.folder}: it must be on a disk of all of them"
        must_be_alike(state is not None, f"the processes do not see the same finished phases {folder}")
        if state is None:
            if not rank(): tell_if_lost(self.run, phase.name)
            if phase.init is not None:
                model.load_state_dict(phase.init.state_dict())
            trainer = self.trainer(model, phase)
            model = trainer.fit(on_epoch=lambda t: self.note_epoch(earlier + t.progress.history))
            history, self.pieces = trainer.progress.history, trainer.progress.pieces
        else:
            place(model, self.device, self.recipe.compute.channels_last).eval().requires_grad_(False)
            history, self.pieces = state["history"], max(self.pieces, state["pieces"])
            if not rank(): drop_steps(checkpoints)
        self.history = earlier + history
        self.completed.append(phase.name)
        self.keep(model)
        return model


# %%
with tempfile.TemporaryDirectory() as d:
    job = Job(toy_recipe, toy_set(24, 16)[0], Run(d), progress=False)
    model = job.carry_out()
    print(
        job.completed,
        [round(row["loss"], 3) for row in job.history],
        sorted(p.name for p in Path(d).iterdir()),
    )
    again = Job(toy_recipe, toy_set(24, 16)[0], Run(d), progress=False).carry_out()  # loaded
assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
