"Contours become masks; what nobody contoured stays unknown."

import time
import warnings

import numpy as np
import pydicom
import pytest
from helpers.dicom import GRIDS, box, flat_series, item, write_rt, write_series
from helpers.volumes import TWO, one_line, put_back
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io.dicom import read_series
from ctseg.io.dicom_import import import_dicom
from ctseg.io.rtstruct import Region, draw_region
from ctseg.io.slicing import Slicing


@pytest.mark.parametrize("grid", ["axial", "oblique", "oblique uneven"])
def test_contours(tmp_path, grid):
    """A square with a square hole on one slice; an empty structure stays unknown.

    Names are translated; off-grid contours are passed over.
    """
    X, Y, pos = GRIDS[grid]
    write_series(tmp_path / "src", X, Y, pos, shape=(20, 18))

    def square(a, b):
        corners = [(a, a), (b, a), (b, b), (a, b)]
        points = [f"{v:.5f}" for i, j in corners for v in pos[2] + i * 0.75 * X + j * 1.5 * Y]
        return item(ContourGeometricType="CLOSED_PLANAR", ContourData=points)

    ring = [square(2.5, 12.5), square(5.5, 8.5)]
    below = np.array([pos[0], pos[0] + X, pos[0] + Y]) - 50 * np.cross(X, Y)
    far = [item(ContourGeometricType="CLOSED_PLANAR", ContourData=[f"{v:.3f}" for v in below.ravel()])]
    write_rt(tmp_path / "src", [("Niere li", ring + far), ("Kidney Right", []), ("PTV", ring)])
    import_dicom(tmp_path / "src", tmp_path / "out", Slicing(), TWO, {"Niere li": "kidney_left"})
    s = read_challenge(tmp_path / "out")
    assert s.known.all(0).tolist() == [True, False] and not s.known[:, 1].any()
    want = np.zeros((18, 20, len(pos)), np.uint8)
    want[3:13, 3:13, 2] = 1
    want[6:9, 6:9, 2] = 0
    assert (put_back(s, tmp_path / "out")["v000"] == want).all()
    facts = import_dicom(tmp_path / "src", tmp_path / "all")  # without classes: all that was contoured
    assert facts["classes"] == 2 and read_challenge(tmp_path / "all").classes.names == ("niere_li", "ptv")


def test_planes_between_slices_do_not_erase_each_other(tmp_path):
    "Drawn every millimetre, sliced every two: each slice keeps the square of the nearest plane."
    X, Y, _ = GRIDS["axial"]
    write_series(tmp_path / "src", X, Y, np.c_[np.zeros((5, 2)), 2.0 * np.arange(5)], shape=(20, 18))
    write_rt(
        tmp_path / "src",
        [("a", [box(z, 2.5, 8.5) for z in (2, 3, 4, 5, 6)]), ("line", [box(2, 2.5, 8.5, "OPEN_PLANAR")])],
    )
    import_dicom(tmp_path / "src", tmp_path / "out")
    s = read_challenge(tmp_path / "out")
    assert s.classes.names == ("a",) and (s.masks > 0).sum((1, 2)).tolist() == [0, 36, 36, 36, 0]


def test_many_contours_on_a_slice_take_no_longer_each(tmp_path):
    "Islands, such as the vessels of a lung, within one contour: each was compared with all others."
    X, Y, _ = GRIDS["axial"]
    write_series(tmp_path / "src", X, Y, np.c_[np.zeros((2, 2)), 2.0 * np.arange(2)], shape=(300, 300))
    series, _ = read_series(tmp_path / "src")

    def square(i, j, side):
        corners = np.array([(i, j), (i + side, j), (i + side, j + side), (i, j + side)])
        return np.c_[corners * [0.75, 1.5], np.full(4, 2)]

    within = [square(5 + 7 * i, 5 + 7 * j, 3) for i in range(40) for j in range(40)]
    start = time.process_time()
    drawn = draw_region(series, Region("a", [square(1.5, 1.5, 289), *within]))
    assert time.process_time() - start < 15
    assert drawn.mask[..., 1].sum() == 289**2 - 40 * 40 * 16


