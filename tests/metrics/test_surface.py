"The surface Dice against distances between all pairs of outline pixels."
import numpy as np
from helpers.metric_cases import cases
from hypothesis import given, settings, strategies as st
from scipy import ndimage

from ctseg.metrics.surface import surface_dice


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([0., 1., 1.5, 2., 3.]))
def test_surface_dice_counts_edge_pixels_within_the_tolerance(case, tolerance):
    pred, truth, C = case
    # pixels with one of the four neighbours outside; so is all beyond the frame
    edge = lambda m: m & ~ndimage.binary_erosion(m)
    got = surface_dice(pred, truth, C, tolerance)
    for n in range(len(truth)):
        for c in range(1, C + 1):
            a, b = (np.argwhere(edge(m[n] == c)) for m in (pred, truth))
            if not len(a) and not len(b):
                assert np.isnan(got[n, c - 1])
                continue
            d = (
                np.sqrt(((a[:, None] - b)**2).sum(-1))
                if len(a) and len(b)
                else np.full((len(a), len(b)), np.inf)
            )
            near = (d.min(1) <= tolerance).sum() + (d.min(0) <= tolerance).sum() if d.size else 0
            assert got[n, c - 1] == near/(len(a) + len(b))
