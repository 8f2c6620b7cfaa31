# %% [markdown]
# # Prediction
#
# > From trained runs to label maps: probabilities, their averages, the decision rule, the submission file.
#
# - skip_showdoc: true

# %%
#| default_exp predict

# %% [markdown]
# A network gives probabilities; the challenge wants one label a pixel. What lies between is a **decision rule**, and it deserves more care than it usually gets, because of the
# metric: *a structure predicted on a slice where it is absent scores 0 for that slice*, as badly as a missed one, however few pixels were invented. A few stray pixels of larynx in the abdomen cost as much as not
# finding a larynx at all.
#
# From the rule we go to the probabilities, from one model to several, from slices in memory to folders that do not fit into it. One principle runs through all of it: **whatever is chosen is chosen on slices that
# the model has never trained on**, and what did not help there stays off.

# %%
#| export
import contextlib, errno, itertools, json, math, os, warnings, zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from skimage.measure import label as components
from torch import nn
import torch.nn.functional as F
from tqdm import tqdm

from ctseg.anatomy import ClassMap
from ctseg.data import SliceSet, _blocks, _explain_rows, _header, _open_csv, _parse_rows, _same_names, image_paths, read_pngs, write_masks
from ctseg.device import DevicePlan, pick_device
from ctseg.files import InputError, atomic_path, read_json, refuse_folder
from ctseg.losses import create_loss
from ctseg.metrics import dice_table, mean_dice
from ctseg.models import create_model
from ctseg.models.base import class_probabilities, load_weights, place
from ctseg.pseudo import soft_dice_confidence
from ctseg.train import Job, Recipe, Run, read_spec

# %%
#| hide
import tempfile
import matplotlib.pyplot as plt
from fastcore.test import test_eq, test_close
from ctseg.data import read_challenge, read_masks
from ctseg.recipes import fit
from ctseg.train import apply_settings, argmax_labels


# %% [markdown]
# ## The rule
#
# First, which pixels; then, which of the structures drawn on a slice to keep. Thresholds and gates are the same for all classes. (Those per class look tempting and overfit: three entrants of the challenge found this independently.)
#
# * **threshold**: a pixel is foreground where its most probable structure reaches this probability. `None` compares with the background's own probability instead (plain argmax).
# * **gate**: a structure stays on a slice only if its probability reaches this value *somewhere* on the slice. It asks "is it here at all?", which is a different question from "is this pixel part of it?".
# * **island**: connected pieces of fewer pixels are removed. The pixels are those of the images the rule was chosen on; at another size the same share of the area is meant.
# * **expected**: a structure stays only if that raises the score to be expected. It answers the gate's question by more than the peak; [below](#is-it-there-at-all).
# * **rescue**: a slice left empty gets its most probable structure after all, if that reaches this value somewhere: an empty answer scores 0 wherever there was something to find.

# %%
#| export
@dataclass(frozen=True)
class ExpectedDice:
    "Which drawn structures to keep, for the highest score to be expected. The chance that one is there has the logit `bias + peak·logit(its peak probability) + area·ln(its share of the image)`. See `fit_expected_dice`."
    bias: float
    peak: float
    area: float
    usual: tuple[float, ...]  # [C] the Dice that each class may expect in general

@dataclass(frozen=True)
class Rule:
    "How probabilities become labels. 0 switches gate, island and rescue off."
    threshold: float|None = None        # least probability of a foreground pixel; None: more probable than background
    gate: float = 0.0                   # least peak probability of a class on the image
    island: int = 0                     # connected pieces of fewer pixels are removed
    rescue: float = 0.0                 # an empty image gets its likeliest class, if that peaks at this or above
    expected: ExpectedDice|None = None  # keep what is worth the risk; None: keep all

    def __str__(self):
        parts = ["argmax" if self.threshold is None else f"threshold {self.threshold:g}"]
        parts += [f"{k} {v:g}" for k in ("gate", "island", "rescue") if (v := getattr(self, k))]
        return ", ".join(parts + ["expected Dice"]*(self.expected is not None))

def read_rule(d: dict) -> Rule:
    "A rule out of a run's `metrics.json`."
    e = d.get("expected")
    return Rule(**d | {"expected": e and ExpectedDice(**e | {"usual": tuple(e["usual"])})})


# %%
#| export
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
    label = torch.where(best > background, label + 1, 0).to(torch.uint8)
    if rule.island: label = drop_islands(label, rule.island)
    if rule.expected: label = keep_expected(label, prob, rule.expected)
    return rescue(label, prob, rule.rescue) if rule.rescue else label


# %%
#| export
def drop_islands(label: torch.Tensor, least: int) -> torch.Tensor:
    "uint8 [B, H, W] without connected pieces (8 neighbours) of fewer than `least` pixels."
    out = label.cpu().numpy().copy()
    for m in out:
        pieces = components(m, background=0, connectivity=2)
        m[(np.bincount(pieces.ravel()) < least)[pieces]] = 0
    return torch.from_numpy(out).to(label.device)

def rescue(label: torch.Tensor, prob: torch.Tensor, least: float) -> torch.Tensor:
    "Give each empty image of `label` its class of highest peak, where it has at least half of it, if the peak reaches `least`."
    peak, cls = prob.amax((2, 3)).max(1)
    one = prob[torch.arange(len(prob)), cls]
    todo = (label == 0).flatten(1).all(1) & (peak >= least)
    drawn = (one >= peak[:, None, None]/2)*(cls + 1)[:, None, None]
    return torch.where(todo[:, None, None], drawn.to(torch.uint8), label)


# %% [markdown]
# Two structures on one row of pixels. The second never gets beyond 0.6, and only at one pixel: argmax invents it. The gate does not, and neither does a least size of two pixels.

