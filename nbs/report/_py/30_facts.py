# %% [markdown]
# # Facts
#
# > What the page of a run says: from its folder, and from slices with truth that it has not trained on.
#
# - skip_showdoc: true

# %%
#| default_exp report.facts

# %%
#| export
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.paths import real_path
from ctseg.core.tables import csv_cell
from ctseg.data.slices import SliceSet
from ctseg.data.sources import read_slices
from ctseg.inference.calibration import plot_reliability
from ctseg.io.neighbours import with_neighbours
from ctseg.metrics.bootstrap import bootstrap_mean
from ctseg.metrics.challenge import examined_dice
from ctseg.metrics.evaluate import evaluate, plain_value
from ctseg.prediction.choose import held_out_by
from ctseg.prediction.saved import SavedCalibration, class_names, read_metrics, run_spec
from ctseg.report.confusion import confusion, heat_table, sides
from ctseg.report.pictures import curves, kept_and_rejected, pack_slices, spread_over_ranks, svg
from ctseg.runs.contents import ANY, HISTORY, POSITIVE, RELIABILITY, SHARE, TIMINGS
from ctseg.runs.contents import damaged_file, read_run_table
from ctseg.runs.folder import Run
from ctseg.runs.recipe import recipe_fields

# %%
#| hide
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from fastcore.test import test_eq

from ctseg.core.errors import InputError
from ctseg.data.toys import toy_set
from ctseg.prediction.saved import run_spec
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.folder import Run
from ctseg.runs.recipe import apply_settings

# %% [markdown]
# A page is filled from a dictionary of facts. This module collects them, each group in a function of its own. The example is a small run of the original teacher–student method.

# %%
slices, _ = toy_set(40, labelled=24, size=48)
recipe = apply_settings(
    get_recipe("teacher-student"), ["width=8", "epochs=6", "folds=4", "lr=5e-3", "keep=0.5"]
)
keep = tempfile.TemporaryDirectory()
run = fit(slices, recipe, Path(keep.name)/"toy", device="cpu", progress=False)
spec = run_spec(run)

# %% [markdown]
# ## Which slices are scored
#
# By default we score the annotated slices that **this run held out**, the only ones with truth that it has never trained on. With `split="test"` we score the test slices of the folder, if their truth is there.

# %%
#| export
SPLITS = ("held-out", "test")

def read_split(
    data: str | Path | SliceSet, # a folder or a store; slices are given back as they are
    split: str, # of `SPLITS`: held-out slices are among those of the training
    annotated: str = "json", # of a folder, see `read_challenge`
    context: int = 0, # neighbours on each side
) -> SliceSet:
    "The slices among which those of a split are."
    if isinstance(data, SliceSet): return data
    images = "test" if split == "test" else "train"
    return with_neighbours(read_slices(data, images, annotated), data, images, context)


# %%
assert read_split(slices, "held-out") is slices


# %%
#| export
def scored_slices(
    run: Run,
    data: str | Path | SliceSet, # the challenge folder the run was trained on, or its slices
    split: str = "held-out", # annotated slices kept apart in training; or "test"
    annotated: str = "json", # of a folder, see `read_challenge`
    spec: dict[str, Any] | None = None, # its `recipe.json`; None: read it
) -> SliceSet:
    "The slices with truth that a run may be judged by."
    if split not in SPLITS:
        raise did_you_mean("split", split, SPLITS)
    spec = spec or run_spec(run)
    slices = read_split(data, split, annotated, spec["recipe"].data.context)
    if list(slices.classes.names) != class_names(spec):
        raise InputError(f"{run.folder}: knows other classes than the data it is to be scored on")
    if split == "held-out":
        slices = slices[held_out_by(run, slices, spec)]
    if slices.labelled.any():
        return slices
    problem = "held out no slices (fold=-1); give --split test"
    if split == "test":
        problem = "the test slices have no truth here; leave out --split test"
    raise InputError(f"{run.folder}: {problem}")


# %%
held_out = scored_slices(run, slices)
print(held_out)
try: scored_slices(run, slices, "tset")
except InputError as e: print(e)


# %% [markdown]
# ## The run itself
#
# The page shows recipe, versions, curves, times and calibration. It may be passed on, so it must not show paths of your disk: only the last part of a value with slashes is shown.

