"""Build the docs site into `_docs`: `python tools/docs.py` (`make docs`).

stage   nbdev resolves the notebooks into `_proc`: directives, `show_doc`, links between symbols. The result is a plain Quarto project
render  smalldocs reads that project and writes the pages; `--builder quarto` lets Quarto read the very same files
vendor  KaTeX is put beside the pages where npm is at hand, so that nothing is fetched from elsewhere; otherwise formulas load it from its CDN
check   every link, picture and in-page anchor must lead somewhere; exit status 1 if one does not
"""
import argparse, ast, importlib, os, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from execnb.nbio import read_nb, write_nb
from nbdev.config import get_config
from nbdev.processors import FilterDefaults, exec_show_docs
from nbdev.showdoc import show_doc

ROOT = Path(__file__).resolve().parent.parent
NBS, PROC, SITE = ROOT/"nbs", ROOT/"_proc", ROOT/"_docs"
KATEX = "0.16.11"
FOLD = 'code-fold: true\n#| code-summary: "Source"'
DEFS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

# Which page stands where: the first section with a pattern that fits. Numbers order the pages inside a section.
SECTIONS = {
    "Start": ["index.ipynb", "tutorials/*", "guides/*"],
    "Explanations": ["explanations/*"],
    "Kaggle": ["kaggle/*/*"],
    "Data": ["00_*", "1?_*"],
    "Learning": ["2?_*", "3?_*", "4?_*"],
    "Methods": ["5?_*"],
    "Using": ["0?_*", "6?_*", "7?_*", "8?_*", "9?_*"],
    "Benchmarks": ["benchmarks/*"],
}
FIRST = ["index.ipynb", "tutorials/first_run.ipynb", "tutorials/your_own_dicom.ipynb", "guides/choosing_a_recipe.ipynb", "explanations/three_states.ipynb", "explanations/semi_supervised.ipynb",
         "explanations/dice_alone.ipynb", *(f"kaggle/{n}/{n}.ipynb" for n in ("supervised", "teacher_student"))]  # before the others of their section


def pages() -> list[str]:
    "Every notebook that becomes a page, relative to `nbs`."
    found = [p.relative_to(NBS) for p in NBS.rglob("*.ipynb")]
    return sorted(str(p) for p in found if not any(q.startswith((".", "_")) for q in p.parts))


def grouped(names: list[str]) -> dict[str, list[str]]:
    "Section -> its pages. A page that fits nowhere is an error, not a page that nobody finds."
    out = {s: [] for s in SECTIONS}
    for name in sorted(names, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n)):
        section = next((s for s, patterns in SECTIONS.items() if any(_fits(name, q) for q in patterns)), None)
        if section is None: raise SystemExit(f"tools/docs.py: {name} fits no section of the sidebar; add a pattern to SECTIONS")
        out[section].append(name)
    return {s: found for s, found in out.items() if found}


def _fits(name: str, pattern: str) -> bool: return name.count("/") == pattern.count("/") and Path(name).match(pattern)


def unnumbered(name: str) -> str: return re.sub(r"(^|/)\d+[a-z]?_(?=[^/]*$)", r"\1", name)


def stage():
    "nbdev's half: a folder with Quarto's settings and the notebooks, every directive resolved and no number in a page's address."
    shutil.rmtree(PROC, ignore_errors=True)
    shutil.copytree(NBS, PROC, ignore=shutil.ignore_patterns("_py", ".*", "*.ipynb"))
    os.environ["IN_TEST"] = "1"  # what nbdev sets while it prepares a page
    names = pages()
    shown = set().union(*(stage_page(NBS/name, PROC/unnumbered(name)) for name in names))
    for p in PROC.rglob("*.ipynb"):  # a method without a place of its own is explained where its class is
        p.write_text(re.sub(r"(\.html#)(\w+)(\.\w+)\)", lambda m: m[0] if m[2] + m[3] in shown else f"{m[1]}{m[2]})", p.read_text()))
    contents = [{"section": s, "contents": [unnumbered(n) for n in found]} for s, found in grouped(names).items()]
    (PROC/"sidebar.yml").write_text(yaml.safe_dump({"website": {"sidebar": {"contents": contents}}}, sort_keys=False))
    cfg = get_config()
    site = {"title": cfg.title, "site-url": f"{cfg.doc_host}{cfg.doc_baseurl}", "description": cfg.description, "repo-branch": cfg.branch, "repo-url": cfg.git_url}
    (PROC/"nbdev.yml").write_text(yaml.safe_dump({"project": {"output-dir": SITE.name}, "website": site}, sort_keys=False))


