"Intervals against the metric of the drawn images."
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from ctseg.core.errors import InputError
from ctseg.metrics.bootstrap import bootstrap_mean, paired_bootstrap
from ctseg.metrics.challenge import mean_dice


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 3))
@example(615, 4, 1)
def test_bootstrap_is_the_metric_of_the_drawn_images(seed, G, S):
    rng = np.random.default_rng(seed)
    tables = np.where(rng.random((2, S, 17, 3)) < .4, np.nan, rng.random((2, S, 17, 3)))
    groups = rng.integers(0, G, 17)*7 - 3
    r = paired_bootstrap(*tables, groups, reps=40, seed=seed)
    ids = np.unique(groups)
    draws = np.random.default_rng(seed).multinomial(len(ids), np.full(len(ids), 1/len(ids)), 40)
    pick = lambda d: np.concatenate([np.flatnonzero(groups == g) for g, k in zip(ids, d) for _ in range(k)])
    score = lambda t, i: np.mean([x for x in (mean_dice(run[i]) for run in t) if x == x])
    slow = [score(tables[0], pick(d)) - score(tables[1], pick(d)) for d in draws]
    # a draw without any score is left out
    np.testing.assert_allclose([r["low"], r["high"]], np.nanquantile(slow, [.025, .975]), atol=1e-12)
    np.testing.assert_allclose(r["p_better"], np.mean([d > 0 for d in slow if d == d]))
    np.testing.assert_allclose(
        r["difference"], score(tables[0], np.arange(17)) - score(tables[1], np.arange(17)), atol=1e-12
    )


def test_paired_is_sharper_than_unpaired():
    rng = np.random.default_rng(0)
    hard = rng.random((60, 1))
    a = np.clip(hard + .05*rng.random((60, 4)), 0, 2)
    b = a - .02
    r, x = paired_bootstrap(a, b), bootstrap_mean(a)
    assert r["low"] > .019 and r["high"] < .021 and r["p_better"] == 1 and x["high"] - x["low"] > .05


def test_groups_widen_the_interval():
    rng = np.random.default_rng(1)
    table, groups = np.repeat(rng.random((10, 3)), 8, 0), np.repeat(np.arange(10), 8)
    width = lambda r: r["high"] - r["low"]
    assert width(bootstrap_mean(table, groups)) > 2*width(bootstrap_mean(table))


def test_bad_groups():
    with pytest.raises(InputError, match="each image its group"): bootstrap_mean(np.zeros((4, 2)), [1, 2])
    with pytest.raises(InputError, match="same images and classes"):
        paired_bootstrap(np.zeros((4, 2)), np.zeros((5, 2)))