# %%
#| export
def shown_value(value: Any) -> Any:
    "A value of a recipe as the page shows it: of a path only the name."
    if not isinstance(value, str): return value
    *_, name = re.split(r"[/\\]", value)
    return name

def recipe_facts(run: Run, spec: dict[str, Any]) -> dict[str, Any]:
    "What the page says about the recipe of a run."
    recipe = spec["recipe"]
    fields = []
    for name, value, default, _ in recipe_fields(recipe):
        fields.append({"name": name, "value": shown_value(value), "changed": value != default})
    return {
        "run": real_path(run.folder).name,
        "recipe_name": recipe.name,
        "about": recipe.about,
        "recipe": fields,
        "seed": spec["seed"],
        "data": spec["data"],
        "versions": spec.get("versions", {}),
    }


# %%
facts = recipe_facts(run, spec)
print(
    facts["run"],
    "|",
    facts["recipe_name"],
    "| changed:",
    ", ".join(f["name"] for f in facts["recipe"] if f["changed"]),
)
test_eq(shown_value("/home/jane/encoder.safetensors"), "encoder.safetensors")


# %%
#| export
def phase_times(run: Run) -> list[dict[str, Any]] | None:
    "For each phase: epochs, minutes, the median seconds of an epoch, and where it ran; None without `timings.csv`."
    timings = read_run_table(run/"timings.csv", TIMINGS, ("phase",))
    if timings is None: return None
    if "where" not in timings: timings["where"] = ""  # a run of an older ctseg
    rows = []
    for phase, epochs in timings.groupby("phase", sort=False):
        where = epochs["where"].dropna().astype(str).unique()
        rows.append({
            "phase": phase,
            "epochs": len(epochs),
            "minutes": float(epochs.seconds.sum()/60),
            "seconds": float(epochs.seconds.median()),
            "where": "; ".join(where),
        })
    return rows


# %%
print([(t["phase"], t["epochs"]) for t in phase_times(run)])


# %%
#| export
def training_facts(run: Run) -> dict[str, Any]:
    "Curves as SVG, and the times of the phases; None for what the run folder does not have."
    history = read_run_table(run/"history.csv", HISTORY, ("phase",))
    figure = None if history is None else curves(history)
    return {"curves": figure, "times": phase_times(run)}


# %%
facts = training_facts(run)
print(f"{len(facts['curves'])/1e3:.0f} kB of curves, {len(facts['times'])} phases")


# %%
#| export
def calibration_facts(run: Run, calibration: SavedCalibration | None) -> dict[str, Any]:
    "The temperature, and the reliability diagram as SVG; None for a run without."
    points = read_run_table(run/"reliability.csv", RELIABILITY, ("when",))
    if calibration is None or points is None:
        return {"temperature": None, "reliability": None, "calibrated_on": None}
    facts = dict(calibration.facts)
    if not {"ece before", "ece after"} <= facts.keys():
        raise damaged_file(run/"metrics.json", "the calibration lacks its errors")
    for when in ("before", "after"):
        rows = points.loc[points["when"] == when, ["said", "was", "pairs"]]
        facts[f"points {when}"] = rows.to_numpy().tolist()
    figure = svg(plot_reliability(facts), "reliability")
    calibrated_on = calibration.facts.get("slices")
    return {"temperature": calibration.temperature, "reliability": figure, "calibrated_on": calibrated_on}


# %%
facts = calibration_facts(run, read_metrics(run, 3).calibration)
print(f"temperature {facts['temperature']:.2f}, a diagram of {len(facts['reliability'])/1e3:.0f} kB")


# %%
#| export
def held_out_scores(metrics: dict[str, Any]) -> dict[str, Any] | None:
    "What the run scored at its end on the slices it held out: slices, groups and rows; None where that was not kept."
    kept = metrics.get("held out")
    whole = isinstance(kept, dict) and isinstance(kept.get("intervals"), dict)
    if not whole: return None
    rows = []
    for name, interval in kept["intervals"].items():
        rows.append({"decision": name, "dice": metrics.get(f"dice held out, {name}"), "interval": interval})
    return {"slices": kept.get("slices"), "groups": kept.get("groups"), "rows": rows}


