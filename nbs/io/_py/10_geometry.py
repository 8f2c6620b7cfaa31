# %% [markdown]
# # Geometry
#
# > Which way is up: the affine decides how a volume is cut into slices and put together again.

# %%
#| default_exp io.geometry

# %%
#| export
from itertools import permutations

import numpy as np

from ctseg.core.errors import InputError

# %%
#| hide
from itertools import product

import matplotlib.pyplot as plt
import nibabel as nib
from fastcore.test import test_eq, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.io.toy_scans import torso_scans

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG

# %% [markdown]
# The challenge hands out loose PNG slices. A hospital, or a public data set, hands out **volumes**: a block of Hounsfield units and
# an affine that says where in the patient each voxel lies. A program that only knows arrays takes `a[:, :, k]` and hopes that this
# is an axial slice. This notebook asks the affine instead.

# %%
#| fig-alt: "One slice a[:, :, k] of three scans: turned, not axial at all, and askew"
scans = torso_scans()
fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
for ax, (name, v) in zip(axes, scans.items()):
    ax.imshow(v.hu[:, :, v.hu.shape[2]*2//5], cmap="gray", vmin=-250, vmax=250, aspect="auto")
    ax.set(title=f"a[:, :, k], {name}", xticks=[], yticks=[])
    ax.title.set_fontsize(9)

# %% [markdown]
# These are three scans of one torso ([toy scans](05_toy_scans.ipynb)), and one of the pictures is not even axial.
#
# ## Which axis runs where
#
# The orientation is named as in [NIfTI tools](https://nipy.org/nibabel/coordinate_systems.html), by the direction in which an index
# *grows*. `SPL` means that slices go up (**S**), rows go to the back (**P**) and columns go to the patient's **L**eft. Radiologists look
# at a slice that way: from the feet, with the patient's right on the viewer's left. The challenge's frame is turned by 90 degrees
# against it: there, as in `SLA`, a vertical flip exchanges left and right. `AIL` cuts coronal slices.
#
# The answer is a permutation of the array's axes and some reversals. No voxel is resampled, so nothing is lost and everything can be
# undone.

# %%
#| export
_WORLD_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}  # of the affine: right, front, up

def slice_axes(
    affine: np.ndarray, # float [4,4]: voxel (i, j, k, 1) → mm right, front, up
    orientation: str = "SPL", # the directions of slices, rows and columns
) -> tuple[list[int], list[bool]]: # the array axis for each of the three, and whether it must be reversed
    """Which array axis runs along slices, rows and columns.

    An oblique axis counts as the one it is nearest to.
    Raises `InputError` for an orientation that does not name three axes.
    """
    letters = list(orientation) if isinstance(orientation, str) else []
    if sorted(_WORLD_AXIS.get(c, -1) for c in letters) != [0, 1, 2]:
        raise InputError(f"orientation {orientation!r}: expected three letters, "
                         "one of R/L, one of A/P, one of S/I, such as SPL")
    direction = affine[:3, :3]/np.linalg.norm(affine[:3, :3], axis=0)
    along = np.abs(direction)
    def agreement(array_axes: tuple[int, ...]) -> float: return along[range(3), array_axes].sum()
    array_axis = max(permutations(range(3)), key=agreement)  # for right, front, up; each is given once
    axes, flips = [], []
    for letter in letters:
        world = _WORLD_AXIS[letter]
        axis = array_axis[world]
        sign = 1 if letter in "RAS" else -1
        axes.append(axis)
        flips.append(bool(direction[world, axis]*sign < 0))
    return axes, flips


# %%
for name, v in scans.items():
    print(f"{name:27}", *slice_axes(v.affine))
test_fail(lambda: slice_axes(np.eye(4), "SPQ"), contains="three letters")


# %% [markdown]
# ## Cutting, and the way back

# %%
#| export
def _reverse(a: np.ndarray, flips: list[bool]) -> np.ndarray:
    "A view of `a` with the flagged axes reversed."
    return a[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]

def as_slices(
    a: np.ndarray, # [I,J,K]
    affine: np.ndarray, # float [4,4]
    orientation: str = "SPL",
) -> np.ndarray: # [Z,H,W], a view
    "A volume as a stack of slices: its axes permuted and reversed, nothing resampled."
    axes, flips = slice_axes(affine, orientation)
    return _reverse(a.transpose(axes), flips)


# %%
for name, v in scans.items():
    print(f"{name:27}", v.hu.shape, "→", as_slices(v.hu, v.affine).shape)


# %%
#| export
def as_volume(
    stack: np.ndarray, # [Z,H,W]
    affine: np.ndarray, # float [4,4], of the volume
    orientation: str = "SPL",
) -> np.ndarray: # [I,J,K], a view
    "The volume that a stack of slices was cut from: the inverse of `as_slices`."
    axes, flips = slice_axes(affine, orientation)
    return _reverse(stack, flips).transpose(np.argsort(axes))


# %%
#| fig-alt: "The same slice of three scans, cut by the affine: each stands upright, right and left marked"
fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
for ax, (name, v) in zip(axes, scans.items()):
    stack = as_slices(v.hu, v.affine)
    ax.imshow(stack[len(stack)*2//5], cmap="gray", vmin=-250, vmax=250, aspect="auto")
    ax.set(title=f"by the affine, {name}", xticks=[], yticks=[])
    ax.title.set_fontsize(9)
height, width = as_slices(scans["as NIfTI likes it"].hu, scans["as NIfTI likes it"].affine).shape[1:]
axes[0].text(3, height/2, "R", color="w", va="center")
axes[0].text(width - 8, height/2, "L", color="w", va="center")
plt.show()

# %% [markdown]
# Now the liver is in the same place on all three. The oblique scan stays askew, because its own planes are kept. Turning it straight
# would mean inventing voxels between voxels, and there would be no way back.
#
# The way back is exact for all 48 orientations, and nibabel chooses the same axes.

# %%
codes = ["".join(c) for p in permutations(["RL", "AP", "SI"]) for c in product(*p)]
test_eq(len(codes), 48)
for v in scans.values():
    for code in codes:
        test_eq(as_volume(as_slices(v.labels, v.affine, code), v.affine, code), v.labels)
    for code in codes[::5]:
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(v.affine), nib.orientations.axcodes2ornt(code)
        )
        test_eq(as_slices(v.labels, v.affine, code), nib.apply_orientation(v.labels, turn))
