"A label map in the place of a scan is refused, other scales are told; by import and segment alike."

import nibabel as nib
import numpy as np
import pytest
from helpers.dicom import planes, write_series
from helpers.volumes import GRID, TWO, one_line, save

from ctseg.core.errors import InputError
from ctseg.io.dicom_import import import_dicom
from ctseg.io.nifti import read_nifti, read_scan
from ctseg.io.nifti_import import import_nifti
from ctseg.io.scale import looks_like_labels, scale_notes
from ctseg.prediction.scans import find_scans

SHAPE = (16, 14, 6)
NOISE = np.random.default_rng(0).normal(0, 60, SHAPE).astype(np.float32)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[4:9, 3:8, 1:4], LABELS[10:14, 3:8, 2:5] = 1, 2


@pytest.mark.parametrize("shift, slope", [(-1024, 1), (-2048, 1), (-1024, 0.1), (1024, 1)])
def test_a_wrong_slope_or_intercept_is_told(shift, slope):
    body = np.where(LABELS > 0, NOISE + 40, NOISE - 1000).clip(-1024)
    assert scale_notes(body, "scan") == ()
    assert len(scale_notes(body * slope + shift, "scan")) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("name", ["c_by_anna", "reading 2", "c_final"])
def test_a_label_map_under_any_name_is_no_scan(tmp_path, name, dtype):
    image = nib.Nifti1Image(LABELS.astype(dtype), GRID, dtype=dtype)
    (tmp_path / "src").mkdir()
    nib.save(image, tmp_path / "src" / f"{name}.nii.gz")
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out")
    assert "no scan" in one_line(e) and name in str(e.value)
    with pytest.raises(InputError, match="no scan"):
        find_scans([tmp_path / "src"]).scans[0].open()


@pytest.mark.parametrize(
    "values",
    [
        NOISE.round() - 100,
        (NOISE.round() + 128).clip(0, 255),
        NOISE.round().clip(0, 255),
        np.full(SHAPE, -1000.0),
        np.zeros(SHAPE),
        LABELS - 1.0,
        LABELS + 0.25,
    ],
)
def test_what_is_no_label_map(values):
    assert not looks_like_labels(values)


@pytest.mark.parametrize(
    "values, told",
    [(NOISE*4, False), (NOISE*4 + 2000, True), (NOISE/1000, True), (np.full(SHAPE, -1024.0), True), (NOISE.clip(0, 255), True)],
)
def test_other_scales_are_told(values, told):
    assert bool(scale_notes(values, "x")) == told


@pytest.mark.parametrize("kind", ["MGML", "Z_EFF", "ED", " z_eff "])
def test_maps_of_two_energies_are_left_out(tmp_path, kind):
    write_series(tmp_path / "src" / "ct", *planes(4), RescaleType="HU")
    write_series(tmp_path / "src" / "map", *planes(4), RescaleType=kind)
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert facts["volumes"] == 1 and "not in Hounsfield units" in facts["other_planes"][0]
    found = find_scans([tmp_path / "src"])
    assert [scan.source for scan in found.scans] == ["ct"] and "not in Hounsfield" in found.notes[0]


@pytest.mark.parametrize("kind, told", [("US", "not told"), ("hu_mod", "modified"), ("HU", ""), ("", "")])
def test_a_unit_that_is_not_told_is_taken_as_hounsfield_and_said(tmp_path, kind, told):
    write_series(tmp_path / "src" / "ct", *planes(4), RescaleType=kind)
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    notes = find_scans([tmp_path / "src"]).scans[0].open().volume.notes
    assert list(notes) == facts["notes"] and len(notes) == bool(told)
    assert all(told in note and "Hounsfield" in note for note in notes)


