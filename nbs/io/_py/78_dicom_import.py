# %% [markdown]
# # DICOM import
#
# > A clinic's DICOM folders become a challenge folder, and predictions find their way back onto the scans.

# %%
#| default_exp io.dicom_import

# %%
#| export
import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import ClassMap, RAIDIUM54
from ctseg.core.errors import InputError, some_of
from ctseg.io.cases import Case
from ctseg.io.dicom import LabelledSeries, Survey, survey_dicom
from ctseg.io.dicom_headers import DicomFile, label_errors, tells_patient
from ctseg.io.dicom_heap import read_file
from ctseg.io.dicom_seg_read import read_segments, sort_segments
from ctseg.io.cutting import Work, file_stamp
from ctseg.io.dicom_series import series_notes
from ctseg.io.folders import write_volumes
from ctseg.io.renaming import Renaming, read_renaming, same_spelling, unused_lines
from ctseg.io.rtstruct import (
    DrawnStructure, draw_region, empty_names, leaves_plane, meets_volume, read_regions,
)
from ctseg.io.rt_places import contour_notes, in_other_space, rejected_notes
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import Volume, class_flags, combine

# %%
#| hide
import os
import shutil
import tempfile

import highdicom as hd
import nibabel as nib
import pydicom
from fastcore.test import test_close, test_eq, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.io.dicom import read_series
from ctseg.io.renaming import class_name
from ctseg.io.dicom_seg import export_dicom_seg, make_segmentation
from ctseg.io.geometry import as_slices
from ctseg.io.index import read_index
from ctseg.io.nifti import export_nifti
from ctseg.io.toy_dicom import HEAD_CLASSES, PATIENT, clinic_planes, head_planes, write_contours, write_series

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG

# %% [markdown]
# All CT series below the source are found ([a clinic's folders](73_dicom.ipynb)). Contours and segmentations may lie anywhere and say which
# series they are about. What nobody drew on a patient is *unknown* there. The clinic here has three series of the toy head; on one of
# them the left eye was contoured.

# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
clinic = work/"clinic"
planes = {name: p for name, p in clinic_planes().items() if name != "gantry tilt"}
truth = {name: write_series(clinic/name, p) for name, p in planes.items()}
axial, _ = read_series(clinic/"axial")
eye = np.array([[39, 7], [53, 7], [53, 17], [39, 17]])
write_contours(clinic/"contours", axial.headers, {"Eye L": [(k, eye) for k in (6, 7, 8)]})
found, *others = survey_dicom(clinic).series
print(
    found.shown(clinic), "label objects:", len(found.labels), "| others:", [len(one.labels) for one in others]
)


# %% [markdown]
# ## Names of structures
#
# Clinics spell structures in many ways. A class name has small letters, of any script, and `_` for whatever lies between them; `rename` translates
# what no spelling tells: `{"Parotis li": "parotid_left"}` ([renamings](44_renaming.ipynb)).
#
# Two labels of *one* series that differ in more than case and separators must not fall together by that: `GTV+` and `GTV-` are two
# things. Only `rename` can make them one class, and it must name each.

# %%
#| export
def _check_named(label: str, name: str, where: str):
    "`InputError` for a label that gives no class name."
    if not name:
        raise InputError(f"{where}: the label {label!r} has neither letters nor numbers for a class name; "
                         "give it one by rename (--rename)")


# %%
test_fail(lambda: _check_named("+", class_name("+"), "p1"), contains="neither letters nor numbers")


# %%
#| export
def check_apart(labels: list[str], renaming: Renaming, wanted, where: str):
    "Raise `InputError` if two labels would become one of the `wanted` classes (`None`: all) by accident."
    spellings = {}  # class name → {spelling: (label, is it named by the renaming)}
    for label in labels:
        name, renamed = renaming.translate(label)
        if wanted is None: _check_named(label, name, where)
        if wanted is None or name in wanted:
            spellings.setdefault(name, {})[same_spelling(label)] = label, renamed
    for name, those in spellings.items():
        if len(those) < 2 or all(renamed for _, renamed in those.values()):
            continue
        a, b = [label for label, _ in those.values()][:2]
        raise InputError(f"{where}: the labels {a!r} and {b!r} would both become the class {name!r}; "
                         "say by rename (--rename) what each of them is")


