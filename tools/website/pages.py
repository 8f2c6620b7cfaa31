"""A notebook becomes a page: exported cells are documented and shown, names in backticks become links.

nbdev leaves exported cells out of a page and puts `show_doc` in their place. In a literate project the body
belongs to the text. So a cell with public names shows the documentation of each, in the order of the cell,
and then its source, folded. A cell without a public name shows only its source, folded.
"""
import ast
import re
from dataclasses import dataclass
from pathlib import Path
from posixpath import relpath
from typing import NamedTuple

from execnb.nbio import mk_cell, read_nb, write_nb
from house import global_names
from nbdev.processors import FilterDefaults

from website.layout import unnumbered
from website.symbols import DEFINITIONS, Module, Symbol, is_public, own_value, qualified

EXPORT = re.compile(r"^#\|\s*exports?(?:[ \t]+(\S+))?[ \t]*$", re.M)
SHOW_DOC = re.compile(r"^show_doc\(\s*([\w.]+)", re.M)
DOCUMENTED_HERE = {"add_show_docs", "clean_show_doc", "exec_show_docs", "add_links", "add_fold", "mv_exports"}
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\([^)]*\))")
NAME = re.compile(r"`([A-Za-z_][\w.]*)(\(\))?`")
WORD = re.compile(r"[a-z]+")  # `table` may be a key or a word; it is a name where its module is at hand
FENCE = re.compile(r"\s*(```|~~~)")
EVIDENCE = "benchmarks/"  # the folder whose pages fold code that is longer than this many lines
LONG_CODE = 8
LESSONS = ("tutorials/", "guides/", "explanations/")  # the folders whose code a reader pastes
HIDDEN = re.compile(r"^#\|[ \t]*hide[ \t]*$", re.M)
SILENT = re.compile(r"^#\|[ \t]*echo:[ \t]*false[ \t]*$", re.M)
SETUP = '#| code-fold: true\n#| code-summary: "Imports, set-up"'


class Filter(FilterDefaults):
    "nbdev's processors without those that document, link and fold exported code, which this module does."
    def base_procs(self) -> list:
        "The processors, in nbdev's order."
        return [p for p in super().base_procs() if p.__name__ not in DOCUMENTED_HERE]


@dataclass
class Site:
    "What every page needs to know of the others."
    nbs: Path
    modules: dict[str, Module]
    homes: dict[str, str]  # module -> its page in the site: `ctseg.core.errors` -> `core/errors.html`
    places: dict[str, str]  # public name, in every form that prose uses -> `page#anchor`
    repository: str  # where the files of the repository can be read: `https://…/blob/main`
    host: str  # the published address of the site, ending in a slash
    titles: dict[str, tuple[str, str]]  # module -> title and one-line description of its page

    def source(self, module: Module, symbol: Symbol) -> str:
        "The address of a definition's line in the repository."
        return f"{self.repository}/{module.path}#L{symbol.line}"


def module_of(nb, package: str) -> str | None:
    "The module that a notebook exports to, from `default_exp`."
    for cell in nb.cells:
        if found := re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source, re.M):
            return f"{package}.{found[1]}"
    return None


def title_of(nb) -> tuple[str, str]:
    "The title and the one-line description of a notebook, from its first Markdown cell."
    text = next((c.source for c in nb.cells if c.cell_type == "markdown"), "")
    title = re.search(r"^#\s+(.+)$", text, re.M)
    about = re.search(r"^>\s+(.+)$", text, re.M)
    return title[1].strip() if title else "", about[1].strip() if about else ""


