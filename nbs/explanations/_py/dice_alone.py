# %% [markdown]
# # Why Dice alone half-works
#
# > The original project dropped cross-entropy "because labels are incomplete". What that mends, what it does not, and why, in one derivative.

# %% [markdown]
# Where many structures were never outlined, a common advice is: *use the Dice loss only*. The original project followed it. The advice has a reason: cross-entropy *alone*, with zeros read as background, is worse.
# But Dice mends only half of the problem, and by accident. This page shows which half. You need to know what [known](three_states.ipynb) means. The rest is one line of calculus.

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_close

from ctseg.losses.fused import CrossEntropyDiceLoss, DiceLoss, MarginalSoftmaxLoss


# %% [markdown]
# ## One derivative
#
# Take one structure. $P_i$ is the network's probability at pixel $i$, $T_i$ is 1 where somebody outlined it and 0 elsewhere, and the sums run over the batch:
#
# $$D = \frac{2\sum_i P_i T_i}{\sum_i P_i + \sum_i T_i} = \frac{2A}{S}$$
#
# The loss is $1 - D$, so each pixel is pushed by
#
# $$\frac{\partial D}{\partial P_i} = \frac{2T_i - D}{S}.$$
#
# Every pixel outside the outline is pushed down with the same strength, $D/S$; every pixel inside is pushed up with $(2 - D)/S$. Three things follow.
#
# 1. **A structure that is nowhere outlined in the batch has $A = 0$, so $D = 0$: nothing is pushed.** Its own term does not tell a single pixel of an unexamined liver to be something else. (The Dice of the *background* channel still does, a little; the figure shows it.) This is the half that works. Cross-entropy would push on every one of them.
# 2. **A structure that somebody outlined on *one* image of the batch is pushed down on *all* others**, examined or not, with the strength $D/S$. The better the network knows the liver ($D$ near 1), the harder it is told that the livers nobody outlined
#    are not livers. Larger batches make it worse, since there is nearly always one image with an outline.
# 3. **A structure that was looked for and is absent is not pushed either**, as long as no other image of the batch has it. The harmful push is gone, and so is the useful one, which would teach the network not to invent the structure.
#
# The figure below shows all three. Each batch has eight images, and on some of them a disc is outlined. We look at the push on the outputs in a disc on an image where it was *not* outlined.

# %%
def discs(outlined, n=8, size=24, confident=2.):
    """Logits [n,3,size,size] of a network that sees a disc of class 1 on every image, masks, and the disc.

    The masks outline the disc on the first `outlined` images only.
    """
    y, x = np.mgrid[:size, :size]
    disc = torch.tensor((y - size/2)**2 + (x - size/2)**2 < 36)
    logits = torch.zeros(n, 3, size, size)
    logits[:, 1] = torch.where(disc, confident, -confident)
    mask = disc.long()*(torch.arange(n) < outlined)[:, None, None]
    return logits, mask, disc

def push(loss, outlined, known_last, **kw):
    "Mean push on the disc's pixels of the last image, towards class 1, in units of 1/pixels of the batch."
    logits, mask, disc = discs(outlined, **kw)
    known = torch.zeros(len(mask), 2, dtype=torch.bool)
    known[:outlined, 0] = True
    known[-1, 0] = known_last
    logits.requires_grad_()
    loss(logits, mask, known).backward()
    return -(logits.grad[-1, 1][disc].mean()*mask.numel()).item()


# %% [markdown]
# First the formula itself, against automatic differentiation:

# %%
P = torch.rand(500, generator=torch.Generator().manual_seed(0)).requires_grad_()
T = (torch.arange(500) < 60).float()
D = 2*(P*T).sum()/(P.sum() + T.sum())
(1 - D).backward()
test_close(-P.grad, ((2*T - D)/(P.sum() + T.sum())).detach(), eps=1e-7)

# %%
#| echo: false
#| label: fig-push
#| fig-alt: "The push of three losses on a pixel that nobody judged, and on one that is certainly absent"
kinds = {
    "cross-entropy, zeros as background": (CrossEntropyDiceLoss(w_dice=0.), "#c92a2a"),
    "Dice only, zeros as background": (DiceLoss(), "#e8590c"),
    "marginal: unknown left open": (MarginalSoftmaxLoss(), "#2b8a3e"),
}
titles = {
    False: "nobody looked on this image: should be 0",
    True: "looked for, and not there: should be well below 0",
}
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for ax, (known_last, title) in zip(axes, titles.items()):
    for name, (loss, colour) in kinds.items():
        values = [push(loss, k, known_last) for k in range(8)]
        ax.plot(range(8), values, "o-", color=colour, label=name, ms=4)
    ax.axhline(0, color="k", lw=.6)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("images of the batch, of 8, on which the disc is outlined")
axes[0].set_ylabel("push on a pixel the network takes for the disc")
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# On the left the network is right and nobody looked. Cross-entropy tells it that it is wrong, always and equally. Dice does so a little through the background channel, and more with every other image that has the outline. The
# marginal loss pushes nothing. On the right (another scale) the network is *wrong*: the structure was looked for and is not there. The marginal loss says so; Dice pushes exactly as on the left, because it never sees `known`.

# %%
#| hide
cross_entropy = CrossEntropyDiceLoss(w_dice=0.)
dice = DiceLoss()
marginal = MarginalSoftmaxLoss()
for k in range(8):
    assert abs(push(marginal, k, False)) < 1e-4
    assert push(dice, k, False) == push(dice, k, True)
assert push(dice, 7, False) < push(dice, 1, False) < 0
assert push(cross_entropy, 1, False) < push(dice, 1, False)

# %% [markdown]
# ## And rare structures
#
# $1/S$ is also why a small structure counts at all among large ones: the push on its pixels is divided by *its* size, not by the image's. That part of Dice is worth keeping, and all losses of `ctseg` keep it. But they add the sums only over images
# on which the structure was **examined**, present or absent: then the push of rule 2 falls only on slices where the structure is certainly absent, and what was harm becomes the cure for inventions. Where no image of the batch has the structure (rule 3), the cross-entropy teaches its absence.
#
# ## Measured
#
# On real CT, with everything else equal, Dice alone lost even to the pair of cross-entropy and Dice that makes the same mistake, and both lost to the losses that leave the unknown alone. [Partial labels on real CT](../benchmarks/realct_supervised.ipynb) has the differences with their intervals.
#
# Next: [the losses in full](../losses/20_fused.ipynb), [which confidence to trust](confidence.ipynb).
