"The tables of runs that the benchmarks stand on: one row, from training to the kept arrays."
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
import bench
import bench_finished
import bench_slices
import results
from ctseg.core.device import pick_device
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.inference.rule import Rule
from ctseg.metrics.challenge import dice_table, mean_dice
from ctseg.phantom import make_phantom
from ctseg.runs.recipe import apply_settings
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.recipes.table import get_recipe

from helpers.fake_runs import fake_run
from helpers.toys import toy


def test_every_row_of_every_table_is_a_recipe(registries):
    runpy.run_path(str(ROOT/"tools"/"tried.py"))  # the methods of the table `tried`
    for rows in bench.TABLES.values():
        assert len({name for name, *_ in rows}) == len(rows)
        for _, recipe, settings in rows: apply_settings(get_recipe(recipe), settings)


def test_a_run_is_kept_once_with_all_that_the_notebooks_read(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path/"results")
    task = bench.Task(
        "toy",
        "masked",
        "masked",
        ("width=4", "epochs=1", "image_size=32", "folds=4"),
        0,
        ROOT/"data_sample",
        tmp_path/"runs",
        1,
        "",
    )
    assert "masked-s0" in bench.one(task)
    test = read_challenge(ROOT/"data_sample", "test")
    with np.load(tmp_path/"results"/"toy"/"masked-s0.npz") as z:
        assert (
            z["dice_chosen"].shape
            == z["dice_gated"].shape
            == z["truth"].shape
            == (len(test), len(test.classes))
        )
        chosen, argmax = z["dice_chosen"], z["dice_argmax"]
        assert np.isfinite(mean_dice(z["dice_argmax"])) and len(str(z["history"]).splitlines()) == 2
    assert "have" in bench.one(task)
    assert "toy-masked-s0" in bench_finished.decisions("toy", "masked", 0, ROOT/"data_sample", tmp_path/"runs")
    with np.load(tmp_path/"results"/"decision_least"/"toy-masked-s0.npz") as z:
        np.testing.assert_array_equal(z["dice_chosen"], chosen)
        np.testing.assert_array_equal(z["dice_argmax"], argmax)
        assert z["dice_least"].shape == z["dice_expected"].shape == argmax.shape
    assert "no finished run" in bench_finished.decisions("toy", "masked", 1, ROOT/"data_sample", tmp_path/"runs")
    shutil.copytree(tmp_path/"runs"/"toy"/"masked-s0", tmp_path/"runs"/"toy"/"copy-s0")
    with pytest.warns(UserWarning, match="copy of the other"):
        bench_finished.together("toy", ["masked", "copy"], 0, ROOT/"data_sample", tmp_path/"runs")
    with np.load(tmp_path/"results"/"together"/"toy-masked+copy-s0.npz") as z:
        np.testing.assert_array_equal(z["dice_argmax"], argmax)  # the mean of a run and its copy
        np.testing.assert_array_equal(z["copy_least"], z["dice_least"])
    bench_finished.confidences("toy", "masked", [0, 0], ROOT/"data_sample", tmp_path/"runs")
    with np.load(tmp_path/"results"/"confidence"/"toy-masked.npz") as z:
        np.testing.assert_array_equal(z["one_sdc"], z["mean_sdc"])  # the same run twice is no other teacher
        assert (z["mean_cell_agreement"] == 1).all()


def test_full_contours_come_from_beside_the_challenge(tmp_path):
    make_phantom(tmp_path/"c", 2, 1, 1, 48, seed=1, truth=True)
    some = read_challenge(tmp_path/"c")
    full = bench_slices.fully_annotated(some, tmp_path/"c")
    seen = some.known[:, :, None, None] & (some.masks[:, None] == np.arange(1, 55)[None, :, None, None])
    assert full.known.all() and full.labelled.sum() == 3 > some.labelled.sum()
    assert (full.masks > 0).sum() > (some.masks > 0).sum() and (
        np.where(seen.any(1), full.masks, 0) == some.masks
    ).all()


def test_the_benchmark_of_ensembles_scores_what_the_command_would_write(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path/"results")
    data, runs = tmp_path/"data", tmp_path/"runs"
    write_challenge(toy(32, labelled=24), data)
    write_challenge(toy(10, labelled=10, seed=5, every=True), data, "test")
    train, test = read_challenge(data), read_challenge(data, "test")
    rule = {"threshold": 0.009, "gate": 0.0}
    folders = [fake_run(runs/"t"/f"log-f{fold}-s0", train, rule=rule, fold=fold).folder for fold in (0, 1)]
    with np.load(bench_finished.ensembles("t", "log", [0], data, runs)) as z:
        both = load_predictor(folders, pick_device("cpu", "bf16"))
        expected = dice_table(predict_masks(both, test.images, [Rule()])[0], test.masks, 3)
        assert z["dice_single"].shape == z["dice_single-rule"].shape == (2, 10, 3)
        assert {f"dice_{step}" for step in bench_finished.STEPS} <= set(z.files)
        np.testing.assert_array_equal(z["dice_ensemble"], expected.astype(np.float32))
    with pytest.raises(SystemExit): bench_finished.ensembles("t", "nothing", [0], data, runs)


def test_annotation_spread_over_patients_takes_one_slice_of_each_first(tmp_path):
    train = read_challenge(ROOT/"data_sample")
    patients = np.unique(train.groups[train.labelled])
    one_each = bench_slices.annotated_in_turns(train, len(patients), seed=0)
    assert sorted(one_each.groups[one_each.labelled]) == sorted(patients)
    assert (one_each.known <= train.known).all() and (one_each.masks[~one_each.labelled] == 0).all()
    fewer, more = (bench_slices.annotated_in_turns(train, len(patients) + k, seed=0) for k in (-3, 3))
    assert len(set(fewer.groups[fewer.labelled])) == fewer.labelled.sum() == len(patients) - 3
    assert set(np.flatnonzero(one_each.labelled)) < set(np.flatnonzero(more.labelled))
    assert np.bincount(more.groups[more.labelled]).max() == 2
    other = bench_slices.annotated_in_turns(train, len(patients), seed=1)
    assert (other.labelled != one_each.labelled).any()
