"The definitions against the same sums in words: a loop over images, classes and pixels."
import itertools
import math

import pytest
import torch
from helpers.loss_cases import certain, channels, loss_case
from torch.nn import functional as F

from ctseg.core.errors import InputError
from ctseg.losses.registry import create_loss
from ctseg.losses.partial import (
    PlainCrossEntropyDiceLoss,
    PlainDiceLoss,
    PlainMarginalSoftmaxLoss,
    PlainMaskedSigmoidLoss,
    SoftmaxLoss,
    dice_loss,
)

PIXELS = list(itertools.product(range(4), range(6)))


def literal_dice(p, y, w, reduction, eps, log=False, every=False):
    """p, y, w: [image][class][pixel] numbers; the mean over cells, or classes, with a true pixel, or over
    every one."""
    images, classes = range(len(p)), range(len(p[0]))
    groups = (
        [[(b, c)] for b in images for c in classes]
        if reduction == "image"
        else [[(b, c) for b in images] for c in classes]
    )
    losses = []
    for group in groups:
        items = [(p[b][c][i], y[b][c][i], w[b][c][i]) for b, c in group for i in range(len(p[0][0]))]
        overlap, predicted, true = (
            sum(f(*t) for t in items)
            for f in (lambda p, y, w: p*y*w, lambda p, y, w: p*w, lambda p, y, w: y*w)
        )
        if true == 0 and not every: continue
        losses.append(
            -math.log((2*overlap + eps)/(predicted + true + eps))
            if log
            else 1 - 2*overlap/(predicted + true + eps)
        )
    return sum(losses)/len(losses) if losses else 0.


def tables(z, mask, known, weight, pixel_known):
    "Truth and weight of each class, [image][class][pixel]."
    k = certain(known, mask, pixel_known)
    C = known.shape[1]
    y = [[[float(mask[b][i] == c + 1) for i in PIXELS] for c in range(C)] for b in range(len(mask))]
    w = [
        [
            [float(k[b, c][i])*(1. if weight is None else weight[b, 0][i].item()) for i in PIXELS]
            for c in range(C)
        ]
        for b in range(len(mask))
    ]
    return y, w


def cells(t): return [[[t[b, c][i].item() for i in PIXELS] for c in range(t.shape[1])] for b in range(len(t))]


@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", [{}, {"reduction": "image"}, {"pixel_known": False}, {"focal_gamma": 2.}, {"log_dice": True}], ids=str)
def test_masked_sigmoid(options, weighted, per_pixel):
    z, mask, known, weight = loss_case(0, per_pixel=per_pixel)
    loss = PlainMaskedSigmoidLoss(**options)
    z = channels(loss, z)
    weight = weight if weighted else None
    y, w = tables(z, mask, known, weight, loss.pixel_known)
    p, entropy, counted = cells(z.sigmoid()), 0., 0.
    for b, c, i in itertools.product(range(len(p)), range(5), range(len(PIXELS))):
        right = p[b][c][i] if y[b][c][i] else 1 - p[b][c][i]
        entropy -= w[b][c][i]*math.log(right)*(1 - right)**loss.focal_gamma
        counted += w[b][c][i]
    expected = .5*entropy/counted + literal_dice(p, y, w, loss.reduction, loss.eps, loss.log_dice)
    assert loss(z, mask, known, weight).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", [{}, {"reduction": "image"}, {"pixel_known": False}, {"log_dice": True}], ids=str)
def test_marginal_softmax(options, weighted, per_pixel):
    z, mask, known, weight = loss_case(1, per_pixel=per_pixel)
    loss = PlainMarginalSoftmaxLoss(**options)
    weight = weight if weighted else None
    y, w = tables(z, mask, known, weight, loss.pixel_known)
    p, k, entropy, counted = cells(z.softmax(1)), certain(known, mask, False), 0., 0.
    for b, (n, i) in itertools.product(range(len(p)), enumerate(PIXELS)):
        label, examined = int(mask[b][i]), [bool(k[b, c][i]) for c in range(5)]
        if not label and not any(examined): continue  # nothing is known of it
        allowed = [label] if label else [0] + [c + 1 for c in range(5) if not examined[c]]
        v = 1. if weight is None else weight[b, 0][i].item()
        entropy -= v*math.log(sum(p[b][c][n] for c in allowed))
        counted += v
    expected = entropy/counted + literal_dice(
        [q[1:] for q in p], y, w, loss.reduction, loss.eps, loss.log_dice
    )
    assert loss(z, mask, known, weight).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("reduction", ["batch", "image"])