def test_regions_of_one_name_are_put_together(tmp_path):
    X, Y, _ = GRIDS["axial"]
    write_series(tmp_path / "src", X, Y, np.c_[np.zeros((5, 2)), 2.0 * np.arange(5)], shape=(20, 18))
    write_rt(tmp_path / "src", [("Node", [box(2, 2.5, 8.5)]), ("Node", [box(6, 2.5, 6.5)])])
    import_dicom(tmp_path / "src", tmp_path / "out")
    assert (read_challenge(tmp_path / "out").masks > 0).sum((1, 2)).tolist() == [0, 36, 0, 16, 0]


@pytest.mark.parametrize("data", [None, ["1"] * 10], ids=["none", "ten numbers"])
def test_damaged_contours(tmp_path, data):
    X, Y, _ = GRIDS["axial"]
    write_series(tmp_path / "src", X, Y, np.c_[np.zeros((3, 2)), 2.0 * np.arange(3)], shape=(20, 18))
    write_rt(
        tmp_path / "src",
        [("a", [item(ContourGeometricType="CLOSED_PLANAR", **({"ContourData": data} if data else {}))])],
    )
    if data is None:
        assert (
            import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)["train"] == 3
            and not read_challenge(tmp_path / "out").known.any()
        )
    else:
        with pytest.raises(InputError) as e:
            import_dicom(tmp_path / "src", tmp_path / "out")
        assert "RTSTRUCT" in one_line(e)


def test_slices_between_contours_are_unknown(tmp_path):
    "Every second slice contoured: those in between may hold the structure; beyond the ends it is absent."
    flat_series(tmp_path / "src", 7)
    write_rt(
        tmp_path / "src",
        [
            ("cord", [box(z, 2.5, 8.5) for z in (2, 6)]),
            ("Node", [box(2, 9.5, 12.5)]),
            ("Node", [box(8, 9.5, 12.5)]),
        ],
    )
    facts = import_dicom(tmp_path / "src", tmp_path / "out")
    s = read_challenge(tmp_path / "out")
    assert s.classes.names == ("cord", "node") and facts["hidden_cells"] == 1 and facts["labelled"] == 7
    assert (
        s.known[:, 0].tolist() == [True, True, False, True, True, True, True] and s.known[:, 1].all()
    )  # two regions, each on one slice
    assert s.present[:, 0].nonzero()[0].tolist() == [1, 3]


def test_a_structure_outside_of_the_volume_is_unknown(tmp_path):
    "No ring of it meets the volume, above it or beside it: nobody looked for it here, so it is not absent."
    flat_series(tmp_path / "src")
    rois = [("inside", [box(2, 2.5, 8.5)]), ("above", [box(105, 2.5, 8.5)]), ("beside", [box(4, 60, 70)])]
    write_rt(tmp_path / "src", [*rois, ("partly", [box(105, 2.5, 8.5), box(6, 10.5, 30.5)])])
    classes = ClassMap.from_names(["above", "beside", "inside", "partly"])
    facts = import_dicom(tmp_path / "src", tmp_path / "out", classes=classes)
    s = read_challenge(tmp_path / "out")
    assert s.known.tolist() == [[False, False, True, True]] * 5
    assert facts["labels_outside"] == ["above", "beside"] and facts["ignored_labels"] == []
    import_dicom(tmp_path / "src", tmp_path / "all")  # without classes: what was drawn here
    assert read_challenge(tmp_path / "all").classes.names == ("inside", "partly")


def test_nothing_but_structures_outside_of_the_volume(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("above", [box(105, 2.5, 8.5)])])
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out")
    assert "'above'" in one_line(e) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["closed_planar", " CLOSED_PLANAR "])
def test_types_of_contours_in_other_spellings(tmp_path, kind):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("node", [box(2, 2.5, 8.5, kind)])])
    import_dicom(tmp_path / "src", tmp_path / "out")
    assert (read_challenge(tmp_path / "out").masks > 0).sum((1, 2)).tolist() == [0, 36, 0, 0, 0]


