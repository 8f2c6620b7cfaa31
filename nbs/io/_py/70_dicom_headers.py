# %% [markdown]
# # DICOM headers
#
# > What the header of a slice must say, and what no message may repeat.

# %%
#| default_exp io.dicom_headers

# %%
#| export
import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ctseg.core.errors import InputError
from ctseg.core.paths import refuse_unread
from ctseg.data.images import natural_key
from ctseg.io.volumes import import_volumes_package
from ctseg.io.walk import is_visible

if TYPE_CHECKING:
    from pydicom import Dataset

# %%
#| hide
import shutil
import tempfile

import pydicom
from fastcore.test import test_eq, test_fail

from ctseg.io.toy_dicom import clinic_planes, head_planes, write_series

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
def vr_of(header, tag) -> str:
    "The type of an element, without parsing its value; \"\" if it is not known."
    vr = header.get_item(tag).VR
    if vr: return str(vr)
    known = import_volumes_package("pydicom.datadict")
    return known.dictionary_VR(tag) if known.dictionary_has_tag(tag) else ""

def _dates(header) -> list[str]:
    "The dates in a header, `YYYYMMDD`."
    dates = []
    for tag in header.keys():
        if vr_of(header, tag) != "DA": continue
        with contextlib.suppress(Exception):  # an element is parsed only now, and may be malformed
            if header[tag].value: dates.append(str(header[tag].value))
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
_NOBODY = {"ct", "dcm", "dicom", "image", "images", "series", "scan", "slice", "slices", "study", "patient",
           "anonymous", "anonymized", "phantom"}  # words of files, which stand for a name where there is none

def _name_pattern(name: str) -> list[str]:
    "Patterns for the words of a name, also for several run together: `DoeJane`."
    words = {word for word in re.findall(r"[^\W\d_]{2,}", name) if word.lower() not in _NOBODY}
    words = sorted(words, key=lambda word: (-len(word), word))
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


# %% [markdown]
# Where every folder is called by its patient, nothing would be left to tell them apart. So a folder whose name is blotted out says which one
# of its neighbours it is: `…(2 of 3)`.

# %%
#| export
def _rank(folder: Path) -> str:
    "Which of the visible folders beside it a folder is, in natural order; \"\" if it is the only one."
    beside = [other.name for other in folder.parent.iterdir() if is_visible(other) and other.is_dir()]
    if len(beside) < 2 or folder.name not in beside: return ""
    return f"({sorted(beside, key=natural_key).index(folder.name) + 1} of {len(beside)})"

def _with_ranks(text: str, path: Path, src: Path) -> str:
    "A path of which parts are blotted out, with the rank of each folder that is."
    shown, parts = text.split("/"), path.relative_to(src).parts
    if len(shown) != len(parts): return text
    for i, (part, name) in enumerate(zip(parts, shown)):
        folder = src.joinpath(*parts[:i + 1])
        if part != name and folder.is_dir(): shown[i] += _rank(folder)
    return "/".join(shown)


# %%
for name in ("Doe", "Poe", "Roe"): (clinic/"by name"/name).mkdir(parents=True)
print(_with_ranks("by name/…/IM3", clinic/"by name"/"Poe"/"IM3", clinic))
shutil.rmtree(clinic/"by name")


# %%
#| export
def path_without_patient(
    path: Path,
    src: Path, # the source of the import
    *headers, # of the file or of its series
    patterns: Iterable[str] = (), # further ones, such as `PatientNames` collects
) -> str:
    "The path below `src` as a message may show it: without what the headers say of the patient."
    text = path.relative_to(src).as_posix() if path != src else src.name
    if path.is_dir(): text += "/"
    of_headers = [pattern for header in headers for pattern in _identifying(header)]
    for pattern in dict.fromkeys([*of_headers, *sorted(patterns)]):
        text = re.sub(pattern, "…", text, flags=re.IGNORECASE)
    return _with_ranks(text.rstrip("/"), path, src)


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
# A damaged or a de-identified file cannot say whose folder it lies in, but its neighbours can. So what any file of a folder tells is blotted
# out of every path into that folder.

# %%
#| export
def tells_patient(text: str, header) -> bool:
    "Does a text hold what a header says of the patient: a name, a number, a day?"
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in _identifying(header))

class PatientNames:
    "What the files below a source tell of their patients, folder by folder."
    def __init__(self, src: Path):
        self.src = src
        self._told: dict[Path, set[str]] = {}

    def learn(self, path: Path, header):
        "Remember what a file says, for its folder and for those above it."
        patterns = _identifying(header)
        for folder in path.parents:
            if folder == self.src and path.parent != self.src: break
            self._told.setdefault(folder, set()).update(patterns)
            if folder == self.src: break

    def patterns(self, path: Path) -> frozenset[str]:
        "What to blot out of the path of a file."
        by_folder = (self._told.get(folder, set()) for folder in path.parents)
        return frozenset().union(*by_folder)

    def shown(self, path: Path) -> str:
        "The path of a file as a message may show it."
        return path_without_patient(path, self.src, patterns=self.patterns(path))