# %%
check_apart(["Parotid L", "PAROTID_L"], Renaming(), None, "p1")
test_fail(
    lambda: check_apart(["GTV+", "GTV-"], Renaming(), None, "p1"),
    contains="would both become the class 'gtv'",
)
check_apart(["GTV+", "GTV-"], Renaming({"GTV+": "gtv", "GTV-": "gtv"}), None, "p1")


# %% [markdown]
# ## From label objects to structures
#
# A structure of which no contour meets the volume is unknown there, and it is told by name. So is one that cannot be used: points and open lines
# enclose nothing, and rings in sagittal or tilted planes lie on no slice.

# %%
#| export
@dataclass
class LabelNames:
    "The names of what label objects hold for a series."
    inside: list[str]
    outside: list[str] # drawn, but nothing of it meets the volume
    unusable: list[str] # with the reason
    empty: list[str] # listed, and nothing drawn

def _sort_regions(header, series, labels: LabelNames):
    "Put the names of an RTSTRUCT's regions where they belong."
    for region in read_regions(header):
        if not region.rings:
            labels.unusable.append(f"{region.name} (no closed contours)")
        elif in_other_space(series, region):
            labels.unusable.append(f"{region.name} (in another frame of reference than the series)")
        elif not meets_volume(series, region):
            labels.outside.append(region.name)
        elif leaves_plane(series, region):
            labels.unusable.append(f"{region.name} (not in the plane of the slices)")
        else: labels.inside.append(region.name)
    labels.empty += empty_names(header)

def _sort_segments(header, series, labels: LabelNames):
    "Put the names of a SEG's segments where they belong."
    names = sort_segments(header, series)
    labels.inside += names.inside
    labels.outside += names.outside
    labels.empty += names.empty


# %%
#| export
def _labels_of(labelled: LabelledSeries, src: Path) -> LabelNames:
    "The names of what was drawn on a series."
    labels = LabelNames([], [], [], [])
    for file in labelled.labels:
        sort = _sort_regions if file.header.Modality == "RTSTRUCT" else _sort_segments
        with label_errors(file, src):
            sort(read_file(file.path, pixels=False), labelled.series, labels)
    return labels


# %%
print(_labels_of(found, clinic))


# %%
#| export
@dataclass
class _Drawn:
    "What a label object holds for a series."
    structures: list[DrawnStructure]
    notes: list[str]

def _is_usable(series, region) -> bool:
    "Is a region drawn on the slices of a series?"
    if in_other_space(series, region): return False
    return meets_volume(series, region) and not leaves_plane(series, region)

def _drawn_structures(file: DicomFile, series, src: Path, wanted) -> _Drawn:
    "The structures of a label object of which `wanted` tells by the name that they are to be read."
    with label_errors(file, src):
        if file.header.Modality != "RTSTRUCT":
            segments = read_segments(file.path, series, wanted)
            return _Drawn(segments.structures, [f"{file.shown(src)}: {note}" for note in segments.notes])
        header = read_file(file.path)
        regions = [r for r in read_regions(header) if r.rings and wanted(r.name)]
        usable = [region for region in regions if _is_usable(series, region)]
        drawn = [draw_region(series, region) for region in usable]
        notes = rejected_notes(header) + contour_notes(series, usable)
        return _Drawn(drawn, [f"{file.shown(src)}: {note}" for note in notes])


# %%
drawn = _drawn_structures(found.labels[0], found.series, clinic, lambda name: True)
print([(d.name, d.mask.sum()) for d in drawn.structures], drawn.notes)


# %% [markdown]
# Regions of one name are put together, from however many label objects. A slice between contours that has none itself is unknown: it is
# marked as drawn, though no pixel of it is left.

# %%
#| export
def _unite(structures: dict[str, DrawnStructure], name: str, structure: DrawnStructure):
    "Add a structure to those of its name."
    before = structures.setdefault(name, structure)
    if before is structure: return
    both = before.mask | structure.mask, before.slices | structure.slices
    structures[name] = DrawnStructure(name, *both)

def _differs(one: DrawnStructure|None, other: DrawnStructure) -> bool:
    "Were two structures drawn on a common slice, and not alike?"
    if one is None: return False
    common = one.mask.any((0, 1)) & other.mask.any((0, 1))
    return not np.array_equal(one.mask[..., common], other.mask[..., common])


