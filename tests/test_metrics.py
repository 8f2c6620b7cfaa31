"""The metric against a literal transcription of its definition, on many small and hostile masks."""
import json
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from ctseg.anatomy import ClassMap
from ctseg.data import write_masks
from ctseg.files import InputError, write_json
from ctseg.metrics import (bootstrap_mean, challenge_dice, dice_table, evaluate, evaluate_files, mean_dice, overlaps, paired_bootstrap,
                           partial_bounds, per_class, silent_classes, surface_dice)


def literal(pred, truth, C):
    "Mean over images for each class, then over classes; NaN if neither has the class."
    table = [[float("nan")]*C for _ in truth]
    for n in range(len(truth)):
        for c in range(1, C + 1):
            a, b = pred[n] == c, truth[n] == c
            if a.sum() or b.sum(): table[n][c - 1] = 2*(a & b).sum()/(a.sum() + b.sum())
    means = []
    for c in range(C):
        column = [row[c] for row in table if row[c] == row[c]]
        if column: means.append(sum(column)/len(column))
    return np.array(table).reshape(len(truth), C), sum(means)/len(means) if means else float("nan")


@st.composite
def cases(draw, known=False):
    C, n, h, w = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    masks = hnp.arrays(np.uint8, (n, h, w), elements=st.one_of(st.just(0), st.integers(0, C)))
    out = draw(masks), draw(masks), C
    return (*out, draw(hnp.arrays(bool, (n, C)))) if known else out


@settings(max_examples=150, deadline=None)
@given(cases())
def test_equals_the_definition(case):
    pred, truth, C = case
    table, score = literal(pred, truth, C)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(dice_table(pred, truth, C), table, rtol=0, atol=1e-12)
        np.testing.assert_allclose(challenge_dice(pred, truth, C), score, rtol=0, atol=1e-12)


@settings(max_examples=80, deadline=None)
@given(cases(known=True))
def test_partial_truth(case):
    pred, truth, C, known = case
    truth = np.where(np.c_[np.ones(len(known), bool), known][np.arange(len(known))[:, None, None], truth], truth, 0).astype(np.uint8)
    erased = np.where(np.c_[np.ones(len(known), bool), known][np.arange(len(known))[:, None, None], pred], pred, 0).astype(np.uint8)
    optimistic, pessimistic = partial_bounds(pred, truth, known)
    np.testing.assert_allclose(optimistic, literal(erased, truth, C)[1], atol=1e-12)  # predictions of unexamined classes erased
    np.testing.assert_allclose(pessimistic, literal(pred, truth, C)[1], atol=1e-12)   # unexamined scored as absent
    classes = ClassMap.from_names([f"c{i}" for i in range(C)])
    rows = per_class(pred, truth, classes, known)
    for c in range(C):
        there, gone = known[:, c] & (truth == c + 1).any((1, 2)), known[:, c] & ~(truth == c + 1).any((1, 2))
        said = (pred == c + 1).any((1, 2))
        r = rows.iloc[c]
        assert (r.support, r.absent, r.invented, r.missed) == (there.sum(), gone.sum(), (gone & said).sum(), (there & ~said).sum())
        assert r.silent == (there.any() and not (said & known[:, c]).any()) and r.unreliable == (there.sum() < 3)
        assert (rows.index[c] in silent_classes(pred, truth, classes, known)) == r.silent
    np.testing.assert_allclose(mean_dice(rows.dice.to_numpy()[None]), optimistic, atol=1e-12)
    facts = evaluate(truth, pred, classes, known, reps=20)
    json.dumps(facts, allow_nan=False)
    assert facts["dice"] is None if np.isnan(optimistic) else abs(facts["dice"] - optimistic) < 1e-12


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([0., 1., 1.5, 2., 3.]))
def test_surface_dice(case, tolerance):
    pred, truth, C = case
    edge = lambda m: m & ~ndimage.binary_erosion(m)  # pixels with one of the four neighbours outside; so is all beyond the frame
    got = surface_dice(pred, truth, C, tolerance)
    for n in range(len(truth)):
        for c in range(1, C + 1):
            a, b = (np.argwhere(edge(m[n] == c)) for m in (pred, truth))
            if not len(a) and not len(b): assert np.isnan(got[n, c - 1]); continue
            d = np.sqrt(((a[:, None] - b)**2).sum(-1)) if len(a) and len(b) else np.full((len(a), len(b)), np.inf)
            near = (d.min(1) <= tolerance).sum() + (d.min(0) <= tolerance).sum() if d.size else 0
            assert got[n, c - 1] == near/(len(a) + len(b))


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
    np.testing.assert_allclose([r["low"], r["high"]], np.nanquantile(slow, [.025, .975]), atol=1e-12)  # a draw without any score is left out
    np.testing.assert_allclose(r["p_better"], np.mean([d > 0 for d in slow if d == d]))
    np.testing.assert_allclose(r["difference"], score(tables[0], np.arange(17)) - score(tables[1], np.arange(17)), atol=1e-12)


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


