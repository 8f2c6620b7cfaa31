# %% [markdown]
# # A clinic's folders
#
# > All CT series below a folder with their contours and segmentations; the rest is counted and told.

# %%
#| default_exp io.dicom

# %%
#| export
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ctseg.core.errors import InputError, some_of
from ctseg.core.paths import unread
from ctseg.io.dicom_headers import DicomFile, Misfit, path_without_patient
from ctseg.io.dicom_heap import Entry, Heap, read_file, read_heap
from ctseg.io.dicom_references import find_about, references, slim_label
from ctseg.io.dicom_series import Series, make_series, slices_in
from ctseg.io.geometry import slice_axes
from ctseg.io.walk import foreign_hint, instead_of_scans

# %%
#| hide
import shutil
import tempfile

import pydicom
from fastcore.test import test_fail

from ctseg.io.toy_dicom import clinic_planes, head_planes, write_contours, write_series


# %% [markdown]
# One call reads a single series.

# %%
#| export
def read_series(
    folder, # the files of one CT series
    gaps: bool = False, # take a gap that looks like a missing slice as it is
) -> tuple[Series, np.ndarray]: # the series; voxels float32 [columns, rows, slices], Hounsfield units
    "Read a DICOM CT series. Raises `InputError` unless it is one complete volume."
    folder = Path(folder)
    heap = read_heap(folder, deep=False)
    _refuse_damaged(heap)
    if not heap.images: raise _no_images(heap)
    numbers = {entry.series for entry in heap.images}
    if len(numbers) > 1:
        raise InputError(f"{folder}: mixed slices, {len(numbers)} series in one folder; "
                         "give each a folder of its own")
    try:
        slices = slices_in(heap)
    except Misfit as e:
        raise InputError(_misfit(heap, heap.images[0], e)) from None
    series = make_series(slices, folder, gaps)
    return series, series.read_voxels(folder)


# %%
#| export
def _refuse_damaged(heap: Heap):
    "`InputError` if a file of a heap is damaged."
    for path in heap.damaged: raise InputError(_damage(heap, path))

def _misfit(heap: Heap, entry: Entry, problem: Misfit) -> str:
    "What is said of a file whose parts contradict each other."
    return f"{heap.names.shown(entry.path)}: {problem}"

def _lacks_series(path: Path) -> bool:
    "Is this a DICOM file that is whole but for the number of its series?"
    try:
        header = read_file(path, pixels=False, tags=["SeriesInstanceUID", "Rows"])
        return "Rows" in header and not header.get("SeriesInstanceUID")
    except Exception:  # a damaged file
        return False

def _damage(heap: Heap, path: Path, error: Exception|None = None) -> str:
    "What is said of a damaged file, and of one that the system does not give."
    if isinstance(error, MemoryError): raise error
    error = error or heap.refused.get(path)
    if isinstance(error, OSError) and error.errno:
        return str(unread(heap.names.shown(path), error))
    if _lacks_series(path):
        return (f"{heap.names.shown(path)}: SeriesInstanceUID is missing, so nobody can tell which slices "
                "belong together; export the series again")
    return f"{heap.names.shown(path)}: a damaged DICOM file; copy it again"

def _no_images(heap: Heap) -> InputError:
    "What is said of a heap without a CT image."
    hint = instead_of_scans(heap.src, heap.passed_over)
    return InputError(f"{heap.src}: no DICOM CT images in it or in its folders{hint}")


# %%
work = Path(tempfile.mkdtemp())
clinic = work/"clinic"
planes = {name: p for name, p in clinic_planes().items() if name != "gantry tilt"}
for name, p in planes.items(): write_series(clinic/name, p)
s, hu = read_series(clinic/"oblique, unevenly spaced")
print(hu.shape, "HU", hu.min(), "to", hu.max())
write_series(work/"mr", head_planes(2), Modality="MR")
test_fail(lambda: read_series(work/"mr"), contains="passed over: 2 MR")


# %% [markdown]
# ## Which files make a series
#
# Files belong together by their `SeriesInstanceUID`. Exports from an archive put all series of a study into one folder, or one series into
# several, a hundred files each. People copy folders. So files of one series in two folders are joined unless both hold the same places; a
# file whose number and place were met before is a copy, and passed over.

