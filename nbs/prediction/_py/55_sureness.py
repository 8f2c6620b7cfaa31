# %% [markdown]
# # How sure a prediction is
#
# > For each slice and structure the Dice to expect, the chance that it is there, and how much of its edge is uncertain; as a CSV.

# %%
#| default_exp prediction.sureness

# %%
#| export
import contextlib
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ctseg.core.atomic import atomic_path
from ctseg.core.tables import csv_cell
from ctseg.data.lazy import LazyPixels
from ctseg.data.slices import SliceSet
from ctseg.inference.confidence import soft_dice_confidence, sum_by_class
from ctseg.inference.expected_dice import ExpectedDice, drawn_structures
from ctseg.inference.loop import over_slices
from ctseg.inference.rule import decide
from ctseg.prediction.predictor import Predictor, RunMember
from ctseg.prediction.saved import SavedCalibration, read_metrics

# %%
#| hide
import tempfile

from fastcore.test import test_close

from ctseg.core.anatomy import ClassMap
from ctseg.core.device import pick_device
from ctseg.inference.loop import Member
from ctseg.losses.registry import create_loss
from ctseg.models.zoo import create_model

# %% [markdown]
# `ctseg predict … --confidence sure.csv` writes a row for each slice and structure:
#
# | column | what it says |
# |---|---|
# | `image`, `class` | the slice, and the structure's name |
# | `pixels` | how many are drawn |
# | `presence` | the chance that the structure is on the slice. For a drawn one by the model that was fitted on held-out slices, from its peak probability and its area; otherwise the peak probability |
# | `expected_dice` | the Dice to expect: the [Soft Dice Confidence](../inference/10_confidence.ipynb), times the chance that it is there at all (an invention scores 0). Empty where nothing is drawn |
# | `uncertain_edge` | of the pixels at the edge of what is drawn, the share whose probability is below 0.75. Empty where nothing is drawn |
# | `calibrated` | 1: from calibrated probabilities (logits divided by the runs' temperatures), with a chance fitted for them; 0: from the network's own, because a run was not calibrated |
#
# A short list of slices to look at again is this table sorted by `expected_dice`.

# %%
#| export
SURE = 0.75  # probability from which a pixel at the edge counts as certain


def edge_pixels(label: torch.Tensor) -> torch.Tensor:
    "bool [B, H, W]: pixels of a structure with a neighbour (of 4) of another label, or at the border of the image."
    here = label.long()
    framed = F.pad(here, (1, 1, 1, 1), value=-1)
    columns, rows = framed[:, 1:-1], framed[:, :, 1:-1]
    differs_below = rows[:, 2:] != here
    differs_above = rows[:, :-2] != here
    differs_left = columns[:, :, :-2] != here
    differs_right = columns[:, :, 2:] != here
    differs = differs_below | differs_above | differs_left | differs_right
    return (label > 0) & differs


