# %% [markdown]
# # The command that puts predictions back
#
# > `ctseg export`: onto the volumes they were cut from, or into the folder of nnU-Net.
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
from ctseg.cli.options import Folder
from ctseg.core.files import InputError, did_you_mean

# %%
#| hide
from typer.testing import CliRunner

runner = CliRunner()

# %% [markdown]
# `export` puts predictions back onto the volumes, or writes the folder for nnU-Net.

# %%
#| export
EXPORTED = typer.Argument(help="nifti, dicom-seg, rtstruct or nnunet")
EXPORTS = ("nifti", "dicom-seg", "rtstruct", "nnunet")
UNKNOWN = typer.Option(
    help="what nobody looked for becomes: ignore, or background, which is false but runs (nnunet)",
)
MASKS = typer.Option(help="the submission to put back onto the volumes (nifti, dicom-seg, rtstruct)")
IMPORTED = typer.Option(help="the DICOM folder it was imported from (dicom-seg, rtstruct)")
KEEP_PATIENT = typer.Option(
    "--keep-patient", help="copy what the scans say of patient and study (dicom-seg, rtstruct)",
)

# %%
print("--unknown", UNKNOWN.help)


# %%
#| export

@app.command("export")
def export_(
    kind: Annotated[str, EXPORTED],
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="the folder to write")],
    masks: Annotated[Optional[Path], MASKS] = None,
    source: Annotated[Optional[Path], IMPORTED] = None,
    split: Annotated[str, typer.Option(help="the slices the submission is of: test or train")] = "test",
    unknown: Annotated[str, UNKNOWN] = "ignore",
    keep_patient: Annotated[bool, KEEP_PATIENT] = False,
):
    "Put predictions back onto their volumes, or write the folder for nnU-Net."
    if kind not in EXPORTS:
        raise did_you_mean("kind of export", kind, EXPORTS)
    if kind != "nnunet" and masks is None:
        raise InputError(f"`ctseg export {kind}` needs --masks SUBMISSION.csv")
    if kind in ("dicom-seg", "rtstruct") and source is None:
        raise InputError(f"`ctseg export {kind}` needs --source, the DICOM folder that was imported")
    if kind == "nifti":
        from ctseg.io.nifti import export_nifti
        facts = export_nifti(masks, folder, out, split)
    elif kind == "dicom-seg":
        from ctseg.io.dicom_seg import export_dicom_seg
        facts = export_dicom_seg(masks, folder, source, out, split, keep_patient)
    elif kind == "rtstruct":
        from ctseg.io.rtstruct_write import export_rtstruct
        facts = export_rtstruct(masks, folder, source, out, split, keep_patient)
    else:
        from ctseg.integrations.nnunet import export_nnunet
        facts = export_nnunet(folder, out, unknown)
    print_facts(facts or {})
    print(f"written: {out}")


# %%
print(runner.invoke(app, ["export", "nifti", "../../data_sample", "out"]).exception)
