"Splits: groups never cross folds, rare classes are spread, near-duplicates are found."
import time
import warnings

import numpy as np
from helpers.folders import quick, random_slices, told
from hypothesis import given, strategies as st

from ctseg.core.anatomy import ClassMap
from ctseg.data.slices import SliceSet
from ctseg.data.splits import grouped_folds, near_duplicates, select_labelled


@st.composite
def grouped_sets(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, C, groups = draw(st.integers(5, 80)), draw(st.integers(1, 9)), draw(st.integers(5, 30))
    present = rng.random((n, C)) < rng.uniform(.01, .4, C)
    known = (present | (rng.random((n, C)) < .3)) & (rng.random((n, 1)) < .8)
    masks = (np.arange(1, C + 1)*(present & known)).astype(np.uint8)[:, None]
    group = np.concatenate([np.arange(5), rng.integers(0, groups, n)])[:n]
    return SliceSet(
        masks, masks, known, [f"{i}.png" for i in range(n)], group, ClassMap([f"c{i}" for i in range(C)])
    )


@quick
@given(s=grouped_sets(), k=st.integers(2, 5), seed=st.integers(0, 99))
def test_no_group_crosses_folds_and_no_fold_is_empty(s, k, seed):
    fold = grouped_folds(s, k, seed)
    assert fold.dtype == np.int64 and fold.min() >= 0 and fold.max() < k
    for g in np.unique(s.groups): assert len(np.unique(fold[s.groups == g])) == 1  # no group crosses folds
    assert len(np.unique(fold)) == k  # no fold is empty
    images = s.present.sum(0)
    if images.any():  # the rarest class is in as many folds as it can be
        c = np.where(images > 0, images, 10**6).argmin()
        assert len(np.unique(fold[s.present[:, c]])) == min(k, len(np.unique(s.groups[s.present[:, c]])))
    assert (fold == grouped_folds(s, k, seed)).all()


def test_too_many_folds():
    told(lambda: grouped_folds(random_slices(), 7), "7 folds of 6 groups")
    told(
        lambda: grouped_folds(random_slices()[:2], 7, at_most=True),
        "7 folds of 1 group of slices",
        "at least 2 folds",
    )


@quick
@given(s=grouped_sets(), k=st.integers(2, 40), seed=st.integers(0, 99))
def test_at_most_so_many_folds(s, k, seed):
    "As many folds as there are groups, and the same folds as if these had been asked for."
    groups = len(np.unique(s.groups))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        fold = grouped_folds(s, k, seed, at_most=True)
    assert (fold == grouped_folds(s, min(k, groups), seed)).all()
    assert len(heard) == (k > groups) and all(
        f"{k} folds of {groups} groups of slices" in str(w.message) for w in heard
    )


@quick
@given(s=grouped_sets(), seed=st.integers(0, 99), data=st.data())
def test_select_labelled(s, seed, data):
    total = int(s.labelled.sum())
    if not total: return
    n = data.draw(st.integers(1, total))
    few = select_labelled(s, n, seed)
    assert few.labelled.sum() == n and len(few) == len(s) and (few.images == s.images).all()
    assert (few.known[few.labelled] == s.known[few.labelled]).all() and not few.masks[~few.labelled].any()
    part = [
        g
        for g in np.unique(s.groups)
        if 0 < few.labelled[s.groups == g].sum() < s.labelled[s.groups == g].sum()
    ]
    assert len(part) <= 1
    smaller = select_labelled(s, (n + 1)//2, seed)
    assert not (smaller.labelled & ~few.labelled).any()


def test_near_duplicates_of_many_images():
    "2500 images: the groups are found, and it does not take a Python loop over pairs."
    rng = np.random.default_rng(0)
    base = rng.integers(0, 200, (1250, 16, 16))
    images = np.concatenate([base, base + rng.integers(0, 8, base.shape)]).astype(np.uint8)
    start = time.perf_counter()
    groups = near_duplicates(images)
    assert time.perf_counter() - start < 20
    assert (groups[:1250] == groups[1250:]).all() and len(np.unique(groups)) == 1250
