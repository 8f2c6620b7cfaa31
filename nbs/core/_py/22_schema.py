# %% [markdown]
# # Schemas
#
# > What a file from outside may hold is said once and checked once, where it is read.

# %%
#| default_exp core.schema

# %%
#| export
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctseg.core.errors import InputError, printable

# %%
#| hide
from fastcore.test import test_eq


# %% [markdown]
# A run folder may have been copied from another machine, edited by hand, or hit by a failing disk. Whatever reads one of its files says with a schema what it expects. The rest of the package then relies on it.
#
# A schema is a function: it takes a value and raises `Unexpected` for one that it does not expect.

# %%
#| export
class Unexpected(Exception):
    "A value that a schema does not expect: where it is, from the inside out, and what was expected."
    def __init__(self, value: Any, expected: str):
        super().__init__(expected)
        self.value, self.expected = value, expected
        self.place: list[str] = []

    def __str__(self) -> str:
        place = ".".join(reversed(self.place)) or "its content"
        return f"{place} is {short(self.value)}, expected {self.expected}"

Schema = Callable[[Any], None]

# %%
#| export
MOST_SHOWN = 60  # characters of a value

def short(value: Any) -> str:
    "A value as an error shows it."
    if isinstance(value, (dict, list)):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}"
    shown = printable(json.dumps(value, default=repr)[:4*MOST_SHOWN])
    return shown if len(shown) <= MOST_SHOWN else shown[:MOST_SHOWN] + "…"

def within(key: Any, schema: Schema, value: Any) -> None:
    "Check a value that is found under `key`, and say so if it does not fit."
    try:
        schema(value)
    except Unexpected as e:
        e.place.append(str(key)[:60])
        raise


# %% [markdown]
# ## Single values
#
# `True` is a number to Python, and to nobody else.

# %%
#| export
def number(low: float = -math.inf, high: float = math.inf, whole: bool = False) -> Schema:
    "Finite numbers from `low` to `high`; `whole`: without a fraction, and written without a point."
    kinds = (int,) if whole else (int, float)
    expected = "a whole number" if whole else "a number"
    if low > -math.inf:
        expected += f" from {low}" if high < math.inf else f" of at least {low}"
    if high < math.inf: expected += f" to {high}"
    def check(value: Any) -> None:
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        if not fits or not low <= value <= high or abs(value) >= 2**63:
            raise Unexpected(value, expected)
    return check

COUNT = number(0, whole=True)


# %%
#| export
def text(value: Any) -> None:
    "Texts that can be printed in a line."
    if not isinstance(value, str) or not value.isprintable() or len(value) > 1000:
        raise Unexpected(value, "a text of one line")

def truth(value: Any) -> None:
    "True or false."
    if not isinstance(value, bool): raise Unexpected(value, "true or false")

def anything(value: Any) -> None:
    "Whatever it is: nobody relies on it."

def maybe(schema: Schema) -> Schema:
    "What `schema` expects, or null."
    def check(value: Any) -> None:
        if value is not None: schema(value)
    return check


# %%
for schema, value in (
    (number(0, 1), 1.5),
    (COUNT, True),
    (number(), "7"),
    (text, "a\nb"),
    (truth, 1),
):
    try: schema(value)
    except Unexpected as e: print(e)


# %% [markdown]
# ## Lists and objects

# %%
#| export
def either(first: Schema, second: Schema) -> Schema:
    "What one of two schemas expects; a misfit says what the second one does."
    def check(value: Any) -> None:
        try: first(value)
        except Unexpected: second(value)
    return check

def listed(item: Schema, length: int | None = None) -> Schema:
    "Lists of what `item` expects, of any `length` or of the given one."
    expected = "a list" if length is None else f"a list of {length}"
    def check(value: Any) -> None:
        if not isinstance(value, list) or length not in (None, len(value)):
            raise Unexpected(value, expected)
        for i, inner in enumerate(value): within(i, item, inner)
    return check

def mapped(item: Schema) -> Schema:
    "Objects with any names, that hold what `item` expects."
    def check(value: Any) -> None:
        if not isinstance(value, dict): raise Unexpected(value, "an object")
        for key, inner in value.items():
            within("its names", text, key)
            within(key, item, inner)
    return check


# %%
#| export
def fields(required: dict[str, Schema], optional: dict[str, Schema] = {}) -> Schema:
    "Objects with these names; further ones belong to a newer version and are not looked at."
    def check(value: Any) -> None:
        if not isinstance(value, dict): raise Unexpected(value, "an object")
        for key, schema in required.items():
            if key not in value: raise Unexpected(value, f"one with {key!r}")
            within(key, schema, value[key])
        for key, schema in optional.items():
            if key in value: within(key, schema, value[key])
    return check


# %%
PATIENT = fields({"name": text, "ages": listed(number(0, 150))}, {"note": maybe(text)})
PATIENT({"name": "p1", "ages": [61, 62.5]})
for wrong in ({"name": "p1"}, {"name": "p1", "ages": [61, "62"]}, {"name": "p1", "ages": [], "note": 3}, []):
    try: PATIENT(wrong)
    except Unexpected as e: print(e)

# %% [markdown]
# Runs and stores both keep how their images were cut from volumes.

# %%
#| export
LONGEST = 1 << 14  # pixels of a side of an image
HOW_CUT = fields({}, {  # how images were cut from volumes, as `Slicing` takes it and checks it again
    "orientation": text,
    "window": either(text, listed(number(), 2)),
    "size": maybe(number(1, LONGEST, whole=True)),
    "spacing": maybe(either(text, number(0))),
})
SPAN = maybe(listed(number(0), 2))  # least and largest distance of neighbours, in mm

# %%
HOW_CUT({"orientation": "SPL", "window": [40, 400], "size": None, "spacing": "fit"})
try: HOW_CUT({"window": [40]})
except Unexpected as e: print(e)


# %% [markdown]
# ## Where a file is read

# %%
#| export
def fit_schema(value: Any, schema: Schema, path: str | Path, remedy: str) -> Any:
    "`value`, which was read from `path`; an `InputError` of one line, with the `remedy`, if the schema does not expect it."
    try:
        schema(value)
    except Unexpected as e:
        raise InputError(f"{path}: {e}; {remedy}") from None
    return value


# %%
try: fit_schema({"name": "p1", "ages": [-1]}, PATIENT, "patients.json", "copy it again")
except InputError as e: print(e)
test_eq(fit_schema([1], listed(number()), "a.json", ""), [1])


# %% [markdown]
# ## What somebody typed
#
# A whole number that someone types has an end, too: one of thirty digits fits into no array, and is told before the work.

# %%
#| export
def check_whole(name: str, value: Any, low: int = 1, high: int = 2**31 - 1) -> None:
    "`InputError` unless `value`, called `name`, is a whole number from `low` to `high`."
    if type(value) is int and low <= value <= high: return
    raise InputError(f"{name} = {value!r}: expected a whole number from {low} to {high}")


# %%
check_whole("size", 256)
try: check_whole("size", 10**30, high=LONGEST)
except InputError as e: print(e)
