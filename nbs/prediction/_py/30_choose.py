# %% [markdown]
# # Choosing the rule
#
# > On held-out slices, candidate rules are tried on the same probabilities, and the plainest of the good ones is kept.
#
# - skip_showdoc: true

# %%
#| default_exp prediction.choose

# %%
#| export
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ctseg.core.errors import InputError
from ctseg.data.slices import SliceSet
from ctseg.inference.expected_dice import drawn_structures, fit_expected_dice
from ctseg.inference.loop import Each, over_slices
from ctseg.inference.rule import Rule, decide
from ctseg.metrics.bootstrap import drawn_scores
from ctseg.metrics.challenge import examined_dice
from ctseg.prediction.outlines import least_shares, outlined_areas
from ctseg.prediction.predictor import Predictor, RunMember, members_of_runs
from ctseg.prediction.saved import run_spec
from ctseg.runs.folder import Run
from ctseg.runs.split import split_slices

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_eq

from ctseg.core.errors import InputError
from ctseg.data.slices import SliceSet
from ctseg.data.toys import toy_set
from ctseg.inference.rule import Rule
from ctseg.metrics.challenge import mean_dice
from ctseg.prediction.predictor import load_predictor
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings

# %% [markdown]
# The most probable class of each pixel is not the best label map for the Dice: a structure that is drawn where it is not costs the whole score of its cell. [The decision rule](../inference/40_rule.ipynb) has a threshold and decides which structures to keep. Slices that the runs have not trained on say which rule is worth it.
#
# Three small runs serve as the example: two that held out the first fold, and one that held out the second.

# %%
slices, _ = toy_set(60, labelled=40, size=48)
keep = tempfile.TemporaryDirectory()
def small_run(name, seed, fold):
    settings = ["width=8", "epochs=12", "folds=4", "lr=5e-3", "tune_rule=no", f"fold={fold}"]
    recipe = apply_settings(get_recipe("marginal-log"), settings)
    return fit(slices, recipe, Path(keep.name)/name, seed, device="cpu", progress=False)
runs = [small_run("a", 0, 0), small_run("b", 1, 0), small_run("c", 0, 1)]


# %% [markdown]
# ## Who may be asked about which slice
#
# A run holds out one fold of the annotated slices. Five runs of five folds have held out all of them. Yet each slice was held out by *one* run and **trained on by the four others**. A rule that is tuned for the five on those slices together would mostly measure how well they remember.
#
# So each slice is scored only by the runs that held it out: by all of them if they differ in their seeds only, by one if they differ in their folds.

# %%
#| export
def held_out_by(
    run: Run,
    slices: SliceSet, # what it was trained on
    spec: dict[str, Any] | None = None, # its `recipe.json`; None: read it
) -> np.ndarray: # bool [N]
    "The annotated slices that `run` has kept apart."
    spec = spec or run_spec(run)
    if slices.fingerprint() != spec["data"]["fingerprint"]:
        problem = "trained on other data than this, so which slices it has seen is not known"
        remedy = "give the folder it was trained on, and --annotated as it was in training"
        raise InputError(f"{run.folder}: {problem}; {remedy}")
    split = split_slices(slices, spec["recipe"].data, spec["seed"])
    return np.isin(np.arange(len(slices)), split.held_out)


# %%
print(", ".join(slices[held_out_by(runs[0], slices)].names))
try: held_out_by(runs[0], slices[:20])
except InputError as e: print(str(e).replace(keep.name, "…"))


# %%
#| export
class Part(NamedTuple):
    "Slices, and a predictor of which no member has trained on them."
    predictor: Predictor
    slices: SliceSet

def out_of_fold(predictor: Predictor, slices: SliceSet) -> list[Part]:
    "The held-out slices, in parts that the same runs held out; with each part the predictor of those runs alone."
    table = np.stack([held_out_by(member.run, slices, member.spec) for member in run_members(predictor)], 1)
    parts = []
    for pattern in np.unique(table[table.any(1)], axis=0):
        members = [member for member, held_out in zip(predictor.members, pattern) if held_out]
        rows = (table == pattern).all(1)
        parts.append(Part(replace(predictor, members=members), slices[rows]))
    if parts: return parts
    problem = "these runs held out no slices (fold=-1), so no rule can be chosen"
    raise InputError(f"{problem}; give --threshold and --gate")

