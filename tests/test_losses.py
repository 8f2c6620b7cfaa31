"""Every loss against the same formula written plainly with one-hot tensors: values and gradients in float64."""
import itertools

import pytest
import torch
from torch.nn import functional as F

from ctseg.losses import CrossEntropyDiceLoss, DiceLoss, MarginalSoftmaxLoss, MaskedSigmoidLoss, consistency_loss, create_loss


# ---- the formulas, plainly ------------------------------------------------------------------------------------------
def plain_dice(p, y, w, reduction, eps, every=False, log=False):
    dims = (0, 2, 3) if reduction == "batch" else (2, 3)
    TP, P, T = (p*y*w).sum(dims), (p*w).sum(dims), (y*w).sum(dims)
    loss = -torch.log((2*TP + eps)/(P + T + eps)) if log else 1 - 2*TP/(P + T + eps)
    if every: return loss.mean()
    return loss[T > 0].mean() if (T > 0).any() else loss.sum()*0

def plain_known(known, mask, pixel_known):
    k = known if known.ndim == 4 else known[..., None, None].expand(*known.shape, *mask.shape[1:])
    return k | (mask > 0)[:, None] if pixel_known else k

def plain_sigmoid(z, mask, known, weight=None, w_dice=1., w_bce=.5, reduction="batch", pixel_known=True, focal_gamma=0., eps=1e-5, log_dice=False):
    y = F.one_hot(mask, z.shape[1] + 1).permute(0, 3, 1, 2)[:, 1:].to(z.dtype)
    w = plain_known(known, mask, pixel_known).to(z.dtype) * (1 if weight is None else weight)
    p = z.sigmoid()
    bce = F.binary_cross_entropy_with_logits(z, y, reduction="none") * (1 - (p*y + (1 - p)*(1 - y)))**focal_gamma
    return w_bce*(bce*w).sum()/w.sum().clamp(min=1e-12) + w_dice*plain_dice(p, y, w, reduction, eps, log=log_dice)

def plain_marginal(z, mask, known, weight=None, w_dice=1., w_ce=1., reduction="batch", pixel_known=True, eps=1e-5, log_dice=False):
    y = F.one_hot(mask, z.shape[1]).permute(0, 3, 1, 2).to(z.dtype)
    k = plain_known(known, mask, False)
    allowed = torch.cat([torch.ones_like(k[:, :1]), ~k], 1) & (mask == 0)[:, None] | (y > 0)
    p = z.softmax(1)
    nll = -torch.log((p*allowed).sum(1))
    v = 1 if weight is None else weight[:, 0]
    k = plain_known(known, mask, pixel_known).to(z.dtype)
    n = (k.any(1)*v).sum().clamp(min=1e-12)
    return w_ce*(nll*v).sum()/n + w_dice*plain_dice(p[:, 1:], y[:, 1:], k if weight is None else k*weight, reduction, eps, log=log_dice)

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
         + [(MarginalSoftmaxLoss, plain_marginal, dict(reduction=r, pixel_known=k))
            for r, k in itertools.product(("image", "batch"), (True, False))]
         + [(c, f, dict(reduction=r, log_dice=True)) for c, f in ((MaskedSigmoidLoss, plain_sigmoid), (MarginalSoftmaxLoss, plain_marginal)) for r in ("image", "batch")]
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


ALL = [MaskedSigmoidLoss(), MaskedSigmoidLoss(reduction="image", focal_gamma=1.5), MarginalSoftmaxLoss(),
       MarginalSoftmaxLoss(reduction="image"), MaskedSigmoidLoss(log_dice=True), MarginalSoftmaxLoss(log_dice=True), CrossEntropyDiceLoss(), DiceLoss()]
ids = lambda loss: type(loss).__name__


@pytest.mark.parametrize("loss", ALL, ids=ids)
def test_slices_do_not_matter(loss, monkeypatch):
    "The pixels in slices of seven give what all at once give."
    import ctseg.losses as module
    for per_pixel in (False, True):
        z, mask, known, weight = make(3, per_pixel=per_pixel)
        z = z[:, :loss.out_chans(5)].contiguous().requires_grad_()
        whole = loss(z, mask, known, weight)
        grad, = torch.autograd.grad(whole, z)
        with monkeypatch.context() as m:
            m.setattr(module, "_slices", lambda z: [slice(i, i + 7) for i in range(0, z.shape[-1], 7)])
            parts = loss(z, mask, known, weight)
            torch.testing.assert_close(parts, whole)
            torch.testing.assert_close(torch.autograd.grad(parts, z)[0], grad)


@pytest.mark.parametrize("loss", ALL, ids=ids)
def test_memory_layout_and_second_backward(loss):
    z, mask, known, weight = make(4)
    z = z[:, :loss.out_chans(5)]
    a, b = z.clone().requires_grad_(), z.clone(memory_format=torch.channels_last).requires_grad_()
    value = loss(a, mask, known, weight)
    value.backward(retain_graph=True)
    first = a.grad.clone()
    value.backward()
    torch.testing.assert_close(a.grad, 2*first)
    loss(b, mask, known, weight).backward()
    torch.testing.assert_close(b.grad, first)


