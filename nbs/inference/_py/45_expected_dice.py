# %% [markdown]
# # Expected Dice
#
# > Which of the structures drawn on a slice to keep: those whose chance of being there is worth the Dice at stake.

# %%
#| default_exp inference.expected_dice

# %%
#| export
from dataclasses import dataclass

import numpy as np
import torch

from ctseg.inference.confidence import soft_dice_confidence, sum_by_class

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_close


# %% [markdown]
# To draw a structure on a slice is a bet. A class's score is a mean over the slices where it is drawn or present: a sum $N$ of Dice over a count $D$, so far with the ratio $m = N/D$. Let the network have drawn the class on one more slice. Let $p$ be the chance that it is there, and $d$ the Dice that the outline would then get.
#
# * Kept and there: the sum gains $d$; the slice is counted in any case.
# * Kept and not there: the sum gains nothing, and the count grows by 1.
#
# To be expected are $N + p\,d$ and $D + (1 - p)$. Such a fraction grows exactly if what is added has a larger ratio than it has itself:
#
# $$\frac{p\,d}{1-p} > m \qquad\text{or}\qquad \frac{p}{1-p} > \frac{m}{d}.$$
#
# **Keep a structure if its odds of being there exceed its usual Dice over the Dice at stake.** Where usual and stake are alike that means $p > 1/2$. A class that is mostly drawn badly has little to lose: at $m = 0.05$ an outline worth 0.2 is kept from $p = 0.2$ on. A scrap of a class that usually gets 0.9 must be nearly certain. No gate that is the same for all classes can do both.
# (Ratios like this and their best thresholds: [Koyejo et al. 2014](https://proceedings.neurips.cc/paper/2014/hash/30c8e1ca872524fbf7ea5c519ca397ee-Abstract.html).)
#
# None of the three is known. Each is estimated without looking at one class alone, which would overfit:
#
# * $d$ is the [Soft Dice Confidence](10_confidence.ipynb): the Dice to be expected under the probabilities if the structure is there.
# * $p$ is a logistic regression over *all* drawn structures of the held-out slices, on their peak probability and their area: three numbers in all.
# * $m$ is the ratio of the sums over the structures that are kept. Whether one is kept depends on $m$, so the two are found in turns ([Dinkelbach 1967](https://doi.org/10.1287/mnsc.13.7.492)).

# %%
#| export
@dataclass(frozen=True)
class ExpectedDice:
    """Which drawn structures to keep for the highest score to be expected; see `fit_expected_dice`.

    The chance that a structure is there has the logit `bias + peak*logit(its peak probability)
    + area*ln(its share of the image)`. usual: `[C]`, the Dice that each class may expect in general.
    """
    bias: float
    peak: float
    area: float
    usual: tuple[float, ...]


# %%
prob = torch.zeros(1, 2, 4, 4)
prob[0, 0, :2] = 0.8
label = (prob[:, 0] > 0.5).to(torch.uint8)
label


# %%
#| export
def drawn_structures(label: torch.Tensor, prob: torch.Tensor) -> torch.Tensor:
    """What the estimates are made from, for every class on every image of `label`.

    label: int `[B, H, W]`, 0 is background. prob: f32 `[B, C, H, W]`. Returns f32 `[3, B, C]`: the logit of the
    peak probability, ln of the class's share of the image (−inf: not drawn), its Soft Dice Confidence.
    """
    _, classes, height, width = prob.shape
    area = sum_by_class(torch.ones_like(label, dtype=prob.dtype), label, classes)
    peak = prob.amax((2, 3)).clamp(1e-3, 1 - 1e-3)
    return torch.stack([peak.logit(), (area/(height*width)).log(), soft_dice_confidence(prob, label)])


# %%
drawn_structures(label, prob)[:, 0]


