# %% [markdown]
# # Unions
#
# > Where annotators outlined "lungs", the network is asked for a left and a right lung together, and nothing tells it which is which.
#
# - skip_showdoc: true

# %%
#| default_exp losses.unions

# %%
#| export
import torch

from ctseg.core.unions import Unions, related_pairs

# %%
#| hide
import torch
from fastcore.test import test_close, test_eq

from ctseg.losses.unions import together

# %% [markdown]
# A [union](../core/38_unions.ipynb) is a class made of others. A network never draws one, so the channel of the union is free. A loss puts the joint logit of the members there, wherever the truth does not tell them apart. Then every loss and every formula of the next pages holds as it is.
#
# A member is **told apart** at a pixel where it was examined, or where the pixel is labelled with it. Where the union was examined, or the pixel is labelled with it, the union stands for those of its members that are not told apart. So on a slice of "lungs" with the left lung outlined as well, the rest of the lungs is the right one.

# %% [markdown]
# At one pixel a network gives the left lung 0.5, the right lung 0.3 and the heart 0.1. What does it say of *lungs*, which it has no channel of its own for?

# %%
left, right = torch.tensor(0.5), torch.tensor(0.3)
of_sum = together([left.log(), right.log()], softmax=True).exp()
noisy_or = together([left.logit(), right.logit()], softmax=False).sigmoid()
print(f"softmax: the sum, {of_sum:.2f}; sigmoid: noisy-or, {noisy_or:.2f}")


# %% [markdown]
# ## Together
#
# What is the probability of a union? The channels of a **softmax** exclude each other, so the probability of a union is the sum of its members' probabilities. Its logit is the logarithm of the sum of exponentials.
#
# The channels of **sigmoids** are answers to separate questions. We take them as independent: a pixel is in the union unless it is in no member, $P = 1-\prod_m(1-p_m)$ (*noisy-or*). The alternative is the largest $p_m$. It has two faults. Inside the union only one member gets a gradient: the member that happens to lead is pushed further up, although the truth does not name it. And outside of the union only that one is pushed down, while noisy-or pushes down each member exactly as if it had been examined and found absent: $-\ln(1-P)=-\sum_m\ln(1-p_m)$.
#
# Both are computed on logits, where nothing underflows. The odds of $P$ for two members are $(1+e^a)(1+e^b)-1=e^a+e^b+e^{a+b}$.

# %%
#| export
def together(
    logits: list[torch.Tensor], # of the members, all of one shape
    softmax: bool, # else sigmoid
) -> torch.Tensor: # the same shape
    "The logit of a union: of the sum of its members' probabilities (softmax), or of their noisy-or (sigmoid)."
    if softmax: return torch.stack(logits).logsumexp(0)
    total = logits[0]
    for other in logits[1:]:
        total = torch.stack([total, other, total + other]).logsumexp(0)
    return total


# %% [markdown]
# With sigmoid outputs, at least one of the members is there: $1 - (1-p_1)(1-p_2)(1-p_3)$. With softmax outputs, the probabilities add up.

# %%
p = torch.tensor([.2, .5, .4])
test_close(together(list(p.logit()), softmax=False).sigmoid(), 1 - .8*.5*.6, 1e-6)
z = torch.tensor([0., 1., 2.])
test_close(together([z[1], z[2]], softmax=True).exp()/z.exp().sum(), z.softmax(0)[1:].sum(), 1e-6)


# %% [markdown]
# ## What is told
#
# A pixel labelled with one class belongs to no other. This does not hold for a union and its members: a pixel labelled "lungs" leaves open which lung it is.

# %%
#| export
def told_by_label(
    mask: torch.Tensor, # int64 [B,…], 0…C
    C: int, # number of classes, unions included
    unions: Unions,
) -> torch.Tensor: # bool [B,C,…]; [B,1,…] where there are no unions
    "For which classes the label of each pixel says whether it is theirs: bool [B,C,…], or [B,1,…] without unions."
    labelled = (mask > 0)[:, None]
    if not unions: return labelled
    settled = labelled.expand(-1, C, *mask.shape[1:]).clone()
    for a, b in related_pairs(unions):
        settled[:, b - 1] &= mask != a
    return settled


def covered(
    known: torch.Tensor, # bool [B,C] or [B,C,…]
    unions: Unions,
) -> torch.Tensor: # bool, of the same shape
    "The members of examined unions: of these it is known that they are nowhere outside of the union."
    found = torch.zeros_like(known)
    for union, members in unions:
        for member in members:
            found[:, member - 1] |= known[:, union - 1]
    return found


# %% [markdown]
# A pixel labelled *lungs* is certainly not heart, but it may be left or right. Where *lungs* was examined, its members are known to be nowhere else.

