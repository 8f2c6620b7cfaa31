# %% [markdown]
# # What is unknown
#
# > Where the truth says nothing, and what a teacher may say there.

# %%
#| default_exp methods.unknown

# %%
#| export
import math

import torch

from ctseg.core.unions import Unions
from ctseg.data.batches import known_map
from ctseg.losses.unions import covered
from ctseg.training.method import StepContext

# %%
#| hide
import matplotlib.pyplot as plt
import torch
from fastcore.test import test_eq


# %% [markdown]
# Methods of one phase, such as [Mean Teacher](40_mean_teacher.ipynb) and [UniMatch](50_unimatch.ipynb), let a teacher speak wherever people said nothing: on an unlabelled slice everywhere, on an annotated one about the structures that nobody looked for. This page says where that is, and what a softmax teacher means there.
#
# ## Where

# %%
#| export
def settled_by_unions(
    known: torch.Tensor, # bool [B, C] or [B, C, H, W]
    unions: Unions, # classes made of others
) -> torch.Tensor: # bool, of the same shape
    """What a teacher is not asked about: what was examined, unions, and the members of an examined union.

    A network draws no unions. Outside of an examined union its members are absent, and inside the loss asks for all together.
    """
    if not unions:
        return known
    settled = known | covered(known, unions)
    for union, _ in unions:
        settled[:, union - 1] = True
    return settled


# %% [markdown]
# On the first slice *lungs* was examined, which settles both sides. On the second only the right lung was, so the teacher is asked about the left one. It is never asked about a union.

# %%
lungs = ((3, (1, 2)),)  # left, right, lungs
settled = settled_by_unions(torch.tensor([[False, False, True], [False, True, False]]), lungs)
print(settled.int())
test_eq(settled.int().tolist(), [[1, 1, 1], [0, 1, 1]])


# %%
#| export
def unknown_cells(mask: torch.Tensor, known: torch.Tensor, unions: Unions = ()) -> torch.Tensor:
    """The (class, pixel) pairs about which the truth says nothing: bool `[B, C, H, W]`.

    mask: int64 `[B, H, W]`; a labelled pixel is known for all classes. known: bool `[B, C]` or `[B, C, H, W]`.
    unions: classes made of others; these, and the members of an examined one, are left to the loss.
    """
    examined = known_map(settled_by_unions(known, unions), mask.shape[1:])
    labelled = (mask > 0)[:, None]
    return ~(examined | labelled)


# %% [markdown]
# Two images of two pixels, two structures. On the first, people looked for the second structure and outlined it at the second pixel; nobody looked at the second image.

# %%
mask = torch.tensor([[[0, 2]], [[0, 0]]])
known = torch.tensor([[False, True], [False, False]])
unknown_cells(mask, known).int()


# %% [markdown]
# ## What a softmax teacher says there
#
# A softmax has one answer a pixel, and background has a part in it. Where some structures are unknown the truth still says something: what people looked for and did not find is *not* it. So the teacher is asked for its distribution over what is left open, background and the unknown structures.
#
# Were the unknown structures compared alone, with the teacher's probabilities as they are, the probability that a teacher gives to a structure people did not find would pass to background: unknown would be taught as absent.
#
# Any remainder can be renormalised, however small. Suppose annotators examined the left kidney and found none, but the teacher gives it probability 0.99. Removing that class leaves 0.01, so the winner among the rest is noise. So where little is left we believe the teacher only if background wins. On a phantom, whose whole truth is known, background was then nearly always right, another structure only every second time.

# %%
#| export
def renormalised_over_unknown(prob: torch.Tensor, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A softmax teacher's distribution over background and the unknown structures, given that it is none of the others.

    prob: f32 `[B, C, H, W]`. where: bool `[B, C, H, W]` from `unknown_cells`. Returns f32 `[B, 1 + C, H, W]`, background
    first, 0 for what the truth has excluded; and bool `[B, H, W]`, where it may be believed: wherever at least half of
    the teacher's probability is left, and wherever background is the likeliest.
    """
    drawn = prob.sum(1, keepdim=True)
    background = (1 - drawn).clamp(min=0)
    left = torch.cat([background, prob*where], 1)
    mass = left.sum(1, keepdim=True)
    shares = left/mass.clamp(min=1e-12)
    most_is_left = mass[:, 0] >= .5
    likely_background = shares.argmax(1) == 0
    return shares, most_is_left | likely_background


# %% [markdown]
# One pixel: the first structure is unknown, people did not find the second. A teacher that says .45 and .4 leaves .15 for background, and of what is open three quarters are the first structure's. A teacher that says .15 and .75 contradicts the truth and is not believed.

# %%
open_ = torch.tensor([True, False]).view(1, 2, 1, 1)
for first, second in ((.45, .4), (.15, .75)):
    shares, believed = renormalised_over_unknown(torch.tensor([first, second]).view(1, 2, 1, 1), open_)
    print(f"says {first}, {second}: shares {shares.flatten().numpy().round(3)}, believed: {believed.item()}")


# %% [markdown]
# ## How much
#
# A young teacher is no teacher. The weight of what it says rises as $w(t) = w_{\max} \exp(-5(1-t/T)^2)$ over the first $T$ steps.

# %%
#| export
def ramp_up(step: int, length: int) -> float:
    "From nearly 0 to 1 over `length` steps: exp(-5 (1 - t/T)^2) (Laine & Aila 2017, arXiv 1610.02242)."
    if step >= length:
        return 1.0
    return math.exp(-5*(1 - step/length)**2)

def risen(weight: float, share: float, ctx: StepContext) -> float:
    "What a `weight` has risen to at a step, over the first `share` of the steps of a phase."
    return weight*ramp_up(ctx.step, round(share*ctx.total))


# %%
#| fig-alt: "The weight's share against the step: it rises slowly, then steeply, to 1 at step 80"
fig, ax = plt.subplots(figsize=(4.5, 2), layout="constrained")
ax.plot([ramp_up(step, 80) for step in range(120)])
ax.set(xlabel="step", ylabel="share of the weight", title="A ramp of 80 steps")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
