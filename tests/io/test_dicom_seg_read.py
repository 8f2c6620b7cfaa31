"""Segmentations of any program lie where they say; what contradicts itself is told, never drawn in a wrong
place."""

import highdicom
import numpy as np
import pydicom
import pytest
from helpers.dicom import make_enhanced, planes, write_series
from helpers.volumes import TWO, one_line
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pack_bits
from pydicom.uid import MPEG2MPML

from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io.dicom import read_series, survey_dicom
from ctseg.io.dicom_headers import Misfit
from ctseg.io.dicom_import import import_dicom
from ctseg.io.dicom_seg import make_segmentation
from ctseg.io.dicom_seg_read import read_segments

SHAPE = (20, 18)  # rows, columns


@pytest.fixture
def case(tmp_path):
    "An oblique series, a SEG of two structures on it, and their truth."
    X, Y, pos = planes(6, axis=(1, 0, 0), degrees=20, gaps=2.0)
    write_series(tmp_path / "src", X, Y, pos, shape=SHAPE)
    series, voxels = read_series(tmp_path / "src")
    labels = np.zeros(voxels.shape, np.uint8)
    labels[4:9, 3:7, 1:4] = 1
    labels[10:14, 8:15, 2:5] = 2
    seg = make_segmentation(series, labels, TWO, "v000")
    seg.save_as(tmp_path / "seg.dcm")
    return series, labels, pydicom.dcmread(tmp_path / "seg.dcm"), tmp_path / "seg.dcm"


def read(seg, path, series):
    seg.save_as(path)
    return read_segments(path, series)


def same(found, labels):
    return [bool((one.mask == (labels == n)).all()) for n, one in enumerate(found.structures, 1)] == [
        True,
        True,
    ]


def places(seg):
    return [frame.PlanePositionSequence[0] for frame in seg.PerFrameFunctionalGroupsSequence]


def axes(seg):
    shared = seg.SharedFunctionalGroupsSequence[0]
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    columns, rows = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(
        float
    )
    return columns * between_columns, rows * between_rows


def move(seg, by):
    for place in places(seg):
        place.ImagePositionPatient = [float(v) for v in np.array(place.ImagePositionPatient, float) + by]


def set_pixels(seg, pixels):
    seg.Rows, seg.Columns = pixels.shape[1:]
    seg.PixelData = pack_bits(pixels)


def crop(seg):
    column, row = axes(seg)
    set_pixels(seg, seg.pixel_array[:, 2:17, 3:16])
    move(seg, 3 * column + 2 * row)


def turn(seg):
    column, row = axes(seg)
    set_pixels(seg, seg.pixel_array[:, ::-1, ::-1])
    move(seg, (SHAPE[1] - 1) * column + (SHAPE[0] - 1) * row)
    orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [-v for v in orientation.ImageOrientationPatient]


def no_claims(seg):
    for frame in seg.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence


def no_series(seg):
    no_claims(seg)
    del seg.ReferencedSeriesSequence


def no_index(seg):
    del seg.DimensionIndexSequence
    for frame in seg.PerFrameFunctionalGroupsSequence:
        del frame.FrameContentSequence


def finer(seg):
    no_claims(seg)
    column, row = axes(seg)
    set_pixels(seg, seg.pixel_array.repeat(2, 1).repeat(2, 2))
    move(seg, -0.25 * column - 0.25 * row)
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = [float(v) / 2 for v in measures.PixelSpacing]


@pytest.mark.parametrize("write", [crop, turn, no_claims, no_series, no_index])
def test_other_writers(case, write):
    series, labels, seg, path = case
    write(seg)
    found = read(seg, path, series)
    assert same(found, labels) and found.notes == []


def test_another_spacing_is_told(case):
    series, labels, seg, path = case
    finer(seg)
    found = read(seg, path, series)
    assert same(found, labels) and "another grid" in found.notes[0]


def shifted(seg):
    move(seg, 2 * axes(seg)[0])


def one_slice_further(seg):
    move(seg, 2 * np.cross(*axes(seg)) / np.linalg.norm(np.cross(*axes(seg))))


def mirrored(seg):
    orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [-v for v in orientation.ImageOrientationPatient]


def coronal(seg):
    orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


@pytest.mark.parametrize("spoil", [shifted, one_slice_further, mirrored, coronal])
def test_what_claims_to_fit_and_does_not(case, spoil, tmp_path):
    series, labels, seg, path = case
    spoil(seg)
    seg.save_as(tmp_path / "src" / "seg.dcm")
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out")
    assert one_line(e).startswith("seg.dcm: its SEG") and not (tmp_path / "out").exists()


def test_without_a_claim_the_place_counts(case):
    series, labels, seg, path = case
    no_claims(seg)
    shifted(seg)
    moved = np.zeros_like(labels)
    moved[2:] = labels[:-2]
    assert same(read(seg, path, series), moved)


