# %% [markdown]
# # The way back
#
# > The index of a challenge folder puts predicted masks back onto the grids of their volumes.

# %%
#| default_exp io.index

# %%
#| export
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json
from ctseg.core.schema import anything, fields, fit_schema, listed, mapped, maybe, number, text
from ctseg.data.annotations import read_classes
from ctseg.data.images import read_pngs
from ctseg.data.lazy import LazyPixels, seen_values
from ctseg.data.mask_csv import check_names
from ctseg.data.spooled import spooled_masks
from ctseg.data.store import is_store, read_store, store_splits
from ctseg.io.canvas import paste
from ctseg.io.geometry import as_volume, slice_axes
from ctseg.io.outputs import index_seal, output_name
from ctseg.io.volumes import resize_slices

# %%
#| hide
import os
import tempfile

from fastcore.test import test_eq, test_fail

from ctseg.data.challenge import read_challenge
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.slicing import Slicing
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans


# %% [markdown]
# A prediction is a stack of masks, one for each PNG of a challenge folder. A hospital wants a label map on the grid of its scan. The
# folder's `index.json` ([folders](45_folders.ipynb)) knows where each PNG came from.

# %%
#| export
def _check_names(volumes: dict[str, dict], images: dict[str, dict[str, dict]], path: Path):
    "`InputError` for names that cannot be files, and for images of a volume that is not listed."
    for id in volumes: output_name(id, str(path))
    for lines in images.values():
        for name, line in lines.items():
            output_name(name, str(path))
            if line["volume"] not in volumes:
                raise InputError(f"{path}: image {name} is of volume {line['volume']!r}, which is not in it; "
                                 "import the volumes again")


# %% [markdown]
# An image of a listed volume passes. Names that are paths are refused, and so are images of a volume that is not listed:

# %%
_check_names({"v000": {}}, {"test": {"0.png": {"volume": "v000"}}}, "index.json")
print("image 0.png of volume v000: fine")
test_fail(lambda: _check_names({"../v000": {}}, {}, "index.json"), contains="cannot be the name of a file")
test_fail(
    lambda: _check_names({}, {"test": {"0.png": {"volume": "v000"}}}, "index.json"), contains="is not in it"
)

# %%
#| export
_SIDE = number(1, 1 << 16, whole=True)
_AFFINE = listed(listed(number(), 4), 4)
_POSITIONS = maybe(listed(listed(number(), 3)))
_VOLUME = fields(
    {"shape": listed(_SIDE, 3), "affine": _AFFINE, "orientation": text, "scaled": listed(_SIDE, 2)},
    {"kind": text, "patient": anything, "positions": _POSITIONS, "digest": maybe(text)})
_UNSAID = {"kind": "", "positions": None, "digest": None}  # of an entry that has only what it must have
_LINE = fields({
    "volume": text, "slice": number(0, 1 << 16, whole=True), "window": listed(number(), 2),
    "corner": listed(number(-(1 << 16), 1 << 16, whole=True), 2)})
INDEX = fields({"volumes": mapped(_VOLUME), "images": mapped(mapped(_LINE))}, {"seal": text})

# %%
#| export
MAX_VOXELS = 1 << 32


# %%
#| export
def _possible_grid(entry: dict) -> bool:
    "Whether the grid of a volume can be: it has a depth and a size that fit to what else is said of it."
    affine = np.array(entry["affine"], float)
    flat = abs(np.linalg.det(affine[:3, :3])) < 1e-9
    projective = affine[3].tolist() != [0, 0, 0, 1]
    positions = entry.get("positions")
    other_depth = positions is not None and len(positions) != entry["shape"][2]
    return not (flat or projective or other_depth or math.prod(entry["shape"]) > MAX_VOXELS)


def _slices_of(entry: dict) -> int:
    "How many slices a volume has, along the axis that they were cut across."
    axes, _ = slice_axes(np.array(entry["affine"], float), entry["orientation"])
    return entry["shape"][axes[0]]


# %%
grid = {"affine": np.diag([1., 1, 3, 1]).tolist(), "shape": [64, 64, 20], "orientation": "RAS"}
print(_possible_grid(grid), _possible_grid(grid | {"affine": np.diag([1., 1, 0, 1]).tolist()}))


