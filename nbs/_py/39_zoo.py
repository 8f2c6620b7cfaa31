# %% [markdown]
# # The zoo
#
# > Every architecture by its name, and what each one costs.
#
# - skip_showdoc: true

# %%
#| default_exp models.zoo

# %% [markdown]
# A recipe names its network with a word, `--set model=missformer`, so that comparing architectures is a loop over words. This notebook holds the
# table of words and the one function that turns a word into a network.

# %%
#| export
import ctypes, gc, inspect, threading, time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ctseg.files import InputError, did_you_mean
from ctseg.models.base import EncoderDecoder, check_counts, count_parameters, load_weights, with_presence
from ctseg.models.attunet import AttentionUNet
from ctseg.models.encoders import EncoderNet
from ctseg.models.missformer import MISSFormer
from ctseg.models.nnunet import NNUNet, NNUNetResEnc
from ctseg.models.uctransnet import UCTransNet

# %%
#| hide
import pandas as pd
from torch import nn
from fastcore.test import test_eq


# %% [markdown]
# ## The table
#
# An architecture's notebook knows nothing of this table; it only defines a class. Here each is entered with the paper it comes from.
# `register_model` is also the way to add a network of your own: a decorator over anything that takes `in_chans, out_chans`.

# %%
#| export
@dataclass(frozen=True)
class ModelEntry:
    "A row of the table: how to build a network and where it comes from."
    name: str
    build: Callable          # build(in_chans, out_chans, **kw) -> EncoderDecoder
    paper: str               # authors, year and link
    about: str = ""          # one line

_MODELS: dict[str, ModelEntry] = {}

def register_model(
    name: str, # what `create_model` will call it
    paper: str = "", # authors, year, arXiv number
    about: str = "", # one line for `ctseg models`
): # a decorator for a class or function of (in_chans, out_chans, **kw)
    "Enter a network into the table under `name`."
    def enter(build):
        _MODELS[name] = ModelEntry(name, build, paper, about)
        return build
    return enter

def list_models() -> list[str]:
    "The names that `create_model` takes. `DECODER:ENCODER` with other encoders of timm works as well."
    return list(_MODELS)


# %%
#| export
for name, build, paper, about in [
    ("attunet", AttentionUNet, "Oktay et al. 2018, arXiv 1804.03999", "U-Net with attention gates; the default"),
    ("missformer", MISSFormer, "Huang et al. 2021, arXiv 2109.07162", "U-shaped transformer with a bridge across its levels"),
    ("uctransnet", UCTransNet, "Wang et al. 2022, arXiv 2109.04335", "U-Net with attention among channels instead of skips"),
    ("nnunet", NNUNet, "Isensee et al. 2021, doi 10.1038/s41592-020-01008-z", "nnU-Net's plain U-Net, planned for the image size"),
    ("nnunet-resenc", NNUNetResEnc, "Isensee et al. 2024, arXiv 2404.09556", "nnU-Net's residual-encoder U-Net"),
]: register_model(name, paper, about)(build);

for name, paper, about in [
    ("unet:resnet34", "He et al. 2016, arXiv 1512.03385", "ImageNet ResNet-34 under a U-Net decoder"),
    ("unet:efficientnet_b7", "Tan and Le 2019, arXiv 1905.11946", "ImageNet EfficientNet-B7 under a U-Net decoder"),
    ("segformer:mit_b3", "Xie et al. 2021, arXiv 2105.15203", "ImageNet Mix Transformer under SegFormer's decoder"),
    ("dpt:vit_small_patch16_dinov3.lvd1689m", "Siméoni et al. 2025, arXiv 2508.10104; Ranftl et al. 2021, arXiv 2103.13413", "DINOv3 ViT-S under a DPT decoder"),
    ("dpt:vit_small_patch14_dinov2.lvd142m", "Oquab et al. 2023, arXiv 2304.07193; Ranftl et al. 2021, arXiv 2103.13413", "DINOv2 ViT-S under a DPT decoder"),
]: register_model(name, paper, about)(partial(EncoderNet, **dict(zip(("decoder", "encoder"), name.split(":")))));


# %% [markdown]
# The encoders in the table are those that were tried; every other one of timm's is reached by the same form of name.

