# %% [markdown]
# # Labels of images
#
# > Masks from files or from a table, and what it means if an image has none.

# %%
#| default_exp io.mask_labels

# %%
#| export
import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError, did_you_mean
from ctseg.io.label_names import read_examined_cases
from ctseg.io.mask_files import check_palettes, find_mask_files, values_in
from ctseg.io.pixels import check_size, read_values, two_values
from ctseg.io.rle import Coding, decode
from ctseg.io.rle_table import SINGLE, image_of, read_codes
from ctseg.io.value_names import class_map, foreground, numbered, read_value_names, token_ids
from ctseg.io.volumes import class_flags

# %%
#| hide
import tempfile

from fastcore.test import test_fail
from PIL import Image

from ctseg.core.json_files import write_json

# %% [markdown]
# Annotations of images come in two forms: mask files, one or several for each image, or a table of [run-length codes](93_rle_table.ipynb). This page reads both into label maps,
# and decides what was examined on each image.
#
# ## How masks are read

# %%
#| export
ANNOTATED = ("json", "all", "present")
OVERLAPS = ("refuse", "smaller")


# %%
#| export
@dataclass(frozen=True)
class Labelling:
    "How masks are to be read. Raises `InputError` for a choice that there is not."
    classes: ClassMap|str|Path|None = None # or a JSON or CSV of values and names; `None`: as found
    annotated: str = "json" # what is examined: json, all or present, see `known_on_images`
    coding: Coding = Coding() # of run-length codes
    overlap: str = "refuse" # where two masks claim a pixel: refuse, or the smaller one wins

    def __post_init__(self):
        if self.annotated not in ANNOTATED:
            raise did_you_mean("value of annotated", self.annotated, ANNOTATED)
        if self.overlap not in OVERLAPS:
            raise did_you_mean("overlap", self.overlap, OVERLAPS)

    @property
    def names(self) -> dict[int, str]|None:
        "Value → name of the given classes; `None` if none are given."
        classes = self.classes
        if classes is None: return None
        if isinstance(classes, ClassMap):
            return dict(enumerate(classes.names, 1))
        return read_value_names(classes)


# %%
print(Labelling(ClassMap.from_names(["liver", "spleen"])).names)
test_fail(lambda: Labelling(annotated="al"), contains="did you mean all")

# %% [markdown]
# ## What a source says
#
# Every source of masks answers three questions: which classes there are, what is drawn on an image, and, if it says so, which classes
# were looked for on it.

# %%
#| export
Drawn = Iterator[tuple[int, np.ndarray]] # class id and mask, bool [H,W]


# %%
#| export
@dataclass
class SourceMasks:
    "The masks of a source."
    classes: ClassMap
    told: dict[str, list[int]|None] # image → class ids that were looked for; `None`: the source does not say
    draw: Callable[[str, tuple[int, int]], Drawn] # image, size
    form: str # what the source is, in words
    ignored: tuple[str, ...] = () # names in it that are no class

    def paint(self, image: str, size: tuple[int, int], overlap: str) -> tuple[np.ndarray, set[int], int]:
        """The mask uint8 [H,W] of an image, the classes drawn, and how many pixels two classes claim.

        Raises `InputError` for such pixels unless the smaller class shall have them.
        """
        drawn = [(id, mask) for id, mask in self.draw(image, size) if mask.any()]
        drawn.sort(key=lambda pair: -int(pair[1].sum()))  # the smaller ones are painted over the larger
        painted = np.zeros(size, np.uint8)
        claims = np.zeros(size, np.uint8)
        for id, mask in drawn:
            below = painted[mask]
            if overlap == "refuse" and below.any():
                other, this = self.classes.name(int(below.max())), self.classes.name(id)
                pixels = int((below > 0).sum())
                raise InputError(f"image {image}: {other} and {this} claim {pixels} pixels both; "
                                 "correct one, or give --overlap smaller: the smaller one wins")
            painted[mask] = id
            claims[mask] += 1
        overlapping = int((claims > 1).sum())
        return painted, {id for id, _ in drawn}, overlapping


# %%
two = ClassMap.from_names(["liver", "spleen"])
masks = [(1, np.array([[1, 1, 1, 0]], bool)), (2, np.array([[0, 0, 1, 1]], bool))]
labels = SourceMasks(two, {"007": [1, 2]}, lambda image, size: iter(masks), "example")
print(labels.paint("007", (1, 4), "smaller"))
test_fail(lambda: labels.paint("007", (1, 4), "refuse"), contains="liver and spleen claim 1 pixels both")


