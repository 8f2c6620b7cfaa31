# %% [markdown]
# # DICOM
#
# > A folder of DICOM slices becomes a volume, or a clear refusal; predictions become a DICOM SEG that any viewer lays over the scan.
#
# - skip_showdoc: true

# %%
#| default_exp dicom

# %% [markdown]
# A DICOM CT is not a volume. It is a heap of files, one per slice, each of which says for itself where it lies. Nothing in the
# format promises that the heap is complete, that its slices are parallel, evenly spaced, sorted, or of one patient. Most tools sort
# by file name and hope. Here the geometry of every slice is read and the heap must *prove* that it is a volume.
#
# What a volume is, how it is cut, and the index that leads back are in [volumes](14_volumes.ipynb). This notebook adds the DICOM ends.

# %%
#| export
import contextlib, hashlib, re, zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from skimage.draw import polygon

from ctseg import __version__
from ctseg.anatomy import RAIDIUM54, ClassMap
from ctseg.data import natural_key, read_classes
from ctseg.files import InputError, atomic_path, read_json
from ctseg.volumes import Case, Slicing, Volume, _by_volume, _need, _new_folder, combine, flags, write_volumes

# %%
#| hide
import os, shutil, tempfile

import highdicom as hd
import matplotlib.pyplot as plt
import nibabel as nib
import pydicom
from fastcore.test import test_close, test_eq, test_fail
from pydicom.dataset import FileMetaDataset
from pydicom.sr._concepts_dict import concepts
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from ctseg.data import read_challenge, write_masks
from ctseg.volumes import as_slices, export_nifti, read_index, to_8bit


# %% [markdown]
# ## Where a slice says it is
#
# Three attributes place a slice ([DICOM PS3.3
# C.7.6.2.1.1](https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.2.html#sect_C.7.6.2.1.1)):
# `ImagePositionPatient`, the centre of its first pixel in mm; `ImageOrientationPatient`, the directions $X$ in which columns grow
# and $Y$ in which rows grow; and `PixelSpacing`, first between rows, then between columns. DICOM counts towards the patient's left
# and back (LPS), NIfTI and our affines to the right and front (RAS), so two signs change.
#
# To see what can go wrong, take a head and four ways in which a scanner may lay its slices. Drawn from the side, each line is one slice.

# %%
def head(x, y, z):
    "Hounsfield units and class (1 skull, 2 brain, 3 eye_left, 4 eye_right) of a simple head at x mm left, y mm back, z mm up."
    inside = lambda c, r: sum(((p - q)/s)**2 for p, q, s in zip((x, y, z), c, r)) < 1
    hu, label = np.full(np.shape(x), -1000.), np.zeros(np.shape(x), np.uint8)
    for c, r, value, id in [((0, 0, 0), (78, 98, 92), 60, 0), ((0, -92, -28), (9, 20, 16), 60, 0), ((0, 0, 0), (72, 92, 86), 950, 1),
                            ((0, 0, 0), (65, 85, 79), 36, 2), ((10, 5, 16), (11, 38, 12), 6, 2), ((-10, 5, 16), (11, 38, 12), 6, 2),
                            ((0, -52, -42), (14, 20, 12), -950, 0), ((32, -72, -20), (15, 15, 15), 15, 3),
                            ((-32, -72, -20), (15, 15, 15), 15, 4)]:
        m = inside(c, r)
        hu[m], label[m] = value, id
    return hu, label

def slices(n=24, tilt=0., gaps=5., shear=False):
    "Orientation and positions of n slices, tilted about the left-right axis, `gaps` mm apart; `shear`: stacked along the table instead."
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    X, Y = np.array([1., 0, 0]), np.array([0, c, s])
    along = np.array([0, 0, 1.]) if shear else np.cross(X, Y)
    steps = np.r_[0, np.cumsum(np.broadcast_to(gaps, n - 1))]
    return np.r_[X, Y], (steps - steps[-1]/2)[:, None]*along - 85*X - 105*Y

uneven = np.r_[[2.5]*9, [4.]*5, [7.]*9]
series = {"axial": slices(), "oblique": slices(tilt=20), "oblique, unevenly spaced": slices(tilt=20, gaps=uneven),
          "gantry tilt: sheared": slices(tilt=20, shear=True)}
fig, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
g = np.mgrid[-110:110:2, -110:110:2]
side = head(0*g[0], g[1], -g[0])[0]
for ax, (name, (iop, pos)) in zip(axes, series.items()):
    ax.imshow(side, cmap="gray", vmin=-60, vmax=140, extent=(-110, 110, -110, 110))
    for p in pos: ax.plot(*np.c_[p, p + 210*iop[3:]][1:], color="#e6a23c", lw=.8)
    ax.set(title=name, xlim=(-110, 110), ylim=(-110, 110)); ax.axis("off")

# %% [markdown]
# The first three are volumes. The third has no affine, since its steps differ, but every slice knows its place, so nothing is lost
# as long as the places are kept. The fourth is a trap: with a tilted *gantry* the slices are turned, but the table moved straight
# on, so each is shifted against the one before. Taken for a box, it makes a sheared head. It cannot be put right without
# resampling, so it is refused.
#
# Now write these series to disk, as a scanner would: shuffled file names, a name and dates of a patient in every file.

# %%
NAME, DAY = "Planted^Patience", "19370401"

def write_series(folder, iop, pos, shape=(76, 68), spacing=(2.8, 2.5), shuffle=True, **tags):
    "Scan the head into DICOM files. `spacing` is that of rows, then columns. Returns the truth, uint8 [columns, rows, slices]."
    Path(folder).mkdir(parents=True)
    study, uid, frame = generate_uid(), generate_uid(), generate_uid()
    r, c = np.mgrid[:shape[0], :shape[1]]
    order = np.random.default_rng(5).permutation(len(pos)) if shuffle else np.arange(len(pos))
    truth = []
    for k, p in enumerate(pos):
        hu, label = head(*(p[:, None, None] + iop[:3, None, None]*c*spacing[1] + iop[3:, None, None]*r*spacing[0]))
        truth.append(label.T)
        ds = pydicom.Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"  # CT Image Storage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, uid, frame
        ds.Modality, ds.ImageType, ds.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], k + 1
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.StudyDate, ds.AccessionNumber = NAME, "P-19370401", DAY, DAY, "A77"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [*map(lambda v: round(v, 6), p)], [*map(lambda v: round(v, 8), iop)]
        ds.PixelSpacing, ds.SliceThickness = list(spacing), 2.5
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *shape, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 2, -1024, "HU"
        for tag, value in tags.items(): setattr(ds, tag, value)
        ds.PixelData = ((hu + 1024)/2).round().astype(np.uint16).tobytes()
        ds.save_as(Path(folder)/f"IM{order[k]:04}", enforce_file_format=True)
    return np.stack(truth, -1)

