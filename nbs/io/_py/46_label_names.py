# %% [markdown]
# # What labels are called
#
# > The files in which other programs say what the numbers of a label map mean, and what was looked for.

# %%
#| default_exp io.label_names

# %%
#| export
import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError, some_of
from ctseg.core.json_files import read_json
from ctseg.core.tables import table_cells, table_text
from ctseg.io.volumes import class_flags

# %%
#| hide
import shutil
import tempfile

from fastcore.test import test_fail

from ctseg.core.json_files import write_json
from ctseg.io.toy_scans import TORSO_CLASSES


# %% [markdown]
# A NIfTI label map holds numbers only. What they mean stands in a file beside it: nnU-Net's `dataset.json`, or a `class_names.json`. This page reads such files; the
# [import of NIfTI](65_nifti_import.ipynb) uses it.
#
# ## Numbers and their names
#
# In each of these files, names must belong to 1, 2, 3, … without a gap, and no number may have two names.

# %%
#| export
def whole_number(x) -> int|None:
    "A whole number from JSON or a table, also one written as text; else `None`."
    if isinstance(x, str):
        return int(float(x)) if re.fullmatch(r"\s*\d{1,3}(\.0)?\s*", x, re.ASCII) else None
    if isinstance(x, bool): return None
    if not isinstance(x, (int, float, np.number)): return None
    return int(x) if float(x).is_integer() else None


# %%
print([whole_number(x) for x in (3, 3.0, "3", " 3 ", 3.5, True, None, "three")])

# %%
#| export
_NO_CLASSES = ("background", "ignore")

def numbered_classes(
    pairs: Iterable[tuple], # number and name, in any type
    path: Path, # of the file that says so, for messages
) -> ClassMap:
    """The classes, without background and ignore.

    Raises `InputError` unless they are numbered from 1, each once.
    """
    names: dict[int, str] = {}
    for number, name in pairs:
        id = whole_number(number)
        if not isinstance(name, str) or id is None:
            raise InputError(f"{path}: labels must be names numbered 0, 1, 2, … without regions "
                             f"({name!r} is {number!r}); write a class_names.json instead")
        if name.strip().lower() in _NO_CLASSES or id == 0:
            continue
        if id in names:
            raise InputError(f"{path}: {names[id]!r} and {name!r} have one number, {id}; "
                             "number the labels 1, 2, 3, …")
        names[id] = name
    numbers = sorted(names)
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        found = some_of(numbers) or "none"
        raise InputError(f"{path}: labels must be names numbered 0, 1, 2, … without a gap, found {found}; "
                         "write a class_names.json instead")
    try: return ClassMap.from_names([names[number] for number in numbers])
    except InputError as e: raise InputError(f"{path}: {e}") from None


# %%
table = Path("x.json")
print(numbered_classes([(0, "Background"), ("2", "liver"), (1.0, "spleen"), (3, "ignore")], table).names)
test_fail(lambda: numbered_classes([(1, "liver"), (1, "spleen")], table), contains="have one number, 1")
test_fail(lambda: numbered_classes([([1, 2], "organs")], table), contains="without regions")


# %% [markdown]
# nnU-Net 2 writes `{name: number}` into its `dataset.json`, nnU-Net 1 and the Decathlon `{number: name}`. A name may be `ignore`: voxels nobody
# looked at.

# %%
#| export
def _dataset_pairs(path: Path) -> list[tuple]:
    "Number and name of each label of a `dataset.json`, as they are written there."
    table = read_json(path)
    labels = table.get("labels") if isinstance(table, dict) else None
    if not isinstance(labels, dict):
        raise InputError(f"{path}: labels must be names numbered 0, 1, 2, …, and it has none; "
                         "write a class_names.json instead")
    pairs = list(labels.items())
    by_number = all(whole_number(key) is not None for key in labels)
    if by_number: return pairs
    return [(number, name) for name, number in pairs]

def dataset_classes(path: Path) -> ClassMap:
    "The classes of a `dataset.json`. Raises `InputError` for one that numbers no classes."
    return numbered_classes(_dataset_pairs(path), path)

