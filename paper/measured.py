"""Every number of REPORT.pdf, computed from what the benchmark notebooks and tools/bench.py wrote.

`collect()` gives a dictionary of plain numbers, strings and lists: report.typ prints it, figures.py
draws from the same runs.
"""
import csv
import io
import json
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import stats

from ctseg.data.augment import MILD
from ctseg.data.slices import SliceSet
from ctseg.data.challenge import read_challenge
from ctseg.metrics.bootstrap import bootstrap_mean, paired_bootstrap
from ctseg.metrics.challenge import mean_dice
from ctseg.phantom import make_phantom
from ctseg.runs.recipe import apply_settings
from ctseg.recipes.table import get_recipe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT/"nbs"/"benchmarks"/"results"
SUM, LOG = "Dice summed over the batch, not per image", "the logarithm of the Dice"
ABLATIONS = [
    ("masked-log", "masked", LOG),
    ("marginal-log", "marginal", LOG),
    ("marginal", "marginal-image", SUM),
    ("masked", "masked-image", SUM),
    ("masked", "masked-nopixel", "per-pixel known"),
    ("marginal", "ce-dice-zeros", "unknown kept apart from background"),
]
COMPARISONS = [
    ("masked-log", "original-attunet"),
    ("masked", "original-attunet"),
    ("marginal", "original-attunet"),
    ("masked", "marginal"),
]
RULED = ("masked-log", "masked", "marginal", "original-attunet")  # whose decision rules are told
METHODS = (
    "supervised",
    "teacher-student",
    "pretrain-finetune",
    "mean-teacher",
    "unimatch",
    "self-training",
    "longer",
    "warm-unimatch",
    "ctseg",
    "ctseg-longer",
    "ctseg-second-3",
)
# the supervised row of each loss
STARTS = {"original": "original-attunet", "sigmoid": "log", "softmax": "marginal-log"}
PREFIX = {"original": "original", "sigmoid": "log", "softmax": "marginal"}
# the rows not called PREFIX-METHOD
NAMED = {
    ("sigmoid", "ctseg"): "ctseg-sigmoid",
    ("softmax", "ctseg"): "ctseg",
    ("softmax", "ctseg-longer"): "ctseg-longer",
    ("softmax", "ctseg-second-3"): "ctseg-second-3",
}
# the original's two methods
PHASED = tuple(f"{p}-{m}" for p in PREFIX.values() for m in ("teacher-student", "pretrain-finetune"))
# our loss with all images, of the rows with several seeds
ALL_IMAGES = {"ctseg": "ctseg", "ctseg-sigmoid": "ctseg", "log-unimatch": "unimatch"}
BY_BUDGET = {  # row: its name in the table efficiency, in semi100 and in semi800
    "original-attunet": ("original-attunet", "original-attunet", "original-attunet"),
    "marginal-log": ("marginal-log", "marginal-log", "marginal-log"),
    "ctseg, short": ("ctseg-half", "ctseg", "ctseg"),
    "ctseg": ("ctseg-long", "ctseg-second-3", "ctseg"),
}
SCORES = ("max", "entropy", "foreground", "sdc", "agreement")


def load(table: Path) -> dict:
    "The kept arrays of every run of a table: {name: {seed: arrays}}."
    runs = {}
    for path in sorted(table.glob("*.npz")):
        name, _, seed = path.stem.rpartition("-s")
        with np.load(path) as f: arrays = {k: f[k] for k in f.files}
        runs.setdefault(name, {})[int(seed)] = arrays | {"facts": json.loads(str(arrays["facts"]))}
    return runs

def _by_rule(run: dict, what: str) -> np.ndarray:
    """By threshold and gate, as in most runs of the tables: a table must not mix them with the rules that
    `fit` chose later."""
    return next(run[k] for k in (f"{what}_gated", f"{what}_chosen", f"{what}_argmax") if k in run)

def chosen(run: dict) -> np.ndarray:
    "Dice of each (slice, class), f32 [N,C], by the rule that was chosen on held-out slices."
    return _by_rule(run, "dice")

def argmax(run: dict) -> np.ndarray:
    "Dice of each (slice, class), f32 [N,C], by argmax."
    return run["dice_argmax"]

def area(run: dict) -> np.ndarray:
    "Which classes the chosen rule draws on each slice, bool [N,C]."
    return _by_rule(run, "area") > 0

def history(run: dict) -> list[dict]:
    "The rows of a run's learning curve; none where it was not kept."
    return list(csv.DictReader(io.StringIO(str(run["history"])))) if "history" in run else []

