# %% [markdown]
# # Commands that train
#
# > `ctseg fit` and `ctseg demo`, and what there is to choose from: `recipes`, `models`, `doctor`.
#
# - skip_showdoc: true

# %%
#| default_exp cli.training

# %%
#| export
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ctseg.cli.console import SPEAKS, app, choose_threads, loading, print_facts
from ctseg.cli.options import Annotations, Device, Folder, Plugins, load_plugins
from ctseg.core.errors import InputError, say
from ctseg.runs.options import OPTIONS, as_option

# %%
#| hide
from fastcore.test import test_fail
from typer.testing import CliRunner


# %% [markdown]
# `ctseg fit` trains a recipe on a folder of slices and writes a run folder:
#
# ```sh
# ctseg fit my_data --recipe mean-teacher --set epochs=30 --out runs/first
# ```
#
# This page has its options, and four small commands besides. What happens in a training is told under [fit](../recipes/20_fit.ipynb).
#
# ## Fit
#
# With `torchrun --standalone --nproc_per_node=2 -m ctseg fit …` a run uses [two GPUs](../core/60_parallel.ipynb). Only one of the two processes prints.
#
# A run can stop before its end, because of `--time-limit` or because the host sends SIGTERM. It says so in one line and ends with
# status 75, which means "try again later". Run the same command with `--resume` to continue.
#
# At its end `fit` prints the figures of the run. The rule that turns probabilities into labels is written in words.

# %%
#| export
def in_words(facts: dict) -> dict:
    "The facts of a run with its decision rule as a text."
    from ctseg.inference.rule import read_rule
    texts = {}
    for name, value in facts.items():
        if name == "rule":
            texts[name] = str(read_rule(value))
        else:
            texts[name] = in_words(value) if isinstance(value, dict) else value
    return texts


# %%
in_words({"epochs": 90, "rule": {"threshold": 0.4, "gate": 0, "island": 0, "rescue": 0, "expected": None}})


# %% [markdown]
# `--set` is for the settings of the recipe, each once. The seed, the device and the like are options of the command, and a line says so:

# %%
#| export
def check_settings(settings: list[str]) -> None:
    "`InputError` for a KEY=VALUE whose key is there before, or is not a setting but an option of the command."
    keys = [text.partition("=")[0] for text in settings]
    for i, (key, text) in enumerate(zip(keys, settings)):
        if key in keys[:i]:
            first = settings[keys.index(key)]
            raise InputError(f"--set {text}: {key} is given twice, first as --set {first}")
        if key in OPTIONS:
            option = f"{as_option(key)} {text.partition('=')[2]}"
            raise InputError(f"--set {text}: not a field of the recipe but an option; give {option}")


# %%
check_settings(["epochs=5", "lr=0.1"])
for wrong in (["seed=1"], ["lr=0.1", "lr=0.2"]):
    try: check_settings(wrong)
    except InputError as e: print(e)
test_fail(lambda: check_settings(["seed=1"]), contains="give --seed 1")

# %%
#| export
SETTING = typer.Option(
    help="KEY=VALUE for any setting of the recipe, such as epochs=40; `ctseg recipes NAME` lists them with "
         "their meanings; may be repeated",
)
RESUME = typer.Option("--resume", help=OPTIONS["resume"])
SAVED = "everything is saved, continue with the same command and --resume"

def option_of_fit(name: str) -> Any:
    "An option as `OPTIONS` tells it."
    return typer.Option(help=OPTIONS[name])


# %%
from ctseg.recipes.table import DEFAULT_RECIPE

print(OPTIONS["recipe"])
assert f"left out: {DEFAULT_RECIPE}" in OPTIONS["recipe"]  # written by hand, to save the import of torch


# %%
#| export
def tell_result(run) -> None:
    "Print the figures of a finished run, and where it is."
    from ctseg.prediction.saved import read_metrics, run_spec
    print_facts(in_words(read_metrics(run, len(run_spec(run)["classes"])).facts))
    print_facts({"run folder": run.folder})


# %%
#| export
@app.command(epilog="ctseg fit my_data --out runs/first --set epochs=40")
def fit(
    data: Folder,
    out: Annotated[Path, option_of_fit("out")],
    recipe: Annotated[str, option_of_fit("recipe")] = "",
    set: Annotated[list[str], SETTING] = [],
    plugin: Plugins = [],
    seed: Annotated[int, option_of_fit("seed")] = 0,
    init: Annotated[str, option_of_fit("init")] = "",
    teacher: Annotated[str, option_of_fit("teacher")] = "",
    log: Annotated[list[str], option_of_fit("log")] = [],
    resume: Annotated[bool, RESUME] = False,
    time_limit: Annotated[str, option_of_fit("time_limit")] = "",
    memory: Annotated[str, option_of_fit("memory")] = "",
    device: Device = "auto",
    annotated: Annotations = "json",
):
    "Train by a recipe. Exit status 75: stopped by the time limit or SIGTERM, to be continued with --resume."
    choose_threads(out if resume else None)
    with loading():
        from ctseg.recipes.fit import fit
        from ctseg.recipes.table import DEFAULT_RECIPE, get_recipe
        from ctseg.runs.recipe import apply_settings
        from ctseg.training.deadline import Stopped
    check_settings(set)
    load_plugins(plugin)
    chosen = apply_settings(get_recipe(recipe or DEFAULT_RECIPE), set)
    try:
        run = fit(
            data, chosen, out, seed, resume, device, time_limit=time_limit, annotated=annotated,
            plugins=plugin, init=init, teacher=teacher, log=log, memory=memory,
        )
    except Stopped as e:
        if SPEAKS:
            say(f"ctseg: {e}; {SAVED}", sys.stderr)
        raise typer.Exit(75)
    if SPEAKS:
        tell_result(run)


