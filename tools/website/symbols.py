"""The names of the package, read from its text.

Nothing is imported, so a heading can document no other object than its own: the signature, the comments
beside the parameters, the docstring and the line all come from the definition itself.
"""
import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)


@dataclass
class Symbol:
    "A name: where it is defined, what a caller has to know of its code, and what its docstring says."
    name: str  # within its module: `Run`, `Run.open`
    line: int  # of `def`, `class` or the assignment
    kind: str  # "class", "function" or "value"
    header: str  # the signature as it is written; of a class also its fields and constructor
    doc: str  # the docstring; of a value the comment beside or above it
    members: list["Symbol"] = field(default_factory=list)  # public methods of a class, in source order
    anchor: str = ""  # the id of its place on the page

    @property
    def summary(self) -> str:
        "The first sentence of its docstring, on one line."
        paragraph = re.split(r"\n\s*\n", self.doc.strip())[0]
        text = " ".join(paragraph.split())
        end = re.search(r"(?<=[\w`)\]'\"])\.(?=\s+[A-Z`(])", text)
        return text[:end.start() + 1] if end else text


@dataclass
class Module:
    "A module of the package: its definitions in source order, and what it offers from elsewhere."
    name: str  # `ctseg.core.errors`
    path: str  # `ctseg/core/errors.py`
    doc: str
    symbols: dict[str, Symbol]  # every definition at the top level and every public method, by name
    offered: list[str]  # `__all__`, or the public definitions
    imported: dict[str, tuple[str, str]]  # name -> (module, name there)

    @property
    def public(self) -> list[Symbol]:
        "Its own public names, in source order."
        return [s for s in self.symbols.values() if s.name in self.offered]


def patched_class(node: ast.AST) -> str | None:
    "`Run` for a function under `@patch_to(Run)`, which puts it into the class."
    for decorator in getattr(node, "decorator_list", []):
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "patch_to":
            return ast.unparse(decorator.args[0])
    return None


def qualified(node: ast.AST) -> str:
    "The name of a definition at the top level: `read`, or `Run.open` under `@patch_to(Run)`."
    owner = patched_class(node)
    return f"{owner}.{node.name}" if owner else node.name


def is_public(name: str) -> bool:
    "No part of the name starts with an underscore."
    return not any(part.startswith("_") for part in name.split("."))


