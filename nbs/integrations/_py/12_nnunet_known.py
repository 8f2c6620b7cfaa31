# %% [markdown]
# # What nnU-Net is not told
#
# > Who examined what, for the cases of an nnU-Net data set: the file, the loss that reads it, and scores that count nothing unknown.

# %%
#| default_exp integrations.nnunet_known

# %%
#| export
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.errors import InputError
from ctseg.data.batches import Batch, known_map
from ctseg.io.label_names import read_examined_cases
from ctseg.losses.partial import PartialLoss, as_given
from ctseg.methods.unimatch import complete_batch

# %%
#| hide
import math
import shutil
import tempfile

from fastcore.test import test_close, test_eq, test_fail

from ctseg.core.json_files import write_json
from ctseg.losses.registry import create_loss

# %% [markdown]
# A label map of nnU-Net holds a number a voxel, and 0 is background. Nothing in it says that nobody looked for the kidneys of this patient. So a
# file beside `dataset.json` says it: for each case the classes that were examined, as everywhere in this package. An empty list is a case without labels.

# %%
work = Path(tempfile.mkdtemp())
classes = ClassMap.from_names(["liver", "kidney"])
write_json({"p1": ["liver", "kidney"], "p2": ["liver"], "p3": []}, work/"annotated_labels.json")

# %% [markdown]
# ## The file
#
# nnU-Net keeps the data as they came in `nnUNet_raw`, and copies `dataset.json` into `nnUNet_preprocessed`. The file is looked for in both, first where
# its author edits it.

# %%
#| export
EXAMINED_FILE = "annotated_labels.json"

def beside_raw(dataset: str, preprocessed: Path, name: str) -> list[Path]:
    "Where a file of a data set may lie: with the raw data, or with the preprocessed ones."
    raw = os.environ.get("nnUNet_raw")
    folders = [Path(raw)/dataset, preprocessed] if raw else [preprocessed]
    return [folder/name for folder in folders]

def examined_file(
    dataset: str, # Dataset501_ctseg
    preprocessed: Path, # the folder of the data set in nnUNet_preprocessed
) -> Path:
    "The file that says who examined what; `InputError` if there is none: nobody guesses."
    places = beside_raw(dataset, preprocessed, EXAMINED_FILE)
    for path in places:
        if path.exists(): return path
    raise InputError(f"{places[0]}: no such file, so absent cannot be told from unknown; "
                     'write {"case": ["class", …]} for each case, [] for one without labels')


# %%
print(examined_file("Dataset501_ctseg", work).name)
test_fail(lambda: examined_file("Dataset501_ctseg", work/"other"), contains="absent cannot be told")


# %%
#| export
class ExaminedCases:
    "Which classes were examined on the cases of a data set. `InputError` for a file that does not say it."
    def __init__(self, path: Path, classes: ClassMap):
        self.path = path
        self.classes = classes
        self.table = read_examined_cases(path, classes)

    def of(self, case: str) -> np.ndarray: # bool [C]
        "The classes examined on a case; `InputError` for a case that the file does not have."
        if case not in self.table:
            raise InputError(f"{self.path}: does not say what was examined on {case}; "
                             "add it, [] for a case without labels")
        return self.table[case]

    def batch(self, cases: Iterable[str]) -> torch.Tensor: # bool [B,C]
        "The classes examined on the cases of a batch, bool [B,C]."
        return torch.from_numpy(np.stack([self.of(str(case)) for case in cases]))

    def labelled(self, cases: Iterable[str]) -> list[str]:
        "The cases on which anything was examined."
        return [case for case in cases if self.of(case).any()]

    def check_drawn(self, case: str, drawn: Iterable[int]) -> None:
        "`InputError` for a class that is drawn on a case, and was not examined there."
        known = self.of(case)
        for id in drawn:
            if not known[id - 1]:
                name = self.classes.names[id - 1]
                raise InputError(f"{self.path}: {name} is drawn on {case}, and not listed as examined there; "
                                 "add it, or take it out of the labels")


# %%
examined = ExaminedCases(work/"annotated_labels.json", classes)
print(examined.batch(["p2", "p3"]).tolist(), examined.labelled(["p1", "p2", "p3"]))
examined.check_drawn("p2", [1])
test_fail(lambda: examined.check_drawn("p2", [1, 2]), contains="kidney is drawn on p2")
test_fail(lambda: examined.of("p4"), contains="what was examined on p4")


