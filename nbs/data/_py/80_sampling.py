# %% [markdown]
# # Sampling
#
# > Which slices a batch holds: a function of seed and epoch, with more of the rare classes if asked for.
#
# - skip_showdoc: true

# %%
#| default_exp data.sampling

# %% [markdown]
# A run that was cut must go on *as if it had not been*. The simplest way to get there is to have nothing to restore: the order of epoch 7
# is a pure function of the seed and the number 7.

# %%
#| export
from dataclasses import dataclass

import numpy as np
import torch

from ctseg.core.errors import InputError
from ctseg.data.slices import SliceSet

# %%
#| hide
import numpy as np
import torch
from fastcore.test import test_eq, test_fail

from ctseg.data.slices import SliceSet


# %% [markdown]
# ## The order of an epoch
#
# Without weights an epoch is a permutation. With weights, slices are drawn in proportion to them. Plain random draws would add luck: a
# slice due once may come not at all or thrice. *Systematic* sampling draws at even steps along the summed weights instead, so each slice
# comes as often as its weight says, give or take one.

# %%
#| export
def epoch_order(
    n: int, # number of slices
    seed: int,
    epoch: int,
    weights: np.ndarray|None = None, # float [n] of sum 1; `None`: each slice once
) -> np.ndarray: # int64 [n]
    "The n slices of an epoch in order, int64 [n]. It depends on nothing else."
    rng = np.random.default_rng([seed, epoch])
    if weights is None:
        return rng.permutation(n)
    steps = (rng.random() + np.arange(n))/n
    drawn = np.searchsorted(weights.cumsum(), steps).clip(max=n - 1)
    return rng.permutation(drawn)


# %%
print(epoch_order(8, seed=3, epoch=0), epoch_order(8, seed=3, epoch=1))
half_of_all = np.array([4, 1, 1, 1, 1])/8
print(
    "weights 4, 1, 1, 1, 1 over 16 draws:",
    np.bincount(np.concatenate([epoch_order(5, 0, e, half_of_all) for e in range(16)])),
)


# %% [markdown]
# ## Batches
#
# On several GPUs every process computes the same global batches and takes its own part of each.

# %%
#| export
def _check_sizes(n: int, batch_size: int, world: int):
    "`InputError` where no batch can be made, or cannot be shared out evenly."
    if n < 1:
        raise InputError("there are no slices to draw from")
    if batch_size < 1 or batch_size % world:
        raise InputError(f"batch_size {batch_size} must be a multiple of the {world} processes")

def _shares(weights, n: int) -> np.ndarray:
    "Weights [n] scaled to a sum of 1."
    weights = np.asarray(weights, float)/np.sum(weights)
    if weights.shape != (n,):
        raise InputError(f"{len(weights)} weights for {n} slices")
    return weights

def _at_length(order: np.ndarray, length: int) -> np.ndarray:
    "The first `length` of an order, which repeats from its start where it is too short: int64 [length]."
    return np.resize(order, length).astype(np.int64)


# %% [markdown]
# A quarter and three quarters; and an order repeated to the length that is needed:

# %%
test_eq(_shares([1, 3], 2), [.25, .75])
test_eq(_at_length(np.array([2, 0, 1]), 5), [2, 0, 1, 2, 0])


# %%
#| export
@dataclass
class EpochSampler:
    "Batches of slice numbers: a pure function of (seed, epoch)."
    n: int # number of slices
    batch_size: int # over all processes; if n is smaller, slices repeat
    seed: int = 0
    weights: np.ndarray|None = None # [n]: draw in proportion to these; `None`: each once
    rank: int = 0 # which process this is
    world: int = 1 # number of processes
    drop_last: bool = True # leave out what does not fill a batch

    def __post_init__(self):
        _check_sizes(self.n, self.batch_size, self.world)
        if self.weights is not None:
            self.weights = _shares(self.weights, self.n)

    def __len__(self) -> int:
        whole, part = divmod(self.n, self.batch_size)
        return max(1, whole if self.drop_last else whole + bool(part))

    def order(self, epoch: int) -> np.ndarray:
        "The n slices of an epoch in order, int64 [n]."
        return epoch_order(self.n, self.seed, epoch, self.weights)

    def batches(self, epoch: int) -> list[torch.Tensor]:
        "The batches of an epoch, this process's part of each: positions int64 [B]."
        even = -(-self.n//self.world)*self.world  # every process gets as many
        order = _at_length(self.order(epoch), max(even, self.batch_size))
        order = order[:len(self)*self.batch_size]
        whole = [order[i:i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        return [torch.from_numpy(batch[self.rank::self.world]) for batch in whole]


# %%
sampler = EpochSampler(10, 4, seed=3)
print([batch.tolist() for batch in sampler.batches(0)])
test_eq(
    [b.tolist() for b in sampler.batches(7)], [b.tolist() for b in EpochSampler(10, 4, seed=3).batches(7)]
)
all_of_them = EpochSampler(10, 4, drop_last=False).batches(0)
test_eq(sorted(torch.cat(all_of_them).tolist()), list(range(10)))
parts = [EpochSampler(10, 4, rank=r, world=2).batches(1) for r in range(2)]
together = [sorted(torch.cat(pair).tolist()) for pair in zip(*parts)]
test_eq(together, [sorted(b.tolist()) for b in EpochSampler(10, 4).batches(1)])
test_eq([len(b) for b in EpochSampler(3, 8).batches(0)], [8])
test_fail(lambda: EpochSampler(10, 3, world=2), contains="must be a multiple of the 2 processes")

# %% [markdown]
# ## Rare classes
#
# A class with 6 positive images should be seen more often than one with 600, but not a hundred times as often, or six images are learnt by
# heart. Following the repeat factors of [LVIS (Gupta et al. 2019, section 5)](https://arxiv.org/abs/1908.03195), a class of $f$ positive
# images counts $(m/f)^{power}$, but at least 1, where $m$ is the median over classes. A slice takes the largest of its classes, and `cap`
# bounds it.

# %%
#| export
HEAVIEST = 8. # no slice weighs more

def rare_weights(
    slices: SliceSet,
    power: float = .5, # 0: all alike; 1: in inverse proportion to the frequency
) -> np.ndarray: # float64 [N], at least 1
    "Sampling weights, float64 [N] of at least 1, that favour slices with rare classes."
    images = slices.present.sum(0)
    if not images.any():
        return np.ones(len(slices))
    median = np.median(images[images > 0])
    factor = (median/np.maximum(images, 1))**power
    return (slices.present*factor).max(1).clip(1, HEAVIEST)


# %%
rng = np.random.default_rng(0)
has = rng.random((300, 20)) < np.geomspace(.01, .5, 20)
masks = (np.arange(1, 21)*has).astype(np.uint8)[:, None]
many = SliceSet(masks, masks, "all", classes=[f"class {c}" for c in range(20)])
w = rare_weights(many)
drawn = np.concatenate([EpochSampler(300, 10, weights=w).order(e) for e in range(50)])
times = np.bincount(drawn, minlength=300)/50
rarest = many.present[:, many.present.sum(0).argmin()]
print(
    f"a slice with the rarest class ({rarest.sum()} images) comes {times[rarest].mean():.1f} times an epoch, "
    f"one with only common classes {times[w == 1].mean():.1f} times"
)
assert np.abs(times - 300*w/w.sum()).max() < .5
test_eq(rare_weights(many, power=0), np.ones(300))
