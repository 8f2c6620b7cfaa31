# %% [markdown]
# # Folders
#
# > Volumes become a challenge folder with an index that leads every pixel home.

# %%
#| default_exp io.folders

# %%
#| export
import contextlib
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.files import InputError, atomic_path, refuse_folder, write_json
from ctseg.data.challenge import write_challenge
from ctseg.data.slices import SliceSet, known_after_resize, present_classes
from ctseg.io.canvas import place_on_squares
from ctseg.io.cases import Case, check_test, name_cases, set_aside_test
from ctseg.io.geometry import as_slices, slice_axes
from ctseg.io.outputs import new_folder, output_name
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import Part, Volume, cut

# %%
#| hide
import os
import tempfile
from dataclasses import replace

from fastcore.test import test_eq, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.files import read_json
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.data.challenge import read_challenge
from ctseg.io.toys import TORSO_CLASSES, torso_scans
from ctseg.io.volumes import class_flags

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG


# %% [markdown]
# A challenge folder made from volumes has one file more than others, `index.json`. It answers: *this PNG, which volume and which slice
# was it, and where does a pixel lie in the patient?* For each volume it holds the shape, the affine, the orientation and the size after
# resampling. For each image it holds the volume, the slice number, the window and the corner where the slice was placed.

# %%
#| export
def index_entry(volume: Volume, slicing: Slicing, patient: int) -> dict:
    "What the index says of a volume, before its slices have a place."
    positions = None if volume.positions is None else volume.positions.tolist()
    return {
        "kind": volume.kind,
        "patient": patient,
        "shape": list(volume.hu.shape),
        "affine": np.asarray(volume.affine).tolist(),
        "orientation": slicing.orientation,
        "positions": positions,
        "digest": volume.digest,
    }


# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
scans = torso_scans()
print(index_entry(scans["as NIfTI likes it"], Slicing(), patient=0))


# %% [markdown]
# ## What is known of a volume, and of its slices
#
# A label whose class was not examined would be a contradiction; whoever made the labels is told.

# %%
#| export
def known_classes(
    volume: Volume,
    C: int, # number of classes
    where: str, # what a message calls the volume
) -> np.ndarray: # bool [C]
    """The classes known of a volume.

    Raises `InputError` for labels of a class that does not exist or was not examined.
    """
    if volume.labels is None: return np.zeros(C, bool)
    present = present_classes(volume.labels, IGNORE - 1).any(0)  # a histogram would need 8 bytes a voxel
    if present[C:].any():
        highest = int(np.flatnonzero(present).max()) + 1
        raise InputError(f"{where}: the label map holds {highest}, but there are {C} classes")
    if volume.known is None: return present[:C]
    unexamined = present[:C] & ~volume.known
    if unexamined.any():
        raise InputError(f"{where}: labels of class {int(unexamined.argmax()) + 1}, "
                         "which is not among the classes examined on it; add it there or remove them")
    return volume.known


# %%
scan = scans["as NIfTI likes it"]
print(known_classes(scan, 5, "scan"), known_classes(replace(scan, labels=None), 5, "scan"))
test_fail(lambda: known_classes(scan, 4, "scan"), contains="holds 5, but there are 4 classes")
test_fail(lambda: known_classes(replace(scan, known=class_flags([1], 5)), 5, "scan"), contains="labels of class 2")


# %% [markdown]
# Some structures are nothing but the union of others, such as `lungs` of both sides. On a slice where nothing is left of them they are
# *not absent*, though one number a pixel cannot show them. Such a cell is written as unknown and counted in `hidden_cells`. So is a
# structure of which a coarser grid has left no pixel, and a slice between two contours that has none itself
# ([RTSTRUCT](74_rtstruct.ipynb)). What lies outside of a cropped picture, however, is truly not on it.

