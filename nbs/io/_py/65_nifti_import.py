# %% [markdown]
# # NIfTI import
#
# > A folder of NIfTI volumes becomes a challenge folder, and nobody has to guess what was examined.

# %%
#| default_exp io.nifti_import

# %%
#| export
import functools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctseg.core.anatomy import IGNORE, RAIDIUM54, ClassMap
from ctseg.core.files import InputError, did_you_mean, read_json
from ctseg.data.images import natural_key
from ctseg.io.cases import Case, read_patients
from ctseg.io.cutting import Work, file_stamp
from ctseg.io.folders import write_volumes
from ctseg.io.nifti import case_name, nifti_files, read_label_map, read_nifti, scale_notes
from ctseg.io.nifti_layouts import (
    find_layouts, images_and_labels, layout_folders, role_of, split_roles,
)
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import Volume, class_flags, combine

# %%
#| hide
import os
import shutil
import tempfile

import nibabel as nib
from fastcore.test import test_eq, test_fail

from ctseg.core.files import write_json
from ctseg.data.challenge import read_challenge
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

# %% [markdown]
# Labels come in two shapes. A **label map** holds a class number per voxel. Or there is **one file per structure**, which is the
# happier form: a file that is empty says *absent*, and one that does not exist says *unknown*. These layouts of folders are understood:
#
#     SRC/images/p1.nii.gz   SRC/labels/p1.nii.gz          label maps; also CT/ and Seg/, nnU-Net's imagesTr, labelsTr, imagesTs, labelsTs
#     SRC/p1.nii.gz          SRC/p1_seg.nii.gz             label maps beside their images; also p1/imaging.nii.gz, p1/segmentation.nii.gz
#     SRC/p1/ct.nii.gz       SRC/p1/segmentations/liver.nii.gz …   one file per structure
#     SRC/p1.nii.gz                                        volumes without labels
#
# Here is a hospital that writes the happier form. On the first scan all five structures were examined, and the stomach's file is empty:
# it was taken out. On the second scan two were examined, on the third none.

# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
hospital = work/"hospital"
scans = list(torso_scans().values())
examined = [TORSO_CLASSES.names, ["liver", "vertebrae"], []]
for i, (scan, names) in enumerate(zip(scans, examined)):
    case = hospital/f"patient {i}"
    (case/"segmentations").mkdir(parents=True)
    nib.save(nib.Nifti1Image(scan.hu, scan.affine), case/"ct.nii.gz")
    for name in names:
        mask = (scan.labels == TORSO_CLASSES.id(name)) & (name != "stomach")
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), scan.affine), case/"segmentations"/f"{name}.nii.gz")
print(*sorted(str(p.relative_to(hospital)) for p in hospital.rglob("*.gz"))[:4], "…", sep="\n")


# %% [markdown]
# ## One file per structure

# %%
#| export
def _ct_of(folder: Path, files: dict[str, Path]) -> Path:
    "The CT among the files of a case; `InputError` if it cannot be told."
    if "ct" in files: return files["ct"]
    if "image" in files: return files["image"]
    images = [path for name, path in files.items() if not role_of(name).label]
    if len(images) == 1: return images[0]
    if not images:
        raise InputError(f"{folder}: label maps, and no image beside them; put it there, or take them away")
    raise InputError(f"{folder}: {len(files)} NIfTI files and none is called ct.nii.gz; "
                     f"put the structures into {folder.name}/segmentations/")


# %%
print(_ct_of(hospital/"patient 0", nifti_files(hospital/"patient 0")).name)
test_fail(lambda: _ct_of(Path("p1"), {"a": 1, "b": 2}), contains="none is called ct.nii.gz")


# %%
#| export
class CaseFolder(NamedTuple):
    "A folder that holds one case."
    ct: Path
    structures: dict[str, Path] # name → its file
    labels: Path|None # a label map beside the CT


# %%
#| export
def _case_folder(folder: Path, files: dict[str, Path]) -> CaseFolder:
    "The CT and the labels in the folder of a case."
    ct = _ct_of(folder, files)
    structures = nifti_files(folder/"segmentations")
    _, maps = split_roles(files)
    labels = [path for path in maps.values() if path != ct]
    if len(labels) > 1 or (labels and structures):
        raise InputError(f"{folder}: {labels[0].name} and other labels of one image; keep one of them")
    return CaseFolder(ct, structures, labels[0] if labels else None)

