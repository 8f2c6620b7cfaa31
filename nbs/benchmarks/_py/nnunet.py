# %% [markdown]
# # nnU-Net with and without partial labels
#
# > A small comparison on phantom volumes: unknown as background, as ignored, as unknown, and completed by a teacher; nnU-Net's loop and ctseg's own.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Does nnU-Net learn more from partly labelled volumes when [it is told what is unknown](../guides/nnunet.ipynb), and more still with unlabelled ones?
#
# **Answer.** Telling it what is unknown pays. The semi-supervised trainer pays too, once the first half of the training has learnt the structures; in a training so short that it has not, it does not. What it gains comes from the partly labelled volumes, in strong views and completed by the teacher: without the unlabelled volumes it was as good. So these volumes show no use of unlabelled ones in nnU-Net.
#
# **How small this is.** 20 training volumes of the phantom, 32×64×64 voxels of 6 mm, six classes. Of 10 labelled ones two were examined for all classes and eight for three; the other ten have no labels. Scored are 6 volumes with full truth, by nnU-Net's own prediction. nnU-Net's `2d` plan, but four levels with one convolution each, 8 to 32 channels, 6 slices a step, Adam, no augmentation by nnU-Net; epochs of 60 steps. Seeds are fixed, so a training can be repeated. This is far from a training of nnU-Net.
#
# ```
# python tools/nnunet_trial.py --help
# ```

# %%
import numpy as np
import pandas as pd

from ctseg.metrics.bootstrap import bootstrap_mean, paired_bootstrap

found = pd.read_csv("results/nnunet.csv")
NAMES = {
    "background": "nnU-Net, unknown as background",
    "ignore": "nnU-Net, unknown ignored",
    "partial": "nnUNetTrainerPartial",
    "semi": "nnUNetTrainerPartialSemi",
    "semi-labelled": "the same without the unlabelled volumes",
    "semi-weak": "an earlier one, without strong views",
    "own": "ctseg's own loop, marginal-log",
    "own-semi": "ctseg's own loop, ctseg",
}

def dice_of(training, epochs):
    "Dice of a training, by seed: a table of cases and classes each."
    rows = found[(found["training"] == training) & (found["epochs"] == epochs)]
    tables = rows.groupby("seed")
    return {seed: part.pivot(index="case", columns="class", values="dice") for seed, part in tables}


# %% [markdown]
# Mean Dice of the six classes. Intervals of 95 % are over the six cases, drawn anew. The differences to `nnUNetTrainerPartial` compare the seeds that both have, on the same draws of cases.

# %%
def row(training, epochs, base):
    "What a table says of a training; differences are to `nnUNetTrainerPartial` of `base` epochs."
    by_seed, others = dice_of(training, epochs), dice_of("partial", base)
    score = bootstrap_mean(np.stack([*by_seed.values()]))
    shared = [seed for seed in by_seed if seed in others]
    these, those = (np.stack([tables[seed] for seed in shared]) for tables in (by_seed, others))
    apart = paired_bootstrap(these, those)
    difference = f"{apart['difference']:+.3f} ({apart['low']:+.3f} to {apart['high']:+.3f})"
    rows = found[(found["training"] == training) & (found["epochs"] == epochs)]
    seconds = rows.groupby("seed")["seconds"].first().mean()
    return {
        "training": NAMES[training],
        "epochs": epochs,
        "seeds": len(by_seed),
        "Dice": f"{score['mean']:.3f} ({score['low']:.3f} to {score['high']:.3f})",
        "of each seed": ", ".join(f"{table.to_numpy().mean():.3f}" for table in by_seed.values()),
        "to Partial": "" if (training, epochs) == ("partial", base) else difference,
        "processor s": "" if np.isnan(seconds) else f"{seconds:.0f}",
    }

def table(wanted, base):
    "The trainings that are wanted, as far as they are there."
    there = set(zip(found["training"], found["epochs"]))
    return pd.DataFrame([row(*one, base) for one in wanted if one in there]).set_index("training")


