# %% [markdown]
# # MONAI's labels
#
# > Labels and channels in the ways that MONAI's keywords describe, in the one way that our losses read.
#
# - skip_showdoc: true

# %%
#| default_exp integrations.monai_labels

# %%
#| export
from dataclasses import dataclass

import torch

from ctseg.core.anatomy import IGNORE
from ctseg.core.errors import InputError
from ctseg.losses.fused import MarginalSoftmaxLoss
from ctseg.losses.partial import PartialLoss, dice_loss
from ctseg.losses.registry import create_loss
from ctseg.losses.target import check_labels, check_shapes

# %%
#| hide
from dataclasses import replace

import torch
from fastcore.test import test_close, test_eq

from ctseg.core.errors import InputError


# %% [markdown]
# MONAI gives labels as numbers `[B,1,…]` or as a mask for each channel, and the channels of a network may begin with background for sigmoids too. Our [losses](../losses/10_partial.ipynb) take numbers `[B,…]`, or masks `[B,C,…]` of structures that overlap. This page stands between them. It needs no MONAI; [the next one](30_monai.ipynb) does.
#
# ## One-hot masks

# %%
#| export
def labels_from_onehot(
    masks: torch.Tensor, # [B,C+1,…], 0 and 1
) -> torch.Tensor: # int64 [B,…]
    "Labels of one-hot masks; a pixel that is in no mask has the label 0. `InputError` where masks overlap."
    ignored = (masks == IGNORE).any(1) if check_labels(masks, 1) else None
    masks = masks == 1
    if (masks.sum(1) > 1).any():
        reason = "a softmax gives each pixel to one class"
        raise InputError(f"the masks of the label overlap, and {reason}; use sigmoid=True")
    labels = masks.byte().argmax(1)
    return labels if ignored is None else labels.masked_fill(ignored, IGNORE)


# %%
numbers = torch.tensor([[[0, 1], [2, 2]]])
onehot = torch.nn.functional.one_hot(numbers, 3).movedim(-1, 1)
test_eq(labels_from_onehot(onehot.float()), numbers)
try: labels_from_onehot(onehot + onehot.flip(1))
except InputError as e: print(e)
try: labels_from_onehot(torch.ones_like(onehot))
except InputError as e: print(e)


# %% [markdown]
# ## A channel of background
#
# With sigmoids and a channel of background, background is a class like the others. It is known to be there where all classes were examined and none found, and absent where a class is labelled. Everywhere else it is unknown.

# %%
#| export
def background_as_class(
    mask: torch.Tensor, # [B,…], labels 0…C or 255
    known: torch.Tensor, # bool [B,C] or [B,C,…]
) -> tuple[torch.Tensor, torch.Tensor]: # labels 0…C+1; bool [B,C+1] or [B,C+1,…]
    "Labels in which 1 is background and 0 is unknown, and what is known of them."
    complete = known.all(1, keepdim=True)
    pixels = [1]*(mask.ndim + 1 - known.ndim)
    unlabelled = complete[:, 0].long().reshape(*complete[:, 0].shape, *pixels)
    shifted = torch.where(mask > 0, mask.long() + 1, unlabelled)
    return torch.where(mask == IGNORE, IGNORE, shifted), torch.cat([complete, known], 1)


# %%
mask, known = torch.tensor([[0, 1], [0, 1]]), torch.tensor([[True, True], [True, False]])
shifted, known_with_background = background_as_class(mask, known)
print(shifted.tolist(), known_with_background.tolist())


# %% [markdown]
# For a softmax the Dice of background is added, over the images where everything is known.

# %%
#| export
class BackgroundMarginalLoss(MarginalSoftmaxLoss):
    "The marginal loss with a Dice of background too, over the images on which every class is known."
    def forward(self, logits, mask, known, weight=None) -> torch.Tensor:
        "Marginal cross-entropy and Dice, a scalar; logits [B,C+1,…], the rest as in `PartialLoss`."
        sums = self.batch_sums(logits, mask, known, weight, self.pixel_known)
        complete = self.gather(known.flatten(1).all(1).to(sums.true))
        counts = torch.ones_like(sums.true)
        counts[:, 0] = complete
        counted = [total*counts for total in sums[:3]]
        dice = dice_loss(*counted, self.reduction, self.eps, self.log_dice)
        return self.w_ce*sums.cross_entropy + self.w_dice*dice


# %%
z = torch.randn(2, 3, 8, 8)
labels, everything = torch.randint(0, 3, (2, 8, 8)), torch.ones(2, 2, dtype=torch.bool)
plain, with_background = MarginalSoftmaxLoss(), BackgroundMarginalLoss()
assert with_background(z, labels, everything) != plain(z, labels, everything)
partly = everything & torch.tensor([True, False])
masks = labels*(labels < 2)
test_close(with_background(z, masks, partly), plain(z, masks, partly), 1e-6)


