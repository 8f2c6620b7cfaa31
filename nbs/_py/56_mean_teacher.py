# %% [markdown]
# # Mean Teacher
#
# > The student's own running average is the teacher; the two must agree where nobody knows the truth.
#
# - skip_showdoc: true

# %%
#| default_exp methods.mean_teacher

# %% [markdown]
# With two phases the teacher never improves: it is frozen before it has seen any unlabelled slice. [Tarvainen & Valpola 2017](https://arxiv.org/abs/1703.01780) let it improve *while* the student learns: the teacher is the exponential moving average of the student,
#
# $$\theta'_t = \alpha_t\,\theta'_{t-1} + (1-\alpha_t)\,\theta_t, \qquad \alpha_t = \min\!\big(\alpha, \tfrac{1+t}{10+t}\big),$$
#
# and the student is asked to give, for a *perturbed* image, what the teacher gives for the plain one:
#
# $$\mathcal L = \mathcal L_\text{known} + w(t)\,\operatorname{mean}_{(i,c)\ \text{unknown}} \big(p^\text{student}_{ic} - p^\text{teacher}_{ic}\big)^2 .$$
#
# Here $\theta$ are the student's weights and $\theta'$ the teacher's, $t$ is the step and $\alpha$ the decay (`ema`); $p_{ic}$ is the probability of structure $c$ at pixel $i$, $\mathcal L_\text{known}$ the ordinary loss on what people examined, and $w(t)$ a weight that [rises slowly](#how-much).
#
# With a softmax the structures and background share one probability, and the sum over the unknown becomes one over what the truth leaves *open* ([below](#where-to-compare)).
#
# Our [loop](train.html) keeps that average already (weights *and* buffers). What is left is the consistency term, and three decisions: on which pixels, from when on, and against which perturbation.

# %%
#| export
import math
from dataclasses import replace

import torch

from ctseg.augment import strong
from ctseg.files import did_you_mean
from ctseg.losses import consistency_loss
from ctseg.train import Job, Method, finest

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from fastcore.test import test_close, test_eq
from ctseg.data import SliceData
from ctseg.metrics import challenge_dice
from ctseg.models.base import toy_set
from ctseg.pseudo import pseudo_label
from ctseg.train import Recipe, Run, generator
torch.set_num_threads(1)  # so few slices: another order of a sum is another network


# %% [markdown]
# ## Where to compare
#
# On an unlabelled slice everything is unknown. On an annotated one half of the structures are, and they are compared too; what people examined is left to the supervised loss. So is every pixel that belongs to an outlined structure.

# %%
#| export
def unknown_cells(
    mask: torch.Tensor, # int64 [B, H, W]
    known: torch.Tensor, # bool [B, C] or [B, C, H, W]
) -> torch.Tensor: # bool [B, C, H, W]: where the truth says nothing
    "The (class, pixel) pairs about which the truth says nothing."
    k = known if known.ndim == 4 else known[:, :, None, None]
    return ~(k | (mask > 0)[:, None])


# %%
mask = torch.tensor([[[0, 2]], [[0, 0]]])
known = torch.tensor([[False, True], [False, False]])
test_eq(unknown_cells(mask, known).int().tolist(), [[[[1, 0]], [[0, 0]]], [[[1, 1]], [[1, 1]]]])


# %% [markdown]
# A softmax has one answer a pixel, and background has a part in it. Where some structures are unknown, truth still says something: what was looked for and not found is *not* it. So the teacher is asked for the shares of what is left open, background and the unknown structures, and the student is held to those. Were the unknown
# structures compared alone, with the teacher's probabilities as they are, the probability that a teacher gives to a structure people did not find would be taken from the unknown ones and pass to background: unknown would be taught as absent.
#
# Shares can be made of any remainder, however small. A teacher that is sure of the left kidney where people looked for it in vain has all but nothing left, and the largest share of that is a poor guess. How poor can be seen where the whole truth is known: on annotated slices of a phantom (240 annotated of 600, the first phase of `ctseg`), where such a teacher's remainder reached $\tau$, background was right 96 times of a hundred,
# another structure 51 times. Where the teacher does not contradict the truth it was right 99 times. So a teacher that gives less than half of its probability to what is open is heard only if the largest share is background's.

