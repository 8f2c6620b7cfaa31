# %% [markdown]
# # The command that scores
#
# > `ctseg evaluate`: a submission by the challenge's Dice, volumes in mm.
#
# - skip_showdoc: true

# %%
#| default_exp cli.evaluate

# %%
#| export
from pathlib import Path
from typing import Annotated, Optional

import typer

from ctseg.cli.console import app, print_facts
from ctseg.cli.options import refuse_replacing
from ctseg.core.atomic import check_file_place
from ctseg.core.errors import InputError
from ctseg.core.filetypes import called_nifti
from ctseg.core.json_files import write_json

# %%
#| hide
from typer.testing import CliRunner

runner = CliRunner()

# %% [markdown]
# `ctseg evaluate` compares a prediction with the truth. Given two CSV files it computes the [challenge's Dice](../metrics/10_challenge.ipynb); given two folders of NIfTI label
# maps, [distances and volumes](../metrics/60_volumes.ipynb) in mm and ml:
#
# ```sh
# ctseg evaluate my_data/y_test.csv submission.csv
# ctseg evaluate truth/ predicted/ --tolerance 3
# ```

# %%
#| export
EXAMINED = typer.Option(
    help="annotated_labels.json, where the truth is partial (default: the one beside a y_train.csv, "
         "or annotated_labels_test.json beside a y_test.csv); "
         "or all: every class was examined; or present: only classes with pixels were",
)
CLASSES = typer.Option(
    help="class_names.json, or a run; default: what lies beside the truth, else the challenge's 54 (CSV)",
)
TRUTH = typer.Argument(help="the truth: the challenge's CSV, a folder of NIfTI label maps, or a store")
SCORED = typer.Argument(help="a submission, NIfTI files of the same names in a folder, or a store")
IN_MM = typer.Option("--mm", help="of CSV: score whole volumes in mm, where the folder was made from volumes")
TOLERANCE = typer.Option(
    min=0.0, metavar="MM",
    help="how far off a surface may be to count as right, in the surface Dice; left out: 2 (folders, --mm)",
)

# %%
print("--mm", IN_MM.help)


# %%
#| export
def volume_result(truth: Path, prediction: Path, annotated, classes, tolerance: float) -> dict:
    "The evaluation in mm of two folders, or of two CSV files."
    from ctseg.metrics.volume_files import evaluate_csv_volumes, evaluate_volumes
    if not truth.is_dir() and not prediction.is_dir():
        if annotated or classes:
            raise InputError("--mm scores every class of the folder; leave out --annotated and --classes")
        return evaluate_csv_volumes(truth, prediction, tolerance)
    for path in (truth, prediction):
        if not path.is_dir():
            raise InputError(f"{path}: expected a folder of NIfTI label maps, as the other one is")
    return evaluate_volumes(truth, prediction, classes, annotated and str(annotated), tolerance)


# %%
#| export
def evaluation(
    truth: Path, prediction: Path, annotated, classes, tolerance: Optional[float], mm: bool,
) -> dict:
    "The evaluation that two paths ask for."
    from ctseg.data.store import is_store
    if is_store(truth):
        from ctseg.metrics.stored import evaluate_stored
        if mm or classes or tolerance is not None:
            raise InputError("a store knows its classes and no mm; leave out --classes, --mm and --tolerance")
        return evaluate_stored(truth, prediction, annotated and str(annotated))
    for path in (truth, prediction):
        if called_nifti(path):
            raise InputError(f"{path}: a single NIfTI file; give the folders that the files of both lie in")
    if mm or truth.is_dir() or prediction.is_dir():
        return volume_result(truth, prediction, annotated, classes, 2.0 if tolerance is None else tolerance)
    if tolerance is not None:
        raise InputError("--tolerance is for volumes: give folders of NIfTI files, or --mm")
    from ctseg.metrics.evaluate import evaluate_files
    return evaluate_files(truth, prediction, annotated, classes)


# %% [markdown]
# Compared with itself, a truth has a Dice of 1. A tolerance in mm makes no sense for a CSV:

# %%
truth = Path("../../data_sample/y_test.csv.gz")
print("Dice", evaluation(truth, truth, None, None, None, mm=False)["facts"]["dice"])
try: evaluation(truth, truth, None, None, 2.0, mm=False)
except InputError as e: print(e)


# %%
#| export

@app.command(epilog="ctseg evaluate my_data/y_test.csv submission.csv")
def evaluate(
    truth: Annotated[Path, TRUTH],
    prediction: Annotated[Path, SCORED],
    annotated: Annotated[Optional[Path], EXAMINED] = None,
    classes: Annotated[Optional[Path], CLASSES] = None,
    json: Annotated[Optional[Path], typer.Option(help="write all figures here")] = None,
    mm: Annotated[bool, IN_MM] = False,
    tolerance: Annotated[Optional[float], TOLERANCE] = None,
):
    "Score a submission (challenge's Dice, a row per class) or folders of NIfTI (Dice, surface Dice, HD95, ml)."
    refuse_replacing([json], [truth, prediction, annotated, classes])
    check_file_place(json)
    result = evaluation(truth, prediction, annotated, classes, tolerance, mm)
    facts = result["facts"]
    print(result["table"].to_string(float_format="{:.3f}".format))
    print_facts({name: value for name, value in facts.items() if not name.startswith("per_")})
    if json:
        write_json(facts, json)


# %% [markdown]
# The command prints a row for each class:

# %%
truth = str(truth)
print(runner.invoke(app, ["evaluate", truth, truth]).output)
