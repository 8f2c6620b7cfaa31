# %% [markdown]
# # The command that merges
#
# > `ctseg merge`: challenge folders of different classes, numbers and image sizes become one.
#
# - skip_showdoc: true

# %%
#| default_exp cli.merge

# %%
#| export
from pathlib import Path
from typing import Annotated, Optional

import typer

from ctseg.cli.console import app, print_facts
from ctseg.core.errors import say

# %%
#| hide
from typer.testing import CliRunner

runner = CliRunner()

# %% [markdown]
# Two hospitals may have contoured different organs, under different names, on images of different size. `ctseg merge` makes one challenge folder of both:
#
# ```sh
# ctseg merge hospital_a hospital_b --out both
# ```
#
# [Merge](../io/88_merge.ipynb) explains what happens to pixels, names and classes, and which contradictions are refused.

# %%
#| export
FOLDERS = typer.Argument(help="two or more challenge folders; the first one's names and pixel size are kept")
MERGED = typer.Option(help="the challenge folder to write")
RENAMED = typer.Option(
    help="a JSON, {name of a class: the name it shall have}; a name may say whose it is: FOLDER/NAME",
)
UNIONS = typer.Option(
    help='a JSON, {class: [the classes it is made of]}, such as '
         '{"lungs": ["lung_left", "lung_right"]}',
)
RESIZE = typer.Option(
    help="where images differ in size: spacing (a pixel has the same millimetres everywhere; the default "
         "where all folders know them), fit (each fills the frame) or pad (pixels stay as they are)",
)
SIDE = typer.Option(
    min=8, help="side of the merged images in pixels (default: as the first folder, or as needed)",
)
ZEROS_THERE = typer.Option(
    help="of folders without annotated_labels.json: all (every class was looked for) or present "
         "(only classes with pixels were)",
)

# %%
print(RESIZE.help)


# %%
#| export
@app.command(epilog="ctseg merge north south --out both --resize spacing")
def merge(
    folders: Annotated[list[Path], FOLDERS],
    out: Annotated[Path, MERGED],
    rename: Annotated[Optional[Path], RENAMED] = None,
    unions: Annotated[Optional[Path], UNIONS] = None,
    resize: Annotated[Optional[str], RESIZE] = None,
    size: Annotated[Optional[int], SIDE] = None,
    annotated: Annotated[Optional[str], ZEROS_THERE] = None,
):
    "Make one challenge folder of several; what a source never looked for stays unknown on its slices."
    from ctseg.io.merge import merge as merge_folders
    facts = merge_folders(folders, out, rename, unions, resize, size, annotated)
    print("training slices on which a class was examined (and found):")
    table = facts.pop("table").rename_axis(index=None, columns=None)
    for line in table.to_string().splitlines(): say(line)
    for note in facts.pop("notes"):
        typer.echo(f"note: {note}", err=True)
    print_facts(facts)
    print_facts({"challenge folder": out})


# %% [markdown]
# One folder is not enough:

# %%
print(runner.invoke(app, ["merge", "../../data_sample", "--out", "both"]).exception)
