# %% [markdown]
# # Demo
#
# > The whole teacher–student job on a small sample: teacher, pseudo-labels, filter, student, submission, score, and pictures to look at.
#
# - skip_showdoc: true

# %%
#| default_exp demo

# %% [markdown]
# `make demo` is what a newcomer runs first. It has to show the real thing, in minutes, on a laptop: ten annotated slices, fourteen without annotation, eight test slices, 54 structures. Nobody learns 54 structures from ten
# slices; the point is that every step is the one a real run takes, and that the large structures come out. The steps are the project's story in small: a teacher learns from the annotated slices, labels the others,
# the surest of these are kept, and a student learns from both.

# %%
#| export
import time
from pathlib import Path

import numpy as np

from ctseg.data import SliceSet, read_challenge
from ctseg.files import InputError, atomic_path
from ctseg.metrics import evaluate_files
from ctseg.phantom import make_phantom
from ctseg.predict import load_predictor, predict_masks, write_submission
from ctseg.recipes import fit, get_recipe
from ctseg.train import Run, apply_settings, read_spec

# %%
#| hide
import matplotlib.pyplot as plt


# %% [markdown]
# ## The picture
#
# A row a slice: what the scanner saw, the truth, what was predicted; the first four, or those asked for.

# %%
#| export
def plot_predictions(slices: SliceSet, pred: np.ndarray, order=None, rows: int = 4, titles=None):
    "Image, truth and prediction side by side for the slices `order` (default: the first ones)."
    import matplotlib.pyplot as plt
    order = list(range(len(slices)) if order is None else order)[:rows]
    fig, axes = plt.subplots(len(order), 3, figsize=(7.2, 2.4*len(order)), layout="constrained", squeeze=False)
    for row, i in zip(axes, order):
        grey = np.repeat(slices.images[i][..., None], 3, -1)
        row[0].imshow(grey)
        for ax, mask in zip(row[1:], (slices.masks[i], pred[i])):
            colour = slices.classes.colourise(mask)
            ax.imshow(np.where((mask > 0)[..., None], 0.35*grey + 0.65*colour, grey).astype(np.uint8))
        row[0].set_ylabel(f"{slices.names[i]}" + (f"\n{titles[i]}" if titles is not None else ""), fontsize=8)
    for ax, title in zip(axes[0], ("image", "truth", "prediction")): ax.set_title(title, fontsize=9)
    for ax in axes.flat: ax.set(xticks=[], yticks=[])
    return fig


# %% [markdown]
# The teacher's labels for the slices nobody annotated, the surest first. What is left of the line is taught to the student as if it were true; the number is the confidence ([Soft Dice Confidence](pseudo.html)).

