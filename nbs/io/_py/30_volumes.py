# %% [markdown]
# # Volumes
#
# > A CT volume with what is known of it, cut into 8-bit slices.

# %%
#| default_exp io.volumes

# %%
#| export
import importlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ctseg.core.errors import InputError
from ctseg.io.geometry import as_slices, slice_axes
from ctseg.io.slicing import Slicing, draw_window, to_8bit

# %%
#| hide
from fastcore.test import test_eq, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG


# %% [markdown]
# A `Volume` carries the voxels, the affine, and what is known of it: the third state of `ctseg`, here for a whole volume. `positions` is
# for scans whose slices are *unevenly* spaced, which no affine can express. Only DICOM has those.

# %%
#| export
@dataclass(frozen=True)
class Volume:
    "One CT volume on its own grid."
    hu: np.ndarray # float32 [I,J,K], Hounsfield units
    affine: np.ndarray # float64 [4,4]: voxel (i, j, k, 1) → mm right, front, up
    labels: np.ndarray|None = None # uint8 [I,J,K]; 0 = background or unknown; `None`: no labels
    known: np.ndarray|None = None # bool [C]: classes examined; `None`: those with voxels
    positions: np.ndarray|None = None # float64 [K,3]: mm of voxel (0, 0, k), if the spacing is uneven
    kind: str = "nifti" # where it came from
    digest: str = "" # tells whether another file is the same one, without naming it
    overlap: int = 0 # voxels claimed by two structures
    drawn: list[np.ndarray]|None = None # `LabelMap.drawn`; `None`: what `labels` shows was all that was drawn
    notes: tuple[str, ...] = () # what whoever imports it should know, in words


# %%
#| export
def class_flags(
    ids: Iterable[int], # class ids, 1…C
    C: int, # number of classes
) -> np.ndarray: # bool [C]
    "Class ids as flags."
    return np.isin(np.arange(1, C + 1), list(ids))


# %%
scan = torso_scans()["as NIfTI likes it"]
print(scan.hu.shape, scan.hu.dtype, dict(zip(TORSO_CLASSES.names, scan.known.tolist())))
test_eq(class_flags([1, 4], 5), [True, False, False, True, False])


# %% [markdown]
# ## One label map from single structures
#
# Structures often come one by one and may overlap. A label map has one number a voxel, so one of them must win. The smaller one does,
# so that none is swallowed whole. `drawn` remembers where along each axis a structure was drawn before another one hid it.

# %%
#| export
class LabelMap(NamedTuple):
    "Single structures, united."
    labels: np.ndarray # uint8 [I,J,K], class ids
    overlap: int # voxels that two structures claim
    drawn: list[np.ndarray] # for each axis bool [256,n], by class id: where along it the class was drawn


# %%
#| export
def combine(
    shape: tuple[int, int, int], # of the volume
    structures: Iterable[tuple[int, np.ndarray]], # class id and mask, bool [I,J,K]; may be made one at a time
    by_size: bool = True, # the smaller structure wins; else the one with the larger id
) -> LabelMap:
    "One label map from single structures, in whatever order they come."
    drawn = [np.zeros((256, n), bool) for n in shape]
    labels = np.zeros(np.prod(shape), np.uint8)
    claimed_twice = np.zeros(np.prod(shape), bool)
    rank = np.full(256, np.inf)  # by class id; the lower rank wins, and the background loses
    for id, mask in structures:
        for axis, flags in enumerate(drawn):
            others = tuple({0, 1, 2} - {axis})
            flags[id] |= mask.reshape(shape).any(others)
        voxels = np.flatnonzero(mask)
        rank[id] = len(voxels)*256*by_size - id
        present = labels[voxels]
        claimed_twice[voxels[present > 0]] = True
        labels[voxels[rank[present] > rank[id]]] = id
    return LabelMap(labels.reshape(shape), int(claimed_twice.sum()), drawn)


# %%
big, small = np.ones((2, 3, 4), bool), np.zeros((2, 3, 4), bool)
small[0, 0] = True
united = combine((2, 3, 4), [(1, small), (2, big)])
print(united.labels[0], "claimed twice:", united.overlap)
test_eq(combine((2, 3, 4), [(2, big), (1, small)]).labels, united.labels)  # in whatever order they come
test_eq(combine((2, 3, 4), [(1, small), (2, big)], by_size=False).labels.min(), 2)


# %% [markdown]
# ## Cutting
#
# `spacing` decides how many pixels a slice gets. Images are resized bilinearly and smoothed when they shrink, masks by the nearest pixel.

