# %% [markdown]
# # A batch in parts
#
# > The loss of more images than memory takes, to the last bit.
#
# - skip_showdoc: true

# %%
#| default_exp losses.in_parts

# %%
#| export
import copy
from collections.abc import Iterable

import torch

from ctseg.losses.partial import PartialLoss

# %%
#| hide
import torch
from fastcore.test import test_eq

from ctseg.losses.fused import MarginalSoftmaxLoss, MaskedSigmoidLoss


# %% [markdown]
# All that is held out may be more than memory takes. A [loss](10_partial.ipynb) needs only a few sums of each image, so it can be given a batch in parts. It joins the sums of parts as it joins those of several processes. The [pixels are cut](20_fused.ipynb) as in the whole batch, so the sums are added in the same order, and the value is the same to the last bit.

# %%
#| export
def loss_of_parts(
    loss: PartialLoss,
    parts: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], # logits, mask and known of some images
    whole: int, # images of all parts together
) -> float:
    "The value of a loss for a batch that is given in parts; there is no gradient."
    rows: list[torch.Tensor] = []
    def joined(of_part: torch.Tensor) -> torch.Tensor:
        "The sums of all images so far."
        rows.append(of_part)
        return torch.cat(rows)
    loss = copy.copy(loss)
    loss.gather, loss.whole = joined, whole
    value = torch.tensor(0.)
    with torch.no_grad():
        for part in parts: value = loss(*part)
    return value.item()


# %%
z, masks = torch.randn(5, 4, 300, 300), torch.randint(0, 4, (5, 300, 300))
known = torch.rand(5, 3) < .5
for loss in (MarginalSoftmaxLoss(), MaskedSigmoidLoss(log_dice=True)):
    outputs = z[:, :loss.out_chans(3)]
    parts = ((outputs[rows], masks[rows], known[rows]) for rows in (slice(2), slice(2, 4), slice(4, 5)))
    test_eq(loss_of_parts(loss, parts, whole=5), loss(outputs, masks, known).item())
