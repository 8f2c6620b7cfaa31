# %% [markdown]
# # How many annotated slices does it take?
#
# > Dice over 25 to 800 annotated slices of real CT: the original's loss, a loss that leaves the unknown alone, and the recipe `ctseg` with the unlabelled slices.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Annotating costs more than anything else. How many annotated slices does each way of training need for the same Dice?
#
# **Answer.** With the unlabelled slices, the recipe `ctseg` needs half as many annotated slices as the same loss without them, from 25 up to 400: with 50 it is where `marginal-log` is with 100, with 200 where that is with 400. With 400 annotated slices it has reached what 800 bring. The original's loss is behind it with eight times as many. A hundred slices of 96 patients do more than a hundred of 13, and two kinds of network together more than one. `ctseg` takes five to ten times the processor time of the supervised training. The table says which cells are one training.
#
# ## How it was measured
#
# The data, network and terms are those of [unlabelled slices on real CT](realct_semi.ipynb): 2000 training slices of 64 pixels, 300 test slices of 15 other patients, seven organs, an Attention U-Net of width 16, batches of 16. Of each number of annotated slices a tenth of the patients is held out, for the choice of the weights and of the rule; with 25 slices of three patients, a third.
# The seed draws the patients, and a patient of a small draw is in the larger one too. All other slices are unlabelled. The first phase takes about 600 steps up to 100 slices, then 850, 1250 and 1800.
#
# | row | trained on | second phase |
# |---|---|---|
# | `original-attunet` | the annotated slices; what is not drawn counts as background | none |
# | `marginal-log` | the known cells of the annotated slices | none |
# | `ctseg`, short | then all slices | half as many steps |
# | `ctseg` | then all slices | until each unlabelled slice was seen 15 times, at most three times as many steps |
#
# With 800 slices both forms of `ctseg` are one run: fifteen times the unlabelled ones would be a quarter more than half of the first phase. The rows with 100 and 800 slices are those of the other page; the rest is trained by
#
# ```
# python tools/bench.py efficiency --data FOLDER
# ```

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

sys.path.insert(0, "../../paper")
from measured import BY_BUDGET, argmax, by_budget, compare, load

from ctseg.metrics.bootstrap import paired_bootstrap
from ctseg.metrics.challenge import mean_dice

runs = by_budget(Path("results"))  # {(row, annotated slices): {seed: run}}
BUDGETS = sorted({slices for _, slices in runs})
scores = {key: [mean_dice(argmax(run)) for run in of_seed.values()] for key, of_seed in runs.items()}

def cell(row: str, slices: int) -> str:
    "The mean and the spread of the trainings of a cell, and their number."
    found = scores.get((row, slices), [])
    spread = f" ± {np.std(found, ddof=1):.3f}" if len(found) > 1 else ""
    return f"{np.mean(found):.3f}{spread} (×{len(found)})" if found else ""

table = pd.DataFrame({slices: {row: cell(row, slices) for row in BY_BUDGET} for slices in BUDGETS})
table.style

# %% [markdown]
# Dice of the 15 test patients by argmax: mean and standard deviation over trainings, whose number is in brackets. Each dot of the figure is a training, the lines are means.

# %%
#| fig-alt: "Dice over 25 to 800 annotated slices for four ways of training; those with unlabelled slices lie above"
COLOURS = dict(zip(BY_BUDGET, ("tab:orange", "tab:green", "tab:cyan", "tab:blue")))
fig, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
for row, colour in COLOURS.items():
    at = [slices for slices in BUDGETS if (row, slices) in scores]
    ax.plot(at, [np.mean(scores[row, slices]) for slices in at], color=colour, label=row)
    for slices in at:
        ax.plot([slices]*len(scores[row, slices]), scores[row, slices], ".", color=colour, alpha=.5)
ax.set(xscale="log", xticks=BUDGETS, xticklabels=BUDGETS)
ax.set(xlabel="annotated slices", ylabel="Dice, 15 other patients")
ax.minorticks_off()
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## What the unlabelled slices are worth
#
# Read along the figure: how many annotated slices would `marginal-log` need to reach what `ctseg` reaches? Between two measured numbers the Dice is taken to grow in a straight line over the logarithm of the number. The last columns are the paired difference of `ctseg` and `marginal-log`, over the seeds that both have, with a 95 % interval over the test patients.

# %%
supervised = [np.mean(scores["marginal-log", slices]) for slices in BUDGETS]

def worth(slices: int) -> dict:
    "What `ctseg` reaches with so many annotated slices, and how many `marginal-log` needs for it."
    reached = np.mean(scores["ctseg", slices])
    beyond = reached > max(supervised)
    needed = np.exp(np.interp(reached, np.maximum.accumulate(supervised), np.log(BUDGETS)))
    of_cell = {row: runs[row, slices] for row in ("ctseg", "marginal-log")}
    more = compare(of_cell, "ctseg", "marginal-log", argmax)
    told = {"annotated": slices, "ctseg": reached}
    told["marginal-log needs"] = "> 800" if beyond else f"{needed:.0f}"
    told["as many times"] = "" if beyond else f"{needed/slices:.1f}"
    return told | {k: more[k] for k in ("difference", "low", "high", "seeds")}

