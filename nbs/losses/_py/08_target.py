# %% [markdown]
# # What a batch asks
#
# > Masks, what is known of them and weights, checked, in the form that the formulas of the losses read.
#
# - skip_showdoc: true

# %%
#| default_exp losses.target

# %%
#| export
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ctseg.core.anatomy import IGNORE
from ctseg.core.arguments import shown_argument
from ctseg.core.errors import InputError
from ctseg.core.unions import Unions
from ctseg.losses.unions import put_unions, told_by_label

# %%
#| hide
import torch
from fastcore.test import test_close, test_eq

from ctseg.core.errors import InputError
from ctseg.losses.target import as_target

# %% [markdown]
# A loss must read the three states of each pixel from the mask and from `known`. Networks come in two forms. With **sigmoid** outputs each class has a channel, and its answer is a yes or a no. With **softmax** outputs the channels compete, and channel 0 is background.
#
# Four pixels and two structures. The lung was examined, and it covers the first two pixels. Nobody looked for the heart. What does each pixel teach the two channels of a sigmoid network?

# %%
mask = torch.tensor([[[1, 1], [0, 0]]])
known = torch.tensor([[True, False]])
_, target = as_target(torch.zeros(1, 2, 2, 2), mask, known, weight=None, pixel_known=True, softmax=False)
for name, truth, weight in zip(("lung", "heart"), target.one_hot()[0], target.weights(torch.float32)[0]):
    answers = ["yes" if yes else "no" for yes in truth]
    print(f"{name:5}", [answer if counts else "-" for answer, counts in zip(answers, weight)])


# %% [markdown]
# The first two pixels are lung, so they are certainly no heart. About the other two the truth says nothing for the heart (`-`).
#
# ## Channels and pixels
#
# What is known is one answer for a whole image, or after mixing two images one for each pixel. `at` takes both.

# %%
#| export
def at(values: torch.Tensor, pixels: slice) -> torch.Tensor:
    "`values` [B,K,N] at some pixels; a last axis of 1 means the same for every pixel and stays."
    return values if values.shape[-1] == 1 else values[..., pixels]


# %% [markdown]
# What holds for all pixels is left as it is; what differs from pixel to pixel is cut:

# %%
everywhere, one_each = torch.zeros(1, 2, 1), torch.arange(6).reshape(1, 2, 3)
test_eq(
    (at(everywhere, slice(0, 2)).shape, at(one_each, slice(0, 2)).tolist()), ((1, 2, 1), [[[0, 1], [3, 4]]])
)


# %% [markdown]
# A `Target` says what a batch asks. It answers three questions. How much does each (channel, pixel) count? Which channels may an unlabelled pixel belong to? What is the truth of each (channel, pixel)?

# %%
#| export
@dataclass(frozen=True)
class Target:
    "What a batch asks of a network with K channels at N pixels."
    mask: torch.Tensor # int64 [B,N], labels 0…C; bool [B,C,N] where they overlap
    known: torch.Tensor # bool [B,K,1] or [B,K,N]
    weight: torch.Tensor | None # [B,1,N] or [B,K,N], None: 1
    pixel_known: bool # a labelled pixel is known to be no other class
    first: int # class of channel 0: 0 for softmax, 1 for sigmoid
    whole: int | None = None # images of the batch; None: these

    @property
    def overlapping(self) -> bool:
        "Each class has a mask of its own."
        return self.mask.ndim == 3

    def weights(self, dtype: torch.dtype, pixels: slice = slice(None)) -> torch.Tensor:
        "How much each (channel, pixel) counts, [B,K,1|n]: 0 where unknown."
        weight = at(self.known, pixels).to(dtype)
        if self.pixel_known:
            labelled = self.mask[:, None, pixels] > 0
            weight = torch.maximum(weight, labelled.to(dtype))
        return weight if self.weight is None else weight*at(self.weight, pixels)

    def open_channels(self, dtype: torch.dtype, pixels: slice = slice(None)) -> torch.Tensor:
        "1 for the channels that an unlabelled pixel may have, else 0: [B,K,1|n]."
        allowed = 1 - at(self.known, pixels).to(dtype)
        allowed[:, 0] = 1
        return allowed

    def one_hot(self) -> torch.Tensor:
        "The truth of each (channel, pixel), int64 or bool [B,K,N]."
        if self.overlapping: return self.mask
        labels = F.one_hot(self.mask, self.first + self.known.shape[1])
        return labels.transpose(1, 2)[:, self.first:]


