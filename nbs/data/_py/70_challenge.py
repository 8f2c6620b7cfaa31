# %% [markdown]
# # Challenge folders
#
# > From a challenge folder to slices and back, with every mistake told in one line.
#
# - skip_showdoc: true

# %%
#| default_exp data.challenge

# %% [markdown]
# A challenge folder holds the images of a split, the table of their masks, and the JSON files that say what the zeros in it mean. This page
# reads one into a [`SliceSet`](10_slices.ipynb), writes one, and checks one before hours of training.
#
# | file | content |
# |---|---|
# | `train-images/`, `test-images/` | 8-bit grey PNG files, `0.png`, `1.png`, … |
# | `y_train.csv` (or `.csv.gz`, or `label_*.csv` as downloaded) | the masks of the first images; those after its last column are unlabelled |
# | `annotated_labels.json` | the classes examined on each training image |
# | `annotated_labels_test.json` | the same of each test image, where the truth of the test is partial (optional) |
# | `y_test.csv`, `class_names.json`, `patients.json` | may be missing: the truth of the test, other classes than the challenge's 54, groups |

# %%
#| export
import contextlib
import os
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.arguments import checks_arguments
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.filetypes import check_folder, instead_of
from ctseg.core.json_files import read_json, write_json
from ctseg.data.annotations import check_examined, read_annotated, read_classes, read_groups
from ctseg.data.images import natural_key, open_images, read_images, size_text
from ctseg.data.lazy import LazyPixels, blank_like, seen_values, take
from ctseg.data.mask_csv import check_names, read_masks, write_masks
from ctseg.data.mask_rows import read_image_names
from ctseg.data.slices import SliceSet, present_classes
from ctseg.data.spooled import spool_masks

# %%
#| hide
import json
import os
import tempfile
from pathlib import Path

from skimage.io import imsave

import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.core.errors import InputError
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.data.toys import toy_set

# %% [markdown]
# Four toy slices, of which two are annotated, written as such a folder and read back:

# %%
os.environ["CTSEG_CACHE"] = tempfile.mkdtemp()
toys, truth = toy_set(4, 2)
with tempfile.TemporaryDirectory() as d:
    folder = Path(d)/"my_data"
    write_challenge(toys, folder)
    print(*sorted(path.name for path in folder.iterdir()), sep="  ")
    print("annotated_labels.json:", (folder/"annotated_labels.json").read_text())
    print(read_challenge(folder))

# %% [markdown]
# ## Reading

# %%
#| export
_SPLITS = ("train", "test")
_ANNOTATED = ("json", "all", "present")

def _check_folder(folder: Path, split: str):
    "`InputError` unless the folder holds the images of a split."
    if split not in _SPLITS:
        raise did_you_mean("split", split, _SPLITS)
    check_folder(folder, f"a folder with {split}-images/ and y_{split}.csv")
    if not (folder/f"{split}-images").is_dir():
        problem = f"has no {split}-images/" if any(folder.iterdir()) else "is an empty folder"
        raise InputError(f"{folder}: {problem}{instead_of(folder, f'{split}-images')}; "
                         f"expected {split}-images/ and y_{split}.csv, as unpacked from the challenge")


# %% [markdown]
# A folder that is not there, and a split that is misspelt:

# %%
test_fail(lambda: _check_folder(Path("nowhere"), "train"), contains="nowhere: no such folder")
test_fail(lambda: _check_folder(Path("nowhere"), "tarin"), contains="did you mean train")


# %%
#| export
def is_train_table(path) -> bool:
    "Whether a table is of a training split: `y_train.csv`, or `label_*.csv` as the challenge's site has it."
    stem = Path(path).name.split(".")[0]
    return stem == "y_train" or stem.startswith("label_")

def _find_table(folder: Path, split: str) -> Path|None:
    "The mask table of a split, plain or gzipped; `None` for a test split without truth."
    tables = [p for p in (folder/f"y_{split}.csv", folder/f"y_{split}.csv.gz") if os.path.lexists(p)]
    if not tables and split == "train":
        tables = sorted([*folder.glob("label_*.csv"), *folder.glob("label_*.csv.gz")])
        if not tables:
            raise InputError(f"{folder}: no y_train.csv or y_train.csv.gz (nor label_*.csv); "
                             f"put the table of masks there{instead_of(folder, 'y_train.csv')}")
    if len(tables) > 1:
        raise InputError(f"{folder}: both {tables[0].name} and {tables[1].name} exist; remove one of them")
    return tables[0] if tables else None


