# %% [markdown]
# # Two folders of volumes
#
# > What `ctseg evaluate TRUTH PREDICTION` does with folders of NIfTI label maps, and with CSV masks of volumes.
#
# - skip_showdoc: true

# %%
#| default_exp metrics.volume_files

# %%
#| export
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.arguments import checks_arguments
from ctseg.core.errors import InputError
from ctseg.core.filetypes import check_folder
from ctseg.core.json_files import read_json
from ctseg.data.annotations import read_annotated, read_classes
from ctseg.data.images import natural_key
from ctseg.io.geometry import slice_axes
from ctseg.io.index import predicted_volumes, read_index
from ctseg.io.nifti import read_label_map, read_nifti
from ctseg.io.volumes import class_flags
from ctseg.metrics.bootstrap import bootstrap_mean
from ctseg.metrics.evaluate import examined_beside, plain_value
from ctseg.metrics.label_folders import (
    check_same_names, examined_on, label_names, matched_files, patients_of_cases, predicted_only,
)
from ctseg.metrics.volumes import MEASURES, VolumeScores, volume_scores

# %%
#| hide
import os
import shutil
import tempfile

import nibabel as nib
from fastcore.test import test_close, test_eq, test_fail

from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.index import PredictedVolume
from ctseg.io.nifti import export_nifti
from ctseg.io.slicing import Slicing
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

# %% [markdown]
# The truth is a folder of label maps, the prediction another one with a file of the same name for each. Here the three toy torsos are the
# truth; the prediction has lost a layer of every liver, and the first stomach.

# %%
work = Path(tempfile.mkdtemp())
for folder in ("truth", "pred"): (work/folder).mkdir()
for i, scan in enumerate(torso_scans().values()):
    pred = scan.labels.copy()
    pred[(pred == 1) & ((np.roll(pred, 1, 0) != 1) | (np.roll(pred, -1, 0) != 1))] = 0
    if not i: pred[pred == 2] = 0
    for folder, labels in (("truth", scan.labels), ("pred", pred)):
        nib.save(nib.Nifti1Image(labels, scan.affine), work/folder/f"p{i}.nii.gz")
TORSO_CLASSES.to_json(work/"truth"/"class_names.json")


# %% [markdown]
# ## Pairs
#
# Which file belongs to which, and what the labels are called, is settled in [folders of label maps](62_label_folders.ipynb). A truth may hold
# 255 where nobody looked; these voxels count for neither.

# %%
#| export
@dataclass
class Pair:
    "The truth and the prediction of a volume."
    case: str
    truth: np.ndarray # uint8 [I,J,K]
    pred: np.ndarray # uint8 [I,J,K]
    affine: np.ndarray # float [4,4]

def spacing_of(affine: np.ndarray, case: str) -> tuple[float, float, float]:
    "mm along each axis of an affine [4,4]; `InputError` for axes that are not at right angles, as after a tilted gantry."
    axes = affine[:3, :3]
    mm = np.linalg.norm(axes, axis=0)
    directions = axes/mm
    cosines = directions.T @ directions
    if np.abs(cosines - np.eye(3)).max() > .01:
        raise InputError(f"{case}: the axes of its grid are not at right angles, "
                         "so distances cannot be measured along them; resample both onto a straight grid")
    return tuple(mm.tolist())


# %%
#| export
def score_pair(pair: Pair, known: np.ndarray, tolerance: float) -> VolumeScores:
    """Scores of a volume, for the classes that are `known`, bool [C]; voxels of 255 in the truth count for neither.

    Raises `InputError` for a label that is no class, and a tolerance that is no distance.
    """
    if not 0 <= tolerance < np.inf:
        raise InputError(f"tolerance {tolerance:g}: expected 0 or more mm")
    seen = pair.truth < IGNORE
    labels = pair.truth*seen
    highest = max(int(pair.pred.max(initial=0)), int(labels.max(initial=0)))
    if highest > len(known):
        raise InputError(f"{pair.case}: a label {highest}, but there are {len(known)} classes; "
                         "give the class_names.json that belongs to these files (--classes)")
    spacing = spacing_of(pair.affine, pair.case)
    return volume_scores(labels, pair.pred*seen, spacing, known, tolerance)


