# %% [markdown]
# # NIfTI import
#
# > A folder of NIfTI volumes becomes a challenge folder, and nobody has to guess what was examined.

# %%
#| default_exp io.nifti_import

# %%
#| export
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctseg.core.anatomy import IGNORE, RAIDIUM54, ClassMap
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.filetypes import check_folder, content_of
from ctseg.data.images import natural_key
from ctseg.io.cases import Case, read_patients
from ctseg.io.cutting import Work, file_stamp
from ctseg.io.folders import write_volumes
from ctseg.io.label_names import dataset_classes, ignore_label, read_examined_cases
from ctseg.io.nifti import case_name, nifti_files, read_label_map, read_scan
from ctseg.io.nifti_layouts import (
    find_layouts, images_and_labels, layout_folders, role_of, split_roles, structure_folder,
)
from ctseg.io.renaming import (
    RenamedSlices, Renaming, check_joined, read_renaming, renamed_classes, unused_lines,
)
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import Volume, class_flags, combine
from ctseg.io.walk import folders_below, foreign_files, instead_of_scans, visible_files

# %%
#| hide
import os
import shutil
import tempfile

import nibabel as nib
from fastcore.test import test_eq, test_fail

from ctseg.core.json_files import write_json
from ctseg.data.challenge import read_challenge
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

# %% [markdown]
# Labels come in two shapes. A **label map** holds a class number per voxel. Or there is **one file per structure**, which is the
# happier form: a file that is empty says *absent*, and one that does not exist says *unknown*. These layouts of folders are understood:
#
#     SRC/images/p1.nii.gz   SRC/labels/p1.nii.gz          label maps; also CT/ and Seg/, nnU-Net's imagesTr, labelsTr, imagesTs, labelsTs
#     SRC/p1.nii.gz          SRC/p1_seg.nii.gz             label maps beside their images; also p1/imaging.nii.gz, p1/segmentation.nii.gz
#     SRC/p1/ct.nii.gz       SRC/p1/segmentations/liver.nii.gz …   one file per structure; also p1/masks/, labels/, structures/
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
def _is_one_case(src: Path) -> bool:
    "Has a folder structures of its own, and no images that they could be label maps of?"
    structures = nifti_files(src/"segmentations")
    if not (src/"segmentations").is_dir() or any(layout.images != "." for layout in find_layouts(src)):
        return False
    return not set(structures) & set(nifti_files(src))


# %%
print(_is_one_case(hospital), _is_one_case(hospital/"patient 0"))


# %%
#| export
def case_folders(src: Path) -> dict[Path, CaseFolder]:
    "Cases that have a folder of their own. Raises `InputError` if it is not clear which file is the CT."
    if _is_one_case(src):
        raise InputError(f"{src}: is one case itself (it has segmentations/); give the folder above it")
    shared = layout_folders(src)
    folders = [d for d in src.iterdir() if d.is_dir() and not d.name.startswith(".") and d.name not in shared]
    found = {folder: nifti_files(folder) for folder in sorted(folders, key=lambda d: natural_key(d.name))}
    return {folder: _case_of(folder, files) for folder, files in found.items() if files}

def _case_of(folder: Path, files: dict[str, Path]) -> CaseFolder:
    "The case that a folder of NIfTI files is: its CT, and a label map or a folder of structures at most."
    ct, inner = _ct_of(folder, files), structure_folder(folder)
    structures = nifti_files(inner) if inner else {}
    maps = [path for path in split_roles(files)[1].values() if path != ct]
    if len(maps) > 1 or (maps and structures):
        raise InputError(f"{folder}: {maps[0].name} and other labels of one image; keep one of them")
    return CaseFolder(ct, structures, maps[0] if maps else None)


# %%
folders = case_folders(hospital)
print({folder.name: list(case.structures) for folder, case in folders.items()})


# %% [markdown]
# A class may be the union of several files: a data set that lists every rib has no file for the ribs of one side.