# %% [markdown]
# ## 8 epochs
#
# 480 steps. By then the liver is learnt and the stomach nearly. `nnUNetTrainerPartialSemi` asks its teacher in the last four epochs, and finds it worth believing about these alone.

# %%
table([(name, 8) for name in ("background", "ignore", "partial", "semi")], 8)

# %%
classes = found[found["epochs"] == 8].groupby(["training", "class"])["dice"].mean().unstack()
classes[[*found["class"].unique()]].rename(index=NAMES).round(2)

# %% [markdown]
# With unknown as background most structures are not learnt, and `nnUNetTrainerPartial` was ahead of the ignore label with each of three seeds. Unlabelled volumes bring nothing yet: their gradient speaks of the liver, and the kidneys still have to be found.
#
# ## 24 epochs
#
# 1440 steps. From epoch 12 on the teacher is believed about three to five of the six structures, later about five or six. The second half of `nnUNetTrainerPartialSemi` takes two batches a step, so 36 epochs of the supervised trainer stand beside it as well: about the same processor time.

# %%
names = ("ignore", "partial", "semi", "semi-labelled", "semi-weak")
wanted = [*((name, 24) for name in names), ("partial", 36)]
table(wanted, 24)

# %%
longer = found[found["epochs"].isin([24, 36])]
classes = longer.groupby(["training", "epochs", "class"])["dice"].mean().unstack()
classes[[*found["class"].unique()]].rename(index=NAMES).round(2)

# %% [markdown]
# Partial labels stay ahead of the ignore label. The semi-supervised trainer is ahead of the supervised one with each of three seeds, at equal epochs. Three things lessen that:
#
# * Its epochs cost more. The supervised trainer with about the same processor time comes close (36 epochs, see how many seeds).
# * Without the unlabelled volumes it is as good, within a hundredth.
# * nnU-Net's own augmentation is switched off here, so the strong views stand for augmentation as well.
#
# ## ctseg's own loop on the same volumes
#
# `ctseg import nnunet` makes slices of the same data set. The Attention U-Net of width 8 was trained on them, for about the processor time of 24 epochs of the trainer of the same kind, with ctseg's augmentation; `ctseg segment` predicted the same test volumes. The recipe `marginal-log` is supervised, `ctseg` adds a phase with the unlabelled slices.

# %%
table([("partial", 24), ("own", 24), ("semi", 24), ("own-semi", 16)], 24)

# %% [markdown]
# Over three seeds ctseg's own loop is a little ahead of the supervised trainer at about equal processor time, though one of its three trainings ends below all of nnU-Net's: its seeds differ far more than nnU-Net's, and the interval, which is over cases, does not see that. Its semi-supervised recipe is not ahead of the supervised one. Network, augmentation and decision rule differ, nnU-Net's augmentation is switched off and its network narrow, so this says that neither loop is lost on such data, not which one is better on yours. It computes in bfloat16 on this processor, nnU-Net in float32.
#
# ## How the teacher came to be as it is
#
# Three things were learnt on these volumes, from trainers that were worse than the supervised one:
#
# 1. **What the teacher has not learnt, it is sure is background.** After 360 steps neither trainer found any spleen, kidney, aorta or stomach, and the average took up to half of the voxels of these structures for background with a certainty above .9. As truth for the student they did harm. So the teacher is believed only about classes whose pseudo Dice reaches `min_dice`.
# 2. **Steps on unlabelled cases in place of labelled ones** halve the speed at which the hardest structures are learnt. So a step draws as many labelled cases as the supervised trainer's, and others come on top.
# 3. **Steps of their own for unlabelled cases** move the network as far as labelled ones, since Adam divides by the size of the gradient, and a student that sees what the teacher sees learns little from it. So both gradients go into one step, and the student sees a [strong view](../integrations/13_nnunet_views.ipynb).
#
# ## What is left open
#
# Everything that decides: full plans with nnU-Net's augmentation, full length, three dimensions, real CT.
