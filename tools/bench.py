"""Repeat a fixed table of training runs: `python tools/bench.py TABLE --data DIR` (a challenge folder whose
test slices have truth).

Every run is `ctseg fit` by a recipe with settings and a seed; what is kept of it is
`nbs/benchmarks/results/TABLE/NAME-sSEED.npz`: the Dice of every (test slice, class)
under several decision rules, from one set of probabilities, the same of the annotated slices that were
left out (`rest_…`), the learning curve, and the predicted masks of a few slices to look at (their
images and truth lie in TABLE.npz beside the folder). The benchmark notebooks and REPORT.pdf compute
everything they show from these files. A run that is there is not repeated; one that was cut is resumed.
The tables are those of bench_tables.py. What finished runs tell without another training is in bench_finished.py.
`python tools/bench.py gpu --data DIR` measures a GPU instead (gpu.py).
"""
import argparse
import json
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import bench_finished
import numpy as np
import pandas as pd
import results
import torch
from bench_slices import left_out, training_slices
from bench_tables import TABLES

from ctseg.core.device import pick_device
from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.inference.rule import Rule
from ctseg.metrics.challenge import dice_table, examined_dice, mean_dice
from ctseg.prediction.choose import GATES, THRESHOLDS, choose_rule
from ctseg.prediction.predictor import Predictor, load_predictor, predict_masks
from ctseg.prediction.saved import run_spec
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.folder import Run
from ctseg.runs.job import Job
from ctseg.runs.recipe import apply_settings

# tables whose slices have a licence that does not let us keep pictures; their pages have none
NOT_SHOWN = {"large", "efficiency", "spread"}
LOOKED_AT = 12  # test slices whose predicted masks are kept


@dataclass(frozen=True)
class Task:
    "A row of a table with one seed, and where to work on it."
    table: str
    name: str
    recipe: str
    settings: tuple[str, ...]
    seed: int
    data: Path
    runs: Path
    threads: int = 1
    init: str = ""  # a run to start from

    @property
    def folder(self) -> Path:
        "Of the run."
        return self.runs/self.table/f"{self.name}-s{self.seed}"

    @property
    def target(self) -> Path:
        "What is kept of it."
        return results.RESULTS/self.table/f"{self.name}-s{self.seed}.npz"


def trained(task: Task, train: SliceSet) -> Run:
    "The finished run."
    recipe = apply_settings(get_recipe(task.recipe), task.settings)
    return fit(
        train, recipe, task.folder, task.seed, resume=True, device="auto", progress=False, init=task.init)


def candidates(predictor: Predictor, held: SliceSet) -> dict[str, Rule]:
    """Decision rules by name: argmax; the best threshold, gate, and both together on the held-out slices;
    `gated`, chosen of those as `fit` once did; `chosen`, as it does now. The last two are argmax where
    the recipe asks for no rule."""
    rules = {"argmax": Rule()}
    if not len(held): return rules
    gated, scores = choose_rule(predictor, held, expected=False)
    grid = [Rule(threshold, gate) for threshold in THRESHOLDS for gate in GATES]
    kinds = {
        "threshold": [rule for rule in grid if rule.gate == 0],
        "gate": [rule for rule in grid if rule.threshold is None],
        "both": grid,
    }
    rules |= {kind: max(of_kind, key=scores.get) for kind, of_kind in kinds.items()}
    return rules | {"gated": gated if predictor.rule != Rule() else Rule(), "chosen": predictor.rule}


def on_test(masks: dict[str, np.ndarray], test: SliceSet) -> dict[str, np.ndarray]:
    "Dice (NaN where nothing is known) and area in pixels of each (test slice, class), by the rule that drew the masks."
    keep, classes = {}, len(test.classes)
    for rule, drawn in masks.items():
        keep[f"dice_{rule}"] = examined_dice(drawn, test).astype(np.float32)
        areas = [np.bincount(mask.ravel(), minlength=classes + 1)[1:] for mask in drawn]
        keep[f"area_{rule}"] = np.stack(areas).astype(np.int32)
    return keep


