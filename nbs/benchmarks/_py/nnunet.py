# %% [markdown]
# # nnU-Net with and without partial labels
#
# > A small comparison on phantom volumes: unknown as background, as ignored, as unknown, and completed by a teacher.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Does nnU-Net learn more from partly labelled volumes when [it is told what is unknown](../guides/nnunet.ipynb), and more still with unlabelled ones?
#
# **How small this is.** 20 training volumes of the phantom, 32×64×64 voxels of 6 mm, six classes. Of 10 labelled ones two were examined for all classes and eight for three; the other ten have no labels. Scored are 6 volumes with full truth, by nnU-Net's own prediction. nnU-Net's `2d` plan, but four levels with one convolution each, 8 to 32 channels, 6 slices a step, Adam, no augmentation: 8 epochs of 60 steps. `nnUNetTrainerPartialSemi` takes its further steps on unlabelled cases in the last four epochs. Seeds are fixed, so a training can be repeated. This is far from a training of nnU-Net: the smallest structures are hardly learnt by then.
#
# ```
# python tools/nnunet_trial.py --help
# ```

# %%
import numpy as np
import pandas as pd

from ctseg.metrics.bootstrap import bootstrap_mean, paired_bootstrap

found = pd.read_csv("results/nnunet.csv")
told = {
    "background": "nnU-Net, unknown as background",
    "ignore": "nnU-Net, unknown ignored",
    "partial": "nnUNetTrainerPartial",
    "semi": "nnUNetTrainerPartialSemi",
}
present = {name: text for name, text in told.items() if name in set(found["training"])}

def dice_of(name):
    "Dice of a training, by seed: a table of cases and classes each."
    rows = found[found["training"] == name]
    return {seed: part.pivot(index="case", columns="class", values="dice") for seed, part in rows.groupby("seed")}


# %% [markdown]
# Mean Dice of the six classes. Intervals of 95 % are over the six cases, drawn anew; the differences to `nnUNetTrainerPartial` compare the seeds that both have, on the same draws of cases.

# %%
def row(name):
    "What the table says of a training."
    by_seed, others = dice_of(name), dice_of("partial")
    score = bootstrap_mean(np.stack([*by_seed.values()]))
    shared = [seed for seed in by_seed if seed in others]
    apart = paired_bootstrap(np.stack([by_seed[s] for s in shared]), np.stack([others[s] for s in shared]))
    difference = f"{apart['difference']:+.2f} ({apart['low']:+.2f} to {apart['high']:+.2f})"
    return {
        "training": present[name],
        "seeds": len(by_seed),
        "Dice": f"{score['mean']:.2f} ({score['low']:.2f} to {score['high']:.2f})",
        "of each seed": ", ".join(f"{table.to_numpy().mean():.2f}" for table in by_seed.values()),
        "to Partial": "" if name == "partial" else difference,
    }

pd.DataFrame([row(name) for name in present]).set_index("training")

# %%
classes = found.groupby(["training", "class"])["dice"].mean().unstack()
classes.loc[[*present], [*found["class"].unique()]].rename(index=present).round(2)

# %% [markdown]
# ANSWER
