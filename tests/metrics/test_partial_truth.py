"Scores and rows of classes where the truth is partial, against their definitions."
import json

import numpy as np
from helpers.metric_cases import cases, literal
from hypothesis import given, settings

from ctseg.core.anatomy import ClassMap
from ctseg.metrics.challenge import mean_dice, per_class
from ctseg.metrics.evaluate import evaluate


def is_score(fact: float | None, score: float) -> bool:
    "A fact is a score to rounding, or None for NaN."
    return fact is None if np.isnan(score) else abs(fact - score) < 1e-12


@settings(max_examples=80, deadline=None)
@given(cases(known=True))
def test_unexamined_cells_are_not_scored(case):
    pred, truth, C, known = case
    truth = np.where(
        np.c_[np.ones(len(known), bool), known][np.arange(len(known))[:, None, None], truth], truth, 0
    ).astype(np.uint8)
    erased = np.where(
        np.c_[np.ones(len(known), bool), known][np.arange(len(known))[:, None, None], pred], pred, 0
    ).astype(np.uint8)
    classes = ClassMap.from_names([f"c{i}" for i in range(C)])
    rows = per_class(pred, truth, classes, known)
    for c in range(C):
        present, absent = known[:, c] & (truth == c + 1).any((1, 2)), known[:, c] & ~(truth == c + 1).any(
            (1, 2)
        )
        predicted = (pred == c + 1).any((1, 2))
        r = rows.iloc[c]
        assert (r.support, r.absent, r.invented, r.missed) == (
            present.sum(),
            absent.sum(),
            (absent & predicted).sum(),
            (present & ~predicted).sum(),
        )
        assert r.silent == (present.any() and not (predicted & known[:, c]).any()) and r.unreliable == (
            present.sum() < 3
        )
    optimistic = literal(erased, truth, C)[1]  # predictions of unexamined classes erased
    np.testing.assert_allclose(mean_dice(rows.dice.to_numpy()[None]), optimistic, atol=1e-12)
    facts = evaluate(truth, pred, classes, known, reps=20)
    json.dumps(facts, allow_nan=False)
    assert is_score(facts["dice"], optimistic)
    if not known.all():
        assert facts["dice_optimistic"] == facts["dice"]
        assert is_score(facts["dice_pessimistic"], literal(pred, truth, C)[1])  # unexamined as absent
