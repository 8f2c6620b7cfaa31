# %% [markdown]
# # ctseg
#
# > Learn to segment CT slices from partly labelled and unlabelled images.

# %% [markdown]
# On most CT data only *some* structures were outlined on *some* slices, and on many slices none at all. `ctseg` learns from all of it: it keeps
# **unknown** apart from **absent** in the data, the losses and the scores, so that a structure nobody looked for is never taught as background, and
# slices without any outline still help. It is a Python package, a `ctseg` command, and a set of notebooks that explain the code they export; it is
# made for one modest GPU, and the demo needs none.

# %%
#| hide
import csv, json, re
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from ctseg.data import read_challenge, read_masks
from ctseg.recipes import DEFAULT_RECIPE, RECIPES

# %%
#| hide
RESULTS = Path("benchmarks/results")  # written by the benchmark notebooks; nothing on this page is typed by hand
plt.rcParams.update({"hatch.linewidth": 0.6, "figure.dpi": 55})

def rows(name):
    "The rows of a results file, or none while it has not been measured."
    path = RESULTS/name
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []

def table(columns, rows):
    "A Markdown table."
    line = lambda cells: "| " + " | ".join(map(str, cells)) + " |"
    return Markdown("\n".join([line(columns), line("---" for _ in columns), *map(line, rows)]))


# %%
#| hide
STATES = {"unknown: nobody looked": "#e6eaee", "absent: looked, not there": "#9db4c8", "present: outlined": "#0b7285"}

def paint(ax, slices, i, mask, title):
    "A slice in grey with a label map over it."
    grey = np.repeat(slices.images[i][..., None], 3, -1)
    ax.imshow(np.where((mask > 0)[..., None], 0.35*grey + 0.65*slices.classes.colourise(mask), grey).astype(np.uint8))
    ax.set_title(title, fontsize=9); ax.axis("off")

def front_picture(train, test):
    i, j = train.names.index("0.png"), test.names.index("3.png")
    fig, axes = plt.subplots(1, 5, figsize=(12, 2.9), layout="constrained")
    paint(axes[0], train, i, np.zeros_like(train.masks[i]), "a training slice")
    paint(axes[1], train, i, train.masks[i], "its truth: what is hatched is\nbackground, or was never outlined")
    hidden = (train.masks[i] == 0) & (train.images[i] > 15)
    for c in [axes[1].contourf(hidden, levels=[.5, 1.5], colors="none", hatches=["////"])]: c.set(edgecolor="#ffffffb0", linewidth=0)
    cells = np.where(~train.known, 0, np.where(train.present, 2, 1))
    axes[2].imshow(cells.T, cmap=ListedColormap(list(STATES.values())), aspect="auto", interpolation="nearest")
    axes[2].set(xticks=[], yticks=[], xlabel=f"{len(train)} training slices", ylabel=f"{len(train.classes)} structures")
    axes[2].set_title("known: every slice and structure\nis in one of three states", fontsize=9)
    axes[2].legend(handles=[Patch(color=c, label=n) for n, c in reversed(STATES.items())], fontsize=6.5, loc="lower right")
    prediction = RESULTS/"demo_submission.csv.gz"
    shown = [("the truth of that test slice", test.masks)]
    if prediction.exists(): shown.insert(0, ("what make demo predicts\non a test slice", read_masks(prediction)[1]))
    for ax, (title, masks) in zip(axes[3:], shown): paint(ax, test, j, masks[j], title)
    for ax in axes[3 + len(shown):]: ax.axis("off")


# %%
#| echo: false
#| label: index-three-states
#| fig-alt: "A CT slice; its partial truth; the table of what is present, absent and unknown; a prediction on a test slice; the truth of that slice"
front_picture(read_challenge("../data_sample", cache=False), read_challenge("../data_sample", "test", cache=False)); plt.show()

# %% [markdown]
# - **What `known` means**: structure c was looked for on slice n. If not, its zeros say nothing. [More](#what-known-means)
# - **Which recipe to start with**: the default, `ctseg`. [All of them](#which-recipe-to-start-with); [for 1, 6 or 30 hours of a GPU](guides/choosing_a_recipe.ipynb)
# - **Your own data**: PNG slices, one CSV of masks and a list of what was looked for; or DICOM, NIfTI. [How](#bring-your-own-data); [DICOM, step by step](tutorials/your_own_dicom.ipynb)
# - **First steps**: [ten minutes](tutorials/first_run.ipynb), from half-finished outlines to a trained network and a score.
#
# ## Two commands
#
# ```sh
# make demo   # teacher, pseudo-labels, student on data_sample; predict, score, draw
# make test   # every test and every notebook
# ```
#
# `git clone https://github.com/ctseg/ctseg`, `cd ctseg`, Python 3.11 or newer and `make` are all they need: each sets up `.venv` the first time (1 to 2 GB on disk) and never again. The command below is then `.venv/bin/ctseg`, or `ctseg` after `. .venv/bin/activate`.

