# %% [markdown]
# # Volumes
#
# > From CT volumes to slices and back: why affines matter, the index that leads home, NIfTI in and out.
#
# - skip_showdoc: true

# %%
#| default_exp volumes

# %% [markdown]
# The challenge hands out loose PNG slices. A hospital, or a public data set, hands out **volumes**: a block of Hounsfield units and
# a recipe that says where in the patient each voxel lies. This notebook cuts volumes into a challenge folder that all of `ctseg`
# understands, and it puts predictions back where they came from, voxel for voxel. DICOM is the next notebook; what the two have in common
# is here.
#
# Three things go wrong silently when this is done in a hurry: left and right get swapped, *unknown* becomes *absent*, and nobody can
# say afterwards which slice was which. So the geometry comes first.

# %%
#| export
import contextlib, csv, functools, re, shutil, zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from ctseg.anatomy import RAIDIUM54, ClassMap
from ctseg.data import SliceSet, natural_key, present_classes, read_classes, read_masks, read_pngs, still_known, write_challenge
from ctseg.files import InputError, atomic_path, did_you_mean, read_json, refuse_folder, write_json

# %%
#| hide
import os, tempfile
from itertools import permutations, product

import matplotlib.pyplot as plt
import nibabel as nib
from fastcore.test import test_close, test_eq, test_fail

from ctseg.data import read_challenge, write_masks

# %% [markdown]
# ## An array is not a place
#
# Here is a body, as a function of *where*: millimetres to the patient's **R**ight, to the front (**A**nterior) and upwards
# (**S**uperior). The liver is on the right, as it should be.

# %%
CLASSES = ClassMap.from_names(["liver", "stomach", "lung_left", "lung_right", "vertebrae"])

def body(x, y, z):
    "Hounsfield units and class of a simple torso at x mm right, y mm front, z mm up."
    hu, label = np.full(np.shape(x), -1000.), np.zeros(np.shape(x), np.uint8)
    def part(c, r, value, id=0):
        inside = ((x - c[0])/r[0])**2 + ((y - c[1])/r[1])**2 + ((z - c[2])/r[2])**2 < 1
        hu[inside], label[inside] = value, id
    part((0, 0, 0), (150, 100, 1e4), -100); part((0, 0, 0), (138, 90, 1e4), 45)
    part((62, 18, -10), (66, 62, 70), 95, 1); part((-66, 25, -15), (42, 40, 50), 15, 2)
    part((-72, 0, 105), (52, 66, 85), -850, 3); part((72, 0, 105), (52, 66, 75), -850, 4)
    part((0, -55, 0), (22, 20, 1e4), 450, 5)
    return hu, label

def scan(affine, shape):
    "The body on a grid: what a scanner would store for this affine."
    i = np.indices(shape).reshape(3, -1)
    x, y, z = affine[:3, :3] @ i + affine[:3, 3:]
    hu, label = body(x, y, z)
    noise = np.random.default_rng(0).normal(0, 12, shape)
    return (hu.reshape(shape) + noise).round().astype(np.float32), label.reshape(shape)


# %% [markdown]
# Now three scans of this one body. They differ only in the **affine**, the 4x4 matrix that takes a voxel (i, j, k, 1) to (x, y, z,
# 1) in millimetres. The first is stored as NIfTI tools like it, the second as many scanners do, with its axes in another order and
# turned round, and the third is *oblique*: the patient lay askew, so the scan was tilted and turned with him.

# %%
def affine_of(columns, shape):
    "An affine with these columns (mm per voxel along i, j, k), centred on the body."
    A = np.eye(4)
    A[:3, :3] = np.transpose(columns)
    A[:3, 3] = -A[:3, :3] @ (np.array(shape) - 1)/2 + [0, 0, 30]
    return A