# %%
row = torch.tensor([[.9, .9, .8, .2, .1, .0, .0], [.0, .0, .1, .2, .3, .6, .3]]).reshape(1, 2, 1, 7)
for rule in [Rule(), Rule(threshold=0.25), Rule(gate=0.7), Rule(island=2), Rule(threshold=0.95), Rule(threshold=0.95, rescue=0.5)]:
    print(f"{rule!s:<28}", decide(row, rule, "sigmoid").flatten().tolist())
test_eq(decide(row, Rule(), "softmax"), argmax_labels(row, "softmax"))
test_eq(decide(row, Rule(), "sigmoid"), argmax_labels(row, "sigmoid"))
test_eq(decide(row, Rule(gate=0.7), "softmax").flatten().tolist(), [1, 1, 1, 0, 0, 0, 0])
test_eq(decide(row, Rule(threshold=0.95, rescue=0.95), "softmax").max(), 0)  # nothing is likely enough to be rescued


# %% [markdown]
# ## Is it there at all?
#
# To draw a structure on a slice is a bet. A class's score is a mean over the slices where it is drawn or present: a sum $N$ of Dice over a count $D$, so far with the ratio $m = N/D$. Let the network have drawn the class on one more slice, let $p$ be the chance that it is there, and $d$ the Dice that the
# outline would then get.
#
# * Kept and there: the sum gains $d$; the slice is counted in any case.
# * Kept and not there: the sum gains nothing, and the count grows by 1.
#
# To be expected are $N + p\,d$ and $D + (1 - p)$, and such a fraction grows exactly if what is added has a larger ratio than it has itself:
#
# $$\frac{p\,d}{1-p} > m \qquad\text{or}\qquad \frac{p}{1-p} > \frac{m}{d}.$$
#
# **Keep a structure if its odds of being there exceed its usual Dice over the Dice at stake.** Where usual and stake are alike that means $p > 1/2$. But a class that is mostly drawn badly has little to lose: at $m = 0.05$ an outline worth 0.2 is kept from $p = 0.2$ on; and a scrap of a class that usually gets 0.9 must be nearly certain. No gate that is the same for all can do both.
# (Ratios like this, and the thresholds that are best for them: [Koyejo et al. 2014](https://proceedings.neurips.cc/paper/2014/hash/30c8e1ca872524fbf7ea5c519ca397ee-Abstract.html).)
#
# None of the three is known, but each can be estimated without looking at one class alone, which would overfit:
#
# * $d$ is what [Soft Dice Confidence](50_pseudo.ipynb) was made for: the Dice to be expected under the probabilities, if the structure is there;
# * $p$ is a logistic regression over *all* drawn structures of the held-out slices, on their peak probability and their area: three numbers in all;
# * $m$ is the ratio of the sums, over the structures that are kept. Whether one is kept depends on $m$, so the two are found in turns, which soon ends ([Dinkelbach 1967](https://doi.org/10.1287/mnsc.13.7.492)). It is found for each class, but from estimated $p$ and $d$ rather than from the few slices' truth, and held by one slice that scores like all classes together.

# %%
#| export
def drawn_structures(label: torch.Tensor, prob: torch.Tensor) -> torch.Tensor: # f32 [3, B, C]
    "Of every class on every image of `label` [B, H, W]: logit of its peak probability, ln of its share of the image (−inf: not drawn), its Soft Dice Confidence."
    B, C, H, W = prob.shape
    cls = label.flatten(1).long()
    area = prob.new_zeros(B, C + 1).scatter_add_(1, cls, torch.ones_like(cls, dtype=prob.dtype))[:, 1:]
    return torch.stack([prob.amax((2, 3)).clamp(1e-3, 1 - 1e-3).logit(), (area/(H*W)).log(), soft_dice_confidence(prob, label)])

def keep_expected(label: torch.Tensor, prob: torch.Tensor, e: ExpectedDice) -> torch.Tensor:
    "`label` [B, H, W] without the structures whose odds of being there are below usual Dice over expected Dice."
    peak, area, dice = drawn_structures(label, prob)
    odds = (e.bias + e.peak*peak + e.area*area).exp()
    keep = torch.cat([torch.ones_like(odds[:, :1], dtype=torch.bool), odds*dice > torch.tensor(e.usual).to(odds)], 1)
    return label*keep.gather(1, label.flatten(1).long()).view_as(label)


# %%
#| export
def fit_expected_dice(
    found: np.ndarray, # [3, N, C], see `drawn_structures`
    present: np.ndarray, # bool [N, C]: what is there
    known: np.ndarray, # bool [N, C]: what was looked for
) -> ExpectedDice|None: # None: nothing can be learnt where no structure, or every structure, or none of those drawn is there
    "The estimates of *Is it there at all?*, from held-out slices."
    drawn = np.isfinite(found[1]) & known
    x, y = found[:2, drawn].T.astype(float), present[drawn].astype(float)
    if len(y) == 0 or y.min() == y.max(): return None
    mean, spread = x.mean(0), x.std(0) + 1e-6
    z = np.c_[np.ones(len(y)), (x - mean)/spread]
    def loss(w):  # logistic regression; a standard normal prior on both slopes keeps them finite
        t = z@w
        return np.logaddexp(0, t).sum() - y@t + (w[1:]@w[1:])/2, z.T@(expit(t) - y) + np.r_[0, w[1:]]
    w = minimize(loss, np.zeros(3), jac=True).x
    slopes = w[1:]/spread
    p = np.where(drawn, expit(w[0] + ((np.moveaxis(np.where(drawn, found[:2], 0), 0, -1) - mean)@slopes)), 0)
    return ExpectedDice(*(round(float(v), 4) for v in (w[0] - mean@slopes, *slopes)), tuple(usual_dice(p, np.where(drawn, found[2], 0), drawn).round(4).tolist()))

def usual_dice(p: np.ndarray, d: np.ndarray, drawn: np.ndarray) -> np.ndarray: # all [N, C]; -> [C]
    "Dice that each class may expect over its drawn structures, if those are kept that raise it."
    keep = drawn
    for _ in range(100):
        total, count = (keep*p*d).sum(0), (drawn*p).sum(0) + (keep*(1 - p)).sum(0)
        usual = (total + total.sum()/count.sum())/(count + 1)
        before, keep = keep, drawn & (p*d > (1 - p)*usual)
        if (keep == before).all(): break
    return usual


