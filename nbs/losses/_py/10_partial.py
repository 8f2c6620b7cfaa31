# %% [markdown]
# # Losses for partial labels
#
# > A zero in a mask may mean "absent" or "nobody looked". These losses learn from the first and leave the second alone.
#
# - skip_showdoc: true

# %%
#| default_exp losses.partial

# %%
#| export
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.unions import Unions
from ctseg.losses.target import Target, as_target, check_tensors, sum_dtype
from ctseg.losses.unions import without_unions

# %%
#| hide
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_close, test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.style import (
    STATE_COLOURS,
    class_colours,
    colour_legend,
    image_grid,
    overlay,
    show_image,
    show_states,
    states_of,
)
from ctseg.core.toys import known_part, toy_world
set_matplotlib_formats("png")  # one pixel a point: half the width of the default, a quarter of its bytes
torch.set_num_threads(1)  # sums in one order: the same outputs on every run

# %% [markdown]
# This page defines the losses of the package as plain formulas, which autograd differentiates. [Fused losses](20_fused.ipynb) computes the same values and gradients with less memory; training uses those.
#
# ## Three states
#
# An annotator outlined the lungs on this slice. Nobody looked for the heart. The mask holds a 0 on the heart, the same 0 that stands for background.

# %%
#| fig-alt: "A slice: what is there, what the mask holds, and each structure's states; the heart is unknown"
world = toy_world(1, size=48, missing=0, noise=.04)
classes, C = world.classes, len(world.classes)
known = np.array([[True, True, False]])        # lung_right, lung_left, heart
mask = known_part(world.truth, known)

fig, (panels,) = image_grid(1, 5, size=1.9)
show_image(panels[0], overlay(world.images[0], world.truth[0], classes), "what is there")
show_image(panels[1], overlay(world.images[0], mask[0], classes), "what the mask holds")
for c, (ax, name) in enumerate(zip(panels[2:], classes.names), 1):
    certain = known[0, c - 1] | (mask[0] > 0)  # a pixel of a lung is certainly no heart
    show_states(ax, states_of(mask[0] == c, certain), name, aspect="equal")
colour_legend(fig, class_colours(classes) | STATE_COLOURS)

# %% [markdown]
# For each class a pixel is *present*, *absent* or *unknown*. The lungs were examined, so their zeros are certain. The heart was not, so its zeros are unknown, except inside a lung, because structures do not overlap.
#
# What a batch asks of a network, with all of this in it, is a [`Target`](08_target.ipynb): the weight of each (channel, pixel), which is 0 where nothing is known, the channels that an unlabelled pixel may belong to, and the truth.

# %%
labels = torch.tensor([[1, 0]])                                # two pixels: class 1, and no label
examined = torch.tensor([[[True], [False]]])                   # class 2 was not examined
target = Target(labels, examined, None, pixel_known=True, first=1)
print("truth  ", target.one_hot().tolist())
print("weights", target.weights(torch.float32).tolist())       # class 2 is known on the labelled pixel only


# %% [markdown]
# ## Five sums
#
# Let $p$ be the predicted probability of a class at pixel $i$, $y\in\{0,1\}$ the truth, and $w$ the weight, 0 where the class is unknown. Every loss here is a short formula over sums of one image:
#
# $$\text{predicted}=\sum_i w_i p_i\qquad \text{overlap}=\sum_i w_i p_i y_i\qquad \text{true}=\sum_i w_i y_i$$
#
# and the sums of the cross-entropy and of its weights. All processes that share a batch exchange these few numbers before any ratio is taken ([several processes](../core/60_parallel.ipynb)).

# %%
#| export
class Sums(NamedTuple):
    "Sums over the pixels of each image; softmax has background too, and one cross-entropy for all channels."
    predicted: torch.Tensor      # [B,K] probability
    overlap: torch.Tensor        # [B,K] probability where the class is true
    true: torch.Tensor           # [B,K] weight where the class is true
    cross_entropy: torch.Tensor  # [B,K] for sigmoid, [B] for softmax
    weight: torch.Tensor         # of the cross-entropy, the same shape


# %%
print(*Sums._fields, sep=", ")


# %% [markdown]
# ### Sigmoid: do not ask
#
# Each class is a question of its own. Where a class is unknown, its question is skipped: its weight is 0, and so is its gradient.
#
# The cross-entropy of a pixel is $-\ln p$ where the class is true and $-\ln(1-p)$ where it is not. The focal form multiplies it by the distance from the truth, $|y-p|^\gamma$, so that easy pixels hardly count (Lin et al. 2017, [arXiv 1708.02002](https://arxiv.org/abs/1708.02002), equation 4).

