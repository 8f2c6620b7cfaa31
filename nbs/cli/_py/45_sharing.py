# %% [markdown]
# # The command that shares
#
# > `ctseg push`: a finished run onto the Hugging Face hub.
#
# - skip_showdoc: true

# %%
#| default_exp cli.sharing

# %%
#| export
from pathlib import Path
from typing import Annotated

import typer

from ctseg.cli.console import app
from ctseg.core.errors import say

# %%
#| hide
from typer.testing import CliRunner

# %% [markdown]
# `ctseg push` puts a finished run on the [Hugging Face hub](../integrations/20_hub.ipynb), so that others can load it by name:
#
# ```sh
# ctseg push runs/first ada/liver
# ```
#
# It uploads weights, recipe, figures and model card. Images and the names of files stay at home.

# %%
#| export
SHARED_RUN = typer.Argument(help="a finished run folder")
REPOSITORY = typer.Argument(help="where on the hub: owner/name")
PUBLIC = typer.Option("--public", help="everybody may see it, if it is new; left out: only its owner")
MESSAGE = typer.Option(help="message of the commit on the hub; left out: a plain one")


@app.command(epilog="ctseg push runs/first ada/liver")
def push(
    run: Annotated[Path, SHARED_RUN],
    repository: Annotated[str, REPOSITORY],
    public: Annotated[bool, PUBLIC] = False,
    message: Annotated[str, MESSAGE] = "",
):
    "Share a finished run on the Hugging Face hub: weights, recipe, figures and model card; no images, no names."
    from ctseg.integrations.hub import push_to_hub
    say(f"on the hub: {push_to_hub(run, repository, private=not public, message=message)}")
    say(f"load it with: ctseg.load(\"hf://{repository.removeprefix('hf://')}\")")


# %%
print("--public:", PUBLIC.help)

# %% [markdown]
# A folder without a run is refused before anything is sent:

# %%
print(CliRunner().invoke(app, ["push", "no-run", "ada/liver"]).exception)
