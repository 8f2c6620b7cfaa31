# %% [markdown]
# # The command that segments scans
#
# > `ctseg segment`: DICOM or NIfTI in; DICOM SEG, RTSTRUCT or NIfTI out.
#
# - skip_showdoc: true

# %%
#| default_exp cli.segment

# %%
#| export
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ctseg.cli.console import app, loading, memory_errors
from ctseg.cli.options import BatchSize, Device, Engine, Plugins, load_plugins, wanted_window
from ctseg.core.errors import InputError, say

# %%
#| hide
import tempfile
from pathlib import Path

from fastcore.test import test_eq, test_fail


# %% [markdown]
# `ctseg segment` takes trained runs and scans as a hospital stores them, and writes the segmentations in the scans' own format:
#
# ```sh
# ctseg segment runs/first scans/patient_7 --out results
# ```
#
# Runs come first, then scans. A run is a folder with a `recipe.json`, or a name on a hub. Everything after the runs is a scan, or a folder of scans. The
# [guide to segmenting](../guides/segment.ipynb) shows the results.

# %%
#| export
def runs_and_scans(paths: list[str]) -> tuple[list[str], list[str]]:
    "The runs at the beginning of a list, and the scans after them. Raises `InputError` if there are none of either."
    def is_run(path: str) -> bool:
        return path.startswith("hf://") or (Path(path)/"recipe.json").is_file()
    first_scan = next((i for i, path in enumerate(paths) if not is_run(path)), len(paths))
    runs, scans = paths[:first_scan], paths[first_scan:]
    late = [path for path in scans if is_run(path)]
    if not runs:
        raise InputError(f"{paths[0]}: no run here (no recipe.json); give RUN first, then SCAN")
    if not scans:
        raise InputError(f"{paths[-1]}: is a run; give a DICOM folder or a NIfTI file after it")
    if late:
        raise InputError(f"{late[0]}: a run after a scan; give all runs first")
    return runs, scans


# %%
with tempfile.TemporaryDirectory() as d:
    (Path(d)/"recipe.json").touch()
    print([len(part) for part in runs_and_scans([d, "hf://team/model", "a", "b.nii.gz"])])
    for wrong, says in ((["a"], "no run here"), ([d], "after it"), ([d, "a", d], "all runs first")):
        test_fail(lambda: runs_and_scans(wrong), contains=says)

# %%
#| export
PATHS = typer.Argument(
    help="run folders, whose probabilities are averaged; "
         "then NIfTI files, or folders with DICOM or NIfTI in or below them",
)
RESULTS = typer.Option(help="the folder to write")
FORMAT = typer.Option(
    help="dicom-seg, rtstruct or nifti; may be repeated; left out: SEG for DICOM and NIfTI for NIfTI",
)
KEEP_PATIENT = typer.Option(
    "--keep-patient",
    help="copy patient and study into the results, and call them by the patient's number; "
         "left out: neither is in them",
)
CUT_WINDOW = typer.Option(
    help="display window: soft, lung, bone, wide, or LEVEL,WIDTH such as 40,400; left out: as the runs were "
         "trained",
)
CUT_SIZE = typer.Option(help="side of the images in pixels; left out: as the runs were trained")
CUT_SPACING = typer.Option(help="mm per pixel, or fit; left out: as the runs were trained")
TAKE_GAPS = typer.Option("--gaps", help="take a gap that looks like a missing slice as it is")
SCAN_VIEWS = typer.Option("--tta", help="views of each slice to average")


# %%
#| export
def wanted_spacing(text: Optional[str]):
    "mm per pixel, `fit`, or None; `InputError` for another text."
    if text in (None, "fit"): return text
    try: return float(text)
    except ValueError:
        raise InputError(f"--spacing {text}: expected mm per pixel, or fit") from None


# %% [markdown]
# The three spellings, and a refusal:

# %%
print([wanted_spacing(text) for text in (None, "fit", "1.5")])
test_eq([wanted_spacing(text) for text in (None, "fit", "1.5")], [None, "fit", 1.5])
test_fail(lambda: wanted_spacing("wide"), contains="expected mm per pixel")


# %%
#| export
def print_results(result) -> None:
    "Print a line for each scan, then what was passed over, notes, and what failed."
    for scan in result.done:
        present = sum(row["slices"] > 0 for row in scan.rows)
        files = ", ".join(scan.files) or "no file, since nothing was found"
        say(f"{scan.name}: {scan.source}, {present} structures: {files}")
    if result.passed_over:
        kinds = [f"{n} {kind}{'s'*(n > 1)}" for kind, n in result.passed_over.items()]
        say(f"passed over: {', '.join(kinds)}")
    for note in result.notes:
        say(f"ctseg: {note}", sys.stderr)
    for source, problem in result.failed:
        where = "" if source in problem else f"{source}: "
        say(f"ctseg: not segmented: {where}{problem}", sys.stderr)
    print(f"segmented: {len(result.done)} of {len(result.done) + len(result.failed)}")
    say(f"volumes: {result.out/'volumes.csv'}")
    if result.page.exists(): say(f"page: {result.page}")


# %%
#| export
SOME_FAILED = 3  # the exit status if some scans could not be segmented, or the page not written


# %%
#| export
@app.command(epilog="ctseg segment runs/first scans --out results --format dicom-seg")
def segment(
    runs_then_scans: Annotated[list[str], PATHS],
    out: Annotated[Path, RESULTS],
    format: Annotated[list[str], FORMAT] = [],
    keep_patient: Annotated[bool, KEEP_PATIENT] = False,
    window: Annotated[Optional[str], CUT_WINDOW] = None,
    size: Annotated[Optional[int], CUT_SIZE] = None,
    spacing: Annotated[Optional[str], CUT_SPACING] = None,
    gaps: Annotated[bool, TAKE_GAPS] = False,
    tta: Annotated[int, SCAN_VIEWS] = 1,
    device: Device = "auto",
    batch_size: BatchSize = 16,
    engine: Engine = "auto",
    plugin: Plugins = [],
):
    "Segment scans: DICOM or NIfTI in; SEG, RTSTRUCT or NIfTI out. Exit status 3: some scans could not be segmented."
    runs, scans = runs_and_scans(runs_then_scans)
    cut = dict(gaps=gaps, window=wanted_window(window), size=size, spacing=wanted_spacing(spacing))
    how = dict(keep_patient=keep_patient, device=device, batch_size=batch_size, views=tta, engine=engine)
    load_plugins(plugin)
    with loading():
        from ctseg.segmentation import segment
    with memory_errors():
        result = segment(runs, scans, out, format, progress=True, **how, **cut)
    print_results(result)
    if result.failed or not result.page.exists(): raise typer.Exit(SOME_FAILED)


# %% [markdown]
# Without a run the command stops:

# %%
from typer.testing import CliRunner

wrong = CliRunner().invoke(app, ["segment", "nowhere", "scan.nii.gz", "--out", "results"])
print(wrong.exception)
