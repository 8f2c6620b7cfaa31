# %% [markdown]
# # TotalSegmentator
#
# > The data set that the challenge's 54 classes come from, read without teaching that nobody has a face.

# %%
#| default_exp io.totalsegmentator

# %%
#| export
import functools
import io
import re
from pathlib import Path

from ctseg.core.anatomy import ClassMap, RAIDIUM54
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.filetypes import check_folder
from ctseg.core.tables import once_each, table_cells, table_text
from ctseg.data.images import natural_key
from ctseg.io.cases import Case
from ctseg.io.cutting import Work, file_stamp
from ctseg.io.folders import write_volumes
from ctseg.io.nifti import nifti_files
from ctseg.io.nifti_import import load_structures
from ctseg.io.renaming import read_renaming, renamed_classes, unused_lines
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import class_flags

# %%
#| hide
import os
import shutil
import tempfile

import nibabel as nib
import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.data.challenge import read_challenge

# %% [markdown]
# The [TotalSegmentator](https://arxiv.org/abs/2208.05868) data set ([Zenodo](https://doi.org/10.5281/zenodo.6802613)) has 1,228
# subjects. Each is a folder with `ct.nii.gz` and a file for each structure. Version 1 has 104 structures, and merging some of them
# makes the challenge's 54 classes.

# %%
#| export
_VERTEBRAE = {"cervical": ("C", 7), "thoracic": ("T", 12), "lumbar": ("L", 5)}
_LOBES = {"left": ("upper", "lower"), "right": ("upper", "middle", "lower")}
_HEART = ("heart_myocardium", "heart_atrium_left", "heart_ventricle_left",
          "heart_atrium_right", "heart_ventricle_right")

def _merged_parts() -> dict[str, tuple[str, ...]]:
    "The classes that both versions have in several structures."
    parts = {}
    for side, lobes in _LOBES.items():
        parts[f"lung_{side}"] = tuple(f"lung_{lobe}_lobe_{side}" for lobe in lobes)
        parts[f"rib_{side}"] = tuple(f"rib_{side}_{i}" for i in range(1, 13))
    for region, (letter, n) in _VERTEBRAE.items():
        parts[f"vertebrae_{region}"] = tuple(f"vertebrae_{letter}{i}" for i in range(1, n + 1))
    return parts


# %%
print({name: len(parts) for name, parts in _merged_parts().items()})


# %% [markdown]
# Version 2 changed the list. The five parts of the heart became one `heart`; `face` and `pulmonary_artery` are gone from it; the
# first sacral vertebra is a structure of its own now, where version 1 counted it to the sacrum. A converter that looks for a
# file and, finding none, says *absent*, teaches that nobody has a face. Here a class is known only if **all** its parts have a
# file.

# %%
#| export
def total_parts(
    version: int, # 1 or 2 of the data set
) -> dict[str, tuple[str, ...]]: # class of the challenge → the structures it is the union of
    "Which structures make up each of the 54 classes. In version 2 face and pulmonary_artery cannot be had."
    parts = {name: (name,) for name in RAIDIUM54.names} | _merged_parts()
    if version == 1: return parts | {"heart": _HEART}
    parts["sacrum"] = ("sacrum", "vertebrae_S1")
    for gone in ("face", "pulmonary_artery"): del parts[gone]
    return parts


# %%
test_eq(sum(map(len, total_parts(1).values())), 104)
test_eq(len(set().union(*total_parts(1).values())), 104)
print("not in version 2:", sorted(set(RAIDIUM54.names) - set(total_parts(2))))

# %%
#| export
_ONLY_IN_1 = {"face", "pulmonary_artery", "heart_myocardium", "heart_atrium_left", "heart_ventricle_left"}

def total_version(structures) -> int: # 1 or 2
    """The version of a subject by the names of its structures.

    Undecided counts as 2, whose rules are the stricter ones.
    """
    return 1 if _ONLY_IN_1 & set(structures) else 2


