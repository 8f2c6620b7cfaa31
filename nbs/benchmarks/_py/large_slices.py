# %% [markdown]
# # A pretrained encoder on larger slices
#
# > Real CT of 256 pixels from seven public sources, each of which outlines other organs: the Attention U-Net from random numbers against an encoder that has seen photographs.
#
# - skip_showdoc: true

# %% [markdown]
# **The question.** On slices of 64 pixels a pretrained encoder is [not worth its time](pretrained.ipynb). And on large ones?
#
# **The answer.** Mostly yes. For the same processor time it is ahead with each of three seeds, by 0.035 on average. The interval over 31 patients is wide and contains zero. Kidney, liver, spleen and tumour gain much, the hepatic vessels and the aorta (one patient) lose. It learns faster from the first epoch on.
#
# So the recipe `ctseg` takes it from 128 pixels on. Nothing was measured between 64 and 192 pixels. 128 is the size from which slices are no longer enlarged for it.
#
# ## What was compared
#
# Seven public sources of abdominal CT (CURVAS, NIH pancreas, IRCAD, two tasks of the Medical Segmentation Decathlon, CHAOS, and an aorta), [merged](../guides/three_hospitals.ipynb) into one folder: 213 training and 71 test slices of other patients, seven structures, of which a slice is examined for one to three. Two licences forbid commercial use, so the folder is not part of this project.
#
# Both networks learn by `marginal-log` for as many steps at 192 pixels, in bfloat16, which costs both about the same processor time. `lite0` has a light decoder, and its first two levels stay as they are, as in the recipe `ctseg`. Three seeds; argmax. A test slice counts for the structures that its source examined.

# %%
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, "../../paper")
from measured import argmax, compare, load

from ctseg.metrics.challenge import mean_dice

runs = load(Path("results/large"))
lines = []
for name, seeds in runs.items():
    for seed, run in sorted(seeds.items()):
        facts = run["facts"]
        held_out = facts["metrics"]["dice held out, argmax"]
        line = {"network": name, "seed": seed, "processor s": facts["processor_seconds"]}
        lines.append({**line, "held out": held_out, "test": mean_dice(argmax(run))})
table = pd.DataFrame(lines)
table.style.format({"held out": "{:.3f}", "test": "{:.3f}"}).hide(axis="index")

# %%
difference = compare(runs, "lite0", "attunet", argmax)
print(
    f"lite0 minus attunet, test, seeds {difference['seeds']}: {difference['difference']:+.3f} "
    f"({difference['low']:+.3f} to {difference['high']:+.3f}), better in {difference['wins']}"
)

# %% [markdown]
# By structure, the mean of the seeds:

# %%
by_class = {n: np.mean([np.nanmean(argmax(r), axis=0) for r in s.values()], axis=0) for n, s in runs.items()}
first = runs["attunet"][0]
pd.DataFrame(by_class, index=first["classes"]).T.style.format(precision=2)

# %% [markdown]
# How fast they learn, on the held-out slices:

# %%
#| fig-alt: "Held-out Dice against the epoch for two networks, three trainings of each"
import io

import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
for colour, (name, seeds) in zip(("C1", "C0"), runs.items()):
    for seed, run in seeds.items():
        history = pd.read_csv(io.StringIO(str(run["history"])))
        ax.plot(history.epoch, history.dice, color=colour, lw=1, label=name if seed == 0 else None)
ax.set(xlabel="epoch", ylabel="Dice of held-out slices")
ax.legend(frameon=False)
plt.show()
