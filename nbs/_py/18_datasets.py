# %% [markdown]
# # Public data sets
#
# > OpenKBP and TotalSegmentator in, nnU-Net out: other people's formats, read without turning unknown into absent.
#
# - skip_showdoc: true

# %%
#| default_exp datasets

# %% [markdown]
# Two public CT collections fit the questions of this project, and one public program is the baseline everybody asks for. Their
# formats are simple; the traps are in what they do *not* say. A structure without a file: is it not there, or did nobody look? Each
# converter below answers that question openly.

# %%
#| export
import functools, math, re
from pathlib import Path

import numpy as np
import pandas as pd
from skimage.io import imsave

from ctseg.anatomy import RAIDIUM54, ClassMap
from ctseg.data import grouped_folds, natural_key, read_challenge
from ctseg.files import InputError, atomic_path, did_you_mean, read_json, write_json
from ctseg.volumes import (Case, Slicing, Volume, _corners, _entry, _load_structures, _new_folder, _niftis, _paste, _write_folder, combine,
                           cut, flags, write_volumes)

# %%
#| hide
import os, shutil, tempfile

import matplotlib.pyplot as plt
import nibabel as nib
from fastcore.test import test_close, test_eq, test_fail
from skimage.io import imread

# %% [markdown]
# ## OpenKBP: head and neck, 340 patients
#
# [OpenKBP](https://github.com/ababier/open-kbp) (Babier et al., [Medical Physics 48, 2021](https://doi.org/10.1002/mp.14845)) was
# made to predict radiation doses. It comes with planning CTs, resampled to 128 voxels a side, and with the clinic's own contours of
# seven organs at risk. Its authors left out a mask "if the organ was not contoured in the original clinical plan": real partial
# labels, in the way they arise in life. (They have a weakness of life, too: a clinic draws the esophagus or the cord only as far as
# the plan needs it, and beyond its last contour we count it as absent.)
#
#     provided-data/train-pats/pt_1/ct.csv                 ,data           only voxels above 0: their number in the
#                                                          745178,935.0    flattened grid, and their value
#     provided-data/train-pats/pt_1/Brainstem.csv          ,data           only the numbers of the voxels
#                                                          1040394,
#     provided-data/train-pats/pt_1/voxel_dimensions.csv   3.906           three lines: 3.906, 3.906, 2.5
#
# Three facts about the grid are not written anywhere. The values are Hounsfield units plus 1024, to be clipped to 0…4095 (the data
# description says that 12-bit and 16-bit files are mixed). The first index runs to the back, the second to the patient's left, the
# third *downwards*: in all 326 patients with both parotids the right one has the smaller second index, in all 212 with a mandible
# and a cord the mandible has the smaller first, and in all 157 with brainstem and larynx the brainstem has the smaller third. And
# structures may overlap, though by only 1,668 of 1.4 million voxels; there the later one in the list of classes wins.

# %%
#| export
OPENKBP = ClassMap.from_names("brainstem spinal_cord parotid_right parotid_left esophagus larynx mandible".split())
_KBP_FILES = "Brainstem SpinalCord RightParotid LeftParotid Esophagus Larynx Mandible".split()  # in the order of the classes
_KBP_SIDE = 128