# %%
lungs = ((3, (1, 2)),)                        # of left 1, right 2, lungs 3, heart 4
test_eq(
    told_by_label(torch.tensor([[3, 1, 0]]), 4, lungs)[0].int(),
    torch.tensor([[0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]),
)
test_eq(
    covered(torch.tensor([[False, False, True, True]]), lungs), torch.tensor([[True, True, False, False]])
)


# %% [markdown]
# ## In the place of the logits
#
# Now each member is moved into the channel of a union where the truth names only the union. Of two unions the smaller one takes its members first: where both "right lung" and "lungs" were examined, the lobes on the right go into the first, and the other lobes into the second. The channel of a member that was moved, or of a union that got no member, gets a logit so low that its probability is 0, and so is its gradient.

# %%
#| export
def any_of(places: dict[int, torch.Tensor]) -> torch.Tensor:
    "Where any of several maps is true: of bool [B,N] each, bool [B,N]."
    return torch.stack(list(places.values())).any(0)


def free_members(
    union: int,
    members: tuple[int, ...],
    mask: torch.Tensor, # int64 [B,N]
    known: torch.Tensor, # bool [B,C,1|N]
    taken: dict[int, torch.Tensor], # member → where it was moved into a smaller union, bool [B,N]
) -> dict[int, torch.Tensor]: # member → bool [B,N]
    "Where each member is moved into the channel of a union; at a pixel labelled with the union at least one is."
    named = known[:, union - 1] | (mask == union)
    left, free = {}, {}
    for member in members:
        told_apart = known[:, member - 1] | (mask == member)
        left[member] = named & ~taken[member] if member in taken else named
        free[member] = left[member] & ~told_apart
    # the label is the union, and no member is left to be it: the truth contradicts itself, so any may be
    contradicted = (mask == union) & ~any_of(free)
    return {member: free[member] | (left[member] & contradicted) for member in members}


# %% [markdown]
# The right lung was examined on this slice, so only the left one is moved into the union's channel:

# %%
labels, examined = torch.tensor([[3, 1, 0]]), torch.tensor([[[False], [True], [True], [True]]])
free = free_members(3, (1, 2), labels, examined, {})
test_eq([free[m].int().tolist() for m in (1, 2)], [[[1, 0, 1]], [[0, 0, 0]]])  # the right lung was examined


# %%
#| export
def put_unions(
    logits: torch.Tensor, # f32 [B,K,N]
    mask: torch.Tensor, # int64 [B,N], 0…C
    known: torch.Tensor, # bool [B,C,1|N]
    unions: Unions,
    softmax: bool, # else sigmoid; K is C + 1 or C
) -> tuple[torch.Tensor, torch.Tensor]: # logits [B,K,N]; bool [B,C,N]
    "Logits with members moved into the channels of unions, and bool [B,C,N]: which channels have a meaning there."
    impossible = torch.finfo(logits.dtype).min/8
    first = 0 if softmax else 1  # the class of channel 0
    channels = list(logits.unbind(1))
    size = len(mask), known.shape[1], mask.shape[1]
    speaks = torch.ones(size, dtype=torch.bool, device=mask.device)
    taken: dict[int, torch.Tensor] = {}
    for union, members in unions:
        moved = free_members(union, members, mask, known, taken)
        occupied = any_of(moved)
        parts = [torch.where(moved[member], logits[:, member - first], impossible) for member in members]
        joint = together(parts, softmax)
        channels[union - first] = torch.where(occupied, joint, impossible)
        speaks[:, union - 1] = occupied
        for member in members:
            before = taken.get(member, moved[member])
            taken[member] = before | moved[member]
    for member, elsewhere in taken.items():
        channels[member - first] = torch.where(elsewhere, impossible, channels[member - first])
        speaks[:, member - 1] = ~elsewhere
    return torch.stack(channels, 1), speaks


# %% [markdown]
# A pixel of "lungs", one of the left lung, and one of neither, on a slice where the lungs and the heart were examined. The network is undecided between background, left, right and heart.

# %%
examined = torch.tensor([[[False], [False], [True], [True]]])
joined, speaks = put_unions(torch.zeros(1, 5, 3), labels, examined, lungs, softmax=True)
print("probability of background, left, right, lungs, heart")
for pixel in joined.softmax(1)[0].T: print(pixel.tolist())
test_eq(speaks[0, :3].int().tolist(), [[0, 1, 0], [0, 0, 0], [1, 1, 1]])


# %% [markdown]
# At the second pixel the left lung has its own channel, and the channel of the union has the rest of the lungs, which is the right one.
#
# ## Probabilities
#
# A network does not draw unions: their channels have the probability 0, and `1 − sum` is background, as everywhere. If you want the probability of a union, add up those of its members (softmax), or take their noisy-or (sigmoid).

# %%
#| export
def without_unions(logits: torch.Tensor, unions: Unions, softmax: bool) -> torch.Tensor:
    "Logits [B,K,…] in which no union has a probability."
    if not unions: return logits
    channels = [union - (not softmax) for union, _ in unions]
    return logits.index_fill(1, torch.tensor(channels, device=logits.device), -torch.inf)


# %% [markdown]
# A network that knows nothing gives each of four channels a quarter: background, left, right and heart.

# %%
p = without_unions(torch.zeros(1, 5, 1), lungs, softmax=True).softmax(1)
test_close(p[0, :, 0], torch.tensor([.25, .25, .25, 0., .25]))
