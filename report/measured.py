"""Every number of REPORT.pdf, computed from what the benchmark notebooks and tools/bench.py wrote.

`collect()` gives a dictionary of plain numbers, strings and lists. report.typ prints it, figures.py draws from the same runs; nothing else knows a number.
"""
import csv, io, json
from pathlib import Path

import numpy as np
from scipy import stats

from ctseg.data import read_challenge
from ctseg.augment import MILD
from ctseg.metrics import bootstrap_mean, mean_dice, paired_bootstrap
from ctseg.recipes import apply_settings, get_recipe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT/"nbs"/"benchmarks"/"results"
ABLATIONS = [("marginal", "marginal-image", "Dice summed over the batch, not per image"), ("masked", "masked-image", "Dice summed over the batch, not per image"),
             ("masked", "masked-nopixel", "per-pixel known"), ("marginal", "ce-dice-zeros", "unknown kept apart from background")]


def load(table: Path) -> dict:
    "The kept arrays of every run of a table: {name: {seed: arrays}}."
    runs = {}
    for path in sorted(table.glob("*.npz")):
        name, _, seed = path.stem.rpartition("-s")
        with np.load(path) as f: runs.setdefault(name, {})[int(seed)] = {k: f[k] for k in f.files} | {"facts": json.loads(str(f["facts"]))}
    return runs

def chosen(run): return run.get("dice_chosen", run["dice_argmax"])
def area(run): return run.get("area_chosen", run["area_argmax"]) > 0
def history(run) -> list[dict]: return list(csv.DictReader(io.StringIO(str(run["history"])))) if "history" in run else []
def rows(path) -> list[dict]: return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def compare(runs, a, b, of=chosen):
    "a - b over the seeds that both have: the interval is over patients, `by_seed` shows the luck of training. None if there is nothing to compare."
    if a not in runs or b not in runs or not (seeds := sorted(runs[a].keys() & runs[b].keys())): return None
    ta, tb = (np.stack([of(runs[n][s]) for s in seeds]) for n in (a, b))
    by_seed = [mean_dice(x) - mean_dice(y) for x, y in zip(ta, tb)]
    half = stats.t.ppf(.975, len(seeds) - 1)*np.std(by_seed, ddof=1)/np.sqrt(len(seeds)) if len(seeds) > 1 else None  # of the mean over trainings
    return paired_bootstrap(ta, tb, runs[a][seeds[0]]["groups"]) | dict(first=a, second=b, seeds=len(seeds), by_seed=by_seed, wins=sum(d > 0 for d in by_seed), half_seeds=half)

def row(runs, name, reference):
    "What a table says of one recipe."
    mine = list(runs[name].values())
    tables = np.stack([chosen(r) for r in mine])
    scores, b, truth, classes = [mean_dice(t) for t in tables], bootstrap_mean(tables, mine[0]["groups"]), mine[0]["truth"], mine[0]["classes"]
    silent = [{str(c) for c, drawn in zip(classes, area(r).any(0)) if not drawn} for r in mine]
    return dict(name=name, seeds=len(mine), scores=scores, dice=b["mean"], low=b["low"], high=b["high"], sd=float(np.std(scores, ddof=1)) if len(mine) > 1 else None,
                argmax=float(np.mean([mean_dice(r["dice_argmax"]) for r in mine])),
                invented=float(np.mean([(area(r) & ~truth).sum() for r in mine])), missed=float(np.mean([(~area(r) & truth).sum() for r in mine])),
                silent=sorted(set.union(*silent)), by_class=[float(np.mean([np.nanmean(chosen(r)[:, c]) for r in mine])) for c in range(len(classes))],
                invented_by_class=[float(np.mean([(area(r) & ~truth)[:, c].sum() for r in mine])) for c in range(len(classes))],
                vs=compare(runs, name, reference(name)) if reference(name) != name else None, settings=mine[0]["facts"]["settings"])

def table(folder: Path, reference=lambda name: "seed-attunet"):
    "All recipes of a table, the best first. None if there is no such table yet."
    runs = load(folder)
    if not runs: return None
    first = next(iter(next(iter(runs.values())).values()))
    made = [row(runs, n, reference) for n in runs]
    return dict(rows=sorted(made, key=lambda r: -r["dice"]), slices=len(first["truth"]), patients=len(np.unique(first["groups"])), classes=[str(c) for c in first["classes"]],
                support=first["truth"].sum(0).tolist(), hours=sum(r["facts"]["seconds"] for by in runs.values() for r in by.values())/3600, runs=sum(map(len, runs.values())))


def supervised(folder: Path):
    "The supervised table with its ablations and decision rules."
    t, runs = table(folder), load(folder)
    if t is None: return None
    ablations = [compare(runs, a, b) | dict(what=what) for a, b, what in ABLATIONS if compare(runs, a, b)]
    rules = []
    for name in ("masked", "marginal", "seed-attunet"):
        for rule in ("threshold", "gate", "both"):
            seeds = [s for s, r in runs.get(name, {}).items() if f"dice_{rule}" in r]
            if not seeds: continue
            with_rule, plain = (np.stack([runs[name][s][f"dice_{k}"] for s in seeds]) for k in (rule, "argmax"))
            rules.append(paired_bootstrap(with_rule, plain, runs[name][seeds[0]]["groups"]) | dict(name=name, rule=rule, seeds=len(seeds)))
    return t | dict(ablations=ablations, rules=rules, main=[d for d in (compare(runs, a, b) for a, b in [("masked", "seed-attunet"), ("marginal", "seed-attunet"), ("masked", "marginal")]) if d])

