# %% [markdown]
# # OpenKBP
#
# > Head and neck CT of 340 patients with the clinic's own contours: real partial labels.

# %%
#| default_exp io.openkbp

# %%
#| export
import functools
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.core.filetypes import check_folder
from ctseg.core.json_files import read_json
from ctseg.core.paths import refuse_special
from ctseg.core.tables import table_text
from ctseg.data.cache import reading
from ctseg.data.images import natural_key
from ctseg.io.canvas import place_on_squares
from ctseg.io.cases import Case
from ctseg.io.cutting import Work, index_entry
from ctseg.io.folders import SplitArrays, image_line, rename_splits, write_splits, write_volumes
from ctseg.io.into_store import check_store_place
from ctseg.io.outputs import new_folder
from ctseg.io.renaming import RenamedSlices, read_renaming, renamed_classes, unused_lines
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import Volume, class_flags, combine, cut

# %%
#| hide
import os
import shutil
import tempfile

from fastcore.test import test_eq, test_fail

from ctseg.core.json_files import write_json
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.data.challenge import read_challenge
from ctseg.io.renaming import Renaming

# %% [markdown]
# [OpenKBP](https://github.com/ababier/open-kbp) (Babier et al., [Medical Physics 48, 2021](https://doi.org/10.1002/mp.14845)) was
# made to predict radiation doses. It comes with planning CTs, resampled to 128 voxels a side, and with the clinic's contours of
# seven organs at risk. Its authors left out a mask "if the organ was not contoured in the original clinical plan". These are real
# partial labels, as they arise in life. (They have a weakness: a clinic draws the esophagus or the cord only as far as the plan needs
# it, and beyond its last contour we count it as absent.)
#
#     provided-data/train-pats/pt_1/ct.csv                 ,data           only voxels above 0: their number in the
#                                                          745178,935.0    flattened grid, and their value
#     provided-data/train-pats/pt_1/Brainstem.csv          ,data           only the numbers of the voxels
#                                                          1040394,
#     provided-data/train-pats/pt_1/voxel_dimensions.csv   3.906           three lines: 3.906, 3.906, 2.5

# %%
#| export
_FILES = {  # class → the name of its file
    "brainstem": "Brainstem",
    "spinal_cord": "SpinalCord",
    "parotid_right": "RightParotid",
    "parotid_left": "LeftParotid",
    "esophagus": "Esophagus",
    "larynx": "Larynx",
    "mandible": "Mandible",
}
OPENKBP = ClassMap.from_names(_FILES)
OPENKBP_FILES = tuple(_FILES.values())
_SIDE = 128  # voxels along each axis

# %% [markdown]
# To try it without the download, here is a patient in exactly this layout: a neck of ellipsoids, written as sparse CSV.

# %%
grid = np.indices((128,)*3)

def ellipsoid(centre, radii): return sum(((g - c)/r)**2 for g, c, r in zip(grid, centre, radii)) < 1

def write_patient(folder, structures, shift=0):
    "A toy patient in OpenKBP's layout; indices run back, left, down."
    Path(folder).mkdir(parents=True)
    organs = dict(
        Brainstem=((66, 64, 40 + shift), (5, 6, 12)),
        SpinalCord=((74, 64, 85 + shift), (3, 3, 40)),
        RightParotid=((62, 47, 55 + shift), (7, 6, 9)),
        LeftParotid=((62, 81, 55 + shift), (7, 6, 9)),
        Esophagus=((66, 64, 105), (3, 5, 14)),
        Larynx=((56, 64, 85 + shift), (7, 7, 8)),
        Mandible=((50, 64, 66 + shift), (8, 15, 6)),
    )
    grey = np.zeros((128,)*3)
    grey[ellipsoid((64, 64, 64), (30, 26, 90))] = 1040
    grey[ellipsoid((72, 64, 64), (8, 8, 90))] = 1500
    for name, place in organs.items(): grey[ellipsoid(*place)] = 1900 if name == "Mandible" else 1070
    grey[organs["Larynx"][0]] = 21000  # one of the odd 16-bit values
    at = np.flatnonzero(grey)
    pd.DataFrame({"data": grey.ravel()[at]}, index=at).to_csv(Path(folder)/"ct.csv")
    for name in structures:
        pd.DataFrame({"data": ""}, index=np.flatnonzero(ellipsoid(*organs[name]))).to_csv(
            Path(folder)/f"{name}.csv"
        )
    np.savetxt(Path(folder)/"voxel_dimensions.csv", [3.906, 3.906, 2.5])

