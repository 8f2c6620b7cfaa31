# %% [markdown]
# # DICOM SEG
#
# > Predictions that any viewer lays over the scan, without the patient's name.

# %%
#| default_exp io.dicom_seg

# %%
#| export
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ctseg import __version__
from ctseg.core.anatomy import ClassMap
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError, printable
from ctseg.data.annotations import read_classes
from ctseg.io.dicom import Series, find_series
from ctseg.io.index import predicted_volumes
from ctseg.io.outputs import new_folder
from ctseg.io.result_header import check_referable, result_header
from ctseg.io.snomed import StructureCodes, snomed
from ctseg.io.volumes import import_volumes_package

# %%
#| hide
import shutil
import tempfile

import pydicom
from fastcore.test import test_fail

from ctseg.io.dicom import read_series
from ctseg.io.toy_dicom import HEAD_CLASSES, PATIENT, clinic_planes, write_series

# %% [markdown]
# A **DICOM SEG** holds masks, frame by frame, with a reference to the slice each belongs to. Here the true classes of a toy series are
# written as one. [Reading](77_dicom_seg_read.ipynb) is another matter, since other programs write them otherwise.

# %%
work = Path(tempfile.mkdtemp())
truth = write_series(work/"ct", clinic_planes()["oblique, unevenly spaced"])
s, hu = read_series(work/"ct")
print(hu.shape, "classes:", np.unique(truth))

# %% [markdown]
# ## What a segment says
#
# A class that has no SNOMED code gets a private one, as the standard asks.

# %%
#| export
_ALGORITHM = ("123109", "DCM", "Artificial Intelligence")  # code, scheme, meaning

def _code(concept):
    "A SNOMED concept as pydicom writes it."
    return import_volumes_package("pydicom.sr.coding").Code(concept.code, "SCT", concept.meaning)

def _private_code(name: str):
    "A code of our own for a class that SNOMED does not know, from its name: at most 16 characters."
    value = name.upper()
    if len(name) > 16: value = f"{value[:8]}{zlib.crc32(name.encode()):08X}"
    return import_volumes_package("pydicom.sr.coding").Code(value, "99CTSEG", name[:64])


# %%
print(_code(snomed("brain").structure))
print(_private_code("tumour"), _private_code("lymph_node_of_level_two"))


# %% [markdown]
# The side is a modifier of the structure. Of a cyst or an effusion it is a modifier of the region.

# %%
#| export
def _add_side(description, codes: StructureCodes):
    "Write the side of a class into the description of its segment."
    if not codes.side: return
    modifier = import_volumes_package("highdicom").sr.CodedConcept.from_code(_code(codes.side))
    if codes.side_of_region:
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [modifier]
    else:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [modifier]


# %%
#| export
def _describe(number: int, name: str, colour: np.ndarray):
    "A segment's description: its name, codes and colour (uint8 [3], RGB)."
    hd, Code = import_volumes_package("highdicom"), import_volumes_package("pydicom.sr.coding").Code
    codes = snomed(name)
    description = hd.seg.SegmentDescription(
        number, name[:64],
        segmented_property_category=_code(codes.category),
        segmented_property_type=_code(codes.structure) if codes.structure else _private_code(name),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence("ctseg", Code(*_ALGORITHM), __version__),
        anatomic_regions=[_code(codes.region)] if codes.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*map(int, colour)))
    _add_side(description, codes)
    return description


# %%
for name in ("eye_left", "Eye_L", "kidney_cyst_left"):
    segment = _describe(1, name, HEAD_CLASSES.colours[3])
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    owner = segment.AnatomicRegionSequence[0] if "AnatomicRegionSequence" in segment else kind
    modifiers = owner.get("SegmentedPropertyTypeModifierCodeSequence") or owner.AnatomicRegionModifierSequence
    print(segment.SegmentLabel, "|", kind.CodeMeaning, "|", modifiers[0].CodeMeaning, owner.CodeMeaning)

# %% [markdown]
# ## Nobody's name
#
# highdicom would copy the patient's name, number and dates from the scan into the segmentation. It is handed
# [headers](73_result_header.ipynb) from which all that is left out.

# %%
#| export
_ABOUT = {
    "manufacturer": "ctseg",
    "manufacturer_model_name": "ctseg",
    "software_versions": __version__,
    "device_serial_number": "0",
    "series_number": 100,
    "instance_number": 1,
    "content_label": "CTSEG",
    "content_description": "Made by ctseg; not a diagnosis",
    "series_description": "Segmentation by ctseg",
}


# %%
#| export
def _slice_mm(series: Series) -> float:
    "How far the slices of a series are apart, mm."
    return round(float(abs(series.affine[:3, 2] @ series.normal)), 6)


# %%
print(_slice_mm(s))


