"""The file map of docs/architecture.md: one line per file, which is the first sentence of its docstring.

python benchmarks/file_map.py            write it into docs/architecture.md
"""

from __future__ import annotations

import ast
import re
import textwrap
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- file map -->", "<!-- end of file map -->"


def files() -> list[Path]:
    """Every Python file of the product, scripts first, then room by room."""
    rooms = [*(ROOT / "models").rglob("*.py"), *(ROOT / "ctseg").rglob("*.py")]
    return [*sorted(ROOT.glob("*.py")), *sorted(rooms, key=lambda file: (file.parent, file.name))]


def first_sentence(file: Path) -> str:
    """What a file is for: its docstring up to the first full stop, on one line; empty where there is none."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z])|\.$", paragraph)[0].rstrip(".:")


def file_map() -> str:
    """The map as Markdown: a heading per folder, a line per file.

    Folders without a word of their own have no file.
    """
    lines = []
    for folder, group in groupby(files(), key=lambda file: file.parent):
        own = [file for file in group if file.read_text(encoding="utf-8").strip()]
        about = next((first_sentence(file) for file in own if file.name == "__init__.py"), "")
        title = f"{folder.relative_to(ROOT).as_posix()}/" if folder != ROOT else "scripts"
        lines += [*textwrap.wrap(f"**{title}** {about}", 120), ""]
        for file in own:
            if file.name != "__init__.py":
                lines += textwrap.wrap(
                    f"- `{file.name}`: {first_sentence(file)}", 120, subsequent_indent="  "
                )
        lines.append("")
    return "\n".join(lines)


def with_map(page: str) -> str:
    """The page with the map between its two marks made new."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{file_map()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(with_map(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
