# %% [markdown]
# # What a label is about
#
# > Contours and segmentations say which scan they were drawn on, each program in its own way.

# %%
#| default_exp io.dicom_references

# %%
#| export
from collections.abc import Iterator
from dataclasses import dataclass, field

from ctseg.io.dicom_headers import DicomFile, vr_of
from ctseg.io.dicom_heap import sop_class
from ctseg.io.dicom_series import Series
from ctseg.io.volumes import import_volumes_package

# %%
#| hide
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pydicom
from fastcore.test import test_eq

from ctseg.io.dicom_heap import read_heap
from ctseg.io.dicom_series import make_series, slices_in
from ctseg.io.toy_dicom import head_planes, write_contours, write_series


# %% [markdown]
# A folder may hold several scans of one patient, and contours or segmentations of some of them. The DICOM standard lets a label object name its series, but does not demand it.
# It may name the slices instead, or only the *frame of reference* (the space in which its millimetres are counted), or just the study. We collect all that it says.

# %%
#| export
@dataclass
class References:
    "What a label object says of the scan it was drawn on."
    series: set[str] = field(default_factory=set)
    instances: set[str] = field(default_factory=set)
    frames: set[str] = field(default_factory=set) # of reference
    study: str = ""

def _items(dataset) -> Iterator:
    "A data set and all items of its sequences, at any depth. Nothing else is parsed."
    yield dataset
    for tag in dataset.keys():
        if vr_of(dataset, tag) != "SQ": continue
        for item in dataset[tag].value or []:
            yield from _items(item)


# %%
#| export
_FRAMES = ("FrameOfReferenceUID", "ReferencedFrameOfReferenceUID")

def references(header) -> References:
    "What a label object says of the scan it was drawn on."
    found = References()
    found.study = str(header.get("StudyInstanceUID") or "")
    for item in _items(header):
        for tag in _FRAMES:
            if item.get(tag):
                found.frames.add(str(item[tag].value))
        if item.get("ReferencedSOPInstanceUID"):
            found.instances.add(str(item.ReferencedSOPInstanceUID))
        if item is not header and item.get("SeriesInstanceUID"):
            found.series.add(str(item.SeriesInstanceUID))
    return found


# %%
work = Path(tempfile.mkdtemp())
for name in ("a", "b"): write_series(work/name, head_planes(3))
both = [make_series(slices_in(read_heap(work/name)), work) for name in ("a", "b")]
write_contours(work/"contours", both[1].headers, {"Ring": [(1, np.array([[9, 9], [20, 9], [20, 20]]))]})
told = references(pydicom.dcmread(work/"contours"))
print("the contours name series b:", told.series == {both[1].number}, "and", len(told.instances), "slice")
test_eq(told.series, {both[1].number})


# %% [markdown]
# The most exact information counts: the series; else the slices; else the frame of reference, if only one series has it; else the study, if it has one
# series only. A label that names a missing series belongs to none of the scans.

# %%
#| export
def _only(candidates: list[int]) -> list[int]:
    "The one candidate, or none."
    return candidates if len(candidates) == 1 else []

def _with_element(all_series: list[Series], tag: str, wanted: set[str]) -> list[int]:
    "The numbers of the series whose first header has one of these values."
    values = [str(series.headers[0].get(tag) or "") for series in all_series]
    return [k for k, value in enumerate(values) if value in wanted]


# %%
#| export
def _share_most_slices(told: References, all_series: list[Series]) -> list[int]:
    "The numbers of the series with most of the slices named; none if none has one."
    shared = [len(told.instances.intersection(series.uids)) for series in all_series]
    most = max(shared, default=0)
    if not most: return []
    return [k for k, count in enumerate(shared) if count == most]

def _has_space(series: Series) -> bool:
    "Does a series say in which space its millimetres are counted?"
    return bool(series.headers[0].get("FrameOfReferenceUID"))

def find_about(told: References, all_series: list[Series]) -> list[int]:
    "The numbers of the series that a label object is about, in the list given; none if that cannot be told."
    named = [k for k, series in enumerate(all_series) if series.number in told.series]
    if named: return named
    by_slices = _share_most_slices(told, all_series)
    if by_slices: return by_slices
    if told.series: return []  # it names a series that is not there
    same_space = _with_element(all_series, "FrameOfReferenceUID", told.frames)
    if same_space: return _only(same_space)
    studies = {told.study, *told.instances} - {""}
    same_study = _with_element(all_series, "StudyInstanceUID", studies)
    in_other_space = told.frames and any(_has_space(all_series[k]) for k in same_study)
    if in_other_space: return []
    return _only(same_study)


# %%
slices, frame = both[1].uids, both[1].headers[0].FrameOfReferenceUID
study = both[0].headers[0].StudyInstanceUID
some = [
    told,
    References(instances={slices[2]}),
    References(frames={frame}),
    References(study=study),
    References(series={"1.2"}, frames={frame}),
]
print([find_about(each, both) for each in some])


# %% [markdown]
# Contours of a patient fill megabytes. Once it is known what they are about, only their kind is remembered.

# %%
#| export
def slim_label(file: DicomFile) -> DicomFile:
    "A label object of which the header says nothing but its kind."
    slim = import_volumes_package("pydicom").Dataset()
    structure_set = "ROIContourSequence" in file.header or "StructureSetROISequence" in file.header
    likely = "RTSTRUCT" if structure_set else "SEG"
    slim.Modality = str(file.header.get("Modality") or likely)
    slim.SOPClassUID = sop_class(file.header)
    return file._replace(header=slim)


# %%
print(slim_label(DicomFile(work/"contours", pydicom.dcmread(work/"contours"))).header)
shutil.rmtree(work)
