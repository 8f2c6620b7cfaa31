"TotalSegmentator in both versions: a class with a part that has no file is unknown."

import numpy as np
import pytest
from helpers.volumes import one_line, save

from ctseg.core.anatomy import RAIDIUM54, ClassMap
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io.index import read_index
from ctseg.io.slicing import Slicing
from ctseg.io.totalsegmentator import import_totalsegmentator, total_parts, total_version


def subject(folder, names, full=(), shape=(30, 20, 4)):
    A = np.diag([-10.0, 10, 30, 1])
    save(np.full(shape, 40, np.int16), folder / "ct.nii.gz", A)
    save(np.zeros(shape, np.uint8), folder / "segmentations" / "empty.nii", A)
    empty = (folder / "segmentations" / "empty.nii").read_bytes()
    (folder / "segmentations" / "empty.nii").unlink()
    for i, n in enumerate(names):
        if n not in full:
            (folder / "segmentations" / f"{n}.nii").write_bytes(empty)
            continue
        mask = np.zeros(shape, np.uint8)
        mask[i % 30, i // 30 * 3, 1:3] = 1
        save(mask, folder / "segmentations" / f"{n}.nii.gz", A)


V1 = sorted(set().union(*total_parts(1).values()))


V2 = sorted(set().union(*total_parts(2).values()) | {"skull", "prostate", "thyroid_gland"})


def test_totalsegmentator(tmp_path):
    src, ids = tmp_path / "data", {n: i for i, n in enumerate(RAIDIUM54.names)}
    subject(
        src / "s0000",
        V1,
        ["face", "heart_atrium_left", "rib_left_7", "vertebrae_T12", "lung_middle_lobe_right"],
    )
    subject(src / "s0001", V2, ["heart", "vertebrae_S1", "skull"])
    subject(src / "s0002", [n for n in V2 if n != "vertebrae_L3"], ["vertebrae_L1", "liver"])
    subject(src / "s0003", V1, V1)
    subject(src / "s0004", V2, V2)
    (src / "meta.csv").write_text(
        "image_id;age;split\ns0000;50;train\ns0001;60;val\ns0002;60;train\ns0003;60;test\ns0004;60;test\n"
    )
    facts = import_totalsegmentator(src, tmp_path / "out", Slicing())
    s, t = read_challenge(tmp_path / "out"), read_challenge(tmp_path / "out", "test")
    known, present = ({g: a[s.groups == g].any(0) for g in np.unique(s.groups)} for a in (s.known, s.present))
    first, second, third = sorted(known)
    assert known[first].all()
    assert {n for n, i in ids.items() if present[first][i]} == {
        "face",
        "heart",
        "rib_left",
        "vertebrae_thoracic",
        "lung_right",
    }
    assert {n for n, i in ids.items() if not known[second][i]} == {"face", "pulmonary_artery"}
    assert {n for n, i in ids.items() if present[second][i]} == {
        "heart",
        "sacrum",
    }  # S1 belongs to the sacrum, the skull to nobody
    assert {n for n, i in ids.items() if not known[third][i]} == {
        "face",
        "pulmonary_artery",
        "vertebrae_lumbar",
    }
    assert {n for n, i in ids.items() if present[third][i]} == {
        "liver"
    }  # L1 is erased with the unknown region
    assert facts["test_subjects_left_out"] == 1 and t.known.all() and t.present.any(0).all()
    assert set(read_index(tmp_path / "out", "test")[1]["0.png"]["volume"]) <= set("s0003")
    fewer = ClassMap.from_names([n for n in RAIDIUM54.names if n not in ("face", "pulmonary_artery")])
    assert import_totalsegmentator(src, tmp_path / "out52", Slicing(), fewer)["test_subjects_left_out"] == 0


def test_totalsegmentator_versions_and_errors(tmp_path):
    assert (total_version(V1), total_version(V2), total_version(["sacrum"])) == (1, 2, 2)
    assert sorted(total_parts(1)) == sorted(RAIDIUM54.names) and len(total_parts(2)) == 52
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as e:
        import_totalsegmentator(tmp_path / "empty", tmp_path / "out")
    assert "no subjects" in one_line(e)
    subject(tmp_path / "d/s0000", ["liver"])
    twice = "image_id;split;split\ns0000;test;train\n", "image_id;split\ns0000;test\ns0000;train\n"
    for text in ("a,b\n1,2\n", "image_id;split\n\ns0000\n", *twice):
        (tmp_path / "d/meta.csv").write_text(text)
        with pytest.raises(InputError) as e:
            import_totalsegmentator(tmp_path / "d", tmp_path / "out")
        assert "meta.csv" in one_line(e) and ("twice" in one_line(e)) == (text in twice)
    with pytest.raises(InputError) as e:
        import_totalsegmentator(tmp_path / "d", tmp_path / "out", classes=ClassMap.from_names(["livr"]))
    assert "liver" in one_line(e)
    (tmp_path / "d/meta.csv").unlink()
    (tmp_path / "d/s0000/ct.nii.gz").unlink()
    with pytest.raises(InputError) as e:
        import_totalsegmentator(tmp_path / "d", tmp_path / "out")
    assert "ct.nii.gz" in one_line(e)
