"""Bad input: every mistake in a challenge folder or a submission is told in one line with the place and the remedy; nothing is left.

Beside it the promises that need many cases: what is written is read back, damage to a table is noticed, groups never cross folds.
"""
import errno, gzip, json, os, shutil, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from skimage.io import imsave

import ctseg.data as D
import ctseg.files as F
from ctseg.anatomy import ClassMap
from ctseg.data import (EpochSampler, SliceSet, check_challenge, check_submission, grouped_folds, near_duplicates, read_challenge,
                        read_masks, select_labelled, write_challenge, write_masks)
from ctseg.files import InputError

N, SIZE = 12, 16
CSV, JSON, IMG = "y_train.csv", "annotated_labels.json", "train-images/4.png"
CLASSES = ClassMap.from_names(["liver", "spleen", "kidney_left", "kidney_right"])
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def toy(n=N, size=SIZE, seed=0, full=False):
    "Random slices; the last third unlabelled, and liver (1) never examined on image 0, unless `full`."
    rng = np.random.default_rng(seed)
    known = np.ones((n, 4), bool)
    if not full: known[2*n//3:], known[0, 0] = False, False
    masks = rng.integers(0, 5, (n, size, size), np.uint8)
    masks *= np.concatenate([np.ones((n, 1), bool), known], 1)[np.arange(n)[:, None, None], masks]
    return SliceSet(rng.integers(0, 256, (n, size, size), np.uint8), masks, known, [f"{i}.png" for i in range(n)], np.arange(n)//2, CLASSES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("CTSEG_CACHE", str(tmp_path/"cache"))


@pytest.fixture
def data(tmp_path):
    "A valid challenge folder."
    write_challenge(toy(), tmp_path/"data")
    write_challenge(toy(8, seed=1, full=True), tmp_path/"data", "test")
    return tmp_path/"data"


def tree(folder): return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in Path(folder).rglob("*")}


def told(call, *parts):
    "`call` raises an InputError of one line with all `parts` in it."
    with pytest.raises(InputError) as e: call()
    text = str(e.value)
    assert "\n" not in text and len(text) < 400
    for part in parts: assert part in text, f"{part!r} is not in: {text}"


def edit(path, *pairs):
    "Replace text in a file, once each; the old text must be there."
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)


def row(k, values): return f"\nPixel {k}," + ",".join(map(str, values)) + "\n"
def values(k): return toy().masks.reshape(N, -1)[:, k].tolist()


def set_row(k, new): return lambda d: edit(d/"y_train.csv", (row(k, values(k)), new))
def set_value(k, n, v):
    line = [*map(str, values(k))]
    line[n] = v
    return set_row(k, row(k, line))
def set_json(name, change):
    def f(d):
        path = d/name
        obj = json.loads(path.read_text())
        path.write_text(json.dumps(change(obj)))
    return f
def put(lists, i, v): return lists[:i] + [v] + lists[i + 1:]
def save(name, image): return lambda d: imsave(d/"train-images"/name, image, check_contrast=False)
def columns(d, order): pd.read_csv(d/"y_train.csv", index_col=0).iloc[:, order].to_csv(d/"y_train.csv")
def gz(d): return (d/CSV).with_name("y_train.csv.gz")
def rng_image(*shape, top=256, dtype=np.uint8): return np.random.default_rng(5).integers(0, top, shape).astype(dtype)

