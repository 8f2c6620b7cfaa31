# %% [markdown]
# # How a folder was imported
#
# > Window, orientation and pixel size of a challenge folder's images, told from its index, so that new scans can be cut alike.

# %%
#| default_exp io.imported

# %%
#| export
from pathlib import Path

import numpy as np

from ctseg.core.files import InputError, read_json
from ctseg.data.images import image_paths, read_pngs
from ctseg.data.store import is_store, store_notes
from ctseg.io.geometry import slice_axes
from ctseg.io.slicing import Slicing

# %%
#| hide
import os
import shutil
import tempfile

from fastcore.test import test_eq, test_fail

from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

# %% [markdown]
# A network knows the grey values and sizes of the images it was trained on. If a new scan is shown through another window, or at another
# scale, nothing fails, and the result is poor. So a run keeps how its images were made, and here this is read from the `index.json` that
# every import leaves.

# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
cuts = {
    "plain": Slicing(window="lung"),
    "fitted": Slicing(size=64, spacing="fit"),
    "in mm": Slicing(spacing=4., window=(30., 300.)),
    "cropped": Slicing(size=70),
    "windows at random": Slicing(window="random", every=5),
}
for name, slicing in cuts.items():
    cases = [Case(n, lambda v=v: v) for n, v in torso_scans().items()]
    write_volumes(cases, work/name, TORSO_CLASSES, slicing)


# %%
#| export
def _pixel_sizes(entry: dict) -> tuple[tuple, tuple, np.ndarray]:
    "Of a volume: its slices in pixels, the same after resampling, and mm of a resampled pixel (height, width)."
    axes, _ = slice_axes(np.array(entry["affine"]), entry["orientation"])
    mm = np.linalg.norm(np.array(entry["affine"])[:3, :3], axis=0)[axes[1:]]
    size = tuple(entry["shape"][axis] for axis in axes[1:])
    scaled = tuple(entry["scaled"])
    return size, scaled, mm*size/scaled


# %%
index = read_json(work/"fitted"/"index.json")
for entry in index["volumes"].values(): print(*_pixel_sizes(entry)[:2], _pixel_sizes(entry)[2].round(2))


# %%
#| export
def _spacing_of(entries: list[dict], side: int) -> float | str | None:
    "How the slices were resampled, as `Slicing.spacing` says it."
    sizes = [_pixel_sizes(entry) for entry in entries]
    if all(size == scaled for size, scaled, _ in sizes): return None
    mm = np.array([each for _, _, each in sizes])
    longest = [max(scaled) for _, scaled, _ in sizes]
    if all(side == n for n in longest): return "fit"
    return round(float(np.median(mm)), 4)

def _size_of(entries: list[dict], spacing, side: int) -> int | None:
    "The side of the images where slices were cropped to it or fitted into it, as `Slicing.size` says it."
    cropped = any(max(entry["scaled"]) > side for entry in entries)
    return side if cropped or spacing == "fit" else None


# %%
print(_spacing_of(list(index["volumes"].values()), 64), _size_of(list(index["volumes"].values()), "fit", 64))


# %%
#| export
def imported_slicing(
    folder: str | Path, # a challenge folder, or a store of one
) -> dict | None: # orientation, window, size and spacing, as the fields of `Slicing`; None: no volumes
    "How the images of a folder were cut from volumes. A window that differs from slice to slice is `random`."
    if is_store(folder): return store_notes(folder).get("slicing")
    path = Path(folder)/"index.json"
    if not path.exists(): return None
    try:
        index = read_json(path)
        entries = list(index["volumes"].values())
        lines = {split: lines for split, lines in index["images"].items() if lines}
        split = "train" if "train" in lines else next(iter(lines))
        side = read_pngs(image_paths(Path(folder)/f"{split}-images")[:1]).shape[1]
        windows = {tuple(line["window"]) for line in lines[split].values()}
        spacing = _spacing_of(entries, side)
        return {
            "orientation": entries[0]["orientation"],
            "window": [float(v) for v in windows.pop()] if len(windows) == 1 else "random",
            "size": _size_of(entries, spacing, side),
            "spacing": spacing,
        }
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError):
        raise InputError(f"{path}: not an index of volumes; import the volumes again") from None


# %%
for name in cuts: print(f"{name:18}", imported_slicing(work/name))
shutil.copytree(work/"plain", work/"damaged")
(work/"damaged"/"index.json").write_text('{"volumes": 1}')
test_fail(lambda: imported_slicing(work/"damaged"), contains="not an index of volumes")
test_eq(imported_slicing(work), None)
shutil.rmtree(work)
