"Partial labels through MONAI's own data sets, losses, metrics and engines."
import numpy as np
import pytest
import torch
from helpers.loss_cases import loss_case

pytest.importorskip("monai")
from monai.data import CacheDataset, DataLoader, MetaTensor, decollate_batch
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric, HausdorffDistanceMetric, MeanIoU
from monai.transforms import Compose, RandCropByPosNegLabeld, RandFlipd

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.integrations.monai import (
    KnownFromClasses,
    KnownFromClassesD,
    KnownFromClassesd,
    KnownFromClassesDict,
    PartialDiceCELoss,
    PartialMetric,
    prepare_partial_batch,
)
from ctseg.losses.registry import create_loss

NAMES = ["liver", "spleen", "kidney"]
SPACES = [(4, 6), (3, 4, 6)]


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_with_everything_known_it_is_monais(space, include_background):
    """Values and gradients, for numbers and one-hot masks; MONAI's cross-entropy is a softmax's, whatever it
    is told."""
    z, mask, _, _ = loss_case(0, B=2, C=2, space=space)
    mask[0, ..., 0], mask[0, ..., 1], mask[0, ..., 2] = 0, 1, 2
    everything, z = torch.ones(2, 2, dtype=torch.bool), z.requires_grad_()
    masks = torch.stack([mask == c for c in range(3)], 1).double()
    for keywords in dict(softmax=True), dict(sigmoid=True, lambda_ce=0):
        for to_onehot_y, target in (True, mask[:, None]), (False, masks):
            options = dict(keywords, include_background=include_background, to_onehot_y=to_onehot_y)
            # masks of sigmoids: with background they are all classes, a flag for each
            every_mask = not to_onehot_y and "sigmoid" in keywords and include_background
            known = torch.ones(2, 3, dtype=torch.bool) if every_mask else everything
            value = PartialDiceCELoss(**options)(z, target, known)
            expected = DiceCELoss(batch=True, **options)(z, target)
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
            gradients = [torch.autograd.grad(v, z)[0] for v in (value, expected)]
            torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_it_is_our_loss_where_something_is_unknown():
    "Arguments one by one, in a batch, and as tensors with metadata."
    z, mask, known, _ = loss_case(1)
    expected = create_loss("marginal")(z, mask, known)
    loss = PartialDiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    label = MetaTensor(mask[:, None].float())
    batch = {"label": label, "known": known, "image": None}
    for target in (label, known), (batch,), ({"label": label}, known):
        torch.testing.assert_close(loss(MetaTensor(z), *target), expected)
    focal = PartialDiceCELoss(sigmoid=True, lambda_ce=.5, focal_gamma=2., log_dice=True)
    masks = torch.rand(3, 6, 4, 6) < .3
    flags = torch.rand(3, 6) < .5
    ours = create_loss("masked", focal_gamma=2., log_dice=True)
    torch.testing.assert_close(focal(z, masks, flags), ours(z, masks, flags))


def test_reductions():
    z, mask, known, _ = loss_case(2)
    def value(**keywords):
        return PartialDiceCELoss(to_onehot_y=True, softmax=True, **keywords)(z, mask[:, None], known)
    alone = [
        PartialDiceCELoss(to_onehot_y=True, softmax=True)(z[i:i + 1], mask[i:i + 1, None], known[i:i + 1])
        for i in range(3)
    ]
    torch.testing.assert_close(value(reduction="none"), torch.stack(alone))
    torch.testing.assert_close(value(reduction="sum"), sum(alone))
    assert value(batch=False) != value()


