"""Classes made of others, by hand: on a slice where "lungs" was examined the losses ask the lungs together,
and nothing tells them apart."""
from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.augmentations import AugmentSettings, make_augment
from ctseg.data.batches import Batch, SliceData
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.data.slices import SliceSet
from ctseg.data.strong_views import cutmix
from ctseg.inference.calibration import known_nll
from ctseg.inference.rule import Rule, decide
from ctseg.losses.fused import MarginalSoftmaxLoss, MaskedSigmoidLoss
from ctseg.losses.partial import (
    PlainCrossEntropyDiceLoss,
    PlainDiceLoss,
    PlainMarginalSoftmaxLoss,
    PlainMaskedSigmoidLoss,
)
from ctseg.methods.pseudo import PseudoLabels, accept_cells, complete, not_asked
from ctseg.methods.unimatch import complete_batch
from ctseg.methods.unknown import unknown_cells
from ctseg.metrics.challenge import dice_table, per_class
from ctseg.metrics.evaluate import evaluate_files
from ctseg.models.presence import presence_loss
from ctseg.runs.split import unexamined_as_absent

LUNGS = ((3, (1, 2)),)  # of left 1, right 2, lungs 3, heart 4
NAMES = ["lung_left", "lung_right", "lungs", "heart"]
CLASSES = ClassMap.from_names(NAMES, {"lungs": ["lung_left", "lung_right"]})
EXAMINED = torch.tensor([[False, False, True, True]])  # somebody looked for lungs and hearts
PIXELS = torch.tensor([[[3, 0, 4]]])  # lungs, nothing, heart


def with_unions(loss, unions=LUNGS):
    loss.unions = unions
    return loss


def logits_of(loss, seed=0, space=(1, 3), B=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, loss.out_chans(4), *space, generator=g, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("cls", [MarginalSoftmaxLoss, PlainMarginalSoftmaxLoss])
def test_softmax_by_hand(cls):
    loss = with_unions(cls(eps=1e-9))
    z = logits_of(loss)
    value = loss(z, PIXELS, EXAMINED)
    # no union is an answer: background, left, right, -, heart
    p = z.detach()[0, :, 0].index_fill(0, torch.tensor(3), -torch.inf).softmax(0)
    lungs = p[1] + p[2]
    entropy = -(log(lungs[0]) + log(p[0, 1]) + log(p[4, 2]))/3
    dice_lungs = 1 - 2*lungs[0]/(lungs.sum() + 1)  # over all three pixels, where the lungs are known
    dice_heart = 1 - 2*p[4, 2]/(p[4].sum() + 1)
    assert value.item() == pytest.approx((entropy + (dice_lungs + dice_heart)/2).item(), rel=1e-7)


@pytest.mark.parametrize("cls", [MaskedSigmoidLoss, PlainMaskedSigmoidLoss])
def test_sigmoid_by_hand(cls):
    "The lungs are the noisy-or of both: present unless both are absent, and where they are absent both are."
    loss = with_unions(cls(eps=1e-9))
    z = logits_of(loss)
    value = loss(z, PIXELS, EXAMINED)
    p = z.detach()[0, :, 0].sigmoid()
    lungs = 1 - (1 - p[0])*(1 - p[1])
    entropy = -(
        log(lungs[0])
        + log(1 - lungs[1])
        + log(1 - p[3, 0])
        + log(1 - p[3, 1])
        + log(p[3, 2])
        + log(1 - lungs[2])
    )
    dice_lungs = 1 - 2*lungs[0]/(lungs.sum() + 1)
    dice_heart = 1 - 2*p[3, 2]/(p[3].sum() + 1)
    assert value.item() == pytest.approx((.5*entropy/6 + (dice_lungs + dice_heart)/2).item(), rel=1e-7)


@pytest.mark.parametrize("options", [{}, {"reduction": "image"}, {"pixel_known": False}, {"log_dice": True}], ids=str)
@pytest.mark.parametrize("fused, "
                         "plain", [(MaskedSigmoidLoss, PlainMaskedSigmoidLoss), (MarginalSoftmaxLoss, PlainMarginalSoftmaxLoss)])
def test_nothing_tells_members_apart(fused, plain, options):
    """Equal members get equal gradients; moving probability from one to the other changes nothing; the
    union's own channel gets none."""
    loss = with_unions(fused(**options))
    z = logits_of(loss, 1, space=(2, 4, 5), B=2)
    g = torch.Generator().manual_seed(2)
    mask = torch.tensor([0, 3, 4])[torch.randint(0, 3, (2, 2, 4, 5), generator=g)]
    known = EXAMINED.expand(2, -1)
    value = loss(z, mask, known)
    gradient, = torch.autograd.grad(value, z)
    expected = with_unions(plain(**options))(z, mask, known)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, z)[0])
    assert (gradient[:, -2] == 0).all() and (gradient[:, -4:-2] != 0).any()
    at_lungs = (mask == 3)[:, None]
    left, right = (gradient[:, c][mask == 3] for c in (-4, -3))
    if loss.activation == "softmax":  # dz = (1/p, -1/p') keeps the sum, and so the loss
        p = loss.probabilities(z)
        torch.testing.assert_close(left/p[:, 0][mask == 3], right/p[:, 1][mask == 3])
    else:  # dz = (1/p, -1/p') keeps (1 - p)(1 - p')
        p = z.sigmoid()
        torch.testing.assert_close(left/p[:, 0][mask == 3], right/p[:, 1][mask == 3])
    even = z.detach().clone()
    even[:, -3] = even[:, -4]
    gradient, = torch.autograd.grad(loss(even.requires_grad_(), mask, known), even)
    torch.testing.assert_close(gradient[:, -3], gradient[:, -4])
    assert at_lungs.any()


