"Millilitres, confidence, and slices back on their voxels."
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.predictors import bright, fixed
from helpers.volumes import TWO, volume

from ctseg.core.errors import InputError
from ctseg.inference.confidence import soft_dice_confidence
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import cut
from ctseg.prediction.volumes import (
    ConfidenceSums,
    class_ml,
    class_rows_of,
    cut_in_parts,
    label_volume,
    slice_thickness,
)

NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("slicing", [Slicing(), Slicing("AIL", window="bone"), Slicing(size=7), Slicing(spacing=2.5), Slicing(size=16, spacing="fit")])
def test_parts_are_the_whole(slicing):
    whole = cut(volume(1), slicing)
    parts = list(cut_in_parts(volume(1), slicing, 2))
    assert np.array_equal(np.concatenate([p.images for p in parts]), whole.images)
    assert np.array_equal(np.concatenate([p.centres for p in parts]), whole.centres)
    assert np.concatenate([p.slices for p in parts]).tolist() == whole.slices.tolist()


def test_a_random_window_is_refused():
    with pytest.raises(InputError, match="fixed one"):
        list(cut_in_parts(volume(1), Slicing(window="random")))


@pytest.mark.parametrize("at_a_time", [1, 3, 16])
def test_labels_lie_where_the_voxels_are(at_a_time):
    v = volume(2)
    got = label_volume(fixed(bright), v, Slicing(window=(0., 400.)), at_a_time)
    grey = np.clip(np.round((v.hu/400 + .5)*255), 0, 255)/255
    expected = np.select([grey > .9, grey > .7, grey > .5], [3, 2, 1], 0)
    assert np.array_equal(got.labels, expected) and got.seen == 1
    rows = class_rows_of(got, v, Slicing(), NAMES)
    assert [row["structure"] for row in rows] == NAMES and rows[0]["ml"] == pytest.approx(
        (expected == 1).sum()*6/1000, abs=1e-4
    )


def test_cropped_slices_are_told():
    assert label_volume(fixed(bright), volume(2), Slicing(size=6)).seen < .6


def test_confidence_of_a_volume_is_that_of_its_slices_together():
    rng = np.random.default_rng(0)
    prob = torch.from_numpy(rng.random((6, 2, 5, 4)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, 3, (6, 5, 4)).astype(np.uint8))
    label[label == 2] = 0
    sums = ConfidenceSums(2)
    for i in range(0, 6, 4): sums.add(prob[i:i + 4], label[i:i + 4])
    whole = soft_dice_confidence(prob.permute(1, 0, 2, 3).reshape(1, 2, 30, 4), label.reshape(1, 30, 4))
    assert sums.value()[0] == pytest.approx(float(whole[0, 0]), abs=1e-6) and np.isnan(sums.value()[1])


def test_uneven_slices_count_as_thick_as_they_are():
    v = replace(
        volume(0), affine=np.diag([1., 2, 3, 1]), positions=np.array([[0, 0, z] for z in (0., 1, 3, 4, 9)])
    )
    assert slice_thickness(v).tolist() == [1, 1.5, 1.5, 3, 5]
    labels = np.zeros(v.hu.shape, np.uint8)
    labels[0, 0, 4] = 1
    assert class_ml(labels, v, len(TWO))[0] == pytest.approx(.01)
