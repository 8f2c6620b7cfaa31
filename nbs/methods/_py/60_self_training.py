# %% [markdown]
# # Self-training, cell by cell
#
# > Teachers that never saw a slice's truth fill in what nobody examined on it, structure by structure; a student learns from the completed slices.

# %%
#| default_exp methods.self_training

# %%
#| export
from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ctseg.core.settings import setting
from ctseg.data.strong_views import strong_mix
from ctseg.data.batches import Batch
from ctseg.data.lazy import LazyPixels, take
from ctseg.data.slices import SliceSet
from ctseg.data.splits import grouped_folds
from ctseg.methods.pseudo import accept_cells, check_truth_kept, complete, not_asked, pseudo_label
from ctseg.methods.teacher_student import FinetuneSettings, finetune
from ctseg.training.method import JobLike, Method, Phase, StepContext, register_method

# %%
#| hide
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_eq
from matplotlib.colors import to_rgb
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.settings import describe
from ctseg.core.style import STATE_COLOURS, class_legend, image_grid, show_image
from ctseg.data.augment import MILD
from ctseg.data.batches import Batch, SliceData
from ctseg.data.toys import toy_set
from ctseg.losses.registry import create_loss
from ctseg.methods.in_memory import MemoryJob, toy_score
from ctseg.models.zoo import create_model
from ctseg.training.method import Method
from ctseg.training.setup import ScheduleSettings, Setup

torch.set_num_threads(1)  # so few slices: another order of a sum is another network
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})  # grey noise: a quarter of a PNG
UNKNOWN = (255*np.array(to_rgb(STATE_COLOURS["unknown"]))).astype(np.uint8)


# %% [markdown]
# Annotated slices are half empty: on each, many structures were never looked for. A teacher can fill these in as well as the slices that nobody annotated. And it is rarely right about everything on a slice, so it should be believed *cell* by cell. Self-training here does four things:
#
# 1. **K teachers**, each trained without one fold of patients. A labelled slice is completed only by the teacher that never saw it; an unlabelled slice by their mean.
# 2. **A cell is accepted on its own confidence**, by class-wise quotas ([pseudo-labels](20_pseudo.ipynb)); confident absences are kept as negatives.
# 3. **Where a teacher is unsure of a pixel, what it added is unknown there.** What people know about the pixel still teaches.
# 4. The student is trained with strong augmentation and CutMix, and fine-tuned for a little while on people's truth alone.
#
# ## Settings

# %%
#| export
class SelfTrainingSettings(FinetuneSettings):
    "Settings of the method `self-training`."
    teachers: int = setting(3, "folds, and so teachers", low=2)
    rounds: int = setting(1, "how often teachers are trained, the later times on what they filled in", low=1)
    quota: float = setting(0.5, "share of a class's found cells to accept at most", low=0, high=1)
    cell_confidence: float = setting(0.7, "least Soft Dice Confidence of an accepted cell", low=0, high=1)
    absent_peak: float = setting(0.1, "a class whose peak probability stays below is absent", low=0, high=1)
    pixel_confidence: float = setting(0.8, "least certainty of a pixel of an accepted cell", low=0, high=1)
    cutmix: float = setting(0.5, "share of the student's images that get part of another", low=0, high=1)


# %%
for info in describe(SelfTrainingSettings):
    print(f"{info.name:<18}{info.default!s:<8}{info.meaning}")


# %% [markdown]
# ## The student's step
#
# The pixels that a teacher is unsure of come with weight 0. A weight hides *everything* about a pixel, though, and the unsure pixels are the rims of structures, where people's outlines of other structures have most to say. So the weight is turned into a map of `known`: at an unsure pixel only what people examined is known. That is done before the slice is augmented: in a mirror, what they examined on the left lies on the right.

# %%
#| export
def mask_uncertain(batch: Batch, examined: torch.Tensor | None) -> Batch:
    """Unsure pixels become unknown for all classes but those that people examined.

    batch: with weights, 0 where a teacher is unsure. examined: bool `[N, C]`, what people examined on the slices that
    `batch.index` counts; None: nothing. The result has `known` bool `[B, C, H, W]` and no weights.
    """
    images, classes = batch.known.shape
    sure = batch.weight > .5
    if examined is not None:
        sure = sure | examined[batch.index].view(images, classes, 1, 1)
    return replace(batch, known=batch.known[:, :, None, None] & sure, weight=None)


