# %% [markdown]
# # The decision rule
#
# > From probabilities to one label a pixel, in small steps that held-out slices choose.

# %%
#| default_exp inference.rule

# %%
#| export
from dataclasses import dataclass

import numpy as np
import torch

from ctseg.inference.confidence import sum_by_class
from ctseg.inference.expected_dice import ExpectedDice, keep_classes, keep_expected

# %%
#| hide
import matplotlib.pyplot as plt
import torch
from fastcore.test import test_eq

from ctseg.core.toys import toy_slices


# %% [markdown]
# A network gives probabilities; the challenge wants one label a pixel. What lies between is a **decision rule**. It deserves care because of the metric: a structure drawn on a slice where it is absent scores 0 for that slice, as badly as a missed one, however few pixels were invented.
#
# The rule has six steps, in this order. Each is off by default.
#
# * **threshold**: a pixel is foreground where its most probable structure exceeds this probability. `None` compares with the background's own probability instead, which is plain argmax.
# * **gate**: a structure stays on a slice only if its probability reaches this value *somewhere* on the slice. The threshold asks whether this pixel is part of it; the gate asks whether it is here at all.
# * **island**: connected pieces of fewer pixels are removed.
# * **least**: a structure that covers less of the slice than people ever outline of its class is removed.
# * **expected**: a structure stays only if that raises the [expected score](45_expected_dice.ipynb). It answers the gate's question by more than the peak.
# * **rescue**: a slice left empty gets its most probable structure after all, if that reaches this value somewhere.
#
# Thresholds are the same for all classes: one for each class would overfit the held-out slices. The least shares are one for each, since they come from what people outlined, on all annotated slices. [Choosing](../prediction/30_choose.ipynb) a rule uses slices that no network was trained on, and a step that does not help there stays off.

# %%
#| export
@dataclass(frozen=True)
class Rule:
    """How probabilities become labels. 0 switches gate, island and rescue off; `Rule()` is argmax.

    threshold: least probability of a foreground pixel; None: more probable than background.
    gate: least peak probability of a class on the image. island: connected pieces of fewer pixels are removed.
    rescue: an empty image gets its likeliest class, if that peaks at this or above.
    least: `[C]`, the share of the image that a class must cover to be kept; None: any.
    expected: keep the structures that are worth the risk; None: keep all.
    """
    threshold: float | None = None
    gate: float = 0.0
    island: int = 0
    rescue: float = 0.0
    least: tuple[float, ...] | None = None
    expected: ExpectedDice | None = None

    def __str__(self):
        parts = ["argmax" if self.threshold is None else f"threshold {self.threshold:g}"]
        for name in ("gate", "island", "rescue"):
            value = getattr(self, name)
            if value:
                parts.append(f"{name} {value:g}")
        if self.least is not None:
            parts.append("least areas")
        if self.expected is not None:
            parts.append("expected Dice")
        return ", ".join(parts)


# %%
for rule in (Rule(), Rule(threshold=0.4, gate=0.8)):
    print(rule)


# %%
#| export
def read_rule(saved: dict) -> Rule:
    "The rule that a run's `metrics.json` holds, as `dataclasses.asdict` wrote it."
    expected, least = saved.get("expected"), saved.get("least")
    if expected:
        expected = ExpectedDice(**expected | {"usual": tuple(expected["usual"])})
    if least is not None:
        least = tuple(least)
    return Rule(**saved | {"expected": expected, "least": least})


# %%
print(read_rule({"threshold": None, "gate": 0.5, "island": 20}))


# %% [markdown]
# ## Which pixels
#
# For softmax outputs background has what the structures leave over. Sigmoid outputs have no background, so one half takes its place.

# %%
#| export
def background_level(
    prob: torch.Tensor,
    activation: str,
    threshold: float | None = None,
) -> torch.Tensor | float:
    """What the best structure of a pixel must exceed to be drawn: f32 `[B, H, W]`, or one number for all pixels.

    prob: f32 `[B, C, H, W]`. activation: "softmax" or "sigmoid". threshold: of the rule, None for argmax.
    """
    if threshold is not None:
        return threshold
    return 1 - prob.sum(1) if activation == "softmax" else 0.5


