# %% [markdown]
# # Lazy pixels
#
# > Images or masks that stay where they are, on a disk perhaps, until somebody asks for some of them.
#
# - skip_showdoc: true

# %%
#| default_exp data.lazy

# %% [markdown]
# 400,000 slices of 256x256 pixels are 26 GB of images and as much of masks. Training needs eight of them at a time. So a
# [`SliceSet`](10_slices.ipynb) takes its pixels as arrays or as `LazyPixels`, which look like an array `[N, H, W]` and read only what is indexed.
# Choosing slices changes a list of numbers and reads nothing.

# %%
#| export
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

# %%
#| hide
import numpy as np
from fastcore.test import test_eq, test_fail


# %% [markdown]
# ## Where pixels lie
#
# A source reads rows, and knows perhaps which values each row holds. The latter makes it possible to say which classes are drawn where
# without reading a mask. 256 bits a mask are enough.

# %%
#| export
class PixelSource(Protocol):
    "M slices of one size that can be read by their numbers."
    shape: tuple[int, int, int] # M, height, width
    seen: np.ndarray|None # uint8 [M,32]: a bit for each value on a slice, see `pack_seen`; `None`: not known

    def read(self, rows: np.ndarray) -> np.ndarray:
        "The slices at `rows`, int64 [n] in ascending order and each once: uint8 [n,H,W]."
        ...


def pack_seen(seen: np.ndarray) -> np.ndarray:
    "Which of the 256 values each slice holds, bool [N,256], as bits: uint8 [N,32]."
    return np.packbits(seen, axis=1)


# %%
some = np.zeros((1, 256), bool)
some[0, [0, 3, 255]] = True
print("values 0, 3 and 255:", pack_seen(some)[0])
test_eq(pack_seen(some)[0, -1], 1)


# %%
#| export
class ReadPixels:
    "A source made of a function that reads rows."
    def __init__(self,
        read: Callable[[np.ndarray], np.ndarray], # see `PixelSource.read`
        shape: tuple[int, int, int],
        seen: np.ndarray|None = None, # uint8 [M,32]
    ):
        self.read, self.shape, self.seen = read, shape, seen


# %% [markdown]
# ## An array that reads when indexed
#
# `rows` says which row of the source each slice is. A row of -1 is a slice of zeros: a mask on which nothing is drawn needs no room.
# Everything that numpy does with an array, it does with lazy pixels too, by reading all of them: correct, but not small.

# %%
#| export
class LazyRows:
    "Which rows of a source are meant."
    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self,
        source: PixelSource,
        rows: np.ndarray|None = None, # int64 [N]: the rows of the source; -1: all zeros; `None`: every row
    ):
        self.source = source
        self.rows = np.arange(source.shape[0]) if rows is None else rows

    @property
    def shape(self) -> tuple[int, int, int]:
        "N, height, width."
        return (len(self.rows), *self.source.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)


# %% [markdown]
# A source is asked for ascending rows, each once, whatever the order in which they are wanted.

# %%
#| export
def _read_rows(source: PixelSource, rows: np.ndarray) -> np.ndarray:
    "The slices at `rows` in any order, with repetitions, and -1 for zeros: uint8 [n,H,W]."
    distinct, places = np.unique(rows, return_inverse=True)
    stored = distinct[distinct >= 0]
    pixels = np.zeros((len(distinct), *source.shape[1:]), np.uint8)
    if len(stored):
        pixels[len(distinct) - len(stored):] = source.read(stored)
    return pixels[places]


# %% [markdown]
# What goes through all slices does so block by block.

