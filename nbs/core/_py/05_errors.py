# %% [markdown]
# # Errors
#
# > A mistake is told in one line.
#
# - skip_showdoc: true

# %%
#| default_exp core.errors

# %%
#| export
import difflib
from collections.abc import Iterable
from typing import TextIO

# %% [markdown]
# A user's mistake ends in **one clear line** and exit status 2, not in a traceback. This holds everywhere in `ctseg`, so it is promised once, here.
#
# An `InputError` says what is wrong, where, what was expected, and how to mend it. The command line prints its text and stops with status 2. In a notebook it is an ordinary `ValueError`.

# %%
#| export
_MAX_MESSAGE = 1200  # characters

def printable(text: str) -> str:
    "`text` in one line that any terminal can show: what is no letter, sign or plain space is written as its number."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

def say(line: str, file: TextIO | None = None) -> None:
    "Print a line that may hold the name of a file, or what one contains: no terminal is to obey it."
    print(printable(line), file=file, flush=True)

class InputError(ValueError):
    "A mistake in what the user gave: told in one line, without a traceback, exit status 2."
    def __str__(self) -> str:
        text = printable(super().__str__())
        if len(text) <= _MAX_MESSAGE:
            return text
        return f"{text[:_MAX_MESSAGE//2]} … {text[-_MAX_MESSAGE//2:]}"


# %% [markdown]
# A name in a file of somebody else may hold a line break, or the codes that move a terminal's cursor. None reaches the terminal.

# %%
print(InputError("class 'liver\n\x1b[2J' is unknown"))

# %% [markdown]
# What was found in a file may be a thousand names. A message shows the first few, and says how many others there are.

# %%
#| export
MOST_NAMES = 20  # of a list in a message

def some_of(names: Iterable, length: int = 60) -> str:
    "Names for a message: all of them, or the first few of more than `MOST_NAMES` and how many others there are, each cut to `length` characters."
    every = list(map(str, names))
    few = every if len(every) <= MOST_NAMES else every[:MOST_NAMES//2]
    shown = [name if len(name) <= length else f"{name[:length]}…" for name in few]
    others = len(every) - len(few)
    if others:
        shown.append(f"and {others} others")
    return ", ".join(shown)


# %%
print(some_of(["liver", "spleen"]))
print(some_of(f"rib {i}" for i in range(24)))


# %% [markdown]
# The commonest mistake is a misspelt name. The answer should be the right name.

# %%
#| export
def did_you_mean(
    kind: str, # what the name is a name of, e.g. "recipe"
    name: str, # the unknown name
    options: Iterable, # the valid names
) -> InputError: # to be raised by the caller
    "An error for an unknown name that shows the nearest valid ones; the caller raises it."
    valid = sorted(map(str, options))
    wanted = str(name)[:200]
    near = [option for option in valid if option.lower() == wanted.lower()]
    near = near or difflib.get_close_matches(wanted, valid[:10_000], n=3, cutoff=0.5)
    hint = f"there are: {some_of(valid)}" if valid else "there is none"
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif len(valid) > MOST_NAMES:
        nearest = difflib.get_close_matches(wanted, valid[:10_000], n=5, cutoff=0)
        hint = f"of {len(valid)} names the nearest are: {some_of(nearest)}"
    return InputError(f"unknown {kind} {wanted!r}; {hint}")


# %%
print(did_you_mean("recipe", "marginl", ["original-attunet", "masked", "marginal"]))
print(did_you_mean("recipe", "?", ["original-attunet", "masked", "marginal"]))
print(did_you_mean("class", "gonad", [f"vertebra {i}" for i in range(90)] + ["aorta", "gland", "colon"]))
