# %% [markdown]
# # RTSTRUCT, written
#
# > Label maps as contours for a radiotherapy system, exact to the voxel when they are filled again.

# %%
#| default_exp io.rtstruct_write

# %%
#| export
import numpy as np
from skimage.measure import find_contours

from ctseg import __version__
from ctseg.core.anatomy import ClassMap
from ctseg.io.dicom_seg import export_to_series
from ctseg.io.dicom_headers import dicom_item
from ctseg.io.dicom_series import Series
from ctseg.io.result_header import PATIENT_TAGS, check_referable, result_header
from ctseg.io.snomed import snomed
from ctseg.io.volumes import import_volumes_package

# %%
#| hide
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pydicom
from fastcore.test import test_eq

from ctseg.data.challenge import read_challenge
from ctseg.io.dicom import read_series
from ctseg.io.dicom_import import import_dicom
from ctseg.io.rtstruct import draw_region, read_regions
from ctseg.io.toy_dicom import HEAD_CLASSES, PATIENT, clinic_planes, write_series

# %% [markdown]
# Planning systems for radiotherapy know no voxels. They take an **RTSTRUCT**: for each structure, polygons on the planes of the slices, in
# mm. Here the true classes of a toy series are written as one, and read again.

# %%
work = Path(tempfile.mkdtemp())
truth = write_series(work/"ct", clinic_planes()["oblique, unevenly spaced"])
s, _ = read_series(work/"ct")
print(truth.shape, "classes:", np.unique(truth))

# %% [markdown]
# ## Outlines
#
# An outline runs between the pixels inside and those outside, so that whoever asks which pixel centres it encloses finds the same pixels
# again, and its area is theirs. It keeps 0.48 pixels away from the centres inside, and not one half. Some programs, rt-utils among them,
# round each point to the nearest pixel before they fill; with this margin the rounding lands inside.
#
# A hole is a ring of its own, inside of the outer one, and not joined to it by a keyhole. Filling by the even-odd rule, as ctseg,
# rt-utils and Plastimatch do, leaves it empty. Points on straight stretches say nothing and are left out.

# %%
#| export
_LEVEL = .52  # of an outline between 1 inside and 0 outside: .48 pixels from the centres inside

def _corners(ring: np.ndarray) -> np.ndarray:
    "A closed ring [n,2], its last point not repeated, with only those points at which it turns."
    before = ring - np.roll(ring, 1, 0)
    after = np.roll(ring, -1, 0) - ring
    turn = before[:, 0]*after[:, 1] - before[:, 1]*after[:, 0]
    return ring[np.abs(turn) > 1e-9]

def outlines_of(
    mask: np.ndarray, # bool [columns, rows]
) -> list[np.ndarray]: # rings, float [n,2]: column and row of each point
    "The rings around a mask, those of its holes included."
    rings = find_contours(np.pad(mask, 1).astype(np.float32), _LEVEL)
    return [_corners(ring[:-1]) - 1 for ring in rings]


# %%
#| fig-alt: "A mask with a hole and the two closed lines that outline it"
mask = np.zeros((9, 8), bool)
mask[1:8, 1:7] = True
mask[3:5, 3:5] = False
fig, ax = plt.subplots(figsize=(3, 3), layout="constrained")
ax.imshow(mask.T, cmap="gray_r", vmax=2)
for ring in outlines_of(mask): ax.plot(*np.vstack([ring, ring[:1]]).T, "C0.-")
ax.set_title("a ring, and the ring of its hole", fontsize=9)
ax.set(xticks=[], yticks=[])
plt.show()


# %%
#| export
def _in_mm(header, ring: np.ndarray) -> list[str]:
    "A ring, columns and rows [n,2], as DICOM's numbers: the coordinates of its points on a slice, in mm."
    columns, rows = np.reshape(np.array(header.ImageOrientationPatient, float), (2, 3))
    between_rows, between_columns = map(float, header.PixelSpacing)
    axes = np.stack([columns*between_columns, rows*between_rows])
    points = np.array(header.ImagePositionPatient, float) + ring @ axes
    return [f"{value:.4f}" for value in points.ravel()]


