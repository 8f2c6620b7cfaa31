# %% [markdown]
# # A heap of DICOM files
#
# > What is a CT image, what is a label, and what is passed over and counted.

# %%
#| default_exp io.dicom_heap

# %%
#| export
import contextlib
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ctseg.core.filetypes import called_nifti, check_folder, content_of
from ctseg.io.dicom_headers import DicomFile, Misfit, PatientNames
from ctseg.io.volumes import import_volumes_package
from ctseg.io.walk import folders_below, foreign_kind, is_visible, visible_files

# %%
#| hide
import shutil
import tempfile

import pydicom
from fastcore.test import test_eq, test_fail

from ctseg.io.toy_dicom import clinic_planes, head_planes, write_series

# %% [markdown]
# A hospital's export holds whatever the archive had of a patient: the CT, a dose report as a picture, two scouts, the PET beside it, a plan,
# and a file or two that no viewer opens. Here is such a heap.

# %%
work = Path(tempfile.mkdtemp())
clinic = work/"clinic"
write_series(clinic/"axial", clinic_planes()["axial"])
for name, modality in (("dose", "RTDOSE"), ("magnet", "MR")):
    write_series(clinic/name, head_planes(2), Modality=modality, SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
(clinic/"axial"/"notes.txt").write_text("not DICOM")


# %% [markdown]
# ## Reading a file
#
# A DICOM file begins with 128 free bytes and the letters `DICM`. Planning systems and archives also write files without them, which begin
# with the first element at once: a number of group 2 or 8. Such a file says nothing of how it is encoded, so pydicom finds it out.

# %%
#| export
def _starts_with_element(start: bytes) -> bool:
    "Do these bytes look like the first element of a data set? The last byte first (big endian) only with its type."
    if len(start) < 8: return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    if start[:2] in (b"\0\x02", b"\0\x08"): return explicit and start[2] < 0x12
    number, length = struct.unpack("<H", start[2:4])[0], struct.unpack("<I", start[4:8])[0]
    return start[:2] in (b"\x02\0", b"\x08\0") and number < 0x1200 and (explicit or length < 256)

def _start_of(path: Path) -> bytes:
    "The first bytes of a file."
    with open(path, "rb") as f: return f.read(132)

def has_preamble(path: Path) -> bool:
    "Does a file say of itself that it is DICOM?"
    return _start_of(path)[128:] == b"DICM"

def is_dicom(path: Path) -> bool:
    "Is this a DICOM file, with its preamble or without?"
    start = _start_of(path)
    return start[128:] == b"DICM" or _starts_with_element(start)


# %%
scan = next((clinic/"axial").glob("IM*"))
print(is_dicom(scan), is_dicom(clinic/"axial"/"notes.txt"))
(work/"bare").write_bytes(scan.read_bytes()[132:])
print("without its preamble:", is_dicom(work/"bare"))


# %%
#| export
def _complete_meta(ds):
    "Give a data set without a file header the transfer syntax that it was read with."
    if ds.file_meta.get("TransferSyntaxUID") or getattr(ds, "preamble", None):
        return
    uid = import_volumes_package("pydicom.uid")
    implicit, little = ds.original_encoding
    explicit_syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit_syntax

def _mend_kinds(ds):
    "Elements of a kind of value that no standard knows, after a flipped bit perhaps, are of the kind of their tag."
    known = set(import_volumes_package("pydicom.valuerep").VR)
    for element in list(ds.values()):  # not parsed yet
        if element.VR is not None and element.VR not in known:
            ds[element.tag] = element._replace(VR="UN")  # pydicom then looks the tag up

def read_file(path: Path, pixels: bool = True, tags: list[str]|None = None):
    "A DICOM data set, also of a file without a preamble. `tags`: only these elements."
    pydicom = import_volumes_package("pydicom")
    ds = pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=tags, force=True)
    if not hasattr(ds, "file_meta"):
        ds.file_meta = pydicom.dataset.FileMetaDataset()
    _complete_meta(ds)
    _mend_kinds(ds)
    return ds


# %%
print(read_file(work/"bare", pixels=False).Modality, read_file(scan, tags=["Rows"]).Rows)

