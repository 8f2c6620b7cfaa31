# %% [markdown]
# # Start of a run
#
# > Who may train in a folder: a new run, the same one once more, nobody else; and nobody twice at a time.

# %%
#| default_exp runs.start

# %%
#| export
import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ctseg.core.atomic import PART, remove
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json, write_json
from ctseg.core.parallel import on_main
from ctseg.core.paths import disk_errors, refuse_nameless, refuse_special
from ctseg.core.schema import fit_schema
from ctseg.runs.contents import SPEC
from ctseg.runs.folder import Run, check_weights, difference, read_spec, spec_dict
from ctseg.runs.lock import NO_RUN
from ctseg.runs.old_recipe import is_old
from ctseg.runs.sums import SUMS, check_sums

# %%
#| hide
import tempfile

from fastcore.test import test_eq

from ctseg.data.toys import toy_set
from ctseg.runs.folder import make_spec
from ctseg.runs.recipe import Recipe


# %% [markdown]
# Days of training lie in a [run folder](20_folder.ipynb). A second run into the same folder would overwrite them, and two processes at once would spoil both runs. So a start first looks at what is there.
#
# ## What a start finds
#
# A name is taken by a checkpoint, not by a failure: a start that ended before the first one, for want of memory perhaps, has lost nothing, and its name is free again.

# %%
#| export
def is_taken(run: Run) -> bool:
    "Is there something that a start would lose: a checkpoint, or finished weights?"
    kept = [*(run/"checkpoints").glob("*/step-*"), *(run/"checkpoints").glob("*/final")]
    return bool(kept) or run.finished or run.weights.exists()


def prospect(run: Run) -> str:
    "What `--resume` does other than to go on from a checkpoint, in words; '' where it goes on."
    where = run.folder
    if run.finished: return f"{where} is a finished run: nothing to train"
    if not run.begun: return f"no run in {where} yet: starting one"
    if is_taken(run): return ""
    return f"no checkpoint is left in {where}: starting from the beginning"


# %%
print(prospect(Run("runs/first")))


# %%
#| export
def clear_failed(run: Run) -> None:
    "Remove what a start has left that kept nothing."
    if is_taken(run): return
    for name in ("recipe.json", "history.csv", "timings.csv", "checkpoints", "tensorboard"):
        if os.path.lexists(run/name): remove(run/name)


# %%
with tempfile.TemporaryDirectory() as d:
    for name in ("history.csv", "notes.txt"): (Path(d)/name).write_text("")
    clear_failed(Run(d))
    print([p.name for p in Path(d).iterdir()])


# %%
#| export
def refuse_unfinished_old(run: Run) -> None:
    """`InputError` for an unfinished run that this version cannot continue as it began.

    Its checkpoints are those of ctseg 0.1, or a teacher filled in its labels, where teachers distil by now."""
    path = run/"recipe.json"
    spec = fit_schema(read_json(path), SPEC, path, "not the recipe of a run, or a damaged one")
    data = spec["recipe"].get("data")
    filled_in = "teacher" in spec and isinstance(data, dict) and "completion" in data
    if run.finished or not (is_old(spec["recipe"]) or filled_in): return
    maker = spec.get("versions", {}).get("ctseg", "0.1.0")
    which = "teacher this version would use otherwise", "checkpoints this version cannot continue"
    what = which[0] if filled_in else which[1]
    remedy = "train again into another --out, or continue with the version that began it"
    raise InputError(f"{run.folder}: an unfinished run of ctseg {maker}, whose {what}; {remedy}")


# %%
#| export
def is_text(path: Path) -> bool:
    "Is a path UTF-8? The library that reads weights takes no other."
    try: str(path).encode()
    except UnicodeEncodeError: return False
    return True


# %%
test_eq([is_text(Path(name)) for name in ("größe", "gr\udcf6sse")], [True, False])


# %%
#| export
def strangers(folder: Path) -> list[Path]:
    "What is in a folder that no start of a run leaves there."
    inside = folder.iterdir() if folder.is_dir() else ()
    return [p for p in inside if p.name not in NO_RUN and not p.name.endswith(PART)]


