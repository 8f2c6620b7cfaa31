# %% [markdown]
# # On Kaggle
#
# > Inputs found wherever they are mounted, a run that goes on where the last session was cut, and both GPUs at work.
#
# - skip_showdoc: true

# %%
#| default_exp kaggle

# %%
#| export
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError, say
from ctseg.core.tables import table_text
from ctseg.data.images import is_system_file
from ctseg.runs.folder import Run

# %%
#| hide
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from fastcore.test import test_eq

from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.runs.folder import Run


# %% [markdown]
# A Kaggle notebook sees three folders: `/kaggle/input` holds whatever was attached, read-only; `/kaggle/working` is kept as the notebook's output; everything else is gone when the session ends. A session ends after some
# hours, even in the middle of a training. So there are three chores, which the [notebooks](kaggle/start_here/start_here.ipynb) share and none of them should have to explain:
#
# 1. **find the data**, since the place where a data set is mounted has changed more than once and depends on who uploaded it, and how;
# 2. **carry on**: yesterday's output, attached as an input, is copied to where it can be written, and continued;
# 3. **use the cards**: Kaggle gives two T4, and one process uses one of them.

# %% [markdown]
# To try a notebook at home, or in a test, the environment's `CTSEG_KAGGLE_ROOT` takes the place of `/kaggle`.

# %%
#| export
def kaggle_root() -> Path:
    "`/kaggle`, or the environment's `CTSEG_KAGGLE_ROOT`."
    return Path(os.environ.get("CTSEG_KAGGLE_ROOT") or "/kaggle")


# %%
root = Path(tempfile.mkdtemp())
for name in ("input", "working"): (root/name).mkdir()
os.environ["CTSEG_KAGGLE_ROOT"] = str(root)
os.environ["CTSEG_CACHE"] = str(root/"cache")

# %% [markdown]
# ## Finding the data
#
# A [challenge folder](data/70_challenge.ipynb) may be mounted at `/kaggle/input/slug`, at `/kaggle/input/datasets/user/slug`, or deeper, where an archive brought a folder of its own. The images may lie in one data set and the table in
# another; and the organisers' server calls the table `label_Hnl61pT.csv`. So every piece is looked for by its name, once, without walking through thousands of images.

# %%
#| export
FOLDERS = ("train-images", "test-images")
FILES = {
    "y_train.csv": ("y_train.csv", "label_*.csv"),
    "y_train.csv.gz": ("y_train.csv.gz", "label_*.csv.gz"),
    "y_test.csv": ("y_test.csv",),
    "y_test.csv.gz": ("y_test.csv.gz",),
    "annotated_labels.json": ("annotated_labels.json",),
    "class_names.json": ("class_names.json",),
    "patients.json": ("patients.json",),
}


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    "Is this file name one of the `patterns`, and none that an operating system left there?"
    return not is_system_file(Path(name)) and any(Path(name).match(p) for p in patterns)


# %%
#| export
def find_pieces(top: Path, match: str = "") -> dict[str, list[Path]]:
    "Every file or image folder of a challenge below `top` whose path holds `match`, by the name it should have."
    found = {name: [] for name in (*FOLDERS, *FILES)}
    for folder, inner, files in os.walk(top):
        here = Path(folder)
        inner[:] = sorted(name for name in inner if not is_system_file(Path(name)))
        if match not in str(here.relative_to(top)):
            continue
        if here.name in FOLDERS and any(fits(name, ("*.png", "*.PNG")) for name in files):
            found[here.name].append(here)
            inner.clear()  # nothing else is in there
        for name, patterns in FILES.items():
            found[name] += [here/f for f in files if fits(f, patterns)]
    return found


# %%
spread = Path(tempfile.mkdtemp())
for name in (
    "raidium/train-images/0.png",
    "raidium/__MACOSX/train-images/._0.png",
    "labels/label_Hnl61pT.csv",
    "labels/._label_Hnl61pT.csv",
):
    (spread/name).parent.mkdir(parents=True, exist_ok=True)
    (spread/name).touch()
print(
    {
        name: [str(p.relative_to(spread)) for p in places]
        for name, places in find_pieces(spread).items()
        if places
    }
)


# %% [markdown]
# If the pieces lie together under their right names, that folder is the answer. If not, a folder of links is made, and the rest of `ctseg` need not know. What is found twice is never chosen by chance. Only exact
# copies are all the same: the first by name is taken, and a line says so.