# %%
with tempfile.TemporaryDirectory() as d:
    for make in (
        lambda: None,
        lambda: Path(d, "notes.txt").write_text(""),
        lambda: Path(d, "train-images").mkdir(),
    ):
        make()
        try:
            _check_folder(Path(d), "train")
            _find_table(Path(d), "train")
        except InputError as e:
            print("-", str(e).replace(d, "…"))


# %% [markdown]
# What is known of the training images is read from `annotated_labels.json`, or follows from a word of the caller.

# %% [markdown]
# Many tables have a column for every image, also for those nobody looked at. "Everything was looked for" would teach that nothing is on these,
# so it is told how many there are.

# %%
#| export
def _tell_empty(csv: Path, masks: np.ndarray):
    "Warn if masks of labelled images uint8 [n,H,W] hold no pixel, where every class counts as examined."
    empty = int((~seen_values(masks)[:, 1:].any(1)).sum())
    if not empty: return
    warnings.warn(f"{csv}: {empty} of {len(masks)} columns hold no pixel, "
                  "and would be taught as images with nothing on them; "
                  "if nobody looked at these, choose annotated='present' (--annotated present)", stacklevel=2)


# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    _tell_empty(Path("y_train.csv"), np.stack([np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)]))
print(caught[0].message)


# %%
#| export
def _known_of_train(
    folder: Path, csv: Path, names, masks: np.ndarray,
    labelled: int, # so many images, the first ones, have a column in the CSV
    classes: ClassMap,
    annotated: str, # json, all or present
) -> np.ndarray: # bool [N,C]
    "What is known on the training images, bool [N,C]."
    n, C = len(names), len(classes)
    if annotated == "present":
        return present_classes(masks, C)
    if annotated == "all":
        has_column = np.arange(n) < labelled
        _tell_empty(csv, take(masks, slice(labelled)))
        return np.repeat(has_column[:, None], C, axis=1)
    known = read_annotated(folder/"annotated_labels.json", n, C)
    without_masks = known[labelled:].any(1)
    if without_masks.any():
        i = labelled + int(np.argmax(without_masks))
        raise InputError(f"{csv}: no column for {names[i]}, which annotated_labels.json says was examined; "
                         f"add it, or empty entry {i}")
    check_examined(known, masks, names, csv, classes)
    return known


# %% [markdown]
# The truth of a test is whole in most folders. Where several sources were [merged](../io/88_merge.ipynb), each has examined other classes
# on its test slices, and a second list says which.

# %%
#| export
TEST_EXAMINED = "annotated_labels_test.json"

def _known_of_test(folder: Path, csv: Path, names, masks: np.ndarray, classes: ClassMap) -> np.ndarray:
    "What is known on test images with truth, bool [N,C]: every class, unless a file tells which."
    if not os.path.lexists(folder/TEST_EXAMINED):
        return np.ones((len(names), len(classes)), bool)
    known = read_annotated(folder/TEST_EXAMINED, len(names), len(classes))
    check_examined(known, masks, names, csv, classes, TEST_EXAMINED)
    return known


# %%
whole = _known_of_test(Path("no such folder"), Path("y_test.csv"), ["0.png"], None, ClassMap(["liver"]))
test_eq(whole, [[True]])


# %%
#| export
def _read_arrays(cache: bool) -> tuple[Callable, Callable]:
    "How `read_challenge` reads images and masks: whole arrays."
    def masks_of(csv: Path, columns, images: np.ndarray, classes: ClassMap) -> np.ndarray:
        masks = np.zeros_like(images)
        masks[:len(columns)] = read_masks(csv, columns, images.shape[1:], classes, cache, ignore=True)[1]
        return masks
    return partial(read_images, cache=cache), masks_of


# %% [markdown]
# The other way keeps only what is asked for.

# %%
#| export
def _open_files(spool: Path) -> tuple[Callable, Callable]:
    "How `open_challenge` reads them: images when they are asked for, masks by way of a file in `spool`."
    def masks_of(csv: Path, columns, images: LazyPixels, classes: ClassMap) -> LazyPixels:
        masks = spool_masks(csv, columns, images.shape[1:], classes, spool)
        unlabelled = np.full(len(images) - len(columns), -1)
        return LazyPixels(masks.source, np.append(masks.rows, unlabelled))
    return open_images, masks_of


# %% [markdown]
# Both are used in the same way.

