# %% [markdown]
# # One choice at a time
#
# > What each part of the default recipe is worth: the loss, the sampling, the average of the weights, the augmentation, the unlabelled slices, the decision. Negative results stay in.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** What is each part of the default recipe worth?
#
# **Answer.** Keeping unknown apart from background, the logarithm of the Dice, the second phase and its unlabelled slices, and the gate each held in three trainings. No other single choice did, but without any augmentation a fifth of the score is gone.
#
# ## How it was measured
#
# Each choice of the default recipe is switched off, or exchanged for another, and everything else is left alone: slices, seeds, network and number of steps. Exceptions are named in the line. A second phase comes on top of the first, and `log-unimatch`, which has only one phase, uses the papers' threshold of .95. [What the rows are called](row_names.ipynb). The data and terms are those of
# [partial labels on real CT](realct_supervised.ipynb): 64×64 slices of head and neck, seven organs, 300 test slices of 15 patients, an Attention U-Net of width 16.
#
# The loss was taken apart with **800** annotated slices. The rest was taken apart with **100**, where a choice has more room to matter and a training takes minutes. That leaves 700 annotated slices of other patients whose outlines no training saw:
# choices are made on *those* (`left out`, scored where something is known), and the test slices only judge.
#
# [How FOLDER is made](realct_supervised.ipynb#how-it-was-measured).
#
# ```
# python tools/bench.py supervised --data FOLDER
# python tools/bench.py semi100 --data FOLDER
# python tools/bench.py ablation --data FOLDER
# ```

# %%
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

sys.path.insert(0, "../../paper")
from measured import compare, compare_left_out, load, rule_gain, verdict

RESULTS = Path("results")
many, few, lots, one, phantom = (
    load(RESULTS/t) for t in ("supervised", "semi100", "semi800", "ablation", "phantom240")
)
# in bf16
told_by_cell = one | {n: few[n] for n in ("log-self-training", "log-teacher-student", "marginal-log")}
one |= {"ctseg-sigmoid": few["ctseg-sigmoid"], "log": few["log-fp32"]}  # all of these in fp32

# %%
CHOICES = [  # part, choice, table, with it, without it
    ("loss", "unknown kept apart from background", many, "marginal", "ce-dice-zeros"),
    ("loss", "Dice over the batch, not per image", many, "marginal", "marginal-image"),
    ("loss", "a labelled pixel is known not to be anything else", many, "masked", "masked-nopixel"),
    ("loss", "sigmoid, not softmax", many, "masked", "marginal"),
    ("loss", "the logarithm of the Dice", many, "masked-log", "masked"),
    ("training", "slices with rare classes shown more often", one, "rare", "log"),
    ("training", "the average of the weights (EMA)", one, "log", "no-ema"),
    ("training", "mild augmentation, not none", one, "log", "augment-none"),
    ("training", "strong augmentation, not mild", one, "augment-strong", "log"),
    ("training", "left–right mirrors, labels swapped", one, "mirror", "log"),
    ("training", "96 pixels, not 64", one, "size-96", "log"),
    (
        "unlabelled",
        "the second phase of `ctseg`, with all slices, half as many steps on top",
        one,
        "ctseg-sigmoid",
        "log",
    ),
    ("unlabelled", "the unlabelled slices, against as many steps", few, "log-warm-unimatch", "log-longer"),
    (
        "unlabelled",
        "truth alone first, on top of as many steps with all",
        few,
        "log-warm-unimatch",
        "log-unimatch",
    ),
    (
        "unlabelled",
        "the second phase, where there are none: on 100 annotated slices, half of whose cells are unknown",
        told_by_cell,
        "labelled-only",
        "marginal-log",
    ),
    ("unlabelled", "CutMix in the strong view", one, "ctseg-sigmoid", "no-cutmix"),
    (
        "unlabelled",
        "strong augmentation, not mild, before the strong view",
        one,
        "ctseg-strong",
        "ctseg-sigmoid",
    ),
    ("both", "softmax, not sigmoid: 7 structures, 800 annotated", lots, "ctseg", "ctseg-sigmoid"),
    ("both", "softmax, not sigmoid: 7 structures, 100 annotated", few, "ctseg", "ctseg-sigmoid"),
    ("both", "softmax, not sigmoid: 54 structures (phantom)", phantom, "ctseg", "ctseg-sigmoid"),
    (
        "pseudo-labels",
        "by cell (five trainings), not by image (two)",
        few,
        "log-self-training",
        "log-teacher-student",
    ),
    (
        "pseudo-labels",
        "at most half of a class's cells, not all above the gate",
        told_by_cell,
        "log-self-training",
        "no-quota",
    ),
    ("pseudo-labels", "a second round", told_by_cell, "two-rounds", "log-self-training"),
    (
        "pseudo-labels",
        "images ranked by Soft Dice Confidence, not by mean probability",
        told_by_cell,
        "log-teacher-student",
        "max-confidence",
    ),
]
def told(part, what, a, b, d, left=None):
    return (
        {"part": part, "choice": what, "with": a, "without": b}
        | {k: d[k] for k in ("difference", "low", "high", "seeds")}
        | {
            "by seed": ", ".join(f"{x:+.3f}" for x in d["by_seed"]),
            "left out": left and "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**left),
            "verdict": verdict(d),
        }
    )