# %% [markdown]
# ## What kind of object
#
# The *SOP class* says what an object is. Its `Modality` only says which machine it comes from, and a screenshot of a dose report has `CT` there
# as well.

# %%
#| export
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = {CT_IMAGE + ".1", CT_IMAGE + ".2"}  # many frames in one file
_SEGMENTATION = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}
_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_DICOMDIR = "1.2.840.10008.1.3.10"  # a table of contents

def sop_class(header) -> str:
    "The SOP class of an object, \"\" if it is not told."
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")


# %%
print(sop_class(read_file(scan, pixels=False)) == CT_IMAGE)


# %%
#| export
def _picture(header) -> str:
    "Why a CT image is no slice of a scan; \"\" if it may be one."
    kind = [str(value).upper() for value in header.get("ImageType") or []]
    if "LOCALIZER" in kind: return "scout"
    if "SCREEN SAVE" in kind: return "screen save"
    coloured = str(header.get("PhotometricInterpretation") or "").startswith("PALETTE")
    if coloured or int(header.get("SamplesPerPixel") or 1) > 1:
        return "colour picture"
    return ""

def _class_name(uid: str, modality: str) -> str:
    "What to call an object that is neither a CT image nor a label."
    name = import_volumes_package("pydicom.uid").UID(uid).name if uid else ""
    if "Secondary Capture" in name: return "secondary capture"
    if modality == "CT": return "CT object without an image"
    return modality or (name if name and name != uid else "unknown object")


# %%
#| export
def kind_of(header) -> str:
    "`ct`, `label`, \"\" for a table of contents; anything else is passed over, and this is its name."
    uid, modality = sop_class(header), str(header.get("Modality") or "").upper()
    if uid == _DICOMDIR: return ""
    if uid in _SEGMENTATION or uid == _STRUCTURE_SET: return "label"
    if not uid and modality in ("SEG", "RTSTRUCT"): return "label"
    if uid == CT_IMAGE or uid in ENHANCED_CT or (not uid and modality == "CT"):
        contradicted = modality not in ("CT", "")
        return modality if contradicted else _picture(header) or "ct"
    return _class_name(uid, modality)


# %%
def object_of(uid, **tags):
    header = pydicom.Dataset()
    header.file_meta, header.SOPClassUID = pydicom.dataset.FileMetaDataset(), uid
    for tag, value in tags.items(): setattr(header, tag, value)
    return header

