"The rule is chosen on slices that no network has seen, and only what helps is switched on."
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.inference.rule import Rule
from ctseg.prediction import choose
from ctseg.prediction.choose import (
    Part, RuleSearch, choose_rule, held_out_by, in_parts, out_of_fold, smallest_area, with_islands)
from ctseg.prediction.outlines import least_shares, outlined_areas
from ctseg.prediction.predictor import load_predictor
from ctseg.prediction.saved import run_spec
from ctseg.runs.split import split_slices

from helpers.fake_runs import fake_run
from helpers.predictors import CPU, bright, fixed
from helpers.toys import toy


class Script:
    "A predictor for `choose_rule` whose probabilities are given."
    activation, context = "sigmoid", 0

    def __init__(self, slices, prob): self.of = {i.tobytes(): p for i, p in zip(slices.images, prob)}
    def probabilities(self, images): return torch.stack([self.of[i.tobytes()] for i in images])


def truth_as_probability(slices, sure=0.9) -> torch.Tensor:
    "f32 [N, 3, H, W]: `sure` where the truth has a class, else 0."
    return torch.stack([torch.from_numpy((slices.masks == c)*sure) for c in (1, 2, 3)], 1).float()


# ---- what is chosen

def test_what_does_not_help_stays_off():
    slices = toy(24, labelled=24, every=True)
    rule, scores = choose_rule(Script(slices, truth_as_probability(slices)), slices)
    assert rule == Rule() and scores[rule] == 1


def test_inventions_are_dropped_though_they_peak_as_high():
    slices = toy(24, labelled=24, every=True)
    prob = truth_as_probability(slices)
    absent = torch.from_numpy(~slices.present)[:, :, None, None]
    stain = torch.zeros_like(prob)
    stain[:, :, 3, 5:7] = 0.9  # two pixels in another place
    script = Script(slices, prob + (prob == 0)*absent*stain)
    rule, scores = choose_rule(script, slices)
    assert rule.expected and rule.expected.area > 0 and scores[rule] > scores[Rule()] + 0.2
    gate, by_gate = choose_rule(script, slices, expected=False)
    assert gate.expected is None
    # no gate can tell them apart
    assert max(v for r, v in by_gate.items() if not r.island) < scores[rule] - 0.1


def test_islands_and_rescue_are_switched_on_where_they_help():
    slices = toy(24, labelled=24, every=True)
    salted = truth_as_probability(slices)
    # single pixels in the corners: no threshold or gate can tell them from organs
    salted[:, 0, 0, ::31] = 0.95
    salted[:, 2, 31, ::31] = 0.95
    rule, scores = choose_rule(Script(slices, salted), slices)
    assert rule.island >= 2 and scores[rule] > scores[Rule()] + 0.1
    timid = truth_as_probability(slices, sure=0.25)  # nothing reaches any threshold of the grid
    rule, scores = choose_rule(Script(slices, timid), slices)
    assert rule.rescue and scores[rule] > 0.3 > scores[Rule()] + 0.2


def test_no_island_is_as_large_as_what_people_outline():
    "At few pixels a thin organ is an island. Only some held-out slices have it, and others gain by islands."
    slices = toy(24, labelled=24, every=True)
    masks = np.where(slices.masks == 3, 0, slices.masks)
    masks[:2, 15, 14:17] = 3  # three pixels
    slices = replace(slices, masks=masks)
    assert outlined_areas(slices)[:3, 2].tolist() == [3, 3, 0]
    parts = [Part(None, slices)]
    assert smallest_area(parts) == 3
    assert {r.island for r in with_islands(Rule(), 64*64, 3)} == {0, 2}
    assert {r.island for r in with_islands(Rule(), 64*64, 2)} == {0, 2}
    assert {r.island for r in with_islands(Rule(), 64*64)} == {0, 2, 4, 8}
    nothing = [Part(None, replace(slices, masks=0*masks))]
    assert smallest_area(nothing) == float("inf")


def drawn(score: float, spread: float = 0.) -> np.ndarray:
    "A score and what it would be under two hundred draws of the slices."
    return np.r_[score, np.random.default_rng(0).normal(score, spread, 200)]


def test_the_plainest_that_cannot_be_told_from_the_best_is_taken():
    search = RuleSearch([])
    search.drawn |= {
        Rule(): drawn(0.5),
        Rule(0.3): drawn(0.501),
        Rule(0.3, island=4): drawn(0.7),
        Rule(0.6): np.full(201, np.nan),
        Rule(gate=0.5): drawn(0.52, spread=0.04),
        Rule(gate=0.7): drawn(0.52, spread=0.01),
    }
    assert search.plainest([Rule(0.3), Rule()]) == Rule()  # within the margin
    assert search.plainest([Rule(0.3), Rule(0.3, island=4)]) == Rule(0.3, island=4)
    assert search.plainest([Rule(0.6), Rule(0.3)]) == Rule(0.3)  # nothing was there to score the other
    assert search.plainest([Rule(0.6)]) == Rule(0.6)
    assert search.plainest([Rule(), Rule(gate=0.5)]) == Rule()  # within the standard error
    assert search.plainest([Rule(), Rule(gate=0.7)]) == Rule(gate=0.7)
    assert search.scores[Rule(gate=0.7)] == 0.52


