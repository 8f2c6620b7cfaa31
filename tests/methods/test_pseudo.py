"Pseudo-labels: what is believed of them, and that truth outlives it."
from dataclasses import replace

import numpy as np
import pytest
from helpers.toys import toy

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.slices import SliceSet
from ctseg.methods.pseudo import (
    PseudoLabels,
    accept_cells,
    at_pixels,
    check_truth_kept,
    complete,
    keep_images,
)


def some_pseudo(slices, seed=0):
    rng = np.random.default_rng(seed)
    n, c = len(slices), len(slices.classes)
    labels = rng.integers(0, c + 1, slices.masks.shape).astype(np.uint8)
    sdc = rng.random((n, c)).astype(np.float32)
    return PseudoLabels(
        labels,
        rng.integers(0, 256, labels.shape).astype(np.uint8),
        sdc,
        rng.random((n, c)).astype(np.float32),
        np.full((n, c), np.nan, np.float32),
        {"max": rng.random(n), "sdc": rng.random(n)},
    )


@pytest.mark.parametrize("seed", range(5))
def test_truth_is_never_overwritten(seed):
    slices = toy(seed=seed)
    pseudo = some_pseudo(slices, seed)
    present, absent = accept_cells(pseudo, slices.known, quota=1, cell_confidence=0, absent_peak=1)
    assert not (present & slices.known).any() and not (absent & slices.known).any()
    completed, teaches = complete(slices, pseudo, present, absent, pixel_confidence=0.5)
    check_truth_kept(slices, completed)
    assert (completed.masks != slices.masks).any()
    assert teaches[slices.masks > 0].all()
    broken = replace(completed, masks=np.where(slices.masks > 0, 0, completed.masks))
    with pytest.raises(AssertionError):
        check_truth_kept(slices, broken)


def test_quotas_are_by_class():
    slices = toy(labelled=0)
    pseudo = some_pseudo(slices)
    sure = replace(pseudo, sdc=pseudo.sdc*np.float32([1, 1, 0.01]))  # the third class is never confident
    present, _ = accept_cells(sure, slices.known, quota=0.25, cell_confidence=0.0)
    assert present.sum(0).tolist() == [6, 6, 6]
    assert sure.sdc[:, 0][present[:, 0]].min() >= sure.sdc[:, 0][~present[:, 0]].max()


def test_keeping_images():
    slices = toy(labelled=0)
    pseudo = some_pseudo(slices)
    kept = keep_images(pseudo, slices, 5, "max")
    assert len(kept) == 5 and kept.known.all()
    lowest = min(pseudo.scores["max"][slices.names.index(n)] for n in kept.names)
    assert lowest >= np.sort(pseudo.scores["max"])[-5]
    assert len(keep_images(pseudo, slices, 0.25)) == 6
    with pytest.warns(UserWarning, match="only 24"):
        assert len(keep_images(pseudo, slices, 999)) == 24
    with pytest.raises(InputError, match="did you mean"):
        keep_images(pseudo, slices, 5, "maks")


def test_a_structure_that_people_looked_for_in_vain_is_no_evidence_of_background():
    """Left kidney: looked for, absent; right kidney: not looked for. Where the teacher is sure of a left
    one, nothing is known of the right one."""
    known = np.array([[True, False]])
    empty = np.zeros((1, 1, 10), np.uint8)
    slices = SliceSet(
        empty,
        empty.copy(),
        known,
        ["0.png"],
        np.zeros(1, int),
        ClassMap.from_names(["kidney_left", "kidney_right"]),
    )
    labels = np.array([[[2]*5 + [1]*3 + [0]*2]], np.uint8)
    nine = np.array([[.9, .9]], np.float32)
    pseudo = PseudoLabels(
        labels, np.full(labels.shape, 250, np.uint8), nine, nine, np.full((1, 2), np.nan, np.float32), {}
    )
    completed, teaches = complete(slices, pseudo, *accept_cells(pseudo, known, quota=1))
    assert completed.masks.flatten().tolist() == [2]*5 + [0]*5 and completed.known.all()
    assert teaches.flatten().tolist() == [True]*5 + [False]*3 + [True]*2


def test_cells_at_pixels_are_those_of_the_labels():
    rng = np.random.default_rng(0)
    cells, labels = rng.random((6, 3)) < .5, rng.integers(0, 4, (6, 5, 4))
    chosen = at_pixels(cells, labels)
    for (n, y, x), label in np.ndenumerate(labels):
        assert chosen[n, y, x] == (label > 0 and cells[n, label - 1])


def test_pseudo_labels_can_be_indexed_like_slices():
    pseudo = some_pseudo(toy())
    some = pseudo[np.array([3, 1])]
    assert (
        len(some) == 2
        and np.array_equal(some.labels[0], pseudo.labels[3])
        and some.scores["max"][1] == pseudo.scores["max"][1]
    )
