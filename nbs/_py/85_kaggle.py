# %% [markdown]
# # On Kaggle
#
# > Inputs found wherever they are mounted, a run that goes on where the last session was cut, and both GPUs at work.
#
# - skip_showdoc: true

# %%
#| default_exp kaggle

# %% [markdown]
# A Kaggle notebook sees three folders: `/kaggle/input` holds whatever was attached, read-only; `/kaggle/working` is kept as the notebook's output; everything else is gone when the session ends, and the session ends after some
# hours whether the training has or not. That leaves three chores, which the [four notebooks](kaggle/supervised/supervised.ipynb) share and none of them should have to explain:
#
# 1. **find the data**, since the place where a data set is mounted has changed more than once and depends on who uploaded it, and how;
# 2. **carry on**: yesterday's output, attached as an input, is copied to where it can be written, and continued;
# 3. **use the cards**: Kaggle gives two T4, and one process uses one of them.

# %%
#| export
import math, os, re, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from ctseg.files import InputError, atomic_path
from ctseg.train import Run

# %%
#| hide
import contextlib, io
from fastcore.test import test_eq
from ctseg.data import read_challenge


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
# A [challenge folder](10_data.ipynb) may be mounted at `/kaggle/input/slug`, at `/kaggle/input/datasets/user/slug`, or deeper, where an archive brought a folder of its own. The images may lie in one data set and the table in
# another; and the organisers' server calls the table `label_Hnl61pT.csv`. So every piece is looked for by its name, once, without walking through thousands of images.

# %%
#| export
_PIECES = {"train-images": ["train-images"], "test-images": ["test-images"], "y_train.csv": ["y_train.csv", "label_*.csv"], "y_train.csv.gz": ["y_train.csv.gz"],
           "annotated_labels.json": ["annotated_labels.json"], "class_names.json": ["class_names.json"], "patients.json": ["patients.json"],
           "y_test.csv": ["y_test.csv"], "y_test.csv.gz": ["y_test.csv.gz"]}

def _find_pieces(top: Path, match: str) -> dict[str, list[Path]]:
    "Every file or image folder of a challenge below `top` whose path holds `match`, by the name it should have."
    found = {name: [] for name in _PIECES}
    for folder, inner, files in os.walk(top):
        here = Path(folder)
        images = here.name in ("train-images", "test-images") and any(f.lower().endswith(".png") for f in files)
        if images: inner.clear()  # nothing else is in there
        for name, patterns in _PIECES.items():
            hits = [here] if images and here.name == name else [] if "." not in name else [here/f for f in files if any(Path(f).match(p) for p in patterns)]
            found[name] += [p for p in hits if match in str(p.relative_to(top))]
    return found


# %% [markdown]
# If the pieces lie together under their right names, that folder is the answer. If not, a folder of links is made, and the rest of `ctseg` need not know. What is found twice is never chosen by chance.

# %%
#| export
def find_challenge(match: str = "") -> Path: # `match`: look only at inputs whose path holds this text
    "The challenge folder among the notebook's inputs; one made of links, if its pieces lie in several places."
    top = kaggle_root()/"input"
    found = _find_pieces(top, match)
    for name, places in found.items():
        if len(places) > 1: raise InputError(f"{name} is attached twice, as {places[0]} and {places[1]}; detach one, or say which: find_challenge(match=\"…\")")
    have = {name: places[0] for name, places in found.items() if places}
    lost = [n for n in ("train-images", "test-images", "y_train.csv") if n not in have and f"{n}.gz" not in have]
    if lost: raise InputError(f"{top}: no {' and no '.join(lost)} anywhere{f' below a path with {match!r}' if match else ''}; "
                              "attach the data set with the challenge's files (Add Input, at the right)")
    together = {p.parent for n, p in have.items() if p.name == n}
    if len(together) == 1 and all(p.name == n for n, p in have.items()): return together.pop()
    folder = Path(tempfile.mkdtemp(prefix="challenge-"))
    for name, place in have.items(): (folder/name).symlink_to(place, target_is_directory=place.is_dir())
    return folder


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
def find_runs(name: str = "*", finished: bool = False) -> list[Path]:
    "Run folders among the inputs, the one that got furthest first."
    def reached(run):  # finished, epochs, then steps: a run is cut within epochs too
        steps = [p.name for p in run.glob("checkpoints/*/step-*")]
        return (run/"metrics.json").exists(), (run/"history.csv").read_text().count("\n") if (run/"history.csv").exists() else 0, max(steps, default="")
    found = [Path(folder) for folder, inner, files in os.walk(kaggle_root()/"input") if "recipe.json" in files and Path(folder).match(name)]
    return sorted((r for r in sorted(found, key=str) if not finished or (r/"metrics.json").exists()), key=reached, reverse=True)

def carry_on(name: str = "run") -> Path:
    "The folder `name` in `/kaggle/working`, filled from an earlier session's output if one is attached."
    run = kaggle_root()/"working"/name
    earlier = find_runs(name)
    if run.exists() or not earlier: return run
    with atomic_path(run) as tmp:
        shutil.copytree(earlier[0], tmp, copy_function=shutil.copyfile)
        for p in [tmp, *tmp.rglob("*")]: p.chmod(0o755 if p.is_dir() else 0o644)  # what is mounted read-only may say so in its modes too
    print(f"going on from {earlier[0]}")
    return run


