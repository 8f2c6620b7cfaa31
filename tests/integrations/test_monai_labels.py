"Labels in MONAI's forms, held against plain formulas; MONAI itself is not needed."
import importlib
import sys

import pytest
import torch
from helpers.loss_cases import loss_case

from ctseg.core.errors import InputError
from ctseg.integrations.monai_labels import (
    BackgroundMarginalLoss,
    background_as_class,
    label_form,
    labels_from_onehot,
    loss_behind,
    read_truth,
)
from ctseg.losses.partial import PlainMaskedSigmoidLoss

SPACES = [(24,), (4, 6), (3, 4, 6)]


def onehot(mask, K):
    return torch.stack([mask == c for c in range(K)], 1)


@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("space", SPACES[1:], ids=str)
def test_background_as_a_class_is_unknown_where_anything_is(space, per_pixel):
    "Pixel by pixel: present where all was examined and nothing found, absent where a class is labelled."
    _, mask, known, _ = loss_case(1, C=2, B=6, space=space, per_pixel=per_pixel)
    known[0] = True
    mask[:, ..., 0] = 255
    shifted, flags = background_as_class(mask, known)
    cells = known if known.ndim > 2 else known.reshape(*known.shape, *[1]*len(space))
    cells = cells.expand(*known.shape[:2], *space)
    shifted_cells = flags if flags.ndim > 2 else flags.reshape(*flags.shape, *[1]*len(space))
    for b, *at in torch.cartesian_prod(*[torch.arange(n) for n in mask.shape]).tolist():
        pixel = (b, *at)
        all_known = bool(cells[(b, slice(None), *at)].all())
        expected = 255 if mask[pixel] == 255 else mask[pixel] + 1 if mask[pixel] > 0 else int(all_known)
        assert shifted[pixel] == expected
        assert bool(shifted_cells.expand(-1, -1, *space)[(b, 0, *at)]) == all_known


def test_unknown_background_gets_no_gradient():
    z, mask, known, _ = loss_case(2, C=4)
    known[0] = True
    z.requires_grad_()
    labels, flags = background_as_class(mask, known)
    gradient, = torch.autograd.grad(PlainMaskedSigmoidLoss()(z, labels, flags), z)
    certain = (mask > 0) | known.all(1)[:, None, None]
    assert (gradient[:, 0][~certain] == 0).all() and (gradient[:, 0][certain] != 0).all() and (~certain).any()


@pytest.mark.parametrize("reduction", ["batch", "image"])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_dice_of_background_by_its_formula(space, reduction):
    "Sums over the images on which everything is known, and nothing else of background."
    z, mask, known, _ = loss_case(3, B=4, C=3, space=space)
    known[:2] = True
    p, y = z.softmax(1), onehot(mask, 4).double()
    w = torch.cat([known.all(1, keepdim=True), known], 1)
    w = w.reshape(*w.shape, *[1]*len(space)).expand_as(p).clone()
    w[:, 1:] |= (mask > 0)[:, None]  # a labelled pixel is no other class
    totals = [(v*w).flatten(2).sum(2) for v in (p, p*y, y)]
    if reduction == "batch": totals = [t.sum(0) for t in totals]
    predicted, overlap, true = totals
    dice = (1 - 2*overlap/(predicted + true + 1e-5))[true > 0].mean()
    loss = BackgroundMarginalLoss(w_ce=0, reduction=reduction)
    torch.testing.assert_close(loss(z, mask, known), dice)


@pytest.mark.parametrize("softmax", [True, False])
def test_numbers_and_masks_say_the_same(softmax):
    z, mask, known, _ = loss_case(4)
    forms = [label_form(not softmax, to_onehot, not softmax, softmax) for to_onehot in (True, False)]
    known[:] = True
    targets = [mask[:, None].float(), onehot(mask, 6).float()]
    values = []
    for form, target in zip(forms, targets):
        truth, flags = read_truth(form, z, target, known)
        if not softmax and truth.ndim == z.ndim:  # a mask for each channel: background is one of the classes
            flags = torch.ones(3, 6, dtype=torch.bool)
        values.append(loss_behind(form, 1., 1., {})(form.logits(z), truth, flags))
    torch.testing.assert_close(*values)


def test_ignored_pixels_of_onehot_masks():
    "255 in any channel; a pixel in no mask has no label."
    masks = torch.tensor([[[1, 0, 255, 0]], [[0, 1, 0, 0]]]).movedim(0, 1)
    assert labels_from_onehot(masks).tolist() == [[0, 1, 255, 0]]


@pytest.mark.parametrize("form, shape, tell", [
    ((True, False, False, True), (2, 1, 4, 4), "need to_onehot_y=True"),
    ((True, False, True, False), (2, 2, 4, 4), "a mask for each of 3 channels"),
    ((True, True, False, True), (2, 3, 4, 4), "leave out to_onehot_y"),
    ((True, True, False, True), (2,), "leave out to_onehot_y"),
    ((True, False, False, True), (), "a mask for each"),
], ids=str)
def test_the_other_form_is_told(form, shape, tell):
    with pytest.raises(InputError, match=tell):
        read_truth(label_form(*form), torch.zeros(2, 3, 4, 4), torch.zeros(shape), torch.ones(2, 2).bool())


@pytest.mark.parametrize("wrong", [dict(lambda_dize=1), dict(focal_gamma=2)], ids=str)
def test_options_that_a_loss_does_not_have(wrong):
    form = label_form(True, True, sigmoid=False, softmax=True)
    with pytest.raises(InputError, match="option"): loss_behind(form, 1, 1, wrong)


def test_without_monai_one_line_names_the_extra(monkeypatch):
    "As an `ImportError`, so that a user may try it."
    for name in [n for n in sys.modules if n.split(".")[0] == "monai"]: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.delitem(sys.modules, "ctseg.integrations.monai", raising=False)
    with pytest.raises(ImportError, match=r"ctseg\[monai\]") as told:
        importlib.import_module("ctseg.integrations.monai")
    assert isinstance(told.value, InputError) and "\n" not in str(told.value)
