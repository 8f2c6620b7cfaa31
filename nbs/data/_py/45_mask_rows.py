# %% [markdown]
# # Mask rows
#
# > The challenge's very wide CSV as blocks of rows: fast, and exact about the first defect.
#
# - skip_showdoc: true

# %%
#| default_exp data.mask_rows

# %% [markdown]
# The challenge stores all masks of a split in one *transposed* text table: a row for each pixel (`Pixel 0` … `Pixel 65535`, row by row
# through the image), a column for each image. With 2000 columns that is 255 MB. The obvious `pandas.read_csv(index_col=0).T` needs ten
# seconds and 2 GB, because every number takes eight bytes and the whole table is held twice. This page reads it by array operations on the
# bytes, several times faster than pandas and Arrow ([measured](../benchmarks/data_reading.ipynb)).

# %%
#| export
import contextlib
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import csv as csvlib
import numpy as np

from ctseg.core.errors import InputError
from ctseg.core.filetypes import content_of
from ctseg.core.paths import refuse_special, unread
from ctseg.core.tables import MAX_LINE, refuse_padding

# %%
#| hide
import io
import tempfile
from pathlib import Path

import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.core.errors import InputError
from ctseg.core.paths import refuse_special


# %% [markdown]
# ## From bytes to numbers
#
# The table is so regular that no general CSV machinery is needed. Read some lines at a time and look at their bytes as an array: find all
# separators at once. The byte before a separator is the last digit of a number. The byte before that is its tens, unless it is a separator
# itself. So *for every byte of the block, the number that would end there* is a sum of two shifted arrays, and the numbers are picked from
# it at the separators.
#
# Being fast must not mean being lax. Every line must begin with its own label and have its own number of values. Apart from the labels and
# separators there may be nothing but digits, and no value may be empty or above 255.

# %%
#| export
def _add_hundreds(value: np.ndarray, digit: np.ndarray, ends: np.ndarray) -> np.ndarray|None:
    "The third digits, which are rare; `None` where a number is above 255."
    width = np.diff(ends, axis=1) - 1
    large = width >= 3
    hundreds = digit[ends[:, 1:][large] - 3].astype(int)
    total = value[large] + 100*hundreds
    if width.max() > 3 or total.max() > 255:
        return None
    value[large] = total
    return value


# %%
#| export
def _numbers_before(ends: np.ndarray, digit: np.ndarray, stop: np.ndarray) -> np.ndarray|None:
    "The numbers before each separator but a line's first, uint8 [lines, n]; `None` where one is above 255."
    value = np.zeros_like(digit)
    value[2:] = digit[1:-1] + digit[:-2]*~stop[:-2]*np.uint8(10)
    value = value.take(ends)[:, 1:]
    three_bytes = stop[3:] & ~(stop[2:-1] | stop[1:-2] | stop[:-3])  # or more, as every label has
    if np.count_nonzero(three_bytes) == len(ends):
        return value
    return _add_hundreds(value, digit, ends)


# %%
def ends_of(text):
    "Digits, separators and their places, as `_parse_rows` finds them."
    text = np.frombuffer(text, np.uint8)
    stop = (text == ord(",")) | (text == ord("\n"))
    return np.flatnonzero(stop), text - np.uint8(ord("0")), stop

ends, digit, stop = ends_of(b"Pixel 0,7,54,255\n")
print(_numbers_before(ends.reshape(1, 4), digit, stop))


# %%
#| export
def _parse_rows(
    raw: bytes, # whole lines, each "Pixel k,3,0,…\n"
    first: int, # k of the first line
    n: int, # number of values in a line
) -> np.ndarray|None: # uint8 [lines, n]
    "Read the lines of a mask table by array operations; `None` if anything at all is not as it should be."
    raw = raw.replace(b'"', b"") if b'"' in raw else raw  # some writers quote the labels
    lines = raw.split(b"\n")[:-1]
    if not all(line.startswith(b"Pixel %d," % k) for k, line in enumerate(lines, first)):
        return None
    text = np.frombuffer(raw, np.uint8)
    digit = text - np.uint8(ord("0"))
    stop = (text == ord(",")) | (text == ord("\n"))
    ends = np.flatnonzero(stop)
    ragged = len(ends) != len(lines)*(n + 1) or (text[ends[n::n + 1]] != ord("\n")).any()
    if ragged:
        return None
    letters = len(lines)*len("Pixel ")
    only_digits = np.count_nonzero(digit > 9) == len(ends) + letters
    empty = (stop[1:] & stop[:-1]).any()
    if not only_digits or empty:
        return None
    return _numbers_before(ends.reshape(len(lines), n + 1), digit, stop)


# %% [markdown]
# Two rows of two images are read at once. Whatever is not exactly such a row is left to the slow reader, which names the fault.

