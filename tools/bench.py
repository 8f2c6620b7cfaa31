"""Repeat a fixed table of training runs: `python tools/bench.py TABLE --data DIR` (a challenge folder whose
test slices have truth).

Every run is `ctseg fit` by a recipe with settings and a seed; what is kept of it is
`nbs/benchmarks/results/TABLE/NAME-sSEED.npz`: the Dice of every (test slice, class)
under several decision rules, from one set of probabilities, the same of the annotated slices that were
left out (`labelled`), the learning curve, and the predicted masks of a few slices to look at (their
images and truth lie in TABLE.npz beside the folder). The benchmark notebooks and REPORT.pdf compute
everything they show from these files. A run that is there is not repeated; one that was cut is resumed.
The tables are those of bench_tables.py.
`python tools/bench.py gpu --data DIR` measures a GPU instead (gpu.py).
"""
import argparse
import json
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_tables import TABLES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT/"nbs"/"benchmarks"/"results"


# slices whose licence does not let us keep pictures; a page without pictures
NOT_SHOWN = {"large", "efficiency", "spread"}


def write_arrays(path: Path, **arrays):
    "An .npz file, whole or not at all."
    import numpy as np
    from ctseg.core.atomic import atomic_path
    with atomic_path(path) as tmp: np.savez_compressed(tmp, **arrays)


def fully_annotated(train, data: Path):
    """The same training slices with every contour, out of the `y_train_full.csv` that a phantom can be
    written with."""
    import numpy as np
    from dataclasses import replace
    from ctseg.data.mask_csv import read_masks
    return replace(
        train, masks=read_masks(data/"y_train_full.csv", train.names)[1], known=np.ones_like(train.known)
    )


def spread_over_patients(train, count: int, seed: int):
    """The training slices with the annotation of `count` of them: one of each patient that has any, drawn
    by the seed, then a second one of each, and so on."""
    import numpy as np
    from suggesting import revealed
    random = np.random.default_rng(seed)
    order = random.permutation(np.flatnonzero(train.labelled))
    seen, turn = {}, []
    for group in train.groups[order]:
        turn.append(seen.get(group, 0))
        seen[group] = turn[-1] + 1
    chosen = order[np.argsort(turn, kind="stable")[:count]]
    return revealed(train, np.isin(np.arange(len(train)), chosen))


def on_test(test, masks: dict) -> dict:
    "Dice of each (test slice, class) by the rule that drew the masks; NaN where nothing is known."
    import numpy as np
    from ctseg.metrics.challenge import dice_table
    keep = {}
    for rule, drawn in masks.items():
        table = dice_table(drawn, test.masks, len(test.classes))
        keep[f"dice_{rule}"] = np.where(test.known, table, np.nan).astype(np.float32)
    return keep


def areas(masks: dict, classes: int) -> dict:
    "Pixels of each (slice, class) by rule."
    import numpy as np
    keep = {}
    for rule, drawn in masks.items():
        counts = [np.bincount(mask.ravel(), minlength=classes + 1)[1:] for mask in drawn]
        keep[f"area_{rule}"] = np.stack(counts).astype(np.int32)
    return keep


def left_out(train, labelled: int, seed: int):
    """Positions of the annotated slices of patients whose annotation the setting `labelled` leaves out: choices
    are made on these, so that the test slices only judge."""
    import numpy as np
    from ctseg.data.splits import select_labelled
    kept = select_labelled(train, labelled, seed).labelled
    return np.flatnonzero(train.labelled & ~np.isin(train.groups, train.groups[kept]))


def on_left_out(train, labelled, seed, predictor, rules) -> dict:
    """Dice of each (annotated slice, class) by argmax and by the chosen rule where `left_out` has it, else NaN;
    NaN too where nothing is known."""
    import numpy as np
    from ctseg.metrics.challenge import examined_dice
    from ctseg.prediction.predictor import predict_masks
    rest = left_out(train, labelled, seed)
    at = np.searchsorted(np.flatnonzero(train.labelled), rest)
    some = {rule: rules[rule] for rule in ("argmax", "chosen") if rule in rules}
    keep = {"rest_groups": train.groups[train.labelled]}
    for rule, drawn in zip(some, predict_masks(predictor, train.images[rest], list(some.values()))):
        table = np.full((train.labelled.sum(), len(train.classes)), np.nan, np.float32)
        table[at] = examined_dice(drawn, train[rest])
        keep[f"rest_{rule}"] = table
    return keep


