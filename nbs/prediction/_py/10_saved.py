# %% [markdown]
# # What a run has saved
#
# > The recipe, the decision rule and the calibration of a run folder, each checked where it is read.
#
# - skip_showdoc: true

# %%
#| default_exp prediction.saved

# %%
#| export
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json
from ctseg.core.schema import COUNT, fields, fit_schema, listed, mapped, maybe, number, short, text
from ctseg.inference.expected_dice import ExpectedDice
from ctseg.inference.rule import Rule, read_rule
from ctseg.runs.folder import Run, check_begun, check_weights, read_spec
from ctseg.runs.sums import check_finished, check_sum

# %%
#| hide
import json
import math
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from fastcore.test import test_eq

from ctseg.core.errors import InputError
from ctseg.core.json_files import write_json
from ctseg.data.toys import toy_set
from ctseg.inference.expected_dice import ExpectedDice
from ctseg.inference.rule import Rule
from ctseg.recipes.table import get_recipe
from ctseg.runs.folder import make_spec
from ctseg.runs.start import start_run

# %% [markdown]
# A run folder travels: it is copied, mailed, edited by hand, truncated by a full disk. So we check its files once, here, and the rest of the package works with what the checks return.
#
# A folder without `metrics.json` is a run that is not finished. It may still predict, by argmax, with the weights of its last phase.

# %%
#| export
REWRITE = "delete it and write it again with `ctseg fit … --resume`"

def run_spec(
    run: Run,
    weights: bool = True, # there must be weights to load
) -> dict[str, Any]: # recipe, seed, data, classes, image_shape and versions
    "The `recipe.json` of a run; `InputError` where there is no run, or no phase of it is finished."
    check_begun(run)
    if weights: check_weights(run)
    check_finished(run.folder)
    return read_spec(run/"recipe.json")


# %%
slices, _ = toy_set()
keep = tempfile.TemporaryDirectory()
run = Run(Path(keep.name)/"run")
start_run(run, make_spec(get_recipe("masked"), slices, 0))
print(", ".join(run_spec(run, weights=False)))
try: run_spec(run)
except InputError as e: print(str(e).replace(keep.name, "…"))


# %%
#| export
def class_names(spec: dict[str, Any]) -> list[str]:
    "The names of the classes of a run, in the order of their ids."
    return list(spec["classes"].values())


# %%
print(class_names(run_spec(run, weights=False)))


# %% [markdown]
# ## The rule
#
# [The decision rule](../inference/40_rule.ipynb) decides every pixel of a submission. A damaged one must not pass as another rule, so numbers are checked, not only names.

# %%
#| export
def run_classes(spec: dict[str, Any]) -> ClassMap:
    "The classes of a run, with which of them are made of others."
    return ClassMap.from_names(class_names(spec), spec.get("unions"))


# %% [markdown]
# A run knows which of its classes are unions:

# %%
lungs = {
    "classes": {"1": "lung_left", "2": "lung_right", "3": "lungs"},
    "unions": {"lungs": ["lung_left", "lung_right"]},
}
test_eq(run_classes(lungs).unions, ((3, (1, 2)),))


# %%
#| export
def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    "Whether `value` is a finite number from `low` to `high`."
    right_type = isinstance(value, (int, float)) and not isinstance(value, bool)
    return right_type and math.isfinite(value) and low <= value <= high


# %% [markdown]
# What came from a file may be anything. A number in range is accepted, and nothing else.

# %%
test_eq(
    [is_number(v, 0, 1) for v in (0.5, 1, 2, None, "0.5", True, math.nan)],
    [True, True, False, False, False, False, False],
)


# %%
#| export
def rule_faults(rule: Rule, classes: int) -> list[str]:
    "The fields of `rule` that cannot be, as `name = value`."
    fine = {
        "threshold": rule.threshold is None or is_number(rule.threshold, 0, 1),
        "gate": is_number(rule.gate, 0, 1),
        "island": isinstance(rule.island, int) and is_number(rule.island, 0),
        "rescue": is_number(rule.rescue, 0, 1),
    }
    if rule.least is not None:
        shares = all(is_number(value, 0, 1) for value in rule.least)
        fine["least"] = len(rule.least) == classes and shares
    if expected := rule.expected:
        fine |= {name: is_number(getattr(expected, name)) for name in ("bias", "peak", "area")}
        shares = all(is_number(value, 0, 1) for value in expected.usual)
        fine["usual"] = len(expected.usual) == classes and shares
    values = vars(rule) | (vars(expected) if expected else {})
    return [f"{name} = {values[name]!r}" for name, ok in fine.items() if not ok]


# %%
rule = Rule(0.4, expected=ExpectedDice(0.1, 1.2, -0.3, (0.25, 0.5, 0.75)))
print(rule_faults(rule, 3), rule_faults(rule, 54), rule_faults(Rule(gate=7), 3))


