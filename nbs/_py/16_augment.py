# %% [markdown]
# # Augmentation
#
# > Weak and strong views, mirrors that know left from right, and CutMix that carries what is known.
#
# - skip_showdoc: true

# %%
#| default_exp augment

# %% [markdown]
# A few hundred labelled slices are not many. Turning them a little, stretching them, changing their contrast makes new ones, *if* what we know about
# the pixels moves with them. There are four things to move together, and forgetting one is a silent bug:
#
# | | how it moves |
# |---|---|
# | `image` | bilinear: grey values may be blended |
# | `mask` | nearest: half a liver and half a spleen is not some class in between |
# | `known` | nearest where it is a map `[B,C,H,W]`; stays as it is where it speaks of whole images `[B,C]` |
# | `weight` | nearest, like the mask |
#
# Everything here works on a whole batch on the training device, and every random number comes from a `torch.Generator` that is passed in. So the same seed gives
# the same batch, which is what makes an interrupted run resumable to the bit.

# %%
#| export
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ctseg.anatomy import ClassMap
from ctseg.data import Batch
from ctseg.files import InputError, did_you_mean

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq, test_close, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats
from ctseg.data import SliceData
from ctseg.phantom import phantom_slices
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG
plt.rcParams["figure.dpi"] = 100


# %%
#| hide
def overlay(ax, image, mask, classes, title="", alpha=.45):
    "An image with its coloured mask."
    colour = torch.from_numpy(classes.colours)[mask.long()]/255
    a = alpha*(mask > 0)[..., None]
    ax.imshow(image[0][..., None]*(1 - a) + colour*a); ax.set_title(title, fontsize=9); ax.axis("off")


# %% [markdown]
# Our examples: two slices with a left and a right organ and something in the middle. The first slice was examined for all three classes,
# the second only for the one in the middle.

# %%
classes = ClassMap.from_names(["lung_left", "lung_right", "heart"])

def example(size=96):
    "Two simple slices, made on the spot."
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)]*2, indexing="ij")
    blob = lambda cy, cx, ry, rx: ((y - cy)/ry)**2 + ((x - cx)/rx)**2 < 1
    g = torch.Generator().manual_seed(0)
    image, mask = torch.zeros(2, 1, size, size), torch.zeros(2, size, size, dtype=torch.long)
    for b, d in enumerate((0., .06)):
        image[b, 0] = .55*blob(0, 0, .8 + d, .9 - d) + .3*(blob(.05, 0, .82, .92) & (y > .6))
        for c, (where, grey) in enumerate([(blob(0, .45, .45, .25 + d), .1), (blob(0, -.45, .4, .28), .12), (blob(d, .05, .25, .15 + d), .75)], 1):
            image[b, 0][where] = grey; mask[b][where] = c
    mask[1][mask[1] < 3] = 0     # not outlined, because not examined
    image = (image + .03*torch.randn(image.shape, generator=g)).clamp(0, 1)
    return Batch(image, mask, torch.tensor([[1, 1, 1], [0, 0, 1]]).bool(), None, torch.arange(2))

batch = example()
fig, ax = plt.subplots(1, 2, figsize=(5, 2.6))
for b, a in enumerate(ax): overlay(a, batch.image[b], batch.mask[b], classes, ["all three known", "only the heart known"][b])


# %% [markdown]
# ## One number for each image
#
# Random numbers are drawn where the generator lives. The training loop's lives on the training device, so nothing has to be sent there; a generator of the CPU gives the same numbers on every machine, and serves as well: only noise needs a number per pixel, and
# that is then drawn on the device, by a generator seeded from the first.

# %%
#| export
def _uniform(n: int, lo: float, hi: float, generator, device) -> torch.Tensor:
    "`n` numbers between `lo` and `hi`, shaped [n,1,1,1] to act on images."
    return (torch.rand(n, generator=generator, device=generator.device)*(hi - lo) + lo).to(device)[:, None, None, None]

def _noise_like(image, generator) -> torch.Tensor:
    "Standard normal noise on the image's device."
    if generator.device != image.device:
        seed = torch.randint(2**62, (1,), generator=generator, device=generator.device).item()
        generator = torch.Generator(image.device).manual_seed(seed)
    return torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)


# %% [markdown]
# ## One affine map for each image
#
# For each pixel of the *new* image the map says where in the old one to look. `grid_sample` wants this in coordinates from -1 to 1, in which a turn
# of a non-square image would shear it; so the rotation is made in pixels and then rescaled.