def rows(path: Path) -> list[dict]:
    "The rows of a CSV; none where it is missing."
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def paired(a, b, groups) -> dict:
    """The difference of two rows of Dice tables [N,C], seed by seed. The interval is over patients;
    `by_seed`, `wins` and `half_seeds` tell of the luck of training."""
    by_seed, n = [mean_dice(x) - mean_dice(y) for x, y in zip(a, b)], len(a)
    # t interval of the mean over trainings
    half = stats.t.ppf(.975, n - 1)*np.std(by_seed, ddof=1)/np.sqrt(n) if n > 1 else None
    return paired_bootstrap(np.stack(a), np.stack(b), groups) | dict(
        seeds=n, by_seed=by_seed, wins=sum(d > 0 for d in by_seed), half_seeds=half
    )

def compare(runs, a, b, of=chosen, groups="groups"):
    "a - b over the seeds that both have, or None."
    seeds = sorted(runs.get(a, {}).keys() & runs.get(b, {}).keys())
    if not seeds: return None
    ta, tb = ([of(runs[n][s]) for s in seeds] for n in (a, b))
    return paired(ta, tb, runs[a][seeds[0]][groups]) | dict(first=a, second=b)

def compare_left_out(runs, a, b):
    "The same on the annotated slices that the setting `labelled` left out, over the runs that kept them."
    kept = {n: {s: r for s, r in runs.get(n, {}).items() if "rest_groups" in r} for n in (a, b)}
    return compare(kept, a, b, lambda r: r.get("rest_chosen", r["rest_argmax"]), "rest_groups")

def row(runs, name, reference):
    "What a table says of one recipe; means over its seeds."
    mine = list(runs[name].values())
    tables, truth, classes = np.stack([chosen(r) for r in mine]), mine[0]["truth"], mine[0]["classes"]
    scores, b = [mean_dice(t) for t in tables], bootstrap_mean(tables, mine[0]["groups"])
    silent = [{str(c) for c, drawn in zip(classes, area(r).any(0)) if not drawn} for r in mine]
    def mean(of_run): return float(np.mean([of_run(r) for r in mine]))
    return dict(
        name=name,
        seeds=len(mine),
        scores=scores,
        dice=b["mean"],
        low=b["low"],
        high=b["high"],
        sd=float(np.std(scores, ddof=1)) if len(mine) > 1 else None,
        argmax=mean(lambda r: mean_dice(argmax(r))),
        invented=mean(lambda r: (area(r) & ~truth).sum()),
        missed=mean(lambda r: (~area(r) & truth).sum()),
        silent=sorted(set.union(*silent)),
        by_class=[mean(lambda r: np.nanmean(chosen(r)[:, c])) for c in range(len(classes))],
        vs=compare(runs, name, reference(name)) if reference(name) != name else None,
        settings=mine[0]["facts"]["settings"],
    )

def line(runs, name, reference: str) -> dict:
    "The same as the notebooks show it; `difference` is to the row `reference`."
    r = row(runs, name, lambda _: reference)
    vs = r["vs"] or {}
    return (
        {"seeds": r["seeds"], "Dice": float(np.mean(r["scores"])), "sd": r["sd"]}
        | {k: vs.get(k) for k in ("difference", "low", "high")}
        | {
            "paired seeds": vs.get("seeds"),
            "better in": vs.get("wins"),
            "invented": r["invented"],
            "missed": r["missed"],
            "silent": ", ".join(r["silent"]),
        }
    )

def table(runs: dict, reference=lambda name: "original-attunet"):
    "All recipes of a table, the best first. None if it is empty."
    if not runs: return None
    first = next(iter(next(iter(runs.values())).values()))
    return dict(
        rows=sorted([row(runs, n, reference) for n in runs], key=lambda r: -r["dice"]),
        runs=sum(map(len, runs.values())),
        slices=len(first["truth"]),
        patients=len(np.unique(first["groups"])),
        classes=[str(c) for c in first["classes"]],
        support=first["truth"].sum(0).tolist(),
    )


def verdict(d) -> str:
    """In words, for a difference (`paired`) that is claimed to be positive: both the patients' interval and
    every training must agree."""
    if d["seeds"] == 1:
        return f"one seed: {'for it' if d['difference'] > 0 else 'against it'}"
    if d["seeds"] == 2: return "two seeds"
    if d["low"] > 0 and min(d["by_seed"]) > 0: return "held"
    if d["high"] < 0 and max(d["by_seed"]) < 0: return "the opposite"
    return "not seen"

