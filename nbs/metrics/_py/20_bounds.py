# %% [markdown]
# # Scores of partial truth
#
# > What can be said of a score where some structures were never examined.
#
# - skip_showdoc: true

# %%
#| default_exp metrics.bounds

# %%
#| export
import numpy as np

from ctseg.metrics.challenge import dice_table, mean_dice

# %%
#| hide
import numpy as np
from fastcore.test import test_eq

from ctseg.core.toys import known_part, toy_prediction, toy_world
from ctseg.metrics.challenge import challenge_dice


# %% [markdown]
# On a partly labelled slice a zero may hide a structure that nobody outlined. The score of the full truth cannot be computed then, but two stand-ins can:
#
# - **optimistic**: only the examined cells count. A prediction of an unexamined class is neither right nor wrong;
# - **pessimistic**: every zero counts as absent. A correct prediction of an unexamined structure is then an invention and scores 0.
#
# The metric looks at each cell (image, class) by itself, so the optimistic score is that of the same table without the unknown cells.

# %%
#| export
def partial_bounds(
    pred: np.ndarray, # classes, uint8 [N,H,W]
    truth: np.ndarray, # the same shape; 0 where a class was not examined
    known: np.ndarray, # bool [N,C], which classes were examined
) -> tuple[float, float]: # optimistic, pessimistic
    "The challenge's score if only cells that `known` [N,C] calls examined count, and if all others are absent."
    known = np.asarray(known, bool)
    table = dice_table(pred, truth, known.shape[1])
    return mean_dice(np.where(known, table, np.nan)), mean_dice(table)


# %%
world = toy_world(200, missing=.4, examined=2)
truth, prediction = world.truth, toy_prediction(world)
optimistic, pessimistic = partial_bounds(prediction, world.masks, world.known)
print(
    f"full truth {challenge_dice(prediction, truth, 3):.3f}; two of three classes examined: optimistic "
    f"{optimistic:.3f}, pessimistic {pessimistic:.3f}"
)
everything = np.ones((len(truth), 3), bool)
test_eq(partial_bounds(prediction, truth, everything), (challenge_dice(prediction, truth, 3),)*2)

# %% [markdown]
# `ctseg` validates with the optimistic one, since it comes nearer to the score of the full truth. Neither is a bound in the strict sense: a structure that is really there and was not predicted drops out of both.

# %%
heart = known_part(truth, world.known & [False, False, True]) == 3  # the model draws no heart
print(
    "hearts that it misses and that nobody examined:", ((truth == 3).any((1, 2)) & ~heart.any((1, 2))).sum()
)
