# %% [markdown]
# # What is taken for what
#
# > Which structures a run confuses, and whether it knows left from right.
#
# - skip_showdoc: true

# %%
#| default_exp report.confusion

# %%
#| export
from typing import Any

import numpy as np

from ctseg.core.anatomy import IGNORE, ClassMap

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq

from ctseg.core.anatomy import ClassMap


# %% [markdown]
# A Dice of 0.6 for the right kidney says that something is wrong, but not what. If its pixels were called *background*, the run is timid. If they were called *left kidney*, it does not know the sides. The confusion table tells the two apart.
#
# Rows are the true structures, columns what their pixels were called, as shares. A row is averaged over the slices that have the structure, so that a large one does not drown the others. Pixels stored as 0 have no row: nobody said what they are.

# %%
#| export
def slice_shares(
    pred: np.ndarray, # uint8 [H, W]
    truth: np.ndarray, # the same; 0 = background or unknown, 255 = ignored
    C: int, # number of classes
) -> tuple[np.ndarray, np.ndarray]: # float64 [C, C+1]; bool [C, 1]: the class is on the slice
    "What share of the pixels of each class was called 0 … C, on one slice."
    counts = truth != IGNORE
    pair = truth[counts].astype(int)*(C + 1) + pred[counts]
    count = np.bincount(pair, minlength=(C + 1)**2).reshape(C + 1, C + 1)[1:]
    area = count.sum(1, keepdims=True)
    return count/np.maximum(area, 1), area > 0


# %%
truth, pred = np.array([[1, 1, 2, 2]], np.uint8), np.array([[1, 0, 2, 2]], np.uint8)
shares, present = slice_shares(pred, truth, 3)
print(shares, present.ravel(), sep="\n")


# %%
#| export
def confusion(
    pred: np.ndarray, # uint8 [N, H, W]
    truth: np.ndarray, # the same; 0 = background or unknown
    C: int, # number of classes
) -> np.ndarray: # float64 [C, C+1]: share of the pixels of class c+1 that were called 0 … C
    "What the labelled pixels of each class were called, averaged over the slices that have it; NaN where none has."
    total = np.zeros((C, C + 1))
    slices = np.zeros((C, 1))
    for p, t in zip(pred, truth):
        shares, present = slice_shares(p, t, C)
        total += shares
        slices += present
    return np.divide(total, slices, out=np.full((C, C + 1), np.nan), where=slices > 0)


# %%
lungs = ClassMap.from_names(["lung_left", "lung_right", "heart"])
truth, pred = np.zeros((2, 1, 4, 5), np.uint8)
truth[0, :, 0], truth[0, :, 4] = 1, 2
pred[0, :, 0], pred[0, :3, 4] = 1, 1   # three quarters of the right lung are called left
table = confusion(pred, truth, 3)
test_eq(table[0], [0, 1, 0, 0])
test_eq(table[1], [.25, .75, 0, 0])
assert np.isnan(table[2]).all()
print(np.array2string(table, precision=2))


# %% [markdown]
# ## Left and right
#
# A network sees a slice without knowing which way it was turned. Where both sides look alike, a swap costs it little in training and the whole Dice later. So lateral structures get a table of their own.

# %%
#| export
def sides(
    table: np.ndarray, # from `confusion`
    classes: ClassMap,
) -> list[dict[str, Any]]: # id, name, own and other (shares), other_name
    "For each lateral structure that occurs: how much of it was called by its own side's name, and by the other's."
    rows = []
    for pair in classes.pairs:
        for a, b in (pair, pair[::-1]):
            own, other = table[a - 1, a], table[a - 1, b]
            if np.isnan(own): continue
            row = {"id": a, "name": classes.name(a), "own": own}
            rows.append(row | {"other": other, "other_name": classes.name(b)})
    return rows


# %%
for r in sides(table, lungs):
    print(f"{r['name']}: {r['own']:.0%} called so, {r['other']:.0%} called {r['other_name']}")

# %% [markdown]
# ## A table that fits a page
#
# With 54 structures most columns are empty. A column is shown if its structure occurs, or if something was taken for it.

# %%
#| export
LEAST_SHARE = 0.01 # from which a structure that does not occur gets a column

def heat_table(
    table: np.ndarray, # from `confusion`
) -> dict[str, list]: # columns: ids, background first; rows: (id, shares), one for each structure that occurs
    "The part of a confusion table that is worth showing."
    present = np.flatnonzero(~np.isnan(table[:, 0])) + 1
    taken_for = (table[present - 1] >= LEAST_SHARE).any(0)
    columns = [0]
    columns += [c for c in range(1, table.shape[1]) if c in present or taken_for[c]]
    return {"columns": columns, "rows": [(int(i), table[i - 1, columns].tolist()) for i in present]}


# %%
#| fig-alt: "A table of two lungs by what their pixels were called, as shares of the pixels"
heat = heat_table(table)
test_eq(heat["columns"], [0, 1, 2])  # no heart, and nothing taken for one
fig, ax = plt.subplots(figsize=(5, 2), layout="constrained")
ax.imshow([shares for _, shares in heat["rows"]], cmap="GnBu", vmin=0, vmax=1, aspect="auto")
ax.set_xticks(range(3), ["background", *lungs.names[:2]])
ax.set_yticks(range(2), [lungs.name(i) for i, _ in heat["rows"]])
ax.set(title="share of the pixels", xlabel="called")
for y, (_, shares) in enumerate(heat["rows"]):
    for x, share in enumerate(shares):
        ax.text(x, y, f"{share:.0%}", ha="center", va="center", color="w" if share > .5 else "k")
