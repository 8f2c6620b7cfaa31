# %% [markdown]
# # Images of several sizes
#
# > A merged folder has images of one size: by millimetres where they are known, else by a word of the user.
#
# - skip_showdoc: true

# %%
#| default_exp io.merge_sizes

# %%
#| export
from typing import NamedTuple

import numpy as np

from ctseg.core.errors import InputError, did_you_mean, some_of
from ctseg.data.images import MAX_PIXELS
from ctseg.io.canvas import paste
from ctseg.io.volumes import resize_slices

# %%
#| hide
from fastcore.test import test_eq

# %% [markdown]
# Images of one size are left as they are. Of others somebody must say what a pixel of the one is beside a pixel of the other. Three
# answers are possible:
#
# | `--resize` | what becomes of the pixels |
# |---|---|
# | `spacing` | a pixel has as many millimetres everywhere as in the first folder. It is the choice where all folders were imported from volumes, whose [index](50_index.ipynb) has the millimetres |
# | `fit` | every image is enlarged or shrunk until it fills the frame of the first folder, or of `--size` |
# | `pad` | pixels stay as they are, and small images get a margin |
#
# No answer crops anything. The margin is black, as outside of the body, and nothing was drawn there.

# %%
#| export
RESIZE = ("spacing", "fit", "pad")

class CommonFrame(NamedTuple):
    "How the images of all sources come to one size."
    size: tuple[int, int]  # height and width
    how: str | None = None  # one of RESIZE; None: all have this size already
    mm: float | None = None  # of a pixel, with "spacing"


class SplitFacts(NamedTuple):
    "What is known of a split's images before they are read."
    where: str
    count: int
    size: tuple[int, int]  # height and width of all of them
    mm: np.ndarray | None  # float [N,2]: of their pixels; None: not known


def _listed(stacks: list[SplitFacts]) -> str:
    "The sizes of the images, each with the first place that has it."
    places = {stack.size: stack.where for stack in reversed(stacks)}
    listed = [f"{height}x{width} in {where}" for (height, width), where in places.items()]
    return some_of(reversed(listed), length=200)


# %%
small, large = SplitFacts("a", 3, (64, 64), None), SplitFacts("b", 2, (96, 80), None)
print(_listed([small, large]))


# %% [markdown]
# ## How large each image becomes

# %%
#| export
def scaled_sizes(stack: SplitFacts, frame: CommonFrame) -> np.ndarray: # int [N,2]
    "Height and width of each image of a stack before it is put into the frame."
    size = np.tile(np.array(stack.size), (stack.count, 1))
    if frame.how == "fit":
        size = size*min(np.array(frame.size)/stack.size)
    if frame.how == "spacing":
        size = size*stack.mm/frame.mm
    return np.maximum(1, size.round().astype(int))


# %%
fit, pad = CommonFrame((64, 64), "fit"), CommonFrame((96, 96), "pad")
print(scaled_sizes(large, fit)[0], scaled_sizes(large, pad)[0])


# %%
#| export
def _chosen(stacks: list[SplitFacts], resize: str | None) -> str:
    "How images of different sizes become one. `InputError` if nobody said so, or nobody can know."
    known = [stack for stack in stacks if stack.mm is not None]
    if resize is None and len(known) == len(stacks): return "spacing"
    if resize is None:
        raise InputError(f"images of different sizes ({_listed(stacks)}); say by --resize fit "
                         "that each fills the frame, or by --resize pad that their pixels are alike")
    if resize not in RESIZE:
        raise did_you_mean("value of resize", resize, RESIZE)
    if resize == "spacing" and len(known) < len(stacks):
        unknown = next(stack.where for stack in stacks if stack.mm is None)
        raise InputError(f"{unknown}: no index.json, so nobody knows the millimetres of its pixels; "
                         "import the volumes again, or choose --resize fit or pad")
    return resize