work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
clone = work/"open-kbp"
write_patient(clone/"provided-data/train-pats/pt_1", ["Brainstem", "SpinalCord", "LeftParotid"])
write_patient(clone/"provided-data/valid-pats/pt_201", ["Mandible", "Larynx"], 3)
write_patient(clone/"provided-data/test-pats/pt_241", OPENKBP_FILES, -3)
for name in ("ct", "Brainstem"):
    print((clone/f"provided-data/train-pats/pt_1/{name}.csv").read_text().splitlines()[:3])


# %% [markdown]
# ## Reading a patient
#
# Damage is told with its file.

# %%
#| export
def _sparse_table(path: Path) -> tuple[np.ndarray, pd.Series]:
    "The voxel numbers in a sparse CSV and the column beside them; `InputError` for anything else."
    text = table_text(path, "clone the repository again", _SIDE**3 + 1)
    try:
        table = pd.read_csv(io.StringIO(text), index_col=0)
    except (ValueError, OverflowError) as e:
        raise InputError(f"{path}: not a readable CSV ({type(e).__name__}); "
                         "clone the repository again") from None
    voxels = table.index.to_numpy()
    if not len(table):
        voxels = np.zeros(0, np.int64)  # of no lines pandas makes no numbers
    if list(table.columns) != ["data"] or (len(voxels) and voxels.dtype.kind != "i"):
        raise InputError(f"{path}: expected the columns '' (voxel numbers) and 'data', as OpenKBP has them")
    outside = voxels[(voxels < 0) | (voxels >= _SIDE**3)]
    if len(outside):
        raise InputError(f"{path}: voxel number {outside.max()} is outside the grid of {_SIDE} voxels a side")
    named = np.zeros(_SIDE**3, bool)
    named[voxels] = True
    if named.sum() != len(voxels):
        raise InputError(f"{path}: a voxel is there twice; clone the repository again")
    return voxels, table.data


# %%
patient = clone/"provided-data/train-pats/pt_1"
voxels, values = _sparse_table(patient/"ct.csv")
print(len(voxels), "voxels, the first:", voxels[:3], values.to_list()[:3])


# %%
#| export
def _structure_mask(path: Path) -> np.ndarray:
    "The mask of one structure, bool [voxels], from its sparse CSV."
    mask = np.zeros(_SIDE**3, bool)
    mask[_sparse_table(path)[0]] = True
    return mask


# %%
print(_structure_mask(patient/"Brainstem.csv").sum(), "voxels of brainstem")
(work/"outside.csv").write_text(",data\n2097152,\n")
test_fail(lambda: _structure_mask(work/"outside.csv"), contains="outside the grid")


# %%
#| export
def _grey_values(path: Path) -> np.ndarray:
    "The values of all voxels, float32 [voxels]; 0 where the sparse CSV has none."
    voxels, values = _sparse_table(path)
    if not len(voxels) or values.dtype.kind not in "if" or values.isna().any():
        raise InputError(f"{path}: the values are missing or not numbers; clone the repository again")
    grey = np.zeros(_SIDE**3, np.float32)
    grey[voxels] = values.to_numpy()
    return grey


# %%
print(_grey_values(patient/"ct.csv").max())
test_fail(lambda: _grey_values(patient/"Brainstem.csv"), contains="values are missing")


# %%
#| export
def _voxel_mm(path: Path) -> np.ndarray:
    "The size of a voxel along the three axes, float [3], mm."
    refuse_special(path, 1 << 16)
    with reading(path), open(path) as f:
        try: mm = np.loadtxt(f).ravel()
        except ValueError: mm = np.zeros(0)
    if mm.shape != (3,) or not ((mm > .01) & (mm < 100)).all():
        raise InputError(f"{path}: expected three sizes in mm")
    return mm


# %%
print(_voxel_mm(patient/"voxel_dimensions.csv"))
test_fail(lambda: _voxel_mm(patient/"Brainstem.csv"), contains="expected three sizes in mm")


