# %% [markdown]
# # Losses
#
# > Unknown is not background: losses that learn from what was examined and stay silent about the rest.
#
# - skip_showdoc: true

# %%
#| default_exp losses

# %%
#| export
import inspect, math
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from ctseg.files import InputError, did_you_mean

# %%
#| hide
from fastcore.test import test_eq, test_close, test_fail


# %% [markdown]
# ## Three sums are enough
#
# For a class $c$ on an image, with $p$ the predicted probability, $y\in\{0,1\}$ the truth and $w$ the weight of a pixel (0 where $c$ is
# unknown), every loss of this notebook is a small formula over
#
# $$P=\sum_i w_i p_i \qquad TP=\sum_i w_i p_i y_i \qquad T=\sum_i w_i y_i$$
#
# and the summed cross-entropy $L$. The usual way to compute them is to blow the truth up into a one-hot tensor as large as the logits and
# multiply: at 4 x 55 x 256 x 256 that is 58 MB for the tensor and several times that for the products which autograd keeps. But $y$ is zero
# nearly everywhere. A pixel has *one* label, so $TP$ needs *one* probability a pixel: **gather** it, then **add it up by label**.

# %%
#| export
def _pick(t, j):
    "The value of `t` [B,K,N] at channel `j` [B,N] of each pixel."
    return t.gather(1, j[:, None])[:, 0]

def _table(j, v, K):
    "Add up values `v` [B,N] by the channel `j` [B,N] they belong to: a table [B,K]."
    return v.new_zeros(len(j), K).scatter_add_(1, j, v)


# %%
p = torch.tensor([[[.7, .2, .1], [.3, .8, .9]]])  # one image, two classes, three pixels
j = torch.tensor([[0, 1, 1]])                     # the label of each pixel
test_close(_pick(p, j), torch.tensor([[.7, .8, .9]]))
test_close(_table(j, _pick(p, j), 2), torch.tensor([[.7, 1.7]]))  # TP of the two classes


# %% [markdown]
# $P$ does run over everything, but in slices of the pixels small enough to stay in the processor's cache. A slice is turned into
# probabilities, summed and forgotten, so the extra memory of a forward pass is next to nothing, whatever the size of the batch.

