"""REPORT.pdf says what the results say: built again it is the same file, and another result gives another
file.

Bytes are promised for the versions of typst and matplotlib that paper/numbers.json names (settings.ini
and constraints.txt pin them).
With others the numbers are compared and the bytes are not.
"""
import copy
import json
import re
import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT/"paper"))
import build
import figures
import measured

HINT = "run `make report`"


@pytest.fixture(scope="module")
def data(): return measured.collect()

@pytest.fixture(scope="module")
def drawn(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return folder, figures.draw(data, measured.RESULTS, folder)

@pytest.fixture(scope="module")
def pdf(data, drawn): return build.typeset(data, *drawn)[0]


def differences(a, b, where=""):
    "Paths at which two structures differ by more than rounding."
    kind = lambda *types: isinstance(a, types) and isinstance(b, types)
    if kind(list) and len(a) == len(b): a, b = dict(enumerate(a)), dict(enumerate(b))
    if kind(dict):
        return [
            x
            for k in sorted({*a, *b})
            for x in differences(a.get(k, "missing"), b.get(k, "missing"), f"{where}/{k}")
        ]
    same = np.isclose(a, b, rtol=0, atol=2e-6) if kind(int, float) else a == b
    return [] if same else [f"{where}: {a!r} {b!r}"]


def test_numbers_are_those_of_the_results(data):
    kept = json.loads(build.NUMBERS.read_text(encoding="utf-8"))
    assert (
        differences(kept["numbers"], json.loads(json.dumps(data)))[:5] == []
    ), f"paper/numbers.json is behind nbs/benchmarks/results: {HINT}"


def test_pdf_is_built_from_them(pdf):
    made_with = json.loads(build.NUMBERS.read_text(encoding="utf-8"))["versions"]
    if made_with != (here := build.versions()):
        pytest.skip(f"REPORT.pdf was made with {made_with}, here are {here}: only its numbers were compared")
    assert build.PDF.read_bytes() == pdf, f"REPORT.pdf is behind the results, the text or the figures: {HINT}"


def test_building_twice_gives_the_same_bytes(data, drawn, pdf, tmp_path):
    # whatever ran before in this process
    with matplotlib.rc_context({"font.size": 15, "figure.dpi": 50, "image.cmap": "gray"}):
        again = figures.draw(data, measured.RESULTS, tmp_path)
    assert again == drawn[1] and all(
        (tmp_path/f["file"]).read_bytes() == (drawn[0]/f["file"]).read_bytes() for f in again.values()
    )
    assert build.typeset(data, tmp_path, again)[0] == pdf


def test_another_number_gives_another_pdf(data, drawn, pdf):
    other = copy.deepcopy(data)
    other["supervised"]["main"][0]["difference"] += .001
    assert build.typeset(other, *drawn)[0] != pdf


def test_another_result_gives_another_number(data, tmp_path):
    shutil.copytree(measured.RESULTS/"supervised", tmp_path/"supervised")
    path = next(iter(sorted((tmp_path/"supervised").glob("masked-s*.npz"))))
    run = dict(np.load(path))
    run["dice_chosen"] = run["dice_chosen"]*.9
    np.savez_compressed(path, **run)
    assert differences(measured.plain(measured.supervised(tmp_path/"supervised")), data["supervised"])


def test_it_renders_without_any_result(data, drawn):
    "Sections without results say so; nothing breaks."
    none = data | dict.fromkeys(("supervised", "semi100", "semi800", "on_phantom", "claim")) | {
        k: [] for k in ("models", "networks", "faults", "transposed", "demo", "confidence")}
    assert build.typeset(none, drawn[0], {"states": drawn[1]["states"]})[0].startswith(b"%PDF")


def test_nothing_is_typed_by_hand():
    "Decimals in the text are literature values (table 1, the original's scores) or part of a definition."
    text = re.sub(
        r"^(#let|#set|#show|\s*//).*$",
        "",
        (ROOT/"paper"/"report.typ").read_text(encoding="utf-8"),
        flags=re.M,
    )
    words = re.sub(r"canvas\(.*?\n\s*\}\)", "", text, flags=re.S)
    found = set(re.findall(r"(?<![\d.#\w])\d\.\d{2,}(?![\d.]*(?:mm|em|pt))", words))
    assert found <= {
        "0.24",
        "0.25",
        "0.27",
        "0.29",
        "0.44",
        "0.557",
        "0.609",
        "0.627",
        "0.01",
        "0.03",
        "1.96",
    }, found


def test_every_reference_is_cited():
    keys = set(re.findall(r"^@\w+\{(\w+),", (ROOT/"paper"/"refs.bib").read_text(encoding="utf-8"), re.M))
    text = (ROOT/"paper"/"report.typ").read_text(encoding="utf-8")
    assert keys and {k for k in keys if not re.search(rf"@{k}\b", text)} == set()
