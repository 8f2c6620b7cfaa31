# %% [markdown]
# # Tables from elsewhere
#
# > A table that is read whole is looked at first: a file that is endless, packed to a thousandth, or no text, is told in a second.

# %%
#| default_exp core.tables

# %%
#| export
import csv
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ctseg.core.errors import InputError
from ctseg.core.paths import refuse_special, unread

# %%
#| hide
import os
import tempfile
from pathlib import Path

from fastcore.test import test_eq

# %% [markdown]
# A disk that failed leaves a file of the right length that holds zeros. A download that went wrong has lost its line ends. A file of a few kilobytes can unpack to a terabyte. A parser that meets one of them is busy for hours, or fills the memory.
#
# ## Small tables
#
# The history of a run, a list of names or of subjects is small. It is read as one text, after a look at its size, its lines and its zeros.

# %%
#| export
MAX_TABLE = 1 << 26  # bytes of a table that is read whole
MAX_LINES = 1 << 20
MAX_WIDTH = 1 << 16  # characters of a line

def table_problem(data: bytes, most_lines: int = MAX_LINES) -> str:
    "What speaks against the bytes of a file being a small table; \"\" if nothing does."
    if b"\0" in data: return "holds zero bytes, it is no text"
    lines = data.replace(b"\r", b"\n").split(b"\n", most_lines + 1)
    if len(lines) > most_lines + 1: return f"has more than {most_lines} lines"
    longest = max(map(len, lines))
    if longest > MAX_WIDTH:
        return f"has a line of {longest} bytes, its line ends may be lost"
    return ""


# %%
for data in (b"a,b\n1,2\n", bytes(9), b"a,"*99999, b"\n"*5):
    print(repr(table_problem(data, most_lines=4)))


# %%
#| export
def table_text(
    path: str | Path,
    remedy: str = "it is damaged, or another file",
    most_lines: int = MAX_LINES,
) -> str: # line ends as they are
    "The text of a small table in UTF-8; `InputError` for a missing file, a pipe, or what cannot be such a table."
    path = Path(path)
    refuse_special(path, MAX_TABLE)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as e:
        raise unread(path, e) from None
    problem = table_problem(data, most_lines)
    if problem: raise InputError(f"{path}: {problem}; {remedy}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; {remedy}") from None


# %% [markdown]
# Three gigabytes of zeros take no room on this disk, and no time here.

# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"names.csv"
    path.write_text("id,name\n1,liver\n")
    test_eq(table_text(path), "id,name\n1,liver\n")
    for size in (3 << 30, 1000):
        os.truncate(path, size)
        try: table_text(path)
        except InputError as e: print(str(e).replace(d, "…"))

# %% [markdown]
# ## Tables that may be large
#
# A competition's table of run-length codes may hold a gigabyte. It is read line by line, with a limit on each line, on their number and on all of it.

# %%
#| export
MAX_LINE = 1 << 24  # characters
MOST_LINES = 1 << 22
MOST_TEXT = 1 << 30

def counted_lines(text, path: str | Path) -> Iterator[str]:
    "The lines of an open text with their ends; `InputError` where one, or all of them, are more than a table holds."
    size = 0
    for number in itertools.count(1):
        line = text.readline(MAX_LINE)
        if not line: return
        if "\0" in line:
            raise InputError(f"{path}, line {number}: holds a zero byte, it is no text; write the file again")
        size += len(line)
        if len(line) == MAX_LINE:
            raise InputError(f"{path}, line {number}: more than {MAX_LINE} characters; "
                             "the line ends are lost, write the file again")
        if number > MOST_LINES or size > MOST_TEXT:
            raise InputError(f"{path}: more than {number - 1} lines or {MOST_TEXT >> 30} GB of text; "
                             "it is damaged, or another file")
        yield line


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"codes.csv"
    path.write_text("id,rle\na,1 3\n")
    with open(path) as f: print(list(counted_lines(f, path)))


# %% [markdown]
# ## Each thing once
#
# Of two columns with one name a reader takes one, and of two lines on one subject the last. Nobody is told which.

# %%
#| export
def refuse_repeated(header: Iterable[str], path: str | Path) -> None:
    "`InputError` for two columns with one name."
    seen = set()
    for name in header:
        if name and name in seen:
            raise InputError(f"{path}: the column {name[:60]!r} is there twice; keep one of them")
        seen.add(name)

def once_each(pairs: Iterable[tuple[str, str]], path: str | Path) -> dict[str, str]:
    "The pairs of names and values as a dictionary; `InputError` for a name with two values."
    table: dict[str, str] = {}
    for name, value in pairs:
        if table.setdefault(name, value) != value:
            raise InputError(f"{path}: {name[:60]!r} is there twice, "
                             "with different values; keep the one that holds")
    return table


