# %% [markdown]
# # UniMatch for partial labels
#
# > A weak view teaches two strong views, wherever the truth is silent: in unlabelled slices and in the unexamined half of labelled ones.
#
# - skip_showdoc: true

# %%
#| default_exp methods.unimatch

# %% [markdown]
# [FixMatch](https://arxiv.org/abs/2001.07685) turned consistency into labels: what the teacher is *sure* of on a weakly augmented image becomes the target on a strongly augmented one. [UniMatch](https://arxiv.org/abs/2208.09910) (Yang et al. 2023) uses two strong views and one
# with dropped features; its second version ([2410.10777](https://arxiv.org/abs/2410.10777)) lets an averaged model be the teacher. All of that assumes that an image is either labelled or not.
#
# Every annotated image of ours is both. The step that adapts the method is small and does all the work: **complete the truth**. Where people said something, it stands. Where they did not, the teacher's answer is taken if it is sure; what neither knows stays
# unknown. The result is again a batch with `mask` and `known`, so CutMix can mix it and the ordinary partial-label loss can learn from it. There is no second kind of loss.

# %%
#| export
from dataclasses import replace

import torch

from ctseg.augment import strong_mix
from ctseg.data import Batch
from ctseg.methods.mean_teacher import open_shares, ramp_up
from ctseg.parallel import gather_rows, rank, world
from ctseg.train import Job, Method, patch_to

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch.nn.functional as F
from fastcore.test import test_eq
from ctseg.data import SliceData
from ctseg.metrics import challenge_dice
from ctseg.models.base import toy_set
from ctseg.phantom import phantom_slices
from ctseg.pseudo import pseudo_label
from ctseg.train import Recipe, Run
torch.set_num_threads(1)  # so few slices: another order of a sum is another network


# %% [markdown]
# ## Completing the truth
#
# Softmax: at a pixel without a label, the truth still forbids something, namely the structures that were examined and not found there. The teacher's probabilities are renormalised over what is *allowed* (background and the unexamined structures), and if one of these reaches the threshold $\tau$,
# the pixel is settled for all classes. (Where the teacher [contradicts the truth](mean_teacher.html#where-to-compare), only as background.)
#
# Sigmoid: each unexamined structure is settled on its own, as present above $\tau$ and as absent below $1-\tau$. Where classes have thresholds of their own, an absence needs the highest of them: a class that is allowed to be believed early should not be forgotten early.

# %%
#| export
def complete_batch(
    batch: Batch, # weakly augmented, with whatever truth there is
    prob: torch.Tensor, # [B, C, H, W], the teacher's probabilities for it
    tau: float|torch.Tensor, # certainty needed; a number, or one for each class [C]
    activation: str, # "softmax" or "sigmoid"
) -> Batch: # `known` is [B, C, H, W]
    "Truth where people gave it, the teacher's answer where it is sure, unknown elsewhere."
    C = prob.shape[1]
    known = batch.known if batch.known.ndim == 4 else batch.known[:, :, None, None].expand(-1, -1, *batch.mask.shape[1:])
    free = batch.mask == 0
    tau = torch.as_tensor(tau, device=prob.device, dtype=prob.dtype).expand(C)
    finish = _complete_softmax if activation == "softmax" else _complete_sigmoid
    label, settled = finish(prob, known, tau)
    mask = torch.where(free, label, batch.mask)
    return replace(batch, mask=mask, known=known | settled | ~free[:, None])


# %%
#| export
def _complete_softmax(prob, known, tau):
    shares, heard = open_shares(prob, ~known)
    sure, label = shares.max(1)
    ok = heard & (sure >= torch.cat([tau.amax()[None], tau])[label])
    return torch.where(ok, label, 0), ok[:, None]

def _complete_sigmoid(prob, known, tau):
    best, c = (prob*~known*(prob >= tau[:, None, None])).max(1)
    yes = best > 0
    return torch.where(yes, c + 1, 0), (prob <= 1 - tau.amax()) | yes[:, None]


# %% [markdown]
# Four pixels, three structures, of which the second was examined. Read the result column by column: the first pixel carries a label, it stays; at the second the teacher is sure of structure 1; at the third it is sure of structure 2, which people looked for and did not find, so it is
# *not* taken (what remains after renormalising is background); at the fourth the teacher does not know.

