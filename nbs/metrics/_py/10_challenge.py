# %% [markdown]
# # The challenge's metric
#
# > Dice to the last digit, what it hides, and what happens to each class.
#
# - skip_showdoc: true

# %%
#| default_exp metrics.challenge

# %%
#| export
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.errors import InputError
from ctseg.core.unions import Unions
from ctseg.data.slices import SliceSet, highest_label

if TYPE_CHECKING:
    import pandas as pd

# %%
#| hide
import numpy as np
import pandas as pd
from fastcore.test import test_close, test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.errors import InputError
from ctseg.core.style import plot_masks
from ctseg.core.toys import toy_prediction, toy_world
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG

# %% [markdown]
# A score goes wrong in quiet ways: an average over the wrong axis, an empty class counted as a perfect one, an unexamined structure counted as an absent one. This page builds the metric from its definition and shows these mistakes on a small example.
#
# The example is a [toy world](../core/80_toys.ipynb) and a model with typical faults. It draws the right lung one pixel off, invents left lungs that are absent, and never draws the heart.

# %%
#| fig-alt: "Three toy slices with truth and a faulty prediction: no heart, an invented left lung"
world = toy_world(40, missing=.4, examined=3)
classes, truth = world.classes, world.truth
pred = toy_prediction(world)
_ = plot_masks(world.images[:3], {"truth": truth[:3], "prediction": pred[:3]}, classes, size=1.7)


# %% [markdown]
# ## The definition
#
# For an image and a class, let $A$ be the predicted and $B$ the true pixels:
#
# $$\mathrm{Dice}=\frac{2|A\cap B|}{|A|+|B|},\qquad\text{not a number (left out) if both are empty.}$$
#
# The score is the mean over *images* for each class, without the NaN, and then the mean of that over *classes*. Background is no class. Two loops say it word for word. They are slow, and obviously right.

# %%
def literal_table(pred, truth, C):
    "Dice of every image and class, [N,C]."
    table = np.full((len(truth), C), np.nan)
    for n in range(len(truth)):
        for c in range(1, C + 1):
            a, b = pred[n] == c, truth[n] == c
            if a.any() or b.any(): table[n, c - 1] = 2*(a & b).sum()/(a.sum() + b.sum())
    return table

pd.DataFrame(literal_table(pred, truth, 3)[:6].round(3), columns=classes.names)


# %% [markdown]
# Read the column of the left lung. A slice without one on either side is left out. A slice on which one is **invented** scores 0, as low as one on which it is missed. One invented pixel costs as much as a thousand, which is why so much in `ctseg` is about not inventing.
#
# ## Masks that fit
#
# The two arrays must have the same shape, and no value above C. They hold slices `[N,H,W]` or volumes `[N,D,H,W]`: to a Dice all pixels of an image are one row.

