"Folders of label maps: right numbers in mm, unknown unscored, and one line for what does not fit."
import numpy as np
import pytest
from helpers.command import ctseg
from helpers.volumes import GRID, TWO, one_line, save, volume

from ctseg.core.errors import InputError
from ctseg.core.json_files import write_json
from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.io.nifti import export_nifti
from ctseg.io.nifti_import import import_nifti
from ctseg.io.slicing import Slicing
from ctseg.metrics.volume_files import MEASURES, evaluate_csv_volumes, evaluate_volumes

FLAT = np.diag([1., 2, 3, 1])


def cube(at, value=1):
    "A cube of 8 voxels a side, uint8 [20,20,20]."
    out = np.zeros((20, 20, 20), np.uint8)
    i, j, k = at
    out[i:i + 8, j:j + 8, k:k + 8] = value
    return out


def pair(base, truth, pred, name="a.nii.gz", affine=FLAT):
    save(truth, base/"truth"/name, affine)
    save(pred, base/"pred"/name, affine)
    return base/"truth", base/"pred"


def test_numbers_by_hand(tmp_path):
    "Two voxels of 1 mm, 2 mm, 3 mm along each axis."
    for axis, mm in enumerate((1, 2, 3)):
        moved = [4, 4, 4]
        moved[axis] += 2
        facts = evaluate_volumes(*pair(tmp_path/str(axis), cube((4, 4, 4)), cube(moved)), tolerance=2*mm)[
            "facts"
        ]
        assert (
            facts["dice"] == pytest.approx(.75)
            and facts["hd95"] == pytest.approx(2*mm, abs=.01)
            and facts["surface_dice"] == 1
        )
        assert facts["ml_difference"] == pytest.approx(0, abs=1e-9)
        tighter = evaluate_volumes(
            tmp_path/str(axis)/"truth", tmp_path/str(axis)/"pred", tolerance=mm
        )["facts"]
        assert tighter["surface_dice"] < .9


def test_missed_invented_and_unknown(tmp_path):
    truth, pred = pair(tmp_path, cube((2, 2, 2)), cube((2, 2, 2), 2))
    TWO.to_json(truth/"class_names.json")
    facts = evaluate_volumes(truth, pred)["facts"]
    assert (facts["missed"], facts["invented"], facts["dice"], facts["hd95"]) == (1, 1, 0, None)
    write_json({"a": ["kidney_left"]}, truth/"annotated_labels.json")
    facts = evaluate_volumes(truth, pred)["facts"]
    assert (facts["missed"], facts["invented"]) == (1, 0)
    assert [row["cases"] for row in facts["per_class"]] == [1, 0] and facts["per_class"][1]["dice"] is None
    assert evaluate_volumes(truth, pred, annotated="present")["facts"]["invented"] == 0


def test_voxels_nobody_looked_at_count_for_neither(tmp_path):
    truth = cube((2, 2, 2))
    truth[10:] = 255
    pred = cube((2, 2, 2))
    pred[10:] = 1
    assert evaluate_volumes(*pair(tmp_path, truth, pred))["facts"]["dice"] == 1


