# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

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
from torch.nn import functional as F
from ctseg.files import InputError, did_you_mean

# %%
#| hide
from fastcore.test import test_eq, test_close, test_fail


# %% [markdown]
# ## Small pieces

# %%
#| export
def _chunks(z):
    "Slices of the pixel axis; on a CPU a slice of `z` [B,K,N] stays in the cache, on a GPU one is usually enough."
    B, K, N = z.shape
    n = max(1, (2**19 if z.device.type == "cpu" else 2**27) // (B*K))
    return [slice(i, i + n) for i in range(0, N, n)]

def _at(t, s):
    "Pixels `s` of `t`, whose pixel axis may be of length 1 (the same for every pixel)."
    return t if t is None or t.shape[-1] == 1 else t[..., s]

def _chunk(s, z, mask, known, weight, pixel_known):
    "Logits in at least float32, truth, and the weight of each (class, pixel): 0 where unknown."
    x, y = z[..., s], mask[:, s]
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    k = _at(known, s)
    if pixel_known: k = k | (y > 0)[:, None]
    w = k.to(x.dtype) if weight is None else k * _at(weight, s).to(x.dtype)
    return x, y, w.expand_as(x)

def _table(y, v, K):
    "Sum values `v` [B,n] into a table [B,K] by the class `y` [B,n] they belong to."
    return v.new_zeros(len(y), K).scatter_add_(1, y, v)


# %%
#| export
def _neg(x, gamma):
    "Cross-entropy of a negative, focal if gamma > 0; that of a positive is `_neg(-x)`."
    return F.softplus(x) * x.sigmoid()**gamma if gamma else F.softplus(x)

def _dneg(x, gamma):
    "Derivative of `_neg`."
    p = x.sigmoid()
    return p**gamma * (p + gamma * (1 - p) * F.softplus(x)) if gamma else p


# %%
#| export
class _SigmoidSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, mask, known, weight, pixel_known, gamma):
        ctx.save_for_backward(z, mask, known, weight)
        ctx.opts, K, out = (pixel_known, gamma), z.shape[1], 0
        for s in _chunks(z):
            x, y, w = _chunk(s, z, mask, known, weight, pixel_known)
            j, fg = (y - 1).clamp(min=0)[:, None], y > 0
            p, xy, wy = x.sigmoid(), x.gather(1, j)[:, 0], w.gather(1, j)[:, 0] * fg
            tp, t, dl = (_table(y, v, K + 1)[:, 1:] for v in (xy.sigmoid()*wy, wy, (_neg(-xy, gamma) - _neg(xy, gamma))*wy))
            out = out + torch.stack([(p*w).sum(-1), tp, t, (_neg(x, gamma)*w).sum(-1) + dl, w.sum(-1)])
        P, TP, T, L, N = out
        ctx.mark_non_differentiable(T, N)
        return P, TP, T, L, N

    @staticmethod
    def backward(ctx, gP, gTP, _T, gL, _N):
        (z, mask, known, weight), (pixel_known, gamma) = ctx.saved_tensors, ctx.opts
        grad = torch.empty_like(z)
        for s in _chunks(z):
            x, y, w = _chunk(s, z, mask, known, weight, pixel_known)
            j, fg = (y - 1).clamp(min=0), y > 0
            p = x.sigmoid()
            g = torch.addcmul((gP + gL)[..., None], gP[..., None], p, value=-1).mul_(p) if not gamma else \
                gL[..., None]*_dneg(x, gamma) + gP[..., None]*p*(1 - p)
            xy = x.gather(1, j[:, None])[:, 0]
            py = xy.sigmoid()
            dy = gL.gather(1, j) * (-_dneg(-xy, gamma) - _dneg(xy, gamma)) + gTP.gather(1, j) * py * (1 - py)
            grad[..., s] = g.scatter_add_(1, j[:, None], (dy*fg)[:, None]).mul_(w)
        return grad, None, None, None, None, None


# %%
#| export
def _marginal(x, y, unknown):
    "Logits with everything the truth excludes at a pixel masked out: left are the class itself, or background with all unknown."
    allowed = unknown & (y == 0)[:, None]
    return x.masked_fill(~allowed.expand_as(x).scatter(1, y[:, None], True), torch.finfo(x.dtype).min)