def candidates(predictor, held) -> dict:
    """Decision rules by name: argmax; the best threshold, gate, and both together on the held-out slices;
    `gated`, chosen of those as `fit` once did; `chosen`, as it does now. The last two are argmax where
    the recipe asks for no rule."""
    from ctseg.prediction.choose import GATES, THRESHOLDS, choose_rule
    from ctseg.inference.rule import Rule
    rules = {"argmax": Rule()}
    if not len(held): return rules
    gated, scores = choose_rule(predictor, held, expected=False)
    grid = [Rule(t, g) for t in THRESHOLDS for g in GATES]
    kinds = {
        "threshold": [rule for rule in grid if rule.gate == 0],
        "gate": [rule for rule in grid if rule.threshold is None],
        "both": grid,
    }
    rules |= {kind: max(of_kind, key=scores.get) for kind, of_kind in kinds.items()}
    return rules | {"gated": gated if predictor.rule != Rule() else Rule(), "chosen": predictor.rule}


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
        return Path(self.runs)/self.table/f"{self.name}-s{self.seed}"

    @property
    def target(self) -> Path:
        "What is kept of it."
        return RESULTS/self.table/f"{self.name}-s{self.seed}.npz"


def training_slices(name: str, seed: int, data: Path):
    "What a row of a table learns from: the folder's slices, with more contours or fewer if its name says so."
    from ctseg.data.challenge import read_challenge
    train = read_challenge(data)
    if name.startswith("full-"): return fully_annotated(train, data)
    if count := re.match(r"spread(\d+)-", name): return spread_over_patients(train, int(count[1]), seed)
    return train


def trained(task: Task, train):
    "The finished run."
    from ctseg.recipes.fit import fit
    from ctseg.recipes.table import get_recipe
    from ctseg.runs.recipe import apply_settings
    recipe = apply_settings(get_recipe(task.recipe), task.settings)
    return fit(train, recipe, task.folder, task.seed, resume=True, device="auto", progress=False, init=task.init)


def keep_looks(table: str, test, shown):
    "Images and truth of the test slices that are to be looked at, once for all runs of a table."
    import numpy as np
    looks = RESULTS/f"{table}.npz"
    if looks.exists(): return
    write_arrays(
        looks,
        index=shown,
        images=test.images[shown],
        truth=test.masks[shown],
        colours=test.classes.colours,
        classes=np.array(test.classes.names),
    )


def by_position(drawn, test) -> float:
    "Mean Dice as the original's training loop scored: of each pixel's place, over the images."
    from ctseg.metrics.challenge import dice_table, mean_dice
    columns = (masks.reshape(len(masks), -1).T[:, None] for masks in (drawn, test.masks))
    return mean_dice(dice_table(*columns, len(test.classes)))


def one(task: Task) -> str:
    "Train, predict the test slices, keep the Dice table."
    if task.target.exists(): return f"have {task.target.name}"
    import numpy as np, torch
    from ctseg.core.device import pick_device
    from ctseg.data.challenge import read_challenge
    from ctseg.metrics.challenge import mean_dice
    from ctseg.prediction.predictor import load_predictor, predict_masks
    from ctseg.prediction.saved import run_spec
    from ctseg.runs.job import Job
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
    scores = on_test(test, masks)
    labelled = recipe.value("labelled")
    if labelled: scores |= on_left_out(train, labelled, task.seed, predictor, rules)
    final = masks["chosen" if "chosen" in masks else "argmax"]
    looks = {}
    if task.table not in NOT_SHOWN:
        shown = np.linspace(0, len(test) - 1, 12).astype(int)
        keep_looks(task.table, test, shown)
        looks = {"shown": final[shown]}
    facts = dict(
        name=task.name,
        recipe=task.recipe,
        settings=list(task.settings),
        seed=task.seed,
        seconds=round(seconds),
        processor_seconds=round(processor),
        epochs=len(run.read_history()),
        rules={name: asdict(rule) for name, rule in rules.items()},
        metrics=json.loads((run/"metrics.json").read_text()),
    )
    write_arrays(
        task.target,
        **scores,
        **areas(masks, len(test.classes)),
        **looks,
        truth=test.present,
        groups=test.groups,
        classes=np.array(test.classes.names),
        facts=json.dumps(facts),
        transposed=by_position(final, test),
        history=(run/"history.csv").read_text(),
    )
    means = {k: round(float(mean_dice(v)), 4) for k, v in scores.items() if not k.endswith("groups")}
    return f"{task.target.stem}  {means}  {seconds:.0f} s, {processor:.0f} s of a processor"


