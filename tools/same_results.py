"""Do whole trainings still end bit for bit as they did? `python tools/same_results.py OUT.json`

Before a refactoring: `python tools/same_results.py before.json`. After it:
`python tools/same_results.py after.json --compare before.json`, which exits with 1 if a hash differs.

Each recipe below trains at small size (CPU, float32, one thread, seed 0) on two folders: the one given
by
`--data`, and a phantom drawn from a seed. Then its run predicts the test images by its saved rule.
Hashed are
the final weights, `history.csv`, `metrics.json` and the submission.

Everything goes through the command line, so that the same file works before and after modules move.
Names
that change get their new spelling in `RECIPES` and `SPELLINGS`: the first that this ctseg accepts is
used. Hashes
hold for one machine and one set of package versions; those are written down too.
"""
import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

RECIPES = {  # name -> its spellings, the old one first
    "ctseg": ["ctseg"],
    "seed-teacher-student": ["seed-teacher-student", "original-teacher-student"],
    "seed-pretrain-finetune": ["seed-pretrain-finetune", "original-pretrain-finetune"],
    "mean-teacher": ["mean-teacher"],
    "unimatch": ["unimatch"],
    "self-training": ["self-training"],
}
COMMON = {"width": 8, "epochs": 10, "batch_size": 2, "lr": 0.01, "ema": 0.9, "image_size": 48,
          "precision": "fp32", "labelled": 15, "unlabelled": 8, "folds": 3, "fold": 0}
OF_RECIPE = {  # low thresholds: networks this small are sure of little, and nothing would be filled in
    "ctseg": {"tau": 0.5, "unlabelled_passes": 0},  # as the recipe was when the base was made
    "seed-teacher-student": {"keep": 0.5},
    "seed-pretrain-finetune": {"keep": 0.5, "finetune_epochs": 1},
    "mean-teacher": {},
    "unimatch": {"tau": 0.5},
    "self-training": {"teachers": 2, "gate": 0.0, "absent": 0.3, "pixel": 0.1, "finetune_epochs": 1},
}
SPELLINGS = {  # of a setting -> the later ones; `method.NAME` is tried last in any case
    "gate": ["cell_confidence"],
    "pixel": ["pixel_confidence"],
    "absent": ["absent_peak"],
}
PHANTOM = {"labelled": 15, "unlabelled": 8, "test": 4, "size": 64, "seed": 7}
PACKAGES = ["torch", "numpy", "scipy", "scikit-image", "timm", "accelerate"]
# keys of metrics.json; "held out": the intervals of scores that are compared anyway, and later than some runs
NOT_A_RESULT = {"version", "versions", "time", "times", "seconds", "date", "held out"}


def ctseg(*args) -> subprocess.CompletedProcess:
    "The command of this working tree, in one thread and in float32."
    same = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "CTSEG_CPU_PRECISION": "fp32"}
    command = [sys.executable, "-m", "ctseg", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | same, capture_output=True, text=True)


def ctseg_or_stop(*args):
    "The same; an error ends this script with what the command printed."
    done = ctseg(*args)
    if done.returncode:
        sys.exit(f"ctseg {' '.join(map(str, args))}\n{done.stderr}exit status {done.returncode}")


class Spelling:
    "How this version of ctseg spells recipes and settings: the first spelling that it does not refuse."
    def __init__(self):
        self.open = {("recipe", name): list(names) for name, names in RECIPES.items()}

    def of(self, kind: str, name: str) -> str:
        "The spelling to try now. `kind`: recipe or setting."
        later = [*SPELLINGS.get(name, []), f"method.{name}"]
        return self.open.setdefault((kind, name), [name, *later])[0]

    def refused(self, error: str, names: list[tuple[str, str]]) -> bool:
        "Go on to the next spelling of the name that `error` complains of; False if there is none to try."
        for key in names:
            complained_of = re.search(rf"unknown.*?['\"]{re.escape(self.open[key][0])}['\"]", error)
            if complained_of and len(self.open[key]) > 1:
                self.open[key].pop(0)
                return True
        return False


def train(recipe: str, data: Path, out: Path, spelling: Spelling) -> str:
    "Train `recipe` on `data` into `out`; the fold held out (-1: none, where there are too few patients)."
    settings = COMMON | OF_RECIPE[recipe]
    names = [("recipe", recipe), *(("setting", key) for key in settings)]
    while True:
        given = [f"--set={spelling.of('setting', key)}={value}" for key, value in settings.items()]
        spelt = spelling.of("recipe", recipe)
        done = ctseg("fit", data, "--out", out, "--recipe", spelt, "--device", "cpu", "--seed", 0, *given)
        if done.returncode == 0:
            return str(settings["fold"])
        if done.returncode == 2 and spelling.refused(done.stderr, names):
            continue
        if done.returncode == 2 and settings["fold"] != -1 and re.search("fold ?= ?-1", done.stderr):
            settings["fold"] = -1
            continue
        sys.exit(f"{recipe} on {data}: ctseg fit ended with exit status {done.returncode}\n{done.stderr}")


