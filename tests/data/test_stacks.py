"Who is a neighbour, what is black, and that all channels of a batch are treated alike."
import numpy as np
import pytest
import torch
from helpers.folders import random_slices, told
from helpers.toys import toy

from ctseg.core.anatomy import ClassMap
from ctseg.data.augment import MILD, STRONG, Augment
from ctseg.data.batches import Batch, SliceData
from ctseg.data.geometry import mirror
from ctseg.data.lazy import LazyPixels, ReadPixels
from ctseg.data.slices import with_context, with_stacks
from ctseg.data.stacks import Stacks, stacks_of
from ctseg.data.streamed import StreamedData
from ctseg.data.strong_views import cutmix, strong

SIDES = ClassMap.from_names(["kidney_left", "kidney_right"])


def letters(stacks) -> list[str]:
    "Each stack as letters: a for image 0, - for none."
    return ["".join("abcdefghij-"[n] for n in row) for row in stacks.rows]


@pytest.mark.parametrize("volumes, places, context, expected", [
    ([0, 0, 0], [0, 1, 2], 1, ["-ab", "abc", "bc-"]),
    ([0, 0, 0], [0, 1, 2], 2, ["--abc", "-abc-", "abc--"]),
    ([5, 2, 5, 2], [0, 0, 1, 1], 1, ["-ac", "-bd", "ac-", "bd-"]),
    ([0, 0, 0], [0, 2, 3], 1, ["-a-", "-bc", "bc-"]),
    ([0, 0, 0], [0, 2, 3], 2, ["--a-b", "a-bc-", "-bc--"]),
    ([0, 0, 0], [7, 5, 6], 1, ["ca-", "-bc", "bca"]),
    ([0, 1], [3, 4], 1, ["-a-", "-b-"]),
    ([0, 1], [0, -1], 1, ["-a-", "-b-"]),
    ([0], [0], 3, ["---a---"]),
])
def test_neighbours_have_the_volume_and_the_next_place(volumes, places, context, expected):
    images = np.zeros((len(places), 2, 2), np.uint8)
    assert letters(stacks_of(images, np.array(volumes), np.array(places), context)) == expected


def test_many_volumes_in_any_order():
    "Against a plain search."
    rng = np.random.default_rng(0)
    volumes, places = rng.integers(0, 6, 80), rng.integers(-4, 30, 80)
    pairs = np.unique(np.stack([volumes, places], 1), axis=0)
    volumes, places = rng.permutation(pairs).T
    found = stacks_of(np.zeros((len(places), 1, 1), np.uint8), volumes, places, 2)
    table = {pair: n for n, pair in enumerate(zip(volumes, places))}
    expected = [[table.get((v, p + step), -1) for step in range(-2, 3)] for v, p in zip(volumes, places)]
    assert found.rows.tolist() == expected


def test_cropped_neighbours_lie_where_the_slice_lies():
    "One volume of a bright column, cropped differently on each slice."
    corners = np.array([[0, 0], [-1, -2], [2, 1]])
    images = np.zeros((3, 6, 6), np.uint8)
    for image, (row, column) in zip(images, corners): image[3 + row, 2 + column] = 200
    seen = stacks_of(images, np.zeros(3, int), np.arange(3), 1, corners)[:]
    for n, (row, column) in enumerate(corners):
        assert [tuple(*np.argwhere(channel)) for channel in seen[n] if channel.any()] == [
            (3 + row, 2 + column)]*(3 if n == 1 else 2)


@pytest.mark.parametrize("corner", [[9, 0], [0, -9], [-6, 6]])
def test_a_neighbour_that_is_cropped_away_is_black(corner):
    images = np.full((2, 6, 6), 9, np.uint8)
    seen = stacks_of(images, np.zeros(2, int), np.arange(2), 1, np.array([[0, 0], corner]))[0]
    assert not seen[2].any() and seen[1].all()


def stacked(slices, context=1, order=None):
    "The slices as if they were one volume."
    places = np.arange(len(slices)) if order is None else order
    return with_stacks(slices, stacks_of(slices.images, np.zeros(len(slices), int), places, context))


