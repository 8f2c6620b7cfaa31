# %% [markdown]
# # Mask tables
#
# > Read and write all masks of a split as the challenge's CSV.
#
# - skip_showdoc: true

# %%
#| default_exp data.mask_csv

# %% [markdown]
# A mask table is a CSV with a row for each pixel and a column for each image. [Mask rows](45_mask_rows.ipynb) reads it block by block; here the
# blocks become masks, are checked against what the caller expects, and are written again.

# %%
#| export
import contextlib
import gzip
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import csv as csvlib
import numpy as np

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.data.cache import cached_array
from ctseg.data.images import same_letters, spelt_otherwise
from ctseg.data.lazy import LazyPixels, blocks
from ctseg.data.mask_rows import count_rows, iter_rows, read_image_names
from ctseg.data.slices import highest_label

# %%
#| hide
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from fastcore.test import test_eq, test_fail

from ctseg.core.errors import InputError
from ctseg.core.toys import toy_slices
from ctseg.data.lazy import ReadPixels
from ctseg.data.mask_csv import read_masks
from ctseg.data.mask_rows import read_image_names

# %%
os.environ["CTSEG_CACHE"] = tempfile.mkdtemp()
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"y_train.csv"
    path.write_text(",0.png,1.png\nPixel 0,0,2\nPixel 1,7,2\nPixel 2,7,0\nPixel 3,0,0\n")
    names, masks = read_masks(path)
for name, mask in zip(names, masks): print(name, mask.tolist())


# %% [markdown]
# ## The names
#
# The columns must be the images, in order. Missing, extra and misplaced columns have different remedies, so they are told apart. An image
# that is there as `3.jpg` is told, too.

# %%
#| export
def check_names(
    columns: Sequence[str],
    expected: Sequence[str], # the images, in order
    where, # the file, for the error
    among: Sequence[str]|None = None, # names that belong to some image; `None`: the expected ones
    folder=None, # the folder of the images
):
    "`InputError` unless the columns are the expected images, in order."
    if list(columns) == list(expected):
        return
    known, present = set(among or expected), set(columns)
    extra = [name for name in columns if name not in known]
    missing = [name for name in expected if name not in present]
    if extra:
        message = _other_file(extra[0], folder) or _other_spelling(extra[0], known)
        if not message:
            message = f"column {_first(extra)} belongs to no image; remove it, or add the image"
            if not extra[0].strip() or extra[0].startswith("Unnamed"):  # pandas calls it so
                at = list(columns).index(extra[0]) + 2
                message = f"column {at} is called {extra[0]!r}; was an index written twice?"
    elif missing:
        message = f"no column for {_first(missing)}; add it"
    else:
        differing = [i for i, name in enumerate(expected) if columns[i] != name]
        i = differing[0]
        message = (f"column {i + 1} is {columns[i]}, expected {expected[i]}; "
                   "put the columns into numeric order")
    these = f"expected are {len(expected)} columns, {expected[0]} … {expected[-1]}"
    raise InputError(f"{where}: {message} ({these})")


# %%
#| export
def _first(names: list[str]) -> str:
    "The first name, and how many more there are."
    first, *others = names
    return f"{first} (and {len(others)} more)" if others else first

def _other_spelling(name: str, known: set[str]) -> str:
    "What to do with a column that names an image in another way; \"\" if it names none, or several."
    meant = spelt_otherwise(name, known)
    if not meant:
        return ""
    how = "in the same coding of its letters (NFC or NFD)" if same_letters(name, meant) else "as its image"
    return f"column {name!r} is to be called {meant!r}, {how}"

def _other_file(name: str, folder) -> str:
    "What to do with an image that is in the folder, but not as `name`.png; \"\" if it is not."
    if not folder or not name.endswith(".png"):
        return ""
    for path in sorted(Path(folder).iterdir()):
        if path.stem == Path(name).stem:
            remedy = "rename" if path.suffix.lower() == ".png" else "convert"
            return f"{path.name} is there, expected {name}; {remedy} it"
    return ""