# %%
#| export
def _without_copies(heap: Heap) -> list[Entry]:
    "The images of a heap. What lies in another folder a second time is counted and left away."
    first, kept = {}, []
    for entry in heap.images:
        key = entry.series, entry.instance, entry.position
        other = first.setdefault(key, entry)
        if entry.instance and other.order != entry.order:
            heap.passed_over["copy"] += 1
        else: kept.append(entry)
    return kept


# %%
#| export
def _joined(entries: list[Entry]) -> list[list[Entry]]:
    "The entries of each series, in the order of their first files."
    groups: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.series, entry.order), []).append(entry)
    joined: dict[str, list[list[Entry]]] = {}
    for (series, _), group in groups.items():
        places = {entry.position for entry in group}
        for other in joined.setdefault(series, []):
            if places.isdisjoint(entry.position for entry in other):
                other += group
                break
        else: joined[series].append(group)
    return [group for groups in joined.values() for group in groups]


# %%
shutil.copytree(clinic/"axial", work/"messy"/"a")
shutil.copytree(clinic/"axial", work/"messy"/"copy of a")
for path in clinic.glob("oblique/*"): shutil.copy(path, work/"messy"/"a"/f"oblique {path.name}")
for path in sorted((work/"messy"/"a").iterdir())[:9]:
    (work/"messy"/"part").mkdir(exist_ok=True)
    path.rename(work/"messy"/"part"/path.name)
heap = read_heap(work/"messy")
print([len(group) for group in _joined(_without_copies(heap))], dict(heap.passed_over))

# %% [markdown]
# A scan of several phases may give all of them one number. Then each place occurs several times, and another element tells the phases apart.

# %%
#| export
_PHASES = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "StackID",
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "NominalPercentageOfCardiacPhase",
    "NominalPercentageOfRespiratoryPhase",
    "TriggerTime",
    "AcquisitionTime",
    "FrameAcquisitionDateTime",
    "FrameReferenceDateTime",
    "KVP", # two energies or two kernels in one series
    "ConvolutionKernel",
    "FrameType",
)

def _place(file: DicomFile) -> str:
    "The position of a slice as a text."
    return str(file.header.get("ImagePositionPatient"))

def _by_phase(files: list[DicomFile]) -> list[list[DicomFile]]:
    "The slices of a series, phase by phase if it has several and an element says which is which."
    places = len(set(map(_place, files)))
    if places == len(files) or places < 2: return [files]
    for tag in _PHASES:
        phases = {}
        for file in files:
            phases.setdefault(str(file.header.get(tag)), []).append(file)
        whole = all(len(set(map(_place, phase))) == len(phase) == places for phase in phases.values())
        if len(phases) > 1 and whole: return list(phases.values())
    return [files]


# %%
two = slices_in(read_heap(clinic/"axial")) + slices_in(read_heap(clinic/"axial"))
print(len(_by_phase(two)), end=" ")
for k, file in enumerate(two): file.header.AcquisitionNumber = k//24
print([len(phase) for phase in _by_phase(two)])

# %% [markdown]
# ## Series in other planes
#
# Beside the axial slices there are scouts, and reformats that cut the same voxels another way. Cut as axial slices they would give pictures one
# pixel high, so they are left out and told. The same holds for images that say nothing of where they lie, and for a series that watches
# one place.

# %%
#| export
_PLANE_NAMES = ("sagittal", "coronal", "axial")

def plane_of(header) -> str:
    "The plane that an image is nearest to: axial, coronal or sagittal; \"\" if it cannot be told."
    try:
        columns, rows = np.array(header.get("ImageOrientationPatient"), float).reshape(2, 3)
    except Exception: return ""  # malformed, in any way
    normal = np.cross(columns, rows)
    return _PLANE_NAMES[int(np.abs(normal).argmax())] if normal.any() else ""

def plane_of_slicing(orientation: str) -> str:
    "The plane that slices of an orientation such as `SPL` lie in."
    axes, _ = slice_axes(np.eye(4), orientation)
    return _PLANE_NAMES[axes[0]]


# %%
print(plane_of(two[0].header), plane_of_slicing("SPL"), plane_of_slicing("AIL"))


# %% [markdown]
# A survey picture may even have the number of the series that was planned on it. So the images of one number are parted by their plane.

# %%
#| export
def _by_plane(files: list[DicomFile], orientation: str|None) -> list[list[DicomFile]]:
    "The images of a series that lie in the plane of the slicing, and the others; all together if none do, or all."
    if not orientation: return [files]
    wanted = plane_of_slicing(orientation), ""
    fitting = [file for file in files if plane_of(file.header) in wanted]
    others = [file for file in files if plane_of(file.header) not in wanted]
    return [fitting, others] if fitting and others else [files]


