"""Run folders of an earlier ctseg still predict, score and report as they did, by the command line alone.

Runs and expected files were written at commit 7f454fd (see `fixtures/make_runs.py`), once and for all.
Where a test fails, ctseg has changed what users get from the runs on their disks.
"""
import gzip
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from helpers.command import ctseg

RUNS = Path(__file__).resolve().parents[1]/"fixtures"/"runs"
DATA, EXPECTED = RUNS/"challenge", RUNS/"expected"
FINISHED = ["ctseg", "seed-teacher-student", "self-training"]
FACTS = json.loads((EXPECTED/"facts.json").read_text())
OF_RUN = ("width", "epochs", "batch_size", "lr", "ema", "image_size", "folds", "precision", "augment")
TOLERANCE = 1e-6


def unpacked(path: Path) -> bytes:
    "What a .gz holds."
    return gzip.decompress(path.read_bytes())


@pytest.fixture
def copied(tmp_path):
    "A function that copies a run of the repository to where a command may write."
    return lambda name: Path(shutil.copytree(RUNS/name, tmp_path/name))


@pytest.mark.parametrize("name", FINISHED)
def test_an_old_run_predicts_what_it_predicted(copied, tmp_path, name):
    submission = tmp_path/"submission.csv"
    given = ["--images", DATA/"test-images", "--out", submission, "--device", "cpu"]
    status, printed, err = ctseg("predict", copied(name), *given)
    assert status == 0, err
    assert FACTS[name]["rule"] in printed.splitlines()
    expected = unpacked(EXPECTED/f"{name}.csv.gz")
    assert re.search(rb",[1-9]", expected), "the stored submission is empty and would prove nothing"
    assert submission.read_bytes() == expected


@pytest.mark.parametrize("name", FINISHED)
def test_with_its_temperature_and_a_threshold_too(copied, tmp_path, name):
    submission = tmp_path/"submission.csv"
    given = ["--images", DATA/"test-images", "--out", submission, "--device", "cpu"]
    status, _, err = ctseg("predict", copied(name), *given, "--calibrated", "--threshold", 0.6)
    assert status == 0, err
    expected = unpacked(EXPECTED/f"{name}-strict.csv.gz")
    assert expected != unpacked(EXPECTED/f"{name}.csv.gz"), "the options change nothing"
    assert submission.read_bytes() == expected


@pytest.mark.parametrize("name", FINISHED)
def test_the_stored_submission_is_the_one_that_was_hashed(name):
    assert hashlib.sha256(unpacked(EXPECTED/f"{name}.csv.gz")).hexdigest() == FACTS[name]["sha256"]


@pytest.mark.parametrize("name", FINISHED)
def test_its_submission_scores_what_it_scored(tmp_path, name):
    figures = tmp_path/"figures.json"
    status, _, err = ctseg("evaluate", DATA/"y_test.csv.gz", EXPECTED/f"{name}.csv.gz", "--json", figures)
    assert status == 0, err
    found, expected = (json.loads(p.read_text()) for p in (figures, EXPECTED/f"{name}.json"))
    assert expected["dice"] > 0.1, "the stored submission has hit nothing and would prove nothing"
    assert found["dice"] == pytest.approx(expected["dice"], abs=TOLERANCE)
    dice_of = [{row["name"]: row["dice"] for row in facts["per_class"]} for facts in (found, expected)]
    assert dice_of[0] == pytest.approx(dice_of[1], abs=TOLERANCE)


@pytest.mark.parametrize("given", [[], ["--data", DATA]], ids=["run alone", "with its data"])
@pytest.mark.parametrize("name", FINISHED)
def test_it_gets_its_page(copied, tmp_path, name, given):
    page = tmp_path/"page.html"
    status, _, err = ctseg("report", copied(name), *given, "--out", page, "--device", "cpu")
    assert status == 0, err
    text = page.read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>") and name in text
    assert ("disc_left" in text) >= bool(given)


def test_an_unfinished_old_run_goes_on_or_says_in_one_line_why_not(copied):
    "To be adapted once: a version that cannot continue such a run refuses, and leaves the folder as it was."
    run = copied("unfinished")
    settings = json.loads((run/"recipe.json").read_text())["recipe"]
    given = [f"--set={key}={settings[key]}" for key in OF_RUN]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert not (run/"metrics.json").exists() and list(run.glob("checkpoints/*/step-*"))
    status, _, err = ctseg("fit", DATA, "--out", run, "--device", "cpu", "--resume", *given)
    if status == 0:
        assert (run/"metrics.json").exists()
        return
    assert status == 2 and len(err.splitlines()) == 1 and str(run) in err, err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_no_place_of_a_machine_is_named_in_the_fixtures():
    texts = [p for p in RUNS.rglob("*") if p.suffix in (".json", ".csv")]
    assert len(texts) > 10
    place = re.compile(r"(^|[\s\"',])(/|~/|[A-Z]:\\)\w")
    assert not [p.name for p in texts if place.search(p.read_text(encoding="utf-8"))]
    assert sum(p.stat().st_size for p in RUNS.rglob("*") if p.is_file()) < 600_000
