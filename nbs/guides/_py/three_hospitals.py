# %% [markdown]
# # Three hospitals, one network
#
# > Each has outlined other structures, under other numbers and names: make one training set of them, and one network.

# %% [markdown]
# ```sh
# ctseg merge north south west --out all --unions unions.json --resize pad
# ctseg check all
# ctseg fit all --out runs/all
# ctseg predict runs/all --images all/test-images --out submission.csv --confidence sure.csv
# ```
#
# * Classes are matched by name, in the usual spellings: `Parotid_L`, `parotid left` and `Left Parotid Gland` are one. Numbers mean nothing. What only you can know is said by `--rename names.json`: `{"CT-Liver": "liver", "west/vessel": "aorta"}`. Every `ctseg import` takes the same file.
# * What a hospital never looked for stays *unknown* on its slices. It is not background.
# * A class may be the [union](../explanations/unions.ipynb) of others: `{"Parotids": ["Parotid_L", "Parotid_R"]}`, in a folder's own `unions.json` or for all by `--unions`.
# * Patients of different folders stay different people. Pixels of the value 255 are ignored for every class. Slices without annotation come along.
# * A contradiction is told in one line and nothing is written: two classes that would become one, a whole beside its parts without a union, a folder or a slice given twice.
# * Images of one size are kept. Of others, `--resize spacing` gives all pixels the same millimetres (by itself, where all folders were imported from volumes); `fit` makes each fill the frame; `pad` adds a margin.
#
# What follows does all this on the real CT of `data_sample`: 480 annotated slices of 96 patients, dealt to three hospitals by patient.

# %%
#| hide
import json
import os
import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import binary_dilation

import ctseg
from ctseg.core.anatomy import ClassMap
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.io.merge import merge
from ctseg.metrics.challenge import dice_table, nan_mean
from ctseg.prediction.submission import predict_folder

warnings.simplefilter("ignore")  # "nobody looked for …" is the very point here
keep = tempfile.TemporaryDirectory()
work = Path(keep.name)
os.environ["CTSEG_CACHE"] = str(work/"cache")

# %% [markdown]
# ## The hospitals
#
# North follows TG-263's names, and marks a rim around each mandible as doubtful (255). South treats the parotids as one and has them as number 1. West outlines each parotid, and its images are 60 pixels wide instead of 64.

# %%
sample = ctseg.read_challenge("../../data_sample")
names = {
    "north": {"Brainstem": ["brainstem"], "SpinalCord": ["spinal_cord"], "Bone_Mandible": ["mandible"]},
    "south": {"Parotids": ["parotid_left", "parotid_right"], "spinal cord": ["spinal_cord"]},
    "west": {"Parotid_L": ["parotid_left"], "Parotid_R": ["parotid_right"], "brainstem": ["brainstem"]},
}


# %%
#| hide
def in_words_of(hospital, slices):
    "The slices with what a hospital has examined, under its own names and numbers."
    table, known = np.zeros(256, np.uint8), []
    for number, members in enumerate(names[hospital].values(), 1):
        ids = [sample.classes.id(member) for member in members]
        table[ids] = number
        known.append(slices.known[:, np.array(ids) - 1].all(1))
    known = np.stack(known, 1)
    masks = table[slices.masks]
    shown = np.concatenate([np.ones((len(slices), 1), bool), known], 1)
    masks[~shown[np.arange(len(slices))[:, None, None], masks]] = 0
    numbered = [f"{i}.png" for i in range(len(slices))]
    classes = ClassMap.from_names(names[hospital])
    return ctseg.SliceSet(slices.images, masks, known, numbered, slices.groups, classes)

def with_doubtful_rim(slices, number):
    "Pixels around a structure become 255."
    masks = slices.masks.copy()
    for mask in masks:
        rim = binary_dilation(mask == number) & (mask == 0)
        mask[rim] = 255
    return replace(slices, masks=masks)

def narrower(slices, edge):
    "The slices without a margin."
    inner = (slice(None), slice(edge, -edge), slice(edge, -edge))
    images, masks = slices.images[inner].copy(), slices.masks[inner].copy()
    return ctseg.SliceSet(images, masks, slices.known, slices.names, slices.groups, slices.classes)

