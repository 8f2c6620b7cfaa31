"README.md is what `nbs/index.ipynb` says, and what it points to exists."
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
import readme as tool

HINT = "run `make prepare` (or `python tools/readme.py`)"


@pytest.fixture(scope="module")
def built(): return tool.build()


def test_readme_is_up_to_date(built):
    assert (ROOT/"README.md").read_text(encoding="utf-8") == built[
        0
    ], f"README.md is behind the notebook: {HINT}"


def test_pictures_are_up_to_date(built):
    for name, png in built[1].items():
        assert (ROOT/tool.IMAGES/name).exists() and (
            ROOT/tool.IMAGES/name
        ).read_bytes() == png, f"{name} is behind the notebook: {HINT}"


def test_pictures_are_small(built): assert sum(map(len, built[1].values())) < 600_000


def test_relative_links_lead_somewhere(built):
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", built[0])
    assert len(links) > 10
    assert not [x for x in links if not (ROOT/x).exists()]


def test_anchors_lead_somewhere(built):
    slugs = {
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", built[0], re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", built[0])) <= slugs


def test_the_tool_itself(tmp_path):
    "A notebook with one of everything becomes the Markdown one would write by hand."
    from execnb.nbio import mk_cell, new_nb, write_nb
    png = dict(
        output_type="display_data",
        metadata={},
        data={"image/png": "iVBORw0KGgo=", "text/plain": ["<Figure>"]},
    )
    def shows(source, *outputs):
        cell = mk_cell(source)
        cell.outputs = list(outputs)
        return cell
    cells = [
        mk_cell("# T\n\n> about\n\n- skip_showdoc: true", "markdown"),
        mk_cell("::: {.callout-note}\n\nmind [the gap](a.ipynb)\n\n:::", "markdown"),
        mk_cell("#| hide\nimport os"),
        shows("#| echo: false\n#| label: pic\n#| fig-alt: \"a dot\"\nplot()", png),
        shows("1 + 1", dict(output_type="execute_result", metadata={}, data={"text/plain": ["2"]})),
        mk_cell("[up](../LICENSE) [out](https://x.org) [here](#t)", "markdown"),
    ]
    write_nb(new_nb(cells), tmp_path/"i.ipynb")
    made, pictures = tool.build(tmp_path/"i.ipynb")
    assert made.split("\n\n", 1)[1] == (
        "# T\n\n> about\n\n> [!NOTE]\n> mind [the gap](nbs/a.ipynb)\n\n![a dot](nbs/images/pic.png)\n\n"
        "```python\n1 + 1\n```\n\n```\n2\n```\n\n[up](LICENSE) [out](https://x.org) [here](#t)\n"
    )
    assert list(pictures) == ["pic.png"]
