# %% [markdown]
# # From a scan to a segmentation in one command
#
# > DICOM folders or NIfTI files in; DICOM SEG, RTSTRUCT or NIfTI out, with volumes in millilitres.

# %% [markdown]
# ```sh
# ctseg segment runs/first SCANS --out results
# ```
#
# `SCANS` may be an export of an archive with many patients, a folder of NIfTI files, or one file. Each scan is read, cut as the training images
# were, predicted, put back onto its own grid and let go, so memory does not grow with their number. Several runs before the scans are averaged.
# A run that was trained on imported volumes with `--set context=1` sees each slice with the one below and the one above, here as in training; at the
# ends of a scan and beside a gap it sees black instead. Its neighbours are the next slices, however thick: give it scans of about the thickness that it
# was trained on. Whether neighbours help [was measured](../benchmarks/context.ipynb).
#
# | option | |
# |---|---|
# | `--format dicom-seg`, `rtstruct`, `nifti` | may be repeated; left out, DICOM gives SEG and NIfTI gives NIfTI |
# | `--keep-patient` | copies patient and study into the results, for an archive; left out, a result holds only the numbers by which a viewer finds its scan |
# | `--window`, `--size`, `--spacing` | how to cut, where the run does not know it, or was trained otherwise; a window is a name, or `LEVEL,WIDTH` such as `40,400` |
# | `--gaps` | takes missing slices as they are |
#
# Here it is at work on a toy: two patients whose skull and brain are contoured, from whom a run learns for a few seconds, and three new scans.

# %%
#| hide
import os, shutil, tempfile
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image
from ctseg.core.anatomy import ClassMap
from ctseg.io.dicom import read_series
from ctseg.io.dicom_import import import_dicom
from ctseg.io.dicom_seg import make_segmentation
from ctseg.io.toy_dicom import HEAD_CLASSES, clinic_planes, head_planes, write_series
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings

# %%
#| hide
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
home = os.getcwd()
os.chdir(work)
classes = ClassMap.from_names(["skull", "brain"])
for i, name in enumerate(("axial", "oblique")):
    truth = write_series(f"clinic/{name}", clinic_planes()[name], PatientID=str(i))
    series, _ = read_series(f"clinic/{name}")
    make_segmentation(series, np.where(truth > 2, 0, truth), HEAD_CLASSES, name).save_as(f"clinic/{name}.dcm")
import_dicom("clinic", "heads", classes=classes)
settings = ["width=8", "epochs=12", "lr=0.01", "fold=-1", "batch_size=8", "image_size=32"]
fit("heads", apply_settings(get_recipe("masked-log"), settings), "runs/heads", progress=False)
truths = {
    name: write_series(f"new/{name}", planes)
    for name, planes in (("a", head_planes(20, tilt=10)), ("b", head_planes(16, gaps=7.5)))
}
write_series("new/c", head_planes(12))
next(Path("new/c").glob("IM0004")).unlink()

# %%
import ctseg

result = ctseg.segment("runs/heads", "new", "results", ["dicom-seg", "rtstruct", "nifti"], device="cpu")
print(*sorted(path.name for path in result.out.iterdir()), sep="  ")

# %% [markdown]
# The third scan lacks a slice. It is listed, the others are done, and the command ends with status 3:

# %%
for source, problem in result.failed: print(problem)

# %% [markdown]
# The folder may hold anything else. What is no axial CT (scouts, reformats, maps of dual energy, MR, reports) and what is not read (archives, NRRD, MetaImage, label maps) is passed over and counted.
# What you should know of a scan is printed and stands on the page: values that are plainly not Hounsfield units, a tilted gantry, a header that contradicts itself.

# %% [markdown]
# ## What is in the folder
#
# - `v000.seg.dcm`, `v000.rtstruct.dcm`, `v000.nii.gz`: the structures on the scan's own voxels. DICOM scans are numbered, NIfTI files keep their names.
# - `volumes.csv` and `volumes.json`: for each structure its volume, on how many slices it is, how sure the runs are, and whether the scan cuts it off. `volumes.json` also tells what computed: the runs, the [engine](../inference/25_engine.ipynb) and the precision.
# - `report.html`: some slices of each scan with outlines, to look at before anything is used.

# %%
pd.DataFrame(result.table)[["scan", "structure", "ml", "slices", "confidence", "cut_off"]]

# %%
#| echo: false
#| label: fig-report
#| fig-alt: "Some slices of a scan with the outlines of skull and brain, as the report shows them"
import base64, io
page = result.done[0].page
plt.figure(figsize=(8, 4), layout="constrained")
plt.imshow(Image.open(io.BytesIO(base64.b64decode(page["picture"]))))
plt.title("v000 on the page: skull and brain", fontsize=9)
plt.axis("off")
plt.show()

# %% [markdown]
# The confidence of a structure is the Dice to expect if the probabilities are right ([soft Dice confidence](../inference/10_confidence.ipynb)).
#
# ## Is it right?
#
# Where there is a truth, `ctseg evaluate TRUTH results` scores two folders of NIfTI files of the same names: Dice, the share of the surface
# within a tolerance, the distance in mm below which 95 % of the surface lies, and the difference in millilitres, with an interval over patients.
# It needs the extra `metrics`.

# %%
#| hide
import nibabel as nib
Path("truth").mkdir()
for name, truth in zip(("v000", "v001"), truths.values()):
    affine = nib.load(f"results/{name}.nii.gz").affine
    nib.save(nib.Nifti1Image(np.where(truth > 2, 0, truth).astype(np.uint8), affine), f"truth/{name}.nii.gz")
classes.to_json("truth/class_names.json")

# %%
ctseg.evaluate_volumes("truth", "results", tolerance=3)["table"][
    ["cases", "dice", "surface_dice", "hd95", "ml_difference"]
].round(2)

# %% [markdown]
# Masks of a folder that was imported with every slice can be scored in the same way from their CSV: `ctseg evaluate y_test.csv submission.csv --mm`.
#
# ## What to know
#
# - **Outlines.** In an RTSTRUCT a hole is a ring of its own, not joined to the outer one by a keyhole. Programs that fill by the even-odd rule leave it empty.
# - **Codes.** A class gets the SNOMED CT code of its structure under any usual spelling (`kidney_left`, `Kidney_L`, `Lt Kidney`), and its side. Names that
#   are not known get a private code, and the command says which.
# - **The window.** A run that was trained on an imported folder knows its window and pixel size. For others the soft-tissue window is taken, and the command says so.
# - **Research only.** Every file says that it was made by ctseg and is not a diagnosis.

# %%
#| hide
assert {row["structure"] for row in result.table if row["ml"] > 100} == {"skull", "brain"}
os.chdir(home)
shutil.rmtree(work)
