# %% [markdown]
# # Pseudo-labels
#
# > What a teacher says about images nobody annotated, how sure it is, and which of it to believe.
#
# - skip_showdoc: true

# %%
#| default_exp pseudo

# %% [markdown]
# A trained network can annotate the slices that people did not. Learning from its answers helps only if two questions are kept apart:
#
# 1. *how sure* is the teacher? (a **confidence**, for an image or for one structure on one image);
# 2. *what do we do* with an answer it is unsure of? The wrong thing is to read it as background, which is the mistake that [unknown is not background](losses.html) was about.
#
# A pseudo-label therefore uses the same three states as the truth. An accepted structure is *present*, a confidently missing one is *absent*, and everything else stays **unknown**.

# %%
#| export
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ctseg.data import SliceData, SliceSet, present_classes
from ctseg.files import did_you_mean
from ctseg.models.base import class_probabilities
from ctseg.parallel import collect, own_share, world

# %%
#| hide
import matplotlib.pyplot as plt
from fastcore.test import test_eq, test_close

# %% [markdown]
# ## Confidence
#
# Five measures, from one pass over the probabilities. With $p$ the teacher's probabilities on one image, $m_c$ the pixels it labels $c$, $b = \max_c p_c$ (softmax, background included; with sigmoid outputs, where each structure is a question of its own, $b$ is the mean over $c$ of $\max(p_c, 1-p_c)$):
#
# | name | of | formula | remark |
# |---|---|---|---|
# | `max` | image | mean of $b$ over **all** pixels | the original project's filter; most pixels are air or easy background, so an empty slice looks confident |
# | `foreground` | image | mean of $b$ over pixels labelled as a structure | |
# | `entropy` | image | 1 − mean normalised entropy over all pixels | |
# | `sdc` | cell | $2\sum p_c m_c / (\sum p_c + \sum m_c)$ | Soft Dice Confidence ([Borges et al. 2024](https://arxiv.org/abs/2402.10665)): about the Dice to be *expected* if the probabilities are calibrated |
# | `agreement` | cell | mean pairwise Dice of several teachers' $m_c$ | needs an ensemble; catches confident errors |
#
# A cell is one structure on one image. `sdc` and `agreement` become image scores by averaging over the structures that the teacher found there.

# %%
#| export
IMAGE_SCORES = ("max", "foreground", "entropy", "sdc", "agreement")

def soft_dice_confidence(
    prob: torch.Tensor, # [B, C, H, W]
    label: torch.Tensor, # [B, H, W], 0 is background
) -> torch.Tensor: # [B, C]; 0 where the label map lacks the class
    "Soft Dice Confidence of every (image, class) cell: about the Dice to be expected under the probabilities (Borges et al. 2024, arXiv 2402.10665)."
    B, C = prob.shape[:2]
    flat, cls = prob.flatten(2), label.flatten(1).long()
    area = flat.new_zeros(B, C + 1).scatter_add_(1, cls, torch.ones_like(cls, dtype=flat.dtype))[:, 1:]
    at = flat.gather(1, (cls - 1).clamp(min=0)[:, None])[:, 0]*(cls > 0)
    inside = flat.new_zeros(B, C + 1).scatter_add_(1, cls, at)[:, 1:]
    return torch.where(area > 0, 2*inside/(flat.sum(2) + area).clamp(min=1e-12), 0)


# %% [markdown]
# Two cells of equal area. In the first the teacher is sure inside and silent outside; in the second two fifths of the probability lie outside the label. By hand: $2\cdot 3.6/(3.6+4)$ and $2\cdot 2.4/(4.0+4)$.

# %%
sure, vague = torch.zeros(2, 4, 4)
sure[:2, :2] = 0.9
vague[:2, :2], vague[2:, :2] = 0.6, 0.4
lab = torch.zeros(1, 4, 4, dtype=torch.uint8); lab[0, :2, :2] = 1
for p, by_hand in [(sure, 7.2/7.6), (vague, 4.8/8.0)]:
    test_close(soft_dice_confidence(p[None, None], lab).item(), by_hand, eps=1e-6)
print(f"{7.2/7.6:.3f} {4.8/8.0:.3f}")


# %%
#| export
def image_confidence(
    prob: torch.Tensor, # [B, C, H, W] foreground probabilities
    label: torch.Tensor, # [B, H, W]
    activation: str, # "softmax" or "sigmoid"
) -> dict[str, torch.Tensor]: # each [B], larger is surer
    "The image-level confidences that need one teacher only."
    if activation == "softmax":
        full = torch.cat([(1 - prob.sum(1, keepdim=True)).clamp(0, 1), prob], 1)
        best, entropy = full.amax(1), -(full*full.clamp(min=1e-12).log()).sum(1)/np.log(full.shape[1])
    else:
        best = torch.maximum(prob, 1 - prob).mean(1)
        entropy = -(prob*prob.clamp(min=1e-12).log() + (1 - prob)*(1 - prob).clamp(min=1e-12).log()).mean(1)/np.log(2)
    fg = (label > 0).float()
    cells = soft_dice_confidence(prob, label)
    return {"max": best.mean((1, 2)), "entropy": 1 - entropy.mean((1, 2)),
            "foreground": (best*fg).sum((1, 2))/fg.sum((1, 2)).clamp(min=1), "sdc": mean_found(cells, cells > 0)}

