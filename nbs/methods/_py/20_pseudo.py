# %% [markdown]
# # Pseudo-labels
#
# > What a teacher says about images nobody annotated, how sure it is, and which of it to believe.

# %%
#| default_exp methods.pseudo

# %%
#| export
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import nn

from ctseg.core.anatomy import IGNORE
from ctseg.core.errors import did_you_mean
from ctseg.data.lazy import LazyPixels, ReadPixels, blocks, row_blocks, take
from ctseg.data.slices import SliceSet, present_classes
from ctseg.inference.confidence import image_confidence, mean_found, soft_dice_confidence, sum_by_class
from ctseg.inference.loop import Each, class_probabilities, on_device, over_slices, to_size
from ctseg.inference.rule import Rule, decide, label_certainty
from ctseg.methods.unknown import settled_by_unions

# %%
#| hide
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_eq
from matplotlib.colors import to_rgb
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.style import STATE_COLOURS, class_legend, image_grid, show_image
from ctseg.data.batches import SliceData
from ctseg.data.toys import toy_set
from ctseg.losses.registry import create_loss
from ctseg.metrics.challenge import dice_table
from ctseg.models.zoo import create_model

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})  # grey noise: a quarter of a PNG
UNKNOWN = (255*np.array(to_rgb(STATE_COLOURS["unknown"]))).astype(np.uint8)

# %% [markdown]
# A trained network can label the slices that nobody annotated, and complete those on which people looked for some structures only. This page turns its probabilities into labels, asks [how sure](../inference/10_confidence.ipynb) it is of each, and believes a part of them. An accepted structure becomes *present*, a confidently missing one *absent*, and everything else stays **unknown**.
#
# The first example needs a teacher. A small network learns from ten toy bodies, on each of which two of three structures were looked for.

# %%
slices, truth = toy_set(60, 10, seed=10)
torch.manual_seed(0)
loss, teacher = create_loss("marginal", log_dice=True), create_model("attunet", 1, 4, width=4)
data, opt = SliceData(slices[:10], "cpu"), torch.optim.Adam(teacher.parameters(), 1e-2)
for index in torch.randint(10, (120, 5), generator=torch.Generator().manual_seed(0)):
    batch = data.batch(index)
    opt.zero_grad()
    loss(teacher(batch.image), batch.mask, batch.known).backward()
    opt.step()
teacher = teacher.eval()


# %% [markdown]
# ## What the teacher says
#
# Probabilities for 2000 slices of 256×256 and 54 classes are 28 GB. What is needed of them is far less: the label and the probability of the most likely class at each pixel (two bytes), and a few numbers a cell. (A **cell** is one structure on one image.)

# %%
#| export
@dataclass(frozen=True)
class PseudoLabels:
    """What one or several teachers say about N images: two maps each, and a few numbers a class.

    labels: uint8 `[N, H, W]`, the most probable class, or 0. certainty: uint8 `[N, H, W]`, 255 times the probability
    of that label. sdc: f32 `[N, C]`, Soft Dice Confidence; 0 where the class was not found. peak: f32 `[N, C]`, the
    largest probability anywhere on the image. agreement: f32 `[N, C]` of the teachers; NaN with a single one.
    scores: image confidences by name, f32 `[N]`.
    """
    labels: np.ndarray | LazyPixels
    certainty: np.ndarray | LazyPixels
    sdc: np.ndarray
    peak: np.ndarray
    agreement: np.ndarray
    scores: dict[str, np.ndarray]

    @property
    def found(self) -> np.ndarray:
        "bool `[N, C]`: the class is somewhere in the labels of the image."
        return self.sdc > 0

    def __len__(self) -> int:
        return len(self.labels)

    def in_memory(self) -> "PseudoLabels":
        "The same with its maps as arrays."
        return replace(self, labels=np.asarray(self.labels), certainty=np.asarray(self.certainty))

    def __getitem__(self, index) -> "PseudoLabels":
        arrays = [take(getattr(self, f.name), index) for f in fields(self) if f.name != "scores"]
        return PseudoLabels(*arrays, {name: score[index] for name, score in self.scores.items()})


# %% [markdown]
# Several teachers can be asked how much they agree.