# %%
refuse_repeated(["id", "rle", "", ""], "codes.csv")
test_eq(once_each([("7", "anna"), ("8", "ben"), ("7", "anna")], "patients.csv"), {"7": "anna", "8": "ben"})
for wrong in (lambda: refuse_repeated(["id", "rle", "rle"], "codes.csv"),
              lambda: once_each([("7", "anna"), ("7", "ben")], "patients.csv")):
    try: wrong()
    except InputError as e: print(e)

# %% [markdown]
# ## Tables that people write
#
# Spreadsheets put commas, semicolons or tabs between the cells, by the country they run in. Excel may say which in a first line, `sep=;`. They leave empty
# rows, and a cell may go over several lines. A message names the line that a text editor shows.

# %%
#| export
_TELLS_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)

def _separator(header: str, marks: str) -> str:
    "What stands between the cells of a header, outside of quotes."
    plain = re.sub(r'"[^"]*"', "", header)
    return max(marks, key=plain.count)

def _to_header(lines: Iterator[str], marks: str) -> tuple[int, str, str]:
    "How many lines come before the header, the header, and the separator that Excel tells there; empty without."
    stated, before = "", 0
    for before, line in enumerate(lines):
        separator = _TELLS_SEPARATOR.fullmatch(line)
        if separator: stated = separator[1]
        elif line.strip(f"{marks}\r\n "): return before, line, stated
    return before, "", stated

def _filled_rows(lines: Iterator[str], first: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    "The rows that hold anything, each with the number of the line that it begins on; `first` is 0."
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
    begin = 0
    for row in reader:
        filled = any(map(str.strip, row))
        if filled: yield begin, row
        begin = reader.line_num


# %%
test_eq(_separator('"name, as in a, b"; value', ",;\t"), ";")


# %%
#| export
def _checked_rows(rows: dict[int, list[str]], path: str | Path) -> tuple[list[str], dict[int, list[str]]]:
    "The header, which is the first row, and the rows; `InputError` for a row that is not as long."
    if not rows:
        raise InputError(f"{path}: is empty, expected a CSV with a header")
    header = [name.strip() for name in rows.pop(min(rows))]
    odd = next((line for line, row in rows.items() if len(row) != len(header)), None)
    if odd is not None:
        raise InputError(f"{path}, line {odd}: {len(rows[odd])} cells, but the header has {len(header)}; "
                         "the file may be cut off")
    refuse_repeated(header, path)
    return header, rows


# %%
print(_checked_rows({3: ["id ", "name"], 5: ["1", "liver"]}, "names.csv"))


# %%
#| export
def table_cells(
    lines: Iterable[str], # with their ends
    path: str | Path, # for messages
    marks: str = ",;\t", # what may stand between cells
) -> tuple[list[str], dict[int, list[str]]]: # the names of the columns; line → its cells, as many
    "The header and the rows of a table; `InputError` for a table that is none. Empty rows are passed over."
    lines = iter(lines)
    before, header, stated = _to_header(lines, marks)
    usual = csv.field_size_limit(MAX_LINE)  # of the whole process
    try:
        found = _filled_rows(lines, header, stated or _separator(header, marks))
        rows = {before + 1 + line: row for line, row in found}
    except csv.Error as e:
        raise InputError(f"{path}: not a readable CSV ({e}); write it again as UTF-8 text") from None
    finally:
        csv.field_size_limit(usual)
    return _checked_rows(rows, path)


# %%
table = ["sep=;\n", "value;name\n", "1;liver\n", ";\n", '2;"spleen,\n', 'left"\n']
print(table_cells(table, "names.csv"))
try: table_cells([*table, "3\n"], "names.csv")
except InputError as e: print(e)

# %% [markdown]
# ## Packed with gzip
#
# Some tapes and disks pad a packed file with zeros. Python's reader skips them one by one, a minute for each hundred megabytes. No packer writes a megabyte of zeros within a text, so it is a sign of damage.

# %%
#| export
_LOOK = 1 << 20  # bytes

def refuse_padding(path: str | Path) -> None:
    "`InputError` for a packed text with a megabyte of zeros in it, or after it."
    with open(path, "rb") as f:
        while block := f.read(_LOOK):
            if len(block) == _LOOK and block.count(0) == _LOOK:
                raise InputError(f"{path}: damaged gzip file, it holds megabytes of zeros; copy it again")


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"y.csv.gz"
    path.write_bytes(b"packed")
    refuse_padding(path)
    os.truncate(path, 1 << 40)
    try: refuse_padding(path)
    except InputError as e: print(str(e).replace(d, "…"))


# %% [markdown]
# ## Cells of a table
#
# A spreadsheet takes a cell that begins with `=` for a formula and carries it out. A name from somebody else's file must not be one.

# %%
#| export
def csv_cell(value):
    "`value` as a cell that no spreadsheet carries out: a text that could be a formula gets an apostrophe in front."
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


# %% [markdown]
# Texts that a spreadsheet would calculate get an apostrophe. Numbers and plain words stay as they are.

# %%
test_eq([csv_cell(v) for v in ("=1+1", "-", "liver", -1, "")], ["'=1+1", "'-", "liver", -1, ""])
