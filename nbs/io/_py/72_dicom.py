# %% [markdown]
# # DICOM series
#
# > A heap of CT slices must prove that it is a volume; then its pixels are read.

# %%
#| default_exp io.dicom

# %%
#| export
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.core.files import InputError
from ctseg.data.images import natural_key
from ctseg.io.dicom_headers import (
    DicomFile, check_one_series, label_errors, path_without_patient, read_headers,
)
from ctseg.io.volumes import import_volumes_package

# %%
#| hide
import shutil
import tempfile

import matplotlib.pyplot as plt
from fastcore.test import test_close, test_eq, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.io.toy_dicom import clinic_planes, head_planes, write_contours, write_series

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
for name, p in planes.items(): write_series(clinic/name, p)
print(*sorted(d.name for d in clinic.iterdir()), sep=" · ")


# %% [markdown]
# ## Proving that it is a volume
#
# The normal $N = X \times Y$ says how to sort: by $N \cdot \text{position}$, never by file name or number. Then three things are
# looked at.
#
# - Two slices in one place are **duplicates**.
# - A stack that drifts sideways was made with a **tilted gantry**. It cannot be put right without resampling, so it is refused. A tilt
#   noted in the header of a straight stack is a contradiction, and refused too.
# - A gap can be a **missing** slice or an honest change of spacing.

# %%
#| export
@dataclass
class _Stack:
    "Slices in the order of their normal; all vectors as DICOM counts, left, back, up."
    images: list[DicomFile]
    positions: np.ndarray # float [K,3], mm
    columns: np.ndarray # float [3]: the direction in which columns grow
    rows: np.ndarray # float [3]: the direction in which rows grow

    @property
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
    lengths = np.linalg.norm([columns, rows], axis=1)
    if abs(columns @ rows) > 1e-3 or np.abs(lengths - 1).max() > 1e-3:
        raise InputError(f"{folder}: ImageOrientationPatient is not two unit vectors at a right angle; "
                         "export the series again")
    return columns, rows


# %%
images, _ = read_headers(clinic/"oblique", clinic)
print(*_directions(images[0].header, "oblique"))


# %%
#| export
def _stack(images: list[DicomFile], src: Path) -> _Stack:
    "CT headers sorted along their normal."
    first = images[0]
    folder = path_without_patient(first.path.parent, src, first.header)
    columns, rows = _directions(first.header, folder)
    positions = np.array([file.header.ImagePositionPatient for file in images], float)
    order = np.argsort(positions @ np.cross(columns, rows), kind="stable")
    return _Stack([images[i] for i in order], positions[order], columns, rows)


# %%
stack = _stack(images, clinic)
print("by name:  ", *[file.path.name for file in images[:4]], "…")
print("by normal:", *[file.path.name for file in stack.images[:4]], "…", "steps in mm:", stack.steps[:3])


# %%
#| export
def _check_duplicates(stack: _Stack, src: Path):
    "`InputError` for two slices in one place."
    if not len(stack.steps) or stack.steps.min() >= .01: return
    k = int(stack.steps.argmin())
    header = stack.images[0].header
    one, two = (path_without_patient(file.path, src, header) for file in stack.images[k:k + 2])
    raise InputError(f"{two}: duplicate slice, in the same place as {one}; remove one of them")


# %%
shutil.copytree(clinic/"axial", work/"twice"/"axial")
shutil.copy(work/"twice"/"axial"/"IM0003", work/"twice"/"axial"/"copy")
twice = _stack(read_headers(work/"twice"/"axial", work/"twice")[0], work/"twice")
test_fail(lambda: _check_duplicates(twice, work/"twice"), contains="duplicate slice")

# %%
#| export
_LEAST_TILT = .2  # degrees

def _drift_angle(stack: _Stack) -> float:
    "How many degrees the stack leans away from its normal."
    if not len(stack.steps): return 0.
    sideways = np.cross(stack.positions - stack.positions[0], stack.normal)
    drift = np.linalg.norm(sideways, axis=1).max()
    return float(np.degrees(np.arctan2(drift, stack.steps.sum())))


# %%
tilted = _stack(read_headers(clinic/"gantry tilt", clinic)[0], clinic)
print(
    f"lean of the oblique series {_drift_angle(stack):.2f}°, of the sheared one {_drift_angle(tilted):.2f}°"
)


# %%
#| export
def _check_tilt(stack: _Stack, src: Path):
    "`InputError` for slices that are sheared against each other, or whose header says so."
    header = stack.images[0].header
    measured, noted = _drift_angle(stack), abs(float(header.get("GantryDetectorTilt") or 0))
    if measured <= _LEAST_TILT and noted <= _LEAST_TILT: return
    folder = path_without_patient(stack.images[0].path.parent, src, header)
    tilt, hint = measured, ""
    if measured <= _LEAST_TILT:
        tilt, hint = noted, " (if that has been done, set GantryDetectorTilt to 0)"
    raise InputError(f"{folder}: gantry tilt of {tilt:.1f}°, so the slices are sheared against each other; "
                     f"resample the series to a straight grid first{hint}")


