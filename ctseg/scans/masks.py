"""Masks in any form that this project reads, one structure at a time.

A label map (NIfTI, NRRD, MetaImage; names from labels.json beside it, or from the file itself), a segmentation of 3D Slicer (.seg.nrrd), a folder with
one volume per structure (as TotalSegmentator writes it), a DICOM SEG or an RTSTRUCT. The DICOM ones lie on a scan's slices, so they need the scan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ctseg.errors import PreconditionError
from ctseg.scans import nrrd, volume_files
from ctseg.scans.cases import ImageSource
from ctseg.scans.layouts import gathering, metadata
from ctseg.scans.volume import Volume

FORMS = "a label map, a folder with one mask per structure, a DICOM SEG or an RTSTRUCT"


@dataclasses.dataclass(frozen=True)
class Masks:
    """names: structures in their order. read: the mask of one, a Volume of bool; read when asked for, so that memory does not grow with their number."""

    names: tuple[str, ...]
    read: Callable[[str], Volume]


def open_masks(path: Path, scan: Volume | None = None, source: ImageSource | None = None) -> Masks:
    """The masks at `path`. scan, source: the CT they belong to, needed for DICOM.

    Raises PreconditionError for a path that holds none, and CaseError for a damaged file.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise PreconditionError("NO_DATA", f"'{path}' does not exist", "check the path", file=path.name)
    if volume_files.stem_of(path, detached=True) is not None:
        return _segments(path) if _describes_segments(path) else _label_map(path)
    return _dicom(path, scan, source)


def organ_files(folder: Path) -> dict[str, Path]:
    """Structure -> file of a folder with one mask per structure, in it or in its `segmentations`; empty when it holds none."""
    inner = gathering.child(folder, "segmentations")
    return gathering.volumes(inner if inner is not None and inner.is_dir() else folder)


def read_organ(path: Path) -> Volume:
    """The mask of one structure in a file of its own: whatever is not 0."""
    volume, _ = volume_files.read_integers(path)
    return Volume(volume.array > 0, volume.affine)


def _folder(path: Path) -> Masks:
    files = organ_files(path)
    if not files:
        raise PreconditionError("NO_DATA", "the folder holds no masks", f"give {FORMS}", file=path.name)
    return Masks(tuple(files), lambda name: read_organ(files[name]))


def _describes_segments(path: Path) -> bool:
    """Whether an NRRD file names its own segments, and no labels.json beside it names the values instead."""
    return volume_files.format_of(path) == "nrrd" and metadata.names_beside(path.parent) is None and bool(nrrd.list_segments(path))


def _segments(path: Path) -> Masks:
    segments, read, _ = nrrd.read_segments(path)
    by_name = {segment.name: segment for segment in segments}
    return Masks(tuple(by_name), lambda name: read(by_name[name]))


def _label_map(path: Path) -> Masks:
    volume, _ = volume_files.read_integers(path)
    values = [int(value) for value in np.unique(volume.array) if value > 0]
    table = metadata.names_beside(path.parent)
    named = table[0] if table is not None else {value: name for value, name in volume_files.read_names(path).items() if value in values}
    numbers = {name: value for value, name in named.items()} | {f"label {value}": value for value in values if value not in named}
    return Masks(tuple(numbers), lambda name: Volume(volume.array == numbers[name], volume.affine))


def _dicom(path: Path, scan: Volume | None, source: ImageSource | None) -> Masks:
    from ctseg.scans import dicom_seg, rtstruct

    if scan is None:
        raise PreconditionError("SCAN_MISSING", "a DICOM SEG or RTSTRUCT lies on the slices of a scan", "give the scan with --ct", file=path.name)
    modality = dicom_mask_kind(path)
    list_names, read_masks = (dicom_seg.list_segments, dicom_seg.read_segments) if modality == "SEG" else (rtstruct.list_structures, rtstruct.read_structures)
    series = source if source is not None and source.format == "dicom" else None

    unchecked = [series] if series is not None else []  # that the masks belong to the series is checked with the first of them: it reads every slice's header

    def read(name: str) -> Volume:
        first = unchecked[0] if unchecked else None
        masks, _ = read_masks(path, scan, None if first is None else first.path, names=[name], series_uid=None if first is None else first.series_uid)
        unchecked.clear()
        return Volume(masks.get(name, np.zeros(scan.array.shape, dtype=bool)), scan.affine)

    return Masks(tuple(list_names(path).values()), read)


def dicom_mask_kind(path: Path) -> str:
    """ "SEG" or "RTSTRUCT"; PreconditionError NO_DATA for any other file."""
    from ctseg.scans import dicom_files

    modality = dicom_files.modality_of(path)
    if modality not in ("SEG", "RTSTRUCT"):
        raise PreconditionError("NO_DATA", f"it holds no masks (its modality is {modality or 'not told'})", f"give {FORMS}", file=path.name)
    return modality
