# %% [markdown]
# # The frames of a DICOM SEG
#
# > Where each picture of a segmentation says that it lies, and on which slice it says it was drawn.

# %%
#| default_exp io.seg_frames

# %%
#| export
from typing import NamedTuple

import numpy as np

from ctseg.io.dicom_headers import Misfit
from ctseg.io.dicom_heap import frame_item
from ctseg.io.dicom_series import Series
from ctseg.io.seg_parts import check_seg_counts, segment_names
from ctseg.io.volumes import import_volumes_package

# %%
#| hide
import shutil
import tempfile
from pathlib import Path

from fastcore.test import test_eq, test_fail

from ctseg.io.dicom import read_series
from ctseg.io.dicom_heap import read_file
from ctseg.io.dicom_seg import make_segmentation
from ctseg.io.dicom_series import in_other_frame
from ctseg.io.toy_dicom import HEAD_CLASSES, clinic_planes, write_series

# %% [markdown]
# A DICOM SEG is a pile of small pictures, its *frames*. Each belongs to a segment, says where it lies, and may name the slice that it was drawn on.
# What the segments are called, and whether the parts of the file fit together, is settled [before](76_seg_parts.ipynb).

# %%
work = Path(tempfile.mkdtemp())
truth = write_series(work/"ct", clinic_planes()["oblique, unevenly spaced"])
s, _ = read_series(work/"ct")
make_segmentation(s, truth, HEAD_CLASSES, "v000").save_as(work/"seg.dcm")
seg = read_file(work/"seg.dcm")
print(segment_names(seg))


# %%
#| export
class FramePlace(NamedTuple):
    "Where a frame lies; vectors as DICOM counts, left, back, up."
    number: int # in the file, from 0
    segment: int # 0: a label map, whose pixels are numbers of segments
    origin: np.ndarray # float [3], mm: the centre of the first pixel
    axes: np.ndarray # float [2,3], mm: from column to column, from row to row
    claimed: tuple[int, ...] # the slices that it may mean by the one it names; none if it names none
    preserved: bool # "spatial locations preserved": claims to lie on the pixels of that slice

    @property
    def normal(self) -> np.ndarray:
        "The direction of the frame's stack, float [3]."
        normal = np.cross(*self.axes)
        return normal/np.linalg.norm(normal)


# %%
#| export
class Sources:
    "The slices of a series by their numbers, and by their places in a file of many frames."
    def __init__(self, series: Series):
        self._slices: dict[tuple[str, int], list[int]] = {}
        for k, (uid, frame) in enumerate(zip(series.uids, series.headers.frames)):
            for place in (0, frame + 1):  # 0: the file as a whole
                self._slices.setdefault((uid, place), []).append(k)

    def named(self, image) -> tuple[int, ...]:
        "The slices that a reference may mean; all of a file with many if it does not say which frame."
        uid = str(image.get("ReferencedSOPInstanceUID") or "")
        place = image.get("ReferencedFrameNumber") or 0
        if not isinstance(place, (int, str)):  # several
            return ()
        return tuple(self._slices.get((uid, int(place)), ()))


# %%
def reference(uid, **tags):
    return dict(ReferencedSOPInstanceUID=uid, **tags)

of_slices = Sources(s)
print(of_slices.named(reference(s.uids[3])), of_slices.named(reference("1.2.3")))


# %%
#| export
def _source_of(frame, shared, sources: Sources) -> tuple[tuple[int, ...], bool]:
    "The slices that the only image a frame refers to may be, and whether it claims to lie on its pixels."
    derivation = frame_item(frame, shared, "DerivationImageSequence")
    if derivation is None: return (), False
    images = derivation.get("SourceImageSequence") or []
    if len(images) != 1: return (), False
    preserved = images[0].get("SpatialLocationsPreserved") == "YES"
    return sources.named(images[0]), preserved

def shared_groups(header):
    "What all frames of a segmentation have in common."
    groups = header.get("SharedFunctionalGroupsSequence")
    if groups: return groups[0]
    pydicom = import_volumes_package("pydicom")
    return pydicom.Dataset()