def confidences(table, name, seeds, data, runs):
    """How sure the runs of one row are of each test slice and cell, and how right: one teacher (the first
    seed), and the mean of all."""
    import numpy as np, torch
    from ctseg.data.challenge import read_challenge
    from ctseg.core.device import pick_device
    from ctseg.metrics.challenge import dice_table
    from ctseg.prediction.predictor import load_predictor
    from ctseg.methods.pseudo import pseudo_label
    torch.set_num_threads(1)
    test = read_challenge(data, "test")
    teachers = [load_predictor(Path(runs)/table/f"{name}-s{s}", pick_device("auto")) for s in seeds]
    keep = {}
    for kind, use in (("one", teachers[:1]), ("mean", teachers)):
        p = pseudo_label(
            [t.members[0].model for t in use],
            test,
            teachers[0].members[0].loss,
            teachers[0].plan.device,
            batch_size=25,
        )
        keep |= {f"{kind}_{k}": v for k, v in p.scores.items()} | {
            f"{kind}_cell_sdc": p.sdc,
            f"{kind}_cell_peak": p.peak,
            f"{kind}_cell_agreement": p.agreement,
            f"{kind}_dice": dice_table(p.labels, test.masks, len(test.classes)).astype(np.float32),
        }
    target = RESULTS/"confidence"/f"{table}-{name}.npz"
    classes = np.array(test.classes.names)
    write_arrays(target, **keep, groups=test.groups, classes=classes, seeds=np.array(seeds))
    return f"{target}"


def decisions(table, name, seed, data, runs, test=None):
    """A finished run's test slices, decided in several ways from the same probabilities; the rules from the
    slices that the run held out. `test`: another folder, whose test slices are taken.

    argmax; expected: the best of the rules with expected Dice; least: by
    least areas alone; chosen: as `fit` chooses."""
    import numpy as np, torch
    from ctseg.core.device import pick_device
    from ctseg.data.challenge import read_challenge
    from ctseg.inference.rule import Rule
    from ctseg.metrics.challenge import examined_dice, mean_dice
    from ctseg.prediction.choose import THRESHOLDS, Part, RuleSearch, choose_rule, expected_rules
    from ctseg.prediction.outlines import least_shares
    from ctseg.prediction.predictor import load_predictor, predict_masks
    from ctseg.prediction.saved import run_spec
    from ctseg.runs.folder import Run
    from ctseg.runs.job import Job
    torch.set_num_threads(1)
    folder, other = Path(runs)/table/f"{name}-s{seed}", test
    if not (folder/"metrics.json").exists(): return f"no finished run in {folder}"
    train, test = training_slices(name, seed, data), read_challenge(other or data, "test")
    predictor, run = load_predictor(folder, pick_device("auto")), Run(folder)
    recipe = run_spec(run)["recipe"]
    job = Job(recipe, train, run, predictor.plan, seed)
    search = RuleSearch([Part(predictor, job.holdout)])
    by_expected = expected_rules([Rule(t) for t in THRESHOLDS], search.parts)
    search.score(by_expected)
    rules = {
        "argmax": Rule(),
        "expected": max(by_expected, key=search.scores.get),
        "least": Rule(least=least_shares(job.labelled)),
        "chosen": choose_rule(predictor, job.holdout, outlined=job.labelled)[0],
    }
    def score(slices): return [
        examined_dice(m, slices).astype(np.float32)
        for m in predict_masks(predictor, slices.images, list(rules.values()))
    ]
    keep = {f"dice_{k}": table for k, table in zip(rules, score(test))}
    means = {k: round(mean_dice(table), 4) for k, table in keep.items()}
    if labelled := recipe.value("labelled"):
        rest = train[left_out(train, labelled, seed)]
        keep |= {f"rest_{k}": table for k, table in zip(rules, score(rest))} | {"rest_groups": rest.groups}
    target = RESULTS/("decision_least_other" if other else "decision_least")/f"{table}-{name}-s{seed}.npz"
    facts = {"rules": {k: asdict(v) for k, v in rules.items()}, "held out": len(job.holdout)}
    write_arrays(
        target,
        **keep,
        groups=test.groups,
        truth=test.present,
        classes=np.array(test.classes.names),
        facts=json.dumps(facts),
    )
    return f"{target.stem}  {means}"


