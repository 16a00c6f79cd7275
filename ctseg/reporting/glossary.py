"""Every term that the report uses, in one line for people who do not know it."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Term:
    """A term and what it means. anchor: the id of its line on the page."""

    name: str
    line: str

    @property
    def anchor(self) -> str:
        """Letters, digits and hyphens only."""
        return "term-" + re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def read_groups() -> list[tuple[str, list[Term]]]:
    """(title, terms) of each group in glossary.csv, in its order."""
    groups: dict[str, list[Term]] = {}
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            groups.setdefault(row["group"], []).append(Term(row["term"], row["line"]))
    return list(groups.items())


GROUPS = read_groups()
_BY_NAME = {term.name.lower(): term for _, terms in GROUPS for term in terms}


def find(name: str) -> Term:
    """The term of that name, in any case of letters. KeyError when it has no line."""
    return _BY_NAME[name.lower()]
