"""Every loss against the same formula written plainly with one-hot tensors: values and gradients in float64."""
import itertools

import pytest
import torch
from torch.nn import functional as F

from ctseg.losses import CrossEntropyDiceLoss, DiceLoss, MarginalSoftmaxLoss, MaskedSigmoidLoss, consistency_loss, create_loss


# ---- the formulas, plainly ------------------------------------------------------------------------------------------
def plain_dice(p, y, w, reduction, eps, every=False):
    dims = (0, 2, 3) if reduction == "batch" else (2, 3)
    TP, P, T = (p*y*w).sum(dims), (p*w).sum(dims), (y*w).sum(dims)
    loss = 1 - 2*TP/(P + T + eps)
    if every: return loss.mean()
    return loss[T > 0].mean() if (T > 0).any() else loss.sum()*0

def plain_known(known, mask, pixel_known):
    k = known if known.ndim == 4 else known[..., None, None].expand(*known.shape, *mask.shape[1:])
    return k | (mask > 0)[:, None] if pixel_known else k

def plain_sigmoid(z, mask, known, weight=None, w_dice=1., w_bce=.5, reduction="batch", pixel_known=True, focal_gamma=0., eps=1e-5):
    y = F.one_hot(mask, z.shape[1] + 1).permute(0, 3, 1, 2)[:, 1:].to(z.dtype)
    w = plain_known(known, mask, pixel_known).to(z.dtype) * (1 if weight is None else weight)
    p = z.sigmoid()
    bce = F.binary_cross_entropy_with_logits(z, y, reduction="none") * (1 - (p*y + (1 - p)*(1 - y)))**focal_gamma
    return w_bce*(bce*w).sum()/w.sum().clamp(min=1e-12) + w_dice*plain_dice(p, y, w, reduction, eps)

def plain_marginal(z, mask, known, weight=None, w_dice=1., w_ce=1., reduction="batch", pixel_known=True, eps=1e-5):
    y = F.one_hot(mask, z.shape[1]).permute(0, 3, 1, 2).to(z.dtype)
    k = plain_known(known, mask, False)
    allowed = torch.cat([torch.ones_like(k[:, :1]), ~k], 1) & (mask == 0)[:, None] | (y > 0)
    p = z.softmax(1)
    nll = -torch.log((p*allowed).sum(1))
    v = 1 if weight is None else weight[:, 0]
    k = plain_known(known, mask, pixel_known).to(z.dtype)
    n = (k.any(1)*v).sum().clamp(min=1e-12)
    return w_ce*(nll*v).sum()/n + w_dice*plain_dice(p[:, 1:], y[:, 1:], k if weight is None else k*weight, reduction, eps)

def plain_ce_dice(z, mask, known=None, weight=None, w_dice=1., w_ce=1., reduction="batch", eps=1e-5):
    y = F.one_hot(mask, z.shape[1]).permute(0, 3, 1, 2).to(z.dtype)
    w = z.new_ones(len(z), 1, *mask.shape[1:]) if weight is None else weight
    ce = (F.cross_entropy(z, mask, reduction="none")*w[:, 0]).sum()/w.sum().clamp(min=1e-12)
    return w_ce*ce + w_dice*plain_dice(z.softmax(1)[:, 1:], y[:, 1:], w, reduction, eps)

def plain_seed(z, mask, known=None, weight=None):
    y = F.one_hot(mask, z.shape[1]).permute(0, 3, 1, 2).to(z.dtype)
    return plain_dice(z.softmax(1), y, torch.ones_like(y) if weight is None else weight, "batch", 1e-6, every=True)


def make(seed, B=3, C=5, H=4, W=6, per_pixel=False, unlabelled=True, dtype=torch.float64):
    "Logits, a valid truth (labelled classes are known), known cells, pixel weights."
    g = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, C + 1, (B, H, W), generator=g)
    known = torch.rand(B, C, generator=g) < .5
    if unlabelled: known[-1] = False
    if per_pixel:  # as after CutMix: a box comes from the next image
        box = torch.zeros(H, W, dtype=torch.bool); box[1:3, 2:5] = True
        known = torch.where(box, known.roll(1, 0)[..., None, None], known[..., None, None])
        ok = torch.cat([torch.ones_like(known[:, :1]), known], 1).gather(1, mask[:, None])[:, 0]
    else: ok = torch.cat([torch.ones_like(known[:, :1]), known], 1).gather(1, mask.flatten(1)).view_as(mask)
    mask = mask*ok
    z = 3*torch.randn(B, C + 1, H, W, generator=g, dtype=dtype)
    weight = torch.rand(B, 1, H, W, generator=g, dtype=dtype)*(torch.rand(B, 1, H, W, generator=g) < .8)
    return z, mask, known, weight


CASES = ([(MaskedSigmoidLoss, plain_sigmoid, dict(reduction=r, pixel_known=k, focal_gamma=f))
          for r, k, f in itertools.product(("image", "batch"), (True, False), (0., 2.))]
         + [(MarginalSoftmaxLoss, plain_marginal, dict(reduction=r, pixel_known=k)) for r, k in itertools.product(("image", "batch"), (True, False))]
         + [(CrossEntropyDiceLoss, plain_ce_dice, dict(reduction=r)) for r in ("image", "batch")] + [(DiceLoss, plain_seed, {})])


@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("weighted", [False, True, "class"])
@pytest.mark.parametrize("cls, plain, kw", CASES)
def test_equals_plain(cls, plain, kw, weighted, per_pixel):
    for seed in range(4):
        z, mask, known, weight = make(seed, per_pixel=per_pixel)
        loss = cls(**kw)
        z = z[:, :loss.out_chans(5)].contiguous().requires_grad_()
        if weighted == "class":
            if cls is not MaskedSigmoidLoss: return
            weight = weight*torch.rand(3, 5, 4, 6, dtype=torch.float64)
        a, b = (f(z, mask, known, weight if weighted else None) for f in (loss, lambda *x: plain(*x, **kw)))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        ga, gb = (torch.autograd.grad(3*x, z)[0] for x in (a, b))
        torch.testing.assert_close(ga, gb, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("cls, plain, kw", CASES)
def test_gradcheck(cls, plain, kw):
    z, mask, known, weight = make(7, B=2, C=3, H=2, W=3, unlabelled=False)
    loss = cls(**kw)
    z = z[:, :loss.out_chans(3)].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, mask, known, weight), z)