# %%
#| export
def affine_grid(
    n: int, size, # number of images; (H, W)
    generator: torch.Generator,
    degrees: float = 15., # turned by at most this
    scale: float = .12, # enlarged or shrunk by at most this factor, .12: 1.12 or 1/1.12
    shift: float = .06, # moved by at most this part of each side
    device="cpu",
) -> torch.Tensor: # [n,H,W,2], where to look, x before y, in -1..1
    "A random turn, scale and shift for each image, as a sampling grid."
    h, w = size
    draw = lambda r: _uniform(n, -r, r, generator, device).flatten()
    angle, zoom = draw(math.radians(degrees)), draw(math.log1p(scale)).exp()
    dx, dy = 2*draw(shift), 2*draw(shift)
    c, s = angle.cos()*zoom, angle.sin()*zoom
    theta = torch.stack([torch.stack([c, -s*h/w, dx], 1), torch.stack([s*w/h, c, dy], 1)], 1)
    return F.affine_grid(theta, (n, 1, h, w), align_corners=False)


# %% [markdown]
# Grey values are blended by `grid_sample`. Everything that is not a grey value is *picked*: the grid is rounded to the nearest pixel and
# its index used to gather. So a mask stays an integer all the way, and a label that was not there cannot appear.

# %%
#| export
class NearestPixel:
    "Picks, for each point of a sampling grid, the nearest pixel; points outside the frame give 0 or False."
    def __init__(self, grid: torch.Tensor):
        h, w = grid.shape[1:3]
        x, y = (((grid + 1)*torch.tensor([w, h], device=grid.device) - 1)/2).round().long().unbind(-1)
        self.inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        self.index = (y.clamp(0, h - 1)*w + x.clamp(0, w - 1)).flatten(1)

    def __call__(self, t: torch.Tensor) -> torch.Tensor: # [B,H,W] or [B,C,H,W] of any type, [B,C] is left alone
        if t.ndim == 2: return t.clone()
        index, inside = (self.index, self.inside) if t.ndim == 3 else (self.index[:, None].expand(-1, t.shape[1], -1), self.inside[:, None])
        return t.flatten(-2).gather(-1, index).view(t.shape)*inside


# %%
nothing = affine_grid(2, (61, 47), torch.Generator(), degrees=0, scale=0, shift=0)
m = torch.randint(0, 55, (2, 61, 47))
test_eq(NearestPixel(nothing)(m), m)  # the map that does nothing does nothing, to the bit


# %% [markdown]
# **Outside the frame.** A turned image has corners that nobody photographed. They are filled with black, which in CT is air, and the mask says 0 there.
# Is that known? It depends on what `known` speaks of:
#
# - `[B,C]` says "class c was examined on this image, and it is where the mask says". That stays true of the turned image: its black corners
#   hold no organ. Real slices have black borders too, and a network must learn to leave them empty, so they take part in the loss.
# - A map `[B,C,H,W]` or a `weight` speaks of single pixels, and nobody said anything about these: they become False and 0. A class whose map is known all over the slice is the first case in another
#   form, and stays known.
#
# (A mask that is 0 outside needs no weight of its own, so a batch without `weight` stays without.)
#
# **Lost on the way.** A structure of one or two pixels can fall between the points that are picked. It is not absent for that: if nothing of a structure is left, it is no longer known.

# %%
#| export
def shown(mask: torch.Tensor, C: int) -> torch.Tensor: # bool [B,C]
    "Which classes have a pixel in `mask` [B,H,W]."
    return torch.zeros(len(mask), C + 1, dtype=torch.bool, device=mask.device).scatter_(1, mask.flatten(1), True)[:, 1:]

