"""The codes of messages and exits: one table, one page, and no code in the source that they lack."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from ctseg import errors

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import codes_page  # noqa: E402

SOURCES = [*ROOT.glob("*.py"), *(ROOT / "ctseg").rglob("*.py")]
CODE = re.compile(
    r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|DIVERGED|INTERNAL|LEAKAGE|LOCALIZER|LOCKED|NONFINITE|PADDING|PERMISSION"
)
TOLD = re.compile(r"(?:ERROR|WARN|NOTE) ([A-Z][A-Z0-9_]{3,})")
# words of file formats and of the system in the same letters
OTHERS = re.compile(
    r"CLOSED_?PLANAR(_XOR)?|MET_[A-Z_]+|HU_MOD|Z_EFF|STD_DEVIATION|KMP_BLOCKTIME|CTSEG_PARENT|ITK_[A-Z_]+"
)


def codes_in_use() -> set[str]:
    """Texts of the source that are a code, or begin a message with one."""
    found: set[str] = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value} if CODE.fullmatch(node.value) else set(TOLD.findall(node.value))
    return {code for code in found if not OTHERS.fullmatch(code)}


def test_every_code_stands_in_the_table_and_the_other_way_round():
    listed = [row["code"] for row in errors.code_table()]
    assert listed == sorted(set(listed))
    assert codes_in_use() - set(listed) == set(), "write a row into ctseg/codes.csv"
    assert set(listed) - codes_in_use() == set(), (
        "nothing uses them any more: delete their rows in ctseg/codes.csv"
    )
    for row in errors.code_table():
        assert row["meaning"].endswith(".") and row["remedy"].endswith("."), row


def test_every_error_ends_with_a_code_that_the_table_explains():
    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))

    used = {kind.exit_code for kind in below(errors.PipelineError) if kind.__module__ == errors.__name__}
    assert used == set(errors.EXIT_CODES) - {0, 130, 143}  # done; ended by a signal, see test_cli.py


def test_the_page_is_the_table():
    assert codes_page.PAGE.read_text(encoding="utf-8") == codes_page.page(), (
        "run python benchmarks/codes_page.py"
    )