BROKEN = {
    # images against columns
    "missing image": (lambda d: (d/"train-images/3.png").unlink(), (CSV, "3.png", "belongs to no image")),
    "an image that is no PNG": (lambda d: (d/"train-images/3.png").rename(d/"train-images/3.jpg"), (CSV, "3.jpg is there, expected 3.png; convert it")),
    "an image in capitals": (lambda d: (d/"train-images/3.png").rename(d/"train-images/3.PNG"), (CSV, "3.PNG is there, expected 3.png; rename it")),
    "extra image inside": (save("5b.png", rng_image(SIZE, SIZE)), (CSV, "no column for 5b.png")),
    "extra image at the end": (save("12.png", rng_image(SIZE, SIZE)), (JSON, "12 lists for 13")),
    "missing column": (lambda d: columns(d, [i for i in range(N) if i != 5]), (CSV, "no column for 5.png")),
    "missing column of an examined image": (lambda d: columns(d, list(range(6))), (CSV, "no column for 6.png", JSON)),
    "extra column": (lambda d: edit(d/CSV, (",11.png", ",99.png")), (CSV, "99.png", "belongs to no image")),
    "columns in alphabetical order": (lambda d: columns(d, [0, 1, 10, 11, *range(2, 10)]), (CSV, "column 3 is 10.png, expected 2.png")),
    "column twice": (lambda d: edit(d/CSV, (",11.png", ",3.png")), (CSV, "3.png is there twice")),
    "table not transposed": (lambda d: pd.read_csv(d/CSV, index_col=0).T.to_csv(d/CSV), (CSV, "turn the table")),
    "table without its index": (lambda d: pd.read_csv(d/CSV, index_col=0).to_csv(d/CSV, index=False), (CSV, "no column for 0.png")),
    # values
    "value above C": (set_value(17, 4, "5"), (CSV, "Pixel 17", "4.png", "value 5", "4 classes")),
    "fraction": (set_value(17, 4, "1.5"), (CSV, "Pixel 17", "4.png", "'1.5'", "whole number")),
    "float of a whole number": (set_value(0, 0, "1.0"), (CSV, "Pixel 0", "0.png", "'1.0'")),
    "negative": (set_value(200, 11, "-1"), (CSV, "Pixel 200", "11.png", "'-1'")),
    "word": (set_value(255, 11, "nan"), (CSV, "Pixel 255", "11.png", "'nan'")),
    "empty value": (set_value(9, 2, ""), (CSV, "Pixel 9", "2.png", "''")),
    "too large for a byte": (set_value(9, 2, "256"), (CSV, "Pixel 9", "2.png", "'256'")),
    "many digits": (set_value(9, 2, "00001"), (CSV, "Pixel 9", "2.png", "'00001'")),
    "arabic digit": (set_value(9, 2, "٣"), (CSV, "Pixel 9", "2.png", "whole number")),
    # rows
    "short row": (set_row(30, row(30, [0]*11)), (CSV, "Pixel 30", "11 values, expected 12")),
    "long row": (set_row(30, row(30, [0]*13)), (CSV, "Pixel 30", "13 values, expected 12")),
    "short row before a long one": (lambda d: edit(d/CSV, (row(30, values(30)), row(30, [0]*11)), (row(31, values(31)), row(31, [0]*13))),
                                    (CSV, "Pixel 30", "11 values")),
    "cut inside a row": (lambda d: (d/CSV).write_bytes((d/CSV).read_bytes()[:-8]), (CSV, "Pixel 255", "values, expected 12", "cut off")),
    "cut after a row": (lambda d: (d/CSV).write_text((d/CSV).read_text().split("Pixel 255")[0]), (CSV, "255 rows, expected 256")),
    "a row too many": (lambda d: (d/CSV).write_text((d/CSV).read_text() + row(256, [0]*N)[1:]), (CSV, "more than 256 rows")),
    "a row missing": (set_row(30, "\n"), (CSV, "line 32", "'Pixel 31', expected 'Pixel 30'")),
    "rows out of order": (
        lambda d: edit(d/CSV, ("Pixel 7,", "Pixel X,"), ("Pixel 8,", "Pixel 7,"), ("Pixel X,", "Pixel 8,")),
        (CSV, "expected 'Pixel 7'")),
    "only a header": (lambda d: (d/CSV).write_text((d/CSV).read_text().split("\n")[0] + "\n"), (CSV, "0 rows, expected 256")),
    "empty table": (lambda d: (d/CSV).write_text(""), (CSV, "first line names no images")),
    "not a text": (lambda d: (d/CSV).write_bytes(bytes(range(128, 256))), (CSV, "not a text file")),
    "semicolons": (lambda d: (d/CSV).write_text((d/CSV).read_text().replace(",", ";")), (CSV, "first line names no images")),
    # compression
    "plain text called gz": (lambda d: (d/CSV).rename(gz(d)), ("y_train.csv.gz", "damaged gzip")),
    "cut gz": (lambda d: (gz(d).write_bytes(gzip.compress((d/CSV).read_bytes())[:-20]), (d/CSV).unlink()), (CSV, "damaged gzip")),
    "plain and gz": (lambda d: (gz(d)).write_bytes(gzip.compress((d/CSV).read_bytes())), ("y_train.csv and y_train.csv.gz", "remove one")),
    "a folder for a table": (lambda d: ((d/CSV).unlink(), (d/CSV).mkdir()), (CSV, "is a folder")),
    # PNG
    "image of another size": (save("4.png", rng_image(SIZE, SIZE + 1)), ("4.png", "16x17", "expected 16x16")),
    "colours": (save("4.png", rng_image(SIZE, SIZE, 3)), ("4.png", "channels differ")),
    "half transparent": (save("4.png", rng_image(SIZE, SIZE, 4)), ("4.png", "channels differ")),
    "16 bit": (save("4.png", rng_image(SIZE, SIZE, top=60000, dtype=np.uint16)), ("4.png", "16-bit", "8 bits")),
    "cut image": (lambda d: (d/IMG).write_bytes((d/IMG).read_bytes()[:150]), ("4.png", "not a readable image")),
    "flipped bytes": (lambda d: (d/IMG).write_bytes((d/IMG).read_bytes()[:60] + b"12345678"*30),
                      ("4.png", "not a readable")),
    "empty image": (lambda d: (d/IMG).write_bytes(b""), ("4.png", "not a readable image")),
    "1 bit": (lambda d: Image.fromarray(rng_image(SIZE, SIZE)).convert("1").save(d/IMG), ("4.png", "1-bit image", "expected 8 bits")),
    "a link to nowhere": (lambda d: ((d/IMG).unlink(), (d/IMG).symlink_to("nowhere")), ("4.png",)),
    "a folder called png": (lambda d: ((d/IMG).unlink(), (d/IMG).mkdir()), ("4.png",)),
    "text called png": (lambda d: (d/"train-images/0.png").write_text("hello"), ("0.png", "not a readable image")),
    # annotated_labels.json
    "json of another length": (set_json(JSON, lambda x: x[:-1]), (JSON, "11 lists for 12")),
    "json no list": (set_json(JSON, lambda x: {"0": x}), (JSON, "expected a list")),
    "json entry no list": (set_json(JSON, lambda x: put(x, 3, 2)), (JSON, "entry 3", "2")),
    "id 0": (set_json(JSON, lambda x: put(x, 3, [0, 1])), (JSON, "entry 3", "0 is not a class id from 1 to 4")),
    "id above C": (set_json(JSON, lambda x: put(x, 3, [1, 5])), (JSON, "entry 3", "5 is not")),
    "id as text": (set_json(JSON, lambda x: put(x, 3, ["1"])), (JSON, "entry 3", "'1' is not")),
    "id true": (set_json(JSON, lambda x: put(x, 3, [True])), (JSON, "entry 3", "True is not")),
    "id a float": (set_json(JSON, lambda x: put(x, 3, [1.0])), (JSON, "entry 3", "1.0 is not")),
    "pixels never examined": (set_json(JSON, lambda x: put(x, 3, [1, 3, 4])), (CSV, "3.png", "class 2 (spleen)", "entry 3")),
    "json shifted by one": (set_json(JSON, lambda x: x[1:] + x[:1]), (CSV, JSON)),
    "damaged json": (lambda d: (d/JSON).write_text("[[1, 2],\n[3"), (JSON, "line 2")),
    "no json": (lambda d: (d/JSON).unlink(), (JSON, "annotated='all'", "annotated='present'")),
    # class_names.json, patients.json
    "class id gap": (set_json("class_names.json", lambda x: {"1": "liver", "3": "spleen"}), ("class_names.json", "'3'", "without a gap")),
    "class names a list": (set_json("class_names.json", lambda x: [*x.values()]), ("class_names.json", "expected an object")),
    "class name twice": (set_json("class_names.json", lambda x: {**x, "2": "liver"}), ("class_names.json", "'liver' is given twice")),
    "fewer classes": (set_json("class_names.json", lambda x: {"1": "liver"}), (CSV, "there are 1 classes")),
    "patients of another length": (set_json("patients.json", lambda x: {**x, "train": [1, 2]}), ("2 patients", "12 images")),
    "a patient not told": (set_json("patients.json", lambda x: {**x, "train": [None]*2 + x["train"][2:]}), ("patients.json", "entry 0", "no patient")),
    "patients lists": (set_json("patients.json", lambda x: {**x, "train": [[1]]*N}), ("patients.json", "entry 0", "no patient")),
    "patients a list": (set_json("patients.json", lambda x: [1]), ("patients.json", "expected")),
    "patients without the split": (set_json("patients.json", lambda x: {"test": x["test"]}), ("patients.json", "train")),
    # folders
    "no table": (lambda d: (d/CSV).unlink(), ("data", "no y_train.csv")),
    "no images": (lambda d: shutil.rmtree(d/"train-images"), ("data", "no train-images/")),
    "images folder empty": (lambda d: [p.unlink() for p in (d/"train-images").iterdir()], ("train-images", "no PNG images")),
    "images one folder too deep": (
        lambda d: ((d/"train-images").rename(d/"x"), (d/"train-images").mkdir(), (d/"x").rename(d/"train-images/train-images")),
        ("train-images", "move those in train-images/ up")),
    "empty folder": (lambda d: (shutil.rmtree(d), d.mkdir()), ("data", "empty folder", "train-images/")),
    "no folder": (lambda d: shutil.rmtree(d), ("data", "no such folder")),
    "a file for a folder": (lambda d: (shutil.rmtree(d), d.write_text("")), ("data", "no such folder")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_folder(data, what):
    read_challenge(data)  # the cache is warm, and must not hide the damage
    damage, parts = BROKEN[what]
    damage(data)
    before = tree(data) if data.is_dir() else None
    told(lambda: read_challenge(data), *parts)
    told(lambda: check_challenge(data), *parts)
    told(lambda: read_challenge(data, cache=False), *parts)
    assert not data.is_dir() or tree(data) == before


TRUTH = {
    "extra test image": (lambda d: imsave(d/"test-images/8.png", rng_image(SIZE, SIZE), check_contrast=False),
                         ("y_test.csv", "no column for 8.png")),
    "missing test image": (lambda d: (d/"test-images/2.png").unlink(), ("y_test.csv", "2.png", "belongs to no image")),
    "other size": (lambda d: write_masks(np.zeros((8, 4, 4), np.uint8), [f"{i}.png" for i in range(8)], d/"y_test.csv"),
                   ("y_test.csv", "16 rows, expected 256")),
}


@pytest.mark.parametrize("what", TRUTH)
def test_broken_test_split(data, what):
    damage, parts = TRUTH[what]
    damage(data)
    told(lambda: read_challenge(data, "test"), *parts)


def test_unknown_options(data):
    told(lambda: read_challenge(data, "tset"), "unknown split 'tset'", "test")
    told(lambda: read_challenge(data, annotated="al"), "unknown value of annotated 'al'", "all")


def test_good_variants(data):
    "What may look odd but is right is read, and gives the same."
    good = read_challenge(data)
    gray = good.images[3]
    for image in (np.stack([gray]*3, -1), np.stack([gray, gray, gray, gray*0 + 255], -1), np.stack([gray, gray*0 + 255], -1)):
        save("3.png", image)(data)
        assert read_challenge(data).fingerprint() == good.fingerprint()
    text = (data/CSV).read_text()
    quoted = text.replace("Pixel 3,", '"Pixel 3",')
    for variant in (text.rstrip("\n"), text + "\n", text.replace("\n", "\r\n"), "\ufeff" + text, quoted, "index" + text):
        (data/CSV).write_bytes(variant.encode())
        assert read_challenge(data).fingerprint() == good.fingerprint()
    (data/"train-images/.hidden.png").write_text("")
    (data/"train-images/notes.txt").write_text("not an image")
    assert read_challenge(data).fingerprint() == good.fingerprint()


def test_images_after_the_last_column_are_unlabelled(data):
    good = read_challenge(data)
    columns(data, list(range(8)))
    assert read_challenge(data).fingerprint() == good.fingerprint()  # the last four were unlabelled before, too
    (data/JSON).unlink()
    s = read_challenge(data, annotated="all")
    assert s.known[:8].all() and not s.known[8:].any()
    s = read_challenge(data, annotated="present")
    assert (s.known == s.present).all()


def test_without_truth_nothing_is_known(data):
    (data/"y_test.csv").unlink()
    s = read_challenge(data, "test")
    assert len(s) == 8 and not s.known.any() and not s.masks.any()


def test_without_patients_near_duplicates(data):
    (data/"patients.json").unlink()
    twin = read_challenge(data).images[0]
    save("7.png", (twin*.7 + 20).astype(np.uint8))(data)
    groups = read_challenge(data).groups
    assert groups[0] == groups[7] and len(set(groups.tolist())) == N - 1


# --- submissions -------------------------------------------------------------------------------------------------------------------------

SUBMISSIONS = {
    "missing column": (lambda f: f.drop(columns="3.png"), ("no column for 3.png",)),
    "extra column": (lambda f: f.assign(**{"8.png": 0}), ("8.png", "belongs to no image")),
    "other names": (lambda f: f.rename(columns=lambda n: n.replace(".png", "")), ("belongs to no image",)),
    "order": (lambda f: f[sorted(f.columns, reverse=True)], ("column 1 is 7.png, expected 0.png",)),
    "too few rows": (lambda f: f[:-1], ("255 rows, expected 256",)),
    "too many rows": (lambda f: pd.concat([f, f[:1]]), ("submission.csv",)),
    "row order": (lambda f: f[::-1], ("'Pixel 255', expected 'Pixel 0'",)),
    "values above C": (lambda f: f + 5, ("Pixel 0, column 0.png", "4 classes")),
    "probabilities": (lambda f: f + .5, ("Pixel 0, column 0.png", "whole number")),
    "missing values": (lambda f: f.mask(f == 2), ("whole number",)),
    "not transposed": (lambda f: f.T, ("turn the table",)),
}


@pytest.mark.parametrize("what", SUBMISSIONS)
def test_bad_submission(data, tmp_path, what):
    change, parts = SUBMISSIONS[what]
    good = pd.read_csv(data/"y_test.csv", index_col=0)
    path = tmp_path/"submission.csv"
    good.to_csv(path)
    assert check_submission(path, data)["images"] == 8
    change(good).to_csv(path)
    told(lambda: check_submission(path, data), "submission.csv", *parts)


def test_submission_for_an_image_that_is_no_png(data):
    (data/"test-images/3.png").rename(data/"test-images/3.jpg")
    told(lambda: check_submission(data/"y_test.csv", data), "y_test.csv", "3.jpg is there, expected 3.png; convert it")


def test_no_submission(data): told(lambda: check_submission(data/"nothing.csv", data), "nothing.csv", "no such file")


# --- writers -----------------------------------------------------------------------------------------------------------------------------

def test_unwritable_sets(tmp_path):
    s, out = toy(), tmp_path/"out"
    told(lambda: write_challenge(s, out, "test"), "fully or not at all")
    told(lambda: write_challenge(s[[0, 0]], out), "0.png")
    told(lambda: write_challenge(s[:0], out), "no slices")
    told(lambda: write_challenge(s, out, "tset"), "tset")
    for name in ("a.jpg", "a/0.png", "../0.png", ".png"):
        odd = SliceSet(s.images[:1], s.masks[:1], s.known[:1], [name], s.groups[:1], CLASSES)
        told(lambda: write_challenge(odd, out), repr(name), "file name")
    told(lambda: write_masks(s.masks.astype(int), s.names, out/"y.csv"), "int64", "uint8")
    told(lambda: write_masks(s.masks, s.names[:3], out/"y.csv"), "3 names for 12 masks")
    assert not out.exists()
    write_challenge(s, out)
    before = tree(out)
    other = SliceSet(s.images, s.masks, s.known, s.names, s.groups, ClassMap(["a", "b", "c", "d"]))
    told(lambda: write_challenge(other, out), "class_names.json", "other classes")
    assert tree(out) == before


def test_a_test_without_truth_over_one_with_truth(data):
    "The older table would be read as the truth of the new slices."
    new = toy(8, seed=2, full=True)
    blank = SliceSet(new.images, 0*new.masks, ~new.known, new.names, new.groups, CLASSES)
    for compress in (False, True):
        write_challenge(toy(8, seed=1, full=True), data, "test", compress=compress)
        write_challenge(blank, data, "test")
        s = read_challenge(data, "test")
        assert not s.known.any() and not s.masks.any() and not list(data.glob("y_test*")) and (data/CSV).exists()


def test_patients_that_are_a_list_are_not_written_over(data):
    (data/"patients.json").write_text("[1]")
    before = tree(data)
    told(lambda: write_challenge(toy(), data), "patients.json", "expected")
    assert tree(data) == before


def test_pairs_are_no_reason_to_refuse(tmp_path):
    "`class_names.json` holds names only; a map with other pairs is the same to the folder."
    classes = ClassMap(CLASSES.names, ((1, 2),))
    s = toy(full=True)
    s = SliceSet(s.images, s.masks, s.known, s.names, s.groups, classes)
    write_challenge(s, tmp_path/"out")
    write_challenge(s, tmp_path/"out", "test")
    assert read_challenge(tmp_path/"out", "test").classes.names == classes.names


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "as if")])
def test_a_folder_is_not_lost_between_two_renames(tmp_path, monkeypatch, error):
    "The old folder is moved aside before the new one takes its place; cut in between, it goes back."
    (tmp_path/"old").mkdir()
    (tmp_path/"old"/"a.png").write_text("old")
    before, real, calls = tree(tmp_path), os.replace, []
    def cut(a, b):
        calls.append(a)
        if len(calls) == 2: raise error
        real(a, b)
    monkeypatch.setattr(F.os, "replace", cut)
    with pytest.raises((InputError, KeyboardInterrupt)), F.atomic_path(tmp_path/"old") as tmp:
        tmp.mkdir()
        (tmp/"b.png").write_text("new")
    assert len(calls) == 2 and tree(tmp_path) == before


