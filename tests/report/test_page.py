"""The page of a run: complete, small, silent about people and places, and driven in a browser where there
is one."""
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctseg.core.anatomy import ClassMap
from ctseg.core.json_files import write_json
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.data.store import write_store
from ctseg.metrics.challenge import dice_table
from ctseg.prediction.choose import held_out_by
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.report.comparison import report_comparison
from ctseg.report.page import environment, report
from ctseg.runs.folder import Run

from helpers.command import ctseg
from helpers.fake_runs import fake_run
from helpers.pages import SEES, data_of, note_pseudo, words_of
from helpers.predictors import CPU
from helpers.toys import toy

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("slices", "classes", "confusion", "curves", "pseudo", "calibration", "recipe")


def held_out_slices(run, train): return train[held_out_by(Run(run), train)]


# ---- what is on it

def test_everything_is_there(world):
    page = (world/"full"/"report.html").read_text()
    for id in SECTIONS: assert f'<section id="{id}">' in page and f'href="#{id}"' in page
    sets = data_of(page)["sets"]
    held_out = held_out_slices(world/"full", read_challenge(world/"data"))
    assert {s["name"] for s in sets[0]["slices"]} == set(held_out.names)
    assert [s["name"] for s in sets] == ["held-out slices", "pseudo-labels kept", "pseudo-labels rejected"]
    assert [len(s["slices"]) for s in sets[1:]] == [4, 4]
    # three epochs of half a minute
    for words in ("lung_left", "other side", ">teacher<", "<td>1.5</td>", "present added"):
        assert words in page


def test_it_says_that_it_is_no_medical_device(world):
    for page in (report(world/"full", out=world/"device.html"), world/"full"/"report.html"):
        assert "not a medical device" in page.read_text()


def test_the_score_is_that_of_the_held_out_cells(world, tmp_path):
    held_out = held_out_slices(world/"a", read_challenge(world/"data"))
    masks = predict_masks(load_predictor(world/"a", CPU), held_out.images)
    table = np.where(held_out.known, dice_table(masks, held_out.masks, 3), np.nan)
    expected = np.nanmean(np.nanmean(table, 0))
    page = report(world/"a", world/"data", out=tmp_path/"a.html", plan=CPU).read_text()
    assert f"<dt>Dice</dt><dd>{expected:.3f}</dd>" in page and "chosen on these very slices" in page
    test = report(world/"a", world/"data", "test", out=tmp_path/"test.html", plan=CPU).read_text()
    assert "10 test slices" in test and "chosen on these very slices" not in test
    assert [len(s["slices"]) for s in data_of(test)["sets"]] == [10]


def test_without_data_the_page_shows_the_training(world, tmp_path):
    page = report(world/"full", out=tmp_path/"page.html", plan=CPU).read_text()
    assert '<section id="curves">' in page and '<section id="pseudo">' in page
    assert '<section id="slices">' not in page and "<script" not in page


def test_pseudo_labels_are_drawn_on_their_own_slices_only(world, tmp_path):
    "Another folder may have slices of the same names, fewer of them, or a test alone."
    for name, n in (("same", 40), ("fewer", 34)): write_challenge(toy(n, labelled=32, seed=7), tmp_path/name)
    (tmp_path/"alone").mkdir()
    for name in ("same", "fewer", "alone"):
        write_challenge(toy(10, labelled=10, seed=5, every=True), tmp_path/name, "test")
        page = report(world/"full", tmp_path/name, "test", tmp_path/f"{name}.html", plan=CPU).read_text()
        assert [s["name"] for s in data_of(page)["sets"]] == ["test slices"]
    page = report(world/"full", world/"data", "test", tmp_path/"one.html", most=1, plan=CPU).read_text()
    assert [len(s["slices"]) for s in data_of(page)["sets"]] == [1, 1, 1]
    store = tmp_path/"data.zarr"
    write_store({split: read_challenge(world/"data", split) for split in ("train", "test")}, store)
    assert data_of(report(world/"full", store, "test", tmp_path/"stored.html", plan=CPU).read_text()) == data_of(
        report(world/"full", world/"data", "test", tmp_path/"read.html", plan=CPU).read_text())


# ---- what is not on it

