# %% [markdown]
# # Mean Teacher
#
# > The student's own running average is the teacher; the two must agree where nobody knows the truth.

# %%
#| default_exp methods.mean_teacher

# %%
#| export
from collections.abc import Callable, Generator
from dataclasses import replace

import torch
from torch import nn

from ctseg.core.settings import Settings, setting
from ctseg.data.strong_views import strong
from ctseg.data.batches import Batch
from ctseg.losses.consistency import consistency_loss
from ctseg.methods.unknown import renormalised_over_unknown, risen, unknown_cells
from ctseg.training.method import JobLike, Method, Phase, StepContext, register_method

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.settings import describe
from ctseg.core.style import image_grid, show_image
from ctseg.data.augment import MILD
from ctseg.data.batches import SliceData
from ctseg.data.toys import toy_set
from ctseg.losses.registry import create_loss
from ctseg.methods.in_memory import MemoryJob, toy_score
from ctseg.models.zoo import create_model
from ctseg.training.method import Method
from ctseg.training.setup import ScheduleSettings, Setup

torch.set_num_threads(1)  # so few slices: another order of a sum is another network
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})  # grey noise: a quarter of a PNG


# %% [markdown]
# With two phases the teacher never improves: it is frozen before it has seen any unlabelled slice. [Tarvainen & Valpola 2017](https://arxiv.org/abs/1703.01780) let it improve *while* the student learns. The teacher is the exponential moving average of the student,
#
# $$\theta'_t = \alpha_t\,\theta'_{t-1} + (1-\alpha_t)\,\theta_t, \qquad \alpha_t = \min\!\big(\alpha, \tfrac{1+t}{10+t}\big),$$
#
# and the student is asked to give, for a *perturbed* image, what the teacher gives for the plain one:
#
# $$\mathcal L = \mathcal L_\text{known} + w(t)\,\operatorname{mean}_{(i,c)\ \text{unknown}} \big(p^\text{student}_{ic} - p^\text{teacher}_{ic}\big)^2 .$$
#
# Here $\theta$ are the student's weights and $\theta'$ the teacher's, $t$ is the step and $\alpha$ the decay (`ema`). $p_{ic}$ is the probability of structure $c$ at pixel $i$, $\mathcal L_\text{known}$ the ordinary loss on what people examined, and $w(t)$ a weight that [rises slowly](25_unknown.ipynb#how-much).
#
# Our [loop](../training/70_loop.ipynb) keeps that average already. What is left is the consistency term, and two decisions: where to compare, and against which perturbation.
#
# ## Where to compare
#
# On an unlabelled slice everything is [unknown](25_unknown.ipynb). On an annotated one the structures that nobody looked for are, and they are compared too. With sigmoid outputs each unknown cell of a pixel is compared on its own. With a softmax the student is held to the teacher's distribution over what the truth leaves open.

# %%
#| export
def disagreement(
    student: torch.Tensor,
    teacher: torch.Tensor,
    where: torch.Tensor,
    activation: str,
    gather: Callable | None = None,
) -> torch.Tensor:
    """Squared distance of two networks' probabilities `[B, C, H, W]` where the truth says nothing; a scalar.

    where: bool `[B, C, H, W]` from `unknown_cells`. activation: "sigmoid" (mean over the cells) or "softmax" (Brier
    score of what is left open, a mean over pixels). gather: of the loss, with several processes; None: one process.
    """
    together = {"gather": gather} if gather else {}
    if activation == "sigmoid":
        return consistency_loss(student, teacher, where, **together)
    background = 1 - student.sum(1, keepdim=True)
    student_shares = torch.cat([background, student*where], 1)
    teacher_shares, believed = renormalised_over_unknown(teacher, where)
    return consistency_loss(student_shares, teacher_shares, where.any(1) & believed, "brier", **together)


# %% [markdown]
# One pixel: the first structure is unknown, people did not find the second. The teacher says .45 and .4. Of what is open, three quarters are the first structure's: a student that says so, and nothing else, agrees.

# %%
teacher_says, where = torch.tensor([.45, .4]).view(1, 2, 1, 1), torch.tensor([True, False]).view(1, 2, 1, 1)
for first in (.75, .45):
    student_says = torch.tensor([first, 0.]).view(1, 2, 1, 1)
    print(f"student says {first}: {disagreement(student_says, teacher_says, where, 'softmax').item():.3f}")


# %% [markdown]
# ## How to perturb
#
# The perturbation decides what the consistency teaches. `noise` is the classic (Gaussian, clipped at ±0.2); `strong` adds the photometric changes that a scanner and a window could make; `none` is there as a control.

