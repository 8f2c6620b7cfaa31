"The page of a run: complete, small, silent about people and places, and driven in a browser where there is one."
import json, re, shutil, zlib
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from ctseg.anatomy import ClassMap
from ctseg.data import SliceSet, read_challenge, write_challenge
from ctseg.device import pick_device
from ctseg.files import InputError, write_json
from ctseg.phantom import phantom_slices
from ctseg.metrics import dice_table
from ctseg.predict import held_out_by
from ctseg.report import common_slices, confusion, pack_slices, report, report_comparison, safe_name, sides, spread
from ctseg.train import Run

from test_cli import ctseg
from test_methods import toy
from test_predict import fake_run

CPU, ROOT = pick_device("cpu"), Path(__file__).resolve().parent.parent
SEES = {"threshold": 0.009, "gate": 0.0}  # below the prior of a fresh network: it draws something


def data_of(page: str) -> dict: return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def words_of(page: str) -> str:
    "What a reader sees or could look up, without packed pictures and drawings."
    page = re.sub(r'"(image|masks)":"[^"]*"', "", page)
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.S)


def note_pseudo(run, slices, kept):
    "What a teacher leaves in the run folder, kept or rejected in turn."
    n = len(slices)
    pd.DataFrame({"image": slices.names, "kept": kept.astype(int), "sdc": np.linspace(0.1, 0.9, n)}).to_csv(run/"pseudo_labels.csv", index=False)
    np.savez_compressed(run/"pseudo_labels.npz", names=np.array(slices.names), kept=kept, labels=np.random.default_rng(0).integers(0, 4, slices.masks.shape, np.uint8))
    pd.DataFrame([{"class": "bar", "present": 7, "absent": 5, "present added": 3, "absent added": 2}]).to_csv(run/"pseudo_cells.csv", index=False)


# ---- numbers

@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 3)), arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 3)))
def test_confusion_is_its_definition(pred, truth):
    got = confusion(pred, truth, 3)
    for c in (1, 2, 3):
        rows = [[(p[t == c] == k).mean() for k in range(4)] for p, t in zip(pred, truth) if (t == c).any()]
        assert np.allclose(got[c - 1], np.mean(rows, 0)) if rows else np.isnan(got[c - 1]).all()


def test_sides_tell_a_swap():
    cm = ClassMap.from_names(["disc_left", "disc_right", "bar"])
    truth = np.zeros((1, 4, 4), np.uint8)
    truth[0, 0], truth[0, 3] = 1, 2
    swapped = sides(confusion(cm.swap[truth].astype(np.uint8), truth, 3), cm)
    assert [(s["name"], s["own"], s["other"]) for s in swapped] == [("disc_left", 0, 1), ("disc_right", 0, 1)]


def test_cells_know_unknown_from_wrong():
    cm = ClassMap.from_names(["a", "b", "c", "d"])
    masks, pred = np.zeros((1, 6, 6), np.uint8), np.zeros((1, 6, 6), np.uint8)
    masks[0, 0, :4], pred[0, 0, :2] = 1, 1   # found, Dice 2/3
    masks[0, 1, 0] = 2                       # missed
    pred[0, 2, 0] = 3                        # invented
    pred[0, 3, 0] = 4                        # not examined
    s = SliceSet(masks, masks, np.array([[True, True, True, False]]), ["0.png"], np.zeros(1, np.int64), cm)
    one, = pack_slices(s, pred)
    assert one["cells"] == [[1, "found", 0.667], [2, "missed", 0.0], [3, "invented", 0.0], [4, "unknown", None]]
    assert one["known"] == [1, 2, 3] and one["dice"] == round(2/9, 4)
    assert np.array_equal(np.frombuffer(zlib.decompress(b64decode(one["masks"])), np.uint8).reshape(2, 6, 6), np.stack([masks[0], pred[0]]))
    without, = pack_slices(s, pred, truth=False)
    assert without["dice"] is None and not without["known"] and {c[1] for c in without["cells"]} == {"unknown"}


def test_a_sample_of_many_goes_from_worst_to_best():
    score = np.random.default_rng(0).permutation(1000)/1000
    some = spread(score, 30)
    assert len(some) == 30 and (np.diff(score[some]) > 0).all() and score[some[0]] == 0 and score[some[-1]] == 0.999