# %%
#| export
def _united(
    labelled: LabelledSeries,
    src: Path,
    renaming: Renaming,
    names, # of the classes to read
) -> tuple[dict[str, DrawnStructure], list[str]]: # by class name; what was done to make them fit
    "The structures drawn on a series."
    united, notes = {}, []
    for file in labelled.labels:
        drawn = _drawn_structures(file, labelled.series, src, lambda label: renaming.name(label) in names)
        in_file: dict[str, DrawnStructure] = {}
        for structure in drawn.structures:
            _unite(in_file, renaming.name(structure.name), structure)
        differing = [name for name, one in in_file.items() if _differs(united.get(name), one)]
        notes += drawn.notes
        if differing:
            notes.append(f"{file.shown(src)}: {some_of(differing)} drawn differently in another object too; "
                         "both were put together, keep one of them if they are two versions")
        for name, structure in in_file.items(): _unite(united, name, structure)
    return united, notes


# %%
twice = LabelledSeries(found.series, found.labels*2)
print({name: drawn.mask.sum() for name, drawn in _united(twice, clinic, Renaming(), ["eye_l"])[0].items()})


# %%
#| export
def load_series(
    labelled: LabelledSeries,
    src: Path,
    classes: ClassMap,
    renaming: Renaming,
    outside: frozenset[str] = frozenset(), # names of classes that were drawn, but not on this series
) -> Volume:
    "The voxels of a series with its labels. What was not drawn is unknown."
    series, names = labelled.series, set(classes.names) - outside
    united, notes = _united(labelled, src, renaming, names)
    structures = {classes.id(name): structure for name, structure in united.items()}
    hu = series.read_voxels(src)
    notes += series_notes(series, hu, labelled.shown(src))
    union = combine(hu.shape, ((id, structure.mask) for id, structure in structures.items()))
    for id, structure in structures.items():
        union.drawn[2][id] |= structure.slices
    return Volume(
        hu, series.affine,
        labels=union.labels if structures else None,
        known=class_flags(structures, len(classes)),
        positions=series.positions,
        kind="dicom",
        digest=series.digest,
        overlap=union.overlap,
        drawn=union.drawn,
        notes=tuple(notes))


# %%
volume = load_series(found, clinic, HEAD_CLASSES, Renaming({"Eye L": "eye_left"}))
print(dict(zip(HEAD_CLASSES.names, volume.known.tolist())), "voxels:", (volume.labels == 3).sum())


# %% [markdown]
# What could not be used is told among the facts: labels that are no class, and label objects whose series is not there. If *nothing* of
# what was drawn can be used, that is an error.

# %%
#| export
def _all_of(labels: list[LabelNames], field: str) -> list[str]:
    "The names in a field of all labels, each once."
    return sorted({label.strip() for its in labels for label in getattr(its, field)})


# %%
#| export
@dataclass
class _Source:
    "What was found below a folder."
    src: Path
    survey: Survey
    labels: list[LabelNames] # of each series

    def unused(self, renaming: Renaming, classes: ClassMap) -> dict:
        "Facts about what was drawn and is not used; `InputError` if nothing is used."
        every, outside, unusable = (_all_of(self.labels, name) for name in ("inside", "outside", "unusable"))
        ignored = [label for label in every if renaming.name(label) not in classes.names]
        astray = self.survey.astray
        if every and len(ignored) == len(every):
            _nothing_used(self.src, ignored, classes)
        if not every:
            if outside: _all_outside(self.src, outside)
            if unusable: _all_unusable(self.src, unusable)
            if astray: _all_astray(astray[0], self.src)
        drawn = {label for its in self.labels for label in [*its.inside, *its.outside, *its.empty]}
        return {
            **unused_lines(renaming, drawn),
            "ignored_labels": ignored,
            "labels_outside": outside,
            "labels_unusable": unusable,
            "labels_empty": _all_of(self.labels, "empty"),
            "label_objects_without_series": len(astray),
            "passed_over": dict(self.survey.passed_over.most_common()),
            "other_planes": self.survey.other_planes,
        }