# %%
#| export
def plain_sigmoid_sums(
    logits: torch.Tensor, # [B,C,N]
    target: Target,
    gamma: float = 0., # of the focal form; 0: plain cross-entropy
) -> Sums:
    "The sums of sigmoid outputs [B,C,N], each [B,C], through one-hot tensors."
    logits = logits.to(sum_dtype(logits))
    truth = target.one_hot().to(logits.dtype)
    weight = target.weights(logits.dtype).expand_as(logits)
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    if gamma:
        cross_entropy = cross_entropy*(truth - probability).abs()**gamma
    return Sums(
        predicted=(probability*weight).sum(-1),
        overlap=(probability*weight*truth).sum(-1),
        true=(truth*weight).sum(-1),
        cross_entropy=(cross_entropy*weight).sum(-1),
        weight=weight.sum(-1),
    )


# %%
sums = plain_sigmoid_sums(torch.zeros(1, 2, 2), target)        # an undecided network: p = ½ everywhere
for name, value in sums._asdict().items(): print(f"{name:14}", value[0].tolist())
test_eq(sums.predicted, torch.tensor([[1., .5]]))              # class 2 counts at one pixel only
test_eq(sums.overlap, torch.tensor([[.5, 0.]]))
test_close(sums.cross_entropy, math.log(2)*torch.tensor([[2., 1.]]))


# %% [markdown]
# ### Softmax: ask for less
#
# A softmax must give every pixel to some channel. A zero then means "background *or one of the unknown classes*". The marginal cross-entropy asks that the *sum* of their probabilities be 1 and leaves open which (Shi et al. 2021, [arXiv 2007.03868](https://arxiv.org/abs/2007.03868)):
#
# $$-\ln q,\qquad q=\sum_{c\text{ allowed}}p_c$$
#
# Allowed is the label where there is one, else background and every unknown class.

# %%
#| export
def plain_softmax_sums(
    logits: torch.Tensor, # [B,C+1,N], channel 0 is background
    target: Target, # its `known` [B,C+1,1|N] begins with background
    pixel_weight: torch.Tensor, # [B,N], of the cross-entropy
) -> Sums:
    "The sums of softmax outputs [B,C+1,N] through one-hot tensors; the cross-entropy is the marginal one."
    logits = logits.to(sum_dtype(logits))
    truth = target.one_hot()
    weight = target.weights(logits.dtype)
    labelled = target.mask[:, None] > 0
    allowed = torch.where(labelled, truth, target.open_channels(logits.dtype)) > 0
    log_q = torch.where(allowed, logits, -math.inf).logsumexp(1) - logits.logsumexp(1)
    probability = logits.softmax(1)
    return Sums(
        predicted=(probability*weight).sum(-1),
        overlap=(probability*weight*truth).sum(-1),
        true=(weight*truth).sum(-1),
        cross_entropy=(-log_q*pixel_weight).sum(-1),
        weight=pixel_weight.sum(-1),
    )


# %% [markdown]
# Three equal probabilities on two pixels. The first is labelled 1. The second may be background or class 2, which nobody looked for, so two thirds are right.

# %%
with_background = torch.tensor([[[True], [True], [False]]])
sums = plain_softmax_sums(
    torch.zeros(1, 3, 2), Target(labels, with_background, None, True, first=0), torch.ones(1, 2)
)
test_close(sums.cross_entropy, -math.log(1/3) - math.log(2/3))  # class 1; background or class 2
test_close(sums.predicted, torch.tensor([[2/3, 2/3, 1/3]]))

# %% [markdown]
# ## Dice
#
# The Dice loss of a class is $1-2\,\text{overlap}/(\text{predicted}+\text{true}+\epsilon)$. It is taken over the classes with a true pixel. Each image can have a Dice of its own (`"image"`), or the sums are added up over the batch first (`"batch"`).

# %%
#| export
REDUCTIONS = ("batch", "image")

def check_reduction(name: str) -> str:
    "`name` if it is one of `REDUCTIONS`, else `InputError`."
    if name not in REDUCTIONS: raise did_you_mean("reduction", name, REDUCTIONS)
    return name


# %%
try: check_reduction("images")
except InputError as e: print(e)


