"""The docs site: a place for every page, headings about their own objects, source links that reach a line,
definitions in source order, code that is scrolled, an index of all names, a dark side; no dead link."""
import ast
import builtins
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
import yaml
from execnb.nbio import mk_cell, new_nb, read_nb, write_nb

ROOT = Path(__file__).resolve().parents[2]
import docs as tool
import house
from website import finish, layout, pages, symbols

NAMES = layout.pages(ROOT/"nbs")
SOURCE = (
    r'<a href="https://github\.com/ctseg/ctseg/blob/main/'
    r'(?P<path>ctseg/[\w/]+\.py)#L(?P<line>[^"]*)">source</a>')
HEADING = re.compile(
    r'<h(?P<level>[34])[^>]*data-anchor-id="(?P<anchor>[^"]+)"[^>]*>(?P<name>[\w.]+)</h[34]>\s*'
    rf'<div class="symbol-source">\s*<p>{SOURCE}</p>\s*</div>\s*'
    r"<div[^>]*><div[^>]*><pre[^>]*>(?P<code>.*?)</pre>(?P<rest>.*?)"
    r"(?=<section|<details|</section>|\Z)", re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    tool.stage(folder/"_proc")
    return folder/"_proc"


@pytest.fixture(scope="module")
def site(project):
    out = project.parent/"_docs"
    assert tool.render(project, out), "smalldocs had something to complain about; see its lines above"
    return out


@pytest.fixture(scope="module")
def modules():
    return symbols.read_package(ROOT/"ctseg")


@pytest.fixture(scope="module")
def headings(site):
    "Every heading that documents a name: page and match."
    found = [(p, m) for p in sorted(site.rglob("*.html")) for m in HEADING.finditer(p.read_text())]
    section = re.compile(r'<section id="[^"]*" class="level\d symbol')
    assert len(found) == sum(len(section.findall(p.read_text())) for p in site.rglob("*.html")) > 0
    return found


def plain(html: str) -> str:
    "The text of a piece of HTML."
    return unescape(re.sub(r"<[^>]+>", "", html))


def definition_at(path: str, line: int) -> ast.AST:
    "The definition that begins on a line of a file of the package."
    tree = ast.parse((ROOT/path).read_text())
    return next(n for n in ast.walk(tree) if isinstance(n, symbols.DEFINITIONS) and n.lineno == line)


def test_every_notebook_is_a_page(site):
    wanted = {layout.unnumbered(n).replace(".ipynb", ".html") for n in NAMES}
    assert wanted <= {p.relative_to(site).as_posix() for p in site.rglob("*.html")}


def test_no_link_leads_nowhere(site):
    assert finish.broken(site) == []


def test_every_picture_has_a_text(site):
    assert finish.unnamed_pictures(site) == {}


def test_a_wide_figure_is_as_wide_on_a_phone_as_its_text_needs(tmp_path):
    from PIL import Image
    for name, inches in (("wide.png", 10), ("small.png", 5)):
        Image.new("L", (100*inches, 10)).save(tmp_path/name, dpi=(100, 100))
    drawing = "data:image/svg+xml;base64,PHN2Zy8+"
    sources = ("wide.png", "small.png", "gone.png", drawing)
    (tmp_path/"page.html").write_text("".join(f'<img alt="{name}" src="{name}">' for name in sources))
    finish.widen_figures(tmp_path)
    wide, *others = re.findall("<img[^>]*>", (tmp_path/"page.html").read_text())
    assert wide == '<img class="wide" style="--readable: 750px" alt="wide.png" src="wide.png">'
    assert all("wide\"" not in other for other in others)


def test_every_heading_documents_its_own_object(headings):
    for page, m in headings:
        where = f"{page.name}: {m['name']}"
        node = definition_at(m["path"], int(m["line"]))
        assert node.name == m["name"].split(".")[-1], f"{where}: its source link reaches {node.name}"
        kind = "class" if isinstance(node, ast.ClassDef) else "def"
        own = rf"^(async )?{kind} {node.name}\b"
        assert re.search(own, plain(m["code"]), re.M), f"{where}: another signature"
        first = (ast.get_docstring(node) or "").strip().split("\n")[0]
        words = re.findall(r"[A-Za-z]{4,}", first.split("`")[0].split("[")[0])[:4]
        assert all(w in plain(m["rest"]) for w in words), f"{where}: not its docstring ({first})"


def test_every_source_link_reaches_a_definition(site):
    count = 0
    for page in site.rglob("*.html"):
        for m in re.finditer(SOURCE, page.read_text()):
            assert m["line"].isdecimal(), f"{page.name}: {m[0]}"
            definition_at(m["path"], int(m["line"]))
            count += 1
    assert count > 100


def test_definitions_stand_in_source_order(headings):
    last = {}
    for page, m in headings:
        key = (page, m["path"])
        assert int(m["line"]) > last.get(key, 0), f"{page.name}: {m['name']} stands too late"
        last[key] = int(m["line"])


def test_every_public_definition_has_a_heading(headings, modules):
    shown = {(m["path"], m["name"]) for _, m in headings}
    places = [pages.module_of(pages.read_nb(ROOT/"nbs"/n), "ctseg") for n in NAMES]
    for module in (modules[name] for name in places if name in modules):
        assert not [s.name for s in module.public if s.kind != "value" and (module.path, s.name) not in shown]


def test_index_has_every_public_name(site, modules):
    text = (site/"api.html").read_text()
    for module in modules.values():
        part = re.search(rf'<span id="{module.name.replace(".", "-")}">.*?</details>', text, re.S)
        assert part or not module.offered, f"{module.name} is not in the index"
        first = re.findall(r"<tr>\s*<td[^>]*>(.*?)</td>", part[0], re.S) if part else []
        rows = {plain(cell) for cell in first}
        assert rows == set(module.offered), f"{module.name}: {rows ^ set(module.offered)}"
    places = re.findall(r'<td[^>]*><a href="([\w/]+\.html#[^"]+)"><code>', text)
    assert len(places) > 100


def test_every_module_of_the_index_is_a_line_that_opens(site):
    text = (site/"api.html").read_text()
    tables = text.count('<div class="names">')
    closed = re.findall(r"<details>\s*<summary><code>ctseg\.[\w.]+</code> <span>[^<]+</span></summary>", text)
    assert len(closed) > 100 and text.count("<details open>") + len(closed) == tables


def test_names_of_the_package_itself_lead_to_where_they_are_defined(site):
    import ctseg
    listed = (site/"api.html").read_text().split("Names to import")[-1].split('id="ctseg-cli"')[0]
    rows = re.findall(r"<td[^>]*>(?P<name>.*?)</td>\s*<td[^>]*>(?P<about>.*?)</td>", listed, re.S)
    assert {plain(name) for name, _ in rows} >= set(ctseg.__all__)
    assert [plain(name) for name, about in rows if "href" not in name or not plain(about).strip()] == []


def test_long_code_of_a_benchmark_is_folded_and_what_it_found_is_not(site):
    page = (site/"benchmarks"/"claims.html").read_text()
    unfolded = re.sub(r"<details.*?</details>", "", page, flags=re.S)
    assert "CLAIMS = [" in plain(page) and "CLAIMS = [" not in plain(unfolded)
    assert "one seed: for it" in plain(unfolded)


def test_repository_and_both_looks_are_at_hand(site):
    for page in site.rglob("*.html"):
        name, text = page.name, page.read_text()
        bar = re.search(r"<nav class=\"navbar.*?</nav>", text, re.S)[0]
        assert 'href="https://github.com/ctseg/ctseg"' in bar, f"{name}: no link to the repository"
        assert "smalldocsToggleScheme" in bar, f"{name}: no switch to the dark"
        assert "prefers-color-scheme: dark" in text, f"{name}: the system's choice is not followed"
        assert "smalldocs-scheme" in text, f"{name}: the reader's choice is not remembered"


def colours(css: str, selector: str) -> dict[str, str]:
    "The variables that a rule sets."
    body = css[css.index(selector):].split("{", 1)[1].split("}", 1)[0]
    return dict(re.findall(r"(--ct-[\w-]+):\s*([^;]+);", body))


def luminance(colour: str) -> float:
    "Relative luminance of `#rgb` or `#rrggbb`, as WCAG 2 defines it."
    digits = colour.lstrip("#")
    digits = "".join(2*c for c in digits) if len(digits) == 3 else digits
    parts = [int(digits[i:i + 2], 16)/255 for i in (0, 2, 4)]
    linear = [c/12.92 if c <= .03928 else ((c + .055)/1.055)**2.4 for c in parts]
    return .2126*linear[0] + .7152*linear[1] + .0722*linear[2]


@pytest.mark.parametrize("selector", [":root {", ':root[data-scheme="alternate"]'])
def test_text_can_be_read_in_both_looks(selector):
    found = colours((ROOT/"nbs"/"styles.css").read_text(), selector)
    for text in ("text", "soft", "ink", "accent", "code-text"):
        for ground in ("page", "code", "hover"):
            a, b = sorted((luminance(found[f"--ct-{text}"]), luminance(found[f"--ct-{ground}"])))
            assert (b + .05)/(a + .05) >= 4.5, f"{text} on {ground}"


def test_code_is_scrolled_and_not_cut():
    css = (ROOT/"nbs"/"styles.css").read_text()
    rule = re.search(r"^main\.content pre \{(.*?)\n\}", css, re.M | re.S)[1]
    assert "overflow-x: auto" in rule and "max-width: 100%" in rule


def test_search_finds_every_documented_name(site, headings):
    found = {r["href"] for r in json.loads((site/"search.json").read_text())}
    lost = {f"{p.relative_to(site)}#{m['anchor']}" for p, m in headings if m["level"] == "3"} - found
    assert not lost


@pytest.mark.skipif(not shutil.which("node"), reason="the page's script needs something to run it")
def test_search_answers_a_reader_by_a_guide_and_a_name_by_its_place(site):
    wanted = {
        "which recipe": "guides/choosing_a_recipe.html",
        "several GPUs": "guides/several_hosts.html",
        "own loss": "guides/your_own_method.html",
        "licence": "index.html#cite-licence",
        "SliceSet": "data/slices.html",
        "soft_dice_confidence": "inference/confidence.html#soft_dice_confidence",
    }
    assert 'window.Fuse = class' in (site/"index.html").read_text()
    script = re.sub(r"</?script>", "", (ROOT/"nbs"/"search.html").read_text())
    ask = f"""
        globalThis.window = {{}};
        {script}
        const fuse = new window.Fuse(JSON.parse(require("fs").readFileSync({json.dumps(str(site/"search.json"))})))
        const first = (query) => fuse.search(query, {{ limit: 5 }})[0].item.href
        console.log(JSON.stringify({json.dumps(list(wanted))}.map(first)))"""
    done = subprocess.run(["node", "-e", ask], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for query, place, found in zip(wanted, wanted.values(), json.loads(done.stdout)):
        assert found.startswith(place), f"{query}: {found}"


def test_bodies_of_exported_code_are_on_the_pages(site, modules):
    for page in NAMES:
        module = modules.get(pages.module_of(pages.read_nb(ROOT/"nbs"/page), "ctseg"))
        text = plain((site/layout.unnumbered(page).replace(".ipynb", ".html")).read_text()) if module else ""
        for name, symbol in module.symbols.items() if module else ():
            if symbol.kind == "function":
                body = f"def {name.split('.')[-1]}("
                assert body in text, f"the body of {name} is not on the page of {module.name}"


def test_nothing_is_fetched_from_elsewhere(site):
    fetched = [line for line in finish.fetched_elsewhere(site) if "npm/katex@" not in line]
    assert not fetched


def test_katex_comes_from_the_site_when_it_is_there(tmp_path):
    dist = tmp_path/"cache"/"node_modules"/"katex"/"dist"
    for name in ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js", "fonts/a.woff2"):
        (dist/name).parent.mkdir(parents=True, exist_ok=True)
        (dist/name).write_text("")
    page = tmp_path/"site"/"sub"/"p.html"
    page.parent.mkdir(parents=True)
    script = "https://cdn.jsdelivr.net/npm/katex@0.16.11/dist/katex.min.js"
    page.write_text(f'<script src="{script}"></script>')
    assert finish.fetched_elsewhere(tmp_path/"site") == [f"sub/p.html: {script}"]
    assert finish.vendor_katex(tmp_path/"site", tmp_path/"cache")
    assert finish.fetched_elsewhere(tmp_path/"site") == [] == finish.broken(tmp_path/"site")


def test_command_line_page_has_every_command_and_option():
    import typer
    from ctseg.cli import app
    cells = json.loads((ROOT/"nbs"/"guides"/"command_line.ipynb").read_text())["cells"]
    outputs = [o["data"] for c in cells for o in c.get("outputs", []) if "data" in o]
    page = "".join("".join(data.get("text/markdown", [])) for data in outputs)
    remedy = "run python tools/nb.py nbs/guides/command_line.ipynb"
    for name, command in typer.main.get_command(app).commands.items():
        part = re.search(rf"^## ctseg {name}$(.*?)(?=^## |\Z)", page, re.M | re.S)
        assert part, f"`ctseg {name}` is not on the page: {remedy}"
        shown = [
            (o, p.metavar or o) if p.param_type_name == "argument" else (o, o)
            for p in command.params
            for o in p.opts
        ]
        lost = [o for o, label in shown if f"`{label}" not in part[1]]
        assert not lost, f"`ctseg {name}`: {lost} not on the page: {remedy}"


def test_sidebar_follows_the_folders_of_the_design(project):
    contents = yaml.safe_load((project/"sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    assert {n for s in contents for n in s.get("contents", [])} == {layout.unnumbered(n) for n in NAMES}
    assert {"text": "API index", "href": "api.qmd"} in contents


def test_pages_are_grouped_by_their_folders():
    names = [
        "data/10_slices.ipynb", "core/02_settings.ipynb", "core/01_files.ipynb", "methods/deep/er/1_x.ipynb",
        "index.ipynb", "80_cli.ipynb", "00_anatomy.ipynb", "cli/02_serve.ipynb", "guides/b.ipynb",
        "tutorials/a.ipynb", "tutorials/first_run.ipynb", "explanations/y.ipynb", "benchmarks/x.ipynb",
        "kaggle/b/b.ipynb", "kaggle/supervised/supervised.ipynb"]
    groups = layout.grouped(names)
    assert list(groups) == "Start Explanations Kaggle Package Core Data Methods Benchmarks".split()
    start = ["index.ipynb", "tutorials/first_run.ipynb", "tutorials/a.ipynb", "guides/b.ipynb"]
    assert groups["Start"] == start
    assert groups["Package"] == ["00_anatomy.ipynb", "80_cli.ipynb", "cli/02_serve.ipynb"]
    assert groups["Core"] == ["core/01_files.ipynb", "core/02_settings.ipynb"]
    assert groups["Kaggle"] == ["kaggle/supervised/supervised.ipynb", "kaggle/b/b.ipynb"]
    with pytest.raises(SystemExit, match="odd/z.ipynb"):
        layout.grouped(["odd/z.ipynb"])


def test_addresses_have_no_numbers():
    old = ("00_anatomy.ipynb", "benchmarks/03a_x.ipynb", "index.ipynb", "core/01_files.ipynb")
    new = ["anatomy.ipynb", "benchmarks/x.ipynb", "index.ipynb", "core/files.ipynb"]
    assert [layout.unnumbered(n) for n in old] == new


CELL = '''class Box(Base):
    """A box: holds things.

    Args:
        size: in mm
    """
    size: int = 3  # in mm
    _hidden: int = 0

    @property
    def volume(self) -> int:
        "Its volume, mm³."
        return self.size**3

    def open(self, *, wide: bool = False):  # always: with care
        "Open it. Then close it."
        return wide

def first(a: int, # a number
          b=None): return a

def second(): return first(1)'''


USE = "Use `Box.open()`, `first()`, `toy.Box` and [here](../core/01_box.ipynb#Box), `other`, [`LIMIT`](x)."


@pytest.fixture
def toy(tmp_path):
    "A package of two modules in folders, with its notebooks, staged."
    limit = "LIMIT = 4  # boxes at most"
    package, nbs = tmp_path/"toy", tmp_path/"nbs"
    for folder in (package/"core", nbs/"core", nbs/"data"):
        folder.mkdir(parents=True)
    (package/"__init__.py").write_text('from .core.box import Box\n__all__ = ["Box"]\n')
    header = '"""Boxes."""\n__all__ = ["Box", "first", "second", "LIMIT"]\n'
    (package/"core"/"box.py").write_text(f"{header}{CELL}\n\n{limit}\n")
    title = mk_cell("# A title\n\n> What it is about", "markdown")
    code = [mk_cell(f"#| {text}") for text in ("default_exp core.box", f"export\n{CELL}", f"export\n{limit}")]
    code.append(mk_cell("show_doc(Box.open)"))
    write_nb(new_nb([title, *code]), nbs/"core"/"01_box.ipynb")
    write_nb(new_nb([title, mk_cell(USE, "markdown")]), nbs/"data"/"02_use.ipynb")
    names = layout.pages(nbs)
    modules = symbols.read_package(package)
    site = pages.survey(nbs, names, modules, "toy", "https://x.org/r/blob/main", "https://x.org/toy/")
    for name in names:
        pages.stage_page(name, tmp_path/"out", site, "toy")
    return tmp_path/"out", site


def test_a_page_in_a_folder_documents_its_module(toy):
    out, site = toy
    cells = pages.read_nb(out/"core"/"box.ipynb").cells
    texts = [c.source for c in cells if c.cell_type == "markdown" and c.source.startswith("### ")]
    assert [re.search(r"^### (\w+)", t)[1] for t in texts] == ["Box", "first", "second"]
    box = texts[0]
    assert "[source](https://x.org/r/blob/main/toy/core/box.py#L3)" in box
    assert "class Box(Base):\n    size: int = 3  # in mm\n```" in box and "_hidden" not in box
    assert "Args:\n\n- size: in mm" in box
    assert "`volume` | Its volume, mm³. | [source](https://x.org/r/blob/main/toy/core/box.py#L13)" in box
    assert '<span id="box.volume"></span>`volume`' in box
    assert "| `open(wide)` | Open it. |" in box, "its anchor is the heading that show_doc asks for"
    asked = next(c.source for c in cells if "#### Box.open {#box.open .symbol}" in c.source)
    assert (
        "def open(self, *, wide: bool = False):  # always: with care\n```" in asked
        and "Then close it." in asked
    )
    assert "```python\ndef first(a: int, # a number\n          b=None):\n```" in texts[1]
    assert any('<span id="limit"></span>' in c.source for c in cells)
    assert sum("code-fold: true" in c.source for c in cells) == 2


def test_names_lead_to_their_places_from_any_folder(toy):
    out, _ = toy
    text = "\n".join(c.source for c in pages.read_nb(out/"data"/"use.ipynb").cells)
    assert "[`Box.open()`](../core/box.html#box.open)" in text
    assert "[`first()`](../core/box.html#first)" in text and "[`toy.Box`](../core/box.html#box)" in text
    assert "[here](../core/box.ipynb#box)" in text
    assert " `other`, [`LIMIT`](x)" in text


def test_names_that_two_modules_share_need_their_long_form():
    place = {"a.x": "a.html#x", "b.x": "b.html#x"}
    site = pages.Site(Path(), {}, {}, place, "", "", {})
    assert pages.linked("`x` `a.x`", "c.html", site, None) == "`x` [`a.x`](a.html#x)"
    assert pages.linked("`x`", "b.html", site, "b") == "[`x`](#x)"
    assert pages.linked("```\n`a.x`\n```\n# `a.x`", "c.html", site, None) == "```\n`a.x`\n```\n# `a.x`"


def test_a_word_is_a_name_only_where_its_module_is_at_hand():
    "Defined or imported by the page's module, written as a call, or with its module; else it may be a key."
    places = {"table": "a.html#table", "a.table": "a.html#table", "per_class": "a.html#per_class"}
    module = symbols.Module("b", "b.py", "", {}, [], {"table": ("a", "table")})
    site = pages.Site(Path(), {"b": module}, {}, places, "", "", {})
    text = "`table` `table()` `a.table` `per_class`"
    linked = "[`table()`](a.html#table) [`a.table`](a.html#table) [`per_class`](a.html#per_class)"
    assert pages.linked(text, "c.html", site, "c") == f"`table` {linked}"
    assert pages.linked("`table`", "a.html", site, "a") == "[`table`](#table)"
    assert pages.linked("`table`", "b.html", site, "b") == "[`table`](a.html#table)"


def test_a_method_patched_into_its_class_is_not_taken_for_something_else(tmp_path):
    (tmp_path/"p").mkdir()
    method = 'def open(self, recipe):\n    "Open it."\n    return recipe\n'
    (tmp_path/"p"/"m.py").write_text(f'class Run:\n    "A run."\n\n@patch_to(Run)\n{method}')
    module = symbols.read_module(tmp_path/"p"/"m.py", tmp_path)
    found = module.symbols["Run.open"]
    assert (found.line, found.header, found.summary) == (5, "def open(self, recipe):", "Open it.")


def test_anchors_that_differ_only_in_capitals_are_kept_apart(tmp_path):
    (tmp_path/"p").mkdir()
    (tmp_path/"p"/"m.py").write_text("class UniMatch: pass\ndef unimatch(): pass\n")
    module = symbols.read_module(tmp_path/"p"/"m.py", tmp_path)
    anchors = {s.name: s.anchor for s in module.symbols.values()}
    assert anchors == {"UniMatch": "unimatch", "unimatch": "unimatch-2"}


LESSON_PAGES = [layout.unnumbered(name) for name in NAMES if name.startswith(pages.LESSONS)]


@pytest.mark.parametrize("name", LESSON_PAGES)
def test_code_pasted_from_a_lesson_finds_its_names(project, name):
    cells = [c for c in read_nb(project/name).cells if c.cell_type == "code"]
    shown = [house.global_names(c.source) for c in cells if not pages.SILENT.search(c.source)]
    bound = {"display", *dir(builtins)}.union(*(bound for bound, _ in shown))
    assert set().union(*(read for _, read in shown)) <= bound


def test_only_the_hidden_code_that_others_need_is_folded():
    cells = ["#| hide\nimport os", "#| echo: false\nx = 1", "print(os, x)", "#| hide\nassert x\ny = 1"]
    nb = new_nb([mk_cell(source) for source in cells])
    pages.fold_setup(nb)
    folds = [re.findall("code-fold|hide|echo", c.source) for c in nb.cells]
    assert folds == [["code-fold"], ["code-fold"], [], ["hide"]]


def test_names_of_functions_are_their_own():
    source = "import a\ndef f(x, y=b):\n    z = x\n    return [c for i in z]\nfor k in a: print(k)"
    bound, read = house.global_names(source)
    assert bound == {"a", "f", "k"} and read == {"b", "c", "print"}


def test_broken_links_are_found(tmp_path):
    (tmp_path/"sub").mkdir()
    targets = ("#a", "#b", "sub/p.html#q", "https://x.org")
    links = "".join(f'<a href="{t}"></a>' for t in targets)
    (tmp_path/"index.html").write_text(f'<h2 id="a">x</h2><h2 id="a">y</h2>{links}<img src="no.png">')
    back = "".join(f'<a href="{t}"></a>' for t in ("../index.html#a", "../gone.html", "../"))
    (tmp_path/"sub"/"p.html").write_text(back)
    assert finish.broken(tmp_path) == [
        "index.html: #b: no such place on that page",
        "index.html: no.png does not exist",
        "index.html: sub/p.html#q: no such place on that page",
        "index.html: two places are called #a",
        "sub/p.html: ../gone.html does not exist"]
