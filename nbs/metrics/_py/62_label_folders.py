# %% [markdown]
# # Folders of label maps
#
# > Which prediction belongs to which truth, what their labels are called, and what was examined.
#
# - skip_showdoc: true

# %%
#| default_exp metrics.label_folders

# %%
#| export
from pathlib import Path

import numpy as np
import pandas as pd

from ctseg.core.anatomy import ClassMap
from ctseg.core.files import InputError, read_json
from ctseg.io.nifti import nifti_files
from ctseg.io.volumes import class_flags

# %%
#| hide
import shutil
import tempfile

from fastcore.test import test_eq, test_fail

from ctseg.core.files import write_json
from ctseg.io.toy_scans import TORSO_CLASSES

# %% [markdown]
# `ctseg evaluate` compares [two folders of volumes](65_volume_files.ipynb). This page settles everything about their files but the voxels.

# %%
work = Path(tempfile.mkdtemp())
for folder in ("truth", "pred"):
    (work/folder).mkdir()
    for i in range(3): (work/folder/f"p{i}.nii.gz").touch()
TORSO_CLASSES.to_json(work/"truth"/"class_names.json")

# %% [markdown]
# ## Names of the labels
#
# They are looked for beside the truth: `class_names.json`, the `dataset.json` of nnU-Net (also one folder up), or a table with a column for
# the number and one for the name. Without any, labels are called by their numbers.

# %%
#| export
_TABLES = ("labels.csv", "labels.tsv", "dseg.tsv")
_ID_COLUMNS = ("id", "index", "label", "value")
_NAME_COLUMNS = ("name", "structure", "class")

def _names_in_table(path: Path) -> dict[int, str]:
    "The names in a table of numbers and names; `InputError` for another table."
    separator = "\t" if path.suffix == ".tsv" else ","
    table = pd.read_csv(path, sep=separator)
    columns = {str(column).strip().lower(): column for column in table.columns}
    id_columns = [columns[name] for name in _ID_COLUMNS if name in columns]
    name_columns = [columns[name] for name in _NAME_COLUMNS if name in columns]
    if not id_columns or not name_columns:
        found = ", ".join(columns)
        raise InputError(f"{path}: expected a column id and a column name, found {found}")
    pairs = zip(table[id_columns[0]], table[name_columns[0]])
    try:
        return {int(id): str(name) for id, name in pairs}
    except ValueError:
        raise InputError(f"{path}: expected whole numbers in the column {id_columns[0]}") from None


# %%
(work/"labels.csv").write_text("id,name\n1,liver\n2,stomach\n")
print(_names_in_table(work/"labels.csv"))


# %%
#| export
def _names_in_dataset(path: Path) -> dict[int, str]:
    "The names in the `dataset.json` of nnU-Net or the Decathlon, whichever way round it has them."
    table = read_json(path)
    labels = table.get("labels") if isinstance(table, dict) else None
    if not isinstance(labels, dict):
        raise InputError(f"{path}: has no labels")
    by_number = all(str(key).isdigit() for key in labels)
    try:
        if by_number:
            return {int(id): str(name) for id, name in labels.items()}
        return {int(id): str(name) for name, id in labels.items()}
    except (TypeError, ValueError):
        raise InputError(f"{path}: labels must be names with one number each; "
                         "write a class_names.json instead") from None


# %%
write_json({"labels": {"background": 0, "liver": 1}}, work/"dataset.json")
print(_names_in_dataset(work/"dataset.json"))


# %%
#| export
def _as_classes(names: dict[int, str], path: Path) -> ClassMap:
    "A class map of numbered names, without background and ignore; `InputError` unless they are 1, 2, 3, …"
    kept = {}
    for id, name in names.items():
        if id and name not in ("background", "ignore"):
            kept[id] = name
    ids = sorted(kept)
    if not kept or ids != list(range(1, len(kept) + 1)):
        raise InputError(f"{path}: expected labels numbered from 1 without a gap")
    return ClassMap.from_names([kept[id] for id in ids])

def label_names(folder: Path) -> ClassMap | None:
    "The names of the labels in a folder of label maps; `None` if nothing says them."
    for beside in (folder, folder.parent):
        class_names = beside/"class_names.json"
        if class_names.exists():
            return ClassMap.from_json(class_names)
        dataset = beside/"dataset.json"
        if dataset.exists():
            return _as_classes(_names_in_dataset(dataset), dataset)
    for name in _TABLES:
        table = folder/name
        if table.exists():
            return _as_classes(_names_in_table(table), table)
    return None


