# %% [markdown]
# # Submission
#
# > The challenge's CSV for a folder of images of any number, read back before it gets its name.
#
# - skip_showdoc: true

# %%
#| default_exp prediction.submission

# %%
#| export
import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ctseg.core.anatomy import ClassMap
from ctseg.core.arguments import checks_arguments
from ctseg.core.atomic import atomic_path, check_file_place, refuse_existing
from ctseg.core.errors import InputError, some_of
from ctseg.core.paths import real_path, refuse_inside
from ctseg.data.images import other_images
from ctseg.data.lazy import LazyPixels, blank_like, blocks, seen_values
from ctseg.data.mask_csv import PixelRows, check_names, write_masks
from ctseg.data.mask_rows import iter_rows, read_image_names
from ctseg.data.slices import SliceSet
from ctseg.data.sources import has_test, images_at
from ctseg.data.spooled import FilePixels, know_values
from ctseg.data.stacks import Stacks
from ctseg.data.store import is_store, write_store
from ctseg.inference.loop import Each, batches
from ctseg.inference.rule import decide
from ctseg.io.neighbours import index_places, neighbour_mm, place_and_split, place_stacks, with_neighbours
from ctseg.prediction.predictor import Predictor, warn_of_size
from ctseg.prediction.store import write_probabilities
from ctseg.prediction.sureness import Note, write_sureness
from ctseg.prediction.trained_slicing import other_distance

# %%
#| hide
import tempfile
from pathlib import Path

import numpy as np
import torch
from fastcore.test import test_eq
from skimage.io import imsave
from torch import nn

from ctseg.core.device import pick_device
from ctseg.core.errors import InputError
from ctseg.data.mask_csv import read_masks, write_masks
from ctseg.data.toys import toy_set
from ctseg.inference.loop import Member
from ctseg.prediction.predictor import Predictor, predict_masks
from ctseg.prediction.store import StoredProbabilities


# %% [markdown]
# In the challenge's table an image is a column and a pixel is a row. So the whole table has to be turned before its first line can be written. To need no more memory for more images, label maps go into a file, which is read a part at a time. Images and probabilities exist a batch at a time only.
#
# The example is a "network" that needs no training: it calls dark, middle and bright pixels by three names.

# %%
class Levels(nn.Module):
    "Answers by the grey value of each pixel."
    activation = "sigmoid"
    def forward(self, x): return torch.cat([(x < .3), (x > .4) & (x < .6), x > .6], 1)*.9
    def probabilities(self, logits): return logits

slices, _ = toy_set(12, size=32)
levels = Levels()
predictor = Predictor([Member(levels, levels)], slices.classes, pick_device("cpu"))
keep = tempfile.TemporaryDirectory()
folder = Path(keep.name)
(folder/"images").mkdir()
for name, image in zip(slices.names, slices.images): imsave(folder/"images"/name, image, check_contrast=False)


# %% [markdown]
# ## Written, then read back
#
# The table takes its final name only after it has been read back and compared: header, order of rows, every value. A broken upload would cost one of the day's few submissions.

# %%
#| export
def check_written(path: str | Path, names: list[str], masks: np.ndarray | LazyPixels):
    "Read a mask table back; `InputError` unless it is the challenge's form of exactly these masks uint8 [N, H, W]."
    table = PixelRows(masks)
    check_names(read_image_names(path), names, path)
    end = 0
    for start, block in iter_rows(path, names):
        end = start + len(block)
        if end > table.count or not np.array_equal(block, table(start, end)):
            problem = "other values than were predicted; a failing disk?"
            raise InputError(f"{path}, near row Pixel {start}: {problem}")
    if end != table.count:
        raise InputError(f"{path}: {end} rows, expected {table.count}, the number of pixels")


# %%
masks = predict_masks(predictor, slices.images)
write_masks(masks, slices.names, folder/"first.csv")
check_written(folder/"first.csv", list(slices.names), masks)
wrong = masks.copy()
wrong[3, 20, 9] += 1
try: check_written(folder/"first.csv", list(slices.names), wrong)
except InputError as e: print(str(e).replace(keep.name, "…"))