# %% [markdown]
# Two pixels of a slice on which people examined the first structure, and a teacher added the second. At the second pixel the teacher is unsure: the first structure is known there all the same.

# %%
both_known, sure = torch.tensor([[True, True]]), torch.tensor([[[[1., 0.]]]])
b = Batch(torch.zeros(1, 1, 1, 2), torch.tensor([[[0, 2]]]), both_known, sure, torch.tensor([0]))
mask_uncertain(b, torch.tensor([[True, False]])).known[0, :, 0].int()


# %%
#| export
class NoisyStudent(Method):
    """The student's step: labelled and completed slices in one batch, ruined and CutMixed (Xie et al. 2020, arXiv 1911.04252).

    cutmix: share of the images that get a rectangle of another. examined: bool `[N, C]`, what people examined on the
    slices of the first stream; None: nothing that is not in `known`.
    """
    def __init__(self, cutmix: float = 0.5, examined: np.ndarray | None = None):
        super().__init__()
        self.cutmix = cutmix
        self.examined = None if examined is None else torch.as_tensor(examined)

    def read(
        self,
        ctx: StepContext,
        batch: Batch,
        extra: bool = False,
    ) -> Batch:
        "Weights of pixels become a map of `known`, where the loss reads it."
        if not ctx.loss.reads_known or batch.weight is None:
            return batch
        if self.examined is not None:
            self.examined = self.examined.to(batch.known.device)  # moves once
        return mask_uncertain(batch, None if extra else self.examined)

    def views(self, ctx: StepContext, labelled: Batch, extra: Batch | None) -> dict[str, Batch]:
        "Both streams as one, with strong augmentation and CutMix."
        return {"labelled": strong_mix(labelled.concat(extra), ctx.rng("student"), self.cutmix)}


# %%
#| fig-alt: "Two toy slices, and the two mixed ones that the student sees of them"
gen = torch.Generator().manual_seed(0)
batch = SliceData(toy_set(2, 2)[0], "cpu").batch([0, 1])
mixed = NoisyStudent(1.0).views(SimpleNamespace(rng=lambda purpose: gen), batch, None)["labelled"]
pictures = {
    "slice 1": batch.image[0],
    "slice 2": batch.image[1],
    "what the student": mixed.image[0],
    "sees of them": mixed.image[1],
}
fig, axes = image_grid(1, 4, 1.8)
for ax, (title, image) in zip(axes[0], pictures.items()):
    show_image(ax, 255*image[0], title)
plt.show()


# %% [markdown]
# ## The method
#
# A teacher cannot call absent what it was never told about, so absences of classes that nobody looked for in its folds stay unknown.
#
# A second round repeats the first with teachers that have themselves learnt from completed slices. To keep folds clean, teacher $k$ learns only from what *it* filled in: the others have seen the truth of fold $k$, and what they say about an unlabelled slice could carry it over.

# %%
#| export
@dataclass(frozen=True)
class Completed:
    "Slices that teachers have completed, and where these are sure enough to be learnt from: bool `[N, H, W]`, or lazy."
    slices: SliceSet
    teaches: np.ndarray | LazyPixels

    def as_extra(self, reads_known: bool) -> dict:
        """The second stream of a `Phase`: the slices on which anything is known by now.

        reads_known: False, for a loss that takes unknown for background: the slices on which anything is drawn.
        """
        use = self.slices.labelled if reads_known else self.slices.present.any(1)
        if not use.any():
            return {}
        return {"extra": self.slices[use], "extra_pixel_weights": take(self.teaches, use)}


# %%
outlined = toy_set(6, 4)[0]
everywhere = Completed(outlined, np.ones(outlined.masks.shape, bool))
print({name: len(value) for name, value in everywhere.as_extra(reads_known=True).items()})


# %%
#| export
def fill_in(
    job: JobLike,
    teachers: list[nn.Module],
    slices: SliceSet,
    settings: SelfTrainingSettings,
) -> Completed:
    "`slices` with the cells filled in of which the mean of `teachers` is sure."
    if not len(slices):
        return Completed(slices, np.ones(slices.masks.shape, bool))
    each = job.in_time("while teachers labelled; their training is saved")
    batch_size = job.schedule.batch_size
    pseudo = pseudo_label(teachers, slices, job.loss, job.device, job.image_size, batch_size, each)
    limits = settings.quota, settings.cell_confidence, settings.absent_peak
    present, absent = accept_cells(pseudo, not_asked(slices), *limits)
    completed, teaches = complete(slices, pseudo, present, absent, settings.pixel_confidence)
    check_truth_kept(slices, completed)
    return Completed(completed, teaches)


