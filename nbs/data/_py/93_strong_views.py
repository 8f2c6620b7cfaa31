# %% [markdown]
# # Strong views
#
# > Views that ruin the appearance, and CutMix that carries along what is known.
#
# - skip_showdoc: true

# %%
#| default_exp data.strong_views

# %% [markdown]
# FixMatch and its descendants ask the network to say the same about a *weak* and a *strong* view of an unlabelled image. The strong view
# here leaves the geometry alone, so that the two answers can be compared pixel by pixel. It ruins the appearance: contrast, noise, blur, and
# rectangles cut out, behind which the network must guess from the surroundings.

# %%
#| export
import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from ctseg.core.errors import InputError
from ctseg.data.augment import photometric
from ctseg.data.batches import Batch, known_map
from ctseg.data.geometry import uniform

# %%
#| hide
from dataclasses import replace

import torch
from fastcore.test import test_close, test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.style import image_grid, overlay, show_image, show_states, state_legend
from ctseg.core.toys import TOY_CLASSES, known_part, toy_slices
from ctseg.data.batches import Batch
from ctseg.data.geometry import affine_grid, mirror, warp

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 65})  # grey noise: a quarter of a PNG


# %% [markdown]
# ## Blur
#
# The blur has another width for each image. Its kernels run as one grouped convolution, once along each axis.

# %%
#| export
def gaussian_blur(
    image: torch.Tensor, # f32 [B,K,H,W]
    sigma: torch.Tensor, # f32 [B] in pixels, at most 2
) -> torch.Tensor: # the same shape
    "Blur each image [B,K,H,W] with its own Gaussian, sigma [B] in pixels (at most 2); the border repeats."
    n, c, h, w = image.shape
    offset = torch.arange(-4, 5, device=image.device, dtype=image.dtype)
    width = sigma.view(-1, 1).clamp(min=1e-3)
    kernel = torch.exp(-offset**2/(2*width**2))
    kernel = kernel/kernel.sum(1, keepdim=True)
    kernel = kernel.repeat_interleave(c, 0)[:, None]
    x = F.pad(image.reshape(1, n*c, h, w), (4, 4, 4, 4), mode="replicate")
    x = F.conv2d(x, kernel[:, :, None], groups=n*c)
    return F.conv2d(x, kernel[..., None], groups=n*c).view_as(image)


# %%
flat = torch.full((2, 1, 20, 30), .5)
test_close(gaussian_blur(flat, torch.tensor([.5, 2.])), flat)
edge = (torch.arange(12) > 5).float().expand(2, 1, 12, 12)
print([[round(x, 2) for x in row[0, 6].tolist()] for row in gaussian_blur(edge, torch.tensor([.5, 2.]))])

# %% [markdown]
# ## Rectangles

# %%
#| export
FLATTEST = .3 # height to width, and width to height

def random_boxes(
    n: int, # number of boxes
    size, # (H, W)
    generator: torch.Generator,
    area: tuple[float, float] = (.02, .4), # part of the image
    device="cpu",
) -> torch.Tensor: # bool [n,H,W]
    "A random rectangle for each image, wholly inside it: bool [n,H,W]."
    def draw(low: float, high: float) -> torch.Tensor:
        return uniform(n, low, high, generator, device).view(-1, 1, 1)
    h, w = size
    pixels = draw(*area)*h*w
    flat = math.log(FLATTEST)
    tall = math.log(1/FLATTEST)
    shape = draw(flat, tall).exp()
    lowest, highest = pixels/w**2, h**2/pixels  # no longer than a side: the area stays
    shape = torch.minimum(torch.maximum(shape, lowest), highest)
    height = (pixels*shape).sqrt().clamp(1, h)
    width = (pixels/height).clamp(1, w)
    top = draw(0, 1)*(h - height)
    left = draw(0, 1)*(w - width)
    y = torch.arange(h, device=device)[None, :, None] + .5
    x = torch.arange(w, device=device)[None, None] + .5
    in_rows = (y > top) & (y < top + height)
    in_columns = (x > left) & (x < left + width)
    return in_rows & in_columns


