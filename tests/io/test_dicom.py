"A heap of CT slices is a volume, or is refused in one line."

import shutil

import numpy as np
import pydicom
import pytest
from helpers.dicom import (
    GRIDS,
    by_number,
    compress,
    drop,
    edit,
    flat_series,
    no_syntax,
    patch,
    planes,
    second_series,
    write_series,
)
from helpers.volumes import DAY, NAME, NUMBER, TWO, one_line
from pydicom.uid import MPEG2MPML

from ctseg.core.errors import InputError
from ctseg.io.dicom import read_series
from ctseg.io.dicom_headers import path_without_patient
from ctseg.io.dicom_import import import_dicom


def lengthen(path, times):
    ds = pydicom.dcmread(path)
    ds.PixelData = ds.PixelData * times
    ds.save_as(path)


BAD = {
    "missing, by number": (lambda f: drop(f, 3), "missing slice"),
    "missing, renumbered": (lambda f: drop(f, 3, False), "missing slice"),
    "duplicate file": (lambda f: shutil.copy(f[2], f[2].with_name("copy.dcm")), "duplicate slice"),
    "duplicate place": (
        lambda f: edit(f[2], ImagePositionPatient=pydicom.dcmread(f[4]).ImagePositionPatient),
        "duplicate slice",
    ),
    "an empty file in a slice's place": (lambda f: by_number(f)[3].write_bytes(b""), "(passed over: 1 unreadable file)"),
    "a picture in a slice's place": (
        lambda f: edit(by_number(f)[3], PhotometricInterpretation="PALETTE COLOR"), "(passed over: 1 colour picture)"),
    "a series torn in two": (second_series, "missing slice"),
    "a slice of someone else": (lambda f: edit(f[2], PatientID="someone else"), "missing slice"),
    "mixed orientation": (
        lambda f: edit(f[2], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        "mixed slices, two orientations",
    ),
    "mixed spacing": (lambda f: edit(f[2], PixelSpacing=[1.5, 0.8]), "mixed slices, two pixel spacings"),
    "mixed size": (lambda f: edit(f[2], Rows=5), "mixed slices, two sizes"),
    "modality MR": (lambda f: [edit(x, Modality="MR") for x in f], "passed over: 8 MR"),
    "packed": (lambda f: [x.rename(x.with_suffix(".zip")).write_bytes(b"PK") for x in f], "unpack them"),
    "coronal": (lambda f: [edit(x, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]) for x in f], "coronal"),
    "compressed": (compress, "no decoder"),
    "no position": (lambda f: edit(f[3], ImagePositionPatient=None), "ImagePositionPatient is missing"),
    "no spacing": (lambda f: edit(f[0], PixelSpacing=None), "PixelSpacing"),
    "no rescale": (lambda f: edit(f[0], RescaleSlope=None), "Hounsfield"),
    "cut off": (lambda f: f[3].write_bytes(f[3].read_bytes()[:-50]), "damaged or cut off"),
    "a transfer syntax that nobody knows": (
        lambda f: patch(f, b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0"),
        "in the transfer syntax 1.2.840.99999.1.2.1, which pydicom cannot decode; convert it"),
    "no number of the series": (lambda f: [edit(x, SeriesInstanceUID=None) for x in f], "SeriesInstanceUID is missing"),
    "a header of a huge image": (
        lambda f: [edit(x, Rows=60000, Columns=60000) for x in f], "60000x60000 pixels need 7200000000 bytes, the file has"),
    "more pixels than it tells of": (lambda f: lengthen(f[3], 2), "but its header tells of"),
    "half the bits": (
        lambda f: [edit(x, BitsAllocated=8, BitsStored=8, HighBit=7) for x in f], "but its header tells of"),
    "a film": (lambda f: compress(f, MPEG2MPML), "in the transfer syntax MPEG2 Main Profile / Main Level (1.2.840"),
    "cut off in the header": (lambda f: f[3].write_bytes(f[3].read_bytes()[:900]), ""),
    "multi-frame": (lambda f: edit(f[0], NumberOfFrames=4), "multi-frame"),
    "skewed axes": (
        lambda f: [edit(x, ImageOrientationPatient=[1, 0, 0, 0.3, 0.9, 0]) for x in f],
        "right angle",
    ),
    "nothing": (lambda f: [x.unlink() for x in f], "no DICOM CT images"),
    "no DICOM": (lambda f: [x.write_text("hello" * 99) for x in f], "no DICOM CT images"),
    "not there": (lambda f: shutil.rmtree(f[0].parent.parent), "no such folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_dicom(tmp_path, case, capfd, caplog):
    spoil, says = BAD[case]
    write_series(tmp_path / "src" / f"{NAME} 1937-04-01 {NUMBER}", *planes(8))
    spoil(sorted((tmp_path / "src").rglob("*.dcm")))
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert says in one_line(e)
    assert not (tmp_path / "out").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    said = "".join(capfd.readouterr()) + caplog.text
    for secret in ("Planted", DAY, NUMBER):
        assert secret not in said


def test_gaps_can_be_taken_as_they_are(tmp_path):
    hu = write_series(tmp_path / "src", *planes(8))
    drop(sorted((tmp_path / "src").glob("*")), 3)
    s, voxels = read_series(tmp_path / "src", gaps=True)
    assert (voxels == np.delete(hu, 3, -1)).all() and len(s.positions) == 7


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda f: patch(f, b"1.5\\0.75", b"1,5\\0,75"), "PixelSpacing"),
        (lambda f: patch(f, b"1.5\\0.75", b"1.50000 "), "PixelSpacing"),
        (lambda f: patch(f, b"1.5\\0.75", b"0.0\\0.75"), "PixelSpacing"),
        (lambda f: [edit(x, ImageOrientationPatient=[1, 0, 0]) for x in f], "ImageOrientationPatient"),
        (lambda f: edit(f[1], ImagePositionPatient=[0, 0]), "ImagePositionPatient"),
        (lambda f: patch(f, b"-1024", b"-10,4"), "RescaleIntercept"),
        (lambda f: [edit(x, SliceThickness=[2, 3]) for x in f], "SliceThickness"),
        (no_syntax, "TransferSyntaxUID"),
    ],
)
def test_malformed_headers(tmp_path, spoil, says):
    flat_series(tmp_path / "src")
    spoil(sorted((tmp_path / "src").iterdir()))
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert says in one_line(e) and "IM00" in str(e.value) and not (tmp_path / "out").exists()


