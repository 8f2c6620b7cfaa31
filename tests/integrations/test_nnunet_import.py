"Data sets of nnU-Net read back, and what is none refused."
import json

import numpy as np
import pytest
from helpers.volumes import one_line
from skimage.io import imsave

from ctseg.cli.data import import_kind
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.integrations.nnunet_import import import_nnunet
from ctseg.io.slicing import Slicing


def dataset(root, ending=".png", **changes):
    "Two slices of a liver and a kidney; the kidney was examined on the first only, and 3 is ignored."
    text = {"channel_names": {"0": "CT"}, "file_ending": ending, "numTraining": 2,
            "labels": {"background": 0, "liver": 1, "kidney": 2, "ignore": 3}} | changes
    for part in ("imagesTr", "labelsTr"): (root/part).mkdir(parents=True)
    (root/"dataset.json").write_text(json.dumps(text))
    (root/"annotated_labels.json").write_text(json.dumps({"a": ["liver", "kidney"], "b": ["liver"]}))
    labels = np.uint8([[0, 1], [3, 2]])
    for case, ids in (("a", labels), ("b", labels*(labels != 2))):
        imsave(root/"imagesTr"/f"{case}_0000.png", 60*labels, check_contrast=False)
        imsave(root/"labelsTr"/f"{case}.png", ids, check_contrast=False)
    return root


def test_a_folder_of_nnunet_becomes_slices(tmp_path, monkeypatch):
    monkeypatch.setenv("CTSEG_CACHE", str(tmp_path/"cache"))
    facts = import_nnunet(dataset(tmp_path/"raw"), tmp_path/"out")
    s = read_challenge(tmp_path/"out")
    assert facts["train"] == facts["labelled"] == 2
    assert s.known.tolist() == [[True, True], [True, False]] and list(s.names) == ["a.png", "b.png"]
    assert s.masks.tolist() == [[[0, 1], [255, 2]], [[0, 1], [255, 0]]]


@pytest.mark.parametrize("spoil, told", [
    (lambda root: (root/"dataset.json").unlink(), "dataset.json"),
    (lambda root: (root/"dataset.json").write_text("[]"), "file_ending"),
    (lambda root: (root/"annotated_labels.json").unlink(), "annotated_labels.json"),
    (lambda root: (root/"annotated_labels.json").write_text('{"a": [1]}'), "examined on b"),
    (lambda root: (root/"labelsTr"/"b.png").unlink(), "b.png"),
    (lambda root: imsave(root/"labelsTr"/"b.png", np.full((2, 2), 9, np.uint8), check_contrast=False), "9"),
])
def test_what_does_not_fit_is_told(tmp_path, spoil, told):
    root = dataset(tmp_path/"raw")
    spoil(root)
    with pytest.raises(InputError) as e: import_nnunet(root, tmp_path/"out")
    assert told in one_line(e) and not (tmp_path/"out").exists()


@pytest.mark.parametrize("changes, told", [
    ({"channel_names": {"0": "CT", "1": "PET"}}, "2 channels"), ({"ending": ".mha"}, ".mha"),
])
def test_other_data_sets(tmp_path, changes, told):
    with pytest.raises(InputError) as e: import_nnunet(dataset(tmp_path/"raw", **changes), tmp_path/"out")
    assert told in one_line(e)


@pytest.mark.parametrize("given", [{"every": 2}, {"window": "lung"}, {"size": 64}])
def test_options_of_volumes_are_not_passed_over(tmp_path, given):
    cut = {"window": None, "every": None, "per_volume": None, "size": None} | given
    work = {"workers": None, "skip_damaged": False}
    with pytest.raises(InputError) as e:
        import_kind("nnunet", [dataset(tmp_path/"raw"), tmp_path/"out"], cut, {}, {}, work)
    assert "no volumes" in one_line(e)
    assert Slicing() == Slicing(window="soft")