def rule_gain(by_seed, name, rule):
    "A decision rule against argmax, on the same probabilities; None if no seed has it."
    some = [r for r in by_seed.values() if f"dice_{rule}" in r]
    if not some: return None
    tables = [[r[f"dice_{way}"] for r in some] for way in (rule, "argmax")]
    return paired(*tables, some[0]["groups"]) | dict(name=name, rule=rule)

def supervised(folder: Path):
    "The supervised table with its ablations and decision rules."
    runs = load(folder)
    t = table(runs)
    if t is None: return None
    headlines = [n for n in ("masked", "masked-log") if n in runs]
    best = max(headlines, key=lambda n: (len(runs[n]), n), default="")  # log when it has the seeds
    main = [compare(runs, a, b) for a, b in COMPARISONS]
    rules = [rule_gain(runs.get(n, {}), n, rule) for n in RULED for rule in ("threshold", "gate", "both")]
    return t | dict(
        headline=best,
        main=[d for d in main if d],
        ablations=[d | dict(what=what) for a, b, what in ABLATIONS if (d := compare(runs, a, b))],
        rules=[d for d in rules if d],
    )

DECIDED = {"phantom240": "phantom, 240 annotated", "semi800": "real CT, 800", "semi100": "real CT, 100"}

def decisions(folder: Path) -> list[dict]:
    "The same trained networks decided by argmax, by one gate, and by the expected Dice."
    found = []
    for name, by_seed in load(folder).items():
        table = name.split("-")[0]
        d = {k: [r[f"dice_{k}"] for _, r in sorted(by_seed.items())] for k in ("argmax", "gated", "expected")}
        groups = next(iter(by_seed.values()))["groups"]
        found.append(
            dict(where=DECIDED[table], name=name.removeprefix(table + "-"), seeds=len(by_seed))
            | {k: float(np.mean([mean_dice(t) for t in v])) for k, v in d.items()}
            | {f"over_{k}": paired(d["expected"], d[k], groups) for k in ("argmax", "gated")}
        )
    return sorted(found, key=lambda r: (list(DECIDED.values()).index(r["where"]), -r["expected"]))

def least_areas(folder: Path) -> dict:
    "What the rule that `fit` takes now is worth over argmax and over expected Dice, one training at a time."
    found = {}
    every = [(name, run) for name, of_seed in load(folder).items() for run in of_seed.values()]
    for where in ("real", "phantom"):
        runs = [run for name, run in every if name.startswith("phantom") == (where == "phantom")]
        if not runs: return {}
        found[where] = {"trainings": len(runs)}
        for way in ("argmax", "expected"):
            gains = [mean_dice(run["dice_chosen"]) - mean_dice(run[f"dice_{way}"]) for run in runs]
            wins = sum(gain > 0 for gain in gains)
            found[where][way] = {"difference": float(np.mean(gains)), "wins": wins}
    return found


def phases(by_seed) -> list[dict]:
    "Mean held-out Dice at the end of each phase of a recipe."
    last = [{r["phase"]: float(r["dice"]) for r in history(run)} for run in by_seed.values() if history(run)]
    return [dict(phase=p, dice=float(np.mean([x[p] for x in last]))) for p in last[0]] if last else []

def start_of(name) -> str:
    "Which loss a row of a semi-supervised table has, a key of `STARTS`."
    if name.startswith("original"): return "original"
    if name.startswith("marginal"): return "softmax"
    return "softmax" if name.startswith("ctseg") and name != "ctseg-sigmoid" else "sigmoid"

def baseline(runs, name) -> str:
    """The supervised row that a semi-supervised one is compared with: of the same loss, and of the same
    precision if there is one."""
    exact = any("precision=fp32" in r["facts"]["settings"] for r in runs[name].values())
    first = STARTS[start_of(name)]
    return "log-fp32" if first == "log" and exact and "log-fp32" in runs else first

def row_name(start: str, method: str) -> str:
    "What the tables call a method from a loss, a key of `STARTS`."
    if method == "supervised": return STARTS[start]
    return NAMED.get((start, method), f"{PREFIX[start]}-{method}")

