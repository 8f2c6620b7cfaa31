# %% [markdown]
# # The zoo
#
# > Every architecture by its name.
#
# - skip_showdoc: true

# %%
#| default_exp models.zoo

# %%
#| export
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from ctseg.core.arguments import checks_arguments
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.registry import Registry
from ctseg.core.settings import Settings
from ctseg.models.attunet import AttentionUNet
from ctseg.models.base import EncoderDecoder, check_counts, depthwise_in_float32, load_weights
from ctseg.models.encoders import DECODERS, EncoderNet
from ctseg.models.missformer import MISSFormer
from ctseg.models.nnunet import NNUNet, NNUNetResEnc
from ctseg.models.presence import with_presence
from ctseg.models.uctransnet import UCTransNet

# %%
#| hide
import pandas as pd
import torch
from fastcore.test import test_eq
from torch import nn

from ctseg.core.errors import InputError
from ctseg.models.base import EncoderDecoder


# %% [markdown]
# A recipe names its network with a word, `--set model=missformer`, so you can compare architectures in a loop over names. This page holds the
# table of names and the one function that turns a name into a network: `create_model("missformer", in_chans=1, out_chans=55)`.

# %% [markdown]
# ## The table
#
# The page of an architecture only defines a class. Here each class is entered into the table, with the paper it comes from.

# %%
#| export
@dataclass(frozen=True)
class ModelEntry:
    "A row of the table: how to build a network and where it comes from."
    name: str
    build: Callable[..., EncoderDecoder]  # build(in_chans, out_chans, **kw)
    paper: str  # authors, year and link
    about: str = ""  # one line
    Settings: type[Settings] | None = None  # None: those of any network, see `ctseg.models.settings`


MODELS = Registry("model")


def list_models() -> list[str]:
    "The names that `create_model` takes. `DECODER:ENCODER` with other encoders of timm works as well."
    return MODELS.names()


# %%
row = ModelEntry("attunet", AttentionUNet, "Oktay et al. 2018, arXiv 1804.03999")
print(row.name, "from", row.paper)


# %% [markdown]
# `register_model` adds a network of your own: a decorator over anything that takes `in_chans, out_chans`.

# %%
#| export
def register_model(
    name: str, # what `create_model` will call it
    paper: str = "", # authors, year, arXiv number
    about: str = "", # one line for `ctseg models`
    settings: type[Settings] | None = None, # a subclass of `ModelSettings`, for more than the width
) -> Callable[[Callable], Callable]: # a decorator of what takes (in_chans, out_chans, **kw)
    "Enter a network into the table under `name`."
    def enter(build: Callable) -> Callable:
        MODELS.register(name)(ModelEntry(name, build, paper, about, settings))
        return build
    return enter


# %%
@register_model("one-conv", about="a single convolution, for this page")
class OneConv(EncoderDecoder):
    def __init__(self, in_chans, out_chans):
        super().__init__()
        self.head = nn.Conv2d(in_chans, out_chans, 3, padding=1)

    def encode(self, x): return [x]

    def decode(self, features, size): return self.head(features[0])

print(list_models())
assert "one-conv" in list_models()


# %% [markdown]
# The networks of the package:

# %%
#| export
def _enter(name: str, build: Callable, paper: str, about: str) -> None:
    "One row of the table."
    register_model(name, paper, about)(build)


_enter(
    "attunet", AttentionUNet, "Oktay et al. 2018, arXiv 1804.03999",
    "U-Net with attention gates; starts from random numbers, needs no further package",
)
_enter(
    "missformer", MISSFormer, "Huang et al. 2021, arXiv 2109.07162",
    "U-shaped transformer with a bridge across its levels",
)
_enter(
    "uctransnet", UCTransNet, "Wang et al. 2022, arXiv 2109.04335",
    "U-Net with attention among channels instead of skips",
)
_enter(
    "nnunet", NNUNet, "Isensee et al. 2021, doi 10.1038/s41592-020-01008-z",
    "nnU-Net's plain U-Net, planned for the image size",
)
_enter(
    "nnunet-resenc", NNUNetResEnc, "Isensee et al. 2024, arXiv 2404.09556",
    "nnU-Net's residual-encoder U-Net",
)

# %%
print(MODELS.get("nnunet-resenc").about)


# %% [markdown]
# And those with pretrained encoders:

# %%
#| export
def _enter_encoder(name: str, paper: str, about: str) -> None:
    "One row of the table, for a network called DECODER:ENCODER."
    decoder, _, encoder = name.partition(":")
    _enter(name, partial(EncoderNet, decoder=decoder, encoder=encoder), paper, about)


_LITE = "Liu et al. 2020, github.com/tensorflow/tpu (EfficientNet-Lite)"
_DPT = "Ranftl et al. 2021, arXiv 2103.13413"
_enter_encoder(
    "unet:resnet34", "He et al. 2016, arXiv 1512.03385",
    "ImageNet ResNet-34 under a U-Net decoder",
)
_enter_encoder(
    "unet:tf_efficientnet_lite0", _LITE,
    "ImageNet EfficientNet-Lite0 under a U-Net decoder; its weights need no hub",
)
_enter_encoder(
    "unet:efficientnet_b7", "Tan and Le 2019, arXiv 1905.11946",
    "ImageNet EfficientNet-B7 under a U-Net decoder",
)
_enter_encoder(
    "segformer:mit_b3", "Xie et al. 2021, arXiv 2105.15203",
    "ImageNet Mix Transformer under SegFormer's decoder",
)
_enter_encoder(
    "dpt:vit_small_patch16_dinov3.lvd1689m", f"Siméoni et al. 2025, arXiv 2508.10104; {_DPT}",
    "DINOv3 ViT-S under a DPT decoder",
)
_enter_encoder(
    "dpt:vit_small_patch14_dinov2.lvd142m", f"Oquab et al. 2023, arXiv 2304.07193; {_DPT}",
    "DINOv2 ViT-S under a DPT decoder",
)

