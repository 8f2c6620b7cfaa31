# %% [markdown]
# # Calibration
#
# > When the network says 80 %, is it right four times out of five? A thermometer, and the one number that mends some of it.

# %%
#| default_exp inference.calibration

# %%
#| export
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ctseg.core.anatomy import IGNORE
from ctseg.core.device import DevicePlan
from ctseg.core.errors import InputError
from ctseg.core.unions import Unions
from ctseg.data.slices import SliceSet
from ctseg.inference.loop import Member
from ctseg.inference.pixel_sample import PixelSample, logits_at, parts_of, sample_logits
from ctseg.losses.in_parts import loss_of_parts
from ctseg.losses.partial import PartialLoss
from ctseg.losses.registry import create_loss
from ctseg.losses.unions import told_by_label

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
# A small network on ten noisy discs, which the last section trains. Here it is fresh. Of each slice a [sample](48_pixel_sample.ipynb) of a hundred pixels is taken.

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
print(len(sample), "slices,", sample.mask.shape[-1], "pixels of each")


# %% [markdown]
# ## The temperature
#
# Which $T$? The one with the least negative log-likelihood of what is known. That is the cross-entropy term of the [losses](../losses/20_fused.ipynb), which know how to leave the unknown out: the masked binary one for sigmoid outputs, the marginal one for softmax outputs. A bounded search over $\log T$ finds it in twenty evaluations.

# %%
#| export
def known_loss(activation: str, unions: Unions = ()) -> PartialLoss:
    'The cross-entropy of what is known: the pixel term of the masked loss ("sigmoid") or the marginal one ("softmax").'
    sigmoid = activation == "sigmoid"
    loss = create_loss("masked", w_dice=0, w_bce=1) if sigmoid else create_loss("marginal", w_dice=0, w_ce=1)
    loss.unions = unions
    return loss

def known_nll(
    logits: torch.Tensor,
    mask: torch.Tensor,
    known: torch.Tensor,
    activation: str,
    unions: Unions = (),
) -> float:
    """Mean negative log-likelihood of what is known.

    logits: f32 `[N, K, 1, P]`. mask: int64 `[N, 1, P]`. known: bool `[N, C]`. activation: "sigmoid" or "softmax".
    """
    with torch.no_grad():
        return known_loss(activation, unions)(logits, mask, known).item()


# %%
certain = torch.tensor([4., -4.]).view(1, 1, 1, 2)
said_so, examined = torch.tensor([[[1, 0]]]), torch.tensor([[True]])
print("a sure answer that is right", round(known_nll(certain, said_so, examined, "sigmoid"), 3),
      " and wrong", round(known_nll(-certain, said_so, examined, "sigmoid"), 3))


# %% [markdown]
# Of a [sample](48_pixel_sample.ipynb) the same is computed a few slices at a time.

# %%
#| export
def sample_nll(
    loss: nn.Module, # of the network
    sample: PixelSample,
    temperatures: torch.Tensor, # f32 [N, 1, 1, 1], of each slice
) -> float:
    "`known_nll` of what a network answers at these temperatures, its presence head included."
    parts = (
        (logits_at(loss, part, temperatures[rows]), part.mask, part.known)
        for rows, part in parts_of(sample)
    )
    return loss_of_parts(known_loss(loss.activation, loss.unions), parts, len(sample))


# %%
every = sample.in_memory()
test_eq(
    sample_nll(dice_alone, sample, torch.ones(10, 1, 1, 1)),
    known_nll(every.logits, every.mask, every.known, "sigmoid"),
)


