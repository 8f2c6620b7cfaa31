# %% [markdown]
# # Teacher and student
#
# > A teacher labels the slices nobody annotated, the surest are kept, and a student learns from both; and a variant, pretrain then fine-tune.

# %%
#| default_exp methods.teacher_student

# %%
#| export
from collections.abc import Generator

import torch
from torch import nn

from ctseg.core.settings import Settings, setting
from ctseg.data.batches import Batch
from ctseg.data.slices import SliceSet
from ctseg.inference.confidence import IMAGE_SCORES
from ctseg.losses.consistency import consistency_loss
from ctseg.methods.pseudo import keep_images, pseudo_label
from ctseg.training.method import (
    JobLike, Method, Phase, StepContext, nothing_to_add, register_method)

# %%
#| hide
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.settings import describe
from ctseg.core.style import class_legend, image_grid, show_image
from ctseg.data.augment import MILD
from ctseg.data.toys import toy_set
from ctseg.losses.registry import create_loss
from ctseg.methods.in_memory import MemoryJob, toy_score
from ctseg.models.zoo import create_model
from ctseg.training.method import Method, go_through
from ctseg.training.setup import ScheduleSettings, Setup

torch.set_num_threads(1)  # so few slices: another order of a sum is another network
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})  # grey noise: a quarter of a PNG

# %% [markdown]
# The project that `ctseg` grew out of did this, after [Baldeon Calisto 2022](https://doi.org/10.1007/978-3-031-23911-3_14):
#
# 1. train a **teacher** on the annotated slices;
# 2. let it label the slices that nobody annotated;
# 3. give each of these slices a confidence and keep the surest;
# 4. train a fresh **student** on annotated and kept slices, with the loss
#
# $$\mathcal L = \mathcal L_\text{supervised}(\text{labelled} \cup \text{kept}) \;+\; \frac{\lambda}{C\,|\Omega|} \sum_{i \in \Omega} \lVert p^\text{student}_i - p^\text{teacher}_i \rVert^2_2,$$
#
# where $p_i$ are the probabilities at pixel $i$, $\Omega$ the pixels of the kept slices, and $\lambda$ the setting `consistency`. The probabilities of a softmax sum to 1, so the same $\lambda$ weighs less the more structures there are.
#
# `from_teacher` starts the student from the teacher's weights instead. It then needs [half the steps](../benchmarks/pretrained.ipynb), at a lower rate, and the demo does so.
#
# ## Settings

# %%
#| export
ONE_TEACHER_SCORES = tuple(score for score in IMAGE_SCORES if score != "agreement")


class KeepSettings(Settings):
    "Which pseudo-labelled slices are kept."
    confidence: str = setting("sdc", "score that ranks pseudo-labelled images", choices=ONE_TEACHER_SCORES)
    keep: float = setting(800.0, "how many of them to keep: a count, or a share if at most 1", low=0)


class TeacherStudentSettings(KeepSettings):
    "Settings of the method `teacher-student`."
    consistency: float = setting(1.0, "weight of the distance to the teacher's probabilities", low=0)
    from_teacher: bool = setting(False, "the student starts from the teacher's weights, not from fresh ones")
    student_phase: float = setting(1.0, "length of the student's training, in parts of `epochs`", low=0.01)
    student_lr: float = setting(0.0, "peak learning rate of the student; 0: as the teacher's", low=0)


# %%
for info in describe(TeacherStudentSettings):
    print(f"{info.name:<14}{info.default!s:<7}{info.meaning}")


# %%
#| export
class FinetuneSettings(Settings):
    "A last, gentle phase on the annotated slices alone."
    finetune_epochs: int = setting(10, "epochs of the fine-tune; 0: none", low=0)
    finetune_lr: float = setting(2e-4, "peak learning rate of the fine-tune", low=0)


class PretrainFinetuneSettings(FinetuneSettings, KeepSettings):
    "Settings of the method `pretrain-finetune`."


# %%
print([info.name for info in describe(PretrainFinetuneSettings)])


# %% [markdown]
# ## The method
#
# The first phase is plain supervised learning. Then the teacher labels what nobody annotated; a run that is continued labels again, which is quick and gives the same.

