# %% [markdown]
# # Job
#
# > A recipe at work on a set of slices: what all of its phases share, and what its method may use.

# %%
#| default_exp runs.job

# %%
#| export
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ctseg.core.device import DevicePlan, pick_device
from ctseg.core.errors import InputError
from ctseg.core.parallel import agree, rank
from ctseg.data.augmentations import make_augment
from ctseg.data.slices import SliceSet, with_context
from ctseg.losses.registry import make_loss
from ctseg.models.settings import make_model
from ctseg.runs.folder import Run, write_rows
from ctseg.runs.network import working_size
from ctseg.runs.notes import completed_cells, write_pseudo_labels
from ctseg.runs.recipe import Recipe
from ctseg.runs.split import split_slices, unexamined_as_absent
from ctseg.training.deadline import Deadline
from ctseg.training.loop import Trainer
from ctseg.training.method import METHODS, Method, Phase
from ctseg.training.randomness import derived_seed
from ctseg.training.setup import Setup

# %%
#| hide
import tempfile
from pathlib import Path

from ctseg.data.toys import toy_set
from ctseg.runs.recipe import loss_settings


# %% [markdown]
# Teacher and student, pretraining and fine-tuning, rounds of self-training: all are **phases in a row**, each a training of its own. A job holds what they share: the slices, the loss, the device, the folder, and where their networks come from. How far they have come is remembered by [the phases](35_phases.ipynb).
#
# ## Networks
#
# Every phase begins with a network of the recipe. All of them have the same fresh weights, which are a function of the seed. A phase that goes on from an earlier network gets its weights afterwards.

# %%
#| export
@dataclass
class Networks:
    "Makes the networks of a run, each with the same fresh weights."
    recipe: Recipe
    loss: nn.Module  # a `PartialLoss`
    classes: int  # C, without background
    image_size: int | None  # that they work at; None: the images' own
    seed: int = 0
    start: Callable[[nn.Module, nn.Module], None] | None = None  # start(model, loss): earlier weights
    prepared: nn.Module | None = None

    def build(self, trained: bool = False) -> nn.Module:
        "A network as the recipe describes it; `trained`: others will give it its weights."
        recipe, out_chans = self.recipe, self.loss.out_chans(self.classes)
        return make_model(
            recipe.model, out_chans, self.classes, self.image_size, trained, recipe.data.channels)

    def make(self) -> nn.Module:
        "A network with the weights that a phase begins with."
        torch.manual_seed(derived_seed(self.seed, "weights"))
        model = self.build(trained=self.start is not None)
        for head in getattr(model, "heads", [model.head]):
            self.loss.init_head(head, self.classes)
        if self.start: self.start(model, self.loss)
        return model

    def prepare(self) -> nn.Module:
        "The network that `take` will give next, to be looked at and not to be changed."
        self.prepared = self.make()
        return self.prepared

    def take(self) -> nn.Module:
        "The network of the next phase: the one that was prepared, else a fresh one, which has the same weights."
        model, self.prepared = self.prepared, None
        return self.make() if model is None else model


# %% [markdown]
# `fit` prepares a network before the run begins, to see whether that works. This one is then trained, since making another takes as long again.

# %%
toy_recipe = Recipe("toy", loss=loss_settings("marginal")(log_dice=True)).change(
    width=4, epochs=2, folds=4, lr=5e-3
)
networks = Networks(toy_recipe, make_loss(toy_recipe.loss), classes=3, image_size=None)
checked = networks.prepare()
assert networks.take() is checked
fresh = networks.take()
assert fresh is not checked
for name, values in fresh.state_dict().items(): assert torch.equal(values, checked.state_dict()[name])


# %% [markdown]
# ## What the recipe says

# %%
#| export
def recipe_setup(recipe: Recipe, slices: SliceSet) -> Setup:
    "What the recipe says of every phase on such slices; seed, device and folder are not its business."
    return Setup(
        schedule=recipe.schedule, compute=recipe.compute,
        augment=make_augment(recipe.augment, slices.classes),
        image_size=working_size(recipe, slices.image_shape) or None,
        presence=recipe.model.presence, rare_power=recipe.data.rare_power)


# %%
print(recipe_setup(toy_recipe.change(image_size=64), toy_set(24, 16)[0]).image_size)


