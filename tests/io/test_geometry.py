"The affine decides which way a volume is cut, and the way back is exact."

import nibabel as nib
import numpy as np
from helpers.volumes import affine_from
from hypothesis import given, settings
from hypothesis import strategies as st

from ctseg.io.geometry import as_slices, as_volume


rotations = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(x * x for x in q) > 0.01)


@settings(max_examples=60, deadline=None)
@given(q=rotations, code=st.sampled_from(["SPL", "SLA", "AIL", "RSP", "IAR"]), flip=st.booleans())
def test_slices_and_back(q, code, flip):
    A = affine_from(q)
    if flip:
        A[:3, 0] *= -1  # a left-handed grid
    a = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    stack = as_slices(a, A, code)
    assert (as_volume(stack, A, code) == a).all()
    turn = nib.orientations.ornt_transform(nib.io_orientation(A), nib.orientations.axcodes2ornt(code))
    if (
        len(set(nib.aff2axcodes(A))) == 3
        and np.sort(np.abs(A[:3, :3] / np.linalg.norm(A[:3, :3], axis=0)), axis=0)[-1].min() > 0.75
    ):
        assert (stack == nib.apply_orientation(a, turn)).all()


def test_the_patients_left_is_on_the_right():
    a = np.zeros((4, 5, 6))
    a[0, 4, 5] = 1  # RAS: i=0 is the leftmost, j=4 the front, k=5 the top
    assert tuple(np.argwhere(as_slices(a, np.eye(4), "SPL"))[0]) == (5, 0, 3)
    assert tuple(np.argwhere(as_slices(a, np.eye(4), "SLA"))[0]) == (5, 3, 4)
