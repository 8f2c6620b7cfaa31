# %% [markdown]
# # Surface Dice
#
# > Which share of two outlines lies close together.
#
# - skip_showdoc: true

# %%
#| default_exp metrics.surface

# %%
#| export
import numpy as np

from ctseg.core.anatomy import IGNORE
from ctseg.metrics.challenge import check_masks

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from fastcore.test import test_eq

from ctseg.core.toys import toy_prediction, toy_world
from ctseg.metrics.challenge import dice_table


# %% [markdown]
# Dice rewards bulk: a slip of one pixel that costs a liver two hundredths costs a vessel half. The *normalised surface Dice* asks another question: which share of the two outlines lies within a tolerance of the other (Nikolov et al. 2018, [arXiv 1809.04430](https://arxiv.org/abs/1809.04430))?
#
# $$\mathrm{NSD}_\tau=\frac{|\{x\in\partial A: d(x,\partial B)\le\tau\}|+|\{x\in\partial B: d(x,\partial A)\le\tau\}|}{|\partial A|+|\partial B|}$$
#
# Tools differ in the details, so here are ours. $\partial A$ are the pixels of $A$ with one of their four neighbours outside $A$, and beyond the frame is outside. Distances run between pixel centres. The challenge gives no pixel spacing, so $\tau$ is in **pixels**. Empty masks follow the rule of the Dice: NaN if both are empty, 0 if one is.

# %%
#| export
def outlines(masks: np.ndarray) -> np.ndarray:
    """Masks [N,H,W] or [N,D,H,W] with only those pixels kept of which a side touches another class, or the frame's edge.

    Beside a pixel to be ignored (255) it is not known whether a structure ends, and no outline is drawn."""
    axes = range(1, masks.ndim)
    padded = np.pad(masks.astype(np.int16), [(0, 0)] + [(1, 1) for _ in axes], constant_values=-1)
    edge = np.zeros(padded.shape, bool)
    for axis in axes:
        for step in (1, -1):
            neighbour = np.roll(padded, step, axis)
            edge |= (neighbour != padded) & (neighbour != IGNORE)
    inside = (slice(None), *(slice(1, -1) for _ in axes))
    return np.where(edge[inside], masks, 0)


# %%
#| fig-alt: "A square mask, and the pixels of its outline"
def square(x, size=10):
    "A square whose left edge is column x, uint8 [1,20,20]."
    return np.pad(np.ones((1, size, size), np.uint8), ((0, 0), (5, 15 - size), (x, 20 - size - x)))

test_eq(outlines(square(2)).sum(), 36)
fig, axes = plt.subplots(1, 2, figsize=(4, 2.2), layout="constrained")
for ax, mask, title in zip(axes, (square(2), outlines(square(2))), ("mask", "outline")):
    ax.imshow(mask[0], cmap="Greys", vmax=1.4)
    ax.set_title(title, fontsize=9)
    ax.set(xticks=[], yticks=[])


# %%
#| export
def near_pixels(a: np.ndarray, b: np.ndarray, tolerance: float) -> int:
    "How many pixels of the outline `a` are within the tolerance of the outline `b`, both bool [H,W]."
    from scipy import ndimage  # slow, and only needed here and below
    distance = ndimage.distance_transform_edt(~b)
    return (distance[a] <= tolerance).sum()


# %% [markdown]
# The more is tolerated, the more pixels of the one outline count as near to the other.

# %%
one, other = outlines(square(2))[0] > 0, outlines(square(4))[0] > 0
test_eq([near_pixels(one, other, tolerance) for tolerance in (0, 1, 2)], [16, 20, 36])


# %%
#| export
def surface_dice(
    pred: np.ndarray, # classes, uint8 [N,H,W]
    truth: np.ndarray, # the same shape
    C: int, # number of classes
    tolerance: float = 2., # in pixels
) -> np.ndarray: # float64 [N,C]; NaN if both are empty, 0 if one is
    "Normalised surface Dice, float64 [N,C]: the share of the outlines within `tolerance` pixels of each other."
    from scipy import ndimage
    pred, truth = check_masks(pred, truth, C)
    ignored = truth == IGNORE
    if ignored.any():
        pred = np.where(ignored, IGNORE, pred)
    table = np.full((len(truth), C), np.nan)
    for n, pair in enumerate(zip(outlines(pred), outlines(truth))):
        lines = np.stack(pair)
        boxes = ndimage.find_objects(lines, max_label=C)  # distances matter near a class only
        for c, box in enumerate(boxes, 1):
            if box is None:
                continue
            drawn, true = lines[:, *box[1:]] == c
            near = 0
            if drawn.any() and true.any():
                near = near_pixels(drawn, true, tolerance) + near_pixels(true, drawn, tolerance)
            table[n, c - 1] = near/(drawn.sum() + true.sum())
    return table


# %% [markdown]
# By hand: the square of 10 x 10 has an outline of 36 pixels. Moved by two columns, it is perfect at a tolerance of 2. At 0 only the 8 common pixels of the top row and of the bottom row count. At 1 the top and the bottom gain one pixel each, and so do two pixels of the trailing side: 9 + 9 + 2 = 20 of 36.

# %%
for tolerance, expected in ((2, 1.), (1, 20/36), (0, 16/36)):
    value = surface_dice(square(4), square(2), 1, tolerance)
    print(f"tolerance {tolerance}: {value.item():.3f}")
    test_eq(value, [[expected]])
test_eq(surface_dice(square(2), 0*square(2), 1), [[0.]])
assert np.isnan(surface_dice(0*square(2), 0*square(2), 1)).all()

# %% [markdown]
# On the toy world, the lungs are drawn one pixel off. The surface Dice forgives that, and does not forgive inventions.

# %%
world = toy_world(40, missing=.4, examined=3)
pred = toy_prediction(world)
scores = {"dice": dice_table(pred, world.truth, 3), "surface dice": surface_dice(pred, world.truth, 3)}
pd.DataFrame({name: np.nanmean(table, 0) for name, table in scores.items()}, world.classes.names).round(3)
