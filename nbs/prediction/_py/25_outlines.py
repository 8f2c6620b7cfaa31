# %% [markdown]
# # How small a structure can be
#
# > From what people outlined: the least area that a class must cover on a slice to be believed.
#
# - skip_showdoc: true

# %%
#| default_exp prediction.outlines

# %%
#| export
import numpy as np

from ctseg.data.lazy import blocks
from ctseg.data.slices import SliceSet

# %%
#| hide
from fastcore.test import test_eq

from ctseg.data.toys import toy_set


# %% [markdown]
# What the network draws beyond the end of an organ is mostly small: a few pixels of it on the next slice. People outline no such scraps. So every class gets a **least area**: half of what nineteen of twenty of its outlines exceed. This needs no held-out slice, and all annotated ones have a say. Of a class with few outlines less is known, so it is asked for less.
#
# The percentile is a low one on purpose. Livers end in slices where they cover a hundredth of their usual area, and networks draw those well: at 256 pixels, where spleens and livers of seven sources had such ends, half of the *twentieth* percentile cost 0.05 of Dice. [The benchmark](../benchmarks/decision_rule.ipynb#least-areas) has what the fifth is worth.

# %%
#| export
def outlined_areas(slices: SliceSet) -> np.ndarray: # int64 [N,C]
    "How many pixels of each class people outlined."
    last = len(slices.classes)
    areas = []
    for masks in blocks(slices.masks):  # which may be larger than memory
        for mask in masks:
            areas.append(np.bincount(mask.ravel(), minlength=256)[1:last + 1])
    return np.stack(areas)


# %%
slices, _ = toy_set(60, labelled=40, size=48)
areas = outlined_areas(slices)
print("outlines of each class:", (areas > 0).sum(0), " pixels at most:", areas.max(0))

# %%
#| export
SMALL, SHARE = 5, 0.5 # the least area is this share of this percentile of the outlined ones
FEW = 5 # with so many outlines it is half of that
ENOUGH = 2000 # annotated slices say it; more would take long to read

def least_shares(slices: SliceSet) -> tuple[float, ...] | None: # [C]
    "The share of a slice that a class must cover to be believed, by what people outlined; None without outlines."
    rows = np.flatnonzero(slices.labelled)
    rows = rows[:: max(1, -(-len(rows)//ENOUGH))]
    if not len(rows): return None
    areas = outlined_areas(slices[rows])
    shares = []
    for of_class in areas.T:
        outlined = of_class[of_class > 0]
        least = SHARE*np.percentile(outlined, SMALL) if len(outlined) else 0
        trust = len(outlined)/(len(outlined) + FEW)
        shares.append(round(float(trust*least/slices.images[0].size), 6))
    return tuple(shares) if any(shares) else None


# %%
least = least_shares(slices)
print("least pixels:", np.round(np.multiply(least, slices.images[0].size), 1))
small = [int((of_class[of_class > 0] < share*slices.images[0].size).sum())
         for of_class, share in zip(areas.T, least)]
print("outlines that are smaller:", small)
assert not any(small)
test_eq(least_shares(slices[~slices.labelled]), None)
