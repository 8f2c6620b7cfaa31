# %% [markdown]
# # Averaged weights
#
# > The running average of a network's weights and buffers, which is what predicts.

# %%
#| default_exp training.ema

# %%
#| export
import copy

import torch
from torch import nn

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_close


# %% [markdown]
# The exponential moving average (EMA) of the weights is a cheap ensemble. It is scored after every epoch, it predicts at the end, and it is the teacher of [Mean Teacher](https://arxiv.org/abs/1703.01780). Two mistakes are common in public code:
#
# * The average covers the parameters but not BatchNorm's buffers. The averaged network then normalises with statistics that are not its own.
# * The update is written `ema.mul_(d).add(w, alpha=1-d)`. Without an underscore `add` returns a new tensor, the update is lost, and the average shrinks to zero.
#
# Early on the decay is limited to $(1+t)/(10+t)$, so that the random initial weights are forgotten quickly.

# %%
#| export
class EMA:
    "Exponential moving average of a model's parameters *and* buffers, kept in `model` (float32, eval mode, no gradient)."
    def __init__(self, model: nn.Module, decay: float = 0.99):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        "Move a step towards `model`; integer buffers (BatchNorm's counter) are copied."
        self.steps += 1
        decay = min(self.decay, (1 + self.steps)/(10 + self.steps))
        averaged, new = self.model.state_dict(), model.state_dict()
        real = [k for k, v in averaged.items() if v.is_floating_point()]
        targets = [new[k].to(averaged[k].dtype) for k in real]
        torch._foreach_lerp_([averaged[k] for k in real], targets, 1 - decay)
        for k in averaged.keys() - set(real):
            averaged[k].copy_(new[k])


# %% [markdown]
# A weight that jumps about, and its average:

# %%
#| fig-alt: "A weight that jumps from step to step, and its smooth average"
net = nn.Linear(1, 1, bias=False)
ema, weights, averages = EMA(net, decay=0.95), [], []
rng = np.random.default_rng(0)
for step in range(150):
    with torch.no_grad(): net.weight.fill_(1 - 0.97**step + 0.2*rng.normal())
    ema.update(net)
    weights.append(net.weight.item())
    averages.append(ema.model.weight.item())

fig, ax = plt.subplots(figsize=(5, 2), layout="constrained")
ax.plot(weights, color="0.75", label="weight")
ax.plot(averages, color="C0", label="average")
ax.set(xlabel="step", title="The average follows without the noise")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Two properties are tested. The average of a constant is the constant. Buffers are averaged like weights.

# %%
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
ema = EMA(net, decay=0.9)
for _ in range(100): ema.update(net)  # past the warm-up of the decay
for k, v in net.state_dict().items(): test_close(ema.model.state_dict()[k], v, eps=1e-6)

net[1].running_mean += 1
ema.update(net)
test_close(ema.model[1].running_mean, torch.full((4,), 0.1), eps=1e-5)  # a tenth of the way in one step