# %% [markdown]
# A teacher that is sure of nothing adds nothing:

# %%
class Undecided(torch.nn.Module):
    "Gives every structure, and background, the same probability."
    def forward(self, x):
        return torch.zeros(len(x), 4, *x.shape[2:])


job = SimpleNamespace(
    loss=create_loss("marginal"),
    device="cpu",
    image_size=None,
    schedule=ScheduleSettings(),
    in_time=lambda what: None,
)
never_absent = SelfTrainingSettings(absent_peak=0)
filled = fill_in(job, [Undecided()], outlined, never_absent)
test_eq(filled.slices.known, outlined.known)
test_eq(filled.slices.masks, outlined.masks)


# %%
#| export
def fill_in_unseen(
    job: JobLike,
    teachers: list[nn.Module],
    slices: SliceSet,
    fold: np.ndarray,
    settings: SelfTrainingSettings,
) -> Completed:
    """`slices`, in their order, each completed by the one teacher that never saw it.

    `fold`, int [N], says which: teacher k did not see the slices of fold k."""
    masks, known = np.array(slices.masks), slices.known.copy()
    teaches = np.ones(slices.masks.shape, bool)
    for k, teacher in enumerate(teachers):
        unseen = np.flatnonzero(fold == k)
        told_of = slices[fold != k].known.any(0)  # what it was never told about it cannot call absent
        filled = fill_in(job, [teacher], slices[unseen], settings)
        masks[unseen], teaches[unseen] = filled.slices.masks, filled.teaches
        known[unseen] = slices.known[unseen] | (filled.slices.known & told_of)
    return Completed(replace(slices, masks=masks, known=known), teaches)


# %%
fold = np.array([0, 0, 1, 1])
everyone = fill_in_unseen(job, [Undecided(), Undecided()], outlined[:4], fold, never_absent)
print("slices", everyone.slices.names, " pixels that teach:", f"{everyone.teaches.mean():.0%}")


# %%
#| export
def train_teachers(
    job: JobLike,
    fold: np.ndarray, # int [N], of the annotated slices
    number: int, # of the round, from 1
    extras: list[dict], # the second stream of each teacher
    cutmix: float, # share of a teacher's images that get part of another, from the second round on
) -> Generator[Phase, nn.Module, list[nn.Module]]:
    "A teacher for each fold, which learns from the others; from the second round on with strong views."
    teachers = []
    for k, extra in enumerate(extras):
        step = NoisyStudent(cutmix) if number > 1 else None
        others = job.labelled[fold != k]
        teacher = yield Phase(f"teacher-{number}-{k + 1}", others, method=step, **extra)
        teachers.append(teacher.to(job.device))
    return teachers


# %%
#| export
@register_method("self-training")
class SelfTraining(Method):
    "Out-of-fold teachers, cells accepted by confidence, a noisy student, a fine-tune."
    Settings = SelfTrainingSettings

    def check(self, job: JobLike) -> None:
        "`InputError` where there are fewer groups of annotated slices than teachers."
        grouped_folds(job.labelled, self.settings.teachers)

    def phases(self, job: JobLike) -> Generator[Phase, nn.Module, nn.Module]:
        "The teachers of each round, the student, the fine-tune."
        settings, labelled = self.settings, job.labelled
        fold = grouped_folds(labelled, settings.teachers, seed=job.seed)
        extras: list[dict] = [{} for _ in range(settings.teachers)]  # second streams of the teachers
        for number in range(1, settings.rounds + 1):
            teachers = yield from train_teachers(job, fold, number, extras, settings.cutmix)
            if number < settings.rounds:
                filled = [fill_in(job, [teacher], job.unlabelled, settings) for teacher in teachers]
                extras = [slices.as_extra(job.loss.reads_known) for slices in filled]
        completed = fill_in_unseen(job, teachers, labelled, fold, settings)
        job.note_completed(labelled, completed.slices)
        extra = fill_in(job, teachers, job.unlabelled, settings).as_extra(job.loss.reads_known)
        noisy = NoisyStudent(settings.cutmix, labelled.known)
        student = yield Phase("student", completed.slices, method=noisy,
                              pixel_weights=completed.teaches, **extra)
        return (yield from finetune(job, student, settings))