# %% [markdown]
# A perfect prediction has a distance of 0 mm. Labels beyond the classes, and axes that are not at right angles, are refused.

# %%
scan = torso_scans()["oblique, other voxel sizes"]
pair = Pair("p2", scan.labels, scan.labels, scan.affine)
test_eq(score_pair(pair, np.ones(5, bool), 2.).hd95, [0]*5)
test_fail(lambda: score_pair(pair, np.ones(3, bool), 2.), contains="a label 5, but there are 3 classes")
test_fail(
    lambda: spacing_of(np.array([[1, 0, 0, 0], [0, 1, .3, 0], [0, 0, 1, 0], [0, 0, 0, 1.]]), "p"),
    contains="right angles",
)


# %%
#| export
def refuse_uneven(*paths: Path):
    "`InputError` for label maps of unevenly spaced slices, whose positions lie beside them as ctseg writes them."
    for path in paths:
        name = re.sub(r"\.nii(\.gz)?$", ".json", path.name, flags=re.IGNORECASE)
        beside = path.with_name(name)
        if not beside.exists(): continue
        facts = read_json(beside)
        if isinstance(facts, dict) and facts.get("positions"):
            raise InputError(f"{path}: its slices are unevenly spaced ({beside.name}); "
                             "distances in mm need an even grid")

def nifti_pairs(files: dict[str, tuple[Path, Path]]) -> Iterator[Pair]:
    "The label maps of each case, one case at a time. Raises `InputError` for a prediction on another grid."
    for case, (true, pred) in files.items():
        refuse_uneven(true, pred)
        labels, affine = read_nifti(true, None)
        truth = read_label_map(true, labels.shape, affine)
        predicted = read_label_map(pred, truth.shape, affine)
        yield Pair(case, truth, predicted, affine)


# %%
for pair in nifti_pairs(matched_files(work/"truth", work/"pred")): print(pair.case, pair.truth.shape)


# %% [markdown]
# ## Tables and intervals

# %%
#| export
@dataclass
class VolumeTable:
    "Scores of volumes by measure."
    cases: list[str]
    classes: ClassMap
    scores: list[VolumeScores] = field(default_factory=list)

    def of(self, measure: str) -> np.ndarray: # float64 [N,C]
        "A measure for each case and class."
        return np.array([getattr(scores, measure) for scores in self.scores], float)

    def per_case(self) -> list[dict]:
        "A record for each case and class that was examined."
        rows = []
        for case, scores in zip(self.cases, self.scores):
            for c, name in enumerate(self.classes.names):
                if np.isnan(scores.ml[c]): continue
                row = {"case": case, "structure": name}
                for measure in (*MEASURES, "ml", "predicted_ml"):
                    row[measure] = plain_value(getattr(scores, measure)[c])
                rows.append(row)
        return rows


# %%
table = VolumeTable(["p2"], TORSO_CLASSES, [score_pair(pair, np.array([True, False, True, True, True]), 2.)])
print([row["structure"] for row in table.per_case()])


# %%
#| export
def _class_row(table: VolumeTable, c: int, groups: np.ndarray | None) -> dict:
    "The row of class c, counted from 0."
    dice = table.of("dice")[:, [c]]
    row = {"cases": int((~np.isnan(dice)).sum())}
    for measure in MEASURES:
        values = table.of(measure)[:, [c]]
        row[measure] = bootstrap_mean(values, groups, reps=0)["mean"]
    interval = bootstrap_mean(dice, groups)
    row |= {"dice_low": interval["low"], "dice_high": interval["high"]}
    for count in ("missed", "invented"):
        row[count] = int(np.nansum(table.of(count)[:, c]))
    return row

def class_summary(table: VolumeTable, groups: np.ndarray | None) -> pd.DataFrame:
    "A row a class: its cases, the mean of each measure, the interval of the Dice, how often it was missed or invented."
    rows = {name: _class_row(table, c, groups) for c, name in enumerate(table.classes.names)}
    return pd.DataFrame(rows).T.astype({"cases": int, "missed": int, "invented": int})