# %%
#| export
def _nothing_used(src: Path, labels: list[str], classes: ClassMap):
    "Tell that none of the labels drawn is a class."
    more_labels, more_classes = (", …" if len(x) > 1 else "" for x in (labels, classes))
    raise InputError(f"{src}: none of the {len(labels)} labels drawn ({labels[0]!r}{more_labels}) "
                     f"is one of the classes ({classes.names[0]!r}{more_classes}); "
                     "translate them by rename (--rename), or take the RTSTRUCT and SEG objects away")


# %%
#| export
def _all_outside(src: Path, labels: list[str]):
    "Tell that all that was contoured lies outside of the volumes."
    more = ", …" if len(labels) > 1 else ""
    raise InputError(f"{src}: nothing of the {len(labels)} structures drawn ({labels[0]!r}{more}) "
                     "meets its series, and nothing else is labelled; "
                     "take the RTSTRUCT or SEG away, or put the series there that it was drawn on")


# %%
#| export
def _all_unusable(src: Path, labels: list[str]):
    "Tell that nothing that was drawn encloses an area on a slice."
    more = ", …" if len(labels) > 1 else ""
    raise InputError(f"{src}: none of the {len(labels)} structures drawn ({labels[0]}{more}) can be used, "
                     "and nothing else is labelled; take the RTSTRUCT away, or contour on the slices")


# %%
#| export
def _all_astray(file: DicomFile, src: Path):
    "Tell that the only label objects are about other series."
    raise InputError(f"{file.shown(src)}: its {file.header.Modality} "
                     "is about a series that is not in the folder, or does not say about which of several, "
                     "and nothing else is labelled; put that series there, or take the object away")


# %%
source = _Source(clinic, Survey([found]), [LabelNames(["Eye L", "PTV"], ["Foot"], [], [])])
print(source.unused(Renaming({"Eye L": "eye_left"}), HEAD_CLASSES))
test_fail(lambda: source.unused(Renaming(), HEAD_CLASSES), contains="none of the 2 labels drawn")


# %% [markdown]
# ## Import

# %%
#| export
def _patient(header) -> str:
    "What tells patients apart; it is compared only, and not kept."
    tags = ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID")
    return "patient " + next(str(header.get(tag)) for tag in tags if header.get(tag))


# %%
print(_patient(axial.headers[0]))


# %%
#| export
def _cases(source: _Source, classes: ClassMap, renaming: Renaming) -> list[Case]:
    "The series as cases. A class drawn on one is known there."
    cases = []
    for labelled, labels in zip(source.survey.series, source.labels):
        names = {renaming.name(label) for label in labels.inside}
        elsewhere = frozenset(map(renaming.name, labels.outside)) - names
        known = np.array([name in names for name in classes.names])
        load = functools.partial(load_series, labelled, source.src, classes, renaming, elsewhere)
        files = [*labelled.series.paths, *(file.path for file in labelled.labels)]
        stamp = f"{file_stamp(dict.fromkeys(files))} {renaming.lines} {sorted(elsewhere)}"
        folder = str(labelled.series.paths[0].parent.relative_to(source.src))
        patient = _patient(labelled.series.headers[0])
        cases.append(Case(folder, load, patient, known, display_name=labelled.shown(source.src), stamp=stamp))
    return cases


# %%
print(
    [
        (case.called, case.known.tolist())
        for case in _cases(source, HEAD_CLASSES, Renaming({"Eye L": "eye_left"}))
    ]
)


# %% [markdown]
# A series whose contours are damaged is not imported without them: nobody would know. It is an error, or with `skip_damaged` the series is left out.

# %%
#| export
def _read_labels(
    survey: Survey, src: Path, renaming: Renaming, wanted, skip_damaged: bool,
) -> list[LabelNames]:
    "The labels of each series. One whose labels are damaged or not to be told apart is left out, if that is wished."
    every, whole = [], []
    for one in survey.series:
        try:
            labels = _labels_of(one, src)
            check_apart(labels.inside, renaming, wanted, one.shown(src))
        except InputError as problem:
            if not skip_damaged: raise
            survey.left_out.append(str(problem))
        else:
            every.append(labels)
            whole.append(one)
    survey.series = whole
    return every


# %%
#| export
def _tell_names(survey: Survey, labels: list[LabelNames], renaming: Renaming):
    "Warn of classes that are called after a patient. Whether Mr Lung's lung is one, only a human can say."
    telling = set()
    for one, its_labels in zip(survey.series, labels):
        names = map(renaming.name, its_labels.inside)
        telling |= {name for name in names if tells_patient(name, one.series.headers[0])}
    if not telling: return
    warnings.warn(f"{len(telling)} of the classes have a word or number in their names that the headers have "
                  "for a patient; if it names somebody, translate it by rename (--rename) and import again")


