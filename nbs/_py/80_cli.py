# %% [markdown]
# # Command line
#
# > The `ctseg` command: each subcommand parses, calls one function of the package, and prints.
#
# - skip_showdoc: true

# %%
#| default_exp cli

# %% [markdown]
# Nothing happens here that a notebook could not do with the same function. Two rules: a user's mistake is **one line on standard error and exit status 2**; and results go to standard output in a form
# that reads well and parses easily. Heavy imports wait until a command needs them, so that `ctseg --help` answers at once.

# %%
#| export
import json, os, sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ctseg.files import InputError, read_json, write_json

# %%
#| hide
import tempfile
from typer.testing import CliRunner
from fastcore.test import test_eq

# %%
#| export
app = typer.Typer(name="ctseg", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Learn to segment CT slices from partly labelled and unlabelled images.")


# %% [markdown]
# ## Training

# %%
#| export
@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="a challenge folder")],
    out: Annotated[Path, typer.Option(help="the run folder to write")],
    recipe: Annotated[str, typer.Option(help="see `ctseg recipes`")] = "",
    set: Annotated[list[str], typer.Option(help="KEY=VALUE for any field of the recipe; may be repeated")] = [],
    seed: Annotated[int, typer.Option()] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="continue a run that was cut")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    annotated: Annotated[str, typer.Option(help="json: read annotated_labels.json; all: every class was examined; present: only classes with pixels were")] = "json",
):
    "Train by a recipe."
    from ctseg.recipes import DEFAULT_RECIPE, apply_settings, fit, get_recipe
    run = fit(data, apply_settings(get_recipe(recipe or DEFAULT_RECIPE), set), out, seed, resume, device, annotated=annotated)
    _print_facts(read_json(run/"metrics.json"))
    print(f"run folder: {run.folder}")


# %%
#| export
def _print_facts(facts: dict, indent: str = ""):
    "A line a fact; nested facts are indented."
    for k, v in facts.items():
        if isinstance(v, dict): print(f"{indent}{k}:"); _print_facts(v, indent + "  ")
        elif isinstance(v, list) and v and isinstance(v[0], dict):
            for i, x in enumerate(v): print(f"{indent}{k} {i}:"); _print_facts(x, indent + "  ")
        else: print(f"{indent}{k}: {f'{v:.4f}' if isinstance(v, float) else v}")


# %% [markdown]
# ## Prediction and scoring

# %%
#| export
@app.command()
def predict(
    runs: Annotated[list[Path], typer.Argument(help="one run folder, or several to average")],
    images: Annotated[Path, typer.Option(help="a folder of PNG slices")],
    out: Annotated[Path, typer.Option(help="the submission to write (.csv or .csv.gz)")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    batch_size: Annotated[int, typer.Option()] = 16,
):
    "Write the submission for a folder of images."
    from ctseg.data import read_images
    from ctseg.device import pick_device
    from ctseg.predict import load_predictor, predict_masks, write_submission
    predictor = load_predictor(runs, pick_device(device))
    names, pixels = read_images(images)
    write_submission(predict_masks(predictor, pixels, batch_size=batch_size), names, out)
    print(f"{len(names)} images, {len(predictor.models)} model(s), {predictor.rule}\nsubmission: {out}")


# %%
#| export
@app.command()
def evaluate(
    truth: Annotated[Path, typer.Argument(help="the truth, in the challenge's CSV form")],
    prediction: Annotated[Path, typer.Argument(help="a submission")],
    annotated: Annotated[Optional[Path], typer.Option(help="annotated_labels.json, where the truth is partial")] = None,
    classes: Annotated[Optional[Path], typer.Option(help="class_names.json; default: the one beside the truth, else the challenge's 54")] = None,
    json: Annotated[Optional[Path], typer.Option(help="write all figures here")] = None,
):
    "Score a submission: the challenge's Dice, a row per class, silent classes."
    from ctseg.metrics import evaluate_files
    result = evaluate_files(truth, prediction, annotated, classes)
    table = result["table"]
    print(table.to_string(float_format=lambda v: f"{v:.3f}"))
    _print_facts({k: v for k, v in result["facts"].items() if k != "per_class"})
    if json: write_json(result["facts"], json)


# %%
#| export
@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="a challenge folder")],
    submission: Annotated[Optional[Path], typer.Option(help="check this submission against the folder's test images")] = None,
    annotated: Annotated[str, typer.Option(help="json, all or present; see `ctseg fit --help`")] = "json",
):
    "Validate a challenge folder, or a submission against it."
    from ctseg.data import check_challenge, check_submission
    _print_facts(check_submission(submission, data) if submission else check_challenge(data, annotated=annotated))
    print("ok")


# %% [markdown]
# ## Volumes in, volumes out
#
# Hospitals keep volumes, the challenge has slices. `import` cuts the one into the other and notes where each slice came from; `export` puts predictions back.

# %%
#| export
def _slicing(default, **given):
    "`default` with the options that were given."
    from dataclasses import replace
    return replace(default, **{k: v for k, v in given.items() if v is not None})

