"An import that writes a store: the same slices and facts as by way of a folder, and no trace of a failure."
import os

import numpy as np
import pytest
from helpers.command import ctseg
from helpers.folders import told, tree
from helpers.volumes import TWO, save, volume
from PIL import Image

from ctseg.core.json_files import read_json, write_json
from ctseg.data.mask_csv import write_masks
from ctseg.data.store import store_arrays, store_notes, store_splits
from ctseg.io.cases import Case
from ctseg.io.cutting import Work
from ctseg.io.folders import write_volumes
from ctseg.io.neighbours import SlicePlaces
from ctseg.io.slicing import Slicing

pytest.importorskip("zarr")
from ctseg.data.slices import content_hash
from ctseg.data.store import read_store


def same_stores(a, b):
    assert store_splits(a) == store_splits(b) and store_notes(a) == store_notes(b)
    for split in store_splits(a):
        assert content_hash(read_store(a, split)) == read_store(b, split).fingerprint()
        places = [store_arrays(place, split, SlicePlaces._fields) for place in (a, b)]
        assert places[0].keys() == places[1].keys()
        for name in places[0]: assert np.array_equal(places[0][name], places[1][name])


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    "NIfTI volumes of two sizes, one without labels."
    root = tmp_path_factory.mktemp("scans")
    for n, shape in enumerate([(9, 12, 5), (8, 8, 6), (9, 12, 5)]):
        v = volume(n, shape)
        save(v.hu.astype(np.float32), root/f"p{n}/ct.nii.gz", v.affine)
        for c, name in enumerate(TWO.names[:2*(n < 2)], 1):
            save((v.labels == c).astype(np.uint8), root/f"p{n}/segmentations/{name}.nii.gz", v.affine)
    TWO.to_json(root/"class_names.json")
    return root


RENAMED = ["--rename", "names.json"]

@pytest.mark.parametrize("options", [RENAMED, ["--window", "random"], ["--size", "8", "--test-share", "0.4", "--every", "2"]])
def test_volumes_go_into_a_store_as_into_a_folder(scans, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    write_json({TWO.names[1]: "first", TWO.names[0]: "second"}, "names.json")
    words = ["import", "nifti", scans]
    code, out, err = ctseg(*words, tmp_path/"d.zarr", "--store", *options)
    assert code == 0 and "store: " in out, err
    assert ctseg(*words, tmp_path/"folder", *options)[0] == 0
    assert ctseg("store", tmp_path/"folder", "--out", tmp_path/"f.zarr")[0] == 0
    same_stores(tmp_path/"d.zarr", tmp_path/"f.zarr")
    assert read_json(tmp_path/"d.zarr/index.json") == read_json(tmp_path/"folder/index.json")
    assert ctseg("check", tmp_path/"d.zarr")[0] == 0
    masks = read_store(tmp_path/"d.zarr").masks
    write_masks(np.asarray(masks), read_store(tmp_path/"d.zarr").names, tmp_path/"y.csv")
    back = ["--split", "train", "--masks"]
    assert ctseg("export", "nifti", tmp_path/"folder", tmp_path/"a", *back, tmp_path/"y.csv")[0] == 0
    for place in ("d.zarr", "f.zarr"):  # the store is one of label maps too
        assert ctseg("export", "nifti", tmp_path/place, tmp_path/f"of {place}", *back, tmp_path/"d.zarr")[0] == 0
        assert tree(tmp_path/"a") == tree(tmp_path/f"of {place}")
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob(".*"))


def test_pictures_go_into_a_store_as_into_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images/p0_0", "images/p0_1", "images/p1_0", "masks/p0_1", "test/p2_0"):
        path = tmp_path/f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 3, (6, 7), np.uint8)).save(path)
    words = ["import", "png", tmp_path/"images", tmp_path/"masks"]
    options = ["--test", tmp_path/"test", "--annotated", "all", "--size", "8", "--patients", r"(p\d)_"]
    options += ["--rename", tmp_path/"names.json"]
    write_json({"class_1": "b", "class_2": "a"}, tmp_path/"names.json")
    code, _, err = ctseg(*words, tmp_path/"d.zarr", "--store", *options)
    assert code == 0, err
    assert ctseg(*words, tmp_path/"folder", *options)[0] == 0
    assert ctseg("store", tmp_path/"folder", "--out", tmp_path/"f.zarr")[0] == 0
    same_stores(tmp_path/"d.zarr", tmp_path/"f.zarr")
    assert read_json(tmp_path/"d.zarr/png_index.json") == read_json(tmp_path/"folder/png_index.json")


def test_told_before_the_work(scans, tmp_path):
    def never(): raise AssertionError("a volume was loaded")
    def work(out): write_volumes([Case("c", never)], out, TWO, Slicing(), work=Work(store=True))
    (tmp_path/"there").mkdir()
    told(lambda: work(tmp_path/"there"), "exists already")
    told(lambda: work("s3://bucket/x"), "into a folder")


def test_damage_leaves_no_store(scans, tmp_path):
    def cases(): return [Case("a", lambda: volume(0)), Case("b", lambda: volume(1, labels=True, known=np.array([True, False])))]
    told(lambda: write_volumes(cases(), tmp_path/"s", TWO, Slicing(), work=Work(store=True)), "examined")
    assert set(os.listdir(tmp_path)) <= {"cache"}