# %%
#| export
def dice_loss(
    predicted: torch.Tensor, # [B,C]
    overlap: torch.Tensor, # [B,C]
    true: torch.Tensor, # [B,C]
    reduction: str = "batch", # "batch": sums over all images first; "image": each image by itself
    eps: float = 1e-5,
    log: bool = False, # −ln Dice instead of 1 − Dice
) -> torch.Tensor: # scalar
    "Mean Dice loss of the cells [B,C], or classes, that have a true pixel; 0 if there are none."
    if reduction == "batch":
        predicted, overlap, true = predicted.sum(0), overlap.sum(0), true.sum(0)
    present = true > 0
    smoothing = eps if log else 0
    dice = (2*overlap + smoothing)/(predicted + true + eps)
    loss = -torch.where(present, dice, 1).log() if log else 1 - dice
    return (loss*present).sum() / present.sum().clamp(min=1)


# %% [markdown]
# Two images were examined for the liver. On the first it has 100 pixels and is found well. The second has no liver, and the network invents 60 pixels of one.

# %%
predicted, overlap, true = (torch.tensor(v)[:, None] for v in ([100., 60.], [80., 0.], [100., 0.]))
for reduction in REDUCTIONS: print(f"{reduction:6} {dice_loss(predicted, overlap, true, reduction):.3f}")
test_close(dice_loss(predicted, overlap, true, "image", eps=0), 1 - 160/200)
test_close(dice_loss(predicted, overlap, true, "batch", eps=0), 1 - 160/260)

# %% [markdown]
# Per image, the second slice has no true pixel and hence no Dice, so the invention costs nothing. Over the batch the invented pixels enlarge the denominator. The challenge's metric scores 0 for an invented class, so `"batch"` is the default. (The measured difference between the two is [small and uncertain](../benchmarks/ablations.ipynb).)
#
# ### Why ε is negligible
#
# One could score absent classes too, by adding a smoothing $\epsilon$ to the numerator: an empty prediction of an absent class is then perfect. Suppose the network gives an absent class the probability mass $S=\sum p$ on an image. Every pixel then gets the gradient $\epsilon/(S+\epsilon)^2$.

# %%
#| fig-alt: "The push on an absent class against its mass: with a large epsilon it outweighs the pull up"
mass = torch.logspace(-2, 3, 200)
fig, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
for eps, colour in ((1., "tab:red"), (1e-2, "tab:orange"), (1e-5, "tab:olive")):
    ax.loglog(mass, eps/(mass + eps)**2, c=colour, label=f"absent, per image, ε = {eps:g}")
ax.loglog(
    mass,
    2*50/(100 + 100 + mass)**2,
    c="tab:blue",
    label="absent, over the batch\n(overlap 50, predicted and true 100)",
)
ax.axhline(2/(1 + 100), c="grey", ls="--", label="present, 100 pixels: the pull up")
ax.set(
    xlabel="probability mass on an absent class, pixels",
    ylabel="push down, each pixel",
    ylim=(1e-7, 3),
    title="What an absent class does to its pixels",
)
ax.legend(fontsize=8, loc="lower left", frameon=False)
plt.show()

# %% [markdown]
# With ε = 1 a tiny probability on an absent class is pushed down harder than a real structure of 100 pixels is pulled up, and rare structures learn to stay silent. The remedy is a negligible ε (Tilborghs et al. 2022, [arXiv 2207.09521](https://arxiv.org/abs/2207.09521)).
#
# ### A class that is missed altogether
#
# Suppose a network gives a whole structure the probability $p\approx0$. The Dice loss is then at its worst, and yet flat: the pull on each logit vanishes with $p$. The logarithm has no such plateau (Wong et al. 2018, [arXiv 1809.00076](https://arxiv.org/abs/1809.00076), equation 3 with $\gamma=1$):
#
# $$\frac{\partial(-\ln D)}{\partial z} = \frac1D\,\frac{\partial(1-D)}{\partial z}$$
#
# A class at Dice 0.9 hardly notices the factor $1/D$. For a class at 0.01 it is 100.

# %%
#| fig-alt: "The pull on a missed structure: with 1 − Dice it vanishes, with the logarithm it stays high"
# the logit of all 100 pixels of a structure
z = torch.linspace(-10, 5, 60, dtype=torch.float64, requires_grad=True)
predicted, true = 100*z.sigmoid()[:, None], torch.full((60, 1), 100.)
fig, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
for log, label, colour in ((False, "1 − Dice", "tab:grey"), (True, "−ln Dice", "tab:red")):
    (gradient,) = torch.autograd.grad(
        60*dice_loss(predicted, predicted, true, "image", 0, log), z, retain_graph=True
    )
    ax.loglog(z.detach().sigmoid(), -gradient/100, c=colour, label=label)
