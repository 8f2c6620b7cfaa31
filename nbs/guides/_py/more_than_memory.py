# %% [markdown]
# # More slices than memory
#
# > A store: slices in compressed chunks, read while training, with the same result as from memory.
#
# - skip_showdoc: true

# %% [markdown]
# `ctseg fit` reads a challenge folder into memory: 400,000 slices of 256x256 pixels would need 50 GB. A **store** holds the same slices in
# compressed chunks on a disk. It is made once, and then stands in the place of the folder:
#
# ```sh
# pip install 'ctseg[store]'
# ctseg store my_data --out my_data.zarr           # 0.35 GB of memory, and 0.3 GB more for 200,000 slices
# ctseg import nifti scans my_data.zarr --store    # or at once, without a folder on the way
# ctseg check my_data.zarr                         # reads everything once, and compares checksums
# ctseg fit my_data.zarr --out runs/first --memory 4GB
# ctseg predict runs/first --images my_data.zarr --out labels.zarr
# ctseg evaluate my_data.zarr labels.zarr          # where the store's test split has truth
# ```
#
# * `--memory` says how much of the slices may be brought to the device. What is larger is read by a thread ahead of the step that needs it. Weights, history and metrics are the same to the last bit, and a run that was cut may be resumed with another `--memory`, or with the folder in place of the store.
# * Without `--memory`, slices are loaded if they take a quarter of the free memory at most.
# * `ctseg store --annotated present` decides once and for all [what a zero means](your_challenge_folder.ipynb); commands that read the store ask no more.
# * A store may lie at an address that [fsspec](https://filesystem-spec.readthedocs.io) understands: `ctseg store my_data --out s3://bucket/my_data`. A store that breaks off there leaves its parts behind, but they are not taken for a store.
# * Masks need room on the disk while a store is made, uncompressed; `--scratch FOLDER` says where.
# * Put a `patients.json` into a large folder. Without it, near-duplicates are found by comparing every slice with every other.
#
# Two things still grow with the slices:
#
# * the index, with a bit for each cell, and 32 bytes and a name for each slice;
# * methods that label all images between two phases (`teacher-student`, `self-training`): a few numbers for each cell. One process keeps their label maps in temporary files (where `TMPDIR` says), several processes in memory.
#
# `ctseg report` and `ctseg suggest` take a store as well, and keep their label maps in temporary files too. `ctseg predict --out submission.csv` and `ctseg export nifti my_data.zarr OUT --masks labels.zarr` read label maps a part at a time,
# `ctseg merge` and `ctseg export nnunet` their folders.
#
# One training can be shared by [several cards and hosts](several_hosts.ipynb) over one store.
#
# [How time and memory grow](../benchmarks/store_scale.ipynb) has been measured up to 200,000 slices.
#
# ## In Python

# %%
#| hide
import tempfile
from pathlib import Path

import numpy as np

from ctseg.data.toys import toy_set

folder = Path(tempfile.mkdtemp())
slices, _ = toy_set(40, 10)

# %%
from ctseg.data.store import read_store, write_store

write_store(slices, folder/"toys.zarr")
stored = read_store(folder/"toys.zarr")
print(stored)
print(stored.images, "of which nothing has been read yet")

# %% [markdown]
# A `SliceSet` from a store is used like any other. Choosing slices reads nothing; indexing the images does.

# %%
few = stored[stored.labelled][:3]
print(few.names, few.images, few.images[0].mean().round(1))
assert np.array_equal(few.images[0], slices.images[0])
assert stored.fingerprint() == slices.fingerprint()
