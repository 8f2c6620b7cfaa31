"Volumes in and out: geometry, NIfTI, DICOM, OpenKBP, TotalSegmentator, nnU-Net; bad input told in one line; no patient in any output."
import json, shutil, sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings, strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1, generate_uid
from skimage.io import imread

from ctseg.anatomy import RAIDIUM54, ClassMap
from ctseg.data import read_challenge, write_masks
from ctseg.datasets import OPENKBP, _KBP_FILES, export_nnunet, import_openkbp, import_totalsegmentator, total_parts, total_version
from ctseg.dicom import export_dicom_seg, import_dicom, read_series, snomed
from ctseg.files import InputError
from ctseg.volumes import (WINDOWS, Case, Slicing, Volume, as_slices, as_volume, combine, export_nifti, import_nifti, read_index, restack,
                           slice_axes, to_8bit, write_volumes)

NAME, DAY, NUMBER = "Planted^Patience", "19370401", "QX-4711"
TWO = ClassMap.from_names(["kidney_left", "kidney_right"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv("CTSEG_CACHE", str(tmp_path/"cache"))


def one_line(error): # an InputError's text is one line and names nobody
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text and len(text) > 20
    for secret in ("Planted", "Patience", DAY, "1937-04-01", NUMBER): assert secret.lower() not in text.lower()
    return text


# geometry

rotations = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(x*x for x in q) > .01)

def affine_from(q, mm=(1, 2, 3)):
    w, x, y, z = np.array(q)/np.linalg.norm(q)
    R = np.array([[1 - 2*(y*y + z*z), 2*(x*y - z*w), 2*(x*z + y*w)], [2*(x*y + z*w), 1 - 2*(x*x + z*z), 2*(y*z - x*w)],
                  [2*(x*z - y*w), 2*(y*z + x*w), 1 - 2*(x*x + y*y)]])
    A = np.eye(4)
    A[:3, :3], A[:3, 3] = R*mm, [5, -7, 11]
    return A

@settings(max_examples=60, deadline=None)
@given(q=rotations, code=st.sampled_from(["SPL", "SLA", "AIL", "RSP", "IAR"]), flip=st.booleans())
def test_slices_and_back(q, code, flip):
    A = affine_from(q)
    if flip: A[:3, 0] *= -1  # a left-handed grid
    a = np.arange(2*3*4).reshape(2, 3, 4)
    stack = as_slices(a, A, code)
    assert (as_volume(stack, A, code) == a).all()
    turn = nib.orientations.ornt_transform(nib.io_orientation(A), nib.orientations.axcodes2ornt(code))
    if len(set(nib.aff2axcodes(A))) == 3 and np.sort(np.abs(A[:3, :3]/np.linalg.norm(A[:3, :3], axis=0)), axis=0)[-1].min() > .75:
        assert (stack == nib.apply_orientation(a, turn)).all()

def test_the_patients_left_is_on_the_right():
    a = np.zeros((4, 5, 6)); a[0, 4, 5] = 1  # RAS: i=0 is the leftmost, j=4 the front, k=5 the top
    assert tuple(np.argwhere(as_slices(a, np.eye(4), "SPL"))[0]) == (5, 0, 3)
    assert tuple(np.argwhere(as_slices(a, np.eye(4), "SLA"))[0]) == (5, 3, 4)

@pytest.mark.parametrize("kw", [dict(orientation="SPP"), dict(orientation="XYZ"), dict(orientation=""), dict(window="sofd"),
                                dict(window=(40, 0)), dict(every=0), dict(size=-1), dict(spacing="fit"), dict(spacing=-1.),
                                dict(spacing="wide", size=4), dict(per_volume=0)])
def test_bad_slicing(kw):
    with pytest.raises(InputError) as e: Slicing(**kw)
    one_line(e)

def test_window(): assert to_8bit(np.array([-160., 240, 40]), *WINDOWS["soft"]).tolist() == [0, 255, 128]

def volume(seed, shape=(9, 12, 5), A=None, known=None, labels=True):
    rng = np.random.default_rng(seed)
    return Volume(rng.normal(0, 300, shape).astype(np.float32), affine_from([1, .1, .2, .05]) if A is None else A,
                  rng.integers(0, 3, shape, dtype=np.uint8) if labels else None, np.ones(2, bool) if known is None else known)

def put_back(s, folder, split="train"):
    volumes, lines = read_index(folder, split)
    out = {}
    for id, entry in volumes.items():
        mine = [i for i, n in enumerate(s.names) if lines[n]["volume"] == id]
        if mine: out[id] = restack(s.masks[mine], entry, [lines[s.names[i]] for i in mine], 255)
    return out

@pytest.mark.parametrize("kw", [dict(), dict(orientation="SLA"), dict(orientation="AIL"), dict(size=20), dict(size=13, window="random")])
def test_round_trip_is_exact(tmp_path, kw):
    vs = [volume(0), volume(1, (6, 4, 7), np.diag([-1, 1, -2., 1])), volume(2, (3, 11, 6), affine_from([.3, .9, 0, .1]))]
    write_volumes([Case(f"c{i}", lambda v=v: v) for i, v in enumerate(vs)], tmp_path/"out", TWO, Slicing(**kw))
    back = put_back(read_challenge(tmp_path/"out"), tmp_path/"out")
    for v, b in zip(vs, back.values()): assert (b == v.labels).all()

def test_crop_and_left_out_slices_are_missing_not_background(tmp_path):
    v = volume(0, (16, 16, 6), np.eye(4))
    write_volumes([Case("c", lambda: v)], tmp_path/"out", TWO, Slicing(size=8, every=2))
    back = put_back(read_challenge(tmp_path/"out"), tmp_path/"out")["v000"]
    seen = back < 255
    assert (back[seen] == v.labels[seen]).all() and seen.sum() == 3*8*8 and not seen[:, :, 1::2].any()

def test_overlap_the_smaller_one_wins():
    big, small = np.ones((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    small[0, 0] = True
    labels, overlap, drawn = combine((4, 4, 4), [(1, small), (2, big)])
    assert (labels[0, 0] == 1).all() and overlap == 4 and (labels == 2).sum() == 60
    assert (combine((4, 4, 4), [(1, small), (2, big)], by_size=False)[0] == 2).all()

def test_test_patients_are_whole_and_fully_known(tmp_path):
    part = np.array([True, False])
    ks = [np.ones(2, bool)]*4 + [part]*4
    cases = [Case(f"c{i}", lambda k=k: volume(0, known=k, labels=k.all()), f"p{i//2}", k) for i, k in enumerate(ks)]
    write_volumes(cases, tmp_path/"out", TWO, Slicing(), test_share=.25)
    s, t = read_challenge(tmp_path/"out"), read_challenge(tmp_path/"out", "test")
    assert t.known.all() and not set(t.groups) & set(s.groups) and len(t) == 2*len(as_slices(volume(0).hu, volume(0).affine))
    with pytest.raises(InputError) as e: write_volumes(cases, tmp_path/"out2", TWO, Slicing(), test_share=.9)
    assert "only 2 of 4" in one_line(e) and not (tmp_path/"out2").exists()

def test_nothing_is_overwritten(tmp_path):
    (tmp_path/"out").mkdir(); (tmp_path/"out"/"mine.txt").write_text("x")
    with pytest.raises(InputError) as e: write_volumes([Case("c", lambda: volume(0))], tmp_path/"out", TWO, Slicing())
    assert "not empty" in one_line(e)

def test_key_stays_outside(tmp_path):
    case = lambda: [Case("Planted^Patience/1", lambda: volume(0))]
    with pytest.raises(InputError): write_volumes(case(), tmp_path/"out", TWO, Slicing(), key=tmp_path/"out"/"key.csv")
    write_volumes(case(), tmp_path/"out", TWO, Slicing(), key=tmp_path/"key.csv")
    assert "v000,Planted^Patience/1" in (tmp_path/"key.csv").read_text() and not leaks(tmp_path/"out")


# NIfTI

HU, GRID = volume(0).hu, volume(0).affine
def save(a, path, A=GRID):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(a, A), path)

def no_affine(path):
    image = nib.Nifti1Image(HU, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, path)

def singular(path):
    image = nib.Nifti1Image(HU, GRID)
    image.set_sform(np.diag([1, 1, 0, 1.]), code=1)
    nib.save(image, path)

def cut_off(path):
    save(np.random.default_rng(0).normal(size=(40, 40, 9)).astype(np.float32), path)
    path.write_bytes(path.read_bytes()[:2000])
def colour(path): nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), GRID), path)