# %%
for session, rows in (("monday", 2), ("tuesday", 5)):
    past = root/"input"/"notebooks"/"somebody"/session/"run"
    (past/"checkpoints").mkdir(parents=True)
    (past/"recipe.json").write_text("{}"); (past/"history.csv").write_text("epoch\n"*rows); (past/"checkpoints"/"x").write_text(session)
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
_CAUSE = re.compile(r"ctseg: |(\[rank\d+\]: *)?[\w.]+(Error|Exception)\b(?<!ChildFailedError)")  # ChildFailedError: torchrun's, of a process that has said why

def _watch(command: list[str], env: dict = {}, show=print):
    "Run `command` and show its lines as they come; `InputError` with the one that tells why if it fails. A run that stopped in time has not failed."
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1", **env}) as p:
        last, cause, stopped, told = "", "", False, -math.inf
        for line in filter(str.strip, p.stdout):
            if "%|" in line and "100%|" not in line and time.monotonic() - told < 60: continue  # the progress bar, redrawn
            stopped |= "everything is saved" in line  # torchrun has a status of its own, so the line counts
            show(last := line.rstrip())
            if _CAUSE.match(line): cause = last  # after it torchrun prints a page of its own
            if "%|" in line: told = time.monotonic()
    if p.returncode and not stopped: raise InputError(f"the training ended with status {p.returncode}: {cause or last}")


# %%
#| export
def workers() -> int:
    "How many processes can train at once: one a GPU. Without any it is one on the CPU, which is told, since a session has no GPU unless one was chosen."
    import torch
    if not (n := torch.cuda.device_count()): print("no GPU: this trains on the CPU, many times slower. On Kaggle choose GPU T4 x2 under Settings, Accelerator", flush=True)
    return max(1, n)

def _fit_command(data, run, recipe, settings, seed, seconds, processes: int = 1) -> list[str]:
    "`ctseg fit`, as one process or as several."
    start = [sys.executable, "-m"] + (["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else [])
    options = [x for s in settings for x in ("--set", s)] + (["--time-limit", f"{max(seconds, 1):.0f}s"] if seconds else [])
    if (Path(run)/"recipe.json").exists(): options.append("--resume")
    return [*start, "ctseg", "fit", str(data), "--out", str(run), "--recipe", recipe, "--seed", str(seed), *options]


# %%
#| export
def train(
    data, # the challenge folder
    run, # the run folder; one that is there is continued
    recipe: str,
    settings = (), # `KEY=VALUE`, as for `ctseg fit --set`
    seed: int = 0,
    seconds: float = 0, # stop, with everything saved, before so much has passed; 0: no limit
    processes: int = 0, # 0: one a GPU
) -> bool: # whether the run is finished; if not, attach the output and go on in another session
    "Train, or go on training, in processes of its own."
    _watch(_fit_command(data, run, recipe, settings, seed, seconds, processes or workers()))
    return (Run(run)/"metrics.json").exists()


# %% [markdown]
# Several runs, as for an ensemble, need no communication at all: each card takes the next run as soon as it is free. They share one deadline. The lines of a run go to a file beside it.

# %%
#| export
def train_each(
    data, # the challenge folder
    runs: dict, # run folder -> its settings
    recipe: str,
    seed: int = 0,
    seconds: float = 0, # for all of them together; 0: no limit
) -> list[Path]: # those that are finished
    "Train several runs, one at a time on each card. One that fails is told of, and does not keep the others from being used; `InputError` if none is finished and one has failed."
    free, end, failed = SimpleQueue(), time.monotonic() + seconds, []
    n = workers()
    for card in range(n): free.put(card)

    def one(run, settings):
        card, left = free.get(), end - time.monotonic()
        try:
            if seconds and left <= 0: return
            Path(run).parent.mkdir(parents=True, exist_ok=True)
            with open(f"{run}.log", "a") as log:
                _watch(_fit_command(data, run, recipe, settings, seed, seconds and left), {"CUDA_VISIBLE_DEVICES": str(card)}, lambda s: print(s, file=log, flush=True))
        except InputError as e: failed.append(e); print(f"{run}: {e}")
        finally: free.put(card)

    with ThreadPoolExecutor(n) as pool: list(pool.map(lambda item: one(*item), runs.items()))
    done = [Path(r) for r in runs if (Path(r)/"metrics.json").exists()]
    if failed and not done: raise failed[0]
    return done


# %% [markdown]
# One run, its folder carried on, and two for an ensemble:

# %%
tiny = ["width=4", "epochs=2", "image_size=32", "batch_size=5", "folds=4"]
run = carry_on("tiny")
with contextlib.redirect_stdout(io.StringIO()) as said: assert train(sample, run, "masked", tiny)
assert "2/2" in said.getvalue() and "run folder:" in said.getvalue()

members = {kaggle_root()/"working"/f"fold-{k}": [*tiny, f"fold={k}"] for k in range(2)}
test_eq([r.name for r in train_each(sample, members, "masked")], ["fold-0", "fold-1"])
test_eq(len(Run(run).read_history()), 2)

# %% [markdown]
# A run that may not take longer stops with everything saved, and is not finished; the next call, or the next session, goes on:

# %%
slow = kaggle_root()/"working"/"slow"
with contextlib.redirect_stdout(io.StringIO()) as said: done = train(sample, slow, "masked", [*tiny, "epochs=1000"], seconds=8)
print(done, re.sub(r"\d+ of", "… of", re.search("ctseg: (.*)", said.getvalue())[1]))

# %% [markdown]
# A mistake in the settings is the same one line as in a terminal:

# %%
with contextlib.redirect_stdout(io.StringIO()) as said:
    try: train(sample, run, "masked", ["widht=4"])
    except InputError as e: mistake = e
print(mistake)

# %%
#| hide
shutil.rmtree(root)
import nbdev; nbdev.nbdev_export()
