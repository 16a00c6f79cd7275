"""Which scans lie at a path that somebody typed: volume files, DICOM CT series, folders of either."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.errors import PreconditionError, UsageError
from ctseg.scans import volume_files
from ctseg.scans.cases import ImageSource
from ctseg.scans.layouts import gathering

if TYPE_CHECKING:
    from ctseg.scans.dicom_files import SeriesInfo


def find_scans(path: Path, *, option: str = "--input") -> dict[str, ImageSource]:
    """Name -> source of every scan at `path`, which was given with `option`. PreconditionError NO_DATA when there is none.

    A detached header is listed too, so that its reader refuses it by name; a segmentation of 3D Slicer beside its scan is not.
    """
    if path.is_file():
        return {volume_files.stem_of(path, detached=True) or path.stem: gathering.image_source(path)}
    if not path.is_dir():
        raise PreconditionError("NO_DATA", f"'{path}' after {option} does not exist", "check the path", file=path.name)
    files: dict[str, ImageSource] = {}
    for file in sorted(path.iterdir()):
        stem = volume_files.stem_of(file, detached=True)
        if stem is None or gathering.hidden(file.name) or file.name.casefold().endswith(volume_files.SEGMENTATION):
            continue
        if stem in files:
            raise UsageError("BAD_OPTION", f"{files[stem].path.name} and {file.name} are both called '{stem}'", "rename one of them", file=path.name)
        files[stem] = gathering.image_source(file)
    series = _series_below(path)
    if both := sorted(set(files) & set(series)):
        raise UsageError("BAD_OPTION", f"a file and a DICOM series are both called '{both[0]}', and so would be their masks", "rename one of them", file=path.name)
    scans = files | series
    if not scans:
        raise PreconditionError("NO_DATA", "there is neither a NIfTI, NRRD or MetaImage file nor a DICOM CT series", "give a scan, a folder of scans, or a folder with a DICOM series", file=path.name)
    return scans


def _series_below(path: Path) -> dict[str, ImageSource]:
    """Every CT series below a folder, named after the folder in it that holds the series; where that holds several, numbered.

    Series of a few slices (scouts, dose reports as images) are passed over beside one that is a volume.
    """
    from ctseg.scans import dicom_series
    from ctseg.scans.dicom_files import SMALLEST_SLICES

    by_name: dict[str, list[SeriesInfo]] = {}
    for series in dicom_series.find_series(path):
        if series.modality == "CT":
            inside = series.folder.resolve().relative_to(path.resolve()).parts
            by_name.setdefault(inside[0] if inside else path.resolve().name, []).append(series)
    for name, found in by_name.items():
        by_name[name] = [series for series in found if series.n_slices >= SMALLEST_SLICES] or found
    return {name if len(found) == 1 else f"{name}_{number}": ImageSource("dicom", series.folder, series.uid)
            for name, found in by_name.items() for number, series in enumerate(found, start=1)}
