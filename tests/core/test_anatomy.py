"Left and right in the names of classes."
import pytest

from ctseg.core.anatomy import ClassMap


@pytest.mark.parametrize("names, pairs, unpaired", [
    (["parotid_l", "parotid_r"], ((1, 2),), ()), (["Lens RT", "Lens LT"], ((2, 1),), ()), (["kidney_left", "liver"], (), ("kidney_left",)),
    (["vertebrae_L1", "vertebrae_L2", "hilum"], (), ()), (["parotid_left", "parotid_r"], (), ("parotid_left", "parotid_r")),
    (["heart_atrium_left", "heart_atrium_right", "heart_ventricle_left", "heart_ventricle_right"], (), ()), (["upright_l_r"], (), ())])
def test_sides_are_paired_by_their_names(names, pairs, unpaired):
    for given in (names, (n for n in names)):
        classes = ClassMap.from_names(given)
        assert (classes.pairs, classes.unpaired_sides) == (pairs, unpaired)
