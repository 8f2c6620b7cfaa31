# %% [markdown]
# # Reading DICOM SEG
#
# > Segmentations of any program, each frame laid where it says that it lies.

# %%
#| default_exp io.dicom_seg_read

# %%
#| export
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctseg.io.dicom_headers import Misfit
from ctseg.io.dicom_heap import frame_item, read_file
from ctseg.io.dicom_series import Series
from ctseg.io.rtstruct import DrawnStructure
from ctseg.io.seg_parts import check_counts, check_length, segment_names
from ctseg.io.volumes import import_volumes_package

# %%
#| hide
import shutil
import tempfile

import pydicom
from fastcore.test import test_eq, test_fail

from ctseg.io.dicom import read_series
from ctseg.io.dicom_seg import make_segmentation
from ctseg.io.toy_dicom import HEAD_CLASSES, clinic_planes, write_series

# %% [markdown]
# A DICOM SEG is a pile of small pictures, its *frames*. Each belongs to a segment and says where it lies. Programs agree on little else: some store
# only a bounding box, some count rows from below, some leave out empty frames, some refer to the slice under a frame, to all slices, or
# to none. All of that is settled by geometry. Here the true classes of a toy series are written by highdicom and read again.

# %%
work = Path(tempfile.mkdtemp())
truth = write_series(work/"ct", clinic_planes()["oblique, unevenly spaced"])
s, _ = read_series(work/"ct")
make_segmentation(s, truth, HEAD_CLASSES, "v000").save_as(work/"seg.dcm")
seg = read_file(work/"seg.dcm")
print(
    seg.SegmentationType,
    len(seg.SegmentSequence),
    "segments in",
    seg.NumberOfFrames,
    "frames of",
    (seg.Rows, seg.Columns),
)

# %% [markdown]
# ## Frames
#
# What the segments are called, and whether the parts of the file fit together, is settled [before](76_seg_parts.ipynb).

# %%
print(segment_names(seg))


# %%
#| export
class Frame(NamedTuple):
    "Where a frame lies; vectors as DICOM counts, left, back, up."
    number: int # in the file, from 0
    segment: int # 0: a label map, whose pixels are numbers of segments
    origin: np.ndarray # float [3], mm: the centre of the first pixel
    axes: np.ndarray # float [2,3], mm: from column to column, from row to row
    source: str # the one slice that it is said to be drawn on, "" if none or several
    preserved: bool # "spatial locations preserved": claims to lie on the pixels of that slice

    @property
    def normal(self) -> np.ndarray:
        "The direction of the frame's stack, float [3]."
        normal = np.cross(*self.axes)
        return normal/np.linalg.norm(normal)


# %%
#| export
def _source_of(frame, shared) -> tuple[str, bool]:
    "The only slice that a frame refers to, and whether it claims to lie on its pixels."
    derivation = frame_item(frame, shared, "DerivationImageSequence")
    images = derivation.get("SourceImageSequence") or [] if derivation is not None else []
    if len(images) != 1: return "", False
    uid = str(images[0].get("ReferencedSOPInstanceUID") or "")
    return uid, images[0].get("SpatialLocationsPreserved") == "YES"

def _shared(header):
    "What all frames of a segmentation have in common."
    return (header.get("SharedFunctionalGroupsSequence") or [import_volumes_package("pydicom").Dataset()])[0]


# %%
#| export
def _segment_of(frame, shared, names: dict[int, str], kind: str) -> int:
    "The number of a frame's segment; 0 for a label map."
    if kind == "LABELMAP": return 0
    item = frame_item(frame, shared, "SegmentIdentificationSequence")
    if item is not None and item.get("ReferencedSegmentNumber"):
        return int(item.ReferencedSegmentNumber)
    if len(names) == 1: return next(iter(names))
    raise Misfit("its SEG does not say which segment a frame belongs to; export it again")


# %%
#| export
def _grid_of(frame, shared, below) -> tuple[np.ndarray, np.ndarray]:
    "Origin and axes of a frame; what it does not say is taken from the header of the slice below it."
    places = {
        "ImagePositionPatient": "PlanePositionSequence",
        "ImageOrientationPatient": "PlaneOrientationSequence",
        "PixelSpacing": "PixelMeasuresSequence",
    }
    values = {}
    for tag, sequence in places.items():
        item = frame_item(frame, shared, sequence)
        value = item.get(tag) if item is not None else None
        if value is None and below is not None: value = below.get(tag)
        if value is None:
            raise Misfit(f"its SEG does not say where its frames lie ({tag}); export it again")
        values[tag] = np.array(value, float)
    columns, rows = values["ImageOrientationPatient"].reshape(2, 3)
    between_rows, between_columns = values["PixelSpacing"]
    return values["ImagePositionPatient"], np.stack([columns*between_columns, rows*between_rows])


