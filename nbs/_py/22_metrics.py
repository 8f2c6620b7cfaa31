# %% [markdown]
# # Metrics
#
# > The challenge's Dice to the last digit, what it hides, and how far to trust a difference.
#
# - skip_showdoc: true

# %%
#| default_exp metrics

# %% [markdown]
# A score is a claim about the world, and it goes wrong in quiet ways: an average over the wrong axis, an empty class counted as a perfect
# one, an unexamined organ counted as an absent one, a difference of a hundredth taken for progress. This notebook builds the challenge's
# metric from its definition, shows each of those mistakes on a small example, and ends with `evaluate`, the function behind `ctseg
# evaluate`.

# %%
#| export
import math
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from ctseg.anatomy import ClassMap
from ctseg.data import _check_looked_for, _check_patients, _read_annotated, present_classes, read_classes, read_masks
from ctseg.files import InputError, read_json

# %%
#| hide
import matplotlib.pyplot as plt
from fastcore.test import test_close, test_eq, test_fail

# %% [markdown]
# Some slices to score: three organs of very different size, and a "model" that is good at the liver, shifts the kidney, draws vessels
# where there are none and has never heard of the gallbladder.

# %%
classes = ClassMap.from_names(["liver", "kidney", "vessel", "gallbladder"])

def disc(mask, c, cy, cx, r): mask[(np.mgrid[:64, :64][0] - cy)**2 + (np.mgrid[:64, :64][1] - cx)**2 <= r*r] = c

def toy(n=40, seed=0):
    "Truth and prediction uint8 [n,64,64] of `n` slices."
    rng, truth = np.random.default_rng(seed), np.zeros((n, 64, 64), np.uint8)
    pred = truth.copy()
    for t, p in zip(truth, pred):
        cy, cx = rng.integers(18, 30, 2); r = rng.integers(8, 14)
        disc(t, 1, cy, cx, r); disc(p, 1, cy, cx + 1, r)
        if rng.random() < .6: cy, cx = rng.integers(42, 52, 2); disc(t, 2, cy, cx, 6); disc(p, 2, cy + 3, cx, 6)
        if rng.random() < .3: disc(t, 3, 20, 50, 2); disc(p, 3, 20, 51, 2)
        elif rng.random() < .5: disc(p, 3, 22, 50, 2)  # invented
        if rng.random() < .2: disc(t, 4, 50, 14, 3)    # missed
    return truth, pred

