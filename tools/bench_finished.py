"""What the finished runs of a table tell without another training: `python tools/bench.py TABLE --data DIR` with
`--confidence`, `--decisions`, `--precisions` or `--ensemble`.

Each function takes a table, the name of a row, one seed or several, the challenge folder, and the folder where
bench.py keeps its runs.
"""
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import results
import torch
from bench_slices import left_out, training_slices

from ctseg.core.device import DevicePlan, pick_device
from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.inference.rule import Rule
from ctseg.methods.pseudo import pseudo_label
from ctseg.metrics.challenge import dice_table, examined_dice, mean_dice
from ctseg.prediction.choose import THRESHOLDS, Part, RuleSearch, choose_rule, expected_rules, out_of_fold
from ctseg.prediction.outlines import least_shares
from ctseg.prediction.predictor import Predictor, load_predictor, predict_masks
from ctseg.prediction.prepare import prepare
from ctseg.prediction.saved import run_spec
from ctseg.runs.folder import Run
from ctseg.runs.job import Job

STEPS = {  # what is added to an ensemble, one after the other: views, then how the rule is chosen
    "ensemble": dict(views=1, rule="argmax"),
    "tta": dict(views=5, rule="argmax"),
    "rule": dict(views=1, rule="chosen"),
    "tta-rule": dict(views=5, rule="chosen"),
    "calibrated-rule": dict(views=1, rule="chosen", calibrated=True),
}


def is_finished(folder: Path) -> bool:
    "Whether the run in a folder has gone through all its phases."
    return (folder/"metrics.json").exists()


def about_test(test: SliceSet) -> dict[str, np.ndarray]:
    "The patient of each test slice, which classes are on it, and their names: kept beside every table of scores."
    return {"groups": test.groups, "truth": test.present, "classes": np.array(test.classes.names)}


def sureness_of(teachers: list[Predictor], test: SliceSet) -> dict[str, np.ndarray]:
    "How sure some networks together are of each slice and cell, and the Dice of each cell."
    first = teachers[0]
    models = [teacher.members[0].model for teacher in teachers]
    pseudo = pseudo_label(models, test, first.members[0].loss, first.plan.device, batch_size=25)
    return pseudo.scores | {
        "cell_sdc": pseudo.sdc,
        "cell_peak": pseudo.peak,
        "cell_agreement": pseudo.agreement,
        "dice": dice_table(pseudo.labels, test.masks, len(test.classes)).astype(np.float32),
    }


def confidences(table: str, name: str, seeds: Sequence[int], data: Path, runs: Path) -> str:
    """How sure the runs of one row are of each test slice and cell, and how right: one teacher (the first
    seed), and the mean of all."""
    torch.set_num_threads(1)
    test = read_challenge(data, "test")
    teachers = [load_predictor(runs/table/f"{name}-s{seed}", pick_device("auto")) for seed in seeds]
    keep = {}
    for kind, asked in (("one", teachers[:1]), ("mean", teachers)):
        keep |= {f"{kind}_{key}": value for key, value in sureness_of(asked, test).items()}
    target = results.RESULTS/"confidence"/f"{table}-{name}.npz"
    classes = np.array(test.classes.names)
    results.write_arrays(target, **keep, groups=test.groups, classes=classes, seeds=np.array(seeds))
    return f"{target}"


def deciding_rules(predictor: Predictor, job: Job) -> dict[str, Rule]:
    """Rules from the slices that a run held out. argmax; expected: the best of those with expected Dice; least: by
    least areas alone; chosen: as `fit` chooses."""
    search = RuleSearch([Part(predictor, job.holdout)])
    by_expected = expected_rules([Rule(threshold) for threshold in THRESHOLDS], search.parts)
    search.score(by_expected)
    chosen, _ = choose_rule(predictor, job.holdout, outlined=job.labelled)
    return {
        "argmax": Rule(),
        "expected": max(by_expected, key=search.scores.get),
        "least": Rule(least=least_shares(job.labelled)),
        "chosen": chosen,
    }


def dice_by_rule(
    kind: str, predictor: Predictor, slices: SliceSet, rules: dict[str, Rule],
) -> dict[str, np.ndarray]:
    "Dice of each (slice, class) by each rule, named KIND_RULE; NaN where nobody examined."
    masks = predict_masks(predictor, slices.images, list(rules.values()))
    tables = [examined_dice(drawn, slices).astype(np.float32) for drawn in masks]
    return {f"{kind}_{rule}": table for rule, table in zip(rules, tables)}


def decisions(table: str, name: str, seed: int, data: Path, runs: Path, other: Path | None = None) -> str:
    """A finished run's test slices, decided in several ways from the same probabilities.

    other: another folder, whose test slices are taken.
    """
    torch.set_num_threads(1)
    folder = runs/table/f"{name}-s{seed}"
    if not is_finished(folder): return f"no finished run in {folder}"
    train, test = training_slices(name, seed, data), read_challenge(other or data, "test")
    predictor, run = load_predictor(folder, pick_device("auto")), Run(folder)
    recipe = run_spec(run)["recipe"]
    job = Job(recipe, train, run, predictor.plan, seed)
    rules = deciding_rules(predictor, job)
    keep = dice_by_rule("dice", predictor, test, rules)
    means = {key: round(mean_dice(scores), 4) for key, scores in keep.items()}
    if labelled := recipe.value("labelled"):
        rest = train[left_out(train, labelled, seed)]
        keep |= dice_by_rule("rest", predictor, rest, rules) | {"rest_groups": rest.groups}
    facts = {"rules": {key: asdict(rule) for key, rule in rules.items()}, "held out": len(job.holdout)}
    kept_in = results.RESULTS/("decision_least_other" if other else "decision_least")
    target = kept_in/f"{table}-{name}-s{seed}.npz"
    results.write_arrays(target, **keep, **about_test(test), facts=json.dumps(facts))
    return f"{target.stem}  {means}"