# %% [markdown]
# Three facts about the grid are not written anywhere. The values are Hounsfield units plus 1024, to be clipped to 0…4095 (the data
# description says that 12-bit and 16-bit files are mixed). The first index runs to the back, the second to the patient's left, the
# third *downwards*: in all 326 patients with both parotids the right one has the smaller second index, in all 212 with a mandible
# and a cord the mandible has the smaller first, and in all 157 with brainstem and larynx the brainstem has the smaller third.
# Structures may overlap, though by only 1,668 of 1.4 million voxels; there the later one in the list of classes wins.

# %%
#| export
def read_openkbp(
    folder, # of one patient, `…/pt_1`
) -> Volume: # with labels and what is known
    "Read an OpenKBP patient. Structures without a file are unknown. Raises `InputError` for damaged files."
    folder, shape = Path(folder), (_SIDE,)*3
    for name in ("ct.csv", "voxel_dimensions.csv"):
        if not (folder/name).exists():
            raise InputError(f"{folder/name}: no such file; clone the whole repository ababier/open-kbp")
    mm = _voxel_mm(folder/"voxel_dimensions.csv")
    hu = _grey_values(folder/"ct.csv").clip(0, 4095).reshape(shape) - 1024
    paths = {id: folder/f"{name}.csv" for id, name in enumerate(OPENKBP_FILES, 1)}
    examined = [id for id, path in paths.items() if os.path.lexists(path)]
    united = combine(shape, ((id, _structure_mask(paths[id])) for id in examined), by_size=False)
    affine = np.eye(4)
    affine[:3, :3] = [[0, -mm[1], 0], [-mm[0], 0, 0], [0, 0, -mm[2]]]  # indices run back, left, down
    return Volume(
        hu, affine, united.labels,
        known=class_flags(examined, len(OPENKBP)),
        kind="openkbp",
        overlap=united.overlap,
        drawn=united.drawn)


# %%
v = read_openkbp(patient)
print("HU", v.hu.min(), "to", v.hu.max(), dict(zip(OPENKBP.names, v.known.tolist())))


# %% [markdown]
# ## Import
#
# The import groups slices by patient and keeps the patients' public numbers. It takes a few slices of each, because neighbours 2.5 mm
# apart are nearly the same picture. The official test patients go into the test if all seven organs were contoured (the challenge's
# form has no partly annotated test); the others of them are as good as any for training.

# %%
#| export
def openkbp_patients(
    src, # a clone of ababier/open-kbp, or its folder provided-data
) -> dict[int, Path]: # patient number → folder
    "The patients of a clone. Raises `InputError` if there are none."
    src = Path(src)
    check_folder(src, "a clone of ababier/open-kbp")
    root = src/"provided-data" if (src/"provided-data").is_dir() else src
    folders = sorted(root.glob("*-pats/pt_*"), key=lambda d: natural_key(d.name))
    numbered = {int(d.name[3:]): d for d in folders if d.is_dir() and d.name[3:].isdigit()}
    if not numbered:
        raise InputError(f"{src}: no patients in it; expected a clone of ababier/open-kbp "
                         "with provided-data/train-pats/pt_1/ct.csv and so on")
    return numbered


# %%
patients = openkbp_patients(clone)
print({number: folder.parent.name for number, folder in patients.items()})


# %%
#| export
def _case(number: int, folder: Path) -> Case:
    "A patient as a case. The official test is used as one where every organ was contoured."
    known = np.array([(folder/f"{name}.csv").exists() for name in OPENKBP_FILES])
    split = "test" if folder.parent.name == "test-pats" and known.all() else "train"
    load = functools.partial(read_openkbp, folder)
    return Case(folder.name, load, number, known, split, folder.name, str(folder))


# %%
for number, folder in patients.items():
    case = _case(number, folder)
    print(case.id, case.split, "known:", case.known.sum(), "of", len(OPENKBP))


# %% [markdown]
# With `like`, the import repeats a given choice of slices exactly. That is how our real-CT benchmark can be had again from the public
# data: `like="nbs/benchmarks/realct_slices.json"` gives its 2000 training and 300 test slices of 257 patients bit for bit. (Do not
# pretrain on all of OpenKBP before you use it: its test patients are among them.)
#
# The table is compact, `{"size": 64, "train": [[patient, slice, level, width, [classes]], …], "test": […]}`, an entry for each image
# in the order of the images. Labels of classes that do not count as examined are erased.

