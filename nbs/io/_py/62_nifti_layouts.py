# %% [markdown]
# # Images and their label maps
#
# > Which file is a scan and which is its label map, by the names that people give them.

# %%
#| default_exp io.nifti_layouts

# %%
#| export
import re
from pathlib import Path
from typing import NamedTuple

from ctseg.core.errors import InputError
from ctseg.io.nifti import nifti_files
from ctseg.io.walk import foreign_files, foreign_hint

# %%
#| hide
import shutil
import tempfile

from fastcore.test import test_fail

# %% [markdown]
# A label map is a volume like any other. Taken for a scan it would be a grey picture of its numbers, and nobody would be warned. So whatever is
# called a label map is one: it is put to its image, or refused.
#
# ## By the name of the file
#
# Challenges and tools write `volume-0` and `segmentation-0`, `img0001` and `label0001`, `p1` and `p1_seg`, `imaging` and `segmentation`.

# %%
#| export
_LABEL_WORDS = (
    "segmentations?", "segs?", "segm", "masks?", "msks?", "labels?", "label_?maps?", "lbls?", "dseg", "gt",
    "ground_?truth", "annotations?", "annos?", "contours?", "rois?", "gtvs?",
)
_REMARKS = r"(?:[-_. ]+(?:final|manual|auto|corrected|edited|new|v\d+))+$"
_IMAGE_WORDS = ("imaging", "images?", "img", "volumes?", "vol", "scans?", "ct", "orig", "original")

class Role(NamedTuple):
    "What a file's name says of it."
    key: str # the name without the words that tell what it is
    label: bool # a label map


# %%
#| export
def _strip(name: str, words: tuple[str, ...]) -> str|None:
    "The name without a word before or after it; `None` if there is none."
    word = f"(?:{'|'.join(words)})"
    before = rf"{word}[-_. ]+(?P<key>.+)", rf"{word}(?P<key>\d.*)"
    patterns = (word, *before, rf"(?P<key>.+?)[-_. ]+{word}")
    for pattern in patterns:
        found = re.fullmatch(pattern, name, re.IGNORECASE)
        if found:
            key = found.groupdict().get("key")
            return (key or "").lower()
    return None

def _without_image_words(name: str) -> str:
    "A name without all the words that only say that it is an image, in small letters."
    key = name.lower()
    shorter = _strip(key, _IMAGE_WORDS)
    while shorter:
        key, shorter = shorter, _strip(shorter, _IMAGE_WORDS)
    return key

def without_remarks(name: str) -> str:
    "A name without what is said of a version at its end: `p1_manual` is `p1`."
    return re.sub(_REMARKS, "", name, flags=re.IGNORECASE)


# %%
print(_without_image_words("ct_train_1001_image"), without_remarks("p1_manual_v2"))


# %%
#| export
def role_of(name: str) -> Role:
    "What the name of a case says: whose it is, and whether it is a label map."
    key = _strip(name, _LABEL_WORDS)
    if key is None:
        key = _strip(without_remarks(name), _LABEL_WORDS)
    if key is not None:
        key = _strip(key, _LABEL_WORDS) or key  # Slicer: p1_Segmentation-label
        return Role(_without_image_words(key), True)
    if _strip(name, _IMAGE_WORDS) == "": return Role("", False)
    return Role(_without_image_words(name), False)


# %%
for name in (
    "volume-0",
    "segmentation-0",
    "img0001",
    "label0001",
    "p1",
    "P1_seg",
    "p1-label",
    "segmentation",
    "ct",
    "ct_p1_mask",
    "p1_Segmentation-label",
    "p1-seg-manual_v2",
    "abdomen",
):
    print(f"{name:16}", *role_of(name))


# %%
#| export
def _owner(path: Path, candidates: list[str], hint: str) -> str:
    "The only image that a label map can belong to; `InputError` for none, or several."
    if len(candidates) == 1: return candidates[0]
    problem = f"there is no image of that name{hint}"
    if candidates:
        problem = f"{len(candidates)} images could be its own"
    raise InputError(f"{path}: a label map, and {problem}; give both one name, or take it away")

