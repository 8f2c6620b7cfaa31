"A heap as archives leave it: CT is read, labels are matched, everything else is counted and told."

import shutil

import pydicom
import pytest
from helpers.dicom import box, by_number, flat_series, item, make_enhanced, planes, shear, write_rt, write_series
from helpers.volumes import DAY, NAME, NUMBER, TWO, one_line, put_back

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io import dicom_heap
from ctseg.io.dicom import read_series
from ctseg.io.dicom_import import import_dicom
from ctseg.io.slicing import Slicing

SECONDARY, PRIVATE = "1.2.840.10008.5.1.4.1.1.7", "1.3.12.2.1107.5.9.1"


def other(folder, **tags):
    write_series(folder, *planes(2), **tags)


def no_preamble(files):
    for f in files:
        f.write_bytes(f.read_bytes()[132:])


def test_what_is_no_ct_is_counted(tmp_path):
    write_series(tmp_path / "src" / "ct", *planes(5))
    other(tmp_path / "src" / "dose report", SOPClassUID=SECONDARY)
    other(tmp_path / "src" / "raw", SOPClassUID=PRIVATE)
    other(tmp_path / "src" / "colour", SamplesPerPixel=3)
    for modality in ("PT", "MR", "RTIMAGE", "RTPLAN"):
        other(tmp_path / "src" / modality, Modality=modality)
    other(tmp_path / "src" / "coronal", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert facts["volumes"] == 1 and facts["train"] == 5 and sum(facts["passed_over"].values()) == 14
    assert len(facts["other_planes"]) == 1 and "coronal" in facts["other_planes"][0]


def test_files_without_a_preamble(tmp_path):
    hu = write_series(tmp_path / "src", *planes(4))
    no_preamble((tmp_path / "src").iterdir())
    assert (read_series(tmp_path / "src")[1] == hu).all()


def test_series_of_one_flat_folder(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        flat_series(tmp_path / name)
        (tmp_path / "src").mkdir(exist_ok=True)
        for f in (tmp_path / name).iterdir():
            shutil.copy(f, tmp_path / "src" / f"{name}{f.name}")
    shutil.copytree(tmp_path / "src", tmp_path / "src" / "a copy")
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert facts["volumes"] == 2 and facts["passed_over"] == {"copy": 10}


def test_a_series_in_two_folders_is_one(tmp_path):
    hu = write_series(tmp_path / "src" / "a", *planes(6))
    (tmp_path / "src" / "b").mkdir()
    for f in by_number((tmp_path / "src" / "a").iterdir())[3:]:
        shutil.move(f, tmp_path / "src" / "b")
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert facts["volumes"] == 1 and facts["train"] == hu.shape[-1]


def test_a_tilted_gantry(tmp_path):
    "The slices are imported in their own plane; cutting across them is refused."
    hu = write_series(tmp_path / "src", *planes(6))
    shear(list((tmp_path / "src").iterdir()))
    series, voxels = read_series(tmp_path / "src")
    assert (voxels == hu).all() and series.tilted and len(series.positions) == 6
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert facts["train"] == 6 and "tilted" in facts["notes"][0]
    with pytest.raises(InputError):
        import_dicom(tmp_path / "src", tmp_path / "out2", Slicing(orientation="AIL"), TWO)


def test_an_enhanced_ct(tmp_path):
    hu = write_series(tmp_path / "slices", *planes(4))
    make_enhanced((tmp_path / "slices").iterdir(), tmp_path / "src" / "one", [3, 0, 2, 1])
    assert (read_series(tmp_path / "src")[1] == hu).all()


@pytest.mark.parametrize("told", [3, 5])
def test_an_enhanced_ct_that_tells_another_number_of_frames(tmp_path, told):
    write_series(tmp_path / "slices", *planes(4))
    many, _ = make_enhanced((tmp_path / "slices").iterdir(), tmp_path / "src" / "one")
    many.NumberOfFrames = told
    many.save_as(tmp_path / "src" / "one")
    for read in (read_series, lambda src: import_dicom(src, tmp_path / "out")):
        with pytest.raises(InputError) as e:
            read(tmp_path / "src")
        assert f"{told} frames" in one_line(e)


PHASES = [
    ("FrameContentSequence", "TemporalPositionIndex", [1, 2]),
    ("FrameContentSequence", "StackID", ["a", "b"]),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", [0.0, 50.0]),
    ("FrameContentSequence", "FrameComments", ["nobody", "reads this"]),
]


@pytest.mark.parametrize("group, tag, values", PHASES)
def test_an_enhanced_ct_of_two_phases(tmp_path, group, tag, values):
    write_series(tmp_path / "slices", *planes(2))
    files = list((tmp_path / "slices").iterdir())
    many, _ = make_enhanced(files, tmp_path / "src" / "one")
    groups = [*many.PerFrameFunctionalGroupsSequence] * 2
    many.PerFrameFunctionalGroupsSequence = [item(**{group[0].keyword: group[0].value}) for group in map(list, groups)]
    for k, frame in enumerate(many.PerFrameFunctionalGroupsSequence):
        setattr(frame, group, [item(**{tag: values[k // 2]})])
    many.NumberOfFrames, many.PixelData = 4, many.PixelData * 2
    many.save_as(tmp_path / "src" / "one")
    if tag == "FrameComments":
        with pytest.raises(InputError) as e: import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
        assert "frames 1 and 3 lie in one place" in one_line(e)
        return
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert (facts["volumes"], facts["patients"], facts["train"]) == (2, 1, 4)


def test_an_enhanced_ct_in_another_unit(tmp_path):
    "Its unit stands with the slope of its frames, not in its header. A broken table of contents says nothing."
    write_series(tmp_path / "slices", *planes(3))
    many, _ = make_enhanced((tmp_path / "slices").iterdir(), tmp_path / "src" / "one")
    many.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleType = "ED"
    many.save_as(tmp_path / "src" / "one")
    (tmp_path / "src" / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + b"cut off")
    with pytest.raises(InputError) as e: import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert "not in Hounsfield units" in one_line(e)


@pytest.mark.parametrize("length", [0, 100, None])
def test_a_file_without_an_ending_that_was_cut_off_is_counted(tmp_path, length):
    "It may have been the last slice."
    write_series(tmp_path / "src", *planes(5))
    for f in (tmp_path / "src").iterdir():
        f.rename(f.with_suffix(""))
    last = by_number((tmp_path / "src").iterdir())[-1]
    content = last.read_bytes()
    last.write_bytes(bytes(len(content)) if length is None else content[:length])
    (tmp_path / "src" / "README").write_text("notes")
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert facts["train"] == 4 and facts["passed_over"] == {"unreadable file": 1}


def test_patients_without_a_number_are_told_apart_by_name(tmp_path):
    "The anonymiser gave both one series number, and the slices interleave."
    for name, up in (("a", 0), ("b", 1)):
        X, Y, positions = planes(4, gaps=2.0)
        tags = dict(PatientID="", PatientName=name, SeriesInstanceUID="1.2.3", FrameOfReferenceUID="1.2.4")
        write_series(tmp_path / "src" / name, X, Y, positions + [0, 0, up], **tags)
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert (facts["volumes"], facts["patients"]) == (2, 2)


def test_many_missing_slices_are_told(tmp_path):
    X, Y, positions = planes(12, gaps=2.0)
    write_series(tmp_path / "src", X, Y, positions[[0, 1, 3, 4, 7, 8, 9, 10, 11]])
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert facts["train"] == 9 and "2 to 6 mm" in facts["notes"][0]


def test_a_damaged_file_among_named_ones(tmp_path):
    "What its neighbours tell of the patient is blotted out of its path."
    write_series(tmp_path / "src" / NAME / "ct", *planes(3))
    (tmp_path / "src" / NAME / "other").mkdir()
    (tmp_path/"src"/NAME/"other"/f"{NUMBER} {DAY}").write_bytes(
        bytes(128) + b"DICM" + b"\x02\x00\x00"
    )
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert "damaged" in one_line(e)


def fallbacks():
    def only_frame(rt, ct):
        rt.ReferencedFrameOfReferenceSequence = [item(FrameOfReferenceUID=ct.FrameOfReferenceUID)]

    def only_slices(rt, ct):
        del rt.ReferencedFrameOfReferenceSequence
        for contour in rt.ROIContourSequence[0].ContourSequence:
            contour.ContourImageSequence = [item(ReferencedSOPInstanceUID=ct.SOPInstanceUID)]

    def only_study(rt, ct):
        del rt.ReferencedFrameOfReferenceSequence
        rt.StudyInstanceUID = ct.StudyInstanceUID

    return [only_frame, only_slices, only_study]


@pytest.mark.parametrize("refer", fallbacks())
def test_contours_without_the_number_of_their_series(tmp_path, refer):
    flat_series(tmp_path / "src")
    flat_series(tmp_path / "src" / "another")
    ct = pydicom.dcmread(next((tmp_path / "src").glob("*.dcm")))
    flat = tmp_path / "flat"
    flat.mkdir()
    for f in (tmp_path / "src").glob("*.dcm"):
        shutil.copy(f, flat)
    write_rt(flat, [("a", [box(2, 2.5, 8.5)])])
    rt = pydicom.dcmread(flat / "rt.dcm")
    refer(rt, ct)
    rt.save_as(tmp_path / "src" / "rt.dcm")
    facts = import_dicom(tmp_path / "src", tmp_path / "out")
    assert facts["labelled"] == 5 and facts["volumes"] == 2 and facts["label_objects_without_series"] == 0


def leaning(a, b):
    return item(ContourGeometricType="CLOSED_PLANAR", ContourData=[a, a, 0, b, a, 0, b, b, 6, a, b, 6])


def test_rings_that_cannot_be_used(tmp_path):
    flat_series(tmp_path / "src")
    rois = [
        ("flat", [box(2, 2.5, 8.5)]),
        ("leaning", [leaning(2, 8)]),
        ("point", [box(2, 2.5, 8.5, "POINT")]),
    ]
    write_rt(tmp_path / "src", rois)
    classes = ClassMap.from_names(["flat", "leaning", "point"])
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=classes)
    assert read_challenge(tmp_path / "out").known.all(0).tolist() == [True, False, False]
    assert len(facts["labels_unusable"]) == 2


def test_rings_that_overlap_are_united(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("a", [box(2, 1.5, 6.5), box(2, 4.5, 9.5), box(2, 1.5, 6.5)])])
    import_dicom(tmp_path / "src", tmp_path / "out")
    volume = put_back(read_challenge(tmp_path / "out"), tmp_path / "out")["v000"]
    assert (volume == 1).sum() == 25 + 25 - 4


def clinic(folder, n=5):
    for k in range(n):
        write_series(folder / f"p{k}", *planes(4), PatientID=f"Q{k}", seed=k)
    f = by_number((folder / "p1").iterdir())[2]
    f.write_bytes(f.read_bytes()[:-50])
    by_number((folder / "p3").iterdir())[1].unlink()


def test_one_bad_patient_does_not_end_an_import(tmp_path):
    clinic(tmp_path / "src")
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO, skip_damaged=True)
    assert facts["volumes"] == 3 and len(facts["left_out"]) == 2 and not list(tmp_path.glob("*.parts"))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_import_goes_on_where_it_was_cut(tmp_path, monkeypatch):
    "Cut off in the middle and started again, also with other processes, it gives the very same folder."
    clinic(tmp_path / "src")
    options = dict(classes=TWO, skip_damaged=True)
    import_dicom(tmp_path / "src", tmp_path / "whole", Slicing(window="random"), **options)
    from ctseg.io import cutting

    cut_case, count = cutting.cut_case, []

    def stops(*args):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return cut_case(*args)

    monkeypatch.setattr(cutting, "cut_case", stops)
    with pytest.raises(KeyboardInterrupt):
        import_dicom(tmp_path / "src", tmp_path / "out", Slicing(window="random"), **options)
    assert not (tmp_path / "out").exists() and list((tmp_path / "out.parts").glob("*.npz"))
    monkeypatch.undo()
    import_dicom(tmp_path / "src", tmp_path / "out", Slicing(window="random"), workers=2, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def no_preamble_big_endian(files):
    for f in files:
        small = pydicom.dcmread(f)
        ds = pydicom.Dataset()
        ds.update(small)
        ds.PixelData = small.pixel_array.astype(">u2").tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta = small.file_meta
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        ds.save_as(f, implicit_vr=False, little_endian=False, enforce_file_format=True)
        raw = f.read_bytes()
        meta = int.from_bytes(raw[140:144], "little")
        f.write_bytes(raw[144 + meta :])


def test_big_endian_without_a_preamble(tmp_path):
    hu = write_series(tmp_path / "src", *planes(4))
    no_preamble_big_endian((tmp_path / "src").iterdir())
    assert (read_series(tmp_path / "src")[1] == hu).all()


@pytest.mark.parametrize("orientation, "
                         "plane", [([1, 0, 0, 0, 0, -1], "coronal"), ([0, 1, 0, 0, 0, -1], "sagittal")])
def test_survey_pictures_of_the_series_itself_are_left_out(tmp_path, orientation, plane):
    write_series(tmp_path / "src", *planes(5))
    header = pydicom.dcmread(next((tmp_path / "src").iterdir()))
    for n in (1, 2):
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        header.ImageOrientationPatient, header.ImagePositionPatient = orientation, [0, 10.0 * n, 0]
        header.save_as(tmp_path / "src" / f"survey{n}")
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert facts["train"] == 5 and facts["other_planes"] == [
        f"src: 2 {plane} images, while slices are cut as SPL"
    ]


def test_folders_called_by_their_patients_are_told_apart(tmp_path):
    for name in ("QX-1", "QX-2", "QX-3"):
        write_series(tmp_path / "src" / name, *planes(6), PatientID=name)
    by_number((tmp_path / "src" / "QX-2").iterdir())[2].unlink()
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert "(2 of 3)/IM" in one_line(e) and "QX-2" not in str(e.value)


def test_a_kind_of_value_that_no_standard_knows(tmp_path):
    "One flipped bit makes LO of a patient's number LM; the number is read all the same."
    flat_series(tmp_path / "src")
    for path in (tmp_path / "src").iterdir():
        data = path.read_bytes()
        at = data.index(b"\x10\x00\x20\x00LO")
        path.write_bytes(data[:at + 5] + b"M" + data[at + 6:])
    heap = dicom_heap.read_heap(tmp_path / "src")
    assert len(heap.images) == 5 and not heap.damaged and NUMBER in heap.images[0].series


def test_what_is_no_file_is_counted(tmp_path):
    flat_series(tmp_path / "src")
    (tmp_path / "src" / "rt.dcm").symlink_to("nowhere")
    assert dicom_heap.read_heap(tmp_path / "src").passed_over == {"pipe, device or link to nowhere": 1}
