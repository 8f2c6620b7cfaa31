"Mask tables: what is written is read back, and damage is noticed wherever it strikes."
import gzip
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from helpers.folders import quick, told
from hypothesis import given, settings, strategies as st

from ctseg.core.errors import InputError
from ctseg.data import mask_rows
from ctseg.data.mask_csv import read_masks, write_masks


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
    expected = pd.DataFrame(
        masks.reshape(len(masks), -1).T, index=[f"Pixel {k}" for k in range(masks[0].size)], columns=names
    )
    text = gzip.open(path).read() if end == ".csv.gz" else path.read_bytes()
    assert text.decode() == expected.to_csv()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(mask_rows, "BLOCK", block)  # block borders fall everywhere
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
        assert (
            expected is None or expected.shape[1] != masks[0].size or "\n\n" in text or "\nPixel" not in text
        ), f"refused: {e}"
    else: assert expected is not None and (got == expected).all()


HEADER = ",0.png,1.png"
ROWS = [f"Pixel {k},{k},0" for k in range(4)]


@pytest.mark.parametrize("text, parts", [
    ("\r".join([HEADER, *ROWS]) + "\r", ("lines end with CR alone", "LF")),
    (HEADER + "\n" + "\r".join(ROWS), ("line 2", "a CR in the middle")),
    (HEADER + "\n" + ROWS[0] + "\r" + "\n".join(ROWS[1:]), ("line 2", "a CR in the middle")),
    ("," + "0.png"*100_000, ("not a text file",)),
    (HEADER + "\0\n" + "\n".join(ROWS), ("not a text file",)),
])
@pytest.mark.parametrize("size", [None, (2, 2)])
def test_odd_line_ends(tmp_path, text, parts, size):
    (tmp_path/"y.csv").write_bytes(text.encode())
    told(lambda: read_masks(tmp_path/"y.csv", size=size, cache=False), "y.csv", *parts)


@pytest.mark.parametrize("start", ["", ",0.png", HEADER + "\nPixel 0,"])
@pytest.mark.parametrize("size", [None, (2, 2)])
def test_a_line_without_end_is_told_before_the_memory_is_full(tmp_path, start, size):
    "200 MB of noughts in a small file: read only as far as needed."
    path = tmp_path/"y.csv.gz"
    with gzip.open(path, "wb", 1) as f:
        f.write(start.encode())
        for _ in range(12): f.write(b"0"*(1 << 24))
    tracemalloc.start()
    try: told(lambda: read_masks(path, size=size, cache=False), "y.csv.gz", "a line of more than 16 MB", "write the file again")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100e6


def test_a_name_that_no_file_can_have_is_told_in_a_short_line(tmp_path):
    (tmp_path/"y.csv").write_text(f",{'9'*5000}\nPixel 0,0\n")
    with pytest.raises(InputError, match="more than 255 characters") as e: read_masks(tmp_path/"y.csv")
    assert len(str(e.value)) < 300
