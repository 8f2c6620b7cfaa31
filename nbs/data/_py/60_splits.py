# %% [markdown]
# # Splits
#
# > Groups of near-duplicates, folds that keep groups whole, and fewer labels.
#
# - skip_showdoc: true

# %%
#| default_exp data.splits

# %% [markdown]
# A validation score is a lie if the same body, or nearly the same picture, was trained on. So near-duplicates are found and kept together,
# and folds are made of whole groups.

# %%
#| export
import warnings
from dataclasses import replace

import numpy as np

from ctseg.core.errors import InputError
from ctseg.data.lazy import kept_where
from ctseg.data.slices import SliceSet

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.core.style import STATE_COLOURS
from ctseg.core.toys import toy_slices
from ctseg.data.slices import SliceSet


# %% [markdown]
# ## Near-duplicates
#
# Slices of a challenge come shuffled and without patient numbers, but some are neighbours in one body. Each slice is shrunk to a 16x16
# thumbnail. Two slices are near-duplicates if their thumbnails correlate above .98, and what is linked through others is one group.
#
# *Correlation* means that the mean is removed before taking the cosine. Each slice was windowed on its own, and correlation does not see
# brightness and contrast. It also separates better: grey values are positive, so *all* CT slices have a high plain cosine. On 2000
# head-and-neck slices of 242 patients, 74 % of the pairs above .98 were of one patient with the correlation, and 52 % with the plain
# cosine. Neither finds all slices of a patient. Where the patients are known, `patients.json` should say so.

# %%
#| export
def thumbnails(images: np.ndarray) -> np.ndarray:
    "16x16 thumbnails of uint8 [N,H,W], without their mean, of length 1 (an even image: 0): float32 [N,256]."
    import torch  # slow, and only needed where no patients are told
    import torch.nn.functional as F
    vectors = np.empty((len(images), 256), np.float32)
    for first in range(0, len(images), 256):
        part = slice(first, first + 256)
        pixels = torch.from_numpy(images[part]).float()
        pooled = F.adaptive_avg_pool2d(pixels[:, None], 16)
        small = pooled.flatten(1).numpy()
        small -= small.mean(1, keepdims=True)
        lengths = np.linalg.norm(small, axis=1, keepdims=True)
        vectors[part] = small/np.maximum(lengths, 1e-6)
    return vectors


# %%
toys = (255*toy_slices(6, 64)[0][:, 0]).byte().numpy()
correlation = thumbnails(toys) @ thumbnails(toys).T
most_alike = np.sort(correlation, axis=1)[:, -2].max()  # of two bodies; the last is a body with itself
print(f"six toy bodies correlate by {correlation.min():.2f} to {most_alike:.2f}")

# %% [markdown]
# All pairs are compared by matrix products, a block of pairs at a time, so 2500 images take about a second. Many slices may look alike, and
# then almost every pair is linked. So a link is kept only if it joins two groups that were apart, and the groups are joined as soon as there
# are a million links.

# %%
#| export
ROWS, COLUMNS, MANY_LINKS = 512, 8192, 1 << 20

def _joined(group: np.ndarray, links: list[np.ndarray]) -> np.ndarray:
    "The groups [N], numbered in order of first appearance, after joining the two ends of each link [n,2]."
    from scipy.sparse import coo_array  # as above
    from scipy.sparse.csgraph import connected_components
    count = len(group)
    _, first, place = np.unique(group, return_index=True, return_inverse=True)
    first_of_group = first[place]
    to_first = np.column_stack([np.arange(count), first_of_group])
    one, other = np.concatenate([to_first, *links]).T
    linked = np.ones(len(one), bool)
    graph = coo_array((linked, (one, other)), (count, count))
    _, joined = connected_components(graph, directed=False)
    return joined.astype(np.int64)


# %%
test_eq(_joined(np.array([0, 1, 0, 2, 3]), [np.array([[4, 1]])]), [0, 1, 0, 2, 1])

# %%
#| export
ALIKE = .98 # correlation of thumbnails above which two slices belong together

def near_duplicates(
    images: np.ndarray, # uint8 [N,H,W]
) -> np.ndarray: # int64 [N]: group numbers, 0 … in order of first appearance
    "The group, int64 [N], of each image: near-duplicates, and what is linked through them, share a number."
    small = thumbnails(images)
    count = len(small)
    group = np.arange(count)
    links: list[np.ndarray] = []
    for top in range(0, count, ROWS):
        rows = small[top:top + ROWS]
        leftmost = top - top % COLUMNS  # a pair is compared once
        for left in range(leftmost, count, COLUMNS):
            columns = small[left:left + COLUMNS]
            correlation = rows @ columns.T
            found = np.argwhere(correlation > ALIKE) + [top, left]
            one, other = found.T
            apart = group[one] != group[other]
            links.append(found[apart])
            if sum(map(len, links)) > MANY_LINKS:
                group = _joined(group, links)
                links = []
    return _joined(group, links)


