"The docs site can be built from the notebooks, finds a place for every page, and no link leads nowhere."
import json, re, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import docs as tool


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("site")
    patch.setattr(tool, "PROC", folder/"_proc")
    patch.setattr(tool, "SITE", folder/"_docs")
    tool.stage()
    assert tool.render("smalldocs"), "smalldocs had something to complain about; see its lines above"
    yield folder/"_docs"
    patch.undo()


def test_every_notebook_is_a_page(site):
    assert {tool.unnumbered(n).replace(".ipynb", ".html") for n in tool.pages()} <= {str(p.relative_to(site)) for p in site.rglob("*.html")}


def test_no_link_leads_nowhere(site): assert tool.broken(site) == []


def test_search_finds_the_loss(site):
    found = [r for r in json.loads((site/"search.json").read_text()) if "MaskedSigmoidLoss" in json.dumps(r)]
    assert any("losses.html" in json.dumps(r) for r in found)


def test_public_code_is_documented_and_shown(site):
    page = (site/"losses.html").read_text()
    assert 'id="maskedsigmoidloss"' in page and "<details" in page
    assert "_dice" in page, "the body of the loss is not on its page"


def test_nothing_is_fetched_for_the_look(site):
    assert not [p for p in site.rglob("*.css") if re.search(r"@import\s*url\(.{0,3}http", p.read_text())]


def test_command_line_page_has_every_command_and_option():
    import typer
    from ctseg.cli import app
    cells = json.loads((ROOT/"nbs"/"guides"/"command_line.ipynb").read_text())["cells"]
    page = "".join("".join(o["data"].get("text/markdown", [])) for c in cells for o in c.get("outputs", []) if "data" in o)
    for name, command in typer.main.get_command(app).commands.items():
        part = re.search(rf"^## ctseg {name}$(.*?)(?=^## |\Z)", page, re.M | re.S)
        assert part, f"`ctseg {name}` is not on the page: run python tools/nb.py nbs/guides/command_line.ipynb"
        lost = [o for p in command.params for o in p.opts if f"`{o}" not in part[1]]
        assert not lost, f"`ctseg {name}`: {lost} not on the page: run python tools/nb.py nbs/guides/command_line.ipynb"


def test_groups():
    names = ["index.ipynb", "00_anatomy.ipynb", "02_files.ipynb", "10_data.ipynb", "20_losses.ipynb", "57_unimatch.ipynb", "80_cli.ipynb",
             "tutorials/first_run.ipynb", "tutorials/a.ipynb", "benchmarks/x.ipynb", "explanations/y.ipynb", "kaggle/b/b.ipynb", "kaggle/supervised/supervised.ipynb"]
    assert tool.grouped(names) == {
        "Start": ["index.ipynb", "tutorials/first_run.ipynb", "tutorials/a.ipynb"], "Data": ["00_anatomy.ipynb", "10_data.ipynb"],
        "Learning": ["20_losses.ipynb"], "Methods": ["57_unimatch.ipynb"], "Using": ["02_files.ipynb", "80_cli.ipynb"],
        "Benchmarks": ["benchmarks/x.ipynb"], "Explanations": ["explanations/y.ipynb"], "Kaggle": ["kaggle/supervised/supervised.ipynb", "kaggle/b/b.ipynb"]}
    with pytest.raises(SystemExit, match="odd/z.ipynb"): tool.grouped(["odd/z.ipynb"])
    assert [tool.unnumbered(n) for n in ("00_anatomy.ipynb", "benchmarks/03a_x.ipynb", "index.ipynb")] == ["anatomy.ipynb", "benchmarks/x.ipynb", "index.ipynb"]


def test_broken_links_are_found(tmp_path):
    (tmp_path/"sub").mkdir()
    (tmp_path/"index.html").write_text('<h2 id="a">x</h2><a href="#a"></a><a href="#b"></a><a href="sub/p.html#q"></a><a href="https://x.org"></a><img src="no.png">')
    (tmp_path/"sub"/"p.html").write_text('<a href="../index.html#a"></a><a href="../gone.html"></a><a href="../"></a>')
    assert tool.broken(tmp_path) == ["index.html: #b: no such place on that page", "index.html: no.png does not exist",
                                     "index.html: sub/p.html#q: no such place on that page", "sub/p.html: ../gone.html does not exist"]
