"""Kill trainings and commands at random moments, go on, and compare with what was never killed.

    python tools/kill.py --kills 500       half of them trainings by every recipe, half other commands
    python tools/kill.py --kills 60 --results kills.jsonl     again and again: the kills add up in the file
"""
import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from helpers.fuzz.kills import COMMANDS, kill_commands
from helpers.fuzz.world import make_world, warm
from helpers.processes import start
from helpers.runs import contents, fit_quietly, kill_and_resume
from helpers.toys import tiny, toy

from ctseg.recipes.table import RECIPES


def kill_training(name: str, kills: int, rng: random.Random, folder: Path) -> Counter:
    "So many kills of trainings by a recipe; how many struck, and how many runs ended as another."
    recipe, slices = tiny(name), toy()
    whole, counts = folder/f"{name}-whole", Counter()
    begin = time.monotonic()
    training = start(fit_quietly, slices, recipe, whole)
    training.join()
    seconds = time.monotonic() - begin
    while counts["kills"] < kills and counts["runs"] < kills:
        counts["runs"] += 1
        cut, most = folder/f"{name}-{counts['runs']}", min(5, kills - counts["kills"])
        counts["kills"] += len(kill_and_resume(slices, recipe, cut, seconds, most, rng))
        ended, alone = contents(cut), contents(whole)
        other = sorted(file for file in ended.keys() | alone.keys() if ended.get(file) != alone.get(file))
        counts["faults"] += bool(other)
        if other: print(f"{name}: differs afterwards in {other}", flush=True)
    return counts


def rounds(kills: int, rng: random.Random, folder: Path) -> Iterator[tuple[str, str, Counter]]:
    "What each recipe and each command came to."
    for name in rng.sample(list(RECIPES), len(RECIPES)):
        with contextlib.redirect_stderr(io.StringIO()):
            counts = kill_training(name, max(1, kills//2//len(RECIPES)), rng, folder)
        yield "training", name, counts
    world = make_world(folder/"world")
    warm(world)
    for target in COMMANDS:
        counts = kill_commands(world, kills//2//len(COMMANDS), rng, partial(print, flush=True), [target])
        yield "command", target.name, counts


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path,
                        help="a line for each recipe and command is added to this file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    before = args.results.read_text().splitlines() if args.results and args.results.exists() else []
    rng = random.Random(f"{args.seed} {len(before)}")
    lines = [json.loads(line) for line in before]
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d).resolve()
        os.environ["CTSEG_CACHE"] = str(folder/"cache")
        for kind, name, counts in rounds(args.kills, rng, folder):
            lines.append({"kind": kind, "name": name} | counts)
            if kind == "training":
                print(f"{name:<28}{dict(counts)}", flush=True)
            if args.results:
                with open(args.results, "a") as f:
                    f.write(json.dumps(lines[-1]) + "\n")
    faults = 0
    for kind in ("training", "command"):
        of_kind = [line for line in lines if line["kind"] == kind]
        killed, odd = (sum(line.get(what, 0) for line in of_kind) for what in ("kills", "faults"))
        faults += odd
        print(f"{kind}s: {killed} kills, {odd} ended otherwise than what was never killed")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
