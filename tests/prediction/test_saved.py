"What is read from a run folder is checked where it is read."
from dataclasses import asdict

import pytest

from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json, write_json
from ctseg.inference.expected_dice import ExpectedDice
from ctseg.inference.rule import Rule
from ctseg.models.base import read_weights
from ctseg.prediction.predictor import load_predictor
from ctseg.prediction.prepare import prepare
from ctseg.prediction.saved import read_metrics, run_spec
from ctseg.runs.folder import Run

from helpers.command import ctseg
from helpers.fake_runs import fake_run
from helpers.predictors import CPU
from helpers.toys import toy

EXPECTED = ExpectedDice(0.1, 1.2, -0.3, (0.25, 0.5, 0.75))
RULE = asdict(Rule(0.4, expected=EXPECTED))


def test_a_rule_outlives_its_file(tmp_path):
    run = fake_run(tmp_path/"a", toy(), rule=RULE)
    predictor = load_predictor(run.folder, CPU)
    assert predictor.rule == Rule(0.4, expected=EXPECTED)
    assert str(predictor.rule) == "threshold 0.4, expected Dice"
    assert prepare(run.folder, CPU, threshold=0.6).rule == Rule(0.6, expected=EXPECTED)
    assert prepare(run.folder, CPU, rule="argmax").rule == Rule()
    old = fake_run(tmp_path/"old", toy(), rule={"threshold": None, "gate": 0.5})
    assert load_predictor(old.folder, CPU).rule == Rule(gate=0.5)


def damaged(**changes) -> dict:
    "Metrics with fields of the rule's estimates changed."
    return {"rule": RULE | {"expected": RULE["expected"] | changes}}


@pytest.mark.parametrize("metrics, says", [
    ([1], "not the metrics of a run"),
    ({"held out": {"intervals": {"argmax": "x"}}}, "held out.intervals.argmax"),
    ({"held out": {"intervals": {"argmax": [0.2, 0.4, 0.6]}}}, "held out.intervals.argmax"),
    ({"held out": {"intervals": [0.2, 0.4]}}, "held out.intervals"),
    ({"held out": {"slices": -1}}, "held out.slices"),
    ({"rule": None}, "the decision rule is damaged"),
    ({"rule": {"thresold": 0.5}}, "the decision rule is damaged"),
    ({"rule": {"threshold": "0.5"}}, "threshold = '0.5'"),
    ({"rule": {"threshold": True}}, "threshold = True"),
    ({"rule": {"gate": None}}, "gate = None"),
    ({"rule": {"island": -3}}, "island = -3"),
    ({"rule": {"rescue": 1.5}}, "rescue = 1.5"),
    ({"rule": {"least": [0.1, 0.1]}}, "least = (0.1, 0.1)"),  # of two classes, and there are three
    ({"rule": {"least": [0.1, 0.1, 2]}}, "least = (0.1, 0.1, 2)"),
    ({"rule": {"least": "0.1"}}, "least ="),
    ({"rule": {"least": 0.1}}, "the decision rule is damaged"),
    (damaged(usual=[0.5, 0.5]), "usual = (0.5, 0.5)"),  # of two classes, and there are three
    (damaged(usual=[0.5, 0.5, None]), "usual ="),
    (damaged(peak=None), "peak = None"),
    ({"calibration": [1]}, "the calibration is damaged"),
    ({"calibration": {"temperature": -1, "rule": RULE}}, "temperature = -1"),
    ({"calibration": {"temperature": 2**70, "rule": RULE}}, "temperature = 1180591620717411303424"),
    ({"calibration": {"temperature": 1.2}}, "the decision rule is damaged"),
])
def test_damaged_metrics_are_told_in_one_line(tmp_path, metrics, says):
    run = fake_run(tmp_path/"run", toy())
    write_json(metrics, run/"metrics.json")
    with pytest.raises(InputError) as error: load_predictor(run.folder, CPU)
    assert str(error.value).startswith(f"{run/'metrics.json'}: ") and says in str(error.value)
    assert "\n" not in str(error.value) and "--resume" in str(error.value)


def test_metrics_that_are_no_json_are_told_by_the_command(world, tmp_path):
    run = fake_run(tmp_path/"run", toy(), rule=RULE)
    path = run/"metrics.json"
    path.write_text(path.read_text()[:-9])
    code, _, err = ctseg(
        "predict", run.folder, "--images", world/"data"/"test-images", "--out", tmp_path/"s.csv"
    )
    assert code == 2 and str(path) in err and len(err.splitlines()) == 1


def test_a_run_that_is_not_finished_has_no_metrics(tmp_path):
    run = fake_run(tmp_path/"run", toy())
    assert read_metrics(run, 3).finished is False and read_metrics(run, 3).rule is None
    with pytest.warns(UserWarning, match="is not finished"): assert prepare(run.folder, CPU).rule == Rule()


def test_no_run_and_no_weights(tmp_path):
    with pytest.raises(InputError, match="no run here"): run_spec(Run(tmp_path))
    (tmp_path/"run.zip").write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match="unpack it"): run_spec(Run(tmp_path/"run.zip"))
    run = fake_run(tmp_path/"run", toy())
    with pytest.raises(InputError, match="it lies in run/"): run_spec(Run(tmp_path))
    with pytest.raises(InputError, match="give the folder"): run_spec(Run(run/"recipe.json"))
    run.weights.write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
    with pytest.raises(InputError, match="git lfs pull"): read_weights(run.weights)
    run.weights.unlink()
    with pytest.raises(InputError, match="has not finished a phase yet"): run_spec(run)
    assert run_spec(run, weights=False)["seed"] == read_json(run/"recipe.json")["seed"]