# %%
#| echo: false
demo = rows("demo.csv")
said = (RESULTS/"demo.txt").read_text(encoding="utf-8").rstrip() if demo else ""
Markdown(f"`make demo` needs {float(demo[0]['cpu_minutes']):.0f} minutes of processor time and ends like this (`slices`: the test slices that show the organ):\n\n```\n{said}\n```\n"
         if demo else "`make demo` ends with a score, the paths it wrote and a picture.")

# %% [markdown]
# A different number of threads, or version of a library, changes the rounding, and so the scores by some hundredths ([three seeds](benchmarks/demo.ipynb)).
# `make test` takes six to eight minutes on two cores and ends
# with pytest's summary, `N passed`.
#
# ## Install
#
# ```sh
# pip install -c constraints.txt -e .
# ```
#
# `-c constraints.txt` names the versions tried together, for a machine without a GPU. With a GPU, install the torch that suits it first and leave `-c` out.
# `'.[volumes]'` adds DICOM and NIfTI, `'.[zoo]'` further architectures, `'.[weights]'` a pretrained encoder without a download from a hub. `ctseg doctor` says what was found.
#
# ## What `known` means
#
# A zero in a mask is ambiguous: nothing there, or nobody looked. So beside `masks` there is always `known[n, c]`, *was structure c looked for on slice n?*
#
# - **present**: known, and it has pixels. Those are taught as a yes, every other pixel of the slice as a certain no.
# - **absent**: known, and it has none. Every pixel of the slice is a certain no.
# - **unknown**: not known. Nothing is taught about it and nothing is scored; [the explanation](explanations/three_states.ipynb) shows what goes wrong otherwise.
#
# ## Which recipe to start with

# %%
#| echo: false
first = RECIPES[DEFAULT_RECIPE]
Markdown(f"With **`{first.name}`**: it is the default. A recipe is a named choice of method, model, loss, augmentation and schedule; "
         "`--set KEY=VALUE` changes any part of it, `ctseg recipes` lists them:")

# %%
#| echo: false
table(["recipe", "what it does"], [(f"`{r.name}`", r.about) for r in RECIPES.values()])

# %% [markdown]
# ## Bring your own data
#
# A challenge folder is all that is needed. Any number of structures (without `class_names.json` the challenge's 54), any image size:
#
# ```
# my_data/
#   train-images/0.png, 1.png, …    8-bit grey slices of one size
#   y_train.csv                     a column per annotated slice, a row per pixel, values 0 … C
#   annotated_labels.json           per slice, the ids that were looked for: [[1, 4, 7], [], …]
#   class_names.json                {"1": "liver", "2": "spleen", …}
#   test-images/                    what to predict
# ```
#
# ```sh
# ctseg check my_data
# ctseg fit my_data --out runs/first --set epochs=40
# ctseg predict runs/first --images my_data/test-images --out submission.csv
# ctseg evaluate my_data/y_test.csv submission.csv      # where there is a truth
# ```
#
# From DICOM, NIfTI, [OpenKBP](https://github.com/ababier/open-kbp) or TotalSegmentator, `ctseg import` writes such a folder, and structures that nobody contoured stay
# unknown; `ctseg export` puts predictions back onto the volumes. From arrays, use `ctseg.data.write_challenge`.
#
# The CSV has a column for each of the first images, in numeric order; those after its last one are unlabelled. Without `annotated_labels.json` say what a zero means: `--annotated all` (everything was looked
# for) or `--annotated present` (only what has pixels was). A mistake in the data is told in one line that names the file; nothing is half-written;
# `--resume` continues a run that was cut.
#
# ## On Kaggle
#
# Four notebooks, ready to push, without internet and on both T4: [supervised](kaggle/supervised/supervised.ipynb), [teacher and student](kaggle/teacher_student/teacher_student.ipynb),
# [self-training](kaggle/self_training/self_training.ipynb), [ensemble and submission](kaggle/ensemble_submission/ensemble_submission.ipynb). Each finds the data wherever they are mounted, stops before Kaggle does, and goes on from its own output in the
# next session. The first two also open in [Colab](https://colab.research.google.com/github/ctseg/ctseg/blob/main/nbs/kaggle/supervised/supervised.ipynb).
#
# ```sh
# make kaggle KAGGLE_USER=you                          # the wheel as a data set and the notebooks, checked by Kaggle's own client
# kaggle datasets create -p dist/kaggle/ctseg-wheel
# kaggle kernels push -p dist/kaggle/supervised        # after adding the challenge's files as your data set raidium-ct
# ```
#
# ## What was measured

