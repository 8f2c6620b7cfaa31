# %% [markdown]
# # Partial labels on real CT
#
# > What the loss makes of 800 partly annotated slices: the original's Dice against losses that respect what is unknown, and the choices inside them, one at a time.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** How much depends on what a loss makes of structures that nobody examined?
#
# **Answer.** Much. Keeping *unknown* apart from *background* is worth 0.05 of Dice, everything else being equal, the logarithm of the Dice another 0.04, and the best loss ends 0.16 above the original's.
#
# ## How it was measured
#
# **The data.** 64×64 slices of head-and-neck CT from OpenKBP (Babier et al. 2021): 800 slices of 96 patients with up to four of seven organs examined on each, 300 test slices of 15 other patients with all seven. **The networks.** Attention U-Net of width 16, 40 passes of
# batches of 16 (1800 steps), a tenth of the patients held out for choosing the decision rule, three seeds, bfloat16 autocast (`--set precision=bf16`, 1.6 times faster than float32 on the processor used). The score is the challenge's.
#
# The slices are [cut again](../io/80_openkbp.ipynb), bit for bit, from a clone of the public data (first two lines). The runs are repeated by the last line, which resumes where it was cut:
#
# ```
# git clone https://github.com/ababier/open-kbp
# python -c "from ctseg.io.openkbp import import_openkbp as cut; cut('open-kbp', 'FOLDER', like='nbs/benchmarks/realct_slices.json')"
# python tools/bench.py supervised --data FOLDER
# ```
#
# Numbers are computed by the functions that REPORT.pdf uses.
#
# [What the rows are called](row_names.ipynb).

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

sys.path.insert(0, "../../paper")
from measured import area, chosen, compare, line, load, row, rule_gain

# %%
runs = load(Path("results/supervised"))
first = next(iter(runs["marginal"].values()))
truth, groups, classes = first["truth"], first["groups"], list(first["classes"])
print(
    f"{len(truth)} test slices of {len(np.unique(groups))} patients; runs: "
    + ", ".join(f"{n} x{len(r)}" for n, r in runs.items())
)

# %% [markdown]
# ## The score
#
# `chosen` is what `ctseg predict` gives: the rule that `fit` chose on the held-out slices (argmax for the original, which knew no other). Differences are paired by seed and patient; the interval is a bootstrap over the 15 test patients of the mean over the seeds. Fifteen patients is few, and the intervals say so.

# %%
lines = {n: row(runs, n, lambda name: "original-attunet") for n in runs}
table = (
    pd.DataFrame(
        {
            n: {"seeds": r["seeds"], "Dice": np.mean(r["scores"]), "sd": r["sd"], "Dice, argmax": r["argmax"]}
            for n, r in lines.items()
        }
    )
    .T.astype({"seeds": int})
    .sort_values("Dice", ascending=False)
)
table.astype(float).round(3).astype({"seeds": int})


# %%
def difference(a, b, what):
    d = compare(runs, a, b)
    return {
        "comparison": what,
        "first": d["a"],
        "second": d["b"],
        "difference": d["difference"],
        "low": d["low"],
        "high": d["high"],
        "seeds": d["seeds"],
        "better in": d["wins"],
    }

pairs = [
    ("marginal", "original-attunet"),
    ("masked", "original-attunet"),
    ("masked-log", "original-attunet"),
    ("ce-dice-zeros", "original-attunet"),
    ("marginal", "masked"),
    ("masked-log", "masked"),
]
main = pd.DataFrame([difference(a, b, f"{a} − {b}") for a, b in pairs if a in runs]).set_index("comparison")
main.round(3)

# %%
#| fig-alt: "Dice of each loss on other patients: a grey dot for each seed, a red mark for their mean"
fig, ax = plt.subplots(figsize=(7, 0.42*len(table) + 1), layout="constrained")
for y, name in enumerate(reversed(table.index)):
    scores = lines[name]["scores"]
    ax.plot(scores, [y]*len(scores), "o", color="0.6", ms=4)
    ax.plot(np.mean(scores), y, "|", color="C3", ms=16, mew=2.5)
