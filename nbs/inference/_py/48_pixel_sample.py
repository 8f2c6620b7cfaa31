# %% [markdown]
# # Held-out pixels
#
# > Logits and truth of some pixels of each held-out slice: what a temperature is fitted on, in the memory of a few slices.
#
# - skip_showdoc: true

# %%
#| default_exp inference.pixel_sample

# %%
#| export
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ctseg.core.device import DevicePlan
from ctseg.data.lazy import LazyPixels, take
from ctseg.data.slices import SliceSet
from ctseg.inference.loop import Member, on_device, over_slices

# %%
#| hide
import torch
from fastcore.test import test_close, test_eq

from ctseg.core.device import pick_device
from ctseg.data.toys import toy_set
from ctseg.inference.loop import Member
from ctseg.losses.registry import create_loss
from ctseg.models.zoo import create_model


# %% [markdown]
# [Calibration](50_calibration.ipynb) compares what a network says of held-out pixels with what is there. Neighbouring pixels tell nearly the same, so a few thousand of each slice are enough. They are kept as images of one row, which the losses take like any other.
#
# Of many slices even these are much: 67 million numbers, 256 MB. A temperature is fitted by asking for all of them some twenty times, but never for all at once. So they lie in a temporary file, and are read a few slices at a time.

# %%
#| export
@dataclass(frozen=True)
class PixelSample:
    """Logits and truth of P random pixels of each of N held-out slices; indexing takes some of the slices.

    logits: f32 `[N, K, 1, P]`, or their bytes in a file, `[N, K, 4P]`. mask: int64 `[N, 1, P]`, or uint8 beside a
    file. known: bool `[N, C]`. presence_logits: f32 `[N, C]` of a presence head, or None.
    """
    logits: torch.Tensor | LazyPixels
    mask: torch.Tensor
    known: torch.Tensor
    presence_logits: torch.Tensor | None = None

    def __len__(self) -> int: return len(self.known)

    def __getitem__(self, rows: slice | np.ndarray) -> "PixelSample":
        presence_logits = None if self.presence_logits is None else self.presence_logits[rows]
        return PixelSample(take(self.logits, rows), self.mask[rows], self.known[rows], presence_logits)

    def in_memory(self) -> "PixelSample":
        "The same with all logits in memory."
        if isinstance(self.logits, torch.Tensor): return self
        numbers = torch.from_numpy(np.asarray(self.logits).view(np.float32))
        return PixelSample(numbers[:, :, None], self.mask.long(), self.known, self.presence_logits)


# %%
pixels = PixelSample(
    torch.randn(5, 2, 1, 100), torch.zeros(5, 1, 100, dtype=torch.int64), torch.ones(5, 2, dtype=torch.bool)
)
print("of five slices the first two:", tuple(pixels[:2].logits.shape))

# %%
#| export
PART = 2**22  # bytes of logits in memory at once