# %%
#| export
@dataclass
class ChosenSlice:
    "A slice to cut again."
    patient: int
    z: int # its number in the oriented stack
    window: tuple[float, float] # (level, width), HU
    examined: list[int] # class ids that count as examined

    def check(self, where: str):
        "Raise `InputError` for a slice that cannot be."
        if not 0 <= self.z < _SIDE:
            raise InputError(f"{where}: slice {self.z}, expected 0 to {_SIDE - 1}")
        level, width = self.window
        if not (math.isfinite(level) and 0 < width < math.inf):
            raise InputError(f"{where}: window ({level:g}, {width:g}), expected (level, "
                             "width) with a width above 0")
        for id in self.examined:
            if not 1 <= id <= len(OPENKBP):
                raise InputError(f"{where}: class {id}, expected 1 to {len(OPENKBP)}")


# %%
ChosenSlice(1, 60, (40., 400.), [1, 4]).check("here")
test_fail(lambda: ChosenSlice(1, 128, (40., 400.), []).check("here"), contains="slice 128, expected 0 to 127")


# %%
#| export
@dataclass
class Choice:
    "Slices to cut again."
    size: int # side of the images, pixels
    splits: dict[str, list[ChosenSlice]] # train, test

    @property
    def patients(self) -> list[int]:
        "The numbers of the patients, sorted."
        return sorted({chosen.patient for split in self.splits.values() for chosen in split})

def _chosen_slice(row) -> ChosenSlice:
    "An entry of the table."
    patient, z, level, width, examined = row
    return ChosenSlice(int(patient), int(z), (float(level), float(width)), [int(id) for id in examined])


# %%
print(_chosen_slice([201, 60, 40, 400, [7]]))


# %%
#| export
def read_choice(path) -> Choice:
    "A table of chosen slices. Raises `InputError` for one that is malformed."
    table = read_json(path)
    try:
        names = [name for name in ("train", "test") if name in table]
        splits = {name: [_chosen_slice(row) for row in table[name]] for name in names}
        choice = Choice(int(table["size"]), splits)
    except (KeyError, TypeError, ValueError):
        example = '{"size": 64, "train": [[patient, slice, level, width, [classes]], …]}'
        raise InputError(f"{path}: expected {example}") from None
    for name, chosen in splits.items():
        for i, one in enumerate(chosen): one.check(f"{path}, {name}, entry {i}")
    return choice


# %%
table = {"size": 64, "train": [[201, 60, 40, 400, [7]], [1, 80, 0, 600, [1, 4]], [1, 60, 40, 400, []]],
         "test": [[241, 65, 40, 400, [1, 2, 3, 4, 5, 6, 7]]]}
write_json(table, work/"choice.json")
choice = read_choice(work/"choice.json")
print("patients", choice.patients, choice.splits["train"][1])


# %% [markdown]
# Each patient is read once, though its slices may be anywhere in the two splits.

# %%
#| export
def _fill(split: SplitArrays, chosen: list[ChosenSlice], volume: Volume, patient: int, slicing: Slicing):
    "Cut the chosen slices of one patient into the arrays of a split."
    rows = [i for i, one in enumerate(chosen) if one.patient == patient]
    part = cut(volume, slicing, slices=[chosen[i].z for i in rows], windows=[chosen[i].window for i in rows])
    images, masks, corners = place_on_squares(part, slicing.size)
    split.images[rows] = images
    for i, mask, corner in zip(rows, masks, corners):
        split.known[i] = class_flags(chosen[i].examined, len(OPENKBP)) & volume.known
        kept = np.r_[False, split.known[i]].astype(np.uint8)
        split.masks[i] = mask*kept[mask]
        split.groups[i] = patient
        split.lines[f"{i}.png"] = image_line(f"pt_{patient}", chosen[i].z, chosen[i].window, corner)


# %%
chosen = choice.splits["train"]
split = SplitArrays.empty(len(chosen), 64, len(OPENKBP))
split.lines = dict.fromkeys(f"{i}.png" for i in range(len(chosen)))
_fill(split, chosen, v, 1, Slicing(size=64))
print("filled:", [name for name, line in split.lines.items() if line], "known:", split.known.sum(1))


