# %% [markdown]
# # Mask files
#
# > Which PNG in a folder is the mask of which image and class.

# %%
#| default_exp io.mask_files

# %%
#| export
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ctseg.core.errors import InputError
from ctseg.core.filetypes import check_folder
from ctseg.core.paths import refuse_special
from ctseg.data.images import (
    MAX_BYTES, OTHER_IMAGES, is_system_file, natural_key, same_letters, spelt_otherwise,
)
from ctseg.io.pixels import palette_of, read_values

# %%
#| hide
import tempfile

from fastcore.test import test_eq, test_fail
from PIL import Image

# %% [markdown]
# Four layouts are common. The first has one mask an image, with a value for each class. The others have a file for each class, which is the
# happier form: an empty one says *absent*, and one that does not exist says *unknown*.
#
#     MASKS/007.png  (or 007_mask.png)      indexed: the value of a pixel is its class
#     MASKS/007_liver.png                   one a class, by suffix
#     MASKS/liver/007.png                   one a class, in a folder of the class
#     MASKS/007/liver.png                   one a class, in a folder of the image

# %%
#| export
_GENERIC = ("mask", "masks", "seg", "segmentation", "label", "labels", "labelmap", "gt", "annotation")
_SEPARATORS = "_-. "

@dataclass
class MaskFiles:
    "The masks of a folder; one of the two is filled."
    indexed: dict[str, Path] = field(default_factory=dict) # image → its mask of all classes
    single: dict[str, dict[str, Path]] = field(default_factory=dict) # image → class → its mask

    @property
    def tokens(self) -> set[str]:
        "The classes as files or folders call them."
        return set().union(*self.single.values())


# %%
#| export
def png_files(folder, what: str = "mask") -> list[Path]:
    "The PNG files of a folder; `InputError` for a `what` (mask or image) that is no PNG."
    files = []
    for path in sorted(Path(folder).iterdir()):
        if path.is_dir() or is_system_file(path): continue
        ending = path.suffix.lower()
        if ending in OTHER_IMAGES:
            lossy = what == "mask" and ".jp" in ending
            why = "a JPEG does not keep the values of a mask" if lossy else f"{what}s are read as PNG"
            raise InputError(f"{path}: {why}; write PNG files from the original")
        if ending == ".png":
            refuse_special(path, MAX_BYTES)  # a link to nowhere is told by who reads it
            files.append(path)
    return files


# %%
#| export
def split_name(
    name: str, # of a mask, without its ending
    stems: Collection[str], # the images there are
    tokens: Collection[str] = (), # the classes, if they are known
) -> tuple[str, str]|None:
    """Image and class in the name of a mask, 007_liver → 007, liver; `None` if it belongs to no image.

    Of several images the one counts that leaves one of the known `tokens`, else the one of the longest name.
    """
    if name in stems: return name, ""
    longest = None
    for i in range(len(name) - 1, 0, -1):
        if name[i] not in _SEPARATORS: continue
        image, token = name[:i], name[i + 1:]
        if image not in stems or not token: continue
        if token in tokens: return image, token
        longest = longest or (image, token)
    return longest


# %%
print(
    split_name("007_kidney_left", {"007"}),
    split_name("a_b_liver", {"a", "a_b"}),
    split_name("a_b_liver", {"a", "a_b"}, ["b_liver"]),
)
test_eq(split_name("008_liver", {"007"}), None)


# %%
#| export
def _refuse_strangers(strangers: list[Path], stems: Collection[str], images):
    "`InputError` for masks whose image is not there."
    if not strangers: return
    first, *others = strangers
    more = f" (nor for {len(others)} more masks)" if others else ""
    remedy = "add the images, or take these masks out"
    meant = spelt_otherwise(first.stem, stems)
    if meant:
        remedy = f"{meant}.png is there: give both one name"
    if meant and same_letters(first.stem, meant):
        remedy += ", and in the same coding of their letters (NFC or NFD)"
    raise InputError(f"{first}: there is no image for it in {images}{more}; {remedy}")



# %%
test_fail(
    lambda: _refuse_strangers([Path("m/009.png"), Path("m/010.png")], ["007"], "images"),
    contains="nor for 1 more masks",
)