def on_left_out(
    train: SliceSet, labelled: int, seed: int, predictor: Predictor, rules: dict[str, Rule],
) -> dict[str, np.ndarray]:
    """Dice of each (annotated slice, class) by argmax and by the chosen rule where `left_out` has it, else NaN;
    NaN too where nothing is known."""
    rest = left_out(train, labelled, seed)
    rows = np.searchsorted(np.flatnonzero(train.labelled), rest)
    asked = {rule: rules[rule] for rule in ("argmax", "chosen") if rule in rules}
    keep = {"rest_groups": train.groups[train.labelled]}
    for rule, drawn in zip(asked, predict_masks(predictor, train.images[rest], list(asked.values()))):
        table = np.full((train.labelled.sum(), len(train.classes)), np.nan, np.float32)
        table[rows] = examined_dice(drawn, train[rest])
        keep[f"rest_{rule}"] = table
    return keep


def looks(table: str, test: SliceSet, drawn: np.ndarray) -> dict[str, np.ndarray]:
    "Masks of a few test slices to look at; their images and truth are kept once for all runs of a table."
    if table in NOT_SHOWN: return {}
    shown = np.linspace(0, len(test) - 1, LOOKED_AT).astype(int)
    beside = results.RESULTS/f"{table}.npz"
    if not beside.exists():
        results.write_arrays(
            beside,
            index=shown,
            images=test.images[shown],
            truth=test.masks[shown],
            colours=test.classes.colours,
            classes=np.array(test.classes.names),
        )
    return {"shown": drawn[shown]}


def by_position(drawn: np.ndarray, test: SliceSet) -> float:
    "Mean Dice as the original's training loop scored: of each pixel's place, over the images."
    columns = (masks.reshape(len(masks), -1).T[:, None] for masks in (drawn, test.masks))
    return mean_dice(dice_table(*columns, len(test.classes)))


def facts_of(task: Task, run: Run, rules: dict[str, Rule], seconds: float, processor: float) -> str:
    "What is kept of a run in words and numbers, as JSON."
    return json.dumps(dict(
        name=task.name,
        recipe=task.recipe,
        settings=list(task.settings),
        seed=task.seed,
        seconds=round(seconds),
        processor_seconds=round(processor),
        epochs=len(run.read_history()),
        rules={name: asdict(rule) for name, rule in rules.items()},
        metrics=run.read_metrics(),
    ))


def one(task: Task) -> str:
    "Train, predict the test slices, keep the Dice table."
    if task.target.exists(): return f"have {task.target.name}"
    torch.set_num_threads(task.threads)
    if task.table == "tried": import tried  # noqa: F401 registers its methods
    start, processor = time.monotonic(), time.process_time()
    train, test = training_slices(task.name, task.seed, task.data), read_challenge(task.data, "test")
    run = trained(task, train)
    seconds, processor = time.monotonic() - start, time.process_time() - processor
    # in one precision, whatever the processor has
    predictor = load_predictor(run.folder, pick_device("auto", "fp32"))
    recipe = run_spec(run)["recipe"]  # with what was decided when it started
    rules = candidates(predictor, Job(recipe, train, run, predictor.plan, task.seed).holdout)
    masks = dict(zip(rules, predict_masks(predictor, test.images, list(rules.values()))))
    scores = on_test(masks, test)
    labelled = recipe.value("labelled")
    if labelled:
        scores |= on_left_out(train, labelled, task.seed, predictor, rules)
    final = masks.get("chosen", masks["argmax"])
    results.write_arrays(
        task.target,
        **scores,
        **looks(task.table, test, final),
        **bench_finished.about_test(test),
        facts=facts_of(task, run, rules, seconds, processor),
        transposed=by_position(final, test),
        history=(run/"history.csv").read_text(),
    )
    means = {name: round(mean_dice(table), 4) for name, table in scores.items() if table.dtype == np.float32}
    return f"{task.target.stem}  {means}  {seconds:.0f} s, {processor:.0f} s of a processor"


