# %% [markdown]
# # Your challenge folder
#
# > The folder that every command reads: what is in it, how to write one, and what to type then.

# %% [markdown]
# A challenge folder is all that is needed. It may have any number of structures (without `class_names.json` the 54 of [the ENS/Raidium challenge](https://challengedata.ens.fr/participants/challenges/165/)) and any image size:
#
# ```
# my_data/
#   train-images/0.png, 1.png, …    8-bit grey slices of one size
#   y_train.csv                     a column per annotated slice, a row per pixel, values 0 … C (255: ignore this pixel)
#   annotated_labels.json           per slice, the ids that were looked for: [[1, 4, 7], [], …]
#   class_names.json                {"1": "liver", "2": "spleen", …}
#   test-images/                    what to predict
#   y_test.csv                      its truth, if there is one; annotated_labels_test.json where that is partial
# ```
#
# The CSV has a column for each of the first images, in numeric order. The images after its last column are unlabelled.
# `annotated_labels.json` makes the difference between *absent* and *unknown*: an id in a slice's list was looked for, whether it was found or not.
# Without that file, say what a zero means: `--annotated all` (everything was looked for) or `--annotated present` (only what has pixels was).
#
# ## The commands
#
# ```sh
# ctseg check my_data
# ctseg fit my_data --out runs/first --set epochs=40
# ctseg predict runs/first --images my_data/test-images --out submission.csv
# ctseg evaluate my_data/y_test.csv submission.csv      # where there is a truth
# ```
#
# A mistake in the data is reported in one line that names the file, and nothing is half-written.
# [All commands and options](command_line.ipynb). What the numbers at the end mean: [reading the report](reading_the_report.ipynb).
#
# ## When a run was cut
#
# Give the same command again, with `--resume`:
#
# ```sh
# ctseg fit my_data --out runs/first --set epochs=40 --resume
# ```
#
# It goes on from the last checkpoint and ends, on a CPU, with exactly the weights of a run that was never cut. Finished phases are loaded and not trained again. Where sessions are limited, `--time-limit 8h30m` stops
# in time: the run saves itself, ends with status 75, and waits for `--resume`. Other data or settings than at the start are refused, because the result would be neither the one nor the other. In Python: `ctseg.fit(…, resume=True)`.
#
# Several folders that outline other structures become one by `ctseg merge`: [three hospitals](three_hospitals.ipynb).
#
# ## A folder from arrays
#
# Four slices of 32×32 pixels, two structures. On slice 0 both were looked for, on slice 1 only the first; nobody annotated the other two.

# %%
#| hide
import tempfile
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.data.slices import SliceSet

# %%
images = np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8)
masks = np.zeros((4, 32, 32), np.uint8)
masks[:2, 8:16, 8:16] = 1
known = np.array([[True, True], [True, False], [False, False], [False, False]])
names = [f"{i}.png" for i in range(4)]
slices = SliceSet(images, masks, known, names, np.arange(4), ClassMap.from_names(["liver", "spleen"]))

folder = Path(tempfile.mkdtemp())/"my_data"
write_challenge(slices, folder)
print(*sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")), sep="\n")
print((folder/"annotated_labels.json").read_text())

# %% [markdown]
# What `read_challenge` gives back has the three states: the liver is present on both annotated slices, the spleen absent on one and unknown on the other.

# %%
again = read_challenge(folder, cache=False)
assert np.array_equal(again.known, known) and np.array_equal(again.masks, masks)
states = np.where(again.known, np.where(again.present, "present", "absent"), "unknown")
for name, row in zip(again.names, states):
    print(name, dict(zip(again.classes.names, row.tolist())))

# %% [markdown]
# `groups` is the patient of each slice. Give it where you know it: then no patient is both learnt from and held out. Without it, near-duplicates are found and kept together.
#
# A folder of more slices than memory holds is made a [store](more_than_memory.ipynb).
#
# ## From other formats
#
# | you have | command |
# |---|---|
# | DICOM series with RTSTRUCT or SEG | `ctseg import dicom SRC my_data`, [step by step](../tutorials/your_own_dicom.ipynb) |
# | NIfTI volumes | `ctseg import nifti SRC my_data` |
# | PNG images with masks as PNG, or run-length codes | `ctseg import png IMAGES MASKS my_data`, [step by step](another_competition.ipynb) |
# | [OpenKBP](https://github.com/ababier/open-kbp) | `ctseg import openkbp SRC my_data` |
# | TotalSegmentator's data set | `ctseg import totalsegmentator SRC my_data` |
#
# Archives are to be unpacked first. NIfTI label maps lie in `images/` and `labels/`, or beside their images as `p1_seg`; single structures in `p1/segmentations/` ([layouts](../io/65_nifti_import.ipynb)). What has no place there is listed at the end, and nothing is taken for a scan that is a label map.
# With `--skip-damaged` a bad patient is listed and left out. A stopped import goes on when it is started again. Structures that nobody contoured stay unknown. `--rename FILE`, `{"Leber": "liver"}`, gives labels their [names](../io/44_renaming.ipynb), in any import. `ctseg export` puts predictions back onto the volumes, as NIfTI, DICOM SEG or RTSTRUCT; [`ctseg segment`](segment.ipynb) goes from a scan to a segmentation without a folder in between.
#
# ## On Kaggle
#
# What the challenge wants to have is the `submission.csv` of `ctseg predict`: `ctseg check my_data --submission submission.csv` compares its columns and rows with what is expected, then you upload it.
# Another competition's form comes from [`ctseg export rle`](another_competition.ipynb#out-as-the-competition-wants-it).
#
# To train there, five notebooks are ready; they use both T4: [start here](../kaggle/start_here/start_here.ipynb) with the default recipe, then [supervised](../kaggle/supervised/supervised.ipynb), [teacher and student](../kaggle/teacher_student/teacher_student.ipynb),
# [self-training](../kaggle/self_training/self_training.ipynb), [ensemble and submission](../kaggle/ensemble_submission/ensemble_submission.ipynb).
# Each finds the data wherever they are mounted, stops before Kaggle does, and goes on from its own output in the next session. They open in
# [Colab](https://colab.research.google.com/github/ctseg/ctseg/blob/main/nbs/kaggle/start_here/start_here.ipynb) too, on the real CT of `data_sample`.
#
# **With internet**: click *Open in Kaggle* at the top of a notebook, attach the challenge's files, turn Internet on, choose *GPU T4 x2*, run. The package comes from GitHub.
#
# **Without internet**, as most competitions want it, the package comes from a data set of your own. `make kaggle` writes it, and the notebooks under your name. It installs 60 MB of tools here, not the 2 GB that training needs.
#
# ```sh
# git clone https://github.com/ctseg/ctseg && cd ctseg
# make kaggle KAGGLE_USER=you                    # into dist/kaggle, checked by Kaggle's own client
# .venv/bin/kaggle auth login                    # once
# .venv/bin/kaggle datasets create -p dist/kaggle/ctseg-wheel
# ```
#
# Add the challenge's files as your data set `raidium-ct`. Then push the notebook, which starts it:
#
# ```sh
# .venv/bin/kaggle kernels push -p dist/kaggle/start_here
# ```
