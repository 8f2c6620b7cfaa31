# %% [markdown]
# # Evaluate
#
# > All scores at once, from arrays or from two files: what `ctseg evaluate` prints.
#
# - skip_showdoc: true

# %%
#| default_exp metrics.evaluate

# %%
#| export
import os
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.arguments import checks_arguments
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json
from ctseg.data.annotations import check_examined, check_patients, read_annotated, read_classes
from ctseg.data.challenge import TEST_EXAMINED, is_train_table
from ctseg.data.lazy import LazyPixels, blocks
from ctseg.data.slices import present_classes
from ctseg.data.spooled import spooled_masks
from ctseg.metrics.bootstrap import bootstrap_mean
from ctseg.metrics.challenge import Overlaps, class_rows, mean_dice, overlaps

if TYPE_CHECKING:
    import pandas as pd

# %%
#| hide
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from fastcore.test import test_eq

from ctseg.core.errors import InputError
from ctseg.core.json_files import write_json
from ctseg.core.toys import toy_prediction, toy_world
from ctseg.data.mask_csv import write_masks
from ctseg.metrics.evaluate import evaluate

# %% [markdown]
# `evaluate` gathers what the other pages of this folder compute: the score with its interval, its bounds where the truth is partial, and a record for each class.

# %%
world = toy_world(40, missing=.4, examined=3)
facts = evaluate(world.truth, toy_prediction(world), world.classes, groups=np.arange(40)//4)
low, high = facts["interval"]
print(f"Dice {facts['dice']:.2f}, 95 % interval {low:.2f} to {high:.2f}")
print(facts["invented"], "structures invented,", facts["missed"], "missed; never drawn:", *facts["silent"])


# %% [markdown]
# ## From arrays

# %%
#| export
def plain_value(value):
    "A value for JSON: Python's types instead of NumPy's, None instead of NaN."
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


# %% [markdown]
# NumPy's numbers become Python's, and NaN becomes None, which JSON can hold.

# %%
test_eq([plain_value(v) for v in (np.float64(.5), np.nan, np.int64(3), "liver")], [.5, None, 3, "liver"])


# %%
#| export
def class_records(rows: "pd.DataFrame") -> list[dict]:
    "The rows of `per_class` as dictionaries of plain values."
    records = rows.reset_index().to_dict("records")
    return [{name: plain_value(value) for name, value in record.items()} for record in records]


# %%
class_records(pd.DataFrame({"dice": [.5, np.nan]}, index=pd.Index(["liver", "spleen"], name="name")))


# %%
#| export
def told_facts(
    score: dict, # mean, low, high, level, groups
    rows: "pd.DataFrame", # from `class_rows`
    images: int,
    classes_scored: int,
    pessimistic: float | None = None, # the score with unknown as background; None: everything was examined
    cells: int | None = None, # examined, likewise
) -> dict: # plain numbers, strings and lists: ready for JSON
    "The figures of an evaluation as its users get them."
    facts = dict(
        dice=plain_value(score["mean"]),
        interval=[plain_value(score["low"]), plain_value(score["high"])],
        level=score["level"],
        images=images,
        groups=score["groups"],
    )
    if pessimistic is not None:
        facts["dice_optimistic"] = facts["dice"]
        facts["dice_pessimistic"] = plain_value(pessimistic)
        facts["cells_examined"] = cells
    facts |= dict(
        classes_scored=classes_scored,
        invented=int(rows.invented.sum()),
        missed=int(rows.missed.sum()),
        silent=list(rows.index[rows.silent]),
        unreliable=list(rows.index[rows.unreliable]),
        per_class=class_records(rows),
    )
    return facts


# %% [markdown]
# These follow from what was counted on the images.

# %%
#| export
def score_facts(
    counts: Overlaps,
    rows: "pd.DataFrame", # from `class_rows` of the same counts
    known: np.ndarray | None = None, # bool [N,C]; None: everything was examined
    groups: np.ndarray | None = None, # [N] for the interval; None: every image by itself
    reps: int = 2000, # bootstrap draws
) -> dict: # plain numbers, strings and lists: ready for JSON
    "`evaluate` of what `overlaps` has counted."
    table = counts.dice()
    partial = known is not None and not np.all(known)
    scored = np.where(known, table, np.nan) if partial else table
    score = bootstrap_mean(scored, groups, reps)
    pessimistic = mean_dice(table) if partial else None
    cells = int(np.sum(known)) if partial else None
    classes_scored = int((~np.isnan(scored)).any(0).sum())
    return told_facts(score, rows, len(table), classes_scored, pessimistic, cells)


# %%
#| export
def evaluate(
    truth: np.ndarray, # classes, uint8 [N,H,W]
    pred: np.ndarray, # the same shape
    classes: ClassMap,
    known: np.ndarray | None = None, # bool [N,C]; None: everything was examined
    groups: np.ndarray | None = None, # [N] for the interval; None: every image by itself
    reps: int = 2000, # bootstrap draws
) -> dict: # plain numbers, strings and lists: ready for JSON
    "The score with its interval, bounds where the truth is partial, inventions, misses and a record for each class."
    counts = overlaps(pred, truth, len(classes), classes.unions)
    return score_facts(counts, class_rows(counts, classes, known), known, groups, reps)


# %%
world = toy_world(40, missing=.4, examined=3)
classes, truth, patients = world.classes, world.truth, np.arange(40)//4
pred = toy_prediction(world)
facts = evaluate(truth, pred, classes, groups=patients)
rounded = {"dice": round(facts["dice"], 4), "interval": [round(end, 4) for end in facts["interval"]]}
{name: value for name, value in (facts | rounded).items() if name != "per_class"}

# %% [markdown]
# ### Where the truth is partial
#
# On a partly labelled slice a zero may hide a structure that nobody outlined. The score of the full truth cannot be computed then, but two stand-ins can:
#
# - **optimistic**: only the examined cells (image, class) count. A prediction of an unexamined class is neither right nor wrong;
# - **pessimistic**: every zero counts as absent. A correct prediction of an unexamined structure is then an invention and scores 0.

# %%
partial = toy_world(200, missing=.4, examined=2)
guess = toy_prediction(partial)
facts = evaluate(partial.masks, guess, classes, partial.known)
full = evaluate(partial.truth, guess, classes)
print(
    f"full truth {full['dice']:.3f}; two of three classes examined: optimistic "
    f"{facts['dice_optimistic']:.3f}, pessimistic {facts['dice_pessimistic']:.3f}"
)

# %% [markdown]
# `ctseg` validates with the optimistic one, since it comes nearer to the score of the full truth. Neither is a bound in the strict sense: a structure that is really there and was not predicted drops out of both.

# %%
hearts = (partial.truth == 3).any((1, 2)) & ~partial.known[:, 2]
drawn = (guess == 3).any((1, 2))
print("hearts that nobody examined and the model does not draw:", (hearts & ~drawn).sum())
json.dumps(evaluate(truth*0, pred*0, classes), allow_nan=False)[:72]  # nothing to score: nulls, no warning


# %% [markdown]
# ## From files
#
# The command line scores a submission against a truth file. Three things are read from beside the truth:
#
# - `class_names.json`, else the classes are the challenge's 54;
# - `patients.json`, for the interval; without it every image counts as independent, and the interval is too narrow;
# - `annotated_labels.json`, for a `y_train.csv`, whose truth is partial. Where it is missing, the caller must say what was examined, as for `read_challenge`.

# %%
#| export
def read_examined(
    path: Path, # `annotated_labels.json`
    masks: np.ndarray | LazyPixels, # uint8 [N,H,W]
    names: Sequence[str], # N file names
    classes: ClassMap,
    truth: Path, # the file of the masks
) -> np.ndarray: # bool [N,C]
    "What was examined on the images of a truth file, bool [N,C]; the list goes on with images that have no column there."
    known, n = read_annotated(path, None, len(classes)), len(masks)
    if len(known) < n or known[n:].any():
        examined = np.flatnonzero(known.any(1))
        listed = max(len(known), 1 + int(examined.max(initial=-1)))
        raise InputError(f"{path}: says of {listed} images what was examined, "
                         f"but {truth} has {n} columns; give the two that belong together")
    if is_train_table(truth):  # a whole truth may be scored in part
        check_examined(known[:n], masks, names, truth, classes)
    return known[:n]


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"annotated_labels.json"
    # two annotated images, one without annotation
    write_json([[1, 3], [2], []], path)
    known = read_examined(path, truth[:2]*0, world.names[:2], classes, Path(d)/"y_train.csv")
    test_eq(known, [[True, False, True], [False, True, False]])
    write_json([[1]], path)
    try: read_examined(path, truth[:2], world.names[:2], classes, Path("y_train.csv"))
    except InputError as e: print(str(e).replace(f"{d}/", ""))


# %%
#| export
def patients_of(truth: Path, n: int) -> np.ndarray | None:
    "The patients [n] of the images of `y_SPLIT.csv`, from the `patients.json` beside it; None if it does not say them."
    path = truth.parent/"patients.json"
    table = read_json(path) if os.path.lexists(path) else {}
    if not isinstance(table, dict) or not all(isinstance(patients, list) for patients in table.values()):
        raise InputError(f'{path}: expected {{"train": [...], "test": [...]}} with the patient of each image')
    stem = truth.name.split(".")[0]
    split = "train" if is_train_table(truth) else stem.removeprefix("y_").removesuffix("_full")
    patients = table.get(split)
    if patients is None: return None
    if len(patients) < n:
        raise InputError(f"{path}: {len(patients)} patients under {split!r} for {n} images; "
                         "give one for each image")
    check_patients(patients, path)
    return np.array([str(p) for p in patients[:n]])  # the list goes on with images without annotation


# %% [markdown]
# The patients of the first two test slices; the training slices have none in this file.

# %%
with tempfile.TemporaryDirectory() as d:
    write_json({"test": ["anna", "anna", "bert"]}, f"{d}/patients.json")
    test_eq(patients_of(Path(d)/"y_test.csv", 2), ["anna", "anna"])
    assert patients_of(Path(d)/"y_train.csv", 2) is None


# %%
#| export
def examined_beside(truth: Path) -> Path | str:
    "The list beside a truth that says what was examined; a test without one was examined for every class."
    if is_train_table(truth): return truth.parent/"annotated_labels.json"
    beside = truth.parent/TEST_EXAMINED
    of_test = truth.name.split(".")[0] == "y_test"
    return beside if of_test and os.path.lexists(beside) else "all"


# %%
print(examined_beside(Path("data/y_train.csv")).name, examined_beside(Path("data/y_test.csv")))


# %% [markdown]
# Tables of masks may be larger than memory, so their label maps go through a [temporary file](../data/52_spooled.ipynb), and are counted some images at a time.

# %%
#| export
def block_overlaps(pred: LazyPixels, truth: LazyPixels, classes: ClassMap) -> Overlaps:
    "`overlaps` of label maps [N,H,W], some images at a time."
    parts = [
        overlaps(some, theirs, len(classes), classes.unions)
        for some, theirs in zip(blocks(pred), blocks(truth))
    ]
    counts = [np.concatenate(of_all) for of_all in zip(*parts)]
    return Overlaps(*counts)


# %%
#| export
@checks_arguments
def evaluate_files(
    truth: str | Path,
    prediction: str | Path,
    annotated: str | Path | None = None,
    classes: str | Path | None = None,
) -> dict:
    """Score a submission against a truth file: the `table` of `per_class` and the `facts` of `evaluate`.

    truth, prediction: CSVs in the challenge's form. annotated: a JSON of what was examined, "all" or "present"; None:
    the JSON beside the truth. classes: a `class_names.json`; None: that beside the truth. Raises `InputError` for
    files that do not fit each other.
    """
    truth = Path(truth)
    class_map = ClassMap.from_json(classes) if classes else read_classes(truth.parent)
    names, true = spooled_masks(truth, None, (1, -1), class_map, ignore=True)  # a Dice asks for no shape
    _, predicted = spooled_masks(prediction, names, true.shape[1:], class_map)
    if annotated is None:
        annotated = examined_beside(truth)
    if str(annotated) == "all":
        known = None
    elif str(annotated) == "present":
        known = present_classes(true, len(class_map))
    else:
        known = read_examined(Path(annotated), true, names, class_map, truth)
    counts = block_overlaps(predicted, true, class_map)
    rows = class_rows(counts, class_map, known)
    return dict(table=rows, facts=score_facts(counts, rows, known, patients_of(truth, len(true))))


# %%
with tempfile.TemporaryDirectory() as d:
    write_masks(truth, world.names, f"{d}/y_test.csv")
    write_masks(pred, world.names, f"{d}/submission.csv")
    write_masks(pred[:-1], world.names[:-1], f"{d}/short.csv")
    classes.to_json(f"{d}/class_names.json")
    result = evaluate_files(f"{d}/y_test.csv", f"{d}/submission.csv")
    try: evaluate_files(f"{d}/y_test.csv", f"{d}/short.csv")
    except InputError as e: print(str(e).replace(f"{d}/", ""))
test_eq(result["facts"], evaluate(truth, pred, classes))
result["table"][["support", "dice", "invented", "missed"]].round(3)