class _SoftmaxSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, mask, known, weight, pixel_known, marginal):
        ctx.save_for_backward(z, mask, known, weight)
        ctx.opts, K, out, ln = (pixel_known, marginal), z.shape[1], 0, 0
        for s in _chunks(z):
            x, y, w = _chunk(s, z, mask, known, weight, pixel_known)
            lse = x.logsumexp(1, keepdim=True)
            t = _marginal(x, y, ~_at(known, s)).logsumexp(1) if marginal else x.gather(1, y[:, None])[:, 0]
            p, wy = (x - lse).exp_(), w.gather(1, y[:, None])[:, 0]
            py = p.gather(1, y[:, None])[:, 0]
            out = out + torch.stack([(p*w).sum(-1), _table(y, py*wy, K), _table(y, wy, K)])
            v = torch.ones_like(py) if weight is None else _at(weight, s)[:, 0].to(py.dtype).expand_as(py)
            ln = ln + torch.stack([((lse[:, 0] - t)*v).sum(-1), (v*w[:, 1:].any(1)).sum(-1)])
        (P, TP, T), (L, N) = out, ln
        ctx.mark_non_differentiable(T, N)
        return P, TP, T, L, N

    @staticmethod
    def backward(ctx, gP, gTP, _T, gL, _N):
        (z, mask, known, weight), (pixel_known, marginal) = ctx.saved_tensors, ctx.opts
        grad = torch.empty_like(z)
        for s in _chunks(z):
            x, y, w = _chunk(s, z, mask, known, weight, pixel_known)
            p, y1 = x.softmax(1), y[:, None]
            h = (gP[..., None]*w).scatter_add_(1, y1, gTP.gather(1, y)[:, None]*w.gather(1, y1))
            v = gL[:, None, None] if weight is None else gL[:, None, None]*_at(weight, s).to(x.dtype)
            g = h.sub_((p*h).sum(1, keepdim=True)).add_(v).mul_(p)
            if marginal: g.sub_(_marginal(x, y, ~_at(known, s)).softmax(1).mul_(v))
            else: g.scatter_add_(1, y1, -v.expand(len(y), 1, y.shape[1]))
            grad[..., s] = g
        return grad, None, None, None, None, None


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

    def _sums(self, logits, mask, known, weight, pixel_known=False, marginal=False):
        B, K = logits.shape[:2]
        if weight is not None and weight.shape[1] != 1: raise ValueError("a softmax loss takes one weight a pixel, [B,1,H,W]")
        z, y, k, w = _flat(logits, mask, known, weight, K - 1)
        k = torch.cat([torch.ones_like(k[:, :1]), k], 1)
        with torch.autocast(z.device.type, enabled=False): return _SoftmaxSums.apply(z, y, k, w, pixel_known, marginal)


# %%
#| export
class DiceLoss(PartialLoss):
    "The original project's loss: Dice over all C+1 softmax channels, zeros read as background, `known` ignored."
    def __init__(self, eps: float = 1e-6): super().__init__(); self.eps = eps
    def forward(self, logits, mask, known=None, weight=None):
        P, TP, T, *_ = self._sums(logits, mask, logits.new_ones(len(logits), logits.shape[1] - 1), weight)
        return _dice(P, TP, T, "batch", self.eps, every=True)


# %%
#| export
class CrossEntropyDiceLoss(PartialLoss):
    "Cross-entropy + Dice that read unknown as background: the mistake, kept to be measured."
    def __init__(self, w_dice: float = 1., w_ce: float = 1., reduction: str = "batch", eps: float = 1e-5):
        super().__init__()
        self.w_dice, self.w_ce, self.reduction, self.eps = w_dice, w_ce, reduction, eps
    def forward(self, logits, mask, known=None, weight=None):
        P, TP, T, L, N = self._sums(logits, mask, logits.new_ones(len(logits), logits.shape[1] - 1), weight)
        ce = L.sum() / N.sum().clamp(min=1e-12)
        return self.w_ce*ce + self.w_dice*_dice(P[:, 1:], TP[:, 1:], T[:, 1:], self.reduction, self.eps)


# %%
#| export
class MarginalSoftmaxLoss(PartialLoss):
    "Cross-entropy and Dice over what is known of a softmax output."
    def __init__(self, w_dice: float = 1., w_ce: float = 1., reduction: str = "batch", pixel_known: bool = True, eps: float = 1e-5):
        super().__init__()
        self.w_dice, self.w_ce, self.reduction, self.pixel_known, self.eps = w_dice, w_ce, reduction, pixel_known, eps
    def forward(self, logits, mask, known, weight=None):
        P, TP, T, L, N = self._sums(logits, mask, known, weight, self.pixel_known, marginal=True)
        ce = L.sum() / N.sum().clamp(min=1e-12)
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
        with torch.autocast(z.device.type, enabled=False):
            P, TP, T, L, N = _SigmoidSums.apply(z, y, k, w, self.pixel_known, self.focal_gamma)
            return self.w_bce*L.sum()/N.sum().clamp(min=1e-12) + self.w_dice*_dice(P, TP, T, self.reduction, self.eps)
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