# %%
#| export
def row_blocks(
    shape: tuple[int, int, int], # N, height, width
    size: int = 1 << 23, # bytes of a block, at most, but one slice at least
) -> Iterator[np.ndarray]: # int64 [n]
    "The numbers of all slices, block by block."
    n, height, width = shape
    count = max(1, size//max(1, height*width))
    for first in range(0, n, count):
        yield np.arange(first, min(n, first + count))


# %%
print(*row_blocks((5, 2, 2), 8))


# %%
#| export
def blocks(
    pixels, # uint8 [N,H,W], an array or lazy
    size: int = 1 << 23, # see `row_blocks`
) -> Iterator[np.ndarray]: # uint8 [n,H,W]
    "All slices, block by block."
    for rows in row_blocks(pixels.shape, size):
        yield pixels[rows[0]:rows[-1] + 1]


# %% [markdown]
# With these, a slice is read when it is indexed.

# %%
#| export
class LazyPixels(LazyRows, NDArrayOperatorsMixin):
    "uint8 [N,H,W] that is read by indexing its first axis; `take` chooses slices without reading."
    def __getitem__(self, index) -> np.ndarray:
        if isinstance(index, tuple) or np.ndim(index) > 1: # of pixels, as in `masks[masks > 0]`
            return np.asarray(self)[index]
        rows = self.rows[index]
        pixels = _read_rows(self.source, np.ravel(rows))
        return pixels.reshape(*np.shape(rows), *self.shape[1:])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        pixels = np.empty(self.shape, np.uint8)
        first = 0
        for block in blocks(self):
            pixels[first:first + len(block)] = block
            first += len(block)
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        arrays = [np.asarray(x) if isinstance(x, LazyPixels) else x for x in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __repr__(self) -> str:
        return f"LazyPixels({list(self.shape)})"


# %% [markdown]
# An example, with a source that tells what is read from it:

# %%
def telling(rows):
    print("reading", rows)
    return np.stack([np.full((2, 2), row, np.uint8) for row in rows])

lazy = LazyPixels(ReadPixels(telling, (9, 2, 2)))
print(lazy)
test_eq(lazy[[5, 2, 5]][:, 0, 0], [5, 2, 5])
test_eq(lazy[3].shape, (2, 2))
test_eq((lazy > 7).sum(), 4)
test_fail(lambda: lazy[9])


# %% [markdown]
# ## Arrays and lazy pixels alike
#
# The following ask for nothing but a choice of slices, and treat both kinds alike.

# %%
#| export
def take(pixels, index):
    "Some slices of an array or of lazy pixels [N,…]; nothing is read of the latter."
    if isinstance(pixels, LazyPixels):
        return LazyPixels(pixels.source, np.atleast_1d(pixels.rows[index]))
    return pixels[index]


# %%
two = take(lazy, [4, 8])
print(two)


# %%
#| export
def kept_where(
    pixels, # uint8 [N,H,W]
    keep: np.ndarray, # bool [N]
):
    "The slices, all zeros where `keep` is False."
    if isinstance(pixels, LazyPixels):
        return LazyPixels(pixels.source, np.where(keep, pixels.rows, -1))
    return pixels*keep[:, None, None].astype(np.uint8)

def blank_like(pixels):
    "As many slices of the same size, all zeros."
    if isinstance(pixels, LazyPixels):
        return kept_where(pixels, np.zeros(len(pixels), bool))
    return np.zeros_like(pixels)


# %%
erased = kept_where(two, np.array([False, True]))
print(erased.rows, blank_like(two).rows)
test_eq(np.asarray(erased)[:, 0, 0], [0, 8])


# %% [markdown]
# Which values occur on each slice is asked often, so it must be fast: masks consist of long runs of one value, and every value that
# occurs starts a run somewhere. Only the pixels that differ from the one before are looked at, which is ten times faster than all.

# %%
#| export
def _seen_on(masks: np.ndarray) -> np.ndarray:
    "`seen_values` of an array."
    seen = np.zeros((len(masks), 256), bool)
    pixels = int(np.prod(masks.shape[1:]))
    for row, mask in zip(seen, masks.reshape(len(masks), pixels)):
        starts = mask[1:] != mask[:-1]
        row[mask[:1]] = True
        row[mask[1:][starts]] = True
    return seen

def seen_values(
    masks, # uint8 [N,H,W], an array or lazy
) -> np.ndarray: # bool [N,256]
    "Which values each slice holds, bool [N,256]; of lazy pixels whose source knows it nothing is read."
    if not isinstance(masks, LazyPixels):
        return _seen_on(masks)
    if masks.source.seen is None:
        parts = [np.zeros((0, 256), bool), *map(_seen_on, blocks(masks))]
        return np.concatenate(parts)
    blank = masks.rows < 0
    seen = np.unpackbits(masks.source.seen[np.where(blank, 0, masks.rows)], axis=1).astype(bool)
    seen[blank] = np.arange(256) == 0
    return seen


# %%
masks = np.array([[[0, 3], [3, 0]], [[1, 1], [255, 0]], [[0, 0], [0, 0]]], np.uint8)
knowing = LazyPixels(ReadPixels(telling, masks.shape, pack_seen(seen_values(masks))), np.array([1, -1, 0]))
for seen in seen_values(knowing):
    print(np.flatnonzero(seen))
test_eq(seen_values(knowing), seen_values(masks[[1, 2, 0]]))
