# %% [markdown]
# # RTSTRUCT
#
# > Contours from a radiotherapy system become masks, and slices nobody contoured stay unknown.

# %%
#| default_exp io.rtstruct

# %%
#| export
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from skimage.draw import polygon

from ctseg.io.dicom import Series

# %%
#| hide
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pydicom
from fastcore.test import test_eq

from ctseg.io.dicom import read_series
from ctseg.io.slicing import to_8bit
from ctseg.io.toy_dicom import clinic_planes, write_contours, write_series

# %% [markdown]
# An **RTSTRUCT** holds polygons in millimetres, each with a structure's name. A structure that was never contoured has no polygons, or
# is not listed; either way it is *unknown* for this patient. Here a ring is drawn on three slices: an outer polygon, and an inner one
# that makes the hole.

# %%
work = Path(tempfile.mkdtemp())
write_series(work/"ct", clinic_planes()["oblique, unevenly spaced"])
s, hu = read_series(work/"ct")
angle = np.linspace(0, 2*np.pi, 60, endpoint=False)
def circle(radius): return [34, 38] + radius*np.c_[np.cos(angle), np.sin(angle)]
rings = [(k, circle(radius)) for k in (9, 10, 11) for radius in (20.2, 12.2)]
write_contours(work/"rtstruct", s.headers, {"Ring": rings, "Never drawn": []})
header = pydicom.dcmread(work/"rtstruct")


# %%
#| export
class Region(NamedTuple):
    "A region of an RTSTRUCT that has closed contours."
    name: str
    rings: list[np.ndarray] # points of each, float [n,3], in DICOM's mm

def _closed_rings(roi) -> list[np.ndarray]:
    "The closed contours of a region with at least three points."
    rings = []
    for contour in roi.get("ContourSequence", None) or []:
        closed = contour.get("ContourGeometricType", "CLOSED_PLANAR").startswith("CLOSED")
        if closed and len(contour.get("ContourData") or []) >= 9:
            rings.append(np.array(contour.ContourData, float).reshape(-1, 3))
    return rings


# %%
print([len(_closed_rings(roi)) for roi in header.ROIContourSequence])


# %%
#| export
def read_regions(header) -> list[Region]:
    "The regions of an RTSTRUCT that have closed contours. Two may have one name."
    listed = header.get("StructureSetROISequence", [])
    names = {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in listed}
    regions = []
    for roi in header.get("ROIContourSequence", []):
        rings = _closed_rings(roi)
        if rings:
            regions.append(Region(names.get(int(roi.ReferencedROINumber), ""), rings))
    return regions


# %%
regions = read_regions(header)
print([(region.name, len(region.rings)) for region in regions])

# %% [markdown]
# A pixel belongs to a structure if its centre lies within an odd number of its polygons on that slice, so an inner polygon is a hole.
# Polygons may be drawn on planes that are no slices. Of the planes near a slice only the nearest counts, or two outlines of the same
# thing would erase each other.

# %%
#| export
_ONE_PLANE = .1  # mm: rings no farther apart lie in one plane

def _rings_by_slice(series: Series, rings: list[np.ndarray]) -> dict[int, list[np.ndarray]]:
    "Slice → its rings as `Series.locate` gives them; of several planes near a slice only the nearest."
    near = {}
    for points in rings:
        located = series.locate(points)
        k = int(located[0, 2])
        if k >= 0:
            near.setdefault(k, []).append(located)
    for k, located in near.items():
        nearest = min((ring[0, 3] for ring in located), key=abs)
        near[k] = [ring for ring in located if abs(ring[0, 3] - nearest) <= _ONE_PLANE]
    return near


# %%
print({k: len(located) for k, located in _rings_by_slice(s, regions[0].rings).items()})
half_a_mm_up = [ring + [0, 0, .5] for ring in regions[0].rings]
print(
    "with other planes nearby:",
    {k: len(v) for k, v in _rings_by_slice(s, regions[0].rings + half_a_mm_up).items()},
)


# %% [markdown]
# A contour may lie outside of the volume altogether: the scan was cropped, or the contours belong to another one. A structure of which
# no ring meets the volume is *unknown*, since nobody looked for it here.

# %%
#| export
def _meets_slice(located: np.ndarray, size: tuple[int, int]) -> bool:
    "Does a ring, as `Series.locate` gives it, reach into the pixels of a slice? `size`: columns, rows."
    pixels = located[:, :2]
    return bool((pixels.max(0) > -.5).all() and (pixels.min(0) < np.array(size) - .5).all())

def meets_volume(series: Series, region: Region) -> bool:
    "Does any ring of a region reach into the volume?"
    rings = [ring for near in _rings_by_slice(series, region.rings).values() for ring in near]
    return any(_meets_slice(ring, series.shape[:2]) for ring in rings)


# %%
above = Region("above", [ring + [0, 0, 500] for ring in regions[0].rings])
beside = Region("beside", [ring + [500, 0, 0] for ring in regions[0].rings])
print({region.name: meets_volume(s, region) for region in (regions[0], above, beside)})


# %% [markdown]
# Many people contour every third slice and let their planning system fill in the rest. So a slice *between* the first and the last
# contour that has none itself is *unknown* as well. Only beyond them the structure is absent.

# %%
#| export
@dataclass
class DrawnStructure:
    "A structure that somebody drew on a series. Two may have one name."
    name: str
    mask: np.ndarray # bool [columns, rows, slices]
    slices: np.ndarray # bool [slices]: where it was drawn, or may be


# %%
#| export
def draw_region(series: Series, region: Region) -> DrawnStructure:
    "The mask of a region on the grid of a series."
    shape = series.shape
    mask, slices = np.zeros(shape, bool), np.zeros(shape[2], bool)
    near = _rings_by_slice(series, region.rings)
    for k, rings in near.items():
        for ring in rings:
            i, j = polygon(ring[:, 0], ring[:, 1], shape[:2])
            mask[i, j, k] ^= True
    if near:
        slices[min(near):max(near) + 1] = True
    return DrawnStructure(region.name, mask, slices)


# %%
ring = draw_region(s, regions[0])
test_eq(ring.mask.any((0, 1)).nonzero()[0], [9, 10, 11])
test_eq(ring.slices.nonzero()[0], [9, 10, 11])
row, column = np.mgrid[:76, :68]
radius = np.hypot(column - 34, row - 38)
clear = abs(radius - 20.2) > .3  # away from the polygon's corners
test_eq(ring.mask[..., 10].T[clear], ((radius < 20.1) & (radius > 12.2))[clear])

# %%
fig, ax = plt.subplots(figsize=(2.6, 2.8), layout="constrained")
ax.imshow(to_8bit(hu[..., 10].T, 40, 200), cmap="gray")
ax.imshow(ring.mask[..., 10].T[..., None]*np.uint8([230, 160, 60, 140]))
ax.set_title("slice 10 and the ring", fontsize=9)
ax.axis("off")
shutil.rmtree(work)
