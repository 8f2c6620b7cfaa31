"""REPORT.pdf: `python paper/build.py`. Numbers from measured.py, plots from figures.py, text from
report.typ; nothing is fetched.

The same files and versions give the same bytes: no date, no clock and no path enters. paper/numbers.json
keeps every number of the PDF and the versions that made it.
"""
import argparse
import json
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

PDF, NUMBERS = HERE.parent/"REPORT.pdf", HERE/"numbers.json"

def versions() -> dict:
    "What decides the bytes, given the numbers."
    return {p: metadata.version(p) for p in ("typst", "matplotlib")}

def typeset(data: dict, folder: Path, drawn: dict, form: str = "pdf", ppi: float = 110) -> list[bytes]:
    "The report of these numbers with the plots `drawn` into `folder`: [the PDF], or a PNG a page."
    import typst
    for name in ("report.typ", "refs.bib"): shutil.copy(HERE/name, folder)
    (folder/"data.json").write_text(json.dumps(data | {"figures": drawn}, sort_keys=True), encoding="utf-8")
    # typst brings its fonts
    compiler = typst.Compiler(
        str(folder/"report.typ"), root=str(folder), font_paths=[], ignore_system_fonts=True
    )
    how = {"timestamp": 0} if form == "pdf" else {"ppi": ppi}
    made = compiler.compile(format=form, **how)
    return made if isinstance(made, list) else [made]

def numbers(data: dict) -> str:
    "What is kept beside the PDF."
    kept = {"versions": versions(), "numbers": data}
    return json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=PDF)
    p.add_argument("--pages", type=Path, help="also write a PNG a page into this folder")
    a = p.parse_args()
    import figures
    import measured
    from ctseg.core.atomic import atomic_path
    data = measured.collect()
    with tempfile.TemporaryDirectory() as d:
        drawn = figures.draw(data, measured.RESULTS, Path(d))
        pdf, = typeset(data, Path(d), drawn)
        pages = typeset(data, Path(d), drawn, "png") if a.pages else []
    for path, content in [
        (a.out, pdf),
        (NUMBERS if a.out == PDF else a.out.with_suffix(".json"), numbers(data).encode()),
    ]:
        with atomic_path(path) as tmp: tmp.write_bytes(content)
    for i, png in enumerate(pages, 1):
        with atomic_path(a.pages/f"page-{i:02}.png") as tmp:
            tmp.write_bytes(png)
    print(f"{a.out}: {len(pdf)//1024} kB")


if __name__ == "__main__": main()
