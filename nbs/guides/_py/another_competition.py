# %% [markdown]
# # Another competition's data
#
# > Images and masks as PNG, or run-length codes in a CSV: from the download to a submission.

# %% [markdown]
# Most competitions on CT slices hand out PNG images, and masks in one of three forms. `ctseg import png` reads all of them:
#
# | masks | how they look |
# |---|---|
# | one file for each structure | `masks/liver/007.png`, or `masks/007_liver.png` |
# | one file with numbers or colours | `masks/007.png`, with a JSON or CSV of values and names for `--classes` |
# | run-length codes | `train.csv` with the columns `id,class,rle`, or a column for each class |
#
# ```sh
# ctseg import png images masks my_data          # a challenge folder, as every command reads it
# ctseg import png images train.csv my_data      # the same from run-length codes
# ctseg fit my_data --out runs/first
# ctseg predict runs/first --images test --out predictions.csv
# ctseg export rle my_data submission.csv --masks predictions.csv --like sample_submission.csv
# ```
#
# Below, all of this runs on a small competition that the page makes of `data_sample`: CT of heads and necks, where each slice shows which of seven structures somebody outlined.

# %%
#| hide
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from skimage.io import imsave
from typer.testing import CliRunner

from ctseg.cli.console import app
from ctseg.cli import main  # enters all commands
from ctseg.data.challenge import read_challenge
from ctseg.io.rle import decode, encode

sample = Path("../../data_sample").resolve()
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
home = os.getcwd()
os.chdir(work)
slices = read_challenge(sample)
slices = slices[slices.labelled][:60]
names = slices.classes.names

def ctseg(line: str):
    "Carry out a command and print what it prints."
    print("$ ctseg", line)
    result = CliRunner().invoke(app, line.split())
    if result.exception: raise result.exception
    print(result.output)


# %% [markdown]
# ## What was downloaded
#
# A folder of images and a CSV with a row for each structure that somebody outlined. A code lists pairs of start and length, down the columns, and counts pixels from 1. This is the usual form; `--order row` and `--first 0` read the others.

# %%
#| hide
Path("images").mkdir()
rows = []
for name, image, mask, known in zip(slices.names, slices.images, slices.masks, slices.known):
    imsave(f"images/{name}", image, check_contrast=False)
    stem = Path(name).stem
    rows += [(stem, names[c], encode(mask == c + 1)) for c in np.flatnonzero(known)]
pd.DataFrame(rows, columns=["id", "class", "rle"]).to_csv("train.csv", index=False)
shutil.copytree(sample/"test-images", "test")
short = [(i, c, rle if len(rle) < 40 else rle[:37] + "…") for i, c, rle in rows]

# %%
pd.DataFrame(short, columns=["id", "class", "rle"]).head(4)

# %% [markdown]
# ## Into a challenge folder
#
# What does it mean that a structure has no row on an image? Only the competition's own text can say.
#
# | `--annotated` | a row with pixels | a row with an empty code | no row |
# |---|---|---|---|
# | left out | present | looked for, and absent | *unknown* |
# | `present` | present | *unknown* | *unknown* |
# | `all` | present | absent | absent |

# %%
ctseg("import png images train.csv my_data")

# %% [markdown]
# Nothing was lost on the way: the masks are those that were encoded, and each structure is known where it had a row.

# %%
read = read_challenge("my_data")
number = {name: i for i, name in enumerate(read.classes.names, 1)}
for name, mask, known in zip(read.names, read.masks, read.known):
    i = list(slices.names).index(name)
    for c, structure in enumerate(names):
        same = (mask == number[structure]) == (slices.masks[i] == c + 1)
        assert same.all() and known[number[structure] - 1] == slices.known[i, c]
print(len(read), "slices,", int(read.known.sum()), "known structures on them")

# %% [markdown]
# Where patients are told by the file names, `--patients 'p(\d+)_'` keeps the slices of one together, so that no patient is in training and in validation. Images of 16 bits need a window: `--window 40,400 --offset -1024`.
#
# ## Train and predict
#
# A minute of training is too little for a good network; it is enough to see that every step fits to the next.

# %%
#| hide
small = "--recipe marginal-log --set width=8 --set epochs=2 --set fold=-1 --device cpu"
CliRunner().invoke(app, f"fit my_data --out runs/first {small}".split())
assert Path("runs/first/recipe.json").exists()

# %%
ctseg("predict runs/first --images test --out predictions.csv --device cpu")

# %% [markdown]
# ## Out as the competition wants it
#
# A sample submission is the best description of what is wanted: with `--like` its columns, its rows and their order are kept. Without one there are three forms, `--form long`, `joined` and `wide`.

# %%
#| hide
tests = sorted(p.stem for p in Path("test").glob("*.png"))[:20]
wanted = pd.DataFrame([(i, c, "") for i in tests for c in names], columns=["id", "class", "rle"])
wanted.to_csv("sample_submission.csv", index=False)

# %%
ctseg("export rle my_data submission.csv --masks predictions.csv --like sample_submission.csv")
submission = pd.read_csv("submission.csv", keep_default_na=False)
wanted = pd.read_csv("sample_submission.csv", keep_default_na=False)
assert submission[["id", "class"]].equals(wanted[["id", "class"]])
print(len(submission), "rows, in the order of the sample")

# %%
#| hide
os.chdir(home)
shutil.rmtree(work)