# %%
#| export
@checks_arguments
def write_submission(masks: np.ndarray | LazyPixels, names: list[str], path: str | Path):
    "The challenge's submission for masks uint8 [N, H, W] of images `names`: whole and read back, or not there."
    names = list(names)
    with atomic_path(path) as tmp:
        write_masks(masks, names, tmp)
        check_written(tmp, names, masks)


# %%
write_submission(masks, slices.names, folder/"second.csv")
print("\n".join((folder/"second.csv").read_text().splitlines()[:3]))

# %% [markdown]
# ## Mistakes are told before the work
#
# A run that predicts for an hour and then cannot write its file is a lost hour. So names are checked first. If the folder of the images names other structures than the run knows, its numbers would be read by those names: that is refused too.

# %%
#| export
LABEL_STORE = ".zarr"

def check_files(
    images: str | Path, out: str | Path, *others: str | Path | None,
) -> tuple[list[str], LazyPixels, SliceSet | None]: # see `images_at`
    "The images of a folder or a store; `InputError` for names that `predict_folder` could not use."
    found = images_at(images)
    if not str(out).endswith((".csv", ".csv.gz", LABEL_STORE)):
        stored = f", label maps in a store something{LABEL_STORE}"
        raise InputError(f"{out}: a submission is called something.csv or something.csv.gz{stored}")
    if str(out).endswith(LABEL_STORE): refuse_existing(Path(out))
    given = [real_path(path) for path in (out, *others) if path]
    for path in (out, *others):
        shared = path and sum(real_path(path) in (other, *other.parents) for other in given) > 1
        if shared:
            raise InputError(f"{path}: the submission and what else is written need a file each")
        check_file_place(path)
        if path and is_store(images): refuse_inside(path, [images])
    return found


# %%
for images, out in ((folder/"images", folder/"masks.txt"), (folder, folder/"s.csv")):
    try: check_files(images, out)
    except InputError as e: print(str(e).replace(keep.name, "…"))


# %%
#| export
def warn_of_others(images: str | Path):
    "A warning if a folder holds images that are no PNG files: nothing is predicted for them."
    others = other_images(images)
    if others:
        warnings.warn(f"{images}: not predicted, since they are no PNG: {some_of(others)}")


# %% [markdown]
# A folder of images may say which structures it is about. A run that knows others must not predict it:

# %%
#| export
def check_class_names(classes: ClassMap, path: Path):
    "`InputError` if a `class_names.json` (at `path`, if there is one) names other structures than `classes`."
    if not path.exists(): return
    compare_classes(classes, ClassMap.from_json(path), path)

def compare_classes(classes: ClassMap, theirs: ClassMap, path: str | Path):
    "`InputError` unless what lies at `path` has the same structures as `classes`."
    if theirs.names == classes.names: return
    odd = f"{len(classes)} and {len(theirs)} of them"
    for number, (own, other) in enumerate(zip(classes.names, theirs.names), 1):
        if own != other:
            odd = f"{number} is {own} for the run and {other} for the folder"
            break
    remedy = "give the folder the class_names.json that the run was trained with (`ctseg import … --classes`)"
    raise InputError(f"{path}: other classes than the run's ({odd}); {remedy}")

def class_names_beside(images: str | Path) -> Path:
    "The `class_names.json` that belongs to a folder of images."
    folder = Path(os.path.abspath(images))  # not resolved: beside a link lie the files it belongs to
    return folder.parent/"class_names.json"


# %%
ClassMap.from_names(["lung_right", "lung_left", "trachea"]).to_json(folder/"class_names.json")
try: check_class_names(predictor.classes, class_names_beside(folder/"images"))
except InputError as e: print(str(e).replace(keep.name, "…"))
(folder/"class_names.json").unlink()


# %% [markdown]
# ## A folder of any number of images
#
# A folder may hold more images than memory. So images are read a batch at a time, and labels are collected in a file on the disk.