# %%
test_eq(_parse_rows(b"Pixel 7,0,12\nPixel 8,255,3\n", 7, 2), [[0, 12], [255, 3]])
test_eq(_parse_rows(b"Pixel 99,7\nPixel 100,54\n", 99, 1), [[7], [54]])
for bad in ("7,0", "7,0,1,2", "8,0,1", "7,0,-1", "7,0,256", "7,0,1.0", "7,0,", "7,0,a"):
    test_eq(_parse_rows(f"Pixel {bad}\n".encode(), 7, 2), None)


# %% [markdown]
# ## What is wrong
#
# Lines that the fast way refuses are read again slowly, to find the first defect and tell it exactly: the file, the row, the column, the
# value, and what to do.

# %%
#| export
def _defect(k: int, line: str, columns, remedy: str) -> str|None:
    "What is wrong with the line of pixel `k`; `None` if nothing is."
    if "\r" in line:
        return f"line {k + 2}: a CR in the middle of it; lines must end with LF, or with CR LF; {remedy}"
    label, *values = line.split(",")
    if not any((label, *values)):
        return f"line {k + 2}: an empty row; remove it"
    if label.strip('"') != f"Pixel {k}":
        return (f"line {k + 2}: row {label[:20]!r}, expected 'Pixel {k}'; "
                "rows must be Pixel 0, 1, 2, … in order")
    for name, value in zip(columns, values):
        whole = re.fullmatch(r"\d{1,3}", value, re.ASCII) and int(value) <= 255
        if not whole and len(values) >= len(columns):
            return (f"row Pixel {k}, column {name}: {value[:20]!r} is not a whole number from 0 to 255; "
                    f"{remedy}")
    if len(values) != len(columns):
        return f"row Pixel {k}: {len(values)} values, expected {len(columns)}, one for each image; {remedy}"


# %%
test_eq(_defect(7, "Pixel 7,0,54", ["0.png", "1.png"], "write it again"), None)
print(_defect(7, "Pixel 7,0,a", ["0.png", "1.png"], "write it again"))


# %%
#| export
def _explain_rows(path: Path, raw: bytes, first: int, columns) -> InputError:
    "The first defect among lines that `_parse_rows` refused."
    zipped = path.name.endswith(".gz")
    remedy = "write the file again" if zipped else "the file may be cut off or edited: write it again"
    for k, line in enumerate(raw.decode("utf-8", "replace").split("\n")[:-1], first):
        defect = _defect(k, line, columns, remedy)
        if defect:
            return InputError(f"{path}, {defect}")
    return InputError(f"{path}, near row Pixel {first}: not a table of whole numbers; {remedy}")


# %%
for bad in ("7,0", "8,0,1", "7,0,-1", "7,0,1.0"):
    print("-", _explain_rows(Path("y.csv"), f"Pixel {bad}\n".encode(), 7, ["0.png", "1.png"]))


# %% [markdown]
# ## The file
#
# The file may be plain or gzipped. Its first line holds the names of the images. People do write the table the other way round; that is
# recognised and told.

# %%
#| export
def _check_content(path: Path):
    "`InputError` for a file that is no CSV by its first bytes, or is packed without being called so."
    content, packed = content_of(path), path.suffix == ".gz"
    if content == "packed with gzip" and packed: return
    if content == "packed with gzip":
        raise InputError(f"{path}: packed with gzip; call it {path.name}.gz")
    if content:
        raise InputError(f"{path}: {content}; expected a CSV, as text in UTF-8")
    if packed and path.is_file():
        raise InputError(f"{path}: not packed with gzip; call it {path.stem}, or copy it again")

@contextlib.contextmanager
def open_csv(path: Path):
    "Open a `.csv` or `.csv.gz` for reading bytes; a missing or damaged file is told in one line."
    opener = gzip.open if path.suffix == ".gz" else open
    refuse_special(path)
    try:
        with open(path, "rb"): pass  # else its content seems to be another
        _check_content(path)
        if path.suffix == ".gz": refuse_padding(path)
        with opener(path, "rb") as f:
            yield f
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, expected a CSV file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise InputError(f"{path}: damaged gzip file ({e}); copy it again") from None
    except OSError as e:
        raise unread(path, e) from None


# %%
#| export
MAX_NAME = 255  # characters, as many as a file's name may have

def _first_line(f, path: Path) -> bytes:
    "The first line of an open table; `InputError` if it does not end, or ends as only old Macs write it."
    line = f.readline(MAX_LINE)
    if len(line) == MAX_LINE and not line.endswith(b"\n"):
        raise _endless(path)
    if b"\0" in line:
        raise InputError(f"{path}: not a text file; expected a CSV with a column for each image")
    if b"\r" in line.rstrip(b"\r\n"):
        raise InputError(f"{path}: its lines end with CR alone; write them with LF, or with CR LF")
    return line

def _endless(path: Path) -> InputError:
    "What to say of a line that is too long to be one."
    return InputError(f"{path}: a line of more than {MAX_LINE >> 20} MB; "
                      "the line ends are lost, write the file again")


# %% [markdown]
# Lines end with LF or CRLF. A file with CR alone would be one endless line, so it is refused.

