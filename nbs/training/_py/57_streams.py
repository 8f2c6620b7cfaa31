# %% [markdown]
# # Streams
#
# > Which images each step takes, from one or two sets of slices on the device.

# %%
#| default_exp training.streams

# %%
#| export
from dataclasses import replace

import numpy as np
import torch

from ctseg.core.errors import InputError
from ctseg.core.parallel import world
from ctseg.data.batches import Batch, SliceData
from ctseg.data.lazy import LazyPixels
from ctseg.data.sampling import EpochSampler, rare_weights
from ctseg.data.slices import SliceSet
from ctseg.data.streamed import StreamedData
from ctseg.training.memory import free_bytes
from ctseg.training.method import Phase
from ctseg.training.randomness import derived_seed
from ctseg.training.setup import Setup

# %%
#| hide
from fastcore.test import test_eq

from ctseg.data.toys import toy_set
from ctseg.training.setup import ScheduleSettings

# %% [markdown]
# The slices of a stream stay on the device as bytes, and a batch is made there from a list of numbers. That is all the data loading there is. Where they do not fit, a thread [reads](../data/16_streamed.ipynb) the next batches while the device computes. The order is a function of the seed and the epoch.

# %%
#| export
AHEAD = 3  # batches that are read before they are needed

class Stream:
    "Slices, on the device or streamed to it, and the order in which they come."
    def __init__(self, slices: SliceSet, data: SliceData | StreamedData, sampler: EpochSampler):
        self.slices, self.data, self.sampler = slices, data, sampler
        self.orders: dict[int, list[torch.Tensor]] = {}  # of this epoch, and of the next when it comes near

    def __len__(self) -> int: return len(self.sampler)  # batches an epoch

    def batches(self, epoch: int) -> list[torch.Tensor]:
        "The batches of an epoch, int64 [B] each: numbers of slices, for all processes."
        if epoch not in self.orders:
            self.orders = {e: order for e, order in self.orders.items() if e == epoch - 1}
            self.orders[epoch] = self.sampler.batches(epoch)
        return self.orders[epoch]

    def index(self, step: int) -> torch.Tensor:
        "The batch of one step, int64 [B], in an endless sequence of epochs."
        epoch, place = divmod(step, len(self))
        return self.batches(epoch)[place]

    def batch(self, index: torch.Tensor, step: int) -> Batch:
        "The slices at `index`, which is the batch of a step; what comes after is read meanwhile."
        batch = self.data.batch(index)
        if isinstance(self.data, StreamedData):
            for later in range(step + 1, step + 1 + AHEAD):
                self.data.expect(self.index(later))
        return batch

    def names(self, index: torch.Tensor) -> list[str]:
        "The names of slices, for messages."
        return [self.slices.names[i] for i in index]


# %% [markdown]
# Slices that are in the host's memory stay there when the network is trained there. Others are brought to the device if they take a quarter of its free memory at most, or as much as `--memory` allows.

# %%
#| export
def pixel_bytes(slices: SliceSet, image_size: int | None = None) -> int:
    "Bytes of the images and masks of slices, at the size that a network works at (None: their own)."
    height, width = (image_size, image_size) if image_size else slices.image_shape
    images = len(slices)
    if slices.stacks is not None:  # those beside them too, each once
        images = len(slices.stacks.needed()[0])
    return (images + len(slices))*height*width

def stays_on_device(slices: SliceSet, setup: Setup, device: torch.device) -> bool:
    "Whether slices are kept on the device; else they are streamed to it."
    own_size = setup.image_size is None or slices.image_shape == (setup.image_size,)*2
    in_memory = not any(isinstance(pixels, LazyPixels) for pixels in (slices.images, slices.masks))
    if in_memory and own_size and torch.device(device).type == "cpu":
        return True
    room = free_bytes(torch.device(device))/4 if setup.memory is None else setup.memory
    return pixel_bytes(slices, setup.image_size) <= room


# %%
toys, truth = toy_set(24, 16)
print(pixel_bytes(toys), pixel_bytes(toys, 96))
test_eq(stays_on_device(toys, Setup(image_size=96, memory=10**5), torch.device("cpu")), False)


# %%
#| export
def make_stream(
    slices: SliceSet,
    setup: Setup,
    *names: str, # of the phase and the stream, for random numbers
    pixels: np.ndarray | None = None, # bool [N, H, W]: which of them teach; None: all
    rare_power: float = 0., # see `rare_weights`; 0: all slices alike
    device: torch.device | None = None, # None: the setup's
) -> Stream:
    "A stream of slices, divided among all processes; `InputError` for a batch size that they cannot share."
    batch_size = setup.schedule.batch_size
    if batch_size % world():
        processes = f"the {world()} processes, which share each batch"
        raise InputError(f"batch_size = {batch_size}: expected a multiple of {processes}")
    weights = rare_weights(slices, rare_power) if rare_power else None
    seed = derived_seed(setup.seed, *names) % 2**31
    device = device or setup.plan.device
    kind = SliceData if stays_on_device(slices, setup, device) else StreamedData
    data = kind(slices, device, setup.image_size, pixels)
    return Stream(slices, data, EpochSampler(len(slices), batch_size, seed, weights))


# %%
slices, truth = toy_set(24, 16)
four = Setup(ScheduleSettings(batch_size=4))
stream = make_stream(slices[slices.labelled], four, "supervised")
for step in range(3): print(step, stream.names(stream.index(step)))
test_eq(len(stream), 4)
test_eq(sorted(torch.cat(stream.batches(1)).tolist()), list(range(16)))  # each once an epoch
test_eq(stream.index(5), stream.batches(1)[1])


# %% [markdown]
# Semi-supervised methods take a second stream of images. It runs at its own length: step `n` gets the `n`-th batch of an endless sequence of passes.

# %%
#| export
def make_streams(
    phase: Phase, setup: Setup, device: torch.device | None = None, # None: the setup's
) -> tuple[Stream, Stream | None]:
    "The stream of a phase's slices, and the second one if it has further images."
    first = make_stream(phase.slices, setup, phase.name, pixels=phase.pixel_weights,
                        rare_power=setup.rare_power, device=device)
    if phase.extra is None or not len(phase.extra): return first, None
    pixels = phase.extra_pixel_weights
    if setup.memory is not None and isinstance(first.data, SliceData):
        setup = replace(setup, memory=setup.memory - pixel_bytes(phase.slices, setup.image_size))
    return first, make_stream(phase.extra, setup, phase.name, "extra", pixels=pixels, device=device)


# %%
labelled, extra = make_streams(Phase("x", slices[slices.labelled], extra=slices[~slices.labelled]), four)
for step in range(3): print(step, labelled.names(labelled.index(step)), extra.names(extra.index(step)))