def own_value(node: ast.AST) -> list[str]:
    "The names that a statement assigns at its own level."
    if not isinstance(node, (ast.Assign, ast.AnnAssign)):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [x for t in targets for x in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [x.id for x in flat if isinstance(x, ast.Name)]


def dedented(lines: list[str]) -> str:
    "The lines without their common indentation."
    used = [line for line in lines if line.strip()]
    cut = min((len(line) - len(line.lstrip()) for line in used), default=0)
    return "\n".join(line[cut:].rstrip() for line in lines).rstrip()


def signature(node: ast.AST, lines: list[str]) -> str:
    "A definition up to its body, as it is written: with decorators and the comments beside parameters."
    decorators = [d for d in node.decorator_list if not ast.unparse(d).startswith("patch_to")]
    above = [line for d in decorators for line in lines[d.lineno - 1:d.end_lineno]]
    first = node.body[0]
    if first.lineno == node.lineno or first.lineno == header_end(node, lines):
        code = lines[node.lineno - 1:first.lineno]
        code[-1] = code[-1].encode()[:first.col_offset].decode()
    else:
        code = lines[node.lineno - 1:header_end(node, lines)]
    return dedented([*above, *code])


def header_end(node: ast.AST, lines: list[str]) -> int:
    "The number of the line on which a definition's header ends with a colon."
    for number in range(node.lineno, node.body[0].lineno):
        code = re.sub(r"\s+#.*$", "", lines[number - 1])
        if code.rstrip().endswith(":") and parses("\n".join([*lines[node.lineno - 1:number - 1], code])):
            return number
    return node.body[0].lineno


def parses(header: str) -> bool:
    "Whether the text is a whole header: with `pass` for a body it is Python."
    try:
        ast.parse(dedented(header.splitlines()) + "\n    pass")
    except SyntaxError:
        return False
    return True


def class_header(node: ast.ClassDef, lines: list[str]) -> str:
    "The `class` line, the public fields and the constructor's signature."
    parts = [signature(node, lines)]
    for child in node.body:
        if is_public_field(child):
            parts.append(indented(dedented(lines[child.lineno - 1:child.end_lineno])))
        elif isinstance(child, FUNCTIONS) and child.name == "__init__":
            parts.append(indented(signature(child, lines)))
    return "\n".join(parts)


def is_public_field(node: ast.AST) -> bool:
    "A field with a type, as in a dataclass, whose name is public."
    return isinstance(node, ast.AnnAssign) and all(is_public(name) for name in own_value(node))


def indented(text: str) -> str:
    "The text four columns further in."
    return "\n".join(f"    {line}" if line else line for line in text.splitlines())


def docstring(node: ast.AST) -> str:
    "The docstring, or an empty text. A class without one answers with that of its constructor."
    text = ast.get_docstring(node) or ""
    if text or not isinstance(node, ast.ClassDef):
        return text
    makers = [x for x in node.body if isinstance(x, FUNCTIONS) and x.name == "__init__"]
    return ast.get_docstring(makers[0]) or "" if makers else ""


def defined(node: ast.AST, lines: list[str], owner: str = "") -> Symbol:
    "The symbol of a function or class."
    name = f"{owner}.{node.name}" if owner else qualified(node)
    if not isinstance(node, ast.ClassDef):
        return Symbol(name, node.lineno, "function", signature(node, lines), docstring(node))
    methods = [x for x in node.body if isinstance(x, FUNCTIONS) and is_public(x.name)]
    # of overloads, or a property and its setter, the last one stays
    members = {m.name: defined(m, lines, owner=name) for m in methods}
    header = class_header(node, lines)
    return Symbol(name, node.lineno, "class", header, docstring(node), list(members.values()))


def values(node: ast.AST, lines: list[str]) -> list[Symbol]:
    "The symbols of an assignment. The comment at its end or above it serves as docstring."
    text = dedented(lines[node.lineno - 1:node.end_lineno])
    beside = re.search(r"\s#\s*(.+)$", lines[node.end_lineno - 1])
    above = lines[node.lineno - 2].strip() if node.lineno > 1 else ""
    comment = beside[1] if beside else above.lstrip("# ") if re.match(r"#\s(?!%%)", above) else ""
    return [Symbol(name, node.lineno, "value", text, comment) for name in own_value(node)]


def read_module(path: Path, root: Path) -> Module:
    "Read one file of the package. `root` is the folder that holds the package."
    relative = path.relative_to(root)
    parts = relative.with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    symbols = {}
    for node in tree.body:
        found = [defined(node, lines)] if isinstance(node, DEFINITIONS) else values(node, lines)
        for symbol in found:
            symbols[symbol.name] = symbol
            symbols.update({member.name: member for member in symbol.members})
    set_anchors(symbols.values())
    offered = next((ast.literal_eval(s.value) for s in tree.body if own_value(s) == ["__all__"]), None)
    if offered is None:
        offered = [n for n, s in symbols.items() if s.kind != "value" and is_public(n) and "." not in n]
    doc = ast.get_docstring(tree) or ""
    return Module(name, relative.as_posix(), doc, symbols, offered, imports(tree, parts[:-1]))


def set_anchors(symbols: Iterable[Symbol]) -> None:
    "Give each symbol an anchor of its own, in small letters; `unimatch` after `UniMatch` gets a number."
    taken = {}
    for symbol in symbols:
        anchor = symbol.name.lower()
        taken[anchor] = taken.get(anchor, 0) + 1
        symbol.anchor = anchor if taken[anchor] == 1 else f"{anchor}-{taken[anchor]}"


def imports(tree: ast.Module, package: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """What a module takes from others of its own package: name -> (module, name there).

    Names that are loaded when they are first used stand under `if TYPE_CHECKING:`."""
    out, nodes = {}, list(tree.body)
    for node in nodes:
        if isinstance(node, ast.If):
            nodes += node.body
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[:len(package) - node.level + 1] if node.level else ()
        module = ".".join([*base, *([node.module] if node.module else [])])
        out.update({alias.asname or alias.name: (module, alias.name) for alias in node.names})
    return out


def read_package(folder: Path) -> dict[str, Module]:
    "Every public module of the package in `folder`, by name."
    files = sorted(p for p in folder.rglob("*.py") if p.name == "__init__.py" or not p.name.startswith("_"))
    modules = [read_module(p, folder.parent) for p in files]
    return {m.name: m for m in modules}
