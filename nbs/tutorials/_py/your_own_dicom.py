# %% [markdown]
# # Your own DICOM, partly contoured
#
# > From a folder of scans and half-finished contours to a segmentation that a viewer lays over the scan.

# %% [markdown]
# In a clinic contours are drawn for a purpose. For one patient the eyes mattered, for another the brain. Nobody draws everything, and most scans have no contours at all. `ctseg` is made for such a collection, and
# this page takes one through the whole package. It needs the extra `volumes`: `pip install "ctseg[volumes] @ git+https://github.com/ctseg/ctseg"`, or in a clone `pip install -e '.[volumes]'`.
#
# - **What counts as known?** A structure with at least one contour in a patient's RTSTRUCT or SEG was *examined in that patient*. It is certainly **absent** on the slices above its last contour and below its first. A slice
#   between two contours that has none itself may have been left for the planning system to fill in, so there the structure is **unknown**. A structure without any contour is unknown in the whole patient, and the network learns nothing about it there.
# - **Which recipe?** On your own data, the default. This page uses a supervised one to be quick.
# - **What leaves the scanner's files?** Pixels and geometry. `ctseg` writes no names, numbers or dates of patients into any file, message or log, unless you ask for it at the end.
# - **What else may lie in the folder?** Anything. Dose reports, scouts, reformats in other planes, MR, archives: what is no axial CT is passed over and counted, and labels of any program are laid where they say that they lie.

# %%
#| hide
import os
import shutil
import tempfile
from pathlib import Path

import highdicom as hd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pydicom
from fastcore.test import test_eq
from skimage.measure import find_contours

from ctseg.core.errors import InputError
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.core.style import show_states, state_legend, states_of
from ctseg.data.challenge import read_challenge
from ctseg.io.dicom import read_series
from ctseg.io.dicom_import import import_dicom
from ctseg.io.dicom_seg_read import read_segments
from ctseg.io.rtstruct import draw_region, read_regions
from ctseg.io.slicing import Slicing
from ctseg.io.toy_dicom import HEAD_CLASSES, head_planes, write_contours, write_series
from ctseg.metrics.challenge import dice_table
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings
from ctseg.segmentation import segment

work = Path(tempfile.mkdtemp())
os.chdir(work)

# %% [markdown]
# ## A clinic to play with
#
# No patient's scan can be shown here, so we use the [toy clinic](../io/68_toy_dicom.ipynb): a head made of ellipsoids, written as a scanner writes a CT series, one file a slice, with shuffled names. Each patient's head has its own size and place. A doctor then outlines
# **some** structures, as an RTSTRUCT in the clinic's own spelling. If you have your own folder, skip to the next section.

# %%
#| code-fold: true
#| code-summary: "The scanner and the doctor"
SLICES = 14

def scan(folder, name, seed):
    "Scan a patient into a folder; the true classes, uint8 [columns, rows, slices]."
    rng = np.random.default_rng(seed)
    planes = head_planes(SLICES, gaps=13.)
    planes.positions += rng.uniform(-6, 6, 3)  # nobody lies exactly in the middle
    patient = dict(PatientName=name, PatientID=f"ID-{name}")
    grid = dict(shape=(54, 44), spacing=(4., 4.))
    return write_series(folder, planes, size=rng.uniform(.88, 1.06), **grid, **patient)

def outline(folder, truth, drawn):
    "Write an RTSTRUCT with the structures `drawn`, class → the clinic's name for it."
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir()]
    headers.sort(key=lambda header: header.InstanceNumber)
    rings = {}
    for c, name in drawn.items():
        rings[name] = []
        for k in range(SLICES):
            mask = np.pad(truth[..., k] == c, 1).astype(float)
            rings[name] += [(k, ring - 1) for ring in find_contours(mask, .5)]
    write_contours(folder/"contours", headers, rings)


