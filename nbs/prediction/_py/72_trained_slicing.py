# %% [markdown]
# # Cut as the runs were trained
#
# > Which window and pixel size a new scan gets: those of the images that the runs were trained on.
#
# - skip_showdoc: true

# %%
#| default_exp prediction.trained_slicing

# %%
#| export
from typing import Any

from ctseg.core.errors import InputError
from ctseg.io.slicing import Slicing
from ctseg.prediction.predictor import Predictor, members_of_runs

# %%
#| hide
from fastcore.test import test_eq, test_fail


# %% [markdown]
# A network knows liver by its grey value and size, so a new scan must be cut with the window and pixel size of the training images. A run whose images were cut from volumes
# has [recorded how](../io/55_imported.ipynb). An older run, or a run of loose PNG slices, has not. Then we take the usual window for soft tissue, and the result says so.

# %%
#| export
def trained_slicings(predictor: Predictor) -> list[dict | None]:
    "What each run of a predictor says of how its images were cut."
    return [member.spec.get("slicing") for member in members_of_runs(predictor.members)]

def _agreed(records: list[dict], given: dict[str, Any]) -> dict[str, Any]:
    "What the runs agree on; `InputError` where they differ in something that is not given."
    agreed = dict(records[0]) if records else {}
    for record in records[1:]:
        for name, value in record.items():
            if name in given or value == agreed.get(name): continue
            problem = f"the runs were trained on images of another {name} ({agreed.get(name)} and {value})"
            raise InputError(f"{problem}; say by {name} (--{name}) which to use, or take runs of one import")
    return agreed | given


# %% [markdown]
# Two runs that cut alike can be averaged. Two that cut differently cannot:

# %%
record = {"orientation": "SPL", "window": [40., 400.], "size": None, "spacing": None}
print(_agreed([record, record], {}))
test_eq(_agreed([record, record], {}), record)
test_fail(lambda: _agreed([record, record | {"spacing": 2.}], {}), contains="another spacing (None and 2.0)")

# %% [markdown]
# Runs that see [neighbours](../io/57_neighbours.ipynb) know how far apart these were. Where a scan's slices are much thinner or thicker, what they have learnt
# does not hold.

# %%
#| export
APART = 1.5 # slices so many times as far apart as in training, or as close together, are told

def in_mm(span: list[float]) -> str:
    "A span in words."
    return " to ".join(f"{value:g}" for value in sorted(set(span))) + " mm"

def other_distance(
    predictor: Predictor,
    mm: list[float] | None, # least and largest distance of neighbouring slices; None: nobody knows
) -> str: # "": about as in training, or nobody knows
    "What a user must know of slices that are further apart, or closer together, than those a run has seen."
    for member in members_of_runs(predictor.members):
        if not member.context: continue
        trained = member.spec.get("neighbour_mm")
        if not trained or not mm: continue
        (low, high), (least, most) = trained, mm
        if least < low/APART or most > high*APART:
            learnt = f"{member.name} was trained on slices {in_mm(trained)} apart"
            return f"{learnt}, these are {in_mm(mm)}: what it knows of neighbours may not fit"
    return ""


# %%
#| export
_NO_WINDOW = ("the run does not say through which window its images were made: "
              "soft tissue (level 40, width 400) was taken; if that is wrong, give window (--window)")
_RANDOM = "trained with random windows: scans are shown through the one for soft tissue"

def choose_slicing(
    records: list[dict | None], # from `trained_slicings`
    given: dict[str, Any], # fields of `Slicing` that the user has given
) -> tuple[Slicing, list[str]]: # how to cut, and what a user must know of it
    "How to cut scans for some runs. Raises `InputError` for runs that do not agree."
    fields, notes = _agreed([record for record in records if record], given), []
    if "window" not in fields: notes.append(_NO_WINDOW)
    elif fields["window"] == "random":
        fields["window"] = "soft"
        notes.append(_RANDOM)
    if isinstance(fields.get("window"), list):
        fields["window"] = tuple(fields["window"])
    return Slicing(**fields), notes


# %%
print(choose_slicing([record], {})[0].window, choose_slicing([record], {"window": "lung"})[0].window)
print(choose_slicing([None], {})[1][0])
print(choose_slicing([record | {"window": "random"}], {}))