def precisions(table, name, seed, data, runs):
    """The test slices as a finished run draws them in float32 and in bfloat16: mean Dice of both, and the
    share of pixels on which they agree."""
    import numpy as np, torch
    from ctseg.core.device import pick_device
    from ctseg.data.challenge import read_challenge
    from ctseg.metrics.challenge import dice_table, mean_dice
    from ctseg.prediction.predictor import load_predictor, predict_masks
    torch.set_num_threads(1)
    folder, test = Path(runs)/table/f"{name}-s{seed}", read_challenge(data, "test")
    if not (folder/"metrics.json").exists(): sys.exit(f"no finished run in {folder}")
    masks = {}
    for precision in ("fp32", "bf16"):
        masks[precision] = predict_masks(load_predictor(folder, pick_device("cpu", precision)), test.images)
    def dice(m): return mean_dice(np.where(test.known, dice_table(m, test.masks, len(test.classes)), np.nan))
    scores = {precision: round(float(dice(m)), 4) for precision, m in masks.items()}
    return dict(name=name, seed=seed, **scores, same=float((masks["fp32"] == masks["bf16"]).mean()))


STEPS = {  # what is added, one after the other: views, then how the rule is chosen
    "ensemble": dict(views=1, rule="argmax"),
    "tta": dict(views=5, rule="argmax"),
    "rule": dict(views=1, rule="chosen"),
    "tta-rule": dict(views=5, rule="chosen"),
    "calibrated-rule": dict(views=1, rule="chosen", calibrated=True),
}