# %%
labels = torch.tensor([[1, 0]])                                # two pixels: class 1, and no label
examined = torch.tensor([[[True], [False]]])                   # class 2 was not examined
target = Target(labels, examined, None, pixel_known=True, first=1)
print("truth  ", target.one_hot().tolist())
print("weights", target.weights(torch.float32).tolist())       # class 2 is known on the labelled pixel only
test_eq(target.one_hot(), torch.tensor([[[1, 0], [0, 0]]]))
test_eq(target.weights(torch.float32), torch.tensor([[[1., 1.], [1., 0.]]]))



# %%
#| export
def sum_dtype(logits: torch.Tensor) -> torch.dtype:
    "Sums are taken in float32 where logits are narrower, else in the logits' own type."
    return torch.promote_types(logits.dtype, torch.float32)


# %% [markdown]
# Half precision adds up in float32. More precise numbers stay as precise as they are.

# %%
test_eq(
    [sum_dtype(torch.zeros(1, dtype=t)) for t in (torch.bfloat16, torch.float32, torch.float64)],
    [torch.float32, torch.float32, torch.float64],
)


# %% [markdown]
# ## Mistakes
#
# Mistakes in shapes end in one line. So do labels that no channel stands for. On a GPU this costs one wait for the card. The alternative is worse: a card that meets an index out of range stops the whole process, and says neither which label nor where.

# %%
#| export
def without_channel(
    mask: torch.Tensor, # [B,…], or [B,1,…] as MONAI has it, or [B,C,…]
    logits: torch.Tensor, # [B,K,…]
) -> torch.Tensor: # [B,…], or [B,C,…]
    "Labels [B,…] from [B,1,…]; a mask for each class, [B,C,…], stays as it is."
    if mask.ndim == logits.ndim and mask.shape[1] == 1: return mask[:, 0]
    return mask


# %% [markdown]
# A mask with a channel axis, as MONAI has it, loses the axis.

# %%
logits = torch.zeros(2, 4, 8, 8)
test_eq(without_channel(torch.zeros(2, 1, 8, 8), logits).shape, (2, 8, 8))


# %%
#| export
def check_mask_shape(logits: torch.Tensor, mask: torch.Tensor, C: int) -> None:
    "`InputError` unless a mask is [B,…], or [B,C,…] for sigmoid outputs, as logits [B,K,…] of C classes ask."
    B, K, *space = logits.shape
    if mask.shape == (B, *space): return
    remedy = ", as the logits"
    if mask.shape == (B, C, *space):
        if K == C: return
        remedy = "; structures that overlap need sigmoid outputs, such as of the loss masked"
    raise InputError(f"mask is {tuple(mask.shape)}, expected {(B, *space)}{remedy}")


# %%
#| export
def check_tensors(**given) -> None:
    "`InputError` unless all that is given is a tensor."
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{name} is {shown_argument(value)}; expected a tensor, see torch.as_tensor")