# %%
print(label_names(work/"truth"), label_names(work/"pred"))
(work/"dataset.json").unlink()
test_eq(label_names(work/"pred"), None)


# %% [markdown]
# ## Pairs
#
# A case without a prediction, another grid, or a label that does not exist is refused: an average that leaves one out would be too good.

# %%
#| export
def matched_files(truth: Path, prediction: Path) -> dict[str, tuple[Path, Path]]:
    "Case → its two files. Raises `InputError` for a case without a prediction, and for an empty folder."
    true = nifti_files(truth)
    predicted = nifti_files(prediction)
    if not true:
        raise InputError(f"{truth}: no NIfTI label maps in it")
    missing = [path.name for case, path in true.items() if case not in predicted]
    if missing:
        more = f" ({len(missing)} are missing)" if len(missing) > 1 else ""
        raise InputError(f"{prediction}: there is no prediction for {missing[0]}{more}; "
                         "predict it, or take its truth away")
    return {case: (path, predicted[case]) for case, path in true.items()}


# %%
#| export
def check_same_names(truth: ClassMap, prediction: Path):
    "Raise `InputError` if the prediction's own `class_names.json` or `dataset.json` says other labels."
    theirs = label_names(prediction)
    if theirs is None or theirs.names == truth.names: return
    odd = f"{len(truth)} and {len(theirs)} of them"
    for number, (own, other) in enumerate(zip(truth.names, theirs.names), 1):
        if own != other:
            odd = f"{number} is {own} and {other}"
            break
    raise InputError(f"{prediction}: other labels than the truth's ({odd}); "
                     "map them onto the truth's numbers first")


# %%
print(list(matched_files(work/"truth", work/"pred")))
(work/"few").mkdir()
shutil.copy(work/"pred"/"p0.nii.gz", work/"few")
test_fail(
    lambda: matched_files(work/"truth", work/"few"),
    contains="no prediction for p1.nii.gz (2 are missing)",
)
write_json({"1": "spleen"}, work/"few"/"class_names.json")
test_fail(lambda: check_same_names(TORSO_CLASSES, work/"few"), contains="1 is liver and spleen")


# %% [markdown]
# ## What was examined
#
# Without an `annotated_labels.json` beside the truth every class counts as examined. With it, the classes that are not on the list of a case
# are unknown there, and are not scored. `patients.json` says which cases are of one patient.

# %%
#| export
def examined_on(
    folder: Path, # of the truth
    annotated: str | None, # a JSON, "all" or "present"; None: the one in the folder, if there is one
    cases: list[str],
    classes: ClassMap,
) -> dict[str, np.ndarray] | None: # case → bool [C]; None: everything was examined
    "What was examined, from a JSON of case → names or numbers. Raises `InputError` for what does not fit."
    if annotated in ("all", "present"): return None
    path = Path(annotated or folder/"annotated_labels.json")
    if annotated is None and not path.exists(): return None
    table = read_json(path)
    if not isinstance(table, dict) or not all(isinstance(found, list) for found in table.values()):
        raise InputError(f"{path}: expected an object with a list of classes for each case")
    known = {}
    for case in cases:
        if case not in table:
            raise InputError(f"{path}: does not say what was examined on {case}; add it, [] for nothing")
        ids = [classes.id(item) if isinstance(item, str) else item for item in table[case]]
        known[case] = class_flags(ids, len(classes))
    return known


# %%
write_json({"p0": ["liver"], "p1": [1, 2], "p2": []}, work/"truth"/"annotated_labels.json")
print(examined_on(work/"truth", None, ["p0", "p2"], TORSO_CLASSES))
(work/"truth"/"annotated_labels.json").unlink()
test_eq(examined_on(work/"truth", None, ["p0"], TORSO_CLASSES), None)


# %%
#| export
def patients_of_cases(folder: Path, cases: list[str]) -> np.ndarray | None:
    "The patient of each case from `patients.json`; `None` if there is none."
    path = folder/"patients.json"
    table = read_json(path) if path.exists() else None
    if not isinstance(table, dict): return None
    for case in cases:
        if case not in table:
            raise InputError(f"{path}: does not say whose scan {case} is; add it")
    return np.array([str(table[case]) for case in cases])


# %%
write_json({"p0": "anna", "p1": "anna"}, work/"patients.json")
print(patients_of_cases(work, ["p0", "p1"]), patients_of_cases(work/"truth", ["p0"]))
shutil.rmtree(work)
