# %% [markdown]
# # Annotations
#
# > What was examined on each image, whose body it shows, and what the classes are called.
#
# - skip_showdoc: true

# %%
#| default_exp data.annotations

# %% [markdown]
# Three small JSON files lie beside the images of a challenge folder. `annotated_labels.json` tells *absent* from *unknown*,
# `patients.json` tells which images belong together, and `class_names.json` names the numbers in the masks.

# %%
#| export
import os
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import RAIDIUM54, ClassMap
from ctseg.core.errors import InputError
from ctseg.core.filetypes import instead_of
from ctseg.core.json_files import read_json
from ctseg.data.slices import present_classes
from ctseg.data.splits import near_duplicates

# %%
#| hide
import json
import tempfile
from pathlib import Path

import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError


# %% [markdown]
# ## Classes

# %%
#| export
def read_classes(folder) -> ClassMap:
    "The classes of a challenge folder: its `class_names.json`, else the 54 of the challenge."
    path = Path(folder)/"class_names.json"
    return ClassMap.from_json(path) if os.path.lexists(path) else RAIDIUM54


# %%
with tempfile.TemporaryDirectory() as d:
    print(read_classes(d))
    Path(f"{d}/class_names.json").write_text('{"1": "liver", "2": "spleen"}')
    print(read_classes(d))


# %% [markdown]
# ## What was examined
#
# `annotated_labels.json` is a list with a list of class ids for each training image, `[[1, 2], [2], []]`. Without the file nobody can tell
# absent from unknown, so its absence is an error that names the two ways out, and not a default.

# %%
#| export
def _columns(ids, where: str, C: int) -> list[int]:
    "The columns of `known` for a list of class ids 1…C."
    if not isinstance(ids, list):
        raise InputError(f"{where}: {ids!r} is not a list of class ids")
    for c in ids:
        if type(c) is not int or not 1 <= c <= C:
            raise InputError(f"{where}: {c!r} is not a class id from 1 to {C}")
    return [c - 1 for c in ids]


# %% [markdown]
# Class ids become columns, counted from 0:

# %%
test_eq(_columns([2, 1], "entry 0", 3), [1, 0])
test_fail(lambda: _columns([4], "entry 0", 3), contains="entry 0: 4 is not a class id from 1 to 3")


# %%
#| export
def read_annotated(
    path: Path, # annotated_labels.json
    n: int|None, # number of images; `None`: as many as there are lists
    C: int, # number of classes
) -> np.ndarray: # bool [n,C]
    "`annotated_labels.json` as bool [n,C]: which classes were examined on each image."
    if not os.path.lexists(path):
        hint = instead_of(path.parent, path.name, archives=False)
        raise InputError(f"{path}: no such file{hint}, so absent cannot be told from unknown; "
                         "choose annotated='present' (--annotated present: "
                         "only classes with pixels are known) "
                         "or annotated='all' (--annotated all: "
                         "every class was examined on every image of the CSV)")
    lists = read_json(path)
    if not isinstance(lists, list):
        raise InputError(f"{path}: expected a list with a list of class ids for each image")
    n = len(lists) if n is None else n
    if len(lists) != n:
        raise InputError(f"{path}: {len(lists)} lists for {n} images; "
                         "give each a list, empty if not examined")
    known = np.zeros((n, C), bool)
    for i, ids in enumerate(lists):
        known[i, _columns(ids, f"{path}, entry {i}", C)] = True
    return known


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"annotated_labels.json"
    for text in ("[[1, 2], [2], []]", "[[1, 2], [3], []]", "[[1, 2], [2]]"):
        path.write_text(text)
        try:
            print(read_annotated(path, 3, 2).tolist())
        except InputError as e:
            print("-", str(e).replace(d, "…"))


# %% [markdown]
# The masks and the lists must agree. A pixel of a class that was supposedly never examined means that one of the two is wrong, most likely
# shifted by some rows, and then everything learnt from them is wrong.

# %%
#| export
def check_examined(
    known: np.ndarray, # bool [N,C]
    masks: np.ndarray, # uint8 [N,H,W]
    names, # N image names
    csv: Path, # the file of the masks, for the error
    classes: ClassMap,
    lists: str = "annotated_labels.json", # what says what was examined, for the error
):
    "`InputError` for pixels of a class that was not examined on its image."
    contradicted = present_classes(masks, len(classes)) & ~known
    if contradicted.any():
        i, c = np.argwhere(contradicted)[0]
        raise InputError(f"{csv}, column {names[i]}: pixels of class {c + 1} ({classes.name(c + 1)}), "
                         f"not in entry {i} of {lists}; "
                         "add it there, or check that both files belong to the same images")


# %%
two = ClassMap(["liver", "spleen"])
spleen = np.full((1, 2, 2), 2, np.uint8)
check_examined(np.array([[False, True]]), spleen, ["0.png"], "y_train.csv", two)
test_fail(
    lambda: check_examined(np.array([[True, False]]), spleen, ["0.png"], "y_train.csv", two),
    contains="pixels of class 2 (spleen)",
)


# %% [markdown]
# ## Whose body
#
# `patients.json` is `{"train": [...], "test": [...]}` with the patient of each image, a name or a number. Where it is missing,
# [near-duplicates](60_splits.ipynb) form the groups.

# %%
#| export
def check_patients(
    patients: list, # one for each image
    path, # the file, for the error
):
    "`InputError` for an image without a patient: all such images would be taken for one person's."
    for i, p in enumerate(patients):
        if type(p) not in (str, int, float) or p == "" or not str(p).isprintable():
            raise InputError(f"{path}, entry {i}: {p!r} is no patient; "
                             "give a name or a number, one of its own if the patient is not known")


# %%
check_patients(["anna", 7], "patients.json")
test_fail(lambda: check_patients([7, None], "patients.json"), contains="entry 1: None is no patient")


# %%
#| export
def read_groups(
    folder, # a challenge folder
    split: str, # train or test
    images: np.ndarray, # uint8 [N,H,W]
) -> np.ndarray: # int64 [N]
    "The group of each image, int64 [N]: its patient in `patients.json`, else near-duplicates share one."
    path = Path(folder)/"patients.json"
    if not os.path.lexists(path):
        return near_duplicates(images)
    table = read_json(path)
    if not isinstance(table, dict) or not isinstance(table.get(split), list):
        raise InputError(f'{path}: expected {{"{split}": [...]}} with the patient of each image')
    patients = table[split]
    if len(patients) != len(images):
        raise InputError(f"{path}: {len(patients)} patients under {split!r} for {len(images)} images; "
                         "give one for each image")
    check_patients(patients, path)
    if all(type(p) is int and abs(p) < 2**63 for p in patients):
        return np.array(patients, np.int64)
    return np.unique([str(p) for p in patients], return_inverse=True)[1].astype(np.int64)


# %%
with tempfile.TemporaryDirectory() as d:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8)
    images[2] = images[0]
    print("without the file:", read_groups(d, "train", images))
    Path(f"{d}/patients.json").write_text(json.dumps({"train": ["carl", "anna", "carl"]}))
    print("with it:", read_groups(d, "train", images))
    test_fail(lambda: read_groups(d, "test", images), contains='expected {"test": [...]}')
