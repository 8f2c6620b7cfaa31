"One trial: a command, one of the files it reads damaged, and whether it ended as it must."
import contextlib
import fnmatch
import os
import random
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .mutations import ways
from .world import EPOCHS, SETTINGS

LIMIT = 20.  # seconds on a machine without other work
MEMORY = 6 << 30  # bytes of addresses beyond those that the process has


@dataclass(frozen=True)
class Target:
    "A command, and which files of the world it reads."
    name: str
    argv: tuple[str, ...]
    needs: tuple[str, ...]  # what is copied of the world
    reads: tuple[str, ...]  # patterns of paths
    grows: tuple[str, ...] = ()  # folders that may change although the command fails
    call: Callable[[], None] | None = None  # instead of the command line


def read_stored():
    "All of a file of probabilities, by Python."
    from ctseg.prediction.store import StoredProbabilities
    with StoredProbabilities("kept.prob") as stored:
        print(sum(float(stored[name].sum()) for name in stored.names), stored)


IN_DATA = ("data/y_train.csv*", "data/*.json", "data/train-images/0.png", "data/train-images/7.png")
IN_RUN = ("recipe.json", "metrics.json", "*.csv", "*.npz", "checkpoints/model.safetensors")
FIT = ("--out", "new", *SETTINGS, "--set=epochs=1", "--recipe", "original-attunet")


def of(run): return tuple(f"{run}/{name}" for name in IN_RUN)


