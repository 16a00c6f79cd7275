"""A CT series in DICOM, slices or an enhanced multi-frame file: found, checked, read with true geometry; and
written.

pydicom alone reads (never with force): files are walked, a DICOMDIR is not followed. Slices are sorted along
the slice normal; the step between them stands in the affine as it is, so a tilted gantry gives a sheared
affine instead of a wrong scan. No value of a patient's header appears in a message.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from ctseg.artifacts import atomic_write, canonical_hash, file_hash
from ctseg.errors import Finding
from ctseg.geometry import tolerances
from ctseg.geometry.volume import AIR_HU, Grid, Volume
from ctseg.scans.dicom import dicom_files, dicom_frames
from ctseg.scans.dicom.dicom_files import SMALLEST_SLICES, SeriesInfo
from ctseg.scans.dicom.dicom_pixels import Decoder
from ctseg.scans.formats import checks
from ctseg.scans.formats.regular_files import at_file, located, refuse

ORIENTATION_TOLERANCE = 1e-3  # of direction cosines between slices of one series
ROUNDED_COSINES = 0.02  # what two decimals make of the length and the right angle of row and column direction

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
_NO_HU = (
    "OD",
    "Z_EFF",
    "ED",
    "EDW",
    "PCT",
    "MGML",
    "HU_MOD",
)  # rescale types of values that are something else


@dataclasses.dataclass
class _Slice:
    path: Path
    header: Any
    position: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))


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
        _check_each(slices)
        slices, _ = _drop_crossing(slices)
        _geometry(slices)
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
    if (
        sorted(planes.tolist()) != list(range(len(headers))) or off > 2 * tolerances.ROUNDED
    ):  # positions and label may both be rounded
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
    _check_each(slices)
    slices, notes = _drop_crossing(slices)
    findings += notes + _check_count(slices, total)
    affine, notes = _geometry(slices)
    findings += notes + _check_acquisitions(slices)
    rows, columns = int(slices[0].header.Rows), int(slices[0].header.Columns)
    bits = int(slices[0].header.get("BitsAllocated") or 16)
    checks.check_memory(len(slices) * rows * columns, max(1, bits // 8))
    checks.check_size(Grid((len(slices), rows, columns), affine))
    array = np.empty((len(slices), rows, columns), dtype=np.float32)
    findings += _read_pixels(slices, array, assume_hu)
    checks.check_finite(array)
    checks.check_hu(array, stored_bits=bits)
    findings += checks.clip_padding(array)
    return Volume(array, affine), findings


# ---- choosing and checking slices -------------------------------------------------------------------------


def _slices(chosen: SeriesInfo, tags: list[str] | None) -> tuple[list[_Slice], list[Finding]]:
    """The slices of a series: its files, or the frames of the one multi-frame file that it is then."""
    headers = {path: dicom_files.read_header(path, tags) for path in chosen.files}
    files = [path for path, header in headers.items() if dicom_frames.is_multiframe(header)]
    if not files:
        return [_Slice(path, header) for path, header in headers.items()], []
    with at_file(files[0]):
        frames = [_Slice(files[0], header) for header in dicom_frames.split(headers[files[0]])]
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


def _drop_extras(slices: list[_Slice]) -> tuple[list[_Slice], list[Finding]]:
    """Without localizers and exact copies; refuses copies that differ."""
    findings = []
    kept = [item for item in slices if not dicom_files.is_localizer(item.header)]
    if len(kept) < len(slices):
        findings.append(
            Finding("NOTE", "LOCALIZER", f"{len(slices) - len(kept)} localizer images were left out")
        )
    seen: dict[str, _Slice] = {}
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


def _check_each(slices: list[_Slice]) -> None:
    """Every slice has a position, an orientation, a pixel spacing and a size, as finite numbers."""
    for item in slices:
        for tag, length in (
            ("ImagePositionPatient", 3),
            ("ImageOrientationPatient", 6),
            ("PixelSpacing", 2),
            ("Rows", 1),
            ("Columns", 1),
        ):
            values = _numbers(item, tag)
            if len(values) != length:
                raise refuse(
                    "GEOMETRY_MISSING",
                    f"{tag} is missing or incomplete",
                    "export the series again with its geometry",
                    item.path,
                )
        item.position = np.array(_numbers(item, "ImagePositionPatient"))
        if _skew(item) > ROUNDED_COSINES:
            raise refuse(
                "GEOMETRY_INCONSISTENT",
                "row and column direction are not perpendicular unit vectors",
                "export the series again",
                item.path,
            )


def _directions(item: _Slice) -> np.ndarray:
    """Row and column direction (2, 3) as they are written."""
    return np.array(_numbers(item, "ImageOrientationPatient")).reshape(2, 3)


def _skew(item: _Slice) -> float:
    """How far row and column direction are from being perpendicular unit vectors."""
    directions = _directions(item)
    return float(np.abs(directions @ directions.T - np.eye(2)).max())


def _numbers(item: _Slice, tag: str) -> list[float]:
    try:
        values = [float(value) for value in dicom_files.many(item.header.get(tag))]
    except Exception:  # pydicom raises many types on values it cannot parse
        values = [float("nan")]
    if not np.isfinite(values).all():
        raise refuse("DICOM_CORRUPT", f"{tag} is not a number", "export the series again", item.path)
    return values


def _drop_crossing(slices: list[_Slice]) -> tuple[list[_Slice], list[Finding]]:
    """Without the few slices that run across the others (scouts that do not say so)."""
    normals = [np.cross(*_directions(item)) for item in slices]
    agreeing = [sum(abs(float(a @ b)) > 0.99 for b in normals) for a in normals]
    main = normals[int(np.argmax(agreeing))]
    kept = [item for item, normal in zip(slices, normals) if abs(float(normal @ main)) > 0.99]
    dropped = len(slices) - len(kept)
    if dropped > max(2, 0.1 * len(slices)):
        raise refuse(
            "GEOMETRY_INCONSISTENT",
            f"{dropped} of {len(slices)} slices run across the others",
            "keep one orientation in the folder",
        )
    if len(kept) < SMALLEST_SLICES:
        raise refuse("TOO_SMALL", f"{len(kept)} parallel slices are no volume", "give the whole series")
    if not dropped:
        return kept, []
    return kept, [Finding("NOTE", "LOCALIZER", f"{dropped} images that run across the series were left out")]


def _check_acquisitions(slices: list[_Slice]) -> list[Finding]:
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


def _check_count(slices: list[_Slice], total: int) -> list[Finding]:
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


def _geometry(slices: list[_Slice]) -> tuple[np.ndarray, list[Finding]]:
    """Sort the slices in place along their normal; the affine (d, h, w) to LPS mm and what was noticed."""
    first = slices[0]
    for item in slices:
        for tag, tolerance in (
            ("Rows", 0.0),
            ("Columns", 0.0),
            ("PixelSpacing", 1e-4),
            ("ImageOrientationPatient", ORIENTATION_TOLERANCE),
        ):
            difference = np.abs(np.subtract(_numbers(item, tag), _numbers(first, tag))).max()
            if difference > tolerance:
                raise refuse(
                    "GEOMETRY_INCONSISTENT",
                    f"{tag} differs from the other slices by {difference:.3g}",
                    "remove the slice that does not belong to the series",
                    item.path,
                )
    left, _, right = np.linalg.svd(_directions(first), full_matrices=False)
    row, column = left @ right  # the nearest perpendicular unit vectors
    spacing = _numbers(first, "PixelSpacing")
    normal = np.cross(row, column)
    slices.sort(key=lambda item: float(item.position @ normal))
    positions = np.array([item.position for item in slices])
    affine = np.eye(4)
    affine[:3, 3], affine[:3, 0] = _line(positions)
    affine[:3, 1], affine[:3, 2] = column * spacing[0], row * spacing[1]
    _check_steps(slices, positions @ normal)
    findings = [finding for finding in checks.check_affine(affine) if finding.code != "AFFINE_SHEAR"]
    findings += _check_line(slices, affine)
    if _skew(first) > ORIENTATION_TOLERANCE:
        findings.append(
            Finding(
                "WARN",
                "ORIENTATION_ROUNDED",
                f"row and column direction are written with few digits ({_skew(first):.2g} off "
                "perpendicular unit vectors); the nearest such vectors are used",
                "export the series again with more digits if its place in the room matters",
            )
        )
    tilt = checks.shear_degrees(affine)
    if tilt > checks.SHEAR_DEGREES:
        findings.append(
            Finding(
                "WARN",
                "GANTRY_TILT",
                f"slices are shifted by {tilt:.1f} degrees; the shear is kept and resampled",
            )
        )
    return affine, findings


def _line(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first point, step) of the line that fits slice positions (N, 3) best: rounding does not add up along
    it."""
    index = np.arange(len(positions)) - (len(positions) - 1) / 2
    middle = positions.mean(axis=0)
    step = index @ (positions - middle) / (index @ index)
    return middle + index[0] * step, step