def test_a_segment_off_the_volume_is_unknown(case, tmp_path):
    series, labels, seg, path = case
    no_claims(seg)
    move(seg, [0, 0, 500])
    seg.save_as(tmp_path / "src" / "seg.dcm")
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert "meets its series" in one_line(e)


def by_highdicom(series, labels, pixels, kind):
    "A SEG of another kind, of the pixels of each slice."
    descriptions = make_segmentation(series, labels, TWO, "v000").SegmentSequence
    sources = [pydicom.dcmread(p) for p in series.paths]
    about = (highdicom.UID(), 1, highdicom.UID(), 1, "m", "m", "1", "1")
    for source in sources:
        for tag in ("AccessionNumber", "PatientSex", "StudyID", "StudyTime"):
            setattr(source, tag, "")
        source.ReferringPhysicianName = ""
    return highdicom.seg.Segmentation(sources, pixels, kind, list(descriptions), *about)


@pytest.mark.parametrize("kind", ["LABELMAP", "FRACTIONAL"])
def test_other_types_by_highdicom(case, kind, tmp_path):
    series, labels, seg, path = case
    stack = labels.transpose(2, 1, 0)
    pixels = stack if kind == "LABELMAP" else np.stack([stack == 1, stack == 2], -1).astype(np.float32)
    by_highdicom(series, labels, pixels, kind).save_as(path)
    assert same(read_segments(path, series), labels)


def test_a_label_is_found_by_its_slices(case, tmp_path):
    series, labels, seg, path = case
    del seg.ReferencedSeriesSequence
    seg.save_as(tmp_path / "src" / "seg.dcm")
    survey = survey_dicom(tmp_path / "src")
    assert len(survey.series[0].labels) == 1 and not survey.astray


def no_places(seg, place_of):
    "As written on an enhanced CT: each frame names a frame of it, and says nothing else of its place."
    for frame in seg.PerFrameFunctionalGroupsSequence:
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        image.ReferencedFrameNumber = place_of[image.ReferencedSOPInstanceUID]
        del frame.PlanePositionSequence


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("wrong", [False, True])
def test_frames_that_name_frames_of_an_enhanced_ct(case, tmp_path, placed, wrong):
    series, labels, seg, path = case
    many, place_of = make_enhanced((tmp_path / "src").iterdir(), tmp_path / "many" / "ct", [4, 0, 2, 1, 5, 3])
    positions = [frame.PlanePositionSequence for frame in seg.PerFrameFunctionalGroupsSequence]
    if wrong: place_of = {uid: place % 6 + 1 for uid, place in place_of.items()}
    no_places(seg, place_of)
    for frame, position in zip(seg.PerFrameFunctionalGroupsSequence, positions):
        if placed: frame.PlanePositionSequence = position
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = many.SOPInstanceUID
    enhanced, _ = read_series(tmp_path / "many")
    if placed and wrong:
        with pytest.raises(Misfit, match="off the slice"):
            read(seg, path, enhanced)
    else: assert same(read(seg, path, enhanced), labels) != wrong


def test_a_frame_of_reference_of_its_own(case):
    "Told where each frame lies on the slice that it names, refused where only the millimetres speak."
    series, labels, seg, path = case
    seg.FrameOfReferenceUID = "1.2.3"
    found = read(seg, path, series)
    assert same(found, labels) and "another frame of reference" in found.notes[0]
    no_claims(seg)
    with pytest.raises(Misfit, match="another frame of reference"):
        read(seg, path, series)


def test_slices_between_frames_are_unknown(case, tmp_path):
    "Drawn on slices that are twice as thick."
    series, labels, seg, path = case
    labels[..., 1::2] = 0
    labels[4:9, 3:7, [0, 2, 4]] = 1
    make_segmentation(series, labels, TWO, "v000").save_as(tmp_path / "src" / "seg.dcm")
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    s = read_challenge(tmp_path / "out")
    assert s.known[:, 0].tolist() == [True, False, True, False, True, True] and "one of 2 slices" in facts["notes"][0]
    import_dicom(tmp_path / "src", tmp_path / "test", classes=TWO, test_share=1)
    assert (read_challenge(tmp_path / "test", "test").known == s.known).all()


def test_a_segment_without_frames_is_unknown(case, tmp_path):
    "Listed as a template does: nobody says that it was looked for. A frame without a pixel says so."
    series, labels, seg, path = case
    labels[labels == 2] = 0
    make_segmentation(series, labels, TWO, "v000").save_as(path)
    listed = pydicom.dcmread(path)
    listed.SegmentSequence = [*listed.SegmentSequence[:1], seg.SegmentSequence[1]]
    listed.save_as(tmp_path / "src" / "seg.dcm")
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    s = read_challenge(tmp_path / "out")
    assert s.known[:, 0].all() and not s.known[:, 1].any() and len(facts["labels_empty"]) == 1
    seg.PixelData = bytes(len(seg.PixelData))
    seg.save_as(tmp_path / "src" / "seg.dcm")
    import_dicom(tmp_path / "src", tmp_path / "looked", classes=TWO)
    assert read_challenge(tmp_path / "looked").known.all()