# %%
test_eq(_first_line(io.BytesIO(b",0.png\r\nPixel 0,1\r\n"), "y.csv"), b",0.png\r\n")
test_fail(
    lambda: _first_line(io.BytesIO(b",0.png\rPixel 0,1\r"), "y.csv"), contains="its lines end with CR alone"
)


# %%
#| export
def read_image_names(path: Path) -> list[str]:
    "The names of the images in the first line of a mask table."
    with open_csv(path) as f:
        line = _first_line(f, path)
    try:
        above, *names = next(csvlib.reader([line.decode("utf-8-sig")]), []) or [""]
    except (UnicodeDecodeError, csvlib.Error):
        raise InputError(f"{path}: not a text file; expected a CSV with a column for each image") from None
    if not all(map(str.isprintable, names)):
        raise InputError(f"{path}: the first line holds names that cannot be printed in a line; "
                         "write it again")
    if not any(names) or re.fullmatch(r"Pixel \d+", above):
        other = next((word for mark, word in ((b";", "semicolons"), (b"\t", "tabs")) if mark in line), "")
        if other:
            raise InputError(f"{path}: {other} between its cells, expected commas; write it with commas")
        raise InputError(f"{path}: the first line names no images; expected ',0.png,1.png,…'")
    if names[0].startswith("Pixel"):
        raise InputError(f"{path}: a row is an image, expected a column; turn the table (pandas: df.T)")
    if max(map(len, names)) > MAX_NAME:
        raise InputError(f"{path}: the first line holds a name of more than {MAX_NAME} characters, "
                         "which no file can have; write it again")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{path}: column {twice[0]} is there twice; each image has one column")
    return names


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"y.csv"
    for text in (",0.png,1.png\n", ",Pixel 0,Pixel 1\n0.png,0,0\n", ",0.png,0.png\n", ""):
        path.write_text(text)
        try:
            print("-", read_image_names(path))
        except InputError as e:
            print("-", str(e).replace(d, "…"))

# %% [markdown]
# The rest is cut into blocks of whole lines. A file whose lines never end is told long before the memory is full. Blocks are small, so that their arrays stay in the processor's cache and the allocator reuses
# them.

# %%
#| export
BLOCK = 1 << 17  # bytes

def _line_blocks(f, size: int, path: Path) -> Iterator[bytes]:
    "Blocks of whole lines, each line ended by a newline alone. Empty lines at the end are dropped."
    parts: list[bytes] = []  # of a line whose end has not been read
    empty = 0  # bytes of line ends in a row
    while chunk := f.read(size):
        cut = chunk.rfind(b"\n") + 1
        lines = b"".join([*parts, chunk[:cut]]) if cut else b""
        parts = [chunk[cut:]] if cut else [*parts, chunk]
        if sum(map(len, parts)) > MAX_LINE:
            raise _endless(path)
        if b"\r" in lines:
            lines = lines.replace(b"\r\n", b"\n")
        if full := lines.rstrip(b"\n"):
            empty = 0
            yield full + b"\n"
        elif lines:
            empty += len(lines)
            if empty > MAX_LINE:
                raise InputError(f"{path}: {empty} empty lines; write the file again")
    if rest := b"".join(parts).rstrip(b"\r"):
        yield rest + b"\n"


# %% [markdown]
# Blocks end where a line ends, however small they are.

# %%
test_eq(list(_line_blocks(io.BytesIO(b"one\r\ntwo\nthree"), 8, "y.csv")), [b"one\n", b"two\n", b"three\n"])

# %%
#| export
MAX_ROWS = 1 << 26  # as many pixels as an image may have

def count_rows(path: Path) -> int:
    "How many rows a mask table has, without its header; `InputError` for more than an image has pixels."
    rows = -1
    with open_csv(path) as f:
        for block in _line_blocks(f, BLOCK, path):
            rows += block.count(b"\n")
            if rows > MAX_ROWS:
                raise InputError(f"{path}: more than {MAX_ROWS} rows; is it a mask table?")
    return rows


# %%
#| export
def iter_rows(
    path: Path, # a mask table
    columns, # the names in its header
) -> Iterator[tuple[int, np.ndarray]]:
    "The table by blocks: the first row's number, and values uint8 [rows, images]. `InputError` for a defect."
    first = 0
    with open_csv(path) as f:
        _first_line(f, path)
        for raw in _line_blocks(f, BLOCK, path):
            block = _parse_rows(raw, first, len(columns))
            if block is None:
                raise _explain_rows(path, raw, first, columns)
            yield first, block
            first += len(block)


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"y.csv"
    path.write_text(",0.png,1.png\nPixel 0,0,54\nPixel 1,7,0\n")
    for first, block in iter_rows(path, read_image_names(path)):
        print("from row", first, block.tolist())
    test_eq(count_rows(path), 2)
    path.write_text(path.read_text() + "Pixel 2,1\n")
    names = read_image_names(path)
    test_fail(lambda: list(iter_rows(path, names)), contains="row Pixel 2: 1 values, expected 2")
