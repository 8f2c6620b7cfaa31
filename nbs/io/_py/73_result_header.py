# %% [markdown]
# # Headers of results
#
# > What a segmentation takes from the header of its scan: never the patient, unless asked.

# %%
#| default_exp io.result_header

# %%
#| export
from ctseg.core.errors import InputError
from ctseg.io.dicom_heap import ENHANCED_CT
from ctseg.io.volumes import import_volumes_package

# %%
#| hide
import tempfile
from pathlib import Path

from fastcore.test import test_fail

from ctseg.io.dicom import read_series
from ctseg.io.toy_dicom import PATIENT, head_planes, write_series

# %% [markdown]
# A viewer finds the scan of a segmentation by numbers: those of the study, the series and the slices. These are always copied, with the
# geometry. The patient's name, number and dates are left out, so that a result can be handed on. Inside a hospital this is the wrong
# choice: there an archive refuses, or misfiles, an object that does not say whose it is. `keep_patient` copies what the scan says of the
# patient and the study.

# %%
#| export
_PLACE = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "Modality", "Rows", "Columns",
    "PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient",
)
_REQUIRED = (  # they may be empty, but must be there
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber",
    "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName",
)
PATIENT_TAGS = (
    *_REQUIRED, "IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription",
    "PatientIdentityRemoved", "DeidentificationMethod",
)

# %%
print(len(PATIENT_TAGS), "elements say something of the patient or the study")


# %%
#| export
def _copy(header, out, tags):
    "Copy elements as far as they are there; names as plain text, so that any character set can be written."
    for tag in tags:
        if tag not in header: continue
        element = header[tag]
        value = element.value
        setattr(out, tag, str(value or "") if element.VR == "PN" else value)


# %%
#| export
def result_header(
    header, # of a CT slice
    id: str, # the name of the volume, written as the patient's number
    keep_patient: bool = False, # copy what the header says of the patient and the study
):
    "A header with the geometry and the numbers of the slice, and nothing of the patient unless asked."
    pydicom = import_volumes_package("pydicom")
    out = pydicom.Dataset()
    out.file_meta = pydicom.dataset.FileMetaDataset()
    out.file_meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    for tag in _REQUIRED: setattr(out, tag, "")
    _copy(header, out, _PLACE)
    if "SliceThickness" not in out:
        out.SliceThickness = None  # may be empty, but must be there
    if keep_patient:
        _copy(header, out, PATIENT_TAGS)
    else:
        out.PatientID = id
        out.PatientIdentityRemoved, out.DeidentificationMethod = "YES", "ctseg: geometry and UIDs only"
    return out


# %%
work = Path(tempfile.mkdtemp())
write_series(work/"ct", head_planes(3))
header = read_series(work/"ct")[0].headers[0]
for keep in (False, True):
    out = result_header(header, "v000", keep)
    print(
        f"keep_patient={keep!s:6}",
        out.PatientID,
        repr(str(out.PatientName)),
        repr(out.StudyDate),
        out.ImagePositionPatient,
    )
assert not any(value in str(result_header(header, "v000")) for value in PATIENT.values())


# %% [markdown]
# A scan without the numbers that a viewer finds it by cannot be referred to.

# %%
#| export
def check_referable(
    headers: list, # of the CT slices
    id: str, # what a message calls the volume
    kind: str, # what is to refer to it: "SEG" or "RTSTRUCT"
):
    "Raise `InputError` for a CT that no result can refer to."
    for tag in ("SOPClassUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        if not headers[0].get(tag):
            raise InputError(f"{id}: its CT has no {tag}, without which no {kind} can refer to it; "
                             "export it as NIfTI")
    several = len({header.SOPInstanceUID for header in headers}) < len(headers)
    if several and str(headers[0].SOPClassUID) not in ENHANCED_CT:
        raise InputError(f"{id}: its slices share one SOPInstanceUID, so no {kind} can refer to them; "
                         "export it as NIfTI")
    if several:
        raise InputError(f"{id}: its CT has many slices in one file (enhanced), "
                         f"which no {kind} of ctseg can refer to yet; export it as NIfTI")


# %%
check_referable([header], "v000", "SEG")
test_fail(lambda: check_referable([header, header], "v000", "SEG"), contains="share one SOPInstanceUID")
del header.FrameOfReferenceUID
test_fail(lambda: check_referable([header], "v000", "SEG"), contains="no FrameOfReferenceUID")
