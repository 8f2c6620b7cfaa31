# %% [markdown]
# # Neighbours
#
# > Which slices of a volume lie beside each other, told from the index of an import.
#
# - skip_showdoc: true

# %%
#| default_exp io.neighbours

# %% [markdown]
# A network with `context=1` sees each slice [with the one below and the one above](../data/09_stacks.ipynb). An imported folder knows them: its
# `index.json` says of each image from which volume it was cut, and the how manieth slice it is. All images of a split are looked through, annotated or not.

# %%
#| export
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctseg.core.errors import InputError
from ctseg.data.images import image_paths
from ctseg.data.slices import SliceSet, with_context, with_stacks
from ctseg.data.stacks import Stacks, stacks_of
from ctseg.data.store import is_store, store_arrays, store_notes
from ctseg.io.geometry import slice_axes
from ctseg.io.index import read_index

# %%
#| hide
import shutil
import tempfile
from pathlib import Path

import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.data.challenge import read_challenge
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.slicing import Slicing
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

# %% [markdown]
# ## Places
#
# The place of a slice is its number, as long as the slices are evenly spaced. Where they are not, a **gap** counts as the slices that are missing in it,
# so that nobody is a neighbour across it. A gap is a step more than one and a half times as long as the steps before and after. Scans whose spacing changes
# on the way, say from 3 mm to 5 mm, have none.

# %%
#| export
WIDE = 1.5  # a step so many times as long as those beside it is a gap

def slice_places(
    affine: np.ndarray, # float [4,4]: voxel (i, j, k, 1) → mm
    orientation: str, # of the slicing
    shape: tuple[int, int, int], # of the volume
    positions: np.ndarray|None = None, # float [K,3]: mm of voxel (0, 0, k), if the spacing is uneven
) -> np.ndarray: # int64 [Z]
    "Where each slice lies, in steps from slice to slice, in the order of `as_slices`."
    axes, flips = slice_axes(affine, orientation)
    depth = shape[axes[0]]
    if positions is None or depth < 3 or axes[0] != 2:
        return np.arange(depth)
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    steps = np.abs(np.diff(np.asarray(positions) @ normal))
    before = np.r_[0, steps[:-1]]
    after = np.r_[steps[1:], 0]
    usual = np.maximum(before, after)
    wide = steps > WIDE*usual
    missing = np.round(steps/np.maximum(usual, 1e-9)).astype(int)
    places = np.r_[0, np.cumsum(np.where(wide, np.maximum(missing, 2), 1))]
    return places[-1] - places[::-1] if flips[0] else places


# %% [markdown]
# Steps of 3 mm, a gap of 9 mm, and then steps of 5 mm:

# %%
z = np.array([0, 3, 6, 15, 18, 23, 28.])
uneven = np.stack([0*z, 0*z, z], 1)
print(slice_places(np.eye(4), "SPL", (4, 4, 7), uneven))
test_eq(slice_places(np.eye(4), "IPL", (4, 4, 7), uneven), [0, 1, 2, 3, 6, 7, 8])
test_eq(slice_places(np.eye(4), "SPL", (4, 4, 7)), np.arange(7))


# %% [markdown]
# How far neighbours are apart differs from scan to scan. A run keeps what it has learnt from, so that scans of other slices can be told.

# %%
#| export
def step_mm(
    affine: np.ndarray, # float [4,4]: voxel (i, j, k, 1) → mm
    orientation: str, # of the slicing
    positions: np.ndarray|None = None, # float [K,3]: mm of voxel (0, 0, k), if the spacing is uneven
) -> float:
    "The usual distance of neighbouring slices, in mm."
    (along, down, across), _ = slice_axes(affine, orientation)
    normal = np.cross(affine[:3, down], affine[:3, across])
    normal = normal/np.linalg.norm(normal)
    if positions is None or len(positions) < 2:
        return float(abs(normal @ affine[:3, along]))
    steps = np.diff(np.asarray(positions) @ normal)
    return float(np.median(np.abs(steps)))


# %%
print(step_mm(np.diag([1., 2, 5, 1]), "SPL"), step_mm(np.diag([1., 2, 5, 1]), "RPS"))
test_eq(step_mm(np.eye(4), "SPL", uneven), 4)


# %% [markdown]
# ## From the index
#
# An image that the index does not know, and images that were drawn each through a window of its own, are refused: their neighbours would not be
# what they seem.

# %%
#| export
class SlicePlaces(NamedTuple):
    "Where N slices lie."
    volume: np.ndarray # int64 [N]: slices of one volume share a number
    place: np.ndarray # int64 [N], see `slice_places`
    corner: np.ndarray # int64 [N,2]: where the corner of the volume's slice is on each image

