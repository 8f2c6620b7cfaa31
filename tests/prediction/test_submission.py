"The submission: the same memory for any number of images, read back, whole or not there."
import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ctseg.cli import app
from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.challenge import write_challenge
from ctseg.data import mask_csv
from ctseg.data.mask_csv import read_masks
from ctseg.data.spooled import FilePixels
from ctseg.inference.rule import Rule
from ctseg.prediction import submission as module
from ctseg.prediction.predictor import Predictor, predict_masks
from ctseg.prediction.submission import predict_folder, write_submission

from helpers.command import ctseg
from helpers.predictors import bright, fixed, write_pngs
from helpers.toys import toy


def names_in(folder) -> set[str]: return {p.name for p in folder.iterdir()}


# ---- what is written

def test_a_folder_of_any_size_takes_the_same_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_csv, "ROOM", 1 << 18)  # what is held of the masks, whatever their number
    images = np.random.default_rng(0).integers(0, 256, (390, 96, 96), np.uint8)
    predictor = fixed(bright)

    def peak(n):
        folder = write_pngs(tmp_path/f"i{n}", images[:n])
        tracemalloc.start()
        predict_folder(predictor, folder, tmp_path/f"{n}.csv", tmp_path/f"{n}.zip", batch_size=8)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top
    few, many = peak(130), peak(390)
    own = 260*96*96  # bytes of the masks of the images that were added
    assert (
        many - few < 0.25*own
    ), f"{few} bytes for 130 images, {many} for 390: their masks alone are {own} bytes more"
    names, masks = read_masks(tmp_path/"390.csv", cache=False)
    assert names == [f"{i}.png" for i in range(390)] and np.array_equal(
        masks, predict_masks(predictor, images)
    )


def test_the_file_is_what_pandas_would_write(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (12, 7, 9), np.uint8)
    facts = predict_folder(
        fixed(bright), write_pngs(tmp_path/"images", images), tmp_path/"s.csv", batch_size=5
    )
    flat = predict_masks(fixed(bright), images).reshape(12, -1)
    rows, columns = [f"Pixel {k}" for k in range(63)], [f"{i}.png" for i in range(12)]
    assert (tmp_path/"s.csv").read_text() == pd.DataFrame(flat.T, index=rows, columns=columns).to_csv()
    assert facts["images"] == 12 and facts["rule"] == "argmax"
    assert names_in(tmp_path) == {"images", "s.csv"}


def test_facts_of_the_labels(tmp_path):
    images = np.zeros((4, 8, 8), np.uint8)
    images[1, 2, 2], images[2, 3, 3] = 150, 255
    facts = predict_folder(
        fixed(bright), write_pngs(tmp_path/"images", images), tmp_path/"s.csv", batch_size=3
    )
    assert facts["classes used"] == "2 of 3" and facts["empty images"] == 2


def test_the_rule_fits_the_size_of_the_images(tmp_path):
    image = np.zeros((1, 16, 16), np.uint8)
    image[0, 2:5, 2:5] = 255
    predictor = replace(fixed(bright), rule=Rule(island=4), rule_size=(8, 8))
    facts = predict_folder(predictor, write_pngs(tmp_path/"images", image), tmp_path/"s.csv")
    assert facts["rule"] == "argmax, island 16" and facts["empty images"] == 1


def test_images_that_are_no_png_are_told(tmp_path):
    folder = write_pngs(tmp_path/"images", np.zeros((2, 8, 8), np.uint8))
    (folder/"2.jpg").write_bytes(b"jpeg")
    with pytest.warns(UserWarning, match="not predicted, since they are no PNG: 2.jpg"):
        facts = predict_folder(fixed(bright), folder, tmp_path/"s.csv")
    assert facts["images"] == 2


# ---- what goes wrong on the way

