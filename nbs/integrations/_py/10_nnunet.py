# %% [markdown]
# # nnU-Net
#
# > A challenge folder as raw data of nnU-Net: with who examined what, or with unknown cells approximated openly.

# %%
#| default_exp integrations.nnunet

# %%
#| export
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.json_files import write_json
from ctseg.data.challenge import open_challenge
from ctseg.data.lazy import seen_values
from ctseg.data.slices import SliceSet
from ctseg.data.splits import grouped_folds
from ctseg.integrations.nnunet_known import EXAMINED_FILE
from ctseg.integrations.nnunet_setup import set_up
from ctseg.integrations.nnunet_volumes import NnunetCase, NoVolumes, SliceForm, VolumeForm
from ctseg.io.outputs import new_folder, output_name

# %%
#| hide
import os
import shutil

import matplotlib.pyplot as plt
from fastcore.test import test_eq, test_fail
from skimage.io import imread

from ctseg.core.json_files import read_json
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
# There are three ways to hand this over. One is exact:
#
# - `"partial"`: the labels are as they are, and a file `annotated_labels.json` says who examined what. [Our trainers](15_nnunet_trainer.ipynb) read it. nnU-Net's own do
#   not, and would take unknown for background.
#
# For nnU-Net's own trainers unknown cells can only be approximated:
#
# - `"ignore"`: on an image with any unknown class, every unlabelled pixel is ignored. This is true, but wasteful: all certain absences are
#   lost. If *no* image is fully known, there is no background left to learn from, and the network would paint organs on air.
# - `"background"`: unknown is read as background. This is what most people do when they run nnU-Net on such data. It is false, and the
#   network learns to keep silent.

# %%
#| export
_MEANING = {
    "partial": f"Labels are as they are, and {EXAMINED_FILE} says who examined what. "
               "Train with nnUNetTrainerPartial or nnUNetTrainerPartialSemi only: "
               "others take what is unknown for background.",
    "ignore": "Unlabelled pixels of images with an unknown class are ignored; "
              "what is certainly absent there is lost.",
    "background": "Unlabelled pixels are background, also where nobody looked: "
                  "some of these labels are false.",
}

def nnunet_labels(
    slices: SliceSet,
    unknown: str, # partial, ignore or background
) -> np.ndarray: # uint8 [N,H,W]; C+1 is ignored
    "The label images: C+1 for pixels to be ignored; with `ignore` where one may be what nobody looked for."
    masks = np.asarray(slices.masks)
    unsure = masks == IGNORE
    if unknown == "ignore":
        unsure |= (masks == 0) & ~slices.known.all(1)[:, None, None]
    return np.where(unsure, np.uint8(len(slices.classes) + 1), masks)


# %%
#| fig-alt: "Labels of two slices: unknown ignored, in grey, and unknown read as background"
fig, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
colours = np.vstack([classes.colours, [[110, 110, 110]]])
for ax, (unknown, i) in zip(axes, [("ignore", 0), ("ignore", 2), ("background", 0), ("background", 2)]):
    ax.imshow(colours[nnunet_labels(s, unknown)[i]])
    ax.set_title(f"{unknown}: {s.known[i].sum()} of 2 known", fontsize=9)
    ax.axis("off")


# %% [markdown]
# Black is background and grey is ignored. In the fourth picture the kidney is labelled as background, which is false.
#
# With `ignore` and no fully known image there is nothing to learn background from. That is refused. (`partial` does not need it.)

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
def _check_background(slices: SliceSet, unknown: str, folder: Path):
    "`InputError` for slices without a pixel of background, from which nnU-Net cannot learn."
    with_zeros = seen_values(slices.masks)[:, 0]
    if unknown == "ignore": with_zeros &= slices.known.all(1)
    if not with_zeros.any():
        raise InputError(f"{folder}: no image is fully known, so with unknown='ignore' there is no "
                         "background to learn from; choose unknown='partial' (--unknown partial) "
                         "for nnUNetTrainerPartial, which needs none, "
                         "or unknown='background' (--unknown background), which is false but runs")


# %%
_check_background(s, "ignore", work)
test_fail(lambda: _check_background(s[2:4], "ignore", work), contains="no background to learn from")


