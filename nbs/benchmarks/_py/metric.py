# %% [markdown]
# # How fast is the metric?
#
# > The challenge's Dice on 500 images x 54 classes x 256 x 256: one count of pairs an image against the loop over images and classes.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** How fast is the challenge's Dice as this package computes it?
#
# **Answer.** Five hundred images with 54 classes take 0.04 seconds of processor time. The double loop takes 37 times as long as it is usually written, and nine times as long at its best.
#
# ## How it was measured
#
# [Metrics](../metrics/10_challenge.ipynb) defines the score by two loops and computes it from one table of (predicted, true) pairs an image.
# Validation runs it every epoch and the choice of a decision rule runs it dozens of times, so the difference is felt. Both are timed in
# one process on the same masks, taking turns, three rounds, and the least CPU time counts (all are single-threaded).

# %%
import platform, time
import numpy as np
import pandas as pd
from ctseg.metrics.bootstrap import paired_bootstrap
from ctseg.metrics.challenge import dice_table
from ctseg.metrics.surface import surface_dice

# %% [markdown]
# Up to twelve discs a slice, with radii of 4 to 59 pixels, the later ones over the earlier; the prediction draws nine of ten of them, two columns off.

# %%
rng = np.random.default_rng(0)
y, x = np.mgrid[:256, :256]
truth, pred = np.zeros((2, 500, 256, 256), np.uint8)
for t, p in zip(truth, pred):
    for cy, cx, r, c in rng.integers([30, 30, 4, 1], [226, 226, 60, 55], (12, 4)):
        t[(y - cy)**2 + (x - cx)**2 < r*r] = c
        if rng.random() < .9: p[(y - cy)**2 + (x - cx - 2)**2 < r*r] = c
print(
    f"foreground {np.mean(truth > 0):.2f}, classes a slice "
    f"{np.mean([len(np.unique(t)) - 1 for t in truth]):.1f}"
)


# %%
def double_loop(pred, truth, C):
    "The definition, with the cheapest NumPy operations that say it."
    out = np.empty((len(truth), C))
    for n in range(len(truth)):
        for c in range(1, C + 1):
            a, b = pred[n] == c, truth[n] == c
            size = np.count_nonzero(a) + np.count_nonzero(b)
            out[n, c - 1] = 2*np.count_nonzero(a & b)/size if size else np.nan
    return out

def double_loop_plain(pred, truth, C):
    "The same as it is usually written, with products and sums."
    out = np.empty((len(truth), C))
    for n in range(len(truth)):
        for c in range(1, C + 1):
            a, b = pred[n] == c, truth[n] == c
            out[n, c - 1] = np.nan if a.sum() == 0 and b.sum() == 0 else 2*(a*b).sum()/(a.sum() + b.sum())
    return out

def timed(f, *args):
    start = time.process_time()
    out = f(*args)
    return time.process_time() - start, out

FORMS = {
    "double loop, as usually written": double_loop_plain,
    "double loop, count_nonzero": double_loop,
    "ctseg": dice_table,
}
seconds = {name: [] for name in FORMS}
for _ in range(3):
    tables = {}
    for name, f in FORMS.items():
        s, tables[name] = timed(f, pred, truth, 54)
        seconds[name].append(s)
for t in tables.values(): np.testing.assert_allclose(t, tables["ctseg"], rtol=0, atol=1e-12)

# %%
cpu = next(
    (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
    platform.processor(),
)
print(f"{cpu}, Python {platform.python_version()}, NumPy {np.__version__}")
best = pd.Series({k: min(v) for k, v in seconds.items()})
pd.DataFrame({"seconds": best.round(2), "times ctseg": (best/best["ctseg"]).round(1)})

# %%
assert best.iloc[0] >= 20*best["ctseg"]

# %% [markdown]
# The interval and the surfaces, for scale: 2000 draws of a paired comparison on the same 500 x 54 table in groups of ten, and the surface
# Dice of all cells.

# %%
groups = np.arange(500)//10
print(
    f"paired bootstrap, 2000 draws: "
    f"{timed(paired_bootstrap, tables['ctseg'], tables['ctseg'], groups)[0]*1e3:.0f} ms"
)
print(f"surface Dice, 500 x 54: {timed(surface_dice, pred, truth, 54)[0]:.1f} s")