# %% [markdown]
# Two classes on twenty thousand slices, of which the chances and the Dice are known: *large* is drawn well and mostly where it is, *rare* badly and mostly where it is not. The score of each against a gate on the chance alone, and what the rule above makes of it:

# %%
rng = np.random.default_rng(0)
chance = np.stack([rng.beta(3, 1, 20000), rng.beta(0.6, 2, 20000)], 1)
dice = np.stack([rng.beta(12, 2, 20000), rng.beta(1, 3, 20000)], 1)
there = rng.random(chance.shape) < chance
score = lambda keep: (dice*(keep & there)).sum(0)/(keep | there).sum(0)
usual = usual_dice(chance, dice, np.ones_like(there))
gates = np.linspace(0, .95, 39)
by_gate = np.array([score(chance > g) for g in gates])
rule_score = score(chance*dice > (1 - chance)*usual)
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for c, (ax, name) in enumerate(zip(axes, ("large", "rare"))):
    ax.plot(gates, by_gate[:, c], label="a gate on the chance"); ax.axhline(rule_score[c], color="C1", label="expected Dice")
    ax.set(title=name, xlabel="least chance", ylabel="score"); ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False); plt.show()
print("usual Dice", usual.round(3), " best gates", gates[by_gate.argmax(0)].round(2), " scores", by_gate.max(0).round(3), " expected Dice", rule_score.round(3))
assert (rule_score > by_gate.max(0)).all()


# %% [markdown]
# Each class would want another gate, and even with its own it does not get what weighing chance against stake gives the rare one.

# %% [markdown]
# ## A predictor
#
# It holds one or more trained runs and gives probabilities at the images' own size. Several runs are averaged *as probabilities*, with equal weights: averaging masks would throw away how sure each of them was, and weights searched on held-out slices did not
# carry over to the test for those who tried.

# %%
#| export
@dataclass(frozen=True)
class Member:
    "One trained network of an ensemble."
    model: nn.Module
    loss: nn.Module                 # knows how the model's logits become probabilities
    image_size: int|None = None     # the size it works at; None: the images' own
    temperature: float = 1.0        # its logits are divided by this; see calibration
    run: Run|None = None            # where it comes from
    mirror: str|None = None         # the axis it was mirrored along in training, if it was
    trained_at: tuple|None = None   # height and width of the images it was trained on

@dataclass
class Predictor:
    "Probabilities of one or more models, averaged over them and over views."
    members: list[Member]
    classes: ClassMap
    plan: DevicePlan
    rule: Rule = Rule()
    views: int = 1                  # test-time augmentation: views of each image; 1: only the image itself
    rule_size: tuple|None = None    # height and width of the images that rules are meant for; None: any
    tuned: dict|None = None         # Dice out of fold of argmax and of the rule, where it was chosen just now

    @property
    def activation(self) -> str:
        "How the probabilities of a pixel hang together: softmax (with background they sum to 1) or sigmoid."
        kinds = {m.loss.activation for m in self.members}
        return kinds.pop() if len(kinds) == 1 else "sigmoid"  # mixed ensembles have no background channel in common

    @property
    def mirror(self) -> str|None:
        "The axis along which every member has seen mirrored images in training, if there is one."
        axes = {m.mirror for m in self.members}
        return axes.pop() if len(axes) == 1 else None

    def fitted(self, rule: Rule, size) -> Rule:
        "`rule` for images of `size`: an island is the same share of the area as in the images that the rule was chosen on."
        if not rule.island or not self.rule_size or tuple(size) == self.rule_size: return rule
        return replace(rule, island=max(1, round(rule.island*math.prod(size)/math.prod(self.rule_size))))


# %%
#| export
@torch.inference_mode()
def ask(member: Member, x: torch.Tensor, plan: DevicePlan, how: Callable) -> torch.Tensor:
    "f32: what `how` makes of the member's network and images f32 [B, 1, H, W] in 0…1, brought to the size it works at, in the planned precision."
    size = member.image_size
    if size and tuple(x.shape[-2:]) != (size, size): x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(plan.precision, torch.float32)
    with torch.autocast(plan.device.type, kind, enabled=kind != torch.float32): return how(member.model, x).float()

def member_probabilities(member: Member, x: torch.Tensor, plan: DevicePlan) -> torch.Tensor:
    "f32 [B, C, H, W] at the images' size."
    prob = ask(member, x, plan, lambda model, x: class_probabilities(model, member.loss, x, member.temperature))
    return prob if prob.shape[-2:] == x.shape[-2:] else F.interpolate(prob, x.shape[-2:], mode="bilinear", align_corners=False)


# %% [markdown]
# ## Views
#
# *Test-time augmentation*: the network looks at the slice turned a little, or enlarged, its answer is turned back, and the answers are averaged. What it is only sure of from one angle gets less sure.
#
# A mirrored view shows a body with its liver on the wrong side. A network that never saw one in training cannot be expected to make sense of it, so mirrors are used only for runs **trained** with mirrors, along
# their axis, and the left kidney it finds there is the right one: the channels of lateral partners are swapped back.

