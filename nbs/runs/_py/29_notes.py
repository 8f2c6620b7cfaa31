# %% [markdown]
# # Notes
#
# > What happens while a recipe is at work: kept in the run folder, and told to whoever watches.

# %%
#| default_exp runs.notes

# %%
#| export
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ctseg.core.device import DevicePlan
from ctseg.core.errors import InputError
from ctseg.core.parallel import agree, on_main, rank, world
from ctseg.data.slices import SliceSet
from ctseg.runs.contents import TIMINGS, read_run_table, write_pseudo
from ctseg.runs.folder import Run, write_rows
from ctseg.training.curves import Watch
from ctseg.training.deadline import Stopped

# %%
#| hide
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from ctseg.core.device import pick_device
from ctseg.data.toys import toy_set


# %% [markdown]
# A run is read long after it was trained: by its report, by whoever continues it, by whoever doubts it. So methods and the loop tell what is worth keeping, and it is written into the [run folder](20_folder.ipynb) at once.
#
# ## What teachers say
#
# A method with pseudo-labels tells which images it keeps and how sure its teacher was of each.

# %%
#| export
def pseudo_rows(scores: dict[str, np.ndarray], names: Iterable[str], kept: set[str]) -> list[dict[str, Any]]:
    "A row for each pseudo-labelled image: its name, whether it is kept, its confidences [N] by name."
    rows = []
    for i, name in enumerate(names):
        confidences = {score: round(float(values[i]), 5) for score, values in scores.items()}
        rows.append({"image": name, "kept": int(name in kept)} | confidences)
    return rows


# %%
pseudo_rows({"sdc": np.array([.9, .4])}, ["7.png", "8.png"], {"7.png"})


# %%
#| export
def write_pseudo_labels(run: Run, unlabelled: SliceSet, pseudo: Any, kept: SliceSet) -> None:
    "What a teacher said of each unlabelled image, and whether it is kept; `pseudo`: a `PseudoLabels`."
    names, chosen = unlabelled.names, set(kept.names)
    write_rows(pseudo_rows(pseudo.scores, names, chosen), run/"pseudo_labels.csv")
    flags = np.array([n in chosen for n in names])
    arrays = {"labels": pseudo.labels, "kept": flags, "names": np.array(names)}
    write_pseudo(arrays | pseudo.scores, run/"pseudo_labels.npz")


# %%
slices, truth = toy_set(6, 4)
pseudo = SimpleNamespace(labels=truth, scores={"sdc": np.linspace(.4, .9, 6)})
with tempfile.TemporaryDirectory() as d:
    write_pseudo_labels(Run(d), slices, pseudo, slices[pseudo.scores["sdc"] > .6])
    found = Run(d).read_pseudo()
    print(list(zip(found["names"], found["kept"])))


# %% [markdown]
# One that fills in single cells tells how many it added to those that people gave.

# %%
#| export
def completed_cells(before: SliceSet, after: SliceSet) -> list[dict[str, Any]]:
    "A row for each class: how many cells people gave, and how many teachers added."
    absent = before.known & ~before.present
    present_added = after.present & ~before.known
    absent_added = after.known & ~before.known & ~after.present
    columns = {
        "present": before.present,
        "absent": absent,
        "present added": present_added,
        "absent added": absent_added,
    }
    counts = {name: cells.sum(0) for name, cells in columns.items()}  # of each class
    rows = []
    for c, name in enumerate(before.classes.names):
        rows.append({"class": name} | {k: int(n[c]) for k, n in counts.items()})
    return rows


# %%
slices, truth = toy_set(24, 12)
filled = replace(slices, masks=truth, known=np.ones_like(slices.known))
for row in completed_cells(slices, filled): print(row)


# %% [markdown]
# ## Epochs
#
# After each epoch `history.csv` is written again, whole, and `timings.csv` gets a row. The times have a file of their own since they are all that differs when the same run is trained once more.

