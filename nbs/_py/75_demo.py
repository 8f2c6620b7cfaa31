# %% [markdown]
# # Demo
#
# > The whole job on a small sample: train, predict, score, and a picture to look at.
#
# - skip_showdoc: true

# %%
#| default_exp demo

# %% [markdown]
# `make demo` is what a newcomer runs first. It has to show the real thing, in minutes, on a laptop: ten annotated slices, fourteen without annotation, eight test slices, 54 structures. Nobody learns 54 structures from ten
# slices; the point is that every step is the one a real run takes, and that the large structures come out.

# %%
#| export
import shutil, time
from dataclasses import replace
from pathlib import Path

import numpy as np

from ctseg.data import SliceSet, read_challenge, read_masks
from ctseg.device import pick_device
from ctseg.files import InputError, atomic_path
from ctseg.metrics import evaluate_files
from ctseg.phantom import make_phantom
from ctseg.predict import load_predictor, predict_masks, write_submission
from ctseg.recipes import DEFAULT_RECIPE, fit, get_recipe
from ctseg.train import apply_settings

# %%
#| hide
import matplotlib.pyplot as plt


# %% [markdown]
# ## The picture
#
# A row a slice: what the scanner saw, the truth, what was predicted. Slices are chosen to show the range: the best, the median and the worst.

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
# ## The job

# %%
#| export
DEMO = ("width=16", "image_size=64", "epochs=400", "batch_size=5", "lr=0.004", "fold=-1")

def run_demo(out, data="data_sample", overwrite: bool = False, settings=DEMO, progress: bool = True):
    "Train on `data`, predict its test slices, score, draw; everything lands in `out`."
    out, data, start = Path(out), Path(data), time.monotonic()
    if out.exists() and overwrite: shutil.rmtree(out)
    if not data.exists():
        data = out.parent/f"{out.name}_data"
        print(f"no sample here: drawing one into {data}")
        make_phantom(data, labelled=10, unlabelled=14, test=8, size=256, seed=0)
    run = fit(data, apply_settings(get_recipe(DEFAULT_RECIPE), settings), out, progress=progress)
    test = read_challenge(data, "test")
    pred = predict_masks(load_predictor(run.folder, pick_device()), test.images)
    write_submission(pred, test.names, run/"submission.csv")
    truth = next(p for p in (data/"y_test.csv", data/"y_test.csv.gz") if p.exists())
    result = evaluate_files(truth, run/"submission.csv")
    report_demo(run, test, pred, result)
    print(f"{time.monotonic() - start:.0f} s in all")


# %%
#| export
def report_demo(run, test: SliceSet, pred: np.ndarray, result: dict):
    "Print the score and the best classes; save the picture."
    import matplotlib.pyplot as plt
    table = result["table"]
    print(table.loc[table.support > 0, ["support", "dice"]].sort_values("dice", ascending=False).head(10).to_string(float_format="{:.2f}".format))
    fig = plot_predictions(test, pred)
    with atomic_path(run/"predictions.png") as tmp: fig.savefig(tmp, dpi=110)
    plt.close(fig)
    print(f"\nDice on {len(test)} test slices, mean of all classes: {result['facts']['dice']:.3f}")
    for name in ("submission.csv", "predictions.png", "curves.png", "history.csv"): print(run/name)


# %% [markdown]
# A toy version of the toy, to see that it runs (the real one is `make demo`):

# %%
import contextlib, io, tempfile
with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(io.StringIO()) as said:
    run_demo(Path(d)/"demo", "../data_sample", settings=("width=4", "image_size=64", "epochs=2", "fold=-1"), progress=False)
    img = plt.imread(Path(d)/"demo"/"predictions.png")
plt.figure(figsize=(6, 6)); plt.imshow(img); plt.axis("off"); plt.show()

# %%
#| hide
import nbdev; nbdev.nbdev_export()
