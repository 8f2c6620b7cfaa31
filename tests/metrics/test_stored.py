"A store is scored as arrays are, whatever the size of the blocks."
from dataclasses import replace

import numpy as np
import pytest
from helpers.command import ctseg
from helpers.folders import random_slices, told

from ctseg.data.mask_csv import write_masks
from ctseg.metrics.bootstrap import bootstrap_mean, drawn_scores, group_sums
from ctseg.metrics.challenge import per_class
from ctseg.metrics.evaluate import evaluate

pytest.importorskip("zarr")
from ctseg.data.store import write_store
from ctseg.metrics.stored import evaluate_stored


@pytest.fixture
def truth():
    "Partly examined, with ignored pixels, and a class that is nowhere."
    slices = random_slices(20)
    masks = np.where(slices.masks == 4, 0, slices.masks)
    masks[3, :4] = 255
    return replace(slices, masks=masks)


@pytest.fixture
def places(tmp_path, truth):
    labels = np.random.default_rng(3).integers(0, 4, truth.masks.shape, np.uint8)
    labels[:9][labels[:9] == 2] = 0
    write_store({"train": truth, "test": random_slices(8, full=True)}, tmp_path/"truth")
    write_store({"train": replace(truth, masks=labels, known=np.ones_like(truth.known))}, tmp_path/"labels")
    write_masks(labels, truth.names, tmp_path/"labels.csv")
    return tmp_path, labels


@pytest.mark.parametrize("annotated", [None, "all"])
@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("prediction", ["labels", "labels.csv"])
def test_a_store_scores_as_its_arrays_do(places, truth, annotated, block, prediction):
    folder, labels = places
    known = None if annotated else truth.known
    ours = evaluate_stored(folder/"truth", folder/prediction, annotated, block)
    whole = evaluate(truth.masks, labels, truth.classes, known, truth.groups)
    assert ours["facts"].keys() == whole.keys()
    for name, value in whole.items():
        if name == "per_class":
            assert [list(map(str, r)) for r in ours["facts"][name]] == [list(map(str, r)) for r in value]
        else: assert ours["facts"][name] == (pytest.approx(value, abs=1e-9) if name.startswith(("dice", "interval")) else value), name
    table = per_class(labels, truth.masks, truth.classes, known)
    assert np.allclose(ours["table"].astype(float), table.astype(float), atol=1e-9, equal_nan=True)


def test_the_command_scores_a_store(places):
    folder, _ = places
    code, out, err = ctseg("evaluate", folder/"truth", folder/"labels")
    assert code == 0 and "dice" in out and "kidney_left" in out, err
    assert ctseg("evaluate", folder/"truth", folder/"labels", "--mm")[0] == 2


def test_stores_that_do_not_fit_each_other_are_refused(places, truth, tmp_path):
    folder, labels = places
    write_store(replace(truth, names=[f"x{n}" for n in truth.names]), tmp_path/"other")
    told(lambda: evaluate_stored(folder/"truth", tmp_path/"other"), "no image")
    write_store(replace(truth, images=truth.images[:, 1:], masks=truth.masks[:, 1:]), tmp_path/"small")
    told(lambda: evaluate_stored(folder/"truth", tmp_path/"small"), "15x16", "16x16")
    told(lambda: evaluate_stored(folder/"truth", folder/"labels", "json"), "json")


def test_many_groups_are_drawn_in_parts_with_the_same_scores(monkeypatch):
    "Where a table of groups and images, or of draws and groups, would be large, sums and draws are the same."
    rng = np.random.default_rng(0)
    table = rng.random((2, 60, 5))
    table[rng.random(table.shape) < 0.3] = np.nan
    groups = rng.integers(0, 25, 60)
    whole, sums = drawn_scores(table, groups, 41, seed=3), group_sums(table, groups)
    for most in (1, 60, 25*7):
        monkeypatch.setattr("ctseg.metrics.bootstrap.MOST", most)
        assert np.allclose(drawn_scores(table, groups, 41, seed=3), whole, atol=1e-12, equal_nan=True)
        for a, b in zip(group_sums(table, groups), sums): assert np.allclose(a, b)
    assert bootstrap_mean(table[0], groups, 0)["mean"] == pytest.approx(
        bootstrap_mean(table[0], groups, 9)["mean"]
    )
