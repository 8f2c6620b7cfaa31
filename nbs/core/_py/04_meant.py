# %% [markdown]
# # What a foreign name meant
#
# > People bring the names of other programs; the declared meanings tell which of ours they want.
#
# - skip_showdoc: true

# %%
#| default_exp core.meant

# %%
#| export
import difflib
import re
from collections.abc import Mapping

# %%
#| hide
from fastcore.test import test_eq


# %% [markdown]
# Somebody types `learning_rate`, `bs`, `backbone` or `imgSize`, as another program calls it. The nearest spelling among our names is none of
# these: it would answer `learning_rate` with `light`. Each of our names comes with a line that says what it means, though, and that line has
# the usual words in it. So a name is compared word by word, with the other name and with its meaning.

# %%
#| export
def words_of(text: str) -> list[str]:
    "The words and numbers of a name or a sentence in small letters; a capital within a name begins another word."
    return re.findall(r"[a-z]+|[0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())

def likeness(word: str, other: str) -> float:
    "1 for the same word, 0.8 where one is the beginning of the other or both begin alike, else 0."
    if word == other: return 1.
    short, long = sorted((word, other), key=len)
    begins = len(short) >= 3 and long.startswith(short)
    return 0.8 if begins or (len(short) >= 5 and word[:5] == other[:5]) else 0.


# %%
test_eq(words_of("learningRate, max-lr"), ["learning", "rate", "max", "lr"])
test_eq([likeness("epoch", "epochs"), likeness("arch", "architecture"), likeness("amp", "ramp")], [0.8, 0.8, 0])

# %% [markdown]
# A name counts for more than a meaning, the same letters or initials settle it, and a misspelling counts by its letters.

# %%
#| export
FILLING = {"num", "n", "nb", "no", "max", "min", "the", "of", "a", "to", "is", "use", "name", "default"}

def _best(word: str, others: list[str]) -> float:
    "The greatest likeness of a word to one of several."
    return max((likeness(word, other) for other in others), default=0.)

def nearness(wanted: str, name: str, meaning: str) -> float:
    "How likely `wanted` means the thing called `name`: from 0 to 1, more for the same letters or initials."
    every, parts, about = words_of(wanted), words_of(name), words_of(meaning)
    letters, own = "".join(every), "".join(parts)
    if letters == own: return 3.
    if len(letters) > 1 and letters == "".join(part[0] for part in parts): return 2.
    asked = [word for word in every if word not in FILLING] or every
    found = [max(_best(word, parts), 0.75*_best(word, about)) for word in asked]
    named = [_best(part, asked) for part in parts]
    by_words = 0.85*sum(found)/max(1, len(found)) + 0.15*sum(named)/max(1, len(named))
    ratio = difflib.SequenceMatcher(None, letters, own).ratio()
    by_letters = 0.8*ratio if ratio >= 0.8 and len(letters) >= 4 else 0.
    return max(by_words, by_letters) - 0.002*len(about)  # of two alike the plainer one


# %%
#| export
LEAST = 0.22  # nearness that is worth a mention
BESIDE = 0.3  # and the distance to the nearest within which others are mentioned too

def meant(
    wanted: str, # a name that nothing has
    meanings: Mapping[str, str], # what there is, and what it means
    most: int = 3,
) -> list[str]: # the nearest first; empty if nothing is near
    "The names that somebody may have meant who typed another one."
    marks = {name: nearness(wanted[:200], name, meaning) for name, meaning in meanings.items()}
    nearest = sorted(marks, key=lambda name: (-marks[name], name))[:most]
    least = max(LEAST, max(marks.values(), default=0.) - BESIDE)
    return [name for name in nearest if marks[name] >= least]


# %%
ours = {
    "lr": "peak learning rate", "weight_decay": "of the optimizer", "batch_size": "images a step",
    "model": "the network: architecture, decoder and encoder (backbone)", "light": "a thinner decoder",
}
for name in ("learning_rate", "lr0", "bs", "encoder_name", "Weight-Decay", "wieght_decay", "momentum"):
    print(f"{name}: {meant(name, ours)}")