def pair_files(
    volumes: dict[str, Path], # case → image
    maps: dict[str, Path], # case → label map
    hint: str = "", # what to say of a label map without an image
) -> dict[str, Path]: # case of the image → its label map
    "Put each label map to its image, by the same name or by what is left of it. Raises `InputError` if that fails."
    by_key: dict[str, list[str]] = {}
    for name in volumes:
        key = role_of(name).key
        by_key.setdefault(key, []).append(name)
    paired: dict[str, Path] = {}
    for name, path in maps.items():
        key = role_of(name).key
        candidates = by_key.get(key) or by_key.get(without_remarks(key), [])
        owner = name if name in volumes else _owner(path, candidates, hint)
        if owner in paired:
            image, other = volumes[owner].name, paired[owner].name
            raise InputError(f"{path}: a second label map of {image}, beside {other}; remove one of them")
        paired[owner] = path
    return paired


# %%
print(pair_files({"img0001": Path("a"), "img0002": Path("b")}, {"label0002": Path("c")}))
test_fail(
    lambda: pair_files({"p1": Path("p1.nii")}, {"p2_seg": Path("p2_seg.nii")}),
    contains="no image of that name",
)
test_fail(
    lambda: pair_files({"p1": Path("p1.nii")}, {n: Path(n) for n in ("p1_seg", "p1_mask")}),
    contains="a second label map",
)


