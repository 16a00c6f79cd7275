"""Structure names as coded concepts (SNOMED CT, as DICOM PS3.16 uses it), so that viewers know what a segment
is."""

from typing import Any

from ctseg.laterality import side_of, without_side, words_of

SIDES = {"left": ("7771000", "SCT", "Left"), "right": ("24028007", "SCT", "Right")}
# Names that data sets use -> keyword of pydicom's table; other names are looked up as they are ("spinal_cord"
# -> SpinalCord).
_KEYWORDS = {
    "urinarybladder": "Bladder",
    "gallbladder": "Gallbladder",
    "brainstem": "BrainStem",
    "parotid": "ParotidGland",
    "submandibular": "SubmandibularGland",
}


def concept(name: str, number: int) -> tuple[Any, Any | None]:
    """(type of a segment, its side or None) as highdicom's CodedConcept; a private code where the table has
    no such name."""
    from highdicom.sr.coding import CodedConcept
    from pydicom.sr.codedict import codes

    side = side_of(name)
    words = without_side(name) if side else words_of(name)
    keyword = _KEYWORDS.get("".join(words), "".join(word.capitalize() for word in words))
    try:
        found = getattr(codes.SCT, keyword)
    except AttributeError:
        return CodedConcept(f"S{number}", "99CTSEG", name[:64]), None
    kind = CodedConcept(found.value, "SCT", found.meaning[:64])
    return kind, CodedConcept(*SIDES[side]) if side else None
