# %% [markdown]
# # Canvas
#
# > Slices of any size onto squares of one size, and back.

# %%
#| default_exp io.canvas

# %%
#| export
import numpy as np

from ctseg.data.stacks import common_part
from ctseg.io.slicing import to_8bit
from ctseg.io.volumes import VolumeSlices

# %%
#| hide
import matplotlib.pyplot as plt
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.io.slicing import Slicing
from ctseg.io.toy_scans import torso_scans
from ctseg.io.volumes import cut

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG


# %% [markdown]
# Placing is one function in both directions. Pasting an image onto a canvas at a corner crops and pads at once. Pasting the
# *canvas* onto the image at the opposite corner is the way back.

# %%
#| export
def paste(
    stack: np.ndarray, # slices [n,h,w]
    corners, # int [n,2]: row and column of each slice's pixel (0, 0) on its canvas; may lie outside
    size: tuple[int, int], # height and width of a canvas
    fill, # the value around them: one for all, or one each
) -> np.ndarray: # [n,*size]
    "Slices on canvases: what lies outside is cropped, what is missing is filled."
    canvases = np.empty((len(stack), *size), stack.dtype)
    canvases[:] = np.reshape(fill, (-1, 1, 1))
    for canvas, image, (row, column) in zip(canvases, stack, corners):
        to_rows, from_rows = common_part(row, image.shape[0], size[0])
        to_columns, from_columns = common_part(column, image.shape[1], size[1])
        canvas[to_rows, to_columns] = image[from_rows, from_columns]
    return canvases


# %%
small = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4)
print(paste(small, [(1, -1)], (4, 5), 0)[0])
test_eq(paste(paste(small, [(1, 2)], (6, 6), 0), [(-1, -2)], (3, 4), 0), small)
test_eq(paste(small, [(9, 0)], (4, 4), 0).max(), 0)


# %% [markdown]
# A small slice goes into the middle of the square. Of a large one the part around the body is kept.

# %%
#| export
def square_corners(
    part: VolumeSlices,
    side: int, # of the square, in pixels
) -> np.ndarray: # int [n,2], row and column
    "Where on a square each slice's pixel (0, 0) goes."
    shape = np.array(part.images.shape[1:])
    start = np.floor(part.centres).astype(int) - side//2
    crop = np.clip(start, 0, np.maximum(shape - side, 0))
    return np.where(shape > side, -crop, (side - shape)//2)


# %%
scan = torso_scans()["as NIfTI likes it"]
part = cut(scan, Slicing(window="lung"), slices=[28])
for side in (128, 96, 64):
    print(f"{part.images.shape[1:]} on a square of {side}:", square_corners(part, side)[0])


# %%
#| export
def place_on_squares(
    part: VolumeSlices,
    side: int, # of the squares, in pixels
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: # images and masks uint8 [n,side,side], corners int [n,2]
    "The slices of a volume on squares. The margin of an image shows air through the slice's own window."
    corners = square_corners(part, side)
    air = [to_8bit(-1024, *window) for window in part.windows]
    images = paste(part.images, corners, (side, side), air)
    masks = paste(part.masks, corners, (side, side), 0)
    return images, masks, corners


# %%
#| fig-alt: "A slice on squares of three sides: with a margin, just fitting, and cut around the body"
fig, axes = plt.subplots(1, 3, figsize=(7, 2.5), layout="constrained")
for ax, side in zip(axes, (128, 96, 64)):
    images, masks, corners = place_on_squares(part, side)
    ax.imshow(images[0], cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"side {side}, corner at {corners[0].tolist()}", fontsize=9)
    ax.set(xticks=[], yticks=[])