def _check_line(slices: list[_Slice], affine: np.ndarray) -> list[Finding]:
    """Refuse a series with a slice off the grid that `affine` says, by `tolerances`, in fractions of a voxel
    along each axis."""
    positions = np.array([item.position for item in slices])
    beside = positions - affine[:3, 3] - np.outer(np.arange(len(slices)), affine[:3, 0])
    off = np.abs(np.linalg.solve(affine[:3, :3], beside.T))  # (axis, slice) in voxels
    worst = int(np.argmax(off.max(axis=0)))
    share, off_mm = float(off[:, worst].max()), float(np.linalg.norm(beside[worst]))
    if off[0].max() > tolerances.ROUNDED:
        steps = np.diff(positions @ np.cross(affine[:3, 1], affine[:3, 2])) / np.prod(
            np.linalg.norm(affine[:3, 1:3], axis=0)
        )
        raise refuse(
            "SLICE_SPACING_NONUNIFORM",
            f"steps from {np.abs(steps).min():.3f} to {np.abs(steps).max():.3f} mm; a slice lies "
            f"{off_mm:.2g} mm off even places ({share:.2g} of a step, {tolerances.ROUNDED:g} is allowed)",
            "give a series with one slice spacing",
        )
    if share > tolerances.ROUNDED:
        raise refuse(
            "GEOMETRY_INCONSISTENT",
            f"the slice lies {off_mm:.2g} mm beside the line of the others",
            "export the series again",
            slices[worst].path,
        )
    if share <= tolerances.EQUAL:
        return []
    return [
        Finding(
            "WARN",
            "POSITIONS_ROUNDED",
            f"slices lie up to {off_mm:.2g} mm ({share:.2g} of a voxel) off evenly spaced places, "
            "which are used",
            "nothing to do if their positions were rounded when written",
        )
    ]


