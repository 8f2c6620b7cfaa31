"""Kill trainings and commands at random moments, go on, and compare with what was never killed.

    python tools/kill.py --kills 500       half of them trainings by every recipe, half other commands
"""
import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from helpers.fuzz.kills import kill_commands
from helpers.fuzz.world import make_world, warm
from helpers.processes import start
from helpers.runs import contents, fit_quietly, kill_and_resume
from helpers.toys import tiny, toy

from ctseg.recipes.table import RECIPES


def kill_trainings(kills: int, rng: random.Random, folder: Path) -> tuple[int, int]:
    "So many kills, shared out among the recipes; how many struck, and how many runs ended as another."
    struck, differ = 0, 0
    each = max(1, kills//len(RECIPES))
    for name in RECIPES:
        recipe, slices = tiny(name), toy()
        whole, rounds, own, wrong = folder/f"{name}-whole", 0, 0, 0
        begin = time.monotonic()
        training = start(fit_quietly, slices, recipe, whole)
        training.join()
        seconds = time.monotonic() - begin
        while own < each and rounds < each:
            rounds += 1
            cut = folder/f"{name}-{rounds}"
            own += len(kill_and_resume(slices, recipe, cut, seconds, min(5, each - own), rng))
            wrong += contents(cut) != contents(whole)
        print(
            f"{name:<28}{seconds:5.1f} s  {own} kills in {rounds} runs, {wrong} ended as another", flush=True
        )
        struck, differ = struck + own, differ + wrong
    return struck, differ


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d).resolve()
        os.environ["CTSEG_CACHE"] = str(folder/"cache")
        with contextlib.redirect_stderr(io.StringIO()):
            struck, differ = kill_trainings(args.kills//2, rng, folder)
        world = make_world(folder/"world")
        warm(world)
        counts = kill_commands(world, args.kills - args.kills//2, rng, lambda line: print(line, flush=True))
    print(f"trainings: {struck} kills, {differ} runs ended as another; commands: {counts['kills']} kills "
          f"({counts['too late']} came too late), {counts['faults']} with a fault")
    sys.exit(bool(differ or counts["faults"]))


if __name__ == "__main__":
    main()
