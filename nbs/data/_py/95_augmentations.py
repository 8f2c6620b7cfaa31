# %% [markdown]
# # Augmentations by name
#
# > What is done to every batch before the network sees it, by name; and how to add your own.
#
# - skip_showdoc: true

# %%
#| default_exp data.augmentations

# %%
#| export
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.core.registry import Registry
from ctseg.core.settings import Settings, setting
from ctseg.data.augment import MILD, NO_AUGMENT, STRONG, Augment
from ctseg.data.batches import Batch
from ctseg.data.geometry import mirror

# %%
#| hide
from dataclasses import replace

from fastcore.test import test_eq

from ctseg.core.settings import describe
from ctseg.data.batches import SliceData
from ctseg.data.toys import toy_set

# %% [markdown]
# An augmentation is a function of a batch, a random generator and the class map. It returns a new batch, and says what becomes of `known`.

# %%
#| export
AUGMENTATIONS = Registry("augmentation")

def register_augmentation(name: str) -> Callable[[Any], Any]:
    """A decorator for a function (batch, generator, classes) -> Batch, by the name that recipes find it by.

    It may also be a class with `Settings` whose instances are such functions."""
    return AUGMENTATIONS.register(name)

AUGMENTATIONS.entries |= {"none": NO_AUGMENT, "mild": MILD, "strong": STRONG}


# %%
@register_augmentation("darker")
def darker(batch, generator, classes): return replace(batch, image=0.9*batch.image)

print(AUGMENTATIONS.names())


# %% [markdown]
# Left and right may be mirrored on top. The mirror swaps the labels of paired organs, so every class needs its counterpart.

# %%
#| export
class AugmentSettings(Settings):
    "How images are varied in training."
    name: str = setting("mild", "none, mild, strong, or a registered one")
    mirror: str = setting(
        "",
        "flip left and right and swap lateral labels: "
        "vertical for the challenge's images, horizontal for imported volumes; empty: never",
        choices=("", "vertical", "horizontal"))

def augment_settings(name: str) -> type[AugmentSettings]:
    "The settings of the augmentation called `name`."
    return getattr(AUGMENTATIONS.get(name), "Settings", AugmentSettings)


# %%
print(describe(augment_settings("mild")))


# %%
#| export
@dataclass(frozen=True)
class _Mirrored:
    "An augmentation after a mirror that flips half of the images."
    augment: Callable
    axis: str  # of the image: "vertical" or "horizontal"

    def __call__(self, batch: Batch, generator: torch.Generator, classes: ClassMap) -> Batch:
        flipped = torch.rand(len(batch), generator=generator, device=generator.device) < 0.5
        batch = mirror(batch, classes, self.axis, flipped.to(batch.mask.device))
        return self.augment(batch, generator, classes)

def make_augment(settings: AugmentSettings, classes: ClassMap) -> Callable[..., Batch]:
    """The augmentation that a recipe's settings describe: (batch, generator, classes) -> Batch.

    `InputError` if a class that shall be mirrored has no counterpart."""
    entry = AUGMENTATIONS.get(settings.name)
    augment = entry(settings) if isinstance(entry, type) else entry
    if not settings.mirror:
        return augment
    odd = classes.unpaired_sides
    if odd:
        names = ", ".join(odd[:3]) + (" …" if len(odd) > 3 else "")
        raise InputError(f"mirror = {settings.mirror}: {names} has no counterpart on the other side "
                         "among the classes, so a mirrored slice would teach the wrong side; "
                         "leave mirror out")
    if isinstance(augment, Augment):
        return augment.with_mirror(settings.mirror)
    return _Mirrored(augment, settings.mirror)


# %%
toys, _ = toy_set(8, 8)
batch = SliceData(toys, "cpu").batch(torch.arange(8))
make = make_augment(AugmentSettings(name="darker", mirror="horizontal"), toys.classes)
new = make(batch, torch.Generator().manual_seed(0), toys.classes)
print([bool((a != 0.9*b).any()) for a, b in zip(new.image, batch.image)], "are mirrored")
test_eq(make_augment(AugmentSettings(), toys.classes), MILD)
del AUGMENTATIONS.entries["darker"]
