# %% [markdown]
# # Names of values
#
# > What the numbers in masks and tables are called: a JSON or a CSV, in the forms people write.

# %%
#| default_exp io.value_names

# %%
#| export
import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from ctseg.core.anatomy import ClassMap
from ctseg.core.files import InputError, did_you_mean, read_json
from ctseg.data.images import natural_key
from ctseg.data.mask_rows import MAX_LINE, open_csv

# %%
#| hide
import tempfile

from fastcore.test import test_eq, test_fail


# %% [markdown]
# ## A table
#
# Small tables come from everywhere. Each row must have as many cells as the first one: a file that was cut off would otherwise lose its
# end in silence.

# %%
#| export
def read_table(path) -> tuple[list[str], list[list[str]]]: # the first row, and the others
    "A CSV of text: its header and its rows, each as long as the header. `InputError` for anything else."
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a file, expected a CSV")
    csv.field_size_limit(MAX_LINE)
    try:
        with open_csv(path) as raw:
            text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            rows = [row for row in csv.reader(text, strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path}: not a readable CSV ({e}); write it again as UTF-8 text") from None
    if not rows:
        raise InputError(f"{path}: is empty, expected a CSV with a header")
    header, *rows = rows
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}, row {number}: {len(row)} cells, but the header has {len(header)}; "
                             "the file may be cut off")
    return [name.strip() for name in header], rows


# %%
work = Path(tempfile.mkdtemp())
(work/"t.csv").write_text("value,name\n1,liver\n2,\"spleen, left\"\n")
print(read_table(work/"t.csv"))
(work/"t.csv").write_text("value,name\n1,liver\n2")
test_fail(lambda: read_table(work/"t.csv"), contains="row 3: 1 cells, but the header has 2")


# %% [markdown]
# ## Which column is which
#
# People call one thing by many names. So the names of columns are compared without capitals and signs.

# %%
#| export
def plain(name: str) -> str:
    "A column's name in small letters and digits only."
    return re.sub(r"[^a-z0-9]", "", name.lower())

def column_of(header: list[str], names: Iterable[str]) -> int|None:
    "The first column with one of these plain names; `None` if there is none."
    plain_header = [plain(name) for name in header]
    return next((plain_header.index(name) for name in names if name in plain_header), None)


# %%
test_eq(column_of(["ImageId", "Class_ID"], ["classid", "class"]), 1)

# %%
#| export
_VALUE = ("value", "pixelvalue", "id", "classid", "index", "label", "class", "number", "grey", "gray")
_NAME = ("name", "classname", "labelname", "organ", "structure", "class", "label")

def _whole(text) -> int|None:
    "A whole number from 0 to 65535, also written as text; else `None`."
    if type(text) is int: return text if 0 <= text < 65536 else None
    found = re.fullmatch(r"\s*(\d{1,5})\s*", text, re.ASCII) if isinstance(text, str) else None
    return int(found[1]) if found and int(found[1]) < 65536 else None


# %%
#| export
def _columns(header: list[str], rows: list[list[str]], path: Path) -> tuple[int, int]:
    "The columns of the values and of the names."
    numeric = [i for i in range(len(header)) if rows and all(_whole(row[i]) is not None for row in rows)]
    named = column_of(header, _VALUE)
    value = named if named in numeric else next(iter(numeric), None)
    others = [i for i in range(len(header)) if i not in numeric]
    name = next((i for i in others if plain(header[i]) in _NAME), others[0] if len(others) == 1 else None)
    if value is None or name is None:
        raise InputError(f"{path}: expected a CSV with a column of values and one of names, "
                         "such as value,name")
    return value, name


# %%
test_eq(_columns(["organ", "value"], [["liver", "63"], ["spleen", "127"]], "c.csv"), (1, 0))
test_fail(
    lambda: _columns(["a", "b"], [["liver", "x"]], "c.csv"), contains="a column of values and one of names"
)


# %%
#| export
def _json_pairs(content, path: Path) -> list[tuple]:
    "Value and name from a list of names, `{value: name}` or `{name: value}`."
    if isinstance(content, list): return list(enumerate(content, 1))
    if not isinstance(content, dict) or not content:
        raise InputError(f'{path}: expected {{"1": "liver", …}}, or a list of names')
    if all(_whole(key) is not None for key in content):
        return list(content.items())
    return [(value, name) for name, value in content.items()]


