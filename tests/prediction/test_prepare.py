"`prepare` and the options of `ctseg predict` that go through it."
from dataclasses import asdict

import pandas as pd
import pytest
import torch

from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json
from ctseg.data.mask_csv import read_masks
from ctseg.inference.calibration import calibrate
from ctseg.inference.rule import Rule, decide
from ctseg.prediction.choose import held_out_by
from ctseg.prediction.prepare import calibrate_run, prepare
from ctseg.prediction.store import StoredProbabilities

from helpers.command import ctseg
from helpers.fake_runs import fake_run
from helpers.predictors import CPU
from helpers.toys import toy


def test_a_run_keeps_its_temperature_and_uses_it_when_asked(tmp_path):
    slices = toy(32, labelled=24)
    run = fake_run(tmp_path/"run", slices, rule={"threshold": 0.5, "gate": 0.0})
    with pytest.raises(InputError, match="not calibrated"): prepare(run.folder, CPU, calibrated=True)
    held_out = slices[held_out_by(run, slices)]
    facts = calibrate_run(run, held_out, CPU)
    metrics = read_json(run/"metrics.json")
    assert metrics["calibration"] == facts and metrics["rule"]["threshold"] == 0.5
    predictor = prepare(run.folder, CPU, calibrated=True)
    assert (
        predictor.members[0].temperature == facts["temperature"] and asdict(predictor.rule) == facts["rule"]
    )
    assert prepare(run.folder, CPU).members[0].temperature == 1
    assert list(pd.read_csv(run/"reliability.csv").columns) == ["when", "said", "was", "pairs"]
    with pytest.raises(InputError, match="at least two"): calibrate(predictor.members[0], held_out[[0]], CPU)


def test_the_command_with_everything(world, tmp_path):
    submission, store = tmp_path/"s.csv.gz", tmp_path/"p.zip"
    code, out, err = ctseg(
        "predict",
        world/"a",
        world/"b",
        "--images",
        world/"data"/"test-images",
        "--out",
        submission,
        "--tta",
        3,
        "--tune",
        world/"data",
        "--probabilities",
        store,
        "--threshold",
        0.2,
        "--batch-size",
        4,
        "--device",
        "cpu",
    )
    assert code == 0, err
    for words in ("images: 10", "models: 2", "views: 3", "threshold 0.2"): assert words in out
    code, out, err = ctseg("check", world/"data", "--submission", submission)
    assert code == 0, err
    with StoredProbabilities(store) as stored:
        names, masks = read_masks(submission, cache=False)
        prob = torch.stack([torch.from_numpy(stored[n]) for n in names])
        again = decide(prob, Rule(0.2), stored.activation).numpy()
        assert stored.names == names and (again != masks).mean() < 0.01


@pytest.mark.parametrize("args, says", [
    (["{w}/a", "{w}/other"], "knows other classes"),
    (["{w}/a", "--tta", "0"], "expected 1 to 9"),
    (["{w}/a", "--tta", "99"], "expected 1 to 9"),
    (["{w}/a", "--threshold", "2"], "--threshold 2: expected a probability"),
    (["{w}/a", "--gate=-0.1"], "--gate -0.1: expected a probability"),
    (["{w}/a", "--calibrated"], "not calibrated"),
    (["{w}/none", "--tune", "{w}/data"], "held out no slices"),
    (["{w}/a", "--tune", "{w}/mixed"], "train-images"),
    (["{w}/a", "--images", "{w}/mixed"], "8x8 pixels, expected 32x32"),
    (["{w}/a", "--out", "{new}.txt"], "something.csv"),
    (["{w}"], "no run here"),
    (["{w}/a", "--probabilities", "{w}/data/class_names.json/p"], "a part of the path is a file"),
])
def test_a_mistake_is_one_line_and_leaves_nothing(world, tmp_path, args, says):
    given = [a.replace("{w}", str(world)).replace("{new}", str(tmp_path/"s")) for a in args]
    for option, value in (("--images", world/"data"/"test-images"), ("--out", tmp_path/"s.csv")):
        if option not in given: given += [option, value]
    code, out, err = ctseg("predict", *given, "--device", "cpu")
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1, err
    assert not list(tmp_path.iterdir())


def test_argmax_can_be_had_and_tuning_says_what_it_found(world, tmp_path):
    run = fake_run(tmp_path/"tuned", toy(), rule={"threshold": 0.4, "gate": 0.6}).folder
    args = ["predict", "--images", world/"data"/"test-images", "--out", tmp_path/"s.csv", "--device", "cpu"]

    def rule_of(*more):
        _, out, _ = ctseg(*args, run, *more)
        return out.split("rule: ")[1].splitlines()[0]
    assert rule_of() == "threshold 0.4, gate 0.6"
    assert rule_of("--rule", "argmax") == "argmax"
    assert rule_of("--rule", "argmax", "--gate", "0.5") == "argmax, gate 0.5"
    _, out, _ = ctseg(*args, world/"a", "--tune", world/"data")
    assert "Dice out of fold, argmax: 0." in out and "Dice out of fold, this rule: 0." in out
    _, out, _ = ctseg(*args, world/"a", "--tune", world/"data", "--gate", "0.9")
    assert "gate 0.9" in out and "out of fold" not in out  # that is another rule than was scored
    both = ["--rule", "argmax", "--tune", world/"data"]
    for more, says in ((["--rule", "agmax"], "did you mean argmax"), (both, "one of the two")):
        code, _, err = ctseg(*args, run, *more)
        assert code == 2 and says in err and len(err.splitlines()) == 1
