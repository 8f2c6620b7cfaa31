# %% [markdown]
# # nnU-Net
#
# > A challenge folder as raw data of nnU-Net, with unknown cells approximated openly.

# %%
#| default_exp integrations.nnunet

# %%
#| export
import sys
from pathlib import Path

import numpy as np
from skimage.io import imsave

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.files import InputError, atomic_path, did_you_mean, write_json
from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.data.splits import grouped_folds
from ctseg.integrations.nnunet_setup import set_up
from ctseg.io.outputs import new_folder, output_name

# %%
#| hide
import os
import shutil
import tempfile

import matplotlib.pyplot as plt
from fastcore.test import test_eq, test_fail
from skimage.io import imread

from ctseg.core.files import read_json
from ctseg.data.challenge import write_challenge
from ctseg.io.volumes import class_flags

# %% [markdown]
# `ctseg export nnunet my_data OUT` writes a challenge folder for [nnU-Net](https://github.com/MIC-DKFZ/nnUNet) (version 2): a folder `Dataset501_ctseg` with `imagesTr`, `labelsTr` and a
# `dataset.json`. The form is easy; the labels are not. nnU-Net's softmax knows classes,
# background, and an **ignore** label. It has *no way to say* "this pixel may be a kidney, because nobody looked for kidneys here,
# but it is certainly not liver".
#
# Six slices show it, each with a square liver and a round kidney. On the first two both were examined, on the next two only the liver,
# and the last two have no labels.

# %%
classes = ClassMap.from_names(["liver", "kidney"])
y, x = np.mgrid[:32, :32]
truth = np.uint8(1)*((abs(y - 10) < 5) & (abs(x - 10) < 5)) + np.uint8(2)*((y - 20)**2 + (x - 20)**2 < 25)
known = np.stack([class_flags(ids, 2) for ids in ([1, 2], [1, 2], [1], [1], [], [])])
masks = np.stack([truth*np.r_[True, k][truth] for k in known]).astype(np.uint8)
noise = np.random.default_rng(0).integers(0, 30, masks.shape)
images = (60 + 60*truth + noise).astype(np.uint8)
s = SliceSet(images, masks, known, [f"{i}.png" for i in range(6)], np.arange(6), classes)
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
write_challenge(s, work/"data")
print(s)

# %% [markdown]
# Unknown cells can only be approximated, in one of two ways:
#
# - `"ignore"`: on an image with any unknown class, every unlabelled pixel is ignored. This is true, but wasteful: all certain absences are
#   lost. If *no* image is fully known, there is no background left to learn from, and the network would paint organs on air.
# - `"background"`: unknown is read as background. This is what most people do when they run nnU-Net on such data. It is false, and the
#   network learns to keep silent.

# %%
#| export
_MEANING = {
    "ignore": "Unlabelled pixels of images with an unknown class are ignored; "
              "what is certainly absent there is lost.",
    "background": "Unlabelled pixels are background, also where nobody looked: "
                  "some of these labels are false.",
}

def nnunet_labels(
    slices: SliceSet,
    unknown: str, # ignore or background
) -> np.ndarray: # uint8 [N,H,W]; C+1 is ignored
    "The label images: C+1 for pixels to be ignored, and with `ignore` where one may be what nobody looked for."
    unsure = slices.masks == IGNORE
    if unknown == "ignore":
        unsure |= (slices.masks == 0) & ~slices.known.all(1)[:, None, None]
    return np.where(unsure, np.uint8(len(slices.classes) + 1), slices.masks)


# %%
fig, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
colours = np.vstack([classes.colours, [[110, 110, 110]]])
for ax, (unknown, i) in zip(axes, [("ignore", 0), ("ignore", 2), ("background", 0), ("background", 2)]):
    ax.imshow(colours[nnunet_labels(s, unknown)[i]])
    ax.set_title(f"{unknown}: {s.known[i].sum()} of 2 known", fontsize=9)
    ax.axis("off")


# %% [markdown]
# Black is background and grey is ignored. In the fourth picture the kidney is labelled as background, which is false.
#
# With `ignore` and no fully known image there is nothing to learn background from. That is refused.

# %%
#| export
def _check_names(names, folder: Path):
    "`InputError` for a class whose name means something else to nnU-Net."
    taken = [name for name in names if name.lower() in ("background", "ignore")]
    if taken:
        raise InputError(f"{folder}: a class is called {taken[0]!r}, which means something else to nnU-Net; "
                         "give it another name in class_names.json")