PARTS = ("new.parts",)  # where a stopped import says that it keeps what it has cut
TARGETS = [
    Target("check", ("check", "data"), ("data",), (*IN_DATA, "data/test-images/1.png", "data/y_test.csv.gz")),
    Target("check cache", ("check", "data"), ("data", "cache"), ("cache/*", "cache/*/*")),
    Target(
        "check submission",
        ("check", "data", "--submission", "sub.csv"),
        ("data", "sub.csv"),
        ("sub.csv", "data/class_names.json"),
    ),
    Target("fit", ("fit", "data", *FIT), ("data",), IN_DATA),
    Target(
        "fit recipe",
        ("fit", "data", "--out", "new", "--recipe", "run2/recipe.json", *SETTINGS, "--set=epochs=1"),
        ("data", "run2"),
        ("run2/recipe.json",),
    ),
    Target(
        "fit resume",
        ("fit", "data", "--out", "unfinished", "--resume", "--recipe", "original-attunet", *SETTINGS, EPOCHS),
        ("data", "unfinished"),
        ("unfinished/*", "unfinished/checkpoints/*/*/*"),
        ("unfinished",),
    ),
    Target(
        "fit resume done",
        ("fit", "data", "--out", "run", "--resume", *SETTINGS, EPOCHS),
        ("data", "run"),
        ("run/recipe.json", "run/metrics.json"),
        ("run",),
    ),
    Target(
        "predict",
        ("predict", "run", "--images", "data/test-images", "--out", "out.csv", "--device", "cpu"),
        ("run", "data"),
        (*of("run"), "data/test-images/2.png"),
    ),
    Target(
        "predict calibrated",
        (
            "predict",
            "run2",
            "--images",
            "data/test-images",
            "--out",
            "out.csv",
            "--device",
            "cpu",
            "--calibrated",
            "--probabilities",
            "out.prob",
        ),
        ("run2", "data"),
        ("run2/metrics.json", "run2/recipe.json"),
    ),
    Target(
        "predict tune",
        (
            "predict",
            "run",
            "run2",
            "--images",
            "data/test-images",
            "--out",
            "out.csv",
            "--device",
            "cpu",
            "--tune",
            "data",
        ),
        ("run", "run2", "data"),
        (*of("run2"), "data/*.json"),
    ),
    Target(
        "report",
        ("report", "run2", "--data", "data", "--device", "cpu"),
        ("run2", "data"),
        of("run2"),
        ("run2",),
    ),
    Target("report alone", ("report", "run2", "--device", "cpu"), ("run2",), of("run2"), ("run2",)),
    Target(
        "compare",
        ("report", "run", "run2", "--data", "data", "--out", "page.html", "--device", "cpu"),
        ("run", "run2", "data"),
        of("run2"),
    ),
    Target(
        "evaluate",
        ("evaluate", "data/y_test.csv.gz", "sub.csv", "--json", "out.json"),
        ("data", "sub.csv"),
        ("data/y_test.csv.gz", "sub.csv", "data/class_names.json", "data/patients.json"),
    ),
    Target(
        "evaluate partial",
        ("evaluate", "data/y_train.csv.gz", "data/y_train.csv.gz", "--json", "out.json"),
        ("data",),
        ("data/y_train.csv.gz", "data/*.json"),
    ),
    Target("recipes", ("recipes", "run/recipe.json"), ("run",), ("run/recipe.json",)),
    Target("stored", (), ("kept.prob",), ("kept.prob",), call=read_stored),
    Target(
        "import nifti",
        ("import", "nifti", "nifti", "new", "--classes", "nifti/class_names.json", "--key", "key.csv"),
        ("nifti",),
        ("nifti/*.json", "nifti/images/a.nii.gz", "nifti/labels/b.nii"),
        PARTS,
    ),
    Target(
        "import dicom", ("import", "dicom", "dicom", "new", "--key", "key.csv"), ("dicom",), ("dicom/one/*",), PARTS
    ),
    Target(
        "import openkbp",
        ("import", "openkbp", "openkbp", "new"),
        ("openkbp",),
        ("openkbp/provided-data/*/*/*",),
        PARTS,
    ),
    Target(
        "import totalsegmentator",
        ("import", "totalsegmentator", "total", "new", "--classes", "total/names.json"),
        ("total",),
        ("total/meta.csv", "total/names.json", "total/s0001/*", "total/s0001/segmentations/*"),
        PARTS,
    ),
    Target(
        "export nifti",
        ("export", "nifti", "imported", "new", "--masks", "imported.csv"),
        ("imported", "imported.csv"),
        ("imported/index.json",)*4
        + ("imported.csv", "imported/class_names.json", "imported/test-images/0.png"),
    ),
    Target(
        "export dicom-seg",
        (
            "export",
            "dicom-seg",
            "from_dicom",
            "new",
            "--masks",
            "from_dicom.csv",
            "--source",
            "dicom",
            "--split",
            "train",
        ),
        ("from_dicom", "from_dicom.csv", "dicom"),
        ("from_dicom/index.json", "from_dicom.csv", "from_dicom/class_names.json", "dicom/one/*"),
    ),
    Target(
        "export nnunet", ("export", "nnunet", "data", "new", "--unknown", "background"), ("data",), IN_DATA
    ),
    Target(
        "export rtstruct",
        ("export", "rtstruct", "from_dicom", "new", "--masks", "from_dicom.csv", "--source", "dicom", "--split", "train"),
        ("from_dicom", "from_dicom.csv", "dicom"),
        ("from_dicom/*.json", "dicom/one/*"),
    ),
    Target(
        "export rle",
        ("export", "rle", "data", "out.csv", "--masks", "sub.csv"),
        ("data", "sub.csv"),
        ("sub.csv", "data/class_names.json"),
    ),
    Target(
        "segment",
        ("segment", "run", "run2", "nifti/images", "--out", "new", "--device", "cpu"),
        ("run", "run2", "nifti"),
        (*of("run2"), "nifti/images/a.nii.gz"),
    ),
    Target(
        "segment dicom",
        ("segment", "run", "dicom", "--out", "new", "--device", "cpu", "--format", "dicom-seg", "--format", "rtstruct"),
        ("run", "dicom"),
        ("dicom/one/*", "run/recipe.json", "run/metrics.json"),
    ),
    Target(
        "suggest",
        ("suggest", "run", "data", "--out", "list.csv", "--device", "cpu"),
        ("run", "data"),
        (*of("run"), *IN_DATA),
    ),
    Target(
        "import png",
        ("import", "png", "png/images", "png/masks", "new", "--classes", "png/names.json", "--annotated", "all"),
        ("png",),
        ("png/names.json", "png/images/1.png", "png/masks/1.png"),
    ),
    Target(
        "import codes",
        ("import", "png", "png/images", "png/codes.csv", "new", "--annotated", "all"),
        ("png",),
        ("png/codes.csv", "png/images/1.png"),
    ),
    Target(
        "merge",
        ("merge", "data", "imported", "--out", "new", "--resize", "fit"),
        ("data", "imported"),
        ("imported/*.json", "imported/y_train.csv", "imported/train-images/1.png", "data/*.json"),
    ),
    Target("store", ("store", "data", "--out", "new"), ("data",), IN_DATA),
    Target("check store", ("check", "store"), ("store",), ("store/*", "store/*/*", "store/*/*/*", "store/*/*/c/*")),
    Target(
        "evaluate volumes",
        ("evaluate", "nifti/labels", "imported_labels", "--json", "out.json"),
        ("nifti", "imported_labels"),
        ("imported_labels/a.nii", "nifti/*.json"),
    ),
    Target(
        "export nnunet of volumes",
        ("export", "nnunet", "imported", "new"),
        ("imported",),
        ("imported/*.json", "imported/y_train.csv"),
    ),
]


