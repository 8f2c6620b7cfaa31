# %% [markdown]
# # How a folder was imported
#
# > Window, orientation and pixel size of a challenge folder's images, told from its index, so that new scans can be cut alike.

# %%
#| default_exp io.imported

# %%
#| export
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json
from ctseg.data.images import image_paths, read_pngs
from ctseg.data.store import is_store, store_notes
from ctseg.io.geometry import slice_axes
from ctseg.io.index import read_index
from ctseg.io.slicing import Slicing

# %%
#| hide
import os
import shutil
import tempfile

from fastcore.test import test_eq, test_fail

from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

# %% [markdown]
# A network knows the grey values and sizes of the images it was trained on. If a new scan is shown through another window, or at another
# scale, nothing fails, but the result is poor. So a run keeps how its images were made. This page reads it from the `index.json` that
# every import leaves. We import the same three toy volumes in five ways:

# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
cuts = {
    "plain": Slicing(window="lung"),
    "fitted": Slicing(size=64, spacing="fit"),
    "in mm": Slicing(spacing=4., window=(30., 300.)),
    "cropped": Slicing(size=70),
    "windows at random": Slicing(window="random", every=5),
}
for name, slicing in cuts.items():
    cases = [Case(n, lambda v=v: v) for n, v in torso_scans().items()]
    write_volumes(cases, work/name, TORSO_CLASSES, slicing)
    print(f"{name:18}", len(list((work/name/"train-images").iterdir())), "images")


# %%
#| export
class _SliceGrid(NamedTuple):
    "The slices of a volume; each as (height, width)."
    size: tuple[int, ...] # pixels as they were scanned
    scaled: tuple[int, ...] # pixels after resampling
    mm: np.ndarray # float [2]: of a resampled pixel

def _slice_grid(entry: dict) -> _SliceGrid:
    "The slices of a volume of the index."
    affine = np.array(entry["affine"])
    axes, _ = slice_axes(affine, entry["orientation"])
    in_plane = axes[1:]
    size = tuple(entry["shape"][axis] for axis in in_plane)
    scaled = tuple(entry["scaled"])
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    mm = voxel[in_plane]*size/scaled
    return _SliceGrid(size, scaled, mm)


# %%
index = read_json(work/"fitted"/"index.json")
for name, entry in index["volumes"].items():
    grid = _slice_grid(entry)
    print(f"{name}: {grid.size} pixels, {grid.scaled} after resampling, of {grid.mm.round(2)} mm")


# %%
#| export
def _spacing_of(entries: list[dict], side: int) -> float | str | None:
    "How the slices were resampled, as `Slicing.spacing` says it."
    grids = [_slice_grid(entry) for entry in entries]
    if all(grid.size == grid.scaled for grid in grids): return None
    if all(max(grid.scaled) == side for grid in grids): return "fit"
    mm = np.median([grid.mm for grid in grids])
    return round(float(mm), 4)

def _size_of(entries: list[dict], spacing, side: int) -> int | None:
    "The side of the images where slices were cropped to it or fitted into it, as `Slicing.size` says it."
    cropped = any(max(entry["scaled"]) > side for entry in entries)
    return side if cropped or spacing == "fit" else None


# %%
entries = list(index["volumes"].values())
print("spacing:", _spacing_of(entries, 64), "· size:", _size_of(entries, "fit", 64))


# %%
#| export
def _window_of(lines: dict[str, dict]) -> list[float] | str:
    "The window of all images of a split, or `random` where they differ."
    windows = {tuple(line["window"]) for line in lines.values()}
    if len(windows) > 1: return "random"
    (window,) = windows
    return [float(value) for value in window]


# %%
print(_window_of(index["images"]["train"]))


# %%
#| export
def indexed_split(index: dict) -> str:
    "The training split of an index, or the test where it has nothing else."
    splits = [name for name, lines in index["images"].items() if lines]
    return "train" if "train" in splits else splits[0]


# %% [markdown]
# These together are the fields of `Slicing`:

# %%
#| export
def slicing_of(
    index: dict, # the content of an `index.json`
    side: int, # of its images
) -> dict: # orientation, window, size and spacing, as the fields of `Slicing`
    "How the images of an index were cut from their volumes."
    entries = list(index["volumes"].values())
    spacing = _spacing_of(entries, side)
    return {
        "orientation": entries[0]["orientation"],
        "window": _window_of(index["images"][indexed_split(index)]),
        "size": _size_of(entries, spacing, side),
        "spacing": spacing,
    }


# %%
print(slicing_of(index, 64))


# %%
#| export
def imported_slicing(
    folder: str | Path, # a challenge folder, or a store of one
) -> dict | None: # orientation, window, size and spacing, as the fields of `Slicing`; None: no volumes
    "How the images of a folder were cut from volumes. A window that differs from slice to slice is `random`."
    if is_store(folder): return store_notes(folder).get("slicing")
    path = Path(folder)/"index.json"
    if not path.exists(): return None
    try:
        index = read_json(path)
        first = image_paths(Path(folder)/f"{indexed_split(index)}-images")[:1]
        return slicing_of(index, read_pngs(first).shape[1])
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise InputError(f"{path}: not an index of volumes; import the volumes again") from None


# %%
for name in cuts: print(f"{name:18}", imported_slicing(work/name))


# %% [markdown]
# Folders that are to become one need the pixel size of every image.

# %%
#| export
def pixel_spacings(
    folder: str | Path, # a challenge folder
    split: str, # train or test
) -> np.ndarray | None: # float [N,2]: height and width of each image's pixels in mm; None: nobody knows
    "The size of the pixels of a split's images in mm, in the order of the images; `None` without an index."
    if not (Path(folder)/"index.json").exists(): return None
    volumes, lines = read_index(folder, split)
    sizes = {id: _slice_grid(entry).mm for id, entry in volumes.items()}
    return np.array([sizes[line["volume"]] for line in lines.values()])


# %%
for name in ("fitted", "in mm"):
    sizes = pixel_spacings(work/name, "train").round(2)
    print(f"{name:18}", np.unique(sizes, axis=0).tolist())
test_eq(pixel_spacings(work, "train"), None)

# %%
shutil.copytree(work/"plain", work/"damaged")
(work/"damaged"/"index.json").write_text('{"volumes": 1}')
test_fail(lambda: imported_slicing(work/"damaged"), contains="not an index of volumes")
test_eq(imported_slicing(work), None)
shutil.rmtree(work)
