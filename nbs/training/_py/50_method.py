# %% [markdown]
# # Method
#
# > What a training method is: its settings, its phases, and what it adds to a step.

# %%
#| default_exp training.method

# %%
#| export
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from ctseg.core.anatomy import ClassMap
from ctseg.core.arguments import shown_argument
from ctseg.core.errors import InputError
from ctseg.core.registry import Registry
from ctseg.core.settings import Settings
from ctseg.data.batches import Batch
from ctseg.data.slices import SliceSet

if TYPE_CHECKING:
    from ctseg.training.setup import ScheduleSettings

# %%
#| hide
from fastcore.test import test_eq

from ctseg.core.settings import describe, setting


# %% [markdown]
# ## Three questions
#
# A method does not copy the training loop. It answers three questions. Which **phases** are trained, one after the other? Which **views** of the images does the network see in a step? What is the **loss** of its answers?
#
# A phase is one training from start to end. `phases` is a generator: it yields a phase and gets back the trained model, whether the job has just trained it or has loaded it from an earlier call.

# %%
#| export
@dataclass(frozen=True)
class Phase:
    "One training: what the model learns from, and how this differs from the recipe."
    name: str                                   # of its checkpoints and in `history.csv`
    slices: SliceSet                            # the first stream, `batch_size` of them a step
    method: "Method | None" = None              # what a step does; None: supervised learning
    extra: SliceSet | None = None               # a second stream, as many a step; None or empty: none
    teacher: nn.Module | None = None            # answers `ctx.teacher`; None: the student's running average
    init: nn.Module | None = None               # start from its weights; None: from fresh ones
    epochs: int | None = None                   # None: the recipe's
    lr: float | None = None                     # peak learning rate; None: the recipe's
    pixel_weights: np.ndarray | None = None     # bool [N, H, W]: which pixels of `slices` teach; None: all
    extra_pixel_weights: np.ndarray | None = None  # the same for `extra`


# %%
from ctseg.data.toys import toy_set

toys, truth = toy_set(8, 4)
phase = Phase("teacher", toys[toys.labelled], epochs=3)
print(phase.name, len(phase.slices), phase.epochs)


# %% [markdown]
# ## What a step offers
#
# A method reads eight things, and nothing else. They are valid whenever one of its functions runs.
#
# `views` is called once for the whole batch, draws all random numbers and needs no gradient. The loop then divides the views among processes, and among several passes where memory is short; `loss` gets one share.