@pytest.mark.parametrize("make, says", [
    (lambda p: save(np.zeros((4, 4, 4, 3), np.int16), p), "4D"),
    (lambda p: save(np.zeros((4, 4), np.int16), p), "2D"),
    (no_affine, "has no affine"),
    (singular, "affine"),
    (cut_off, "not a readable NIfTI"), (lambda p: p.write_text("hello"), "not a readable NIfTI"), (colour, "plain numbers")])
def test_bad_nifti(tmp_path, make, says):
    (tmp_path/"src").mkdir()
    make(tmp_path/"src"/"a.nii.gz")
    with pytest.raises(InputError) as e: import_nifti(tmp_path/"src", tmp_path/"out")
    assert says in one_line(e) and "a.nii.gz" in str(e.value) and not (tmp_path/"out").exists()

@pytest.mark.parametrize("labels, A, says", [
    (np.zeros((9, 12, 4), np.uint8), GRID, "its image has"),
    (np.zeros((9, 12, 5), np.uint8), GRID @ np.diag([1, 1, -1, 1]), "affines differ"),
    (np.full((9, 12, 5), .5, np.float32), GRID, "whole numbers"), (np.full((9, 12, 5), 7, np.uint8), GRID, "there are 2 classes")])
def test_bad_labels(tmp_path, labels, A, says):
    save(HU, tmp_path/"src/images/a.nii.gz"); save(labels, tmp_path/"src/labels/a.nii.gz", A)
    with pytest.raises(InputError) as e: import_nifti(tmp_path/"src", tmp_path/"out", classes=TWO, annotated="all")
    assert says in one_line(e)

def test_label_maps_and_what_was_examined(tmp_path):
    src, labels = tmp_path/"src", volume(0).labels
    for n in ("a", "b", "c"): save(HU, src/f"imagesTr/{n}_0000.nii.gz")
    save(labels, src/"labelsTr/a.nii.gz"); save(labels*(labels == 1), src/"labelsTr/b.nii.gz")
    json.dump({"labels": {"background": 0, "kidney_left": 1, "kidney_right": 2}}, open(src/"dataset.json", "w"))
    with pytest.raises(InputError) as e: import_nifti(src, tmp_path/"out")
    assert "annotated='all'" in one_line(e)
    (src/"annotated_labels.json").write_text('{"a": ["kidney_left", "kidney_right"], "b": [1]}')
    import_nifti(src, tmp_path/"out", keep_names=True)
    s = read_challenge(tmp_path/"out")
    assert s.classes == TWO and [s.known[s.groups == g][0].tolist() for g in range(3)] == [[True, True], [True, False], [False, False]]
    assert set(read_index(tmp_path/"out", "train")[0]) == {"a", "b", "c"}
    (src/"annotated_labels.json").write_text('{"a": ["kidney_left"], "b": [1]}')  # but a has pixels of the right one
    with pytest.raises(InputError) as e: import_nifti(src, tmp_path/"out2")
    assert "class 2" in one_line(e)
    for how, want in (("all", [True, True]), ("present", [True, False])):
        import_nifti(src, tmp_path/how, annotated=how)
        s = read_challenge(tmp_path/how)
        assert s.known[s.groups == 1][0].tolist() == want

def test_two_cases_of_one_name(tmp_path):
    src = tmp_path/"src"
    save(HU, src/"imagesTr/c1_0000.nii.gz"); save(HU[:4], src/"imagesTs/c1_0000.nii.gz")
    with pytest.raises(InputError) as e: import_nifti(src, tmp_path/"out", classes=TWO, keep_names=True)
    assert "imagesTr" in one_line(e) and "imagesTs" in str(e.value) and not (tmp_path/"out").exists()
    assert import_nifti(src, tmp_path/"out", classes=TWO)["volumes"] == 2

def test_channels_of_one_case(tmp_path):
    src = tmp_path/"src"
    for k in (0, 1): save(HU, src/f"imagesTr/c1_{k:04}.nii.gz")
    with pytest.raises(InputError) as e: import_nifti(src, tmp_path/"out", classes=TWO)
    assert "channels" in one_line(e) and "c1_0001" in str(e.value)
    (src/"imagesTr").rename(src/"images")  # two numbered scans
    assert import_nifti(src, tmp_path/"out", classes=TWO)["volumes"] == 2

def test_scans_of_one_patient_stay_together(tmp_path):
    src, names = tmp_path/"src", ("a1", "a2", "b", "c")
    for n in names[:2]: save(HU, src/f"images/{n}.nii.gz")
    for n in names[2:]: save(HU, src/n/"ct.nii.gz")
    say = lambda table: (src/"patients.json").write_text(json.dumps(table))
    say({"a1": NAME, "a2": NAME, "b": 4711, "c": 4712})
    facts = import_nifti(src, tmp_path/"out", classes=TWO)
    groups = read_challenge(tmp_path/"out").groups
    assert facts["patients"] == 3 and sorted(np.unique(groups, return_counts=True)[1]) == [5, 5, 10] and groups.max() == 2  # 4711 is not kept
    assert not leaks(tmp_path/"out")
    for bad, says in (({"a1": "a"}, "whose scan a2"), ({n: "p" for n in (*names, "a3")}, "did you mean"), (["a"], "object"), ({n: None for n in names}, "object")):
        say(bad)
        with pytest.raises(InputError) as e: import_nifti(src, tmp_path/"out2", classes=TWO)
        assert says in one_line(e) and "patients.json" in str(e.value) and not (tmp_path/"out2").exists()

def test_structures_that_are_no_class_are_told(tmp_path):
    mask = (volume(0).labels == 1).astype(np.uint8)
    save(HU, tmp_path/"src/p1/ct.nii.gz"); save(mask, tmp_path/"src/p1/segmentations/kidney-left.nii.gz")
    with pytest.raises(InputError) as e: import_nifti(tmp_path/"src", tmp_path/"out", classes=TWO)
    assert "did you mean kidney_left" in one_line(e) and not (tmp_path/"out").exists()
    save(mask, tmp_path/"src/p1/segmentations/kidney_left.nii.gz")
    facts = import_nifti(tmp_path/"src", tmp_path/"out", classes=TWO)
    assert facts["ignored_labels"] == ["kidney-left"] and facts["labelled"] == 5

def test_a_test_labelled_in_part_is_told_before_loading(tmp_path):
    src = tmp_path/"src"
    for n in ("t1", "t2"): save(HU, src/f"imagesTs/{n}.nii.gz")
    save(volume(0).labels, src/"labelsTs/t1.nii.gz")
    (src/"imagesTs/t1.nii.gz").write_text("never read")
    with pytest.raises(InputError) as e: import_nifti(src, tmp_path/"out", classes=TWO, annotated="all")
    assert "imagesTs/t2.nii.gz" in one_line(e) and ".part" not in str(e.value)
    save(HU, src/"imagesTs/t1.nii.gz"); save(volume(0).labels, src/"labelsTs/t2.nii.gz"); save(volume(0).labels % 2, src/"labelsTs/t1.nii.gz")
    with pytest.raises(InputError) as e: import_nifti(src, tmp_path/"out", classes=TWO, annotated="present")  # known only from the voxels
    assert "imagesTs/t1.nii.gz" in one_line(e) and ".part" not in str(e.value) and not (tmp_path/"out").exists()

@pytest.mark.parametrize("name", ["train", "test", "images", "labels"])
def test_a_case_may_be_called_anything(tmp_path, name):
    for p in (name, "p2"):
        save(HU, tmp_path/f"src/{p}/ct.nii.gz"); save((volume(0).labels == 1).astype(np.uint8), tmp_path/f"src/{p}/segmentations/kidney_left.nii.gz")
    facts = import_nifti(tmp_path/"src", tmp_path/"out")
    assert facts["volumes"] == 2 and read_challenge(tmp_path/"out").known.all()
    with pytest.raises(InputError) as e: import_nifti(tmp_path/"src"/name, tmp_path/"out2")
    assert "is one case itself" in one_line(e)

def test_capital_endings_and_a_fourth_axis_of_one(tmp_path):
    save(HU[..., None], tmp_path/"src/a.nii.gz"); save(HU, tmp_path/"src/b.nii.gz")
    (tmp_path/"src/b.nii.gz").rename(tmp_path/"src/B.NII.GZ")
    import_nifti(tmp_path/"src", tmp_path/"out", classes=TWO)
    s = read_challenge(tmp_path/"out")
    assert len(s) == 10 and (s.images[:5] == s.images[5:]).all()

