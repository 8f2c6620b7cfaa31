# %% [markdown]
# # UniMatch for partial labels
#
# > A sure teacher completes the truth of a weak view, and strong views learn from it: in unlabelled slices and in the unexamined half of labelled ones.

# %%
#| default_exp methods.unimatch

# %%
#| export
import math
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ctseg.core.parallel import gather_rows
from ctseg.core.settings import Settings, setting
from ctseg.core.unions import Unions
from ctseg.data.strong_views import strong_mix
from ctseg.data.batches import Batch, known_map
from ctseg.data.sampling import EpochSampler
from ctseg.losses.unions import told_by_label
from ctseg.methods.unknown import renormalised_over_unknown, risen, settled_by_unions
from ctseg.training.method import (
    JobLike, Method, Phase, StepContext, nothing_to_add, register_method)
from ctseg.training.setup import ScheduleSettings

# %%
#| hide
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_eq
from matplotlib.colors import to_rgb
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.settings import describe
from ctseg.core.style import STATE_COLOURS, class_legend, image_grid, show_image
from ctseg.data.augment import MILD
from ctseg.data.batches import Batch, SliceData
from ctseg.data.toys import toy_set
from ctseg.losses.registry import create_loss
from ctseg.methods.in_memory import MemoryJob, toy_score
from ctseg.models.zoo import create_model
from ctseg.training.method import Method
from ctseg.training.setup import ScheduleSettings, Setup
from ctseg.training.step import Student, ViewLoss

torch.set_num_threads(1)  # so few slices: another order of a sum is another network
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})  # grey noise: a quarter of a PNG
UNKNOWN = (255*np.array(to_rgb(STATE_COLOURS["unknown"]))).astype(np.uint8)


# %% [markdown]
# [FixMatch](https://arxiv.org/abs/2001.07685) turned consistency into labels: what the teacher is *sure* of on a weakly augmented image becomes the target on a strongly augmented one. [UniMatch](https://arxiv.org/abs/2208.09910) (Yang et al. 2023) uses two strong views and one with dropped features; its second version ([2410.10777](https://arxiv.org/abs/2410.10777)) lets an averaged model be the teacher. All of that assumes that an image is either labelled or not.
#
# Every annotated image of ours is both. The step that adapts the method is small: **complete the truth**. Where people said something, it stands. Where they did not, the teacher's answer is taken if it is sure; what neither knows stays unknown. The result is again a batch with `mask` and `known`, so CutMix can mix it and the ordinary partial-label loss can learn from it.
#
# ## Completing the truth
#
# Softmax: at a pixel without a label, the truth still forbids the structures that were examined and not found there. The teacher's probabilities are [renormalised over what is left](25_unknown.ipynb), and if one of these reaches the threshold $\tau$, the pixel is settled for all classes.
#
# Sigmoid: each unexamined structure is settled on its own, as present above $\tau$ and as absent below $1-\tau$. Where classes have thresholds of their own, an absence needs the highest of them: a class that is allowed to be believed early should not be forgotten early.