@app.command("import")
def import_(
    kind: Annotated[str, typer.Argument(help="openkbp, nifti, dicom or totalsegmentator")],
    src: Annotated[Path, typer.Argument(help="the folder to read")],
    out: Annotated[Path, typer.Argument(help="the challenge folder to write")],
    window: Annotated[Optional[str], typer.Option(help="display window: soft, lung, bone, … or random")] = None,
    every: Annotated[Optional[int], typer.Option(help="each n-th slice")] = None,
    per_volume: Annotated[Optional[int], typer.Option(help="at most so many slices of a volume")] = None,
    size: Annotated[Optional[int], typer.Option(help="pixels a side")] = None,
    classes: Annotated[Optional[Path], typer.Option(help="class_names.json (nifti, dicom, totalsegmentator)")] = None,
    test_share: Annotated[float, typer.Option(help="share of the patients set aside as a test (nifti, dicom)")] = 0.0,
):
    "Cut volumes into a challenge folder; structures nobody contoured stay unknown."
    import inspect
    from ctseg import datasets, dicom, volumes
    from ctseg.files import did_you_mean
    kinds = {"openkbp": datasets.import_openkbp, "nifti": volumes.import_nifti, "dicom": dicom.import_dicom, "totalsegmentator": datasets.import_totalsegmentator}
    if kind not in kinds: raise did_you_mean("kind of data", kind, kinds)
    takes = inspect.signature(kinds[kind]).parameters
    more = {k: v for k, v in dict(classes=classes and str(classes), test_share=test_share or None).items() if v is not None}
    if odd := more.keys() - takes.keys(): raise InputError(f"--{odd.pop().replace('_', '-')} is not an option of `ctseg import {kind}`")
    _print_facts(kinds[kind](src, out, slicing=_slicing(takes["slicing"].default, window=window, every=every, per_volume=per_volume, size=size), **more))
    print(f"challenge folder: {out}")


# %%
#| export
@app.command("export")
def export_(
    kind: Annotated[str, typer.Argument(help="nifti, dicom-seg or nnunet")],
    folder: Annotated[Path, typer.Argument(help="the challenge folder")],
    out: Annotated[Path, typer.Argument(help="the folder to write")],
    masks: Annotated[Optional[Path], typer.Option(help="the submission to put back onto the volumes (nifti, dicom-seg)")] = None,
    source: Annotated[Optional[Path], typer.Option(help="the DICOM folder it was imported from (dicom-seg)")] = None,
    split: Annotated[str, typer.Option(help="the slices the submission is of: test or train")] = "test",
):
    "Put predictions back onto their volumes, or write the folder for nnU-Net."
    from ctseg import datasets, dicom, volumes
    from ctseg.files import did_you_mean
    if kind not in (kinds := ("nifti", "dicom-seg", "nnunet")): raise did_you_mean("kind of export", kind, kinds)
    if kind != "nnunet" and masks is None: raise InputError(f"`ctseg export {kind}` needs --masks SUBMISSION.csv")
    if kind == "dicom-seg" and source is None: raise InputError("`ctseg export dicom-seg` needs --source, the DICOM folder that was imported")
    if kind == "nifti": facts = volumes.export_nifti(masks, folder, out, split)
    elif kind == "dicom-seg": facts = dicom.export_dicom_seg(masks, folder, source, out, split)
    else: facts = datasets.export_nnunet(folder, out)
    _print_facts(facts or {})
    print(f"written: {out}")


# %% [markdown]
# ## Making things, listing things

# %%
#| export
@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="the challenge folder to write")],
    labelled: Annotated[int, typer.Option(help="annotated training slices")] = 800,
    unlabelled: Annotated[int, typer.Option(help="training slices without annotation")] = 1200,
    test: Annotated[int, typer.Option(help="test slices, with truth")] = 500,
    size: Annotated[int, typer.Option(help="pixels a side")] = 256,
    seed: Annotated[int, typer.Option()] = 0,
):
    "Write a challenge folder of a procedural body: no patient, full truth, any number of slices."
    from ctseg.phantom import make_phantom
    make_phantom(out, labelled, unlabelled, test, size, seed)
    print(f"challenge folder: {out}")


# %%
#| export
@app.command()
def recipes():
    "List the recipes."
    from ctseg.recipes import DEFAULT_RECIPE, RECIPES
    for r in RECIPES.values(): print(f"{r.name:<24}{r.about}{'  (default)' if r.name == DEFAULT_RECIPE else ''}")

@app.command()
def models():
    "List the models."
    from ctseg.models import list_models
    for name in list_models(): print(name)

@app.command()
def doctor():
    "Versions, devices, precision: what a bug report needs."
    from ctseg.device import doctor
    _print_facts(doctor())


# %% [markdown]
# ## The demo
#
# The whole job on the sample that comes with the repository, in minutes on a laptop: train, predict, score, and a picture to look at. Where the package was installed without the repository, a sample is made on the spot.

# %%
#| export
@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="the folder to write")] = Path("runs/demo"),
    data: Annotated[Path, typer.Option(help="a challenge folder with test truth")] = Path("data_sample"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier demo")] = False,
):
    "Train, predict, score and draw on data_sample, in minutes on a CPU."
    from ctseg.demo import run_demo
    run_demo(out, data, overwrite)


# %% [markdown]
# ## Mistakes

# %%
#| export
def main():
    "The console script: `app`, with mistakes told in one line and exit status 2."
    try: app()
    except InputError as e:
        print(f"ctseg: {e}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `ctseg … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# %%
runner = CliRunner()
print(runner.invoke(app, ["recipes"]).output)
wrong = runner.invoke(app, ["fit", "../data_sample", "--out", "nowhere", "--set", "widht=16"])
print(wrong.exception)
assert isinstance(wrong.exception, InputError) and not Path("nowhere").exists()

# %%
#| hide
import nbdev; nbdev.nbdev_export()
