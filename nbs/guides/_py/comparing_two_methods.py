# %% [markdown]
# # Comparing two methods fairly
#
# > The same slices, the same budget, several seeds, and an interval for the difference.

# %% [markdown]
# Two trainings of the *same* recipe with different seeds often differ by more than two recipes do. So one run of each shows next to nothing. A comparison is worth something if
#
# 1. both methods learn from the same slices and are scored on the same other ones (`fold` and `folds` alike, for both);
# 2. both get the same budget: equal optimiser steps, to ask which method is better, or equal time, to ask which one to use ([what a method costs](choosing_a_recipe.ipynb#what-a-method-costs));
# 3. each is trained with at least three seeds (`--seed`);
# 4. nothing was chosen on the slices that decide: settings and decision rule come from held-out slices, the verdict from test slices of other patients;
# 5. the **difference** has an interval, drawn over patients and from the same draws for both.
#
# ## From the command line
#
# ```sh
# for seed in 0 1 2; do
#     ctseg fit my_data --out runs/plain-$seed --recipe marginal      --seed $seed --set fold=0
#     ctseg fit my_data --out runs/log-$seed   --recipe marginal-log  --seed $seed --set fold=0
# done
# ctseg report runs/plain-0 runs/log-0 runs/plain-1 runs/log-1 --data my_data      # writes runs/plain-0/comparison.html
# ```
#
# The page compares every run with the first one, on slices that none has learnt from, and lists the settings in which their recipes differ. If that list is longer than the one thing you
# wanted to compare, the comparison is about something else.
#
# ## Three seeds each, one interval
#
# Does longer training help? Here 4 epochs are compared with 12, on toy slices of a body. Both are trained with three seeds and scored on slices of other patients, on which every structure
# is known.

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import ctseg
from ctseg.data.toys import toy_set

keep = tempfile.TemporaryDirectory()

# %%
train, _ = toy_set(40, labelled=40, size=32)
test, truth = toy_set(40, labelled=0, size=32, seed=5)

def masks_of(epochs, seed):
    "What a network predicts for the test slices after so many epochs: uint8 [N, H, W]."
    recipe = ctseg.get_recipe("marginal-log").change(width=8, epochs=epochs, fold=-1, lr=5e-3, ema=0.9)
    out = Path(keep.name)/f"{epochs}-{seed}"
    run = ctseg.fit(train, recipe, out, seed=seed, device="cpu", progress=False)
    return ctseg.load(run.folder, "cpu").predict(test.images)

seeds = (0, 1, 2)
short = [masks_of(4, seed) for seed in seeds]
longer = [masks_of(12, seed) for seed in seeds]

# %% [markdown]
# `dice_table` gives the Dice of each slice and structure, [N, C]. The tables of one method are stacked, [seeds, N, C], and averaged cell by cell. `paired_bootstrap` draws whole patients, the same ones for both
# methods, so a hard patient weighs on both.

# %%
from ctseg.metrics.bootstrap import paired_bootstrap
from ctseg.metrics.challenge import dice_table, mean_dice

C = len(test.classes)
short_tables = np.stack([dice_table(masks, truth, C) for masks in short])
longer_tables = np.stack([dice_table(masks, truth, C) for masks in longer])
result = paired_bootstrap(longer_tables, short_tables, test.groups)

pd.DataFrame({
    "4 epochs": [mean_dice(table) for table in short_tables],
    "12 epochs": [mean_dice(table) for table in longer_tables],
}, index=[f"seed {seed}" for seed in seeds]).round(3)

# %%
low, high = result["low"], result["high"]
print(f"difference {result['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}")
print(result["groups"], "patients")

# %%
#| echo: false
#| fig-alt: "The score of three seeds for each of two lengths of training, as points; beside it the difference with its interval"
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4), layout="constrained", width_ratios=[3, 2])
for row, tables in enumerate((short_tables, longer_tables)):
    axes[0].plot([mean_dice(table) for table in tables], [row]*len(seeds), "o", color="C0")
axes[0].set(xlabel="Dice, one point a seed", ylim=(-.6, 1.6))
axes[0].set_yticks([0, 1], ["4 epochs", "12 epochs"])
middle = result["difference"]
axes[1].errorbar([middle], [0], xerr=[[middle - low], [high - middle]], fmt="o", color="C0", capsize=4)
axes[1].axvline(0, color="0.6", lw=1)
axes[1].set(yticks=[], xlabel="difference of the Dice, 95 % interval", title="12 epochs − 4 epochs")
plt.show()

# %% [markdown]
# The interval lies on one side of 0, so the difference is larger than what other patients would explain. It speaks of patients, not of seeds: the points on the left show how far seeds alone
# move the score. Where the clouds of points overlap widely, train more seeds before you believe a small difference.
#
# If the interval contains 0, the honest sentence is "no difference was found with so many patients and seeds", not "they are the same".
#
# ## Mistakes that look like results
#
# | mistake | why it misleads |
# |---|---|
# | one seed each | the better seed wins |
# | two intervals side by side instead of one for the difference | a hard patient widens both; a clear difference hides |
# | slices as independent pieces of evidence | slices of one patient resemble each other, so the interval comes out too narrow. Give the patients (`groups`) |
# | the best of ten settings against the default of the other | the ten were chosen on the slices that judge. Tune both alike, then score once on the test |
# | a semi-supervised method at equal epochs | it sees [two to nine times](choosing_a_recipe.ipynb#what-a-method-costs) as many images |
# | one method with its chosen rule, the other by argmax | the rule is part of the score. Compare both by their rules, or both by argmax; the comparison page shows both |
#
# What of the package's own claims was measured, and with how many seeds: [what held](../benchmarks/claims.ipynb).

# %%
#| hide
assert result["low"] > 0
keep.cleanup()
