# %% [markdown]
# # Is it CT?
#
# > Volumes that are no scan, or not in Hounsfield units, are told before anything is learnt from them.

# %%
#| default_exp io.scale

# %%
#| export
import numpy as np

from ctseg.core.errors import InputError

# %%
#| hide
from fastcore.test import test_fail

from ctseg.io.toy_scans import torso_scans

# %% [markdown]
# A window needs Hounsfield units, in which air is -1000, fat -100 and water 0. A volume in which nothing is below 0 has another scale: grey values of a
# picture, or 1024 added. One whose values lie within 100 of each other holds no air, no bone and nothing between. And where hardly a voxel is like fat
# or soft tissue there is no body: 1024 was subtracted twice, or the slope is wrong. All are read as they are, and told.

# %%
#| export
_LEAST_RANGE = 100  # HU, between the least and the greatest value of a scan
_SOFT = -200, 300  # HU of fat, organs and vessels
_LEAST_SOFT = .01  # share of the voxels of a scan, also of a hand in much air

def _has_body(hu: np.ndarray) -> bool:
    "Are some voxels like fat or soft tissue?"
    low, high = _SOFT
    soft = np.count_nonzero((hu > low) & (hu < high))
    return soft >= _LEAST_SOFT*hu.size

def scale_notes(
    hu: np.ndarray, # [I,J,K]
    path, # as a message may show it
) -> tuple[str, ...]:
    "What to tell of a volume that is plainly not in Hounsfield units; nothing otherwise."
    if not hu.size: return ()
    low, high = float(hu.min()), float(hu.max())
    if low < 0 and high - low >= _LEAST_RANGE and _has_body(hu): return ()
    guess = "1024 may have been added to them" if low >= 0 else "they may have been scaled or shifted"
    if low >= 0 and high <= 255: guess = "it may be a picture"
    return (f"{path}: plainly not in Hounsfield units, its values are {low:g} to {high:g} ({guess})",)


# %%
scan = torso_scans()["as NIfTI likes it"].hu
for values in (scan, scan.clip(-1024) + 1024, scan/1000, scan - 1024): print(scale_notes(values, "scan.nii"))

# %% [markdown]
# ## A label map in the place of a scan
#
# Label maps lie beside scans under names that nobody can foresee. One that is taken for a scan would be taught as one. But its values tell:
# whole numbers from 0, and neighbours that are nearly all alike. A scan has noise, also after a window was put on it.

# %%
#| export
_ALIKE = .9  # share of neighbouring voxels with one value, above which nothing is a scan

def _share_alike(values: np.ndarray) -> float:
    "The share of neighbouring voxels that have one value."
    pairs = [np.diff(values, axis=axis) == 0 for axis in range(values.ndim) if values.shape[axis] > 1]
    return float(np.mean([same.mean() for same in pairs])) if pairs else 0.

def looks_like_labels(values: np.ndarray) -> bool: # [I,J,K]
    "Are these the values of a label map?"
    if not values.size or values.min() < 0 or values.max() > 255: return False
    if values.min() == values.max(): return False
    return bool((values == np.round(values)).all()) and _share_alike(values) > _ALIKE


# %%
labels = (scan > 300).astype(np.float32)
picture = ((scan + 160)/400*255).clip(0, 255).round()
print([looks_like_labels(values) for values in (labels, scan, picture)])


# %%
#| export
def check_scan(
    hu: np.ndarray, # [I,J,K]
    path, # as a message may show it
) -> None:
    "Raise `InputError` for what is plainly a label map, and no scan."
    if looks_like_labels(hu):
        raise InputError(f"{path}: no scan, it holds only whole numbers from {hu.min():g} to {hu.max():g} "
                         "in large areas, as a label map does; "
                         "call it by its scan and _seg, put it into a folder labels/, or take it away")


# %%
check_scan(scan, "scan.nii")
test_fail(lambda: check_scan(labels, "p1_final.nii"), contains="no scan")
