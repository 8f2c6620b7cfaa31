# %% [markdown]
# # Confidence
#
# > A teacher labels what nobody annotated. Which of it should a student believe?

# %% [markdown]
# Every semi-supervised method needs one number: *how sure is the teacher?* UniMatch asks it of each pixel. Self-training asks it of each structure on a slice. The original project asked it of each slice and kept the surest 800 of 1200. The number needs one virtue
# only: **what it ranks higher must be better**. It need not be a probability, and it need not be large.
#
# This page explains the scores that `ctseg` offers and why the most obvious one is weak. How they are computed is in [the notebook of pseudo-labels](../methods/20_pseudo.ipynb).

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from fastcore.test import test_close
from scipy.stats import spearmanr
from ctseg.inference.confidence import image_confidence, soft_dice_confidence

# %% [markdown]
# ## Two slices
#
# Two slices, one structure. On the first the teacher sees a large organ and is fairly sure of it. On the second it sees four doubtful pixels and nothing else. Which pseudo-label would you rather learn from?

# %%
size = 64
y, x = np.mgrid[:size, :size]
organ, speck = (y - 32)**2 + (x - 28)**2 < 300, (abs(y - 40) < 1) & (abs(x - 44) < 2)
prob = torch.full((2, 1, size, size), 1e-3)
prob[0, 0][torch.tensor(organ)], prob[1, 0][torch.tensor(speck)] = .85, .55
label = (prob[:, 0] > .5).long()
scores = image_confidence(prob, label, "sigmoid")
values = {name: score.numpy() for name, score in scores.items()}
table = pd.DataFrame(values, ["the organ", "the speck"]).T
table["prefers"] = table.idxmax(axis=1)
table.round(3)

# %%
#| hide
assert table.prefers["max"] == "the speck" and table.prefers["sdc"] == "the organ"

# %% [markdown]
# * **`max`**, the original's filter, is the mean certainty of all pixels. Nearly all pixels are background and nearly certain, so the score measures *how little is on the slice*. It prefers the speck, and empty slices most of all.
# * **`entropy`** averages another function of the probability over all pixels, and has the same fault.
# * **`foreground`** looks at the pixels that were given a label. It does not count air, but it does not see what was left out.
# * **`sdc`**, the soft Dice confidence, asks the question that matters: *if the probabilities are right, what Dice can this label map expect?* For a label $L$ and probabilities $p$ it is
#
# $$\mathrm{SDC} = \frac{2\sum_i p_i L_i}{\sum_i p_i + \sum_i L_i},$$
#
# averaged over the structures found ([Borges et al. 2024](https://arxiv.org/abs/2402.10665)). A halo of doubtful pixels around the label lowers it, and so does a label of doubtful pixels. For *one* structure it has a second use: it is the confidence of a **cell**, by which
# [self-training](../methods/60_self_training.ipynb) accepts structures one by one.
# * **`agreement`** needs several teachers: the Dice between what each of them draws. It catches what a single network cannot know, namely where it is sure and would have been sure of something else with another seed.
#
# SDC is the expected Dice, nearly. To see it, draw truths from the probabilities and measure:

# %%
rng = np.random.default_rng(0)
blob = np.clip(np.exp(-((y - 32)**2 + (x - 30)**2)/260)*1.1, 0, .97)  # probabilities [H,W]
drawn = blob > .5
truths = rng.random((400, size, size)) < blob  # 400 of them, pixel by pixel
common = (truths & drawn).sum((1, 2))
dice = 2*common/(truths.sum((1, 2)) + drawn.sum())
prob, label = torch.tensor(blob)[None, None].float(), torch.tensor(drawn)[None].long()
expected = soft_dice_confidence(prob, label).item()
print(f"mean Dice of 400 drawn truths {dice.mean():.3f}, soft Dice confidence {expected:.3f}")
test_close(dice.mean(), expected, eps=.01)

# %% [markdown]
# Real mistakes are not independent from pixel to pixel, and a network's probabilities are not [calibrated](../inference/50_calibration.ipynb). So the number is no forecast of the Dice. A ranking does not need one.
#
# ## Does it rank better on real CT?
#
# We take 300 slices whose truth the teachers never saw, and compare a score of each slice with the Dice it really reached. Rank correlation is 1 if the score sorts the slices as their Dice does, and 0 if it knows nothing. The teachers are three networks with the masked loss, whose probabilities are averaged. [All scores of all teachers](../benchmarks/confidence.ipynb#of-a-whole-slice) are on the benchmark's page.

# %%
#| echo: false
#| label: fig-scatter
#| fig-alt: "True Dice against three scores of 300 slices; Soft Dice Confidence sorts them best"
results = np.load("../benchmarks/results/confidence/supervised-masked.npz")
cells = results["mean_dice"]  # [slices, classes], NaN where a cell does not count
scored = np.isfinite(cells).any(1)
dice = np.nanmean(cells[scored], axis=1)
fig, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained", sharey=True)
for ax, name in zip(axes, ("max", "sdc", "agreement")):
    score = results[f"mean_{name}"][scored]
    rank = spearmanr(score, dice)[0]
    ax.plot(score, dice, ".", ms=4, alpha=.5)
    ax.set_title(f"rank correlation {rank:.2f}", fontsize=10)
    ax.set_xlabel(name)
axes[0].set_ylabel("Dice the slice really reached")
plt.show()

# %% [markdown]
# Each dot is a slice. A filter keeps the right-hand part of such a cloud, so a good score has its dots on a rising line. A filter by SDC keeps the clump of well-segmented slices at the right of the middle cloud. The left cloud
# has no such clump. A negative correlation is worse than chance: a filter then keeps the *worse* part. [The benchmark](../benchmarks/confidence.ipynb) adds the risk at every share kept, and the scores of single cells.
#
# ## What a score cannot do
#
# A score cannot tell what the teacher has never learnt. A structure that a teacher never draws has no confidence at all, not even a low one. That is why [cells](../methods/20_pseudo.ipynb) are accepted structure by structure with a quota for each, why a class is accepted
# as *absent* only if its highest probability anywhere on the slice is tiny, and why nothing a person has examined is ever overwritten.