def check_shapes(
    logits: torch.Tensor, mask: torch.Tensor, known: torch.Tensor, weight: torch.Tensor | None, C: int,
) -> None:
    "`InputError` unless mask [B,…] or [B,C,…], known [B,C] or [B,C,…], weight [B,1|C,…] fit logits [B,K,…]."
    if logits.ndim < 3 or not logits.numel():
        raise InputError(f"logits are {tuple(logits.shape)}, expected [batch, channels, …] with pixels")
    check_mask_shape(logits, mask, C)
    B, K, *space = logits.shape
    of_images, of_pixels = (B, C), (B, C, *space)
    if known.shape not in (of_images, of_pixels):
        expected = f"{of_images} or {of_pixels} for {K} output channels"
        raise InputError(f"known is {tuple(known.shape)}, expected {expected}")
    if weight is not None and weight.shape[1] != 1 and K != C:
        raise InputError("softmax takes one weight a pixel, [B,1,…]; say it with a map of known")


# %%
zeros, everything = torch.zeros(2, 8, 8, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
for wrong in ((zeros[:, 1:], everything), (zeros, everything[:, 1:])):
    try: check_shapes(logits, *wrong, weight=None, C=3)
    except InputError as e: print(e)


# %%
#| export
def check_known(known: torch.Tensor) -> None:
    "`InputError` unless all that is known is true or false, of any type."
    if known.dtype == torch.bool: return
    odd = (known != 0) & (known != 1)
    if odd.any():
        value = known[odd][0].item()
        remedy = "how much a pixel counts is said by weight"
        raise InputError(f"known holds {value:g}, expected true or false; {remedy}")


# %%
#| export
def check_labels(
    mask: torch.Tensor, # [B,…], of any type
    most: int, # C; 1 for a mask of each class
) -> bool: # some pixels are to be ignored
    "`InputError` unless a mask holds whole numbers from 0 to `most`, or 255: whether it holds any of these."
    if mask.dtype == torch.bool or not mask.numel(): return False
    low, high = torch.stack(mask.aminmax()).tolist()  # one wait for the card
    any_ignored = high == IGNORE
    if any_ignored:
        high = mask.masked_fill(mask == IGNORE, 0).max().item()
    if low < 0 or high > most:
        remedy = f"give pixels to be ignored the label {IGNORE}"
        raise InputError(f"mask holds labels {low:g}…{high:g}, expected 0…{most}; {remedy}")
    if mask.is_floating_point() and (mask != mask.round()).any():
        raise InputError(f"mask holds fractions, expected whole numbers 0…{most}; "
                         "give labels, no probabilities")
    return any_ignored


# %%
for wrong in (zeros + 200, zeros + .5):
    try: check_labels(wrong, 3)
    except InputError as e: print(e)
test_eq((check_labels(zeros, 3), check_labels(zeros + IGNORE, 3)), (False, True))


# %% [markdown]
# A pixel of the value 255 is to be ignored. It says nothing about any class, so its weight is 0.

# %%
#| export
def without_ignored(
    mask: torch.Tensor, # [B,…] or [B,C,…]
    weight: torch.Tensor | None, # [B,1|C,…]
    dtype: torch.dtype, # of the weight
    overlapping: bool = False, # the mask is [B,C,…]
) -> tuple[torch.Tensor, torch.Tensor]: # mask, weight
    "The mask with 0 instead of 255, and the weight with 0 there, [B,1,…] or [B,C,…]."
    ignored = mask == IGNORE
    counts = (~ignored).to(dtype)
    if not overlapping: counts = counts[:, None]
    return mask.masked_fill(ignored, 0), counts if weight is None else weight*counts


# %% [markdown]
# In the mask it becomes background:

# %%
some, counts = without_ignored(torch.tensor([[1, 255]]), None, torch.float32)
test_eq((some.tolist(), counts.tolist()), ([[1, 0]], [[[1., 0.]]]))


# %% [markdown]
# After the checks all pixels are put into one axis. If there are unions, their members are [moved](05_unions.ipynb) first.

# %%
#| export
def with_unions(
    logits: torch.Tensor, mask: torch.Tensor, known: torch.Tensor,
    pixel_known: bool, softmax: bool, unions: Unions,
) -> tuple[torch.Tensor, torch.Tensor]: # logits [B,K,N]; bool [B,C,N]: what is known of each class and pixel
    "Logits [B,K,N] with the members of unions together where the truth does not tell them apart."
    if mask.ndim == 3:
        raise InputError("masks of structures that overlap need no unions: give the union a mask of its own")
    joined, speaks = put_unions(logits.to(sum_dtype(logits)), mask, known, unions, softmax)
    settled = known | told_by_label(mask, known.shape[1], unions) if pixel_known else known
    return joined, settled & speaks


# %% [markdown]
# One pixel of "lungs" and one of nothing, where the lungs were examined. At the first the loss wants the sum of both lungs, at the second neither.

# %%
lungs = torch.tensor([[[False], [False], [True]]])              # of left, right and lungs
joined, told = with_unions(
    torch.zeros(1, 4, 2), torch.tensor([[3, 0]]), lungs, True, softmax=True, unions=((3, (1, 2)),)
)
test_close(joined.softmax(1)[0, :, 0], torch.tensor([1/3, 0, 0, 2/3]))
test_eq(told[0].int().tolist(), [[0, 0], [0, 0], [1, 1]])


# %%
#| export
def flattened(
    logits: torch.Tensor, # [B,K,…]
    mask: torch.Tensor, # [B,…] or [B,C,…]
    known: torch.Tensor, # [B,C] or [B,C,…]
    weight: torch.Tensor | None, # [B,1|C,…]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]: # mask, known, weight
    "Mask int64 [B,N] or bool [B,C,N], known bool [B,C,1|N] and weight [B,1|C,N], with all pixels in one axis."
    batch, _, *space = logits.shape
    overlapping = mask.ndim == logits.ndim
    mask = mask.bool().flatten(2) if overlapping else mask.long().flatten(1)
    known = known.bool().reshape(batch, known.shape[1], -1)
    if weight is not None:
        weight = weight.expand(-1, -1, *space).flatten(2)
    return mask, known, weight


# %%
#| export
def as_target(
    logits: torch.Tensor, # [B,K,…]
    mask: torch.Tensor, # [B,…], [B,1,…] or [B,C,…]
    known: torch.Tensor, # [B,C] or [B,C,…]
    weight: torch.Tensor | None = None, # [B,1|C,…]
    pixel_known: bool = False, # a labelled pixel is known to be no other class
    softmax: bool = True, # channel 0 is background; else sigmoid
    unions: Unions = (), # classes made of others
    whole: int | None = None, # see `Target`
) -> tuple[torch.Tensor, Target]: # logits [B,K,N]
    "Logits [B,K,N] and what is asked of them; `InputError` where shapes or labels do not fit."
    check_tensors(logits=logits, mask=mask, known=known)
    C = logits.shape[1] - softmax
    mask = without_channel(mask, logits)
    check_shapes(logits, mask, known, weight, C)
    check_known(known)
    overlapping = mask.ndim == logits.ndim
    if check_labels(mask, 1 if overlapping else C):
        mask, weight = without_ignored(mask, weight, sum_dtype(logits), overlapping)
    mask, known, weight = flattened(logits, mask, known, weight)
    logits = logits.flatten(2)
    if unions:
        logits, known = with_unions(logits, mask, known, pixel_known, softmax, unions)
    if softmax:
        background = torch.ones_like(known[:, :1])
        known = torch.cat([background, known], 1)
    # with unions `known` says it; where structures overlap, a label excludes no other class
    pixel_known = pixel_known and not unions and not overlapping
    return logits, Target(mask, known, weight, pixel_known, 1 - softmax, whole)


# %% [markdown]
# Slices and volumes are both flattened to one axis of pixels.

# %%
flat, target = as_target(logits, zeros, everything)
test_eq((flat.shape, target.mask.shape, target.known.shape), ((2, 4, 64), (2, 64), (2, 4, 1)))
volume, labels = torch.zeros(2, 4, 5, 8, 8), torch.zeros(2, 1, 5, 8, 8)  # as MONAI has them
test_eq(as_target(volume, labels, everything)[1].mask.shape, (2, 320))
