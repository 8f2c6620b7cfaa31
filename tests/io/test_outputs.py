"Names from other files cannot lead out of an output folder."

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers.command import ctseg
from helpers.volumes import HU, TWO, one_line, save, volume

from ctseg.core.atomic import check_file_place, check_place, refuse_existing
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.data.store import write_store
from ctseg.data.toys import toy_set
from ctseg.integrations.nnunet import export_nnunet
from ctseg.integrations.onnx import export_onnx
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.imported import imported_slicing
from ctseg.io.index import read_index
from ctseg.io.merge import merge
from ctseg.io.nifti import export_nifti
from ctseg.io.nifti_import import import_nifti
from ctseg.io.outputs import new_folder, output_name
from ctseg.io.png import import_png
from ctseg.io.rle_export import export_rle
from ctseg.io.slicing import Slicing
from ctseg.metrics.volume_files import evaluate_csv_volumes
from ctseg.phantom import make_phantom
from ctseg.report.page import report
from ctseg.report.suggestions import suggest_files
from ctseg.segmentation import segment

OUTSIDE = ["../evil", "/tmp/evil", "..", ".", "a/../../evil", "a\\evil", "c:evil", ".evil", "", " ", "a\nb"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_could_leave_its_folder(name):
    with pytest.raises(InputError) as e:
        output_name(name, "index.json")
    assert "cannot be the name of a file" in one_line(e)


@pytest.mark.parametrize("name", ["v000", "s0001", "p1.2", "Œil gauche", "肝脏", "a..b"])
def test_plain_names(name):
    assert output_name(name, "index.json") == name


@pytest.fixture
def folder(tmp_path):
    save(HU, tmp_path / "src/a.nii.gz")
    import_nifti(tmp_path / "src", tmp_path / "data", classes=TWO, test_share=1.0)
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["../evil", "/evil", ".."])
def test_an_export_stays_in_its_folder(tmp_path, folder, name):
    index = json.loads((folder / "index.json").read_text())
    index["volumes"] = {name: index["volumes"]["v000"]}
    for line in index["images"]["test"].values():
        line["volume"] = name
    (folder / "index.json").write_text(json.dumps(index))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as e:
        export_nifti(read_challenge(folder, "test").masks, folder, tmp_path / "back" / "deep")
    assert "index.json" in one_line(e)
    assert [p for p in sorted(tmp_path.rglob("*")) if "cache" not in p.parts] == [
        p for p in before if "cache" not in p.parts
    ]


def test_an_image_of_a_volume_that_is_not_there(folder):
    index = json.loads((folder / "index.json").read_text())
    index["images"]["test"]["0.png"]["volume"] = "v001"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError) as e:
        read_index(folder)
    assert "not what its checksum says" in one_line(e)
    del index["seal"]  # as an older ctseg wrote it
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError) as e:
        read_index(folder)
    assert "image 0.png is of volume 'v001'" in one_line(e)


def test_an_entry_of_only_what_it_must_have(tmp_path, folder):
    index = json.loads((folder / "index.json").read_text())
    del index["seal"]
    for key in ("kind", "patient", "positions", "digest"): del index["volumes"]["v000"][key]
    (folder / "index.json").write_text(json.dumps(index))
    slices = read_challenge(folder, "test")
    masks = slices.masks + np.uint8(1)
    write_masks(masks, slices.names, folder / "y_test.csv")
    assert export_nifti(masks, folder, tmp_path / "back") == {"v000": (5, 5)}
    assert evaluate_csv_volumes(folder / "y_test.csv", folder / "y_test.csv")["facts"]["per_case"]


def test_what_an_import_cannot_be_told_from(folder):
    shutil.rmtree(folder / "test-images")
    with pytest.raises(InputError, match="test-images"): imported_slicing(folder)
    (folder / "index.json").write_text("{oops")
    with pytest.raises(InputError, match="line 1: not valid JSON"): imported_slicing(folder)
    (folder / "index.json").write_text("{}")
    with pytest.raises(InputError, match="not an index of volumes"): imported_slicing(folder)


def test_names_of_cases_and_of_data_sets(tmp_path, folder):
    with pytest.raises(InputError) as e:
        write_volumes([Case("scan", lambda: volume(0), id="../evil")], tmp_path / "out", TWO, Slicing())
    assert "../evil" in one_line(e) and not (tmp_path / "out").exists()
    write_volumes([Case("scan", lambda: volume(0))], tmp_path / "train", TWO, Slicing())
    with pytest.raises(InputError) as e:
        export_nnunet(tmp_path / "train", tmp_path / "raw", name="x/../../evil")
    assert "cannot be the name of a file" in one_line(e) and not (tmp_path / "raw").exists()
    assert np.unique(read_challenge(tmp_path / "train").groups).tolist() == [0]