ax.set(
    xlabel="probability of the structure's pixels",
    ylabel="pull up, each pixel",
    title="A structure that is missed altogether",
)
ax.legend(frameon=False)
p = z.detach().sigmoid()
test_close(-gradient, (1 - p)/(1 + p), 1e-8)  # by hand: D = 2p/(1 + p)


# %% [markdown]
# ## What every loss offers
#
# All losses are called as `loss(logits, mask, known, weight=None)`, for slices `[B,K,H,W]`, volumes `[B,K,D,H,W]` or signals `[B,K,W]`. They also say how many channels a model needs, how its outputs become probabilities, and how its last layer should begin.

# %%
#| export
def as_given(rows: torch.Tensor) -> torch.Tensor:
    """The rows [b,…] of the only process.

    Where there are several, the trainer sets `gather` to a function that joins the rows of all, [B,…]."""
    return rows


# %% [markdown]
# In one process nothing is gathered:

# %%
rows = torch.ones(2, 3)
assert as_given(rows) is rows


# %%
#| export
class PartialLoss(nn.Module):
    """Base: `loss(logits [B,K,…], mask [B,…], known [B,C] or [B,C,…], weight [B,1|C,…])`; … is H,W or D,H,W.

    The mask may be [B,1,…] too, as MONAI has it; for sigmoid outputs also [B,C,…], structures that overlap."""
    activation = "softmax"               # or "sigmoid"
    reads_known = True                   # False: unknown is taken for background
    # rows [b,…] of one process → those of all
    gather: Callable[[torch.Tensor], torch.Tensor] = staticmethod(as_given)
    unions: Unions = ()                  # classes made of others, `ClassMap.unions`
    whole: int | None = None             # images of the batch, where it is given in parts

    def out_chans(self, C: int) -> int:
        "The output channels K that a model needs for `C` classes."
        return C + (self.activation == "softmax")

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        "Probabilities of the classes without background: float32 [B,C,…]; 0 for a union, which is never drawn."
        softmax = self.activation == "softmax"
        logits = without_unions(logits.float(), self.unions, softmax)
        return logits.softmax(1)[:, 1:] if softmax else logits.sigmoid()

    def init_head(self, conv: nn.Module, C: int) -> None:
        "Prepare the last convolution of a model for `C` classes; softmax needs nothing."


# %% [markdown]
# Three classes need four channels for a softmax, and give three maps of probabilities.

# %%
loss, logits = PartialLoss(), torch.zeros(2, 4, 8, 8)
test_eq((loss.out_chans(3), loss.probabilities(logits).shape), (4, (2, 3, 8, 8)))


# %% [markdown]
# ## Masked sigmoid
#
# This is the binary cross-entropy and the Dice of each class over the pixels where the class is known, after MultiTalent (Ulrich et al. 2023, [arXiv 2303.14444](https://arxiv.org/abs/2303.14444)). The cross-entropy is a mean over all known (class, pixel).
#
# `pixel_known` uses the fact from the first picture: a pixel labelled lung is certainly not heart, even where nobody looked for hearts. `prior` starts every class at a small probability. Without it all classes begin at one half on all pixels, and the first gradients only say "no".

# %%
#| export
class SigmoidLoss(PartialLoss):
    "Base of the losses with sigmoid outputs."
    activation = "sigmoid"
    pixel_sums: Callable[..., Sums] = staticmethod(plain_sigmoid_sums)

    def batch_sums(self, logits, mask, known, weight=None, pixel_known=True, gamma=0.) -> Sums:
        "The sums [B,C] of all images in the batch, over all processes."
        flat, target = as_target(logits, mask, known, weight, pixel_known, False, self.unions, self.whole)
        predicted, overlap, true, cross_entropy, counted = self.pixel_sums(flat, target, gamma)
        rows = torch.stack((predicted, overlap, cross_entropy, counted, true), 1)
        predicted, overlap, cross_entropy, counted, true = self.gather(rows).unbind(1)
        return Sums(predicted, overlap, true, cross_entropy, counted)


# %% [markdown]
# Two pixels of class 1 count, and one of class 2: a pixel labelled 1 is certainly no 2.

# %%
two_pixels, one_known = torch.tensor([[[1, 0]]]), torch.tensor([[True, False]])
sums = SigmoidLoss().batch_sums(torch.zeros(1, 2, 1, 2), two_pixels, one_known)
test_eq(sums.weight, torch.tensor([[2., 1.]]))