# %% [markdown]
# Six different slices, and two of them again in another window: these two find their originals. Slices of nothing but one grey are not called alike.

# %%
unlike = np.stack([np.roll(image, 9*i, 1) for i, image in enumerate(toys)])
windowed_otherwise = (unlike[:2]*.8 + 20).astype(np.uint8)
test_eq(near_duplicates(np.concatenate([unlike, windowed_otherwise])), [0, 1, 2, 3, 4, 5, 0, 1])
test_eq(near_duplicates(np.zeros((3, 8, 8), np.uint8)), [0, 1, 2])
test_eq(len(near_duplicates(toys[:0])), 0)


# %% [markdown]
# ## Folds
#
# Folds for cross-validation must keep each group whole. Two more things are desirable. Each rare class should be in as many folds as
# possible: with six positive images of a class, a random split easily leaves a fold with none, and its score says nothing about the
# class. And folds should be of about one size.
#
# A greedy scheme does it, *iterative stratification* ([Sechidis et al. 2011](https://doi.org/10.1007/978-3-642-23808-6_10)), here over
# groups instead of images: take the class with the fewest positive images not yet placed; hand out its groups, largest first, each to the
# fold that still lacks most of that class; repeat. What has no class at all is placed last, where there is room.

# %%
#| export
class _Folds:
    "Groups on their way into k folds: what each group holds, and what each fold still lacks."
    def __init__(self, counts: np.ndarray, k: int, seed: int):
        self.counts = counts  # [groups, C + 2]: positive images of each class, labelled images, images
        share = counts.sum(0)/k
        self.lack = np.tile(share, (k, 1))
        self.fold = np.full(len(counts), -1)
        self.tie = np.random.default_rng(seed).random((len(counts), k))

    def left(self) -> np.ndarray:
        "[C + 2]: what the groups without a fold hold."
        unplaced = self.fold < 0
        return self.counts[unplaced].sum(0)

    def place(self, column: int):
        "Hand out the groups left that hold some of a column, largest first, to the folds that lack it most."
        held = self.counts[:, column]
        unplaced = self.fold < 0
        groups = np.flatnonzero(unplaced & (held > 0))
        tie = self.tie[groups, 0]
        largest_first = np.lexsort((tie, -held[groups]))
        for group in groups[largest_first]:
            best = self.most_lacking(column, self.tie[group])
            self.fold[group] = best
            self.lack[best] -= self.counts[group]

    def most_lacking(self, column: int, tie: np.ndarray) -> int:
        "The fold that lacks most of a column; of equal ones by labelled images, then by images, then by `tie` [k]."
        most_first = -self.lack
        images = most_first[:, -1]
        labelled = most_first[:, -2]
        of_column = most_first[:, column]
        last_key_first = (tie, images, labelled, of_column)
        return np.lexsort(last_key_first)[0]


# %%
# the positives of one class in three groups
folds = _Folds(np.array([[2, 2, 2], [1, 1, 1], [1, 1, 1]]), 2, 0)
folds.place(0)
print("folds of groups with 2, 1 and 1 positive images:", folds.fold)
assert folds.fold[0] != folds.fold[1] == folds.fold[2]


# %%
#| export
def _rarest(left: np.ndarray) -> int:
    "The class with the fewest images left, of those that have any; the column of labelled images comes last."
    with_images = np.flatnonzero(left)
    labelled = len(left) - 1
    classes = with_images[with_images != labelled]
    if not len(classes): return labelled
    fewest = left[classes].argmin()
    return classes[fewest]


# %% [markdown]
# Class 3, counted from 0, is the count of all labelled images: it is taken only when no class has images left. Of the others the rarest comes first.

# %%
test_eq(_rarest(np.array([3, 0, 2, 1])), 2)  # images left of three classes, and labelled images
test_eq(_rarest(np.array([0, 0, 0, 1])), 3)


