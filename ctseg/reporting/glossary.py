"""Every term that the report uses, in one line for people who do not know it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import tomllib


@dataclasses.dataclass(frozen=True)
class Term:
    """A term and what it means. anchor: the id of its line on the page."""

    name: str
    line: str

    @property
    def anchor(self) -> str:
        """Letters, digits and hyphens only."""
        return "term-" + re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


TABLE = tomllib.loads(
    Path(__file__).with_name("templates").joinpath("glossary.toml").read_text(encoding="utf-8")
)
GROUPS = [(title, [Term(name, line) for name, line in terms.items()]) for title, terms in TABLE.items()]
_BY_NAME = {term.name.lower(): term for _, terms in GROUPS for term in terms}


def find(name: str) -> Term:
    """The term of that name, in any case of letters. KeyError when it has no line."""
    return _BY_NAME[name.lower()]
