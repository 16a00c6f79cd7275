"""Left and right: which structures are mirror pairs. Names decide, in any of the spellings in use.

`kidney_left` / `left_kidney` / `LeftParotid` / `kidney_l` / `Parotid L`. Heart chambers are not mirror pairs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_HEART = re.compile(r"heart|atrium|ventricle|atrial", re.IGNORECASE)
_SIDES = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}


def words_of(name: str) -> list[str]:
    """The words of a structure's name in lower case: "kidney_left", "LeftKidney" and "Kidney L" all hold "kidney"."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word]


def side_of(name: str) -> str | None:
    """"left", "right", or None when the name has no side (or has both, or is a heart chamber)."""
    if _HEART.search(name):
        return None
    found = {_SIDES[word] for word in words_of(name) if word in _SIDES}
    return found.pop() if len(found) == 1 else None


def without_side(name: str) -> tuple[str, ...]:
    """The words of a name in lower case, left and right left out."""
    return tuple(word for word in words_of(name) if word not in _SIDES)


def mirror_pairs(structures: Sequence[str]) -> list[tuple[int, int]]:
    """Index pairs (left, right) of structures that are each other's mirror image."""
    lefts = {without_side(name): index for index, name in enumerate(structures) if side_of(name) == "left"}
    return [(lefts[without_side(name)], index) for index, name in enumerate(structures) if side_of(name) == "right" and without_side(name) in lefts]