def warp(batch: Batch, grid: torch.Tensor) -> Batch:
    "Sample image (bilinear), mask, known map and weight (nearest) with the same grid."
    pick = NearestPixel(grid)
    mask, known = pick(batch.mask), pick(batch.known)
    if known.ndim == 2: known &= shown(mask, known.shape[1]) | ~shown(batch.mask, known.shape[1])
    else: known |= ~pick.inside[:, None] & batch.known.flatten(2).all(2)[:, :, None, None]  # a class known all over the image is so in the corners that a turn brings in
    image = F.grid_sample(batch.image, grid.to(batch.image.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)
    return replace(batch, image=image, mask=mask, known=known, weight=None if batch.weight is None else pick(batch.weight))


# %%
g = torch.Generator().manual_seed(2)
fig, ax = plt.subplots(1, 6, figsize=(12, 2.3))
for a in ax:
    new = warp(batch, affine_grid(2, (96, 96), g, degrees=25, scale=.2))
    overlay(a, new.image[0], new.mask[0], classes)
    assert set(new.mask.unique().tolist()) <= {0, 1, 2, 3}
fig.tight_layout()

# %% [markdown]
# Do image and mask really move together? If the "image" is the mask itself, warping both must agree everywhere except within a pixel of an edge, where
# bilinear values lie in between.

# %%
own = replace(batch, image=(batch.mask == 1).float()[:, None])
new = warp(own, affine_grid(2, (96, 96), torch.Generator().manual_seed(0)))
sure = (new.image[:, 0] < .01) | (new.image[:, 0] > .99)
test_eq((new.image[:, 0] > .5)[sure], (new.mask == 1)[sure])
assert sure.float().mean() > .97 and new.image.max() > .99


# %% [markdown]
# ## Contrast
#
# Each slice of the challenge was windowed by itself, so brightness and contrast differ from slice to slice and a network must not rely on them. Contrast
# turns around the image's mean; gamma bends the scale; noise is noise. The result stays in 0..1, as the images do.

# %%
#| export
def photometric(
    image: torch.Tensor, # f32 [B,1,H,W] in 0..1
    generator: torch.Generator,
    brightness: float = 0., # added: at most this
    contrast: float = 0., # factor around the mean: at most 1 + this, at least its inverse
    gamma: float = 0., # exponent, likewise
    noise: float = 0., # standard deviation, at most
) -> torch.Tensor: # the same shape, in 0..1, a new tensor
    "Random brightness, contrast, gamma and noise, drawn for each image."
    n, dev = len(image), image.device
    draw = lambda r: _uniform(n, -r, r, generator, dev)
    if contrast or brightness:
        mean = image.mean((1, 2, 3), keepdim=True)
        image = (image - mean)*draw(math.log1p(contrast)).exp() + mean + draw(brightness)
    image = image.clamp(0, 1)
    if gamma: image = image**draw(math.log1p(gamma)).exp()
    if noise: image = (image + _uniform(n, 0, noise, generator, dev)*_noise_like(image, generator)).clamp(0, 1)
    return image


# %% [markdown]
# ## Mirrors that know left from right
#
# Mirrored, a body has its liver on the wrong side; but a left kidney becomes a perfectly good *right* kidney, if its label is changed. Not only in the
# mask: if only the left kidney was examined, then after the mirror only the right one was. A mirror that forgets the `known`
# columns teaches that a kidney which nobody looked for is absent.
#
# Which way is left-right? Radiological images show it horizontally. The challenge's frames are turned by a quarter, so there the
# anatomical mirror is a **vertical** flip. One team measured that mirroring with relabelling made its score worse, so it is off unless asked for.

# %%
#| export
_AXES = {"vertical": -2, "horizontal": -1}

def mirror(
    batch: Batch, classes: ClassMap, axis: str = "vertical", # "vertical" flips top and bottom, "horizontal" left and right
    where: torch.Tensor|None = None, # bool [B]: which images; default all
) -> Batch:
    "Mirror the body: flip image, mask, maps, and swap lateral partners in mask, `known` and per-class `weight`."
    if axis not in _AXES: raise did_you_mean("mirror axis", axis, _AXES)
    swap = torch.from_numpy(classes.swap).to(batch.mask.device)
    where = torch.ones(len(batch.mask), dtype=torch.bool, device=batch.mask.device) if where is None else where
    def flip(t, maps=True):
        if t is None: return None
        new = t.flip(_AXES[axis]) if maps else t
        if t.ndim == 3: new = swap[new]                                               # the mask
        elif t.shape[1] == len(classes) and t is not batch.image: new = new[:, swap[1:] - 1]   # a column for each class
        return torch.where(where.view(-1, *[1]*(t.ndim - 1)), new, t)
    return replace(batch, image=flip(batch.image), mask=flip(batch.mask), known=flip(batch.known, batch.known.ndim == 4), weight=flip(batch.weight))


# %%
one = replace(batch, mask=torch.where(batch.mask == 2, 0, batch.mask), known=torch.tensor([[1, 0, 1], [1, 0, 1]]).bool())
m = mirror(one, classes, "horizontal")
fig, ax = plt.subplots(1, 2, figsize=(5, 2.6))
for a, t, w in zip(ax, (one, m), ("known: left lung, heart", "mirrored, known: right lung, heart")): overlay(a, t.image[0], t.mask[0], classes, w)
test_eq(m.known, torch.tensor([[0, 1, 1], [0, 1, 1]]).bool())
twice = mirror(m, classes, "horizontal")
for k in ("image", "mask", "known"): test_eq(getattr(twice, k), getattr(one, k))   # twice is not at all


# %% [markdown]
# ## The weak view
#
# What every labelled batch goes through, as one small frozen object that a recipe can name and a run folder can store.

# %%
#| export
@dataclass(frozen=True)
class Augment:
    "Random turn, scale, shift, contrast and, if asked for, mirror. `aug(batch, generator, classes) -> Batch` of new tensors."
    degrees: float = 15.
    scale: float = .12
    shift: float = .06
    brightness: float = .08
    contrast: float = .15
    gamma: float = .15
    noise: float = .02
    mirror: bool = False
    mirror_axis: str = "vertical"  # of the image: the challenge's left-right; radiological images want "horizontal"

    def with_mirror(self, on: bool|str = True): # True, False, or the axis
        "The same with the mirror on or off."
        return replace(self, mirror=bool(on), mirror_axis=on if isinstance(on, str) else self.mirror_axis)

    def __call__(self, batch: Batch, generator: torch.Generator, classes: ClassMap|None = None) -> Batch:
        n, dev = len(batch.image), batch.image.device
        new = replace(batch, mask=batch.mask.clone(), known=batch.known.clone())
        if self.mirror:
            if classes is None: raise InputError("mirroring needs the class map, to swap left and right; pass `classes`")
            new = mirror(new, classes, self.mirror_axis, _uniform(n, 0, 1, generator, dev).flatten() < .5)
        if self.degrees or self.scale or self.shift:
            new = warp(new, affine_grid(n, batch.image.shape[-2:], generator, self.degrees, self.scale, self.shift, dev))
        return replace(new, image=photometric(new.image, generator, self.brightness, self.contrast, self.gamma, self.noise))

NO_AUGMENT = Augment(*[0.]*7)
MILD = Augment()
STRONG = Augment(degrees=25., scale=.25, shift=.1, brightness=.15, contrast=.3, gamma=.3, noise=.04)

# %% [markdown]
# On two [phantom](12_phantom.ipynb) slices, whose left and right lie at top and bottom, as in the challenge:

# %%
slices = phantom_slices(8, size=256, seed=2500)
richest = np.argsort(slices.present.sum(1))[-2:].copy()
real = SliceData(slices, "cpu").batch(torch.from_numpy(richest))
g = torch.Generator().manual_seed(1)
fig, ax = plt.subplots(2, 6, figsize=(12, 4.4))
for b, (row, aug, name) in enumerate(zip(ax, (MILD, STRONG.with_mirror()), ("MILD", "STRONG, mirrored now and then"))):
    overlay(row[0], real.image[b], real.mask[b], slices.classes, "as it is")
    for a in row[1:]:
        new = aug(real, g, slices.classes)
        overlay(a, new.image[b], new.mask[b], slices.classes)
        assert set(new.mask.unique().tolist()) <= set(real.mask.unique().tolist()) | set(slices.classes.swap[real.mask.unique()].tolist())
    row[1].set_title(name, fontsize=9, loc="left")
fig.tight_layout()

# %%
seeded = lambda s: MILD.with_mirror()(batch, torch.Generator().manual_seed(s), classes)
test_eq(seeded(3).image, seeded(3).image); assert not torch.equal(seeded(3).image, seeded(4).image)
same = NO_AUGMENT(batch, torch.Generator(), classes)
for k in ("image", "mask", "known"):
    test_eq(getattr(same, k), getattr(batch, k))
    assert getattr(same, k).data_ptr() != getattr(batch, k).data_ptr()    # a copy: what happens to it stays there


# %% [markdown]
# ## The strong view
#
# FixMatch and its descendants ask the network to say the same about a *weak* and a *strong* view of an unlabelled image. The strong view here leaves
# the geometry alone, so that the two answers can be compared pixel by pixel, and ruins the appearance: contrast, noise, blur, and rectangles cut out, behind which
# the network must guess from the surroundings.
#
# The blur has another width for each image. Its kernels run as one grouped convolution, once along each axis.

# %%
#| export
def gaussian_blur(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor: # sigma [B] in pixels, at most 2
    "Blur each image with its own Gaussian; the border repeats."
    n, c, h, w = image.shape
    t = torch.arange(-4, 5, device=image.device, dtype=image.dtype)
    k = torch.exp(-t**2/(2*sigma.view(-1, 1).clamp(min=1e-3)**2))
    k = (k/k.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None]
    x = F.pad(image.reshape(1, n*c, h, w), (4, 4, 4, 4), mode="replicate")
    return F.conv2d(F.conv2d(x, k[:, :, None], groups=n*c), k[..., None], groups=n*c).view_as(image)

def random_boxes(
    n: int, size, generator: torch.Generator, # number of boxes, (H, W)
    area: tuple[float, float] = (.02, .4), # part of the image
    ratio: tuple[float, float] = (.3, 1/.3), # height to width
    device="cpu",
) -> torch.Tensor: # bool [n,H,W]
    "A random rectangle for each image, wholly inside it."
    h, w = size
    draw = lambda lo, hi: _uniform(n, lo, hi, generator, device).view(-1, 1, 1)
    pixels = draw(*area)*h*w
    r = draw(math.log(ratio[0]), math.log(ratio[1])).exp()
    bh = (pixels*torch.minimum(torch.maximum(r, pixels/w**2), h**2/pixels)).sqrt().clamp(1, h)  # no longer than a side: the area stays
    bw = (pixels/bh).clamp(1, w)
    y0, x0 = draw(0, 1)*(h - bh), draw(0, 1)*(w - bw)
    y, x = torch.arange(h, device=device)[None, :, None] + .5, torch.arange(w, device=device)[None, None] + .5
    return (y > y0) & (y < y0 + bh) & (x > x0) & (x < x0 + bw)


# %%
boxes = random_boxes(2000, (96, 64), torch.Generator().manual_seed(0))
part = boxes.float().mean((1, 2))
print(f"areas {part.min():.3f} to {part.max():.3f}, mean {part.mean():.3f}")
assert .01 < part.min() and part.max() < .42 and abs(part.mean() - .21) < .01


# %%
#| export
def strong(
    image: torch.Tensor, # f32 [B,1,H,W] in 0..1
    generator: torch.Generator,
    brightness: float = .2, contrast: float = .5, gamma: float = .5, noise: float = .05,
    blur: float = .5, # probability of blurring, sigma .1 to 2 pixels
    holes: int = 4, # rectangles cut out, each with probability 1/2
) -> torch.Tensor: # the same shape, in 0..1
    "Ruin the appearance and leave the geometry: contrast, noise, blur, holes filled with the image's mean."
    n, dev = len(image), image.device
    mean = image.mean((1, 2, 3), keepdim=True)
    image = photometric(image, generator, brightness, contrast, gamma)
    blurred = gaussian_blur(image, _uniform(n, .1, 2, generator, dev).flatten())
    image = torch.where(_uniform(n, 0, 1, generator, dev) < blur, blurred, image)
    for _ in range(holes):
        hole = random_boxes(n, image.shape[-2:], generator, area=(.005, .04), device=dev)[:, None]
        image = torch.where(hole & (_uniform(n, 0, 1, generator, dev) < .5), mean, image)
    return photometric(image, generator, noise=noise)


# %%
g = torch.Generator().manual_seed(0)
fig, ax = plt.subplots(1, 6, figsize=(12, 2.3))
for a in ax:
    s = strong(batch.image, g)
    a.imshow(s[0, 0], cmap="gray", vmin=0, vmax=1); a.axis("off")
    assert s.shape == batch.image.shape and 0 <= s.min() and s.max() <= 1
fig.tight_layout()
flat = torch.full((2, 1, 20, 30), .5)
test_close(gaussian_blur(flat, torch.tensor([.5, 2.])), flat)


# %% [markdown]
# ## CutMix
#
# CutMix pastes a rectangle of one image into another. With partial labels the pasted rectangle brings its own ignorance: inside it we know what was
# known about the *second* image, outside what was known about the first. So `known` can no longer be one value for a class of an image: it becomes a map.

# %%
#| export
def cutmix(
    a: Batch, b: Batch, # two batches of the same size
    generator: torch.Generator,
    p: float = 1., # probability of pasting, for each image
    box: torch.Tensor|None = None, # bool [B,H,W]: where to paste; default random, 2 to 40 % of the image
) -> Batch: # `known` is bool [B,C,H,W]; `index` is that of `a`
    "Paste a rectangle of each image of `b` into `a`: image, mask, known and weight together (French et al. 2020, arXiv 1906.01916)."
    n, size, dev = len(a.image), a.image.shape[-2:], a.image.device
    if a.image.shape != b.image.shape: raise InputError(f"cutmix: images are {tuple(a.image.shape)} and {tuple(b.image.shape)}; expected equal shapes")
    if box is None:
        box = random_boxes(n, size, generator, device=dev)
        box &= _uniform(n, 0, 1, generator, dev)[:, 0] < p
    mix = lambda s, t: torch.where(box[:, None], t, s)
    as_map = lambda k: k[:, :, None, None].expand(-1, -1, *size) if k.ndim == 2 else k
    weight = None
    if a.weight is not None or b.weight is not None:
        one = a.image.new_ones(n, 1, *size)
        weight = mix(one if a.weight is None else a.weight, one if b.weight is None else b.weight)
    return replace(a, image=mix(a.image, b.image), mask=torch.where(box, b.mask, a.mask), known=mix(as_map(a.known), as_map(b.known)), weight=weight)


# %%
flipped = Batch(*(getattr(batch, k).flip(0) for k in ("image", "mask", "known")), None, batch.index.flip(0))
mixed = cutmix(batch, flipped, torch.Generator().manual_seed(9))
fig, ax = plt.subplots(2, 4, figsize=(9.5, 4.9))
for b, row in enumerate(ax):
    overlay(row[0], mixed.image[b], mixed.mask[b], classes, "mixed image and mask")
    for c in range(3): row[c+1].imshow(mixed.known[b, c], cmap="Greens", vmin=0, vmax=1.4); row[c+1].set_title(f"{classes.name(c+1)} known", fontsize=9); row[c+1].axis("off")
fig.tight_layout()
test_eq(mixed.known.shape, (2, 3, 96, 96)); test_eq(mixed.known.dtype, torch.bool)

# %% [markdown]
# The first slice knew everything; where the rectangle of the second came in, its lungs are unknown (white), although they are plainly there
# in the image. A loss that took the 0 in the mask for background there would be learning that lungs are nothing.
#
# The mixture must be the one or the other at every pixel, in all four parts:

# %%
weighted = replace(batch, weight=torch.full((2, 1, 96, 96), .5))
box = random_boxes(2, (96, 96), torch.Generator().manual_seed(0))
mixed = cutmix(weighted, flipped, torch.Generator(), box=box)
for b in range(2):
    for part, src in (box[b], flipped), (~box[b], weighted):
        test_eq(mixed.image[b, 0][part], src.image[b, 0][part]); test_eq(mixed.mask[b][part], src.mask[b][part])
        assert (mixed.known[b][:, part] == src.known[b][:, None]).all()
test_eq(mixed.weight[:, 0][box].unique().tolist(), [1.]); test_eq(mixed.weight[:, 0][~box].unique().tolist(), [.5])
never = cutmix(batch, flipped, torch.Generator(), p=0.)
test_eq(never.image, batch.image)


# %% [markdown]
# Strong views are made of both: ruin the appearance, then mix each slice with another one of the batch.

# %%
#| export
def strong_mix(batch: Batch, generator: torch.Generator, p: float = .5) -> Batch:
    "A strong view: the appearance ruined, and with probability `p` a rectangle of another, as ruined, slice of the batch."
    ruined = replace(batch, image=strong(batch.image, generator))
    return cutmix(ruined, ruined[torch.randperm(len(batch), generator=generator, device=generator.device)], generator, p)


# %%
view = strong_mix(batch, torch.Generator().manual_seed(1), 0.)
test_eq(view.mask, batch.mask); assert (view.known == batch.known[:, :, None, None]).all() and (view.image != batch.image).any()

# %% [markdown]
# Mixed batches can be warped and mirrored like any other, since the maps travel along. A known map of a mirrored mixture has its left and
# right columns swapped *and* is flipped:

# %%
m = mirror(mixed, classes, "horizontal")
test_eq(m.known[:, 0], mixed.known[:, 1].flip(-1)); test_eq(m.known[:, 2], mixed.known[:, 2].flip(-1))
w = warp(mixed, 1.2*affine_grid(2, (96, 96), torch.Generator().manual_seed(0)))  # looks beyond the frame on all sides
test_eq((w.known.dtype, w.weight.shape), (torch.bool, mixed.weight.shape))
test_eq(w.known[0, :, 0, 0], mixed.known[0].flatten(1).all(1))     # a corner that nobody photographed: known are the structures that are known all over the slice
assert not w.known[0, :, 0, 0].all() and w.weight[0, 0, 0, 0] == 0

# %%
#| hide
import nbdev; nbdev.nbdev_export()