# %%
#| export
def _read_mask(path: Path, shape, affine: np.ndarray) -> np.ndarray: # bool [I,J,K]
    "The mask of one structure; `InputError` for a map of several labels."
    labels = read_label_map(path, shape, affine)
    drawn = labels[labels > 0]
    if drawn.size and drawn.min() != drawn.max():
        raise InputError(f"{path}: holds several labels ({drawn.min()} and {drawn.max()}), "
                         "expected the mask of one structure; "
                         "put a label map beside its image, as its name and _seg")
    return labels > 0


# %%
mask = _read_mask(hospital/"patient 0"/"segmentations"/"liver.nii.gz", scans[0].hu.shape, scans[0].affine)
test_eq(mask, scans[0].labels == TORSO_CLASSES.id("liver"))


# %%
#| export
def load_structures(
    ct: Path,
    files: dict[str, Path], # structure name → its file
    parts: dict[int, list[str]], # class id → names of the files whose union it is, all of which exist
    C: int, # number of classes
    kind: str = "nifti",
    known: np.ndarray|None = None, # bool [C]; `None`: the classes in `parts`
) -> Volume:
    "A CT and its structures."
    hu, affine, notes = read_scan(ct)

    def union(names) -> np.ndarray:
        masks = (_read_mask(files[name], hu.shape, affine) for name in names)
        return functools.reduce(np.logical_or, masks)

    united = combine(hu.shape, ((id, union(names)) for id, names in parts.items()))
    if known is None:
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
def _refuse_unexamined(path: Path, classes: ClassMap):
    "Tell that nothing says what was examined, and what to do."
    raise InputError(
        f"{path}: no such file, so absent cannot be told from unknown; "
        f"write {{\"case\": [\"{classes.names[0]}\", …]}}, or choose "
        "annotated='present' (--annotated present: only classes with voxels are known) "
        "or annotated='all' (--annotated all: "
        "every class was examined on every labelled volume)")

class _Examined:
    "What was examined on the cases with a label map. The file that says so is read once, when it is needed."
    def __init__(self, src: Path, classes: ClassMap, annotated: str):
        self.path = src/"annotated_labels.json"
        self.classes = classes
        self.annotated = annotated

    @functools.cached_property
    def table(self) -> dict[str, np.ndarray]:
        "Case → bool [C]."
        if not self.path.exists(): _refuse_unexamined(self.path, self.classes)
        return read_examined_cases(self.path, self.classes)

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
write_json({"p1": ["liver", "vertebrae"], "p2": []}, work/"annotated_labels.json")
test_fail(lambda: _refuse_unexamined(work/"nothing.json", TORSO_CLASSES), contains="annotated='all'")
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
    hu, affine, notes = read_scan(path)
    drawn = read_label_map(labels, hu.shape, affine) if labels else None
    if drawn is not None and ignore is not None:
        drawn[drawn == ignore] = IGNORE
    if drawn is not None and drawn.any() and not (drawn % IGNORE).any():
        notes += (f"{labels}: all that is drawn is {IGNORE if ignore is None else ignore}, which means "
                  "'to be ignored'; the mask of a structure is written with its number",)
    if drawn is not None and known is not None and known.all() and not drawn.any():
        notes += (f"{labels}: holds no voxel, and will be taught as a volume with nothing on it; "
                  "if nobody looked at it, choose annotated='present' (--annotated present)",)
    return Volume(hu, affine, drawn, known, notes=notes)


# %%
volume = _load_label_map(hospital/"patient 2"/"ct.nii.gz", None, np.zeros(5, bool))
print(volume.hu.shape, "labels:", volume.labels, "known:", volume.known)


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
    cases, examined, ignore = [], _Examined(src, classes, annotated), ignore_label(src/"dataset.json")
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
# or from the names of the structure files. [How they are read](46_label_names.ipynb).

# %%
#| export
def _listed_classes(src: Path, classes, structures: list[str]) -> ClassMap|None:
    "The classes as given, or from a file in the source; `None`: the structures drawn. Else the 54."
    if isinstance(classes, ClassMap): return classes
    if classes is not None: return ClassMap.from_json(classes)
    if (src/"class_names.json").exists():
        return ClassMap.from_json(src/"class_names.json")
    if (src/"dataset.json").exists():
        return dataset_classes(src/"dataset.json")
    return None if structures else RAIDIUM54