def check_free(run: Run, resume: bool = False) -> None:
    "`InputError` unless a run can start here, or with `resume` go on."
    folder = run.folder
    if not is_text(folder):
        raise InputError(f"{folder}: no UTF-8, as the library of weights needs; choose another name")
    at_hand = not folder.name  # an empty one may become a run
    if not at_hand: refuse_nameless(folder)
    with disk_errors(folder):
        if os.path.lexists(folder) and not folder.is_dir():
            raise InputError(f"{folder} is no folder; choose another --out")
        if run.begun and is_taken(run):
            if not resume:
                remedy = "add --resume to continue it or choose another --out"
                raise InputError(f"{folder} already holds a run; {remedy}")
            refuse_unfinished_old(run)
            for path in folder.iterdir(): refuse_special(path)
        elif not run.begun and any(strangers(folder)):
            raise InputError(f"{folder} is not empty and holds no run; choose another --out")


# %%
with tempfile.TemporaryDirectory() as d:
    check_free(Run(d))
    (Path(d)/"notes.txt").write_text("mine")
    try: check_free(Run(d))
    except InputError as e: print(str(e).replace(d, "…"))


# %% [markdown]
# ## The lock
#
# Whoever trains in a folder holds [its lock](16_lock.ipynb).

# %%
#| export
def hold_run(run: Run) -> None:
    "Until `release_run` or the end of this process, no other may train in the folder."
    run.lock.acquire(run.folder)


def release_run(run: Run) -> None:
    "Let others train in the folder. A start that kept nothing leaves nothing."
    if run.lock.path is None: return
    clear_failed(run)
    run.lock.release()


# %%
#| export
@contextlib.contextmanager
def held_run(run: Run) -> Iterator[None]:
    "Within the block process 0 holds the run, unless it has finished: then nothing is trained."
    if not run.finished: on_main(lambda: hold_run(run))
    try: yield
    finally: release_run(run)


# %%
with tempfile.TemporaryDirectory() as d:
    with held_run(Run(d)):
        try: hold_run(Run(d))
        except InputError as e: print(str(e).replace(d, "…"))
    with held_run(Run(d)): print("it is free again")


# %% [markdown]
# ## The start
#
# `start_run` takes the lock, then writes the recipe or compares it with the one that is there.

# %%
#| export
def check_same_run(run: Run, spec: dict[str, Any]) -> None:
    "`InputError` unless the folder holds the run that `make_spec` describes."
    path = run/"recipe.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another version of a plugin; the comparison tells it
        differs = difference(read_spec(path), spec)
    if differs:
        remedy = "continue with the same, or choose another --out"
        raise InputError(f"{path}: this run was started with {differs}; {remedy}")


# %% [markdown]
# A kill leaves half-written files, which are told by their names:

# %%
#| export
def drop_unwritten(folder: Path) -> None:
    "Remove files that were being written when the run was killed."
    for pattern in (f".*{PART}", f"checkpoints/.*{PART}", f"checkpoints/*/.*{PART}"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


# %%
#| export
VERSIONED = ("ctseg", "torch", "timm", "numpy", "accelerate")

def start_run(run: Run, spec: dict[str, Any], resume: bool = False) -> Run:
    "Start the folder with what `make_spec` gives, or check that it holds the same run, which may then be continued."
    check_free(run, resume)  # once more: reading the data took a while
    if not run.finished: hold_run(run)
    check_free(run, resume)  # and once more: another process may have been faster
    clear_failed(run)
    if not run.finished:
        (run/SUMS).unlink(missing_ok=True)  # of an end that will be written again
    if run.begun:
        check_same_run(run, spec)
        if run.finished:
            check_weights(run)
            check_sums(run.folder)
            for name in NO_RUN:  # of a kill after the last file
                with contextlib.suppress(OSError): (run/name).unlink()
    else:
        versions = {"python": sys.version.split()[0], **{p: metadata.version(p) for p in VERSIONED}}
        write_json(spec_dict(spec) | {"versions": versions}, run/"recipe.json")
    drop_unwritten(run.folder)
    return run


# %%
toys = toy_set(8, 4)[0]
with tempfile.TemporaryDirectory() as d:
    run = start_run(Run(Path(d)/"first"), make_spec(Recipe("toy"), toys, seed=0))
    print(str(run).replace(d, "…"))
    (run/"checkpoints"/"supervised"/"step-0000010").mkdir(parents=True)
    release_run(run)
    release_run(start_run(Run(run.folder), make_spec(Recipe("toy"), toys, seed=0), resume=True))
    for attempt in (
        lambda: check_free(Run(run.folder)),
        lambda: start_run(Run(run.folder), make_spec(Recipe("toy"), toys, seed=1), True),
    ):
        try: attempt()
        except InputError as e: print(str(e).replace(d, "…"))
