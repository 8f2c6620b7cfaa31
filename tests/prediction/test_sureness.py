"How sure a prediction is, by hand-computed values; and the table that `predict --confidence` writes."
import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.command import ctseg
from helpers.toys import tiny, toy
from scipy.special import expit

from ctseg.core.errors import InputError
from ctseg.data.challenge import write_challenge
from ctseg.inference.expected_dice import ExpectedDice
from ctseg.prediction.predictor import load_predictor
from ctseg.prediction.submission import check_files
from ctseg.prediction.sureness import COLUMNS, edge_pixels, judge_of, judged, sureness
from ctseg.recipes.fit import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = tiny(
        "marginal-log", "model=attunet", "width=4", "epochs=6", "lr=5e-3", "folds=3", "loss=marginal"
    )
    return fit(toy(every=True), recipe, tmp_path_factory.mktemp("sure")/"run", device="cpu", progress=False)


def test_values_by_hand():
    """A square of 3x3 of class 1 with a probability of 0.8, its upper row 0.6; outside 0.1. Class 2 peaks
    at 0.3, undrawn."""
    prob = torch.full((1, 2, 6, 6), 0.1)
    prob[0, 0, 1:4, 1:4], prob[0, 0, 1, 1:4], prob[0, 1], prob[0, 1, 5, 5] = .8, .6, 0., .3
    label = torch.zeros(1, 6, 6, dtype=torch.uint8)
    label[0, 1:4, 1:4] = 1
    expected = ExpectedDice(0.5, 1.2, 0.4, (0.5, 0.5))
    plain, fitted = sureness(prob, label), sureness(prob, label, expected)
    soft = 2*(6*.8 + 3*.6)/(6*.8 + 3*.6 + 27*.1 + 9)
    chance = expit(0.5 + 1.2*np.log(.8/.2) + 0.4*np.log(9/36))
    assert plain["pixels"].tolist() == [[9, 0]] and np.allclose(
        plain["presence"].numpy(), [[.8, .3]], atol=1e-5
    )
    assert np.allclose(plain["expected_dice"][0].numpy(), [.8*soft, np.nan], atol=1e-5, equal_nan=True)
    assert np.allclose(fitted["presence"].numpy(), [[chance, .3]], atol=1e-5) and np.allclose(
        fitted["expected_dice"][0, 0].item(), chance*soft, atol=1e-5
    )
    assert np.allclose(plain["uncertain_edge"][0].numpy(), [3/8, np.nan], equal_nan=True)


@pytest.mark.parametrize("seed", range(4))
def test_an_edge_is_where_a_neighbour_differs(seed):
    label = np.random.default_rng(seed).integers(0, 3, (2, 7, 5))
    framed = np.pad(label, ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    by_hand = np.zeros(label.shape, bool)
    for n, y, x in np.argwhere(label > 0):
        around = [framed[n, y, x + 1], framed[n, y + 2, x + 1], framed[n, y + 1, x], framed[n, y + 1, x + 2]]
        by_hand[n, y, x] = any(v != label[n, y, x] for v in around)
    assert np.array_equal(edge_pixels(torch.from_numpy(label)).numpy(), by_hand)


def test_calibrated_where_the_run_is(run):
    predictor = load_predictor(run.folder, "cpu")
    judge, saved = judge_of(predictor), json.loads((run/"metrics.json").read_text())["calibration"]
    assert (
        judge.calibrated and not judge.same and judge.predictor.members[0].temperature == saved["temperature"]
    )
    already = judge_of(load_predictor(run.folder, "cpu", calibrated=True))
    assert already.calibrated and already.same
    member, = predictor.members
    assert not judge_of(replace(predictor, members=[replace(member, run=None)])).calibrated
    images = toy().images[:4]
    of_twin = judged(predictor, toy()[:4])
    assert np.array_equal(of_twin["labels"], predictor.predict(images))  # the labels stay those of the rule
    prob = judge.predictor.probabilities(images)
    theirs = sureness(prob, torch.from_numpy(of_twin["labels"]), judge.expected)
    assert np.allclose(of_twin["presence"], theirs["presence"])


def test_the_command_writes_the_table(run, tmp_path):
    slices = toy(n=6, labelled=4)
    write_challenge(slices, tmp_path/"data")
    images = next(p for p in (tmp_path/"data").iterdir() if p.name.endswith("images"))
    (images/"0.png").rename(images/"=0.png")
    args = ("predict", run.folder, "--images", images, "--device", "cpu")
    code, out, err = ctseg(
        *args,
        "--out",
        tmp_path/"s.csv",
        "--confidence",
        tmp_path/"sure.csv",
        "--probabilities",
        tmp_path/"p.zip",
        "--batch-size",
        4
    )
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path/"sure.csv").read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 6*3 and {r["calibrated"] for r in rows} == {"1"}
    assert "'=0.png" in {r["image"] for r in rows}  # no formula of a spreadsheet
    for row in rows:
        drawn = int(row["pixels"]) > 0
        assert bool(row["expected_dice"]) == bool(row["uncertain_edge"]) == drawn
        assert all(0 <= float(row[key]) <= 1 for key in COLUMNS[3:6] if row[key])
    code, _, _ = ctseg(*args, "--out", tmp_path/"plain.csv")
    assert code == 0 and (tmp_path/"plain.csv").read_bytes() == (tmp_path/"s.csv").read_bytes()
    code, _, err = ctseg(*args, "--out", tmp_path/"x.csv", "--confidence", tmp_path/"x.csv")
    assert code == 2 and "a file each" in err and not (tmp_path/"x.csv").exists()


def test_every_file_has_its_own_place(tmp_path):
    from skimage.io import imsave
    (tmp_path/"images").mkdir()
    imsave(tmp_path/"images"/"0.png", toy().images[0], check_contrast=False)
    for others in (("a.zip", "a.zip"), ("s.csv", None), (None, "./s.csv")):
        given = [other and tmp_path/other for other in others]
        with pytest.raises(InputError, match="a file each"):
            check_files(tmp_path/"images", tmp_path/"s.csv", *given)
    with pytest.raises(InputError): check_files(tmp_path/"images", tmp_path/"s.csv", None, tmp_path)


def test_the_page_says_on_what_each_figure_stands(run):
    from ctseg.report.page import report
    kept = json.loads((run/"metrics.json").read_text())["held out"]
    low, high = kept["intervals"]["chosen rule"]
    assert low <= json.loads((run/"metrics.json").read_text())["dice held out, chosen rule"] <= high
    alone = report(run.folder, out=run/"alone.html").read_text()
    assert (
        f"{kept['slices']} slices" in alone
        and f"{kept['groups']} patients" in alone
        and f"{low:.3f} … {high:.3f}" in alone
    )
    scored = report(run.folder, toy(every=True), out=run/"scored.html", plan="cpu").read_text()
    assert f"{kept['slices']} annotated slices" in scored and f"of {kept['groups']} patients" in scored
    assert "expected Dice" in scored and "uncertain edge" in scored
    card = (run/"model_card.md").read_text()
    assert (
        f"{low:.3f} … {high:.3f}" in card
        and f"{kept['slices']} held-out slices of {kept['groups']} patients" in card
        and "Not a medical device" in card
    )
