"Label maps beside images are paired or refused, never imported as scans; scales other than CT's are told."

import json

import numpy as np
import pytest
from helpers.volumes import TWO, one_line, save

from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io.nifti_import import import_nifti
from ctseg.io.nifti_layouts import role_of

GRID = np.diag([2.0, 2, 5, 1])
HU = np.random.default_rng(0).normal(0, 20, (12, 10, 4)).round().astype(np.int16)
LABELS = np.zeros(HU.shape, np.uint8)
LABELS[2:5, 3:7, 1:3], LABELS[7:9, 3:7, 1:3] = 1, 2

PAIRS = [
    ("volume-0", "segmentation-0"),
    ("p1", "p1_seg"),
    ("p1", "p1-mask"),
    ("p1", "p1_label"),
    ("p1", "P1_gt"),
    ("CT/p1", "Seg/p1"),
    ("image/img0001", "label/label0001"),
    ("ct/p1", "masks/p1_mask"),
    ("p1", "p1_seg_final"),
    ("p1", "p1-seg-manual_v2"),
    ("p1", "p1_Segmentation-label"),
    ("p1_ct", "p1_GTV"),
    ("imgs/p1", "lbls/p1"),
    ("volumes/p1", "contours/p1"),
    ("img/p\u00e4", "anno/pa\u0308"),
    ("case_0/p1", "case_0/p1_segm"),
    ("imagesTr/img0001", "labelsTr/label0001"),
    ("case_0/imaging", "case_0/segmentation"),
    ("p1", "labels/p1"),
    ("sub-1_ct", "sub-1_dseg"),
    ("p1", "p1_msk"),
    ("p1", "p1_manual_seg"),
    ("ct_train_1001_image", "ct_train_1001_label"),
    ("images/p1", "labelsTr/p1"),
    ("imagesTr/p1_0000", "masks/p1"),
]


@pytest.mark.parametrize("image, labels", PAIRS)
def test_images_and_labels_are_paired_by_name(tmp_path, image, labels):
    save(HU, tmp_path / "src" / f"{image}.nii.gz", GRID)
    save(LABELS, tmp_path / "src" / f"{labels}.nii.gz", GRID)
    facts = import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO, annotated="all")
    masks = read_challenge(tmp_path / "out").masks
    assert facts["volumes"] == 1 and [(masks == c).sum() for c in (1, 2)] == [24, 16]


@pytest.mark.parametrize("folders", [("CT", "ct"), ("imagesTr", "imagestr")])
def test_folders_that_differ_in_capitals(tmp_path, folders):
    for folder in folders: save(HU, tmp_path / "src" / folder / "p1_0000.nii.gz", GRID)
    if len(list((tmp_path / "src").iterdir())) == 1: pytest.skip("a disk on which these are one folder")
    with pytest.raises(InputError, match=f"both {folders[0]}/ and {folders[1]}/ are in it"):
        import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO)


@pytest.mark.parametrize("names", [["p1", "p2_seg"], ["p1", "p1_seg", "p1_mask"], ["Seg/p1"], ["CT/p1", "seg/p1", "mask/p1"]])
def test_names_that_make_no_pair_are_refused(tmp_path, names):
    for name in names:
        save(LABELS, tmp_path / "src" / f"{name}.nii.gz", GRID)
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO, annotated="all")
    one_line(e)
    assert not (tmp_path / "out").exists()


def test_an_image_of_another_format_is_told(tmp_path):
    save(HU, tmp_path / "src/images/p1.nii.gz", GRID)
    (tmp_path / "src/images/p2.nrrd").write_bytes(b"NRRD0004")
    save(LABELS, tmp_path / "src/labels/p2.nii.gz", GRID)
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO, annotated="all")
    assert "(passed over: 1 NRRD file); convert to NIfTI" in one_line(e)


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
    (tmp_path/"src/dataset.json").write_text(
        json.dumps({"labels": {"background": 0.0, "a": 1.0, "b": 2.0}})
    )
    import_nifti(tmp_path / "src", tmp_path / "out", annotated="all")
    assert read_challenge(tmp_path / "out").classes.names == ("a", "b")


@pytest.mark.parametrize("folder", ["segmentations", "masks", "Labels", "structures", "rois"])
def test_structures_in_a_folder_of_any_usual_name(tmp_path, folder):
    save(HU, tmp_path / "src/p1/scan.nii.gz", GRID)
    save((LABELS == 1).astype(np.uint8)*255, tmp_path / "src/p1" / folder / "liver.nii.gz", GRID)
    import_nifti(tmp_path / "src", tmp_path / "out")
    s = read_challenge(tmp_path / "out")
    assert s.classes.names == ("liver",) and (s.masks == 1).sum() == 24 and s.known.all()


def test_a_label_map_in_the_place_of_a_structure(tmp_path):
    "Read as a mask, two structures would become one."
    save(HU, tmp_path / "src/p1/ct.nii.gz", GRID)
    save(LABELS, tmp_path / "src/p1/segmentations/all.nii.gz", GRID)
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out")
    assert "several labels (1 and 2)" in one_line(e)


@pytest.mark.parametrize("images, "
                         "labels", [("data/images/p1", "data/labels/p1"), ("p1/day1/ct", "p1/day1/seg")])
def test_volumes_one_folder_too_deep(tmp_path, images, labels):
    save(HU, tmp_path / "src" / f"{images}.nii.gz", GRID)
    save(LABELS, tmp_path / "src" / f"{labels}.nii.gz", GRID)
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out", annotated="all")
    assert "2 NIfTI files in it" in one_line(e) and images in str(e.value)


def test_files_of_no_case_are_told(tmp_path):
    for name in ("images/p1", "images/old/p1", "spare/p1/p2/p3"):
        save(HU, tmp_path / "src" / f"{name}.nii.gz", GRID)
    facts = import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert facts["volumes"] == 1 and facts["unused_files"] == [
        "images/old/p1.nii.gz",
        "spare/p1/p2/p3.nii.gz",
    ]


def test_a_mask_of_255_is_told(tmp_path):
    save(HU, tmp_path / "src/p1.nii.gz", GRID)
    save((LABELS > 0).astype(np.uint8)*255, tmp_path / "src/p1_seg.nii.gz", GRID)
    facts = import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO, annotated="all")
    assert "to be ignored" in facts["notes"][0]
