# %% [markdown]
# # Calibration
#
# > When the network says 80 %, is it right four times out of five? A thermometer, and the one number that mends some of it.
#
# - skip_showdoc: true

# %%
#| default_exp calibrate

# %% [markdown]
# A probability is a promise about frequencies. It matters here in three places: the [decision rule](predict.html) compares the probabilities of all classes with one number, an ensemble averages them, and
# [pseudo-labels](pseudo.html) are believed or not by them. Networks break the promise in a regular way: trained to the end with a Dice term, they say 99 % where they should say 90 %.
#
# *Temperature scaling* (Guo et al. 2017, [arXiv 1706.04599](https://arxiv.org/abs/1706.04599), section 4.2) divides the logits by one number $T$, fitted on slices the network has not seen. $T>1$ makes it humbler. With sigmoid outputs the order of the pixels within
# a class stays and only the scale becomes more honest; with softmax the order may change.
#
# What is special here: **only what was examined can be checked**. A pixel stored as 0 says nothing about a class that nobody looked for. The pairs (pixel, class) that count are those of classes examined on the image, and those of pixels labelled as something else.

# %%
#| export
import warnings
from dataclasses import asdict, replace

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from ctseg.data import SliceData, SliceSet, read_challenge
from ctseg.device import DevicePlan
from ctseg.files import InputError, atomic_path, did_you_mean, read_json, write_json
from ctseg.losses import create_loss
from ctseg.predict import Member, Predictor, Rule, ask, choose_rule, held_out_by, load_predictor, out_of_fold
from ctseg.train import Run

# %%
#| hide
import tempfile
from pathlib import Path
import matplotlib.pyplot as plt
from fastcore.test import test_eq, test_close
from ctseg.anatomy import ClassMap
from ctseg.device import pick_device
from ctseg.recipes import fit
from ctseg.train import Recipe


# %% [markdown]
# ## Held-out logits
#
# Neighbouring pixels tell nearly the same, so a few thousand of each slice are enough. They are kept as images of one row, which the losses take like any other.