@pytest.mark.parametrize("pred, truth, tell", [
    (np.zeros((2, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), "expected the same"),
    (np.zeros((2, 16), np.uint8), np.zeros((2, 16), np.uint8), "expected the same"),
    (np.full((2, 4, 4), 4, np.uint8), np.zeros((2, 4, 4), np.uint8), "expected 0…3"),
    (np.zeros((2, 4, 4), np.uint8), np.full((2, 4, 4), -1), "expected 0…3"),
    (np.zeros((2, 4, 4)), np.zeros((2, 4, 4), np.uint8), "whole numbers"),
])
def test_bad_masks(pred, truth, tell):
    with pytest.raises(InputError, match=tell): dice_table(pred, truth, 3)


def test_nothing_to_score():
    none = np.zeros((0, 4, 4), np.uint8)
    assert dice_table(none, none, 3).shape == (0, 3) and np.isnan(challenge_dice(none, none, 3))
    assert np.isnan(challenge_dice(np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8), 3))


def test_bad_groups():
    with pytest.raises(InputError, match="each image its group"): bootstrap_mean(np.zeros((4, 2)), [1, 2])
    with pytest.raises(InputError, match="same images and classes"): paired_bootstrap(np.zeros((4, 2)), np.zeros((5, 2)))


def test_many_classes_do_not_overflow():
    m = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    both, a, b = overlaps(m, m, 255)
    assert (both == 1).all() and (a == 1).all() and (b == 1).all()
    both, a, b = overlaps(m, m[:, ::-1], 255)
    assert (both == 0).all() and (a == 1).all() and (b == 1).all()


def test_files(tmp_path):
    rng = np.random.default_rng(0)
    truth, pred = rng.integers(0, 4, (2, 5, 8, 8), dtype=np.uint8)
    names, classes = [f"{i}.png" for i in range(5)], ClassMap.from_names(["a", "b", "c"])
    write_masks(truth, names, tmp_path/"y_test.csv")
    write_masks(pred, names, tmp_path/"sub.csv")
    classes.to_json(tmp_path/"class_names.json")
    facts = evaluate_files(tmp_path/"y_test.csv", tmp_path/"sub.csv")["facts"]
    assert facts == evaluate(truth, pred, classes) and facts["groups"] == 5
    write_json({"test": ["p", "p", "q", "q", "q"]}, tmp_path/"patients.json")
    assert evaluate_files(tmp_path/"y_test.csv", tmp_path/"sub.csv")["facts"]["groups"] == 2
    write_json([[1], [1, 2], [], [2, 3], [1, 2, 3]], tmp_path/"annotated.json")
    r = evaluate_files(tmp_path/"y_test.csv", tmp_path/"sub.csv", tmp_path/"annotated.json")
    assert r["facts"]["cells_examined"] == 8 and list(r["table"].support) == [3, 3, 2]
    write_json([[1]], tmp_path/"annotated.json")
    with pytest.raises(InputError, match="1 images .* 5 columns"): evaluate_files(tmp_path/"y_test.csv", tmp_path/"sub.csv", tmp_path/"annotated.json")
    write_masks(np.full((5, 8, 8), 4, np.uint8), names, tmp_path/"sub.csv")
    with pytest.raises(InputError, match="value 4"): evaluate_files(tmp_path/"y_test.csv", tmp_path/"sub.csv")


