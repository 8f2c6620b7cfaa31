# %% [markdown]
# # What to annotate next
#
# > A person has an hour. Which slices, and which structures on them, would teach the network most?

# %%
#| default_exp prediction.suggest

# %%
#| export
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.tables import csv_cell
from ctseg.data.slices import SliceSet
from ctseg.data.splits import near_duplicates
from ctseg.prediction.predictor import Predictor
from ctseg.prediction.sureness import judged

# %%
#| hide
import tempfile

from fastcore.test import test_close, test_eq


# %% [markdown]
# `ctseg suggest RUN DATA --count 20` asks a trained network about every cell (slice, structure) that nobody examined. Three things make one worth a person's time:
#
# * **Uncertainty**: how much Dice would be lost there, as the network itself expects. Of a structure that it draws, one minus the [expected Dice](55_sureness.ipynb). Of one that it does not draw, the chance that the structure is there all the same.
# * **Rarity**: the tenth slice with a parotid teaches more than the three hundredth.
# * **Diversity**: one of several near-duplicates is enough, and a new patient comes before another slice of the same.
#
# [Measured](../benchmarks/suggesting.ipynb) on real CT, the first 150 slices of this list teach more than as many drawn at random, and after 200 it is level. It has a blind spot: of a structure that the network never draws it expects no loss, so it does not ask for it. Look for such a structure yourself.

# %% [markdown]
# ## Expected loss
#
# A structure drawn with an expected Dice of 0.8 may lose 0.2. One that is not drawn, but is there with a chance of 0.2, may lose as much. A cell that somebody examined loses nothing.

# %%
#| export
def expected_loss(
    presence: np.ndarray, # f32 [N,C]: chance that each structure is on each slice
    expected_dice: np.ndarray, # f32 [N,C]; NaN where nothing is drawn
    open_cells: np.ndarray, # bool [N,C]: cells that nobody examined
) -> np.ndarray: # f32 [N,C], 0 … 1
    "The Dice that is expected to be lost in each cell that may be suggested; 0 in the others."
    drawn = np.isfinite(expected_dice)
    loss = np.where(drawn, 1 - np.nan_to_num(expected_dice), presence)
    return np.where(open_cells, loss, 0).clip(0, 1)


# %%
presence = np.array([[.9, .2, .5]])
dice = np.array([[.8, np.nan, .1]])
loss = expected_loss(presence, dice, np.array([[True, True, False]]))
print(loss.round(3))
test_close(loss, [[.2, .2, 0]])


# %% [markdown]
# What was examined on a slice is known of its near-duplicates too. A union is never suggested; its members are, where they were not told apart.

# %%
#| export
def open_cells(slices: SliceSet, alike: np.ndarray) -> np.ndarray: # bool [N,C]
    "The cells worth a look: examined on none of the slices that are `alike` int [N], see `near_duplicates`; no unions."
    examined = np.zeros((int(alike.max(initial=-1)) + 1, len(slices.classes)), bool)
    np.logical_or.at(examined, alike, slices.known)
    found = ~examined[alike]
    found[:, [u - 1 for u, _ in slices.classes.unions]] = False
    return found


# %%
known = np.array([[True], [False], [False]])
rng = np.random.default_rng(0)
two = rng.integers(0, 256, (2, 32, 32)).astype(np.uint8)
pair = SliceSet(two[[0, 0, 1]], np.zeros((3, 32, 32), np.uint8), known, classes=["liver"])
print(open_cells(pair, near_duplicates(pair.images)).ravel())

# %% [markdown]
# ## Choosing
#
# The choice is greedy: the best slice first, then the best of what is left. What was chosen counts as annotated from then on. So a structure becomes less rare with each slice it is suggested on, a patient's further slices count half, a third, …, and near-duplicates not at all.

# %%
#| export
WORTH = 0.5  # a structure is suggested if its gain is at least this share of the best one's on its slice

def rarity(counts: np.ndarray) -> np.ndarray:
    "The weight of a structure, f32 [C], by the slices [C] it was found on: one over the root, 1 on average."
    weight = 1/np.sqrt(1 + counts)
    return weight/weight.mean()


# %%
print(rarity(np.array([3, 99, 399])).round(2))


# %%
#| export
@dataclass
class Suggestion:
    "A slice to annotate, and the structures to look for on it, best first."
    position: int  # in the slices
    gain: float  # expected loss times rarity, summed over the structures
    classes: list[int]  # ids
    gains: list[float]  # of each structure


