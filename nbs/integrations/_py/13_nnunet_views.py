# %% [markdown]
# # Strong views of nnU-Net's batches
#
# > What the student of `nnUNetTrainerPartialSemi` sees: the teacher's patch with its appearance ruined and a box of another case in it.

# %%
#| default_exp integrations.nnunet_views

# %%
#| export
import math

import torch
import torch.nn.functional as F

# %%
#| hide
from fastcore.test import test_close, test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.style import image_grid, show_image
from ctseg.core.toys import toy_slices

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 65})  # grey noise: a quarter of a PNG


# %% [markdown]
# The [strong views](../data/93_strong_views.ipynb) of ctseg's own loop take slices of grey values between 0 and 1. nnU-Net's patches have two or three dimensions and one or more channels, and are normalised: 0 is the mean intensity and 1 a standard deviation. So the same ideas are written here for any number of dimensions, in these units. The two share no code: each draws its random numbers in an order of its own, and the results of trainings depend on every one of them.
#
# ## Boxes

# %%
#| export
def uniform_each(like: torch.Tensor, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    "A uniform number for each channel of each case of `like` [B,K,…]: [B,K,1,…]."
    cases, channels, *space = like.shape
    shape = [cases, channels]
    for _ in space: shape.append(1)
    numbers = torch.rand(shape, generator=generator, device=generator.device)
    scaled = low + (high - low)*numbers
    return scaled.to(like.device)

def chance(like: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    "True with a probability for each channel of each case, bool [B,K,1,…]."
    return uniform_each(like, 0, 1, generator) < share


# %%
image = torch.zeros(2, 1, 3, 4)
print(uniform_each(image, 2, 3, torch.Generator().manual_seed(0)).shape)


# %%
#| export
def middles(like: torch.Tensor, axis: int) -> torch.Tensor:
    "Where the middles of the voxels are along an axis, 0 to 1; broadcasts against `like`."
    size = like.shape[axis]
    place = torch.arange(size, device=like.device) + 0.5
    place = place/size
    for _ in like.shape[axis + 1:]: place = place[..., None]
    return place

def random_patch_boxes(
    like: torch.Tensor, # [B,K,…]
    part: tuple[float, float], # of the patch, in volume: least and most
    generator: torch.Generator,
) -> torch.Tensor: # bool, of the same shape
    "A box for each channel of each case."
    least, most = part
    volume = uniform_each(like, least, most, generator)
    side = volume**(1/(like.ndim - 2))
    inside = torch.ones_like(like, dtype=torch.bool)
    for axis in range(2, like.ndim):
        start = uniform_each(like, 0, 1, generator)*(1 - side)
        place = middles(like, axis)
        beyond_start = place >= start
        before_end = place < start + side
        inside = inside & beyond_start & before_end
    return inside


# %%
generator = torch.Generator().manual_seed(0)
for size in ((64, 64), (16, 32, 32)):
    boxes = random_patch_boxes(torch.zeros(500, 1, *size), (0.1, 0.4), generator)
    share = boxes.flatten(1).float().mean(1)
    print(len(size), "dimensions, shares of the patch:", f"{share.min():.2f} to {share.max():.2f}")
    assert 0.05 < share.min() and share.max() < 0.5

# %% [markdown]
# ## Blur
#
# One dimension after the other, each channel with a width of its own.

# %%
#| export
REACH = 4 # voxels to either side

def blurred(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor: # [B,K,…], [B,K,1,…] in voxels
    "Each channel with a Gaussian of its own; the border repeats."
    offset = torch.arange(-REACH, REACH + 1, device=image.device)
    variance = sigma.reshape(-1, 1, 1)**2
    kernel = torch.exp(-offset**2/(2*variance))
    kernel = kernel/kernel.sum(2, keepdim=True)
    kernel = kernel.to(image.dtype)
    channels = len(kernel)
    for axis in range(2, image.ndim):
        last = image.movedim(axis, -1)
        size = last.shape[-1]
        lines = last.reshape(channels, -1, size).transpose(0, 1)
        lines = F.pad(lines, (REACH, REACH), mode="replicate")
        lines = F.conv1d(lines, kernel, groups=channels)
        lines = lines.transpose(0, 1)
        soft = lines.reshape(last.shape)
        image = soft.movedim(-1, axis)
    return image


# %%
flat, sigma = torch.full((2, 1, 6, 20, 30), .5), torch.tensor([.5, 2.]).view(2, 1, 1, 1, 1)
test_close(blurred(flat, sigma), flat)
point = torch.zeros(2, 1, 9, 9, 9)
point[:, :, 4, 4, 4] = 1
spread = blurred(point, sigma)
test_close(spread.sum((2, 3, 4)), torch.ones(2, 1))
test_close(spread, spread.transpose(2, 4))
print("left in the middle:", [round(x, 3) for x in spread[:, 0, 4, 4, 4].tolist()])


# %% [markdown]
# ## Contrast

# %%
#| export
def space_of(image: torch.Tensor) -> tuple[int, ...]:
    "The axes of an image [B,K,…] that lie in space."
    return tuple(range(2, image.ndim))

def factor(like: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    "A number between 1/most and most for each channel of each case, [B,K,1,…]."
    limit = math.log(most)
    return uniform_each(like, -limit, limit, generator).exp()

def bent(image: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    "The intensities of each channel bent by an exponent, between its own least and most."
    low = image.amin(space_of(image), keepdim=True)
    high = image.amax(space_of(image), keepdim=True)
    span = (high - low).clamp(min=1e-6)
    share = (image - low)/span
    return share**gamma*span + low


# %%
line = torch.linspace(0, 4, 5).view(1, 1, 5)
print(bent(line, torch.tensor(2.)).flatten().tolist())


# %%
#| export
def recontrasted(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor: # [B,K,…]
    "Contrast and gamma by factors of up to 1.5, brightness by up to 0.4, noise of up to 0.1."
    mean = image.mean(space_of(image), keepdim=True)
    contrast = factor(image, 1.5, generator)
    image = (image - mean)*contrast + mean
    gamma = factor(image, 1.5, generator)
    image = bent(image, gamma)
    brightness = uniform_each(image, -0.4, 0.4, generator)
    image = image + brightness
    noise = torch.randn(image.shape, generator=generator, device=generator.device)
    strength = uniform_each(image, 0, 0.1, generator)
    return image + strength*noise.to(image)


# %%
image = torch.randn(4, 2, 8, 16, 16, generator=generator)
test_eq(recontrasted(image, generator).shape, image.shape)

# %% [markdown]
# ## All of it

# %%
#| export
HOLES = 4 # boxes cut out, each with probability 1/2

def ruined(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor: # [B,K,…]
    "Patches of nnU-Net with their appearance ruined, not their geometry: contrast, blur, noise, holes."
    image = image.float()
    softened = chance(image, 0.5, generator)
    sigma = uniform_each(image, 0.1, 2, generator)
    soft = blurred(image, sigma)
    image = torch.where(softened, soft, image)
    image = recontrasted(image, generator)
    mean = image.mean(space_of(image), keepdim=True)
    for _ in range(HOLES):
        hole = random_patch_boxes(image, (0.005, 0.04), generator)
        hole = hole & chance(image, 0.5, generator)
        image = torch.where(hole, mean, image)
    return image


# %%
#| fig-alt: "A slice as it is and five strong views of it: contrast, blur, noise, holes"
slices, _ = toy_slices(1, 96)
normal = (slices - slices.mean())/slices.std()
fig, (panels,) = image_grid(1, 6, size=1.7)
views = [normal, *(ruined(normal, generator) for _ in panels[1:])]
for ax, view, title in zip(panels, views, ("as it is", *["strong view"]*5)):
    show_image(ax, (128 + 60*view[0, 0]).clamp(0, 255).numpy(), title)


# %% [markdown]
# A box of another case brings its image, its labels and what is known there, at each resolution. The channels in which a cascade keeps the result of its first stage are mixed like labels, and not ruined.

# %%
#| export
def mixed(a: torch.Tensor, b: torch.Tensor, box: torch.Tensor) -> torch.Tensor: # [B,K,…], bool [B,1,…]
    "`b` in the box, `a` elsewhere; the box has the finest resolution."
    size = a.shape[2:]
    box = F.interpolate(box.float(), size, mode="nearest-exact")
    return torch.where(box > 0, b, a)

def strong_view(
    batch: dict, # of nnU-Net: data [B,K,…], target [B,L,…] or a list of them
    channels: int, # of an image: those before a cascade's
    cutmix: float, # share of the cases that get a box of another
    generator: torch.Generator,
) -> dict:
    "What the student sees of a batch."
    data, target = batch["data"], batch["target"]
    image, cascade = data[:, :channels], data[:, channels:]
    data = torch.cat([ruined(image, generator), cascade], 1)
    one = data[:, :1]
    box = random_patch_boxes(one, (0.02, 0.4), generator)
    box = box & chance(one, cutmix, generator)
    cases, device = len(data), generator.device
    order = torch.randperm(cases, generator=generator, device=device)
    order = order.to(data.device)

    def mix(whole: torch.Tensor) -> torch.Tensor:
        "With a box of another case."
        return mixed(whole, whole[order], box)
    if torch.is_tensor(target):
        target = mix(target)
    else:
        target = [mix(t) for t in target]
    return batch | {"data": mix(data), "target": target}


# %%
names = torch.arange(4.).view(4, 1, 1, 1).expand(4, 2, 32, 32)
batch = {"data": names, "target": [names.short(), names[..., ::2, ::2].short()]}
view = strong_view(batch, 1, 1., torch.Generator().manual_seed(1))
test_eq(view["data"][:, 1], view["target"][0][:, 1].float())
print("cases whose voxels are in each view:", [t.unique().tolist() for t in view["target"][0]])
same = strong_view(batch, 1, 0., torch.Generator().manual_seed(1))
test_eq(same["target"][1], batch["target"][1])
