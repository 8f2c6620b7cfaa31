# %% [markdown]
# # Unions
#
# > One hospital outlines "lungs", another the left and the right one. What may a network learn from the first?

# %% [markdown]
# Data sets of many sources seldom agree on how finely they divide. One has the parotids as one structure, the next has two. One lists five lobes of the lung, the next a lung. Three things could be done with the coarse one:
#
# * **Leave it out.** Then its slices teach nothing of the lungs, though somebody has outlined them.
# * **Make it a class of its own**, beside left and right. Then one pixel has two right answers, and each source denies the other's.
# * **Say what it is**: the left and the right one together. This is a *union*.
#
# A union is declared in `unions.json`, beside the names of the classes, or for a [merge](../guides/three_hospitals.ipynb) by `--unions`:
#
#     {"lungs": ["lung_left", "lung_right"]}
#
# This page shows what a network is then told.

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_close

from ctseg.core.anatomy import ClassMap
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.core.unions import union_ids
from ctseg.data.toys import toy_set
from ctseg.losses.fused import MarginalSoftmaxLoss, MaskedSigmoidLoss

# %% [markdown]
# ## Two slices
#
# The same slice of a toy world, outlined twice. The fine source has two lungs, the coarse one has lungs. On the coarse slice it is *unknown* which pixel is left. It is not unknown that a pixel of the lungs is one of the two, and that no pixel elsewhere is either.

# %%
#| hide
toys, truth = toy_set(8, 8, size=48)
n = int(np.argmax([len(np.unique(mask)) for mask in truth]))  # the first slice with all three
names = ["lung_right", "lung_left", "heart", "lungs"]
classes = ClassMap.from_names(names, {"lungs": ["lung_right", "lung_left"]})
fine = truth[n]
coarse = np.where(np.isin(fine, (1, 2)), 4, fine).astype(np.uint8)

# %%
#| echo: false
#| label: fig-two-sources
#| fig-alt: "The same toy slice outlined twice: left and right lung in two colours, and lungs in one"
fig, (panels,) = image_grid(1, 2, size=2.6)
for ax, mask, title in zip(panels, (fine, coarse), ("left and right", "lungs")):
    show_image(ax, overlay(toys.images[n], mask, classes), title)
class_legend(fig, classes)
plt.show()

# %% [markdown]
# ## What one pixel is told
#
# The pixel is labelled *lungs*. The network gives it some probability for each lung, more for the right one. The bars show how the loss pushes each output, $-\partial L/\partial z$: up means *more of this*.

# %%
UNION = union_ids({"lungs": ["right", "left"]}, ["right", "left", "heart", "lungs"])

def push(loss, logits, label, known):
    "The negative gradient of a loss at one pixel, for background (softmax only), right, left, heart."
    loss.unions = UNION
    own = 0.  # the channel of the union itself
    z = torch.tensor([*logits, own]).reshape(1, -1, 1, 1).requires_grad_()
    loss(z, torch.full((1, 1, 1), label), torch.tensor([known])).backward()
    return -z.grad.flatten()[:-1]

def bars(ax, values, names, title):
    "The push on each output: green is *more of this*, red *less*."
    for x, value in enumerate(values.tolist()):
        ax.bar(x, value, color="#c92a2a" if value < -1e-6 else "#2b8a3e")
        place = "top" if value < 0 else "bottom"
        ax.text(x, value, f"{value:+.2f}", ha="center", va=place, fontsize=8)
    ax.axhline(0, color="k", lw=.6)
    ax.set(yticks=[], ylim=(-1.1, 1.1))
    ax.set_xticks(range(len(names)), names, fontsize=8)
    ax.set_title(title, fontsize=9)


# %%
known = [False, False, True, True]  # heart and lungs were examined, left and right were not
softmax, sigmoid = MarginalSoftmaxLoss(w_dice=0.), MaskedSigmoidLoss(w_dice=0., w_bce=1.)
logits = [0., 1., 0., 0.]  # background, right, left, heart
inside = push(softmax, logits, 4, known)
outside = push(softmax, logits, 0, known)
by_sigmoid = push(sigmoid, logits[1:], 4, known)

# %%
#| echo: false
#| label: fig-push
#| fig-alt: "Bars of the push on each output: both lungs go up where lungs are labelled, and down elsewhere"
fig, axes = plt.subplots(1, 3, figsize=(10.5, 2.8), layout="constrained")
four = ["background", "right", "left", "heart"]
bars(axes[0], inside, four, "labelled lungs (softmax)")
bars(axes[1], outside, four, "labelled nothing (softmax)")
bars(axes[2], by_sigmoid, four[1:], "labelled lungs (sigmoid)")
plt.show()

# %% [markdown]
# * **Inside of the lungs** both lungs go up and everything else goes down. Softmax pushes them in proportion to what the network believes already, so that their *ratio* stays: the slice has no opinion on left and right.
# * **Outside of the lungs** both go down, as if each had been examined and not found.
# * **Sigmoids** are separate questions, and a pixel is in the union unless it is in neither lung: $1-(1-p_r)(1-p_l)$, the *noisy-or*. The probability of the softmax's union is the sum.

# %%
p = torch.tensor(logits).softmax(0)
lungs = p[1] + p[2]
test_close(inside[1:3], p[1:3]/lungs - p[1:3], eps=1e-4)  # of -log(p_right + p_left)
ratio = inside[1:3]/p[1:3]
print("push over probability, right and left:", ratio.numpy().round(3))

# %% [markdown]
# Who tells left from right, then? The other sources. What the coarse slices add is where a lung is and where none is, in more patients.
#
# ## Where a union is respected
#
# | place | what happens |
# |---|---|
# | losses | as above, for cross-entropy and Dice, wherever the members are not told apart; on a slice of "lungs" with the left one outlined too, the rest is the right one |
# | metrics | a network draws members only. They are put together to be scored on a coarse truth |
# | pseudo-labels, completion | a known union leaves its members open inside, and closes them outside |
# | CutMix, warping | `known` moves with the pixels, for unions as for other classes |
# | the decision rule | never draws a union |
#
# The formulas and their tests are in [the room of unions](../losses/05_unions.ipynb); how a folder declares one, in [classes made of others](../core/38_unions.ipynb).
#
# ## What it cannot do
#
# * If *no* source tells the members apart, nothing will. Then it is one class.
# * A union is exactly its members. "Lungs" that include the airways are something else: declare the airways as a third member, or rename.
# * Where definitions differ in detail, the coarse source pulls the edges of both members its way.
