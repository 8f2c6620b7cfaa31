"A store holds what a challenge folder holds, and looks the same as memory; what is damaged is told."
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from helpers.folders import random_slices, told

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.data import mask_csv
from ctseg.data.lazy import LazyPixels, ReadPixels, blocks, kept_where, pack_seen, seen_values, take
from ctseg.data.slices import SliceSet, content_hash, present_classes
from ctseg.data.sources import check_slices, has_test, read_slices, store_challenge
from ctseg.data.spooled import FilePixels, spool_masks
from ctseg.data.splits import near_duplicates, select_labelled
from ctseg.data.mask_csv import write_masks

pytest.importorskip("zarr")
from ctseg.data.store import chunk_sizes, read_store, store_notes, store_place, write_store

FIELDS = ("images", "masks", "known", "groups", "present", "labelled", "ignored")


def alike(a: SliceSet, b: SliceSet):
    for field in FIELDS: assert np.array_equal(getattr(a, field), getattr(b, field)), field
    assert a.names == b.names and a.classes == b.classes and content_hash(a) == content_hash(b)


def with_ignored(slices: SliceSet) -> SliceSet:
    "Some pixels are to be ignored, also on a slice of which nothing is known; one annotated mask is empty."
    masks = slices.masks.copy()
    masks[2, :3], masks[-1, 0], masks[5] = 255, 255, 0
    return replace(slices, masks=masks)


@pytest.fixture
def slices(): return with_ignored(random_slices())


@pytest.fixture
def place(tmp_path, slices):
    write_store({"train": slices, "test": random_slices(8, seed=1, full=True)}, tmp_path/"s.zarr")
    return tmp_path/"s.zarr"


def test_looks_the_same(place, slices):
    stored = read_store(place)
    alike(stored, slices)
    assert stored.fingerprint() == slices.fingerprint() and repr(stored) == repr(slices)
    for index in (3, slice(2, 9, 2), [7, 0, 7], np.arange(12) % 3 == 1, np.array([], int)):
        alike(stored[index], slices[index])
    alike(select_labelled(stored, 3, seed=1), select_labelled(slices, 3, seed=1))
    alike(stored.concat(stored[:2]), slices.concat(slices[:2]))
    alike(stored.in_memory(), slices)
    assert isinstance(stored[[1, 2]].images, LazyPixels)
    assert stored[[1, 2]].fingerprint() == slices[[1, 2]].fingerprint()


def test_operators_read(place, slices):
    "Whatever numpy does with an array gives the same, so that nothing is compared as an object."
    stored = read_store(place)
    assert np.array_equal(stored.masks > 0, slices.masks > 0)
    assert np.array_equal(stored.masks == 255, slices.masks == 255)
    assert np.array_equal(
        np.where(stored.masks == 255, 0, stored.masks), np.where(slices.masks == 255, 0, slices.masks)
    )
    assert np.array_equal(2*stored.images, 2*slices.images)


def test_choosing_reads_nothing(slices):
    def read(rows): raise AssertionError("pixels were read")
    shape = slices.images.shape
    packed = pack_seen(seen_values(slices.masks))
    lazy = SliceSet(
        LazyPixels(ReadPixels(read, shape)),
        LazyPixels(ReadPixels(read, shape, packed)),
        slices.known,
        slices.names,
        slices.groups,
        slices.classes,
    )
    assert np.array_equal(select_labelled(lazy[3:], 2).present, select_labelled(slices[3:], 2).present)
    assert repr(lazy) == repr(slices)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64), (300, 300)])
def test_many_shards(tmp_path, monkeypatch, size):
    monkeypatch.setattr("ctseg.data.store.SHARD", 4*size[0]*size[1])
    monkeypatch.setattr("ctseg.data.store.CHUNK", 2*size[0]*size[1])
    assert chunk_sizes(*size) == (2, 4)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, *size), np.uint8)
    masks = np.where(np.arange(11)[:, None, None] % 3 == 0, images % 3, 0).astype(np.uint8)
    slices = SliceSet(images, masks, "present", classes=["a", "b"])
    write_store(slices, tmp_path/"s")
    alike(read_store(tmp_path/"s"), slices)
    wanted = [9, 0, 10, 3, 3]
    assert np.array_equal(read_store(tmp_path/"s").images[wanted], images[wanted])


def test_a_store_may_lie_at_an_address():
    pytest.importorskip("fsspec")
    slices = random_slices()
    write_store(slices, "memory://ctseg-test/thorax")
    alike(read_store("memory:/ctseg-test/thorax"), slices)
    assert store_place("data_sample").name == "data_sample" and str(store_place("hf/x")) == "hf/x"


