"""Time until a command has begun its work, of the processor and on the clock: this checkout, another in turn.

    python tools/startup.py --before ../other_checkout     # results: nbs/benchmarks/results/startup.json

One thread. `fit` ends at its first step, where a plugin stops it. Each command runs in a process of its own,
several times; the least counts, since other work on the machine only adds.
"""
import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT/"nbs/benchmarks/results/startup.json"
STOP = """
from ctseg.training.loop import Trainer

def stop(self, index): raise SystemExit(0)

Trainer.step = stop
"""  # a plugin; the command has loaded its modules by then
SCAN = """
import sys
import nibabel
import numpy
values = numpy.random.default_rng(0).normal(0, 200, (64, 64, 6)).astype(numpy.int16)
nibabel.save(nibabel.Nifti1Image(values, numpy.diag([2., 2, 5, 1])), sys.argv[1])
"""
FEW = ["--set", "width=4", "--set", "epochs=1", "--set", "tune_rule=False", "--seed", "0"]


def commands(work: Path) -> dict[str, list]:
    "What is measured: the arguments of Python."
    sample = ROOT/"data_sample"
    cpu = ["--device", "cpu"]
    fit = ["-m", "ctseg", "fit", sample, "--plugin", work/"stop.py", "--out", "RUN/run", *cpu]
    predict = ["-m", "ctseg", "predict", work/"run", "--images", work/"images", "--out", "RUN/s.csv", *cpu]
    cut = ["--size", "64", "--spacing", "2"]
    segment = ["-m", "ctseg", "segment", work/"run", work/"scan.nii.gz", "--out", "RUN/scans", *cut, *cpu]
    return {
        "ctseg --help": ["-m", "ctseg", "--help"],
        "ctseg check data_sample": ["-m", "ctseg", "check", sample],
        "ctseg fit data_sample, first step": fit,
        "ctseg predict, two images": predict,
        "ctseg segment, a NIfTI of 6 slices": segment,
        "import torch": ["-c", "import torch"],
        "import torch and its compiler": ["-c", "import torch._dynamo"],
    }


def seconds_of(words: list, checkout: Path) -> tuple[float, float]:
    "User and system time of a process, and the time it takes on the clock, in seconds."
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as d:
        words = [str(word).replace("RUN", d) for word in words]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-W", "ignore", *words]
        subprocess.run(command, cwd=d, env=environment, check=True, capture_output=True)
        clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, clock


def prepare(work: Path, checkout: Path):
    "A small run of a checkout, two images and a scan to predict, and the plugin."
    (work/"images").mkdir()
    for name in ("0.png", "1.png"):
        (work/"images"/name).write_bytes((ROOT/"data_sample/test-images"/name).read_bytes())
    words = ["-m", "ctseg", "fit", ROOT/"data_sample", "--recipe", "masked", "--out", work/"run", *FEW]
    seconds_of(words, checkout)
    subprocess.run([sys.executable, "-c", SCAN, work/"scan.nii.gz"], check=True)
    (work/"stop.py").write_text(STOP)
    (work/"class_names.json").write_bytes((ROOT/"data_sample/class_names.json").read_bytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as d:
        work = Path(d)
        prepare(work, args.before.resolve())  # runs of an older version can be read by a newer one
        for name, words in commands(work).items():
            seconds = {"before": [], "now": []}
            for _ in range(args.times):
                for when, checkout in (("before", args.before), ("now", ROOT)):
                    seconds[when].append(seconds_of(words, checkout.resolve()))
            rows[name] = {}
            for when, each in seconds.items():
                rows[name][when], rows[name][f"{when}, clock"] = (round(min(of), 2) for of in zip(*each))
            print(name, seconds, flush=True)
    git = ["git", "-C", str(args.before), "rev-parse", "--short", "HEAD"]
    facts = {
        "before": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "processor": platform.machine(),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "pandas", "accelerate")},
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__": main()