# %%
#| export
def scaled_size(
    shape: tuple[int, int], # height and width of a slice in pixels
    pixel_mm: np.ndarray, # height and width of a pixel in mm
    slicing: Slicing,
) -> tuple[int, int]:
    "Height and width of a slice in pixels after resampling."
    if slicing.spacing is None: return int(shape[0]), int(shape[1])
    extent = [n*mm for n, mm in zip(shape, pixel_mm)]
    target = max(extent)/slicing.size if slicing.spacing == "fit" else slicing.spacing
    height, width = (max(1, int(round(mm/target))) for mm in extent)
    return height, width


# %%
mm = np.array([2.8, 2.5])
for slicing in (Slicing(), Slicing(spacing=5.), Slicing(spacing="fit", size=64)):
    print(f"spacing {slicing.spacing}:", scaled_size((90, 110), mm, slicing))


# %%
#| export
def resize_slices(
    x: np.ndarray, # [n,h,w], any number type
    size: tuple[int, int], # height and width wanted
    mode: str, # "image": bilinear, smoothed when shrinking; "mask": nearest
) -> np.ndarray: # [n,*size], of the same type
    "Resize slices; those that have the size already are only made contiguous."
    if x.shape[1:] == tuple(size) or not len(x):
        return np.ascontiguousarray(x).reshape(len(x), *size)
    how = {"mode": "nearest-exact"}
    if mode == "image":
        how = {"mode": "bilinear", "antialias": True, "align_corners": False}
    resized = []
    for image in x:
        tensor = torch.from_numpy(np.ascontiguousarray(image, np.float32))
        resized.append(F.interpolate(tensor[None, None], tuple(size), **how)[0, 0].numpy())
    stack = np.stack(resized)
    return (stack if x.dtype.kind == "f" else stack.round()).astype(x.dtype)


# %%
halved = resize_slices(np.uint8([[[0, 0, 2, 2], [0, 0, 2, 2]]]), (1, 2), "mask")
test_eq(halved, [[[0, 2]]])

# %% [markdown]
# The body is what is denser than -624 HU, more or less all that is not air. Slices with little of it can be left out. On each slice the
# body's middle is where a crop will be centred.

# %%
#| export
BODY_HU = -624  # what is denser is body; on OpenKBP's scale a round 400

def _choose_slices(body: np.ndarray, pixel_mm: np.ndarray, slicing: Slicing, rng) -> np.ndarray:
    "The numbers of the slices to cut, of a body bool [Z,H,W]."
    chosen = np.arange(0, len(body), slicing.every)
    body_cm2 = body[chosen].sum((1, 2))*pixel_mm.prod()/100
    chosen = chosen[body_cm2 >= slicing.min_body]
    if not slicing.per_volume or len(chosen) <= slicing.per_volume:
        return chosen
    return np.sort(rng.choice(chosen, slicing.per_volume, replace=False))


# %%
body = np.zeros((6, 10, 10), bool)
body[2:] = True  # 4 cm² a slice
rng = np.random.default_rng(0)
for slicing in (Slicing(), Slicing(min_body=4., every=2), Slicing(min_body=4., per_volume=2)):
    print(_choose_slices(body, np.array([2, 2]), slicing, rng))


# %%
#| export
def _mean_index(counts: np.ndarray) -> float:
    "The mean index of things counted by index."
    return counts @ np.arange(len(counts))/max(counts.sum(), 1)

def body_centres(
    body: np.ndarray, # bool [n,h,w]
    size: tuple[int, int], # of the slices after resampling
) -> np.ndarray: # float [n,2], row and column
    """The centroid of the body on each slice, in pixels of the resampled slices.

    Where there is no body, the middle of the frame.
    """
    frame = (np.array(body.shape[1:]) - 1)/2
    centres = [(_mean_index(b.sum(1)), _mean_index(b.sum(0))) if b.any() else frame for b in body]
    return np.array(centres, float).reshape(-1, 2)*np.array(size)/body.shape[1:]


# %%
body = np.zeros((2, 6, 8), bool)
body[0, 1:3, 2:7] = True
print(body_centres(body, (6, 8)).tolist(), "and in half as many pixels", body_centres(body, (3, 4)).tolist())


# %% [markdown]
# A `VolumeSlices` is what cutting gives: the slices of one volume, before they are placed on a common square.

# %%
#| export
@dataclass
class VolumeSlices:
    "The slices cut from one volume."
    images: np.ndarray # uint8 [n,h,w]
    masks: np.ndarray # uint8 [n,h,w]
    slices: np.ndarray # int [n]: their numbers in the oriented stack
    windows: list[tuple[float, float]] # (level, width) of each, HU
    centres: np.ndarray # float [n,2]: the middle of the body on each, row and column


