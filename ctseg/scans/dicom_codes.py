"""Structure names as coded concepts (SNOMED CT, as DICOM PS3.16 uses it), so that viewers know what a segment is."""

from __future__ import annotations

import re
from typing import Any

SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}
# Names that data sets use -> keyword of pydicom's table; other names are looked up as they are ("spinal_cord" -> SpinalCord).
_KEYWORDS = {
    "urinarybladder": "Bladder", "gallbladder": "Gallbladder", "brainstem": "BrainStem", "parotid": "ParotidGland",
    "submandibular": "SubmandibularGland",
}


def words_of(name: str) -> list[str]:
    """The words of a structure's name in lower case: "kidney_left", "LeftKidney" and "Kidney L" all hold "kidney"."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+", name)]


def side_of(name: str) -> str | None:
    """ "left", "right" or None, from the words of a name."""
    found = {{"l": "left", "r": "right"}.get(word, word) for word in words_of(name)} & set(SIDES)
    return found.pop() if len(found) == 1 else None


def concept(name: str, number: int) -> tuple[Any, Any | None]:
    """(type of a segment, its side or None) as highdicom's CodedConcept; a private code where the table has no such name."""
    from highdicom.sr.coding import CodedConcept
    from pydicom.sr.codedict import codes

    side = side_of(name)
    words = [word for word in words_of(name) if word not in (*SIDES, "l", "r")]
    keyword = _KEYWORDS.get("".join(words), "".join(word.capitalize() for word in words))
    try:
        found = getattr(codes.SCT, keyword)
    except AttributeError:
        return CodedConcept(f"S{number}", "99CTSEG", name[:64]), None
    return CodedConcept(found.value, "SCT", found.meaning[:64]), CodedConcept(SIDES[side][0], "SCT", SIDES[side][1]) if side else None
