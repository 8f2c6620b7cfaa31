"The sample in the repository: what its README says, and how its slices are chosen."
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT/"data_sample"

from make_sample import choose_slices, make_sample, spread_over_patients

from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge


@pytest.fixture(scope="module")
def train():
    return read_challenge(SAMPLE, cache=False)


@pytest.fixture(scope="module")
def test():
    return read_challenge(SAMPLE, "test", cache=False)


def test_the_sample_is_what_its_readme_says(train, test):
    annotated, unlabelled = train[train.labelled], train[~train.labelled]
    assert train.labelled.tolist() == [True]*480 + [False]*720
    assert train.images.shape[1:] == test.images.shape[1:] == (64, 64)
    assert len(train.classes) == 7 and test.known.all()
    assert set(annotated.known.sum(1)) == {3, 4}
    assert (~annotated.present.any(1)).sum() == 46
    patients = [set(s.groups.tolist()) for s in (annotated, unlabelled, test)]
    assert [len(p) for p in patients] == [96, 146, 15]
    assert len(set.union(*patients)) == 257  # nobody is in two groups
    assert set(np.unique(test.groups, return_counts=True)[1]) == {4}

    text = (SAMPLE/"README.md").read_text(encoding="utf-8")
    rows = [(len(s), len(p)) for s, p in zip((annotated, unlabelled, test), patients)]
    assert [tuple(map(int, r)) for r in re.findall(r"slices \| (\d+) \| (\d+)", text)] == rows
    assert "1260 head-and-neck CT slices of 257 patients, 64x64 pixels" in text
    assert "On 46 of the annotated slices" in text


def test_left_and_right_are_where_the_readme_says(test):
    middle = {n: np.argwhere(test.masks == test.classes.id(n)).mean(0)[1:] for n in test.classes.names}
    # the columns run from the patient's right to the left
    assert middle["parotid_right"][1] < 32 < middle["parotid_left"][1]
    assert middle["mandible"][0] < middle["spinal_cord"][0]              # the rows from front to back


def test_the_sample_is_small_and_has_its_licence():
    assert sum(p.stat().st_size for p in SAMPLE.rglob("*") if p.is_file()) < 5*2**20
    licence = (SAMPLE/"LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in licence and "Copyright (c) 2021 Aaron Babier" in licence


def test_every_patient_gives_one_slice_before_any_gives_a_second():
    groups = np.repeat([7, 3, 9], [5, 1, 4])
    for count in range(1, 11):
        chosen = spread_over_patients(groups, count)
        taken = [int((groups[chosen] == p).sum()) for p in (7, 3, 9)]
        assert len(set(chosen.tolist())) == count and (np.diff(chosen) > 0).all()
        assert all(a >= min(n, max(taken) - 1) for a, n in zip(taken, (5, 1, 4))), taken
    with pytest.raises(InputError, match="10 slices where 11"):
        spread_over_patients(groups, 11)


def test_the_tool_chooses_the_same_again(tmp_path, train, test):
    counts = {"annotated": 5, "unlabelled": 7, "test": 16}
    for name in "ab":
        make_sample(SAMPLE, tmp_path/name, counts)
    files = [p.relative_to(tmp_path/"a") for p in (tmp_path/"a").rglob("*") if p.is_file()]
    assert not [f for f in files if (tmp_path/"a"/f).read_bytes() != (tmp_path/"b"/f).read_bytes()]
    small, judged = choose_slices(train, test, counts)
    written = read_challenge(tmp_path/"a", cache=False)
    assert written.fingerprint() == small.fingerprint()
    assert written.labelled.tolist() == [True]*5 + [False]*7 and len(set(judged.groups.tolist())) == 15


def test_a_patient_on_both_sides_is_refused(tmp_path, phantom):
    from shutil import copytree
    import json
    copytree(phantom, tmp_path/"mixed")
    path = tmp_path/"mixed"/"patients.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"test": [table["train"][0]]*8}))
    with pytest.raises(InputError, match="keep patients apart"):
        make_sample(tmp_path/"mixed", tmp_path/"out", {"annotated": 10, "unlabelled": 14, "test": 8})
    assert not (tmp_path/"out").exists()