def case_folders(src: Path) -> dict[Path, CaseFolder]:
    "Cases that have a folder of their own. Raises `InputError` if it is not clear which file is the CT."
    if (src/"segmentations").is_dir():
        raise InputError(f"{src}: is one case itself (it has segmentations/); give the folder above it")
    shared = layout_folders(src)
    folders = [path for path in src.iterdir() if path.is_dir() and not path.name.startswith(".")]
    folders.sort(key=lambda path: natural_key(path.name))
    cases = {}
    for folder in folders:
        files = {} if folder.name in shared else nifti_files(folder)
        if files:
            cases[folder] = _case_folder(folder, files)
    return cases


# %%
folders = case_folders(hospital)
print({folder.name: list(case.structures) for folder, case in folders.items()})


# %% [markdown]
# A class may be the union of several files: a data set that lists every rib has no file for the ribs of one side.

# %%
#| export
def load_structures(
    ct: Path,
    files: dict[str, Path], # structure name → its file
    parts: dict[int, list[str]], # class id → names of the files whose union it is, all of which exist
    C: int, # number of classes
    kind: str = "nifti",
) -> Volume:
    "A CT and its structures. The classes in `parts` are known, the others are not."
    hu, affine = read_nifti(ct)
    notes = scale_notes(hu, ct)

    def union(names) -> np.ndarray:
        masks = (read_label_map(files[name], hu.shape, affine) > 0 for name in names)
        return functools.reduce(np.logical_or, masks)

    masks = ((id, union(names)) for id, names in parts.items())
    united = combine(hu.shape, masks)
    known = class_flags(parts, C)
    drawn = dict(overlap=united.overlap, drawn=united.drawn)
    return Volume(hu, affine, united.labels, known, kind=kind, notes=notes, **drawn)


# %%
ct, files, _ = folders[hospital/"patient 0"]
lungs = load_structures(ct, files, {1: ["lung_left", "lung_right"], 2: ["vertebrae"]}, C=3)
print("known:", lungs.known, "voxels:", np.bincount(lungs.labels.ravel()))


# %% [markdown]
# ## Label maps
#
# In a label map the examined classes must be told separately. As for the challenge, `annotated_labels.json` does it, here an object
# `{"case": ["liver", ...]}`. Without it the reader does not guess.

# %%
#| export
def _class_ids(names: list, classes: ClassMap, where: str) -> list[int]:
    "The ids of classes given by name or number; `InputError` for one that does not exist."
    ids = [classes.id(name) if isinstance(name, str) else name for name in names]
    for id in ids:
        if type(id) is not int or not 1 <= id <= len(classes):
            raise InputError(f"{where}: {id!r} is not a class")
    return ids


# %%
print(_class_ids(["liver", 5], TORSO_CLASSES, "p1"))
test_fail(lambda: _class_ids([6], TORSO_CLASSES, "p1"), contains="6 is not a class")


# %%
#| export
def _read_examined(path: Path, classes: ClassMap) -> dict[str, np.ndarray]:
    "The `annotated_labels.json` of a folder of volumes: case → classes examined, bool [C]."
    if not path.exists():
        raise InputError(
            f"{path}: no such file, so absent cannot be told from unknown; "
            f"write {{\"case\": [\"{classes.names[0]}\", …]}}, or choose "
            "annotated='present' (--annotated present: only classes with voxels are known) "
            "or annotated='all' (--annotated all: "
            "every class was examined on every labelled volume)")
    table = read_json(path)
    if not isinstance(table, dict) or not all(isinstance(names, list) for names in table.values()):
        raise InputError(f"{path}: expected an object with a list of class names for each case")
    examined = {}
    for case, names in table.items():
        ids = _class_ids(names, classes, f"{path}, {case}")
        examined[case] = class_flags(ids, len(classes))
    return examined