def test_what_is_too_faint_to_be_drawn_is_not_absent(case, tmp_path):
    "A fraction below one half draws nothing, but the slice is not without the structure."
    series, labels, _, _ = case
    shares = labels.transpose(2, 1, 0)[..., None] == [1, 2]
    shares = shares.astype(np.float32)
    shares[4, 6, 5, 0] = 0.3
    by_highdicom(series, labels, shares, "FRACTIONAL").save_as(tmp_path / "src" / "seg.dcm")
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert len(facts["notes"]) == 1 and "up to 1 slices the fractions of 1 of the 2 segments" in facts["notes"][0]
    s = read_challenge(tmp_path / "out")
    drawn = (s.masks == 1).any((1, 2))
    assert drawn.sum() == 3 and (~s.known[:, 0]).sum() == 1 and not drawn[~s.known[:, 0]].any()


def test_tiny_fractions_everywhere_are_told(case, tmp_path):
    "As a network's probabilities are: no slice is left on which a structure is known to be absent."
    series, labels, _, _ = case
    shares = (labels.transpose(2, 1, 0)[..., None] == [1, 2]).astype(np.float32)
    shares = np.maximum(shares, 0.02)
    by_highdicom(series, labels, shares, "FRACTIONAL").save_as(tmp_path / "src" / "seg.dcm")
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    s = read_challenge(tmp_path / "out")
    for c in (1, 2): assert (s.known[:, c - 1] == (s.masks == c).any((1, 2))).all()
    assert len(facts["notes"]) == 1 and "of 2 of the 2 segments" in facts["notes"][0] and "probabilities" in facts["notes"][0]


def test_two_objects_that_draw_one_structure_differently_are_told(case, tmp_path):
    series, labels, seg, path = case
    for name in ("a.dcm", "a copy.dcm"): seg.save_as(tmp_path / "src" / name)
    assert import_dicom(tmp_path / "src", tmp_path / "one", classes=TWO)["notes"] == []
    make_segmentation(series, np.roll(labels, 3, 0), TWO, "v000").save_as(tmp_path / "src" / "b.dcm")
    notes = import_dicom(tmp_path / "src", tmp_path / "two", classes=TWO)["notes"]
    assert len(notes) == 1 and "kidney_left, kidney_right" in notes[0]


def fewer_places(seg):
    seg.PerFrameFunctionalGroupsSequence = list(seg.PerFrameFunctionalGroupsSequence)[:-1]


def other_rows(seg):
    seg.Rows = SHAPE[0] // 2


def cut_off(seg):
    seg.PixelData = seg.PixelData[: len(seg.PixelData) // 2]


def no_pixels(seg):
    del seg.PixelData


def one_number(seg):
    seg.SegmentSequence[1].SegmentNumber = 1


def no_segments(seg):
    del seg.SegmentSequence


def unknown_segment(seg):
    seg.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9


def film(seg):
    seg.BitsAllocated, seg.file_meta.TransferSyntaxUID = 8, MPEG2MPML
    seg.PixelData = encapsulate([b"frame"])


def test_a_seg_in_a_syntax_that_nothing_decodes_is_told(case, tmp_path):
    *_, seg, path = case
    film(seg)
    seg.save_as(tmp_path / "src" / "seg.dcm")
    with pytest.raises(InputError, match=r"seg\.dcm: its pixels are in the transfer syntax MPEG2 Main"):
        import_dicom(tmp_path / "src", tmp_path / "out")


@pytest.mark.parametrize("spoil", [fewer_places, other_rows, cut_off, no_pixels, one_number, no_segments, unknown_segment])
def test_parts_that_contradict_each_other(case, spoil, tmp_path):
    "Read as they are, what somebody drew would be missing or called another name."
    series, labels, seg, path = case
    spoil(seg)
    seg.save_as(tmp_path / "src" / "seg.dcm")
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out")
    assert "seg.dcm" in one_line(e) and "SEG" in str(e.value)


@pytest.mark.parametrize("share, told", [(0.02, False), (0.3, True), (0.45, True)])
def test_frames_between_the_slices_are_told(case, share, told):
    series, labels, seg, path = case
    no_claims(seg)
    column, row = axes(seg)
    normal = np.cross(column, row) / np.linalg.norm(np.cross(column, row))
    move(seg, 2.0 * share * normal)  # of slices that are 2 mm apart
    found = read(seg, path, series)
    assert same(found, labels) and any("off the slices" in note for note in found.notes) == told