# %%
print(held_out_scores(read_metrics(run, 3).facts)["slices"], "slices")


# %%
#| export
def run_facts(run: Run, spec: dict[str, Any]) -> dict[str, Any]:
    "What the page says about a run without looking at slices."
    metrics = read_metrics(run, len(spec["classes"]))
    facts = recipe_facts(run, spec) | training_facts(run) | calibration_facts(run, metrics.calibration)
    return facts | {"held_out": held_out_scores(metrics.facts)}


# %%
facts = run_facts(run, spec)
print(", ".join(facts))

# %% [markdown]
# ## The slices
#
# Score with interval, a row for each structure, and [what is taken for what](10_confusion.ipynb).

# %%
#| export
DRAWS = 500 # of the bootstrap, for each class: a page of 54 classes must not take long

def class_intervals(slices: SliceSet, pred: np.ndarray) -> list[list[float | None]]:
    "The 95 % interval of each class's Dice over groups, for predictions uint8 [N, H, W]; None without a score."
    table = examined_dice(pred, slices)
    intervals = []
    for c in range(len(slices.classes)):
        score = bootstrap_mean(table[:, [c]], slices.groups, DRAWS)
        intervals.append([plain_value(score["low"]), plain_value(score["high"])])
    return intervals


def mean_where(values: np.ndarray, counted: np.ndarray) -> float | None:
    "The mean of those `values` that are counted (bool, the same shape) and are numbers; None of nothing."
    chosen = values[counted & ~np.isnan(values)]
    return float(chosen.mean()) if len(chosen) else None