@pytest.mark.parametrize("loss", [MaskedSigmoidLoss(), MarginalSoftmaxLoss(), PlainMaskedSigmoidLoss(), PlainMarginalSoftmaxLoss()], ids=lambda x: type(x).__name__)
def test_elsewhere_the_members_are_learnt(loss):
    "Where only the members were examined the union says nothing: values and gradients are those without it."
    z = logits_of(loss, 3)
    mask, known = torch.tensor([[[1, 2, 0]]]), torch.tensor([[True, True, False, True]])
    apart = [c for c in range(z.shape[1]) if c != z.shape[1] - 2]
    small = z.detach()[:, apart].requires_grad_()
    expected = type(loss)()(small, mask, known[:, [0, 1, 3]])
    value = with_unions(loss)(z, mask, known)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, z)[0][:, apart], torch.autograd.grad(expected, small)[0]
    )
    # and saying that no more lung is there changes nothing either
    everything = torch.tensor([[True, True, True, True]])
    torch.testing.assert_close(loss(z, mask, everything), expected)


@pytest.mark.parametrize("cls", [MaskedSigmoidLoss, MarginalSoftmaxLoss])
def test_the_rest_of_a_union(cls):
    "Where the left lung was examined too, the rest of the lungs is the right one; smaller unions come first."
    loss = with_unions(cls(w_dice=0))
    z = logits_of(loss, 4)
    rest, named = torch.tensor([[[3, 0, 1]]]), torch.tensor([[[2, 0, 1]]])
    torch.testing.assert_close(loss(z, rest, torch.tensor([[True, False, True, True]])).detach(),
                               loss(z, named, torch.tensor([[True, True, False, True]])).detach())
    # lungs; chest: both lungs and the heart
    nested = with_unions(cls(w_dice=0), ((3, (1, 2)), (5, (1, 2, 4))))
    z = torch.randn(1, nested.out_chans(5), 1, 1, dtype=torch.float64, requires_grad=True)
    for label, members in ((3, (1, 2)), (5, (4,))):
        value = nested(z, torch.tensor([[[label]]]), torch.tensor([[False, False, True, False, True]]))
        gradient, = torch.autograd.grad(value, z)
        pulled = {c for c in (1, 2, 4) if gradient[0, c - (cls is MaskedSigmoidLoss), 0, 0] < 0}
        assert pulled == set(members)


def test_hopeless_logits_and_contradictions_stay_finite():
    for cls in (MaskedSigmoidLoss, MarginalSoftmaxLoss, PlainMarginalSoftmaxLoss):
        loss = with_unions(cls())
        for scale in (1., 300., 60000.):
            for known in (EXAMINED, EXAMINED | True, EXAMINED & False):
                z = (torch.randn(1, loss.out_chans(4), 1, 3)*scale).requires_grad_()
                value = loss(z, PIXELS, known)
                value.backward()
                assert value.isfinite() and z.grad.isfinite().all()
    for loss in (PlainDiceLoss(), PlainCrossEntropyDiceLoss()):
        assert with_unions(loss)(torch.randn(1, 5, 1, 3), PIXELS, EXAMINED).isfinite()
    with pytest.raises(InputError, match="mask of its own"):
        with_unions(MaskedSigmoidLoss())(torch.zeros(1, 4, 1, 3), torch.zeros(1, 4, 1, 3), EXAMINED)