def parts_of(sample: PixelSample) -> Iterator[tuple[slice, PixelSample]]:
    "The slices of a sample, some at a time: which of its rows, and they in memory."
    numbers = np.prod(sample.logits.shape[1:])
    size = 1 if isinstance(sample.logits, LazyPixels) else 4  # bytes of each
    step = max(1, PART//max(1, int(size*numbers)))
    for start in range(0, len(sample), step):
        rows = slice(start, min(len(sample), start + step))
        yield rows, sample[rows].in_memory()


# %%
many = PixelSample(torch.zeros(5, 4, 1, 2**17), torch.zeros(5, 1, 2**17), torch.ones(5, 3, dtype=torch.bool))
test_eq([rows for rows, _ in parts_of(many)], [slice(0, 2), slice(2, 4), slice(4, 5)])


# %%
#| export
class RandomPixels:
    "Takes the same random pixels of each of so many slices whenever it goes through them."
    def __init__(
        self, slices: int,
        pixels: int = 4096, # of each slice
        most: int = 2**26, # numbers in all: fewer pixels where they would be more, but at least 64
    ):
        self.slices, self.pixels, self.most = slices, pixels, most
        self.rng = torch.Generator().manual_seed(0)

    def of(self, logits: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        "The next slices' logits `[B, K, N]` and mask `[B, N]` at pixels of theirs: `[B, K, P]` and `[B, P]`."
        B, channels, area = logits.shape
        count = min(self.pixels, max(64, self.most//(self.slices*channels)))
        chosen = torch.stack([torch.randperm(area, generator=self.rng)[:count] for _ in range(B)])
        rows = chosen[:, None].expand(-1, channels, -1)
        return logits.gather(2, rows), mask.gather(1, chosen)


# %%
taken, labels = RandomPixels(2, pixels=3).of(torch.arange(20.).view(2, 1, 10), torch.arange(20).view(2, 10))
test_eq(taken[:, 0].long(), labels)
print(labels.tolist())


# %%
#| export
def sample_logits(
    member: Member,
    slices: SliceSet,
    plan: DevicePlan,
    pixels: int = 4096,
    batch_size: int = 16,
    most: int = 2**26,
) -> PixelSample:
    """Logits and truth of the same random pixels of held-out `slices`, at the size the network works at; in a file.

    pixels, most: see `RandomPixels`.
    """
    has_head = getattr(member.model, "presence", None) is not None
    random = RandomPixels(len(slices), pixels, most)

    def step(part: SliceSet) -> dict[str, torch.Tensor]:
        batch = on_device(part, plan.device, member.image_size)
        logits = member.ask(batch.image, plan, lambda model, x: model(x)).flatten(2).cpu()
        logits, mask = random.of(logits, batch.mask.flatten(1).cpu())
        as_bytes = logits.view(torch.uint8)  # a file of these is what `over_slices` writes
        sample = {"logits": as_bytes, "mask": mask[:, None].to(torch.uint8), "known": batch.known}
        if has_head:
            of_head = member.ask(batch.image, plan, lambda model, x: model(x, presence=True)[1])
            sample["presence_logits"] = of_head
        return sample

    found = over_slices(slices, step, batch_size, filed=("logits",))
    logits = found.pop("logits")
    return PixelSample(logits, **{name: torch.from_numpy(values) for name, values in found.items()})


# %% [markdown]
# A fresh network on toy slices; of each a hundred pixels are taken.

# %%
slices, plan = toy_set(6, 6)[0], pick_device("cpu")
torch.manual_seed(0)
member = Member(create_model("attunet", 1, 4, width=4).eval(), create_loss("marginal"))
sample = sample_logits(member, slices, plan, pixels=100)
print(sample.logits, {name: tuple(t.shape) for name, t in vars(sample.in_memory()).items() if t is not None})


# %% [markdown]
# ## At a temperature
#
# What a network answers at a temperature are its logits over the temperature, as probabilities. With a [presence head](../models/20_presence.ipynb) they are multiplied by the probability that the structure is on the slice at all. The product has logits too, and they are what is judged below.

# %%
#| export
def logits_at(
    loss: nn.Module,
    sample: PixelSample,
    temperature: float | torch.Tensor = 1.0,
) -> torch.Tensor:
    """The logits `[N, K, 1, P]` of the probabilities that the network gives at this temperature.

    loss: knows how logits become probabilities. sample: in memory. temperature: one, or f32 `[N, 1, 1, 1]`, one a
    slice. The probabilities are those of `class_probabilities`.
    """
    logits = sample.logits/temperature
    if sample.presence_logits is None:
        return logits
    on_image = sample.presence_logits.sigmoid()[..., None, None]
    prob = (loss.probabilities(logits)*on_image).clamp(1e-7, 1 - 1e-7)
    if loss.activation == "sigmoid":
        return prob.logit()
    background = (1 - prob.sum(1, keepdim=True)).clamp(min=1e-7)
    return torch.cat([background, prob], 1).log()


# %%
z, head = torch.tensor([0., 1., -2.]).view(1, 3, 1, 1), torch.tensor([[0., 2.]])
for loss, logits in ((create_loss("marginal"), z), (create_loss("masked"), z[:, 1:])):
    headed = PixelSample(logits, None, None, head)
    want = loss.probabilities(logits/2)*head.sigmoid()[..., None, None]
    test_close(loss.probabilities(logits_at(loss, headed, 2.)), want, eps=1e-6)
print("with a presence head:", want.flatten())
