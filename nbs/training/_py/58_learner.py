# %% [markdown]
# # Learner
#
# > A network on its device, with its optimiser, its learning rate and its running average.

# %%
#| default_exp training.learner

# %%
#| export
import math
import warnings
from typing import Any

import torch
from torch import nn

from ctseg.core.parallel import synchronise
from ctseg.models.base import place
from ctseg.models.encoders import param_groups
from ctseg.training.ema import EMA
from ctseg.training.setup import Setup, make_accelerator

# %%
#| hide
import matplotlib.pyplot as plt
from fastcore.test import test_eq

from ctseg.training.setup import ScheduleSettings


# %% [markdown]
# The learning rate is a function of the step, not a scheduler with a memory. A short linear warm-up is followed by half a cosine down to zero, the shape of [Smith & Topin 2018](https://arxiv.org/abs/1708.07120)'s one-cycle.

# %%
#| export
def lr_factor(
    step: int, # optimiser steps completed so far
    total: int, # in the whole phase
    warmup: float = 0.1, # share of the steps spent rising
) -> float: # in 0..1, to be multiplied by the peak rate
    "Linear warm-up, then a cosine to zero; a pure function of the step."
    rise = max(1, round(warmup*total))
    if step < rise: return (step + 1)/rise
    return 0.5*(1 + math.cos(math.pi*(step - rise)/max(1, total - rise)))


# %%
#| fig-alt: "The learning rate against the step: a short rise, then half a cosine down to zero"
fig, ax = plt.subplots(figsize=(5, 1.8), layout="constrained")
ax.plot([lr_factor(step, 200) for step in range(200)])
ax.set(xlabel="step", ylabel="share of the peak", title="Learning rate")
plt.show()


# %%
#| export
def make_optimiser(model: nn.Module, setup: Setup, lr: float | None = None) -> torch.optim.AdamW:
    "AdamW with peak rate `lr` (None: the schedule's); a pretrained encoder's own rate changes in proportion."
    schedule = setup.schedule
    encoder_lr = schedule.encoder_lr
    if lr is not None and schedule.lr: encoder_lr = encoder_lr*lr/schedule.lr
    lr = schedule.lr if lr is None else lr
    groups = param_groups(model, lr, encoder_lr or None)
    fused = setup.plan.device.type == "cpu" or None  # there it takes a quarter of the time
    return torch.optim.AdamW(groups, lr=lr, weight_decay=schedule.weight_decay, fused=fused)


# %%
print(make_optimiser(nn.Conv2d(1, 3, 3), Setup(), lr=0.01).param_groups[0]["lr"])


# %% [markdown]
# A `Net` is the network in three forms: as it is, averaged, and wrapped for precision and processes.

# %%
#| export
class Net:
    "A network on the device: `raw`, its running average `ema`, and `model`, wrapped for precision and processes."
    def __init__(self, model: nn.Module, setup: Setup, lr: float | None = None): # None: the schedule's
        compute = setup.compute
        self.acc = make_accelerator(setup.plan)
        self.raw = synchronise(place(model, self.acc.device, compute.channels_last))
        if hasattr(self.raw, "deep_supervision"):
            self.raw.deep_supervision = True  # in training it then answers at several sizes
        self.ema = EMA(self.raw, setup.schedule.ema)
        optimiser = make_optimiser(self.raw, setup, lr)
        self.peaks = [group["lr"] for group in optimiser.param_groups]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)  # accelerate's old name
            compiled = torch.compile(self.raw) if compute.compile else self.raw
            self.model, self.optimiser = self.acc.prepare(compiled, optimiser)

    @property
    def models(self) -> dict[str, nn.Module]:
        "What a checkpoint keeps: the network, and its average."
        return {"model": self.raw, "ema": self.ema.model}

    @property
    def rate(self) -> float:
        "The learning rate of the last step."
        return self.optimiser.param_groups[0]["lr"]


# %%
net = Net(nn.Conv2d(1, 3, 3), Setup(ScheduleSettings(lr=0.01)))
print(sorted(net.models), net.peaks, net.acc.device)


# %% [markdown]
# A learner takes steps. With float16 a scaler multiplies the loss, so that small gradients do not vanish. Where a gradient becomes too large, the scaler leaves the step out and lowers its scale; in other precisions a gradient that is not finite is an accident.

# %%
#| export
class Learner(Net):
    "A network that takes steps."
    def begin(self, factor: float) -> None:
        "Get ready for a step at `factor` times the peak rate."
        for group, peak in zip(self.optimiser.param_groups, self.peaks):
            group["lr"] = peak*factor
        self.raw.train()

    def use_gradients(self, loss: float, norm: float) -> bool:
        "Step, unless the loss or the norm of the gradient is not finite; was it taken?"
        scaled = self.acc.scaler is not None
        finite = math.isfinite(loss) and (scaled or math.isfinite(norm))
        if finite or scaled: self.optimiser.step()
        completed = finite and not self.acc.optimizer_step_was_skipped
        if completed: self.ema.update(self.raw)
        return completed


# %%
torch.manual_seed(0)
learner = Learner(nn.Conv2d(1, 3, 3), Setup(ScheduleSettings(lr=0.01)))
before = learner.raw.weight.clone()

def attempt(factor):
    learner.begin(lr_factor(0, 100))
    loss = factor*learner.model(torch.ones(1, 1, 8, 8)).square().mean()
    learner.acc.backward(loss)
    completed = learner.use_gradients(loss.item(), 1.)
    learner.optimiser.zero_grad()
    return completed

print(f"finite: {attempt(1.)}, not finite: {attempt(math.nan)}; rate {learner.rate:.4f}")
test_eq(learner.ema.steps, 1)
assert learner.raw.weight.isfinite().all() and (learner.raw.weight != before).any()


# %% [markdown]
# A checkpoint keeps the weights, the average, and the state of optimiser and scaler.

# %%
#| export
def learner_state(learner: Learner) -> dict[str, Any]:
    "What a checkpoint keeps of a learner beside the weights."
    scaler = learner.acc.scaler
    scale = scaler.state_dict() if scaler else {}
    return {"ema_steps": learner.ema.steps, "opt": learner.optimiser.state_dict(), "scaler": scale}

def restore_learner(learner: Learner, state: dict[str, Any]) -> None:
    "Go on from what `learner_state` gave; the weights have been loaded."
    learner.ema.steps = state["ema_steps"]
    learner.optimiser.load_state_dict(state["opt"])
    if state["scaler"] and learner.acc.scaler:  # the card before may have had float16, and this one not
        learner.acc.scaler.load_state_dict(state["scaler"])


# %%
state = learner_state(learner)
other = Learner(nn.Conv2d(1, 3, 3), Setup(ScheduleSettings(lr=0.01)))
restore_learner(other, state)
print(sorted(state))
test_eq(other.ema.steps, 1)
