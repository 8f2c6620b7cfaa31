"""The fused losses against their definitions in `ctseg.losses.partial`: values and gradients in float64,
and what must hold in half precision."""
import itertools

import pytest
import torch
from helpers.loss_cases import certain, channels, loss_case

from ctseg.losses import fused
from ctseg.losses.fused import CrossEntropyDiceLoss, DiceLoss, MarginalSoftmaxLoss, MaskedSigmoidLoss
from ctseg.losses.partial import (
    PlainCrossEntropyDiceLoss,
    PlainDiceLoss,
    PlainMarginalSoftmaxLoss,
    PlainMaskedSigmoidLoss,
)

PLAIN = {MaskedSigmoidLoss: PlainMaskedSigmoidLoss, MarginalSoftmaxLoss: PlainMarginalSoftmaxLoss,
         DiceLoss: PlainDiceLoss, CrossEntropyDiceLoss: PlainCrossEntropyDiceLoss}
REDUCTIONS = ("image", "batch")
CASES = [
    (MaskedSigmoidLoss, dict(reduction=r, pixel_known=k, focal_gamma=f))
    for r, k, f in itertools.product(REDUCTIONS, (True, False), (0., 2.))
]
CASES += [
    (MarginalSoftmaxLoss, dict(reduction=r, pixel_known=k))
    for r, k in itertools.product(REDUCTIONS, (True, False))
]
CASES += [
    (cls, dict(reduction=r, log_dice=True))
    for cls in (MaskedSigmoidLoss, MarginalSoftmaxLoss)
    for r in REDUCTIONS
]
CASES += [(CrossEntropyDiceLoss, dict(reduction=r)) for r in REDUCTIONS]
CASES += [(DiceLoss, {})]


@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("weighted", [False, True, "class"])
@pytest.mark.parametrize("cls, options", CASES)
def test_the_fused_loss_equals_the_plain_one(cls, options, weighted, per_pixel):
    if weighted == "class" and cls is not MaskedSigmoidLoss: pytest.skip("softmax takes one weight a pixel")
    loss, plain = cls(**options), PLAIN[cls](**options)
    for seed in range(4):
        z, mask, known, weight = loss_case(seed, per_pixel=per_pixel)
        z = channels(loss, z)
        if weighted == "class": weight = weight*torch.rand(3, 5, 4, 6, dtype=torch.float64)
        if not weighted: weight = None
        value, expected = loss(z, mask, known, weight), plain(z, mask, known, weight)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
        gradient, expected_gradient = (torch.autograd.grad(3*v, z)[0] for v in (value, expected))
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("cls, options", CASES)
def test_gradcheck(cls, options):
    z, mask, known, weight = loss_case(7, B=2, C=3, space=(2, 3), unlabelled=False)
    loss = cls(**options)
    assert torch.autograd.gradcheck(lambda z: loss(z, mask, known, weight), channels(loss, z))


ALL = [
    MaskedSigmoidLoss(),
    MaskedSigmoidLoss(reduction="image", focal_gamma=1.5),
    MarginalSoftmaxLoss(),
    MarginalSoftmaxLoss(reduction="image"),
    MaskedSigmoidLoss(log_dice=True),
    MarginalSoftmaxLoss(log_dice=True),
    CrossEntropyDiceLoss(),
    DiceLoss(),
]


def ids(loss): return type(loss).__name__


@pytest.mark.parametrize("loss", ALL, ids=ids)
def test_slices_do_not_matter(loss, monkeypatch):
    "The pixels in slices of seven give what all at once give."
    for per_pixel in (False, True):
        z, mask, known, weight = loss_case(3, per_pixel=per_pixel)
        z = channels(loss, z)
        whole = loss(z, mask, known, weight)
        grad, = torch.autograd.grad(whole, z)
        with monkeypatch.context() as m:
            m.setattr(fused, "pixel_slices", lambda z, whole: [slice(i, i + 7) for i in range(0, z.shape[-1], 7)])
            parts = loss(z, mask, known, weight)
            torch.testing.assert_close(parts, whole)
            torch.testing.assert_close(torch.autograd.grad(parts, z)[0], grad)


@pytest.mark.parametrize("loss", ALL, ids=ids)
def test_memory_layout_and_second_backward(loss):
    z, mask, known, weight = loss_case(4)
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
    z, mask, known, _ = loss_case(5, space=(16, 16), dtype=torch.float32)
    half = z[:, :loss.out_chans(5)].contiguous().to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16): a = loss(half, mask, known)
    b = loss(full, mask, known)
    assert a.dtype == torch.float32
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    (a*1024).backward()
    b.backward()
    torch.testing.assert_close(half.grad.float()/1024, full.grad, rtol=.02, atol=1e-5)


@pytest.mark.parametrize("loss", ALL, ids=ids)
@pytest.mark.parametrize("scale", [30., 300., 65000.])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_never_nan(loss, scale, dtype):
    "Whatever the network is sure of, also of what is excluded, and with weights of zero."
    for seed in range(3):
        z, mask, known, weight = loss_case(seed, space=(16, 16), dtype=torch.float32)
        z = (z[:, :loss.out_chans(5)].clamp(-1, 1)*scale).to(dtype).contiguous().requires_grad_()
        for w in (None, weight, weight*0):
            value = loss(z, mask, known, w)
            value.backward()
            assert value.isfinite() and z.grad.isfinite().all()
        z.grad = None
        loss(z, mask, known, weight*0).backward()
        if type(loss) is not DiceLoss: assert (z.grad == 0).all()


def test_sure_of_the_impossible():
    """A known-absent class at overwhelming probability is pushed down with full strength, though the
    allowed probability underflows."""
    z = torch.tensor([0., 200., 1.]).view(1, 3, 1, 1).requires_grad_()
    value = MarginalSoftmaxLoss(w_dice=0)(
        z, torch.zeros(1, 1, 1, dtype=torch.long), torch.tensor([[True, False]])
    )
    value.backward()
    assert 198 < value < 200.1 and abs(z.grad[0, 1, 0, 0] - 1) < 1e-6 and (z.grad[0, [0, 2], 0, 0] <= 0).all()


@pytest.mark.parametrize("pixel_known", [False, True])
@pytest.mark.parametrize("reduction", ["image", "batch"])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_unknown_gets_no_gradient(pixel_known, reduction, per_pixel):
    for seed in range(5):
        z, mask, known, _ = loss_case(seed, space=(16, 16), per_pixel=per_pixel, dtype=torch.float32)
        z = z[:, :5].contiguous().requires_grad_()
        MaskedSigmoidLoss(reduction=reduction, pixel_known=pixel_known)(z, mask, known).backward()
        k = certain(known, mask, pixel_known)
        assert (z.grad[~k] == 0).all() and (z.grad[k] != 0).all()


@pytest.mark.parametrize("loss", ALL[:4], ids=ids)
def test_nothing_known_and_unlabelled_images(loss):
    z, mask, known, _ = loss_case(6, dtype=torch.float32)
    z = channels(loss, z)
    value = loss(z, mask*0, known & False)
    value.backward()
    assert value == 0 and (z.grad == 0).all()
    # the last image is unlabelled
    torch.testing.assert_close(loss(z, mask, known), loss(z[:-1], mask[:-1], known[:-1]))
