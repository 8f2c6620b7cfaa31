# %% [markdown]
# # Whether contours fit
#
# > What an RTSTRUCT says of the place of its contours beside their points, and what is told where the two differ.

# %%
#| default_exp io.rt_places

# %%
#| export
import numpy as np

from ctseg.io.dicom_seg_read import off_slices_note
from ctseg.io.dicom_series import Series, in_other_frame
from ctseg.io.rtstruct import Region, half_step, off_plane

# %%
#| hide
import shutil
import tempfile
from pathlib import Path

from fastcore.test import test_eq

from ctseg.io.dicom import read_series
from ctseg.io.toy_dicom import clinic_planes, write_series

# %% [markdown]
# The points of a contour are millimetres in some *frame of reference*, mostly that of the scan. A structure set may hold structures of
# several frames, such as those drawn on an MR. A contour may also name the slice that it was drawn on.

# %%
work = Path(tempfile.mkdtemp())
write_series(work/"ct", clinic_planes()["axial"])
s, _ = read_series(work/"ct")
lps = s.slice_origins()*[-1, -1, 1]
square = np.array([[20, 20, 0], [60, 20, 0], [60, 60, 0], [20, 60, 0]])
rings = [square + lps[k] for k in (5, 6)]
liver = Region("liver", rings, named=(s.uids[5], s.uids[6]))


# %%
#| export
def _off_named(series: Series, region: Region) -> list[float]:
    "For each ring by how many mm it lies off the slice that it names; NaN if it names none of them."
    heights = series.slice_origins() @ series.normal
    one_each = len(set(series.uids)) == len(heights)
    places = dict(zip(series.uids, heights)) if one_each else {}
    off = []
    for points, uid in zip(region.rings, region.named):
        ras = points*[-1, -1, 1]
        middle = np.mean(ras @ series.normal)
        place = places.get(uid, np.nan)
        off.append(abs(float(middle - place)))
    return off


# %%
wrong = liver._replace(named=(s.uids[5], s.uids[9]))
print(np.round(_off_named(s, liver), 2), np.round(_off_named(s, wrong), 2))


# %% [markdown]
# Some programs that remove names give scan and contours different frames by mistake. So a structure of another frame is used only where each of
# its contours lies on the slice that it names; any other is not used, and told.

# %%
#| export
def in_other_space(series: Series, region: Region) -> bool:
    "Are the millimetres of a region counted in another frame of reference than those of the series?"
    if not in_other_frame(series, region.space): return False
    off = _off_named(series, region)
    most = half_step(series)
    near = [mm <= most for mm in off]
    return sum(near) < len(region.rings)


# %%
on_mr = liver._replace(space="1.2.3", named=("9.9", "9.8"))
print([in_other_space(s, region) for region in (liver, liver._replace(space="1.2.3"), on_mr)])


# %% [markdown]
# ## What is told
#
# What lies beyond the scan is left out, as it must be, and counted.

# %%
#| export
def _count_beyond(series: Series, regions: list[Region]) -> tuple[int, int]:
    "How many contours lie beyond the slices, and how many reach beyond their pixels by more than one."
    size = np.array(series.shape[:2])
    beyond = beside = 0
    rings = [points for region in regions for points in region.rings]
    for points in rings:
        located = series.locate(points)
        pixels, slices = located[:, :2], located[:, 2]
        first, last = pixels.min(0), pixels.max(0)
        outside = (first < -1) | (last > size)
        if np.median(slices) < 0:
            beyond += 1
        elif outside.any():
            beside += 1
    return beyond, beside


# %%
print(_count_beyond(s, [liver, liver._replace(rings=[ring + [0, 0, 500] for ring in rings])]))


# %%
#| export
def rejected_notes(header) -> list[str]:
    "What to tell of a structure set that somebody has looked at and rejected."
    status = str(header.get("ApprovalStatus") or "").strip().upper()
    if status != "REJECTED": return []
    return ["its RTSTRUCT is marked as rejected; its contours were taken all the same, "
            "take it away if they are wrong"]


# %%
print([len(rejected_notes({"ApprovalStatus": status})) for status in ("APPROVED", "rejected ", None)])


# %%
#| export
def _left_out_notes(series: Series, regions: list[Region]) -> list[str]:
    "What to tell of contours that are not drawn, or in part."
    notes = []
    total = sum(len(region.rings) for region in regions)
    beyond, beside = _count_beyond(series, regions)
    of_all = f"of {total} contours of its RTSTRUCT"
    if beyond:
        notes.append(f"{beyond} {of_all} lie beyond the slices and were left out")
    if beside:
        notes.append(f"{beside} {of_all} reach beyond the pixels of the slices")
    lines = sum(len(region.lines) for region in regions)
    if lines:
        notes.append(f"{lines} contours of its RTSTRUCT enclose no area (open ones, or points) and were left "
                     "out; where they lie their structures are unknown")
    return notes


# %%
outside = [liver._replace(rings=[square + [0, 0, 900], square + [900, 0, 0]], lines=(square[:2],))]
print(_left_out_notes(s, outside))


# %%
#| export
def _astray_notes(series: Series, regions: list[Region]) -> list[str]:
    "What to tell of contours that lie off the slices they name."
    every = [mm for region in regions for mm in _off_named(series, region)]
    most = half_step(series)
    astray = [mm for mm in every if mm > most]
    if not astray: return []
    return [f"{len(astray)} contours of its RTSTRUCT lie up to {max(astray):.1f} mm off the slices "
            "that they name; they were put where their points are"]

def contour_notes(series: Series, regions: list[Region]) -> list[str]:
    "What to tell of the contours that are drawn on a series, in words."
    off = max((off_plane(series, region) for region in regions), default=0.)
    notes = off_slices_note(off, series, "contours of its RTSTRUCT")
    notes += _astray_notes(series, regions)
    if any(in_other_frame(series, region.space) for region in regions):
        notes.append("its RTSTRUCT says that it lies in another frame of reference than the series; "
                     "its contours were put on the slices that they name")
    return notes + _left_out_notes(series, regions)


# %%
test_eq(contour_notes(s, [liver]), [])
far = liver._replace(rings=[rings[0], rings[1] + [0, 0, 500]], named=())
for region in (wrong, liver._replace(space="1.2.3"), far):
    print(contour_notes(s, [region]))
shutil.rmtree(work)
