# %% [markdown]
# # DICOM series
#
# > A heap of CT slices must prove that it is a volume; then its pixels are read.

# %%
#| default_exp io.dicom_series

# %%
#| export
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.core.errors import InputError
from ctseg.core.paths import refuse_unread
from ctseg.io.dicom_headers import DicomFile, check_one_series, is_compressed, syntax_problem
from ctseg.io.dicom_heap import Heap, frame_headers, read_file
from ctseg.io.scale import scale_notes

# %%
#| hide
import shutil
import tempfile

import matplotlib.pyplot as plt
from fastcore.test import test_close, test_eq, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.io.dicom_heap import read_heap
from ctseg.io.toy_dicom import clinic_planes, write_series

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG

# %% [markdown]
# Most tools sort slices by file name and hope. Here the place of every slice is read ([headers](70_dicom_headers.ipynb)), and the heap
# must prove that it is complete, parallel and sorted. A heap that cannot is refused with the reason. This is the toy clinic; its
# fourth series was made with a tilted gantry.

# %%
work = Path(tempfile.mkdtemp())
clinic = work/"clinic"
planes = clinic_planes()
for name, series_planes in planes.items(): write_series(clinic/name, series_planes)
print(*sorted(d.name for d in clinic.iterdir()), sep=" · ")


# %% [markdown]
# An enhanced CT, which holds all slices in one file, is taken apart here.

# %%
#| export
def single_slices(file: DicomFile) -> list[DicomFile]:
    "A CT image as its slices: one, or the frames of an enhanced image."
    if not file.header.get("PerFrameFunctionalGroupsSequence"): return [file]
    headers = frame_headers(file.header)
    return [file._replace(header=header, frame=frame) for frame, header in enumerate(headers)]

def slices_in(heap: Heap, entries=None) -> list[DicomFile]:
    "The CT slices of a heap, or of some of its entries, with their headers."
    if entries is None: entries = heap.images
    slices = []
    for entry in entries:
        slices += single_slices(heap.file(entry))
    return slices


# %%
heap = read_heap(clinic/"oblique")
images = slices_in(heap)
print(len(images), "slices, the first in", images[0].shown(clinic))


# %% [markdown]
# ## Proving that it is a volume
#
# The normal $N = X \times Y$ says how to sort: by $N \cdot \text{position}$, never by file name or number. Then three things are
# looked at.
#
# - Two slices in one place are **duplicates**, and refused.
# - A gap can be a **missing** slice, which is refused, or an honest change of spacing.
# - A stack that drifts sideways was made with a **tilted gantry**. Its slices are good in their own plane. No affine fits their places, so
#   each keeps its own, and cutting across them is refused.

# %%
#| export
@dataclass
class Stack:
    "Slices in the order of their normal; all vectors as DICOM counts, left, back, up."
    images: list[DicomFile]
    positions: np.ndarray # float [K,3], mm
    columns: np.ndarray # float [3]: the direction in which columns grow
    rows: np.ndarray # float [3]: the direction in which rows grow

    @functools.cached_property
    def normal(self) -> np.ndarray:
        "The direction of the stack, float [3]."
        return np.cross(self.columns, self.rows)

    @property
    def steps(self) -> np.ndarray:
        "From slice to slice along the normal, float [K-1], mm."
        return np.diff(self.positions @ self.normal)


# %%
#| export
def _directions(header, folder: str) -> tuple[np.ndarray, np.ndarray]:
    "The directions of columns and rows; `InputError` unless they are unit vectors at a right angle."
    columns, rows = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    cosine = abs(columns @ rows)
    lengths = np.linalg.norm([columns, rows], axis=1)
    if cosine > 1e-3 or np.abs(lengths - 1).max() > 1e-3:
        raise InputError(f"{folder}: ImageOrientationPatient is not two unit vectors at a right angle; "
                         "export the series again")
    return columns, rows


# %%
print(*_directions(images[0].header, "oblique"))


