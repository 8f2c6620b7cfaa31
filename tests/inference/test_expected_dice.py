"""Is a drawn structure there at all? The choice against all others, and the estimates against what they
were drawn from."""
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from ctseg.inference.expected_dice import ExpectedDice, fit_expected_dice, usual_dice
from ctseg.inference.rule import Rule, decide


def ratio(keep, p, d, prior=0.5): return ((keep*p*d).sum() + prior)/(p.sum() + (keep*(1 - p)).sum() + 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.02, 0.98), st.floats(0.02, 1)), min_size=1, max_size=9))
def test_no_other_choice_of_structures_has_a_higher_expected_score(cells):
    """Dinkelbach's turns against all subsets. The slice that holds the estimate scores as all together, so
    it is taken from the answer."""
    p, d = np.array(cells).T
    usual = float(usual_dice(p[:, None], d[:, None], np.ones((len(p), 1), bool))[0])
    pooled = usual*(p.sum() + ((1 - p)*(keep := p*d > (1 - p)*usual)).sum() + 1) - (keep*p*d).sum()
    best = max(
        ratio(np.array(bits), p, d, pooled) for bits in itertools.product([False, True], repeat=len(p))
    )
    assert ratio(keep, p, d, pooled) == pytest.approx(usual) == pytest.approx(best, abs=1e-9)


def test_a_structure_is_kept_if_its_odds_exceed_usual_over_stake():
    prob = torch.zeros(2, 2, 4, 4)
    prob[0, 0, :2] = 0.8
    prob[0, 1, 3, :2] = 0.6
    prob[1, 0, 0, 0] = 0.8
    label = decide(prob, Rule(), "sigmoid")
    e = ExpectedDice(bias=0.5, peak=1.0, area=0.3, usual=(0.7, 0.2))
    odds = lambda peak, pixels: np.exp(0.5 + np.log(peak/(1 - peak)) + 0.3*np.log(pixels/16))
    for n, c, peak, pixels in [(0, 0, .8, 8), (0, 1, .6, 2), (1, 0, .8, 1)]:
        stake = 2*pixels*peak/(pixels + pixels*peak)
        for usual in (0.98*odds(peak, pixels)*stake, 1.02*odds(peak, pixels)*stake):
            e = replace(e, usual=tuple(usual if k == c else 0.0 for k in (0, 1)))
            out = decide(prob, Rule(expected=e), "sigmoid")
            assert torch.equal(out[n] == c + 1, (label[n] == c + 1) & bool(usual < odds(peak, pixels)*stake))
            assert torch.equal(out == 2 - c, label == 2 - c)  # the other class stays


def test_what_is_kept_does_not_depend_on_the_size_of_the_image():
    prob = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))**6
    e = ExpectedDice(1.0, 1.0, 1.5, (0.3, 0.5, 0.7, 0.9))
    big = prob.repeat_interleave(3, 2).repeat_interleave(3, 3)
    small, large = (decide(x, Rule(expected=e), "sigmoid") for x in (prob, big))
    assert torch.equal(large, small.repeat_interleave(3, 1).repeat_interleave(3, 2)) and not torch.equal(
        small, decide(prob, Rule(), "sigmoid")
    )


def cells(n=4000, seed=0):
    "Drawn structures whose chance to be there is known: logit = 1 + 2·(logit of the peak) + 0.5·ln(share)."
    rng = np.random.default_rng(seed)
    found = np.stack([rng.normal(1, 1, (n, 2)), rng.normal(-4, 1, (n, 2)), rng.random((n, 2))])
    chance = 1/(1 + np.exp(-(1 + 2*found[0] + .5*found[1])))
    return found, rng.random((n, 2)) < chance, np.ones((n, 2), bool)


def test_the_chance_of_being_there_is_learnt_from_what_was_looked_for():
    found, present, known = cells()
    e = fit_expected_dice(found, present, known)
    assert (e.bias, e.peak, e.area) == pytest.approx((1, 2, .5), abs=0.2) and 0 < min(e.usual) <= max(
        e.usual
    ) < 1
    half = known.copy()
    half[::2] = False
    spoilt, wrong = found.copy(), present.copy()
    spoilt[:, ::2], wrong[::2] = 9, ~present[::2]
    assert fit_expected_dice(spoilt, wrong, half) == fit_expected_dice(
        found[:, 1::2], present[1::2], known[1::2]
    )
    not_drawn = found.copy()
    not_drawn[1, ::2] = -np.inf
    assert fit_expected_dice(not_drawn, wrong, known) == fit_expected_dice(
        found[:, 1::2], present[1::2], known[1::2]
    )
    for certain in (present & False, present | True): assert fit_expected_dice(found, certain, known) is None
    assert fit_expected_dice(found, present, known & False) is None
