# %% [markdown]
# # nnU-Net with partial labels
#
# > Two trainers for nnU-Net v2 that keep unknown apart from background, and learn from cases without labels.

# %% [markdown]
# ```sh
# pip install "ctseg[nnunet,volumes] @ git+https://github.com/ctseg/ctseg"
# python -m ctseg.integrations.nnunet              # once: nnU-Net finds the trainers; --undo takes it back
# nnUNetv2_plan_and_preprocess -d 501
# nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerPartial
# nnUNetv2_predict -d 501 -c 3d_fullres -f 0 -tr nnUNetTrainerPartial -i IMAGES -o OUT
# ```
#
# What is needed beside nnU-Net's own files is one more, `annotated_labels.json` beside `dataset.json`. It says for each case what was looked for:
#
# ```json
# {"case_001": ["liver", "kidney_left"], "case_002": ["liver"], "case_003": []}
# ```
#
# ## ctseg's own loop, or nnU-Net?
#
# | | ctseg | nnU-Net with these trainers |
# |---|---|---|
# | images | slices; every slice has its own list of what was examined | volumes, or slices; a list for each case |
# | network and patches | one of the zoo, whole slices | planned by nnU-Net: 2d, 3d_lowres, 3d_fullres, cascade |
# | machine | a small GPU, minutes to hours; also a CPU | a GPU with 8 GB or more, a day for 1000 epochs |
# | unlabelled images | five methods; pseudo-labels, calibration, what to annotate next | an averaged teacher that completes patches |
# | classes | softmax or sigmoid; unions | softmax; no regions, no unions |
# | resumed after a stop | to the last bit | from the last checkpoint, as nnU-Net does |
#
# On a hundred partly annotated slices, trained for four minutes, [ctseg's loop is ahead](../benchmarks/peers.ipynb). Which one draws better after hours was not measured: no full training of nnU-Net was held against ctseg's on the same data. (Its plain U-Net, in ctseg's loop and on small slices, [came close to the Attention U-Net](../benchmarks/networks.ipynb).) Take nnU-Net where structures are seen in three dimensions only, where you have it running, or for a challenge in volumes. Take ctseg's loop for slices, a small machine, or where
# you need what only it has.
#
# ## From your own data set of nnU-Net
#
# 1. Leave the labels as they are. A structure that nobody outlined on a case has no voxels there, and is not in its list. A structure that was looked for and is absent has no voxels either, and *is* in its list.
# 2. A case without any labels needs a label map of zeros in `labelsTr`, and an empty list.
# 3. Write `annotated_labels.json`. A case that is missing there, a name that is no class, or a class that is drawn but not listed stops the training with one line.
# 4. An ignore label is respected: about its voxels nothing is said, for any class. Regions are refused.
#
# The file may be edited at any time before a training begins; nothing is to be preprocessed again.
#
# ## From a challenge folder

# %%
#| hide
import os
import tempfile
from pathlib import Path

import numpy as np

from ctseg.core.json_files import read_json
from ctseg.integrations.nnunet import export_nnunet
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.slicing import Slicing
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans
from ctseg.io.volumes import Volume, class_flags

keep = tempfile.TemporaryDirectory()
work = Path(keep.name)
os.environ["CTSEG_CACHE"] = str(work/"cache")

def annotated(scan, ids):
    "A scan on which some classes were examined."
    known = class_flags(ids, len(TORSO_CLASSES))
    labels = np.where(np.r_[True, known][scan.labels], scan.labels, 0).astype(np.uint8)
    return Volume(scan.hu, scan.affine, labels, known)


# %% [markdown]
# ```sh
# ctseg export nnunet DATA nnUNet_raw --unknown partial
# ```
#
# A folder that `ctseg import` made of volumes becomes volumes again, any other becomes PNG slices (as does every folder with `--slices`). Here are three toy scans. On the first two some structures were
# looked for, on the third none.

# %%
scans = [annotated(scan, ids) for scan, ids in zip(torso_scans().values(), ([1, 2, 4], [1, 5], []))]
cases = [Case(f"scan {i}", lambda v=v: v, known=v.known) for i, v in enumerate(scans)]
write_volumes(cases, work/"data", TORSO_CLASSES, Slicing(window="wide"))
facts = export_nnunet(work/"data", work/"nnUNet_raw", unknown="partial")
print(facts)
root = work/"nnUNet_raw"/facts["dataset"]
print(*sorted(str(path.relative_to(root)) for path in root.rglob("*.*")), sep="\n")
for case, names in read_json(root/"annotated_labels.json").items():
    print(case, names)

