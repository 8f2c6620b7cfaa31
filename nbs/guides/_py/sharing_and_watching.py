# %% [markdown]
# # Sharing a network, and watching it train
#
# > A run on the Hugging Face hub and back; TensorBoard, Weights & Biases, MLflow; callbacks of your own.

# %% [markdown]
# A finished run can be put on the Hugging Face hub under a name, and used by that name everywhere. While a run trains, you can watch it in TensorBoard or another tracker.
#
# ## Use a network that somebody shared
#
# ```python
# import ctseg
# model = ctseg.load("hf://owner/name")          # hf://owner/name@v2: a branch, tag or commit
# masks = model.predict(images)                  # uint8 [N, H, W]
# ```
#
# ```sh
# ctseg predict hf://owner/name --images my_data/test-images --out submission.csv
# ctseg fit my_data --out runs/mine --init hf://owner/name
# ```
#
# `hf://` may be left out where no such folder exists: `owner/name` is then looked for on the hub, unless there is a folder `owner` (so a mistyped `runs/frist` is not looked for on the hub). What was fetched once is found again without a network.
#
# Only data is fetched: weights as safetensors, JSON, CSV and Markdown, each by its exact name. Nothing is unpickled, and no code is fetched or executed. A network that needs a plugin says so; read the file before you give it with `--plugin`.
#
# ## Share yours
#
# ```sh
# pip install 'ctseg[hub]'
# hf auth login
# ctseg push runs/first ada/liver                # private; --public for everybody
# ```
#
# ```python
# ctseg.push_to_hub("runs/first", "ada/liver")
# ```
#
# Every finished run has a `model_card.md`: what it outlines, what it scored on how many held-out slices of how many patients, on what it was trained (a fingerprint, no names), the recipe, the versions. It becomes the front page of the repository. **Write the licence into it first**; the data's licence may restrict yours.
#
# Optimiser states, checkpoints of phases, pseudo-labels, pictures and the report page stay at home: they are large, or show images, or name them.
#
# ## Watch a training
#
# ```sh
# ctseg fit my_data --out runs/first --log tensorboard           # tensorboard --logdir runs
# ctseg fit my_data --out runs/first --log wandb --log mlflow    # several
# ```
#
# A tracker gets the recipe once, and loss, Dice, rate and skipped steps after each epoch, at the epoch's number in the whole run. A run that is resumed goes on in the same place, no epoch twice. Nothing leaves the machine by default: wandb writes into the run folder until `WANDB_MODE=online` is set, MLflow where `MLFLOW_TRACKING_URI` says. All trackers of [accelerate](https://huggingface.co/docs/accelerate/usage_guides/tracking) can be named; the others follow their own settings. A tracker that fails on the way is left out with a warning, and the training goes on.
#
# Without a terminal the progress is one line an epoch.
#
# ## Callbacks
#
# A function of `epoch`, `row` and `folder` is called after each epoch. It may return a text to stop: everything is saved, `fit` raises `Stopped`, and the run can be resumed.

# %%
#| hide
import tempfile
from pathlib import Path

import ctseg
from ctseg.data.toys import toy_set
from ctseg.training.deadline import Stopped

keep = tempfile.TemporaryDirectory()
slices, _ = toy_set(24, 16)


# %%
def watch(epoch, row, folder):
    print(f"epoch {epoch} of phase {row['phase']}: loss {row['loss']:.2f}")
    if epoch == 3: return "three epochs are enough to see it work"

recipe = ctseg.get_recipe("masked").change(width=4, epochs=20, folds=4)
try: ctseg.fit(slices, recipe, Path(keep.name)/"run", device="cpu", progress=False, callbacks=[watch])
except Stopped as e: print(e)

# %%
#| hide
keep.cleanup()

# %% [markdown]
# Callbacks run in the first of several processes. They see a copy of the row, and random numbers that they draw change nothing. An exception ends the training and reaches the caller.