@dataclass
class Result:
    "How a trial ended."
    target: str
    damage: str  # file: what was done to it
    status: int
    seconds: float
    faults: list[str] = field(default_factory=list)
    output: str = ""
    changed: bool = False  # it succeeded, and wrote something else than from whole files

    @property
    def kind(self) -> tuple[str, str]: return self.target, self.damage


def kind_of(path: Path):
    "File, folder, FIFO, … of a path, or None."
    try: return stat.S_IFMT(path.lstat().st_mode)
    except OSError: return None


def snapshot(folder: Path) -> dict[str, tuple]:
    "Type, size and time of everything below a folder."
    seen = {}
    for path in folder.rglob("*"):
        s = path.lstat()
        if path.is_dir() and not path.is_symlink():
            seen[str(path.relative_to(folder))] = (stat.S_IFMT(s.st_mode),)
        else: seen[str(path.relative_to(folder))] = (stat.S_IFMT(s.st_mode), s.st_size, s.st_mtime_ns, s.st_ino)
    return seen


def results(folder: Path, before: dict) -> dict[str, bytes]:
    "What a command has written."
    written = {}
    for name in snapshot(folder).keys() - before.keys():
        path = folder/name
        if (
            path.is_file()
            and not name.startswith(("cache", "stdout", "stderr"))
            and path.suffix not in (".html", ".pt", ".png")
            and "timings" not in name
        ):
            written[name] = path.read_bytes()
    return written


def child(folder: Path, target: Target, limited: bool):
    "The command in this forked process; never returns."
    status = 1
    try:
        os.chdir(folder)
        os.environ["CTSEG_CACHE"] = str(folder/"cache")
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder/name, os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False, buffering=1)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if limited:
            size = int(Path("/proc/self/statm").read_text().split()[0])*4096
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        sys.argv = ["ctseg", *target.argv]
        status = carry_out(target)
    except SystemExit as e: status = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException: traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def carry_out(target: Target) -> int:
    from ctseg.cli import main
    from ctseg.core.errors import InputError
    if target.call is None:
        main()
        return 0
    try: target.call()
    except InputError as e:
        print(f"ctseg: {e}", file=sys.stderr)
        return 2
    return 0


def limit_now() -> float:
    "How long a command may take while so much else is at work here."
    return LIMIT*max(1., os.getloadavg()[0]/len(os.sched_getaffinity(0)))