def test_json_has_no_infinity(tmp_path):
    F.write_json({"a": [float("inf"), -np.inf, np.float64("nan"), 1.5]}, tmp_path/"a.json")
    assert json.loads((tmp_path/"a.json").read_text(), parse_constant=lambda c: pytest.fail(c)) == {"a": [None, None, None, 1.5]}


@pytest.mark.parametrize("names, pairs, unpaired", [
    (["parotid_l", "parotid_r"], ((1, 2),), ()), (["Lens RT", "Lens LT"], ((2, 1),), ()), (["kidney_left", "liver"], (), ("kidney_left",)),
    (["vertebrae_L1", "vertebrae_L2", "hilum"], (), ()), (["parotid_left", "parotid_r"], (), ("parotid_left", "parotid_r")),
    (["heart_atrium_left", "heart_atrium_right", "heart_ventricle_left", "heart_ventricle_right"], (), ()), (["upright_l_r"], (), ())])
def test_sides(names, pairs, unpaired):
    for given in (names, (n for n in names)):
        classes = ClassMap.from_names(given)
        assert (classes.pairs, classes.unpaired_sides) == (pairs, unpaired)


def test_slices_in_order_are_not_copied(tmp_path, monkeypatch):
    s, calls = toy(), []
    monkeypatch.setattr(SliceSet, "__getitem__", lambda *a: calls.append(a))
    write_challenge(s, tmp_path/"out")
    assert not calls and read_challenge(tmp_path/"out").fingerprint() == s.fingerprint()


