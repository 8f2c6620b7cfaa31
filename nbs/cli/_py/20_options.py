# %% [markdown]
# # Options
#
# > The options that several commands share, each with its help text.
#
# - skip_showdoc: true

# %%
#| default_exp cli.options

# %%
#| export
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Optional

import typer

from ctseg.core.atomic import check_place
from ctseg.core.errors import InputError
from ctseg.core.paths import real_path
from ctseg.runs.options import OPTIONS

# %% [markdown]
# An option is a type that carries its help text. Several commands take the same ones, so they are defined here, and the help of `--device` is the same everywhere. What `ctseg fit` takes is [told once](../runs/08_options.ipynb), for its help and for its errors.

# %%
#| export
Folder = Annotated[Path, typer.Argument(help="a challenge folder, or a store")]
Device = Annotated[str, typer.Option(help=OPTIONS["device"])]
Precision = Annotated[
    Optional[str],
    typer.Option(help="fp32, fp16, bf16, or auto for the device's own; left out: as the runs were trained"),
]
Engine = Annotated[
    str,
    typer.Option(help="what computes: torch, openvino, onnx, or auto: openvino if a CPU has it, else torch"),
]
BatchSize = Annotated[int, typer.Option(min=1, max=1 << 16, help="images at a time")]
Annotations = Annotated[str, typer.Option(help=OPTIONS["annotated"])]
Plugins = Annotated[list[Path], typer.Option(help=OPTIONS["plugin"])]

# %%
import tempfile
from typing import get_args

from fastcore.test import test_eq

print("--device:", get_args(Device)[1].help)

# %% [markdown]
# A slip of the hand can name the same file as input and as output: `evaluate y.csv sub.csv --json sub.csv`. A result of before may be replaced, but never what the command reads.

# %%
#| export
READ = re.compile(
    r"(recipe|metrics|checksums|class_names|annotated_labels(_test)?|patients|index)\.json"
    r"|(history|timings|reliability|pseudo_\w+|sources)\.csv|y_(train|test)(_full)?\.csv(\.gz)?"
    r"|[^.]+|.+\.(png|nii|nii\.gz|dcm|ima|npz|pt|safetensors)", re.IGNORECASE)

def is_read(out: Path, place: Path) -> bool:
    "Is the file `out`, a path without links, that at `place`, or one that is read in the folder `place`?"
    if os.path.isfile(place): return out.samefile(place)
    if place.name.endswith("-images"): place = place.parent
    inside = os.path.isdir(place) and out.is_relative_to(real_path(place))
    return inside and bool(READ.fullmatch(out.name))

def refuse_replacing(outputs: Iterable[Optional[Path]], places: Iterable[str | Path | None]) -> None:
    "`InputError` for an output that would replace what the command reads, or that cannot be written."
    given = [Path(place) for place in places if place]
    for out in filter(None, outputs):
        if os.path.isfile(out) and any(is_read(real_path(out), place) for place in given):
            raise InputError(f"{out}: this command reads it and would replace it; choose another name")
        check_place(out)


# %%
with tempfile.TemporaryDirectory() as d:
    for name in ("recipe.json", "submission.csv", "scores.csv"): (Path(d)/name).touch()
    refuse_replacing([Path(d)/"submission.csv", None], [d])
    (Path(d)/"link.csv").symlink_to("recipe.json")
    for out, place in (("recipe.json", ""), ("scores.csv", "scores.csv"), ("link.csv", "")):
        try: refuse_replacing([Path(d)/out], [Path(d)/place])
        except InputError as e: print(str(e).replace(d, "run"))


# %%
#| export
def named_classes(path: Path):
    "The classes of a run, if `path` is its folder; else the path as a text."
    if not path.is_dir(): return str(path)
    from ctseg.prediction.saved import run_classes, run_spec
    from ctseg.runs.folder import Run
    return run_classes(run_spec(Run(path), weights=False))


# %%
try: named_classes(Path("../cli"))
except InputError as e: print(e)


# %% [markdown]
# A window is a name, or two numbers with a comma between them:

# %%
#| export
def wanted_window(text: Optional[str]):
    "The name of a window, level and width of a text LEVEL,WIDTH, or None; `InputError` for another pair."
    if not text or "," not in text: return text
    from ctseg.io.pixels import parse_window
    return parse_window(text)


# %%
print([wanted_window(text) for text in (None, "bone", "40,350")])
try: wanted_window("40,")
except InputError as e: print(e)


# %%
#| export
def load_plugins(paths: list[Path]) -> None:
    "Execute the plugin files that were given."
    if not paths:
        return
    from ctseg.core.registry import load_plugin
    for path in paths:
        load_plugin(path)


def begins(words) -> Callable[[str], list[str]]:
    "A completion for the shell: those of some words that begin with what was typed."
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]
    return complete


def device_plan(device: str, precision: Optional[str]):
    "The plan for a device and precision; without a precision the device, for `load_predictor`."
    from ctseg.core.device import pick_device
    return pick_device(device, precision) if precision else device


# %%
print("n…", begins(["nifti", "nnunet", "rle"])("n"))
test_eq(begins(["nifti", "nnunet", "rle"])("n"), ["nifti", "nnunet"])
load_plugins([])
print(device_plan("cpu", None), "|", device_plan("cpu", "fp32").precision)