# %% [markdown]
# There are nine patients: seven with contours of two structures out of four, and two with none. We want a segmentation of two new patients. We keep their truth to ourselves, for the score at the end.

# %%
SPELLING = {"skull": "Skull", "brain": "Brain", "eye_right": "Auge re", "eye_left": "Auge li"}
DRAWN = [
    ("skull", "brain"),
    ("brain", "eye_left"),
    ("eye_right", "eye_left"),
    ("skull", "eye_right"),
    ("brain", "eye_right"),
    ("skull", "eye_left"),
    ("skull", "brain"),
    (),
    (),
]
for i, names in enumerate(DRAWN):
    folder = Path(f"clinic/patient{i}")
    truth = scan(folder, f"Doe^{i}", seed=i)
    if names:
        outline(folder, truth, {HEAD_CLASSES.id(name): SPELLING[name] for name in names})
new_truth = [scan(Path(f"new/patient{i}"), f"Roe^{i}", seed=100 + i) for i in range(2)]
for folder in sorted(Path("clinic").iterdir())[:3]:
    files = sorted(path.name for path in folder.iterdir())
    print(f"{folder}/  {', '.join(files[:4])} … {len(files)} files")

# %% [markdown]
# ## 1. Import
#
# The clinic's spelling is translated by `rename`; without it, `Auge li` would become a class `auge_li`. The class list says which structures you want and in which order. Without it you get every structure found. So if you do not know how your clinic spells, import once without either: the
# `class_names.json` of the result lists all names.
# The window (level 40, width 400 by default) says which Hounsfield units become grey.

# %%
rename = {"Auge re": "eye_right", "Auge li": "eye_left"}
import_dicom("clinic", "heads", Slicing(window="soft"), HEAD_CLASSES, rename)

# %% [markdown]
# In a terminal this is `ctseg import dicom clinic heads --classes class_names.json --rename rename.json`. What the doctor examined, patient by patient, has become `known`, slice by slice:

# %%
#| echo: false
#| label: fig-known
#| fig-alt: "States of four structures on the slices of nine patients; two patients are unknown throughout"
slices = read_challenge("heads")
fig, ax = plt.subplots(figsize=(9.5, 1.9), layout="constrained")
show_states(ax, states_of(slices.present, slices.known).T)
patients = np.arange(len(DRAWN))
for k in patients[1:]:
    ax.axvline(k*SLICES - .5, color="w", lw=2)
ax.set_xticks((patients + .5)*SLICES, [f"patient {k}" for k in patients])
ax.set_yticks(range(4), slices.classes.names)
ax.tick_params(length=0)
state_legend(fig)
plt.show()

# %%
#| hide
test_eq(slices.known.sum(), sum(len(d)*SLICES for d in DRAWN))
for p in Path("heads").rglob("*"):
    if p.is_file():
        content = p.read_bytes()
        assert not any(word in content for word in (b"Doe", b"Planted", b"19370401"))

# %% [markdown]
# Grey-blue teaches as much as dark blue: in patient 0 the brain was drawn, so the slices above and below it say for certain *no brain here*. Pale does not mean background: in patient 0 nobody looked at the eyes.
#
# ::: {.callout-warning}
#
# ## One thing only you can know
#
# An RTSTRUCT does not say whether a structure was contoured *to its ends*. If somebody outlined the spinal cord only near the tumour, the slices beyond would be read as *absent*. Leave such structures off the class list,
# or import them and edit `annotated_labels.json`. It is a plain list of the structures examined on each slice, in the order of the images.
#
# :::
#
# Files that do not make a volume are refused, in one line that names the file and not the patient. Here a slice has been lost:

# %%
shutil.copytree("clinic/patient0", "broken/patient0")
for path in Path("broken/patient0").iterdir():
    if pydicom.dcmread(path, stop_before_pixels=True).get("InstanceNumber") == 7:
        path.unlink()
