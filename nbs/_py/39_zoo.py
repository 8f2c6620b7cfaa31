# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The zoo
#
# > Every architecture by its name.
#
# - skip_showdoc: true

# %%
#| default_exp models.zoo

# %% [markdown]
# A recipe names its network with a word, `--set model=missformer`, so that comparing architectures is a loop over words. This notebook holds the
# table of words and the one function that turns a word into a network.

# %%
#| export
import inspect
from dataclasses import dataclass
from typing import Callable

from ctseg.files import InputError, did_you_mean
from ctseg.models.base import EncoderDecoder, check_counts, count_parameters, load_weights, with_presence
from ctseg.models.attunet import AttentionUNet

# %%
#| hide
import torch
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
    "The names that `create_model` takes."
    return list(_MODELS)

def model_entry(name: str) -> ModelEntry:
    "The row of the table for `name`; an unknown name raises an `InputError` with the nearest ones."
    if name in _MODELS: return _MODELS[name]
    raise did_you_mean("model", name, _MODELS)


# %%
#| export
for name, build, paper, about in [
    ("attunet", AttentionUNet, "Oktay et al. 2018, arXiv 1804.03999", "U-Net with attention gates; the default"),
]: build = register_model(name, paper, about)(build)


# %% [markdown]
# ## From a name to a network
#
# Two things any network can have come last: a presence head and weights from a file. A keyword that the network does not know is a
# mistake of the user, most often a typing mistake, so it is answered like a misspelt name.

# %%
#| export
def create_model(
    name: str, # one of `list_models()`
    in_chans: int = 1, # channels of the image
    out_chans: int = 55, # channels of the logits; a loss tells how many it wants (`loss.out_chans(C)`)
    presence: int = 0, # classes of a presence head; 0: no head
    weights=None, # a local weights file of this very network
    **kw, # the network's own settings, e.g. `width=16`
) -> EncoderDecoder:
    "Build a network by name. Unknown names and keywords, impossible sizes and unfit weights raise an `InputError`."
    entry = model_entry(name)
    check_counts(name, in_chans=in_chans, out_chans=out_chans)
    own = [k for k in inspect.signature(entry.build).parameters if k not in ("self", "in_chans", "out_chans")]
    for k in kw:
        if k not in own: raise did_you_mean(f"{name} keyword", k, [*own, "presence", "weights"])
    model = entry.build(in_chans, out_chans, **kw)
    if presence: with_presence(model, presence)
    return load_weights(model, weights) if weights is not None else model


# %%
model = create_model("attunet", 1, 8, width=8, presence=7)
logits, there = model(torch.rand(2, 1, 61, 47), presence=True)
test_eq((logits.shape, there.shape), ((2, 8, 61, 47), (2, 7)))


# %%
def say(*args, **kw):
    try: create_model(*args, **kw)
    except InputError as e: print(e)

say("atunet")
say("attunet", widht=16)
say("attunet", 1, 0)
say("attunet", width=0)


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
print(list_models())

# %%
#| hide
import nbdev; nbdev.nbdev_export()
