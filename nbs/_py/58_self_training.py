# %% [markdown]
# # Self-training, cell by cell
#
# > Teachers that never saw a slice's truth fill in what nobody examined on it, structure by structure; a student learns from the completed slices.
#
# - skip_showdoc: true

# %%
#| default_exp methods.self_training

# %% [markdown]
# The original project looked for pseudo-labels on the 1200 slices without annotation. It overlooked that the 800 annotated ones are half empty: of their 43,200 cells (structure × slice) 21,600 were never examined. And it chose *slices*, where a teacher is
# rarely right about everything, instead of *cells*. Self-training here does four things differently:
#
# 1. **K teachers**, each trained without one fold of patients. A labelled slice is completed only by the teacher that never saw it; an unlabelled slice by their mean.
# 2. **A cell is accepted on its own confidence**, by class-wise quotas ([pseudo-labels](pseudo.html)); confident absences are kept as negatives.
# 3. **Where a teacher is unsure of a pixel, what it added is unknown there.** What people know about the pixel still teaches.
# 4. The student is trained with strong augmentation and CutMix, and fine-tuned for a little while on people's truth alone.

# %%
#| export
import numpy as np
import torch
from dataclasses import replace

from ctseg.augment import strong_mix
from ctseg.data import Batch, SliceSet, grouped_folds
from ctseg.pseudo import accept_cells, check_truth_kept, complete, pseudo_label
from ctseg.train import Job, Method

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from fastcore.test import test_eq
from ctseg.metrics import challenge_dice
from ctseg.models.base import toy_set
from ctseg.train import Recipe, Run
torch.set_num_threads(1)  # so few slices: another order of a sum is another network


# %% [markdown]
# ## The student's step
#
# The pixels that a teacher is unsure of come with weight 0. A weight silences *everything* about a pixel, though, and the unsure pixels are the rims of structures, where people's outlines of other structures have most to say. So the weight is turned into a map of `known`: at an unsure pixel only what people examined is known. That is done before the slice is augmented: in a mirror, what they examined on the left lies on the right.

# %%
#| export
def silence(
    batch: Batch, # with weights: 0 where a teacher is unsure
    people: torch.Tensor|None, # bool [N, C]: what people examined on the slices that `batch.index` counts; None: nothing
) -> Batch: # `known` is [B, C, H, W], no weights
    "Unsure pixels are unknown for all classes but those that people examined."
    B, C = batch.known.shape
    sure = batch.weight > .5
    if people is not None: sure = sure | people[batch.index].view(B, C, 1, 1)
    return replace(batch, known=batch.known[:, :, None, None] & sure, weight=None)

class NoisyStudent(Method):
    "Labelled and pseudo-labelled slices in one batch, the pictures ruined and CutMixed (Xie et al. 2020, arXiv 1911.04252)."
    def __init__(self, cutmix: float = 0.5, people: np.ndarray|None = None): self.cutmix, self.people = cutmix, people

    def start(self, trainer):
        if self.people is not None: self.people = torch.as_tensor(self.people, device=trainer.device)

    def read(self, trainer, batch, extra=False):
        return silence(batch, None if extra else self.people) if trainer.loss.reads_known and batch.weight is not None else batch

    def views(self, trainer, batch, more):
        return {"labelled": strong_mix(batch.concat(more), trainer.rng("student"), self.cutmix)}


# %% [markdown]
# Two pixels of a slice on which people examined the first structure, and a teacher added the second. At the second pixel the teacher is unsure: the first structure is known there all the same.

# %%
b = Batch(torch.zeros(1, 1, 1, 2), torch.tensor([[[0, 2]]]), torch.tensor([[True, True]]), torch.tensor([[[[1., 0.]]]]), torch.tensor([0]))
test_eq(silence(b, torch.tensor([[True, False]])).known[0, :, 0].int().tolist(), [[1, 1], [1, 0]])


# %% [markdown]
# ## Completing the slices

# %%
#| export
def fill_in(job: Job, teachers: list, slices: SliceSet) -> tuple[SliceSet, np.ndarray]:
    "`slices` completed by the mean of `teachers`, and where these are sure enough (bool [N, H, W])."
    r = job.recipe
    if not len(slices): return slices, np.ones(slices.masks.shape, bool)
    pseudo = pseudo_label(teachers, slices, job.loss, job.plan.device, batch_size=r.batch_size, image_size=r.image_size or None, each=job.in_time("while teachers labelled; their training is saved"))
    present, absent = accept_cells(pseudo, slices.known, r.quota, r.gate, r.absent)
    done, teaches = complete(slices, pseudo, present, absent, r.pixel)
    check_truth_kept(slices, done)
    return done, teaches


# %%
#| export
def out_of_fold(job: Job, teachers: list, slices: SliceSet, fold: np.ndarray) -> tuple[SliceSet, np.ndarray]:
    "`slices`, in their order, each completed by the one teacher that never saw it (teacher k did not see fold k)."
    masks, known, teaches = slices.masks.copy(), slices.known.copy(), np.ones(slices.masks.shape, bool)
    for k, teacher in enumerate(teachers):
        mine, learnt = np.flatnonzero(fold == k), slices[fold != k].known.any(0)  # what it was never told about it cannot call absent
        done, teaches[mine] = fill_in(job, [teacher], slices[mine])
        masks[mine], known[mine] = done.masks, slices.known[mine] | (done.known & learnt)
    return replace(slices, masks=masks, known=known), teaches


# %% [markdown]
# ## The script
#
# A second round repeats the first with teachers that have themselves learnt from completed slices. To keep folds clean, teacher $k$ learns only from what *it* filled in: the others have seen the truth of fold $k$, and what they say about an unlabelled slice could carry it over.

