# %% [markdown]
# # Sources
#
# > Slices from wherever they lie: a challenge folder, in memory, or a store.
#
# - skip_showdoc: true

# %%
#| default_exp data.sources

# %% [markdown]
# Commands take a challenge folder or a [store](74_store.ipynb), and treat both alike.

# %%
#| export
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.core.atomic import refuse_existing
from ctseg.core.errors import InputError
from ctseg.core.paths import refuse_inside
from ctseg.data.challenge import check_challenge, open_challenge, read_challenge, slice_facts
from ctseg.data.images import open_images
from ctseg.data.lazy import LazyPixels
from ctseg.data.slices import SliceSet
from ctseg.data.store import (
    check_stored, is_store, read_store, store_notes, store_place, store_splits, write_store,
)

# %%
#| hide
import os
import tempfile
from pathlib import Path

from fastcore.test import test_eq, test_fail

from ctseg.data.challenge import write_challenge
from ctseg.data.toys import toy_set


# %%
#| export
def _check_annotated(place, annotated: str):
    "`InputError` for a choice that a store has already made."
    if annotated == "json": return
    problem = f"annotated={annotated!r} was decided when the store was made"
    raise InputError(f"{place}: {problem}; make it again with `ctseg store DATA --annotated {annotated}`")

def read_slices(
    place: str|Path, # a challenge folder, or a store
    split: str = "train", # train or test
    annotated: str = "json", # of a folder, see `read_challenge`
) -> SliceSet:
    "One split: of a folder in memory, of a store with pixels that are read when they are asked for."
    if not is_store(place):
        return read_challenge(place, split, annotated)
    _check_annotated(place, annotated)
    return read_store(place, split)


# %% [markdown]
# What a store or a folder holds beside the slices to learn from:

# %%
#| export
def images_at(
    place: str|Path, # a folder of PNG images, or a store
) -> tuple[list[str], LazyPixels, SliceSet|None]: # names, images, and what else a store says of them
    "Images to predict: those of a folder in numeric order, or a store's test slices (training slices without a test)."
    if not is_store(place): return *open_images(place), None
    slices = read_store(place, "test" if has_test(place) else "train")
    return list(slices.names), slices.images, slices

def has_test(place: str|Path) -> bool:
    "Whether there is a test split."
    if is_store(place): return "test" in store_splits(place)
    return os.path.lexists(Path(place)/"test-images")

def knows_patients(place: str|Path) -> bool:
    "Whether the groups of the slices are patients, and not near-duplicates."
    if is_store(place): return bool(store_notes(place).get("patients"))
    return os.path.lexists(Path(place)/"patients.json")


# %% [markdown]
# What a command writes never goes among what it reads:

# %%
#| export
def refuse_among_slices(out: str|Path, place: SliceSet|str|Path|None):
    "`InputError` for an output in a store, or among the images of a challenge folder; beside them it may lie."
    if not isinstance(place, (str, Path)): return
    images = [Path(place)/f"{split}-images" for split in ("train", "test")]
    refuse_inside(out, [place] if is_store(place) else images)


# %% [markdown]
# A store is made from a folder without holding it in memory: images are read from their files and masks from a [file](52_spooled.ipynb) that goes
# at the end. A folder without a test split gives a store without one.

# %%
#| export
def store_challenge(
    folder: str|Path, # a challenge folder
    out: str|Path, # the store to write
    annotated: str = "json", # see `read_challenge`
    notes: dict[str, Any]|None = None, # kept beside the slices
    scratch: str|Path|None = None, # where temporary masks lie; `None`: where temporary files do
    arrays: dict[str, dict[str, np.ndarray]]|None = None, # see `write_store`
    beside: Sequence[Path] = (), # see `write_store`
) -> dict[str, SliceSet]: # the splits of the store
    "Write a challenge folder as a store, in the memory of some megabytes and of the index."
    splits = ["train", "test"] if has_test(folder) else ["train"]
    place = store_place(out)
    if isinstance(place, Path):
        refuse_existing(place)
        refuse_among_slices(place, folder)
    with tempfile.TemporaryDirectory(dir=scratch) as spool:
        slices = {split: open_challenge(folder, split, annotated, spool=Path(spool)) for split in splits}
        write_store(slices, out, {"patients": knows_patients(folder)} | (notes or {}), arrays, beside)
    return {split: read_store(out, split) for split in splits}


# %%
os.environ["CTSEG_CACHE"] = tempfile.mkdtemp()
with tempfile.TemporaryDirectory() as d:
    toys, truth = toy_set(20, 8)
    write_challenge(toys, f"{d}/data")
    stored = store_challenge(f"{d}/data", f"{d}/toys.zarr")
    print(stored["train"])
    for place in ("data", "toys.zarr"):
        slices = read_slices(f"{d}/{place}")
        test_eq((slices.fingerprint(), has_test(f"{d}/{place}")), (toys.fingerprint(), False))
    test_fail(lambda: read_slices(f"{d}/toys.zarr", annotated="all"), contains="was decided")


# %% [markdown]
# ## Checking
#
# To check a store is to read all of it once, a block at a time.

# %%
#| export
def check_slices(
    place: str|Path, # a challenge folder, or a store
    annotated: str = "json", # of a folder, see `read_challenge`
) -> dict: # facts: classes, and for each split what is in it
    "Read everything: what there is, as `check_challenge` tells; `InputError` for what is wrong."
    if not is_store(place):
        return check_challenge(place, annotated)
    _check_annotated(place, annotated)
    facts: dict[str, Any] = {}
    for split in store_splits(place):
        slices = read_store(place, split)
        check_stored(slices, f"{store_place(place)}, {split}")
        facts.setdefault("classes", len(slices.classes))
        facts[split] = slice_facts(slices)
    return facts


# %%
with tempfile.TemporaryDirectory() as d:
    write_challenge(toys, f"{d}/data")
    store_challenge(f"{d}/data", f"{d}/toys.zarr")
    test_eq(check_slices(f"{d}/toys.zarr"), check_slices(f"{d}/data"))
    for name, value in check_slices(f"{d}/toys.zarr")["train"].items(): print(f"{name:20}", value)
