# %% [markdown]
# # Confidence
#
# > How sure a network is of a whole image, or of one structure on it.

# %%
#| default_exp inference.confidence

# %%
#| export
import math

import torch

# %%
#| hide
import matplotlib.pyplot as plt
import torch
from fastcore.test import test_close

# %% [markdown]
# A trained network can annotate the slices that nobody annotated. Learning from its answers helps only if two questions are kept apart:
#
# 1. *How sure* is the teacher? This page answers it with a number for an image, or for one structure on one image (a **cell**).
# 2. *What do we do* with an unsure answer? To read it as background would be the mistake of [the three states](../explanations/three_states.ipynb) again. [Pseudo-labels](../methods/20_pseudo.ipynb) leave it unknown.
#
# Let $p$ be the probabilities on one image, $m_c$ the pixels labelled $c$, and $b$ how sure the network is of a pixel: $b = \max_c p_c$ for a softmax, background included. A sigmoid asks a question a structure, so there $b$ is the mean over $c$ of $\max(p_c, 1-p_c)$.
#
# | name | of | formula | remark |
# |---|---|---|---|
# | `max` | image | mean of $b$ over **all** pixels | the original project's filter; an empty slice looks confident, because easy background fills it |
# | `foreground` | image | mean of $b$ over the pixels labelled as a structure | |
# | `entropy` | image | 1 − mean normalised entropy over all pixels | |
# | `sdc` | cell | $2\sum p_c m_c / (\sum p_c + \sum m_c)$ | Soft Dice Confidence: about the Dice to *expect* if the probabilities are calibrated |
# | `agreement` | cell | mean pairwise Dice of several teachers' $m_c$ | needs an ensemble |
#
# `sdc` and `agreement` become image scores by a mean over the structures that the teacher drew there. [A benchmark](../benchmarks/confidence.ipynb) compares them with the true Dice.

# %% [markdown]
# ## Confidence of a cell (image, class)
#
# All cell scores are sums over the pixels of a label. One scatter-add gives them for all classes at once.

# %%
#| export
IMAGE_SCORES = ("max", "foreground", "entropy", "sdc", "agreement")


def sum_by_class(
    values: torch.Tensor,
    label: torch.Tensor,
    classes: int,
) -> torch.Tensor:
    """Sums of `values` over the pixels of each class.

    values: f32 `[B, H, W]`. label: int `[B, H, W]`, 0 is background. Returns f32 `[B, C]`, background left out.
    """
    index = label.flatten(1).long()
    totals = values.new_zeros(label.shape[0], classes + 1)  # shape, not len: a graph keeps it open
    return totals.scatter_add_(1, index, values.flatten(1))[:, 1:]


# %%
label = torch.tensor([[[1, 1, 2, 0]]])
sum_by_class(torch.tensor([[[0.9, 0.8, 0.6, 0.9]]]), label, 3)