# %%
#| export
def _enter(files: dict, key: str, path: Path):
    "Put a path under a key that must be free."
    if key in files:
        raise InputError(f"{path}: {files[key].name} is the same mask; keep one of them")
    files[key] = path


# %%
#| export
def _is_generic(suffix: str, tokens: Collection[str]) -> bool:
    "Does the one suffix of all masks say no more than that they are masks?"
    if suffix in tokens: return False
    return suffix.lower() in ("", *_GENERIC)

def _by_name(paths: list[Path], stems: Collection[str], tokens: Collection[str], images) -> MaskFiles:
    "The masks of a folder without folders: indexed, or a class a suffix."
    split = {path: split_name(path.stem, stems, tokens) for path in paths}
    strangers = [path for path, found in split.items() if found is None]
    _refuse_strangers(strangers, stems, images)
    suffixes = {suffix for _, suffix in split.values()}
    files = MaskFiles()
    if len(suffixes) == 1 and _is_generic(*suffixes, tokens):
        for path, (stem, _) in split.items():
            _enter(files.indexed, stem, path)
        return files
    mixed = "" in suffixes and len(suffixes) > 1
    for path, (stem, suffix) in split.items():
        if mixed and suffix:
            raise InputError(f"{path}: has a suffix {suffix!r}, and other masks have none; "
                             "expected NAME.png for all, or NAME_class.png for all")
        _enter(files.single.setdefault(stem, {}), suffix, path)
    return files


# %%
#| export
def _in_image_folder(path: Path, stems: Collection[str]) -> tuple[str, str]:
    "Image and class of 007/liver.png or 007/007_liver.png; `InputError` where the two say different images."
    image = path.parent.name
    named, token = split_name(path.stem, stems) or ("", "")
    if named and named != image:
        raise InputError(f"{path}: is called after {named}, but lies with the masks of {image}")
    return image, token or path.stem

def _by_folder(folders: dict[Path, list[Path]], stems: Collection[str], images) -> MaskFiles:
    "The masks of folders that are called after classes, or after images."
    files = MaskFiles()
    of_images = all(folder.name in stems for folder in folders)
    strangers = []
    for folder, paths in folders.items():
        for path in paths:
            stem, token = path.stem, folder.name
            if of_images:
                stem, token = _in_image_folder(path, stems)
            if stem not in stems:
                strangers.append(path)
                continue
            _enter(files.single.setdefault(stem, {}), token, path)
    _refuse_strangers(strangers, stems, images)
    return files



# %%
print(_in_image_folder(Path("007/liver.png"), {"007"}), _in_image_folder(Path("007/007_liver.png"), {"007"}))
test_fail(lambda: _in_image_folder(Path("008/007_liver.png"), {"007", "008"}), contains="is called after 007")


# %%
#| export
def _folders_with_masks(folder: Path) -> dict[Path, list[Path]]:
    "The folders in a folder that hold PNG files, in natural order, and these files."
    inner = [path for path in folder.iterdir() if path.is_dir() and not is_system_file(path)]
    inner.sort(key=lambda path: natural_key(path.name))
    masks = {path: png_files(path) for path in inner}
    return {path: files for path, files in masks.items() if files}

def find_mask_files(
    folder, # of masks
    stems: Collection[str], # the images there are, without endings
    images, # where they are, for messages
    tokens: Collection[str] = (), # names of classes, if they are known
) -> MaskFiles:
    "The masks of a folder by image and class. `InputError` for what fits no layout, or no image."
    folder = Path(folder)
    check_folder(folder, "masks as PNG files, or a CSV of codes")
    flat = png_files(folder)
    folders = _folders_with_masks(folder)
    if flat and folders:
        inside = next(iter(folders)).name
        raise InputError(f"{folder}: holds masks itself and in {inside}/; expected one or the other")
    if not flat and not folders:
        raise InputError(f"{folder}: no PNG files in it, nor in its folders; expected masks")
    if flat:
        return _by_name(flat, stems, tokens, images)
    return _by_folder(folders, stems, images)


