# %% [markdown]
# # Names of values
#
# > What the numbers in masks and tables are called: a JSON or a CSV, in the forms people write.

# %%
#| default_exp io.value_names

# %%
#| export
import io
import re
from collections.abc import Iterable
from pathlib import Path

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.json_files import read_json
from ctseg.core.tables import counted_lines, table_cells
from ctseg.data.images import natural_key
from ctseg.data.mask_rows import open_csv

# %%
#| hide
import tempfile

from fastcore.test import test_eq, test_fail


# %% [markdown]
# A mask of a competition holds values such as 1 or 128. A table beside the masks says what they mean: a JSON, or a CSV with columns called differently by each author. This
# page reads such tables for [`ctseg import png`](96_png.ipynb).
#
# ## A table
#
# Each row must have as many cells as the header. Otherwise a truncated file would lose its end in silence.

# %%
#| export
def read_text_table(path) -> tuple[list[str], dict[int, list[str]]]: # see `table_cells`
    "A CSV of text, packed or not: its header and, by line, its rows. `InputError` for anything else."
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a file, expected a CSV")
    try:
        with open_csv(path) as raw:
            text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            return table_cells(counted_lines(text, path), path)
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: not a readable CSV ({e}); write it again as UTF-8 text") from None


# %%
work = Path(tempfile.mkdtemp())
(work/"t.csv").write_text("value,name\n1,liver\n2,\"spleen, left\"\n")
print(read_text_table(work/"t.csv"))
(work/"t.csv").write_text("value,name\n1,liver\n2")
test_fail(lambda: read_text_table(work/"t.csv"), contains="line 3: 1 cells, but the header has 2")


# %% [markdown]
# ## Which column is which
#
# People call one thing by many names. So the names of columns are compared without capitals and signs.

# %%
#| export
def letters_and_digits(name: str) -> str:
    "A column's name in small letters and digits only."
    return re.sub(r"[^a-z0-9]", "", name.lower())

def column_of(header: list[str], names: Iterable[str]) -> int|None:
    "The first column with one of these plain names; `None` if there is none."
    plain_header = [letters_and_digits(name) for name in header]
    for name in names:
        if name in plain_header: return plain_header.index(name)
    return None


# %%
test_eq(column_of(["ImageId", "Class_ID"], ["classid", "class"]), 1)

# %%
#| export
_VALUE = ("value", "pixelvalue", "id", "classid", "index", "label", "class", "number", "grey", "gray")
_NAME = ("name", "classname", "labelname", "organ", "structure", "class", "label")

def _whole(text) -> int|None:
    "A whole number from 0 to 65535, also written as text; else `None`."
    number = text
    if isinstance(text, str):
        digits = re.fullmatch(r"\s*(\d{1,5})\s*", text, re.ASCII)
        if digits is None: return None
        number = int(digits[1])
    if type(number) is not int: return None
    return number if 0 <= number < 65536 else None


# %%
#| export
def _columns(header: list[str], rows: list[list[str]], path: Path) -> tuple[int, int]:
    "The columns of the values and of the names."
    numeric, textual = [], []
    for column in range(len(header)):
        numbers = all(_whole(row[column]) is not None for row in rows)
        kind = numeric if rows and numbers else textual
        kind.append(column)
    names = [column for column in textual if letters_and_digits(header[column]) in _NAME]
    if len(textual) == 1: names = textual
    if not numeric or not names:
        raise InputError(f"{path}: expected a CSV with a column of values and one of names, "
                         "such as value,name")
    called_value = column_of(header, _VALUE)
    value = called_value if called_value in numeric else numeric[0]
    return value, names[0]


# %%
test_eq(_columns(["organ", "value"], [["liver", "63"], ["spleen", "127"]], "c.csv"), (1, 0))
test_fail(
    lambda: _columns(["a", "b"], [["liver", "x"]], "c.csv"), contains="a column of values and one of names"
)


# %%
#| export
def _json_pairs(content, path: Path) -> list[tuple]:
    "Value and name from a list of names, `{value: name}` or `{name: value}`."
    if isinstance(content, list):
        return list(enumerate(content, 1))
    if not isinstance(content, dict) or not content:
        raise InputError(f'{path}: expected {{"1": "liver", …}}, or a list of names')
    values_first = all(_whole(key) is not None for key in content)
    if values_first:
        return list(content.items())
    return [(value, name) for name, value in content.items()]


# %%
#| export
def read_value_names(path) -> dict[int, str]: # value → name, by value
    "The names of values from a JSON or CSV; `InputError` for what is no value or name, or is there twice."
    path = Path(path)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        header, by_line = read_text_table(path)
        rows = list(by_line.values())
        value, name = _columns(header, rows, path)
        pairs = [(row[value], row[name].strip()) for row in rows]
    else:
        pairs = _json_pairs(read_json(path), path)
    named = {}
    for value, name in pairs:
        number = _whole(value)
        is_name = isinstance(name, str) and name.strip()
        if number is None or not is_name:
            raise InputError(f"{path}: {value!r} is no value from 0 to 65535, or {name!r} no name")
        if number in named or name in named.values():
            raise InputError(f"{path}: value {value} or name {name!r} is there twice; "
                             "give each value one name")
        named[number] = name
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
    return {value: name for value, name in names.items() if letters_and_digits(name) not in BACKGROUND}

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
    by_value = foreground(names)
    ids, unknown = {}, []
    for token in sorted(set(tokens)):
        value = _whole(token)
        name = folded.get(token.lower()) or by_value.get(value)
        if name:
            ids[token] = classes.id(name)
        elif value is not None:
            raise InputError(f"{where}: {token} is no class; expected one of {sorted(by_value)}")
        else:
            unknown.append(token)
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
