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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ctseg.core.anatomy import ClassMap
from ctseg.core.files import InputError, read_json
from ctseg.data.annotations import read_classes
from ctseg.io.geometry import slice_axes
from ctseg.io.index import predicted_volumes, read_index
from ctseg.io.nifti import nifti_files, read_label_map, read_nifti
from ctseg.metrics.bootstrap import bootstrap_mean
from ctseg.metrics.evaluate import plain_value
from ctseg.metrics.volumes import MEASURES, VolumeScores, volume_scores

# %%
#| hide
import os
import shutil
import tempfile

import nibabel as nib
from fastcore.test import test_close, test_eq, test_fail

from ctseg.core.files import write_json
from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.nifti import export_nifti
from ctseg.io.slicing import Slicing
from ctseg.io.toys import TORSO_CLASSES, torso_scans

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
# ## Names of the labels
#
# They are looked for beside the truth: `class_names.json`, the `dataset.json` of nnU-Net (also one folder up), or a table with a column for
# the number and one for the name. Without any, labels are called by their numbers.

# %%
#| export
_TABLES = ("labels.csv", "labels.tsv", "dseg.tsv")
_ID_COLUMNS, _NAME_COLUMNS = ("id", "index", "label", "value"), ("name", "structure", "class")

def _names_in_table(path: Path) -> dict[int, str]:
    "The names in a table of numbers and names; `InputError` for another table."
    table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    columns = {str(column).strip().lower(): column for column in table.columns}
    id, name = (next((columns[c] for c in known if c in columns), None) for known in (_ID_COLUMNS, _NAME_COLUMNS))
    if id is None or name is None:
        raise InputError(f"{path}: expected a column id and a column name, found {', '.join(columns)}")
    try: return {int(i): str(n) for i, n in zip(table[id], table[name])}
    except ValueError:
        raise InputError(f"{path}: expected whole numbers in the column {id}") from None

def _names_in_dataset(path: Path) -> dict[int, str]:
    "The names in the `dataset.json` of nnU-Net or the Decathlon, whichever way round it has them."
    table = read_json(path)
    labels = table.get("labels") if isinstance(table, dict) else None
    if not isinstance(labels, dict):
        raise InputError(f"{path}: has no labels")
    by_number = all(str(key).isdigit() for key in labels)
    pairs = labels.items() if by_number else [(id, name) for name, id in labels.items()]
    try: return {int(id): str(name) for id, name in pairs}
    except (TypeError, ValueError):
        raise InputError(f"{path}: labels must be names with one number each; write a class_names.json instead") from None


# %%
(work/"labels.csv").write_text("id,name\n1,liver\n2,stomach\n")
write_json({"labels": {"background": 0, "liver": 1}}, work/"dataset.json")
print(_names_in_table(work/"labels.csv"), _names_in_dataset(work/"dataset.json"))


# %%
#| export
def _as_classes(names: dict[int, str], path: Path) -> ClassMap:
    "A class map of numbered names, without background and ignore; `InputError` unless they are 1, 2, 3, …"
    kept = {id: name for id, name in names.items() if id and name not in ("background", "ignore")}
    if set(kept) != set(range(1, len(kept) + 1)) or not kept:
        raise InputError(f"{path}: expected labels numbered from 1 without a gap")
    return ClassMap.from_names([kept[id] for id in sorted(kept)])

def label_names(folder: Path) -> ClassMap | None:
    "The names of the labels in a folder of label maps; `None` if nothing says them."
    for beside in (folder, folder.parent):
        if (beside/"class_names.json").exists():
            return ClassMap.from_json(beside/"class_names.json")
        if (beside/"dataset.json").exists():
            return _as_classes(_names_in_dataset(beside/"dataset.json"), beside/"dataset.json")
    for name in _TABLES:
        if (folder/name).exists(): return _as_classes(_names_in_table(folder/name), folder/name)
    return None


# %%
print(label_names(work/"truth"), label_names(work/"pred"))
(work/"dataset.json").unlink()
test_eq(label_names(work/"pred"), None)


# %% [markdown]
# ## Pairs
#
# A case without a prediction, another grid, or a label that does not exist is refused: an average that leaves one out would be too good.

# %%
#| export
def matched_files(truth: Path, prediction: Path) -> dict[str, tuple[Path, Path]]:
    "Case → its two files. Raises `InputError` for a case without a prediction, and for an empty folder."
    true, pred = nifti_files(truth), nifti_files(prediction)
    if not true: raise InputError(f"{truth}: no NIfTI label maps in it")
    missing = [name for name in true if name not in pred]
    if missing:
        more = f" ({len(missing)} are missing)" if len(missing) > 1 else ""
        raise InputError(f"{prediction}: there is no prediction for {true[missing[0]].name}{more}; "
                         "predict it, or take its truth away")
    return {name: (true[name], pred[name]) for name in true}

