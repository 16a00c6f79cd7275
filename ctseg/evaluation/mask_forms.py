"""One side of a comparison of masks in any form: which cases a path holds, and what each of them names.

A case is a label map, a segmentation of 3D Slicer, a folder with one mask per structure, a DICOM SEG or an
RTSTRUCT. Everything here is told from names and headers, so that whatever does not fit together is refused
before anything is scored.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ctseg.datasets import listing, masks
from ctseg.datasets.case import ImageSource
from ctseg.datasets.find_scans import search
from ctseg.datasets.masks import Naming
from ctseg.errors import CaseError, PreconditionError, listed
from ctseg.evaluation.label_names import LabelNames, find_label_names
from ctseg.scans.dicom import dicom_files, mask_objects, rtstruct
from ctseg.scans.formats import nrrd, regular_files, volume_files

MAP, SEGMENTS, ORGANS, SEG, RTSTRUCT = "map", "segments", "organs", "SEG", "RTSTRUCT"
_OUR_ENDS = ("_seg", "_rtstruct")  # how infer.py names the DICOM files of a scan


class Side(NamedTuple):
    """The masks of one case. kind: MAP, SEGMENTS, ORGANS, SEG or RTSTRUCT. names: what it speaks about; a
    name here with no voxel is an empty mask. naming: of the ids of a MAP. file: how results and messages call
    it."""

    path: Path
    kind: str
    names: tuple[str, ...]
    file: str
    naming: Naming | None = None

    @property
    def is_dicom(self) -> bool:
        """Whether its masks lie on the slices of a scan."""
        return self.kind in (SEG, RTSTRUCT)


# ---- cases ------------------------------------------------------------------------------------------------


def volumes_in(folder: Path) -> dict[str, Path]:
    """Case id -> volume directly in a folder, detached headers too (their reader refuses them by name)."""
    found: dict[str, Path] = {}
    for path in listing.entries(folder):
        stem = volume_files.stem_of(path, detached=True)
        if stem is not None:
            _add(found, stem, path)
    return found


def _add(found: dict[str, Path], name: str, path: Path) -> None:
    """Note the masks of a case; PreconditionError DUPLICATE_ID where the case has some already."""
    case_id = unicodedata.normalize("NFC", name)  # file systems and archives decompose names
    if case_id in found:
        raise PreconditionError(
            "DUPLICATE_ID",
            f"{found[case_id].name} and {path.name} are the same case",
            "keep one of them",
            case=case_id,
            file=path.name,
        )
    found[case_id] = path


def is_folder_of_maps(path: Path) -> bool:
    """A folder with one label map per case, and none that brings names of its own."""
    files = volumes_in(path) if path.is_dir() else {}
    return bool(files) and not any(_describes_segments(file) for file in files.values())


def find_cases(path: Path) -> dict[str, Path]:
    """Case id -> its masks, of a folder with a file or a sub-folder for each case; where a case has several
    forms the label map counts.

    A sub-folder holds one mask per structure (or has them in `segmentations`), or one DICOM SEG or RTSTRUCT.
    Folders of scans are passed over.
    """
    others: dict[str, Path] = {}
    for entry in listing.entries(path):
        found = [] if volume_files.stem_of(entry, detached=True) else _masks_at(entry)
        if found:
            _add(others, case_of(entry), _only(found, entry, entry.name))
    return others | volumes_in(path)


def case_of(path: Path) -> str:
    """The case id that a file's name says."""
    stem = volume_files.stem_of(path, detached=True)
    if stem is not None or path.is_dir():
        return stem or path.name
    name = path.name[:-4] if path.name.casefold().endswith(".dcm") else path.name
    return next((name[: -len(end)] for end in _OUR_ENDS if name.endswith(end) and len(name) > len(end)), name)


def is_one_case(path: Path) -> bool:
    """A file, or a folder whose masks lie in `segmentations`."""
    inner = None if path.is_file() else listing.child(path, "segmentations")
    return path.is_file() or (inner is not None and inner.is_dir())


def one_case(path: Path) -> Path:
    """The masks of the one case at a path: a file, a folder with one mask per structure, or a folder with one
    DICOM file of masks."""
    found = _masks_at(path) if path.is_dir() else [path]
    if not found:
        raise PreconditionError("NO_DATA", "the folder holds no masks", f"give {masks.FORMS}", file=path.name)
    return _only(found, path)