# %%
#| export
def _slices_of(folder: Path, split: str, annotated: str, images_of: Callable, masks_of: Callable) -> SliceSet:
    "One split of a challenge folder, whose images and masks are read as the two functions do."
    folder = Path(folder)
    _check_folder(folder, split)
    if annotated not in _ANNOTATED:
        raise did_you_mean("value of annotated", annotated, _ANNOTATED)
    csv = _find_table(folder, split)
    classes = read_classes(folder)
    names, images = images_of(folder/f"{split}-images")
    masks = blank_like(images)
    known = np.zeros((len(names), len(classes)), bool)
    if csv is not None:
        columns = read_image_names(csv)
        labelled = len(columns) if split == "train" else len(names)  # images after these are unlabelled
        check_names(columns, names[:labelled], csv, names, folder/f"{split}-images")
        masks = masks_of(csv, columns, images, classes)
        if split == "train":
            known = _known_of_train(folder, csv, names, masks, labelled, classes, annotated)
        else:
            known = _known_of_test(folder, csv, names, masks, classes)
    return SliceSet(images, masks, known, names, read_groups(folder, split, images), classes)


# %%
#| export
@checks_arguments
def read_challenge(
    folder: str | Path,
    split: str = "train",
    annotated: str = "json",
    cache: bool = True,
) -> SliceSet:
    """Read and check one split of a challenge folder; `InputError` names what is wrong with it.

    Images without annotation have mask 0 and nothing known. split: train or test. annotated: where to learn what was
    examined (train only): from the folder's json, all classes, or those that are present. cache: keep the arrays, by
    content, for the next time.
    """
    return _slices_of(folder, split, annotated, *_read_arrays(cache))

def open_challenge(
    folder, # a challenge folder
    split: str = "train", # train or test
    annotated: str = "json", # as for `read_challenge`
    *,
    spool: Path, # a folder for a file of masks, which must stay as long as the slices are used
) -> SliceSet:
    "The same slices in little memory: their pixels are read from files when they are indexed."
    return _slices_of(folder, split, annotated, *_open_files(Path(spool)))


# %%
with tempfile.TemporaryDirectory() as d:
    os.environ["CTSEG_CACHE"] = f"{d}/cache"
    toys, truth = toy_set(4, 2)
    (folder := Path(d)/"data").mkdir()
    (folder/"train-images").mkdir()
    for name, image in zip(toys.names, toys.images):
        imsave(folder/"train-images"/name, image, check_contrast=False)
    write_masks(toys.masks[:2], toys.names[:2], folder/"y_train.csv")  # the others are unlabelled
    toys.classes.to_json(folder/"class_names.json")
    try:
        read_challenge(folder)
    except InputError as e:
        print(str(e).replace(d, "…"))
    examined = [[int(c) + 1 for c in np.flatnonzero(k)] for k in toys.known]
    (folder/"annotated_labels.json").write_text(json.dumps(examined))
    print(examined)
    back = read_challenge(folder)
    print(back)
    for part in ("images", "masks", "known", "names"):
        test_eq(getattr(back, part), getattr(toys, part))
    test_eq(read_challenge(folder, annotated="all").known.sum(1), [3, 3, 0, 0])
    test_eq(read_challenge(folder, annotated="present").known, toys.present)
    opened = open_challenge(folder, spool=Path(d))
    print(opened.images, opened.masks)
    test_eq(opened.fingerprint(), back.fingerprint())

# %% [markdown]
# The slices as they were read, with what was outlined. A missing structure is absent if it was examined, and else unknown.

# %%
#| fig-alt: "Four slices with the outlines as read; above each the structures that were examined"
fig, (panels,) = image_grid(1, 4, size=2)
for n, ax in enumerate(panels):
    examined = [name for name, known in zip(back.classes.names, back.known[n]) if known]
    show_image(
        ax,
        overlay(back.images[n], back.masks[n], back.classes),
        "examined:\n" + (", ".join(examined) or "nothing"),
    )
class_legend(fig, back.classes)


# %% [markdown]
# ## Writing
#
# Some sets do not fit the format: it has no place for two images of one name, or for names that are no file's.

# %%
#| export
def _check_writable(slices: SliceSet, folder: Path, split: str):
    "`InputError` for a set that a challenge folder cannot hold."
    if split not in _SPLITS:
        raise did_you_mean("split", split, _SPLITS)
    if not len(slices):
        raise InputError(f"{folder}: nothing to write, the set has no slices")
    for name in slices.names:
        if Path(name).name != name or not name.lower().endswith(".png") or name.startswith("."):
            raise InputError(f"{folder}: {name!r} cannot be an image's file name; "
                             "expected names such as 0.png")
    twice = [name for name, count in Counter(slices.names).items() if count > 1]
    if twice:
        raise InputError(f"{folder}: two slices are called {twice[0]}; rename one")
    named = (folder/"class_names.json").exists()
    theirs = read_classes(folder) if named else slices.classes
    if (theirs.names, theirs.unions) != (slices.classes.names, slices.classes.unions):  # files hold no pairs
        raise InputError(f"{folder}/class_names.json: names other classes than the slices to be written; "
                         "choose another folder")