def test_an_interval_over_patients(tmp_path):
    for i in range(6): folders = pair(tmp_path, cube((2, 2, 2)), cube((2 + i//2, 2, 2)), f"{i}.nii.gz")
    wide = evaluate_volumes(*folders)["facts"]
    write_json({str(i): i//2 for i in range(6)}, tmp_path/"truth"/"patients.json")
    by_patient = evaluate_volumes(*folders)["facts"]
    assert (wide["patients"], by_patient["patients"]) == (6, 3) and wide["dice"] == by_patient["dice"]
    assert np.ptp(by_patient["dice_interval"]) >= np.ptp(wide["dice_interval"]) > 0


@pytest.mark.parametrize("spoil, says", [
    (lambda b: (b/"pred"/"a.nii.gz").unlink(), "no prediction for a.nii.gz"),
    (lambda b: save(cube((2, 2, 2))[:-1], b/"pred"/"a.nii.gz", FLAT), "its image has 20x20x20"),
    (lambda b: save(cube((2, 2, 2)), b/"pred"/"a.nii.gz", np.diag([-1., 2, 3, 1])), "affines differ"),
    (lambda b: save(cube((2, 2, 2), 7), b/"pred"/"a.nii.gz", FLAT), "a label 7"),
    (lambda b: save(cube((2, 2, 2))/2, b/"pred"/"a.nii.gz", FLAT), "not a label map"),
    (lambda b: write_json({"1": "spleen", "2": "liver"}, b/"pred"/"class_names.json"), "other labels"),
    (lambda b: write_json({"b": []}, b/"truth"/"annotated_labels.json"), "does not say what was examined on a"),
    (lambda b: write_json({"b": 1}, b/"truth"/"patients.json"), "whose scan a is"),
    (lambda b: write_json({"positions": [[0, 0, 0]]}, b/"pred"/"a.json"), "unevenly spaced"),
    (lambda b: [p.unlink() for p in (b/"truth").glob("*.gz")], "no NIfTI label maps"),
])
def test_what_does_not_fit(tmp_path, spoil, says):
    truth, _ = pair(tmp_path, cube((2, 2, 2)), cube((2, 2, 2)))
    TWO.to_json(truth/"class_names.json")
    spoil(tmp_path)
    with pytest.raises(InputError) as e: evaluate_volumes(truth, tmp_path/"pred")
    assert says in one_line(e)


def test_a_sheared_grid_has_no_distances(tmp_path):
    sheared = FLAT.copy()
    sheared[1, 2] = 1
    with pytest.raises(InputError, match="right angles"):
        evaluate_volumes(*pair(tmp_path, cube((2, 2, 2)), cube((2, 2, 2)), affine=sheared))


@pytest.mark.parametrize("write", [
    lambda d: write_json({"labels": {"background": 0, "left one": 1, "right one": 2}}, d/"dataset.json"),
    lambda d: write_json({"labels": {"0": "background", "1": "left one", "2": "right one"}}, d.parent/"dataset.json"),
    lambda d: (d/"labels.csv").write_text("id,name\n1,left one\n2,right one\n"),
    lambda d: (d/"dseg.tsv").write_text("index\tname\n0\tbackground\n2\tright one\n1\tleft one\n"),
])
def test_names_from_whatever_says_them(tmp_path, write):
    truth, pred = pair(tmp_path, cube((2, 2, 2)), cube((2, 2, 2)))
    write(truth)
    assert list(evaluate_volumes(truth, pred)["table"].index) == ["left one", "right one"]


def test_csv_and_nifti_agree(tmp_path):
    for i in range(3):
        save(volume(i).hu, tmp_path/"src"/"imagesTs"/f"p{i}.nii.gz", GRID)
        save(volume(i).labels, tmp_path/"src"/"labelsTs"/f"p{i}.nii.gz", GRID)
    import_nifti(tmp_path/"src", tmp_path/"data", Slicing(), TWO, "all")
    test = read_challenge(tmp_path/"data", "test")
    masks = np.where(np.random.default_rng(0).random(test.masks.shape) < .8, test.masks, 0).astype(np.uint8)
    write_masks(masks, test.names, tmp_path/"s.csv")
    export_nifti(masks, tmp_path/"data", tmp_path/"pred")
    export_nifti(test.masks, tmp_path/"data", tmp_path/"truth")
    a = evaluate_csv_volumes(tmp_path/"data"/"y_test.csv", tmp_path/"s.csv")["facts"]
    b = evaluate_volumes(tmp_path/"truth", tmp_path/"pred")["facts"]
    assert [a[m] for m in MEASURES] == pytest.approx([b[m] for m in MEASURES], rel=1e-5) and 0 < a["dice"] < 1
    code, out, err = ctseg("evaluate", tmp_path/"data"/"y_test.csv", tmp_path/"s.csv", "--mm")
    assert code == 0 and f"dice: {a['dice']:.4f}" in out, err
    code, out, err = ctseg(
        "evaluate", tmp_path/"truth", tmp_path/"pred", "--tolerance", "1", "--json", tmp_path/"all.json"
    )
    assert (
        code == 0 and "tolerance_mm: 1.0000" in out and "hd95" in out and (tmp_path/"all.json").exists()
    ), err


def test_paths_of_two_kinds(tmp_path):
    truth, pred = pair(tmp_path, cube((2, 2, 2)), cube((2, 2, 2)))
    code, _, err = ctseg("evaluate", truth, tmp_path/"s.csv")
    assert code == 2 and "expected a folder" in err


def test_predictions_without_a_truth_are_told(tmp_path):
    truth, pred = pair(tmp_path, cube((2, 2, 2)), cube((2, 2, 2)))
    save(cube((3, 3, 3)), pred/"b.nii.gz", FLAT)
    assert evaluate_volumes(truth, pred)["facts"]["without_truth"] == ["b"]
    (pred/"b.nii.gz").unlink()
    assert "without_truth" not in evaluate_volumes(truth, pred)["facts"]


def test_single_files_in_the_place_of_folders(tmp_path):
    pair(tmp_path, cube((2, 2, 2)), cube((2, 2, 2)))
    status, out, err = ctseg("evaluate", tmp_path/"truth/a.nii.gz", tmp_path/"pred/a.nii.gz")
    assert status == 2 and "give the folders" in err


@pytest.mark.parametrize("tolerance", [-1., np.nan, np.inf])
def test_a_tolerance_that_is_no_distance(tmp_path, tolerance):
    with pytest.raises(InputError, match="tolerance"):
        evaluate_volumes(*pair(tmp_path, cube((2, 2, 2)), cube((2, 2, 2))), tolerance=tolerance)


def test_a_class_unknown_on_a_slice_is_not_scored_in_mm(tmp_path):
    save(volume(0).hu, tmp_path/"src"/"imagesTs"/"p0.nii.gz", GRID)
    save(volume(0).labels, tmp_path/"src"/"labelsTs"/"p0.nii.gz", GRID)
    import_nifti(tmp_path/"src", tmp_path/"data", Slicing(), TWO, "all")
    truth = tmp_path/"data"/"y_test.csv"
    assert len(evaluate_csv_volumes(truth, truth)["facts"]["per_case"]) == 2
    slices = len(read_challenge(tmp_path/"data", "test"))
    write_json([[2]] + [[1, 2]]*(slices - 1), tmp_path/"data"/"annotated_labels_test.json")
    rows = evaluate_csv_volumes(truth, truth)["facts"]["per_case"]
    assert [row["structure"] for row in rows] == [TWO.names[1]]
