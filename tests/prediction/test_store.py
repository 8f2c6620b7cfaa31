"Probabilities in a file: float16, read image by image, whole or not there."
import json
import zipfile

import numpy as np
import pytest

from ctseg.core.errors import InputError
from ctseg.prediction.store import StoredProbabilities, write_probabilities

from helpers.predictors import DISCS


def write_one(path):
    "A store of one image, all 1."
    with write_probabilities(path, DISCS, "sigmoid", (6, 5)) as add:
        add("0.png", np.ones((3, 6, 5), np.float32))


def test_stored_probabilities_come_back_within_half_a_step(tmp_path):
    rng = np.random.default_rng(0)
    prob = rng.random((3, 3, 6, 5), np.float32)*(rng.random((3, 3, 6, 5)) < 0.3)
    prob[:, 1] = 0.0004  # below half a step: not worth a class
    path = tmp_path/"p.zip"
    with write_probabilities(path, DISCS, "sigmoid", (6, 5)) as add:
        for i in (2, 0, 1): add(f"{i}.png", prob[i])
    with StoredProbabilities(path) as stored:
        assert stored.names == ["2.png", "0.png", "1.png"] and len(stored) == 3
        assert (stored.size, stored.activation, stored.classes) == ((6, 5), "sigmoid", DISCS)
        for i in range(3): assert np.abs(stored[f"{i}.png"] - prob[i]).max() <= 1/2048
        assert stored.images["0.png"] == [1, 3]
    with np.load(path) as plain:
        assert plain["0.png"].dtype == np.float16 and plain["0.png"].shape == (2, 6, 5)


def with_index(**changes):
    "A function that writes a store again with another index."
    def damage(path):
        write_one(path)
        with zipfile.ZipFile(path) as z: index = json.loads(z.read("index.json")) | changes
        with zipfile.ZipFile(path, "w") as z: z.writestr("index.json", json.dumps(index))
    return damage


def cut(path):
    write_one(path)
    path.write_bytes(path.read_bytes()[:-40])


def without_index(path):
    with zipfile.ZipFile(path, "w") as z: z.writestr("a", "b")


@pytest.mark.parametrize("damage", [
    lambda path: path.write_text("no"), cut, without_index, with_index(size=[6]), with_index(size="65"), with_index(classes=7),
    with_index(activation="tanh"), with_index(images=[1]), with_index(images={"0.png": [4]}),
])
def test_a_damaged_store_is_told(tmp_path, damage):
    path = tmp_path/"p.zip"
    damage(path)
    with pytest.raises(InputError, match="not a file of probabilities, or damaged"): StoredProbabilities(path)


def test_a_missing_store_and_a_missing_image_are_told(tmp_path):
    with pytest.raises(InputError, match="no such file"): StoredProbabilities(tmp_path/"p.zip")
    with_index()(tmp_path/"p.zip")  # an index, and none of the images
    with pytest.raises(InputError, match="damaged at 0.png"): StoredProbabilities(tmp_path/"p.zip")["0.png"]


def test_an_image_of_another_shape_is_told(tmp_path):
    path = tmp_path/"p.zip"
    with_index(size=[7, 7])(path)
    with zipfile.ZipFile(path, "a") as z, z.open("0.png.npy", "w") as f:
        np.lib.format.write_array(f, np.ones((3, 6, 5), np.float16))
    with pytest.raises(InputError, match="damaged at 0.png"): StoredProbabilities(path)["0.png"]


def test_a_store_that_fails_half_way_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with write_probabilities(tmp_path/"p.zip", DISCS, "sigmoid", (6, 5)) as add:
            add("0.png", np.ones((3, 6, 5), np.float32))
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