@pytest.mark.parametrize("kind, uid", [("PT", ".128"), ("MR", ".4"), ("MR", ".2")])
def test_images_of_another_machine_are_no_ct(tmp_path, kind, uid):
    other = {"Modality": kind, "SOPClassUID": f"1.2.840.10008.5.1.4.1.1{uid}"}  # the last contradicts itself
    write_series(tmp_path / "other", *planes(4), **other)
    for read in (lambda: import_dicom(tmp_path / "other", tmp_path / "out", classes=TWO), lambda: find_scans([tmp_path / "other"])):
        with pytest.raises(InputError, match=f"4 {kind}"): read()
    write_series(tmp_path / "both" / "ct", *planes(4))
    write_series(tmp_path / "both" / "other", *planes(4), **other)
    assert find_scans([tmp_path / "both"]).passed_over == {kind: 4}
    assert import_dicom(tmp_path / "both", tmp_path / "out", classes=TWO)["passed_over"] == {kind: 4}


def test_a_dicom_scale_is_told_by_import_and_segment(tmp_path):
    write_series(tmp_path / "src" / "ct", *planes(4), RescaleIntercept=0)
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    notes = find_scans([tmp_path / "src"]).scans[0].open().volume.notes
    assert list(notes) == facts["notes"] and "1024 may have been added" in notes[0]


def test_a_slope_of_nothing_is_refused(tmp_path):
    write_series(tmp_path / "src" / "ct", *planes(4), RescaleSlope=0)
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert "RescaleSlope is 0" in one_line(e)


@pytest.mark.parametrize("factor", [.001, 1000])
def test_an_affine_in_another_unit_is_refused(tmp_path, factor):
    save(NOISE, tmp_path / "a.nii.gz", np.diag([.8*factor, .8*factor, 5*factor, 1]))
    with pytest.raises(InputError) as e:
        read_nifti(tmp_path / "a.nii.gz")
    assert "another unit" in one_line(e)


def test_two_affines_that_contradict_each_other_are_told(tmp_path):
    image = nib.Nifti1Image(NOISE, GRID)
    image.set_sform(GRID, 1)
    image.set_qform(np.diag([-1, 1, 1, 1]) @ GRID, 1)
    nib.save(image, tmp_path / "a.nii")
    hu, affine, notes = read_scan(tmp_path / "a.nii")
    assert np.allclose(affine, GRID) and any("sform was taken" in note for note in notes)
    image.set_qform(GRID, 1)
    nib.save(image, tmp_path / "b.nii")
    assert read_scan(tmp_path / "b.nii")[2] == ()


@pytest.mark.parametrize("unit, told", [("meter", "metres"), ("micron", "micrometres"), ("mm", ""), ("unknown", "")])
def test_a_unit_that_the_voxels_cannot_have_is_told(tmp_path, unit, told):
    image = nib.Nifti1Image(NOISE, GRID)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "a.nii")
    _, affine, notes = read_scan(tmp_path / "a.nii")
    assert np.allclose(affine, GRID)
    assert (f"lengths in {told}; they were taken as mm" in " ".join(notes)) == bool(told) and len(notes) == bool(told)


def test_a_qform_that_is_no_rotation_is_told(tmp_path):
    image = nib.Nifti1Image(NOISE, GRID)
    image.set_sform(GRID, 1)
    image.header["qform_code"], image.header["quatern_b"], image.header["quatern_c"] = 1, .9, .9
    nib.save(image, tmp_path / "a.nii")
    _, affine, notes = read_scan(tmp_path / "a.nii")
    assert np.allclose(affine, GRID) and "no rotation" in notes[0]


@pytest.mark.parametrize("shape", [(1, 14, 6), (16, 1, 6), (1, 1, 1)])
def test_a_picture_of_another_plane_is_refused(tmp_path, shape):
    save(NOISE[tuple(slice(n) for n in shape)]*9, tmp_path / "src/a.nii.gz", np.eye(4))
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out")
    assert "a.nii.gz" in one_line(e) and "another plane" in str(e.value)
    assert not (tmp_path / "out").exists()