# %%
names = PatientNames(clinic)
names.learn(clinic/"Planted"/"ct"/"IM0001", header)
print(names.shown(clinic/"Planted"/"rt"/"damaged.dcm"), names.shown(clinic/"Another"/"IM0001"))


# %% [markdown]
# Whatever goes wrong with a label object, contours or a segmentation, is told in one line.

# %%
#| export
class DicomFile(NamedTuple):
    "A DICOM file and its header."
    path: Path
    header: "Dataset" # without pixels
    patterns: frozenset[str] = frozenset() # what its neighbours say of the patient, to be blotted out
    frame: int = 0 # of an image with many

    def shown(self, src: Path) -> str:
        "Its path as a message may show it."
        return path_without_patient(self.path, src, self.header, patterns=self.patterns)

    def shown_folder(self, src: Path) -> str:
        "The path of its folder as a message may show it."
        return path_without_patient(self.path.parent, src, self.header, patterns=self.patterns)

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
    except Exception as e:  # what pydicom and NumPy make of values that no standard allows
        refuse_unread(file.shown(src), e)
        raise InputError(f"{file.shown(src)}: its {file.header.Modality} does not fit "
                         f"the series or is damaged ({type(e).__name__}); export it again") from None


# %%
file = DicomFile(clinic/"axial"/"IM0000", header)
def damaged():
    with label_errors(file, clinic): raise KeyError("ContourSequence")
test_fail(damaged, contains="axial/IM0000: its CT does not fit the series or is damaged (KeyError)")


# %% [markdown]
# Headers hold sequences, and these hold items, which are made here in one line.

# %%
#| export
def dicom_item(**tags):
    "An item of a DICOM sequence, with these tags."
    item = import_volumes_package("pydicom").Dataset()
    for tag, value in tags.items(): setattr(item, tag, value)
    return item


# %%
print(dicom_item(ROINumber=1, ROIName="Eye L"))


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
def is_compressed(header) -> bool:
    "Are the pixels compressed? Not so of a file whose transfer syntax pydicom does not know."
    try: return header.file_meta.TransferSyntaxUID.is_encapsulated
    except ValueError: return False

def syntax_problem(header) -> str:
    "Why nothing reads the pixels of a file, and what to do; empty if a decoder does, or would if it were installed."
    syntax = header.file_meta.TransferSyntaxUID
    try:
        import_volumes_package("pydicom.pixels").get_decoder(syntax)
    except NotImplementedError:
        named = f"{syntax.name} ({syntax})" if syntax.name != syntax else str(syntax)[:64]
        return (f"its pixels are in the transfer syntax {named}, which pydicom cannot decode; "
                "convert it to Explicit VR Little Endian (`gdcmconv --raw IN OUT`), or export it so")
    return ""


# %%
odd = pydicom.Dataset()
odd.file_meta = pydicom.dataset.FileMetaDataset()
odd.file_meta.TransferSyntaxUID = "1.2.3"
print(is_compressed(odd), syntax_problem(odd))


# %%
#| export
def header_value(header, tag: str, where: str):
    """The value of an element, `None` if it is empty.

    Raises `InputError` if it is malformed; pydicom parses it only now.
    """
    try: value = header.get(tag)
    except Exception:  # each kind of value has errors of its own
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


# %%
#| export
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
        expected = f"{count} {'numbers' if count > 1 else 'number'}"
        fits = len(values) == count and np.isfinite(values).all()
        if tag == "PixelSpacing":
            expected = f"{count} positive numbers"
            fits = fits and values.min() > 0
        if not fits:
            raise InputError(f"{where}: {tag} is {str(header.get(tag))[:60]!r}, expected {expected}; "
                             "export the series again")
    if not _numbers(header, "RescaleSlope").all():
        raise InputError(f"{where}: RescaleSlope is 0, so all its values are one; export the original series")
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
# ## One series, one grid
#
# Two series would be stacked into each other. Even within one series everything that makes up the grid has to agree. The message names
# the first file that differs.

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
        where = file.shown(src)
        if int(header_value(file.header, "NumberOfFrames", where) or 1) > 1:
            raise InputError(f"{where}: a multi-frame image of a single-frame class; "
                             "convert it to single-frame CT images first")
        check_header(file.header, where)
        what = _differing(file.header, first.header)
        if what:
            raise InputError(f"{where}: mixed slices, two {what} in one folder "
                             f"(it differs from {first.shown(src)}); "
                             "give each series a folder of its own")


# %%
images = [
    DicomFile(path, pydicom.dcmread(path, stop_before_pixels=True))
    for path in sorted((clinic/"axial").iterdir())
]
check_one_series(images, clinic)
write_series(clinic/"second", head_planes(2), PixelSpacing=[1, 1])
path = next((clinic/"second").iterdir())
mixed = images + [DicomFile(path, pydicom.dcmread(path, stop_before_pixels=True))]
test_fail(lambda: check_one_series(mixed, clinic), contains="in one folder")

# %%
#| hide
shutil.rmtree(work)
