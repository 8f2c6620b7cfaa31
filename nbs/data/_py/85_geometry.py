# %% [markdown]
# # Geometry
#
# > Turns, scales and mirrors that carry along what is known about the pixels.
#
# - skip_showdoc: true

# %%
#| default_exp data.geometry

# %% [markdown]
# A turned slice is a new slice, *if* what we know about the pixels turns with it. Four things move together, and forgetting one is a silent
# bug:
#
# | | how it moves |
# |---|---|
# | `image` | bilinear: grey values may be blended |
# | `mask` | nearest: half a liver and half a spleen is not some class in between |
# | `known` | nearest where it is a map `[B,C,H,W]`; stays where it speaks of whole images `[B,C]` |
# | `weight` | nearest, like the mask |
#
# Everything here works on a whole batch on the training device, and every random number comes from a `torch.Generator` that is passed in.
# So the same seed gives the same batch, which makes an interrupted run resumable to the bit.

# %%
#| export
import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.errors import InputError, did_you_mean
from ctseg.data.batches import Batch, class_in_mask

# %%
#| hide
from dataclasses import replace

import torch
from fastcore.test import test_eq, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.anatomy import ClassMap
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.data.batches import Batch

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 65})  # grey noise: a quarter of a PNG


# %% [markdown]
# The example is two simple slices. The first was examined for all three classes, the second only for the heart.

# %%
#| hide
def blob(cy, cx, ry, rx, size=96):
    "An ellipse, bool [size,size]."
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)]*2, indexing="ij")
    return ((y - cy)/ry)**2 + ((x - cx)/rx)**2 < 1

def example(size=96):
    "Two bodies with two lungs, a heart and a table below, made on the spot."
    image, mask = torch.zeros(2, 1, size, size), torch.zeros(2, size, size, dtype=torch.long)
    for b, d in enumerate((0., .06)):
        image[b, 0] = .55*blob(0, 0, .8 + d, .9 - d)
        organs = ((0, -.45, .45, .25 + d), .1), ((0, .45, .4, .28), .12), ((d, -.05, .25, .15 + d), .75)
        for c, (place, grey) in enumerate(organs, 1):
            image[b, 0][blob(*place)] = grey
            mask[b][blob(*place)] = c
    mask[1][mask[1] < 3] = 0  # not outlined, because not examined
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return Batch(
        (image + .03*noise).clamp(0, 1),
        mask,
        torch.tensor([[1, 1, 1], [0, 0, 1]]).bool(),
        index=torch.arange(2),
    )

def show(ax, batch, row=0, title=""):
    "One slice of a batch with its mask."
    show_image(ax, overlay(255*batch.image[row, 0].numpy(), batch.mask[row].numpy(), classes), title)


# %%
#| fig-alt: "Two simple slices with outlines: all three structures examined, and only the heart"
classes = ClassMap.from_names(["lung_right", "lung_left", "heart"])
batch = example()
fig, (panels,) = image_grid(1, 2)
for row, title in enumerate(("all three examined", "only the heart examined")):
    show(panels[row], batch, row, title)
class_legend(fig, classes)


# %% [markdown]
# ## One number for each image
#
# Random numbers are drawn where the generator lives. The training loop's lives on the training device, so nothing has to be sent there. A
# generator of the CPU gives the same numbers on every machine, and serves as well.

# %%
#| export
def uniform(
    n: int, # how many
    low: float, high: float,
    generator: torch.Generator,
    device="cpu",
) -> torch.Tensor: # float32 [n,1,1,1]
    "`n` numbers between `low` and `high`, shaped [n,1,1,1] to act on images."
    numbers = torch.rand(n, generator=generator, device=generator.device)
    return (numbers*(high - low) + low).to(device)[:, None, None, None]


# %%
print(uniform(3, 5, 6, torch.Generator().manual_seed(0)).flatten())


# %% [markdown]
# ## Affine maps
#
# For each pixel of the *new* image an affine map says where in the old one to look. `grid_sample` wants this in coordinates from -1 to 1,
# in which a turn of a non-square image would shear it. So the rotation is made in pixels and then rescaled.

# %%
#| export
def affine_grid(
    n: int, # number of images
    size, # (H, W)
    generator: torch.Generator,
    degrees: float = 15., # turned by at most this
    scale: float = .12, # enlarged or shrunk by at most this factor, .12: 1.12 or 1/1.12
    shift: float = .06, # moved by at most this part of each side
    device="cpu",
) -> torch.Tensor: # [n,H,W,2], where to look, x before y, in -1…1
    "A random turn, scale and shift for each image: [n,H,W,2], where to look, x before y, in -1…1."
    def draw(limit: float) -> torch.Tensor:
        return uniform(n, -limit, limit, generator, device).flatten()
    h, w = size
    angle = draw(math.radians(degrees))
    zoom = draw(math.log1p(scale)).exp()
    dx = 2*draw(shift)
    dy = 2*draw(shift)
    cos, sin = angle.cos()*zoom, angle.sin()*zoom
    row_x = torch.stack([cos, -sin*h/w, dx], 1)
    row_y = torch.stack([sin*w/h, cos, dy], 1)
    return F.affine_grid(torch.stack([row_x, row_y], 1), (n, 1, h, w), align_corners=False)


