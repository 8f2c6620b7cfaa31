# %% [markdown]
# # Commands that predict and score
#
# > `ctseg predict` and `report`: from a run to a submission, and a page.
#
# - skip_showdoc: true

# %%
#| default_exp cli.prediction

# %%
#| export
from pathlib import Path
from typing import Annotated, Optional

import typer

from ctseg.cli.console import app, loading, memory_errors, print_facts
from ctseg.cli.options import (
    BatchSize, Device, Engine, Plugins, Precision, device_plan, load_plugins, refuse_replacing)
from ctseg.core.errors import InputError

# %%
#| hide
from typer.testing import CliRunner

# %% [markdown]
# After training, `ctseg predict` writes the label maps of new slices into one CSV file, and `ctseg report` writes a page to look at:
#
# ```sh
# ctseg predict runs/first --images my_data/test-images --out submission.csv
# ctseg report runs/first --data my_data
# ```
#
# ## Predict
#
# Networks predict in the precision they were trained in, unless you ask for another. If you give several runs, their probabilities are averaged.
# [Prediction](../prediction/20_predictor.ipynb) explains views, rules and calibration.

# %%
#| export
WRITTEN = ("submission", "probabilities", "confidence")
RUNS = typer.Argument(
    help="one run, or several to average as probabilities: folders, or names on the hub (hf://owner/name)",
)
SUBMISSION = typer.Option(help="the submission to write (.csv or .csv.gz), or a store of label maps (.zarr)")
VIEWS = typer.Option(
    help="views of each image to average, 1 to 9, with mirrors 18: turned, enlarged, and "
         "mirrored if the runs were trained so; takes as many times as long",
)
STORE = typer.Option(help="also keep the probabilities, as float16, in this file")
SURENESS = typer.Option(
    help="also write, for each slice and structure, the Dice to expect, the chance that it is there "
         "and the uncertain share of its edge (.csv)",
)
RULE = typer.Option(help="saved: the one chosen in training; argmax: none, the most probable class")
Threshold = Annotated[Optional[float], typer.Option(
    help="lowest probability of a foreground pixel, instead of the chosen rule's",
)]
Gate = Annotated[Optional[float], typer.Option(
    help="lowest peak probability of a class that is drawn on an image, instead of the chosen rule's",
)]
Tune = Annotated[Optional[Path], typer.Option(
    help="the folder the runs were trained on: choose one rule for all of them on the slices they held out",
)]
CALIBRATED = typer.Option(
    "--calibrated",
    help="divide logits by the runs' temperatures; "
         "a run has one if it held out at least two patients or groups",
)
TunedBy = Annotated[Optional[str], typer.Option(
    help="of --tune: json (default), all or present, as in `ctseg fit`",
)]


# %%
#| export
def examined_by(annotated: Optional[str], tune: Optional[Path]) -> str:
    "How the folder `tune` tells what was examined; `InputError` where there is no such folder."
    if annotated and not tune:
        raise InputError("--annotated says how --tune FOLDER is read; give that too")
    return annotated or "json"


# %%
print("--rule", RULE.help)
try: examined_by("all", None)
except InputError as e: print(e)

# %%
#| export
PREDICT = "ctseg predict runs/first --images my_data/test-images --out submission.csv"

# %%
print(PREDICT)


# %%
#| export
@app.command(epilog=PREDICT)
def predict(
    runs: Annotated[list[str], RUNS],
    images: Annotated[Path, typer.Option(help="a folder of PNG slices, or a store")],
    out: Annotated[Path, SUBMISSION],
    tta: Annotated[int, VIEWS] = 1,
    probabilities: Annotated[Optional[Path], STORE] = None,
    confidence: Annotated[Optional[Path], SURENESS] = None,
    rule: Annotated[str, RULE] = "saved",
    threshold: Threshold = None,
    gate: Gate = None,
    tune: Tune = None,
    calibrated: Annotated[bool, CALIBRATED] = False,
    device: Device = "auto",
    batch_size: BatchSize = 16,
    annotated: TunedBy = None,
    precision: Precision = None,
    engine: Engine = "torch",
    plugin: Plugins = [],
):
    "Write the submission for a folder of images."
    load_plugins(plugin)
    with loading():
        from ctseg.prediction.prepare import prepare
        from ctseg.prediction.submission import check_files, predict_folder
    examined = examined_by(annotated, tune)
    files = (out, probabilities, confidence)
    check_files(images, *files)
    refuse_replacing(files, [images, tune, *runs])
    with memory_errors():
        predictor = prepare(
            runs, device_plan(device, precision), tta, calibrated, tune, annotated=examined,
            batch_size=batch_size, rule=rule, threshold=threshold, gate=gate)
        predictor = predictor.by_engine(engine)
        print_facts(predict_folder(
            predictor, images, out, probabilities, batch_size, progress=True, confidence=confidence))
    print_facts({what: path for what, path in zip(WRITTEN, files) if path})


