"Raw data of nnU-Net: unknown cells are approximated as asked, or refused."

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from helpers.volumes import GRID, HU, TWO, one_line, volume
from skimage.io import imread

from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.data.slices import SliceSet
from ctseg.integrations.nnunet import export_nnunet
from ctseg.integrations.nnunet_import import import_nnunet
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
    facts = export_nnunet(tmp_path / "data", tmp_path / "raw", unknown=unknown, as_slices=True)
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


def put(tmp_path, known_lists, **slicing):
    "Volumes of which each was examined for some classes, as a challenge folder; the volumes."
    known = [np.array(k) for k in known_lists]
    labels = [np.where(np.r_[True, k][volume(i).labels], volume(i).labels, 0).astype(np.uint8) for i, k in enumerate(known)]
    scans = [Volume(volume(i).hu, volume(i).affine, ids, k) for i, (ids, k) in enumerate(zip(labels, known))]
    cases = [Case(f"c{i}", lambda v=v: v, known=v.known) for i, v in enumerate(scans)]
    write_volumes(cases, tmp_path / "data", TWO, Slicing(window="soft", **slicing))
    return scans


KNOWN = ([True, True], [True, False], [False, False], [False, True])


@pytest.mark.parametrize("slicing", [{}, {"every": 2}, {"orientation": "LPS"}, {"orientation": "IAR"}])
def test_volumes_come_back_where_they_were(tmp_path, slicing):
    scans = put(tmp_path, KNOWN, **slicing)
    facts = export_nnunet(tmp_path / "data", tmp_path / "raw", unknown="partial")
    root = tmp_path / "raw" / "Dataset501_ctseg"
    assert facts["form"] == "volumes" and facts["train"] == 4 and facts["left_out"] == 0
    for i, scan in enumerate(scans):
        image = nib.load(root / "imagesTr" / f"v00{i}_0000.nii.gz")
        drawn = np.asarray(nib.load(root / "labelsTr" / f"v00{i}.nii.gz").dataobj)
        index = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), -1)
        there = nib.affines.apply_affine(np.linalg.inv(scan.affine) @ image.affine, index)
        at = tuple(there.round().astype(int).transpose(3, 0, 1, 2))
        assert abs(there - there.round()).max() < 1e-3
        assert (drawn == scan.labels[at]).all()
        assert abs(np.asarray(image.dataobj) - scan.hu[at].clip(-160, 240)).max() < 1.5
    examined = json.loads((root / "annotated_labels.json").read_text())
    names = np.array(TWO.names)
    assert examined == {f"v00{i}": names[np.array(k)].tolist() for i, k in enumerate(KNOWN)}
    text = json.loads((root / "dataset.json").read_text())
    assert text["channel_names"] == {"0": "CT"} and text["file_ending"] == ".nii.gz" and "ignore" not in text["labels"]


def test_cropped_margins_are_ignored(tmp_path):
    put(tmp_path, KNOWN, size=8)
    export_nnunet(tmp_path / "data", tmp_path / "raw", unknown="partial")
    root = tmp_path / "raw" / "Dataset501_ctseg"
    labels = np.asarray(nib.load(root / "labelsTr" / "v000.nii.gz").dataobj)
    assert json.loads((root / "dataset.json").read_text())["labels"]["ignore"] == 3
    assert (labels == 3).any() and labels.shape == volume(0).labels.shape


def test_a_class_examined_on_some_slices_only(tmp_path):
    put(tmp_path, ([True, True], [True, True]))
    whole = read_challenge(tmp_path / "data")
    masks, known = whole.masks.copy(), whole.known.copy()
    known[0, 1], masks[0][masks[0] == 2] = False, 0
    s = SliceSet(whole.images, masks, known, whole.names, whole.groups, TWO)
    write_challenge(s, tmp_path / "part")
    shutil.copy(tmp_path / "data" / "index.json", tmp_path / "part")
    export_nnunet(tmp_path / "part", tmp_path / "raw", unknown="partial")
    root = tmp_path / "raw" / "Dataset501_ctseg"
    labels = np.asarray(nib.load(root / "labelsTr" / "v000.nii.gz").dataobj)
    assert (labels == 3).sum() == 9 * 12 - (masks[0] > 0).sum() > 0  # without the margin of the square
    assert json.loads((root / "annotated_labels.json").read_text())["v000"] == list(TWO.names)


@pytest.mark.parametrize("unknown", ["ignore", "background"])
def test_for_nnunets_own_trainers_unlabelled_volumes_are_left_out(tmp_path, unknown):
    put(tmp_path, KNOWN)
    facts = export_nnunet(tmp_path / "data", tmp_path / "raw", unknown=unknown)
    root = tmp_path / "raw" / "Dataset501_ctseg"
    assert facts["train"] == 3 and facts["left_out"] == 1
    assert not (root / "annotated_labels.json").exists()
    labels = np.asarray(nib.load(root / "labelsTr" / "v001.nii.gz").dataobj)
    assert (labels == 3).any() == (unknown == "ignore") and (labels == 0).any() == (unknown == "background")


def test_slices_that_make_no_volume_stay_slices(tmp_path):
    put(tmp_path, KNOWN, per_volume=3)
    facts = export_nnunet(tmp_path / "data", tmp_path / "raw", unknown="partial")
    assert "gaps" in facts["form"] and facts["train"] == 12
    root = tmp_path / "raw" / "Dataset501_ctseg"
    examined = json.loads((root / "annotated_labels.json").read_text())
    s = read_challenge(tmp_path / "data")
    assert [len(names) for names in examined.values()] == s.known.sum(1).tolist()


def test_folds_of_partial_data_hold_out_labelled_cases_only(tmp_path):
    put(tmp_path, KNOWN)
    export_nnunet(tmp_path / "data", tmp_path / "raw", unknown="partial")
    folds = json.loads((tmp_path / "raw" / "Dataset501_ctseg" / "splits_final.json").read_text())
    held = [case for fold in folds for case in fold["val"]]
    assert sorted(held) == ["v000", "v001", "v003"]
    assert all("v002" in fold["train"] and not set(fold["train"]) & set(fold["val"]) for fold in folds)


def test_there_and_back(tmp_path):
    put(tmp_path, KNOWN)
    export_nnunet(tmp_path / "data", tmp_path / "raw", unknown="partial")
    import_nnunet(tmp_path / "raw" / "Dataset501_ctseg", tmp_path / "back", Slicing(window="soft"))
    a, b = read_challenge(tmp_path / "data"), read_challenge(tmp_path / "back")
    assert (a.masks == b.masks).all() and (a.known == b.known).all() and a.classes.names == b.classes.names
    assert abs(a.images.astype(int) - b.images).max() <= 1


def test_a_damaged_index_is_told_and_not_passed_over(tmp_path):
    put(tmp_path, KNOWN)
    index = tmp_path / "data" / "index.json"
    index.write_text(index.read_text().replace('"v000"', '"v009"', 1))
    with pytest.raises(InputError) as e:
        export_nnunet(tmp_path / "data", tmp_path / "raw", unknown="partial")
    assert "index.json" in one_line(e)
    assert export_nnunet(tmp_path / "data", tmp_path / "raw", unknown="partial", as_slices=True)["form"] == "slices"