# %%
two = torch.tensor([[.5, .2], [.2, .6]]).view(1, 2, 1, 2)
print("background", background_level(two, "softmax").flatten(), "or", background_level(two, "sigmoid"))


# %%
#| export
def close_gate(prob: torch.Tensor, least: float) -> torch.Tensor:
    "`prob` `[B, C, H, W]` with 0 for every class whose peak on the image is below `least`."
    reached = prob.amax((2, 3), keepdim=True) >= least
    return prob*reached


# %%
print("behind a gate of 0.55:", close_gate(two, 0.55).flatten(2))


# %%
#| export
def draw(prob: torch.Tensor, background: torch.Tensor | float) -> torch.Tensor:
    "uint8 `[B, H, W]`: the most probable structure of each pixel where it exceeds `background`, elsewhere 0."
    best, structure = prob.max(1)
    return torch.where(best > background, structure + 1, 0).to(torch.uint8)


# %%
label = draw(two, background_level(two, "softmax"))
test_eq(draw(two, 0.55).flatten().tolist(), [0, 2])
label.flatten()


# %%
#| export
def label_certainty(
    prob: torch.Tensor,
    label: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """The probability of the label that each pixel has.

    prob: f32 `[B, C, H, W]`. label: argmax labels `[B, H, W]`, 0 is background. Returns f32 `[B, H, W]` in 0…1;
    for background 1 − the sum of the structures (softmax) or 1 − the best of them (sigmoid).
    """
    best = prob.amax(1)
    background = 1 - prob.sum(1) if activation == "softmax" else 1 - best
    return torch.where(label > 0, best, background).clamp(0, 1)


# %%
label_certainty(two, label, "softmax").flatten()


# %% [markdown]
# ## Small pieces and empty images
#
# Three more steps are optional. `drop_islands` removes pieces of a few pixels, which are mostly noise. `drop_scraps` looks at all pixels of a class on the slice: where the network has drawn less of an oesophagus than anybody ever outlined, it has drawn something else, or the end of one that the next person would not outline either. `rescue` draws the likeliest class on an image that would stay empty.

# %%
#| export
def drop_islands(label: torch.Tensor, least: int) -> torch.Tensor:
    "uint8 `[B, H, W]` without connected pieces (8 neighbours) of fewer than `least` pixels."
    from skimage.measure import label as connected_components  # slow, and only needed here
    out = label.cpu().numpy().copy()
    for mask in out:
        pieces = np.asarray(connected_components(mask, background=0, connectivity=2))
        small = np.bincount(pieces.ravel()) < least
        mask[small[pieces]] = 0
    return torch.from_numpy(out).to(label.device)


# %% [markdown]
# Pieces of fewer than two pixels go: the lone 2, and the second piece of class 1.

# %%
pieces = torch.tensor([[[1, 1, 0, 2, 0, 1]]], dtype=torch.uint8)
test_eq(drop_islands(pieces, 2).flatten().tolist(), [1, 1, 0, 0, 0, 0])


# %%
#| export
def drop_scraps(label: torch.Tensor, least: tuple[float, ...]) -> torch.Tensor:
    "uint8 `[B, H, W]` without the classes that cover a smaller share of the image than their `least` `[C]`."
    _, height, width = label.shape
    area = sum_by_class(torch.ones_like(label, dtype=torch.float32), label, len(least))
    return keep_classes(label, area/(height*width) >= torch.tensor(least).to(area))


# %% [markdown]
# Of six pixels class 1 covers three, class 2 one. A class of which people outline a third of a slice and more is not there:

# %%
test_eq(drop_scraps(pieces, (0.5, 0.3)).flatten().tolist(), [1, 1, 0, 0, 0, 1])


# %%
#| export
def rescue(
    label: torch.Tensor,
    prob: torch.Tensor,
    least: float,
) -> torch.Tensor:
    """Draw the likeliest class on each image of `label` that is empty, if its peak reaches `least`.

    The class with the highest peak is drawn where it has at least half of that peak.
    label: uint8 `[B, H, W]`. prob: f32 `[B, C, H, W]`.
    """
    peak, cls = prob.amax((2, 3)).max(1)
    likeliest = prob[torch.arange(prob.shape[0], device=prob.device), cls]
    wanting = (label == 0).flatten(1).all(1) & (peak >= least)
    region = likeliest >= peak[:, None, None]/2
    drawn = (region*(cls + 1)[:, None, None]).to(torch.uint8)
    return torch.where(wanting[:, None, None], drawn, label)


# %% [markdown]
# On an empty image class 1 has the highest peak, 0.3, which is above 0.25. It is drawn on the two pixels that reach half of that peak.

# %%
timid = torch.tensor([[.1, .3, .2], [.1, .1, .0]]).view(1, 2, 1, 3)
test_eq(rescue(torch.zeros(1, 1, 3, dtype=torch.uint8), timid, 0.25).flatten().tolist(), [0, 1, 1])


# %% [markdown]
# ## All steps together

# %%
#| export
def decide(
    prob: torch.Tensor,
    rule: Rule,
    activation: str,
) -> torch.Tensor:
    """Labels uint8 `[B, H, W]` from foreground probabilities f32 `[B, C, H, W]`; 0 is background.

    `decide(prob, Rule(), activation)` is argmax. activation: "softmax" or "sigmoid", see `background_level`.
    """
    background = background_level(prob, activation, rule.threshold)
    candidates = close_gate(prob, rule.gate) if rule.gate else prob
    label = draw(candidates, background)
    if rule.island:
        label = drop_islands(label, rule.island)
    if rule.least:
        label = drop_scraps(label, rule.least)
    if rule.expected:
        label = keep_expected(label, prob, rule.expected)
    return rescue(label, prob, rule.rescue) if rule.rescue else label


# %% [markdown]
# Two structures on one row of pixels. The second never gets beyond 0.6, and only at one pixel: argmax invents it. A gate of 0.7 removes it, and so does a least size of two pixels.

# %%
row = torch.tensor([[.9, .9, .8, .2, .1, .0, .0], [.0, .0, .1, .2, .3, .6, .3]]).view(1, 2, 1, 7)
for rule in [
    Rule(),
    Rule(threshold=0.25),
    Rule(gate=0.7),
    Rule(island=2),
    Rule(threshold=0.95),
    Rule(threshold=0.95, rescue=0.5),
]:
    print(f"{rule!s:<28}", decide(row, rule, "sigmoid").flatten().tolist())
test_eq(decide(row, Rule(gate=0.7), "softmax").flatten().tolist(), [1, 1, 1, 0, 0, 0, 0])
# nothing is likely enough to be rescued
test_eq(decide(row, Rule(threshold=0.95, rescue=0.95), "softmax").max(), 0)

# %% [markdown]
# The same on a toy body without its heart. The "network" below knows both lungs, is unsure at their rims, and sees a faint heart where there is none. Argmax draws that heart; a gate leaves it out.

# %%
#| fig-alt: "A slice without a heart, its truth, argmax with an invented heart, and a gate that leaves it out"
image, truth = toy_slices(1, 64, seed=3)
image[(truth == 3)[:, None]] = 0.5
truth = torch.where(truth == 3, 0, truth)
blurred = torch.nn.functional.avg_pool2d(torch.stack([(truth == c).float() for c in (1, 2, 3)], 1), 7, 1, 3)
y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
blurred[:, 2] = 0.6*((y - 46)**2 + (x - 32)**2 < 20)
shown = {"slice": image[0, 0], "truth": truth[0]}
shown |= {str(rule): decide(blurred, rule, "sigmoid")[0] for rule in (Rule(), Rule(gate=0.8))}

fig, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
for ax, (title, picture) in zip(axes, shown.items()):
    ax.imshow(
        picture, cmap="gray" if title == "slice" else "viridis", vmin=0, vmax=1 if title == "slice" else 3
    )
    ax.set(title=title, xticks=[], yticks=[])
plt.show()
test_eq(decide(blurred, Rule(gate=0.8), "sigmoid").unique().tolist(), [0, 1, 2])
