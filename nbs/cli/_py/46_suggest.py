# %% [markdown]
# # The command that suggests
#
# > `ctseg suggest`: which slices to annotate next, and which structures on them.
#
# - skip_showdoc: true

# %%
#| default_exp cli.suggest

# %%
#| export
from pathlib import Path
from typing import Annotated

import typer

from ctseg.cli.console import app, loading, memory_errors, print_facts
from ctseg.cli.options import Annotations, BatchSize, Device, Plugins, load_plugins, refuse_replacing

# %%
#| hide
from typer.testing import CliRunner

runner = CliRunner()

# %% [markdown]
# Annotating takes an expert's time, so it should go to the slices that teach a network most. `ctseg suggest` lists them, with the structures to look for on each:
#
# ```sh
# ctseg suggest runs/first my_data --count 20
# ```
#
# [What to annotate next](../prediction/57_suggest.ipynb) explains how slices are chosen.

# %%
#| export
TEACHERS = typer.Argument(
    metavar="RUN... DATA", help="a run, or several to average, and the folder or store they learnt from",
)
LIST = typer.Option(
    help="the list to write (.csv); a page with proposed outlines is written beside it (.html)",
)


@app.command(epilog="ctseg suggest runs/first my_data --count 10")
def suggest(
    places: Annotated[list[str], TEACHERS],
    count: Annotated[int, typer.Option(min=1, help="slices to suggest")] = 20,
    out: Annotated[Path, LIST] = Path("suggestions.csv"),
    annotated: Annotations = "json",
    device: Device = "auto",
    batch_size: BatchSize = 16,
    plugin: Plugins = [],
):
    "List the slices that are most worth annotating next, and the structures to look for on them."
    with loading():
        from ctseg.core.errors import InputError
        from ctseg.report.suggestions import suggest_files
    *runs, data = places
    if not runs:
        raise InputError("`ctseg suggest` takes RUN... DATA, but one place was given")
    load_plugins(plugin)
    page = out.parent/f"{out.stem}.html"
    refuse_replacing([out, page], places)
    with memory_errors():
        facts = suggest_files(runs, data, out, count, annotated, device, batch_size)
    print_facts(facts)
    print_facts({"list": out, "page": page})


# %%
print("--out:", LIST.help)

# %% [markdown]
# A run alone is not enough:

# %%
print(runner.invoke(app, ["suggest", "runs/first"]).exception)