# %%
#| export
def content(place: Path) -> tuple:
    "What a piece holds, to find exact copies: the names and sizes of the images in a folder, or a file's hash."
    if place.is_dir():
        images = (p for p in place.iterdir() if not is_system_file(p))
        return tuple(sorted((p.name, p.stat().st_size) for p in images))
    with open(place, "rb") as f:
        return (hashlib.file_digest(f, "sha256").hexdigest(),)


def only_one(name: str, places: list[Path]) -> Path:
    "The one place of a piece, or the first of exact copies, which is told; `InputError` where there are two."
    places = sorted(places, key=str)
    if len(places) > 1 and len({content(place) for place in places}) == 1:
        say(f"{name} is attached {len(places)} times, all alike; taken: {places[0]}")
        return places[0]
    if len(places) > 1:
        both = f"{name} is attached twice, as {places[0]} and {places[1]}"
        raise InputError(f"{both}; detach one, or say which: find_challenge(match=\"…\")")
    return places[0]


# %%
#| export
def linked_folder(pieces: dict[str, Path]) -> Path:
    "A new folder with a link to each piece under the name it should have."
    folder = Path(tempfile.mkdtemp(prefix="challenge-"))
    for name, place in pieces.items():
        (folder/name).symlink_to(place, target_is_directory=place.is_dir())
    return folder


# %%
#| export
def find_challenge(match: str = "") -> Path: # `match`: look only at inputs whose path holds this text
    "The challenge folder among the notebook's inputs; one made of links, if its pieces lie in several places."
    top = kaggle_root()/"input"
    pieces = {name: only_one(name, places) for name, places in find_pieces(top, match).items() if places}
    needed = (*FOLDERS, "y_train.csv")
    lost = [name for name in needed if name not in pieces and f"{name}.gz" not in pieces]
    if lost:
        where = f" below a path with {match!r}" if match else ""
        remedy = "attach the data set with the challenge's files (Add Input, at the right)"
        raise InputError(f"{top}: no {' and no '.join(lost)} anywhere{where}; {remedy}")
    parents = {place.parent for place in pieces.values()}
    if len(parents) == 1 and all(place.name == name for name, place in pieces.items()):
        return parents.pop()
    return linked_folder(pieces)


# %% [markdown]
# The sample, mounted in one piece in the new place; then torn apart over two data sets, as a zipped upload does it:

# %%
sample, mount = Path("../data_sample"), root/"input"/"datasets"/"somebody"/"ct"
shutil.copytree(sample, mount/"raidium")
test_eq(find_challenge(), mount/"raidium")

(root/"input"/"images").mkdir()
shutil.move(mount/"raidium"/"train-images", root/"input"/"images"/"train-images"/"train-images")
shutil.move(mount/"raidium"/"test-images", root/"input"/"images"/"test-images")
linked = find_challenge()
print(*sorted(p.name for p in linked.iterdir()))
test_eq(read_challenge(linked).fingerprint(), read_challenge(sample).fingerprint())

# %%
shutil.copytree(sample/"test-images", root/"input"/"again"/"test-images")
with contextlib.redirect_stdout(io.StringIO()) as said: find_challenge()
print(said.getvalue().replace(str(root), "/kaggle"))
(root/"input"/"again"/"test-images"/"0.png").unlink()  # no exact copy any more
for match in ("", "nowhere"):
    try: find_challenge(match)
    except InputError as e: print(str(e).replace(str(root), "/kaggle"))
shutil.rmtree(root/"input"/"again")


# %% [markdown]
# ## Going on
#
# When a session ends, `/kaggle/working` becomes the notebook's output, and the output can be attached to the next session as an input. There it cannot be written, so the run folder is copied back. If several sessions are
# attached, the one that got furthest counts. A copy that fails half-way leaves nothing behind.

# %%
#| export
def progress(run: Path) -> tuple[bool, int, str]:
    "How far a run got: finished, epochs, and steps, since a run is cut within epochs too."
    history = run/"history.csv"
    try: epochs = table_text(history).count("\n")
    except InputError: epochs = 0
    steps = [p.name for p in run.glob("checkpoints/*/step-*")]
    return Run(run).finished, epochs, max(steps, default="")


def find_runs(name: str = "*", finished: bool = False) -> list[Path]:
    "Run folders among the inputs whose path ends with `name`, the one that got furthest first."
    runs = []
    for folder, _, files in os.walk(kaggle_root()/"input"):
        run = Path(folder)
        if "recipe.json" not in files or not run.match(name):
            continue
        if not finished or Run(run).finished:
            runs.append(run)
    return sorted(sorted(runs, key=str), key=progress, reverse=True)


