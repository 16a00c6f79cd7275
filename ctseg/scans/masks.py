"""Masks in any form that this project reads, one structure at a time.

A label map (NIfTI; names from labels.json beside it, or from the file itself), a folder with one NIfTI per structure (as TotalSegmentator writes it), a
DICOM SEG or an RTSTRUCT. The DICOM ones lie on a scan's slices, so they need the scan. Where a level is given, a NIfTI may hold the
probabilities of one structure instead (as infer.py --probabilities writes them): the mask is where they reach the level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ctseg.errors import PreconditionError
from ctseg.scans import nifti
from ctseg.scans.cases import ImageSource
from ctseg.scans.layouts import gathering, metadata
from ctseg.scans.volume import Volume


@dataclasses.dataclass(frozen=True)
class Masks:
    """Structures, each read when asked for, so that memory does not grow with their number.

    names: in their order. read: the mask of one, a Volume of bool. stored: the same as it is stored, where that is known: bool, or
    probabilities, float32 from 0 to 1. level: where these end.
    """

    names: tuple[str, ...]
    read: Callable[[str], Volume]
    stored: Callable[[str], Volume] | None = None
    level: float | None = None

    def values(self, name: str) -> Volume:
        """Probabilities (float32) of a structure where the file holds some, else its mask (bool)."""
        return self.read(name) if self.stored is None else self.stored(name)


def open_masks(path: Path, scan: Volume | None = None, source: ImageSource | None = None, *, level: float | None = None) -> Masks:
    """The masks at `path`. scan, source: the CT they belong to, needed for DICOM. level: where probabilities become a mask; None refuses them.

    Raises PreconditionError for a path that holds none, and CaseError for a damaged file.
    """
    if path.is_dir():
        return _folder(path, level)
    if not path.is_file():
        raise PreconditionError("NO_DATA", f"'{path}' does not exist", "check the path", file=path.name)
    stem = gathering.volume_stem(path)
    if stem is not None:
        return _one_file(path, stem, level)
    return _dicom(path, scan, source)


def _folder(path: Path, level: float | None) -> Masks:
    files = gathering.volumes(path / "segmentations") if (path / "segmentations").is_dir() else gathering.volumes(path)
    if not files:
        raise PreconditionError("NO_DATA", "the folder holds no NIfTI masks", "give a label map, a folder with one mask per structure, a DICOM SEG or an RTSTRUCT", file=path.name)

    def stored(name: str) -> Volume:
        volume, _ = nifti.read_integers(files[name]) if level is None else nifti.read_mask(files[name])
        return volume if volume.array.dtype.kind == "f" else Volume(volume.array > 0, volume.affine)

    return _with_level(tuple(files), stored, level)


def _with_level(names: tuple[str, ...], stored: Callable[[str], Volume], level: float | None) -> Masks:
    def read(name: str) -> Volume:
        volume = stored(name)
        return Volume(volume.array >= level, volume.affine) if volume.array.dtype.kind == "f" else volume

    return Masks(names, read, stored, level)


def _one_file(path: Path, stem: str, level: float | None) -> Masks:
    """A label map; or the probabilities of one structure, named after the file."""
    volume, _ = nifti.read_integers(path) if level is None else nifti.read_mask(path)
    if volume.array.dtype.kind == "f":
        return _with_level((stem,), lambda name: volume, level)
    values = [int(value) for value in np.unique(volume.array) if value > 0]
    table = metadata.names_beside(path.parent)
    named = table[0] if table is not None else {value: name for value, name in nifti.read_names(path).items() if value in values}
    numbers = {name: value for value, name in named.items()} | {f"label {value}": value for value in values if value not in named}
    return Masks(tuple(numbers), lambda name: Volume(volume.array == numbers[name], volume.affine))


def _dicom(path: Path, scan: Volume | None, source: ImageSource | None) -> Masks:
    from ctseg.scans import dicom_files, dicom_seg, rtstruct

    if scan is None:
        raise PreconditionError("SCAN_MISSING", "a DICOM SEG or RTSTRUCT lies on the slices of a scan", "give the scan with --ct", file=path.name)
    modality = dicom_files.modality_of(path)
    if modality not in ("SEG", "RTSTRUCT"):
        raise PreconditionError("NO_DATA", f"its modality is {modality or 'not told'}", "give a NIfTI label map, a folder of masks, a DICOM SEG or an RTSTRUCT", file=path.name)
    list_names, read_masks = (dicom_seg.list_segments, dicom_seg.read_segments) if modality == "SEG" else (rtstruct.list_structures, rtstruct.read_structures)
    series = source if source is not None and source.format == "dicom" else None

    def read(name: str) -> Volume:
        masks, _ = read_masks(path, scan, None if series is None else series.path, names=[name], series_uid=None if series is None else series.series_uid)
        return Volume(masks.get(name, np.zeros(scan.array.shape, dtype=bool)), scan.affine)

    return Masks(tuple(list_names(path).values()), read)