# %% [markdown]
# ### Indexed masks

# %%
#| export
def _draw_indexed(paths: dict[str, Path], ids: dict[int, int], image: str, size) -> Drawn:
    "The classes on an indexed mask; `InputError` for a value that is no class."
    path = paths[image]
    values = read_values(path)
    check_size(values, size, path, image)
    for value in np.unique(values[values > 0]).tolist():
        mask = values == value
        if value not in ids:
            row, column = np.argwhere(mask)[0]
            some = ", ".join(map(str, list(ids)[:8]))
            why = "; pixels to be ignored are 255 in y_train.csv only" if value == 255 else ""
            raise InputError(f"{path}: value {value} at row {row}, column {column} is no class (these are "
                             f"{some}); was the mask a JPEG?{why}")
        yield ids[value], mask


# %%
#| export
def _indexed_labels(paths: dict[str, Path], labelling: Labelling, where) -> SourceMasks:
    "The labels of indexed masks."
    check_palettes(paths.values())
    names = foreground(labelling.names or values_in(paths.values()))
    if 0 in names:
        raise InputError(f"{labelling.classes}: calls the value 0 {names[0]}, but in a mask "
                         "0 is the background; number the classes from 1")
    classes = class_map(names, labelling.classes or where)
    ids = {value: classes.id(name) for value, name in names.items()}
    draw = functools.partial(_draw_indexed, paths, ids)
    return SourceMasks(classes, dict.fromkeys(paths), draw, "indexed masks")


# %%
work = Path(tempfile.mkdtemp())
Image.fromarray(np.array([[0, 63, 127]], np.uint8)).save(work/"007.png")
write_json({"liver": 63, "spleen": 127}, work/"classes.json")
labels = _indexed_labels({"007": work/"007.png"}, Labelling(work/"classes.json"), work)
print(labels.paint("007", (1, 3), "refuse")[0], labels.told)
write_json({"liver": 63}, work/"classes.json")
labels = _indexed_labels({"007": work/"007.png"}, Labelling(work/"classes.json"), work)
test_fail(lambda: labels.paint("007", (1, 3), "refuse"), contains="value 127 at row 0, column 2 is no class")


# %% [markdown]
# ### A mask or a code for each class

# %%
#| export
class _ById(NamedTuple):
    "Masks by class id instead of by the words of their source."
    classes: ClassMap
    masks: dict[str, dict] # image → class id → a path or a code
    ignored: list[str] # words that are no class

def _with_ids(found: dict[str, dict], labelling: Labelling, where) -> _ById:
    "Image → token → mask, with class ids for tokens; `InputError` for a class twice on an image."
    tokens = set().union(*found.values())
    names = labelling.names or numbered(tokens)
    if tokens == {SINGLE} and len(foreground(names)) == 1:  # the one class needs no token
        names = foreground(names)
        (only,) = tokens = set(names.values())
        found = {image: {only: masks[SINGLE]} for image, masks in found.items()}
    classes = class_map(names, labelling.classes or where)
    ids = token_ids(tokens, names, classes, where)
    by_id: dict[str, dict] = {image: {} for image in found}
    named = [(image, ids[token], mask) for image, masks in found.items()
             for token, mask in masks.items() if token in ids]
    for image, id, mask in named:
        if id in by_id[image]:
            raise InputError(f"{where}: image {image} has {classes.name(id)} twice; keep one")
        by_id[image][id] = mask
    return _ById(classes, by_id, sorted(tokens - set(ids)))


# %%
found = {"007": {"liver": "a", "heart": "b"}, "008": {"1": "c"}}
by_id = _with_ids(found, Labelling(two), "masks")
print(by_id.masks, "ignored:", by_id.ignored)
test_fail(
    lambda: _with_ids({"007": {"liver": "a", "Liver": "b"}}, Labelling(two), "masks"),
    contains="has liver twice",
)


# %%
#| export
def _draw_files(by_id: dict[str, dict[int, Path]], image: str, size) -> Drawn:
    "The masks of an image, a file each."
    for id, path in by_id[image].items():
        mask = two_values(path)
        check_size(mask, size, path, image)
        yield id, mask

def _draw_codes(by_id: dict[str, dict], coding: Coding, image: str, size) -> Drawn:
    "The masks of an image, a code each."
    for id, code in by_id[image].items():
        yield id, decode(code.text, size, coding, code.where)



# %%
print(_with_ids({"007": {"object": "a"}}, Labelling(ClassMap.from_names(["liver"])), "y.csv")[1])


