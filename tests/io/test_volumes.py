"Structures become one label map."

import numpy as np

from ctseg.io.volumes import combine


def test_overlap_the_smaller_one_wins():
    big, small = np.ones((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    small[0, 0] = True
    labels, overlap, drawn = combine((4, 4, 4), [(1, small), (2, big)])
    assert (labels[0, 0] == 1).all() and overlap == 4 and (labels == 2).sum() == 60
    assert (combine((4, 4, 4), [(1, small), (2, big)], by_size=False)[0] == 2).all()
