"The toy world: drawn the same for ever, because figures of many pages are trained on it."
import numpy as np
import torch

from ctseg.core.toys import TOY_CLASSES, known_part, toy_slices, toy_world


def test_slices_do_not_change():
    images, masks = toy_slices(4, 64, 0)
    assert images.shape == (4, 1, 64, 64) and images.dtype == torch.float32 and masks.dtype == torch.int64
    assert masks.flatten().bincount().tolist() == [13106, 1228, 1140, 910]
    assert 0 <= images.min() and images.max() <= 1
    again, other = toy_slices(4, 64, 0)[0], toy_slices(4, 64, 1)[0]
    assert torch.equal(images, again) and not torch.equal(images, other)


def test_structures_can_be_told_apart_by_their_grey():
    images, masks = toy_slices(20)
    means = [images[:, 0][masks == c].mean().item() for c in range(1, 4)]
    assert max(means[:2]) < .25 and means[2] > .7


def test_world_is_annotated_in_part():
    world = toy_world(30, 32, seed=1, labelled=10, examined=2)
    assert len(world) == 30 and world.classes == TOY_CLASSES
    assert world.images.shape == world.truth.shape == world.masks.shape == (30, 32, 32)
    assert world.images.dtype == world.truth.dtype == world.masks.dtype == np.uint8
    assert (world.known.sum(1) == [2]*10 + [0]*20).all()
    assert (world.masks[10:] == 0).all()
    shown = world.masks > 0
    assert (world.masks[shown] == world.truth[shown]).all()
    assert world.names[3] == "3.png" and world.groups.tolist() == [i//2 for i in range(30)]


def test_options_of_the_world():
    whole = toy_world(20, examined=3, missing=0)
    assert (whole.masks == whole.truth).all() and all((whole.truth == c).any((1, 2)).all() for c in (1, 2, 3))
    assert (toy_world(5, missing=1).truth == 0).all()
    assert not toy_world(5, examined=0).known.any()
    calm, noisy = toy_world(5, noise=0), toy_world(5, noise=.2)
    assert (calm.truth == noisy.truth).all() and calm.images[0, 0].std() < noisy.images[0, 0].std()


def test_known_part_keeps_examined_classes_only():
    truth = np.array([[[0, 1], [2, 3]]]*2, np.uint8)
    known = np.array([[True, False, True], [False, False, False]])
    assert known_part(truth, known).tolist() == [[[0, 1], [0, 3]], [[0, 0], [0, 0]]]
