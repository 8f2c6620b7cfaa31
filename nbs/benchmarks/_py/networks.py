# %% [markdown]
# # The networks beside each other
#
# > Every architecture on the same partly annotated slices, with the same recipe, for the same time.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Which network is best for the same processor time?
#
# **Answer.** From random weights and on small slices none beats the small Attention U-Net. nnU-Net's plain U-Net comes close, and the transformers trail.
#
# ## How it was measured
#
# The original compared Attention U-Net, MISSFormer and UC-TransNet, each for as many epochs as there was patience. Here each gets the **same processor time**: as long as `attunet` of width 16 needs for its 1800 steps on
# [the real-CT slices](realct_supervised.ipynb) (64×64 pixels, 800 partly annotated). The cost of a step was measured first, alternating with `attunet`, and gives the number of epochs. Everything else is the recipe `masked-log`: loss,
# augmentation, schedule, and a learning rate of 2e-3, which was found with `attunet` and may suit the transformers less.
#
# All start from random weights. That is a handicap for `unet:resnet34` and `segformer:mit_b0`, which exist for the sake of their pretrained encoders; there is no network where these runs were made.
#
# ```
# python tools/bench.py networks --data FOLDER
# ```

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

sys.path.insert(0, "../../paper")
from measured import chosen, line, load

from ctseg.metrics.challenge import mean_dice

from ctseg.losses.registry import make_loss
from ctseg.models.base import count_parameters
from ctseg.models.costs import multiply_adds
from ctseg.models.settings import make_model
from ctseg.runs.recipe import apply_settings
from ctseg.recipes.table import get_recipe

RESULTS = Path("results")
runs = load(RESULTS/"networks") | {"attunet": load(RESULTS/"supervised")["masked-log"]}
{n: sorted(r) for n, r in runs.items()}


# %% [markdown]
# Rows of **one seed** say how one training went; three trainings of `attunet` are shown, so that its spread can be seen beside them. The difference to `attunet` is over the seeds that both have, its interval a bootstrap over the 15 test patients.

# %%
def network(name):
    facts = next(iter(runs[name].values()))["facts"]
    recipe = apply_settings(get_recipe(facts["recipe"]), facts["settings"])
    net = make_model(recipe.model, make_loss(recipe.loss).out_chans(7), 7, image_size=64, trained=True)
    costs = {
        "parameters (M)": count_parameters(net)/1e6,
        "multiply-adds, 64×64 (G)": multiply_adds(net, 64)/1e9,
    }
    named = {"network": recipe.model.name, "width": recipe.value("width") or None}
    return named | costs | {"epochs": recipe.schedule.epochs} | line(runs, name, "attunet")


table = pd.DataFrame([network(n) for n in runs], index=list(runs)).sort_values("Dice", ascending=False)
table = table.drop(columns=["paired seeds", "better in", "invented", "missed"]).rename(
    columns={"difference": "minus attunet"}
)
table.to_csv(RESULTS/"networks.csv", index=False, float_format="%.4f")
three = dict.fromkeys(["Dice", "sd", "minus attunet", "low", "high"], "{:.3f}")
table.style.format(
    three | {"parameters (M)": "{:.1f}", "multiply-adds, 64×64 (G)": "{:.2f}", "width": "{:.0f}"}, na_rep=""
).hide(axis="index")

# %%
#| fig-alt: "Dice against the number of parameters, one point a training; attunet's three lie highest"
fig, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
for name, seeds in runs.items():
    r, scores = table.loc[name], [mean_dice(chosen(x)) for x in seeds.values()]
    ax.plot(
        [r["parameters (M)"]]*len(scores), scores, "o", color="C3" if name == "attunet" else "C0", alpha=.7
    )
    ax.annotate(
        r["network"],
        (r["parameters (M)"], np.mean(scores)),
        xytext=(7, -3),
        textcoords="offset points",
        fontsize=8,
    )
ax.set(xlabel="parameters (millions)", ylabel="Dice, 15 other patients", xscale="log", xlim=(1.5, 90))
ax.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
ax.minorticks_off()
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## By class

# %%
first = runs["attunet"][0]
by_class = pd.DataFrame(
    {n: np.mean([np.nanmean(chosen(r), axis=0) for r in s.values()], axis=0) for n, s in runs.items()},
    index=first["classes"],
)
by_class.insert(0, "test slices", first["truth"].sum(0))
by_class.T.style.format(precision=2)

# %% [markdown]
# ## What this says
#
# At equal processor time, from random weights, on small slices, **nothing beats the small Attention U-Net**, one of the smallest of them. nnU-Net's plain U-Net, with three and a half times its parameters, comes close (the interval of the difference holds 0); the transformers trail, most of all where the decoder works at a
# quarter of the resolution (SegFormer), as is known of transformers that start from nothing on few images.
#
# ## What it does not say
#
# Every network but `attunet` was trained once, with a learning rate found for `attunet`, on 64×64 pixels and without pretraining, for the sake of which `unet:resnet34` and `segformer:mit_b0` exist.