# %%
#| export
def carry_on(name: str = "run") -> Path:
    "The folder `name` in `/kaggle/working`, filled from an earlier session's output if one is attached."
    run = kaggle_root()/"working"/name
    earlier = find_runs(name)
    if run.exists() or not earlier:
        return run
    with atomic_path(run) as tmp:
        shutil.copytree(earlier[0], tmp, copy_function=shutil.copyfile)
        for p in [tmp, *tmp.rglob("*")]:  # what is mounted read-only may say so in its modes too
            p.chmod(0o755 if p.is_dir() else 0o644)
    say(f"going on from {earlier[0]}")
    return run


# %%
for session, rows in (("monday", 2), ("tuesday", 5)):
    past = root/"input"/"notebooks"/"somebody"/session/"run"
    (past/"checkpoints").mkdir(parents=True)
    (past/"recipe.json").write_text("{}")
    (past/"history.csv").write_text("epoch\n"*rows)
    (past/"checkpoints"/"x").write_text(session)
    past.chmod(0o555)
with contextlib.redirect_stdout(io.StringIO()) as said: run = carry_on("run")
print(said.getvalue().replace(str(root), "/kaggle"))
test_eq((run/"checkpoints"/"x").read_text(), "tuesday")
(run/"new").write_text("can be written")
test_eq(carry_on("run"), run)  # a second call, in the same session, changes nothing
assert (run/"new").exists() and not carry_on("other").exists()

# %% [markdown]
# ## Training
#
# Training runs as a process of its own, started as anybody would start it in a terminal: `ctseg fit`, through `torchrun` when there are several cards. A notebook cannot do this by itself: functions
# defined in its cells do not exist in other processes. Lines are shown as they come; the progress bar, which a terminal redraws all the time, becomes a line a minute.

# %%
#| export
# torchrun's ChildFailedError is that of a process which has said why
CAUSE = re.compile(r"ctseg: |(\[rank\d+\]: *)?[\w.]+(Error|Exception)\b(?<!ChildFailedError)")


# %%
#| export
class Listener:
    "Shows the lines of a process, and remembers the one that tells why it failed."

    def __init__(self, show: Callable[[str], None] = print):
        self.show = show
        self.last = ""           # line shown
        self.cause = ""          # the last line that names an error; torchrun's own comes after it
        self.stopped = False     # in time, with everything saved
        self.bar_shown = -math.inf

    def hear(self, line: str) -> None:
        "Show a line, but a redrawn progress bar only once a minute."
        bar, now = "%|" in line, time.monotonic()
        if bar and "100%|" not in line and now - self.bar_shown < 60:
            return
        self.last = line.rstrip()
        self.show(self.last)
        self.stopped |= "everything is saved" in line  # torchrun has a status of its own, so the line counts
        if CAUSE.match(line):
            self.cause = self.last
        if bar:
            self.bar_shown = now


# %%
ears = Listener(show=print)
for line in ("epoch 1\n", "30%| steps\n", "40%| steps\n", "ctseg: out of memory\n"): ears.hear(line)
test_eq(ears.cause, "ctseg: out of memory")


# %%
#| export
def watch(command: list[str], env: dict[str, str] | None = None, show: Callable[[str], None] = print) -> None:
    "Run `command` and show its lines as they come; `InputError` if it fails, unless it stopped in time."
    listener = Listener(show)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **(env or {})}
    together = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
    with subprocess.Popen(command, env=environment, **together) as process:
        for line in filter(str.strip, process.stdout):
            listener.hear(line)
    if process.returncode and not listener.stopped:
        why = listener.cause or listener.last
        raise InputError(f"the training ended with status {process.returncode}: {why}")


# %%
watch([sys.executable, "-c", "print('an epoch'); print('30%| another')"])
try: watch([sys.executable, "-c", "raise ValueError('no such thing')"], show=lambda line: None)
except InputError as e: print(e)

# %%
#| export
NO_GPU = (
    "no GPU: this trains on the CPU, many times slower. "
    "On Kaggle choose GPU T4 x2 under Settings, Accelerator"
)


def workers() -> int:
    "How many processes can train at once: one a GPU; without any, one on the CPU, which is told."
    import torch
    gpus = torch.cuda.device_count()
    if not gpus:
        print(NO_GPU, flush=True)
    return max(1, gpus)


