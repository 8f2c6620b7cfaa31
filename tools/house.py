"""How the package reads, in figures: `python tools/house.py` prints them, `tests/project/test_house.py`
holds them to the limits.

A figure points at a place to look; it replaces no reader. The limits are those of CONTRIBUTING.md.
"""
import ast
import builtins
import io
import json
import re
import statistics
import symtable
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 110
ONE_LINE = 80
LAYOUT = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

DENSEST = "the same in the densest module"
UNUSED = "names imported and not used"
SHARED = "public names that two modules define"

AT_MOST = {
    "syntax nodes a code line": 7.5,
    DENSEST: 7.5,
    f"lines over {WIDTH} columns": 0,
    "statements that share a line": 0,
    f"one-line compounds over {ONE_LINE} columns": 0,
    "lambdas bound to a name": 0,
    "private names taken by neighbours": 0,
    UNUSED: 0,
    SHARED: 0,
    "functions with more than 8 parameters": 0,
    "longest module, lines": 450,
    "most public names in a module": 25,
    "exported cell, median characters": 700,
    "exported cell, most characters": 1600,
    f"lines over {WIDTH} columns in notebooks": 0,
    "semicolons in notebooks": 0,
    "colours of the three states outside core.style": 0,
}
AT_LEAST = {
    "exported cells followed by a run cell, %": 70,
    "public names with a docstring, %": 98,
}


@dataclass
class Module:
    "A source file, parsed."
    name: str
    source: str
    tree: ast.Module = field(init=False)

    def __post_init__(self):
        self.tree = ast.parse(self.source)

    def code_lines(self) -> set[int]:
        "Numbers of the lines that hold code: neither empty, nor comment, nor docstring."
        lines = set()
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            if token.type not in LAYOUT:
                lines |= set(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        return lines

    def public(self) -> list[ast.AST]:
        "Public functions and classes, and the public methods of these."
        defined = (*FUNCTIONS, ast.ClassDef)
        top = [n for n in self.tree.body if isinstance(n, defined) and not n.name.startswith("_")]
        classes = [n for n in top if isinstance(n, ast.ClassDef)]
        methods = [
            m for c in classes for m in c.body if isinstance(m, FUNCTIONS) and not m.name.startswith("_")
        ]
        return top + methods


def modules(root: Path = ROOT) -> list[Module]:
    "Every module of the package but nbdev's index."
    paths = sorted((root/"ctseg").rglob("*.py"))
    return [
        Module(str(p.relative_to(root)), p.read_text(encoding="utf-8"))
        for p in paths
        if p.name != "_modidx.py"
    ]


def parameters(node: ast.FunctionDef) -> int:
    "How many parameters a function has, `self` and the like aside."
    named = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    bound = bool(node.args.args) and node.args.args[0].arg in ("self", "cls", "ctx")
    return len(named) - bound


def shared_lines(node: ast.AST) -> Iterator[int]:
    "Lines on which a second statement follows a first."
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if not isinstance(block, list):
            continue
        for first, second in zip(block, block[1:]):
            if first.end_lineno == second.lineno:
                yield second.lineno


def faults(module: Module) -> Iterator[tuple[str, int]]:
    "Each thing that STYLE asks not to do, with its line."
    rows = module.source.splitlines()
    blocks = (ast.If, ast.For, ast.While, ast.With, ast.Try)
    for line in sorted(module.code_lines()):
        if len(rows[line - 1]) > WIDTH:
            yield f"lines over {WIDTH} columns", line
    for node in ast.walk(module.tree):
        for line in shared_lines(node):
            yield "statements that share a line", line
        if (
            isinstance(node, blocks)
            and node.body[0].lineno == node.lineno
            and len(rows[node.lineno - 1]) > ONE_LINE
        ):
            yield f"one-line compounds over {ONE_LINE} columns", node.lineno
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            yield "lambdas bound to a name", node.lineno
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("ctseg")):
            for alias in node.names:
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    yield "private names taken by neighbours", node.lineno
        if isinstance(node, FUNCTIONS) and parameters(node) > 8 and "/cli" not in module.name:
            yield "functions with more than 8 parameters", node.lineno


def unused_imports(module: Module) -> Iterator[int]:
    "Lines of imports of a name that stands nowhere else, also in no text; `noqa` marks one that is wanted for its effect."
    imports = [node for node in ast.walk(module.tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    used = {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)}
    texts = (node.value for node in ast.walk(module.tree) if isinstance(node, ast.Constant))
    words = {word for text in texts if isinstance(text, str) for word in re.findall(r"\w+", text)}
    rows = module.source.splitlines()
    for node in imports:
        wanted = "noqa" in rows[node.lineno - 1]
        for alias in () if wanted else node.names:
            if (alias.asname or alias.name).split(".")[0] not in used | words:
                yield node.lineno


def global_names(source: str) -> tuple[set[str], set[str]]:
    "The global names that code binds, and those that it reads and does not bind, in its functions too."
    top = symtable.symtable(source, "code", "exec")
    tables = [top]
    for table in tables:
        tables += table.get_children()
    outer = top.get_symbols()
    inner = [symbol for table in tables[1:] for symbol in table.get_symbols() if symbol.is_global()]
    bound = {s.get_name() for s in outer if s.is_assigned() or s.is_imported() or s.is_namespace()}
    read = {s.get_name() for s in [*outer, *inner] if s.is_referenced()}
    return bound, read - bound


def undefined_names(module: Module) -> set[str]:
    "Names that a function reads and that neither it, nor the module, nor Python defines."
    _, read = global_names(module.source)
    return read - set(dir(builtins)) - {"__file__", "__name__", "__doc__"}


def exported_names(module: Module) -> int:
    "How many names the module offers in `__all__`."
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return len(ast.literal_eval(node.value))
    return 0


def names_of_two(every: list[Module]) -> Iterator[str]:
    "Public functions and classes of one name in two modules; a command may be called as what it carries out."
    homes: dict[str, list[str]] = {}
    for module in every:
        for node in [] if "/cli/" in module.name else module.tree.body:
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module.name)
    yield from (f"{name} ({', '.join(found)})" for name, found in homes.items() if len(found) > 1)