# %%
#| export
def open_shares(
    prob: torch.Tensor, # [B, C, H, W], of a softmax
    where: torch.Tensor, # bool [B, C, H, W], from `unknown_cells`
) -> tuple[torch.Tensor, torch.Tensor]: # shares [B, 1 + C, H, W], background first, 0 for what truth has excluded; bool [B, H, W]: where these may be believed
    "A teacher's distribution over background and the unknown structures, given that it is none of the others. Where it contradicts the truth (less than half of its probability is left) only background is to be believed."
    left = torch.cat([(1 - prob.sum(1, keepdim=True)).clamp(min=0), prob*where], 1)
    mass = left.sum(1, keepdim=True)
    shares = left/mass.clamp(min=1e-12)
    return shares, (mass[:, 0] >= .5) | (shares.argmax(1) == 0)

def disagreement(student, teacher, where, activation: str, gather=lambda t: t) -> torch.Tensor:
    "Squared distance of the probabilities [B, C, H, W] where truth says nothing: mean over cells (sigmoid), Brier score of what is left open (softmax)."
    if activation == "sigmoid": return consistency_loss(student, teacher, where, gather=gather)
    mine = torch.cat([1 - student.sum(1, keepdim=True), student*where], 1)
    shares, heard = open_shares(teacher, where)
    return consistency_loss(mine, shares, where.any(1) & heard, "brier", gather=gather)


# %% [markdown]
# One pixel: the first structure is unknown, people did not find the second; the teacher says .45 and .4, which leaves .15 for background. Of what is open, three quarters are the first structure's. A student that says so, and nothing else, agrees. Had the teacher said .15 and .75, it would not be heard.

# %%
q, open_ = torch.tensor([.45, .4]).view(1, 2, 1, 1), torch.tensor([True, False]).view(1, 2, 1, 1)
shares, heard = open_shares(q, open_)
test_close(shares.flatten().tolist(), [.25, .75, 0], 1e-6)
test_eq([heard.item(), open_shares(q.new_tensor([.15, .75]).view(1, 2, 1, 1), open_)[1].item()], [True, False])
test_close(disagreement(torch.tensor([.75, 0.]).view(1, 2, 1, 1), q, open_, "softmax").item(), 0, 1e-6)


# %% [markdown]
# ## How much
#
# A young teacher is no teacher. The weight rises as $w(t) = w_{\max} \exp(-5(1-t/T)^2)$ over the first $T$ steps.

# %%
#| export
def ramp_up(step: int, length: int) -> float:
    "From nearly 0 to 1 over `length` steps: exp(-5 (1 - t/T)^2) (Laine & Aila 2017, arXiv 1610.02242)."
    return 1.0 if step >= length else math.exp(-5*(1 - step/length)**2)


# %%
fig, ax = plt.subplots(figsize=(5, 1.8))
ax.plot([ramp_up(s, 80) for s in range(120)]); ax.set(xlabel="step", ylabel="share of the weight"); plt.show()


# %% [markdown]
# ## How to perturb
#
# The perturbation decides what the consistency teaches. `noise` is the classic (Gaussian, clipped at ±0.2); `strong` adds the photometric changes a scanner and a window could make; `none` is there as a control.

# %%
#| export
def perturb_noise(image, gen):
    noise = torch.randn(image.shape, generator=gen, device=image.device)*0.1
    return image + noise.clamp(-0.2, 0.2)

PERTURB = {"noise": perturb_noise, "strong": strong, "none": lambda image, gen: image}

class MeanTeacher(Method):
    "Consistency of the student, on a perturbed image, with its own average, on the plain one."
    def __init__(self, weight: float = 1.0, ramp: float = 0.1, perturb: str = "strong"):
        if perturb not in PERTURB: raise did_you_mean("perturbation", perturb, PERTURB)
        self.weight, self.ramp, self.perturb = weight, ramp, PERTURB[perturb]

    def views(self, trainer, batch, more):
        if not self.weight: return {"labelled": batch}
        plain = batch.concat(more)
        return {"labelled": batch, "plain": plain, "perturbed": replace(plain, image=self.perturb(plain.image, trainer.rng("perturb")))}

    def loss(self, trainer, views):
        if not self.weight: return super().loss(trainer, views)
        batch, plain, perturbed = views.values()
        q = trainer.ask(trainer.ema.model, plain.image, presence=False)
        logits, other = trainer.answers(batch, perturbed)
        where = unknown_cells(plain.mask, plain.known)
        w = self.weight*ramp_up(trainer.step_no, round(self.ramp*trainer.total))
        return trainer.supervise(logits, batch) + w*disagreement(trainer.loss.probabilities(finest(other)), q, where, trainer.loss.activation, trainer.loss.gather)


