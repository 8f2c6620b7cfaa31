# %% [markdown]
# # Volumes again
#
# > The slices of a challenge folder that were cut from volumes, put together as volumes for a tool that wants three dimensions.

# %%
#| default_exp integrations.nnunet_volumes

# %%
#| export
from pathlib import Path
from typing import NamedTuple

import numpy as np
from skimage.io import imsave

from ctseg.core.errors import InputError
from ctseg.io.canvas import paste
from ctseg.io.geometry import as_volume, slice_axes
from ctseg.io.index import read_index
from ctseg.io.volumes import import_volumes_package

# %%
#| hide
import os
import shutil
import tempfile

from fastcore.test import test_close, test_eq, test_fail

from ctseg.data.challenge import read_challenge
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.nifti import read_label_map
from ctseg.io.slicing import Slicing
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

# %% [markdown]
# A folder made by `ctseg import` has an [index](../io/50_index.ipynb) that says which volume and which place each slice came from. So the slices can be put together again. The result lies
# where the scan lay, with the pixels of the slices as they are: what was resampled stays so, and nothing is invented.
#
# ## Can they?
#
# A stack needs slices at equal distances, and one window for all of them: two windows would give one tissue two values.

# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
scans = torso_scans()

def cut_folder(name, **how):
    "The three toy scans as a challenge folder."
    cases = [Case(n, lambda v=v: v) for n, v in scans.items()]
    write_volumes(cases, work/name, TORSO_CLASSES, Slicing(**how))
    return work/name


# %%
#| export
class NoVolumes(InputError):
    "Slices that cannot be put together as volumes, though nothing is wrong with them."

def _why_not(lines: list[dict]) -> str: # "": they can
    "Why the slices of a volume, in their order, cannot be one stack."
    numbers = [line["slice"] for line in lines]
    if len(numbers) < 2: return "has one slice only"
    if len(set(np.diff(numbers))) > 1: return "has gaps between its slices"
    windows = {tuple(line["window"]) for line in lines}
    return "has slices of several windows" if len(windows) > 1 else ""

class VolumeStack(NamedTuple):
    "The slices of a volume."
    name: str
    rows: list[int] # places of its slices in the split, from the first to the last
    lines: list[dict] # what the index says of them
    entry: dict # what the index says of the volume


# %%
print(_why_not([{"slice": z, "window": [40, 400]} for z in (0, 2, 5)]))


# %%
#| export
def find_stacks(folder, names: list[str], split: str) -> list[VolumeStack]:
    "The volumes of a split, slices in order. `NoVolumes` if some are none, `InputError` for a bad index."
    if not (Path(folder)/"index.json").exists():
        raise NoVolumes(f"{folder}: its slices were not cut from volumes (no index.json)")
    volumes, lines = read_index(folder, split)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(lines[name]["volume"], []).append(row)
    stacks = []
    for name, its in rows.items():
        its.sort(key=lambda row: lines[names[row]]["slice"])
        stack = VolumeStack(name, its, [lines[names[row]] for row in its], volumes[name])
        reason = _why_not(stack.lines)
        if reason: raise NoVolumes(f"{folder}: volume {name} {reason}")
        stacks.append(stack)
    return stacks


# %%
def told(folder):
    "The volumes and how many slices they have, or why there are none."
    try:
        return {s.name: len(s.rows) for s in find_stacks(folder, read_challenge(folder).names, "train")}
    except NoVolumes as error:
        return str(error).replace(str(work), "…")

print(told(cut_folder("whole")))
print(told(cut_folder("thinned", every=4)))
print(told(cut_folder("some", per_volume=5)))
print(told(cut_folder("windows", window="random")))


# %% [markdown]
# ## Together
#
# Slices were placed on squares, which are larger or smaller than the slice. What lies around a slice goes, and where a slice was cropped something must stand: air in an image, and in labels what the
# caller says.

# %%
#| export
def stacked(
    pixels: np.ndarray, # [n,H,W], the slices of a stack, in its order
    stack: VolumeStack,
    missing: int, # value where a slice was cropped
) -> np.ndarray: # [I,J,K], the axes of the scan
    "The pixels of a stack's slices as a volume."
    back = [[-row, -column] for row, column in (line["corner"] for line in stack.lines)]
    slices = paste(pixels, back, stack.entry["scaled"], missing)
    return as_volume(slices, np.array(stack.entry["affine"]), stack.entry["orientation"])

def stacked_affine(stack: VolumeStack) -> np.ndarray: # float [4,4]
    "Where the voxels of such a volume lie: the affine of the scan, with its own steps."
    affine = np.array(stack.entry["affine"], float)
    axes, flips = slice_axes(affine, stack.entry["orientation"])
    shape = stack.entry["shape"]
    first, last = stack.lines[0]["slice"], stack.lines[-1]["slice"]
    step, start = np.ones(3), np.zeros(3)
    depth = axes[0]
    step[depth] = (last - first)/(len(stack.lines) - 1)
    start[depth] = shape[depth] - 1 - last if flips[0] else first
    for axis, size in zip(axes[1:], stack.entry["scaled"]):
        step[axis] = shape[axis]/size
        start[axis] = step[axis]/2 - 0.5  # the middle of the first pixel
    to_scan = np.diag([*step, 1.])
    to_scan[:3, 3] = start
    return affine @ to_scan