def uncertain_edge(prob: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    "f32 [B, C]: the share of a structure's edge pixels with a probability below `SURE`; NaN where it is not drawn."
    C = prob.shape[1]
    edge = edge_pixels(label)
    chosen = (label.long() - 1).clamp(min=0)
    of_chosen = prob.gather(1, chosen[:, None])[:, 0]
    unsure = edge & (of_chosen < SURE)
    unsure_pixels = sum_by_class(unsure.float(), label, C)
    all_pixels = sum_by_class(edge.float(), label, C)
    share = unsure_pixels/all_pixels.clamp(min=1)
    return torch.where(all_pixels > 0, share, torch.nan)


# %%
label = torch.zeros(1, 5, 5, dtype=torch.uint8)
label[0, 1:4, 1:4] = 2
print(edge_pixels(label)[0].int())
prob = torch.full((1, 2, 5, 5), 0.9)
prob[0, 1, 1] = 0.6  # one of the four sides is blurred
test_close(uncertain_edge(prob, label)[0, 1], 3/8)


# %% [markdown]
# Six of ten structures with a chance of 0.6 should be there. That holds as far as the held-out slices resemble the new ones; a network that was trained on adults does not know that it looks at a child.

# %%
#| export
def presence_chance(
    prob: torch.Tensor, # f32 [B, C, H, W]
    label: torch.Tensor, # [B, H, W]
    expected: ExpectedDice | None, # of the rule; None: the peak probability alone
) -> torch.Tensor: # f32 [B, C]
    "The chance that each structure is on each image."
    peak, area, _ = drawn_structures(label, prob)
    if expected is None: return peak.sigmoid()
    fitted = expected.bias + expected.peak*peak + expected.area*area
    return torch.where(area.isfinite(), fitted, peak).sigmoid()


# %%
#| export
def sureness(
    prob: torch.Tensor,
    label: torch.Tensor,
    expected: ExpectedDice | None = None,
) -> dict[str, torch.Tensor]: # f32 [B, C] each: pixels, presence, expected_dice, uncertain_edge
    "How sure a prediction `label` is by the probabilities `prob`; arguments as of `presence_chance`."
    ones = torch.ones_like(label, dtype=prob.dtype)
    pixels = sum_by_class(ones, label, prob.shape[1])
    presence = presence_chance(prob, label, expected)
    dice = presence*soft_dice_confidence(prob, label)
    return {
        "pixels": pixels,
        "presence": presence,
        "expected_dice": torch.where(pixels > 0, dice, torch.nan),
        "uncertain_edge": uncertain_edge(prob, label),
    }


# %%
for name, values in sureness(prob, label).items():
    print(f"{name:<15}", [round(v, 3) for v in values[0].tolist()])


# %% [markdown]
# If every run was calibrated, these numbers come from calibrated probabilities, even where the labels come from others.

# %%
#| export
@dataclass(frozen=True)
class Judge:
    "Says how sure a predictor is of its labels."
    predictor: Predictor              # with the runs' temperatures, where they have any
    expected: ExpectedDice | None     # fitted for its probabilities
    calibrated: bool
    same: bool                        # its probabilities are those that the labels were decided by

    def __call__(
        self, images: np.ndarray, prob: torch.Tensor, label: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        "`sureness` of labels [B, H, W] decided by `prob` [B, C, H, W], for images uint8 [B, H, W] or [B, K, H, W]."
        if not self.same:
            prob = self.predictor.probabilities(images)
        return sureness(prob, label.to(prob.device), self.expected)


# %%
#| export
def _saved_calibrations(predictor: Predictor) -> list[SavedCalibration]:
    "The calibrations of all members' runs; none unless each member has one."
    saved = []
    for member in predictor.members:
        if not isinstance(member, RunMember) or not member.run: return []
        calibration = read_metrics(member.run, len(predictor.classes)).calibration
        if calibration is None: return []
        saved.append(calibration)
    return saved

def judge_of(predictor: Predictor) -> Judge:
    "The judge of a predictor: itself, or its calibrated twin."
    members = predictor.members
    calibrated = any(member.temperature != 1 for member in members)
    saved = [] if calibrated else _saved_calibrations(predictor)
    if not saved:
        return Judge(predictor, predictor.rule.expected, calibrated, same=True)
    warm = [replace(member, temperature=each.temperature) for member, each in zip(members, saved)]
    twin = replace(predictor, members=warm)
    return Judge(twin, saved[0].rule.expected, calibrated=True, same=False)


# %%
network = create_model("attunet", 1, 3, width=4).eval()
classes = ClassMap.from_names(["liver", "spleen"])
predictor = Predictor([Member(network, create_loss("marginal"))], classes, pick_device("cpu"))
judge = judge_of(predictor)
print("calibrated:", judge.calibrated)


# %%
#| export
def judged(
    predictor: Predictor, slices: SliceSet, batch_size: int = 16,
) -> dict[str, np.ndarray | LazyPixels]:
    """For each slice `labels` uint8 [N, H, W], and f32 [N, C] what `sureness` says of them.

    Labels of slices that are not in memory are not either."""
    filed = ("labels",) if isinstance(slices.images, LazyPixels) else ()
    judge = judge_of(predictor)
    rule = predictor.rule_at(slices.image_shape)

    def step(part: SliceSet) -> dict[str, torch.Tensor]:
        shown = np.asarray(part.seen(predictor.context))
        prob = predictor.probabilities(shown)
        label = decide(prob, rule, predictor.activation)
        sure = judge(shown, prob, label)
        return {"labels": label} | sure
    return over_slices(slices, step, batch_size, filed=filed)


# %%
slices = SliceSet(np.full((2, 16, 16), 90, np.uint8), classes=classes)
print({name: values.shape for name, values in judged(predictor, slices).items()})

# %%
#| export
COLUMNS = ("image", "class", "pixels", "presence", "expected_dice", "uncertain_edge", "calibrated")
Note = Callable[[list[str], np.ndarray, torch.Tensor, torch.Tensor], None]  # names, images, prob, label


def table_rows(judge: Judge, names: list[str], columns: dict[str, torch.Tensor]) -> Iterator[list[Any]]:
    "A row an image and class, in the order of `COLUMNS`; `columns`: name → tensor [images,C]."
    for n, image in enumerate(names):
        for c, name in enumerate(judge.predictor.classes.names):
            row: list[Any] = [csv_cell(image), csv_cell(name), int(columns["pixels"][n, c])]
            for key in COLUMNS[3:6]:
                value = float(columns[key][n, c])
                row.append("" if np.isnan(value) else f"{value:.4f}")
            yield [*row, int(judge.calibrated)]


# %%
#| export
@contextlib.contextmanager
def write_sureness(path: str | Path, predictor: Predictor) -> Iterator[Note]:
    "Yields what takes names, images, probabilities and labels of a batch; the file is complete or not there."
    judge = judge_of(predictor)
    with atomic_path(path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        def note(names: list[str], images: np.ndarray, prob: torch.Tensor, label: torch.Tensor) -> None:
            sure = judge(images, prob, label)
            columns = {key: values.cpu() for key, values in sure.items()}
            out.writerows(table_rows(judge, names, columns))
        yield note


# %%
images = np.full((1, 5, 5), 90, np.uint8)
with tempfile.TemporaryDirectory() as d:
    with write_sureness(Path(d)/"sure.csv", predictor) as note: note(["0.png"], images, prob, label)
    print((Path(d)/"sure.csv").read_text())
