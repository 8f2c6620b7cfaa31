# %% [markdown]
# # Arguments
#
# > What is given to a public function is held against its annotations, so that a wrong kind of thing is told in one line.
#
# - skip_showdoc: true

# %%
#| default_exp core.arguments

# %%
#| export
import dataclasses
import functools
import inspect
import numbers
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from ctseg.core.errors import InputError, did_you_mean

# %%
#| hide
from fastcore.test import test_eq

# %% [markdown]
# In a notebook anything may land in any argument: `None` from a cell that was not run, a list in place of an array, an array where a folder is
# expected. Without a check it fails somewhere inside, with a message about something else. The annotations of a function say already what
# it takes, in words for its reader; the same annotations are read here.

# %%
#| export
_WORDS = {str: "a text", Path: "a path", bool: "True or False", int: "a whole number", float: "a number",
          type(None): "None"}

def _kinds(hint: Any) -> list[Any]:
    "The alternatives of an annotation."
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (Union, types.UnionType):
        return [hint]
    kinds = []
    for part in get_args(hint):
        kinds += _kinds(part)
    return kinds

def _is_several(kind: Any) -> bool:
    "Does an annotation stand for several things, in a list or the like?"
    origin = get_origin(kind) or kind
    if not inspect.isclass(origin) or origin in (str, bytes):
        return False
    return issubclass(origin, Iterable)

def in_words(hint: Any) -> str:
    "An annotation in words."
    words = []
    kinds = _kinds(hint)
    if Path in kinds:  # which may be given as a text
        kinds = [kind for kind in kinds if kind is not str]
    for kind in kinds:
        origin = get_origin(kind) or kind
        word = _WORDS.get(kind) or f"a {getattr(origin, '__name__', origin)}"
        if _is_several(kind) and get_args(kind):
            word = f"several, each {in_words(get_args(kind)[0])}"
        words.append("a function" if origin is Callable else word)
    return " or ".join(dict.fromkeys(words))


# %%
print(in_words(str | Path | list[str | Path] | None))


# %% [markdown]
# NumPy's numbers are numbers. A text is not several texts. What a generator holds is not looked at, since that would use it up.

# %%
#| export
def _is_kind(value: Any, kind: Any) -> bool:
    "Is a value of one of the alternatives?"
    origin = get_origin(kind) or kind
    if kind is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if origin is Callable:
        return callable(value)
    if not inspect.isclass(origin):
        return True  # a variable, a protocol without methods, a text: nothing that can be asked
    if _is_several(kind) and getattr(origin, "__module__", "") in ("builtins", "collections.abc"):
        return _are_kind(value, kind)
    return isinstance(value, origin)

def _are_kind(value: Any, kind: Any) -> bool:
    "Are these several things of the right kind?"
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return False
    if getattr(value, "ndim", 1) != 1:  # an image, say
        return False
    inner = [part for part in get_args(kind) if part is not ...]
    if not isinstance(value, (list, tuple)) or len(inner) != 1:
        return True
    return all(agrees(item, inner[0]) for item in value)

def agrees(value: Any, hint: Any) -> bool:
    "Is a value what an annotation says?"
    kinds = _kinds(hint)
    return Any in kinds or any(_is_kind(value, kind) for kind in kinds)


# %%
test_eq(agrees("runs/a", str | Path), True)
test_eq(agrees(["a", None], list[str]), False)
test_eq([agrees(True, int), agrees(3, float)], [False, True])


# %% [markdown]
# A message says what was given: of an array its shape, of anything else its beginning.

# %%
#| export
def shown_argument(value: Any) -> str:
    "What was given, for a message."
    kind = type(value).__name__
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{kind} {getattr(value, 'dtype', '')} {list(shape)}".replace("  ", " ")
    text = " ".join(repr(value).split())
    if len(text) > 40:
        text = text[:40] + "…"
    return f"{kind} {text}"

def check_argument(what: str, value: Any, hint: Any, default: Any = inspect.Parameter.empty) -> None:
    "`InputError` unless `value` is what an annotation says, and, where that is a path, one that can be."
    if not agrees(value, hint):
        raise InputError(f"{what} is {shown_argument(value)}; expected {in_words(hint)}")
    if Path not in _kinds(hint) or not isinstance(value, str):
        return
    if "\0" in value:
        raise InputError(f"{what} is {value!r}; a path holds no NUL")
    if not value and default != "":
        raise InputError(f"{what} is an empty text; expected a path")


# %%
for value in (None, [1, 2], "", "a\0b"):
    try: check_argument("read: path", value, str | Path)
    except InputError as e: print(e)

# %% [markdown]
# A decorator does it for all arguments of a function.

# %%
#| export
_P = ParamSpec("_P")
_R = TypeVar("_R")

def checks_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    "A decorator: the arguments are held against their annotations before the function is called."
    signature = inspect.signature(function)
    parameters = signature.parameters
    who = function.__qualname__.removesuffix(".__init__")
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not hints:
            hints.update(get_type_hints(function, include_extras=True))
        given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            parameter = parameters[name]
            several = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if name in hints and not several:
                check_argument(f"{who}: {name}", value, hints[name], parameter.default)
        return function(*args, **kwargs)
    return call


# %%
@checks_arguments
def read(path: str | Path, count: int = 1):
    "Read a file so many times."
    return f"{path}, {count} times"

print(read("a.txt", count=2))
for wrong in ({"path": 3}, {"path": "a.txt", "count": "two"}):
    try: read(**wrong)
    except InputError as e: print(e)


# %% [markdown]
# Options that a function passes on to a dataclass are checked in the same way, and an unknown one is told the nearest.

# %%
#| export
def options_of(kind: type, given: Mapping[str, Any], who: str) -> Any:
    "A dataclass of options made from keywords; `InputError` for an unknown name or a value of another kind."
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in given.items():
        if name not in fields:
            raise did_you_mean(f"option of {who}", name, fields)
        check_argument(f"{who}: {name}", value, hints[name], fields[name].default)
    return kind(**given)


# %%
@dataclasses.dataclass
class Options:
    batch_size: int = 16

test_eq(options_of(Options, {"batch_size": 4}, "read"), Options(4))
for wrong in ({"batchsize": 4}, {"batch_size": "4"}):
    try: options_of(Options, wrong, "read")
    except InputError as e: print(e)