ax.set(
    yticks=range(len(table)),
    yticklabels=reversed(table.index),
    xlabel="Dice on 300 slices of 15 other patients (grey: a seed, red: their mean)",
)
ax.spines[["top", "right"]].set_visible(False)
plt.show()


# %% [markdown]
# ## By class
#
# `invented` counts slices on which a class was drawn though it is absent (each scores 0), `missed` slices that have it and got none; both are means over the seeds. A class is *silent* if it is never drawn.

# %%
def by_class(name):
    rows = [
        np.stack(
            [np.nanmean(chosen(r), 0), (area(r) & ~truth).sum(0), (~area(r) & truth).sum(0), ~area(r).any(0)]
        )
        for r in runs[name].values()
    ]
    dice, invented, missed, silent = np.mean(rows, 0)
    return pd.DataFrame(
        {
            "Dice": dice.round(3),
            "invented": invented.round(1),
            "missed": missed.round(1),
            "silent": np.round(silent*len(rows)).astype(int),
        },
        index=classes,
    )

wide = pd.concat(
    {n: by_class(n) for n in ("original-attunet", "masked", "marginal", "masked-log") if n in runs}, axis=1
)
wide.insert(0, ("", "slices"), truth.sum(0))
wide

# %% [markdown]
# ## One choice at a time
#
# Each line switches one thing off. `marginal-image` reduces the Dice per image over present cells, where `marginal` adds it up over the batch with the absent cells in the denominator; `masked-nopixel` forgets that a pixel of one organ is no other organ; `ce-dice-zeros` is
# `marginal` with everything unexamined read as background, cross-entropy included. `better in` counts the seeds in which the first of the two was ahead: the patients' interval does not know the luck of a training, which is larger than most choices here.

# %%
ablations = [
    ("marginal", "marginal-image", "Dice over the batch − per image"),
    ("masked", "masked-nopixel", "pixel-wise known − not"),
    ("masked-log", "masked", "−ln Dice − (1 − Dice)"),
    ("marginal", "ce-dice-zeros", "unknown − unknown read as background"),
    ("masked", "masked-image", "Dice over the batch − per image (sigmoid)"),
]
done = pd.DataFrame(
    [{"comparison": "", **difference(a, b, f"{a} − {b}: {what}")} for a, b, what in ablations if b in runs],
    columns=main.reset_index().columns,
).set_index("comparison")
done.round(3)

# %% [markdown]
# ## The decision rule
#
# The same probabilities, decided in four ways. Threshold and gate are one number each for all classes, chosen on the held-out tenth of the annotated patients.

# %%
gains = [
    rule_gain(runs[n], n, r)
    for n in ("original-attunet", "masked", "marginal", "masked-log")
    if n in runs
    for r in ("threshold", "gate", "both")
]
rules = pd.DataFrame(
    [
        {
            "recipe": d["name"],
            "rule": d["rule"],
            "argmax": d["b"],
            "with rule": d["a"],
            "gain": d["difference"],
            "low": d["low"],
            "high": d["high"],
        }
        for d in gains
    ]
).set_index(["recipe", "rule"])
rules.round(3)

# %% [markdown]
# ## What held
#
# Four things held in three trainings of three. `marginal`, `masked` and `masked-log` beat the original's loss (by .11, .12 and .16). The clean comparison, `marginal` with and without the third state, gives .05. Zeros read as background are still better with cross-entropy than with the Dice alone, by .06. The logarithm of the Dice adds .04, most of it in the esophagus. The gate adds about .01 to `marginal` and `masked-log` and next to nothing to the other two; a threshold by itself adds next to nothing to any.
#
# ## What made no difference
#
# Three choices made none that three trainings can show: sigmoid or softmax, the Dice over the batch or per image, and whether a labelled pixel is known for all other classes.
#
# The tables above, as files:

# %%
files = {"summary": table.reset_index(names="recipe"), "differences": pd.concat([main, done]).reset_index()}
for name, rows in files.items():
    rows.round(4).to_csv(f"results/supervised/{name}.csv", index=False)
    print(f"results/supervised/{name}.csv")
