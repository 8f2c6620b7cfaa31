# %% [markdown]
# # Ensembles on real CT
#
# > What averaging runs, looking twice and a better decision are worth: one run, several, + views, + rule, + presence head, each with its interval.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** What do averaging runs, several views and a better decision add to a single run?
#
# **Answer.** Averaging adds 0.01 to 0.05 of Dice, and a rule chosen out of fold another 0.02 where the folds together hold out every annotated slice. Several views and calibration do nothing or harm, except with a presence head.
#
# ## How it was measured
#
# **The data** are those of [Partial labels on real CT](realct_supervised.ipynb): 300 test slices of 15 patients, seven organs. **The runs** are finished ones of the tables of `tools/bench.py`; nothing is trained here. Every step is added to the same networks, and scored with the challenge's Dice:
#
# | step | what it is |
# |---|---|
# | single | each run alone, argmax; the mean of their scores |
# | single + rule | each with the threshold and gate that it chose on its own held-out slices |
# | ensemble | the mean of their probabilities, argmax |
# | + views | each network sees five views of the slice: as it is, turned by ±8°, enlarged and shrunk by 8 % |
# | + rule | one threshold and gate for the ensemble, chosen out of fold |
# | + calibration | the logits divided by each run's temperature before they are averaged, and the rule chosen on that |
#
# The files are made by
#
# ```
# python tools/bench.py supervised --data FOLDER --ensemble --only masked        # three seeds, the same held-out patients
# python tools/bench.py semi800 --data FOLDER --ensemble --only ctseg            # three seeds of the default
# python tools/bench.py ensemble --data FOLDER --seeds 0                         # trains five folds, without and with a presence head
# python tools/bench.py ensemble --data FOLDER --seeds 0 --ensemble              # and averages them
# ```

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ctseg.metrics.bootstrap import paired_bootstrap

# %%
STEPS = {
    "single": "single, argmax",
    "single-rule": "single + rule",
    "ensemble": "ensemble, argmax",
    "tta": "ensemble + views",
    "rule": "ensemble + rule",
    "tta-rule": "ensemble + views + rule",
    "calibrated-rule": "ensemble + calibration + rule",
}
TITLES = {
    "supervised-masked": "masked, three seeds",
    "ensemble-log": "masked, log Dice, five folds",
    "ensemble-presence": "the same with a presence head, three folds",
    "semi800-ctseg": "ctseg, the default, three seeds",
}
found = {n: dict(np.load(p)) for n in TITLES if (p := Path("results/ensemble")/f"{n}.npz").exists()}
facts = {n: json.loads(str(f["facts"])) for n, f in found.items()}
for n, f in facts.items():
    print(
        f"{TITLES[n]}: {', '.join(f['runs'])}\n    rules of the runs: {'; '.join(f['single-rule'])}\n    of "
        f"the ensemble: {f['rule']}; with views: {f['tta-rule']}; calibrated: {f['calibrated-rule']}"
    )


# %% [markdown]
# ## Step by step
#
# Differences are to the single runs with argmax, paired by patient (15 of them, 2000 draws). Where the interval holds 0, the step has not been shown to help.

# %%
def against(a, b, groups):
    d = paired_bootstrap(a, b, groups)
    return {
        "Dice": d["a"],
        **{k: d[k] for k in ("difference", "low", "high")},
        "shown": "helps" if d["low"] > 0 else "harms" if d["high"] < 0 else "no",
    }

tables = {
    n: pd.DataFrame(
        [
            {"step": what, **against(d[f"dice_{k}"], d["dice_single"], d["groups"])}
            for k, what in STEPS.items()
        ]
    )
    .set_index("step")
    .drop(columns="shown")
    for n, d in found.items()
}
pd.concat({TITLES[n]: t for n, t in tables.items()}).round(4)