def test_a_key_that_cannot_be_written(tmp_path):
    save(HU, tmp_path/"src/a.nii.gz")
    (tmp_path/"file").write_text("")
    for key in (tmp_path/"file"/"key.csv", tmp_path/"src"):
        with pytest.raises(InputError) as e: import_nifti(tmp_path/"src", tmp_path/"out", classes=TWO, key=key)
        assert str(key) in one_line(e) and not (tmp_path/"out").exists()

def test_memory_of_an_import(tmp_path):
    "Each part is let go when it is pasted: the arrays are not held two or three times."
    import tracemalloc
    shape, n = (64, 64, 40), 20
    cases = [Case(f"c{i}", lambda: Volume(np.full(shape, 40, np.float32), np.eye(4), np.ones(shape, np.uint8), np.ones(1, bool))) for i in range(n)]
    tracemalloc.start()
    try:
        write_volumes(cases, tmp_path/"out", ClassMap(("x",)), Slicing())
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert peak < 2.4*n*2*np.prod(shape)  # the parts, and the arrays they are pasted into

def test_structure_files_three_states(tmp_path):
    for p, names in ("p1", ["kidney_left"]), ("p2", ["kidney_left", "kidney_right"]), ("p3", []):
        save(HU, tmp_path/f"src/{p}/ct.nii.gz")
        for n in names: save(((volume(0).labels == 1) & (p == "p1")).astype(np.uint8), tmp_path/f"src/{p}/segmentations/{n}.nii.gz")
    import_nifti(tmp_path/"src", tmp_path/"out")
    s = read_challenge(tmp_path/"out")
    known, present = ([a[s.groups == g].any(0).tolist() for g in range(3)] for a in (s.known, s.present))
    assert s.classes == TWO and known == [[True, False], [True, True], [False, False]]
    assert present == [[True, False], [False, False], [False, False]]

def test_export_nifti_keeps_no_header(tmp_path):
    image = nib.Nifti1Image(HU, GRID)
    image.header["descrip"], image.header["db_name"] = b"Planted Patience", b"QX-4711"
    (tmp_path/"src").mkdir()
    nib.save(image, tmp_path/"src/Planted_Patience_19370401.nii")
    import_nifti(tmp_path/"src", tmp_path/"out", test_share=1., classes=TWO)
    masks = np.random.default_rng(0).integers(0, 3, read_challenge(tmp_path/"out", "test").masks.shape, dtype=np.uint8)
    write_masks(masks, list(read_index(tmp_path/"out")[1]), tmp_path/"sub.csv")
    assert export_nifti(tmp_path/"sub.csv", tmp_path/"out", tmp_path/"back") == {"v000": (5, 5)}
    assert nib.load(tmp_path/"back/v000.nii.gz").shape == HU.shape
    assert not leaks(tmp_path/"out") and not leaks(tmp_path/"back")
    for bad in (masks[:-1], tmp_path/"nothing.csv"):
        with pytest.raises(InputError) as e: export_nifti(bad, tmp_path/"out", tmp_path/"back2")
        one_line(e)
    (tmp_path/"out/index.json").unlink()
    with pytest.raises(InputError) as e: export_nifti(masks, tmp_path/"out", tmp_path/"back2")
    assert "ctseg import" in one_line(e)

@pytest.mark.parametrize("module, call", [("nibabel", lambda t: import_nifti(t/"src", t/"out")),
                                          ("pydicom", lambda t: import_dicom(t/"src", t/"out")),
                                          ("highdicom", lambda t: export_dicom_seg(np.zeros((1, 4, 4), np.uint8), t, t, t/"out"))])
def test_missing_dependency_is_named(tmp_path, monkeypatch, module, call):
    (tmp_path/"src").mkdir(); (tmp_path/"src/a.nii").write_text("x"); (tmp_path/"src/b").write_text("x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as e: call(tmp_path)
    assert module in one_line(e) and "pip install 'ctseg[volumes]'" in str(e.value)


# DICOM

def planes(n=7, axis=(1, 0, 0), degrees=0., gaps=5., start=(-40, -30, 20)):
    "Row and column directions turned about an axis, and the positions of n slices along their normal."
    k, t = np.array(axis)/np.linalg.norm(axis), np.radians(degrees)
    K = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    R = np.eye(3) + np.sin(t)*K + (1 - np.cos(t))*K @ K
    at = np.r_[0, np.cumsum(np.broadcast_to(gaps, n - 1))]
    return R[:, 0], R[:, 1], np.array(start) + at[:, None]*R[:, 2]

def write_series(folder, X, Y, pos, shape=(10, 8), seed=0, **tags):
    "A CT series with random voxels and a patient in every header; returns Hounsfield units [columns, rows, slices]."
    Path(folder).mkdir(parents=True)
    rng, study, uid, frame = np.random.default_rng(seed), generate_uid(), generate_uid(), generate_uid()
    raw = rng.integers(0, 4096, (len(pos), *shape)).astype(np.uint16)
    for k, name in enumerate(rng.permutation(len(pos))):
        ds = pydicom.Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, uid, frame
        ds.Modality, ds.ImageType, ds.InstanceNumber, ds.SliceThickness = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], k + 1, 2
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.StudyDate, ds.AcquisitionDate = NAME, NUMBER, DAY, DAY, DAY
        ds.StudyDescription = ds.SeriesDescription = f"{NAME} {DAY}"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [round(float(v), 6) for v in pos[k]], [round(float(v), 9) for v in (*X, *Y)]
        ds.PixelSpacing, ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = [1.5, .75], *shape, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        for tag, value in tags.items(): setattr(ds, tag, value)
        ds.PixelData = raw[k].tobytes()
        ds.save_as(Path(folder)/f"IM{name:03}.dcm", enforce_file_format=True)
    return raw.transpose(2, 1, 0).astype(np.float32) - 1024

def leaks(folder): # files below whose bytes or names show the patient
    secrets = [x.lower().encode() for x in ("Planted", "Patience", DAY, "1937-04-01", NUMBER)]
    text = lambda p: p.read_bytes().lower() + str(p.relative_to(folder)).lower().encode()
    return [p for p in Path(folder).rglob("*") if p.is_file() and any(x in text(p) for x in secrets)]

GRIDS = {"axial": planes(), "reversed": planes(axis=(0, 1, 0), degrees=180), "oblique": planes(axis=(1, 2, .5), degrees=25),
         "oblique uneven": planes(axis=(1, 2, .5), degrees=25, gaps=[1, 1, 2.5, 2.5, 4, 7.3]),
         "sagittal": planes(axis=(1, 1, 1), degrees=120),
         "uneven, even at the ends": planes(gaps=[3, 3, 3, 4.4, 4.4, 4.4]), "one slice": planes(1, gaps=[])}

