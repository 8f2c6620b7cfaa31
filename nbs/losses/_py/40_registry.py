# %% [markdown]
# # Losses by name
#
# > Every loss by its name, with its settings; and how to add your own.
#
# - skip_showdoc: true

# %%
#| default_exp losses.registry

# %%
#| export
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ctseg.core.arguments import checks_arguments
from ctseg.core.errors import did_you_mean
from ctseg.core.registry import Registry
from ctseg.core.settings import Settings, checked, describe, setting, settings_of
from ctseg.core.unions import Unions
from ctseg.losses.fused import CrossEntropyDiceLoss, DiceLoss, MarginalSoftmaxLoss, MaskedSigmoidLoss
from ctseg.losses.partial import PartialLoss

# %%
#| hide
from fastcore.test import test_eq

from ctseg.core.errors import InputError


# %% [markdown]
# A [recipe](../recipes/10_table.ipynb) is text, so it names its loss. A table says which loss a name stands for, and which of its settings a recipe may set. Anyone can add a row.
#
# ## The table

# %%
#| export
@dataclass(frozen=True)
class LossEntry:
    "A row of the table: how to build a loss, and the settings that recipes have of it."
    build: Callable[..., PartialLoss]
    Settings: type[Settings]
    spelling: dict[str, str] = field(default_factory=dict)  # settings that the constructor calls otherwise

LOSSES = Registry("loss")

# %%
LOSSES.names()


# %%
#| export
def register_loss(
    name: str, # what recipes call it
    settings: type[Settings] | None = None, # None: made from the constructor's keywords and their defaults
    **spelling: str, # setting="keyword": where the constructor calls a setting otherwise
) -> Callable[[Any], Any]: # a decorator for a class or function that returns a `PartialLoss`
    "A decorator that enters a loss into the table under `name`, with its `Settings`."
    def enter(build: Callable[..., PartialLoss]) -> Callable[..., PartialLoss]:
        kind = settings_of(build) if settings is None else settings
        kind.name = name
        LOSSES.register(name)(LossEntry(build, kind, spelling))
        return build
    return enter


# %% [markdown]
# ## The losses of the package
#
# Recipes call the weight of the cross-entropy `w_pixel`, whatever the loss calls it.

# %%
#| export
class DiceSettings(Settings):
    "Settings of the original's loss: none."

class CrossEntropyDiceSettings(Settings):
    "Settings of a sum of Dice and cross-entropy."
    w_dice: float = setting(1.0, "weight of the Dice term", low=0)
    w_pixel: float = setting(1.0, "weight of the cross-entropy term", low=0)
    reduction: str = setting(
        "batch", "of the Dice term: over the batch, or image by image", choices=("batch", "image"),
    )

class MaskedSettings(CrossEntropyDiceSettings):
    "Settings of a loss that reads what is known."
    pixel_known: bool = setting(True, "a pixel of one structure is a certain negative for all others")
    log_dice: bool = setting(False, "−ln Dice instead of 1 − Dice: a missed class keeps its gradient")

class MarginalSettings(MaskedSettings):
    "The same for softmax outputs."


# %%
for info in describe(MaskedSettings): print(f"{info.name:12} {info.default!r:8} {info.meaning}")

# %%
#| export
register_loss("dice", DiceSettings)(DiceLoss)
register_loss("ce-dice", CrossEntropyDiceSettings, w_pixel="w_ce")(CrossEntropyDiceLoss)
register_loss("masked", MaskedSettings, w_pixel="w_bce")(MaskedSigmoidLoss)
register_loss("marginal", MarginalSettings, w_pixel="w_ce")(MarginalSoftmaxLoss)

# %%
LOSSES.names()


# %% [markdown]
# ## Making one
#
# `create_loss` takes the keywords of the class, and `make_loss` the settings of a recipe.

# %%
#| export
def _checked_keywords(entry: LossEntry, keywords: dict[str, Any]) -> dict[str, Any]:
    "Those of the keywords that are settings, each one checked as it is in a recipe."
    valid = {}
    for info in describe(entry.Settings):
        keyword = entry.spelling.get(info.name, info.name)
        if keyword in keywords:
            valid[keyword] = checked(replace(info, name=keyword), keywords[keyword])
    return valid

@checks_arguments
def create_loss(
    name: str,
    **keywords,
) -> PartialLoss:
    """A loss of logits `[B, C or C+1, …]`, masks int64 `[B, …]` and known bool `[B, C]`, by its name.

    name: dice, ce-dice, masked, marginal, or a registered one. keywords: of that loss. An unknown name or keyword
    raises `InputError` with the nearest valid ones.
    """
    build = LOSSES.get(name).build
    valid = inspect.signature(build).parameters
    for keyword in keywords:
        if keyword not in valid:
            raise did_you_mean(f"option of the loss {name!r}", keyword, valid)
    return build(**keywords | _checked_keywords(LOSSES.get(name), keywords))


# %%
loss = create_loss("masked", focal_gamma=2.)
test_eq((loss.activation, loss.out_chans(54), loss.focal_gamma), ("sigmoid", 54, 2.))
for name, keywords in (("marginl", {}), ("masked", dict(gamma=2.)), ("marginal", dict(reduction="pixel"))):
    try: create_loss(name, **keywords)
    except InputError as e: print(e)


# %%
#| export
def make_loss(
    settings: Settings,
    unions: Unions = (), # classes of the data that are made of others
) -> PartialLoss:
    "The loss that a recipe's settings describe."
    entry = LOSSES.get(settings.name)
    keywords = {}
    for info in describe(type(settings)):
        keyword = entry.spelling.get(info.name, info.name)
        keywords[keyword] = getattr(settings, info.name)
    loss = entry.build(**keywords)
    loss.unions = unions
    return loss


# %% [markdown]
# The recipe says `w_pixel`, which this loss calls `w_bce`.

# %%
test_eq(make_loss(MaskedSettings(w_pixel=0.3)).w_bce, 0.3)
test_eq(MarginalSettings(log_dice=True).name, "marginal")


# %% [markdown]
# ## Your own
#
# A loss is a class like those on [the first page](10_partial.ipynb). Its settings are the keywords of its constructor, unless a `Settings` class says more about them.

# %%
@register_loss("quiet")
class QuietLoss(MarginalSoftmaxLoss):
    "An example: the marginal loss, a little quieter."
    def __init__(self, volume: float = 0.5):
        super().__init__()
        self.volume = volume

    def forward(self, logits, mask, known, weight=None):
        return self.volume*super().forward(logits, mask, known, weight)

QuietSettings = LOSSES.get("quiet").Settings
print(
    create_loss("quiet", volume=0.1).volume,
    make_loss(QuietSettings(volume=0.2)).volume,
    QuietSettings(volume=0.2),
)