def test_a_store_keeps_unions_and_pairs(tmp_path):
    classes = ClassMap(("kidney", "kidney_left", "kidney_right"), ((2, 3),), ((1, (2, 3)),))
    masks = np.array([[[1, 0]], [[2, 3]]], np.uint8)
    slices = SliceSet(masks, masks, np.array([[1, 0, 0], [1, 1, 1]], bool), classes=classes)
    write_store(slices, tmp_path/"s")
    alike(read_store(tmp_path/"s"), slices)


@pytest.mark.parametrize("annotated", ["json", "all", "present"])
@pytest.mark.parametrize("compress", [False, True])
def test_from_a_folder(tmp_path, slices, annotated, compress):
    truth = random_slices() if annotated == "all" else slices
    write_challenge(truth, tmp_path/"d", compress=compress)
    write_challenge(random_slices(8, seed=1, full=True), tmp_path/"d", "test")
    stored = store_challenge(tmp_path/"d", tmp_path/"s", annotated, {"colour": "blue"})
    for split in ("train", "test"): alike(stored[split], read_challenge(tmp_path/"d", split, annotated))
    assert check_slices(tmp_path/"s") == check_slices(tmp_path/"d", annotated)
    assert store_notes(tmp_path/"s") == {"patients": True, "colour": "blue"} and has_test(tmp_path/"s")


def test_groups_without_patients(data):
    "Beside the images of its folder a store may lie."
    (data/"patients.json").unlink()
    stored = store_challenge(data, data/"s")
    assert np.array_equal(stored["train"].groups, read_challenge(data).groups)


def test_mistakes_of_a_folder_are_told(data, tmp_path):
    "As by `read_challenge`, and no half of a store stays."
    text = (data/"y_train.csv").read_text()
    for damage in (
        text.replace("Pixel 9,", "Pixel 8,"),
        text.rpartition("Pixel 255")[0],
        text.replace("\nPixel 3,", "\nPixel 3,9"),
    ):
        (data/"y_train.csv").write_text(damage)
        with pytest.raises(InputError) as ours: store_challenge(data, tmp_path/"s")
        with pytest.raises(InputError) as theirs: read_challenge(data)
        assert str(ours.value) == str(theirs.value) and not (tmp_path/"s").exists()
    (data/"y_train.csv").write_text(text)
    (data/"train-images/7.png").write_bytes(b"no image")
    told(lambda: store_challenge(data, tmp_path/"s"), "7.png", "not a readable image")
    assert not (tmp_path/"s").exists()


def test_spooled_like_read(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 4, (7, 5, 9), np.uint8)
    write_masks(masks, [f"{i}.png" for i in range(7)], tmp_path/"y.csv")
    spooled = spool_masks(tmp_path/"y.csv", [f"{i}.png" for i in range(7)], (5, 9), 3, tmp_path)
    assert np.array_equal(spooled[[6, 0, 6]], masks[[6, 0, 6]])
    assert [p.name for p in tmp_path.iterdir()] == ["y.csv"]


@pytest.mark.parametrize("room", [1, 20, 1000])
def test_tables_of_lazy_masks(tmp_path, monkeypatch, room):
    "The same bytes as of masks in memory: of a file, of another source, with empty masks, in any order."
    monkeypatch.setattr(mask_csv, "ROOM", room)
    masks = np.random.default_rng(0).integers(0, 4, (7, 5, 9), np.uint8)
    file = FilePixels(7, (5, 9), tmp_path)
    file.write(0, masks[:3])
    file.write(3, masks[3:])
    rows = np.array([6, -1, 2, 2])
    wanted = masks[rows]
    wanted[1] = 0
    write_masks(wanted, list("abcd"), tmp_path/"y.csv")
    for source in (file, ReadPixels(masks.__getitem__, masks.shape)):
        write_masks(LazyPixels(source, rows), list("abcd"), tmp_path/"lazy.csv")
        assert (tmp_path/"lazy.csv").read_bytes() == (tmp_path/"y.csv").read_bytes()