# %%
write_json({"p1": ["liver", "vertebrae"], "p2": []}, work/"annotated_labels.json")
print(_read_examined(work/"annotated_labels.json", TORSO_CLASSES))
test_fail(lambda: _read_examined(work/"nothing.json", TORSO_CLASSES), contains="annotated='all'")


# %%
#| export
class _Examined:
    "What was examined on the cases with a label map. The file that says so is read once, when it is needed."
    def __init__(self, src: Path, classes: ClassMap, annotated: str):
        self.path = src/"annotated_labels.json"
        self.classes = classes
        self.annotated = annotated

    @functools.cached_property
    def table(self) -> dict[str, np.ndarray]:
        "Case → bool [C]."
        return _read_examined(self.path, self.classes)

    def known(self, case: str, labelled: bool) -> np.ndarray|None:
        "The classes examined on a case, bool [C]; `None`: those with voxels."
        if not labelled:
            return np.zeros(len(self.classes), bool)
        if self.annotated == "all":
            return np.ones(len(self.classes), bool)
        if self.annotated == "present": return None
        if case not in self.table:
            raise InputError(f"{self.path}: does not say what was examined on {case}; add it, [] for nothing")
        return self.table[case]


# %%
told = _Examined(work, TORSO_CLASSES, "json")
print("labelled:", told.known("p1", True), "without a label map:", told.known("p1", False))
test_fail(lambda: told.known("p3", True), contains="what was examined on p3")

# %% [markdown]
# Which file belongs to which is told by their [names](62_nifti_layouts.ipynb).

# %%
nnunet = work/"nnunet"
for i, scan in enumerate(scans[:2]):
    for folder, voxels in (("imagesTr", scan.hu), ("labelsTr", scan.labels)):
        (nnunet/folder).mkdir(parents=True, exist_ok=True)
        ending = "_0000.nii.gz" if folder == "imagesTr" else ".nii.gz"
        nib.save(nib.Nifti1Image(voxels, scan.affine), nnunet/folder/f"p{i}{ending}")
print([list(files) for layout in find_layouts(nnunet) for files in images_and_labels(nnunet, layout)])


# %%
#| export
def _load_label_map(path: Path, labels: Path|None, known: np.ndarray|None, ignore: int|None = None) -> Volume:
    "An image and its label map, if it has one; voxels of the label `ignore` become 255, which is ignored everywhere."
    hu, affine = read_nifti(path)
    drawn = read_label_map(labels, hu.shape, affine) if labels else None
    if drawn is not None and ignore is not None:
        drawn[drawn == ignore] = IGNORE
    notes = scale_notes(hu, path)
    if drawn is not None and known is not None and known.all() and not drawn.any():
        notes += (f"{labels}: holds no voxel, and will be taught as a volume with nothing on it; "
                  "if nobody looked at it, choose annotated='present' (--annotated present)",)
    return Volume(hu, affine, drawn, known, notes=notes)


# %%
volume = _load_label_map(hospital/"patient 2"/"ct.nii.gz", None, np.zeros(5, bool))
print(volume.hu.shape, "labels:", volume.labels, "known:", volume.known)


# %%
#| export
def _dataset_labels(path: Path) -> dict:
    "The labels of a `dataset.json`, empty if it has none."
    table = read_json(path)
    labels = table.get("labels") if isinstance(table, dict) else None
    return labels if isinstance(labels, dict) else {}

def _ignore_label(src: Path) -> int|None:
    "The number that nnU-Net's `dataset.json` gives to voxels that are to be ignored; `None`: there is none."
    path = src/"dataset.json"
    if not path.exists(): return None
    for key, value in _dataset_labels(path).items():
        if key == "ignore": return _whole_number(value)  # {name: number}
        if value == "ignore": return _whole_number(key)  # {number: name}
    return None


# %%
#| export
def _map_case(
    src: Path, path: Path, labels: Path|None, known, split: str, source: Path, ignore: int|None,
) -> Case:
    "An image and its label map as a case."
    load = functools.partial(_load_label_map, path, labels, known, ignore)
    stamp = file_stamp([path, labels] if labels else [path])
    return Case(str(source.relative_to(src)), load, None, known, split, display_name=str(path), stamp=stamp)

