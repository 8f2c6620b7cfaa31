"Folders of NIfTI volumes as people have them, and bad ones told in one line."

import json

import nibabel as nib
import numpy as np
import pytest
from helpers.volumes import GRID, HU, NAME, TWO, leaks, one_line, save, volume

from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io.index import read_index
from ctseg.io.nifti import read_label_map
from ctseg.io.nifti_import import import_nifti


def no_affine(path):
    image = nib.Nifti1Image(HU, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, path)


def singular(path):
    image = nib.Nifti1Image(HU, GRID)
    image.set_sform(np.diag([1, 1, 0, 1.0]), code=1)
    nib.save(image, path)


def cut_off(path):
    save(np.random.default_rng(0).normal(size=(40, 40, 9)).astype(np.float32), path)
    path.write_bytes(path.read_bytes()[:2000])


def colour(path):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), GRID), path)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda p: save(np.zeros((4, 4, 4, 3), np.int16), p), "4D"),
        (lambda p: save(np.zeros((4, 4), np.int16), p), "2D"),
        (no_affine, "has no affine"),
        (singular, "affine"),
        (cut_off, "not a readable NIfTI"),
        (lambda p: p.write_text("hello"), "not a readable NIfTI"),
        (colour, "plain numbers"),
    ],
)
def test_bad_nifti(tmp_path, make, says):
    (tmp_path / "src").mkdir()
    make(tmp_path / "src" / "a.nii.gz")
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out")
    assert says in one_line(e) and "a.nii.gz" in str(e.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "labels, A, says",
    [
        (np.zeros((9, 12, 4), np.uint8), GRID, "its image has"),
        (np.zeros((9, 12, 5), np.uint8), GRID @ np.diag([1, 1, -1, 1]), "affines differ"),
        (np.full((9, 12, 5), 0.5, np.float32), GRID, "whole numbers"),
        (np.full((9, 12, 5), 7, np.uint8), GRID, "there are 2 classes"),
    ],
)
def test_bad_labels(tmp_path, labels, A, says):
    save(HU, tmp_path / "src/images/a.nii.gz")
    save(labels, tmp_path / "src/labels/a.nii.gz", A)
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO, annotated="all")
    assert says in one_line(e)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, -1)])
def test_labels_stored_in_another_order_of_the_same_grid(tmp_path, axes, signs):
    "As programs that turn to RAS or LPS leave them. A mirrored affine alone is another place."
    labels = np.random.default_rng(0).integers(0, 3, HU.shape).astype(np.uint8)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, (old, sign) in enumerate(zip(axes, signs)):
        turn[old, new] = sign
        turn[old, 3] = HU.shape[old] - 1 if sign < 0 else 0
    stored = labels.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    save(stored, tmp_path / "labels.nii.gz", GRID @ turn)
    assert (read_label_map(tmp_path / "labels.nii.gz", HU.shape, GRID) == labels).all()
    if signs == (1, 1, 1): return
    save(labels, tmp_path / "elsewhere.nii.gz", GRID @ np.diag([*signs, 1]))
    with pytest.raises(InputError, match="affines differ"):
        read_label_map(tmp_path / "elsewhere.nii.gz", HU.shape, GRID)


def test_label_maps_and_what_was_examined(tmp_path):
    src, labels = tmp_path / "src", volume(0).labels
    for n in ("a", "b", "c"):
        save(HU, src / f"imagesTr/{n}_0000.nii.gz")
    save(labels, src / "labelsTr/a.nii.gz")
    save(labels * (labels == 1), src / "labelsTr/b.nii.gz")
    json.dump(
        {"labels": {"background": 0, "kidney_left": 1, "kidney_right": 2}}, open(src / "dataset.json", "w")
    )
    with pytest.raises(InputError) as e:
        import_nifti(src, tmp_path / "out")
    assert "annotated='all'" in one_line(e)
    (src / "annotated_labels.json").write_text('{"a": ["kidney_left", "kidney_right"], "b": [1]}')
    import_nifti(src, tmp_path / "out", keep_names=True)
    s = read_challenge(tmp_path / "out")
    assert s.classes == TWO and [s.known[s.groups == g][0].tolist() for g in range(3)] == [
        [True, True],
        [True, False],
        [False, False],
    ]
    assert set(read_index(tmp_path / "out", "train")[0]) == {"a", "b", "c"}
    (src / "annotated_labels.json").write_text(
        '{"a": ["kidney_left"], "b": [1]}'
    )  # but a has pixels of the right one
    with pytest.raises(InputError) as e:
        import_nifti(src, tmp_path / "out2")
    assert "class 2" in one_line(e)
    for how, want in (("all", [True, True]), ("present", [True, False])):
        import_nifti(src, tmp_path / how, annotated=how)
        s = read_challenge(tmp_path / how)
        assert s.known[s.groups == 1][0].tolist() == want