@pytest.mark.parametrize("slices, spoken_for", [(3, False), (300, True)])
def test_a_small_gain_needs_many_slices(slices, spoken_for, monkeypatch):
    "One rule is better by .05 of Dice in the mean of slices whose gains differ by .3."
    gains = np.resize([-0.25, 0.05, 0.35], slices)
    tables = np.full((2, slices, 1), 0.4)
    tables[1, :, 0] += gains
    monkeypatch.setattr(choose, "rule_tables", lambda *_: tables)
    assert RuleSearch([]).plainest([Rule(), Rule(0.3)]) == (Rule(0.3) if spoken_for else Rule())


# ---- least areas

def scraps(slices, pixels: int) -> torch.Tensor:
    "The truth as probabilities, and on every other slice so many sure pixels of each class that is not there."
    prob = truth_as_probability(slices)
    absent = torch.from_numpy(~slices.present)[:, :, None, None]
    stain = torch.zeros_like(prob)
    stain[::2, :, 3, 5:5 + pixels] = 0.9
    return prob + (prob == 0)*absent*stain


def test_scraps_are_dropped_by_what_was_outlined_elsewhere():
    slices, others = toy(12, labelled=12, every=True), toy(24, labelled=24, every=True)
    script = Script(slices, scraps(slices, 2))
    rule, scores = choose_rule(script, slices, outlined=others)
    assert rule == Rule(least=least_shares(others)) and scores[rule] == 1 > scores[Rule()] + 0.1
    without, _ = choose_rule(script, slices)
    assert without.least is None


def test_least_areas_that_drop_what_is_there_are_left_out():
    slices = toy(24, labelled=24, every=True)
    large = replace(slices, masks=np.where(slices.masks == 2, 2, np.uint8(2)))  # one class covers all
    rule, scores = choose_rule(Script(slices, truth_as_probability(slices)), slices, outlined=large)
    assert rule == Rule() and scores[Rule(least=least_shares(large))] < 1


def test_a_rule_is_scored_once(monkeypatch):
    slices = toy(6, labelled=6, every=True)
    search = RuleSearch(in_parts(fixed(bright), slices), batch_size=4)
    search.score([Rule(), Rule(0.3), Rule()])
    first = dict(search.scores)
    monkeypatch.setattr(
        type(search.parts[0].predictor), "probabilities", lambda *_: pytest.fail("asked again")
    )
    search.score([Rule(0.3)])
    assert search.scores == first and set(first) == {Rule(), Rule(0.3)}


# ---- on which slices

def test_no_network_is_asked_about_a_slice_it_was_trained_on(tmp_path):
    slices = toy(32, labelled=24)
    folds = [(0, 0), (1, 0), (0, 1), (0, 3)]
    runs = [fake_run(tmp_path/str(i), slices, seed, fold=fold) for i, (seed, fold) in enumerate(folds)]
    predictor = load_predictor([r.folder for r in runs], CPU)
    asked = {i: set() for i in range(len(runs))}
    for i, member in enumerate(predictor.members):
        def note(model, args, out, i=i):
            asked[i] |= {x.mul(255).round().byte().numpy().tobytes() for x in args[0]}
        member.model.register_forward_hook(note)
    parts = out_of_fold(predictor, slices)
    names = [n for _, part in parts for n in part.names]
    assert len(names) == len(set(names)) and not any(asked.values())
    choose_rule(predictor, parts)
    for i, run in enumerate(runs):
        spec = run_spec(run)
        split = split_slices(slices, spec["recipe"].data, spec["seed"])
        learnt = {x.tobytes() for x in split.labelled.images}
        assert asked[i] and not asked[i] & learnt
        assert asked[i] == {x.tobytes() for x in split.holdout.images}


def test_a_run_that_held_nothing_out_or_saw_other_data(tmp_path):
    slices = toy()
    none = load_predictor(fake_run(tmp_path/"none", slices, fold=-1).folder, CPU)
    with pytest.raises(InputError, match="held out no slices"): out_of_fold(none, slices)
    with pytest.raises(InputError, match="trained on other data"): out_of_fold(none, slices[:20])
    other = replace(slices, classes=ClassMap.from_names(["x", "y", "z"]))
    with pytest.raises(InputError, match="trained on other data"): held_out_by(none.members[0].run, other)


def test_a_model_without_a_run_cannot_be_tuned():
    with pytest.raises(InputError, match="a model without a run folder"): out_of_fold(fixed(bright), toy())
