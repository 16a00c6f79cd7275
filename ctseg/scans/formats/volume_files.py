"""Files that hold one volume, whatever their format: NIfTI, NRRD, MetaImage. The suffix decides who reads them.

What the file really is decides the reader of that suffix, which refuses everything else by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ctseg import structure_names
from ctseg.errors import Finding
from ctseg.geometry.volume import Volume
from ctseg.scans.formats import metaimage, nifti, nrrd
from ctseg.scans.formats.checks import refuse

# Formats of an ImageSource whose path is one file.
FORMATS: dict[str, ModuleType] = {"nifti": nifti, "nrrd": nrrd, "metaimage": metaimage}
_BY_SUFFIX = {".nii.gz": "nifti", ".nii": "nifti", ".seg.nrrd": "nrrd", ".nrrd": "nrrd", ".mha": "metaimage"}
_DETACHED = {
    ".nhdr": "nrrd",
    ".mhd": "metaimage",
}  # known, so that they are refused by name and not passed over
SUFFIXES = tuple(_BY_SUFFIX)
SEGMENTATION = ".seg.nrrd"
_NUMBER_ONLY = r"(segment|label|region|roi|class|structure|mask|other)?[\s_-]*\d*"


def stem_of(path: Path, *, detached: bool = False) -> str | None:
    """The file name without the suffix of a volume (any case); None when it has none. detached: also `.nhdr` and `.mhd`."""
    name = path.name.casefold()
    suffix = next(
        (suffix for suffix in (*SUFFIXES, *(_DETACHED if detached else ())) if name.endswith(suffix)), None
    )
    return None if suffix is None else path.name[: -len(suffix)]


def format_of(path: Path) -> str:
    """The format that the suffix says; "nifti" for any other suffix, whose reader then says what the file is not."""
    name = path.name.casefold()
    return next((form for suffix, form in (_BY_SUFFIX | _DETACHED).items() if name.endswith(suffix)), "nifti")


def read_image(path: str | Path) -> tuple[Volume, list[Finding]]:
    """The CT of a file; see `nifti.read_image`."""
    volume, findings = FORMATS[format_of(Path(path))].read_image(path)
    return volume, findings


def read_integers(path: str | Path) -> tuple[Volume, list[Finding]]:
    """The integers of a label file; see `nifti.read_integers`."""
    volume, findings = FORMATS[format_of(Path(path))].read_integers(path)
    return volume, findings


def read_mask(path: str | Path) -> tuple[Volume, list[Finding]]:
    """Integers, or the probabilities of one structure; see `stored.mask_of`."""
    volume, findings = FORMATS[format_of(Path(path))].read_mask(path)
    return volume, findings


def read_names(path: str | Path) -> dict[int, str]:
    """Value -> name where the file itself names its label values; empty elsewhere."""
    form = format_of(Path(path))
    return nifti.read_names(path) if form == "nifti" else nrrd.read_names(path) if form == "nrrd" else {}


def check_names(path: str | Path, table: Mapping[int, str]) -> None:
    """Refuse a label map whose own names contradict a table that stands elsewhere: CaseError ORGAN_MAP_MISMATCH.

    Spellings and synonyms (`aliases`) are one name; "Segment_1" and the like name nothing, on either side.
    """
    for value, name in read_names(path).items():
        known = table.get(value, name)
        unnamed = any(re.fullmatch(_NUMBER_ONLY, text, re.IGNORECASE) for text in (name, known))
        if not unnamed and structure_names.key_of(name) != structure_names.key_of(known):
            cause = f"the file itself calls the value {value} '{name}', the table of names calls it '{known}'"
            fix = "correct the table, or the names in the file (in the program that wrote it; NIfTI: nibabel, header.extensions.clear())"
            raise refuse("ORGAN_MAP_MISMATCH", cause, fix, path)


def check_name(path: str | Path, name: str) -> None:
    """The same for a file that is named after its one structure, where the file itself names one too."""
    if len(own := read_names(path)) == 1:
        check_names(path, dict.fromkeys(own, name))
