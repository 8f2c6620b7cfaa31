# %% [markdown]
# # Pictures
#
# > Slices and figures in so little space that a whole report is one file.
#
# - skip_showdoc: true

# %%
#| default_exp report.pictures

# %%
#| export
import base64
import contextlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from ctseg.data.slices import SliceSet
from ctseg.metrics.challenge import overlaps
from ctseg.training.curves import plot_curves

if TYPE_CHECKING:
    import pandas as pd  # slow, and the functions get their tables
    from matplotlib.figure import Figure

# %%
#| hide
import base64
import io
import zlib

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from fastcore.test import test_eq
from IPython.display import SVG
from PIL import Image

from ctseg.data.toys import toy_set
from ctseg.metrics.challenge import dice_table


# %% [markdown]
# [The page](40_page.ipynb) is **one file**: it can be kept beside the weights, mailed, opened on a phone. That sets a budget of 300 slices in less than 5 MB.
#
# A CT slice of 256×256 as PNG takes some 40 kB, 300 of them 12 MB. WebP brings one to 6 kB, and under a coloured overlay nobody sees the difference. Masks must be exact. They are nearly all long runs of one number, so plain zlib brings truth and prediction together to two or three kB. The browser unpacks them (`DecompressionStream`) and colours them on a canvas, so that the overlay can be faded and single structures picked out.

# %%
#| export
def picture(image: np.ndarray) -> str:
    "A grey image uint8 [H, W] as WebP in base64."
    f = io.BytesIO()
    Image.fromarray(image).save(f, "WEBP", quality=60, method=6)
    return base64.b64encode(f.getvalue()).decode()

def pack(*masks: np.ndarray) -> str:
    "Masks uint8 [H, W] one after the other, compressed by zlib, in base64."
    return base64.b64encode(zlib.compress(np.stack(masks).tobytes(), 9)).decode()


# %%
#| fig-alt: "A toy slice as raw pixels and as compressed text: they look the same"
slices, truth = toy_set(24, labelled=24, size=64)
i = 3
small, packed = picture(slices.images[i]), pack(truth[i], np.roll(truth[i], 3))
fig, axes = plt.subplots(1, 2, figsize=(4, 2.2), dpi=60, layout="constrained")
axes[0].imshow(slices.images[i], cmap="gray")
axes[0].set_title(f"{slices.images[i].nbytes/1e3:.1f} kB of pixels")
axes[1].imshow(Image.open(io.BytesIO(base64.b64decode(small))), cmap="gray")
axes[1].set_title(f"{len(small)/1e3:.1f} kB as text")
for ax in axes: ax.set_axis_off()
print(f"two masks: {2*truth[i].nbytes/1e3:.1f} kB, packed {len(packed)/1e3:.1f} kB")
test_eq(np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).reshape(2, 64, 64)[0], truth[i])


# %% [markdown]
# ## Which slices, and under which names
#
# The page shows all slices if they are few enough, else a fair sample of the best, the worst and those in between.
#
# A report is fit to be shown only if it names no patient. A file name may hold one, so only names that are plain numbers are shown. Any other slice is called by its place in the list.

# %%
#| export
def spread_over_ranks(score: np.ndarray, most: int) -> np.ndarray:
    "At most `most` positions, worst first, evenly over the ranks of `score` [N]; NaN comes last."
    order = np.argsort(score, kind="stable")
    if len(order) <= most: return order
    ranks = np.linspace(0, len(order) - 1, most).round().astype(int)
    return order[ranks]


# %%
test_eq(spread_over_ranks(np.array([.5, .1, np.nan, .9, .2]), 3), [1, 0, 2])
print(spread_over_ranks(np.arange(300), 7))


# %%
#| export
def shown_name(name: str, position: int) -> str:
    "The file's name if it is a plain number, else its place in the list."
    return name if re.fullmatch(r"\d{1,9}\.png", name) else f"slice {position + 1}"


# %%
print([shown_name(name, 3) for name in ("17.png", "Smith_John_1954.png", "12345678901234.png")])


# %% [markdown]
# ## A slice for the page
#
# Each structure on a slice is in one of four states: *found*, *missed*, *invented*, or *unknown* where it was predicted and nobody examined it. The last is neither right nor wrong, and the page must not show it as an error.

# %%
#| export
def rounded(value: float, digits: int) -> float | None:
    "A number for JSON: rounded, None for NaN."
    return None if np.isnan(value) else round(float(value), digits)

def cell_states(
    predicted: np.ndarray, # [C], pixels predicted of each class
    true: np.ndarray, # [C], pixels of the truth
    known: np.ndarray, # bool [C], the class was examined
    dice: np.ndarray, # float [C]
) -> list[list]: # [id, state, Dice or None] of each class on the slice
    "What became of each structure that is on a slice, or was predicted there."
    cells = []
    for c in np.flatnonzero(predicted + true > 0):
        if not known[c]: state = "unknown"
        elif not predicted[c]: state = "missed"
        elif not true[c]: state = "invented"
        else: state = "found"
        cells.append([int(c) + 1, state, rounded(dice[c], 3)])
    return cells


# %%
predicted, true = np.array([5, 0, 3, 2, 0]), np.array([4, 6, 0, 0, 0])
known, dice = np.array([1, 1, 1, 0, 1], bool), np.array([.8, 0, 0, np.nan, np.nan])
for cell in cell_states(predicted, true, known, dice): print(cell)


# %%
#| export
def row_means(table: np.ndarray) -> np.ndarray:
    "The mean of each row of [N, C], without NaN; NaN for rows that have nothing else."
    counted = ~np.isnan(table)
    empty = np.full(len(table), np.nan)
    return np.divide(np.nansum(table, 1), counted.sum(1), out=empty, where=counted.any(1))