print(kind_of(object_of(CT_IMAGE)), kind_of(object_of("1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG")))
print(
    kind_of(object_of("1.2.840.10008.5.1.4.1.1.7", Modality="CT")),
    "|",
    kind_of(object_of("1.3.12.2.1107.5.9.1", Modality="CT")),
)
print(
    kind_of(object_of(CT_IMAGE, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    "|",
    kind_of(object_of(CT_IMAGE, Modality="PT")),
)


# %% [markdown]
# ## Looking through folders
#
# Every file is looked at once, and only a few elements of it are read. What is kept is small, since there may be a million files. A damaged
# file is noted with its path and reported by whoever reads the heap.

# %%
#| export
class Entry(NamedTuple):
    "What is remembered of a CT image or a label."
    path: Path
    series: str # SeriesInstanceUID, and the patient: bad anonymisers give all patients the same numbers
    instance: str # SOPInstanceUID
    position: tuple[str, ...] # as written
    order: int # of the folder it lies in

@dataclass
class Heap:
    "What lies below a folder."
    src: Path
    images: list[Entry] = field(default_factory=list)
    labels: list[Entry] = field(default_factory=list)
    passed_over: Counter = field(default_factory=Counter) # name of the kind → number of files
    damaged: list[Path] = field(default_factory=list)
    refused: dict[Path, OSError] = field(default_factory=dict) # of these: what the system does not give
    names: PatientNames = None

    def refuse(self, path: Path, error: OSError):
        "Note what the system does not give."
        self.damaged.append(path)
        self.refused[path] = error

    def file(self, entry: Entry) -> DicomFile:
        "The file with its header."
        return DicomFile(entry.path, read_file(entry.path, pixels=False), self.names.patterns(entry.path))


# %%
#| export
_FIRST_LOOK = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID",
    "Modality", "ImageType", "SamplesPerPixel", "PhotometricInterpretation", "ImagePositionPatient",
    "PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyID",
    "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate",
]

def _text_of(header, tag: str) -> str:
    "An element as text; \"\" if it is missing or malformed."
    try: return str(header.get(tag) or "")
    except Exception: return ""  # pydicom parses a value only now

def _position_of(header) -> tuple[str, ...]:
    "Where an image lies, as written; empty if it does not say so."
    try: return tuple(map(str, header.get("ImagePositionPatient") or ()))
    except Exception: return ("malformed",)


# %%
#| export
def _unreadable(path: Path, heap: Heap):
    "Note a file that says it is DICOM as damaged; one without a preamble may be anything, and is counted."
    if has_preamble(path): heap.damaged.append(path)
    else: heap.passed_over["unreadable file"] += 1


# %%
#| export
def _look_at(path: Path, heap: Heap, order: int):
    "Put a file into a heap: as an image, a label, passed over or damaged."
    try:
        header = read_file(path, pixels=False, tags=_FIRST_LOOK)
        kind = kind_of(header)
    except (OSError, MemoryError): raise
    except Exception:  # pydicom raises many kinds for a damaged file
        _unreadable(path, heap)
        return
    heap.names.learn(path, header)
    series = _text_of(header, "SeriesInstanceUID")
    if kind == "ct" and not series: heap.damaged.append(path)
    elif kind == "unknown object": _unreadable(path, heap)
    elif kind in ("ct", "label"):
        patient = _text_of(header, "PatientID").strip() or _text_of(header, "PatientName")
        instance = _text_of(header, "SOPInstanceUID")
        entry = Entry(path, f"{series} {patient}", instance, _position_of(header), order)
        (heap.images if kind == "ct" else heap.labels).append(entry)
    elif kind: heap.passed_over[kind] += 1


# %% [markdown]
# A file that is no DICOM is counted where it may hold images after all: [archives and volumes of other programs](08_walk.ipynb), what is
# called `.dcm` and is something else, and a file without an ending that holds nothing, or no text: a copy that was cut off. Pictures and notes
# are not.

# %%
#| export
_CALLED_DICOM = (".dcm", ".dicom", ".dic", ".ima")

def _called_dicom(path: Path) -> bool:
    "May a file be a DICOM by its name? Many have no ending, or only the last number of a UID."
    named = path.name.lower().endswith(_CALLED_DICOM)
    ending = path.suffix.removeprefix(".")
    if named or (ending and not ending.isdigit()): return named
    return not _is_text(_start_of(path))

def _is_text(start: bytes) -> bool:
    "Are these the first bytes of a text? None are not."
    return bool(start) and all(byte >= 32 or byte in b"\t\n\f\r" for byte in start)


# %%
print([_is_text(start) for start in (b"", bytes(132), b"notes\n", "Größe".encode())])


# %%
#| export
def _other_kind(path: Path) -> str:
    "What to count a file as that is no DICOM; \"\": it is not counted."
    kind = foreign_kind(path.name)
    if kind or not _called_dicom(path): return kind
    packed = content_of(path).startswith(("an archive", "packed"))
    return "packed file" if packed else "unreadable file"


# %%
(clinic/"axial"/"page.dcm").write_text("<html>403</html>")
(clinic/"axial"/"README").write_text("notes")
(clinic/"axial"/"IM0099").write_bytes(scan.read_bytes()[:100])
names = ("page.dcm", "notes.txt", "a.zip", "README", "IM0099")
test_eq([_other_kind(clinic/"axial"/name) for name in names],
        ["unreadable file", "", "packed file", "", "unreadable file"])


# %%
#| export
def _sort_in(path: Path, heap: Heap, order: int):
    "Put a file into a heap; one that may not be read counts as damaged."
    read_elsewhere = called_nifti(path)  # whatever is in it
    if read_elsewhere or path.name.lower() == "dicomdir": return
    try:
        if is_dicom(path): return _look_at(path, heap, order)
    except OSError as e: return heap.refuse(path, e)
    other = _other_kind(path)
    if other: heap.passed_over[other] += 1


# %%
heap = Heap(clinic, names=PatientNames(clinic))
for path in sorted((clinic/"axial").iterdir())[-3:]: _sort_in(path, heap, 0)
print(len(heap.images), dict(heap.passed_over))


# %%
#| export
def _count_odd(folder: Path) -> int:
    "How many visible entries of a folder are neither files nor folders."
    with contextlib.suppress(OSError):
        return sum(is_visible(path) and not path.is_file() and not path.is_dir() for path in folder.iterdir())
    return 0

def read_heap(
    src: Path,
    deep: bool = True, # also the folders below it
) -> Heap:
    "Look at every file of a folder. Damaged ones are noted, others are passed over and counted."
    import_volumes_package("pydicom")
    check_folder(src, "DICOM CT series")
    heap = Heap(src, names=PatientNames(src))
    for order, folder in enumerate(folders_below(src) if deep else [src]):
        paths = []
        try: paths += visible_files(folder)
        except OSError as e: heap.refuse(folder, e)
        for path in paths: _sort_in(path, heap, order)
        heap.passed_over["pipe, device or link to nowhere"] += _count_odd(folder)
    heap.passed_over += Counter()  # kinds of which there is none go
    return heap


# %%
heap = read_heap(clinic)
print(len(heap.images), "images,", len(heap.labels), "labels, passed over:", dict(heap.passed_over))
(clinic/"axial"/"cut off").write_bytes(scan.read_bytes()[:200])
test_eq([path.name for path in read_heap(clinic).damaged], ["cut off"])
test_fail(lambda: read_heap(clinic/"nowhere"), contains="no such folder")

# %% [markdown]
# ## Many frames in one file
#
# An *enhanced* CT holds a whole series in one file. What all frames share and what each has for itself lies in *functional groups*. A
# frame is made to look like a slice of its own, so that the rest of the package need not know.

# %%
#| export
_OF_FRAMES = {  # functional group → the elements in it that place and scale a frame, or tell its phase
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameContentSequence": (
        "TemporalPositionIndex", "StackID", "FrameAcquisitionNumber", "FrameAcquisitionDateTime",
        "FrameReferenceDateTime",
    ),
    "CardiacSynchronizationSequence": ("NominalPercentageOfCardiacPhase",),
    "RespiratorySynchronizationSequence": ("NominalPercentageOfRespiratoryPhase",),
    "CTImageFrameTypeSequence": ("FrameType",),
}

