"OpenKBP: true partial labels from sparse CSV, and a choice of slices repeated."

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.volumes import one_line, put_back

from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io.index import read_index
from ctseg.io.openkbp import OPENKBP, OPENKBP_FILES, import_openkbp, read_openkbp
from ctseg.io.slicing import Slicing, to_8bit


def patient(folder, structures, value=1064, n=128**3):
    "An OpenKBP patient in the real layout: a block of tissue and structures in it."
    Path(folder).mkdir(parents=True)
    at = np.ravel_multi_index([a.ravel() for a in np.mgrid[30:90, 40:80, 60:64]], (128,) * 3)
    Path(folder, "ct.csv").write_text(",data\n" + "".join(f"{i},{value}.0\n" for i in np.sort(at)))
    for name in structures:
        k = OPENKBP_FILES.index(name)
        at = np.ravel_multi_index(
            [a.ravel() for a in np.mgrid[40 + 5 * k : 44 + 5 * k, 45:50, 61:63]], (128,) * 3
        )
        Path(folder, f"{name}.csv").write_text(",data\n" + "".join(f"{i},\n" for i in np.sort(at)))
    Path(folder, "voxel_dimensions.csv").write_text(
        "3.906000000000000139e+00\n3.906000000000000139e+00\n2.500000000000000000e+00\n"
    )


def test_openkbp(tmp_path):
    root = tmp_path / "open-kbp" / "provided-data"
    patient(root / "train-pats/pt_3", ["Brainstem", "Mandible"])
    patient(root / "valid-pats/pt_210", ["Larynx"])
    patient(root / "test-pats/pt_300", OPENKBP_FILES)
    patient(root / "test-pats/pt_301", OPENKBP_FILES[:3])
    facts = import_openkbp(tmp_path / "open-kbp", tmp_path / "out", Slicing(window="soft", min_body=90.0))
    s, t = read_challenge(tmp_path / "out"), read_challenge(tmp_path / "out", "test")
    assert (
        facts["volumes"] == 4
        and set(s.groups) == {3, 210, 301}
        and set(t.groups) == {300}
        and t.known.all()
        and s.classes == OPENKBP
    )
    assert len(t) == 4 and s.images.shape[1:] == (128, 128)  # of 128 slices four have a body
    assert s.known[s.groups == 3][0].tolist() == [True, False, False, False, False, False, True]
    z = t.masks[1]  # rows to the back, columns to the left; slices upwards, where OpenKBP counts down
    assert (
        (z[65:69, 45:50] == 6).all()
        and (t.images[0, 30:90, 40:80] == 128).all()
        and t.images[0, :30].max() == 0
    )
    assert read_index(tmp_path / "out", "test")[0].keys() == {"pt_3", "pt_210", "pt_300", "pt_301"}
    assert [x["slice"] for x in read_index(tmp_path / "out", "test")[1].values()] == [64, 65, 66, 67]
    A = np.array(read_index(tmp_path / "out", "test")[0]["pt_300"]["affine"])
    assert nib.aff2axcodes(A) == ("P", "L", "I") and np.allclose(
        np.linalg.norm(A[:3, :3], axis=0), [3.906, 3.906, 2.5]
    )
    back = put_back(t, tmp_path / "out", "test")["pt_300"]
    assert (back[65:69, 45:50, 61:63] == 6).all() and set(np.unique(back[:, :, 60:64])) == set(range(8))