# ---- the page

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    base, slices = tmp_path_factory.mktemp("world"), toy(40, labelled=32)
    write_challenge(slices, base/"data")
    write_challenge(toy(10, labelled=10, seed=5, every=True), base/"data", "test")
    shutil.copytree(base/"data", base/"secret")
    for f in ("y_test.csv",): (base/"secret"/f).unlink()
    train = read_challenge(base/"data")
    for name, kw in {"a": dict(), "b": dict(seed=1), "c": dict(fold=1), "none": dict(fold=-1), "full": dict()}.items(): fake_run(base/name, train, rule=SEES, **kw)
    fake_run(base/"other", replace(train, classes=ClassMap.from_names(["x", "y", "z"])), rule=SEES)
    full = Run(base/"full")
    rows = [{"phase": p, "epoch": e, "loss": 1/e, "dice": e/9} for p in ("teacher", "student") for e in (1, 2, 3)]
    pd.DataFrame(rows).to_csv(full/"history.csv", index=False)
    pd.DataFrame([{"phase": r["phase"], "epoch": r["epoch"], "seconds": 30} for r in rows]).to_csv(full/"timings.csv", index=False)
    note_pseudo(full, train[~train.labelled], np.arange(8) % 2 == 0)
    from ctseg.calibrate import calibrate_run
    calibrate_run(full, train[held_out_by(full, train)], CPU)
    report(full.folder, base/"data", plan=CPU)
    return base


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


def test_everything_is_there(world):
    page = (world/"full"/"report.html").read_text()
    for id in ("slices", "classes", "confusion", "curves", "pseudo", "calibration", "recipe"): assert f'<section id="{id}">' in page and f'href="#{id}"' in page
    data = data_of(page)
    train = read_challenge(world/"data")
    assert {s["name"] for s in data["sets"][0]["slices"]} == set(train.names[i] for i in np.flatnonzero(held_out_by(Run(world/"full"), train)))
    assert [s["name"] for s in data["sets"]] == ["held-out slices", "pseudo-labels kept", "pseudo-labels rejected"] and [len(s["slices"]) for s in data["sets"][1:]] == [4, 4]
    assert "disc_left" in page and "other side" in page and ">teacher<" in page and "<td>1.5</td>" in page and "present added" in page  # three epochs of half a minute


def test_the_score_is_that_of_the_held_out_cells(world):
    from ctseg.predict import load_predictor, predict_masks
    train = read_challenge(world/"data")
    held = train[held_out_by(Run(world/"a"), train)]
    table = np.where(held.known, dice_table(predict_masks(load_predictor(world/"a", CPU), held.images), held.masks, 3), np.nan)
    want = np.nanmean(np.nanmean(table, 0))
    page = report(world/"a", world/"data", out=world/"a.html", plan=CPU).read_text()
    assert f"<dt>Dice</dt><dd>{want:.3f}</dd>" in page and "chosen on these very slices" in page
    test = report(world/"a", world/"data", "test", out=world/"at.html", plan=CPU).read_text()
    assert "10 test slices" in test and "chosen on these very slices" not in test and [len(s["slices"]) for s in data_of(test)["sets"]] == [10]


def test_without_data_the_page_shows_the_training(world):
    page = report(world/"full", out=world/"nodata.html", plan=CPU).read_text()
    assert '<section id="curves">' in page and '<section id="pseudo">' in page and '<section id="slices">' not in page and "<script" not in page


def test_no_person_no_place_no_date(tmp_path):
    slices = toy(32, labelled=24)
    slices = replace(slices, names=[f"Doe_Jane_1950-05-0{i % 9 + 1}_{i}.png" for i in range(32)])
    run = fake_run(tmp_path/"private"/"run", slices, rule=SEES)
    spec = json.loads((run/"recipe.json").read_text())
    write_json(spec | {"recipe": spec["recipe"] | {"weights": "/home/jane/secret/encoder.safetensors"}}, run/"recipe.json")
    note_pseudo(run, slices[~slices.labelled], np.arange(8) < 4)
    page = words_of(report(run.folder, slices, plan=CPU).read_text())
    other = words_of(report_comparison([run.folder, fake_run(tmp_path/"private"/"b", slices, 1, SEES).folder], slices, plan=CPU)[0].read_text())
    for text in (page, other):
        for secret in ("Doe", "Jane", "1950", "/home", "secret", "private", str(tmp_path), "2026-"): assert secret not in text
        assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert "encoder.safetensors" in page and "slice 1" in page
    assert safe_name("12.png", 0) == "12.png" and safe_name("12345678901234.png", 4) == "slice 5"


def test_nothing_escapes(tmp_path):
    evil = '"></script><img src=x onerror=alert(1)>'
    slices = replace(toy(32, labelled=24), classes=ClassMap.from_names([evil, "<b>disc", "bar & 'co'"]))
    run = fake_run(tmp_path/"run", slices, rule=SEES)
    spec = json.loads((run/"recipe.json").read_text())
    spec["recipe"] |= {"name": evil, "about": evil}
    write_json(spec, run/"recipe.json")
    for page in (report(run.folder, slices, plan=CPU), report_comparison([run.folder, run.folder], slices, plan=CPU)[0]):
        text = page.read_text()
        assert "<img" not in text and "<b>disc" not in text and text.count("</script>") == text.count("<script")
    assert data_of((run/"report.html").read_text())["names"][1] == evil