# %%
p = torch.tensor([[.1, .96, .02, .4], [.1, .01, .95, .1], [.7, .01, .0, .3]]).reshape(1, 3, 1, 4)
b = Batch(torch.zeros(1, 1, 1, 4), torch.tensor([[[2, 0, 0, 0]]]), torch.tensor([[False, True, False]]), None, torch.tensor([0]))
done = complete_batch(b, p, 0.95, "softmax")
print("mask ", done.mask.flatten().tolist())
for c in range(3): print(f"known {c + 1}", done.known[0, c].int().flatten().tolist())
test_eq(done.mask.flatten().tolist(), [2, 1, 0, 0])
test_eq(done.known[0].int()[:, 0].tolist(), [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])


# %% [markdown]
# Lowering $\tau$ for the classes of which the teacher is less sure than of its surest is an option (`rebalance`): a class's bar is $\tau$ times its mean peak certainty relative to the surest class, after the idea of
# [FlexMatch](https://arxiv.org/abs/2110.08263), which counts confident predictions instead; never below one half. It is off by default.

# %%
#| export
class ClassThresholds:
    "Per-class thresholds that follow how sure the teacher gets: after Zhang et al. 2021 (arXiv 2110.08263), with the running mean of a class's peak probability in the place of their count of confident predictions."
    def __init__(self, tau: float, classes: int, decay: float = 0.99): self.tau, self.decay, self.sure = tau, decay, torch.zeros(classes)

    def __call__(self, prob: torch.Tensor) -> torch.Tensor: # [C]
        peak = gather_rows(prob.amax((2, 3))).amax(0)  # of the images of all processes
        self.sure = self.sure.to(prob.device).lerp(peak.to(self.sure.dtype), 1 - self.decay)
        return (self.tau*self.sure/self.sure.max().clamp(min=1e-6)).clamp(min=0.5)


# %% [markdown]
# ## The step
#
# Weak views of labelled and unlabelled slices go to the averaged teacher, which completes their truth. Two strong views of each are CutMixed with a shuffled copy, and a third stream sees the weak view through a network that has lost half of its feature channels
# (that is why our models are split into `encode` and `decode`, and let a method act `between` the two). All go through the network in one pass and share the same completed truth and the same loss $\ell$:
#
# $$\mathcal L = \ell(\text{labelled}) + w(t)\,\big[\tfrac12\,\overline{\ell}(\text{strong views}) + \tfrac12\,\ell(\text{features dropped})\big],$$
#
# where $\overline\ell$ is the mean over the strong views and $w(t)$ the weight `consistency`, which rises over the first steps as in [Mean Teacher](mean_teacher.html).

# %%
#| export
class UniMatch(Method):
    "Weak-to-strong consistency by completed labels (Yang et al. 2023, arXiv 2208.09910), for partly known truth."
    def __init__(self, weight: float = 1.0, tau: float = 0.9, ramp: float = 0.1, views: int = 2, feature_dropout: float = 0.5, rebalance: bool = False, cutmix: float = 0.5):
        self.weight, self.tau, self.ramp, self.views_, self.feature_dropout, self.rebalance, self.cutmix = weight, tau, ramp, views, feature_dropout, rebalance, cutmix

    def start(self, trainer): self.bars = ClassThresholds(self.tau, len(trainer.slices.classes)) if self.rebalance else None
    def state_dict(self): return {"sure": self.bars.sure} if self.bars else {}
    def load_state_dict(self, state):
        if self.bars: self.bars.sure = state["sure"]


# %%
#| export
@patch_to(UniMatch)
def views(self, trainer, batch, more):
    "The labelled batch; labelled and unlabelled together with completed truth, strong and weak."
    if not self.weight: return {"labelled": batch}
    both = batch.concat(more)
    own = both[rank()::world()]  # with several processes the teacher's work is shared
    prob = trainer.ask(trainer.ema.model, own.image)
    done = complete_batch(own, prob, self.bars(prob) if self.bars else self.tau, trainer.loss.activation)
    done = replace(both, mask=gather_rows(done.mask), known=gather_rows(done.known))
    if not trainer.loss.reads_known: done = replace(done, weight=done.known.any(1, keepdim=True).float())  # it hears "unknown" by weight alone
    strong_views = {f"strong {k}": strong_mix(done, trainer.rng(f"view {k}"), self.cutmix) for k in range(self.views_)}
    return {"labelled": batch} | strong_views | ({"weak": done} if self.feature_dropout else {})