def test_what_is_no_store(tmp_path, place, slices):
    (tmp_path/"empty").mkdir()
    told(lambda: read_store(tmp_path/"empty"), "no store")
    told(lambda: read_store(tmp_path/"nowhere"), "no store")
    told(lambda: read_store(place, "tset"), "test")
    told(lambda: write_store(slices, place), "exists already")
    told(lambda: read_slices(place, annotated="present"), "decided when the store was made")
    text = (place/"zarr.json").read_text()
    (place/"zarr.json").write_text(text.replace('"format": 1', '"format": 99'))
    told(lambda: read_store(place), "another version")
    (place/"zarr.json").write_text(text.replace('"ctseg"', '"other"'))
    told(lambda: read_store(place), "not a store of ctseg")
    (place/"zarr.json").write_text("{")
    told(lambda: read_store(place), "no store")


def lose(path): path.unlink()
def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content)//4] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [lose, flip])
@pytest.mark.parametrize("part", ["images/c/0/0/0", "masks/c/0/0/0", "known/c/0/0", "groups/c/0", "names/c/0", "seen/c/0/0",
                                  "images/zarr.json", "zarr.json"])
def test_damage_is_told(place, part, damage):
    damage(place/"train"/part)
    with pytest.raises(InputError) as e: check_slices(place)
    assert "\n" not in str(e.value)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def huge(path): os.truncate(path, 1 << 42)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("damage", [pipe, huge])
@pytest.mark.parametrize("part", ["images/c/0/0/0", "known/c/0/0", "seen/zarr.json", "zarr.json"])
def test_a_part_that_never_ends_is_told(place, part, damage):
    damage(place/"train"/part)
    told(lambda: check_slices(place))


@pytest.mark.parametrize("name, shape", [("known", [10**9, 10**4]), ("names", [10**13]), ("images", [10**9, 10**5, 10**5])])
def test_claims_of_terabytes_are_told(place, name, shape):
    path = place/"train"/name/"zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": shape}))
    told(lambda: check_slices(place), "store")


@pytest.mark.parametrize("name", ["images", "masks", "known", "seen"])
def test_pieces_without_pixels_are_told(place, name):
    path = place/"train"/name/"zarr.json"
    facts = json.loads(path.read_text())
    grid = facts["chunk_grid"]["configuration"]
    grid["chunk_shape"] = [0, *grid["chunk_shape"][1:]]
    path.write_text(json.dumps(facts))
    told(lambda: check_slices(place), "store")


def test_index_that_says_other_than_the_masks(place):
    import zarr
    root = zarr.open_group(place, mode="r+")
    seen = root["train/seen"][...]
    seen[3] = seen[5]  # the empty mask
    root["train/seen"][...] = seen
    told(lambda: check_slices(place), "make the store again")


def test_attributes_of_another_shape(place):
    facts = json.loads((place/"zarr.json").read_text())
    for change in (
        {"splits": 3},
        {"splits": {"train": {}}},
        {"splits": {"train": {"classes": 5, "parts": {}}}},
        {},
    ):
        facts["attributes"]["ctseg"] = {"format": 1} | change
        (place/"zarr.json").write_text(json.dumps(facts))
        told(lambda: read_store(place), "store")


def test_look_alikes_take_little_memory(monkeypatch):
    "The groups are those of a plain comparison, however the pairs are cut up."
    rng = np.random.default_rng(0)
    bodies = rng.integers(0, 256, (6, 16, 16))
    which = rng.integers(0, 6, 90)
    images = np.clip(bodies[which] + rng.integers(-2, 3, (90, 16, 16)), 0, 255).astype(np.uint8)
    whole = near_duplicates(images)
    assert len(np.unique(np.column_stack([whole, which]), axis=0)) == len(np.unique(which)) == whole.max() + 1
    for rows, columns, many in ((7, 14, 3), (16, 16, 1), (5, 40, 10**6)):
        for name, value in (("ROWS", rows), ("COLUMNS", columns), ("MANY_LINKS", many)):
            monkeypatch.setattr(f"ctseg.data.splits.{name}", value)
        assert np.array_equal(near_duplicates(images), whole)
        assert np.array_equal(
            near_duplicates(LazyPixels(ReadPixels(lambda rows: images[rows], images.shape))), whole
        )


def test_lazy_choices():
    images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    lazy = LazyPixels(ReadPixels(lambda rows: images[rows], images.shape))
    assert np.array_equal(
        kept_where(take(lazy, [5, 0]), np.array([True, False])), np.stack([images[5], 0*images[0]])
    )
    assert np.array_equal(np.concatenate(list(blocks(lazy, 9))), images) and len(list(blocks(lazy, 9))) == 3
    assert np.array_equal(present_classes(lazy, 30), present_classes(images, 30))
    with pytest.raises(IndexError): lazy[6]
    assert lazy[3, 1, 0] == images[3, 1, 0] and np.array_equal(lazy[lazy > 7], images[images > 7])