def wait(pid: int, limit: float) -> int:
    "The exit status; a process that takes too long is killed, -9."
    end = time.monotonic() + limit
    pause = .002
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(.05, pause*1.3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -9


USUAL = re.compile(r"(ctseg: |training on |the encoder starts|\s*$|.*it/s|.*s/it|.*\d+%\|)")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


def faults(
    result: Result, folder: Path, target: Target, before: dict, damaged: Path | None, was
) -> list[str]:
    "What is not as it must be after a trial."
    out, err = (
        (folder/name).read_text(encoding="utf-8", errors="surrogateescape") for name in ("stdout", "stderr")
    )
    err_lines = [line.rpartition("\r")[2] for line in err.split("\n")]
    lines = [line for line in err_lines if line.strip()]
    found = []
    if result.status == -9: found.append("hangs")
    elif result.status not in (0, 2, 3): found.append(f"status {result.status}")
    if "Traceback" in err: found.append("traceback " + (lines[-1] if lines else "")[:100])
    elif result.status == 2:
        if not lines or not lines[-1].startswith("ctseg: "): found.append("no error line")
        strange = [line for line in lines if not USUAL.match(line)]
        if strange: found.append(f"more than a line: {strange[0][:100]}")
        if lines and len(lines[-1]) > 700: found.append("a very long line")
        if lines and "out of memory" in lines[-1]: found.append("memory")
    if CONTROL.search(out + "\n".join(lines)): found.append("control characters")
    after = snapshot(folder)
    new = {
        n
        for n in after.keys() - before.keys()
        if not n.startswith(("cache", "stdout", "stderr"))
        and not n.startswith(tuple(target.grows) or ("\0",))
    }
    parts = [n for n in after if n.endswith(".part")]
    if parts and result.status != -9: found.append("left over " + parts[0].split("/")[0])
    if result.status == 2:
        if new: found.append(f"left over {sorted(new)[0]}")
        lost = [n for n in before if after.get(n) != before[n] and not n.startswith(("cache", *target.grows))]
        if lost: found.append(f"changed {lost[0]}")
    mine = damaged is not None and str(damaged.relative_to(folder)).startswith(tuple(target.grows) or ("\0",))
    if (
        damaged is not None
        and not mine
        and was not in (stat.S_IFREG, stat.S_IFDIR, None)
        and was is not None
        and kind_of(damaged) != was
        and was != stat.S_IFLNK
    ):
        found.append("special file replaced")
    result.output = (err[-1500:] or out[-500:])
    return found


def copy_needs(world: Path, folder: Path, target: Target):
    (folder/"cache").mkdir(mode=0o700)
    for name in target.needs:
        if (world/name).is_dir(): shutil.copytree(world/name, folder/name, dirs_exist_ok=True, symlinks=True)
        else: shutil.copy2(world/name, folder/name)


class Fuzzer:
    "Trials in a world, by seed."
    def __init__(self, world: Path, targets: list[Target] = TARGETS):
        self.world = world
        self.targets = [t for t in targets if all((world/n).exists() for n in t.needs)]
        self.wholes: dict[str, dict[str, bytes]] = {}

    def files(self, target: Target, folder: Path) -> list[Path]:
        "The files that a target reads; a pattern that is there twice counts twice."
        every = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        depth = lambda s: s.count("/")
        return [
            folder/name
            for pattern in target.reads
            for name in every
            if fnmatch.fnmatch(name, pattern) and depth(name) == depth(pattern)
        ]

    def run(
        self, target: Target, damage: Callable[[Path], tuple[Path | None, str]], limited: bool = True
    ) -> Result:
        with tempfile.TemporaryDirectory(prefix="fuzz") as temporary:
            folder = Path(temporary).resolve()
            copy_needs(self.world, folder, target)
            damaged, did = damage(folder)
            was = kind_of(damaged) if damaged else None
            before = snapshot(folder)
            start = time.monotonic()
            pid = os.fork()
            if not pid: child(folder, target, limited)
            status = wait(pid, limit_now())
            result = Result(target.name, did, status, time.monotonic() - start)
            result.faults = faults(result, folder, target, before, damaged, was)
            if status == 0:
                written = results(folder, before)
                whole = self.wholes.setdefault(target.name, written if damaged is None else {})
                result.changed = written != whole
            return result

    def whole(self, target: Target) -> Result:
        "The target with nothing damaged."
        return self.run(target, lambda folder: (None, "whole"))

    def trial(self, seed: int, target: Target | None = None) -> Result:
        rng = random.Random(seed)
        target = target or rng.choice(self.targets)
        def damage(folder):
            files = self.files(target, folder)
            path = rng.choice(sorted(set(files), key=str) if rng.random() < .5 else files)
            way = rng.choice(ways(path))
            name = re.sub(r"\d+\.png|[0-9a-f]{32}|step-\d+|IM\d+", "#", str(path.relative_to(folder)))
            return path, f"{name}: {way(path, rng)}"
        return self.run(target, damage)