# %% [markdown]
# What cannot be read back is not written:

# %%
test_fail(lambda: _check_writable(toys[[]], Path("out"), "test"), contains="nothing to write")
test_fail(lambda: _check_writable(toys[[0, 0]], Path("out"), "train"), contains="two slices are called 0.png")


# %%
#| export
def _with_groups(path: Path, split: str, groups: list) -> dict:
    "The content of `patients.json` with the groups of a split put in; the other split's stay."
    table = read_json(path) if os.path.lexists(path) else {}
    if not isinstance(table, dict):
        raise InputError(f'{path}: expected {{"train": [...], "test": [...]}}; '
                         "correct it, or choose another folder")
    return table | {split: groups}


# %% [markdown]
# The groups of a split, under its name:

# %%
test_eq(_with_groups(Path("no such file"), "test", [7, 7]), {"test": [7, 7]})


# %%
#| export
@contextlib.contextmanager
def _removed_on_failure(folder: Path):
    "If the block fails, a folder that it made goes again, if it is empty."
    new = not folder.exists()
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


# %%
#| export
def _sorted(slices: SliceSet) -> SliceSet:
    "The slices in numeric order of their names; no copy of what is in order."
    order = sorted(range(len(slices)), key=lambda i: natural_key(slices.names[i]))
    return slices if order == list(range(len(slices))) else slices[order]

def _write_images(slices: SliceSet, folder: Path):
    "The images of a set as PNG files in a new folder."
    from skimage.io import imsave  # slow, and only needed here
    folder.mkdir()
    for name, image in zip(slices.names, slices.images):
        imsave(folder/name, image, check_contrast=False)


# %% [markdown]
# Slices are written in natural order; those that are in order stay the same object.

# %%
test_eq(_sorted(toys[[2, 0, 1]]).names, ("0.png", "1.png", "2.png"))
assert _sorted(toys) is toys


# %%
#| export
def _examined_file(s: SliceSet, split: str) -> str|None:
    "The file that says what was examined on a split; `None`: none is needed."
    if split == "train": return "annotated_labels.json"
    return TEST_EXAMINED if s.labelled.any() and not s.known.all() else None

def _remove_old(folder: Path, split: str, written: set):
    "Remove what an earlier set of this split has left under names that are not written now."
    lists = {TEST_EXAMINED} if split == "test" else set()
    for name in lists | {f"y_{split}.csv", f"y_{split}.csv.gz"}:
        if name not in written: (folder/name).unlink(missing_ok=True)


# %%
test_eq(_examined_file(toys, "train"), "annotated_labels.json")
test_eq(_examined_file(toys, "test"), TEST_EXAMINED)


# %% [markdown]
# All files of a split are written under temporary names first, and renamed together only when the last one is complete. The order on disk
# is numeric, so a shuffled set comes back sorted.

# %%
#| export
@checks_arguments
def write_challenge(
    slices: SliceSet,
    folder: str | Path,
    split: str = "train",
    compress: bool = False,
):
    """Write a split of a challenge folder, so that `read_challenge` gives the same slices back.

    folder: created if needed; the other split in it is kept. split: train or test. compress: write `.csv.gz`.
    Raises `InputError` for slices that such a folder cannot hold, or that have other classes than it.
    """
    folder = Path(folder)
    ordered = _sorted(slices)
    _check_writable(ordered, folder, split)
    patients = _with_groups(folder/"patients.json", split, ordered.groups.tolist())
    has_table = split == "train" or bool(ordered.labelled.any())  # a test without truth has none
    table = folder/f"y_{split}.csv{'.gz' if compress else ''}" if has_table else None
    examined = _examined_file(ordered, split)
    with _removed_on_failure(folder), contextlib.ExitStack() as stack:
        def hold(name): return stack.enter_context(atomic_path(folder/name))
        _write_images(ordered, hold(f"{split}-images"))
        if table:
            write_masks(ordered.masks, ordered.names, hold(table.name))
        if examined:
            lists = [(np.flatnonzero(known) + 1).tolist() for known in ordered.known]
            write_json(lists, hold(examined), indent=None)
        ordered.classes.to_json(hold("class_names.json"))
        if ordered.classes.unions:
            write_json(ordered.classes.union_table, hold("unions.json"))
        write_json(patients, hold("patients.json"), indent=None)
    _remove_old(folder, split, {table and table.name, examined})