# %%
#| export
def read_value_names(path) -> dict[int, str]: # value → name, by value
    "The names of values from a JSON or CSV; `InputError` for what is no value or name, or is there twice."
    path = Path(path)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        header, rows = read_table(path)
        value, name = _columns(header, rows, path)
        pairs = [(row[value], row[name].strip()) for row in rows]
    else:
        pairs = _json_pairs(read_json(path), path)
    named = {}
    for value, name in pairs:
        if _whole(value) is None or not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}: {value!r} is no value from 0 to 65535, or {name!r} no name")
        if _whole(value) in named or name in named.values():
            raise InputError(f"{path}: value {value} or name {name!r} is there twice; "
                             "give each value one name")
        named[_whole(value)] = name
    return dict(sorted(named.items()))


# %%
for text in (
    '{"1": "liver", "2": "spleen"}',
    '{"spleen": 127, "liver": 63, "background": 0}',
    '["liver", "spleen"]',
):
    (work/"c.json").write_text(text)
    print(read_value_names(work/"c.json"))
(work/"c.csv").write_text("organ,value\nliver,63\nspleen,127\n")
test_eq(read_value_names(work/"c.csv"), {63: "liver", 127: "spleen"})
(work/"c.json").write_text('{"1": "liver", "2": "liver"}')
test_fail(lambda: read_value_names(work/"c.json"), contains="is there twice")

# %% [markdown]
# ## From names to classes
#
# In a mask the value 0 is the background. In a table of codes it may be a class, since some competitions count from 0.

# %%
#| export
BACKGROUND = ("background", "bg", "none", "nothing", "unlabelled", "unlabeled")

def foreground(names: dict[int, str]) -> dict[int, str]:
    "The values that are classes: without a background."
    return {value: name for value, name in names.items() if plain(name) not in BACKGROUND}

def class_map(names: dict[int, str], where) -> ClassMap:
    "The classes in the order of their values; `InputError` if there are none, or too many."
    try:
        return ClassMap.from_names(foreground(names).values())
    except InputError as e:
        raise InputError(f"{where}: {e}") from None

def numbered(tokens: Iterable[str]) -> dict[int, str]:
    "Names for classes that only folders or cells tell: by number where all are numbers, else by alphabet."
    tokens = sorted(set(tokens), key=natural_key)
    if tokens and all(_whole(token) is not None for token in tokens):
        return {int(token): f"class_{int(token)}" for token in tokens}
    return dict(enumerate(tokens, 1))


# %%
print(
    class_map({0: "background", 63: "liver"}, "c.json"), numbered(["spleen", "liver"]), numbered(["2", "10"])
)


# %%
#| export
def token_ids(
    tokens: Iterable[str], # names or values, as folders, files or cells have them
    names: dict[int, str], # value → name, see `read_value_names`
    classes: ClassMap, # of these names
    where, # what a message calls their source
) -> dict[str, int]: # token → class id; a name that is no class is left out
    "The class ids of tokens. `InputError` for a value that is no class, and if no token is one."
    folded = {name.lower(): name for name in classes.names}
    ids, unknown = {}, []
    for token in sorted(set(tokens)):
        name = folded.get(token.lower()) or foreground(names).get(_whole(token))
        if name: ids[token] = classes.id(name)
        elif _whole(token) is not None:
            raise InputError(f"{where}: {token} is no class; expected one of {sorted(foreground(names))}")
        else: unknown.append(token)
    if unknown and not ids:
        nearest = did_you_mean("class", unknown[0], classes.names)
        raise InputError(f"{where}: none of its classes is among the given ones: {nearest}")
    return ids


# %%
named = {1: "liver", 2: "spleen"}
print(token_ids(["Liver", "2", "heart"], named, class_map(named, "c.json"), "masks"))
test_fail(
    lambda: token_ids(["3"], named, class_map(named, ""), "masks"),
    contains="3 is no class; expected one of [1, 2]",
)
test_fail(lambda: token_ids(["livr"], named, class_map(named, ""), "masks"), contains="did you mean liver")