def check_same_names(truth: ClassMap, prediction: Path):
    "Raise `InputError` if the prediction's own `class_names.json` or `dataset.json` says other labels."
    theirs = label_names(prediction)
    if theirs is None or theirs.names == truth.names: return
    pairs = enumerate(zip(truth.names, theirs.names), 1)
    odd = next((f"{i} is {a} and {b}" for i, (a, b) in pairs if a != b), f"{len(truth)} and {len(theirs)} of them")
    raise InputError(f"{prediction}: other labels than the truth's ({odd}); map them onto the truth's numbers first")


# %%
print(list(matched_files(work/"truth", work/"pred")))
(work/"few").mkdir()
shutil.copy(work/"pred"/"p0.nii.gz", work/"few")
test_fail(lambda: matched_files(work/"truth", work/"few"), contains="no prediction for p1.nii.gz (2 are missing)")
write_json({"1": "spleen"}, work/"few"/"class_names.json")
test_fail(lambda: check_same_names(TORSO_CLASSES, work/"few"), contains="1 is liver and spleen")


# %%
#| export
@dataclass
class Pair:
    "The truth and the prediction of a volume."
    case: str
    truth: np.ndarray # uint8 [I,J,K]
    pred: np.ndarray # uint8 [I,J,K]
    affine: np.ndarray # float [4,4]

IGNORE = 255  # in a truth: a voxel that nobody looked at

def spacing_of(affine: np.ndarray, case: str) -> tuple[float, float, float]:
    "mm along each axis. Raises `InputError` for axes that are not at right angles, as after a tilted gantry."
    axes = affine[:3, :3]
    mm = np.linalg.norm(axes, axis=0)
    between = np.abs((axes/mm).T @ (axes/mm) - np.eye(3)).max()
    if between > .01:
        raise InputError(f"{case}: the axes of its grid are not at right angles, so distances cannot be measured along "
                         "them; resample both onto a straight grid")
    return float(mm[0]), float(mm[1]), float(mm[2])

def score_pair(pair: Pair, known: np.ndarray, tolerance: float) -> VolumeScores:
    "Scores of a volume; voxels that are 255 in the truth count for neither."
    highest = max(int(pair.pred.max(initial=0)), int(pair.truth[pair.truth < IGNORE].max(initial=0)))
    if highest > len(known):
        raise InputError(f"{pair.case}: a label {highest}, but there are {len(known)} classes; "
                         "give the class_names.json that belongs to these files (--classes)")
    seen = pair.truth < IGNORE
    return volume_scores(pair.truth*seen, pair.pred*seen, spacing_of(pair.affine, pair.case), known, tolerance)


# %%
scan = torso_scans()["oblique, other voxel sizes"]
pair = Pair("p2", scan.labels, scan.labels, scan.affine)
test_eq(score_pair(pair, np.ones(5, bool), 2.).hd95, [0]*5)
test_fail(lambda: score_pair(pair, np.ones(3, bool), 2.), contains="a label 5, but there are 3 classes")
test_fail(lambda: spacing_of(np.array([[1, 0, 0, 0], [0, 1, .3, 0], [0, 0, 1, 0], [0, 0, 0, 1.]]), "p"), contains="right angles")


# %%
#| export
def nifti_pairs(files: dict[str, tuple[Path, Path]]) -> Iterator[Pair]:
    "The label maps of each case, one case at a time. Raises `InputError` for a prediction on another grid."
    for case, (true, pred) in files.items():
        labels, affine = read_nifti(true, None)
        truth = read_label_map(true, labels.shape, affine)
        yield Pair(case, truth, read_label_map(pred, truth.shape, affine), affine)


# %%
for pair in nifti_pairs(matched_files(work/"truth", work/"pred")): print(pair.case, pair.truth.shape)


# %% [markdown]
# ## What was examined
#
# Without an `annotated_labels.json` beside the truth every class counts as examined. With it, the classes that are not on the list of a case
# are unknown there, and are not scored. `patients.json` says which cases are of one patient.

# %%
#| export
def examined_on(folder: Path, annotated: str | None, cases: list[str], classes: ClassMap) -> dict[str, np.ndarray] | None:
    "Case → bool [C], from a JSON of case → names or numbers; `None`: everything was examined. `InputError` for what does not fit."
    path = Path(annotated) if annotated not in (None, "all", "present") else folder/"annotated_labels.json"
    if annotated in ("all", "present") or not path.exists() and annotated is None: return None
    table = read_json(path)
    if not isinstance(table, dict) or not all(isinstance(v, list) for v in table.values()):
        raise InputError(f"{path}: expected an object with a list of classes for each case")
    known = {}
    for case in cases:
        if case not in table:
            raise InputError(f"{path}: does not say what was examined on {case}; add it, [] for nothing")
        ids = [classes.id(v) if isinstance(v, str) else v for v in table[case]]
        known[case] = np.isin(np.arange(1, len(classes) + 1), ids)
    return known

def patients_of_cases(folder: Path, cases: list[str]) -> np.ndarray | None:
    "The patient of each case from `patients.json`; `None` if there is none."
    path = folder/"patients.json"
    table = read_json(path) if path.exists() else None
    if not isinstance(table, dict): return None
    for case in cases:
        if case not in table: raise InputError(f"{path}: does not say whose scan {case} is; add it")
    return np.array([str(table[case]) for case in cases])


