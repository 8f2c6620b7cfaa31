# %% [markdown]
# # DICOM headers
#
# > A heap of files, one per slice: what belongs to it, what each must say, and what no message may repeat.

# %%
#| default_exp io.dicom_headers

# %%
#| export
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ctseg.core.files import InputError
from ctseg.data.images import natural_key
from ctseg.io.volumes import import_volumes_package

if TYPE_CHECKING:
    from pydicom import Dataset

# %%
#| hide
import shutil
import tempfile

import pydicom
from fastcore.test import test_eq, test_fail

from ctseg.io.toy_dicom import PATIENT, clinic_planes, head_planes, write_series

# %% [markdown]
# A DICOM CT is not a volume. It is a heap of files, each of which says for itself where its slice lies. Nothing in the format promises
# that the heap is complete, or of one patient. So the headers are read first, all of them, without pixels.

# %%
work = Path(tempfile.mkdtemp())
clinic = work/"clinic"
write_series(clinic/"axial", clinic_planes()["axial"])
header = pydicom.dcmread(clinic/"axial"/"IM0000", stop_before_pixels=True)
print(header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing)


# %% [markdown]
# ## Messages name files, not patients
#
# An error message must not become a leak. It tells the path of a file below the source, and people name folders after patients. So
# the words of the patient's name, the numbers and the dates in the header are blotted out.

# %%
#| export
def _dates(header) -> list[str]:
    "The dates in a header, `YYYYMMDD`."
    dates = []
    for tag in header.keys():
        with contextlib.suppress(Exception):  # an element is parsed only now, and may be malformed
            if header[tag].VR == "DA" and header[tag].value:
                dates.append(str(header[tag].value))
    return dates


# %%
print(_dates(header))


# %% [markdown]
# Only whole values are blotted out: a patient called *Li* must not cost `slices` its letters, and a study with the number 1 must not cost
# every file its digits, or nobody finds the file.

# %%
#| export
def _whole(value: str) -> str:
    "A pattern for a value that is no part of a longer word or number."
    letter, digit = r"[^\W\d_]", r"\d"
    before = digit if value[0].isdigit() else letter
    after = digit if value[-1].isdigit() else letter
    return f"(?<!{before}){re.escape(value)}(?!{after})"


# %%
for text in ("Li/slices", "Li1/IM2", "ALI_li"):
    print(f"{text:10}", re.sub(_whole("Li"), "…", text, flags=re.IGNORECASE))


# %%
#| export
def _name_pattern(name: str) -> list[str]:
    "Patterns for the words of a name, also for several run together: `DoeJane`."
    words = sorted(re.findall(r"[^\W\d_]{2,}", name), key=len, reverse=True)
    if not words: return []
    either = "|".join(map(re.escape, words))
    return [rf"(?<![^\W\d_])(?:{either})+(?![^\W\d_])"]

def _number_pattern(number: str) -> list[str]:
    "Patterns for the number of a patient or study. A short one names nobody unless a folder is called so."
    if len(number) < 3: return []
    if number.isdigit() and len(number) < 5:
        return [rf"(?<![^/]){number}(?=/)"]
    return [_whole(number)]


# %%
#| export
def _day_patterns(day: str) -> list[str]:
    "Patterns for a date, `YYYYMMDD`, in the usual spellings."
    return [_whole(mark.join((day[:4], day[4:6], day[6:]))) for mark in ("", "-", "_", ".") if len(day) == 8]


# %%
print(
    _name_pattern("Planted^Patience"),
    _number_pattern("A77"),
    _number_pattern("1"),
    _day_patterns("19370401")[1],
)

# %%
#| export
_NUMBERS = ("PatientID", "AccessionNumber", "StudyID")

def _identifying(header) -> list[str]:
    "Patterns for what in a header identifies the patient or the day."
    patterns = []
    for tag in _NUMBERS:
        patterns += _number_pattern(str(header.get(tag) or "").strip())
    for day in _dates(header):
        patterns += _day_patterns(day)
    return patterns + _name_pattern(str(header.get("PatientName") or ""))


# %%
#| export
def path_without_patient(
    path: Path,
    src: Path, # the source of the import
    *headers, # of the file or of its series
) -> str:
    "The path below `src` as a message may show it: without what the headers say of the patient."
    text = path.relative_to(src).as_posix() if path != src else src.name
    if path.is_dir(): text += "/"
    for header in headers:
        for pattern in _identifying(header):
            text = re.sub(pattern, "…", text, flags=re.IGNORECASE)
    return text.rstrip("/")


# %%
for name in ("Patience Planted 1937-04-01", "PLANTEDPATIENCE_a77", "P-19370401"):
    print(f"{name:28}→", path_without_patient(clinic/name/"IM0001", clinic, header))
numbered = pydicom.Dataset()
numbered.StudyID, numbered.PatientName, numbered.PatientID = "1", "Li", "4711"
test_eq(
    path_without_patient(clinic/"4711"/"slices"/"IM1_4711.dcm", clinic, numbered),
    "…/slices/IM1_4711.dcm",
)


# %% [markdown]
# Whatever goes wrong with a label object, contours or a segmentation, is told in one line.