def _map_cases(src: Path, classes: ClassMap, annotated: str) -> list[Case]:
    "The cases with a label map, and bare volumes."
    cases = []
    examined = _Examined(src, classes, annotated)
    ignore = _ignore_label(src)
    for layout in find_layouts(src):
        volumes, maps = images_and_labels(src, layout)
        for name, path in volumes.items():
            known = examined.known(name, name in maps)
            cases.append(_map_case(src, path, maps.get(name), known, layout.split, path, ignore))
    for folder, case in case_folders(src).items():
        if case.labels:
            known = examined.known(folder.name, True)
            cases.append(_map_case(src, case.ct, case.labels, known, "train", folder, ignore))
    return cases


# %%
for case in _map_cases(nnunet, TORSO_CLASSES, "all"):
    volume = case.load()
    print(case.source, volume.hu.shape, "known:", volume.known.sum(), "split:", case.split)


# %% [markdown]
# ## Names of classes
#
# They are taken from `class_names.json`, from the `dataset.json` of nnU-Net (both versions) or of the Medical Segmentation Decathlon,
# or from the names of the structure files.

# %%
#| export
def _whole_number(x) -> int|None:
    "A whole number from JSON, also one written as text; else `None`."
    if type(x) is int: return x
    if type(x) is float and x.is_integer(): return int(x)
    if isinstance(x, str) and re.fullmatch(r"\d{1,3}", x, re.ASCII):
        return int(x)
    return None


# %%
#| export
def _names_by_id(labels: dict) -> dict[int, str]:
    "The classes of a `dataset.json`, id to name: `{name: id}` as nnU-Net 2 writes it, or `{id: name}` as nnU-Net 1 did."
    ids_first = all(_whole_number(key) is not None for key in labels)
    named = {}
    for key, value in labels.items():
        id, name = (key, value) if ids_first else (value, key)
        number = _whole_number(id)
        if number != 0 and name not in ("background", "ignore"):
            named[number] = name
    return named


# %%
print(_names_by_id({"background": 0, "liver": 1, "spleen": "2", "ignore": 3}))
print(_names_by_id({"0": "background", "1": "liver", "2": "spleen"}))


# %%
#| export
def _dataset_classes(path: Path) -> ClassMap:
    "The classes of a `dataset.json` of nnU-Net or the Decathlon; `InputError` unless they are numbered from 1."
    names = _names_by_id(_dataset_labels(path))
    numbered = set(names) == set(range(1, len(names) + 1))
    are_texts = all(isinstance(name, str) for name in names.values())
    if not names or not numbered or not are_texts:
        raise InputError(f"{path}: labels must be names numbered 0, 1, 2, … without regions; "
                         "write a class_names.json instead")
    return ClassMap.from_names([names[id] for id in sorted(names)])


# %%
write_json({"labels": {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}}, work/"dataset.json")
print(_dataset_classes(work/"dataset.json").names)
write_json({"labels": {"background": 0, "organs": [1, 2]}}, work/"dataset.json")
test_fail(lambda: _dataset_classes(work/"dataset.json"), contains="without regions")


# %%
#| export
def _classes_of(src: Path, classes, structures: list[str]) -> ClassMap:
    "The classes: as given, from a file in the source, or the structures drawn; else the 54 of the challenge."
    if isinstance(classes, ClassMap): return classes
    if classes is not None: return ClassMap.from_json(classes)
    if (src/"class_names.json").exists():
        return ClassMap.from_json(src/"class_names.json")
    if (src/"dataset.json").exists():
        return _dataset_classes(src/"dataset.json")
    return ClassMap.from_names(structures) if structures else RAIDIUM54


# %%
print(_classes_of(hospital, None, ["liver", "vertebrae"]))
print(_classes_of(hospital, None, []))


# %%
#| export
def _unused_structures(src: Path, structures: list[str], classes: ClassMap) -> list[str]:
    "The structures drawn that are no class; `InputError` if that is true of all of them."
    unused = [name for name in structures if name not in classes.names]
    if unused and len(unused) == len(structures):
        raise InputError(f"{src}: none of the {len(structures)} structures drawn is a class "
                         f"({did_you_mean('class', structures[0], classes.names)}); "
                         "rename the files or the classes")
    return unused