def choose_slices(
    loss: np.ndarray, # f32 [N,C], see `expected_loss`
    counts: np.ndarray, # [C]: annotated slices on which each structure was found
    patients: np.ndarray, # int [N]
    alike: np.ndarray, # int [N]: near-duplicates share a number
    count: int,
) -> list[Suggestion]:
    "At most `count` slices, best first; none without an open cell."
    counts, chosen = counts.astype(float), []
    free, seen = loss.any(1), np.zeros(len(loss))
    while len(chosen) < count and free.any():
        gains = loss*rarity(counts)
        worth = np.where(gains >= WORTH*gains.max(1, keepdims=True), gains, 0)
        score = np.where(free, worth.sum(1)/(1 + seen), -1)
        n = int(score.argmax())
        order = np.argsort(-worth[n], kind="stable")
        order = order[worth[n][order] > 0]
        chosen.append(Suggestion(n, float(score[n]), (order + 1).tolist(), worth[n][order].tolist()))
        counts[order] += loss[n][order]
        free &= alike != alike[n]
        seen += patients == patients[n]
    return chosen


# %%
loss = np.array([[.9, 0], [.8, 0], [0, .5], [.7, .6]])
patients, alike = np.array([0, 0, 1, 2]), np.array([0, 1, 2, 3])
for one in choose_slices(loss, np.array([5, 5]), patients, alike, 4):
    print(one.position, one.classes, round(one.gain, 2))
test_eq([one.position for one in choose_slices(loss, np.array([5, 5]), patients, np.zeros(4), 4)], [3])
test_eq(choose_slices(loss*0, np.array([5, 5]), patients, alike, 4), [])


# %% [markdown]
# ## A run and a folder
#
# `suggest` asks a run about all cells that are still open, and `write_suggestions` writes the list as a CSV.

# %%
#| export
@dataclass
class Suggestions:
    "What to annotate next, and why."
    slices: SliceSet # those that were asked about
    chosen: list[Suggestion]
    labels: np.ndarray # uint8 [len(chosen),H,W]: what the network draws there
    presence: np.ndarray # f32 [N,C]
    expected_dice: np.ndarray # f32 [N,C]


def _check_question(predictor: Predictor, slices: SliceSet, count: int):
    "`InputError` for another folder's classes, or no slice asked for."
    if predictor.classes.names != slices.classes.names:
        raise InputError("the run knows other classes than the folder; "
                         "suggest with a run that was trained on it")
    if count < 1:
        raise InputError(f"count = {count}: expected 1 or more")


# %%
#| export
def suggest(
    predictor: Predictor, slices: SliceSet, count: int = 20, batch_size: int = 16,
    among: np.ndarray|None = None, # bool [N]: slices that may be suggested; `None`: all
) -> Suggestions:
    "The slices to annotate next. `InputError` for other classes, or where nothing is left to look for."
    _check_question(predictor, slices, count)
    alike = near_duplicates(slices.images)
    cells = open_cells(slices, alike)
    rows = np.flatnonzero(cells.any(1) if among is None else cells.any(1) & among)
    if not len(rows):
        raise InputError("every structure was examined on every slice, or on a near-duplicate; "
                         "nothing is left to suggest")
    asked = slices[rows]
    sure = judged(predictor, asked, batch_size)
    loss = expected_loss(sure["presence"], sure["expected_dice"], cells[rows])
    chosen = choose_slices(loss, slices.present.sum(0), asked.groups, alike[rows], count)
    labels = sure["labels"][[one.position for one in chosen]]
    return Suggestions(asked, chosen, labels, sure["presence"], sure["expected_dice"])


# %%
#| export
COLUMNS = ("rank", "image", "class", "gain", "presence", "expected_dice")

def write_suggestions(found: Suggestions, path: str | Path):
    "A CSV with a row for each slice and structure, the best first; whole or not at all."
    classes: ClassMap = found.slices.classes
    with atomic_path(path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(COLUMNS)
        for rank, one in enumerate(found.chosen, 1):
            image = csv_cell(found.slices.names[one.position])
            for id, gain in zip(one.classes, one.gains):
                dice = found.expected_dice[one.position, id - 1]
                shown = "" if np.isnan(dice) else f"{dice:.4f}"
                presence = f"{found.presence[one.position, id - 1]:.4f}"
                out.writerow((rank, image, csv_cell(classes.name(id)), f"{gain:.4f}", presence, shown))


# %%
nothing = np.full((3, 1), np.nan)
best, drawn = Suggestion(2, .4, [1], [.4]), np.zeros((1, 32, 32), np.uint8)
found = Suggestions(pair, [best], drawn, np.full((3, 1), .4), nothing)
with tempfile.TemporaryDirectory() as d:
    write_suggestions(found, f"{d}/s.csv")
    print(Path(f"{d}/s.csv").read_text())
