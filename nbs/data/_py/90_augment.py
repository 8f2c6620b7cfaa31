# %% [markdown]
# # Augmentation
#
# > The weak view of a batch: turned, stretched, brighter or darker, and still true.
#
# - skip_showdoc: true

# %%
#| default_exp data.augment

# %% [markdown]
# A few hundred labelled slices are not many. Turning them a little, stretching them and changing their contrast makes new ones. The
# [geometry](85_geometry.ipynb) moves masks and `known` along; this page adds contrast and puts both into one object.

# %%
#| export
import math
from dataclasses import dataclass, replace

import torch

from ctseg.core.anatomy import ClassMap
from ctseg.data.batches import Batch
from ctseg.data.geometry import affine_grid, mirror_half, uniform, warp

# %%
#| hide
import torch
from fastcore.test import test_eq, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.core.toys import TOY_CLASSES as classes
from ctseg.core.toys import known_part, toy_slices
from ctseg.data.batches import Batch

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 65})  # grey noise: a quarter of a PNG


# %%
#| hide
def show(ax, batch, row=0, title=""):
    "One slice of a batch with its mask."
    show_image(ax, overlay(255*batch.image[row, 0].numpy(), batch.mask[row].numpy(), classes), title)


# %% [markdown]
# The example is two slices of a chest. The first was examined for both lungs and the heart, the second only for the heart.

# %%
#| fig-alt: "Two chest slices with outlines: all three structures examined, and only the heart"
image, truth = toy_slices(2, 96)
known = torch.tensor([[True, True, True], [False, False, True]])
mask = torch.from_numpy(known_part(truth.numpy(), known.numpy()))
batch = Batch(image, mask, known, index=torch.arange(2))
fig, (panels,) = image_grid(1, 2)
for row, title in enumerate(("all three examined", "only the heart examined")):
    show(panels[row], batch, row, title)
class_legend(fig, classes)


# %% [markdown]
# ## Contrast
#
# Each slice of the challenge was windowed by itself, so brightness and contrast differ from slice to slice and a network must not rely on
# them. Contrast turns around the image's mean, gamma bends the scale, and noise is noise. The result stays in 0…1, as the images do.
#
# Only noise needs a number per pixel. It is drawn on the device, by a generator seeded from the first where that is of the CPU.

# %%
#| export
def _noise_like(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    "Standard normal noise of the image's shape, on its device."
    if generator.device != image.device:
        seed = torch.randint(2**62, (1,), generator=generator, device=generator.device).item()
        generator = torch.Generator(image.device).manual_seed(seed)
    return torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)


# %%
print(
    f"standard deviation {_noise_like(torch.zeros(1, 1, 64, 64), torch.Generator().manual_seed(0)).std():.2f}"
)


# %%
#| export
def photometric(
    image: torch.Tensor, # f32 [B,1,H,W] in 0…1
    generator: torch.Generator,
    brightness: float = 0., # added: at most this
    contrast: float = 0., # factor around the mean: at most 1 + this, at least its inverse
    gamma: float = 0., # exponent, likewise
    noise: float = 0., # standard deviation, at most
) -> torch.Tensor: # the same shape, in 0…1, a new tensor
    "Random brightness, contrast, gamma and noise for each image [B,1,H,W] in 0…1."
    n, device = len(image), image.device
    def draw(limit: float) -> torch.Tensor:
        return uniform(n, -limit, limit, generator, device)
    if contrast or brightness:
        mean = image.mean((1, 2, 3), keepdim=True)
        image = (image - mean)*draw(math.log1p(contrast)).exp() + mean + draw(brightness)
    image = image.clamp(0, 1)
    if gamma:
        image = image**draw(math.log1p(gamma)).exp()
    if noise:
        strength = uniform(n, 0, noise, generator, device)
        image = (image + strength*_noise_like(image, generator)).clamp(0, 1)
    return image