def run_members(predictor: Predictor) -> list[RunMember]:
    "The members of `predictor`; `InputError` unless all of them come from run folders."
    members = members_of_runs(predictor.members)
    if len(members) == len(predictor.members): return members
    problem = "a model without a run folder: which slices it has seen is not known"
    raise InputError(f"{problem}; load it with load_predictor")


# %%
ensemble = load_predictor([r.folder for r in runs], "cpu")
for predictor, part in out_of_fold(ensemble, slices):
    print("+".join(m.name for m in predictor.members), "may be asked about", ", ".join(part.names))
    for m in predictor.members:
        learnt = split_slices(slices, m.spec["recipe"].data, m.spec["seed"]).labelled
        assert not set(learnt.names) & set(part.names) and not set(learnt.groups) & set(part.groups)

# %% [markdown]
# ## Several rules on the same probabilities
#
# Probabilities are expensive and rules are cheap, so every batch is predicted once and labelled by each rule. What is measured of a label map is the challenge's Dice, on the examined cells only. A class that is absent and not drawn has no Dice, so a rule that invents less is scored over fewer cells.

# %%
#| export
Measure = Callable[[torch.Tensor, torch.Tensor, SliceSet], torch.Tensor]

def label_dice(label: torch.Tensor, prob: torch.Tensor, slices: SliceSet) -> torch.Tensor:
    "`examined_dice` of labels [B, H, W], f32 [B, C]."
    return torch.from_numpy(examined_dice(label.cpu().numpy(), slices)).float()

def structures_drawn(label: torch.Tensor, prob: torch.Tensor, slices: SliceSet) -> torch.Tensor:
    "What the expected Dice is estimated from, f32 [B, 3, C], see `drawn_structures`."
    return drawn_structures(label, prob).movedim(0, 1)


# %%
part = slices[:4]
label = torch.from_numpy(np.roll(part.masks, 1, 1))
print(label_dice(label, None, part).numpy().round(2))


# %%
#| export
def in_parts(predictor: Predictor, held_out: SliceSet | list[Part]) -> list[Part]:
    "`held_out` (slices, or already the parts of `out_of_fold`) with who may be asked about it."
    return [Part(predictor, held_out)] if isinstance(held_out, SliceSet) else held_out

def rule_tables(
    parts: list[Part],
    rules: list[Rule],
    batch_size: int = 16,
    each: Each | None = None, # goes through the batches, and may stop; None: simply
    measure: Measure = label_dice, # of labels [B, H, W], probabilities [B, C, H, W] and the slices: [B, …]
) -> np.ndarray: # [R, N, …]
    "What `measure` says of each rule and slice; needs the memory of one batch."
    tables = []
    for predictor, slices in parts:
        def step(batch: SliceSet) -> dict[int, torch.Tensor]:
            prob = predictor.probabilities(batch.seen(predictor.context))
            labels = [decide(prob, rule, predictor.activation) for rule in rules]
            return {i: measure(label, prob, batch) for i, label in enumerate(labels)}
        tables.append(np.stack(list(over_slices(slices, step, batch_size, each).values())))
    return np.concatenate(tables, 1)


# %%
parts = out_of_fold(ensemble, slices)
tried = [Rule(), Rule(0.3), Rule(0.6)]
tables = rule_tables(parts, tried)
print(tables.shape, "rules, slices, classes")
for rule, table in zip(tried, tables):
    print(f"{rule}: Dice {mean_dice(table):.3f} over {np.isfinite(table).sum()} cells")
known = np.concatenate([part.known for _, part in parts])
assert np.isnan(tables[:, ~known]).all() and np.isfinite(tables[:, known & (tables[0] > 0)]).all()

# %% [markdown]
# ## The candidates
#
# The grid of thresholds is coarse on purpose: with a few dozen slices a fine one would fit their noise. Each threshold is tried alone, and with estimates of which structures to keep, by their [expected Dice](../inference/45_expected_dice.ipynb). It draws other structures than the next, so the estimates are its own. The alternative is one gate for all classes. A [benchmark](../benchmarks/decision_rule.ipynb) compares all of them with plain argmax.

# %%
#| export
THRESHOLDS = (None, 0.3, 0.4, 0.5, 0.6)
GATES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
ISLANDS = (1/2000, 1/1000, 1/500)  # shares of the area of a slice
RESCUES = (0.1, 0.2, 0.3)
MARGIN = 0.002  # of the Dice: what is not better by more than this stays off
DRAWS = 200  # of the held-out slices, for the standard error of a difference

