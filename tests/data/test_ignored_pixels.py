"Pixels of the value 255: no loss, metric, augmentation or teacher looks at them, and a file keeps them."
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.loss_cases import channels, loss_case

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.errors import InputError
from ctseg.core.style import class_colours, overlay
from ctseg.data.augment import STRONG
from ctseg.data.batches import Batch, SliceData, class_in_mask
from ctseg.data.challenge import check_challenge, read_challenge, write_challenge
from ctseg.data.mask_csv import read_masks, write_masks
from ctseg.data.sampling import rare_weights
from ctseg.data.slices import SliceSet
from ctseg.data.strong_views import cutmix
from ctseg.inference.calibration import known_nll, known_pairs
from ctseg.losses.fused import CrossEntropyDiceLoss, DiceLoss, MarginalSoftmaxLoss, MaskedSigmoidLoss
from ctseg.losses.partial import (
    PlainCrossEntropyDiceLoss,
    PlainDiceLoss,
    PlainMarginalSoftmaxLoss,
    PlainMaskedSigmoidLoss,
)
from ctseg.methods.mean_teacher import disagreement
from ctseg.methods.pseudo import PseudoLabels, complete, keep_images
from ctseg.methods.unimatch import complete_batch
from ctseg.methods.unknown import unknown_cells
from ctseg.metrics.challenge import dice_table, per_class
from ctseg.metrics.evaluate import evaluate_files
from ctseg.metrics.surface import surface_dice
from ctseg.models.presence import presence_loss
from ctseg.report.confusion import confusion

LOSSES = [
    cls(**options)
    for pair in ((MaskedSigmoidLoss, PlainMaskedSigmoidLoss), (MarginalSoftmaxLoss, PlainMarginalSoftmaxLoss))
    for cls in pair
    for options in ({}, {"reduction": "image"}, {"pixel_known": False}, {"log_dice": True})
]
LOSSES += [DiceLoss(), PlainDiceLoss(), CrossEntropyDiceLoss(), PlainCrossEntropyDiceLoss()]


def speckled(mask, seed=0):
    "`mask` with a quarter of its pixels to be ignored, and which."
    ignored = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < .25
    return mask.masked_fill(ignored, IGNORE), ignored


def ignored_set(n=4, size=16):
    "Slices of two classes with a square to be ignored on the first two."
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 255, (n, size, size)).astype(np.uint8), np.zeros(
        (n, size, size), np.uint8
    )
    masks[:, 2:6, 2:6], masks[:, 8:12, 8:12] = 1, 2
    masks[:2, 1:4, 1:9] = IGNORE
    return SliceSet(images, masks, "all", classes=["liver", "spleen"])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_losses_do_not_hear_what_is_said_there(loss, per_pixel, weighted):
    """What a network says there changes neither value nor gradient: they are those of the weight 0, and
    exactly 0 there."""
    z, mask, known, weight = loss_case(1, per_pixel=per_pixel)
    z, (marked, ignored), weight = channels(loss, z), speckled(mask), weight if weighted else None
    value = loss(z, marked, known, weight)
    gradient, = torch.autograd.grad(value, z)
    assert (gradient.movedim(1, -1)[ignored] == 0).all()
    other = torch.where(ignored[:, None], -5*z, z).detach()
    assert torch.equal(loss(other, marked, known, weight), value)
    counts = (~ignored[:, None]).double()*(1 if weight is None else weight)
    expected = loss(z, mask, known, counts)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, z)[0])


def test_losses_where_structures_overlap():
    "A mask of each class has its own pixels to be ignored."
    z, masks = torch.randn(1, 2, 4, 4, requires_grad=True), torch.zeros(1, 2, 4, 4, dtype=torch.long)
    masks[0, 1, 0] = IGNORE
    for loss in (MaskedSigmoidLoss(), PlainMaskedSigmoidLoss()):
        gradient, = torch.autograd.grad(loss(z, masks, torch.ones(1, 2, dtype=torch.bool)), z)
        assert (
            (gradient[0, 1, 0] == 0).all() and (gradient[0, 0] != 0).all() and (gradient[0, 1, 1:] != 0).all()
        )


def test_presence_and_calibration():
    mask = torch.tensor([[[1, IGNORE]], [[1, 0]]])
    batch = Batch(torch.zeros(2, 1, 1, 2), mask, torch.ones(2, 2, dtype=torch.bool))
    logits = torch.randn(2, 2, requires_grad=True)
    gradient, = torch.autograd.grad(presence_loss(logits, batch), logits)
    # the second class may hide in the ignored pixel
    assert (gradient != 0).tolist() == [[True, False], [True, True]]
    assert known_pairs(mask[:, None, 0], batch.known)[:, :, 0].all(1).tolist() == [
        [True, False],
        [True, True],
    ]
    z = torch.randn(2, 3, 1, 2)
    other = z.clone()
    other[0, :, 0, 1] = 9
    assert known_nll(z, mask, batch.known, "softmax") == known_nll(other, mask, batch.known, "softmax")


