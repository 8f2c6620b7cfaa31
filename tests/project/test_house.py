"The package keeps to the limits of its style, and folders import only from those above them."
import ast
import json
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["core", "data", "io", "phantom", "losses", "metrics", "models", "inference", "training", "methods",
         "runs", "prediction", "recipes", "report", "integrations"]
FIGURES, PLACES = house.measure()


@pytest.mark.parametrize("name", FIGURES)
def test_limit(name):
    print(f"{name}: {FIGURES[name]:g}")
    assert not house.missed(name, FIGURES[name]), f"{FIGURES[name]:g}; {PLACES.get(name, [])[:5]}"


def test_faults_are_found():
    "A text with each fault once: what counts nothing would pass everything."
    wide = "x = [" + "1, "*40 + "]"
    text = (
        f"from ctseg.core.atomic import _private\nf = lambda: 1; y = 2\n{wide}\ndef g(a, b, c, d, e, f, g, "
        f"h, i): pass\n"
    )
    text += "if True: " + "z"*80 + "\n"
    counted = [name for name, _ in house.faults(house.Module("ctseg/x.py", text))]
    assert sorted(counted) == sorted(house.AT_MOST.keys() & set(counted)) and len(counted) == 6


def test_an_unused_import_is_found():
    text = "import os\nimport re  # noqa: F401 for its effect\nfrom a import (\n    b,\n    c as d,\n)\nx: \"d\"\n"
    assert list(house.unused_imports(house.Module("ctseg/x.py", text))) == [1, 3]


SCRIPTS = sorted([*(ROOT/"tools").rglob("*.py"), *(ROOT/"paper").glob("*.py")])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_script_keeps_to_the_style_of_the_package(path):
    module = house.Module(path.name, path.read_text(encoding="utf-8"))
    assert not list(house.faults(module))
    assert not list(house.unused_imports(module)) and not house.undefined_names(module)


def test_an_undefined_name_is_found():
    text = "import os\ndef f(a):\n    from re import sub\n    return sub, os, a, len\ndef g(): return sub\nclass A: b = f\n"
    assert house.undefined_names(house.Module("x.py", text)) == {"sub"}


def test_a_name_of_two_modules_is_found():
    "Classes and functions; private names and commands are left out."
    texts = {
        "ctseg/io/a.py": "def read(): pass\ndef _own(): pass\nclass Part: pass\n",
        "ctseg/io/b.py": "def read(): pass\ndef _own(): pass\ndef merge(): pass\n",
        "ctseg/cli/c.py": "def merge(): pass\nclass Part: pass\n",
    }
    found = list(house.names_of_two([house.Module(name, text) for name, text in texts.items()]))
    assert found == ["read (ctseg/io/a.py, ctseg/io/b.py)"]


def test_faults_of_cells_are_found():
    "Each fault once, in cells that are not exported either; strings, docstrings and directives are none."
    colour = min(house.state_colours())
    wide = "y" + " + y"*40
    counted = list(
        house.cell_faults(f"{wide}\n# {'z'*120}\nx = 1; y = 2\nz = 3;\nc = '{colour.upper()}'\n", {colour})
    )
    assert sorted(counted) == sorted([
        f"lines over {house.WIDTH} columns in notebooks",
        f"lines over {house.WIDTH} columns in notebooks",
        "semicolons in notebooks",
        "semicolons in notebooks",
        "colours of the three states outside core.style",
    ])
    allowed = f'#| code-summary: "{"a"*120}"\ndef f():\n    "{"d"*120}"\nprint("a; b")\n'
    assert list(house.cell_faults(allowed, {colour})) == []


def test_a_dense_module_is_found(tmp_path):
    "One module over the limit, among others that are plain."
    for folder in ("core", "data"):
        (tmp_path/"ctseg"/folder).mkdir(parents=True)
    cell = {"cell_type": "code", "source": ["#| export\n", "x = 1"]}
    (tmp_path/"nbs").mkdir()
    (tmp_path/"nbs"/"a.ipynb").write_text(json.dumps({"cells": [cell]}))
    (tmp_path/"ctseg/core/style.py").write_text((ROOT/"ctseg/core/style.py").read_text())
    (tmp_path/"ctseg/data/dense.py").write_text(
        "__all__ = []\n" + "x = [a + b*c - d for a, b, c, d in zip(e, f, g, h)]\n"
    )
    figures, places = house.measure(tmp_path)
    assert house.missed(house.DENSEST, figures[house.DENSEST]) and "dense.py" in places[house.DENSEST][0]
    assert not house.missed("syntax nodes a code line", figures["syntax nodes a code line"])


def imports(path: Path) -> list[str]:
    "The modules of the package that a module imports, as dotted names without `ctseg`."
    package = path.relative_to(ROOT/"ctseg").parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(".".join([*package[:len(package) - node.level + 1], node.module or ""]))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ctseg."):
            found.append(node.module.removeprefix("ctseg."))
    return found


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_imports_only_from_those_above(folder):
    below = set(ORDER[ORDER.index(folder) + 1:]) | {"demo", "kaggle", "segmentation", "cli"}
    paths = sorted((ROOT/"ctseg"/folder).glob("*.py"))
    wrong = [f"{p.name}: {m}" for p in paths for m in imports(p) if m.split(".")[0] in below]
    assert paths and not wrong


def test_packed_bytes_name_no_test(request):
    "They hold the time: two workers would collect tests of other names, and pytest stops."
    assert not [test.nodeid for test in request.session.items if r"\x1f\x8b" in test.nodeid]


def test_folders_are_alike():
    "Package, notebooks and tests have the same folders."
    kept = {p.name for p in (ROOT/"ctseg").iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert set(ORDER) <= kept <= {*ORDER, "cli"}
    for other in ("nbs", "tests"):
        assert set(ORDER) <= {p.name for p in (ROOT/other).iterdir() if p.is_dir()}, other
