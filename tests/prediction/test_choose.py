"The rule is chosen on slices that no network has seen, and only what helps is switched on."
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.inference.rule import Rule
from ctseg.prediction.choose import (
    Part, RuleSearch, choose_rule, held_out_by, in_parts, out_of_fold, outlined_areas, smallest_area, with_islands)
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


def test_the_plainest_within_the_margin_is_taken():
    search = RuleSearch(
        [], scores={Rule(): 0.5, Rule(0.3): 0.501, Rule(0.3, island=4): 0.7, Rule(0.6): np.nan}
    )
    assert search.plainest([Rule(0.3), Rule()]) == Rule()
    assert search.plainest([Rule(0.3), Rule(0.3, island=4)]) == Rule(0.3, island=4)
    assert search.plainest([Rule(0.6), Rule(0.3)]) == Rule(0.3)


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