def test_two_cases_of_one_name(tmp_path):
    src = tmp_path / "src"
    save(HU, src / "imagesTr/c1_0000.nii.gz")
    save(HU[:4], src / "imagesTs/c1_0000.nii.gz")
    with pytest.raises(InputError) as e:
        import_nifti(src, tmp_path / "out", classes=TWO, keep_names=True)
    assert "imagesTr" in one_line(e) and "imagesTs" in str(e.value) and not (tmp_path / "out").exists()
    assert import_nifti(src, tmp_path / "out", classes=TWO)["volumes"] == 2


def test_channels_of_one_case(tmp_path):
    src = tmp_path / "src"
    for k in (0, 1):
        save(HU, src / f"imagesTr/c1_{k:04}.nii.gz")
    with pytest.raises(InputError) as e:
        import_nifti(src, tmp_path / "out", classes=TWO)
    assert "channels" in one_line(e) and "c1_0001" in str(e.value)
    (src / "imagesTr").rename(src / "images")  # two numbered scans
    assert import_nifti(src, tmp_path / "out", classes=TWO)["volumes"] == 2


def test_scans_of_one_patient_stay_together(tmp_path):
    src, names = tmp_path / "src", ("a1", "a2", "b", "c")
    for n in names[:2]:
        save(HU, src / f"images/{n}.nii.gz")
    for n in names[2:]:
        save(HU, src / n / "ct.nii.gz")

    def say(table):
        (src / "patients.json").write_text(json.dumps(table))

    say({"a1": NAME, "a2": NAME, "b": 4711, "c": 4712})
    facts = import_nifti(src, tmp_path / "out", classes=TWO)
    groups = read_challenge(tmp_path / "out").groups
    assert (
        facts["patients"] == 3
        and sorted(np.unique(groups, return_counts=True)[1]) == [5, 5, 10]
        and groups.max() == 2
    )  # 4711 is not kept
    assert not leaks(tmp_path / "out")
    for bad, says in (
        ({"a1": "a"}, "whose scan a2"),
        ({n: "p" for n in (*names, "a3")}, "did you mean"),
        (["a"], "object"),
        ({n: None for n in names}, "object"),
    ):
        say(bad)
        with pytest.raises(InputError) as e:
            import_nifti(src, tmp_path / "out2", classes=TWO)
        assert says in one_line(e) and "patients.json" in str(e.value) and not (tmp_path / "out2").exists()


def test_structures_that_are_no_class_are_told(tmp_path):
    mask = (volume(0).labels == 1).astype(np.uint8)
    save(HU, tmp_path / "src/p1/ct.nii.gz")
    save(mask, tmp_path / "src/p1/segmentations/kidney-left.nii.gz")
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert "did you mean kidney_left" in one_line(e) and not (tmp_path / "out").exists()
    save(mask, tmp_path / "src/p1/segmentations/kidney_left.nii.gz")
    facts = import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert facts["ignored_labels"] == ["kidney-left"] and facts["labelled"] == 5