# %%
print(_in_mm(s.headers[0], np.array([[0., 0], [1, 0]])), s.headers[0].ImagePositionPatient)


# %% [markdown]
# ## The object

# %%
#| export
def _image(header):
    "A reference to a slice."
    uids = header.SOPClassUID, header.SOPInstanceUID
    return dicom_item(ReferencedSOPClassUID=uids[0], ReferencedSOPInstanceUID=uids[1])

def _contours(headers: list, mask: np.ndarray) -> list:
    "The contours of a mask, bool [columns, rows, slices], each with the slice it was drawn on."
    contours = []
    for k in np.flatnonzero(mask.any((0, 1))):
        header = headers[k]
        for ring in outlines_of(mask[:, :, k]):
            contours.append(dicom_item(
                ContourImageSequence=[_image(header)],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(ring),
                ContourData=_in_mm(header, ring)))
    return contours


# %%
contours = _contours(s.headers, truth == HEAD_CLASSES.id("eye_left"))
print(len(contours), "contours, the first of", contours[0].NumberOfContourPoints, "points")

# %%
#| export
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # what a reference to a study has as its class

def _frame_of_reference(headers: list):
    "The reference to all slices of a series."
    first = headers[0]
    its_series = dicom_item(SeriesInstanceUID=first.SeriesInstanceUID,
                       ContourImageSequence=[_image(header) for header in headers])
    study = dicom_item(ReferencedSOPClassUID=_STUDY_CLASS, ReferencedSOPInstanceUID=first.StudyInstanceUID,
                  RTReferencedSeriesSequence=[its_series])
    return dicom_item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])


# %%
#| export
def _observation(number: int, name: str):
    "What is said of a structure beside its contours: its code, if there is one."
    item = dicom_item(ObservationNumber=number, ReferencedROINumber=number)
    item.RTROIInterpretedType, item.ROIInterpreter = "", ""
    concept = snomed(name).structure
    if concept:
        item.RTROIInterpretedType = "ORGAN"
        code = dicom_item(CodeValue=concept.code, CodingSchemeDesignator="SCT", CodeMeaning=concept.meaning)
        item.RTROIIdentificationCodeSequence = [code]
    return item


# %%
print(
    _observation(1, "eye_left").RTROIIdentificationCodeSequence[0].CodeMeaning,
    repr(_observation(2, "tumour").RTROIInterpretedType),
)

# %%
#| export
_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"  # RT Structure Set Storage
_ABOUT = {
    "Modality": "RTSTRUCT",
    "SeriesNumber": 101,
    "InstanceNumber": 1,
    "SeriesDescription": "Segmentation by ctseg",
    "Manufacturer": "ctseg",
    "ManufacturerModelName": "ctseg",
    "SoftwareVersions": __version__,
    "OperatorsName": "",
    "StructureSetLabel": "CTSEG",
    "StructureSetDescription": "Made by ctseg; not a diagnosis",
    "StructureSetDate": "",
    "StructureSetTime": "",
    "ApprovalStatus": "UNAPPROVED",
}


# %%
#| export
def _new_object(series: Series, id: str, keep_patient: bool):
    "An RTSTRUCT without structures."
    pydicom = import_volumes_package("pydicom")
    source = result_header(series.headers[0], id, keep_patient)
    ds = pydicom.Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of classes may be in any script
    for tag in (*PATIENT_TAGS, "StudyInstanceUID", "FrameOfReferenceUID"):
        if tag in source: setattr(ds, tag, source[tag].value)
    ds.PositionReferenceIndicator = ""
    for tag, value in _ABOUT.items(): setattr(ds, tag, value)
    ds.SOPClassUID, ds.SOPInstanceUID = _CLASS, pydicom.uid.generate_uid()
    ds.SeriesInstanceUID = pydicom.uid.generate_uid()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = _CLASS, ds.SOPInstanceUID
    return ds


