# %% [markdown]
# # Three states, not two
#
# > Present, absent, unknown: why a zero in a mask is not background, and where the third state travels.

# %% [markdown]
# Nobody has the time to outline every structure on every CT slice. So real data sets are outlined in part: on this slice the liver and the kidneys, on
# that one the bones, on most nothing. The file still needs a number for every pixel. Where nobody drew, that number is **0**, and 0 also stands for
# *there is nothing here*. A network that believes every 0 learns that most livers are not livers.
#
# This page shows the difference on a small [phantom](../phantom/90_challenge.ipynb), a world of 54 structures drawn from a seed. It shows what the mistake does to a gradient, and how `ctseg` avoids it. The same idea as a network that learns is on [one page](one_sitting.ipynb).

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_eq

from ctseg.core.style import STATE_COLOURS, image_grid, show_image, show_states
from ctseg.core.style import state_legend, state_overlay, states_of
from ctseg.data.challenge import read_challenge
from ctseg.losses.fused import CrossEntropyDiceLoss, MarginalSoftmaxLoss, MaskedSigmoidLoss
from ctseg.phantom import make_phantom

# %% [markdown]
# ## One structure, three slices
#
# `known[n, c]` says whether structure `c` was examined on slice `n`, whatever was found. The challenge's file `annotated_labels.json` holds exactly this:
# a list of the examined structures for each slice.

# %%
folder = tempfile.TemporaryDirectory()
make_phantom(f"{folder.name}/phantom", labelled=10, unlabelled=14, test=8, size=256, seed=2500, empty=0.1)
slices = read_challenge(f"{folder.name}/phantom", cache=False)
slices, slices.known.shape, slices.known.sum(1)

# %% [markdown]
# Each annotated slice was examined for 27 of the 54 structures. Take the liver and three slices. On the first the liver was examined and found. On the second it was
# examined and is absent. On the third nobody looked.

# %%
#| hide
labelled = np.flatnonzero(slices.labelled)
liver = slices.classes.id("liver") - 1  # its column
states = states_of(slices.present, slices.known)  # [N,C]
three = [slices.names.index(name) for name in ("0.png", "5.png", "4.png")]
test_eq(states[three, liver], [2, 1, 0])

# %%
#| echo: false
#| label: fig-one-structure
#| fig-alt: "Three slices tinted by the liver's state: outlined and absent elsewhere, absent, unknown"
titles = [
    "present: every pixel\nhas an answer",
    "absent: every pixel\nis a certain no",
    "unknown: no pixel\nsays anything",
]
fig, (panels,) = image_grid(1, 3, size=3)
for ax, n, title in zip(panels, three, titles):
    outlined = slices.masks[n] == liver + 1
    examined = np.full(outlined.shape, slices.known[n, liver])
    pixels = states_of(outlined, examined)
    show_image(ax, state_overlay(slices.images[n], pixels), title)
state_legend(fig)
plt.show()

# %% [markdown]
# Anybody can see the liver on the third slice. The mask does not show it: like the second mask, it has no liver pixel. Only `known` tells the two apart.

# %%
for n in three:
    print(
        f"{slices.names[n]}: {(slices.masks[n] == liver + 1).sum():5} liver pixels in the mask, known = "
        f"{slices.known[n, liver]}"
    )

# %% [markdown]
# ## All of them
#
# A cell is one structure on one slice. Here is every cell of the phantom. *Absent* cells are useful: from them a network
# learns not to invent a structure. So a slice that was examined counts as annotated even if its mask is empty.

# %%
#| echo: false
#| label: fig-cells
#| fig-alt: "All cells of the phantom, slices by structures: a few present, more absent, most unknown"
fig, ax = plt.subplots(figsize=(9.5, 3.6), layout="constrained")
shares = [f"{(states == number).mean():.0%} {name}" for number, name in enumerate(STATE_COLOURS)]
show_states(ax, states, "All cells: " + ", ".join(reversed(shares)))
ax.set(xlabel="structure", ylabel="slice")
ax.set(xticks=range(0, 54, 6), xticklabels=range(1, 55, 6), yticks=range(0, 24, 2))
state_legend(fig)
plt.show()

# %%
empty = [slices.names[n] for n in labelled if not slices.present[n].any()]
print("examined, and nothing found:", empty)
test_eq(slices.masks[~slices.labelled].max(), 0)       # slices that nobody looked at
assert (slices.present <= slices.known).all()          # what was outlined was looked for

# %% [markdown]
# ## How much a zero hides
#
# The test slices are fully outlined, so we can play the annotator. We hide 27 structures at random and count how many of the structures' pixels the file
# would then call 0.

# %%
test = read_challenge(f"{folder.name}/phantom", "test", cache=False)
folder.cleanup()
rng = np.random.default_rng(0)
looked_for = np.stack([rng.permutation(np.arange(1, 55))[:27] for _ in range(len(test))])
structure = test.masks > 0
unexamined = np.stack([~np.isin(mask, ids) for mask, ids in zip(test.masks, looked_for)])
hidden = (structure & unexamined).sum((1, 2))/structure.sum((1, 2))
print("share of structure pixels stored as 0, slice by slice:", hidden.round(2))

# %% [markdown]
# ## What a loss tells one pixel
#
# Take one pixel, stored as 0, and four structures. Liver was not examined on this slice. Spleen and the two kidneys were, and they are not at this pixel. The network is
# rather sure that the pixel is liver, and it is right. The bars show how each loss pushes each output, $-\partial L/\partial z$.
# Upwards means *more of this*, and all panels have one scale.