@pytest.mark.parametrize("grid", GRIDS)
def test_dicom_round_trip(tmp_path, grid):
    X, Y, pos = GRIDS[grid]
    hu = write_series(tmp_path/"src"/f"{NAME}-{DAY}", X, Y, pos)
    s, voxels = read_series(tmp_path/"src"/f"{NAME}-{DAY}")
    assert (voxels == hu).all() and (s.positions is not None) == ("uneven" in grid)
    ras = np.diag([-1, -1, 1])
    for i, j, k in [(0, 0, 0), (7, 9, len(pos) - 1), (3, 4, len(pos)//2)]:  # where DICOM says, is where the affine says
        want = ras @ (pos[k] + i*.75*X + j*1.5*Y)
        got = (s.affine[:3, :2] @ [i, j]) + (s.positions[k] if s.positions is not None else s.affine[:3, 3] + k*s.affine[:3, 2])
        assert np.abs(want - got).max() < 1e-4
    how = Slicing(orientation="RSP" if grid == "sagittal" else "SPL")
    import_dicom(tmp_path/"src", tmp_path/"out", how, TWO, test_share=1.)
    test = read_challenge(tmp_path/"out", "test")
    truth = np.random.default_rng(9).integers(0, 3, hu.shape, dtype=np.uint8)
    volumes, lines = read_index(tmp_path/"out")
    masks = np.zeros_like(test.masks)
    for i, line in enumerate(lines.values()):
        (y, x), part = line["corner"], as_slices(truth, np.array(volumes["v000"]["affine"]), how.orientation)[line["slice"]]
        shown = to_8bit(as_slices(hu, np.array(volumes["v000"]["affine"]), how.orientation)[line["slice"]], *line["window"])
        assert (test.images[i, y:y + part.shape[0], x:x + part.shape[1]] == shown).all()
        masks[i, y:y + part.shape[0], x:x + part.shape[1]] = part
    write_masks(masks, test.names, tmp_path/"sub.csv")
    export_nifti(tmp_path/"sub.csv", tmp_path/"out", tmp_path/"nii")
    image = nib.load(tmp_path/"nii/v000.nii.gz")
    assert (np.asarray(image.dataobj) == truth).all() and np.abs(image.affine - s.affine).max() < 1e-3
    if s.positions is not None: assert np.allclose(json.load(open(tmp_path/"nii/v000.json"))["positions"], s.positions)
    assert export_dicom_seg(tmp_path/"sub.csv", tmp_path/"out", tmp_path/"src", tmp_path/"seg") == {"v000": 2}
    import highdicom
    seg = highdicom.seg.segread(tmp_path/"seg/v000.dcm")
    uids = [h.SOPInstanceUID for h in s.headers]
    frames = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    assert (frames.T == truth).all()
    assert [d.SegmentLabel for d in seg.SegmentSequence] == list(TWO.names)
    code = seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodeValue, code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("64033007", "Right")
    for made in ("out", "nii", "seg"): assert not leaks(tmp_path/made)
    assert len(leaks(tmp_path/"src")) == len(pos)
    shutil.copy(tmp_path/"seg/v000.dcm", tmp_path/"src")  # the SEG is read as labels
    again = import_dicom(tmp_path/"src", tmp_path/"again", how)
    back = put_back(read_challenge(tmp_path/"again"), tmp_path/"again")["v000"]
    assert (back == truth).all() and again["classes"] == 2


def edit(path, **tags):
    ds = pydicom.dcmread(path)
    for tag, value in tags.items():
        if value is None: delattr(ds, tag)
        else: setattr(ds, tag, value)
    ds.save_as(path)

def by_number(files): return sorted(files, key=lambda f: int(pydicom.dcmread(f, stop_before_pixels=True).InstanceNumber))
def renumber(files):
    for n, f in enumerate(by_number(files)): edit(f, InstanceNumber=n + 1)
def drop(files, k, numbers=True):
    by_number(files)[k].unlink()
    if not numbers: renumber([f for f in files if f.exists()])
def compress(files):
    for f in files:
        ds = pydicom.dcmread(f)
        ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 nothing "])
        ds["PixelData"].VR, ds.file_meta.TransferSyntaxUID = "OB", JPEGLosslessSV1
        ds.save_as(f)
def shear(files):
    for n, f in enumerate(by_number(files)): edit(f, ImagePositionPatient=[-40, -30 + 1.2*n, 20 + 5*n])
def second_series(files):
    uid = generate_uid()
    for f in files[:3]: edit(f, SeriesInstanceUID=uid)

BAD = {
    "missing, by number": (lambda f: drop(f, 3), "missing slice"), "missing, renumbered": (lambda f: drop(f, 3, False), "missing slice"),
    "duplicate file": (lambda f: shutil.copy(f[2], f[2].with_name("copy.dcm")), "duplicate slice"),
    "duplicate place": (lambda f: edit(f[2], ImagePositionPatient=pydicom.dcmread(f[4]).ImagePositionPatient), "duplicate slice"),
    "mixed series": (second_series, "mixed slices, two series"),
    "mixed patients": (lambda f: edit(f[2], PatientID="someone else"), "mixed slices, two patients"),
    "mixed orientation": (lambda f: edit(f[2], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "mixed slices, two orientations"),
    "mixed spacing": (lambda f: edit(f[2], PixelSpacing=[1.5, .8]), "mixed slices, two pixel spacings"),
    "mixed size": (lambda f: edit(f[2], Rows=5), "mixed slices, two sizes"),
    "modality MR": (lambda f: [edit(x, Modality="MR") for x in f], "modality MR, expected CT"),
    "modality PT in one": (lambda f: edit(f[3], Modality="PT"), "modality PT"),
    "no modality": (lambda f: edit(f[3], Modality=None), "not told"),
    "compressed": (compress, "no decoder"),
    "gantry tilt": (shear, "gantry tilt"),
    "gantry tilt, header": (lambda f: [edit(x, GantryDetectorTilt=-15) for x in f], "gantry tilt of 15"),
    "no position": (lambda f: edit(f[3], ImagePositionPatient=None), "ImagePositionPatient is missing"),
    "no spacing": (lambda f: edit(f[0], PixelSpacing=None), "PixelSpacing"),
    "no rescale": (lambda f: edit(f[0], RescaleSlope=None), "Hounsfield"),
    "cut off": (lambda f: f[3].write_bytes(f[3].read_bytes()[:-50]), "damaged or cut off"),
    "cut off in the header": (lambda f: f[3].write_bytes(f[3].read_bytes()[:900]), ""),
    "multi-frame": (lambda f: edit(f[0], NumberOfFrames=4), "multi-frame"),
    "skewed axes": (lambda f: [edit(x, ImageOrientationPatient=[1, 0, 0, .3, .9, 0]) for x in f], "right angle"),
    "nothing": (lambda f: [x.unlink() for x in f], "no DICOM CT images"),
    "no DICOM": (lambda f: [x.write_text("hello"*99) for x in f], "no DICOM CT images"),
    "not there": (lambda f: shutil.rmtree(f[0].parent.parent), "no such folder")}

@pytest.mark.parametrize("case", BAD)
def test_bad_dicom(tmp_path, case, capfd, caplog):
    spoil, says = BAD[case]
    write_series(tmp_path/"src"/f"{NAME} 1937-04-01 {NUMBER}", *planes(8))
    spoil(sorted((tmp_path/"src").rglob("*.dcm")))
    with pytest.raises(InputError) as e: import_dicom(tmp_path/"src", tmp_path/"out", classes=TWO)
    assert says in one_line(e)
    assert not (tmp_path/"out").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    said = "".join(capfd.readouterr()) + caplog.text
    for secret in ("Planted", DAY, NUMBER): assert secret not in said

def test_gaps_can_be_taken_as_they_are(tmp_path):
    hu = write_series(tmp_path/"src", *planes(8))
    drop(sorted((tmp_path/"src").glob("*")), 3)
    s, voxels = read_series(tmp_path/"src", gaps=True)
    assert (voxels == np.delete(hu, 3, -1)).all() and len(s.positions) == 7

def test_what_is_passed_over(tmp_path):
    hu = write_series(tmp_path/"src"/"ct", *planes(4))
    (tmp_path/"src"/"ct"/"notes.txt").write_text("not DICOM")
    for name, tags in (("dose", dict(Modality="RTDOSE")), ("scout", dict(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))):
        write_series(tmp_path/"src"/name, *planes(1, gaps=[]), **tags)
    facts = import_dicom(tmp_path/"src", tmp_path/"out", Slicing(window=(1024, 4096)), TWO)
    assert facts["volumes"] == 1 and facts["train"] == hu.shape[-1] and not read_challenge(tmp_path/"out").known.any()

def test_two_series_of_one_patient_are_one_group(tmp_path):
    for n in ("a", "b"): write_series(tmp_path/"src"/n, *planes(3))
    write_series(tmp_path/"src"/"c", *planes(3), PatientID="another")
    facts = import_dicom(tmp_path/"src", tmp_path/"out", classes=TWO)
    assert (facts["volumes"], facts["patients"]) == (3, 2) and read_challenge(tmp_path/"out").groups.tolist() == [0]*6 + [1]*3

def item(**tags):
    d = pydicom.Dataset()
    for k, v in tags.items(): setattr(d, k, v)
    return d

def write_rt(src, rois):
    "An RTSTRUCT beside a series: pairs of a name and its contours."
    rt = item(SpecificCharacterSet="ISO_IR 192", Modality="RTSTRUCT", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3", SOPInstanceUID=generate_uid(), PatientName=NAME,
              StructureSetROISequence=[item(ROINumber=i, ROIName=n) for i, (n, _) in enumerate(rois, 1)],
              ROIContourSequence=[item(ReferencedROINumber=i, **({"ContourSequence": c} if c else {})) for i, (_, c) in enumerate(rois, 1)])
    uid = pydicom.dcmread(next(src.glob("*"))).SeriesInstanceUID
    study = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=uid)])
    rt.ReferencedFrameOfReferenceSequence = [item(RTReferencedStudySequence=[study])]
    rt.file_meta = FileMetaDataset()
    rt.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    rt.file_meta.MediaStorageSOPClassUID, rt.file_meta.MediaStorageSOPInstanceUID = rt.SOPClassUID, rt.SOPInstanceUID
    rt.save_as(src/"rt.dcm", enforce_file_format=True)

