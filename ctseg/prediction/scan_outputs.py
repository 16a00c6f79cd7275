"""What infer.py writes: masks in every form, probabilities, uncertainty, volumes and HU as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctseg import artifacts
from ctseg.errors import Finding
from ctseg.geometry.probabilities import Shares
from ctseg.geometry.volume import Grid, Volume, resample
from ctseg.scans.dicom import dicom_seg, rtstruct
from ctseg.scans.formats import nifti
from ctseg.tables import write_csv

if TYPE_CHECKING:
    from ctseg.scans.datasets.case import ImageSource

FORMATS = {
    "nifti": ".nii.gz",
    "organs": "",
    "seg": "_seg.dcm",
    "rtstruct": "_rtstruct.dcm",
}  # format -> end of the name; organs: a folder
FOLDERS = frozenset({"organs", "probabilities"})  # what is a folder with a file per structure
LONGEST = 200  # bytes of a file name without its ending; file systems allow 255
DICOM_FORMATS = frozenset({"seg", "rtstruct"})


def files_of(scan: str, formats: Sequence[str], *, probabilities: bool, uncertainty: bool) -> dict[str, str]:
    """What is written of a scan -> the name of its file, or of its folder for those in FOLDERS."""
    safe = artifacts.safe_name(scan)
    more = {"probabilities": "_probabilities"} if probabilities else {}
    more |= {"uncertainty": "_uncertainty.nii.gz"} if uncertainty else {}
    return {kind: safe + end for kind, end in ({kind: FORMATS[kind] for kind in formats} | more).items()}


def file_name(structure: str) -> str:
    """The structure's own name wherever it can be one of a file, in every script, so that masks are found again by it; else `artifacts.safe_name`."""
    plain = structure.isprintable() and not set(structure) & set('/\\:*?"<>|')
    return (
        structure
        if plain and structure[:1] not in ("", *".- ") and len(structure.encode()) <= LONGEST
        else artifacts.safe_name(structure)
    )


def write_mask(
    path: Path, kind: str, label: Volume, names: dict[int, str], source: ImageSource, *, algorithm: str
) -> list[Finding]:
    """Write a label map in one of FORMATS; the DICOM ones refer to the series it was predicted on. organs: one NIfTI per structure in the folder `path`.

    algorithm: what predicted it. Returns what is to be told.
    """
    if kind == "nifti":
        nifti.write_label(path, label, names=names)
    elif kind == "organs":
        for value, name in names.items():
            nifti.write_label(
                path / f"{file_name(name)}.nii.gz",
                Volume((label.array == value).astype(np.uint8), label.affine),
            )
    elif kind == "seg":
        return dicom_seg.write_segments(
            path, label, names, source.path, series_uid=source.series_uid, algorithm=algorithm
        )
    else:
        from ctseg.reporting.pictures.colours import from_hex
        from ctseg.reporting.pictures.slices import ON_CT

        rgb = {
            value: np.rint(255 * from_hex(ON_CT[(value - 1) % len(ON_CT)])).astype(int).tolist()
            for value in names
        }  # the colours of the report's pictures
        return rtstruct.write_structures(
            path,
            label,
            names,
            source.path,
            series_uid=source.series_uid,
            algorithm=algorithm,
            colours={value: tuple(colour) for value, colour in rgb.items()},
        )
    return []


def write_probabilities(
    folder: Path, probabilities: Shares, canvas: Grid, scan: Grid, names: Sequence[str]
) -> None:
    """One NIfTI (float32, 0 to 1) per structure on the scan's grid; where nothing was looked at: 0."""
    for number, name in enumerate(names, start=1):
        nifti.write_image(
            folder / f"{file_name(name)}.nii.gz",
            _on_scan(probabilities.whole(number), canvas, scan),
            dtype=np.float32,
        )


def write_uncertainty(path: Path, probabilities: Shares, canvas: Grid, scan: Grid) -> None:
    """A NIfTI (float32) of the entropy of the classes over its largest possible value: 0 certain, 1 anything is as likely. Outside what was looked at: 0."""
    entropy = np.zeros(canvas.shape, dtype=np.float32)
    for number in (0, *probabilities.numbers()):
        if (found := probabilities.part(number)) is not None:
            box, share = found
            entropy[box] -= share * np.log(np.maximum(share, 1e-12))
    nifti.write_image(
        path, _on_scan(entropy / np.log(probabilities.n_classes), canvas, scan), dtype=np.float32
    )


def _on_scan(values: np.ndarray, canvas: Grid, scan: Grid) -> Volume:
    moved = resample(Volume(values, canvas.affine), scan, order="linear", fill=0.0)
    return Volume(np.clip(moved.array, 0.0, 1.0), scan.affine)


def statistics_of(label: Volume, image: Volume, names: dict[int, str]) -> dict[str, dict[str, Any]]:
    """Of each structure: volume in mL, mean and standard deviation of its HU, and whether it meets the scan's border, where it may go on.

    label, image: (D, H, W) on one grid. One walk over the slices for all structures.
    """
    millilitres = float(abs(np.linalg.det(label.affine[:3, :3]))) / 1000
    size = max(names, default=0) + 1
    counts, sums, squares, rim = (
        np.zeros(size, np.int64),
        np.zeros(size),
        np.zeros(size),
        np.zeros(size, np.int64),
    )
    for index, (plane, values) in enumerate(zip(label.array, image.array)):
        numbers = plane[plane > 0]
        hu = values[plane > 0].astype(np.float64)
        found = np.bincount(numbers, minlength=size)
        counts += found
        sums += np.bincount(numbers, hu, minlength=size)
        squares += np.bincount(numbers, hu**2, minlength=size)
        outermost = index in (0, len(label.array) - 1)
        rim += (
            found
            if outermost
            else sum(
                np.bincount(edge, minlength=size) for edge in (plane[0], plane[-1], plane[:, 0], plane[:, -1])
            )
        )
    result = {}
    for value, name in names.items():
        count = int(counts[value])
        mean = sums[value] / count if count else 0.0
        spread = float(np.sqrt(max(squares[value] / count - mean**2, 0.0))) if count else 0.0
        result[name] = {
            "volume_ml": round(count * millilitres, 4),
            "mean_hu": round(float(mean), 2) if count else None,
            "sd_hu": round(spread, 2) if count else None,
            "meets_border": bool(rim[value]),
        }
    return result


def write_statistics(path: Path, records: list[dict[str, Any]]) -> None:
    """The statistics of all scans as one CSV, a row per scan and structure."""
    rows = [
        {"scan": record["scan"], "structure": name, **values}
        for record in records
        for name, values in record.get("structures", {}).items()
    ]
    write_csv(path, rows, ("scan", "structure", "volume_ml", "mean_hu", "sd_hu", "meets_border"))
