# %% [markdown]
# # Teacher and student
#
# > The original method, whole: a teacher labels, the surest images are kept, a fresh student learns from both; and its variant, pretrain then fine-tune.
#
# - skip_showdoc: true

# %%
#| default_exp methods.teacher_student

# %% [markdown]
# The project that `ctseg` grew out of did this, after [Baldeon Calisto 2022](https://doi.org/10.1007/978-3-031-23911-3_14):
#
# 1. train a **teacher** on the annotated slices;
# 2. let it label the slices nobody annotated;
# 3. give each slice a confidence and keep the surest (800 of 1200);
# 4. train a fresh **student** on annotated + kept slices, with the loss
#
# $$\mathcal L = \mathcal L_\text{Dice}(\text{labelled} \cup \text{kept}) \;+\; \frac{\lambda}{C\,|\Omega|} \sum_{i \in \Omega} \lVert p^\text{student}_i - p^\text{teacher}_i \rVert^2_2,$$
#
# where $p_i$ are the probabilities at pixel $i$ and $\lambda$ is the recipe's `consistency`. The second term is, as in the original, a mean over the pixels $\Omega$ of the kept slices and the $C$ structures. (The probabilities of a softmax sum to 1, so the same $\lambda$ weighs less the more structures there are.) It gained 0.01 Dice, within noise. Here the whole method is a script of two phases, and each of its choices is a field of the recipe, so that one can find out which of them was the weak one.

# %%
#| export
import torch

from ctseg.data import SliceSet
from ctseg.losses import consistency_loss
from ctseg.pseudo import PseudoLabels, keep_images, pseudo_label
from ctseg.train import Job, Method, finest

# %%
#| hide
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ctseg.metrics import challenge_dice, dice_table
from ctseg.models.base import toy_set
from ctseg.train import Recipe, Run, plot_curves
torch.set_num_threads(1)  # so few slices: another order of a sum is another network


# %% [markdown]
# ## The student's step
#
# The labelled and the pseudo-labelled batch go through the student **together**: one forward pass, one set of BatchNorm statistics, one Dice over both. The teacher is frozen and sees the same augmented image.

# %%
#| export
class Student(Method):
    "Adds the kept pseudo-labelled slices to every batch, and the L2 distance to the teacher's probabilities on them."
    def __init__(self, teacher, weight: float = 1.0): self.teacher, self.weight = teacher, weight

    def start(self, trainer): self.teacher = self.teacher.to(trainer.device).eval()

    def views(self, trainer, batch, more): return {"labelled": batch} | ({} if more is None else {"kept": more})

    def loss(self, trainer, views):
        if "kept" not in views: return super().loss(trainer, views)
        batch, kept = views.values()
        both = batch.concat(kept)
        logits, = trainer.answers(both)
        total = trainer.supervise(logits, both)
        if not self.weight: return total
        p, q = trainer.loss.probabilities(finest(logits)[len(batch):]), trainer.ask(self.teacher, kept.image, presence=False)
        return total + self.weight*consistency_loss(p, q, gather=trainer.loss.gather)


# %% [markdown]
# ## The scripts

# %%
#| export
def label_unlabelled(job: Job, teacher) -> tuple[PseudoLabels, SliceSet]:
    "The teacher's labels for the unlabelled slices, and the slices that are kept."
    r = job.recipe
    pseudo = pseudo_label([teacher.to(job.plan.device)], job.unlabelled, job.loss, job.plan.device, r.image_size or None, r.batch_size, job.in_time("while the teacher labelled; its training is saved"))
    kept = keep_images(pseudo, job.unlabelled, r.keep, r.confidence)
    job.note_pseudo(pseudo, kept)
    return pseudo, kept

def teacher_student(job: Job):
    "Teacher, pseudo-labels, filter, student (recipe fields: `keep`, `confidence`, `consistency`)."
    teacher = job.train("teacher")
    if not len(job.unlabelled): return job.nothing_to_add(teacher)
    _, kept = label_unlabelled(job, teacher)
    if not len(kept): return job.nothing_to_add(teacher)
    return job.train("student", method=Student(teacher, job.recipe.consistency), extra=kept)