# %%
#| export
def _slices(z):
    "Slices of the pixel axis of `z` [B,K,N]: on a CPU one fits the cache, on a GPU one is usually all."
    B, K, N = z.shape
    n = max(1, (2**18 if z.device.type == "cpu" else 2**27) // (B*K))
    return [slice(i, i + n) for i in range(0, N, n)]

def _at(t, s): return t if t.shape[-1] == 1 else t[..., s]  # a last axis of 1 means: the same for every pixel

def _weights(s, dtype, mask, known, weight, pixel_known):
    "Weight of each (class, pixel) of the slice `s`, [B,K,1|n]; 0 where unknown."
    w = _at(known, s).to(dtype)
    if pixel_known: w = torch.maximum(w, (mask[:, None, s] > 0).to(dtype))
    return w if weight is None else w * _at(weight, s)


def _maybe(known, s, dtype):
    "1 for the channels an unlabelled pixel may belong to: background and every unknown class."
    m = 1 - _at(known, s).to(dtype)
    m[:, 0] = 1
    return m

def _total(v, w): return v.sum(-1)*w[..., 0] if w.shape[-1] == 1 else (v*w).sum(-1)


# %% [markdown]
# `pixel_known` above is a fact that costs nothing: **organs do not overlap, so a pixel labelled liver is certainly not spleen**, even on an
# image where nobody looked for the spleen. Its labelled pixels are thus known for *every* class; only its zeros remain unknown.
#
# The label's own channel is looked up once for the whole batch. `first` is the class of channel 0: 0 (background) for softmax, 1 for sigmoid,
# where a pixel of background has no channel and so no weight.

# %%
#| export
def _label(z, mask, known, weight, pixel_known, first):
    "The channel of each pixel's label and the weight of that (class, pixel): two tensors [B,N]."
    j = (mask - first).clamp(min=0)
    k = _pick(known.expand_as(z), j)
    if pixel_known: k = k | (mask > 0)
    w = (k & (mask >= first)).to(torch.promote_types(z.dtype, torch.float32))
    return j, (w if weight is None else w*_pick(weight.expand_as(z), j))


# %% [markdown]
# ### Sigmoid
#
# With one sigmoid a class the classes are separate questions, and the cross-entropy of a negative pixel is $\mathrm{softplus}(z)$. So treat
# *all* pixels as negatives first, then correct the few labelled ones. The focal form (Lin et al. 2017, [arXiv
# 1708.02002](https://arxiv.org/abs/1708.02002), equation 4) scales it by $p^\gamma$: easy negatives then hardly count.

# %%
#| export
def _neg(x, gamma):
    "Cross-entropy of a negative, focal if gamma > 0. That of a positive is `_neg(-x)`."
    return F.softplus(x) * x.sigmoid()**gamma if gamma else F.softplus(x)

def _dneg(x, gamma):
    "Its derivative."
    p = x.sigmoid()
    return p**gamma * (p + gamma*(1 - p)*F.softplus(x)) if gamma else p


# %% [markdown]
# Autograd would keep each intermediate tensor for the way back. The gradient is simple enough to state, so we do: given
# $\partial\ell/\partial P,\ \partial\ell/\partial TP,\ \partial\ell/\partial L$ (tables of B x C numbers),
#
# $$\frac{\partial\ell}{\partial z_i}=w_i\Big[\frac{\partial\ell}{\partial L}(p_i-y_i)+\Big(\frac{\partial\ell}{\partial P}+y_i\frac{\partial\ell}{\partial TP}\Big)p_i(1-p_i)\Big]$$
#
# The factor $w_i$ in front is the whole point: where a class is unknown its gradient is not small, it is **zero**.

# %%
#| export
class _SigmoidSums(torch.autograd.Function):
    "z [B,C,N], mask [B,N], known [B,C,1|N], weight [B,1|C,1|N] or None → P, TP, L and the known weight N, each [B,C]."
    @staticmethod
    def forward(ctx, z, mask, known, weight, pixel_known, gamma):
        j, wy = _label(z, mask, known, weight, pixel_known, 1)
        ctx.args, ctx.gamma = (mask, known, weight, pixel_known), gamma
        ctx.save_for_backward(z, j, wy)
        xy, K, P, N = _pick(z, j).to(wy.dtype), z.shape[1], 0, 0
        TP, L = _table(j, xy.sigmoid()*wy, K), _table(j, (_neg(-xy, gamma) - _neg(xy, gamma))*wy, K)
        for s in _slices(z):
            x, w = z[..., s].to(wy.dtype), _weights(s, wy.dtype, *ctx.args)
            P, L, N = P + _total(x.sigmoid(), w), L + _total(_neg(x, gamma), w), N + w.expand_as(x).sum(-1)
        ctx.mark_non_differentiable(N)
        return P, TP, L, N

    @staticmethod
    @once_differentiable
    def backward(ctx, gP, gTP, gL, _):
        (z, j, wy), gamma = ctx.saved_tensors, ctx.gamma
        grad, a, b = torch.empty_like(z), gL[..., None], gP[..., None]
        for s in _slices(z):
            x, w = z[..., s].to(wy.dtype), _weights(s, wy.dtype, *ctx.args)
            p = x.sigmoid()
            g = (b*p).neg_().add_(a + b).mul_(p) if not gamma else a*_dneg(x, gamma) + b*p*(1 - p)
            grad[..., s] = g.mul_(w)
        xy = _pick(z, j).to(wy.dtype)
        p = xy.sigmoid()
        gy = gL.gather(1, j)*(-_dneg(-xy, gamma) - _dneg(xy, gamma)) + gTP.gather(1, j)*p*(1 - p)
        return grad.scatter_add_(1, j[:, None], (gy*wy).to(grad.dtype)[:, None]), None, None, None, None, None


# %% [markdown]
# ### Softmax
#
# ...

# %%
#| export
def _exp(x): return (x*1.4426950408889634).exp2_()  # 2^(x/ln 2): on some CPUs three times as fast as torch.exp, elsewhere the same

def _softmax(x):
    "Softmax over the channels of `x` [B,K,n] and its logarithmic normaliser [B,1,n]."
    m = x.amax(1, keepdim=True)
    p = _exp(x - m)
    S = p.sum(1, keepdim=True)
    return p.div_(S), m + S.log()


# %%
#| export
class _SoftmaxSums(torch.autograd.Function):
    "z [B,C+1,N], mask [B,N], known [B,C+1,1|N], weight [B,1,1|N] or None → P, TP [B,C+1] and L [B]."
    @staticmethod
    def forward(ctx, z, mask, known, weight, pixel_known):
        j, wy = _label(z, mask, known, weight, pixel_known, 0)
        xy, K, P = _pick(z, j).to(wy.dtype), z.shape[1], 0
        lse, log_q = torch.empty_like(xy), torch.empty_like(xy)
        for s in _slices(z):
            p, lse[:, None, s] = _softmax(z[..., s].to(wy.dtype))
            log_q[:, s] = (p*_maybe(known, s, p.dtype)).sum(1).log_()
            P = P + _total(p, _weights(s, wy.dtype, mask, known, weight, pixel_known))
        nll = lse - xy
        nll = torch.where(mask > 0, nll, torch.minimum(nll, -log_q))  # if q underflows, p of the background alone bounds it
        ctx.args, ctx.n = (mask, known, weight, pixel_known), z.shape[-1]
        ctx.save_for_backward(z, j, wy, xy, lse, nll)
        return P, _table(j, _exp(xy - lse)*wy, K), (nll if weight is None else nll*weight[:, 0]).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gP, gTP, gL):
        (z, j, wy, xy, lse, nll), (mask, known, weight, _) = ctx.saved_tensors, ctx.args
        v = (gL[:, None] if weight is None else gL[:, None]*weight[:, 0]).to(wy.dtype).expand_as(wy)
        gy, r = _exp(xy - lse)*wy*gTP.gather(1, j), v*(mask == 0)*_exp(nll.clamp(max=80))
        grad = torch.empty_like(z)
        for s in _slices(z):
            p, h = _exp(z[..., s].to(wy.dtype) - lse[:, None, s]), gP[..., None]*_weights(s, wy.dtype, *ctx.args)
            g = h - ((p*h).sum(1, keepdim=True) + (gy - v)[:, None, s])
            grad[..., s] = g.sub_(_maybe(known, s, p.dtype)*r[:, None, s]).mul_(p)
        gy = gy - v*(mask > 0)
        return grad.scatter_add_(1, j[:, None], gy.to(grad.dtype)[:, None]), None, None, None, None