# %%
#| export
def _under_new_names(
    listed: ClassMap|None, structures: list[str], renaming: Renaming, annotated: str = "json",
) -> RenamedSlices:
    "The classes that are listed, or the structures drawn, as a renaming calls them."
    if listed:
        return renamed_classes(listed, renaming, any_part=annotated == "present")
    names = sorted({renaming.kept(name) for name in structures})
    return renamed_classes(ClassMap.from_names(names), Renaming())


# %%
for drawn in (["liver", "vertebrae"], []):
    listed = _listed_classes(hospital, None, drawn)
    print(_under_new_names(listed, drawn, Renaming({"vertebrae": "spine", "spleen": "milt"})).classes)


# %%
#| export
def _unused_structures(src: Path, structures: list[str], classes: ClassMap, renaming: Renaming) -> list[str]:
    "The structures drawn that are no class; `InputError` if that is true of all of them."
    unused = [name for name in structures if renaming.kept(name) not in classes.names]
    if unused and len(unused) == len(structures):
        raise InputError(f"{src}: none of the {len(structures)} structures drawn is a class "
                         f"({did_you_mean('class', structures[0], classes.names)}); "
                         "rename the files or the classes (--rename)")
    return unused


# %%
none = Renaming()
print("told among the facts:", _unused_structures(hospital, ["liver", "livr"], TORSO_CLASSES, none))
test_fail(lambda: _unused_structures(hospital, ["livr"], TORSO_CLASSES, none), contains="did you mean liver")
test_eq(_unused_structures(hospital, ["livr"], TORSO_CLASSES, Renaming({"livr": "liver"})), [])


# %% [markdown]
# ## Import

# %%
#| export
def _parts_of(files: dict[str, Path], classes: ClassMap, renaming: Renaming) -> dict[int, list[str]]:
    "Class id → the structures of one case that are of this class."
    parts: dict[int, list[str]] = {}
    for name in files:
        new = renaming.kept(name)
        if new in classes.names:
            parts.setdefault(classes.id(new), []).append(name)
    return parts


# %%
#| export
def _structure_cases(src: Path, folders: dict, renamed: RenamedSlices, renaming: Renaming) -> list[Case]:
    "The cases with one file per structure."
    cases, C = [], len(renamed.old)
    for folder, (ct, files, labels) in folders.items():
        if labels: continue
        check_joined(files, renaming, str(folder))
        parts = _parts_of(files, renamed.classes, renaming)
        old = {renamed.old_ids(id)[0]: names for id, names in parts.items()}  # any of them becomes the class
        known = class_flags([i for id in parts for i in renamed.old_ids(id)], C)
        load = functools.partial(load_structures, ct, files, old, C, known=known)
        stamp = file_stamp([ct, *files.values()]) + (str(renaming.lines) if renaming.table else "")
        where = str(folder.relative_to(src))
        cases.append(Case(where, load, None, known, display_name=str(folder), stamp=stamp))
    return cases


# %%
torso = renamed_classes(TORSO_CLASSES, none)
print([(case.source, case.known.tolist()) for case in _structure_cases(hospital, folders, torso, none)])


# %% [markdown]
# What lies in the folder and has no place in any of these layouts is told: a NIfTI one folder too deep, structures in a folder of another
# name, archives, and volumes in other formats.

# %%
#| export
def _all_nifti(src: Path) -> set[Path]:
    "Every NIfTI file below a folder."
    return {path for folder in folders_below(src) for path in nifti_files(folder, strict=False).values()}


# %%
#| export
def _unused_files(src: Path) -> list[str]:
    "NIfTI files below a folder that belong to none of its cases, named below `src`."
    used = set()
    for layout in find_layouts(src):
        for files in images_and_labels(src, layout): used |= set(files.values())
    for case in case_folders(src).values():
        used |= {case.ct, case.labels, *case.structures.values()}
    return sorted(str(path.relative_to(src)) for path in _all_nifti(src) - used)


