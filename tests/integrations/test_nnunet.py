"Raw data of nnU-Net: unknown cells are approximated as asked, or refused."

import json

import numpy as np
import pytest
from helpers.volumes import GRID, HU, TWO, one_line, volume
from skimage.io import imread

from ctseg.core.files import InputError
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.data.slices import SliceSet
from ctseg.integrations.nnunet import export_nnunet
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import Volume


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CTSEG_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("unknown", ["ignore", "background"])
def test_nnunet(tmp_path, unknown):
    ks = [np.array(k) for k in ([True, True], [True, False], [False, False], [True, True])]
    vs = [volume(i, known=k, labels=False) for i, k in enumerate(ks)]

    def erased(i, k):
        labels = volume(i).labels
        return (labels * np.r_[True, k][labels]).astype(np.uint8)

    vs = [Volume(v.hu, v.affine, erased(i, v.known), v.known) for i, v in enumerate(vs)]
    cases = [Case(f"c{i}", lambda v=v: v, known=v.known) for i, v in enumerate(vs)]
    write_volumes(cases, tmp_path / "data", TWO, Slicing(window="soft"), test_share=0.25)
    facts = export_nnunet(tmp_path / "data", tmp_path / "raw", unknown=unknown)
    s, root = read_challenge(tmp_path / "data"), tmp_path / "raw" / "Dataset501_ctseg"
    labels = json.load(open(root / "dataset.json"))
    assert labels["labels"] == {"background": 0, "kidney_left": 1, "kidney_right": 2} | (
        {"ignore": 3} if unknown == "ignore" else {}
    )
    assert (
        labels["numTraining"]
        == s.labelled.sum()
        == facts["train"]
        == len(list((root / "imagesTr").iterdir()))
    )
    assert facts["left_out"] == (~s.labelled).sum()
    assert labels["channel_names"]["0"].casefold() != "ct" and labels["file_ending"] == ".png"
    assert labels["overwrite_image_reader_writer"] == "NaturalImage2DIO"
    for i in np.flatnonzero(s.labelled):
        stem = f"train_{i:05}"
        assert (imread(root / "imagesTr" / f"{stem}_0000.png") == s.images[i]).all()
        want = (
            s.masks[i]
            if unknown == "background" or s.known[i].all()
            else np.where(s.masks[i] == 0, 3, s.masks[i])
        )
        assert (imread(root / "labelsTr" / f"{stem}.png") == want).all()
    assert (
        len(list((root / "labelsTs").iterdir())) == len(list((root / "imagesTs").iterdir())) == facts["test"]
    )
    assert unknown in (root / "README.txt").read_text()
    for f in json.load(open(root / "splits_final.json")):
        a, b = ({s.groups[int(c[-5:])] for c in f[k]} for k in ("train", "val"))
        assert not a & b and len(f["train"]) + len(f["val"]) == s.labelled.sum()
    with pytest.raises(InputError) as e:
        export_nnunet(tmp_path / "data", tmp_path / "raw", unknown=unknown)
    assert "already exists" in one_line(e)


def test_nnunet_refuses_what_has_no_background(tmp_path):
    k = np.array([True, False])
    write_volumes(
        [Case("c", lambda: Volume(HU, GRID, (volume(0).labels == 1).astype(np.uint8), k))],
        tmp_path / "data",
        TWO,
        Slicing(),
    )
    with pytest.raises(InputError) as e:
        export_nnunet(tmp_path / "data", tmp_path / "raw")
    assert "unknown='background'" in one_line(e) and not (tmp_path / "raw" / "Dataset501_ctseg").exists()
    with pytest.raises(InputError):
        export_nnunet(tmp_path / "data", tmp_path / "raw", unknown="bakground")


def test_two_names_that_nnunet_would_call_the_same(tmp_path):
    images = np.zeros((2, 8, 8), np.uint8)
    known = np.ones((2, 2), bool)
    write_challenge(SliceSet(images, images, known, ["1.png", "01.png"], np.arange(2), TWO), tmp_path / "in")
    with pytest.raises(InputError) as e:
        export_nnunet(tmp_path / "in", tmp_path / "raw")
    assert "1.png" in one_line(e) and not (tmp_path / "raw").exists()
