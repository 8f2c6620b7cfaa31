# %% [markdown]
# # Settings
#
# > A setting is declared once, with its default, its range and its meaning.

# %%
#| default_exp core.settings

# %%
#| export
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform, get_type_hints

from ctseg.core.errors import InputError, did_you_mean

# %%
#| hide
from typing import Annotated

from fastcore.test import test_eq


# %% [markdown]
# ## What they look like
#
# Every part of the package that can be adjusted declares its settings in a class, as below: default, meaning, range. The command line (`--set tau=0.8`), the error texts, the tables in the docs and `recipe.json` are all made from this declaration.

# %%
#| export
def setting(
    default: Any, # its type is that of the annotation: bool, int, float or str
    meaning: str, # one line for help texts and tables
    *,
    low: float | None = None, # smallest valid number
    high: float | None = None, # largest valid number
    choices: Iterable[str] | Callable[[], Iterable[str]] | None = None, # valid texts, or what lists them
) -> Any: # a dataclass field
    "Declare a field of a `Settings` class."
    facts = {"meaning": meaning, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=facts)


# %%
field = setting(0.9, "confidence that settles a pixel", low=0.5, high=1)
print(field.default, dict(field.metadata))

# %% [markdown]
# `SettingInfo` is the same declaration as the rest of the package reads it.

# %%
#| export
TYPE_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}

@dataclass(frozen=True)
class SettingInfo:
    "The declaration of one setting."
    name: str
    type: type
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None

    @property
    def expected(self) -> str:
        "The valid values, in words."
        if self.choices is not None:
            return ", ".join(map(repr, self.choices))
        if self.high is not None:
            return f"{self.low} to {self.high}"
        return TYPE_WORDS[self.type] if self.low is None else f"at least {self.low}"


# %%
tau = SettingInfo("tau", float, 0.9, "confidence that settles a pixel", 0.5, 1)
print(tau.expected)


# %% [markdown]
# A value may come from Python, or as a text from the command line.

# %%
#| export
def typed(info: SettingInfo, value: Any) -> Any:
    "`value` as it is, or a whole number as float where a number is expected; `InputError` for another type."
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()  # NumPy's numbers, as a notebook computes them
    if info.type is float and type(value) is int:
        return float(value)
    if type(value) is info.type:
        return value
    raise InputError(f"{info.name} = {value!r}: expected {TYPE_WORDS[info.type]}")

def checked(info: SettingInfo, value: Any) -> Any:
    "`value` in the setting's type; `InputError` if it is none of the valid ones."
    value = typed(info, value)
    if info.choices is not None and value not in info.choices:
        raise did_you_mean(info.name, value, info.choices)
    if info.type not in (int, float):
        return value
    if info.type is int and abs(value) >= 1 << 31:  # libraries overflow
        raise InputError(f"{info.name} = {str(value)[:40]}: expected a number of fewer digits")
    too_low = info.low is not None and value < info.low
    too_high = info.high is not None and value > info.high
    if too_low or too_high or not math.isfinite(value):
        kind = "" if math.isfinite(value) else "a finite number, "
        raise InputError(f"{info.name} = {value}: expected {kind}{info.expected}")
    return value


# %%
#| export
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

def parsed(info: SettingInfo, text: str) -> Any:
    "The value that `text` spells, as in `--set NAME=TEXT`; `InputError` if it spells none."
    try:
        return TRUTH[text.lower()] if info.type is bool else info.type(text)
    except (ValueError, KeyError):
        problem = f"{info.name} takes {TYPE_WORDS[info.type]}, not {text!r}"
        raise InputError(f"--set {info.name}={text}: {problem}") from None


# %%
test_eq(checked(tau, 1), 1.0)
test_eq(parsed(tau, "0.8"), 0.8)
for function, value in ((checked, 2), (checked, "high"), (parsed, "high")):
    try: function(tau, value)
    except InputError as e: print(e)


# %% [markdown]
# `describe` finds the declarations of a class.

# %%
#| export
def describe(cls: "type[Settings]") -> list[SettingInfo]:
    "The declarations of all settings of a class, inherited ones first."
    if not dataclasses.is_dataclass(cls):
        return []
    types, infos = get_type_hints(cls), []
    for f in dataclasses.fields(cls):
        facts = {"meaning": "", **f.metadata}
        choices = facts.pop("choices", None)
        if callable(choices):
            choices = choices()
        choices = None if choices is None else tuple(choices)
        infos.append(SettingInfo(f.name, types[f.name], f.default, choices=choices, **facts))
    return infos


