# %% [markdown]
# # A first run in ten minutes
#
# > From slices and half-finished outlines to a trained network, a submission and a score, on data like your own.

# %% [markdown]
# You have CT slices, a few structures that interest you, and outlines that are far from complete. This page takes such data through the whole package: into a folder,
# through a training, to a score and a picture. It runs as it stands in under a minute on a processor. The data are
# [phantom](../phantom/90_challenge.ipynb) slices, so nothing is downloaded and we know the whole truth at the end.
#
# Three questions come up first:
#
# - **What does `known` mean?** `known[n, c]` is true if somebody examined slice n for structure c, whatever they found. Where it is false, a zero in the mask says nothing ([why](../explanations/three_states.ipynb)).
# - **Which recipe do I start with?** The default, `ctseg`. Its parts [were measured](../benchmarks/ablations.ipynb) with few annotated slices, with many, and with 54 structures. You change any part by its name, without editing code.
# - **How do I bring my own data?** Write a *challenge folder*: PNG slices, one CSV with the masks, one JSON with what was examined. Step 2 shows it.

# %%
#| hide
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq

from ctseg.core.anatomy import ClassMap
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.core.toys import known_part
from ctseg.data.slices import SliceSet
from ctseg.data.challenge import check_challenge, read_challenge, write_challenge
from ctseg.demo import plot_predictions
from ctseg.metrics.challenge import dice_table
from ctseg.metrics.evaluate import evaluate_files
from ctseg.phantom import phantom_slices
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.prediction.submission import write_submission
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings
os.chdir(tempfile.mkdtemp())  # everything below is written into a fresh folder

# %% [markdown]
# ## 1. Slices and a class list of your own
#
# We draw slices of 64×64 pixels. The phantom outlines 54 structures. Say that you care about four groups of them. A
# [`ClassMap`](../core/40_anatomy.ipynb) gives them their numbers: 1 is the first name, 0 is background.

# %%
body = phantom_slices(80, size=64, seed=3)
other_patients = phantom_slices(30, size=64, seed=3, first=1000)
body = body.concat(other_patients)
groups = {
    "lung": ["lung"],
    "bone": ["rib", "vertebrae", "hip", "sacrum", "femur", "humerus", "scapula", "clavicula"],
    "muscle": ["gluteus", "autochthon", "iliopsoas"],
    "organ": ["liver", "spleen", "kidney", "pancreas", "stomach", "duodenum", "small_bowel", "colon"],
}
classes = ClassMap.from_names(groups)

number = np.zeros(55, np.uint8)  # old number -> new number
for new, begins in enumerate(groups.values(), 1):
    for old, name in enumerate(body.classes.names, 1):
        if name.startswith(tuple(begins)):
            number[old] = new
truth = number[body.masks]
truth.shape, classes

# %% [markdown]
# Now we play the annotators. They had little time: they examined each of the first 50 slices for **two of the four** groups, and the next 30 for none. The last 30 slices are of
# other patients and are outlined completely. They are the test.

# %%
rng = np.random.default_rng(0)
n, C = len(truth), len(classes)
known = rng.random((n, C)).argsort(1) < 2  # two of four, at random
known[50:80] = False
known[80:] = True
masks = known_part(truth, known)  # what nobody looked for becomes 0
test_eq(np.intersect1d(body.groups[:80], body.groups[80:]), [])  # no patient on both sides

there, outlined = (truth[:50] > 0).sum(), (masks[:50] > 0).sum()
print(f"structure pixels of the annotated slices: {there}, outlined: {outlined}")

# %% [markdown]
# A large part of what is there was never outlined, and the file says 0 for it. This package is made for such data.

# %%
#| echo: false
#| label: fig-annotators
#| fig-alt: "Five slices: above what is there, below what was outlined, with the groups asked for"
fullest = (truth[:50] > 0).mean((1, 2)).argsort()[::-1][:5]
fig, axes = image_grid(2, 5, size=1.9)
for column, i in zip(axes.T, fullest):
    examined = [classes.name(c + 1) for c in np.flatnonzero(known[i])]
    show_image(column[0], overlay(body.images[i], truth[i], classes))
    show_image(column[1], overlay(body.images[i], masks[i], classes))
    column[1].set_xlabel("asked for " + ", ".join(examined), fontsize=8)
axes[0, 0].set_ylabel("what is there")
axes[1, 0].set_ylabel("what was outlined")
class_legend(fig, classes)
plt.show()

# %% [markdown]
# ## 2. The folder
#
# A [`SliceSet`](../data/10_slices.ipynb) holds the slices and all that is known about them. It includes `groups`, the patient of each slice, so that no patient is trained on and
# validated on at once. [`write_challenge`](../data/70_challenge.ipynb) makes a folder of it. If your data are DICOM or NIfTI, `ctseg import` does both steps. If you write the folder with your own tools,
# this is all it has to contain:

# %%
slices = SliceSet(body.images, masks, known, tuple(f"{i}.png" for i in range(n)), body.groups, classes)
write_challenge(slices[:80], "hospital", "train")
test = slices[80:]
write_challenge(test, "hospital", "test")
for folder, _, files in sorted(os.walk("hospital")):
    first = ", ".join(sorted(files)[:4])
    more = f" … {len(files)} files" if len(files) > 4 else ""
    print(f"{folder}/  {first}{more}")

# %% [markdown]
# Check the folder before you train for hours. A fault is reported in one line, with the file, the image or the pixel. If there is none, the check counts what it found:

# %%
check_challenge("hospital")

# %% [markdown]
# ## 3. Train
#
# A [recipe](../runs/10_recipe.ipynb) says everything about a training, and [`fit`](../recipes/20_fit.ipynb) runs it. Here it is `marginal-log`, the supervised first phase of the default, shrunk to toy size: a network of 8 channels instead of 64, images of 32 pixels. On a GPU you would set
# none of these. One fifth of the annotated patients is held out (`folds=5`). It serves for the learning curve and for choosing the decision rule.

# %%
settings = ["width=8", "image_size=32", "epochs=60", "lr=0.005", "folds=5"]
recipe = apply_settings(get_recipe("marginal-log"), settings)
run = fit("hospital", recipe, out="runs/first", progress=False)
sorted(p.name for p in run.folder.iterdir())

# %% [markdown]
# The run folder holds everything: the recipe with versions, seed and the data's fingerprint, the weights, and the history. If a session is cut, `fit(…, resume=True)` continues to the
# same result. The curves show the training loss on the left, which should fall, and the Dice of the held-out slices on the right, which should rise:

# %%
#| echo: false
#| label: fig-curves
#| fig-alt: "Training loss, which falls, and the Dice of held-out slices, which rises, against the epoch"
plt.figure(figsize=(7, 4))
plt.imshow(plt.imread(run/"curves.png"))
plt.axis("off")
plt.show()

# %% [markdown]
# ## 4. Predict and score
#
# The prediction goes to the challenge's submission format, and the score is computed from the two files, as for any entrant.

# %%
images = read_challenge("hospital", "test").images
prediction = predict_masks(load_predictor(run.folder), images)
write_submission(prediction, test.names, "submission.csv")
result = evaluate_files("hospital/y_test.csv", "submission.csv")
print(f"Dice: {result['facts']['dice']:.2f}")
result["table"][["support", "dice", "invented", "missed"]].round(2)

# %%
#| hide
assert result["facts"]["dice"] > 0.2

# %% [markdown]
# *Support* counts the test slices that show the structure. *Invented* counts the slices where it was drawn and is absent. *Missed* counts the slices where it is present and was not drawn. Every group was learnt, although half of the annotated slices say nothing about it.
# The picture shows the whole range: the best slice, the one in the middle, and the worst. A structure scores 0 on a slice where it is drawn and absent. The skull, for example, is none of the phantom's structures, so bone drawn on
# a head is an invention.

# %%
#| echo: false
#| label: fig-prediction
#| fig-alt: "The best, the middle and the worst test slice: image, truth and prediction, with the Dice"
cells = dice_table(prediction, test.masks, C)  # NaN where a structure is neither there nor drawn
scored = np.flatnonzero(np.isfinite(cells).any(1))
score = np.nanmean(cells[scored], axis=1)
order = scored[score.argsort()[::-1]]
three = [order[0], order[len(order)//2], order[-1]]
titles = {i: f"Dice {value:.2f}" for i, value in zip(scored, score)}
plot_predictions(test, prediction, three, titles=titles)
plt.show()

# %% [markdown]
# ## 5. The same from the command line
#
# ```sh
# ctseg check hospital
# ctseg fit hospital --out runs/first --recipe marginal-log --set width=8 --set image_size=32 --set epochs=60 --set lr=0.005 --set folds=5
# ctseg predict runs/first --images hospital/test-images --out submission.csv
# ctseg evaluate hospital/y_test.csv submission.csv
# ```
#
# ## Where to go from here
#
# | you want to | |
# |---|---|
# | use the 30 slices nobody outlined | the default recipe, `ctseg`, adds them in a second phase. For others see [choosing a recipe](../guides/choosing_a_recipe.ipynb) |
# | understand how unlabelled slices help | [one page to read in one sitting](../explanations/one_sitting.ipynb) |
# | know why unknown must not be background | [three states, not two](../explanations/three_states.ipynb) |
# | read DICOM or NIfTI, with contours for some structures only | [volumes](../io/30_volumes.ipynb), [DICOM](../io/78_dicom_import.ipynb), `ctseg import --help` |
# | another network | `--set model=…`, one of [the zoo](../models/80_zoo.ipynb) |
# | see every option | `ctseg fit --help`, [`Recipe`](../runs/10_recipe.ipynb) |
