# %% [markdown]
# # Commands for data
#
# > `ctseg check`, `import`, `export` and `phantom`: folders checked, cut from volumes, put back, drawn.
#
# - skip_showdoc: true

# %%
#| default_exp cli.data

# %%
#| export
import inspect
from collections.abc import Callable
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
test_fail(lambda: fitting_options("nifti", {"classes"}, {"rename": "names.json"}), contains="--rename is not an option")

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
NAMES = typer.Option(help="class_names.json (nifti, dicom, totalsegmentator)")
TEST_SHARE = typer.Option(help="share of the patients set aside as a test (nifti, dicom)")
RENAME = typer.Option(help="a JSON, label of a structure → name of its class (dicom)")
GAPS = typer.Option("--gaps", help="take a gap that looks like a missing slice as it is (dicom)")

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
    key: Annotated[Optional[Path], KEY] = None,
):
    "Cut volumes into a challenge folder; structures nobody contoured stay unknown."
    from dataclasses import replace
    kinds = importers()
    if kind not in kinds:
        raise did_you_mean("kind of data", kind, kinds)
    takes = inspect.signature(kinds[kind]).parameters
    names = classes and str(classes)
    options = dict(classes=names, test_share=test_share or None, annotated=annotated, rename=rename)
    more = fitting_options(kind, takes, options | dict(gaps=gaps or None, key=key))
    cut = dict(window=window, every=every, per_volume=per_volume, size=size)
    slicing = replace(takes["slicing"].default, **without_none(cut))
    print_facts(kinds[kind](src, out, slicing=slicing, **more))
    print(f"challenge folder: {out}")


# %%
print(runner.invoke(app, ["import", "dicm", "scans", "out"]).exception)

# %% [markdown]
# ## Volumes out
#
# `export` puts predictions back onto the volumes, or writes the folder for nnU-Net.

# %%
#| export
EXPORTS = ("nifti", "dicom-seg", "nnunet", "onnx")
UNKNOWN = typer.Option(
    help="what nobody looked for becomes: ignore, or background, which is false but runs (nnunet)",
)
MASKS = typer.Option(help="the submission to put back onto the volumes (nifti, dicom-seg)")
IMPORTED = typer.Option(help="the DICOM folder it was imported from (dicom-seg)")

# %%
print("--unknown", UNKNOWN.help)


# %%
#| export

@app.command("export")
def export_(
    kind: Annotated[str, typer.Argument(help="nifti, dicom-seg, nnunet or onnx")],
    folder: Annotated[Path, typer.Argument(help="a challenge folder; a run folder for onnx")],
    out: Annotated[Path, typer.Argument(help="the folder to write; a file for onnx")],
    masks: Annotated[Optional[Path], MASKS] = None,
    source: Annotated[Optional[Path], IMPORTED] = None,
    split: Annotated[str, typer.Option(help="the slices the submission is of: test or train")] = "test",
    unknown: Annotated[str, UNKNOWN] = "ignore",
):
    "Put predictions back onto their volumes, write the folder for nnU-Net, or a run as an ONNX file."
    if kind not in EXPORTS:
        raise did_you_mean("kind of export", kind, EXPORTS)
    if kind in ("nifti", "dicom-seg") and masks is None:
        raise InputError(f"`ctseg export {kind}` needs --masks SUBMISSION.csv")
    if kind == "dicom-seg" and source is None:
        raise InputError("`ctseg export dicom-seg` needs --source, the DICOM folder that was imported")
    if kind == "nifti":
        from ctseg.io.nifti import export_nifti
        facts = export_nifti(masks, folder, out, split)
    elif kind == "dicom-seg":
        from ctseg.io.dicom_seg import export_dicom_seg
        facts = export_dicom_seg(masks, folder, source, out, split)
    elif kind == "onnx":
        from ctseg.integrations.onnx import export_onnx
        facts = export_onnx(folder, out)
    else:
        from ctseg.integrations.nnunet import export_nnunet
        facts = export_nnunet(folder, out, unknown)
    print_facts(facts or {})
    print(f"written: {out}")


# %%
print(runner.invoke(app, ["export", "nifti", "../../data_sample", "out"]).exception)

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