# %%
#| export
def make_stack(images: list[DicomFile], src: Path) -> Stack:
    "CT headers sorted along their normal."
    first = images[0]
    folder = first.shown_folder(src)
    columns, rows = _directions(first.header, folder)
    positions = np.array([file.header.ImagePositionPatient for file in images], float)
    heights = positions @ np.cross(columns, rows)
    order = np.argsort(heights, kind="stable")
    in_order = [images[i] for i in order]
    return Stack(in_order, positions[order], columns, rows)


# %%
stack = make_stack(images, clinic)
print("by name:  ", *[file.path.name for file in images[:4]], "…")
print("by normal:", *[file.path.name for file in stack.images[:4]], "…", "steps in mm:", stack.steps[:3])


# %%
#| export
def check_duplicates(stack: Stack, src: Path):
    "`InputError` for two slices in one place."
    steps = stack.steps
    if not len(steps) or steps.min() >= .01: return
    k = int(steps.argmin())
    one, two = stack.images[k:k + 2]
    if one.path == two.path:
        frames = f"its frames {one.frame + 1} and {two.frame + 1}"
        raise InputError(f"{two.shown(src)}: {frames} lie in one place, "
                         "and nothing says which phase they are of; "
                         "export each phase as a series of its own")
    raise InputError(f"{two.shown(src)}: duplicate slice, in the same place as {one.shown(src)}; "
                     "remove one of them")


# %%
shutil.copytree(clinic/"axial", work/"twice"/"axial")
shutil.copy(work/"twice"/"axial"/"IM0003", work/"twice"/"axial"/"copy")
twice = make_stack(slices_in(read_heap(work/"twice"/"axial")), work/"twice")
test_fail(lambda: check_duplicates(twice, work/"twice"), contains="duplicate slice")

# %%
#| export
_LEAST_TILT = .2  # degrees
_ROUNDING = .15  # mm by which positions may differ from where they should be

def _drift(stack: Stack) -> float:
    "How far the stack drifts sideways in all, mm."
    from_first = stack.positions - stack.positions[0]
    sideways = np.cross(from_first, stack.normal)
    return np.linalg.norm(sideways, axis=1).max()

def drift_angle(stack: Stack) -> float:
    "How many degrees the stack leans away from its normal."
    if not len(stack.steps): return 0.
    height = stack.steps.sum()
    angle = np.arctan2(_drift(stack), height)
    return float(np.degrees(angle))


# %%
tilted = make_stack(slices_in(read_heap(clinic/"gantry tilt")), clinic)
print(f"lean of the oblique series {drift_angle(stack):.2f}°, of the sheared one {drift_angle(tilted):.2f}°")


# %%
#| export
def is_tilted(stack: Stack) -> bool:
    """Was the stack made with a tilted gantry?

    What counts is where the slices lie, not what the header notes.

    Positions are often rounded, so a drift of 0.15 mm in all is none.
    """
    if len(stack.steps) < 2: return False
    return drift_angle(stack) > _LEAST_TILT and _drift(stack) > _ROUNDING


# %%
print("tilted:", is_tilted(stack), is_tilted(tilted))


# %% [markdown]
# A gap is taken for a missing slice when the slice numbers jump there, or when one gap among even ones is a whole multiple of the rest.
# `gaps=True` overrules this for those who know better.

# %%
#| export
def _tolerance(steps: np.ndarray) -> float:
    "By how many mm even steps may differ."
    return max(.02*np.median(steps), .01)

def evenly_spaced(steps: np.ndarray) -> bool:
    "Are the steps from slice to slice, float [K-1] in mm, all alike?"
    return not len(steps) or np.ptp(steps) <= _tolerance(steps)


# %%
print(evenly_spaced(np.array([5, 5.05, 5])), evenly_spaced(np.array([5, 10, 5])))


# %%
#| export
def _jumps_by_number(stack: Stack) -> np.ndarray:
    "Steps at which the slice numbers jump, bool [K-1]; none if the numbers do not tell slices apart."
    steps = stack.steps
    numbers = [int(file.header.get("InstanceNumber") or 0) for file in stack.images]
    if len(set(numbers)) != len(numbers):
        return np.zeros(len(steps), bool)
    jumps = np.abs(np.diff(numbers))
    wide = steps > 1.2*steps.min()
    return (jumps > np.median(jumps)) & wide


