"""Work on the notebooks: `python tools/nb.py [PATH ...]` (default: all) takes each one through the whole
round.

sync    of `nbs/X.ipynb` and its text `nbs/_py/X.py` the one that was edited updates the other; outputs
and cell ids are
        kept. Contents tell which (`tools/pairs.py`); where they do not, `--from text` or `--from
        notebook` says so
export  the `#| export` cells are written to `ctseg/`
run     the notebook runs top to bottom and keeps its outputs (`--no-run` skips this; folders with
`.notest` always do)
clean   nbdev's cleaning: no execution counts, no stray metadata
mirror  the text is written again from the notebook
"""
import argparse, contextlib, os, re, sys
from pathlib import Path
from textwrap import TextWrapper

# the networks here are tiny, and outputs do not depend on the number of cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CTSEG_CPU_PRECISION", "fp32")  # the same numbers on every processor

import matplotlib
import nbdev.maker
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.export import nb_export
from nbdev.process import NBProcessor
from pairs import NBS, NOTEBOOK, TEXT, Pair, notebooks, sync

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
NAMES_WIDTH = 98  # of the lines in `__all__`; with the indent of the first they stay within 110 columns


def narrow_names(width: int, **options) -> TextWrapper:
    "What nbdev wraps `__all__` with, at our width in place of its own."
    return TextWrapper(NAMES_WIDTH, **options)


nbdev.maker.TextWrapper = narrow_names


@contextlib.contextmanager
def own_registries():
    "What a notebook registers is not for the next; nor is what it sets for its figures."
    from ctseg.runs.recipe import REGISTRIES
    kept = [(registry, dict(registry.entries)) for registry in REGISTRIES.values()]
    yield
    for registry, entries in kept:
        registry.entries = entries


def run(nb: Path):
    """Run in place. Cells that nbdev would skip in a test (`eval: false`, test flags) keep the outputs they
    have."""
    flags = set(get_config().tst_flags.split())
    note = NBProcessor(nb, rm_directives=False, process=True).nb

    def skip(cell):
        d = getattr(cell, "directives_", {})
        return (cell.cell_type != "code" or "nbdev_export(" in cell.source
                or d.get("eval:", [""])[0].lower() == "false" or bool(flags & d.keys()))
    for cell in note.cells:
        # execnb leaves the old outputs of a cell that now prints nothing
        if not skip(cell): cell.outputs = []
    shell = CaptureShell(nb)
    with working_directory(nb.parent), matplotlib.rc_context(), own_registries():
        shell.run_all(note, exc_stop=True, preproc=skip)
    write_nb(note, nb)


def cleaned(note):
    "nbdev's cleaning, in place; `tags` stay: papermill finds a notebook's parameters by one."
    clean_nb(note, allowed_cell_metadata_keys=get_config().allowed_cell_metadata_keys.split())
    number_tables(note)
    return note


def number_tables(note):
    "pandas draws an id for every styled table; numbered instead, a second run changes nothing."
    ids = {}
    number = lambda text: re.sub(
        r"\bT_[0-9a-f]{5}(?![0-9a-f])", lambda m: ids.setdefault(m[0], f"T_{len(ids):05x}"), text
    )
    for data in (
        o["data"] for c in note.cells for o in c.get("outputs", []) if "text/html" in o.get("data", {})
    ):
        html = data["text/html"]
        data["text/html"] = number(html) if isinstance(html, str) else [number(x) for x in html]


def clean(nb: Path):
    note = cleaned(read_nb(nb))
    write_nb(note, nb)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("paths", nargs="*", type=Path)
    p.add_argument("--no-run", action="store_true", help="keep the outputs as they are")
    p.add_argument("--from", dest="chosen", choices=[TEXT, NOTEBOOK],
                   help="which of the two holds, for the given PATHs, where contents do not tell")
    args = p.parse_args()
    if args.chosen and not args.paths: p.error("--from needs the paths it is for")
    paths = [q.resolve() for q in args.paths] or notebooks()
    paths = [q.parent.parent/f"{q.stem}.ipynb" if q.suffix == ".py" else q for q in paths]
    undecided = sync(paths, args.chosen)
    if undecided:
        print(
            *undecided,
            "Look at both, then repeat with --from text or --from notebook and their paths.",
            sep="\n",
            file=sys.stderr
        )
        sys.exit(2)
    for nb in paths: nb_export(nb)
    _build_modidx()
    # matplotlib hooks into the first shell only, and then draws each figure once more: some layouts move by
    # a pixel. With this shell for a first one, a notebook that runs alone draws as one that runs after others
    if not args.no_run: CaptureShell()
    for nb in paths:
        notest = any((d/".notest").exists() for d in nb.parents if NBS in (d, *d.parents))
        if not args.no_run and (not notest or args.paths): run(nb)
        clean(nb)
        Pair(nb).mirror()
        print("done", nb.relative_to(ROOT), flush=True)


if __name__ == "__main__": main()