# %%
#| export
class DicomFile(NamedTuple):
    "A DICOM file and its header."
    path: Path
    header: "Dataset" # without pixels

    def shown(self, src: Path) -> str:
        "Its path as a message may show it."
        return path_without_patient(self.path, src, self.header)

class Misfit(InputError):
    "Why a label object does not fit its series; `label_errors` says which one it is."


# %%
#| export
@contextlib.contextmanager
def label_errors(file: DicomFile, src: Path):
    "Tell whatever goes wrong with a label object in one line."
    try: yield
    except Misfit as e:
        raise InputError(f"{file.shown(src)}: {e}") from None
    except InputError: raise
    except Exception as e:
        raise InputError(f"{file.shown(src)}: its {file.header.Modality} does not fit "
                         f"the series or is damaged ({type(e).__name__}); export it again") from None


# %%
file = DicomFile(clinic/"axial"/"IM0000", header)
def damaged():
    with label_errors(file, clinic): raise KeyError("ContourSequence")
test_fail(damaged, contains="axial/IM0000: its CT does not fit the series or is damaged (KeyError)")

# %% [markdown]
# ## Reading a heap
#
# What is not DICOM is passed over, and so are scout images, plans, doses and reports. Segmentations and contours are set aside as
# labels. An image of another modality is an error, since someone will believe that it was used.

# %%
#| export
_LABELS = ("RTSTRUCT", "SEG")
_PASSED_OVER = {"RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "REG", "DOC", "OT", "FID", "RWV"}  # no CT
_DICOMDIR = "1.2.840.10008.1.3.10"  # a table of contents

def _dicom_paths(folder: Path) -> list[Path]:
    "The DICOM files of a folder in natural order; a folder may hold anything beside them."
    paths = []
    for path in sorted(folder.iterdir(), key=lambda p: natural_key(p.name)):
        if not path.is_file() or path.name.startswith("."): continue
        with open(path, "rb") as f:
            if f.read(132)[128:] == b"DICM": paths.append(path)
    return paths


# %%
(clinic/"axial"/"notes.txt").write_text("not DICOM")
print(len(_dicom_paths(clinic/"axial")), "of", len(list((clinic/"axial").iterdir())), "files are DICOM")


# %%
#| export
def _is_ct(file: DicomFile, src: Path) -> bool:
    "Is this a CT image? `False` for what is passed over, `InputError` for an image of another modality."
    header = file.header
    modality = str(header.get("Modality", ""))
    if modality in _PASSED_OVER or "LOCALIZER" in (header.get("ImageType") or []):
        return False
    if header.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR:
        return False
    if modality != "CT":
        raise InputError(f"{file.shown(src)}: modality {modality or 'not told'}, expected CT; "
                         "take this series out of the folder")
    return True


# %%
print(_is_ct(file, clinic))
write_series(clinic/"dose", head_planes(1, gaps=[]), Modality="RTDOSE")
dose = next((clinic/"dose").iterdir())
print(_is_ct(DicomFile(dose, pydicom.dcmread(dose, stop_before_pixels=True)), clinic))


# %%
#| export
def read_headers(
    folder: Path,
    src: Path, # the source of the import, for messages
) -> tuple[list[DicomFile], list[DicomFile]]: # the CT images, the label objects
    "The headers of one folder. Raises `InputError` for a damaged file and for images of another modality."
    pydicom = import_volumes_package("pydicom")
    images, labels, damaged = [], [], []
    for path in _dicom_paths(folder):
        try: header = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:
            damaged.append(path)
            continue
        file = DicomFile(path, header)
        if str(header.get("Modality", "")) in _LABELS: labels.append(file)
        elif _is_ct(file, src): images.append(file)
    if damaged:
        neighbours = [file.header for file in images[:1]]  # a damaged header cannot say what to blot out
        shown = path_without_patient(damaged[0], src, *neighbours)
        raise InputError(f"{shown}: a damaged DICOM file; copy it again")
    return images, labels


# %%
print(
    [len(files) for files in read_headers(clinic/"axial", clinic)],
    [len(files) for files in read_headers(clinic/"dose", clinic)],
)
write_series(clinic/"magnet", head_planes(1, gaps=[]), Modality="MR")
test_fail(lambda: read_headers(clinic/"magnet", clinic), contains="modality MR, expected CT")


# %% [markdown]
# ## What a header must say
#
# Three attributes place a slice ([DICOM PS3.3
# C.7.6.2.1.1](https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.2.html#sect_C.7.6.2.1.1)):
# `ImagePositionPatient`, the centre of its first pixel in mm; `ImageOrientationPatient`, the directions $X$ in which columns grow
# and $Y$ in which rows grow; and `PixelSpacing`, first between rows, then between columns. Two more turn pixels into Hounsfield units.
# A value that is missing or malformed is named.

# %%
#| export
def header_value(header, tag: str, where: str):
    """The value of an element, `None` if it is empty.

    Raises `InputError` if it is malformed; pydicom parses it only now.
    """
    try: value = header.get(tag)
    except Exception:
        raise InputError(f"{where}: {tag} cannot be read, it is malformed; export the series again") from None
    return None if value == "" else value


# %%
print(header_value(header, "PixelSpacing", "IM0000"), header_value(header, "PatientWeight", "IM0000"))

# %%
#| export
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
          "SOPInstanceUID", "SeriesInstanceUID")
