"""Signals, slices and volumes, MONAI's labels with a channel, structures that overlap, and labels that are
none."""
import pytest
import torch
from helpers.loss_cases import channels, loss_case

from ctseg.core.errors import InputError
from ctseg.data.batches import Batch
from ctseg.losses.fused import CrossEntropyDiceLoss, DiceLoss, MarginalSoftmaxLoss, MaskedSigmoidLoss
from ctseg.losses.partial import (
    PlainCrossEntropyDiceLoss,
    PlainDiceLoss,
    PlainMarginalSoftmaxLoss,
    PlainMaskedSigmoidLoss,
)
from ctseg.methods.unimatch import ClassThresholds, complete_batch
from ctseg.methods.unknown import unknown_cells
from ctseg.models.base import deep_supervised

PAIRS = [
    (MaskedSigmoidLoss, PlainMaskedSigmoidLoss),
    (MarginalSoftmaxLoss, PlainMarginalSoftmaxLoss),
    (DiceLoss, PlainDiceLoss),
    (CrossEntropyDiceLoss, PlainCrossEntropyDiceLoss),
]
SPACES = [(24,), (4, 6), (3, 4, 6), (2, 2, 3, 4)]


def value_and_gradient(loss, z, *rest):
    value = loss(z, *rest)
    return value, torch.autograd.grad(value, z)[0]


@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("fused, plain", PAIRS)
def test_any_number_of_dimensions(fused, plain, space, per_pixel):
    "Values and gradients are those of the plain formulas, and those of the same pixels in one row."
    z, mask, known, weight = loss_case(2, space=space, per_pixel=per_pixel and len(space) > 1)
    z = channels(fused(), z)
    value, gradient = value_and_gradient(fused(), z, mask, known, weight)
    for loss, a, b, c, w in (
        (plain(), z, mask, known, weight),
        (fused(), z, mask[:, None].float(), known, weight),
        (
            fused(),
            z.flatten(2),
            mask.flatten(1),
            known.flatten(2) if known.ndim > 2 else known,
            weight.flatten(2),
        ),
    ):
        expected, expected_gradient = value_and_gradient(loss, a, b, c, w)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradient, expected_gradient.view_as(gradient), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("fused", [MaskedSigmoidLoss, MarginalSoftmaxLoss, CrossEntropyDiceLoss])
def test_a_volume_is_its_slices(fused):
    "With sums over the batch, one volume gives what its slices give as a batch of their own."
    z, mask, known, weight = loss_case(4, B=1, space=(3, 4, 6), unlabelled=False)
    z, loss = channels(fused(), z), fused()
    value, gradient = value_and_gradient(loss, z, mask, known, weight)
    slices = z.detach()[0].transpose(0, 1).contiguous().requires_grad_()
    expected, of_slices = value_and_gradient(
        loss, slices, mask[0], known.expand(3, -1), weight[0].transpose(0, 1)
    )
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[0], of_slices.transpose(0, 1))


def overlapping_case(seed, space=(4, 6), C=3):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2, C, *space, generator=g, dtype=torch.float64, requires_grad=True)
    return (
        z,
        torch.rand(2, C, *space, generator=g) < .4,
        torch.tensor([[True, True, False], [False, True, True]]),
    )


@pytest.mark.parametrize("options", [{}, {"reduction": "image", "focal_gamma": 2.}, {"log_dice": True}], ids=str)
@pytest.mark.parametrize("space", [(4, 6), (3, 4, 6)], ids=str)
def test_structures_that_overlap(space, options):
    """Each class is a question of its own: the mean over known classes of what each gives alone; an unknown
    one gets no gradient."""
    z, masks, known = overlapping_case(0, space)
    value, gradient = value_and_gradient(MaskedSigmoidLoss(**options), z, masks.float(), known)
    for given in (masks, masks.long(), masks.to(torch.uint8)):
        expected, expected_gradient = value_and_gradient(PlainMaskedSigmoidLoss(**options), z, given, known)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-12)
    cells = known.reshape(*known.shape, *[1]*len(space)).expand_as(gradient)
    assert (gradient[~cells] == 0).all() and (gradient[cells] != 0).all()


def test_overlap_without_overlap_is_labels():
    "Where no structures overlap and everything is known, a mask for each class says what one label map says."
    z, mask, _, weight = loss_case(3)
    z, everything = channels(MaskedSigmoidLoss(), z), torch.ones(3, 5, dtype=torch.bool)
    masks = mask[:, None] == torch.arange(1, 6).view(1, -1, 1, 1)
    value, gradient = value_and_gradient(MaskedSigmoidLoss(), z, masks, everything, weight)
    expected, expected_gradient = value_and_gradient(MaskedSigmoidLoss(), z, mask, everything, weight)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no card"))])
@pytest.mark.parametrize("fused, plain", PAIRS)
def test_what_is_no_label_is_told(fused, plain, device):
    z, mask, known, _ = (t.to(device) for t in loss_case(0, space=(2, 4, 6)))
    z = channels(fused(), z)
    for loss in (fused(), plain()):
        for wrong, tell in (
            (mask + 6, "labels 6…11, expected 0…5"),
            (mask - 1, "labels -1"),
            (mask + .5, "fractions|5.5"),
            (mask[:, None, None], "mask is"),
            (mask[..., None].expand(-1, -1, -1, -1, 5).movedim(-1, 1)*0 + 2, "expected 0…1|need sigmoid"),
        ):
            with pytest.raises(InputError, match=tell): loss(z, wrong, known)
    with pytest.raises(InputError, match="with pixels"): fused()(z[..., 0, 0, 0], mask[:, 0, 0, 0], known)


def test_completion_and_coarser_sizes_of_volumes():
    "A volume of one slice is completed, and supervised deeply, as the slice is."
    g = torch.Generator().manual_seed(0)
    prob, mask = torch.rand(2, 3, 8, 8, generator=g), torch.randint(0, 4, (2, 8, 8), generator=g)
    known = torch.tensor([[True, False, True], [False, True, False]])
    mask[
        torch.cat([torch.ones(2, 1, dtype=torch.bool), known], 1).gather(1, mask.flatten(1)).view_as(mask)
        == 0
    ] = 0
    flat, deep = Batch(prob[:, :1], mask, known), Batch(prob[:, :1, None], mask[:, None], known)
    for activation, p in (("sigmoid", prob), ("softmax", prob/4)):
        a, b = complete_batch(flat, p, .5, activation), complete_batch(deep, p[:, :, None], .5, activation)
        assert torch.equal(a.mask, b.mask[:, 0]) and torch.equal(a.known, b.known[:, :, 0])
    assert torch.equal(unknown_cells(mask, known), unknown_cells(mask[:, None], known)[:, :, 0])
    assert torch.equal(ClassThresholds(.9)(prob), ClassThresholds(.9)(prob[:, :, None]))
    logits = [torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 4, 4, 4, generator=g)]
    thick = [z[:, :, None].expand(-1, -1, depth, -1, -1) for z, depth in zip(logits, (4, 2))]
    a = deep_supervised(MarginalSoftmaxLoss(), logits, mask, known)
    b = deep_supervised(MarginalSoftmaxLoss(), thick, mask[:, None].expand(-1, 4, -1, -1), known)
    torch.testing.assert_close(a, b)
