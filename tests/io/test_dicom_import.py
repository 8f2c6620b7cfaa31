"DICOM folders become challenge folders, and predictions find their way back; labels by their names."

import json
import shutil
import sys
import warnings

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from helpers.dicom import GRIDS, box, flat_series, planes, write_rt, write_series
from helpers.volumes import DAY, NAME, TWO, leaks, one_line, put_back

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.io.dicom import read_series
from ctseg.io.dicom_import import import_dicom
from ctseg.io.dicom_seg import export_dicom_seg
from ctseg.io.geometry import as_slices
from ctseg.io.index import read_index
from ctseg.io.nifti import export_nifti
from ctseg.io.nifti_import import import_nifti
from ctseg.io.slicing import Slicing, to_8bit


@pytest.mark.parametrize("grid", GRIDS)
def test_dicom_round_trip(tmp_path, grid):
    X, Y, pos = GRIDS[grid]
    hu = write_series(tmp_path / "src" / f"{NAME}-{DAY}", X, Y, pos)
    s, voxels = read_series(tmp_path / "src" / f"{NAME}-{DAY}")
    assert (voxels == hu).all() and (s.positions is not None) == ("uneven" in grid)
    ras = np.diag([-1, -1, 1])
    for i, j, k in [
        (0, 0, 0),
        (7, 9, len(pos) - 1),
        (3, 4, len(pos) // 2),
    ]:  # where DICOM says, is where the affine says
        want = ras @ (pos[k] + i * 0.75 * X + j * 1.5 * Y)
        got = (s.affine[:3, :2] @ [i, j]) + (
            s.positions[k] if s.positions is not None else s.affine[:3, 3] + k * s.affine[:3, 2]
        )
        assert np.abs(want - got).max() < 1e-4
    how = Slicing(orientation="RSP" if grid == "sagittal" else "SPL")
    import_dicom(tmp_path / "src", tmp_path / "out", how, TWO, test_share=1.0)
    test = read_challenge(tmp_path / "out", "test")
    truth = np.random.default_rng(9).integers(0, 3, hu.shape, dtype=np.uint8)
    volumes, lines = read_index(tmp_path / "out")
    masks = np.zeros_like(test.masks)
    for i, line in enumerate(lines.values()):
        (y, x), part = (
            line["corner"],
            as_slices(truth, np.array(volumes["v000"]["affine"]), how.orientation)[line["slice"]],
        )
        shown = to_8bit(
            as_slices(hu, np.array(volumes["v000"]["affine"]), how.orientation)[line["slice"]],
            *line["window"],
        )
        assert (test.images[i, y : y + part.shape[0], x : x + part.shape[1]] == shown).all()
        masks[i, y : y + part.shape[0], x : x + part.shape[1]] = part
    write_masks(masks, test.names, tmp_path / "sub.csv")
    export_nifti(tmp_path / "sub.csv", tmp_path / "out", tmp_path / "nii")
    image = nib.load(tmp_path / "nii/v000.nii.gz")
    assert (np.asarray(image.dataobj) == truth).all() and np.abs(image.affine - s.affine).max() < 1e-3
    if s.positions is not None:
        assert np.allclose(json.load(open(tmp_path / "nii/v000.json"))["positions"], s.positions)
    assert export_dicom_seg(tmp_path / "sub.csv", tmp_path / "out", tmp_path / "src", tmp_path / "seg") == {
        "v000": 2
    }
    seg = highdicom.seg.segread(tmp_path / "seg/v000.dcm")
    uids = [h.SOPInstanceUID for h in s.headers]
    frames = seg.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    assert (frames.T == truth).all()
    assert [d.SegmentLabel for d in seg.SegmentSequence] == list(TWO.names)
    code = seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodeValue, code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == (
        "64033007",
        "Right",
    )
    for made in ("out", "nii", "seg"):
        assert not leaks(tmp_path / made)
    assert len(leaks(tmp_path / "src")) == len(pos)
    shutil.copy(tmp_path / "seg/v000.dcm", tmp_path / "src")  # the SEG is read as labels
    again = import_dicom(tmp_path / "src", tmp_path / "again", how)
    back = put_back(read_challenge(tmp_path / "again"), tmp_path / "again")["v000"]
    assert (back == truth).all() and again["classes"] == 2


@pytest.mark.parametrize(
    "module, call",
    [
        ("nibabel", lambda t: import_nifti(t / "src", t / "out")),
        ("pydicom", lambda t: import_dicom(t / "src", t / "out")),
        ("highdicom", lambda t: export_dicom_seg(np.zeros((1, 4, 4), np.uint8), t, t, t / "out")),
    ],
)
def test_missing_dependency_is_named(tmp_path, monkeypatch, module, call):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.nii").write_text("x")
    (tmp_path / "src/b").write_text("x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as e:
        call(tmp_path)
    assert module in one_line(e) and "pip install 'ctseg[volumes]'" in str(e.value)


def test_what_is_passed_over(tmp_path):
    hu = write_series(tmp_path / "src" / "ct", *planes(4))
    (tmp_path / "src" / "ct" / "notes.txt").write_text("not DICOM")
    for name, tags in (
        ("dose", dict(Modality="RTDOSE")),
        ("scout", dict(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    ):
        write_series(tmp_path / "src" / name, *planes(1, gaps=[]), **tags)
    facts = import_dicom(tmp_path / "src", tmp_path / "out", Slicing(window=(1024, 4096)), TWO)
    assert (
        facts["volumes"] == 1
        and facts["train"] == hu.shape[-1]
        and not read_challenge(tmp_path / "out").known.any()
    )


def test_two_series_of_one_patient_are_one_group(tmp_path):
    for n in ("a", "b"):
        write_series(tmp_path / "src" / n, *planes(3))
    write_series(tmp_path / "src" / "c", *planes(3), PatientID="another")
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert (facts["volumes"], facts["patients"]) == (3, 2) and read_challenge(
        tmp_path / "out"
    ).groups.tolist() == [0] * 6 + [1] * 3


@pytest.mark.parametrize("labels", [("肝脏", "脾脏"), ("Foie è", "Foie é")])
def test_labels_in_any_script_stay_apart(tmp_path, labels):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [(labels[0], [box(2, 2.5, 8.5)]), (labels[1], [box(2, 9.5, 12.5)])])
    import_dicom(tmp_path / "src", tmp_path / "out")
    s = read_challenge(tmp_path / "out")
    assert s.classes.names == tuple(n.lower().replace(" ", "_") for n in labels) and s.present[1].all()
    export_dicom_seg(s.masks, tmp_path / "out", tmp_path / "src", tmp_path / "seg", "train")
    (tmp_path / "src" / "rt.dcm").unlink()
    shutil.copy(tmp_path / "seg" / "v000.dcm", tmp_path / "src")
    import_dicom(tmp_path / "src", tmp_path / "again")
    assert read_challenge(tmp_path / "again").classes == s.classes


def test_two_labels_are_not_merged_silently(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(
        tmp_path / "src",
        [
            ("GTV+", [box(2, 2.5, 8.5)]),
            ("GTV-", [box(2, 9.5, 12.5)]),
            ("PTV 1", [box(4, 2.5, 8.5)]),
            ("ptv_1", [box(6, 2.5, 8.5)]),
        ],
    )

    def read(out, **kw):
        return import_dicom(tmp_path / "src", tmp_path / out, **kw), read_challenge(tmp_path / out)

    for rename in ({}, {"GTV+": "gtv"}):
        with pytest.raises(InputError) as e:
            read("out", rename=rename)
        assert (
            "'GTV+' and 'GTV-'" in one_line(e)
            and "--rename" in str(e.value)
            and not (tmp_path / "out").exists()
        )
    assert read("apart", rename={"gtv+": "hot", "GTV-": "cold"})[1].classes.names == ("cold", "hot", "ptv_1")
    facts, s = read("together", rename={"GTV+": "gtv", "GTV-": "gtv"})
    assert (
        s.classes.names == ("gtv", "ptv_1")
        and (s.masks[1] == 1).sum() == 45
        and facts["ignored_labels"] == []
    )
    facts, s = read("one", classes=ClassMap.from_names(["ptv_1"]))  # what nobody wants cannot be confused
    assert facts["ignored_labels"] == ["GTV+", "GTV-"] and s.present[:, 0].nonzero()[0].tolist() == [2, 3]


def test_a_label_without_a_name(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("+", [box(2, 2.5, 8.5)])])
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out")
    assert "'+'" in one_line(e)
    import_dicom(tmp_path / "src", tmp_path / "out", rename={"+": "plus"})
    assert read_challenge(tmp_path / "out").classes.names == ("plus",)


def test_labels_that_cannot_be_used_are_told(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("Kidney L", [box(2, 2.5, 8.5)]), ("PTV", [box(2, 9.5, 12.5)])])
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert "none of the 2 labels" in one_line(e) and not (tmp_path / "out").exists()
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO, rename={"KIDNEY_L": "kidney_left"})
    assert (
        facts["ignored_labels"] == ["PTV"]
        and facts["labelled"] == 5
        and facts["label_objects_without_series"] == 0
    )
    flat_series(tmp_path / "other")
    shutil.copy(tmp_path / "src" / "rt.dcm", tmp_path / "other")  # the contours of another series
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "other", tmp_path / "out2")
    assert (
        "rt.dcm" in one_line(e)
        and "series that is not in the folder" in str(e.value)
        and not (tmp_path / "out2").exists()
    )
    write_rt(tmp_path / "other", [("PTV", [box(2, 2.5, 8.5)])])
    shutil.copy(tmp_path / "src" / "rt.dcm", tmp_path / "other" / "lost.dcm")
    assert import_dicom(tmp_path / "other", tmp_path / "out2")["label_objects_without_series"] == 1


