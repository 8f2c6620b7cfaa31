# %% [markdown]
# # The command that stores
#
# > `ctseg store`: a challenge folder as a store, for more slices than memory holds.
#
# - skip_showdoc: true

# %%
#| default_exp cli.storing

# %% [markdown]
# A [store](../data/74_store.ipynb) holds the slices of a challenge folder in chunks. `check`, `fit`, `predict` and `evaluate` take a store in place of a folder. They read its pixels
# only when they need them, so the memory they take does not grow with the number of slices.

# %%
#| export
from pathlib import Path
from typing import Annotated, Optional

import typer

from ctseg.cli.console import app, print_facts
from ctseg.cli.options import Annotations

# %%
#| hide
import tempfile

from typer.testing import CliRunner

# %%
#| export
FOLDER = typer.Argument(help="a challenge folder")
STORE = typer.Option(help="the store to write: a new folder, or an address such as s3://bucket/name")
SCRATCH = typer.Option(
    help="a folder with room for all masks, uncompressed, for a while; left out: where TMPDIR says",
)


@app.command(epilog="ctseg store my_data --out my_data.zarr")
def store(
    data: Annotated[Path, FOLDER],
    out: Annotated[Path, STORE],
    annotated: Annotations = "json",
    scratch: Annotated[Optional[Path], SCRATCH] = None,
):
    "Make a store of a challenge folder, for more slices than memory holds."
    from ctseg.data.sources import store_challenge
    from ctseg.data.store import store_place
    from ctseg.io.imported import imported_slicing
    from ctseg.io.neighbours import neighbour_mm, places_by_split
    slicing = imported_slicing(data) if data.is_dir() else None
    arrays = places_by_split(data) if slicing else {}
    notes = {"slicing": slicing, "neighbour_mm": {split: neighbour_mm(data, split) for split in arrays}}
    beside = [data/name for name in ("index.json", "class_names.json")] if slicing else []
    splits = store_challenge(data, out, annotated, notes, scratch, arrays, beside)
    print_facts({split: f"{len(s)} slices, {int(s.labelled.sum())} annotated" for split, s in splits.items()})
    print_facts({"store": store_place(out)})


# %%
with tempfile.TemporaryDirectory() as d:
    for words in (["store", "../../data_sample", "--out", f"{d}/sample.zarr"], ["check", f"{d}/sample.zarr"]):
        lines = CliRunner().invoke(app, words).output.replace(d, "…").splitlines()
        print("\n".join(lines[:9]))