truth, pred = toy()
fig, ax = plt.subplots(2, 6, figsize=(9, 3.2))
has = lambda m, c: np.flatnonzero((m == c).any((1, 2)))
some = np.concatenate([has(truth, 4)[:2], has(truth, 3)[:2], np.setdiff1d(has(pred, 3), has(truth, 3))[:2]])
for i, n in enumerate(some):
    for a, m, name in zip(ax[:, i], (truth, pred), ("truth", "prediction")):
        a.imshow(classes.colourise(m[n])); a.set(xticks=[], yticks=[], ylabel=name if i == 0 else "")
    ax[0, i].set_title(("gallbladder missed", "vessel found", "vessel invented")[i//2], fontsize=9)
fig.tight_layout()


# %% [markdown]
# ## The definition
#
# For an image and a class, with $A$ the predicted and $B$ the true pixels,
#
# $$\mathrm{Dice}=\frac{2|A\cap B|}{|A|+|B|},\qquad\text{not a number (left out) if }A\text{ and }B\text{ are both empty.}$$
#
# Then the mean over *images* for each class, leaving out the NaN, and the mean of that over *classes*. Background is not a class. Written
# out word for word, it is two loops. This is the yardstick of the notebook: obviously right, and slow.

# %%
def literal_table(pred, truth, C):
    out = np.empty((len(truth), C))
    for n in range(len(truth)):
        for c in range(1, C + 1):
            a, b = pred[n] == c, truth[n] == c
            out[n, c - 1] = np.nan if a.sum() == 0 and b.sum() == 0 else 2*(a*b).sum()/(a.sum() + b.sum())
    return out

pd.DataFrame(literal_table(pred, truth, 4)[:6].round(3), columns=classes.names)


# %% [markdown]
# Read the vessel's column. A slice where nobody drew a vessel and none was predicted is left out; a slice where one was **invented**
# scores 0, as low as one that was missed. And one invented pixel costs as much as a thousand. That is why so much in `ctseg` is about not
# inventing.
#
# ## The same in one pass
#
# The loops look at every pixel five times a class. But a pixel says everything with one pair (predicted class, true class), so counting
# pairs, once, is enough: in the table of counts the diagonal holds $|A\cap B|$, the row sums $|A|$ and the column sums $|B|$.
#
# And masks come in runs. Along a row the pair changes at the borders of organs and nowhere else, so a slice of 65,536 pixels is some 2000
# runs; count those, each by its length.

# %%
#| export
def overlaps(
    pred: np.ndarray, # classes, uint8 [N,H,W]
    truth: np.ndarray, # the same shape
    C: int, # number of classes, background not counted
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: # |A and B|, |A|, |B|: int64 [N,C] each
    "Pixels of each image and class that both have, that the prediction has, that the truth has."
    pred, truth = _checked(pred, truth, C)
    K, out = C + 1, np.empty((3, len(truth), C), np.int64)
    for n in range(len(truth)):
        p, t = pred[n].ravel(), truth[n].ravel()
        ends = np.append(np.flatnonzero((p[1:] != p[:-1]) | (t[1:] != t[:-1])), p.size - 1)  # the last pixel of each run
        pairs = np.bincount(p[ends].astype(int)*K + t[ends], np.diff(ends, prepend=-1), K*K).reshape(K, K)
        out[:, n] = pairs.diagonal()[1:], pairs.sum(1)[1:], pairs.sum(0)[1:]
    return tuple(out)

def _checked(pred, truth, C):
    "Both as uint8 arrays of one shape [N,H,W] without values above C."
    pred, truth = np.asarray(pred), np.asarray(truth)
    if pred.shape != truth.shape or truth.ndim != 3:
        raise InputError(f"predicted masks are {pred.shape}, true masks {truth.shape}; expected the same [images, height, width] for both")
    for name, m in (("predicted", pred), ("true", truth)):
        if m.dtype.kind not in "iu" : raise InputError(f"{name} masks are {m.dtype}, expected whole numbers from 0 to {C}")
        if m.size and not 0 <= m.min() <= m.max() <= C: raise InputError(f"{name} masks hold {m.min()}…{m.max()}, expected 0…{C}")
    return pred.astype(np.uint8, copy=False), truth.astype(np.uint8, copy=False)


# %%
#| export
def dice_table(
    pred: np.ndarray, # classes, uint8 [N,H,W]
    truth: np.ndarray, # the same shape
    C: int, # number of classes
) -> np.ndarray: # float64 [N,C], NaN where neither has the class
    "The challenge's Dice of every image and class."
    return _dice(*overlaps(pred, truth, C))

def _dice(both, a, b): return np.divide(2.*both, a + b, out=np.full(both.shape, np.nan), where=a + b > 0)

def mean_dice(
    table: np.ndarray, # [N,C] from `dice_table`
) -> float: # NaN if there is nothing to score
    "The challenge's score of a table: mean over images of each class, then over classes, NaN left out."
    return float(_nanmean(_nanmean(table, 0), 0))

def _nanmean(x, axis):
    n = (~np.isnan(x)).sum(axis)
    return np.divide(np.nansum(x, axis), n, out=np.full(np.shape(n), np.nan), where=n > 0)

def challenge_dice(pred: np.ndarray, truth: np.ndarray, C: int) -> float:
    "The challenge's score of predicted masks uint8 [N,H,W] against the true ones."
    return mean_dice(dice_table(pred, truth, C))


# %% [markdown]
# It agrees with the loops, on these slices and in `tests/` on thousands of hostile ones; how much faster it is stands in
# [benchmarks](benchmarks/metric.html).

# %%
table = dice_table(pred, truth, 4)
assert np.array_equal(np.isnan(table), np.isnan(literal_table(pred, truth, 4)))
test_close(np.nan_to_num(table), np.nan_to_num(literal_table(pred, truth, 4)), 1e-12)
pd.Series(np.nanmean(table, 0), classes.names).round(4), round(challenge_dice(pred, truth, 4), 4)

# %% [markdown]
# A case small enough for pencil and paper: two images of four pixels, classes 1 and 2. Class 1 is right on half of its pixels in the
# first image and left out in the second; class 2 is missed in the first and invented in the second.

# %%
t = np.array([[[1, 1], [2, 0]], [[0, 0], [0, 0]]], np.uint8)
p = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 2]]], np.uint8)
small = dice_table(p, t, 2)
test_eq(small[0], [.5, 0.])                                 # 2·1/(2+2) and 0/(0+1)
assert np.isnan(small[1, 0]) and small[1, 1] == 0           # empty in both; invented
test_eq(mean_dice(small), .25)                              # (.5 + 0)/2: the NaN is left out, not counted as 0 or 1