def _sparse(path: Path, values: bool) -> tuple[np.ndarray, np.ndarray|None]:
    "The voxel numbers in a sparse CSV, and their values."
    try: table = pd.read_csv(path, index_col=0)
    except (OSError, ValueError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: not a readable CSV ({type(e).__name__}); clone the repository again") from None
    at = table.index.to_numpy() if len(table) else np.zeros(0, np.int64)  # of no lines pandas makes no numbers
    if list(table.columns) != ["data"] or (len(at) and at.dtype.kind != "i"):
        raise InputError(f"{path}: expected the columns '' (voxel numbers) and 'data', as OpenKBP has them")
    if len(at) and not 0 <= at.min() <= at.max() < _KBP_SIDE**3:
        raise InputError(f"{path}: voxel number {at.max() if at.max() >= _KBP_SIDE**3 else at.min()} is outside "
                                                                                 f"the grid of {_KBP_SIDE} voxels a side")
    if not values: return at, None
    if not len(at) or table.data.dtype.kind not in "if" or table.data.isna().any():
        raise InputError(f"{path}: the values are missing or not numbers; clone the repository again")
    return at, table.data.to_numpy()


# %%
#| export
def _sizes(path: Path) -> np.ndarray:
    "The numbers of a small text file; none if it holds anything else."
    try: return np.loadtxt(path).ravel()
    except ValueError: return np.zeros(0)

def read_openkbp(
    folder, # of one patient, `…/pt_1`
) -> Volume: # with labels and what is known
    "Read an OpenKBP patient. Structures without a file are unknown."
    folder, shape = Path(folder), (_KBP_SIDE,)*3
    for name in ("ct.csv", "voxel_dimensions.csv"):
        if not (folder/name).exists(): raise InputError(f"{folder/name}: no such file; clone the whole repository ababier/open-kbp")
    grey, mm = np.zeros(_KBP_SIDE**3, np.float32), _sizes(folder/"voxel_dimensions.csv")
    if mm.shape != (3,) or not (mm > 0).all(): raise InputError(f"{folder/'voxel_dimensions.csv'}: expected three sizes in mm")
    at, value = _sparse(folder/"ct.csv", True)
    grey[at] = value
    structures = {}
    for id, name in enumerate(_KBP_FILES, 1):
        if (folder/f"{name}.csv").exists():
            structures[id] = np.zeros(_KBP_SIDE**3, bool)
            structures[id][_sparse(folder/f"{name}.csv", False)[0]] = True
    labels, overlap, drawn = combine(shape, structures.items(), by_size=False)
    affine = np.array([[0, -mm[1], 0, 0], [-mm[0], 0, 0, 0], [0, 0, -mm[2], 0], [0, 0, 0, 1.]])  # back, left, down
    return Volume(grey.clip(0, 4095).reshape(shape) - 1024, affine, labels, flags(structures, 7), kind="openkbp", overlap=overlap, drawn=drawn)


# %% [markdown]
# To try it without the download, a patient in exactly this layout: a neck of ellipsoids, written as sparse CSV.

# %%
def ellipsoid(c, r, g=np.indices((128,)*3)): return sum(((g[i] - c[i])/r[i])**2 for i in range(3)) < 1

def write_patient(folder, structures, shift=0):
    "A toy patient in OpenKBP's layout; indices run back, left, down."
    Path(folder).mkdir(parents=True)
    organ = dict(Brainstem=((66, 64, 40 + shift), (5, 6, 12)), SpinalCord=((74, 64, 85 + shift), (3, 3, 40)),
                 RightParotid=((62, 47, 55 + shift), (7, 6, 9)), LeftParotid=((62, 81, 55 + shift), (7, 6, 9)),
                 Esophagus=((66, 64, 105), (3, 5, 14)), Larynx=((56, 64, 85 + shift), (7, 7, 8)), Mandible=((50, 64, 66 + shift), (8, 15, 6)))
    grey = np.zeros((128,)*3)
    grey[ellipsoid((64, 64, 64), (30, 26, 90))] = 1040
    grey[ellipsoid((72, 64, 64), (8, 8, 90))] = 1500
    for name, (c, r) in organ.items(): grey[ellipsoid(c, r)] = 1900 if name == "Mandible" else 1070
    grey[organ["Larynx"][0]] = 21000  # one of the odd 16-bit values
    at = np.flatnonzero(grey)
    pd.DataFrame({"data": grey.ravel()[at]}, index=at).to_csv(Path(folder)/"ct.csv")
    for name in structures: pd.DataFrame({"data": ""}, index=np.flatnonzero(ellipsoid(*organ[name]))).to_csv(Path(folder)/f"{name}.csv")
    np.savetxt(Path(folder)/"voxel_dimensions.csv", [3.906, 3.906, 2.5])

work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
clone = work/"open-kbp"
write_patient(clone/"provided-data/train-pats/pt_1", ["Brainstem", "SpinalCord", "LeftParotid"])
write_patient(clone/"provided-data/valid-pats/pt_201", ["Mandible", "Larynx"], 3)
write_patient(clone/"provided-data/test-pats/pt_241", _KBP_FILES, -3)
for name in ("ct", "Brainstem"): print((clone/f"provided-data/train-pats/pt_1/{name}.csv").read_text().splitlines()[:3])
v = read_openkbp(clone/"provided-data/train-pats/pt_1")
print("HU", v.hu.min(), "to", v.hu.max(), {n: bool(k) for n, k in zip(OPENKBP.names, v.known)})


# %% [markdown]
# The import groups slices by patient, keeps the patients' public numbers, and takes a few slices of each, because neighbours 2.5 mm
# apart are nearly the same picture. The official test patients go into the test if all seven organs were contoured (the challenge's
# form has no partly annotated test); the others of them are as good as any for training.
#
# With `like`, the import repeats a given choice of slices exactly: a JSON with, for each image, the patient, the slice, the window
# and the classes counted as examined. That is how our real-CT benchmark can be had again from the public data:
# `like="nbs/benchmarks/realct_slices.json"` gives its 2000 training and 300 test slices of 257 patients bit for bit. (Do not
# pretrain on all of OpenKBP before you use it: its test patients are among them.)

# %%
#| export
def _kbp_patients(src) -> dict[int, Path]:
    "Patient number → folder."
    src = Path(src)
    root = src/"provided-data" if (src/"provided-data").is_dir() else src
    folders = sorted(root.glob("*-pats/pt_*"), key=lambda d: natural_key(d.name))
    found = {int(d.name[3:]): d for d in folders if d.is_dir() and d.name[3:].isdigit()}
    if not found:
        raise InputError(f"{src}: no patients in it; "
                         f"expected a clone of ababier/open-kbp with provided-data/train-pats/pt_1/ct.csv and so on")
    return found

def import_openkbp(
    src, # a clone of the repository ababier/open-kbp
    out, # the challenge folder, new
    slicing: Slicing = Slicing(window="random", per_volume=8, min_body=90.),
    like = None, # a JSON with a choice of slices to repeat; `None`: choose by `slicing`
) -> dict: # facts
    "Cut OpenKBP into a challenge folder with true partial labels, grouped by patient."
    patients, cases = _kbp_patients(src), []
    if like is not None: return _import_like(patients, out, like)
    for n, d in patients.items():
        known = np.array([(d/f"{name}.csv").exists() for name in _KBP_FILES])
        split = "test" if d.parent.name == "test-pats" and known.all() else "train"
        cases.append(Case(d.name, lambda d=d: read_openkbp(d), n, known, split, d.name, str(d)))
    return write_volumes(cases, out, OPENKBP, slicing)


# %%
facts = import_openkbp(clone, work/"kbp", Slicing(window="random", per_volume=8, min_body=90., size=64))
print(facts)
train, test = read_challenge(work/"kbp"), read_challenge(work/"kbp", "test")
print(train, {f"pt_{g}": int((train.groups == g).sum()) for g in np.unique(train.groups)})
first = lambda s, g, name: (s, int(np.argmax((s.groups == g) & s.present[:, OPENKBP.id(name) - 1])))
chosen = [first(train, 1, "parotid_left"), first(train, 1, "brainstem"), first(train, 201, "larynx"), first(test, 241, "parotid_right"),
          first(test, 241, "mandible")]
fig, axes = plt.subplots(1, 5, figsize=(11, 2.5), layout="constrained")
for ax, (s, i) in zip(axes, chosen):
    ax.imshow(s.images[i], cmap="gray", vmin=0, vmax=255)
    ax.imshow(np.dstack([OPENKBP.colourise(s.masks[i]), (s.masks[i] > 0)*170]).astype(np.uint8))
    ax.set_title(f"pt_{s.groups[i]}: {s.known[i].sum()} of 7 known", fontsize=9); ax.axis("off")

# %% [markdown]
# The patient's right is on the left of the picture, as it should be: the left parotid of the first patient is on the right. Nothing
# is said of his right one.

# %%
left = np.argwhere(train.masks[train.groups == 1] == OPENKBP.id("parotid_left"))[:, 2].mean()
assert left > 36
test_eq(train.known[train.groups == 1][0], [True, True, False, True, False, False, False])


# %% [markdown]
# Now the repetition. The table is compact, `{"size": 64, "train": [[patient, slice, level, width, [classes]], …], "test": […]}`, an
# entry for each image in the order of the images. Labels of classes that do not count as examined are erased.

# %%
#| export
def _choice(path) -> tuple[int, dict[str, list]]:
    "A table of chosen slices: the size of the images and the rows of each split."
    table = read_json(path)
    try:
        row = lambda p, z, level, width, k: (int(p), int(z), (float(level), float(width)), [int(c) for c in k])
        rows, side = {s: [row(*r) for r in table[s]] for s in ("train", "test") if s in table}, int(table["size"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f'{path}: expected {{"size": 64, "train": [[patient, slice, level, width, [classes]], …]}}') from None
    for s, chosen in rows.items():
        for i, (_, z, (level, width), k) in enumerate(chosen):
            if not 0 <= z < _KBP_SIDE: raise InputError(f"{path}, {s}, entry {i}: slice {z}, expected 0 to {_KBP_SIDE - 1}")
            if not (math.isfinite(level) and 0 < width < math.inf): raise InputError(f"{path}, {s}, entry {i}: window ({level:g}, {width:g}), expected (level, width) with a width above 0")
            if bad := [c for c in k if not 1 <= c <= len(OPENKBP)]: raise InputError(f"{path}, {s}, entry {i}: class {bad[0]}, expected 1 to {len(OPENKBP)}")
    return side, rows

def _import_like(patients: dict[int, Path], out, like) -> dict:
    "Repeat a choice of slices."
    out, (side, rows) = _new_folder(out), _choice(like)
    wanted = sorted({p for r in rows.values() for p, *_ in r})
    if lost := [p for p in wanted if p not in patients]:
        raise InputError(f"{like}: patient pt_{lost[0]} is not in the clone ({len(lost)} are missing); clone all of it")
    how, C = Slicing(size=side), len(OPENKBP)
    zeros = lambda *shape, dtype=np.uint8: np.zeros(shape, dtype)
    arrays = {s: (zeros(n := len(r), side, side), zeros(n, side, side), zeros(n, C, dtype=bool), [f"{i}.png" for i in range(n)],
                  np.array([p for p, *_ in r], np.int64)) for s, r in rows.items()}
    lines, volumes = {s: dict.fromkeys(a[3]) for s, a in arrays.items()}, {}
    for p in wanted:
        v = read_openkbp(patients[p])
        volumes[f"pt_{p}"] = _entry(v, how, p) | dict(scaled=[_KBP_SIDE]*2)
        for s, (images, masks, known, names, _) in arrays.items():
            at = [i for i, row in enumerate(rows[s]) if row[0] == p]
            part = cut(v, how, slices=[rows[s][i][1] for i in at], windows=[rows[s][i][2] for i in at])
            corners = _corners(part, side)
            images[at], masks[at] = _paste(part.images, corners, (side,)*2, 0), _paste(part.masks, corners, (side,)*2, 0)
            for j, i in enumerate(at):
                known[i] = flags(rows[s][i][3], C) & v.known
                masks[i] *= np.r_[False, known[i]].astype(np.uint8)[masks[i]]
                lines[s][names[i]] = dict(volume=f"pt_{p}", slice=rows[s][i][1], window=list(rows[s][i][2]), corner=corners[j].tolist())
    counts = _write_folder(out, OPENKBP, volumes, {s: (arrays[s], lines[s]) for s in rows})
    return dict(volumes=len(wanted), patients=len(wanted), classes=C) | counts | dict(size=side)


# %%
choice = {"size": 64, "train": [[201, 60, 40, 400, [7]], [1, 80, 0, 600, [1, 4]], [1, 60, 40, 400, []]],
          "test": [[241, 65, 40, 400, [1, 2, 3, 4, 5, 6, 7]]]}
(work/"choice.json").write_text(str(choice).replace("'", '"'))
print(import_openkbp(clone, work/"again", like=work/"choice.json"))
again = read_challenge(work/"again")
print(again, [np.flatnonzero(k).tolist() for k in again.known], again.groups)


# %% [markdown]
# ## TotalSegmentator: 1,228 subjects, 104 structures
#
# The [TotalSegmentator](https://arxiv.org/abs/2208.05868) data set ([Zenodo](https://doi.org/10.5281/zenodo.6802613)) is where the
# challenge's 54 classes come from: version 1 has 104 structures, and four merges make 54 of them. Each subject is a folder with
# `ct.nii.gz` and a file for each structure.
#
# Version 2 changed the list. The five parts of the heart became one `heart`; `face` and `pulmonary_artery` are gone from it; the
# first sacral vertebra is a structure of its own now, where version 1 counted it to the sacrum. So a converter that looks for a
# file and, finding none, says *absent*, teaches that nobody has a face. Here a class is known only if **all** its parts have a
# file.

# %%
#| export
def total_parts(
    version: int, # 1 or 2 of the data set
) -> dict[str, tuple[str, ...]]: # class of the challenge → the structures it is the union of
    "Which structures of TotalSegmentator make up each of the 54 classes. In version 2 face and pulmonary_artery cannot be had."
    parts = {n: (n,) for n in RAIDIUM54.names}
    parts |= {"lung_left": ("lung_upper_lobe_left", "lung_lower_lobe_left"),
              "lung_right": ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right")}
    for region, letter, n in ("cervical", "C", 7), ("thoracic", "T", 12), ("lumbar", "L", 5):
        parts[f"vertebrae_{region}"] = tuple(f"vertebrae_{letter}{i}" for i in range(1, n + 1))
    parts |= {f"rib_{side}": tuple(f"rib_{side}_{i}" for i in range(1, 13)) for side in ("left", "right")}
    if version == 1:
        parts["heart"] = ("heart_myocardium", "heart_atrium_left", "heart_ventricle_left", "heart_atrium_right", "heart_ventricle_right")
    else:
        parts["sacrum"] = ("sacrum", "vertebrae_S1")
        for gone in ("face", "pulmonary_artery"): del parts[gone]
    return parts

def total_version(structures) -> int: # 1 or 2
    "The version of a subject by the names of its structures. Undecided counts as 2, whose rules are the stricter ones."
    return 1 if {"face", "pulmonary_artery", "heart_myocardium", "heart_atrium_left", "heart_ventricle_left"} & set(structures) else 2


# %%
test_eq(sum(map(len, total_parts(1).values())), 104)
test_eq(len(set().union(*total_parts(1).values())), 104)
test_eq(sorted(set(RAIDIUM54.names) - set(total_parts(2))), ["face", "pulmonary_artery"])
print({n: p for n, p in total_parts(2).items() if len(p) > 1 and "rib" not in n and "thor" not in n})


# %% [markdown]
# Who goes into the test is written in `meta.csv`. A test subject of whom not every class is known (all of version 2, unless
# `classes` leaves out face and pulmonary artery) cannot be one in the challenge's form; it is left out, not trained on.
#
# Participants of the challenge should note that its rules are said to forbid outside radiological data.

# %%
#| export
def _meta_split(src: Path) -> dict[str, str]:
    "Subject → train, val or test, from `meta.csv`, if it is there."
    path = src/"meta.csv"
    if not path.exists(): return {}
    try:
        table = pd.read_csv(path, sep=";", dtype=str)
        return dict(zip(table["image_id"], table["split"]))
    except (KeyError, ValueError):
        raise InputError(f"{path}: expected a table with the columns image_id;…;split;…, as TotalSegmentator has it") from None

def import_totalsegmentator(
    src, # the data set's folder, version 1 or 2: s0000/ct.nii.gz, s0000/segmentations/*.nii.gz, meta.csv
    out, # the challenge folder, new
    slicing: Slicing = Slicing(window="random", per_volume=2, min_body=90., size=256, spacing="fit"),
    classes: ClassMap|str|None = None, # some of the 54 classes, or the path of a `class_names.json`; `None`: all
) -> dict: # facts
    "Cut the TotalSegmentator data set into a challenge folder with the 54 classes. A class of which a part has no file is unknown."
    src = Path(src)
    if not src.is_dir(): raise InputError(f"{src}: no such folder; expected the TotalSegmentator data set")
    classes = RAIDIUM54 if classes is None else classes if isinstance(classes, ClassMap) else ClassMap.from_json(classes)
    for n in classes.names:
        if n not in RAIDIUM54.names: raise did_you_mean("class", n, RAIDIUM54.names)
    splits, cases, left_out = _meta_split(src), [], 0
    subjects = [d for d in src.iterdir() if (d/"ct.nii.gz").exists() or (d/"segmentations").is_dir()]
    for d in sorted(subjects, key=lambda d: natural_key(d.name)):
        files = _niftis(d/"segmentations")
        parts = {classes.id(n): p for n, p in total_parts(total_version(files)).items() if n in classes.names and set(p) <= set(files)}
        known = flags(parts, len(classes))
        split = "test" if splits.get(d.name) == "test" else "train"
        if split == "test" and not known.all(): left_out += 1; continue
        load = functools.partial(_load_structures, d/"ct.nii.gz", files, parts, len(classes), "totalsegmentator")
        cases.append(Case(d.name, load, None, known, split, d.name if re.fullmatch(r"s\d{4}", d.name) else "", str(d)))
    if not cases:
        raise InputError(f"{src}: no subjects in it; expected s0000/ct.nii.gz and s0000/segmentations/, unpacked from the Zenodo file")
    return write_volumes(cases, out, classes, slicing) | dict(test_subjects_left_out=left_out)


# %% [markdown]
# Three made-up subjects: one of version 1, one of version 2, and one of version 2 whose tool was asked for a few structures only.

# %%
total = work/"Totalsegmentator_dataset"
grid, A = (24, 20, 6), np.diag([10., 10, 30, 1])
v1 = sorted(set().union(*total_parts(1).values()))
v2 = sorted(set().union(*total_parts(2).values()) | {"skull", "sternum", "thyroid_gland"})
for subject, names in ("s0000", v1), ("s0001", v2), ("s0002", ["liver", "sacrum", "lung_upper_lobe_left", "rib_left_1"]):
    (total/subject/"segmentations").mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.full(grid, 40, np.int16), A), total/subject/"ct.nii.gz")
    for i, n in enumerate(names):
        mask = np.zeros(grid, np.uint8)
        mask[i % 24, i//24*2:i//24*2 + 2] = n != "spleen"  # this subject's spleen was removed
        nib.save(nib.Nifti1Image(mask, A), total/subject/"segmentations"/f"{n}.nii.gz")

print(import_totalsegmentator(total, work/"ts", Slicing(per_volume=2)))
s = read_challenge(work/"ts")
for g in range(3):
    one = s[s.groups == g][0]
    state = np.where(one.known[0], np.where(one.present[0], "present", "absent"), "unknown")
    some = {n: str(state[RAIDIUM54.id(n) - 1]) for n in ("face", "heart", "sacrum", "spleen", "lung_left")}
    print(f"s{g:04}: {one.known.sum()} of 54 known, {one.present.sum()} present;", some)

# %% [markdown]
# ## nnU-Net: the baseline everybody asks for
#
# [nnU-Net](https://github.com/MIC-DKFZ/nnUNet) (version 2) wants a folder `Dataset501_ctseg` with `imagesTr`, `labelsTr` and a
# `dataset.json`; 2D PNG files are read by its `NaturalImage2DIO`. That is quickly written. But its softmax knows classes,
# background, and an **ignore** label; it has *no way to say* "this pixel may be a kidney, because nobody looked for kidneys here,
# but it is certainly not liver". Unknown cells can only be approximated, in one of two ways:
#
# - `"ignore"`: on an image with any unknown class, every unlabelled pixel is ignored. True, but wasteful: all certain absences are
#   lost, and if *no* image is fully known, there is no background left to learn from. Then it is refused, because such a network
#   paints organs on air.
# - `"background"`: unknown is read as background. This is what most people do when they run nnU-Net on such data. It is false, and the
#   network learns to keep silent.
#
# The choice is written into a README inside. Images without labels are left out, as nnU-Net cannot use them. Its random five folds
# would also put slices of one patient on both sides; so our grouped folds come along as `splits_final.json`, to be copied into the
# folder of preprocessed data.

# %%
#| export
_NNUNET_README = """Written by ctseg from a partly labelled challenge folder.

nnU-Net's labels know classes, background and "ignore"; they cannot say "unknown". Here unknown was written as: {unknown}.
{meaning}
{cells:.1%} of the (image, class) cells of the training images are unknown. {dropped} training images without any label were left out.

Copy splits_final.json to nnUNet_preprocessed/{name}/ after planning: its folds keep all slices of a patient together.
"""
_NNUNET_MEANING = dict(ignore="Unlabelled pixels of images with an unknown class are ignored; what is certainly absent there is lost.",
                       background="Unlabelled pixels are background, also where nobody looked: some of these labels are false.")

def _nnunet_labels(s, unknown: str) -> np.ndarray:
    "The label images, uint8 [N,H,W]: with `ignore`, C+1 where a pixel may be something that nobody looked for."
    if unknown == "background": return s.masks
    return np.where((s.masks == 0) & ~s.known.all(1)[:, None, None], np.uint8(len(s.classes) + 1), s.masks)


# %%
#| export
def export_nnunet(
    folder, # a challenge folder
    out, # the folder nnUNet_raw, in which `Dataset501_ctseg` is made
    unknown: str = "ignore", # ignore or background: how to approximate what nobody looked for
    id: int = 501, # the number of the data set
    name: str = "ctseg",
) -> dict: # facts
    "Write a challenge folder as a raw nnU-Net v2 data set of 2D PNG files. Unknown cells can only be approximated."
    if unknown not in _NNUNET_MEANING: raise did_you_mean("value of unknown", unknown, list(_NNUNET_MEANING))
    folder, s = Path(folder), read_challenge(folder)
    if not s.labelled.any(): raise InputError(f"{folder}: no labelled training images; nnU-Net needs some")
    kept = s[s.labelled]
    labels, C = _nnunet_labels(kept, unknown), len(s.classes)
    if unknown == "ignore" and C == 255:
        raise InputError("255 classes leave no number for nnU-Net's ignore label; choose unknown='background'")
    if not (labels == 0).any():
        raise InputError(f"{folder}: no image is fully known, so with unknown='ignore' there is no background to learn from; "
                         f"nnU-Net cannot learn from such "
                         "labels as they are, choose unknown='background' (--unknown background) to read unknown as background, which is false but runs")
    title = f"Dataset{id:03}_{name}"
    test = read_challenge(folder, "test") if (folder/"test-images").is_dir() else None
    with atomic_path(_new_folder(Path(out)/title)) as tmp:
        cases = _nnunet_files(tmp, "Tr", "train", kept, labels)
        if test is not None: _nnunet_files(tmp, "Ts", "test", test, test.masks if test.labelled.any() else None)
        _nnunet_json(tmp, kept, cases, unknown, title, len(s) - len(kept))
    share = lambda m: round(float(m.mean()), 4)
    return dict(dataset=title, train=len(kept), left_out=len(s) - len(kept), test=0 if test is None else len(test), unknown=unknown,
                pixels=dict(labelled=share(kept.masks > 0), background=share(labels == 0), ignored=share(labels > C)))


# %%
#| export
def _nnunet_files(root: Path, suffix: str, prefix: str, s, labels) -> list[str]:
    "Write images and labels as PNG; the names of the cases come back."
    cases = [f"{prefix}_{Path(n).stem.zfill(5)}" for n in s.names]
    if twice := [n for n, c in zip(s.names, cases) if cases.count(c) > 1]: raise InputError(f"{twice[0]} and {twice[1]} would be one case of nnU-Net; rename one")
    for kind, stack, end in ("images", s.images, "_0000"), ("labels", labels, ""):
        if stack is None: continue
        (root/f"{kind}{suffix}").mkdir(parents=True)
        for c, image in zip(cases, stack): imsave(root/f"{kind}{suffix}"/f"{c}{end}.png", image, check_contrast=False)
    return cases

def _nnunet_json(root: Path, s, cases, unknown: str, title: str, dropped: int):
    "dataset.json, splits_final.json and the README."
    labels = {n: i for i, n in enumerate(["background", *s.classes.names, *["ignore"]*(unknown == "ignore")])}
    # the channel is not called CT: the slices are windowed, and nnU-Net would normalise a "CT" by Hounsfield units
    write_json(dict(channel_names={"0": "windowed_CT"}, labels=labels, numTraining=len(s), file_ending=".png",
                    overwrite_image_reader_writer="NaturalImage2DIO"), root/"dataset.json")
    groups = len(np.unique(s.groups))
    if groups > 1:
        fold = grouped_folds(s, k=min(5, groups))
        pick = lambda where: [c for c, w in zip(cases, where) if w]
        write_json([dict(train=pick(fold != f), val=pick(fold == f)) for f in range(fold.max() + 1)], root/"splits_final.json")
    text = dict(unknown=unknown, meaning=_NNUNET_MEANING[unknown], cells=float((~s.known).mean()), dropped=dropped, name=title)
    (root/"README.txt").write_text(_NNUNET_README.format(**text))


# %% [markdown]
# On the toy OpenKBP both ways can be seen. All training patients there are partly labelled, so the true way is refused:

# %%
try: export_nnunet(work/"kbp", work/"nnUNet_raw")
except InputError as e: print(str(e).replace(str(work), "…"))
print(export_nnunet(work/"kbp", work/"nnUNet_raw", unknown="background"))
print(sorted(p.name for p in (work/"nnUNet_raw"/"Dataset501_ctseg").iterdir()))

# %% [markdown]
# With one fully known patient among them it works, and the picture shows what the network will see of each kind of image (ignored in grey):

# %%
write_patient(clone/"provided-data/train-pats/pt_2", _KBP_FILES, 2)
import_openkbp(clone, work/"kbp2", Slicing(per_volume=8, size=64))
print(export_nnunet(work/"kbp2", work/"nnUNet_raw", id=502))
raw = work/"nnUNet_raw"/"Dataset502_ctseg"
print((raw/"README.txt").read_text())
s = read_challenge(work/"kbp2")
fig, axes = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
for ax, i in zip(axes, [3, 4, 12, 13]):
    label = imread(raw/"labelsTr"/f"train_{i:05}.png")
    ax.imshow(np.vstack([OPENKBP.colours, [[110, 110, 110]]])[label])
    ax.set_title(f"pt_{s.groups[i]}: {s.known[i].sum()} of 7 known", fontsize=9); ax.axis("off")
folds = read_json(raw/"splits_final.json")
for f in folds: assert not {s.groups[int(c[6:])] for c in f["train"]} & {s.groups[int(c[6:])] for c in f["val"]}

# %%
#| hide
shutil.rmtree(work)

# %%
#| hide
import nbdev; nbdev.nbdev_export()