# %%
#| export
def split_roles(files: dict[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    "The images and the label maps among the files of one folder, by their names."
    images, maps = {}, {}
    for name, path in files.items():
        kind = maps if role_of(name).label else images
        kind[name] = path
    return images, maps


# %%
images, maps = split_roles({name: Path(name) for name in ("volume-0", "segmentation-0", "volume-1")})
print(list(images), list(maps), pair_files(images, maps))

# %% [markdown]
# ## By the name of the folder

# %%
#| export
_IMAGE_FOLDERS = {"images", "image", "imgs", "img", "ct", "cts", "scans", "scan", "volumes", "volume"}
_LABEL_FOLDERS = {"labels", "label", "segs", "seg", "segmentation", "segmentations", "masks", "mask", "gt",
                  "ground_truth", "groundtruth", "annotations", "annos", "anno", "labelmaps", "labelmap",
                  "lbls", "lbl", "contours", "rois"}
_NNUNET = [("imagestr", "labelstr", "train"), ("imagests", "labelsts", "test")]
_SHARED = _IMAGE_FOLDERS | _LABEL_FOLDERS | {name for *pair, _ in _NNUNET for name in pair}

class Layout(NamedTuple):
    "A folder of images, the folder of their label maps (\".\": beside the images), and their split."
    images: str
    labels: str
    split: str


# %%
#| export
def is_label_folder(name: str) -> bool:
    "Is this what people call a folder of label maps or of structures?"
    return name.lower() in _LABEL_FOLDERS | {"labelstr", "labelsts", "structures", "organs"}

def structure_folder(case: Path) -> Path|None:
    "The folder of the structures in the folder of a case; `None` if there is none. `InputError` for several."
    names = []
    for path in case.iterdir():
        if path.is_dir() and is_label_folder(path.name):
            names.append(path.name)
    name = _the_one(case, sorted(names))
    return case/name if name else None


# %%
#| export
def _flat_folders(src: Path) -> dict[str, str]:
    """Folders that hold volumes and are no case of their own: name in small letters → name.

    `InputError` for two of a layout that differ in capitals only."""
    folders = {}
    for path in sorted(src.iterdir()):
        if not path.is_dir() or (path/"segmentations").is_dir(): continue
        lower = path.name.lower()
        if lower in _SHARED and lower in folders:
            _the_one(src, [folders[lower], path.name])
        folders[lower] = path.name
    return folders

def _the_one(src: Path, names: list[str]) -> str:
    "The only folder, \"\" if there is none; `InputError` for several."
    if not names: return ""
    first, *others = names
    if others:
        raise InputError(f"{src}: both {first}/ and {others[0]}/ are in it, "
                         "and it is not clear which belong together; keep one")
    return first

def _among(folders: dict[str, str], wanted: set[str]) -> list[str]:
    "The names of those folders that are called as wanted, in small letters."
    return [name for lower, name in folders.items() if lower in wanted]


# %%
#| export
def _nnunet_layouts(folders: dict[str, str], spare: str) -> list[Layout]:
    "nnU-Net's folders, as far as they are there; `spare`: label maps of another name for the first."
    layouts = []
    for images, labels, split in _NNUNET:
        if images not in folders: continue
        theirs = folders.get(labels) or (spare if not layouts else "")
        layouts.append(Layout(folders[images], theirs, split))
    return layouts

def _spare_labels(folders: dict[str, str]) -> str:
    "nnU-Net's folder of label maps where its folder of images is not there; \"\" if there is none."
    spare = [labels for images, labels, _ in _NNUNET if labels in folders and images not in folders]
    return folders[spare[0]] if spare else ""


# %%
print(_spare_labels({"images": "images", "labelstr": "labelsTr"}))


# %%
#| export
def find_layouts(src: Path) -> list[Layout]:
    "Where the images and the label maps of a folder lie. Raises `InputError` if that is not clear."
    folders = _flat_folders(src)
    images = _the_one(src, _among(folders, _IMAGE_FOLDERS))
    labels = _the_one(src, _among(folders, _LABEL_FOLDERS))
    loose = bool(nifti_files(src))
    layouts = _nnunet_layouts(folders, "" if images or loose else labels)
    used = any(layout.labels == labels for layout in layouts)
    if images or loose:
        labels = labels or _spare_labels(folders)
    if images:
        layouts.append(Layout(images, labels, "train"))
    if loose:
        labels_of_loose = labels if labels and not images else "."
        layouts.append(Layout(".", labels_of_loose, "train"))
    if labels and not images and not loose and not used:
        raise InputError(f"{src/labels}: label maps, and there is no folder of images beside it; "
                         "expected images/ and labels/")
    return layouts


# %%
#| export
def layout_folders(src: Path) -> set[str]:
    "Names of folders that are part of a layout, and no cases."
    return set(_among(_flat_folders(src), _SHARED))


# %%
work = Path(tempfile.mkdtemp())
for name in ("CT/p1.nii", "Seg/p1_seg.nii", "imagesTr/p2_0000.nii"):
    (work/name).parent.mkdir()
    (work/name).touch()
print(find_layouts(work), sorted(layout_folders(work)))
(work/"masks").mkdir()
test_fail(lambda: find_layouts(work), contains="keep one")


# %%
#| export
def images_and_labels(src: Path, layout: Layout) -> tuple[dict[str, Path], dict[str, Path]]:
    "The images of a layout by case, and the label maps by the case of their image. Raises `InputError` for a map without one."
    volumes = nifti_files(src/layout.images)
    maps: dict[str, Path] = {}
    if layout.labels in (".", layout.images):
        volumes, maps = split_roles(volumes)
    elif layout.labels:
        maps = nifti_files(src/layout.labels)
    if layout.images.lower() in ("imagestr", "imagests"):
        check_channels(src/layout.images, volumes)
    hint = foreign_hint(foreign_files(src/layout.images))
    return volumes, pair_files(volumes, maps, hint)

def check_channels(folder: Path, volumes: dict[str, Path]):
    "Raise `InputError` for several channels of one case. (Outside of nnU-Net _0001 may be a case's number.)"
    for name, path in volumes.items():
        numbered = re.fullmatch(r"(.+)_\d{4}", name)
        if numbered is None: continue
        other = volumes.get(numbered[1])
        if other:
            raise InputError(f"{folder}: {other.name} and {path.name} "
                             "are channels of one case; keep the CT and take the others out")


# %%
print([list(files) for files in images_and_labels(work, Layout("CT", "Seg", "train"))])
test_fail(
    lambda: check_channels(work, {n: Path(n) for n in ("p1", "p1_0001")}), contains="channels of one case"
)
shutil.rmtree(work)