# %%
empty = _new_object(s, "v000", keep_patient=False)
print(
    empty.Modality,
    empty.PatientID,
    empty.SeriesDescription,
    empty.StudyInstanceUID == s.headers[0].StudyInstanceUID,
)


# %%
#| export
def make_rtstruct(
    series: Series,
    labels: np.ndarray, # uint8 [columns, rows, slices], class ids
    classes: ClassMap,
    id: str, # the name of the volume, written as the patient's number
    keep_patient: bool = False, # copy what the scan says of the patient and the study
):
    """An RTSTRUCT of a label map, with a structure for each class that occurs; save it with `enforce_file_format=True`.

    Raises `InputError` if the CT cannot be referred to.
    """
    headers = list(series.headers)  # each is read from its file
    check_referable(headers, id, "RTSTRUCT")
    ds = _new_object(series, id, keep_patient)
    frame = _frame_of_reference(headers)
    ids = [int(i) for i in np.unique(labels) if i]
    structures, drawn, observations = [], [], []
    for number, i in enumerate(ids, 1):
        name, colour = classes.name(i), [int(v) for v in classes.colours[i]]
        contours = _contours(headers, labels == i)
        structures.append(dicom_item(
            ROINumber=number, ReferencedFrameOfReferenceUID=frame.FrameOfReferenceUID,
            ROIName=name[:64], ROIGenerationAlgorithm="AUTOMATIC"))
        drawn.append(dicom_item(ROIDisplayColor=colour, ContourSequence=contours, ReferencedROINumber=number))
        observations.append(_observation(number, name))
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = structures, drawn
    ds.RTROIObservationsSequence = observations
    return ds


# %% [markdown]
# Read again and filled, every structure is the same, voxel for voxel: the brain too, which is a hole in the skull.

# %%
rt = make_rtstruct(s, truth, HEAD_CLASSES, "v000")
rt.save_as(work/"rt.dcm", enforce_file_format=True)
for region in read_regions(pydicom.dcmread(work/"rt.dcm")):
    mask = draw_region(s, region).mask
    print(f"{region.name:9}", len(region.rings), "contours,", mask.sum(), "voxels")
    test_eq(mask, truth == HEAD_CLASSES.id(region.name))

# %% [markdown]
# As with a [SEG](76_dicom_seg.ipynb), nothing of the patient is in it unless asked.

# %%
written = (work/"rt.dcm").read_bytes()
assert not any(value.encode() in written for value in PATIENT.values())
print(make_rtstruct(s, truth, HEAD_CLASSES, "v000", keep_patient=True).PatientName)


# %% [markdown]
# ## A whole submission

# %%
#| export
def export_rtstruct(
    masks, # a submission (CSV), or uint8 [N,H,W] in the order of the images
    folder, # the challenge folder with its `index.json`
    source, # the DICOM folder it was imported from
    out, # the folder for `v000.dcm`, …, new
    split: str = "test", # the images that the masks belong to
    keep_patient: bool = False, # copy what the scans say of the patient and the study
) -> dict[str, int]: # volume → number of structures; no file is written for one with none
    "Put predicted masks back onto their DICOM series as RTSTRUCT, without the patient's name and dates unless asked."
    def write(series, labels, classes, id, tmp):
        rtstruct = make_rtstruct(series, labels, classes, id, keep_patient)
        rtstruct.save_as(tmp/f"{id}.dcm", enforce_file_format=True)
    return export_to_series(masks, folder, source, out, split, write)


# %%
os.environ["CTSEG_CACHE"] = str(work/"cache")
import_dicom(work/"ct", work/"heads", classes=HEAD_CLASSES, test_share=1.)
masks = read_challenge(work/"heads", "test").masks
masks[9:12, 20:30, 20:30] = 2
print(export_rtstruct(masks, work/"heads", work/"ct", work/"structures"))
