# %% [markdown]
# # Consistency
#
# > How far a student is from its teacher, on the pixels where the teacher is worth following.
#
# - skip_showdoc: true

# %%
#| default_exp losses.consistency

# %%
#| export
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ctseg.core.errors import did_you_mean
from ctseg.losses.partial import as_given

# %%
#| hide
import matplotlib.pyplot as plt
import torch
from fastcore.test import test_close, test_eq

# %% [markdown]
# Semi-supervised methods compare a student with a teacher on images without labels. `where` says on which pixels, usually those where the teacher is sure.
#
# ## Distance at a pixel
#
# Three distances are in use. The mean over channels (`"l2"`) suits sigmoids, whose channels are separate answers. The channels of a softmax are one answer, so the Brier score (`"brier"`) takes their sum: two answers that disagree completely are 2 apart, whether there are 3 classes or 54. The cross-entropy (`"ce"`) compares logits with probabilities.

# %%
#| export
KINDS = ("l2", "brier", "ce")

def pixel_distance(
    student: torch.Tensor, # [B,K,…]: probabilities for "l2" and "brier", logits for "ce"
    teacher: torch.Tensor, # probabilities [B,K,…]
    kind: str, # one of `KINDS`
    activation: str = "softmax", # for "ce": how the student's logits are to be read, "softmax" or "sigmoid"
) -> torch.Tensor: # [B,K,…], or [B,1,…] where the channels are one answer
    "The distance of student and teacher at each pixel: [B,K,…], or [B,1,…] where the channels are one answer."
    if kind not in KINDS:
        raise did_you_mean("kind of consistency", kind, KINDS)
    if kind == "l2": return (student - teacher).square()
    if kind == "brier": return (student - teacher).square().sum(1, keepdim=True)
    if activation == "sigmoid":
        return F.binary_cross_entropy_with_logits(student, teacher, reduction="none")
    return -(teacher*student.log_softmax(1)).sum(1, keepdim=True)


# %%
#| fig-alt: "Three distances between teacher and student against the student's probability"
share = torch.linspace(0, 1, 50)
# two channels; the teacher is sure of the first
student = torch.stack([share, 1 - share])[None]
teacher = torch.tensor([1., 0.])[None, :, None].expand_as(student)
fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for kind in KINDS:
    given = student.clamp(min=1e-3).log() if kind == "ce" else student
    ax.plot(share, pixel_distance(given, teacher, kind).mean((0, 1)), label=kind)
ax.set(
    xlabel="student's probability of the teacher's class",
    ylabel="distance",
    ylim=(0, 3),
    title="Three distances from a sure teacher",
)
ax.legend(frameon=False)
disagree = pixel_distance(torch.tensor([[0., 1.]]), torch.tensor([[1., 0.]]), "brier")
test_eq(disagree.item(), 2)


# %% [markdown]
# ## Mean over the pixels that count
#
# With several processes the sums are joined before they are divided, by the same `gather` as in a [`PartialLoss`](10_partial.ipynb).

# %%
#| export
def consistency_loss(
    student: torch.Tensor, # [B,K,…]: probabilities for "l2" and "brier", logits for "ce"
    teacher: torch.Tensor, # probabilities [B,K,…]; no gradient flows into them
    where: torch.Tensor | None = None, # bool or weights [B,…] or [B,1,…]; [B,K,…] for "l2" and sigmoid "ce"
    kind: str = "l2", # one of `KINDS`
    activation: str = "softmax", # for "ce": how the student's logits are to be read, "softmax" or "sigmoid"
    gather: Callable[[torch.Tensor], torch.Tensor] = as_given, # as `PartialLoss.gather`
) -> torch.Tensor: # scalar; 0 if nothing is compared
    "The mean distance of student and teacher, both [B,K,…], over the pixels `where`: a scalar, 0 if there are none."
    teacher, student = teacher.detach().float(), student.float()
    distance = pixel_distance(student, teacher, kind, activation)
    if where is None: return gather(distance.flatten(1).mean(1)).mean()
    if where.ndim == student.ndim - 1:
        where = where[:, None]
    weight = where.float().expand_as(distance)
    total = gather((distance*weight).flatten(1).sum(1)).sum()
    counted = gather(weight.flatten(1).sum(1)).sum()
    return total/counted.clamp(min=1e-12)


# %%
torch.manual_seed(0)
logits, teacher = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8).softmax(1)
sure = teacher.amax(1) > .5
print(f"teacher sure on {sure.float().mean():.0%} of the pixels")
test_eq(consistency_loss(teacher, teacher), 0)
test_close(
    consistency_loss(logits, teacher, sure, "ce"),
    -(teacher*logits.log_softmax(1)).sum(1)[sure].mean(),
    1e-6,
)
test_close(
    consistency_loss(logits.sigmoid(), teacher, sure),
    (logits.sigmoid() - teacher).square().permute(0, 2, 3, 1)[sure].mean(),
    1e-6,
)
test_close(
    consistency_loss(logits.sigmoid(), teacher, sure, "brier"),
    4*consistency_loss(logits.sigmoid(), teacher, sure),
    1e-5,
)
test_eq(consistency_loss(logits, teacher, sure & False, "ce").item(), 0)
