# %% [markdown]
# # Probabilities on disk
#
# > The probabilities of many images in one small file, to average runs of several machines or to try another rule tomorrow.
#
# - skip_showdoc: true

# %%
#| default_exp prediction.store

# %%
#| export
import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.json_files import parse_json
from ctseg.core.paths import MAX_TEXT, refuse_special, refuse_unread
from ctseg.core.schema import fields, listed, mapped, number, text
from ctseg.data.cache import array_header

# %%
#| hide
import tempfile
from pathlib import Path

import numpy as np
from fastcore.test import test_eq

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.toys import toy_set

# %% [markdown]
# For 500 slices of 256×256 and 54 classes, probabilities are 7 GB of floats, nearly all of them zero. The file keeps what matters:
#
# * of each image, only the classes that reach 1/2048 anywhere, as `float16` [k, H, W];
# * rounded to steps of 1/1024, which a `float16` holds exactly and which compress well;
# * each in a member of a zip archive, `NAME.npy`, so that one image can be read without the others (`numpy.load` opens the file, too);
# * and `index.json` with the classes, the images' size, and which classes were kept for each image.

# %%
#| export
STEP = 1/1024  # to which probabilities are rounded
FORMAT = "ctseg probabilities 1"

def compacted(
    prob: np.ndarray, # f32 [C, H, W]
) -> tuple[list[int], np.ndarray]: # ids of the classes kept, their probabilities float16 [k, H, W]
    "The classes of one image that are worth keeping."
    half = (np.round(prob/STEP)*STEP).astype(np.float16)
    kept = np.flatnonzero(half.any((1, 2)))
    return (kept + 1).tolist(), half[kept]


# %%
slices, truth = toy_set(6)
prob = np.stack([truth == c for c in (1, 2, 3)], 1)*np.float32(0.8)
kept, half = compacted(prob[0])
print("classes", kept, half.dtype, half.shape)


# %%
#| export
@contextlib.contextmanager
def write_probabilities(
    path: str | Path,
    classes: ClassMap,
    activation: str, # "softmax" or "sigmoid": how the probabilities of a pixel hang together
    size: tuple[int, int], # height and width of the images
) -> Iterator[Callable[[str, np.ndarray], None]]:
    "Yields `add(name, prob)` for the probabilities f32 [C, H, W] of an image; the file is complete or not there."
    images = {}
    with atomic_path(path) as tmp, zipfile.ZipFile(tmp, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        def add(name: str, prob: np.ndarray):
            images[name], half = compacted(prob)
            with z.open(f"{name}.npy", "w") as f:
                np.lib.format.write_array(f, half)
        yield add
        index = {"format": FORMAT, "size": [int(side) for side in size], "activation": activation}
        index |= {"classes": list(classes.names), "images": images}
        entry = zipfile.ZipInfo("index.json")  # without the time: the same file each time
        z.writestr(entry, json.dumps(index), zipfile.ZIP_DEFLATED)


# %%
keep = tempfile.TemporaryDirectory()
path = Path(keep.name)/"prob.zip"
with write_probabilities(path, slices.classes, "sigmoid", prob.shape[2:]) as add:
    for name, p in zip(slices.names, prob): add(name, p)
print(f"{prob.nbytes/1e3:.0f} kB of floats in {path.stat().st_size/1e3:.1f} kB")
with np.load(path) as z: print(slices.names[0], z["0.png"].dtype, z["0.png"].shape)


# %% [markdown]
# ## Reading
#
# Images are read when they are asked for. If a file was truncated or edited, it is refused when it is opened, or, where the index does not show the damage, when the damaged image is read.

# %%
#| export
def damaged(path: Path, where: str = "") -> InputError:
    "The error for a file that is no store of probabilities, or no longer one."
    problem = f"damaged at {where}" if where else "not a file of probabilities, or damaged"
    return InputError(f"{path}: {problem}; write it again with `ctseg predict … --probabilities`")

INDEX = fields({
    "size": listed(number(1, 1 << 14, whole=True), 2), "activation": text, "classes": listed(text),
    "images": mapped(listed(number(1, 255, whole=True)))}, {"format": text})

def checked_index(index: Any) -> dict[str, Any]:
    "The index of a store; `ValueError` for one that cannot be."
    INDEX(index)
    ClassMap.from_names(index["classes"])
    classes = len(index["classes"])
    for kept in index["images"].values():
        if kept != sorted(set(kept)) or (kept and kept[-1] > classes):
            raise ValueError
    if index["activation"] not in ("softmax", "sigmoid"): raise ValueError
    return index


# %%
#| export
def open_store(path: Path) -> tuple[zipfile.ZipFile, dict[str, Any]]:
    "The archive and its index; `InputError` for a file that is no store of probabilities."
    refuse_special(path)
    try:
        archive = zipfile.ZipFile(path)
        if archive.getinfo("index.json").file_size > MAX_TEXT: raise ValueError
        return archive, checked_index(parse_json(archive.read("index.json").decode()))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as e:  # each way of being damaged has its own
        refuse_unread(path, e)
        raise damaged(path) from None


# %%
index = {"size": [48, 48], "classes": ["liver"], "activation": "sigmoid", "images": {"0.png": [1]}}
test_eq(checked_index(index), index)
try: checked_index(index | {"images": {"0.png": [2]}})
except ValueError: print(damaged("prob.zip"))


# %%
#| export
def read_image(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    "The probabilities of one image, float16 of `shape`; `ValueError`, or what zip and NumPy raise, for a damaged one."
    entry = f"{name}.npy"
    with archive.open(entry) as f:
        if array_header(f) != (shape, np.float16): raise ValueError
    with archive.open(entry) as f: kept = np.lib.format.read_array(f)
    if not (kept >= 0).all() or not (kept <= 1).all():
        raise ValueError
    return kept


# %%
#| export
class StoredProbabilities:
    "What `write_probabilities` wrote; `stored[name]` is f32 [C, H, W], read when asked for."

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.zip, index = open_store(self.path)
        self.classes = ClassMap.from_names(index["classes"])
        self.images: dict[str, list[int]] = index["images"]  # ids of the classes kept
        self.size: tuple[int, int] = tuple(index["size"])    # height and width
        self.activation: str = index["activation"]           # "softmax" or "sigmoid"

    @property
    def names(self) -> list[str]:
        "The images, in the order in which they were written."
        return list(self.images)

    def __len__(self) -> int: return len(self.images)
    def __repr__(self) -> str:
        size = "x".join(map(str, self.size))
        facts = f"{len(self)} images {size}, {len(self.classes)} classes, {self.activation}"
        return f"StoredProbabilities({facts})"

    def __enter__(self): return self
    def __exit__(self, *error): self.zip.close()

    def __getitem__(self, name: str) -> np.ndarray:
        prob = np.zeros((len(self.classes), *self.size), np.float32)
        channels = np.array(self.images[name], int) - 1
        try:
            prob[channels] = read_image(self.zip, name, (len(channels), *self.size))
        except Exception as e:  # each way of being damaged has its own
            refuse_unread(self.path, e)
            raise damaged(self.path, name) from None
        return prob


# %%
with StoredProbabilities(path) as stored:
    print(stored)
    test_eq(stored.names, list(slices.names))
    for name, p in zip(slices.names, prob): assert np.abs(stored[name] - p).max() <= 1/2048
path.write_bytes(path.read_bytes()[:-40])
for p in (path, path.parent/"missing.zip"):
    try: StoredProbabilities(p)
    except InputError as e: print(str(e).replace(keep.name, "…"))
keep.cleanup()