# %%
turned = two[30]._replace(header=pydicom.Dataset())
turned.header.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
print([len(part) for part in _by_plane([*two[:3], turned], "SPL")], len(_by_plane(two[:3], "SPL")))

# %% [markdown]
# Scanners with two energies also make maps of iodine, of effective atomic number or of electron density. They are CT images too, in other
# units: what a network has learnt of Hounsfield units does not hold there.

# %%
#| export
_HOUNSFIELD = {"", "HU", "US", "HU_MOD"}  # US: unspecified, as many write

def _unit(files: list[DicomFile]) -> str:
    "The unit of a series if it is no Hounsfield unit, else \"\"."
    units = {str(file.header.get("RescaleType") or "").strip().upper() for file in files}
    return some_of(sorted(units - _HOUNSFIELD))

def _unfit(files: list[DicomFile], orientation: str|None) -> str:
    "Why a series is left out: no places, another unit or plane, one place only. \"\" if it is not."
    if not any(file.header.get("ImagePositionPatient") for file in files):
        return "images that do not say where they lie"
    if _unit(files): return f"images in {_unit(files)}, not in Hounsfield units"
    planes = {plane_of(file.header) for file in files}
    if orientation and "" not in planes and plane_of_slicing(orientation) not in planes:
        return f"{' and '.join(sorted(planes))} images, while slices are cut as {orientation}"
    if len(files) > 2 and len(set(map(_place, files))) == 1:
        return "images of one place"
    return ""


# %%
print(
    repr(_unfit(two[:3], "SPL")),
    "|",
    _unfit(two[:3], "AIL"),
    "|",
    _unfit([two[0]._replace(header=pydicom.Dataset())], "SPL"),
)


# %%
#| export
def _without_surveys(files: list[DicomFile], src: Path, orientation, gaps: bool) -> list[list[DicomFile]]:
    "Slices, and survey pictures among them; all together if the slices are no volume without the others."
    parts = _by_plane(files, orientation)
    if len(parts) == 1: return parts
    try:
        for phase in _by_phase(parts[0]): make_series(phase, src, gaps)
    except InputError: return [files]
    return parts


# %%
print([len(part) for part in _without_surveys([*two[:24], turned], clinic, "SPL", False)])


# %% [markdown]
# ## All series of a source
#
# Contours and segmentations may lie anywhere; what they say of the series that they are about is followed
# ([references](79_dicom_references.ipynb)).

# %%
#| export
@dataclass
class LabelledSeries:
    "A series and the label objects that refer to it."
    series: Series
    labels: list[DicomFile] # RTSTRUCT and SEG; of their headers only what kind they are

    def shown(self, src: Path) -> str:
        "The folder of its files as a message may show it."
        series = self.series
        return path_without_patient(series.paths[0].parent, src, series.headers[0], patterns=series.patterns)

@dataclass
class Survey:
    "What was found below a folder."
    series: list[LabelledSeries] = field(default_factory=list)
    astray: list[DicomFile] = field(default_factory=list) # label objects about none of the series
    passed_over: Counter = field(default_factory=Counter) # files by what they are
    other_planes: list[str] = field(default_factory=list) # series left out, in words
    left_out: list[str] = field(default_factory=list) # what is damaged, in words


# %%
#| export
def _hinted(problem: InputError, heap: Heap) -> str:
    "What is wrong with a series, and what was passed over: a file that is empty may be the slice that is missing."
    return f"{problem}{foreign_hint(heap.passed_over)}"


# %%
#| export
@dataclass
class _Surveyor:
    "Reads the series of a heap one after the other."
    heap: Heap
    gaps: bool
    orientation: str|None
    skip_damaged: bool
    survey: Survey = field(default_factory=Survey)

    def fail(self, problem: InputError|str):
        "Note a problem, or raise it."
        if not self.skip_damaged: raise InputError(str(problem)) from None
        self.survey.left_out.append(str(problem))

    def read(self, entries: list[Entry]):
        "Read a series, or several phases of one."
        heap = self.heap
        try: files = slices_in(heap, entries)
        except Misfit as e: return self.fail(_misfit(heap, entries[0], e))
        except Exception as e:  # a damaged series must not hide the others
            return self.fail(_damage(heap, entries[0].path, e))
        for part in _without_surveys(files, heap.src, self.orientation, self.gaps):
            for phase in _by_phase(part): self._read_one(phase)

    def _read_one(self, files: list[DicomFile]):
        "Make a series, or note why not."
        unfit, src = _unfit(files, self.orientation), self.heap.src
        if unfit:
            self.survey.other_planes.append(f"{files[0].shown_folder(src)}: {len(files)} {unfit}")
            return
        try: series = make_series(files, src, self.gaps)
        except InputError as problem:
            # a damaged file and its gap: one fault
            reported = {path.parent for path in self.heap.damaged}
            if files[0].path.parent in reported: return
            self.fail(_hinted(problem, self.heap))
        else: self.survey.series.append(LabelledSeries(series, []))