def test_metrics_do_not_count_them():
    truth = np.array([[[1, 1, IGNORE, 0, 0, 2]]], np.uint8)
    wild, tame = np.array([[[1, 0, 2, 0, 0, 2]]], np.uint8), np.array([[[1, 0, 0, 0, 0, 2]]], np.uint8)
    for scores in (dice_table, surface_dice):
        np.testing.assert_array_equal(scores(wild, truth, 2), scores(tame, truth, 2))
    np.testing.assert_array_equal(dice_table(wild, truth, 2), [[2/3, 1]])
    only_there = np.array([[[0, 0, 2, 0, 0, 0]]], np.uint8)
    rows = per_class(
        only_there, np.array([[[1, 1, IGNORE, 0, 0, 0]]], np.uint8), ClassMap.from_names(["a", "b"])
    )
    assert rows.invented.tolist() == [0, 0]
    np.testing.assert_array_equal(confusion(wild, truth, 2), [[.5, .5, 0], [0, 0, 1]])
    # an outline does not begin where nothing is said
    line = np.array([[[1]*5 + [IGNORE] + [0]*4]], np.uint8).repeat(10, 1)
    assert surface_dice(np.where(line == 1, 1, 0).astype(np.uint8), line, 1, 0.) == 1
    with pytest.raises(InputError, match="predicted masks hold"): dice_table(truth, truth, 2)


def test_augmentations_carry_it_along():
    s = ignored_set()
    batch = SliceData(s).batch(range(4))
    for mirror in ("vertical", "horizontal"):
        seen = STRONG.with_mirror(mirror)(batch, torch.Generator().manual_seed(0), s.classes)
        assert (seen.mask == IGNORE).flatten(1).any(1).tolist() == [True, True, False, False]
        assert set(seen.mask.unique().tolist()) == {0, 1, 2, IGNORE} and seen.known.all()
    box = torch.zeros(4, 16, 16, dtype=torch.bool)
    box[:, :9, :9] = True
    mixed = cutmix(batch[[2, 3, 0, 1]], batch, torch.Generator(), box=box)
    assert (mixed.mask == IGNORE).flatten(1).sum(1).tolist() == [24, 24, 0, 0]
    assert class_in_mask(batch.mask, 2).all()
    smaller = SliceData(s, image_size=8).batch(range(4))
    assert (smaller.mask == IGNORE).any() and smaller.known.all()


def test_teachers_leave_it_alone():
    s, C = ignored_set(), 2
    s = replace(s, known=np.ones((4, 2), bool) & (s.present | False))
    pseudo = PseudoLabels(
        np.full(s.masks.shape, 2, np.uint8),
        np.full(s.masks.shape, 255, np.uint8),
        *(np.ones((4, C), np.float32) for _ in range(3)),
        scores={"sdc": np.arange(4.)}
    )
    completed, teaches = complete(s, pseudo, np.array([[False, True]]*4), np.zeros((4, C), bool))
    kept = keep_images(pseudo, s, 4)
    for after in (completed, kept): np.testing.assert_array_equal(after.masks == IGNORE, s.masks == IGNORE)
    assert kept.masks.dtype == np.uint8 and (kept.masks[s.masks != IGNORE] == 2).all()
    batch, prob = SliceData(s).batch(range(4)), torch.full((4, C, 16, 16), .99)
    ignored = batch.mask == IGNORE
    for activation in ("sigmoid", "softmax"):
        done = complete_batch(
            replace(batch, known=batch.known & False),
            prob/2 if activation == "softmax" else prob,
            .9,
            activation,
        )
        assert torch.equal(done.mask == IGNORE, ignored)
        where = unknown_cells(batch.mask, batch.known & False)
        student = torch.rand(4, C, 16, 16, requires_grad=True)
        student_gradient, = torch.autograd.grad(disagreement(student/2, prob/2, where, activation), student)
        assert (student_gradient.movedim(1, -1)[ignored] == 0).all()


def test_files_keep_them(tmp_path):
    s = ignored_set()
    for split in ("train", "test"): write_challenge(s, tmp_path/"d", split)
    for split in ("train", "test"):
        np.testing.assert_array_equal(read_challenge(tmp_path/"d", split).masks, s.masks)
    assert check_challenge(tmp_path/"d")["train"]["slices_with_ignored_pixels"] == 2
    assert read_challenge(tmp_path/"d").ignored.tolist() == [True, True, False, False]
    pred = np.where(s.masks == IGNORE, 1, s.masks).astype(np.uint8)
    write_masks(pred, s.names, tmp_path/"pred.csv")
    assert evaluate_files(tmp_path/"d"/"y_test.csv", tmp_path/"pred.csv")["facts"]["dice"] == 1
    with pytest.raises(InputError, match="value 255"):
        evaluate_files(tmp_path/"d"/"y_test.csv", tmp_path/"d"/"y_test.csv")
    with pytest.raises(InputError, match="value 255"):
        (
            read_masks(tmp_path/"pred.csv", classes=1)
            if pred.max() < 2
            else read_masks(tmp_path/"d"/"y_test.csv", classes=2)
        )


def test_class_numbers():
    "255 is no class: nobody has so many, and no mask says it of a pixel."
    with pytest.raises(InputError, match="255 classes; expected 1 to 254.*ignored"):
        ClassMap.from_names(map(str, range(255)))
    classes = ClassMap.from_names(map(str, range(254)))
    s = SliceSet(*[np.full((1, 1, 2), 255, np.uint8)]*2, "all", classes=classes)
    assert not s.present.any() and s.ignored.all() and (rare_weights(s) == 1).all()
    with pytest.raises(InputError, match="show no class"): SliceSet(s.images, s.masks, "present")
    with pytest.raises(InputError, match="holds 254"):
        SliceSet(s.images, np.full((1, 1, 2), 254, np.uint8), "all", classes=["a"])


def test_pictures_show_them_in_white():
    s = ignored_set()
    picture = overlay(s.images[0]*0, s.masks[0], s.classes, opacity=1)
    assert (picture[s.masks[0] == IGNORE] == 255).all() and not (picture[s.masks[0] == 0]).any()
    assert list(class_colours(s.classes, s.masks)) == ["liver", "spleen", "ignored"]