# %%
print(row_means(np.array([[.5, np.nan, 1], [np.nan, np.nan, np.nan]])))


# %%
#| export
def without_truth(slices: SliceSet) -> SliceSet:
    "`slices` with nothing outlined and nothing examined."
    return replace(slices, masks=np.zeros_like(slices.masks), known=np.zeros_like(slices.known))

def pack_slices(
    slices: SliceSet,
    pred: np.ndarray, # uint8 [N, H, W]
    most: int = 300,
    truth: bool = True, # False: there is none, the masks are not looked at
) -> list[dict[str, Any]]: # name, image, masks (truth, prediction), known (ids), cells, dice
    "At most `most` slices as the page wants them, worst first."
    slices = slices if truth else without_truth(slices)
    both, predicted, true = overlaps(pred, slices.masks, len(slices.classes), slices.classes.unions)
    with np.errstate(invalid="ignore", divide="ignore"):
        dice = np.where(slices.known, 2*both/(predicted + true), np.nan)
    score = row_means(dice)
    packed = []
    for n in spread_over_ranks(score, most):
        packed.append({
            "name": shown_name(slices.names[n], n),
            "image": picture(slices.images[n]),
            "masks": pack(slices.masks[n], pred[n]),
            "known": (np.flatnonzero(slices.known[n]) + 1).tolist(),
            "cells": cell_states(predicted[n], true[n], slices.known[n], dice[n]),
            "dice": rounded(score[n], 4),
        })
    return packed


# %%
nearly = np.roll(truth, 5, axis=2)
packed = pack_slices(slices, nearly)
# on the others nothing that was examined is there, or predicted
scored = [s for s in packed if s["dice"] is not None]
worst, best = scored[0], scored[-1]
print(f"worst: {worst['name']}, Dice {worst['dice']}, {worst['cells']}")
print(f"best: {best['name']}, Dice {best['dice']}, {best['cells']}")
test_eq([s["dice"] for s in scored], sorted(s["dice"] for s in scored))
examined = np.where(slices.known, dice_table(nearly, slices.masks, 3), np.nan)
test_eq(worst["dice"], round(float(np.nanmean(examined[slices.names.index(worst["name"])])), 4))
test_eq({c[1] for s in pack_slices(slices, nearly, truth=False) for c in s["cells"]}, {"unknown"})


# %% [markdown]
# ## Figures
#
# Figures are SVG, drawn by matplotlib and given the page's own text colour, so that they are readable on a dark screen as well. They hold no date and no version, so the same run gives the same bytes.

# %%
#| export
@contextlib.contextmanager
def without_epoch() -> Iterator[None]:
    "Within the block matplotlib finds no `SOURCE_DATE_EPOCH`, of which it reads even a date that is not written."
    epoch = os.environ.pop("SOURCE_DATE_EPOCH", None)
    try:
        yield
    finally:
        if epoch is not None: os.environ["SOURCE_DATE_EPOCH"] = epoch

def svg(fig: "Figure", salt: str) -> Markup:
    "A matplotlib figure as SVG without metadata, in the colour of the text around it; `salt` seeds its ids."
    import matplotlib as mpl  # slow, and only needed here
    import matplotlib.pyplot as plt
    f = io.StringIO()
    with without_epoch(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        fig.savefig(f, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(fig)
    text = f.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = text.replace("#000000", "currentColor")
    return Markup(re.sub(r' id="\w+_\d+"', "", text))


# %%
fig, ax = plt.subplots(figsize=(2, 1.2))
ax.set_title("loss", color="#000000")
text = svg(fig, "example")
print(text[:70], "…", len(text), "characters")
assert "currentColor" in text and "<metadata" not in text


# %%
#| export
def curves(history: "pd.DataFrame") -> Markup:
    "Loss, and Dice where slices were held out, over the epochs of a `history.csv`."
    return svg(plot_curves(history), "curves")


# %%
#| fig-alt: "Loss and held-out Dice against the epoch, as the report draws them"
epoch = np.arange(1, 21)
history = pd.DataFrame(
    {
        "phase": "supervised",
        "epoch": epoch,
        "loss": np.exp(-epoch/6) + .2,
        "dice": .8 - .7*np.exp(-epoch/8),
    }
)
figure = curves(history)
test_eq(figure, curves(history))
# nothing was held out: one panel
assert "held-out" in figure and "held-out" not in curves(history.assign(dice=np.nan))
SVG(figure.replace("currentColor", "#333"))


# %% [markdown]
# The original method keeps the pseudo-labelled slices of highest confidence. This figure shows where it drew the line.

# %%
#| export
def kept_and_rejected(table: "pd.DataFrame", score: str) -> "Figure":
    "How pseudo-labelled slices (columns `kept` and `score`) are spread over the score they were ranked by."
    import matplotlib.pyplot as plt  # slow, and only needed here
    fig, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
    values = table[score]
    bins = np.linspace(values.min(), values.max() + 1e-9, 31)
    for kept, colour, label in ((1, "C0", "kept"), (0, "C1", "rejected")):
        ax.hist(values[table.kept == kept], bins, color=colour, alpha=.75, label=label)
    ax.set(xlabel=f"confidence ({score})", ylabel="slices")
    ax.legend(frameon=False)
    return fig


# %%
#| fig-alt: "A histogram of confidences, with the kept slices above a threshold in another colour"
confidence = np.random.default_rng(0).beta(4, 2, 200)
fig = kept_and_rejected(pd.DataFrame({"sdc": confidence, "kept": (confidence > .7).astype(int)}), "sdc")