# %%
grid = affine_grid(1, (2, 3), torch.Generator(), degrees=0, scale=0, shift=0)
print("the map that does nothing looks at x =", [round(x, 2) for x in grid[0, 0, :, 0].tolist()])


# %% [markdown]
# Grey values are blended by `grid_sample`. Everything that is not a grey value is *picked*: the grid is rounded to the nearest pixel and
# its index used to gather. So a mask stays an integer all the way, and a label that was not there cannot appear.

# %%
#| export
class NearestPixel:
    "The nearest pixel for each point of a sampling grid [B,H,W,2]; points outside the frame give 0 or False."
    def __init__(self, grid: torch.Tensor):
        h, w = grid.shape[1:3]
        side = torch.tensor([w, h], device=grid.device)
        pixel = ((grid + 1)*side - 1)/2
        x, y = pixel.round().long().unbind(-1)
        self.inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        self.index = (y.clamp(0, h - 1)*w + x.clamp(0, w - 1)).flatten(1)

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        "The same of [B,H,W] or [B,C,H,W], any type. [B,C] speaks of no pixels and is copied."
        if t.ndim == 2:
            return t.clone()
        index, inside = self.index, self.inside
        if t.ndim == 4:
            index = index[:, None].expand(-1, t.shape[1], -1)
            inside = inside[:, None]
        return t.flatten(-2).gather(-1, index).view(t.shape)*inside


# %% [markdown]
# A map that does nothing changes nothing, to the bit. Sides of 61 and 47 pixels, because rounding shows on odd ones.

# %%
nothing = affine_grid(2, (61, 47), torch.Generator(), degrees=0, scale=0, shift=0)
numbers = torch.randint(0, 55, (2, 61, 47), generator=torch.Generator().manual_seed(0))
test_eq(NearestPixel(nothing)(numbers), numbers)


# %% [markdown]
# **Outside the frame.** A turned image has corners that nobody photographed. They are filled with black, which in CT is air, and the mask
# says 0 there. Is that known? It depends on what `known` speaks of:
#
# - `[B,C]` says "class c was examined on this image, and it is where the mask says". That stays true of the turned image: its black corners
#   hold no organ. Real slices have black borders too, and a network must learn to leave them empty, so they take part in the loss.
# - A map `[B,C,H,W]` or a `weight` speaks of single pixels, and nobody said anything about the corners: they become False and 0. A class
#   whose map is known all over the slice is the first case in another form, and stays known.
#
# A mask that is 0 outside needs no weight of its own, so a batch without `weight` stays without.
#
# **Lost on the way.** A structure of one or two pixels can fall between the points that are picked. It is not absent for that: if nothing
# of a structure is left, it is no longer known.

# %%
#| export
def _warp_known(batch: Batch, pick: NearestPixel, mask: torch.Tensor) -> torch.Tensor:
    "What is known of a batch whose mask became `mask`, in the shape it had."
    known = pick(batch.known)
    if known.ndim == 2:
        C = known.shape[1]
        lost = class_in_mask(batch.mask, C) & ~class_in_mask(mask, C)
        return known & ~lost
    everywhere = batch.known.flatten(2).all(2)[:, :, None, None]
    outside = ~pick.inside[:, None]
    return known | outside & everywhere


# %%
small = replace(batch, mask=torch.zeros_like(batch.mask))
small.mask[0, 40, 40] = 1  # one pixel, examined and found
half_size = NearestPixel(2*affine_grid(2, (96, 96), torch.Generator(), degrees=0, scale=0, shift=0))
print(
    "known before:",
    small.known[0].tolist(),
    " at half the size:",
    _warp_known(small, half_size, half_size(small.mask))[0].tolist(),
)