# %%
#| echo: false
measured = rows("realct_front.csv")
table(list(measured[0]), [r.values() for r in measured]) if measured else Markdown("*The first benchmark is still running.*")

# %%
#| echo: false
gain = ["{:+.3f} [{:+.3f}, {:+.3f}] with {}".format(*(float(r[k]) for k in ("minus supervised", "low", "high")), r["labelled"]) for r in rows("realct_semi.csv") if r["recipe"] == "ctseg"]
Markdown(f"What the second phase of `ctseg`, with all images, adds to its first: {' annotated slices, '.join(gain)} (each network with its own decision rule)." if gain else "")

# %%
#| echo: false
rule = {r["data"]: r for r in rows("decision_rule.csv") if r["recipe"] == "ctseg"}
told = [f"{float(r['expected Dice']):.3f} instead of {float(r['gate']):.3f} {where}" for k, where in (("real CT, 800", "with 800 slices"), ("phantom, 240 annotated", "for the 54 structures of the phantom")) if (r := rule.get(k))]
Markdown(f"The rules of this table had one gate for all classes. `ctseg fit` now keeps a drawn structure where that raises the [expected Dice](benchmarks/decision_rule.ipynb): {', '.join(told)}." if told else "")


# %% [markdown]
# Real head-and-neck CT (OpenKBP, 64×64, 300 test slices of 15 other patients, seven organs; up to four of them examined on an annotated slice), a small Attention U-Net of width 16, trained on CPUs, the challenge's metric. Phases have equally many steps; `seed-teacher-student` has two, `ctseg` one and a half.
# ±: the standard deviation over seeds; in brackets a paired bootstrap over patients, for the seeds that both rows have; *silent*: drawn on no test slice. `seed-attunet` is the original project's baseline, `seed-teacher-student` its method, whole.
#
# With these seven organs softmax (`marginal`) and sigmoid (`masked`) do equally well; the default has a softmax because of [54 structures on the phantom](benchmarks/phantom_semi.ipynb). More: [the losses](benchmarks/realct_supervised.ipynb), [the unlabelled slices](benchmarks/realct_semi.ipynb), [every choice by itself](benchmarks/ablations.ipynb),
# [which published advice held](benchmarks/claims.ipynb); [REPORT.pdf](../REPORT.pdf) tells it as a paper. Nothing here was scored on the challenge's hidden test set.
#
# ## Read the notebooks
#
# Every module is a notebook: why, then a short cell of code, then what it does. This is the order to read them in. In a hurry, read [Data](10_data.ipynb), [Losses](20_losses.ipynb), [Training](40_train.ipynb), [UniMatch](57_unimatch.ipynb) and [Prediction](60_predict.ipynb). The
# [three states](explanations/three_states.ipynb), [what an unlabelled slice can teach](explanations/semi_supervised.ipynb) and the [ten-minute tutorial](tutorials/first_run.ipynb) come before. [How it is built](guides/how_it_is_built.ipynb) has the layers and the words, and [another page](guides/when_it_goes_wrong.ipynb) what to do when something goes wrong.

# %%
#| echo: false
def facts(path):
    "Module, title and one-line description of a notebook."
    cells = ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    title, about = re.search(r"^# (.*)", cells[0], re.M)[1], re.search(r"^> (.*)", cells[0], re.M)[1]
    module = next((m[1] for c in cells if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", c, re.M))), None)
    return f"[{title}]({path.name})", f"`ctseg.{module}`", about

table(["notebook", "module", "what it is about"], [facts(p) for p in sorted(Path().glob("[0-9]*.ipynb"))])

# %% [markdown]
# [CONTRIBUTING](../CONTRIBUTING.md) tells how to change one; [CHANGELOG](../CHANGELOG.md) what has changed.
#
# ## Licence and warning
#
# Apache-2.0, see [LICENSE](../LICENSE). The files of the ENS/Raidium challenge may not be passed on and are not here; `data_sample` shows no patient, it is
# [drawn from a seed](12_phantom.ipynb).
#
# ::: {.callout-warning}
#
# `ctseg` is for research and teaching. It is not a medical device: do not diagnose, plan or treat with what it predicts.
#
# :::
#
# It grew out of a course project by Guillaume Henon-Just and Emilie Pic (MVA, ENS Paris-Saclay) for the
# [ENS/Raidium challenge](https://challengedata.ens.fr/participants/challenges/165/).