def stage_page(old: Path, new: Path) -> set[str]:
    "One notebook through nbdev's processors, under the name of its page, with links that work wherever the site stands; the anchors of its symbols."
    nb = read_nb(old)
    reveal(nb)
    Filter()(nb)
    cfg, depth = get_config(), len(new.relative_to(PROC).parts) - 1
    host, up = f"{cfg.doc_host}{cfg.doc_baseurl}/", "../"*depth
    outside = re.compile(rf"\]\((?:\.\./){{{depth + 1}}}(?=\w)")  # a file of the repository that is not a page

    def local(text: str) -> str:
        text = re.sub(r"\[\[(`[^`]+`)\]\([^)]*\)\]\(", r"[\1](", text)  # nbdev links a symbol inside a link's own text once more
        text = outside.sub(f"]({cfg.git_url}/blob/{cfg.branch}/", text.replace(f"]({host}", f"]({up}"))
        text = re.sub(r"\]\((?!\w+:)([^)\s#]*)#([^)\s]+)\)", lambda m: f"]({m[1]}#{m[2].lower()})", text)  # Jupyter's anchors keep capitals, a page's do not
        return re.sub(r"\]\(((?!\w+:)[^)\s]*?\.ipynb)", lambda m: f"]({unnumbered(m[1])}", text)

    for cell in nb.cells:
        if cell.cell_type == "raw": cell.source = re.sub(r"^(output-file|skip_showdoc): .*\n?", "", cell.source, flags=re.M)
        if cell.cell_type == "markdown":
            cell.source = local(cell.source)
        cell.source = cell.source.replace('code-fold: show\n#| code-summary: "Exported source"', FOLD)
        for out in cell.get("outputs", []):
            data = out.get("data", {})
            if "text/markdown" in data: data["text/markdown"] = local("".join(data["text/markdown"])).splitlines(True)
    new.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, new)
    return {m[1].lower() for c in nb.cells for m in re.finditer(r"^show_doc\(([\w.]+)", c.source, re.M)}


def reveal(nb):
    """Let the pages show the code. nbdev leaves exported cells out of a page and puts `show_doc` in their place; in a literate project the body
    belongs to the text. So a cell with a public name shows its documentation and its source folded below; one without only its source, folded."""
    for cell in nb.cells:
        if cell.cell_type != "code" or not re.search(r"^#\|\s*export\s*$", cell.source, flags=re.M): continue
        body = ast.parse(re.sub(r"^#\|.*$", "", cell.source, flags=re.M)).body
        if all(isinstance(x, (ast.Import, ast.ImportFrom)) for x in body): continue
        public = [x for x in body if isinstance(x, DEFS) and not x.name.startswith("_")]
        private = "#| " + FOLD.replace("Source", "Source of " + ", ".join(defined(body)))
        cell.source = re.sub(r"^#\|\s*export\s*$", lambda m: "#| exports" if public else private, cell.source, count=1, flags=re.M).lstrip()


def defined(body) -> list[str]:
    "What the statements define."
    return [t for x in body for t in ([x.name] if isinstance(x, DEFS) else [y.id for y in getattr(x, "targets", [getattr(x, "target", None)])
                                                                        if isinstance(y, ast.Name)])]