@pytest.mark.parametrize("grid", ["axial", "oblique", "oblique uneven"])
def test_contours(tmp_path, grid):
    "A square with a square hole on one slice; an empty structure stays unknown; names are translated; off-grid contours are passed over."
    X, Y, pos = GRIDS[grid]
    write_series(tmp_path/"src", X, Y, pos, shape=(20, 18))
    square = lambda a, b: [(a, a), (b, a), (b, b), (a, b)]
    at = lambda k, ring: [f"{v:.5f}" for i, j in ring for v in pos[k] + i*.75*X + j*1.5*Y]
    ring = [item(ContourGeometricType="CLOSED_PLANAR", ContourData=at(2, square(a, b))) for a, b in ((2.5, 12.5), (5.5, 8.5))]
    below = np.array([pos[0], pos[0] + X, pos[0] + Y]) - 50*np.cross(X, Y)
    far = [item(ContourGeometricType="CLOSED_PLANAR", ContourData=[f"{v:.3f}" for v in below.ravel()])]
    write_rt(tmp_path/"src", [("Niere li", ring + far), ("Kidney Right", []), ("PTV", ring)])
    import_dicom(tmp_path/"src", tmp_path/"out", Slicing(), TWO, {"Niere li": "kidney_left"})
    s = read_challenge(tmp_path/"out")
    assert s.known.all(0).tolist() == [True, False] and not s.known[:, 1].any()
    want = np.zeros((18, 20, len(pos)), np.uint8)
    want[3:13, 3:13, 2] = 1
    want[6:9, 6:9, 2] = 0
    assert (put_back(s, tmp_path/"out")["v000"] == want).all()
    facts = import_dicom(tmp_path/"src", tmp_path/"all")  # without classes: all that was contoured
    assert facts["classes"] == 2 and read_challenge(tmp_path/"all").classes.names == ("niere_li", "ptv")

def box(z, a, b, kind="CLOSED_PLANAR"): # in mm, on the plane z of the axial grid
    return item(ContourGeometricType=kind, ContourData=[f"{v:.5f}" for i, j in ((a, a), (b, a), (b, b), (a, b)) for v in (i*.75, j*1.5, z)])

def test_planes_between_slices_do_not_erase_each_other(tmp_path):
    "Drawn every millimetre, sliced every two: of the planes near a slice the nearest counts, and each slice keeps its square."
    X, Y, _ = GRIDS["axial"]
    write_series(tmp_path/"src", X, Y, np.c_[np.zeros((5, 2)), 2.*np.arange(5)], shape=(20, 18))
    write_rt(tmp_path/"src", [("a", [box(z, 2.5, 8.5) for z in (2, 3, 4, 5, 6)]), ("line", [box(2, 2.5, 8.5, "OPEN_PLANAR")])])
    import_dicom(tmp_path/"src", tmp_path/"out")
    s = read_challenge(tmp_path/"out")
    assert s.classes.names == ("a",) and (s.masks > 0).sum((1, 2)).tolist() == [0, 36, 36, 36, 0]

def test_regions_of_one_name_are_put_together(tmp_path):
    X, Y, _ = GRIDS["axial"]
    write_series(tmp_path/"src", X, Y, np.c_[np.zeros((5, 2)), 2.*np.arange(5)], shape=(20, 18))
    write_rt(tmp_path/"src", [("Node", [box(2, 2.5, 8.5)]), ("Node", [box(6, 2.5, 6.5)])])
    import_dicom(tmp_path/"src", tmp_path/"out")
    assert (read_challenge(tmp_path/"out").masks > 0).sum((1, 2)).tolist() == [0, 36, 0, 16, 0]

@pytest.mark.parametrize("data", [None, ["1"]*10], ids=["none", "ten numbers"])
def test_damaged_contours(tmp_path, data):
    X, Y, _ = GRIDS["axial"]
    write_series(tmp_path/"src", X, Y, np.c_[np.zeros((3, 2)), 2.*np.arange(3)], shape=(20, 18))
    write_rt(tmp_path/"src", [("a", [item(ContourGeometricType="CLOSED_PLANAR", **({"ContourData": data} if data else {}))])])
    if data is None: assert import_dicom(tmp_path/"src", tmp_path/"out", classes=TWO)["train"] == 3 and not read_challenge(tmp_path/"out").known.any()
    else:
        with pytest.raises(InputError) as e: import_dicom(tmp_path/"src", tmp_path/"out")
        assert "RTSTRUCT" in one_line(e)

def flat_series(folder, n=5): # n slices, 2 mm apart
    X, Y, _ = GRIDS["axial"]
    return write_series(folder, X, Y, np.c_[np.zeros((n, 2)), 2.*np.arange(n)], shape=(20, 18))

def test_slices_between_contours_are_unknown(tmp_path):
    "Every second slice contoured: those in between may hold the structure; beyond the ends it is absent."
    flat_series(tmp_path/"src", 7)
    write_rt(tmp_path/"src", [("cord", [box(z, 2.5, 8.5) for z in (2, 6)]), ("Node", [box(2, 9.5, 12.5)]), ("Node", [box(8, 9.5, 12.5)])])
    facts = import_dicom(tmp_path/"src", tmp_path/"out")
    s = read_challenge(tmp_path/"out")
    assert s.classes.names == ("cord", "node") and facts["hidden_cells"] == 1 and facts["labelled"] == 7
    assert s.known[:, 0].tolist() == [True, True, False, True, True, True, True] and s.known[:, 1].all()  # two regions, each on one slice
    assert s.present[:, 0].nonzero()[0].tolist() == [1, 3]

@pytest.mark.parametrize("labels", [("肝脏", "脾脏"), ("Foie è", "Foie é")])
def test_labels_in_any_script_stay_apart(tmp_path, labels):
    flat_series(tmp_path/"src")
    write_rt(tmp_path/"src", [(labels[0], [box(2, 2.5, 8.5)]), (labels[1], [box(2, 9.5, 12.5)])])
    import_dicom(tmp_path/"src", tmp_path/"out")
    s = read_challenge(tmp_path/"out")
    assert s.classes.names == tuple(n.lower().replace(" ", "_") for n in labels) and s.present[1].all()
    export_dicom_seg(s.masks, tmp_path/"out", tmp_path/"src", tmp_path/"seg", "train")
    (tmp_path/"src"/"rt.dcm").unlink()
    shutil.copy(tmp_path/"seg"/"v000.dcm", tmp_path/"src")
    import_dicom(tmp_path/"src", tmp_path/"again")
    assert read_challenge(tmp_path/"again").classes == s.classes

def test_two_labels_are_not_merged_silently(tmp_path):
    flat_series(tmp_path/"src")
    write_rt(tmp_path/"src", [("GTV+", [box(2, 2.5, 8.5)]), ("GTV-", [box(2, 9.5, 12.5)]), ("PTV 1", [box(4, 2.5, 8.5)]), ("ptv_1", [box(6, 2.5, 8.5)])])
    read = lambda out, **kw: (import_dicom(tmp_path/"src", tmp_path/out, **kw), read_challenge(tmp_path/out))
    for rename in ({}, {"GTV+": "gtv"}):
        with pytest.raises(InputError) as e: read("out", rename=rename)
        assert "'GTV+' and 'GTV-'" in one_line(e) and "--rename" in str(e.value) and not (tmp_path/"out").exists()
    assert read("apart", rename={"gtv+": "hot", "GTV-": "cold"})[1].classes.names == ("cold", "hot", "ptv_1")
    facts, s = read("together", rename={"GTV+": "gtv", "GTV-": "gtv"})
    assert s.classes.names == ("gtv", "ptv_1") and (s.masks[1] == 1).sum() == 45 and facts["ignored_labels"] == []
    facts, s = read("one", classes=ClassMap.from_names(["ptv_1"]))  # what nobody wants cannot be confused
    assert facts["ignored_labels"] == ["GTV+", "GTV-"] and s.present[:, 0].nonzero()[0].tolist() == [2, 3]