# %%
boxes = random_boxes(2000, (96, 64), torch.Generator().manual_seed(0))
part = boxes.float().mean((1, 2))
print(f"areas {part.min():.3f} to {part.max():.3f}, mean {part.mean():.3f}")
assert .01 < part.min() and part.max() < .42 and abs(part.mean() - .21) < .01

# %% [markdown]
# ## The strong view of an image

# %%
#| export
HOLES = 4 # rectangles cut out, each with probability 1/2

def strong(
    image: torch.Tensor, # f32 [B,1,H,W] in 0…1
    generator: torch.Generator,
    noise: float = .05, # standard deviation, at most
) -> torch.Tensor: # the same shape, in 0…1
    "Ruin the appearance of images [B,1,H,W], not the geometry: contrast, blur (sigma at most 2), holes of mean grey, noise."
    n, device = len(image), image.device
    def chance(p: float) -> torch.Tensor:
        return uniform(n, 0, 1, generator, device) < p
    mean = image.mean((1, 2, 3), keepdim=True)
    image = photometric(image, generator, brightness=.2, contrast=.5, gamma=.5)
    sigma = uniform(n, .1, 2, generator, device).flatten()
    blurred = gaussian_blur(image, sigma)
    image = torch.where(chance(.5), blurred, image)
    for _ in range(HOLES):
        hole = random_boxes(n, image.shape[-2:], generator, area=(.005, .04), device=device)
        cut = hole[:, None] & chance(.5)
        image = torch.where(cut, mean, image)
    return photometric(image, generator, noise=noise)


# %%
#| fig-alt: "A slice as it is and five strong views of it: other contrast, blur, noise"
image, truth = toy_slices(2, 96)
known = torch.tensor([[True, True, True], [False, False, True]])
mask = torch.from_numpy(known_part(truth.numpy(), known.numpy()))
batch = Batch(image, mask, known, index=torch.arange(2))

generator = torch.Generator().manual_seed(0)
fig, (panels,) = image_grid(1, 6, size=1.7)
show_image(panels[0], 255*image[0, 0].numpy(), "as it is")
for ax in panels[1:]:
    view = strong(image, generator)
    show_image(ax, 255*view[0, 0].numpy(), "strong view")
    assert view.shape == image.shape and 0 <= view.min() and view.max() <= 1


# %% [markdown]
# ## CutMix
#
# CutMix pastes a rectangle of one image into another. With partial labels the pasted rectangle brings its own ignorance: inside it we know
# what was known about the *second* image, outside what was known about the first. So `known` can no longer be one value for a class of an
# image: it becomes a map.