# %%
#| export
def _drawn_on_slices(volume: Volume, part: Part, C: int, orientation: str) -> np.ndarray:
    "What was drawn on each slice of a part, before one structure hid another, bool [n,C]."
    if volume.drawn is None:
        labels = as_slices(volume.labels, volume.affine, orientation)
        return present_classes(labels[part.slices], C)
    axes, flips = slice_axes(volume.affine, orientation)
    along = volume.drawn[axes[0]][1:C + 1]
    if flips[0]: along = along[:, ::-1]
    return along[:, part.slices].T


# %%
part = cut(scan, Slicing(every=13))
print(_drawn_on_slices(scan, part, 5, "SPL").astype(int))


# %%
#| export
def known_by_slice(
    volume: Volume,
    known: np.ndarray, # bool [C], of the volume
    part: Part,
    slicing: Slicing,
) -> np.ndarray: # bool [n,C]
    "What is known on each slice: `known`, without what other structures or a coarser grid have hidden."
    repeated = np.repeat(known[None], len(part.slices), 0)
    if volume.labels is None: return repeated
    drawn = _drawn_on_slices(volume, part, len(known), slicing.orientation)
    return known_after_resize(repeated, drawn, part.masks)


# %%
coarse = Slicing(size=8, spacing="fit", every=4)
part = cut(scan, coarse)
known = known_by_slice(scan, scan.known, part, coarse)
print("unknown on each slice:", (~known).sum(1))
print({int(z): [TORSO_CLASSES.names[c] for c in np.flatnonzero(~k)] for z, k in zip(part.slices, known) if not k.all()})


# %% [markdown]
# ## From parts to a folder
#
# Each volume is loaded once, cut, and let go. Only its part is kept.

# %%
#| export
@dataclass
class CutCase:
    "A case of which the slices are cut."
    case: Case
    part: Part
    known: np.ndarray # bool [n,C]
    entry: dict # of the index
    hidden_cells: int # (slice, class) cells that are unknown because something hides them
    overlap: int # voxels that two structures claim


# %%
#| export
def cut_case(case: Case, classes: ClassMap, slicing: Slicing) -> CutCase:
    "Load a volume, cut it, and let it go; `case.known` is set. Raises `InputError` for contradictory labels."
    volume = case.load()
    part = cut(volume, slicing, case.id)
    case.known = known_classes(volume, len(classes), case.called)
    known = known_by_slice(volume, case.known, part, slicing)
    hidden = int((case.known & ~known).sum())
    if case.split == "test":
        known[:] = case.known  # a test has no file that could say so
    return CutCase(case, part, known, index_entry(volume, slicing, case.patient), hidden, volume.overlap)


# %%
case = Case("scan", lambda: scan, patient=0, id="v000")
cutting = cut_case(case, TORSO_CLASSES, Slicing(every=8))
print(cutting.part.images.shape, "known:", cutting.known.sum(0), "hidden:", cutting.hidden_cells)


# %% [markdown]
# The parts of all volumes are pasted into the arrays of one split. A part is dropped as soon as it is pasted, so that the pixels are
# in memory once and not twice.

# %%
#| export
@dataclass
class Split:
    "The arrays of a `SliceSet` and the lines of the index of its images."
    images: np.ndarray # uint8 [N,H,W]
    masks: np.ndarray # uint8 [N,H,W]
    known: np.ndarray # bool [N,C]
    groups: np.ndarray # int64 [N]
    lines: dict[str, dict | None] # image name → its line; None: to come

    @classmethod
    def empty(cls, n: int, side: int, C: int) -> "Split":
        "Arrays for n images of C classes."
        images, masks = np.zeros((n, side, side), np.uint8), np.zeros((n, side, side), np.uint8)
        return cls(images, masks, np.zeros((n, C), bool), np.zeros(n, np.int64), {})

    def slice_set(self, classes: ClassMap) -> SliceSet:
        "The images as a `SliceSet`."
        return SliceSet(self.images, self.masks, self.known, list(self.lines), self.groups, classes)


# %%
#| export
def image_line(volume: str, z: int, window, corner) -> dict:
    "What the index says of an image."
    return {"volume": volume, "slice": int(z), "window": list(window), "corner": np.asarray(corner).tolist()}