def ensembles(table, name, seeds, data, runs):
    """The finished runs of one row together (its seeds, or its folds `name-f*`): each alone (argmax, and
    its own rule), their mean, and what views, an out-of-fold rule and calibration add."""
    import numpy as np, torch
    from ctseg.prediction.prepare import prepare
    from ctseg.data.challenge import read_challenge
    from ctseg.core.device import pick_device
    from ctseg.metrics.challenge import dice_table, mean_dice
    from ctseg.inference.rule import Rule
    from ctseg.prediction.predictor import predict_masks
    torch.set_num_threads(1)
    train, test, plan = read_challenge(data), read_challenge(data, "test"), pick_device("auto", "bf16")
    folders = sorted(
        f
        for s in seeds
        for form in (f"{name}-f*-s{s}", f"{name}-s{s}")
        for f in (Path(runs)/table).glob(form)
        if (f/"metrics.json").exists()
    )
    if not folders: sys.exit(f"no finished run of {name} under {Path(runs)/table}; train the table first")
    def score(masks): return dice_table(masks, test.masks, len(test.classes)).astype(np.float32)
    each = [prepare(f, plan) for f in folders]
    alone = [[score(m) for m in predict_masks(p, test.images, [Rule(), p.rule])] for p in each]
    keep = {
        "dice_single": np.stack([argmax for argmax, _ in alone]),
        "dice_single-rule": np.stack([ruled for _, ruled in alone]),
    }
    facts = {"runs": [f.name for f in folders], "single-rule": [str(p.rule) for p in each]}
    for step, how in STEPS.items():
        p = prepare(
            folders,
            plan,
            how["views"],
            how.get("calibrated", False),
            train if how["rule"] == "chosen" else None,
        )
        rule = p.rule if how["rule"] == "chosen" else Rule()
        keep[f"dice_{step}"], facts[step] = score(predict_masks(p, test.images, [rule])[0]), str(rule)
        print(f"{name}  {step:<16}{mean_dice(keep[f'dice_{step}']):.4f}  {rule}", flush=True)
    target = RESULTS/"ensemble"/f"{table}-{name}.npz"
    write_arrays(
        target,
        **keep,
        groups=test.groups,
        truth=test.present,
        classes=np.array(test.classes.names),
        facts=json.dumps(facts),
    )
    return f"{target}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("table", choices=[*TABLES, "gpu"], help="gpu: the whole programme on a card, see gpu.py")
    p.add_argument("--data", type=Path, help="a challenge folder whose test slices have truth")
    p.add_argument("--out", type=Path, default=ROOT/"runs"/"gpu", help="of the table gpu")
    p.add_argument("--minutes", type=float, default=15, help="of the table gpu")
    p.add_argument("--runs", type=Path, default=ROOT/"runs"/"bench")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--only", nargs="+", default=[], help="names of rows")
    p.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="for every row, after its own: precision=fp32 where the processor has no bf16",
    )
    p.add_argument("--init", default="", help="a run that every row starts from: marginal-from-phantom needs one")
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--threads", type=int, default=1, help="of each job")
    p.add_argument(
        "--confidence",
        action="store_true",
        help="do not train; write how sure the finished runs of a row are of each test slice, and how right",
    )
    p.add_argument(
        "--decisions",
        action="store_true",
        help="do not train; decide what the finished runs of each row predict in several ways",
    )
    p.add_argument(
        "--precisions",
        action="store_true",
        help="do not train; predict with the finished runs of each row in float32 and in bfloat16",
    )
    p.add_argument(
        "--test", type=Path, help="with --decisions: the test slices of this folder, for a second opinion"
    )
    p.add_argument(
        "--ensemble",
        action="store_true",
        help=(
            "do not train; average the finished runs of a row, its seeds or its folds NAME-f0, NAME-f1, … "
            "(--only NAME)"
        ),
    )
    a = p.parse_args()
    if a.table == "gpu":
        from gpu import measure
        print(json.dumps(measure(a.data, a.out, a.minutes, settings=a.settings), indent=1))
        return
    if a.data is None: p.error("--data is missing")
    if a.ensemble:
        for name in a.only or sorted({re.sub(r"-f\d+$", "", row[0]) for row in TABLES[a.table]}):
            print(ensembles(a.table, name, a.seeds, a.data, a.runs), flush=True)
        return
    rows = [t for t in TABLES[a.table] if not a.only or t[0] in a.only]
    if a.confidence:
        for name, *_ in rows: print(confidences(a.table, name, a.seeds, a.data, a.runs), flush=True)
        return
    if a.precisions:
        import pandas as pd
        found = [precisions(a.table, name, s, a.data, a.runs) for name, *_ in rows for s in a.seeds]
        pd.DataFrame(found).to_csv(RESULTS/f"precision_{a.table}.csv", index=False, float_format="%.5f")
        return
    if a.decisions:
        with ProcessPoolExecutor(a.jobs) as pool:
            for f in [
                pool.submit(
                    decisions,
                    a.table,
                    name,
                    s,
                    a.data.resolve(),
                    a.runs.resolve(),
                    a.test and a.test.resolve(),
                )
                for name, *_ in rows
                for s in a.seeds
            ]:
                print(f.result(), flush=True)
        return
    tasks = [
        Task(
            a.table,
            name,
            recipe,
            settings + tuple(a.settings),
            seed,
            a.data.resolve(),
            a.runs.resolve(),
            a.threads,
            a.init,
        )
        for seed in a.seeds
        for name, recipe, settings in rows
    ]
    with ProcessPoolExecutor(a.jobs) as pool:
        for f in [pool.submit(one, t) for t in tasks]: print(f.result(), flush=True)


if __name__ == "__main__": main()