def test_a_label_without_a_name(tmp_path):
    flat_series(tmp_path/"src")
    write_rt(tmp_path/"src", [("+", [box(2, 2.5, 8.5)])])
    with pytest.raises(InputError) as e: import_dicom(tmp_path/"src", tmp_path/"out")
    assert "'+'" in one_line(e)
    import_dicom(tmp_path/"src", tmp_path/"out", rename={"+": "plus"})
    assert read_challenge(tmp_path/"out").classes.names == ("plus",)

def test_labels_that_cannot_be_used_are_told(tmp_path):
    flat_series(tmp_path/"src")
    write_rt(tmp_path/"src", [("Kidney L", [box(2, 2.5, 8.5)]), ("PTV", [box(2, 9.5, 12.5)])])
    with pytest.raises(InputError) as e: import_dicom(tmp_path/"src", tmp_path/"out", classes=TWO)
    assert "none of the 2 labels" in one_line(e) and not (tmp_path/"out").exists()
    facts = import_dicom(tmp_path/"src", tmp_path/"out", classes=TWO, rename={"KIDNEY_L": "kidney_left"})
    assert facts["ignored_labels"] == ["PTV"] and facts["labelled"] == 5 and facts["label_objects_without_series"] == 0
    flat_series(tmp_path/"other")
    shutil.copy(tmp_path/"src"/"rt.dcm", tmp_path/"other")  # the contours of another series
    with pytest.raises(InputError) as e: import_dicom(tmp_path/"other", tmp_path/"out2")
    assert "rt.dcm" in one_line(e) and "series that is not in the folder" in str(e.value) and not (tmp_path/"out2").exists()
    write_rt(tmp_path/"other", [("PTV", [box(2, 2.5, 8.5)])])
    shutil.copy(tmp_path/"src"/"rt.dcm", tmp_path/"other"/"lost.dcm")
    assert import_dicom(tmp_path/"other", tmp_path/"out2")["label_objects_without_series"] == 1

@pytest.mark.parametrize("table", ['["a"]', '{"PTV": 3}', '{"PTV": ["x"]}', '{"PTV": " "}', "{"])
def test_a_bad_rename(tmp_path, table):
    flat_series(tmp_path/"src")
    (tmp_path/"rename.json").write_text(table)
    with pytest.raises(InputError) as e: import_dicom(tmp_path/"src", tmp_path/"out", rename=tmp_path/"rename.json")
    assert "rename.json" in one_line(e)

def patch(files, old, new): # bytes that pydicom would not write
    for f in files:
        raw = f.read_bytes()
        assert old in raw
        f.write_bytes(raw.replace(old, new, 1))

def no_syntax(files):
    for f in files:
        ds = pydicom.dcmread(f)
        del ds.file_meta.TransferSyntaxUID
        ds.save_as(f, enforce_file_format=False, implicit_vr=False, little_endian=True)

@pytest.mark.parametrize("spoil, says", [
    (lambda f: patch(f, b"1.5\\0.75", b"1,5\\0,75"), "PixelSpacing"), (lambda f: patch(f, b"1.5\\0.75", b"1.50000 "), "PixelSpacing"),
    (lambda f: patch(f, b"1.5\\0.75", b"0.0\\0.75"), "PixelSpacing"), (lambda f: [edit(x, ImageOrientationPatient=[1, 0, 0]) for x in f], "ImageOrientationPatient"),
    (lambda f: edit(f[1], ImagePositionPatient=[0, 0]), "ImagePositionPatient"), (lambda f: patch(f, b"-1024", b"-10,4"), "RescaleIntercept"),
    (lambda f: [edit(x, SliceThickness=[2, 3]) for x in f], "SliceThickness"),
    (no_syntax, "TransferSyntaxUID")])
def test_malformed_headers(tmp_path, spoil, says):
    flat_series(tmp_path/"src")
    spoil(sorted((tmp_path/"src").iterdir()))
    with pytest.raises(InputError) as e: import_dicom(tmp_path/"src", tmp_path/"out", classes=TWO)
    assert says in one_line(e) and "IM00" in str(e.value) and not (tmp_path/"out").exists()

def test_a_malformed_element_that_does_not_matter(tmp_path):
    X, Y, _ = GRIDS["axial"]
    write_series(tmp_path/"src", X, Y, np.c_[np.zeros((3, 2)), 2.*np.arange(3)], PatientWeight="70.5")
    patch((tmp_path/"src").iterdir(), b"70.5", b"70,5")
    assert import_dicom(tmp_path/"src", tmp_path/"out")["train"] == 3

def test_a_label_object_without_the_number_of_its_series(tmp_path):
    flat_series(tmp_path/"src")
    write_rt(tmp_path/"src", [("a", [box(2, 2.5, 8.5)])])
    ds = pydicom.dcmread(tmp_path/"src"/"rt.dcm")
    del ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID
    ds.save_as(tmp_path/"src"/"rt.dcm")
    with pytest.raises(InputError) as e: import_dicom(tmp_path/"src", tmp_path/"out")
    assert "rt.dcm" in one_line(e)

def test_what_others_hide_is_unknown_not_absent(tmp_path):
    "Both lungs cover `lungs` on the two lower slices; on the third some of it is left. What a coarser grid swallows is not absent either."
    left, right, lungs = (np.zeros((8, 8, 4), np.uint8) for _ in range(3))
    left[1:3, 2:6, :3], right[5:7, 2:6, :3] = 1, 1
    lungs[:] = left | right
    lungs[3:5, 2:6, 2] = 1
    for n, m in (("left", left), ("lungs", lungs), ("right", right)): save(m, tmp_path/f"src/a/segmentations/{n}.nii.gz", np.eye(4))
    save(np.zeros((8, 8, 4), np.int16), tmp_path/"src/a/ct.nii.gz", np.eye(4))
    facts = import_nifti(tmp_path/"src", tmp_path/"out", Slicing(min_body=0))
    s = read_challenge(tmp_path/"out")
    assert s.classes.names == ("left", "lungs", "right") and facts["hidden_cells"] == 2
    assert s.known[:, 1].tolist() == [False, False, True, True] and s.present[:, 1].tolist() == [False, False, True, False] and s.known[:, [0, 2]].all()
    dot = Volume(np.zeros((9, 9, 2), np.float32), np.eye(4), np.zeros((9, 9, 2), np.uint8), np.ones(2, bool))
    dot.labels[0, 0, 0] = 1
    write_volumes([Case("dot", lambda: dot)], tmp_path/"small", TWO, Slicing(size=3, spacing="fit", min_body=0))
    assert read_challenge(tmp_path/"small").known.tolist() == [[False, True], [True, True]]

def test_export_checks_the_masks(tmp_path):
    save(HU, tmp_path/"nii/a.nii.gz")
    import_nifti(tmp_path/"nii", tmp_path/"out", classes=TWO, test_share=1.)
    masks = read_challenge(tmp_path/"out", "test").masks
    for bad, told in ((masks[:, 1:, 1:], "pixels"), (masks + 3, "value 3")):
        with pytest.raises(InputError) as e: export_nifti(bad, tmp_path/"out", tmp_path/"back")
        assert told in one_line(e) and not (tmp_path/"back").exists()

@pytest.mark.parametrize("tag, needed", [("SliceThickness", False), ("FrameOfReferenceUID", True), ("StudyInstanceUID", True)])
def test_seg_export_of_a_ct_that_lacks_a_tag(tmp_path, tag, needed):
    write_series(tmp_path/"src", *planes(3))
    for p in (tmp_path/"src").iterdir():
        ds = pydicom.dcmread(p)
        if tag in ds: delattr(ds, tag)
        ds.save_as(p)
    import_dicom(tmp_path/"src", tmp_path/"out", classes=TWO, test_share=1.)
    masks = read_challenge(tmp_path/"out", "test").masks
    masks[:, 2:4, 2:4] = 1
    if not needed: assert export_dicom_seg(masks, tmp_path/"out", tmp_path/"src", tmp_path/"seg") == {"v000": 1}
    else:
        with pytest.raises(InputError) as e: export_dicom_seg(masks, tmp_path/"out", tmp_path/"src", tmp_path/"seg")
        assert tag in one_line(e) and not (tmp_path/"seg").exists()