# %%
test_eq(Split.empty(2, 8, 3).known.shape, (2, 3))
print(image_line("v000", 7, (40., 400.), (0, 13)))


# %%
#| export
def _paste_case(split: Split, start: int, cutting: CutCase):
    "Put the slices of a case into the arrays from image `start`."
    part, case = cutting.part, cutting.case
    images, masks, corners = place_on_squares(part, split.images.shape[1])
    rows = slice(start, start + len(part.slices))
    split.images[rows] = images
    split.masks[rows] = masks
    split.known[rows] = cutting.known
    split.groups[rows] = case.patient
    cutting.entry["scaled"] = list(part.images.shape[1:])
    for i, z in enumerate(part.slices):
        split.lines[f"{start + i}.png"] = image_line(case.id, z, part.windows[i], corners[i])


# %%
#| export
def gather_split(cuttings: list[CutCase], C: int, side: int) -> Split:
    "The arrays of a split. The list is emptied, so that each part is let go once it is pasted."
    split = Split.empty(sum(len(c.part.slices) for c in cuttings), side, C)
    cuttings.reverse()
    while cuttings:
        _paste_case(split, len(split.lines), cuttings.pop())
    return split


# %%
split = gather_split([cutting], len(TORSO_CLASSES), 64)
print(split.slice_set(TORSO_CLASSES))
print(split.lines["2.png"])


# %% [markdown]
# The folder appears complete or not at all. Who needs to go back to the source asks for a `key`, a table outside the folder, and keeps
# it private.

# %%
#| export
def write_splits(
    out, # the challenge folder, new
    classes: ClassMap,
    volumes: dict[str, dict], # volume id → its entry
    splits: dict[str, Split],
) -> dict[str, int]: # split → number of images
    "Write a challenge folder and its index, whole or not at all."
    images = {name: split.lines for name, split in splits.items()}
    with atomic_path(out) as tmp:
        for name, split in splits.items():
            if split.lines: write_challenge(split.slice_set(classes), tmp, name)
        write_json({"version": 1, "volumes": volumes, "images": images}, tmp/"index.json", indent=None)
    return {name: len(lines) for name, lines in images.items()}


# %%
print(write_splits(work/"one", TORSO_CLASSES, {"v000": cutting.entry}, {"train": split}))
print(sorted(p.name for p in (work/"one").iterdir()))


# %%
#| export
@contextlib.contextmanager
def private_key(cases: list[Case], path):
    """Write the private table, volume to source, before the block; it appears when the block ends well.

    `None` as the path: no table.
    """
    if path is None:
        yield
        return
    refuse_folder(path)
    with atomic_path(path) as tmp:
        with open(tmp, "w", newline="", encoding="utf-8") as f:
            rows = csv.writer(f, lineterminator="\n")
            rows.writerow(("volume", "source"))
            rows.writerows((case.id, case.source) for case in cases)
        yield


# %%
with private_key([case], work/"key.csv"):
    print("while it lasts:", (work/"key.csv").exists())
print((work/"key.csv").read_text())


# %% [markdown]
# Now all together: name the cases, set a test aside, cut, gather, write.

# %%
#| export
def _cut_all(cases: list[Case], classes: ClassMap, slicing: Slicing) -> tuple[dict[str, list[CutCase]], dict]:
    "The cases of each split with their slices, and what was hidden on the way."
    cuttings = {"train": [], "test": []}
    hidden = {"overlapping_voxels": 0, "hidden_cells": 0}
    for case in cases:
        cutting = cut_case(case, classes, slicing)
        hidden["overlapping_voxels"] += cutting.overlap
        hidden["hidden_cells"] += cutting.hidden_cells
        cuttings[case.split].append(cutting)
    return cuttings, hidden


# %%
cuttings, hidden = _cut_all([case], TORSO_CLASSES, Slicing(every=8))
print({name: len(parts) for name, parts in cuttings.items()}, hidden)


