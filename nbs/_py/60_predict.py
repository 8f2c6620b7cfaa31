# %% [markdown]
# # Prediction
#
# > From a trained run to a label map: probabilities, the decision rule, the submission file.
#
# - skip_showdoc: true

# %%
#| default_exp predict

# %% [markdown]
# A network gives probabilities; the challenge wants one label a pixel. What lies between is a **decision rule**, and it deserves more care than it usually gets, because of the
# metric: *a structure predicted on a slice where it is absent scores 0 for that slice*, as badly as a missed one, however few pixels were invented. A few stray pixels of larynx in the abdomen cost as much as not
# finding a larynx at all.

# %%
#| export
import itertools, warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

from ctseg.anatomy import ClassMap
from ctseg.data import SliceSet, write_masks
from ctseg.device import DevicePlan, pick_device
from ctseg.files import InputError, read_json
from ctseg.losses import create_loss
from ctseg.metrics import dice_table
from ctseg.models import create_model
from ctseg.train import Recipe, Run, argmax_labels, load_weights

# %%
#| hide
import matplotlib.pyplot as plt
from fastcore.test import test_eq, test_close


# %% [markdown]
# ## The rule
#
# Two numbers, the same for all classes. (Thresholds per class look tempting and overfit: three entrants of the challenge found so independently.)
#
# * **threshold**: a pixel is foreground where its most probable structure reaches this probability. `None` compares with the background's own probability instead (plain argmax).
# * **gate**: a structure stays on a slice only if its probability reaches this value *somewhere* on the slice. It asks "is it here at all?", which is a different question from "is this pixel part of it?".

# %%
#| export
@dataclass(frozen=True)
class Rule:
    "How probabilities become labels; one threshold and one gate for all classes."
    threshold: float|None = None   # least probability of a foreground pixel; None: more probable than background
    gate: float = 0.0              # least peak probability of a class on the image

def decide(
    prob: torch.Tensor, # [B, C, H, W] foreground probabilities
    rule: Rule,
    activation: str, # "softmax" or "sigmoid"
) -> torch.Tensor: # uint8 [B, H, W]; 0 is background
    "Labels from probabilities by `rule`."
    here = prob.amax((2, 3), keepdim=True) >= rule.gate
    if rule.threshold is None and activation == "softmax": background = 1 - prob.sum(1)
    else: background = 0.5 if rule.threshold is None else rule.threshold
    best, label = (prob*here).max(1)
    return torch.where(best > background, label + 1, 0).to(torch.uint8)


# %% [markdown]
# Two structures on one row of pixels. The second never gets beyond 0.6, and only at one pixel: argmax invents it, the gate does not.

# %%
row = torch.tensor([[.9, .9, .8, .2, .1, .0, .0], [.0, .0, .1, .2, .3, .6, .3]]).reshape(1, 2, 1, 7)
for rule in [Rule(), Rule(threshold=0.25), Rule(gate=0.7)]: print(f"{str(rule):<38}", decide(row, rule, "softmax").flatten().tolist())
test_eq(decide(row, Rule(), "softmax"), argmax_labels(row, "softmax"))
test_eq(decide(row, Rule(), "sigmoid"), argmax_labels(row, "sigmoid"))
test_eq(decide(row, Rule(gate=0.7), "softmax").flatten().tolist(), [1, 1, 1, 0, 0, 0, 0])


# %% [markdown]
# ## A predictor
#
# It holds one or more trained runs and gives probabilities at the images' own size. Several runs are averaged *as probabilities*, with equal weights.

# %%
#| export
@dataclass
class Predictor:
    "Probabilities of one or more models, averaged."
    models: list[nn.Module]
    losses: list[nn.Module]          # each knows how its model's logits become probabilities
    image_sizes: list[int|None]      # the size each network works at; None: the image's own
    classes: ClassMap
    plan: DevicePlan
    rule: Rule = Rule()

    @property
    def activation(self) -> str:
        kinds = {l.activation for l in self.losses}
        return kinds.pop() if len(kinds) == 1 else "sigmoid"  # mixed ensembles have no background channel in common

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> torch.Tensor:
        "float32 [B, C, H, W] for uint8 images [B, H, W]."
        x = torch.from_numpy(np.ascontiguousarray(images)).to(self.plan.device)[:, None].float()/255
        total = 0
        for model, loss, size in zip(self.models, self.losses, self.image_sizes): total = total + self._one(model, loss, size, x)
        return total/len(self.models)


# %%
#| export
def _one(self, model, loss, size, x):
    "One model's probabilities, resized back to the image's size where the network works at another."
    small = x if size in (None, x.shape[-1]) and x.shape[-2] == x.shape[-1] else x if size is None else F.interpolate(
        x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.plan.precision, torch.float32)
    with torch.autocast(self.plan.device.type, kind, enabled=kind != torch.float32):
        logits = model(small.contiguous(memory_format=torch.channels_last))
    prob = loss.probabilities(logits.float())
    return prob if prob.shape[-2:] == x.shape[-2:] else F.interpolate(prob, x.shape[-2:], mode="bilinear", align_corners=False)