# %%
#| export
def device_in_words(plan: DevicePlan) -> str:
    "On what a run is trained: the device, and of several processes how many they are."
    return f"{plan}, {world()} processes" if world() > 1 else str(plan)


# %%
print(device_in_words(pick_device("cpu", "fp32")))


# %%
#| export
def read_timings(run: Run) -> list[dict[str, Any]]:
    "The rows of `timings.csv` so far."
    table = read_run_table(run/"timings.csv", TIMINGS, ("phase", "where"))
    return [] if table is None else table.to_dict("records")


def timings_so_far(run: Run) -> list[dict[str, Any]]:
    "The same; a damaged table is begun again, with a warning: no training stops for it."
    try:
        return read_timings(run)
    except InputError as e:
        warnings.warn(f"{e}; its rows are lost")
        return []


def write_epoch(run: Run, history: list[dict], seconds: float, where: str) -> None:
    "`history.csv`, and in `timings.csv` how long its last epoch took, and where."
    write_rows(history, run/"history.csv")
    row = history[-1]
    epoch = {"phase": row["phase"], "epoch": row["epoch"]}
    timing = epoch | {"seconds": round(seconds, 2), "where": where}
    write_rows(timings_so_far(run) + [timing], run/"timings.csv")


# %%
row = {"phase": "supervised", "step": 0, "lr": 0.0, "loss": 0.0, "dice": 0.0, "skipped": 0}
history = [row | {"epoch": n} for n in (1, 2, 3)]
with tempfile.TemporaryDirectory() as d:
    for n in (1, 2): write_epoch(Run(d), history[:n], n*1.5, "cpu")
    print((Path(d)/"timings.csv").read_text())

# %% [markdown]
# Whoever watches is called with the whole history: callbacks of `fit`, and [trackers](../training/85_trackers.ipynb). One that raises `Stopped` ends the training.

# %%
#| export
Watcher = Callable[[list[dict]], None]  # called with the history, a row for each epoch

def reason_to_stop(watchers: Iterable[Watcher], history: list[dict]) -> str:
    "Call each watcher with the history; why one of them has raised `Stopped`, or ''."
    reasons = []
    for watcher in watchers:
        try:
            watcher(history)
        except Stopped as e:
            reasons.append(str(e) or "a callback")
    return "; ".join(reasons)


# %%
def patience(history):
    if len(history) == 3: raise Stopped("no longer better")

print([reason_to_stop([patience], [{}]*n) for n in (2, 3)])


# %% [markdown]
# Of several processes the first writes and calls the watchers. All of them hear what it was told, also those that were started without a watcher.

# %%
#| export
class EpochNotes:
    "Keeps and tells what each epoch of a run has brought; `where`: on what it is trained, in words."
    def __init__(self, run: Run, where: str, progress: bool = True, watchers: Iterable[Watcher] = ()):
        self.run, self.where, self.watchers = run, where, tuple(watchers)
        self.curves = Watch() if progress else None
        self.clock = time.monotonic()

    def note(self, history: list[dict]) -> None:
        "Write the history so far, and call the watchers; `Stopped` in every process if one of them wants that."
        if not rank(): self.write(history)
        # asked in every process: trackers are open in the first one only
        reason = on_main(lambda: reason_to_stop(self.watchers, history))
        if agree(bool(reason)):
            raise Stopped(f"{reason or 'another process'}: stopped after {len(history)} epochs")

    def write(self, history: list[dict]) -> None:
        "What is kept of an epoch, and curves for who sits before a notebook."
        now = time.monotonic()
        write_epoch(self.run, history, now - self.clock, self.where)
        self.clock = now
        if self.curves: self.curves(history)


# %%
with tempfile.TemporaryDirectory() as d:
    notes = EpochNotes(Run(d), "cpu", progress=False, watchers=[patience])
    for n in (1, 2): notes.note(history[:n])
    try: notes.note(history)
    except Stopped as e: print(e)
    print(len(Run(d).read_history()), "epochs are kept")