def test_a_malformed_element_that_does_not_matter(tmp_path):
    X, Y, _ = GRIDS["axial"]
    write_series(tmp_path / "src", X, Y, np.c_[np.zeros((3, 2)), 2.0 * np.arange(3)], PatientWeight="70.5")
    patch((tmp_path / "src").iterdir(), b"70.5", b"70,5")
    assert import_dicom(tmp_path / "src", tmp_path / "out")["train"] == 3


@pytest.mark.parametrize(
    "path, shown",
    [
        ("Doe_Jane/IM1.dcm", "…_…/IM1.dcm"),
        ("DoeJane19801231/IM1.dcm", "……/IM1.dcm"),
        ("JANEDOE-1980-12-31/slices/IM_1_2.dcm", "…-…/slices/IM_1_2.dcm"),
        ("X77/IM77.dcm", "…/IM77.dcm"),
        ("scan_X77b/IM1.dcm", "scan_…b/IM1.dcm"),
        ("4711/4711.dcm", "…/4711.dcm"),  # short, and a number of a file as well
        ("1/1.dcm", "1/1.dcm"),
        ("Doenitz/janet/1.dcm", "Doenitz/janet/1.dcm"),  # other words
        ("119801231/9.dcm", "119801231/9.dcm"),  # a longer number
    ],
)
def test_paths_keep_what_people_need(tmp_path, path, shown):
    header = pydicom.Dataset()
    header.PatientName, header.PatientID, header.StudyID = "Doe^Jane", "4711", "1"
    header.AccessionNumber, header.PatientBirthDate = "X77", "19801231"
    assert path_without_patient(tmp_path / path, tmp_path, header) == shown


def test_words_of_files_are_no_names(tmp_path):
    header = pydicom.Dataset()
    header.PatientName, header.PatientID = "Phantom^CT Slice^Doe", "CT"
    path = tmp_path / "CT" / "phantom doe" / "slice007.dcm"
    assert path_without_patient(path, tmp_path, header) == "CT/phantom …/slice007.dcm"


def test_a_folder_called_by_a_short_number(tmp_path):
    header = pydicom.Dataset()
    header.PatientID = "4711"
    (tmp_path / "4711").mkdir()
    assert path_without_patient(tmp_path / "4711", tmp_path, header) == "…"
    assert path_without_patient(tmp_path / "4711", tmp_path / "4711", header) == "…"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless", "DeflatedExplicitVRLittleEndian"])
def test_compressed_series_are_read_as_they_were(tmp_path, syntax, signed):
    more = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15} if signed else {}
    X, Y, _ = GRIDS["axial"]
    hu = write_series(tmp_path / "src", X, Y, np.c_[np.zeros((3, 2)), 2.0 * np.arange(3)], **more)
    for path in (tmp_path / "src").iterdir():
        ds = pydicom.dcmread(path)
        if "Deflated" in syntax: ds.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        else: ds.compress(getattr(pydicom.uid, syntax))
        ds.save_as(path)
    assert (read_series(tmp_path / "src")[1] == hu).all()


@pytest.mark.parametrize("syntax", ["JPEGExtended12Bit", "JPEGLosslessSV1", "JPEG2000Lossless", "HTJ2KLossless"])
def test_what_decoders_do_not_know_is_told_with_a_remedy(tmp_path, syntax):
    flat_series(tmp_path / "src")
    for path in (tmp_path / "src").iterdir():
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xc1 nothing that can be decoded"])
        ds["PixelData"].VR = "OB"
        ds.save_as(path)
    with pytest.raises(InputError) as e: read_series(tmp_path / "src")
    assert "pip install pylibjpeg" in one_line(e) and "IM00" in str(e.value)
