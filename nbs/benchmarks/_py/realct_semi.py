# %% [markdown]
# # Unlabelled slices on real CT
#
# > What teacher and student, consistency, and self-training add to supervised learning, with 100 and with 800 annotated slices; and which of it is noise.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** What do unlabelled slices add to supervised learning on real CT?
#
# **Answer.** With 100 annotated slices a second phase that sees all slices adds 0.06 to 0.09 of Dice, in every training, and more [if it lasts longer](#a-longer-second-phase). With 800 it adds 0.01 to 0.02 by argmax, and nothing that is clear of zero once every network has its own decision rule. [What other libraries make of the 100](peers.ipynb) and [other numbers of annotated slices](label_efficiency.ipynb) have pages of their own.
#
# ## How it was measured
#
# **The data** are those of [partial labels on real CT](realct_supervised.ipynb): 2000 training slices, of which 100 or 800 are partly annotated, and 300 test slices of 15 other patients. The 100 are those of patients drawn by the seed (the last one gives only as many slices as complete the hundred); the other 700 join the unlabelled.
#
# **The networks.** Attention U-Net of width 16, batches of 16 annotated slices, 600 optimiser steps a phase with 100 annotations and 1800 with 800. Methods are run from three starting points: the original's loss (`original-…`: Dice only, zeros as background), our sigmoid loss with the logarithm
# of the Dice (`log-…`; `log` alone is the recipe `masked-log`), and our softmax loss (`marginal-…`, from `marginal-log`), which is that of the recipes as they are now. With 800 slices every method was run from the original's loss and from the softmax (where UniMatch is `ctseg`, after a supervised phase), with 100 from the original's and from the sigmoid; other rows that are missing were not run. UniMatch runs with one strong view and no feature stream, which is what a processor can pay for.
#
# `ctseg` is the default recipe as it was: a supervised phase with softmax outputs (`marginal-log`), then one with all images, half as long; `ctseg-sigmoid` is the same with our sigmoid loss (`loss=masked`), which was the default until [54 structures](phantom_semi.ipynb) had shown the difference. `log-warm-unimatch` is `ctseg-sigmoid` with a second phase as long as the first (`second_phase=1`). `ctseg-longer` is `ctseg` with twice as many steps in both phases (`epochs=80`). The self-training rows with 100 slices, and `log-self-training`, ranked cells by Soft Dice Confidence times the agreement of teachers, which was dropped since ([why](confidence.ipynb#of-a-cell)), and took a teacher that contradicts people for evidence of background. The recipes with a second phase take more steps than `log`, so there is also `log-longer`: two phases of equal length, the second without the unlabelled images (`consistency=0`). `log-unimatch` has all images from the
# first step, as the papers do.
#
# Most runs are in bf16. Some were made on a processor that has none, in fp32: `ctseg-sigmoid` with 100 slices is compared with `log-fp32`, which is its own first phase, scored by itself; the others of them are marked below. No setting was tuned on these runs, with one exception: the warm start was added after the cold one had failed on seed 0 with our loss; it was then run on the other seeds without further change.
#
# [The same FOLDER](realct_supervised.ipynb#how-it-was-measured) serves for all of it:
#
# ```
# python tools/bench.py semi100 --data FOLDER
# python tools/bench.py counts --data FOLDER
# python tools/bench.py semi800 --data FOLDER
# ```
#
# Where a rule was chosen, it is a threshold and [one gate for all classes](decision_rule.ipynb), as `fit` chose it for these runs; what it chooses now is compared there. Numbers are computed by the functions that REPORT.pdf uses.
#
# [What the rows are called](row_names.ipynb).

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

sys.path.insert(0, "../../paper")
from measured import (
    argmax, baseline, chosen, compare, compare_left_out, history, line, load, start_of)

from ctseg.metrics.challenge import mean_dice

RESULTS = Path("results")
runs = {budget: load(RESULTS/f"semi{budget}") for budget in (100, 800)}
for budget, by_name in runs.items():
    trainings = sum(map(len, by_name.values()))
    print(f"{budget} annotated slices: {trainings} trainings, the seeds of {len(by_name)} rows")