# %%
#| export
_MOST_SKEW = .01  # cosine of the angle between the sides of a picture that still counts as straight

def _check_cut(volume: Volume, orientation: str):
    "`InputError` for a cut across slices that are unevenly spaced or tilted, and for slices one pixel wide."
    axes, _ = slice_axes(volume.affine, orientation)
    height, width = (volume.hu.shape[axis] for axis in axes[1:])
    if min(height, width) < 2:
        raise InputError(f"slices of orientation {orientation} would have {height} x {width} pixels: "
                         "it is a picture of another plane; take it away, or reformat the scan")
    down, across = (volume.affine[:3, axis]/np.linalg.norm(volume.affine[:3, axis]) for axis in axes[1:])
    uneven = volume.positions is not None and axes[0] != 2
    if uneven or abs(down @ across) > _MOST_SKEW:
        raise InputError(f"orientation {orientation} cuts across the scan's own slices, "
                         "which are unevenly spaced or sheared by a gantry tilt; "
                         "choose another orientation")


# %% [markdown]
# Cutting itself is a short list of steps. What is drawn at random depends on the seed and on `salt`, a text that differs between volumes.

# %%
#| export
def cut(
    volume: Volume,
    slicing: Slicing,
    salt: str = "", # volumes told apart by this draw different windows
    slices: list[int]|np.ndarray|None = None, # the numbers of the slices; `None`: as `slicing` says
    windows: list[tuple[float, float]]|None = None, # (level, width) of each; `None`: as `slicing` says
) -> VolumeSlices:
    "Cut a volume into 8-bit slices and masks. Raises `InputError` for a cut across unevenly spaced slices."
    _check_cut(volume, slicing.orientation)
    rng = np.random.default_rng([slicing.seed, zlib.crc32(salt.encode())])
    axes, _ = slice_axes(volume.affine, slicing.orientation)
    pixel_mm = np.linalg.norm(volume.affine[:3, :3], axis=0)[axes[1:]]
    stack = as_slices(volume.hu, volume.affine, slicing.orientation)
    size = scaled_size(stack.shape[1:], pixel_mm, slicing)
    body = stack > BODY_HU
    chosen = _choose_slices(body, pixel_mm, slicing, rng) if slices is None else np.asarray(slices, int)
    if windows is None:
        random = slicing.window == "random"
        windows = [draw_window(rng) if random else slicing.level_width for _ in chosen]
    images = np.zeros((len(chosen), *size), np.uint8)
    for image, hu, window in zip(images, resize_slices(stack[chosen], size, "image"), windows):
        image[:] = to_8bit(hu, *window)
    labels = np.zeros(volume.hu.shape, np.uint8) if volume.labels is None else volume.labels
    masks = as_slices(labels, volume.affine, slicing.orientation)[chosen]
    masks = resize_slices(masks, size, "mask")
    return VolumeSlices(images, masks, chosen, windows, body_centres(body[chosen], size))


# %%
#| fig-alt: "Five slices of a scan, each in another window, with the organs overlaid"
part = cut(scan, Slicing(window="random", every=8))
fig, axes = image_grid(1, 5)
for ax, image, mask, z, (level, width) in zip(axes[0], part.images, part.masks, part.slices, part.windows):
    show_image(ax, overlay(image, mask, TORSO_CLASSES, .4), f"slice {z}, window {level:g}, {width:g}")
class_legend(fig, TORSO_CLASSES)

# %% [markdown]
# The same volume and the same slicing give the same slices again. Another `salt` draws other windows.

# %%
again, other = (cut(scan, Slicing(window="random", every=8), salt) for salt in ("", "v001"))
test_eq(again.images, part.images)
assert other.windows != part.windows


# %% [markdown]
# ## Packages that only volumes need
#
# Reading volumes needs nibabel, pydicom and highdicom, which are optional. Who lacks one is told how to get it.

# %%
#| export
def import_volumes_package(module: str):
    "Import an optional package of the extra `volumes`. Raises `InputError` that tells how to get it."
    try: return importlib.import_module(module)
    except ImportError as e:
        package = module.split(".")[0]
        raise InputError(f"{package} is not installed, volumes need it; "
                         "run: pip install 'ctseg[volumes]'") from e


# %%
test_fail(
    lambda: import_volumes_package("no_such_package.inner"), contains="no_such_package is not installed"
)
