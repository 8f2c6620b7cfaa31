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
# the second term over the pixels $\Omega$ of the kept slices and the $C$ structures (the mean over both, so that $\lambda$ means the same for any number of them). It gained 0.01 Dice, within noise. Here the whole method is a script of two phases, and each of its choices is a field of the recipe, so that one can find out which of them was the weak one.

# %%
#| export
import numpy as np
import torch

from ctseg.augment import NO_AUGMENT
from ctseg.data import Batch, SliceSet
from ctseg.losses import consistency_loss
from ctseg.pseudo import PseudoLabels, keep_images, pseudo_label
from ctseg.train import Job, Method, finest

# %%
#| hide
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from ctseg.data import read_challenge
from ctseg.train import Recipe, Run, plot_curves


# %% [markdown]
# ## The student's step
#
# The labelled and the pseudo-labelled batch go through the student **together**: one forward pass, one set of BatchNorm statistics, one Dice over both. The teacher is frozen and sees the same augmented image.

# %%
#| export
def join(a: Batch, b: Batch|None) -> Batch:
    "Two batches as one; weights default to 1 where only one of them has some."
    if b is None: return a
    known = [a.known, b.known]
    if known[0].ndim != known[1].ndim: known = [k if k.ndim == 4 else k[:, :, None, None].expand(-1, -1, *a.mask.shape[1:]) for k in known]
    weight = None
    if a.weight is not None or b.weight is not None:
        weight = torch.cat([torch.ones_like(x.image) if x.weight is None else x.weight for x in (a, b)])
    return Batch(torch.cat([a.image, b.image]), torch.cat([a.mask, b.mask]), torch.cat(known), weight, torch.cat([a.index, b.index]))


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
        both = join(batch, kept)
        logits, = trainer.answers(both)
        total = trainer.supervise(logits, both)
        if not self.weight: return total
        p, q = trainer.loss.probabilities(finest(logits)[len(batch):]), trainer.ask(self.teacher, kept.image)
        return total + self.weight*consistency_loss(p, q, gather=trainer.loss.gather)


# %% [markdown]
# ## The scripts

# %%
#| export
def label_unlabelled(job: Job, teacher) -> tuple[PseudoLabels, SliceSet]:
    "The teacher's labels for the unlabelled slices, and the slices that are kept."
    r = job.recipe
    pseudo = pseudo_label([teacher.to(job.plan.device)], job.unlabelled, job.loss, job.plan.device, r.image_size or None, r.batch_size)
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
# Ten annotated slices, fourteen others, a small network: far too little to learn 54 structures, enough to see the two phases. This is the original's learning-curve figure, with the point where the teacher hands over.

# %%
small = Recipe(method="teacher-student", loss="dice", width=8, epochs=40, batch_size=5, lr=4e-3, image_size=64, fold=-1, keep=0.5, confidence="max")
slices = read_challenge("../data_sample", cache=False)
with tempfile.TemporaryDirectory() as d:
    job = Job(small, slices, Run(Path(d)), progress=False)
    student = teacher_student(job)
    history, scores = job.run.read_history(), pd.read_csv(job.run/"pseudo_labels.csv")
plot_curves(history); plt.show()

# %% [markdown]
# The run folder keeps what the filter did: a row an unlabelled slice, with every score and whether it was kept. At this size the teacher knows next to nothing (its mean largest probability stands in the column `max`; chance is 0.02 among 55 channels), and so the ranking means
# nothing either; how well each score ranks a teacher that *has* learnt something is a question for [pseudo-labels](pseudo.html).

# %%
scores.sort_values("max", ascending=False).head(8).reset_index(drop=True).round(3)

# %%
#| hide
import nbdev; nbdev.nbdev_export()
