# %% [markdown]
# # Your own DICOM, partly contoured
#
# > From a folder of scans and half-finished contours to a segmentation that a viewer lays over the scan.

# %% [markdown]
# In a clinic contours are drawn for a purpose. For one patient the eyes mattered, for another the brain. Nobody draws everything, and most scans have no contours at all. `ctseg` is made for such a collection, and
# this page takes one through the whole package. It needs the optional part: `pip install -e '.[volumes]'` in the clone.
#
# - **What counts as known?** A structure with at least one contour in a patient's RTSTRUCT or SEG was *examined in that patient*. It is certainly **absent** on the slices above its last contour and below its first. A slice
#   between two contours that has none itself may have been left for the planning system to fill in, so there the structure is **unknown**. A structure without any contour is unknown in the whole patient, and the network learns nothing about it there.
# - **Which recipe?** On your own data, the default. This page uses a supervised one to be quick.
# - **What leaves the scanner's files?** Pixels and geometry. `ctseg` writes no names, numbers or dates of patients into any file, message or log.

# %%
#| hide
import os, shutil, tempfile
from pathlib import Path
import highdicom as hd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pydicom
from fastcore.test import test_eq
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from skimage.measure import find_contours
from ctseg.core.anatomy import ClassMap
from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.io.dicom_seg import export_dicom_seg
from ctseg.io.dicom_import import import_dicom
from ctseg.core.files import InputError
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings
from ctseg.io.slicing import Slicing
work = Path(tempfile.mkdtemp())
os.chdir(work)

# %% [markdown]
# ## A clinic to play with
#
# No patient's scan can be shown here, so we make a scanner. It builds heads from ellipsoids, different for each patient, and writes each as a CT series of 14 files with shuffled names, as archives do. A doctor then outlines
# **some** structures, as an RTSTRUCT in the clinic's own spelling. If you have your own folder, skip to the next section.

# %%
#| code-fold: true
#| code-summary: "The scanner and the doctor"
SHAPE, SPACING, SLICES, STEP = (56, 48), (4.0, 4.0), 14, 13.0

def head(seed):
    "Hounsfield units [slice, row, column] and a mask for each of four structures."
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:SLICES, :SHAPE[0], :SHAPE[1]].astype(float)
    z, y, x = (z - (SLICES - 1)/2)*STEP, (y - SHAPE[0]/2)*SPACING[0], (x - SHAPE[1]/2)*SPACING[1]
    size, (dy, dx) = rng.uniform(.88, 1.06), rng.uniform(-6, 6, 2)
    inside = lambda c, r: (((x - dx)/size - c[0])/r[0])**2 + (((y - dy)/size - c[1])/r[1])**2 + ((z/size - c[2])/r[2])**2 < 1
    bone, brain = inside((0, 0, 0), (72, 92, 86)), inside((0, 0, 0), (64, 84, 78))
    air = inside((0, -52, -42), (14, 20, 12))
    eyes = {f"eye {side}": inside((sign*32, -72, -20), (19, 18, 24)) for side, sign in (("right", -1), ("left", 1))}
    hu = np.full(x.shape, -1000.)
    for mask, value in [(inside((0, 0, 0), (80, 100, 94)), 50), (bone, 900), (brain, 36), *((m, 95) for m in eyes.values()), (air, -950)]: hu[mask] = value
    brain &= ~air & ~eyes["eye left"] & ~eyes["eye right"]
    return hu + rng.normal(0, 18, hu.shape), {"skull": bone & ~brain & ~air & ~eyes["eye left"] & ~eyes["eye right"], "brain": brain, **eyes}

def item(**tags):
    d = pydicom.Dataset()
    for k, v in tags.items(): setattr(d, k, v)
    return d

def new_file(kind, name, **tags):
    "A DICOM object of class `kind` with the patient's name in it."
    ds = item(PatientName=name, PatientID=f"ID-{name}", PatientBirthDate="19370401", **tags)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = kind
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return ds

def scan(folder, name, seed):
    "Write one CT series; returns its number and the truth."
    folder.mkdir(parents=True)
    hu, truth = head(seed)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k, file in enumerate(np.random.default_rng(seed).permutation(SLICES)):
        ds = new_file("1.2.840.10008.5.1.4.1.1.2", name, StudyInstanceUID=study, SeriesInstanceUID=series, FrameOfReferenceUID=frame, Modality="CT", InstanceNumber=k + 1,
                      ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], ImagePositionPatient=[0, 0, k*STEP], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=list(SPACING),
                      SliceThickness=STEP, Rows=SHAPE[0], Columns=SHAPE[1], SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=16,
                      HighBit=15, PixelRepresentation=0, RescaleSlope=1, RescaleIntercept=-1024)
        ds.PixelData = (hu[k] + 1024).round().clip(0).astype(np.uint16).tobytes()
        ds.save_as(folder/f"IM{file:03}", enforce_file_format=True)
    return series, truth