# %%
#| export
def keep_classes(label: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    "`label` `[B, H, W]` with background for the classes of an image that `keep` (bool `[B, C]`) does not keep."
    background = torch.ones_like(keep[:, :1])
    table = torch.cat([background, keep], 1)
    return label*table.gather(1, label.flatten(1).long()).view_as(label)


# %%
keep_classes(torch.tensor([[[0, 1], [2, 1]]]), torch.tensor([[True, False]]))


# %%
#| export
def keep_expected(
    label: torch.Tensor,
    prob: torch.Tensor,
    e: ExpectedDice,
) -> torch.Tensor:
    "`label` `[B, H, W]` without the structures whose odds of being there are below usual Dice over expected Dice."
    peak, area, dice = drawn_structures(label, prob)
    odds = (e.bias + e.peak*peak + e.area*area).exp()
    return keep_classes(label, odds*dice > torch.tensor(e.usual).to(odds))


# %% [markdown]
# The structure above has a peak of 0.8 and covers half of the image. With these estimates its odds are $\exp(\operatorname{logit} 0.8) = 4$, and it is kept for a class whose usual Dice is below $4\cdot 0.89$, which every Dice is. A bias of −3 makes its presence improbable: then it is kept only for a class that has little to lose.

# %%
for bias, usual in [(0, 0.9), (-3, 0.9), (-3, 0.1)]:
    kept = keep_expected(label, prob, ExpectedDice(bias, 1.0, 0.0, (usual, usual)))
    print(f"bias {bias:>2}, usual Dice {usual}: {'kept' if kept.any() else 'dropped'}")


# %% [markdown]
# ## The chance of being there
#
# Held-out slices say which drawn structures were there. Only those count that people looked for.

# %%
#| export
@dataclass(frozen=True)
class Chance:
    """A logistic model of two features: the chance is `expit(centre + (features - mean)@slopes)`.

    centre: the logit at the mean. slopes, mean: float64 `[2]`.
    """
    centre: float
    slopes: np.ndarray
    mean: np.ndarray

    @property
    def bias(self) -> float:
        "The logit where both features are 0."
        return self.centre - self.mean@self.slopes

    def __call__(self, features: np.ndarray) -> np.ndarray:
        "Chances `[N, C]` for features `[2, N, C]`."
        from scipy.special import expit  # slow, and only needed here and below
        return expit(self.centre + (np.moveaxis(features, 0, -1) - self.mean)@self.slopes)


# %%
even = Chance(0., np.array([2., 0.]), np.array([1., 0.]))
print("bias", even.bias, " chances", even(np.array([[[0., 1., 2.]], [[0., 0., 0.]]])).round(2))


# %%
#| export
def fit_chance(features: np.ndarray, present: np.ndarray) -> Chance:
    """Logistic regression of `present` (bool `[M]`) on two `features` `[2, M]`.

    A standard normal prior on the slopes of the standardised features keeps them finite where a feature separates
    the two kinds.
    """
    from scipy.optimize import minimize  # as above
    from scipy.special import expit
    x = features.T.astype(float)
    y = present.astype(float)
    mean, spread = x.mean(0), x.std(0) + 1e-6
    design = np.c_[np.ones(len(y)), (x - mean)/spread]

    def loss_and_gradient(weights):
        logit = design@weights
        slopes = weights[1:]
        loss = np.logaddexp(0, logit).sum() - y@logit + (slopes@slopes)/2
        return loss, design.T@(expit(logit) - y) + np.r_[0, slopes]

    weights = minimize(loss_and_gradient, np.zeros(3), jac=True).x
    return Chance(weights[0], weights[1:]/spread, mean)


# %%
rng = np.random.default_rng(0)
features = rng.normal(0, 1, (2, 4000))
there = rng.random(4000) < 1/(1 + np.exp(-(1 + 2*features[0] + .5*features[1])))
estimated = fit_chance(features, there)
print(f"drawn with 1, 2 and 0.5; estimated {estimated.bias:.2f}, {estimated.slopes.round(2)}")
test_close(estimated.slopes, [2, .5], eps=0.2)


# %% [markdown]
# ## The usual Dice of a class
#
# The truth of a few held-out slices says too little about a rare class, so we estimate its usual Dice from $p$ and $d$. One imaginary slice, which scores like all classes together, keeps the estimate stable.

# %%
#| export
def usual_dice(
    chance: np.ndarray,
    dice: np.ndarray,
    drawn: np.ndarray,
) -> np.ndarray:
    """The Dice `[C]` that each class may expect over its drawn structures, if only those that raise it are kept.

    chance, dice: float `[N, C]`, of each structure to be there and to get if so. drawn: bool `[N, C]`.
    """
    keep = drawn
    for _ in range(100):
        total = (keep*chance*dice).sum(0)
        count = (drawn*chance).sum(0) + (keep*(1 - chance)).sum(0)
        usual = (total + total.sum()/count.sum())/(count + 1)
        before, keep = keep, drawn & (chance*dice > (1 - chance)*usual)
        if (keep == before).all():
            break
    return usual


# %% [markdown]
# We simulate two classes on twenty thousand slices, with known chances and Dice. *Large* is drawn well, and mostly where it is. *Rare* is drawn badly, and mostly where it is not. The blue curve is the score with a gate on the chance alone, the orange line the score with the rule above:

# %%
#| fig-alt: "The score against a gate, for a large and a rare class; the expected-Dice rule lies above it"
rng = np.random.default_rng(0)
chance = np.stack([rng.beta(3, 1, 20000), rng.beta(0.6, 2, 20000)], 1)
dice = np.stack([rng.beta(12, 2, 20000), rng.beta(1, 3, 20000)], 1)
there = rng.random(chance.shape) < chance


def score(keep):
    return (dice*(keep & there)).sum(0)/(keep | there).sum(0)


usual = usual_dice(chance, dice, np.ones_like(there))
gates = np.linspace(0, .95, 39)
by_gate = np.array([score(chance > g) for g in gates])
by_rule = score(chance*dice > (1 - chance)*usual)
fig, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
for c, (ax, name) in enumerate(zip(axes, ("large", "rare"))):
    ax.plot(gates, by_gate[:, c], label="a gate on the chance")
    ax.axhline(by_rule[c], color="C1", label="expected Dice")
    ax.set(title=name, xlabel="least chance to be kept", ylabel="score")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False)