# %% [markdown]
# ## Against its own supervised baseline
#
# The difference is paired: the same seeds (those that both rows have), the same test patients; the interval is a bootstrap over the 15 patients. A row of **one seed** says how that one training went, and seeds differ by more than most methods: read `seeds` before the number.

# %%
def recipe(budget, name):
    exact = any("precision=fp32" in r["facts"]["settings"] for r in runs[budget][name].values())
    return {"labelled": budget, "recipe": name, "precision": "fp32" if exact else "bf16"} | line(
        runs[budget], name, baseline(runs[budget], name)
    )

table = pd.DataFrame([recipe(b, n) for b in runs for n in runs[b]]).rename(
    columns={"difference": "minus supervised", "silent": "silent in some seed"}
)
table = table.sort_values(["labelled", "Dice"], ascending=[True, False]).reset_index(drop=True)
table.style.format(precision=3, na_rep="").format(
    "{:.0f}", na_rep="", subset=["paired seeds", "better in", "invented", "missed"]
).hide(axis="index")

# %%
#| fig-alt: "Each method's difference to its supervised baseline with its interval, for 100 and 800 slices"
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for ax, budget in zip(axes, runs):
    rows = table[(table.labelled == budget) & table["minus supervised"].notna()].iloc[::-1]
    for y, (_, r) in enumerate(rows.iterrows()):
        colour = {"original": "tab:orange", "sigmoid": "tab:blue", "softmax": "tab:green"}[start_of(r.recipe)]
        ax.plot([r.low, r.high], [y, y], color=colour, lw=2, alpha=1 if r["paired seeds"] > 2 else 0.4)
        ax.plot(r["minus supervised"], y, "o", color=colour)
    ax.axvline(0, color="0.6", lw=1)
    ax.set(
        yticks=range(len(rows)),
        yticklabels=[f"{r.recipe} (x{int(r['paired seeds'])})" for _, r in rows.iterrows()],
        xlabel="Dice minus its supervised baseline",
        title=f"{budget} annotated slices",
    )
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Orange: methods that start from the original's loss; blue: from our sigmoid loss; green: from our softmax loss. A pale line has fewer than three pairs of trainings; the number of pairs is in brackets.
#
# With 100 slices the unlabelled ones help the original's loss most, which also has most to gain. `original-unimatch` adds 0.11 on average and gains in all three trainings; self-training adds 0.06 on average and gains in two of three; the original's own teacher and student gained 0.07 in their one training. Yet the best of them ends far below what a loss that
# leaves the unknown alone reaches without any unlabelled slice (`log`). On top of *that*, only a second phase with all images (`log-warm-unimatch`, `ctseg-sigmoid`, `ctseg`) has gained in three trainings of three; the other methods were run once, and most of them lost. With 800 slices
# the recipes with our softmax loss bring nothing either: pretraining on pseudo-labels, Mean Teacher and self-training end where they began, and the student of a teacher below it. Twice as many steps in both phases of the default (`ctseg-longer`, one training) are worth no more than another seed. From the original's loss pretraining gained 0.02 in its one training, self-training ended where it began, and Mean Teacher lost 0.03: all of them are within what two seeds differ by.

# %% [markdown]
# ## A longer second phase
#
# `ctseg-second-3` is `ctseg` with a second phase three times as long as the first instead of half as long: with 100 annotated slices each of the 1900 others is then seen fifteen times, not two or three. The whole run takes three and a half times the processor time. On the test slices and on the annotated slices of other patients that the run left out:

# %%
LONG, SHORT = "ctseg-second-3", "ctseg"
tell = "{difference:+.3f} [{low:+.3f}, {high:+.3f}], better in {wins} of {seeds}".format
longer = {
    "test, argmax": compare(runs[100], LONG, SHORT, argmax),
    "test, rule chosen": compare(runs[100], LONG, SHORT),
    "left out, rule chosen": compare_left_out(runs[100], LONG, SHORT),
}
for where, d in longer.items():
    print(f"{where:<24}{d['b']:.3f} to {d['a']:.3f}: {tell(**d)}")

