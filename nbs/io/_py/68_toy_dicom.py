# %% [markdown]
# # A toy clinic
#
# > A head in DICOM files, as a scanner would write them: the toy world of the notebooks on DICOM.

# %%
#| default_exp io.toy_dicom

# %%
#| export
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.io.dicom_headers import dicom_item
from ctseg.io.toy_scans import paint_ellipsoids
from ctseg.io.volumes import import_volumes_package

# %%
#| hide
import shutil
import tempfile

import matplotlib.pyplot as plt
import pydicom
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG

# %% [markdown]
# The head is a function of where: millimetres to the patient's left, to the back and up, as DICOM counts them.

# %%
#| export
HEAD_CLASSES = ClassMap.from_names(["skull", "brain", "eye_left", "eye_right"])

# centre and radii in mm, Hounsfield units, class id; later parts lie over earlier ones
_HEAD = [
    ((0, 0, 0), (78, 98, 92), 60, 0),
    ((0, -92, -28), (9, 20, 16), 60, 0),
    ((0, 0, 0), (72, 92, 86), 950, 1),
    ((0, 0, 0), (65, 85, 79), 36, 2),
    ((10, 5, 16), (11, 38, 12), 6, 2),
    ((-10, 5, 16), (11, 38, 12), 6, 2),
    ((0, -52, -42), (14, 20, 12), -950, 0),
    ((32, -72, -20), (15, 15, 15), 15, 3),
    ((-32, -72, -20), (15, 15, 15), 15, 4),
]