# %%
#| export
def _empty_split(chosen: list[ChosenSlice], side: int) -> SplitArrays:
    "Arrays for the chosen slices, whose images have their names in order."
    split = SplitArrays.empty(len(chosen), side, len(OPENKBP))
    split.lines = dict.fromkeys(f"{i}.png" for i in range(len(chosen)))
    return split


# %%
#| export
def _import_like(patients: dict[int, Path], out, like, renamed: RenamedSlices, store: bool = False) -> dict:
    "Repeat a choice of slices."
    if store: check_store_place(out)
    out, choice = new_folder(out), read_choice(like)
    missing = [patient for patient in choice.patients if patient not in patients]
    if missing:
        raise InputError(f"{like}: patient pt_{missing[0]} is not in the clone ({len(missing)} are "
                         "missing); clone all of it")
    slicing = Slicing(size=choice.size)
    splits = {name: _empty_split(chosen, choice.size) for name, chosen in choice.splits.items()}
    volumes = {}
    for patient in choice.patients:
        volume = read_openkbp(patients[patient])
        volumes[f"pt_{patient}"] = index_entry(volume, slicing, patient) | {"scaled": [_SIDE, _SIDE]}
        for name, chosen in choice.splits.items():
            _fill(splits[name], chosen, volume, patient, slicing)
    facts = rename_splits(splits, renamed)
    facts |= write_splits(out, renamed.classes, volumes, splits, store)
    n = len(choice.patients)
    return {"volumes": n, "patients": n} | facts | {"size": choice.size}


# %%
print(_import_like(patients, work/"again", work/"choice.json", renamed_classes(OPENKBP, Renaming())))
again = read_challenge(work/"again")
print(again, [np.flatnonzero(known).tolist() for known in again.known], again.groups)


# %%
#| export
def import_openkbp(
    src, # a clone of the repository ababier/open-kbp
    out, # the challenge folder, new
    slicing: Slicing = Slicing(window="random", per_volume=8, min_body=90.),
    like = None, # a JSON with a choice of slices to repeat; `None`: choose by `slicing`
    rename: dict|str|None = None, # one of the seven → class name, or the path of such a JSON
    store: bool = False, # write a store, not a challenge folder
) -> dict: # facts
    "Cut OpenKBP into a challenge folder with true partial labels, grouped by patient."
    patients = openkbp_patients(src)
    renaming = read_renaming(rename, Path(out).name)
    unused, renamed = unused_lines(renaming, OPENKBP.names), renamed_classes(OPENKBP, renaming)
    if like is not None:
        return _import_like(patients, out, like, renamed, store) | unused
    cases = [_case(number, folder) for number, folder in patients.items()]
    return write_volumes(cases, out, OPENKBP, slicing, work=Work(store=store), renamed=renamed) | unused


# %%
print(import_openkbp(clone, work/"kbp", Slicing(window="random", per_volume=8, min_body=90., size=64)))
train, test = read_challenge(work/"kbp"), read_challenge(work/"kbp", "test")
print(train, {f"pt_{g}": int((train.groups == g).sum()) for g in np.unique(train.groups)})


# %%
#| fig-alt: "Five slices of made-up patients in OpenKBP's form, with outlines and the number of known organs"
def first(s, patient, name):
    "The first slice of a patient that shows a class."
    return s, int(np.argmax((s.groups == patient) & s.present[:, OPENKBP.id(name) - 1]))

shown = [first(train, 1, "parotid_left"), first(train, 1, "brainstem"), first(train, 201, "larynx"),
         first(test, 241, "parotid_right"), first(test, 241, "mandible")]
fig, axes = image_grid(1, 5)
for ax, (s, i) in zip(axes[0], shown):
    title = f"pt_{s.groups[i]}: {s.known[i].sum()} of 7 known"
    show_image(ax, overlay(s.images[i], s.masks[i], OPENKBP), title)
class_legend(fig, OPENKBP)

# %% [markdown]
# The patient's right is on the left of the picture, as it should be: the left parotid of the first patient is on the right. Nothing
# is said of his right one.

# %%
left = np.argwhere(train.masks[train.groups == 1] == OPENKBP.id("parotid_left"))[:, 2].mean()
assert left > 36
test_eq(train.known[train.groups == 1][0], [True, True, False, True, False, False, False])
shutil.rmtree(work)