def test_a_test_labelled_in_part_is_told_before_loading(tmp_path):
    src = tmp_path / "src"
    for n in ("t1", "t2"):
        save(HU, src / f"imagesTs/{n}.nii.gz")
    save(volume(0).labels, src / "labelsTs/t1.nii.gz")
    (src / "imagesTs/t1.nii.gz").write_text("never read")
    with pytest.raises(InputError) as e:
        import_nifti(src, tmp_path / "out", classes=TWO, annotated="all")
    assert "imagesTs/t2.nii.gz" in one_line(e) and ".part" not in str(e.value)
    save(HU, src / "imagesTs/t1.nii.gz")
    save(volume(0).labels, src / "labelsTs/t2.nii.gz")
    save(volume(0).labels % 2, src / "labelsTs/t1.nii.gz")
    with pytest.raises(InputError) as e:
        import_nifti(src, tmp_path / "out", classes=TWO, annotated="present")  # known only from the voxels
    assert (
        "imagesTs/t1.nii.gz" in one_line(e)
        and ".part" not in str(e.value)
        and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize("name", ["train", "test", "images", "labels"])
def test_a_case_may_be_called_anything(tmp_path, name):
    for p in (name, "p2"):
        save(HU, tmp_path / f"src/{p}/ct.nii.gz")
        save((volume(0).labels == 1).astype(np.uint8), tmp_path / f"src/{p}/segmentations/kidney_left.nii.gz")
    facts = import_nifti(tmp_path / "src", tmp_path / "out")
    assert facts["volumes"] == 2 and read_challenge(tmp_path / "out").known.all()
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src" / name, tmp_path / "out2")
    assert "is one case itself" in one_line(e)


def test_capital_endings_and_a_fourth_axis_of_one(tmp_path):
    save(HU[..., None], tmp_path / "src/a.nii.gz")
    save(HU, tmp_path / "src/b.nii.gz")
    (tmp_path / "src/b.nii.gz").rename(tmp_path / "src/B.NII.GZ")
    import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO)
    s = read_challenge(tmp_path / "out")
    assert len(s) == 10 and (s.images[:5] == s.images[5:]).all()


def test_a_key_that_cannot_be_written(tmp_path):
    save(HU, tmp_path / "src/a.nii.gz")
    (tmp_path / "file").write_text("")
    for key in (tmp_path / "file" / "key.csv", tmp_path / "src"):
        with pytest.raises(InputError) as e:
            import_nifti(tmp_path / "src", tmp_path / "out", classes=TWO, key=key)
        assert str(key) in one_line(e) and not (tmp_path / "out").exists()


def test_structure_files_three_states(tmp_path):
    for p, names in ("p1", ["kidney_left"]), ("p2", ["kidney_left", "kidney_right"]), ("p3", []):
        save(HU, tmp_path / f"src/{p}/ct.nii.gz")
        for n in names:
            save(
                ((volume(0).labels == 1) & (p == "p1")).astype(np.uint8),
                tmp_path / f"src/{p}/segmentations/{n}.nii.gz",
            )
    import_nifti(tmp_path / "src", tmp_path / "out")
    s = read_challenge(tmp_path / "out")
    known, present = ([a[s.groups == g].any(0).tolist() for g in range(3)] for a in (s.known, s.present))
    assert s.classes == TWO and known == [[True, False], [True, True], [False, False]]
    assert present == [[True, False], [False, False], [False, False]]


def test_labels_that_are_a_list(tmp_path):
    save(HU, tmp_path / "imagesTr/a_0000.nii.gz")
    (tmp_path / "dataset.json").write_text('{"labels": ["background", "liver"]}')
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path, tmp_path / "out")
    assert "labels must be names numbered" in one_line(e)


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "kidney_left": 1, "kidney_right": 2},  # nnU-Net 2
        {"background": 0, "kidney_left": 1, "kidney_right": 2, "ignore": 3},
        {"0": "background", "1": "kidney_left", "2": "kidney_right"},  # nnU-Net 1, Decathlon
        {"2": "kidney_right", "0": "Background", "1": "kidney_left"},
        {"background": "0", "kidney_left": "1", "kidney_right": "2"},
    ],
)
def test_classes_of_a_dataset_json(tmp_path, labels):
    save(HU, tmp_path / "src/imagesTr/a_0000.nii.gz")
    save(volume(0).labels, tmp_path / "src/labelsTr/a.nii.gz")
    (tmp_path / "src/dataset.json").write_text(json.dumps({"labels": labels}))
    import_nifti(tmp_path / "src", tmp_path / "out", annotated="all")
    assert read_challenge(tmp_path / "out").classes == TWO


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "kidney": [1, 2], "tumour": 2},  # regions
        {"0": "background", "2": "kidney"},
        {"background": 0, "kidney": 1.5},
        {"1": 1, "2": 2},
        {"background": 0},
        {},
    ],
)
def test_a_dataset_json_that_numbers_no_classes(tmp_path, labels):
    save(HU, tmp_path / "src/imagesTr/a_0000.nii.gz")
    (tmp_path / "src/dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(InputError) as e:
        import_nifti(tmp_path / "src", tmp_path / "out")
    assert "dataset.json: labels must be names numbered" in one_line(e)