def test_no_network_draws_a_union():
    for loss in (with_unions(MaskedSigmoidLoss()), with_unions(MarginalSoftmaxLoss())):
        z = torch.zeros(1, loss.out_chans(4), 2, 2)
        z[:, -2] = 50
        p = loss.probabilities(z)
        assert (p[:, 2] == 0).all() and not (decide(p, Rule(.1, rescue=.1), loss.activation) == 3).any()
    same = known_nll(torch.zeros(1, 5, 1, 3), PIXELS, EXAMINED, "softmax", LUNGS)
    assert same == pytest.approx(-(log(2/4) + log(1/4) + log(1/4))/3)


def test_presence():
    batch = Batch(torch.zeros(2, 1, 1, 3), torch.cat([PIXELS, PIXELS*0]), EXAMINED.expand(2, -1))
    logits = torch.tensor([[.3, -1., 9., 2.], [.5, .1, 9., -2.]], requires_grad=True)
    value = presence_loss(logits, batch, unions=LUNGS)
    p = logits.detach().sigmoid()
    either = 1 - (1 - p[:, 0])*(1 - p[:, 1])
    expected = -(either[0].log() + p[0, 3].log() + (1 - either[1]).log() + (1 - p[1, 3]).log())/4
    torch.testing.assert_close(value, expected)
    assert (torch.autograd.grad(value, logits)[0][:, 2] == 0).all()


def test_metrics(tmp_path):
    truth = np.array([[[3, 3, 0, 4]], [[1, 2, 2, 0]]], np.uint8)
    pred = np.array([[[1, 2, 2, 4]], [[1, 1, 2, 0]]], np.uint8)
    table = dice_table(pred, truth, 4, LUNGS)
    np.testing.assert_allclose(table[:, 2], [4/5, 1])
    np.testing.assert_allclose(table[1, :2], [2/3, 2/3])
    known = np.array([[False, False, True, True], [True, True, False, True]])
    rows = per_class(pred, truth, CLASSES, known)
    assert rows.loc["lungs", "dice"] == 4/5 and rows.invented.sum() == rows.missed.sum() == 0
    s = SliceSet(np.zeros((2, 1, 4), np.uint8), truth, known, classes=CLASSES)
    write_challenge(s, tmp_path/"d")
    write_masks(pred, s.names, tmp_path/"pred.csv")
    facts = evaluate_files(tmp_path/"d"/"y_train.csv", tmp_path/"pred.csv")["facts"]
    assert facts["dice"] == pytest.approx((2/3 + 2/3 + 4/5 + 1)/4)


def lung_slices():
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[0, 2:6, 1:7], masks[1, 2:6, 1:4], masks[1, 2:6, 4:7] = 3, 1, 2
    known = np.array([[False, False, True, False], [True, True, False, False], [False]*4])
    return SliceSet(
        np.random.default_rng(0).integers(0, 255, (3, 8, 8)).astype(np.uint8), masks, known, classes=CLASSES
    )


