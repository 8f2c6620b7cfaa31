"""Build the docs site into `_docs`: `python tools/docs.py` (`make docs`).

stage   the notebooks become a plain Quarto project in `_proc`: names documented from the package's text
render  smalldocs reads that project and writes the pages; `--builder quarto` lets Quarto read the same files
vendor  KaTeX is put beside the pages where npm is at hand; otherwise the pages load it from its CDN
check   every link, picture and in-page anchor must lead somewhere; exit status 1 if one does not
"""
import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from nbdev.config import get_config

from website import finish, index, layout
from website.pages import stage_page, survey
from website.symbols import read_package

ROOT = Path(__file__).resolve().parent.parent
NBS, PROC, SITE = ROOT/"nbs", ROOT/"_proc", ROOT/"_docs"


def stage(proc: Path, nbs: Path = NBS) -> None:
    "Write the Quarto project: Quarto's settings, a page for each notebook, and the index of all names."
    shutil.rmtree(proc, ignore_errors=True)
    shutil.copytree(nbs, proc, ignore=shutil.ignore_patterns("_py", ".*", "*.ipynb"))
    os.environ["IN_TEST"] = "1"  # what nbdev sets while it prepares a page
    settings = get_config()
    package = settings.lib_path.name
    names = layout.pages(nbs)
    repository = f"{settings.git_url}/blob/{settings.branch}"
    host = f"{settings.doc_host}{settings.doc_baseurl}/"
    site = survey(nbs, names, read_package(settings.lib_path), package, repository, host)
    for name in names:
        stage_page(name, proc, site, package)
    (proc/index.PAGE).write_text(index.api_index(layout.grouped(names), site))
    write_settings(proc, names, settings)


def write_settings(proc: Path, names: list[str], settings) -> None:
    "Write what `_quarto.yml` cannot know: the sidebar, and names and addresses from `settings.ini`."
    sidebar = {"website": {"sidebar": {"contents": layout.sidebar(names, index.PAGE)}}}
    (proc/"sidebar.yml").write_text(yaml.safe_dump(sidebar, sort_keys=False))
    repository = {"icon": "github", "href": settings.git_url, "aria-label": "The repository"}
    website = {
        "title": settings.title,
        "site-url": f"{settings.doc_host}{settings.doc_baseurl}",
        "description": settings.description,
        "repo-branch": settings.branch,
        "repo-url": settings.git_url,
        "navbar": {
            "background": "primary",
            "search": True,
            "tools-collapse": False,
            "left": [{"text": "API index", "href": index.PAGE}],
            "tools": [repository],
        },
    }
    project = {"output-dir": SITE.name}
    (proc/"nbdev.yml").write_text(yaml.safe_dump({"project": project, "website": website}, sort_keys=False))


def render(proc: Path, site: Path, builder: str = "smalldocs") -> bool:
    "Pages from the staged project; True if the builder had nothing to complain about."
    commands = {
        "quarto": ["quarto", "render", str(proc), "--no-execute"],
        "smalldocs": [sys.executable, "-m", "smalldocs.cli", "render", "--strict", "--quiet", str(proc)],
    }
    ok = subprocess.run(commands[builder]).returncode == 0
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(proc/SITE.name, site)
    finish.drop_fonts(site)
    finish.name_foreign_images(site)
    finish.widen_figures(site)
    return ok


def main():
    "Build, check, and say how many pages there are and what is wrong with them."
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--builder", choices=["smalldocs", "quarto"], default="smalldocs")
    args = parser.parse_args()
    stage(PROC)
    ok = render(PROC, SITE, args.builder)
    if not finish.vendor_katex(SITE, ROOT/".cache"/"katex"):
        print("no npm here: formulas will load KaTeX from its CDN")
    problems = finish.broken(SITE)
    for line in problems:
        print(line, file=sys.stderr)
    count = len(list(SITE.rglob("*.html")))
    print(f"{count} pages in {SITE.name}, {len(problems)} broken link(s){'' if ok else ', with warnings'}")
    sys.exit(bool(problems) or not ok)


if __name__ == "__main__":
    main()
