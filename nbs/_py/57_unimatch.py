# %% [markdown]
# # UniMatch for partial labels
#
# > A weak view teaches two strong views, wherever the truth is silent: in unlabelled slices and in the unexamined half of labelled ones.
#
# - skip_showdoc: true

# %%
#| default_exp methods.unimatch

# %% [markdown]
# [FixMatch](https://arxiv.org/abs/2001.07685) turned consistency into labels: what the teacher is *sure* of on a weakly augmented image becomes the target on a strongly augmented one. [UniMatch](https://arxiv.org/abs/2208.09910) (Yang et al. 2023) uses two strong views and one
# with dropped features; its second version ([2410.10777](https://arxiv.org/abs/2410.10777)) lets an averaged model be the teacher. All of that assumes that an image is either labelled or not.
#
# Ours is partly labelled everywhere. The step that adapts the method is small and does all the work: **complete the truth**. Where people said something, it stands. Where they did not, the teacher's answer is taken if it is sure; what neither knows stays
# unknown. The result is again a batch with `mask` and `known`, so CutMix can mix it and the ordinary partial-label loss can learn from it. There is no second kind of loss.

# %%
#| export
import torch
from dataclasses import replace

from ctseg.augment import cutmix, strong
from ctseg.data import Batch
from ctseg.methods.mean_teacher import ramp_up
from ctseg.methods.teacher_student import join
from ctseg.train import Job, Method

# %%
#| hide
from fastcore.test import test_eq

# %% [markdown]
# ## Completing the truth
#
# Softmax: at a pixel without a label, the truth still forbids something, namely the structures that were examined and not found there. The teacher's probabilities are renormalised over what is *allowed* (background and the unexamined structures), and if one of these reaches the threshold,
# the pixel is settled for all classes.
#
# Sigmoid: each unexamined structure is settled on its own, as present above $\tau$ and as absent below $1-\tau$.

# %%
#| export
def complete_batch(
    batch: Batch, # weakly augmented, with whatever truth there is
    prob: torch.Tensor, # [B, C, H, W], the teacher's probabilities for it
    tau: float|torch.Tensor, # certainty needed; a number, or one for each class [C]
    activation: str, # "softmax" or "sigmoid"
) -> Batch: # `known` is [B, C, H, W]
    "Truth where people gave it, the teacher's answer where it is sure, unknown elsewhere."
    C = prob.shape[1]
    known = batch.known if batch.known.ndim == 4 else batch.known[:, :, None, None].expand(-1, -1, *batch.mask.shape[1:])
    free = batch.mask == 0
    tau = torch.as_tensor(tau, device=prob.device, dtype=prob.dtype).expand(C)
    finish = _complete_softmax if activation == "softmax" else _complete_sigmoid
    label, settled = finish(prob, known, tau)
    mask = torch.where(free, label, batch.mask)
    return replace(batch, mask=mask, known=known | settled | ~free[:, None])

# %%
#| export
def _complete_softmax(prob, known, tau):
    allowed = torch.cat([(1 - prob.sum(1, keepdim=True)).clamp(min=0), prob*~known], 1)
    sure, label = (allowed/allowed.sum(1, keepdim=True).clamp(min=1e-12)).max(1)
    ok = sure >= torch.cat([tau.mean()[None], tau])[label]
    return torch.where(ok, label, 0), ok[:, None]

def _complete_sigmoid(prob, known, tau):
    t = tau[None, :, None, None]
    best, c = (prob*~known).max(1)
    yes = best >= tau[c]
    return torch.where(yes, c + 1, 0), (prob >= t) | (prob <= 1 - t) | yes[:, None]

# %% [markdown]
# Four pixels, three structures, of which the second was examined. Read the result row by row: the first pixel carries a label, it stays; at the second the teacher is sure of structure 1; at the third it is sure of structure 2, which people looked for and did not find, so it is
# *not* taken (what remains after renormalising is background); at the fourth the teacher does not know.

# %%
p = torch.tensor([[.1, .96, .02, .4], [.1, .01, .95, .1], [.7, .01, .0, .3]]).reshape(1, 3, 1, 4)
b = Batch(torch.zeros(1, 1, 1, 4), torch.tensor([[[2, 0, 0, 0]]]), torch.tensor([[False, True, False]]), None, torch.tensor([0]))
done = complete_batch(b, p, 0.95, "softmax")
print("mask ", done.mask.flatten().tolist())
for c in range(3): print(f"known {c + 1}", done.known[0, c].int().flatten().tolist())
test_eq(done.mask.flatten().tolist(), [2, 1, 0, 0])
test_eq(done.known[0].int()[:, 0].tolist(), [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])

# %%
#| hide
import nbdev; nbdev.nbdev_export()
