"""Masks in any form that this project reads, one structure at a time.

A label map (NIfTI; names from labels.json beside it, or from the file itself), a folder with one NIfTI per structure (as TotalSegmentator writes it), a
DICOM SEG or an RTSTRUCT. The DICOM ones lie on a scan's slices, so they need the scan.
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
    if gathering.volume_stem(path) is not None:
        return _label_map(path)
    return _dicom(path, scan, source)


def _folder(path: Path) -> Masks:
    files = gathering.volumes(path / "segmentations") if (path / "segmentations").is_dir() else gathering.volumes(path)
    if not files:
        raise PreconditionError("NO_DATA", "the folder holds no NIfTI masks", "give a label map, a folder with one mask per structure, a DICOM SEG or an RTSTRUCT", file=path.name)

    def read(name: str) -> Volume:
        volume, _ = nifti.read_integers(files[name])
        return Volume(volume.array > 0, volume.affine)

    return Masks(tuple(files), read)


def _label_map(path: Path) -> Masks:
    volume, _ = nifti.read_integers(path)
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
    image, folder, uid = scan, source.path if source is not None and source.format == "dicom" else None, source.series_uid if source is not None else None
    if modality == "SEG":
        names = tuple(dicom_seg.list_segments(path).values())
        masks, _ = dicom_seg.read_segments(path, image, folder, series_uid=uid)
    elif modality == "RTSTRUCT":
        names = tuple(rtstruct.list_structures(path).values())
        masks, _ = rtstruct.read_structures(path, image, folder, series_uid=uid)
    else:
        raise PreconditionError("NO_DATA", f"its modality is {modality or 'not told'}", "give a NIfTI label map, a folder of masks, a DICOM SEG or an RTSTRUCT", file=path.name)
    nothing = np.zeros(image.array.shape, dtype=bool)
    return Masks(names, lambda name: Volume(masks.get(name, nothing), image.affine))