def _only(found: list[Path], place: Path, case: str = "-") -> Path:
    if len(found) > 1:
        cause = f"it holds {len(found)} files of masks, {found[0].name} and {found[1].name}"
        fix = "keep, or give, the one that is meant"
        raise PreconditionError("MASKS_AMBIGUOUS", cause, fix, case=case, file=place.name)
    return found[0]


def _masks_at(place: Path) -> list[Path]:
    """[the folder] when it holds one mask per structure, else the DICOM files of masks in it, or at it."""
    if place.is_dir() and masks.organ_files(place):
        return [place]
    found = []
    for path in listing.entries(place) if place.is_dir() else [place]:
        try:
            if (
                path.is_file()
                and dicom_files.is_dicom(path)
                and dicom_files.modality_of(path) in (SEG, RTSTRUCT)
            ):
                found.append(path)
        except CaseError:
            found.append(path)  # opening it says what is wrong with it
    return found


# ---- names ------------------------------------------------------------------------------------------------


def open_side(path: Path, names: LabelNames | None, *, reference: bool = False) -> Side:
    """What one case's masks say about themselves, from headers. names: those of a label map's ids. reference:
    leave out what an RTSTRUCT lists without a contour, for nobody drew it.

    Raises PreconditionError NO_LABEL_NAMES for a label map whose ids nobody names.
    """
    if not path.is_dir():
        regular_files.require_regular(path)
    naming = None
    if path.is_dir():
        kind, held = ORGANS, list(masks.organ_files(path))
    elif volume_files.stem_of(path, detached=True) is None:
        kind = masks.dicom_mask_kind(path)
        held = list(mask_objects.list_names(path, kind).values())
        if kind == RTSTRUCT and reference:
            drawn = rtstruct.list_drawn(path)
            held = [name for name in held if name in drawn]
    elif _describes_segments(path):
        kind, held = SEGMENTS, list(nrrd.list_segments(path))
    else:
        naming = Naming.of(volume_files.read_names(path)) if names is None else names.naming
        volume_files.check_names(path, naming.names)
        kind, held = MAP, list(naming.values)
        if not held:
            cause = "its label ids have no names, neither in it nor in labels.json or dataset.json beside it"
            fix = (
                'give --labels names.json, for example {"1": "liver", "2": "spleen"}; for a folder with '
                "one mask per structure of one case, --one-case"
            )
            raise PreconditionError("NO_LABEL_NAMES", cause, fix, file=path.name)
    return Side(path, kind, tuple(held), path.name, naming)


def _describes_segments(path: Path) -> bool:
    try:
        return volume_files.describes_segments(path)
    except CaseError:
        return False  # reading it says what is wrong with it


def names_of(paths: Iterable[Path], given: Path | None) -> LabelNames | None:
    """The names of label maps: from --labels, else from labels.json or dataset.json beside the files or one
    folder above; None without any."""
    maps = (
        path for path in paths if path.is_file() and volume_files.stem_of(path, detached=True) is not None
    )
    return find_label_names(dict.fromkeys(path.parent for path in maps), given)


def shared_names(reference: Path, prediction: Path, given: Path | None) -> LabelNames | None:
    """The names of two folders of label maps that share their ids; None for any other comparison."""
    if not is_folder_of_maps(reference):
        return None
    if is_folder_of_maps(prediction) or (prediction.is_dir() and not find_cases(prediction)):
        return find_label_names((reference, prediction), given)
    return None


def find_scan(path: Path, case_id: str, *, only: bool) -> ImageSource:
    """The scan of a case at the path after --ct. only: there is one case, so one scan is its scan whatever
    its name."""
    found = {
        unicodedata.normalize("NFC", name): source for name, source in search(path, option="--ct")[0].items()
    }
    if only and len(found) == 1:
        return next(iter(found.values()))
    for name in (case_id, f"{case_id}_0000"):
        if name in found:
            return found[name]
    raise PreconditionError(
        "SCAN_MISSING",
        f"no scan after --ct is called {case_id} ({listed(sorted(found))})",
        "name the scans like the cases",
        case=case_id,
        file=path.name,
    )
