"""Write README.md from `nbs/index.ipynb`: `python tools/readme.py` (part of `make prepare`).

The front page is written once, as a notebook: the docs site shows it, and this file turns it into what
GitHub and PyPI show. Pictures become files
in `nbs/images`, named by the cell's `#| label:`; callouts become GitHub's alerts; links to notebooks and
pictures get the `nbs/` in front.
The same notebook gives the same bytes; `tests/tools/test_readme.py` fails when README.md is behind.
"""
import base64
import re
from pathlib import Path

from execnb.nbio import read_nb

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK, IMAGES = ROOT/"nbs"/"index.ipynb", Path("nbs/images")
CALLOUT = re.compile(r"^:{3,} *\{\.callout-(\w+)[^}]*\}\n(.*?)\n:{3,}[ \t]*$", re.M | re.S)


def text(x) -> str: return x if isinstance(x, str) else "".join(x)


def alert(m: re.Match) -> str:
    "A Quarto callout as a GitHub alert."
    return "\n".join([f"> [!{m[1].upper()}]", *(f"> {line}".rstrip() for line in m[2].strip().splitlines())])


def markdown(source: str) -> str:
    "A text cell; the title cell's `> description` is kept, its `- key: value` lines are for nbdev."
    if re.match(r"# \S", source):
        source = re.sub(r"^- [\w-]+: .*\n?", "", source, flags=re.M)
    source = re.sub(r"(\]\()(?!\w+:|#|/)((?:\.\./)?)", lambda m: m[1] if m[2] else f"{m[1]}nbs/", source)
    return CALLOUT.sub(alert, source).strip()


def code(cell, pictures: dict[str, bytes]):
    """A code cell: its source and what it showed, as its `#|` options ask. Its pictures are added to
    `pictures`."""
    options = dict(re.findall(r"^#\|[ \t]*([\w-]+):?[ \t]*(.*)$", cell.source, re.M))
    source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
    if "hide" in options or options.get("include") == "false" or "nbdev_export(" in source or not source:
        return
    if options.get("echo") != "false": yield f"```python\n{source}\n```"
    if options.get("output") == "false": return
    for out in cell.get("outputs", []):
        data = out.get("data", {})
        if "image/png" in data:
            name = (
                options["label"]
                + (f"-{len(pictures)}" if options["label"] + ".png" in pictures else "")
                + ".png"
            )
            pictures[name] = base64.b64decode(text(data["image/png"]))
            yield f"![{options.get('fig-alt', '').strip(chr(34))}]({IMAGES/name})"
        elif "text/markdown" in data:
            yield markdown(text(data["text/markdown"]))
        elif "text/plain" in data:
            yield f"```\n{text(data['text/plain']).rstrip()}\n```"
        elif out.get("name") == "stdout":
            yield f"```\n{text(out['text']).rstrip()}\n```"


def build(notebook: Path = NOTEBOOK) -> tuple[str, dict[str, bytes]]:
    "README.md and its pictures, name -> PNG."
    parts, pictures = ["<!-- Written by tools/readme.py from nbs/index.ipynb: edit there. -->"], {}
    for cell in read_nb(notebook).cells:
        parts += (
            [markdown(cell.source)]
            if cell.cell_type == "markdown"
            else list(code(cell, pictures)) if cell.cell_type == "code" else []
        )
    return "\n\n".join(p for p in parts if p) + "\n", pictures


def main():
    readme, pictures = build()
    for name, png in pictures.items():
        (ROOT/IMAGES).mkdir(exist_ok=True)
        if not (ROOT/IMAGES/name).exists() or (ROOT/IMAGES/name).read_bytes() != png:
            (ROOT/IMAGES/name).write_bytes(png)
    path = ROOT/"README.md"
    if not path.exists() or path.read_text(encoding="utf-8") != readme:
        path.write_text(readme, encoding="utf-8")
    print(f"README.md: {len(readme.splitlines())} lines, {len(pictures)} picture(s)")


if __name__ == "__main__": main()
