# %% [markdown]
# # Trackers
#
# > A run beside others in TensorBoard, Weights & Biases, MLflow or another tracker of accelerate: a point an epoch, and the recipe.

# %%
#| default_exp training.trackers

# %%
#| export
import importlib.util
import math
import os
import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.json_files import read_json, write_json

# %%
#| hide
import tempfile

from accelerate import PartialState
from fastcore.test import test_eq


# %% [markdown]
# `ctseg fit … --log tensorboard` hands each row of the history to a tracker; `--log tensorboard,wandb` to both. [accelerate](https://huggingface.co/docs/accelerate/usage_guides/tracking) knows nine of them. A name that none of them has, or a package that is not installed, is told before anything is trained.

# %%
#| export
def check_trackers(names: str | Iterable[str]) -> tuple[str, ...]:
    "The trackers that are asked for, each once; `InputError` for an unknown one, or one that is not installed."
    texts = [names] if isinstance(names, str) else map(str, names)
    asked = ",".join(texts).split(",")
    stripped = [name.strip() for name in asked]
    chosen = tuple(dict.fromkeys(filter(None, stripped)))  # each once, in order
    for name in chosen:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise did_you_mean("tracker", name, LOGGER_TYPE_TO_CLASS)
        if importlib.util.find_spec(name) is None:  # each package is called as its tracker
            raise InputError(f"--log {name}: the package {name} is not installed; run: pip install {name}")
    return chosen


# %%
print(", ".join(LOGGER_TYPE_TO_CLASS))
for wrong in ("tensorbord", "no_such_tracker"):
    try: check_trackers(wrong)
    except InputError as e: print(e)


# %% [markdown]
# A run that is resumed goes on where it was: the file `trackers.json` of the run folder keeps the number that a tracker has given the run, and how many epochs it has been told. Nothing leaves the machine by default: wandb writes into the run folder until `WANDB_MODE=online` is set, MLflow into the store that `MLFLOW_TRACKING_URI` names, by default one on this disk. The other trackers follow their own settings.

# %%
#| export
def opening(name: str, folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    "What a tracker is opened with; `entry`: what was kept of it, changed in place."
    if name == "tensorboard":
        options = {"run_name": name, "logging_dir": str(folder)}
        if entry["logged"]:  # what a killed run has logged twice, is dropped
            options["purge_step"] = entry["logged"] + 1
        return options
    if name == "wandb":
        entry.setdefault("id", uuid.uuid4().hex[:8])
        return {
            "run_name": os.environ.get("WANDB_PROJECT", "ctseg"),
            "id": entry["id"],
            "resume": "allow",
            "name": folder.name,
            "dir": str(folder),
            "mode": os.environ.get("WANDB_MODE", "offline"),
        }
    if name == "mlflow":
        return {"experiment_name": "ctseg", "run_name": folder.name, "run_id": entry.get("id")}
    options = {"run_name": "ctseg"}
    if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory:
        options["logging_dir"] = str(folder)
    return options


# %%
#| export
def open_tracker(name: str, folder: Path, entry: dict[str, Any], config: dict[str, Any]) -> GeneralTracker:
    "A tracker at work; a new one gets the settings of the run."
    tracker = LOGGER_TYPE_TO_CLASS[name](**opening(name, folder, entry))
    if hasattr(tracker, "start"): tracker.start()
    if name == "mlflow":
        entry["id"] = tracker.tracker.info.run_id
    if not entry["logged"]:
        tracker.store_init_configuration(config)
    return tracker


# %%
entry = {"logged": 3}
print(opening("tensorboard", Path("runs/first"), entry))


# %%
#| export
def points(row: dict[str, Any]) -> dict[str, float]:
    "The numbers of a row of the history, by PHASE/NAME; what was not measured is left out."
    numbers = {}
    for key in ("loss", "dice", "lr", "skipped"):
        value = float(row[key])
        if math.isfinite(value):
            numbers[f"{row['phase']}/{key}"] = value
    return numbers


# %%
row = {"phase": "supervised", "epoch": 1, "step": 9, "lr": 0.002, "loss": 0.5, "dice": math.nan, "skipped": 0}
print(points(row))


# %%
#| export
class TrackerState:
    "The trackers of a run, open, and what is kept of them."
    def __init__(self, names: Iterable[str], folder: Path, config: dict[str, Any]):
        self.folder = folder
        self.path = folder/"trackers.json"
        self.state: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self.state = read_json(self.path)
        self.open: dict[str, GeneralTracker] = {}
        for name in names:
            entry = self.state.setdefault(name, {"logged": 0})
            try:
                self.open[name] = open_tracker(name, folder, entry, config)
            except Exception as e:  # each has its own ways to fail
                reason = str(e).partition("\n")[0]
                raise InputError(f"--log {name}: it cannot be started ({type(e).__name__}: {reason})") from e

    def finish(self) -> None:
        "Close them."
        for tracker in self.open.values():
            tracker.finish()
        self.open = {}


# %%
with tempfile.TemporaryDirectory() as d:
    print(TrackerState([], Path(d), {}).state)


# %%
#| export
class Trackers(TrackerState):
    """The trackers of a run, called with its whole history after each epoch.

    A tracker that fails while a network is trained is told of once and left alone: the training goes on."""
    def __call__(self, history: list[dict]) -> None:
        "Log the epochs that a tracker has not been told of; the step is the epoch's number in the whole run."
        for name, tracker in list(self.open.items()):
            entry = self.state[name]
            try:
                logged = entry["logged"]
                for step, row in enumerate(history[logged:], logged + 1):
                    tracker.log(points(row), step=step)
                entry["logged"] = len(history)
            except Exception as e:  # of a service elsewhere, for which no training is lost
                del self.open[name]
                reason = f"{type(e).__name__}: {e}"
                warnings.warn(f"--log {name} has failed and is left out from here on ({reason})")
        write_json(self.state, self.path)


# %% [markdown]
# A tracker of one's own shows what any of them is told, before and after a run is cut.

# %%
class Printer(GeneralTracker):
    "Prints what it is told."
    name, requires_logging_directory = "printer", False
    def __init__(self, run_name): super().__init__()
    tracker = None
    def store_init_configuration(self, values): print("recipe:", values)
    def log(self, values, step=None): print("epoch", step, values)
    def finish(self): print("closed")

PartialState(cpu=True)
LOGGER_TYPE_TO_CLASS["printer"] = Printer
history = [row | {"loss": 1/n, "dice": 1 - 1/n} for n in (1, 2, 3)]
with tempfile.TemporaryDirectory() as d:
    for epochs in (2, 3):  # the second time it goes on
        log = Trackers(["printer"], Path(d), {"schedule.epochs": 3})
        for n in range(2, epochs + 1): log(history[:n])
        log.finish()
    test_eq(read_json(Path(d)/"trackers.json"), {"printer": {"logged": 3}})
del LOGGER_TYPE_TO_CLASS["printer"]
