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

`--check` runs the notebooks and writes nothing: it lists those that now print something else than what they
keep, or fail, and then ends with status 1. Pictures are not compared: another version of matplotlib moves a
pixel.
"""
import argparse
import contextlib
import difflib
import os
import re
import sys
import time
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


def executed(nb: Path):
    """The notebook with new outputs. Cells that nbdev would skip in a test (`eval: false`, test flags) keep
    the outputs they have."""
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
    return note


def run(nb: Path):
    "Run in place."
    write_nb(executed(nb), nb)


def cleaned(note):
    "nbdev's cleaning, in place; `tags` stay: papermill finds a notebook's parameters by one."
    clean_nb(note, allowed_cell_metadata_keys=get_config().allowed_cell_metadata_keys.split())
    number_tables(note)
    return note


def number_tables(note):
    "pandas draws an id for every styled table; numbered instead, a second run changes nothing."
    ids = {}
    def number(text):
        pattern = r"\bT_[0-9a-f]{5}(?![0-9a-f])"
        return re.sub(pattern, lambda m: ids.setdefault(m[0], f"T_{len(ids):05x}"), text)
    outputs = [output.get("data", {}) for cell in note.cells for output in cell.get("outputs", [])]
    for data in outputs:
        if "text/html" not in data: continue
        html = data["text/html"]
        data["text/html"] = number(html) if isinstance(html, str) else [number(x) for x in html]


def clean(nb: Path):
    note = cleaned(read_nb(nb))
    write_nb(note, nb)


MOST, WIDEST = 12, 150  # lines that `--check` shows of a notebook, and their characters
TEXTS = ("text/markdown", "text/html", "text/plain")  # the first of them is what a reader sees


def lines_of(text: str | list[str]) -> list[str]:
    return "".join(text).splitlines()


def printed(cell) -> list[str]:
    "The lines of a cell's outputs; of a picture only that there is one."
    lines = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            lines.append("(a picture)")
            continue
        shown = next((data[kind] for kind in TEXTS if kind in data), output.get("text", ""))
        lines += lines_of(shown)
    return lines


def changes(old, new) -> list[str]:
    "What the cells of `new` print and those of `old` do not, or the other way round, as lines of a diff."
    found = []
    for number, (before, after) in enumerate(zip(old.cells, new.cells, strict=True)):
        diff = difflib.unified_diff(printed(before), printed(after), n=0, lineterm="")
        # the first two lines name files, the others are removed (-), added (+) or say where (@@)
        found += [f"cell {number}: {line}" for line in list(diff)[2:] if not line.startswith("@@")]
    return found


def check(nb: Path) -> list[str]:
    "What the notebook prints otherwise than it keeps, or why it fails; nothing is written."
    from ctseg.training.deadline import Stopped
    try:
        new = cleaned(executed(nb))
    except Stopped:
        raise  # by Ctrl-C or SIGTERM, in the middle of a training
    except Exception as e:
        return [f"fails: {type(e).__name__}: {e}"]
    return changes(read_nb(nb), new)


def check_all(paths: list[Path]) -> int:
    "Print each notebook with its processor seconds and its changes; return how many have some."
    behind = 0
    for nb in paths:
        start = time.process_time()
        found = check(nb)
        behind += bool(found)
        state = "behind" if found else "same"
        print(f"{state:6} {time.process_time() - start:6.1f} s {nb.relative_to(ROOT)}", flush=True)
        for line in found[:MOST]: print(f"    {line[:WIDEST]}", flush=True)
        if len(found) > MOST:
            print(f"    … and {len(found) - MOST} more lines", flush=True)
    print(f"{behind} of {len(paths)} notebooks print something else than they keep")
    return behind


def runs_by_default(nb: Path) -> bool:
    "Whether no folder above the notebook is marked as one of long runs."
    return not any((d/".notest").exists() for d in nb.parents if NBS in (d, *d.parents))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("paths", nargs="*", type=Path)
    p.add_argument("--no-run", action="store_true", help="keep the outputs as they are")
    p.add_argument("--check", action="store_true", help="list what would be printed otherwise, write nothing")
    p.add_argument("--from", dest="chosen", choices=[TEXT, NOTEBOOK],
                   help="which of the two holds, for the given PATHs, where contents do not tell")
    args = p.parse_args()
    if args.chosen and not args.paths:
        p.error("--from needs the paths it is for")
    paths = [q.resolve() for q in args.paths] or notebooks()
    paths = [q.parent.parent/f"{q.stem}.ipynb" if q.suffix == ".py" else q for q in paths]
    if args.check:
        CaptureShell()
        sys.exit(check_all(paths if args.paths else [nb for nb in paths if runs_by_default(nb)]) > 0)
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
        if not args.no_run and (runs_by_default(nb) or args.paths): run(nb)
        clean(nb)
        Pair(nb).mirror()
        print("done", nb.relative_to(ROOT), flush=True)


if __name__ == "__main__": main()