# %%
#| export
@patch_to(UniMatch)
def loss(self, trainer, views):
    if len(views) == 1: return Method.loss(self, trainer, views)
    between = self.drop_channels(trainer, len(views["weak"])) if self.feature_dropout else None
    first, *rest = [trainer.supervise(z, v) for z, v in zip(trainer.answers(*views.values(), between=between), views.values())]
    extra = torch.stack(rest[:self.views_]).mean()
    if self.feature_dropout: extra = (extra + rest[-1])/2
    return first + self.weight*ramp_up(trainer.step_no, round(self.ramp*trainer.total))*extra

@patch_to(UniMatch)
def drop_channels(self, trainer, n: int):
    "A function that zeroes whole feature channels of the last `n` images, and scales up the rest."
    whole, p, rng = n*world()*trainer.pieces, self.feature_dropout, trainer.rng("features")
    def between(features):
        out = []
        for f in features:
            keep = (torch.rand(whole, f.shape[1], generator=rng, device=rng.device) >= p)[trainer.rows][:n].to(f.dtype)/(1 - p)
            out.append(torch.cat([f[:-n], f[-n:]*keep.view(*keep.shape, *[1]*(f.ndim - 2))]))
        return out
    return between


# %% [markdown]
# Three slices on their way through a step. To see what is done rather than how well, the teacher is replaced by the truth of three [phantom](12_phantom.ipynb) slices: sure (0.98) on one side of each slice, unsure (0.6) on the other; of each slice, only half of the structures count as examined.
# White in the last column is what stays unknown: it teaches nothing.

# %%
test = phantom_slices(3, size=256, seed=2500)
rng = np.random.default_rng(0)
truth = torch.from_numpy(test.masks).long()
known = torch.from_numpy(rng.random((3, 54)) < 0.5)
examined = torch.cat([torch.ones(3, 1, dtype=bool), known], 1).gather(1, truth.flatten(1)).reshape(truth.shape)
batch = Batch(torch.from_numpy(test.images)[:, None]/255, truth*examined, known, None, torch.arange(3))
certainty = torch.where(torch.arange(256) < 128, 0.98, 0.6)
prob = F.one_hot(truth, 55).permute(0, 3, 1, 2)[:, 1:]*certainty
prob += torch.where(truth == 0, 1 - certainty, 0)[:, None]/54  # what is left where it is background
done = complete_batch(batch, prob, 0.95, "softmax")

# %%
gen = torch.Generator().manual_seed(3)
view = strong_mix(done, gen, 1)
colour = lambda m: test.classes.colourise(m.numpy())
settled = lambda b: np.where(b.known.all(1)[..., None], colour(b.mask), np.where((b.mask > 0)[..., None], colour(b.mask), 255))
columns = {"slice": batch.image[:, 0], "what people outlined": colour(batch.mask), "completed": settled(done), "strong view, mixed": view.image[:, 0], "its target": settled(view)}
fig, axes = plt.subplots(3, 5, figsize=(10, 6), layout="constrained")
for i, row in enumerate(axes):
    for ax, (name, pictures) in zip(row, columns.items()):
        ax.imshow(pictures[i], cmap="gray"); ax.set(xticks=[], yticks=[], title=name if i == 0 else "")
plt.show()


# %% [markdown]
# ## The script: a teacher worth listening to
#
# From the first step on, this method can fool itself. A sigmoid network begins with every class at one percent everywhere, which is below $1-\tau$: an untrained teacher is *sure* that every unexamined structure is absent, and its student learns to be silent. The rare classes suffer first. So at first only
# the annotations teach: a supervised phase, and only then, from its weights and at a lower rate, the phase with all images. With sigmoid outputs and 100 annotated slices of [real CT](benchmarks/realct_semi.html) the cold start brought nothing in its one training, and the warm one, which takes twice the steps, 0.09 in all three; with 800, where the annotations speak
# louder, the cold start was not worse. A softmax begins undecided, and so is sure of nothing before it has learnt something. With a softmax the cold start was tried only with the original's loss, which it helped. The recipes start warm all the same, by analogy with the sigmoid.
#
# The recipe `ctseg` is this with one strong view, no feature stream and a second phase half as long as the first, $\mathcal L = \ell(\text{labelled}) + w(t)\,\ell(\text{strong})$, for the price of a few supervised trainings.
#
# `warm=False` starts at once, as the papers do. Without unlabelled slices the second phase has the unexamined structures of the annotated ones to complete; only where nothing at all is unknown is there none. (With 100 annotated slices of real CT and no others, [it added 0.02](benchmarks/ablations.html), in each of three trainings.)

