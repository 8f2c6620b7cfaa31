# %% [markdown]
# # PNG import
#
# > Another competition's images and masks become a challenge folder, and an image without masks stays unlabelled.

# %%
#| default_exp io.png

# %%
#| export
import hashlib
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json, write_json
from ctseg.core.paths import real_path
from ctseg.core.schema import LONGEST, check_whole
from ctseg.core.tables import once_each
from ctseg.data.challenge import write_challenge
from ctseg.data.images import image_paths, size_text
from ctseg.data.lazy import LazyPixels, blank_like, blocks
from ctseg.data.slices import SliceSet, known_after_resize
from ctseg.data.splits import near_duplicates
from ctseg.data.spooled import FilePixels, know_values, put_slices, room_for
from ctseg.data.store import write_store
from ctseg.io.canvas import paste
from ctseg.io.into_store import check_store_place
from ctseg.io.mask_files import png_files
from ctseg.io.mask_labels import Labelling, SourceMasks, known_on_images, read_labels
from ctseg.io.outputs import new_folder
from ctseg.io.pixels import Grey, read_grey, read_units
from ctseg.io.renaming import read_renaming, with_new_names
from ctseg.io.scale import scale_notes
from ctseg.io.rle_table import image_of
from ctseg.io.value_names import column_of, read_text_table
from ctseg.io.volumes import class_flags

# %%
#| hide
import os
import tempfile

from fastcore.test import test_eq, test_fail
from PIL import Image

from ctseg.core.anatomy import ClassMap
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.core.toys import toy_slices
from ctseg.data.challenge import read_challenge
from ctseg.io.rle import encode


# %% [markdown]
# A competition gives a folder of images, masks in some form, and test images without masks. `import_png` makes a challenge folder of them,
# which every command reads. Images keep their names, because a submission has to call them so. On the way images and masks lie in
# [temporary files](../data/52_spooled.ipynb), so that memory holds one of each.

# %%
#| export
@dataclass(frozen=True)
class Pictures:
    "How images are to be read, and whose they are."
    grey: Grey = Grey() # for images of 16 bits
    size: int|None = None # side of a square that holds every image; `None`: all have one size already
    test: str|Path|None = None # a folder of images to predict
    patients: str|None = None # a CSV or JSON, image → patient, or a regular expression; `None`: by likeness

    def __post_init__(self):
        if self.size is not None: check_whole("size", self.size, high=LONGEST)


# %%
print("onto squares of", Pictures(size=256).size, "pixels")
test_fail(lambda: Pictures(size=0), contains="whole number from 1")


# %% [markdown]
# ## Images
#
# A challenge folder holds images of one size. With `size`, each goes unscaled into the middle of a square, with air around it, and
# `png_index.json` notes where, so that a submission can be cut out again.

# %%
#| export
def _paths_by_stem(folder) -> dict[str, Path]:
    "The images of a folder by their names without endings; `InputError` for two of one name."
    paths = {}
    found = image_paths(folder)
    png_files(folder, "image")
    for path in found:
        other = paths.setdefault(path.stem, path)
        if other != path:
            raise InputError(f"{path}: {other.name} has the same name but for the ending; keep one of them")
    return paths


# %%
#| export
@dataclass
class Placed:
    "Images of one size, and where each lies on it."
    names: list[str]
    images: LazyPixels # uint8 [N,H,W], in a temporary file
    sizes: list[tuple[int, int]] # height and width before
    corners: list[tuple[int, int]] # row and column of each image's first pixel

    def place(self, i: int, mask: np.ndarray) -> np.ndarray:
        "A mask [h,w] of image `i` where the image lies, [H,W]."
        canvas = self.images.shape[1:]
        placed = paste(mask[None], [self.corners[i]], canvas, 0)
        return placed[0]

    def index(self) -> dict[str, dict]:
        "Image → size and corner."
        entries = {}
        for name, size, corner in zip(self.names, self.sizes, self.corners):
            entries[name] = {"size": list(size), "corner": list(corner)}
        return entries


