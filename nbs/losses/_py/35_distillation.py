# %% [markdown]
# # Distillation
#
# > A network learns to answer as an earlier one about old classes, while people teach it new ones.
#
# - skip_showdoc: true

# %%
#| default_exp losses.distillation

# %%
#| export
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ctseg.losses.partial import as_given

# %%
#| hide
import matplotlib.pyplot as plt
from fastcore.test import test_close, test_eq


# %% [markdown]
# A network of old classes is to learn a new one from slices on which only the new one was outlined. The old network still knows the old classes, so it is asked about them, and the new one is to give the same answer: its probabilities, not a label wherever it is sure. A small structure of which the old network is never quite sure would lose every doubtful pixel to the sure background around it, and die out.
#
# ## At a pixel
#
# Of softmax outputs the answers about old classes are compared by cross-entropy. What the old network calls background may by now be a new class: so everything it was not asked about counts together with the background, as in the marginal cross-entropy of [partial labels](10_partial.ipynb) (the unbiased distillation of Cermelli et al. 2020, arXiv 2002.00718).

# %%
#| export
class Answers(NamedTuple):
    "What a network says about the classes that its teacher is asked about."
    probability: torch.Tensor  # f32 [B,C,…]
    distance: torch.Tensor     # f32 [B,…], the cross-entropy to the teacher's, of all asked classes


def softmax_answers(
    logits: torch.Tensor, # f32 [B,C+1,…]
    teacher: torch.Tensor, # f32 [B,C,…], 0 where it is not asked
    asked: torch.Tensor, # bool [B,C,…]
) -> Answers:
    "Those of softmax outputs."
    log_p = logits.log_softmax(1)
    background, classes = log_p[:, :1], log_p[:, 1:]
    others = torch.cat([background, classes.masked_fill(asked, -math.inf)], 1).logsumexp(1)
    kept = classes.masked_fill(~asked, 0)  # a class that can never be drawn has −inf
    remainder = (1 - teacher.sum(1)).clamp(min=0)
    return Answers(classes.exp(), -(teacher*kept).sum(1) - remainder*others)


# %%
logits = torch.tensor([[2., 0., 1.]])[..., None]  # background, an old class, a new one; one pixel
asked = torch.tensor([[True, False]])[..., None]
p = logits.softmax(1)[0, :, 0]
says = torch.tensor([[.3, 0.]])[..., None]
by_hand = -.3*p[1].log() - .7*(p[0] + p[2]).log()
test_close(softmax_answers(logits, says, asked).distance.item(), by_hand.item(), eps=1e-6)


# %% [markdown]
# Sigmoid outputs are separate answers, each with its own cross-entropy.

# %%
#| export
def sigmoid_answers(
    logits: torch.Tensor, # f32 [B,C,…]
    teacher: torch.Tensor, # f32 [B,C,…]
    asked: torch.Tensor, # bool [B,C,…]
) -> Answers:
    "Those of sigmoid outputs."
    each = F.binary_cross_entropy_with_logits(logits, teacher, reduction="none")
    return Answers(logits.sigmoid(), (each*asked).sum(1))


# %%
pair = torch.tensor([[0., 3.]])[..., None]
unsure = torch.tensor([[.5, 0.]])[..., None]
test_close(sigmoid_answers(pair, unsure, asked).distance.item(), math.log(2), eps=1e-6)

# %% [markdown]
# ## Of a batch
#
# A cross-entropy is a mean over pixels, of which a small structure has few. So each class that the teacher draws has a Dice too, of the two probabilities, with squares below: it is highest where both are equal. As with [people's contours](10_partial.ipynb) it is the logarithm that counts.

# %%
#| export
DRAWN = 0.5  # probability from which on the teacher draws a class
EPS = 1e-5 # a class of no pixels has a Dice of 1


def soft_dice_loss(
    overlap: torch.Tensor, # [B,C], of the two probabilities
    squares: torch.Tensor, # [B,C], of either
    drawn: torch.Tensor, # [B,C], pixels
) -> torch.Tensor: # scalar
    "Mean −ln Dice of the classes that the teacher draws in the batch; 0 if it draws none."
    present = drawn.sum(0) > 0
    dice = (2*overlap.sum(0) + EPS)/(squares.sum(0) + EPS)
    return -torch.where(present, dice, 1).log().sum()/present.sum().clamp(min=1)


# %%
one = torch.ones(1, 2)
test_eq(soft_dice_loss(one, 2*one, 0*one).item(), 0)
test_close(soft_dice_loss(one, 4*one, torch.tensor([[3., 0.]])).item(), math.log(2), eps=1e-4)


# %%
#| export
def distillation_loss(
    logits: torch.Tensor, # [B,K,…] of the network that learns, at full size
    teacher: torch.Tensor, # probabilities [B,C,…] of the earlier one
    asked: torch.Tensor, # bool [B,C,…]: where it is asked about a class
    activation: str = "softmax", # of the logits: "softmax" or "sigmoid"
    gather: Callable[[torch.Tensor], torch.Tensor] = as_given, # as `PartialLoss.gather`
) -> torch.Tensor: # scalar; 0 if nothing is asked
    "How far a network's answers are from its teacher's where it is asked: cross-entropy and −ln Dice."
    teacher = teacher.detach().float()*asked
    answers_of = softmax_answers if activation == "softmax" else sigmoid_answers
    probability, distance = answers_of(logits.float(), teacher, asked)
    probability = probability*asked

    def sums(values: torch.Tensor) -> torch.Tensor: return values.flatten(2).sum(2)
    counted = asked.any(1)
    pixels = torch.stack([distance*counted, counted.float()], 1)
    squares = probability.square() + teacher.square()
    of_classes = [sums(values) for values in (probability*teacher, squares, (teacher >= DRAWN).float())]
    rows = gather(torch.cat([sums(pixels), *of_classes], 1))
    total, count = rows[:, :2].sum(0)
    overlap, squares, drawn = rows[:, 2:].chunk(3, 1)
    return total/count.clamp(min=1) + soft_dice_loss(overlap, squares, drawn)


# %% [markdown]
# It is lowest where the two agree. A new class may take from the background; what it takes from an old class costs:

# %%
#| fig-alt: "The distillation loss against a shift of a logit: a new class costs less than an old one"
torch.manual_seed(0)
mine = torch.randn(2, 4, 8, 8, requires_grad=True)
same = mine.detach().softmax(1)[:, 1:]
asked = torch.ones(2, 3, 8, 8, dtype=torch.bool)
asked[:, 2] = False
distillation_loss(mine, same, asked).backward()
print(f"gradient where both agree: {mine.grad.abs().max():.1e}")

shift = torch.linspace(-3, 3, 61)
old_class, new_class = torch.tensor([0, 1., 0, 0]), torch.tensor([0, 0, 0, 1.])
curves = {
    name: [distillation_loss(mine.detach() + t*way.view(1, -1, 1, 1), same, asked).item() for t in shift]
    for name, way in (("an old class", old_class), ("the new class", new_class))
}
fig, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
for name, values in curves.items(): ax.plot(shift, values, label=name)
ax.set(xlabel="added to its logit", ylabel="distillation loss")
ax.legend(frameon=False)
plt.show()

# %%
#| hide
test_eq(int(shift[torch.tensor(curves["an old class"]).argmin()].abs() < 1e-5), 1)
test_eq(distillation_loss(mine, same, asked & False).item(), 0)