def semi(folder: Path):
    "A semi-supervised table: each method against its supervised baseline, by the loss it starts from."
    runs = load(folder)
    t = table(runs, lambda name: baseline(runs, name))
    if t is None or not set(runs) - set(STARTS.values()): return None
    by = {r["name"]: r for r in t["rows"]}
    cells = [dict(method=m, **{k: by.get(row_name(k, m)) for k in STARTS}) for m in METHODS]
    told = {
        n: dict(start=start_of(n), method=n.partition("-")[2], ends=p)
        for n in PHASED
        if (p := phases(runs.get(n, {})))
    }
    plain = [
        compare(runs, n, baseline(runs, n), argmax) | dict(start=start_of(n), method=m)
        for n, m in ALL_IMAGES.items()
        if n in runs
    ]
    return t | dict(
        by_argmax=[d for d in plain if d["seeds"] > 1],
        cells=[c for c in cells if any(c[k] for k in STARTS)],
        loss=compare(runs, "log", "original-attunet"),
        phases=told,
        epochs=next(
            (v.split("=")[1] for v in reversed(t["rows"][0]["settings"]) if v.startswith("epochs=")), ""
        ),
    )

def ranking(score, dice) -> dict:
    """How a confidence ranks slices by their Dice: Spearman's correlation, and 1 - Dice averaged over all
    shares kept (lower is better)."""
    kept = np.cumsum(dice[np.argsort(-score, kind="stable")])/np.arange(1, len(dice) + 1)
    return dict(rank=float(stats.spearmanr(score, dice)[0]), aurc=float(np.mean(1 - kept)))

def confidence(folder: Path) -> list[dict]:
    """Which confidence ranks the test slices of a teacher by their Dice: `one` is the first teacher, `mean`
    the average of all."""
    made = []
    for path in sorted(folder.glob("*.npz")):
        t, (table, _, name) = np.load(path), path.stem.partition("-")
        made.append(dict(table=table, name=name, seeds=len(t["seeds"])))
        for kind in ("one", "mean"):
            some = np.isfinite(t[f"{kind}_dice"]).any(1)
            dice = np.nanmean(t[f"{kind}_dice"][some], 1)
            made[-1][kind] = dict(slices=len(dice), chance=float(1 - dice.mean())) | {
                s: ranking(t[f"{kind}_{s}"][some], dice) for s in SCORES if f"{kind}_{s}" in t}
    return made


def realct() -> dict:
    """What the list of slices says of the real-CT benchmark: rows of patient, slice, window level, window
    width, examined classes."""
    spec = json.loads((ROOT/"nbs"/"benchmarks"/"realct_slices.json").read_text())
    some, none = ([s for s in spec["train"] if bool(s[4]) == has] for has in (True, False))
    def patients(rows): return len({row[0] for row in rows})
    C = max(c for s in spec["train"] + spec["test"] for c in s[4])
    return dict(
        size=spec["size"],
        classes=C,
        labelled=len(some),
        labelled_patients=patients(some),
        most=max(len(s[4]) for s in some),
        known_labelled=sum(len(s[4]) for s in some)/(len(some)*C),
        unlabelled=len(none),
        unlabelled_patients=patients(none),
        test=len(spec["test"]),
        test_patients=patients(spec["test"]),
    )