# %%
#| export
def batch_progress(shown: bool) -> Each:
    "Goes through batches; if `shown`, with a bar in a terminal where it takes long."
    disable = None if shown else True  # None: only a terminal gets a bar

    def each(items):
        return tqdm(items, "predict", unit="batch", delay=5, disable=disable)
    return each


# %% [markdown]
# What the command tells of the labels:

# %%
#| export
def label_facts(masks: np.ndarray, classes: int) -> dict[str, Any]:
    "How many of so many classes are drawn anywhere on masks uint8 [N, H, W], and how many masks are empty."
    used, empty = np.zeros(256, bool), 0
    for block in blocks(masks, 1 << 18):  # they may lie in a file
        seen = seen_values(block)
        used |= seen.any(0)
        empty += int((~seen[:, 1:].any(1)).sum())
    return {"classes used": f"{used[1:].sum()} of {classes}", "empty images": empty}


# %%
labels = np.zeros((3, 4, 5), np.uint8)
labels[1] = 3
print(label_facts(labels, 3))


# %%
#| export
def label_images(
    predictor: Predictor,
    names: list[str],
    images: LazyPixels | Stacks, # N images, with their neighbours where the predictor sees them
    keep: Callable[[np.ndarray, np.ndarray], Any], # takes numbers [B] and labels uint8 [B, H, W], in order
    batch_size: int = 16,
    each: Each | None = None, # goes through the batches; None: all in order
    notes: Iterable[Note] = (), # each takes names, images, probabilities and labels of a batch
):
    "Label images that are read a batch at a time."
    rule = predictor.rule_at(images.shape[-2:])
    for index in batches(len(names), batch_size, each):
        grey = images[index]
        prob = predictor.probabilities(grey)
        label = decide(prob, rule, predictor.activation)
        keep(index, label.cpu().numpy())
        for note in notes:
            note([names[i] for i in index], grey, prob, label)


# %%
names, images, _ = check_files(folder/"images", folder/"s.csv")
filled = np.zeros_like(slices.images)
label_images(predictor, names, images, filled.__setitem__, batch_size=5)
test_eq(filled, masks)


# %%
#| export
@contextlib.contextmanager
def open_notes(
    predictor: Predictor,
    size: tuple[int, int],
    probabilities: str | Path | None = None, # the file for them; None: none
    confidence: str | Path | None = None, # the same for `write_sureness`
) -> Iterator[list[Note]]:
    "What is to be noted of each batch, into files that are complete or not there."
    notes: list[Note] = []
    with contextlib.ExitStack() as stack:
        if probabilities:
            store = write_probabilities(probabilities, predictor.classes, predictor.activation, size)
            add = stack.enter_context(store)
            def keep(names: list[str], grey: np.ndarray, prob: torch.Tensor, label: torch.Tensor) -> None:
                for name, p in zip(names, prob.cpu().numpy()): add(name, p)
            notes.append(keep)
        if confidence:
            notes.append(stack.enter_context(write_sureness(confidence, predictor)))
        yield notes


# %%
with open_notes(predictor, (32, 32)) as notes: print(notes)

# %% [markdown]
# At the end the labels are written in their final form: the challenge's table, or the masks of a [store](../data/74_store.ipynb). Neither takes more memory for many images
# than for few.

# %%
#| export
Keeper = tuple[Any, Callable[[np.ndarray, np.ndarray], Any]]  # masks uint8 [N, H, W], and what fills them

def collected_labels(images: LazyPixels, folder: Path) -> Keeper:
    "Masks that lie in a temporary file in `folder`, and what takes numbers [B] and labels [B, H, W] in order."
    file = FilePixels(len(images), images.shape[1:], folder)
    return LazyPixels(file), lambda index, labels: file.write(int(index[0]), labels)


# %%
collected, keep_labels = collected_labels(slices.images, folder)
keep_labels(np.arange(2), masks[:2])
print(collected, label_facts(collected, 3))