work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
truth = {name: write_series(work/"clinic"/name.split(":")[0], *s) for name, s in series.items()}
print(*sorted(p.name for p in (work/"clinic"/"axial").iterdir())[:4], "…")


# %% [markdown]
# ## Reading a heap
#
# First all headers, without pixels. What is not DICOM is passed over, and so are scout images, plans, doses and reports;
# segmentations and contours are set aside as labels. An image of another modality is an error, since someone will believe that it
# was used.
#
# Error messages must not become a leak. They tell the path of a file below the source, and even that goes through a filter, because
# people do name folders after patients: words of the name, the number and the dates in the header are blotted out.

# %%
#| export
def _days(h) -> list[str]:
    "The dates in a header, `YYYYMMDD`."
    days = []
    for tag in h.keys():
        with contextlib.suppress(Exception):  # an element is parsed when it is looked at, and any one may be malformed
            if h[tag].VR == "DA" and h[tag].value: days.append(str(h[tag].value))
    return days

def _shown(path: Path, src: Path, *headers) -> str:
    "The path below `src` as a message may show it: without what the headers say of the patient."
    text = str(path.relative_to(src)) if path != src else src.name
    for h in headers:
        words = re.findall(r"\w{2,}", str(h.get("PatientName", "")))
        words += [str(h.get(t, "")) for t in ("PatientID", "AccessionNumber", "StudyID")]
        days = _days(h)
        words += days + [f"{d[:4]}{s}{d[4:6]}{s}{d[6:]}" for d in days for s in "-_."]
        for w in sorted(filter(None, words), key=len, reverse=True): text = re.sub(re.escape(w), "…", text, flags=re.IGNORECASE)
    return text