def code_cells(path: Path) -> list[str]:
    "The sources of a notebook's code cells; magics and shell lines, which are no Python, are blanked."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]
    return [re.sub(r"^\s*[%!].*", "", source, flags=re.M) for source in sources]


def notebooks(root: Path = ROOT) -> list[Path]:
    "Every notebook of the project."
    found = sorted((root/"nbs").rglob("*.ipynb"))
    return [p for p in found if not any(part.startswith((".", "_")) for part in p.relative_to(root).parts)]


def cell_faults(source: str, state_colours: set[str]) -> Iterator[str]:
    """What no code cell may hold, exported or not.

    Wide lines of code and of comments count; docstrings and directives (`#|`) do not. state_colours: in
    small letters.
    """
    code = Module("cell", source).code_lines()
    for number, line in enumerate(source.splitlines(), 1):
        directive = line.startswith("#|")
        comment = line.lstrip().startswith("#")
        if len(line) > WIDTH and not directive and (number in code or comment):
            yield f"lines over {WIDTH} columns in notebooks"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.OP and token.string == ";":
            yield "semicolons in notebooks"
    written = re.findall(r"#[0-9a-f]{6}\b", source.lower())
    if state_colours & set(written):
        yield "colours of the three states outside core.style"


def state_colours(root: Path = ROOT) -> set[str]:
    "The colours that `core.style` declares for present, absent and unknown, in small letters."
    tree = ast.parse((root/"ctseg"/"core"/"style.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "STATE_COLOURS":
            return {colour.lower() for colour in ast.literal_eval(node.value).values()}
    raise ValueError("core.style declares no STATE_COLOURS")


def kinds_of_cells(path: Path) -> Iterator[tuple[str, int]]:
    "`export` with its characters, or `run`, for each code cell of a notebook that says something."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        exported = re.search(r"^#\s*\|\s*export", source, re.M)
        if not exported:
            imports = (
                "#| hide" in source
                and re.search(r"^(import|from) ", source, re.M)
                and source.count("\n") < 14
            )
            if not imports:
                yield "run", 0
            continue
        body = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#|")]
        if body and all(re.match(r"\s*(import|from|try|except|\))", line) for line in body[:2]):
            continue
        yield "export", sum(map(len, body))


def cells(root: Path = ROOT) -> dict[str, float]:
    "Sizes of exported cells, and how many of them are followed by a run cell."
    sizes, followed = [], 0
    for path in notebooks(root):
        kinds = list(kinds_of_cells(path))
        for i, (kind, size) in enumerate(kinds):
            if kind == "export":
                sizes.append(size)
                followed += i + 1 < len(kinds) and kinds[i + 1][0] == "run"
    return {
        "exported cell, median characters": int(statistics.median(sizes)),
        "exported cell, most characters": max(sizes),
        "exported cells followed by a run cell, %": round(100*followed/len(sizes)),
    }


def measure(root: Path = ROOT) -> tuple[dict[str, float], dict[str, list[str]]]:
    "Every figure by its name, and where the counted faults are."
    every = modules(root)
    figures = dict.fromkeys(AT_MOST, 0)
    places = {name: [] for name in AT_MOST}
    nodes = lines = documented = public = 0
    density = {}
    for module in every:
        code = module.code_lines()
        inside = sum(getattr(n, "lineno", None) in code for n in ast.walk(module.tree))
        lines += len(code)
        nodes += inside
        density[module.name] = round(inside/max(len(code), 1), 2)
        names = module.public()
        public += len(names)
        documented += sum(ast.get_docstring(n) is not None for n in names)
        unused = ((UNUSED, line) for line in unused_imports(module))
        for fault, line in [*faults(module), *unused]:
            figures[fault] += 1
            places[fault].append(f"{module.name}:{line}")
    places[SHARED] = list(names_of_two(every))
    figures[SHARED] = len(places[SHARED])
    colours = state_colours(root)
    for path in notebooks(root):
        own = set() if path.name == "45_style.ipynb" else colours
        for fault in (fault for source in code_cells(path) for fault in cell_faults(source, own)):
            figures[fault] += 1
            places[fault].append(str(path.relative_to(root)))
    figures["syntax nodes a code line"] = round(nodes/lines, 2)
    figures[DENSEST] = max(density.values())
    places[DENSEST] = [f"{name} ({value})" for name, value in density.items() if missed(DENSEST, value)]
    figures["longest module, lines"] = max(len(m.source.splitlines()) for m in every)
    figures["most public names in a module"] = max(map(exported_names, every))
    figures["public names with a docstring, %"] = round(100*documented/public, 1)
    return figures | cells(root), places


def missed(name: str, value: float) -> bool:
    "Whether a figure is outside its limit."
    return value > AT_MOST[name] if name in AT_MOST else value < AT_LEAST[name]


def main():
    "Print the figures; exit status 1 where a limit is missed."
    figures, places = measure()
    for name, value in figures.items():
        limit = f"at most {AT_MOST[name]:g}" if name in AT_MOST else f"at least {AT_LEAST[name]:g}"
        where = ", ".join(places.get(name, [])[:3]) if missed(name, value) else ""
        print(f"{'MISSED' if missed(name, value) else 'ok':7}{name:44}{value:>8g}  {limit}  {where}")
    sys.exit(any(missed(name, value) for name, value in figures.items()))


if __name__ == "__main__":
    main()