def test_no_person_no_place_no_date(tmp_path):
    slices = toy(32, labelled=24)
    slices = replace(slices, names=[f"Doe_Jane_1950-05-0{i % 9 + 1}_{i}.png" for i in range(32)])
    weights = "/home/jane/secret/encoder.safetensors"
    run = fake_run(tmp_path/"private"/"run", slices, rule=SEES)
    spec = json.loads((run/"recipe.json").read_text())
    spec["recipe"]["model"]["weights"] = weights
    write_json(spec, run/"recipe.json")
    note_pseudo(run, slices[~slices.labelled], np.arange(8) < 4)
    other = fake_run(tmp_path/"private"/"b", slices, 1, SEES)
    page = words_of(report(run.folder, slices, plan=CPU).read_text())
    comparison = words_of(report_comparison([run.folder, other.folder], slices, plan=CPU)[0].read_text())
    for text in (page, comparison):
        for secret in ("Doe", "Jane", "1950", "/home", "secret", "private", str(tmp_path), "2026-"):
            assert secret not in text
        assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert "encoder.safetensors" in page and "slice 1" in page


def test_names_cannot_bring_markup_into_a_page(tmp_path):
    evil = '"></script><img src=x onerror=alert(1)>'
    slices = replace(toy(32, labelled=24), classes=ClassMap.from_names([evil, "<b>disc", "bar & 'co'"]))
    run, other = (fake_run(tmp_path/name, slices, seed, rule=SEES) for seed, name in enumerate(["run", "other"]))
    for one in (run, other):
        spec = json.loads((one/"recipe.json").read_text())
        spec["recipe"] |= {"name": evil, "about": evil}
        write_json(spec, one/"recipe.json")
    for page in (
        report(run.folder, slices, plan=CPU),
        report_comparison([run.folder, other.folder], slices, plan=CPU)[0],
    ):
        text = page.read_text()
        assert (
            "<img" not in text and "<b>disc" not in text and text.count("</script>") == text.count("<script")
        )
    assert data_of((run/"report.html").read_text())["names"][1] == evil


def test_every_template_can_be_loaded():
    env = environment()
    names = env.list_templates()
    assert {
        "base.html",
        "run.html",
        "comparison.html",
        "scans.html",
        "suggestions.html",
        "macros.html",
        "style.css",
        "slices.js",
    } == set(names)
    for name in names:
        if name.endswith(".html"): env.get_template(name)


# ---- the command

@pytest.mark.parametrize("args, says", [
    (["{w}/nowhere"], "no run here"),
    (["{w}/a", "--data", "{w}/nowhere"], "no such folder"),
    (["{w}/a", "--data", "{w}/data", "--split", "tset"], "did you mean test"),
    (["{w}/none", "--data", "{w}/data"], "held out no slices"),
    (["{w}/a", "--data", "{w}/secret", "--split", "test"], "no truth here"),
    (["{w}/other", "--data", "{w}/data"], "knows other classes"),
    (["{w}/a", "--data", str(ROOT/"data_sample")], "other classes"),
    (["{w}/a", "--out", "{w}/data/class_names.json/x.html"], "a part of the path is a file"),
    (["{w}/a", "--split", "nonsense"], "--split needs --data"),
    (["{w}/a", "--slices", "5"], "--slices needs --data"),
    (["{w}/a", "--data", "{w}/data", "--out", "{w}"], "it is a folder"),
    (["{w}/a", "--data", "{w}/data", "--annotated", "all"], "--annotated as it was in training"),
])
def test_a_mistake_is_one_line(world, args, says):
    before = sorted(world.rglob("*"))
    code, out, err = ctseg("report", *[a.replace("{w}", str(world)) for a in args], "--device", "cpu")
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1, err
    assert sorted(world.rglob("*")) == before


def test_the_command_writes_the_page_that_was_asked_for(world, tmp_path):
    out = tmp_path/"page.html"
    code, _, err = ctseg(
        "report", world/"a", "--data", world/"data", "--out", out, "--slices", 3, "--device", "cpu"
    )
    assert code == 0 and len(data_of(out.read_text())["sets"][0]["slices"]) == 3, err