def _check_windows(lines: list[dict], path: Path):
    "`InputError` if slices of one volume were made through different windows."
    windows: dict[str, list[float]] = {}
    for line in lines:
        id, window = line["volume"], line["window"]
        if windows.setdefault(id, window) == window:
            continue
        raise InputError(f"{path}: the slices of volume {id} were made each through a window of its own, "
                         "so neighbours cannot be compared; import with a fixed window, or leave out context")


# %%
as_random = [{"volume": "v000", "window": [40, width]} for width in (400, 420)]
test_fail(lambda: _check_windows(as_random, Path("index.json")), contains="a window of its own")
_check_windows(as_random[:1]*2, Path("index.json"))


# %%
#| export
def _places_by_volume(volumes: dict[str, dict]) -> dict[str, np.ndarray]:
    "The places of all slices of each volume of an index."
    places = {}
    for id, entry in volumes.items():
        affine = np.array(entry["affine"], float)
        places[id] = slice_places(affine, entry["orientation"], entry["shape"], entry.get("positions"))
    return places


# %%
entry = {"affine": np.eye(4).tolist(), "orientation": "SPL", "shape": [4, 4, 3]}
test_eq(_places_by_volume({"v000": entry})["v000"], [0, 1, 2])


# %%
#| export
def index_places(
    folder: str|Path, # with an `index.json`
    split: str,
    names: list[str], # of the images
) -> SlicePlaces:
    "Where the images of a folder lie. `InputError` without an index, or where it does not tell."
    path = Path(folder)/"index.json"
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file, so which slices are neighbours is not known; "
                         "context needs volumes: a folder made by `ctseg import`, or a store of one")
    volumes, lines = read_index(folder, split)
    odd = next((name for name in names if name not in lines), None)
    if odd is not None:
        raise InputError(f"{path}: does not say where {odd} lies; context needs it of every image of {split}")
    ordered = [lines[name] for name in names]
    _check_windows(ordered, path)
    places, number = _places_by_volume(volumes), {id: n for n, id in enumerate(volumes)}
    rows = []
    for line in ordered:
        id = line["volume"]
        rows.append([number[id], places[id][line["slice"]], *line["corner"]])
    volume, place, *corner = np.array(rows, np.int64).reshape(-1, 4).T
    return SlicePlaces(volume, place, np.stack(corner, 1))


# %%
#| export
def neighbour_mm(
    place: str|Path, # a folder, or a store of one
    split: str = "train",
) -> list[float]|None: # None: nobody knows
    "The least and the largest usual distance of neighbouring slices, among the volumes of a split, in mm."
    if is_store(place):
        return store_notes(place).get("neighbour_mm", {}).get(split)
    if not (Path(place)/"index.json").exists():
        return None
    volumes, lines = read_index(place, split)
    steps = []
    for id in {line["volume"] for line in lines.values()}:
        entry = volumes[id]
        affine = np.array(entry["affine"], float)
        steps.append(step_mm(affine, entry["orientation"], entry.get("positions")))
    return [round(min(steps), 2), round(max(steps), 2)]


# %% [markdown]
# The torso of two scans, of which every slice was imported:

# %%
work = Path(tempfile.mkdtemp())
scans = list(torso_scans().values())[:2]
def cases(): return [Case(f"scan {n}", lambda v=v: v, n) for n, v in enumerate(scans)]
_ = write_volumes(cases(), work/"all", TORSO_CLASSES, Slicing(size=24, spacing="fit"))
slices = read_challenge(work/"all")
where = index_places(work/"all", "train", slices.names)
print(neighbour_mm(work/"all"), "mm")
print(f"{len(slices)} slices of {len(np.unique(where.volume))} volumes, places up to {where.place.max()}")
plain = tempfile.mkdtemp(dir=work)
test_fail(lambda: index_places(plain, "train", []), contains="context needs volumes")
test_fail(lambda: index_places(work/"all", "train", ["x.png"]), contains="where x.png lies")


# %% [markdown]
# ## Slices with their neighbours
#
# An import may leave out slices: every third one is kept, or twenty of each volume. Those that are left have no neighbours then. Where nobody has one,
# `context` is an error; where fewer than half have one, a warning.