# %%
#| export
class StepLoss(Protocol):
    "The loss of a step, as a method sees it."
    activation: str  # "softmax" or "sigmoid"
    reads_known: bool  # False: it takes unknown for background

    def __call__(self, logits: Any, view: Batch) -> torch.Tensor:
        "The loss (a scalar) of logits, at one size or a list of several, against what is known of `view`."

    def probabilities(self, logits: Any) -> torch.Tensor:
        "float32 [B, C, H, W], without the background, of the finest logits."

    def gather(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums [b,…] of the images of this process, a row an image, as those of all processes, [B,…].

        A term of a method's own must gather its sums before it divides them."""


# %%
#| export
@dataclass(frozen=True)
class StepContext:
    "What a method may read in a step."
    step: int                             # steps of this phase before this one
    total: int                            # steps of this phase
    student: Callable[..., list]          # student(*views, between=None): the logits of each view
    teacher: Callable[..., torch.Tensor]  # teacher(image, presence=False): f32 [B, C, H, W]
    loss: StepLoss
    rng: Callable[[str], torch.Generator]  # rng(purpose): this step's generator, the same in every process
    share: slice                          # the rows of a whole batch that are worked on here
    classes: ClassMap


# %% [markdown]
# In `views`, `ctx.share` are the rows of this process, so that the teacher's work can be shared out: `batch[ctx.share]`. In `loss` they are the rows of the pass. `ctx.share.step` says how many such shares make the batch.
#
# `between` is a function of the encoder's features, a list of tensors, between encoder and decoder. `presence=True` multiplies a teacher's probabilities by those of its presence head, if it has one.
#
# ## What a job offers
#
# `phases` gets the job: the data, the recipe's schedule, and notes to be kept in the run folder.

# %%
#| export
class JobLike(Protocol):
    "What `Method.phases` may use of a job."
    labelled: SliceSet  # annotated, not held out
    unlabelled: SliceSet  # without annotation, of patients that are not held out
    holdout: SliceSet  # annotated, and not to be learnt from
    loss: nn.Module  # a `PartialLoss`
    schedule: "ScheduleSettings"
    device: torch.device
    seed: int
    image_size: int | None  # the network's; None: the images' own

    def in_time(self, what: str) -> Callable[[Iterable], Iterable] | None:
        "What a loop outside of training goes through its batches with, to stop in time; `what`: \"while …\"."

    def note_pseudo(self, pseudo: Any, kept: SliceSet) -> None:
        "Keep pseudo-labels of the unlabelled slices, and which of them are used, in the run folder."

    def note_completed(self, before: SliceSet, after: SliceSet) -> None:
        "Keep how many cells of each class people gave and how many teachers added."


# %% [markdown]
# ## The base class
#
# Supervised learning has one phase and one view. It is the base class of all other methods.

# %%
#| export
class NoSettings(Settings):
    "Settings of a method that has none."


# %%
print(NoSettings())


# %%
#| export
class Method:
    "Supervised learning, and the base of all methods."
    Settings: ClassVar[type[Settings]] = NoSettings

    def __init__(self, settings: Settings | None = None):
        self.settings = self.Settings() if settings is None else settings

    def check(self, job: JobLike) -> None:
        "`InputError` for what would stop the method later."

    def phases(self, job: JobLike) -> Generator[Phase, nn.Module, nn.Module]:
        "Yield each phase; receive its averaged model; return the final one."
        return (yield Phase("supervised", job.labelled))

    def read(self, ctx: StepContext, batch: Batch, extra: bool = False) -> Batch:
        "What a batch (of the second stream: `extra`) is to teach, before it is augmented."
        return batch

    def views(self, ctx: StepContext, labelled: Batch, extra: Batch | None) -> dict[str, Batch]:
        """What the network sees in a step, by name: here the annotated batch alone.

        `labelled` and `extra` (None without unlabelled slices) are augmented; each view is a whole batch."""
        return {"labelled": labelled}

    def loss(self, ctx: StepContext, views: dict[str, Batch]) -> torch.Tensor:
        "The loss of this process's share of the views, a scalar; here the supervised one."
        logits, = ctx.student(views["labelled"])
        return ctx.loss(logits, views["labelled"])

    def state_dict(self) -> dict[str, Any]:
        "What a checkpoint must keep of the method: tensors and plain values."
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Go on from what `state_dict` gave."


# %%
phases = Method().phases(type("Job", (), {"labelled": toys}))
print(next(phases).name)


# %% [markdown]
# ## Going through the phases
#
# `phases` is a generator: it yields what is to be trained, and is sent the trained network. `go_through` is the other side, for every kind of job: `train` is what the job does with a phase.

# %%
#| export
def go_through(
    phases: Generator[Phase, nn.Module, nn.Module], # from `Method.phases`
    train: Callable[[Phase], nn.Module], # makes the averaged network of a phase
) -> nn.Module: # the final network
    "Have `train` make a network of each phase, send it back to `phases`, and return the final one."
    model = None
    while True:
        try:
            phase = phases.send(model)
        except StopIteration as end:
            return end.value
        model = train(phase)


# %%
def two_phases():
    "A method's phases, with names in place of networks."
    first = yield Phase("first", toys)
    second = yield Phase("second", toys)
    return f"{second}, after {first}"

test_eq(
    go_through(two_phases(), lambda phase: f"network of {phase.name}"),
    "network of second, after network of first",
)


# %% [markdown]
# A semi-supervised method may find that there is nothing but the truth to learn from. It then returns what it has, and says so.

# %%
#| export
def nothing_to_add(model: nn.Module) -> nn.Module:
    "Warn that a semi-supervised method has nothing beside the truth to learn from; returns `model`."
    problem = "nothing beside the truth to learn from (no unlabelled images, or none that is kept)"
    warnings.warn(f"{problem}: the supervised model is the result")
    return model


# %%
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    nothing_to_add(nn.Identity())
print(told[0].message)

# %% [markdown]
# ## By name
#
# `register_method` enters a class under a name: `--set method=NAME` and `Recipe(method=…)` find it. Its settings belong to that name.

# %%
#| export
METHODS = Registry("method")

def register_method(name: str) -> Callable[[type[Method]], type[Method]]:
    "A decorator for a subclass of `Method`: recipes find it by `name`, or by its settings."
    def enter(cls: type[Method]) -> type[Method]:
        if not (isinstance(cls, type) and issubclass(cls, Method)):
            raise InputError(f"the method {name!r} is {shown_argument(cls)}; expected a subclass of Method")
        METHODS.register(name)(cls)
        others = vars(cls.Settings).get("name", name) != name  # settings that another method has already
        if cls.Settings is NoSettings or others:
            cls.Settings = type(f"{cls.__name__}Settings", (cls.Settings,), {"__module__": cls.__module__})
        cls.Settings.name = name
        return cls
    return enter


# %%
class HalfSettings(Settings):
    share: float = setting(0.5, "part of the loss", low=0, high=1)

@register_method("half")
class Half(Method):
    "Learns half as hard."
    Settings = HalfSettings

    def loss(self, ctx, views): return self.settings.share*super().loss(ctx, views)

print(METHODS.names(), describe(Half.Settings))
test_eq(Half(HalfSettings(share=0.3)).settings.share, 0.3)
test_eq(HalfSettings.name, "half")
METHODS.entries.clear()