# %%
#| export
def pairwise_dice(labels: Sequence[torch.Tensor], classes: int) -> torch.Tensor:
    "Mean Dice between every two of several label maps `[B, H, W]`: f32 `[B, C]`, 1 where no map has the class."
    def dice(a, b):
        ones = torch.ones_like(a, dtype=torch.float32)
        total = sum_by_class(ones, a, classes) + sum_by_class(ones, b, classes)
        both = sum_by_class((a == b).float(), a, classes)
        return torch.where(total > 0, 2*both/total.clamp(min=1), 1)
    pairs = [(a, b) for i, a in enumerate(labels) for b in labels[:i]]
    return torch.stack([dice(a, b) for a, b in pairs]).mean(0)


# %% [markdown]
# Two teachers on one row of pixels: they share one of the two pixels that each calls 1, and only the second draws a 2.

# %%
rows = [torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[0, 1, 1, 2]]])]
pairwise_dice(rows, 3)


# %%
#| export
def answers(probs: Sequence[torch.Tensor], activation: str) -> dict[str, torch.Tensor]:
    """What `PseudoLabels` keep of the probabilities `[B, C, H, W]` of each teacher, by field; scores as "score NAME".

    activation: "softmax" or "sigmoid". The labels are those of the mean of the teachers.
    """
    prob = torch.stack(list(probs)).mean(0)
    label = decide(prob, Rule(), activation)
    certainty = label_certainty(prob, label, activation)
    sdc = soft_dice_confidence(prob, label)
    agreement = torch.full_like(sdc, torch.nan)
    scores = image_confidence(prob, label, activation)
    if len(probs) > 1:
        agreement = pairwise_dice([decide(p, Rule(), activation) for p in probs], prob.shape[1])
        scores["agreement"] = mean_found(agreement, sdc > 0)
    kept = {"labels": label, "certainty": (certainty*255).round().to(torch.uint8), "sdc": sdc,
            "peak": prob.amax((2, 3)), "agreement": agreement}
    return kept | {f"score {name}": score for name, score in scores.items()}


# %%
batch = data.batch([0, 1])
with torch.no_grad():
    kept = answers([loss.probabilities(teacher(batch.image))], loss.activation)
print({name: tuple(t.shape) for name, t in kept.items()})


# %%
#| export
def pseudo_label(
    teachers: Sequence[nn.Module],
    slices: SliceSet,
    loss: nn.Module,
    device: torch.device | str = "cpu",
    image_size: int | None = None,
    batch_size: int = 16,
    each: Each | None = None,
) -> PseudoLabels:
    """Label `slices` by the mean of the teachers, with every confidence; their masks are not looked at.

    teachers: networks in evaluation, on `device`. loss: knows how their logits become probabilities. image_size:
    at which they work; None: the images' own. each: goes through the batches, and may stop; None: all in order.
    Several processes share the work, and all get the whole. The maps of slices that are not in memory are not either.
    """
    size = slices.image_shape
    maps = ("labels", "certainty") if isinstance(slices.images, LazyPixels) else ()

    def step(part: SliceSet) -> dict[str, torch.Tensor]:
        images = on_device(part, device, image_size).image
        probs = [class_probabilities(teacher, loss, images) for teacher in teachers]
        return answers([to_size(prob, size) for prob in probs], loss.activation)

    arrays = over_slices(slices, step, batch_size, each, shared=True, filed=maps)
    prefixed = [name for name in arrays if name.startswith("score ")]
    scores = {name.removeprefix("score "): arrays.pop(name) for name in prefixed}
    return PseudoLabels(**arrays, scores=scores)


# %% [markdown]
# The teacher labels fifty slices that nobody annotated. One of them, with what it says and how sure it is of each pixel:

# %%
#| fig-alt: "A slice, its hidden truth, the teacher's labels, and the certainty of each pixel"
unlabelled, hidden = slices[10:], truth[10:]
pseudo = pseudo_label([teacher], unlabelled, loss)
i = np.argsort(pseudo.scores["sdc"])[25]

colour = slices.classes.colourise
fig, axes = image_grid(1, 4, 2)
show_image(axes[0, 0], unlabelled.images[i], "slice")
show_image(axes[0, 1], colour(hidden[i]), "truth, hidden")
show_image(axes[0, 2], colour(pseudo.labels[i]), "the teacher's labels")
show_image(axes[0, 3], 2.*pseudo.certainty[i] - 255, "certainty, black: one half")
class_legend(fig, slices.classes)
plt.show()