# %%
#| export
def model_entry(name: str) -> ModelEntry:
    "The row of the table for `name`; an unknown name raises an `InputError` with the nearest ones."
    if name in _MODELS: return _MODELS[name]
    decoder, colon, encoder = name.partition(":")
    if colon and encoder: return ModelEntry(name, partial(EncoderNet, decoder=decoder, encoder=encoder), "", f"{encoder} under a {decoder} decoder")
    if whole := [m for m in _MODELS if m.startswith(f"{name}:")]: raise InputError(f"unknown model {name!r}; did you mean {' or '.join(whole)}?")
    raise did_you_mean("model", name, _MODELS)


# %%
pd.DataFrame([(e.name, e.about, e.paper) for e in map(model_entry, list_models())], columns=["name", "what", "paper"]).style.set_uuid("zoo").hide(axis="index")


# %% [markdown]
# ## From a name to a network
#
# Two things any network can have come last: a presence head and weights from a file. A keyword that the network does not know is a
# mistake of the user, most often a typing mistake, so it is answered like a misspelt name.

# %%
#| export
def create_model(
    name: str, # one of `list_models()`, or DECODER:ENCODER
    in_chans: int = 1, # channels of the image
    out_chans: int = 55, # channels of the logits; a loss tells how many it wants (`loss.out_chans(C)`)
    presence: int = 0, # classes of a presence head; 0: no head
    weights=None, # a local weights file of this very network, or of a pretrained encoder
    **kw, # the network's own settings, e.g. `width=16`
) -> EncoderDecoder:
    "Build a network by name. Unknown names and keywords, impossible sizes and unfit weights raise an `InputError`."
    entry = model_entry(name)
    check_counts(name, in_chans=in_chans, out_chans=out_chans)
    own = model_keywords(name)
    for k in kw:
        if k in own: continue
        if k in model_keywords("unet:resnet34"): raise InputError(f"{name} has no pretrained encoder; {k!r} is for unet:…, segformer:…, dpt:…")
        raise did_you_mean(f"{name} keyword", k, [*own, "presence"])
    itself = "weights" in own  # a pretrained encoder reads its files itself
    model = entry.build(in_chans, out_chans, **kw, **(dict(weights=weights) if itself else {}))
    if weights is not None and not itself: load_weights(model, weights)
    return with_presence(model, presence) if presence else model

def model_keywords(name: str) -> list[str]:
    "The keywords that `create_model` takes for this network, beside `presence` and `weights`."
    return [k for k in inspect.signature(model_entry(name).build).parameters if k not in ("self", "in_chans", "out_chans", "decoder", "encoder")]


# %%
model = create_model("attunet", 1, 8, width=8, presence=7)
logits, there = model(torch.rand(2, 1, 61, 47), presence=True)
test_eq((logits.shape, there.shape), ((2, 8, 61, 47), (2, 7)))
for name in "attunet", "uctransnet", "unet:resnet34": print(name, model_keywords(name))


# %%
def say(*args, **kw):
    try: create_model(*args, **kw)
    except InputError as e: print(e)

say("atunet")
say("attunet", widht=16)
say("attunet", 1, 0)
say("attunet", width=0)
say("attunet", weights="nowhere.safetensors")
say("unnet:resnet34")
say("unet")
say("attunet", frozen=True)


# %% [markdown]
# A network of one's own is a few lines away:

# %%
@register_model("one-conv", about="a single convolution, for this page")
class OneConv(EncoderDecoder):
    def __init__(self, in_chans, out_chans):
        super().__init__()
        self.head = nn.Conv2d(in_chans, out_chans, 3, padding=1)
    def encode(self, x): return [x]
    def decode(self, features, size): return self.head(features[0])

test_eq(create_model("one-conv", 1, 3)(torch.rand(1, 1, 5, 6)).shape, (1, 3, 5, 6))


# %% [markdown]
# ## What does it cost?
#
# Four numbers tell whether a network fits a machine and an evening. Two are properties of the network: its parameters and its multiply-adds for one image. PyTorch counts the latter
# by passing a *meta* tensor through, which has a shape but no content, so it costs nothing. (Attention is counted in its plain form, whatever kernel will run.)

# %%
#| export
def multiply_adds(model: EncoderDecoder, size: int = 256, in_chans: int = 1) -> int:
    "Multiplications with addition in a forward pass of one `size` x `size` image. The model's weights are lost: it ends on the meta device."
    model = model.to("meta").eval()
    with FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.empty(1, in_chans, size, size, device="meta"))
    return flops.get_total_flops()//2