Predictor._one = _one


# %%
#| export
def load_predictor(
    runs, # one run folder or several
    plan: DevicePlan|None = None,
) -> Predictor:
    "The trained models of finished runs, ready to predict; the rule is that of the first run that has one."
    runs, plan = [Run(r) for r in ([runs] if isinstance(runs, (str, Path)) else runs)], plan or pick_device()
    parts, specs = [], []
    for run in runs:
        if not (run/"recipe.json").exists(): raise InputError(f"{run.folder}: no run here (no recipe.json)")
        if not run.weights.exists(): raise InputError(f"{run.folder}: this run has not finished a phase yet; continue it with `ctseg fit … --resume`")
        specs.append(spec := read_json(run/"recipe.json"))
        parts.append(_load_model(run, spec, plan))
    if len({tuple(s["classes"].items()) for s in specs}) > 1:
        raise InputError(f"{', '.join(str(r.folder) for r in runs)}: these runs know different classes and cannot be averaged")
    classes = ClassMap.from_names(list(specs[0]["classes"].values()))
    models, losses, sizes = map(list, zip(*parts))
    return Predictor(models, losses, sizes, classes, plan, _saved_rule(runs))


# %%
#| export
def _load_model(run: Run, spec: dict, plan: DevicePlan):
    "(model, loss, image size) of one run."
    recipe = Recipe(**spec["recipe"])
    loss = create_loss(recipe.loss, **recipe.loss_options())
    model = create_model(recipe.model, 1, loss.out_chans(len(spec["classes"])), **recipe.model_options(trained=True))
    load_weights(model, run.weights)
    return model.to(plan.device, memory_format=torch.channels_last).eval(), loss, recipe.image_size or None

def _saved_rule(runs: list[Run]) -> Rule:
    for run in runs:
        if (run/"metrics.json").exists() and "rule" in (m := read_json(run/"metrics.json")): return Rule(**m["rule"])
    return Rule()


# %% [markdown]
# ## Labels for many images
#
# Images are read and decided a few at a time, so memory does not grow with their number (the label maps themselves take a byte a pixel).

# %%
#| export
def predict_masks(
    predictor: Predictor,
    images, # uint8 [N, H, W]
    rules: list[Rule]|None = None, # several rules at once, from the same probabilities; default: the predictor's own
    batch_size: int = 16,
) -> np.ndarray: # uint8 [N, H, W], or [R, N, H, W] for several rules
    "Label maps of all images."
    todo = rules or [predictor.rule]
    out = np.zeros((len(todo), *images.shape), np.uint8)
    for i in range(0, len(images), batch_size):
        prob = predictor.probabilities(images[i:i + batch_size])
        for r, rule in enumerate(todo): out[r, i:i + batch_size] = decide(prob, rule, predictor.activation).cpu().numpy()
    return out if rules else out[0]


# %% [markdown]
# ## Choosing the rule
#
# On the held-out annotated slices, all candidate rules are tried on the same probabilities and scored on the examined cells only. The grid is coarse on purpose: with some tens of slices a fine one would fit
# their noise. And a tuned rule must *earn* its place: among rules within a whisker of the best, the one nearest to plain argmax is taken.

# %%
#| export
RULES = [Rule(t, g) for t, g in itertools.product([None, 0.3, 0.4, 0.5, 0.6], [0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])]

def score_rules(predictor: Predictor, held_out: SliceSet, rules: list[Rule] = RULES, batch_size: int = 16) -> list[float]:
    "The challenge's Dice on the examined cells of `held_out` under each rule."
    masks = predict_masks(predictor, held_out.images, rules, batch_size)
    def score(pred):
        table = np.where(held_out.known, dice_table(pred, held_out.masks, len(held_out.classes)), np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a class nobody was examined for has no mean
            return float(np.nanmean(np.nanmean(table, 0)))
    return [score(m) for m in masks]

def choose_rule(predictor: Predictor, held_out: SliceSet, rules: list[Rule] = RULES, margin: float = 0.002) -> tuple[Rule, list[float]]:
    "The simplest rule within `margin` of the best on held-out slices, and the scores of all."
    scores = score_rules(predictor, held_out, rules)
    close = [r for r, s in zip(rules, scores) if s >= max(scores) - margin]
    return min(close, key=lambda r: (r.threshold is not None, r.gate)), scores


# %% [markdown]
# ## A submission

# %%
#| export
def write_submission(masks: np.ndarray, names, path):
    "The challenge's submission: a row `Pixel k` a pixel, a column an image; whole or not at all."
    write_masks(masks, names, path)


# %%
#| hide
import nbdev; nbdev.nbdev_export()