def test_pixels_are_counted_once(tmp_path, monkeypatch):
    from ctseg import metrics
    count, calls = metrics.overlaps, []
    monkeypatch.setattr(metrics, "overlaps", lambda *a: calls.append(1) or count(*a))
    write_masks(np.ones((2, 4, 4), np.uint8), ["0.png", "1.png"], tmp_path/"y_test.csv")
    result = evaluate_files(tmp_path/"y_test.csv", tmp_path/"y_test.csv")
    assert len(calls) == 1 and list(result) == ["table", "facts"]


def test_partial_truth_is_known_by_the_file_beside_it(tmp_path):
    "The training truth has a column for each annotated image, `annotated_labels.json` an entry for each image."
    truth = np.zeros((3, 4, 4), np.uint8)
    truth[0, 0], truth[1, 1], truth[2, 2] = 1, 2, 1
    names = [f"{i}.png" for i in range(3)]
    ClassMap.from_names(["a", "b"]).to_json(tmp_path/"class_names.json")
    write_masks(truth, names, tmp_path/"y_train.csv")
    pred = truth.copy()
    pred[0, 3] = 2  # nobody looked for it there
    write_masks(pred, names, tmp_path/"sub.csv")
    write_json({"train": [0, 0, 1, 1, 1]}, tmp_path/"patients.json")
    write_json([[1], [1, 2], [1], [], []], tmp_path/"annotated_labels.json")
    facts = evaluate_files(tmp_path/"y_train.csv", tmp_path/"sub.csv")["facts"]
    assert facts["dice"] == 1 and facts["invented"] == 0 and facts["cells_examined"] == 4 and facts["groups"] == 2
    for wrong, told in (([[1, 2], [1], [1], [], []], "class 2"), ([[1], [1, 2]], "3 columns"), ([[1], [1, 2], [1], [], [2]], "3 columns")):
        write_json(wrong, tmp_path/"annotated_labels.json")
        with pytest.raises(InputError, match=told): evaluate_files(tmp_path/"y_train.csv", tmp_path/"sub.csv")


def test_partial_truth_whose_list_is_missing_is_not_taken_for_whole(tmp_path):
    truth = np.zeros((2, 4, 4), np.uint8)
    truth[0, 0], truth[1, 1] = 1, 2
    names = ["0.png", "1.png"]
    ClassMap.from_names(["a", "b"]).to_json(tmp_path/"class_names.json")
    for name in ("y_train.csv.gz", "y_train_full.csv"): write_masks(truth, names, tmp_path/name)
    score = lambda name, **kw: evaluate_files(tmp_path/name, tmp_path/name, **kw)["facts"]
    with pytest.raises(InputError, match="annotated_labels.json: no such file.*--annotated all"): score("y_train.csv.gz")
    assert score("y_train.csv.gz", annotated="all") == score("y_train_full.csv") and "cells_examined" not in score("y_train_full.csv")
    assert score("y_train.csv.gz", annotated="present")["cells_examined"] == 2
    write_json([[1], [1, 2]], tmp_path/"list.json")
    assert score("y_train.csv.gz", annotated=tmp_path/"list.json")["cells_examined"] == 3
    write_json({"train": ["p", None]}, tmp_path/"patients.json")
    with pytest.raises(InputError, match="entry 1: None is no patient"): score("y_train.csv.gz", annotated="all")