# %%
#| fig-alt: "The difference to a single run by argmax after each step, with intervals, one panel a recipe"
fig, axes = plt.subplots(
    len(tables), 1, figsize=(7, 0.5 + 2.3*len(tables)), layout="constrained", squeeze=False
)
for ax, (n, t) in zip(axes[:, 0], tables.items()):
    y = np.arange(len(t))[::-1]
    ax.errorbar(
        t.difference,
        y,
        xerr=[t.difference - t.low, t.high - t.difference],
        fmt="o",
        color="C0",
        ecolor="0.6",
        capsize=3,
    )
    ax.axvline(0, color="0.7", lw=1, ls=":")
    ax.set(
        yticks=y,
        yticklabels=t.index,
        title=TITLES[n],
        xlabel="Dice, difference to a single run with argmax (95 % over patients)",
    )
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## One thing at a time
#
# The steps in the table pile up. Here each is held against the same ensemble without it.

# %%
pairs = [
    ("ensemble", "single", "averaging the runs (argmax)"),
    ("rule", "single-rule", "averaging the runs (each with a rule)"),
    ("tta", "ensemble", "five views (argmax)"),
    ("tta-rule", "rule", "five views (with a rule)"),
    ("rule", "ensemble", "a rule"),
    ("calibrated-rule", "rule", "calibration before the rule"),
]
pd.set_option("display.width", 160)

effects = {
    n: {what: against(d[f"dice_{a}"], d[f"dice_{b}"], d["groups"]) for a, b, what in pairs}
    for n, d in found.items()
}
if {"ensemble-log", "ensemble-presence"} <= found.keys():
    a, b = found["ensemble-presence"], found["ensemble-log"]
    for step in ("single", "single-rule"):  # the folds that both have, each against itself
        n = len(a[f"dice_{step}"])
        effects["ensemble-presence"][f"the presence head ({STEPS[step]}, {n} folds)"] = against(
            a[f"dice_{step}"], b[f"dice_{step}"][:n], a["groups"]
        )
effects = {
    n: pd.DataFrame.from_dict(e, orient="index").rename_axis("what").drop(columns="Dice")
    for n, e in effects.items()
}
pd.concat({TITLES[n]: t for n, t in effects.items()}).round(4)

# %% [markdown]
# **Averaging the runs is worth 0.03 to 0.05**, for three seeds of one recipe as for five folds; it is worth 0.018 for three seeds of the default, whose single runs are better already, and 0.014 for the three folds with a presence head. **A rule chosen out of fold is worth another 0.02 for the five folds**, whose held-out slices together are all 800 annotated ones; for three seeds, which all hold out the same tenth, it changes nothing. **Views harm or do nothing** in the three ensembles without a presence head: the networks were
# trained with turns and scales, and slices of 64 pixels lose detail when they are resampled. Calibration before the rule does not help these three either: a temperature of about 2 makes the probabilities [more honest](../inference/50_calibration.ipynb), which is not the same as making the decisions better. So `ctseg predict` averages the runs it is given, `--tune FOLDER` chooses such a rule, and views and calibration are off unless asked for.
#
# **A presence head** (three folds) is worth 0.017 to a single run decided by argmax, as one more thing that the encoder has to know; with each run's own rule the gain is 0.005 and not shown. For the ensemble of three it is a warning: the gate that was best on each run's held-out slices **harms** the average (−0.028), whose peaks are lower than a single
# run's. (Views and calibration gain 0.037 and 0.040 over that rule, so much of that gain is a repair: over the same ensemble decided by argmax they end 0.009 and 0.013 higher, without an interval.) Rules for a few folds with a presence head should be chosen after calibration, or left out. It stays off in every recipe.
#
# The lines above, for the report:

# %%
pd.concat({n: t for n, t in tables.items()}, names=["runs"]).reset_index().round(4).to_csv(
    "results/ensemble/steps.csv", index=False
)
pd.concat({n: t for n, t in effects.items()}, names=["runs"]).reset_index().round(4).to_csv(
    "results/ensemble/effects.csv", index=False
)
sorted(str(p) for p in Path("results/ensemble").glob("*.csv"))
