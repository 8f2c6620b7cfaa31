"""REPORT.pdf: `python report/build.py`. Numbers from measured.py, figures from figures.py, text from report.typ, set by typst; nothing is fetched.

The same files and versions give the same bytes: no date, no clock, no path enters. report/numbers.json keeps every number of the PDF and the versions that made it.
"""
import argparse, json, os, shutil, sys, tempfile
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

VERSIONED = ("typst", "matplotlib")  # what decides the bytes, given the numbers
PDF, NUMBERS = HERE.parent/"REPORT.pdf", HERE/"numbers.json"

def versions() -> dict: return {p: metadata.version(p) for p in VERSIONED}

def typeset(data: dict, results: Path, form: str = "pdf", ppi: float = 110) -> bytes|list[bytes]:
    "The report of these numbers; as a PDF, or as a PNG a page."
    import typst
    import figures
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        for name in ("report.typ", "refs.bib"): shutil.copy(HERE/name, folder)
        drawn = figures.draw(data, results, folder)
        (folder/"data.json").write_text(json.dumps(data | {"figures": drawn}, sort_keys=True), encoding="utf-8")
        compiler = typst.Compiler(str(folder/"report.typ"), root=str(folder), font_paths=[], ignore_system_fonts=True)  # typst brings its own fonts
        return compiler.compile(format=form, ppi=ppi) if form != "pdf" else compiler.compile(format="pdf", timestamp=0)

def text(data: dict) -> str: return json.dumps({"versions": versions(), "numbers": data}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=PDF)
    p.add_argument("--pages", type=Path, help="also write a PNG a page into this folder")
    a = p.parse_args()
    import measured
    from ctseg.files import atomic_path
    data = measured.collect()
    pdf = typeset(data, measured.RESULTS)
    for path, content in [(a.out, pdf), (NUMBERS if a.out == PDF else a.out.with_suffix(".json"), text(data).encode())]:
        with atomic_path(path) as tmp: tmp.write_bytes(content)
    print(f"{a.out}: {len(pdf)/1024:.0f} kB, {pdf.count(b'/Type /Page') - pdf.count(b'/Type /Pages')} pages" if b"/Type /Page" in pdf else f"{a.out}: {len(pdf)/1024:.0f} kB")
    if a.pages:
        a.pages.mkdir(parents=True, exist_ok=True)
        pages = typeset(data, measured.RESULTS, "png")
        for i, png in enumerate(pages if isinstance(pages, list) else [pages], 1): (a.pages/f"page-{i:02}.png").write_bytes(png)


if __name__ == "__main__": main()