# %%
#| export
def cutmix(
    a: Batch,
    b: Batch, # of the same size
    generator: torch.Generator,
    p: float = 1., # probability of pasting, for each image
    box: torch.Tensor|None = None, # bool [B,H,W]: where to paste; `None`: random, 2 to 40 % of the image
) -> Batch: # `known` is bool [B,C,H,W]; `index` is that of `a`
    """Paste a rectangle of each image of `b` into `a`, all parts of it; `known` becomes [B,C,H,W].

    CutMix for segmentation: French et al. 2020, arXiv 1906.01916."""
    if a.image.shape != b.image.shape:
        sizes = f"{tuple(a.image.shape)} and {tuple(b.image.shape)}"
        raise InputError(f"cutmix: images are {sizes}; expected equal shapes")
    n, size, device = len(a), a.image.shape[-2:], a.image.device
    if box is None:
        box = random_boxes(n, size, generator, device=device)
        box &= uniform(n, 0, 1, generator, device)[:, 0] < p
    def mix(outside: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        return torch.where(box[:, None], inside, outside)
    weight = None
    if a.weight is not None or b.weight is not None:
        weight = mix(a.pixel_weights(), b.pixel_weights())
    known = mix(known_map(a.known, size), known_map(b.known, size))
    mask = torch.where(box, b.mask, a.mask)
    return replace(a, image=mix(a.image, b.image), mask=mask, known=known, weight=weight)


# %%
#| fig-alt: "Two mixed slices; beside each, where its structures are present, absent and unknown after CutMix"
flipped = batch[[1, 0]]
mixed = cutmix(batch, flipped, torch.Generator().manual_seed(9))
fig, axes = image_grid(2, 4, size=1.9)
for n, row in enumerate(axes):
    show_image(row[0], overlay(255*mixed.image[n, 0].numpy(), mixed.mask[n].numpy(), TOY_CLASSES), "mixed")
    for c, ax in enumerate(row[1:]):
        outlined = mixed.mask[n] == c + 1
        show_states(
            ax,
            torch.where(mixed.known[n, c], 1 + outlined.long(), 0).numpy(),
            TOY_CLASSES.name(c + 1),
            aspect="equal",
        )
state_legend(fig)
test_eq((mixed.known.shape, mixed.known.dtype), ((2, 3, 96, 96), torch.bool))

# %% [markdown]
# The first slice knew everything. Where the rectangle of the second came in, its lungs are unknown, although they are plainly there in the
# image. A loss that took the 0 in the mask for background there would be learning that lungs are nothing.
#
# The mixture must be the one or the other at every pixel, in all four parts:

# %%
weighted = replace(batch, weight=torch.full((2, 1, 96, 96), .5))
box = random_boxes(2, (96, 96), torch.Generator().manual_seed(0))
mixed = cutmix(weighted, flipped, torch.Generator(), box=box)
for n in range(2):
    for part, source in ((box[n], flipped), (~box[n], weighted)):
        test_eq(mixed.image[n, 0][part], source.image[n, 0][part])
        test_eq(mixed.mask[n][part], source.mask[n][part])
        assert (mixed.known[n][:, part] == source.known[n][:, None]).all()
test_eq(mixed.weight[:, 0][box].unique().tolist(), [1.])
test_eq(mixed.weight[:, 0][~box].unique().tolist(), [.5])
test_eq(cutmix(batch, flipped, torch.Generator(), p=0.).image, batch.image)


# %% [markdown]
# Strong views of a batch are made of both: ruin the appearance, then mix each slice with another one of the batch.

# %%
#| export
def strong_mix(
    batch: Batch,
    generator: torch.Generator,
    p: float = .5, # probability of pasting
) -> Batch: # `known` is bool [B,C,H,W]
    "Appearance ruined, and with probability `p` a rectangle of another, as ruined, slice of the batch."
    ruined = replace(batch, image=strong(batch.image, generator))
    order = torch.randperm(len(batch), generator=generator, device=generator.device)
    return cutmix(ruined, ruined[order], generator, p)


# %%
view = strong_mix(batch, torch.Generator().manual_seed(1), 0.)
test_eq(view.mask, batch.mask)
assert (view.known == batch.known[:, :, None, None]).all() and (view.image != batch.image).any()

# %% [markdown]
# Mixed batches can be [warped and mirrored](85_geometry.ipynb) like any other, since the maps travel along. A known map of a mirrored mixture
# has its left and right columns swapped *and* is flipped:

# %%
mirrored = mirror(mixed, TOY_CLASSES, "horizontal")
test_eq(mirrored.known[:, 0], mixed.known[:, 1].flip(-1))
test_eq(mirrored.known[:, 2], mixed.known[:, 2].flip(-1))
# looks beyond the frame on all sides
beyond = warp(mixed, 1.2*affine_grid(2, (96, 96), torch.Generator().manual_seed(0)))
corner = beyond.known[0, :, 0, 0]
# known in a corner that nobody photographed: what is known all over the slice
test_eq(corner, mixed.known[0].flatten(1).all(1))
assert not corner.all() and beyond.weight[0, 0, 0, 0] == 0
