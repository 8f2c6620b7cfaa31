"""What the promises of whole and unchanged files cost: syncing to the disk, checksums, comparing them.

    python tools/promises.py nbs/benchmarks/results/promises.json

A network is trained and predicts, at 64 and at 256 pixels, in turn with these checks and without them. Within the runs
that have them, the time spent in them is summed too: its share is steadier than a difference of two long times.
"""
import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
os.environ |= {"OMP_NUM_THREADS": "1", "CTSEG_CPU_PRECISION": "fp32"}
sys.path.insert(0, str(ROOT))

import torch
from PIL import Image

from ctseg.core import atomic
from ctseg.data import images
from ctseg.models import sealed
from ctseg.prediction.prepare import prepare
from ctseg.prediction.submission import predict_folder
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs import sums
from ctseg.runs.recipe import apply_settings

CHECKS = {  # name: the module it lives in, what stands for it where there are no checks
    "flush_to_disk": (atomic, lambda path: None),
    "_flush_one": (atomic, lambda path: None),
    "check_seal": (sealed, lambda path: None),
    "check_sum": (sums, lambda path, run=None: None),
    "sums_of": (sums, lambda run, names=(): {}),
    "parts_are_whole": (images, lambda png: True),
}
Times = dict[str, list[float]]  # of each check: seconds of the processor, of the clock


def timed(name: str, check: Callable, times: Times, inside: list[str]) -> Callable:
    "The check, its time added to `times`; of checks within checks only the outer one counts."
    def measured(*args: Any, **kwargs: Any) -> Any:
        if inside: return check(*args, **kwargs)
        inside.append(name)
        processor, clock = time.process_time(), time.perf_counter()
        try:
            return check(*args, **kwargs)
        finally:
            inside.clear()
            seconds = times.setdefault(name, [0., 0.])
            seconds[0] += time.process_time() - processor
            seconds[1] += time.perf_counter() - clock
    return measured


@contextlib.contextmanager
def replaced(new: dict[str, Callable]) -> Iterator[None]:
    "Other functions in place of the checks, in every module of ctseg that has taken them over."
    old = []
    for name, function in new.items():
        check = getattr(CHECKS[name][0], name)
        ours = [module for key, module in sys.modules.items() if key.startswith("ctseg")]
        holders = [module for module in ours if getattr(module, name, None) is check]
        old += [(module, name, check) for module in holders]
        for module in holders: setattr(module, name, function)
    try:
        yield
    finally:
        for module, name, check in old: setattr(module, name, check)


def once(work: Callable[[], Any], checks: bool) -> dict[str, Any]:
    "Seconds of the processor and of the clock, of the whole and of the checks."
    times: Times = {}
    inside: list[str] = []
    new = {name: timed(name, getattr(module, name), times, inside) if checks else without
           for name, (module, without) in CHECKS.items()}
    with replaced(new):
        processor, clock = time.process_time(), time.perf_counter()
        work()
        whole = [time.process_time() - processor, time.perf_counter() - clock]
    return {"checks": checks, "seconds": whole, "of it": times}


def enlarged(source: Path, folder: Path, times: int, count: int) -> Path:
    "The first images of a folder, each side so many times as long."
    folder.mkdir()
    for path in sorted(source.glob("*.png"), key=lambda p: int(p.stem))[:count]:
        image = Image.open(path)
        image.resize([side*times for side in image.size], Image.Resampling.BICUBIC).save(folder/path.name)
    return folder


def shares(rows: list[dict[str, Any]]) -> dict[str, float]:
    "The checks' share of the processor's and of the clock's time, and how much longer it took with them."
    with_checks = [row for row in rows if row["checks"]]
    inside = [
        [sum(t[i] for t in row["of it"].values())/row["seconds"][i] for row in with_checks] for i in (0, 1)
    ]
    least = {on: min(row["seconds"][0] for row in rows if row["checks"] is on) for on in (True, False)}
    return {"share of the processor's time": statistics.median(inside[0]),
            "share of the clock's time": statistics.median(inside[1]),
            "with checks/without": least[True]/least[False]}


def in_turn(name: str, work: Callable[[], Any], pairs: int) -> dict[str, Any]:
    "The work with checks and without, in turn."
    rows = [once(work, checks) for _ in range(pairs) for checks in (True, False)]
    found = shares(rows)
    print(name, {what: round(value, 4) for what, value in found.items()}, flush=True)
    return {"rows": rows} | found


def measure(folder: Path, pairs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    "Training and prediction at 64 pixels, prediction at 256."
    sample, settings = ROOT/"data_sample", ["epochs=3", "width=16", "folds=4"]
    recipe, number = apply_settings(get_recipe("marginal-log"), settings), iter(range(100))
    def train(): fit(sample, recipe, folder/f"run{next(number)}", device="cpu", progress=False)
    fit(sample, recipe.change(epochs=1), folder/"run", device="cpu", progress=False)  # all is loaded
    def predict(source):
        predict_folder(prepare(folder/"run", "cpu"), source, folder/"masks.csv", None, 16, False, None)
    small = enlarged(sample/"train-images", folder/"small", 1, 300)
    large = enlarged(sample/"train-images", folder/"large", 4, 60)
    yield "predict, 300 slices of 64 px", in_turn("predict 64", lambda: predict(small), pairs)
    yield "predict, 60 slices of 256 px", in_turn("predict 256", lambda: predict(large), max(1, pairs - 1))
    yield "fit, 3 epochs of 400 slices of 64 px", in_turn("fit 64", train, 1)


def main():
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    facts = {"versions": versions, "threads": 1, "cases": {}}
    with tempfile.TemporaryDirectory(dir=args.out.parent) as d:
        os.environ["CTSEG_CACHE"] = str(Path(d)/"cache")
        for name, case in measure(Path(d), args.pairs):
            facts["cases"][name] = case
            args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