# %%
images = ["0.png", "1.png", "2.png"]
for columns in (["0.png", "1.png"], [*images, "9.png"], ["0.png", "2.png", "1.png"]):
    try:
        check_names(columns, images, "y.csv")
    except InputError as e:
        print("-", e)


# %% [markdown]
# ## Reading
#
# The result is allocated once, in its final shape, and each block of rows goes, turned, into its place. Nothing is ever held twice.

# %%
#| export
def whole_rows(path: Path, columns, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    "First row and block, uint8 [rows,columns], as of `iter_rows`; `InputError` unless the table has `rows` rows."
    end = 0
    for first, block in iter_rows(path, columns):
        end = first + len(block)
        if end > rows:
            raise InputError(f"{path}: more than {rows} rows, the pixels of an image; "
                             "is it for other images?")
        yield first, block
    if end < rows:
        raise InputError(f"{path}: {end} rows, expected {rows}, the number of pixels of an image; "
                         "the file may be cut off")

def _read_table(path: Path, columns, rows: int|None) -> np.ndarray:
    "Read a mask table: uint8 [images, rows]. `rows=None`: as many as there are."
    rows = count_rows(path) if rows is None else rows
    table = np.empty((len(columns), rows), np.uint8)
    for first, block in whole_rows(path, columns, rows):
        table[:, first:first + len(block)] = block.T
    return table


# %%
#| export
def mask_size(path: Path, count: int, size) -> tuple[int, int]:
    "The height and width of masks of `count` pixels: `size` where it fits, else a square."
    side = math.isqrt(count)
    height, width = size or (side, side)
    if size == (1, -1):
        height, width = 1, count
    if height*width == count and count:
        return height, width
    if size:
        expected = f"{height*width} for images of {height}x{width} pixels"
        raise InputError(f"{path}: {count} rows, expected {expected}")
    raise InputError(f"{path}: {count} rows are no square image; "
                     "give size=(height, width), or the file is cut off")


# %% [markdown]
# Sixteen pixels are a square of four; fifteen are none.

# %%
test_eq(mask_size("y.csv", 16, None), (4, 4))
test_eq(mask_size("y.csv", 15, (1, -1)), (1, 15))
test_fail(lambda: mask_size("y.csv", 15, None), contains="no square image")


# %% [markdown]
# What the caller expects (the names, the size, the number of classes) is checked after the cache, so a cached table is held to the same
# standard as a fresh one.

# %%
#| export
def check_values(path: Path, table: np.ndarray, columns, classes, ignore: bool):
    """`InputError` for a value of `table`, uint8 [images,pixels], above the number of classes.

    `classes` is a `ClassMap`, a number, or `None` (any value); with `ignore` 255 is allowed."""
    if classes is None:
        return
    C = classes if isinstance(classes, int) else len(classes)
    highest = highest_label(table) if ignore else table.max()
    if highest > C:
        wrong = table > C
        if ignore:
            wrong &= table != IGNORE
        image, pixel = np.argwhere(wrong)[0]
        raise InputError(f"{path}, row Pixel {pixel}, column {columns[image]}: value {table[image, pixel]}, "
                         f"but there are {C} classes (0…{C})")


# %%
test_fail(
    lambda: check_values("y.csv", np.array([[0, 3]]), ["0.png"], 2, ignore=True),
    contains="row Pixel 1, column 0.png: value 3, but there are 2 classes",
)
# a truth may say: ignore this pixel
check_values("y.csv", np.array([[0, IGNORE]]), ["0.png"], 2, ignore=True)


# %%
#| export
def read_masks(
    csv, # a `.csv` or `.csv.gz` in the challenge's form
    names: Sequence[str]|None = None, # the image names it must have, in order; `None`: those of the file
    size: tuple[int, int]|None = None, # height and width; `None`: a square; (1, -1): all pixels in one row
    classes: ClassMap|int|None = None, # no value may be above this many classes; `None`: any
    cache: bool = True, # keep the array, by content
    ignore: bool = False, # a truth: pixels of the value 255 are to be ignored
) -> tuple[list[str], np.ndarray]:
    "Read a mask table: the image names, and masks uint8 [N,H,W]. `InputError` for anything unexpected."
    path = Path(csv)
    columns = read_image_names(path)
    if names is not None:
        check_names(columns, names, path)
    rows = size[0]*size[1] if size and size[1] > 0 else None
    def fits(kept: np.ndarray) -> bool:
        whole = kept.dtype == np.uint8 and kept.ndim == 2 and len(kept) == len(columns)
        return whole and rows in (None, kept.shape[1])
    table = cached_array("masks2", [path], lambda: _read_table(path, columns, rows), cache, fits)
    height, width = mask_size(path, table.shape[1], size)
    check_values(path, table, columns, classes, ignore)
    return columns, table.reshape(-1, height, width)


# %%
os.environ["CTSEG_CACHE"] = tempfile.mkdtemp()
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"y.csv"
    path.write_text(",0.png,1.png\n" + "".join(f"Pixel {k},{k},0\n" for k in range(4)))
    names, masks = read_masks(path)
    print(names, masks.tolist())
    test_eq(masks, [[[0, 1], [2, 3]], [[0, 0], [0, 0]]])
    test_fail(
        lambda: read_masks(path, classes=2),
        contains="row Pixel 3, column 0.png: value 3, but there are 2 classes",
    )


# %% [markdown]
# ## Writing
#
# The same trick backwards: a table of the 256 possible tokens, padded with zero bytes; look up the tokens of some rows, drop the padding,
# write. The result is byte for byte what pandas' `to_csv` writes, which is what the challenge's site expects.

# %%
#| export
def _tokens(separator: str) -> np.ndarray:
    "The numbers 0…255 as text, each with a separator and padded with zero bytes: uint8 [256,4]."
    texts = np.array([f"{value}{separator}" for value in range(256)], "S4")
    return texts.view(np.uint8).reshape(256, 4)

_INNER, _LAST = _tokens(","), _tokens("\n")

def _row_text(block: np.ndarray, first: int) -> np.ndarray:
    "Rows `first` … of a mask table, uint8 [rows, images], as the bytes of their text."
    numbers = range(first, first + len(block))
    labels = np.array([f"Pixel {number}," for number in numbers], "S20")
    labels = labels.view(np.uint8).reshape(-1, 20)
    inner = _INNER[block[:, :-1]].reshape(len(block), -1)
    text = np.concatenate([labels, inner, _LAST[block[:, -1]]], 1)
    return text[text != 0]


# %%
print(_row_text(np.array([[0, 54], [7, 255]], np.uint8), 8).tobytes().decode())


# %%
#| export
@contextlib.contextmanager
def _create_csv(path: Path):
    "A new `.csv` or `.csv.gz` for writing bytes. Gzip's header holds no time: equal masks, equal bytes."
    with open(path, "wb") as raw:
        if path.suffix != ".gz":
            yield raw
            return
        with gzip.GzipFile("", "wb", 6, raw, mtime=0) as f:
            yield f


# %% [markdown]
# Written twice, the compressed file is the same to the byte.

# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"y.csv.gz"
    sizes = set()
    for _ in range(2):
        with _create_csv(path) as f:
            f.write(b",0.png\nPixel 0,7\n")
        sizes.add(path.read_bytes())
    test_eq(len(sizes), 1)
    test_eq(read_image_names(path), ["0.png"])


# %% [markdown]
# A row of the table has a pixel of every mask. Masks that are [read when they are asked for](08_lazy.ipynb) are read a part at a time: of each mask so
# many pixels that the part fills some megabytes.

# %%
#| export
def _pixels_between(pixels: LazyPixels, first: int, last: int) -> np.ndarray:
    "Pixels `first` … `last` of lazy slices: uint8 [N,k]."
    part = np.zeros((len(pixels), last - first), np.uint8)
    columns = getattr(pixels.source, "columns", None)
    if columns is not None: # a file, of which a part can be read
        stored = pixels.rows >= 0
        part[stored] = columns(pixels.rows[stored], first, last)
        return part
    start = 0
    for block in blocks(pixels):
        end = start + len(block)
        whole = block.reshape(len(block), -1)
        part[start:end] = whole[:, first:last]
        start = end
    return part


# %%
#| export
ROOM = 1 << 25 # bytes of lazy masks that are held at once


# %% [markdown]
# So the writer asks for some rows after the other:

# %%
#| export
class PixelRows:
    "The rows of the table of some masks, uint8 [N,H,W], in memory or lazy."
    def __init__(self, masks, room: int|None = None): # None: `ROOM`
        n, height, width = masks.shape
        self.masks = masks
        self.count = height*width
        self.start = 0 # of what is held
        self.step = max(1, (room or ROOM)//n)
        self.part = np.zeros((n, 0), np.uint8)
        if not isinstance(masks, LazyPixels):
            self.part = masks.reshape(n, self.count)

    def __call__(self, first: int, last: int) -> np.ndarray:
        "Rows `first` … `last`, uint8 [k,N]."
        held = self.start + self.part.shape[1]
        if first < self.start or last > held:
            end = min(self.count, max(last, first + self.step))
            self.part = _pixels_between(self.masks, first, end)
            self.start = first
        here = slice(first - self.start, last - self.start)
        return self.part[:, here].T


# %%
masks = toy_slices(6, 8)[1].byte().numpy()
plain = PixelRows(masks)
lazy = PixelRows(LazyPixels(ReadPixels(masks.__getitem__, masks.shape)), room=30)
for first in (0, 3, 4, 60): test_eq(lazy(first, first + 4), plain(first, first + 4))


# %%
#| export
def write_masks(
    masks: np.ndarray|LazyPixels, # uint8 [N,H,W]
    names: Sequence[str], # N image names
    path, # `.csv` or `.csv.gz`
):
    "Write masks uint8 [N,H,W] as the challenge does: a row a pixel, a column an image. Whole or not at all."
    path = Path(path)
    if not isinstance(masks, LazyPixels): masks = np.asarray(masks)
    if masks.dtype != np.uint8 or masks.ndim != 3:
        raise InputError(f"masks are {masks.dtype} {list(masks.shape)}; expected uint8 [N,H,W]")
    if len(names) != len(masks) or not len(names):
        raise InputError(f"{len(names)} names for {len(masks)} masks; expected one each")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"two images are called {twice[0]}; expected a name of its own for each")
    table = PixelRows(masks)
    rows = max(1, min(512, 2**16//len(names)))  # at a time: memory does not grow with the number of images
    with atomic_path(path) as tmp, _create_csv(tmp) as f:
        header = io.StringIO()
        csvlib.writer(header, lineterminator="\n").writerow(["", *names])
        f.write(header.getvalue().encode())
        for first in range(0, table.count, rows):
            block = table(first, min(first + rows, table.count))
            f.write(_row_text(block, first))


# %% [markdown]
# Written and read back, also from the cache, and compared with what a participant would write with pandas:

# %%
masks = toy_slices(6, 64)[1].byte().numpy()
names = [f"{i}.png" for i in range(6)]
os.environ["CTSEG_CACHE"] = tempfile.mkdtemp()
with tempfile.TemporaryDirectory() as d:
    for end in (".csv", ".csv.gz"):
        write_masks(masks, names, f"{d}/y{end}")
        for _ in range(2):  # the second time from the cache
            back_names, back = read_masks(f"{d}/y{end}", names, classes=3)
            test_eq(back_names, names)
            test_eq(back, masks)
    pixels = [f"Pixel {k}" for k in range(64*64)]
    pd.DataFrame(masks.reshape(6, -1).T, pixels, names).to_csv(f"{d}/pandas.csv")
    test_eq(Path(f"{d}/pandas.csv").read_bytes(), Path(f"{d}/y.csv").read_bytes())
    print("\n".join(line[:48] for line in Path(f"{d}/y.csv").read_text().splitlines()[:3]))