try:
    import_dicom("broken", "nowhere", Slicing(), HEAD_CLASSES, rename)
except InputError as e:
    print(e)
assert not Path("nowhere").exists()

# %% [markdown]
# ## 2. Train
#
# `masked-log` is a supervised recipe with one yes-or-no question for each structure. Here it is shrunk to a toy, which takes half a minute on a processor. Patients are kept whole: the held-out ones, which serve for the curve and the decision rule, share no slice with the others. Each eye is outlined on six or seven of 126 slices,
# so `rare_power` shows the network the slices with rare structures more often. With your own data leave all these settings out. In a terminal the training is then
#
#     ctseg fit heads --out runs/heads

# %%
settings = ["width=8", "epochs=22", "lr=0.006", "folds=7", "batch_size=7", "image_size=32", "rare_power=0.7"]
run = fit("heads", apply_settings(get_recipe("masked-log"), settings), "runs/heads", progress=False)
run.read_history()[["epoch", "loss", "dice"]].iloc[[0, 9, 21]].round(3)

# %% [markdown]
# ## 3. New patients
#
# `segment` takes runs and folders of scans, in whatever order the archive left them, and writes a result for each series: a DICOM SEG for viewers, an RTSTRUCT for planning systems, or NIfTI. It cuts
# the slices through the window that the run was trained with, and lays the result back onto the scan's own grid. One scan is in memory at a time, so the folder may hold thousands. In a terminal:
#
#     ctseg segment runs/heads new --out results --format dicom-seg --format rtstruct

# %%
result = segment("runs/heads", "new", "results", ["dicom-seg", "rtstruct"])
for scan in result.done:
    print(scan.source, "→", ", ".join(scan.files))

# %% [markdown]
# In a real folder some series broke on their way. Below, one has lost a slice. The others are segmented all the same, the broken one is named, and the command ends with status 3.

# %%
shutil.copytree("new/patient0", "mixed/patient0")
shutil.copytree("broken/patient0", "mixed/patient1")
mixed = segment("runs/heads", "mixed", "mixed_results")
print([scan.name for scan in mixed.done])
for _, problem in mixed.failed:
    print(problem)

# %% [markdown]
# Each result comes with the volume of every structure in millilitres, how sure the network is, and whether the scan cuts it off (`volumes.csv`, `volumes.json`), and with a page to look at (`report.html`).

# %%
pd.read_csv("results/volumes.csv").drop(columns="source").round({"ml": 0, "confidence": 2})

# %% [markdown]
# ## 4. Whose result is it?
#
# A result names the structures in words and in SNOMED CT codes. It points at its scan by the scan's own numbers, so viewers find it. The patient's name, number and dates are left out, and it is called `v000`.
# Inside the hospital that is the wrong choice: an archive would refuse it, or file it under nobody. There, `--keep-patient` copies what the scan says of patient and study, and calls results by the patient's number.

# %%
kept = segment("runs/heads", "new/patient0", "kept", ["dicom-seg", "rtstruct"], keep_patient=True)
for path in ("results/v000.seg.dcm", f"kept/{kept.done[0].files[1]}", "results/v000.rtstruct.dcm"):
    header = pydicom.dcmread(path)
    print(f"{path:27} name {str(header.PatientName)!r:9} number {header.PatientID!r}")

# %%
seg = hd.seg.segread("results/v000.seg.dcm")
print(
    [f"{s.SegmentLabel}: {s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning}" for s in seg.SegmentSequence]
)
contours = pydicom.dcmread("results/v000.rtstruct.dcm")
names = [roi.ROIName for roi in contours.StructureSetROISequence]
print(dict(zip(names, (len(roi.ContourSequence) for roi in contours.ROIContourSequence))), "contours")

# %%
#| hide
for p in Path("results").rglob("*"):
    assert not any(word in p.read_bytes() for word in (b"Roe", b"Planted", b"19370401")), p
