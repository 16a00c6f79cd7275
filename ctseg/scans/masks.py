"""Masks in any form that this project reads, one structure at a time.

A label map (NIfTI, NRRD, MetaImage; names from labels.json beside it, or from the file itself), a segmentation of 3D Slicer (.seg.nrrd), a folder with
one volume per structure (as TotalSegmentator writes it), a DICOM SEG or an RTSTRUCT. The DICOM ones lie on a scan's slices, so they need the scan.
Where a level is given, a volume may hold the probabilities of one structure instead (as infer.py --probabilities writes them): the mask is
where they reach the level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ctseg.errors import Finding, PreconditionError
from ctseg.geometry.boxes import Box, label_boxes, whole_box
from ctseg.geometry.volume import Volume, tight
from ctseg.scans.datasets import gathering, metadata
from ctseg.scans.datasets.case import ImageSource
from ctseg.scans.formats import nrrd, slice_gaps, volume_files
from ctseg.scans.formats.checks import refuse

MOST_STRUCTURES = 1024  # in one label map; an image has more values
FORMS = "a label map, a folder with one mask per structure, a DICOM SEG or an RTSTRUCT"


@dataclasses.dataclass(frozen=True)
class Masks:
    """Structures, each read when asked for, so that memory does not grow with their number.

    names: in their order. read: the mask of one, a Volume of bool. stored: the same as it is stored, where that is known: bool, or
    probabilities, float32 from 0 to 1. level: where these end. box: the mask without what is empty around it, where that is known without reading it all.
    numbers: the values of a label map. findings: what is noticed on reading; grows with what is read.
    """

    names: tuple[str, ...]
    read: Callable[[str], Volume]
    stored: Callable[[str], Volume] | None = None
    level: float | None = None
    box: Callable[[str], Volume | None] | None = None
    numbers: Mapping[str, int] | None = None
    findings: list[Finding] = dataclasses.field(default_factory=list)

    def tight(self, name: str) -> Volume | None:
        """The mask (bool) of a structure inside its box, None when it is empty."""
        return tight(self.read(name)) if self.box is None else self.box(name)

    def values(self, name: str) -> Volume:
        """Probabilities (float32) of a structure where the file holds some, else its mask (bool)."""
        return self.read(name) if self.stored is None else self.stored(name)


def open_masks(
    path: Path,
    scan: Volume | None = None,
    source: ImageSource | None = None,
    *,
    level: float | None = None,
    fill_gaps: bool = False,
) -> Masks:
    """The masks at `path`. scan, source: the CT they belong to, needed for DICOM. level: where probabilities become a mask; None refuses them.
    fill_gaps: interpolate between the slices of a DICOM SEG or RTSTRUCT of a thicker series.

    Raises PreconditionError for a path that holds none, and CaseError for a damaged file.
    """
    if path.is_dir():
        return _folder(path, level)
    if not path.is_file():
        raise PreconditionError("NO_DATA", f"'{path}' does not exist", "check the path", file=path.name)
    stem = volume_files.stem_of(path, detached=True)
    if stem is not None:
        return _segments(path) if _describes_segments(path) else _one_file(path, stem, level)
    return _dicom(path, scan, source, slice_gaps.FILL if fill_gaps else slice_gaps.KEEP)


def organ_files(folder: Path) -> dict[str, Path]:
    """Structure -> file of a folder with one mask per structure, in it or in its `segmentations`; empty when it holds none."""
    inner = gathering.child(folder, "segmentations")
    return gathering.volumes(inner if inner is not None and inner.is_dir() else folder)


def _read(path: Path, level: float | None, findings: list[Finding]) -> Volume:
    """Integers; with a level perhaps probabilities (float32). What is noticed is added to `findings`, once."""
    volume, noticed = volume_files.read_integers(path) if level is None else volume_files.read_mask(path)
    findings += [finding for finding in noticed if finding not in findings]
    return volume


def _read_organ(path: Path, name: str, level: float | None, findings: list[Finding]) -> Volume:
    """What a file of its own holds of one structure: its mask, the one value that is not 0; with a level perhaps its probabilities (float32)."""
    volume_files.check_name(path, name)
    volume = _read(path, level, findings)
    if volume.array.dtype.kind == "f":
        return volume
    mask = volume.array > 0
    if (volume.array < 0).any() or (mask.any() and (volume.array[mask] != volume.array.max()).any()):
        cause = f"the mask of '{name}' holds several values, from {volume.array.min()} to {volume.array.max()}: this looks like a label map or an image"
        raise refuse(
            "LABEL_VALUES",
            cause,
            "store 1 for the structure and 0 elsewhere; a label map is given as the file itself, not as its folder",
            path,
        )
    return Volume(mask, volume.affine)


def _folder(path: Path, level: float | None) -> Masks:
    files = organ_files(path)
    if not files:
        raise PreconditionError("NO_DATA", "the folder holds no masks", f"give {FORMS}", file=path.name)
    findings: list[Finding] = []
    return _with_level(
        tuple(files), lambda name: _read_organ(files[name], name, level, findings), level, findings
    )


def _describes_segments(path: Path) -> bool:
    """Whether an NRRD file names its own segments: these names count, whatever a table beside it says."""
    return volume_files.format_of(path) == "nrrd" and bool(nrrd.list_segments(path))


def _segments(path: Path) -> Masks:
    segments, read, findings = nrrd.read_segments(path)
    by_name = {segment.name: segment for segment in segments}
    return Masks(tuple(by_name), lambda name: read(by_name[name]), findings=findings)


def _with_level(
    names: tuple[str, ...], stored: Callable[[str], Volume], level: float | None, findings: list[Finding]
) -> Masks:
    def read(name: str) -> Volume:
        volume = stored(name)
        return Volume(volume.array >= level, volume.affine) if volume.array.dtype.kind == "f" else volume

    return Masks(names, read, stored, level, findings=findings)


def _one_file(path: Path, stem: str, level: float | None) -> Masks:
    """A label map; or the probabilities of one structure, named after the file."""
    findings: list[Finding] = []
    volume = _read(path, level, findings)
    if volume.array.dtype.kind == "f":
        return _with_level((stem,), lambda name: volume, level, findings)
    _refuse_image(volume.array, path)
    places = _places(volume.array)
    values = list(places)
    table = metadata.names_beside(path.parent)
    if table is not None:
        volume_files.check_names(path, table[0])
    named = (
        table[0]
        if table is not None
        else {value: name for value, name in volume_files.read_names(path).items() if value in values}
    )
    numbers = {name: value for value, name in named.items()} | {
        _unnamed(value): value for value in values if value not in named
    }

    def box(name: str) -> Volume | None:
        place = places.get(numbers[name])
        if place is None:
            return None
        part = volume.crop_to(place)
        return Volume(part.array == numbers[name], part.affine)

    return Masks(
        tuple(numbers),
        lambda name: Volume(volume.array == numbers[name], volume.affine),
        box=box,
        numbers=numbers,
        findings=findings,
    )


def _unnamed(value: int) -> str:
    return f"label {value}"


def named_like(masks: Masks, other: Masks) -> Masks:
    """The masks of a label map whose values nobody named, under the names that the same values have in another one; other masks as they are."""
    if (
        masks.numbers is None
        or other.numbers is None
        or any(name != _unnamed(value) for name, value in masks.numbers.items())
    ):
        return masks
    names = {value: name for name, value in other.numbers.items()}
    called = {names.get(value, name): name for name, value in masks.numbers.items()}
    box = masks.box
    return Masks(
        tuple(called),
        lambda name: masks.read(called[name]),
        box=None if box is None else lambda name: box(called[name]),
        numbers={name: masks.numbers[old] for name, old in called.items()},
        findings=masks.findings,
    )


def _refuse_image(array: np.ndarray, path: Path) -> None:
    """A scan that was given where masks belong: some of its values are negative, or there are very many."""
    low, count = int(array.min()), len(np.unique(array))
    if low < 0 or count > MOST_STRUCTURES:
        cause = f"it holds {'negative values' if low < 0 else f'{count} different values'}: this looks like an image, not a label map"
        raise PreconditionError("LABEL_VALUES", cause, f"give {FORMS}", file=path.name)


def _places(label: np.ndarray) -> dict[int, Box]:
    """Positive value of a label map -> its box, in the order of the values."""
    if label.max() > 65535:  # a table of all values below would be long
        return {int(value): whole_box(label.shape) for value in np.unique(label) if value > 0}
    return label_boxes(label)


def _dicom(path: Path, scan: Volume | None, source: ImageSource | None, gaps: str) -> Masks:
    from ctseg.scans.dicom import dicom_seg, rtstruct

    if scan is None:
        raise PreconditionError(
            "SCAN_MISSING",
            "a DICOM SEG or RTSTRUCT lies on the slices of a scan",
            "give the scan with --ct",
            file=path.name,
        )
    modality = dicom_mask_kind(path)
    list_names, read_masks = (
        (dicom_seg.list_segments, dicom_seg.read_segments)
        if modality == "SEG"
        else (rtstruct.list_structures, rtstruct.read_structures)
    )
    series = source if source is not None and source.format == "dicom" else None

    unchecked = (
        [series] if series is not None else []
    )  # that the masks belong to the series is checked with the first of them: it reads every slice's header

    findings: list[Finding] = []

    def read(name: str) -> Volume:
        first = unchecked[0] if unchecked else None
        masks, noticed = read_masks(
            path,
            scan,
            None if first is None else first.path,
            names=[name],
            series_uid=None if first is None else first.series_uid,
            gaps=gaps,
        )
        unchecked.clear()
        findings.extend(finding for finding in noticed if finding not in findings)
        return Volume(masks.get(name, np.zeros(scan.array.shape, dtype=bool)), scan.affine)

    return Masks(tuple(list_names(path).values()), read, findings=findings)


def dicom_mask_kind(path: Path) -> str:
    """ "SEG" or "RTSTRUCT"; PreconditionError NO_DATA for any other file."""
    from ctseg.scans.dicom import dicom_files

    modality = dicom_files.modality_of(path)
    if modality not in ("SEG", "RTSTRUCT"):
        raise PreconditionError(
            "NO_DATA",
            f"it holds no masks (its modality is {modality or 'not told'})",
            f"give {FORMS}",
            file=path.name,
        )
    return modality