# %%
#| export
def _check_labels(labels: np.ndarray, folder: Path):
    "`InputError` for labels that nnU-Net cannot learn from."
    if not (labels == 0).any():
        raise InputError(f"{folder}: no image is fully known, so with unknown='ignore' there is no "
                         "background to learn from; "
                         "nnU-Net cannot learn from such labels as they are, "
                         "choose unknown='background' (--unknown background) to read unknown as background, "
                         "which is false but runs")


# %%
_check_labels(nnunet_labels(s, "ignore"), work)
test_fail(
    lambda: _check_labels(nnunet_labels(s[2:4], "ignore"), work), contains="no background to learn from"
)


# %% [markdown]
# ## Files

# %%
#| export
def _case_names(slices: SliceSet, prefix: str) -> list[str]:
    "The names of the cases; `InputError` if two images would be one case."
    cases = [f"{prefix}_{Path(name).stem.zfill(5)}" for name in slices.names]
    first = {}
    for name, case in zip(slices.names, cases):
        other = first.setdefault(case, name)
        if other != name:
            raise InputError(f"{other} and {name} would be one case of nnU-Net; rename one")
    return cases

def _write_pngs(folder: Path, stack: np.ndarray, names: list[str]):
    "Write images [N,H,W] as PNG files of these names."
    folder.mkdir(parents=True)
    for name, image in zip(names, stack):
        imsave(folder/f"{name}.png", image, check_contrast=False)


# %%
print(_case_names(s, "train")[:2])
_write_pngs(work/"png", s.images[:1], ["train_00000_0000"])
test_eq(imread(work/"png"/"train_00000_0000.png"), s.images[0])


# %% [markdown]
# nnU-Net's random five folds would put slices of one patient on both sides. So our grouped folds come along as `splits_final.json`,
# to be copied into the folder of preprocessed data.

# %%
#| export
def _folds(slices: SliceSet, cases: list[str]) -> list[dict[str, list[str]]]:
    "Up to five folds that keep the slices of a patient together; none for a single patient."
    groups = len(np.unique(slices.groups))
    if groups < 2: return []
    fold = grouped_folds(slices, k=min(5, groups))
    splits = []
    for f in range(fold.max() + 1):
        train = [case for case, its_fold in zip(cases, fold) if its_fold != f]
        held_out = [case for case, its_fold in zip(cases, fold) if its_fold == f]
        splits.append({"train": train, "val": held_out})
    return splits


# %%
print(_folds(s[:2], _case_names(s[:2], "train")))


# %%
#| export
def _dataset_json(classes: ClassMap, ignores: bool, images: int) -> dict:
    "nnU-Net's description of the data set; `ignores`: C+1 is its ignore label."
    names = ["background", *classes.names]
    if ignores: names.append("ignore")
    return {
        # not called CT: the slices are windowed, and nnU-Net would normalise a "CT" by Hounsfield units
        "channel_names": {"0": "windowed_CT"},
        "labels": {name: i for i, name in enumerate(names)},
        "numTraining": images,
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
    }


# %%
print(_dataset_json(classes, True, 4))

# %% [markdown]
# The choice is written into a README inside. Images without labels are left out, as nnU-Net cannot use them.

# %%
#| export
_README = """Written by ctseg from a partly labelled challenge folder.

nnU-Net's labels know classes, background and "ignore"; they cannot say "unknown".
Here unknown was written as: {unknown}.
{meaning}
{cells:.1%} of the (image, class) cells of the training images are unknown.
{dropped} training images without any label were left out.

Copy splits_final.json to nnUNet_preprocessed/{name}/ after planning:
its folds keep all slices of a patient together.
"""


# %%
#| export
def _write_training(root: Path, slices: SliceSet, labels: np.ndarray, unknown: str, title: str, dropped: int):
    "Images, labels, folds and descriptions of the training images."
    cases = _case_names(slices, "train")
    _write_pngs(root/"imagesTr", slices.images, [f"{case}_0000" for case in cases])
    _write_pngs(root/"labelsTr", labels, cases)
    ignores = unknown == "ignore" or bool((labels > len(slices.classes)).any())
    write_json(_dataset_json(slices.classes, ignores, len(slices)), root/"dataset.json")
    folds = _folds(slices, cases)
    if folds: write_json(folds, root/"splits_final.json")
    meaning, cells = _MEANING[unknown], float((~slices.known).mean())
    text = _README.format(unknown=unknown, meaning=meaning, cells=cells, dropped=dropped, name=title)
    (root/"README.txt").write_text(text)


