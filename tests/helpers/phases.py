"The phases of a recipe before their first step, and the weights that a run ends with."
import pytest
import torch
from safetensors.torch import load_file

from ctseg.core.device import pick_device
from ctseg.runs.folder import Run
from ctseg.runs.job import Job
from ctseg.runs.phases import Phases
from ctseg.training.loop import Trainer
from ctseg.training.randomness import generator
from ctseg.training.step import make_views as step_views
from ctseg.training.step import piece_loss

from .toys import tiny, toy

CPU = pick_device("cpu")
FOUR = torch.arange(4)


def phases(folder, name, *settings, slices=None) -> dict[str, Trainer]:
    """The trainers of a recipe's phases as they stand before the first step. What they give the next phase
    is no average of trained weights but their start, disturbed."""
    seen = {}

    def fit(self, on_epoch=None):
        seen[self.phase.name], rng = self, generator("cpu", self.phase.name)
        for w in self.learner.ema.model.parameters():
            w += torch.randn(w.shape, generator=rng)*.3
        return self.learner.ema.model

    job = make_job(folder, name, "fold=-1", "augment=none", *settings, slices=slices)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Trainer, "fit", fit)
        Phases(job).carry_out()
    return seen


def make_job(folder, name, *settings, slices=None) -> Job:
    "A small recipe at work on toys."
    return Job(tiny(name, *settings), toy() if slices is None else slices, Run(folder), CPU, progress=False)


def make_views(trainer, index=FOUR, step=0):
    "What the network would see in a step of a phase."
    return step_views(trainer.stepper, index, step)


def loss_of(trainer, views, step=0) -> torch.Tensor:
    "The loss of a step on given views."
    return piece_loss(trainer.stepper, views, step)


def starts_from(trainer, before) -> bool:
    "Has the phase the weights that the one before ended with?"
    pairs = zip(trainer.learner.raw.state_dict().values(), before.learner.ema.model.state_dict().values())
    return all(torch.equal(a, b) for a, b in pairs)


def weights(run) -> torch.Tensor:
    "All final weights of a run, as one vector."
    return torch.cat([v.flatten().float() for v in load_file(run.weights).values()])
