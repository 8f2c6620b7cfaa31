"Structures become one label map."

import numpy as np

from ctseg.io.volumes import combine, resize_slices


def test_grey_values_of_a_resized_image_are_rounded():
    x = np.random.default_rng(0).integers(0, 256, (2, 50, 50)).astype(np.uint8)
    exact = resize_slices(x.astype(np.float32), (77, 77), "image")
    np.testing.assert_array_equal(resize_slices(x, (77, 77), "image"), exact.round())


def test_overlap_the_smaller_one_wins():
    big, small = np.ones((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    small[0, 0] = True
    labels, overlap, drawn = combine((4, 4, 4), [(1, small), (2, big)])
    assert (labels[0, 0] == 1).all() and overlap == 4 and (labels == 2).sum() == 60
    assert (combine((4, 4, 4), [(1, small), (2, big)], by_size=False)[0] == 2).all()