# %%
print("told among the facts:", _unused_structures(hospital, ["liver", "livr"], TORSO_CLASSES))
test_fail(lambda: _unused_structures(hospital, ["livr"], TORSO_CLASSES), contains="did you mean liver")


# %% [markdown]
# ## Import

# %%
#| export
def _structure_cases(src: Path, folders: dict, classes: ClassMap) -> list[Case]:
    "The cases with one file per structure."
    cases = []
    for folder, (ct, files, labels) in folders.items():
        if labels: continue
        parts = {classes.id(name): [name] for name in files if name in classes.names}
        load = functools.partial(load_structures, ct, files, parts, len(classes))
        known = class_flags(parts, len(classes))
        stamp = file_stamp([ct, *files.values()])
        where = str(folder.relative_to(src))
        cases.append(Case(where, load, None, known, display_name=str(folder), stamp=stamp))
    return cases


# %%
print([(case.source, case.known.tolist()) for case in _structure_cases(hospital, folders, TORSO_CLASSES)])


# %%
#| export
def _find_cases(src: Path, classes, annotated: str) -> tuple[list[Case], ClassMap, list[str]]:
    "The cases of a folder, their classes, and the structures drawn that are no class."
    folders = case_folders(src)
    structures = sorted({name for case in folders.values() for name in case.structures})
    classes = _classes_of(src, classes, structures)
    cases = _map_cases(src, classes, annotated) + _structure_cases(src, folders, classes)
    if not cases:
        raise InputError(f"{src}: no NIfTI volumes in it; expected images/ and labels/, "
                         "or a folder per case with ct.nii.gz")
    return cases, classes, _unused_structures(src, structures, classes)


# %%
cases, classes, unused = _find_cases(hospital, None, "json")
print([case.source for case in cases], classes, "unused:", unused)


# %%
#| export
def import_nifti(
    src, # a folder in one of the three layouts; a `patients.json` in it keeps the scans of a patient together
    out, # the challenge folder, new
    slicing: Slicing = Slicing(),
    classes: ClassMap|str|None = None, # or the path of a `class_names.json`; `None`: look in `src`
    annotated: str = "json", # for label maps: json, all or present, see `read_challenge`
    test_share: float = 0., # share of the patients set aside as a test
    keep_names: bool = False, # call volumes by their file names; only if these are no names of people
    key = None, # where to write the private table volume → source
    **work, # of `Work`: workers, skip_damaged, progress
) -> dict: # facts
    """Cut a folder of NIfTI volumes into a challenge folder with an index.

    Raises `InputError` for volumes or labels that cannot be read or contradict each other.
    """
    src = Path(src)
    options = ("json", "all", "present")
    if annotated not in options:
        raise did_you_mean("value of annotated", annotated, options)
    if not src.is_dir():
        raise InputError(f"{src}: no such folder; expected a folder of NIfTI volumes")
    cases, classes, unused = _find_cases(src, classes, annotated)
    names = [case_name(Path(case.source)) for case in cases]
    read_patients(src/"patients.json", cases, names)
    if keep_names:
        for case, name in zip(cases, names):
            case.id = name
    facts = write_volumes(cases, out, classes, slicing, test_share, key, Work(**work))
    return facts | {"ignored_labels": unused}


# %%
print(import_nifti(hospital, work/"cut", classes=TORSO_CLASSES))
s = read_challenge(work/"cut")
for g in range(3):
    one = s[s.groups == g]
    state = np.where(one.known[0], np.where(one.present.any(0), "present", "absent"), "unknown")
    print(f"v{g:03}", dict(zip(TORSO_CLASSES.names, state.tolist())))

# %% [markdown]
# The empty file has become *absent*, the files that do not exist have become *unknown*.

# %%
test_eq(s.known[s.groups == 0].all(), True)
test_eq(s.known[s.groups == 1][0], [True, False, False, False, True])
print(import_nifti(nnunet, work/"maps", classes=TORSO_CLASSES, annotated="all"))
test_fail(
    lambda: import_nifti(nnunet, work/"never", classes=TORSO_CLASSES),
    contains="absent cannot be told from unknown",
)

# %%
#| hide
shutil.rmtree(work)
