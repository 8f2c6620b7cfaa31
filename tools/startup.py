"""Processor time until a command has begun its work, one thread: this checkout, and another in turn.

    python tools/startup.py --before ../other_checkout     # results: nbs/benchmarks/results/startup.json

`fit` ends at its first step. Each command runs in a process of its own, several times; the least counts, since
other work on the machine only adds.
"""
import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT/"nbs/benchmarks/results/startup.json"
UNTIL_FIRST_STEP = """
import sys
from ctseg.cli.main import main
from ctseg.training.loop import Trainer

def stop(self, index): raise SystemExit(0)

Trainer.step = stop
main()
"""
FEW = ["--set", "width=4", "--set", "epochs=1", "--set", "tune_rule=False", "--seed", "0"]


def commands(work: Path) -> dict[str, list]:
    "What is measured: the arguments of Python."
    sample = ROOT/"data_sample"
    fit = ["-c", UNTIL_FIRST_STEP, "fit", sample, "--recipe", "ctseg", "--device", "cpu", "--out", "RUN"]
    predict = ["-m", "ctseg", "predict", work/"run", "--images", work/"images", "--out", "RUN/s.csv", "--device", "cpu"]
    return {
        "ctseg --help": ["-m", "ctseg", "--help"],
        "ctseg check data_sample": ["-m", "ctseg", "check", sample],
        "ctseg fit data_sample, first step": fit,
        "ctseg predict, two images": predict,
        "import torch": ["-c", "import torch"],
        "import torch and its compiler": ["-c", "import torch._dynamo"],
    }


def processor_seconds(words: list, checkout: Path) -> float:
    "User and system time of a process, in seconds."
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as d:
        words = [str(word).replace("RUN", d) for word in words]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-W", "ignore", *words], cwd=d, env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(work: Path, checkout: Path):
    "A small run of a checkout, and two images to predict."
    (work/"images").mkdir()
    for name in ("0.png", "1.png"):
        (work/"images"/name).write_bytes((ROOT/"data_sample/test-images"/name).read_bytes())
    words = ["-m", "ctseg", "fit", ROOT/"data_sample", "--recipe", "masked", "--out", work/"run", *FEW]
    processor_seconds(words, checkout)
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
                    seconds[when].append(round(processor_seconds(words, checkout.resolve()), 2))
            rows[name] = {when: min(each) for when, each in seconds.items()}
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
