"Folders are seen once, links followed; what is no scan is told with what to do."

import gzip
import os
import shutil

import pytest
from helpers.dicom import flat_series
from helpers.volumes import HU, one_line, save

from ctseg.core.errors import InputError
from ctseg.io.dicom_import import import_dicom
from ctseg.io.nifti_import import import_nifti
from ctseg.io.walk import folders_below
from ctseg.prediction.scans import find_scans


def test_links_are_followed_and_end_in_no_circle(tmp_path):
    for name in ("src", "disk/p1/ct"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "src/link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/p1/up").symlink_to(tmp_path / "src")
    (tmp_path / "src/nowhere").symlink_to("gone")
    found = [str(d.relative_to(tmp_path)) for d in folders_below(tmp_path / "src")]
    assert found == ["src", "src/link", "src/link/p1", "src/link/p1/ct"]


def test_a_linked_series_is_read_and_a_waste_basket_is_not(tmp_path):
    flat_series(tmp_path / "disk/p1/ct")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/link").symlink_to(tmp_path / "disk")
    for hidden in (".trash", "__MACOSX"):
        flat_series(tmp_path / "src" / hidden / "ct")
    assert import_dicom(tmp_path / "src", tmp_path / "out")["volumes"] == 1
    assert len(find_scans([tmp_path / "src"]).scans) == 1


READERS = {
    "import dicom": lambda path, out: import_dicom(path, out),
    "import nifti": lambda path, out: import_nifti(path, out, annotated="all"),
    "segment": lambda path, out: find_scans([path]),
}


@pytest.mark.skipif(os.name != "posix", reason="drives instead of one root")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("place", ["/", "/proc", "/sys/kernel", "/dev", "link"])
def test_a_place_of_the_system_is_not_searched(tmp_path, reader, place):
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(InputError, match="place of the system"): READERS[reader](tmp_path / place, tmp_path / "out")


def test_links_to_the_system_are_not_followed_and_a_long_search_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("ctseg.io.walk.MANY", 3)
    for name in ("a", "b/c"): (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/link").symlink_to("/")
    (tmp_path / "a/more").symlink_to("/proc")
    with pytest.warns(UserWarning, match="still searching"): found = folders_below(tmp_path)
    assert [str(d.relative_to(tmp_path)) for d in found] == [".", "a", "b", "b/c"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "name, remedy",
    [("a.zip", "unpack"), ("a.tar", "unpack"), ("packed", "unpack"), ("notes.txt", "give the folder"), ("nowhere", "no such")],
)
def test_a_path_that_is_no_folder(tmp_path, reader, name, remedy):
    (tmp_path / "a.zip").write_bytes(b"PK\3\4")
    (tmp_path / "a.tar").write_bytes(b"x")
    (tmp_path / "packed").write_bytes(gzip.compress(b"x"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError) as e:
        READERS[reader](tmp_path / name, tmp_path / "out")
    assert remedy in one_line(e) and name in str(e.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_challenge_folder_is_no_folder_of_scans(tmp_path, reader):
    src = tmp_path/"src"
    (src/"test-images").mkdir(parents=True)
    (src/"y_test.csv.gz").write_bytes(b"x")  # no packed scans
    with pytest.raises(InputError) as e: READERS[reader](src, tmp_path/"out")
    assert "a challenge folder of slices" in one_line(e) and "passed over" not in str(e.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "name, kind",
    [("a.zip", "packed file"), ("a.TAR.GZ", "packed file"), ("a.nrrd", "NRRD"), ("a.mha", "MetaImage"), ("a.hdr", ".hdr"), ("a.mgz", "MGH")],
)
def test_what_is_not_read_is_named(tmp_path, reader, name, kind):
    (tmp_path / "src/in").mkdir(parents=True)
    (tmp_path / "src/in" / name).write_bytes(b"x")
    with pytest.raises(InputError) as e:
        READERS[reader](tmp_path / "src", tmp_path / "out")
    assert f"passed over: 1 {kind}" in one_line(e) or f"1 pair of {kind}" in str(e.value)
    save(HU, tmp_path / "src/images/c.nii.gz")
    if reader == "import dicom":
        flat_series(tmp_path / "src/ct")
    result = READERS[reader](tmp_path / "src", tmp_path / "out")
    counts = result["passed_over"] if isinstance(result, dict) else result.passed_over
    assert sum(counts.values()) == 1


def test_what_is_called_dicom_and_is_none_is_counted(tmp_path):
    flat_series(tmp_path / "src")
    (tmp_path / "src/page.dcm").write_text("<html>403</html>")
    (tmp_path / "src/empty.ima").write_bytes(b"")
    (tmp_path / "src/a.dcm").write_bytes(b"PK\3\4" + bytes(200))
    (tmp_path / "src/readme.txt").write_text("x" * 200)
    facts = import_dicom(tmp_path / "src", tmp_path / "out")
    assert facts["passed_over"] == {"unreadable file": 2, "packed file": 1}


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("c.nii.gz", b"<html>403</html>", "a web page"),
        ("c.nii.gz", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("c.nii.gz", b"", "empty"),
        ("c.nii", b"NRRD0004\n", "a NRRD file"),
        ("c.nii", bytes(128) + b"DICM", "a DICOM file"),
    ],
)
def test_what_a_file_is_that_is_no_nifti(tmp_path, name, content, says):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / name).write_bytes(content)
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out")
    assert says in one_line(e)


@pytest.mark.parametrize("right, wrong", [("c.nii", "c.nii.gz"), ("c.nii.gz", "c.nii")])
def test_a_wrong_ending_is_told_with_the_right_one(tmp_path, right, wrong):
    save(HU, tmp_path / "src" / right)
    shutil.move(tmp_path / "src" / right, tmp_path / "src" / wrong)
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out")
    assert one_line(e).endswith(f"); call it {right[1:]}")