def test_contours_that_enclose_nothing_leave_their_slices_unknown(tmp_path):
    "Somebody saw the structure there, but an open contour, a point or a pair of points has no area."
    flat_series(tmp_path / "src", 7)
    pair = item(ContourGeometricType="CLOSED_PLANAR", ContourData=[2.0, 2.0, 10.0, 5.0, 5.0, 10.0])
    point = item(ContourGeometricType="POINT", ContourData=[3.0, 3.0, 2.0])
    up = item(ContourGeometricType="OPEN_NONPLANAR", ContourData=[3.0, 3.0, 8.0, 3.0, 3.0, 12.0])
    rois = [("node", [box(4, 2.5, 8.5), box(8, 2.5, 8.5, "OPEN_PLANAR"), pair])]
    write_rt(tmp_path / "src", [*rois, ("tube", [box(6, 9.5, 12.5), point, up])])
    facts = import_dicom(tmp_path / "src", tmp_path / "out")
    known = read_challenge(tmp_path / "out").known
    assert known[:, 0].tolist() == [True, True, True, False, False, False, True]
    assert known[:, 1].tolist() == [True, False, False, True, False, False, False]
    assert len(facts["notes"]) == 1 and "4 contours" in facts["notes"][0]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_points_that_are_no_numbers(tmp_path, value):
    flat_series(tmp_path / "src")
    contour = box(2, 2.5, 8.5)
    contour.ContourData = [*contour.ContourData[:-3], value, "1", "2"]
    write_rt(tmp_path / "src", [("node", [contour, box(4, 2.5, 8.5)])])
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out")
    assert "no numbers" in one_line(e)


def test_two_structures_of_one_number(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("a", [box(2, 2.5, 8.5)]), ("b", [box(4, 2.5, 8.5)])])
    rt = pydicom.dcmread(tmp_path / "src" / "rt.dcm")
    rt.StructureSetROISequence[1].ROINumber = 1
    rt.save_as(tmp_path / "src" / "rt.dcm")
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out")
    assert "two structures of one number" in one_line(e)


def test_a_rejected_structure_set_is_told(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("node", [box(2, 2.5, 8.5)])])
    rt = pydicom.dcmread(tmp_path / "src" / "rt.dcm")
    rt.ApprovalStatus = "REJECTED"
    rt.save_as(tmp_path / "src" / "rt.dcm")
    notes = import_dicom(tmp_path / "src", tmp_path / "out")["notes"]
    assert len(notes) == 1 and "rejected" in notes[0]


def test_structures_without_contours_are_told(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("node", [box(2, 2.5, 8.5)]), ("template", [])])
    facts = import_dicom(tmp_path / "src", tmp_path / "out")
    assert facts["labels_empty"] == ["template"]
    assert read_challenge(tmp_path / "out").classes.names == ("node",)


@pytest.mark.parametrize("off, told", [(0.05, False), (0.6, True), (0.9, True)])
def test_contours_between_the_slices_are_told(tmp_path, off, told):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("node", [box(2 + off, 2.5, 8.5)])])
    facts = import_dicom(tmp_path / "src", tmp_path / "out")
    assert (read_challenge(tmp_path / "out").masks > 0).sum((1, 2)).tolist() == [0, 36, 0, 0, 0]
    assert any(f"up to {off:.1f} mm off" in note for note in facts["notes"]) == told


def spaces_of(src, *spaces):
    "Give each structure its frame of reference; `None`: that of the series."
    rt = pydicom.dcmread(src / "rt.dcm")
    ours = pydicom.dcmread(next(src.glob("IM*"))).FrameOfReferenceUID
    for roi, space in zip(rt.StructureSetROISequence, spaces):
        roi.ReferencedFrameOfReferenceUID = space or ours
    rt.save_as(src / "rt.dcm")


def name_slices(src, height_of):
    "Let each contour name the slice at a height."
    rt = pydicom.dcmread(src / "rt.dcm")
    uids = {float(one.ImagePositionPatient[2]): one.SOPInstanceUID for one in map(pydicom.dcmread, src.glob("IM*"))}
    for roi in rt.ROIContourSequence:
        for contour in roi.ContourSequence:
            uid = uids[height_of(float(contour.ContourData[2]))]
            contour.ContourImageSequence = [item(ReferencedSOPInstanceUID=uid)]
    rt.save_as(src / "rt.dcm")