# %% [markdown]
# ## Cases
#
# A folder that was cut from volumes becomes [volumes again](08_nnunet_volumes.ipynb), any other a case a slice. A class may have been examined on some slices of a volume only. It counts as
# examined then, and on the other slices what has no label is ignored: true, and nothing is taught that nobody saw.

# %%
#| export
def known_cases(slices: SliceSet, cases: list[NnunetCase]) -> np.ndarray: # bool [n,C]
    "The classes that were examined on any slice of each case."
    return np.stack([slices.known[case.rows].any(0) for case in cases])


# %%
cases = [NnunetCase("a", [0, 2]), NnunetCase("b", [4, 5])]
print(known_cases(s, cases).tolist())


# %%
#| export
def case_labels(slices: SliceSet, case: NnunetCase, unknown: str) -> np.ndarray: # uint8 [n,H,W]
    "The label images of a case; C+1 also where a class was not examined that was on another of its slices."
    part = slices[case.rows]
    labels = nnunet_labels(part, unknown)
    if unknown == "partial":
        unsure = (part.known.any(0) & ~part.known).any(1)[:, None, None] & (labels == 0)
        labels[unsure] = len(slices.classes) + 1
    return labels


# %%
test_eq(case_labels(s, cases[0], "partial").max((1, 2)), [2, 3])
test_eq(case_labels(s, cases[1], "partial").max(), 0)

# %%
#| export
Form = SliceForm | VolumeForm

def choose_form(folder: Path, splits: dict[str, SliceSet], as_slices: bool) -> tuple[Form, str]:
    "Volumes where the slices were cut from some, else slices; and what to tell of it."
    if as_slices or not (folder/"index.json").exists():
        return SliceForm(), "slices"
    volumes = VolumeForm(folder)
    try:
        for split, slices in splits.items(): volumes.cases(slices.names, split)
    except NoVolumes as reason:
        return SliceForm(), f"slices, because {reason}"
    return volumes, "volumes"


# %%
print(choose_form(Path("data"), {"train": s}, as_slices=False)[1])


# %% [markdown]
# ## Files
#
# nnU-Net's random five folds would put slices of one patient on both sides. So our grouped folds come along as `splits_final.json`. Our trainers find it there; for nnU-Net's own it is to be copied into
# the folder of preprocessed data. Held out are cases with labels; those without never lie on the other side of their patient.

# %%
#| export
def _folds(slices: SliceSet, cases: list[NnunetCase]) -> list[dict[str, list[str]]]:
    "Up to five folds that keep the slices of a patient together; none for a single patient with labels."
    labelled = slices[slices.labelled]
    patients = len(np.unique(labelled.groups))
    if patients < 2: return []
    fold_of = dict(zip(labelled.groups, grouped_folds(labelled, k=min(5, patients))))
    splits = []
    for fold in range(max(fold_of.values()) + 1):
        train, held_out = [], []
        for case in cases:
            out = fold_of.get(slices.groups[case.rows[0]]) == fold
            if not out: train.append(case.name)
            elif slices.labelled[case.rows].any(): held_out.append(case.name)
        splits.append({"train": train, "val": held_out})
    return splits


# %%
print(_folds(s, SliceForm().cases(s.names, "train"))[0])


# %%
#| export
def _dataset_json(classes: ClassMap, ignores: bool, cases: int, form: Form) -> dict:
    "nnU-Net's description of the data set; `ignores`: C+1 is its ignore label."
    names = ["background", *classes.names]
    if ignores: names.append("ignore")
    labels = {name: i for i, name in enumerate(names)}
    return {**form.description, "labels": labels, "numTraining": cases}


# %%
print(_dataset_json(classes, True, 4, SliceForm()))

# %% [markdown]
# The choice is written into a README inside. For nnU-Net's own trainers, cases without labels are left out, as it cannot use them.

# %%
#| export
_README = """Written by ctseg from a partly labelled challenge folder.

nnU-Net's labels know classes, background and "ignore"; they cannot say "unknown".
Here unknown was written as: {unknown}.
{meaning}
{cells:.1%} of the (image, class) cells of the training images are unknown.
{dropped} training cases without any label were left out.

Copy splits_final.json to nnUNet_preprocessed/{name}/ after planning, if there is one
(nnUNetTrainerPartial does it): its folds keep all slices of a patient together.
"""


