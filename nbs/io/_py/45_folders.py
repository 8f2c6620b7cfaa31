# %% [markdown]
# # Folders
#
# > Volumes become a challenge folder, with an index that says where every pixel came from.

# %%
#| default_exp io.folders

# %%
#| export
import contextlib
import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.atomic import atomic_path, check_file_place
from ctseg.core.errors import InputError, printable
from ctseg.core.json_files import write_json
from ctseg.core.paths import real_path
from ctseg.core.tables import csv_cell
from ctseg.data.challenge import write_challenge
from ctseg.data.lazy import LazyPixels
from ctseg.data.slices import SliceSet
from ctseg.data.spooled import know_values, put_slices, room_for
from ctseg.io.canvas import place_on_squares
from ctseg.io.cases import Case, check_test, name_cases, set_aside_test
from ctseg.io.cutting import CutFile, Work, cut_cases, held_parts, parts_folder
from ctseg.io.into_store import check_store_place, write_stored
from ctseg.io.outputs import new_folder, output_name, sealed_index
from ctseg.io.renaming import RenamedSlices, told_alone
from ctseg.io.slicing import Slicing

# %%
#| hide
import os
import tempfile
from dataclasses import replace

from fastcore.test import test_eq, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.json_files import read_json
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.data.challenge import read_challenge
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans
from ctseg.io.volumes import class_flags

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG

# %% [markdown]
# A challenge folder made from volumes has one more file than others, `index.json`. It answers two questions: which volume and slice does a PNG show, and where does each of
# its pixels lie in the patient? For each volume it holds the shape, the affine, the orientation and the size after
# resampling. For each image it holds the volume, the slice number, the window and the corner where the slice was placed.
#
# The toy volume of this page:

# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
scans = torso_scans()
scan = scans["as NIfTI likes it"]
print(f"{scan.hu.shape} voxels, from {scan.hu.min():.0f} to {scan.hu.max():.0f} HU")


# %% [markdown]
# ## From parts to a folder
#
# Each volume is loaded once, cut, and let go ([cutting](42_cutting.ipynb)). Its slices wait in a file until all volumes are cut, since only then is
# the common size of the images known. Then the parts are pasted into the arrays of one split. These [lie in files as well](../data/52_spooled.ipynb),
# so that an import needs no more memory for a thousand volumes than for ten.

# %%
#| export
@dataclass
class SplitArrays:
    "The arrays of a `SliceSet` and the lines of the index of its images."
    images: np.ndarray | LazyPixels # uint8 [N,H,W]
    masks: np.ndarray | LazyPixels # uint8 [N,H,W]
    known: np.ndarray # bool [N,C]
    groups: np.ndarray # int64 [N]
    lines: dict[str, dict | None] # image name → its line; None: to come

    @classmethod
    def empty(cls, n: int, side: int, C: int, folder: Path|None = None) -> "SplitArrays":
        "Arrays for n images of C classes, in memory or in files of a folder."
        images, masks = (room_for(n, (side, side), folder) for _ in range(2))
        return cls(images, masks, np.zeros((n, C), bool), np.zeros(n, np.int64), {})

    def slice_set(self, classes: ClassMap) -> SliceSet:
        "The images as a `SliceSet`."
        if isinstance(self.masks, LazyPixels): know_values(self.masks.source)
        return SliceSet(self.images, self.masks, self.known, list(self.lines), self.groups, classes)


# %%
#| export
def image_line(volume: str, z: int, window, corner) -> dict:
    "What `index.json` says of an image: its volume, slice, window (level, width in HU) and corner (row, column)."
    return {"volume": volume, "slice": int(z), "window": list(window), "corner": np.asarray(corner).tolist()}


# %%
test_eq(SplitArrays.empty(2, 8, 3).known.shape, (2, 3))
print(image_line("v000", 7, (40., 400.), (0, 13)))