# %%
#| export
def table_facts(table: VolumeTable, groups: np.ndarray | None, tolerance: float) -> dict:
    "Each measure with its interval over patients, and records by class and case: plain values for JSON."
    facts = {"cases": len(table.cases), "tolerance_mm": tolerance}
    for measure in MEASURES:
        score = bootstrap_mean(table.of(measure), groups)
        facts[measure] = plain_value(score["mean"])
        facts[f"{measure}_interval"] = [plain_value(score["low"]), plain_value(score["high"])]
        facts |= {"patients": score["groups"], "level": score["level"]}
    for count in ("missed", "invented"):
        facts[count] = int(np.nansum(table.of(count)))
    by_class = class_summary(table, groups).rename_axis("structure").reset_index()
    facts["per_class"] = []
    for row in by_class.to_dict("records"):
        plain = {key: plain_value(value) for key, value in row.items()}
        facts["per_class"].append(plain)
    return facts | {"per_case": table.per_case()}


# %%
#| export
def _numbered(files: dict[str, tuple[Path, Path]]) -> ClassMap:
    "Classes called by their numbers, as many as the highest label of the truth."
    highest = 1
    for path, _ in files.values():
        labels, affine = read_nifti(path, None)
        whole = read_label_map(path, labels.shape, affine)
        highest = max(highest, int(whole[whole < IGNORE].max(initial=0)))
    return ClassMap.from_names([f"label {i}" for i in range(1, highest + 1)])



# %%
print(_numbered(matched_files(work/"truth", work/"pred")).names)


# %%
#| export
def _finished(table: VolumeTable, groups, tolerance: float) -> dict:
    "The result of an evaluation."
    return {"table": class_summary(table, groups), "facts": table_facts(table, groups, tolerance)}


# %%
#| export
@checks_arguments
def evaluate_volumes(
    truth: str | Path,
    prediction: str | Path,
    classes: str | Path | None = None,
    annotated: str | None = None,
    tolerance: float = 2.,
) -> dict:
    """Score label maps in mm: the `table` of `class_summary` and the `facts` of `table_facts`.

    truth, prediction: folders of NIfTI label maps of the same names. classes: a `class_names.json` or a run; None: as
    the folders say. annotated: a JSON, "all" or "present"; None: the JSON beside the truth, else all. tolerance: of
    the surface Dice, mm. Raises `InputError` for a missing case, another grid or other labels.
    """
    truth, prediction = Path(truth), Path(prediction)
    for folder in (truth, prediction):
        check_folder(folder, "a folder of NIfTI label maps")
    files = matched_files(truth, prediction)
    if classes: named = ClassMap.from_json(classes)
    else: named = label_names(truth) or label_names(prediction)
    if named: check_same_names(named, prediction)
    table = VolumeTable(list(files), named or _numbered(files))
    C = len(table.classes)
    known = examined_on(truth, annotated, table.cases, table.classes)
    for pair in nifti_pairs(files):
        examined = known[pair.case] if known else np.ones(C, bool)
        if annotated == "present":
            examined = class_flags(np.unique(pair.truth), C)
        table.scores.append(score_pair(pair, examined, tolerance))
    result = _finished(table, patients_of_cases(truth, table.cases), tolerance)
    alone = predicted_only(truth, prediction)
    if alone: result["facts"]["without_truth"] = alone
    return result


# %%
result = evaluate_volumes(work/"truth", work/"pred")
print({name: value for name, value in result["facts"].items() if not name.startswith("per_")})
result["table"].round(3)


# %% [markdown]
# ## From the CSV form
#
# Masks of a challenge folder that was made from volumes can be put back onto them, because its [index](../io/50_index.ipynb) knows their
# spacing. Then they are scored in mm too.