# %%
#| export
def _misfit(path: Path, image: np.ndarray, paths: list[Path], pictures: Pictures) -> InputError:
    "The error for an image larger than the square, or, without one, of another size than the first."
    sizes = [read_grey(each, pictures.grey).shape for each in paths]
    largest = max(map(max, sizes))
    height, width = sizes[0]
    expected = f"{height}x{width} like {paths[0].name}"
    if pictures.size: expected = f"at most {pictures.size} a side"
    return InputError(f"{path}: {size_text(image)} pixels, expected {expected}; "
                      f"give at least --size {largest}: a margin of air makes all alike")


# %% [markdown]
# Memory holds one image at a time.

# %%
#| export
def read_placed(folder, pictures: Pictures = Pictures()) -> Placed:
    "The images of a folder on canvases of one size; `InputError` for one that does not fit."
    found = _paths_by_stem(folder)
    paths, side = list(found.values()), pictures.size
    canvas = (side, side) if side else read_grey(paths[0], pictures.grey).shape
    images = room_for(len(paths), canvas, Path(tempfile.gettempdir()))
    sizes, corners = [], []
    for i, path in enumerate(paths):
        image = read_grey(path, pictures.grey)
        height, width = image.shape
        fits = max(height, width) <= side if side else image.shape == canvas
        if not fits: raise _misfit(path, image, paths, pictures)
        sizes.append(image.shape)
        corners.append(((canvas[0] - height)//2, (canvas[1] - width)//2))
        put_slices(images, i, paste(image[None], corners[-1:], canvas, 0))
    return Placed([f"{stem}.png" for stem in found], images, sizes, corners)


# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
images, masks = (array.numpy() for array in toy_slices(8, 32, 3))
images = (images[:, 0]*255).round().astype(np.uint8) if images.dtype != np.uint8 else images
(work/"images").mkdir()
for i, image in enumerate(images):
    Image.fromarray(image[:, :32 - 2*(i == 7)]).save(work/"images"/f"case{i//2}_{i}.png")
placed = read_placed(work/"images", Pictures(size=40))
print(placed.images.shape, placed.index()["case3_7.png"])
test_fail(
    lambda: read_placed(work/"images"),
    contains="32x30 pixels, expected 32x32 like case0_0.png; give at least --size 32",
)

# %% [markdown]
# ## Patients
#
# Slices of one patient must not be both learnt from and held out. A regular expression finds the patient in the file name: what its
# bracket matches. Or a table tells. Where neither is given, near-duplicates are kept together, which is a guess.

# %%
#| export
_IMAGE_COLUMNS = ("image", "imageid", "id", "imagename", "filename", "file", "slice")
_PATIENT_COLUMNS = ("patient", "patientid", "case", "caseid", "subject", "group")

def _patient_table(path: Path) -> list[tuple[str, str]]:
    "Pairs of an image, as the table calls it, and its patient, from a JSON object or a CSV with the columns image and patient."
    if path.suffix.lower() == ".json":
        table = read_json(path)
        if not isinstance(table, dict) or not all(type(patient) in (str, int) for patient in table.values()):
            raise InputError(f'{path}: expected {{"image": "patient", …}}')
        return [(image, str(patient)) for image, patient in table.items()]
    header, rows = read_text_table(path)
    image = column_of(header, _IMAGE_COLUMNS)
    patient = column_of(header, _PATIENT_COLUMNS)
    if image is None or patient is None:
        raise InputError(f"{path}: expected a CSV with the columns image,patient")
    return [(row[image], row[patient].strip()) for row in rows.values()]


# %%
#| export
def _matched(match: re.Match|None) -> str|None:
    "What a regular expression found: its first group, if it has one, else the whole; `None` for nothing."
    if match is None: return None
    group = 1 if match.re.groups else 0
    return match[group] or None


# %%
#| export
def find_patients(stems: list[str], patients: str) -> list[str|None]:
    "The patient of each image by a table or a regular expression; `None` where there is none."
    if Path(patients).is_file() or patients.lower().endswith((".csv", ".json")):
        known = set(stems)
        named = ((image_of(image, known), patient) for image, patient in _patient_table(Path(patients)))
        table = once_each(((stem, patient) for stem, patient in named if stem is not None), patients)
        return [table.get(stem) or None for stem in stems]
    try:
        matches = [re.search(patients, stem) for stem in stems]
    except re.error as e:
        raise InputError(f"--patients {patients!r}: no such file, and no regular expression ({e})") from None
    return [_matched(match) for match in matches]


# %%
print(find_patients(["case1_7", "case2_7", "x"], r"(case\d+)_"))
(work/"patients.csv").write_text("image,patient\ncase1_7.png,anna\n")
print(find_patients(["case1_7", "x"], str(work/"patients.csv")))
test_fail(lambda: find_patients(["a"], "("), contains="no regular expression")


# %%
#| export
def _groups_by_likeness(splits: dict[str, Placed]) -> dict[str, np.ndarray]:
    "The groups of images that look alike; no group has images of both splits."
    groups = {name: near_duplicates(placed.images) for name, placed in splits.items()}
    if "test" in groups:
        groups["test"] = groups["test"] + groups["train"].max() + 1
    return groups


# %%
#| export
def groups_of(splits: dict[str, Placed], patients: str|None) -> dict[str, np.ndarray]: # split → int64 [N]
    "The group of each image, one number a patient; `InputError` for a training image without one."
    if patients is None: return _groups_by_likeness(splits)
    numbers, groups = {}, {}
    for name, placed in splits.items():
        stems = [image.removesuffix(".png") for image in placed.names]
        patient_of = dict(zip(stems, find_patients(stems, patients)))
        without = [stem for stem, patient in patient_of.items() if patient is None]
        if without:
            raise InputError(f"--patients {patients}: no patient for the image {without[0]} "
                             f"({len(without)} of {len(stems)}); every image needs one")
        of_split = [numbers.setdefault(patient, len(numbers)) for patient in patient_of.values()]
        groups[name] = np.array(of_split, np.int64)
    return groups


# %%
print(
    groups_of({"train": placed}, r"case(\d+)"), "| by likeness:", groups_of({"train": placed}, None)["train"]
)
test_fail(
    lambda: groups_of({"train": placed}, "case([01])_"), contains="no patient for the image case2_4 (4 of 8)"
)


# %% [markdown]
# ## Masks
#
# A class of which a larger one's mask or a smaller one's left no pixel is not absent; it becomes unknown and is counted.

# %%
#| export
def _paint_all(
    placed: Placed, labels: SourceMasks, known: dict, overlap: str,
) -> tuple[LazyPixels, np.ndarray, Counter]:
    "The masks of the images, what is known on them bool [N,C], and what was counted on the way."
    N, C = len(placed.names), len(labels.classes)
    file = FilePixels(N, placed.images.shape[1:])
    masks = LazyPixels(file)
    examined = np.zeros((N, C), bool)
    counts = Counter()
    for i, name in enumerate(placed.names):
        stem = name.removesuffix(".png")
        if stem not in known: continue
        painted, drawn, overlapping = labels.paint(stem, placed.sizes[i], overlap)
        present = class_flags(drawn, C)
        asked = known[stem]
        if asked is None: asked = present
        unasked = present & ~asked
        if unasked.any():
            odd = labels.classes.names[int(unasked.argmax())]
            raise InputError(f"image {stem}: pixels of {odd}, which annotated_labels.json does not name; "
                             "add it there, or remove the mask")
        mask = placed.place(i, painted)[None]
        put_slices(masks, i, mask)
        (examined[i],) = known_after_resize(asked[None], present[None], mask)
        hidden = asked & ~examined[i]
        counts["hidden_cells"] += int(hidden.sum())
        counts["overlapping_pixels"] += overlapping
    know_values(file)
    return masks, examined, counts


# %%
two = ClassMap.from_names(["left", "heart"])
whole = np.ones((32, 32), bool)
labels = SourceMasks(two, {"case0_0": [1, 2]}, lambda image, size: iter([(1, whole), (2, whole)]), "example")
painted, examined, counts = _paint_all(placed, labels, {"case0_0": np.ones(2, bool)}, "smaller")
print(np.unique(painted[0]), examined[0], dict(counts))


# %%
#| export
def _share(cells: np.ndarray) -> float:
    "The share of cells that are true."
    return round(float(cells.mean()), 4)


# %%
#| export
def _facts(train: SliceSet, labels: SourceMasks, pictures: Pictures) -> dict:
    "What was imported."
    present = train.present & train.known
    patients = "not told: like images are kept together"
    if pictures.patients:
        patients = len(np.unique(train.groups))
    return {
        "masks": labels.form,
        "images": len(train),
        "labelled": int(train.labelled.sum()),
        "unlabelled": int((~train.labelled).sum()),
        "classes": len(train.classes),
        "size": size_text(train.images),
        "grey": str(pictures.grey),
        "patients": patients,
        "cells": {"present": _share(present), "unknown": _share(~train.known)},
        "ignored_labels": list(labels.ignored),
    }


# %%
#| export
def _with_test(
    train: SliceSet, splits: dict[str, Placed], groups: dict[str, np.ndarray],
) -> dict[str, SliceSet]:
    "The slices of both splits; nothing is known of the test."
    if "test" not in splits: return {"train": train}
    test = splits["test"]
    known = np.zeros((len(test.names), len(train.classes)), bool)
    masks = blank_like(test.images)
    slices = SliceSet(test.images, masks, known, test.names, groups["test"], train.classes)
    return {"train": train, "test": slices}


# %%
print(list(_with_test(SliceSet(placed.images, classes=["liver"]), {"train": placed}, {})))


# %%
#| export

def _write(out: Path, slices: dict[str, SliceSet], splits: dict[str, Placed], store: bool):
    "The challenge folder, or the store, and where each image lies in it; whole or not at all."
    images = {name: placed.index() for name, placed in splits.items()}
    with tempfile.TemporaryDirectory() as d:
        index = Path(d)/"png_index.json"
        write_json({"version": 1, "images": images}, index, indent=None)
        if store:
            notes = {"patients": True, "slicing": None, "neighbour_mm": {}}
            return write_store(slices, out, notes, beside=[index])
        with atomic_path(out, new=True) as tmp:
            tmp.mkdir()
            for split, those in slices.items():
                write_challenge(those, tmp, split)
            shutil.copyfile(index, tmp/index.name)


# %%
#| export
def _read_splits(images, masks, pictures: Pictures) -> dict[str, Placed]:
    "The images of both splits, of one size."
    if real_path(images) == real_path(masks):
        raise InputError(f"{images}: images and masks lie in one folder, "
                         "so a mask would be taken for an image; give each a folder")
    train = read_placed(images, pictures)
    if pictures.test is None: return {"train": train}
    test = read_placed(pictures.test, pictures)
    size, other = size_text(train.images), size_text(test.images)
    if size != other:
        raise InputError(f"{pictures.test}: images of {other} pixels, but those of {images} "
                         f"have {size}; give --size: a margin of air makes all alike")
    return {"train": train, "test": test}


# %%
test_fail(lambda: _read_splits(work/"images", work/"images", Pictures()), contains="lie in one folder")

# %% [markdown]
# Two things are wrong without any file being damaged: a forgotten `--offset`, which makes organs white, and test images that are trained on.
# Both are told.

# %%
#| export
_LOOKED_AT = 16 # images that tell whether the values of all are Hounsfield units

def _unit_notes(images, grey: Grey) -> tuple[str, ...]:
    "What to tell of 16-bit images that are plainly not in Hounsfield units by their scale and offset."
    if grey.window is None: return ()
    paths = image_paths(images)
    some = paths[::-(-len(paths)//_LOOKED_AT)]
    units = [read_units(path, grey).ravel() for path in some]
    notes = scale_notes(np.concatenate(units), images)
    return tuple(f"{note}; say by scale and offset (--scale, --offset) what they mean" for note in notes)

def _digests(placed: Placed) -> list[bytes]:
    "What tells each image from all others."
    return [hashlib.sha256(image.tobytes()).digest() for block in blocks(placed.images) for image in block]

def _shared_notes(splits: dict[str, Placed]) -> tuple[str, ...]:
    "What to tell of test images that are training images too."
    if "test" not in splits: return ()
    trained = set(_digests(splits["train"]))
    of_test = zip(splits["test"].names, _digests(splits["test"]))
    shared = [name for name, digest in of_test if digest in trained]
    if not shared: return ()
    return (f"{len(shared)} of {len(splits['test'].names)} test images are training images too, such as "
            f"{shared[0]}; what is reached on them says nothing",)



# %%
#| export
def import_png(
    images, # a folder of PNG slices of 8 bits, or of 16 with a window
    masks, # a folder of PNG masks, or a CSV of run-length codes
    out, # the challenge folder, new
    labelling: Labelling = Labelling(),
    pictures: Pictures = Pictures(),
    rename: dict|str|None = None, # label → class name, or the path of such a JSON
    store: bool = False, # write a store, not a challenge folder
) -> dict: # facts
    "Make a challenge folder of images and masks. Raises `InputError` before anything is written."
    if store: check_store_place(out)
    out, renaming = new_folder(out), read_renaming(rename, Path(out).name)
    splits = _read_splits(images, masks, pictures)
    groups = groups_of(splits, pictures.patients)
    placed = splits["train"]
    stems = {name.removesuffix(".png") for name in placed.names}
    labels = read_labels(masks, stems, images, labelling)
    known = known_on_images(labels, labelling.annotated, masks)
    painted, examined, counts = _paint_all(placed, labels, known, labelling.overlap)
    train = SliceSet(placed.images, painted, examined, placed.names, groups["train"], labels.classes)
    train, names = with_new_names(train, renaming, any_part=labelling.annotated == "present")
    _write(out, _with_test(train, splits, groups), splits, store)
    facts = _facts(train, labels, pictures) | counts | names
    if "test" in splits:
        facts["test"] = len(splits["test"].names)
    return facts | {"notes": [*_unit_notes(images, pictures.grey), *_shared_notes(splits)]}


# %% [markdown]
# Six slices of three patients. On the first four both lungs were looked for and the heart was not; the last two have no row, so nothing is
# known of them.

# %%
names = {1: "lung_left", 2: "lung_right"}
rows = [f"case{i//2}_{i},{name},{encode(masks[i] == c)}" for i in range(4) for c, name in names.items()]
(work/"train.csv").write_text("\n".join(["id,class,segmentation", *rows, "case2_4,heart,"]))
(work/"images"/"case3_7.png").unlink()
print(import_png(work/"images", work/"train.csv", work/"data", pictures=Pictures(patients=r"(case\d+)_")))
s = read_challenge(work/"data")
test_eq(s.known.astype(int), [[0, 1, 1]]*4 + [[1, 0, 0]] + [[0]*3]*2)
for i in range(4):
    for c, name in names.items():
        test_eq(s.masks[i] == s.classes.id(name), masks[i] == c)

# %%
#| fig-alt: "Five imported slices with their outlines; above each the structures that were looked for"
fig, axes = image_grid(1, 5)
for ax, i in zip(axes[0], [0, 1, 2, 4, 5]):
    examined = [name for name, known in zip(s.classes.names, s.known[i]) if known]
    show_image(
        ax,
        overlay(s.images[i], s.masks[i], s.classes),
        f"{s.names[i]}: looked for\n" + (", ".join(examined) or "nothing"),
    )
class_legend(fig, s.classes)