def _check_steps(slices: list[_Slice], places: np.ndarray) -> None:
    """Refuse double positions and missing slices. places: mm along the normal, sorted."""
    steps = np.diff(places)
    apart = steps[steps > tolerances.EQUAL * steps.mean()]
    usual = float(np.median(apart)) if apart.size else 0.0
    tolerance = 2 * tolerances.ROUNDED * usual  # both ends of a step may be rounded
    nearest = int(np.argmin(steps))
    if steps[nearest] <= tolerance:
        raise refuse(
            "SLICE_DUPLICATE",
            "two slices lie at the same position",
            "keep one of them",
            slices[nearest + 1].path,
        )
    odd = np.flatnonzero(np.abs(steps - usual) > tolerance)
    multiples = np.rint(steps[odd] / usual)
    if (
        odd.size
        and (multiples >= 2).all()
        and (np.abs(steps[odd] - multiples * usual) <= multiples * tolerance).all()
    ):
        missing = int((multiples - 1).sum())
        raise refuse(
            "SLICE_GAP",
            f"{missing} slices are missing, the first {places[odd[0]] - places[0] + usual:.1f} mm "
            f"from the first slice (step {usual:.3g} mm)",
            "export the whole series again",
        )


# ---- pixels -----------------------------------------------------------------------------------------------


