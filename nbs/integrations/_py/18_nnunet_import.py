# %% [markdown]
# # Reading a data set of nnU-Net
#
# > `ctseg import nnunet`: a raw data set, with who examined what, becomes a challenge folder.

# %%
#| default_exp integrations.nnunet_import

# %%
#| export
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.filetypes import check_folder, instead_of
from ctseg.core.json_files import read_json
from ctseg.data.challenge import write_challenge
from ctseg.data.images import image_paths, read_pngs
from ctseg.data.slices import SliceSet
from ctseg.data.store import write_store
from ctseg.integrations.nnunet_known import EXAMINED_FILE, ExaminedCases
from ctseg.io.into_store import check_store_place
from ctseg.io.label_names import dataset_classes, ignore_label
from ctseg.io.nifti_import import import_nifti
from ctseg.io.outputs import new_folder
from ctseg.io.renaming import Renaming, read_renaming, with_new_names
from ctseg.io.slicing import Slicing

# %%
#| hide
import os
import shutil
import tempfile

from fastcore.test import test_eq, test_fail

from ctseg.data.challenge import read_challenge
from ctseg.data.toys import toy_set
from ctseg.integrations.nnunet import export_nnunet

# %% [markdown]
# Volumes are cut as [NIfTI](../io/65_nifti_import.ipynb) of any other layout: `imagesTr` and `labelsTr`, names from `dataset.json`, and what was examined from `annotated_labels.json`. Slices
# are taken as they are. Here are some, on their way out and back.

# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
slices = toy_set(6, 4)[0]
write_challenge(slices, work/"data")
export_nnunet(work/"data", work, unknown="partial")
raw = work/"Dataset501_ctseg"


# %%
#| export
def describe_dataset(src: Path) -> str:
    "The ending of the files of a raw data set. `InputError` for what is none, or has several channels."
    path = src/"dataset.json"
    check_folder(src, "a raw data set of nnU-Net")
    if not path.is_file():
        hint = instead_of(src, path.name)
        raise InputError(f"{src}: no raw data set of nnU-Net (no dataset.json){hint}")
    text = read_json(path)
    if not isinstance(text, dict) or not isinstance(text.get("file_ending"), str):
        raise InputError(f"{path}: no description of nnU-Net v2 (file_ending is missing)")
    channels = text.get("channel_names")
    if isinstance(channels, dict) and len(channels) > 1:
        raise InputError(f"{path}: {len(channels)} channels; keep the CT and take the others out")
    return text["file_ending"]


# %%
print(describe_dataset(raw))
test_fail(lambda: describe_dataset(work/"data"), contains="no dataset.json")


# %% [markdown]
# ## Slices
#
# The image of a case ends in `_0000`, its labels do not. Without the file that says who examined what nobody guesses.

# %%
#| export
def examined_cells(src: Path, classes: ClassMap, cases: list[str], annotated: str) -> np.ndarray | str:
    "What was examined on the cases, bool [N,C], or the word that says it."
    if annotated != "json": return annotated
    path = src/EXAMINED_FILE
    if not path.exists():
        raise InputError(f"{path}: no such file, so absent cannot be told from unknown; write "
                         f'{{"{cases[0]}": ["{classes.names[0]}", …]}}, or choose --annotated present or all')
    examined = ExaminedCases(path, classes)
    return np.stack([examined.of(case) for case in cases])


# %%
classes = dataset_classes(raw/"dataset.json")
print(examined_cells(raw, classes, ["train_00000", "train_00005"], "json").tolist())


# %%
#| export
def read_raw_slices(
    src: Path, # a raw data set
    part: str, # Tr or Ts
    annotated: str = "json", # what a zero means: json, all or present
) -> SliceSet:
    "The PNG slices of a raw data set. Raises `InputError` for an image without labels, or what does not fit."
    classes, ignore = dataset_classes(src/"dataset.json"), ignore_label(src/"dataset.json")
    paths = image_paths(src/f"images{part}")
    cases = [path.stem.removesuffix("_0000") for path in paths]
    images = read_pngs(paths)
    truths = [src/f"labels{part}"/f"{case}.png" for case in cases]
    missing = [path for path in truths if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]}: no such file; nnU-Net wants labels for every case")
    masks = read_pngs(truths, images.shape[1:])
    if ignore is not None: masks[masks == ignore] = IGNORE
    known = examined_cells(src, classes, cases, annotated)
    names = [f"{case}.png" for case in cases]
    return SliceSet(images, masks, known, names, np.arange(len(cases)), classes)


# %%
back = read_raw_slices(raw, "Tr")
print(back)
test_eq(back.masks, slices.masks)
test_eq(back.known, slices.known)


# %%
#| export
def _import_slices(
    src: Path, out, annotated: str, renaming: Renaming = Renaming(), store: bool = False
) -> dict:
    "PNG slices as they are; facts."
    if store: check_store_place(out)
    slices = read_raw_slices(src, "Tr", annotated)
    train, facts = with_new_names(slices, renaming, any_part=annotated == "present")
    splits = {"train": train}
    if (src/"labelsTs").is_dir():
        splits["test"], _ = with_new_names(read_raw_slices(src, "Ts", "all"), renaming)
    if store:
        write_store(splits, out, {"patients": True})
    else:
        with atomic_path(new_folder(out), new=True) as root:
            for split, slices in splits.items():
                write_challenge(slices, root, split)
    counts = {split: len(slices) for split, slices in splits.items()}
    labelled = int(splits["train"].labelled.sum())
    return {"classes": len(splits["train"].classes), "labelled": labelled} | counts | facts


# %%
print(_import_slices(raw, work/"as_it_is", "json"))


# %%
#| export
def import_nnunet(
    src, # a raw data set, Dataset501_…
    out, # the challenge folder, new
    slicing: Slicing = Slicing(), # of volumes
    annotated: str = "json", # what a zero means: json, all or present
    test_share: float = 0., # of volumes: share of the patients set aside as a test
    key = None, # of volumes: where to write the private table volume → source
    rename: dict|str|None = None, # label → class name, or the path of such a JSON
    **work, # of volumes: as for `import_nifti`
) -> dict: # facts
    "Make a challenge folder of a raw data set of nnU-Net. Raises `InputError` for one that cannot be read."
    ending = describe_dataset(Path(src))
    if ending in (".nii.gz", ".nii"):
        how = dict(annotated=annotated, test_share=test_share, key=key, rename=rename)
        return import_nifti(src, out, slicing, **how, **work)
    if ending != ".png":
        raise InputError(f"{src}: files ending in {ending}; expected .nii.gz or .png")
    if slicing != Slicing() or test_share or key:
        raise InputError(f"{src}: slices, and no volumes; they are taken as they are, without options")
    renaming = read_renaming(rename, Path(out).name)
    return _import_slices(Path(src), out, annotated, renaming, work.get("store", False))


# %%
print(import_nnunet(raw, work/"back"))
test_eq(read_challenge(work/"back").known, slices.known)
test_fail(lambda: import_nnunet(raw, work/"b", Slicing(every=2)), contains="slices, and no volumes")
(raw/"annotated_labels.json").unlink()
test_fail(lambda: import_nnunet(raw, work/"b"), contains="absent cannot be told")
shutil.rmtree(work)