# %% [markdown]
# Voxels are in Hounsfield units, cut off at the ends of the window of the import. A wide one (`--window wide`) keeps more for nnU-Net to choose from. Where the scans themselves are at hand as NIfTI, give nnU-Net
# those.
#
# `splits_final.json` keeps the scans of a patient together; the trainers take it where nnU-Net has made no folds yet. The other way, `ctseg import nnunet nnUNet_raw/Dataset501_ctseg OUT` cuts such a data set
# into slices, with what was examined.
#
# For nnU-Net's own trainers, `--unknown ignore` (the default) and `--unknown background` [approximate](../integrations/10_nnunet.ipynb) what is unknown.
#
# ## Training
#
# ```sh
# nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerPartial         # cases with labels
# nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerPartialSemi     # all cases, and a teacher
# nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerPartialSemi --c # go on
# CTSEG_NNUNET="epochs=200 iterations=100" nnUNetv2_train …        # shorter; also log_dice; Semi: warmup, tau, min_dice, …
# ```
#
# Plans, preprocessing, patches, augmentation, deep supervision, optimiser, several GPUs and resuming are nnU-Net's. Ours are the loss, which cases are drawn, and what is counted:
#
# * **The loss** is the [marginal softmax with Dice](../losses/10_partial.ipynb): a zero may be background or any structure that nobody looked for on that case.
# * **The teacher** of `nnUNetTrainerPartialSemi` is a running average of the network. The first half of the epochs (`warmup`) is supervised, as with the other trainer. From then on each step also learns from cases on which something was not examined, unlabelled ones among them. The average fills in what nobody examined, voxel by voxel, where it is sure (`tau`), and only about classes that it has learnt (a pseudo Dice of `min_dice`). The student must find that in a strong view of the same patch: contrast, blur, noise, holes, a box of another case (`cutmix`). An epoch takes about twice as long from then on; memory is needed for the average, and a byte for each voxel and class of a batch. It is the average that is scored and predicts. [How](../integrations/14_nnunet_teacher.ipynb).
# * **From a supervised training**: `CTSEG_NNUNET="warmup=0" nnUNetv2_train … -tr nnUNetTrainerPartialSemi -pretrained_weights CHECKPOINT` begins with what `nnUNetTrainerPartial` has learnt. The teacher is asked after the first epoch.
# * **Pseudo Dice** after each epoch and `validation/summary.json` at the end count a class on the cases where it was examined. `nnUNetv2_find_best_configuration` counts again on its own, and takes what was not examined for background.
# * **Checkpoints** name nnU-Net's own trainer. So `nnUNetv2_predict` and exported models work where ctseg is not installed.
#
# ## Where nnU-Net looks
#
# `python -m ctseg.integrations.nnunet` writes one small file into the installed nnU-Net. If that folder is not yours, `--folder DIR` writes it into another, and nnU-Net 2.8 or newer finds it there by
# `export nnUNet_extTrainer=DIR`.
#
# ## What was tried
#
# nnU-Net 2.8.1 in `2d`, `3d_lowres`, `3d_fullres` and `3d_cascade_fullres`, on one CPU. `nnUNetv2_train` of 3d_lowres, then 3d_cascade_fullres, with either trainer: killed after epoch 49, continued by `--c` from epoch 50 to the end; `nnUNetv2_predict` with both stages, where ctseg cannot be imported. The tests of this package do much of this with a small network where nnU-Net is installed. Two processes on one CPU, through gloo in place of nnU-Net's NCCL, ended with the same weights and the same teacher. `nnUNetv2_train -num_gpus 2` itself refuses a CPU, and no GPU was tried.
#
# On [phantoms](../benchmarks/nnunet.ipynb), with ctseg's own loop on the same volumes beside it: `nnUNetTrainerPartial` is ahead of the ignore label. `nnUNetTrainerPartialSemi` is ahead of `nnUNetTrainerPartial` in trainings of 24 epochs, at equal epochs, and not in ones of 8, in which the teacher has learnt too little. Unlabelled cases themselves added nothing measurable there. On real data nothing was measured. Begin with `nnUNetTrainerPartial`.

# %%
#| hide
keep.cleanup()