# %%
#| export
def _common_side(cuttings: dict[str, list[CutCase]], slicing: Slicing, out: Path) -> int:
    "The side of all images. `InputError` if no slice is left."
    shapes = [c.part.images.shape for parts in cuttings.values() for c in parts]
    if not any(n for n, _, _ in shapes):
        raise InputError(f"{out}: no slice is left; lower min_body ({slicing.min_body} cm²)")
    return slicing.size or max(max(h, w) for _, h, w in shapes)


# %%
print("side:", _common_side(cuttings, Slicing(), work))
test_fail(lambda: _common_side({"train": []}, Slicing(), work), contains="no slice is left")


# %%
#| export
def _check_outputs(out: Path, key):
    "`InputError` for a key inside of the folder."
    if key is not None and out.resolve() in Path(key).resolve().parents:
        raise InputError(f"key {key} lies in {out}; it names patients, keep it elsewhere")


# %%
#| export
def write_volumes(
    cases: list[Case],
    out, # the challenge folder, new
    classes: ClassMap,
    slicing: Slicing,
    test_share: float = 0., # share of the patients set aside as a test
    key = None, # where to write the table volume → source, outside `out`; `None`: nowhere
) -> dict: # facts about what was written
    """Cut volumes into a challenge folder with an `index.json`. Each volume is loaded once and let go.

    Raises `InputError` before anything is written: for a folder in use, for contradictory labels,
    or for a test that is annotated in part.
    """
    out = new_folder(out)
    _check_outputs(out, key)
    if not cases: raise InputError(f"{out}: no volumes to write")
    name_cases(cases)
    for case in cases: output_name(case.id, case.display_name or case.source)
    set_aside_test(cases, test_share, slicing.seed)
    check_test(cases)
    cuttings, hidden = _cut_all(cases, classes, slicing)
    check_test(cases)
    side = _common_side(cuttings, slicing, out)
    labelled = sum(int(c.known.any(1).sum()) for parts in cuttings.values() for c in parts)
    volumes = {c.case.id: c.entry for parts in cuttings.values() for c in parts}
    splits = {name: gather_split(parts, len(classes), side) for name, parts in cuttings.items()}
    with private_key(cases, key):
        counts = write_splits(out, classes, volumes, splits)
    facts = {"volumes": len(cases), "patients": len({c.patient for c in cases}), "classes": len(classes)}
    return facts | counts | {"labelled": labelled, "size": side} | hidden


# %% [markdown]
# In the first scan only the liver and the stomach were examined, in the second everything; the third has no labels.

# %%
def torso_case(name, known):
    "A scan on which only some classes were examined; `None`: a scan without labels."
    v = scans[name]
    labels = None if known is None else v.labels*np.r_[True, known][v.labels]
    return Case(name, lambda: replace(v, labels=labels, known=known))

cases = [torso_case(n, k) for n, k in zip(scans, [class_flags([1, 2], 5), class_flags(range(1, 6), 5), None])]
facts = write_volumes(cases, work/"torsos", TORSO_CLASSES, Slicing(window="random", seed=1))
print(facts)
index = read_json(work/"torsos"/"index.json")
print({k: v for k, v in index["volumes"]["v001"].items() if k != "affine"})

# %%
s = read_challenge(work/"torsos")
fig, axes = image_grid(1, 5)
for ax, i in zip(axes[0], [16, 23, 60, 66, 115]):
    line = index["images"]["train"][f"{i}.png"]
    title = f"{line['volume']}, slice {line['slice']}\nknown: {s.known[i].sum()} of 5"
    show_image(ax, overlay(s.images[i], s.masks[i], TORSO_CLASSES, .4), title)
class_legend(fig, TORSO_CLASSES)

# %% [markdown]
# Compare the chests of the first two scans. On the first the lungs are unknown: their mask is 0 and so is `known`, and nothing
# learns that there are none.

# %%
test_eq([s.known[s.groups == g][0].tolist() for g in (0, 1, 2)], [[True, True, False, False, False], [True]*5, [False]*5])
test_fail(lambda: write_volumes(cases, work/"torsos", TORSO_CLASSES, Slicing()), contains="not empty")
