"""From scans to segmentations: the same voxels as the long way round, whatever is broken beside them, and
no patient."""
import csv
import errno
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest
from helpers.command import ctseg
from helpers.dicom import GRIDS, by_number, drop, edit, shear, write_series
from helpers.fake_runs import fake_run
from helpers.predictors import fixed
from helpers.volumes import HU, NAME, NUMBER, TWO, leaks, one_line, save, volume

from ctseg.cli.segment import print_results
from ctseg.core import json_files
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json, write_json
from ctseg.core.paths import disk_errors
from ctseg.data.challenge import read_challenge
from ctseg.inference.rule import Rule
from ctseg.io.dicom import read_series
from ctseg.io.dicom_import import import_dicom
from ctseg.io.dicom_seg import export_dicom_seg, make_segmentation
from ctseg.io.dicom_seg_read import read_segments
from ctseg.io.nifti import export_nifti
from ctseg.io.nifti_import import import_nifti
from ctseg.io.rtstruct import draw_region, read_regions
from ctseg.io.rtstruct_write import make_rtstruct
from ctseg.io.slicing import Slicing
from ctseg.prediction.predictor import load_predictor
from ctseg.prediction.submission import predict_folder
from ctseg.prediction.volumes import label_volume
from ctseg.segmentation import TABLES, segment


def annotated(slices):
    "The slices as if everything had been examined on them."
    return replace(slices, known=np.ones_like(slices.known))


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """src: four patients, of whom two are broken. run: a run of two classes whose images were cut with a
    window of its own."""
    base = tmp_path_factory.mktemp("clinic")
    for name in ("good", "tilted", "gap", "cut off"):
        write_series(base/"src"/name, *GRIDS["axial"], shape=(20, 18))
    shear(list((base/"src"/"tilted").iterdir()))
    path = by_number((base/"src"/"cut off").iterdir())[2]
    path.write_bytes(path.read_bytes()[:-90])
    drop(list((base/"src"/"gap").iterdir()), 3)
    save(HU, base/"nii"/"p1.nii.gz")
    import_dicom(base/"src"/"good", base/"data", Slicing(window=(500., 3000.)), TWO, test_share=1.)
    test = read_challenge(base/"data", "test")
    run = fake_run(base/"run", annotated(test), fold=-1)
    best = load_predictor(run.folder, "cpu").probabilities(test.images).amax(1)
    # or nothing would be drawn
    write_json({"rule": asdict(Rule(threshold=float(best.quantile(.5))))}, run/"metrics.json")
    spec = read_json(run/"recipe.json")
    (run/"recipe.json").write_text(
        json.dumps(
            spec | {"slicing": {"orientation": "SPL", "window": [500, 3000], "size": None, "spacing": None}}
        )
    )
    return base


def full_at(monkeypatch, name):
    "A disk that is full when the file of this name is put in its place."
    real = os.replace

    def replace(new, path):
        if Path(path).name == name: raise OSError(errno.ENOSPC, "No space left on device")
        return real(new, path)

    monkeypatch.setattr(os, "replace", replace)


def three_scans(base):
    for name in ("a", "b", "c"): save(HU, base/"in"/f"{name}.nii.gz")
    return base/"in"


def test_a_full_disk_ends_the_work_and_what_is_there_is_told(clinic, tmp_path, monkeypatch):
    "The scans after it would be computed in vain."
    scans, opened = three_scans(tmp_path), []
    monkeypatch.setattr("ctseg.segmentation.label_volume", lambda *args: opened.append(1) or label_volume(*args))
    full_at(monkeypatch, "b.nii.gz")
    result = segment(clinic/"run", scans, tmp_path/"out")
    assert [scan.name for scan in result.done] == ["a"] and len(opened) == 2
    assert [problem for _, problem in result.failed] == [f"cannot write {tmp_path/'out'}: the disk is full"]*2
    assert {path.name for path in (tmp_path/"out").iterdir()} == {"a.nii.gz", *TABLES, "report.html"}
    assert {row["scan"] for row in csv.DictReader(open(tmp_path/"out"/"volumes.csv"))} == {"a"}