# %%
#| export
def _check_places(volumes: dict[str, dict], images: dict[str, dict[str, dict]], path: Path):
    "`InputError` for a grid that cannot be, and for slices that are not in their volume or are given twice."
    for id, entry in volumes.items():
        if not _possible_grid(entry):
            raise InputError(f"{path}: volume {id} has no grid that can be; import the volumes again")
    depth = {id: _slices_of(entry) for id, entry in volumes.items()}
    for split, lines in images.items():
        seen = set()
        for name, line in lines.items():
            volume, number = place = line["volume"], line["slice"]
            if number >= depth[volume] or place in seen:
                problem = f"image {name} of {split} is slice {number} of {volume}"
                raise InputError(f"{path}: {problem}, which is not there, or another image's; "
                                 "import the volumes again")
            seen.add(place)


# %%
#| export
def read_index(
    folder, # a challenge folder made from volumes
    split: str = "test",
) -> tuple[dict, dict]: # volume id → its entry; image name → {"volume", "slice", "window", "corner"}
    "The index of a challenge folder. Raises `InputError` if there is none, or none for this split."
    path = Path(folder)/"index.json"
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file; only a folder made by `ctseg import` can be put back into "
                         "volumes")
    index = fit_schema(read_json(path), INDEX, path, "import the volumes again")
    volumes, images = index["volumes"], index["images"]
    seal = index_seal(volumes, images)
    if index.get("seal", seal) != seal:
        raise InputError(f"{path}: damaged or edited, its content is not what its checksum says; "
                         "import the volumes again")
    _check_names(volumes, images, path)
    _check_places(volumes, images, path)
    if not images.get(split):
        others = " or ".join(name for name in images if images[name]) or "another folder"
        raise InputError(f"{path}: there are no images of the split {split!r}; choose {others}")
    volumes = {id: _UNSAID | entry for id, entry in volumes.items()}
    return volumes, images[split]


# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
scans = list(torso_scans().values())
write_volumes(
    [Case(f"scan {i}", lambda v=v: v) for i, v in enumerate(scans)], work/"torsos", TORSO_CLASSES, Slicing()
)
volumes, lines = read_index(work/"torsos", "train")
print(*volumes, lines["41.png"])
test_fail(lambda: read_index(work/"torsos", "test"), contains="choose train")


# %% [markdown]
# `restack` undoes every step of cutting. Slices that were never cut out have no prediction; they are filled with `missing`. Choose 255
# to keep "nobody looked" apart from "nothing there".

# %%
#| export
def restack(
    masks: np.ndarray, # uint8 [n,H,W], the masks of some slices of one volume
    entry: dict, # what the index says of the volume
    lines: list[dict], # what the index says of each mask: its slice number and its corner
    missing: int = 0, # value where there is no prediction
) -> np.ndarray: # uint8 [I,J,K], on the grid of the volume
    "Put masks back on the voxel grid they were cut from. Exact, unless the slices were resampled or cropped."
    affine = np.array(entry["affine"])
    axes, _ = slice_axes(affine, entry["orientation"])
    depth, height, width = (entry["shape"][axis] for axis in axes)
    corners = [line["corner"] for line in lines]
    back = [[-row, -column] for row, column in corners]
    slices = paste(masks, back, entry["scaled"], missing)
    stack = np.full((depth, height, width), missing, np.uint8)
    numbers = [line["slice"] for line in lines]
    stack[numbers] = resize_slices(slices, (height, width), "mask")
    return as_volume(stack, affine, entry["orientation"])


# %% [markdown]
# Exactly? The labels of the three scans were cut, written as PNG and CSV, and read again. Put back, they are the labels.

# %%
s = read_challenge(work/"torsos")
for id, scan in zip(volumes, scans):
    rows = [i for i, name in enumerate(s.names) if lines[name]["volume"] == id]
    back = restack(s.masks[rows], volumes[id], [lines[s.names[i]] for i in rows])
    test_eq(back, scan.labels)
print("exact on grids of", *[tuple(entry["shape"]) for entry in volumes.values()])


# %% [markdown]
# ## A whole submission
#
# A submission must fit the folder: as many masks as images, of their size, with classes that exist.

