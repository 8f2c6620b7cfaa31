# %% [markdown]
# # Ready to predict
#
# > An ensemble as `ctseg predict` has it: loaded, calibrated if asked, with the saved rule or one that is chosen for it.
#
# - skip_showdoc: true

# %%
#| default_exp prediction.prepare

# %%
#| export
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ctseg.core.device import DevicePlan
from ctseg.core.errors import InputError, did_you_mean
from ctseg.data.slices import SliceSet
from ctseg.data.sources import read_slices
from ctseg.inference.calibration import calibrate
from ctseg.inference.loop import Each
from ctseg.inference.rule import Rule
from ctseg.io.neighbours import with_neighbours
from ctseg.prediction.choose import choose_rule, held_out_by, out_of_fold, run_members
from ctseg.prediction.predictor import Predictor, load_predictor
from ctseg.runs.folder import Run, write_rows
from ctseg.runs.sums import write_metrics

# %%
#| hide
import tempfile
from pathlib import Path

import pandas as pd
from fastcore.test import test_close, test_eq

from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json
from ctseg.data.toys import toy_set
from ctseg.inference.rule import Rule
from ctseg.prediction.choose import held_out_by
from ctseg.prediction.predictor import load_predictor
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings

# %% [markdown]
# A finished run can predict as it is. This page adds what is asked for at the moment of prediction: more views, a temperature, another rule, or a rule that is chosen for several runs together.

# %%
slices, _ = toy_set(60, labelled=40, size=48)
recipe = apply_settings(get_recipe("masked"), ["width=8", "epochs=10", "folds=4", "lr=5e-3"])
keep = tempfile.TemporaryDirectory()
runs = [
    fit(slices, recipe, Path(keep.name)/name, seed, device="cpu", progress=False)
    for seed, name in enumerate("ab")
]


# %% [markdown]
# ## Calibration is kept in the run
#
# `metrics.json` keeps the [temperature](../inference/50_calibration.ipynb) and the errors before and after, `reliability.csv` the points of the diagram. A threshold of 0.3 means something else once the probabilities have changed. So a rule is chosen again for the calibrated ones, and kept beside the temperature.

# %%
#| export
def write_reliability(facts: dict[str, Any], path: Path):
    "The points of both reliability diagrams, as a table: when, said, was, pairs."
    columns = ("when", "said", "was", "pairs")
    points = [(when, *point) for when in ("before", "after") for point in facts[f"points {when}"]]
    write_rows([dict(zip(columns, point)) for point in points], path, columns)


# %%
points = {"points before": [(0.1, 0.2, 50)], "points after": [(0.2, 0.2, 50)]}
write_reliability(points, Path(keep.name)/"reliability.csv")
print((Path(keep.name)/"reliability.csv").read_text())


# %%
#| export
def calibrate_run(
    run: Run,
    held_out: SliceSet, # what the run held out
    plan: DevicePlan | None = None, # see `load_predictor`
    tune_rule: bool = True, # choose a rule for the calibrated probabilities; False: the run's own
    each: Each | None = None, # goes through the batches, and may stop; None: simply
    batch_size: int = 16,
    outlined: SliceSet | None = None, # what it learnt from, see `choose_rule`
) -> dict[str, Any]: # what `calibrate` found, but the points, and the rule
    "Calibrate a run on the slices it held out; a finished one keeps what is found."
    predictor = load_predictor(run.folder, plan)
    member, = predictor.members
    facts = calibrate(member, held_out, predictor.plan, batch_size)
    rule = predictor.rule
    if tune_rule:
        calibrated = replace(predictor, members=[replace(member, temperature=facts["temperature"])])
        rule, _ = choose_rule(
            calibrated, held_out, each=each, batch_size=batch_size, outlined=outlined)
    write_reliability(facts, run/"reliability.csv")
    facts = {name: value for name, value in facts.items() if not name.startswith("points ")}
    facts["rule"] = asdict(rule)
    if run.finished:
        write_metrics(run.read_metrics() | {"calibration": facts}, run.folder, ["reliability.csv"])
    return facts


# %%
facts = calibrate_run(runs[0], slices[held_out_by(runs[0], slices)])
print(
    f"temperature {facts['temperature']}; calibration error {facts['ece before']:.3f}, with it "
    f"{facts['ece after']:.3f}"
)
test_eq(read_json(runs[0]/"metrics.json")["calibration"]["temperature"], facts["temperature"])
pd.read_csv(runs[0]/"reliability.csv").tail(3)


# %% [markdown]
# ## A rule for several runs
#
# The rule of one run fits the probabilities of that run. The average of several runs is smoother, so we choose its rule [out of fold](30_choose.ipynb), on slices that the runs held out. If temperatures are asked for, they are fitted first.

