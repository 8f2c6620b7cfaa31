# %% [markdown]
# # Run folder
#
# > What a run leaves on disk: its complete recipe, its history, its weights; each file whole or not at all.

# %%
#| default_exp runs.folder

# %%
#| export
import csv
import shutil
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
try:
    import fcntl
except ImportError:
    fcntl = None

from ctseg.core.files import InputError, PART, atomic_path, disk_errors, read_json, write_json
from ctseg.core.registry import Plugin, require_plugin
from ctseg.data.slices import SliceSet
from ctseg.runs.old_recipe import is_old, nested
from ctseg.runs.recipe import CHOICES, Recipe, recipe_dict, recipe_fields, recipe_from

# %%
#| hide
import tempfile

import pandas as pd
from fastcore.test import test_eq

from ctseg.data.toys import toy_set


# %% [markdown]
# A run explains itself years later.
#
# | file | content |
# |---|---|
# | `recipe.json` | every setting of the recipe, seed, classes, fingerprint of the data, plugins, versions |
# | `history.csv` | a row an epoch |
# | `checkpoints/PHASE/` | the newest two checkpoints; once the phase is over only `final/`, the averaged weights |
# | `checkpoints/model.safetensors` | the model that predicts |
# | `metrics.json`, `curves.png` | written at the end: score, decision rule, calibration; the learning curves |
# | `reliability.csv` | the points of the reliability diagram, where slices were held out |
# | `timings.csv` | seconds of each epoch, and where it was trained; apart from the history, because it differs from run to run |
# | `pseudo_labels.npz`, `pseudo_cells.csv` | what teachers said (teacher–student) or added (self-training) |
# | `report.html` | the page that `ctseg report` writes |
# | `tensorboard/` | the curves again, where TensorBoard is installed |

# %%
#| export
def write_rows(rows: list[dict], path: str | Path) -> None:
    "A CSV with a column for every key, in the order they first appear; whole or not at all."
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as tmp, open(tmp, "w", newline="") as f:
        out = csv.DictWriter(f, columns)
        out.writeheader()
        out.writerows(rows)


# %%
with tempfile.TemporaryDirectory() as d:
    write_rows([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4, "dice": 0.8}], Path(d)/"rows.csv")
    print((Path(d)/"rows.csv").read_text())

# %% [markdown]
# ## The recipe of a run
#
# `read_spec` checks what it reads. A recipe of ctseg 0.1 is [translated](12_old_recipe.ipynb). If the run was made with plugins, they are [found again](../core/70_registry.ipynb), or the error says what to give.

# %%
#| export
PARTS = {"recipe", "seed", "data", "classes", "image_shape"}
VERSIONED = ("ctseg", "torch", "timm", "numpy", "accelerate")

def make_spec(recipe: Recipe, slices: SliceSet, seed: int, plugins: Iterable[Plugin] = ()) -> dict[str, Any]:
    "What `recipe.json` says of a run, as `read_spec` gives it back."
    counts = {"images": len(slices), "labelled": int(slices.labelled.sum())}
    data = {"fingerprint": slices.fingerprint()} | counts
    classes = {str(i): name for i, name in enumerate(slices.classes.names, 1)}
    shape = list(slices.images.shape[1:])
    unions = {"unions": slices.classes.union_table} if slices.classes.unions else {}
    threads = torch.get_num_threads()  # their number decides the order of sums on a CPU, and so the rounding
    return {"recipe": recipe, "plugins": list(plugins), "seed": seed, "data": data,
            "classes": classes, **unions, "image_shape": shape, "threads": threads}

def spec_dict(spec: dict[str, Any]) -> dict[str, Any]:
    "The same in plain dictionaries, to be written."
    return spec | {"recipe": recipe_dict(spec["recipe"]), "plugins": [asdict(p) for p in spec["plugins"]]}


# %%
toys, _ = toy_set(8, 4)
spec = make_spec(Recipe("toy"), toys, seed=0)
print(spec["recipe"], spec["data"], list(spec_dict(spec)))