# %%
#| export
def fit_temperature(loss: nn.Module, sample: PixelSample) -> float:
    """The temperature T in 1/8…8 at which a network's answers are likeliest (Guo et al. 2017, section 4.2).

    loss: of the network, see `logits_at`. sample: held-out pixels.
    """
    def nll(log_temperature):
        temperatures = torch.full((len(sample), 1, 1, 1), np.exp(log_temperature))
        return sample_nll(loss, sample, temperatures)
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
    t = fit_temperature(create_loss("marginal"), PixelSample(true*factor, stored, known))
    print(f"exaggerated {factor:g} times: T = {t:.2f}")
    test_close(t, factor, eps=0.05*factor)

single = true[:, 1:2]
hit = (torch.rand(single.shape, generator=g) < single.sigmoid())[:, 0].long()
told = PixelSample(single*3, hit, known[:, :1])
test_close(fit_temperature(create_loss("masked"), told), 3, eps=0.15)


# %% [markdown]
# ## The thermometer
#
# A reliability diagram sorts the pairs (pixel, class) by the probability that the network gave, and compares it with how often the class was there. The *expected calibration error* (ECE) is the mean distance between the two. Nearly all pairs are trivial, such as a lung class at a pixel of the brain, and would hide the rest. So we take only pairs to which the network gave at least 1 % before calibration, and the same pairs after it.

# %%
#| export
def known_pairs(mask: torch.Tensor, known: torch.Tensor, unions: Unions = ()) -> torch.Tensor:
    "bool `[N, C, 1, P]`: the class was examined on the image (`known` `[N, C]`), or the pixel is labelled; not at 255."
    labels = mask.masked_fill(mask == IGNORE, 0)
    settled = known[:, :, None, None] | told_by_label(labels, known.shape[1], unions)
    return settled & (mask != IGNORE)[:, None]


# %%
known_pairs(torch.tensor([[[0, 1]]]), torch.tensor([[True, False]]))[0, :, 0].int()

# %%
#| export
BINS = 15

def no_sums() -> torch.Tensor:
    "A zero for each bin."
    return torch.zeros(BINS, dtype=torch.float64)

@dataclass
class PairSums:
    "The sums of a reliability diagram with bins of equal width; pairs are added a part at a time."
    pairs: torch.Tensor = field(default_factory=no_sums) # float64 [BINS], as the others
    said: torch.Tensor = field(default_factory=no_sums) # sum of the probabilities
    was_so: torch.Tensor = field(default_factory=no_sums) # of how many it was so

    def add(self, prob: torch.Tensor, hit: torch.Tensor):
        "Add pairs: f32 `[M]`, what was said; bool `[M]`, whether it was so."
        prob, hit = prob.cpu(), hit.cpu()  # not every device has float64
        bin_of = (prob*BINS).long().clamp(max=BINS - 1)
        for sums, values in ((self.pairs, torch.ones_like(prob)), (self.said, prob), (self.was_so, hit)):
            sums.index_add_(0, bin_of, values.double())


# %%
sums = PairSums()
for said in (.5, .45): sums.add(torch.tensor([said]), torch.tensor([True]))
print("pairs by bin:", sums.pairs.long().tolist())


# %%
#| export
class Diagram(PairSums):
    "A reliability diagram, see `PairSums`."
    def points(self) -> list[tuple[float, float, int]]:
        "Of each bin with any pairs: the mean said, the share that was so, and the number of pairs."
        count = self.pairs.clamp(min=1)
        rows = zip((self.said/count).tolist(), (self.was_so/count).tolist(), self.pairs.long().tolist())
        return [(round(said, 4), round(was_so, 4), n) for said, was_so, n in rows if n]

    def error(self) -> float:
        "The expected calibration error (Guo et al. 2017, equation 3)."
        count = self.pairs.clamp(min=1)
        distance = (self.said/count - self.was_so/count).abs()
        return ((self.pairs*distance).sum()/self.pairs.sum().clamp(min=1)).item()


# %% [markdown]
# Ten pixels at 0.1, of which one is right, are calibrated. Ten at 0.9, of which seven are right, are overconfident.

