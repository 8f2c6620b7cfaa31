# %% [markdown]
# # A method in memory
#
# > Every phase of a method trained without a run folder: to try it on toys, and to test it.

# %%
#| default_exp methods.in_memory

# %%
#| export
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from ctseg.data.slices import SliceSet
from ctseg.inference.loop import predict_labels
from ctseg.metrics.challenge import challenge_dice
from ctseg.training.loop import Trainer
from ctseg.training.method import Method, Phase, go_through
from ctseg.training.randomness import derived_seed
from ctseg.training.setup import ScheduleSettings, Setup

# %%
#| hide
import torch

from ctseg.data.toys import toy_set
from ctseg.losses.registry import create_loss
from ctseg.models.zoo import create_model
from ctseg.training.method import Method
from ctseg.training.setup import ScheduleSettings, Setup


# %% [markdown]
# A method is a class whose `phases` say what is trained, one phase after the other. A real run [trains them](../runs/35_phases.ipynb), keeps checkpoints and can be continued. Here is a small one that keeps everything in memory. The pages of this folder use it to show each method on toy bodies in seconds.

# %%
#| export
class MemorySetup:
    """Slices, loss and settings of a job that keeps everything in memory.

    slices: annotated ones, and others. loss: from `ctseg.losses`. make_model: a fresh network, called with seeded
    random numbers. setup: schedule, augmentation, seed, device. After `run`, `models` has the averaged network of each
    phase by name, and `notes` what the method noted: "pseudo" and "kept", or "before" and "after".
    """
    def __init__(
        self,
        slices: SliceSet,
        loss: nn.Module,
        make_model: Callable[[], nn.Module],
        setup: Setup,
    ):
        self.labelled, self.unlabelled = slices[slices.labelled], slices[~slices.labelled]
        self.holdout = self.labelled[:0]
        self.loss, self.make_model, self.setup = loss, make_model, setup
        loss.unions = slices.classes.unions
        self.models: dict[str, nn.Module] = {}
        self.notes: dict[str, Any] = {}

    @property
    def schedule(self) -> ScheduleSettings:
        "Epochs, batch size and rates of every phase that does not say otherwise."
        return self.setup.schedule

    @property
    def device(self) -> torch.device:
        "Where networks are trained and asked."
        return self.setup.plan.device

    @property
    def seed(self) -> int:
        "The seed of everything random."
        return self.setup.seed

    @property
    def image_size(self) -> int | None:
        "At which the network works; None: the images' own."
        return self.setup.image_size


# %%
slices, truth = toy_set(10, 10)
loss = create_loss("marginal", log_dice=True)
setup = Setup(schedule=ScheduleSettings(epochs=60, batch_size=5, lr=1e-2), progress=False)


def small_network():
    "A network that learns toy bodies in seconds."
    return create_model("attunet", 1, 4, width=4)


print(MemorySetup(slices, loss, small_network, setup).schedule)


# %%
#| export
class MemoryJob(MemorySetup):
    "A method at work: its phases are trained one after the other; what it notes is remembered in `notes`."
    def in_time(self, what: str) -> Callable[[Iterable], Iterable] | None:
        "Nothing limits the time."
        return None

    def note_pseudo(self, pseudo: Any, kept: SliceSet) -> None:
        "Remember pseudo-labels and which slices are kept."
        self.notes |= {"pseudo": pseudo, "kept": kept}

    def note_completed(self, before: SliceSet, after: SliceSet) -> None:
        "Remember the annotated slices before and after teachers completed them."
        self.notes |= {"before": before, "after": after}

    def run(self, method: Method) -> nn.Module:
        "Train every phase of `method`; its final model."
        return go_through(method.phases(self), self.train)

    def train(self, phase: Phase) -> nn.Module:
        "The averaged network of one phase."
        self.models[phase.name] = self.trainer(phase).fit()
        return self.models[phase.name]

    def trainer(self, phase: Phase) -> Trainer:
        "The trainer of one phase before its first step."
        torch.manual_seed(derived_seed(self.seed, "weights"))
        model = self.make_model()
        for head in getattr(model, "heads", [model.head]):
            self.loss.init_head(head, len(self.labelled.classes))
        if phase.init is not None:
            model.load_state_dict(phase.init.state_dict())
        return Trainer(model, self.loss, phase, self.setup)


# %% [markdown]
# Supervised learning on ten toy bodies, on each of which two of three structures were looked for. It is judged by the challenge's Dice on fresh slices, whose truth is known.

# %%
#| export
def toy_score(
    model: nn.Module,
    loss: nn.Module,
    slices: SliceSet,
    truth: np.ndarray,
) -> float:
    "The challenge's Dice of a network's argmax labels of `slices`, against their whole truth uint8 `[N, H, W]`."
    device = next(model.parameters()).device
    return challenge_dice(predict_labels(model, slices, loss, device), truth, len(slices.classes))


# %%
job = MemoryJob(slices, loss, small_network, setup)
model = job.run(Method())
fresh, answer = toy_set(100, 0, seed=1)
print(f"phases {list(job.models)}, Dice on fresh slices {toy_score(model, loss, fresh, answer):.3f}")