def test_labels_that_are_a_list(tmp_path):
    save(HU, tmp_path/"imagesTr/a_0000.nii.gz")
    (tmp_path/"dataset.json").write_text('{"labels": ["background", "liver"]}')
    with pytest.raises(InputError) as e: import_nifti(tmp_path, tmp_path/"out")
    assert "labels must be names numbered" in one_line(e)

def test_sizes_of_voxels_that_are_none(tmp_path):
    from ctseg.datasets import read_openkbp
    (tmp_path/"ct.csv").write_text(",data\n0,1\n")
    (tmp_path/"voxel_dimensions.csv").write_text("x,y,z\n1,1,1\n")
    with pytest.raises(InputError) as e: read_openkbp(tmp_path)
    assert "expected three sizes in mm" in one_line(e)

def test_seg_export_needs_its_own_series(tmp_path):
    write_series(tmp_path/"src", *planes(3)); write_series(tmp_path/"other", *planes(3))
    import_dicom(tmp_path/"src", tmp_path/"out", classes=TWO, test_share=1.)
    masks = read_challenge(tmp_path/"out", "test").masks
    with pytest.raises(InputError) as e: export_dicom_seg(masks, tmp_path/"out", tmp_path/"other", tmp_path/"seg")
    assert "imported from" in one_line(e) and not (tmp_path/"seg").exists()
    assert export_dicom_seg(masks, tmp_path/"out", tmp_path/"src", tmp_path/"seg") == {"v000": 0}  # nothing predicted, no file
    save(HU, tmp_path/"nii/a.nii.gz")
    import_nifti(tmp_path/"nii", tmp_path/"out2", classes=TWO, test_share=1.)
    with pytest.raises(InputError) as e:
        export_dicom_seg(read_challenge(tmp_path/"out2", "test").masks, tmp_path/"out2", tmp_path/"src", tmp_path/"seg2")
    assert "export nifti" in one_line(e)

def test_every_class_of_ours_has_a_code():
    for n in RAIDIUM54.names + OPENKBP.names: assert snomed(n)[0], n
    assert snomed("some_new_thing") == (None, None, None)


# OpenKBP

def patient(folder, structures, value=1064, n=128**3):
    "An OpenKBP patient in the real layout: a block of tissue and structures in it."
    Path(folder).mkdir(parents=True)
    at = np.ravel_multi_index([a.ravel() for a in np.mgrid[30:90, 40:80, 60:64]], (128,)*3)
    Path(folder, "ct.csv").write_text(",data\n" + "".join(f"{i},{value}.0\n" for i in np.sort(at)))
    for name in structures:
        k = _KBP_FILES.index(name)
        at = np.ravel_multi_index([a.ravel() for a in np.mgrid[40 + 5*k:44 + 5*k, 45:50, 61:63]], (128,)*3)
        Path(folder, f"{name}.csv").write_text(",data\n" + "".join(f"{i},\n" for i in np.sort(at)))
    Path(folder, "voxel_dimensions.csv").write_text("3.906000000000000139e+00\n3.906000000000000139e+00\n2.500000000000000000e+00\n")

def test_openkbp(tmp_path):
    root = tmp_path/"open-kbp"/"provided-data"
    patient(root/"train-pats/pt_3", ["Brainstem", "Mandible"]); patient(root/"valid-pats/pt_210", ["Larynx"])
    patient(root/"test-pats/pt_300", _KBP_FILES); patient(root/"test-pats/pt_301", _KBP_FILES[:3])
    facts = import_openkbp(tmp_path/"open-kbp", tmp_path/"out", Slicing(window="soft", min_body=90.))
    s, t = read_challenge(tmp_path/"out"), read_challenge(tmp_path/"out", "test")
    assert facts["volumes"] == 4 and set(s.groups) == {3, 210, 301} and set(t.groups) == {300} and t.known.all() and s.classes == OPENKBP
    assert len(t) == 4 and s.images.shape[1:] == (128, 128)  # of 128 slices four have a body
    assert s.known[s.groups == 3][0].tolist() == [True, False, False, False, False, False, True]
    z = t.masks[1]  # rows to the back, columns to the left; slices upwards, where OpenKBP counts down
    assert (z[65:69, 45:50] == 6).all() and (t.images[0, 30:90, 40:80] == 128).all() and t.images[0, :30].max() == 0
    assert read_index(tmp_path/"out", "test")[0].keys() == {"pt_3", "pt_210", "pt_300", "pt_301"}
    assert [x["slice"] for x in read_index(tmp_path/"out", "test")[1].values()] == [64, 65, 66, 67]
    A = np.array(read_index(tmp_path/"out", "test")[0]["pt_300"]["affine"])
    assert nib.aff2axcodes(A) == ("P", "L", "I") and np.allclose(np.linalg.norm(A[:3, :3], axis=0), [3.906, 3.906, 2.5])
    back = put_back(t, tmp_path/"out", "test")["pt_300"]
    assert (back[65:69, 45:50, 61:63] == 6).all() and set(np.unique(back[:, :, 60:64])) == set(range(8))

def test_openkbp_repeats_a_choice(tmp_path):
    patient(tmp_path/"kbp/train-pats/pt_3", ["Brainstem", "Mandible"]); patient(tmp_path/"kbp/test-pats/pt_9", _KBP_FILES)
    choice = dict(size=64, train=[[9, 65, 40., 400., [1, 2]], [3, 65, 0., 900., []], [3, 66, 40., 400., [1, 2]]],
                  test=[[9, 66, 40., 400., list(range(1, 8))]])
    (tmp_path/"like.json").write_text(json.dumps(choice))
    import_openkbp(tmp_path/"kbp", tmp_path/"out", like=tmp_path/"like.json")
    s, t = read_challenge(tmp_path/"out"), read_challenge(tmp_path/"out", "test")
    assert s.groups.tolist() == [9, 3, 3] and (s.known.sum(1) == [2, 0, 1]).all() and s.images.shape == (3, 64, 64)
    assert set(np.unique(s.masks[0])) == {0, 1, 2} and not s.masks[1].any() and t.known.all() and len(np.unique(t.masks)) == 8
    assert s.images[1].max() == to_8bit(40, 0, 900)
    choice["train"][0][0] = 77
    (tmp_path/"like.json").write_text(json.dumps(choice))
    with pytest.raises(InputError) as e: import_openkbp(tmp_path/"kbp", tmp_path/"out2", like=tmp_path/"like.json")
    assert "pt_77" in one_line(e)
    for at, value, says in ((1, 128, "slice 128"), (1, -1, "slice -1"), (3, 0., "window"), (2, float("nan"), "window"), (4, [1, 8], "class 8")):
        bad = [9, 65, 40., 400., [1]]
        bad[at] = value
        (tmp_path/"like.json").write_text(json.dumps(choice | {"train": [bad]}))
        with pytest.raises(InputError) as e: import_openkbp(tmp_path/"kbp", tmp_path/"out2", like=tmp_path/"like.json")
        assert f"train, entry 0: {says}" in one_line(e) and not (tmp_path/"out2").exists()
    (tmp_path/"like.json").write_text('{"size": 64, "train": [[1, 2]]}')
    with pytest.raises(InputError) as e: import_openkbp(tmp_path/"kbp", tmp_path/"out2", like=tmp_path/"like.json")
    one_line(e)

def test_openkbp_structure_without_voxels_is_absent(tmp_path):
    from ctseg.datasets import read_openkbp
    patient(tmp_path/"pt_3", ["Brainstem", "Larynx"])
    (tmp_path/"pt_3/Brainstem.csv").write_text(",data\n")
    v = read_openkbp(tmp_path/"pt_3")
    assert v.known.tolist() == [True, False, False, False, False, True, False] and not (v.labels == 1).any() and (v.labels == 6).any()

@pytest.mark.parametrize("spoil, says", [
    (lambda d: (d/"ct.csv").unlink(), "clone the whole"), (lambda d: (d/"ct.csv").write_text(""), "not a readable CSV"),
    (lambda d: (d/"ct.csv").write_text(",data\n5,\n"), "values are missing"),
    (lambda d: (d/"ct.csv").write_text("version https://git-lfs\noid 5\n"), "expected the columns"),
    (lambda d: (d/"Brainstem.csv").write_text(",data\n2097152,\n"), "outside"),
    (lambda d: (d/"Brainstem.csv").write_text(",data\n-1,\n"), "outside"),
    (lambda d: (d/"voxel_dimensions.csv").write_text("3.9\n3.9\n"), "three sizes"), (lambda d: shutil.rmtree(d), "no patients")])
