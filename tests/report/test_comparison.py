"Several runs on the slices that all of them held out, by their rules and by argmax."
import shutil

import numpy as np
import pytest

from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.inference.rule import Rule
from ctseg.metrics.challenge import dice_table, mean_dice
from ctseg.prediction.choose import held_out_by
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.report.comparison import common_slices, report_comparison
from ctseg.runs.folder import Run

from helpers.command import ctseg
from helpers.fake_runs import fake_run
from helpers.predictors import CPU


def test_comparison_uses_slices_that_all_held_out(world):
    train = read_challenge(world/"data")
    a, b, c = (Run(world/n) for n in "abc")
    common = common_slices([a, b], world/"data")
    both = held_out_by(a, train) & held_out_by(b, train)
    assert set(common.names) == {train.names[i] for i in np.flatnonzero(both)} and len(common)
    with pytest.raises(InputError, match="no slice was held out by all"): common_slices([a, c], world/"data")


def test_differences_are_to_the_first_run(world, tmp_path):
    copy = shutil.copytree(world/"a", tmp_path/"copy")
    with pytest.warns(UserWarning, match="one is a copy of the other"):
        path, records = report_comparison([world/"a", world/"b", copy], world/"data", plan=CPU)
    assert path == world/"a"/"comparison.html" and "<td>seed</td>" in path.read_text()
    assert records[2]["difference"] == 0 and records[2]["paired"] == (0, 0)
    assert abs(records[1]["difference"] - (records[1]["dice"] - records[0]["dice"])) < 1e-12


def test_a_chosen_rule_is_compared_by_argmax_too(world, tmp_path):
    "The rule has seen the held-out slices; a run that uses argmax has no such advantage."
    train = read_challenge(world/"data")
    plain = fake_run(tmp_path/"plain", train, seed=3, rule={"threshold": None, "gate": 0.0}).folder

    def page(*runs, **options):
        path, records = report_comparison(runs, world/"data", out=tmp_path/"c.html", plan=CPU, **options)
        return path.read_text(), records
    text, (chosen, argmax) = page(world/"a", plain)
    held_out = common_slices([Run(world/"a"), Run(plain)], world/"data")
    masks = predict_masks(load_predictor(world/"a", CPU), held_out.images, [Rule()])[0]
    table = np.where(held_out.known, dice_table(masks, held_out.masks, 3), np.nan)
    assert chosen["chosen"] and chosen["argmax"] == mean_dice(table) != chosen["dice"]
    assert not argmax["chosen"] and argmax["argmax"] == argmax["dice"]
    assert abs(argmax["argmax_difference"] - (argmax["argmax"] - chosen["argmax"])) < 1e-12
    assert "Dice by argmax" in text and "has seen its answer" in text
    text, _ = page(world/"a", plain, split="test")
    assert "Dice by argmax" in text and "has seen its answer" not in text  # no rule was chosen on those
    with pytest.warns(UserWarning, match="a copy"): text, _ = page(plain, shutil.copytree(plain, tmp_path/"again"))
    assert "Dice by argmax" not in text and "has seen its answer" not in text


def test_runs_of_one_name_are_told_apart(world, tmp_path):
    for name in ("monday", "tuesday"): shutil.copytree(world/"a", tmp_path/name/"run")
    runs = [tmp_path/"monday"/"run", tmp_path/"tuesday"/"run", world/"b"]
    path, records = report_comparison(runs, world/"data", plan=CPU)
    assert [r["run"] for r in records] == ["monday/run", "tuesday/run", "b"]
    assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize("args, says", [
    (["{w}/a", "{w}/b"], "give --data"),
    (["{w}/a", "{w}/c", "--data", "{w}/data"], "compare them with --split test"),
    (["{w}/a", "{w}/b", "--data", "{w}/data", "--slices", "5"], "a comparison shows no slices"),
    (["{w}/a", "{w}/b", "--data", "{w}/data", "--out", "{w}"], "it is a folder"),
])
def test_a_mistake_is_one_line(world, args, says):
    code, _, err = ctseg("report", *[a.replace("{w}", str(world)) for a in args], "--device", "cpu")
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1, err


def test_the_command_compares_on_test_slices(world, tmp_path):
    runs, page = [world/"a", world/"c"], tmp_path/"c.html"
    code, out, err = ctseg(
        "report", *runs, "--data", world/"data", "--split", "test", "--out", page, "--device", "cpu"
    )
    assert code == 0 and out.count("Dice ") == 2 and page.exists(), err
