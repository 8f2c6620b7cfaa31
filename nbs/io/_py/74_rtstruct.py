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
from ctseg.io.dicom_headers import Misfit

# %%
#| hide
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pydicom
from fastcore.test import test_eq, test_fail

from ctseg.io.dicom import read_series
from ctseg.io.slicing import to_8bit
from ctseg.io.toy_dicom import clinic_planes, write_contours, write_series

# %% [markdown]
# An **RTSTRUCT** is the DICOM file in which radiotherapy systems store contours: polygons in millimetres, each with a structure's name. A structure that was never contoured has no
# polygons, or is not listed; either way it is *unknown* for this patient. Here a ring is drawn on three slices: an outer polygon, and an inner one
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
print([(roi.ROIName, roi.ROINumber) for roi in header.StructureSetROISequence])

# %%
#| export
_XOR = "CLOSEDPLANAR_XOR"

class Region(NamedTuple):
    "A region of an RTSTRUCT."
    name: str
    rings: list[np.ndarray] # the closed contours: points of each, float [n,3], in DICOM's mm
    exclusive: tuple[int, ...] = () # numbers of the rings that are to be combined by exclusive or
    named: tuple[str, ...] = () # for each ring the number of the slice that it says it was drawn on, or ""
    space: str = "" # the frame of reference in which its millimetres are counted, if it says so
    lines: tuple[np.ndarray, ...] = () # contours that enclose nothing, float [n,3]: open ones, single points

def _named_slice(contour) -> str:
    "The number of the only slice that a contour names, \"\" if none or several."
    images = contour.get("ContourImageSequence") or []
    return str(images[0].get("ReferencedSOPInstanceUID") or "") if len(images) == 1 else ""


# %%
#| export
def _numbers_of(contour) -> list:
    "The coordinates of a contour, in one row. Those of more than 64 kB stand in a file as bytes of an unknown kind."
    value = contour.get("ContourData") or []
    return value.decode("ascii").strip(" \0").split("\\") if isinstance(value, bytes) else value

def _read_rings(roi) -> Region:
    "The contours of a region, without its name."
    rings, exclusive, named, lines = [], [], [], []
    for contour in roi.get("ContourSequence", None) or []:
        given = contour.get("ContourGeometricType") or "CLOSED_PLANAR"
        kind = str(given).strip().upper()
        numbers = _numbers_of(contour)
        if len(numbers) < 3: continue
        points = np.array(numbers, float).reshape(-1, 3)
        if not np.isfinite(points).all():
            raise Misfit("its RTSTRUCT has a contour with points that are no numbers; export it again")
        if not kind.startswith("CLOSED") or len(points) < 3:
            lines.append(points)
            continue
        if kind == _XOR:
            exclusive.append(len(rings))
        rings.append(points)
        named.append(_named_slice(contour))
    return Region("", rings, tuple(exclusive), tuple(named), lines=tuple(lines))


# %%
print([len(_read_rings(roi)[0]) for roi in header.ROIContourSequence])


# %% [markdown]
# A name may be missing. Then we take the observation's label, the description or the number instead.

# %%
#| export
def _check_numbers(numbers: list):
    "`Misfit` for two structures of one number: nobody can say which is which."
    twice = [number for n, number in enumerate(numbers) if number in numbers[:n]]
    if twice:
        raise Misfit(f"its RTSTRUCT has two structures of one number, {twice[0]}; export it again")


# %%
test_fail(lambda: _check_numbers([1, 2, 1]), contains="one number, 1")


# %%
#| export
def _text(item, tag: str) -> str:
    "An element as text, \"\" if it is missing or empty."
    return str(item.get(tag) or "").strip()

def _names_by_number(header) -> dict[int, str]:
    "Names of regions by their numbers."
    names = {}
    for item in header.get("RTROIObservationsSequence") or []:
        number = item.get("ReferencedROINumber")
        if number is not None:
            names[int(number)] = _text(item, "ROIObservationLabel")
    listed = header.get("StructureSetROISequence") or []
    _check_numbers([item.ROINumber for item in listed])
    for item in listed:
        number = int(item.ROINumber)
        label = _text(item, "ROIName") or names.get(number)
        names[number] = label or _text(item, "ROIDescription")
    return names


# %%
#| export
def _spaces_by_number(header) -> dict[int, str]:
    "The frames of reference of regions by their numbers."
    listed = header.get("StructureSetROISequence") or []
    return {int(item.ROINumber): _text(item, "ReferencedFrameOfReferenceUID") for item in listed}

def _drawn_regions(header) -> dict:
    "The regions for which anything was drawn, by their numbers."
    drawn = []
    for roi in header.get("ROIContourSequence") or []:
        contours = roi.get("ContourSequence") or []
        if any(contour.get("ContourData") for contour in contours):
            drawn.append(roi)
    numbers = [int(roi.ReferencedROINumber) for roi in drawn]
    _check_numbers(numbers)
    return dict(zip(numbers, drawn))


