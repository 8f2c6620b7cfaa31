# %% [markdown]
# # Adding a class to a trained network
#
# > A network knows some structures, a new folder has outlines of others: learn them without forgetting the old ones.

# %% [markdown]
# ```sh
# ctseg fit new_folder --out runs/new --init runs/old --teacher runs/old
# ```
#
# * `--init runs/old` starts from the old weights. The rows of the output layer follow the classes by *name*; rows of new classes are fresh. The images may have another size. The network must be the same one (`--set model=…`, `width=…` as in the old run's `recipe.json`); otherwise an error says what differs.
# * `--teacher runs/old` keeps the old structures: wherever nobody looked for one of them, the new network is to [answer as the old one does](../losses/35_distillation.ipynb), with the same probabilities. What people examined is never asked. The old network says nothing about a new class, which may take pixels from the background as it sees it. `--set teacher_weight=1` says how much it counts beside what people said: more keeps the old structures closer, less learns the new ones faster.
# * Either may be a name on the hub: `--init hf://owner/name`.
# * `class_names.json` of the new folder lists *all* classes, old and new. `annotated_labels.json` says, as always, which were examined.
#
# `recipe.json` keeps both runs' names and a hash of their weights, and `--resume` insists on the same. Training that was cut ends bit for bit as if it had not been.
#
# ## Does it work?
#
# Two lungs and a heart on toy slices, one seed. On the first 24 slices the lungs are outlined; the old network is trained on these. On the other 24 only the heart is outlined.

# %%
#| hide
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import ctseg
from ctseg.data.toys import toy_set
from ctseg.metrics.challenge import dice_table, nan_mean

warnings.simplefilter("ignore")  # "nobody looked for …" is the very point here
keep = tempfile.TemporaryDirectory()

# %%
slices, truth = toy_set(48, 48)
test, test_truth = toy_set(40, 0, seed=5)
names = list(slices.classes.names)

def examined(rows, *chosen):
    "Slices on which these structures, and no others, were looked for."
    on = np.isin(names, chosen)
    masks = np.where(np.isin(truth[rows], np.flatnonzero(on) + 1), truth[rows], 0).astype(np.uint8)
    return replace(slices[rows], masks=masks, known=np.tile(on, (24, 1)))

lungs, heart = examined(slice(24), "lung_right", "lung_left"), examined(slice(24, 48), "heart")

# %%
recipe = ctseg.get_recipe("marginal-log").change(width=8, epochs=40, batch_size=4, folds=4, lr=5e-3, ema=0.9)

def train(data, name, **earlier):
    return ctseg.fit(data, recipe, Path(keep.name)/name, device="cpu", progress=False, **earlier)

def score(run):
    labels = ctseg.load(run.folder, "cpu").predict(test.images)
    return nan_mean(dice_table(labels, test_truth, len(names)), 0)

old = train(lungs, "old")
rows = {
    "old network": old,
    "fine-tuned on the heart (--init)": train(heart, "tuned", init=old),
    "and taught by the old one (--init --teacher)": train(heart, "taught", init=old, teacher=old),
    "both folders at once": train(lungs.concat(heart), "at once"),
}
pd.DataFrame({name: score(run) for name, run in rows.items()}, index=names).T.round(3)

# %%
#| hide
table = np.array([score(run) for run in rows.values()])
assert (table[1, :2] == 0).all()  # it has forgotten
assert (table[2, :2] > table[0, :2] - 0.02).all() and table[2, 2] > table[3, 2] - 0.03
keep.cleanup()

# %% [markdown]
# Fine-tuning forgets the lungs: nobody examined them in the new slices, so they count as absent there. With the old network's answers they are as good as before, and the heart is as good as after training on both folders at once, which needs the old folder. These are toys and one seed: the order is what to take from it, not the digits. [On real CT](../benchmarks/adding_a_class.ipynb), three seeds, the old structures keep their mean, and single ones lose 0.02 at most.
#
# ## What to know
#
# * The old network's mistakes are learnt again. Give it its best form: a student, the average of several seeds trained into one, more epochs.
# * Train as long as you would from nothing. The new class starts from a network that calls its place background, and after a few hundred steps it may not be drawn at all.
# * The decision rule is chosen on the new folder's held-out slices, where only the new classes were examined. If old ones come out too small or too large, compare with `ctseg predict … --rule argmax`.
# * Held-out scores are of the new classes alone. Score the old ones on slices where they were outlined: `ctseg evaluate`.
# * If you still have the old folder, training on both at once is simpler.