# %%
#| export
def _find_source(
    src: Path,
    classes,
    renaming: Renaming,
    **options, # of `survey_dicom`
) -> tuple[_Source, ClassMap]:
    "What is below a folder, and its classes: as given, or the structures drawn, else the 54 of the challenge."
    if classes is not None and not isinstance(classes, ClassMap):
        classes = ClassMap.from_json(classes)
    survey = survey_dicom(src, **options)
    wanted = None if classes is None else classes.names
    labels = _read_labels(survey, src, renaming, wanted, options.get("skip_damaged", False))
    if not labels:
        raise InputError(f"{src}: no series in it can be used; such as {survey.left_out[0]}")
    if classes is None:
        names = sorted({renaming.name(label) for its_labels in labels for label in its_labels.inside})
        _tell_names(survey, labels, renaming)
        classes = ClassMap.from_names(names) if names else RAIDIUM54
    return _Source(src, survey, labels), classes


# %%
source, classes = _find_source(clinic, None, Renaming(), gaps=False)
print(source.labels, classes)


# %%
#| export
def import_dicom(
    src, # a folder with DICOM CT series and their RTSTRUCT or SEG objects, in whatever folders
    out, # the challenge folder, new
    slicing: Slicing = Slicing(),
    classes: ClassMap|str|None = None, # or a `class_names.json`; `None`: the structures drawn, else the 54
    rename: dict|str|None = None, # structure's label → class name, or the path of such a JSON
    test_share: float = 0., # share of the patients set aside as a test; 1: all, as for a prediction
    gaps: bool = False, # take gaps that look like missing slices as they are
    key = None, # where to write the private table volume → source folder
    **work, # of `Work`: workers, skip_damaged, progress, store
) -> dict: # facts
    """Cut DICOM CT series into a challenge folder with an index.

    Nothing that names a patient or a date gets into it.
    Raises `InputError` for what is no volume or fits no class.
    """
    renaming = read_renaming(rename, Path(out).name)
    work = Work(**work)
    found = dict(gaps=gaps, orientation=slicing.orientation, skip_damaged=work.skip_damaged)
    source, classes = _find_source(Path(src), classes, renaming, **found)
    unused = source.unused(renaming, classes)
    work.left_out += source.survey.left_out
    facts = write_volumes(_cases(source, classes, renaming), out, classes, slicing, test_share, key, work)
    return facts | unused


# %%
facts = import_dicom(clinic, work/"heads", Slicing(window=(40, 200)), HEAD_CLASSES, {"Eye L": "eye_left"})
print(facts)
train = read_challenge(work/"heads")
print({g: train.known[train.groups == g].any(0).tolist() for g in np.unique(train.groups)})

# %%
#| fig-alt: "Five imported slices of toy heads with their outlines and the names of their volumes"
fig, axes = image_grid(1, 5)
for ax, i in zip(axes[0], [7, 14, 24 + 10, 48 + 11, 48 + 18]):
    line = read_index(work/"heads", "train")[1][f"{i}.png"]
    title = f"{line['volume']}, slice {line['slice']}"
    show_image(ax, overlay(train.images[i], train.masks[i], HEAD_CLASSES), title)
class_legend(fig, HEAD_CLASSES, train.masks)

# %% [markdown]
# ## There and back
#
# The strictest test: predict perfectly. The three series are imported as a test, the truth is cut like the images, written as a
# submission, exported both ways, and read again with other people's readers. It must be the truth again, voxel for voxel.

# %%
(clinic/"contours").unlink()
import_dicom(clinic, work/"test", Slicing(), HEAD_CLASSES, test_share=1.)
volumes, lines = read_index(work/"test")
test = read_challenge(work/"test", "test")
masks = np.zeros_like(test.masks)
for mask, line in zip(masks, lines.values()):
    label = list(truth.values())[int(line["volume"][1:])]
    part = as_slices(label, np.array(volumes[line["volume"]]["affine"]))[line["slice"]]
    y, x = line["corner"]
    mask[y:y + part.shape[0], x:x + part.shape[1]] = part
