# %% [markdown]
# # nnU-Net with and without partial labels
#
# > A very small comparison on phantom volumes: unknown as background, as ignored, and as unknown.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Does nnU-Net learn more from partly labelled volumes when [it is told what is unknown](../guides/nnunet.ipynb)?
#
# **How small this is.** One run each, whose random numbers nnU-Net does not fix. 20 training volumes of the phantom, 32×64×64 voxels of 6 mm, six classes. Of 10 labelled ones two were examined for all classes and eight for three; the other ten have no labels. Scored are 6 volumes with full truth. nnU-Net's `2d` plan, but with a quarter of the width, 8 slices a step, no augmentation and 1200 steps (10 epochs of 120) on one thread of a processor. This is far from a training of nnU-Net, and small structures are hardly learnt by then. It shows that the parts work together and which way they pull, not how large the effect is.
#
# ```
# python tools/nnunet_trial.py --help
# ```

# %%
import pandas as pd

found = pd.read_csv("results/nnunet.csv")
told = {
    "background": "nnU-Net, unknown as background",
    "ignore": "nnU-Net, unknown ignored",
    "partial": "nnUNetTrainerPartial",
    "semi": "nnUNetTrainerPartialSemi, warmup=0.1",
    "late": "nnUNetTrainerPartialSemi, warmup=0.5",
}
table = found.pivot(index="training", columns="class", values="dice")
table = table.reindex(index=[name for name in told if name in table.index], columns=found["class"].unique())
table["mean"] = table.mean(axis=1)
table.rename(index=told).round(2)

# %% [markdown]
# **Answer.** Read as background, unknown structures are hardly learnt: the liver is found half, the others not at all. Both ways that keep them unknown learn three or four of six structures by then. Between nnU-Net's ignore label and `nnUNetTrainerPartial` this run shows no difference
# worth the name: one is better on the liver and the left kidney, the other finds some of the right kidney.
#
# The semi-supervised trainer was *worse* than the supervised one in as many steps: much worse with a teacher that is asked after a tenth of the steps, less so after half of them (the default of `warmup` since). Two reasons are likely; neither was looked into. A teacher that has not learnt a structure is sure of background there, and settles
# it. And half of the draws are cases without labels, from which nothing is learnt before the teacher speaks. Whether unlabelled volumes help nnU-Net at full length was not measured.
#
# ## What is left open
#
# Everything that decides: full plans with augmentation, full length, three dimensions, three seeds with intervals over cases, real CT.
