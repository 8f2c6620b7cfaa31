# %% [markdown]
# # Into a store
#
# > Imported slices as a store, without a challenge folder on the way.
#
# - skip_showdoc: true

# %%
#| default_exp io.into_store

# %% [markdown]
# An import can write a [store](../data/74_store.ipynb) in place of PNG files and a table: `ctseg import nifti scans my_data.zarr --store`. Its
# slices lie in files already, so nothing here grows with their number but the index. The store is the one that `ctseg store` would make of the folder.

# %%
#| export
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ctseg.core.atomic import refuse_existing
from ctseg.core.errors import InputError
from ctseg.core.json_files import write_json
from ctseg.data.slices import SliceSet
from ctseg.data.store import import_zarr, store_place, write_store
from ctseg.io.imported import slicing_of
from ctseg.io.neighbours import neighbour_mm, places_of

# %%
#| hide
import tempfile
from pathlib import Path

import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.data.sources import store_challenge
from ctseg.data.store import read_store, store_notes
from ctseg.io.cases import Case
from ctseg.io.cutting import Work
from ctseg.io.folders import write_volumes
from ctseg.io.slicing import Slicing
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans


# %% [markdown]
# Before hours of work it is clear whether the store can be written at all.

# %%
#| export
def check_store_place(out: str|Path):
    "`InputError` where an import cannot write a store."
    import_zarr()
    place = store_place(out)
    if isinstance(place, str):
        raise InputError(f"{place}: an import writes its store into a folder; copy it there afterwards")
    refuse_existing(place)


# %%
test_fail(lambda: check_store_place("s3://bucket/thorax"), contains="into a folder")
test_fail(lambda: check_store_place(tempfile.gettempdir()), contains="exists already")


# %% [markdown]
# Where slices lie in their volumes is in the index. So the index is written first, and what a store keeps of it is read from there. It is kept
# in the store as well, with the names of the classes, since predictions are put back onto their volumes by it: `ctseg export nifti my_data.zarr
# out --masks labels.zarr` takes one volume into memory at a time.

# %%
#| export
def _notes_of(index: dict, side: int, folder: Path, splits: Iterable[str]) -> dict[str, Any]:
    "What a store keeps of how its slices were cut, from the index in `folder`; `splits`: whose neighbours it knows."
    distances = {split: neighbour_mm(folder, split) for split in splits}
    return {"patients": True, "slicing": slicing_of(index, side), "neighbour_mm": distances}


# %%
entry = {"affine": np.eye(4).tolist(), "orientation": "SPL", "shape": [4, 4, 3], "scaled": [4, 4]}
line = {"volume": "v000", "slice": 1, "window": [40, 400], "corner": [0, 0]}
print(slicing_of({"volumes": {"v000": entry}, "images": {"train": {"0.png": line}}}, 4))


# %%
#| export
def write_stored(
    out: Path, # the store, a new folder
    splits: dict[str, SliceSet],
    index: dict, # what `index.json` holds
):
    "Write imported slices as a store, whole or not at all."
    side = next(iter(splits.values())).images.shape[1]
    names = {split: list(slices.names) for split, slices in splits.items()}
    with tempfile.TemporaryDirectory() as d:
        path = Path(d)/"index.json"
        write_json(index, path, indent=None)
        called = path.with_name("class_names.json")
        next(iter(splits.values())).classes.to_json(called)
        places = places_of(path.parent, names)
        notes = _notes_of(index, side, path.parent, places)
        write_store(splits, out, notes, places, [path, called])


# %%
scans = torso_scans()
def cases(): return [Case(name, lambda v=v: v, patient=n) for n, (name, v) in enumerate(scans.items())]
with tempfile.TemporaryDirectory() as d:
    for name, store in (("folder", False), ("direct.zarr", True)):
        facts = write_volumes(cases(), f"{d}/{name}", TORSO_CLASSES, Slicing(every=4), work=Work(store=store))
    stored = read_store(f"{d}/direct.zarr")
    print(stored)
    print(store_notes(f"{d}/direct.zarr"))
    test_eq(stored.fingerprint(), store_challenge(f"{d}/folder", f"{d}/s.zarr")["train"].fingerprint())
