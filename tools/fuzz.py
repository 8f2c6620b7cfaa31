"""Damage each file that a command reads, in every way, and see that the command ends as it must.

    python tools/fuzz.py --minutes 60            all commands
    python tools/fuzz.py --target predict --seed 17 --trials 1 --show     one trial again
"""
import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from helpers.fuzz.trials import TARGETS, Fuzzer
from helpers.fuzz.world import make_world, warm


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=60)
    add("--trials", type=int, default=10**9)
    add("--seed", type=int, default=0, help="of the first trial; the others follow")
    add("--target", action="append", help="only targets whose names begin so; may be repeated")
    add(
        "--world",
        type=Path,
        help="keep the files to damage in this folder, and take them from there if it exists",
    )
    add("--show", action="store_true", help="what the commands said")
    add("--accepted", action="store_true", help="also list what was accepted with another result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        world = args.world or Path(temporary)/"world"
        if not world.exists(): make_world(world.resolve())
        warm(world)
        chosen = [t for t in TARGETS if not args.target or any(t.name.startswith(n) for n in args.target)]
        fuzzer = Fuzzer(world.resolve(), chosen)
        sys.exit(bool(fuzz(fuzzer, args)))


def fuzz(fuzzer: Fuzzer, args) -> int:
    "Trials until the time is up; the number of kinds with a fault."
    end = time.monotonic() + 60*args.minutes
    for target in fuzzer.targets:
        result = fuzzer.whole(target)
        print(
            f"{target.name:<28}{result.seconds:5.1f} s  status {result.status}  {'; '.join(result.faults)}",
            flush=True,
        )
        if result.status: print(result.output)
    kinds, found, statuses, accepted, longest = set(), {}, Counter(), {}, 0.
    seed = args.seed
    while time.monotonic() < end and seed < args.seed + args.trials:
        result = fuzzer.trial(seed)
        kinds.add(result.kind)
        statuses[result.status] += 1
        longest = max(longest, result.seconds)
        if args.show:
            print(f"{seed}: {result.target} | {result.damage} | {result.status}\n{result.output}", flush=True)
        for fault in result.faults:
            if (*result.kind, fault) not in found:
                found[(*result.kind, fault)] = seed
                print(f"{seed}: {result.target} | {result.damage} | {fault}", flush=True)
        if result.changed and result.kind not in accepted:
            accepted[result.kind] = seed
            if args.accepted:
                print(f"{seed}: {result.target} | {result.damage} | accepted, another result", flush=True)
        seed += 1
    faulty = {key[:2] for key in found}
    print(
        f"{seed - args.seed} trials, {len(kinds)} kinds, {len(faulty)} with a fault, "
        f"{len(accepted)} accepted with another result; "
        f"exit statuses {dict(statuses)}; the longest took {longest:.1f} s"
    )
    return len(faulty)


if __name__ == "__main__":
    main()