# %% [markdown]
# A longer *supervised* training is worth nothing here (`log-longer` above), so whoever has more time should give it to the second phase. The recipe does so by itself where few slices are annotated: [`unlabelled_passes=15`](../methods/50_unimatch.ipynb#how-long-the-second-phase-is). The other rows of this page were made with `unlabelled_passes=0`.

# %% [markdown]
# ## Tried, without gain
#
# **A start from the phantom** (`marginal-from-phantom`): the supervised row, but from the weights of a network that had seen 1200 phantom slices, fully drawn, in strong augmentation. The phantom costs nothing and knows 54 structures, so one might hope for a network that already knows what a body is:
#
# ```
# ctseg phantom phantom64 --labelled 1200 --unlabelled 0 --size 64 --test 50 --seed 5
# ctseg fit phantom64 --out phantom-run --recipe marginal-log --set width=16 --set batch_size=16 \
#     --set precision=bf16 --set epochs=14 --set augment=strong
# python tools/bench.py semi100 --data FOLDER --only marginal-from-phantom --init phantom-run
# ```
#
# **A presence head** (`ctseg-presence`, one seed): a second output that says which classes are on the slice, and mutes the others. It gained where all 800 slices are annotated ([ensembles](realct_ensemble.ipynb)). Of one hundred it learns to be too cautious: it invents half as much and misses twice as much.
#
# **Two settings** of `ctseg`, once each (seed 0, the second phase half as long as the first; on other patients' annotated slices / on the test slices, argmax; .531 / .489 without them): slices enlarged to 96 pixels, at twice the time, .509 / .491; no CutMix .512 / .488. Enlarging gains in a supervised training ([ablations](ablations.ipynb)); after the second phase nothing of that is left.
#
# [Six more ideas](tried.ipynb) for the second phase, each once, have a page of their own.

# %%
for tried, beside in (("marginal-from-phantom", "marginal-log"), ("ctseg-presence", "ctseg")):
    tried_on = {
        "test, argmax": compare(runs[100], tried, beside, argmax),
        "left out, rule chosen": compare_left_out(runs[100], tried, beside),
    }
    for where, d in tried_on.items():
        print(f"{tried:<23}{where:<24}{d['b']:.3f} to {d['a']:.3f}: {tell(**d)}")


# %% [markdown]
# ## How many unlabelled slices?
#
# `ctseg-sigmoid` with 100 annotated slices and ever more of the others, as many steps for all. Without any, its second phase falls away and `log` is what is left; 1900 is all there are. Grey: one training each; the line follows seed 0, whose first phase is the same in all of them.

# %%
#| fig-alt: "Dice against the number of unlabelled slices, one dot a training, a line through seed 0"
def dice(s): return [mean_dice(chosen(r)) for _, r in sorted(s.items())]

fewer = load(RESULTS/"counts")  # named by the number
points = (
    {0: dice(runs[100]["log-fp32"])}
    | {int(n.rsplit("-u")[1]): dice(s) for n, s in fewer.items()}
    | {1900: dice(runs[100]["ctseg-sigmoid"])}
)
points = dict(sorted(points.items()))
fig, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
for n, d in points.items(): ax.plot([n]*len(d), d, "o", color="0.65", ms=5)
ax.plot(list(points), [d[0] for d in points.values()], "-", color="C0", label="seed 0")
ax.set(xlabel="unlabelled slices", ylabel="Dice, 15 other patients")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
pd.DataFrame(
    {
        "unlabelled slices": list(points),
        "seeds": [len(d) for d in points.values()],
        "Dice, seed 0": [d[0] for d in points.values()],
        "Dice, mean": [np.mean(d) for d in points.values()],
        "left out, seed 0": [
            mean_dice(r["rest_chosen"])
            for r in (
                runs[100]["log-fp32"][0],
                *(fewer[f"ctseg-u{n}"][0] for n in list(points)[1:-1]),
                runs[100]["ctseg-sigmoid"][0],
            )
        ],
    }
).style.format(precision=3).hide(axis="index")