# %%
print(len(THRESHOLDS)*len(GATES), "rules with a gate")


# %%
#| export
def known_to_be_there(slices: SliceSet) -> np.ndarray:
    """Cells bool [N, C] of which it is known whether the class is on the slice.

    A class that is nowhere drawn may lie in pixels that are to be ignored."""
    hidden = ~slices.present & slices.ignored[:, None]
    return slices.known & ~hidden


# %% [markdown]
# On the first slice the liver is certainly absent. On the second it may be under the ignored pixel.

# %%
seen = np.zeros((2, 1, 2), np.uint8)
seen[1, 0, 1] = 255  # the second slice has a pixel to be ignored, and the class may be there
test_eq(known_to_be_there(SliceSet(seen, seen, "all", classes=["liver"])), [[True], [False]])


# %%
#| export
def expected_rules(
    plain: list[Rule],
    parts: list[Part],
    batch_size: int = 16,
    each: Each | None = None, # goes through the batches, and may stop; None: simply
) -> list[Rule]:
    "Each of the `plain` rules with its estimates of which structures to keep."
    tables = rule_tables(parts, plain, batch_size, each, structures_drawn)
    present = np.concatenate([slices.present for _, slices in parts])
    known = np.concatenate([known_to_be_there(slices) for _, slices in parts])
    rules = []
    for rule, table in zip(plain, tables):
        expected = fit_expected_dice(np.moveaxis(table, 1, 0), present, known)
        rules.append(replace(rule, expected=expected))
    return rules


# %%
for rule in expected_rules([Rule(), Rule(0.3)], parts):
    e = rule.expected
    print(f"{rule}: chance of being there {e.bias:+.1f} {e.peak:+.1f}·peak {e.area:+.1f}·area" if e else rule)


# %%
#| export
def with_islands(rule: Rule, area: int, smallest: float = math.inf) -> list[Rule]:
    "`rule` alone, and with each least size of an island up to `smallest`, for slices of `area` pixels."
    sizes = sorted({max(2, round(area*share)) for share in ISLANDS})
    return [rule, *(replace(rule, island=size) for size in sizes if size <= smallest)]

def with_rescue(rule: Rule) -> list[Rule]:
    "`rule` alone, and with each level from which an empty image is rescued."
    return [rule, *(replace(rule, rescue=level) for level in RESCUES)]


# %%
print(*with_islands(Rule(0.3), 256*256), *with_rescue(Rule(0.3)), sep=" | ")


# %% [markdown]
# An island that is removed must be smaller than what people outline: at 64 pixels a spinal cord has 6 to 10 of them, and a rule that removes pieces of less than 8 removes the cord on most slices. Few held-out slices with a cord may not show it.

# %%
#| export
def smallest_area(parts: list[Part]) -> float:
    "The area of a small structure: the 5th percentile of the class where it is least; infinite without any."
    areas = np.concatenate([outlined_areas(part.slices) for part in parts])
    small = [
        np.percentile(of_class[of_class > 0], 5)
        for of_class in areas.T
        if of_class.any()
    ]
    return float(min(small, default=math.inf))


# %%
print(f"a small structure has {smallest_area(parts):.0f} pixels, a slice {parts[0].slices.images[0].size}")


# %% [markdown]
# ## The choice
#
# A complicated rule must *earn* its place: of all rules that the held-out slices cannot tell from the best we take the plainest. They cannot if the difference is within its standard error, or within a small margin. The error is that of the difference under two hundred draws of the slices, with replacement (the *one standard error rule* of Breiman, Friedman, Olshen and Stone 1984, *Classification and regression trees*). Ten slices speak for a new rule only if it gains much; with hundreds a small gain is enough.
#
# The [least areas](25_outlines.ipynb) are not fitted to the held-out slices, so they count as plain: argmax with them is where the search begins, and they are left out only if that is clearly better. Then come thresholds and expected Dice together, then two repairs, one after the other: a least size of islands, and the rescue of empty slices. On most data these gain nothing and stay off.

# %%
#| export
def complexity(rule: Rule) -> tuple:
    "What makes a rule less plain than another, the most important first."
    chosen = rule.expected is not None, rule.least is None, rule.threshold is not None
    return rule.island, rule.rescue, *chosen, rule.gate