# %%
#| export
def self_training(job: Job):
    "K out-of-fold teachers, cells accepted by confidence, a student, a fine-tune (`teachers`, `rounds`, `quota`, `gate`, `absent`, `pixel`, `cutmix`)."
    r, labelled = job.recipe, job.labelled
    fold = grouped_folds(labelled, r.teachers, seed=job.seed)
    own = [dict() for _ in range(r.teachers)]  # what each teacher learns from, beside its own folds' truth
    for n in range(r.rounds):
        teachers = [job.train(f"teacher-{n + 1}-{k + 1}", labelled[fold != k], NoisyStudent(r.cutmix) if n else None, **own[k]).to(job.plan.device) for k in range(r.teachers)]
        for k, t in enumerate(teachers):
            if n + 1 < r.rounds: own[k] = _extra(job, *fill_in(job, [t], job.unlabelled))
    done, teaches = out_of_fold(job, teachers, labelled, fold)
    job.note_completed(labelled, done)
    student = job.train("student", done, NoisyStudent(r.cutmix, labelled.known), pixel_weights=teaches, **_extra(job, *fill_in(job, teachers, job.unlabelled)))
    return job.train("finetune", init=student, epochs=r.finetune_epochs, lr=r.finetune_lr) if r.finetune_epochs else student


# %%
#| export
def _extra(job: Job, slices: SliceSet, teaches: np.ndarray) -> dict:
    "The trainer's second stream: those of `slices` on which anything is known by now; for a loss that does not read `known`, anything drawn."
    use = slices.labelled if job.loss.reads_known else slices.present.any(1)
    return dict(extra=slices[use], extra_pixel_weights=teaches[use]) if use.any() else {}


# %% [markdown]
# ## Three slices on their way
#
# A small run on [toy bodies](base.html): twenty-four annotated slices, of which two of three structures were looked for; thirty without annotation. The three annotated slices to which most was added, each by the teacher that never saw it: what people outlined, what was added, and (black) where the teacher is too unsure for its additions to teach.
# Nothing that people drew has changed, and a structure that they looked for in vain has not been drawn.

# %%
slices, truth = toy_set(54, 24)
small = Recipe(method="self-training", loss="marginal", log_dice=True, width=4, epochs=60, batch_size=5, lr=1e-2, fold=-1, teachers=3, quota=0.9, gate=0.5, finetune_epochs=5, finetune_lr=1e-3)
with tempfile.TemporaryDirectory() as d:
    job = Job(small, slices, Run(Path(d)), progress=False)
    student = self_training(job)
    fold = grouped_folds(job.labelled, small.teachers, seed=job.seed)
    teachers = [job.train(f"teacher-1-{k + 1}", job.labelled[fold != k]) for k in range(small.teachers)]  # have been trained: are only loaded
    cells = pd.read_csv(job.run/"pseudo_cells.csv")

# %%
done, teaches = out_of_fold(job, teachers, job.labelled, fold)
added = (done.masks != job.labelled.masks).sum((1, 2))
names, colour = slices.classes.names, slices.classes.colourise
fig, axes = plt.subplots(3, 5, figsize=(9, 5.6), layout="constrained")
for row, i in zip(axes, np.argsort(-added, kind="stable")[:3]):
    pictures = {"slice": slices.images[i], "truth, hidden": colour(truth[i]), "outlined": colour(slices.masks[i]), "completed": colour(done.masks[i]), "sure": teaches[i]*255}
    for ax, (name, x) in zip(row, pictures.items()): ax.imshow(x, cmap="gray", vmin=0, vmax=255); ax.set(xticks=[], yticks=[]); ax.set_title(name if row[0] is axes[0, 0] else "", fontsize=9)
    row[0].set_ylabel("looked for\n" + "\n".join(n for n, k in zip(names, slices.known[i]) if k), fontsize=7)
plt.show()
check_truth_kept(job.labelled, done)

# %% [markdown]
# The run folder counts it, in `pseudo_cells.csv`: cells (structure × annotated slice) that people found present and absent, and what the teachers added.

# %%
cells.style.hide(axis="index")

# %% [markdown]
# And on a hundred slices that nobody has seen, the teachers (each trained on two thirds of the annotated slices) and the student:

# %%
fresh, answer = toy_set(100, 0, seed=1)
{n: round(challenge_dice(pseudo_label([m], fresh, job.loss).labels, answer, 3), 3) for n, m in [*((f"teacher {k + 1}", t) for k, t in enumerate(teachers)), ("student", student)]}

# %% [markdown]
# ## What it brought
#
# On [real CT](benchmarks/realct_semi.html), compared with supervised training on the same annotated slices. From the original's loss (`seed-…`) it gained 0.06 on average with 100 of them, where the network itself has learnt next to nothing, in two of three trainings; from the sigmoid loss (`log-…`) it lost 0.025 in its one: teachers have two thirds of very little. With 800 it changed the original's loss by 0.003, the sigmoid loss by 0.005, and the softmax that the recipe has now (`loss=marginal`) by −0.005, in one training each: nothing. On the [phantom](benchmarks/phantom_semi.html), with 54 structures, of which its teachers miss many, the same softmax loss lost 0.022.

# %%
told = pd.read_csv("benchmarks/results/realct_semi.csv")
told[told.recipe.str.contains("self-training")][["labelled", "recipe", "seeds", "Dice", "minus supervised", "low", "high"]].style.format(precision=3, na_rep="").hide(axis="index")

# %%
#| hide
import nbdev; nbdev.nbdev_export()