# %%
#| export
class PlainMaskedSigmoidLoss(SigmoidLoss):
    "Binary cross-entropy and Dice of each class where it is known; no gradient elsewhere."
    def __init__(self,
        w_dice: float = 1., # weight of the Dice term
        w_bce: float = .5, # weight of the cross-entropy
        reduction: str = "batch", # of the Dice: "batch" or "image"
        pixel_known: bool = True, # a labelled pixel is known to be no other class
        focal_gamma: float = 0., # 0: plain cross-entropy
        log_dice: bool = False, # −ln Dice: a class missed altogether keeps its gradient
        eps: float = 1e-5, # of the Dice, negligible
        prior: float = .01, # probability at the start, by `init_head`
    ):
        super().__init__()
        self.w_dice = w_dice
        self.w_bce = w_bce
        self.reduction = check_reduction(reduction)
        self.pixel_known = pixel_known
        self.focal_gamma = focal_gamma
        self.log_dice = log_dice
        self.eps = eps
        self.prior = prior

    def forward(self, logits, mask, known, weight=None) -> torch.Tensor:
        "A scalar; see `PartialLoss`."
        sums = self.batch_sums(logits, mask, known, weight, self.pixel_known, self.focal_gamma)
        pixel_loss = self.w_bce*sums.cross_entropy.sum()/sums.weight.sum().clamp(min=1e-12)
        return pixel_loss + self.w_dice*dice_loss(*sums[:3], self.reduction, self.eps, self.log_dice)

    def init_head(self, conv: nn.Module, C: int) -> None:
        "Start every class at the probability `prior` (Lin et al. 2017, section 4.1)."
        nn.init.constant_(conv.bias, -math.log((1 - self.prior)/self.prior))


# %% [markdown]
# By hand: two pixels, two classes, all logits 0. The first pixel is labelled 1, and class 2 was not examined. The cross-entropy is ln 2 wherever it is asked. The Dice of class 1 is 2·½/(1 + 1).

# %%
z = torch.zeros(1, 2, 1, 2, requires_grad=True)
value = PlainMaskedSigmoidLoss(eps=0)(z, two_pixels, one_known)
value.backward()
print("push:", (-z.grad[0, :, 0]).tolist())   # a row for each class, a column for each pixel
test_close(value, .5*math.log(2) + (1 - .5))
test_eq(z.grad[0, 1, 0, 1], 0)                 # class 2 on the second pixel is unknown: exactly nothing
assert z.grad[0, 1, 0, 0] > 0                  # on the first it is certainly absent: pushed down
conv = nn.Conv2d(4, 2, 1)
PlainMaskedSigmoidLoss().init_head(conv, 2)
test_close(conv.bias.sigmoid(), torch.full((2,), .01))


# %% [markdown]
# ## Marginal softmax
#
# This is the marginal cross-entropy and the Dice of each class where it is known. The cross-entropy is a mean over the pixels about which anything is known, so an image on which nothing was examined changes nothing.

