"What lies below a path: scans of any kind, found without keeping them, one broken among many told."

import numpy as np
import pytest
from helpers.dicom import GRIDS, by_number, planes, write_series
from helpers.volumes import HU, SECRETS, one_line, save

from ctseg.core.errors import InputError
from ctseg.io import dicom_heap
from ctseg.prediction.scans import find_scans


def names(found): return [scan.name for scan in found.scans]


def test_a_flat_export_of_several_series(tmp_path):
    a = write_series(tmp_path / "a", *GRIDS["axial"])
    b = write_series(tmp_path / "b", *planes(5), seed=3)
    (tmp_path / "flat").mkdir()
    for folder in "ab":
        for path in (tmp_path / folder).iterdir():
            path.rename(tmp_path / "flat" / f"{folder}{path.name}")
    found = find_scans([tmp_path / "flat"])
    assert names(found) == ["v000", "v001"]
    voxels = [scan.open().volume.hu for scan in found.scans]
    assert np.array_equal(voxels[0], a) and np.array_equal(voxels[1], b)


def test_nifti_keeps_its_names_and_labels_are_no_scans(tmp_path):
    for name in (
        "p1.nii.gz",
        "p1_seg.nii.gz",
        "segmentation-3.nii",
        "p2_0000.nii.gz",
        "p3/ct.nii.gz",
        "p3/liver.nii.gz",
        "p3/segmentations/liver.nii.gz",
        "labelsTr/p1.nii.gz",
        ".hidden/p9.nii.gz",
    ):
        save(HU, tmp_path / name)
    found = find_scans([tmp_path])
    assert names(found) == ["p1", "p2", "p3"]
    assert found.passed_over == {"label map": 4, "NIfTI file beside ct.nii.gz": 1}


def test_names_are_distinct_and_stay_in_their_folder(tmp_path):
    for name in ("a/ct.nii.gz", "b/a/ct.nii.gz", "c/x y.nii.gz"):
        save(HU, tmp_path / name)
    got = names(find_scans([tmp_path]))
    assert len(set(got)) == 3 and not any(set(name) & set("/ ") for name in got)


def test_files_of_one_name_are_told_apart(tmp_path):
    for name in ("a/x/v.nii.gz", "b/x/v.nii.gz", "c/w.nii.gz"): save(HU, tmp_path / name)
    found = find_scans([tmp_path / "a", tmp_path / "b/x/v.nii.gz", tmp_path / "c"])
    assert [scan.source for scan in found.scans] == ["a/x/v.nii.gz", "b/x/v.nii.gz", "w.nii.gz"]


def test_a_broken_folder_does_not_end_the_rest(tmp_path):
    write_series(tmp_path / "good", *GRIDS["axial"])
    write_series(tmp_path / "bad", *GRIDS["axial"])
    path = next((tmp_path / "bad").iterdir())
    path.write_bytes(path.read_bytes()[:150])
    found = find_scans([tmp_path])
    assert names(found) == ["v000"] and found.broken
    assert all(problem.startswith("bad/") for _, problem in found.broken)


def test_sources_do_not_name_the_patient_unless_asked(tmp_path):
    write_series(tmp_path / "Planted Patience" / "19370401", *planes(3))
    shown = [f"{scan.name} {scan.source}" for scan in find_scans([tmp_path]).scans]
    assert not any(secret.lower() in text.lower() for text in shown for secret in SECRETS)
    named = find_scans([tmp_path], named=True).scans[0]
    assert named.name == "QX-4711" and "Planted" in named.source


@pytest.mark.parametrize("path", ["nowhere", "empty", "text.txt"])
def test_a_path_without_a_scan(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(InputError) as e:
        find_scans([tmp_path / path])
    assert path in one_line(e)


def test_a_damaged_file_and_the_gap_it_leaves_are_one_fault(tmp_path):
    write_series(tmp_path/"src"/"good", *planes(6))
    write_series(tmp_path/"src"/"bad", *planes(6))
    path = by_number((tmp_path/"src"/"bad").iterdir())[2]
    path.write_bytes(path.read_bytes()[:300])
    found = find_scans([tmp_path/"src"])
    assert [scan.source for scan in found.scans] == ["good"] and len(found.broken) == 1
    assert path.name in found.broken[0][1]


@pytest.mark.parametrize("what", ["is_dicom", "visible_files"])
def test_what_may_not_be_read_ends_nothing(tmp_path, monkeypatch, what):
    """A file, or a folder, of one patient; permissions mean nothing to an administrator, so they are
    pretended."""
    write_series(tmp_path/"src"/"good", *planes(6))
    write_series(tmp_path/"src"/"locked", *planes(6))
    real = getattr(dicom_heap, what)

    def refusing(path):
        if path.name == "locked" or path == tmp_path/"src"/"locked"/"IM003.dcm":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(dicom_heap, what, refusing)
    found = find_scans([tmp_path/"src"])
    assert [scan.source for scan in found.scans] == ["good"]
    assert len(found.broken) == 1 and "cannot be read (Permission denied)" in found.broken[0][1]


def test_a_scan_is_taken_once(tmp_path):
    write_series(tmp_path/"src"/"a", *planes(4))
    (tmp_path/"link").symlink_to(tmp_path/"src")
    for paths, says in (
        (["src", "link"], "link: is given twice"),
        (["src/a", "src"], "a: lies in .*src, which is given too"),
        (["link", "src/a"], "lies in .*link"),
    ):
        with pytest.raises(InputError, match=says): find_scans([tmp_path/path for path in paths])
