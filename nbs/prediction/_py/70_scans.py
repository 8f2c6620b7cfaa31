# %% [markdown]
# # Scans
#
# > Which scans lie below a path, found without keeping any of them in memory.
#
# - skip_showdoc: true

# %%
#| default_exp prediction.scans

# %%
#| export
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ctseg.core.errors import InputError, printable
from ctseg.core.filetypes import called_nifti, check_folder
from ctseg.core.paths import real_path
from ctseg.data.images import natural_key
from ctseg.io.dicom import LabelledSeries, survey_heap
from ctseg.io.dicom_headers import path_without_patient
from ctseg.io.dicom_heap import read_heap
from ctseg.io.dicom_series import Series, series_notes
from ctseg.io.nifti import case_name, nifti_files, read_scan
from ctseg.io.nifti_layouts import is_label_folder, split_roles
from ctseg.io.volumes import Volume
from ctseg.io.walk import folders_below, instead_of_scans

# %%
#| hide
import shutil
import tempfile

import nibabel as nib
from fastcore.test import test_eq

from ctseg.io.toy_dicom import clinic_planes, write_series
from ctseg.io.toy_scans import torso_scans


# %% [markdown]
# [`ctseg segment`](../cli/45_segment.ipynb) takes an export of an archive as it is: folders of DICOM files of many patients, or NIfTI files. This page finds the scans in it. A `Scan` knows where
# one of them is and what its results are called. Its voxels are read when it is opened, so a thousand scans take no more memory than one.
#
# The toy export of this page has three DICOM series, two NIfTI volumes, and a label map beside one of them:

# %%
#| export
@dataclass
class OpenScan:
    "A scan in memory."
    volume: Volume
    series: Series | None = None # of DICOM: what results refer to


@dataclass(frozen=True)
class Scan:
    "A scan that can be opened."
    name: str # what its results are called
    source: str # its path as a message or table may show it
    kind: str # "dicom" or "nifti"
    open: Callable[[], OpenScan]
    path: Path | None = None # of the file, where it is one


@dataclass
class Found:
    "The scans below some paths, what is broken there, and what was passed over."
    scans: list[Scan] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list) # source ("": in the text), what is wrong
    passed_over: Counter = field(default_factory=Counter) # what is no scan: kind of file → how many
    notes: list[str] = field(default_factory=list) # series that were left out, and why


# %%
work = Path(tempfile.mkdtemp())
export = work/"export"
planes = clinic_planes()
for name in ("axial", "oblique", "gantry tilt"): write_series(export/name, planes[name])
torso = torso_scans()["as NIfTI likes it"]
for name in ("p1.nii.gz", "p1_seg.nii.gz", "p2.nii.gz"):
    nib.save(nib.Nifti1Image(torso.hu[::3, ::3], torso.affine), export/name)
print(*sorted(p.name for p in export.iterdir()))


# %%
#| export
def file_name(text: str) -> str:
    "A text as the name of a file: letters, digits, dots, dashes and underscores."
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:80]


# %%
print(file_name("Doe^Jane / 7"))


# %% [markdown]
# ## DICOM
#
# The [survey](../io/73_dicom.ipynb) of an import finds the series, wherever their files lie, and notes what is damaged. It keeps one header of each series. Results are
# called `v000`, `v001`, …, since the name of a folder is often that of a patient.

# %%
#| export
def _dicom_scan(series: Series, src: Path, shown: str, name: str) -> Scan:
    "A series as a scan."
    def open_series() -> OpenScan:
        hu = series.read_voxels(src)
        more = dict(positions=series.positions, kind="dicom", notes=series_notes(series, hu, shown))
        return OpenScan(Volume(hu, series.affine, **more), series)
    return Scan(name, printable(shown), "dicom", open_series)


# %%
#| export
def _shown_series(one: LabelledSeries, src: Path, folder: str) -> str:
    "One of several series in a folder, as a message may show it: its slices, and the first of its files."
    series = one.series
    file = min(series.paths, key=lambda path: natural_key(path.name))
    name = path_without_patient(file, src, series.headers[0], patterns=series.patterns).split("/")[-1]
    return f"{folder}, series of {len(series.paths)} slices with {name}"

def add_dicom(found: Found, src: Path, gaps: bool, named: bool, orientation: str):
    "Add the CT series below a folder, what is damaged, and what was passed over."
    survey = survey_heap(read_heap(src), gaps, orientation, skip_damaged=True)
    folders = Counter(one.series.paths[0].parent for one in survey.series)
    for one in survey.series:
        folder, header = one.series.paths[0].parent, one.series.headers[0]
        shown = str(folder.relative_to(src.parent)) if named else one.shown(src)
        if folders[folder] > 1:
            shown = _shown_series(one, src, shown)
        name = file_name(str(header.get("PatientID") or "")) if named else ""
        found.scans.append(_dicom_scan(one.series, src, shown, name))
    found.broken += [("", problem) for problem in survey.left_out]
    found.passed_over += survey.passed_over
    found.notes += [f"left out: {text}" for text in survey.other_planes]


# %%
found = Found()
add_dicom(found, export, False, False, "SPL")
for scan in found.scans: print(scan.source, scan.open().volume.hu.shape)


# %% [markdown]
# ## NIfTI
#
# NIfTI files have names that their users chose, and the results keep them, so that the two can be matched. Label maps beside the scans are passed over.

# %%
#| export
def open_nifti(path: Path) -> OpenScan:
    "A NIfTI volume. Raises `InputError` for one that is damaged, has no affine, or is a label map."
    hu, affine, notes = read_scan(path)
    return OpenScan(Volume(hu, affine, notes=notes))

def _nifti_scan(path: Path, name: str) -> Scan:
    "A NIfTI file as a scan."
    return Scan(file_name(name), printable(path.name), "nifti", lambda: open_nifti(path), path)


