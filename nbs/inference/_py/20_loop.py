# %% [markdown]
# # The loop over slices
#
# > Slices to probabilities to labels, batch by batch: the one loop that everything asks a network by.

# %%
#| default_exp inference.loop

# %%
#| export
import contextlib
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ctseg.core.allocator import memory_kept
from ctseg.core.arguments import check_argument
from ctseg.core.device import DevicePlan
from ctseg.core.errors import InputError
from ctseg.core.parallel import collect, own_share, world
from ctseg.data.batches import Batch, SliceData
from ctseg.data.lazy import LazyPixels
from ctseg.data.slices import SliceSet
from ctseg.data.spooled import FilePixels
from ctseg.inference.rule import Rule, decide

# %%
#| hide
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_eq, test_fail
from torch import nn

from ctseg.core.device import pick_device
from ctseg.data.toys import toy_set


# %% [markdown]
# Whoever asks a network must ask in the same way: the training loop after an epoch, a teacher that labels slices, the prediction in the end. This page holds that way, from one batch to a whole set that several processes share.
#
# ## A network's probabilities
#
# A network may have a [presence head](../models/20_presence.ipynb), which says whether a structure is on the image at all. Then the probability of a pixel is multiplied by that of the presence.

# %%
#| export
def class_probabilities(
    model: nn.Module,
    loss: nn.Module,
    x: torch.Tensor,
    temperature: float = 1.0,
    presence: bool = True,
) -> torch.Tensor:
    """Foreground probabilities f32 `[B, C, H, W]` of a network in evaluation.

    loss: knows how logits become probabilities (`ctseg.losses`). x: f32 `[B, K, H, W]` in 0…1. temperature: the
    logits are divided by it. presence: False leaves a presence head unasked.
    """
    if not presence or getattr(model, "presence", None) is None:
        return loss.probabilities(model(x).float()/temperature)
    logits, presence_logits = model(x, presence=True)
    on_image = presence_logits.float().sigmoid()[..., None, None]
    return loss.probabilities(logits.float()/temperature)*on_image


# %% [markdown]
# A "network" that answers with 0.8 for three structures everywhere, and a presence head that says "perhaps, surely, never":

# %%
class Answers(nn.Module):
    "The same logits for every image and pixel; with a presence head if `presence` logits are given."
    def __init__(self, logits, presence=None):
        super().__init__()
        self.logits, self.presence = torch.tensor(logits), presence

    def forward(self, x, presence=False):
        pixels = self.logits.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])
        return (pixels, torch.tensor(self.presence).expand(len(x), -1)) if presence else pixels


sigmoid = SimpleNamespace(probabilities=torch.sigmoid, activation="sigmoid")
sure = torch.tensor(0.8).logit().item()
headed = Answers([sure]*3, presence=[0., 9., -9.])
image = torch.rand(1, 1, 8, 8)
for asked in (True, False):
    prob = class_probabilities(headed, sigmoid, image, presence=asked)[0, :, 0, 0]
    print(f"presence head asked: {asked!s:<6}", prob.numpy().round(3))


# %% [markdown]
# ## At which size, in which precision
#
# A network may work at another size than the images have. A `Member` (of an ensemble) knows the size, and brings its answers back to the images' own.