# %% [markdown]
# Three hundred slices bring most of it. What comes after is no more than the luck of one training, on the test slices and on the 700 left-out ones (`left out`) alike.

# %% [markdown]
# ## What the unlabelled slices mend
#
# Of each class's score, what is missing to 1 is lost in three ways: the structure is drawn on a slice that has none (0 there), it is not found where there is one (0 again), or its outline is inexact. Decided by argmax, mean over classes and seeds:

# %%
def lost(run, of):
    "Inventions, misses, inexact outlines: each a mean over the scored slices of a class, then over classes."
    d, truth = of(run), run["truth"].astype(bool)
    scored, missed = np.isfinite(d), truth & (d == 0)
    return [
        float(np.mean(x.sum(0)/scored.sum(0)))
        for x in (scored & ~truth, missed, np.where(truth & ~missed, 1 - np.nan_to_num(d), 0))
    ]

def parts(budget, name, of=argmax):
    return dict(
        zip(("invented", "missed", "inexact"), np.mean([lost(r, of) for r in runs[budget][name].values()], 0))
    )

pairs = [
    (100, "ctseg-sigmoid", "log-fp32"),
    (100, "ctseg", "marginal-log"),
    (800, "ctseg-sigmoid", "log"),
    (800, "ctseg", "marginal-log"),
    (800, "log-unimatch", "log"),
]
pd.DataFrame(
    [
        {"labelled": k, "recipe": n} | parts(k, n)
        for k, n in dict.fromkeys((k, n) for k, a, b in pairs for n in (b, a))
    ]
).style.format(precision=3).hide(axis="index")


# %% [markdown]
# With 100 annotated slices the second phase takes away two fifths to a half of what is missed, and invents a little more than before. With 800 there is little left to find, and it draws outlines a little better. The decision rule works elsewhere: it gates inventions away, and some findings with them. What remains of the gain when both networks
# have the rule that their held-out slices chose:

# %%
def remedies(budget, a, b):
    tell = lambda d: "{difference:+.3f} [{low:+.3f}, {high:+.3f}], better in {wins} of {seeds}".format(**d)
    rule = lambda n: float(
        np.mean([mean_dice(chosen(r)) - mean_dice(argmax(r)) for r in runs[budget][n].values()])
    )
    return {
        "labelled": budget,
        "difference": f"{a} − {b}",
        "both by argmax": tell(compare(runs[budget], a, b, argmax)),
        "both with their rules": tell(compare(runs[budget], a, b)),
        "the rule brings the first": rule(a),
        "the second": rule(b),
    }

pd.DataFrame([remedies(*p) for p in pairs]).style.format(precision=3).hide(axis="index")

# %% [markdown]
# With 100 annotated slices the unlabelled ones gain by either decision. With 800 they gain a little, and it takes argmax to see it: with sigmoids .012 and .017, clear of zero and in every training (`log-unimatch` takes no more steps than `log`); with the default's softmax .009, in two trainings of three and not clear of zero. Once each network has its own rule, much of that is gone
# and no interval is clear of zero. The rule is chosen on a tenth of the patients only, and it brings these networks less than their baselines.
#
# Luck matters even with 800 slices. An earlier version of the second phase [believed a teacher more](../methods/40_mean_teacher.ipynb#where-to-compare) where it contradicts the truth. Its three trainings had ended 0.005 higher (0.009 by argmax) on the test slices, but not on the held-out ones. Such a difference between two sets of trainings means nothing yet.

# %% [markdown]
# ## How lucky was a training?
#
# `log` and `log-fp32` are the same recipe, the same slices and the same seed; only the rounding differs. With so few slices that is enough to make another network of it. Differences between single trainings mean as little:

# %%
pd.DataFrame(
    {n: {f"seed {s}": mean_dice(chosen(r)) for s, r in runs[100][n].items()} for n in ("log", "log-fp32")}
).style.format(precision=3)