_PASSED = ("RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "REG", "DOC", "OT", "FID", "RWV")  # objects that are no images to cut
_DICOMDIR = "1.2.840.10008.1.3.10"  # a table of contents

def _headers(folder: Path, src: Path) -> tuple[list, list]:
    "The CT headers and the label objects (RTSTRUCT, SEG) of one folder, as (path, header)."
    pydicom = _need("pydicom")
    images, labels, damaged = [], [], []
    for p in sorted((p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")), key=lambda p: natural_key(p.name)):
        with open(p, "rb") as f:
            if f.read(132)[128:] != b"DICM": continue  # no DICOM file; a folder may hold anything
        try: h = pydicom.dcmread(p, stop_before_pixels=True)
        except Exception: damaged.append(p); continue
        modality = str(h.get("Modality", ""))
        if modality in ("RTSTRUCT", "SEG"): labels.append((p, h))
        elif modality in _PASSED or "LOCALIZER" in (h.get("ImageType") or []): continue
        elif h.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR: continue
        elif modality != "CT":
            raise InputError(f"{_shown(p, src, h)}: modality {modality or 'not told'}, expected CT; take this series out of the folder")
        else: images.append((p, h))
    if damaged: raise InputError(f"{_shown(damaged[0], src, *[h for _, h in images[:1]])}: a damaged DICOM file; copy it again")
    return images, labels


# %% [markdown]
# A folder must hold one series. Two in a folder would be stacked into each other; and even within one series everything that makes
# up the grid has to agree. The message names the first file that differs.

# %%
#| export
_NEEDED = "ImagePositionPatient ImageOrientationPatient PixelSpacing Rows Columns SOPInstanceUID SeriesInstanceUID".split()
_NUMBERS = dict(ImagePositionPatient=3, ImageOrientationPatient=6, PixelSpacing=2, RescaleSlope=1, RescaleIntercept=1)  # how many each holds
_MAY_LACK = "GantryDetectorTilt SliceThickness InstanceNumber NumberOfFrames SamplesPerPixel".split()

def _said(h, tag: str, where: str):
    "The value of an element; an `InputError` if it is malformed (pydicom parses it only now)."
    try: value = h.get(tag)
    except Exception: raise InputError(f"{where}: {tag} cannot be read, it is malformed; export the series again") from None
    return None if value == "" else value

def _check_header(h, where: str):
    "Raise an `InputError` unless a header has all it needs to place the slice and to read its pixels, well formed."
    if not h.file_meta.get("TransferSyntaxUID"):
        raise InputError(f"{where}: TransferSyntaxUID is missing, so its pixels cannot be read; export the series again")
    for tag in _NEEDED:
        if _said(h, tag, where) is None: raise InputError(f"{where}: {tag} is missing, so its place is not known; export the series again")
    if _said(h, "RescaleSlope", where) is None or _said(h, "RescaleIntercept", where) is None:
        raise InputError(f"{where}: no RescaleSlope and RescaleIntercept, so there are no Hounsfield units; export the original series")
    for tag, n in _NUMBERS.items():
        try: v = np.array(h.get(tag), float).reshape(-1)
        except (TypeError, ValueError): v = np.zeros(0)
        if len(v) != n or not np.isfinite(v).all() or (tag == "PixelSpacing" and v.min() <= 0):
            raise InputError(f"{where}: {tag} is {str(h.get(tag))[:60]!r}, expected {n} {'positive ' * (tag == 'PixelSpacing')}"
                             f"number{'s' * (n > 1)}; export the series again")
    for tag in _MAY_LACK:
        try: float(_said(h, tag, where) or 0)
        except (TypeError, ValueError): raise InputError(f"{where}: {tag} is {str(h.get(tag))[:60]!r}, expected one number; export the series again") from None


# %%
#| export
def _agree(images, src: Path):
    "Raise an `InputError` unless the headers belong to one series on one grid."
    same = dict(SeriesInstanceUID="series", PatientID="patients", FrameOfReferenceUID="frames of reference", Rows="sizes", Columns="sizes",
                PixelSpacing="pixel spacings", ImageOrientationPatient="orientations")
    first, h0 = images[0]
    for p, h in images:
        where = _shown(p, src, h, h0)
        if int(_said(h, "NumberOfFrames", where) or 1) > 1:
            raise InputError(f"{where}: an enhanced multi-frame CT; convert it to single-frame CT images first")
        _check_header(h, where)
        if int(h.get("SamplesPerPixel", 1)) != 1: raise InputError(f"{where}: a colour image, expected CT; take it out of the folder")
        for tag, what in same.items():
            a, b = h.get(tag), h0.get(tag)
            alike = np.allclose(a, b, atol=1e-4) if tag in ("PixelSpacing", "ImageOrientationPatient") else a == b
            if not alike: raise InputError(f"{where}: mixed slices, two {what} in one folder (it differs from {_shown(first, src, h0)}); "
                                           "give each series a folder of its own")


# %% [markdown]
# ## Proving that it is a volume
#
# The normal $N = X \times Y$ says how to sort: by $N \cdot \text{position}$, never by file name or number. Then the steps from slice to
# slice are looked at.
#
# - Two slices in one place are **duplicates**.
# - A stack that drifts sideways was made with a **tilted gantry**. (A tilt noted in the header of a straight stack is a contradiction,
#   and refused too.)
# - A gap can be a **missing** slice or an honest change of spacing. It is taken for missing when the slice numbers jump there, or when
#   one gap among even ones is a whole multiple of the rest. `gaps=True` overrules this for those who know better.

# %%
#| export
def _sorted(images, src: Path) -> tuple[list, np.ndarray, np.ndarray, np.ndarray]:
    "The slices in the order of the normal: (path, header) list, positions [K,3], X and Y, all as DICOM says (LPS); checked."
    h0 = images[0][1]
    X, Y = np.array(h0.ImageOrientationPatient, float).reshape(2, 3)
    folder = _shown(images[0][0].parent, src, h0)
    if abs(X @ Y) > 1e-3 or np.abs(np.linalg.norm([X, Y], axis=1) - 1).max() > 1e-3:
        raise InputError(f"{folder}: ImageOrientationPatient is not two unit vectors at a right angle; export the series again")
    N, pos = np.cross(X, Y), np.array([h.ImagePositionPatient for _, h in images], float)
    order = np.argsort(pos @ N, kind="stable")
    images, pos = [images[i] for i in order], pos[order]
    steps = np.diff(pos @ N)
    if len(steps) and steps.min() < .01:
        k = int(steps.argmin())
        raise InputError(f"{_shown(images[k + 1][0], src, h0)}: duplicate slice, "
                         f"in the same place as {_shown(images[k][0], src, h0)}; remove one of them")
    drift = np.linalg.norm(np.cross(pos - pos[0], N), axis=1).max()
    tilt = float(np.degrees(np.arctan2(drift, steps.sum()))) if len(steps) else 0.
    said = abs(float(h0.get("GantryDetectorTilt") or 0))
    if tilt > .2 or said > .2:
        raise InputError(f"{folder}: gantry tilt of {tilt if tilt > .2 else said:.1f}°, so the slices are sheared against each other; "
                         "resample the series to a straight grid first" +
                         ("" if tilt > .2 else " (if that has been done, set GantryDetectorTilt to 0)"))
    return images, pos, X, Y


# %%
#| export
def _even(steps) -> bool: return not len(steps) or np.ptp(steps) <= max(.02*np.median(steps), .01)

def _check_gaps(images, steps, src: Path):
    "Raise an `InputError` if a slice seems to be missing."
    if _even(steps): return
    usual = float(np.median(steps))
    number = np.array([int(h.get("InstanceNumber") or 0) for _, h in images])
    jump = np.abs(np.diff(number))
    odd = np.abs(steps - usual) > max(.02*usual, .01)
    times = steps/usual
    multiple = odd & (times > 1.5) & (np.abs(times - times.round()) < .05)
    by_number = (jump > np.median(jump)) & (steps > 1.2*steps.min()) if len(set(number.tolist())) == len(number) else odd & False
    if by_number.any() or (multiple.any() and (multiple == odd).all() and odd.sum() <= max(1, len(steps)//10)):
        k = int(np.flatnonzero(by_number if by_number.any() else multiple)[0])
        names = [_shown(images[i][0], src, images[i][1]) for i in (k, k + 1)]
        raise InputError(f"{names[0]}: missing slice, the next one ({Path(names[1]).name}) "
                         f"is {steps[k]:.1f} mm away where {usual:.1f} mm are usual; "
                         "export the series again, or choose gaps=True (--gaps) to take the spacing as it is")


# %%
#| export
@dataclass(frozen=True)
class Series:
    "A CT series that is a volume: its files in order, and where they lie."
    paths: list[Path]
    headers: list # pydicom headers without pixels, in the same order
    affine: np.ndarray # float64 [4,4], (column, row, slice, 1) → mm right, front, up
    positions: np.ndarray|None # float64 [K,3], right, front, up, if the slices are unevenly spaced

    @property
    def digest(self) -> str: # tells the series without naming it
        return hashlib.sha256("".join(sorted(h.SOPInstanceUID for h in self.headers)).encode()).hexdigest()[:24]

def _series(images, src: Path, gaps: bool) -> Series:
    "Sort and check CT headers of one folder."
    _agree(images, src)
    images, pos, X, Y = _sorted(images, src)
    steps = np.diff(pos @ np.cross(X, Y))
    if not gaps: _check_gaps(images, steps, src)
    h0 = images[0][1]
    between_rows, between_columns = map(float, h0.PixelSpacing)
    step = (pos[-1] - pos[0])/len(steps) if len(steps) else np.cross(X, Y)*float(h0.get("SliceThickness") or 1)
    A = np.eye(4)
    A[:3] = np.stack([X*between_columns, Y*between_rows, step, pos[0]], 1)
    ras = np.diag([-1., -1, 1, 1])
    return Series([p for p, _ in images], [h for _, h in images], ras @ A, None if _even(steps) else pos @ ras[:3, :3])


# %% [markdown]
# The pixels come last. A compressed file needs a decoder that may not be installed, and a file may be cut off; both are told. Each slice is
# rescaled to Hounsfield units with its own slope and intercept.

# %%
#| export
def _pixels(path: Path, header, shown: str) -> np.ndarray:
    "One slice in Hounsfield units, float32 [columns, rows]."
    pydicom = _need("pydicom")
    syntax = header.file_meta.TransferSyntaxUID
    try: raw = pydicom.dcmread(path).pixel_array
    except Exception as e:
        if syntax.is_compressed and "missing dependencies" in str(e):
            raise InputError(f"{shown}: its pixels are compressed ({syntax.name}) and no decoder for that is installed; "
                                     "run: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or export it uncompressed") from None
        raise InputError(f"{shown}: its pixels cannot be read ({type(e).__name__}); the file is damaged or cut off, "
                         f"copy it again") from None
    return (raw*np.float32(header.RescaleSlope) + np.float32(header.RescaleIntercept)).astype(np.float32).T

def read_series(
    folder, # the files of one CT series
    gaps: bool = False, # take a gap that looks like a missing slice as it is
) -> tuple[Series, np.ndarray]: # the series and its voxels, float32 [columns, rows, slices], Hounsfield units
    "Read a DICOM CT series; `InputError` unless it is one complete volume."
    folder = Path(folder)
    if not folder.is_dir(): raise InputError(f"{folder}: no such folder; expected the files of one DICOM CT series")
    images, _ = _headers(folder, folder)
    if not images: raise InputError(f"{folder}: no DICOM CT images in it")
    s = _series(images, folder, gaps)
    return s, _voxels(s, folder)

def _voxels(s: Series, src: Path) -> np.ndarray:
    return np.stack([_pixels(p, h, _shown(p, src, h)) for p, h in zip(s.paths, s.headers)], -1)


# %%
s, hu = read_series(work/"clinic"/"oblique, unevenly spaced")
print(hu.shape, "HU", hu.min(), "to", hu.max(), "\nfirst files:", *[p.name for p in s.paths[:3]])
steps = np.linalg.norm(np.diff(s.positions, axis=0), axis=1)
print("steps in mm:", *steps.round(3)[[0, 8, 9, 13, 14, 22]])
test_close(steps, uneven, eps=1e-4)
test_eq(read_series(work/"clinic"/"oblique")[0].positions, None)
try: read_series(work/"clinic"/"gantry tilt")
except InputError as e: print("-", e)

# %% [markdown]
# What would have happened without the positions? The same voxels from the side, once stacked as a block, as many tools do, and once
# drawn where the slices say they are. The block squeezes the crown and has lost the tilt.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
middle = hu[hu.shape[0]//2 - 5]  # [rows, slices]
axes[0].imshow(middle.T, cmap="gray", vmin=-60, vmax=140, origin="lower", aspect="auto")
axes[0].set(title="as a block of numbers", xlabel="row", ylabel="slice")
row = np.arange(hu.shape[1])
where = s.positions[:, None] + row[:, None]*s.affine[:3, 1] + (hu.shape[0]//2 - 5)*s.affine[:3, 0]  # [slices, rows, 3]
axes[1].pcolormesh(where[..., 1], where[..., 2], middle.T, cmap="gray", vmin=-60, vmax=140, shading="nearest", rasterized=True)
axes[1].invert_xaxis()
axes[1].set(title="where the slices say they are", xlabel="mm to the front", ylabel="mm up", aspect="equal", facecolor="k");


# %% [markdown]
# ## Labels in DICOM
#
# Contours drawn in a radiotherapy system come as an **RTSTRUCT**: polygons in millimetres, each with a structure's name. A
# structure that was never contoured has no polygons, or is not listed; either way it is *unknown* for this patient. Many people contour
# every third slice and let their planning system fill in the rest; so a slice *between* the first and the last contour that has none
# itself is *unknown* as well, and only beyond them the structure is absent. A pixel belongs
# to a structure if its centre lies within an odd number of its polygons on that slice, so an inner polygon is a hole. Polygons may be
# drawn on planes that are no slices: of the planes near a slice only the nearest counts, or two outlines of the same thing would erase
# each other. Regions of one name are put together.

# %%
#| export
def _slice_of(s: Series, points: np.ndarray) -> np.ndarray:
    "Voxel coordinates (column, row, slice) of points [n,3] in DICOM's mm and how far they lie off that slice, in mm; the slice is the number of the nearest one, -1 if none is near."
    ras = points*[-1, -1, 1]
    N = np.cross(s.affine[:3, 0], s.affine[:3, 1])
    N *= np.sign(N @ s.affine[:3, 2])/np.linalg.norm(N)
    at = (s.positions if s.positions is not None else s.affine[:3, 3] + np.arange(len(s.paths))[:, None]*s.affine[:3, 2])
    off = ras @ N - (at @ N)[:, None]
    k = np.abs(off).argmin(0)
    off = off[k, np.arange(len(ras))]
    inplane = np.linalg.lstsq(s.affine[:3, :2], (ras - at[k]).T, rcond=None)[0].T
    near = np.abs(off) < .5*(np.diff(at @ N).max() if len(at) > 1 else 1) + .01
    return np.c_[inplane, np.where(near, k, -1), off]

def _rings(h) -> list[tuple[str, list]]:
    "The regions of an RTSTRUCT that have closed contours: (name, list of float [n,3]). Two may have one name."
    names = {int(r.ROINumber): str(r.get("ROIName", "")) for r in h.get("StructureSetROISequence", [])}
    closed = lambda c: c.get("ContourGeometricType", "CLOSED_PLANAR").startswith("CLOSED") and len(c.get("ContourData") or []) >= 9
    out = []
    for roi in h.get("ROIContourSequence", []):
        rings = [np.array(c.ContourData, float).reshape(-1, 3) for c in roi.get("ContourSequence", None) or [] if closed(c)]
        if rings: out.append((names.get(int(roi.ReferencedROINumber), ""), rings))
    return out

_ONE_PLANE = .1  # mm: rings no farther apart lie in one plane

def _contours(h, s: Series) -> list[tuple[str, np.ndarray, np.ndarray]]:
    "The regions of an RTSTRUCT that have contours: (name, bool [I,J,K], bool [K]: the slices from its first contour to its last). Of a plane, a ring within a ring is a hole; of several planes near one slice, the nearest counts."
    shape, out = (int(s.headers[0].Columns), int(s.headers[0].Rows), len(s.paths)), []
    for name, rings in _rings(h):
        mask, on = np.zeros(shape, bool), {}
        for v in (_slice_of(s, points) for points in rings):
            if v[0, 2] >= 0: on.setdefault(int(v[0, 2]), []).append(v)
        for k, vs in on.items():
            nearest = min((v[0, 3] for v in vs), key=abs)
            for v in vs:
                if abs(v[0, 3] - nearest) > _ONE_PLANE: continue
                i, j = polygon(v[:, 0], v[:, 1], shape[:2])
                mask[i, j, k] ^= True
        drawn = np.zeros(shape[2], bool)
        if on: drawn[min(on):max(on) + 1] = True
        out.append((name, mask, drawn))
    return out


# %% [markdown]
# A ring drawn on three slices of the oblique series: an outer polygon, and an inner one that makes the hole.

# %%
def write_contours(path, s, rings):
    "An RTSTRUCT for a series. `rings`: structure name → list of (slice, polygon [n,2] of columns and rows)."
    ds = pydicom.Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"  # RT Structure Set Storage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.Modality, ds.PatientName, ds.StructureSetDate = "RTSTRUCT", NAME, DAY
    item = lambda **tags: (d := pydicom.Dataset(), [setattr(d, k, v) for k, v in tags.items()])[0]
    study = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=s.headers[0].SeriesInstanceUID)])
    ds.ReferencedFrameOfReferenceSequence = [item(RTReferencedStudySequence=[study])]
    ds.StructureSetROISequence = [item(ROINumber=i, ROIName=n) for i, n in enumerate(rings)]
    axes = np.reshape(s.headers[0].ImageOrientationPatient, (2, 3))*[[2.5], [2.8]]
    at = lambda k, ring: s.headers[k].ImagePositionPatient + ring @ axes
    contour = lambda k, ring: item(ContourGeometricType="CLOSED_PLANAR", ContourData=[f"{v:.4f}" for v in at(k, ring).ravel()])
    ds.ROIContourSequence = [item(ReferencedROINumber=i, ContourSequence=[contour(*r) for r in rs]) for i, rs in enumerate(rings.values())]
    ds.save_as(path, enforce_file_format=True)

angle = np.linspace(0, 2*np.pi, 60, endpoint=False)
circle = lambda r: [34, 38] + r*np.c_[np.cos(angle), np.sin(angle)]
s, hu = read_series(work/"clinic"/"oblique, unevenly spaced")
write_contours(work/"rtstruct", s, {"Ring": [(k, circle(r)) for k in (9, 10, 11) for r in (20.2, 12.2)], "Never drawn": []})
drawn = _contours(pydicom.dcmread(work/"rtstruct"), s)
(name, ring, between), = drawn
test_eq(name, "Ring")
test_eq(ring.any((0, 1)).nonzero()[0], [9, 10, 11])
test_eq(between.nonzero()[0], [9, 10, 11])
r, c = np.mgrid[:76, :68]
radius = np.hypot(c - 34, r - 38)
assert (ring[..., 10].T == ((radius < 20.1) & (radius > 12.2)))[abs(radius - 20.2) > .3].all()
fig, ax = plt.subplots(figsize=(2.6, 2.6), layout="constrained")
ax.imshow(to_8bit(hu[..., 10].T, 40, 200), cmap="gray")
ax.imshow(ring[..., 10].T[..., None]*np.uint8([230, 160, 60, 140])); ax.axis("off");


# %% [markdown]
# A **DICOM SEG** holds masks, frame by frame, with a reference to the slice each belongs to. highdicom reads it.

# %%
#| export
def _segments(path: Path, s: Series) -> list[tuple[str, np.ndarray, np.ndarray]]:
    "The segments of a DICOM SEG: (name, bool [I,J,K], bool [K]: the slices it is drawn on). Two may have one name."
    seg = _need("highdicom").seg.segread(path)
    frames = seg.get_pixels_by_source_instance([h.SOPInstanceUID for h in s.headers], assert_missing_frames_are_empty=True)
    masks = [(frames[..., i] > .5).T for i in range(len(seg.SegmentSequence))]
    return [(str(d.SegmentLabel), m, m.any((0, 1))) for d, m in zip(seg.SegmentSequence, masks)]

def _refers_to(h) -> set[str]:
    "The series a label object is about."
    out = {str(r.SeriesInstanceUID) for r in h.get("ReferencedSeriesSequence", [])}
    for frame in h.get("ReferencedFrameOfReferenceSequence", []):
        for study in frame.get("RTReferencedStudySequence", []):
            out |= {str(r.SeriesInstanceUID) for r in study.get("RTReferencedSeriesSequence", [])}
    return out


# %% [markdown]
# Clinics spell structures in many ways, `Parotid L`, `PAROTID_L`, `Parotis li`. A class name has small letters, of any script, and `_` for
# whatever lies between them. Two labels of *one* series that differ in more than case and separators must not fall together by that:
# `GTV+` and `GTV-` are two things. Only `rename` can make them one class, and it must name each.

# %%
#| export
def class_name(label: str) -> str:
    "A structure's name as class names are written: `Parotid L ` → `parotid_l`."
    return re.sub(r"[\W_]+", "_", label.lower()).strip("_")

def _spelled(label: str) -> str:
    "A label without case and without the kind of separator: `Parotid L` and `PAROTID-L` are one, `GTV+` and `GTV-` two."
    return re.sub(r"(?<=\w)[\s_.,-]+(?=\w)", "_", label.lower().strip(" \t_"))

def _translated(label: str, rename: dict[str, str]) -> tuple[str, bool]:
    "The class name of a label, as `rename` says, else as class names are written; and whether `rename` has this label."
    same = {_spelled(k): v for k, v in rename.items()} | {k.strip(): v for k, v in rename.items()}
    for key in (label.strip(), _spelled(label)):
        if key in same: return same[key], True
    return rename.get(class_name(label), class_name(label)), False


# %%
test_eq([class_name(n) for n in ("Parotid L ", "Œil-G", "肝脏", "+")], ["parotid_l", "œil_g", "肝脏", ""])
test_eq(_translated("Parotid L", {"PAROTID_L": "parotid_left"}), ("parotid_left", True))
test_eq(_translated("GTV-", {"GTV+": "tumour"}), ("gtv", False))


# %%
#| export
def _renaming(rename) -> dict[str, str]:
    "`rename` as a dictionary; read if it is a path, and checked."
    if rename is None: return {}
    table, where = (rename, "rename") if isinstance(rename, dict) else (read_json(rename), rename)
    if not isinstance(table, dict) or not all(isinstance(x, str) and x.strip() for pair in table.items() for x in pair):
        raise InputError(f'{where}: expected an object from labels to class names, such as {{"Parotis li": "parotid_left"}}')
    return table

def _check_apart(labels, rename: dict[str, str], wanted, where: str):
    "Raise an `InputError` if two different labels of a series would become one of the `wanted` classes (`None`: all), though `rename` does not name both; or if a label gives no name."
    reach = {}
    for label in labels:
        name, said = _translated(label, rename)
        if wanted is None and not name:
            raise InputError(f"{where}: the label {label!r} has neither letters nor numbers for a class name; give it one by rename (--rename)")
        if wanted is None or name in wanted: reach.setdefault(name, {})[_spelled(label)] = label, said
    for name, those in reach.items():
        if len(those) > 1 and not all(said for _, said in those.values()):
            a, b = [label for label, _ in those.values()][:2]
            raise InputError(f"{where}: the labels {a!r} and {b!r} would both become the class {name!r}; say by rename (--rename) what each of them is")


# %%
#| export
@contextlib.contextmanager
def _told(path: Path, h, src: Path):
    "Whatever goes wrong with a label object is told in one line."
    try: yield
    except InputError: raise
    except Exception as e:
        raise InputError(f"{_shown(path, src, h)}: its {h.Modality} does not fit the series or is damaged ({type(e).__name__}); export it again") from None

def _labels(path: Path, h, src: Path) -> list[str]:
    "The names of what a label object holds."
    with _told(path, h, src): return [name for name, _ in _rings(h)] if h.Modality == "RTSTRUCT" else [str(d.SegmentLabel) for d in h.SegmentSequence]

def _structures(objects, s: Series, src: Path, rename: dict[str, str], wanted) -> tuple[dict, dict]:
    "The `wanted` structures that label objects hold for a series, by class name: masks bool [I,J,K], and on which slices they were drawn or may be, bool [K]. Those of one name are put together."
    masks, drawn = {}, {}
    for p, h in objects:
        with _told(p, h, src): found = _contours(h, s) if h.Modality == "RTSTRUCT" else _segments(p, s)
        for label, mask, on in found:
            if (name := _translated(label, rename)[0]) not in wanted: continue
            masks[name] = masks[name] | mask if name in masks else mask
            drawn[name] = drawn[name] | on if name in drawn else on
    return masks, drawn


# %% [markdown]
# ## Import
#
# Each folder below the source that holds CT images is one series; contours and segmentations may lie anywhere and find their series
# by its number. `rename` translates: `{"Parotis li": "parotid_left"}`. What could not be used is told among the facts: labels that are no
# class, and label objects whose series is not there. If *nothing* of what was drawn can be used, that is an error.

# %%
#| export
def _find(src: Path, gaps: bool) -> tuple[list[tuple[Series, list]], list]:
    "All series below `src`, each with the label objects that refer to it; and the label objects that refer to none of them."
    if not src.is_dir(): raise InputError(f"{src}: no such folder; expected DICOM CT series, one in each folder")
    folders = [src, *sorted((d for d in src.rglob("*") if d.is_dir()), key=lambda d: natural_key(str(d.relative_to(src))))]
    found, objects = [], []
    for d in folders:
        images, labels = _headers(d, src)
        objects += labels
        if images: found.append(_series(images, src, gaps))
    if not found: raise InputError(f"{src}: no DICOM CT images in it or in its folders")
    about = []
    for p, h in objects:
        with _told(p, h, src): about.append(_refers_to(h))
    numbers = [str(s.headers[0].SeriesInstanceUID) for s in found]
    mine = [(s, [o for o, series in zip(objects, about) if n in series]) for s, n in zip(found, numbers)]
    return mine, [o for o, series in zip(objects, about) if not series & set(numbers)]

def _load(s: Series, objects, src: Path, classes: ClassMap, rename) -> Volume:
    "The voxels of a series with its labels."
    masks, between = _structures(objects, s, src, rename, classes.names)
    structures = {classes.id(n): m for n, m in masks.items()}
    hu = _voxels(s, src)
    labels, overlap, drawn = combine(hu.shape, structures.items())
    for n, on in between.items(): drawn[2][classes.id(n)] |= on  # a slice among contours that has none itself: unknown
    return Volume(hu, s.affine, labels if structures else None, flags(structures, len(classes)),
                  s.positions, "dicom", s.digest, overlap, drawn)


# %%
#| export
def _unused(labels: list[list[str]], lost: list, rename: dict[str, str], classes: ClassMap, src: Path) -> dict:
    "Facts about what was drawn and is not used: `labels` of each series, `lost` label objects without a series. An `InputError` if nothing is used."
    every = sorted({n.strip() for have in labels for n in have})
    ignored = [n for n in every if _translated(n, rename)[0] not in classes.names]
    if ignored and len(ignored) == len(every):
        raise InputError(f"{src}: none of the {len(ignored)} labels drawn ({ignored[0]!r}{', …' * (len(ignored) > 1)}) is one of the classes "
                         f"({classes.names[0]!r}{', …' * (len(classes) > 1)}); translate them by rename (--rename), or take the RTSTRUCT and SEG objects away")
    if lost and not every:
        raise InputError(f"{_shown(lost[0][0], src, lost[0][1])}: its {lost[0][1].Modality} is about a series that is not in the folder, and nothing "
                         "else is labelled; put that series there, or take the object away")
    return dict(ignored_labels=ignored, label_objects_without_series=len(lost))


# %%
#| export
def import_dicom(
    src, # a folder with DICOM CT series, one in each (sub)folder, and their RTSTRUCT or SEG objects
    out, # the challenge folder, new
    slicing: Slicing = Slicing(),
    classes: ClassMap|str|None = None, # a `ClassMap` or the path of a `class_names.json`; `None`: the structures found, else the 54
    rename: dict|str|None = None, # structure's label → class name, or the path of such a JSON
    test_share: float = 0., # share of the patients set aside as a test; 1: all, as for a prediction
    gaps: bool = False, # take gaps that look like missing slices as they are
    key = None, # where to write the private table volume → source folder
) -> dict: # facts
    "Cut DICOM CT series into a challenge folder with an index. Nothing that names a patient or a date gets into it."
    src, rename = Path(src), _renaming(rename)
    if classes is not None and not isinstance(classes, ClassMap): classes = ClassMap.from_json(classes)
    found, lost = _find(src, gaps)
    labels = [[n for p, h in objects for n in _labels(p, h, src)] for _, objects in found]
    for (s, _), have in zip(found, labels):
        _check_apart(have, rename, classes and classes.names, _shown(s.paths[0].parent, src, s.headers[0]))
    names = [{_translated(n, rename)[0] for n in have} for have in labels]
    if classes is None: classes = ClassMap.from_names(sorted(set().union(*names))) if any(names) else RAIDIUM54
    unused = _unused(labels, lost, rename, classes, src)
    cases = []
    for (s, objects), have in zip(found, names):
        h = s.headers[0]
        patient = str(h.get("PatientID") or h.get("PatientName") or h.get("StudyInstanceUID") or s.digest)
        load = lambda s=s, objects=objects: _load(s, objects, src, classes, rename)
        cases.append(Case(str(s.paths[0].parent.relative_to(src)), load, f"patient {patient}", np.array([n in have for n in classes.names]),
                          shown=_shown(s.paths[0].parent, src, h)))
    return write_volumes(cases, out, classes, slicing, test_share, key) | unused


# %%
shutil.rmtree(work/"clinic"/"gantry tilt")
CLASSES = ClassMap.from_names(["skull", "brain", "eye_left", "eye_right"])
facts = import_dicom(work/"clinic", work/"heads", Slicing(window=(40, 200)), CLASSES, test_share=1.)
facts

# %%
test = read_challenge(work/"heads", "test")
fig, axes = plt.subplots(1, 5, figsize=(11, 2.5), layout="constrained")
for ax, i in zip(axes, [7, 14, 24 + 10, 48 + 11, 48 + 18]):
    line = read_index(work/"heads")[1][f"{i}.png"]
    ax.imshow(test.images[i], cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{i}.png = {line['volume']}, slice {line['slice']}", fontsize=9); ax.axis("off")

# %% [markdown]
# ## Predictions as DICOM SEG
#
# A label map is of little use to a radiologist; a **DICOM Segmentation** opens in any viewer, lies on the scan by itself, and says
# what it shows in a language that machines share: [SNOMED CT](https://www.snomed.org/) codes. The table has the structures of the
# challenge and of the real-CT benchmark. The side is not part of the code; it is a *modifier*, left or right. For codes we follow
# [TotalSegmentator's
# table](https://github.com/wasserth/TotalSegmentator/blob/master/totalsegmentator/resources/totalsegmentator_snomed_mapping.csv)
# and, for head and neck, the code sets of DICOM itself. The regions of the spine are *vertebra* with the region beside it.

# %%
#| export
SNOMED = {name: (code, meaning) for name, code, meaning in (line.strip().split(" ", 2) for line in """
    adrenal_gland 23451007 Adrenal gland
    aorta 15825003 Aorta
    autochthon 244849004 Deep muscle of back
    brain 12738006 Brain
    brainstem 119238007 Brain stem
    clavicula 51299004 Clavicle
    colon 71854001 Colon
    duodenum 38848004 Duodenum
    esophagus 32849002 Esophagus
    face 89545001 Face
    femur 71341001 Femur
    gallbladder 28231008 Gallbladder
    gluteus_maximus 181674001 Gluteus maximus muscle
    gluteus_medius 78333006 Gluteus medius muscle
    gluteus_minimus 75297007 Gluteus minimus muscle
    heart 80891009 Heart
    hip 29836001 Hip
    humerus 85050009 Humerus
    iliac_artery 73634005 Common iliac artery
    iliac_vena 46027005 Common iliac vein
    iliopsoas 68455001 Iliopsoas muscle
    inferior_vena_cava 64131007 Inferior vena cava
    kidney 64033007 Kidney
    larynx 4596009 Larynx
    liver 10200004 Liver
    lung 39607008 Lung
    mandible 91609006 Mandible
    pancreas 15776009 Pancreas
    parotid 45289007 Parotid gland
    portal_vein_and_splenic_vein 110765007 Portal vein and splenic vein
    pulmonary_artery 81040000 Pulmonary artery
    rib 113197003 Rib""".strip().splitlines())}

# %%
#| export
SNOMED |= {name: (code, meaning) for name, code, meaning in (line.strip().split(" ", 2) for line in """
    sacrum 54735007 Sacrum
    scapula 79601000 Scapula
    small_bowel 30315005 Small intestine
    spinal_cord 2748008 Spinal cord
    spleen 78961009 Spleen
    stomach 69695003 Stomach
    trachea 44567001 Trachea
    urinary_bladder 89837001 Urinary bladder
    vertebrae_cervical 51282000 Vertebra
    vertebrae_lumbar 51282000 Vertebra
    vertebrae_thoracic 51282000 Vertebra""".strip().splitlines())}
_REGIONS = {"vertebrae_cervical": ("122494005", "Cervical spine"), "vertebrae_thoracic": ("122495006", "Thoracic spine"),
            "vertebrae_lumbar": ("122496007", "Lumbar spine")}
_SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}

def snomed(
    name: str, # a class name, such as kidney_left
) -> tuple[tuple|None, tuple|None, tuple|None]: # (code, meaning) of the structure, of the side, of the region; `None` where there is none
    "The SNOMED CT codes of a class."
    side = re.search(r"(?:^|_)(left|right)(?:_|$)", name)
    stem = name if not side else (name[:side.start()] + "_" + name[side.end():]).strip("_")
    return SNOMED.get(stem), _SIDES[side[1]] if side else None, _REGIONS.get(stem)


# %%
for name in ("kidney_left", "vertebrae_lumbar", "liver", "eye_left"): print(f"{name:17}", *snomed(name))
assert all(snomed(n)[0] for n in RAIDIUM54.names)
test_eq(sum(bool(snomed(n)[1]) for n in RAIDIUM54.names), 2*len(RAIDIUM54.pairs))

# %% [markdown]
# The codes that pydicom's own dictionary holds are compared with it, word by word as far as the wordings agree.

# %%
meanings = {}
for entry in concepts["SCT"].values():
    for code, (meaning, _) in entry.items(): meanings.setdefault(code, []).append(meaning.lower())
known = {n: c for n, c in SNOMED.items() if c[0] in meanings}
agree = [n for n, (code, meaning) in known.items() if any(meaning.lower() in m or m in meaning.lower() for m in meanings[code])]
print(f"{len(SNOMED)} structures, {len(known)} of the codes are in pydicom's dictionary, {len(agree)} with the same words")
print("other words:", {n: (SNOMED[n][1], meanings[SNOMED[n][0]][0]) for n in known if n not in agree})
print("not in it:", *[n for n in SNOMED if n not in known])


# %% [markdown]
# A class that has no code gets a private one, as the standard asks. highdicom writes the rest. It would also copy the patient's
# name, number and dates from the scan into the segmentation. We hand it headers from which all that is left out: only what is
# needed to place the segments on *these* slices stays, and these are numbers of the study, the series and the slices. A viewer
# finds the scan by them.

# %%
#| export
def _segment(number: int, name: str, colour):
    "A segment's description: name, codes, colour."
    hd, Code = _need("highdicom"), _need("pydicom.sr.coding").Code
    code = lambda c: c and Code(c[0], "SCT", c[1])
    kind, side, region = map(code, snomed(name))
    private = Code(name.upper() if len(name) <= 16 else f"{name.upper()[:8]}{zlib.crc32(name.encode()):08X}", "99CTSEG", name[:64])
    family = Code("123109", "DCM", "Artificial Intelligence")
    made_by = hd.AlgorithmIdentificationSequence("ctseg", family, __version__)
    d = hd.seg.SegmentDescription(number, name[:64], Code("123037004", "SCT", "Anatomical Structure"), kind or private, "AUTOMATIC",
                                  made_by, anatomic_regions=[region] if region else None,
                                  display_color=hd.color.CIELabColor.from_rgb(*map(int, colour)))
    if side: d.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept.from_code(side)]
    return d

_KEPT = ("SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality Rows Columns PixelSpacing "
         "SliceThickness ImageOrientationPatient ImagePositionPatient").split()
_BLANK = "PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime ReferringPhysicianName".split()

def _nameless(h, id: str):
    "A header with the geometry and the numbers of the slice, and nothing of the patient."
    pydicom = _need("pydicom")
    out = pydicom.Dataset()
    out.file_meta = pydicom.dataset.FileMetaDataset()
    out.file_meta.TransferSyntaxUID = h.file_meta.TransferSyntaxUID
    for tag in _KEPT:
        if tag in h: setattr(out, tag, h[tag].value)
    for tag in _BLANK: setattr(out, tag, "")
    if "SliceThickness" not in out: out.SliceThickness = None  # may be empty, but must be there
    out.PatientID, out.PatientIdentityRemoved, out.DeidentificationMethod = id, "YES", "ctseg: geometry and UIDs only"
    return out


# %%
#| export
def _seg(s: Series, labels: np.ndarray, classes: ClassMap, id: str):
    "A DICOM SEG of a label map [I,J,K] on a series, with a segment for each class that occurs."
    hd = _need("highdicom")
    ids = [int(i) for i in np.unique(labels) if i]
    if lost := [t for t in ("StudyInstanceUID", "FrameOfReferenceUID") if not s.headers[0].get(t)]:
        raise InputError(f"{id}: its CT has no {lost[0]}, without which a SEG cannot refer to it; use export nifti")
    number = np.zeros(256, np.uint8)
    number[ids] = range(1, len(ids) + 1)
    parts = [_segment(n, classes.name(i), classes.colours[i]) for n, i in enumerate(ids, 1)]
    about = dict(series_instance_uid=hd.UID(), series_number=100, sop_instance_uid=hd.UID(), instance_number=1, manufacturer="ctseg",
                 manufacturer_model_name="ctseg", software_versions=__version__, device_serial_number="0")
    seg = hd.seg.Segmentation([_nameless(h, id) for h in s.headers], number[labels].transpose(2, 1, 0), "BINARY", parts, **about,
                              content_label="CTSEG", content_description="Made by ctseg; not a diagnosis")
    seg.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of classes may be in any script
    return seg


def export_dicom_seg(
    masks, # a submission (CSV) or uint8 [N,H,W], in the order of the images
    folder, # the challenge folder with its `index.json`
    source, # the DICOM folder it was imported from
    out, # the folder for `v000.dcm`, …, new
    split: str = "test", # the images that the masks belong to
) -> dict: # volume → number of segments; no file is written for one with none
    "Put predicted masks back onto their DICOM series as DICOM Segmentation objects, without the patient's name and dates."
    _need("highdicom")
    out, classes, facts = _new_folder(out), read_classes(folder), {}
    series = {s.digest: s for s, _ in _find(Path(source), gaps=True)[0]}
    with atomic_path(out) as tmp:
        tmp.mkdir()
        for id, entry, labels, _ in _by_volume(masks, folder, split, 0):
            if entry["kind"] != "dicom": raise InputError(f"{folder}: volume {id} was not imported from DICOM; use export nifti")
            if entry["digest"] not in series:
                raise InputError(f"{source}: the series of volume {id} is not in it, or its files have changed; "
                                 f"give the folder it was imported from")
            facts[id] = len([i for i in np.unique(labels) if i])
            if facts[id]: _seg(series[entry["digest"]], labels, classes, id).save_as(tmp/f"{id}.dcm")
    return facts


# %% [markdown]
# ## There and back
#
# The strictest test: predict perfectly. The truth of the three series is cut like the images, written as a submission, exported
# both ways, and read again with other people's readers. It must be the truth again, voxel for voxel, on an oblique grid with voxels
# of 2.8 x 2.5 mm and uneven steps.

# %%
names = [n for n in series if not n.startswith("gantry")]
volumes, lines = read_index(work/"heads")
masks = np.zeros_like(test.masks)
for i, line in enumerate(lines.values()):
    label = truth[names[int(line["volume"][1:])]]
    (y, x), part = line["corner"], as_slices(label, np.array(volumes[line["volume"]]["affine"]))[line["slice"]]
    masks[i, y:y + part.shape[0], x:x + part.shape[1]] = part
write_masks(masks, test.names, work/"submission.csv")

print(export_nifti(work/"submission.csv", work/"heads", work/"nifti"))
print(export_dicom_seg(work/"submission.csv", work/"heads", work/"clinic", work/"seg"))

# %%
for v, name in enumerate(names):
    image = nib.load(work/"nifti"/f"v{v:03}.nii.gz")
    test_eq(np.asarray(image.dataobj), truth[name])
    s, hu = read_series(work/"clinic"/name)
    test_close(image.affine, s.affine, eps=1e-4)
    seg = hd.seg.segread(work/"seg"/f"v{v:03}.dcm")
    uids = [h.SOPInstanceUID for h in s.headers]
    test_eq(seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True).T, truth[name])
    places = {h.SOPInstanceUID: h.ImagePositionPatient for h in s.headers}
    for f in seg.PerFrameFunctionalGroupsSequence:
        uid = f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        test_close(np.array(f.PlanePositionSequence[0].ImagePositionPatient, float), np.array(places[uid], float), eps=1e-4)

d = seg.SegmentSequence[2]
print(d.SegmentLabel, "|", d.SegmentedPropertyTypeCodeSequence[0].CodeMeaning, "|",
      d.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning)

# %% [markdown]
# And those segmentations are labels. Laid into the clinic's folder, the next import finds them by the number of the series. Here
# only the brain and the left eye are kept of the first one; so on that patient the rest is unknown, and the other patients are unlabelled.

# %%
few = np.where(np.isin(truth["axial"], [2, 3]), truth["axial"], 0)
s, _ = read_series(work/"clinic"/"axial")
_seg(s, few, CLASSES, "someone").save_as(work/"clinic"/"drawn.dcm")
import_dicom(work/"clinic", work/"again", classes=CLASSES)
train = read_challenge(work/"again")
mine = train[train.groups == 0]
print(train)
print({n: "unknown" if not k else "present" for n, k in zip(CLASSES.names, train.known[1])})


# %% [markdown]
# ## Nobody's name
#
# The planted name, the number and the date are in every file of the clinic. They must be in none of ours: not in the index, not in
# the PNGs, not in the segmentations.

# %%
def found_in(folder):
    "The files whose bytes or name contain something of the patient."
    words = [w.encode() for w in ("Planted", "Patience", DAY, "A77", "P-1937")]
    shows = lambda p: any(w.lower() in p.read_bytes().lower() + p.name.encode().lower() for w in words)
    return [p.name for p in folder.rglob("*") if p.is_file() and shows(p)]

test_eq(len(found_in(work/"clinic/axial")), 24)
print({d: found_in(work/d) for d in ("heads", "again", "nifti", "seg")})


# %% [markdown]
# ## What goes wrong, in one line each

# %%
def broken(change, **kw):
    "Write an axial series, spoil it with `change`, and print what the import says."
    shutil.rmtree(work/"bad", ignore_errors=True)
    write_series(work/"bad"/f"{NAME} {DAY}", *slices(8), shape=(20, 18), shuffle=False, **kw)
    files = sorted((work/"bad").rglob("IM*"))
    change(files)
    try: import_dicom(work/"bad", work/"never")
    except InputError as e: print("-", str(e).replace(str(work), "…"))
    else: assert False, "accepted"
    assert not (work/"never").exists()

def edit(path, **tags):
    ds = pydicom.dcmread(path)
    for tag, value in tags.items(): setattr(ds, tag, value)
    ds.save_as(path)

def compress(files):
    for f in files:
        ds = pydicom.dcmread(f)
        ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no decoder here "])
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
        ds.save_as(f)

broken(lambda f: f[3].unlink())
broken(lambda f: shutil.copy(f[3], f[3].with_name("copy")))
broken(lambda f: edit(f[5], SeriesInstanceUID=generate_uid()))
broken(lambda f: edit(f[5], ImageOrientationPatient=[0, 1, 0, -1, 0, 0]))
broken(lambda f: None, Modality="MR")
broken(lambda f: [edit(p, ImageOrientationPatient=[1, 0, 0]) for p in f])
broken(lambda f: None, GantryDetectorTilt=12.)
broken(compress)
broken(lambda f: f[2].write_bytes(f[2].read_bytes()[:-100]))
broken(lambda f: [p.unlink() for p in f])

# %%
#| hide
shutil.rmtree(work)

# %%
#| hide
import nbdev; nbdev.nbdev_export()
