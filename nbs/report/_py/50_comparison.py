# %% [markdown]
# # Comparison
#
# > Is one run better than another? Several runs on the same slices, with the interval of each difference.
#
# - skip_showdoc: true

# %%
#| default_exp report.comparison

# %%
#| export
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.core.device import DevicePlan
from ctseg.core.errors import InputError
from ctseg.core.paths import real_path
from ctseg.data.slices import SliceSet
from ctseg.inference.rule import Rule
from ctseg.metrics.bootstrap import bootstrap_mean, paired_bootstrap
from ctseg.metrics.challenge import examined_dice, mean_dice, per_class
from ctseg.prediction.choose import run_members
from ctseg.prediction.predictor import Predictor, predict_masks
from ctseg.prediction.prepare import prepare
from ctseg.prediction.saved import run_spec
from ctseg.report.facts import read_split, scored_slices
from ctseg.report.page import fill_template, page_place, write_page
from ctseg.runs.folder import Run
from ctseg.runs.source import distinct_runs
from ctseg.runs.recipe import recipe_differences

# %%
#| hide
import tempfile
from pathlib import Path

import pandas as pd
from fastcore.test import test_eq

from ctseg.core.errors import InputError
from ctseg.data.toys import toy_set
from ctseg.metrics.challenge import mean_dice
from ctseg.prediction.prepare import prepare
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.folder import Run
from ctseg.runs.recipe import apply_settings

# %% [markdown]
# Is B better than A? Two intervals side by side are the wrong answer: a hard patient weighs on both runs. The difference is taken slice by slice, and its interval comes from drawing whole groups of slices, [the same for both](../metrics/40_bootstrap.ipynb).
#
# Two runs that differ in their loss serve as the example. [At the end](#the-page) they get their page.

# %%
slices, _ = toy_set(60, labelled=40, size=48)
keep = tempfile.TemporaryDirectory()
runs = []
for name in ("marginal-log", "marginal"):
    recipe = apply_settings(get_recipe(name), ["width=8", "epochs=12", "folds=4", "lr=5e-3"])
    runs.append(fit(slices, recipe, Path(keep.name)/name, device="cpu", progress=False))


# %% [markdown]
# ## Slices that none has seen
#
# Only slices that **all** the runs held out count.

# %%
#| export
def common_slices(
    runs: list[Run],
    data: str | Path | SliceSet, # what they were trained on
    split: str = "held-out", # or "test"
    annotated: str = "json", # of a folder, see `read_challenge`
    specs: list[dict[str, Any]] | None = None, # the `recipe.json` of each; None: read them
) -> SliceSet:
    "The slices with truth that none of the runs has trained on."
    specs = specs or [run_spec(run) for run in runs]
    context = max(spec["recipe"].data.context for spec in specs)
    slices = read_split(data, split, annotated, context)
    candidates = [scored_slices(run, slices, split, annotated, spec) for run, spec in zip(runs, specs)]
    names = set.intersection(*(set(part.names) for part in candidates))
    if not names:
        raise InputError("no slice was held out by all of these runs; compare them with --split test")
    first = candidates[0]
    return first[np.isin(first.names, list(names))]


# %%
common = common_slices(runs, slices)
print(common)


# %% [markdown]
# ## One record a run
#
# One advantage must be taken out. A run whose rule was chosen on those slices is judged too kindly, one that uses plain argmax is not. So each run is scored by its rule and by argmax as well, from the same probabilities, and the page says which of the two comparisons is fair.

# %%
#| export
def score_tables(
    predictor: Predictor,
    slices: SliceSet,
    batch_size: int = 16,
) -> tuple[np.ndarray, list[np.ndarray]]: # masks uint8 [N, H, W] by the rule; two tables [N, C]
    "Masks by the predictor's rule, and the Dice of each cell by that rule and by argmax; NaN where nobody examined."
    shown = slices.seen(predictor.context)
    masks = predict_masks(predictor, shown, [predictor.rule, Rule()], batch_size)
    return masks[0], [examined_dice(pred, slices) for pred in masks]


# %%
predictors = [prepare(r.folder, "cpu") for r in runs]
for run, predictor in zip(runs, predictors):
    _, (by_rule, by_argmax) = score_tables(predictor, common)
    print(
        f"{run.folder.name}: Dice {mean_dice(by_rule):.3f} by its rule ({predictor.rule}), "
        f"{mean_dice(by_argmax):.3f} by argmax"
    )


# %%
#| export
def difference_facts(tables: list[np.ndarray], first: list[np.ndarray], groups: np.ndarray) -> dict[str, Any]:
    "The difference of a run's two score tables to those of the first run, with paired intervals over `groups` [N]."
    by_rule, by_argmax = (paired_bootstrap(t, f, groups) for t, f in zip(tables, first))
    return {
        "difference": by_rule["difference"],
        "paired": (by_rule["low"], by_rule["high"]),
        "better": by_rule["p_better"],
        "argmax": mean_dice(tables[1]),
        "argmax_difference": by_argmax["difference"],
        "argmax_paired": (by_argmax["low"], by_argmax["high"]),
    }


# %%
first, second = (score_tables(p, common)[1] for p in predictors)
for key, value in difference_facts(second, first, common.groups).items():
    print(f"{key}: {np.round(value, 3)}")