write_masks(masks, test.names, work/"submission.csv")
print(export_nifti(work/"submission.csv", work/"test", work/"nifti"))
print(export_dicom_seg(work/"submission.csv", work/"test", clinic, work/"seg"))

# %%
for v, name in enumerate(truth):
    image = nib.load(work/"nifti"/f"v{v:03}.nii.gz")
    series, _ = read_series(clinic/name)
    test_eq(np.asarray(image.dataobj), truth[name])
    test_close(image.affine, series.affine, eps=1e-4)
    seg = hd.seg.segread(work/"seg"/f"v{v:03}.dcm")
    uids = [header.SOPInstanceUID for header in series.headers]
    frames = seg.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    test_eq(frames.T, truth[name])

# %% [markdown]
# Each frame says where it lies, and that is where its slice lies.

# %%
places = {header.SOPInstanceUID: np.array(header.ImagePositionPatient, float) for header in series.headers}
for frame in seg.PerFrameFunctionalGroupsSequence:
    uid = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    test_close(np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float), places[uid], eps=1e-4)
print(len(seg.PerFrameFunctionalGroupsSequence), "frames in their places")

# %% [markdown]
# And those segmentations are labels. Laid into the clinic's folder, the next import finds them by the number of the series. Here only
# the brain and the left eye are kept of the first one, so on that patient the rest is unknown.

# %%
few = np.where(np.isin(truth["axial"], [2, 3]), truth["axial"], 0)
make_segmentation(axial, few, HEAD_CLASSES, "someone").save_as(clinic/"drawn.dcm")
import_dicom(clinic, work/"again", classes=HEAD_CLASSES)
again = read_challenge(work/"again")
print({name: "present" if known else "unknown" for name, known in zip(HEAD_CLASSES.names, again.known[1])})


# %% [markdown]
# ## Nobody's name
#
# The planted name, the numbers and the dates are in every file of the clinic. They must be in none of ours: not in the index, not in
# the PNGs, not in the segmentations.

# %%
def files_that_leak(folder):
    "The files whose bytes or name contain something of the patient."
    words = [w.lower().encode() for value in PATIENT.values() for w in value.split("^")]
    leaky = []
    for path in filter(Path.is_file, folder.rglob("*")):
        text = path.read_bytes().lower() + path.name.lower().encode()
        if any(word in text for word in words): leaky.append(path.name)
    return leaky

test_eq(len(files_that_leak(clinic/"axial")), 24)
print({name: files_that_leak(work/name) for name in ("heads", "test", "again", "nifti", "seg")})


# %% [markdown]
# ## What goes wrong, in one line each

# %%
def show_refusal(spoil, **tags):
    "Write an axial series in a folder named after the patient, spoil its files, and print what the import says."
    shutil.rmtree(work/"bad", ignore_errors=True)
    write_series(
        work/"bad"/f"{PATIENT['PatientName']} {PATIENT['StudyDate']}",
        head_planes(8),
        shape=(20, 18),
        shuffle=False,
        **tags,
    )
    spoil(sorted((work/"bad").rglob("IM*")))
    try: import_dicom(work/"bad", work/"never")
    except InputError as e: print("-", str(e).replace(str(work), "…"))
    else: assert False, "accepted"
    assert not (work/"never").exists()

def edit(path, **tags):
    ds = pydicom.dcmread(path)
    for tag, value in tags.items(): setattr(ds, tag, value)
    ds.save_as(path)

def compress(files):
    for path in files:
        ds = pydicom.dcmread(path)
        ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no decoder here "])
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
        ds.save_as(path)

show_refusal(lambda files: files[3].unlink())
show_refusal(lambda files: shutil.copy(files[3], files[3].with_name("copy")))
show_refusal(lambda files: edit(files[5], PixelSpacing=[1, 1]))
show_refusal(lambda files: edit(files[5], ImageOrientationPatient=[0, 1, 0, -1, 0, 0]))
show_refusal(lambda files: None, Modality="MR")
show_refusal(lambda files: [edit(path, ImageOrientationPatient=[1, 0, 0]) for path in files])
show_refusal(compress)
show_refusal(lambda files: files[2].write_bytes(files[2].read_bytes()[:-100]))
show_refusal(lambda files: [path.unlink() for path in files])

# %%
#| hide
shutil.rmtree(work)