@pytest.mark.parametrize("code, words", [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")])
@pytest.mark.parametrize("function", ["imsave", "write_masks", "write_json"])
def test_disk_fails_while_a_folder_is_written(tmp_path, monkeypatch, function, code, words):
    s, calls, real = toy(), [], getattr(D, function)
    write_challenge(s, tmp_path/"old")
    before = tree(tmp_path)

    def fails(*args, **kw):
        real(*args, **kw)  # the file is there in part
        calls.append(1)
        if len(calls) == (5 if function == "imsave" else 1): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(D, function, fails)
    told(lambda: write_challenge(s, tmp_path/"new"), "cannot write", words)
    assert tree(tmp_path) == before  # a new folder is not left behind
    calls.clear()
    told(lambda: write_challenge(toy(seed=3), tmp_path/"old"), "cannot write", words)
    assert tree(tmp_path) == before  # and an old one keeps its content


SCRIPT = """
import os, subprocess, sys
import numpy as np
from ctseg.data import read_challenge, write_challenge, write_masks
from ctseg.files import InputError
data, disk = sys.argv[1:]
s = read_challenge(data)
for options in ("size=16k", "ro"):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk]).returncode: sys.exit(77)
    for call in (lambda: write_masks(np.tile(s.masks, (1, 20, 20)), s.names, disk + "/y.csv"), lambda: write_challenge(s, disk + "/new")):
        try: call()
        except InputError as e: print(e, os.listdir(disk))
        else: print("written")
"""


def test_real_full_and_read_only_disk(data, tmp_path):
    "On real tiny disks, mounted where nobody else sees them. Needs the right to mount; the test above stands in for it elsewhere."
    (disk := tmp_path/"disk").mkdir()
    if not shutil.which("unshare"): pytest.skip("no unshare here")
    out = subprocess.run(["unshare", "-m", sys.executable, "-c", SCRIPT, data, disk], capture_output=True, text=True)
    if out.returncode in (1, 77) and "Traceback" not in out.stderr: pytest.skip("no right to mount a small disk here")
    lines = out.stdout.splitlines()
    full, ro = "the disk is full []", "the disk is read-only []"  # and nothing is left
    assert [line.split(": ")[-1] for line in lines] == [full, full, ro, ro], out.stdout + out.stderr
    assert all(line.startswith(f"cannot write {disk}") for line in lines)


# --- the cache ---------------------------------------------------------------------------------------------------------------------------

def test_cache_follows_content(data, monkeypatch):
    real = time.time_ns
    monkeypatch.setattr(D.time, "time_ns", lambda: real() + 10**10)  # as if the files were old enough for their hashes to be remembered
    first = read_challenge(data)
    calls = []
    table, pngs = D._read_table, D.read_pngs
    monkeypatch.setattr(D, "_read_table", lambda *a: calls.append("table") or table(*a))
    monkeypatch.setattr(D, "read_pngs", lambda *a: calls.append("images") or pngs(*a))
    assert read_challenge(data).fingerprint() == first.fingerprint() and not calls  # nothing is read again
    path = data/CSV
    stat = path.stat()
    k = next(k for k in range(256) if values(k)[4] == 1)
    line = [*map(str, values(k))]
    line[4] = "2"
    edit(path, (row(k, values(k)), row(k, line)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same date, other content
    assert path.stat().st_size == stat.st_size
    assert read_challenge(data).masks[4].ravel()[k] == 2 and calls == ["table"]
    shutil.copy(path, data.parent/"copy.csv")
    calls.clear()
    read_masks(data.parent/"copy.csv")  # the same content under another name
    assert not calls


def test_damaged_cache_is_made_again(data, tmp_path):
    first = read_challenge(data)
    for p in (tmp_path/"cache").rglob("*"):
        if p.is_file(): p.write_bytes(p.read_bytes()[:-5])
    assert read_challenge(data).fingerprint() == first.fingerprint()


def test_cache_that_cannot_be_written(data, tmp_path, monkeypatch):
    first = read_challenge(data)
    (tmp_path/"file").write_text("")
    monkeypatch.setenv("CTSEG_CACHE", str(tmp_path/"file"/"cache"))
    with pytest.warns(UserWarning, match="not be faster"): assert read_challenge(data).fingerprint() == first.fingerprint()


def test_cache_never_inside_the_data(data):
    before = tree(data)
    read_challenge(data), read_challenge(data, "test")
    assert tree(data) == before


# --- many cases --------------------------------------------------------------------------------------------------------------------------

@st.composite
def mask_sets(draw):
    n, h, w = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    seed, top = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1, 10, 101, 256]))
    return np.random.default_rng(seed).integers(0, top, (n, h, w)).astype(np.uint8)


@quick
@given(masks=mask_sets(), end=st.sampled_from([".csv", ".csv.gz"]), block=st.integers(8, 400))
def test_masks_round_trip(tmp_path, masks, end, block):
    names = [f"{i}.png" for i in range(len(masks))]
    path = tmp_path/f"y{end}"
    write_masks(masks, names, path)
    expected = pd.DataFrame(masks.reshape(len(masks), -1).T, index=[f"Pixel {k}" for k in range(masks[0].size)], columns=names)
    text = gzip.open(path).read() if end == ".csv.gz" else path.read_bytes()
    assert text.decode() == expected.to_csv()
    blocks = D._blocks
    with pytest.MonkeyPatch.context() as m:
        m.setattr(D, "_blocks", lambda f: blocks(f, block))  # block borders fall everywhere
        got_names, got = read_masks(path, names, masks.shape[1:], cache=False)
    assert got_names == names and (got == masks).all() and got.dtype == np.uint8


def strictly(text):
    "What a table means, by the plainest possible reading; `None` if it is damaged."
    head, *lines = text.replace("\r\n", "\n").rstrip("\r").split("\n")
    n = len(head.split(",")) - 1
    while lines and not lines[-1]: lines.pop()
    out = []
    for k, line in enumerate(lines):
        label, *vals = line.split(",")
        if label.strip('"') != f"Pixel {k}" or len(vals) != n: return None
        if not all(v.isascii() and v.isdigit() and len(v) <= 3 and int(v) < 256 for v in vals): return None
        out.append([int(v) for v in vals])
    return np.array(out, np.uint8).reshape(len(out), n).T


@settings(quick, max_examples=200)
@given(masks=mask_sets(), at=st.integers(0, 10**6), kind=st.sampled_from(["change", "insert", "delete", "cut"]),
       char=st.sampled_from(list("0129,\n\r-. xP\x00")))
def test_any_damage_is_harmless_or_noticed(tmp_path, masks, at, kind, char):
    path = tmp_path/"y.csv"
    write_masks(masks, [f"{i}.png" for i in range(len(masks))], path)
    text = path.read_text()
    start = text.index("\n") + 1
    i = start + at % (len(text) - start)
    before, after = text[:i], text[i:]
    text = before + {"change": char + after[1:], "insert": char + after, "delete": after[1:], "cut": ""}[kind]
    path.write_bytes(text.encode())
    expected = strictly(text)
    try: got = read_masks(path, size=masks.shape[1:], cache=False)[1].reshape(len(masks), -1)
    except InputError as e:
        assert "\n" not in str(e) and "y.csv" in str(e)
        assert expected is None or expected.shape[1] != masks[0].size or "\n\n" in text or "\nPixel" not in text, f"refused: {e}"
    else: assert expected is not None and (got == expected).all()


@settings(quick, max_examples=25)
@given(n=st.integers(1, 13), size=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), compress=st.booleans())
def test_folder_round_trip(tmp_path_factory, n, size, seed, compress):
    s = toy(n, size, seed)
    folder = tmp_path_factory.mktemp("data")
    write_challenge(s[np.random.default_rng(seed).permutation(n)], folder, compress=compress)
    assert read_challenge(folder, cache=False).fingerprint() == s.fingerprint()