# %%
#| export
def settled_by_softmax(
    prob: torch.Tensor,
    known: torch.Tensor,
    tau: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a softmax teacher settles: labels int64 `[B, H, W]`, and for which classes: bool `[B, 1, H, W]` (all or none).

    prob: f32 `[B, C, H, W]`. known: bool `[B, C, H, W]`. tau: f32 `[C]`, the certainty each class needs; background
    needs the highest.
    """
    shares, believed = renormalised_over_unknown(prob, ~known)
    certainty, label = shares.max(1)
    needed = torch.cat([tau.amax()[None], tau])[label]
    settled = believed & (certainty >= needed)
    return torch.where(settled, label, 0), settled[:, None]


# %%
prob = torch.tensor([[.97, .40], [.01, .05]]).view(1, 2, 1, 2)
unknown, tau = torch.zeros(1, 2, 1, 2, dtype=torch.bool), torch.tensor([.9, .9])
labels, settled = settled_by_softmax(prob, unknown, tau)
print(f"labels {labels.flatten().tolist()}, settled for all classes or none {settled[0, 0].int().tolist()}")


# %%
#| export
def settled_by_sigmoid(
    prob: torch.Tensor,
    known: torch.Tensor,
    tau: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    "The same of a sigmoid teacher, class by class: labels int64 `[B, H, W]`, settled bool `[B, C, H, W]`."
    candidates = prob*~known*(prob >= tau.view(-1, *[1]*(prob.ndim - 2)))
    best, structure = candidates.max(1)
    present = best > 0
    absent = prob <= 1 - tau.amax()
    return torch.where(present, structure + 1, 0), absent | present[:, None]


# %%
labels, settled = settled_by_sigmoid(prob, unknown, tau)
print(f"labels {labels.flatten().tolist()}, settled by class {settled[0, :, 0].int().tolist()}")


# %%
#| export
def complete_batch(
    batch: Batch,
    prob: torch.Tensor,
    tau: float | torch.Tensor,
    activation: str,
    unions: Unions = (),
) -> Batch:
    """Truth where people gave it, the teacher's answer where it is sure, unknown elsewhere.

    batch: weakly augmented, with whatever truth there is. prob: f32 `[B, C, H, W]`, the teacher's for it. tau: certainty
    needed; a number, or one for each class `[C]`. activation: "softmax" or "sigmoid". unions: classes made of others;
    a teacher settles neither these nor the members of an examined one. `known` of the result is bool `[B, C, H, W]`.
    """
    classes, size = prob.shape[1], batch.mask.shape[1:]
    known = known_map(batch.known, size)
    free = batch.mask == 0
    tau = torch.as_tensor(tau, device=prob.device, dtype=prob.dtype).expand(classes)
    settle = settled_by_softmax if activation == "softmax" else settled_by_sigmoid
    asked = settled_by_unions(known, unions)
    label, settled = settle(prob, asked, tau)
    if unions:
        settled = settled & ~(asked & ~known)
    mask = torch.where(free, label, batch.mask)
    by_label = told_by_label(torch.where(free, 0, batch.mask), classes, unions)
    return replace(batch, mask=mask, known=known | settled | by_label)


# %% [markdown]
# Four pixels, three structures, of which the second was examined. Read the result column by column. The first pixel carries a label, it stays. At the second the teacher is sure of structure 1. At the third it is sure of structure 2, which people looked for and did not find, so it is *not* taken; what remains after renormalising is background. At the fourth the teacher does not know.

# %%
p = torch.tensor([[.1, .96, .02, .4], [.1, .01, .95, .1], [.7, .01, .0, .3]]).view(1, 3, 1, 4)
b = Batch(
    torch.zeros(1, 1, 1, 4),
    torch.tensor([[[2, 0, 0, 0]]]),
    torch.tensor([[False, True, False]]),
    None,
    torch.tensor([0]),
)
completed = complete_batch(b, p, 0.95, "softmax")
print("mask ", completed.mask.flatten().tolist())
for c in range(3):
    print(f"known {c + 1}", completed.known[0, c].int().flatten().tolist())
test_eq(completed.mask.flatten().tolist(), [2, 1, 0, 0])
test_eq(completed.known[0].int()[:, 0].tolist(), [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])

# %% [markdown]
# ## Thresholds by class
#
# The option `rebalance`, off by default, lowers $\tau$ for classes of which the teacher is less sure. Take a class's mean peak probability, divided by that of the surest class: its threshold is $\tau$ times this ratio, but never below one half. The idea is that of [FlexMatch](https://arxiv.org/abs/2110.08263), which counts confident predictions instead.

# %%
#| export
DECAY = 0.99 # of the running means, at each batch

class ClassThresholds:
    """Thresholds by class that follow how sure the teacher gets (after Zhang et al. 2021, arXiv 2110.08263).

    A running mean of each class's peak probability stands in the place of their count of confident predictions.
    """
    def __init__(self, tau: float):
        self.tau = tau
        self.mean_peak: torch.Tensor | None = None  # f32 [C], from the first batch on

    def __call__(self, prob: torch.Tensor) -> torch.Tensor:
        "Take in the teacher's probabilities of a batch, f32 `[B, C, H, W]`; the thresholds f32 `[C]`."
        peak = gather_rows(prob.flatten(2).amax(2)).amax(0)  # of the images of all processes
        before = torch.zeros_like(peak) if self.mean_peak is None else self.mean_peak.to(peak.device)
        self.mean_peak = before.lerp(peak, 1 - DECAY)
        relative = self.mean_peak/self.mean_peak.max().clamp(min=1e-6)
        return (self.tau*relative).clamp(min=0.5)


# %%
thresholds = ClassThresholds(0.9)
for step in range(3):
    bars = thresholds(torch.tensor([[0.99, 0.7, 0.2]]).view(1, 3, 1, 1))
print("peaks of 0.99, 0.7 and 0.2 give the bars", bars.numpy().round(2))


# %% [markdown]
# ## The method
#
# Weak views of labelled and unlabelled slices go to the averaged teacher, which completes their truth. Two strong views of each are CutMixed with a shuffled copy, and a third stream sees the weak view through a network that has lost half of its feature channels. (That is why our models are split into `encode` and `decode`, and let a method act `between` the two.) All go through the network in one pass and share the same completed truth and the same loss $\ell$:
#
# $$\mathcal L = \ell(\text{labelled}) + w(t)\,\big[\tfrac12\,\overline{\ell}(\text{strong views}) + \tfrac12\,\ell(\text{features dropped})\big],$$
#
# where $\overline\ell$ is the mean over the strong views and $w(t)$ the weight `consistency`, which [rises](25_unknown.ipynb#how-much) over the first steps.

# %%
#| export
class UniMatchSettings(Settings):
    "Settings of the method `unimatch`."
    consistency: float = setting(1.0, "weight of what the teacher completes", low=0)
    ramp: float = setting(0.1, "share of the steps in which that weight rises", low=0, high=1)
    tau: float = setting(0.9, "threshold: certainty of the teacher that settles a pixel", low=0.5, high=1)
    rebalance: bool = setting(False, "thresholds by class, lower where the teacher is less sure")
    views: int = setting(2, "strong views", low=1)
    cutmix: float = setting(0.5, "share of the strong views that get a rectangle of another", low=0, high=1)
    feature_dropout: float = setting(
        0.5, "share of channels dropped in the feature stream; 0: no such stream", low=0, high=0.99)
    supervised_first: bool = setting(True, "learn from truth alone in a first phase")
    second_phase: float = setting(1.0, "length of the phase after that, in parts of `epochs`; 0: none", low=0)
    second_lr: float = setting(1e-3, "peak learning rate of the second phase", low=0)
    unlabelled_passes: float = setting(
        0.0, "go on until each unlabelled image was seen so often, but not beyond 3 times `epochs`", low=0)


# %%
for info in describe(UniMatchSettings):
    print(f"{info.name:<18}{info.default!s:<7}{info.meaning}")


# %%
#| export
def channel_dropout(
    count: int,
    share: slice,
    dropped: float,
    rng: torch.Generator,
) -> Callable[[list], list]:
    """A function of a network's features that zeroes whole channels of the last `count` images and scales up the rest.

    share: the rows of the whole batch that these images are, so that all processes draw alike. dropped: the share of
    channels.
    """
    whole = count*share.step

    def between(features: list[torch.Tensor]) -> list[torch.Tensor]:
        out = []
        for f in features:
            kept = torch.rand(whole, f.shape[1], generator=rng, device=rng.device) >= dropped
            scale = kept[share][:count].to(f.dtype)/(1 - dropped)
            scale = scale.view(*scale.shape, *[1]*(f.ndim - 2))
            out.append(torch.cat([f[:-count], f[-count:]*scale]))
        return out
    return between


# %%
between = channel_dropout(1, slice(0, None, 1), 0.5, torch.Generator().manual_seed(0))
features, = between([torch.ones(2, 8, 1, 1)])
print("image 1", features[0].flatten().tolist())
print("image 2", features[1].flatten().tolist())


# %%
#| export
class Completer:
    "Has the teacher complete the truth of batches, by thresholds that a checkpoint keeps."
    def __init__(self, settings: UniMatchSettings):
        self.tau = settings.tau
        self.thresholds = ClassThresholds(settings.tau) if settings.rebalance else None

    def __call__(self, ctx: StepContext, both: Batch) -> Batch:
        "A batch whose truth the teacher has completed; with several processes each asks it about its own share."
        local = both[ctx.share]
        prob = ctx.teacher(local.image, presence=True)
        tau = self.thresholds(prob) if self.thresholds else self.tau
        local = complete_batch(local, prob, tau, ctx.loss.activation, unions=ctx.classes.unions)
        completed = replace(both, mask=gather_rows(local.mask), known=gather_rows(local.known))
        if ctx.loss.reads_known:
            return completed
        # such a loss leaves out unknown pixels by their weight alone
        weight = completed.known.any(1, keepdim=True).float()
        return replace(completed, weight=weight)

    def state_dict(self) -> dict[str, Any]:
        "The running means behind the thresholds by class."
        return {"mean_peak": self.thresholds.mean_peak} if self.thresholds else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Go on from what `state_dict` gave."
        if self.thresholds:
            self.thresholds.mean_peak = state["mean_peak"]


# %% [markdown]
# With a teacher that is sure of the first structure everywhere, nothing stays unknown.

# %%
sure = torch.tensor([.98, .005, .005]).view(1, 3, 1, 1)
ctx = SimpleNamespace(
    share=slice(0, None, 1),
    teacher=lambda image, presence: sure.expand(len(image), -1, 1, 4),
    loss=create_loss("marginal"),
    classes=SimpleNamespace(unions=()),
)
done = Completer(UniMatchSettings())(ctx, b)
print("mask", done.mask.flatten().tolist(), " all known:", done.known.all().item())


# %% [markdown]
# Strong views learn from the completed truth, and a weak one whose features lose channels on the way.

# %%
#| export
def completed_views(ctx: StepContext, completed: Batch, settings: UniMatchSettings) -> dict[str, Batch]:
    "What is seen of a batch with completed truth: strong views, and a weak one where features are dropped."
    views = {}
    for k in range(settings.views):
        views[f"strong {k}"] = strong_mix(completed, ctx.rng(f"view {k}"), settings.cutmix)
    return views | {"weak": completed} if settings.feature_dropout else views


# %%
ctx.rng = lambda purpose: torch.Generator().manual_seed(0)
batch = SliceData(toy_set(4, 2)[0], "cpu").batch([0, 1])
print(list(completed_views(ctx, batch, UniMatchSettings())))


# %%
#| export
def view_losses(ctx: StepContext, views: dict[str, Batch], dropped: float) -> dict[str, torch.Tensor]:
    "The loss of each view, by its name, from one pass; the weak view loses this share of its channels."
    between = None
    if "weak" in views:
        between = channel_dropout(len(views["weak"]), ctx.share, dropped, ctx.rng("features"))
    logits = ctx.student(*views.values(), between=between)
    return {name: ctx.loss(of_view, view) for (name, view), of_view in zip(views.items(), logits)}

def completed_loss(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    "Their mean, where the weak view counts as much as all strong ones."
    strong = torch.stack([loss for name, loss in losses.items() if name.startswith("strong")]).mean()
    return (strong + losses["weak"])/2 if "weak" in losses else strong


# %%
losses = {"strong 0": torch.tensor(1.), "strong 1": torch.tensor(2.), "weak": torch.tensor(3.)}
print(completed_loss(losses).item())


# %% [markdown]
# A step puts these together.

# %%
#| export
class UniMatchStep(Method):
    "What UniMatch does in a step."
    Settings = UniMatchSettings

    def __init__(self, settings: UniMatchSettings | None = None):
        super().__init__(settings)
        self.complete = Completer(self.settings)

    def views(self, ctx: StepContext, labelled: Batch, extra: Batch | None) -> dict[str, Batch]:
        "Labelled; both streams with completed truth, strong and weak."
        if not self.settings.consistency:
            return {"labelled": labelled}
        completed = self.complete(ctx, labelled.concat(extra))
        return {"labelled": labelled} | completed_views(ctx, completed, self.settings)

    def loss(self, ctx: StepContext, views: dict[str, Batch]) -> torch.Tensor:
        "The loss of the annotated batch, plus the weighted loss of what the teacher completed; a scalar."
        if len(views) == 1:
            return super().loss(ctx, views)
        settings = self.settings
        losses = view_losses(ctx, views, settings.feature_dropout)
        weight = risen(settings.consistency, settings.ramp, ctx)
        return losses["labelled"] + weight*completed_loss(losses)

    def state_dict(self) -> dict[str, Any]:
        "What the thresholds by class have seen."
        return self.complete.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Go on from what `state_dict` gave."
        self.complete.load_state_dict(state)


# %% [markdown]
# On two toy slices, with a network that has learnt nothing yet:

# %%
torch.manual_seed(0)
step = UniMatchStep()
network = create_model("attunet", 1, 4, width=4)
ctx.teacher = lambda image, presence: torch.full((len(image), 3, 48, 48), .25)
ctx.step, ctx.total, ctx.loss = 50, 100, ViewLoss(create_loss("marginal"))
ctx.student = Student(network)
views = step.views(ctx, batch, None)
print(f"views {list(views)}, loss {step.loss(ctx, views).item():.2f}")

# %% [markdown]
# ## How long the second phase is
#
# Epochs are passes over the *annotated* slices. With few of them an epoch is a handful of steps, and a second phase of half as many epochs would be over before most unlabelled slices came twice. `unlabelled_passes` asks for more where that is so, up to three times the first phase. [On real CT](../benchmarks/realct_semi.ipynb#a-longer-second-phase), with 100 of 2000 slices annotated, this is worth 0.03 of Dice.

# %%
#| export
LONGEST_SECOND = 3  # times the first phase


def second_epochs(
    settings: UniMatchSettings,
    schedule: ScheduleSettings,
    labelled: int, # slices
    unlabelled: int,
) -> int:
    "Epochs of the second phase: `second_phase` times the first, or what `unlabelled_passes` asks for."
    least = max(1, round(settings.second_phase*schedule.epochs))
    seen = len(EpochSampler(labelled, schedule.batch_size))*schedule.batch_size  # unlabelled images an epoch
    wanted = math.ceil(settings.unlabelled_passes*unlabelled/seen)
    return max(least, min(wanted, LONGEST_SECOND*schedule.epochs))


# %%
schedule = ScheduleSettings(epochs=90, batch_size=16)
half = UniMatchSettings(second_phase=0.5, unlabelled_passes=15)
for labelled, unlabelled in ((1600, 2400), (400, 2400), (80, 1900)):
    epochs = second_epochs(half, schedule, labelled, unlabelled)
    print(f"{labelled} slices annotated, {unlabelled} not: {epochs} epochs of {labelled//16} steps")


# %%
#| export
@register_method("unimatch")
class UniMatch(UniMatchStep):
    "Weak-to-strong consistency by completed labels (Yang et al. 2023, arXiv 2208.09910), for partly known truth."
    def phases(self, job: JobLike) -> Generator[Phase, nn.Module, nn.Module]:
        "A supervised phase, unless it starts cold; then one with all images, in which the teacher completes the truth."
        unknown = len(job.unlabelled) or not job.labelled.known.all()
        method = self if unknown else None
        if not self.settings.supervised_first:
            return (yield Phase("unimatch", job.labelled, method=method, extra=job.unlabelled))
        start = yield Phase("supervised", job.labelled)
        if not unknown:
            return nothing_to_add(start)
        if not self.settings.second_phase:
            return start
        epochs = second_epochs(self.settings, job.schedule, len(job.labelled), len(job.unlabelled))
        return (yield Phase("unimatch", job.labelled, method=method, extra=job.unlabelled, init=start,
                            epochs=epochs, lr=self.settings.second_lr))


# %% [markdown]
# ## A small run
#
# Toy bodies: twenty-four annotated slices, on each of which two of three structures were looked for, and sixty without annotation from [another scanner](../data/20_toys.ipynb), on which both phases are judged. One strong view and no feature stream, as in the recipe `ctseg`. The first phase learns from the annotations alone, the second from everything.

# %%
slices, truth = toy_set(84, 24, second_scanner=True)
loss = create_loss("marginal", log_dice=True)
schedule = ScheduleSettings(epochs=40, batch_size=5, lr=1e-2)
job = MemoryJob(
    slices,
    loss,
    lambda: create_model("attunet", 1, 4, width=8),
    Setup(schedule=schedule, augment=MILD, progress=False),
)
settings = UniMatchSettings(views=1, feature_dropout=0, second_lr=5e-3)
last = job.run(UniMatch(settings))
first = job.models["supervised"]
fresh, answer = toy_set(100, 0, seed=1, second_scanner=True)
before, after = (toy_score(model, loss, fresh, answer) for model in (first, last))
print(f"Dice on fresh slices: after the first phase {before:.3f}, at the end {after:.3f}")
assert after > before + 0.1

# %% [markdown]
# What the averaged network adds to the truth of three slices, on two of which people looked for something: after the first phase, and at the end. Light grey is unknown, black is settled as empty. On the annotated scanner both settle most, and only the rims stay unknown; what people outlined has not moved. On the other scanner the first phase is nearly blind. At the end the lung is found there, and so are two structures that this slice lacks: such inventions are what a [decision rule](../inference/40_rule.ipynb) is for.

# %%
#| fig-alt: "Three slices: truth, outlines, and what is settled after the first phase and at the end"
some = [1, 4, 30]
batch = SliceData(slices, "cpu").batch(some)
colour = slices.classes.colourise


def settled(b):
    "A target in colours; light grey where something is unknown and nothing drawn."
    open_ = ~b.known.all(1) & (b.mask == 0)
    return np.where(open_[..., None], UNKNOWN, colour(b.mask))


columns = {
    "slice": 255*batch.image[:, 0],
    "truth, hidden": colour(truth[some]),
    "outlined": colour(batch.mask),
}
with torch.no_grad():
    for title, model in (("after the first phase", first), ("at the end", last)):
        prob = loss.probabilities(model(batch.image))
        columns[title] = settled(complete_batch(batch, prob, settings.tau, loss.activation))
fig, axes = image_grid(3, 5, 1.8)
for i, row in enumerate(axes):
    for ax, (title, pictures) in zip(row, columns.items()):
        show_image(ax, pictures[i], title if i == 0 else "")
    examined = [name for name, known in zip(slices.classes.names, batch.known[i]) if known]
    row[0].set_ylabel("looked for\n" + ("\n".join(examined) or "nothing"), fontsize=7)
class_legend(fig, slices.classes)
plt.show()

# %% [markdown]
# A strong view of such a batch, and its target: the picture is ruined and a rectangle comes from another slice, with what is known there.

# %%
#| fig-alt: "Three strong views with a pasted rectangle, above the targets that the student is given"
with torch.no_grad():
    completed = complete_batch(batch, loss.probabilities(last(batch.image)), settings.tau, loss.activation)
mixed = strong_mix(completed, torch.Generator().manual_seed(5), 1)
fig, axes = image_grid(2, 3, 1.9)
for i in range(3):
    show_image(axes[0, i], 255*mixed.image[i, 0])
    show_image(axes[1, i], settled(mixed)[i])
axes[0, 0].set_ylabel("strong view")
axes[1, 0].set_ylabel("its target")
class_legend(fig, slices.classes)
fig.suptitle("What the student sees and what it is told", fontsize=9)
plt.show()

# %% [markdown]
# ## Where it fails
#
# From the first step on, this method can fool itself. A sigmoid network begins with every class at one percent everywhere, which is below $1-\tau$: an untrained teacher is *sure* that every unexamined structure is absent, and its student learns to be silent. The rare classes suffer first. A softmax begins undecided, and so is sure of nothing before it has learnt something.

# %%
for name in ("masked", "marginal"):
    fresh_loss = create_loss(name)
    untrained = create_model("attunet", 1, fresh_loss.out_chans(3), width=4).eval()
    fresh_loss.init_head(untrained.head, 3)
    with torch.no_grad():
        prob = fresh_loss.probabilities(untrained(batch.image))
    done = complete_batch(batch, prob, settings.tau, fresh_loss.activation)
    newly = (done.known & ~batch.known[:, :, None, None]).float().mean().item()
    print(
        f"{name:<9} ({fresh_loss.activation}): an untrained teacher "
        f"settles {newly:.0%} of all pairs of pixel and class"
    )

# %% [markdown]
# So a supervised phase comes first, and only then, from its weights and at a lower rate, the phase with all images. `supervised_first=False` starts cold, as the papers do. Without unlabelled slices the second phase completes the unexamined structures of the annotated ones. If nothing at all is unknown, there is no second phase.
#
# What it brought on real CT and on the phantom: [the tables](../benchmarks/realct_semi.ipynb), [the phantom's](../benchmarks/phantom_semi.ipynb), and what each part of the recipe `ctseg` is worth: [ablations](../benchmarks/ablations.ipynb).
