# %% [markdown]
# # What a network costs
#
# > Its parameters and multiply-adds, and the time and memory of a training step.
#
# - skip_showdoc: true

# %%
#| default_exp models.costs

# %%
#| export
import gc
import mmap
import threading
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ctseg.core.allocator import return_freed
from ctseg.models.base import EncoderDecoder, count_parameters
from ctseg.models.zoo import create_model, model_entry, model_keywords

# %%
#| hide
import pandas as pd
from fastcore.test import test_eq
from torch import nn

from ctseg.models.base import EncoderDecoder
from ctseg.models.zoo import create_model, list_models


# %% [markdown]
# Four numbers tell whether a network fits your machine and your time. Two are properties of the network: its parameters, and its multiply-adds for one image. The other two, time and
# memory, depend on the machine as well.
#
# To count multiply-adds, PyTorch passes a *meta* tensor through the network. It has a shape but no content, so this takes no time. Attention is counted in its plain form, whatever kernel will run.

# %%
#| export
def multiply_adds(
    model: EncoderDecoder, # its weights are lost: it ends on the meta device
    size: int = 256, # height and width of the image
    in_chans: int = 1,
) -> int:
    "Multiplications with addition in a forward pass of one image, `[1, in_chans, size, size]`."
    model = model.to("meta").eval()
    image = torch.empty(1, in_chans, size, size, device="meta")
    with FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(image)
    return flops.get_total_flops()//2


# %%
class OneConv(EncoderDecoder):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(1, 3, 3, padding=1)

    def encode(self, x): return [x]

    def decode(self, features, size): return self.head(features[0])

print(f"one convolution, 10x10: {multiply_adds(OneConv(), 10)}")
print(f"attunet, 1 -> 55 channels, 256x256: {multiply_adds(create_model('attunet'))/1e9:.1f} billion")
test_eq(multiply_adds(OneConv(), 10), 3*9*100)  # 3 outputs of 9 weights at 100 pixels

# %% [markdown]
# ## Memory
#
# We measure the time of a training step for each image, and its peak of memory. On a GPU, PyTorch counts the memory. On a CPU nothing does, so
# a thread watches how much the process occupies. That is a little coarse, and works on Linux only.

# %%
#| export
OCCUPIED = Path("/proc/self/statm")  # of a process on Linux; the second number counts pages


def process_bytes() -> int:
    "Bytes of memory that this process occupies. Linux only."
    return int(OCCUPIED.read_text().split()[1])*mmap.PAGESIZE


# %%
print("this system tells:", OCCUPIED.exists() and process_bytes() > 2**20)


# %%
#| export
class PeakMemory:
    "Context: `.mb` is the peak of memory inside, beyond that in use at the start; NaN where it cannot be measured."

    def __init__(self, device: str | torch.device):
        self.device = torch.device(device)
        self.mb = float("nan")
        self._start = self._peak = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _watch(self) -> None:
        while not self._stop.wait(.002):
            self._peak = max(self._peak, process_bytes())

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        elif OCCUPIED.exists():
            gc.collect()
            return_freed()  # what the process keeps for later would hide what comes
            self._start = self._peak = process_bytes()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        if self.device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self.device)
        elif self._thread is None: return
        else:
            self._stop.set()
            self._thread.join()
            self._peak = max(self._peak, process_bytes())
        self.mb = (self._peak - self._start)/2**20


# %%
with PeakMemory("cpu") as peak:
    ones = torch.ones(64, 2**18)  # 64 MB
print("about 64 MB:", peak.mb != peak.mb or 60 < peak.mb < 80)
assert peak.mb != peak.mb or peak.mb > 60


# %% [markdown]
# ## A training step
#
# Random images, forward, backward, AdamW. One step warms up, then the fastest of a few counts.

# %%
#| export
def _training_step(model: nn.Module, images: torch.Tensor, opt: torch.optim.Optimizer) -> float:
    "Seconds of one step."
    on_gpu = images.device.type == "cuda"
    if on_gpu: torch.cuda.synchronize()
    start = time.perf_counter()
    out = model(images)
    sizes = out if isinstance(out, list) else [out]
    loss = torch.as_tensor(sum(logits.float().square().mean() for logits in sizes))
    opt.zero_grad()
    loss.backward()
    opt.step()
    if on_gpu: torch.cuda.synchronize()
    return time.perf_counter() - start


# %% [markdown]
# How long a step takes depends on the machine, so we only test that it takes some time.

# %%
tiny = create_model("attunet", width=4)
assert _training_step(tiny, torch.rand(1, 1, 32, 32), torch.optim.AdamW(tiny.parameters())) > 0


# %%
#| export
def step_cost(
    model: EncoderDecoder,
    size: int = 256,
    batch: int = 2,
    in_chans: int = 1,
    device: str | torch.device = "cpu",
    steps: int = 3, # timed, after one to warm up
) -> tuple[float, float]: # milliseconds for an image (the fastest step); peak MB
    "Time and memory of a training step (forward, backward, AdamW) with random images."
    with PeakMemory(device) as peak:
        model = model.to(device).train()
        opt = torch.optim.AdamW(model.parameters())
        images = torch.rand(batch, in_chans, size, size, device=device)
        seconds = [_training_step(model, images, opt) for _ in range(steps + 1)]
    return 1000*min(seconds[1:])/batch, peak.mb


# %% [markdown]
# Time and memory differ from machine to machine, so they are not printed. Memory is NaN on a CPU without Linux.

# %%
milliseconds, megabytes = step_cost(create_model("attunet", width=4), size=32, steps=1)
assert milliseconds > 0 and (megabytes > 0 or megabytes != megabytes)

# %% [markdown]
# ## All about a network

# %%
#| export
CHANNELS = 1, 55 # in and out, as for the challenge
BATCH = 2

def model_facts(
    name: str, # one of `list_models()`
    size: int = 256,
    device: str | torch.device = "cpu",
    measure: bool = True, # also run training steps; large networks take seconds on a CPU
    **kw, # for `create_model`
) -> dict[str, object]:
    "What a network costs: parameters, multiply-adds, and measured time and memory of a training step."
    if "pretrained" in model_keywords(name):
        kw = dict(pretrained=False) | kw  # the same network, without its download
    entry = model_entry(name)
    model = create_model(name, *CHANNELS, **kw)
    facts = dict(name=name, parameters=count_parameters(model))
    facts |= dict(multiply_adds=multiply_adds(model, size, CHANNELS[0]), size=size, device=str(device))
    if measure:
        model = create_model(name, *CHANNELS, **kw)
        facts["ms_per_image"], facts["peak_mb"] = step_cost(model, size, BATCH, CHANNELS[0], device)
    return facts | dict(paper=entry.paper, about=entry.about)


# %%
facts = model_facts("attunet", size=64, width=8)
measured = {key: facts.pop(key) for key in ("ms_per_image", "peak_mb")}  # differ from run to run
print(facts)
assert measured["ms_per_image"] > 0

# %% [markdown]
# The sizes of all, without running them:

# %%
rows = [model_facts(name, measure=False) for name in list_models()]
table = pd.DataFrame({
    "name": [f["name"] for f in rows],
    "million parameters": [f"{f['parameters']/1e6:.1f}" for f in rows],
    "billion multiply-adds at 256x256": [f"{f['multiply_adds']/1e9:.1f}" for f in rows],
})
table.style.set_uuid("zoo").hide(axis="index")
