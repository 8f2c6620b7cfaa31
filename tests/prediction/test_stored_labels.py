"Predicting a store: the same labels as of its folder, as a submission or as a store that can be scored."
import numpy as np
import pytest
from helpers.command import ctseg
from helpers.folders import told, tree
from helpers.toys import tiny, toy

from ctseg.data.challenge import write_challenge
from ctseg.data.mask_csv import read_masks
from ctseg.data.sources import images_at, store_challenge
from ctseg.metrics.evaluate import evaluate_files
from ctseg.metrics.stored import evaluate_stored
from ctseg.prediction.predictor import load_predictor
from ctseg.prediction.submission import predict_folder
from ctseg.recipes.fit import fit

pytest.importorskip("zarr")
from ctseg.data.store import read_store, write_store


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A folder with test truth, its store, and a run that was trained on the store."
    folder = tmp_path_factory.mktemp("world")
    write_challenge(toy(), folder/"data")
    write_challenge(toy(7, 7, seed=1, every=True), folder/"data", "test")
    store_challenge(folder/"data", folder/"s.zarr")
    fit(folder/"s.zarr", tiny("masked", "epochs=6"), folder/"run", device="cpu", progress=False)
    return folder


def test_a_store_and_a_folder_give_the_same_labels(world, tmp_path):
    predictor = load_predictor(world/"run", "cpu")
    facts = [
        predict_folder(predictor, world/images, tmp_path/out, batch_size=3)
        for images, out in (
            ("data/test-images", "a.csv"),
            ("s.zarr", "b.csv"),
            ("s.zarr", "c.zarr"),
            ("data/test-images", "d.zarr"),
        )
    ]
    assert facts[0] == facts[1] == facts[2] == facts[3]
    assert (tmp_path/"a.csv").read_bytes() == (tmp_path/"b.csv").read_bytes()
    names, masks = read_masks(tmp_path/"a.csv", cache=False)
    for out in ("c.zarr", "d.zarr"):
        stored = read_store(tmp_path/out)
        assert (
            np.array_equal(stored.masks, masks)
            and list(stored.names) == names
            and not np.asarray(stored.images).any()
        )
        scored = evaluate_stored(world/"s.zarr", tmp_path/out)
        whole = evaluate_files(world/"data/y_test.csv", tmp_path/"a.csv")
        assert scored["facts"]["dice"] == pytest.approx(whole["facts"]["dice"], abs=1e-9)
        assert scored["facts"]["interval"] == pytest.approx(whole["facts"]["interval"], abs=1e-9)


def test_predict_evaluate_and_report_take_stores(world, tmp_path):
    code, out, err = ctseg(
        "predict",
        world/"run",
        "--images",
        world/"s.zarr",
        "--out",
        tmp_path/"l.zarr",
        "--device",
        "cpu",
    )
    assert code == 0, err
    code, out, err = ctseg("evaluate", world/"s.zarr", tmp_path/"l.zarr")
    assert code == 0 and "dice" in out, err
    code, out, err = ctseg("report", world/"run", "--data", world/"s.zarr", "--device", "cpu")
    assert code == 0, err


def test_training_slices_where_there_is_no_test(tmp_path):
    slices = toy()
    write_store(slices, tmp_path/"s")
    names, images, stored = images_at(tmp_path/"s")
    assert (
        tuple(names) == slices.names and np.array_equal(images, slices.images) and len(stored) == len(slices)
    )


def test_a_mistake_leaves_stores_as_they_are(world, tmp_path):
    predictor = load_predictor(world/"run", "cpu")
    before = tree(world/"s.zarr")
    told(lambda: predict_folder(predictor, world/"s.zarr", world/"s.zarr"), "exists already")
    told(lambda: predict_folder(predictor, world/"s.zarr", tmp_path/"l.txt"), ".zarr")
    assert tree(world/"s.zarr") == before
    slices = toy()
    write_store(
        {"train": slices, "test": type(slices)(slices.images, classes=["a", "b", "c"])}, tmp_path/"other"
    )
    told(lambda: predict_folder(predictor, tmp_path/"other", tmp_path/"l.zarr"), "other classes")
    assert not (tmp_path/"l.zarr").exists()