# %%
with tempfile.TemporaryDirectory() as d:
    os.environ["CTSEG_CACHE"] = f"{d}/cache"
    data = Path(d)/"data"
    twelve, _ = toy_set(12, 4)  # 0.png … 11.png: 10.png must not come after 1.png
    write_challenge(twelve, data)
    print(*sorted(p.name for p in data.iterdir()), sep="  ")
    test_eq(read_challenge(data).fingerprint(), twelve.fingerprint())
    write_challenge(toys, data, "test")  # of four slices two have a truth, in part
    test_eq(read_challenge(data, "test").known, toys.known)
    shuffled = twelve[np.random.default_rng(0).permutation(12)]
    write_challenge(shuffled, data, compress=True)
    test_eq(read_challenge(data).fingerprint(), twelve.fingerprint())


# %% [markdown]
# ## Checking
#
# Before hours of training, or before an upload, one wants to know that a folder or a submission is in order. Reading is checking, so these
# only collect what was read into a few facts.

# %%
#| export
def slice_facts(slices: SliceSet) -> dict:
    "What there is in a set, in numbers."
    labelled = slices.labelled
    cells = {"present": slices.present, "absent": slices.known & ~slices.present, "unknown": ~slices.known}
    images = slices.present.sum(0)
    names = slices.classes.names if labelled.any() else ()
    by_frequency = sorted(zip(images, names))
    ignored = {"slices_with_ignored_pixels": int(slices.ignored.sum())} if slices.ignored.any() else {}
    return ignored | {
        "images": len(slices),
        "size": size_text(slices.images),
        "labelled": int(labelled.sum()),
        "unlabelled": int((~labelled).sum()),
        "annotated_but_empty": int((labelled & ~slices.present.any(1)).sum()),
        "groups": len(np.unique(slices.groups)),
        "cells": {state: round(float(cell.mean()), 4) for state, cell in cells.items()},
        "classes_never_seen": [name for name, n in zip(names, images) if not n],
        "images_with_class": {name: int(n) for n, name in by_frequency if n},
    }


# %%
for name, value in slice_facts(twelve).items():
    print(f"{name:20}", value)


# %%
#| export
def check_challenge(
    folder,
    annotated: str = "json", # json, all or present, as for `read_challenge`
) -> dict: # facts: classes, and for each split what is in it
    "Read both splits of a folder (the test may be missing): what is in them; `InputError` for what is wrong."
    folder = Path(folder)
    classes = len(read_classes(folder))
    train = read_challenge(folder, "train", annotated)
    facts = {"classes": classes, "train": slice_facts(train)}
    if not os.path.lexists(folder/"test-images"):  # a link to nowhere is told below
        return facts
    test = read_challenge(folder, "test")
    sizes = [size_text(part.images) for part in (train, test)]
    if sizes[0] != sizes[1]:
        raise InputError(f"{folder}: training images are {sizes[0]}, test images {sizes[1]}; "
                         "resize one of them")
    return facts | {"test": slice_facts(test)}


# %%
#| export
def check_submission(
    csv, # the submission
    folder, # the challenge folder whose `test-images` it is for
) -> dict: # facts: images, size, classes used, images left empty
    "Check a submission against the test images; `InputError` for wrong columns, order, rows or values."
    test_images = Path(folder)/"test-images"
    names, images = read_images(test_images)
    classes = read_classes(folder)
    check_names(read_image_names(Path(csv)), names, csv, folder=test_images)
    masks = read_masks(csv, names, images.shape[1:], classes, cache=False)[1]
    present = present_classes(masks, len(classes))
    return {
        "images": len(names),
        "size": size_text(images),
        "classes_used": int(present.any(0).sum()),
        "classes": len(classes),
        "empty_images": int((~present.any(1)).sum()),
    }


# %%
with tempfile.TemporaryDirectory() as d:
    os.environ["CTSEG_CACHE"] = f"{d}/cache"
    write_challenge(twelve, f"{d}/data")
    test, truth = toy_set(4, 0, seed=9)
    write_challenge(test, f"{d}/data", "test")
    test_eq(check_challenge(f"{d}/data")["test"]["labelled"], 0)
    write_masks(truth, test.names, f"{d}/submission.csv")
    print(check_submission(f"{d}/submission.csv", f"{d}/data"))
    write_masks(truth[:, :-1], test.names, f"{d}/submission.csv")
    try:
        check_submission(f"{d}/submission.csv", f"{d}/data")
    except InputError as e:
        print(str(e).replace(d, "…"))