def turned(degrees_z, degrees_x):
    "A rotation matrix: about the long axis of the body, then about its left-right axis."
    (c, C), (s, S) = np.cos(np.radians([degrees_z, degrees_x])), np.sin(np.radians([degrees_z, degrees_x]))
    return np.array([[1, 0, 0], [0, C, -S], [0, S, C]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

shapes = {"as NIfTI likes it": (110, 84, 40), "axes permuted and reversed": (84, 40, 110), "oblique, other voxel sizes": (110, 90, 50)}
columns = [np.diag([3, 3, 6.]), [[0, -3, 0], [0, 0, -6], [-3, 0, 0]], (turned(14, 12) @ np.diag([-3, -2.8, 5])).T]
affines = [affine_of(c, s) for c, s in zip(columns, shapes.values())]
scans = [scan(A, s) for A, s in zip(affines, shapes.values())]
affines[1]

# %% [markdown]
# A slicer that only knows arrays takes `a[:, :, k]` and hopes. One that reads the affine asks: *which array axis runs most nearly
# up, which to the back, which to the left?* and *in which direction?* The answer is a permutation and some reversals; no voxel is
# resampled, so nothing is lost and everything can be undone.
#
# The orientation is named as in [NIfTI tools](https://nipy.org/nibabel/coordinate_systems.html), by the direction in which an index
# *grows*: `SPL` means that slices go up (**S**), rows go to the back (**P**) and columns go to the patient's **L**eft. That is how
# radiologists look at a slice: from the feet, the patient's right on the viewer's left. The challenge's frame is turned by 90
# degrees against it: there, as in `SLA`, a vertical flip (of the rows) exchanges left and right. And `AIL` would cut coronal slices.

# %%
#| export
_TOWARD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}

def slice_axes(
    affine: np.ndarray, # float [4,4]: voxel (i,j,k,1) → mm right, front, up
    orientation: str = "SPL", # where slices, rows and columns shall go
) -> tuple[list[int], list[bool]]: # the array axis for each, and whether it must be reversed
    "Which array axis runs along slices, rows and columns. An oblique axis counts as the one it is nearest to."
    try: world, sign = zip(*(_TOWARD[c] for c in orientation))
    except (KeyError, TypeError, ValueError): world = ()
    if sorted(world) != [0, 1, 2]:
        raise InputError(f"orientation {orientation!r}: expected three letters, one of R/L, one of A/P, one of S/I, such as SPL")
    direction = affine[:3, :3]/np.linalg.norm(affine[:3, :3], axis=0)
    nearest = linear_sum_assignment(-np.abs(direction))[1]  # the array axis for right, front, up: each is given once
    return [int(nearest[w]) for w in world], [bool(direction[w, nearest[w]]*s < 0) for w, s in zip(world, sign)]

def _reversed(a, flip): return a[tuple(slice(None, None, -1 if f else 1) for f in flip)]

def as_slices(a: np.ndarray, affine, orientation="SPL") -> np.ndarray:
    "A volume [I,J,K] as a stack of slices [Z,H,W]: axes permuted and reversed, nothing resampled."
    axes, flip = slice_axes(affine, orientation)
    return _reversed(a.transpose(axes), flip)

def as_volume(stack: np.ndarray, affine, orientation="SPL") -> np.ndarray:
    "The way back: slices [Z,H,W] as the volume [I,J,K] they were cut from."
    axes, flip = slice_axes(affine, orientation)
    return _reversed(stack, flip).transpose(np.argsort(axes))


# %%
fig, axes = plt.subplots(2, 3, figsize=(9, 5.2), layout="constrained")
for col, (name, A, (hu, label)) in enumerate(zip(shapes, affines, scans)):
    k = hu.shape[2]*2//5
    z = as_slices(hu, A)
    mm = np.linalg.norm(A[:3, :3], axis=0)
    size = lambda a, b: dict(cmap="gray", vmin=-250, vmax=250, aspect=a/b)
    axes[0, col].imshow(hu[:, :, k], **size(mm[0], mm[1]))
    order = slice_axes(A)[0]
    axes[1, col].imshow(z[len(z)*2//5], **size(mm[order[1]], mm[order[2]]))
    axes[0, col].set_title(f"{name}\na[:, :, {k}]", fontsize=9); axes[1, col].set_title("by the affine, SPL", fontsize=9)
for ax in axes.flat: ax.set(xticks=[], yticks=[])
axes[1, 0].text(3, 42, "R", color="w", va="center"); axes[1, 0].text(103, 42, "L", color="w", va="center");

# %% [markdown]
# Above, three pictures that have little to do with each other, one of them not even axial. Below, the same liver in the same place.
# The oblique scan stays askew, because its own planes are kept; turning it straight would mean inventing voxels between voxels, and
# no way back.
#
# That the way back is exact is checked for every orientation there is, and the choice of axes against nibabel's.

# %%
codes = ["".join(c) for p in permutations(["RL", "AP", "SI"]) for c in product(*p)]
test_eq(len(codes), 48)
for (hu, label), A in zip(scans, affines):
    for c in codes: assert (as_volume(as_slices(label, A, c), A, c) == label).all()
    for c in codes[::5]:
        turn = nib.orientations.ornt_transform(nib.io_orientation(A), nib.orientations.axcodes2ornt(c))
        test_eq(as_slices(label, A, c), nib.apply_orientation(label, turn))
test_fail(lambda: slice_axes(affines[0], "SPQ"), contains="three letters")

# %% [markdown]
# ## From Hounsfield units to 256 greys
#
# A CT voxel has some 4000 possible values, a PNG pixel 256. The **window** chooses which part of the range is shown: all below it
# is black, all above white. With level $c$ and width $w$ the grey is $255\,(\frac{x - c}{w} + \frac12)$, clipped ([DICOM PS3.3,
# C.11.2.1.3.2](https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.11.2.html), LINEAR_EXACT).
#
# In the challenge each slice was windowed on its own before the 8 bits were written. `"random"` does the like: it draws one of
# the usual windows for each slice and varies it. A network trained so does not care how somebody else windows; the index keeps
# what was drawn.

# %%
#| export
WINDOWS = dict(soft=(40., 400.), lung=(-600., 1500.), bone=(400., 1800.), wide=(0., 2000.))  # name: (level, width) in HU

def to_8bit(
    hu: np.ndarray, # Hounsfield units
    level: float, # the middle of the window
    width: float, # its width
) -> np.ndarray: # uint8
    "Show Hounsfield units through a window (DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT)."
    return (((np.asarray(hu) - level)/width + .5)*255).round().clip(0, 255).astype(np.uint8)

def draw_window(rng) -> tuple[float, float]:
    "A random (level, width): half of them for soft tissue, the rest for lung, bone or all, varied by a fifth."
    level, width = WINDOWS[rng.choice(list(WINDOWS), p=[.5, .15, .15, .2])]
    width *= rng.uniform(.8, 1.25)
    return round(level + rng.uniform(-.1, .1)*width, 1), round(width, 1)


# %%
test_eq(to_8bit(np.array([-2000, -160, 40, 240, 3000]), 40, 400), [0, 0, 128, 255, 255])
rng = np.random.default_rng(3)
z = as_slices(scans[0][0], affines[0])[22]
fig, axes = plt.subplots(1, 4, figsize=(11, 2.5), layout="constrained")
for ax, name in zip(axes, ["soft", "lung", "bone", "random"]):
    level, width = WINDOWS.get(name) or draw_window(rng)
    ax.imshow(to_8bit(z, level, width), cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{name}: level {level:g}, width {width:g}", fontsize=9); ax.axis("off")


# %% [markdown]
# ## How to cut
#
# All decisions about cutting are fields of one object. By default nothing is lost: every slice, every pixel. Images of one
# challenge folder must have one size, and square, because a CSV of masks tells only how many pixels there are; so smaller ones get
# a margin of air. `size` alone crops around the middle of the body, `spacing` resamples to millimetres per pixel first, and
# `spacing="fit"` makes the whole slice fit. Only resampling costs exactness on the way back.

# %%
#| export
@dataclass(frozen=True)
class Slicing:
    "How volumes are cut into slices."
    orientation: str = "SPL" # where slices, rows and columns go; see `slice_axes`
    window: str|tuple[float, float] = "soft" # a name in `WINDOWS`, (level, width), or "random": drawn for each slice
    every: int = 1 # each n-th slice
    per_volume: int|None = None # at most this many slices of a volume, drawn at random; `None`: all
    size: int|None = None # side of the images in pixels; `None`: the longest side of any slice
    spacing: float|str|None = None # resample to mm per pixel; "fit": so that the slice fits; `None`: keep the pixels
    min_body: float = 0. # leave out slices with less body than this, cm²
    seed: int = 0 # for random windows and random slices

    def __post_init__(self):
        slice_axes(np.eye(4), self.orientation)
        if isinstance(self.window, str):
            if self.window not in (names := [*WINDOWS, "random"]): raise did_you_mean("window", self.window, names)
        elif len(self.window) != 2 or not self.window[1] > 0:
            raise InputError(f"window {self.window}: expected (level, width) with a width above 0")
        for name in ("every", "per_volume", "size"):
            if (v := getattr(self, name)) is not None and (type(v) is not int or v < 1):
                raise InputError(f"{name} {v!r}: expected a whole number from 1")
        if self.spacing == "fit" and self.size is None:
            raise InputError("spacing='fit' needs a size to fit into; give size, for instance 256")
        if not (self.spacing in (None, "fit") or (not isinstance(self.spacing, str) and self.spacing > 0)):
            raise InputError(f"spacing {self.spacing!r}: expected mm per pixel above 0, or 'fit'")

    @property
    def level_width(self) -> tuple[float, float]:  # of a fixed window
        return tuple(map(float, WINDOWS[self.window] if isinstance(self.window, str) else self.window))


# %% [markdown]
# A `Volume` carries the voxels, the affine, and what is known of it: the third state of `ctseg`, here per volume. `positions` is for
# scans whose slices are *unevenly* spaced, which no affine can express; only DICOM has those.

# %%
#| export
@dataclass(frozen=True)
class Volume:
    "One CT volume on its own grid."
    hu: np.ndarray # float32 [I,J,K], Hounsfield units
    affine: np.ndarray # float64 [4,4]: voxel (i,j,k,1) → mm right, front, up
    labels: np.ndarray|None = None # uint8 [I,J,K]; 0 = background or unknown; `None`: no labels
    known: np.ndarray|None = None # bool [C]: classes examined; `None`: those with voxels
    positions: np.ndarray|None = None # float64 [K,3]: where voxel (0,0,k) lies, if the spacing is uneven
    kind: str = "nifti" # where it came from
    digest: str = "" # tells whether another file is the same one, without naming it
    overlap: int = 0 # voxels claimed by two structures
    drawn: list|None = None # where structures were drawn before one hid another: for each axis bool [256,n], by class id; `None`: as in `labels`


# %%
#| export
def flags(ids, C: int) -> np.ndarray: return np.isin(np.arange(1, C + 1), list(ids))  # class ids as bool [C]


# %% [markdown]
# Cutting gives a `Part`: the slices of one volume, before they are placed on a common square. The body is what is denser than
# -624 HU, more or less all that is not air; on each slice its middle is where a crop will be centred.

# %%
#| export
@dataclass
class Part:
    "The slices cut from one volume."
    images: np.ndarray # uint8 [n,h,w]
    masks: np.ndarray # uint8 [n,h,w]
    slices: np.ndarray # int [n]: their numbers in the oriented stack
    windows: list # (level, width) of each
    centres: np.ndarray # float [n,2]: the middle of the body on each, row and column

def _resize(x: np.ndarray, size, mode: str) -> np.ndarray:
    "Resize slices [n,h,w]: bilinear for images (smoothed when shrinking), nearest for masks."
    if x.shape[1:] == tuple(size) or not len(x): return np.ascontiguousarray(x).reshape(len(x), *size)
    how = dict(mode="bilinear", antialias=True, align_corners=False) if mode == "image" else dict(mode="nearest-exact")
    out = [F.interpolate(torch.from_numpy(np.ascontiguousarray(s, np.float32))[None, None], tuple(size), **how)[0, 0].numpy() for s in x]
    return np.stack(out).astype(x.dtype)

def _scaled(shape, mm, how: Slicing) -> tuple[int, int]:
    "Height and width of a slice of `shape` pixels of `mm` after resampling."
    if how.spacing is None: return tuple(map(int, shape))
    to = max(n*m for n, m in zip(shape, mm))/how.size if how.spacing == "fit" else how.spacing
    return tuple(max(1, int(round(n*m/to))) for n, m in zip(shape, mm))


# %%
#| export
_BODY = -624  # HU; on OpenKBP's scale a round 400

def _choose(body, mm, how: Slicing, rng) -> np.ndarray:
    "The numbers of the slices to cut."
    keep = np.arange(0, len(body), how.every)
    keep = keep[body[keep].sum((1, 2))*mm.prod()/100 >= how.min_body]
    return np.sort(rng.choice(keep, how.per_volume, replace=False)) if how.per_volume and len(keep) > how.per_volume else keep

def _middle(body, size) -> np.ndarray:
    "The centroid of the body on each slice [n,h,w], in pixels of slices resized to `size`: float [n,2]. Without a body, of the frame."
    at = [[n @ np.arange(len(n))/max(n.sum(), 1) for n in (b.sum(1), b.sum(0))] if b.any() else (np.array(b.shape) - 1)/2 for b in body]
    return np.array(at, float).reshape(-1, 2)*np.array(size)/body.shape[1:]


# %%
#| export
def cut(
    v: Volume,
    how: Slicing,
    salt: str = "", # volumes told apart by this draw different windows
    slices = None, # the numbers of the slices; `None`: as `how` says
    windows = None, # (level, width) of each; `None`: as `how` says
) -> Part:
    "Cut a volume into 8-bit slices and masks."
    axes, _ = slice_axes(v.affine, how.orientation)
    if v.positions is not None and axes[0] != 2:
        raise InputError(f"orientation {how.orientation} cuts across the scan's own slices, which are unevenly spaced; "
                         f"choose another orientation")
    rng = np.random.default_rng([how.seed, zlib.crc32(salt.encode())])
    stack, mm = as_slices(v.hu, v.affine, how.orientation), np.linalg.norm(v.affine[:3, :3], axis=0)[axes[1:]]
    size = _scaled(stack.shape[1:], mm, how)
    keep = _choose(stack > _BODY, mm, how, rng) if slices is None else np.asarray(slices, int)
    if windows is None: windows = [draw_window(rng) if how.window == "random" else how.level_width for _ in keep]
    images = np.zeros((len(keep), *size), np.uint8)
    for i, (hu, w) in enumerate(zip(_resize(stack[keep], size, "image"), windows)): images[i] = to_8bit(hu, *w)
    labels = np.zeros(v.hu.shape, np.uint8) if v.labels is None else v.labels
    masks = _resize(as_slices(labels, v.affine, how.orientation)[keep], size, "mask")
    return Part(images, masks, keep, windows, _middle(stack[keep] > _BODY, size))


# %% [markdown]
# Placing is one function in both directions. Pasting an image onto a canvas at a corner crops and pads at once, and pasting the
# *canvas* onto the image at the opposite corner is the way back. A margin that has to be added shows air through the slice's own
# window.

# %%
#| export
def _paste(stack: np.ndarray, corners, size, fill) -> np.ndarray:
    "Slices [n,h,w] on canvases [n,*size], pixel (0, 0) of each at its corner, which may lie outside; `fill` (one, or one each) around."
    out = np.empty((len(stack), *size), stack.dtype)
    out[:] = np.reshape(fill, (-1, 1, 1))
    for canvas, image, corner in zip(out, stack, corners):
        span = [(max(0, c), min(s, c + n)) for c, s, n in zip(corner, size, image.shape)]
        if all(a < b for a, b in span):
            canvas[tuple(slice(a, b) for a, b in span)] = image[tuple(slice(a - c, b - c) for (a, b), c in zip(span, corner))]
    return out

def _corners(part: Part, side: int) -> np.ndarray:
    "Where on a square each slice's pixel (0, 0) goes, int [n,2]: small images into the middle, of large ones the part around the body."
    shape = np.array(part.images.shape[1:])
    crop = np.clip(np.floor(part.centres).astype(int) - side//2, 0, np.maximum(shape - side, 0))
    return np.where(shape > side, -crop, (side - shape)//2)


# %%
square = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4)
print(_paste(square, [(1, -1)], (4, 5), 0)[0])
test_eq(_paste(_paste(square, [(1, 2)], (6, 6), 0), [(-1, -2)], (3, 4), 0), square)
test_eq(_paste(square, [(9, 0)], (4, 4), 0).max(), 0)


# %% [markdown]
# ## The index
#
# A challenge folder made from volumes has one more file, `index.json`. It answers: *this PNG, which volume and which slice was it, and
# where does a pixel lie in the patient?* For each volume it holds the shape, the affine, the orientation and the size after resampling; for
# each image the volume, the slice number, the window and the corner where it was placed.
#
# What it must **not** hold is a patient. File and folder names are names of people more often than one would think, so volumes are
# called `v000`, `v001`, … in the order of the source. Who needs to go back to the source asks for a `key`, a table outside the
# folder, and keeps it private.

# %%
#| export
@dataclass
class Case:
    "A volume that can be loaded, and what is said of it beforehand."
    source: str # where it is; goes into the key only
    load: Callable # () -> Volume
    patient: object = None # volumes of one patient belong together; an int becomes the group number, else it is only compared
    known: np.ndarray|None = None # bool [C]; `None`: not known before it is loaded
    split: str = "train"
    id: str = "" # a public name without a patient in it; "": `v000`, …
    shown: str = "" # what an error message calls it; "": its id

def _name(cases: list[Case]):
    "Give each case its public name and its patient a number."
    digits = max(3, len(str(len(cases) - 1)))
    for i, c in enumerate(cases):
        c.id = c.id or f"v{i:0{digits}}"
        if c.patient is None: c.patient = c.source
    first = {}
    for c in cases:
        if (other := first.setdefault(c.id, c)) is not c:
            raise InputError(f"{c.shown or c.source}: would be called {c.id}, as {other.shown or other.source} is; rename one, or let ctseg number the volumes")
    if not all(type(c.patient) is int for c in cases):
        number = {}
        for c in cases: c.patient = number.setdefault(str(c.patient), len(number))


# %% [markdown]
# Some patients can be set aside as a test. In the challenge's form a test is annotated fully or not at all, so only patients
# of whom every class is known can go there; the partly labelled ones are for training. Where the source has a test of its own, it is
# held to the same rule, if possible before hours are spent on loading.

# %%
#| export
def _set_aside(cases: list[Case], share: float, seed: int):
    "Move a share of the patients into the test split, whole patients, among those of whom everything is known (or of nobody anything)."
    if not 0 <= share <= 1: raise InputError(f"test_share {share}: expected 0 to 1")
    if not share: return
    patients = list(dict.fromkeys(c.patient for c in cases))
    none = all(c.known is not None and not c.known.any() for c in cases)
    full = [p for p in patients if none or all(c.known is not None and c.known.all() for c in cases if c.patient == p)]
    want = max(1, round(share*len(patients)))
    if want > len(full):
        raise InputError(f"test_share {share} means {want} patients, but only {len(full)} of {len(patients)} have every class examined, "
                         "which a test needs; choose a smaller share or fewer classes")
    chosen = set(np.random.default_rng(seed).permutation(len(full))[:want].tolist())
    for c in cases:
        if c.patient in [full[i] for i in chosen]: c.split = "test"

def _check_test(cases: list[Case]):
    "Raise an `InputError` for a test of which some volumes are annotated, but not all of them fully; what is not known yet is passed over."
    tests = [c for c in cases if c.split == "test" and c.known is not None]
    part = [c for c in tests if not c.known.all()]
    if part and any(c.known.any() for c in tests):
        raise InputError(f"{part[0].shown or part[0].id}: a test volume on which {'not every' if part[0].known.any() else 'no'} class was examined; "
                         "a test is annotated fully or not at all, move this one to the training volumes or take it out")


# %% [markdown]
# Now the challenge folder. A label whose class was not examined would be a contradiction; whoever made the labels gets told. The folder
# appears complete or not at all.

# %%
#| export
def _known(v: Volume, C: int, where: str) -> np.ndarray:
    "The classes known of a volume, bool [C]; labels outside of them are a contradiction."
    if v.labels is None: return np.zeros(C, bool)
    there = present_classes(v.labels, 255).any(0)  # plane by plane: a histogram would widen all voxels to 8 bytes
    if there[C:].any(): raise InputError(f"{where}: the label map holds {int(np.flatnonzero(there).max()) + 1}, but there are {C} classes")
    if v.known is None: return there[:C]
    if (odd := there[:C] & ~v.known).any():
        raise InputError(f"{where}: labels of class {int(odd.argmax()) + 1}, which is not among the classes examined on it; "
                         f"add it there or remove them")
    return v.known

def _known_by_slice(v: Volume, known: np.ndarray, part: Part, how: Slicing) -> np.ndarray:
    "`known` [C] of each slice, bool [n,C], without what other structures or a coarser grid have hidden."
    axes, flip = slice_axes(v.affine, how.orientation)
    if v.labels is None: return np.repeat(known[None], len(part.slices), 0)
    if v.drawn is None: drawn = present_classes(as_slices(v.labels, v.affine, how.orientation)[part.slices], len(known))
    else: drawn = v.drawn[axes[0]][1:len(known) + 1, ::-1 if flip[0] else 1][:, part.slices].T
    return still_known(np.repeat(known[None], len(drawn), 0), drawn, part.masks)

def _entry(v: Volume, how: Slicing, patient: int) -> dict:
    "What the index says of a volume, before its slices have a place."
    return dict(kind=v.kind, patient=patient, shape=list(v.hu.shape), affine=np.asarray(v.affine).tolist(), orientation=how.orientation,
                positions=None if v.positions is None else v.positions.tolist(), digest=v.digest)

def _new_folder(out) -> Path:
    "The output folder, which must not hold anything yet."
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already exists and is not empty; choose a new folder")
    return out


# %%
#| export
def _gather(rows, C: int, side: int) -> tuple[tuple, dict]:
    "The arrays of a `SliceSet` (images, masks, known, names, groups) and the lines of the index. `rows`: (case, known [n,C], part, entry); emptied, so that each part is let go once it is pasted."
    n = sum(len(part.slices) for _, _, part, _ in rows)
    images, masks = np.zeros((n, side, side), np.uint8), np.zeros((n, side, side), np.uint8)
    known, groups, lines, i = np.zeros((n, C), bool), np.zeros(n, np.int64), {}, 0
    rows.reverse()
    while rows:
        case, k, part, entry = rows.pop()
        to, corners = slice(i, i + len(part.slices)), _corners(part, side)
        images[to] = _paste(part.images, corners, (side,)*2, [to_8bit(-1024, *w) for w in part.windows])
        masks[to], known[to], groups[to] = _paste(part.masks, corners, (side,)*2, 0), k, case.patient
        entry["scaled"] = list(part.images.shape[1:])
        for z, w, corner in zip(part.slices.tolist(), part.windows, corners.tolist()):
            lines[f"{i}.png"] = dict(volume=case.id, slice=z, window=list(w), corner=corner)
            i += 1
    return (images, masks, known, list(lines), groups), lines

def _write_folder(out, classes: ClassMap, volumes: dict, splits: dict) -> dict:
    "Write a challenge folder and its index, whole or not at all. `splits`: split → (arrays, lines). Returns how many images each has."
    with atomic_path(out) as tmp:
        for split, (arrays, lines) in splits.items():
            if lines: write_challenge(SliceSet(*arrays, classes), tmp, split)
        index = dict(version=1, volumes=volumes, images={split: lines for split, (_, lines) in splits.items()})
        write_json(index, tmp/"index.json", indent=None)
    return {split: len(lines) for split, (_, lines) in splits.items()}


# %%
#| export
def write_volumes(
    cases: list[Case],
    out, # the challenge folder, new
    classes: ClassMap,
    how: Slicing,
    test_share: float = 0., # share of the patients set aside as a test
    key = None, # where to write the table volume → source, outside `out`; `None`: nowhere
) -> dict: # facts about what was written
    "Cut volumes into a challenge folder with an `index.json`. Each volume is loaded once and let go."
    out = _new_folder(out)
    if key is not None and out.resolve() in Path(key).resolve().parents:
        raise InputError(f"key {key} lies in {out}; it names patients, keep it elsewhere")
    if not cases: raise InputError(f"{out}: no volumes to write")
    _name(cases)
    _set_aside(cases, test_share, how.seed)
    _check_test(cases)
    rows, overlap, lost = {"train": [], "test": []}, 0, 0
    for case in cases:
        row, hidden, twice = _cut_case(case, classes, how)
        rows[case.split].append(row)
        overlap, lost = overlap + twice, lost + hidden
    _check_test(cases)
    shapes = [part.images.shape for split in rows.values() for _, _, part, _ in split]
    if not sum(n for n, *_ in shapes): raise InputError(f"{out}: no slice is left; lower min_body ({how.min_body} cm²)")
    side = how.size or max(max(size) for _, *size in shapes)
    labelled = sum(int(k.any(1).sum()) for split in rows.values() for _, k, *_ in split)
    volumes = {case.id: entry for split in rows.values() for case, _, _, entry in split}
    splits = {split: _gather(r, len(classes), side) for split, r in rows.items()}
    with _key(cases, key): counts = _write_folder(out, classes, volumes, splits)
    counted = dict(volumes=len(cases), patients=len({c.patient for c in cases}), classes=len(classes))
    return counted | counts | dict(labelled=labelled, size=side, overlapping_voxels=overlap, hidden_cells=lost)


# %%
#| export
def _cut_case(case: Case, classes: ClassMap, how: Slicing) -> tuple[tuple, int, int]:
    "Load a volume, cut it, and let it go: (case, known [n,C], part, entry), how many cells are hidden, how many voxels two structures claim."
    v = case.load()
    part, case.known = cut(v, how, case.id), _known(v, len(classes), case.shown or case.id)
    k = _known_by_slice(v, case.known, part, how)
    hidden = int((case.known & ~k).sum())
    if case.split == "test": k[:] = case.known  # a test has no file that could say so
    return (case, k, part, _entry(v, how, case.patient)), hidden, v.overlap

@contextlib.contextmanager
def _key(cases: list[Case], path):
    "Write the private table, which volume came from where, before the block; it takes its name when the block ends well. `None`: no table."
    if path is None: yield; return
    refuse_folder(path)
    with atomic_path(path) as tmp:
        with open(tmp, "w", newline="", encoding="utf-8") as f:
            csv.writer(f, lineterminator="\n").writerows([("volume", "source"), *((c.id, c.source) for c in cases)])
        yield


# %% [markdown]
# Try it with the three scans, straight from memory. In the first scan only the liver and the stomach were examined; in the second
# everything; the third has no labels.

# %%
def case(i, **kw):
    (hu, label), A = scans[i], affines[i]
    known = [np.array([1, 1, 0, 0, 0], bool), np.ones(5, bool), None][i]
    if known is not None: label = label*np.r_[True, known][label]
    v = Volume(hu, A, None if known is None else label, known)
    return Case(f"scan {i}", lambda: v, **kw)

work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
facts = write_volumes([case(i) for i in range(3)], work/"torsos", CLASSES, Slicing(window="random", seed=1), key=work/"key.csv")
facts

# %%
s = read_challenge(work/"torsos")
print(s)
print((work/"key.csv").read_text())
index = read_json(work/"torsos"/"index.json")
{k: v for k, v in index["volumes"]["v001"].items() if k != "affine"}, index["images"]["train"]["41.png"]

# %%
fig, axes = plt.subplots(1, 5, figsize=(11, 2.5), layout="constrained")
for ax, i in zip(axes, [16, 23, 60, 66, 115]):
    ax.imshow(s.images[i], cmap="gray", vmin=0, vmax=255)
    ax.imshow(np.dstack([CLASSES.colourise(s.masks[i]), (s.masks[i] > 0)*110]).astype(np.uint8))
    line = index["images"]["train"][f"{i}.png"]
    ax.set_title(f"{i}.png = {line['volume']}, slice {line['slice']}\nknown: {s.known[i].sum()} of 5", fontsize=9); ax.axis("off")


# %% [markdown]
# The same slice of the first two scans: on the first the lungs are unknown, so their mask is 0 and so is `known`; nothing learns
# that there are none.
#
# ## The way back
#
# `restack` undoes every step with the help of the index. Slices that were never cut out have no prediction; they are filled
# with `missing`, 0 by default. Choose 255 to keep "nobody looked" apart from "nothing there".

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
    shape = [entry["shape"][a] for a in axes]
    part = _paste(masks, [[-c for c in line["corner"]] for line in lines], entry["scaled"], missing)
    stack = np.full(shape, missing, np.uint8)
    stack[[line["slice"] for line in lines]] = _resize(part, shape[1:], "mask")
    return as_volume(stack, affine, entry["orientation"])


# %% [markdown]
# Exactly? The labels of the second scan, cut, written as PNG and CSV, read, and put back:

# %%
lines = index["images"]["train"]
mine = [i for i, n in enumerate(s.names) if lines[n]["volume"] == "v001"]
back = restack(s.masks[mine], index["volumes"]["v001"], [lines[s.names[i]] for i in mine])
test_eq(back, scans[1][1])


# %% [markdown]
# ## NIfTI
#
# [NIfTI](https://nifti.nimh.nih.gov/nifti-1) files hold the affine in their header, in the very convention used here. Reading them needs
# nibabel, an optional dependency.

# %%
#| export
def _need(module: str):
    "Import an optional dependency, or tell how to get it."
    import importlib
    try: return importlib.import_module(module)
    except ImportError as e:
        raise InputError(f"{module.split('.')[0]} is not installed, volumes need it; run: pip install 'ctseg[volumes]'") from e

def read_nifti(
    path, # `.nii` or `.nii.gz`
    dtype=np.float32, # of the voxels; `None`: as in the file
) -> tuple[np.ndarray, np.ndarray]: # voxels [I,J,K], affine float64 [4,4]
    "Read a 3D NIfTI volume; `InputError` for one that is damaged, not 3D, or has no affine."
    nib = _need("nibabel")
    if not Path(path).is_file(): raise InputError(f"{path}: no such file")
    try:
        image = nib.load(path)
        data = np.asanyarray(image.dataobj)
    except Exception as e:  # nibabel, gzip and zlib raise a dozen kinds for a damaged file
        raise InputError(f"{path}: not a readable NIfTI file ({type(e).__name__}); it is damaged or something else, "
                         f"copy it again") from None
    if not isinstance(image, nib.Nifti1Image): raise InputError(f"{path}: not a NIfTI file; expected .nii or .nii.gz")
    while data.ndim > 3 and data.shape[-1] == 1: data = data[..., 0]  # "a series of one volume", as some tools write
    if data.ndim != 3:
        raise InputError(f"{path}: {data.ndim}D, {'x'.join(map(str, data.shape))}; expected one 3D volume, split a series into volumes")
    if data.dtype.kind not in "iuf": raise InputError(f"{path}: voxels of type {data.dtype}; expected plain numbers")
    if not image.header["sform_code"] and not image.header["qform_code"]:
        raise InputError(f"{path}: has no affine (sform and qform codes are 0), so left and right cannot be told; export it again with one")
    A = image.affine
    if not np.isfinite(A).all() or abs(np.linalg.det(A[:3, :3])) < 1e-9:
        raise InputError(f"{path}: its affine cannot be inverted; export it again")
    return data if dtype is None else np.nan_to_num(data.astype(dtype), copy=False, nan=-1024), A


# %% [markdown]
# Labels come in two shapes. A **label map** holds a class number per voxel. Or there is **one file per structure**, which is the
# happier form: a file that is empty says *absent*, and one that does not exist says *unknown*.
#
# In a label map the examined classes must be told separately. As for the challenge, `annotated_labels.json` does it, here an object
# `{"case": ["liver", ...]}`; without it the reader does not guess.

# %%
#| export
def _read_labels(path, shape, affine) -> np.ndarray:
    "A label map or a structure's mask, uint8 [I,J,K], checked to lie on the grid of its image."
    data, A = read_nifti(path, None)
    if data.shape != tuple(shape):
        raise InputError(f"{path}: {'x'.join(map(str, data.shape))} voxels, its image has {'x'.join(map(str, shape))}; resample it")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    if (off := np.abs((A - affine)[:3, :3] @ corners + (A - affine)[:3, 3:]).max()) > .1:
        raise InputError(f"{path}: lies up to {off:.1f} mm from its image (the affines differ); resample it onto the image")
    if (data.dtype.kind == "f" and (data != np.round(data)).any()) or data.min() < 0 or data.max() > 255:
        raise InputError(f"{path}: not a label map; expected whole numbers from 0 to 255")
    return data.astype(np.uint8)

def combine(
    shape, # of the volume
    structures, # pairs of a class id and its mask, bool [I,J,K]; may be made one at a time
    by_size: bool = True, # the smaller structure wins; else the one with the larger id
) -> tuple[np.ndarray, int, list]: # labels uint8 [I,J,K]; how many voxels two structures claim; for each axis bool [256,n]: where along it a class was drawn
    "One label map from single structures. Where they overlap the smaller one wins, so that none is swallowed; or the later one."
    drawn = [np.zeros((256, n), bool) for n in shape]
    labels, twice, rank = np.zeros(np.prod(shape), np.uint8), np.zeros(np.prod(shape), bool), np.full(256, np.inf)
    for id, mask in structures:
        for axis, d in enumerate(drawn): d[id] |= mask.reshape(shape).any(tuple({0, 1, 2} - {axis}))
        at = np.flatnonzero(mask)
        rank[id] = len(at)*256*by_size - id  # the lower rank wins
        there = labels[at]
        twice[at[there > 0]] = True
        labels[at[rank[there] > rank[id]]] = id
    return labels.reshape(shape), int(twice.sum()), drawn


# %%
big, small = np.ones((2, 3, 4), bool), np.zeros((2, 3, 4), bool)
small[0, 0] = True
labels, overlap, drawn = combine((2, 3, 4), [(1, small), (2, big)])
test_eq((labels[0, 0], overlap, (labels == 2).sum()), ([1]*4, 4, 20))
test_eq(combine((2, 3, 4), [(2, big), (1, small)])[0], labels)  # in whatever order they come


# %% [markdown]
# Some structures are nothing but the union of others, `lungs` of both sides. On a slice where nothing is left of them they are *not absent*, though a table of one number a pixel cannot show them: such a cell is written as unknown and counted in
# `hidden_cells`. So is one of which a coarser grid has left no pixel, and a slice between two contours that has none itself ([DICOM](15_dicom.ipynb)). What lies outside of a cropped picture, however, is truly not on it.

# %% [markdown]
# Three layouts of folders are understood:
#
#     SRC/images/p1.nii.gz   SRC/labels/p1.nii.gz          label maps; also nnU-Net's imagesTr, labelsTr, imagesTs, labelsTs
#     SRC/p1/ct.nii.gz       SRC/p1/segmentations/liver.nii.gz …   one file per structure
#     SRC/p1.nii.gz                                        volumes without labels
#
# Names of classes are taken from `class_names.json`, from nnU-Net's `dataset.json`, or from the names of the structure files. Files of
# structures that are no class are told among the facts, and it is an error if that is true of all of them.
#
# Each volume counts as a patient of its own. If some patients were scanned more than once, their scans must not be torn apart by a fold or
# by `test_share`, and only you know which they are: a `patients.json` in the source, `{"p1_2019": "p1", "p1_2021": "p1", "p2": "p2"}`, names
# the patient of each case. The names are compared and not kept.

# %%
#| export
def _stem(p: Path) -> str: return re.sub(r"(_0000)?\.nii(\.gz)?$", "", p.name, flags=re.IGNORECASE)

def _niftis(folder: Path) -> dict[str, Path]:
    "The NIfTI files of a folder by case name, in natural order."
    files = sorted((p for p in folder.iterdir() if p.is_file() and p.name.lower().endswith((".nii", ".nii.gz")) and not p.name.startswith(".")),
                   key=lambda p: natural_key(p.name)) if folder.is_dir() else []
    out = {}
    for p in files:
        if _stem(p) in out: raise InputError(f"{folder}: {out[_stem(p)].name} and {p.name} are the same case; remove one")
        out[_stem(p)] = p
    if folder.name in ("imagesTr", "imagesTs"):  # elsewhere _0001 may be the number of a case
        for n, p in out.items():
            if (m := re.fullmatch(r"(.+)_\d{4}", n)) and m[1] in out:
                raise InputError(f"{folder}: {out[m[1]].name} and {p.name} are channels of one case; keep the CT and take the others out")
    return out

def _nifti_classes(src: Path, classes, found) -> ClassMap:
    "The classes: as given, from a file in the source, or the structures found."
    if isinstance(classes, ClassMap): return classes
    if classes is not None: return ClassMap.from_json(classes)
    if (src/"class_names.json").exists(): return ClassMap.from_json(src/"class_names.json")
    if (src/"dataset.json").exists():
        table = read_json(src/"dataset.json")
        table = table.get("labels") if isinstance(table, dict) else None
        table = table if isinstance(table, dict) else {}
        ids = {i: n for n, i in table.items() if type(i) is int and i > 0 and n != "ignore"}
        if ids and sorted(ids) == list(range(1, len(ids) + 1)): return ClassMap.from_names([ids[i] for i in sorted(ids)])
        raise InputError(f"{src/'dataset.json'}: labels must be names numbered 0, 1, 2, … without regions; "
                         f"write a class_names.json instead")
    return ClassMap.from_names(sorted(found)) if found else RAIDIUM54


# %%
#| export
_LAYOUTS = [("images", "labels", "train"), ("imagesTr", "labelsTr", "train"), ("imagesTs", "labelsTs", "test"), (".", None, "train")]

def _map_cases(src: Path, classes: ClassMap, annotated: str) -> list[Case]:
    "Cases of the layout with label maps, and of bare volumes."
    flat = lambda name: {} if (src/name/"segmentations").is_dir() else _niftis(src/name)  # else a case of that name, with a file per structure
    cases, lists = [], None
    for images, labels, split in _LAYOUTS:
        vols, maps = flat(images), flat(labels) if labels else {}
        if lost := [n for n in maps if n not in vols]:
            raise InputError(f"{src/labels/maps[lost[0]].name}: there is no image of that name in {images}/")
        for n, p in vols.items():
            known = np.zeros(len(classes), bool) if n not in maps else None
            if n in maps and annotated == "all": known = ~np.zeros(len(classes), bool)
            if n in maps and annotated == "json":
                lists = _annotated(src/"annotated_labels.json", classes) if lists is None else lists
                if n not in lists:
                    raise InputError(f"{src/'annotated_labels.json'}: does not say what was examined on {n}; add it, [] for nothing")
                known = lists[n]
            load = functools.partial(_load_map, p, maps.get(n), known)
            cases.append(Case(str(p.relative_to(src)), load, None, known, split, shown=str(p)))
    return cases


# %%
#| export
def _load_map(path, labels, known) -> Volume:
    "An image and its label map."
    hu, A = read_nifti(path)
    return Volume(hu, A, _read_labels(labels, hu.shape, A) if labels else None, known)

def _annotated(path: Path, classes: ClassMap) -> dict[str, np.ndarray]:
    "`annotated_labels.json` of a folder of volumes: case → bool [C]."
    if not path.exists():
        raise InputError(f"{path}: no such file, so absent cannot be told from unknown; write {{\"case\": [\"{classes.names[0]}\", "
                         f"…]}}, or choose "
                         "annotated='all' (--annotated all: every class was examined on every labelled volume) or annotated='present' (only classes "
                         "with voxels are known)")
    table = read_json(path)
    if not isinstance(table, dict) or not all(isinstance(v, list) for v in table.values()):
        raise InputError(f"{path}: expected an object with a list of class names for each case")
    ids = {n: [classes.id(x) if isinstance(x, str) else x for x in v] for n, v in table.items()}
    for n, v in ids.items():
        if bad := [x for x in v if type(x) is not int or not 1 <= x <= len(classes)]:
            raise InputError(f"{path}, {n}: {bad[0]!r} is not a class")
    return {n: flags(v, len(classes)) for n, v in ids.items()}


# %%
#| export
def _structure_folders(src: Path) -> dict[Path, tuple[Path, dict[str, Path]]]:
    "Cases of the layout with one file per structure: folder → (the CT, structure name → its file)."
    out, layouts = {}, {n for images, labels, _ in _LAYOUTS for n in (images, labels)}
    if (src/"segmentations").is_dir(): raise InputError(f"{src}: is one case itself (it has segmentations/); give the folder above it")
    for d in sorted((d for d in src.iterdir() if d.is_dir() and not d.name.startswith(".")), key=lambda d: natural_key(d.name)):
        if d.name in layouts and not (d/"segmentations").is_dir() or not (files := _niftis(d)): continue
        ct = files.get("ct") or files.get("image") or (next(iter(files.values())) if len(files) == 1 else None)
        if ct is None:
            raise InputError(f"{d}: {len(files)} NIfTI files and none is called ct.nii.gz; put the structures into {d.name}/segmentations/")
        out[d] = ct, _niftis(d/"segmentations")
    return out

def _load_structures(ct: Path, files: dict[str, Path], parts: dict[int, list], C: int, kind: str = "nifti") -> Volume:
    "A CT and its structures. `parts`: class id → names of the files whose union it is, all of which exist."
    hu, A = read_nifti(ct)
    union = lambda names: functools.reduce(np.logical_or, (_read_labels(files[n], hu.shape, A) > 0 for n in names))
    labels, overlap, drawn = combine(hu.shape, ((id, union(names)) for id, names in parts.items()))
    return Volume(hu, A, labels, flags(parts, C), kind=kind, overlap=overlap, drawn=drawn)


# %%
#| export
def import_nifti(
    src, # a folder in one of the three layouts; a `patients.json` in it, {case: patient}, keeps the scans of a patient together
    out, # the challenge folder, new
    slicing: Slicing = Slicing(),
    classes: ClassMap|str|None = None, # a `ClassMap` or the path of a `class_names.json`; `None`: look in `src`
    annotated: str = "json", # for label maps: json, all or present, see `read_challenge`
    test_share: float = 0., # share of the volumes set aside as a test
    keep_names: bool = False, # call volumes by their file names; only if these are no names of people
    key = None, # where to write the private table volume → source
) -> dict: # facts
    "Cut a folder of NIfTI volumes into a challenge folder with an index."
    src = Path(src)
    if annotated not in (options := ("json", "all", "present")): raise did_you_mean("value of annotated", annotated, options)
    if not src.is_dir(): raise InputError(f"{src}: no such folder; expected a folder of NIfTI volumes")
    folders = _structure_folders(src)
    found = sorted({n for _, files in folders.values() for n in files})
    classes = _nifti_classes(src, classes, found)
    cases = _map_cases(src, classes, annotated)
    for d, (ct, files) in folders.items():
        parts = {classes.id(n): [n] for n in files if n in classes.names}
        load = functools.partial(_load_structures, ct, files, parts, len(classes))
        cases.append(Case(str(d.relative_to(src)), load, None, flags(parts, len(classes)), shown=str(d)))
    if not cases: raise InputError(f"{src}: no NIfTI volumes in it; expected images/ and labels/, or a folder per case with ct.nii.gz")
    ignored = [n for n in found if n not in classes.names]
    if ignored and len(ignored) == len(found):
        raise InputError(f"{src}: none of the {len(found)} structures drawn is a class ({did_you_mean('class', found[0], classes.names)}); rename the files or the classes")
    _read_patients(src/"patients.json", cases)
    if keep_names:
        for c in cases: c.id = _stem(Path(c.source))
    return write_volumes(cases, out, classes, slicing, test_share, key) | dict(ignored_labels=ignored)

def _read_patients(path: Path, cases: list[Case]):
    "Give the cases the patients that a `patients.json`, {case: patient}, says, if it is there."
    if not path.exists(): return
    table, names = read_json(path), {_stem(Path(c.source)) for c in cases}
    if not isinstance(table, dict) or not all(type(p) in (str, int) for p in table.values()):
        raise InputError(f'{path}: expected an object from cases to patients, such as {{"{sorted(names)[0]}": "p1", …}}')
    if lost := sorted(names - set(table)): raise InputError(f"{path}: does not say whose scan {lost[0]} is; add it ({len(lost)} are missing)")
    if odd := sorted(set(table) - names): raise did_you_mean(f"case in {path}", odd[0], names)
    for c in cases: c.patient = f"patient {table[_stem(Path(c.source))]}"  # text, so that a number is compared only, and not written anywhere


# %% [markdown]
# Let us build a folder of the happier form, with the three scans: all five structures for the first, two for the second, and none for
# the third. Nobody on the second scan looked for the lungs. One of the five files of the first is empty, though: its stomach was taken out.

# %%
src = work/"hospital"
for i, ((hu, label), A, names) in enumerate(zip(scans, affines, [CLASSES.names, ["liver", "vertebrae"], []])):
    (src/f"patient {i}"/"segmentations").mkdir(parents=True)
    nib.save(nib.Nifti1Image(hu, A), src/f"patient {i}"/"ct.nii.gz")
    for n in names:
        mask = (label == CLASSES.id(n)) & (n != "stomach")
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), A), src/f"patient {i}"/"segmentations"/f"{n}.nii.gz")

facts = import_nifti(src, work/"cut", classes=CLASSES)
s = read_challenge(work/"cut")
print(facts)
for g in range(3):
    mine = s[s.groups == g]
    state = np.where(mine.known[0], np.where(mine.present.any(0), "present", "absent"), "unknown")
    print(f"v{g:03}", dict(zip(CLASSES.names, state.tolist())))


# %% [markdown]
# ## Predictions as NIfTI
#
# A submission, or an array of masks, goes back as one label map per volume, on the original grid. The header is made new; of the source's
# header nothing is copied but the affine. For an unevenly spaced scan NIfTI cannot say where each slice lies, so the
# array is exact, the affine uses the mean step, and the true positions are written beside it.

# %%
#| export
def read_index(
    folder, # a challenge folder made from volumes
    split: str = "test",
) -> tuple[dict, dict]: # volume id → its entry; image name → {"volume", "slice", "window", "corner"}
    "The index of a challenge folder."
    path = Path(folder)/"index.json"
    if not path.exists(): raise InputError(f"{path}: no such file; only a folder made by `ctseg import` can be put back into volumes")
    index = read_json(path)
    try: volumes, images = index["volumes"], index["images"]
    except (KeyError, TypeError): raise InputError(f"{path}: not an index of volumes; import the volumes again") from None
    if not images.get(split):
        raise InputError(f"{path}: there are no images of the split {split!r}; "
                         f"choose {' or '.join(s for s in images if images[s]) or 'another folder'}")
    return volumes, images[split]

def _by_volume(masks, folder, split: str, missing: int):
    "For each volume of a split: (id, entry, the masks restacked uint8 [I,J,K], how many of its slices have a prediction)."
    volumes, lines = read_index(folder, split)
    classes, side = read_classes(folder), read_pngs([Path(folder)/f"{split}-images"/next(iter(lines))]).shape[1:]
    if not isinstance(masks, np.ndarray): masks = read_masks(masks, list(lines), side, classes)[1]
    if masks.shape[1:] != side: raise InputError(f"masks of {'x'.join(map(str, masks.shape[1:]))} pixels for images of {side[0]}x{side[1]} in {folder}; predict these images")
    if masks.max(initial=0) > len(classes): raise InputError(f"masks with the value {masks.max()}, but {folder} has {len(classes)} classes; predict with a run that knows the same")
    if len(masks) != len(lines):
        raise InputError(f"{len(masks)} masks for the {len(lines)} {split} images of {folder}; give one for each, in numeric order")
    where = {}
    for i, line in enumerate(lines.values()): where.setdefault(line["volume"], []).append(i)
    lines = list(lines.values())
    for id, i in where.items(): yield id, volumes[id], restack(masks[i], volumes[id], [lines[j] for j in i], missing), len(i)


# %%
#| export
def export_nifti(
    masks, # a submission (CSV) or uint8 [N,H,W], in the order of the images
    folder, # the challenge folder with its `index.json`
    out, # the folder for `v000.nii.gz`, …, new
    split: str = "test", # the images that the masks belong to
    missing: int = 0, # value where there is no prediction
) -> dict: # volume → (slices with a prediction, slices of the volume)
    "Put predicted masks back onto the grids of their volumes, as NIfTI label maps."
    nib, out, facts = _need("nibabel"), _new_folder(out), {}
    with atomic_path(out) as tmp:
        tmp.mkdir()
        for id, entry, labels, n in _by_volume(masks, folder, split, missing):
            image = nib.Nifti1Image(labels, np.array(entry["affine"]))
            image.header.set_xyzt_units("mm")
            nib.save(image, tmp/f"{id}.nii.gz")
            if entry["positions"]: write_json(dict(positions=entry["positions"]), tmp/f"{id}.json")
            facts[id] = n, entry["shape"][slice_axes(np.array(entry["affine"]), entry["orientation"])[0][0]]
        names = Path(folder)/"class_names.json"
        if names.exists(): shutil.copy(names, tmp/"class_names.json")
    return facts


# %%
print(export_nifti(s.masks, work/"cut", work/"back", "train"))
for i, names in enumerate([{"liver", "lung_left", "lung_right", "vertebrae"}, {"liver", "vertebrae"}, set()]):
    image = nib.load(work/"back"/f"v{i:03}.nii.gz")
    keep = np.isin(scans[i][1], [CLASSES.id(n) for n in names])
    test_eq(np.asarray(image.dataobj), np.where(keep, scans[i][1], 0))
    test_close(image.affine, affines[i], eps=1e-4)  # NIfTI keeps it in 32 bits

# %% [markdown]
# Voxel for voxel, for a permuted and an oblique grid alike. With resampling it cannot be exact, but it should be close:

# %%
import_nifti(src, work/"small", Slicing(size=64, spacing="fit"), classes=CLASSES)
s = read_challenge(work/"small")
export_nifti(s.masks, work/"small", work/"back2", "train")
a, b = np.asarray(nib.load(work/"back2"/"v001.nii.gz").dataobj) == 1, scans[1][1] == 1
print(s, f"\nDice of the liver after 84x110 → 64x64 → 84x110: {2*(a & b).sum()/(a.sum() + b.sum()):.3f}")

# %% [markdown]
# ## What goes wrong, in one line each

# %%
bad = work/"bad"
bad.mkdir()
hu, A = scans[0][0][:20, :20, :8], affines[0]
def tell(make, save=True):
    shutil.rmtree(bad); bad.mkdir()
    if save: nib.save(make(), bad/"p.nii.gz")
    else: make()
    try: import_nifti(bad, work/"never")
    except InputError as e: print("-", str(e).replace(str(work), "…"))
    assert not (work/"never").exists()

def no_affine():
    image = nib.Nifti1Image(hu, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    return image

def shifted():
    for d, B in (("images", A), ("labels", affines[2])):
        (bad/d).mkdir()
        nib.save(nib.Nifti1Image(hu, B), bad/d/"p.nii.gz")
    write_json({"p": []}, bad/"annotated_labels.json")

tell(lambda: nib.Nifti1Image(np.stack([hu]*3, -1), A))
tell(no_affine)
tell(lambda: (bad/"p.nii.gz").write_bytes(b"not a volume"), save=False)
tell(lambda: None, save=False)
tell(shifted, save=False)
(bad/"annotated_labels.json").unlink()
try: import_nifti(bad, work/"never")
except InputError as e: print("-", str(e).replace(str(work), "…"))

# %%
#| hide
shutil.rmtree(work)

# %%
#| hide
import nbdev; nbdev.nbdev_export()