# %%
#| export
def to_size(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    "Probabilities `[B, C, H, W]` at another `size` (height, width); `x` itself where they have it."
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


# %%
to_size(torch.rand(2, 3, 8, 8), (16, 12)).shape


# %%
#| export
def in_precision(plan: DevicePlan) -> contextlib.AbstractContextManager:
    "Autocast to the planned precision (bf16 or fp16); nothing for fp32."
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(plan.precision, torch.float32)
    return torch.autocast(plan.device.type, kind, enabled=kind != torch.float32)


# %%
half = DevicePlan(torch.device("cpu"), "bf16", "a CPU")
with in_precision(half):
    print("a product in bf16 is", (torch.ones(2, 2)@torch.ones(2, 2)).dtype)


# %% [markdown]
# A network may see [neighbouring slices](../data/09_stacks.ipynb) as further channels. In an ensemble those beside it may see fewer, or none. So
# images come with as many as the widest one sees, and each member takes the middle ones.

# %%
#| export
def middle_channels(x: torch.Tensor, context: int) -> torch.Tensor:
    "Of images `[B, K, H, W]` the middle one, and so many on each side; `InputError` where there are fewer."
    away = int(x.shape[1])//2 - context
    if away == 0: return x
    if away > 0: return x[:, away:-away]
    raise InputError(f"this network sees each slice with {context} on each side (context = {context}), "
                     "and was given single images; give the slices of a volume, or a folder made of volumes")


# %%
five = torch.arange(5).view(1, 5, 1, 1)
test_eq(middle_channels(five, 1).flatten(), torch.tensor([1, 2, 3]))
test_fail(lambda: middle_channels(five, 3), contains="context = 3")

# %% [markdown]
# On a CPU a network gets few images at a time, which takes less memory. Where freed memory [is not kept](../core/49_allocator.ipynb) it is also faster: four images of 256 pixels then take two thirds of the time of sixteen, each; where it is kept, 1.03 to 1.09 of it.

# %%
#| export
AT_ONCE = 2**18  # pixels that a network is given at once on a CPU

def in_pieces(answer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    "What `answer` makes of images `[B, K, H, W]`, `[B, …]`; on a CPU it is given a few of them at a time."
    at_once = max(1, AT_ONCE//(x.shape[-2]*x.shape[-1]))
    if x.device.type != "cpu" or len(x) <= at_once: return answer(x)
    return torch.cat([answer(some) for some in x.split(at_once)])


# %%
def told(some):
    "Twice the images; tells how many there are."
    print(len(some), "images of", some.shape[-1])
    return 2*some

for side in (64, 256):
    x = torch.rand(10, 1, side, side)
    test_eq(in_pieces(told, x), 2*x)


# %%
#| export
@dataclass(frozen=True)
class Member:
    """One trained network, ready to be asked. It knows nothing of its run.

    model: in evaluation, on the plan's device. loss: knows how the model's logits become probabilities.
    image_size: the height and width it works at; None: the images' own. temperature: its logits are divided by
    this, see `ctseg.inference.calibration`. context: slices that it sees on each side.
    """
    model: nn.Module
    loss: nn.Module
    image_size: int | None = None
    temperature: float = 1.0
    context: int = field(default=0, kw_only=True)

    @torch.inference_mode()
    def ask(
        self,
        x: torch.Tensor,
        plan: DevicePlan,
        how: Callable,
    ) -> torch.Tensor:
        """What `how(model, x)` gives, as f32, in the planned precision.

        x: f32 `[B, K, H, W]` in 0…1, of which it sees the middle ones, at the size that it works at.
        """
        x = middle_channels(x, self.context)
        size = self.image_size
        if size and tuple(x.shape[-2:]) != (size, size):
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
        with in_precision(plan):
            return in_pieces(lambda some: how(self.model, some).float(), x)

    def probabilities(self, x: torch.Tensor, plan: DevicePlan) -> torch.Tensor:
        "Foreground probabilities f32 `[B, C, H, W]` at the images' size, for images f32 `[B, K, H, W]` in 0…1."
        def how(model, images):
            return class_probabilities(model, self.loss, images, self.temperature)
        return to_size(self.ask(x, plan, how), x.shape[-2:])


# %%
member = Member(Answers([sure, -sure]), sigmoid, image_size=16, temperature=2.0)
prob = member.probabilities(torch.rand(1, 1, 24, 20), pick_device("cpu"))
print("size", tuple(prob.shape[2:]), " probabilities at temperature 2:", prob[0, :, 0, 0])

# %% [markdown]
# ## The loop
#
# A step gets a batch of slices and returns named tensors, a row a slice; the loop joins them. A [deadline](../training/40_deadline.ipynb) may stop it between two batches. If several processes share the work, each takes its share and all get the whole. [Memory](../core/49_allocator.ipynb) that a batch frees is kept for the next one.

# %%
#| export
Each = Callable[[Iterable], Iterable]  # goes through batches, and may stop on the way


def batches(
    count: int,
    batch_size: int,
    each: Each | None = None,
    shared: bool = False,
) -> Iterator[np.ndarray]:
    """Positions of the slices of each batch, int64 `[B]`.

    count: how many slices there are. each: goes through the batches, and may stop; None: all of them in order.
    shared: only this process's share of them, as `own_share` divides them.
    """
    check_argument("batch_size", batch_size, int)
    if batch_size < 1:
        raise InputError(f"batch_size = {batch_size}: expected at least 1")
    share = own_share(count) if shared else torch.arange(count)
    for index in (each or iter)(share.split(batch_size)):
        yield index.numpy()


# %%
[index.tolist() for index in batches(10, 4)]

# %% [markdown]
# Label maps of many slices do not fit memory. They can be collected in a file.

# %%
#| export
_Name = TypeVar("_Name", bound=Hashable)

def put_in_file(files: dict[_Name, FilePixels], name: _Name, count: int, index: np.ndarray, maps: np.ndarray):
    "Put the maps uint8 `[B, H, W]` of the slices at `index`, of `count`, into the file of that name."
    if name not in files:
        files[name] = FilePixels(count, maps.shape[1:])
    files[name].write(int(index[0]), maps)


# %%
files = {}
put_in_file(files, "labels", 3, np.array([1, 2]), np.ones((2, 4, 4), np.uint8))
print(LazyPixels(files["labels"])[:].max((1, 2)))


# %%
#| export
@memory_kept()
@torch.no_grad()
def over_slices(
    slices: SliceSet | np.ndarray,
    step: Callable[[Any], dict[_Name, torch.Tensor]],
    batch_size: int = 16,
    each: Each | None = None,
    shared: bool = False,
    filed: Collection[str] = (),
) -> dict[_Name, np.ndarray | LazyPixels]:
    """What `step` makes of each batch of `slices`, joined: an array `[N, …]` by name.

    slices: anything with a length that an array of positions indexes, such as a `SliceSet` or images `[N, H, W]`.
    step: function of a batch of them that returns tensors `[B, …]` by name, on any device.
    each, shared: see `batches`; if `shared`, every process gets the results of all.
    filed: names of results uint8 `[B, H, W]` that are collected in files; in memory where processes share the work.
    """
    if shared and world() > 1: filed = ()
    files, parts = {}, []
    for index in batches(len(slices), batch_size, each, shared):
        part = slices[index]
        if isinstance(part, SliceSet): part = part.in_memory()
        results = {name: values.cpu() for name, values in step(part).items()}
        for name in filed:
            put_in_file(files, name, len(slices), index, results.pop(name).numpy())
        parts.append(results)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if shared:
        joined = {name: collect(values, len(slices)) for name, values in joined.items()}
    arrays = {name: values.numpy() for name, values in joined.items()}
    return arrays | {name: LazyPixels(file) for name, file in files.items()}


# %% [markdown]
# Mean brightness and number of labelled pixels of each of ten slices, four at a time:

# %%
slices, truth = toy_set(10, 10)


def brightness_and_area(part):
    images, masks = torch.from_numpy(part.images), torch.from_numpy(part.masks)
    return {"brightness": images.float().mean((1, 2)), "area": (masks > 0).sum((1, 2))}


facts = over_slices(slices, brightness_and_area, batch_size=4)
print({name: values.round().astype(int) for name, values in facts.items()})

def doubled(part): return {"doubled": torch.from_numpy(part.masks*2)}
in_a_file = over_slices(slices, doubled, batch_size=4, filed=["doubled"])["doubled"]
print(in_a_file)
test_eq(np.asarray(in_a_file), slices.masks*2)
test_eq(facts["area"], (slices.masks > 0).sum((1, 2)))


# %% [markdown]
# ## Labels of a whole set
#
# In training, slices lie on the device at the network's size, and so do those that the network is asked about. Validation runs the averaged model on held-out slices this way.

# %%
#| export
def on_device(
    slices: SliceSet,
    device: torch.device | str,
    image_size: int | None = None,
) -> Batch:
    "All of `slices` as one `Batch` on `device`, at the size that a network works at (None: their own)."
    return SliceData(slices, device, image_size).batch(torch.arange(len(slices)))


# %%
on_device(slices, "cpu", image_size=32).image.shape


# %%
#| export
def predict_labels(
    model: nn.Module,
    slices: SliceSet,
    loss: nn.Module,
    device: torch.device | str,
    image_size: int | None = None,
    batch_size: int = 16,
    autocast: Callable = contextlib.nullcontext,
    shared: bool = False,
) -> np.ndarray:
    """Argmax labels uint8 `[N, H, W]` of a model in evaluation, at the network's image size.

    loss: knows how logits become probabilities. autocast: makes a context in which the network is asked, such as
    `Accelerator.autocast`. shared: several processes share the work and all get the whole.
    """
    def step(part: SliceSet) -> dict[str, torch.Tensor]:
        with autocast():
            prob = class_probabilities(model, loss, on_device(part, device, image_size).image)
            return {"labels": decide(prob, Rule(), loss.activation)}
    return over_slices(slices, step, batch_size, shared=shared)["labels"]


# %% [markdown]
# A "network" that looks at brightness alone: on a toy body the heart is bright.

# %%
#| fig-alt: "A toy slice, its truth, and the label of its bright heart as the network draws it"
class Bright(nn.Module):
    "The logit of the third structure rises with the brightness of its neighbourhood; the others are never drawn."
    def forward(self, x):
        smooth = F.avg_pool2d(x, 7, stride=1, padding=3)
        return torch.cat([torch.full_like(x, -9)]*2 + [(smooth - 0.61)*40], 1)


labels = predict_labels(Bright(), slices, sigmoid, "cpu")
fig, axes = plt.subplots(1, 3, figsize=(6, 2.2), layout="constrained")
for ax, (title, picture) in zip(
    axes, {"slice": slices.images[1], "truth": truth[1], "labels": labels[1]}.items()
):
    ax.imshow(picture if title == "slice" else slices.classes.colourise(picture), cmap="gray")
    ax.set(title=title, xticks=[], yticks=[])
plt.show()
test_eq(labels.shape, slices.images.shape)