@pytest.mark.parametrize("context", [1, 2])
def test_chosen_streamed_and_lazy_slices_show_the_same(context):
    slices = random_slices()
    whole, some = stacked(slices, context), [7, 2, 11, 2]
    lazy = LazyPixels(ReadPixels(lambda rows: slices.images[rows], slices.images.shape))
    read = with_stacks(slices, Stacks(lazy, whole.stacks.rows, whole.stacks.shifts))
    expected = np.zeros((4, 2*context + 1, 16, 16), np.uint8)
    for out, n in zip(expected, some):
        for channel, m in enumerate(range(n - context, n + context + 1)):
            if 0 <= m < len(slices): out[channel] = slices.images[m]
    for of in (whole, read):
        assert np.array_equal(of.stacks[some], expected)
        assert np.array_equal(of[some].stacks[:], expected)
        for kind in (SliceData, StreamedData):
            batch, chosen = kind(of).batch(some), kind(of[some]).batch(np.arange(4))
            assert torch.equal(batch.image, chosen.image)
            assert np.array_equal((batch.image*255).round().byte().numpy(), expected)
    small = [kind(of, image_size=9).batch(some).image for kind in (SliceData, StreamedData) for of in (whole, read)]
    assert all(torch.equal(small[0], other) for other in small) and small[0].shape[2:] == (9, 9)


def test_what_is_known_and_the_fingerprint_stay():
    slices = random_slices()
    seen = stacked(slices)
    assert seen.fingerprint() == slices.fingerprint() and seen[[3]].fingerprint() == slices[[3]].fingerprint()
    one, other = SliceData(slices).batch([0, 5]), SliceData(seen).batch([0, 5])
    assert torch.equal(one.mask, other.mask) and torch.equal(one.known, other.known)
    assert torch.equal(one.image, other.image[:, 1:2])


def test_what_nobody_looked_up_is_told():
    slices = random_slices()
    told(lambda: with_context(slices, 1), "context = 1")
    told(lambda: with_context(stacked(slices), 2), "context = 2")
    told(lambda: stacked(slices).concat(slices), "neighbours")
    told(lambda: with_stacks(slices, stacked(slices[:3]).stacks), "one for each")


def three_alike(n=6) -> Batch:
    "Slices whose neighbours look just like them."
    batch = SliceData(toy(n, n)).batch(np.arange(n))
    return Batch(batch.image.repeat(1, 3, 1, 1), batch.mask, batch.known)


def alike(image: torch.Tensor) -> bool:
    return torch.equal(image[:, 0], image[:, 1]) and torch.equal(image[:, 2], image[:, 1])


@pytest.mark.parametrize("augment", [MILD, STRONG, MILD.with_mirror("horizontal")])
def test_augmentation_is_the_same_for_all_channels(augment):
    quiet = Augment(**vars(augment) | {"noise": 0.})
    batch = three_alike()
    classes = ClassMap.from_names(["disc_left", "disc_right", "bar"])
    new = quiet(batch, torch.Generator().manual_seed(0), classes)
    assert alike(new.image) and not torch.equal(new.image, batch.image)
    single = Batch(batch.image[:, :1], batch.mask, batch.known)
    same = quiet(single, torch.Generator().manual_seed(0), classes)
    assert torch.equal(new.mask, same.mask) and torch.equal(new.known, same.known)
    assert torch.allclose(new.image[:, 1:2], same.image, atol=1e-5)


def test_strong_views_ruin_all_channels_alike_and_boxes_cut_through_all():
    batch = three_alike()
    ruined = strong(batch.image, torch.Generator().manual_seed(1), noise=0.)
    assert alike(ruined) and (ruined - batch.image).abs().amax((1, 2, 3)).min() > .1
    other = Batch(1 - batch.image, batch.mask.flip(0), batch.known.flip(0), torch.full((6, 1, 32, 32), .5))
    mixed = cutmix(batch, other, torch.Generator().manual_seed(2))
    inside = mixed.weight[:, 0] == .5
    assert alike(mixed.image) and 0 < inside.float().mean() < 1 and mixed.weight.shape == (6, 1, 32, 32)
    assert torch.equal(mixed.image[:, 0], torch.where(inside, other.image[:, 0], batch.image[:, 0]))


def test_mirrors_keep_the_order_of_the_slices():
    images = torch.rand(2, 3, 4, 4)
    batch = Batch(images, torch.zeros(2, 4, 4).long(), torch.ones(2, 2).bool())
    assert torch.equal(mirror(batch, SIDES, "horizontal").image, images.flip(-1))
    assert batch.pixel_weights().shape == (2, 1, 4, 4)