# %% [markdown]
# ## The script

# %%
#| export
def mean_teacher(job: Job):
    "One phase; the averaged model that every run returns is the teacher (`consistency`, `ramp`, `perturb`)."
    r = job.recipe
    return job.train("mean-teacher", method=MeanTeacher(r.consistency, r.ramp, r.perturb), extra=job.unlabelled)


# %% [markdown]
# ## Three slices on their way
#
# A small run on [toy bodies](base.html): ten annotated slices, thirty without annotation. Then one structure, the bright heart, on three slices: the first had it looked for, so nothing is compared (and nothing is shown in the last column); on the second, people looked for other things; nobody annotated the third. The teacher sees the plain
# slice, the student the perturbed one, and the last column is what the consistency term adds up: the squared difference where the truth is silent.

# %%
slices, truth = toy_set()
small = Recipe(method="mean-teacher", loss="marginal", log_dice=True, width=4, epochs=60, batch_size=5, lr=1e-2, fold=-1, ramp=0.3)
with tempfile.TemporaryDirectory() as d:
    job = Job(small, slices, Run(Path(d)), progress=False)
    average = mean_teacher(job)

# %%
heart = 2
looked, other = np.flatnonzero(slices.known[:, heart])[0], np.flatnonzero(slices.labelled & ~slices.known[:, heart])[0]
batch = SliceData(slices, "cpu").batch(torch.tensor([looked, other, 12]))
seen = strong(batch.image, generator("cpu", 1))
with torch.no_grad(): q, p = (job.loss.probabilities(average(x))[:, heart] for x in (batch.image, seen))
where = unknown_cells(batch.mask, batch.known)[:, heart]
fig, axes = plt.subplots(3, 5, figsize=(9, 5.3), layout="constrained")
for i, row in enumerate(axes):
    pictures = {"plain": batch.image[i, 0], "perturbed": seen[i, 0], "teacher, plain": q[i], "student, perturbed": p[i], "squared difference": (p[i] - q[i])**2*where[i]}
    for ax, (name, x) in zip(row, pictures.items()): ax.imshow(x, cmap="gray", vmin=0, vmax=1); ax.set(xticks=[], yticks=[], title=name if i == 0 else "")
    row[0].set_ylabel(("heart looked for", "others looked for", "nobody looked")[i], fontsize=8)
plt.show()
test_eq(where[0].any().item(), False)

# %% [markdown]
# Whether the consistency helped is asked of a hundred slices that the network has not seen; with `consistency=0` the same run is supervised learning.

# %%
fresh, answer = toy_set(100, 0, seed=1)
with tempfile.TemporaryDirectory() as d: alone = mean_teacher(Job(replace(small, consistency=0.), slices, Run(Path(d)), progress=False))
{n: round(challenge_dice(pseudo_label([m], fresh, job.loss).labels, answer, 3), 3) for n, m in (("supervised", alone), ("mean teacher", average))}

# %% [markdown]
# ## What it brought
#
# On [real CT](benchmarks/realct_semi.html), compared with supervised training on the same annotated slices. A network that agrees with itself need not be right: what the average has wrong, the student is asked to keep. The rows `log-…` have the sigmoid loss with the logarithm of the Dice (`loss=masked`); the recipe now has a softmax (`loss=marginal`): that is the row `marginal-mean-teacher`.

# %%
told = pd.read_csv("benchmarks/results/realct_semi.csv")
told[told.recipe.str.contains("mean-teacher")][["labelled", "recipe", "seeds", "Dice", "minus supervised", "low", "high"]].style.format(precision=3, na_rep="").hide(axis="index")

# %%
#| hide
import nbdev; nbdev.nbdev_export()
