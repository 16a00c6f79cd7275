"""One case as the pipeline uses it: image in HU, label on exactly the image's grid, a state for each
structure.

This is the case boundary: whatever goes wrong below becomes a CaseError with the case id and the file
relative to the data folder. Nothing here prints, and no text from a scan's header reaches a message.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.datasets.case import (
    ABSENT,
    IGNORED,
    PRESENT,
    UNLABELLED,
    CaseRecord,
    ImageSource,
    LabelSource,
    LoadedCase,
)
from ctseg.datasets.masks import Naming, label_map, mask_files
from ctseg.errors import CaseError, Finding, PipelineError, UsageError, listed
from ctseg.geometry.boxes import Box, label_boxes
from ctseg.geometry.volume import Volume
from ctseg.laterality import Sides, find_sides
from ctseg.scans.formats import volume_files
from ctseg.scans.formats.regular_files import refuse

IMPLAUSIBLE_FRACTION = 0.6  # of the body; labels that cover more are a mistake (or a crop: only a warning)
_BODY_HU = -300.0
# why a DICOM file gives no mask of a structure it names
_LEFT_OUT = ("LABEL_GAPS", "RT_NO_VOXEL", "RT_WRONG_SERIES", "LABEL_MISSING")


@dataclasses.dataclass
class _Labels:
    """What a label source says. array: (D, H, W) uint8, i+1 = i-th requested structure, or IGNORED; nameable:
    every structure the source speaks about; empty: no voxel of any structure; empty_masks: the requested ones
    whose own mask is empty."""

    array: np.ndarray
    nameable: frozenset[str]
    empty: bool
    findings: list[Finding]
    empty_masks: Sequence[str] = ()


def load_case(
    record: CaseRecord, structures: Sequence[str], *, root: Path, sides: Sides | None = None
) -> LoadedCase:
    """Read and check one case.

    structures: the names that get the ids 1, 2, ... in the label. root: data folder, for messages only.
    sides: what is left and right; from the names alone when None.
    States: present = annotated and found, absent = annotated and none found, unlabelled = nobody looked.
    Voxels of structures that were not asked for are background. Where masks overlap, the later one in
    `structures` wins (OpenKBP: the challenge's own order) and a warning counts the voxels.
    Raises CaseError for a case that cannot be used, READ_FAILED for anything unforeseen.
    """
    if len(structures) >= IGNORED:
        raise UsageError(
            "BAD_VALUE",
            f"{len(structures)} structures, at most {IGNORED - 1} fit into a label map",
            "ask for fewer structures",
        )
    with _Boundary(record, root) as boundary:
        image, findings = load_image(record.image)
        label, states = None, dict.fromkeys(structures, UNLABELLED)
        if record.labels is not None:
            labels = _read_labels(record, record.labels, structures, image)
            label = Volume(labels.array, image.affine)
            states, notes = _states(record, record.labels, structures, labels)
            findings += (
                labels.findings
                + notes
                + _check_sides(label, structures, sides or find_sides(structures))
                + _check_amount(label, image, record.labels)
            )
    return LoadedCase(
        record, image, label, states, tuple(boundary.localised(finding) for finding in findings)
    )


def load_image(source: ImageSource) -> tuple[Volume, list[Finding]]:
    """The CT of any supported format, checked, in HU."""
    if source.format in volume_files.FORMATS:
        return volume_files.read_image(source.path)
    if source.format == "dicom":
        from ctseg.scans.dicom import dicom_series

        return dicom_series.read_series(source.path, source.series_uid, assume_hu=source.assume_hu)
    if source.format == "openkbp_csv":
        from ctseg.scans.formats import openkbp_csv

        return openkbp_csv.read_image(source.path)
    raise ValueError(f"unknown image format {source.format!r}")


# ---- labels -----------------------------------------------------------------------------------------------


def _read_labels(
    record: CaseRecord, source: LabelSource, structures: Sequence[str], image: Volume
) -> _Labels:
    if source.format == "map":
        return _read_map(record, source, structures, image)
    if source.format == "masks":
        return _read_masks(record, source, structures, image)
    if source.format in ("dicom_seg", "rtstruct"):
        return _read_dicom(record, source, structures, image)
    if source.format == "openkbp_csv":
        from ctseg.scans.formats import openkbp_csv

        volume, names, findings = openkbp_csv.read_label(_path(source))
        values = {number: name for number, name in openkbp_csv.STRUCTURES.items() if name in names}
        array, empty = _translate(volume.array, values, structures, None)
        found = set(np.unique(volume.array).tolist())
        return _Labels(
            array,
            frozenset(names),
            empty,
            findings,
            [name for value, name in values.items() if value not in found],
        )
    raise ValueError(f"unknown label format {source.format!r}")


def _path(source: LabelSource) -> Path:
    if source.path is None:
        raise ValueError(f"a label source of format {source.format!r} needs a path")
    return source.path


def _read_map(record: CaseRecord, source: LabelSource, structures: Sequence[str], image: Volume) -> _Labels:
    path, ignore = _path(source), source.ignore_value
    opened = label_map(path, Naming.of(source.values, ignore))
    stored = opened.on(image.grid, "image", path)
    array, empty = _translate(stored, source.values, structures, ignore)
    ignored = int(np.count_nonzero(array == IGNORED))
    if empty and (record.annotated is None or ignored):
        cause = "no voxel is labelled, and every patient has these structures"
        if ignored:
            cause = f"no voxel is labelled but {ignored} to be ignored"
        fix = "restore the labels, or take scan and labels out of the data set"
        raise refuse("LABEL_EMPTY", cause, fix, path)
    if ignored:
        cause = f"{ignored} voxels carry the ignore value {ignore}: they are left out of training and scores"
        opened.findings.append(Finding("NOTE", "LABEL_IGNORED", cause, file=str(path)))
    return _Labels(array, frozenset(source.values.values()), empty, opened.findings)


def _translate(
    stored: np.ndarray, values: dict[int, str], structures: Sequence[str], ignore: int | None
) -> tuple[np.ndarray, bool]:
    """(uint8 array with the ids of the requested structures and IGNORED, whether no structure at all is
    there).

    stored: int32, every value of which has a name, or is 0 or the ignore value.
    """
    if ignore is not None and ignore < 0:
        top = int(stored.max()) + 1
        stored, ignore = np.where(stored < 0, top, stored), top
    numbers = {name: index + 1 for index, name in enumerate(structures)}
    table = np.zeros(int(stored.max()) + 1, dtype=np.uint8)
    for value, name in values.items():
        if 0 < value < len(table) and value != ignore:
            table[value] = numbers.get(name, 0)
    found = np.bincount(stored.ravel(), minlength=len(table)) > 0
    found[0] = False
    if ignore is not None and 0 < ignore < len(table):
        table[ignore], found[ignore] = IGNORED, False
    return table[stored], not found.any()


def _read_masks(record: CaseRecord, source: LabelSource, structures: Sequence[str], image: Volume) -> _Labels:
    """One file per structure. A file that is not there means that nobody looked; an empty one, that it is
    absent."""
    there = {name: path for name, path in source.masks.items() if os.path.lexists(path)}
    if not there:
        cause, fix = (
            f"none of the {len(source.masks)} mask files is there",
            "restore the masks or remove the case",
        )
        raise refuse("LABEL_MISSING", cause, fix, next(iter(source.masks.values()), "-"))
    opened = mask_files(there, strict=True)
    masks = (
        (name, opened.on(image.grid, "image", there[name], name)) for name in structures if name in there
    )
    return _painted(masks, structures, image, frozenset(there), opened.findings, "-")


def _painted(
    masks: Iterable[tuple[str, np.ndarray]],
    structures: Sequence[str],
    image: Volume,
    nameable: frozenset[str],
    findings: list[Finding],
    file: str,
) -> _Labels:
    """One map of masks (bool) by name; where they overlap the later one counts."""
    array, overlap = (np.zeros(image.array.shape, dtype=kind) for kind in (np.uint8, bool))
    empty = []
    for name, mask in masks:
        overlap |= mask & (array > 0)
        array[mask] = structures.index(name) + 1
        empty += [name] if not mask.any() else []
    if overlap.any():
        cause = (
            f"{np.count_nonzero(overlap)} voxels belong to more than one structure; the later one "
            "in the list of structures counts"
        )
        fix = "nothing to do if that order is meant"
        findings = [*findings, Finding("WARN", "LABEL_OVERLAP", cause, fix, file=file)]
    return _Labels(array, nameable, not array.any(), findings, empty)


def _read_dicom(record: CaseRecord, source: LabelSource, structures: Sequence[str], image: Volume) -> _Labels:
    from ctseg.scans.dicom import dicom_seg, rtstruct
    from ctseg.scans.formats import slice_gaps

    path = _path(source)
    folder = record.image.path if record.image.format == "dicom" else None
    in_file = {name: source.renamed.get(name, name) for name in structures}
    common: dict[str, Any] = {
        "names": in_file.values(),
        "series_uid": record.image.series_uid,
        "gaps": slice_gaps.FILL if source.fill_gaps else slice_gaps.LEAVE_OUT,
    }
    if source.format == "dicom_seg":
        threshold = source.fractional_threshold
        masks, findings = dicom_seg.read_segments(
            path, image, folder, fractional_threshold=threshold, **common
        )
    else:
        masks, findings = rtstruct.read_structures(path, image, folder, **common)
    # A segment without frames was looked for and not found; an ROI without contours is a line of a template
    # that nobody drew.
    if not masks and (left_out := [finding for finding in findings if finding.code in _LEFT_OUT]):
        raise refuse(left_out[0].code, left_out[0].cause, left_out[0].fix, path)
    annotated = frozenset(masks) | {name for name, called in in_file.items() if called in masks}
    drawn = ((name, masks[called]) for name, called in in_file.items() if called in masks)
    labels = _painted(drawn, structures, image, annotated, findings, str(path))
    absent = [name for name in structures if name in annotated and in_file[name] not in masks]
    return dataclasses.replace(labels, empty_masks=[*labels.empty_masks, *absent])


# ---- states and plausibility ------------------------------------------------------------------------------


def _states(
    record: CaseRecord, source: LabelSource, structures: Sequence[str], labels: _Labels
) -> tuple[dict[str, str], list[Finding]]:
    annotated = labels.nameable if record.annotated is None else record.annotated & labels.nameable
    counts = np.bincount(labels.array.ravel(), minlength=len(structures) + 1)
    states, findings = {}, []
    for number, name in enumerate(structures, start=1):
        if name in annotated:
            states[name] = PRESENT if counts[number] else ABSENT
            continue
        states[name] = UNLABELLED
        if counts[number]:
            # Voxels of a structure that is not annotated would be scored as another structure's background.
            labels.array[labels.array == number] = 0
            findings.append(
                Finding(
                    "WARN",
                    "LABEL_UNEXPECTED",
                    f"{name} has {counts[number]} voxels but is said not to be annotated: they count "
                    "as background",
                    "correct the list of annotated structures",
                )
            )
    findings += _missing_finding(record, source, states, labels)
    absent = [
        name
        for name, state in states.items()
        if state == ABSENT and (labels.empty or name in labels.empty_masks)
    ]
    if absent:  # without a voxel to show for it
        severity = "WARN" if labels.empty else "NOTE"
        cause = f"no voxel of {listed(absent)} is labelled: annotated, so it counts as absent"
        fix, file = (
            "restore the labels if the patient has it",
            str(source.masks.get(absent[0]) or source.path),
        )
        findings.append(Finding(severity, "LABEL_EMPTY", cause, fix, file=file))
    return states, findings


def _missing_finding(
    record: CaseRecord, source: LabelSource, states: dict[str, str], labels: _Labels
) -> list[Finding]:
    """A warning for structures that the labels should hold: those said to be annotated, or that a file of
    their own would hold."""
    told = " ".join(finding.cause for finding in labels.findings if finding.code in _LEFT_OUT)
    own_files = source.format in ("masks", "dicom_seg", "rtstruct")
    names = [
        name
        for name, state in states.items()
        if state == UNLABELLED
        and name not in labels.nameable
        and f"'{name}'" not in told
        and (own_files or name in (record.annotated or ()))
    ]
    if not names:
        return []
    cause = f"the labels do not hold {listed(names)}: not annotated here, so left out of loss and scores"
    file = source.masks.get(names[0]) or source.path or next(iter(source.masks.values())).parent
    return [Finding("WARN", "LABEL_MISSING", cause, "add the labels if somebody drew them", file=str(file))]


def _check_sides(label: Volume, structures: Sequence[str], sides: Sides) -> list[Finding]:
    """A warning for each mirror pair whose left structure does not lie on the patient's left (greater x)."""
    pairs = sides.indices(structures)
    boxes = label_boxes(label.array) if pairs else {}
    findings = []
    for left, right in pairs:
        if left + 1 not in boxes or right + 1 not in boxes:
            continue
        left_x, right_x = (_centroid_x(label, boxes[index + 1], index + 1) for index in (left, right))
        distance = left_x - right_x
        if distance <= 0:
            findings.append(
                Finding(
                    "WARN",
                    "SIDE_SWAP",
                    f"{structures[left]} lies {-distance:.0f} mm to the patient's right of "
                    f"{structures[right]}",
                    "check the names and the orientation of the scan",
                )
            )
    return findings


def _centroid_x(label: Volume, box: Box, number: int) -> float:
    """LPS x of a structure's centroid in mm."""
    indices = np.nonzero(label.array[box] == number)
    centre = [float(i.mean()) + s.start for i, s in zip(indices, box)]
    return float(label.affine[0] @ np.array([*centre, 1.0]))


def _check_amount(label: Volume, image: Volume, source: LabelSource) -> list[Finding]:
    """A warning where most of the body's tissue is labelled. Air in labels (lungs, bowel) does not count."""
    tissue = image.array > _BODY_HU
    body, labelled = np.count_nonzero(tissue), np.count_nonzero(label.array[tissue] % IGNORED)
    if labelled <= IMPLAUSIBLE_FRACTION * body:
        return []
    return [
        Finding(
            "WARN",
            "LABEL_IMPLAUSIBLE",
            f"the labels cover {labelled} of the body's {body} voxels of tissue",
            "check that the label belongs to this scan",
            file=str(source.path or "-"),
        )
    ]


# ---- the case boundary ------------------------------------------------------------------------------------


class _Boundary:
    """Gives errors and findings their case id and a path below the data folder."""

    def __init__(self, record: CaseRecord, root: Path):
        self.record, self.root = record, Path(root)

    def __enter__(self) -> _Boundary:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        case_id, scan = self.record.case_id, self.relative(str(self.record.image.path))
        if isinstance(error, CaseError):
            file = self.relative(error.file)
            raise CaseError(error.code, error.cause, error.fix, case=case_id, file=file).with_traceback(
                trace
            ) from None
        if isinstance(error, MemoryError):
            cause, fix = "not enough memory for this scan", "close other programs, or crop the scan"
            raise CaseError("TOO_LARGE", cause, fix, case=case_id, file=scan) from None
        if isinstance(error, Exception) and not isinstance(error, PipelineError):
            # Only the type: the text of a foreign exception may quote the patient's data.
            cause = f"reading stopped with {type(error).__name__}"
            fix = "check the files of this case; the log file has the details"
            raise CaseError("READ_FAILED", cause, fix, case=case_id, file=scan) from error

    def relative(self, file: str) -> str:
        """`file` below the data folder, or its name alone."""
        if file == "-":
            return file
        try:
            return Path(file).absolute().relative_to(self.root.absolute()).as_posix()
        except ValueError:
            return Path(file).name

    def localised(self, finding: Finding) -> Finding:
        """The finding with case id and relative path."""
        return dataclasses.replace(finding, case=self.record.case_id, file=self.relative(finding.file))