# %% [markdown]
# ## The transposed trap
#
# The challenge's files have a *column* an image, and the function in its example notebook turns its tables before it loops over the rows.
# Give it arrays `[images, pixels]`, as the original project's training loop did, and nothing complains: it turns them *out of* their
# right order, and computes for each **pixel position** a Dice over the images, then averages over positions. That is a number between 0
# and 1 that goes up during training, and it is not the metric. On our slices:

# %%
def as_in_the_example(truth_table, pred_table):
    "Expects [pixels, images]: turns both, then treats every row as an image."
    return literal_table(pred_table.T[:, None], truth_table.T[:, None], 4)

flat_t, flat_p = truth.reshape(len(truth), -1), pred.reshape(len(pred), -1)
right, wrong = as_in_the_example(flat_t.T, flat_p.T), as_in_the_example(flat_t, flat_p)
print(f"turned the right way {mean_dice(right):.4f}, {right.shape[0]} rows scored")
print(f"turned the wrong way {mean_dice(wrong):.4f}, {wrong.shape[0]} rows scored")
test_close(mean_dice(right), challenge_dice(pred, truth, 4), 1e-12)

# %% [markdown]
# The wrong number asks "at this place in the frame, on how many slices was the model right?", so it weighs a class by the area over which
# it wanders and punishes an invention only at its few pixels. The original project's 0.24 → 0.25 was measured like that, which makes it
# incomparable with the leaderboard's 0.27. `dice_table` takes `[N,H,W]` and nothing else, so it cannot be called the wrong way round:

# %%
try: dice_table(flat_p, flat_t, 4)
except InputError as e: print(e)


# %% [markdown]
# ## When the truth is partial
#
# On a partly labelled slice a zero may hide an organ that nobody outlined. The score of the full truth cannot be computed, but two stand-ins can:
#
# - **optimistic**: score only the examined cells. Predictions of unexamined classes are erased, so those cells are empty on both sides
# and drop out;
# - **pessimistic**: read every zero as absent. A correct prediction of an unexamined organ then counts as an invention and scores 0.
#
# Since the metric looks at each cell (image, class) by itself, the first is the same table with the unknown cells left out.

# %%
#| export
def partial_bounds(
    pred: np.ndarray, # classes, uint8 [N,H,W]
    truth: np.ndarray, # the same shape; 0 where a class was not examined
    known: np.ndarray, # bool [N,C], which classes were examined
) -> tuple[float, float]: # optimistic, pessimistic
    "The challenge's score if only examined cells count, and if unexamined classes are taken to be absent."
    known = np.asarray(known, bool)
    table = dice_table(pred, truth, known.shape[1])
    return mean_dice(np.where(known, table, np.nan)), mean_dice(table)


