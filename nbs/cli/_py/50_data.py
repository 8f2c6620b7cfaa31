# %% [markdown]
# # Commands for data
#
# > `ctseg check`, `import` and `phantom`: folders checked, cut from volumes, drawn.
#
# - skip_showdoc: true

# %%
#| default_exp cli.data

# %%
#| export
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer

from ctseg.cli.console import app, print_facts
from ctseg.cli.options import Annotations, Folder
from ctseg.core.files import InputError, did_you_mean

# %%
#| hide
from fastcore.test import test_eq, test_fail
from typer.testing import CliRunner

# %%
#| export
AGAINST = typer.Option(help="check this submission against the folder's test images")


@app.command()
def check(
    data: Folder,
    submission: Annotated[Optional[Path], AGAINST] = None,
    annotated: Annotations = "json",
):
    "Validate a challenge folder, or a submission against it."
    from ctseg.data.challenge import check_challenge, check_submission
    if submission:
        facts = check_submission(submission, data)
    else:
        facts = check_challenge(data, annotated=annotated)
    print_facts(facts)
    print("ok")


# %%
runner = CliRunner()
print(runner.invoke(app, ["check", "../../data_sample"]).output)


# %% [markdown]
# ## Volumes in
#
# Hospitals keep volumes, the challenge has slices. `import` cuts the one into the other and notes where each slice came from.

# %%
#| export
def importers() -> dict[str, Callable[..., dict]]:
    "Each kind of data that can be imported, and the function that does it."
    from ctseg.io.dicom_import import import_dicom
    from ctseg.io.nifti_import import import_nifti
    from ctseg.io.openkbp import import_openkbp
    from ctseg.io.totalsegmentator import import_totalsegmentator
    return {
        "openkbp": import_openkbp,
        "nifti": import_nifti,
        "dicom": import_dicom,
        "totalsegmentator": import_totalsegmentator,
    }


def without_none(options: dict) -> dict:
    "The options that were given."
    return {name: value for name, value in options.items() if value is not None}


def fitting_options(kind: str, takes, options: dict) -> dict:
    "The options that were given, if the importer takes them; `InputError` for one that it does not."
    given = without_none(options)
    for name in given:
        if name not in takes:
            raise InputError(f"--{name.replace('_', '-')} is not an option of `ctseg import {kind}`")
    return given


# %%
print(", ".join(importers()))
test_eq(fitting_options("dicom", {"rename"}, {"rename": "names.json", "key": None}), {"rename": "names.json"})
test_fail(
    lambda: fitting_options("nifti", {"classes"}, {"rename": "names.json"}),
    contains="--rename is not an option",
)


# %%
#| export
def _import(kind: str, paths: tuple[Path, Path], cut: dict, options: dict, work: dict) -> dict:
    "Import a source into a folder, with the options that were given. Facts about it."
    kinds = importers()
    if kind not in kinds: raise did_you_mean("kind of data", kind, kinds)
    takes = inspect.signature(kinds[kind]).parameters
    more = fitting_options(kind, takes, options)
    if "work" in takes:
        more |= work | {"progress": True}
    else:
        fitting_options(kind, takes, {name: value or None for name, value in work.items()})
    slicing = replace(takes["slicing"].default, **without_none(cut))
    return kinds[kind](*paths, slicing=slicing, **more)


# %%
test_fail(lambda: _import("dicm", (), {}, {}, {}), contains="did you mean dicom")
test_fail(lambda: _import("openkbp", (), {}, {}, {"workers": 2}), contains="--workers is not an option")

