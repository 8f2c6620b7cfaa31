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

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json
from ctseg.io.label_names import dataset_classes, read_examined_cases, table_classes
from ctseg.io.nifti import nifti_files
from ctseg.io.walk import foreign_files, foreign_hint

# %%
#| hide
import shutil
import tempfile

from fastcore.test import test_eq, test_fail

from ctseg.core.json_files import write_json
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
# the number and one for the name ([how they are read](../io/46_label_names.ipynb)). Without any, labels are called by their numbers.

# %%
#| export
_TABLES = ("labels.csv", "labels.tsv", "dseg.tsv")

def label_names(folder: Path) -> ClassMap | None:
    "The names of the labels in a folder of label maps; `None` if nothing says them."
    for beside in (folder, folder.parent):
        if (beside/"class_names.json").exists():
            return ClassMap.from_json(beside/"class_names.json")
        if (beside/"dataset.json").exists():
            return dataset_classes(beside/"dataset.json")
    tables = [folder/name for name in _TABLES if (folder/name).exists()]
    return table_classes(tables[0]) if tables else None


# %%
write_json({"labels": {"background": 0, "liver": 1}}, work/"dataset.json")
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
    true, pred = nifti_files(truth), nifti_files(prediction)
    if not true:
        raise InputError(f"{truth}: no NIfTI label maps in it{foreign_hint(foreign_files(truth))}")
    missing = [name for name in true if name not in pred]
    if missing:
        more = f" ({len(missing)} are missing)" if len(missing) > 1 else ""
        more += foreign_hint(foreign_files(prediction))
        raise InputError(f"{prediction}: there is no prediction for {true[missing[0]].name}{more}; "
                         "predict it, or take its truth away")
    return {name: (true[name], pred[name]) for name in true}

def predicted_only(truth: Path, prediction: Path) -> list[str]:
    "The cases that have a prediction and no truth; they are not scored."
    return [name for name in nifti_files(prediction) if name not in nifti_files(truth)]


# %%
#| export
def check_same_names(truth: ClassMap, prediction: Path):
    "Raise `InputError` if the prediction's own `class_names.json` or `dataset.json` says other labels."
    theirs = label_names(prediction)
    if theirs is None or theirs.names == truth.names: return
    pairs = enumerate(zip(truth.names, theirs.names), 1)
    counts = f"{len(truth)} and {len(theirs)} of them"
    odd = next((f"{i} is {a} and {b}" for i, (a, b) in pairs if a != b), counts)
    raise InputError(f"{prediction}: other labels than the truth's ({odd}); "
                     "map them onto the truth's numbers first")


# %%
print(list(matched_files(work/"truth", work/"pred")), predicted_only(work/"truth", work/"pred"))
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
    known = read_examined_cases(path, classes)
    for case in cases:
        if case not in known:
            raise InputError(f"{path}: does not say what was examined on {case}; add it, [] for nothing")
    return {case: known[case] for case in cases}


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
    if not path.exists(): return None
    table = read_json(path)
    if not isinstance(table, dict):
        raise InputError(f"{path}: expected an object from cases to patients")
    for case in cases:
        if case not in table:
            raise InputError(f"{path}: does not say whose scan {case} is; add it")
    return np.array([str(table[case]) for case in cases])


# %%
write_json({"p0": "anna", "p1": "anna"}, work/"patients.json")
print(patients_of_cases(work, ["p0", "p1"]), patients_of_cases(work/"truth", ["p0"]))
shutil.rmtree(work)
