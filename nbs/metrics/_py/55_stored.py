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
from ctseg.core.files import InputError
from ctseg.data.images import size_text
from ctseg.data.lazy import LazyPixels
from ctseg.data.mask_csv import check_names, read_masks
from ctseg.data.mask_rows import read_header
from ctseg.data.slices import SliceSet
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
class Sums:
    "Sums over the slices that have been scored so far, and over those of each group."
    def __init__(self,
        classes: ClassMap,
        groups: np.ndarray, # [N] of all slices
    ):
        self.classes, self.images = classes, 0
        number, self.member = np.unique(groups, return_inverse=True)
        self.sums = np.zeros((2, len(number), len(classes))) # of the examined cells: Dice, and how many
        self.whole = np.zeros((2, len(classes))) # the same of all cells
        self.cells = 0 # examined
        self.of_class: dict[str, np.ndarray] = {}

    def add(self, counts: Overlaps, known: np.ndarray):
        "The next slices: their overlaps, and what was examined on them, bool [n,C]."
        tally, table = class_tally(counts, known), counts.dice()
        self.of_class = {name: self.of_class.get(name, 0) + sums for name, sums in tally.items()}
        self.whole += [np.nansum(table, 0), (~np.isnan(table)).sum(0)]
        scored = np.where(known, table, np.nan)
        member = self.member[self.images:self.images + len(known)]
        numbers = np.stack([np.nan_to_num(scored), ~np.isnan(scored)])
        here, member = np.unique(member, return_inverse=True)
        self.sums[:, here] += summed_by(member, len(here), numbers)
        self.images += len(known)
        self.cells += int(known.sum())


# %%
#| export
class Tally(Sums):
    "What these sums say."
    def facts(self, reps: int = 2000, level: float = .95) -> dict:
        "The `table` and the `facts` of `evaluate_files`."
        rows = rows_of(self.of_class, self.classes)
        scores = scores_of_sums(*self.sums[:, None], reps, seed=0)
        score = mean_and_interval(scores, level) | dict(groups=self.sums.shape[1], level=level)
        partial = self.cells < self.images*len(self.classes)
        dice, n = self.whole
        of_all = np.divide(dice, n, out=np.full(len(n), np.nan), where=n > 0)
        bounds = (float(nan_mean(of_all, 0)), self.cells) if partial else ()
        scored = int((self.of_class["scored"] > 0).sum())
        return dict(table=rows, facts=told_facts(score, rows, self.images, scored, *bounds))


# %% [markdown]
# ## Two places
#
# The prediction is a store that `ctseg predict` has written, or a submission. It belongs to the split that has its names.

# %%
#| export
def _predictions(place: str|Path, truth: SliceSet) -> tuple[list[str], np.ndarray|LazyPixels]:
    "The names and label maps of a store, or of a submission for the slices of `truth`."
    if not is_store(place):
        size = truth.images.shape[1:]
        return read_masks(place, size=size, classes=truth.classes, cache=False)
    stored = read_store(place, store_splits(place)[0])
    if stored.classes.names != truth.classes.names:
        raise InputError(f"{place}: label maps of other classes than the truth's; take a run of its classes")
    return list(stored.names), stored.masks

def _names_of(place: str|Path) -> list[str]:
    "The names of the slices that were predicted."
    if is_store(place):
        return list(read_store(place, store_splits(place)[0]).names)
    return read_header(Path(place))

def split_of(truth: str|Path, names: list[str]) -> str:
    "The split of a store that has these slices; else the one that an error should speak of."
    splits = store_splits(truth)
    equal = [split for split in splits if list(read_store(truth, split).names) == names]
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