# %%
#| export
def perturb_noise(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    "`image` f32 `[B, 1, H, W]` plus normal noise of standard deviation 0.1, at most ±0.2."
    noise = torch.randn(image.shape, generator=generator, device=image.device)*0.1
    return image + noise.clamp(-0.2, 0.2)


def perturb_not(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    "Images f32 [B,K,H,W] as they are: the control among the perturbations."
    return image


PERTURB = {"noise": perturb_noise, "strong": strong, "none": perturb_not}

# %%
#| fig-alt: "One slice under three perturbations: noise, strong, and none"
image = SliceData(toy_set(1)[0], "cpu").batch([0]).image
fig, axes = image_grid(1, 3)
for ax, (name, perturb) in zip(axes[0], PERTURB.items()):
    show_image(ax, 255*perturb(image, torch.Generator().manual_seed(3))[0, 0], name)
plt.show()


# %% [markdown]
# ## The method

# %%
#| export
class MeanTeacherSettings(Settings):
    "Settings of the method `mean-teacher`."
    consistency: float = setting(1.0, "weight of the consistency term", low=0)
    ramp: float = setting(0.1, "share of the steps in which that weight rises", low=0, high=1)
    perturb: str = setting("strong", "what the student's image goes through", choices=tuple(PERTURB))


# %%
for info in describe(MeanTeacherSettings):
    print(f"{info.name:<13}{info.default!s:<8}{info.meaning}")


# %%
#| export
@register_method("mean-teacher")
class MeanTeacher(Method):
    "The student on a perturbed image agrees with its average on the plain one."
    Settings = MeanTeacherSettings

    def phases(self, job: JobLike) -> Generator[Phase, nn.Module, nn.Module]:
        "One phase with all images."
        return (yield Phase("mean-teacher", job.labelled, method=self, extra=job.unlabelled))

    def views(self, ctx: StepContext, labelled: Batch, extra: Batch | None) -> dict[str, Batch]:
        "Annotated; all, plain; all, perturbed."
        if not self.settings.consistency:
            return {"labelled": labelled}
        plain = labelled.concat(extra)
        image = PERTURB[self.settings.perturb](plain.image, ctx.rng("perturb"))
        return {"labelled": labelled, "plain": plain, "perturbed": replace(plain, image=image)}

    def loss(self, ctx: StepContext, views: dict[str, Batch]) -> torch.Tensor:
        "The supervised loss, plus the weighted disagreement; a scalar."
        if "plain" not in views:
            return super().loss(ctx, views)
        labelled, plain, perturbed = views.values()
        teacher_probs = ctx.teacher(plain.image)
        logits, of_perturbed = ctx.student(labelled, perturbed)
        student_probs = ctx.loss.probabilities(of_perturbed)
        where = unknown_cells(plain.mask, plain.known, ctx.classes.unions)
        weight = risen(self.settings.consistency, self.settings.ramp, ctx)
        how = ctx.loss.activation, ctx.loss.gather
        distance = disagreement(student_probs, teacher_probs, where, *how)
        return ctx.loss(logits, labelled) + weight*distance


# %% [markdown]
# ## A small run
#
# Toy bodies: twenty-four annotated slices, on each of which two of three structures were looked for, and sixty from [another scanner](../data/20_toys.ipynb) that nobody annotated. A tenth of the usual weight is enough for so short a training. The same run with `consistency=0` is supervised learning. Both are judged on a hundred fresh slices of that scanner.

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
alone = job.run(MeanTeacher(MeanTeacherSettings(consistency=0)))
average = job.run(MeanTeacher(MeanTeacherSettings(consistency=0.1, ramp=0.3)))
fresh, answer = toy_set(100, 0, seed=1, second_scanner=True)
before, after = (toy_score(model, loss, fresh, answer) for model in (alone, average))
print(f"Dice on fresh slices: supervised {before:.3f}, mean teacher {after:.3f}")
assert after > before

# %% [markdown]
# What the term adds up, for one structure: the bright heart, on three slices. On the first it was looked for, so nothing is compared. On the second, people looked for other things; nobody annotated the third. The teacher sees the plain slice, the student the perturbed one. The last column is the squared difference where the truth says nothing.

# %%
#| fig-alt: "Three slices: plain, perturbed, both answers for the heart, their difference where it is unknown"
heart = 2
examined = np.flatnonzero(slices.known[:, heart])[0]
other = np.flatnonzero(slices.labelled & ~slices.known[:, heart])[0]
batch = SliceData(slices, "cpu").batch([examined, other, 24])
perturbed = strong(batch.image, torch.Generator().manual_seed(1))
with torch.no_grad():
    teacher_says, student_says = (loss.probabilities(average(x))[:, heart] for x in (batch.image, perturbed))
where = unknown_cells(batch.mask, batch.known)[:, heart]
columns = {"plain": batch.image[:, 0], "perturbed": perturbed[:, 0], "teacher, plain": teacher_says,
           "student, perturbed": student_says, "squared difference": (student_says - teacher_says)**2*where}
fig, axes = image_grid(3, 5, 1.7)
for i, row in enumerate(axes):
    for ax, (title, pictures) in zip(row, columns.items()):
        show_image(ax, 255*pictures[i], title if i == 0 else "")
    row[0].set_ylabel(("heart looked for", "others looked for", "nobody looked")[i], fontsize=8)
plt.show()
assert not where[0].any() and where[1:].any()

# %% [markdown]
# ## Where it fails
#
# A network that agrees with itself need not be right: what the average has wrong, the student is asked to keep. A larger weight makes it worse, because a teacher that is still poor is then listened to more than the truth.

# %%
loud = job.run(MeanTeacher(MeanTeacherSettings(consistency=3, ramp=0)))
print(f"thirty times the weight from the first step on: {toy_score(loud, loss, fresh, answer):.3f}")

# %% [markdown]
# What it brought on real CT and on the phantom: [the tables](../benchmarks/realct_semi.ipynb) and [the phantom's](../benchmarks/phantom_semi.ipynb).