# %% [markdown]
# ## By class
#
# Where the gain comes from. `test slices` counts those that have the class.

# %%
def by_class(budget):
    t = runs[budget]
    first = next(iter(next(iter(t.values())).values()))
    out = pd.DataFrame(
        {
            n: np.mean([np.nanmean(chosen(r), axis=0) for r in t[n].values()], axis=0)
            for n in table[table.labelled == budget].recipe
        },
        index=first["classes"],
    )
    out.insert(0, "test slices", first["truth"].sum(0))
    return out

for b in runs:
    if runs[b]: display(by_class(b).T.style.format(precision=2).set_caption(f"{b} annotated slices"))


# %% [markdown]
# ## The default against the original, whole
#
# `ctseg` and `ctseg-sigmoid` as single networks, against the original's teacher and student and against its supervised baseline, over the seeds that both have. `worst class` is the smallest difference of any organ, means over those seeds.

# %%
def whole(mine, other):
    ours, theirs = runs[800][mine], runs[800][other]
    seeds, d = sorted(ours.keys() & theirs.keys()), compare(runs[800], mine, other)
    classes = np.mean(
        [np.nanmean(chosen(ours[s]), 0) - np.nanmean(chosen(theirs[s]), 0) for s in seeds], axis=0
    )
    return {
        "recipe": mine,
        "minus": other,
        "Dice": d["a"],
        "other": d["b"],
        "difference": d["difference"],
        "low": d["low"],
        "high": d["high"],
        "seeds": len(seeds),
        "better in": d["wins"],
        "worst class": f"{ours[seeds[0]]['classes'][classes.argmin()]} {classes.min():+.3f}",
        "silent": line(runs[800], mine, "log")["silent"] or "none",
    }

pd.DataFrame(
    [whole(m, f"original-{n}") for m in ("ctseg", "ctseg-sigmoid") for n in ("teacher-student", "attunet")]
).style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## The original's two phases
#
# Teacher and student of `original-teacher-student`, as in the original's figure: training loss, and Dice of the held-out slices, one line a seed.

# %%
#| fig-alt: "Training loss and held-out Dice of teacher and then student against the epoch, one line a seed"
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
budget = 800 if "original-teacher-student" in runs[800] else 100
for seed, r in sorted(runs[budget].get("original-teacher-student", {}).items()):
    h = pd.DataFrame(history(r)).astype({"loss": float, "dice": float})
    change = (h.phase == "teacher").sum()
    for ax, column in zip(axes, ("loss", "dice")):
        ax.plot(np.arange(1, len(h) + 1), h[column], lw=1.2, label=f"seed {seed}")
        ax.axvline(change + .5, color="0.7", ls=":")
axes[0].set(xlabel="epoch (teacher | student)", ylabel="training loss")
axes[1].set(xlabel="epoch (teacher | student)", ylabel="Dice, held-out slices")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# The tables for the report, and the lines of the front page:

# %%
table.round(4).to_csv(RESULTS/"realct_semi.csv", index=False)

FRONT = [
    (100, "marginal-log", "known cells only (`marginal-log`)"),
    (100, "ctseg-second-3", "then all slices (`ctseg`, the default)"),
    (100, "original-teacher-student", "the original's teacher and student"),
    (800, "ctseg", "`ctseg`"),
    (800, "original-teacher-student", "the original's teacher and student"),
]


def front(budget, name, words):
    d = compare(runs[budget], name, "original-attunet")
    seeds = f"{d['seeds']} seed{'s' if d['seeds'] > 1 else ''}"
    difference = f"{d['difference']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}], {seeds}"
    return [budget, words, f"{d['a']:.3f}", f"{d['b']:.3f}", difference]


COLUMNS = ["annotated slices", "trained with", "Dice", "reference", "difference"]
lines = pd.DataFrame([front(*f) for f in FRONT], columns=COLUMNS)
lines.to_csv(RESULTS/"realct_front.csv", index=False)
lines