# %%
#| export
def grouped_folds(
    slices: SliceSet,
    k: int = 5, # number of folds
    seed: int = 0, # breaks ties
    at_most: bool = False, # where there are fewer groups, make as many folds as groups, with a warning
) -> np.ndarray: # int64 [N]: the fold, 0…k-1, of each image
    "The fold, int64 [N] in 0…k-1, of each slice: groups whole, rare classes spread, sizes even."
    group, member = np.unique(slices.groups, return_inverse=True)
    if at_most and 2 <= len(group) < k:
        warnings.warn(f"{k} folds of {len(group)} groups of slices: {len(group)} folds are made, "
                      "one for each group (a patient, or near duplicates)")
        k = len(group)
    if not 2 <= k <= len(group):
        plural = "s"*(len(group) != 1)
        groups = f"{len(group)} group{plural} of slices"
        raise InputError(f"{k} folds of {groups}: at least 2 folds, "
                         "and a group (a patient, or near duplicates) for each")
    counts = np.zeros((len(group), len(slices.classes) + 2))
    images = np.ones(len(slices))
    np.add.at(counts, member, np.column_stack([slices.present, slices.labelled, images]))
    folds = _Folds(counts, k, seed)
    while (left := folds.left()[:-1]).any():
        rarest = _rarest(left)
        folds.place(rarest)
    folds.place(-1)
    return folds.fold[member]


# %% [markdown]
# More folds than groups cannot be. `at_most=True` then makes as many as there are, and says so.
#
# How much better than chance? Take 300 slices of 100 patients and 20 classes, some of them in only a handful of patients, and count in how
# many of the five folds each class can be judged at all.

# %%
rng = np.random.default_rng(0)
patient = np.sort(rng.integers(0, 100, 300))
has = rng.random((100, 20)) < np.geomspace(.03, .5, 20)
masks = np.zeros((300, 4, 5), np.uint8)
masks.reshape(300, 20)[:] = np.arange(1, 21)*(has[patient] & (rng.random((300, 20)) < .7))
many = SliceSet(masks, masks, "all", groups=patient)

def spread(fold):
    "In how many folds each class is found."
    return np.array([len(np.unique(fold[many.present[:, c]])) for c in range(20)])

fold = grouped_folds(many)
possible = np.array([min(5, len(np.unique(patient[many.present[:, c]]))) for c in range(20)])
at_random = [np.random.default_rng(s).integers(0, 5, 100)[patient] for s in range(50)]
chance = np.mean([spread(f) for f in at_random], 0)
print("images in each fold:", np.bincount(fold))
for g in np.unique(patient):
    test_eq(len(np.unique(fold[patient == g])), 1)

# %%
#| fig-alt: "Folds in which a class can be judged: grouped folds reach what is possible, random ones less"
fig, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
order = np.argsort(many.present.sum(0), kind="stable")
ax.bar(range(20), possible[order], color=STATE_COLOURS["unknown"], label="possible")
ax.plot(range(20), spread(fold)[order], "o", color=STATE_COLOURS["present"], label="grouped_folds")
ax.plot(range(20), chance[order], "x", color="#c0504d", label="groups at random (mean of 50)")
ax.set_xticks(range(20), many.present.sum(0)[order])
ax.set(xlabel="positive images of the class", ylabel="folds with the class", ylim=(0, 5.4))
ax.set_title("in how many of five folds a class can be judged", fontsize=10)
ax.legend(fontsize=8, loc="lower right")
plt.show()


# %% [markdown]
# ## Fewer labels
#
# How well does a method do with 50 annotated slices? With 200? `select_labelled` keeps the annotation of some slices and erases that of
# the others, which stay as unlabelled ones. It takes whole groups in a random order, so that "50 slices" means a few patients, as in life.
# Only the last group may be cut. For one seed the smaller choice is part of the larger, which makes curves over the number of labels
# smooth.

# %%
#| export
def select_labelled(
    slices: SliceSet,
    n: int|None, # how many annotated slices to keep; `None`: all
    seed: int = 0,
) -> SliceSet:
    "Keep the annotation of `n` labelled slices, chosen by groups; the others become unlabelled."
    if n is None:
        return slices
    labelled = np.flatnonzero(slices.labelled)
    if not 1 <= n <= len(labelled):
        raise InputError(f"cannot keep {n} labelled slices of {len(labelled)}; choose 1 to {len(labelled)}")
    group, member = np.unique(slices.groups, return_inverse=True)
    random = np.random.default_rng(seed)
    rank = random.permutation(len(group))[member]
    order = np.argsort(rank[labelled], kind="stable")
    chosen = labelled[order[:n]]
    keep = np.isin(np.arange(len(slices)), chosen)
    masks = kept_where(slices.masks, keep)
    known = slices.known & keep[:, None]
    return replace(slices, masks=masks, known=known)


# %%
few, fewer = select_labelled(many, 60), select_labelled(many, 20)
for kept in (few, fewer):
    patients = np.unique(patient[kept.labelled])
    print(kept.labelled.sum(), "labelled slices, of", len(patients), "patients")
assert not (fewer.labelled & ~few.labelled).any()
cut = [g for g in np.unique(patient) if 0 < few.labelled[patient == g].mean() < 1]
assert len(cut) <= 1
test_eq(few.masks[~few.labelled].max(), 0)
test_fail(lambda: select_labelled(many, 301), contains="choose 1 to 300")