# %%
#| export
def check_masks(pred: np.ndarray, truth: np.ndarray, C: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as uint8 [N,H,W] or [N,D,H,W]; `InputError` unless they have one shape and hold whole numbers from 0 to C.

    The truth may hold 255 too: pixels to be ignored."""
    pred = np.asarray(pred)
    truth = np.asarray(truth)
    if pred.shape != truth.shape or truth.ndim < 3:
        raise InputError(f"predicted masks are {pred.shape}, true masks {truth.shape}; "
                         "expected the same [images, height, width] for both")
    for name, masks in (("predicted", pred), ("true", truth)):
        if masks.dtype.kind not in "iu":
            raise InputError(f"{name} masks are {masks.dtype}, expected whole numbers from 0 to {C}")
        top = highest_label(masks) if name == "true" else masks.max(initial=0)
        if masks.size and (masks.min() < 0 or top > C):
            raise InputError(f"{name} masks hold {masks.min()}…{masks.max()}, expected 0…{C}")
    return pred.astype(np.uint8, copy=False), truth.astype(np.uint8, copy=False)


# %%
for wrong in (pred[:-1], pred/2, pred + 2):
    try: check_masks(wrong, truth, C=3)
    except InputError as e: print(e)


# %% [markdown]
# ## One pass
#
# The loops look at every pixel five times a class. But a pixel says everything with one pair (predicted class, true class), so it is enough to count pairs. In the table of counts the diagonal holds $|A\cap B|$, the row sums $|A|$ and the column sums $|B|$.
#
# Where the truth says that a pixel is to be ignored (255), the prediction may say anything: the pair is not counted.
#
# Masks also come in runs: along a row the pair changes only at the borders of structures. So runs are counted, each by its length. ([How much faster](../benchmarks/metric.ipynb) this is.)

# %%
#| export
class Overlaps(NamedTuple):
    "Pixels of each image and class, int64 [N,C] each."
    both: np.ndarray       # |A and B|
    predicted: np.ndarray  # |A|
    true: np.ndarray       # |B|

    def dice(self) -> np.ndarray:
        "Dice of each image and class, float64 [N,C]; NaN where neither has the class."
        total = self.predicted + self.true
        neither = np.full(total.shape, np.nan)
        return np.divide(2.*self.both, total, out=neither, where=total > 0)


# %% [markdown]
# Two pixels drawn, two true, one in common: a Dice of one half.

# %%
test_eq(Overlaps(both=np.array([[1]]), predicted=np.array([[2]]), true=np.array([[2]])).dice(), [[.5]])


# %%
#| export
def pair_counts(pred: np.ndarray, truth: np.ndarray, C: int) -> np.ndarray:
    "How many pixels of one image have each pair (predicted class, true class): int64 [C+1,C+1]."
    K = C + 1
    if not pred.size: return np.zeros((K, K), np.int64)
    pred, truth = pred.ravel(), truth.ravel()
    pred_changes = pred[1:] != pred[:-1]
    truth_changes = truth[1:] != truth[:-1]
    changes = np.flatnonzero(pred_changes | truth_changes)
    ends = np.append(changes, pred.size - 1)  # the last pixel of each run
    lengths = np.diff(ends, prepend=-1)
    pairs = pred[ends].astype(int)*K + truth[ends]
    return np.bincount(pairs, lengths, K*K).astype(np.int64).reshape(K, K)


# %%
pair_counts(pred[0], truth[0], 3).astype(int)  # rows: predicted as background, right lung, left lung, heart


# %%
#| export
def counted_pixels(pred: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    "The pixels of an image [H,W] that are not to be ignored, as two rows [n]."
    counts = truth != IGNORE
    return pred[counts], truth[counts]


# %% [markdown]
# The ignored pixel is left out on both sides.

# %%
test_eq(counted_pixels(np.array([[1, 2]]), np.array([[1, IGNORE]])), ([1], [1]))


# %%
#| export
def union_counts(pairs: np.ndarray, ids: list[int]) -> tuple[int, int, int]:
    "How many pixels both, the prediction, and the truth call one of `ids`, out of a table of pairs [C+1,C+1]."
    predicted, true = pairs[ids], pairs[:, ids]
    return predicted[:, ids].sum(), predicted.sum(), true.sum()


# %% [markdown]
# A [union](../core/38_unions.ipynb) is scored as a whole: a predicted left lung is right where the truth says "lungs".

# %%
test_eq(union_counts(np.array([[5, 0, 1], [0, 2, 3], [1, 1, 1]]), [1, 2]), (7, 8, 8))


# %%
#| export
def overlaps(
    pred: np.ndarray, # classes, uint8 [N,H,W]
    truth: np.ndarray, # the same shape
    C: int, # number of classes, background not counted
    unions: Unions = (), # classes made of others, `ClassMap.unions`
) -> Overlaps:
    "Pixels of each image and class that both masks [N,H,W] have, that the prediction has, that the truth has."
    pred, truth = check_masks(pred, truth, C)
    ignored = truth.max(initial=0) > C
    counts = np.empty((3, len(truth), C), np.int64)
    both, predicted, true = counts
    for n, (image_pred, image_truth) in enumerate(zip(pred, truth)):
        if ignored:
            image_pred, image_truth = counted_pixels(image_pred, image_truth)
        pairs = pair_counts(image_pred, image_truth, C)
        both[n] = pairs.diagonal()[1:]
        predicted[n] = pairs.sum(1)[1:]
        true[n] = pairs.sum(0)[1:]
        for union, members in unions:
            counts[:, n, union - 1] = union_counts(pairs, [union, *members])
    return Overlaps(*counts)


# %% [markdown]
# Counted over all slices, the true pixels are those in the masks.

# %%
counts = overlaps(pred, truth, 3)
test_eq(counts.true.sum(0), [(truth == c).sum() for c in (1, 2, 3)])


# %% [markdown]
# ## The score

# %%
#| export
def dice_table(
    pred: np.ndarray, # classes, uint8 [N,H,W]
    truth: np.ndarray, # the same shape
    C: int, # number of classes
    unions: Unions = (), # classes made of others, `ClassMap.unions`
) -> np.ndarray: # float64 [N,C], NaN where neither has the class
    "The challenge's Dice of every image and class: float64 [N,C], NaN where neither mask has the class."
    return overlaps(pred, truth, C, unions).dice()


# %% [markdown]
# It agrees with the literal definition above, in numbers and in what is NaN.

# %%
table = dice_table(pred, truth, 3)
test_eq(np.isnan(table), np.isnan(literal_table(pred, truth, 3)))
test_close(np.nan_to_num(table), np.nan_to_num(literal_table(pred, truth, 3)), 1e-12)


# %%
#| export
def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    "The mean of an array of any shape along `axis`, leaving NaN out; NaN where there is nothing else."
    total = np.nansum(values, axis)
    count = (~np.isnan(values)).sum(axis)
    nothing = np.full(np.shape(count), np.nan)
    return np.divide(total, count, out=nothing, where=count > 0)

def mean_dice(
    table: np.ndarray, # [N,C] from `dice_table`
) -> float: # NaN if there is nothing to score
    "The challenge's score of a table [N,C]: mean over images of each class, then over classes, NaN left out."
    return float(nan_mean(nan_mean(table, 0), 0))

def challenge_dice(pred: np.ndarray, truth: np.ndarray, C: int) -> float:
    "The challenge's score of predicted masks uint8 [N,H,W] against the true ones."
    return mean_dice(dice_table(pred, truth, C))


# %%
print("score", round(challenge_dice(pred, truth, 3), 4))
pd.Series(np.nanmean(table, 0), classes.names).round(4)

# %% [markdown]
# A case for pencil and paper: two images of four pixels, classes 1 and 2. Class 1 is right on half of its pixels in the first image, and nobody has it in the second. Class 2 is missed in the first and invented in the second.

# %%
t = np.array([[[1, 1], [2, 0]], [[0, 0], [0, 0]]], np.uint8)
p = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 2]]], np.uint8)
small = dice_table(p, t, 2)
test_eq(small[0], [.5, 0.])                                 # 2·1/(2+2) and 0/(0+1)
assert np.isnan(small[1, 0]) and small[1, 1] == 0           # empty in both; invented
test_eq(mean_dice(small), .25)                              # (.5 + 0)/2: the NaN is neither 0 nor 1


# %% [markdown]
# Of slices that are partly examined only the examined cells are scored.

# %%
#| export
def examined_dice(pred: np.ndarray, slices: SliceSet) -> np.ndarray: # float64 [N,C]
    "`dice_table` of predicted masks uint8 [N,H,W] for slices, [N,C]; NaN too in cells that nobody examined."
    table = dice_table(pred, slices.masks, len(slices.classes), slices.classes.unions)
    return np.where(slices.known, table, np.nan)


# %%
half_known = SliceSet(np.zeros_like(t), t, np.array([[True, True], [False, False]]))
test_eq(examined_dice(p, half_known)[0], small[0])
assert np.isnan(examined_dice(p, half_known)[1]).all()      # the invention is not counted: nobody looked


# %% [markdown]
# ## The transposed trap
#
# The challenge's files have a *column* for each image, so the function in its example notebook transposes what it gets and loops over the rows. Arrays `[images, pixels]` have a row for each image already. Transposed, they give a Dice over the images for each **pixel position**, and nothing complains. That number lies between 0 and 1 and rises during training, but it is not the metric.

# %%
def as_in_the_example(truth_table, pred_table):
    "Expects [pixels, images]: turns both, then treats every row as an image."
    return literal_table(pred_table.T[:, None], truth_table.T[:, None], 3)

flat_t, flat_p = truth.reshape(len(truth), -1), pred.reshape(len(pred), -1)
right, wrong = as_in_the_example(flat_t.T, flat_p.T), as_in_the_example(flat_t, flat_p)
print(f"turned the right way {mean_dice(right):.4f}, {right.shape[0]} rows scored")
print(f"turned the wrong way {mean_dice(wrong):.4f}, {wrong.shape[0]} rows scored")
test_close(mean_dice(right), challenge_dice(pred, truth, 3), 1e-12)

# %% [markdown]
# The original project's figures were measured the wrong way round ([details](../benchmarks/original_claim.ipynb)), so they cannot be compared with the leaderboard. `dice_table` takes `[N,H,W]` and nothing else:

# %%
try: dice_table(flat_p, flat_t, 3)
except InputError as e: print(e)


# %% [markdown]
# ## A row for each class
#
# One number says how good a model is. A table says what to do about it. For each class, over the examined images:
#
# | column | meaning |
# |---|---|
# | `support` | images that have the class |
# | `absent` | images examined for it that do not |
# | `dice` | its part of the score: mean over images, inventions counting 0 |
# | `dice_present` | the same over images that have it, so without the price of inventions |
# | `invented`, `invented_rate` | predicted where absent, and the share of `absent` |
# | `missed` | present, but not one pixel predicted |
# | `silent` | present somewhere, predicted nowhere |
# | `unreliable` | fewer than 3 supporting images: draw no conclusions |

# %% [markdown]
# The figures of a class are sums over images. So they can be counted for some images at a time and added up: the images need not be in memory
# together.

# %%
#| export
def class_tally(
    counts: Overlaps,
    known: np.ndarray | None = None, # bool [N,C]; None: everything was examined
) -> dict[str, np.ndarray]: # [C] each; those of further images are added
    "How often each class is there, absent, predicted, invented, missed, and sums of its Dice: arrays [C]."
    examined = np.ones(counts.true.shape, bool) if known is None else np.asarray(known, bool)
    present = examined & (counts.true > 0)
    absent = examined & (counts.true == 0)
    predicted = examined & (counts.predicted > 0)
    dice = np.where(examined, counts.dice(), np.nan)
    of_present = np.where(present, dice, np.nan)
    cells = {"support": present, "absent": absent, "predicted": predicted, "invented": absent & predicted,
             "missed": present & ~predicted, "scored": ~np.isnan(dice),
             "scored_present": ~np.isnan(of_present)}
    sums = {"dice": np.nansum(dice, 0), "dice_present": np.nansum(of_present, 0)}
    return {name: cell.sum(0) for name, cell in cells.items()} | sums


# %%
halves = [class_tally(overlaps(pred[half], truth[half], 3)) for half in (slice(1), slice(1, None))]
test_eq(halves[0]["missed"] + halves[1]["missed"], class_tally(overlaps(pred, truth, 3))["missed"])


# %%
#| export
def _ratio(total: np.ndarray, n: np.ndarray) -> np.ndarray:
    "total/n, NaN where n is 0."
    return np.divide(total, n, out=np.full(np.shape(n), np.nan), where=n > 0)

def rows_of(tally: dict[str, np.ndarray], classes: ClassMap) -> "pd.DataFrame":
    "`per_class` of a tally: figures by name, each [C]."
    import pandas as pd  # slow, and only needed here
    columns = dict(
        id=np.arange(1, len(classes) + 1),
        support=tally["support"],
        absent=tally["absent"],
        dice=_ratio(tally["dice"], tally["scored"]),
        dice_present=_ratio(tally["dice_present"], tally["scored_present"]),
        invented=tally["invented"],
        invented_rate=_ratio(tally["invented"], tally["absent"]),
        missed=tally["missed"],
        silent=(tally["support"] > 0) & (tally["predicted"] == 0),
        unreliable=tally["support"] < 3,
    )
    return pd.DataFrame(columns, index=pd.Index(classes.names, name="name"))


# %%
#| export
def class_rows(
    counts: Overlaps,
    classes: ClassMap,
    known: np.ndarray | None = None, # bool [N,C]; None: everything was examined
) -> "pd.DataFrame": # a row a class, by name
    "`per_class` of what `overlaps` has counted."
    return rows_of(class_tally(counts, known), classes)


# %%
class_rows(overlaps(pred, truth, 3), classes).round(3)


# %% [markdown]
# The left lung is the row to read twice: it is drawn well where it is, and inventions cost much of its score. Nothing that makes its outline better would help as much as silence in the right places. The heart is silent.

# %%
#| export
def per_class(
    pred: np.ndarray, # classes, uint8 [N,H,W]
    truth: np.ndarray, # the same shape
    classes: ClassMap,
    known: np.ndarray | None = None, # bool [N,C]; None: everything was examined
) -> "pd.DataFrame": # a row a class, by name
    "What happens to each class: its score, how often it is there, invented, missed, silent; a row a class, by name."
    return class_rows(overlaps(pred, truth, len(classes), classes.unions), classes, known)


# %% [markdown]
# Every slice either shows a class or does not, and the score is the mean of the column `dice`.

# %%
rows = per_class(pred, truth, classes)
test_eq(rows.support + rows.absent, pd.Series(len(truth), rows.index))
test_close(rows.dice.mean(), challenge_dice(pred, truth, 3), 1e-12)

# %% [markdown]
# The toy network has never heard of the heart:

# %%
test_eq(list(rows.index[rows.silent]), ["heart"])
