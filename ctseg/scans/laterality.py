"""Left and right: which structures are mirror pairs. Names decide, in any of the spellings in use.

`kidney_left` / `left_kidney` / `LeftParotid` / `kidney_l` / `Parotid L`. Heart chambers are not mirror pairs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_HEART = re.compile(r"heart|atrium|ventricle|atrial", re.IGNORECASE)


def _words(name: str) -> list[str]:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word]


def side_of(name: str) -> str | None:
    """"left", "right", or None when the name has no side (or has both, or is a heart chamber)."""
    if _HEART.search(name):
        return None
    words = set(_words(name))
    left, right = bool(words & {"left", "l", "lt"}), bool(words & {"right", "r", "rt"})
    if left == right:
        return None
    return "left" if left else "right"


def mirror_pairs(structures: Sequence[str]) -> list[tuple[int, int]]:
    """Index pairs (left, right) of structures that are each other's mirror image."""

    def stem(name: str) -> tuple[str, ...]:
        return tuple(w for w in _words(name) if w not in {"left", "l", "lt", "right", "r", "rt"})

    lefts = {stem(name): index for index, name in enumerate(structures) if side_of(name) == "left"}
    return [(lefts[stem(name)], index) for index, name in enumerate(structures) if side_of(name) == "right" and stem(name) in lefts]