def in_processes(work: Callable, tasks: Iterable[tuple], jobs: int) -> None:
    "Carry out `work(*task)` for every task in so many processes, and print what each returns, in their order."
    with ProcessPoolExecutor(jobs) as pool:
        for future in [pool.submit(work, *task) for task in tasks]:
            print(future.result(), flush=True)


def options() -> argparse.Namespace:
    "What the command line asks for."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("table", choices=[*TABLES, "gpu"], help="gpu: the whole programme on a card, see gpu.py")
    p.add_argument("--data", type=Path, help="a challenge folder whose test slices have truth")
    p.add_argument("--out", type=Path, default=results.ROOT/"runs"/"gpu", help="of the table gpu")
    p.add_argument("--minutes", type=float, default=15, help="of the table gpu")
    p.add_argument("--runs", type=Path, default=results.ROOT/"runs"/"bench")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--only", nargs="+", default=[], help="names of rows")
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings",
                   help="for every row, after its own: precision=fp32 where the processor has no bf16")
    p.add_argument("--init", default="",
                   help="a run that every row starts from: marginal-from-phantom needs one")
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--threads", type=int, default=1, help="of each job")
    p.add_argument("--test", type=Path,
                   help="with --decisions: the test slices of this folder, for a second opinion")
    instead = p.add_mutually_exclusive_group()
    for name, what in FINISHED.items():
        instead.add_argument(f"--{name}", action="store_true", help=f"do not train; {what}")
    a = p.parse_args()
    if a.table == "gpu": return a
    if a.data is None: p.error("--data is missing")
    a.data, a.runs, a.test = a.data.resolve(), a.runs.resolve(), a.test and a.test.resolve()
    return a


FINISHED = {
    "confidence": "write how sure the finished runs of a row are of each test slice, and how right",
    "decisions": "decide what the finished runs of each row predict in several ways",
    "precisions": "predict with the finished runs of each row in float32 and in bfloat16",
    "ensemble": "average the finished runs of a row, its seeds or its folds NAME-f0, … (--only NAME)",
    "together": "average the finished runs of the rows that --only names, seed by seed",
}


def of_finished(a: argparse.Namespace, names: list[str]) -> bool:
    "Carry out what is asked for of finished runs, of the rows with these names; False where nothing is."
    cells = [(a.table, name, seed, a.data, a.runs) for name in names for seed in a.seeds]
    if a.ensemble:
        for name in a.only or sorted({re.sub(r"-f\d+$", "", name) for name in names}):
            print(bench_finished.ensembles(a.table, name, a.seeds, a.data, a.runs), flush=True)
    elif a.together:
        for seed in a.seeds:
            print(bench_finished.together(a.table, names, seed, a.data, a.runs), flush=True)
    elif a.confidence:
        for name in names:
            print(bench_finished.confidences(a.table, name, a.seeds, a.data, a.runs), flush=True)
    elif a.precisions:
        rows = [bench_finished.precisions(*cell) for cell in cells]
        path = results.RESULTS/f"precision_{a.table}.csv"
        pd.DataFrame(rows).to_csv(path, index=False, float_format="%.5f")
    elif a.decisions:
        in_processes(bench_finished.decisions, [(*cell, a.test) for cell in cells], a.jobs)
    else:
        return False
    return True


def main():
    a = options()
    if a.table == "gpu":
        from gpu import measure
        print(json.dumps(measure(a.data, a.out, a.minutes, settings=a.settings), indent=1))
        return
    rows = [row for row in TABLES[a.table] if not a.only or row[0] in a.only]
    if of_finished(a, [name for name, *_ in rows]): return
    tasks = [
        Task(a.table, name, recipe, settings + tuple(a.settings), seed, a.data, a.runs, a.threads, a.init)
        for seed in a.seeds
        for name, recipe, settings in rows
    ]
    in_processes(one, [(task,) for task in tasks], a.jobs)


if __name__ == "__main__": main()