def test_openkbp_repeats_a_choice(tmp_path):
    patient(tmp_path / "kbp/train-pats/pt_3", ["Brainstem", "Mandible"])
    patient(tmp_path / "kbp/test-pats/pt_9", OPENKBP_FILES)
    choice = dict(
        size=64,
        train=[[9, 65, 40.0, 400.0, [1, 2]], [3, 65, 0.0, 900.0, []], [3, 66, 40.0, 400.0, [1, 2]]],
        test=[[9, 66, 40.0, 400.0, list(range(1, 8))]],
    )
    (tmp_path / "like.json").write_text(json.dumps(choice))
    import_openkbp(tmp_path / "kbp", tmp_path / "out", like=tmp_path / "like.json")
    s, t = read_challenge(tmp_path / "out"), read_challenge(tmp_path / "out", "test")
    assert (
        s.groups.tolist() == [9, 3, 3]
        and (s.known.sum(1) == [2, 0, 1]).all()
        and s.images.shape == (3, 64, 64)
    )
    assert (
        set(np.unique(s.masks[0])) == {0, 1, 2}
        and not s.masks[1].any()
        and t.known.all()
        and len(np.unique(t.masks)) == 8
    )
    assert s.images[1].max() == to_8bit(40, 0, 900)
    choice["train"][0][0] = 77
    (tmp_path / "like.json").write_text(json.dumps(choice))
    with pytest.raises(InputError) as e:
        import_openkbp(tmp_path / "kbp", tmp_path / "out2", like=tmp_path / "like.json")
    assert "pt_77" in one_line(e)
    for at, value, says in (
        (1, 128, "slice 128"),
        (1, -1, "slice -1"),
        (3, 0.0, "window"),
        (4, [1, 8], "class 8"),
    ):
        bad = [9, 65, 40.0, 400.0, [1]]
        bad[at] = value
        (tmp_path / "like.json").write_text(json.dumps(choice | {"train": [bad]}))
        with pytest.raises(InputError) as e:
            import_openkbp(tmp_path / "kbp", tmp_path / "out2", like=tmp_path / "like.json")
        assert f"train, entry 0: {says}" in one_line(e) and not (tmp_path / "out2").exists()
    (tmp_path / "like.json").write_text('{"size": 64, "train": [[9, 65, NaN, 400, [1]]]}')
    with pytest.raises(InputError, match="NaN"):
        import_openkbp(tmp_path / "kbp", tmp_path / "out2", like=tmp_path / "like.json")
    (tmp_path / "like.json").write_text('{"size": 64, "train": [[1, 2]]}')
    with pytest.raises(InputError) as e:
        import_openkbp(tmp_path / "kbp", tmp_path / "out2", like=tmp_path / "like.json")
    one_line(e)


def test_openkbp_structure_without_voxels_is_absent(tmp_path):
    patient(tmp_path / "pt_3", ["Brainstem", "Larynx"])
    (tmp_path / "pt_3/Brainstem.csv").write_text(",data\n")
    v = read_openkbp(tmp_path / "pt_3")
    assert (
        v.known.tolist() == [True, False, False, False, False, True, False]
        and not (v.labels == 1).any()
        and (v.labels == 6).any()
    )


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda d: (d / "ct.csv").unlink(), "clone the whole"),
        (lambda d: (d / "ct.csv").write_text(""), "not a readable CSV"),
        (lambda d: (d / "ct.csv").write_text(",data\n5,\n"), "values are missing"),
        (lambda d: (d / "ct.csv").write_text("version https://git-lfs\noid 5\n"), "expected the columns"),
        (lambda d: (d / "Brainstem.csv").write_text(",data\n2097152,\n"), "outside"),
        (lambda d: (d / "Brainstem.csv").write_text(",data\n-1,\n"), "outside"),
        (lambda d: (d / "Brainstem.csv").write_text(",data\n7,\n9,\n7,\n"), "there twice"),
        (lambda d: (d / "ct.csv").write_text(",data\n5,100\n5,200\n"), "there twice"),
        (lambda d: (d / "voxel_dimensions.csv").write_text("3.9\n3.9\n"), "three sizes"),
        (lambda d: shutil.rmtree(d), "no patients"),
    ],
)
def test_bad_openkbp(tmp_path, spoil, says):
    patient(tmp_path / "kbp/train-pats/pt_3", ["Brainstem"])
    spoil(tmp_path / "kbp/train-pats/pt_3")
    with pytest.raises(InputError) as e:
        import_openkbp(tmp_path / "kbp", tmp_path / "out")
    assert says in one_line(e) and not (tmp_path / "out").exists()


def test_sizes_of_voxels_that_are_none(tmp_path):
    (tmp_path / "ct.csv").write_text(",data\n0,1\n")
    (tmp_path / "voxel_dimensions.csv").write_text("x,y,z\n1,1,1\n")
    with pytest.raises(InputError) as e:
        read_openkbp(tmp_path)
    assert "expected three sizes in mm" in one_line(e)
