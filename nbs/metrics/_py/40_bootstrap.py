# %% [markdown]
# # How far to trust a score
#
# > Intervals over patients, and the difference of two models on the same draws.
#
# - skip_showdoc: true

# %%
#| default_exp metrics.bootstrap

# %%
#| export
import numpy as np

from ctseg.core.errors import InputError
from ctseg.metrics.challenge import nan_mean

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_close, test_eq

from ctseg.core.toys import toy_prediction, toy_world
from ctseg.metrics.bootstrap import bootstrap_mean
from ctseg.metrics.challenge import challenge_dice, dice_table, mean_dice

# %% [markdown]
# Slices of one patient resemble each other, so 300 slices of 15 patients are nearer to 15 pieces of evidence than to 300. The *grouped bootstrap* draws patients with replacement and scores each draw with the full metric.
#
# To compare two models, both get **the same draws**. A hard patient then weighs on both, and the difference comes out much sharper than two intervals side by side.
#
# Ten patients, with four neighbouring slices each that look the same. Taken as 40 independent slices, their interval is too narrow; taken as ten patients, it is honest:

# %%
world = toy_world(10, examined=3)
table = dice_table(toy_prediction(world), world.truth, 3)
table = np.repeat(table, 4, axis=0)  # [40,3]: four slices a patient
patient = np.repeat(np.arange(10), 4)
for what, groups in (("40 independent slices", None), ("10 patients", patient)):
    score = bootstrap_mean(table, groups)
    print(f"{what:21} Dice {score['mean']:.3f}, 95 % interval {score['low']:.3f} to {score['high']:.3f}")

# %% [markdown]
# ## Sums of each group
#
# A draw only asks how often each group was taken. With the sums and counts of every group prepared, 2000 draws are two small matrix products.

# %%
#| export
MOST = 1 << 24 # numbers of an array that is made on the way

def summed_by(member: np.ndarray, n: int, tables: np.ndarray) -> np.ndarray:
    "Tables [S,N,C] summed over the images of each of n groups, float64 [S,n,C]; `member`: the group of each image, [N]."
    sums = np.zeros((len(tables), n, tables.shape[2]))
    for total, table in zip(sums, tables):
        np.add.at(total, member, table)
    return sums


# %%
test_eq(summed_by(np.array([1, 0, 1]), 2, np.array([[[1, 2], [3, 4], [5, 6]]])), [[[3, 4], [6, 8]]])


