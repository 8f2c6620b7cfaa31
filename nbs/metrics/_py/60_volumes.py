# %% [markdown]
# # Volumes in mm
#
# > Dice, surface Dice, the 95th percentile of the Hausdorff distance and the difference in millilitres, for label maps on a grid.
#
# - skip_showdoc: true

# %%
#| default_exp metrics.volumes

# %%
#| export
import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from scipy import ndimage

from ctseg.core.errors import InputError

# %%
#| hide
from fastcore.test import test_close


# %% [markdown]
# On volumes distances have a unit, so two label maps can be compared as a radiologist would: how many mm does one surface lie off the
# other? Surfaces and distances are those of DeepMind's [surface-distance](https://github.com/google-deepmind/surface-distance) (Nikolov et
# al. 2018, [arXiv 1809.04430](https://arxiv.org/abs/1809.04430)), which weighs each piece of a surface by its area. It comes with the extra
# `metrics`.

# %%
#| export
def import_surface_distance() -> ModuleType:
    "The package of the extra `metrics`. Raises `InputError` that tells how to get it."
    try: return importlib.import_module("surface_distance")
    except ImportError as e:
        raise InputError("surface-distance is not installed, distances in mm need it; "
                         "run: pip install 'ctseg[metrics]'") from e


# %% [markdown]
# What is measured of a class when it is missing from one of the two:
#
# | truth | prediction | Dice | surface Dice | HD95 | difference in ml |
# |---|---|---|---|---|---|
# | present | present | 0…1 | 0…1 | mm | prediction − truth |
# | present | empty | 0 | 0 | none: *missed* | − all of it |
# | empty | present | 0 | 0 | none: *invented* | all of it |
# | empty | empty | none | none | none | 0 |
# | unknown | | none | none | none | none |

# %%
#| export
MEASURES = ("dice", "surface_dice", "hd95", "ml_difference")

@dataclass
class VolumeScores:
    "Scores of one volume by class, each float64 [C], NaN where there is none."
    dice: np.ndarray
    surface_dice: np.ndarray # at the tolerance
    hd95: np.ndarray # mm
    ml: np.ndarray # of the truth
    predicted_ml: np.ndarray

    @property
    def ml_difference(self) -> np.ndarray:
        "Prediction minus truth."
        return self.predicted_ml - self.ml

    @property
    def missed(self) -> np.ndarray: # bool [C]
        "In the truth, not in the prediction."
        return (self.ml > 0) & (self.predicted_ml == 0)

    @property
    def invented(self) -> np.ndarray: # bool [C]
        "In the prediction, not in the truth."
        return (self.ml == 0) & (self.predicted_ml > 0)


# %%
#| export
def surface_scores(
    truth: np.ndarray, # bool [I,J,K], not empty
    pred: np.ndarray, # bool [I,J,K], not empty
    spacing: tuple[float, float, float], # mm along each axis
    tolerance: float, # mm
) -> tuple[float, float]: # surface Dice at the tolerance, HD95 in mm
    "How far two surfaces lie apart."
    package = import_surface_distance()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it calls scipy by old names
        distances = package.compute_surface_distances(truth, pred, spacing)
    surface_dice = package.compute_surface_dice_at_tolerance(distances, tolerance)
    return float(surface_dice), float(package.compute_robust_hausdorff(distances, 95))


# %%
def box(x, size=10):
    "A cube, bool [24,24,24]."
    out = np.zeros((24, 24, 24), bool)
    out[x:x + size, 7:7 + size, 7:7 + size] = True
    return out

for mm in (1., 3.):
    nsd, hd = surface_scores(box(7), box(9), (mm, 1, 1), tolerance=2)
    print(f"a cube moved by 2 voxels of {mm:g} mm: surface Dice at 2 mm {nsd:.3f}, HD95 {hd:.2f} mm")


# %%
#| export
def _boxes(truth: np.ndarray, pred: np.ndarray, C: int) -> list[tuple[slice, ...] | None]:
    "The box around each class in both label maps, a voxel wider; `None` where it is in neither."
    boxes = []
    for one, other in zip(ndimage.find_objects(truth, C), ndimage.find_objects(pred, C)):
        found = [box for box in (one, other) if box is not None]
        spans = [(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*found)]
        boxes.append(tuple(slice(max(0, a - 1), b + 1) for a, b in spans) if found else None)
    return boxes


# %%
labels = np.zeros((9, 9, 9), np.uint8)
labels[2:4, 5, 5] = 2
print(_boxes(labels, labels, 2))


# %%
#| export
def volume_scores(
    truth: np.ndarray, # classes, uint8 [I,J,K]
    pred: np.ndarray, # the same shape
    spacing: tuple[float, float, float], # mm along each axis
    known: np.ndarray, # bool [C]: classes that were examined
    tolerance: float = 2., # of the surface Dice, mm
) -> VolumeScores:
    "Scores of each class of one volume."
    C, voxel = len(known), float(np.prod(spacing))/1000
    scores = VolumeScores(*np.full((5, C), np.nan))
    for c, around in enumerate(_boxes(truth, pred, C)):
        if not known[c]: continue
        scores.ml[c] = scores.predicted_ml[c] = 0
        if around is None: continue
        true, drawn = truth[around] == c + 1, pred[around] == c + 1
        scores.ml[c], scores.predicted_ml[c] = true.sum()*voxel, drawn.sum()*voxel
        scores.dice[c] = 2*(true & drawn).sum()/(true.sum() + drawn.sum())
        scores.surface_dice[c] = 0
        if true.any() and drawn.any():
            scores.surface_dice[c], scores.hd95[c] = surface_scores(true, drawn, spacing, tolerance)
    return scores


# %% [markdown]
# Three structures: one moved by two voxels, one missed, one that nobody examined.

# %%
truth, pred = np.zeros((2, 24, 24, 24), np.uint8)
truth[box(7)], pred[box(9)] = 1, 1
truth[1, 1, 1] = 2
pred[20:, 20:, 20:] = 3
scores = volume_scores(truth, pred, (1., 1., 3.), np.array([True, True, False]))
for name in MEASURES: print(f"{name:14}", getattr(scores, name))
print("missed:", scores.missed)
test_close(scores.dice[0], .8)