@lru_cache
def small_phantom() -> tuple[SliceSet, SliceSet]:
    """A phantom folder to show what partial annotation is: 24 training slices, 10 of them annotated, and 8
    test slices."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)/"phantom"
        make_phantom(data, labelled=10, unlabelled=14, test=8, size=256, seed=2500, empty=0.1)
        return read_challenge(data, cache=False), read_challenge(data, "test", cache=False)

def phantom() -> dict:
    "What there is in `small_phantom`."
    s, t = small_phantom()
    def share(cells): return float(cells.sum()/s.known.size)
    return dict(
        slices=len(s),
        labelled=int(s.labelled.sum()),
        test=len(t),
        classes=len(s.classes),
        examined=int(s.known.sum(1).max()),
        present=share(s.present & s.known),
        absent=share(~s.present & s.known),
        unknown=share(~s.known),
    )

def on_phantom(results: Path) -> list[dict]|None:
    "The tables of phantom folders with 600 slices, by how many of them are annotated."
    return [
        t | {"annotated": n}
        for n, folder in ((240, "phantom240"), (100, "phantom"))
        if (t := table(load(results/folder)))
    ] or None

def terms(t) -> dict:
    "What the text says of the recipe, as the supervised runs used it, and of the augmentation."
    r = apply_settings(
        get_recipe("masked"),
        next((r["settings"] for r in t["rows"] if r["name"] == "masked"), ()) if t else (),
    )
    told = ("width", "epochs", "batch_size", "lr", "weight_decay", "clip", "ema", "folds")
    return {k: r.value(k) for k in told} | {
        "augmentation": {k: getattr(MILD, k) for k in ("degrees", "scale", "shift")}
    }


def plain(x):
    "Only what JSON knows; floats to 9 digits, so that the last bit of a sum does not matter."
    if isinstance(x, dict): return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [plain(v) for v in x]
    if isinstance(x, (bool, int, str)) or x is None: return x
    return None if np.isnan(x) else round(float(x), 9)

def number(text):
    try: return float(text)
    except ValueError: return text

def by_budget(results: Path) -> dict:
    "The runs of each row of `BY_BUDGET` on ever more annotated slices: {(row, slices): {seed: run}}."
    trained = {slices: load(results/f"semi{slices}") for slices in (100, 800)}
    runs = {
        (row, slices): trained[slices][name]
        for row, names in BY_BUDGET.items()
        for slices, name in zip(trained, names[1:])
        if name in trained[slices]
    }
    rows = {names[0]: row for row, names in BY_BUDGET.items()}
    for name, of_seed in load(results/"efficiency").items():
        recipe, _, slices = name.rpartition("-")
        runs[rows[recipe], int(slices)] = of_seed
    return runs


def peers(results: Path) -> list[dict]:
    "Other libraries on one hundred annotated slices, by argmax, and what `ctseg` has more after as much time."
    ours = load(results/"semi100").get("ctseg")
    if not ours: return []
    runs = {name.removesuffix("-100"): of_seed for name, of_seed in load(results/"peers").items()}
    runs["ctseg"] = ours
    def mean(name): return float(np.mean([mean_dice(argmax(run)) for run in runs[name].values()]))
    return [
        {"name": name, "dice": mean(name), "more": compare(runs, "ctseg", name, argmax)}
        for name in sorted(runs, key=mean)
    ]


def many_patients(results: Path) -> dict:
    """A hundred annotated slices of nearly as many patients: `ctseg` against those of thirteen, by argmax; and
    its mean with a pretrained network against itself, both by least areas."""
    drawn, first = load(results/"spread"), "spread100-ctseg"
    runs = {"many": drawn.get(first, {}), "few": load(results/"semi100").get("ctseg-second-3", {})}
    more = compare(runs, "many", "few", argmax)
    pairs = load(results/"together").get(f"spread-{first}+{first}-pretrained", {})
    if not more or not pairs: return {}
    ways = {"pair": "dice_least", "alone": f"{first}_least"}
    tables = {way: [run[key] for run in pairs.values()] for way, key in ways.items()}
    scores = {way: [mean_dice(table) for table in of_way] for way, of_way in tables.items()}
    gain = paired(tables["pair"], tables["alone"], next(iter(pairs.values()))["groups"])
    return {"spread": more, "pair": gain, "scores": scores}


def beyond(results: Path) -> dict:
    "What lies beyond the original's comparison. Everything is decided by argmax."
    scores = {key: [mean_dice(argmax(r)) for r in runs.values()] for key, runs in by_budget(results).items()}
    cells = [{"row": row, "slices": slices, "scores": s} for (row, slices), s in sorted(scores.items())]
    small = {"ctseg": load(results/"semi100").get("ctseg", {})} | load(results/"pretrained")
    return {
        "budgets": cells,
        "many_patients": many_patients(results),
        "peers": peers(results),
        "pretrained": compare(small, "ctseg-pretrained", "ctseg", argmax),
        "large": compare(load(results/"large"), "lite0", "attunet", argmax),
    }


def collect(results: Path = RESULTS) -> dict:
    "All of it."
    main, claim = supervised(results/"supervised"), results/"original_claim.json"
    tables = {
        name: [{column: number(text) for column, text in r.items()} for r in rows(results/f"{name}.csv")]
        for name in ("models", "networks", "faults", "transposed", "demo")
    }
    return plain(
        tables
        | dict(
            realct=realct(),
            phantom=phantom(),
            terms=terms(main),
            supervised=main,
            on_phantom=on_phantom(results),
            semi100=semi(results/"semi100"),
            semi800=semi(results/"semi800"),
            confidence=confidence(results/"confidence"),
            decisions=decisions(results/"decision"),
            second_opinion=decisions(results/"decision_other"),
            least_areas=least_areas(results/"decision_least"),
            beyond=beyond(results),
            claim=json.loads(claim.read_text()) if claim.exists() else None,
        )
    )
