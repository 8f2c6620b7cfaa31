# %% [markdown]
# # Recipe
#
# > All that decides how a run comes out, apart from the data and the seed: nested, frozen, complete.

# %%
#| default_exp runs.recipe

# %%
#| export
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ctseg.methods  # noqa: F401 registers the methods
from ctseg.core.arguments import shown_argument
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.meant import meant
from ctseg.core.registry import Plugin, plugins_of
from ctseg.core.schema import Unexpected, fields, text
from ctseg.core.settings import SettingInfo, Settings, carried_over, describe, parsed, setting
from ctseg.data.augmentations import AUGMENTATIONS, AugmentSettings, augment_settings
from ctseg.losses.registry import LOSSES, MaskedSettings
from ctseg.models.settings import ModelSettings, model_settings
from ctseg.models.zoo import MODELS
from ctseg.runs.options import CHOSEN, OPTIONS, as_option
from ctseg.runs.split import DataSettings
from ctseg.training.method import METHODS
from ctseg.training.setup import ComputeSettings, ScheduleSettings

# %%
#| hide
import pandas as pd
from fastcore.test import test_eq

from ctseg.runs.recipe import Recipe

# %% [markdown]
# A recipe is everything that `ctseg fit` needs beside the data and the seed. It has eight groups of settings. Four of them belong to something chosen by name: the method, the network, the loss and the augmentation. Each group is declared [where it is used](../core/20_settings.ipynb), and the recipe puts them together.

# %%
mine = Recipe("mine").change(loss="marginal", log_dice=True, lr=1e-3, epochs=40)
print(mine)
for key in ("lr", "model", "model.width"): print(key, "=", mine.value(key))
try: mine.change(tau=0.9)
except InputError as e: print(e)


# %%
#| export
def method_settings(name: str) -> type[Settings]:
    "The settings of the method called `name`."
    return METHODS.get(name).Settings

def loss_settings(name: str) -> type[Settings]:
    "The settings of the loss called `name`."
    return LOSSES.get(name).Settings

CHOICES: dict[str, Callable[[str], type[Settings]]] = {
    "method": method_settings,
    "model": model_settings,
    "loss": loss_settings,
    "augment": augment_settings,
}
REGISTRIES = {
    "method": METHODS,
    "model": MODELS,
    "loss": LOSSES,
    "augment": AUGMENTATIONS,
}
GROUPS = (*CHOICES, "schedule", "data", "compute", "rule")


# %%
#| export
class RuleSettings(Settings):
    "Settings of what follows the training: the choice of the decision rule."
    tune_rule: bool = setting(True, "choose the decision rule on the held-out slices; else argmax")
    least_peak: float = setting(
        0.0, "where no rule is chosen: least probability that a structure must reach somewhere to be drawn",
        low=0, high=1)


# %%
for group, name in {
    "method": "supervised",
    "model": "attunet",
    "loss": "marginal",
    "augment": "mild",
}.items():
    print(f"{group} = {name}: {[info.name for info in describe(CHOICES[group](name))]}")


# %% [markdown]
# A setting is found by its own name as long as only one group has it, and by `GROUP.NAME` always.

# %%
#| export
def names_of(settings: Settings) -> dict[str, SettingInfo]:
    "The declarations of a group by their names; the name of a choice is none of its settings."
    return {info.name: info for info in describe(type(settings)) if info.name != "name"}

def owners_of(kind: str, key: str) -> list[str]:
    "The methods, networks, losses or augmentations (by `kind`) whose settings have one called `key`."
    return [name for name in REGISTRIES[kind] if key in names_of(CHOICES[kind](name)())]


# %% [markdown]
# Some settings had another name, or gave way to another one. Who still types the old name is told the new one. Who brings the name of
# another program is told [what it may mean here](../core/04_meant.ipynb), by the declared meanings.

# %%
#| export
RENAMED = {
    "warm": "supervised_first", "second": "second_phase",
    "gate": "cell_confidence", "pixel": "pixel_confidence", "absent": "absent_peak",
}
REPLACED = RENAMED | {"completion": "teacher_weight"}


# %%
#| export
def _meanings_of(settings: Settings) -> dict[str, str]:
    "What the settings of a group mean, by their names, with the valid texts."
    infos = names_of(settings)
    return {name: "; ".join([info.meaning, *(info.choices or ())]) for name, info in infos.items()}