scans = {f"v{i:03}": Path(f"new/patient{i}") for i in range(2)}
for name, folder in scans.items():
    series, _ = read_series(folder)
    drawn = {one.name: one.mask for one in read_segments(Path(f"results/{name}.seg.dcm"), series).structures}
    for region in read_regions(pydicom.dcmread(f"results/{name}.rtstruct.dcm")):
        test_eq(draw_region(series, region).mask, drawn[region.name])


# %% [markdown]
# Any viewer can open the file over the scan. Here another program reads it: four slices of the first new patient, above the truth that the network never saw.

# %%
#| hide
def read_back(i):
    "Of patient i what another program reads: labels, truth [slice, row, column] and Hounsfield units."
    series = [pydicom.dcmread(path) for path in Path(f"new/patient{i}").iterdir()]
    series.sort(key=lambda image: image.ImagePositionPatient[2])
    numbers = [image.SOPInstanceUID for image in series]
    seg = hd.seg.segread(f"results/v{i:03}.seg.dcm")
    drawn = seg.get_pixels_by_source_instance(numbers, assert_missing_frames_are_empty=True)
    labels = np.zeros(drawn.shape[:3], np.uint8)
    for k, segment in enumerate(seg.SegmentSequence):
        labels[drawn[..., k] > 0] = HEAD_CLASSES.id(str(segment.SegmentLabel))
    hu = [image.pixel_array*2. - 1024 for image in series]
    return labels, new_truth[i].T, hu


# %%
#| echo: false
#| label: fig-seg
#| fig-alt: "Four slices of a new patient: the structures of the DICOM SEG above, the truth below"
labels, true, hu = read_back(0)
fig, axes = image_grid(2, 4)
for column, k in zip(axes.T, (3, 5, 7, 10)):
    grey = 255*((hu[k] - 40)/400 + .5)
    show_image(column[0], overlay(grey, labels[k], HEAD_CLASSES), f"slice {k}")
    show_image(column[1], overlay(grey, true[k], HEAD_CLASSES))
axes[0, 0].set_ylabel("the SEG")
axes[1, 0].set_ylabel("truth")
class_legend(fig, HEAD_CLASSES)
plt.show()


# %%
def volume_dice(i):
    "The Dice of each structure in the whole scan of patient i."
    labels, true, _ = read_back(i)
    one_image = dice_table(labels.reshape(1, 1, -1), true.reshape(1, 1, -1), len(HEAD_CLASSES))
    return dict(zip(HEAD_CLASSES.names, one_image[0]))

score = pd.DataFrame([volume_dice(i) for i in range(2)], ["new patient 0", "new patient 1"]).round(2)
score

# %%
#| hide
assert (score.min() > .5).all()

# %% [markdown]
# Every structure was learnt, although no patient had more than two of them contoured. Nobody had to say *no eyes* about the patients whose eyes were not examined.
#
# ## Where to go from here
#
# | you want to | |
# |---|---|
# | know how contours become masks, and what is refused | [DICOM](../io/78_dicom_import.ipynb) |
# | use the scans without any contour | they are in the folder already: take the default recipe, or another that [uses unlabelled slices](../guides/choosing_a_recipe.ipynb) |
# | NIfTI, OpenKBP, TotalSegmentator | [NIfTI](../io/65_nifti_import.ipynb), [OpenKBP](../io/80_openkbp.ipynb), [TotalSegmentator](../io/85_totalsegmentator.ipynb), `ctseg import --help` |
# | know what else `segment` can do | [the guide](../guides/segment.ipynb) |
# | go the long way: cut, predict to a CSV, put it back | `ctseg import dicom`, `ctseg predict`, `ctseg export dicom-seg`; the voxels are the same |
# | keep a table of which volume was which patient | `ctseg import … --key private.csv`, written outside the challenge folder |
# | understand *unknown* | [three states, not two](../explanations/three_states.ipynb) |