@pytest.mark.parametrize("table", ['["a"]', '{"PTV": 3}', '{"PTV": ["x"]}', '{"PTV": " "}', "{"])
def test_a_bad_rename(tmp_path, table):
    flat_series(tmp_path / "src")
    (tmp_path / "rename.json").write_text(table)
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out", rename=tmp_path / "rename.json")
    assert "rename.json" in one_line(e)


def test_a_label_object_without_the_number_of_its_series(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("a", [box(2, 2.5, 8.5)])])
    ds = pydicom.dcmread(tmp_path / "src" / "rt.dcm")
    del (
        ds.ReferencedFrameOfReferenceSequence[0]
        .RTReferencedStudySequence[0]
        .RTReferencedSeriesSequence[0]
        .SeriesInstanceUID
    )
    ds.save_as(tmp_path / "src" / "rt.dcm")
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out")
    assert "rt.dcm" in one_line(e)


def test_a_structure_that_is_called_after_the_patient_is_told(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [(f"GTV {NAME.split('^')[0]}", [box(2.0, 3, 9)]), ("liver", [box(2.0, 3, 9)])])
    with pytest.warns(UserWarning, match="1 of the classes .*--rename") as told:
        import_dicom(tmp_path / "src", tmp_path / "out")
    assert not any(NAME.split("^")[0].lower() in str(each.message).lower() for each in told)
    table = {f"GTV {NAME.split('^')[0]}": "gtv"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* of the classes")
        import_dicom(tmp_path / "src", tmp_path / "renamed", rename=table)
    assert not leaks(tmp_path / "renamed")
