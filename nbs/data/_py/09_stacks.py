# %% [markdown]
# # Stacks
#
# > An image with the slices above and below it, as the channels of one network input.
#
# - skip_showdoc: true

# %%
#| default_exp data.stacks

# %% [markdown]
# On a single slice a vessel and a lymph node are the same bright disc. The next slice tells them apart: the vessel goes on. A network that sees
# the neighbours of a slice as further channels learns this at little cost (*2.5D*). The setting `context` says how many slices it sees on
# each side.
#
# Not every slice has neighbours. At both ends of a scan, beside a gap, and where a slice was not imported, nobody knows what lies there. Such
# a channel is **black**, as the zeros are that a 3D convolution sees outside of its volume. Repeating the slice itself would be a
# claim: that nothing changes there.

# %%
#| export
from typing import Self

import numpy as np

from ctseg.core.errors import InputError

# %%
#| hide
import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.data.stacks import Stacks, stacks_of


# %% [markdown]
# ## Reading some stacks
#
# The images of a folder are there once, in memory or [on a disk](08_lazy.ipynb). A stack is a row of numbers of images, -1 for none, so
# choosing stacks copies no pixels. Images that were cropped around the body lie at different places of the scan; a neighbour is
# moved to where its middle slice lies.

# %%
#| export
def common_part(
    corner: int, # where on the canvas the image begins; may lie outside
    image_side: int,
    canvas_side: int,
) -> tuple[slice, slice]: # of the canvas, of the image
    "Where along one axis an image lies on a canvas, and which part of the image that is."
    start, stop = max(0, corner), min(canvas_side, corner + image_side)
    stop = max(start, stop)
    return slice(start, stop), slice(start - corner, stop - corner)

