"Slices as the page wants them: exact masks, honest states, small, without names of people."
import json
import os
import zlib
from base64 import b64decode

import numpy as np
import pytest

from ctseg.core.anatomy import ClassMap
from ctseg.data.slices import SliceSet
from ctseg.phantom import phantom_slices
from ctseg.report.pictures import pack_slices, shown_name, spread_over_ranks, svg


def unpacked(masks: str, height: int, width: int) -> np.ndarray:
    "Truth and prediction of a packed slice, uint8 [2, H, W]."
    return np.frombuffer(zlib.decompress(b64decode(masks)), np.uint8).reshape(2, height, width)


def test_cells_know_unknown_from_wrong():
    masks, pred = np.zeros((1, 6, 6), np.uint8), np.zeros((1, 6, 6), np.uint8)
    masks[0, 0, :4], pred[0, 0, :2] = 1, 1   # found, Dice 2/3
    masks[0, 1, 0] = 2                       # missed
    pred[0, 2, 0] = 3                        # invented
    pred[0, 3, 0] = 4                        # not examined
    known = np.array([[True, True, True, False]])
    slices = SliceSet(
        masks, masks, known, ["0.png"], np.zeros(1, np.int64), ClassMap.from_names(["a", "b", "c", "d"])
    )
    one, = pack_slices(slices, pred)
    assert one["cells"] == [
        [1, "found", 0.667],
        [2, "missed", 0.0],
        [3, "invented", 0.0],
        [4, "unknown", None],
    ]
    assert one["known"] == [1, 2, 3] and one["dice"] == round(2/9, 4)
    assert np.array_equal(unpacked(one["masks"], 6, 6), np.stack([masks[0], pred[0]]))
    without, = pack_slices(slices, pred, truth=False)
    assert (
        without["dice"] is None and not without["known"] and {c[1] for c in without["cells"]} == {"unknown"}
    )
    assert not unpacked(without["masks"], 6, 6)[0].any()


def test_a_sample_of_many_goes_from_worst_to_best():
    score = np.random.default_rng(0).permutation(1000)/1000
    some = spread_over_ranks(score, 30)
    assert len(some) == 30 and (np.diff(score[some]) > 0).all()
    assert score[some[0]] == 0 and score[some[-1]] == 0.999


@pytest.mark.parametrize("name, shown", [
    ("12.png", "12.png"), ("007.png", "007.png"), ("12345678901234.png", "slice 5"), ("12.PNG", "slice 5"),
    ("Doe_Jane.png", "slice 5"), ("1950-05-01.png", "slice 5"), ("12.png\n", "slice 5"), ("sub/12.png", "slice 5"),
])
def test_only_plain_numbers_are_shown_as_names(name, shown):
    assert shown_name(name, 4) == shown


def test_300_slices_of_the_challenges_size_are_less_than_5_mb():
    few = phantom_slices(8, size=256, seed=1)
    n = np.arange(300)

    def turned(arrays):
        return np.stack([np.roll(arrays[i % len(few)], i//len(few), axis=i % 2) for i in n])
    known = np.ones((300, len(few.classes)), bool)
    many = SliceSet(turned(few.images), turned(few.masks), known, [f"{i}.png" for i in n], n, few.classes)
    packed = pack_slices(many, np.roll(many.masks, 3, axis=2))
    assert len(packed) == 300
    size = len(json.dumps(packed))
    print(f"{size/1e6:.2f} MB")
    assert size < 4.8e6  # what is not slices is less than 0.2 MB, see the notebook


def test_a_figure_has_no_date_so_none_is_read(monkeypatch):
    import matplotlib.pyplot as plt
    plain = svg(plt.figure(), "salt")
    for epoch in ("1e99", "99999999999999999999", "0"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        assert svg(plt.figure(), "salt") == plain
        assert os.environ["SOURCE_DATE_EPOCH"] == epoch