# %% [markdown]
# A run that does not exist:

# %%
runner = CliRunner()
print(
    runner.invoke(
        app, ["predict", "no-run", "--images", "../../data_sample/test-images", "--out", "s.csv"]
    ).exception
)


# %% [markdown]
# ## Report
#
# For one run `ctseg report` writes [a page](../report/40_page.ipynb) with its curves, scores and pictures. For several runs it writes [a comparison](../report/50_comparison.ipynb), and prints a
# line for each run.

# %%
#| export
def comparison_line(record: dict, width: int, with_argmax: bool) -> str:
    "A run of a comparison: its Dice with interval, the difference to the first run, silent classes."
    low, high = record["interval"]
    parts = [f"{record['run']:<{width}}Dice {record['dice']:.4f} [{low:.3f}, {high:.3f}]"]
    low, high = record["paired"]
    parts.append(f"to the first {record['difference']:+.4f} [{low:+.3f}, {high:+.3f}]")
    if with_argmax:
        low, high = record["argmax_paired"]
        difference = f"{record['argmax_difference']:+.4f} [{low:+.3f}, {high:+.3f}]"
        parts.append(f"by argmax {record['argmax']:.4f}, to the first {difference}")
    parts.append(f"silent: {', '.join(record['silent']) or 'none'}")
    return "   ".join(parts)


# %%
example = dict(run="second", dice=.55, interval=(.52, .58), difference=.03, paired=(.01, .05), silent=[])
print(comparison_line(example, 24, with_argmax=False))

# %%
#| export
SPLIT = typer.Option(
    help="held-out (default): annotated slices that the runs have not trained on; "
         "test: the test slices, if their truth is there",
)
PAGE = typer.Option(
    help="the page to write; default: report.html, or comparison.html, in the first run's folder",
)
COMPARED = typer.Argument(help="a run folder; or several, to compare them with the first")
SHOWN = typer.Option(
    help="the folder they were trained on: its slices are scored and shown; "
         "left out: curves and settings only",
)
EXAMINED_BY = typer.Option(help="of --data: json (default), all or present, as in `ctseg fit`")
MOST = typer.Option(min=1, help="at most so many on the page of one run (default: 300)")


def check_shown(runs: list[str], data: Optional[Path], slices: Optional[int], more: dict) -> None:
    "`InputError` for options, `slices` and `more`, that need slices where none are shown."
    for option, value in ({"slices": slices} | more).items():
        if value and not data:
            raise InputError(f"--{option} needs --data FOLDER: without it no slices are scored or shown")
    if slices and len(runs) > 1:
        raise InputError("--slices is for the page of one run; a comparison shows no slices")


# %% [markdown]
# Options that contradict each other are refused:

# %%
try: check_shown(["run"], None, None, {"split": "test"})
except InputError as e: print(e)


# %%
#| export
@app.command(epilog="ctseg report runs/first --data my_data")
def report(
    runs: Annotated[list[str], COMPARED],
    data: Annotated[Optional[Path], SHOWN] = None,
    split: Annotated[Optional[str], SPLIT] = None,
    out: Annotated[Optional[Path], PAGE] = None,
    slices: Annotated[Optional[int], MOST] = None,
    annotated: Annotated[Optional[str], EXAMINED_BY] = None,
    device: Device = "auto",
    batch_size: BatchSize = 16,
    precision: Precision = None,
    plugin: Plugins = [],
):
    "Write one self-contained page about a run, or one that compares several."
    load_plugins(plugin)
    with loading():
        from ctseg.report.comparison import report_comparison
        from ctseg.report.page import report
    check_shown(runs, data, slices, {"split": split, "annotated": annotated})
    refuse_replacing([out], [data, *runs])
    split, annotated = split or "held-out", annotated or "json"
    with memory_errors():
        plan = device_plan(device, precision)
        records = []
        if len(runs) == 1:
            page = report(runs[0], data, split, out, slices or 300, annotated, plan, batch_size)
        else:
            page, records = report_comparison(runs, data, split, out, annotated, plan, batch_size)
    width = max([23, *(len(each["run"]) for each in records)]) + 1
    for record in records:
        print(comparison_line(record, width, any(each["chosen"] for each in records)))
    print_facts({"page": page})


# %%
print(runner.invoke(app, ["report", "no-run", "--split", "test"]).exception)