# %%
#| export
def _segment_of(frame, shared, names: dict[int, str], kind: str) -> int:
    "The number of a frame's segment; 0 for a label map."
    if kind == "LABELMAP": return 0
    item = frame_item(frame, shared, "SegmentIdentificationSequence")
    if item is not None and item.get("ReferencedSegmentNumber"):
        return int(item.ReferencedSegmentNumber)
    if len(names) == 1:
        return next(iter(names))
    raise Misfit("its SEG does not say which segment a frame belongs to; export it again")


# %%
#| export
_SEQUENCE_OF = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}

def _place_value(frame, shared, below, tag: str) -> np.ndarray:
    "One element of a frame's place; what it does not say is taken from the slice below it."
    value = None
    item = frame_item(frame, shared, _SEQUENCE_OF[tag])
    if item is not None:
        value = item.get(tag)
    if value is None and below is not None:
        value = below.get(tag)
    if value is None:
        raise Misfit(f"its SEG does not say where its frames lie ({tag}); export it again")
    return np.array(value, float)

def _place_of_slice(series: Series, k: int) -> dict[str, np.ndarray]:
    "What the header of slice k says of its place."
    turn = np.array([-1, -1, 1])
    axes = series.affine[:3, :2].T*turn
    mm = np.linalg.norm(axes, axis=1)
    return {
        "ImagePositionPatient": series.slice_origins()[k]*turn,
        "ImageOrientationPatient": (axes/mm[:, None]).ravel(),
        "PixelSpacing": mm[::-1],
    }


# %%
print(_place_of_slice(s, 3)["PixelSpacing"], s.headers[3].PixelSpacing)


# %%
#| export
def _grid_of(frame, shared, below) -> tuple[np.ndarray, np.ndarray]:
    "Origin float [3] and axes float [2,3] of a frame; `below`: the place of the slice below it, or `None`."
    origin = _place_value(frame, shared, below, "ImagePositionPatient")
    directions = _place_value(frame, shared, below, "ImageOrientationPatient")
    spacing = _place_value(frame, shared, below, "PixelSpacing")
    columns, rows = directions.reshape(2, 3)
    between_rows, between_columns = spacing
    axes = np.stack([columns*between_columns, rows*between_rows])
    return origin, axes


# %%
#| export
def seg_kind(header) -> str:
    "BINARY, FRACTIONAL or LABELMAP."
    return str(header.get("SegmentationType") or "BINARY")

def frame_shape(header) -> tuple[int, int]:
    "Columns and rows of a frame."
    return int(header.Columns), int(header.Rows)


# %%
print(seg_kind(seg), frame_shape(seg), in_other_frame(s, seg.FrameOfReferenceUID))


# %%
#| export
def read_frames(header, series: Series) -> list[FramePlace]:
    "Where the frames of a DICOM SEG lie. Raises `Misfit` if one does not say so."
    names = segment_names(header)
    kind = seg_kind(header)
    check_seg_counts(header)
    shared, sources = shared_groups(header), Sources(series)
    same_size = frame_shape(header) == series.shape[:2]
    frames = []
    for number, frame in enumerate(header.get("PerFrameFunctionalGroupsSequence") or []):
        claimed, preserved = _source_of(frame, shared, sources)
        placed = frame_item(frame, shared, "PlanePositionSequence") is not None
        below = None
        if len(claimed) == 1 and same_size and not placed:
            below = _place_of_slice(series, claimed[0])
        origin, axes = _grid_of(frame, shared, below)
        segment = _segment_of(frame, shared, names, kind)
        frames.append(FramePlace(number, segment, origin, axes, claimed, preserved))
    return frames


# %%
frames = read_frames(seg, s)
first = frames[0]
print(first.segment, first.claimed, first.origin.round(2), first.axes.round(2).tolist(), first.preserved)
for frame in seg.PerFrameFunctionalGroupsSequence: del frame.PlanePositionSequence
test_eq(read_frames(seg, s)[0].origin.round(2), first.origin.round(2))  # from the slice that it names
for frame in seg.PerFrameFunctionalGroupsSequence: del frame.DerivationImageSequence
test_fail(lambda: read_frames(seg, s), contains="where its frames lie")
shutil.rmtree(work)