# %%
#| export
def _dice(P, TP, T, reduction, eps, every=False):
    "Mean Dice loss of the cells [B,C] with a known positive, each on its own or added up over the batch."
    if reduction == "batch": P, TP, T = P.sum(0), TP.sum(0), T.sum(0)
    loss = 1 - 2*TP/(P + T + eps)
    if every: return loss.mean()
    here = T > 0
    return (loss*here).sum() / here.sum().clamp(min=1)

def _flat(logits, mask, known, weight, chans):
    "Check shapes; give logits [B,K,N], mask [B,N], known [B,K,1|N], weight [B,1|K,1|N]."
    B, K, H, W = logits.shape
    if mask.shape != (B, H, W): raise ValueError(f"mask is {tuple(mask.shape)}, expected {(B, H, W)} as in the logits")
    if known.shape not in ((B, chans), (B, chans, H, W)):
        raise ValueError(f"known is {tuple(known.shape)}, expected {(B, chans)} or {(B, chans, H, W)} for {K} output channels")
    known = known.bool().reshape(B, chans, -1)
    if weight is not None: weight = weight.expand(-1, -1, H, W).reshape(B, weight.shape[1], -1)
    return logits.reshape(B, K, -1), mask.reshape(B, -1).long(), known, weight


# %%
#| export
class PartialLoss(nn.Module):
    "What every loss offers besides `loss(logits, mask, known, weight=None)`; softmax with background as channel 0 by default."
    activation = "softmax"
    def out_chans(self, C: int) -> int:
        "Output channels the model needs for `C` classes."
        return C + (self.activation == "softmax")

    def probabilities(self, logits):
        "Logits → foreground probabilities float32 [B,C,H,W]."
        return logits.float().softmax(1)[:, 1:] if self.activation == "softmax" else logits.float().sigmoid()

    def init_head(self, conv, C: int): "Prepare the last convolution of a model; softmax needs nothing."

    def _sums(self, logits, mask, known, weight, pixel_known=False):
        "P, TP, T [B,C+1] and the mean cross-entropy over the pixels about which anything is known."
        if weight is not None and weight.shape[1] != 1: raise ValueError("a softmax loss takes one weight a pixel, [B,1,H,W]")
        z, y, k, w = _flat(logits, mask, known, weight, logits.shape[1] - 1)
        heard = k.any(1) | (y > 0)
        k = torch.cat([torch.ones_like(k[:, :1]), k], 1)
        P, TP, L = _SoftmaxSums.apply(z, y, k, w, pixel_known)
        j, wy = _label(z, y, k, w, pixel_known, 0)
        n = heard.expand_as(y).to(P.dtype) if w is None else heard*w[:, 0]
        return P, TP, _table(j, wy, z.shape[1]), L.sum()/n.sum().clamp(min=1e-12)


# %%
#| export
class DiceLoss(PartialLoss):
    "The original project's loss: Dice over all C+1 softmax channels, zeros read as background, `known` ignored."
    def __init__(self, eps: float = 1e-6): super().__init__(); self.eps = eps
    def forward(self, logits, mask, known=None, weight=None):
        P, TP, T, _ = self._sums(logits, mask, logits.new_ones(len(logits), logits.shape[1] - 1), weight)
        return _dice(P, TP, T, "batch", self.eps, every=True)


