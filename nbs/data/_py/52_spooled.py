# %% [markdown]
# # Spooled masks
#
# > The challenge's table turned from pixels to images by way of a file, in little memory.
#
# - skip_showdoc: true

# %%
#| default_exp data.spooled

# %% [markdown]
# The challenge's CSV has a row for each pixel and a column for each image, so the last pixel of the first mask is known when the whole table has
# been read. [`read_masks`](50_mask_csv.ipynb) therefore holds all masks in memory. Where they do not fit, they are turned in a file: some thousand rows
# at a time are collected, and each image's part of them is written to its place.

# %%
#| export
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.data.lazy import LazyPixels, pack_seen, seen_values
from ctseg.data.mask_csv import check_names, check_values, mask_size, whole_rows
from ctseg.data.mask_rows import count_rows, read_image_names

# %%
#| hide
import tempfile
from pathlib import Path

import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.core.anatomy import ClassMap
from ctseg.core.toys import toy_slices
from ctseg.data.mask_csv import read_masks, write_masks


# %% [markdown]
# ## Pixels in a file
#
# The file has no name: it goes when the pixels are no longer used, or when the program ends, however it ends. Reading it block by block takes the memory of a block.

# %%
#| export
class TemporaryBytes:
    "A temporary file of a known size that is written and read in parts, by several threads."
    def __init__(self, folder: str|Path|None): # where it lies; `None`: where temporary files do
        self.lock = threading.Lock()
        self.file = tempfile.TemporaryFile(buffering=0, dir=folder)
        weakref.finalize(self, self.file.close)

    def put(self, place: int, content: np.ndarray):
        "Write all of it, though a call of the system may write less."
        rest = memoryview(np.ascontiguousarray(content)).cast("B")
        with self.lock:
            self.file.seek(place)
            while rest:
                written = self.file.write(rest)
                rest = rest[written:]

    def get(self, place: int, out: np.ndarray):
        "Fill an array of bytes; zeros where nothing was written."
        with self.lock:
            self.file.seek(place)
            count = self.file.readinto(out)
        flat = out.reshape(-1)
        flat[count:] = 0


# %%
file = TemporaryBytes(None)
file.put(2, np.array([7, 8], np.uint8))
out = np.empty(6, np.uint8)
file.get(0, out)
print(out)


# %%
#| export
class FilePixels:
    "N slices of one size in a temporary file, written and read in parts; a `PixelSource`."
    def __init__(self,
        n: int,
        size: tuple[int, int], # height and width
        folder: str|Path|None = None, # see `TemporaryBytes`
    ):
        self.shape = (n, *size)
        self.seen: np.ndarray|None = None
        self.count = size[0]*size[1]
        self.bytes = TemporaryBytes(folder)

    def write(self, first: int, pixels: np.ndarray):
        "Write slices `first` …, uint8 [n,H,W]."
        self.bytes.put(first*self.count, pixels)

    def read(self, rows: np.ndarray) -> np.ndarray:
        "See `PixelSource.read`."
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for mask, row in zip(pixels, rows):
            self.bytes.get(int(row)*self.count, mask)
        return pixels

    def columns(self, rows: np.ndarray, first: int, last: int) -> np.ndarray:
        "Pixels `first` … `last` of the slices at `rows`: uint8 [n,k]."
        pixels = np.empty((len(rows), last - first), np.uint8)
        for part, row in zip(pixels, rows):
            self.bytes.get(int(row)*self.count + first, part)
        return pixels


# %%
masks = toy_slices(5, 16)[1].byte().numpy()
file = FilePixels(6, (16, 16))
file.write(1, masks[1:])
file.write(0, masks[:1])
test_eq(file.read(np.array([0, 4])), masks[[0, 4]])
test_eq(file.columns(np.arange(2), 100, 103), masks[:2].reshape(2, -1)[:, 100:103])
print("not written:", file.read(np.array([5])).max())


# %% [markdown]
# Masks and images that are gathered piece by piece are put into an array, or into lazy pixels that lie in a file, in the same way.

# %%
#| export
def room_for(
    n: int,
    size: tuple[int, int], # height and width
    folder: Path|None = None, # where a file is to hold them; `None`: in memory
) -> np.ndarray|LazyPixels: # uint8 [n,H,W], all 0
    "Room for slices that are to come."
    if folder is None: return np.zeros((n, *size), np.uint8)
    return LazyPixels(FilePixels(n, size, folder))


# %%
print(room_for(2, (3, 4)).shape, room_for(2, (3, 4), tempfile.gettempdir()))


# %%
#| export
def put_slices(pixels: np.ndarray|LazyPixels, first: int, block: np.ndarray):
    "Put slices, uint8 [k,H,W], into the places `first` … of such room."
    if isinstance(pixels, np.ndarray):
        pixels[first:first + len(block)] = block
    else:
        assert isinstance(pixels.source, FilePixels), "others cannot be written"
        pixels.source.write(first, block)


# %%
with tempfile.TemporaryDirectory() as d:
    for folder in (None, d):
        pixels = room_for(5, (16, 16), folder)
        put_slices(pixels, 2, masks[2:])
        print(type(pixels).__name__)
        test_eq(pixels[1:4], np.concatenate([0*masks[:1], masks[2:4]]))


# %% [markdown]
# ## From the table to the file

