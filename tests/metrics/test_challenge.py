"The metric against a literal transcription of its definition, on many small and hostile masks."
import warnings

import numpy as np
import pytest
from helpers.metric_cases import cases, literal
from hypothesis import given, settings

from ctseg.core.files import InputError
from ctseg.metrics.challenge import challenge_dice, dice_table, overlaps


@settings(max_examples=150, deadline=None)
@given(cases())
def test_equals_the_definition(case):
    pred, truth, C = case
    table, score = literal(pred, truth, C)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(dice_table(pred, truth, C), table, rtol=0, atol=1e-12)
        np.testing.assert_allclose(challenge_dice(pred, truth, C), score, rtol=0, atol=1e-12)


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


def test_many_classes_do_not_overflow():
    m = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    both, a, b = overlaps(m, m, 255)
    assert (both == 1).all() and (a == 1).all() and (b == 1).all()
    both, a, b = overlaps(m, m[:, ::-1], 255)
    assert (both == 0).all() and (a == 1).all() and (b == 1).all()