# %%
#| export
def compared_facts(pred: np.ndarray, table: np.ndarray, slices: SliceSet) -> dict[str, Any]:
    "Score with interval, inventions, misses and the Dice of each class, for masks uint8 [N, H, W] with the scores [N, C]."
    score = bootstrap_mean(table, slices.groups)
    rows = per_class(pred, slices.masks, slices.classes, slices.known)
    return {
        "dice": score["mean"],
        "interval": (score["low"], score["high"]),
        "invented": int(rows.invented.sum()),
        "missed": int(rows.missed.sum()),
        "silent": list(rows.index[rows.silent]),
        "per_class": [None if np.isnan(v) else float(v) for v in rows.dice],
    }


# %%
pred, tables = score_tables(predictors[0], common)
print(compared_facts(pred, tables[0], common))


# %%
#| export
def run_names(runs: list[Run]) -> list[str]:
    "The folders' names; of two that share one, as much of their paths as tells them apart."
    paths = [real_path(run.folder) for run in runs]

    def name(path: Path) -> str:
        others = [f"/{p.as_posix()}" for p in paths if p != path]
        for parts in range(1, len(path.parts)):
            end = "/".join(path.parts[-parts:])
            if not any(other.endswith(f"/{end}") for other in others):
                return end
        return str(path)
    return [name(p) for p in paths]


# %% [markdown]
# Two folders called `x` are told apart by the folder above them.

# %%
test_eq(run_names([Run("a/x"), Run("b/x"), Run("b/y"), Run("a/x")]), ["a/x", "b/x", "y", "a/x"])


# %%
#| export
def compare(
    runs: list[Run],
    slices: SliceSet, # from `common_slices`
    plan: DevicePlan | str | None = None, # see `load_predictor`
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    "A record for each run: score with interval, by its rule and by argmax, and the difference to the first run."
    records, first = [], None
    for run, name in zip(runs, run_names(runs)):
        predictor = prepare(run.folder, plan)
        member, = run_members(predictor)
        pred, tables = score_tables(predictor, slices, batch_size)
        first = first or tables
        record = {"run": name, "recipe": member.spec["recipe"].name}
        record |= {"rule": str(predictor.rule), "chosen": predictor.rule != Rule()}
        record |= compared_facts(pred, tables[0], slices)
        records.append(record | difference_facts(tables, first, slices.groups))
    return records


# %%
records = compare(runs, common, "cpu")
columns = [
    "run",
    "rule",
    "dice",
    "difference",
    "paired",
    "argmax",
    "argmax_difference",
    "invented",
    "missed",
    "silent",
]
pd.DataFrame(records)[columns].round(3)


# %% [markdown]
# ## The page
#
# Beside the scores it says what was done differently: the settings in which the runs' recipes differ.

# %%
#| export
def different_settings(specs: list[dict[str, Any]]) -> list[tuple[str, list]]: # name, the value of each run
    "The seed, and the fields of the recipes in which runs differ."
    differences = recipe_differences([spec["recipe"] for spec in specs])
    rows = [row for row in differences if row[0] != "model.weights"]  # a path tells nothing
    return [("seed", [spec["seed"] for spec in specs]), *rows]


# %%
specs = [run_spec(r) for r in runs]
for row in different_settings(specs): print(*row)


# %%
#| export
def comparison_page(
    records: list[dict[str, Any]], # from `compare`
    specs: list[dict[str, Any]], # the `recipe.json` of each run
    slices: SliceSet, # on which they were compared
    split: str, # "held-out" or "test"
) -> str:
    "The page about several runs."
    what = "test slices" if split == "test" else "annotated slices that all of them held out"
    scored = []
    for c in range(len(slices.classes)):
        if any(record["per_class"][c] is not None for record in records):
            scored.append(c)
    return fill_template(
        "comparison.html", slices.classes, records=records, scored=scored, settings=different_settings(specs),
        scored_on=f"{len(slices)} {what}", groups=len(np.unique(slices.groups)),
        by_argmax=any(record["chosen"] for record in records), held_out=split == "held-out")


# %% [markdown]
# The one setting that differs is on the page, and those that are alike are not.

# %%
page = comparison_page(records, specs, common, "held-out")
assert "<td>loss.log_dice</td>" in page and "epochs</td>" not in page


# %%
#| export
def report_comparison(
    runs: list[str | Path], # run folders; the first is what the others are compared with
    data: str | Path | SliceSet, # what they were trained on
    split: str = "held-out", # slices that all of them held out; or "test"
    out: str | Path | None = None, # the page; None: comparison.html in the first run's folder
    annotated: str = "json", # of a folder, see `read_challenge`
    plan: DevicePlan | str | None = None, # see `load_predictor`
    batch_size: int = 16,
) -> tuple[Path, list[dict[str, Any]]]: # where it was written; a record for each run
    "Write the page that compares several runs."
    place = page_place(runs[0], out, "comparison.html")
    runs = distinct_runs(runs)
    specs = [run_spec(run) for run in runs]
    if data is None:
        raise InputError("comparing runs needs slices to score them on: give --data FOLDER")
    slices = common_slices(runs, data, split, annotated, specs)
    records = compare(runs, slices, plan, batch_size)
    page = comparison_page(records, specs, slices, split)
    return write_page(page, place), records


# %%
folders = [r.folder for r in runs]
path, again = report_comparison(folders, slices, plan="cpu")
test_eq(path.read_text(encoding="utf-8"), page)
test_eq(again[0]["difference"], 0)
for wrong in [dict(data=None), dict(data=slices[:40]), dict(data=slices, split="tset")]:
    try: report_comparison(folders, **wrong)
    except InputError as e: print(str(e).replace(keep.name, "…"))
keep.cleanup()
