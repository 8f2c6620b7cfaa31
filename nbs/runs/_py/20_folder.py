# %% [markdown]
# # Run folder
#
# > What a run leaves on disk: its complete recipe, its history, its weights; each file whole or not at all.

# %%
#| default_exp runs.folder

# %%
#| export
import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctseg.core.arguments import checks_arguments
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.filetypes import check_folder, instead_of
from ctseg.core.json_files import read_json
from ctseg.core.registry import Plugin, require_plugin
from ctseg.core.schema import anything, fit_schema, mapped
from ctseg.core.tables import csv_cell
from ctseg.data.slices import SliceSet
from ctseg.runs.contents import HISTORY, SPEC, read_pseudo, read_run_table
from ctseg.runs.lock import FileLock
from ctseg.runs.old_recipe import as_before, is_old, nested
from ctseg.runs.recipe import CHOICES, Recipe, recipe_dict, recipe_fields, recipe_from
from ctseg.runs.sums import check_sum

if TYPE_CHECKING:
    import pandas as pd

# %%
#| hide
import tempfile

import pandas as pd
from fastcore.test import test_eq

from ctseg.core.json_files import write_json
from ctseg.data.toys import toy_set


# %% [markdown]
# A run folder must explain itself years later. These are its files:
#
# | file | content |
# |---|---|
# | `recipe.json` | every setting of the recipe, seed, classes, fingerprint of the data, plugins, versions |
# | `history.csv` | a row an epoch |
# | `checkpoints/PHASE/` | the newest two checkpoints; once the phase is over only `final/`, the averaged weights |
# | `checkpoints/model.safetensors` | the model that predicts |
# | `checksums.json` | a hash of each of these files: a damaged or edited one is noticed |
# | `metrics.json`, `curves.png` | written at the end: score, decision rule, calibration; the learning curves |
# | `model_card.md` | what others must know of the network before they use it |
# | `reliability.csv` | the points of the reliability diagram, where slices were held out |
# | `timings.csv` | seconds of each epoch, and where it was trained; apart from the history, because it differs from run to run |
# | `pseudo_labels.npz`, `pseudo_cells.csv` | what teachers said (teacher–student) or added (self-training) |
# | `report.html` | the page that `ctseg report` writes |
# | `trackers.json`, `tensorboard/`, … | of `--log`: what the trackers have been told |

# %%
#| export
def write_rows(
    rows: list[dict],
    path: str | Path,
    columns: Sequence[str] = (), # (): every key, in the order they first appear
) -> None:
    "A CSV, whole or not at all."
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as f:
        out = csv.DictWriter(f, columns, lineterminator="\n")
        out.writeheader()
        for row in rows:
            out.writerow({key: csv_cell(value) for key, value in row.items()})


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
def make_spec(
    recipe: Recipe,
    slices: SliceSet,
    seed: int,
    plugins: Iterable[Plugin] = (),
    earlier: dict[str, Any] | None = None, # `init` and `teacher`: the runs it takes something over from
) -> dict[str, Any]:
    "What `recipe.json` says of a run, as `read_spec` gives it back."
    counts = {"images": len(slices), "labelled": int(slices.labelled.sum())}
    data = {"fingerprint": slices.fingerprint()} | counts
    classes = {str(i): name for i, name in enumerate(slices.classes.names, 1)}
    shape = list(slices.image_shape)
    unions = {"unions": slices.classes.union_table} if slices.classes.unions else {}
    threads = torch.get_num_threads()  # their number decides the order of sums on a CPU, and so the rounding
    return {"recipe": recipe, "plugins": list(plugins), "seed": seed, "data": data,
            "classes": classes, **unions, "image_shape": shape, "threads": threads} | (earlier or {})


# %%
#| export
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
    spec = fit_schema(read_json(path), SPEC, path, "not the recipe of a run, or a damaged one")
    plugins = [Plugin(p["name"], p["sha256"]) for p in spec.get("plugins", [])]
    for plugin in plugins:
        require_plugin(plugin, str(Path(path).parent))
    old = is_old(spec["recipe"])
    try:
        recipe = recipe_from(as_before(nested(spec["recipe"]) if old else spec["recipe"]))
    except InputError as e:
        maker = spec.get("versions", {}).get("ctseg", "another")
        raise InputError(f"{path}: {e}; the run was made by ctseg {maker}") from None
    check_sum(Path(path))
    return spec | {"recipe": recipe, "plugins": plugins, "old": old}


