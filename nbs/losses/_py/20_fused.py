# %% [markdown]
# # Fused losses
#
# > The same losses without one-hot tensors: equal values and gradients, a fraction of the memory.
#
# - skip_showdoc: true

# %%
#| default_exp losses.fused

# %%
#| export
from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ctseg.losses.partial import PlainCrossEntropyDiceLoss, PlainDiceLoss
from ctseg.losses.partial import PlainMarginalSoftmaxLoss, PlainMaskedSigmoidLoss
from ctseg.losses.partial import Sums
from ctseg.losses.target import Target, sum_dtype

# %%
#| hide
import torch
from fastcore.test import test_close, test_eq
from torch.nn import functional as F

from ctseg.losses.partial import plain_sigmoid_sums, plain_softmax_sums
torch.set_num_threads(1)  # sums in one order: the same outputs on every run

# %% [markdown]
# [Losses for partial labels](10_partial.ipynb) says what is computed and why. This page says how to compute it for 54 classes on a small card. [A benchmark](../benchmarks/losses.ipynb) measures time and memory against the plain form and against MONAI.
#
# The plain form turns the truth into a one-hot tensor as large as the logits and multiplies. At 4 x 55 x 256 x 256 that is 58 MB for the tensor, and several times that for the products which autograd keeps. Three ideas avoid it:
#
# 1. A pixel has *one* label, so overlap needs one probability a pixel: look it up, then add it up by label.
# 2. Sums over all channels are taken in slices of the pixels that fit into the processor's cache.
# 3. The gradient is a short formula, so nothing but the logits is kept for the way back.