def test_bad_openkbp(tmp_path, spoil, says):
    patient(tmp_path/"kbp/train-pats/pt_3", ["Brainstem"])
    spoil(tmp_path/"kbp/train-pats/pt_3")
    with pytest.raises(InputError) as e: import_openkbp(tmp_path/"kbp", tmp_path/"out")
    assert says in one_line(e) and not (tmp_path/"out").exists()


def test_two_names_that_nnunet_would_call_the_same(tmp_path):
    s = read_challenge(Path(__file__).parent.parent/"data_sample", "test")[:2]
    from dataclasses import replace
    from ctseg.data import write_challenge
    write_challenge(replace(s, names=["1.png", "01.png"]), tmp_path/"in")
    with pytest.raises(InputError) as e: export_nnunet(tmp_path/"in", tmp_path/"raw")
    assert "1.png" in one_line(e) and not (tmp_path/"raw").exists()


# TotalSegmentator

def subject(folder, names, full=(), shape=(30, 20, 4)):
    A = np.diag([-10., 10, 30, 1])
    save(np.full(shape, 40, np.int16), folder/"ct.nii.gz", A)
    save(np.zeros(shape, np.uint8), folder/"segmentations"/"empty.nii", A)
    empty = (folder/"segmentations"/"empty.nii").read_bytes()
    (folder/"segmentations"/"empty.nii").unlink()
    for i, n in enumerate(names):
        if n not in full: (folder/"segmentations"/f"{n}.nii").write_bytes(empty); continue
        mask = np.zeros(shape, np.uint8)
        mask[i % 30, i//30*3, 1:3] = 1
        save(mask, folder/"segmentations"/f"{n}.nii.gz", A)

V1 = sorted(set().union(*total_parts(1).values()))
V2 = sorted(set().union(*total_parts(2).values()) | {"skull", "prostate", "thyroid_gland"})

def test_totalsegmentator(tmp_path):
    src, ids = tmp_path/"data", {n: i for i, n in enumerate(RAIDIUM54.names)}
    subject(src/"s0000", V1, ["face", "heart_atrium_left", "rib_left_7", "vertebrae_T12", "lung_middle_lobe_right"])
    subject(src/"s0001", V2, ["heart", "vertebrae_S1", "skull"])
    subject(src/"s0002", [n for n in V2 if n != "vertebrae_L3"], ["vertebrae_L1", "liver"])
    subject(src/"s0003", V1, V1); subject(src/"s0004", V2, V2)
    (src/"meta.csv").write_text("image_id;age;split\ns0000;50;train\ns0001;60;val\ns0002;60;train\ns0003;60;test\ns0004;60;test\n")
    facts = import_totalsegmentator(src, tmp_path/"out", Slicing())
    s, t = read_challenge(tmp_path/"out"), read_challenge(tmp_path/"out", "test")
    known, present = ({g: a[s.groups == g].any(0) for g in np.unique(s.groups)} for a in (s.known, s.present))
    first, second, third = sorted(known)
    assert known[first].all()
    assert {n for n, i in ids.items() if present[first][i]} == {"face", "heart", "rib_left", "vertebrae_thoracic", "lung_right"}
    assert {n for n, i in ids.items() if not known[second][i]} == {"face", "pulmonary_artery"}
    assert {n for n, i in ids.items() if present[second][i]} == {"heart", "sacrum"}  # S1 belongs to the sacrum, the skull to nobody
    assert {n for n, i in ids.items() if not known[third][i]} == {"face", "pulmonary_artery", "vertebrae_lumbar"}
    assert {n for n, i in ids.items() if present[third][i]} == {"liver"}  # L1 is erased with the unknown region
    assert facts["test_subjects_left_out"] == 1 and t.known.all() and t.present.any(0).all()
    assert set(read_index(tmp_path/"out", "test")[1]["0.png"]["volume"]) <= set("s0003")
    fewer = ClassMap.from_names([n for n in RAIDIUM54.names if n not in ("face", "pulmonary_artery")])
    assert import_totalsegmentator(src, tmp_path/"out52", Slicing(), fewer)["test_subjects_left_out"] == 0

def test_totalsegmentator_versions_and_errors(tmp_path):
    assert (total_version(V1), total_version(V2), total_version(["sacrum"])) == (1, 2, 2)
    assert sorted(total_parts(1)) == sorted(RAIDIUM54.names) and len(total_parts(2)) == 52
    (tmp_path/"empty").mkdir()
    with pytest.raises(InputError) as e: import_totalsegmentator(tmp_path/"empty", tmp_path/"out")
    assert "no subjects" in one_line(e)
    subject(tmp_path/"d/s0000", ["liver"]); (tmp_path/"d/meta.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError) as e: import_totalsegmentator(tmp_path/"d", tmp_path/"out")
    assert "meta.csv" in one_line(e)
    with pytest.raises(InputError) as e: import_totalsegmentator(tmp_path/"d", tmp_path/"out", classes=ClassMap.from_names(["livr"]))
    assert "liver" in one_line(e)
    (tmp_path/"d/meta.csv").unlink(); (tmp_path/"d/s0000/ct.nii.gz").unlink()
    with pytest.raises(InputError) as e: import_totalsegmentator(tmp_path/"d", tmp_path/"out")
    assert "ct.nii.gz" in one_line(e)


# nnU-Net

@pytest.mark.parametrize("unknown", ["ignore", "background"])
def test_nnunet(tmp_path, unknown):
    ks = [np.array(k) for k in ([True, True], [True, False], [False, False], [True, True])]
    vs = [volume(i, known=k, labels=False) for i, k in enumerate(ks)]
    erased = lambda i, k: volume(i).labels*np.r_[True, k][volume(i).labels]
    vs = [Volume(v.hu, v.affine, erased(i, v.known).astype(np.uint8), v.known) for i, v in enumerate(vs)]
    cases = [Case(f"c{i}", lambda v=v: v, known=v.known) for i, v in enumerate(vs)]
    write_volumes(cases, tmp_path/"data", TWO, Slicing(window="soft"), test_share=.25)
    facts = export_nnunet(tmp_path/"data", tmp_path/"raw", unknown=unknown)
    s, root = read_challenge(tmp_path/"data"), tmp_path/"raw"/"Dataset501_ctseg"
    labels = json.load(open(root/"dataset.json"))
    assert labels["labels"] == {"background": 0, "kidney_left": 1, "kidney_right": 2} | ({"ignore": 3} if unknown == "ignore" else {})
    assert labels["numTraining"] == s.labelled.sum() == facts["train"] == len(list((root/"imagesTr").iterdir()))
    assert facts["left_out"] == (~s.labelled).sum()
    assert labels["channel_names"]["0"].casefold() != "ct" and labels["file_ending"] == ".png"
    assert labels["overwrite_image_reader_writer"] == "NaturalImage2DIO"
    for i in np.flatnonzero(s.labelled):
        stem = f"train_{i:05}"
        assert (imread(root/"imagesTr"/f"{stem}_0000.png") == s.images[i]).all()
        want = s.masks[i] if unknown == "background" or s.known[i].all() else np.where(s.masks[i] == 0, 3, s.masks[i])
        assert (imread(root/"labelsTr"/f"{stem}.png") == want).all()
    assert len(list((root/"labelsTs").iterdir())) == len(list((root/"imagesTs").iterdir())) == facts["test"]
    assert unknown in (root/"README.txt").read_text()
    for f in json.load(open(root/"splits_final.json")):
        a, b = ({s.groups[int(c[-5:])] for c in f[k]} for k in ("train", "val"))
        assert not a & b and len(f["train"]) + len(f["val"]) == s.labelled.sum()
    with pytest.raises(InputError) as e: export_nnunet(tmp_path/"data", tmp_path/"raw", unknown=unknown)
    assert "already exists" in one_line(e)

def test_nnunet_refuses_what_has_no_background(tmp_path):
    k = np.array([True, False])
    write_volumes([Case("c", lambda: Volume(HU, GRID, (volume(0).labels == 1).astype(np.uint8), k))], tmp_path/"data", TWO, Slicing())
    with pytest.raises(InputError) as e: export_nnunet(tmp_path/"data", tmp_path/"raw")
    assert "unknown='background'" in one_line(e) and not (tmp_path/"raw"/"Dataset501_ctseg").exists()
    with pytest.raises(InputError): export_nnunet(tmp_path/"data", tmp_path/"raw", unknown="bakground")