# %%
#| export
def read_spec(path: str | Path) -> dict[str, Any]:
    """A `recipe.json`: `recipe` as a `Recipe`, `plugins` as `Plugin`s, `old`: by ctseg 0.1?, and the rest as it is.

    `InputError` for a file that is none, that another version has written, or whose plugins are missing."""
    spec = read_json(path)
    if not isinstance(spec, dict) or not PARTS <= spec.keys() or not isinstance(spec["recipe"], dict):
        raise InputError(f"{path}: not the recipe of a run")
    plugins = [Plugin(**p) for p in spec.get("plugins", [])]
    for plugin in plugins:
        require_plugin(plugin, str(Path(path).parent))
    old = is_old(spec["recipe"])
    try:
        recipe = recipe_from(nested(spec["recipe"]) if old else spec["recipe"])
    except InputError as e:
        maker = spec.get("versions", {}).get("ctseg", "another")
        raise InputError(f"{path}: {e}; the run was made by ctseg {maker}") from None
    return spec | {"recipe": recipe, "plugins": plugins, "old": old}


# %%
with tempfile.TemporaryDirectory() as d:
    write_json(spec_dict(make_spec(Recipe("toy"), toys, seed=0)), Path(d)/"recipe.json")
    spec = read_spec(Path(d)/"recipe.json")
    print(spec["recipe"], spec["data"])
    write_json(spec_dict(make_spec(Recipe("toy"), toys, 0, [Plugin("my_loss.py", "0"*64)])), Path(d)/"recipe.json")
    try: read_spec(Path(d)/"recipe.json")
    except InputError as e: print(str(e).replace(d, "…"))

# %% [markdown]
# A run goes on with the recipe it was started with. A description in other words is no other recipe, and neither is another card's memory.

# %%
#| export
FREE = ("about", "compute.pieces")  # settings that may change while a run is continued

def facts_of(spec: dict[str, Any]) -> dict[str, Any]:
    "What a continued run must have in common with the one that was started."
    recipe = spec["recipe"]
    settings = {key: value for key, value, _, _ in recipe_fields(recipe) if key not in FREE}
    choices = {group: settings[group] for group in CHOICES}
    plugins = ", ".join(map(str, spec["plugins"])) or "none"
    first = {"name": recipe.name, **choices, "plugins": plugins}
    return first | settings | {"seed": spec["seed"]} | spec["data"]

def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    "The first thing in which two specs are different, in words; '' if they describe the same run."
    before, after = facts_of(old), facts_of(new)
    for key, value in after.items():
        if before.get(key) != value:
            return f"{key.rpartition('.')[2]} = {before.get(key)!r}, not {value!r}"
    return ""


# %%
spec = {"recipe": Recipe(), "plugins": [], "seed": 0, "data": {"images": 24}}
print(difference(spec, spec | {"recipe": Recipe().change(lr=1e-3)}))
print(difference(spec, spec | {"data": {"images": 25}}))
test_eq(difference(spec, spec | {"recipe": Recipe(about="in other words").change(pieces=2)}), "")


# %% [markdown]
# ## The folder
#
# `Run` knows the files. Its `repr` says what the run is.

# %%
#| export
def run_in_words(run: "RunFiles") -> str:
    "Recipe, epochs, and how far the run has come."
    if not (run/"recipe.json").exists(): return "empty"
    facts = [read_json(run/"recipe.json").get("recipe", {}).get("name", "custom")]
    if (run/"history.csv").exists():
        facts.append(f"{len(run.read_history())} epochs")
    metrics = read_json(run/"metrics.json") if run.finished else {}
    dice = metrics.get("dice held out, chosen rule")
    if dice is not None: facts.append(f"Dice {dice:.3f} held out")
    return ", ".join(facts if run.finished else [*facts, "not finished"])


# %%
#| export
class RunFiles:
    "The files of a run."
    def __init__(self, folder: str | Path): self.folder = Path(folder)
    def __truediv__(self, name: str) -> Path: return self.folder/name
    def __repr__(self) -> str: return f"Run({str(self.folder)!r}: {run_in_words(self)})"

    @property
    def weights(self) -> Path:
        "The model that predicts."
        return self/"checkpoints"/"model.safetensors"

    @property
    def finished(self) -> bool:
        "Has the run come to its end?"
        return (self/"metrics.json").exists()

    def read_history(self):
        "`history.csv` as a table (pandas)."
        import pandas as pd
        return pd.read_csv(self/"history.csv")

    def read_timings(self) -> list[dict[str, str]]:
        "The rows of `timings.csv` so far, as texts."
        path = self/"timings.csv"
        return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []

    def read_pseudo(self) -> dict[str, np.ndarray]:
        "What a teacher said: `labels` uint8 [N, H, W], `kept` bool [N], `names`, and confidences [N] by name."
        with np.load(self/"pseudo_labels.npz") as z: return dict(z)


# %%
print(RunFiles("runs/first"))


# %% [markdown]
# Only one process may train in a folder. The lock is the operating system's, so it goes with the process that held it.