# %%
labels = torch.tensor([[0, 1, 0, 0, 1, 2, 0, 0], [3, 0, 0, 3, 0, 0, 0, 0]])
examined = torch.tensor([[True, True, False], [False, False, True]])[..., None]
weight = torch.rand(2, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
logits = torch.randn(
    2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
).requires_grad_()
target = Target(labels, examined, weight, pixel_known=True, first=1)
plain_sigmoid_sums(logits, target).overlap.detach()  # what idea 1 must reproduce


# %% [markdown]
# ## Look up, add up
#
# A pixel's *label channel* is the channel of its label. For sigmoid outputs a pixel of background has none; it gets channel 0 with the weight 0.

# %%
#| export
def pick(values: torch.Tensor, channel: torch.Tensor) -> torch.Tensor:
    "The value of `values` [B,K,N] at one channel [B,N] of each pixel: [B,N]."
    return values.gather(1, channel[:, None])[:, 0]

def add_up(values: torch.Tensor, channel: torch.Tensor, K: int) -> torch.Tensor:
    "Sums of `values` [B,N] by the channel [B,N] they belong to: [B,K]."
    return values.new_zeros(len(channel), K).scatter_add_(1, channel, values)


# %% [markdown]
# One image, two channels, three pixels: the value at each pixel's own label, and their sum for each label.

# %%
p = torch.tensor([[[.7, .2, .1], [.3, .8, .9]]])  # one image, two channels, three pixels
of_label = torch.tensor([[0, 1, 1]])
test_eq(pick(p, of_label), torch.tensor([[.7, .8, .9]]))
test_close(add_up(pick(p, of_label), of_label, K=2), torch.tensor([[.7, 1.7]]))


# %%
#| export
def label_channel(logits: torch.Tensor, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    "The channel of each pixel's label, int64 [B,N], and the weight of that (channel, pixel), [B,N]."
    mask, first = target.mask, target.first
    channel = (mask - first).clamp(min=0)
    known = pick(target.known.expand_as(logits), channel)
    if target.pixel_known:
        known = known | (mask > 0)
    weight = (known & (mask >= first)).to(sum_dtype(logits))
    if target.weight is not None:
        weight = weight*pick(target.weight.expand_as(logits), channel)
    return channel, weight


# %%
channel, label_weight = label_channel(logits, target)
overlap = add_up(pick(logits.sigmoid(), channel)*label_weight, channel, K=3)
test_close(overlap, plain_sigmoid_sums(logits, target).overlap, 1e-12)
overlap.detach()


# %% [markdown]
# ## Slices
#
# A slice of pixels is turned into probabilities, summed and forgotten. On a CPU a slice fits the cache. On a GPU a few slices make up a batch.

# %%
#| export
def pixel_slices(
    logits: torch.Tensor, # [B,K,N]
    whole: int | None = None, # images of the batch, if these are a part of it
) -> list[slice]:
    "Slices of the pixel axis of logits; a part of a batch is cut as the batch is."
    B, K, N = logits.shape
    values = 2**18 if logits.device.type == "cpu" else 2**24
    step = max(1, values//((whole or B)*K))
    return [slice(start, start + step) for start in range(0, N, step)]


# %%
many = torch.empty(4, 55, 256*256)
print(len(pixel_slices(many)), "slices of", 4*55*pixel_slices(many)[0].stop*4//1024, "kB")


# %%
#| export
def slices_of(logits: torch.Tensor, target: Target, dtype: torch.dtype) -> Iterator[tuple]:
    "For each slice of the pixels: the slice, the logits [B,K,n] as `dtype`, and their weights [B,K,1|n]."
    for pixels in pixel_slices(logits, target.whole):
        yield pixels, logits[..., pixels].to(dtype), target.weights(dtype, pixels)

def weighted_sum_(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    "The sum over the pixels of `values` [B,K,n] times `weight` [B,K,1|n]: [B,K]. It overwrites the values."
    if weight.shape[-1] == 1:
        return values.sum(-1)*weight[..., 0]
    return values.mul_(weight).sum(-1)


# %% [markdown]
# One weight for all pixels of a channel multiplies its sum:

# %%
test_eq(weighted_sum_(torch.ones(1, 2, 3), torch.tensor([[[2.], [0.]]])), torch.tensor([[6., 0.]]))


# %% [markdown]
# ## Sigmoid
#
# The cross-entropy of a negative pixel is $\mathrm{softplus}(z)$, that of a positive one $\mathrm{softplus}(-z)$. So all pixels are treated as negatives first, and then the few labelled ones are corrected.

# %%
#| export
def negative_loss(logit: torch.Tensor, gamma: float) -> torch.Tensor:
    """Cross-entropy of a negative, of the logits' shape; `negative_loss(-logit)` is that of a positive.

    With `gamma` > 0 it is focal (Lin et al. 2017, equation 4)."""
    if not gamma:
        return F.softplus(logit)
    return F.softplus(logit) * logit.sigmoid()**gamma

def negative_slope(logit: torch.Tensor, gamma: float) -> torch.Tensor:
    "The derivative of `negative_loss` by the logit, of its shape."
    p = logit.sigmoid()
    if not gamma:
        return p
    return p**gamma * (p + gamma*(1 - p)*F.softplus(logit))


# %% [markdown]
# The slope agrees with what automatic differentiation finds.

# %%
z = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
for gamma in (0., 2.):
    slope, = torch.autograd.grad(negative_loss(z, gamma).sum(), z)
    test_close(negative_slope(z, gamma).detach(), slope, 1e-12)


# %%
#| export
def sigmoid_forward(
    logits: torch.Tensor, # [B,C,N]
    target: Target,
    channel: torch.Tensor, # [B,N], from `label_channel`
    label_weight: torch.Tensor, # [B,N]
    gamma: float,
) -> tuple[torch.Tensor, ...]:
    "Predicted, overlap, cross-entropy and its weight, each [B,C], and the logit of each pixel's label, [B,N]."
    C = logits.shape[1]
    label_logit = torch.empty_like(label_weight)
    predicted = cross_entropy = counted = 0
    for pixels, z, weight in slices_of(logits, target, label_weight.dtype):
        z = z.contiguous()  # of short rows the last few values are computed one by one
        predicted = predicted + weighted_sum_(z.sigmoid(), weight)
        cross_entropy = cross_entropy + weighted_sum_(negative_loss(z, gamma), weight)
        counted = counted + weight.expand_as(z).sum(-1)
        label_logit[:, pixels] = pick(z, channel[:, pixels])
    overlap = add_up(label_logit.sigmoid()*label_weight, channel, C)
    correction = negative_loss(-label_logit, gamma) - negative_loss(label_logit, gamma)
    cross_entropy = cross_entropy + add_up(correction*label_weight, channel, C)
    return predicted, overlap, cross_entropy, counted, label_logit


# %% [markdown]
# The sums are those of the plain definition.

# %%
plain = plain_sigmoid_sums(logits.detach(), target, gamma=2.)
predicted, overlap, cross_entropy, counted, _ = sigmoid_forward(
    logits.detach(), target, channel, label_weight, gamma=2.
)
for value, expected in zip(
    (predicted, overlap, cross_entropy, counted),
    (plain.predicted, plain.overlap, plain.cross_entropy, plain.weight),
):
    test_close(value, expected, 1e-12)


# %% [markdown]
# With $\ell$ the loss, the gradient follows from those of the sums, $g_P$, $g_O$ and $g_L$ for predicted, overlap and cross-entropy:
#
# $$\frac{\partial\ell}{\partial z_i}=w_i\,\big[\,g_L(p_i-y_i)+(g_P+y_i\,g_O)\,p_i(1-p_i)\,\big]$$
#
# The factor $w_i$ stands in front: where a class is unknown, its gradient is not small but **zero**. Again all pixels are negatives first, and the label's channel is corrected.

# %%
#| export
def add_at_labels(
    values: torch.Tensor, channel: torch.Tensor, addend: torch.Tensor, pixels: slice,
) -> torch.Tensor:
    "Add `addend` [B,N] at the label's channel [B,N] to a slice of pixels, `values` [B,K,n], in place."
    return values.scatter_add_(1, channel[:, None, pixels], addend[:, None, pixels])


# %% [markdown]
# One is added at each pixel's label:

# %%
test_eq(
    add_at_labels(torch.zeros(1, 2, 3), of_label, torch.ones(1, 3), slice(0, 3)),
    torch.tensor([[[1., 0., 0.], [0., 1., 1.]]]),
)


# %%
#| export
def sigmoid_backward(
    gradients: tuple[torch.Tensor, ...], # of predicted, overlap and cross-entropy, [B,C] each
    saved: tuple[torch.Tensor, ...], # logits, channel, label_weight and label_logit of the forward pass
    target: Target,
    gamma: float,
) -> torch.Tensor:
    "The gradient of the logits, [B,C,N]."
    g_predicted, g_overlap, g_cross_entropy = gradients
    logits, channel, label_weight, label_logit = saved
    p = label_logit.sigmoid()
    correction = -negative_slope(-label_logit, gamma) - negative_slope(label_logit, gamma)
    of_cross_entropy = g_cross_entropy.gather(1, channel)*correction
    of_overlap = g_overlap.gather(1, channel)*p*(1 - p)
    at_label = (of_cross_entropy + of_overlap)*label_weight
    a, b = g_cross_entropy[..., None], g_predicted[..., None]
    gradient = torch.empty_like(logits)
    for pixels, z, weight in slices_of(logits, target, label_weight.dtype):
        p = z.contiguous().sigmoid()
        if gamma:
            part = a*negative_slope(z, gamma) + b*p*(1 - p)
        else:
            part = (-b*p).add_(a + b).mul_(p)  # the same for gamma = 0, in place
        gradient[..., pixels] = add_at_labels(part.mul_(weight), channel, at_label, pixels)
    return gradient


# %%
ones = torch.ones(2, 3, dtype=torch.float64)
saved = (
    logits,
    channel,
    label_weight,
    sigmoid_forward(logits.detach(), target, channel, label_weight, gamma=0.)[-1],
)
gradient = sigmoid_backward((ones, ones, ones), saved, target, gamma=0.)
plain = plain_sigmoid_sums(logits, target)
(expected,) = torch.autograd.grad(
    plain.predicted.sum() + plain.overlap.sum() + plain.cross_entropy.sum(), logits
)
test_close(gradient, expected, 1e-12)


# %%
#| export
class SigmoidSums(torch.autograd.Function):
    "Predicted, overlap, cross-entropy and its weight, each [B,C], of logits [B,C,N]."

    @staticmethod
    def forward(ctx, logits, target, channel, label_weight, gamma):
        "The sums; the logits and three numbers a pixel are kept for the gradient."
        *sums, label_logit = sigmoid_forward(logits, target, channel, label_weight, gamma)
        ctx.target, ctx.gamma = target, gamma
        ctx.save_for_backward(logits, channel, label_weight, label_logit)
        ctx.mark_non_differentiable(sums[-1])
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_predicted, g_overlap, g_cross_entropy, _):
        "The gradient of the logits, and none for the other arguments."
        gradients = g_predicted, g_overlap, g_cross_entropy
        gradient = sigmoid_backward(gradients, ctx.saved_tensors, ctx.target, ctx.gamma)
        return gradient, None, None, None, None


# %% [markdown]
# The gradient is compared with finite differences.

# %%
assert torch.autograd.gradcheck(lambda z: SigmoidSums.apply(z, target, channel, label_weight, 2.)[:3], logits)


# %% [markdown]
# ### Structures that overlap
#
# Some data sets give each class a mask of its own, because structures overlap: a tumour lies in a liver. Then a pixel has no single label, and only ideas 2 and 3 remain: slices of pixels, and a gradient that keeps nothing but the logits. For each class and pixel, the truth $y$ chooses between two losses.

# %%
#| export
class OverlappingSums(torch.autograd.Function):
    "The five sums of `Sums`, each [B,C], of logits [B,C,N] where each class has a mask of its own."

    @staticmethod
    def forward(ctx, logits, target, gamma):
        "The sums; nothing but the logits is kept for the gradient."
        ctx.target, ctx.gamma = target, gamma
        ctx.save_for_backward(logits)
        total = [0.]*5
        for pixels, z, weight in slices_of(logits, target, sum_dtype(logits)):
            truth = target.mask[..., pixels]
            p = z.sigmoid()
            counts = weight.expand_as(z)
            loss = negative_loss(torch.where(truth, -z, z), gamma)
            parts = p, p*truth, truth, loss, torch.ones_like(z)
            total = [s + (part*counts).sum(-1) for s, part in zip(total, parts)]
        ctx.mark_non_differentiable(total[2], total[4])
        return tuple(total)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_predicted, g_overlap, _true, g_cross_entropy, _weight):
        "The gradient of the logits, and none for the other arguments."
        logits, = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        a, b, c = g_cross_entropy[..., None], g_predicted[..., None], g_overlap[..., None]
        for pixels, z, weight in slices_of(logits, ctx.target, sum_dtype(logits)):
            truth = ctx.target.mask[..., pixels]
            p = z.sigmoid()
            slope = torch.where(truth, -negative_slope(-z, ctx.gamma), negative_slope(z, ctx.gamma))
            gradient[..., pixels] = (a*slope + (b + c*truth)*p*(1 - p))*weight
        return gradient, None, None


# %% [markdown]
# The same two comparisons for structures that overlap:

# %%
several = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(3)) < .4
overlap_target = Target(several, examined, weight, pixel_known=False, first=1)
for gamma in (0., 2.):
    found = OverlappingSums.apply(logits, overlap_target, gamma)
    expected = plain_sigmoid_sums(logits, overlap_target, gamma)
    for a, b in zip(found, expected): test_close(a, b, 1e-12)
assert torch.autograd.gradcheck(lambda z: OverlappingSums.apply(z, overlap_target, 2.)[3], logits)


# %%
#| export
def fused_sigmoid_sums(logits: torch.Tensor, target: Target, gamma: float = 0.) -> Sums:
    "`plain_sigmoid_sums` of logits [B,C,N] without one-hot tensors."
    if target.overlapping:
        return Sums(*OverlappingSums.apply(logits, target, gamma))
    channel, label_weight = label_channel(logits, target)
    sums = SigmoidSums.apply(logits, target, channel, label_weight, gamma)
    predicted, overlap, cross_entropy, counted = sums
    true = add_up(label_weight, channel, logits.shape[1])
    return Sums(predicted, overlap, true, cross_entropy, counted)


# %% [markdown]
# Fused and plain give the same five sums.

# %%
for gamma in (0., 2.):
    for fused, plain in zip(
        fused_sigmoid_sums(logits, target, gamma), plain_sigmoid_sums(logits, target, gamma)
    ):
        test_close(fused, plain, 1e-12)

# %% [markdown]
# ## Softmax
#
# Softmax ties the channels together. Let $q$ be the probability of all that is allowed at a pixel, and $h_c=w\,(g_P+y_c\,g_O)$ the gradient that reaches the probabilities. Then
#
# $$\frac{\partial\ell}{\partial z_c}=p_c\Big(h_c-\sum_k p_k h_k\Big)+g_L\Big(p_c-[c\text{ is allowed}]\,\frac{p_c}{q}\Big)$$
#
# Two details keep it finite. Where the network is sure of something impossible, $q$ underflows. But background is always allowed at a zero, so $-\ln q\le-\ln p_0$, and this bound is finite. And sums are in float32 even if the logits are narrower.

# %%
#| export
LOG2_E = 1.4426950408889634

def fast_exp_(x: torch.Tensor) -> torch.Tensor:
    "exp as a power of two, in place: on some CPUs three times as fast as `torch.exp`, elsewhere the same."
    return x.mul_(LOG2_E).exp2_()

def softmax_and_normaliser(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    "Softmax over the channels of `logits` [B,K,n], and the logarithm of its normaliser [B,1,n]."
    most = logits.amax(1, keepdim=True)
    p = fast_exp_(logits - most)
    total = p.sum(1, keepdim=True)
    return p.div_(total), most + total.log()


# %% [markdown]
# It agrees with PyTorch's softmax and `logsumexp`.

# %%
z = torch.randn(1, 4, 3, dtype=torch.float64)
p, normaliser = softmax_and_normaliser(z)
test_close(p, z.softmax(1), 1e-12)
test_close(normaliser[:, 0], z.logsumexp(1), 1e-12)


# %%
#| export
def softmax_forward(
    logits: torch.Tensor, # [B,C+1,N]
    target: Target,
    channel: torch.Tensor, # [B,N], from `label_channel`
    label_weight: torch.Tensor, # [B,N], the same
) -> tuple[torch.Tensor, ...]:
    "Predicted and overlap [B,C+1], then [B,N] each: the label's logit, log normaliser, marginal cross-entropy."
    dtype = label_weight.dtype
    label_logit, normaliser, log_q = label_weight.new_empty(3, *label_weight.shape)
    predicted = 0
    for pixels, z, weight in slices_of(logits, target, dtype):
        label_logit[:, pixels] = pick(z, channel[:, pixels])
        p, normaliser[:, None, pixels] = softmax_and_normaliser(z)
        q = (p*target.open_channels(dtype, pixels)).sum(1)
        log_q[:, pixels] = q.log_()
        predicted = predicted + weighted_sum_(p, weight)
    label_loss = normaliser - label_logit  # the label of a zero is background
    zero_loss = torch.minimum(label_loss, -log_q)
    pixel_loss = torch.where(target.mask > 0, label_loss, zero_loss)
    label_prob = fast_exp_(label_logit - normaliser)
    overlap = add_up(label_prob*label_weight, channel, logits.shape[1])
    return predicted, overlap, label_logit, normaliser, pixel_loss


# %% [markdown]
# The sums of the plain definition once more, now with a background channel:

# %%
logits = torch.randn(
    2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
).requires_grad_()
target = Target(labels, torch.cat([examined[:, :1] | True, examined], 1), weight, pixel_known=True, first=0)
channel, label_weight = label_channel(logits, target)
predicted, overlap, *_, pixel_loss = softmax_forward(logits.detach(), target, channel, label_weight)
plain = plain_softmax_sums(logits, target, weight[:, 0])
test_close(predicted, plain.predicted.detach(), 1e-12)
test_close(overlap, plain.overlap.detach(), 1e-12)
test_close((pixel_loss*weight[:, 0]).sum(1), plain.cross_entropy.detach(), 1e-12)


# %% [markdown]
# In the gradient the label's channel is again corrected afterwards. At a zero $1/q=e^{-\ln q}$ is taken from the cross-entropy, which is finite.

# %%
#| export
def softmax_backward(
    gradients: tuple[torch.Tensor, ...], # of predicted and overlap [B,C+1], and of the cross-entropy [B]
    saved: tuple[torch.Tensor, ...], # logits, channel, the two weights, and three [B,N] of the forward pass
    target: Target,
) -> torch.Tensor:
    "The gradient of the logits, [B,C+1,N]."
    g_predicted, g_overlap, g_cross_entropy = gradients
    logits, channel, label_weight, pixel_weight, label_logit, normaliser, pixel_loss = saved
    labelled = target.mask > 0
    g_pixel = g_cross_entropy[:, None]*pixel_weight
    label_prob = fast_exp_(label_logit - normaliser)
    g_overlap_pixel = label_prob*label_weight*g_overlap.gather(1, channel)
    g_open = g_pixel*(target.mask == 0)*fast_exp_(pixel_loss.clamp(max=80))  # g_L/q at a zero
    at_label = g_overlap_pixel - g_pixel*labelled
    everywhere = g_overlap_pixel - g_pixel
    gradient = torch.empty_like(logits)
    for pixels, z, weight in slices_of(logits, target, label_weight.dtype):
        p = fast_exp_(z - normaliser[:, None, pixels])
        h = g_predicted[..., None]*weight
        mean_h = (p*h).sum(1, keepdim=True)
        part = h - (mean_h + everywhere[:, None, pixels])
        part.addcmul_(target.open_channels(p.dtype, pixels), g_open[:, None, pixels], value=-1)
        gradient[..., pixels] = add_at_labels(part.mul_(p), channel, at_label, pixels)
    return gradient


# %%
four, image = torch.ones(2, 4, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
saved = (
    logits,
    channel,
    label_weight,
    weight[:, 0],
    *softmax_forward(logits.detach(), target, channel, label_weight)[2:],
)
(expected,) = torch.autograd.grad(
    plain.predicted.sum() + plain.overlap.sum() + plain.cross_entropy.sum(), logits
)
test_close(softmax_backward((four, four, image), saved, target), expected, 1e-12)


# %%
#| export
class SoftmaxSums(torch.autograd.Function):
    "Predicted and overlap [B,C+1], and the marginal cross-entropy [B], of logits [B,C+1,N]."

    @staticmethod
    def forward(ctx, logits, target, channel, label_weight, pixel_weight):
        "The sums; the logits and six numbers a pixel are kept for the gradient."
        predicted, overlap, *per_pixel = softmax_forward(logits, target, channel, label_weight)
        ctx.target = target
        ctx.save_for_backward(logits, channel, label_weight, pixel_weight, *per_pixel)
        pixel_loss = per_pixel[-1]
        return predicted, overlap, (pixel_loss*pixel_weight).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        "The gradient of the logits, and none for the other arguments."
        gradient = softmax_backward(gradients, ctx.saved_tensors, ctx.target)
        return gradient, None, None, None, None


# %% [markdown]
# The gradient is compared with finite differences again:

# %%
assert torch.autograd.gradcheck(
    lambda z: SoftmaxSums.apply(z, target, channel, label_weight, weight[:, 0]), logits
)


# %%
#| export
def fused_softmax_sums(logits: torch.Tensor, target: Target, pixel_weight: torch.Tensor) -> Sums:
    "`plain_softmax_sums` of logits [B,C+1,N] without one-hot tensors."
    channel, label_weight = label_channel(logits, target)
    predicted, overlap, cross_entropy = SoftmaxSums.apply(logits, target, channel, label_weight, pixel_weight)
    true = add_up(label_weight, channel, logits.shape[1])
    return Sums(predicted, overlap, true, cross_entropy, pixel_weight.sum(-1))


# %% [markdown]
# Fused and plain agree for softmax outputs too.

# %%
for fused, plain in zip(
    fused_softmax_sums(logits, target, weight[:, 0]), plain_softmax_sums(logits, target, weight[:, 0])
):
    test_close(fused, plain, 1e-12)


# %% [markdown]
# ## The losses
#
# Only the sums differ from the plain losses. Options, shapes and formulas are inherited.

# %%
#| export
class MaskedSigmoidLoss(PlainMaskedSigmoidLoss):
    "Binary cross-entropy and Dice of each class over the pixels where it is known; no gradient elsewhere."
    pixel_sums = staticmethod(fused_sigmoid_sums)

class MarginalSoftmaxLoss(PlainMarginalSoftmaxLoss):
    "Cross-entropy in which a zero means background or an unknown class, and Dice where a class is known."
    pixel_sums = staticmethod(fused_softmax_sums)


# %%
mask, known = labels.reshape(2, 2, 4), examined[..., 0]

def compare(fused, plain):
    "Values and gradients of two losses are equal."
    torch.manual_seed(0)
    z = torch.randn(2, fused.out_chans(3), 2, 4, dtype=torch.float64, requires_grad=True)
    value, expected = fused(z, mask, known), plain(z, mask, known)
    gradient, expected_gradient = (torch.autograd.grad(v, z)[0] for v in (value, expected))
    test_close(value, expected, 1e-12)
    test_close(gradient, expected_gradient, 1e-12)
    print(f"{type(fused).__name__:21} {value:.6f}")

compare(MaskedSigmoidLoss(), PlainMaskedSigmoidLoss())
compare(MarginalSoftmaxLoss(), PlainMarginalSoftmaxLoss())


# %%
#| export
class DiceLoss(PlainDiceLoss):
    "The original project's loss: Dice over all channels, zeros as background; `known` is not looked at."
    pixel_sums = staticmethod(fused_softmax_sums)

class CrossEntropyDiceLoss(PlainCrossEntropyDiceLoss):
    "Cross-entropy and Dice that read unknown as background: the mistake, to be measured."
    pixel_sums = staticmethod(fused_softmax_sums)


# %%
compare(DiceLoss(), PlainDiceLoss())
compare(CrossEntropyDiceLoss(), PlainCrossEntropyDiceLoss())


# %% [markdown]
# **A volume is its pixels.** Its loss and gradient are those of the plain formulas, and with sums over the batch those of its slices, given as a batch.

# %%
def volume_and_slices(fused, plain):
    "One volume of four slices, by the fused loss, by the plain one, and slice by slice."
    torch.manual_seed(0)
    z = torch.randn(1, fused.out_chans(3), 4, 5, 6, dtype=torch.float64, requires_grad=True)
    mask, known = torch.randint(0, 3, (1, 4, 5, 6)), torch.tensor([[True, True, False]])
    slices, every_slice = z[0].transpose(0, 1), known.expand(4, -1)
    values = [fused(z, mask, known), plain(z, mask, known), fused(slices, mask[0], every_slice)]
    gradients = [torch.autograd.grad(value, z, retain_graph=True)[0] for value in values]
    for value, gradient in zip(values[1:], gradients[1:]):
        test_close(value, values[0], 1e-12)
        test_close(gradient, gradients[0], 1e-12)

volume_and_slices(MaskedSigmoidLoss(), PlainMaskedSigmoidLoss())
volume_and_slices(MarginalSoftmaxLoss(), PlainMarginalSoftmaxLoss())
volume_and_slices(CrossEntropyDiceLoss(), PlainCrossEntropyDiceLoss())

# %% [markdown]
# **Half precision and huge logits give a finite loss**, and a finite gradient.

# %%
for dtype in (torch.float16, torch.bfloat16):
    for loss in (MaskedSigmoidLoss(), MarginalSoftmaxLoss(), DiceLoss(), CrossEntropyDiceLoss()):
        for scale in (1, 100, 60000):
            z = (torch.randn(2, loss.out_chans(3), 2, 4).clamp(-1, 1)*scale).to(dtype).requires_grad_()
            value = loss(z, mask, known)
            value.backward()
            assert value.isfinite() and z.grad.isfinite().all() and value.dtype == torch.float32, (
                loss,
                dtype,
                scale,
            )
