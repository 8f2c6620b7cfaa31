# %% [markdown]
# # Old recipes
#
# > Runs of ctseg 0.1, whose recipe was one flat list, are read through one table of translations.

# %%
#| default_exp runs.old_recipe

# %%
#| export
from importlib import metadata
from typing import Any

from ctseg.core.errors import InputError
from ctseg.runs.recipe import CHOICES, RENAMED, Recipe, chosen, names_of, recipe_dict

# %%
#| hide
from fastcore.test import test_eq

from ctseg.runs.recipe import recipe_from

# %% [markdown]
# The old recipe had every setting of every method. Those of the run's own method, loss and network are kept under their new names.

# %%
#| export
OF_METHODS = """
    unlabelled confidence keep consistency ramp perturb warm second second_lr tau views feature_dropout
    rebalance cutmix teachers rounds quota gate absent pixel finetune_epochs finetune_lr"""
OF_LOSSES_AND_NETWORKS = "w_dice w_pixel reduction pixel_known log_dice pretrained frozen norm"
NOT_EVERYWHERE = {*OF_METHODS.split(), *OF_LOSSES_AND_NETWORKS.split()}
ORIGINALS = ("attunet", "teacher-student", "pretrain-finetune")
LATER = {"model": {"statistics": "imagenet"}}  # settings that came later still, with what was done before
GONE = {"data": ("completion",)}  # settings that are no more, and say nothing of a finished run
OLD_NAMES = {f"seed-{name}": f"original-{name}" for name in ORIGINALS}  # of recipes


# %%
#| export
def is_old(parts: dict[str, Any]) -> bool:
    "Is this the flat recipe of ctseg 0.1?"
    return isinstance(parts.get("method"), str)

def new_place(recipe: Recipe, old: str) -> tuple[str, str] | None:
    "The group and the name that a setting of ctseg 0.1 has in `recipe`; None if it has none such."
    for group, settings in recipe.groups().items():
        for name in (old, RENAMED.get(old)):
            if name in names_of(settings): return group, name
    if old in NOT_EVERYWHERE: return None
    raise InputError(f"the field {old!r} is unknown to this ctseg ({metadata.version('ctseg')})")


# %%
print(new_place(Recipe(), "lr"), new_place(Recipe(), "gate"))


# %%
#| export
def nested(flat: dict[str, Any]) -> dict[str, Any]:
    "A flat recipe as nested dictionaries; `InputError` for a setting that ctseg 0.1 did not have."
    for group in ("name", "about", *CHOICES):
        if not isinstance(flat.get(group, ""), str):
            raise InputError(f"{group} = {flat[group]!r}: expected a text")
    choices = {group: chosen(group, flat[group]) for group in CHOICES if group in flat}
    recipe = Recipe(**choices)
    parts = recipe_dict(recipe)
    name = flat.get("name", "custom")
    parts["name"] = OLD_NAMES.get(name, name)
    parts["about"] = flat.get("about", "")
    for group, values in LATER.items():
        for later in values:
            parts[group].pop(later, None)
    for old, value in flat.items():
        if old in ("name", "about", *CHOICES): continue
        place = new_place(recipe, old)
        if place is not None:
            group, setting = place
            parts[group][setting] = value
    return parts


# %% [markdown]
# A setting that came later is missing in an older file. Its default may be better than what was done before, but the run was trained as before.

# %%
#| export
def as_before(parts: dict[str, Any]) -> dict[str, Any]:
    "The nested dictionaries of a run's recipe, with the settings that it could not know at what was done then."
    completed = dict(parts)
    for group, values in LATER.items():
        given = parts.get(group, {})
        if not isinstance(given, dict):
            continue  # who makes settings of it tells
        if "name" in given:
            settings = names_of(chosen(group, given["name"]))
            before = {name: value for name, value in values.items() if name in settings}
            given = before | given
        completed[group] = dict(given)
    for group, names in GONE.items():
        if isinstance(completed.get(group), dict):
            completed[group] = {name: value for name, value in completed[group].items() if name not in names}
    return completed


# %%
saved = recipe_dict(Recipe().change(model="unet:resnet34"))
del saved["model"]["statistics"]
saved["data"]["completion"] = 0.9
print(as_before(saved)["model"]["statistics"], as_before(recipe_dict(Recipe()))["model"])
assert as_before(saved)["data"] == recipe_dict(Recipe())["data"]

# %%
flat = {
    "name": "marginal-log",
    "method": "supervised",
    "loss": "marginal",
    "log_dice": True,
    "lr": 0.01,
    "gate": 0.7,
    "fold": 1,
}
recipe = recipe_from(nested(flat))
print(recipe)
test_eq((is_old(flat), is_old(recipe_dict(recipe))), (True, False))
try: nested(flat | {"colour": "red"})
except InputError as e: print(e)