# %%
write_json({"p0": ["liver"], "p1": [1, 2], "p2": []}, work/"truth"/"annotated_labels.json")
print(examined_on(work/"truth", None, ["p0", "p2"], TORSO_CLASSES))
(work/"truth"/"annotated_labels.json").unlink()
test_eq((examined_on(work/"truth", None, ["p0"], TORSO_CLASSES), patients_of_cases(work/"truth", ["p0"])), (None, None))


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
        return np.array([getattr(one, measure) for one in self.scores], float)

    def per_case(self) -> list[dict]:
        "A record for each case and class that was examined."
        rows = []
        for case, one in zip(self.cases, self.scores):
            for c, name in enumerate(self.classes.names):
                if np.isnan(one.ml[c]): continue
                values = {m: plain_value(getattr(one, m)[c]) for m in (*MEASURES, "ml", "predicted_ml")}
                rows.append({"case": case, "structure": name} | values)
        return rows


def class_table(table: VolumeTable, groups: np.ndarray | None) -> pd.DataFrame:
    "A row a class: its cases, the mean of each measure, the interval of the Dice, how often it was missed or invented."
    rows = {}
    for c, name in enumerate(table.classes.names):
        one = slice(c, c + 1)
        means = {m: bootstrap_mean(table.of(m)[:, one], groups, reps=0)["mean"] for m in MEASURES}
        dice = bootstrap_mean(table.of("dice")[:, one], groups)
        counts = {name: int(np.nansum(table.of(name)[:, c])) for name in ("missed", "invented")}
        cases = int((~np.isnan(table.of("dice")[:, c])).sum())
        rows[name] = {"cases": cases, **means, "dice_low": dice["low"], "dice_high": dice["high"], **counts}
    return pd.DataFrame(rows).T.astype({name: int for name in ("cases", "missed", "invented")})


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
    rows = class_table(table, groups).rename_axis("structure").reset_index().to_dict("records")
    facts["missed"], facts["invented"] = (int(np.nansum(table.of(name))) for name in ("missed", "invented"))
    facts["per_class"] = [{key: plain_value(value) for key, value in row.items()} for row in rows]
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

def _finished(table: VolumeTable, groups, tolerance: float) -> dict:
    "The result of an evaluation."
    return {"table": class_table(table, groups), "facts": table_facts(table, groups, tolerance)}

def evaluate_volumes(
    truth: str | Path, # a folder of NIfTI label maps
    prediction: str | Path, # a folder with files of the same names
    classes: str | Path | None = None, # `class_names.json` or a run; None: as the folders say
    annotated: str | None = None, # a JSON, "all" or "present"; None: `annotated_labels.json` beside the truth, else all
    tolerance: float = 2., # of the surface Dice, mm
) -> dict: # "table": `class_table`; "facts": `table_facts`
    "Score label maps in mm. Raises `InputError` for a missing case, another grid or other labels."
    truth, prediction = Path(truth), Path(prediction)
    files = matched_files(truth, prediction)
    named = ClassMap.from_json(classes) if classes else label_names(truth) or label_names(prediction)
    if named: check_same_names(named, prediction)
    table = VolumeTable(list(files), named or _numbered(files))
    known = examined_on(truth, annotated, table.cases, table.classes)
    for pair in nifti_pairs(files):
        examined = known[pair.case] if known else np.ones(len(table.classes), bool)
        if annotated == "present": examined = np.isin(np.arange(1, len(table.classes) + 1), pair.truth)
        table.scores.append(score_pair(pair, examined, tolerance))
    return _finished(table, patients_of_cases(truth, table.cases), tolerance)


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
        raise InputError(f"volume {volume.id}: {volume.slices} of its {volume.entry['shape'][axis]} slices are in the "
                         "folder; distances in mm need all of them (import without --every and --per-volume)")
    if volume.entry["positions"]:
        raise InputError(f"volume {volume.id}: its slices are unevenly spaced; distances in mm need an even grid")

def evaluate_csv_volumes(
    truth: str | Path, # the true masks, the CSV of a folder made from volumes
    prediction: str | Path, # a submission
    tolerance: float = 2., # of the surface Dice, mm
) -> dict: # as `evaluate_volumes`
    "Score a submission in mm, on the volumes that its images were cut from; every class counts as examined."
    truth = Path(truth)
    folder, split = truth.parent, truth.name.split(".")[0].removeprefix("y_")
    classes, (entries, _) = read_classes(folder), read_index(folder, split)
    table, groups = VolumeTable([], classes), []
    pairs = zip(predicted_volumes(truth, folder, split), predicted_volumes(prediction, folder, split))
    for true, pred in pairs:
        affine = np.array(true.entry["affine"])
        _whole(true, slice_axes(affine, true.entry["orientation"])[0][0])
        pair = Pair(true.id, true.labels, pred.labels, affine)
        table.cases.append(true.id)
        groups.append(entries[true.id]["patient"])
        table.scores.append(score_pair(pair, np.ones(len(classes), bool), tolerance))
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