def digest(*parts: bytes) -> str:
    "sha256 of the parts, one after the other."
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def data_hash(folder: Path) -> str:
    "sha256 of what is read of a challenge folder: names and contents of images, tables and JSON files."
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".md"]
    named = [(p.relative_to(folder).as_posix().encode(), p.read_bytes()) for p in files]
    return digest(*(part for pair in named for part in pair))


def results_only(value):
    "`metrics.json` without what may differ between two equal runs."
    if isinstance(value, dict):
        return {k: results_only(v) for k, v in value.items() if k not in NOT_A_RESULT}
    return [results_only(v) for v in value] if isinstance(value, list) else value


def plain_weights(path: Path) -> bytes:
    "A weights file as it is without the note with its checksum, which an older ctseg did not write."
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:end])
    if entries.pop("__metadata__", None) is None:
        return content
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" "*(-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def run_hashes(run: Path, submission: Path) -> dict[str, str]:
    "sha256 of each result of a finished run."
    metrics = json.loads((run/"metrics.json").read_text(encoding="utf-8"))
    return {"weights": digest(plain_weights(run/"checkpoints"/"model.safetensors")),
            "history": digest((run/"history.csv").read_bytes()),
            "metrics": digest(json.dumps(results_only(metrics), sort_keys=True).encode()),
            "submission": digest(submission.read_bytes())}


def row(name: str, hashes: dict[str, str], seconds: float, fold: str) -> str:
    "A line of the table."
    short = "  ".join(f"{kind} {value[:10]}" for kind, value in hashes.items())
    return f"{name:<32}fold {fold:>2}  {short}  {seconds:5.1f} s"


def record(data: Path, work: Path, only: list[str]) -> dict:
    "Train, predict and hash; the table is printed as it grows."
    phantom = work/"phantom-data"
    ctseg_or_stop("phantom", phantom, *(x for key, value in PHANTOM.items() for x in (f"--{key}", value)))
    found = {"data": {"folder": data_hash(data), "phantom": data_hash(phantom)}, "runs": {},
             "packages": {"python": sys.version.split()[0]} | {p: metadata.version(p) for p in PACKAGES}}
    spelling = Spelling()
    for kind, folder in (("folder", data), ("phantom", phantom)):
        print(f"{kind}: {found['data'][kind][:10]}")
        for recipe in only or RECIPES:
            start, out, submission = time.monotonic(), work/f"{recipe}-{kind}", work/f"{recipe}-{kind}.csv"
            fold = train(recipe, folder, out, spelling)
            images = folder/"test-images"
            ctseg_or_stop("predict", out, "--images", images, "--out", submission, "--device", "cpu")
            found["runs"][f"{recipe} {kind}"] = hashes = run_hashes(out, submission)
            print(row(f"{recipe} {kind}", hashes, time.monotonic() - start, fold), flush=True)
    return found


def differences(old: dict, new: dict) -> list[str]:
    "A line for each hash of `new` that `old` has otherwise or not at all."
    lines = []
    for name, hashes in new["runs"].items():
        before = old["runs"].get(name, {})
        lines += [f"{name}: another {kind}" for kind, value in hashes.items() if before.get(kind) != value]
    if not lines:
        return []
    now = new["packages"]
    reasons = [f"other data: {kind}" for kind, value in new["data"].items() if old["data"][kind] != value]
    reasons += [f"{p} {now.get(p)}, it was {was}" for p, was in old["packages"].items() if now.get(p) != was]
    return [f"not comparable: {r}" for r in reasons] + lines


def main():
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    add = parser.add_argument
    add("out", type=Path, help="the JSON file to write")
    add("--data", type=Path, default=ROOT/"data_sample", help="a challenge folder with test images")
    add("--work", type=Path, help="keep the runs in this folder, new or empty; left out: they are deleted")
    add("--compare", type=Path, metavar="OTHER.json", help="print which hashes differ; 1 if any does")
    add("--only", nargs="+", default=[], choices=RECIPES, help="these recipes alone")
    args = parser.parse_args()
    old = json.loads(args.compare.read_text(encoding="utf-8")) if args.compare else None
    if args.work and args.work.exists() and any(args.work.iterdir()):
        parser.error(f"--work {args.work}: not empty; choose a new folder")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        found = record(args.data.resolve(), work.resolve(), args.only)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(found['runs'])} runs, {time.monotonic() - start:.0f} s: {args.out}")
    if old is None:
        return
    differ = differences(old, found)
    print("\n".join(differ) if differ else f"all as in {args.compare}")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