@st.composite
def grouped_sets(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, C, groups = draw(st.integers(5, 80)), draw(st.integers(1, 9)), draw(st.integers(5, 30))
    present = rng.random((n, C)) < rng.uniform(.01, .4, C)
    known = (present | (rng.random((n, C)) < .3)) & (rng.random((n, 1)) < .8)
    masks = (np.arange(1, C + 1)*(present & known)).astype(np.uint8)[:, None]
    group = np.concatenate([np.arange(5), rng.integers(0, groups, n)])[:n]
    return SliceSet(masks, masks, known, [f"{i}.png" for i in range(n)], group, ClassMap([f"c{i}" for i in range(C)]))


@quick
@given(s=grouped_sets(), k=st.integers(2, 5), seed=st.integers(0, 99))
def test_folds(s, k, seed):
    fold = grouped_folds(s, k, seed)
    assert fold.dtype == np.int64 and fold.min() >= 0 and fold.max() < k
    for g in np.unique(s.groups): assert len(np.unique(fold[s.groups == g])) == 1  # no group crosses folds
    assert len(np.unique(fold)) == k  # no fold is empty
    images = s.present.sum(0)
    if images.any():  # the rarest class is in as many folds as it can be
        c = np.where(images > 0, images, 10**6).argmin()
        assert len(np.unique(fold[s.present[:, c]])) == min(k, len(np.unique(s.groups[s.present[:, c]])))
    assert (fold == grouped_folds(s, k, seed)).all()


def test_too_many_folds():
    told(lambda: grouped_folds(toy(), 7), "7 folds of 6 groups")


@quick
@given(s=grouped_sets(), seed=st.integers(0, 99), data=st.data())
def test_select_labelled(s, seed, data):
    total = int(s.labelled.sum())
    if not total: return
    n = data.draw(st.integers(1, total))
    few = select_labelled(s, n, seed)
    assert few.labelled.sum() == n and len(few) == len(s) and (few.images == s.images).all()
    assert (few.known[few.labelled] == s.known[few.labelled]).all() and not few.masks[~few.labelled].any()
    part = [g for g in np.unique(s.groups) if 0 < few.labelled[s.groups == g].sum() < s.labelled[s.groups == g].sum()]
    assert len(part) <= 1
    smaller = select_labelled(s, (n + 1)//2, seed)
    assert not (smaller.labelled & ~few.labelled).any()


@quick
@given(n=st.integers(1, 50), batch=st.integers(1, 6), world=st.integers(1, 3), epoch=st.integers(0, 9), drop=st.booleans(),
       weighted=st.booleans())
def test_sampler(n, batch, world, epoch, drop, weighted):
    batch *= world
    weights = np.random.default_rng(n).uniform(.5, 3, n) if weighted else None
    make = lambda **kw: EpochSampler(n, batch, 7, weights, drop_last=drop, **kw)
    whole = make().batches(epoch)
    assert len(whole) == len(make())
    assert all(len(b) == batch for b in (whole if drop else whole[:-1]))
    assert [b.tolist() for b in make().batches(epoch)] == [b.tolist() for b in whole]
    ranks = [make(rank=r, world=world).batches(epoch) for r in range(world)]
    assert len({len(r) for r in ranks}) == 1 and all(len({len(b) for b in together}) == 1 for together in zip(*ranks))
    if drop: assert [sorted(i for b in together for i in b.tolist()) for together in zip(*ranks)] == [sorted(b.tolist()) for b in whole]
    every = [i for b in whole for i in b.tolist()]
    if not weighted and n >= batch: assert len(set(every)) == len(every) if drop else set(every) == set(range(n))


def test_near_duplicates_of_many_images():
    "2500 images: the groups are found, and it does not take a Python loop over pairs."
    rng = np.random.default_rng(0)
    base = rng.integers(0, 200, (1250, 16, 16))
    images = np.concatenate([base, base + rng.integers(0, 8, base.shape)]).astype(np.uint8)
    start = time.perf_counter()
    groups = near_duplicates(images)
    assert time.perf_counter() - start < 20
    assert (groups[:1250] == groups[1250:]).all() and len(np.unique(groups)) == 1250
