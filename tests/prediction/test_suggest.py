"What is worth annotating next: uncertain, rare, and not the same twice; nothing that was examined already."
import csv

import numpy as np
import pytest
from helpers.command import ctseg
from helpers.fake_runs import fake_run
from helpers.folders import told
from helpers.predictors import DISCS, bright, fixed
from helpers.toys import small, toy

from ctseg.core.anatomy import ClassMap
from ctseg.data.challenge import write_challenge
from ctseg.data.slices import SliceSet
from ctseg.data.sources import store_challenge
from ctseg.data.splits import near_duplicates
from ctseg.prediction.suggest import (
    choose_slices,
    expected_loss,
    open_cells,
    suggest,
)
from ctseg.recipes.fit import fit
from ctseg.report.page import report
from ctseg.report.suggestions import suggest_files, suggestions_page


def noise(n, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size)).astype(np.uint8)


def test_the_loss_of_what_is_drawn_and_of_what_is_not():
    presence, dice = np.array([[.9, .3], [1, 0]]), np.array([[.7, np.nan], [1, np.nan]])
    assert np.allclose(expected_loss(presence, dice, np.ones((2, 2), bool)), [[.3, .3], [0, 0]])
    assert not expected_loss(presence, dice, np.zeros((2, 2), bool)).any()


def test_examined_cells_duplicates_and_unions_are_closed():
    classes = ClassMap.from_names(["left", "right", "both"], {"both": ["left", "right"]})
    images = noise(3)[[0, 1, 1, 2]]
    known = np.zeros((4, 3), bool)
    known[1, 0], known[3] = True, [False, False, True]
    cells = open_cells(SliceSet(images, np.zeros_like(images), known, classes=classes), near_duplicates(images))
    assert cells.tolist() == [
        [True, True, False],
        [False, True, False],
        [False, True, False],
        [True, True, False],
    ]


def test_rare_before_common_and_then_in_turn():
    loss = np.full((6, 2), .5)
    loss[:3, 0] = loss[3:, 1] = 0
    each = np.arange(6)
    first = choose_slices(loss, np.array([100, 3]), each, each, 1)[0]
    assert first.classes == [2]
    turns = [one.classes[0] for one in choose_slices(loss, np.array([0, 0]), each, each, 6)]
    assert sorted(turns[:2]) == sorted(turns[2:4]) == [1, 2]


def test_other_patients_first_and_duplicates_never():
    loss = np.array([[.9], [.8], [.5]])
    patients, alike = np.array([0, 0, 1]), np.array([0, 1, 2])
    assert [one.position for one in choose_slices(loss, np.zeros(1), patients, alike, 3)] == [0, 2, 1]
    assert [one.position for one in choose_slices(loss, np.zeros(1), patients, np.array([0, 0, 1]), 3)] == [
        0,
        2,
    ]


def test_structures_of_a_slice_are_those_worth_it():
    one, = choose_slices(np.array([[.9, .8, .1]]), np.zeros(3), np.zeros(1), np.zeros(1), 5)
    assert one.classes == [1, 2] and one.gains == sorted(one.gains, reverse=True)


def test_of_a_predictor_with_known_answers():
    images = noise(5)
    known = np.zeros((5, 3), bool)
    known[:2] = True
    slices = SliceSet(images, np.zeros_like(images), known, classes=DISCS)
    found = suggest(fixed(bright), slices, 2)
    assert (
        len(found.chosen) == 2
        and found.slices.names == ("2.png", "3.png", "4.png")
        and found.labels.shape == (2, 32, 32)
    )
    assert (
        found.labels.any()
        and "2 slices to annotate next" in suggestions_page(found, "a <run>")
        and "<run>" not in suggestions_page(found, "a <run>")
    )
    told(
        lambda: suggest(
            fixed(bright), SliceSet(images, np.zeros_like(images), known, classes=["a", "b", "c"])
        ),
        "other classes",
    )
    told(lambda: suggest(fixed(bright), slices[:2]), "nothing is left")
    some = suggest(fixed(bright), slices, 2, among=np.arange(5) == 3)
    assert some.slices.names == ("3.png",) and len(some.chosen) == 1
    told(lambda: suggest(fixed(bright), slices, 2, among=np.zeros(5, bool)), "nothing is left")
    told(lambda: suggest(fixed(bright), slices, 0), "count = 0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with data and a run."
    place, slices = tmp_path_factory.mktemp("suggest"), toy()
    write_challenge(slices, place/"data")
    fit(slices, small("marginal", "epochs=1"), place/"run", device="cpu", progress=False)
    return place


def test_the_command_names_the_slices_to_annotate(place, tmp_path):
    slices = toy()
    code, out, err = ctseg(
        "suggest",
        place/"run",
        place/"data",
        "--count",
        4,
        "--out",
        tmp_path/"s.csv",
        "--device",
        "cpu",
    )
    assert code == 0 and "slices: 4" in out, err
    rows = list(csv.DictReader(open(tmp_path/"s.csv")))
    assert [row["rank"] for row in rows] == sorted(row["rank"] for row in rows) and {
        row["rank"] for row in rows
    } == {"1", "2", "3", "4"}
    for row in rows:
        n, c = slices.names.index(row["image"]), slices.classes.names.index(row["class"])
        assert not slices.known[n, c] and float(row["gain"]) > 0
    page = (tmp_path/"s.html").read_text()
    assert page.count("data:image/webp") == 4 and all(row["image"] in page for row in rows)


def test_list_and_page_are_written_both_or_neither(tmp_path):
    write_challenge(toy(), tmp_path/"data")
    fake_run(tmp_path/"run", toy())
    (tmp_path/"s.html").mkdir()
    code, _, err = ctseg("suggest", tmp_path/"run", tmp_path/"data", "--out", tmp_path/"s.csv", "--device", "cpu")
    assert code == 2 and "s.html" in err and not (tmp_path/"s.csv").exists()


@pytest.mark.parametrize("args, part", [
    (["run"], "takes RUN"), (["nothing", "data"], "nothing"), (["nothing", "data", "--out", "a.txt"], "a.txt"), (["nothing", "data", "--out", ""], "--out is given an empty value"), (["a", "b", "--count", "0"], "count"),
])
def test_wrong_commands_are_told_in_one_line(args, part):
    code, _, err = ctseg("suggest", *args)
    assert code == 2 and len(err.strip().splitlines()) == 1 and part in err


def test_a_store_says_what_its_folder_says(place, tmp_path):
    store_challenge(place/"data", tmp_path/"data.zarr")
    pages = []
    for data in (place/"data", tmp_path/"data.zarr"):
        table = tmp_path/f"{data.name}.csv"
        suggest_files([str(place/"run")], data, table, count=4, device="cpu")
        page = report(place/"run", data, out=table.with_suffix(".report.html"), plan="cpu")
        pages.append([table.read_text(), page.read_text()])
    assert pages[0] == pages[1]