# %%
#| export
def fit_command(
    data, run, recipe: str, settings=(), seed: int = 0, seconds: float = 0, processes: int = 1,
) -> list[str]:
    "The words of `ctseg fit`, as one process or as several; a run that is there is continued."
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command = [*start, "ctseg", "fit", str(data), "--out", str(run), "--recipe", recipe, "--seed", str(seed)]
    for setting in settings:
        command += ["--set", setting]
    if seconds:
        command += ["--time-limit", f"{max(seconds, 1):.0f}s"]
    if Run(run).begun:
        command.append("--resume")
    return command


# %%
print(*fit_command("ct", "run", "ctseg", ["epochs=5"], seconds=3600, processes=2)[1:])


# %%
#| export
def train(
    data, # the challenge folder
    run, # the run folder; one that is there is continued
    recipe: str,
    settings=(), # `KEY=VALUE`, as for `ctseg fit --set`
    seed: int = 0,
    seconds: float = 0, # stop, with everything saved, before so much has passed; 0: no limit
    processes: int = 0, # 0: one a GPU
) -> bool: # whether the run is finished; if not, attach the output and go on in another session
    "Train, or go on training, in processes of its own."
    watch(fit_command(data, run, recipe, settings, seed, seconds, processes or workers()))
    return Run(run).finished


# %% [markdown]
# Several runs, as for an ensemble, need no communication at all: each card takes the next run as soon as it is free. They share one deadline. The lines of a run go to a file beside it.

# %%
#| export
class Fleet:
    "Runs that take turns on the cards, under one deadline."

    def __init__(self, data, recipe: str, seed: int = 0, seconds: float = 0):
        self.data, self.recipe, self.seed, self.seconds = data, recipe, seed, seconds
        self.end = time.monotonic() + seconds
        self.failed: list[InputError] = []
        self.cards = SimpleQueue()
        self.size = workers()
        for card in range(self.size):
            self.cards.put(card)

    def train(self, run, settings) -> None:
        "Train one run on the next free card, its lines going to a file beside it."
        card = self.cards.get()
        try:
            left = self.end - time.monotonic()
            if self.seconds and left <= 0:
                return
            Path(run).parent.mkdir(parents=True, exist_ok=True)
            command = fit_command(self.data, run, self.recipe, settings, self.seed, self.seconds and left)
            with open(f"{run}.log", "a", encoding="utf-8") as log:
                show = partial(print, file=log, flush=True)
                watch(command, {"CUDA_VISIBLE_DEVICES": str(card)}, show)
        except InputError as e:
            self.failed.append(e)
            say(f"{run}: {e}")
        finally:
            self.cards.put(card)


# %% [markdown]
# Without a launcher there is one process.

# %%
test_eq(Fleet("ct", "ctseg").size, 1)


# %%
#| export
def train_each(
    data, # the challenge folder
    runs: dict, # run folder -> its settings
    recipe: str,
    seed: int = 0,
    seconds: float = 0, # for all of them together; 0: no limit
) -> list[Path]: # those that are finished
    "Train several runs, one at a time on each card. `InputError` if none is finished and one has failed."
    fleet = Fleet(data, recipe, seed, seconds)
    with ThreadPoolExecutor(fleet.size) as pool:
        list(pool.map(fleet.train, runs.keys(), runs.values()))
    finished = [Path(run) for run in runs if Run(run).finished]
    if fleet.failed and not finished:
        raise fleet.failed[0]
    return finished


# %% [markdown]
# Two runs for an ensemble, each with a log beside it:

# %%
tiny = ["width=4", "epochs=2", "image_size=32", "batch_size=5", "folds=4", "labelled=40"]
members = {carry_on(f"fold-{k}"): [*tiny, f"fold={k}"] for k in range(2)}
finished = train_each(sample, members, "masked")
print([run.name for run in finished])
test_eq([run.name for run in finished], ["fold-0", "fold-1"])
for run in finished:
    lines = Path(f"{run}.log").read_text()
    assert "2/2" in lines and "run folder:" in lines
    test_eq(len(Run(run).read_history()), 2)

# %% [markdown]
# A run that may not take longer stops with everything saved, and is not finished; the next call, or the next session, goes on:

# %%
slow = kaggle_root()/"working"/"slow"
with contextlib.redirect_stdout(io.StringIO()) as said:
    done = train(sample, slow, "masked", [*tiny[:1], "epochs=1000", *tiny[2:]], seconds=1)
print(done, re.sub(r"\d+ of", "… of", re.search("ctseg: (.*)", said.getvalue())[1]))

# %% [markdown]
# A mistake in the settings is the same one line as in a terminal:

# %%
with contextlib.redirect_stdout(io.StringIO()) as said:
    try: train(sample, run, "masked", ["widht=4"])
    except InputError as e: mistake = e
print(mistake)
