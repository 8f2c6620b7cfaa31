"Label maps beside images are paired or refused, never imported as scans; scales other than CT's are told."

import json

import numpy as np
import pytest
from helpers.volumes import TWO, one_line, save

from ctseg.core.files import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io.nifti_import import import_nifti
from ctseg.io.nifti_layouts import role_of

GRID = np.diag([2.0, 2, 5, 1])
HU = np.random.default_rng(0).normal(0, 20, (12, 10, 4)).round().astype(np.int16)
LABELS = np.zeros(HU.shape, np.uint8)
LABELS[2:5, 3:7, 1:3], LABELS[7:9, 3:7, 1:3] = 1, 2

PAIRS = [
    ("volume-0", "segmentation-0"), ("p1", "p1_seg"), ("p1", "p1-mask"), ("p1", "p1_label"), ("p1", "P1_gt"),
    ("CT/p1", "Seg/p1"), ("image/img0001", "label/label0001"), ("ct/p1", "masks/p1_mask"),
    ("imagesTr/img0001", "labelsTr/label0001"), ("case_0/imaging", "case_0/segmentation"), ("p1", "labels/p1"),
]


@pytest.mark.parametrize("image, labels", PAIRS)
def test_pairs(tmp_path, image, labels):
    save(HU, tmp_path / "src" / f"{image}.nii.gz", GRID)
    save(LABELS, tmp_path / "src" / f"{labels}.nii.gz", GRID)
    facts = import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO, annotated="all")
    masks = read_challenge(tmp_path / "out").masks
    assert facts["volumes"] == 1 and [(masks == c).sum() for c in (1, 2)] == [24, 16]


@pytest.mark.parametrize("names", [["p1", "p2_seg"], ["p1", "p1_seg", "p1_mask"], ["Seg/p1"], ["CT/p1", "seg/p1", "mask/p1"]])
def test_refused(tmp_path, names):
    for name in names:
        save(LABELS, tmp_path / "src" / f"{name}.nii.gz", GRID)
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO, annotated="all")
    one_line(e)
    assert not (tmp_path / "out").exists()


def test_other_names_are_no_roles():
    for name in ("abdomen", "segal_01", "p1", "maskell", "contrast_2"):
        assert role_of(name) == (name, False)


@pytest.mark.parametrize("voxels", [HU.clip(-1024) + 1024, np.abs(HU).astype(np.uint8)])
def test_no_hounsfield_units(tmp_path, voxels):
    save(voxels, tmp_path / "src" / "p1.nii.gz", GRID)
    assert "Hounsfield" in import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO)["notes"][0]


def test_numbers_as_floats(tmp_path):
    save(HU, tmp_path / "src/imagesTr/p1_0000.nii.gz", GRID)
    save(LABELS, tmp_path / "src/labelsTr/p1.nii.gz", GRID)
    (tmp_path / "src/dataset.json").write_text(json.dumps({"labels": {"background": 0.0, "a": 1.0, "b": 2.0}}))
    import_nifti(tmp_path / "src", tmp_path / "out", annotated="all")
    assert read_challenge(tmp_path / "out").classes.names == ("a", "b")