# %% [markdown]
# ## The loss
#
# nnU-Net calls its loss with logits and targets, at several resolutions one after the other (*deep supervision*). It says nothing of the cases. The batch
# does, and it comes first. So before each step the loss is told what is known of the cases.

# %%
#| export
class CaseLoss(nn.Module):
    "A loss for partial labels in nnU-Net's place: `loss(logits [B,C+1,…], target [B,1,…])`, after `tell`."
    def __init__(self,
        loss: PartialLoss,
        ignore: int | None = None, # nnU-Net's label for pixels to be ignored
    ):
        super().__init__()
        self.loss = loss
        self.ignore = ignore
        self.known: torch.Tensor | None = None

    def tell(self, known: torch.Tensor, gather=as_given) -> None:
        "Say what was examined on the cases of the next step, bool [B,C]. `gather`: as of a `PartialLoss`."
        self.known = known
        self.loss.gather = gather

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        "The loss, a scalar. Further channels of the target say voxel by voxel what is known of each class."
        if self.known is None:
            raise InputError("CaseLoss: say first what is known of the cases")
        mask = target[:, 0].long()
        known = target[:, 1:].bool() if target.shape[1] > 1 else self.known
        if self.ignore is not None:
            mask = mask.masked_fill(mask == self.ignore, IGNORE)
        return self.loss(logits, mask, known)


# %% [markdown]
# Four voxels of `p2`, where the liver was examined and the kidney was not. The network takes the last voxel for kidney. With nnU-Net's reading of the
# zero that is wrong; here it costs next to nothing.

# %%
loss = CaseLoss(create_loss("marginal"), ignore=3)
target = torch.tensor([1, 0, 0, 0]).view(1, 1, 1, 1, 4)
logits = torch.tensor([[0., 6, 0], [6, 0, 0], [6, 0, 0], [0, 0, 6]]).T.reshape(1, 3, 1, 1, 4)
for name, known in (("as it is", examined.batch(["p2"])), ("unknown as background", examined.batch(["p1"]))):
    loss.tell(known)
    print(f"{name:22} {loss(logits, target).item():.3f}")
loss.tell(examined.batch(["p3"]))
test_eq(loss(logits, target*0).item(), 0)
ignored = target.clone()
ignored[..., 3] = 3
loss.tell(examined.batch(["p1"]))
test_close(loss(logits, ignored), loss(logits[..., :3], target[..., :3]), 1e-6)


# %% [markdown]
# ## A teacher's answers
#
# Where the truth says nothing, an averaged teacher may, if it is sure ([how](../methods/50_unimatch.ipynb)). What it settles goes into the target
# as a label, and a further channel for each class says what is known of it now.

# %%
#| export
def completed_target(
    target: torch.Tensor, # int [B,1,…]
    logits: torch.Tensor, # the teacher's, [B,C+1,…]
    known: torch.Tensor, # bool [B,C]
    tau: float, # certainty at which the teacher settles a voxel
    learnt: torch.Tensor | None = None, # bool [C], the classes that the teacher has learnt; None: all
) -> torch.Tensor: # uint8 [B,1+C,…]: labels; 1 where a class is known
    "The target with a sure teacher's answers where the truth says nothing; truth and ignored voxels stay."
    prob = logits.float().softmax(1)[:, 1:]
    truth = Batch(prob, target[:, 0].long(), known)
    whole = complete_batch(truth, prob, tau, "softmax")
    mask, settled = whole.mask, whole.known.all(1, keepdim=True)
    if learnt is not None:
        of_learnt = F.pad(learnt, (1, 0), value=True)[mask.clamp(0, len(learnt))]
        kept = of_learnt | (truth.mask != 0)
        mask, settled = torch.where(kept, mask, 0), settled & kept[:, None]
        settled = settled & known_map(learnt[None], mask.shape[1:])
    now_known = known_map(known, mask.shape[1:]) | settled
    return torch.cat([mask[:, None].to(torch.uint8), now_known], 1)