def mean_found(cells: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    "Mean of `cells` [B, C] over the classes that were found; 0 where none was."
    return (cells*found).sum(1)/found.sum(1).clamp(min=1)


# %% [markdown]
# ## What the teacher says
#
# Probabilities for 2000 slices of 256×256 and 54 classes are 28 GB. What is needed of them is far less: the label and the probability of the most likely class at each pixel (two bytes), and a few numbers a cell. That is all we keep.

# %%
#| export
@dataclass(frozen=True)
class PseudoLabels:
    "What one or several teachers say about N images; N x (two maps and a few numbers a class)."
    labels: np.ndarray                  # uint8 [N, H, W], the most probable class or 0
    certainty: np.ndarray               # uint8 [N, H, W], 255 x the probability of that label (background's own where the label is 0)
    sdc: np.ndarray                     # float32 [N, C]; 0 where not found
    peak: np.ndarray                    # float32 [N, C], the largest probability anywhere on the image
    agreement: np.ndarray               # float32 [N, C]; NaN with a single teacher
    scores: dict[str, np.ndarray]       # image-level confidences, float32 [N]

    @property
    def found(self) -> np.ndarray: return self.sdc > 0  # bool [N, C]
    def __len__(self): return len(self.labels)
    def __getitem__(self, idx):
        return PseudoLabels(*(getattr(self, k)[idx] for k in ("labels", "certainty", "sdc", "peak", "agreement")), {k: v[idx] for k, v in self.scores.items()})


# %%
#| export
def pairwise_dice(labels: list[torch.Tensor], C: int) -> torch.Tensor:
    "Mean Dice between every two label maps [B, H, W], float [B, C]: 1 where no map has the class."
    onehot_area = lambda l, w=None: torch.zeros(len(l), C + 1, device=l.device).scatter_add_(1, l.flatten(1).long(), (torch.ones_like(l, dtype=torch.float32) if w is None else w.float()).flatten(1))[:, 1:]
    pairs = [(a, b) for i, a in enumerate(labels) for b in labels[:i]]
    def dice(a, b):
        total = onehot_area(a) + onehot_area(b)
        return torch.where(total > 0, 2*onehot_area(a, a == b)/total.clamp(min=1), 1)
    return torch.stack([dice(a, b) for a, b in pairs]).mean(0)


# %%
#| export
@torch.inference_mode()
def pseudo_label(
    teachers, # models in eval mode that give logits; their probabilities are averaged
    slices: SliceSet, # images to be labelled; masks and known are not looked at
    loss, # knows how logits become probabilities
    device="cpu", image_size: int|None = None, batch_size: int = 16,
    each=None, # goes through the batches, and may stop; None: simply
) -> PseudoLabels:
    "Label `slices` by the mean of the teachers, with every confidence. Several processes share the work, and all get the whole."
    own, parts, act = own_share(len(slices)), [], loss.activation
    data = SliceData(slices if world() == 1 else slices[own.numpy()], device, image_size)
    for index in (each or iter)(torch.arange(len(own)).split(batch_size)):
        x = data.batch(index).image
        probs = [_at_size(class_probabilities(t, loss, x), slices.images.shape[1:]) for t in teachers]
        prob = torch.stack(probs).mean(0)
        label, certainty = label_and_certainty(prob, act)
        agree = pairwise_dice([label_and_certainty(p, act)[0] for p in probs], prob.shape[1]) if len(probs) > 1 else torch.full(prob.shape[:2], torch.nan)
        scores = image_confidence(prob, label, act)
        sdc = soft_dice_confidence(prob, label)
        if len(probs) > 1: scores["agreement"] = mean_found(agree, sdc > 0)
        parts.append((label, (certainty*255).round().to(torch.uint8), sdc, prob.amax((2, 3)), agree, *scores.values()))
    arrays = [collect(torch.cat(p).cpu(), len(slices)).numpy() for p in zip(*parts)]
    return PseudoLabels(*arrays[:5], dict(zip(scores, arrays[5:])))


# %%
#| export
def _at_size(prob, size):
    "Probabilities at the images' own size, where the network works at another."
    return prob if prob.shape[2:] == tuple(size) else F.interpolate(prob, size, mode="bilinear", align_corners=False)

def label_and_certainty(prob: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    "The argmax label uint8 [B, H, W] and the probability of that label (of background, where it is 0)."
    best, label = prob.max(1)
    background = 1 - prob.sum(1) if activation == "softmax" else 1 - best
    fg = best > background
    return torch.where(fg, label + 1, 0).to(torch.uint8), torch.where(fg, best, background).clamp(0, 1)


# %% [markdown]
# ## Choosing whole images: the original's way
#
# Rank the images by a score, keep the best so many (a count, or a fraction below 1), believe everything on them. Asking for more than there are keeps them all, and says so.

# %%
#| export
def keep_images(
    pseudo: PseudoLabels,
    slices: SliceSet, # the images the pseudo-labels are of
    keep: float, # a count, or a fraction of the images if at most 1
    score: str = "sdc", # one of IMAGE_SCORES
) -> SliceSet: # with the pseudo-labels as masks and everything known
    "The most confident images with their pseudo-labels as if they were truth."
    if score not in pseudo.scores: raise did_you_mean("confidence score", score, pseudo.scores)
    wanted = round(keep*len(slices)) if keep <= 1 else int(keep)
    n = min(wanted, len(slices))
    if wanted > n: warnings.warn(f"keep = {wanted}: there are only {n} images without annotation; all are kept")
    best = np.sort(np.argsort(-pseudo.scores[score], kind="stable")[:n])
    return replace(slices[best], masks=pseudo.labels[best], known=np.ones((n, len(slices.classes)), bool))


# %% [markdown]
# ## Choosing cells
#
# A slice may show the liver beyond doubt and be hopeless about the pancreas. Accepting the whole slice lets in the bad pancreas; rejecting it throws away the good liver. A **cell** (structure, image) is accepted on its own confidence, and
# a cell that is refused stays unknown. Confidence is compared *within a class* (a quota), because a network is less sure of the pancreas than of the lung even when it is right, and a common bar would keep lungs only.
# Confident absences, where the class's peak probability stays low everywhere, are kept as negatives.
#
# The confidence is Soft Dice Confidence alone. Several teachers could also be asked how much they agree, but [where truth is known](benchmarks/confidence.html#of-a-cell) its product with `agreement` ranks cells worse than it does by itself, for each of four kinds of teacher.
#
# Truth is never overwritten: cells that people examined keep what people found, and pixels that people labelled keep their label.

# %%
#| export
def accept_cells(
    pseudo: PseudoLabels,
    known: np.ndarray, # bool [N, C]: what was examined by people; such cells are not touched
    quota: float = 0.5, # this share of the found cells of each class, rounded up, the surest ones
    gate: float = 0.7, # and only above this confidence
    absent: float = 0.1, # a class whose peak probability stays below this is absent
) -> tuple[np.ndarray, np.ndarray]: # accepted as present, accepted as absent: bool [N, C]
    "Cells to believe, chosen class by class by their Soft Dice Confidence."
    conf = np.where(pseudo.found & ~known, pseudo.sdc, 0)
    present = np.zeros_like(known)
    for c in range(known.shape[1]):
        order = np.argsort(-conf[:, c], kind="stable")[:int(np.ceil(quota*(conf[:, c] > 0).sum()))]
        present[order, c] = conf[order, c] >= gate
    return present, ~known & ~pseudo.found & (pseudo.peak < absent)


# %%
#| export
def complete(
    slices: SliceSet, # with whatever truth there is
    pseudo: PseudoLabels,
    present: np.ndarray, absent: np.ndarray, # from `accept_cells`
    pixel: float = 0.8, # certainty below which a pixel says nothing about accepted cells
) -> tuple[SliceSet, np.ndarray]: # the completed slices; where the teacher is sure enough, bool [N, H, W]
    "Truth, completed by the accepted cells, and the pixels where these may be believed. Truth is never changed."
    cell = np.zeros(pseudo.labels.shape, bool)
    for out, ok, labels in zip(cell, np.pad(present, ((0, 0), (1, 0))), pseudo.labels): out[:] = ok[labels]  # an index takes eight bytes a pixel, so slice by slice
    free = slices.masks == 0
    sure = pseudo.certainty >= round(255*pixel)
    drawn = np.where(free & cell & sure, pseudo.labels, 0)
    denied = np.stack([np.pad(k, (1, 0))[labels] for k, labels in zip(slices.known, pseudo.labels)]) & free  # drawn where people looked for that class and saw none
    unsure = free & (~sure | denied) & (cell | present.any(1)[:, None, None])
    present = present & present_classes(drawn, present.shape[1])  # a cell of which no pixel is sure stays unknown: empty and known would mean absent
    return replace(slices, masks=np.where(drawn > 0, drawn, slices.masks), known=slices.known | present | absent), ~unsure


# %%
#| export
def check_truth_kept(before: SliceSet, after: SliceSet):
    "Raise unless every labelled pixel and every examined cell of `before` is unchanged in `after`."
    labelled = before.masks > 0
    if not np.array_equal(before.masks[labelled], after.masks[labelled]): raise AssertionError("a labelled pixel was overwritten")
    if (before.known & ~after.known).any(): raise AssertionError("an examined cell became unknown")
    if (before.known & ~before.present & after.present).any(): raise AssertionError("a class that people found absent was drawn in")


# %%
#| hide
import nbdev; nbdev.nbdev_export()