# %%
#| export
def soft_dice_confidence(prob: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Soft Dice Confidence of every cell (image, class): the Dice to expect under the probabilities.

    prob: f32 `[B, C, H, W]`. label: int `[B, H, W]`, 0 is background. Returns f32 `[B, C]` in 0…1; 0 where the
    label map lacks the class. Source: Borges et al. 2024, arXiv 2402.10665.
    """
    classes = prob.shape[1]
    chosen = (label.long() - 1).clamp(min=0)
    prob_of_label = prob.gather(1, chosen[:, None])[:, 0]*(label > 0)
    inside = sum_by_class(prob_of_label, label, classes)
    area = sum_by_class(torch.ones_like(prob_of_label), label, classes)
    total = prob.flatten(2).sum(2) + area
    return torch.where(area > 0, 2*inside/total.clamp(min=1e-12), 0)


# %% [markdown]
# Two answers with the same label, four pixels in a corner. The first is sure inside and silent outside. The second spreads two fifths of its probability outside the label. By hand: $2\cdot 3.6/(3.6+4)$ and $2\cdot 2.4/(4.0+4)$.

# %%
#| fig-alt: "Two maps of probabilities with the same label: the sure one scores higher than the vague one"
sure, vague = torch.zeros(2, 4, 4)
sure[:2, :2] = 0.9
vague[:2, :2], vague[2:, :2] = 0.6, 0.4
corner = torch.zeros(1, 4, 4, dtype=torch.uint8)
corner[0, :2, :2] = 1

fig, axes = plt.subplots(1, 2, figsize=(4.6, 2.2), layout="constrained")
for ax, prob, by_hand in zip(axes, (sure, vague), (7.2/7.6, 4.8/8.0)):
    score = soft_dice_confidence(prob[None, None], corner).item()
    test_close(score, by_hand, eps=1e-6)
    picture = ax.imshow(prob, vmin=0, vmax=1, cmap="viridis")
    ax.plot([-.5, 1.5, 1.5], [1.5, 1.5, -.5], color="w", lw=2)
    ax.set(title=f"confidence {score:.2f}", xticks=[], yticks=[])
fig.colorbar(picture, ax=axes, label="probability")
fig.suptitle("One structure; the label is inside the white line", fontsize=9)
plt.show()


# %% [markdown]
# ## Confidence of an image
#
# The scores of structures become one score of the image: their mean over the structures that were found. Three other scores are the mean over pixels.

# %%
#| export
def mean_found(cells: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    "Mean of `cells` `[B, C]` over the classes `found` (bool `[B, C]`) on each image: `[B]`; 0 where there is none."
    return (cells*found).sum(1)/found.sum(1).clamp(min=1)


# %%
cells, found = torch.tensor([[.9, .2, .5]]), torch.tensor([[True, False, True]])
mean_found(cells, found)


# %%
#| export
def p_log_p(prob: torch.Tensor) -> torch.Tensor:
    "p log p of each probability, the summand of an entropy; 0 where p is 0. Same shape."
    return prob*prob.clamp(min=1e-12).log()


def pixel_sureness(prob: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """How sure a network is of each pixel, and its entropy there relative to the largest possible one.

    prob: f32 `[B, C, H, W]`. activation: "softmax" (background has what is left) or "sigmoid" (mean over classes).
    Returns two f32 `[B, H, W]` in 0…1.
    """
    if activation == "softmax":
        background = (1 - prob.sum(1, keepdim=True)).clamp(0, 1)
        full = torch.cat([background, prob], 1)
        largest = math.log(full.shape[1])
        entropy = -p_log_p(full).sum(1)/largest
        return full.amax(1), entropy
    other = 1 - prob
    sure = torch.maximum(prob, other).mean(1)
    bits = p_log_p(prob) + p_log_p(other)
    entropy = -bits.mean(1)/math.log(2)
    return sure, entropy


# %% [markdown]
# A softmax over two structures and background, at two pixels. It is sure of the first pixel and knows nothing of the second: there it gives a third to each.

# %%
pixels = torch.tensor([[0.98, 1/3], [0.01, 1/3]]).view(1, 2, 1, 2)
sure_of, entropy = pixel_sureness(pixels, "softmax")
print("sure", sure_of.flatten(), " entropy", entropy.flatten())
test_close(entropy.flatten()[1].item(), 1, eps=1e-6)


# %%
#| export
def image_confidence(
    prob: torch.Tensor,
    label: torch.Tensor,
    activation: str,
) -> dict[str, torch.Tensor]:
    """The image scores that need one teacher only: "max", "entropy", "foreground" and "sdc".

    prob: f32 `[B, C, H, W]`. label: int `[B, H, W]`. activation: "softmax" or "sigmoid".
    Returns f32 `[B]` by name; larger is surer.
    """
    sure, entropy = pixel_sureness(prob, activation)
    foreground = (label > 0).float()
    area = foreground.sum((1, 2))
    in_foreground = (sure*foreground).sum((1, 2))/area.clamp(min=1)
    cells = soft_dice_confidence(prob, label)
    return {
        "max": sure.mean((1, 2)),
        "entropy": 1 - entropy.mean((1, 2)),
        "foreground": in_foreground,
        "sdc": mean_found(cells, cells > 0),
    }


# %% [markdown]
# The two answers from above, by every score.

# %%
both = torch.stack([sure, vague])[:, None]
scores = image_confidence(both, corner.expand(2, -1, -1), "softmax")
for name, (first, second) in scores.items():
    print(f"{name:<12}{first:.2f}  {second:.2f}")
    assert first > second