# %%
test_eq(multiply_adds(create_model("one-conv", 1, 3), 10), 3*9*100)       # 3 outputs of 9 weights at 100 pixels
print(f"attunet, 1 -> 55 channels, 256x256: {multiply_adds(create_model('attunet'))/1e9:.1f} billion")


# %% [markdown]
# The other two belong to the machine as well: the time of a training step for each image, and the peak of memory in it. On a GPU, PyTorch keeps book of the memory. On a CPU nobody does, so
# a thread watches what the process occupies; that is a little coarse, and only Linux tells it.

# %%
#| export
class PeakMemory:
    "Context: `.mb` is the peak of memory inside, beyond what was in use at the start. NaN where the system does not tell."
    def __init__(self, device): self.device, self.mb = torch.device(device), float("nan")

    def _used(self): return int(Path("/proc/self/statm").read_text().split()[1])*4096

    def _watch(self):
        while not self._stop.wait(.002): self._peak = max(self._peak, self._used())

    def __enter__(self):
        self._stop = threading.Event()
        if self.device.type == "cuda": torch.cuda.reset_peak_memory_stats(self.device); self._start = torch.cuda.memory_allocated(self.device)
        elif Path("/proc/self/statm").exists():
            gc.collect()
            if trim := getattr(ctypes.CDLL(None), "malloc_trim", None): trim(0)  # what was freed and kept for later would hide what comes
            self._start = self._peak = self._used()
            self._thread = threading.Thread(target=self._watch, daemon=True); self._thread.start()
        return self

    def __exit__(self, *exc):
        self._stop.set()
        if self.device.type == "cuda": self.mb = (torch.cuda.max_memory_allocated(self.device) - self._start)/2**20
        elif hasattr(self, "_thread"): self._thread.join(); self.mb = (max(self._peak, self._used()) - self._start)/2**20


# %%
#| export
def step_cost(
    model: EncoderDecoder, size: int = 256, batch: int = 2, in_chans: int = 1,
    device="cpu", steps: int = 3, # timed, after one to warm up
) -> tuple[float, float]: # milliseconds for an image (the fastest step); peak MB
    "Time and memory of a training step (forward, backward, AdamW) with random images."
    with PeakMemory(device) as peak:
        model = model.to(device).train()
        opt = torch.optim.AdamW(model.parameters())
        x, best = torch.rand(batch, in_chans, size, size, device=device), float("inf")
        wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
        for i in range(steps + 1):
            wait(); t = time.perf_counter()
            out = model(x)
            loss = sum(z.float().square().mean() for z in (out if isinstance(out, list) else [out]))
            opt.zero_grad(); loss.backward(); opt.step(); wait()
            if i: best = min(best, time.perf_counter() - t)
    return 1000*best/batch, peak.mb

def model_facts(
    name: str, # one of `list_models()`
    size: int = 256, out_chans: int = 55, in_chans: int = 1,
    device="cpu", batch: int = 2,
    measure: bool = True, # also run training steps; large networks take seconds on a CPU
    **kw, # for `create_model`
) -> dict:
    "What a network costs: parameters, multiply-adds, and measured time and memory of a training step."
    if "pretrained" in model_keywords(name): kw = dict(pretrained=False) | kw  # the same network, without its download
    make = lambda: create_model(name, in_chans, out_chans, **kw)
    model = make()
    facts = dict(name=name, parameters=count_parameters(model), multiply_adds=multiply_adds(model, size, in_chans), size=size, device=str(device))
    if measure: facts["ms_per_image"], facts["peak_mb"] = step_cost(make(), size, batch, in_chans, device)
    return facts | dict(paper=model_entry(name).paper, about=model_entry(name).about)


# %%
facts = model_facts("attunet", size=64, width=8)
print({k: v for k, v in facts.items() if k not in ("ms_per_image", "peak_mb")})    # the other two differ from run to run
assert facts["ms_per_image"] > 0 and (facts["peak_mb"] > 1 or facts["peak_mb"] != facts["peak_mb"])

# %% [markdown]
# The sizes of all, without running them:

# %%
rows = [model_facts(n, measure=False) for n in list_models() if n != "one-conv"]
pd.DataFrame([(f["name"], f"{f['parameters']/1e6:.1f}", f"{f['multiply_adds']/1e9:.1f}") for f in rows],
             columns=["name", "million parameters", "billion multiply-adds at 256x256"]).style.set_uuid("zoo").hide(axis="index")

# %%
#| hide
import nbdev; nbdev.nbdev_export()
