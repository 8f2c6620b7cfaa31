"DICOM series with a patient in every header, contours beside them, and ways to spoil both."

from copy import deepcopy
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1, generate_uid

from helpers.volumes import DAY, NAME, NUMBER


def planes(n=7, axis=(1, 0, 0), degrees=0.0, gaps=5.0, start=(-40, -30, 20)):
    "Row and column directions turned about an axis, and the positions of n slices along their normal."
    k, t = np.array(axis) / np.linalg.norm(axis), np.radians(degrees)
    K = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    R = np.eye(3) + np.sin(t) * K + (1 - np.cos(t)) * K @ K
    at = np.r_[0, np.cumsum(np.broadcast_to(gaps, n - 1))]
    return R[:, 0], R[:, 1], np.array(start) + at[:, None] * R[:, 2]


def write_series(folder, X, Y, pos, shape=(10, 8), seed=0, **tags):
    "A CT series with random voxels and a patient in every header; returns HU [columns, rows, slices]."
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
        ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber, ds.SliceThickness = k + 1, 2
        ds.PatientName, ds.PatientID = NAME, NUMBER
        ds.PatientBirthDate = ds.StudyDate = ds.AcquisitionDate = DAY
        ds.StudyDescription = ds.SeriesDescription = f"{NAME} {DAY}"
        ds.ImagePositionPatient = [round(float(v), 6) for v in pos[k]]
        ds.ImageOrientationPatient = [round(float(v), 9) for v in (*X, *Y)]
        ds.Rows, ds.Columns = shape
        ds.PixelSpacing, ds.SamplesPerPixel, ds.PhotometricInterpretation = [1.5, 0.75], 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        for tag, value in tags.items():
            setattr(ds, tag, value)
        ds.PixelData = raw[k].tobytes()
        ds.save_as(Path(folder) / f"IM{name:03}.dcm", enforce_file_format=True)
    return raw.transpose(2, 1, 0).astype(np.float32) - 1024


GRIDS = {
    "axial": planes(),
    "reversed": planes(axis=(0, 1, 0), degrees=180),
    "oblique": planes(axis=(1, 2, 0.5), degrees=25),
    "oblique uneven": planes(axis=(1, 2, 0.5), degrees=25, gaps=[1, 1, 2.5, 2.5, 4, 7.3]),
    "sagittal": planes(axis=(1, 1, 1), degrees=120),
    "uneven, even at the ends": planes(gaps=[3, 3, 3, 4.4, 4.4, 4.4]),
    "one slice": planes(1, gaps=[]),
}


def edit(path, **tags):
    ds = pydicom.dcmread(path)
    for tag, value in tags.items():
        if value is None:
            delattr(ds, tag)
        else:
            setattr(ds, tag, value)
    ds.save_as(path)


def by_number(files):
    return sorted(files, key=lambda f: int(pydicom.dcmread(f, stop_before_pixels=True).InstanceNumber))


def renumber(files):
    for n, f in enumerate(by_number(files)):
        edit(f, InstanceNumber=n + 1)


def drop(files, k, numbers=True):
    by_number(files)[k].unlink()
    if not numbers:
        renumber([f for f in files if f.exists()])


def compress(files, syntax=JPEGLosslessSV1):
    for f in files:
        ds = pydicom.dcmread(f)
        ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 nothing "])
        ds["PixelData"].VR, ds.file_meta.TransferSyntaxUID = "OB", syntax
        ds.save_as(f)


def shear(files):
    for n, f in enumerate(by_number(files)):
        edit(f, ImagePositionPatient=[-40, -30 + 1.2 * n, 20 + 5 * n])


def second_series(files):
    uid = generate_uid()
    for f in files[:3]:
        edit(f, SeriesInstanceUID=uid)


def item(**tags):
    d = pydicom.Dataset()
    for k, v in tags.items():
        setattr(d, k, v)
    return d


def write_rt(src, rois, syntax=ExplicitVRLittleEndian):
    "An RTSTRUCT beside a series: pairs of a name and its contours."
    rt = item(
        SpecificCharacterSet="ISO_IR 192",
        Modality="RTSTRUCT",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3",
        SOPInstanceUID=generate_uid(),
        PatientName=NAME,
        StructureSetROISequence=[item(ROINumber=i, ROIName=n) for i, (n, _) in enumerate(rois, 1)],
        ROIContourSequence=[
            item(ReferencedROINumber=i, **({"ContourSequence": c} if c else {}))
            for i, (_, c) in enumerate(rois, 1)
        ],
    )
    uid = pydicom.dcmread(next(src.glob("*"))).SeriesInstanceUID
    study = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=uid)])
    rt.ReferencedFrameOfReferenceSequence = [item(RTReferencedStudySequence=[study])]
    rt.file_meta = FileMetaDataset()
    rt.file_meta.TransferSyntaxUID = syntax
    rt.file_meta.MediaStorageSOPClassUID, rt.file_meta.MediaStorageSOPInstanceUID = (
        rt.SOPClassUID,
        rt.SOPInstanceUID,
    )
    rt.save_as(src / "rt.dcm", enforce_file_format=True)


def box(z, a, b, kind="CLOSED_PLANAR"):  # in mm, on the plane z of the axial grid
    return item(
        ContourGeometricType=kind,
        ContourData=[f"{v:.5f}" for i, j in ((a, a), (b, a), (b, b), (a, b)) for v in (i * 0.75, j * 1.5, z)],
    )


def make_enhanced(files, path, order=None):
    "The slices of a series as the frames of one enhanced CT; returns it and where each slice's number went."
    sources = [pydicom.dcmread(f) for f in by_number(files)]
    order = range(len(sources)) if order is None else order
    many = deepcopy(sources[0])
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=many.ImageOrientationPatient)],
        PixelMeasuresSequence=[item(PixelSpacing=many.PixelSpacing, SliceThickness=2)],
        PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1024)],
    )
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(many, tag)
    many.SOPClassUID = many.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    positions = [item(ImagePositionPatient=sources[k].ImagePositionPatient) for k in order]
    many.SharedFunctionalGroupsSequence = [shared]
    many.PerFrameFunctionalGroupsSequence = [item(PlanePositionSequence=[position]) for position in positions]
    many.NumberOfFrames = len(sources)
    many.PixelData = b"".join(sources[k].PixelData for k in order)
    Path(path).parent.mkdir(exist_ok=True)
    many.save_as(path)
    return many, {sources[k].SOPInstanceUID: place for place, k in enumerate(order, 1)}


def flat_series(folder, n=5):  # n slices, 2 mm apart
    X, Y, _ = GRIDS["axial"]
    return write_series(folder, X, Y, np.c_[np.zeros((n, 2)), 2.0 * np.arange(n)], shape=(20, 18))


def patch(files, old, new):  # bytes that pydicom would not write
    for f in files:
        raw = f.read_bytes()
        assert old in raw
        f.write_bytes(raw.replace(old, new, 1))


def no_syntax(files):
    for f in files:
        ds = pydicom.dcmread(f)
        del ds.file_meta.TransferSyntaxUID
        ds.save_as(f, enforce_file_format=False, implicit_vr=False, little_endian=True)