def _read_pixels(slices: list[_Slice], array: np.ndarray, assume_hu: bool) -> list[Finding]:
    """Fill `array` (D, H, W) with HU, each slice by its own rescale tags."""
    scalings: Counter[tuple[float, float]] = Counter()
    padded = assumed = 0
    places: dict[Path, dict[int, int]] = {}  # file -> frame -> index d
    for d, item in enumerate(slices):
        places.setdefault(item.path, {})[dicom_frames.frame_of(item.header) or 0] = d
        assumed += _check_values(item, assume_hu)
    with Decoder() as decoder:
        for path, wanted in places.items():
            for number, stored in enumerate(decoder.frames(_content(path), path)):
                if number not in wanted:
                    continue
                item, target = slices[wanted[number]], array[wanted[number]]
                slope, intercept = [*_numbers(item, "RescaleSlope"), *_numbers(item, "RescaleIntercept")] or [
                    1.0,
                    0.0,
                ]
                scalings[slope, intercept] += 1
                np.multiply(stored, np.float32(slope), out=target)
                target += np.float32(intercept)
                padding = _numbers(item, "PixelPaddingValue")
                if padding and not -900 < padding[0] * slope + intercept < 3072:
                    # Inside this range the value is also one that tissue has, and the tag is often wrong.
                    outside = stored == padding[0]
                    padded += int(np.count_nonzero(outside))
                    target[outside] = AIR_HU
    if sum(scalings.values()) < len(slices):
        raise refuse(
            "DICOM_TRUNCATED",
            f"{sum(scalings.values())} of {len(slices)} frames have pixels",
            "copy or export the file again",
            slices[0].path,
        )
    findings = []
    if assumed:
        findings.append(
            Finding(
                "WARN",
                "RESCALE_ASSUMED",
                f"{assumed} of {len(slices)} slices have no rescale tags; their pixels count as HU, "
                "as data.assume_hu says",
            )
        )
    if padded:
        findings.append(
            Finding(
                "NOTE",
                "PADDING",
                f"{100 * padded / array.size:.3g} % of the voxels are padding and count as air",
            )
        )
    if len(scalings) > 1:
        findings.append(
            Finding(
                "NOTE", "RESCALE_VARIES", f"{len(scalings)} different rescale pairs, applied slice by slice"
            )
        )
    return findings


def _content(path: Path) -> Any:
    """The whole dataset of a file."""
    try:
        return pydicom.dcmread(path)
    except MemoryError:
        raise
    except Exception as error:  # the header could be read before, so the pixels are damaged
        raise refuse(
            "PIXELS_CORRUPT",
            f"the pixels cannot be read ({type(error).__name__})",
            "copy or export the file again",
            path,
        ) from None


def _check_values(item: _Slice, assume_hu: bool) -> bool:
    """Refuse a slice whose pixels are no HU; whether they only count as such because of assume_hu."""
    header = item.header
    if (
        int(header.get("SamplesPerPixel") or 1) != 1
        or str(header.get("PhotometricInterpretation") or "MONOCHROME2") != "MONOCHROME2"
    ):
        raise refuse(
            "NOT_SCALAR", "pixels are colours or inverted", "export the original CT series", item.path
        )
    if (kind := str(header.get("RescaleType") or "")) in _NO_HU:
        raise refuse("NOT_HU", f"the rescale type is {kind}, not HU", "give the CT series in HU", item.path)
    found = len(_numbers(item, "RescaleSlope")), len(_numbers(item, "RescaleIntercept"))
    if assume_hu and found == (0, 0):
        return True
    if found != (1, 1):
        raise refuse(
            "RESCALE_MISSING",
            "RescaleSlope or RescaleIntercept is missing, so HU are unknown",
            "export the series again with its rescale tags; if its pixels are HU already: --set "
            "data.assume_hu=true",
            item.path,
        )
    return False


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