# %%
#| export
def _write_test(root: Path, slices: SliceSet):
    "Images of the test, and labels if it has any."
    cases = _case_names(slices, "test")
    _write_pngs(root/"imagesTs", slices.images, [f"{case}_0000" for case in cases])
    if slices.labelled.any():
        _write_pngs(root/"labelsTs", nnunet_labels(slices, "background"), cases)


# %%
_write_training(work/"small", s[:4], nnunet_labels(s[:4], "ignore"), "ignore", "Dataset500_small", dropped=2)
print((work/"small"/"README.txt").read_text())


# %%
#| export
def _pixel_shares(masks: np.ndarray, labels: np.ndarray, C: int) -> dict[str, float]:
    "Which shares of the pixels are labelled, background and ignored."
    shares = {"labelled": (masks > 0) & (masks != IGNORE), "background": labels == 0, "ignored": labels > C}
    return {what: round(float(where.mean()), 4) for what, where in shares.items()}


# %%
print(_pixel_shares(s.masks, nnunet_labels(s, "ignore"), 2))


# %%
#| export
def _refuse_unions(classes: ClassMap, folder: Path):
    "`InputError` for classes made of others."
    for union in classes.union_table:
        raise InputError(f"{folder}: {union!r} is a union of other classes, which nnU-Net's labels "
                         "cannot say; take the slices that hold it out, and unions.json")


# %% [markdown]
# A label map has one number a pixel, so a class that overlaps its members cannot be handed over:

# %%
pair = ClassMap.from_names(["left", "right", "both"], {"both": ["left", "right"]})
test_fail(lambda: _refuse_unions(pair, work), contains="'both' is a union")


# %%
#| export
def export_nnunet(
    folder, # a challenge folder
    out, # the folder nnUNet_raw, in which `Dataset501_ctseg` is made
    unknown: str = "ignore", # ignore or background: how to approximate what nobody looked for
    id: int = 501, # the number of the data set
    name: str = "ctseg",
) -> dict: # facts
    """Write a challenge folder as a raw nnU-Net v2 data set of 2D PNG files.

    Unknown cells can only be approximated. Raises `InputError` where that leaves nothing to learn from.
    """
    if unknown not in _MEANING:
        raise did_you_mean("value of unknown", unknown, list(_MEANING))
    folder = Path(folder)
    slices = read_challenge(folder)
    _refuse_unions(slices.classes, folder)
    if not slices.labelled.any():
        raise InputError(f"{folder}: no labelled training images; nnU-Net needs some")
    kept = slices[slices.labelled]
    _check_names(slices.classes.names, folder)
    labels = nnunet_labels(kept, unknown)
    C = len(slices.classes)
    dropped = len(slices) - len(kept)
    _check_labels(labels, folder)
    test = read_challenge(folder, "test") if (folder/"test-images").is_dir() else None
    title = output_name(f"Dataset{id:03}_{name}", "name")
    with atomic_path(new_folder(Path(out)/title)) as tmp:
        _write_training(tmp, kept, labels, unknown, title, dropped)
        if test is not None: _write_test(tmp, test)
    return {
        "dataset": title,
        "train": len(kept),
        "left_out": dropped,
        "test": 0 if test is None else len(test),
        "unknown": unknown,
        "pixels": _pixel_shares(kept.masks, labels, C),
    }


# %%
print(export_nnunet(work/"data", work/"nnUNet_raw"))
print(export_nnunet(work/"data", work/"nnUNet_raw", unknown="background", id=502))
raw = work/"nnUNet_raw"/"Dataset501_ctseg"
print(sorted(p.name for p in raw.iterdir()))
test_eq(imread(raw/"labelsTr"/"train_00002.png"), nnunet_labels(s, "ignore")[2])
for fold in read_json(raw/"splits_final.json"): assert not set(fold["train"]) & set(fold["val"])
shutil.rmtree(work)

# %% [markdown]
# ## Trainers
#
# Run as a program, this module tells nnU-Net [where its trainers are](16_nnunet_setup.ipynb).

# %%
#| export
#| eval: false
if __name__ == "__main__":
    sys.exit(set_up())