def moved(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    "An image [H,W] moved down and to the right by so many pixels; black where nothing was."
    height, width = image.shape
    to_rows, from_rows = common_part(rows, height, height)
    to_columns, from_columns = common_part(columns, width, width)
    out = np.zeros_like(image)
    out[to_rows, to_columns] = image[from_rows, from_columns]
    return out


# %%
square = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
print(moved(square, 1, -1))
test_eq(moved(square, 0, 0), square)
for gone in ((5, 0), (-5, 1), (0, 4), (-3, -4)): assert not moved(square, *gone).any()


# %% [markdown]
# Several stacks need the same images. Each is read once.

# %%
#| export
def read_moved(
    images, # uint8 [M,H,W], an array or lazy
    needed: np.ndarray, # int64 [m,3]: number of an image, and how far it is moved down and to the right
) -> np.ndarray: # uint8 [m+1,H,W]
    "Some images, moved, and a black one after the last."
    height, width = images.shape[1:]
    pixels = np.zeros((len(needed) + 1, height, width), np.uint8)
    if len(needed):
        pixels[:-1] = images[needed[:, 0]]
    is_moved = needed[:, 1:].any(1)
    for n in np.flatnonzero(is_moved):
        _, rows, columns = needed[n]
        pixels[n] = moved(pixels[n], rows, columns)
    return pixels


# %%
grey = np.arange(1, 4, dtype=np.uint8)[:, None, None]*np.ones((1, 2, 2), np.uint8)
print(read_moved(grey, np.array([[2, 0, 0], [1, 0, 1]])).tolist())


# %%
#| export
def distinct_images(
    rows: np.ndarray, # int64 [N,K], see `StackRows`
    shifts: np.ndarray, # int64 [N,K,2]
) -> tuple[np.ndarray, np.ndarray]: # int64 [m,3], see `read_moved`; int64 [N,K]
    "The images that some stacks need, each once; and which of them each channel is, m for none."
    missing = rows < 0
    shifts = np.where(missing[..., None], 0, shifts)
    rows = np.where(missing, -1, rows)
    keys = np.concatenate([rows[..., None], shifts], 2)
    keys = keys.reshape(-1, 3)
    needed, numbers = np.unique(keys, axis=0, return_inverse=True)
    numbers = numbers.reshape(rows.shape)
    if missing.any():  # it comes first
        needed = needed[1:]
        numbers = numbers - 1
    return needed, np.where(missing, len(needed), numbers)


# %%
needed, numbers = distinct_images(np.array([[-1, 0, 1], [0, 1, 2]]), np.zeros((2, 3, 2), int))
test_eq(needed[:, 0], [0, 1, 2])
test_eq(numbers, [[3, 0, 1], [0, 1, 2]])


# %%
#| export
class StackRows:
    "Which images make up each of N stacks of K channels."
    def __init__(self,
        images, # uint8 [M,H,W], an array or lazy: all that may be a neighbour
        rows: np.ndarray, # int64 [N,K], K odd: numbers of images, the slice itself in the middle; -1: none
        shifts: np.ndarray, # int64 [N,K,2]: how far each is moved down and to the right, in pixels
    ):
        self.images, self.rows, self.shifts = images, rows, shifts

    @property
    def shape(self) -> tuple[int, int, int, int]:
        "N, channels, height, width."
        height, width = self.images.shape[1:]
        return (*self.rows.shape, height, width)

    @property
    def context(self) -> int:
        "How many slices there are on each side of the middle one."
        return self.rows.shape[1]//2

    def __len__(self) -> int:
        return len(self.rows)

    def needed(self) -> tuple[np.ndarray, np.ndarray]: # int64 [m,3], int64 [N,K]
        "See `distinct_images`."
        return distinct_images(self.rows, self.shifts)

    def distinct(self) -> tuple[np.ndarray, np.ndarray]: # uint8 [m+1,H,W], int64 [N,K]
        "The images that the stacks need, a black one at the end; and which of them each channel is."
        needed, numbers = self.needed()
        return read_moved(self.images, needed), numbers


# %% [markdown]
# Two stacks of three images. The first has no neighbour below, and its upper one is moved by a pixel.

# %%
images = grey
rows = np.array([[-1, 0, 1], [0, 1, 2]])
shifts = np.zeros((2, 3, 2), int)
shifts[0, 2] = 1, 0
pixels, numbers = StackRows(images, rows, shifts).distinct()
print(pixels[:, :, 0].tolist(), numbers.tolist())
test_eq(pixels[-1].any(), False)


# %%
#| export
class Stacks(StackRows):
    "uint8 [N,K,H,W], read by indexing its first axis; `take` chooses stacks without reading."
    def take(self, index) -> Self:
        "Some of the stacks."
        index = np.arange(len(self))[index]
        index = index.reshape(-1)
        rows, shifts = self.rows[index], self.shifts[index]
        return type(self)(self.images, rows, shifts)

    def narrowed(self, context: int) -> Self:
        "The same with so many slices on each side; `InputError` where there are fewer."
        if context > self.context:
            raise InputError(f"context = {context}: only {self.context} slices on each side were looked up")
        first = self.context - context
        last = self.context + context
        kept = slice(first, last + 1)
        return type(self)(self.images, self.rows[:, kept], self.shifts[:, kept])

    def in_memory(self) -> Self:
        "The same stacks, with the images that they need in memory."
        pixels, numbers = self.distinct()
        shifts = np.zeros_like(self.shifts)
        return type(self)(pixels, numbers, shifts)

    def __getitem__(self, index) -> np.ndarray:
        pixels, numbers = self.take(index).distinct()
        if isinstance(index, int | np.integer):
            numbers = numbers[0]
        return pixels[numbers]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        pixels = self[:]
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"Stacks({list(self.shape)})"


# %%
stacks = Stacks(images, rows, shifts)
print(stacks, stacks[:][:, :, :, 0].tolist())
test_eq(stacks.take([1])[:], stacks[1][None])
test_eq(stacks.in_memory()[:], np.asarray(stacks))
test_eq(stacks.narrowed(0)[:], images[:2, None])
test_fail(lambda: stacks.narrowed(2), contains="only 1 slices")


# %% [markdown]
# ## Who is a neighbour
#
# A slice has a *volume* and a *place* in it, counted in steps from slice to slice. Its neighbours have the same volume and the places before and after.
# The order of the images does not matter, nor which of them are annotated. [Another page](../io/57_neighbours.ipynb) tells where places come from.

# %%
#| export
def _found(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    "Where each of the wanted keys is among the keys, int64, of the shape of `wanted`; -1: nowhere."
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    at = np.searchsorted(ordered, wanted)
    at = at.clip(max=len(keys) - 1)
    candidates = order[at]
    found = keys[candidates] == wanted
    return np.where(found, candidates, -1)


# %%
print(_found(np.array([30, 10, 20]), np.array([[10, 20], [30, 40]])).tolist())


# %%
#| export
def _keys(volumes: np.ndarray, places: np.ndarray, context: int) -> np.ndarray:
    "A number for each place of each volume, so far apart that no step leads into another volume."
    _, volumes = np.unique(volumes, return_inverse=True)
    places = places - places.min(initial=0) + context
    width = places.max(initial=0) + context + 1
    return volumes*width + places

def stacks_of(
    images, # uint8 [N,H,W], an array or lazy
    volumes: np.ndarray, # int64 [N]: slices of one volume share a number
    places: np.ndarray, # int64 [N]: where in its volume each is, in steps
    context: int, # slices on each side
    corners: np.ndarray|None = None, # int64 [N,2]: where a volume's corner is on each image; None: the same
) -> Stacks:
    "Each image with its neighbours."
    keys = _keys(volumes, places, context)
    steps = np.arange(-context, context + 1)
    rows = np.zeros((0, len(steps)), int)
    if len(keys):
        wanted = keys[:, None] + steps
        rows = _found(keys, wanted)
    shifts = np.zeros((*rows.shape, 2), int)
    if corners is not None:
        shifts = corners[:, None] - corners[rows]
    return Stacks(images, rows, shifts)


# %% [markdown]
# Two volumes, whose slices come mixed. The first misses its third slice.

# %%
volumes, places = np.array([7, 2, 7, 2, 7]), np.array([0, 0, 1, 1, 3])
five = np.zeros((5, 2, 2), np.uint8)
for name, row in zip("abcde", stacks_of(five, volumes, places, 1).rows):
    print(f"{name}: " + " ".join("abcde-"[n] for n in row))
test_eq(stacks_of(five, volumes, places, 2).rows[4].tolist(), [2, -1, 4, -1, -1])
test_eq(stacks_of(five[:0], volumes[:0], places[:0], 1).shape, (0, 3, 2, 2))
