"Volumes become a challenge folder: nothing lost, nothing overwritten, nobody named, hidden cells unknown."

import tracemalloc

import numpy as np
import pytest
from helpers.volumes import TWO, affine_from, leaks, one_line, put_back, save, volume

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.geometry import as_slices
from ctseg.io.nifti_import import import_nifti
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import Volume


@pytest.mark.parametrize(
    "kw",
    [dict(), dict(orientation="SLA"), dict(orientation="AIL"), dict(size=20), dict(size=13, window="random")],
)
def test_round_trip_is_exact(tmp_path, kw):
    vs = [
        volume(0),
        volume(1, (6, 4, 7), np.diag([-1, 1, -2.0, 1])),
        volume(2, (3, 11, 6), affine_from([0.3, 0.9, 0, 0.1])),
    ]
    write_volumes(
        [Case(f"c{i}", lambda v=v: v) for i, v in enumerate(vs)], tmp_path / "out", TWO, Slicing(**kw)
    )
    back = put_back(read_challenge(tmp_path / "out"), tmp_path / "out")
    for v, b in zip(vs, back.values()):
        assert (b == v.labels).all()


def test_a_second_import_of_one_output_is_told(tmp_path):
    "Its parts would be mixed with those of the first."
    def load():
        with pytest.raises(InputError, match="another command is writing it"):
            write_volumes([Case("b", lambda: volume(1))], tmp_path/"out", TWO, Slicing())
        return volume(0)
    write_volumes([Case("a", load)], tmp_path/"out", TWO, Slicing())
    assert (put_back(read_challenge(tmp_path/"out"), tmp_path/"out")["v000"] == volume(0).labels).all()
    assert not list(tmp_path.glob("*.parts"))


def test_crop_and_left_out_slices_are_missing_not_background(tmp_path):
    v = volume(0, (16, 16, 6), np.eye(4))
    write_volumes([Case("c", lambda: v)], tmp_path / "out", TWO, Slicing(size=8, every=2))
    back = put_back(read_challenge(tmp_path / "out"), tmp_path / "out")["v000"]
    seen = back < 255
    assert (back[seen] == v.labels[seen]).all() and seen.sum() == 3 * 8 * 8 and not seen[:, :, 1::2].any()


def test_test_patients_are_whole_and_fully_known(tmp_path):
    part = np.array([True, False])
    ks = [np.ones(2, bool)] * 4 + [part] * 4
    cases = [
        Case(f"c{i}", lambda k=k: volume(0, known=k, labels=k.all()), f"p{i // 2}", k)
        for i, k in enumerate(ks)
    ]
    write_volumes(cases, tmp_path / "out", TWO, Slicing(), test_share=0.25)
    s, t = read_challenge(tmp_path / "out"), read_challenge(tmp_path / "out", "test")
    assert (
        t.known.all()
        and not set(t.groups) & set(s.groups)
        and len(t) == 2 * len(as_slices(volume(0).hu, volume(0).affine))
    )
    with pytest.raises(InputError) as e:
        write_volumes(cases, tmp_path / "out2", TWO, Slicing(), test_share=0.9)
    assert "only 2 of 4" in one_line(e) and not (tmp_path / "out2").exists()


@pytest.mark.parametrize("patients, share", [(1, .2), (2, .9)])
def test_a_test_leaves_somebody_to_learn_from(tmp_path, patients, share):
    cases = [Case(f"c{i}", lambda: volume(0), f"p{i}", np.ones(2, bool)) for i in range(patients)]
    with pytest.raises(InputError) as e:
        write_volumes(cases, tmp_path / "out", TWO, Slicing(), test_share=share)
    assert "leaves none to learn from" in one_line(e) and not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(InputError) as e:
        write_volumes([Case("c", lambda: volume(0))], tmp_path / "out", TWO, Slicing())
    assert "not empty" in one_line(e)


def test_key_stays_outside(tmp_path):
    def case():
        return [Case("Planted^Patience/1", lambda: volume(0))]

    with pytest.raises(InputError):
        write_volumes(case(), tmp_path / "out", TWO, Slicing(), key=tmp_path / "out" / "key.csv")
    write_volumes(case(), tmp_path / "out", TWO, Slicing(), key=tmp_path / "key.csv")
    assert "v000,Planted^Patience/1" in (tmp_path / "key.csv").read_text() and not leaks(tmp_path / "out")


def test_memory_of_an_import(tmp_path):
    "Each part is let go when it is pasted: the arrays are not held two or three times."
    shape, n = (64, 64, 40), 20

    def load():
        return Volume(np.full(shape, 40, np.float32), np.eye(4), np.ones(shape, np.uint8), np.ones(1, bool))

    cases = [Case(f"c{i}", load) for i in range(n)]
    tracemalloc.start()
    try:
        write_volumes(cases, tmp_path / "out", ClassMap(("x",)), Slicing())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.4 * n * 2 * np.prod(shape)  # the parts, and the arrays they are pasted into


def test_what_others_hide_is_unknown_not_absent(tmp_path):
    """Both lungs cover `lungs` on the two lower slices; on the third some of it is left.

    What a coarser grid swallows is not absent either.
    """
    left, right, lungs = (np.zeros((8, 8, 4), np.uint8) for _ in range(3))
    left[1:3, 2:6, :3], right[5:7, 2:6, :3] = 1, 1
    lungs[:] = left | right
    lungs[3:5, 2:6, 2] = 1
    for n, m in (("left", left), ("lungs", lungs), ("right", right)):
        save(m, tmp_path / f"src/a/segmentations/{n}.nii.gz", np.eye(4))
    save(np.zeros((8, 8, 4), np.int16), tmp_path / "src/a/ct.nii.gz", np.eye(4))
    facts = import_nifti(tmp_path / "src", tmp_path / "out", Slicing(min_body=0))
    s = read_challenge(tmp_path / "out")
    assert s.classes.names == ("left", "lungs", "right") and facts["hidden_cells"] == 2
    assert (
        s.known[:, 1].tolist() == [False, False, True, True]
        and s.present[:, 1].tolist() == [False, False, True, False]
        and s.known[:, [0, 2]].all()
    )
    dot = Volume(np.zeros((9, 9, 2), np.float32), np.eye(4), np.zeros((9, 9, 2), np.uint8), np.ones(2, bool))
    dot.labels[0, 0, 0] = 1
    write_volumes(
        [Case("dot", lambda: dot)], tmp_path / "small", TWO, Slicing(size=3, spacing="fit", min_body=0)
    )
    assert read_challenge(tmp_path / "small").known.tolist() == [[False, True], [True, True]]