def test_a_structure_of_another_frame_of_reference(tmp_path):
    "Millimetres of an MR say nothing of the CT; contours that name slices of the CT are on it, and told."
    src = tmp_path / "src"
    flat_series(src)
    write_rt(src, [("node", [box(2, 2.5, 8.5)]), ("on mr", [box(4, 2.5, 8.5)])])
    spaces_of(src, None, "1.2.3")
    facts = import_dicom(src, tmp_path / "out")
    assert read_challenge(tmp_path / "out").classes.names == ("node",) and facts["notes"] == []
    assert facts["labels_unusable"] == ["on mr (in another frame of reference than the series)"]
    name_slices(src, lambda z: z)
    facts = import_dicom(src, tmp_path / "named")
    assert read_challenge(tmp_path / "named").classes.names == ("node", "on_mr") and len(facts["notes"]) == 1


def test_contours_that_name_other_slices_are_told(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("node", [box(2, 2.5, 8.5), box(4, 2.5, 8.5)])])
    name_slices(tmp_path / "src", lambda z: 8)
    notes = import_dicom(tmp_path / "src", tmp_path / "out")["notes"]
    assert (read_challenge(tmp_path / "out").masks > 0).sum((1, 2)).tolist() == [0, 36, 36, 0, 0]
    assert len(notes) == 1 and "2 contours" in notes[0] and "6.0 mm" in notes[0]


def test_contours_beyond_the_scan_are_told(tmp_path):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("node", [box(z, 2.5, 8.5) for z in range(0, 20, 2)] + [box(8, 10, 30)])])
    notes = import_dicom(tmp_path / "src", tmp_path / "out")["notes"]
    assert ["5 of 11" in notes[0], "1 of 11" in notes[1]] == [True, True]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_contour_of_more_than_64_kilobytes(tmp_path, syntax):
    "With all its digits, a contour of 1400 points has so much; an explicit syntax has no other form for it than bytes."
    flat_series(tmp_path / "src")
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    points = np.c_[0.75 * (5.5 + 3 * np.cos(angles)), 1.5 * (5.5 + 3 * np.sin(angles)), 0 * angles + 2]
    with warnings.catch_warnings(action="ignore"):  # pydicom tells of the bytes
        write_rt(tmp_path / "src", [("disc", [item(ContourData=[f"{v:.8f}" for v in points.ravel()])])], syntax)
    import_dicom(tmp_path / "src", tmp_path / "out")
    drawn = (read_challenge(tmp_path / "out").masks > 0).sum((1, 2))
    assert drawn[1] in range(24, 34) and drawn.sum() == drawn[1]


@pytest.mark.parametrize("name, called", [("a/b\\c", "a_b_c"), ("../x", "x"), (" Liver ", "liver"), ("", "roi_1"), ("=1+1", "1_1"), ("-x", "x")])
def test_names_of_structures_that_are_odd(tmp_path, name, called):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [(name, [box(2, 2.5, 8.5)])])
    import_dicom(tmp_path / "src", tmp_path / "out")
    assert read_challenge(tmp_path / "out").classes.names == (called,)


def test_a_contour_that_holds_no_pixel_leaves_its_slice_unknown(tmp_path):
    flat_series(tmp_path / "src")
    speck = item(ContourData=[2.1, 3.1, 2.0, 2.2, 3.1, 2.0, 2.2, 3.2, 2.0])
    write_rt(tmp_path / "src", [("node", [speck, box(4, 2.5, 8.5)])])
    import_dicom(tmp_path / "src", tmp_path / "out")
    assert read_challenge(tmp_path / "out").known[:, 0].tolist() == [True, False, True, True, True]


@pytest.mark.parametrize("change", [
    lambda rt: delattr(rt.StructureSetROISequence[0], "ROINumber"),
    lambda rt: delattr(rt.ROIContourSequence[0], "ReferencedROINumber"),
])
def test_a_structure_without_a_number_is_told(tmp_path, change):
    flat_series(tmp_path / "src")
    write_rt(tmp_path / "src", [("node", [box(2, 2.5, 8.5)])])
    rt = pydicom.dcmread(tmp_path / "src" / "rt.dcm")
    change(rt)
    rt.save_as(tmp_path / "src" / "rt.dcm")
    with pytest.raises(InputError) as e: import_dicom(tmp_path / "src", tmp_path / "out")
    assert "rt.dcm: its RTSTRUCT" in one_line(e) and not (tmp_path / "out").exists()