# %%
#| export
def _count_pixels(labels: np.ndarray, C: int) -> dict[str, int]:
    "How many pixels are labelled, background and ignored."
    background, ignored = int((labels == 0).sum()), int((labels > C).sum())
    return {"labelled": labels.size - background - ignored, "background": background, "ignored": ignored}


# %%
print(_count_pixels(np.array([0, 1, 2, 3, 3]), 2))


# %%
#| export
class _Writer:
    "Writes the cases of a split as nnU-Net has them."
    def __init__(self, root: Path, form: Form, ignore: int):
        self.root = root
        self.form = form
        self.ignore = ignore

    def write(self, part: str, slices: SliceSet, cases: list[NnunetCase], unknown: str | None) -> Counter:
        """`imagesTr` and `labelsTr`, or those of the test (part Ts); without labels where `unknown` is None.

        How many pixels are labelled, background and ignored; one case is in memory at a time."""
        images, truths = self.root/f"images{part}", self.root/f"labels{part}"
        images.mkdir(parents=True)
        if unknown: truths.mkdir()
        pixels: Counter = Counter()
        for case in cases:
            self.form.write_image(str(images/f"{case.name}_0000"), slices.images[case.rows], case)
            if unknown is None: continue
            labels = case_labels(slices, case, unknown)
            self.form.write_labels(str(truths/case.name), labels, case, self.ignore)
            pixels.update(_count_pixels(labels, len(slices.classes)))
        return pixels


# %%
print(_Writer(work/"png", SliceForm(), 0).write("Tr", s, SliceForm().cases(s.names, "train"), "background"))
test_eq(imread(work/"png"/"imagesTr"/"train_00000_0000.png"), s.images[0])


# %%
#| export
def _any_cropped(slices: SliceSet, cases: list[NnunetCase]) -> bool:
    "Is any slice of a volume larger than its image?"
    side = slices.images.shape[1]
    return any(max(case.stack.entry["scaled"]) > side for case in cases if case.stack)

def _write_test(writer: _Writer, slices: SliceSet) -> list[NnunetCase]:
    "Images of the test, and labels if it has any; its cases."
    cases = writer.form.cases(slices.names, "test")
    writer.write("Ts", slices, cases, "background" if slices.labelled.any() else None)
    return cases

def _write_patients(root: Path, cases: list[NnunetCase]) -> None:
    "Whose scan each volume is, for who reads the data set back."
    patients = {case.name: case.stack.entry.get("patient") for case in cases if case.stack}
    if len(set(patients.values())) < len(patients) and None not in patients.values():
        write_json({name: f"p{patient}" for name, patient in patients.items()}, root/"patients.json")


# %%
print(len(_write_test(_Writer(work/"test", SliceForm(), 0), s[:2])), "cases")


# %%
#| export
def _write_training(
    writer: _Writer, slices: SliceSet, cases: list[NnunetCase], unknown: str
) -> dict[str, float]:
    "Images, labels, folds, and who examined what; the shares of the pixels."
    root, names = writer.root, np.array(slices.classes.names)
    pixels = writer.write("Tr", slices, cases, unknown)
    some_ignored = bool(pixels["ignored"]) or (writer.ignore and _any_cropped(slices, cases))
    ignores = unknown == "ignore" or some_ignored
    write_json(_dataset_json(slices.classes, ignores, len(cases), writer.form), root/"dataset.json")
    folds = _folds(slices, cases)
    if folds: write_json(folds, root/"splits_final.json")
    if unknown == "partial":
        known = known_cases(slices, cases)
        examined = {case.name: names[cells].tolist() for case, cells in zip(cases, known)}
        write_json(examined, root/EXAMINED_FILE)
    return {what: round(count/pixels.total(), 4) for what, count in pixels.items()}

def _readme(known: np.ndarray, unknown: str, title: str, dropped: int) -> str: # known: bool [N,C]
    "What the data set is, for whoever finds it."
    cells = float((~known).mean())
    meaning = _MEANING[unknown]
    return _README.format(unknown=unknown, meaning=meaning, cells=cells, dropped=dropped, name=title)