# %% [markdown]
# Where nothing was resampled the labels are back, voxel for voxel, and every fourth slice lies where it was.

# %%
for name in ("whole", "thinned"):
    s = read_challenge(work/name)
    for stack, scan in zip(find_stacks(work/name, s.names, "train"), scans.values()):
        labels, affine = stacked(s.masks[stack.rows], stack, 0), stacked_affine(stack)
        voxel = np.argwhere(labels > 0)[7]
        place = affine @ [*voxel, 1]
        i, j, k = np.linalg.solve(scan.affine, place)[:3].round().astype(int)
        test_eq(scan.labels[i, j, k], labels[tuple(voxel)])
        if name == "whole": test_eq(labels, scan.labels)
    print(name, labels.shape, np.linalg.norm(affine[:3, :3], axis=0).round(2), "mm")


# %% [markdown]
# Grey values become Hounsfield units again, in 256 steps of the window, and cut off at its ends.

# %%
#| export
def hounsfield(grey: np.ndarray, level: float, width: float) -> np.ndarray: # int16, of the same shape
    "Grey values uint8 of a window as Hounsfield units; `level` and `width` in HU."
    hu = level + (grey/255 - 0.5)*width
    return hu.round().astype(np.int16)


# %%
test_eq(hounsfield(np.array([0, 255], np.uint8), 40, 400), [-160, 240])
s = read_challenge(work/"whole")
stack = find_stacks(work/"whole", s.names, "train")[0]
hu = hounsfield(stacked(s.images[stack.rows], stack, 0), *stack.lines[0]["window"])
scan = next(iter(scans.values()))
print("largest difference", abs(hu - scan.hu.clip(-160, 240)).max(), "HU")
test_close(hu, scan.hu.clip(-160, 240), eps=1.3)


# %% [markdown]
# ## Two forms
#
# nnU-Net reads volumes as NIfTI, and slices as PNG. Either way a data set is a list of cases, each of which is one slice or several.

# %%
#| export
class NnunetCase(NamedTuple):
    "A case of nnU-Net."
    name: str
    rows: list[int] # its slices, places in the split
    stack: VolumeStack | None = None # for volumes

class SliceForm:
    "A case a slice, as PNG."
    description = {
        # not called CT: the slices are windowed, and nnU-Net would normalise a "CT" by Hounsfield units
        "channel_names": {"0": "windowed_CT"},
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
    }

    def cases(self, names: list[str], split: str) -> list[NnunetCase]:
        "The cases of the slices of a split; `InputError` if two slices would be one case."
        named: dict[str, str] = {}
        for name in names:
            case = f"{split}_{Path(name).stem.zfill(5)}"
            if case in named:
                raise InputError(f"{named[case]} and {name} would be one case of nnU-Net; rename one")
            named[case] = name
        return [NnunetCase(case, [row]) for row, case in enumerate(named)]

    def write_image(self, path: str, pixels: np.ndarray, case: NnunetCase) -> None:
        "Grey values [1,H,W]; the path has no ending."
        imsave(f"{path}.png", pixels[0], check_contrast=False)

    def write_labels(self, path: str, labels: np.ndarray, case: NnunetCase, missing: int) -> None:
        "Labels [1,H,W]."
        imsave(f"{path}.png", labels[0], check_contrast=False)


# %%
form = SliceForm()
print([case.name for case in form.cases(["0.png", "1.png"], "train")])
test_fail(lambda: form.cases(["1.png", "01.png"], "train"), contains="would be one case")


# %%
#| export
def save_volume(voxels: np.ndarray, case: NnunetCase, path: str) -> None:
    "Write a volume [I,J,K] where the scan of a case lay; the path has no ending."
    nib = import_volumes_package("nibabel")
    image = nib.Nifti1Image(voxels, stacked_affine(case.stack))
    image.header.set_xyzt_units("mm")
    nib.save(image, f"{path}.nii.gz")

class VolumeForm:
    "A case a volume, as NIfTI in Hounsfield units."
    description = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}

    def __init__(self, folder):
        self.folder = folder

    def cases(self, names: list[str], split: str) -> list[NnunetCase]:
        "The volumes of a split; `NoVolumes` if its slices are none."
        stacks = find_stacks(self.folder, names, split)
        return [NnunetCase(stack.name, stack.rows, stack) for stack in stacks]

    def write_image(self, path: str, pixels: np.ndarray, case: NnunetCase) -> None:
        "Grey values [n,H,W], as Hounsfield units; the path has no ending."
        window = case.stack.lines[0]["window"]
        grey = stacked(pixels, case.stack, 0)
        save_volume(hounsfield(grey, *window), case, path)

    def write_labels(self, path: str, labels: np.ndarray, case: NnunetCase, missing: int) -> None:
        "Labels [n,H,W]; `missing` where slices were cropped."
        save_volume(stacked(labels, case.stack, missing), case, path)


# %%
form = VolumeForm(work/"whole")
case = form.cases(s.names, "train")[0]
form.write_labels(str(work/case.name), s.masks[case.rows], case, 0)
test_eq(read_label_map(work/f"{case.name}.nii.gz", scan.hu.shape, scan.affine), scan.labels)
shutil.rmtree(work)