# %%
#| export
@dataclass(frozen=True)
class JobOptions:
    "What is seldom given to a job."
    deadline: Deadline | None = None
    start: Callable[[nn.Module, nn.Module], None] | None = None  # see `Networks`
    teach: Callable | None = None  # see `Setup`: an earlier network teaches its classes
    taught: np.ndarray | None = None  # bool [C]: these classes
    memory: float | None = None  # see `Setup`


# %%
print(JobOptions())


# %% [markdown]
# ## The job
#
# First its parts, made from the recipe and the slices.

# %%
#| export
class JobParts:
    "What the phases of a recipe share, and what a method may read."
    def __init__(
        self, recipe: Recipe, slices: SliceSet, run: Run,
        plan: DevicePlan | None = None, # None: the device at hand
        seed: int = 0, progress: bool = True, options: JobOptions = JobOptions(),
    ):
        if seed < 0: raise InputError(f"seed = {seed}: expected 0 or more")
        self.recipe, self.run, self.seed, self.taught = recipe, run, seed, options.taught
        self.plan = plan or pick_device()
        slices = with_context(slices, recipe.data.context)
        self.split = split_slices(slices, recipe.data, seed, options.taught)
        self.labelled, self.unlabelled = self.split.labelled, self.split.unlabelled
        self.holdout = self.split.holdout
        self.loss = make_loss(recipe.loss, slices.classes.unions)
        self.method: Method = METHODS.get(recipe.method.name)(recipe.method)
        self.setup = replace(
            recipe_setup(recipe, slices), seed=seed, plan=self.plan, progress=progress,
            holdout=self.holdout, folder=run/"checkpoints", deadline=options.deadline,
            teach=options.teach, memory=options.memory)
        self.schedule, self.device, self.image_size = recipe.schedule, self.plan.device, self.setup.image_size
        classes = len(slices.classes)
        self.networks = Networks(recipe, self.loss, classes, self.image_size, seed, options.start)


# %%
job = JobParts(toy_recipe, toy_set(24, 16)[0], Run("nowhere"), progress=False)
print(len(job.labelled), len(job.unlabelled), len(job.holdout), job.schedule, job.loss.activation)


# %% [markdown]
# Then what can be done with it. `JobLike` in [Method](../training/50_method.ipynb#what-a-job-offers) lists what a method may use: of the names above `labelled`, `unlabelled`, `holdout`, `loss`, `schedule`, `device`, `seed` and `image_size`, of those below all but `trainer`.

# %%
#| export
class Job(JobParts):
    "A recipe at work on a set of slices; a method may use of it what `JobLike` lists."
    def in_time(self, what: str, together: bool = True) -> Callable[[Iterable], Iterable] | None:
        """What loops outside of training go through their batches with, to stop in time; None: no limit.

        Several processes that do the work `together` stop together."""
        deadline = self.setup.deadline
        if deadline is None: return None
        return lambda items: deadline.each(items, what, agree if together else bool)

    def note_pseudo(self, pseudo: Any, kept: SliceSet) -> None:
        "Keep what the teacher said of the unlabelled slices, and which of them are used."
        if rank(): return
        write_pseudo_labels(self.run, self.unlabelled, pseudo, kept)

    def note_completed(self, before: SliceSet, after: SliceSet) -> None:
        "Keep how many cells of each class people gave and how many teachers added."
        if rank(): return
        write_rows(completed_cells(before, after), self.run/"pseudo_cells.csv")

    def trainer(self, model: nn.Module, phase: Phase, pieces: int = 1) -> Trainer:
        "The trainer of one phase before its first step; `pieces`: that a batch is worked off in, at least."
        if phase.init is not None:
            model.load_state_dict(phase.init.state_dict())
        phase = replace(phase, slices=unexamined_as_absent(phase.slices, self.taught))
        compute = replace(self.setup.compute, pieces=max(pieces, self.setup.compute.pieces))
        return Trainer(model, self.loss, phase, replace(self.setup, compute=compute))


# %%
with tempfile.TemporaryDirectory() as d:
    job = Job(toy_recipe, toy_set(24, 16)[0], Run(d), progress=False)
    examined = replace(job.labelled, known=np.ones_like(job.labelled.known))
    job.note_completed(job.labelled, examined)
    print((Path(d)/"pseudo_cells.csv").read_text())
    print(job.trainer(job.networks.make(), Phase("supervised", job.labelled)).total, "steps")