def all_meanings(groups: Mapping[str, Settings]) -> dict[str, str]:
    "What each option, each choice and each setting of some groups means, by its name."
    meanings = {as_option(name): meaning for name, meaning in OPTIONS.items()}
    meanings |= {kind: CHOSEN[kind] for kind in CHOICES if kind in groups}
    for settings in groups.values():
        meanings |= _meanings_of(settings)
    return meanings


# %% [markdown]
# The message shows of each name what it means, up to the first semicolon.

# %%
#| export
def no_setting(what: str, key: str, meanings: Mapping[str, str]) -> InputError:
    "The error for a setting that is not among those with `meanings`: its successor, or what may be meant."
    if REPLACED.get(key) in meanings:
        return InputError(f"unknown {what} {key!r}; {REPLACED[key]!r} has taken its place")
    if key in OPTIONS:
        problem = f"it is no part of a recipe: give it as {as_option(key)}"
        return InputError(f"unknown {what} {key!r}; {problem}")
    near = [f"{name} ({meanings[name].partition(';')[0]})" for name in meant(key, meanings)]
    hint = f"did you mean {' or '.join(near)}?" if near else "`ctseg recipes NAME` lists all, none is like it"
    return InputError(f"unknown {what} {key[:200]!r}; {hint}")

def unknown_setting(groups: dict[str, Settings], key: str) -> InputError:
    "The error for a setting that no group has; it names the choices that would have one of that name."
    for kind in [kind for kind in CHOICES if kind in groups]:
        others = ", ".join(owners_of(kind, key))
        if others:
            problem = f"the {kind} {groups[kind].name} has none of that name, only {others}"
            return InputError(f"unknown setting {key!r}: {problem}")
    return no_setting("setting", key, all_meanings(groups))


# %%
print(list(names_of(ModelSettings())), owners_of("loss", "log_dice"))
print(unknown_setting({"model": ModelSettings()}, "frozen"))
for foreign in ("completion", "learning_rate", "bs", "backbone", "gpus", "momentum"):
    print(unknown_setting(Recipe().groups(), foreign))


# %%
#| export
def locate(groups: dict[str, Settings], key: str) -> tuple[str, str]:
    "The group and the name of a setting; an unknown or ambiguous `key` raises `InputError`."
    group, dot, name = key.partition(".")
    if dot:
        if group not in groups:
            raise did_you_mean("group of settings", group, groups)
        if name not in names_of(groups[group]):
            elsewhere = [owner for owner, settings in groups.items() if name in names_of(settings)]
            if elsewhere:
                raise InputError(f"unknown setting of {group} {name!r}; did you mean {elsewhere[0]}.{name}?")
            raise no_setting(f"setting of {group}", name, _meanings_of(groups[group]))
        return group, name
    owners = [candidate for candidate, settings in groups.items() if key in names_of(settings)]
    if not owners:
        raise unknown_setting(groups, key)
    if len(owners) > 1:
        both = " or ".join(f"{owner}.{key}" for owner in owners)
        raise InputError(f"the setting {key!r} is ambiguous; give {both}")
    return owners[0], key


# %%
groups = {"loss": loss_settings("marginal")(), "schedule": ScheduleSettings()}
print(locate(groups, "lr"), locate(groups, "loss.log_dice"))
for wrong in ("lrate", "loss.epochs", "los.log_dice"):
    try: locate(groups, wrong)
    except InputError as e: print(e)


# %%
#| export
def chosen(group: str, name: str, old: Settings | None = None) -> Settings:
    "The settings of what is called `name`; those of `old` that were changed are kept, where both have them."
    if not isinstance(name, str):
        raise InputError(f"{group} is {shown_argument(name)}; expected its name, or its settings")
    kind = CHOICES[group](name)
    names = [info.name for info in describe(kind)]
    given = {"name": name} if "name" in names else {}
    if "fallback" in names:
        given["fallback"] = ""  # what is asked for by name is not replaced
    if old is None:
        return kind(**given)
    return carried_over(old, kind, **given)


# %%
print(chosen("model", "unet:resnet34"), chosen("loss", "marginal", MaskedSettings(log_dice=True)))