def test_outputs_of_several_sizes():
    "Float labels, one output in a list, and mistakes; a structure between the rows that are kept is unknown."
    z, mask, known, _ = loss_case(3, space=(8, 8))
    loss = PartialDiceCELoss(to_onehot_y=True, sigmoid=True)
    label = mask[:, None].float()
    torch.testing.assert_close(loss([z], label, known), loss(z, label, known))
    torch.testing.assert_close(loss([z, z], label, known), loss(z, label, known))
    coarse = torch.randn(3, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    loss([z, coarse], label, known).backward()
    assert coarse.grad.abs().sum() > 0
    for outputs, target, tell in (
        ([z, coarse], label + 6, "labels"),
        ([coarse, z], label, "mask is"),
        ([z, coarse], label[..., 1:], "mask is"),
    ):
        with pytest.raises(InputError, match=tell): loss(outputs, target, known)
    with pytest.raises(InputError, match="several sizes"):
        PartialDiceCELoss(sigmoid=True)([z, coarse], (mask[:, None] > 0).expand(-1, 6, -1, -1), known)


@pytest.mark.parametrize("keywords", [
    dict(softmax=True), dict(sigmoid=True), dict(sigmoid=True, include_background=False),
], ids=str)
@pytest.mark.parametrize("change, tell", [
    (lambda z, y, k: (z, y + 6, k), "labels 6"),
    (lambda z, y, k: (z, y - 1, k), "labels -1"),
    (lambda z, y, k: (z, y + .5, k), "fractions|5.5"),
    (lambda z, y, k: (z, y[..., 1:], k), "mask is"),
    (lambda z, y, k: (z, y[:2], k), "mask is"),
    (lambda z, y, k: (z, y, k[:, 1:]), "known is"),
    (lambda z, y, k: (z, y, torch.ones(3, 6)), "known is"),
    (lambda z, y, k: (z, y, k[0]), "known is"),
    (lambda z, y, k: (z[:, :, 0, 0], y, k), "the output is|mask is|the label is"),
    (lambda z, y, k: (z, y, None), "which classes were examined"),
    (lambda z, y, k: (z, {"label": y}, None), "which classes were examined"),
    (lambda z, y, k: (z, {"known": k}, None), "no 'label'"),
])
def test_what_does_not_fit_is_told(keywords, change, tell):
    z, mask, known, _ = loss_case(4)
    with pytest.raises(InputError, match=tell) as told:
        PartialDiceCELoss(to_onehot_y=True, **keywords)(*change(z, mask[:, None].float(), known))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("wrong", [
    {},
    dict(sigmoid=True, softmax=True),
    dict(softmax=True, reduction="max"),
    dict(softmax=True, log_dize=True),
], ids=str)
def test_wrong_keywords(wrong):
    with pytest.raises(InputError): PartialDiceCELoss(**wrong)


@pytest.mark.parametrize("given, expected", [
    (["kidney", "liver"], [1, 0, 1]), ([3, 1], [1, 0, 1]), (np.array([2]), [0, 1, 0]), ("spleen", [0, 1, 0]),
    (2, [0, 1, 0]), ("all", [1, 1, 1]), ([], [0, 0, 0]), (None, [0, 0, 0]), ([True, False, True], [1, 0, 1]),
    (torch.tensor([False, True, False]), [0, 1, 0]), (("liver", 2), [1, 1, 0]), ({"liver"}, [1, 0, 0]),
], ids=str)
def test_what_was_examined(given, expected):
    for classes in NAMES, ClassMap.from_names(NAMES):
        flags = KnownFromClasses(classes)(given)
        assert flags.dtype == torch.bool and flags.tolist() == [bool(e) for e in expected]


@pytest.mark.parametrize("given", [["livr"], [0], [4], [-1], [True], [1.5], [None]], ids=str)
def test_what_is_no_class(given):
    with pytest.raises(InputError): KnownFromClasses(NAMES)(given)


def test_background_is_no_class():
    with pytest.raises(InputError, match="one name"): KnownFromClassesd(NAMES, "liver")
    with pytest.raises(InputError, match="background"): KnownFromClasses(["background", *NAMES])
    assert KnownFromClasses(4)([4]).tolist() == [False, False, False, True]


def items(n, missing=False):
    "Volumes with a cube of class 1, of which every other was examined for class 1 only."
    label = torch.zeros(1, 8, 8, 8)
    label[:, 2:6, 2:6, 2:6] = 1
    known = [["liver"], "all"]*n
    image, label = MetaTensor(torch.rand(1, 8, 8, 8)), MetaTensor(label)
    found = [{"image": image, "label": label, "known": names} for names in known[:n]]
    if missing: del found[0]["known"]
    return found


def test_known_travels_through_a_pipeline():
    "Cached, flipped, cropped into several, batched, taken apart again."
    pipeline = Compose([
        KnownFromClassesd("known", NAMES),
        RandFlipd(["image", "label"], prob=.5, spatial_axis=0),
        RandCropByPosNegLabeld(["image", "label"], "label", (4, 4, 4), num_samples=3),
    ])
    data = CacheDataset(items(4), pipeline, progress=False)
    batch = next(iter(DataLoader(data, batch_size=2)))
    assert batch["known"].tolist() == [[True, False, False]]*3 + [[True]*3]*3
    loss = PartialDiceCELoss(to_onehot_y=True, softmax=True)
    z = torch.randn(6, 4, 4, 4, 4, requires_grad=True)
    loss(z, batch).backward()
    assert z.grad.abs().sum() > 0
    single = decollate_batch(batch)
    assert [s["known"].tolist() for s in single] == batch["known"].tolist()


def test_an_item_that_does_not_say_it():
    assert KnownFromClassesD is KnownFromClassesDict is KnownFromClassesd
    with pytest.raises(InputError, match="'known'"): KnownFromClassesd("known", NAMES)(items(1, missing=True)[0])
    item = KnownFromClassesd("known", NAMES, allow_missing_keys=True)(items(1, missing=True)[0])
    assert item["known"].tolist() == [False]*3
    renamed = KnownFromClassesd("examined", NAMES)({"examined": "all"})
    assert renamed["examined"].all()


@pytest.mark.parametrize("kind, include_background", [
    (DiceMetric, True), (DiceMetric, False), (MeanIoU, True), (HausdorffDistanceMetric, False),
])
def test_metrics_leave_unknown_classes_out(kind, include_background):
    "Batches and lists; the mean is that of the known cells, over several batches."
    g = torch.Generator().manual_seed(0)
    truth, predicted = torch.randint(0, 4, (2, 5, 6, 6), generator=g)
    y, p = (torch.stack([t == c for c in range(4)], 1).float() for t in (truth, predicted))
    known = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]]).bool()
    plain = kind(include_background=include_background, reduction="mean_batch")
    scores = plain(p, y)
    cells = torch.cat([known.all(1, keepdim=True), known], 1) if include_background else known
    expected = torch.where(cells, scores, torch.nan)
    metric = PartialMetric(kind(include_background=include_background, reduction="mean_batch"))
    metric(p[:2], y[:2], known[:2])
    metric(list(p[2:]), list(y[2:]), list(known[2:]))
    torch.testing.assert_close(metric.get_buffer(), expected, equal_nan=True)
    torch.testing.assert_close(metric.aggregate(), expected.nanmean(0))
    metric.reset()
    per_pixel = known[..., None, None].expand(-1, -1, 6, 6).clone()
    per_pixel[0, 0, 0, 0] = False  # no longer known everywhere
    first = metric(p, y, per_pixel)[0]
    assert first[-3].isnan() and not first[-2:].isnan().any()
    with pytest.raises(InputError, match="score for each"): metric(p, y, known[:, include_background:][:, 1:])


def test_monais_trainer_reads_known():
    pytest.importorskip("ignite")
    from monai.engines import SupervisedTrainer
    network = torch.nn.Conv3d(1, 4, 1)
    before = network.weight.detach().clone()
    data = CacheDataset(items(4), KnownFromClassesd("known", NAMES), progress=False)
    SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=DataLoader(data, batch_size=2),
        network=network, optimizer=torch.optim.SGD(network.parameters(), .1),
        loss_function=PartialDiceCELoss(to_onehot_y=True, softmax=True), prepare_batch=prepare_partial_batch,
    ).run()
    assert (network.weight != before).any()
    lacking = {name: torch.zeros(1, 1, 4, 4, 4) for name in ("image", "label")}
    with pytest.raises(InputError, match="'known'"): prepare_partial_batch(lacking)