rows = [
    told(part, what, a, b, d, compare_left_out(runs, a, b))
    for part, what, runs, a, b in CHOICES
    if (d := compare(runs, a, b))
]
rows += [
    told("decision", what, f"masked-log, {rule}", "argmax", d)
    for rule, what in (
        ("threshold", "a threshold of its own"),
        ("gate", "a gate on the class's peak"),
        ("both", "both"),
    )
    if (d := rule_gain(many["masked-log"], "masked-log", rule))
]
table = pd.DataFrame(rows)
table.to_csv(RESULTS/"ablations.csv", index=False, float_format="%.4f")
table.style.format(precision=3, na_rep="").hide(axis="index")

# %% [markdown]
# `difference` is the choice's gain in Dice, [low, high] its 95 % interval over the test patients, `by seed` each training's own; `left out` is the gain on the left-out annotated slices. A choice *held* if the interval is clear of zero and every seed agrees. Pale in the figure: one training, which says little.

# %%
#| fig-alt: "Each choice's gain in Dice as a point with its interval, one row a choice, coloured by part"
fig, ax = plt.subplots(figsize=(8, .32*len(table) + .8), layout="constrained")
colours = dict(zip(table.part.unique(), ("C0", "C2", "C1", "C3", "C5", "C4")))
for y, (_, r) in enumerate(table[::-1].iterrows()):
    pale = 1 if r.seeds > 2 else .4
    ax.plot([r.low, r.high], [y, y], color=colours[r.part], lw=2, alpha=pale)
    ax.plot(r.difference, y, "o", color=colours[r.part], alpha=pale)
ax.axvline(0, color=".6", lw=1)
ax.set(
    yticks=range(len(table)),
    yticklabels=[textwrap.fill(choice, 54) for choice in table.choice[::-1]],
    xlabel="gain in Dice, 15 other patients (95 % over patients)",
)
ax.spines[["top", "right"]].set_visible(False)
ax.tick_params(axis="y", labelsize=8)
fig.legend(
    [plt.Line2D([], [], color=c, lw=2) for c in colours.values()],
    colours,
    frameon=False,
    fontsize=8,
    ncols=3,
    loc="outside lower center",
)
plt.show()

# %% [markdown]
# ## What held, and what did not
#
# With 54 structures a softmax, in which they compete for each pixel, gained 0.11 in one training; it was chosen because its held-out score was twice that of the sigmoids. With seven structures it makes no difference. The default recipe has had a softmax ever since. The other lines were measured with sigmoids, except the first two, which have a softmax and the plain Dice.
# Keeping unknown apart, the logarithm of the Dice, the unlabelled slices and the gate each held in three trainings; so did the second phase on annotated slices alone, where a teacher completes what nobody examined on them, with two fifths of the gain. No other single choice did. Without any augmentation a fifth of the score is gone. Three changes of the supervised recipe look worth two more trainings each, by the slices they would be chosen on: strong augmentation, mirrors, and showing rare classes more often; enlarging the slices, at twice the price, does not. But
# strong augmentation, which looked best, adds next to nothing (+.004) once the second phase follows, perhaps because both teach the network to ignore how a slice looks. Mirrors and rare classes were not tried with the second phase. So the default has none of the three.
#
# Of the choices about pseudo-labels, one training each, only the quotas show: without them self-training loses another 0.04, on the test slices and on the left-out ones alike. A second round changes nothing. That images are kept by Soft Dice Confidence and not by the original's mean probability does not show either,
# although it [ranks them better](confidence.ipynb): of 1900 images 800 are kept, and a filter that keeps so many decides little.
#
# Averaging several networks, other views of a slice, a rule chosen out of fold, calibration and the presence head are on [a page of their own](realct_ensemble.ipynb); the scores by which pseudo-labels are kept on [another](confidence.ipynb).