# %%
careful = _Surveyor(read_heap(clinic), False, "SPL", True)
careful.read(careful.heap.images[:5])
careful.fail("a damaged file")
print(len(careful.survey.series), careful.survey.left_out)


# %%
#| export
def _match(entry: Entry, surveyor: _Surveyor):
    "Put a label object to the series that it is about."
    heap, survey = surveyor.heap, surveyor.survey
    try:
        file = heap.file(entry)
        about = find_about(references(file.header), [one.series for one in survey.series])
    except Exception as e:  # likewise
        return surveyor.fail(_damage(heap, entry.path, e))
    slim = slim_label(file)
    for k in about: survey.series[k].labels.append(slim)
    if not about: survey.astray.append(slim)


# %%
print(len(careful.heap.labels), "labels to match")


# %%
#| export
def survey_heap(
    heap: Heap,
    gaps: bool = False, # take gaps that look like missing slices as they are
    orientation: str|None = None, # of the slicing; series in another plane are left out. `None`: none is
    skip_damaged: bool = False, # leave out what is damaged, and say so
) -> Survey:
    "All CT series of a heap, with their label objects; there may be none."
    surveyor = _Surveyor(heap, gaps, orientation, skip_damaged)
    for path in heap.damaged: surveyor.fail(_damage(heap, path))
    for entries in _joined(_without_copies(heap)): surveyor.read(entries)
    survey = surveyor.survey
    survey.passed_over = heap.passed_over
    if survey.series:
        for entry in heap.labels: _match(entry, surveyor)
    return survey


# %%
print(len(survey_heap(read_heap(clinic), orientation="SPL").series), "series")


# %%
#| export
def survey_dicom(
    src: Path,
    gaps: bool = False, # take gaps that look like missing slices as they are
    orientation: str|None = None, # of the slicing; series in another plane are left out. `None`: none is
    skip_damaged: bool = False, # leave out what is damaged, and say so
) -> Survey:
    """All CT series below a folder, with their label objects.

    Raises `InputError` if there is none, and unless damaged ones are skipped, for any that is no volume.
    """
    heap = read_heap(src)
    survey = survey_heap(heap, gaps, orientation, skip_damaged)
    if not survey.series:
        problems = [*survey.left_out, *survey.other_planes]
        if problems:
            raise InputError(f"{src}: no CT series in it can be used; "
                             f"{len(problems)} left out, such as {problems[0]}")
        raise _no_images(heap)
    return survey


# %%
write_contours(clinic/"contours", s.headers, {"Ring": [(9, np.array([[9, 9], [20, 9], [20, 20]]))]})
write_series(clinic/"coronal", head_planes(1, gaps=[]), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
(clinic/"axial"/"damaged").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x00")
found = survey_dicom(clinic, orientation="SPL", skip_damaged=True)
for one in found.series: print(f"{one.shown(clinic):25}", one.series.shape, "label objects:", len(one.labels))
print(found.other_planes, found.left_out)
test_fail(lambda: survey_dicom(clinic), contains="axial/damaged")


# %%
#| export
def find_series(
    src: Path,
    gaps: bool, # take gaps that look like missing slices as they are
    skip_damaged: bool = False, # leave out what is damaged
) -> tuple[list[LabelledSeries], list[DicomFile]]: # the series; label objects about none of them
    "All series below a folder, with their label objects. Raises `InputError` for any that is no volume."
    survey = survey_dicom(src, gaps, skip_damaged=skip_damaged)
    return survey.series, survey.astray


# %%
(clinic/"axial"/"damaged").unlink()
found, astray = find_series(clinic, gaps=False)
print(len(found), "series, astray:", len(astray))
shutil.rmtree(work)
