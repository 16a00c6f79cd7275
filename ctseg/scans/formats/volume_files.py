"""Files that hold one volume, whatever their format: NIfTI, NRRD, MetaImage. The suffix decides who reads
them.

What the file really is decides the reader of that suffix, which refuses everything else by name. All readers
raise CaseError and return (Volume, findings); both name the file as it was given.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ctseg import structure_names
from ctseg.errors import Findings
from ctseg.geometry.volume import Volume
from ctseg.scans.formats import metaimage, nifti, nrrd
from ctseg.scans.formats.regular_files import at_file, located, refuse
from ctseg.scans.formats.stored_values import Stored, image_of, integers_of

# Formats of an ImageSource whose path is one file.
FORMATS: dict[str, Callable[[Path], Stored]] = {
    "nifti": nifti.read,
    "nrrd": nrrd.read,
    "metaimage": metaimage.read,
}
_BY_SUFFIX = {".nii.gz": "nifti", ".nii": "nifti", ".seg.nrrd": "nrrd", ".nrrd": "nrrd", ".mha": "metaimage"}
SUFFIXES = tuple(_BY_SUFFIX)
_DETACHED = {".nhdr": "nrrd", ".mhd": "metaimage"}  # known, so that they are refused by name, not passed over
SEGMENTATION = ".seg.nrrd"
_NUMBER_ONLY = r"(segment|label|region|roi|class|structure|mask|other)?[\s_-]*\d*"


def stem_of(path: Path, *, detached: bool = False) -> str | None:
    """The file name without a volume's suffix (any case), None without one. detached: also `.nhdr`,
    `.mhd`."""
    name = path.name.casefold()
    suffixes = (*SUFFIXES, *(_DETACHED if detached else ()))
    suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
    return None if suffix is None else path.name[: -len(suffix)]


def format_of(path: Path) -> str:
    """The format that the suffix says; "nifti" for any other suffix, whose reader then says what it is
    not."""
    name = path.name.casefold()
    return next((form for suffix, form in (_BY_SUFFIX | _DETACHED).items() if name.endswith(suffix)), "nifti")


def read_image(path: Path, *, check_hu: bool = True) -> tuple[Volume, Findings]:
    """The CT of a file: float32 HU, (D, H, W), not below -1024, and what was noticed.

    check_hu=False skips the plausibility of the intensities and the smallest size (for other images than CT).
    """
    with at_file(path):
        volume, findings = image_of(FORMATS[format_of(path)](path), check_hu=check_hu)
    return volume, located(findings, path)


def read_integers(path: Path, *, or_probabilities: bool = False) -> tuple[Volume, Findings]:
    """The integers of a label file as int32 (D, H, W), or, on request, the probabilities of one structure;
    see `stored_values.integers_of`."""
    with at_file(path):
        stored = FORMATS[format_of(path)](path)
        volume, findings = integers_of(stored, or_probabilities=or_probabilities)
    return volume, located(findings, path)


def describes_segments(path: Path) -> bool:
    """Whether an NRRD file names its own segments: these names count, whatever a table beside it says.

    CaseError where its header does not fit together.
    """
    return format_of(path) == "nrrd" and bool(nrrd.list_segments(path))


def read_names(path: Path) -> dict[int, str]:
    """Value -> name where the file itself names its label values; empty elsewhere."""
    readers = {"nifti": nifti.read_names, "nrrd": nrrd.read_names}
    with at_file(path):
        return readers.get(format_of(path), lambda path: {})(path)


def check_names(path: Path, table: Mapping[int, str]) -> None:
    """Refuse a label map whose own names contradict a table that stands elsewhere: CaseError
    ORGAN_MAP_MISMATCH.

    Spellings and synonyms (`structure_names`) are one name; "Segment_1" and the like name nothing, on either
    side.
    """
    for value, name in read_names(path).items():
        known = table.get(value, name)
        unnamed = any(re.fullmatch(_NUMBER_ONLY, text, re.IGNORECASE) for text in (name, known))
        if not unnamed and structure_names.key_of(name) != structure_names.key_of(known):
            cause = f"the file itself calls the value {value} '{name}', the table of names calls it '{known}'"
            fix = (
                "correct the table, or the names in the file (in the program that wrote it; NIfTI: nibabel, "
                "header.extensions.clear())"
            )
            raise refuse("ORGAN_MAP_MISMATCH", cause, fix, path)


def check_name(path: Path, name: str) -> None:
    """The same for a file that is named after its one structure, where the file itself names one too."""
    if len(own := read_names(path)) == 1:
        check_names(path, dict.fromkeys(own, name))
