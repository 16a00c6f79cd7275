"""One table of the names that people give to the same structure, in whatever spelling.

`Kidney_L`, `LeftKidney` and `kidney_left` differ only in spelling; `Bladder`, `BLADDER` and `urinary_bladder`
are one organ. Used where names were typed by hand: contours of a planning system, and --structures. The first
name of a row is the one after TotalSegmentator or TG-263 (the nomenclature of AAPM Task Group 263, 2018).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from ctseg.laterality import spelling

SYNONYMS = """
urinary bladder, bladder, blase, harnblase
rectum, rektum
prostate, prostata
seminal vesicles, seminal ves, seminal vesicle
penile bulb, penis bulb
femur head, femoral head, fem head, femoral hd, caput femoris, hueftkopf, hüftkopf
hip, hip bone, os coxae
femur, femoral bone
spinal cord, cord, myelon
brainstem, brain stem, hirnstamm
parotid gland, parotid, glnd parotid, parotis
submandibular gland, submandibular, submand, glnd submand, smg
mandible, bone mandible, mandibula
esophagus, oesophagus, oesoph, esoph
optic nerve, optic nrv, optic n
eye, eyeball, globe
gallbladder, gall bladder
inferior vena cava, ivc, postcava, v venacava i
adrenal gland, adrenal, glnd adrenal
liver, leber
kidney, niere
spleen, milz
lung, lunge
heart, herz
stomach, magen
"""
_FIRST = {
    name.strip(): row.split(",")[0] for row in SYNONYMS.replace(" ", "").split() for name in row.split(",")
}


def key_of(name: str) -> tuple[str, str | None]:
    """(the organ, its side or None): equal for two names of one structure."""
    joined, side = spelling(name)
    return _FIRST.get(joined, joined), side


def can_name(text: str) -> bool:
    """Whether a text can name a structure: there is something to see, and no control character, which tables,
    terminals and DICOM files would obey.
    """
    return bool(text.strip()) and all(unicodedata.category(letter) != "Cc" for letter in text)


def find(wanted: str, available: Iterable[str]) -> str | None:
    """The one of the available names that means the same; itself when it is among them, None when none or
    several do.
    """
    names = list(available)
    if wanted in names:
        return wanted
    same = [name for name in names if key_of(name) == key_of(wanted)]
    return same[0] if len(same) == 1 else None
