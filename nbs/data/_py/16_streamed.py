# %% [markdown]
# # Streamed batches
#
# > Batches of slices that do not fit the device, read while it computes.
#
# - skip_showdoc: true

# %%
#| default_exp data.streamed

# %% [markdown]
# [`SliceData`](15_batches.ipynb) keeps all slices on the device, which is the fastest way as long as they fit. `StreamedData` keeps none. It reads the
# pixels of a batch, from a [store](74_store.ipynb) or from the host's memory, and makes of them what `SliceData` makes. Which slices the next
# batches hold is known beforehand, so a thread reads these while the device computes.

# %%
#| export
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from ctseg.data.batches import Batch, SliceData
from ctseg.data.slices import SliceSet
from ctseg.data.stacks import Stacks

# %%
#| hide
from dataclasses import replace

import numpy as np
from fastcore.test import test_eq

from ctseg.data.batches import SliceData
from ctseg.data.stacks import stacks_of
from ctseg.data.toys import toy_set


# %% [markdown]
# ## Reading ahead

# %%
#| export
class Ahead:
    "Answers of a slow function, asked for ahead of time in one thread, in order."
    def __init__(self,
        ask: Callable[[torch.Tensor], tuple], # of a batch: slice numbers int64 [B]
        most: int = 8, # answers that may wait; the oldest are dropped
    ):
        self.ask, self.most = ask, most
        self.waiting: dict[bytes, Future] = {}
        self.thread: ThreadPoolExecutor|None = None

    def expect(self, index: torch.Tensor):
        "Begin to read the rows `index`, int64 [B], if that has not been begun."
        key = index.numpy().tobytes()
        if key in self.waiting: return
        if self.thread is None:
            self.thread = ThreadPoolExecutor(1, "ctseg reads ahead")
        self.waiting[key] = self.thread.submit(self.ask, index)
        while len(self.waiting) > self.most:
            self.waiting.pop(next(iter(self.waiting))).cancel()

    def __call__(self, index: torch.Tensor) -> tuple:
        "The answer, at once if it was expected long enough ago."
        future = self.waiting.pop(index.numpy().tobytes(), None)
        return self.ask(index) if future is None else future.result()


# %%
asked = []
ahead = Ahead(lambda index: (asked.append(index.tolist()), index.sum().item()), most=2)
for numbers in ([1, 2], [3], [1, 2], [4]): ahead.expect(torch.tensor(numbers))
test_eq([ahead(torch.tensor(numbers))[1] for numbers in ([3], [4], [1, 2])], [3, 4, 3])
print("asked, in order:", sorted(asked, key=str))


# %% [markdown]
# ## Batches
#
# The thread reads bytes. All that is computed from them, from resizing to augmentation, is the business of the device and of the main thread. So
# the batches are the same to the last bit.

# %%
#| export
class _Pixels(NamedTuple):
    "What `SliceData` reads of a `SliceSet`, of the slices of one batch."
    images: np.ndarray
    masks: np.ndarray
    known: np.ndarray
    present: np.ndarray
    stacks: Stacks|None = None

    @property
    def image_shape(self) -> tuple[int, int]:
        "Height and width of the images."
        return self.images.shape[1:]

def _read(slices: SliceSet, index: np.ndarray) -> _Pixels:
    "The slices at `index`, read."
    known, present = slices.known[index], slices.present[index]
    if slices.stacks is None:
        return _Pixels(slices.images[index], slices.masks[index], known, present)
    stacks = slices.stacks.take(index).in_memory()
    images = np.asarray(stacks.narrowed(0))[:, 0]
    return _Pixels(images, slices.masks[index], known, present, stacks)


# %%
toys, truth = toy_set(12, 8)
test_eq(_read(toys, np.array([3, 0])).images, toys.images[[3, 0]])


# %%
#| export
class StreamedData:
    "As `SliceData`, but the pixels of a batch are read when it is asked for, or ahead of time if it is expected."
    def __init__(self,
        slices: SliceSet, # lazy or not
        device = "cpu",
        image_size: int|tuple[int, int]|None = None, # `None`: as they are
        weights: np.ndarray|None = None, # bool [N,H,W]: which pixels teach; `None`: all
    ):
        self.slices, self.device, self.image_size, self.weights = slices, device, image_size, weights
        self.pixels = Ahead(self._read)

    def __len__(self): return len(self.slices)

    def _read(self, index: torch.Tensor) -> tuple:
        "The pixels of a batch, and which of them teach."
        i = index.numpy()
        weights = None if self.weights is None else np.asarray(self.weights[i])
        return _read(self.slices, i), weights

    def expect(self, index: torch.Tensor):
        "Read the slices at `index`, int64 [B], ahead of time."
        self.pixels.expect(torch.as_tensor(index, dtype=torch.int64))

    def batch(self, index) -> Batch:
        "The slices at `index`."
        index = torch.as_tensor(index, dtype=torch.int64)
        pixels, weights = self.pixels(index)
        batch = SliceData(pixels, self.device, self.image_size, weights).batch(torch.arange(len(index)))
        return replace(batch, index=index.to(batch.mask.device))


# %%
for size in (None, 32, (40, 24)):
    whole, streamed = SliceData(toys, image_size=size), StreamedData(toys, image_size=size)
    for index in ([3, 0, 7], [5]):
        streamed.expect(index)
        one, other = whole.batch(index), streamed.batch(index)
        for part in ("image", "mask", "known", "index"): test_eq(getattr(one, part), getattr(other, part))

# %% [markdown]
# Neighbours are read with the slices they belong to.

# %%
stacks = stacks_of(toys.images, np.zeros(12, int), np.arange(12), 1)
beside = replace(toys, stacks=stacks)
for size in (None, 32):
    one, other = (kind(beside, image_size=size).batch([0, 5, 7]) for kind in (SliceData, StreamedData))
    test_eq((one.image, one.mask), (other.image, other.mask))
test_eq(other.image.shape, (3, 3, 32, 32))
