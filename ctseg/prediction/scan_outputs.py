"""What infer.py writes: masks in every form, probabilities, uncertainty, volumes and HU as a table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctseg import artifacts
from ctseg.errors import Finding
from ctseg.geometry.probabilities import Probabilities
from ctseg.geometry.volume import Volume, resample
from ctseg.palette import rgb_of
from ctseg.scans.dicom import dicom_seg, rtstruct
from ctseg.scans.formats import nifti
from ctseg.tables import write_csv

if TYPE_CHECKING:
    from ctseg.datasets.case import ImageSource
    from ctseg.prediction.predictor import Prediction

# format -> end of the name; organs: a folder
FORMATS = {"nifti": ".nii.gz", "organs": "", "seg": "_seg.dcm", "rtstruct": "_rtstruct.dcm"}
DICOM_FORMATS = frozenset({"seg", "rtstruct"})
FOLDERS = frozenset({"organs", "probabilities"})  # what is a folder with a file per structure
LONGEST = 200  # bytes of a file name without its ending; file systems allow 255


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is written of each scan.

    formats: of FORMATS; algorithm: how DICOM files call what predicted it.
    """

    formats: tuple[str, ...]
    probabilities: bool
    uncertainty: bool
    algorithm: str

    def files_of(self, scan: str) -> dict[str, str]:
        """What is written of a scan -> the name of its file, or of its folder for those in FOLDERS."""
        ends = {kind: FORMATS[kind] for kind in self.formats}
        ends |= {"probabilities": "_probabilities"} if self.probabilities else {}
        ends |= {"uncertainty": "_uncertainty.nii.gz"} if self.uncertainty else {}
        return {kind: artifacts.safe_name(scan) + end for kind, end in ends.items()}

    def write(
        self,
        folder: Path,
        scan: str,
        found: Prediction,
        image: Volume,
        names: dict[int, str],
        source: ImageSource,
    ) -> list[Finding]:
        """Write all of it into a folder. Returns what is to be told."""
        mask = Volume(found.label, image.affine)
        findings: list[Finding] = []

        def write_shares(path: Path, values: np.ndarray) -> None:
            """float32, 0 to 1, on the scan's grid; where nothing was looked at: 0."""
            moved = resample(Volume(values, found.canvas.affine), image.grid, order="linear", fill=0.0)
            shares = Volume(np.clip(moved.array, 0.0, 1.0), image.affine)
            nifti.write_image(path, shares, dtype=np.float32)

        for kind, file in self.files_of(scan).items():
            path = folder / file
            if kind == "nifti":
                nifti.write_label(path, mask, names=names)
            elif kind == "organs":
                for number, name in names.items():
                    one = Volume((mask.array == number).astype(np.uint8), mask.affine)
                    nifti.write_label(path / f"{file_name(name)}.nii.gz", one)
            elif kind == "probabilities":
                for number, name in names.items():
                    write_shares(path / f"{file_name(name)}.nii.gz", found.probabilities.whole(number))
            elif kind == "uncertainty":
                write_shares(path, uncertainty(found.probabilities))
            elif kind == "seg":
                findings += dicom_seg.write_segments(
                    path, mask, names, source.path, series_uid=source.series_uid, algorithm=self.algorithm
                )
            else:
                findings += rtstruct.write_structures(
                    path,
                    mask,
                    names,
                    source.path,
                    series_uid=source.series_uid,
                    algorithm=self.algorithm,
                    colours={number: rgb_of(number) for number in names},
                )
        return findings


def file_name(structure: str) -> str:
    """The structure's own name wherever it can be one of a file, in every script, so that masks are found by
    it.

    Else `artifacts.safe_name`.
    """
    plain = structure.isprintable() and not set(structure) & set('/\\:*?"<>|')
    fits = structure[:1] not in ("", *".- ") and len(structure.encode()) <= LONGEST
    return structure if plain and fits else artifacts.safe_name(structure)


def uncertainty(probabilities: Probabilities) -> np.ndarray:
    """(D, H, W) float32: entropy of the classes over its largest possible value.

    0 is certain, 1 that anything is as likely; 0 outside what was looked at.
    """
    entropy = np.zeros(probabilities.shape, dtype=np.float32)
    for number in (0, *probabilities.numbers()):
        if (found := probabilities.part(number)) is not None:
            box, share = found
            entropy[box] -= share * np.log(np.maximum(share, 1e-12))
    return entropy / np.log(probabilities.n_classes)


def statistics_of(label: Volume, image: Volume, names: dict[int, str]) -> dict[str, dict[str, Any]]:
    """Of each structure: volume in mL, mean and standard deviation of its HU, and whether it meets the scan's
    border.

    There it may go on. label, image: (D, H, W) on one grid. One walk over the slices for all structures.
    """
    millilitres = float(abs(np.linalg.det(label.affine[:3, :3]))) / 1000
    size = max(names, default=0) + 1
    counts, sums, squares = np.zeros((3, size))
    for plane, values in zip(label.array, image.array):
        numbers, hu = plane[plane > 0], values[plane > 0].astype(np.float64)
        for total, weights in ((counts, None), (sums, hu), (squares, hu**2)):
            total += np.bincount(numbers, weights, minlength=size)
    rim = np.unique(np.concatenate([label.array.take((0, -1), axis).ravel() for axis in range(3)])).tolist()
    voxels = np.maximum(counts, 1)
    means = sums / voxels
    spreads = np.sqrt(np.maximum(squares / voxels - means**2, 0.0))
    return {
        name: {
            "volume_ml": round(int(counts[number]) * millilitres, 4),
            "mean_hu": round(float(means[number]), 2) if counts[number] else None,
            "sd_hu": round(float(spreads[number]), 2) if counts[number] else None,
            "meets_border": number in rim,
        }
        for number, name in names.items()
    }


def write_statistics(path: Path, records: list[dict[str, Any]]) -> None:
    """The statistics of all scans as one CSV, a row per scan and structure."""
    rows = [
        {"scan": record["scan"], "structure": name, **values}
        for record in records
        for name, values in record.get("structures", {}).items()
    ]
    write_csv(path, rows, ("scan", "structure", "volume_ml", "mean_hu", "sd_hu", "meets_border"))
