# %% [markdown]
# # The command that puts predictions back
#
# > `ctseg export`: onto the volumes they were cut from, or as nnU-Net, a competition or another program reads them.
#
# - skip_showdoc: true

# %%
#| default_exp cli.export

# %%
#| export
from pathlib import Path
from typing import Annotated, Optional

import typer

from ctseg.cli.console import app, print_facts
from ctseg.cli.options import begins, refuse_replacing
from ctseg.cli.slices import FIRST, FORM, GIVEN, IDS, LIKE, ORDER, VALUES, fitting_options, write_rle
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.paths import refuse_inside

# %%
#| hide
from typer.testing import CliRunner

runner = CliRunner()

# %% [markdown]
# `ctseg export` puts predicted slices back onto the volumes they were cut from. It also writes a folder for nnU-Net, the run-length codes of a competition, or a run as an
# ONNX file:
#
# ```sh
# ctseg export nifti my_data volumes --masks submission.csv
# ```

# %%
#| export
EXPORTS = ("nifti", "dicom-seg", "rtstruct", "nnunet", "rle", "onnx")
EXPORTED = typer.Argument(help=", ".join(EXPORTS[:-1]) + f" or {EXPORTS[-1]}", autocompletion=begins(EXPORTS))
UNKNOWN = typer.Option(
    help="what nobody looked for: partial (as it is, with annotated_labels.json for nnUNetTrainerPartial), "
         "ignore (the default), or background, which is false but runs (nnunet)",
)
AS_SLICES = typer.Option("--slices", help="PNG slices, also of a folder that was cut from volumes (nnunet)")
MASKS = typer.Option(
    help="the submission, or the store of label maps, to put back onto the volumes (nifti, dicom-seg, "
         "rtstruct), or the submission to encode (rle)",
)
OF_SPLIT = typer.Option(
    help="the slices the submission is of: test (the default) or train (nifti, dicom-seg, rtstruct)",
)
IMPORTED = typer.Option(help="the DICOM folder it was imported from (dicom-seg, rtstruct)")
KEEP_PATIENT = typer.Option(
    "--keep-patient", help="copy what the scans say of patient and study (dicom-seg, rtstruct)",
)

# %%
print("--unknown", UNKNOWN.help)

# %%
#| export
ON_VOLUMES = ("nifti", "dicom-seg", "rtstruct")
ONLY_RLE = "like form ids order first classes"
TAKES = {  # kind → its options
    "nifti": "masks split",
    "dicom-seg": "masks source split keep_patient",
    "rtstruct": "masks source split keep_patient",
    "nnunet": "unknown slices",
    "rle": f"masks {ONLY_RLE}",
    "onnx": "",
}

def check_export(kind: str, given: dict) -> None: # option → what was given, None if nothing was
    "`InputError` for an unknown kind, and for options that are missing or belong to another kind."
    if kind not in EXPORTS:
        raise did_you_mean("kind of export", kind, EXPORTS)
    fitting_options(kind, TAKES[kind].split(), given, "export")
    if kind in ON_VOLUMES and given["masks"] is None:
        raise InputError(f"`ctseg export {kind}` needs --masks SUBMISSION.csv")
    if kind in ("dicom-seg", "rtstruct") and given["source"] is None:
        raise InputError(f"`ctseg export {kind}` needs --source, the DICOM folder that was imported")


# %% [markdown]
# An option that belongs to another kind of export is refused:

# %%
for kind, given in (("nifti", {"form": "wide"}), ("onnx", {"split": "train"})):
    try: check_export(kind, {"masks": None} | given)
    except InputError as e: print(e)


# %%
#| export
def export_onto_volumes(given: dict) -> Optional[dict]:
    "Put a submission back onto the volumes it was cut from, by what was given to the command; facts."
    masks, folder, out, split = given["masks"], given["folder"], given["out"], given["split"] or "test"
    if given["kind"] == "nifti":
        from ctseg.io.nifti import export_nifti
        return export_nifti(masks, folder, out, split)
    if given["kind"] == "dicom-seg":
        from ctseg.io.dicom_seg import export_dicom_seg as export
    else:
        from ctseg.io.rtstruct_write import export_rtstruct as export
    return export(masks, folder, given["source"], out, split, bool(given["keep_patient"]))


# %%
#| export
def export_kind(given: dict) -> Optional[dict]:
    "Write one kind of export, by what was given to the command; facts."
    kind, folder, out = given["kind"], given["folder"], given["out"]
    if kind in ON_VOLUMES:
        return export_onto_volumes(given)
    if kind == "rle":
        return write_rle(folder, given["masks"], out, {name: given[name] for name in ONLY_RLE.split()})
    if kind == "onnx":
        from ctseg.integrations.onnx import export_onnx
        return export_onnx(folder, out)
    from ctseg.integrations.nnunet import export_nnunet
    return export_nnunet(folder, out, given["unknown"] or "ignore", as_slices=bool(given["slices"]))


# %%
#| export
@app.command("export", epilog="ctseg export dicom-seg my_data results --masks submission.csv --source scans")
def export_(
    kind: Annotated[str, EXPORTED],
    folder: Annotated[Path, GIVEN],
    out: Annotated[Path, typer.Argument(help="the folder to write; for rle the CSV, for onnx the file")],
    masks: Annotated[Optional[Path], MASKS] = None,
    source: Annotated[Optional[Path], IMPORTED] = None,
    split: Annotated[Optional[str], OF_SPLIT] = None,
    unknown: Annotated[Optional[str], UNKNOWN] = None,
    slices: Annotated[bool, AS_SLICES] = False,
    keep_patient: Annotated[bool, KEEP_PATIENT] = False,
    like: Annotated[Optional[Path], LIKE] = None,
    form: Annotated[Optional[str], FORM] = None,
    ids: Annotated[Optional[str], IDS] = None,
    order: Annotated[Optional[str], ORDER] = None,
    first: Annotated[Optional[int], FIRST] = None,
    classes: Annotated[Optional[Path], VALUES] = None,
):
    "Put predictions back onto their volumes, or write what nnU-Net, a competition or another program reads."
    given = locals() | {"slices": slices or None, "keep_patient": keep_patient or None}
    check_export(kind, {name: given[name] for names in TAKES.values() for name in names.split()})
    refuse_replacing([out], [folder, masks, like, classes])
    if kind not in ("rle", "onnx"):  # which are files
        from ctseg.data.sources import refuse_among_slices
        refuse_inside(out, [source])
        refuse_among_slices(out, folder)
    print_facts((export_kind(given) or {}) | {"written": out})


# %% [markdown]
# Without a submission there is nothing to put back:

# %%
print(runner.invoke(app, ["export", "nifti", "../../data_sample", "out"]).exception)
