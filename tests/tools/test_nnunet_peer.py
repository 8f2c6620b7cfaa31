"What tools/nnunet_peer.py does around nnU-Net, without nnU-Net."
import json
import sys
from types import ModuleType

import numpy as np
import pytest
from skimage.io import imread

import nnunet_peer

from ctseg.data.toys import toy_set


@pytest.fixture
def annotated():
    slices = toy_set(8, 8)[0]
    return slices[np.flatnonzero(slices.labelled)]


@pytest.fixture
def planned(tmp_path):
    "A folder where nnU-Net has planned already, so that its command is not called."
    for number in (600, 601):
        folder = tmp_path/"preprocessed"/f"Dataset{number}_ctseg"
        folder.mkdir(parents=True)
        (folder/"nnUNetPlans.json").write_text("{}")
    return tmp_path


def test_either_form_has_the_same_slices_and_only_one_says_what_was_examined(annotated, planned):
    for name, number in (("zeros", 600), ("partial", 601)):
        prepared = nnunet_peer.prepare(name, annotated, planned, number)
        assert prepared == planned/"preprocessed"/f"Dataset{number}_ctseg"
    zeros, partial = (planned/"raw"/f"Dataset{number}_ctseg" for number in (600, 601))
    names = sorted(path.name for path in (zeros/"labelsTr").iterdir())
    assert len(names) == len(annotated)
    for name in names:
        assert np.array_equal(imread(zeros/"labelsTr"/name), imread(partial/"labelsTr"/name))
    assert not (zeros/"annotated_labels.json").exists()
    examined = json.loads((partial/"annotated_labels.json").read_text())
    assert sorted(map(len, examined.values())) == sorted(annotated.known.sum(1))


def test_what_is_prepared_is_not_written_again(annotated, planned):
    nnunet_peer.prepare("zeros", annotated, planned, 600)
    images = {path: path.stat().st_mtime_ns for path in (planned/"raw").rglob("*.png")}
    nnunet_peer.prepare("zeros", annotated, planned, 600)
    assert images and images == {path: path.stat().st_mtime_ns for path in (planned/"raw").rglob("*.png")}


class Predictor:
    "Says of every pixel above one half that class 1 is there, as nnU-Net's predictor returns it."

    def __init__(self, use_mirroring, device, allow_tqdm):
        assert not use_mirroring

    def initialize_from_trained_model_folder(self, folder, folds, checkpoint):
        assert (folds, checkpoint) == (("all",), "checkpoint_final.pth")

    def predict_single_npy_array(self, image, properties):
        assert image.shape == (1, 1, 5, 7) and image.dtype == np.float32
        assert len(properties["spacing"]) == 3
        return (image[0] > 127).astype(np.int64)


def test_slices_are_predicted_one_by_one_as_volumes_of_one(monkeypatch, tmp_path):
    module = ModuleType("nnunetv2.inference.predict_from_raw_data")
    module.nnUNetPredictor = Predictor
    for name in ("nnunetv2", "nnunetv2.inference"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    masks = nnunet_peer.predict(tmp_path, images)
    assert masks.dtype == np.uint8 and np.array_equal(masks, images > 127)
