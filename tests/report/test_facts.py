"What a page says about a run, and run folders that were damaged."
import shutil

import numpy as np
import pandas as pd
import pytest

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.report.facts import phase_times, prediction_facts, scored_slices, shown_value
from ctseg.runs.contents import ANY, read_run_table
from ctseg.report.page import report
from ctseg.runs.folder import Run

from helpers.command import ctseg
from helpers.predictors import CPU


@pytest.fixture
def full(world, tmp_path):
    "A copy of the run `full`, to be damaged."
    return Run(shutil.copytree(world/"full", tmp_path/"full"))


@pytest.mark.parametrize("name, content, says", [
    ("history.csv", "", "not a readable table"),
    ("history.csv", b"\xff\xfe\x00", "holds zero bytes"),
    ("history.csv", "phase,epoch,loss\na,1,0.5\n", "without the column dice"),
    ("history.csv", "phase,epoch,loss,dice\na,1,much,0.5\n", "line 2, loss: 'much' is no number"),
    ("timings.csv", "phase,epoch\na,1\n", "without the column seconds"),
    ("timings.csv", "phase,epoch,seconds\na,1,soon\n", "line 2, seconds: 'soon'"),
    ("reliability.csv", "when,said,was\n", "without the column pairs"),
    ("pseudo_labels.csv", "image,kept\n0.png,1\n", "without the column sdc"),
    ("pseudo_cells.csv", "present,absent\n1,2\n", "without the column class"),
    ("pseudo_labels.npz", b"PK\x03\x04cut", "not what a teacher drew"),
    ("metrics.json", "[]", "not the metrics of a run"),
])
def test_a_damaged_file_is_told_in_one_line(world, full, name, content, says):
    (full/name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, err = ctseg("report", full.folder, "--data", world/"data", "--device", "cpu")
    assert code == 2 and str(full/name) in err and says in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.parametrize("change", [
    lambda stored: stored | {"labels": stored["labels"][:, :5]},
    lambda stored: stored | {"names": stored["names"][:3]},
    lambda stored: stored | {"names": np.array([f"x{n}" for n in stored["names"]])},
    lambda stored: {k: v for k, v in stored.items() if k != "kept"},
])
def test_pseudo_labels_that_do_not_fit_are_told(world, full, change):
    stored = full.read_pseudo()
    stored["labels"] = np.asarray(stored["labels"])  # the file is replaced
    np.savez_compressed(full/"pseudo_labels.npz", **change(stored))
    with pytest.raises(InputError, match="not what a teacher drew on these slices"):
        report(full.folder, world/"data", plan=CPU)
    page = report(full.folder, plan=CPU).read_text()  # without the data they are not looked at
    assert '<section id="pseudo">' in page


def test_what_is_not_there_is_left_out(world, full):
    for name in (
        "history.csv",
        "timings.csv",
        "reliability.csv",
        "pseudo_labels.csv",
        "pseudo_labels.npz",
        "pseudo_cells.csv",
    ):
        (full/name).unlink()
    page = report(full.folder, world/"data", plan=CPU).read_text()
    for id in ("curves", "calibration", "pseudo"):
        assert f'id="{id}"' not in page and f'href="#{id}"' not in page
    assert read_run_table(full/"history.csv", {"loss": ANY}) is None


def test_times_of_a_phase(full):
    rows = [("a", 1, 30, "cpu"), ("a", 2, 90, "cuda"), ("b", 1, 60, None)]
    pd.DataFrame(rows, columns=["phase", "epoch", "seconds", "where"]).to_csv(full/"timings.csv", index=False)
    a, b = phase_times(full)
    assert a == {"phase": "a", "epochs": 2, "minutes": 2.0, "seconds": 60.0, "where": "cpu; cuda"}
    assert b["where"] == ""


def test_of_a_path_only_the_name_is_shown():
    assert shown_value("/home/jane/encoder.safetensors") == "encoder.safetensors"
    assert shown_value("C:\\data\\encoder.pt") == "encoder.pt" and shown_value(0.5) == 0.5


def test_slices_that_are_scored(world):
    run, data = Run(world/"a"), world/"data"
    train = read_challenge(data)
    held_out = scored_slices(run, data)
    assert set(held_out.names) < set(train.names) and held_out.labelled.all()
    assert len(scored_slices(run, data, "test")) == 10
    with pytest.raises(InputError, match="knows other classes"): scored_slices(Run(world/"other"), data)
    with pytest.raises(InputError, match="held out no slices"): scored_slices(Run(world/"none"), data)
    with pytest.raises(InputError, match="no truth here"): scored_slices(run, world/"secret", "test")


def test_the_interval_of_a_union_counts_its_members():
    classes = ClassMap.from_names(["lungs", "lung_left", "lung_right"], {"lungs": ["lung_left", "lung_right"]})
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:, 2:6, 2:6] = 1
    known = np.tile([True, False, False], (4, 1))
    slices = SliceSet(np.zeros_like(truth), truth, known, classes=classes)
    row = prediction_facts(slices, truth*2)["rows"][0]  # as left lungs
    assert row["name"] == "lungs" and row["dice"] == 1 and row["interval"] == [1, 1]
