# %% [markdown]
# # Toys
#
# > A body with two lungs and a heart, partly annotated: the world of every small example and test.
#
# - skip_showdoc: true

# %%
#| default_exp core.toys

# %%
#| export
from dataclasses import dataclass

import numpy as np
import torch

from ctseg.core.anatomy import ClassMap

# %%
#| hide
import torch
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.style import class_legend, image_grid, overlay, plot_masks, show_image
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=60))  # grey noise: an eighth of a PNG

# %% [markdown]
# An example needs slices that cost nothing, whose truth is known, and on which a small network can succeed within seconds. All pages and tests draw them from here.
#
# ## Bodies
#
# `toy_slices` draws tensors for a network. Each body has its own place and size, its two lungs are dark, and its heart is bright.

# %%
#| export
TOY_CLASSES = ClassMap.from_names(["lung_right", "lung_left", "heart"])

@dataclass(frozen=True)
class ToyOrgan:
    "Where an ellipse lies in a body, how large it may be and how bright it is; lengths in half frames."
    y: float                      # of the centre, below the centre of the body
    x: float                      # the same to the right
    ry: tuple[float, float]       # smallest and largest vertical radius
    rx: tuple[float, float]       # the same across
    grey: float                   # 0 is black, 1 is white; the body has 0.5

TOY_ORGANS = (
    ToyOrgan(y=-.15, x=-.48, ry=(.3, .45), rx=(.22, .28), grey=.15),
    ToyOrgan(y=-.15, x=.48, ry=(.3, .45), rx=(.22, .28), grey=.15),
    ToyOrgan(y=.45, x=0, ry=(.25, .3), rx=(.25, .3), grey=.8),
)

# %%
for name, organ in zip(TOY_CLASSES.names, TOY_ORGANS): print(f"{name:11}", organ)


# %%
#| export
def toy_slices(
    n: int = 4, # slices
    size: int = 64, # height and width in pixels
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]: # images in 0..1, masks with classes 1..3
    "Bodies with two dark lungs (1, 2) and a bright heart (3): images f32 [n,1,size,size], masks i64."
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)]*2, indexing="ij")

    def draw(low: float, high: float) -> torch.Tensor: # a number for each slice, [n,1,1]
        return torch.rand(n, 1, 1, generator=generator)*(high - low) + low

    def ellipse(cy, cx, ry, rx) -> torch.Tensor: # bool [n,size,size]
        return ((y - cy)/ry)**2 + ((x - cx)/rx)**2 < 1

    dy, dx = draw(-.1, .1), draw(-.1, .1)
    body = ellipse(dy, dx, draw(.8, .9), draw(.85, .95))
    image = body*.5
    mask = torch.zeros(n, size, size, dtype=torch.long)
    for c, organ in enumerate(TOY_ORGANS, 1):
        inside = ellipse(dy + organ.y, dx + organ.x, draw(*organ.ry), draw(*organ.rx))
        image = torch.where(inside, torch.tensor(organ.grey), image)
        mask = torch.where(inside, c, mask)
    noise = torch.randn(n, size, size, generator=generator)
    return (image + .05*noise).clamp(0, 1)[:, None], mask


# %%
#| fig-alt: "Four toy bodies above their masks: two dark lungs and a bright heart in each"
images, masks = toy_slices(4)
fig, axes = image_grid(2, 4, size=1.3)
for column, image, mask in zip(axes.T, images[:, 0], masks):
    show_image(column[0], 255*image.numpy())
    show_image(column[1], overlay(255*image.numpy(), mask.numpy(), TOY_CLASSES))
class_legend(fig, TOY_CLASSES)
test_eq((images.shape, masks.shape, masks.unique().tolist()), ((4, 1, 64, 64), (4, 64, 64), [0, 1, 2, 3]))


# %% [markdown]
# Radiologists look at a patient from the feet, so the right lung lies on the left of the picture.
#
# ## A partly annotated world
#
# Real slices are noisier, lack some structures, and are annotated in part. `toy_world` adds all three. It keeps the whole truth beside what annotators wrote down,
# so an example can show what a method missed.

# %%
#| export
def known_part(truth: np.ndarray, known: np.ndarray) -> np.ndarray:
    "What annotators write down of a truth [N,H,W]: structures that `known` [N,C] calls unexamined become 0."
    written = np.pad(known, ((0, 0), (1, 0)))
    slice_number = np.arange(len(truth))[:, None, None]
    return np.where(written[slice_number, truth], truth, 0)


# %% [markdown]
# The second structure was not examined, so it disappears from the mask; the first and the third stay.

# %%
test_eq(known_part(np.array([[[0, 1], [2, 3]]]), np.array([[True, False, True]])), [[[0, 1], [0, 3]]])


