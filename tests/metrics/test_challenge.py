"The metric against a literal transcription of its definition, on many small and hostile masks."
import warnings

import numpy as np
import pytest
from helpers.metric_cases import cases, literal
from hypothesis import given, settings

from ctseg.core.errors import InputError
from ctseg.metrics.challenge import challenge_dice, dice_table, overlaps
from ctseg.metrics.surface import surface_dice


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
def test_masks_that_cannot_be_scored_are_refused(pred, truth, tell):
    with pytest.raises(InputError, match=tell): dice_table(pred, truth, 3)


def test_nothing_to_score():
    none = np.zeros((0, 4, 4), np.uint8)
    assert dice_table(none, none, 3).shape == (0, 3) and np.isnan(challenge_dice(none, none, 3))
    assert np.isnan(challenge_dice(np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8), 3))


def test_an_image_wholly_ignored_has_no_score():
    pred, truth = np.ones((2, 2, 4, 4), np.uint8)
    truth[0] = 255
    np.testing.assert_array_equal(dice_table(pred, truth, 2), [[np.nan, np.nan], [1, np.nan]])
    assert np.isnan(dice_table(pred[:1], truth[:1], 2)).all()


def test_many_classes_do_not_overflow():
    m = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    both, a, b = overlaps(m, m, 255)
    assert (both == 1).all() and (a == 1).all() and (b == 1).all()
    both, a, b = overlaps(m, m[:, ::-1], 255)
    assert (both == 0).all() and (a == 1).all() and (b == 1).all()


def test_volumes_score_as_images_do_where_shape_does_not_count():
    "Dice and surface Dice of volumes [N,D,H,W]: a Dice does not ask for a shape, a surface does."
    g = np.random.default_rng(0)
    pred, truth = (g.integers(0, 4, (2, 5, 6, 7)).astype(np.uint8) for _ in range(2))
    flat = [m.reshape(2, 1, -1) for m in (pred, truth)]
    np.testing.assert_array_equal(dice_table(pred, truth, 3), dice_table(*flat, 3))
    box, moved = np.zeros((2, 1, 12, 12, 12), np.uint8)
    box[0, 3:9, 3:9, 3:9] = 1
    moved[0, 4:10, 3:9, 3:9] = 1
    assert surface_dice(moved, box, 1, 1.) == 1
    # at tolerance 0 the rings of the five common layers count, 20 voxels each
    assert surface_dice(moved, box, 1, 0.) == (100 + 100)/(2*(6**3 - 4**3))