# %%
def touch(work, *names):
    "A folder with empty files."
    for name in names:
        (work/name).parent.mkdir(parents=True, exist_ok=True)
        (work/name).touch()
    return work

def layout(*names):
    "What is found in a folder with these files, in words."
    work = touch(Path(tempfile.mkdtemp()), *names)
    try: found = find_mask_files(work, {"007", "008"}, "images")
    except InputError as e: return str(e).replace(str(work), "…")
    return (
        f"indexed {sorted(found.indexed)}"
        if found.indexed
        else {stem: sorted(files) for stem, files in found.single.items()}
    )

for names in (
    ["007.png"],
    ["007_mask.png", "008_mask.png"],
    ["007_liver.png", "007_spleen.png"],
    ["liver/007.png", "liver/008.png", "Thumbs.db"],
    ["007/liver.png", "008/007_liver.png"],
    ["009.png"],
    ["007.png", "008_liver.png"],
    ["007.jpg"],
    ["007.png", "007.PNG"],
):
    print(f"{' '.join(names):34} {layout(*names)}")


# %% [markdown]
# A program that turns colours into a palette by itself orders the colours anew in each file. Then one value is another class in another mask. The
# palettes tell: a value must have one colour in all masks. Of masks of one class only the background must.

# %%
#| export
def check_palettes(
    paths: Collection[Path],
    most: int = 256, # so many values are compared
):
    "`InputError` for masks in whose palettes one value has two colours, so that it means nothing by itself."
    longest, other = b"", None
    for path in paths:
        palette = palette_of(path)[:3*most]
        common = min(len(palette), len(longest))
        if palette[:common] != longest[:common]:
            value = next(i for i in range(common) if palette[i] != longest[i])//3
            raise InputError(f"{path}: the value {value} has another colour than in {other}, "
                             "so values are no classes here; write one number for each colour in all masks "
                             "(or take the palettes out, if the values are right)")
        if len(palette) > len(longest): longest, other = palette, path


# %%
work = Path(tempfile.mkdtemp())
black, red, green = [0, 0, 0], [255, 0, 0], [0, 255, 0]
for name, colours in {"1": black + red, "2": black + red + green, "3": red + black}.items():
    image = Image.fromarray(np.eye(2, dtype=np.uint8))
    image.putpalette(colours)
    image.save(work/f"{name}.png")
check_palettes([work/"1.png", work/"2.png"])
try: check_palettes([work/"1.png", work/"3.png"])
except InputError as e: print(str(e).replace(str(work), "…"))

# %% [markdown]
# ## The values of indexed masks
#
# Where nobody says what the values mean, they are the classes themselves, called by number. That takes values that can be told apart. Those
# of a mask that was a JPEG once lie around the true ones, in dozens.

# %%
#| export
MOST_CLASSES = 64 # of masks without a list of classes

def _like_a_jpeg(values: list[int]) -> bool:
    "Values beyond `MOST_CLASSES` that lie close together, as the compression of a picture makes them."
    if not values or values[-1] <= MOST_CLASSES: return False
    gaps = np.diff([0, *values])
    return gaps.min() < 8

def values_in(paths: Collection[Path]) -> dict[int, str]: # value → name
    "The values of indexed masks, called by number; `InputError` for values that look like a JPEG's."
    seen = set()
    for path in paths:
        values_of_file = np.unique(read_values(path))
        seen.update(values_of_file.tolist())
    values = sorted(seen - {0})
    if len(values) == 1: return {values[0]: "object"}
    if _like_a_jpeg(values):
        some = ", ".join(map(str, [*values[:2], *values[-2:]]))
        folder = next(iter(paths)).parent
        raise InputError(f"{folder}: the masks have {len(values)} values besides 0 "
                         f"({some}, …), as after a JPEG; take the original masks, "
                         "or say by --classes which values are classes")
    return {value: f"class_{value}" for value in values}


# %%
for values in ([0, 255], [0, 1, 3], [0, 63, 127, 255], [0, 1, 2, 254, 255]):
    Image.fromarray(np.array([values], np.uint8)).save(work/"007.png")
    try: print(values, values_in([work/"007.png"]))
    except InputError as e: print(values, str(e).replace(str(work), "…"))