# %%
print(*(name for name in list_models() if ":" in name), sep="\n")


# %% [markdown]
# The encoders in the table are those that were tried; every other one of timm's is reached by the same form of name.

# %%
#| export
def model_entry(name: str) -> ModelEntry:
    "The row of the table for `name`; an unknown name raises an `InputError` with the nearest ones."
    if name in MODELS.entries: return MODELS.entries[name]
    decoder, colon, encoder = name.partition(":")
    if colon and encoder:
        build = partial(EncoderNet, decoder=decoder, encoder=encoder)
        return ModelEntry(name, build, "", f"{encoder} under a {decoder} decoder")
    with_encoder = [model for model in MODELS if model.startswith(f"{name}:")]
    if with_encoder:
        raise InputError(f"unknown model {name!r}; did you mean {' or '.join(with_encoder)}?")
    return MODELS.get(name)


# %%
print(model_entry("unet:resnet18").about)


# %%
#| export
def model_keywords(name: str) -> list[str]:
    "The keywords that `create_model` takes for this network, beside `presence` and `weights`."
    fixed = ("self", "in_chans", "out_chans", "decoder", "encoder", "options")
    build = model_entry(name).build
    options = getattr(getattr(build, "func", build), "Options", None)  # of a network with many
    more = [] if options is None else [field.name for field in fields(options)]
    return [k for k in inspect.signature(build).parameters if k not in fixed] + more


# %%
rows = [model_entry(name) for name in list_models()]
table = pd.DataFrame([(e.name, e.about, e.paper) for e in rows], columns=["name", "what", "paper"])
table.style.set_uuid("zoo").hide(axis="index")

# %%
for name in ("attunet", "uctransnet", "unet:resnet34"): print(name, model_keywords(name))


# %% [markdown]
# ## From a name to a network
#
# Any network can also have a [presence head](20_presence.ipynb), and weights from a file. A keyword that the network does not know is most often a typing mistake, so
# the error names the nearest ones.

# %%
#| export
def _check_keywords(name: str, given: dict[str, object]) -> None:
    "`InputError` for a keyword that the network called `name` does not take."
    taken = model_keywords(name)
    of_encoders = model_keywords("unet:resnet34")
    for keyword in given:
        if keyword in taken: continue
        if keyword in of_encoders:
            suited = ", ".join(f"{decoder}:…" for decoder in DECODERS)
            raise InputError(f"{name} has no pretrained encoder; {keyword!r} is for {suited}")
        raise did_you_mean(f"{name} keyword", keyword, [*taken, "presence"])


# %%
try: _check_keywords("attunet", dict(widht=16))
except InputError as e: print(e)


# %%
#| export
@checks_arguments
def create_model(
    name: str,
    in_chans: int = 1,
    out_chans: int = 55,
    presence: int = 0,
    weights: str | Path | None = None,
    **kw,
) -> EncoderDecoder:
    """Build a network by name: f32 `[B, in_chans, H, W]` to logits `[B, out_chans, H, W]`.

    name: one of `list_models()`, or DECODER:ENCODER. out_chans: a loss tells how many it wants (`loss.out_chans(C)`).
    presence: classes of a presence head; 0: no head. weights: a file of this very network, or of a pretrained encoder.
    kw: the network's own settings, such as `width=16`. Unknown names and keywords, impossible sizes and unfit weights
    raise an `InputError`.
    """
    entry = model_entry(name)
    check_counts(name, in_chans=in_chans, out_chans=out_chans)
    _check_keywords(name, kw)
    reads_files = "weights" in model_keywords(name)  # as those with a pretrained encoder do
    if reads_files: kw["weights"] = weights
    model = depthwise_in_float32(entry.build(in_chans, out_chans, **kw))
    if weights is not None and not reads_files: load_weights(model, weights)
    return with_presence(model, presence) if presence else model


# %%
model = create_model("attunet", 1, 8, width=8, presence=7)
logits, presence = model(torch.rand(2, 1, 61, 47), presence=True)
print("logits", tuple(logits.shape), "presence", tuple(presence.shape))
test_eq((logits.shape, presence.shape), ((2, 8, 61, 47), (2, 7)))
test_eq(create_model("one-conv", 1, 3)(torch.rand(1, 1, 5, 6)).shape, (1, 3, 5, 6))


# %% [markdown]
# Mistakes end in one line:

# %%
def refusal(*args, **kw):
    try: create_model(*args, **kw)
    except InputError as e: print(e)

refusal("atunet")
refusal("attunet", widht=16)
refusal("attunet", 1, 0)
refusal("attunet", width=0)
refusal("attunet", weights="nowhere.safetensors")
refusal("unnet:resnet34")
refusal("unet")
refusal("attunet", frozen=True)