def contour(folder, name, series, truth, spelling):
    "Write an RTSTRUCT with the structures in `spelling` (ours -> the clinic's)."
    def rings(mask):
        for k in np.flatnonzero(mask.any((1, 2))):
            for ring in find_contours(np.pad(mask[k], 1).astype(float), .5):
                yield item(ContourGeometricType="CLOSED_PLANAR", ContourData=[f"{v:.3f}" for r, c in ring - 1 for v in (c*SPACING[1], r*SPACING[0], k*STEP)])
    about = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=series)])
    new_file("1.2.840.10008.5.1.4.1.1.481.3", name, Modality="RTSTRUCT",
             ReferencedFrameOfReferenceSequence=[item(RTReferencedStudySequence=[about])],
             StructureSetROISequence=[item(ROINumber=i, ROIName=n) for i, n in enumerate(spelling.values())],
             ROIContourSequence=[item(ReferencedROINumber=i, ContourSequence=list(rings(truth[n]))) for i, n in enumerate(spelling)]).save_as(folder/"contours", enforce_file_format=True)


# %% [markdown]
# There are nine patients: seven with contours of two structures out of four, and two with none. We want a segmentation of two new patients. We keep their truth to ourselves, for the score at the end.

# %%
SPELLING = {"skull": "Skull", "brain": "Brain", "eye right": "Auge re", "eye left": "Auge li"}
DRAWN = [("skull", "brain"), ("brain", "eye left"), ("eye right", "eye left"), ("skull", "eye right"), ("brain", "eye right"), ("skull", "eye left"), ("skull", "brain"), (), ()]

for i, drawn in enumerate(DRAWN):
    series, truth = scan(Path(f"clinic/patient{i}"), f"Doe^{i}", seed=i)
    if drawn: contour(Path(f"clinic/patient{i}"), f"Doe^{i}", series, truth, {n: SPELLING[n] for n in drawn})
new_truth = [scan(Path(f"new/patient{i}"), f"Roe^{i}", seed=100 + i)[1] for i in range(2)]
for folder in sorted(Path("clinic").iterdir())[:3]: print(f"{folder}/  {', '.join(sorted(p.name for p in folder.iterdir())[:4])} … {len(list(folder.iterdir()))} files")

# %% [markdown]
# ## 1. Import
#
# The clinic's spelling is translated by `rename`; without it, `Auge li` would become a class `auge_li`. The class list says which structures you want and in which order. Without it you get every structure found.
# The window (level 40, width 400 by default) says which Hounsfield units become grey.

# %%
classes = ClassMap.from_names(["skull", "brain", "eye_right", "eye_left"])
rename = {"Auge re": "eye_right", "Auge li": "eye_left"}
import_dicom("clinic", "heads", Slicing(window="soft"), classes, rename)

# %% [markdown]
# In a terminal this is `ctseg import dicom clinic heads --classes class_names.json --rename rename.json`. What the doctor examined, patient by patient, has become `known`, slice by slice:

# %%
#| echo: false
#| label: fig-known
slices = read_challenge("heads")
states = np.where(~slices.known, 0, np.where(slices.present, 2, 1))
fig, ax = plt.subplots(figsize=(9.5, 1.9), layout="constrained")
ax.imshow(states.T, cmap=ListedColormap(["#e6eaee", "#9db4c8", "#0b7285"]), aspect="auto", interpolation="nearest", vmin=0, vmax=2)
for k in range(1, len(DRAWN)): ax.axvline(k*SLICES - .5, color="w", lw=2)
ax.set(yticks=range(4), yticklabels=slices.classes.names, xticks=np.arange(len(DRAWN))*SLICES + SLICES/2, xticklabels=[f"patient {k}" for k in range(len(DRAWN))])
ax.tick_params(length=0)
fig.legend(handles=[Patch(color=c, label=n) for n, c in {"present": "#0b7285", "absent": "#9db4c8", "unknown": "#e6eaee"}.items()], loc="outside lower center", ncols=3, frameon=False); plt.show()

# %%
#| hide
test_eq(slices.known.sum(), sum(len(d)*SLICES for d in DRAWN))
for p in Path("heads").rglob("*"):
    if p.is_file(): assert b"Doe" not in p.read_bytes() and b"19370401" not in p.read_bytes()

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
number = lambda p: int(pydicom.dcmread(p, stop_before_pixels=True).get("InstanceNumber", 0))
next(p for p in sorted(Path("broken/patient0").iterdir()) if number(p) == 7).unlink()
try: import_dicom("broken", "nowhere", Slicing(), classes, rename)
except InputError as e: print(e)
assert not Path("nowhere").exists()