annotated = sample[sample.labelled]
patients = np.unique(annotated.groups)
owner = dict(zip(np.random.default_rng(0).permutation(patients).tolist(), np.arange(len(patients)) % 3))
of_slice = np.array([owner[patient] for patient in annotated.groups.tolist()])
dealt = {name: in_words_of(name, annotated[of_slice == i]) for i, name in enumerate(names)}
dealt["north"] = with_doubtful_rim(dealt["north"], number=3)
dealt["west"] = narrower(dealt["west"], edge=2)

# %%
for name, slices in dealt.items(): ctseg.write_challenge(slices, work/name)
for name in names: print(name, json.loads((work/name/"class_names.json").read_text()))

# %% [markdown]
# ## The merge
#
# Without a word about the parotids it refuses: in a network, South's class would deny West's two, and they lie on the same pixels.

# %%
folders = [work/name for name in names]
try:
    merge(folders, work/"all", resize="pad")
except ctseg.InputError as e:
    print(e)

# %%
facts = merge(folders, work/"all", unions={"Parotids": ["Parotid_L", "Parotid_R"]}, resize="pad")
facts["table"]

# %% [markdown]
# The table says who taught what: on how many slices a class was examined, and on how many of these it was found. It is kept in `sources.csv`; `origins.csv` says where each image came from. A slice of each hospital:

# %%
#| hide
both = ctseg.read_challenge(work/"all")
number = {name: both.classes.id(name) for name in ("Bone_Mandible", "Parotids", "Parotid_L")}
largest = [int((both.masks == id).sum((1, 2)).argmax()) for id in number.values()]

# %%
#| echo: false
#| fig-alt: "A slice of each of three hospitals with its outlines; above it what that hospital examined"
fig, (panels,) = image_grid(1, 3, size=2.8)
for ax, n, hospital in zip(panels, largest, names):
    examined = [name for name, known in zip(both.classes.names, both.known[n]) if known]
    title = f"{hospital} examined\n" + ", ".join(examined)
    show_image(ax, overlay(both.images[n], both.masks[n], both.classes), title)
class_legend(fig, both.classes, both.masks[largest])

# %% [markdown]
# White is North's doubtful rim, which no loss looks at. South's parotids have one colour.
#
# ## One network
#
# South alone could never tell left from right, and never saw a brainstem. We train South's own network and the merged one for the same number of steps, and score both on the 60 test slices, where all was outlined. The networks are small and the trainings take a minute or two, so the figures say which way it goes and no more.

# %%
test = ctseg.read_challenge("../../data_sample", "test")
merged_steps = both.labelled.sum()*25

def train(slices, name, epochs, **earlier):
    "A short training on a processor."
    recipe = ctseg.get_recipe("marginal-log")
    recipe = recipe.change(width=8, epochs=epochs, batch_size=8, lr=2e-3, ema=0.9, fold=-1)
    return ctseg.fit(slices, recipe, work/"runs"/name, device="cpu", progress=False, **earlier)

south = train(dealt["south"], "south", round(merged_steps/dealt["south"].labelled.sum()))
one = train(both, "all", 25)

# %%
#| hide
ORGANS = {
    "Brainstem": "brainstem", "SpinalCord": "spinal_cord", "spinal cord": "spinal_cord",
    "Larynx": "larynx", "Bone_Mandible": "mandible", "Parotid_L": "parotid_left",
    "Parotid_R": "parotid_right",
}

def score(run):
    "Dice on the test slices of each organ that a network knows, and of both parotids as one."
    predictor = ctseg.load(run.folder, "cpu")
    masks = predictor.predict(test.images)
    own, found = predictor.classes, {}
    those = [test.classes.id(f"parotid_{side}") for side in ("left", "right")]
    for name, organ in ORGANS.items():
        if name not in own.names: continue
        pair = [masks == own.id(name), test.masks == test.classes.id(organ)]
        pair = [mask.astype(np.uint8) for mask in pair]
        found[organ] = float(nan_mean(dice_table(*pair, 1), 0)[0])
    parotids = [id for id, name in enumerate(own.names, 1) if name.startswith("Parotid")]
    pair = [np.isin(m, ids).astype(np.uint8) for m, ids in ((masks, parotids), (test.masks, those))]
    return found | {"both parotids": float(nan_mean(dice_table(*pair, 1), 0)[0])}