# %%
#| export
def _put_columns(file: FilePixels, start: int, part: np.ndarray):
    "Write pixels `start` … of every slice, uint8 [N,k]."
    for i, row in enumerate(part):
        file.bytes.put(i*file.count + start, row)


# %% [markdown]
# Rows are collected until they fill the room, so that each write has many pixels.

# %%
#| export
def turn_table(
    csv: Path, # a mask table
    columns: list[str], # the names in its header
    out: FilePixels, # to be filled, a slice for each column
    room: int = 1 << 26, # bytes of memory to collect rows in
):
    "Write the masks of a table one after the other."
    n, count = len(columns), out.count
    held = np.empty((n, max(1, min(count, room//n))), np.uint8)
    start = end = 0  # the pixels that are held
    for first, block in whole_rows(csv, columns, count):
        for row in range(0, len(block), held.shape[1]):
            rows = block[row:row + held.shape[1]]
            if first + row + len(rows) - start > held.shape[1]:
                _put_columns(out, start, held[:, :end - start])
                start = end
            end = first + row + len(rows)
            held[:, end - len(rows) - start:end - start] = rows.T
    _put_columns(out, start, held[:, :end - start])


# %%
names = [f"{i}.png" for i in range(5)]
with tempfile.TemporaryDirectory() as d:
    csv = Path(d)/"y.csv"
    write_masks(masks, names, csv)
    for room in (1, 5*7, 1 << 20):
        file = FilePixels(5, (16, 16), d)
        turn_table(csv, names, file, room)
        test_eq(file.read(np.arange(5)), masks)


# %% [markdown]
# The masks are then [lazy pixels](08_lazy.ipynb) that lie in this file. It is read once more to learn which values each mask holds; afterwards an
# empty mask is never read again.

# %%
#| export
def know_values(source: FilePixels) -> np.ndarray: # bool [N,256]
    "Read which values each slice holds, and keep it."
    seen = seen_values(LazyPixels(source))
    source.seen = pack_seen(seen)
    return seen


# %%
print(np.flatnonzero(know_values(file).any(0)))


# %%
#| export
def spool_masks(
    csv: Path, # masks in the challenge's form
    columns: list[str], # the names in its header
    size: tuple[int, int]|None = None, # height and width, see `read_masks`
    classes: ClassMap|int|None = None, # no value may be above this many classes; `None`: any
    folder: Path|None = None, # to keep the masks in; `None`: where temporary files are
    ignore: bool = True, # a truth: pixels of the value 255 are to be ignored
) -> LazyPixels: # uint8 [n,H,W]
    "The masks of a table, checked as `read_masks` does, in the memory of a few rows."
    if size is None or size[1] < 0: size = mask_size(csv, count_rows(csv), size)
    source = FilePixels(len(columns), size, folder)
    turn_table(csv, columns, source)
    seen = know_values(source)
    C = IGNORE if classes is None else classes if isinstance(classes, int) else len(classes)
    too_high = seen[:, C + 1:IGNORE if ignore else None].any(1)
    if too_high.any():
        i = int(too_high.argmax())
        check_values(csv, source.read(np.array([i])).reshape(1, -1), [columns[i]], classes, ignore)
    drawn = seen[:, 1:].any(1)
    return LazyPixels(source, np.where(drawn, np.arange(len(drawn)), -1))


# %%
masks[3] = 0
with tempfile.TemporaryDirectory() as d:
    csv = Path(d)/"y.csv"
    write_masks(masks, names, csv)
    spooled = spool_masks(csv, names, (16, 16), 3, Path(d))
    print(spooled, spooled.rows)
    test_eq(np.asarray(spooled), read_masks(csv, cache=False)[1])
    def spool(size, classes): return spool_masks(csv, names, size, classes, Path(d))
    test_eq(spool(None, None).shape, spooled.shape)
    test_fail(lambda: spool((16, 16), 2), contains="value 3, but there are 2")
    test_fail(lambda: spool((16, 17), 3), contains="256 rows, expected 272")


# %% [markdown]
# Where a table has one use only, in an evaluation or an export, this takes the place of `read_masks`.

# %%
#| export
def spooled_masks(
    csv: str|Path, # masks in the challenge's form
    names: Sequence[str]|None = None, # of the images that it must have, in order; `None`: those of the file
    size: tuple[int, int]|None = None, # height and width; `None`: a square; (1, -1): all pixels in one row
    classes: ClassMap|int|None = None, # no value may be above this many classes; `None`: any
    ignore: bool = False, # a truth: pixels of the value 255 are to be ignored
) -> tuple[list[str], LazyPixels]:
    "`read_masks` by way of a temporary file: the image names, and masks uint8 [N,H,W]."
    path = Path(csv)
    columns = read_image_names(path)
    if names is not None: check_names(columns, names, path)
    return columns, spool_masks(path, columns, size, classes, None, ignore)


# %%
with tempfile.TemporaryDirectory() as d:
    csv = Path(d)/"y.csv"
    write_masks(masks, names, csv)
    for size in (None, (16, 16), (1, -1)):
        found, spooled = spooled_masks(csv, names, size, 3)
        test_eq(np.asarray(spooled), read_masks(csv, names, size, 3, cache=False)[1])
    masks[1, 0, 0] = 255
    write_masks(masks, names, csv)
    test_fail(lambda: spooled_masks(csv, classes=3), contains="value 255, but there are 3")
    test_eq(spooled_masks(csv, classes=3, ignore=True)[1][1, 0, 0], 255)