# %%
#| export
class FileLock:
    "A lock on a file, held until `release` or the end of the process; does nothing where the system has no such locks."
    def __init__(self): self.file = None

    def acquire(self, path: Path) -> None:
        "`InputError` if another process holds the lock of the file `path`."
        if fcntl is None: return
        self.file = open(path)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "wait for it, or choose another --out"
            raise InputError(f"{path.parent}: another process is training in it; {remedy}") from None
        except OSError:  # a file system without locks
            pass

    def release(self) -> None:
        "Let others have it."
        if self.file is not None: self.file.close()

def refuse_unfinished_old(run: RunFiles) -> None:
    "`InputError` for an unfinished run of ctseg 0.1, whose checkpoints this version cannot continue."
    spec = read_json(run/"recipe.json")
    if run.finished or not is_old(spec.get("recipe", {})): return
    maker = spec.get("versions", {}).get("ctseg", "0.1.0")
    problem = f"an unfinished run of ctseg {maker}, whose checkpoints this version cannot continue"
    remedy = f"train again into another --out, or continue with ctseg {maker}"
    raise InputError(f"{run.folder}: {problem}; {remedy}")


# %%
with tempfile.TemporaryDirectory() as d:
    (Path(d)/"recipe.json").write_text("{}")
    first, second = FileLock(), FileLock()
    first.acquire(Path(d)/"recipe.json")
    try: second.acquire(Path(d)/"recipe.json")
    except InputError as e: print(str(e).replace(d, "…"))
    first.release()


# %%
#| export
class Run(RunFiles):
    "A run folder that can be started, continued and locked."
    def __init__(self, folder: str | Path):
        super().__init__(folder)
        self.file_lock = FileLock()

    def check_free(self, resume: bool = False) -> None:
        "`InputError` unless a run can start in the folder, or with `resume` go on."
        with disk_errors(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise InputError(f"{self.folder} is a file; choose another --out")
            if (self/"recipe.json").exists():
                if not resume:
                    remedy = "add --resume to continue it or choose another --out"
                    raise InputError(f"{self.folder} already holds a run; {remedy}")
                refuse_unfinished_old(self)
            elif self.folder.exists() and any(not p.name.endswith(PART) for p in self.folder.iterdir()):
                raise InputError(f"{self.folder} is not empty and holds no run; choose another --out")

    def lock(self) -> None:
        "Until `unlock`, or the end of this process, no other may train in the folder."
        self.file_lock.acquire(self/"recipe.json")

    def unlock(self) -> None:
        "Let others train in the folder."
        self.file_lock.release()


# %%
with tempfile.TemporaryDirectory() as d:
    Run(d).check_free()
    (Path(d)/"notes.txt").write_text("mine")
    try: Run(d).check_free()
    except InputError as e: print(str(e).replace(d, "…"))


# %% [markdown]
# `start_run` writes the recipe, or compares it with the one that is there, and takes the lock.

# %%
#| export
def start_run(run: Run, spec: dict[str, Any], resume: bool = False) -> Run:
    "Start the folder with what `make_spec` gives, or check that it holds the same run, which may then be continued."
    run.check_free(resume)  # once more: reading the data took a while
    path = run/"recipe.json"
    if path.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another version of a plugin; the comparison tells it
            differs = difference(read_spec(path), spec)
        if differs:
            remedy = "continue with the same, or choose another --out"
            raise InputError(f"{path}: this run was started with {differs}; {remedy}")
    else:
        versions = {"python": sys.version.split()[0], **{p: metadata.version(p) for p in VERSIONED}}
        write_json(spec_dict(spec) | {"versions": versions}, path)
    run.lock()
    for pattern in (f".*{PART}", f"checkpoints/.*{PART}", f"checkpoints/*/.*{PART}"):
        for left in run.folder.glob(pattern):  # files that were being written when the run was killed
            shutil.rmtree(left, ignore_errors=True)
    return run


# %%
with tempfile.TemporaryDirectory() as d:
    run = start_run(Run(Path(d)/"first"), make_spec(Recipe("toy"), toys, seed=0))
    print(str(run).replace(d, "…"))
    run.unlock()
    start_run(Run(run.folder), make_spec(Recipe("toy"), toys, seed=0), resume=True).unlock()
    for attempt in (lambda: Run(run.folder).check_free(), lambda: start_run(Run(run.folder), make_spec(Recipe("toy"), toys, seed=1), True)):
        try: attempt()
        except InputError as e: print(str(e).replace(d, "…"))