# %%
#| fig-alt: "A slice as it is and changed in brightness, contrast, gamma and noise"
generator = torch.Generator().manual_seed(0)
fig, (panels,) = image_grid(1, 5, size=1.9)
show_image(panels[0], 255*batch.image[0, 0].numpy(), "as it is")
for ax, name, limit in zip(panels[1:], ("brightness", "contrast", "gamma", "noise"), (.3, 1, 2, .2)):
    new = photometric(batch.image, generator, **{name: limit})
    show_image(ax, 255*new[0, 0].numpy(), name)
    assert 0 <= new.min() and new.max() <= 1


# %% [markdown]
# ## The weak view
#
# What every labelled batch goes through is one small frozen object. Recipes choose it [by name](95_augmentations.ipynb).

# %%
#| export
@dataclass(frozen=True)
class Augment:
    "Random turn, scale, shift, contrast, mirror: `aug(batch, generator, classes) -> Batch`, new tensors."
    degrees: float = 15. # turned by at most this
    scale: float = .12 # enlarged or shrunk by at most this factor
    shift: float = .06 # moved by at most this part of each side
    brightness: float = .08 # added, at most
    contrast: float = .15 # changed by at most this factor
    gamma: float = .15 # exponent, likewise
    noise: float = .02 # standard deviation, at most
    mirror: bool = False # every other image
    mirror_axis: str = "vertical" # the challenge's left-right; radiological images want "horizontal"

    def with_mirror(self, on: bool|str = True) -> "Augment":
        "The same with the mirror on or off; `on` may be the axis."
        axis = on if isinstance(on, str) else self.mirror_axis
        return replace(self, mirror=bool(on), mirror_axis=axis)

    def __call__(self, batch: Batch, generator: torch.Generator, classes: ClassMap|None = None) -> Batch:
        new = replace(batch, mask=batch.mask.clone(), known=batch.known.clone())
        if self.mirror:
            new = mirror_half(new, classes, self.mirror_axis, generator)
        if self.degrees or self.scale or self.shift:
            size, device = batch.image.shape[-2:], batch.image.device
            grid = affine_grid(len(batch), size, generator, self.degrees, self.scale, self.shift, device)
            new = warp(new, grid)
        image = photometric(new.image, generator, self.brightness, self.contrast, self.gamma, self.noise)
        return replace(new, image=image)


# %%
weak = Augment()
def seeded(seed): return weak.with_mirror()(batch, torch.Generator().manual_seed(seed), classes)

test_eq(seeded(3).image, seeded(3).image)
assert not torch.equal(seeded(3).image, seeded(4).image)
test_fail(lambda: weak.with_mirror()(batch, torch.Generator()), contains="pass `classes`")

# %% [markdown]
# Three strengths have names.

# %%
#| export
NO_AUGMENT = Augment(degrees=0., scale=0., shift=0., brightness=0., contrast=0., gamma=0., noise=0.)
MILD = Augment()
STRONG = Augment(degrees=25., scale=.25, shift=.1, brightness=.15, contrast=.3, gamma=.3, noise=.04)

# %%
same = NO_AUGMENT(batch, torch.Generator(), classes)
for part in ("image", "mask", "known"):
    test_eq(getattr(same, part), getattr(batch, part))
    # a copy: what happens to it stays there
    assert getattr(same, part).data_ptr() != getattr(batch, part).data_ptr()

# %%
#| fig-alt: "Five mild and five strong augmentations of a chest slice, with the outlines moved along"
generator = torch.Generator().manual_seed(1)
fig, axes = image_grid(2, 5, size=1.8)
views = {"MILD": MILD, "STRONG, half of them mirrored": STRONG.with_mirror("horizontal")}
for row, (name, augment) in zip(axes, views.items()):
    for ax in row:
        show(ax, augment(batch, generator, classes))
    row[0].set_title(name, fontsize=9, loc="left")
class_legend(fig, classes)