def test_teachers_respect_unions():
    "No teacher draws a lung outside of outlined lungs, renames their pixels, or settles a union."
    s = lung_slices()
    assert not_asked(s).tolist() == [
        [True, True, True, False],
        [True, True, True, False],
        [False, False, True, False],
    ]
    certain = np.full((3, 8, 8), 255, np.uint8)
    ones = np.ones((3, 4), np.float32)
    pseudo = PseudoLabels(np.where(s.masks == 3, 1, 2).astype(np.uint8), certain, ones, ones*0, ones, {})
    present, absent = accept_cells(pseudo, not_asked(s), quota=1, absent_peak=.5)
    assert (
        present.tolist() == [[False]*3 + [True], [False]*3 + [True], [True, True, False, True]]
        and not absent[:, 2].any()
    )
    done, _ = complete(s, pseudo, present, absent)
    np.testing.assert_array_equal(done.masks[:2], s.masks[:2])
    assert done.masks[2].any()
    batch = SliceData(s).batch(range(3))
    for activation, p in (("sigmoid", [.99, .01, 0, .001]), ("softmax", [.97, .01, 0, .0005])):
        prob = torch.tensor(p).view(1, 4, 1, 1).expand(3, -1, 8, 8)
        done = complete_batch(batch, prob, .9, activation, unions=LUNGS)
        assert torch.equal(done.mask[:2], batch.mask[:2]) and (done.mask[2] == 1).all()
        assert not done.known[0, :2][:, batch.mask[0] == 3].any()  # which lung stays open
        assert not done.known[1:, 2].any() and done.known[0, 2].all()
        before, after = (
            MarginalSoftmaxLoss() if activation == "softmax" else MaskedSigmoidLoss() for _ in range(2)
        )
        z = torch.randn(1, before.out_chans(4), 8, 8)
        # what the teacher added on the first slice: no heart
        heart = torch.tensor([[False, False, True, True]])
        settled = with_unions(after)(z, done.mask[:1], done.known[:1]), with_unions(before)(
            z, batch.mask[:1], heart
        )
        torch.testing.assert_close(*settled)
    where = unknown_cells(batch.mask, batch.known, LUNGS)
    assert where[0].any((1, 2)).tolist() == [False, False, False, True] and where[2].all((1, 2)).tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_cutmix_and_mirror():
    "Half a slice with lungs as a whole, half one with both: each half is learnt as it was examined."
    s = lung_slices()
    batch = SliceData(s).batch(range(2))
    box = torch.zeros(1, 8, 8, dtype=torch.bool)
    box[:, :, 4:] = True
    mixed = cutmix(batch[[0]], batch[[1]], torch.Generator(), box=box)
    for loss in (with_unions(MaskedSigmoidLoss(w_dice=0)), with_unions(MarginalSoftmaxLoss(w_dice=0))):
        z = torch.randn(1, loss.out_chans(4), 8, 8)
        halves = [
            loss(z[..., cut], batch.mask[[i]][..., cut], batch.known[[i]])
            for i, cut in ((0, slice(4)), (1, slice(4, 8)))
        ]
        counted = (
            [1., 1.]
            if loss.activation == "softmax"
            else [
                loss.batch_sums(z[..., cut], batch.mask[[i]][..., cut], batch.known[[i]]).weight.sum().item()
                for i, cut in ((0, slice(4)), (1, slice(4, 8)))
            ]
        )
        expected = sum(h*w for h, w in zip(halves, counted))/sum(counted)
        torch.testing.assert_close(loss(z, mixed.mask, mixed.known), expected)
    flipped = make_augment(AugmentSettings(name="none", mirror="horizontal"), CLASSES)
    seen = [flipped(batch, torch.Generator().manual_seed(i), CLASSES).mask for i in range(6)]
    assert all((m[0] == 3).sum() == 24 for m in seen) and {m[1, 3, 1].item() for m in seen} == {1}
    lopsided = ClassMap.from_names(NAMES, {"lungs": ["lung_left", "heart"]})
    with pytest.raises(InputError, match="lungs has no counterpart"):
        make_augment(AugmentSettings(mirror="vertical"), lopsided)


def test_unexamined_classes():
    "Nobody who examined lungs denied a left one, and nobody who examined both denied lungs."
    s = lung_slices()
    assert unexamined_as_absent(s[[0]]).known.tolist() == [[False, False, True, True]]
    assert unexamined_as_absent(s[[1]]).known.tolist() == [[True, True, False, True]]


def test_files_and_bad_input(tmp_path):
    s = lung_slices()
    write_challenge(s, tmp_path/"d")
    back = read_challenge(tmp_path/"d")
    assert back.classes == CLASSES and back.classes.unions == LUNGS
    plain = replace(s, classes=ClassMap.from_names(NAMES))
    assert back.fingerprint() != plain.fingerprint()
    with pytest.raises(InputError, match="other classes"): write_challenge(plain, tmp_path/"d", "train")
    for text, tell in (
        ('{"lungs": ["lungs", "heart"]}', "contains itself"),
        ('{"lung": ["lung_left", "heart"]}', "did you mean"),
        ('{"lungs": "lung_left"}', "lists of their members"),
        ('["lungs"]', "lists of their members"),
        ('{"lungs": ["heart"]}', "two or more"),
    ):
        (tmp_path/"d"/"unions.json").write_text(text)
        with pytest.raises(InputError, match=rf"unions.json: .*{tell}") as e: read_challenge(tmp_path/"d")
        assert "\n" not in str(e.value)
    known = np.array([[True, True, True, False]])
    with pytest.raises(InputError, match="union lungs.*all of its members were examined"):
        SliceSet(s.images[:1], s.masks[:1], known, classes=CLASSES)
