# %% [markdown]
# # Do neighbouring slices help?
#
# > The same network on volumes of the phantom, with and without the slices beside each slice.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** With `--set context=1` a network sees each slice of a volume [with the one below and the one above](../data/09_stacks.ipynb). Does it segment
# better than one that sees each slice alone?
#
# **Answer.** Not reliably in trainings as short as these. After 12 epochs the networks with neighbours are behind by 0.042 (0.030 to 0.053 over patients), after 24 epochs
# they are ahead by 0.012 (0.003 to 0.022); by each run's own decision rule the latter is 0.010, and its interval reaches zero. From seed to seed the difference
# goes from −0.13 to +0.04 after 12 epochs and from −0.01 to +0.04 after 24, which is more than either mean: three seeds do not tell the two apart. A network that sees three slices
# must first learn which of them it is to label, so give it the longer training if you try it. On [real scans](#on-real-scans) it is 0.018 ahead (0.009 to 0.029), in two of
# three seeds (−0.010, +0.028, +0.037).
#
# ## How it was measured
#
# 48 patients of the phantom, each scanned for 14 axial slices of the belly, 64x64 pixels, 5 mm apart, and imported with the usual window as any scan is. 32 patients are learnt
# from, four of them held out; 16 are scored, by the challenge's Dice over 14 structures. Both networks are Attention U-Nets of width 8 with the recipe
# `marginal-log`, and take the same steps (24 an epoch), on one thread of a processor. They differ in the first convolution alone: 144 of 548,000 weights.
#
# ```
# python tools/context.py --data FOLDER
# ```
#
# Intervals are [bootstraps over patients](../metrics/40_bootstrap.ipynb) of the mean of the seeds, paired where two networks are compared.

# %%
from pathlib import Path

import numpy as np
import pandas as pd

from ctseg.metrics.bootstrap import bootstrap_mean, paired_bootstrap

folder = Path("results/context")


def seeds_of(epochs):
    "The seeds with which both networks were trained for so long."
    return [s for s in range(3) if all((folder/f"{epochs}-{c}-s{s}.npz").exists() for c in (0, 1))]


def tables_of(epochs, context, rule="argmax"):
    "The Dice of every cell by one decision, [seeds, slices, structures]."
    files = [np.load(folder/f"{epochs}-{context}-s{s}.npz") for s in seeds_of(epochs)]
    return np.stack([file[rule] for file in files])


lengths = [epochs for epochs in (12, 24) if seeds_of(epochs)]
first = np.load(folder/"12-0-s0.npz")
groups, place, names = (first[key] for key in ("groups", "place", "classes"))
rows = []
for epochs in lengths:
    for context in (0, 1):
        tables = tables_of(epochs, context)
        score = bootstrap_mean(tables, groups)
        each = " ".join(f"{bootstrap_mean(table, groups, reps=1)['mean']:.3f}" for table in tables)
        interval = f"{score['low']:.3f} … {score['high']:.3f}"
        rows.append((epochs, context, round(score["mean"], 3), interval, each))
pd.DataFrame(rows, columns=["epochs", "context", "Dice", "95 %", "each seed"])

# %% [markdown]
# The difference, above zero where the neighbours help, by argmax and by the decision rule of each run:

# %%
rows = []
for epochs in lengths:
    for rule in ("argmax", "rule"):
        d = paired_bootstrap(tables_of(epochs, 1, rule), tables_of(epochs, 0, rule), groups)
        rows.append((epochs, rule, round(d["difference"], 3), f"{d['low']:+.3f} … {d['high']:+.3f}"))
pd.DataFrame(rows, columns=["epochs", "decision", "difference", "95 % over patients"])

# %% [markdown]
# The interval holds the luck of which patients were scored, not that of a training. What a seed changes is in the first table.
#
# ## Where

# %%
longest = lengths[-1]
of_class = {c: np.nanmean(tables_of(longest, c), (0, 1)) for c in (0, 1)}
per_class = pd.DataFrame(of_class, index=names)
per_class["difference"] = per_class[1] - per_class[0]
per_class.sort_values("difference").round(3)

# %% [markdown]
# The first and the last slice of a scan have one neighbour, and black in place of the other:

# %%
ends = (place == 0) | (place == place.max())
rows = []
for what, where in (("at an end", ends), ("between", ~ends)):
    one, other = (tables_of(longest, c)[:, where] for c in (1, 0))
    d = paired_bootstrap(one, other, groups[where])
    rows.append((what, int(where.sum()), round(d["difference"], 3), f"{d['low']:+.3f} … {d['high']:+.3f}"))
pd.DataFrame(rows, columns=["slices", "number", "difference", "95 % over patients"])

# %% [markdown]
# ## On real scans
#
# 47 patients of [OpenKBP](../io/80_openkbp.ipynb), with the contours of their clinics. Of each 64 slices that follow each other, downward from the topmost one with a contour, 2.5 to 3 mm
# apart, cut to 64x64 pixels of 4 to 5 mm, with one window. 32 patients are learnt from with whatever was contoured on them; 15 on whom all
# seven organs were contoured are scored. Networks, recipe and settings as above, 5 epochs of 104 steps, about as many as 24 epochs of the phantom.
#
# ```
# python tools/context.py --data FOLDER --openkbp CLONE --epochs 5
# ```

# %%
real = [s for s in range(3) if all((folder/f"openkbp-5-{c}-s{s}.npz").exists() for c in (0, 1))]
files = {c: [np.load(folder/f"openkbp-5-{c}-s{s}.npz") for s in real] for c in (0, 1)}
patients, place, organs = (files[0][0][key] for key in ("groups", "place", "classes"))
rows = []
for rule in ("argmax", "rule"):
    single, stacked = (np.stack([file[rule] for file in files[c]]) for c in (0, 1))
    d = paired_bootstrap(stacked, single, patients)
    each = [paired_bootstrap(a, b, patients)["difference"] for a, b in zip(stacked, single)]
    means = [round(bootstrap_mean(table, patients, reps=1)["mean"], 3) for table in (single, stacked)]
    seeds = " ".join(f"{difference:+.3f}" for difference in each)
    rows.append((rule, *means, round(d["difference"], 3), f"{d['low']:+.3f} … {d['high']:+.3f}", seeds))
columns = ["decision", "single", "with neighbours", "difference", "95 % over patients", "each seed"]
pd.DataFrame(rows, columns=columns)

# %%
of_organ = {c: np.nanmean([file["argmax"] for file in files[c]], (0, 1)) for c in (0, 1)}
of_organ = pd.DataFrame(of_organ, index=organs)
of_organ["difference"] = of_organ[1] - of_organ[0]
of_organ.sort_values("difference").round(3)

# %% [markdown]
# One network lost 0.010 by its neighbours, the two others gained 0.028 and 0.037. The interval over patients is clear of zero; that over seeds is not, with three of them.
# No organ changes by more than 0.05; the oesophagus, which is found least of all, gains most.
#
# ## What is left open
#
# These networks are small and far from trained to the end, and the phantom is not a person: it is smoother along the body, and its noise is independent
# from slice to slice. `context=2`, thinner slices, longer trainings on real scans, pretrained encoders and the semi-supervised methods were not measured.
