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
# Somebody types `learning_rate`, `bs`, `backbone` or `imgSize`, as another program calls it. By its letters `learning_rate` is nearest
# to `light`, which is no help. But each of our names comes with a line that says what it means, in the usual words. So a name is
# compared word by word, with our names and with their meanings.

# %%
#| export
def words_of(text: str) -> list[str]:
    "The words and numbers of a text in small letters; a capital within a name begins another word."
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return re.findall(r"[a-z]+|[0-9]+", parted.lower())

def likeness(word: str, other: str) -> float:
    "1 for the same word, 0.8 where one is the beginning of the other or both begin alike, else 0."
    if word == other:
        return 1.
    short = min(len(word), len(other))
    alike = min(short, 5)  # so many letters at the beginning
    if short >= 3 and word[:alike] == other[:alike]:
        return 0.8
    return 0.


# %%
test_eq(words_of("learningRate, max-lr"), ["learning", "rate", "max", "lr"])
test_eq(likeness("epoch", "epochs"), 0.8)
test_eq(likeness("arch", "architecture"), 0.8)
test_eq(likeness("amp", "ramp"), 0)

# %% [markdown]
# A name counts for more than a meaning, the same letters or initials settle it, and a misspelling counts by its letters.

# %%
#| export
FILLING = {"num", "n", "nb", "no", "max", "min", "the", "of", "a", "to", "is", "use", "name", "default"}

def _best(word: str, others: list[str]) -> float:
    "The greatest likeness of a word to one of several."
    marks = [likeness(word, other) for other in others]
    return max(marks, default=0.)

def _mean(marks: list[float]) -> float:
    "The mean; 0 of none."
    return sum(marks)/max(1, len(marks))

def _by_words(wanted: list[str], name: list[str], meaning: list[str]) -> float:
    "How much of what is wanted is found in a name and its meaning, and of the name in what is wanted."
    asked = [word for word in wanted if word not in FILLING]
    asked = asked or wanted
    found = []
    for word in asked:
        in_meaning = 0.75*_best(word, meaning)
        found.append(max(_best(word, name), in_meaning))
    named = [_best(part, asked) for part in name]
    return 0.85*_mean(found) + 0.15*_mean(named)

def _by_letters(wanted: str, name: str) -> float:
    "How alike two names are in their letters; 0 for short and for different ones."
    if len(wanted) < 4:
        return 0.
    ratio = difflib.SequenceMatcher(None, wanted, name).ratio()
    return 0.8*ratio if ratio >= 0.8 else 0.


# %%
#| export
def nearness(wanted: str, name: str, meaning: str) -> float:
    "How likely `wanted` means the thing called `name`: from 0 to 1, more for the same letters or initials."
    words = words_of(wanted)
    parts = words_of(name)
    about = words_of(meaning)
    letters = "".join(words)
    own = "".join(parts)
    initials = "".join(part[0] for part in parts)
    if letters == own:
        return 3.
    if letters == initials and len(letters) > 1:
        return 2.
    plainness = -0.002*len(about)  # of two alike the plainer one
    alike = max(_by_words(words, parts, about), _by_letters(letters, own))
    return alike + plainness


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
    marks = {}
    for name in sorted(meanings):
        marks[name] = nearness(wanted[:200], name, meanings[name])
    nearest = sorted(marks, key=marks.get, reverse=True)
    best = max(marks.values(), default=0.)
    least = max(LEAST, best - BESIDE)
    return [name for name in nearest[:most] if marks[name] >= least]


# %%
ours = {
    "lr": "peak learning rate", "weight_decay": "of the optimizer", "batch_size": "images a step",
    "model": "the network: architecture, decoder and encoder (backbone)", "light": "a thinner decoder",
}
for name in ("learning_rate", "lr0", "bs", "encoder_name", "Weight-Decay", "wieght_decay", "momentum"):
    print(f"{name}: {meant(name, ours)}")