# %% [markdown]
# ## What the keywords say
#
# `to_onehot_y` says which form the label has, `include_background` and `softmax` what the channels are.

# %%
#| export
@dataclass(frozen=True)
class LabelForm:
    "In which form MONAI's keywords give labels."
    include_background: bool
    to_onehot_y: bool
    softmax: bool

    def logits(self, output: torch.Tensor) -> torch.Tensor:
        "The channels of a network's output [B,K,…] that the loss sees."
        if output.ndim < 3:
            raise InputError(f"the output is {tuple(output.shape)}, expected [batch, channels, …]")
        if self.softmax and output.shape[1] == 1:
            raise InputError("a softmax over one channel says nothing; use sigmoid=True")
        drops_first = not (self.softmax or self.include_background or output.shape[1] == 1)
        return output[:, 1:] if drops_first else output

    def without_channel(self, target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        "Numbers [B,1,…] as [B,…], masks [B,K,…] as they are; `InputError` for the other form."
        K, channels = output.shape[1], target.shape[1] if target.ndim > 1 else 0
        if target.ndim == output.ndim - 1: return target
        if K == 1 == channels: return target[:, 0]
        if self.to_onehot_y and channels == 1: return target[:, 0]
        if channels == K and not self.to_onehot_y: return target
        expected, remedy = f"a mask for each of {K} channels", "labels [B,1,…] need to_onehot_y=True"
        if self.to_onehot_y:
            expected, remedy = "[B,1,…]", "leave out to_onehot_y for masks"
        raise InputError(f"the label is {tuple(target.shape)}, expected {expected}; {remedy}")


# %%
with_numbers = LabelForm(include_background=True, to_onehot_y=True, softmax=True)
one_each = replace(with_numbers, to_onehot_y=False)
output = torch.zeros(2, 3, 8, 8)
test_eq(with_numbers.without_channel(torch.zeros(2, 1, 8, 8), output).shape, (2, 8, 8))
for form, given in (with_numbers, output), (one_each, output[:, :1]):
    try: form.without_channel(given, output)
    except InputError as e: print(e)


# %%
#| export
def label_form(include_background: bool, to_onehot_y: bool, sigmoid: bool, softmax: bool) -> LabelForm:
    "The form that a loss with these keywords expects; `InputError` unless outputs are of one kind."
    if sigmoid == softmax:
        raise InputError("a network's outputs are read as logits; say either sigmoid=True or softmax=True")
    return LabelForm(include_background, to_onehot_y, softmax)


# %%
test_eq(label_form(True, True, sigmoid=False, softmax=True), with_numbers)
try: label_form(True, True, sigmoid=True, softmax=True)
except InputError as e: print(e)


# %%
#| export
def read_truth(
    form: LabelForm,
    output: torch.Tensor, # [B,K,…]
    target: torch.Tensor, # [B,1,…] or [B,K,…]
    known: torch.Tensor, # bool [B,C] or [B,C,…]
) -> tuple[torch.Tensor, torch.Tensor]:
    "Mask and `known` as our losses take them: labels [B,…], or masks [B,C,…] where structures may overlap."
    mask, K = form.without_channel(target, output), output.shape[1]
    if mask.ndim < output.ndim:
        if form.softmax or not form.include_background or K == 1:
            return mask, known
        check_shapes(output[:, 1:], mask, known, None, K - 1)
        check_labels(mask, K - 1)
        return background_as_class(mask, known)
    if form.softmax: return labels_from_onehot(mask), known
    return (mask if form.include_background else mask[:, 1:]), known


# %%
labels, everything = torch.randint(0, 3, (2, 1, 8, 8)), torch.ones(2, 2, dtype=torch.bool)
onehot = torch.cat([labels == c for c in range(3)], 1)
test_eq(read_truth(with_numbers, output, labels, everything)[0], labels[:, 0])
test_eq(read_truth(one_each, output, onehot, everything)[0], labels[:, 0])
overlapping, _ = read_truth(replace(one_each, softmax=False), output, onehot, everything)
test_eq(overlapping.shape, (2, 3, 8, 8))


# %%
#| export
def loss_behind(form: LabelForm, lambda_dice: float, lambda_ce: float, options: dict) -> PartialLoss:
    "The loss of this package behind MONAI's keywords."
    if not form.softmax:
        return create_loss("masked", w_dice=lambda_dice, w_bce=lambda_ce, **options)
    weights = {"w_dice": lambda_dice, "w_ce": lambda_ce}
    loss = create_loss("marginal", **weights, **options)
    return BackgroundMarginalLoss(**weights, **options) if form.include_background else loss


# %%
foreground, sigmoids = replace(with_numbers, include_background=False), replace(with_numbers, softmax=False)
for form in with_numbers, foreground, sigmoids:
    print(type(loss_behind(form, 1, 1, {})).__name__)
try: loss_behind(with_numbers, 1, 1, {"focal_gama": 2})
except InputError as e: print(e)