# %% [markdown]
# ## 2. Train
#
# `masked-log` is a supervised recipe with one yes-or-no question for each structure. Here it is shrunk to a toy, which takes half a minute on a processor. Patients are kept whole: the held-out ones, which serve for the curve and the decision rule, share no slice with the others. Each eye is outlined on about ten of 126 slices,
# so `rare_power` shows the network the slices with rare structures more often.

# %%
settings = ["width=8", "epochs=30", "lr=0.006", "folds=7", "batch_size=7", "image_size=32", "rare_power=0.7"]
run = fit("heads", apply_settings(get_recipe("masked-log"), settings), "runs/heads", progress=False)
run.read_history()[["epoch", "loss", "dice"]].iloc[[0, 9, 29]].round(3)

# %% [markdown]
# ## 3. New patients
#
# The new patients are imported in the same way and with the same window. All of them are test patients (`test_share=1`). Then they are predicted slice by slice.

# %%
import_dicom("new", "new_heads", Slicing(window="soft"), classes, test_share=1.)
test = read_challenge("new_heads", "test")
prediction = predict_masks(load_predictor("runs/heads"), test.images)
write_masks(prediction, test.names, "submission.csv")

# %% [markdown]
# ## 4. Back onto the scan
#
# `export_dicom_seg` puts every slice back where it came from, in millimetres, and writes one DICOM Segmentation a patient. It names the structures in words and in SNOMED CT codes, and leaves out the patient's name and dates.
# The same on the command line: `ctseg export dicom-seg new_heads segmentations --masks submission.csv --source new`. For NIfTI use `ctseg export nifti`, for a planning system `ctseg export rtstruct`. Steps 3 and 4 are [one command](../guides/segment.ipynb) too: `ctseg segment runs/heads new --out results`.

# %%
export_dicom_seg("submission.csv", "new_heads", "new", "segmentations")

# %%
seg = hd.seg.segread("segmentations/v000.dcm")
print([f"{s.SegmentLabel}: {s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning}" for s in seg.SegmentSequence])
print("patient's name:", repr(str(seg.PatientName)), " patient's number:", seg.PatientID)


# %% [markdown]
# Any viewer can open the file over the scan. Here another program reads it: four slices of the first new patient, above the truth that the network never saw.

# %%
#| hide
def read_back(i):
    "The label map of patient i, [slice, row, column], as another program reads it; the grey slices; the truth."
    series = sorted((pydicom.dcmread(p) for p in Path(f"new/patient{i}").iterdir()), key=lambda d: d.ImagePositionPatient[2])
    seg = hd.seg.segread(f"segmentations/v{i:03}.dcm")
    drawn = seg.get_pixels_by_source_instance([d.SOPInstanceUID for d in series], assert_missing_frames_are_empty=True)
    label = sum((drawn[..., k] > 0)*np.uint8(classes.id(str(s.SegmentLabel))) for k, s in enumerate(seg.SegmentSequence))
    true = sum(new_truth[i][n.replace("_", " ")]*np.uint8(c) for c, n in enumerate(classes.names, 1))
    return label, true, [d.pixel_array.astype(float) - 1024 for d in series]


# %%
#| echo: false
#| label: fig-seg
label, true, hu = read_back(0)
fig, axes = plt.subplots(2, 4, figsize=(9, 5.2), layout="constrained")
for col, k in zip(axes.T, (3, 5, 7, 10)):
    grey = np.repeat((((hu[k] - 40)/400 + .5)*255).clip(0, 255)[..., None], 3, -1)
    for ax, m in zip(col, (label[k], true[k])): ax.imshow(np.where((m > 0)[..., None], .4*grey + .6*classes.colourise(m), grey).astype(np.uint8)); ax.set(xticks=[], yticks=[])
    col[0].set_title(f"slice {k}", fontsize=9)
axes[0, 0].set_ylabel("the SEG"); axes[1, 0].set_ylabel("truth")
fig.legend(handles=[Patch(color=classes.colours[c]/255, label=n) for c, n in enumerate(classes.names, 1)], loc="outside lower center", ncols=4, frameon=False); plt.show()


# %%
def dice(i):
    label, true, _ = read_back(i)
    return {n: 2*((label == c) & (true == c)).sum()/((label == c).sum() + (true == c).sum()) for c, n in enumerate(classes.names, 1)}

score = pd.DataFrame([dice(i) for i in range(2)], [f"new patient {i}" for i in range(2)]).round(2)
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
# | keep a table of which volume was which patient | `ctseg import … --key private.csv`, written outside the challenge folder |
# | understand *unknown* | [three states, not two](../explanations/three_states.ipynb) |
