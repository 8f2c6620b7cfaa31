"Strong views of nnU-Net's batches, in two and three dimensions."
import pytest
import torch

from ctseg.integrations.nnunet_views import blurred, random_patch_boxes, ruined, strong_view

SPACES = [(24, 20), (6, 16, 20)]


def seeded(seed=0): return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("space", SPACES)
def test_channels_are_ruined_each_in_its_own_way(space):
    image = torch.randn(1, 1, *space, generator=seeded()).expand(2, 3, *space)
    view = ruined(image, seeded(1))
    assert view.shape == image.shape and view.isfinite().all()
    rows = view.flatten(0, 1)
    assert all((rows[i] != rows[j]).any() for i in range(6) for j in range(i))
    assert torch.equal(view, ruined(image, seeded(1)))


@pytest.mark.parametrize("space", SPACES)
def test_the_geometry_stays(space):
    image = torch.zeros(8, 1, *space)
    image[..., space[-1]//2:] = 2
    view = ruined(image, seeded())
    means = view[:, 0].flatten(1, -2).mean(1)
    assert (means[:, -4:].mean(1) > means[:, :4].mean(1)).all()


@pytest.mark.parametrize("value", [0., -3.])
def test_a_patch_of_one_value(value):
    assert ruined(torch.full((2, 1, 8, 8), value), seeded()).isfinite().all()


@pytest.mark.parametrize("space", SPACES)
def test_blur_against_a_plain_sum(space):
    image, sigma = torch.randn(2, 1, *space, generator=seeded()), 0.8
    weights = torch.exp(-torch.arange(-4., 5)**2/(2*sigma**2))
    expected = image
    for axis in range(2, image.ndim):
        size = image.shape[axis]
        rows = [(torch.arange(size) + k).clamp(0, size - 1) for k in range(-4, 5)]
        expected = sum(w*expected.index_select(axis, i) for w, i in zip(weights/weights.sum(), rows))
    ones = [1]*len(space)
    assert torch.allclose(blurred(image, torch.full((2, 1, *ones), sigma)), expected, atol=1e-5)


def test_boxes_are_whole():
    boxes = random_patch_boxes(torch.zeros(50, 1, 12, 30), (0.1, 0.3), seeded())[:, 0]
    for box in boxes:
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns) and box.any()


@pytest.mark.parametrize("space", SPACES)
def test_what_is_pasted_brings_its_labels_and_what_is_known(space):
    "The second image channel is a cascade's: it is not ruined, and tells where each voxel comes from."
    half = tuple(size//2 for size in space)
    names = torch.arange(1., 5).view(4, 1, *[1]*len(space))
    targets = [names.expand(4, 3, *size).to(torch.int16) for size in (space, half)]
    batch = {"data": names.expand(4, 2, *space), "target": targets, "keys": list("abcd")}
    view = strong_view(batch, 1, 1., seeded(3))
    source = view["data"][:, 1]
    assert all(torch.equal(view["target"][0][:, c], source.to(torch.int16)) for c in range(3))
    assert len(source[0].unique()) <= 2 and sum(len(s.unique()) for s in source) > 4
    assert view["target"][1].shape == targets[1].shape
    one = strong_view(batch | {"target": targets[0]}, 1, 1., seeded(3))
    assert torch.equal(one["target"], view["target"][0])
    alone = strong_view(batch, 1, 0., seeded(3))
    assert torch.equal(alone["target"][0], targets[0]) and torch.equal(alone["data"][:, 1], batch["data"][:, 1])