# %%
p = torch.tensor([0.1]*10 + [0.9]*10)
diagram = Diagram()
diagram.add(p, torch.tensor([True] + [False]*9 + [True]*7 + [False]*3))
test_eq(diagram.points(), [(0.1, 0.1, 10), (0.9, 0.7, 10)])
test_close(diagram.error(), 0.1, eps=1e-6)  # half of the pairs are off by 0.2


# %% [markdown]
# ## Before and after
#
# To judge a temperature on the slices it was fitted on would be a little too kind. So "after" is measured crosswise: we divide the patients into two halves, and judge each half with the temperature of the other. The temperature that is kept comes from all of them.

# %%
#| export
def crosswise(
    loss: nn.Module,
    sample: PixelSample,
    half: np.ndarray, # bool [N]
) -> torch.Tensor:
    "Temperatures f32 `[N, 1, 1, 1]`: each half of the slices has that of the other."
    temperatures = torch.empty(len(sample), 1, 1, 1)
    for rows in (half, ~half):
        temperatures[rows] = fit_temperature(loss, sample[~rows])
    return temperatures


# %%
half = np.arange(10) % 2 == 0
print("of the two halves", crosswise(dice_alone, sample, half)[:2].flatten().numpy().round(2))
print("for all slices", round(fit_temperature(dice_alone, sample), 2))


# %%
#| export
def likely_pairs(
    loss: nn.Module, part: PixelSample, prob: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    "The known (pixel, class) pairs of a probability of 0.01 or more, bool `[N, C, 1, P]`; for each, whether it is so."
    pairs = known_pairs(part.mask, part.known, loss.unions) & (prob >= 0.01)
    ids = torch.arange(1, prob.shape[1] + 1)[:, None, None]
    return pairs, (part.mask[:, None] == ids).masked_select(pairs)

def diagrams(
    loss: nn.Module, sample: PixelSample, temperatures: torch.Tensor, # f32 [N, 1, 1, 1]
) -> tuple[Diagram, Diagram]:
    "The reliability of the likely pairs, without temperatures and with them."
    before, after = Diagram(), Diagram()
    for rows, part in parts_of(sample):
        prob = loss.probabilities(logits_at(loss, part))
        pairs, hit = likely_pairs(loss, part, prob)
        before.add(prob.masked_select(pairs), hit)
        cooled = loss.probabilities(logits_at(loss, part, temperatures[rows]))
        after.add(cooled.masked_select(pairs), hit)
    return before, after


# %%
toy_sample = PixelSample(
    torch.tensor([[[[2., -2]]]]), torch.tensor([[[1, 0]]]), torch.tensor([[True]]),
)
for diagram in diagrams(create_loss("masked"), toy_sample, torch.full((1, 1, 1, 1), 2.)):
    print(diagram.points(), round(diagram.error(), 3))


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
    temperatures = crosswise(loss, sample, np.isin(slices.groups, groups[::2]))
    before, after = diagrams(loss, sample, temperatures)
    facts = {"temperature": round(fit_temperature(loss, sample), 4)}
    facts |= {"slices": len(slices), "pairs": int(before.pairs.sum())}
    facts |= {"ece before": before.error(), "ece after": after.error()}
    facts["nll before"] = sample_nll(loss, sample, torch.ones_like(temperatures))
    facts["nll after"] = sample_nll(loss, sample, temperatures)
    return facts | {"points before": before.points(), "points after": after.points()}


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
# Nobody could tell where exactly the noisy discs end. A small network learns from fourteen of them by the Dice term alone, which rewards a decided answer even where it cannot be sure. We test it on the other slices: it is too sure, and a temperature of nearly 2 mends about half of that.

# %%
#| fig-alt: "How often pixels are right against their probability, before and after a temperature"
data, opt = SliceData(slices, "cpu"), torch.optim.Adam(member.model.parameters(), 4e-3)
member.model.train()
for index in torch.randint(14, (360, 4), generator=torch.Generator().manual_seed(0)):
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
