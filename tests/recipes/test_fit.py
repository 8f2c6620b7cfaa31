"Errors of `fit`, told in one line; which rule a run ends with."
import json

import pytest
import torch
from helpers.toys import small, tiny, toy

from ctseg.core.errors import InputError
from ctseg.inference.rule import Rule
from ctseg.prediction.outlines import least_shares
from ctseg.prediction.predictor import load_predictor
from ctseg.recipes.fit import fit


def test_memory_that_fails_outside_of_a_step_is_told(tmp_path, monkeypatch):
    def fails(self): raise torch.OutOfMemoryError("fake")
    monkeypatch.setattr("ctseg.runs.phases.Phases.carry_out", fails)
    with pytest.raises(InputError, match="out of memory; choose a smaller image_size"):
        fit(toy(), tiny("masked", "fold=-1"), tmp_path/"run", device="cpu", progress=False)


def test_memory_that_fails_at_the_end_is_told_and_batches_are_as_small_as_in_training(tmp_path, monkeypatch):
    sizes = []
    def fails(*a, batch_size, **kw):
        sizes.append(batch_size)
        raise torch.OutOfMemoryError("fake")
    with monkeypatch.context() as m:
        m.setattr("ctseg.recipes.fit.choose_rule", fails)
        with pytest.raises(InputError, match="out of memory"):
            fit(toy(), tiny("masked", "folds=3", "pieces=2"), tmp_path/"run", device="cpu", progress=False)
    assert sizes == [2]
    # with room enough it ends
    fit(
        toy(),
        tiny("masked", "folds=3", "pieces=2"),
        tmp_path/"run",
        device="cpu",
        progress=False,
        resume=True,
    )
    assert (tmp_path/"run"/"metrics.json").exists()


def test_a_log_gets_a_line_an_epoch(tmp_path, capsys):
    "Without a terminal a bar that is redrawn at every step would fill the log."
    fit(toy(), small("masked", "epochs=3"), tmp_path/"run", device="cpu")
    drawn = [part for part in capsys.readouterr().err.split("\r") if "%|" in part]
    assert 3 <= len(drawn) <= 5 and "epoch=3/3" in drawn[-1]


def test_without_held_out_slices_the_rule_is_the_recipes(tmp_path):
    "With the least areas, which need none. And with some it is the one that was chosen."
    def rule_of(name, *settings):
        recipe = tiny("masked", "fold=-1", *settings)
        return load_predictor(fit(toy(), recipe, tmp_path/name, device="cpu", progress=False).folder, "cpu").rule
    least = least_shares(toy())
    assert rule_of("given", "least_peak=0.7") == Rule(gate=.7, least=least)
    assert rule_of("plain") == Rule(least=least)
    assert rule_of("untuned", "tune_rule=no") == Rule()
    chosen = fit(
        toy(), tiny("masked", "folds=3", "least_peak=0.7"), tmp_path/"chosen", device="cpu", progress=False
    )
    metrics = json.loads((chosen/"metrics.json").read_text())
    assert "dice held out, chosen rule" in metrics and metrics["rule"]["gate"] != .7