def test_results_never_lie_without_their_table(clinic, tmp_path, monkeypatch):
    scans, real, tries = three_scans(tmp_path), json_files.write_json, []

    def write_json(value, path):
        if path.name == "volumes.json" and len(value["scans"]) > room:
            tries.append(1)
            with disk_errors(path): raise OSError(errno.ENOSPC, "No space left on device")
        real(value, path)

    monkeypatch.setattr("ctseg.segmentation.write_json", write_json)
    room = 1
    result = segment(clinic/"run", scans, tmp_path/"out")
    assert [scan.name for scan in result.done] == ["a"] and len(result.failed) == len(tries) == 2
    assert {path.name for path in (tmp_path/"out").glob("*.nii.gz")} == {"a.nii.gz"}
    assert {row["scan"] for row in csv.DictReader(open(tmp_path/"out"/"volumes.csv"))} == {"a"}
    room = 0
    with pytest.raises(InputError, match="volumes.json: the disk is full"):
        segment(clinic/"run", scans, tmp_path/"none")
    assert not (tmp_path/"none").exists()


def test_a_page_without_room_is_noted(clinic, tmp_path, monkeypatch, capsys):
    def write_page(page, path):
        with disk_errors(path): raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ctseg.segmentation.write_page", write_page)
    result = segment(clinic/"run", three_scans(tmp_path), tmp_path/"out")
    print_results(result)
    assert len(result.done) == 3 and "report.html: the disk is full" in capsys.readouterr().err


def frames(path, series):
    "The structures of a SEG by name."
    return {s.name: s.mask for s in read_segments(path, series).structures}


def test_the_same_voxels_as_import_predict_export(clinic, tmp_path):
    run = clinic/"run"
    assert (
        predict_folder(load_predictor(run, "cpu"), clinic/"data"/"test-images", tmp_path/"s.csv")[
            "images"
        ]
        == 7
    )
    export_dicom_seg(tmp_path/"s.csv", clinic/"data", clinic/"src"/"good", tmp_path/"long")
    export_nifti(tmp_path/"s.csv", clinic/"data", tmp_path/"long nifti")
    done = segment(
        run,
        clinic/"src"/"good",
        tmp_path/"short",
        ["dicom-seg", "rtstruct", "nifti"],
        device="cpu",
        batch_size=3,
    )
    series, _ = read_series(clinic/"src"/"good")
    long, short = (frames(p, series) for p in (tmp_path/"long"/"v000.dcm", tmp_path/"short"/"v000.seg.dcm"))
    assert long.keys() == short.keys() and long
    for name in long: assert np.array_equal(long[name], short[name])
    a, b = (nib.load(p) for p in (tmp_path/"long nifti"/"v000.nii.gz", tmp_path/"short"/"v000.nii.gz"))
    assert np.array_equal(a.dataobj, b.dataobj) and np.array_equal(a.affine, b.affine) and not done.failed
    for region in read_regions(pydicom.dcmread(tmp_path/"short"/"v000.rtstruct.dcm")):
        assert np.array_equal(draw_region(series, region).mask, short[region.name])