# %% [markdown]
# Is a surer cell a better one? Over all cells that the teacher found, its confidence against the Dice that the hidden truth gives them:

# %%
#| fig-alt: "True Dice against Soft Dice Confidence, one dot a structure on a slice; both rise together"
dice = dice_table(pseudo.labels, hidden, 3)
fig, ax = plt.subplots(figsize=(4.2, 3), layout="constrained")
for c, name in enumerate(slices.classes.names):
    found = pseudo.found[:, c]
    ax.scatter(
        pseudo.sdc[found, c], dice[found, c], s=12, color=slices.classes.colours[c + 1]/255, label=name
    )
ax.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":")
ax.set(xlabel="Soft Dice Confidence", ylabel="true Dice", title="Each dot: one structure on one slice")
ax.legend(frameon=False, fontsize=8)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
print(f"correlation {np.corrcoef(pseudo.sdc[pseudo.found], dice[pseudo.found])[0, 1]:.2f}")
assert np.corrcoef(pseudo.sdc[pseudo.found], dice[pseudo.found])[0, 1] > 0.5


# %% [markdown]
# ## Choosing whole images: the original's way
#
# Rank the images by a score, keep the best so many, believe everything on them. Asking for more than there are keeps them all, and says so.

# %%
#| export
def keep_images(
    pseudo: PseudoLabels,
    slices: SliceSet,
    keep: float,
    score: str = "sdc",
) -> SliceSet:
    """The most confident images with their pseudo-labels as masks, as if they were the whole truth; 255 stays 255.

    slices: the images that the pseudo-labels are of. keep: a count, or a share of the images if at most 1.
    score: one of `ctseg.inference.confidence.IMAGE_SCORES`.
    """
    if score not in pseudo.scores:
        raise did_you_mean("confidence score", score, pseudo.scores)
    wanted = round(keep*len(slices)) if keep <= 1 else int(keep)
    count = min(wanted, len(slices))
    if wanted > count:
        warnings.warn(f"keep = {wanted}: there are only {count} images without annotation; all are kept")
    best_first = np.argsort(-pseudo.scores[score], kind="stable")
    best = np.sort(best_first[:count])
    everything = np.ones((count, len(slices.classes)), bool)
    kept = slices[best]
    masks = np.where(kept.masks == IGNORE, IGNORE, pseudo.labels[best]).astype(np.uint8)
    return replace(kept, masks=masks, known=everything)


# %%
kept = keep_images(pseudo, unlabelled, 0.3)
by_name = dict(zip(unlabelled.names, np.nanmean(dice, 1)))
print(
    f"mean true Dice of the {len(kept)} kept slices {np.mean([by_name[n] for n in kept.names]):.2f}, of all "
    f"{np.mean(list(by_name.values())):.2f}"
)


# %% [markdown]
# ## Choosing cells
#
# A slice may show the liver beyond doubt and be hopeless about the pancreas. Accepting the whole slice lets in the bad pancreas; rejecting it throws away the good liver. So a **cell** is accepted on its own confidence, and a cell that is refused stays unknown.
#
# Confidence is compared *within a class*, by a quota: a network is less sure of the pancreas than of the lung even when it is right, and one threshold for all classes would keep lungs only. Confident absences, where the class's peak probability stays low everywhere, are kept as negatives. Cells that people examined keep what people found.
#
# The confidence is Soft Dice Confidence alone. Several teachers could also be asked how much they agree, but [where truth is known](../benchmarks/confidence.ipynb) that ranks cells no better.