# %%
#| export
def saved_rule(record: Any, path: Path, classes: int) -> Rule:
    "The rule in a record of `metrics.json` (at `path`); `InputError` for a damaged one."
    try:
        rule = read_rule(record)
        if not isinstance(rule.expected, ExpectedDice | None): raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{path}: the decision rule is damaged; {REWRITE}") from None
    if faults := rule_faults(rule, classes):
        raise InputError(f"{path}: the decision rule is damaged ({faults[0]}); {REWRITE}")
    missing = [name for name in ("threshold", "gate", "island", "rescue") if name not in record]
    if missing:  # a default would be another rule
        raise InputError(f"{path}: the decision rule is damaged (no {missing[0]}); {REWRITE}")
    return rule


# %%
test_eq(saved_rule(json.loads(json.dumps(asdict(rule))), "metrics.json", 3), rule)
for damaged in ({"threshold": "0.4"}, {"threshold": 4}, {"gates": 0.5}, None, asdict(rule) | {"island": 0.5}):
    try: saved_rule(damaged, "metrics.json", 3)
    except InputError as e: print(e)


# %% [markdown]
# ## The metrics
#
# `metrics.json` is written last, as the sign that a run is finished. It holds the rule and, for runs that held out at least two patients, the [calibration](../inference/50_calibration.ipynb): a temperature, and the rule that was chosen again for the cooler probabilities.

# %%
#| export
@dataclass(frozen=True)
class SavedCalibration:
    "What `calibrate_run` has kept in a run."
    temperature: float     # logits are divided by it
    rule: Rule             # chosen for the calibrated probabilities
    facts: dict[str, Any]  # errors before and after, number of pairs, as in `calibrate`

def saved_calibration(record: Any, path: Path, classes: int) -> SavedCalibration:
    "The calibration in a record of `metrics.json` (at `path`); `InputError` for a damaged one."
    temperature = record.get("temperature") if isinstance(record, dict) else None
    if not is_number(temperature, 0, 1e6) or temperature <= 0:
        raise InputError(f"{path}: the calibration is damaged (temperature = {temperature!r}); {REWRITE}")
    for name in ("ece before", "ece after"):
        if name in record and not is_number(record[name], 0, 1):
            fault = f"{name} = {short(record[name])}"
            raise InputError(f"{path}: the calibration is damaged ({fault}); {REWRITE}")
    return SavedCalibration(temperature, saved_rule(record.get("rule"), path, classes), record)


# %%
calibration = saved_calibration({"temperature": 1.4, "rule": asdict(Rule(0.3))}, "metrics.json", 3)
print("temperature", calibration.temperature, "with", calibration.rule)
try: saved_calibration({"temperature": 0}, "metrics.json", 3)
except InputError as e: print(e)


# %%
#| export
@dataclass(frozen=True)
class SavedMetrics:
    "What `metrics.json` says about prediction."
    finished: bool = False                      # False: there is no `metrics.json` yet
    rule: Rule | None = None                    # None: none was kept
    calibration: SavedCalibration | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # the whole file

HELD_OUT = fields({}, {
    "slices": COUNT, "groups": COUNT, "level": number(0, 1),
    "intervals": mapped(listed(maybe(number(0, 1)), 2)),
})
METRICS = fields({}, {
    "held out": maybe(HELD_OUT),
    "phases": listed(text), "epochs": COUNT,
    "dice held out, argmax": maybe(number(0, 1)), "dice held out, chosen rule": maybe(number(0, 1)),
})


# %%
#| export
def read_metrics(run: Run, classes: int) -> SavedMetrics:
    "The `metrics.json` of a run of so many classes; `InputError` for a damaged one, all None before the run is finished."
    path = run/"metrics.json"
    if not run.finished: return SavedMetrics()
    facts = fit_schema(read_json(path), METRICS, path, f"not the metrics of a run; {REWRITE}")
    rule = saved_rule(facts["rule"], path, classes) if "rule" in facts else None
    record = facts.get("calibration")
    calibration = None if record is None else saved_calibration(record, path, classes)
    check_sum(path)
    return SavedMetrics(True, rule, calibration, facts)


# %%
test_eq(read_metrics(run, 3).finished, False)
write_json(
    {"rule": asdict(rule), "calibration": {"temperature": 1.4, "rule": asdict(Rule(0.3))}},
    run/"metrics.json",
)
metrics = read_metrics(run, 3)
print(
    metrics.rule, "| calibrated:", metrics.calibration.rule, "| temperature", metrics.calibration.temperature
)
test_eq(metrics.rule, rule)
for damaged in ([], {"rule": asdict(replace(rule, gate=7))}):
    write_json(damaged, run/"metrics.json")
    try: read_metrics(run, 3)
    except InputError as e: print(str(e).replace(keep.name, "…"))
keep.cleanup()