# %%
#| export
def calibrated_members(predictor: Predictor, slices: SliceSet, batch_size: int = 16) -> Predictor:
    "`predictor` with the temperature of each member, fitted on those of `slices` that it held out."
    members = []
    for member in run_members(predictor):
        held_out = slices[held_out_by(member.run, slices, member.spec)]
        facts = calibrate(member, held_out, predictor.plan, batch_size)
        members.append(replace(member, temperature=facts["temperature"]))
    return replace(predictor, members=members)


# %%
both = load_predictor([r.folder for r in runs], "cpu")
print([m.temperature for m in calibrated_members(both, slices).members])


# %%
#| export
def with_tuned_rule(
    predictor: Predictor,
    slices: SliceSet, # what its runs were trained on
    calibrated: bool = False, # fit temperatures first
    batch_size: int = 16,
) -> Predictor:
    "`predictor` with a rule for all its members together, and the Dice out of fold that speaks for it."
    if calibrated:
        predictor = calibrated_members(predictor, slices, batch_size)
    parts = out_of_fold(predictor, slices)
    rule, scores = choose_rule(predictor, parts, batch_size=batch_size, outlined=slices)
    dice = {"Dice out of fold, argmax": scores[Rule()], "Dice out of fold, this rule": scores[rule]}
    return replace(predictor, rule=rule, rule_size=slices.image_shape, tuned_dice=dice)


# %%
both = with_tuned_rule(both, slices)
print(both.rule, {k: round(v, 3) for k, v in both.tuned_dice.items()})

# %% [markdown]
# ## Everything at once
#
# `ctseg predict` calls `prepare`. It reports mistakes in its options before anything is loaded.

# %%
#| export
RULES = ("saved", "argmax")

def check_rule_options(rule: str, tune: Any, fields: dict[str, Any]):
    "`InputError` for options of `prepare` that are impossible, or contradict each other."
    if rule not in RULES: raise did_you_mean("rule", rule, RULES)
    if rule == "argmax" and tune is not None:
        raise InputError("--rule argmax and --tune: give one of the two")
    for key in ("threshold", "gate", "rescue"):
        value = fields.get(key)
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"--{key} {value:g}: expected a probability, 0 to 1")


# %%
for wrong in (("agmax", None, {}), ("argmax", "data", {}), ("saved", None, {"gate": 7})):
    try: check_rule_options(*wrong)
    except InputError as e: print(e)


# %%
#| export
def warn_of_unfinished(predictor: Predictor):
    "A warning for each run that is not finished."
    for member in run_members(predictor):
        if member.run.finished: continue
        problem = "these are the weights of a phase on the way, and no rule was chosen"
        remedy = "continue it with `ctseg fit … --resume`"
        warnings.warn(f"{member.run.folder} is not finished: {problem}; {remedy}")


# %%
print("not finished:", [r.folder.name for r in runs if not r.finished])
warn_of_unfinished(both)  # silent here


# %%
#| export
def prepare(
    runs: str | Path | list[str | Path], # see `load_predictor`
    plan: DevicePlan | str | None = None, # see `load_predictor`
    views: int = 1, # of each image
    calibrated: bool = False, # divide logits by the runs' temperatures
    tune: str | Path | SliceSet | None = None, # what the runs were trained on: choose the rule out of fold
    annotated: str = "json", # of the folder `tune`, see `read_challenge`
    batch_size: int = 16,
    rule: str = "saved", # or "argmax"
    **fields: float | None, # threshold, gate, …: overrule these of the rule; None leaves them
) -> Predictor:
    "A predictor of one or more runs with its rule."
    check_rule_options(rule, tune, fields)
    predictor = load_predictor(runs, plan, views, calibrated and tune is None)
    warn_of_unfinished(predictor)
    if tune is not None:
        slices = tune if isinstance(tune, SliceSet) else read_slices(tune, annotated=annotated)
        slices = with_neighbours(slices, tune, "train", predictor.context)
        predictor = with_tuned_rule(predictor, slices, calibrated, batch_size)
    base = Rule() if rule == "argmax" else predictor.rule
    overruled = {name: value for name, value in fields.items() if value is not None}
    if overruled:  # the score is of the rule as it was chosen
        predictor = replace(predictor, tuned_dice=None)
    return replace(predictor, rule=replace(base, **overruled))


# %%
run = runs[0].folder
plain, cool = prepare(run, "cpu"), prepare(run, "cpu", calibrated=True)
p, q = (x.probabilities(slices.images[:2]) for x in (plain, cool))
test_close(q.logit(), p.logit()/facts["temperature"], eps=0.05)
print(
    "saved:",
    plain.rule,
    "| calibrated:",
    cool.rule,
    "| with a threshold:",
    prepare(run, "cpu", threshold=0.3).rule,
)
test_eq(prepare(run, "cpu", rule="argmax").rule, Rule())
test_eq(prepare(run, "cpu", tune=slices).rule, with_tuned_rule(plain, slices).rule)

# %%
#| hide
keep.cleanup()