# %%
#| export
def accept_cells(
    pseudo: PseudoLabels,
    known: np.ndarray,
    quota: float = 0.5,
    cell_confidence: float = 0.7,
    absent_peak: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Cells to believe, chosen class by class by their Soft Dice Confidence.

    known: bool `[N, C]`, what people examined; such cells are not touched. quota: this share of the found cells of
    each class, rounded up, the surest ones. cell_confidence: and only above this confidence. absent_peak: a class
    whose peak probability stays below this is absent. Returns those accepted as present and as absent, bool `[N, C]`.
    """
    confidence = np.where(pseudo.found & ~known, pseudo.sdc, 0)
    present = np.zeros_like(known)
    for c, of_class in enumerate(confidence.T):
        count = int(np.ceil(quota*(of_class > 0).sum()))
        surest = np.argsort(-of_class, kind="stable")[:count]
        present[surest, c] = of_class[surest] >= cell_confidence
    absent = ~known & ~pseudo.found & (pseudo.peak < absent_peak)
    return present, absent


# %%
nobody = np.zeros_like(unlabelled.known)
present, absent = accept_cells(pseudo, nobody)
really_there = np.stack([(hidden == c).any((1, 2)) for c in (1, 2, 3)], 1)
print(
    f"present: {present.sum()} of {pseudo.found.sum()} cells accepted, their mean true Dice "
    f"{np.nanmean(dice[present]):.2f}"
)
print(f"absent:  {absent.sum()} cells accepted, {(absent & ~really_there).sum()} of them rightly")
assert (dice[present] > 0.7).all()


# %% [markdown]
# ## Completing the truth
#
# The accepted cells are drawn into the slices, where the teacher is sure enough of the pixel. Truth is never overwritten: pixels that people labelled keep their label. Where the teacher is unsure, or draws a structure that people looked for and did not find, the pixel is not to be learnt from.

# %%
#| export
def not_asked(slices: SliceSet) -> np.ndarray:
    "bool `[N, C]`: the cells that no teacher fills in: those examined, unions, and the members of an examined union."
    return settled_by_unions(torch.from_numpy(slices.known), slices.classes.unions).numpy()


# %% [markdown]
# The liver was examined, so a teacher has nothing to add. The spleen was not.

# %%
one_slice = SliceSet(
    np.zeros((1, 2, 2), np.uint8),
    classes=["liver", "spleen"],
    known=np.array([[True, False]]),
    masks=np.zeros((1, 2, 2), np.uint8),
)
test_eq(not_asked(one_slice), [[True, False]])


# %%
#| export
def at_pixels(cells: np.ndarray, labels: np.ndarray) -> np.ndarray:
    "bool `[N, H, W]`: is the cell of the pixel's label among `cells` (bool `[N, C]`)? Never at background."
    with_background = np.pad(cells, ((0, 0), (1, 0)))
    out = np.zeros(labels.shape, bool)
    for row, chosen, label in zip(out, with_background, labels):  # one by one: an index is large
        row[:] = chosen[label]
    return out


# %% [markdown]
# The first class is chosen, so its two pixels are:

# %%
test_eq(
    at_pixels(np.array([[True, False]]), np.array([[[0, 1, 2, 1]]])).tolist(), [[[False, True, False, True]]]
)


# %%
#| export
@dataclass(frozen=True)
class Drawn:
    "Some slices with the accepted cells drawn in: labels drawn, masks, and where these may be believed; all `[n, H, W]`."
    drawn: np.ndarray
    masks: np.ndarray
    teaches: np.ndarray


# %%
[field.name for field in fields(Drawn)]


# %%
#| export
def draw_cells(
    masks: np.ndarray,
    pseudo: PseudoLabels,
    present: np.ndarray,
    refused: np.ndarray,
    pixel_confidence: float,
) -> Drawn:
    """Accepted cells drawn into masks uint8 `[n, H, W]`, which are in memory as the pseudo-labels are.

    present: bool `[n, C]`, the accepted ones. refused: those that no teacher fills in.
    """
    free = masks == 0
    accepted = at_pixels(present, pseudo.labels)
    sure = pseudo.certainty >= round(255*pixel_confidence)
    drawn = np.where(free & accepted & sure, pseudo.labels, 0)
    # drawn where people looked for that class and saw none
    denied = free & at_pixels(refused, pseudo.labels)
    any_accepted = present.any(1)[:, None, None]
    unsure = free & (~sure | denied) & (accepted | any_accepted)
    return Drawn(drawn, np.where(drawn > 0, drawn, masks), ~unsure)


# %% [markdown]
# Two pixels that a teacher calls 1, of which it is sure of one:

# %%
nothing = np.zeros((1, 1), np.float32)
both = PseudoLabels(np.ones((1, 1, 2), np.uint8), np.array([[[255, 9]]], np.uint8), *[nothing]*3, {})
cells = np.array([[True]])
print(draw_cells(np.zeros((1, 1, 2), np.uint8), both, cells, ~cells, 0.8))


# %% [markdown]
# Slices that are not in memory are completed a few at a time, whenever they are read.

# %%
#| export
def complete(
    slices: SliceSet,
    pseudo: PseudoLabels,
    present: np.ndarray,
    absent: np.ndarray,
    pixel_confidence: float = 0.8,
) -> tuple[SliceSet, np.ndarray | LazyPixels]:
    """Truth completed by the accepted cells, and the pixels where these may be believed: bool `[N, H, W]`, or lazy.

    slices: with whatever truth there is, which is never changed. present, absent: bool `[N, C]` from `accept_cells`.
    pixel_confidence: certainty below which a pixel says nothing about accepted cells.
    """
    refused, shape = not_asked(slices), slices.masks.shape

    def draw(rows) -> Drawn:
        said = pseudo if rows is None else pseudo[rows].in_memory()
        rows = slice(None) if rows is None else rows
        return draw_cells(slices.masks[rows], said, present[rows], refused[rows], pixel_confidence)

    if isinstance(pseudo.labels, LazyPixels):
        found = [present_classes(draw(rows).drawn, present.shape[1]) for rows in row_blocks(shape)]
        on_slice = np.concatenate(found)
        masks = LazyPixels(ReadPixels(lambda rows: draw(rows).masks, shape))
        teaches = LazyPixels(ReadPixels(lambda rows: draw(rows).teaches.astype(np.uint8), shape))
    else:
        all_drawn = draw(None)
        on_slice = present_classes(all_drawn.drawn, present.shape[1])
        masks, teaches = all_drawn.masks, all_drawn.teaches
    # a cell of which no pixel is sure stays unknown: empty and known would mean absent
    known = slices.known | present & on_slice | absent
    return replace(slices, masks=masks, known=known), teaches


# %% [markdown]
# One slice on its way, on which people had looked for the heart only: what they outlined, what the teacher says, which cells are accepted, and the completed slice. Light grey is where nothing is learnt of the accepted structures.

# %%
#| fig-alt: "A slice, its outlined heart, the teacher's labels, the completed mask, and the hidden truth"
examined = np.array([[False, False, True]])
one = replace(unlabelled[[i]], masks=np.where(hidden[[i]] == 3, 3, 0).astype(np.uint8), known=examined)
said = pseudo[[i]]
present, absent = accept_cells(said, examined, quota=1, cell_confidence=0.6)
completed, teaches = complete(one, said, present, absent)
names = slices.classes.names
told = [f"{n} {s:.2f}" + (" accepted" if p else "") for n, s, p in zip(names, said.sdc[0], present[0]) if s]

fig, axes = image_grid(1, 5, 2)
show_image(axes[0, 0], one.images[0], "slice")
show_image(axes[0, 1], colour(one.masks[0]), "people: heart only")
show_image(axes[0, 2], colour(said.labels[0]), "\n".join(told))
show_image(
    axes[0, 3], np.where(teaches[0][..., None], colour(completed.masks[0]), UNKNOWN), "completed, unsure grey"
)
show_image(axes[0, 4], colour(hidden[i]), "truth, hidden")
class_legend(fig, slices.classes)
plt.show()
print("known before", one.known[0].astype(int), "and after", completed.known[0].astype(int))
assert (completed.masks[one.masks > 0] == 3).all() and completed.known[0].sum() > 1


# %%
#| export
def check_truth_kept(before: SliceSet, after: SliceSet):
    "`AssertionError` unless every labelled pixel and every examined cell of `before` is unchanged in `after`."
    for old, new in zip(blocks(before.masks), blocks(after.masks)):
        labelled = old > 0
        if not np.array_equal(old[labelled], new[labelled]):
            raise AssertionError("a labelled pixel was overwritten")
    if (before.known & ~after.known).any():
        raise AssertionError("an examined cell became unknown")
    if (before.known & ~before.present & after.present).any():
        raise AssertionError("a class that people found absent was drawn in")


# %%
check_truth_kept(one, completed)
try:
    check_truth_kept(completed, one)
except AssertionError as e:
    print("the other way round:", e)