# %%
print(list(_drawn_regions(header)), _names_by_number(header))


# %%
#| export
def read_regions(header) -> list[Region]:
    """The regions of an RTSTRUCT for which anything was drawn.

    Those without closed contours have no rings. Two may have one name.
    """
    names, spaces = _names_by_number(header), _spaces_by_number(header)
    regions = []
    for number, roi in _drawn_regions(header).items():
        name = names.get(number) or f"roi {number}"
        region = _read_rings(roi)._replace(name=name, space=spaces.get(number, ""))
        regions.append(region)
    return regions

def empty_names(header) -> list[str]:
    "The names of regions that a structure set lists and for which nothing was drawn, as templates leave them."
    drawn = _drawn_regions(header)
    names = _names_by_number(header)
    return [name or f"roi {number}" for number, name in names.items() if number not in drawn]


# %%
regions = read_regions(header)
print([(region.name, len(region.rings)) for region in regions], empty_names(header))

# %% [markdown]
# A polygon within another one is a hole, and one within the hole is an island. Polygons that overlap in part are one area. Only those of the
# type `CLOSEDPLANAR_XOR` cancel out where they overlap. Polygons may be drawn on planes that are no slices. Of the planes near a slice only the nearest counts, or two outlines of the same
# thing would erase each other.

# %%
#| export
_ONE_PLANE = .1  # mm: rings no farther apart lie in one plane

class _Ring(NamedTuple):
    "A ring on a slice."
    located: np.ndarray # float [n,4], as `Series.locate` gives it
    exclusive: bool

    @property
    def height(self) -> float:
        "How many mm the ring lies off the slice."
        return self.located[0, 3]

def _rings_by_slice(series: Series, region: Region) -> dict[int, list[_Ring]]:
    "Slice → its rings; of several planes near a slice only the nearest."
    near = {}
    for number, points in enumerate(region.rings):
        located = series.locate(points)
        k = int(np.median(located[:, 2]))
        if k < 0: continue
        ring = _Ring(located, number in region.exclusive)
        near.setdefault(k, []).append(ring)
    for k, rings in near.items():
        nearest = min((ring.height for ring in rings), key=abs)
        near[k] = [ring for ring in rings if abs(ring.height - nearest) <= _ONE_PLANE]
    return near


# %%
print({k: len(rings) for k, rings in _rings_by_slice(s, regions[0]).items()})
twice = Region("twice", regions[0].rings + [ring + [0, 0, .5] for ring in regions[0].rings])
print("with other planes nearby:", {k: len(v) for k, v in _rings_by_slice(s, twice).items()})


# %% [markdown]
# A contour may lie outside of the volume altogether: the scan was cropped, or the contours belong to another one. A structure of which
# no ring meets the volume is *unknown*, since nobody looked for it here.

# %%
#| export
def _meets_slice(located: np.ndarray, size: tuple[int, int]) -> bool:
    "Does a ring, as `Series.locate` gives it, reach into the pixels of a slice? `size`: columns, rows."
    pixels = located[:, :2]
    first, last = pixels.min(0), pixels.max(0)
    reaches = (last > -.5) & (first < np.array(size) - .5)
    return bool(reaches.all())

def meets_volume(series: Series, region: Region) -> bool:
    "Does any ring of a region reach into the volume?"
    size = series.shape[:2]
    for rings in _rings_by_slice(series, region).values():
        if any(_meets_slice(ring.located, size) for ring in rings):
            return True
    return False


# %%
above = Region("above", [ring + [0, 0, 500] for ring in regions[0].rings])
beside = Region("beside", [ring + [500, 0, 0] for ring in regions[0].rings])
print({region.name: meets_volume(s, region) for region in (regions[0], above, beside)})


# %% [markdown]
# A planning system may also hold contours in sagittal or tilted planes. Their rings leave the plane of the slices, and laid flat they would be
# nonsense. Such a structure is not used, and it is told.

# %%
#| export
def half_step(series: Series) -> float:
    "Half the least step between slices, mm, and a little; of a single slice 1 mm."
    heights = series.slice_origins() @ series.normal
    steps = np.abs(np.diff(heights))
    return .5*steps.min(initial=2.) + .01

def leaves_plane(series: Series, region: Region) -> bool:
    "Does a ring of a region leave the plane of the slices, by more than half the least step?"
    most = half_step(series)
    for points in region.rings:
        ring_heights = points*[-1, -1, 1] @ series.normal
        if np.ptp(ring_heights) > most: return True
    return False


# %%
sagittal = Region("sagittal", [ring[:, [2, 1, 0]] for ring in regions[0].rings])
print({region.name: leaves_plane(s, region) for region in (regions[0], sagittal)})


# %% [markdown]
# Contours may also lie *between* the slices, drawn on another series of the same patient, say. Each goes to the nearest slice, and how far that
# was is told.

# %%
#| export
def off_plane(series: Series, region: Region) -> float:
    "By how many mm the rings of a region lie off the slices that they are drawn on, at most."
    most = 0.
    for rings in _rings_by_slice(series, region).values():
        for ring in rings:
            most = max(most, abs(float(ring.height)))
    return most