# %%
@dataclass
class Plain:
    tau: float = setting(0.9, "confidence that settles a pixel", low=0.5, high=1)

print(describe(Plain))


# %% [markdown]
# ## A class of settings
#
# Every subclass of `Settings` is a frozen dataclass. Its values are checked when it is made, and its `repr` shows what differs from the defaults.

# %%
#| export
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting,))
class Settings:
    "Base of all settings: subclasses are frozen dataclasses, given by keyword and checked when made."
    name: ClassVar[str] = ""  # under which the thing that reads them is registered

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, kw_only=True, repr=False)(cls)

    def __post_init__(self):
        for info in describe(type(self)):
            object.__setattr__(self, info.name, checked(info, getattr(self, info.name)))
        self.check()

    def check(self) -> None:
        "Override to raise `InputError` for values that do not go together, which no range can say."

    def changed(self) -> dict[str, Any]:
        "The settings that are not at their defaults."
        values = {info.name: (getattr(self, info.name), info.default) for info in describe(type(self))}
        return {name: value for name, (value, default) in values.items() if value != default}

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.changed().items())
        return f"{type(self).__name__}({given})"


# %%
class ToySettings(Settings):
    tau: float = setting(0.9, "confidence that settles a pixel", low=0.5, high=1)
    views: int = setting(2, "strong views of each image", low=1)
    perturb: str = setting("strong", "what the student sees", choices=("noise", "strong"))

for info in describe(ToySettings): print(f"{info.name} = {info.default!r}: {info.meaning} ({info.expected})")
print(ToySettings(views=3))
for wrong in ({"tau": 2}, {"views": 1.5}, {"perturb": "string"}):
    try: ToySettings(**wrong)
    except InputError as e: print(e)


# %% [markdown]
# ## From texts
#
# `with_text` applies what a user typed.

# %%
#| export
def with_text(settings: Settings, texts: dict[str, str]) -> Settings:
    "A copy of `settings` with the values that the texts spell; `InputError` for an unknown name or an unfit value."
    infos, values = {info.name: info for info in describe(type(settings))}, {}
    for name, text in texts.items():
        if name not in infos:
            raise did_you_mean("setting", name, infos)
        values[name] = parsed(infos[name], text)
    return dataclasses.replace(settings, **values)


# %%
print(with_text(ToySettings(), {"tau": "0.8", "perturb": "noise"}))
for wrong in ({"views": "many"}, {"taus": "0.8"}):
    try: with_text(ToySettings(), wrong)
    except InputError as e: print(e)


# %% [markdown]
# A method may be replaced by another one that has some settings in common with it. Values that were changed are taken over, by name.

# %%
#| export
def carried_over(old: Settings, new: type[Settings], **given: Any) -> Settings:
    "Settings of the class `new`: `given` ones, then those of `old` that differ from their defaults and that `new` has too, then defaults."
    infos = {info.name: info for info in describe(new)}
    kept = {}
    for name, value in old.changed().items():
        if name in infos and type(value) is infos[name].type:
            kept[name] = value
    return new(**{**kept, **given})


# %%
class OtherSettings(Settings):
    tau: float = setting(0.7, "confidence", low=0, high=1)
    rounds: int = setting(1, "how often", low=1)

test_eq(
    carried_over(ToySettings(tau=0.8, views=3), OtherSettings, rounds=2), OtherSettings(tau=0.8, rounds=2)
)
test_eq(carried_over(ToySettings(), OtherSettings), OtherSettings())


# %% [markdown]
# A class or function without declared settings still has keywords with defaults. `settings_of` makes settings of them, so that a plugin need not declare what its signature says. `Annotated` may add the meaning.

# %%
#| export
def settings_of(build: Callable) -> type[Settings]:
    "A `Settings` class of the keywords of `build` whose defaults are texts, numbers, or True or False."
    fields: dict[str, Any] = {}
    types: dict[str, type] = {}
    for name, parameter in inspect.signature(build).parameters.items():
        if type(parameter.default) not in TYPE_WORDS:
            continue
        notes = getattr(parameter.annotation, "__metadata__", ())
        meaning = next((note for note in notes if isinstance(note, str)), "")
        fields[name] = setting(parameter.default, meaning)
        types[name] = type(parameter.default)
    fields |= {"__annotations__": types, "__module__": build.__module__}
    return type(f"{build.__name__}Settings", (Settings,), fields)


# %%
def focal(
    gamma: Annotated[float, "how strongly easy pixels are played down"] = 2.0, reduction: str = "batch"
):
    pass

for info in describe(settings_of(focal)): print(info)