# %% [markdown]
# Neither is a bound in the strict sense (an organ that is really there and was not predicted drops out of both), but their uses differ:
# the optimistic value predicted one team's leaderboard score to within .03, while the pessimistic one lay .25 below it. `ctseg` validates
# with the optimistic one. With everything known, both are the score:

# %%
known = np.random.default_rng(0).random((len(truth), 4)) < .5
written = np.c_[np.ones(len(known), bool), known]  # background and the examined classes
partial = np.where(written[np.arange(len(truth))[:, None, None], truth], truth, 0)
print("half of the cells examined: optimistic {:.3f}, pessimistic {:.3f}; the full truth {:.3f}".format(
    *partial_bounds(pred, partial, known), challenge_dice(pred, truth, 4)))
test_eq(partial_bounds(pred, truth, np.ones((len(truth), 4), bool)), (challenge_dice(pred, truth, 4),)*2)


# %% [markdown]
# ## A row for each class
#
# One number says how good; a table says what to do. For each class, over the examined images:
#
# | column | meaning |
# |---|---|
# | `support` | images that have the class |
# | `absent` | images examined for it that do not |
# | `dice` | its part of the score: mean over images, inventions counting 0 |
# | `dice_present` | the same over images that have it, so without the price of inventions |
# | `invented`, `invented_rate` | predicted where absent, and the share of `absent` |
# | `missed` | present, but not one pixel predicted |
# | `silent` | present somewhere, predicted nowhere: the class has been lost altogether |
# | `unreliable` | fewer than 3 supporting images: do not draw conclusions |

# %%
#| export
def per_class(
    pred: np.ndarray, # classes, uint8 [N,H,W]
    truth: np.ndarray, # the same shape
    classes: ClassMap,
    known: np.ndarray|None = None, # bool [N,C]; None: everything was examined
) -> pd.DataFrame: # a row a class, by name
    "What happens to each class: its score, how often it is there, invented, missed, silent."
    return _class_rows(overlaps(pred, truth, len(classes)), classes, known)

def _class_rows(counts, classes: ClassMap, known) -> pd.DataFrame:
    "`per_class` of what `overlaps` has counted."
    _, a, b = counts
    k = np.ones(b.shape, bool) if known is None else np.asarray(known, bool)
    there, gone, said = k & (b > 0), k & (b == 0), k & (a > 0)
    dice = np.where(k, _dice(*counts), np.nan)
    support, absent, invented = there.sum(0), gone.sum(0), (gone & said).sum(0)
    return pd.DataFrame(dict(
        id=np.arange(1, len(classes) + 1), support=support, absent=absent, dice=_nanmean(dice, 0),
        dice_present=_nanmean(np.where(there, dice, np.nan), 0), invented=invented,
        invented_rate=np.divide(invented, absent, out=np.full(len(classes), np.nan), where=absent > 0),
        missed=(there & ~said).sum(0), silent=(support > 0) & ~said.any(0), unreliable=support < 3,
    ), index=pd.Index(classes.names, name="name"))

def silent_classes(pred: np.ndarray, truth: np.ndarray, classes: ClassMap, known: np.ndarray|None = None) -> list[str]:
    "Names of the classes that the examined images have and the prediction never does."
    t = per_class(pred, truth, classes, known)
    return list(t.index[t.silent])


# %%
per_class(pred, truth, classes).round(3)

# %%
test_eq(silent_classes(pred, truth, classes), ["gallbladder"])
t = per_class(pred, truth, classes)
test_eq(t.support + t.absent, pd.Series(len(truth), t.index))
test_close(t.dice.mean(), challenge_dice(pred, truth, 4), 1e-12)  # the score is the mean of the column