def test_a_run_in_its_first_phase_has_curves(world, tmp_path):
    run, page = tmp_path/"run", tmp_path/"page.html"
    shutil.copytree(world/"full", run)
    shutil.rmtree(run/"checkpoints")
    for name in ("metrics.json", "checksums.json", "reliability.csv"): (run/name).unlink()
    code, _, err = ctseg("report", run, "--out", page)
    assert code == 0 and '<section id="curves">' in page.read_text(), err
    code, _, err = ctseg("report", run, "--data", world/"data", "--out", tmp_path/"s.html")
    assert code == 2 and "has not finished a phase yet" in err


# ---- in a browser

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def dom_of(page: Path, profile: Path, milliseconds: int) -> str:
    "The elements of a page after its script has run for a while; what waits for the disk may need longer."
    given = [
        *QUIET,
        f"--user-data-dir={profile}",
        f"--virtual-time-budget={milliseconds}",
        "--dump-dom",
        page.as_uri(),
    ]
    return subprocess.run([CHROMIUM, *given], capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_the_script_of_the_page_runs(world, tmp_path):
    "Slices are unpacked and listed, the worst and the best are painted."
    page = world/"full"/"report.html"
    slices = data_of(page.read_text())["sets"][0]["slices"]
    ends = min(10, sum(s["dice"] is not None for s in slices))
    for milliseconds in (10_000, 100_000, 1_000_000):
        dom = dom_of(page, tmp_path, milliseconds)
        if dom.count("<button aria-label=") == ends: break
    assert dom.count("<button aria-label=") == ends > 0
    assert f'aria-live="polite">{slices[0]["name"]}, 1 of {len(slices)}' in dom
    assert dom.count("<li") == len(slices[0]["cells"]) > 0
    assert re.search(r'<option value="0">held-out slices \(\d+\)</option>', dom)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright, to drive the page")
    if not CHROMIUM: pytest.skip("no Chromium here")
    with api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


COLOURED = """id => {  // pixels that are not grey, counted on a copy (WebP makes some a little coloured)
    const shown = document.getElementById(id), copy = document.createElement("canvas");
    const [w, h] = [copy.width, copy.height] = [shown.width, shown.height];
    const context = copy.getContext("2d", {willReadFrequently: true});
    context.drawImage(shown, 0, 0);
    const d = context.getImageData(0, 0, w, h).data;
    let n = 0;
    for (let i = 0; i < d.length; i += 4) n += Math.max(d[i], d[i+1], d[i+2]) - Math.min(d[i], d[i+1], d[i+2]) > 16;
    return n;
}"""


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_the_page_works(world, browser, width, height):
    page, messages = browser.new_page(viewport={"width": width, "height": height}), []
    page.on("console", lambda m: messages.append(m.text))
    page.on("pageerror", lambda e: messages.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else messages.append(r.url))
    path = world/"full"/"report.html"
    page.goto(path.as_uri())
    n = len(data_of(path.read_text())["sets"][0]["slices"])

    def title(expected):
        page.wait_for_function(
            f"() => document.getElementById('slice').textContent.includes('{expected}')", timeout=15_000
        )

    def coloured(side="right"):
        page.wait_for_timeout(200)
        return page.evaluate(COLOURED, side)
    title(f"1 of {n}")
    for key, place in (("ArrowRight", 2), ("End", n), ("ArrowRight", n), ("Home", 1)):
        page.keyboard.press(key)
        title(f"{place} of {n}")
    page.click("#next")
    title(f"2 of {n}")
    page.evaluate("() => document.activeElement.blur()")
    page.wait_for_function("() => document.getElementById('ends').children.length > 0")
    full = coloured()
    assert full > 0
    page.keyboard.press("Space")
    assert coloured() == 0  # the overlay is hidden
    page.keyboard.press("Space")
    assert coloured() == full
    page.locator("#fade").fill("0")
    assert coloured() == 0 and page.locator("#fade").input_value() == "0"
    page.locator("#fade").fill("80")
    assert coloured() == full
    page.select_option("#set", "1")
    title("1 of 4")
    # nobody's truth: grey stripes at most
    assert page.inner_text("#leftname") == "slice" and coloured("left") == 0
    page.select_option("#set", "0")
    page.select_option("#order", "best")
    title(f"1 of {n}")
    page.select_option("#only", index=1)
    page.wait_for_timeout(200)
    # nothing sticks out at the side
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert not messages
    page.close()