# %%
#| export
def _paste_case(split: SplitArrays, start: int, one: CutFile):
    "Put the slices of a case into the arrays from image `start`."
    part, case = one.load().part, one.case
    images, masks, corners = place_on_squares(part, split.images.shape[1])
    rows = slice(start, start + len(part.slices))
    put_slices(split.images, start, images)
    put_slices(split.masks, start, masks)
    split.known[rows] = one.known
    split.groups[rows] = case.patient
    one.entry["scaled"] = list(part.images.shape[1:])
    for i, z in enumerate(part.slices):
        split.lines[f"{start + i}.png"] = image_line(case.id, z, part.windows[i], corners[i])

def gather_split(
    cut: list[CutFile],
    C: int, # number of classes
    side: int, # of the images
    folder: Path|None = None, # where the arrays are kept; `None`: in memory
) -> SplitArrays:
    "The arrays of a split."
    split = SplitArrays.empty(sum(one.shape[0] for one in cut), side, C, folder)
    for one in cut: _paste_case(split, len(split.lines), one)
    return split


# %%
case = Case("scan", lambda: scan, patient=0, id="v000")
cut = cut_cases([case], work/"one", TORSO_CLASSES, Slicing(every=8), Work())
split = gather_split(cut, len(TORSO_CLASSES), 64)
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
    splits: dict[str, SplitArrays],
    store: bool = False, # write a store in place of a folder
) -> dict[str, int]: # split → number of images
    "Write a challenge folder, or a store, and its index, whole or not at all."
    images = {name: split.lines for name, split in splits.items()}
    index = sealed_index(volumes, images)
    slices = {name: split.slice_set(classes) for name, split in splits.items() if split.lines}
    if store:
        write_stored(out, slices, index)
    else:
        with atomic_path(out, new=True) as tmp:
            for name, those in slices.items(): write_challenge(those, tmp, name)
            write_json(index, tmp/"index.json", indent=None)
    return {name: len(lines) for name, lines in images.items()}


# %%
print(write_splits(work/"one", TORSO_CLASSES, {"v000": cut[0].entry}, {"train": split}))
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
    with atomic_path(path, private=True) as tmp:
        with open(tmp, "w", newline="", encoding="utf-8") as f:
            rows = csv.writer(f, lineterminator="\n")
            rows.writerow(("volume", "source"))
            rows.writerows((case.id, csv_cell(printable(case.source))) for case in cases)
        yield


# %%
with private_key([case], work/"key.csv"):
    print("while it lasts:", (work/"key.csv").exists())
print((work/"key.csv").read_text())


# %% [markdown]
# Now all together: name the cases, set a test aside, cut, gather, write.

# %%
#| export
def _by_split(cut: list[CutFile]) -> dict[str, list[CutFile]]:
    "The cut volumes of each split."
    return {name: [one for one in cut if one.case.split == name] for name in ("train", "test")}

def _common_side(cut: list[CutFile], slicing: Slicing, out: Path) -> int:
    "The side of all images. `InputError` if no slice is left."
    if not any(one.shape[0] for one in cut):
        raise InputError(f"{out}: no slice is left; lower min_body ({slicing.min_body} cm²)")
    return slicing.size or max(max(one.shape[1:]) for one in cut)


# %%
print("side:", _common_side(cut, Slicing(), work))
test_fail(lambda: _common_side([], Slicing(), work), contains="no slice is left")


# %%
#| export
def _check_left(cut: list[CutFile], work: Work, out: Path):
    "`InputError` if everything was damaged."
    if cut: return
    raise InputError(f"{out}: nothing is left to import, all is damaged; such as {work.left_out[0]}")


# %%
#| export
def _facts(cut: list[CutFile], classes: ClassMap, work: Work) -> dict:
    "Facts about volumes that were cut."
    patients = {one.case.patient for one in cut}
    facts = {"volumes": len(cut), "patients": len(patients), "classes": len(classes)}
    facts["labelled"] = sum(int(one.known.any(1).sum()) for one in cut)
    facts["overlapping_voxels"] = sum(one.overlap for one in cut)
    facts["hidden_cells"] = sum(one.hidden_cells for one in cut)
    facts["notes"] = [note for one in cut for note in one.notes]
    return facts | {"left_out": list(work.left_out)}