pd.DataFrame([worth(slices) for slices in BUDGETS]).style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## Few slices of many patients
#
# The hundred slices above are those of 13 patients: whoever opens a scan annotates all of it. What if one slice of each of 96 patients is annotated instead, drawn by the seed, and a second one of four of them? The number of slices is the same, and so is that of examined cells (396, against 392 to 400). Everything else is as above; the seeds of both draws are compared in pairs.
#
# ```
# python tools/bench.py spread --data FOLDER --only spread100-marginal-log spread100-ctseg
# ```

# %%
spread = load(Path("results/spread"))
both = {
    "marginal-log": (spread["spread100-marginal-log"], runs["marginal-log", 100]),
    "ctseg": (spread["spread100-ctseg"], runs["ctseg", 100]),
}

def by_spread(row: str) -> dict:
    "Dice by argmax with slices of 96 patients and of 13, and the difference."
    draws = dict(zip(("many", "few"), both[row]))
    told = {"recipe": row}
    for patients, of_seed in zip((13, 96), reversed(both[row])):
        found = [mean_dice(argmax(run)) for run in of_seed.values()]
        told[f"{patients} patients"] = f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f} (×{len(found)})"
    more = compare(draws, "many", "few", argmax)
    return told | {k: more[k] for k in ("difference", "low", "high", "wins", "seeds")}

pd.DataFrame([by_spread(row) for row in both]).style.format(precision=3).hide(axis="index")

# %% [markdown]
# Slices of many patients are worth more, in every seed: .035 without unlabelled slices and .015 with them, which is what about half as many slices more would bring. `ctseg` gains less, since the unlabelled slices show it the other patients anyway. Its three trainings agree better, too: no draw of 13 patients is a lucky one. The interval is over the test patients.
#
# With [the rule that `fit` takes now](decision_rule.ipynb#least-areas):

# %%
decided = load(Path("results/decision_least"))["spread-spread100-ctseg"]
for way in ("argmax", "chosen"):
    found = [mean_dice(run[f"dice_{way}"]) for run in decided.values()]
    print(f"{way}: {np.mean(found):.3f} (" + ", ".join(f"{one:.3f}" for one in found) + ")")

# %% [markdown]
# ## Two kinds of network together
#
# Of each of these three draws a second network learns, by the recipe [`ctseg-pretrained`](pretrained.ipynb): an encoder that has seen photographs, on slices enlarged to 128 pixels, with the short second phase. It is behind the Attention U-Net. Does the mean of both help? `ctseg predict FIRST SECOND` takes it. All are decided by least areas, which need no held-out slice and which `fit` chooses in these trainings.
#
# ```
# python tools/bench.py spread --data FOLDER --only spread100-ctseg spread100-ctseg-pretrained
# python tools/bench.py spread --data FOLDER --only spread100-ctseg spread100-ctseg-pretrained --together
# ```

# %%
FIRST, SECOND = "spread100-ctseg", "spread100-ctseg-pretrained"
pair = load(Path("results/together"))[f"spread-{FIRST}+{SECOND}"]
BOTH = {"Attention U-Net": f"{FIRST}_least", "pretrained": f"{SECOND}_least", "mean of both": "dice_least"}
BOTH |= {"mean of both, rule of the held-out slices": "dice_chosen"}

def of_pair(name: str) -> dict:
    "Dice of each training, structures invented and missed a training, and the gain over the Attention U-Net."
    tables = [run[BOTH[name]] for run in pair.values()]
    scores = [mean_dice(table) for table in tables]
    there = [run["truth"].astype(bool) for run in pair.values()]
    row = {"decided": name, "Dice": np.mean(scores)} | {f"seed {k}": s for k, s in zip(pair, scores)}
    row["invented"] = np.mean([((t == 0) & ~of).sum() for t, of in zip(tables, there)])
    row["missed"] = np.mean([((t == 0) & of).sum() for t, of in zip(tables, there)])
    if name == "Attention U-Net": return row
    alone = np.stack([run[BOTH["Attention U-Net"]] for run in pair.values()])
    more = paired_bootstrap(np.stack(tables), alone, pair[0]["groups"])
    return row | {"more": more["difference"], "low": more["low"], "high": more["high"]}

together = pd.DataFrame([of_pair(name) for name in BOTH])
shown = together.style.format(precision=3, na_rep="").hide(axis="index")
shown.format("{:.0f}", subset=["invented", "missed"])


# %% [markdown]
# It does, in each of the three draws: .016 more than the better of the two, though the second is .05 behind it. The mean invents fewer structures, and misses some more. The second training takes half of the time of the first (about 750 seconds of a processor). This is the best that we have with 100 annotated slices, and one network with 800 has .59.
#
# A rule for the mean, chosen on ten held-out slices (`--tune`), is no help: in one draw it gave the least areas up and lost .03.

# %% [markdown]
# ## What it costs
#
# Seconds of a processor, mean over trainings (where they were counted; other work ran beside them, which slows a processor down). The second training of `ctseg` with 25 slices ran on a processor about half as fast: 2081 s, where the first took 1178.

# %%
def seconds(row: str, slices: int) -> float:
    "Mean processor time of the trainings of a cell that have it."
    found = [run["facts"].get("processor_seconds") for run in runs.get((row, slices), {}).values()]
    known = [s for s in found if s and s > 20]  # a run that was only scored again took a few
    return float(np.mean(known)) if known else np.nan

times = pd.DataFrame({slices: {row: seconds(row, slices) for row in BY_BUDGET} for slices in BUDGETS})
times.style.format("{:.0f}", na_rep="")