@pytest.mark.parametrize("loss", ALL, ids=ids)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(loss, dtype):
    "The value is float32 and the gradient that of the rounded logits, under autocast too."
    z, mask, known, _ = make(5, H=16, W=16, dtype=torch.float32)
    half = z[:, :loss.out_chans(5)].contiguous().to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16): a = loss(half, mask, known)
    b = loss(full, mask, known)
    assert a.dtype == torch.float32
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    (a*1024).backward(); b.backward()
    torch.testing.assert_close(half.grad.float()/1024, full.grad, rtol=.02, atol=1e-5)


@pytest.mark.parametrize("loss", ALL, ids=ids)
@pytest.mark.parametrize("scale", [30., 300., 65000.])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_never_nan(loss, scale, dtype):
    "Whatever the network is sure of, also of what is excluded, and with weights of zero."
    for seed in range(3):
        z, mask, known, weight = make(seed, H=16, W=16, dtype=torch.float32)
        z = (z[:, :loss.out_chans(5)].clamp(-1, 1)*scale).to(dtype).contiguous().requires_grad_()
        for w in (None, weight, weight*0):
            value = loss(z, mask, known, w)
            value.backward()
            assert value.isfinite() and z.grad.isfinite().all()
        z.grad = None
        loss(z, mask, known, weight*0).backward()
        if type(loss) is not DiceLoss: assert (z.grad == 0).all()


def test_sure_of_the_impossible():
    "A known-absent class at overwhelming probability is pushed down with full strength, though the allowed probability underflows."
    z = torch.tensor([0., 200., 1.]).view(1, 3, 1, 1).requires_grad_()
    value = MarginalSoftmaxLoss(w_dice=0)(z, torch.zeros(1, 1, 1, dtype=torch.long), torch.tensor([[True, False]]))
    value.backward()
    assert 198 < value < 200.1 and abs(z.grad[0, 1, 0, 0] - 1) < 1e-6 and (z.grad[0, [0, 2], 0, 0] <= 0).all()


@pytest.mark.parametrize("pixel_known", [False, True])
@pytest.mark.parametrize("reduction", ["image", "batch"])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_unknown_gets_no_gradient(pixel_known, reduction, per_pixel):
    for seed in range(5):
        z, mask, known, _ = make(seed, H=16, W=16, per_pixel=per_pixel, dtype=torch.float32)
        z = z[:, :5].contiguous().requires_grad_()
        MaskedSigmoidLoss(reduction=reduction, pixel_known=pixel_known)(z, mask, known).backward()
        k = plain_known(known, mask, pixel_known)
        assert (z.grad[~k] == 0).all() and (z.grad[k] != 0).all()


@pytest.mark.parametrize("loss", ALL[:4], ids=ids)
def test_nothing_known_and_unlabelled_images(loss):
    z, mask, known, _ = make(6, dtype=torch.float32)
    z = z[:, :loss.out_chans(5)].contiguous().requires_grad_()
    value = loss(z, mask*0, known & False)
    value.backward()
    assert value == 0 and (z.grad == 0).all()
    torch.testing.assert_close(loss(z, mask, known), loss(z[:-1], mask[:-1], known[:-1]))  # the last image is unlabelled


def test_shapes_are_checked():
    z, mask, known, weight = make(0)
    for bad in ((z, mask[:, 1:], known), (z, mask, known[:, 1:]), (z[:, :5], mask, known), (z, mask, known[..., None, None])):
        with pytest.raises(ValueError, match="expected"): MarginalSoftmaxLoss()(*bad)
    with pytest.raises(ValueError, match="one weight a pixel"): MarginalSoftmaxLoss()(z, mask, known, weight.expand(-1, 5, -1, -1))


def test_out_chans_and_probabilities():
    for loss in ALL:
        z = torch.randn(2, loss.out_chans(5), 4, 4, dtype=torch.float16)
        p = loss.probabilities(z)
        assert p.shape == (2, 5, 4, 4) and p.dtype == torch.float32 and (p > 0).all() and (p < 1).all()
        head = torch.nn.Conv2d(3, loss.out_chans(5), 1)
        before = head.bias.clone()
        loss.init_head(head, 5)
        assert torch.equal(before, head.bias) == (loss.activation == "softmax")


def test_consistency():
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 4, 6, 6, generator=g).requires_grad_(), torch.randn(2, 4, 6, 6, generator=g).requires_grad_()
    sure = torch.rand(2, 6, 6, generator=g) < .5
    for kind, activation, student in (("l2", "softmax", s.softmax(1)), ("ce", "softmax", s), ("ce", "sigmoid", s)):
        value = consistency_loss(student, t.softmax(1), sure, kind, activation)
        s.grad = None
        value.backward(retain_graph=True)
        assert t.grad is None and (s.grad.permute(0, 2, 3, 1)[~sure] == 0).all() and (s.grad.permute(0, 2, 3, 1)[sure] != 0).any()
        torch.testing.assert_close(value, consistency_loss(student, t.softmax(1), sure[:, None].float(), kind, activation))
    hard = F.one_hot(t.argmax(1), 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(consistency_loss(s, hard, kind="ce"), F.cross_entropy(s, t.argmax(1)))
    with pytest.raises(ValueError, match="l2"): consistency_loss(s, t, kind="l1")


def test_names():
    assert type(create_loss("masked", reduction="image")) is MaskedSigmoidLoss
    for name, kw, tell in (("maskd", {}, "did you mean masked"), ("masked", {"w_dic": 1}, "did you mean w_dice"),
                           ("masked", {"reduction": "images"}, "image")):
        with pytest.raises(ValueError, match=tell): create_loss(name, **kw)