# %% [markdown]
# The vessel's row is the one to read twice: .62 where it is, and .19 in the score, because 16 inventions count 0 each. Nothing that makes
# its outline better would help as much as silence in the right places.
#
# ## Surfaces
#
# Dice rewards bulk: the same one-pixel slip that costs a liver 2 % costs a vessel half. The *normalised surface Dice* asks a different
# question, which share of the two outlines lies within a tolerance of the other (Nikolov et al. 2018, [arXiv
# 1809.04430](https://arxiv.org/abs/1809.04430), "surface DSC"):
#
# $$\mathrm{NSD}_\tau=\frac{|\{x\in\partial A: d(x,\partial B)\le\tau\}|+|\{x\in\partial B: d(x,\partial A)\le\tau\}|}{|\partial A|+|\partial B|}$$
#
# Tools differ in the details, so here are ours. $\partial A$ are the pixels of $A$ with one of their four neighbours outside $A$; beyond
# the frame is outside. Distances run between pixel centres, each of which counts one. The challenge gives no pixel spacing, so $\tau$ is
# in **pixels**. Empty masks follow the Dice rule: NaN if both are empty, 0 if one is.

# %%
#| export
def _outline(masks: np.ndarray) -> np.ndarray:
    "The masks with only those pixels kept that touch another class (or the frame's edge) above, below, left or right."
    m = np.pad(masks.astype(np.int16), ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    inner = m[:, 1:-1, 1:-1]
    edge = (m[:, :-2, 1:-1] != inner) | (m[:, 2:, 1:-1] != inner) | (m[:, 1:-1, :-2] != inner) | (m[:, 1:-1, 2:] != inner)
    return np.where(edge, masks, 0)

def _near(a, b, tolerance):
    "How many pixels of the outline `a` are within the tolerance of `b`."
    return (ndimage.distance_transform_edt(~b)[a] <= tolerance).sum()

def surface_dice(
    pred: np.ndarray, # classes, uint8 [N,H,W]
    truth: np.ndarray, # the same shape
    C: int, # number of classes
    tolerance: float = 2., # in pixels
) -> np.ndarray: # float64 [N,C]; NaN if both are empty, 0 if one is
    "Normalised surface Dice of every image and class: the share of the outlines within `tolerance` of each other."
    out = np.full((len(truth), C), np.nan)
    for n, (p, t) in enumerate(zip(*map(_outline, _checked(pred, truth, C)))):
        boxes = ndimage.find_objects(np.concatenate([p, t]).reshape(2, *t.shape), max_label=C)
        for c, box in enumerate(boxes, 1):
            if box is None: continue
            a, b = p[box[1:]] == c, t[box[1:]] == c
            near = _near(a, b, tolerance) + _near(b, a, tolerance) if a.any() and b.any() else 0
            out[n, c - 1] = near/(a.sum() + b.sum())
    return out


# %% [markdown]
# By hand: a square of 10x10 has an outline of 36 pixels. Moved by two columns, it is perfect at a tolerance of 2. At 0 only the 8 common
# pixels of the top row and of the bottom row count. At 1, the top and the bottom gain one pixel each, and of the trailing side the two
# pixels next to them: 9 + 9 + 2 = 20 of 36.

# %%
square = lambda x, size=10: np.pad(np.ones((1, size, size), np.uint8), ((0, 0), (5, 15 - size), (x, 20 - size - x)))
test_eq(_outline(square(2)).sum(), 36)
test_eq(surface_dice(square(4), square(2), 1, tolerance=2), [[1.]])
test_eq(surface_dice(square(4), square(2), 1, tolerance=1), [[20/36]])
test_eq(surface_dice(square(4), square(2), 1, tolerance=0), [[16/36]])
test_eq(surface_dice(square(2), 0*square(2), 1), [[0.]])
assert np.isnan(surface_dice(0*square(2), 0*square(2), 1)).all()
pd.DataFrame({"dice": np.nanmean(table, 0), "surface dice": np.nanmean(surface_dice(pred, truth, 4), 0)}, classes.names).round(3)


# %% [markdown]
# ## How far to trust it
#
# Slices of one patient resemble each other, so 300 slices of 15 patients are nearer to 15 pieces of evidence than to 300. The *grouped
# bootstrap* draws patients with replacement and scores each draw with the full metric. To compare two models, both get **the same
# draws**: a hard patient then weighs on both, and their difference comes out much sharper than two intervals side by side.
#
# A draw only asks how often each group was taken. With the sums and counts of every group prepared, 2000 draws are two small matrix
# products.

# %%
#| export
def _group_sums(tables, groups):
    "Sums and counts of the cells of each group: two arrays [S,G,C] for tables [S,N,C]."
    tables = np.asarray(tables, float)
    tables = tables[None] if tables.ndim == 2 else tables
    groups = np.arange(tables.shape[1]) if groups is None else np.asarray(groups)
    if len(groups) != tables.shape[1]: raise InputError(f"{len(groups)} groups for {tables.shape[1]} images; give each image its group")
    member = (np.unique(groups)[:, None] == groups).astype(float)
    return member @ np.nan_to_num(tables), member @ ~np.isnan(tables)

def _scores(tables, groups, reps, seed):
    "The score of the tables (the mean over several) as it is, and under `reps` draws of the groups."
    sums, counts = _group_sums(tables, groups)
    G = sums.shape[1]
    draws = np.random.default_rng(seed).multinomial(G, np.full(G, 1/G), reps)
    draws = np.concatenate([np.ones((1, G)), draws])
    n = draws @ counts
    cells = np.divide(draws @ sums, n, out=np.full(n.shape, np.nan), where=n > 0)
    s = _nanmean(_nanmean(cells, 2), 0)
    return s[0], s[1:], G

def _interval(x, level):
    x = x[~np.isnan(x)]
    return tuple(map(float, np.quantile(x, [(1 - level)/2, (1 + level)/2]))) if len(x) else (np.nan, np.nan)


# %%
#| export
def bootstrap_mean(
    table: np.ndarray, # [N,C] from `dice_table`, or [S,N,C] of several runs, which are averaged
    groups=None, # [N], for instance patients; None: every image by itself
    reps: int = 2000, # draws
    level: float = .95, # of the interval
    seed: int = 0,
) -> dict: # mean, low, high, groups, level, reps
    "The challenge's score with a percentile interval over groups."
    mean, draws, G = _scores(table, groups, reps, seed)
    low, high = _interval(draws, level)
    return dict(mean=float(mean), low=low, high=high, groups=G, level=level, reps=reps)

def paired_bootstrap(
    table_a: np.ndarray, # [N,C], or [S,N,C] of several runs, which are averaged
    table_b: np.ndarray, # the same images
    groups=None, # [N], for instance patients; None: every image by itself
    reps: int = 2000, # draws, the same for both
    level: float = .95, # of the interval
    seed: int = 0,
) -> dict: # a, b, difference a - b, low, high, p_better (share of draws in which a is better), groups, level, reps
    "Is a better than b? The difference of their scores with a percentile interval over groups."
    if np.shape(table_a)[-2:] != np.shape(table_b)[-2:]:
        raise InputError(f"tables of {np.shape(table_a)} and {np.shape(table_b)}: expected the same images and classes")
    (a, draws_a, G), (b, draws_b, _) = (_scores(t, groups, reps, seed) for t in (table_a, table_b))
    draws = draws_a - draws_b
    draws = draws[~np.isnan(draws)]  # a draw of groups without any score says nothing
    low, high = _interval(draws, level)
    return dict(a=float(a), b=float(b), difference=float(a - b), low=low, high=high,
                p_better=float(np.mean(draws > 0)) if len(draws) else np.nan, groups=G, level=level, reps=reps)


# %% [markdown]
# Forty slices of ten patients, and a rival that keeps quiet about vessels on every second slice where it would have invented one. Apart,
# the two intervals overlap widely. Paired, the sign of the difference is clear.

# %%
patients = np.arange(40)//4
rival = pred.copy()
rival[::2][(rival[::2] == 3) & ~(truth[::2] == 3).any((1, 2), keepdims=True)] = 0
a, b = dice_table(rival, truth, 4), table
show = lambda r: f"{r['low']:.3f} … {r['high']:.3f}"
print("rival     ", show(bootstrap_mean(a, patients)))
print("model     ", show(bootstrap_mean(b, patients)))
print("difference", show(r := paired_bootstrap(a, b, patients)), f" (better in {r['p_better']:.1%} of the draws)")

# %% [markdown]
# Checks: the value without resampling is the metric; a draw equals the metric of the slices repeated accordingly; a model against itself
# differs by exactly nothing; one group gives an interval without width.

# %%
test_close(bootstrap_mean(table)["mean"], challenge_dice(pred, truth, 4), 1e-12)
draws = np.random.default_rng(5).multinomial(10, np.full(10, .1), 1)[0]
slow = mean_dice(np.concatenate([table[patients == g] for g in range(10) for _ in range(draws[g])]))
test_close(_scores(table, patients, 1, 5)[1][0], slow, 1e-12)
same = paired_bootstrap(table, table, patients)
test_eq((same["difference"], same["low"], same["high"], same["p_better"]), (0, 0, 0, 0))
one = bootstrap_mean(table, np.zeros(40))
test_close([one["low"], one["high"]], [one["mean"]]*2, 1e-12)


# %% [markdown]
# The interval covers the choice of *patients*. It does not cover the luck of training; for that, train several seeds and pass their
# tables stacked as `[S,N,C]`: the scores are averaged over runs, and the differences between seeds should be shown beside the interval.
#
# ## All of it at once

# %%
#| export
def evaluate(
    truth: np.ndarray, # classes, uint8 [N,H,W]
    pred: np.ndarray, # the same shape
    classes: ClassMap,
    known: np.ndarray|None = None, # bool [N,C]; None: everything was examined
    groups=None, # [N] for the interval; None: every image by itself
    reps: int = 2000, # bootstrap draws
) -> dict: # plain numbers, strings and lists: ready for JSON
    "The score with its interval, bounds where the truth is partial, inventions, misses, silent classes and a record for each class."
    return _table_and_facts(overlaps(pred, truth, len(classes)), classes, known, groups, reps)["facts"]

def _table_and_facts(counts, classes: ClassMap, known=None, groups=None, reps: int = 2000) -> dict:
    "`per_class` and `evaluate` of what `overlaps` has counted."
    table, rows = _dice(*counts), _class_rows(counts, classes, known)
    partial = known is not None and not np.all(known)
    scored = np.where(known, table, np.nan) if partial else table
    b = bootstrap_mean(scored, groups, reps)
    out = dict(dice=_plain(b["mean"]), interval=[_plain(b["low"]), _plain(b["high"])], level=b["level"], images=len(table),
               groups=b["groups"])
    if partial:
        out |= dict(dice_optimistic=out["dice"], dice_pessimistic=_plain(mean_dice(table)), cells_examined=int(np.sum(known)))
    out |= dict(classes_scored=int((~np.isnan(scored)).any(0).sum()), invented=int(rows.invented.sum()), missed=int(rows.missed.sum()),
                silent=list(rows.index[rows.silent]), unreliable=list(rows.index[rows.unreliable]))
    out |= dict(per_class=[{k: _plain(v) for k, v in r.items()} for r in rows.reset_index().to_dict("records")])
    return dict(table=rows, facts=out)

def _plain(v):
    "A number for JSON: no NumPy types, None for NaN."
    v = v.item() if isinstance(v, np.generic) else v
    return None if isinstance(v, float) and math.isnan(v) else v


# %%
{k: v for k, v in evaluate(truth, pred, classes, groups=patients).items() if k != "per_class"}

# %%
#| hide
import json
json.dumps(evaluate(truth*0, pred*0, classes), allow_nan=False)  # nothing to score: nulls, no warning
r = evaluate(partial, pred, classes, known, patients)
test_close([r["dice"], r["dice_pessimistic"]], partial_bounds(pred, partial, known), 1e-12)


# %% [markdown]
# And from files, as the command line has it. The patients come from the `patients.json` beside the truth if there is one; without it
# every image counts as independent, and the interval is too narrow. A `y_train.csv` is the truth in part: what was examined comes from the
# `annotated_labels.json` beside it, and where there is none, it must be said, as for `read_challenge`.

# %%
#| export
def evaluate_files(
    truth, # the true masks, a CSV in the challenge's form
    prediction, # a submission
    annotated=None, # `annotated_labels.json` where the truth is partial, or "all" or "present"; None: the file beside `y_train.csv`
    classes=None, # `class_names.json`; None: the one beside the truth, else the challenge's 54
) -> dict: # "table": `per_class`; "facts": `evaluate`
    "Score a submission file against a truth file. `InputError` for whatever does not fit."
    truth = Path(truth)
    cm = ClassMap.from_json(classes) if classes else read_classes(truth.parent)
    names, t = read_masks(truth, classes=cm, size=(1, -1))  # the shape of the images does not matter to a Dice
    _, p = read_masks(prediction, names=names, size=t.shape[1:], classes=cm, cache=False)
    if annotated is None and _is_partial(truth): annotated = truth.parent/"annotated_labels.json"  # if it is not there, `_examined` says so
    if str(annotated) == "present": known = present_classes(t, len(cm))
    else: known = _examined(Path(annotated), t, names, cm, truth) if annotated and str(annotated) != "all" else None
    return _table_and_facts(overlaps(p, t, len(cm)), cm, known, _patients(truth, len(t)))

def _examined(path: Path, masks: np.ndarray, names, classes: ClassMap, truth: Path) -> np.ndarray:
    "What is known of the images of a truth file, bool [N,C]. The list goes on with the images without annotation, which have no column."
    known, n = _read_annotated(path, None, len(classes)), len(masks)
    if len(known) < n or known[n:].any():
        raise InputError(f"{path}: says of {max(len(known), 1 + int(np.flatnonzero(known.any(1)).max(initial=-1)))} images what was examined, but {truth} has {n} columns; give the two that belong together")
    if _is_partial(truth): _check_looked_for(known[:n], masks, names, truth, classes)  # a whole truth may be scored in part
    return known[:n]

def _is_partial(truth: Path) -> bool: return truth.name.split(".")[0] == "y_train"

def _patients(truth: Path, n: int):
    "The patients of the images of `y_SPLIT.csv` from the `patients.json` beside it, None if they are not told. The list goes on with the images without annotation."
    path = truth.parent/"patients.json"
    table = read_json(path) if path.exists() else {}
    ids = table.get(truth.name.split(".")[0].removeprefix("y_").removesuffix("_full")) if isinstance(table, dict) else None
    if not isinstance(ids, list) or len(ids) < n: return None
    _check_patients(ids, path)
    return np.array([str(i) for i in ids[:n]])


# %%
import tempfile
from ctseg.data import write_masks
with tempfile.TemporaryDirectory() as d:
    names = [f"{i}.png" for i in range(len(truth))]
    write_masks(truth, names, f"{d}/y_test.csv")
    write_masks(pred, names, f"{d}/submission.csv")
    write_masks(pred[:-1], names[:-1], f"{d}/short.csv")
    classes.to_json(f"{d}/class_names.json")
    facts = evaluate_files(f"{d}/y_test.csv", f"{d}/submission.csv")["facts"]
    try: evaluate_files(f"{d}/y_test.csv", f"{d}/short.csv")
    except InputError as e: print(str(e).replace(f"{d}/", ""))
test_eq(facts, evaluate(truth, pred, classes))

# %%
#| hide
import nbdev; nbdev.nbdev_export()