plt.show()
print(
    "best gates",
    gates[by_gate.argmax(0)].round(2),
    " scores",
    by_gate.max(0).round(3),
    " expected Dice",
    by_rule.round(3),
)
assert (by_rule > by_gate.max(0)).all()


# %% [markdown]
# Each class needs a gate of its own. And even with its best gate, the rare class scores less than with the rule, which weighs the chance against what is at stake.
#
# ## All estimates at once

# %%
#| export
def fit_expected_dice(
    drawn: np.ndarray,
    present: np.ndarray,
    known: np.ndarray,
) -> ExpectedDice | None:
    """The estimates from held-out slices; None where nothing can be learnt from them.

    drawn: `[3, N, C]` of `drawn_structures`. present, known: bool `[N, C]`, what is there and what people looked
    for. Nothing can be learnt if no structure was drawn, or if all of those drawn are there, or none.
    """
    counts = np.isfinite(drawn[1]) & known
    outcome = present[counts]
    if len(outcome) == 0 or outcome.min() == outcome.max():
        return None
    chance = fit_chance(drawn[:2, counts], outcome)
    likely = np.where(counts, chance(np.where(counts, drawn[:2], 0)), 0)
    dice = np.where(counts, drawn[2], 0)
    usual = usual_dice(likely, dice, counts).round(4)
    bias, peak, area = (round(float(v), 4) for v in (chance.bias, *chance.slopes))
    return ExpectedDice(bias, peak, area, tuple(usual.tolist()))


# %% [markdown]
# Structures of two classes, drawn with known chances: the fit returns what they were drawn with.

# %%
drawn = np.stack([rng.normal(1, 1, (4000, 2)), rng.normal(-4, 1, (4000, 2)), rng.random((4000, 2))])
present = rng.random((4000, 2)) < 1/(1 + np.exp(-(1 + 2*drawn[0] + .5*drawn[1])))
e = fit_expected_dice(drawn, present, np.ones_like(present))
print(e)
test_close([e.bias, e.peak, e.area], [1, 2, .5], eps=0.2)
