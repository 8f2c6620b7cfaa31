# %% [markdown]
# # ctseg
#
# > Learn to segment CT slices from partly labelled and unlabelled images.

# %% [markdown]
# For anyone with a modest GPU and CT slices with incomplete outlines: Kaggle entrants, researchers, clinical teams. `ctseg` keeps **unknown**
# apart from **absent**, so a structure nobody looked for is never taught as background, and slices without any outline still help.

# %%
#| hide
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import read_masks
from ctseg.metrics.challenge import dice_table

# %%
#| hide
# written by the benchmark notebooks; no number on this page is typed by hand
RESULTS = Path("benchmarks/results")
SHOWN = ("40.png", "25.png")  # two of the better test slices, with six of the seven organs


def rows(name):
    "The rows of a results file."
    with (RESULTS/name).open(encoding="utf-8") as f:
        return list(csv.DictReader(f))


def table(columns, lines):
    "A Markdown table."
    cells = [columns, ["---"]*len(columns), *lines]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in cells))


def front_picture(test, masks):
    "Image, truth, teacher and student of the slices `SHOWN`, with the mean Dice of each slice."
    columns = {"image": np.zeros_like(test.masks), "truth": test.masks, **masks}
    dice = {who: np.nanmean(dice_table(m, test.masks, len(test.classes)), 1) for who, m in masks.items()}
    order = [test.names.index(name) for name in SHOWN]
    fig, axes = image_grid(len(order), len(columns))
    for row, i in zip(axes, order):
        for ax, (title, shown) in zip(row, columns.items()):
            score = f", Dice {dice[title][i]:.2f}" if title in dice else ""
            show_image(ax, overlay(test.images[i], shown[i], test.classes)[6:58, 6:58], title + score)
    class_legend(fig, test.classes, np.stack([shown[order] for shown in columns.values()]))


# %%
#| echo: false
#| label: index-demo
#| fig-alt: "Two CT test slices of the head and neck: image, truth, the teacher's prediction, the student's prediction"
DRAWN = {"teacher": "demo_teacher.csv.gz", "student": "demo_submission.csv.gz"}
plt.rcParams["figure.dpi"] = 80
front_picture(read_challenge("../data_sample", "test", cache=False),
              {who: read_masks(RESULTS/name, cache=False)[1] for who, name in DRAWN.items()})
plt.show()

# %%
#| echo: false
demo = pd.read_csv(RESULTS/"demo.csv")
mean, minutes = demo[list(DRAWN)].mean(), demo.cpu_minutes.max()
Markdown(
    f"Real CT from `make demo`: {minutes:.0f} CPU minutes, no GPU. Two of the better test "
    f"slices; over all 60 and {len(demo)} seeds, "
    f"the teacher's mean Dice is {mean['teacher']:.2f}, the student's {mean['student']:.2f}."
)