# %%
#| export
class CrossEntropyDiceLoss(PartialLoss):
    "Cross-entropy + Dice that read unknown as background: the mistake, kept to be measured."
    def __init__(self, w_dice: float = 1., w_ce: float = 1., reduction: str = "batch", eps: float = 1e-5):
        super().__init__()
        self.w_dice, self.w_ce, self.reduction, self.eps = w_dice, w_ce, reduction, eps
    def forward(self, logits, mask, known=None, weight=None):
        P, TP, T, ce = self._sums(logits, mask, logits.new_ones(len(logits), logits.shape[1] - 1), weight)
        return self.w_ce*ce + self.w_dice*_dice(P[:, 1:], TP[:, 1:], T[:, 1:], self.reduction, self.eps)


# %%
#| export
class MarginalSoftmaxLoss(PartialLoss):
    "Cross-entropy and Dice over what is known of a softmax output."
    def __init__(self, w_dice: float = 1., w_ce: float = 1., reduction: str = "batch", pixel_known: bool = True, eps: float = 1e-5):
        super().__init__()
        self.w_dice, self.w_ce, self.reduction, self.pixel_known, self.eps = w_dice, w_ce, reduction, pixel_known, eps
    def forward(self, logits, mask, known, weight=None):
        P, TP, T, ce = self._sums(logits, mask, known, weight, self.pixel_known)
        return self.w_ce*ce + self.w_dice*_dice(P[:, 1:], TP[:, 1:], T[:, 1:], self.reduction, self.eps)


# %%
#| export
class MaskedSigmoidLoss(PartialLoss):
    "Binary cross-entropy and Dice over the known pixels of each class."
    activation = "sigmoid"
    def __init__(self, w_dice: float = 1., w_bce: float = .5, reduction: str = "batch", pixel_known: bool = True,
                 focal_gamma: float = 0., eps: float = 1e-5, prior: float = .01):
        super().__init__()
        self.w_dice, self.w_bce, self.reduction, self.pixel_known = w_dice, w_bce, reduction, pixel_known
        self.focal_gamma, self.eps, self.prior = focal_gamma, eps, prior
    def forward(self, logits, mask, known, weight=None):
        z, y, k, w = _flat(logits, mask, known, weight, logits.shape[1])
        P, TP, L, N = _SigmoidSums.apply(z, y, k, w, self.pixel_known, self.focal_gamma)
        j, wy = _label(z, y, k, w, self.pixel_known, 1)
        bce = L.sum()/N.sum().clamp(min=1e-12)
        return self.w_bce*bce + self.w_dice*_dice(P, TP, _table(j, wy, z.shape[1]), self.reduction, self.eps)
    def init_head(self, conv, C):
        "Start every class at probability `prior` (Lin et al. 2017, arXiv 1708.02002, section 4.1)."
        nn.init.constant_(conv.bias, -math.log((1 - self.prior)/self.prior))


# %%
#| export
def consistency_loss(
    student, # [B,K,H,W]: probabilities for "l2", logits for "ce"
    teacher, # probabilities [B,K,H,W], no gradient flows into them
    where=None, # [B,H,W] or [B,1|K,H,W], weights or bool: the pixels to compare; None = all
    kind: str = "l2", # "l2" mean squared difference, "ce" cross-entropy
    activation: str = "softmax", # for "ce": how the student's logits are read
): # scalar, 0 where nothing is compared
    "How far a student is from a teacher, averaged over the pixels `where`."
    teacher, student = teacher.detach().float(), student.float()
    if kind == "l2": d = (student - teacher).square()
    elif kind != "ce": raise did_you_mean("kind of consistency", kind, ["l2", "ce"])
    elif activation == "softmax": d = -(teacher*student.log_softmax(1)).sum(1, keepdim=True)
    else: d = F.binary_cross_entropy_with_logits(student, teacher, reduction="none")
    if where is None: return d.mean()
    w = (where[:, None] if where.ndim == 3 else where).float().expand_as(d)
    return (d*w).sum() / w.sum().clamp(min=1e-12)


# %%
#| export
LOSSES = {"dice": DiceLoss, "ce-dice": CrossEntropyDiceLoss, "masked": MaskedSigmoidLoss, "marginal": MarginalSoftmaxLoss}

def create_loss(name: str, **kw) -> PartialLoss:
    "A loss by its name; an unknown name or option names the nearest valid ones."
    if name not in LOSSES: raise did_you_mean("loss", name, LOSSES)
    valid = inspect.signature(LOSSES[name]).parameters
    for k in kw:
        if k not in valid: raise did_you_mean(f"option of the loss {name!r}", k, valid)
    return LOSSES[name](**kw)


# %%
#| hide
import nbdev; nbdev.nbdev_export()