# %%
#| export
def pretrain_finetune(job: Job):
    "Pretrain on pseudo-labelled slices only, then fine-tune on the annotated ones at a tenth of the rate (`finetune_epochs`, `finetune_lr`)."
    teacher, r = job.train("teacher"), job.recipe
    if not len(job.unlabelled): return job.nothing_to_add(teacher)
    _, kept = label_unlabelled(job, teacher)
    if not len(kept): return job.nothing_to_add(teacher)
    steps = max(1, len(job.labelled)//r.batch_size)*r.epochs  # as many steps as the other methods take
    pretrained = job.train("pretrain", kept, epochs=max(1, round(steps/max(1, len(kept)//r.batch_size))))
    return job.train("finetune", init=pretrained, epochs=r.finetune_epochs, lr=r.finetune_lr)


# %% [markdown]
# ## A small run
#
# [Toy bodies](base.html): fourteen annotated slices, on each of which two of three structures were looked for (two of them are held out for the curve), and thirty that nobody annotated. (We know their truth, the method does not.) The loss is ours, the confidence Soft Dice; `loss="dice", confidence="max"` would be the original's. This is the original's
# learning-curve figure, with the point where the teacher hands over.

# %%
slices, truth = toy_set(44, 14)
small = Recipe(method="teacher-student", loss="marginal", log_dice=True, width=4, epochs=60, batch_size=6, lr=1e-2, folds=7, keep=0.5)
with tempfile.TemporaryDirectory() as d:
    job = Job(small, slices, Run(Path(d)), progress=False)
    student = teacher_student(job)
    history, said = job.run.read_history(), job.run.read_pseudo()
    teacher = job.train("teacher")  # has been trained: is only loaded
plot_curves(history); plt.show()

# %% [markdown]
# ## Three slices on their way
#
# The slice the teacher is surest of, the median, and the one it is least sure of. Crossed out: rejected. Whatever is not crossed out the student believes, and *all* of it: what the teacher missed (white) is taught as absent.

# %%
unlabelled, hidden = slices[~slices.labelled], truth[~slices.labelled]
dice = np.nanmean(dice_table(said["labels"], hidden, 3), 1)
order = np.argsort(-said["sdc"])
fig, axes = plt.subplots(3, 4, figsize=(7.5, 5.5), layout="constrained")
for row, i in zip(axes, order[[0, len(order)//2, -1]]):
    wrong = np.where(said["labels"][i] == hidden[i], 0, np.where(hidden[i] > 0, 1, 2))
    pictures = {"slice": unlabelled.images[i], "truth, hidden": slices.classes.colourise(hidden[i]), "teacher": slices.classes.colourise(said["labels"][i]),
                "missed (white), invented (grey)": np.array([0, 255, 128])[wrong]}
    for ax, (name, picture) in zip(row, pictures.items()): ax.imshow(picture, cmap="gray", vmin=0, vmax=255); ax.set(xticks=[], yticks=[]); ax.set_title(name if i == order[0] else "", fontsize=9)
    row[0].set_ylabel(f"confidence {said['sdc'][i]:.2f}\nDice {dice[i]:.2f}", fontsize=8)
    if not said["kept"][i]: row[2].plot([0, 47], [0, 47], color="C3")
plt.show()

# %% [markdown]
# Did learning from them help? On a hundred slices that neither has seen:

# %%
fresh, answer = toy_set(100, 0, seed=1)
{n: round(challenge_dice(pseudo_label([m], fresh, job.loss).labels, answer, 3), 3) for n, m in (("teacher", teacher), ("student", student))}

# %% [markdown]
# Not here: a teacher that misses a lung everywhere has taught its student to miss it too. One small run proves nothing; the measurement is [below](#what-it-brought).

# %% [markdown]
# ## Why the original's filter was weak
#
# A filter is as good as its ranking. On [real CT](benchmarks/confidence.html) teachers ranked 300 slices whose truth is known. The original's score, `max`, is the mean over **all** pixels of the largest probability: high where there is much easy background, whatever the drawing is worth. Below, the rank correlation of the scores with the true
# Dice of a slice (1: perfect, 0: no better than a draw), for each teacher (`one`), and for the mean of three (`mean`), which can also be asked how much they agree. `sdc` asks only where something was drawn, and is the default.

# %%
ranked = pd.read_csv("benchmarks/results/confidence_slices.csv").rename(columns={"Unnamed: 2": "asked"})
ranked[ranked.of == "rank correlation"][["teacher", "asked", "max", "entropy", "foreground", "sdc", "agreement"]].style.format(precision=2, na_rep="").hide(axis="index")

# %% [markdown]
# ## What it brought
#
# On [real CT](benchmarks/realct_semi.html) (`labelled` annotated slices; `seed-…`: with the original's loss), compared with supervised training on the same slices. Rows of one seed say how one training went. The rows `log-…` have the sigmoid loss with the logarithm of the Dice (`loss=masked`); the rows `marginal-…` have a softmax (`loss=marginal`), as the recipe `teacher-student` has now.

# %%
told = pd.read_csv("benchmarks/results/realct_semi.csv")
told[told.recipe.str.contains("teacher-student|pretrain-finetune")][["labelled", "recipe", "seeds", "Dice", "minus supervised", "low", "high"]].style.format(precision=3, na_rep="").hide(axis="index")

# %%
#| hide
import nbdev; nbdev.nbdev_export()