# %%
#| export
def _largest(stacks: list[SplitFacts], frame: CommonFrame) -> tuple[int, int]:
    "The size that holds the images of all stacks once they are scaled for a frame."
    sizes = [scaled_sizes(stack, frame) for stack in stacks]
    return tuple(np.concatenate(sizes).max(0).tolist())


def _possible(frame: CommonFrame) -> CommonFrame:
    "The frame; `InputError` if it has too many pixels."
    height, width = frame.size
    if height*width > MAX_PIXELS:
        raise InputError(f"images of {height}x{width} pixels would be needed, more than 8192x8192; "
                         "choose --resize fit, or put the folder with the larger pixels first")
    return frame


# %%
upright, flat = SplitFacts("a", 1, (64, 48), None), SplitFacts("b", 1, (32, 80), None)
print(_largest([upright, flat], CommonFrame((64, 48), "pad")))


# %%
#| export
def common_frame(
    stacks: list[SplitFacts], # of all splits of all sources
    resize: str | None = None, # one of RESIZE; None: none needed, or by millimetres
    size: int | None = None, # side of the frame in pixels; None: as the method needs
) -> CommonFrame:
    "The frame for all images. `InputError` where it is too small, or where a choice is missing."
    first, square = stacks[0], (size, size) if size else None
    if resize is None:
        if {stack.size for stack in stacks} == {square or first.size}:
            return CommonFrame(first.size)
        if square: resize = "fit"
    how = _chosen(stacks, resize)
    mm = float(np.median(first.mm)) if how == "spacing" else None
    needed = first.size  # of "fit": whatever their size, images are made to fit
    if how != "fit":
        needed = _largest(stacks, CommonFrame(first.size, how, mm))
        if square and max(needed) > size:
            raise InputError(f"--size {size} is too small: images need {needed[0]}x{needed[1]} pixels; "
                             "leave it out, or choose --resize fit")
    return _possible(CommonFrame(square or needed, how, mm))


# %%
millimetres = [stack._replace(mm=np.full((stack.count, 2), mm)) for stack, mm in ((small, 4.), (large, 2.))]
both = [small, large]
for given in ([small, small],), (millimetres,), (both, "fit"), (both, "pad"), ([small], None, 48):
    print(common_frame(*given))
for wrong in (both,), (both, "spacing"), (both, "pad", 64), (both, "padding"), (both, None, 9000):
    try: common_frame(*wrong)
    except InputError as e: print("-", e)


# %% [markdown]
# ## The images on their frames
#
# A class that vanishes when an image shrinks is not absent. It was drawn, and is gone: so it becomes unknown there, which whoever calls
# this sees from the [masks before and after](../data/10_slices.ipynb).

# %%
#| export
def framed(
    images: np.ndarray, # uint8 [N,h,w]
    masks: np.ndarray, # uint8 [N,h,w]
    sizes: np.ndarray, # int [N,2], see `scaled_sizes`
    frame: CommonFrame,
) -> tuple[np.ndarray, np.ndarray]: # uint8 [N,H,W] each
    "Images and masks, resampled and in the middle of their frames."
    if frame.how is None: return images, masks
    out = [np.zeros((len(images), *frame.size), np.uint8) for _ in range(2)]
    for size in np.unique(sizes, axis=0):
        rows = np.flatnonzero((sizes == size).all(1))
        corner = (np.array(frame.size) - size)//2
        for array, stack, mode in zip(out, (images, masks), ("image", "mask")):
            resized = resize_slices(stack[rows], tuple(size.tolist()), mode)
            array[rows] = paste(resized, [corner]*len(rows), frame.size, 0)
    return out[0], out[1]


# %%
bar = np.zeros((1, 4, 2), np.uint8)
bar[0, 1:3] = 200
image, mask = framed(bar, bar//200, np.array([[4, 2]]), CommonFrame((4, 6), "pad"))
print(mask[0])
test_eq(framed(bar, bar//200, np.array([[8, 4]]), CommonFrame((8, 8), "fit"))[1].sum(), 16)