# %%
rows = {"South's own": score(south), "the merged one": score(one)}
pd.DataFrame(rows).T.round(2).fillna("")

# %% [markdown]
# One network knows the structures of all three. It tells left from right, though South's slices only said "parotids", because West's say which is which. On what South outlined itself, it draws the spinal cord better than South's own network, which never saw the other hospitals' cords, and the parotids about equally well.
#
# ## How sure is it?
#
# `--confidence FILE.csv` tells for each slice and structure the Dice to expect and the chance that it is there. With no held-out slices (`fold=-1`) it is not calibrated; a run of yours is.

# %%
predictor = ctseg.load(one.folder, "cpu")
shutil.copytree("../../data_sample/test-images", work/"new"/"test-images")
predict_folder(predictor, work/"new"/"test-images", work/"submission.csv", confidence=work/"sure.csv")
pd.read_csv(work/"sure.csv").head(4)

# %% [markdown]
# ## A fourth hospital
#
# Later East comes with the larynx, and nothing else. Its folder lists all classes. `--init` starts from the merged network, and `--teacher` has the new network answer as the merged one about the old structures on East's slices, so that they are not forgotten ([more](adding_a_class.ipynb)).
#
# ```sh
# ctseg fit east --out runs/with_larynx --init runs/all --teacher runs/all
# ```

# %%
larynx = annotated.known[:, annotated.classes.id("larynx") - 1]
east = annotated[larynx]
classes = ClassMap.from_names([*both.classes.names, "Larynx"], both.classes.union_table)
drawn = east.masks == east.classes.id("larynx")
known = np.tile([name == "Larynx" for name in classes.names], (len(east), 1))
masks = drawn.astype(np.uint8)*len(classes)
east = ctseg.SliceSet(east.images, masks, known, groups=east.groups, classes=classes)
rows["and East's larynx"] = score(train(east, "larynx", 80, init=one, teacher=one))
print(f"{len(east)} slices, of which {east.present.any(1).sum()} show a larynx")
pd.DataFrame(rows).T.round(2).fillna("")

# %%
#| hide
table = pd.DataFrame(rows).T
assert table.loc["the merged one", "parotid_left"] > .15 and table.loc["the merged one", "brainstem"] > .2
assert both.ignored.sum() and len(both) == len(annotated)
keep.cleanup()

# %% [markdown]
# Nobody outlined the old structures on East's slices, and without `--teacher` all would be forgotten. With it most stay within 0.03 of what they were. The brainstem gains 0.05 and the left parotid loses 0.09: what East's slices do not show is not rehearsed ([measured](../benchmarks/adding_a_class.ipynb) with more). The larynx begins to be drawn, from 18 slices that show one. It takes its time: after a third of this training it was not drawn at all.
#
# ## The next hour
#
# `ctseg suggest runs/all all --count 20` lists the slices that are most worth a person's next hour, and the structures to look for on each, with a page of proposed outlines: [how it chooses](../prediction/57_suggest.ipynb).
#
# ## What to know
#
# * These are 480 slices, one seed, and minutes of training: a measured comparison is on [its own page](../benchmarks/hospitals.ipynb).
# * Hospitals define structures differently: one keeps the vessels in the liver, the next cuts them out. No merge mends that; it limits what a merged network can score. Classes that lie within one another are noted.
# * A source that shows a structure on every slice teaches nothing about its absence. Another source's slices do, where they were examined for it.
# * Display windows differ, and a network could tell the hospital by them. Import the volumes of all with one `--window`.
# * The test splits are merged as well. A test slice is scored on what its hospital examined (`annotated_labels_test.json`).