# %%
#| export
def read_labels(
    masks, # a folder of PNG files, or a CSV of run-length codes
    stems: Collection[str], # the images there are, without endings
    images, # where they are, for messages
    labelling: Labelling = Labelling(),
) -> SourceMasks:
    "The masks of a folder or a table. Raises `InputError` for what fits no layout, no image or no class."
    masks = Path(masks)
    if masks.name.lower().endswith((".csv", ".csv.gz")):
        form, codes = read_codes(masks, stems)
        found = _with_ids(codes, labelling, masks)
        draw = functools.partial(_draw_codes, found.masks, labelling.coding)
        words = f"run-length codes ({form.name}), {labelling.coding}"
    else:
        names = labelling.names or {}
        files = find_mask_files(masks, stems, images, names.values())
        if files.indexed:
            return _indexed_labels(files.indexed, labelling, masks)
        found = _with_ids(files.single, labelling, masks)
        check_palettes([path for of_image in found.masks.values() for path in of_image.values()], most=1)
        draw = functools.partial(_draw_files, found.masks)
        words = "a mask for each class"
    examined = {image: sorted(of_image) for image, of_image in found.masks.items()}
    return SourceMasks(found.classes, examined, draw, words, tuple(found.ignored))


# %%
(work/"y.csv").write_text("id,class,rle\n007,liver,1 1 3 1\n007,spleen,\n")
labels = read_labels(work/"y.csv", {"007", "008"}, "images")
print(labels.form, labels.told, labels.paint("007", (1, 3), "refuse")[0])


# %% [markdown]
# ## What was looked for
#
# `--annotated` means here what it means for every import.
#
# | | an indexed mask | a mask or code for each class |
# |---|---|---|
# | `json` | `annotated_labels.json` beside the masks must tell: `{"007": ["liver", …]}` | the file tells if it is there; else a class with a mask or a row was looked for, and the others are unknown |
# | `all` | every class was looked for on every image that has a mask | the same |
# | `present` | only the classes that have pixels are known | the same |
#
# An image without any mask is unlabelled in all cases.

# %%
#| export
def _read_examined(path: Path, classes: ClassMap, stems: Collection[str]) -> dict[str, np.ndarray]:
    "Image → classes examined, bool [C], from an `annotated_labels.json` beside the masks."
    examined: dict[str, np.ndarray] = {}
    for name, known in read_examined_cases(path, classes).items():
        image = image_of(name, stems)
        if image is None: continue
        if not np.array_equal(examined.setdefault(image, known), known):
            raise InputError(f"{path}: the image {image} is there twice, "
                             "with different classes; keep one of them")
    return examined


# %%
write_json({"007.png": ["liver"], "008": []}, work/"annotated.json")
print(_read_examined(work/"annotated.json", two, {"007", "008"}))


# %%
#| export
def _annotated_beside(masks) -> Path:
    "The `annotated_labels.json` of a folder of masks, or of a table."
    masks = Path(masks)
    folder = masks if masks.is_dir() else masks.parent
    return folder/"annotated_labels.json"


# %%
#| export
def known_on_images(labels: SourceMasks, annotated: str, masks) -> dict[str, np.ndarray|None]:
    "Image → classes looked for, bool [C]; `None`: those drawn. Images without masks are not in it."
    C = len(labels.classes)
    path = _annotated_beside(masks)
    if annotated == "all":
        return {image: np.ones(C, bool) for image in labels.told}
    if annotated == "present": return dict.fromkeys(labels.told)
    if path.exists():
        examined = _read_examined(path, labels.classes, labels.told)
        for image in labels.told:
            if image not in examined:
                raise InputError(f"{path}: does not say what was examined on {image}; add it, [] for nothing")
        return {image: examined[image] for image in labels.told}
    if any(ids is None for ids in labels.told.values()):
        raise InputError(f"{path}: no such file, so absent cannot be told from unknown; "
                         f'write {{"image": ["{labels.classes.names[0]}", …]}}, or choose --annotated all '
                         "(every class was looked for where there is a mask) "
                         "or --annotated present (only what has pixels)")
    return {image: class_flags(ids, C) for image, ids in labels.told.items()}


# %%
for annotated in ANNOTATED:
    print(annotated, known_on_images(labels, annotated, work/"y.csv"))
indexed = _indexed_labels({"007": work/"007.png"}, Labelling(), work)
test_fail(lambda: known_on_images(indexed, "json", work), contains="absent cannot be told from unknown")
write_json({"007": ["class_63"]}, work/"annotated_labels.json")
print(known_on_images(indexed, "json", work))