class run_show_docs(exec_show_docs):
    "Documentation of a symbol comes from the package, which is the same code; so no cell of the notebook has to run for it."
    def begin(self):
        export = next((m[1] for c in self.nb.cells if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", c.source, re.M))), None)
        self.space = vars(importlib.import_module(f"{get_config().lib_path.name}.{export}")) if export else {}

    def __call__(self, cell):
        if not (m := re.search(r"^show_doc\(([\w.]+)(.*)\)$", cell.source, re.M)): return
        name = m[1]
        for part in name.split("."): sym = self.space[part] if part in self.space else getattr(sym, part)
        text = show_doc(sym, name=name, title_level=4 if "." in name else 3)._repr_markdown_()
        cell.outputs = [dict(output_type="display_data", metadata={}, data={"text/markdown": text.splitlines(True)})]

    def end(self): pass


class Filter(FilterDefaults):
    "nbdev's processors, with our way of filling in `show_doc`."
    def base_procs(self): return [run_show_docs if p is exec_show_docs else p for p in super().base_procs()]


def render(builder: str) -> bool:
    "Pages from the staged project; True if the builder had nothing to complain about. No font is fetched from elsewhere."
    command = {"quarto": ["quarto", "render", str(PROC), "--no-execute"],
               "smalldocs": [sys.executable, "-m", "smalldocs.cli", "render", "--strict", "--quiet", str(PROC)]}[builder]
    ok = subprocess.run(command).returncode == 0
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(PROC/SITE.name, SITE)
    for p in SITE.rglob("*.css"):
        if "fonts.googleapis" in (text := p.read_text()): p.write_text(re.sub(r"@import\s*url\([^)]*fonts\.googleapis[^)]*\);?", "", text))
    return ok


def vendor_katex():
    "Serve KaTeX from the site itself, if npm can bring it; it is kept in `.cache` for the next time."
    dist = ROOT/".cache"/"katex"/"node_modules"/"katex"/"dist"
    if not dist.exists() and shutil.which("npm"):
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(ROOT/".cache"/"katex"), f"katex@{KATEX}"])
    if not dist.exists(): return print("no npm here: formulas will load KaTeX from its CDN")
    here = SITE/"site_libs"/"katex"
    for f in ["katex.min.css", "katex.min.js", "contrib/auto-render.min.js", *(f"fonts/{p.name}" for p in dist.glob("fonts/*.woff2"))]:
        (here/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dist/f, here/f)
    for p in SITE.rglob("*.html"):
        up = "../"*(len(p.relative_to(SITE).parts) - 1)
        p.write_text(re.sub(r"https://cdn\.jsdelivr\.net/npm/katex@[\d.]+/dist", f"{up}site_libs/katex", p.read_text()))


class Links(HTMLParser):
    "The ids of a page and what it links to."
    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get("id"): self.ids.add(a["id"])
        if tag == "a" and a.get("name"): self.ids.add(a["name"])
        self.links |= {a[k] for k in ("href", "src") if a.get(k) and not a[k].startswith(("data:", "javascript:"))}


def broken(site: Path) -> list[str]:
    "A line for each link or anchor inside the site that leads nowhere."
    found = {p.resolve(): Links(p.read_text()) for p in site.rglob("*.html")}
    out = []
    for page, facts in found.items():
        for link in sorted(facts.links):
            u = urlsplit(link)
            if u.scheme or u.netloc: continue
            target = (page.parent/unquote(u.path)).resolve() if u.path else page
            if target.is_dir(): target /= "index.html"
            if not target.exists(): out.append(f"{page.relative_to(site.resolve())}: {link} does not exist")
            elif u.fragment and target in found and unquote(u.fragment) not in found[target].ids | {"", "top"}:
                out.append(f"{page.relative_to(site.resolve())}: {link}: no such place on that page")
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--builder", choices=["smalldocs", "quarto"], default="smalldocs")
    args = p.parse_args()
    stage()
    ok = render(args.builder)
    vendor_katex()
    problems = broken(SITE)
    for line in problems: print(line, file=sys.stderr)
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE.name}, {len(problems)} broken link(s){'' if ok else ', with warnings'}")
    sys.exit(bool(problems) or not ok)


if __name__ == "__main__": main()