# %%
#| export
@dataclass(frozen=True, repr=False)
class Recipe:
    "What a run does. Frozen: `recipe.change(lr=1e-3)` gives a changed copy."
    name: str = "custom"
    about: str = ""
    method: Settings = method_settings("supervised")()
    model: ModelSettings = ModelSettings()
    loss: Settings = MaskedSettings()
    augment: AugmentSettings = AugmentSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    data: DataSettings = DataSettings()
    compute: ComputeSettings = ComputeSettings()
    rule: RuleSettings = RuleSettings()

    def __repr__(self) -> str:
        default, parts = type(self)(), [f"name={self.name!r}"]
        for group, settings in self.groups().items():
            if settings != getattr(default, group):
                parts.append(f"{group}={settings!r}")
        return f"Recipe({', '.join(parts)})"

    def __reduce__(self) -> tuple:
        "A pickle holds what `recipe.json` holds: no classes."
        return recipe_from, (recipe_dict(self),)

    def groups(self) -> dict[str, Settings]:
        "The groups of settings by their names."
        return {group: getattr(self, group) for group in GROUPS}

    def value(self, key: str) -> Any:
        "The value of a setting, by its name or by GROUP.NAME; of a choice, the name of what is chosen."
        if key in CHOICES:
            return getattr(self, key).name
        group, name = locate(self.groups(), key)
        return getattr(getattr(self, group), name)

    def change(self, **values: Any) -> "Recipe":
        "A copy with other values, see `changed_recipe`."
        return changed_recipe(self, values)


# %% [markdown]
# Choices are changed first, then what they have.