# %%
#| export
def sample_logits(
    member: Member,
    slices: SliceSet, # held out
    plan: DevicePlan,
    pixels: int = 4096, # of each slice, at random; fewer where all of them would be more than `most` numbers
    batch_size: int = 16,
    most: int = 2**27,
) -> tuple: # logits f32 [N,K,1,P], mask i64 [N,1,P], known bool [N,C], and the presence head's logits f32 [N,C] or None; on the CPU
    "Logits and truth of the same random pixels, at the size the network works at."
    head = getattr(member.model, "presence", None) is not None
    data, rng, out = SliceData(slices, plan.device, member.image_size), torch.Generator().manual_seed(0), []
    for index in torch.arange(len(slices)).split(batch_size):
        b = data.batch(index)
        logits, mask = ask(member, b.image, plan, lambda model, x: model(x)).flatten(2).cpu(), b.mask.flatten(1).cpu()
        there = ask(member, b.image, plan, lambda model, x: model(x, presence=True)[1]).cpu() if head else torch.empty(len(index), 0)
        few = min(pixels, max(64, most//(len(slices)*logits.shape[1])))
        at = torch.stack([torch.randperm(mask.shape[1], generator=rng)[:few] for _ in index])
        out.append((logits.gather(2, at[:, None].expand(-1, logits.shape[1], -1))[:, :, None], mask.gather(1, at)[:, None], b.known.cpu(), there))
    *found, there = (torch.cat(x) for x in zip(*out))
    return *found, there if head else None


# %% [markdown]
# What a network *says* are its logits over the temperature, as probabilities; with a [presence head](base.html), times the probability that the structure is on the slice at all. The product has logits too, and they are what is judged below.

# %%
#| export
def said(
    loss, # knows how logits become probabilities
    logits: torch.Tensor, # [N,K,1,P]
    there: torch.Tensor|None, # [N,C]
    temperature: float = 1.,
) -> torch.Tensor: # [N,K,1,P]
    "The logits of the probabilities that the network gives at this temperature, as `class_probabilities` has them."
    if there is None: return logits/temperature
    p = (loss.probabilities(logits/temperature)*there.sigmoid()[..., None, None]).clamp(1e-7, 1 - 1e-7)
    if loss.activation == "sigmoid": return p.logit()
    return torch.cat([(1 - p.sum(1, keepdim=True)).clamp(min=1e-7), p], 1).log()


# %%
z, t = torch.tensor([0., 1., -2.]).reshape(1, 3, 1, 1), torch.tensor([[0., 2.]])
for loss, logits in ((create_loss("marginal"), z), (create_loss("masked"), z[:, 1:])):
    test_close(loss.probabilities(said(loss, logits, t, 2.)), loss.probabilities(logits/2)*t.sigmoid()[..., None, None], eps=1e-6)


# %% [markdown]
# ## The temperature
#
# Which $T$? The one with the least negative log-likelihood of what is known. That is the cross-entropy term of the [losses](losses.html), which know how to leave the unknown out: the masked binary one for sigmoid outputs, the marginal one for
# softmax outputs. One number, one dimension: a bounded search over $\log T$ finds it in twenty evaluations.

# %%
#| export
def known_nll(logits, mask, known, activation: str) -> float:
    "Mean negative log-likelihood of what is known, from the pixel terms of `MaskedSigmoidLoss` and `MarginalSoftmaxLoss`."
    loss = create_loss("masked", w_dice=0, w_bce=1) if activation == "sigmoid" else create_loss("marginal", w_dice=0, w_ce=1)
    with torch.no_grad(): return loss(logits, mask, known).item()

def fit_temperature(logits, mask, known, activation: str, at=lambda logits, t: logits/t) -> float:
    "The T in 1/8…8 for which logits/T, or what `at` makes of logits and T, are likeliest (Guo et al. 2017, section 4.2)."
    found = minimize_scalar(lambda t: known_nll(at(logits, np.exp(t)), mask, known, activation), bounds=(-np.log(8), np.log(8)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


# %% [markdown]
# Does it find what is there? Draw labels from known probabilities, then exaggerate the logits by a factor. The fit must return the factor, for both kinds of outputs, and although half of the cells are unknown.

# %%
g = torch.Generator().manual_seed(0)
true = torch.randn(20, 4, 1, 2000, generator=g)*1.5 - 1
known = torch.rand(20, 3, generator=g) < 0.5
known[:, 0] = True
drawn = torch.multinomial(true.softmax(1).movedim(1, -1).flatten(0, 2), 1, generator=g).reshape(20, 1, 2000)  # one of four, 0 is background
stored = torch.where((drawn == 0) | known.gather(1, (drawn - 1).clamp(min=0)[:, 0]).reshape(drawn.shape), drawn, 0)
for factor in (0.5, 1, 2.5):
    t = fit_temperature(true*factor, stored, known, "softmax")
    print(f"exaggerated {factor:g} times: T = {t:.2f}")
    test_close(t, factor, eps=0.05*factor)

single = true[:, 1:2]
hit = (torch.rand(single.shape, generator=g) < single.sigmoid())[:, 0].long()
test_close(fit_temperature(single*3, hit, known[:, :1], "sigmoid"), 3, eps=0.15)


# %% [markdown]
# ## The thermometer
#
# A reliability diagram sorts the pairs (pixel, class) by what the network said and compares with how often it was so; the *expected calibration error* (ECE) is the mean distance between the two. Nearly all pairs are trivial, a lung class at a pixel of the brain, and would drown
# the rest; so the pairs are those to which the network *as it came* gives at least 1 %, before and after alike.

# %%
#| export
def known_pairs(mask, known) -> torch.Tensor:
    "bool [N, C, 1, P]: the class was examined on the image, or the pixel is labelled."
    return known[:, :, None, None] | (mask > 0)[:, None]

def reliability(
    prob: torch.Tensor, # f32 [M], what was said
    hit: torch.Tensor, # bool [M], whether it was so
    bins: int = 15,
) -> tuple[list[tuple[float, float, int]], float]: # (said, was so, pairs) of each bin that has any; the ECE
    "The points of a reliability diagram with bins of equal width, and the expected calibration error (Guo et al. 2017, equation 3)."
    at = (prob*bins).long().clamp(max=bins - 1)
    n = torch.bincount(at, minlength=bins)
    said, was = (torch.bincount(at, x.double(), minlength=bins)/n.clamp(min=1) for x in (prob, hit))
    ece = (n*(said - was).abs()).sum()/n.sum().clamp(min=1)
    return [(round(s, 4), round(w, 4), k) for s, w, k in zip(said.tolist(), was.tolist(), n.tolist()) if k], ece.item()


# %%
p = torch.tensor([0.1]*10 + [0.9]*10)
bins, ece = reliability(p, torch.tensor([True] + [False]*9 + [True]*7 + [False]*3), bins=5)
test_eq(bins, [(0.1, 0.1, 10), (0.9, 0.7, 10)])
test_close(ece, 0.1, eps=1e-6)  # half of the pairs are off by 0.2


# %% [markdown]
# A temperature is one number, yet to judge it on the slices it was fitted on would still be a little too kind. So "after" is measured crosswise: the patients are cut in two halves, and each half is judged by the temperature of the other. The temperature that is kept comes from all.

# %%
#| export
def calibrate(
    member: Member,
    slices: SliceSet, # held out, annotated
    plan: DevicePlan,
    batch_size: int = 16,
) -> dict: # temperature, ECE and likelihood before and after, the points of both diagrams
    "Fit the temperature on what is known of `slices`, and tell what it does."
    groups = np.unique(slices.groups)
    if len(groups) < 2: raise InputError(f"calibration needs held-out slices of at least two patients or groups, there are {len(groups)}")
    logits, mask, known, there = sample_logits(member, slices, plan, batch_size=batch_size)
    act, prob = member.loss.activation, member.loss.probabilities
    def at(h): return lambda z, t: said(member.loss, z, there if there is None else there[h], t)
    def fitted(h): return fit_temperature(logits[h], mask[h], known[h], act, at(h))
    every, half = torch.ones(len(slices), dtype=bool), torch.from_numpy(np.isin(slices.groups, groups[::2]))
    before, after = at(every)(logits, 1.), torch.empty_like(logits)
    for h in (half, ~half): after[h] = at(h)(logits[h], fitted(~h))
    p, q = prob(before), prob(after)
    pairs = known_pairs(mask, known) & (p >= 0.01)
    hit = (mask[:, None] == torch.arange(1, p.shape[1] + 1)[:, None, None])[pairs]
    (points, ece), (points_after, ece_after) = reliability(p[pairs], hit), reliability(q[pairs], hit)
    return {"temperature": round(fitted(every), 4), "slices": len(slices), "pairs": int(pairs.sum()),
            "ece before": ece, "ece after": ece_after, "nll before": known_nll(before, mask, known, act), "nll after": known_nll(after, mask, known, act),
            "points before": points, "points after": points_after}


# %%
#| export
def plot_reliability(calibration: dict, ax=None):
    "The reliability diagram before and after."
    import matplotlib.pyplot as plt
    ax = ax or plt.subplots(figsize=(3.6, 3.4), layout="constrained")[1]
    ax.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":")
    for when, colour in (("before", "C1"), ("after", "C0")):
        points = np.array(calibration[f"points {when}"]).reshape(-1, 3)  # none where everything is thought impossible
        ax.plot(points[:, 0], points[:, 1], "o-", color=colour, ms=4, label=f"{when}: ECE {calibration[f'ece {when}']:.3f}")
    ax.set(xlabel="what the network says", ylabel="how often it is so", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.legend(frameon=False)
    return ax.figure


# %% [markdown]
# ## A network taught by Dice alone
#
# Discs in noise, hardly brighter than it: nobody could tell where exactly they end. A small network learns from fourteen slices by the Dice term alone, which rewards a decided answer and never asks how sure one can be, and is held against fourteen others.

# %%
def noisy_discs(n=28, size=32, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    masks = np.zeros((n, size, size), np.uint8)
    for m in masks:
        for c in (1, 2):
            if rng.random() < 0.8: cy, cx = rng.integers(8, size - 8, 2); m[(y - cy)**2 + (x - cx)**2 < rng.integers(15, 50)] = c
    images = (110 + 22*(masks == 1) - 22*(masks == 2) + rng.normal(0, 32, masks.shape)).clip(0, 255).astype(np.uint8)
    return SliceSet(images, masks, np.ones((n, 2), bool), [f"{i}.png" for i in range(n)], np.arange(n), ClassMap.from_names(["bright", "dark"]))

slices = noisy_discs()
recipe = Recipe("small", loss="masked", width=8, w_pixel=0, epochs=80, batch_size=4, lr=4e-3, folds=2, augment="none", tune_rule=False)
keep = tempfile.TemporaryDirectory()
run = fit(slices, recipe, Path(keep.name)/"run", device="cpu", progress=False)
predictor = load_predictor(run.folder, pick_device("cpu"))
held_out = slices[held_out_by(run, slices)]
calibration = calibrate(predictor.members[0], held_out, predictor.plan)
plot_reliability(calibration); plt.show()
print({k: round(v, 3) for k, v in calibration.items() if not k.startswith("points")})


# %% [markdown]
# ## Kept in the run, used when asked
#
# `metrics.json` keeps the temperature and the errors, `reliability.csv` the points of the diagram. A threshold of 0.3 means something else once the probabilities have changed, so a rule is chosen again for the calibrated ones and kept beside the temperature.

# %%
#| export
def calibrate_run(run: Run, held_out: SliceSet, plan: DevicePlan|None = None, tune_rule: bool = True, each=None, batch_size: int = 16) -> dict:
    "Calibrate a finished run on the slices it held out; what is found is also kept in the run."
    predictor = load_predictor(run.folder, plan)
    found = calibrate(predictor.members[0], held_out, predictor.plan, batch_size)
    cool = replace(predictor, members=[replace(predictor.members[0], temperature=found["temperature"])])
    found["rule"] = asdict(choose_rule(cool, held_out, each=each, batch_size=batch_size)[0] if tune_rule else predictor.rule)
    rows = [[when, *point] for when in ("before", "after") for point in found.pop(f"points {when}")]
    with atomic_path(run/"reliability.csv") as tmp:
        tmp.write_text("when,said,was,pairs\n" + "".join(",".join(map(str, r)) + "\n" for r in rows), encoding="utf-8")
    if (run/"metrics.json").exists(): write_json(read_json(run/"metrics.json") | {"calibration": found}, run/"metrics.json")
    return found


# %% [markdown]
# `prepare` makes an ensemble ready, as `ctseg predict` has it: load, calibrate if asked, and take the saved rule or plain argmax, or choose a rule for all members together, out of fold. A rule chosen here says what it is worth (`tuned`).

# %%
#| export
def prepare(
    runs, # run folders
    plan: DevicePlan|str|None = None, # see `load_predictor`
    views: int = 1,
    calibrated: bool = False, # divide logits by the runs' temperatures; a run has one if it held out at least two patients or groups
    tune=None, # the challenge folder (or its slices) that the runs were trained on: choose the rule out of fold; None: the first run's
    annotated: str = "json",
    batch_size: int = 16,
    rule: str = "saved", # or "argmax"
    **fields, # threshold, gate, …: fields of the rule to overrule; None leaves them
) -> Predictor:
    "A predictor of one or more runs with its rule."
    if rule not in (options := ("saved", "argmax")): raise did_you_mean("rule", rule, options)
    if rule == "argmax" and tune is not None: raise InputError("--rule argmax and --tune: give one of the two")
    for key in ("threshold", "gate", "rescue"):
        if (v := fields.get(key)) is not None and not 0 <= v <= 1: raise InputError(f"--{key} {v:g}: expected a probability, 0 to 1")
    predictor = load_predictor(runs, plan, views, calibrated and tune is None)
    for m in predictor.members:
        if not (m.run/"metrics.json").exists(): warnings.warn(f"{m.run.folder} is not finished: these are the weights of a phase on the way, and no rule was chosen; continue it with `ctseg fit … --resume`")
    if tune is not None: predictor = _tune(predictor, tune if isinstance(tune, SliceSet) else read_challenge(tune, annotated=annotated), calibrated, batch_size)
    if rule == "argmax": predictor.rule = Rule()
    given = {k: v for k, v in fields.items() if v is not None}
    return replace(predictor, rule=replace(predictor.rule, **given), tuned=predictor.tuned if not given else None)  # the score is of the rule as it was chosen


# %%
#| export
def _tune(predictor: Predictor, slices: SliceSet, calibrated: bool, batch_size: int) -> Predictor:
    "`predictor` with a rule for all its members, and before that their temperatures, from the slices that each of them held out."
    if calibrated:
        own = lambda m: slices[held_out_by(m.run, slices, predictor.plan)]
        predictor = replace(predictor, members=[replace(m, temperature=calibrate(m, own(m), predictor.plan, batch_size)["temperature"]) for m in predictor.members])
    rule, scores = choose_rule(predictor, out_of_fold(predictor, slices), batch_size=batch_size)
    tuned = {"Dice out of fold, argmax": scores[Rule()], "Dice out of fold, this rule": scores[rule]}
    return replace(predictor, rule=rule, rule_size=slices.images.shape[1:], tuned=tuned)


# %%
kept = calibrate_run(run, held_out, pick_device("cpu"))
test_eq(read_json(run/"metrics.json")["calibration"]["temperature"], calibration["temperature"])
plain, cool = prepare(run.folder, pick_device("cpu")), prepare(run.folder, pick_device("cpu"), calibrated=True)
test_eq(cool.members[0].temperature, calibration["temperature"])
p, q = plain.probabilities(held_out.images[:2]), cool.probabilities(held_out.images[:2])
test_close(q.logit(), p.logit()/calibration["temperature"], eps=0.05)
print("rule before:", plain.rule, "| calibrated:", cool.rule, "| tuned out of fold:", (tuned := prepare(run.folder, "cpu", tune=slices)).rule, {k: round(v, 3) for k, v in tuned.tuned.items()})
test_eq(prepare(run.folder, "cpu", rule="argmax").rule, Rule())
test_eq(prepare(run.folder, pick_device("cpu"), threshold=0.3).rule.threshold, 0.3)
try: prepare(run.folder, pick_device("cpu"), gate=7)
except InputError as e: print(e)

# %%
#| hide
keep.cleanup()

# %%
#| hide
import nbdev; nbdev.nbdev_export()