# %%
#| export
def _check_masks(
    masks: np.ndarray|LazyPixels, images: int, size: tuple[int, int], classes: ClassMap, what: str, folder,
):
    "`InputError` unless there is a mask of the right size for each image, with classes that exist."
    if masks.shape[1:] != size:
        pixels = "x".join(map(str, masks.shape[1:]))
        raise InputError(f"masks of {pixels} pixels for images of {size[0]}x{size[1]} in {folder}; "
                         "predict these images")
    highest = int(np.flatnonzero(seen_values(masks).any(0)).max(initial=0))
    if highest > len(classes):
        raise InputError(f"masks with the value {highest}, but {folder} has {len(classes)} classes; "
                         "predict with a run that knows the same")
    if len(masks) != images:
        raise InputError(f"{len(masks)} masks for the {images} {what} images of {folder}; "
                         "give one for each, in numeric order")


# %%
s = read_challenge(work/"torsos")
fits = (len(s), (110, 110), TORSO_CLASSES, "train", "torsos")
_check_masks(s.masks, *fits)
test_fail(lambda: _check_masks(s.masks[1:], *fits), contains="give one for each")
test_fail(lambda: _check_masks(s.masks + 5, *fits), contains="has 5 classes")


# %%
#| export
def _size_and_classes(folder, split: str, first: str) -> tuple[tuple[int, int], ClassMap]:
    "The size of the images of a folder or a store, of which one is called `first`, and its classes."
    if is_store(folder):
        slices = read_store(folder, split)
        return slices.images.shape[1:], slices.classes
    path = Path(folder)/f"{split}-images"/first
    return read_pngs([path]).shape[1:], read_classes(folder)


# %%
print(_size_and_classes(work/"torsos", "train", "0.png")[0])


# %%
#| export
def _stored_masks(place, names: list[str]) -> LazyPixels:
    "The label maps of a store; `InputError` unless they are of these images."
    slices = read_store(place, store_splits(place)[0])
    check_names(list(slices.names), names, place)
    return slices.masks


# %% [markdown]
# A submission in the challenge's form is read as a whole, a store of label maps when a volume needs them.

# %%
#| export
def _read_submission(masks, lines: dict[str, dict], folder, split: str) -> np.ndarray|LazyPixels:
    "The masks of a split, uint8 [N,H,W], read if they are a CSV, and checked."
    names = list(lines)
    size, classes = _size_and_classes(folder, split, names[0])
    if isinstance(masks, (str, Path)):
        if is_store(masks): masks = _stored_masks(masks, names)
        else: _, masks = spooled_masks(masks, names, size, classes)
    _check_masks(masks, len(lines), size, classes, split, folder)
    return masks


# %%
print(_read_submission(work/"torsos"/"y_train.csv", lines, work/"torsos", "train").shape)
test_fail(lambda: _read_submission(s.masks[1:], lines, work/"torsos", "train"), contains="masks for the")
test_fail(
    lambda: _read_submission(s.masks[:, 1:], lines, work/"torsos", "train"), contains="predict these images"
)


# %%
#| export
class PredictedVolume(NamedTuple):
    "A volume with its predicted labels."
    id: str # its name in the index
    entry: dict # what the index says of it
    labels: np.ndarray # uint8 [I,J,K]
    slices: int # how many of its slices have a prediction


# %%
#| export
def predicted_volumes(
    masks, # a submission (CSV), a store of label maps, or uint8 [N,H,W] in the order of the images
    folder, # the challenge folder, or the store, with its `index.json`
    split: str, # the images that the masks belong to
) -> Iterator[PredictedVolume]:
    """The predicted labels of each volume, one volume at a time.

    Raises `InputError` for masks that do not fit the folder.
    """
    volumes, lines = read_index(folder, split)
    masks = _read_submission(masks, lines, folder, split)
    images_of = {}
    for i, line in enumerate(lines.values()):
        images_of.setdefault(line["volume"], []).append(i)
    ordered = list(lines.values())
    for id, images in images_of.items():
        lines_of_volume = [ordered[i] for i in images]
        labels = restack(masks[images], volumes[id], lines_of_volume)
        yield PredictedVolume(id, volumes[id], labels, len(images))


# %%
for volume, scan in zip(predicted_volumes(work/"torsos"/"y_train.csv", work/"torsos", "train"), scans):
    print(volume.id, volume.labels.shape, volume.slices, "slices predicted")
    test_eq(volume.labels, scan.labels)
