"""Other competitions' images and masks: every form gives the same slices, unknown stays unknown, and bad
input is one line."""
import json
import os
import re

import numpy as np
import pytest
from helpers.command import ctseg
from helpers.folders import told, tree
from helpers.pngs import png
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.challenge import check_challenge, read_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.data.images import png_damage
from ctseg.io.mask_files import png_files
from ctseg.io.mask_labels import Labelling
from ctseg.io.pixels import Grey, palette_of, read_values
from ctseg.io.png import Pictures, find_patients, import_png
from ctseg.io.rle import Coding, decode, encode
from ctseg.io.rle_export import Sheet, export_rle
from ctseg.io.rle_table import read_codes

N, H, W = 6, 20, 24
NAMES = ["liver", "spleen"]
STEMS = [f"p{i//2}_s{i}" for i in range(N)]
rng = np.random.default_rng(7)
IMAGES = rng.integers(0, 256, (N, H, W), np.uint8)
MASKS = rng.integers(0, 3, (N, H, W), np.uint8)
MASKS[1][MASKS[1] == 2] = 0  # examined and absent
MASKED = range(4)            # the other two images have no mask at all


def save(path, values, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path, **how)


def palette(path, values):
    image = Image.fromarray(np.asarray(values, np.uint8))
    image.putpalette(list(range(30)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def d(tmp_path, monkeypatch):
    monkeypatch.setenv("CTSEG_CACHE", str(tmp_path/"cache"))
    for stem, image in zip(STEMS, IMAGES): save(tmp_path/"images"/f"{stem}.png", image)
    (tmp_path/"classes.json").write_text('{"1": "liver", "2": "spleen"}')
    return tmp_path


def each():
    for i in MASKED:
        for c, name in enumerate(NAMES, 1): yield i, STEMS[i], name, MASKS[i] == c


def rows(coding=Coding(), ending=""):
    return [(i, f"{stem}{ending}", name, encode(mask, coding)) for i, stem, name, mask in each()]
def write(path, header, lines): path.write_text("\n".join([header, *lines]) + "\n")


# Each form writes the same masks of the first four images, and returns the path of the masks and options.

def by_folder(d):
    for _, stem, name, mask in each(): save(d/"masks"/name/f"{stem}.png", mask*255)
    (d/"masks"/"Thumbs.db").write_text("x")
    return {}


def by_image(d):
    for _, stem, name, mask in each(): save(d/"masks"/stem/f"{name}.png", mask*1)
    return {}


def by_suffix(d):
    for _, stem, name, mask in each(): save(d/"masks"/f"{stem}_{name}.png", mask*255)
    (d/"masks"/"._junk.png").write_text("x")
    return {}


def one_bit(d):
    for _, stem, name, mask in each():
        (d/"masks"/name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(d/"masks"/name/f"{stem}.png")
    return {}


def indexed(d):
    for i in MASKED: save(d/"masks"/f"{STEMS[i]}.png", MASKS[i])
    return dict(classes=d/"classes.json", annotated="all")


def indexed_palette(d):
    for i in MASKED: palette(d/"masks"/f"{STEMS[i]}_mask.png", MASKS[i])
    return dict(classes=ClassMap.from_names(NAMES), annotated="all")


def indexed_grey(d):
    for i in MASKED: save(d/"masks"/f"{STEMS[i]}.png", np.stack([MASKS[i]*100]*3, -1))
    write(d/"values.csv", "organ,value", ["liver,100", "spleen,200", "background,0"])
    return dict(classes=d/"values.csv", annotated="all")


def indexed_four_bits(d):
    for i in MASKED:
        save(d/"masks"/f"{STEMS[i]}.png", MASKS[i])
        four_bits(d/"masks"/f"{STEMS[i]}.png", MASKS[i])
    return dict(classes=d/"classes.json", annotated="all")


def four_bits(path, values):
    lines = b"".join(b"\0" + bytes(int(a)*16 + int(b) for a, b in zip(row[::2], row[1::2])) for row in values)
    path.write_bytes(png(H, W, bits=4, rows=lines))


def long(d):
    write(d/"masks", "id,class,segmentation", [f"{s},{n},{c}" for _, s, n, c in rows()])
    return "csv"


def long_by_number(d):
    write(
        d/"masks",
        "Image ID,class_id,rle,score",
        [f"{s},{NAMES.index(n) + 1},{c},1" for _, s, n, c in rows(ending=".jpg")],
    )
    return ("csv", dict(classes=d/"classes.json"))


def long_from_zero(d):
    (d/"zero.json").write_text('{"0": "liver", "1": "spleen"}')
    write(d/"masks", "id,class,rle", [f"{s},{NAMES.index(n)},{c or -1}" for _, s, n, c in rows()])
    return ("csv", dict(classes=d/"zero.json"))


def joined(d):
    write(d/"masks", "ImageId_ClassId,EncodedPixels", [f"{s}_{n},{c}" for _, s, n, c in rows(ending=".png")])
    return "csv"


def row_major_from_zero(d):
    coding = Coding("row", 0)
    write(d/"masks", "id,class,rle", [f"{s},{n},{c}" for _, s, n, c in rows(coding)])
    return ("csv", dict(coding=coding))


def wide(d):
    codes = {(i, n): c for i, _, n, c in rows()}
    write(
        d/"masks",
        "id,liver,spleen,height,width",
        [f"{STEMS[i]},{codes[i, 'liver']},{codes[i, 'spleen']},{H},{W}" for i in MASKED],
    )
    return "csv"


FORMS = [by_folder, by_image, by_suffix, one_bit, indexed, indexed_palette, indexed_grey, indexed_four_bits,
         long, long_by_number, long_from_zero, joined, row_major_from_zero, wide]


def prepared(d, form):
    "The masks of a form, and how they are to be read."
    how = form(d)
    if how == "csv" or isinstance(how, tuple):
        (d/"masks").rename(d/"masks.csv")
        return d/"masks.csv", Labelling(**(how[1] if isinstance(how, tuple) else {}))
    return d/"masks", Labelling(**how)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_every_form_gives_the_same_slices(d, form):
    masks, labelling = prepared(d, form)
    facts = import_png(d/"images", masks, d/"out", labelling)
    s = read_challenge(d/"out")
    assert s.classes.names == tuple(NAMES) and list(s.names) == [f"{stem}.png" for stem in STEMS]
    assert (s.images == IMAGES).all() and (s.masks[:4] == MASKS[:4]).all() and not s.masks[4:].any()
    assert s.known[:4].all() and not s.known[4:].any() and not s.present[1, 1]
    assert (facts["labelled"], facts["unlabelled"]) == (4, 2)


@pytest.mark.parametrize("form", [by_suffix, long], ids=lambda f: f.__name__)
def test_what_is_missing_is_unknown_unless_told_otherwise(d, form):
    masks, _ = prepared(d, form)
    if masks.is_dir(): (masks/f"{STEMS[0]}_spleen.png").unlink()
    else: masks.write_text(re.sub(rf"{STEMS[0]},spleen.*\n", "", masks.read_text()))
    known = {}
    for annotated in ("json", "all", "present"):
        import_png(d/"images", masks, d/annotated, Labelling(annotated=annotated))
        known[annotated] = read_challenge(d/annotated).known
    assert known["json"][:4].tolist() == [[True, False]] + [[True, True]]*3
    assert known["all"][:4].all() and not known["all"][4:].any()
    assert known["present"][:4].tolist() == [[True, False], [True, False], [True, True], [True, True]]
    beside = (masks if masks.is_dir() else masks.parent)/"annotated_labels.json"
    beside.write_text(json.dumps({stem: NAMES for stem in STEMS[:4]}))
    import_png(d/"images", masks, d/"told", Labelling())
    assert read_challenge(d/"told").known[:4].all()
    beside.write_text(json.dumps({f"slices/{stem}.PNG": NAMES for stem in STEMS[:4]}))
    import_png(d/"images", masks, d/"told otherwise", Labelling())
    assert read_challenge(d/"told otherwise").known[:4].all()
    beside.write_text(json.dumps({STEMS[0]: NAMES, f"{STEMS[0]}.PNG": []}))
    told(lambda: import_png(d/"images", masks, d/"never", Labelling()), "p0_s0 is there twice")
    beside.write_text(json.dumps({stem: ["spleen"] for stem in STEMS[:4]}))
    told(
        lambda: import_png(d/"images", masks, d/"never", Labelling()),
        STEMS[0],
        "pixels of liver",
        "annotated_labels.json",
    )
    beside.write_text(json.dumps({STEMS[0]: NAMES}))
    told(
        lambda: import_png(d/"images", masks, d/"never", Labelling()),
        "does not say what was examined on p0_s1",
    )


def test_indexed_masks_need_a_word_on_zeros_and_may_go_without_names(d):
    indexed(d)
    told(
        lambda: import_png(d/"images", d/"masks", d/"out", Labelling(d/"classes.json")),
        "absent cannot be told from unknown",
        "--annotated",
    )
    import_png(d/"images", d/"masks", d/"out", Labelling(annotated="present"))
    assert read_challenge(d/"out").classes.names == ("class_1", "class_2")


def test_16_bits_through_a_window(d):
    hu = rng.integers(-1024, 3000, (N, H, W))
    for stem, image in zip(STEMS, hu):
        Image.fromarray((image + 1024).astype(np.uint16)).save(d/"images"/f"{stem}.png")
    masks, labelling = prepared(d, long)
    told(lambda: import_png(d/"images", masks, d/"out", labelling), "16-bit image", "--window")
    facts = import_png(d/"images", masks, d/"out", labelling, Pictures(Grey((40, 400), offset=-1024)))
    expected = ((hu - 40)/400 + .5)*255
    assert (
        (read_challenge(d/"out").images == expected.round().clip(0, 255)).all()
        and "-1024" in facts["grey"]
        and "400" in facts["grey"]
    )
    save(d/"images"/f"{STEMS[2]}.png", IMAGES[2])
    told(
        lambda: import_png(d/"images", masks, d/"no", labelling, Pictures(Grey("soft"))),
        "8-bit image",
        "leave it out",
    )


@pytest.mark.parametrize("wrong", [dict(window="sofd"), dict(window="40"), dict(window="40,-1"), dict(window="nan,400"), dict(window="40,400", scale=0), dict(scale=2.)])
def test_a_window_that_is_none(wrong): told(lambda: Grey(**wrong), "window")


def test_a_png_of_a_terabyte_of_zeros(d):
    "Its parts have no end: reading them one by one took for ever."
    save(d/"p0_s0.png", IMAGES[0])
    head = (d/"p0_s0.png").read_bytes()[:33]
    (d/"p0_s0.png").write_bytes(head)
    os.truncate(d/"p0_s0.png", 1 << 40)
    assert palette_of(d/"p0_s0.png") == b""
    told(lambda: png_files(d), "p0_s0.png", "MB")
    assert png_damage(head + bytes(1 << 20))


def test_patients(d):
    masks, labelling = prepared(d, long)
    import_png(d/"images", masks, d/"a", labelling, Pictures(patients=r"^(p\d+)_"))
    assert read_challenge(d/"a").groups.tolist() == [0, 0, 1, 1, 2, 2]
    write(d/"who.csv", "patient,image", [f"Jane Doe {i//3},{stem}.png" for i, stem in enumerate(STEMS)])
    import_png(d/"images", masks, d/"b", labelling, Pictures(patients=str(d/"who.csv")))
    assert read_challenge(d/"b").groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert not any(b"Jane" in content for content in tree(d/"b").values() if content)
    for mark in ";\t":  # Excel's, in many countries
        (d/"who.csv").write_text((d/"who.csv").read_text().replace(",", mark))
        assert find_patients(STEMS, str(d/"who.csv"))[::3] == ["Jane Doe 0", "Jane Doe 1"]
        (d/"who.csv").write_text((d/"who.csv").read_text().replace(mark, ","))
    for called in (r"C:\slices\{}.PNG", "train/{}.png", " {}.dcm ", "{}"):  # as image tables may call them
        write(d/"who.csv", "patient,image", [f"Jane Doe {i//3},{called.format(stem)}" for i, stem in enumerate(STEMS)])
        assert find_patients(STEMS, str(d/"who.csv"))[::3] == ["Jane Doe 0", "Jane Doe 1"]
        (d/"who.json").write_text(json.dumps({called.format(stem): stem[:2] for stem in STEMS}))
        assert find_patients(STEMS, str(d/"who.json")) == [stem[:2] for stem in STEMS]
    write(d/"who.csv", "patient,image", [f"Jane Doe {i//3},{stem}.png" for i, stem in enumerate(STEMS)])
    with open(d/"who.csv", "a") as f: f.write(f"Jane Doe 1,{STEMS[0]}.png\n")
    (d/"who.json").write_text(json.dumps({STEMS[0]: "a", f"{STEMS[0]}.png": "b"}))
    (d/"nobody.json").write_text(json.dumps(dict.fromkeys(STEMS)))
    for patients, says in (
        (str(d/"who.csv"), "there twice"),
        (str(d/"who.json"), "there twice"),
        (str(d/"nobody.json"), 'expected {"image": "patient", …}'),
        (r"^(q\d+)", "no patient for the image p0_s0"),
        ("(", "no regular expression"),
        (str(d/"no.csv"), "no such file"),
    ):
        told(lambda: import_png(d/"images", masks, d/"c", labelling, Pictures(patients=patients)), says)


def test_images_of_several_sizes_come_back_in_their_own(d):
    save(d/"images"/f"{STEMS[0]}.png", IMAGES[0, :15, :11])
    (d/"test").mkdir()
    save(d/"test"/"t1.png", IMAGES[1, :9])
    masks, labelling = prepared(d, long)
    lines = [line for line in masks.read_text().splitlines() if not line.startswith(STEMS[0])]
    masks.write_text("\n".join([*lines, f"{STEMS[0]},liver,{encode(MASKS[0, :15, :11] == 1)}"]))
    told(
        lambda: import_png(d/"images", masks, d/"out", labelling),
        "20x24 pixels, expected 15x11 like p0_s0.png",
        "--size 24",
    )
    told(
        lambda: import_png(d/"images", masks, d/"out", labelling, Pictures(size=22)),
        "at most 22",
        "--size 24",
    )
    import_png(d/"images", masks, d/"out", labelling, Pictures(size=32, test=d/"test"))
    train, test = read_challenge(d/"out"), read_challenge(d/"out", "test")
    assert (
        train.images.shape == (N, 32, 32)
        and test.images.shape == (1, 32, 32)
        and check_challenge(d/"out")["test"]["images"] == 1
    )
    write_masks(train.masks, train.names, d/"s.csv")
    export_rle(d/"s.csv", d/"rle.csv", d/"out")
    _, codes = read_codes(d/"rle.csv", STEMS)
    assert (decode(codes[STEMS[0]]["liver"].text, (15, 11)) == (MASKS[0, :15, :11] == 1)).all()
    assert (decode(codes[STEMS[2]]["spleen"].text, (H, W)) == (MASKS[2] == 2)).all()


def overlapping(d): save(d/"masks"/"spleen"/f"{STEMS[0]}.png", np.full((H, W), 255))


def test_two_masks_that_overlap(d):
    masks, labelling = prepared(d, by_folder)
    overlapping(d)
    told(
        lambda: import_png(d/"images", masks, d/"out", labelling),
        f"image {STEMS[0]}",
        "liver",
        "spleen",
        "pixels both",
    )
    facts = import_png(d/"images", masks, d/"out", Labelling(overlap="smaller"))
    s = read_challenge(d/"out")
    assert (
        facts["overlapping_pixels"] == (MASKS[0] == 1).sum()
        and ((s.masks[0] == 1) == (MASKS[0] == 1)).all()
        and s.known[0].all()
    )
    save(d/"masks"/"liver"/f"{STEMS[0]}.png", np.full((H, W), 255))
    import_png(d/"images", masks, d/"hidden", Labelling(overlap="smaller"))
    assert read_challenge(d/"hidden").known[0].sum() == 1, "a class of which no pixel is left is not absent"


def jpeg(d): save(d/"masks"/"liver"/"x.jpg", MASKS[0], format="JPEG")
def jpeg_as_png(d): save(d/"masks"/"liver"/f"{STEMS[0]}.png", MASKS[0]*255, format="JPEG")


def was_jpeg(d):
    save(d/"x.jpg", (MASKS[0] == 1)*255, quality=80)
    with Image.open(d/"x.jpg") as image: save(d/"masks"/"liver"/f"{STEMS[0]}.png", np.asarray(image))


def stranger(d): save(d/"masks"/"liver"/"p9_s9.png", MASKS[0])
def other_size(d): save(d/"masks"/"liver"/f"{STEMS[0]}.png", MASKS[0, :-1] > 0)
def colours(d): save(d/"masks"/"liver"/f"{STEMS[0]}.png", rng.integers(0, 255, (H, W, 3)))
def duplicate(d): save(d/"masks"/"liver"/f"{STEMS[0]}.PNG", MASKS[0] > 0, format="PNG")
def same_class(d): save(d/"masks"/"Liver"/f"{STEMS[0]}.png", MASKS[0] > 0)
def both_levels(d): save(d/"masks"/f"{STEMS[0]}.png", MASKS[0])
def damaged(d): (d/"masks"/"liver"/f"{STEMS[0]}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
def twice(d): save(d/"images"/f"{STEMS[0]}.PNG", IMAGES[0], format="PNG")
def jpeg_image(d): save(d/"images"/"new.jpg", IMAGES[0])


@pytest.mark.parametrize("damage, says", [
    (jpeg, "a JPEG does not keep the values"), (jpeg_as_png, "a JPEG file under the name of a PNG"), (was_jpeg, "was it a JPEG"),
    (stranger, "there is no image for it"), (other_size, "19x24 pixels, but p0_s0 has 20x24"), (colours, "a mask of colours"),
    (duplicate, "is the same mask"), (same_class, "has liver twice"), (both_levels, "expected one or the other"),
    (damaged, "not a readable image"), (twice, "has the same name but for the ending"), (jpeg_image, "images are read as PNG"),
])
def test_bad_files_are_one_line_and_nothing_is_written(d, damage, says):
    masks, labelling = prepared(d, by_folder)
    damage(d)
    told(lambda: import_png(d/"images", masks, d/"out", labelling), says)
    assert not (d/"out").exists()


@pytest.mark.parametrize("image, mask, says", [
    ("IMG_7", "img_7", "IMG_7.png is there: give both one name"),
    ("7", "007", "7.png is there: give both one name"),
    ("\u00fc7", "u\u03087", "in the same coding of their letters"),
])
def test_a_mask_that_is_called_almost_as_its_image_is_told(d, image, mask, says):
    save(d/"images"/f"{image}.png", IMAGES[0])
    masks, labelling = prepared(d, by_folder)
    save(d/"masks"/"liver"/f"{mask}.png", MASKS[0] == 1)
    told(lambda: import_png(d/"images", masks, d/"out", labelling), "there is no image for it", says)


def test_an_offset_that_is_forgotten_is_told(d):
    "Values with 1024 added are shown far too bright."
    masks, labelling = prepared(d, indexed)
    hounsfield = rng.normal(0, 200, IMAGES.shape).clip(-1000, 1000)
    for stem, image in zip(STEMS, hounsfield + 1024):
        Image.fromarray(image.astype(np.uint16)).save(d/"images"/f"{stem}.png")
    def notes(name, **how):
        return import_png(d/"images", masks, d/name, labelling, Pictures(Grey("soft", **how)))["notes"]
    assert notes("right", offset=-1024) == []
    assert len(notes("wrong")) == 1 and "1024 may have been added" in notes("another")[0]


def test_test_images_that_are_trained_on_are_told(d):
    masks, labelling = prepared(d, indexed)
    save(d/"test"/"new.png", 255 - IMAGES[0])
    save(d/"test"/"again.png", IMAGES[3])
    facts = import_png(d/"images", masks, d/"out", labelling, Pictures(test=d/"test"))
    assert "1 of 2 test images are training images too, such as again.png" in facts["notes"][0]


@pytest.mark.parametrize("values, "
                         "says", [({7: 3}, "value 7 at row 3, column 0 is no class"), ({255: 3}, "pixels to be ignored are 255 in y_train.csv")])
def test_values_that_are_no_class(d, values, says):
    masks, labelling = prepared(d, indexed)
    for value, y in values.items():
        mask = MASKS[2].copy()
        mask[y, 0] = value
        save(masks/f"{STEMS[2]}.png", mask)
    told(lambda: import_png(d/"images", masks, d/"out", labelling), f"{STEMS[2]}.png", says)


@pytest.mark.parametrize("line, says", [
    (f"{STEMS[4]},liver,470 "
     f"20", "ends at pixel 489, but an image of 20x24 has 480"), (f"{STEMS[4]},liver,0 5", "counted from 1"),
    (f"{STEMS[4]},liver,1 "
     f"2 "
     f"3", "expected pairs"), (f"{STEMS[4]},liver,5 3 6 1", "overlap or do not rise"), (f"{STEMS[4]},liver,1 0", "length 0"),
    (f"{STEMS[4]},liver,1 "
     f"x", "'x' in a run-length code"), (f"{STEMS[4]},liver,1 -3", "'-3' in a run-length code"),
    (f"{STEMS[4]},liver,1.0 "
     f"3", "'1.0' in"), (f"{STEMS[4]},liver,99999999999999999999 1", "more than 12 digits"),
    (f"{STEMS[0]},liver,1 "
     f"1", "is there twice"), ("p9_s9,liver,1 1", "there is no image 'p9_s9'"), (f"{STEMS[4]},,1 1", "no class is named"),
    (f"{STEMS[4]},liver", "2 cells, but the header has 3"), (f'{STEMS[4]},"liver', "not a readable CSV"), (f"{STEMS[4]},7,1 "
                                                                                                           f"1", "7 is no class"),
])
def test_bad_rows_are_one_line(d, line, says):
    masks, _ = prepared(d, long)
    with open(masks, "a") as f: f.write(line + "\n")
    told(lambda: import_png(d/"images", masks, d/"out", Labelling(d/"classes.json")), "masks.csv", says)
    assert not (d/"out").exists()


@pytest.mark.parametrize("text", ["", "\n", "a,b\n", "id,class,x\n", "class,rle\n", "\xff\xfe,\0\n", "id,rle\np0_s0,1 1\np0_s0,3 1\n"])
def test_tables_that_are_none(d, text):
    (d/"m.csv").write_bytes(text.encode("latin-1"))
    told(lambda: import_png(d/"images", d/"m.csv", d/"out"), "m.csv")


def test_one_class_without_a_name(d):
    write(
        d/"m.csv",
        "ImageId,EncodedPixels",
        [f"{STEMS[0]}.jpg,{encode(MASKS[0] == 1)}", f"{STEMS[1]}.jpg,-1"],
    )
    import_png(d/"images", d/"m.csv", d/"a")
    (d/"one.json").write_text('["tumour"]')
    import_png(d/"images", d/"m.csv", d/"b", Labelling(d/"one.json"))
    assert [read_challenge(d/x).classes.names for x in "ab"] == [("object",), ("tumour",)]
    assert read_challenge(d/"b").known.ravel().tolist() == [True, True, False, False, False, False]


@limits(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.sampled_from(["column", "row"]), st.sampled_from([0, 1]))
def test_codes_come_back(mask, order, first):
    coding = Coding(order, first)
    assert (decode(encode(mask, coding), mask.shape, coding) == mask).all()


def test_the_code_of_kaggles_own_page():
    "'1 3 10 5' are the pixels 1, 2, 3, 10, 11, 12, 13, 14, numbered from top to bottom, then left to right."
    mask = decode("1 3 10 5", (5, 4))
    assert (np.flatnonzero(mask.T.ravel()) + 1).tolist() == [1, 2, 3, 10, 11, 12, 13, 14]


@pytest.mark.parametrize("form", ["long", "wide", "joined"])
@pytest.mark.parametrize("ids", ["stem", "name"])
@pytest.mark.parametrize("coding", [Coding(), Coding("row", 0)], ids=str)
def test_out_and_in_again(d, form, ids, coding):
    masks, labelling = prepared(d, long)
    import_png(d/"images", masks, d/"data", labelling)
    s = read_challenge(d/"data")
    write_masks(s.masks, s.names, d/"s.csv")
    export_rle(d/"s.csv", d/"rle.csv", d/"data", Sheet(form, ids, coding))
    import_png(d/"images", d/"rle.csv", d/"again", Labelling(coding=coding))
    again = read_challenge(d/"again")
    assert (again.masks == s.masks).all() and again.known.all()


def test_a_sample_decides_rows_order_and_names(d):
    masks, labelling = prepared(d, long)
    import_png(d/"images", masks, d/"data", labelling)
    s = read_challenge(d/"data")
    write_masks(s.masks, s.names, d/"s.csv")
    write(
        d/"sample.csv",
        "Image_Label,Usage,EncodedPixels",
        [f"{STEMS[2]}.jpg_spleen,Public,1 1", f"{STEMS[0]}.jpg_liver,Private,"],
    )
    facts = export_rle(d/"s.csv", d/"out.csv", d/"data", Sheet(like=d/"sample.csv"))
    lines = (d/"out.csv").read_text().splitlines()
    assert facts["rows"] == 2 and lines == [
        "Image_Label,Usage,EncodedPixels",
        f"{STEMS[2]}.jpg_spleen,Public,{encode(MASKS[2] == 2)}",
        f"{STEMS[0]}.jpg_liver,Private,{encode(MASKS[0] == 1)}",
    ]
    for row, says in (
        (f"{STEMS[2]}.jpg_heart,Public,", "unknown class"),
        ("q_liver,Public,", "nothing is predicted for 'q_liver'"),
        (f"{STEMS[2]}_3,P,", "3 is no class"),
    ):
        write(d/"sample.csv", "Image_Label,Usage,EncodedPixels", [row, f"{STEMS[0]}_liver,P,"])
        told(lambda: export_rle(d/"s.csv", d/"no.csv", d/"data", Sheet(like=d/"sample.csv")), says)
    assert not (d/"no.csv").exists()


def test_the_command_imports_and_exports(d):
    prepared(d, long)
    code, out, err = ctseg(
        "import",
        "png",
        d/"images",
        d/"masks.csv",
        d/"data",
        "--patients",
        r"(p\d)_",
        "--test",
        d/"images",
    )
    assert code == 0 and "unlabelled: 2" in out and "patients: 3" in out, err
    write_masks(MASKS[:, :, :20], [f"{stem}.png" for stem in STEMS], d/"square.csv")
    write_masks(MASKS, [f"{stem}.png" for stem in STEMS], d/"s.csv")
    code, out, err = ctseg(
        "export", "rle", d/"data", d/"rle.csv", "--masks", d/"s.csv", "--form", "wide", "--order", "row"
    )
    assert code == 0 and (d/"rle.csv").read_text().startswith("id,liver,spleen\n"), err
    code, out, err = ctseg("export", "rle", d/"square.csv", d/"two.csv")
    assert code == 0 and (d/"two.csv").read_text().startswith("id,class,rle\np0_s0,1,"), err


@pytest.mark.parametrize("args, says", [
    (["import", "png", "{d}/images", "{d}/out"], "takes IMAGES MASKS OUT, but 2 were given"),
    (["import", "nifti", "{d}/images", "{d}/masks.csv", "{d}/out"], "takes SRC OUT, but 3 were given"),
    (["import", "nifti", "{d}/images", "{d}/out", "--order", "row"], "--order is not an option of `ctseg import nifti`"),
    (["import", "png", "{d}/images", "{d}/masks.csv", "{d}/out", "--every", "2"], "--every is not an option of `ctseg import png`"),
    (["import", "png", "{d}/images", "{d}/masks.csv", "{d}/out", "--order", "colum"], "did you mean column"),
    (["import", "png", "{d}/images", "{d}/no", "{d}/out"], "no such folder"),
    (["import", "png", "{d}/images", "{d}/no.csv", "{d}/out"], "no.csv: no such file"),
    (["import", "png", "{d}/no", "{d}/masks.csv", "{d}/out"], "no such folder"),
    (["import", "png", "{d}/images", "{d}/images", "{d}/out"], "given twice"),
    (["import", "png", "{d}/images", "{d}/masks.csv", "{d}/images"], "given twice"),
    (["export", "rle", "{d}/images", "{d}/out.csv"], "needs --masks"),
    (["export", "rle", "{d}/masks.csv", "{d}/out.txt"], "something.csv"),
    (["export", "nifti", "{d}/images", "{d}/out", "--masks", "x.csv", "--form", "wide"], "--form is not an option of `ctseg export nifti`"),
])
def test_mistakes_on_the_command_line(d, args, says):
    prepared(d, long)
    code, out, err = ctseg(*[a.replace("{d}", str(d)) for a in args])
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1
    assert not (d/"out").exists() and not (d/"out.csv").exists()


def test_nothing_is_left_when_writing_fails(d, monkeypatch):
    from ctseg.io import png
    masks, labelling = prepared(d, long)
    before = set(d.iterdir())
    def fail(*a, **kw): raise InputError("as if")
    monkeypatch.setattr(png, "write_json", fail)
    with pytest.raises(InputError): import_png(d/"images", masks, d/"out", labelling)
    assert set(d.iterdir()) == before


def test_palettes_that_order_the_colours_anew_are_told(d):
    "As programs with adaptive palettes write them: by number, classes would be exchanged in silence."
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    (d/"masks").mkdir()
    for i in MASKED:
        image = Image.fromarray((MASKS[i] + i) % 3)
        image.putpalette(np.roll(colours, i, 0).ravel().tolist())
        image.save(d/"masks"/f"{STEMS[i]}.png")
    told(lambda: import_png(d/"images", d/"masks", d/"out", Labelling(annotated="all")), "another colour", STEMS[0])
    for name, colour in zip(NAMES, colours[1:]):  # a colour for each class: the background decides
        for i in MASKED:
            image = Image.fromarray((MASKS[i] == 1).astype(np.uint8))
            image.putpalette([0, 0, 0, *colour.tolist()])
            (d/"single"/name).mkdir(parents=True, exist_ok=True)
            image.save(d/"single"/name/f"{STEMS[i]}.png")
    assert import_png(d/"images", d/"single", d/"fits", Labelling(overlap="smaller"))["classes"] == 2
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(d/"single"/name/f"{STEMS[i]}.png")
    told(lambda: import_png(d/"images", d/"single", d/"out", Labelling(overlap="smaller")), "value 0 has another")


@pytest.mark.parametrize("code", ["1\t2", "1 2\n4 1", " 1  2\xa04 1 "])
def test_any_space_may_stand_between_runs(code):
    assert decode(code, (4, 4)).sum() in (2, 3)


def test_a_palette_is_read_by_its_indices(tmp_path):
    palette(tmp_path/"m.png", MASKS[0])
    assert (read_values(tmp_path/"m.png") == MASKS[0]).all()


@pytest.mark.parametrize("part", ["images", "masks"])
@pytest.mark.parametrize("kind", ["pipe", "nowhere", "itself", "device"])
def test_what_is_no_file_in_the_place_of_one_is_told(tmp_path, part, kind):
    for folder in ("images", "masks"):
        (tmp_path/folder).mkdir()
        for i in range(2): Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path/folder/f"{i}.png")
    path = tmp_path/part/"1.png"
    path.unlink()
    if kind == "pipe": os.mkfifo(path)
    else: path.symlink_to({"nowhere": "gone", "itself": "1.png", "device": "/dev/zero"}[kind])
    code, _, err = ctseg("import", "png", tmp_path/"images", tmp_path/"masks", tmp_path/"out", "--annotated", "all")
    assert code == 2 and f"{part}/1.png" in err and not (tmp_path/"out").exists()