# %%
#| export
def read_frames(header, series: Series) -> list[Frame]:
    "Where the frames of a DICOM SEG lie. Raises `Misfit` if one does not say so."
    names, kind = segment_names(header), str(header.get("SegmentationType") or "BINARY")
    check_counts(header)
    shared = _shared(header)
    numbers = {uid: k for k, uid in enumerate(series.uids)}
    same_size = (int(header.Columns), int(header.Rows)) == series.shape[:2]
    frames = []
    for number, frame in enumerate(header.get("PerFrameFunctionalGroupsSequence") or []):
        source, preserved = _source_of(frame, shared)
        told = frame_item(frame, shared, "PlanePositionSequence") is not None
        below = series.headers[numbers[source]] if source in numbers and same_size and not told else None
        origin, axes = _grid_of(frame, shared, below)
        segment = _segment_of(frame, shared, names, kind)
        frames.append(Frame(number, segment, origin, axes, source if source in numbers else "", preserved))
    return frames


# %%
frames = read_frames(seg, s)
print(frames[0].segment, frames[0].origin.round(2), frames[0].axes.round(2).tolist(), frames[0].preserved)

# %% [markdown]
# ## Where a frame meets the series
#
# A frame must be parallel to the slices. It belongs to the slice nearest to it. Where frames are farther apart than slices, a slice takes the
# frame nearest to it; where they are closer, some have no slice.

# %%
#| export
_PARALLEL = .999 # cosine of the angle between the normals of frame and slice
_TOLERANCE = .1 # of a pixel, by which grids may differ and still be the same

class _Slices(NamedTuple):
    "The slices of a series, as DICOM counts."
    origins: np.ndarray # float [K,3]
    axes: np.ndarray # float [2,3]
    normal: np.ndarray # float [3]
    heights: np.ndarray # float [K]: along the normal

def _slices_of(series: Series) -> _Slices:
    "The grid of a series in DICOM's directions."
    turn = np.array([-1, -1, 1])
    origins, axes = series.slice_origins()*turn, series.affine[:3, :2].T*turn
    normal = np.cross(*axes)
    normal = normal/np.linalg.norm(normal)
    return _Slices(origins, axes, normal, origins @ normal)


