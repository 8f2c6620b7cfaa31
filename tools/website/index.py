"""The page that lists every public name of every module: name, first sentence, link.

A line stands for each module and opens to its names, by `<details>`, which needs no script: all names at once
are a page of 127,000 pixels. A browser opens the right line for a link to a module, and for a word looked for."""
from collections.abc import Iterable
from html import escape

from website.layout import unnumbered
from website.pages import Site, call_of, in_table, linked
from website.symbols import Module, Symbol

PAGE = "api.qmd"
LONG = 64  # a value whose text is longer than this is cut
FRONT = """---
title: API index
description: Every public name of the package, its first sentence, and a link to its place.
toc-depth: 2
---

Each line is a module; open it for its public names, each with its first sentence and a link to its place."""


def api_index(groups: dict[str, list[str]], site: Site) -> str:
    "The Markdown of the page: the sections of the sidebar, and in each a table a module."
    parts = [FRONT]
    outside = [m for m in site.modules.values() if m.name not in site.homes and m.offered]
    if outside:
        parts += ["## Names to import", *together(re_exports(m, site) for m in outside)]
    modules = {page: site.modules[name] for name, page in site.homes.items() if name in site.modules}
    for section, notebooks in groups.items():
        pages = [unnumbered(name).replace(".ipynb", ".html") for name in notebooks]
        found = [modules[page] for page in pages if page in modules and modules[page].public]
        if found:
            parts += [f"## {section}", *together(module_table(m, site) for m in found)]
    return "\n\n".join(parts) + "\n"


def module_table(module: Module, site: Site) -> str:
    "The line of a module, which opens to a link to its page and a row for each public name."
    rows = [row(symbol, module, site) for symbol in module.public]
    title, about_page = site.titles[module.name]
    lead = f"Explained and tested on the page [{title}]({site.homes[module.name]})."
    return module_line(module, about_page.replace("`", ""), [lead, "", *table(rows)])


def re_exports(module: Module, site: Site) -> str:
    "The names that a module without a page offers; each leads to where it is defined."
    rows = []
    for name in module.offered:
        origin, there = module.imported.get(name, (module.name, name))
        place = site.places.get(f"{origin}.{there}")
        symbol = site.modules[origin].symbols.get(there) if origin in site.modules else None
        target = f"[`{name}`]({place})" if place else f"`{name}`"
        rows.append(f"| {target} | {about(symbol, origin, site) if symbol else ''} |")
    return module_line(module, "names defined elsewhere, offered here", table(rows), is_open=True)


def together(lines: Iterable[str]) -> list[str]:
    "The lines of a section's modules, in the form that the style sheet knows."
    return ["::: {.modules}", *lines, ":::"]


def table(rows: list[str]) -> list[str]:
    "The rows under their header, as wide as the text."
    return ["::: {.names}", "| Name | What it is |", "|:--|:--|", *rows, ":::"]


def module_line(module: Module, about_it: str, content: list[str], is_open: bool = False) -> str:
    "A line with a module's name that opens to its content; the anchor lies inside, so that a link opens it."
    name = f"<code>{module.name}</code> <span>{escape(about_it)}</span>"
    anchor = f'<span id="{module.name.replace(".", "-")}"></span>'
    start = [f"<details{' open' * is_open}>", f"<summary>{name}</summary>", "", anchor, ""]
    return "\n".join([*start, *content, "", "</details>"])


def row(symbol: Symbol, module: Module, site: Site) -> str:
    "A public name with a link to its place, its first sentence, and the methods of a class."
    page = site.homes[module.name]
    text = about(symbol, module.name, site)
    methods = [f"[`{call_of(m)}`]({page}#{m.anchor})" for m in methods_of(symbol, module)]
    if methods:
        text += f"<br>{' '.join(methods)}"
    return f"| [`{symbol.name}`]({page}#{symbol.anchor}) | {in_table(text)} |"


def methods_of(symbol: Symbol, module: Module) -> list[Symbol]:
    "The public methods of a class in source order, those patched into it by the same module included."
    found = [s for name, s in module.symbols.items() if name.startswith(f"{symbol.name}.")]
    return sorted((s for s in found if not s.name.split(".")[-1].startswith("_")), key=lambda s: s.line)


def about(symbol: Symbol, module: str, site: Site) -> str:
    "The first sentence about a name of a module; of a value without a comment, its text."
    if symbol.summary or symbol.kind != "value":
        return linked(symbol.summary, "api.html", site, module)
    text = " ".join(symbol.header.split())
    return f"`{text if len(text) <= LONG else text[:LONG] + '…'}`"