# %%
test_fail(lambda: _check_tilt(tilted, clinic), contains="gantry tilt of 20.0°")


# %% [markdown]
# A gap is taken for a missing slice when the slice numbers jump there, or when one gap among even ones is a whole multiple of the rest.
# `gaps=True` overrules this for those who know better.

# %%
#| export
def _tolerance(steps: np.ndarray) -> float:
    "By how many mm even steps may differ."
    return max(.02*np.median(steps), .01)

def evenly_spaced(steps: np.ndarray) -> bool:
    "Are the steps from slice to slice, in mm, all alike?"
    return not len(steps) or np.ptp(steps) <= _tolerance(steps)


# %%
print(evenly_spaced(np.array([5, 5.05, 5])), evenly_spaced(np.array([5, 10, 5])))


# %%
#| export
def _jumps_by_number(stack: _Stack) -> np.ndarray:
    "Steps at which the slice numbers jump, bool [K-1]; none if the numbers do not tell slices apart."
    steps = stack.steps
    numbers = np.array([int(file.header.get("InstanceNumber") or 0) for file in stack.images])
    if len(set(numbers.tolist())) != len(numbers):
        return np.zeros(len(steps), bool)
    jumps = np.abs(np.diff(numbers))
    return (jumps > np.median(jumps)) & (steps > 1.2*steps.min())


# %%
shutil.copytree(clinic/"axial", work/"lost"/"axial")
(work/"lost"/"axial"/"IM0003").unlink()
lost = _stack(read_headers(work/"lost"/"axial", work/"lost")[0], work/"lost")
print(_jumps_by_number(lost).nonzero()[0], "of steps", lost.steps)