def frame_item(frame, shared, sequence: str):
    "The item of a functional group that belongs to a frame, or to all of them; `None` if there is none."
    items = frame.get(sequence) or shared.get(sequence)
    return items[0] if items else None


# %%
#| export
def _frame_header(header, shared, frame, number: int):
    "The header of a frame (1 … n) of an enhanced image: what holds for all frames, and what is its own."
    own = import_volumes_package("pydicom").Dataset()
    own.update({e.tag: e for e in header if e.VR != "SQ" and e.keyword != "NumberOfFrames"})
    own.file_meta = header.file_meta
    own.InstanceNumber = number
    for sequence, tags in _OF_FRAMES.items():
        item = frame_item(frame, shared, sequence)
        given = [] if item is None else [tag for tag in tags if tag in item]
        for tag in given: setattr(own, tag, item[tag].value)
    return own


def frame_headers(header) -> list:
    """A header for each frame of an enhanced image, as if it were a slice of its own.

    Raises `Misfit` unless it says of each frame where it lies.
    """
    pydicom = import_volumes_package("pydicom")
    shared = (header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    places = header.get("PerFrameFunctionalGroupsSequence") or []
    frames = int(header.get("NumberOfFrames") or 0)
    if frames != len(places):
        raise Misfit(f"it has {frames} frames and says of {len(places)} where they lie; export it again")
    return [_frame_header(header, shared, frame, number) for number, frame in enumerate(places, 1)]


# %%
group = pydicom.Dataset()
place = pydicom.Dataset()
place.ImagePositionPatient = [0, 0, 5]
group.PlanePositionSequence = [place]
many = object_of(CT_IMAGE + ".1", NumberOfFrames=1, PerFrameFunctionalGroupsSequence=[group], Rows=4)
print([(one.ImagePositionPatient, one.Rows) for one in frame_headers(many)])
shutil.rmtree(work)
