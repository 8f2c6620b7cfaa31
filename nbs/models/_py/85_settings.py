# %% [markdown]
# # Settings of a network
#
# > What a recipe says about its network, and the network it describes.

# %%
#| default_exp models.settings

# %%
#| export
from typing import Any

from ctseg.core.settings import Settings, describe, setting
from ctseg.models.base import EncoderDecoder
from ctseg.models.encoders import NORMS, STATISTICS
from ctseg.models.zoo import create_model, model_entry, model_keywords

# %%
#| hide
from fastcore.test import test_eq

from ctseg.models.base import count_parameters


# %% [markdown]
# A recipe is a text, and part of it describes the network. Every network has a name, a width, and perhaps a presence head. Those with a pretrained encoder have more to say.

# %%
#| export
class ModelSettings(Settings):
    "Settings of any network."
    name: str = setting("attunet", "see `ctseg models`")
    width: int = setting(0, "channels at full resolution; 0: the network's own default", low=0)
    weights: str = setting("", "start from this file; empty: from fresh weights")
    presence: float = setting(
        0.0, "weight of a presence head (is the class on this image at all?); 0: no such head", low=0,
    )


# %%
#| export
class EncoderSettings(ModelSettings):
    "Settings of a network with an encoder of timm."
    pretrained: bool = setting(True, "the encoder starts from published weights, where there are some")
    frozen: bool = setting(False, "the encoder does not learn")
    frozen_levels: int = setting(
        0, "levels of the encoder that do not learn, counted from the finest; saves time", low=0, high=5)
    statistics: str = setting(
        "encoder", "of grey values: those the encoder was trained with, or ImageNet's", choices=STATISTICS)
    light: bool = setting(False, "a U-Net decoder that is thinner at its coarse levels; saves time")
    half: bool = setting(False, "a U-Net decoder that stops at half the resolution; for enlarged images")
    norm: str = setting("batch", "of the decoder above it: \"group\" for small batches", choices=NORMS)
    fallback: str = setting(
        "", "network to take where the published weights or the package are missing; empty: stop")
    from_size: int = setting(
        0, "images with fewer pixels a side are left to the fallback as well", low=0, high=4096)


# %%
for info in describe(EncoderSettings): print(f"{info.name:12}", getattr(EncoderSettings(), info.name))


# %%
#| export
def model_settings(name: str) -> type[ModelSettings]:
    "The settings of the network called `name`."
    entry = model_entry(name)
    if entry.Settings is not None: return entry.Settings
    return EncoderSettings if "pretrained" in model_keywords(name) else ModelSettings


# %%
for name in ("attunet", "unet:resnet34"):
    print(name, [info.name for info in describe(model_settings(name))])

# %% [markdown]
# A setting that the network's constructor takes is passed on. A trained network fetches no weights.

# %%
#| export
OF_THE_RECIPE = ("name", "fallback", "from_size")  # say which network it is, and nothing to the network
OWN_CHOICE = {"width": 0, "weights": "", "norm": "batch"}  # what leaves the choice to the network


def model_options(
    settings: ModelSettings,
    classes: int, # C, without background
    image_size: int | None = None, # nnU-Net plans its depth for it
    trained: bool = False, # its weights will be loaded anyway
) -> dict[str, Any]:
    "The keywords for `create_model`."
    taken = model_keywords(settings.name)
    values = {info.name: getattr(settings, info.name) for info in describe(type(settings))}
    values["presence"] = classes if settings.presence else 0
    if image_size and "image_size" in taken:
        values["image_size"] = image_size
    if "pretrained" in values and (trained or settings.weights):
        values["pretrained"] = False
    if trained: values["weights"] = ""

    def passed(key: str) -> bool:
        "Is it said to the network? What is switched on reaches each: one that does not know it refuses."
        own_choice = key in OWN_CHOICE and values[key] == OWN_CHOICE[key]
        if key in OF_THE_RECIPE or own_choice: return False
        return bool(values[key]) or key in taken
    return {key: value for key, value in values.items() if passed(key)}


# %%
print(model_options(ModelSettings(width=16, presence=0.5), classes=3))
encoder = EncoderSettings(name="unet:resnet34", frozen=True)
print(model_options(encoder, 3))
print(model_options(encoder, 3, trained=True))


# %% [markdown]
# The network itself:

# %%
#| export
def make_model(
    settings: ModelSettings,
    out_chans: int, # channels of the logits
    classes: int, # C, without background
    image_size: int | None = None, # nnU-Net plans its depth for it
    trained: bool = False, # its weights will be loaded anyway
    in_chans: int = 1, # grey images at once: a slice, and perhaps those beside it
) -> EncoderDecoder:
    "The network that a recipe's settings describe, for grey images and `out_chans` channels of logits."
    options = model_options(settings, classes, image_size, trained)
    return create_model(settings.name, in_chans, out_chans, **options)


# %%
model = make_model(ModelSettings(width=4, presence=1), out_chans=4, classes=3)
print(f"{type(model).__name__}: {count_parameters(model):,} parameters")
test_eq(model.presence.linear.out_features, 3)
