# %% [markdown]
# # The parts of a DICOM SEG
#
# > What its segments are called, and whether its parts fit together.

# %%
#| default_exp io.seg_parts

# %%
#| export
from ctseg.io.dicom_headers import Misfit

# %%
#| hide
import pydicom
from fastcore.test import test_fail


# %% [markdown]
# A DICOM SEG is the DICOM form of a segmentation: a list of *segments*, one for each structure, and *frames*, one for each slice and segment. This page reads the list, and checks
# whether several SEG files belong together. [The next page](77_dicom_seg_read.ipynb) reads the pixels.
#
# ## Segments
#
# A segment has a number and a label. Where the label is empty, the description or the code tells what it is. Number 0 is the background of a
# label map, not a structure.

# %%
#| export
def _meaning(segment) -> str:
    "The meaning of a segment's code, with its side."
    codes = segment.get("SegmentedPropertyTypeCodeSequence") or []
    if not codes: return ""
    structure = codes[0]
    sides = structure.get("SegmentedPropertyTypeModifierCodeSequence") or []
    words = []
    for code in [structure, *sides[:1]]:
        word = code.get("CodeMeaning")
        if word: words.append(word)
    return " ".join(words)

def _name_of(segment) -> str:
    "The first text that names a segment, \"\" if none does."
    label = segment.get("SegmentLabel")
    description = segment.get("SegmentDescription")
    for text in (label, description, _meaning(segment)):
        name = str(text or "").strip()
        if name: return name
    return ""

def _numbered(header) -> list[tuple]:
    "The segments of a DICOM SEG with their numbers; one without takes that of its place."
    numbered = []
    for place, segment in enumerate(header.get("SegmentSequence") or [], 1):
        given = segment.get("SegmentNumber")
        number = place if given is None else int(given)
        if number: numbered.append((number, segment))
    return numbered

def segment_names(header) -> dict[int, str]:
    "The names of the segments of a DICOM SEG by their numbers."
    names = {}
    for number, segment in _numbered(header):
        names[number] = _name_of(segment) or f"segment {number}"
    return names


# %%
def segment(**tags):
    "A segment as a file lists it."
    one = pydicom.Dataset()
    for tag, value in tags.items(): setattr(one, tag, value)
    return one

seg = segment(NumberOfFrames=3, SegmentSequence=[
    segment(SegmentNumber=0, SegmentLabel="Background"),
    segment(SegmentNumber=1, SegmentLabel="Liver"),
    segment(SegmentNumber=4, SegmentLabel="", SegmentDescription="left kidney"),
])
print(segment_names(seg))


# %% [markdown]
# ## Counts
#
# A file whose parts contradict each other would be read as something: frames of which nobody knows where they lie would be missing, and
# what is drawn on them absent. So the parts are counted.

# %%
#| export
def check_seg_counts(header):
    "Raise `Misfit` for a SEG with frames of unknown place, without segments, or with two of one number."
    frames = int(header.get("NumberOfFrames") or 0)
    places = len(header.get("PerFrameFunctionalGroupsSequence") or [])
    if frames != places:
        raise Misfit(f"its SEG has {frames} frames and says of {places} where they lie; export it again")
    segments = _numbered(header)
    if frames and not segments:
        raise Misfit("its SEG does not say what its segments are (SegmentSequence); export it again")
    if len(segment_names(header)) < len(segments):
        raise Misfit("its SEG has two segments of one number; export it again")

def check_length(header):
    "Raise `Misfit` for pixels that are not compressed and are more or fewer than header and frames say."
    values = int(header.NumberOfFrames)*int(header.Rows)*int(header.Columns)
    expected = (values*int(header.BitsAllocated) + 7)//8
    length = len(header.PixelData)
    if length not in (expected, expected + expected % 2):
        raise Misfit(f"its SEG holds {length} bytes of pixels, expected {expected}; "
                     "it is cut off or its size is wrong, export it again")


# %%
test_fail(lambda: check_seg_counts(seg), contains="of 0 where they lie")
seg.Rows = seg.Columns = seg.BitsAllocated = 8
seg.PixelData = bytes(190)
test_fail(lambda: check_length(seg), contains="expected 192")
seg.PerFrameFunctionalGroupsSequence = [segment() for _ in range(3)]
check_seg_counts(seg)
seg.SegmentSequence[1].SegmentNumber = 4
test_fail(lambda: check_seg_counts(seg), contains="two segments of one number")