# %%
with tempfile.TemporaryDirectory() as d:
    write_json(spec_dict(make_spec(Recipe("toy"), toys, seed=0)), Path(d)/"recipe.json")
    spec = read_spec(Path(d)/"recipe.json")
    print(spec["recipe"], spec["data"])
    write_json(
        spec_dict(make_spec(Recipe("toy"), toys, 0, [Plugin("my_loss.py", "0"*64)])),
        Path(d)/"recipe.json",
    )
    try: read_spec(Path(d)/"recipe.json")
    except InputError as e: print(str(e).replace(d, "…"))

# %% [markdown]
# A run goes on with the recipe it was started with. Two things may change on the way: its description, and the number of pieces, because another GPU may have less memory.

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
    earlier = {key: spec.get(key, {}).get("weights", "none") for key in ("init", "teacher")}
    return first | settings | earlier | {"seed": spec["seed"]} | spec["data"]


# %%
#| export
def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    "The first thing in which two specs are different, in words; '' if they describe the same run."
    before, after = facts_of(old), facts_of(new)
    for key, value in after.items():
        if key == "fingerprint" and before.get(key) != value:
            return "other slices: an image, a mask, a group or what was examined has changed since"
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
def run_in_words(run: "Run") -> str:
    "Recipe, epochs, and how far the run has come."
    if not run.begun: return "empty"
    spec = fit_schema(read_json(run/"recipe.json"), SPEC, run/"recipe.json", "not the recipe of a run")
    facts = [str(spec["recipe"].get("name", "custom"))]
    if (run/"history.csv").exists():
        facts.append(f"{len(run.read_history())} epochs")
    dice = run.read_metrics().get("dice held out, chosen rule") if run.finished else None
    if isinstance(dice, float): facts.append(f"Dice {dice:.3f} held out")
    return ", ".join(facts if run.finished else [*facts, "not finished"])


# %%
#| export
class Run:
    "A run folder: where its files are, each checked where it is read."
    @checks_arguments
    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.lock = FileLock()  # see `hold_run`

    def __truediv__(self, name: str) -> Path: return self.folder/name
    def __repr__(self) -> str: return f"Run({str(self.folder)!r}: {run_in_words(self)})"

    @property
    def weights(self) -> Path:
        "The model that predicts."
        return self/"checkpoints"/"model.safetensors"

    @property
    def begun(self) -> bool:
        "Is there a `recipe.json`?"
        return os.path.lexists(self/"recipe.json")

    @property
    def finished(self) -> bool:
        "Has the run come to its end?"
        return os.path.lexists(self/"metrics.json")

    def read_metrics(self) -> dict[str, Any]:
        "All of `metrics.json`; `ctseg.prediction.saved` checks rule and calibration in it."
        path = self/"metrics.json"
        metrics = fit_schema(read_json(path), mapped(anything), path, "not the metrics of a run")
        check_sum(path)
        return metrics

    def read_history(self) -> "pd.DataFrame":
        "`history.csv` as a table."
        path = self/"history.csv"
        table = read_run_table(path, HISTORY, ("phase",))
        if table is None: raise InputError(f"{path}: no such file")
        return table

    def read_pseudo(self) -> dict[str, np.ndarray]:
        "What a teacher said: `labels` uint8 [N, H, W], `kept` bool [N], `names`, and confidences [N] by name."
        return read_pseudo(self/"pseudo_labels.npz")


# %%
print(Run("runs/first"))


# %%
#| export
def check_begun(run: Run) -> None:
    "`InputError` unless there is a run, with what there is in its place."
    if run.begun: return
    if run.folder.exists():
        check_folder(run.folder, "the folder of a run")
    hint = instead_of(run.folder, "recipe.json")
    raise InputError(f"{run.folder}: no run here (no recipe.json){hint}")

def check_weights(run: Run) -> None:
    "`InputError` where there are no weights to predict with."
    if run.weights.exists(): return
    if not run.finished:
        remedy = "continue it with `ctseg fit … --resume`"
        raise InputError(f"{run.folder}: this run has not finished a phase yet; {remedy}")
    remedy = f"copy them again, or delete {run/'metrics.json'} and continue with `ctseg fit … --resume`"
    raise InputError(f"{run.weights}: missing, though the run is finished; {remedy}")


# %%
with tempfile.TemporaryDirectory() as d:
    for check in (check_begun, check_weights):
        try: check(Run(d))
        except InputError as e: print(str(e).replace(d, "…"))