# %%
#| export
def _corners(origin: np.ndarray, axes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    "The outer pixel centres of a grid of (columns, rows), float [4,3], in an order that flips do not change."
    last = np.array(shape) - 1
    corners = origin + np.array([[0, 0], [last[0], 0], [0, last[1]], last]) @ axes
    return corners[np.lexsort(corners.round(2).T)]

def _beside(frame: Frame, shape: tuple[int, int], slices: _Slices, k: int) -> float:
    "By how many mm a frame lies beside slice k, if both have one size; whichever way rows and columns run."
    ours = _corners(slices.origins[k], slices.axes, shape)
    theirs = _corners(frame.origin, frame.axes, shape)
    return float(np.linalg.norm(ours[:, None] - theirs, axis=-1).min(1).max())


# %%
slices = _slices_of(s)
print([round(_beside(frames[0], (seg.Columns, seg.Rows), slices, k), 2) for k in (0, 1, 2)], "mm")


# %%
#| export
def _check_claims(frame: Frame, shape: tuple[int, int], series: Series, slices: _Slices):
    "`Misfit` for a frame that claims to lie on a slice and lies elsewhere."
    if not frame.source: return
    ks = [k for k, uid in enumerate(series.uids) if uid == frame.source]
    steps = np.abs(np.diff(slices.heights))
    off = min(abs(frame.origin @ slices.normal - slices.heights[k]) for k in ks)
    if off > .5*(steps.min() if len(steps) else 1) + .01:
        raise Misfit(f"its SEG has a frame that lies {off:.1f} mm off the slice it says it was drawn on; "
                     "export it again")
    if not frame.preserved or shape != series.shape[:2]: return
    beside = min(_beside(frame, shape, slices, k) for k in ks)
    if beside > _TOLERANCE*np.linalg.norm(slices.axes, axis=1).min() + .01:
        raise Misfit("its SEG says that it lies on the pixels of its slices, "
                     f"and lies {beside:.1f} mm beside them; export it again")


# %%
for frame in frames: _check_claims(frame, (seg.Columns, seg.Rows), s, slices)
moved = frames[0]._replace(origin=frames[0].origin + 5*s.affine[:3, 0]*[-1, -1, 1])
test_fail(lambda: _check_claims(moved, (seg.Columns, seg.Rows), s, slices), contains="mm beside them")


# %%
#| export
def _reach(heights: np.ndarray, slice_heights: np.ndarray, header) -> float:
    "How far a frame may lie from the slice that takes it, mm. Little, if all frames lie on slices."
    least = np.abs(np.diff(slice_heights)).min(initial=np.inf)
    off = np.abs(heights[:, None] - slice_heights).min(1).max()
    if off < min(_TOLERANCE*least, 1): return min(.5*least, 1)
    steps = np.diff(np.unique(heights.round(2)))
    item = frame_item({}, _shared(header), "PixelMeasuresSequence") or {}
    told = [float(item.get(tag) or 0) for tag in ("SpacingBetweenSlices", "SliceThickness")]
    spacing = told[0] or steps.min(initial=told[1] or 1)
    return .5*max(spacing, least if np.isfinite(least) else 0) + .01


# %%
print(
    _reach(np.array([5., 10]), np.arange(0, 20, 2.5), seg),
    _reach(np.array([6.1, 11.1]), np.arange(0, 20, 2.5), seg),
)


# %%
#| export
def slices_of_frames(header, frames: list[Frame], series: Series) -> list[list[int]]:
    """For each frame the slices that take it; none if it lies off the volume or another frame is nearer.

    Raises `Misfit` for frames that are not parallel to the slices, or that contradict themselves.
    """
    slices, shape = _slices_of(series), (int(header.Columns), int(header.Rows))
    for frame in frames:
        if abs(frame.normal @ slices.normal) < _PARALLEL:
            raise Misfit("its SEG has frames in another plane than the slices of its series; "
                         "export it on the grid of the series")
        _check_claims(frame, shape, series, slices)
    taken: list[list[int]] = [[] for _ in frames]
    if not frames: return taken
    heights = np.array([frame.origin @ slices.normal for frame in frames])
    reach = _reach(heights, slices.heights, header)
    for segment in {frame.segment for frame in frames}:
        mine = np.array([i for i, frame in enumerate(frames) if frame.segment == segment])
        _share_out(mine, heights, slices.heights, reach, taken)
    return taken


# %%
#| export
def _share_out(
    mine: np.ndarray, # int: the numbers of a segment's frames
    heights: np.ndarray, # of all frames
    slice_heights: np.ndarray,
    reach: float, # mm
    taken: list[list[int]], # for each frame its slices; changed
):
    "Give each slice the nearest frame of a segment, and those as near (two pieces may share a plane)."
    for k, height in enumerate(slice_heights):
        off = np.abs(heights[mine] - height)
        if off.min() > reach: continue
        for i in mine[off <= off.min() + .01]: taken[i].append(k)


# %%
taken = slices_of_frames(seg, frames, s)
print(taken[:4], "…")
test_eq([len(ks) for ks in taken], [1]*len(frames))


# %% [markdown]
# In its plane a frame may be smaller, turned by half a circle or coarser. Each pixel of the slice looks up the pixel of the frame
# that its centre lies on.

# %%
#| export
class _Lookup(NamedTuple):
    "For the pixels of a slice the pixel of a frame; outside of it `inside` is false."
    column: np.ndarray # int [columns,rows]
    row: np.ndarray
    inside: np.ndarray # bool
    exact: bool # every pixel centre lies on a pixel centre


# %%
#| export
def _lookup(frame: Frame, shape: tuple[int, int], series: Series, slices: _Slices, k: int) -> _Lookup:
    "Where the pixels of slice k lie on a frame of `shape` (columns, rows)."
    i, j = np.mgrid[:series.shape[0], :series.shape[1]]
    relative = slices.origins[k] - frame.origin
    inverse = np.linalg.pinv(frame.axes)  # [3,2]
    start, steps = relative @ inverse, slices.axes @ inverse
    place = start + i[..., None]*steps[0] + j[..., None]*steps[1]
    nearest = np.floor(place + .5).astype(int)
    inside = ((nearest >= 0) & (nearest < shape)).all(-1)
    found = nearest[inside]
    exact = not len(found) or np.abs(place[inside] - found).max() < _TOLERANCE
    same_pixels = np.allclose(np.abs(np.linalg.det(steps)), 1, atol=1e-3)
    return _Lookup(nearest[..., 0], nearest[..., 1], inside, bool(exact and same_pixels))


# %%
#| export
@dataclass
class _Placer:
    "Lays the frames of a segmentation onto the slices of a series."
    series: Series
    shape: tuple[int, int] # of a frame: columns, rows
    exact: bool = True # so far no frame was resampled
    cropped: bool = False # something drawn lies beside the pixels of the series
    _lookups: dict = field(default_factory=dict)

    def place(self, frame: Frame, pixels: np.ndarray, k: int) -> np.ndarray:
        "A frame, bool [rows, columns], on slice k: bool [columns, rows]."
        slices = _slices_of(self.series)
        key = tuple((frame.origin - slices.origins[k]).round(4)), tuple(frame.axes.ravel().round(6))
        if key not in self._lookups:
            if len(self._lookups) > 8: self._lookups.clear()
            self._lookups[key] = _lookup(frame, self.shape, self.series, slices, k)
        lookup = self._lookups[key]
        self.exact &= lookup.exact
        mask = np.zeros(self.series.shape[:2], bool)
        mask[lookup.inside] = pixels[lookup.row[lookup.inside], lookup.column[lookup.inside]]
        if lookup.exact: self.cropped |= int(mask.sum()) < int(pixels.sum())
        return mask


# %%
placer = _Placer(s, (seg.Columns, seg.Rows))
first = placer.place(frames[0], np.ones((seg.Rows, seg.Columns), bool), taken[0][0])
print(first.shape, first.all(), placer.exact, placer.cropped)


# %% [markdown]
# ## Pixels
#
# Frames are decoded one at a time, since a segmentation of fifty structures has thousands. A *fractional* one holds probabilities, of which those
# from one half on count. A *label map* holds the numbers of segments.

# %%
#| export
def _unpacked(header) -> Iterator[np.ndarray]:
    "The frames of one bit a pixel. They follow each other without a gap, so one may begin within a byte."
    shape = int(header.Rows), int(header.Columns)
    data, size = np.frombuffer(header.PixelData, np.uint8), shape[0]*shape[1]
    for first in range(0, int(header.NumberOfFrames)*size, size):
        part = np.unpackbits(data[first//8:(first + size + 7)//8], bitorder="little")
        yield part[first % 8:first % 8 + size].reshape(shape)


# %%
#| export
def _decoded(path: Path, header) -> Iterator[np.ndarray]:
    "The frames of a segmentation in order, [rows, columns]."
    if not header.get("NumberOfFrames") or "PixelData" not in header: return
    compressed = header.file_meta.TransferSyntaxUID.is_encapsulated
    if not compressed: check_length(header)
    if int(header.BitsAllocated) == 1 and not compressed:
        yield from _unpacked(header)
    elif getattr(header, "preamble", None):
        yield from import_volumes_package("pydicom.pixels").iter_pixels(path, raw=True)
    else:
        yield from header.pixel_array.reshape(-1, int(header.Rows), int(header.Columns))

def _drawn(pixels: np.ndarray, header, segment: int) -> dict[int, np.ndarray]:
    "Segment → what is drawn of it on a frame, bool [rows, columns]."
    kind = str(header.get("SegmentationType") or "BINARY")
    if kind == "LABELMAP":
        return {int(number): pixels == number for number in np.unique(pixels) if number}
    if kind == "FRACTIONAL":
        return {segment: pixels >= .5*float(header.get("MaximumFractionalValue") or 255)}
    return {segment: pixels > 0}


# %%
print(
    [
        int(sum(mask.sum() for mask in _drawn(pixels, seg, 1).values()))
        for pixels in _decoded(work/"seg.dcm", seg)
    ][:6],
    "…",
)


# %%
#| export
@dataclass
class Segments:
    "The segments of a DICOM SEG on the grid of its series. Two may have one name."
    structures: list[DrawnStructure]
    notes: list[str] # what was done to make them fit, in words


# %%
#| export
def read_segments(
    path: Path,
    series: Series,
    wanted: Callable[[str], bool]|None = None, # names of the segments to read; `None`: all
) -> Segments:
    """Lay the segments of a DICOM SEG onto a series.

    Raises `Misfit` for frames that contradict the slices they refer to, or lie in another plane.
    """
    header = read_file(path)
    names, frames = segment_names(header), read_frames(header, series)
    taken = slices_of_frames(header, frames, series)
    masks = {n: np.zeros(series.shape, bool) for n, name in names.items() if wanted is None or wanted(name)}
    placer, lost = _Placer(series, (int(header.Columns), int(header.Rows))), 0
    for frame, pixels in zip(frames, _decoded(path, header)):
        for segment, mask in _drawn(pixels, header, frame.segment).items():
            if segment not in names:
                raise Misfit(f"its SEG has pixels of a segment {segment}, which it does not list; "
                             "export it again")
            if segment not in masks: continue
            lost += not taken[frame.number] and bool(mask.any())
            for k in taken[frame.number]:
                masks[segment][..., k] |= placer.place(frame, mask, k)
    structures = [DrawnStructure(names[n], mask, mask.any((0, 1))) for n, mask in masks.items()]
    off = _off_slices(frames, taken, series)
    return Segments(structures, _notes(placer, lost, frames) + off)


# %%
#| export
def off_slices_note(mm: float, series: Series, what: str) -> list[str]:
    "What to tell of something drawn so many mm off the slices that took it; nothing where that is rounding."
    steps = np.abs(np.diff(series.slice_origins() @ series.normal))
    if mm <= max(.1, .1*steps.min(initial=1.)): return []
    return [f"{what} lie up to {mm:.1f} mm off the slices that they were put on"]

def _off_slices(frames: list[Frame], taken: list[list[int]], series: Series) -> list[str]:
    "What to tell of frames that lie off the slices which took them."
    slices = _slices_of(series)
    pairs = [(frame, k) for frame, ks in zip(frames, taken) for k in ks]
    off = [abs(frame.origin @ slices.normal - slices.heights[k]) for frame, k in pairs]
    return off_slices_note(max(off, default=0.), series, "frames of its SEG")


# %%
print(off_slices_note(.01, s, "frames"), off_slices_note(1.3, s, "frames"))


# %%
#| export
def _notes(placer: _Placer, lost: int, frames: list[Frame]) -> list[str]:
    "What was done to make a segmentation fit, in words."
    notes = []
    if not placer.exact:
        notes.append("its SEG has another grid than the series; "
                     "each pixel took the nearest one in space")
    if placer.cropped:
        notes.append("its SEG reaches beyond the pixels of the series; "
                     "what lies outside was left out")
    if lost:
        notes.append(f"{lost} of {len(frames)} frames of its SEG were left out: "
                     "they lie between or beyond the slices")
    return notes


# %%
read = read_segments(work/"seg.dcm", s)
for structure in read.structures:
    print(f"{structure.name:9}", structure.mask.sum(), "voxels on", structure.slices.sum(), "slices")
    test_eq(structure.mask, truth == HEAD_CLASSES.id(structure.name))
test_eq(read.notes, [])


# %% [markdown]
# Voxel for voxel, on an oblique grid with voxels of 2.8 x 2.5 mm and uneven steps. A segment of which no frame meets the series is unknown
# there, like a contour outside of it. One without any frame was looked for in vain.

# %%
#| export
def segments_outside(header, series: Series) -> set[str]:
    "The names of segments that have frames, none of which lies on a slice."
    names, frames = segment_names(header), read_frames(header, series)
    taken = slices_of_frames(header, frames, series)
    numbers = {frame.segment for frame in frames}
    inside = {frame.segment for frame, ks in zip(frames, taken) if ks}
    if 0 in numbers: return set() if 0 in inside else set(names.values())
    return {names[n] for n in numbers - inside if n in names}


# %%
print(segments_outside(seg, s))
for frame in seg.PerFrameFunctionalGroupsSequence:
    frame.PlanePositionSequence[0].ImagePositionPatient[2] += 900
    del frame.DerivationImageSequence
print(segments_outside(seg, s))
shutil.rmtree(work)
