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
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.data.lazy import LazyPixels, ReadPixels, pack_seen, seen_values
from ctseg.data.mask_csv import check_values, whole_rows

# %%
#| hide
import tempfile
from pathlib import Path

import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.core.anatomy import ClassMap
from ctseg.core.toys import toy_slices
from ctseg.data.mask_csv import read_masks, write_masks


# %%
#| export
def _write_parts(f, part: np.ndarray, first: int, count: int):
    "Write pixels `first` … of every mask, uint8 [n,k], to their places in a file of masks of `count` pixels each."
    for i, pixels in enumerate(part):
        f.seek(i*count + first)
        f.write(np.ascontiguousarray(pixels))

def turn_table(
    csv: Path, # a mask table
    columns: list[str], # the names in its header
    count: int, # pixels of an image
    out: Path, # the file to write: mask after mask
    room: int = 1 << 26, # bytes of memory to collect rows in
):
    "Write the masks of a table one after the other, uint8 [n,count]."
    n = len(columns)
    held = np.empty((n, max(1, min(count, room//n))), np.uint8)
    start = end = 0  # the pixels that are held
    with open(out, "wb", buffering=0) as f:
        for first, block in whole_rows(csv, columns, count):
            for row in range(0, len(block), held.shape[1]):
                rows = block[row:row + held.shape[1]]
                if first + row + len(rows) - start > held.shape[1]:
                    _write_parts(f, held[:, :end - start], start, count)
                    start = end
                end = first + row + len(rows)
                held[:, end - len(rows) - start:end - start] = rows.T
        _write_parts(f, held[:, :end - start], start, count)


# %%
masks = toy_slices(5, 16)[1].byte().numpy()
names = [f"{i}.png" for i in range(5)]
with tempfile.TemporaryDirectory() as d:
    csv, file = Path(d)/"y.csv", Path(d)/"masks"
    write_masks(masks, names, csv)
    for room in (1, 5*7, 1 << 20):
        turn_table(csv, names, 256, file, room)
        test_eq(np.fromfile(file, np.uint8).reshape(masks.shape), masks)


# %% [markdown]
# The masks are then [lazy pixels](08_lazy.ipynb) that lie in this file. It is read once more to learn which values each mask holds; afterwards an
# empty mask is never read again.

# %%
#| export
def file_pixels(file: Path, n: int, size: tuple[int, int]) -> ReadPixels:
    "Masks that lie in a file one after the other, each uint8 `size`."
    count = size[0]*size[1]
    def read(rows: np.ndarray) -> np.ndarray:
        pixels = np.empty((len(rows), *size), np.uint8)
        with open(file, "rb", buffering=0) as f:
            for mask, row in zip(pixels, rows):
                f.seek(int(row)*count)
                f.readinto(mask)
        return pixels
    return ReadPixels(read, (n, *size))

def spool_masks(
    csv: Path, # a truth in the challenge's form
    columns: list[str], # the names in its header
    size: tuple[int, int], # height and width of the images
    classes: ClassMap|int, # no value may be above this many classes, but 255
    file: Path, # to keep the masks in; it must stay as long as they are used
) -> LazyPixels: # uint8 [n,H,W]
    "The masks of a table, checked, in the memory of a few rows."
    turn_table(csv, columns, size[0]*size[1], file)
    source = file_pixels(file, len(columns), size)
    seen = seen_values(LazyPixels(source))
    C = classes if isinstance(classes, int) else len(classes)
    too_high = seen[:, C + 1:IGNORE].any(1)
    if too_high.any():
        i = int(too_high.argmax())
        check_values(csv, source.read(np.array([i])).reshape(1, -1), [columns[i]], classes, ignore=True)
    source.seen = pack_seen(seen)
    drawn = seen[:, 1:].any(1)
    return LazyPixels(source, np.where(drawn, np.arange(len(drawn)), -1))


# %%
masks[3] = 0
with tempfile.TemporaryDirectory() as d:
    csv = Path(d)/"y.csv"
    write_masks(masks, names, csv)
    spooled = spool_masks(csv, names, (16, 16), 3, Path(d)/"masks")
    print(spooled, spooled.rows)
    test_eq(np.asarray(spooled), read_masks(csv, cache=False)[1])
    def spool(size, classes): return spool_masks(csv, names, size, classes, Path(d)/"masks")
    test_fail(lambda: spool((16, 16), 2), contains="value 3, but there are 2")
    test_fail(lambda: spool((16, 17), 3), contains="256 rows, expected 272")