# %%
#| export
def label_unlabelled(job: JobLike, teacher: nn.Module, settings: KeepSettings) -> SliceSet:
    "Those unlabelled slices of which `teacher` is surest, with its labels as truth; also noted in the run."
    if not len(job.unlabelled):
        return job.unlabelled
    each = job.in_time("while the teacher labelled; its training is saved")
    pseudo = pseudo_label([teacher.to(job.device)], job.unlabelled, job.loss, job.device, job.image_size,
                          job.schedule.batch_size, each)
    kept = keep_images(pseudo, job.unlabelled, settings.keep, settings.confidence)
    job.note_pseudo(pseudo, kept)
    return kept


# %% [markdown]
# In the student's step the labelled and the pseudo-labelled batch go through the network **together**: one forward pass, one set of BatchNorm statistics, one Dice over both. The teacher is frozen and sees the same augmented image.

# %%
#| export
class StudentStep(Method):
    "A student learns from annotated and kept slices, and from the teacher's probabilities of the latter."
    Settings = TeacherStudentSettings

    def views(self, ctx: StepContext, labelled: Batch, extra: Batch | None) -> dict[str, Batch]:
        "The labelled batch, and the kept slices as they are."
        return {"labelled": labelled} if extra is None else {"labelled": labelled, "kept": extra}

    def loss(self, ctx: StepContext, views: dict[str, Batch]) -> torch.Tensor:
        "The loss of annotated and kept slices together, plus the distance to the teacher on the kept; a scalar."
        if "kept" not in views:
            return super().loss(ctx, views)
        labelled, kept = views["labelled"], views["kept"]
        both = labelled.concat(kept)
        logits, = ctx.student(both)
        supervised, weight = ctx.loss(logits, both), self.settings.consistency
        if not weight:
            return supervised
        student_probs = ctx.loss.probabilities(logits)[len(labelled):]
        teacher_probs = ctx.teacher(kept.image)
        return supervised + weight*consistency_loss(student_probs, teacher_probs, gather=ctx.loss.gather)


# %%
#| export
@register_method("teacher-student")
class TeacherStudent(StudentStep):
    "A teacher's labels and probabilities of the slices it is surest of teach a student."
    def phases(self, job: JobLike) -> Generator[Phase, nn.Module, nn.Module]:
        "The teacher on annotated slices; the student on kept ones too."
        teacher = yield Phase("teacher", job.labelled)
        kept = label_unlabelled(job, teacher, self.settings)
        if not len(kept):
            return nothing_to_add(teacher)
        settings = self.settings
        start = teacher if settings.from_teacher else None
        epochs = max(1, round(settings.student_phase*job.schedule.epochs))
        return (yield Phase("student", job.labelled, method=self, extra=kept, teacher=teacher, init=start,
                            epochs=epochs, lr=settings.student_lr or None))


# %% [markdown]
# ## A small run
#
# Toy bodies: twenty-four annotated slices, on each of which two of three structures were looked for, and sixty from [another scanner](../data/20_toys.ipynb) that nobody annotated. (Their truth is known here, but not to the method.) Half of the sixty are kept. Teacher and student are judged on a hundred fresh slices of that scanner.

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
student = job.run(TeacherStudent(TeacherStudentSettings(keep=0.5)))
teacher = job.models["teacher"]
fresh, answer = toy_set(100, 0, seed=1, second_scanner=True)
before, after = (toy_score(model, loss, fresh, answer) for model in (teacher, student))
print(f"Dice on fresh slices: teacher {before:.3f}, student {after:.3f}")
assert after > before

# %% [markdown]
# Three slices on their way: the one the teacher is surest of, the median, and the one it is least sure of. What is kept the student believes, and *all* of it: what the teacher missed is taught as absent.

