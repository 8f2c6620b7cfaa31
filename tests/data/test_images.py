"A PNG is a PNG: what a file holds is told by its bytes, and only the decoder for PNG ever sees it."
import gzip
import warnings

import numpy as np
import pytest
from helpers.folders import random_image, told
from helpers.pngs import png
from PIL import Image

from ctseg.core.errors import InputError
from ctseg.io.pixels import read_values
from ctseg.data.images import decode_png, image_paths, natural_key, read_images, read_pngs


@pytest.fixture
def path(tmp_path): return tmp_path/"0.png"


@pytest.mark.parametrize("kind, "
                         "name", [("JPEG", "JPEG"), ("TIFF", "TIFF"), ("GIF", "GIF"), ("BMP", "BMP"), ("EPS", "PostScript"), ("WEBP", "WebP"), ("PDF", "PDF")])
def test_another_format_under_the_name(path, kind, name):
    Image.fromarray(random_image(9, 7)).save(path, kind)
    told(lambda: read_pngs([path]), "0.png", f"a {name} file under the name of a PNG", "convert it")


def test_no_other_decoder_is_asked(path, monkeypatch):
    "Whatever the bytes are: one list of formats, and it holds PNG alone."
    real, asked = Image.open, []
    monkeypatch.setattr(
        Image, "open", lambda p, formats=None: asked.append(formats) or real(p, formats=formats)
    )
    path.write_bytes(png(2, 3, rows=b"\0\1\2\3\0\4\5\6"))
    assert read_pngs([path]).tolist() == [[[1, 2, 3], [4, 5, 6]]] and asked == [["PNG"]]
    path.write_bytes(b"P5 2 2 255 abcd")  # a format that Pillow knows by other letters
    told(lambda: read_pngs([path]), "not a readable image")
    assert asked == [["PNG"]]


def test_16_bit_colour_is_16_bit(path):
    "Pillow alone would halve the bits in silence."
    path.write_bytes(png(2, 1, 16, 2, b"\0" + b"\1\2"*3 + b"\0" + b"\3\4"*3))
    told(lambda: read_pngs([path]), "16-bit image, expected 8 bits", "window it")
    with Image.open(path) as image: assert np.asarray(image).dtype == np.uint8


def test_too_large_before_it_is_decoded(path):
    path.write_bytes(png(60000, 60000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own limit would warn
        told(lambda: read_pngs([path]), "60000x60000 pixels", "more than 8192x8192", "resize it")


def test_animations(path):
    frames = [Image.fromarray(random_image(6, 6) + np.uint8(i)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    told(lambda: read_pngs([path]), "an animation of 3 images", "expected one")


@pytest.mark.parametrize("how, fits", [(0, True), (1, True), (3, False), (6, False)])
def test_an_image_that_is_shown_turned(path, how, fits):
    exif = Image.Exif()
    exif[0x112] = how
    Image.fromarray(random_image(6, 6)).save(path, exif=exif)
    if fits: assert read_pngs([path]).shape == (1, 6, 6)
    else: told(lambda: read_pngs([path]), "0.png", "EXIF")


@pytest.mark.parametrize("content, kind", [
    (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"), (b"<html>403</html>", "a web page"), (b"", "empty"),
    (gzip.compress(b"png"), "packed with gzip"), (bytes(128) + b"DICM", "a DICOM file"), (b"\x93NUMPY" + bytes(40), "a NumPy array")])
def test_what_an_image_is_that_is_none(path, content, kind):
    path.write_bytes(content)
    told(lambda: read_pngs([path]), "not a readable image", f"{kind}", "expected a PNG")


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_an_image_may_have_an_opaque_alpha_channel_only(path, mode):
    image = Image.fromarray(random_image(6, 6))
    for alpha, fits in ((255, True), (254, False)):
        image.putalpha(alpha)
        image.convert(mode).save(path)
        if fits: assert read_pngs([path]).shape == (1, 6, 6)
        else: told(lambda: read_pngs([path]), "transparent pixels", "flatten it")


@pytest.mark.parametrize("end", [0, 4, 8, 20, 32, 40])
def test_cut_anywhere(path, end):
    Image.fromarray(random_image(9, 7)).save(path)
    path.write_bytes(path.read_bytes()[:end])
    told(lambda: read_pngs([path]), "0.png", "not a readable image")


WHOLE = png(2, 3, rows=b"\0\1\2\3\0\4\5\6")


@pytest.mark.parametrize("content, why", [
    (WHOLE[:-12], "cut off"), (WHOLE[:-1], "cut off"), (WHOLE[:-6], "cut off"), (WHOLE[:-1] + b"x", "a checksum differs"),
    (WHOLE + b"x", "more lies behind its end"), (WHOLE + WHOLE, "more lies behind its end"),
    (WHOLE[:-12] + b"\0\0\0\x09IENDx", "cut off")])
def test_an_image_ends_where_it_says(path, content, why):
    path.write_bytes(content)
    told(lambda: read_pngs([path]), "0.png", "not a readable image", why, "copy it again")
    told(lambda: read_values(path), "0.png", why)


@pytest.mark.parametrize("padding", [b"\n", bytes(512), b"\r\n"])
def test_padding_behind_an_image_is_no_damage(path, padding):
    path.write_bytes(WHOLE + padding)
    assert read_pngs([path]).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_no_flipped_bit_becomes_another_image(path):
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
    whole, told = path.read_bytes(), 0
    pixels = decode_png(path)
    for at in range(16, len(whole), 7):
        for bit in (1, 64):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1:])
            try: assert np.array_equal(decode_png(path), pixels)
            except InputError: told += 1
    assert told > len(whole)/7


def test_grey_in_other_clothes(path):
    "Palettes, two and four bits, opaque alpha: grey is grey."
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = Image.fromarray(255 - grey)
    palette = Image.frombytes("P", (16, 16), palette.tobytes())
    palette.putpalette([v for i in range(256) for v in [255 - i]*3])
    palette.save(path)
    assert (read_pngs([path])[0] == grey).all()
    Image.fromarray(np.dstack([grey, 0*grey + 255])).save(path)
    assert (read_pngs([path])[0] == grey).all()
    path.write_bytes(png(1, 4, 2, 0, b"\0" + bytes([0b00011011])))
    assert read_pngs([path]).tolist() == [[[0, 85, 170, 255]]]

    Image.fromarray(np.dstack([grey, grey, 255 - grey])).quantize().save(path)
    told(lambda: read_pngs([path]), "channels differ")


def test_an_image_cached_before_is_checked_again(tmp_path, path):
    Image.fromarray(random_image(6, 6)).save(path)
    first = read_images(tmp_path)[1]
    assert (read_images(tmp_path)[1] == first).all()
    Image.fromarray(first[0]).save(path, "JPEG")
    told(lambda: read_images(tmp_path), "JPEG")
    assert [p.name for p in image_paths(tmp_path)] == ["0.png"]


def test_a_name_of_thousands_of_digits_can_be_sorted():
    names = ["9"*5000, "10", "2", "a"]
    assert sorted(names, key=natural_key) == ["2", "10", "9"*5000, "a"]
