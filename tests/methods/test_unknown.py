"Where the truth says nothing, and the ramp of what a teacher says there."
import math

import pytest
import torch

from ctseg.methods.unknown import ramp_up, renormalised_over_unknown, unknown_cells


def test_the_ramp_is_that_of_the_paper():
    assert [ramp_up(s, 10) for s in (0, 5, 10, 99)] == pytest.approx([math.exp(-5), math.exp(-5/4), 1, 1])
    assert ramp_up(0, 0) == 1


def test_shares_are_a_distribution_over_what_is_open():
    g = torch.Generator().manual_seed(0)
    prob = torch.randn(2, 5, 6, 6, generator=g).softmax(1)[:, 1:]
    mask, known = torch.randint(0, 5, (2, 6, 6), generator=g), torch.rand(2, 4, generator=g) < .5
    where = unknown_cells(mask, known)
    for (b, c, y, x), unknown in zip(torch.cartesian_prod(*map(torch.arange, where.shape)), where.flatten()):
        assert unknown == (mask[b, y, x] == 0 and not known[b, c])
    shares, believed = renormalised_over_unknown(prob, where)
    assert torch.allclose(shares.sum(1), torch.ones(2, 6, 6)) and not shares[:, 1:][~where].any()
    background = 1 - prob.sum(1)
    mass = background + (prob*where).sum(1)
    assert torch.allclose(shares[:, 0], background/mass)
    assert torch.equal(believed, (mass >= .5) | (background >= (prob*where).amax(1)))