# %%
#| export
KIND = typer.Argument(help="openkbp, nifti, dicom or totalsegmentator")
SOURCE = typer.Argument(
    help="the folder to read; a patients.json in it, {case: patient}, "
         "keeps the scans of a patient together (nifti)",
)
SIZE = typer.Option(
    help="side of the images in pixels: of larger slices the part around the body is kept "
         "(openkbp, nifti, dicom), or they are shrunk (totalsegmentator)",
)
ZEROS = typer.Option(
    help="what a zero of a label map means: json, all (everything was looked for) or present (nifti)",
)
KEY = typer.Option(
    help="write here, for yourself, which volume came from which file; it may name patients (nifti, dicom)",
)
WINDOW = typer.Option(help="display window: soft, lung, bone, … or random")
NAMES = typer.Option(
    help="class_names.json, or the folder of a run that knows them (nifti, dicom, totalsegmentator)",
)
TEST_SHARE = typer.Option(help="share of the patients set aside as a test (nifti, dicom)")
RENAME = typer.Option(help="a JSON, label of a structure → name of its class (dicom)")
GAPS = typer.Option("--gaps", help="take a gap that looks like a missing slice as it is (dicom)")
SKIP = typer.Option(
    "--skip-damaged",
    help="leave out what is damaged and list it at the end (nifti, dicom, totalsegmentator)",
)
WORKERS = typer.Option(
    help="processes that cut volumes; by default as many as processors, if there are many volumes "
         "(nifti, dicom, totalsegmentator)",
)

# %%
print("--rename", RENAME.help)


# %%
#| export
@app.command("import")
def import_(
    kind: Annotated[str, KIND],
    src: Annotated[Path, SOURCE],
    out: Annotated[Path, typer.Argument(help="the challenge folder to write")],
    window: Annotated[Optional[str], WINDOW] = None,
    every: Annotated[Optional[int], typer.Option(help="each n-th slice")] = None,
    per_volume: Annotated[Optional[int], typer.Option(help="at most so many slices of a volume")] = None,
    size: Annotated[Optional[int], SIZE] = None,
    classes: Annotated[Optional[Path], NAMES] = None,
    test_share: Annotated[float, TEST_SHARE] = 0.0,
    annotated: Annotated[Optional[str], ZEROS] = None,
    rename: Annotated[Optional[Path], RENAME] = None,
    gaps: Annotated[bool, GAPS] = False,
    skip_damaged: Annotated[bool, SKIP] = False,
    workers: Annotated[Optional[int], WORKERS] = None,
    key: Annotated[Optional[Path], KEY] = None,
):
    """Cut volumes into a challenge folder; structures nobody contoured stay unknown.

    Stopped and started again, it goes on where it was.
    """
    options = dict(classes=classes and str(classes), test_share=test_share or None, annotated=annotated)
    options |= dict(rename=rename, gaps=gaps or None, key=key)
    cut = dict(window=window, every=every, per_volume=per_volume, size=size)
    facts = _import(kind, (src, out), cut, options, dict(skip_damaged=skip_damaged, workers=workers))
    print_facts({name: value for name, value in facts.items() if value not in ([], {})})
    print(f"challenge folder: {out}")


# %%
print(runner.invoke(app, ["import", "dicm", "scans", "out"]).exception)

# %% [markdown]
# ## A folder from a seed

# %%
#| export
WHOLE = typer.Option("--truth", help="also write y_train_full.csv: every contour of every training slice")


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="the challenge folder to write")],
    labelled: Annotated[int, typer.Option(help="annotated training slices")] = 800,
    unlabelled: Annotated[int, typer.Option(help="training slices without annotation")] = 1200,
    test: Annotated[int, typer.Option(help="test slices, with truth")] = 500,
    size: Annotated[int, typer.Option(help="pixels a side")] = 256,
    examined: Annotated[int, typer.Option(help="structures examined on an annotated slice")] = 27,
    truth: Annotated[bool, WHOLE] = False,
    seed: Annotated[int, typer.Option(help="another seed draws other patients")] = 0,
):
    "Write a challenge folder of a procedural body: no patient, full truth, any number of slices."
    from ctseg.phantom import make_phantom
    make_phantom(out, labelled, unlabelled, test, size, seed, truth=truth, examined=examined)
    print(f"challenge folder: {out}")


# %%
print(runner.invoke(app, ["phantom", "--help"]).output[:300])