# %%
#| export
def tell_of_missing(stacks: Stacks, where: str|Path):
    "`InputError` if no slice has a neighbour, a warning if few have one."
    if not len(stacks): return
    present = np.delete(stacks.rows >= 0, stacks.context, axis=1).any(1)
    problem = f"{where}: {int(present.sum())} of {len(stacks)} slices have a neighbour"
    remedy = "import all slices (without --every and --per-volume), or leave out context"
    if not present.any():
        raise InputError(f"{problem}; {remedy}")
    if present.mean() < .5:
        warnings.warn(f"{problem}, the others are seen alone; {remedy}", stacklevel=2)

def place_stacks(
    images, # uint8 [N,H,W], an array or lazy: all of a split
    places: SlicePlaces,
    context: int, # slices on each side
    where: str|Path, # for messages
) -> Stacks:
    "Each image with its neighbours."
    stacks = stacks_of(images, places.volume, places.place, context, places.corner)
    tell_of_missing(stacks, where)
    return stacks


# %%
stacks = place_stacks(slices.images, where, 1, "all")
print(f"{(stacks.rows < 0).any(1).sum()} slices are at an end")
_ = write_volumes(cases(), work/"every third", TORSO_CLASSES, Slicing(size=24, spacing="fit", every=3))
few = read_challenge(work/"every third")
far = index_places(work/"every third", "train", few.names)
test_fail(lambda: place_stacks(few.images, far, 1, "few"), contains="0 of")


# %% [markdown]
# A [store](../data/74_store.ipynb) keeps the places of its slices, if the folder that it was made of had an index.

# %%
#| export
def places_of(
    folder: str|Path, # with an `index.json`
    names: dict[str, list[str]], # of the images, by split
) -> dict[str, dict[str, np.ndarray]]:
    "Where slices lie in their volumes, for a store to keep: arrays [N] by field, by split; nothing where no index tells."
    found = {}
    for split, of_split in names.items():
        try:
            found[split] = index_places(folder, split, of_split)._asdict()
        except InputError:  # then the store does not know either, and says so
            continue
    return found


# %% [markdown]
# The names of a challenge folder's images are those of its files.

# %%
#| export
def places_by_split(folder: str|Path) -> dict[str, dict[str, np.ndarray]]:
    "`places_of` all images of a challenge folder."
    names = {}
    for split in ("train", "test"):
        images = Path(folder)/f"{split}-images"
        if images.is_dir():
            names[split] = [path.name for path in image_paths(images)]
    return places_of(folder, names)


# %%
places = places_by_split(work/"all")
print({split: {name: array.shape for name, array in arrays.items()} for split, arrays in places.items()})
test_eq(places_by_split(plain), {})


# %%
#| export
def stored_places(place: str|Path, split: str) -> SlicePlaces:
    "Where the slices of a store lie; `InputError` if it does not say."
    arrays = store_arrays(place, split, SlicePlaces._fields)
    if arrays: return SlicePlaces(**arrays)
    raise InputError(f"{place}: does not say which slices are neighbours; context needs volumes: "
                     "make the store again, of a folder that `ctseg import` made")


# %%
#| export
def with_neighbours(
    slices: SliceSet, # all of one split, as they were read
    place: Any, # where they were read from: a folder or a store; a `SliceSet`: they know their neighbours
    split: str,
    context: int, # slices on each side; 0: none are looked up
) -> SliceSet:
    "The same slices, with those beside them. `InputError` where these are not known."
    if not context or isinstance(place, SliceSet):
        return with_context(slices, context)
    if is_store(place):
        places = stored_places(place, split)
    else:
        places = index_places(place, split, list(slices.names))
    patients = np.stack([places.volume, slices.groups], 1)
    _, of_patient = np.unique(patients, axis=0, return_inverse=True)  # never those of another group
    places = places._replace(volume=of_patient.reshape(-1))
    return with_stacks(slices, place_stacks(slices.images, places, context, place))


# %%
seen = with_neighbours(slices, work/"all", "train", 1)
print(seen.stacks)
test_eq(seen[[5]].stacks[0], slices.images[[4, 5, 6]])
test_eq(with_neighbours(slices, work/"all", "train", 0).stacks, None)


# %% [markdown]
# For a prediction only a folder of images is given. Its index lies beside it, and its name says which split it is.

# %%
#| export
def place_and_split(images: str|Path) -> tuple[Path, str]:
    "The folder whose index speaks of a folder of images such as DATA/test-images, and which split these are."
    folder = Path(os.path.abspath(images))  # not resolved: beside a link lies the index it belongs to
    return folder.parent, folder.name.removesuffix("-images")


# %%
test_eq(place_and_split(work/"all"/"train-images"), (work/"all", "train"))
shutil.rmtree(work)