# %%
names = ["background", "liver", "spleen", "kidney\nright", "kidney\nleft"]
known = torch.tensor([[False, True, True, True]])       # liver: nobody looked
softmax = torch.tensor([0., 2., 0., 0., 0.])            # the network believes: liver
sigmoid = torch.tensor([2., -1., -1., -1.])

def push(loss, z, label):
    "The negative gradient of `loss` at one pixel with the stored `label`."
    z = z.clone().reshape(1, -1, 1, 1).requires_grad_()
    loss(z, torch.full((1, 1, 1), label), known).backward()
    return -z.grad.flatten()

losses = {
    "zero read as background\n(CrossEntropyDiceLoss)": (CrossEntropyDiceLoss(w_dice=0.), softmax),
    "softmax, unknown left open\n(MarginalSoftmaxLoss)": (MarginalSoftmaxLoss(w_dice=0.), softmax),
    "one yes/no per structure\n(MaskedSigmoidLoss)": (MaskedSigmoidLoss(w_dice=0., w_bce=1.), sigmoid),
}

def bars(ax, loss, z, label, title):
    "The push on each output as a bar: green is *more of this*, red *less*."
    pushes = push(loss, z, label)
    places = range(5 - len(pushes), 5)  # sigmoid outputs have no background
    for x, value in zip(places, pushes.tolist()):
        down = value < -1e-6
        ax.bar(x, value, color="#c92a2a" if down else "#2b8a3e")
        text = f"{value:+.2f}" if abs(value) > 5e-3 else "0"
        ax.text(x, value, text, ha="center", va="top" if down else "bottom", fontsize=8)
    ax.axhline(0, color="k", lw=.6)
    ax.set(xlim=(-.6, 4.6), ylim=(-1.15, 1.15), yticks=[])
    ax.set_xticks(range(5), names, fontsize=7.5)
    ax.set_title(title, fontsize=9)


# %%
#| echo: false
#| label: fig-push
#| fig-alt: "Bars of the push on each output by three losses; only the naive one pushes the unknown liver down"
fig, axes = plt.subplots(1, 3, figsize=(10.5, 2.9), layout="constrained")
for ax, (title, (loss, z)) in zip(axes, losses.items()):
    bars(ax, loss, z, label=0, title=title)
plt.show()

# %% [markdown]
# * **Zero read as background.** The correct belief is pushed down as hard as a mistake would be. Over a thousand slices the network
#   learns to draw nothing. On real CT, cross-entropy and Dice with zeros read as background scored [0.05 less](../benchmarks/realct_supervised.ipynb) than the marginal loss with the same network, and networks trained so never drew two of the seven organs.
# * **Marginal softmax.** The file only says *background or liver*, so the loss asks for the two together. The belief in liver may stay. Only examined structures are pushed down.
# * **Masked sigmoid.** Each structure is a question of its own. Nobody examined the liver, so its gradient is exactly zero.

# %%
z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
MaskedSigmoidLoss()(z, torch.zeros(2, 8, 8, dtype=torch.long), known.expand(2, 4)).backward()
assert (z.grad[:, 0] == 0).all() and (z.grad[:, 1:] != 0).all()

# %% [markdown]
# ## A pixel knows more than its slice
#
# Now the pixel is outlined as *spleen*. Liver was still not examined on this slice. But two structures do not share a pixel, so *this pixel* is certainly not
# liver. `known` has one row a slice, and a labelled pixel adds a certain *no* for every other structure. The losses do this by default (`pixel_known=True`).

# %%
#| echo: false
#| label: fig-pixel
#| fig-alt: "Bars of the push on each output without and with pixel_known; with it the liver is pushed down"
fig, axes = plt.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained")
for ax, on in zip(axes, (False, True)):
    loss = MaskedSigmoidLoss(w_dice=0., w_bce=1., pixel_known=on)
    bars(ax, loss, sigmoid, label=2, title=f"pixel_known={on}")
plt.show()

# %% [markdown]
# ## Where the third state travels
#
# A careful loss does not help if *unknown* became *background* one step before it. These are the places where that could happen, and what prevents it:
#
# | place | what carries it |
# |---|---|
# | on disk | `annotated_labels.json`: the structures examined, a list a slice. Without it you must say what zeros mean; it is never guessed |
# | in memory | `known`, bool `[N, C]`, in every [`SliceSet`](../data/10_slices.ipynb) |
# | a batch | `known` `[B, C]`, beside image and mask; `[B, C, H, W]` once [CutMix](../data/93_strong_views.ipynb) has put pieces of two slices into one |
# | [rotation, shift](../data/85_geometry.ipynb) | mask and `known` move with the image; a structure of which no pixel is left becomes unknown. Where `known` or the weights speak of single pixels, what comes into the frame from outside is unknown |
# | the [loss](../losses/20_fused.ipynb) | no gradient in unknown cells |
# | [pseudo-labels](../methods/20_pseudo.ipynb) | they may fill unknown cells, and they never overwrite a known one |
# | the [score](../metrics/10_challenge.ipynb) | cells that nobody examined are left out. A second, pessimistic score counts them as absent |
#
# A class that is made of others needs one thought more: [unions](unions.ipynb).
#
# Next: [one page to read in one sitting](one_sitting.ipynb), the [ten-minute tutorial](../tutorials/first_run.ipynb), or [the losses](../losses/20_fused.ipynb) in full.
