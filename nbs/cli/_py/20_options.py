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
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Optional

import typer

# %% [markdown]
# An option is a type that carries its help text. Several commands take the same ones, so they are defined here, and the help of `--device` is the same everywhere.

# %%
#| export
Folder = Annotated[Path, typer.Argument(help="a challenge folder, or a store")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, or mps (Apple)")]
Precision = Annotated[
    Optional[str],
    typer.Option(help="fp32, fp16, bf16, or auto for the device's own; left out: as the runs were trained"),
]
Engine = Annotated[
    str,
    typer.Option(help="what computes: torch, openvino, onnx, or auto: the faster of the first two, measured"),
]
BatchSize = Annotated[int, typer.Option(min=1, help="images at a time")]
Annotations = Annotated[
    str,
    typer.Option(
        help="json: read annotated_labels.json; all: every class was examined; "
             "present: only classes with pixels were",
    ),
]
Plugins = Annotated[
    list[Path],
    typer.Option(
        help="a Python file that registers a method, loss, network or augmentation of your own; "
             "it is executed; may be repeated",
    ),
]

# %%
from typing import get_args

from fastcore.test import test_eq

print("--device:", get_args(Device)[1].help)


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