# %% [markdown]
# ## A small run
#
# Toy bodies: twenty-four annotated slices, on each of which two of three structures were looked for, and sixty without annotation from [another scanner](../data/20_toys.ipynb). Two teachers instead of the default three save time. First, what the teachers add to the annotated slices. The truth of the unexamined structures is known here, but not to them.

# %%
slices, truth = toy_set(84, 24, second_scanner=True)
loss = create_loss("marginal", log_dice=True)
schedule = ScheduleSettings(epochs=40, batch_size=5, lr=1e-2)
job = MemoryJob(
    slices,
    loss,
    lambda: create_model("attunet", 1, 4, width=8),
    Setup(schedule=schedule, augment=MILD, progress=False),
)
method = SelfTraining(
    SelfTrainingSettings(teachers=2, quota=0.9, cell_confidence=0.5, finetune_epochs=5, finetune_lr=1e-3)
)
student = job.run(method)

before, after = job.notes["before"], job.notes["after"]
added = after.known & ~before.known
really_there = np.stack([(truth[:24] == c).any((1, 2)) for c in (1, 2, 3)], 1)
rightly = (added & (after.present == really_there)).sum()
print(
    f"{(~before.known).sum()} unexamined cells, {added.sum()} filled in, "
    f"{rightly} of them rightly as present or absent"
)
assert rightly > 0.9*added.sum()

# %% [markdown]
# The three annotated slices to which most was added, each by the teacher that never saw it. Nothing that people drew has changed. Light grey is where the teacher is too unsure for its additions to teach.

# %%
#| fig-alt: "Three annotated slices: hidden truth, what was outlined, and the mask completed by a teacher"
fold = grouped_folds(job.labelled, 2, seed=job.seed)
teachers = [job.models[f"teacher-1-{k + 1}"] for k in range(2)]
completed = fill_in_unseen(job, teachers, job.labelled, fold, method.settings)
pixels_added = (completed.slices.masks != job.labelled.masks).sum((1, 2))
colour = slices.classes.colourise
fig, axes = image_grid(3, 4, 1.9)
for row, i in zip(axes, np.argsort(-pixels_added, kind="stable")[:3]):
    target = np.where(completed.teaches[i][..., None], colour(completed.slices.masks[i]), UNKNOWN)
    pictures = {
        "slice": slices.images[i],
        "truth, hidden": colour(truth[i]),
        "outlined": colour(slices.masks[i]),
        "completed": target,
    }
    for ax, (title, picture) in zip(row, pictures.items()):
        show_image(ax, picture, title if row[0] is axes[0, 0] else "")
    examined = [name for name, known in zip(slices.classes.names, slices.known[i]) if known]
    row[0].set_ylabel("looked for\n" + "\n".join(examined), fontsize=7)
class_legend(fig, slices.classes)
plt.show()
check_truth_kept(job.labelled, completed.slices)

# %% [markdown]
# On a hundred fresh slices, the teachers (each trained on half of the annotated slices) and the student:

# %%
fresh, answer = toy_set(100, 0, seed=1, second_scanner=True)
of_teachers = [toy_score(teacher, loss, fresh, answer) for teacher in teachers]
of_student = toy_score(student, loss, fresh, answer)
print(
    "teachers", np.round(of_teachers, 3), f" their mean {np.mean(of_teachers):.3f}, student {of_student:.3f}"
)
assert of_student > np.mean(of_teachers)

# %% [markdown]
# ## Where it fails
#
# Each teacher has a part of the annotations, here a half, and so a student has to make up for that first. Where unlabelled slices are like the annotated ones and the task is easy, a network that learns from all annotations, and from nothing else, can be the better one. With two scanners it is not:

# %%
supervised = job.run(Method())
print(f"supervised learning on all annotated slices: {toy_score(supervised, loss, fresh, answer):.3f}")

# %% [markdown]
# What it brought on real CT and on the phantom: [the tables](../benchmarks/realct_semi.ipynb) and [the phantom's](../benchmarks/phantom_semi.ipynb).