def survey(
    nbs: Path,  # the folder of the notebooks
    names: list[str],  # those that become pages, relative to `nbs`
    modules: dict[str, Module],
    package: str,  # the name of the package
    repository: str,
    host: str,
) -> Site:
    "Find the page of each module and the place of each public name; one of two modules has only long forms."
    homes, titles = {}, {}
    for name in names:
        nb = read_nb(nbs/name)
        if module := module_of(nb, package):
            homes[module] = unnumbered(name).replace(".ipynb", ".html")
            titles[module] = title_of(nb)
    short, long = {}, dict(homes)
    for module in modules.values():
        page = homes.get(module.name)
        for symbol in module.symbols.values() if page else ():
            if not is_public(symbol.name):
                continue
            place = f"{page}#{symbol.anchor}"
            long[f"{module.name}.{symbol.name}"] = place
            long[f"{module.name.removeprefix(package + '.')}.{symbol.name}"] = place
            short.setdefault(symbol.name, set()).add(place)
    places = long | {name: found.pop() for name, found in short.items() if len(found) == 1}
    for module in modules.values():
        for name, (origin, there) in module.imported.items():
            if name in module.offered and f"{origin}.{there}" in places:
                places[f"{module.name}.{name}"] = places[f"{origin}.{there}"]
    return Site(nbs, modules, homes, places, repository, host, titles)


def cell_names(source: str) -> list[str]:
    "What a cell defines, in its order: `read`, `Run`, `Run.open` (patched), `LIMIT`."
    names = []
    for node in statements(source):
        names += [qualified(node)] if isinstance(node, DEFINITIONS) else own_value(node)
    return names


def statements(source: str) -> list[ast.stmt]:
    "The statements of a cell, those inside a `try` or `if` at its top level included."
    todo, out = list(ast.parse(re.sub(r"^[#%]\|?.*$", "", source, flags=re.M)).body), []
    for node in todo:
        out += [*node.body, *node.orelse] if isinstance(node, (ast.Try, ast.If)) else [node]
    return out


def only_imports(source: str) -> bool:
    "Whether a cell does nothing but import."
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in statements(source))


def documentation(symbol: Symbol, module: Module, site: Site, placed: set[str]) -> str:
    """The Markdown that documents a symbol: heading, link to its line, signature, docstring, methods.

    `placed` holds the names with a heading of their own on the page, so that no anchor stands twice."""
    level = "####" if "." in symbol.name else "###"
    parts = [
        f"{level} {symbol.name} {{#{symbol.anchor} .symbol}}",
        f"::: {{.symbol-source}}\n[source]({site.source(module, symbol)})\n:::",
        f"```python\n{symbol.header}\n```",
        prose(symbol.doc),
        methods_table(symbol, module, site, placed),
    ]
    return "\n\n".join(part for part in parts if part)


def prose(doc: str) -> str:
    "A docstring as Markdown: indented lines under a line that ends with a colon (`Args:`) become a list."
    out, items = [], False
    for line in doc.splitlines():
        deep = line.startswith("    ") and not line.startswith("        ")
        starts = deep and not items and out and out[-1].rstrip().endswith(":")
        if starts:
            out.append("")
        items = bool(starts or (items and line.startswith("    ")))
        out.append(f"- {line.strip()}" if items and deep else f"  {line.strip()}" if items else line)
    return "\n".join(out)


def methods_table(symbol: Symbol, module: Module, site: Site, placed: set[str]) -> str:
    "The public methods of a class in source order: signature, first sentence, link to the line."
    rows = []
    for method in symbol.members:
        anchor = "" if method.name in placed else place_of(method)
        call = in_table(call_of(method))
        link = f"[source]({site.source(module, method)})"
        rows.append(f"| {anchor}`{call}` | {in_table(method.summary)} | {link} |")
    return "\n".join(["| Method | | |", "|:--|:--|--:|", *rows]) if rows else ""


def place_of(symbol: Symbol) -> str:
    "An empty element that links to the symbol can lead to, for a name without a heading."
    return f'<span id="{symbol.anchor}"></span>'


