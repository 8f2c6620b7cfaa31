"Which slices a run holds out."
import numpy as np
import pytest
from helpers.toys import toy

from ctseg.core.errors import InputError
from ctseg.runs.split import DataSettings, split_slices


def test_fewer_patients_than_folds():
    "As many folds as there are patients: each is held out once, and nobody else is."
    slices = toy(12, 6)  # three patients, two annotated slices each
    with pytest.warns(UserWarning, match="10 folds of 3 groups of slices: 3 folds are made"):
        splits = [split_slices(slices, DataSettings(fold=k)) for k in range(3)]
    held_out = [set(s.holdout.groups.tolist()) for s in splits]
    assert sorted(map(tuple, held_out)) == [(0,), (1,), (2,)]
    assert all(not np.isin(s.labelled.groups, s.holdout.groups).any() for s in splits)
    with pytest.warns(UserWarning), pytest.raises(
        InputError, match="fold = 3: there are 3 folds, numbered from 0"
    ):
        split_slices(slices, DataSettings(fold=3))


def test_one_patient_cannot_be_split():
    with pytest.raises(InputError, match="10 folds of 1 group of slices.*fold = -1"):
        split_slices(toy(12, 2), DataSettings())
    assert not len(split_slices(toy(12, 2), DataSettings(fold=-1)).holdout)