def head_at(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    "Hounsfield units and class ids of the head at points of any one shape: x mm left, y mm back, z mm up."
    return paint_ellipsoids(_HEAD, (x, y, z))


# %%
#| fig-alt: "A cut through the left eye of the toy head, in millimetres to the back and up"
across, down = np.mgrid[-110:110:2, -110:110:2]
hu, label = head_at(32 + 0*across, across, -down)
fig, ax = plt.subplots(figsize=(2.6, 2.6), layout="constrained")
ax.imshow(hu.T, cmap="gray", vmin=-60, vmax=140, extent=(-110, 110, -110, 110))
ax.set(title="through the left eye", xlabel="mm to the back", ylabel="mm up")
plt.show()


# %% [markdown]
# A slice says where it lies: the directions in which its columns and rows grow, and the place of its first pixel.

# %%
#| export
@dataclass
class Planes:
    "Where the slices of a series lie, in DICOM's mm (left, back, up)."
    columns: np.ndarray # float [3]: the direction in which columns grow
    rows: np.ndarray # float [3]: the direction in which rows grow
    positions: np.ndarray # float [K,3]: the first pixel of each slice


# %%
#| export
def head_planes(
    n: int = 24, # slices
    tilt: float = 0., # degrees about the left-right axis
    gaps = 5., # mm between slices: one for all, or n - 1
    shear: bool = False, # the gantry was tilted, and the slices are stacked along the table
) -> Planes:
    "Slices through the head."
    angle = np.radians(tilt)
    columns = np.array([1., 0, 0])
    rows = np.array([0, np.cos(angle), np.sin(angle)])
    along = np.array([0, 0, 1.]) if shear else np.cross(columns, rows)
    steps = np.r_[0, np.cumsum(np.broadcast_to(gaps, n - 1))]
    middles = (steps - steps[-1]/2)[:, None]*along
    return Planes(columns, rows, middles - 85*columns - 105*rows)


# %%
print(head_planes(3).positions)


# %% [markdown]
# Here are four ways in which a scanner may lay its slices. Seen from the side, each line is one slice. The first three are volumes.
# The third has no affine, since its steps differ. The fourth is a trap: with a tilted *gantry* the slices are turned, but the table
# moved straight on, so each slice is shifted against the one before.

# %%
#| export
def clinic_planes() -> dict[str, Planes]:
    "Four series of one head, by how their slices lie."
    uneven = np.r_[[2.5]*9, [4.]*5, [7.]*9]
    return {
        "axial": head_planes(),
        "oblique": head_planes(tilt=20),
        "oblique, unevenly spaced": head_planes(tilt=20, gaps=uneven),
        "gantry tilt": head_planes(tilt=20, shear=True),
    }


# %%
#| fig-alt: "Four heads from the side with the lines of their slices: axial, oblique, uneven, tilted gantry"
fig, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
side = head_at(0*across, across, -down)[0]
for ax, (name, planes) in zip(axes, clinic_planes().items()):
    ax.imshow(side.T, cmap="gray", vmin=-60, vmax=140, extent=(-110, 110, -110, 110))
    for first in planes.positions:
        ends = np.stack([first, first + 210*planes.rows])
        ax.plot(ends[:, 1], ends[:, 2], color="#e6a23c", lw=.8)
    ax.set(title=name, xlim=(-110, 110), ylim=(-110, 110))
    ax.axis("off")

# %% [markdown]
# ## Files
#
# Now the files, with the name and the dates of a patient in every header, as a scanner writes them. Their names are shuffled.

# %%
#| export
PATIENT = {
    "PatientName": "Planted^Patience",
    "PatientID": "P-19370401",
    "PatientBirthDate": "19370401",
    "StudyDate": "19370401",
    "AccessionNumber": "A77",
}
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"  # CT Image Storage
_PIXELS = {
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
    "RescaleSlope": 2,
    "RescaleIntercept": -1024,
    "RescaleType": "HU",
}

def dicom_object(sop_class: str, **tags):
    "A DICOM data set of this class that can be saved, with a new instance number."
    pydicom = import_volumes_package("pydicom")
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    for tag, value in tags.items(): setattr(ds, tag, value)
    return ds


# %%
ds = dicom_object(_CT_IMAGE, Modality="CT", **PATIENT)
for element in ds:
    if element.keyword != "SOPInstanceUID": print(element)  # that number is new each time


# %%
#| export
def _ct_slice(planes: Planes, k: int, hu: np.ndarray, spacing: tuple[float, float], tags: dict):
    "The CT image of slice k, Hounsfield units [rows, columns]."
    orientation = [*planes.columns, *planes.rows]
    ds = dicom_object(_CT_IMAGE, Modality="CT", InstanceNumber=k + 1, **PATIENT, **_PIXELS)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient = [round(float(v), 6) for v in planes.positions[k]]
    ds.ImageOrientationPatient = [round(float(v), 8) for v in orientation]
    ds.PixelSpacing, ds.SliceThickness = list(spacing), 2.5
    ds.Rows, ds.Columns = hu.shape
    for tag, value in tags.items(): setattr(ds, tag, value)
    ds.PixelData = ((hu + 1024)/2).round().astype(np.uint16).tobytes()
    return ds


# %%
ds = _ct_slice(head_planes(3), 1, np.zeros((4, 6)), (2.8, 2.5), {"SliceThickness": 3})
print(ds.ImagePositionPatient, ds.Rows, ds.Columns, ds.SliceThickness)


# %%
#| export
def write_series(
    folder,
    planes: Planes,
    shape: tuple[int, int] = (76, 68), # rows, columns
    spacing: tuple[float, float] = (2.8, 2.5), # mm between rows, between columns
    shuffle: bool = True, # file names in no order
    size: float = 1., # of this patient's head
    **tags, # DICOM elements to set in every file
) -> np.ndarray: # uint8 [columns, rows, slices]
    "Scan the head into the files of one CT series. Returns the true classes."
    generate_uid = import_volumes_package("pydicom.uid").generate_uid
    Path(folder).mkdir(parents=True)
    uids = {t: generate_uid() for t in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    n = len(planes.positions)
    numbers = np.random.default_rng(5).permutation(n) if shuffle else np.arange(n)
    row, column = np.mgrid[:shape[0], :shape[1]]
    truth = []
    for k, first in enumerate(planes.positions):
        along_rows = planes.rows[:, None, None]*row*spacing[0]
        points = first[:, None, None] + planes.columns[:, None, None]*column*spacing[1] + along_rows
        hu, label = head_at(*points/size)
        truth.append(label.T)
        ds = _ct_slice(planes, k, hu, spacing, uids | tags)
        ds.save_as(Path(folder)/f"IM{numbers[k]:04}", enforce_file_format=True)
    return np.stack(truth, -1)


# %%
work = Path(tempfile.mkdtemp())
truth = write_series(work/"axial", clinic_planes()["axial"])
print(truth.shape, *sorted(p.name for p in (work/"axial").iterdir())[:4], "…")
test_eq(np.unique(truth), range(5))

# %% [markdown]
# Contours are an object of their own, an RTSTRUCT: polygons in millimetres that refer to the series.

# %%
#| export
_RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"  # RT Structure Set Storage

def _contour(header, ring: np.ndarray):
    "A closed polygon on the plane of a slice; `ring`: columns and rows, float [n,2]."
    columns, rows = np.reshape(header.ImageOrientationPatient, (2, 3))
    between_rows, between_columns = header.PixelSpacing
    axes = np.stack([columns*float(between_columns), rows*float(between_rows)])
    points = np.array(header.ImagePositionPatient, float) + ring @ axes
    data = [f"{v:.4f}" for v in points.ravel()]
    return dicom_item(ContourGeometricType="CLOSED_PLANAR", ContourData=data)


# %%
header = pydicom.dcmread(next((work/"axial").iterdir()), stop_before_pixels=True)
print(_contour(header, np.array([[0, 0], [10, 0], [10, 10]])).ContourData)


# %%
#| export
def write_contours(
    path,
    headers: list, # of the series' slices, in order
    rings: dict[str, list], # structure name → (slice, polygon float [n,2] of columns and rows), …
):
    "Write an RTSTRUCT about a series."
    series = dicom_item(SeriesInstanceUID=headers[0].SeriesInstanceUID)
    study = dicom_item(RTReferencedSeriesSequence=[series])
    frame = dicom_item(RTReferencedStudySequence=[study])
    names, contours = [], []
    for number, (name, polygons) in enumerate(rings.items()):
        sequence = [_contour(headers[k], ring) for k, ring in polygons]
        names.append(dicom_item(ROINumber=number, ROIName=name))
        contours.append(dicom_item(ReferencedROINumber=number, ContourSequence=sequence))
    ds = dicom_object(_RT_STRUCTURE_SET, Modality="RTSTRUCT", PatientName=PATIENT["PatientName"])
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = names, contours
    ds.save_as(path, enforce_file_format=True)


# %%
write_contours(
    work/"rtstruct", [header], {"Corner": [(0, np.array([[0, 0], [10, 0], [10, 10]]))], "Never drawn": []}
)
rt = pydicom.dcmread(work/"rtstruct")
print(
    [(r.ROIName, len(c.ContourSequence)) for r, c in zip(rt.StructureSetROISequence, rt.ROIContourSequence)]
)
shutil.rmtree(work)