# %%
completed = completed_target(target, logits, examined.batch(["p2"]), tau=0.9)
print("labels ", completed[0, 0].flatten().tolist())
print("known  ", completed[0, 1:].flatten(1).tolist())
test_eq(completed[0, 0].flatten().tolist(), [1, 0, 0, 2])
doubtful = completed_target(target, logits/6, examined.batch(["p2"]), tau=0.9)
test_eq(doubtful[0].flatten(1).tolist(), [[1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])

# %% [markdown]
# A teacher that has not learnt the kidney is sure of background where one is. So of a class that it has not learnt it is not believed: neither that a voxel is of
# that class, nor that it is not. Here the liver is learnt and the kidney is not. On the unlabelled `p3` the last voxel stays open, and a voxel of sure background is settled
# for the liver alone.

# %%
learnt = torch.tensor([True, False])
nothing, p3 = torch.zeros_like(target), examined.batch(["p3"])
half = completed_target(nothing, logits, p3, tau=0.9, learnt=learnt)
print("labels ", half[0, 0].flatten().tolist())
print("known  ", half[0, 1:].flatten(1).tolist())
test_eq(half[0].flatten(1).tolist(), [[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
kidney = torch.tensor([0., 0, 9]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 1, 4)
loss.tell(p3)
for said in (False, True):
    wrong = torch.tensor([[0]*4, [0, 1, 1, 0], [0, said, said, 0]]).view(1, 3, 1, 1, 4)  # background, settled
    test_eq(loss(kidney, wrong).item() > 1, said)


# %% [markdown]
# ## Scores
#
# At the end nnU-Net predicts the held-out cases and counts each class on each. Where a class was not examined, whatever is predicted would count as
# false. There is no score of it.

# %%
#| export
def mean_score(rows: list[dict]) -> dict[str, float]:
    "The mean of each score over some rows, without those that are not there; NaN if none is."
    means = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows], float)
        scored = values[~np.isnan(values)]
        means[name] = float(scored.mean()) if len(scored) else float("nan")
    return means


# %%
print(mean_score([{"Dice": .8, "FP": 3}, {"Dice": float("nan"), "FP": 5}]))


# %%
#| export
def examined_row(row: dict, known: np.ndarray) -> dict:
    "What nnU-Net says of a case, with NaN for the classes that were not examined (bool [C])."
    metrics = {}
    for label, scores in row["metrics"].items():
        unknown = dict.fromkeys(scores, float("nan"))
        metrics[label] = scores if known[int(label) - 1] else unknown
    return {**row, "metrics": metrics}

def examined_scores(
    summary: dict, # of nnU-Net: metric_per_case, mean, foreground_mean
    examined: ExaminedCases,
    ending: str, # of the files, .nii.gz
) -> dict: # the same, with NaN for the classes that were not examined, and the means without them
    "nnU-Net's scores of what was examined."
    rows = []
    for row in summary["metric_per_case"]:
        case = Path(row["prediction_file"]).name.removesuffix(ending)
        rows.append(examined_row(row, examined.of(case)))
    mean = {}
    for label in summary["mean"]:
        mean[label] = mean_score([row["metrics"][label] for row in rows])
    foreground = mean_score(list(mean.values()))
    return {"metric_per_case": rows, "mean": mean, "foreground_mean": foreground}


# %% [markdown]
# On `p2` the network found the kidney that nobody looked for. nnU-Net counts that as a Dice of 0.

# %%
def scored(case, liver, kidney):
    "A row of a summary."
    metrics = {"1": {"Dice": liver}, "2": {"Dice": kidney}}
    return {"prediction_file": f"here/{case}.nii.gz", "metrics": metrics}

summary = {
    "metric_per_case": [scored("p1", .9, .8), scored("p2", .7, 0.)],
    "mean": {"1": {"Dice": .8}, "2": {"Dice": .4}},
    "foreground_mean": {"Dice": .6},
}
right = examined_scores(summary, examined, ".nii.gz")
print({label: round(scores["Dice"], 3) for label, scores in right["mean"].items()}, right["foreground_mean"])
test_close(right["foreground_mean"]["Dice"], .8)
assert math.isnan(right["metric_per_case"][1]["metrics"]["2"]["Dice"])
shutil.rmtree(work)