# %%
#| export
def plot_pseudo(unlabelled: SliceSet, labels: np.ndarray, scores: np.ndarray, kept: np.ndarray, columns: int = 7):
    "Pseudo-labels uint8 [N, H, W] over their images, by falling score; those not kept are faded and crossed out."
    import matplotlib.pyplot as plt
    order = np.argsort(-scores, kind="stable")
    rows = -(-len(order)//columns)
    fig, axes = plt.subplots(rows, columns, figsize=(1.5*columns, 1.75*rows), layout="constrained", squeeze=False)
    for ax in axes.flat: ax.axis("off")
    for ax, i in zip(axes.flat, order):
        grey, colour = np.repeat(unlabelled.images[i][..., None], 3, -1), unlabelled.classes.colourise(labels[i])
        shown = np.where((labels[i] > 0)[..., None], 0.35*grey + 0.65*colour, grey)
        ax.imshow((shown if kept[i] else 0.45*shown).astype(np.uint8))
        ax.set_title(f"{scores[i]:.2f}" + ("" if kept[i] else ", rejected"), fontsize=8, color="0" if kept[i] else "C3")
        if not kept[i]: ax.plot([0, 1], [0, 1], transform=ax.transAxes, color="C3", lw=0.8)
    return fig


# %% [markdown]
# ## The job
#
# `--overwrite` is a dangerous word. It replaces an earlier demo and nothing else: a folder with a recipe of another kind may be a week of training. Nor does the earlier demo go before the new one is finished; until then everything is kept in a temporary folder beside it.

# %%
#| export
DEMO = ("width=16", "image_size=64", "epochs=250", "batch_size=5", "lr=0.004", "fold=-1", "keep=8")

def run_demo(out, data=None, overwrite: bool = False, settings=DEMO, progress: bool = True):
    "Teacher and student on `data` (None: `data_sample`, or a phantom where there is none), predict its test slices, score, draw; everything lands in `out`, or nothing."
    out, start, recipe = Path(out), time.monotonic(), apply_settings(get_recipe("teacher-student"), settings)
    earlier = _may_write(out, overwrite, recipe, settings)
    try:
        data = Path(data) if data else _sample(out)
        test, truth = read_challenge(data, "test"), [p for p in (data/"y_test.csv", data/"y_test.csv.gz") if p.exists()]
        if not truth: raise InputError(f"{data}: no y_test.csv; the demo scores its test slices")
        if (train := read_challenge(data)).labelled.all(): raise InputError(f"{data}: every slice is annotated; the demo shows what slices without annotation are good for")
        with atomic_path(out) as tmp:
            run = fit(train, recipe, tmp, progress=progress)
            pred = predict_masks(load_predictor(run.folder), test.images)
            write_submission(pred, test.names, run/"submission.csv")
            result = evaluate_files(truth[0], run/"submission.csv")
            draw_demo(run, train, test, pred)
    finally: earlier.unlock()
    report_demo(Run(out), test, result)
    print(f"{time.monotonic() - start:.0f} s in all")

def _may_write(out: Path, overwrite: bool, recipe, settings) -> Run:
    "`InputError` unless `out` is free, or an earlier demo that may be replaced; that one is locked, so that nobody trains in it meanwhile."
    run = Run(out)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        if not overwrite: raise InputError(f"{out} is not empty; add --overwrite, or choose another --out")
        if not (out/"recipe.json").exists(): raise InputError(f"{out} holds no run and is not overwritten; choose another --out")
        theirs, keys = read_spec(out/"recipe.json")["recipe"], ["name", *(s.partition("=")[0] for s in settings)]
        if any(theirs.get(k) != getattr(recipe, k) for k in keys): raise InputError(f"{out} holds a run that is no demo and is not overwritten; choose another --out")
        run.lock()
    return run

def _sample(out: Path) -> Path:
    if (data := Path("data_sample")).exists(): return data
    data = out.parent/f"{out.name}_data"
    if all((data/f).exists() for f in ("y_train.csv", "y_test.csv")): return data  # drawn by an earlier call
    print(f"no sample here: drawing one into {data}")
    make_phantom(data, labelled=10, unlabelled=14, test=8, size=256, seed=0)
    return data


# %%
#| export
def draw_demo(run: Run, train: SliceSet, test: SliceSet, pred: np.ndarray):
    "Save the pictures."
    pseudo = run.read_pseudo()
    _save(plot_predictions(test, pred), run/"predictions.png")
    _save(plot_pseudo(train[~train.labelled], pseudo["labels"], pseudo["sdc"], pseudo["kept"]), run/"pseudo_labels.png")

def report_demo(run: Run, test: SliceSet, result: dict):
    "Print the score, the best classes, and where everything is."
    table, kept = result["table"], run.read_pseudo()["kept"]
    print(table.loc[table.support > 0, ["support", "dice"]].sort_values("dice", ascending=False).head(10).to_string(float_format="{:.2f}".format))
    print(f"\nthe teacher labelled {len(kept)} slices, the student learnt from the {kept.sum()} surest")
    print(f"Dice on {len(test)} test slices, mean of all classes: {result['facts']['dice']:.3f}")
    for name in ("submission.csv", "predictions.png", "pseudo_labels.png", "curves.png", "history.csv"): print(run/name)

def _save(fig, path):
    import matplotlib.pyplot as plt
    with atomic_path(path) as tmp: fig.savefig(tmp, dpi=110)
    plt.close(fig)


# %% [markdown]
# A toy version of the toy, to see that it runs (the real one is `make demo`):

# %%
import contextlib, io, tempfile
with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(io.StringIO()) as said:
    run_demo(Path(d)/"demo", "../data_sample", settings=("width=4", "image_size=64", "epochs=2", "fold=-1", "keep=8"), progress=False)
    pictures = [plt.imread(Path(d)/"demo"/f"{n}.png") for n in ("predictions", "pseudo_labels")]
for img in pictures: plt.figure(figsize=(8, 6)); plt.imshow(img); plt.axis("off"); plt.show()

# %%
#| hide
import nbdev; nbdev.nbdev_export()
