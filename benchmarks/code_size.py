"""How large the code is, room by room, against the limits that docs/architecture.md states.

    python benchmarks/code_size.py            the whole, and every limit that is broken
    python benchmarks/code_size.py ctseg/scans    one room, with its longest functions

Tokens are those of Python's own tokenizer without comments, docstrings and layout, so neither wrapping nor
explaining changes them. Tests and benchmarks are not counted. A function's length is its lines without its
docstring.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
LIMITS = {
    "tokens": 245_000,
    "line width": 110,
    "function lines": 60,
    "function lines, 90th percentile": 30,
    "functions with more than 8 parameters": 3,
    "lines of a file": 450,
    "share of private functions": 0.30,
    "share of a room": 0.25,
    "files in a folder": 15,
}


class Function(NamedTuple):
    """A function where it stands: lines without its docstring, parameters without self."""

    place: str
    name: str
    lines: int
    parameters: int


def sources(below: str = ".") -> list[Path]:
    """Every Python file that counts: scripts, models/, ctseg/."""
    files = [*ROOT.glob("*.py"), *(ROOT / "models").rglob("*.py"), *(ROOT / "ctseg").rglob("*.py")]
    return sorted(file for file in files if file.is_relative_to(ROOT / below))


def docstring_lines(node: ast.AST) -> range:
    """The lines of a node's docstring, an empty range where it has none."""
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return range(0)
    first = node.body[0] if node.body else None
    if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
        return range(0)
    return (
        range(first.lineno, (first.end_lineno or first.lineno) + 1)
        if isinstance(first.value.value, str)
        else range(0)
    )


def count_tokens(text: str) -> int:
    """Tokens of a file without comments, docstrings and layout."""
    documented = {lines.start for node in ast.walk(ast.parse(text)) if (lines := docstring_lines(node))}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(
        token.type not in LAYOUT and not (token.type == tokenize.STRING and token.start[0] in documented)
        for token in tokens
    )


def functions(file: Path) -> list[Function]:
    """All functions and methods of a file."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1 - len(docstring_lines(node))
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            parameters = sum(argument.arg not in ("self", "cls") for argument in arguments)
            found.append(Function(f"{file.relative_to(ROOT)}:{node.lineno}", node.name, lines, parameters))
    return found


def room(file: Path) -> str:
    """ "ctseg/scans" for everything below it; "ctseg" and "scripts" for what lies in no room."""
    parts = file.relative_to(ROOT).parts
    return "scripts" if len(parts) == 1 else "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def main() -> int:
    """Print the sizes; 1 when a limit is broken."""
    below = sys.argv[1] if len(sys.argv) > 1 else "."
    files = sources(below)
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    tokens, lines = Counter[str](), Counter[str]()
    for file, text in texts.items():
        tokens[room(file)] += count_tokens(text)
        lines[room(file)] += text.count("\n")
    every = sorted((function for file in files for function in functions(file)), key=lambda one: -one.lines)
    private = [one for one in every if one.name.startswith("_") and not one.name.startswith("__")]
    folders = Counter(file.parent for file in files)
    measured = {
        "tokens": tokens.total(),
        "line width": max(len(line) for text in texts.values() for line in text.splitlines()),
        "function lines": every[0].lines,
        "function lines, 90th percentile": every[len(every) // 10].lines,
        "functions with more than 8 parameters": sum(one.parameters > 8 for one in every),
        "lines of a file": max(text.count("\n") for text in texts.values()),
        "share of private functions": round(len(private) / len(every), 3),
        "share of a room": round(max(lines.values()) / lines.total(), 3),
        "files in a folder": max(folders.values()),
    }
    print(f"{len(files)} files, {lines.total()} lines, {len(every)} functions")
    for name, count in tokens.most_common():
        print(f"{count:8d} tokens {lines[name]:7d} lines  {name}")
    broken = 0
    for name, value in measured.items():
        over = value > LIMITS[name] and (below == "." or name not in ("tokens", "share of a room"))
        broken += over
        print(f"{name}: {value} (at most {LIMITS[name]}){'  BROKEN' if over else ''}")
    if below != ".":
        for file, text in texts.items():
            wide = sum(len(line) > LIMITS["line width"] for line in text.splitlines())
            print(
                f"{count_tokens(text):7d} tokens {text.count(chr(10)):5d} lines {wide:3d} wide  "
                f"{file.relative_to(ROOT)}"
            )
        for one in every[:25]:
            print(f"{one.lines:5d} lines, {one.parameters} parameters  {one.place} {one.name}")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