@pytest.mark.parametrize("edit", [
    lambda text: text.replace("Pixel 3,", "Pixel 4,"),
    lambda text: text[:-30],
    lambda text: text.replace(",1", ",2", 1),
    lambda text: text.replace("0.png,1.png", "1.png,0.png"),
])
def test_a_submission_that_was_written_wrongly_never_gets_its_name(tmp_path, monkeypatch, edit):
    write = module.write_masks

    def wrong(masks, names, path):
        write(masks, names, path)
        text = path.read_text()
        assert edit(text) != text
        path.write_text(edit(text))
    monkeypatch.setattr(module, "write_masks", wrong)
    masks = np.arange(32, dtype=np.uint8).reshape(2, 4, 4) % 3
    with pytest.raises(InputError): write_submission(masks, ["0.png", "1.png"], tmp_path/"s.csv")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    folder = write_pngs(tmp_path/"images", np.zeros((6, 8, 8), np.uint8))
    calls = []

    def fails(self, images):
        calls.append(1)
        if len(calls) == 2: raise OSError(28, "No space left on device")
        return torch.zeros(len(images), 3, 8, 8)
    monkeypatch.setattr(Predictor, "probabilities", fails)
    with pytest.raises(InputError, match="disk is full"):
        predict_folder(fixed(bright), folder, tmp_path/"s.csv", tmp_path/"p.zip", batch_size=3)
    assert len(calls) == 2 and names_in(tmp_path) == {"images"}


def test_a_disk_that_fills_with_labels_leaves_nothing(tmp_path, monkeypatch):
    folder = write_pngs(tmp_path/"images", np.zeros((3, 8, 8), np.uint8))

    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(FilePixels, "write", full)
    for out in ("s.csv", "s.zarr"):
        with pytest.raises(InputError, match="disk is full"):
            predict_folder(fixed(bright), folder, tmp_path/out)
    assert names_in(tmp_path) == {"images"}


# ---- the command

def test_what_cannot_be_written_is_told_before_the_work(world, tmp_path, monkeypatch):
    (tmp_path/"s.csv").mkdir()
    monkeypatch.setattr("ctseg.prediction.prepare.prepare", lambda *a, **k: pytest.fail("the work has begun"))
    for more in (
        ["--out", tmp_path/"s.csv"],
        ["--out", tmp_path/"t.csv", "--probabilities", tmp_path/"s.csv"],
    ):
        code, _, err = ctseg("predict", world/"a", "--images", world/"data"/"test-images", *more)
        assert code == 2 and err == f"ctseg: cannot write {tmp_path/'s.csv'}: it is a folder\n"


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
])
def test_a_lack_of_memory_is_one_line(world, tmp_path, monkeypatch, error):
    def fails(self, images): raise error
    monkeypatch.setattr(Predictor, "probabilities", fails)
    run, data = world/"a", world/"data"
    for args in (["predict", run, "--images", data/"test-images", "--out", tmp_path/"s.csv"],
                 ["report", run, "--data", data, "--out", tmp_path/"r.html", "--batch-size", 2],
                 ["report", run, world/"b", "--data", data, "--split", "test", "--out", tmp_path/"r.html"]):
        code, _, err = ctseg(*args, "--device", "cpu")
        assert code == 2 and "Traceback" not in err
        assert err.endswith("ctseg: out of memory; take a smaller --batch-size, or --device cpu\n")
    assert not list(tmp_path.iterdir())


def test_any_other_runtime_error_is_not_hidden(world, tmp_path, monkeypatch):
    def fails(self, images): raise RuntimeError("a defect")
    monkeypatch.setattr(Predictor, "probabilities", fails)
    given = ["predict", world/"a", "--images", world/"data"/"test-images", "--out", tmp_path/"s.csv"]
    with pytest.raises(RuntimeError, match="a defect"): app(list(map(str, given)), standalone_mode=False)


def test_the_names_of_the_classes_are_found_from_inside_the_folder(world, tmp_path, monkeypatch):
    other = replace(toy(4, labelled=4, every=True), classes=ClassMap.from_names(["x", "y", "z"]))
    write_challenge(other, tmp_path/"other", "test")
    monkeypatch.chdir(tmp_path/"other"/"test-images")
    code, _, err = ctseg("predict", world/"a", "--images", ".", "--out", tmp_path/"s.csv", "--device", "cpu")
    assert code == 2 and "other classes than the run's" in err and not (tmp_path/"s.csv").exists()


def test_two_images_of_one_name_are_told_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="^two images are called a.png; expected a name of its own for each$"):
        write_submission(np.zeros((2, 4, 4), np.uint8), ["a.png", "a.png"], tmp_path/"sub.csv")
    assert not list(tmp_path.iterdir())