# %% [markdown]
# ## Install
#
# With Python 3.11 or newer:
#
# ```sh
# # no GPU: add --extra-index-url https://download.pytorch.org/whl/cpu (1.4 GB, not 5)
# pip install "ctseg @ git+https://github.com/ctseg/ctseg"
# # with DICOM, NIfTI, pretrained weights
# pip install "ctseg[volumes,weights] @ git+https://github.com/ctseg/ctseg"
# ```
#
# ```sh
# # or a clone (2-6 GB): the whole job, every test
# git clone --depth 1 https://github.com/ctseg/ctseg && cd ctseg
# make demo
# make test
# ```
#
# | Python (`import ctseg`) | command |
# |---|---|
# | `run = ctseg.fit("my_data", out="runs/a")` | `ctseg fit my_data --out runs/a` |
# | `masks = ctseg.load("runs/a").predict(images)` | `ctseg predict runs/a --images DIR --out masks.csv` |
#
# `my_data` may be the clone's `data_sample`.
#
# ## Start here
#
# - **Kaggle or Colab**: [open in Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/ctseg/ctseg/blob/main/nbs/kaggle/start_here/start_here.ipynb), [in Colab](https://colab.research.google.com/github/ctseg/ctseg/blob/main/nbs/kaggle/start_here/start_here.ipynb), [without internet](kaggle/start_here/start_here.ipynb)
# - **Ten minutes**: [a first run](tutorials/first_run.ipynb)
# - **My challenge folder**: [format and commands](guides/your_challenge_folder.ipynb); [PNG or run-length codes](guides/another_competition.ipynb)
# - **My DICOM**: [from series to SEG](tutorials/your_own_dicom.ipynb)
# - **What `known` means**: [present, absent, unknown](explanations/three_states.ipynb)
# - **My result**: [read the report](guides/reading_the_report.ipynb), [compare two methods](guides/comparing_two_methods.ipynb), [troubleshooting](guides/when_it_goes_wrong.ipynb)
# - **My own** [weights](guides/starting_from_weights.ipynb); [loss, network or method](guides/your_own_method.ipynb); [several GPUs](guides/several_hosts.ipynb)
# - **How it is built**: [folders, contracts, every notebook](guides/how_it_is_built.ipynb)
# - **All pages**: [the site](https://ctseg.github.io/ctseg)
#
# ## ctseg, nnU-Net, MONAI or torch-em?
#
# | | ctseg | nnU-Net | MONAI | torch-em |
# |---|---|---|---|---|
# | images | 2D slices | 3D first; 2D | 2D, 3D | 2D, 3D |
# | unknown | per class and slice | per pixel, all classes | per pixel | per pixel |
# | unlabelled images | pseudo-labels, Mean Teacher, UniMatch, self-training | pretraining | no recipe | Mean Teacher, FixMatch, UniMatch v2 |
# | choose it for | incomplete outlines, a small GPU | fully outlined volumes | building your own pipeline | microscopy |
#
# nnU-Net's pipeline was compared [on partial labels](benchmarks/peers.ipynb) only, trained briefly. Partial labels also train inside [nnU-Net](guides/nnunet.ipynb), [MONAI and Lightning](guides/monai.ipynb).
#
# ## What was measured

# %%
#| echo: false
measured = rows("realct_front.csv")
table(list(measured[0]), [r.values() for r in measured])

# %% [markdown]
# [OpenKBP](https://github.com/ababier/open-kbp) head-and-neck CT, 64×64, seven organs, 300 test slices of 15 other patients, small U-Nets trained on CPUs. Both columns
# average the same seeds; brackets: 95 % over patients. The reference is the original project's U-Net, which reads zeros as background.
# [Choosing a recipe](guides/choosing_a_recipe.ipynb), [with unlabelled slices](benchmarks/realct_semi.ipynb), [label efficiency](benchmarks/label_efficiency.ipynb), [what held](benchmarks/claims.ipynb), [REPORT.pdf](../REPORT.pdf)
#
# ## What it does not do
#
# - No 3D networks; a slice sees its neighbours at most.
# - No scribbles; a mask can leave pixels open (255).
# - No score on the challenge's hidden test set, no full-size training on a GPU.
# - With many annotated slices the unlabelled ones add little.
#
# ::: {.callout-warning}
#
# For research and teaching. Not a medical device: do not diagnose, plan or treat with it.
#
# :::
#
# ## Cite, licence
#
# ```bibtex
# @software{ctseg, author = {the ctseg authors}, title = {ctseg}, year = 2026, url = {https://github.com/ctseg/ctseg}}
# ```
#
# Code: [Apache-2.0](../LICENSE). `data_sample`: real CT from OpenKBP, [MIT](../data_sample/LICENSE). None of the challenge's files.
# [CONTRIBUTING](../CONTRIBUTING.md), [CHANGELOG](../CHANGELOG.md)
#
# Grown from a course project by Guillaume Henon-Just and Emilie Pic (MVA, ENS Paris-Saclay) for the
# [ENS/Raidium challenge](https://challengedata.ens.fr/participants/challenges/165/).