def test_300_slices_of_the_challenges_size_are_less_than_5_mb(tmp_path):
    sample = phantom_slices(8, size=256, seed=2500)
    n = np.arange(300)
    turn = lambda x: np.stack([np.roll(x[i % len(sample)], i//len(sample), axis=i % 2) for i in n])
    many = SliceSet(turn(sample.images), turn(sample.masks), np.ones((300, 54), bool), [f"{i}.png" for i in n], n, sample.classes)
    packed = pack_slices(many, np.roll(many.masks, 3, axis=2))
    assert len(packed) == 300
    size = len(json.dumps(packed))
    print(f"{size/1e6:.2f} MB")
    assert size < 4.8e6  # what is not slices is less than 0.2 MB, see the notebook


# ---- several runs

def test_comparison_uses_slices_that_all_held_out(world):
    train = read_challenge(world/"data")
    a, b, c = (Run(world/n) for n in "abc")
    common = common_slices([a, b], world/"data")
    assert set(common.names) == set(train.names[i] for i in np.flatnonzero(held_out_by(a, train) & held_out_by(b, train))) and len(common)
    with pytest.raises(InputError, match="no slice was held out by all"): common_slices([a, c], world/"data")
    path, records = report_comparison([world/"a", world/"b", world/"a"], world/"data", plan=CPU)
    assert path == world/"a"/"comparison.html" and records[2]["difference"] == 0 == records[2]["paired"][0] == records[2]["paired"][1]
    assert abs(records[1]["difference"] - (records[1]["dice"] - records[0]["dice"])) < 1e-12
    assert "<td>seed</td>" in path.read_text()


@pytest.mark.parametrize("args, says", [
    (["{w}/nowhere"], "no run here"), (["{w}/a", "--data", "{w}/nowhere"], "no such folder"), (["{w}/a", "--data", "{w}/data", "--split", "tset"], "did you mean test"),
    (["{w}/none", "--data", "{w}/data"], "held out no slices"), (["{w}/a", "--data", "{w}/secret", "--split", "test"], "no truth here"),
    (["{w}/other", "--data", "{w}/data"], "knows other classes"), (["{w}/a", "{w}/b"], "give --data"), (["{w}/a", "{w}/c", "--data", "{w}/data"], "compare them with --split test"),
    (["{w}/a", "--data", str(ROOT/"data_sample")], "other classes"), (["{w}/a", "--out", "{w}/data/class_names.json/x.html"], "a part of the path is a file"),
])
def test_a_mistake_is_one_line(world, args, says):
    before = sorted(p for p in world.rglob("*"))
    code, out, err = ctseg("report", *[a.replace("{w}", str(world)) for a in args], "--device", "cpu")
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1, err
    assert sorted(p for p in world.rglob("*")) == before


def test_the_command(world, tmp_path):
    code, out, err = ctseg("report", world/"a", "--data", world/"data", "--out", tmp_path/"p.html", "--slices", 3, "--device", "cpu")
    assert code == 0 and len(data_of((tmp_path/"p.html").read_text())["sets"][0]["slices"]) == 3, err
    code, out, err = ctseg("report", world/"a", world/"c", "--data", world/"data", "--split", "test", "--out", tmp_path/"c.html", "--device", "cpu")
    assert code == 0 and out.count("Dice ") == 2 and (tmp_path/"c.html").exists(), err


@pytest.mark.parametrize("args, says", [
    (["{w}/a", "--split", "nonsense"], "--split needs --data"), (["{w}/a", "--slices", "5"], "--slices needs --data"),
    (["{w}/a", "{w}/b", "--data", "{w}/data", "--slices", "5"], "a comparison shows no slices"), (["{w}/a", "--data", "{w}/data", "--out", "{w}"], "it is a folder"),
    (["{w}/a", "{w}/b", "--data", "{w}/data", "--out", "{w}"], "it is a folder"), (["{w}/a", "--data", "{w}/data", "--annotated", "all"], "--annotated as it was in training"),
])
def test_an_option_that_would_do_nothing_is_refused(world, args, says):
    code, _, err = ctseg("report", *[a.replace("{w}", str(world)) for a in args], "--device", "cpu")
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1, err


def test_a_chosen_rule_is_compared_by_argmax_too(world, tmp_path):
    "The rule has seen the held-out slices; a run that uses argmax has no such advantage."
    train = read_challenge(world/"data")
    plain = fake_run(tmp_path/"plain", train, seed=3, rule={"threshold": None, "gate": 0.0})
    def page(*runs, **kw):
        path, records = report_comparison(runs, world/"data", out=tmp_path/"c.html", plan=CPU, **kw)
        return path.read_text(), records
    text, (own, other) = page(world/"a", plain.folder)
    from ctseg.predict import Rule, load_predictor, predict_masks
    from ctseg.metrics import mean_dice
    held = common_slices([Run(world/"a"), plain], world/"data")
    table = lambda run: np.where(held.known, dice_table(predict_masks(load_predictor(run, CPU), held.images, [Rule()])[0], held.masks, 3), np.nan)
    assert own["argmax"] == mean_dice(table(world/"a")) != own["dice"] and other["argmax"] == other["dice"] and own["chosen"] and not other["chosen"]
    assert abs(other["argmax_difference"] - (other["argmax"] - own["argmax"])) < 1e-12
    assert "Dice by argmax" in text and "has seen its answer" in text
    text, _ = page(world/"a", plain.folder, split="test")
    assert "Dice by argmax" in text and "has seen its answer" not in text  # no rule was chosen on those
    text, _ = page(plain.folder, plain.folder)
    assert "Dice by argmax" not in text and "has seen its answer" not in text


def test_runs_of_one_name_are_told_apart(world, tmp_path):
    for name in ("monday", "tuesday"): shutil.copytree(world/"a", tmp_path/name/"run")
    path, records = report_comparison([tmp_path/"monday"/"run", tmp_path/"tuesday"/"run", world/"b"], world/"data", plan=CPU)
    assert [r["run"] for r in records] == ["monday/run", "tuesday/run", "b"] and str(tmp_path) not in path.read_text()


def test_a_run_in_its_first_phase_has_curves(world, tmp_path):
    shutil.copytree(world/"full", tmp_path/"run")
    for name in ("checkpoints", "metrics.json", "reliability.csv"): shutil.rmtree(tmp_path/"run"/name) if name == "checkpoints" else (tmp_path/"run"/name).unlink()
    code, out, err = ctseg("report", tmp_path/"run", "--out", tmp_path/"r.html")
    assert code == 0 and '<section id="curves">' in (tmp_path/"r.html").read_text(), err
    code, _, err = ctseg("report", tmp_path/"run", "--data", world/"data", "--out", tmp_path/"s.html")
    assert code == 2 and "has not finished a phase yet" in err


# ---- in a browser

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright, to drive the page")
    if not CHROMIUM: pytest.skip("no Chromium here")
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield b
        b.close()


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_the_page_works(world, browser, width, height):
    page, said = browser.new_page(viewport={"width": width, "height": height}), []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else said.append(r.url))
    page.goto((world/"full"/"report.html").as_uri())
    title = lambda want: page.wait_for_function(f"() => document.getElementById('slice').textContent.includes('{want}')", timeout=15_000)
    colours = """id => {  // pixels that are not grey, counted on a copy (WebP makes some a little coloured)
        const shown = document.getElementById(id), copy = document.createElement("canvas"), [w, h] = [copy.width, copy.height] = [shown.width, shown.height];
        const ctx = copy.getContext("2d", {willReadFrequently: true});
        ctx.drawImage(shown, 0, 0);
        const d = ctx.getImageData(0, 0, w, h).data;
        let n = 0;
        for (let i = 0; i < d.length; i += 4) n += Math.max(d[i], d[i+1], d[i+2]) - Math.min(d[i], d[i+1], d[i+2]) > 16;
        return n; }"""
    coloured = lambda: page.evaluate(colours, "right")
    n = len(data_of((world/"full"/"report.html").read_text())["sets"][0]["slices"])
    title(f"1 of {n}")
    page.keyboard.press("ArrowRight"); title(f"2 of {n}")
    page.keyboard.press("End"); title(f"{n} of {n}")
    page.keyboard.press("ArrowRight"); title(f"{n} of {n}")
    page.keyboard.press("Home"); title(f"1 of {n}")
    page.click("#next"); title(f"2 of {n}")
    page.evaluate("() => document.activeElement.blur()")
    page.wait_for_function("() => document.getElementById('ends').children.length > 0")
    full = coloured()
    assert full > 0
    page.keyboard.press("Space"); page.wait_for_timeout(200)
    assert coloured() == 0  # the overlay is hidden
    page.keyboard.press("Space"); page.wait_for_timeout(200)
    assert coloured() == full
    page.locator("#fade").fill("0"); page.wait_for_timeout(200)
    assert coloured() == 0 and page.locator("#fade").input_value() == "0"
    page.locator("#fade").fill("80"); page.wait_for_timeout(200)
    assert coloured() == full
    page.select_option("#set", "1"); title("1 of 4")
    assert page.inner_text("#leftname") == "slice" and page.evaluate(colours, "left") == 0  # nobody's truth: grey stripes at most
    page.select_option("#set", "0"); page.select_option("#order", "best"); title(f"1 of {n}")
    page.select_option("#only", index=1); page.wait_for_timeout(200)
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out at the side
    assert not said
    page.close()