# %%
#| export
def unimatch(job: Job):
    "A supervised phase (`warm`), then one with all images (`second`, `second_lr`, `consistency`, `tau`, `ramp`, `views`, `feature_dropout`, `rebalance`, `cutmix`)."
    r = job.recipe
    unknown = len(job.unlabelled) or not job.labelled.known.all()
    method = UniMatch(r.consistency if unknown else 0, r.tau, r.ramp, r.views, r.feature_dropout, r.rebalance, r.cutmix)
    if not r.warm: return job.train("unimatch", method=method, extra=job.unlabelled)
    start = job.train("supervised")
    if not unknown: return job.nothing_to_add(start)
    if not r.second: return start
    return job.train("unimatch", method=method, extra=job.unlabelled, init=start, epochs=max(1, round(r.second*r.epochs)), lr=r.second_lr)


# %% [markdown]
# ## A small run
#
# [Toy bodies](base.html): ten annotated slices, on each of which two of three structures were looked for, and fifty without annotation. Below, what the averaged network adds to the truth of three slices, on two of which people looked for something: after the first phase, and at the end. White is unknown, black is settled
# as empty. After the first phase it is sure of little: of the heart and one lung, and hardly anywhere of there being nothing. At the end most is settled, the left lung too that it had not seen before; only the rims stay unknown. What people outlined has not moved.

# %%
slices, truth = toy_set(60, 10, seed=10)
small = Recipe(method="unimatch", loss="marginal", log_dice=True, width=4, epochs=60, batch_size=5, lr=1e-2, fold=-1, views=1, feature_dropout=0, second_lr=5e-3)
def trained(recipe):
    with tempfile.TemporaryDirectory() as d:
        job = Job(recipe, slices, Run(Path(d)), progress=False)
        return job, unimatch(job), job.train("supervised") if recipe.warm else None  # has been trained: is only loaded

job, last, first = trained(small)

# %%
some = torch.tensor([1, 4, 30])
batch = SliceData(slices, "cpu").batch(some)
with torch.no_grad(): ends = {n: complete_batch(batch, job.loss.probabilities(m(batch.image)), small.tau, job.loss.activation) for n, m in (("after the first phase", first), ("at the end", last))}
colour = lambda m: slices.classes.colourise(np.asarray(m))
columns = {"slice": batch.image[:, 0], "truth, hidden": colour(truth[some]), "outlined": colour(batch.mask)} | {n: settled(b) for n, b in ends.items()}
fig, axes = plt.subplots(3, 5, figsize=(10, 6), layout="constrained")
for i, row in enumerate(axes):
    for ax, (name, pictures) in zip(row, columns.items()): ax.imshow(pictures[i], cmap="gray"); ax.set(xticks=[], yticks=[], title=name if i == 0 else "")
    row[0].set_ylabel("looked for\n" + ("\n".join(n for n, k in zip(slices.classes.names, batch.known[i]) if k) or "nothing"), fontsize=7)
plt.show()

# %% [markdown]
# What it is worth, on a hundred slices that no network has seen: the first phase; both phases; and, so as not to credit the method with its longer training, two phases without the unlabelled slices (`consistency=0`).

# %%
fresh, answer = toy_set(100, 0, seed=1)
score = lambda m: round(challenge_dice(pseudo_label([m], fresh, job.loss).labels, answer, 3), 3)
{"first phase": score(first), "then all slices": score(last), "two phases, truth alone": score(trained(replace(small, consistency=0.))[1])}

# %% [markdown]
# ## What it brought
#
# On [real CT](benchmarks/realct_semi.html), compared with supervised training on the same annotated slices. One strong view and no feature stream in all of them; `warm` and `ctseg` rows have the two phases, the second of `ctseg` half as long, and the others start cold. The rows `log-…` and `ctseg-sigmoid` have the sigmoid loss with the logarithm of the Dice (`loss=masked`); the recipes `unimatch` and `ctseg` now have a softmax (`loss=marginal`).

# %%
told = pd.read_csv("benchmarks/results/realct_semi.csv")
told[told.recipe.str.contains("unimatch|ctseg")][["labelled", "recipe", "seeds", "Dice", "minus supervised", "low", "high"]].style.format(precision=3, na_rep="").hide(axis="index")

# %%
#| hide
import nbdev; nbdev.nbdev_export()
