# %% [markdown]
# # Is the structure there at all?
#
# > A head that says for each image which classes are on it, and its loss over the known ones.
#
# - skip_showdoc: true

# %%
#| default_exp models.presence

# %%
#| export
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ctseg.core.anatomy import IGNORE
from ctseg.core.unions import Unions
from ctseg.data.batches import Batch, class_in_mask
from ctseg.losses.partial import as_given
from ctseg.losses.unions import put_unions
from ctseg.models.base import EncoderDecoder, check_counts

# %%
#| hide
import math

import torch
from fastcore.test import test_close, test_eq

from ctseg.data.batches import Batch
from ctseg.models.attunet import AttentionUNet


# %% [markdown]
# In the challenge, an organ drawn on a slice where it is absent scores 0 there. So it pays to ask first whether it is there at all.
# A *presence head* answers this for the whole image. It reads the deepest features, which see nearly all of the image.
#
# The head pools them in two ways. The mean tells how much of something there is; the maximum tells that a small organ exists somewhere.

# %%
#| export
class PresenceHead(nn.Module):
    "Logits [B, C] of 'is class c on this image?' from the deepest feature map."

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.drop = nn.Dropout(.2)
        self.linear = nn.Linear(2*channels, classes)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        "Logits [B, C] from feature maps, of which the last, `[B, channels, h, w]`, is the deepest."
        deep = features[-1].flatten(2)
        pooled = torch.cat([deep.mean(2), deep.amax(2)], 1)
        return self.linear(self.drop(pooled))


# %%
torch.manual_seed(0)
head = PresenceHead(channels=8, classes=3)
print("feature", (2, 8, 4, 4), "-> presence", tuple(head([torch.rand(2, 8, 4, 4)]).shape))


# %% [markdown]
# Any network can be given such a head. Without `presence=True` a call returns the logits only, as before.

# %%
#| export
def with_presence(
    model: EncoderDecoder, # changed in place
    classes: int, # C, without background
) -> EncoderDecoder: # the same model, with a `presence` head
    "Give `model` a presence head: `model(x, presence=True)` returns (logits, presence logits [B, C])."
    check_counts("presence head", classes=classes)
    device = next(model.parameters()).device
    model.presence = PresenceHead(model.channels[-1], classes).to(device)
    return model


# %%
torch.manual_seed(0)
model = with_presence(AttentionUNet(1, 8, width=4), classes=7)
images = torch.rand(2, 1, 32, 32)
logits, presence = model(images, presence=True)
print("logits", tuple(logits.shape), "presence", tuple(presence.shape))
test_eq(model(images).shape, logits.shape)


# %% [markdown]
# ## Its loss
#
# The head learns from the *known* cells (image, class) only. A class is present if any pixel is labelled with it. It is absent if it was examined and no pixel has its label. Every other cell is unknown and does not count.

# %%
#| export
def presence_loss(
    logits: torch.Tensor, # [B, C], of the presence head
    view: Batch,
    gather: Callable[[torch.Tensor], torch.Tensor] = as_given, # as `PartialLoss.gather`
    unions: Unions = (), # classes made of others: present if a member is, without a logit of their own
) -> torch.Tensor: # a scalar
    "Mean binary cross-entropy over the known cells (image, class) of presence logits [B, C]."
    present = class_in_mask(view.mask, logits.shape[1])
    examined = view.known if view.known.ndim == 2 else view.known.flatten(2).all(2)
    hidden = (view.mask == IGNORE).flatten(1).any(1, keepdim=True)  # whatever is not seen may be there
    known = (examined & ~hidden) | present
    if unions:
        nowhere = torch.zeros_like(view.mask.flatten(1)[:, :1])
        cells = logits.float()[..., None], nowhere, known[..., None]
        joined, speaks = put_unions(*cells, unions, softmax=False)
        logits, known = joined[..., 0], known & speaks[..., 0]
    each = F.binary_cross_entropy_with_logits(logits.float(), present.float(), reduction="none")
    total = gather((each*known).sum(1)).sum()
    count = gather(known.float().sum(1)).sum()
    return total/count.clamp(min=1)


# %% [markdown]
# Two images, two classes. Class 1 is labelled on the first image and was not examined on the second. Class 2 was examined on both and is on neither.

# %%
masks = torch.tensor([[[0, 1]], [[0, 0]]])
examined = torch.tensor([[False, True], [False, True]])
view = Batch(torch.zeros(2, 1, 1, 2), masks, examined)
test_close(presence_loss(torch.zeros(2, 2), view), math.log(2))
right = torch.tensor([[9., -9.], [0., -9.]])
print(f"undecided {presence_loss(torch.zeros(2, 2), view):.4f}, right {presence_loss(right, view):.4f}")
test_close(presence_loss(right, view), math.log(1 + math.exp(-9)), eps=1e-6)

# %% [markdown]
# The encoder learns from it as well, and a class that is known nowhere teaches nothing:

# %%
known = torch.tensor([[True]*3 + [False]*4, [False]*3 + [True]*3 + [False]])
view = Batch(images, torch.zeros(2, 32, 32).long(), known)
presence_loss(presence, view).backward()
test_eq(model.presence.linear.weight.grad[6].abs().sum().item(), 0.)
assert model.down[0][0].weight.grad.abs().sum() > 0