def test_an_output_without_a_name_of_its_own_is_refused(tmp_path, monkeypatch):
    "The folder at hand is empty, but it cannot be replaced by another."
    save(HU, tmp_path / "src/a.nii.gz")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", "..", "new/.."):
        with pytest.raises(InputError) as e: import_nifti(tmp_path / "src", out, classes=TWO)
        assert "give one" in one_line(e) and not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("out, says", [
    ("file/a/b", "a part of the path is a file"),
    ("x"*300, "the name is too long"),
    pytest.param("/proc/x", "choose another place", marks=pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no such system")),
])
def test_an_output_that_cannot_be_is_told_as_the_user_knows_it(tmp_path, out, says):
    save(HU, tmp_path / "src/a.nii.gz")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError) as e: import_nifti(tmp_path / "src", tmp_path / out, classes=TWO)
    assert says in one_line(e) and f"cannot write {tmp_path / out}:" in str(e.value) and ".parts" not in str(e.value)


@pytest.fixture
def sealed(tmp_path, monkeypatch):
    "A folder in which nothing can be made, also by an administrator, whom permissions do not stop."
    (tmp_path / "sealed").mkdir()
    made = tempfile.mkdtemp

    def refuse(suffix=None, prefix=None, dir=None):
        if Path(str(dir)).name == "sealed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return made(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    (tmp_path / "link").symlink_to("sealed/new")
    return tmp_path / "sealed"


@pytest.mark.parametrize("call", [
    lambda out: import_png("nowhere", "masks", out),
    lambda out: merge(["nowhere", "there"], out),
    lambda out: export_nifti("nowhere.csv", "folder", out),
    lambda out: make_phantom(out, 1, 1, 1),
    lambda out: segment("nowhere", "scan.nii", out),
    lambda out: export_onnx("nowhere", f"{out}.onnx"),
    lambda out: export_rle("nowhere.csv", f"{out}.csv"),
    lambda out: suggest_files(["nowhere"], "data", f"{out}.csv"),
    lambda out: report("nowhere", out=f"{out}.html"),
    lambda out: write_store(toy_set(), f"{out}.zarr"),
])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(sealed, call):
    "Each input is missing, and that is not what is told."
    with pytest.raises(InputError) as e: call(sealed / "new")
    assert str(e.value).endswith("permission denied") and str(sealed / "new") in one_line(e)
    assert not list(sealed.iterdir())


@pytest.mark.parametrize("words", [
    ("import", "nifti", "nowhere", "OUT"),
    ("import", "dicom", "nowhere", "OUT", "--store"),
    ("import", "openkbp", "nowhere", "OUT"),
    ("import", "totalsegmentator", "nowhere", "OUT"),
    ("import", "nifti", "nowhere", "data", "--key", "OUT"),
    ("evaluate", "truth.csv", "sub.csv", "--json", "OUT"),
    ("demo", "--out", "OUT"),
])
def test_commands_try_the_place_first(sealed, words):
    code, _, err = ctseg(*[str(sealed / "new") if word == "OUT" else word for word in words])
    assert code == 2 and err == f"ctseg: cannot write {sealed / 'new'}: permission denied\n"
    assert not list(sealed.iterdir())


def test_where_a_link_leads_is_tried(sealed):
    for check in (check_place, check_file_place, refuse_existing, new_folder):
        with pytest.raises(InputError, match="link: permission denied"): check(sealed.parent / "link")
    assert not list(sealed.iterdir())


def test_a_trial_leaves_nothing_and_may_follow_another(tmp_path):
    check_place(tmp_path / "a" / "b" / "c.csv")
    assert not list(tmp_path.iterdir())
    (tmp_path / "kept.csv").write_text("mine")
    check_file_place(tmp_path / "kept.csv")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]
    check_file_place(None)
    check_place("/dev/stdout")


def test_where_a_disk_is_mounted_no_folder_is_replaced(tmp_path, monkeypatch):
    "Results may be put into it."
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(InputError, match="a disk is mounted there"): new_folder(tmp_path / "disk")
    assert new_folder(tmp_path / "disk", filled=True) == tmp_path / "disk"


def test_the_longest_name_that_a_disk_takes(tmp_path):
    save(HU, tmp_path / "src/a.nii.gz")
    import_nifti(tmp_path / "src", tmp_path / ("x"*250), classes=TWO)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src", "x"*250]


def test_a_link_to_a_folder_to_come_is_followed(tmp_path):
    save(HU, tmp_path / "src/a.nii.gz")
    (tmp_path / "link").symlink_to("target")
    import_nifti(tmp_path / "src", tmp_path / "link", classes=TWO)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target" / "class_names.json").exists()