# %%
#| export
def sure_facts(slices: SliceSet, sure: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    "What `judged` says of each class in the mean over the slices where it was examined, beside how it was."
    rows = []
    for c in range(len(slices.classes)):
        known = slices.known[:, c]
        rows.append({
            "expected": mean_where(sure["expected_dice"][:, c], known),
            "edge": mean_where(sure["uncertain_edge"][:, c], known),
            "chance": mean_where(sure["presence"][:, c], known),
            "share": mean_where(slices.present[:, c].astype(float), known),
        })
    return rows


# %%
print(class_intervals(held_out, held_out.masks)[0])
ones = np.ones(held_out.known.shape, np.float32)
print(sure_facts(held_out, dict.fromkeys(("expected_dice", "uncertain_edge", "presence"), ones))[0])


# %%
#| export
def prediction_facts(
    slices: SliceSet,
    pred: np.ndarray,
    sure: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Score, rows of the structures, confusion and sides of predictions uint8 [N, H, W] for `slices`.

    sure: what `judged` says of them; None: the rows do without."""
    score = evaluate(slices.masks, pred, slices.classes, slices.known, slices.groups)
    table = confusion(pred, slices.masks, len(slices.classes))
    intervals = class_intervals(slices, pred)
    more = sure_facts(slices, sure) if sure else [{}]*len(intervals)
    rows = []
    for row in score["per_class"]:
        c = row["id"] - 1
        rows.append(row | {"interval": intervals[c]} | more[c])
    rows.sort(key=lambda row: (not row["support"], row["id"]))  # without support: last
    return {"score": score, "rows": rows, "sides": sides(table, slices.classes), "heat": heat_table(table)}


# %%
facts = prediction_facts(held_out, np.roll(held_out.masks, 2, axis=1))
print(
    f"Dice {facts['score']['dice']:.3f} on {facts['score']['cells_examined']} cells of {len(held_out)} slices"
)
print([(r["name"], r["support"], r["dice"] and round(r["dice"], 3)) for r in facts["rows"]])


# %% [markdown]
# ## What teachers said
#
# The original method keeps or rejects whole pseudo-labelled slices. [Self-training](../methods/60_self_training.ipynb) accepts single cells. Numbers come from tables. The slices themselves are shown where the run has kept what the teacher drew, and only on the data it was trained on: another folder may have slices of the same names.

# %%
#| export
def read_pseudo_labels(run: Run, slices: SliceSet) -> dict[str, np.ndarray] | None:
    "What the teacher drew on `slices`, arrays by name, if the run has kept it; `InputError` if it is damaged."
    path = run/"pseudo_labels.npz"
    if not os.path.lexists(path): return None
    pseudo = run.read_pseudo()
    if pseudo_fits(pseudo, slices): return pseudo
    raise damaged_file(path, "not what a teacher drew on these slices")

def pseudo_fits(pseudo: dict[str, np.ndarray], slices: SliceSet) -> bool:
    "Whether pseudo-labels have a label map for each of their names, of images that are among `slices`."
    count = len(pseudo["kept"])
    same_size = pseudo["labels"].shape == (count, *slices.image_shape)
    names = [str(n) for n in pseudo["names"]]
    return same_size and len(names) == count and set(names) <= set(slices.names)


# %%
pseudo = read_pseudo_labels(run, slices)
print({name: values.shape for name, values in pseudo.items()})
assert not pseudo_fits(pseudo, slices[:5])


# %%
#| export
def pseudo_sets(
    pseudo: dict[str, np.ndarray], # from `read_pseudo_labels`
    score: np.ndarray, # [N], by which they were ranked
    slices: SliceSet,
    most: int,
) -> list[dict[str, Any]]: # name, truth (False), slices
    "At most `most` slices each that were kept and rejected, for the page."
    position = {name: i for i, name in enumerate(slices.names)}
    sets = []
    for kept, name in ((True, "pseudo-labels kept"), (False, "pseudo-labels rejected")):
        rows = np.flatnonzero(pseudo["kept"] == kept)
        rows = rows[spread_over_ranks(score[rows], most)]
        if not len(rows): continue
        names = pseudo["names"][rows].tolist()
        shown = slices[[position[name] for name in names]]
        packed = pack_slices(shown, pseudo["labels"][rows], most, truth=False)
        sets.append({"name": name, "truth": False, "slices": packed})
    return sets


# %%
table = pd.read_csv(run/"pseudo_labels.csv")
for s in pseudo_sets(pseudo, table["sdc"].to_numpy(), slices, 4):
    print(s["name"], [x["name"] for x in s["slices"]])

# %%
#| export
CELLS = dict.fromkeys(("present", "absent", "present added", "absent added"), POSITIVE)


# %%
#| export
def pseudo_facts(
    run: Run,
    spec: dict[str, Any], # its `recipe.json`
    data: SliceSet | None = None, # what it was trained on; None: show no slices
    most: int = 50, # slices of each kind
) -> tuple[dict[str, Any], list[dict[str, Any]]]: # facts; sets of slices
    "Pseudo-labels kept and rejected: numbers, a figure, and slices where the run keeps what the teacher drew."
    facts = {"pseudo": None, "cells": None}
    cells = read_run_table(run/"pseudo_cells.csv", CELLS, ("class",))
    if cells is not None:
        facts["cells"] = cells.to_dict("records")
    score = getattr(spec["recipe"].method, "confidence", "sdc")
    table = read_run_table(run/"pseudo_labels.csv", {"kept": SHARE, score: ANY}, ("image",))
    if table is None: return facts, []
    sets = []
    pseudo = None if data is None else read_pseudo_labels(run, data)
    if pseudo is not None:
        images = [csv_cell(str(name)) for name in pseudo["names"]]
        if table.image.tolist() != images:
            raise damaged_file(run/"pseudo_labels.csv", "other images than in pseudo_labels.npz")
        sets = pseudo_sets(pseudo, table[score].to_numpy(), data, most)
    figure = svg(kept_and_rejected(table, score), "pseudo")
    numbers = {"images": len(table), "kept": int(table.kept.sum()), "score": score}
    facts["pseudo"] = numbers | {"figure": figure, "shown": bool(sets)}
    return facts, sets


# %%
facts, sets = pseudo_facts(run, spec, slices, 4)
print({k: v for k, v in facts["pseudo"].items() if k != "figure"}, "| cells:", facts["cells"])
test_eq([len(s["slices"]) for s in sets], [4, 4])
test_eq(pseudo_facts(run, spec)[1], [])
(run/"pseudo_labels.npz").write_bytes(b"cut")
try: pseudo_facts(run, spec, slices)
except InputError as e: print(str(e).replace(keep.name, "…"))
keep.cleanup()