# %%
#| export
class ClassSums(NamedTuple):
    "The sums of softmax outputs over all processes, and the mean cross-entropy."
    predicted: torch.Tensor      # [B,C+1]
    overlap: torch.Tensor        # [B,C+1]
    true: torch.Tensor           # [B,C+1]
    cross_entropy: torch.Tensor  # scalar

    def without_background(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        "Predicted, overlap and true of the classes, [B,C] each."
        return self.predicted[:, 1:], self.overlap[:, 1:], self.true[:, 1:]


# %% [markdown]
# The first column is the background:

# %%
table = torch.arange(6.).reshape(2, 3)
test_eq(
    ClassSums(table, table, table, torch.tensor(0.)).without_background()[0],
    torch.tensor([[1., 2.], [4., 5.]]),
)


# %%
#| export
class SoftmaxLoss(PartialLoss):
    "Base of the losses with softmax outputs."
    pixel_sums: Callable[..., Sums] = staticmethod(plain_softmax_sums)

    def batch_sums(self, logits, mask, known=None, weight=None, pixel_known=False) -> ClassSums:
        "The sums of a batch; without `known` every class counts as examined."
        check_tensors(logits=logits)
        if known is None:
            known = logits.new_ones(len(logits), logits.shape[1] - 1)
        flat, target = as_target(logits, mask, known, weight, pixel_known, True, self.unions, self.whole)
        anything_known = target.known[:, 1:].any(1) | (target.mask > 0)
        pixel_weight = anything_known.to(sum_dtype(logits))
        if target.weight is not None:
            pixel_weight = target.weight[:, 0]*anything_known
        predicted, overlap, true, cross_entropy, counted = self.pixel_sums(flat, target, pixel_weight)
        rows = torch.cat([predicted, overlap, true, torch.stack([cross_entropy, counted], 1)], 1)
        K = predicted.shape[1]
        predicted, overlap, true, pixel_terms = self.gather(rows).split([K, K, K, 2], 1)
        cross_entropy, counted = pixel_terms.sum(0)
        return ClassSums(predicted, overlap, true, cross_entropy/counted.clamp(min=1e-12))


# %% [markdown]
# The mean over both pixels: one is labelled 1, the other is background or class 2.

# %%
z = torch.zeros(1, 3, 1, 2)
sums = SoftmaxLoss().batch_sums(z, two_pixels, one_known)
test_close(sums.cross_entropy, -(math.log(1/3) + math.log(2/3))/2)


# %%
#| export
class PlainMarginalSoftmaxLoss(SoftmaxLoss):
    "Cross-entropy in which a zero means background or an unknown class, and Dice where a class is known."
    def __init__(self,
        w_dice: float = 1., # weight of the Dice term
        w_ce: float = 1., # weight of the cross-entropy, a mean over pixels
        reduction: str = "batch", # of the Dice: "batch" or "image"
        pixel_known: bool = True, # a labelled pixel is known to be no other class, for the Dice too
        log_dice: bool = False, # −ln Dice: a class missed altogether keeps its gradient
        eps: float = 1e-5, # of the Dice, negligible
    ):
        super().__init__()
        self.w_dice = w_dice
        self.w_ce = w_ce
        self.reduction = check_reduction(reduction)
        self.pixel_known = pixel_known
        self.log_dice = log_dice
        self.eps = eps

    def forward(self, logits, mask, known, weight=None) -> torch.Tensor:
        "Marginal cross-entropy and Dice, a scalar; logits [B,C+1,…], the rest as in `PartialLoss`."
        check_tensors(known=known)  # left out it would count as everything
        sums = self.batch_sums(logits, mask, known, weight, self.pixel_known)
        dice = dice_loss(*sums.without_background(), self.reduction, self.eps, self.log_dice)
        return self.w_ce*sums.cross_entropy + self.w_dice*dice


# %% [markdown]
# The same two pixels with three channels at ⅓ each. The first pixel asks for class 1, the second for background or class 2. The Dice of class 1 is 2·⅓/(⅔ + 1).

# %%
marginal = PlainMarginalSoftmaxLoss(eps=0)(z, two_pixels, one_known)
test_close(marginal, -(math.log(1/3) + math.log(2/3))/2 + 1 - (2/3)/(5/3))

# %% [markdown]
# What does a zero teach? With $q$ the probability of all that is allowed, the gradient of $-\ln q$ is $p_c-[c\text{ allowed}]\,p_c/q$. A class known to be absent is pushed down by its probability. Background and the unknown classes are pushed up, each by its share. So background, which is allowed at every zero, tends to win over a class that is not learnt yet. The sigmoid form has no such pull.

# %%
z = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
PlainMarginalSoftmaxLoss(w_dice=0)(
    z, torch.zeros(1, 1, 1, dtype=torch.long), torch.tensor([[True, False, False]])
).backward()
p, gradient = z.detach().softmax(1)[0, :, 0, 0], z.grad[0, :, 0, 0]
q = p[0] + p[2] + p[3]
test_close(gradient[1], p[1])                              # known to be absent
test_close(gradient[[0, 2, 3]], -p[[0, 2, 3]]*(1 - q)/q)   # background and the unknown


# %% [markdown]
# ## Two losses to compare with
#
# The original project trained with a Dice over all softmax channels, background included, and read every zero as background ([its code](https://github.com/GuillaumeHJ/Semi-Supervised-Segmentation-of-CT-Scans/blob/main/src/utils/losses.py)):
#
# $$1-\frac{2\sum_i p_iy_i}{\sum_i p_i+\sum_i y_i+\epsilon}$$
#
# An absent class gives the constant 1 and no gradient there. Unknown structures are pushed down by the Dice of the background channel only. Cross-entropy with Dice is the usual loss where everything is known. Both are kept to measure [what the mistake costs](../benchmarks/realct_supervised.ipynb).

# %%
#| export
class PlainDiceLoss(SoftmaxLoss):
    "The original project's loss: Dice over all channels, zeros as background; `known` is not looked at."
    reads_known = False

    def __init__(self, eps: float = 1e-6):
        super().__init__()
        self.eps = eps

    def forward(self, logits, mask, known=None, weight=None) -> torch.Tensor:
        "1 − the mean Dice of all channels, a scalar; logits [B,C+1,…], the rest as in `PartialLoss`."
        sums = self.batch_sums(logits, mask, None, weight)
        dice = 2*sums.overlap.sum(0)/(sums.predicted.sum(0) + sums.true.sum(0) + self.eps)
        return (1 - dice).mean()


# %% [markdown]
# By hand again: three channels at ⅓ and two pixels. The Dice of background is 2·⅓/(⅔ + 1), that of class 1 is the same, and class 2 has no pixel.

# %%
z = torch.zeros(1, 3, 1, 2)
test_close(PlainDiceLoss(eps=0)(z, two_pixels), 1 - (.4 + .4 + 0)/3)


# %%
#| export
class PlainCrossEntropyDiceLoss(SoftmaxLoss):
    "Cross-entropy and Dice that read unknown as background: the mistake, to be measured."
    reads_known = False

    def __init__(self, w_dice: float = 1., w_ce: float = 1., reduction: str = "batch", eps: float = 1e-5):
        super().__init__()
        self.w_dice = w_dice
        self.w_ce = w_ce
        self.reduction = check_reduction(reduction)
        self.eps = eps

    def forward(self, logits, mask, known=None, weight=None) -> torch.Tensor:
        "Cross-entropy and Dice, a scalar; logits [B,C+1,…], the rest as in `PartialLoss`."
        sums = self.batch_sums(logits, mask, None, weight)
        dice = dice_loss(*sums.without_background(), self.reduction, self.eps)
        return self.w_ce*sums.cross_entropy + self.w_dice*dice


# %% [markdown]
# Three equal probabilities cost $\log 3$, and their Dice is 0.4 on average.

# %%
test_close(PlainCrossEntropyDiceLoss(eps=0)(z, two_pixels), math.log(3) + .6)

# %% [markdown]
# ## What each loss asks
#
# Back to the slice at the top, with an undecided network. Each row shows one loss, each column one class. The bottom rows are where it matters: an ordinary loss pushes the heart down *on the heart*.

# %%
#| fig-alt: "Where four losses push each class: two that read unknown as background push the heart down"
losses = {
    "masked sigmoid": PlainMaskedSigmoidLoss(),
    "marginal softmax": PlainMarginalSoftmaxLoss(),
    "Dice, unknown =\nbackground": PlainDiceLoss(),
    "cross-entropy + Dice,\nunknown = background": PlainCrossEntropyDiceLoss(),
}
written, examined = torch.from_numpy(mask).long(), torch.from_numpy(known)

def pushes(loss):
    "The negative gradient of each class's logits, [C,H,W], for an undecided network."
    z = torch.zeros(1, loss.out_chans(C), *written.shape[1:], requires_grad=True)
    loss(z, written, examined).backward()
    return -z.grad[0, -C:]

fig, axes = image_grid(len(losses), C + 1, size=1.6)
for row, (name, loss) in zip(axes, losses.items()):
    show_image(row[0], world.images[0])
    row[0].set_ylabel(name, fontsize=8)
    for ax, push in zip(row[1:], pushes(loss)): ax.imshow(push.sign(), cmap="PuOr", vmin=-1.6, vmax=1.6)
for ax, title in zip(axes[0], ("slice", *classes.names)): ax.set_title(title, fontsize=9)
shades = plt.get_cmap("PuOr")
colour_legend(
    fig, {"pushed up": shades(.81), "pushed down": shades(.19), "left alone: exactly 0": shades(.5)}
)

# %% [markdown]
# The masked form says nothing about the heart outside the lungs. The marginal form pushes it up together with background. The two others push it down everywhere.
#
# ## Does it matter?
#
# On each of 96 toy slices every class was examined with a probability of about one third. The same small network with the same start takes the same 300 steps with each loss. The score is the Dice of whole structures on fresh slices with full truth.

# %%
train, test = toy_world(96, size=24, seed=1, examined=1), toy_world(48, size=24, seed=2, examined=3)

def tensors(world):
    "Images f32 [N,1,H,W], masks int64 [N,H,W], known bool [N,C]."
    return (
        torch.from_numpy(world.images)[:, None]/255,
        torch.from_numpy(world.masks).long(),
        torch.from_numpy(world.known),
    )

def learn(loss, steps=300):
    "Train a small network; the Dice of its decisions on full truth, for each class."
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(12, 12, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(12, loss.out_chans(C), 1),
    )
    loss.init_head(net[-1], C)
    image, written, examined = tensors(train)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(steps):
        batch = torch.randperm(len(train), generator=torch.Generator().manual_seed(step))[:16]
        optimiser.zero_grad()
        loss(net(image[batch]), written[batch], examined[batch]).backward()
        optimiser.step()
    image, truth, _ = tensors(test)
    with torch.no_grad(): logits = net(image)
    if loss.activation == "softmax": prediction = logits.argmax(1)
    else: prediction = torch.where(logits.amax(1) > 0, logits.argmax(1) + 1, 0)
    pairs = [(prediction == c, truth == c) for c in range(1, C + 1)]
    return [(2*(a & b).sum()/(a.sum() + b.sum())).item() for a, b in pairs]

for name, loss in losses.items():
    dice = learn(loss)
    print(f"{' '.join(name.split()):43}" + "  ".join(f"{c} {d:.2f}" for c, d in zip(classes.names, dice)))

# %% [markdown]
# The two losses that read `known` learn all classes. The ordinary loss learns that most lungs and hearts are not there, and finds fewer of their pixels. The Dice alone learns nothing in this short training: it starts on the plateau shown above, and [another page](../explanations/dice_alone.ipynb) follows it.
#
# ## What is guaranteed
#
# **Unknown cells get exactly no gradient** from the masked form. This holds too where the known classes change within an image, as after CutMix.

# %%
a, b = torch.tensor([[True, False, True]]), torch.tensor([[False, True, True]])
left = torch.arange(8)[None, :].expand(8, 8) < 4
# [1,3,8,8]: the left half from image a, the right half from b
mixed = torch.where(left, a[..., None, None], b[..., None, None])
labels = torch.where(left, torch.randint(0, 2, (1, 8, 8))*3, torch.randint(0, 2, (1, 8, 8))*2)
z = torch.randn(1, 3, 8, 8, requires_grad=True)
for pixel_known in (False, True):
    gradient, = torch.autograd.grad(PlainMaskedSigmoidLoss(pixel_known=pixel_known)(z, labels, mixed), z)
    certain = mixed | (labels > 0)[:, None] if pixel_known else mixed
    assert (gradient[~certain] == 0).all() and (gradient[certain] != 0).all()


# %% [markdown]
# **With everything known they are the ordinary losses**: PyTorch's cross-entropies and the Dice of the textbook.

# %%
def textbook_dice(p, y): # both [B,C,H,W]
    dice = 2*(p*y).sum((0, 2, 3))/(p.sum((0, 2, 3)) + y.sum((0, 2, 3)) + 1e-5)
    return (1 - dice).mean()

labels, everything = torch.randint(0, 4, (2, 8, 8)), torch.ones(2, 3, dtype=torch.bool)
truth = F.one_hot(labels, 4).permute(0, 3, 1, 2).float()
z = torch.randn(2, 3, 8, 8)
ordinary = .5*F.binary_cross_entropy_with_logits(z, truth[:, 1:]) + textbook_dice(z.sigmoid(), truth[:, 1:])
test_close(PlainMaskedSigmoidLoss()(z, labels, everything), ordinary, 1e-6)
z = torch.randn(2, 4, 8, 8)
ordinary = F.cross_entropy(z, labels) + textbook_dice(z.softmax(1)[:, 1:], truth[:, 1:])
for loss in (PlainMarginalSoftmaxLoss(), PlainCrossEntropyDiceLoss()):
    test_close(loss(z, labels, everything), ordinary, 1e-6)

# %% [markdown]
# **With nothing known the loss and its gradient are 0**, and an unlabelled image in the batch changes nothing.

# %%
for loss in (PlainMaskedSigmoidLoss(), PlainMarginalSoftmaxLoss()):
    z = torch.randn(2, loss.out_chans(3), 8, 8, requires_grad=True)
    value = loss(z, labels*0, ~everything)
    value.backward()
    test_close(value, 0, 1e-6)
    test_close(z.grad, torch.zeros_like(z), 1e-8)
    half = torch.tensor([[True]*3, [False]*3])
    test_close(loss(z, labels*half[:, :1, None], half), loss(z[:1], labels[:1], half[:1]), 1e-6)
