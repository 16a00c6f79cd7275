"""A CT series in DICOM, slices or an enhanced multi-frame file: found, checked, read with true geometry; and
written.

pydicom alone reads (never with force): files are walked, a DICOMDIR is not followed. No value of a patient's
header appears in a message.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import CTImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from ctseg.artifacts import canonical_hash, file_hash
from ctseg.errors import Finding, Findings
from ctseg.geometry import tolerances
from ctseg.geometry.volume import Grid, Volume
from ctseg.scans.dicom import dicom_files, dicom_frames
from ctseg.scans.dicom.dicom_files import SMALLEST_SLICES, SeriesInfo
from ctseg.scans.dicom.slice_geometry import Slice, check_each, drop_crossing, sort_and_place
from ctseg.scans.dicom.slice_pixels import read_pixels
from ctseg.scans.formats import checks
from ctseg.scans.formats.regular_files import at_file, located, refuse

# UIDs that all slices of a series share.
OF_SERIES = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_TAGS = """
SOPClassUID SOPInstanceUID ImageType ImagePositionPatient ImageOrientationPatient PixelSpacing Rows
Columns InstanceNumber AcquisitionNumber ImagesInAcquisition NumberOfFrames BitsAllocated RescaleSlope
RescaleIntercept RescaleType PixelPaddingValue SamplesPerPixel PhotometricInterpretation
"""


@dicom_files.private()
def read_series(
    folder: Path, series_uid: str | None = None, *, assume_hu: bool = False
) -> tuple[Volume, Findings]:
    """The CT of the one series in `folder` (or of the named one): float32 HU, (D, H, W), and what was
    noticed.

    assume_hu: pixels without rescale tags count as HU, with a warning; without it they are refused.
    """
    with dicom_files.guard(folder):
        chosen, others = dicom_files.choose(folder, series_uid)
        slices, affine, findings = _stacked(chosen, [*_TAGS.split(), *dicom_frames.GROUPS])
        if others:
            passed = f"{others} files are not DICOM and were passed over"
            findings.insert(0, Finding("NOTE", "NOT_DICOM", passed))
        first = slices[0].header
        grid = Grid((len(slices), int(first.Rows), int(first.Columns)), affine)
        bits = int(first.get("BitsAllocated") or 16)
        checks.check_memory(math.prod(grid.shape), max(1, bits // 8))
        checks.check_size(grid)
        array = np.empty(grid.shape, dtype=np.float32)
        findings += read_pixels(slices, array, assume_hu)
        checks.check_finite(array)
        checks.check_hu(array, stored_bits=bits)
        findings += checks.clip_padding(array)
    return Volume(array, affine), located(findings, folder)


@dicom_files.private()
def series_headers(folder: Path, series_uid: str | None = None) -> list[Any]:
    """Full headers, without pixels, of the slices that `read_series` stacks, in its order; see
    `dicom_frames.split` for multi-frame files."""
    with dicom_files.guard(folder):
        chosen, _ = dicom_files.choose(folder, series_uid)
        return [item.header for item in _stacked(chosen, None)[0]]


def fill_uids(headers: list[Any], path: Path) -> Findings:
    """Give headers whose UIDs were taken away ones made from what they hold, so that labels can refer to
    them; a finding says so."""
    blank = [
        keyword
        for keyword in (*OF_SERIES, "SOPClassUID", "SOPInstanceUID")
        if not all(header.get(keyword) for header in headers)
    ]
    if not blank:
        return []
    digests = [canonical_hash(header.to_json(suppress_invalid_tags=True)) for header in headers]
    for header, digest in zip(headers, digests):
        for keyword in blank:
            made = generate_uid(entropy_srcs=[keyword, *(digests if keyword in OF_SERIES else [digest])])
            made = CTImageStorage if keyword == "SOPClassUID" else made
            setattr(header, keyword, header.get(keyword) or made)
    cause = (
        f"the scan has no {', '.join(blank)}: the file refers to made-up ones, so that some "
        "viewers will not show it on the scan"
    )
    fix = "anonymise the scan again with replaced instead of blanked UIDs"
    return [Finding("WARN", "UID_MISSING", cause, fix, file=path.name)]


def label_planes(label: Volume, headers: list[Any]) -> list[int]:
    """The index d in the label of each slice of `series_headers`. ValueError where the label lies on another
    grid."""
    shape = (len(headers), int(headers[0].Rows), int(headers[0].Columns))
    if label.array.shape != shape:
        raise ValueError(f"label of shape {label.array.shape} for a series of {shape}")
    corners = [[*(float(v) for v in header.ImagePositionPatient), 1.0] for header in headers]
    places = (np.array(corners) @ np.linalg.inv(label.affine).T)[:, :3]
    planes = np.rint(places[:, 0]).astype(int)
    places[:, 0] -= planes
    # positions and label may both be rounded
    if sorted(planes) != list(range(len(headers))) or np.abs(places).max() > 2 * tolerances.ROUNDED:
        raise ValueError("the label does not lie on the grid of the series")
    return planes.tolist()


# ---- choosing and checking slices -------------------------------------------------------------------------


def _stacked(chosen: SeriesInfo, tags: list[str] | None) -> tuple[list[Slice], np.ndarray, Findings]:
    """(the slices of a series in their order along the patient, the affine, what was noticed)."""
    slices, findings = _slices(chosen, tags)
    total = len(slices)
    findings += _drop_extras(slices)
    check_each(slices)
    findings += drop_crossing(slices)
    # Headers that speak of more slices than there are: the ends of a scan can only be missed so.
    numbers = [int(n) for n in (item.header.get("InstanceNumber") for item in slices) if n is not None]
    expected = max(numbers) - min(1, *numbers) + 1 if numbers else 0
    stated = max(expected, *(int(item.header.get("ImagesInAcquisition") or 0) for item in slices))
    if stated > total:
        cause = f"{len(slices)} slices, but the headers speak of {stated}"
        findings.append(Finding("WARN", "SLICE_COUNT", cause, "check that the series is complete"))
    affine, notes = sort_and_place(slices)
    findings += notes
    # An acquisition that goes on behind another one: two scans between each other look like one of half the
    # step.
    acquisitions = [item.header.get("AcquisitionNumber") for item in slices]
    count, runs = len(set(acquisitions)), len(list(itertools.groupby(acquisitions)))
    if runs > count:
        cause = f"slices of {count} acquisitions lie between each other, in {runs} runs"
        fix = "check that they are one scan, not two phases in one series"
        findings.append(Finding("WARN", "ACQUISITIONS_MIXED", cause, fix))
    return slices, affine, findings


def _slices(chosen: SeriesInfo, tags: list[str] | None) -> tuple[list[Slice], Findings]:
    """The slices of a series: its files, or the frames of the one multi-frame file that it is then."""
    headers = {path: dicom_files.read_header(path, tags) for path in chosen.files}
    files = [path for path, header in headers.items() if dicom_frames.is_multiframe(header)]
    if not files:
        return [Slice(path, header) for path, header in headers.items()], []
    with at_file(files[0]):
        frames = [Slice(files[0], header) for header in dicom_frames.split(headers[files[0]])]
    singles, copies = len(headers) - len(files), len(files) - 1
    if singles or len({file_hash(path) for path in files}) > 1:
        cause = f"{len(files)} multi-frame files and {singles} single slices in one series"
        fix = "keep the one multi-frame file that holds the scan"
        raise refuse("MULTIFRAME_UNSUPPORTED", cause, fix, files[0])
    cause = f"{copies} exact copies of the file were left out"
    told = Finding("NOTE", "SLICE_COPY", cause, file=str(chosen.folder))
    return frames, [told] if copies else []


def _drop_extras(slices: list[Slice]) -> Findings:
    """Leave out localizers and exact copies; refuse copies that differ."""
    kept = [item for item in slices if not dicom_files.is_localizer(item.header)]
    seen: dict[str, Slice] = {}
    # UIDs may have been blanked: two slices are the same where they lie in the same place, too
    for item in kept:
        place = item.header.get("ImagePositionPatient") or item.path
        key = f"{item.header.get('SOPInstanceUID')} {dicom_frames.frame_of(item.header)} {place}"
        same = seen.setdefault(key, item)
        if same is not item and file_hash(same.path) != file_hash(item.path):
            cause = "two different files have the same SOP instance UID and position"
            raise refuse("SLICE_DUPLICATE", cause, "keep the right one", item.path)
    if len(seen) < SMALLEST_SLICES:
        raise refuse("TOO_SMALL", f"{len(seen)} slices are no volume", "give the whole series")
    left_out = (
        ("LOCALIZER", len(slices) - len(kept), "localizer images"),
        ("SLICE_COPY", len(kept) - len(seen), "exact copies of slices"),
    )
    slices[:] = seen.values()
    return [Finding("NOTE", code, f"{count} {what} were left out") for code, count, what in left_out if count]


# ---- writing ----------------------------------------------------------------------------------------------


@dicom_files.private()
def write_series(folder: Path, volume: Volume, *, patient_id: str, series_number: int, seed: int) -> str:
    """Write a CT as one file per slice and return the series UID. The same arguments give the same bytes.

    HU are rounded and stored as unsigned 16 bits with intercept -1024, so from -1024 to 64511. The D axis may
    be sheared (a tilted gantry), H and W must be perpendicular; ValueError otherwise. Slices that run against
    their normal (a left-handed grid) come back in the opposite order, in the same place.
    """
    step, column, row = (volume.affine[:3, axis] for axis in range(3))
    spacing = float(np.linalg.norm(column)), float(np.linalg.norm(row))
    if abs(float(row @ column)) > 1e-6 * spacing[0] * spacing[1]:
        raise ValueError("rows and columns of DICOM slices are perpendicular; the volume's are not")
    normal = np.cross(row / spacing[1], column / spacing[0])
    study = [str(seed), patient_id]
    series_uid = generate_uid(entropy_srcs=[*study, "series", str(series_number)])
    shared: dict[str, Any] = {
        **dict.fromkeys(dicom_files.PATIENT_AND_STUDY, ""),
        "Manufacturer": "",
        "PositionReferenceIndicator": "",
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientID": patient_id,
        "StudyInstanceUID": generate_uid(entropy_srcs=[*study, "study"]),
        "StudyID": "1",
        "PatientPosition": "HFS",
        "FrameOfReferenceUID": generate_uid(entropy_srcs=[*study, "frame"]),
        "KVP": None,
        "AcquisitionNumber": 1,
        "SeriesInstanceUID": series_uid,
        "SeriesNumber": series_number,
        "ImageOrientationPatient": _decimals([*(row / spacing[1]), *(column / spacing[0])]),
        "PixelSpacing": _decimals(spacing),
        "SliceThickness": _decimals([abs(float(step @ normal))])[0],
        "Rows": volume.array.shape[1],
        "Columns": volume.array.shape[2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "RescaleType": "HU",
    }
    for index, values in enumerate(volume.array):
        stored = np.clip(np.rint(values.astype(np.float64) + 1024), 0, 65535).astype("<u2")
        content = dicom_files.new_object(
            **shared,
            SOPInstanceUID=generate_uid(entropy_srcs=[*study, str(series_number), str(index)]),
            InstanceNumber=index + 1,
            ImagePositionPatient=_decimals(volume.affine[:3, 3] + index * step),
            PixelData=stored.tobytes(),
        )
        dicom_files.write(folder / f"slice_{index + 1:04d}.dcm", content)
    return str(series_uid)


def _decimals(values: Any) -> list[str]:
    """Numbers as DICOM decimal strings of at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]