# %%
#| export
@contextlib.contextmanager
def submitted_labels(tmp: Path, names: list[str], images: LazyPixels, classes: ClassMap) -> Iterator[Keeper]:
    "Masks to be filled, which become a submission at `tmp` when the block ends."
    masks, keep = collected_labels(images, tmp.parent)
    yield masks, keep
    write_submission(masks, names, tmp)


# %% [markdown]
# The same for a store:

# %%
#| export
@contextlib.contextmanager
def stored_labels(tmp: Path, names: list[str], images: LazyPixels, classes: ClassMap) -> Iterator[Keeper]:
    "The same as a store at `tmp`, whose images are blank."
    masks, keep = collected_labels(images, tmp.parent)
    yield masks, keep
    know_values(masks.source)
    write_store(SliceSet(blank_like(images), masks, "all", names, classes=classes), tmp)


# %% [markdown]
# A predictor that sees neighbouring slices gets them from the [index](../io/57_neighbours.ipynb) beside the folder, or from the store.

# %%
#| export
def shown_images(
    predictor: Predictor, images: str | Path, names: list[str], pixels: LazyPixels, slices: SliceSet | None,
) -> LazyPixels | Stacks:
    "The images of `check_files` as the predictor sees them; `InputError` where neighbours are not known."
    context = predictor.context
    if not context: return pixels
    if slices is None:
        place, split = place_and_split(images)
        shown = place_stacks(pixels, index_places(place, split, names), context, images)
    else:
        place, split = images, "test" if has_test(images) else "train"
        shown = with_neighbours(slices, place, split, context).seen(context)
    warning = other_distance(predictor, neighbour_mm(place, split))
    if warning: warnings.warn(warning)
    return shown


# %%
#| export
def check_fit(predictor: Predictor, images: str | Path, size: tuple[int, int], slices: SliceSet | None):
    "`InputError` for images of other classes than the predictor's; a warning for another size."
    if slices is None:
        check_class_names(predictor.classes, class_names_beside(images))
    else:
        compare_classes(predictor.classes, slices.classes, images)
    warn_of_size(predictor.members, size)


# %%
#| export
def predict_folder(
    predictor: Predictor,
    images: str | Path, # a folder of PNG slices, or a store
    out: str | Path, # the submission to write, .csv or .csv.gz; or .zarr for label maps in a store
    probabilities: str | Path | None = None, # also write them into this file
    batch_size: int = 16,
    progress: bool = False, # show a bar in a terminal if it takes long
    confidence: str | Path | None = None, # also write how sure each structure is, see `write_sureness`
) -> dict[str, Any]: # facts for people
    "Write the submission for a folder of images of any number."
    names, pixels, slices = check_files(images, out, probabilities, confidence)
    if slices is None: warn_of_others(images)
    size = pixels.shape[1:]
    check_fit(predictor, images, size, slices)
    shown = shown_images(predictor, images, names, pixels, slices)
    write = stored_labels if str(out).endswith(LABEL_STORE) else submitted_labels
    with contextlib.ExitStack() as stack:
        tmp = stack.enter_context(atomic_path(out))
        notes = stack.enter_context(open_notes(predictor, size, probabilities, confidence))
        with write(tmp, names, pixels, predictor.classes) as (masks, keep):
            label_images(predictor, names, shown, keep, batch_size, batch_progress(progress), notes)
        facts = label_facts(masks, len(predictor.classes))
    ensemble = {"images": len(names), "models": len(predictor.members), "views": predictor.views}
    ensemble["rule"] = str(predictor.rule_at(size))
    return ensemble | (predictor.tuned_dice or {}) | facts


# %%
facts = predict_folder(
    predictor, folder/"images", folder/"submission.csv.gz", folder/"prob.zip", batch_size=5
)
print(facts)
names, masks = read_masks(folder/"submission.csv.gz", slices.names, (32, 32), slices.classes, cache=False)
test_eq(masks, predict_masks(predictor, slices.images))
test_eq(StoredProbabilities(folder/"prob.zip").names, names)

# %%
#| hide
keep.cleanup()
