"""Commands killed at random moments: what they leave must be nothing or whole, and once more gives what it
would have given."""
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .trials import Target, child, copy_needs, wait

LATER = (".html", ".png", "timings.csv", "stdout", "stderr")  # differ from run to run, or hold times

COMMANDS = [
    Target(
        "predict",
        (
            "predict",
            "run",
            "--images",
            "data/test-images",
            "--out",
            "out.csv",
            "--probabilities",
            "out.prob",
            "--device",
            "cpu",
        ),
        ("run", "data"),
        (),
    ),
    Target(
        "evaluate",
        ("evaluate", "data/y_test.csv.gz", "sub.csv", "--json", "out.json"),
        ("data", "sub.csv"),
        (),
    ),
    Target(
        "report",
        ("report", "run2", "--data", "data", "--out", "page.html", "--device", "cpu"),
        ("run2", "data"),
        (),
    ),
    Target(
        "import nifti",
        ("import", "nifti", "nifti", "new", "--classes", "nifti/class_names.json", "--key", "key.csv"),
        ("nifti",),
        (),
    ),
    Target("import dicom", ("import", "dicom", "dicom", "new"), ("dicom",), ()),
    Target(
        "export nifti",
        ("export", "nifti", "imported", "new", "--masks", "imported.csv"),
        ("imported", "imported.csv"),
        (),
    ),
    Target("export nnunet", ("export", "nnunet", "data", "new", "--unknown", "background"), ("data",), ()),
    Target(
        "phantom",
        ("phantom", "new", "--labelled", "4", "--unlabelled", "2", "--test", "2", "--size", "32"),
        (),
        (),
    ),
]


def start(folder: Path, target: Target) -> int:
    "The command in a forked process; its number."
    pid = os.fork()
    if not pid: child(folder, target, limited=False)
    return pid


def written(folder: Path, before: set[str]) -> dict[str, bytes]:
    "New files that must be the same each time."
    new = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - before
    return {
        n: (folder/n).read_bytes()
        for n in sorted(new)
        if not n.endswith(LATER) and not n.startswith("cache")
    }


def visible(names) -> set[str]:
    """The outermost names of what was written. What begins with a dot is no result yet, and `new.parts` is
    what an import has cut so far, for the same command to go on with."""
    shown = (n.split("/") for n in names if not any(part.startswith(".") for part in n.split("/")))
    return {parts[0] for parts in shown if parts[0] != "new.parts"}


class Killer:
    "Kills a command of a world."
    def __init__(self, world: Path, target: Target):
        self.world, self.target = world, target
        with tempfile.TemporaryDirectory(prefix="kill") as d:
            folder = Path(d).resolve()
            before = self.lay_out(folder)
            begin = time.monotonic()
            if wait(start(folder, target), 120):
                raise RuntimeError(f"{target.name}: {(folder/'stderr').read_text()}")
            self.seconds, self.whole = time.monotonic() - begin, written(folder, before)

    def lay_out(self, folder: Path) -> set[str]:
        copy_needs(self.world, folder, self.target)
        return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}

    def kill(self, rng: random.Random) -> list[str]:
        """One kill, and the command once more; what was not as it must be, or `too late` where the command
        had ended."""
        with tempfile.TemporaryDirectory(prefix="kill") as d:
            folder = Path(d).resolve()
            before = self.lay_out(folder)
            pid = start(folder, self.target)
            time.sleep(rng.uniform(0, 1)*self.seconds)
            ended, _ = os.waitpid(pid, os.WNOHANG)
            if ended: return ["too late"]
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return self.faults(folder, before)

    def faults(self, folder: Path, before: set[str]) -> list[str]:
        left = written(folder, before)
        found = []
        for top in visible(left):
            if {n: c for n, c in left.items() if n.split("/")[0] == top} != {
                n: c for n, c in self.whole.items() if n.split("/")[0] == top
            }:
                found.append(f"half of {top}")
            # a command writes a folder only where there is none
            elif (folder/top).is_dir(): shutil.rmtree(folder/top)
        for hold in folder.rglob(".*.part"): os.utime(hold, (0, 0))  # as if a minute had passed
        if wait(start(folder, self.target), 120):
            return [*found, "fails afterwards: " + (folder/"stderr").read_text()[-200:]]
        again = written(folder, before)
        if again != self.whole:
            found.append(
                f"differs afterwards in "
                f"{sorted(n for n in again.keys() | self.whole.keys() if again.get(n) != self.whole.get(n))[:3]}"
            )
        return found


def kill_commands(
    world: Path,
    kills: int,
    rng: random.Random,
    tell: Callable[[str], None],
    commands: list[Target] = COMMANDS,
) -> Counter:
    "So many kills, shared out among the commands; how many struck, came too late, and found faults."
    counts: Counter = Counter()
    for target in commands:
        killer = Killer(world, target)
        own: Counter = Counter()
        for _ in range(max(1, kills//len(commands))):
            faults = killer.kill(rng)
            if faults == ["too late"]: own["too late"] += 1
            else:
                own["kills"] += 1
                own["faults"] += bool(faults)
                for fault in faults: tell(f"{target.name}: {fault}")
        tell(f"{target.name:<28}{killer.seconds:5.1f} s  {dict(own)}")
        counts += own
    return counts