_COUNTS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2,
           "RescaleSlope": 1, "RescaleIntercept": 1}  # how many numbers each holds

def _check_present(header, where: str):
    "`InputError` for a header that lacks something."
    if not header.file_meta.get("TransferSyntaxUID"):
        raise InputError(f"{where}: TransferSyntaxUID is missing, so its pixels cannot be read; "
                         "export the series again")
    for tag in _PLACE:
        if header_value(header, tag, where) is None:
            raise InputError(f"{where}: {tag} is missing, so its place is not known; export the series again")
    for tag in ("RescaleSlope", "RescaleIntercept"):
        if header_value(header, tag, where) is None:
            raise InputError(f"{where}: no RescaleSlope and RescaleIntercept, "
                             "so there are no Hounsfield units; "
                             "export the original series")


# %%
without = pydicom.dcmread(clinic/"axial"/"IM0000", stop_before_pixels=True)
del without.ImagePositionPatient
test_fail(lambda: _check_present(without, "IM0000"), contains="ImagePositionPatient is missing")

# %%
#| export
_MAY_LACK = ("GantryDetectorTilt", "SliceThickness", "InstanceNumber", "NumberOfFrames", "SamplesPerPixel")

def _numbers(header, tag: str) -> np.ndarray:
    "The numbers an element holds; none if they are not numbers."
    try: return np.array(header.get(tag), float).reshape(-1)
    except (TypeError, ValueError): return np.zeros(0)


# %%
print(_numbers(header, "PixelSpacing"), _numbers(header, "Modality"))


# %%
#| export
def check_header(header, where: str):
    "Raise `InputError` unless a header has, well formed, all it takes to place the slice and read it."
    _check_present(header, where)
    for tag, count in _COUNTS.items():
        values = _numbers(header, tag)
        positive = tag == "PixelSpacing"
        fits = len(values) == count and np.isfinite(values).all()
        if not fits or (positive and values.min() <= 0):
            expected = f"{count} {'positive ' if positive else ''}{'numbers' if count > 1 else 'number'}"
            raise InputError(f"{where}: {tag} is {str(header.get(tag))[:60]!r}, expected {expected}; "
                             "export the series again")
    for tag in _MAY_LACK:
        value = header_value(header, tag, where)
        try: float(value or 0)
        except (TypeError, ValueError):
            raise InputError(f"{where}: {tag} is {str(value)[:60]!r}, expected one number; "
                             "export the series again") from None


# %%
check_header(header, "IM0000")
odd = pydicom.dcmread(clinic/"axial"/"IM0000", stop_before_pixels=True)
odd.PixelSpacing = [0, 2.5]
test_fail(lambda: check_header(odd, "IM0000"), contains="expected 2 positive numbers")

# %% [markdown]
# ## One series a folder
#
# Two series in one folder would be stacked into each other. Even within one series everything that makes up the grid has to agree.
# The message names the first file that differs.

# %%
#| export
_SAME = {
    "SeriesInstanceUID": "series",
    "PatientID": "patients",
    "FrameOfReferenceUID": "frames of reference",
    "Rows": "sizes",
    "Columns": "sizes",
    "PixelSpacing": "pixel spacings",
    "ImageOrientationPatient": "orientations",
}

def _differing(header, other) -> str:
    "What two headers of one series differ in; \"\" if they agree."
    for tag, what in _SAME.items():
        a, b = header.get(tag), other.get(tag)
        measured = tag in ("PixelSpacing", "ImageOrientationPatient")
        agree = np.allclose(a, b, atol=1e-4) if measured else a == b
        if not agree: return what
    return ""


# %%
print(repr(_differing(header, header)), _differing(header, odd))


# %%
#| export
def check_one_series(images: list[DicomFile], src: Path):
    "Raise `InputError` unless the headers are complete and belong to one series on one grid."
    first = images[0]
    for file in images:
        where = path_without_patient(file.path, src, file.header, first.header)
        if int(header_value(file.header, "NumberOfFrames", where) or 1) > 1:
            raise InputError(f"{where}: an enhanced multi-frame CT; "
                             "convert it to single-frame CT images first")
        check_header(file.header, where)
        if int(file.header.get("SamplesPerPixel", 1)) != 1:
            raise InputError(f"{where}: a colour image, expected CT; take it out of the folder")
        what = _differing(file.header, first.header)
        if what:
            raise InputError(f"{where}: mixed slices, two {what} in one folder "
                             f"(it differs from {first.shown(src)}); "
                             "give each series a folder of its own")


# %%
images, _ = read_headers(clinic/"axial", clinic)
check_one_series(images, clinic)
write_series(clinic/"second", head_planes(2))
mixed = images + read_headers(clinic/"second", clinic)[0]
test_fail(lambda: check_one_series(mixed, clinic), contains="two series in one folder")

# %%
#| hide
shutil.rmtree(work)