# %%
#| export
def group_sums(tables: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    "Sums and counts of the cells of each group, [S,G,C] each, for tables [N,C] or [S,N,C] and the group of each image [N]."
    tables = np.asarray(tables, float)
    if tables.ndim == 2: tables = tables[None]
    images = tables.shape[1]
    groups = np.arange(images) if groups is None else np.asarray(groups)
    if len(groups) != images:
        raise InputError(f"{len(groups)} groups for {images} images; give each image its group")
    number, member = np.unique(groups, return_inverse=True)
    values = np.nan_to_num(tables)
    scored = ~np.isnan(tables)
    if len(number)*images <= MOST:
        of_group = (number[:, None] == groups).astype(float)
        return of_group @ values, of_group @ scored
    sums = summed_by(member, len(number), values)
    counts = summed_by(member, len(number), scored)
    return sums, counts


# %% [markdown]
# Three slices of two patients and two classes. A cell that nobody can score (NaN) counts for nothing.

# %%
table = np.array([[.5, np.nan], [1., .2], [0., .4]])            # three images, two classes
sums, counts = group_sums(table, groups=["anna", "anna", "bert"])
test_close(sums, [[[1.5, .2], [0., .4]]])
test_close(counts, [[[2, 1], [1, 1]]])


# %%
#| export
def drawn_scores(
    tables: np.ndarray, # [N,C], or [S,N,C] of several runs
    groups: np.ndarray | None, # [N]
    reps: int, # draws
    seed: int,
) -> np.ndarray: # float64 [1+reps]
    "The score of the tables, the mean over runs: first as it is, then under each draw of the groups, float64 [1+reps]."
    return scores_of_sums(*group_sums(tables, groups), reps, seed)

def scores_of_sums(sums: np.ndarray, counts: np.ndarray, reps: int, seed: int) -> np.ndarray:
    "`drawn_scores` of what `group_sums` gives, [S,G,C] each; some draws at a time where groups are many."
    G = sums.shape[1]
    rng = np.random.default_rng(seed)
    at_once = max(1, MOST//(8*max(1, G)))  # several such arrays are in memory together
    scores = []
    first = np.ones((1, G))  # the tables as they are
    for done in range(0, max(1, reps), at_once):
        draws = min(at_once, reps - done)
        drawn = rng.multinomial(G, np.full(G, 1/G), draws)
        times = np.concatenate([first, drawn])  # how often each group counts
        n = times @ counts
        nothing = np.full(n.shape, np.nan)
        cells = np.divide(times @ sums, n, out=nothing, where=n > 0)
        of_runs = nan_mean(cells, 2)
        scores.append(nan_mean(of_runs, 0))
        first = first[:0]
    return np.concatenate(scores)


# %%
scores = drawn_scores(table, None, reps=5, seed=0)
test_close(scores[0], mean_dice(table))
scores.round(3)


# %%
#| export
def interval(values: np.ndarray, level: float) -> tuple[float, float]:
    "The central interval that holds the share `level` of the values, float [R]; NaN are left out."
    values = values[~np.isnan(values)]
    if not len(values): return np.nan, np.nan
    tails = (1 - level)/2, (1 + level)/2
    low, high = np.quantile(values, tails)
    return float(low), float(high)


# %% [markdown]
# Half of five draws lies between the second and the fourth; a draw without a score is left out.

# %%
test_eq(interval(np.array([0., 1., 2., 3., 4., np.nan]), level=.5), (1., 3.))


# %% [markdown]
# ## One model

# %%
#| export
def number_of_groups(table: np.ndarray, groups: np.ndarray | None) -> int:
    "How many groups the images of a table [N,C] or [S,N,C] form; every image is one by itself if `groups` is None."
    if groups is None: return np.shape(table)[-2]
    return len(np.unique(groups))


# %% [markdown]
# Without groups each slice is a group of its own.

# %%
test_eq((number_of_groups(table, None), number_of_groups(table, ["anna", "anna", "bert"])), (3, 2))


# %%
#| export
def bootstrap_mean(
    table: np.ndarray, # [N,C] from `dice_table`, or [S,N,C] of several runs, which are averaged
    groups: np.ndarray | None = None, # [N], for instance patients; None: every image by itself
    reps: int = 2000, # draws
    level: float = .95, # of the interval
    seed: int = 0,
) -> dict: # mean, low, high, groups, level, reps
    "The challenge's score with a percentile interval over groups: mean, low, high, groups, level, reps."
    scores = drawn_scores(table, groups, reps, seed)
    G = number_of_groups(table, groups)
    return mean_and_interval(scores, level) | dict(groups=G, level=level, reps=reps)

def mean_and_interval(scores: np.ndarray, level: float) -> dict[str, float]:
    "mean, low and high of what `drawn_scores` gives: the score and those of R draws, float [1 + R]."
    low, high = interval(scores[1:], level)
    return dict(mean=float(scores[0]), low=low, high=high)


# %%
world = toy_world(40, missing=.4, examined=3)
truth, pred, patients = world.truth, toy_prediction(world), np.arange(40)//4  # forty slices of ten patients
table = dice_table(pred, truth, 3)
{name: round(value, 4) for name, value in bootstrap_mean(table, patients).items()}


# %% [markdown]
# ## Two models

# %%
#| export
def paired_bootstrap(
    table_a: np.ndarray, # [N,C], or [S,N,C] of several runs, which are averaged
    table_b: np.ndarray, # the same images
    groups: np.ndarray | None = None, # [N], for instance patients; None: every image by itself
    reps: int = 2000, # draws, the same for both
    level: float = .95, # of the interval
    seed: int = 0,
) -> dict: # a, b, difference a - b, low, high, p_better, groups, level, reps
    "The difference a - b of two scores with a percentile interval; `p_better` is the share of draws in which a is better."
    if np.shape(table_a)[-2:] != np.shape(table_b)[-2:]:
        raise InputError(f"tables of {np.shape(table_a)} and {np.shape(table_b)}: "
                         "expected the same images and classes")
    a, *draws_a = drawn_scores(table_a, groups, reps, seed)
    b, *draws_b = drawn_scores(table_b, groups, reps, seed)
    draws = np.array(draws_a) - np.array(draws_b)
    draws = draws[~np.isnan(draws)]  # a draw of groups without any score says nothing
    low, high = interval(draws, level)
    p_better = float(np.mean(draws > 0)) if len(draws) else np.nan
    return dict(
        a=float(a),
        b=float(b),
        difference=float(a - b),
        low=low,
        high=high,
        p_better=p_better,
        groups=number_of_groups(table_a, groups),
        level=level,
        reps=reps,
    )


# %% [markdown]
# A rival keeps quiet on every second slice where the model invents a left lung. Apart, the two intervals overlap. Paired, the sign of the difference is clear.

# %%
#| fig-alt: "Two intervals that overlap, and the interval of their difference, clear of zero"
rival = pred.copy()
invented = (pred == 2).any((1, 2)) & ~(truth == 2).any((1, 2))
for i in np.flatnonzero(invented)[::2]: rival[i][pred[i] == 2] = 0
rival_table = dice_table(rival, truth, 3)
results = {"rival": bootstrap_mean(rival_table, patients), "model": bootstrap_mean(table, patients)}
pair = paired_bootstrap(rival_table, table, patients)

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 1.8), layout="constrained")
for i, result in enumerate(results.values()):
    left.plot([result["low"], result["high"]], [i, i], "C0", lw=4)
    left.plot(result["mean"], i, "ko")