def test_losses_that_do_not_read_known(reduction):
    z, mask, known, weight = loss_case(2)
    p = cells(z.softmax(1))
    ones = [[[1.]*len(PIXELS)]*6]*3
    y = [[[float(mask[b][i] == c) for i in PIXELS] for c in range(6)] for b in range(3)]
    classes = [[cell[1:] for cell in table] for table in (p, y, ones)]
    expected = F.cross_entropy(z, mask).item() + literal_dice(*classes, reduction, 1e-5)
    assert PlainCrossEntropyDiceLoss(reduction=reduction)(z, mask, known).item() == pytest.approx(
        expected, rel=1e-10
    )
    assert PlainDiceLoss()(z, mask).item() == pytest.approx(
        literal_dice(p, y, ones, "batch", 1e-6, every=True), rel=1e-10
    )
    assert torch.equal(PlainDiceLoss()(z, mask), PlainDiceLoss()(z, mask, known))


def test_dice_without_a_true_pixel_is_zero():
    predicted, overlap, true = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3), torch.zeros(2, 3)
    for reduction, log in itertools.product(("batch", "image"), (False, True)):
        value = dice_loss(predicted, overlap, true, reduction, log=log)
        assert value == 0 and not torch.autograd.grad(value, predicted)[0].any()


LOSSES = [PlainMaskedSigmoidLoss(), PlainMarginalSoftmaxLoss(), PlainDiceLoss(), PlainCrossEntropyDiceLoss()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_volumes_are_slices_beside_each_other(loss):
    "Logits [B,K,D,H,W] give what the same pixels give in one plane."
    z, mask, known, weight = loss_case(5, space=(2, 4, 3))
    z = channels(loss, z)
    flat = [t.flatten(-2) for t in (z, mask, weight)]
    torch.testing.assert_close(loss(z, mask, known, weight), loss(flat[0], flat[1], known, flat[2]))
    per_pixel = certain(known, mask, False)
    torch.testing.assert_close(loss(z, mask, per_pixel), loss(z, mask, known))


def test_shapes_are_checked():
    z, mask, known, weight = loss_case(0)
    for bad in (
        (z, mask[:, 1:], known),
        (z, mask, known[:, 1:]),
        (z[:, :5], mask, known),
        (z, mask, known[..., None, None]),
    ):
        with pytest.raises(InputError, match="expected"): PlainMarginalSoftmaxLoss()(*bad)
    with pytest.raises(InputError, match="one weight a pixel"):
        PlainMarginalSoftmaxLoss()(z, mask, known, weight.expand(-1, 5, -1, -1))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("label", [6, 254, -1])
def test_labels_are_checked(loss, label):
    z, mask, known, _ = loss_case(0)
    mask[1, 2, 3] = label
    with pytest.raises(InputError, match=rf"mask holds labels .*{label}.*, expected 0…5; .*label 255"):
        loss(channels(loss, z), mask, known)


def test_names_of_reductions():
    with pytest.raises(InputError, match="did you mean image"): PlainMaskedSigmoidLoss(reduction="images")


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_out_chans_and_probabilities(loss):
    z = torch.randn(2, loss.out_chans(5), 4, 4, dtype=torch.float16)
    p = loss.probabilities(z)
    assert p.shape == (2, 5, 4, 4) and p.dtype == torch.float32 and (p > 0).all() and (p < 1).all()
    head = torch.nn.Conv2d(3, loss.out_chans(5), 1)
    before = head.bias.clone()
    loss.init_head(head, 5)
    assert torch.equal(before, head.bias) == (loss.activation == "softmax")


def test_without_known_all_is_examined():
    z, mask, known, weight = loss_case(3)
    for w in (None, weight):
        for a, b in zip(
            SoftmaxLoss().batch_sums(z, mask, None, w),
            SoftmaxLoss().batch_sums(z, mask, torch.ones_like(known), w),
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["marginal", "masked"])
def test_known_is_true_or_false(name):
    "A share of trust would count as certainty, and NaN as well."
    loss, softmax = create_loss(name), name == "marginal"
    logits, mask, known = torch.randn(2, 3 + softmax, 8, 8), torch.randint(0, 4, (2, 8, 8)), torch.tensor([[1, 0, 1], [0, 1, 1]])
    assert torch.equal(loss(logits, mask, known.float()), loss(logits, mask, known.bool()))
    for odd in (.5, 2, float("nan")):
        with pytest.raises(InputError, match="known holds .*; how much a pixel counts is said by weight"):
            loss(logits, mask, known*odd)
    with pytest.raises(InputError, match="with pixels"): loss(logits[:0], mask[:0], known[:0])