# %%
lower = Region("Lower", [points + .4*s.normal*[-1, -1, 1] for points in regions[0].rings])
print({region.name: round(off_plane(s, region), 3) for region in (regions[0], lower)})


# %% [markdown]
# Many people contour every third slice and let their planning system fill in the rest. So a slice *between* the first and the last
# contour that has none itself is *unknown* as well. Only beyond them the structure is absent. A contour that encloses nothing, an open line or a
# single point, gives no pixels. But somebody saw the structure there, so its slices are unknown too.

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
def _inside(ring: _Ring, size: tuple[int, int]) -> np.ndarray:
    "The pixels inside a ring by their numbers, from the first to the last."
    columns, rows = ring.located[:, 0], ring.located[:, 1]
    inside = np.ravel_multi_index(polygon(columns, rows, size), size)
    return np.sort(inside).astype(np.int32)

def _different(areas: list[np.ndarray]) -> list[np.ndarray]:
    "The areas that hold a pixel, each once, the largest first."
    different = {area.tobytes(): area for area in areas if len(area)}
    return sorted(different.values(), key=len, reverse=True)


# %%
print([len(area) for area in _different([np.arange(3), np.arange(5), np.arange(3), np.arange(0)])])


# %%
#| export
def _holds(larger: np.ndarray, area: np.ndarray) -> bool:
    "Does an area hold all pixels of another, which begins and ends within it?"
    return np.array_equal(larger[np.searchsorted(larger, area)], area)

def _fill(rings: list[_Ring], size: tuple[int, int]) -> np.ndarray:
    "The area of the rings of one slice, bool [columns, rows]."
    pixels = size[0]*size[1]
    exclusive, area, covered = np.zeros((3, pixels), bool)
    plain = []
    for ring in rings:
        inside = _inside(ring, size)
        if ring.exclusive: exclusive[inside] ^= True
        else: plain.append(inside)
    different = _different(plain)
    ends = np.array([inside[[0, -1]] for inside in different]).reshape(-1, 2)
    for n, inside in enumerate(different):
        depth = 0
        if covered[inside].all():  # else no larger one holds it
            about = (ends[:n, 0] <= inside[0]) & (ends[:n, 1] >= inside[-1])
            depth = sum(_holds(different[other], inside) for other in np.flatnonzero(about))
        area[inside] = depth % 2 == 0
        covered[inside] = True
    return (area | exclusive).reshape(size)


# %%
#| export
def _slices_met(series: Series, lines) -> set[int]:
    "The slices that points of contours lie on."
    met = set()
    for points in lines:
        numbers = series.locate(points)[:, 2]
        met |= set(numbers[numbers >= 0].astype(int).tolist())
    return met


# %%
print(_slices_met(s, regions[0].rings[:1]))


# %%
#| export
def draw_region(series: Series, region: Region) -> DrawnStructure:
    "The mask of a region on the grid of a series."
    columns, rows, depth = series.shape
    mask = np.zeros(series.shape, bool)
    slices = np.zeros(depth, bool)
    near = _rings_by_slice(series, region)
    for k, rings in near.items():
        mask[..., k] = _fill(rings, (columns, rows))
    if near:
        drawn_on = {*near, *_slices_met(series, region.lines)}
        first, last = min(drawn_on), max(drawn_on)
        slices[first:last + 1] = True
    return DrawnStructure(region.name, mask, slices)


# %%
def square(a, b, exclusive=False):
    corners = np.array([[a, a], [b, a], [b, b], [a, b]], float)
    return _Ring(np.c_[corners, np.zeros((4, 2))], exclusive)

nested, overlapping = [square(0, 8), square(2, 6), square(3, 5)], [square(0, 5), square(3, 8)]
cancelling = [square(0, 5, True), square(3, 8, True)]
print([int(_fill(rings, (9, 9)).sum()) for rings in (nested, overlapping, cancelling, nested*2)])

# %%
ring = draw_region(s, regions[0])
test_eq(ring.mask.any((0, 1)).nonzero()[0], [9, 10, 11])
test_eq(ring.slices.nonzero()[0], [9, 10, 11])
row, column = np.mgrid[:76, :68]
radius = np.hypot(column - 34, row - 38)
clear = abs(radius - 20.2) > .3  # away from the polygon's corners
test_eq(ring.mask[..., 10].T[clear], ((radius < 20.1) & (radius > 12.2))[clear])

# %%
#| fig-alt: "One slice with a ring-shaped structure overlaid: its hole is left free"
fig, ax = plt.subplots(figsize=(2.6, 2.8), layout="constrained")
ax.imshow(to_8bit(hu[..., 10].T, 40, 200), cmap="gray")
ax.imshow(ring.mask[..., 10].T[..., None]*np.uint8([230, 160, 60, 140]))
ax.set_title("slice 10 and the ring", fontsize=9)
ax.axis("off")
shutil.rmtree(work)
