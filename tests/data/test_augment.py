"What views make of known."
import numpy as np
import pytest
import torch
from helpers.folders import told

from ctseg.core.anatomy import ClassMap
from ctseg.data.augment import MILD, STRONG
from ctseg.data.batches import Batch, SliceData
from ctseg.data.geometry import NearestPixel, affine_grid, warp
from ctseg.data.slices import SliceSet
from ctseg.data.strong_views import cutmix

CLASSES = ClassMap.from_names(["kidney_left", "kidney_right", "liver"])


def batch(n=4, size=24, seed=0, **fields) -> Batch:
    g = torch.Generator().manual_seed(seed)
    known = torch.rand(n, 3, generator=g) < .6
    mask = (
        torch.randint(0, 4, (n, size//4, size//4), generator=g)
        .repeat_interleave(4, 1)
        .repeat_interleave(4, 2)
    )
    mask = torch.where(
        torch.nn.functional.pad(known, (1, 0), value=True)[torch.arange(n)[:, None, None], mask], mask, 0
    )
    return Batch(
        torch.rand(n, 1, size, size, generator=g), mask, known, **{"index": torch.arange(n)} | fields
    )


@pytest.mark.parametrize("augment", [MILD, STRONG, STRONG.with_mirror("horizontal")])
def test_nothing_unknown_becomes_known(augment):
    """The columns of a class stay its own (or its partner's), and every labelled pixel stays in a class
    that is known."""
    for seed in range(5):
        b = batch(seed=seed)
        new = augment(b, torch.Generator().manual_seed(seed), CLASSES)
        swapped = b.known[:, [1, 0, 2]]
        assert (new.known & ~(b.known | swapped)).sum() == 0
        drawn = torch.nn.functional.one_hot(new.mask, 4).amax((1, 2))[:, 1:].bool()
        assert not (drawn & ~new.known).any()


def test_a_mixture_that_is_turned_knows_no_more():
    a, b = batch(seed=1), batch(seed=2)
    mixed = cutmix(a, b, torch.Generator().manual_seed(0))
    grid = affine_grid(4, (24, 24), torch.Generator().manual_seed(1), degrees=40, scale=.3)
    turned, inside = warp(mixed, grid), NearestPixel(grid).inside
    everywhere = mixed.known.flatten(2).all(2)
    outside = turned.known & ~inside[:, None]
    assert outside.any() and (outside.flatten(2).any(2) <= everywhere).all()
    told(lambda: cutmix(a, batch(size=16), torch.Generator()), "cutmix", "equal shapes")


def test_weights_and_batches_join():
    a, b = batch(seed=1), batch(seed=2, weight=torch.full((4, 1, 24, 24), .25))
    both = a.concat(b)
    assert both.weight[:4].eq(1).all() and both.weight[4:].eq(.25).all() and len(both[[0, 5]]) == 2
    mixed = cutmix(a, b, torch.Generator().manual_seed(0))
    joined = mixed.concat(a)
    assert (
        joined.known.shape == (8, 3, 24, 24)
        and (joined.known[4:] == a.known[:, :, None, None]).all()
        and a.concat(None) is a
    )


def test_a_loader_reads_slice_data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 8), np.uint8)
    data = SliceData(SliceSet(images, classes=["a"]))
    image, mask, known, i = next(iter(torch.utils.data.DataLoader(data, 2)))
    assert (
        (image[1, 0].numpy() == images[1].astype(np.float32)/255).all()
        and i.tolist() == [0, 1]
        and len(data) == 5
    )


def test_a_structure_that_a_warp_loses_is_unknown():
    mask = torch.zeros(200, 32, 32, dtype=torch.long)
    mask[:, 16, 16], mask[:, 4:12, 4:12] = 1, 2
    b = Batch(
        torch.zeros(200, 1, 32, 32), mask, torch.ones(200, 3, dtype=torch.bool), None, torch.arange(200)
    )
    new = MILD(b, torch.Generator().manual_seed(0))
    present = torch.stack([(new.mask == c).flatten(1).any(1) for c in (1, 2, 3)], 1)
    # some are lost, and those only are unknown
    assert 0 < (~present[:, 0]).sum() < 50 and torch.equal(new.known[:, 0], present[:, 0])
    assert present[:, 1].all() and new.known[:, 1:].all() and b.known.all()


def test_a_turn_brings_in_corners_as_known_as_the_rest():
    known = torch.tensor([[True, False, True]]).view(1, 3, 1, 1).repeat(4, 1, 16, 16)
    known[:, 2, 5:7] = False
    b = Batch(
        torch.ones(4, 1, 16, 16), torch.zeros(4, 16, 16, dtype=torch.long), known, None, torch.arange(4)
    )
    new = warp(b, affine_grid(4, (16, 16), torch.Generator().manual_seed(0), degrees=40, scale=0, shift=0))
    corner = new.image[:, 0] == 0
    assert (
        corner.any()
        and new.known[:, 0].all()
        and not new.known[:, 1].any()
        and not new.known[:, 2][corner].any()
    )
