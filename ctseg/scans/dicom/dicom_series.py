"""A CT series in DICOM, slices or an enhanced multi-frame file: found, checked, read with true geometry; and
written.

pydicom alone reads (never with force): files are walked, a DICOMDIR is not followed. No value of a patient's
header appears in a message.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from ctseg.artifacts import atomic_write, canonical_hash, file_hash
from ctseg.errors import Finding
from ctseg.geometry import tolerances
from ctseg.geometry.volume import Grid, Volume
from ctseg.scans.dicom import dicom_files, dicom_frames
from ctseg.scans.dicom.dicom_files import SMALLEST_SLICES, SeriesInfo
from ctseg.scans.dicom.slice_geometry import Slice, check_each, drop_crossing, sort_and_place
from ctseg.scans.dicom.slice_pixels import read_pixels
from ctseg.scans.formats import checks
from ctseg.scans.formats.regular_files import at_file, located, refuse

_OF_SERIES = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "ImageType",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "InstanceNumber",
    "AcquisitionNumber",
    "ImagesInAcquisition",
    "NumberOfFrames",
    "BitsAllocated",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "PixelPaddingValue",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    *dicom_frames.GROUPS,
]


def find_series(folder: str | Path) -> list[SeriesInfo]:
    """Every series below `folder`, sorted by folder and UID. Files that are no readable DICOM are passed
    over; `read_series` refuses a folder that holds a damaged one."""
    return dicom_files.find(Path(folder)).series


@dicom_files.private()
def read_series(
    folder: str | Path, series_uid: str | None = None, *, assume_hu: bool = False
) -> tuple[Volume, list[Finding]]:
    """The CT of the one series in `folder` (or of the named one): float32 HU, (D, H, W), and what was
    noticed.

    assume_hu: pixels without rescale tags count as HU, with a warning; without it they are refused.
    """
    folder = Path(folder)
    with dicom_files.guard(folder):
        volume, findings = _read(folder, series_uid, assume_hu)
    return volume, located(findings, folder)


@dicom_files.private()
def series_headers(folder: str | Path, series_uid: str | None = None) -> list[Any]:
    """Full headers, without pixels, of the slices that `read_series` stacks, in its order; see
    `dicom_frames.split` for multi-frame files."""
    folder = Path(folder)
    with dicom_files.guard(folder):
        chosen, _ = dicom_files.choose(folder, series_uid)
        slices, _ = _drop_extras(_slices(chosen, None)[0])
        check_each(slices)
        slices, _ = drop_crossing(slices)
        sort_and_place(slices)
        return [item.header for item in slices]


def fill_uids(headers: list[Any], path: Path) -> list[Finding]:
    """Give headers whose UIDs were taken away ones made from what they hold, so that labels can refer to
    them; a finding says so."""
    blank = [
        keyword
        for keyword in (*_OF_SERIES, "SOPClassUID", "SOPInstanceUID")
        if not all(header.get(keyword) for header in headers)
    ]
    if not blank:
        return []
    digests = [canonical_hash(header.to_json(suppress_invalid_tags=True)) for header in headers]
    for header, digest in zip(headers, digests):
        for keyword in blank:
            made = generate_uid(entropy_srcs=[keyword, *(digests if keyword in _OF_SERIES else [digest])])
            setattr(
                header, keyword, header.get(keyword) or (CTImageStorage if keyword == "SOPClassUID" else made)
            )
    return [
        Finding(
            "WARN",
            "UID_MISSING",
            f"the scan has no {', '.join(blank)}: the file refers to made-up ones, so that some "
            "viewers will not show it on the scan",
            "anonymise the scan again with replaced instead of blanked UIDs",
            file=path.name,
        )
    ]


def label_planes(label: Volume, headers: list[Any]) -> list[int]:
    """The index d in the label of each slice of `series_headers`. ValueError where the label lies on another
    grid."""
    rows, columns = int(headers[0].Rows), int(headers[0].Columns)
    if label.array.shape != (len(headers), rows, columns):
        raise ValueError(
            f"label of shape {label.array.shape} for a series of {(len(headers), rows, columns)}"
        )
    to_index = np.linalg.inv(label.affine)
    places = np.array(
        [to_index @ [*(float(v) for v in header.ImagePositionPatient), 1.0] for header in headers]
    )
    planes = np.rint(places[:, 0]).astype(int)
    off = np.abs(places[:, :3] - np.stack([planes, 0 * planes, 0 * planes], axis=1)).max()
    # positions and label may both be rounded
    if sorted(planes.tolist()) != list(range(len(headers))) or off > 2 * tolerances.ROUNDED:
        raise ValueError("the label does not lie on the grid of the series")
    return [int(plane) for plane in planes]


@dicom_files.private()
def source_file(folder: str | Path, series_uid: str | None = None) -> Any:
    """The full header, without pixels, of the one multi-frame file that a series consists of."""
    chosen, _ = dicom_files.choose(Path(folder), series_uid)
    return dicom_files.read_header(chosen.files[0], None)


def _read(folder: Path, series_uid: str | None, assume_hu: bool) -> tuple[Volume, list[Finding]]:
    chosen, others = dicom_files.choose(folder, series_uid)
    findings = []
    if others:
        findings.append(Finding("NOTE", "NOT_DICOM", f"{others} files are not DICOM and were passed over"))
    slices, notes = _slices(chosen, _TAGS)
    findings += notes
    total = len(slices)
    slices, notes = _drop_extras(slices)
    findings += notes
    check_each(slices)
    slices, notes = drop_crossing(slices)
    findings += notes + _check_count(slices, total)
    affine, notes = sort_and_place(slices)
    findings += notes + _check_acquisitions(slices)
    rows, columns = int(slices[0].header.Rows), int(slices[0].header.Columns)
    bits = int(slices[0].header.get("BitsAllocated") or 16)
    checks.check_memory(len(slices) * rows * columns, max(1, bits // 8))
    checks.check_size(Grid((len(slices), rows, columns), affine))
    array = np.empty((len(slices), rows, columns), dtype=np.float32)
    findings += read_pixels(slices, array, assume_hu)
    checks.check_finite(array)
    checks.check_hu(array, stored_bits=bits)
    findings += checks.clip_padding(array)
    return Volume(array, affine), findings


# ---- choosing and checking slices -------------------------------------------------------------------------


def _slices(chosen: SeriesInfo, tags: list[str] | None) -> tuple[list[Slice], list[Finding]]:
    """The slices of a series: its files, or the frames of the one multi-frame file that it is then."""
    headers = {path: dicom_files.read_header(path, tags) for path in chosen.files}
    files = [path for path, header in headers.items() if dicom_frames.is_multiframe(header)]
    if not files:
        return [Slice(path, header) for path, header in headers.items()], []
    with at_file(files[0]):
        frames = [Slice(files[0], header) for header in dicom_frames.split(headers[files[0]])]
    if len(files) < len(headers) or len({file_hash(path) for path in files}) > 1:
        raise refuse(
            "MULTIFRAME_UNSUPPORTED",
            f"{len(files)} multi-frame files and {len(headers) - len(files)} single slices in one series",
            "keep the one multi-frame file that holds the scan",
            files[0],
        )
    copies = len(files) - 1
    return frames, [
        Finding(
            "NOTE", "SLICE_COPY", f"{copies} exact copies of the file were left out", file=str(chosen.folder)
        )
    ] if copies else []


def _drop_extras(slices: list[Slice]) -> tuple[list[Slice], list[Finding]]:
    """Without localizers and exact copies; refuses copies that differ."""
    findings = []
    kept = [item for item in slices if not dicom_files.is_localizer(item.header)]
    if len(kept) < len(slices):
        findings.append(
            Finding("NOTE", "LOCALIZER", f"{len(slices) - len(kept)} localizer images were left out")
        )
    seen: dict[str, Slice] = {}
    for (
        item
    ) in kept:  # UIDs may have been blanked: two slices are the same where they lie in the same place, too
        place = item.header.get("ImagePositionPatient") or item.path
        key = f"{item.header.get('SOPInstanceUID')} {dicom_frames.frame_of(item.header)} {place}"
        if key in seen and file_hash(seen[key].path) != file_hash(item.path):
            raise refuse(
                "SLICE_DUPLICATE",
                "two different files have the same SOP instance UID and position",
                "keep the right one",
                item.path,
            )
        seen.setdefault(key, item)
    if len(seen) < len(kept):
        findings.append(
            Finding("NOTE", "SLICE_COPY", f"{len(kept) - len(seen)} exact copies of slices were left out")
        )
    if len(seen) < SMALLEST_SLICES:
        raise refuse("TOO_SMALL", f"{len(seen)} slices are no volume", "give the whole series")
    return list(seen.values()), findings


def _check_acquisitions(slices: list[Slice]) -> list[Finding]:
    """A warning when an acquisition goes on behind another one: two scans between each other look like one of
    half the step.

    slices: in their order along the patient.
    """
    numbers = [item.header.get("AcquisitionNumber") for item in slices]
    runs = 1 + sum(one != other for one, other in itertools.pairwise(numbers))
    if runs <= len(set(numbers)):
        return []
    cause = f"slices of {len(set(numbers))} acquisitions lie between each other, in {runs} runs"
    return [
        Finding(
            "WARN", "ACQUISITIONS_MIXED", cause, "check that they are one scan, not two phases in one series"
        )
    ]


def _check_count(slices: list[Slice], total: int) -> list[Finding]:
    """A warning when the headers speak of more slices than there are: the ends of a scan can only be missed
    so."""
    numbers = [int(n) for n in (item.header.get("InstanceNumber") for item in slices) if n is not None]
    expected = max(numbers) - min(min(numbers), 1) + 1 if numbers else 0
    stated = max((int(item.header.get("ImagesInAcquisition") or 0) for item in slices), default=0)
    if max(expected, stated) <= total:
        return []
    return [
        Finding(
            "WARN",
            "SLICE_COUNT",
            f"{len(slices)} slices, but the headers speak of {max(expected, stated)}",
            "check that the series is complete",
        )
    ]


# ---- pixels -----------------------------------------------------------------------------------------------


# ---- writing ----------------------------------------------------------------------------------------------


@dicom_files.private()
def write_series(
    folder: str | Path, volume: Volume, *, patient_id: str, series_number: int, seed: int
) -> str:
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
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientID": patient_id,
        "PatientName": "",
        "PatientBirthDate": "",
        "PatientSex": "",
        "AccessionNumber": "",
        "StudyInstanceUID": generate_uid(entropy_srcs=[*study, "study"]),
        "StudyID": "1",
        "StudyDate": "",
        "StudyTime": "",
        "ReferringPhysicianName": "",
        "Manufacturer": "",
        "PositionReferenceIndicator": "",
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
        position = volume.affine[:3, 3] + index * step
        own = {
            "SOPInstanceUID": generate_uid(entropy_srcs=[*study, str(series_number), str(index)]),
            "InstanceNumber": index + 1,
            "ImagePositionPatient": _decimals(position),
            "PixelData": stored.tobytes(),
        }
        _write_slice(Path(folder) / f"slice_{index + 1:04d}.dcm", {**shared, **own})
    return str(series_uid)


def _write_slice(path: Path, values: dict[str, Any]) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        values["SOPClassUID"],
        values["SOPInstanceUID"],
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in values.items():
        setattr(content, name, value)
    atomic_write(path, lambda stream: content.save_as(stream, enforce_file_format=True))


def _decimals(values: Any) -> list[str]:
    """Numbers as DICOM decimal strings of at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]