# %%
#| export
def _check_outputs(out: Path, key):
    "`InputError` for a key inside of the folder, or where none can be written."
    check_file_place(key)
    if key is not None and real_path(out) in real_path(key).parents:
        raise InputError(f"key {key} lies in {out}; it names patients, keep it elsewhere")


# %%
#| export
def _prepare(cases: list[Case], out, slicing: Slicing, test_share: float, key) -> Path:
    "Check and name the cases and set a test aside. The path of the folder to write."
    out = new_folder(out)
    _check_outputs(out, key)
    if not cases: raise InputError(f"{out}: no volumes to write")
    name_cases(cases)
    for case in cases: output_name(case.id, case.display_name or case.source)
    set_aside_test(cases, test_share, slicing.seed)
    check_test(cases)
    return out


# %%
print(_prepare([replace(case)], work/"new", Slicing(), 0., None).name)
test_fail(lambda: _prepare([], work/"new", Slicing(), 0., None), contains="no volumes to write")


# %%
#| export
def rename_splits(splits: dict[str, SplitArrays], renamed: RenamedSlices) -> dict:
    "Give the masks of all splits the new numbers, in place; facts."
    alone = 0
    for split in splits.values():
        alone += renamed.parts_alone(split.known)
        split.known = renamed.apply(split.masks, split.known)
    labelled = sum(int(split.known.any(1).sum()) for split in splits.values())
    return {"classes": len(renamed.classes), "labelled": labelled} | told_alone(alone)


# %%
#| export
def _gathered(cut: list[CutFile], C: int, slicing: Slicing, out: Path) -> dict[str, SplitArrays]:
    "The arrays of both splits, in files beside what was cut."
    side = _common_side(cut, slicing, out)
    return {name: gather_split(those, C, side, parts_folder(out)) for name, those in _by_split(cut).items()}


# %%
#| export
def write_volumes(
    cases: list[Case],
    out, # the challenge folder, new
    classes: ClassMap,
    slicing: Slicing,
    test_share: float = 0., # share of the patients set aside as a test
    key = None, # where to write the table volume → source; `None`: nowhere
    work: Work|None = None, # how many processes, what of damaged volumes
    renamed: RenamedSlices|None = None, # the names to write
) -> dict: # facts about what was written
    """Cut volumes into a challenge folder with an `index.json`. Each volume is loaded once and let go.

    What is cut waits in `OUT.parts` until all is. `InputError` before anything is written:
    for a folder in use, contradictory labels, a test annotated in part.
    """
    work = work or Work()
    if work.store: check_store_place(out)
    out = _prepare(cases, out, slicing, test_share, key)
    with contextlib.ExitStack() as stack:
        parts = stack.enter_context(held_parts(out))
        cut = cut_cases(cases, out, classes, slicing, work)
        stack.callback(shutil.rmtree, parts, ignore_errors=True)
        _check_left(cut, work, out)
        check_test([one.case for one in cut])
        splits = _gathered(cut, len(classes), slicing, out)
        facts = _facts(cut, classes, work) | {"size": _common_side(cut, slicing, out)}
        if renamed: facts |= rename_splits(splits, renamed)
        named, volumes = renamed.classes if renamed else classes, {one.case.id: one.entry for one in cut}
        with private_key([one.case for one in cut], key):
            counts = write_splits(out, named, volumes, splits, work.store)
    return facts | counts


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
#| fig-alt: "Five slices of three imported scans with their outlines and the number of known structures"
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
test_eq(
    [s.known[s.groups == g][0].tolist() for g in (0, 1, 2)],
    [[True, True, False, False, False], [True]*5, [False]*5],
)
test_fail(lambda: write_volumes(cases, work/"torsos", TORSO_CLASSES, Slicing()), contains="not empty")
