# %% [markdown]
# # Calibration
#
# > When the network says 80 %, is it right four times out of five? A thermometer, and the one number that mends some of it.

# %%
#| default_exp inference.calibration

# %%
#| export
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ctseg.core.anatomy import IGNORE
from ctseg.core.device import DevicePlan
from ctseg.core.unions import Unions
from ctseg.losses.unions import told_by_label
from ctseg.core.files import InputError
from ctseg.data.slices import SliceSet
from ctseg.inference.loop import Member, on_device, over_slices
from ctseg.losses.registry import create_loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_close, test_eq

from ctseg.core.anatomy import ClassMap
from ctseg.core.device import pick_device
from ctseg.data.batches import SliceData
from ctseg.data.slices import SliceSet
from ctseg.losses.registry import create_loss
from ctseg.models.zoo import create_model


# %% [markdown]
# A probability is a promise about frequencies. It matters in three places: the [decision rule](40_rule.ipynb) compares the probabilities of all classes with one number, an ensemble averages them, and [pseudo-labels](../methods/20_pseudo.ipynb) are believed or not by them. Networks break the promise in a regular way: trained to the end with a Dice term, they say 99 % where they should say 90 %.
#
# *Temperature scaling* (Guo et al. 2017, [arXiv 1706.04599](https://arxiv.org/abs/1706.04599), section 4.2) divides the logits by one number $T$, fitted on slices that the network has not seen. $T>1$ makes it humbler. With sigmoid outputs the order of the pixels within a class stays; with softmax it may change.
#
# What is special here: **only what was examined can be checked**. A pixel stored as 0 says nothing about a class that nobody looked for. The pairs (pixel, class) that count are those of classes examined on the image, and those of pixels labelled as something else.

# %% [markdown]
# ## Held-out logits
#
# Neighbouring pixels tell nearly the same, so a few thousand of each slice are enough. They are kept as images of one row, which the losses take like any other.

# %%
#| export
@dataclass(frozen=True)
class PixelSample:
    """Logits and truth of P random pixels of each of N held-out slices; indexing takes some of the slices.

    logits: f32 `[N, K, 1, P]`. mask: int64 `[N, 1, P]`. known: bool `[N, C]`. presence_logits: f32 `[N, C]` of a
    presence head, or None.
    """
    logits: torch.Tensor
    mask: torch.Tensor
    known: torch.Tensor
    presence_logits: torch.Tensor | None = None

    def __getitem__(self, rows) -> "PixelSample":
        presence_logits = None if self.presence_logits is None else self.presence_logits[rows]
        return PixelSample(self.logits[rows], self.mask[rows], self.known[rows], presence_logits)


# %%
pixels = PixelSample(
    torch.randn(5, 2, 1, 100), torch.zeros(5, 1, 100, dtype=torch.int64), torch.ones(5, 2, dtype=torch.bool)
)
print("of five slices the first two:", tuple(pixels[:2].logits.shape))