def test_another_engine_draws_the_same(clinic, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    drawn = []
    for engine in ("torch", "openvino"):
        segment(clinic/"run", clinic/"nii"/"p1.nii.gz", tmp_path/engine, device="cpu", engine=engine)
        drawn.append(np.asarray(nib.load(next((tmp_path/engine).glob("*.nii.gz"))).dataobj))
    assert (drawn[0] == drawn[1]).mean() > .999 and drawn[0].any()
    for times in ("first", "again"):  # by itself it takes OpenVINO, and the same voxels each time
        segment(clinic/"run", clinic/"nii"/"p1.nii.gz", tmp_path/times, device="cpu")
        found = np.asarray(nib.load(next((tmp_path/times).glob("*.nii.gz"))).dataobj)
        assert np.array_equal(found, drawn[1])
        assert json.loads((tmp_path/times/"volumes.json").read_text())["engine"] == "openvino"
    assert json.loads((tmp_path/"torch"/"volumes.json").read_text())["engine"] == "torch"
    with pytest.raises(InputError, match="openvino"):  # the nearest name
        segment(clinic/"run", clinic/"nii"/"p1.nii.gz", tmp_path/"no", device="cpu", engine="openvin")
    assert not (tmp_path/"no").exists()


def test_the_command_goes_on_where_a_scan_is_broken(clinic, tmp_path):
    code, out, err = ctseg(
        "segment",
        clinic/"run",
        clinic/"src",
        clinic/"nii",
        "--out",
        tmp_path/"out",
        "--device",
        "cpu",
    )
    assert code == 3 and "segmented: 3 of 5" in out, err
    told = [line for line in err.splitlines() if "not segmented" in line]
    assert (
        len(told) == 2
        and any("cannot be read" in line for line in told)
        and any("missing slice" in line for line in told)
    )
    names = {p.name for p in (tmp_path/"out").iterdir()}
    assert {"v001.seg.dcm", "p1.nii.gz", "volumes.csv", "volumes.json", "report.html"} <= names
    rows = list(csv.DictReader((tmp_path/"out"/"volumes.csv").open()))
    assert len(rows) == 6 and {row["structure"] for row in rows} == set(TWO.names)
    facts = read_json(tmp_path/"out"/"volumes.json")
    assert len(facts["failed"]) == 2 and facts["slicing"]["window"] == [500, 3000]
    assert not leaks(tmp_path/"out")


def test_keep_patient(clinic, tmp_path):
    segment(
        clinic/"run",
        clinic/"src"/"good",
        tmp_path/"out",
        ["dicom-seg", "rtstruct"],
        keep_patient=True,
        device="cpu",
    )
    for path in (tmp_path/"out").glob("*.dcm"):
        ds = pydicom.dcmread(path)
        assert (
            path.name.startswith(NUMBER)
            and ds.PatientName == NAME
            and ds.PatientID == NUMBER
            and ds.SeriesDescription
        )
        assert "PatientIdentityRemoved" not in ds


def test_names_in_any_script_are_kept(tmp_path):
    write_series(tmp_path/"ct", *GRIDS["axial"], SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Zoë")
    series, hu = read_series(tmp_path/"ct")
    labels = (hu > 1000).astype(np.uint8)
    for i, ds in enumerate(
        (make_segmentation(series, labels, TWO, "v", True), make_rtstruct(series, labels, TWO, "v", True))
    ):
        ds.save_as(tmp_path/f"{i}.dcm", enforce_file_format=True)
        assert pydicom.dcmread(tmp_path/f"{i}.dcm").PatientName == "Müller^Zoë"


@pytest.mark.parametrize("grid", GRIDS)
def test_contours_give_every_voxel_back(tmp_path, grid):
    write_series(tmp_path/"ct", *GRIDS[grid])
    series, hu = read_series(tmp_path/"ct")
    labels = np.random.default_rng(0).integers(0, 3, hu.shape, dtype=np.uint8)
    make_rtstruct(series, labels, TWO, "v").save_as(tmp_path/"rt.dcm", enforce_file_format=True)
    regions = {r.name: r for r in read_regions(pydicom.dcmread(tmp_path/"rt.dcm"))}
    for id, name in enumerate(TWO.names, 1):
        assert np.array_equal(draw_region(series, regions[name]).mask, labels == id)


@pytest.mark.parametrize("args, says", [
    (["nowhere", "x.nii.gz"], "no run here"),
    (["RUN"], "is a run"),
    (["RUN", "nowhere"], "no such folder"),
    (["RUN", "NII", "--format", "rtstruct"], "take the format nifti"),
    (["RUN", "NII", "--format", "dicomseg"], "did you mean dicom-seg"),
    (["RUN", "NII", "--window", "random"], "fixed window"),
    (["RUN", "NII", "--window", "40,wide"], "or LEVEL,WIDTH such as 40,400"),
    (["RUN", "NII", "--spacing", "fit"], "needs a size"),
])
def test_mistakes_are_one_line(clinic, tmp_path, args, says):
    there = {"RUN": clinic/"run", "NII": clinic/"nii"}
    code, _, err = ctseg(
        "segment", *[there.get(a, a) for a in args], "--out", tmp_path/"out", "--device", "cpu"
    )
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1 and not (tmp_path/"out").exists()


def test_a_scan_on_which_nothing_is_found_writes_no_seg(clinic, tmp_path):
    nothing = fixed(lambda x: x.repeat(1, 2, 1, 1)*0, TWO)
    done = segment(nothing, clinic/"src"/"good", tmp_path/"out", ["dicom-seg", "nifti"])
    assert (
        done.done[0].files == ["v000.nii.gz"]
        and done.table[0]["ml"] == 0
        and done.table[0]["confidence"] is None
    )
    assert any("window" in note for note in done.notes)


def test_runs_cut_differently_are_refused(clinic, tmp_path):
    other = tmp_path/"other"
    fake_run(other, annotated(read_challenge(clinic/"data", "test")), fold=-1)
    spec = read_json(other/"recipe.json")
    (other/"recipe.json").write_text(
        json.dumps(
            spec | {"slicing": {"orientation": "SPL", "window": [40, 400], "size": None, "spacing": None}}
        )
    )
    with pytest.raises(InputError) as e:
        segment([clinic/"run", other], clinic/"nii", tmp_path/"out", device="cpu")
    assert "window" in one_line(e) and not (tmp_path/"out").exists()
    assert segment([clinic/"run", other], clinic/"nii", tmp_path/"out", device="cpu", window="soft").done


def test_classes_of_an_import_from_a_run(clinic, tmp_path):
    code, _, err = ctseg(
        "import", "nifti", clinic/"nii", tmp_path/"data", "--classes", clinic/"run", "--test-share", 1
    )
    assert code == 0 and read_json(tmp_path/"data"/"class_names.json") == {
        "1": TWO.names[0],
        "2": TWO.names[1],
    }, err


def test_a_run_keeps_how_its_images_were_cut(tmp_path):
    from helpers.toys import small

    from ctseg.recipes.fit import fit
    for i in range(2):
        save(volume(i).labels, tmp_path/"src"/"labels"/f"p{i}.nii.gz"), save(
            volume(i).hu, tmp_path/"src"/"images"/f"p{i}.nii.gz"
        )
    import_nifti(tmp_path/"src", tmp_path/"data", Slicing(window="bone", size=16, spacing="fit"), TWO, "all")
    run = fit(
        tmp_path/"data",
        small("masked", "epochs=1", "fold=-1"),
        tmp_path/"run",
        device="cpu",
        progress=False,
    )
    assert read_json(run/"recipe.json")["slicing"] == {
        "orientation": "SPL",
        "window": [400, 1800],
        "size": 16,
        "spacing": "fit",
    }


def test_a_window_of_numbers(clinic, tmp_path):
    status, _, err = ctseg("segment", clinic/"run", clinic/"nii", "--window", "-600,1500", "--out", tmp_path/"out")
    assert status == 0, err
    assert read_json(tmp_path/"out"/"volumes.json")["slicing"]["window"] == [-600, 1500]


def test_strange_names(clinic, tmp_path):
    raw = os.fsencode(clinic/"nii"/"p1.nii.gz")
    (tmp_path/"src").mkdir()
    for name in (b"p\xff.nii.gz", b"p\n2.nii.gz", b"=p3.nii.gz"):
        shutil.copy(raw, os.path.join(os.fsencode(tmp_path/"src"), name))
    status, out, err = ctseg("segment", clinic/"run", tmp_path/"src", "--out", tmp_path/"out")
    assert status == 0 and "segmented: 3 of 3" in out
    rows = list(csv.DictReader(open(tmp_path/"out"/"volumes.csv", encoding="utf-8")))
    assert len(rows) == 6 and {row["source"] for row in rows if "p3" in row["source"]} == {"'=p3.nii.gz"}


def test_two_patients_in_one_folder_are_told_apart(clinic, tmp_path):
    (tmp_path/"src").mkdir()
    for name in ("a", "b"):
        write_series(tmp_path/name, *GRIDS["axial"], shape=(20, 18), PatientID=name)
        for path in (tmp_path/name).iterdir(): path.rename(tmp_path/"src"/f"{name}{path.name}")
    result = segment(clinic/"run", tmp_path/"src", tmp_path/"out", "nifti")
    sources = [scan.source for scan in result.done]
    assert ["aIM000.dcm" in sources[0], "bIM000.dcm" in sources[1]] == [True, True]


def test_what_is_to_be_known_of_a_scan_is_told(clinic, tmp_path):
    save(HU.clip(-1000) + 1024, tmp_path/"src"/"p1.nii.gz")
    result = segment(clinic/"run", tmp_path/"src", tmp_path/"out")
    assert any("1024 may have been added" in note for note in result.notes)


@pytest.mark.parametrize("tag", ["SOPClassUID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_scans_that_no_result_can_refer_to(clinic, tmp_path, tag):
    write_series(tmp_path/"src", *GRIDS["axial"], shape=(20, 18))
    for path in (tmp_path/"src").iterdir():
        edit(path, **{tag: None})
    status, out, err = ctseg("segment", clinic/"run", tmp_path/"src", "--out", tmp_path/"out")
    assert status == 2 and tag in err and "export it as NIfTI" in err
    assert not (tmp_path/"out").exists()
    assert (
        ctseg("segment", clinic/"run", tmp_path/"src", "--out", tmp_path/"out", "--format", "nifti")[0]
        == 0
    )


def test_what_cannot_be_segmented_leaves_no_folder_and_a_tilde_is_a_name(clinic, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = ctseg("segment", clinic/"run", clinic/"src"/"gap", "--out", "one/two", "--device", "cpu")
    assert out[0] == 2 and not list(tmp_path.iterdir())
    out = ctseg("segment", clinic/"run", clinic/"nii", "--out", "~root/two", "--device", "cpu")
    assert out[0] == 0 and (tmp_path/"~root/two/p1.nii.gz").exists(), out


def test_names_of_scans_and_folders_do_not_move_the_cursor(capsys, tmp_path, monkeypatch):
    odd = "\x1b[2Jx"
    monkeypatch.chdir(tmp_path)
    Path(odd).touch()
    scan = SimpleNamespace(name=odd, source=odd, rows=[], files=[odd])
    result = SimpleNamespace(
        done=[scan], passed_over={odd: 2}, notes=[odd], failed=[(odd, "broken")], out=Path(odd), page=Path(odd))
    print_results(result)
    told = "".join(capsys.readouterr())
    assert "\x1b" not in told and told.count("\\x1b[2Jx") == 8


@pytest.mark.parametrize("scans, options, says", [
    ([], {}, "no scans were given"), ("scans", {"batch_size": 0}, "batch_size = 0"), ("scans", {"pictures": -1}, "pictures = -1"),
])
def test_an_option_that_cannot_be_is_no_fault_of_a_scan(clinic, tmp_path, scans, options, says):
    with pytest.raises(InputError, match=says): segment(clinic/"run", scans, tmp_path/"out", **options)
    assert not (tmp_path/"out").exists()
