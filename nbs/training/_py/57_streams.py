# %% [markdown]
# # Streams
#
# > Which images each step takes, from one or two sets of slices on the device.

# %%
#| default_exp training.streams

# %%
#| export
import numpy as np
import torch

from ctseg.core.files import InputError
from ctseg.core.parallel import world
from ctseg.data.sampling import EpochSampler, rare_weights
from ctseg.data.batches import SliceData
from ctseg.data.slices import SliceSet
from ctseg.training.method import Phase
from ctseg.training.randomness import derived_seed
from ctseg.training.setup import Setup

# %%
#| hide
from fastcore.test import test_eq

from ctseg.data.toys import toy_set
from ctseg.training.setup import ScheduleSettings


# %% [markdown]
# The slices of a stream stay on the device as bytes, and a batch is made there from a list of numbers. That is all the data loading there is. The order is a function of the seed and the epoch.

# %%
#| export
class Stream:
    "Slices on the device, and the order in which they come."
    def __init__(self, slices: SliceSet, data: SliceData, sampler: EpochSampler):
        self.slices, self.data, self.sampler = slices, data, sampler
        self.epoch, self.order = -1, []

    def __len__(self) -> int: return len(self.sampler)  # batches an epoch

    def batches(self, epoch: int) -> list[torch.Tensor]:
        "The batches of an epoch: the numbers of their slices, for all processes together."
        if self.epoch != epoch:
            self.epoch, self.order = epoch, self.sampler.batches(epoch)
        return self.order

    def index(self, step: int) -> torch.Tensor:
        "The batch of one step, in an endless sequence of epochs."
        epoch, place = divmod(step, len(self))
        return self.batches(epoch)[place]

    def names(self, index: torch.Tensor) -> list[str]:
        "The names of slices, for messages."
        return [self.slices.names[i] for i in index]


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
    data = SliceData(slices, device or setup.plan.device, setup.image_size, pixels)
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
    return first, make_stream(phase.extra, setup, phase.name, "extra", pixels=pixels, device=device)


# %%
labelled, extra = make_streams(Phase("x", slices[slices.labelled], extra=slices[~slices.labelled]), four)
for step in range(3): print(step, labelled.names(labelled.index(step)), extra.names(extra.index(step)))
