"How sure a network is: each score against its definition, and all of them on surer and surer maps."
import numpy as np
import pytest
import torch

from ctseg.inference.confidence import IMAGE_SCORES, image_confidence, soft_dice_confidence, sum_by_class


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_by_every_score_a_surer_map_ranks_higher(activation):
    disc = torch.zeros(4, 8, 8, dtype=torch.bool)
    disc[:, 2:6, 2:6] = True
    # of the disc inside, of background outside; the rest is shared
    sure = torch.tensor([.4, .6, .8, .97]).view(4, 1, 1) + torch.zeros(4, 8, 8)
    prob = torch.stack([torch.where(disc, sure, (1 - sure)/2), (1 - sure)/2], 1)
    scores = image_confidence(prob, disc.long(), activation)
    assert set(scores) == set(IMAGE_SCORES) - {"agreement"}
    for name, s in scores.items(): assert (s.diff() > 0).all() and s.min() >= 0 and s.max() <= 1, name


def test_soft_dice_confidence_is_its_definition():
    rng = np.random.default_rng(0)
    # the fourth class is never drawn
    prob, label = torch.from_numpy(rng.random((3, 4, 6, 5))), torch.from_numpy(rng.integers(0, 4, (3, 6, 5)))
    want = torch.zeros(3, 4, dtype=torch.float64)
    for b in range(3):
        for c in range(4):
            drawn = label[b] == c + 1
            if drawn.any(): want[b, c] = 2*prob[b, c][drawn].sum()/(prob[b, c].sum() + drawn.sum())
    assert torch.allclose(soft_dice_confidence(prob, label), want)
    ones = torch.ones_like(prob[:, 0])
    assert torch.equal(
        sum_by_class(ones, label, 4),
        torch.stack([(label == c).sum((1, 2)) for c in (1, 2, 3, 4)], 1).double(),
    )