# %%
#| export
def _volumes_in(folder: Path, passed_over: Counter) -> Iterator[Scan]:
    "The volumes among the NIfTI files of a folder."
    files = nifti_files(folder)
    images, maps = split_roles(files)
    if is_label_folder(folder.name): images, maps = {}, files
    if maps: passed_over["label map"] += len(maps)
    for name in ("ct", "image"):
        if name not in images: continue
        yield _nifti_scan(files[name], folder.name)
        if len(images) > 1:
            passed_over[f"NIfTI file beside {files[name].name}"] += len(images) - 1
        return
    for name, path in images.items():
        channel = re.fullmatch(r"(.+)_\d{4}", name)
        if channel and channel[1] in files:
            passed_over["further channel"] += 1
        else: yield _nifti_scan(path, name)


# %%
passed = Counter()
print([scan.name for scan in _volumes_in(export, passed)], dict(passed))


# %% [markdown]
# ## All of them
#
# `find_scans` joins both searches, and gives every scan a name of its own.

# %%
#| export
def _distinct(scans: list[Scan]) -> list[Scan]:
    "The scans, each with a name of its own; those without one are numbered."
    digits = max(3, len(str(max(0, len(scans) - 1))))
    names, out = set(), []
    for i, scan in enumerate(scans):
        base = scan.name or f"v{i:0{digits}}"
        name, n = base, 1
        while name.lower() in names:
            n += 1
            name = f"{base}_{n}"
        names.add(name.lower())
        out.append(replace(scan, name=name))
    return out


# %% [markdown]
# Scans without a name are numbered. Names that differ only in capitals get a number too, since some file systems cannot tell them apart.

# %%
names = [s.name for s in _distinct([Scan(n, "", "", None) for n in ("", "p1", "P1", "")])]
print(names)
test_eq(names, ["v000", "p1", "P1_2", "v003"])


# %% [markdown]
# Files of one name in several folders are told apart by as much of their paths as that takes.

# %%
#| export
def _by_path(scans: list[Scan]) -> list[Scan]:
    "The scans; those whose files have the same name say in which folder they lie."
    alike: dict[str, list[Path]] = {}
    for scan in scans:
        if scan.path: alike.setdefault(scan.source, []).append(scan.path)
    out = []
    for scan in scans:
        paths = set(alike.get(scan.source, [])) if scan.path else set()
        if len(paths) > 1:
            parts = 1
            ends = {path.parts[-parts:] for path in paths}
            while len(ends) < len(paths):
                parts += 1
                ends = {path.parts[-parts:] for path in paths}
            scan = replace(scan, source=printable("/".join(scan.path.parts[-parts:])))
        out.append(scan)
    return out


# %%
same = [_nifti_scan(Path(place), "ct") for place in ("a/1/ct.nii", "a/2/ct.nii", "b/1/ct.nii", "b/mr.nii")]
test_eq([scan.source for scan in _by_path(same)], ["a/1/ct.nii", "a/2/ct.nii", "b/1/ct.nii", "mr.nii"])


# %%
#| export
def add_nifti(found: Found, folder: Path):
    "Add the NIfTI volumes whose files lie in a folder, and what is wrong there."
    try:
        found.scans += _volumes_in(folder, found.passed_over)
    except InputError as error:
        found.broken.append(("", str(error)))
    except OSError: pass  # a folder that may not be read; the search for DICOM has told


# %%
found = Found()
add_nifti(found, export)
print([scan.name for scan in found.scans])


# %%
#| export
def _refuse_twice(paths: list[Path]) -> None:
    "`InputError` for a path that is another one, or lies in it: its scans would be taken twice."
    given: dict[Path, Path] = {}
    for path in paths:
        real = real_path(path)
        if real in given:
            raise InputError(f"{path}: is given twice; give each scan once")
        given[real] = path
    for real, path in given.items():
        above = next((given[parent] for parent in real.parents if parent in given), None)
        if above is not None:
            raise InputError(f"{path}: lies in {above}, which is given too; give each scan once")


# %%
#| export
def find_scans(
    paths: Iterable[str | Path], # NIfTI files, and folders with DICOM or NIfTI in or below them
    gaps: bool = False, # take gaps that look like missing slices as they are
    named: bool = False, # call DICOM scans by the number of their patient
    orientation: str = "SPL", # of the slicing: DICOM series in another plane are left out
) -> Found:
    "All scans below some paths. Raises `InputError` for a path that does not exist, or where none has any scan."
    found, paths = Found(), [Path(path) for path in paths]
    _refuse_twice(paths)
    for path in paths:
        if path.is_dir():
            add_dicom(found, path, gaps, named, orientation)
            for folder in folders_below(path): add_nifti(found, folder)
        elif called_nifti(path) and path.is_file():
            found.scans.append(_nifti_scan(path, case_name(path)))
        else: check_folder(path, "a folder with DICOM or NIfTI in it, or a NIfTI file")
    if not found.scans and not found.broken:
        hint = "".join(f" ({note})" for note in found.notes)
        hint += "".join(dict.fromkeys(instead_of_scans(path, found.passed_over) for path in paths))
        raise InputError(f"{', '.join(map(str, paths))}: no CT series and no NIfTI volume in it{hint}")
    found.scans = _by_path(_distinct(found.scans))
    return found


# %%
found = find_scans([export])
for scan in found.scans: print(scan.name, scan.kind, scan.source)
print("passed over:", dict(found.passed_over))

# %% [markdown]
# A series with a missing slice is broken. It does not stop the others:

# %%
next((export/"oblique").iterdir()).unlink()
print(*find_scans([export]).broken[0])
shutil.rmtree(work)