# %%
#| export
def _whole(volume, axis: int):
    "`InputError` for a volume of which some slices were never cut out."
    if volume.slices < volume.entry["shape"][axis]:
        raise InputError(f"volume {volume.id}: only {volume.slices} of its slices are in the folder; "
                         "distances in mm need all of them (import without --every and --per-volume)")
    if volume.entry["positions"]:
        raise InputError(f"volume {volume.id}: its slices are unevenly spaced; "
                         "distances in mm need an even grid")


# %%
def volume_of(slices, positions=None):
    return PredictedVolume("v0", {"shape": [9, 9, 4], "positions": positions}, None, slices)

_whole(volume_of(4), 2)
test_fail(lambda: _whole(volume_of(2), 2), contains="only 2 of its slices")
test_fail(lambda: _whole(volume_of(4, [[0, 0, 0]]), 2), contains="unevenly spaced")


# %% [markdown]
# What was examined is said image by image, beside the CSV. A class that is unknown on one slice of a volume has no surface that could be measured, and
# is not scored there.

# %%
#| export
def _examined_volumes(
    truth: Path,
    lines: dict[str, dict], # of the index: image name → its entry
    C: int, # number of classes
) -> dict[str, np.ndarray]: # volume id → bool [C]
    "The classes examined on every image of a volume."
    images = sorted(lines, key=natural_key)
    known = np.ones((len(images), C), bool)
    beside = examined_beside(truth)
    if beside != "all": known = read_annotated(Path(beside), len(images), C)
    examined: dict[str, np.ndarray] = {}
    for image, of_image in zip(images, known):
        volume = lines[image]["volume"]
        examined[volume] = examined.get(volume, True) & of_image
    return examined


# %%
#| export
def evaluate_csv_volumes(
    truth: str | Path, # the true masks, the CSV of a folder made from volumes
    prediction: str | Path, # a submission
    tolerance: float = 2., # of the surface Dice, mm
) -> dict: # as `evaluate_volumes`
    "Score a submission in mm, on the volumes that its images were cut from."
    truth = Path(truth)
    folder = truth.parent
    split = truth.name.split(".")[0].removeprefix("y_")
    classes = read_classes(folder)
    entries, lines = read_index(folder, split)
    table, groups = VolumeTable([], classes), []
    examined = _examined_volumes(truth, lines, len(classes))
    true_volumes = predicted_volumes(truth, folder, split)
    volumes = predicted_volumes(prediction, folder, split)
    for true, predicted in zip(true_volumes, volumes):
        affine = np.array(true.entry["affine"])
        axes, _ = slice_axes(affine, true.entry["orientation"])
        _whole(true, axes[0])
        pair = Pair(true.id, true.labels, predicted.labels, affine)
        table.cases.append(true.id)
        groups.append(entries[true.id].get("patient", true.id))
        table.scores.append(score_pair(pair, examined[true.id], tolerance))
    return _finished(table, np.array(groups), tolerance)


# %%
os.environ["CTSEG_CACHE"] = str(work/"cache")
cases = [Case(f"p{i}", lambda v=v: v, split="test") for i, v in enumerate(torso_scans().values())]
write_volumes(cases, work/"folder", TORSO_CLASSES, Slicing())
test = read_challenge(work/"folder", "test")
masks = test.masks.copy()
masks[::7] = 0
write_masks(masks, test.names, work/"submission.csv")
export_nifti(masks, work/"folder", work/"as nifti", "test")
by_csv = evaluate_csv_volumes(work/"folder"/"y_test.csv", work/"submission.csv")["facts"]
shutil.copytree(work/"truth", work/"truth by id")
for i in range(3): (work/"truth by id"/f"p{i}.nii.gz").rename(work/"truth by id"/f"v00{i}.nii.gz")
by_nifti = evaluate_volumes(work/"truth by id", work/"as nifti")["facts"]
for name in MEASURES: print(f"{name:14} {by_csv[name]:.4f} from CSV, {by_nifti[name]:.4f} from NIfTI")
test_close([by_csv[name] for name in MEASURES], [by_nifti[name] for name in MEASURES], eps=1e-5)
shutil.rmtree(work)