# %% [markdown]
# A misspelt setting ends the command before anything is written:

# %%
runner = CliRunner()
wrong = runner.invoke(app, ["fit", "../../data_sample", "--out", "nowhere", "--set", "widht=16"])
print(wrong.exception)
assert isinstance(wrong.exception, InputError) and not Path("nowhere").exists()

# %% [markdown]
# ## Demo
#
# The demo does the whole job on the sample that comes with the repository, in minutes on a laptop: it trains, predicts, scores, and draws a picture. If
# the package was installed without the repository, the demo makes a small [phantom](../phantom/90_challenge.ipynb) instead.

# %%
#| export
SAMPLE = typer.Option(
    help="a challenge folder with test truth; left out: data_sample, or a phantom where there is none",
)


@app.command(epilog="ctseg demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="the folder to write")] = Path("runs/demo"),
    data: Annotated[Optional[Path], SAMPLE] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier demo")] = False,
    seed: Annotated[int, option_of_fit("seed")] = 0,
):
    "Train teacher and student, predict, score and draw on data_sample, in minutes on a CPU."
    with loading():
        from ctseg.demo import run_demo
        from ctseg.training.deadline import Stopped
    try:
        run_demo(out, data, overwrite, seed=seed)
    except Stopped:  # by SIGTERM; half a demo is none
        raise typer.Exit(143)


# %%
print(runner.invoke(app, ["demo", "--help"]).output)


# %% [markdown]
# ## What there is to choose from
#
# `ctseg recipes` lists the recipes, and the settings of one; `ctseg models` lists the networks and what they cost; `ctseg doctor` says what your machine has.

# %%
#| export
def setting_line(key: str, value, default, meaning: str) -> str:
    "A setting as `ctseg recipes NAME` lists it: value, the default where it is another, meaning."
    text = f"{key} = {value if value != '' else '(none)'}"
    if value != default:
        text += f"  (default: {default if default != '' else '(none)'})"
    return f"  {text:<42}  {meaning}".rstrip()


ONE_RECIPE = typer.Argument(help="one of them, or the recipe.json of a run: list its fields")


# %%
#| export
@app.command(epilog="ctseg recipes ctseg")
def recipes(
    name: Annotated[Optional[str], ONE_RECIPE] = None,
):
    "List the recipes, or the fields of one: value, the default where it is another, meaning."
    from ctseg.recipes.table import DEFAULT_RECIPE, RECIPES, get_recipe
    from ctseg.runs.recipe import recipe_fields
    if name is None:
        for recipe in RECIPES.values():
            say(f"{recipe.name:<27}{recipe.about}{'  (default)' if recipe.name == DEFAULT_RECIPE else ''}")
        return
    recipe = get_recipe(name)
    say(f"{recipe.name}: {recipe.about}")
    for field in recipe_fields(recipe):
        say(setting_line(*field))


# %%
print(runner.invoke(app, ["recipes"]).output)
print(runner.invoke(app, ["recipes", "unimatch"]).output[:900])

# %%
#| export
PLAIN = typer.Option("--plain", help="do not measure training steps, which takes seconds for each model")


# %%
#| export
@app.command(epilog="ctseg models attunet unet:resnet34 --plain")
def models(
    names: Annotated[Optional[list[str]], typer.Argument(help="which ones; default: all")] = None,
    plain: Annotated[bool, PLAIN] = False,
    device: Device = "auto",
):
    "What each model costs: parameters, multiply-adds at 256x256, and a training step on this device."
    from ctseg.core.device import pick_device
    from ctseg.models import list_models
    from ctseg.models.costs import model_facts
    where = pick_device(device).device
    line = "{:<40}{:>12}{:>14}" + ("" if plain else "{:>10}{:>9}") + "  {}"
    measured = () if plain else ("ms/image", "peak MB")
    about = f"paper   (256x256, 54 classes, {where}, batches of 2)"
    print(line.format("model", "parameters", "multiply-adds", *measured, about))
    for name in names or list_models():
        f = model_facts(name, device=where, measure=not plain)
        cost = () if plain else (f"{f['ms_per_image']:.0f}", f"{f['peak_mb']:.0f}")
        size = f"{f['parameters']:,}", f"{f['multiply_adds']/1e9:.1f} G"
        print(line.format(name, *size, *cost, f["paper"]), flush=True)


# %%
#| export
@app.command(epilog="ctseg doctor")
def doctor():
    "Versions, devices, precision: what a bug report needs."
    from ctseg.core.device import doctor
    print_facts(doctor())


# %%
print(runner.invoke(app, ["models", "attunet", "--plain", "--device", "cpu"]).output)
