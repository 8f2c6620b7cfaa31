"The phantom challenge: reproducible, in the spirit of the real one, and honest about what it hides."
import numpy as np
import pytest

from ctseg.core.anatomy import RAIDIUM54
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import read_masks
from ctseg.data.splits import near_duplicates
from ctseg.phantom import hide_labels, make_phantom, phantom_slices
from ctseg.phantom.challenge import plan_patient

ID = {n: RAIDIUM54.id(n) for n in RAIDIUM54.names}


def test_a_slice_is_a_function_of_its_seed():
    again = phantom_slices(6, size=64, seed=7)
    assert again.fingerprint() == phantom_slices(6, size=64, seed=7).fingerprint()
    assert again.fingerprint() != phantom_slices(6, size=64, seed=8).fingerprint()


def test_workers_change_nothing():
    assert (
        phantom_slices(4, size=32, seed=3, workers=2).fingerprint()
        == phantom_slices(4, size=32, seed=3).fingerprint()
    )


def test_statistics_are_in_the_spirit_of_the_challenge(world):
    shown = hide_labels(world)
    assert 4.5 < shown.present.sum(1).mean() < 8 and 9 < world.present.sum(1).mean() < 16
    assert .01 < (~shown.present.any(1)).mean() < .12
    often = world.present.mean(0)
    assert often[ID["aorta"] - 1] > .4 > .12 > often[ID["brain"] - 1] > 0
    kinds = [shot.kind for k in range(2500) for shot in plan_patient(0, k)]
    assert .16 < np.mean([k != "axial" for k in kinds]) < .22
    dup = np.bincount(near_duplicates(world.images))
    assert .04 < dup[dup > 1].sum()/len(world) < .3


def test_windows_differ(world):
    assert world.images.dtype == np.uint8 and len(set(np.percentile(world.images, 90, axis=(1, 2)))) > 60


def test_hidden_labels_are_hidden_and_shown_ones_true(world):
    for examined in (1, 27, 54):
        shown = hide_labels(world, examined, empty=0, seed=1)
        assert (shown.known.sum(1) == examined).all()
        assert (shown.present == (world.present & shown.known)).all()
        assert (shown.masks[shown.masks > 0] == world.masks[shown.masks > 0]).all()
    assert (shown.masks == world.masks).all()  # all 54 examined: nothing is hidden
    empty = hide_labels(world, 27, empty=.5, seed=1)
    assert (~empty.present.any(1)).sum() >= 56 and (empty.known.sum(1) == 27).all()


def test_a_phantom_is_a_challenge_folder(tmp_path):
    make_phantom(tmp_path/"a", labelled=6, unlabelled=4, test=3, size=32, seed=1, truth=True)
    train, test = read_challenge(tmp_path/"a", cache=False), read_challenge(tmp_path/"a", "test", cache=False)
    assert train.labelled.tolist() == [True]*6 + [False]*4 and test.known.all() and len(test) == 3
    assert not set(train.groups[:6]) & set(train.groups[6:]) and not set(train.groups) & set(test.groups)
    full = read_masks(tmp_path/"a"/"y_train_full.csv", cache=False)[1]
    assert (full[train.masks > 0] == train.masks[train.masks > 0]).all() and (full[6:] > 0).any()
    make_phantom(tmp_path/"b", labelled=6, unlabelled=4, test=3, size=32, seed=1)
    assert read_challenge(tmp_path/"b", cache=False).fingerprint() == train.fingerprint()
    make_phantom(tmp_path/"c", labelled=0, unlabelled=0, test=2, size=32)
    assert len(read_challenge(tmp_path/"c", "test", cache=False)) == 2


@pytest.mark.parametrize("ask, "
                         "says", [(dict(labelled=0, unlabelled=0, test=0), "nothing"), (dict(size=8), "from 16"), (dict(labelled=-1), "-1"),
                                       (dict(examined=60), "60 classes"), (dict(seed=-1), "seed = -1")])
def test_bad_requests_leave_nothing(tmp_path, ask, says):
    with pytest.raises(InputError, match=says):
        make_phantom(tmp_path/"x", **(dict(labelled=1, unlabelled=0, test=0, size=16) | ask))
    assert not list(tmp_path.iterdir())


def test_a_full_folder_is_not_overwritten(tmp_path):
    (tmp_path/"mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"): make_phantom(tmp_path, 1, 0, 0, size=16)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_drawn_again_is_the_same_to_the_byte(tmp_path, phantom):
    make_phantom(tmp_path/"again", labelled=10, unlabelled=14, test=8, size=64, seed=2500, empty=0.1)
    files = sorted(p.relative_to(phantom) for p in phantom.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path/"again") for p in (tmp_path/"again").rglob("*") if p.is_file()
    )
    assert not [f for f in files if (phantom/f).read_bytes() != (tmp_path/"again"/f).read_bytes()]