# %%
#| export
def warp(
    batch: Batch,
    grid: torch.Tensor, # [B,H,W,2], from `affine_grid`
) -> Batch:
    "Sample image (bilinear), mask, known map and weight (nearest) with the same grid [B,H,W,2]."
    pick = NearestPixel(grid)
    mask = pick(batch.mask)
    known = _warp_known(batch, pick, mask)
    weight = None if batch.weight is None else pick(batch.weight)
    grid = grid.to(batch.image.dtype)
    image = F.grid_sample(batch.image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return replace(batch, image=image, mask=mask, known=known, weight=weight)


# %%
#| fig-alt: "A slice as it is and in four warped forms; the outlines turn and stretch with it"
generator = torch.Generator().manual_seed(2)
fig, (panels,) = image_grid(1, 5, size=1.9)
show(panels[0], batch, 0, "as it is")
for ax in panels[1:]:
    new = warp(batch, affine_grid(2, (96, 96), generator, degrees=25, scale=.2))
    show(ax, new, 0, "warped")
    assert set(new.mask.unique().tolist()) <= {0, 1, 2, 3}
class_legend(fig, classes)

# %% [markdown]
# Do image and mask really move together? If the "image" is the mask itself, warping both must agree everywhere except within a pixel of an
# edge, where bilinear values lie in between.

# %%
twin = replace(batch, image=(batch.mask == 1).float()[:, None])
new = warp(twin, affine_grid(2, (96, 96), torch.Generator().manual_seed(0)))
sure = (new.image[:, 0] < .01) | (new.image[:, 0] > .99)
test_eq((new.image[:, 0] > .5)[sure], (new.mask == 1)[sure])
assert sure.float().mean() > .97 and new.image.max() > .99

# %% [markdown]
# ## Mirrors that know left from right
#
# Mirrored, a body has its liver on the wrong side. But a left kidney becomes a perfectly good *right* kidney, if its label is changed. Not
# only in the mask: if only the left kidney was examined, then after the mirror only the right one was. A mirror that forgets the `known`
# columns teaches that a kidney which nobody looked for is absent.
#
# Which way is left-right? Radiological images show it horizontally. The challenge's frames are turned by a quarter, so there the
# anatomical mirror is a **vertical** flip.

# %%
#| export
MIRROR_AXES = {"vertical": -2, "horizontal": -1}

def mirror(
    batch: Batch,
    classes: ClassMap,
    axis: str = "vertical", # "vertical" flips top and bottom, "horizontal" left and right
    where: torch.Tensor|None = None, # bool [B]: which images; `None`: all
) -> Batch:
    "Mirror the body: flip image, mask and maps; swap lateral partners in mask, `known` and `weight`."
    if axis not in MIRROR_AXES:
        raise did_you_mean("mirror axis", axis, MIRROR_AXES)
    dim, device = MIRROR_AXES[axis], batch.mask.device
    swap = torch.from_numpy(classes.swap).to(device)
    columns = swap[1:] - 1
    partner = torch.arange(IGNORE + 1, device=device)  # what is to be ignored stays so
    partner[:len(swap)] = swap
    where = torch.ones(len(batch), dtype=torch.bool, device=device) if where is None else where

    def choose(mirrored: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return torch.where(where.view(-1, *[1]*(before.ndim - 1)), mirrored, before)

    def of_partners(values: torch.Tensor) -> torch.Tensor:  # [B, C] or [B, C, H, W]
        return (values.flip(dim) if values.ndim == 4 else values)[:, columns]

    weight = batch.weight
    if weight is not None:
        by_class = weight.shape[1] == len(classes)
        weight = choose(of_partners(weight) if by_class else weight.flip(dim), weight)
    return replace(
        batch,
        image=choose(batch.image.flip(dim), batch.image),
        mask=choose(partner[batch.mask.flip(dim)], batch.mask),
        known=choose(of_partners(batch.known), batch.known),
        weight=weight,
    )


# %%
#| fig-alt: "A slice with the right lung outlined and its mirror image, where the outline is the left lung"
one_lung = replace(
    batch, mask=torch.where(batch.mask == 2, 0, batch.mask), known=torch.tensor([[1, 0, 1], [1, 0, 1]]).bool()
)
mirrored = mirror(one_lung, classes, "horizontal")
fig, (panels,) = image_grid(1, 2)
show(panels[0], one_lung, 0, "examined: right lung, heart")
show(panels[1], mirrored, 0, "mirrored: left lung, heart")
class_legend(fig, classes)
test_eq(mirrored.known, torch.tensor([[0, 1, 1], [0, 1, 1]]).bool())
twice = mirror(mirrored, classes, "horizontal")
for part in ("image", "mask", "known"):
    test_eq(getattr(twice, part), getattr(one_lung, part))


# %%
#| export
def mirror_half(
    batch: Batch,
    classes: ClassMap|None,
    axis: str, # "vertical" or "horizontal"
    generator: torch.Generator,
) -> Batch:
    "Mirror every image with probability 1/2."
    if classes is None:
        raise InputError("mirroring needs the class map, to swap left and right; pass `classes`")
    where = uniform(len(batch), 0, 1, generator, batch.image.device).flatten() < .5
    return mirror(batch, classes, axis, where)


# %%
some = mirror_half(batch, classes, "horizontal", torch.Generator().manual_seed(0))
print("mirrored:", [not torch.equal(new, old) for new, old in zip(some.image, batch.image)])
test_fail(lambda: mirror_half(batch, None, "horizontal", torch.Generator()), contains="pass `classes`")