# %%
#| export
@dataclass(frozen=True)
class ToyWorld:
    "Slices with their whole truth and with the part of it that was annotated."
    images: np.ndarray           # uint8 [N,H,W]
    truth: np.ndarray            # uint8 [N,H,W]
    known: np.ndarray            # bool [N,C]: the class was examined on the slice
    classes: ClassMap = TOY_CLASSES

    def __len__(self) -> int: return len(self.images)

    @property
    def masks(self) -> np.ndarray:
        "The annotated part of the truth, uint8 [N,H,W]; 0 is background or unknown."
        return known_part(self.truth, self.known)

    @property
    def names(self) -> list[str]:
        "A file name for each slice."
        return [f"{i}.png" for i in range(len(self))]

    @property
    def groups(self) -> np.ndarray:
        "The patient of each slice, int [N]: two slices each."
        return np.arange(len(self))//2


# %%
#| export
def toy_world(
    n: int = 40, # slices
    size: int = 48, # height and width in pixels
    seed: int = 0,
    labelled: int | None = None, # annotated slices, the first ones; None: all
    examined: int = 2, # classes examined on each of them, 0 to 3
    missing: float = .25, # chance that a slice lacks a structure
    noise: float = .08, # standard deviation; 1 is the range from black to white
) -> ToyWorld:
    "`toy_slices` as annotators leave them: noisy, with absent structures, and examined for some classes only."
    rng = np.random.default_rng(seed)
    clean, drawn = toy_slices(n, size, seed)
    grey = clean[:, 0].numpy()
    truth = drawn.numpy().astype(np.uint8)
    known = np.zeros((n, 3), bool)
    for i in range(n):
        lacking = 1 + np.flatnonzero(rng.random(3) < missing)
        removed = np.isin(truth[i], lacking)
        truth[i][removed] = 0
        grey[i][removed] = .5
        if labelled is None or i < labelled:
            known[i, rng.choice(3, examined, replace=False)] = True
    contrast = .35 + .4*grey
    noisy = (contrast + rng.normal(0, noise, truth.shape)).clip(0, 1)
    return ToyWorld((255*noisy).astype(np.uint8), truth, known)


# %% [markdown]
# Four slices, of which two are annotated. Compare the second and the third row: where nobody looked, a structure is missing in the mask although it is in the picture.

# %%
#| fig-alt: "Four toy slices with their truth and their masks; the masks lack what was not examined"
world = toy_world(4, labelled=2, seed=3)
fig, axes = image_grid(3, 4, size=1.3)
for i, column in enumerate(axes.T):
    examined = [name for name, known in zip(world.classes.names, world.known[i]) if known]
    show_image(column[0], world.images[i], "examined:\n" + (", ".join(examined) or "nothing"))
    show_image(column[1], overlay(world.images[i], world.truth[i], world.classes))
    show_image(column[2], overlay(world.images[i], world.masks[i], world.classes))
for ax, label in zip(axes[:, 0], ("slice", "truth", "mask")): ax.set_ylabel(label)
class_legend(fig, world.classes)

# %% [markdown]
# Two structures were examined on each annotated slice. Where all are examined, the mask is the truth.

# %%
test_eq(world.known.sum(1), [2, 2, 0, 0])
# all examined: the mask is the truth
test_eq(toy_world(4, seed=3, examined=3).masks, toy_world(4, seed=3, examined=3).truth)
test_eq(toy_world(9, missing=0).truth[4], toy_slices(9, 48)[1][4].numpy())


# %% [markdown]
# ## A prediction with faults
#
# Pages about scores need a model that is good at some things and bad at others. This one draws the right lung one pixel off, invents every second absent left lung, and has never heard of the heart.

# %%
#| export
def toy_prediction(world: ToyWorld) -> np.ndarray:
    "A prediction uint8 [N,H,W] with typical faults: outlines one pixel off, left lungs invented, no heart."
    prediction = np.roll(world.truth, 1, axis=2)
    prediction[prediction == 3] = 0
    has_left_lung = (world.truth == 2).any((1, 2))
    example = world.truth[has_left_lung.argmax()] == 2
    for i in np.flatnonzero(~has_left_lung)[::2]: prediction[i][example] = 2
    return prediction


# %%
#| fig-alt: "Three toy slices with truth and prediction: the right lung is shifted, the heart never drawn"
world = toy_world(8, seed=3, examined=3)
prediction = toy_prediction(world)
plot_masks(
    world.images[:3], {"truth": world.truth[:3], "prediction": prediction[:3]}, world.classes, size=1.3
)
assert (prediction[:, :, 1:][world.truth[:, :, :-1] == 1] == 1).all()  # the right lung, moved by one column
assert not (prediction == 3).any()