# %%
#| export
def _multiples(steps: np.ndarray) -> np.ndarray:
    "Steps that are whole multiples of the usual one, bool [K-1]; none if other steps are odd, or many."
    usual = float(np.median(steps))
    odd = np.abs(steps - usual) > _tolerance(steps)
    times = steps/usual
    multiple = odd & (times > 1.5) & (np.abs(times - times.round()) < .05)
    few = odd.sum() <= max(1, len(steps)//10)
    return multiple if few and (multiple == odd).all() else np.zeros(len(steps), bool)


# %%
print(_multiples(np.array([5., 5, 10, 5])), _multiples(np.array([5., 5, 7, 7])))


# %%
#| export
def _check_gaps(stack: _Stack, src: Path):
    "`InputError` if a slice seems to be missing."
    steps = stack.steps
    if evenly_spaced(steps): return
    by_number = _jumps_by_number(stack)
    missing = by_number if by_number.any() else _multiples(steps)
    if not missing.any():
        return
    k = int(np.flatnonzero(missing)[0])
    here, following = (file.shown(src) for file in stack.images[k:k + 2])
    raise InputError(f"{here}: missing slice, the next one ({Path(following).name}) "
                     f"is {steps[k]:.1f} mm away where {float(np.median(steps)):.1f} mm are usual; "
                     "export the series again, or choose gaps=True (--gaps) to take the spacing as it is")


# %%
test_fail(lambda: _check_gaps(lost, work/"lost"), contains="missing slice")
uneven = _stack(read_headers(clinic/"oblique, unevenly spaced", clinic)[0], clinic)
_check_gaps(uneven, clinic)  # an honest change of spacing
print("steps in mm:", uneven.steps[[0, 8, 9, 13, 14, 22]].round(3))


# %% [markdown]
# ## Pixels
#
# The pixels come last. A compressed file needs a decoder that may not be installed, and a file may be cut off; both are told. Each
# slice is rescaled to Hounsfield units with its own slope and intercept.

# %%
#| export
def read_pixels(file: DicomFile, shown: str) -> np.ndarray:
    """One slice in Hounsfield units, float32 [columns, rows].

    Raises `InputError` if its pixels cannot be decoded.
    """
    pydicom = import_volumes_package("pydicom")
    header = file.header
    syntax = header.file_meta.TransferSyntaxUID
    try: raw = pydicom.dcmread(file.path).pixel_array
    except Exception as e:
        if syntax.is_compressed and "missing dependencies" in str(e):
            raise InputError(f"{shown}: its pixels are compressed ({syntax.name}) "
                             "and no decoder for that is installed; "
                             "run: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, "
                             "or export it uncompressed") from None
        raise InputError(f"{shown}: its pixels cannot be read ({type(e).__name__}); "
                         "the file is damaged or cut off, copy it again") from None
    slope, intercept = np.float32(header.RescaleSlope), np.float32(header.RescaleIntercept)
    return (raw*slope + intercept).astype(np.float32).T


# %%
hu = read_pixels(stack.images[12], "IM")
print(hu.shape, hu.dtype, "HU", hu.min(), "to", hu.max())


# %% [markdown]
# A series that has proved to be a volume knows its files in order and where they lie. DICOM counts towards the patient's left and back,
# NIfTI and our affines to the right and front, so two signs change. Contours come in DICOM's millimetres; `locate` says in which slice
# and at which pixel a point lies.

# %%
#| export
@dataclass(frozen=True)
class Series:
    "A CT series that is a volume."
    paths: list[Path] # in the order of the slices
    headers: list # pydicom headers without pixels, in the same order
    affine: np.ndarray # float64 [4,4]: (column, row, slice, 1) → mm right, front, up
    positions: np.ndarray|None # float64 [K,3], mm right, front, up, if the slices are unevenly spaced

    @property
    def shape(self) -> tuple[int, int, int]:
        "Columns, rows, slices."
        return int(self.headers[0].Columns), int(self.headers[0].Rows), len(self.paths)

    @property
    def number(self) -> str:
        "The number by which label objects refer to it."
        return str(self.headers[0].SeriesInstanceUID)

    @property
    def digest(self) -> str:
        "A text that tells the series from others without naming it."
        uids = sorted(header.SOPInstanceUID for header in self.headers)
        return hashlib.sha256("".join(uids).encode()).hexdigest()[:24]

    def read_voxels(self, src: Path) -> np.ndarray:
        "The voxels in Hounsfield units, float32 [columns, rows, slices]; messages name files below `src`."
        files = [DicomFile(path, header) for path, header in zip(self.paths, self.headers)]
        return np.stack([read_pixels(file, file.shown(src)) for file in files], -1)

    def locate(self, points: np.ndarray) -> np.ndarray:
        """Voxel coordinates of points [n,3] in DICOM's mm, float [n,4]: column, row, slice, mm off it.

        The slice is the number of the nearest one, -1 if none is near.
        """
        return _locate(self, points)


# %%
#| export
def _slice_origins(series: Series) -> np.ndarray:
    "Where the first voxel of each slice lies, float [K,3], mm right, front, up."
    if series.positions is not None:
        return series.positions
    numbers = np.arange(len(series.paths))[:, None]
    return series.affine[:3, 3] + numbers*series.affine[:3, 2]


# %%
#| export
def _locate(series: Series, points: np.ndarray) -> np.ndarray:
    "See `Series.locate`."
    affine, origins = series.affine, _slice_origins(series)
    ras = points*[-1, -1, 1]
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal *= np.sign(normal @ affine[:3, 2])/np.linalg.norm(normal)
    heights = origins @ normal
    off = ras @ normal - heights[:, None]
    nearest = np.abs(off).argmin(0)
    off = off[nearest, np.arange(len(ras))]
    in_plane = np.linalg.lstsq(affine[:3, :2], (ras - origins[nearest]).T, rcond=None)[0].T
    widest = np.diff(heights).max() if len(heights) > 1 else 1
    near = np.abs(off) < .5*widest + .01
    return np.c_[in_plane, np.where(near, nearest, -1), off]


# %%
axial = Series([Path(f"{k}") for k in range(3)], [], np.diag([-2., -2, 5, 1]), None)
print(axial.locate(np.array([[6., 4, 5], [0, 0, 11], [0, 0, 40]])))

# %%
#| export
_LPS_TO_RAS = np.diag([-1., -1, 1, 1])

def make_series(
    images: list[DicomFile], # the CT files of one folder
    src: Path, # the source of the import, for messages
    gaps: bool = False, # take a gap that looks like a missing slice as it is
) -> Series:
    "Sort and check the slices of one folder. Raises `InputError` unless they are one complete volume."
    check_one_series(images, src)
    stack = _stack(images, src)
    _check_duplicates(stack, src)
    _check_tilt(stack, src)
    steps, positions, header = stack.steps, stack.positions, stack.images[0].header
    if not gaps: _check_gaps(stack, src)
    between_rows, between_columns = map(float, header.PixelSpacing)
    if len(steps):
        step = (positions[-1] - positions[0])/len(steps)
    else: step = stack.normal*float(header.get("SliceThickness") or 1)
    lps = np.eye(4)
    lps[:3] = np.stack([stack.columns*between_columns, stack.rows*between_rows, step, positions[0]], 1)
    uneven = None if evenly_spaced(steps) else positions @ _LPS_TO_RAS[:3, :3]
    paths, headers = ([getattr(file, name) for file in stack.images] for name in ("path", "header"))
    return Series(paths, headers, _LPS_TO_RAS @ lps, uneven)


# %%
s = make_series(images, clinic)
print(s.shape, s.digest, "positions:", s.positions)
print("the first pixel of slice 7:", s.locate(planes["oblique"].positions[7:8]).round(6))


# %% [markdown]
# One call reads a series.

# %%
#| export
def read_series(
    folder, # the files of one CT series
    gaps: bool = False, # take a gap that looks like a missing slice as it is
) -> tuple[Series, np.ndarray]: # the series; voxels float32 [columns, rows, slices], Hounsfield units
    "Read a DICOM CT series. Raises `InputError` unless it is one complete volume."
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the files of one DICOM CT series")
    images, _ = read_headers(folder, folder)
    if not images:
        raise InputError(f"{folder}: no DICOM CT images in it")
    series = make_series(images, folder, gaps)
    return series, series.read_voxels(folder)


# %%
s, hu = read_series(clinic/"oblique, unevenly spaced")
print(hu.shape, "HU", hu.min(), "to", hu.max())
test_close(np.linalg.norm(np.diff(s.positions, axis=0), axis=1), uneven.steps, eps=1e-4)
test_fail(lambda: read_series(clinic/"gantry tilt"), contains="gantry tilt")

# %% [markdown]
# What would have happened without the positions? Here are the same voxels from the side, once stacked as a block, as many tools do,
# and once drawn where the slices say they are. The block squeezes the crown and has lost the tilt.

# %%
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


# %% [markdown]
# ## A tree of folders
#
# In a clinic's export each folder that holds CT images is one series. Contours and segmentations may lie anywhere; they name the series
# they are about by its number.

# %%
#| export
def referred_series(header) -> set[str]:
    "The numbers of the series that a label object is about."
    numbers = {str(item.SeriesInstanceUID) for item in header.get("ReferencedSeriesSequence", [])}
    for frame in header.get("ReferencedFrameOfReferenceSequence", []):
        for study in frame.get("RTReferencedStudySequence", []):
            items = study.get("RTReferencedSeriesSequence", [])
            numbers |= {str(item.SeriesInstanceUID) for item in items}
    return numbers


# %%
write_contours(clinic/"contours", s.headers, {"Ring": [(9, np.array([[9, 9], [20, 9], [20, 20]]))]})
_, labels = read_headers(clinic, clinic)
test_eq(referred_series(labels[0].header), {s.headers[0].SeriesInstanceUID})


# %%
#| export
@dataclass
class LabelledSeries:
    "A series and the label objects that refer to it."
    series: Series
    labels: list[DicomFile] # RTSTRUCT and SEG

    def shown(self, src: Path) -> str:
        "The folder of its files as a message may show it."
        return path_without_patient(self.series.paths[0].parent, src, self.series.headers[0])


# %%
#| export
Found = tuple[list[LabelledSeries], list[DicomFile]]  # the series; label objects about none of them

def _match(all_series: list[Series], objects: list[DicomFile], src: Path) -> Found:
    "Each series with the label objects about it, and those that are about none of them."
    matched = [LabelledSeries(series, []) for series in all_series]
    astray = []
    for file in objects:
        with label_errors(file, src):
            about = referred_series(file.header)
        its_series = [one for one in matched if one.series.number in about]
        for one in its_series: one.labels.append(file)
        if not its_series:
            astray.append(file)
    return matched, astray


# %%
matched, astray = _match([make_series(images, clinic)], labels, clinic)
print([len(m.labels) for m in matched], "astray:", len(astray))


# %%
#| export
def find_series(
    src: Path,
    gaps: bool, # take gaps that look like missing slices as they are
) -> Found:
    "All series below a folder, with their label objects. Raises `InputError` for any that is no volume."
    if not src.is_dir():
        raise InputError(f"{src}: no such folder; expected DICOM CT series, one in each folder")
    inner = [d for d in src.rglob("*") if d.is_dir()]
    folders = [src, *sorted(inner, key=lambda d: natural_key(str(d.relative_to(src))))]
    all_series, objects = [], []
    for folder in folders:
        images, labels = read_headers(folder, src)
        objects += labels
        if images:
            all_series.append(make_series(images, src, gaps))
    if not all_series:
        raise InputError(f"{src}: no DICOM CT images in it or in its folders")
    return _match(all_series, objects, src)


# %%
shutil.rmtree(clinic/"gantry tilt")
found, astray = find_series(clinic, gaps=False)
for one in found: print(f"{one.shown(clinic):25}", one.series.shape, "label objects:", len(one.labels))
shutil.rmtree(work)