# %%
print("version", total_version(["heart", "face"]), "and", total_version(["heart"]))

# %% [markdown]
# Three made-up subjects: one of version 1, one of version 2, and one of version 2 whose tool was asked for a few structures only.

# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
total = work/"Totalsegmentator_dataset"
grid, affine = (24, 20, 6), np.diag([10., 10, 30, 1])
version1 = sorted(set().union(*total_parts(1).values()))
version2 = sorted(set().union(*total_parts(2).values()) | {"skull", "sternum", "thyroid_gland"})
few = ["liver", "sacrum", "lung_upper_lobe_left", "rib_left_1"]
for subject, names in ("s0000", version1), ("s0001", version2), ("s0002", few):
    (total/subject/"segmentations").mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.full(grid, 40, np.int16), affine), total/subject/"ct.nii.gz")
    for i, name in enumerate(names):
        mask = np.zeros(grid, np.uint8)
        mask[i % 24, i//24*2:i//24*2 + 2] = name != "spleen"  # this subject's spleen was removed
        nib.save(nib.Nifti1Image(mask, affine), total/subject/"segmentations"/f"{name}.nii.gz")
(total/"meta.csv").write_text("image_id;age;split\ns0000;50;train\ns0001;60;val\ns0002;60;test\n")
print({d.name: len(list((d/"segmentations").iterdir())) for d in sorted(total.glob("s*"))})


# %% [markdown]
# Who goes into the test is written in `meta.csv`. A test subject of whom not every class is known (all of version 2, unless
# `classes` leaves out face and pulmonary artery) cannot be one in the challenge's form; it is left out, not trained on.

# %%
#| export
def _meta_splits(src: Path) -> dict[str, str]:
    "Subject → train, val or test, from `meta.csv`, if it is there."
    path = src/"meta.csv"
    if not path.exists(): return {}
    header, rows = table_cells(io.StringIO(table_text(path), newline=""), path)
    try: subject, split = map(header.index, ("image_id", "split"))
    except ValueError:
        raise InputError(f"{path}: expected a table with the columns image_id;…;split;…, "
                         "as TotalSegmentator has it") from None
    return once_each(((row[subject], row[split]) for row in rows.values()), path)


# %%
print(_meta_splits(total))


# %%
#| export
def _subject_case(folder: Path, classes: ClassMap, official_split: str|None) -> Case:
    "A subject as a case. A class is known if all its parts have a file."
    files = nifti_files(folder/"segmentations")
    all_parts = total_parts(total_version(files))
    parts = {classes.id(n): p for n, p in all_parts.items() if n in classes.names and set(p) <= set(files)}
    known = class_flags(parts, len(classes))
    load = functools.partial(load_structures, folder/"ct.nii.gz", files, parts, len(classes),
                             kind="totalsegmentator")
    split = "test" if official_split == "test" else "train"
    public_name = folder.name if re.fullmatch(r"s\d{4}", folder.name) else ""
    stamp = file_stamp([folder/"ct.nii.gz", *files.values()]) if (folder/"ct.nii.gz").exists() else ""
    return Case(folder.name, load, None, known, split, public_name, str(folder), stamp)


# %%
for name in ("s0000", "s0001", "s0002"):
    case = _subject_case(total/name, RAIDIUM54, _meta_splits(total)[name])
    print(case.id, case.split, "known:", case.known.sum(), "of 54")


# %%
#| export
def _checked_classes(classes) -> ClassMap:
    "Some of the 54 classes, from a map or the path of a file; `None`: all."
    if classes is None: return RAIDIUM54
    if not isinstance(classes, ClassMap): classes = ClassMap.from_json(classes)
    for name in classes.names:
        if name not in RAIDIUM54.names:
            raise did_you_mean("class", name, RAIDIUM54.names)
    return classes


# %%
print(_checked_classes(ClassMap.from_names(["liver", "spleen"])))
test_fail(lambda: _checked_classes(ClassMap.from_names(["livr"])), contains="did you mean liver")


# %%
#| export
def _subjects(src: Path) -> list[Path]:
    "The folders of the subjects, in natural order."
    folders = [d for d in src.iterdir() if (d/"ct.nii.gz").exists() or (d/"segmentations").is_dir()]
    return sorted(folders, key=lambda d: natural_key(d.name))


# %%
#| export
def _with_subjects(src: Path) -> Path:
    "The folder that holds the subjects: the one given, or the only one in it, as an archive unpacks."
    check_folder(src, "the TotalSegmentator data set")
    inner = [d for d in src.iterdir() if d.is_dir() and not d.name.startswith((".", "_"))]
    deeper = not _subjects(src) and len(inner) == 1 and _subjects(inner[0])
    return inner[0] if deeper else src


# %%
print(_with_subjects(total).name, _with_subjects(total.parent).name, [d.name for d in _subjects(total)])


# %%
#| export
def _check_found(subjects: list[Case], cases: list[Case], src: Path):
    "`InputError` where there are no subjects, or none that can be used."
    if cases: return
    if subjects:
        raise InputError(f"{src}: all {len(subjects)} subjects are of the test split of meta.csv "
                         "and lack classes, which a test needs; "
                         "choose fewer classes (--classes), or take meta.csv away")
    raise InputError(f"{src}: no subjects in it; expected s0000/ct.nii.gz and s0000/segmentations/, "
                     "unpacked from the Zenodo file")


# %%
#| export
def import_totalsegmentator(
    src, # the data set's folder, version 1 or 2: s0000/ct.nii.gz, s0000/segmentations/*.nii.gz, meta.csv
    out, # the challenge folder, new
    slicing: Slicing = Slicing(window="random", per_volume=2, min_body=90., size=256, spacing="fit"),
    classes: ClassMap|str|None = None, # some of the 54 classes, or a `class_names.json`; `None`: all
    rename: dict|str|None = None, # one of the 54 → class name, or the path of such a JSON
    **work, # of `Work`: workers, skip_damaged, progress, store
) -> dict: # facts
    """Cut the data set into a challenge folder with the 54 classes.

    A class of which a part has no file is unknown. Raises `InputError` for damaged files and other classes.
    """
    src = _with_subjects(Path(src))
    classes, splits = _checked_classes(classes), _meta_splits(src)
    subjects = [_subject_case(folder, classes, splits.get(folder.name)) for folder in _subjects(src)]
    cases = [case for case in subjects if case.split == "train" or case.known.all()]
    _check_found(subjects, cases, src)
    renaming = read_renaming(rename, Path(out).name)
    unused, renamed = unused_lines(renaming, classes.names), renamed_classes(classes, renaming)
    facts = write_volumes(cases, out, classes, slicing, work=Work(**work), renamed=renamed)
    return facts | unused | {"test_subjects_left_out": len(subjects) - len(cases)}


# %%
(total/"meta.csv").unlink()
facts = import_totalsegmentator(total, work/"ts", Slicing(per_volume=2))
notes = facts.pop("notes")
print(facts, len(notes), "notes, as:", notes[0].rpartition(": ")[2], sep="\n")
s = read_challenge(work/"ts")
for g in range(3):
    one = s[s.groups == g][0]
    state = np.where(one.known[0], np.where(one.present[0], "present", "absent"), "unknown")
    some = {n: str(state[RAIDIUM54.id(n) - 1]) for n in ("face", "heart", "sacrum", "spleen", "lung_left")}
    print(f"s{g:04}: {one.known.sum()} of 54 known, {one.present.sum()} present;", some)

# %% [markdown]
# Participants of the challenge should note that its rules are said to forbid outside radiological data.

# %%
#| hide
shutil.rmtree(work)