def semi(folder: Path):
    "A semi-supervised table: each method against the supervised run that starts from the same loss."
    reference = lambda name: "seed-attunet" if name.startswith("seed") else "masked"
    t = table(folder, reference)
    if t is None: return None
    runs, by = load(folder), {r["name"]: r for r in t["rows"]}
    start = {"seed": "seed-attunet", "masked": "masked"}
    cells = [dict(method=m, **{s: by.get(start[s] if m == "supervised" else f"{s}-{m}") for s in start})
             for m in ("supervised", "teacher-student", "pretrain-finetune", "mean-teacher", "unimatch", "self-training")]
    epochs = next((v.split("=")[1] for v in reversed(t["rows"][0]["settings"]) if v.startswith("epochs=")), "")
    phases = {}
    for name in ("seed-teacher-student", "seed-pretrain-finetune"):  # mean held-out Dice at the end of each phase
        last = [{r["phase"]: float(r["dice"]) for r in history(run)} for run in runs.get(name, {}).values() if history(run)]
        if last: phases[name] = [dict(phase=p, dice=float(np.mean([x[p] for x in last]))) for p in last[0]]
    return t | dict(epochs=epochs, phases=phases, cells=[c for c in cells if c["seed"] or c["masked"]], loss=compare(runs, "masked", "seed-attunet"))


def confidence(folder: Path):
    "How well each confidence ranks the test slices of a teacher by their Dice: rank correlation, and area under the risk-coverage curve (lower is better)."
    made = []
    for path in sorted(folder.glob("*.npz")):
        t, (table, _, name) = np.load(path), path.stem.partition("-")
        row = dict(table=table, name=name, seeds=len(t["seeds"]))
        for kind in ("one", "mean"):  # the first teacher; the mean of all
            dice = t[f"{kind}_dice"]
            some = np.isfinite(dice).any(1)
            d = np.nanmean(dice[some], 1)
            risk = lambda v: float(np.mean(1 - np.cumsum(d[np.argsort(-v, kind="stable")])/np.arange(1, len(d) + 1)))
            row[kind] = {"slices": len(d), "chance": float(1 - d.mean()), "perfect": risk(d)} | {
                s: dict(rank=float(stats.spearmanr(t[f"{kind}_{s}"][some], d)[0]), aurc=risk(t[f"{kind}_{s}"][some])) for s in ("max", "entropy", "foreground", "sdc", "agreement") if f"{kind}_{s}" in t}
        made.append(row)
    return made

def realct():
    "What the list of slices says of the real-CT benchmark."
    spec = json.loads((ROOT/"nbs"/"benchmarks"/"realct_slices.json").read_text())
    some = [s for s in spec["train"] if s[4]]
    none = [s for s in spec["train"] if not s[4]]
    patients = lambda ss: len({s[0] for s in ss})
    C = max(c for s in spec["train"] + spec["test"] for c in s[4])
    known = sum(len(s[4]) for s in some)
    return dict(size=spec["size"], labelled=len(some), labelled_patients=patients(some), unlabelled=len(none), unlabelled_patients=patients(none), test=len(spec["test"]),
                test_patients=patients(spec["test"]), classes=C, most=max(len(s[4]) for s in some), known=known, cells=len(spec["train"])*C, known_labelled=known/(len(some)*C))

def phantom():
    "The sample that comes with the repository."
    s, t = read_challenge(ROOT/"data_sample", cache=False), read_challenge(ROOT/"data_sample", "test", cache=False)
    share = lambda x: float(x.sum()/s.known.size)
    return dict(slices=len(s), labelled=int(s.labelled.sum()), test=len(t), classes=len(s.classes), size=s.images.shape[1], examined=int(s.known.sum(1).max()),
                present=share(s.present & s.known), absent=share(~s.present & s.known), unknown=share(~s.known))

def terms(t):
    "What the text says of the recipe, as the supervised runs used it, and of the augmentation."
    settings = next((r["settings"] for r in t["rows"] if r["name"] == "masked"), ()) if t else ()
    r = apply_settings(get_recipe("masked"), settings)
    return {k: getattr(r, k) for k in ("width", "epochs", "batch_size", "lr", "weight_decay", "clip", "ema", "folds", "tau", "teachers")} | {"augmentation": {k: getattr(MILD, k) for k in ("degrees", "scale", "shift")}}

def plain(x):
    "Only what JSON knows; floats to 6 digits, so that the last bit of a sum does not matter."
    if isinstance(x, dict): return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [plain(v) for v in x]
    if isinstance(x, (bool, int, str)) or x is None: return x
    return None if np.isnan(x) else round(float(x), 6)

def number(text):
    try: return float(text)
    except ValueError: return text

def collect(results: Path = RESULTS) -> dict:
    "All of it."
    claim = results/"original_claim.json"
    tables = {k: [{c: number(v) for c, v in r.items()} for r in rows(results/f"{k}.csv")] for k in ("models", "faults", "transposed", "demo")}
    main = supervised(results/"supervised")
    return plain(dict(realct=realct(), phantom=phantom(), terms=terms(main), supervised=main, semi100=semi(results/"semi100"), semi800=semi(results/"semi800"),
                      on_phantom=table(results/"phantom"), confidence=confidence(results/"confidence"), claim=json.loads(claim.read_text()) if claim.exists() else None, **tables))
