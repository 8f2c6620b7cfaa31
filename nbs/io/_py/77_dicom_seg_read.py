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

from ctseg.io.dicom_headers import Misfit, is_compressed, syntax_problem
from ctseg.io.dicom_heap import frame_item, read_file
from ctseg.io.dicom_series import Series, in_other_frame
from ctseg.io.rtstruct import DrawnStructure
from ctseg.io.seg_frames import FramePlace, frame_shape, read_frames, seg_kind, shared_groups
from ctseg.io.seg_parts import check_length, segment_names
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
# Where its frames lie is [read first](76_seg_frames.ipynb).

# %%
frames = read_frames(seg, s)
print(segment_names(seg), len(frames))

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
    origins = series.slice_origins()*turn
    axes = series.affine[:3, :2].T*turn
    normal = np.cross(*axes)
    normal = normal/np.linalg.norm(normal)
    heights = origins @ normal
    return _Slices(origins, axes, normal, heights)


# %%
#| export
def _corners(origin: np.ndarray, axes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    "The outer pixel centres of a grid of (columns, rows), float [4,3], in an order that flips do not change."
    column, row = np.array(shape) - 1
    pixels = np.array([[0, 0], [column, 0], [0, row], [column, row]])
    corners = origin + pixels @ axes
    order = np.lexsort(corners.round(2).T)
    return corners[order]

def _beside(frame: FramePlace, shape: tuple[int, int], slices: _Slices, k: int) -> float:
    "By how many mm a frame lies beside slice k, if both have one size; whichever way rows and columns run."
    ours = _corners(slices.origins[k], slices.axes, shape)
    theirs = _corners(frame.origin, frame.axes, shape)
    distances = np.linalg.norm(ours[:, None] - theirs, axis=-1)
    to_nearest = distances.min(1)
    return float(to_nearest.max())


# %%
slices = _slices_of(s)
print([round(_beside(frames[0], (seg.Columns, seg.Rows), slices, k), 2) for k in (0, 1, 2)], "mm")


# %%
#| export
def _most_off(slices: _Slices) -> float:
    "By how many mm a frame may lie off its slice along the normal: half the least step."
    steps = np.abs(np.diff(slices.heights))
    least = steps.min() if len(steps) else 1
    return .5*least + .01

def _most_beside(slices: _Slices) -> float:
    "By how many mm a frame may lie beside the pixels of its slice: a part of the smaller side of a pixel."
    pixel = np.linalg.norm(slices.axes, axis=1)
    return _TOLERANCE*pixel.min() + .01

def _check_claims(frame: FramePlace, shape: tuple[int, int], series: Series, slices: _Slices):
    "`Misfit` for a frame that claims to lie on a slice and lies elsewhere."
    claimed = frame.claimed
    if not claimed: return
    height = frame.origin @ slices.normal
    off = min(abs(height - slices.heights[k]) for k in claimed)
    if off > _most_off(slices):
        raise Misfit(f"its SEG has a frame that lies {off:.1f} mm off the slice it says it was drawn on; "
                     "export it again")
    if not frame.preserved or shape != series.shape[:2]: return
    beside = min(_beside(frame, shape, slices, k) for k in claimed)
    if beside > _most_beside(slices):
        raise Misfit("its SEG says that it lies on the pixels of its slices, "
                     f"and lies {beside:.1f} mm beside them; export it again")


# %%
for frame in frames: _check_claims(frame, (seg.Columns, seg.Rows), s, slices)
moved = frames[0]._replace(origin=frames[0].origin + 5*s.affine[:3, 0]*[-1, -1, 1])
test_fail(lambda: _check_claims(moved, (seg.Columns, seg.Rows), s, slices), contains="mm beside them")


# %%
#| export
def _frame_spacing(heights: np.ndarray, header) -> float:
    "Mm from frame to frame: as the header says, else the least step between frames, else their thickness."
    measures = frame_item({}, shared_groups(header), "PixelMeasuresSequence") or {}
    spacing = float(measures.get("SpacingBetweenSlices") or 0)
    thickness = float(measures.get("SliceThickness") or 0)
    if spacing: return spacing
    steps = np.diff(np.unique(heights.round(2)))
    return steps.min(initial=thickness or 1)

def _reach(heights: np.ndarray, slice_heights: np.ndarray, header) -> float:
    "How far a frame may lie from the slice that takes it, mm. Little, if all frames lie on slices."
    slice_steps = np.abs(np.diff(slice_heights))
    least = slice_steps.min(initial=np.inf)
    distances = np.abs(heights[:, None] - slice_heights)
    off = distances.min(1).max()
    if off < min(_TOLERANCE*least, 1):
        return min(.5*least, 1)
    if not np.isfinite(least): least = 0  # a single slice
    widest = max(_frame_spacing(heights, header), least)
    return .5*widest + .01


# %%
print(
    _reach(np.array([5., 10]), np.arange(0, 20, 2.5), seg),
    _reach(np.array([6.1, 11.1]), np.arange(0, 20, 2.5), seg),
)


# %%
#| export
def _check_space(header, frames: list[FramePlace], series: Series):
    "`Misfit` for frames in another frame of reference, unless each names its slice."
    apart = in_other_frame(series, header.get("FrameOfReferenceUID"))
    if not apart or all(frame.claimed for frame in frames):
        return
    raise Misfit("its SEG lies in another frame of reference than its series and does not say "
                 "on which slices it was drawn; export it again, on this series")


# %%
_check_space(seg, frames, s)


# %%
#| export
def slices_of_frames(header, frames: list[FramePlace], series: Series) -> list[list[int]]:
    """For each frame the slices that take it; none if it lies off the volume or another frame is nearer.

    Raises `Misfit` for frames that are not parallel to the slices, or that contradict themselves.
    """
    slices = _slices_of(series)
    shape = frame_shape(header)
    _check_space(header, frames, series)
    for frame in frames:
        if abs(frame.normal @ slices.normal) < _PARALLEL:
            raise Misfit("its SEG has frames in another plane than the slices of its series; "
                         "export it on the grid of the series")
        _check_claims(frame, shape, series, slices)
    taken: list[list[int]] = [[] for _ in frames]
    if not frames: return taken
    heights = np.array([frame.origin @ slices.normal for frame in frames])
    reach = _reach(heights, slices.heights, header)
    segments = np.array([frame.segment for frame in frames])
    for segment in np.unique(segments):
        of_segment = np.flatnonzero(segments == segment)
        _share_out(of_segment, heights, slices.heights, reach, taken)
    return taken


# %%
#| export
def _share_out(
    of_segment: np.ndarray, # int: the numbers of a segment's frames
    heights: np.ndarray, # of all frames
    slice_heights: np.ndarray,
    reach: float, # mm
    taken: list[list[int]], # for each frame its slices; changed
):
    "Give each slice the nearest frame of a segment, and those as near (two pieces may share a plane)."
    for k, height in enumerate(slice_heights):
        off = np.abs(heights[of_segment] - height)
        if off.min() > reach: continue
        nearest = of_segment[off <= off.min() + .01]
        for i in nearest:
            taken[i].append(k)


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
def _lookup(frame: FramePlace, shape: tuple[int, int], series: Series, slices: _Slices, k: int) -> _Lookup:
    "Where the pixels of slice k lie on a frame of `shape` (columns, rows)."
    columns, rows, _ = series.shape
    column, row = np.mgrid[:columns, :rows]
    from_mm = np.linalg.pinv(frame.axes)  # [3,2]
    start = (slices.origins[k] - frame.origin) @ from_mm
    steps = slices.axes @ from_mm
    place = start + column[..., None]*steps[0] + row[..., None]*steps[1]
    nearest = np.floor(place + .5).astype(int)
    inside = ((nearest >= 0) & (nearest < shape)).all(-1)
    rounding = np.abs(place[inside] - nearest[inside])
    on_centres = rounding.max(initial=0) < _TOLERANCE
    area = np.abs(np.linalg.det(steps))
    exact = bool(on_centres and np.allclose(area, 1, atol=1e-3))
    return _Lookup(nearest[..., 0], nearest[..., 1], inside, exact)


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

    def place(self, frame: FramePlace, pixels: np.ndarray, k: int) -> np.ndarray:
        "A frame, bool [rows, columns], on slice k: bool [columns, rows]."
        lookup = self._lookup_on(k, frame)
        self.exact &= lookup.exact
        rows = lookup.row[lookup.inside]
        columns = lookup.column[lookup.inside]
        mask = np.zeros(self.series.shape[:2], bool)
        mask[lookup.inside] = pixels[rows, columns]
        if lookup.exact:
            self.cropped |= int(mask.sum()) < int(pixels.sum())
        return mask

    def _lookup_on(self, k: int, frame: FramePlace) -> _Lookup:
        "The lookup of a frame on slice k; most frames of a file share a few."
        slices = _slices_of(self.series)
        offset = (frame.origin - slices.origins[k]).round(4)
        axes = frame.axes.ravel().round(6)
        key = tuple(offset), tuple(axes)
        if key not in self._lookups:
            if len(self._lookups) > 8: self._lookups.clear()
            self._lookups[key] = _lookup(frame, self.shape, self.series, slices, k)
        return self._lookups[key]


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
    columns, rows = frame_shape(header)
    size = rows*columns
    total = int(header.NumberOfFrames)*size
    data = np.frombuffer(header.PixelData, np.uint8)
    for first in range(0, total, size):
        first_byte, skipped = divmod(first, 8)
        end_byte = (first + size + 7)//8
        bits = np.unpackbits(data[first_byte:end_byte], bitorder="little")
        frame = bits[skipped:skipped + size]
        yield frame.reshape(rows, columns)


# %%
#| export
def _decoded(path: Path, header) -> Iterator[np.ndarray]:
    "The frames of a segmentation in order, [rows, columns]."
    if not header.get("NumberOfFrames"): return
    if "PixelData" not in header:
        raise Misfit(f"its SEG has {header.NumberOfFrames} frames and no pixels; export it again")
    compressed = is_compressed(header)
    if not compressed: check_length(header)
    if int(header.BitsAllocated) == 1 and not compressed:
        yield from _unpacked(header)
    elif problem := syntax_problem(header):
        raise Misfit(problem)
    elif getattr(header, "preamble", None):
        pixels = import_volumes_package("pydicom.pixels")
        yield from pixels.iter_pixels(path, raw=True)
    else:
        columns, rows = frame_shape(header)
        yield from header.pixel_array.reshape(-1, rows, columns)

def _drawn(pixels: np.ndarray, header, segment: int) -> dict[int, np.ndarray]:
    "Segment → what is drawn of it on a frame, bool [rows, columns]."
    kind = seg_kind(header)
    if kind == "LABELMAP":
        numbers = np.unique(pixels)
        return {int(number): pixels == number for number in numbers if number}
    if kind == "FRACTIONAL":
        most = float(header.get("MaximumFractionalValue") or 255)
        return {segment: pixels >= .5*most}
    return {segment: pixels > 0}


# %%
counts = []
for pixels in _decoded(work/"seg.dcm", seg):
    masks = _drawn(pixels, seg, 1).values()
    counts.append(sum(int(mask.sum()) for mask in masks))
print("pixels drawn on each frame:", *counts[:6], "…")


# %%
#| export
@dataclass
class Segments:
    "The segments of a DICOM SEG on the grid of its series. Two may have one name."
    structures: list[DrawnStructure]
    notes: list[str] # what was done to make them fit, in words

def _with_frames(frames: list[FramePlace], names: dict[int, str]) -> set[int]:
    "The numbers of the segments that frames are of; all that are listed for a label map."
    numbers = {frame.segment for frame in frames}
    return set(names) if 0 in numbers else numbers


# %% [markdown]
# A segment that is listed and has no frame at all, as templates leave them, says nothing: its structure is *unknown*, as it is for a region of an
# RTSTRUCT without contours. A frame without a pixel says that somebody looked.

# %%
#| export
def _drawn_segments(
    path: Path, header, frames: list[FramePlace],
) -> Iterator[tuple[FramePlace, int, np.ndarray, bool]]:
    "Each frame with the number of each segment drawn on it, its pixels bool [rows, columns], and whether it holds any, be they too faint to be drawn."
    for frame, pixels in zip(frames, _decoded(path, header)):
        for segment, drawn in _drawn(pixels, header, frame.segment).items():
            yield frame, segment, drawn, bool(pixels.any())


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
    names = segment_names(header)
    frames = read_frames(header, series)
    taken = slices_of_frames(header, frames, series)
    with_frames = _with_frames(frames, names)
    numbers = [n for n, name in names.items() if n in with_frames and (wanted is None or wanted(name))]
    masks = {number: np.zeros(series.shape, bool) for number in numbers}
    held = {number: np.zeros(series.shape[-1], bool) for number in numbers}
    placer = _Placer(series, frame_shape(header))
    lost = 0
    for frame, segment, drawn, faint in _drawn_segments(path, header, frames):
        slices = taken[frame.number]
        if segment not in names:
            raise Misfit(f"its SEG has pixels of segment {segment}, which it does not list; export it again")
        if segment not in masks: continue
        if not slices and drawn.any(): lost += 1
        for k in slices:
            masks[segment][..., k] |= placer.place(frame, drawn, k)
            held[segment][k] |= faint
    notes = _notes(placer, lost, frames) + _off_slices(frames, taken, series)
    apart = slices_apart(taken)
    notes += _doubts(in_other_frame(series, header.get("FrameOfReferenceUID")), apart)
    notes += _faint(header, masks, held)
    return Segments(_structures(masks, held, names, apart > 1), notes)


# %% [markdown]
# Where frames lie on every second slice only, as on a scan of thicker slices, nobody says what is between them.

# %%
#| export
def slices_apart(
    taken: list[list[int]], # for each frame its slices
) -> int:
    "How many slices the frames of a SEG are apart, at least; 1 if that is not known."
    numbers = sorted({k for its_slices in taken for k in its_slices})
    return int(np.diff(numbers).min()) if len(numbers) > 1 else 1

def _faint(header, masks: dict[int, np.ndarray], held: dict[int, np.ndarray]) -> list[str]:
    "What to tell of slices on which fractions, perhaps a network's probabilities, all stay below one half."
    if seg_kind(header) != "FRACTIONAL": return []
    faint = [np.count_nonzero(held[number] & ~mask.any((0, 1))) for number, mask in masks.items()]
    if not any(faint): return []
    touched = sum(count > 0 for count in faint)
    what = f"{touched} of the {len(masks)} segments of its SEG"
    return [f"on up to {max(faint)} slices the fractions of {what} stay below one half; "
            "there these are unknown. If they are a network's probabilities, export its labels"]

def _doubts(other_space: bool, apart: int) -> list[str]:
    "What to tell of a frame of reference of its own, and of frames that lie several slices apart."
    notes = []
    if other_space:
        notes.append("its SEG says that it lies in another frame of reference than the series; "
                     "it was put on the slices that it names")
    if apart > 1:
        notes.append(f"its SEG has frames on one of {apart} slices; "
                     "on those between, its segments are unknown")
    return notes


# %%
print(slices_apart([[3], [4], [4]]), slices_apart([[0], [4], [2]]), slices_apart([[5]]), _doubts(False, 2))


# %%
#| export
def _structures(
    masks: dict[int, np.ndarray], held: dict[int, np.ndarray], names: dict[int, str], gaps: bool,
) -> list[DrawnStructure]:
    "The masks with their names, on the slices that hold them. With `gaps`, slices between two of a segment may hold it too."
    structures = []
    for number, mask in masks.items():
        slices = mask.any((0, 1)) | held[number]
        if gaps and slices.any():
            first, last = np.flatnonzero(slices)[[0, -1]]
            slices[first:last + 1] = True
        structures.append(DrawnStructure(names[number], mask, slices))
    return structures


# %%
drawn = np.zeros((1, 1, 6), bool)
drawn[..., [1, 3]] = True
held = {1: np.array([0, 1, 0, 1, 0, 1], bool)} # on the last slice too faint to be drawn
print([_structures({1: drawn}, held, {1: "liver"}, gaps)[0].slices.astype(int) for gaps in (False, True)])


# %%
#| export
def off_slices_note(mm: float, series: Series, what: str) -> list[str]:
    "What to tell of something drawn so many mm off the slices that took it; nothing where that is rounding."
    heights = series.slice_origins() @ series.normal
    steps = np.abs(np.diff(heights))
    least = steps.min(initial=1.)
    if mm <= max(.1, .1*least): return []
    return [f"{what} lie up to {mm:.1f} mm off the slices that they were put on"]

def _off_slices(frames: list[FramePlace], taken: list[list[int]], series: Series) -> list[str]:
    "What to tell of frames that lie off the slices which took them."
    slices = _slices_of(series)
    most = 0.
    for frame, its_slices in zip(frames, taken):
        height = frame.origin @ slices.normal
        for k in its_slices:
            off = abs(height - slices.heights[k])
            most = max(most, off)
    return off_slices_note(most, series, "frames of its SEG")


# %%
print(off_slices_note(.01, s, "frames"), off_slices_note(1.3, s, "frames"))


# %%
#| export
def _notes(placer: _Placer, lost: int, frames: list[FramePlace]) -> list[str]:
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
class SegmentNames(NamedTuple):
    "The names of the segments of a SEG, by what is drawn of them."
    inside: list[str]
    outside: list[str] # they have frames, none of which lies on a slice
    empty: list[str] # listed, and without a frame, as templates leave them

def sort_segments(header, series: Series) -> SegmentNames:
    "The names of segments, by whether anything of them is drawn on a series."
    names, sorted_names = segment_names(header), SegmentNames([], [], [])
    frames = read_frames(header, series)
    taken = slices_of_frames(header, frames, series)
    with_frames = _with_frames(frames, names)
    inside = _with_frames([frame for frame, slices in zip(frames, taken) if slices], names)
    for number, name in names.items():
        place = sorted_names.inside if number in inside else sorted_names.outside
        if number not in with_frames: place = sorted_names.empty
        place.append(name)
    return sorted_names


# %%
print(sort_segments(seg, s))
for frame in seg.PerFrameFunctionalGroupsSequence:
    frame.PlanePositionSequence[0].ImagePositionPatient[2] += 900
    del frame.DerivationImageSequence
print(sort_segments(seg, s))
shutil.rmtree(work)