# %%
#| fig-alt: "Three slices by confidence: image, hidden truth, the teacher's labels, and its wrong pixels"
pseudo, kept = job.notes["pseudo"], job.notes["kept"]
unlabelled, hidden = job.unlabelled, truth[24:]
surest_first = np.argsort(-pseudo.scores["sdc"])
colour = slices.classes.colourise
fig, axes = image_grid(3, 4, 1.9)
for row, i in zip(axes, surest_first[[0, 30, -1]]):
    wrong = pseudo.labels[i] != hidden[i]
    show_image(row[0], unlabelled.images[i], "slice")
    show_image(row[1], colour(hidden[i]), "truth, hidden")
    show_image(row[2], colour(pseudo.labels[i]), "teacher")
    show_image(row[3], 255*wrong, "wrong pixels")
    verdict = "kept" if unlabelled.names[i] in kept.names else "not kept"
    row[0].set_ylabel(f"confidence {pseudo.scores['sdc'][i]:.2f}\n{verdict}", fontsize=8)
for ax in axes[1:].flat:
    ax.set_title("")
class_legend(fig, slices.classes)
plt.show()


# %% [markdown]
# ## The variant

# %%
#| export
def finetune(
    job: JobLike,
    start: nn.Module,
    settings: FinetuneSettings,
) -> Generator[Phase, nn.Module, nn.Module]:
    "Go on from `start` with the annotated slices alone, at a gentle rate; `start` itself if that takes no epoch."
    if not settings.finetune_epochs:
        return start
    epochs, lr = settings.finetune_epochs, settings.finetune_lr
    return (yield Phase("finetune", job.labelled, init=start, epochs=epochs, lr=lr))


# %%
#| export
@register_method("pretrain-finetune")
class PretrainFinetune(Method):
    "The variant: learn from the teacher's labels alone, then from the annotated slices."
    Settings = PretrainFinetuneSettings

    def phases(self, job: JobLike) -> Generator[Phase, nn.Module, nn.Module]:
        "Teacher, pretraining (in as many steps as the teacher takes), fine-tune."
        teacher = yield Phase("teacher", job.labelled)
        kept = label_unlabelled(job, teacher, self.settings)
        if not len(kept):
            return nothing_to_add(teacher)
        batch_size = job.schedule.batch_size
        steps = max(1, len(job.labelled)//batch_size)*job.schedule.epochs
        epochs = max(1, round(steps/max(1, len(kept)//batch_size)))
        pretrained = yield Phase("pretrain", kept, epochs=epochs)
        return (yield from finetune(job, pretrained, self.settings))


# %% [markdown]
# The same toys and the same teacher: the pretrained network has seen no annotation by people, only the teacher's labels. The fine-tune is as long as the teacher's training. It takes back a part of what pretraining brought, because the annotated slices come from the other scanner.

# %%
def train(phase):
    "The network of a phase; the teacher has been trained above."
    return teacher if phase.name == "teacher" else job.train(phase)

job.models = {"teacher": teacher}
variant = PretrainFinetune(PretrainFinetuneSettings(keep=0.5, finetune_epochs=40, finetune_lr=5e-3))
go_through(variant.phases(job), train)
for name, model in job.models.items():
    print(f"{name:<10}{toy_score(model, loss, fresh, answer):.3f}")

# %% [markdown]
# ## Where it fails
#
# The student believes everything on a kept slice. A teacher that misses a structure everywhere teaches its student to miss it too, with as much weight as people's own labels. Below, the teacher's labels of one lung are erased: on every kept slice it is then "absent".

# %%
blind = replace(kept, masks=np.where(kept.masks == 1, 0, kept.masks))
method = TeacherStudent(TeacherStudentSettings(consistency=0))
misled = job.trainer(Phase("student", job.labelled, method, extra=blind, teacher=teacher)).fit()
for name, model in (("student", student), ("misled student", misled)):
    print(f"{name:<15}{toy_score(model, loss, fresh, answer):.3f}")

# %% [markdown]
# A filter is as good as its ranking: [how the scores rank slices whose truth is known](../benchmarks/confidence.ipynb). What the method brought on real CT and on the phantom: [the tables](../benchmarks/realct_semi.ipynb) and [the phantom's](../benchmarks/phantom_semi.ipynb), and [whether the original's claim holds](../benchmarks/original_claim.ipynb).
