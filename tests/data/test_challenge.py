"""Bad input: every mistake in a challenge folder is told in one line with the place and the remedy; nothing
is left half-written."""
import errno
import gzip
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import skimage.io
from helpers.folders import (
    CLASSES,
    CSV,
    IMG,
    JSON,
    N,
    SIZE,
    edit,
    put,
    quick,
    random_image,
    random_slices,
    reorder_columns,
    row,
    save,
    set_json,
    set_row,
    set_value,
    told,
    tree,
    values,
    zipped,
)
from hypothesis import given, settings, strategies as st
from PIL import Image
from skimage.io import imsave

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data import challenge
from ctseg.data.challenge import check_challenge, check_submission, read_challenge, write_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.data.slices import SliceSet
from ctseg.metrics.evaluate import evaluate_files


def test_test_images_that_lead_nowhere_are_no_folder_without_a_test(data):
    shutil.rmtree(data/"test-images", ignore_errors=True)
    (data/"test-images").symlink_to("nowhere")
    told(lambda: check_challenge(data), "test-images is there, but is a link that leads nowhere")


BROKEN = {
    # images against columns
    "missing image": (lambda d: (d/"train-images/3.png").unlink(), (CSV, "3.png", "belongs to no image")),
    "an image that is no PNG": (
        lambda d: (d/"train-images/3.png").rename(d/"train-images/3.jpg"),
        (CSV, "3.jpg is there, expected 3.png; convert it"),
    ),
    "an image in capitals": (
        lambda d: (d/"train-images/3.png").rename(d/"train-images/3.PNG"),
        (CSV, "3.PNG is there, expected 3.png; rename it"),
    ),
    "extra image inside": (save("5b.png", random_image(SIZE, SIZE)), (CSV, "no column for 5b.png")),
    "extra image at the end": (save("12.png", random_image(SIZE, SIZE)), (JSON, "12 lists for 13")),
    "missing column": (
        lambda d: reorder_columns(d, [i for i in range(N) if i != 5]),
        (CSV, "no column for 5.png"),
    ),
    "missing column of an examined image": (
        lambda d: reorder_columns(d, list(range(6))),
        (CSV, "no column for 6.png", JSON),
    ),
    "extra column": (lambda d: edit(d/CSV, (",11.png", ",99.png")), (CSV, "99.png", "belongs to no image")),
    "columns in alphabetical order": (
        lambda d: reorder_columns(d, [0, 1, 10, 11, *range(2, 10)]),
        (CSV, "column 3 is 10.png, expected 2.png"),
    ),
    "column twice": (lambda d: edit(d/CSV, (",11.png", ",3.png")), (CSV, "3.png is there twice")),
    "table not transposed": (
        lambda d: pd.read_csv(d/CSV, index_col=0).T.to_csv(d/CSV),
        (CSV, "turn the table"),
    ),
    "table without its index": (
        lambda d: pd.read_csv(d/CSV, index_col=0).to_csv(d/CSV, index=False),
        (CSV, "no column for 0.png"),
    ),
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
    "short row before a long one": (
        lambda d: edit(
            d/CSV, (row(30, values(30)), row(30, [0]*11)), (row(31, values(31)), row(31, [0]*13))
        ),
        (CSV, "Pixel 30", "11 values"),
    ),
    "cut inside a row": (
        lambda d: (d/CSV).write_bytes((d/CSV).read_bytes()[:-8]),
        (CSV, "Pixel 255", "values, expected 12", "cut off"),
    ),
    "cut after a row": (
        lambda d: (d/CSV).write_text((d/CSV).read_text().split("Pixel 255")[0]),
        (CSV, "255 rows, expected 256"),
    ),
    "a row too many": (
        lambda d: (d/CSV).write_text((d/CSV).read_text() + row(256, [0]*N)[1:]),
        (CSV, "more than 256 rows"),
    ),
    "a row missing": (set_row(30, "\n"), (CSV, "line 32", "'Pixel 31', expected 'Pixel 30'")),
    "rows out of order": (
        lambda d: edit(d/CSV, ("Pixel 7,", "Pixel X,"), ("Pixel 8,", "Pixel 7,"), ("Pixel X,", "Pixel 8,")),
        (CSV, "expected 'Pixel 7'"),
    ),
    "only a header": (
        lambda d: (d/CSV).write_text((d/CSV).read_text().split("\n")[0] + "\n"),
        (CSV, "0 rows, expected 256"),
    ),
    "no header": (
        lambda d: (d/CSV).write_text((d/CSV).read_text().partition("\n")[2]), (CSV, "the first line names no images"),
    ),
    "Excel's line that names the separator": (
        lambda d: (d/CSV).write_text("sep=,\n" + (d/CSV).read_text()), (CSV, "the first line names no images"),
    ),
    "Excel's empty row at the end": (
        lambda d: (d/CSV).write_text((d/CSV).read_text() + ","*N + "\n"), (CSV, "line 258: an empty row; remove it"),
    ),
    "letters coded in another way": (
        lambda d: (edit(d/CSV, ("4.png", "\u00e4.png")), (d/IMG).rename((d/IMG).with_name("a\u0308.png"))), (CSV, "NFC or NFD"),
    ),
    "an index written twice": (
        lambda d: pd.read_csv(d/CSV, dtype=str).to_csv(d/CSV), (CSV, "column 2 is called 'Unnamed: 0'"),
    ),
    "a comma at the end of each line": (
        lambda d: (d/CSV).write_text((d/CSV).read_text().replace("\n", ",\n")), (CSV, "column 14 is called ''"),
    ),
    "marks of a merge": (lambda d: (d/CSV).write_text("<<<<<<< HEAD\n" + (d/CSV).read_text()), (CSV, "a merge that was not solved")),
    "spaces after the commas": (
        lambda d: (d/CSV).write_text((d/CSV).read_text().replace(",", ", ")),
        (CSV, "column ' 0.png' is to be called '0.png'"),
    ),
    "empty table": (lambda d: (d/CSV).write_text(""), (CSV, "empty; expected a CSV")),
    "web page": (lambda d: (d/CSV).write_text("<!DOCTYPE html>\n<body>403</body>"), (CSV, "a web page")),
    "UTF-16": (lambda d: (d/CSV).write_bytes((d/CSV).read_text().encode("utf-16")), (CSV, "UTF-16")),
    "gz called csv": (
        lambda d: (d/CSV).write_bytes(gzip.compress((d/CSV).read_bytes())), (CSV, "call it y_train.csv.gz"),
    ),
    "gz in gz": (
        lambda d: (zipped(d).write_bytes(gzip.compress(gzip.compress((d/CSV).read_bytes()))), (d/CSV).unlink()),
        (CSV, "not a text file"),
    ),
    "tabs": (lambda d: edit(d/CSV, *[(",", "\t")]*N), (CSV, "tabs between its cells")),
    "not a text": (lambda d: (d/CSV).write_bytes(bytes(range(128, 256))), (CSV, "not a text file")),
    "semicolons": (
        lambda d: (d/CSV).write_text((d/CSV).read_text().replace(",", ";")),
        (CSV, "semicolons between its cells"),
    ),
    # compression
    "plain text called gz": (lambda d: (d/CSV).rename(zipped(d)), ("y_train.csv.gz", "call it y_train.csv")),
    "cut gz": (
        lambda d: (zipped(d).write_bytes(gzip.compress((d/CSV).read_bytes())[:-20]), (d/CSV).unlink()),
        (CSV, "damaged gzip"),
    ),
    "plain and gz": (
        lambda d: zipped(d).write_bytes(gzip.compress((d/CSV).read_bytes())),
        ("y_train.csv and y_train.csv.gz", "remove one"),
    ),
    "a folder for a table": (lambda d: ((d/CSV).unlink(), (d/CSV).mkdir()), (CSV, "is a folder")),
    # PNG
    "image of another size": (
        save("4.png", random_image(SIZE, SIZE + 1)),
        ("4.png", "16x17", "expected 16x16"),
    ),
    "the first image of another size": (
        save("0.png", random_image(SIZE, SIZE + 1)),
        ("1.png: 16x16", "expected 16x17 as 0.png", "whichever differs"),
    ),
    "colours": (save("4.png", random_image(SIZE, SIZE, 3)), ("4.png", "channels differ")),
    "half transparent": (save("4.png", random_image(SIZE, SIZE, 4)), ("4.png", "transparent pixels")),
    "16 bit": (
        save("4.png", random_image(SIZE, SIZE, top=60000, dtype=np.uint16)),
        ("4.png", "16-bit", "8 bits"),
    ),
    "cut image": (
        lambda d: (d/IMG).write_bytes((d/IMG).read_bytes()[:150]),
        ("4.png", "not a readable image"),
    ),
    "flipped bytes": (
        lambda d: (d/IMG).write_bytes((d/IMG).read_bytes()[:60] + b"12345678"*30),
        ("4.png", "not a readable"),
    ),
    "empty image": (lambda d: (d/IMG).write_bytes(b""), ("4.png", "not a readable image")),
    "1 bit": (
        lambda d: Image.fromarray(random_image(SIZE, SIZE)).convert("1").save(d/IMG),
        ("4.png", "1-bit image", "expected 8 bits"),
    ),
    "a link to nowhere": (lambda d: ((d/IMG).unlink(), (d/IMG).symlink_to("nowhere")), ("4.png",)),
    "a folder called png": (lambda d: ((d/IMG).unlink(), (d/IMG).mkdir()), ("4.png",)),
    "text called png": (
        lambda d: (d/"train-images/0.png").write_text("hello"),
        ("0.png", "not a readable image"),
    ),
    # annotated_labels.json
    "json of another length": (set_json(JSON, lambda x: x[:-1]), (JSON, "11 lists for 12")),
    "json no list": (set_json(JSON, lambda x: {"0": x}), (JSON, "expected a list")),
    "json entry no list": (set_json(JSON, lambda x: put(x, 3, 2)), (JSON, "entry 3", "2")),
    "id 0": (
        set_json(JSON, lambda x: put(x, 3, [0, 1])),
        (JSON, "entry 3", "0 is not a class id from 1 to 4"),
    ),
    "id above C": (set_json(JSON, lambda x: put(x, 3, [1, 5])), (JSON, "entry 3", "5 is not")),
    "id as text": (set_json(JSON, lambda x: put(x, 3, ["1"])), (JSON, "entry 3", "'1' is not")),
    "id true": (set_json(JSON, lambda x: put(x, 3, [True])), (JSON, "entry 3", "True is not")),
    "id a float": (set_json(JSON, lambda x: put(x, 3, [1.0])), (JSON, "entry 3", "1.0 is not")),
    "pixels never examined": (
        set_json(JSON, lambda x: put(x, 3, [1, 3, 4])),
        (CSV, "3.png", "class 2 (spleen)", "entry 3"),
    ),
    "json shifted by one": (set_json(JSON, lambda x: x[1:] + x[:1]), (CSV, JSON)),
    "damaged json": (lambda d: (d/JSON).write_text("[[1, 2],\n[3"), (JSON, "line 2")),
    "no json": (lambda d: (d/JSON).unlink(), (JSON, "annotated='all'", "annotated='present'")),
    # class_names.json, patients.json
    "class id gap": (
        set_json("class_names.json", lambda x: {"1": "liver", "3": "spleen"}),
        ("class_names.json", "'3'", "without a gap"),
    ),
    "the background as a class": (
        set_json("class_names.json", lambda x: {"0": "Background", **x}),
        ("class_names.json", "'0' is the background", "leave it out"),
    ),
    "class names a list": (
        set_json("class_names.json", lambda x: [*x.values()]),
        ("class_names.json", "expected an object"),
    ),
    "class name twice": (
        set_json("class_names.json", lambda x: {**x, "2": "liver"}),
        ("class_names.json", "'liver' is given twice"),
    ),
    "fewer classes": (set_json("class_names.json", lambda x: {"1": "liver"}), (CSV, "there are 1 classes")),
    "patients of another length": (
        set_json("patients.json", lambda x: {**x, "train": [1, 2]}),
        ("2 patients", "12 images"),
    ),
    "a patient not told": (
        set_json("patients.json", lambda x: {**x, "train": [None]*2 + x["train"][2:]}),
        ("patients.json", "entry 0", "no patient"),
    ),
    "patients lists": (
        set_json("patients.json", lambda x: {**x, "train": [[1]]*N}),
        ("patients.json", "entry 0", "no patient"),
    ),
    "patients a list": (set_json("patients.json", lambda x: [1]), ("patients.json", "expected")),
    "patients without the split": (
        set_json("patients.json", lambda x: {"test": x["test"]}),
        ("patients.json", "train"),
    ),
    # folders
    "no table": (lambda d: (d/CSV).unlink(), ("data", "no y_train.csv")),
    "no images": (lambda d: shutil.rmtree(d/"train-images"), ("data", "no train-images/")),
    "images folder empty": (
        lambda d: [p.unlink() for p in (d/"train-images").iterdir()],
        ("train-images", "no PNG images"),
    ),
    "images one folder too deep": (
        lambda d: (
            (d/"train-images").rename(d/"x"),
            (d/"train-images").mkdir(),
            (d/"x").rename(d/"train-images/train-images"),
        ),
        ("train-images", "give the folder train-images/ in it"),
    ),
    "empty folder": (lambda d: (shutil.rmtree(d), d.mkdir()), ("data", "empty folder", "train-images/")),
    "no folder": (lambda d: shutil.rmtree(d), ("data", "no such folder")),
    "a file for a folder": (lambda d: (shutil.rmtree(d), d.write_text("")), ("data", "a file; give the folder")),
    "an archive for a folder": (lambda d: (shutil.rmtree(d), d.write_bytes(b"PK\3\4")), ("data", "unpack it")),
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


@pytest.mark.parametrize("name", ["y_train.csv.gz", "p1.nii.gz"])
def test_a_table_of_the_folder_is_no_archive(tmp_path, name):
    "It is read as it is, so nobody is asked to unpack it."
    (tmp_path/name).write_bytes(b"\x1f\x8b")
    told(lambda: read_challenge(tmp_path/name), name, "a file; give the folder that it lies in")


TRUTH = {
    "extra test image": (
        lambda d: imsave(d/"test-images/8.png", random_image(SIZE, SIZE), check_contrast=False),
        ("y_test.csv", "no column for 8.png"),
    ),
    "missing test image": (
        lambda d: (d/"test-images/2.png").unlink(),
        ("y_test.csv", "2.png", "belongs to no image"),
    ),
    "other size": (
        lambda d: write_masks(
            np.zeros((8, 4, 4), np.uint8), [f"{i}.png" for i in range(8)], d/"y_test.csv"
        ),
        ("y_test.csv", "16 rows, expected 256"),
    ),
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
    for image in (
        np.stack([gray]*3, -1),
        np.stack([gray, gray, gray, gray*0 + 255], -1),
        np.stack([gray, gray*0 + 255], -1),
    ):
        save("3.png", image)(data)
        assert read_challenge(data).fingerprint() == good.fingerprint()
    text = (data/CSV).read_text()
    quoted = text.replace("Pixel 3,", '"Pixel 3",')
    for variant in (
        text.rstrip("\n"),
        text + "\n",
        text.replace("\n", "\r\n"),
        "\ufeff" + text,
        quoted,
        "index" + text,
    ):
        (data/CSV).write_bytes(variant.encode())
        assert read_challenge(data).fingerprint() == good.fingerprint()
    (data/"train-images/.hidden.png").write_text("")
    (data/"train-images/notes.txt").write_text("not an image")
    assert read_challenge(data).fingerprint() == good.fingerprint()


def test_images_after_the_last_column_are_unlabelled(data):
    good = read_challenge(data)
    reorder_columns(data, list(range(8)))
    # the last four were unlabelled before, too
    assert read_challenge(data).fingerprint() == good.fingerprint()
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


# --- submissions ------------------------------------------------------------------------------------------
# -------------------------------

SUBMISSIONS = {
    "missing column": (lambda f: f.drop(columns="3.png"), ("no column for 3.png",)),
    "extra column": (lambda f: f.assign(**{"8.png": 0}), ("8.png", "belongs to no image")),
    "other names": (lambda f: f.rename(columns=lambda n: n.replace(".png", "")), ("column '0' is to be called '0.png'",)),
    "paths": (lambda f: f.rename(columns=lambda n: "test\\images\\" + n), ("is to be called '0.png'",)),
    "leading zeros": (lambda f: f.rename(columns=lambda n: " 000" + n), ("column ' 0000.png' is to be called '0.png'",)),
    "none of them": (lambda f: f.rename(columns=lambda n: "1" + n), ("column 10.png", "belongs to no image")),
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
    told(
        lambda: check_submission(data/"y_test.csv", data),
        "y_test.csv",
        "3.jpg is there, expected 3.png; convert it",
    )


def test_no_submission(data):
    told(lambda: check_submission(data/"nothing.csv", data), "nothing.csv", "no such file")


# --- a test whose truth is partial
# -------------------------------------------------------------------------------------------------------

def test_a_partial_truth_of_the_test_comes_back(tmp_path):
    s = random_slices()
    write_challenge(s, tmp_path/"d", "test")
    back = read_challenge(tmp_path/"d", "test")
    assert (back.known == s.known).all() and back.fingerprint() == s.fingerprint()
    write_challenge(random_slices(full=True), tmp_path/"d", "test")
    assert read_challenge(tmp_path/"d", "test").known.all(), "the old list must not outlive its table"


@pytest.mark.parametrize("lists, parts", [
    (lambda lists: lists[:-1], ("11 lists for 12 images",)),
    (lambda lists: [[]] + lists[1:], ("column 0.png", "entry 0 of annotated_labels_test.json")),
    (lambda lists: put(lists, 1, [9]), ("entry 1", "9 is not a class id")),
    (lambda lists: {}, ("expected a list",)),
])
def test_a_wrong_list_of_the_test(tmp_path, lists, parts):
    write_challenge(random_slices(), tmp_path, "test")
    set_json("annotated_labels_test.json", lists)(tmp_path)
    told(lambda: read_challenge(tmp_path, "test"), "annotated_labels_test.json", *parts)


def test_a_partial_truth_of_the_test_is_scored_in_part(tmp_path):
    s = random_slices()
    write_challenge(s, tmp_path, "test")
    facts = evaluate_files(tmp_path/"y_test.csv", tmp_path/"y_test.csv")["facts"]
    assert facts["dice"] == 1 and facts == evaluate_files(
        tmp_path/"y_test.csv", tmp_path/"y_test.csv", tmp_path/"annotated_labels_test.json")["facts"]
    (tmp_path/"annotated_labels_test.json").unlink()
    assert evaluate_files(tmp_path/"y_test.csv", tmp_path/"y_test.csv")["facts"] != facts


# --- writers ----------------------------------------------------------------------------------------------
# -------------------------------

def test_unwritable_sets(tmp_path):
    s, out = random_slices(), tmp_path/"out"
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
    new = random_slices(8, seed=2, full=True)
    blank = SliceSet(new.images, 0*new.masks, ~new.known, new.names, new.groups, CLASSES)
    for compress in (False, True):
        write_challenge(random_slices(8, seed=1, full=True), data, "test", compress=compress)
        write_challenge(blank, data, "test")
        s = read_challenge(data, "test")
        assert (
            not s.known.any()
            and not s.masks.any()
            and not list(data.glob("y_test*"))
            and (data/CSV).exists()
        )


def test_patients_that_are_a_list_are_not_written_over(data):
    (data/"patients.json").write_text("[1]")
    before = tree(data)
    told(lambda: write_challenge(random_slices(), data), "patients.json", "expected")
    assert tree(data) == before


def test_pairs_are_no_reason_to_refuse(tmp_path):
    "`class_names.json` holds names only; a map with other pairs is the same to the folder."
    classes = ClassMap(CLASSES.names, ((1, 2),))
    s = random_slices(full=True)
    s = SliceSet(s.images, s.masks, s.known, s.names, s.groups, classes)
    write_challenge(s, tmp_path/"out")
    write_challenge(s, tmp_path/"out", "test")
    assert read_challenge(tmp_path/"out", "test").classes.names == classes.names


def test_slices_in_order_are_not_copied(tmp_path, monkeypatch):
    s, calls = random_slices(), []
    monkeypatch.setattr(SliceSet, "__getitem__", lambda *a: calls.append(a))
    write_challenge(s, tmp_path/"out")
    assert not calls and read_challenge(tmp_path/"out").fingerprint() == s.fingerprint()


@pytest.mark.parametrize("code, "
                         "words", [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")])
@pytest.mark.parametrize("function", ["imsave", "write_masks", "write_json"])
def test_disk_fails_while_a_folder_is_written(tmp_path, monkeypatch, function, code, words):
    where = skimage.io if function == "imsave" else challenge
    s, calls, real = random_slices(), [], getattr(where, function)
    write_challenge(s, tmp_path/"old")
    before = tree(tmp_path)

    def fails(*args, **kw):
        real(*args, **kw)  # the file is there in part
        calls.append(1)
        if len(calls) == (5 if function == "imsave" else 1): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(where, function, fails)
    told(lambda: write_challenge(s, tmp_path/"new"), "cannot write", words)
    assert tree(tmp_path) == before  # a new folder is not left behind
    calls.clear()
    told(lambda: write_challenge(random_slices(seed=3), tmp_path/"old"), "cannot write", words)
    assert tree(tmp_path) == before  # and an old one keeps its content


SCRIPT = """
import os
import subprocess
import sys
import numpy as np
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.data.mask_csv import write_masks
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
    """On real tiny disks, mounted where nobody else sees them. Needs the right to mount; the test above
    stands in for it elsewhere."""
    (disk := tmp_path/"disk").mkdir()
    if not shutil.which("unshare"): pytest.skip("no unshare here")
    out = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", SCRIPT, data, disk], capture_output=True, text=True
    )
    if out.returncode in (1, 77) and "Traceback" not in out.stderr:
        pytest.skip("no right to mount a small disk here")
    lines = out.stdout.splitlines()
    full, ro = "the disk is full []", "the disk is read-only []"  # and nothing is left
    assert [line.split(": ")[-1] for line in lines] == [full, full, ro, ro], out.stdout + out.stderr
    assert all(line.startswith(f"cannot write {disk}") for line in lines)


@settings(quick, max_examples=25)
@given(n=st.integers(1, 13), size=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), compress=st.booleans())
def test_folder_round_trip(tmp_path_factory, n, size, seed, compress):
    s = random_slices(n, size, seed)
    folder = tmp_path_factory.mktemp("data")
    write_challenge(s[np.random.default_rng(seed).permutation(n)], folder, compress=compress)
    assert read_challenge(folder, cache=False).fingerprint() == s.fingerprint()


# --- as downloaded and unpacked
# ----------------------------------------------------------------------------------------------------------

def test_what_a_mac_leaves_is_passed_over(data):
    good = read_challenge(data)
    (data/"train-images/.DS_Store").write_bytes(b"\0\1")
    (data/"train-images/._3.png").write_bytes(b"\0\5\x16\7")
    for junk in (data/"__MACOSX/train-images", data/"train-images/__MACOSX"):
        junk.mkdir(parents=True)
        (junk/"._0.png").write_bytes(b"\0\5\x16\7")
        (junk/"0.png").write_bytes(b"\0\5\x16\7")
    assert (
        read_challenge(data).fingerprint() == good.fingerprint()
        and check_challenge(data)["train"]["images"] == N
    )


def test_a_folder_of_leavings_is_no_remedy(data):
    "The images are one folder too deep, and beside them lies what a Mac left."
    (data/"train-images").rename(data/"x")
    (data/"train-images/__MACOSX").mkdir(parents=True)
    (data/"train-images/__MACOSX/0.png").write_bytes(b"\0\5\x16\7")
    told(lambda: read_challenge(data), "train-images", "no PNG images", "put the slices there")
    (data/"x").rename(data/"train-images/slices")
    told(lambda: read_challenge(data), "give the folder slices/ in it")


@pytest.mark.parametrize("name", ["label_Hnl61pT.csv", "label_Hnl61pT.csv.gz"])
def test_the_table_as_the_site_calls_it(data, name):
    good = read_challenge(data)
    text = (data/CSV).read_bytes()
    (data/CSV).unlink()
    (data/name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert read_challenge(data).fingerprint() == good.fingerprint()
    (data/"label_other.csv").write_bytes(text)
    told(lambda: read_challenge(data), "label_Hnl61pT.csv", "label_other.csv", "remove one")
    (data/CSV).write_bytes(text)  # the name that ctseg writes comes first
    assert read_challenge(data).fingerprint() == good.fingerprint()


def test_the_sites_table_is_a_partial_truth(data):
    "Scored with the list beside it, and by its patients, as `y_train.csv` is."
    (data/"label_Hnl61pT.csv").write_bytes((data/CSV).read_bytes())
    by_name = [evaluate_files(data/name, data/CSV)["facts"] for name in (CSV, "label_Hnl61pT.csv")]
    assert by_name[0] == by_name[1] and by_name[0]["groups"] == N//2 and "dice_pessimistic" in by_name[0]


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda d: (d/"train-images").rename(d/"train_images"), "call it train-images"),
        (
            lambda d: (shutil.rmtree(d/"train-images"), (d/"train-images").write_text("")),
            "(train-images is there, but is a file)",
        ),
        (
            lambda d: (shutil.rmtree(d/"train-images"), (d/"train-images").symlink_to("gone")),
            "(train-images is there, but is a link that leads nowhere)",
        ),
        (lambda d: ((d/"train").mkdir(), (d/"train-images").rename(d/"train/train-images")), "train/: move it up"),
        (lambda d: (shutil.make_archive(d/"images", "zip", d/"train-images"), shutil.rmtree(d/"train-images")), "unpack images.zip"),
        (lambda d: ((d/"train-images").rename(d/"test-images"), (d/"test-images.zip").touch()), "has no train-images/; expected"),
        (lambda d: ((d/"test-images.zip").touch(), shutil.make_archive(d/"train-images", "zip", d/"train-images"),
                    shutil.rmtree(d/"train-images")), "unpack train-images.zip"),
        (lambda d: ((d/"a.json.zip").touch(), shutil.rmtree(d/"train-images")), "has no train-images/; expected"),
        (lambda d: ((d/"train-images.zip").touch(), (d/"y_train.csv").unlink()), "put the table of masks there"),
        (lambda d: ((d/"test-images.zip").touch(), (d/"raidium.tar.gz").touch(), shutil.rmtree(d/"train-images")), "unpack raidium.tar.gz"),
        (lambda d: (d/"y_train.csv").rename(d/"Y_train.csv"), "call it y_train.csv"),
        (lambda d: (d/"y_train.csv").rename(d/"y.train.csv"), "call it y_train.csv"),
        (lambda d: (d/"y_train.csv").rename(d/"y_train.csv.zip"), "unpack y_train.csv.zip"),
        (lambda d: (d/"y_train.csv").rename(d/"y_train (1).csv"), "(y_train (1).csv is there: call it y_train.csv)"),
        (lambda d: (d/"y_train.csv").rename(d/"y_train - Kopie.csv.txt"), "call it y_train.csv"),
        (lambda d: (d/"annotated_labels.json").rename(d/"annotated_labels (2).json"), "call it annotated_labels.json"),
        (lambda d: [p.rename(p.with_suffix(".jpg")) for p in (d/"train-images").iterdir()], ".jpg and its like as PNG"),
    ],
)
def test_what_is_there_instead_is_told(tmp_path, change, says):
    write_challenge(random_slices(), tmp_path/"d")
    change(tmp_path/"d")
    with pytest.raises(InputError) as e:
        read_challenge(tmp_path/"d")
    assert says in str(e.value) and "\n" not in str(e.value) and "unpack test" not in str(e.value)