def together(table: str, names: Sequence[str], seed: int, data: Path, runs: Path) -> str:
    """The test slices as the finished runs of several rows draw them together, and each alone.

    Decided by argmax, by least areas, and by the rule that the slices choose which they held out."""
    torch.set_num_threads(1)
    folders = [runs/table/f"{name}-s{seed}" for name in names]
    for folder in folders:
        if not is_finished(folder): return f"no finished run in {folder}"
    train, test = training_slices(names[0], seed, data), read_challenge(data, "test")
    predictor, run = load_predictor(folders, pick_device("auto")), Run(folders[0])
    annotated = Job(run_spec(run)["recipe"], train, run, predictor.plan, seed).labelled
    held_out = out_of_fold(predictor, train)
    chosen, _ = choose_rule(predictor, held_out, outlined=annotated)
    plain = {"argmax": Rule(), "least": Rule(least=least_shares(annotated))}
    keep = dice_by_rule("dice", predictor, test, plain | {"chosen": chosen})
    means = {key: round(mean_dice(scores), 4) for key, scores in keep.items()}
    for name, folder in zip(names, folders):
        keep |= dice_by_rule(name, load_predictor(folder, predictor.plan), test, plain)
    target = results.RESULTS/"together"/f"{table}-{'+'.join(names)}-s{seed}.npz"
    of_choice = sum(len(part.slices) for part in held_out)
    facts = {"names": list(names), "chosen": str(chosen), "held out": of_choice}
    results.write_arrays(target, **keep, **about_test(test), facts=json.dumps(facts))
    return f"{target.stem}  {means}"


def precisions(table: str, name: str, seed: int, data: Path, runs: Path) -> dict:
    """The test slices as a finished run draws them in float32 and in bfloat16: mean Dice of both, and the
    share of pixels on which they agree."""
    torch.set_num_threads(1)
    folder, test = runs/table/f"{name}-s{seed}", read_challenge(data, "test")
    if not is_finished(folder): sys.exit(f"no finished run in {folder}")
    masks, scores = {}, {}
    for precision in ("fp32", "bf16"):
        masks[precision] = predict_masks(load_predictor(folder, pick_device("cpu", precision)), test.images)
        scores[precision] = round(mean_dice(examined_dice(masks[precision], test)), 4)
    return dict(name=name, seed=seed, **scores, same=float((masks["fp32"] == masks["bf16"]).mean()))


def run_folders(folder: Path, name: str, seeds: Sequence[int]) -> list[Path]:
    "The finished runs of a row in the folder of its table: its seeds, and its folds `name-f*`."
    forms = [form for seed in seeds for form in (f"{name}-f*-s{seed}", f"{name}-s{seed}")]
    found = sorted(path for form in forms for path in folder.glob(form) if is_finished(path))
    if not found:
        sys.exit(f"no finished run of {name} under {folder}; train the table first")
    return found


def each_alone(
    folders: list[Path], test: SliceSet, plan: DevicePlan,
) -> tuple[dict[str, np.ndarray], list[str]]:
    "Dice of the cells `[R, N, C]` by R runs one by one, by argmax and by their own rules; and these rules."
    predictors = [prepare(folder, plan) for folder in folders]
    tables = []
    for predictor in predictors:
        masks = predict_masks(predictor, test.images, [Rule(), predictor.rule])
        tables.append([cell_dice(drawn, test) for drawn in masks])
    by_argmax, by_rule = map(np.stack, zip(*tables))
    rules = [str(predictor.rule) for predictor in predictors]
    return {"dice_single": by_argmax, "dice_single-rule": by_rule}, rules


def cell_dice(masks: np.ndarray, test: SliceSet) -> np.ndarray:
    "Dice of each (slice, class), f32 `[N, C]`, also where nobody examined."
    return dice_table(masks, test.masks, len(test.classes)).astype(np.float32)


def ensembles(table: str, name: str, seeds: Sequence[int], data: Path, runs: Path) -> str:
    """The finished runs of one row together (its seeds, or its folds `name-f*`): each alone (argmax, and
    its own rule), their mean, and what views, an out-of-fold rule and calibration add."""
    torch.set_num_threads(1)
    train, test, plan = read_challenge(data), read_challenge(data, "test"), pick_device("auto", "bf16")
    folders = run_folders(runs/table, name, seeds)
    keep, rules = each_alone(folders, test, plan)
    facts = {"runs": [folder.name for folder in folders], "single-rule": rules}
    for step, how in STEPS.items():
        tune = train if how["rule"] == "chosen" else None
        predictor = prepare(folders, plan, how["views"], how.get("calibrated", False), tune)
        rule = Rule() if tune is None else predictor.rule
        drawn, = predict_masks(predictor, test.images, [rule])
        keep[f"dice_{step}"], facts[step] = cell_dice(drawn, test), str(rule)
        print(f"{name}  {step:<16}{mean_dice(keep[f'dice_{step}']):.4f}  {rule}", flush=True)
    target = results.RESULTS/"ensemble"/f"{table}-{name}.npz"
    results.write_arrays(target, **keep, **about_test(test), facts=json.dumps(facts))
    return f"{target}"