# %%
#| export
@dataclass(frozen=True)
class View:
    "A way to look at an image, and the way back for its probabilities."
    degrees: float = 0.0
    zoom: float = 1.0
    mirror: str|None = None  # "vertical" or "horizontal"

    def _sample(self, x, inverse=False):
        "x [B, C, H, W] turned and enlarged about its middle, or back; 0 outside the frame."
        (h, w), a = x.shape[-2:], math.radians(self.degrees)
        m = np.array([[math.cos(a), -math.sin(a)*h/w], [math.sin(a)*w/h, math.cos(a)]])/self.zoom
        theta = torch.tensor(np.c_[np.linalg.inv(m) if inverse else m, [0, 0]], dtype=x.dtype, device=x.device)
        grid = F.affine_grid(theta.expand(len(x), 2, 3), x.shape, align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", align_corners=False)

    def show(self, image: torch.Tensor) -> torch.Tensor:
        "f32 [B, 1, H, W] as seen in this view."
        if self.mirror: image = image.flip({"vertical": -2, "horizontal": -1}[self.mirror])
        return image if (self.degrees, self.zoom) == (0, 1) else self._sample(image)

    def undo(self, prob: torch.Tensor, classes: ClassMap) -> tuple[torch.Tensor, torch.Tensor|float]:
        "Probabilities of the view, put back onto the image, and how much of each pixel the view had in its frame."
        seen = 1.0
        if (self.degrees, self.zoom) != (0, 1): prob, seen = self._sample(prob, True), self._sample(torch.ones_like(prob[:, :1]), True)
        if self.mirror: prob = prob.flip({"vertical": -2, "horizontal": -1}[self.mirror])[:, classes.swap[1:] - 1]
        return prob, seen


# %%
#| export
_TURNS = [(0, 1), (8, 1), (-8, 1), (0, 1.08), (0, 1/1.08), (8, 1.08), (-8, 1/1.08), (-8, 1.08), (8, 1/1.08)]

def tta_views(n: int, mirror: str|None = None) -> list[View]:
    "The first `n` views, the plain one first; with `mirror` every second one is mirrored along that axis."
    views = [View(d, z, m) for d, z in _TURNS for m in ([None, mirror] if mirror else [None])]
    if not 1 <= n <= len(views): raise InputError(f"{n} views (--tta): expected 1 to {len(views)}" + ("" if mirror else "; mirrored ones only where every run was trained with mirror=vertical or mirror=horizontal"))
    return views[:n]

def probabilities(self, images: np.ndarray) -> torch.Tensor:
    "float32 [B, C, H, W] for uint8 images [B, H, W]."
    x = torch.from_numpy(np.ascontiguousarray(images)).to(self.plan.device)[:, None].float()/255
    total, weight = 0, 0
    for view in tta_views(self.views, self.mirror):
        seen = view.show(x)
        mean = sum(member_probabilities(m, seen, self.plan) for m in self.members)/len(self.members)
        prob, part = view.undo(mean, self.classes)
        total, weight = total + prob, weight + part
    if not (total := total/weight).sum().isfinite(): raise self._not_finite(x)  # NaN is above no threshold: the submission would be empty
    return total

def _not_finite(self, x: torch.Tensor) -> InputError: # x f32 [B, 1, H, W]
    "The error for probabilities that are no numbers; it names the runs they come from."
    bad = [m for m in self.members if not member_probabilities(m, x, self.plan).sum().isfinite()] or self.members
    remedy = "its numbers are too large for that precision: predict with --precision fp32, or train with --set precision=fp32" if self.plan.precision != "fp32" else "its weights are damaged, or the training went wrong: train it again with a smaller lr"
    return InputError(f"{', '.join(str(m.run.folder) for m in bad if m.run) or 'the model'}: the probabilities are not finite (in {self.plan.precision}); {remedy}")

Predictor.probabilities, Predictor._not_finite = probabilities, _not_finite


# %% [markdown]
# Does a view's way back undo its way there? Take a "network" that answers with the image itself, so that its probabilities must come back where they were. And let it call everything in the upper half *left*: mirrored, the lower
# half is at the top and is called left, which means right.

# %%
class Echo(nn.Module):
    "Answers with the image in the channel 'left' where it lies in the upper half, in 'right' in the lower half."
    activation = "sigmoid"
    def forward(self, x):
        upper = (torch.arange(x.shape[-2]) < x.shape[-2]//2)[:, None]
        return torch.cat([x*upper, x*~upper], 1)
    def probabilities(self, logits): return logits

y, x = np.mgrid[:60, :44]
spots = 255*np.exp(-((y - 18)**2 + (x - 14)**2)/60) + 200*np.exp(-((y - 44)**2 + (x - 30)**2)/40)
image = torch.tensor(spots/255)[None, None].float()
two, echo = ClassMap.from_names(["left", "right"]), Echo()
fig, ax = plt.subplots(2, 5, figsize=(10, 4.6), layout="constrained")
for (top, bottom), view in zip(ax.T, [View(), View(8), View(0, 1.3), View(-20, 0.8), View(8, 1.1, "vertical")]):
    shown = view.show(image)
    back, seen = view.undo(echo(shown), two)
    top.imshow(shown[0, 0], cmap="gray", vmin=0, vmax=1); bottom.imshow(np.dstack([back[0, 0], back[0, 1], 0*back[0, 0]]).clip(0, 1))
    top.set_title(f"{view.degrees:g}°, x{view.zoom:g}" + (", mirrored" if view.mirror else ""), fontsize=9)
    whole = torch.as_tensor(seen).expand(1, 1, 60, 44) > 0.99
    test_close(back.sum(1, keepdim=True)[whole], image[whole], eps=0.05)  # two resamplings blur a little
for a in ax.flat: a.set(xticks=[], yticks=[])
ax[0, 0].set_ylabel("what it sees"); ax[1, 0].set_ylabel("its answer, put back\nred: left, green: right")
left, right = View(mirror="vertical").undo(echo(View(mirror="vertical").show(image)), two)[0][0]
test_close(left[:30], image[0, 0, :30]); test_close(right[30:], image[0, 0, 30:])  # to the bit: the upper spot is left again

# %%
plain = Predictor([Member(echo, echo, mirror="vertical")]*2, two, pick_device("cpu"))
images = spots[None].round().astype(np.uint8)
test_close(plain.probabilities(images), echo(torch.tensor(images)[:, None]/255))
many = replace(plain, views=18)
test_close(many.probabilities(images), plain.probabilities(images), eps=0.12)
test_eq(len(tta_views(5)), 5)
lost = Predictor([Member(echo, echo)], two, pick_device("cpu"))
lost.members[0] = replace(lost.members[0], model=lambda x: torch.full((len(x), 2, *x.shape[-2:]), torch.nan))
for wrong in (lambda: tta_views(10), lambda: tta_views(0), lambda: lost.probabilities(images)):
    try: wrong()
    except InputError as e: print(e)


# %% [markdown]
# ## Loading runs
#
# Runs can be averaged if they know the same classes in the same order. The rule is that of the first run that has one; for an ensemble a rule of its own is chosen [below](#an-ensemble-is-tuned-out-of-fold).
#
# They predict in the precision they were trained in. A network that somebody trained in float32, because float16 could not hold its numbers, must not be asked in float16 on the day it counts.

# %%
#| export
def load_predictor(
    runs, # one run folder or several
    plan: DevicePlan|str|None = None, # or a device such as "cpu", in the precision the runs were trained in; None: the device at hand
    views: int = 1, # of each image, see `tta_views`
    calibrated: bool = False, # divide logits by the temperature that each run has in its metrics.json
) -> Predictor:
    "The trained models of finished runs, ready to predict; the rule is that of the first run that has one."
    runs = [Run(r) for r in ([runs] if isinstance(runs, (str, Path)) else runs)]
    specs = [run_spec(r) for r in runs]
    if not isinstance(plan, DevicePlan): plan = _plan_as_trained(specs, plan or "auto")
    if odd := [r for r, s in zip(runs, specs) if list(s["classes"].values()) != list(specs[0]["classes"].values())]:
        raise InputError(f"{odd[0].folder}: knows other classes than {runs[0].folder}; runs of different classes cannot be averaged")
    members = [load_member(run, spec, plan, calibrated) for run, spec in zip(runs, specs)]
    rule, size = _saved_rule(runs, calibrated)
    predictor = Predictor(members, ClassMap.from_names(list(specs[0]["classes"].values())), plan, rule, views, size)
    tta_views(views, predictor.mirror)  # an impossible number is told now
    return predictor

def _plan_as_trained(specs: list[dict], device: str) -> DevicePlan:
    "The device in the most exact precision that any of the runs asked for; in its usual one where it has no such."
    wishes = {s["recipe"].get("precision", "auto") for s in specs} - {"auto"}
    for precision in ("fp32", "bf16", "fp16"):
        if precision in wishes:
            with contextlib.suppress(InputError): return pick_device(device, precision)
    return pick_device(device)

def run_spec(run: Run, weights: bool = True) -> dict: # `weights`: there must be some already
    "The `recipe.json` of a run."
    if not (run/"recipe.json").exists(): raise InputError(f"{run.folder}: no run here (no recipe.json)")
    if weights and not run.weights.exists(): raise InputError(f"{run.folder}: this run has not finished a phase yet; continue it with `ctseg fit … --resume`")
    return read_spec(run/"recipe.json")


# %%
#| export
def load_member(run: Run, spec: dict, plan: DevicePlan, calibrated: bool = False, weights: Path|None = None) -> Member:
    "The network of one run (its final one, or another file of `weights`)."
    recipe = Recipe(**spec["recipe"])
    loss = create_loss(recipe.loss, **recipe.loss_options())
    model = create_model(recipe.model, 1, loss.out_chans(len(spec["classes"])), **recipe.model_options(len(spec["classes"]), trained=True))
    load_weights(model, weights or run.weights)
    return Member(place(model, plan.device).eval(), loss, recipe.image_size or None,
                  _calibration(run)["temperature"] if calibrated else 1.0, run,
                  recipe.mirror or None, tuple(spec["image_shape"]))

def _calibration(run: Run) -> dict:
    found = read_json(run/"metrics.json").get("calibration") if (run/"metrics.json").exists() else None
    if not found: raise InputError(f"{run.folder}: this run was not calibrated: it held out slices of fewer than two patients or groups, or is older (then add --tune DATA); leave out --calibrated")
    return found

def _saved_rule(runs: list[Run], calibrated: bool = False) -> tuple[Rule, tuple]:
    "The rule, and height and width of the images it was chosen on."
    size = lambda run: tuple(run_spec(run)["image_shape"])
    if calibrated: return read_rule(_calibration(runs[0])["rule"]), size(runs[0])
    for run in runs:
        if (run/"metrics.json").exists() and "rule" in (m := read_json(run/"metrics.json")): return read_rule(m["rule"]), size(run)
    return Rule(), size(runs[0])


# %% [markdown]
# ## Labels for slices in memory

# %%
#| export
def predict_masks(
    predictor: Predictor,
    images, # uint8 [N, H, W]
    rules: list[Rule]|None = None, # several rules at once, from the same probabilities; default: the predictor's own
    batch_size: int = 16,
) -> np.ndarray: # uint8 [N, H, W], or [R, N, H, W] for several rules
    "Label maps of all images."
    todo = [predictor.fitted(r, images.shape[1:]) for r in rules or [predictor.rule]]
    out = np.zeros((len(todo), *images.shape), np.uint8)
    for i in range(0, len(images), batch_size):
        prob = predictor.probabilities(images[i:i + batch_size])
        for r, rule in enumerate(todo): out[r, i:i + batch_size] = decide(prob, rule, predictor.activation).cpu().numpy()
    return out if rules else out[0]


# %% [markdown]
# ## Choosing the rule
#
# On held-out annotated slices, candidate rules are tried on the same probabilities and scored on the examined cells only. The grid of thresholds is coarse on purpose: with some tens of slices a fine one would fit
# their noise. Each threshold draws other structures, so each gets its own estimates of what to keep; then the best threshold is taken. And a tuned rule must *earn* its place: among those within a whisker of the best, the plainest is taken. Then the small repairs get their chance, one after the other, on top of what was chosen: least sizes of islands, as shares of the slice's area, and
# the rescue of empty slices. On most data they earn nothing and stay off.
#
# What the expected Dice brings over the gate that was chosen here before it, and over plain argmax, is measured on [real CT and on the phantom](benchmarks/decision_rule.ipynb).

# %%
#| export
THRESHOLDS = (None, 0.3, 0.4, 0.5, 0.6)
GATES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_ISLANDS = (1/2000, 1/1000, 1/500)
_RESCUES = (0.1, 0.2, 0.3)

def examined_dice(label, prob, slices: SliceSet) -> np.ndarray: # float32 [B, C]
    "The challenge's Dice of the examined cells, else NaN."
    return np.where(slices.known, dice_table(label.cpu().numpy(), slices.masks, len(slices.classes)), np.nan).astype(np.float32)

def rule_tables(
    parts: list[tuple[Predictor, SliceSet]], # held-out slices, each with the predictor that may be asked about them
    rules: list[Rule],
    batch_size: int = 16,
    each=None, # goes through the batches, and may stop; None: simply
    measure=examined_dice, # what to make of label [B, H, W], prob [B, C, H, W] and the slices: an array [B, ...]
) -> np.ndarray: # [R, N, ...]
    "What `measure` says of each rule and slice; needs the memory of one batch."
    out = [[] for _ in rules]
    for predictor, slices in parts:
        for i in (each or iter)(range(0, len(slices), batch_size)):
            part = slices[np.arange(i, min(i + batch_size, len(slices)))]
            prob = predictor.probabilities(part.images)
            for rows, rule in zip(out, rules): rows.append(measure(decide(prob, rule, predictor.activation), prob, part))
    return np.stack([np.concatenate(rows) for rows in out])

def in_parts(predictor: Predictor, held_out) -> list[tuple[Predictor, SliceSet]]:
    "`held_out` (a `SliceSet`, or already the parts of `out_of_fold`) with who may be asked about it."
    return [(predictor, held_out)] if isinstance(held_out, SliceSet) else held_out


# %%
#| export
def score_rules(predictor: Predictor, held_out, rules: list[Rule], batch_size: int = 16, each=None) -> list[float]:
    "The challenge's Dice on the examined cells of `held_out` (a `SliceSet`, or the parts of `out_of_fold`) under each rule."
    return [mean_dice(t) for t in rule_tables(in_parts(predictor, held_out), rules, batch_size, each)]

def expected_rules(parts, batch_size: int = 16, each=None) -> list[Rule]:
    "Each threshold with its estimates of what to keep."
    plain = [Rule(t) for t in THRESHOLDS]
    found = rule_tables(parts, plain, batch_size, each, lambda label, prob, _: drawn_structures(label, prob).movedim(0, 1).cpu().numpy())
    join = lambda name: np.concatenate([getattr(s, name) for _, s in parts])
    return [replace(r, expected=fit_expected_dice(np.moveaxis(f, 1, 0), join("present"), join("known"))) for r, f in zip(plain, found)]

def choose_rule(
    predictor: Predictor,
    held_out, # a `SliceSet` that no member has trained on, or the parts of `out_of_fold`
    expected: bool = True, # keep by expected Dice; False: by one gate for all
    margin: float = 0.002, # what is not better by more than this stays off
    each=None, # goes through the batches, and may stop; None: simply
    batch_size: int = 16,
) -> tuple[Rule, dict[Rule, float]]: # the rule, and the score of every rule tried
    "The plainest rule within `margin` of the best on held-out slices."
    scores, parts = {}, in_parts(predictor, held_out)
    def plainest(rules, also=()):
        tried = list(dict.fromkeys([*rules, *also]))
        scores.update(zip(tried, score_rules(predictor, parts, tried, batch_size, each)))
        worth = {r: -math.inf if math.isnan(scores[r]) else scores[r] for r in rules}  # nothing was there to be scored
        return min((r for r in rules if worth[r] >= max(worth.values()) - margin), key=lambda r: (r.island, r.rescue, r.threshold is not None, r.gate))
    rule = plainest(expected_rules(parts, batch_size, each) if expected else [Rule(t, g) for t, g in itertools.product(THRESHOLDS, GATES)], [Rule()])
    area = np.prod(parts[0][1].images.shape[1:])
    rule = plainest([rule] + [replace(rule, island=n) for n in sorted({max(2, round(area*s)) for s in _ISLANDS})])
    return plainest([rule] + [replace(rule, rescue=r) for r in _RESCUES]), scores


# %% [markdown]
# ## An ensemble is tuned out of fold
#
# A run holds out one fold of the annotated slices. Five runs of five folds have held out all of them, but each slice was held out by *one* run and **trained on by the four others**. Tuning the five on those slices together would mostly measure how well they remember.
# So each slice is scored only by the runs that held it out: by all of them if they differ in their seeds only, by one if they differ in their folds.

# %%
#| export
def held_out_by(run: Run, slices: SliceSet, plan: DevicePlan|None = None) -> np.ndarray:
    "bool [N]: the annotated slices that `run` has kept apart; `slices` must be what it was trained on."
    spec = run_spec(run)
    if slices.fingerprint() != spec["data"]["fingerprint"]:
        raise InputError(f"{run.folder}: trained on other data than this, so which slices it has seen is not known; give the folder it was trained on, and --annotated as it was in training")
    job = Job(Recipe(**spec["recipe"]), slices, run, plan or pick_device("cpu"), spec["seed"])
    return np.isin(np.arange(len(slices)), job.held_out)

def out_of_fold(predictor: Predictor, slices: SliceSet) -> list[tuple[Predictor, SliceSet]]:
    "The held-out slices, in parts that the same runs held out; with each part the predictor of those runs alone."
    table = np.stack([held_out_by(m.run, slices, predictor.plan) for m in predictor.members], 1)
    parts = [(replace(predictor, members=[m for m, out in zip(predictor.members, who) if out]), slices[(table == who).all(1)])
             for who in np.unique(table[table.any(1)], axis=0)]
    if not parts: raise InputError("these runs held out no slices (fold=-1), so no rule can be chosen; give --threshold and --gate")
    return parts


# %% [markdown]
# Three small runs: two of the first fold and one of the second. Every part is checked against what its runs trained on.

# %%
slices = read_challenge("../data_sample", cache=False)[::10]  # 40 slices, 16 of them annotated
small = [f"{k}={v}" for k, v in dict(width=4, epochs=2, image_size=64, folds=4, batch_size=5, tune_rule="no").items()]
keep = tempfile.TemporaryDirectory()
def small_run(name, seed, *settings):
    return fit(slices, apply_settings(Recipe("small", loss="masked"), small + list(settings)), Path(keep.name)/name, seed, device="cpu", progress=False)
runs = [small_run("a", 0, "fold=0"), small_run("b", 1, "fold=0"), small_run("c", 0, "fold=1")]

ensemble = load_predictor([r.folder for r in runs], pick_device("cpu"))
for predictor, part in out_of_fold(ensemble, slices):
    print("+".join(m.run.folder.name for m in predictor.members), "may be asked about", ", ".join(part.names))
    for m in predictor.members:
        spec = run_spec(m.run)
        learnt = Job(Recipe(**spec["recipe"]), slices, m.run, seed=spec["seed"]).labelled
        assert not set(learnt.names) & set(part.names) and not set(learnt.groups) & set(part.groups)
rule, scores = choose_rule(ensemble, out_of_fold(ensemble, slices))
print(f"{len(scores)} rules tried; chosen: {rule}")
test_close(ensemble.probabilities(slices.images[:2]), torch.stack([load_predictor(r.folder, pick_device("cpu")).probabilities(slices.images[:2]) for r in runs]).mean(0), eps=1e-6)
try: out_of_fold(ensemble, slices[:20])
except InputError as e: print(str(e).replace(keep.name, "…"))


# %% [markdown]
# ## Probabilities on disk
#
# To average runs that live on different machines, or to try other rules tomorrow, one wants the probabilities themselves. For 500 slices of 256×256 and 54 classes they are 7 GB of floats, nearly all of them zero. The file keeps what matters:
#
# * of each image, only the classes that reach 1/2048 anywhere, as `float16` [k, H, W];
# * rounded to steps of 1/1024, which a `float16` holds exactly and which compress well;
# * each in a member of a zip archive, `NAME.npy`, so that one image can be read without the others (`numpy.load` opens the file, too);
# * and `index.json` with the classes, the images' size, and which classes were kept for each image.

# %%
#| export
@contextlib.contextmanager
def write_probabilities(path, classes: ClassMap, activation: str, size: tuple[int, int]):
    "Yields `add(name, prob)` for f32 [C, H, W]; the file is complete or not there."
    index = {"format": "ctseg probabilities 1", "size": [int(s) for s in size], "activation": activation, "classes": list(classes.names), "images": {}}
    with atomic_path(path) as tmp, zipfile.ZipFile(tmp, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        def add(name: str, prob: np.ndarray):
            half = (np.round(prob*1024)/1024).astype(np.float16)
            kept = np.flatnonzero(half.any((1, 2)))
            with z.open(f"{name}.npy", "w") as f: np.lib.format.write_array(f, half[kept])
            index["images"][name] = (kept + 1).tolist()
        yield add
        z.writestr("index.json", json.dumps(index))


# %%
#| export
class StoredProbabilities:
    "What `write_probabilities` wrote: `names`, `classes`, `activation`, `size`; `stored[name]` is float32 [C, H, W], read when asked for."
    def __init__(self, path):
        try:
            self.zip = zipfile.ZipFile(path)
            index = json.loads(self.zip.read("index.json"))
            self.images, self.size, self.activation = index["images"], tuple(index["size"]), index["activation"]
            self.classes = ClassMap.from_names(index["classes"])
        except FileNotFoundError: raise InputError(f"{path}: no such file") from None
        except (zipfile.BadZipFile, KeyError, ValueError, OSError): raise InputError(f"{path}: not a file of probabilities, or damaged; write it again with `ctseg predict … --probabilities`") from None

    names = property(lambda self: list(self.images))
    def __len__(self): return len(self.images)
    def __enter__(self): return self
    def __exit__(self, *error): self.zip.close()

    def __getitem__(self, name: str) -> np.ndarray:
        out = np.zeros((len(self.classes), *self.size), np.float32)
        with self.zip.open(f"{name}.npy") as f: out[np.array(self.images[name], int) - 1] = np.lib.format.read_array(f)
        return out


# %%
prob = ensemble.probabilities(slices.images[:3]).numpy()
path = Path(keep.name)/"prob.zip"
with write_probabilities(path, ensemble.classes, ensemble.activation, prob.shape[2:]) as add:
    for name, p in zip(slices.names, prob): add(name, p)
with StoredProbabilities(path) as stored:
    test_eq(stored.names, list(slices.names[:3]))
    for name, p in zip(slices.names, prob): assert np.abs(stored[name] - p).max() <= 1/2048
    same = decide(torch.from_numpy(stored[slices.names[2]])[None], Rule(0.3), stored.activation)
test_eq((same != decide(torch.from_numpy(prob[2:]), Rule(0.3), "sigmoid")).float().mean() < 0.01, True)
print(f"{prob.nbytes/1e3:.0f} kB of floats in {path.stat().st_size/1e3:.0f} kB")


# %% [markdown]
# ## A submission
#
# A column an image, a row a pixel: the whole table has to be turned before the first line can be written. So label maps go into a file that is mapped into memory, images and probabilities only ever exist a batch at a time, and **memory does not grow with the number of images**.
#
# The table takes its final name only after it has been read back and compared: header, order of rows, every value. A broken upload costs one of the day's few submissions.

# %%
#| export
def check_written(path, names, masks):
    "Read a mask table back, block by block; `InputError` unless it is the challenge's form of exactly these masks."
    table, k = masks.reshape(len(masks), -1), 0
    _same_names(_header(path), list(names), path)
    with _open_csv(path) as f:
        f.readline()
        for raw in _blocks(f):
            block = _parse_rows(raw, k, len(names))
            if block is None: raise _explain_rows(path, raw, k, names)
            if not np.array_equal(block, table[:, k:k + len(block)].T): raise InputError(f"{path}, near row Pixel {k}: other values than were predicted; is the disk failing?")
            k += len(block)
    if k != table.shape[1]: raise InputError(f"{path}: {k} rows, expected {table.shape[1]}, the number of pixels")

def write_submission(masks: np.ndarray, names, path):
    "The challenge's submission: a row `Pixel k` a pixel, a column an image; whole, read back, or not at all."
    with atomic_path(path) as tmp:
        write_masks(masks, names, tmp)
        check_written(tmp, names, masks)


# %%
#| export
def _same_classes(predictor: Predictor, path: Path):
    "`InputError` if the folder of the images names other structures: its numbers would be read by those names."
    if path.exists() and (theirs := ClassMap.from_json(path)).names != predictor.classes.names:
        odd = next((f"{i} is {a} for the run and {b} for the folder" for i, (a, b) in enumerate(zip(predictor.classes.names, theirs.names), 1) if a != b), f"{len(predictor.classes)} and {len(theirs)} of them")
        raise InputError(f"{path}: other classes than the run's ({odd}); give the folder the class_names.json that the run was trained with (`ctseg import … --classes`)")

def check_files(images, out, probabilities=None) -> list[Path]:
    "The images; `InputError` for names that `predict_folder` could not use, which is better told before the work than after it."
    paths = image_paths(images)
    if not str(out).endswith((".csv", ".csv.gz")): raise InputError(f"{out}: a submission is called something.csv or something.csv.gz")
    if probabilities and Path(probabilities).resolve() == Path(out).resolve(): raise InputError(f"{out}: the submission and the probabilities need a file each")
    for path in (out, probabilities): refuse_folder(path)
    return paths

def label_file(path: Path, shape) -> np.ndarray: # uint8, all 0
    "An array in a file, whose room on the disk is taken at once: a disk that gets full under a mapped file kills the process."
    with open(path, "wb") as f:
        f.truncate(math.prod(shape))
        try: getattr(os, "posix_fallocate", lambda *_: None)(f.fileno(), 0, math.prod(shape))
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL): raise  # the others: a file system that cannot
    return np.memmap(path, np.uint8, "r+", shape=shape)


# %%
#| export
def predict_folder(
    predictor: Predictor,
    images, # a folder of PNG slices
    out, # the submission to write, .csv or .csv.gz
    probabilities=None, # also write them into this file
    batch_size: int = 16,
    progress: bool = False, # show a bar in a terminal if it takes long
) -> dict: # facts for people
    "Write the submission for a folder of images of any number."
    paths = check_files(images, out, probabilities)
    names, size, seen = [p.name for p in paths], read_pngs(paths[:1]).shape[1:], set()
    _same_classes(predictor, Path(os.path.abspath(images)).parent/"class_names.json")  # not resolved: beside a link lie the files it belongs to
    _warn_size(predictor, size)
    rule = predictor.fitted(predictor.rule, size)
    with contextlib.ExitStack() as stack:
        tmp = stack.enter_context(atomic_path(out))
        add = stack.enter_context(write_probabilities(probabilities, predictor.classes, predictor.activation, size)) if probabilities else None
        masks = label_file(tmp.parent/"masks", (len(paths), *size))
        for i in tqdm(range(0, len(paths), batch_size), "predict", unit="batch", delay=5, disable=None if progress else True):  # None: only in a terminal
            prob = predictor.probabilities(read_pngs(paths[i:i + batch_size], size))
            masks[i:i + batch_size] = labels = decide(prob, rule, predictor.activation).cpu().numpy()
            seen |= set(np.unique(labels).tolist())
            for name, p in zip(names[i:], prob.cpu().numpy() if add else ()): add(name, p)
        empty = sum(not m.any() for m in masks)
        write_submission(masks, names, tmp)
    return {"images": len(paths), "models": len(predictor.members), "views": predictor.views, "rule": str(rule), **(predictor.tuned or {}),
            "classes used": f"{len(seen - {0})} of {len(predictor.classes)}", "empty images": empty}


# %%
#| export
def _warn_size(predictor: Predictor, size):
    "A network without an image size of its own sees structures as large as they are in pixels."
    odd = next((m for m in predictor.members if not m.image_size and m.trained_at and m.trained_at != tuple(size)), None)
    if odd: warnings.warn(f"{odd.run.folder.name} was trained on images of {'x'.join(map(str, odd.trained_at))} pixels, these are {'x'.join(map(str, size))}: what it knows of sizes will not fit")


# %%
one = load_predictor(runs[0].folder, pick_device("cpu"), views=3)
csv, store = Path(keep.name)/"submission.csv.gz", Path(keep.name)/"again.zip"
print(predict_folder(replace(one, rule=Rule(0.01)), "../data_sample/test-images", csv, store, batch_size=3))
test = read_challenge("../data_sample", "test", cache=False)
names, masks = read_masks(csv, test.names, test.images.shape[1:], test.classes, cache=False)
test_eq(masks, predict_masks(replace(one, rule=Rule(0.01)), test.images, batch_size=3))
test_eq(StoredProbabilities(store).names, names)
test_eq(replace(one, rule_size=(256, 256)).fitted(Rule(island=40), (128, 128)), Rule(island=10))

wrong = masks.copy(); wrong[3, 40, 50] += 1
try: check_written(csv, names, wrong)
except InputError as e: print(str(e).replace(keep.name, "…"))

# %%
#| hide
keep.cleanup()

# %%
#| hide
import nbdev; nbdev.nbdev_export()