# %%
#| export
def sample_logits(
    member: Member,
    slices: SliceSet,
    plan: DevicePlan,
    pixels: int = 4096,
    batch_size: int = 16,
    most: int = 2**26,
) -> PixelSample:
    """Logits and truth of the same random pixels of held-out `slices`, at the size the network works at; on the CPU.

    pixels: of each slice; fewer where all of them together would be more than `most` numbers, but at least 64.
    """
    has_head = getattr(member.model, "presence", None) is not None
    rng = torch.Generator().manual_seed(0)

    def step(part: SliceSet) -> dict[str, torch.Tensor]:
        batch = on_device(part, plan.device, member.image_size)
        logits = member.ask(batch.image, plan, lambda model, x: model(x)).flatten(2).cpu()
        mask = batch.mask.flatten(1).cpu()
        channels, area = logits.shape[1:]
        count = min(pixels, max(64, most//(len(slices)*channels)))
        chosen = torch.stack([torch.randperm(area, generator=rng)[:count] for _ in range(len(part))])
        chosen_logits = logits.gather(2, chosen[:, None].expand(-1, channels, -1))[:, :, None]
        sample = {"logits": chosen_logits, "mask": mask.gather(1, chosen)[:, None], "known": batch.known}
        if has_head:
            of_head = member.ask(batch.image, plan, lambda model, x: model(x, presence=True)[1])
            sample["presence_logits"] = of_head
        return sample

    arrays = over_slices(slices, step, batch_size)
    return PixelSample(**{name: torch.from_numpy(a) for name, a in arrays.items()})


# %% [markdown]
# A small network on ten noisy discs, which the last section trains. Here it is fresh; of each slice a hundred pixels are taken.

# %%
def noisy_discs(n=28, size=32, seed=0):
    "Two kinds of discs, hardly brighter or darker than the noise around them; a slice a patient."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    masks = np.zeros((n, size, size), np.uint8)
    for mask in masks:
        for c in (1, 2):
            if rng.random() < 0.8:
                cy, cx = rng.integers(8, size - 8, 2)
                mask[(y - cy)**2 + (x - cx)**2 < rng.integers(15, 50)] = c
    images = 110 + 22*(masks == 1) - 22*(masks == 2) + rng.normal(0, 32, masks.shape)
    classes = ClassMap.from_names(["bright", "dark"])
    names = [f"{i}.png" for i in range(n)]
    return SliceSet(
        images.clip(0, 255).astype(np.uint8), masks, np.ones((n, 2), bool), names, np.arange(n), classes
    )


torch.manual_seed(0)
plan, slices, dice_alone = pick_device("cpu"), noisy_discs(), create_loss("masked", w_bce=0)
member = Member(create_model("attunet", 1, 2, width=8).eval(), dice_alone)
sample = sample_logits(member, slices[:10], plan, pixels=100)
print({name: tuple(t.shape) for name, t in vars(sample).items() if t is not None})


# %% [markdown]
# What a network answers at a temperature are its logits over the temperature, as probabilities. With a [presence head](../models/20_presence.ipynb) they are multiplied by the probability that the structure is on the slice at all. The product has logits too, and they are what is judged below.

# %%
#| export
def logits_at(
    loss: nn.Module,
    sample: PixelSample,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The logits `[N, K, 1, P]` of the probabilities that the network gives at this temperature.

    loss: knows how logits become probabilities. The probabilities are those of `class_probabilities`.
    """
    logits = sample.logits/temperature
    if sample.presence_logits is None:
        return logits
    on_image = sample.presence_logits.sigmoid()[..., None, None]
    prob = (loss.probabilities(logits)*on_image).clamp(1e-7, 1 - 1e-7)
    if loss.activation == "sigmoid":
        return prob.logit()
    background = (1 - prob.sum(1, keepdim=True)).clamp(min=1e-7)
    return torch.cat([background, prob], 1).log()


# %%
z, head = torch.tensor([0., 1., -2.]).view(1, 3, 1, 1), torch.tensor([[0., 2.]])
for loss, logits in ((create_loss("marginal"), z), (create_loss("masked"), z[:, 1:])):
    headed = PixelSample(logits, None, None, head)
    want = loss.probabilities(logits/2)*head.sigmoid()[..., None, None]
    test_close(loss.probabilities(logits_at(loss, headed, 2.)), want, eps=1e-6)
print("with a presence head:", want.flatten())


# %% [markdown]
# ## The temperature
#
# Which $T$? The one with the least negative log-likelihood of what is known. That is the cross-entropy term of the [losses](../losses/20_fused.ipynb), which know how to leave the unknown out: the masked binary one for sigmoid outputs, the marginal one for softmax outputs. A bounded search over $\log T$ finds it in twenty evaluations.

# %%
#| export
def known_nll(
    logits: torch.Tensor,
    mask: torch.Tensor,
    known: torch.Tensor,
    activation: str,
    unions: Unions = (),
) -> float:
    """Mean negative log-likelihood of what is known, by the pixel terms of the masked and the marginal loss.

    logits: f32 `[N, K, 1, P]`. mask: int64 `[N, 1, P]`. known: bool `[N, C]`. activation: "sigmoid" or "softmax".
    """
    sigmoid = activation == "sigmoid"
    loss = create_loss("masked", w_dice=0, w_bce=1) if sigmoid else create_loss("marginal", w_dice=0, w_ce=1)
    loss.unions = unions
    with torch.no_grad():
        return loss(logits, mask, known).item()


# %%
certain = torch.tensor([4., -4.]).view(1, 1, 1, 2)
said_so, examined = torch.tensor([[[1, 0]]]), torch.tensor([[True]])
print("a sure answer that is right", round(known_nll(certain, said_so, examined, "sigmoid"), 3),
      " and wrong", round(known_nll(-certain, said_so, examined, "sigmoid"), 3))


# %%
#| export
def divide(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    "Logits `[…]` divided by a temperature."
    return logits/temperature


def fit_temperature(
    logits: torch.Tensor,
    mask: torch.Tensor,
    known: torch.Tensor,
    activation: str,
    scale: Callable = divide,
    unions: Unions = (),
) -> float:
    """The temperature T in 1/8…8 for which `scale(logits, T)` are likeliest (Guo et al. 2017, section 4.2).

    logits, mask, known, activation: as for `known_nll`. scale: what a temperature makes of logits.
    """
    def nll(log_temperature):
        return known_nll(scale(logits, np.exp(log_temperature)), mask, known, activation, unions)
    limit = np.log(8)
    from scipy.optimize import minimize_scalar  # slow, and only needed here
    best = minimize_scalar(nll, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(best.x))


# %% [markdown]
# To test the fit we draw labels from known probabilities, then multiply the logits by a factor. The fit must return the factor, for both kinds of outputs, although half of the cells are unknown.

# %%
g = torch.Generator().manual_seed(0)
true = torch.randn(20, 4, 1, 2000, generator=g)*1.5 - 1
known = torch.rand(20, 3, generator=g) < 0.5
known[:, 0] = True
drawn = torch.multinomial(true.softmax(1).movedim(1, -1).flatten(0, 2), 1, generator=g).reshape(20, 1, 2000)
examined = known.gather(1, (drawn - 1).clamp(min=0)[:, 0]).reshape(drawn.shape)
stored = torch.where((drawn == 0) | examined, drawn, 0)  # 0 is background
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
# A reliability diagram sorts the pairs (pixel, class) by the probability that the network gave, and compares it with how often the class was there. The *expected calibration error* (ECE) is the mean distance between the two. Nearly all pairs are trivial, such as a lung class at a pixel of the brain, and would hide the rest. So we take only pairs to which the network gave at least 1 % before calibration, and the same pairs after it.

# %%
#| export
def known_pairs(mask: torch.Tensor, known: torch.Tensor, unions: Unions = ()) -> torch.Tensor:
    "bool `[N, C, 1, P]`: the class was examined on the image (`known` `[N, C]`), or the pixel is labelled; not at 255."
    labels = mask.masked_fill(mask == IGNORE, 0)
    told = known[:, :, None, None] | told_by_label(labels, known.shape[1], unions)
    return told & (mask != IGNORE)[:, None]


# %%
known_pairs(torch.tensor([[[0, 1]]]), torch.tensor([[True, False]]))[0, :, 0].int()


# %%
#| export
def reliability(
    prob: torch.Tensor,
    hit: torch.Tensor,
    bins: int = 15,
) -> tuple[list[tuple[float, float, int]], float]:
    """The points of a reliability diagram with bins of equal width, and the expected calibration error.

    prob: f32 `[M]`, what was said. hit: bool `[M]`, whether it was so. A point is (mean said, share that was so,
    pairs) of a bin that has any. Source: Guo et al. 2017, equation 3.
    """
    prob, hit = prob.cpu(), hit.cpu()  # not every device has float64
    bin_of = (prob*bins).long().clamp(max=bins - 1)
    count = torch.bincount(bin_of, minlength=bins)
    said = torch.bincount(bin_of, prob.double(), minlength=bins)/count.clamp(min=1)
    was_so = torch.bincount(bin_of, hit.double(), minlength=bins)/count.clamp(min=1)
    ece = (count*(said - was_so).abs()).sum()/count.sum().clamp(min=1)
    rows = zip(said.tolist(), was_so.tolist(), count.tolist())
    return [(round(s, 4), round(w, 4), n) for s, w, n in rows if n], ece.item()


# %% [markdown]
# Ten pixels at 0.1, of which one is right, are calibrated. Ten at 0.9, of which seven are right, are overconfident.

# %%
p = torch.tensor([0.1]*10 + [0.9]*10)
points, ece = reliability(p, torch.tensor([True] + [False]*9 + [True]*7 + [False]*3), bins=5)
test_eq(points, [(0.1, 0.1, 10), (0.9, 0.7, 10)])
test_close(ece, 0.1, eps=1e-6)  # half of the pairs are off by 0.2


# %% [markdown]
# ## Before and after
#
# To judge a temperature on the slices it was fitted on would be a little too kind. So "after" is measured crosswise: we divide the patients into two halves, and judge each half with the temperature of the other. The temperature that is kept comes from all of them.

# %%
#| export
def fit_on(loss: nn.Module, sample: PixelSample) -> float:
    "The temperature of a network on held-out pixels, its presence head included."
    def scale(logits, temperature):
        return logits_at(loss, sample, temperature)
    return fit_temperature(sample.logits, sample.mask, sample.known, loss.activation, scale, loss.unions)


# %%
print("a temperature for all slices", round(fit_on(dice_alone, sample), 2))


# %%
#| export
def crosswise(
    loss: nn.Module,
    sample: PixelSample,
    half: torch.Tensor,
) -> torch.Tensor:
    "Logits `[N, K, 1, P]` of which each half of the slices (bool `[N]`) has the temperature of the other."
    out = torch.empty_like(sample.logits)
    for rows in (half, ~half):
        out[rows] = logits_at(loss, sample[rows], fit_on(loss, sample[~rows]))
    return out


# %%
half = torch.arange(10) % 2 == 0
cool = crosswise(dice_alone, sample, half)
print("logits", tuple(cool.shape))


# %%
#| export
def likely_pairs(
    loss: nn.Module, sample: PixelSample, logits: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    "The known (pixel, class) pairs of a probability of 0.01 or more, bool `[N, C, 1, P]`; for each, whether it is so."
    prob = loss.probabilities(logits)
    pairs = known_pairs(sample.mask, sample.known, loss.unions) & (prob >= 0.01)
    ids = torch.arange(1, prob.shape[1] + 1)[:, None, None]
    return pairs, (sample.mask[:, None] == ids)[pairs]

def quality(
    loss: nn.Module, sample: PixelSample, logits: torch.Tensor, pairs: torch.Tensor, hit: torch.Tensor,
) -> tuple[list, float, float]:
    "Of logits [N,K,1,P] of the sample: the points of the diagram, the expected calibration error, the negative log-likelihood."
    points, ece = reliability(loss.probabilities(logits)[pairs], hit)
    return points, ece, known_nll(logits, sample.mask, sample.known, loss.activation, loss.unions)


# %%
toy_sample = PixelSample(
    torch.tensor([[[[2., -2]]]]), torch.tensor([[[1, 0]]]), torch.tensor([[True]]),
)
toy_loss = create_loss("masked")
toy_pairs, toy_hit = likely_pairs(toy_loss, toy_sample, toy_sample.logits)
print(toy_pairs.flatten().tolist(), toy_hit.tolist())
print(quality(toy_loss, toy_sample, toy_sample.logits, toy_pairs, toy_hit)[1:])


# %%
#| export
def calibrate(
    member: Member,
    slices: SliceSet,
    plan: DevicePlan,
    batch_size: int = 16,
) -> dict:
    """Fit the temperature on what is known of held-out, annotated `slices`, and tell what it does.

    Returns temperature, numbers of slices and pairs, expected calibration error ("ece"), negative
    log-likelihood ("nll") and the points of the diagram, before and after. `InputError` for fewer than two groups.
    """
    groups, loss = np.unique(slices.groups), member.loss
    if len(groups) < 2:
        raise InputError("calibration needs held-out slices of at least two patients or groups")
    sample = sample_logits(member, slices, plan, batch_size=batch_size)
    half = torch.from_numpy(np.isin(slices.groups, groups[::2]))
    before = logits_at(loss, sample)
    pairs, hit = likely_pairs(loss, sample, before)
    points, ece, nll = quality(loss, sample, before, pairs, hit)
    del before  # as large as the sample
    after = crosswise(loss, sample, half)
    points_after, ece_after, nll_after = quality(loss, sample, after, pairs, hit)
    facts = {"temperature": round(fit_on(loss, sample), 4), "slices": len(slices), "pairs": int(pairs.sum())}
    facts |= {"ece before": ece, "ece after": ece_after, "nll before": nll, "nll after": nll_after}
    return facts | {"points before": points, "points after": points_after}


# %% [markdown]
# An untrained network gives about one half everywhere. Discs are rarer than that, and no temperature can mend it, so the error hardly falls.

# %%
fresh = calibrate(member, slices[14:], plan)
print({name: round(fresh[name], 3) for name in ("temperature", "ece before", "ece after")})


# %%
#| export
def plot_reliability(calibration: dict) -> "Figure":
    "The reliability diagram before and after, from what `calibrate` returned."
    import matplotlib.pyplot as plt  # slow, and only needed here
    _, ax = plt.subplots(figsize=(3.6, 3.4), layout="constrained")
    ax.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":")
    for when, colour in (("before", "C1"), ("after", "C0")):
        points = np.array(calibration[f"points {when}"]).reshape(-1, 3)  # maybe none
        label = f"{when}: ECE {calibration[f'ece {when}']:.3f}"
        ax.plot(points[:, 0], points[:, 1], "o-", color=colour, ms=4, label=label)
    ax.set(xlabel="what the network says", ylabel="how often it is so")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.legend(frameon=False)
    return ax.figure


# %% [markdown]
# ## A network taught by Dice alone
#
# Nobody could tell where exactly the noisy discs end. A small network learns from fourteen of them by the Dice term alone, which rewards a decided answer even where it cannot be sure. We test it on the other slices: it is too sure, and a temperature above 1 mends most of that.

# %%
data, opt = SliceData(slices, "cpu"), torch.optim.Adam(member.model.parameters(), 4e-3)
member.model.train()
for index in torch.randint(14, (240, 4), generator=torch.Generator().manual_seed(0)):
    batch = data.batch(index)
    opt.zero_grad()
    dice_alone(member.model(batch.image), batch.mask, batch.known).backward()
    opt.step()
member.model.eval()

calibration = calibrate(member, slices[14:], plan)
plot_reliability(calibration)
plt.title("Two discs, by Dice alone")
plt.show()
print({name: round(value, 3) for name, value in calibration.items() if "points" not in name})
assert calibration["temperature"] > 1 and calibration["ece after"] < calibration["ece before"]
