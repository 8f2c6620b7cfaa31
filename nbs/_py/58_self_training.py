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
# 3. **A pixel the teacher is unsure of teaches nothing**: its weight is 0.
# 4. The student is trained with strong augmentation and CutMix, and fine-tuned for a little while on people's truth alone.

# %%
#| export
import numpy as np
import torch
from dataclasses import replace

from ctseg.augment import strong_mix
from ctseg.data import SliceSet, grouped_folds
from ctseg.methods.teacher_student import join
from ctseg.pseudo import accept_cells, check_truth_kept, complete, pseudo_label
from ctseg.train import Job, Method


# %% [markdown]
# ## The student's step

# %%
#| export
class NoisyStudent(Method):
    "Labelled and pseudo-labelled slices in one batch, the pictures ruined and CutMixed (Xie et al. 2020, arXiv 1911.04252)."
    def __init__(self, cutmix: float = 0.5): self.cutmix = cutmix

    def views(self, trainer, batch, more):
        return {"labelled": strong_mix(join(batch, more), trainer.rng("student"), self.cutmix)}


# %% [markdown]
# ## Completing the slices

# %%
#| export
def fill_in(job: Job, teachers: list, slices: SliceSet) -> tuple[SliceSet, np.ndarray]:
    "`slices` completed by the mean of `teachers`, and which pixels teach (bool [N, H, W])."
    r = job.recipe
    if not len(slices): return slices, np.ones(slices.masks.shape, bool)
    pseudo = pseudo_label(teachers, slices, job.loss, job.plan.device, batch_size=r.batch_size, image_size=r.image_size or None)
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
        mine = np.flatnonzero(fold == k)
        done, teaches[mine] = fill_in(job, [teacher], slices[mine])
        masks[mine], known[mine] = done.masks, done.known
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
    student = job.train("student", done, NoisyStudent(r.cutmix), pixel_weights=teaches, **_extra(job, *fill_in(job, teachers, job.unlabelled)))
    return job.train("finetune", init=student, epochs=r.finetune_epochs, lr=r.finetune_lr) if r.finetune_epochs else student


# %%
#| export
def _extra(job: Job, slices: SliceSet, teaches: np.ndarray) -> dict:
    "The trainer's second stream: those of `slices` on which anything is known by now; for a loss that does not read `known`, anything drawn."
    use = slices.labelled if job.loss.reads_known else slices.present.any(1)
    return dict(extra=slices[use], extra_pixel_weights=teaches[use]) if use.any() else {}


# %%
#| hide
import nbdev; nbdev.nbdev_export()