# %%
print(_readme(s.known[:4], "ignore", "Dataset500_small", dropped=2))


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
def _kept(cases: list[NnunetCase], slices: SliceSet, unknown: str) -> list[NnunetCase]:
    "The cases that are of use: those with labels, and for our trainers all."
    if unknown == "partial": return cases
    return [case for case in cases if slices.labelled[case.rows].any()]

def _open(folder: Path, spool: Path) -> dict[str, SliceSet]:
    "The splits of a folder, pixels in files. `InputError` for one that nnU-Net cannot learn from."
    slices = open_challenge(folder, spool=spool)
    _refuse_unions(slices.classes, folder)
    _check_names(slices.classes.names, folder)
    if not slices.labelled.any():
        raise InputError(f"{folder}: no labelled training images; nnU-Net needs some")
    splits = {"train": slices}
    if os.path.lexists(folder/"test-images"):
        splits["test"] = open_challenge(folder, "test", spool=spool)
    return splits


# %%
print({split: len(slices) for split, slices in _open(work/"data", work).items()})
print(len(_kept(SliceForm().cases(s.names, "train"), s, "ignore")), "of 6 cases have labels")


# %%
#| export
def _write_dataset(root: Path, form: Form, splits: dict[str, SliceSet], unknown: str, folder: Path) -> dict:
    "The data set; facts."
    slices = splits["train"]
    cases = form.cases(slices.names, "train")
    kept = _kept(cases, slices, unknown)
    rows = [row for case in kept for row in case.rows]
    if unknown != "partial": _check_background(slices[rows], unknown, folder)
    writer = _Writer(root, form, 0 if unknown == "background" else len(slices.classes) + 1)
    shares = _write_training(writer, slices, kept, unknown)
    tests = _write_test(writer, splits["test"]) if "test" in splits else []
    _write_patients(root, kept + tests)
    dropped = len(cases) - len(kept)
    (root/"README.txt").write_text(_readme(slices.known[rows], unknown, root.name, dropped), encoding="utf-8")
    facts = {"train": len(kept), "left_out": dropped, "test": len(tests)}
    return facts | {"unknown": unknown, "pixels": shares}


# %%
print(_write_dataset(work/"whole", SliceForm(), {"train": s}, "background", work))


# %%
#| export
def export_nnunet(
    folder, # a challenge folder
    out, # the folder nnUNet_raw, in which `Dataset501_ctseg` is made
    unknown: str = "ignore", # partial, ignore or background: what becomes of what nobody looked for
    id: int = 501, # the number of the data set
    name: str = "ctseg",
    as_slices: bool = False, # PNG files, also of a folder that was cut from volumes
) -> dict: # facts
    """Write a challenge folder as a raw data set of nnU-Net v2: volumes where it was cut from some, else PNG.

    Raises `InputError` where nothing is left to learn from.
    """
    if unknown not in _MEANING:
        raise did_you_mean("value of unknown", unknown, list(_MEANING))
    folder, title = Path(folder), output_name(f"Dataset{id:03}_{name}", "name")
    with tempfile.TemporaryDirectory() as spool:
        splits = _open(folder, Path(spool))
        form, form_name = choose_form(folder, splits, as_slices)
        with atomic_path(new_folder(Path(out)/title), new=True) as root:
            facts = _write_dataset(root, form, splits, unknown, folder)
    return {"dataset": title, "form": form_name} | facts


# %%
print(export_nnunet(work/"data", work/"nnUNet_raw"))
whole = export_nnunet(work/"data", work/"nnUNet_raw", unknown="partial", id=502)
print(whole["train"], "cases for our trainers")
raw = work/"nnUNet_raw"/"Dataset501_ctseg"
print(sorted(p.name for p in raw.iterdir()))
test_eq(imread(raw/"labelsTr"/"train_00002.png"), nnunet_labels(s, "ignore")[2])
for fold in read_json(raw/"splits_final.json"):
    assert not set(fold["train"]) & set(fold["val"])
print(read_json(work/"nnUNet_raw"/"Dataset502_ctseg"/EXAMINED_FILE))
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