def ignore_label(path: Path) -> int|None:
    "The number that a `dataset.json` gives to voxels that are to be ignored; `None`: none, or there is no file."
    if not path.exists(): return None
    table = read_json(path)
    labels = table.get("labels") if isinstance(table, dict) else None
    if not isinstance(labels, dict): return None
    for number, name in _dataset_pairs(path):
        if name == "ignore":
            return whole_number(number)
    return None


# %%
work = Path(tempfile.mkdtemp())
dataset = work/"dataset.json"
write_json({"labels": {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}}, dataset)
print(dataset_classes(dataset).names, ignore_label(dataset))
write_json({"labels": {"0": "background", "1": "spleen"}}, dataset)
print(dataset_classes(dataset).names, ignore_label(dataset))

# %%
#| export
_ID_COLUMNS, _NAME_COLUMNS = ("id", "index", "label", "value"), ("name", "structure", "class")

def table_classes(path: Path) -> ClassMap:
    "The classes of a table with a column for the number and one for the name; `InputError` for another one."
    text = table_text(path, "write one as CSV in UTF-8 with the columns id and name")
    marks = "\t" if path.suffix == ".tsv" else ",;\t"
    header, rows = table_cells(io.StringIO(text, newline=""), path, marks)
    headings = [name.lower() for name in header]
    id = next((headings.index(name) for name in _ID_COLUMNS if name in headings), None)
    name = next((headings.index(name) for name in _NAME_COLUMNS if name in headings), None)
    if id is None or name is None:
        raise InputError(f"{path}: expected a column id and a column name, found {some_of(headings)}")
    return numbered_classes(((row[id], row[name]) for row in rows.values()), path)


# %%
(work/"labels.csv").write_text("id;name\n1;liver\n2;stomach\n")
print(table_classes(work/"labels.csv").names)
(work/"labels.csv").write_bytes(b"\xff\xfei\0d\0")
test_fail(lambda: table_classes(work/"labels.csv"), contains="as CSV in UTF-8")


# %% [markdown]
# ## What was looked for
#
# An `annotated_labels.json` beside volumes lists for each case the classes that were examined, by name or number.

# %%
#| export
def class_ids(names: list, classes: ClassMap, where: str) -> list[int]:
    "The ids of classes given by name or number; `InputError` for one that does not exist."
    ids = []
    for name in names:
        try: id = classes.id(name) if isinstance(name, str) else name
        except InputError as e: raise InputError(f"{where}: {e}") from None
        ids.append(id)
    for id in ids:
        if type(id) is not int or not 1 <= id <= len(classes):
            raise InputError(f"{where}: {id!r} is not a class; "
                             f"expected names, or numbers from 1 to {len(classes)}")
    return ids

def read_examined_cases(path: Path, classes: ClassMap) -> dict[str, np.ndarray]: # case → bool [C]
    "The classes examined on each case. Raises `InputError` for a file that does not say that."
    table = read_json(path)
    has_lists = isinstance(table, dict) and all(isinstance(names, list) for names in table.values())
    if not has_lists:
        raise InputError(f"{path}: expected an object with a list of class names for each case")
    examined = {}
    for case, names in table.items():
        ids = class_ids(names, classes, f"{path}, {case}")
        examined[case] = class_flags(ids, len(classes))
    return examined


# %%
write_json({"p1": ["liver", "vertebrae"], "p2": [], "p3": [1]}, work/"annotated_labels.json")
print(read_examined_cases(work/"annotated_labels.json", TORSO_CLASSES))
test_fail(lambda: class_ids([6], TORSO_CLASSES, "p1"), contains="6 is not a class")
test_fail(lambda: class_ids([None], TORSO_CLASSES, "p1"), contains="None is not a class")
test_fail(lambda: class_ids(["livr"], TORSO_CLASSES, "p1"), contains="p1: unknown class 'livr'")

# %%
#| hide
shutil.rmtree(work)