# %%
#| export
def _told_unused(src: Path) -> list[str]:
    "The first few of them, and how many there are."
    unused = _unused_files(src)
    more = [f"… ({len(unused)} in all)"] if len(unused) > 5 else []
    return unused[:5] + more


# %%
(nnunet/"old").mkdir()
shutil.copy(nnunet/"labelsTr"/"p0.nii.gz", nnunet/"old")
print(_told_unused(nnunet), _told_unused(hospital))
shutil.rmtree(nnunet/"old")


# %%
#| export
def _refuse_empty(src: Path):
    "Tell that nothing was found where volumes are looked for, and what is there instead."
    deeper, hint = _unused_files(src), instead_of_scans(src, foreign_files(src))
    if deeper:
        raise InputError(f"{src}: {len(deeper)} NIfTI files in it, but not where volumes are looked for, "
                         f"such as {deeper[0]}; "
                         "give the folder that holds images/ and labels/, or a folder per case")
    files = (path for folder in folders_below(src) for path in visible_files(folder))
    if any(content_of(path) == "a DICOM file" for path in files):
        hint += "; DICOM is read by `ctseg import dicom`"
    raise InputError(f"{src}: no NIfTI volumes in it{hint}; expected images/ and labels/, "
                     "or a folder per case with ct.nii.gz")


# %%
(work/"none").mkdir()
test_fail(lambda: _refuse_empty(work/"none"), contains="no NIfTI volumes in it")


# %%
#| export
class _Found(NamedTuple):
    "What there is to import in a folder."
    cases: list[Case]
    classes: RenamedSlices
    facts: dict # about labels


# %%
#| export
def _find_cases(src: Path, classes, annotated: str, renaming: Renaming) -> _Found:
    "The cases of a folder, their classes, and the structures drawn that are no class."
    folders = case_folders(src)
    structures = sorted({name for case in folders.values() for name in case.structures})
    listed = _listed_classes(src, classes, structures)
    renamed = _under_new_names(listed, structures, renaming, annotated)
    cases = _map_cases(src, renamed.old, annotated) + _structure_cases(src, folders, renamed, renaming)
    if not cases: _refuse_empty(src)
    facts = unused_lines(renaming, [*structures, *(listed.names if listed else ())])
    unused = _unused_structures(src, structures, renamed.classes, renaming)
    return _Found(cases, renamed, facts | {"ignored_labels": unused})


# %%
cases, renamed, facts = _find_cases(hospital, None, "json", none)
print([case.source for case in cases], renamed.classes, facts)


# %%
#| export
def _check_word(annotated: str):
    "`InputError` for a word about zeros that there is not."
    options = ("json", "all", "present")
    if annotated not in options:
        raise did_you_mean("value of annotated", annotated, options)


# %%
#| export
def _passed_over(src: Path) -> dict:
    "Facts: files that were not used."
    return {"unused_files": _told_unused(src), "passed_over": dict(foreign_files(src).most_common())}


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
    **work, # rename, as for `import_dicom`; and those of `Work`: workers, skip_damaged, progress, store
) -> dict: # facts
    """Cut a folder of NIfTI volumes into a challenge folder with an index.

    Raises `InputError` for volumes or labels that cannot be read or contradict each other.
    """
    src = Path(src)
    _check_word(annotated)
    check_folder(src, "a folder of NIfTI volumes")
    renaming = read_renaming(work.pop("rename", None), Path(out).name)
    found = _find_cases(src, classes, annotated, renaming)
    cases, renamed = found.cases, found.classes
    names = [case_name(Path(case.source)) for case in cases]
    read_patients(src/"patients.json", cases, names)
    if keep_names:
        for case, name in zip(cases, names): case.id = name
    facts = write_volumes(cases, out, renamed.old, slicing, test_share, key, Work(**work), renamed)
    return facts | found.facts | _passed_over(src)


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
