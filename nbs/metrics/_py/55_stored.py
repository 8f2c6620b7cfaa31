# %% [markdown]
# # Evaluating stores
#
# > A truth and label maps that lie in stores, scored in the memory of a block.
#
# - skip_showdoc: true

# %%
#| default_exp metrics.stored

# %% [markdown]
# A table of the Dice of 400,000 slices and 54 structures is small beside their masks, but the way to it is not: several arrays of integers and
# floats of that shape. All that [`evaluate`](50_evaluate.ipynb) tells are sums over slices, or over the slices of a patient. So a
# [store](../data/74_store.ipynb) is scored a block at a time, and only sums are kept.

# %%
#| export
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.images import size_text
from ctseg.data.lazy import LazyPixels
from ctseg.data.mask_csv import check_names
from ctseg.data.mask_rows import read_image_names
from ctseg.data.slices import SliceSet
from ctseg.data.spooled import spooled_masks
from ctseg.data.store import is_store, read_store, store_splits
from ctseg.metrics.bootstrap import mean_and_interval, scores_of_sums, summed_by
from ctseg.metrics.challenge import Overlaps, class_tally, nan_mean, overlaps, rows_of
from ctseg.metrics.evaluate import told_facts

# %%
#| hide
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from fastcore.test import test_close, test_eq

from ctseg.data.store import write_store
from ctseg.data.toys import toy_set
from ctseg.metrics.evaluate import evaluate


# %% [markdown]
# ## Sums

# %%
#| export
class RunningScores:
    "Sums over the slices that have been scored so far, and over those of each group."
    def __init__(self,
        classes: ClassMap,
        groups: np.ndarray, # [N] of all slices
    ):
        self.classes = classes
        self.images = 0
        number, self.member = np.unique(groups, return_inverse=True)
        self.sums = np.zeros((2, len(number), len(classes))) # of the examined cells: Dice, and how many
        self.whole = np.zeros((2, len(classes))) # the same of all cells
        self.cells = 0 # examined
        self.of_class: dict[str, np.ndarray] = {}

    def add(self, counts: Overlaps, known: np.ndarray):
        "The next slices: their overlaps, and what was examined on them, bool [n,C]."
        for name, sums in class_tally(counts, known).items():
            self.of_class[name] = self.of_class.get(name, 0) + sums
        table = counts.dice()
        how_many = (~np.isnan(table)).sum(0)
        self.whole += [np.nansum(table, 0), how_many]
        scored = np.where(known, table, np.nan)
        numbers = np.stack([np.nan_to_num(scored), ~np.isnan(scored)])
        end = self.images + len(known)
        of_images = self.member[self.images:end]
        groups, member = np.unique(of_images, return_inverse=True)
        self.sums[:, groups] += summed_by(member, len(groups), numbers)
        self.images = end
        self.cells += int(known.sum())


# %%
#| export
class Tally(RunningScores):
    "What these sums say."
    def facts(self, reps: int = 2000) -> dict:
        "The `table` and the `facts` of `evaluate_files`."
        rows = rows_of(self.of_class, self.classes)
        sums, counts = self.sums[:, None]  # of one run
        scores = scores_of_sums(sums, counts, reps, seed=0)
        level = .95
        score = mean_and_interval(scores, level)
        score |= dict(groups=self.sums.shape[1], level=level)
        scored = int((self.of_class["scored"] > 0).sum())
        partial = self.cells < self.images*len(self.classes)
        bounds = (self._mean_of_all(), self.cells) if partial else ()
        facts = told_facts(score, rows, self.images, scored, *bounds)
        return dict(table=rows, facts=facts)

    def _mean_of_all(self) -> float:
        "The score where all cells count, examined or not."
        dice, n = self.whole
        nothing = np.full(len(n), np.nan)
        of_class = np.divide(dice, n, out=nothing, where=n > 0)
        return float(nan_mean(of_class, 0))


# %% [markdown]
# ## Two places
#
# The prediction is a store that `ctseg predict` has written, or a submission. It belongs to the split that has its names.

# %%
#| export
def _first_split(place: str|Path) -> SliceSet:
    "The first split of a store, which is the only one of a store of label maps."
    first = store_splits(place)[0]
    return read_store(place, first)

def _predictions(place: str|Path, truth: SliceSet) -> tuple[list[str], np.ndarray|LazyPixels]:
    "The names and label maps of a store, or of a submission for the slices of `truth`."
    if not is_store(place):
        size = truth.image_shape
        return spooled_masks(place, size=size, classes=truth.classes)
    stored = _first_split(place)
    if stored.classes.names != truth.classes.names:
        raise InputError(f"{place}: label maps of other classes than the truth's; take a run of its classes")
    return list(stored.names), stored.masks


# %%
#| export
def _names_of(place: str|Path) -> list[str]:
    "The names of the slices that were predicted."
    if is_store(place):
        return list(_first_split(place).names)
    return read_image_names(Path(place))

def split_of(truth: str|Path, names: list[str]) -> str:
    "The split of a store that has these slices; else the one that an error should speak of."
    splits = store_splits(truth)
    equal = []
    for split in splits:
        stored = read_store(truth, split)
        if list(stored.names) == names: equal.append(split)
    return equal[0] if equal else splits[-1]


# %%
#| export
def evaluate_stored(
    truth: str|Path, # a store
    prediction: str|Path, # a store of label maps, or a submission
    annotated: str|None = None, # "all": score every class; `None`: what the store says was examined
    block: int = 512, # slices at a time
) -> dict: # "table" and "facts" of `evaluate_files`
    "Score label maps against a store, some slices at a time."
    if annotated not in (None, "all"):
        problem = f"annotated={annotated!r}: a store says itself what was examined"
        raise InputError(f"{problem}; leave it out, or give all")
    s = read_store(truth, split_of(truth, _names_of(prediction)))
    names, labels = _predictions(prediction, s)
    check_names(names, s.names, prediction)
    if labels.shape != s.masks.shape:
        expected = f"{size_text(s.masks)} as the truth"
        raise InputError(f"{prediction}: label maps of {size_text(labels)} pixels, expected {expected}")
    tally = Tally(s.classes, s.groups)
    for first in range(0, len(s), block):
        part = slice(first, first + block)
        counts = overlaps(labels[part], s.masks[part], len(s.classes), s.classes.unions)
        tally.add(counts, s.known[part] | (annotated == "all"))
    return tally.facts()


# %% [markdown]
# Forty slices, ten of them annotated in part, and label maps that are shifted by a pixel:

# %%
toys, truth = toy_set(40, 10)
shifted = np.roll(truth, 1, 2)
with tempfile.TemporaryDirectory() as d:
    write_store(toys, Path(d)/"truth")
    write_store(replace(toys, masks=shifted, known=np.ones_like(toys.known)), Path(d)/"labels")
    result = evaluate_stored(Path(d)/"truth", Path(d)/"labels", block=7)
whole = evaluate(toys.masks, shifted, toys.classes, toys.known, toys.groups)
for name in ("images", "missed", "silent", "cells_examined"): test_eq(result["facts"][name], whole[name])
for name in ("dice", "interval", "dice_pessimistic"): test_close(result["facts"][name], whole[name], 1e-9)
print({name: value for name, value in result["facts"].items() if name != "per_class"})