# %%
shutil.copytree(clinic/"axial", work/"lost"/"axial")
(work/"lost"/"axial"/"IM0003").unlink()
lost = make_stack(slices_in(read_heap(work/"lost"/"axial")), work/"lost")
print(_jumps_by_number(lost).nonzero()[0], "of steps", lost.steps)


# %%
#| export
def _multiples(steps: np.ndarray) -> np.ndarray:
    "Steps that are whole multiples of the usual one, bool [K-1]; none if other steps are odd, or many."
    usual = float(np.median(steps))
    odd = np.abs(steps - usual) > _tolerance(steps)
    few = odd.sum() <= max(1, len(steps)//10)
    times = steps/usual
    whole = np.abs(times - times.round()) < .05
    multiple = odd & whole & (times > 1.5)
    if few and (multiple == odd).all(): return multiple
    return np.zeros(len(steps), bool)


# %%
print(_multiples(np.array([5., 5, 10, 5])), _multiples(np.array([5., 5, 7, 7])))


# %%
#| export
def check_gaps(stack: Stack, src: Path):
    "`InputError` if a slice seems to be missing."
    steps = stack.steps
    if evenly_spaced(steps): return
    by_number = _jumps_by_number(stack)
    missing = by_number if by_number.any() else _multiples(steps)
    if not missing.any():
        return
    k = int(missing.argmax())
    here, following = stack.images[k:k + 2]
    usual = float(np.median(steps))
    raise InputError(f"{here.shown(src)}: missing slice, the next one ({Path(following.shown(src)).name}) "
                     f"is {steps[k]:.1f} mm away where {usual:.1f} mm are usual; "
                     "export the series again, or choose gaps=True (--gaps) to take the spacing as it is")


# %%
test_fail(lambda: check_gaps(lost, work/"lost"), contains="missing slice")
uneven = make_stack(slices_in(read_heap(clinic/"oblique, unevenly spaced")), clinic)
check_gaps(uneven, clinic)  # an honest change of spacing
print("steps in mm:", uneven.steps[[0, 8, 9, 13, 14, 22]].round(3))

# %% [markdown]
# ## Pixels
#
# The pixels come last. A compressed file needs a decoder that may not be installed, and a file may be cut off; both are told. Each
# slice is rescaled to Hounsfield units with its own slope and intercept.

# %%
#| export
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2") # neither compressed nor deflated

def check_room(file: DicomFile, src: Path):
    "`InputError` for a file that is shorter than the pixels its header tells of; they may need too much memory."
    header = file.header
    if header.file_meta.TransferSyntaxUID not in _PLAIN: return
    bits = int(header.get("BitsAllocated") or 8)
    pixels = int(header.Rows)*int(header.Columns)*bits//8
    size = file.path.stat().st_size
    if pixels > size:
        needed = f"{header.Rows}x{header.Columns} pixels need {pixels} bytes"
        raise InputError(f"{file.shown(src)}: {needed}, the file has {size}; "
                         "it is damaged or cut off, copy it again")


# %%
#| export
def _check_excess(dataset, frame: np.ndarray, shown: str):
    "`InputError` for a file with a row or more of pixels beyond those that its header tells of; less is padding."
    if dataset.file_meta.TransferSyntaxUID not in _PLAIN: return
    size, told = len(dataset.PixelData), frame.nbytes*int(dataset.get("NumberOfFrames") or 1)
    if size - told >= frame[0].nbytes:
        raise InputError(f"{shown}: {size} bytes of pixels, but its header tells of {told}; "
                         "one of them is damaged, export the series again")


# %%
#| export
def _raw_pixels(file: DicomFile, shown: str) -> np.ndarray:
    "The stored values of a file, [frames, rows, columns]; `InputError` if they cannot be decoded."
    header = file.header
    syntax = header.file_meta.TransferSyntaxUID
    rows, columns = int(header.Rows), int(header.Columns)
    try:
        dataset = read_file(file.path)
        frames = dataset.pixel_array.reshape(-1, rows, columns)
    except Exception as e:  # each decoder has errors of its own
        refuse_unread(shown, e)
        problem = syntax_problem(header)
        if problem: raise InputError(f"{shown}: {problem}") from None
        if is_compressed(header) and "RLE" not in syntax.name:
            why = "no decoder for that is installed"
            if "missing dependencies" not in str(e):  # Pillow's decoder is there, and knows 8 bits of 12
                why = "damaged, or of a kind that the installed decoders do not know"
            raise InputError(f"{shown}: its pixels are compressed ({syntax.name}), {why}; "
                             "run: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, "
                             "or export it uncompressed") from None
        raise InputError(f"{shown}: its pixels cannot be read ({type(e).__name__}); "
                         "the file is damaged or cut off, copy it again") from None
    _check_excess(dataset, frames[0], shown)
    return frames


# %%
#| export
def _in_hounsfield(raw: np.ndarray, header) -> np.ndarray:
    "Stored values [rows, columns] of a slice in Hounsfield units, float32 [columns, rows]."
    slope = np.float32(header.RescaleSlope)
    intercept = np.float32(header.RescaleIntercept)
    hu = raw*slope + intercept
    return hu.astype(np.float32).T


# %%
file = stack.images[12]
hu = _in_hounsfield(_raw_pixels(file, "IM")[file.frame], file.header)
print(hu.shape, hu.dtype, "HU", hu.min(), "to", hu.max())


# %% [markdown]
# The headers of a series fill more memory than its pixels may, so only the first is kept and the others are read again when they are needed.

# %%
#| export
class SliceHeaders(Sequence):
    "The headers of a series' slices, in order. Only the first one is kept in memory."
    def __init__(self, files: list[DicomFile]):
        self.first = files[0].header
        self.uids = [str(file.header.SOPInstanceUID) for file in files]
        self.frames = [file.frame for file in files]  # of an enhanced image; else 0
        self._places = [(file.path, file.frame) for file in files]

    def __len__(self) -> int: return len(self._places)

    def __getitem__(self, k: int):
        "The header of slice k, without pixels."
        if k in (0, -len(self)): return self.first
        path, frame = self._places[k]
        header = read_file(path, pixels=False)
        many = header.get("PerFrameFunctionalGroupsSequence")
        return frame_headers(header)[frame] if many else header

    def files(self, patterns: frozenset[str]) -> Iterator[DicomFile]:
        "The slices with their headers, one at a time."
        for k, (path, frame) in enumerate(self._places):
            yield DicomFile(path, self[k], patterns, frame)


# %%
headers = SliceHeaders(stack.images)
print(
    len(headers),
    "headers, of slice 3 with number",
    headers[3].InstanceNumber,
    "and of the last with number",
    headers[-1].InstanceNumber,
)
test_eq(headers.uids[3], headers[3].SOPInstanceUID)


# %% [markdown]
# A series that has proved to be a volume knows its files in order and where they lie. DICOM counts towards the patient's left and back,
# NIfTI and our affines to the right and front, so two signs change. Contours come in DICOM's millimetres; `locate` says in which slice
# and at which pixel a point lies.

# %%
#| export
class _Geometry:
    "What a series' headers and affine say of it."
    paths: list[Path]
    headers: "SliceHeaders"
    affine: np.ndarray
    positions: np.ndarray|None

    @property
    def number(self) -> str:
        "The number by which label objects refer to it."
        return str(self.headers[0].SeriesInstanceUID)

    @property
    def shape(self) -> tuple[int, int, int]:
        "Columns, rows, slices."
        header = self.headers[0]
        return int(header.Columns), int(header.Rows), len(self.paths)

    @functools.cached_property
    def normal(self) -> np.ndarray:
        "The direction of the stack, a unit vector, right, front, up."
        column, row, step = self.affine[:3, :3].T
        normal = np.cross(column, row)
        along_stack = np.sign(normal @ step)
        return normal*along_stack/np.linalg.norm(normal)

    def slice_origins(self) -> np.ndarray:
        "Where the first voxel of each slice lies, float [K,3], mm right, front, up."
        if self.positions is not None: return self.positions
        first, step = self.affine[:3, 3], self.affine[:3, 2]
        numbers = np.arange(len(self.paths))
        return first + numbers[:, None]*step

    def locate(self, points: np.ndarray) -> np.ndarray:
        """Voxel coordinates of points [n,3] in DICOM's mm, float [n,4]: column, row, slice, mm off it.

        The slice is the number of the nearest one, -1 if none is near.
        """
        return _locate(self, points)


# %%
#| export
@dataclass(frozen=True)
class Series(_Geometry):
    "A CT series that is a volume."
    paths: list[Path] # in the order of the slices
    headers: SliceHeaders # pydicom headers without pixels, in the same order
    affine: np.ndarray # float64 [4,4]: (column, row, slice, 1) → mm right, front, up
    positions: np.ndarray|None # float64 [K,3], mm right, front, up, if no affine says where the slices lie
    tilted: bool = False # made with a tilted gantry
    patterns: frozenset[str] = frozenset() # what its files say of the patient, to be blotted out

    @property
    def uids(self) -> list[str]:
        "The numbers of the slices, in order. The frames of an enhanced image share theirs."
        return self.headers.uids

    @property
    def digest(self) -> str:
        "A text that tells the series from others without naming it."
        together = "".join(sorted(self.uids))
        return hashlib.sha256(together.encode()).hexdigest()[:24]

    def read_voxels(self, src: Path) -> np.ndarray:
        "Voxels in Hounsfield units, float32 [columns, rows, slices]; messages name files below `src`."
        check_room(next(self.headers.files(self.patterns)), src)
        voxels = np.empty(self.shape, np.float32)
        frames, path = None, None
        for k, file in enumerate(self.headers.files(self.patterns)):
            if file.path != path:  # the frames of an enhanced image are read once
                path = file.path
                frames = _raw_pixels(file, file.shown(src))
            voxels[..., k] = _in_hounsfield(frames[file.frame], file.header)
        return voxels


# %%
#| export
def in_other_frame(series: Series, uid) -> bool:
    "Does a frame of reference, where both are told, differ from that of the series?"
    own, other = (str(one or "") for one in (series.headers[0].get("FrameOfReferenceUID"), uid))
    return bool(own and other and own != other)


# %%
#| export
def _locate(series: Series, points: np.ndarray) -> np.ndarray:
    "See `Series.locate`."
    origins = series.slice_origins()
    ras = points*[-1, -1, 1]
    heights = origins @ series.normal
    off_each = ras @ series.normal - heights[:, None]  # [slices, points]
    nearest = np.abs(off_each).argmin(0)
    off = off_each[nearest, np.arange(len(ras))]
    from_origin = ras - origins[nearest]
    in_plane, *_ = np.linalg.lstsq(series.affine[:3, :2], from_origin.T, rcond=None)
    widest = np.diff(heights).max() if len(heights) > 1 else 1
    near = np.abs(off) < .5*widest + .01
    return np.c_[in_plane.T, np.where(near, nearest, -1), off]


# %%
axial = Series([Path(f"{k}") for k in range(3)], [], np.diag([-2., -2, 5, 1]), None)
print(axial.locate(np.array([[6., 4, 5], [0, 0, 11], [0, 0, 40]])))

# %%
#| export
_LPS_TO_RAS = np.diag([-1., -1, 1, 1])

def _affine(stack: Stack) -> np.ndarray:
    "The affine of a stack, float [4,4]: (column, row, slice, 1) → mm right, front, up."
    header = stack.images[0].header
    first, last = stack.positions[0], stack.positions[-1]
    between_rows, between_columns = map(float, header.PixelSpacing)
    if len(stack.steps):
        step = (last - first)/len(stack.steps)
    else:
        thickness = float(header.get("SliceThickness") or 1)
        step = stack.normal*thickness
    lps = np.eye(4)
    lps[:3, 0] = stack.columns*between_columns
    lps[:3, 1] = stack.rows*between_rows
    lps[:3, 2] = step
    lps[:3, 3] = first
    return _LPS_TO_RAS @ lps


# %%
#| export
def make_series(
    images: list[DicomFile], # the CT slices of one series
    src: Path, # the source of the import, for messages
    gaps: bool = False, # take a gap that looks like a missing slice as it is
) -> Series:
    "Sort and check the slices of one series. Raises `InputError` unless they are one complete volume."
    check_one_series(images, src)
    stack = make_stack(images, src)
    check_duplicates(stack, src)
    if not gaps: check_gaps(stack, src)
    tilted = is_tilted(stack)
    straight = evenly_spaced(stack.steps) and not tilted
    positions = None if straight else stack.positions @ _LPS_TO_RAS[:3, :3]
    files = stack.images
    paths = [file.path for file in files]
    return Series(paths, SliceHeaders(files), _affine(stack), positions, tilted, files[0].patterns)


# %%
#| export
_UNITS = {"US": "not told (RescaleType US)", "HU_MOD": "HU_MOD, a modified Hounsfield unit"}

def series_notes(
    series: Series,
    hu: np.ndarray, # its voxels
    shown: str, # as a message may show it
) -> tuple[str, ...]:
    "What whoever uses a series should know: a tilted gantry, uneven steps, no Hounsfield units."
    notes: tuple[str, ...] = ()
    if series.tilted:
        notes += (f"{shown}: made with a tilted gantry; its slices are in their own plane",)
    steps = np.diff(series.slice_origins() @ series.normal)
    if not evenly_spaced(steps):
        span = f"{steps.min():.3g} to {steps.max():.3g} mm apart"
        notes += (f"{shown}: its slices are unevenly spaced, {span}",)
    unit = str(series.headers[0].get("RescaleType") or "").strip().upper()
    if unit not in ("", "HU"):
        words = _UNITS.get(unit, unit)
        notes += (f"{shown}: its unit is {words}; its values were taken as Hounsfield units",)
    return notes + scale_notes(hu, shown)


# %%
s = make_series(images, clinic)
print(s.shape, "positions:", s.positions)
test_eq(s.digest, make_series(images, clinic).digest)
print("the first pixel of slice 7:", s.locate(planes["oblique"].positions[7:8]).round(6))
print(series_notes(s, s.read_voxels(clinic), "oblique"))

# %% [markdown]
# What would have happened without the positions? Here are the same voxels from the side, once stacked as a block, as many tools do,
# and once drawn where the slices say they are. The block squeezes the crown and has lost the tilt.

# %%
uneven_heap = read_heap(clinic/"oblique, unevenly spaced")
s = make_series(slices_in(uneven_heap), clinic)
hu = s.read_voxels(clinic)
test_close(np.linalg.norm(np.diff(s.positions, axis=0), axis=1), uneven.steps, eps=1e-4)
leaning = make_series(slices_in(read_heap(clinic/"gantry tilt")), clinic)
print("tilted:", s.tilted, leaning.tilted, leaning.positions.shape)

# %%
#| fig-alt: "A head from the side: squeezed as a block of numbers, and right where the slices say they are"
fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
column = hu.shape[0]//2 - 5
axes[0].imshow(hu[column].T, cmap="gray", vmin=-60, vmax=140, origin="lower", aspect="auto")
axes[0].set(title="as a block of numbers", xlabel="row", ylabel="slice")
rows = np.arange(hu.shape[1])[:, None]
where = s.positions[:, None] + rows*s.affine[:3, 1] + column*s.affine[:3, 0]  # [slices, rows, 3]
axes[1].pcolormesh(where[..., 1], where[..., 2], hu[column].T, cmap="gray", vmin=-60, vmax=140,
                   shading="nearest", rasterized=True)
axes[1].invert_xaxis()
axes[1].set(
    title="where the slices say they are",
    xlabel="mm to the front",
    ylabel="mm up",
    aspect="equal",
    facecolor="k",
)
plt.show()

# %%
#| hide
shutil.rmtree(work)