# %%
#| export
def changed_recipe(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    "A copy with other values, by the names that `Recipe.value` takes; choices by name or as settings."
    given: dict[str, Any] = {}
    for key in ("name", "about", *GROUPS):
        if key not in values:
            continue
        value = values[key]
        by_name = key in CHOICES and not isinstance(value, Settings)
        if key in GROUPS and not by_name and not isinstance(value, Settings):
            raise InputError(f"{key} is {shown_argument(value)}; expected its settings, "
                             "or give each of them by its own name")
        given[key] = chosen(key, value, getattr(recipe, key)) if by_name else value
    recipe = dataclasses.replace(recipe, **given)
    by_group: dict[str, dict[str, Any]] = {}
    for key in [key for key in values if key not in given]:
        group, name = locate(recipe.groups(), key)
        by_group.setdefault(group, {})[name] = values[key]
    changed = {group: dataclasses.replace(getattr(recipe, group), **new) for group, new in by_group.items()}
    return dataclasses.replace(recipe, **changed)


# %%
recipe = Recipe("mine", loss=loss_settings("marginal")(log_dice=True)).change(
    lr=1e-3, model="unet:resnet34", frozen=True
)
print(recipe)
print(recipe.value("lr"), recipe.value("loss.log_dice"), recipe.value("model"))
test_eq(recipe.change(loss="masked").loss, MaskedSettings(log_dice=True))  # what both losses have is kept


# %% [markdown]
# ## From the command line
#
# Settings arrive as text. Their declaration says how to read them, and a misspelt one names its neighbours.

# %%
#| export
def apply_settings(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    "A copy of `recipe` with `KEY=VALUE` texts applied, those that choose by name first."
    texts: dict[str, str] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: expected KEY=VALUE")
        texts[key] = value
    recipe = recipe.change(**{key: texts.pop(key) for key in CHOICES if key in texts})
    values = {}
    for key, text in texts.items():
        group, name = locate(recipe.groups(), key)
        if f"{group}.{name}" in values:
            raise InputError(f"--set {key}={text}: given twice, as {name} and as {group}.{name}")
        values[f"{group}.{name}"] = parsed(names_of(getattr(recipe, group))[name], text)
    return recipe.change(**values)


# %%
print(apply_settings(Recipe(), ["width=16", "epochs=40", "mirror=vertical", "loss=marginal", "log_dice=yes"]))
for wrong in ("with=16", "width=wide", "width", "epochs=0", "tau=0.9", "model=atunet"):
    try: print(apply_settings(Recipe(), [wrong]))
    except InputError as e: print(e)


# %% [markdown]
# `ctseg fit --epochs 5` is a mistake, and the error should propose `--set epochs=5`. So we ask whether any recipe has a setting of that name.

# %%
#| export
def is_setting(key: str) -> bool:
    "Does a recipe have a setting or a choice of this name, whatever method, network, loss and augmentation it has?"
    fixed = [group for group in GROUPS if group not in CHOICES]
    known = any(key in names_of(getattr(Recipe, group)) for group in fixed)
    return key in CHOICES or known or any(owners_of(kind, key) for kind in CHOICES)


# %% [markdown]
# Five settings of some part of a recipe, and two words that are none:

# %%
test_eq(
    [is_setting(key) for key in ("epochs", "model", "tau", "frozen", "log_dice", "name", "sede")],
    [True]*5 + [False]*2,
)


# %% [markdown]
# ## To and from a file
#
# `recipe.json` holds every setting, also those at their defaults, because a later version may have other defaults.

# %%
#| export
def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    "All of a recipe as nested dictionaries."
    parts: dict[str, Any] = {"name": recipe.name, "about": recipe.about}
    for group, settings in recipe.groups().items():
        named = {"name": settings.name} if group in CHOICES else {}
        parts[group] = named | dataclasses.asdict(settings)
    return parts

_PARTS = fields({}, {"name": text, "about": text} | {group: fields({}, {"name": text}) for group in GROUPS})


# %%
#| export
def recipe_from(parts: dict[str, Any]) -> Recipe:
    "The recipe that nested dictionaries describe; `InputError` for an unknown name or a value that does not fit."
    try:
        _PARTS(parts)
    except Unexpected as e:
        raise InputError(f"recipe: {e}") from None
    odd = parts.keys() - {"name", "about", *GROUPS}
    if odd:
        raise did_you_mean("group of settings", min(odd), GROUPS)
    groups = {group: group_from(group, dict(parts.get(group, {}))) for group in GROUPS}
    return Recipe(parts.get("name", "custom"), parts.get("about", ""), **groups)

def group_from(group: str, values: dict[str, Any]) -> Settings:
    "One group of settings; what is left out gets its default."
    default = getattr(Recipe, group)
    start = chosen(group, values.pop("name", default.name)) if group in CHOICES else default
    odd = values.keys() - names_of(start).keys()
    if odd:
        raise did_you_mean(f"setting of {group}", min(odd), names_of(start))
    return dataclasses.replace(start, **values)


# %%
parts = recipe_dict(recipe)
print({group: parts[group] for group in ("method", "model", "loss")})
test_eq(recipe_from(parts), recipe)
try: recipe_from({"schedule": {"epochs": "many"}})
except InputError as e: print(e)


# %% [markdown]
# A table of all settings of a recipe, with their meaning, is made from the declarations too.

# %%
#| export
def recipe_fields(recipe: Recipe) -> list[tuple[str, Any, Any, str]]: # GROUP.NAME, value, default, meaning
    "Every setting of a recipe; a choice has its group's name."
    rows = []
    for group, settings in recipe.groups().items():
        if group in CHOICES:
            names = ", ".join(REGISTRIES[group].names())
            meaning = f"{CHOSEN[group]}, one of: {names}"
            rows.append((group, settings.name, getattr(Recipe, group).name, meaning))
        for name, info in names_of(settings).items():
            rows.append((f"{group}.{name}", getattr(settings, name), info.default, info.meaning))
    return rows


# %%
changed = [row for row in recipe_fields(recipe) if row[1] != row[2]]
pd.DataFrame(changed, columns=["setting", "value", "default", "meaning"])


# %% [markdown]
# What was registered by a plugin needs that plugin again.

# %%
#| export
def recipe_plugins(recipe: Recipe) -> list[Plugin]:
    "The plugins that registered what the recipe has chosen."
    entries = []
    for group, registry in REGISTRIES.items():
        name = getattr(recipe, group).name
        if name in registry:  # a network may be none of the table: DECODER:ENCODER
            entries.append(registry.get(name))
    return plugins_of(entries)


# %% [markdown]
# This recipe uses nothing but what comes with the package:

# %%
test_eq(recipe_plugins(recipe), [])


# %% [markdown]
# Two runs are compared by what their recipes do not share.

# %%
#| export
def recipe_differences(recipes: list[Recipe]) -> list[tuple[str, list[Any]]]:
    "The settings in which recipes differ: name, and its value in each recipe, or \"–\" where it has none."
    tables = []
    for recipe in recipes:
        values = {key: value for key, value, _, _ in recipe_fields(recipe)}
        tables.append({"name": recipe.name} | values)
    rows = []
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [table.get(key, "–") for table in tables]
        if any(value != values[0] for value in values):
            rows.append((key, values))
    return rows


# %%
for row in recipe_differences([Recipe(), Recipe().change(loss="dice", lr=1e-3)]): print(row)