# %%
some = [Rule(0.3, least=(.1,)), Rule(0.3, island=4), Rule(0.3), Rule(least=(.1,)), Rule(), Rule(gate=.5)]
print(*sorted(some, key=complexity), sep=" | ")


# %%
#| export
@dataclass
class RuleSearch:
    "Tries rules on held-out slices, and remembers what each scored."
    parts: list[Part]
    each: Each | None = None # goes through the batches, and may stop; None: all in order
    batch_size: int = 16
    drawn: dict[Rule, np.ndarray] = field(default_factory=dict) # the Dice, then under each draw

    @property
    def scores(self) -> dict[Rule, float]:
        "The challenge's Dice of every rule."
        return {rule: float(drawn[0]) for rule, drawn in self.drawn.items()}

    def score(self, rules: list[Rule]):
        "Score those of `rules` that have not been scored yet."
        new = [rule for rule in dict.fromkeys(rules) if rule not in self.drawn]
        if not new: return
        tables = rule_tables(self.parts, new, self.batch_size, self.each)
        self.drawn |= {rule: drawn_scores(table, None, DRAWS, seed=0) for rule, table in zip(new, tables)}

    def told_apart(self, rule: Rule, best: Rule) -> bool:
        "Whether `best` is better by more than the standard error."
        apart = self.drawn[best] - self.drawn[rule]
        return not apart[0] <= max(MARGIN, np.nanstd(apart[1:]))

    def plainest(self, rules: list[Rule]) -> Rule:
        "The plainest of those rules that cannot be told apart from the best."
        self.score(rules)
        scored = [rule for rule in rules if not math.isnan(self.drawn[rule][0])]
        if not scored: return min(rules, key=complexity)
        best = max(scored, key=lambda rule: self.drawn[rule][0])
        return min((rule for rule in scored if not self.told_apart(rule, best)), key=complexity)


# %%
search = RuleSearch(parts)
print("plainest that cannot be told from the best:", search.plainest([Rule(), Rule(0.3), Rule(0.6)]))
print({str(rule): round(score, 3) for rule, score in search.scores.items()})


# %%
#| export
def choose_rule(
    predictor: Predictor,
    held_out: SliceSet | list[Part], # slices that no member has trained on, or the parts of `out_of_fold`
    expected: bool = True, # keep structures by expected Dice; False: by one gate for all
    each: Each | None = None, # goes through the batches, and may stop; None: all in order
    batch_size: int = 16,
    outlined: SliceSet | None = None, # annotated slices for `least_shares`; None: any area is enough
) -> tuple[Rule, dict[Rule, float]]: # the rule, and the score of every rule tried, argmax among them
    "The plainest rule that cannot be told from the best on held-out slices."
    parts = in_parts(predictor, held_out)
    search = RuleSearch(parts, each, batch_size)
    least = least_shares(outlined) if outlined is not None else None
    rule = search.plainest([Rule(), Rule(least=least)])
    plain = [replace(rule, threshold=threshold) for threshold in THRESHOLDS]
    if expected:
        candidates = plain + expected_rules(plain, parts, batch_size, each)
    else:
        candidates = [replace(one, gate=gate) for one, gate in itertools.product(plain, GATES)]
    rule = search.plainest(candidates)
    height, width = parts[0].slices.image_shape
    rule = search.plainest(with_islands(rule, height*width, smallest_area(parts)))
    rule = search.plainest(with_rescue(rule))
    return rule, search.scores


# %%
#| fig-alt: "Held-out Dice against the gate for several thresholds; a dotted line marks the chosen rule"
rule, scores = choose_rule(ensemble, parts, outlined=slices)
print(f"{len(scores)} rules tried; chosen: {rule}; Dice {scores[rule]:.3f}, by argmax {scores[Rule()]:.3f}")
gated, by_gate = choose_rule(ensemble, parts, expected=False)
fig, ax = plt.subplots(figsize=(6, 2.4), dpi=72, layout="constrained")
for threshold in THRESHOLDS:
    name = "more than background" if threshold is None else f"threshold {threshold}"
    ax.plot(GATES, [by_gate[Rule(threshold, gate)] for gate in GATES], "o-", ms=3, label=name)
ax.axhline(scores[rule], color="0.3", ls=":", label=f"chosen: {rule}")
ax.set(xlabel="gate", ylabel="Dice, held-out cells", title="rules with a gate, and the chosen one")
ax.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, .5))
assert scores[rule] >= scores[Rule()] - MARGIN

# %%
#| hide
keep.cleanup()
