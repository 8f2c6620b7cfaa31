"What people outlined tells how small a structure can be."
from dataclasses import replace

import numpy as np
import pytest

from ctseg.data.slices import SliceSet
from ctseg.prediction import outlines
from ctseg.prediction.outlines import least_shares, outlined_areas


def with_areas(areas: list[int]):
    "Annotated slices of 20x20 pixels, on which the only class covers so many pixels; 0: it is not there."
    masks = np.stack([(np.arange(400) < area).reshape(20, 20) for area in areas]).astype(np.uint8)
    return SliceSet(np.zeros_like(masks), masks, "all", classes=["organ"])


def test_a_class_must_cover_half_of_what_most_of_its_outlines_exceed():
    share, = least_shares(with_areas([40]*100 + [0]*50))
    assert share == pytest.approx(0.5*40/400*100/105, abs=1e-6)
    few, = least_shares(with_areas([40]*5))
    assert few == pytest.approx(0.5*40/400/2, abs=1e-6)  # of five outlines little is known
    spread, = least_shares(with_areas([10]*10 + [40]*90))
    assert spread == pytest.approx(share/4, rel=0.01)  # a tenth of them are small
    assert least_shares(with_areas([0, 0])) is None
    unknown = replace(with_areas([40]), known=np.zeros((1, 1), bool), masks=np.zeros((1, 20, 20), np.uint8))
    assert least_shares(unknown) is None


def test_many_slices_are_sampled(monkeypatch):
    every = with_areas([40]*9)
    monkeypatch.setattr(outlines, "ENOUGH", 4)
    seen = []
    monkeypatch.setattr(outlines, "outlined_areas", lambda s: seen.append(len(s)) or outlined_areas(s))
    assert least_shares(every) and seen == [3]