# %%
#| export
def make_segmentation(
    series: Series,
    labels: np.ndarray, # uint8 [columns, rows, slices], class ids
    classes: ClassMap,
    id: str, # the name of the volume, written as the patient's number
    keep_patient: bool = False, # copy what the scan says of the patient and the study
):
    """A DICOM SEG of a label map, with a segment for each class that occurs.

    Raises `InputError` if the CT cannot be referred to.
    """
    hd = import_volumes_package("highdicom")
    headers = list(series.headers)  # each is read from its file
    check_referable(headers, id, "SEG")
    ids = [int(i) for i in np.unique(labels) if i]
    number = np.zeros(256, np.uint8)
    number[ids] = range(1, len(ids) + 1)
    segments = [_describe(n, classes.name(i), classes.colours[i]) for n, i in enumerate(ids, 1)]
    sources = [result_header(header, id, keep_patient) for header in headers]
    for source in sources:  # viewers need one; the scan may lack it
        source.SliceThickness = source.SliceThickness or _slice_mm(series)
    frames = number[labels].transpose(2, 1, 0)
    uids = {"series_instance_uid": hd.UID(), "sop_instance_uid": hd.UID()}
    try:
        segmentation = hd.seg.Segmentation(sources, frames, "BINARY", segments, **uids, **_ABOUT)
    except (ValueError, TypeError, AttributeError) as e:
        problem = f"no DICOM SEG can refer to its slices ({printable(str(e))})"
        raise InputError(f"{id}: {problem}; use export nifti") from None
    segmentation.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of classes may be in any script
    return segmentation


# %%
seg = make_segmentation(s, truth, HEAD_CLASSES, "v000")
seg.save_as(work/"seg.dcm")
print(
    [d.SegmentLabel for d in seg.SegmentSequence], "in", len(seg.PerFrameFunctionalGroupsSequence), "frames"
)
written = (work/"seg.dcm").read_bytes()
assert not any(value.encode() in written for value in PATIENT.values())
named = make_segmentation(s, truth, HEAD_CLASSES, "v000", keep_patient=True)
print(named.PatientName, named.PatientID, named.StudyDate, "|", named.SeriesDescription)


# %% [markdown]
# ## A whole submission
#
# The series of the source are found again by their digest. The whole way, from an import to predictions in a viewer, is in
# [DICOM import](78_dicom_import.ipynb).

# %%
#| export
def _series_of(volume, series: dict[str, Series], folder, source) -> Series:
    "The series that a volume was imported from; `InputError` if it is not there."
    if volume.entry["kind"] != "dicom":
        raise InputError(f"{folder}: volume {volume.id} was not imported from DICOM; use export nifti")
    digest = volume.entry["digest"]
    if digest in series and len(set(series[digest].uids)) < len(series[digest].uids):
        raise InputError(f"{folder}: the slices of volume {volume.id} share one number, "
                         "as in an enhanced CT, so nothing can refer to one of them; use export nifti")
    if digest not in series:
        raise InputError(f"{source}: the series of volume {volume.id} is not in it, "
                         "or its files have changed; "
                         "give the folder it was imported from")
    return series[digest]


# %%
#| export
def export_to_series(
    masks, # a submission (CSV), or uint8 [N,H,W] in the order of the images
    folder, # the challenge folder with its `index.json`
    source, # the DICOM folder it was imported from
    out, # the folder for the files, new
    split: str, # the images that the masks belong to
    write: Callable, # of a series, its labels, the classes, the volume's name and the folder: writes a file
) -> dict[str, int]: # volume → number of structures; no file is written for one with none
    "Put predicted masks back onto their DICOM series, one volume at a time."
    names = Path(folder)/"class_names.json"
    if not names.exists():
        remedy = "put the one of the run's data there, or import again with --classes RUN"
        raise InputError(f"{names}: no such file, and a file for an archive names its structures; {remedy}")
    out, classes, facts = new_folder(out), read_classes(folder), {}
    found, _ = find_series(Path(source), gaps=True, skip_damaged=True)
    series = {one.series.digest: one.series for one in found}
    with atomic_path(out, new=True) as tmp:
        tmp.mkdir()
        for volume in predicted_volumes(masks, folder, split):
            its_series = _series_of(volume, series, folder, source)
            facts[volume.id] = len(np.unique(volume.labels[volume.labels > 0]))
            if not facts[volume.id]: continue
            write(its_series, volume.labels, classes, volume.id, tmp)
    return facts


# %%
#| export
def export_dicom_seg(
    masks, # a submission (CSV), or uint8 [N,H,W] in the order of the images
    folder, # the challenge folder with its `index.json`
    source, # the DICOM folder it was imported from
    out, # the folder for `v000.dcm`, …, new
    split: str = "test", # the images that the masks belong to
    keep_patient: bool = False, # copy what the scans say of the patient and the study
) -> dict[str, int]: # volume → number of segments; no file is written for one with none
    "Put predicted masks back onto their DICOM series as DICOM SEG, without the patient's name and dates unless asked."
    import_volumes_package("highdicom")

    def write(series, labels, classes, id, tmp):
        make_segmentation(series, labels, classes, id, keep_patient).save_as(tmp/f"{id}.dcm")
    return export_to_series(masks, folder, source, out, split, write)


# %%
del s.headers[0].FrameOfReferenceUID
test_fail(lambda: make_segmentation(s, truth, HEAD_CLASSES, "v000"), contains="no FrameOfReferenceUID")
shutil.rmtree(work)