left.set(yticks=[0, 1], yticklabels=list(results), ylim=(-.6, 1.6), title="each by itself", xlabel="score")
right.plot([pair["low"], pair["high"]], [0, 0], "C0", lw=4)
right.plot(pair["difference"], 0, "ko")
right.axvline(0, color="grey", ls="--")
right.set(yticks=[], ylim=(-.6, .6), title="difference on the same draws", xlabel="rival − model")
print(
    f"difference {pair['difference']:.3f}, from {pair['low']:.3f} to {pair['high']:.3f}; better in "
    f"{pair['p_better']:.1%} of the draws"
)

# %% [markdown]
# The interval covers the choice of *patients*. It does not cover the luck of training. For that, train several seeds and pass their tables stacked as `[S,N,C]`: the scores are averaged over runs, and the differences between seeds belong beside the interval.
#
# ## Checks
#
# The value without resampling is the metric. A draw is the metric of the slices repeated accordingly. A model against itself differs by exactly nothing. One group gives an interval without width.

# %%
test_close(bootstrap_mean(table)["mean"], challenge_dice(pred, truth, 3), 1e-12)
times = np.random.default_rng(5).multinomial(10, np.full(10, .1), 1)[0]
slow = mean_dice(np.concatenate([table[patients == g] for g in range(10) for _ in range(times[g])]))
test_close(drawn_scores(table, patients, 1, 5)[1], slow, 1e-12)
same = paired_bootstrap(table, table, patients)
test_eq((same["difference"], same["low"], same["high"], same["p_better"]), (0, 0, 0, 0))
one = bootstrap_mean(table, np.zeros(40))
test_close([one["low"], one["high"]], [one["mean"]]*2, 1e-12)