def call_of(method: Symbol) -> str:
    "How a method is called: its name and parameters without `self` and types; a property is its name."
    node = ast.parse(method.header + ("" if method.header.endswith(":") else ":") + "\n    pass").body[0]
    name = method.name.split(".")[-1]
    kinds = {ast.unparse(d) for d in node.decorator_list}
    if any(kind.endswith(("property", ".setter")) for kind in kinds):
        return name
    arguments = node.args
    drop = 0 if "staticmethod" in kinds else 1
    names = [a.arg for a in [*arguments.posonlyargs, *arguments.args]][drop:]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [a.arg for a in arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return f"{name}({', '.join(names)})"


def in_table(text: str) -> str:
    "Text that may stand in a cell of a Markdown table."
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def folded(source: str, names: list[str]) -> str:
    "An exported cell whose code the reader can open."
    summary = "Source of " + ", ".join(names) if names else "Source"
    return EXPORT.sub(f'#| code-fold: true\n#| code-summary: "{summary}"', source, count=1).lstrip()


def fold_long(nb) -> None:
    "Fold the code of a page of evidence: its reader came for what the code has found."
    for cell in nb.cells:
        if cell.cell_type != "code" or "#|" in cell.source or len(cell.source.splitlines()) <= LONG_CODE:
            continue
        cell.source = f'#| code-fold: true\n#| code-summary: "Code"\n{cell.source}'


def fold_setup(nb) -> None:
    "Fold hidden code that shown code needs, in place of leaving it out: what is pasted from a lesson must run."
    needed = set()
    for cell in reversed([c for c in nb.cells if c.cell_type == "code"]):
        bound, read = global_names(cell.source)
        hidden, silent = HIDDEN.search(cell.source), SILENT.search(cell.source)
        if (hidden or silent) and not bound & needed:
            continue
        needed |= read
        if hidden:
            cell.source = HIDDEN.sub(SETUP, cell.source, count=1)
            cell.outputs = []
        if silent:
            cell.source = SILENT.sub("#| code-fold: true", cell.source, count=1)


def reveal(nb, name: str | None, site: Site) -> None:
    "Put documentation before the exported cells of a notebook whose module is `name`, and fold their source."
    shown = {m[1] for c in nb.cells if c.cell_type == "code" and (m := SHOW_DOC.search(c.source))}
    exported = [c for c in nb.cells if c.cell_type == "code" and EXPORT.search(c.source)]
    patched = {n for c in exported for n in cell_names(c.source) if "." in n}
    package = name.split(".")[0] if name else ""
    cells = []
    for cell in nb.cells:
        place = EXPORT.search(cell.source) if cell.cell_type == "code" else None
        asked = SHOW_DOC.search(cell.source) if cell.cell_type == "code" else None
        module = site.modules.get(f"{package}.{place[1]}" if place and place[1] else name or "")
        if asked and module and asked[1] in module.symbols:
            text = documentation(module.symbols[asked[1]], module, site, shown | patched)
            cells.append(mk_cell(text, "markdown"))
            continue
        if place and module and not only_imports(cell.source):
            names = cell_names(cell.source)
            cells += documented(cell, names, module, site, Placed(shown, patched))
            shown |= set(names)
            continue
        cells.append(cell)
    nb.cells = cells


class Placed(NamedTuple):
    "The names that have, or will have, a heading of their own on the page."
    shown: set[str]  # documented by an earlier cell, or by `show_doc` somewhere
    patched: set[str]  # methods that a cell of their own puts into a class

    @property
    def all(self) -> set[str]:
        "Both kinds."
        return self.shown | self.patched


def documented(cell, names: list[str], module: Module, site: Site, placed: Placed) -> list:
    "The cells that stand for one exported cell: what documents its public names, then its folded source."
    symbols = [module.symbols[n] for n in names if n in module.symbols and is_public(n)]
    headed = [s for s in symbols if s.kind != "value" and s.name not in placed.shown]
    offered = [s for s in symbols if s.kind == "value" and s.name in module.offered]
    values = [s for s in offered if s.name not in placed.shown]
    texts = [documentation(s, module, site, placed.all) for s in headed]
    if values:
        texts.append("".join(place_of(s) for s in values))
    cell.source = folded(cell.source, [] if headed else names)
    return [*(mk_cell(text, "markdown") for text in texts), cell]


def linked(text: str, page: str, site: Site, module: str | None) -> str:
    "Markdown in which public names in backticks lead to their place; code, headings and links stay."
    lines, fence = [], False
    for line in text.splitlines():
        if FENCE.match(line):
            fence = not fence
        elif not fence and not line.startswith(("    ", "#")):
            parts = LINK.split(line)
            parts[::2] = [NAME.sub(lambda m: link_of(m, page, site, module), part) for part in parts[::2]]
            line = "".join(parts)
        lines.append(line)
    return "\n".join(lines)


def link_of(match: re.Match, page: str, site: Site, module: str | None) -> str:
    "A name in backticks as a link, if it is a public name. The page's own module comes first."
    name, call = match.groups()
    place = place_in(module, name, site)
    if place is None and (call or not WORD.fullmatch(name)):
        place = site.places.get(name)
    if place is None:
        return match[0]
    target, _, anchor = place.partition("#")
    address = "" if target == page and anchor else relpath(target, str(Path(page).parent))
    return f"[{match[0]}]({address}{'#' + anchor if anchor else ''})"


def place_in(module: str | None, name: str, site: Site) -> str | None:
    "Where a name leads that a module defines or imports."
    imported = site.modules[module].imported if module in site.modules else {}
    origin, there = imported.get(name, (module, name))
    return site.places.get(f"{origin}.{there}")


def local(text: str, page: str, site: Site) -> str:
    "Markdown whose links work wherever the site stands: to pages, and to other files in the repository."
    depth = page.count("/")
    # so many steps up lead out of `nbs`: to a file of the repository that is not a page
    outside = re.compile(rf"\]\((?:\.\./){{{depth + 1}}}(?=\w)")
    text = outside.sub(f"]({site.repository}/", text.replace(f"]({site.host}", f"]({'../' * depth}"))
    # Jupyter's anchors keep capitals, a page's do not
    text = re.sub(r"\]\((?!\w+:)([^)\s#]*)#([^)\s]+)\)", lambda m: f"]({m[1]}#{m[2].lower()})", text)
    return re.sub(r"\]\(((?!\w+:)[^)\s]*?\.ipynb)", lambda m: f"]({unnumbered(m[1])}", text)


def part_headings(nb, module: Module | None) -> None:
    "Give a heading of the prose another anchor where it would have that of a name of the module (`Style`)."
    anchors = {s.anchor for s in module.symbols.values()} if module else set()

    def parted(match: re.Match) -> str:
        anchor = re.sub(r"\s+", "-", match[2].strip().lower())
        return f"{match[0]} {{#about-{anchor}}}" if anchor in anchors else match[0]

    for cell in nb.cells:
        if cell.cell_type == "markdown" and cell.source:
            cell.source = re.sub(r"^(#{2,6}) +([^{}\n]+)$", parted, cell.source, flags=re.M)


def stage_page(name: str, folder: Path, site: Site, package: str) -> None:
    "Write the notebook `name` into `folder` as a page of a Quarto project."
    nb = read_nb(site.nbs/name)
    module = module_of(nb, package)
    page = unnumbered(name).replace(".ipynb", ".html")
    reveal(nb, module, site)
    if name.startswith(EVIDENCE):
        fold_long(nb)
    if name.startswith(LESSONS):
        fold_setup(nb)
    Filter()(nb)
    part_headings(nb, site.modules.get(module))
    for cell in nb.cells:
        if cell.cell_type == "raw":
            cell.source = re.sub(r"^(output-file|skip_showdoc): .*\n?", "", cell.source, flags=re.M)
        if cell.cell_type == "markdown":
            cell.source = local(linked(cell.source, page, site, module), page, site)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data:
                text = linked("".join(data["text/markdown"]), page, site, module)
                data["text/markdown"] = local(text, page, site).splitlines(True)
    new = folder/unnumbered(name)
    new.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, new)
