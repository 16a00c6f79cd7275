"""One case as the pipeline uses it: image in HU, label on exactly the image's grid, a state for each
structure.

This is the case boundary: whatever goes wrong below becomes a CaseError with the case id and the file
relative to the data folder. Nothing here prints, and no text from a scan's header reaches a message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.datasets import listing
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
from ctseg.geometry.boxes import label_boxes
from ctseg.geometry.volume import Volume
from ctseg.laterality import Sides, find_sides
from ctseg.scans.dicom import dicom_seg, dicom_series, rtstruct
from ctseg.scans.formats import openkbp_csv, slice_gaps, volume_files
from ctseg.scans.formats.regular_files import refuse

IMPLAUSIBLE_FRACTION = 0.6  # of the body; labels that cover more are a mistake (or a crop: only a warning)
_BODY_HU = -300.0
OWN_MASKS = ("masks", "dicom_seg", "rtstruct")  # label formats in which each structure has its own mask
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
    with _boundary(record, root):
        image, findings = load_image(record.image)
        label, states = None, dict.fromkeys(structures, UNLABELLED)
        if record.labels is not None:
            read = _from_masks if record.labels.format in OWN_MASKS else _from_map
            labels = read(record, record.labels, structures, image)
            label = Volume(labels.array, image.affine)
            states, notes = _states(record, record.labels, structures, labels)
            findings += labels.findings + notes
            findings += _check_sides(label, structures, sides or find_sides(structures))
            tissue = image.array > _BODY_HU  # air in labels (lungs, bowel) does not count
            body, labelled = np.count_nonzero(tissue), np.count_nonzero(label.array[tissue] % IGNORED)
            if labelled > IMPLAUSIBLE_FRACTION * body:
                cause = f"the labels cover {labelled} of the body's {body} voxels of tissue"
                fix, file = "check that the label belongs to this scan", str(record.labels.path or "-")
                findings.append(Finding("WARN", "LABEL_IMPLAUSIBLE", cause, fix, file=file))
    told = (finding.at(record.case_id, listing.told(finding.file, root)) for finding in findings)
    return LoadedCase(record, image, label, states, tuple(told))


@contextlib.contextmanager
def _boundary(record: CaseRecord, root: Path) -> Iterator[None]:
    """A place where whatever goes wrong is a CaseError of this case that names its file below the root."""
    place: dict[str, Any] = {"case": record.case_id, "file": listing.told(record.image.path, root)}
    try:
        yield
    except CaseError as error:
        error.case, error.file = record.case_id, listing.told(error.file, root)
        raise
    except PipelineError:
        raise
    except MemoryError:
        cause, fix = "not enough memory for this scan", "close other programs, or crop the scan"
        raise CaseError("TOO_LARGE", cause, fix, **place) from None
    except Exception as error:  # only its type: the text of a foreign exception may quote the patient's data
        cause = f"reading stopped with {type(error).__name__}"
        fix = "check the files of this case; the log file has the details"
        raise CaseError("READ_FAILED", cause, fix, **place) from error


def load_image(source: ImageSource) -> tuple[Volume, list[Finding]]:
    """The CT of any supported format, checked, in HU."""
    if source.format == "dicom":
        return dicom_series.read_series(source.path, source.series_uid, assume_hu=source.assume_hu)
    if source.format == "openkbp_csv":
        return openkbp_csv.read_image(source.path)
    return volume_files.read_image(source.path)


# ---- labels -----------------------------------------------------------------------------------------------


def _path(source: LabelSource) -> Path:
    if source.path is None:
        raise ValueError(f"a label source of format {source.format!r} needs a path")
    return source.path


def _from_map(record: CaseRecord, source: LabelSource, structures: Sequence[str], image: Volume) -> _Labels:
    """The labels in one array of numbers: a label map, or the lists of voxels of OpenKBP."""
    path, values, ignore = _path(source), source.values, source.ignore_value
    if source.format == "openkbp_csv":
        volume, drawn, findings = openkbp_csv.read_label(path)
        stored = volume.array
        values = {number: name for number, name in openkbp_csv.STRUCTURES.items() if name in drawn}
    else:
        opened = label_map(path, Naming.of(values, ignore))
        stored, findings = opened.on(image.grid, "image", path), opened.findings
    # every value in it has a name, or is 0 or the ignore value
    counts = np.bincount(stored.ravel())
    table = np.zeros(len(counts), dtype=np.uint8)
    for value, name in values.items():
        if 0 < value < len(table) and name in structures:
            table[value] = structures.index(name) + 1
    counts[0], ignored = 0, 0
    if ignore is not None and ignore < len(table):
        ignored, counts[ignore], table[ignore] = int(counts[ignore]), 0, IGNORED
    empty, empty_masks = not counts.any(), []
    if source.format == "openkbp_csv":
        empty_masks = [name for value, name in values.items() if value >= len(counts) or not counts[value]]
    elif empty and (record.annotated is None or ignored):
        cause = "no voxel is labelled, and every patient has these structures"
        if ignored:
            cause = f"no voxel is labelled but {ignored} to be ignored"
        fix = "restore the labels, or take scan and labels out of the data set"
        raise refuse("LABEL_EMPTY", cause, fix, path)
    if ignored:
        cause = f"{ignored} voxels carry the ignore value {ignore}: they are left out of training and scores"
        findings.append(Finding("NOTE", "LABEL_IGNORED", cause, file=str(path)))
    return _Labels(table[stored], frozenset(values.values()), empty, findings, empty_masks)


def _from_masks(record: CaseRecord, source: LabelSource, structures: Sequence[str], image: Volume) -> _Labels:
    """The labels in masks of their own, painted into one map: where they overlap the later one counts.

    Of files of one structure each, one that is not there means that nobody looked; an empty one, that it is
    absent.
    """
    if source.format == "masks":
        there = {name: path for name, path in source.masks.items() if os.path.lexists(path)}
        if not there:
            cause = f"none of the {len(source.masks)} mask files is there"
            fix = "restore the masks or remove the case"
            raise refuse("LABEL_MISSING", cause, fix, next(iter(source.masks.values()), "-"))
        opened, file = mask_files(there, strict=True), "-"
        nameable, findings = frozenset(there), opened.findings
        masks = (
            (name, opened.on(image.grid, "image", there[name], name)) for name in structures if name in there
        )
    else:
        path = _path(source)
        file, in_file = str(path), {name: source.renamed.get(name, name) for name in structures}
        read: Any = rtstruct.read_structures
        if source.format == "dicom_seg":
            threshold = source.fractional_threshold
            read = functools.partial(dicom_seg.read_segments, fractional_threshold=threshold)
        found, findings = read(
            path,
            image,
            record.image.path if record.image.format == "dicom" else None,
            names=in_file.values(),
            series_uid=record.image.series_uid,
            gaps=slice_gaps.FILL if source.fill_gaps else slice_gaps.LEAVE_OUT,
        )
        # A segment without frames was looked for and not found; an ROI without contours is a line of a
        # template that nobody drew.
        if not found and (left_out := [finding for finding in findings if finding.code in _LEFT_OUT]):
            raise refuse(left_out[0].code, left_out[0].cause, left_out[0].fix, path)
        nameable = frozenset(found) | {name for name, called in in_file.items() if called in found}
        masks = ((name, found[called]) for name, called in in_file.items() if called in found)
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
        findings.append(Finding("WARN", "LABEL_OVERLAP", cause, fix, file=file))
    return _Labels(array, nameable, not array.any(), findings, empty)


# ---- states and plausibility ------------------------------------------------------------------------------


def _states(
    record: CaseRecord, source: LabelSource, structures: Sequence[str], labels: _Labels
) -> tuple[dict[str, str], list[Finding]]:
    """The state of each structure, and warnings about those that the labels should hold: said to be
    annotated, or in a file of their own.
    """
    annotated = labels.nameable if record.annotated is None else record.annotated & labels.nameable
    counts = np.bincount(labels.array.ravel(), minlength=len(structures) + 1)
    states, findings = {}, []
    for number, name in enumerate(structures, start=1):
        states[name] = UNLABELLED
        if name in annotated:
            states[name] = PRESENT if counts[number] else ABSENT
        elif counts[number]:
            # Voxels of a structure that is not annotated would be scored as another structure's background.
            labels.array[labels.array == number] = 0
            cause = f"{name} has {counts[number]} voxels but is said not to be annotated: "
            cause += "they count as background"
            fix = "correct the list of annotated structures"
            findings.append(Finding("WARN", "LABEL_UNEXPECTED", cause, fix))
    told = " ".join(finding.cause for finding in labels.findings if finding.code in _LEFT_OUT)
    missing = [
        name
        for name in structures
        if name not in labels.nameable
        and f"'{name}'" not in told
        and (source.format in OWN_MASKS or name in (record.annotated or ()))
    ]
    if missing:
        cause = (
            f"the labels do not hold {listed(missing)}: not annotated here, so left out of loss and scores"
        )
        fix, place = "add the labels if somebody drew them", source.masks.get(missing[0]) or source.path
        place = place or next(iter(source.masks.values())).parent
        findings.append(Finding("WARN", "LABEL_MISSING", cause, fix, file=str(place)))
    absent = [
        name
        for name, state in states.items()
        if state == ABSENT and (labels.empty or name in labels.empty_masks)
    ]
    if absent:  # without a voxel to show for it
        severity = "WARN" if labels.empty else "NOTE"
        cause = f"no voxel of {listed(absent)} is labelled: annotated, so it counts as absent"
        fix, file = "restore the labels if the patient has it", source.masks.get(absent[0]) or source.path
        findings.append(Finding(severity, "LABEL_EMPTY", cause, fix, file=str(file)))
    return states, findings


def _check_sides(label: Volume, structures: Sequence[str], sides: Sides) -> list[Finding]:
    """A warning for each mirror pair whose left structure does not lie on the patient's left (greater x)."""
    pairs, findings = sides.indices(structures), []
    boxes = label_boxes(label.array) if pairs else {}
    for left, right in pairs:
        centres = []  # LPS x in mm
        for number in (left + 1, right + 1):
            if number in boxes:
                part = label.crop_to(boxes[number])
                middle = np.argwhere(part.array == number).mean(axis=0)
                centres.append(float(part.affine[0] @ [*middle, 1.0]))
        if len(centres) == 2 and centres[0] <= centres[1]:
            apart = f"{centres[1] - centres[0]:.0f} mm to the patient's right of {structures[right]}"
            fix = "check the names and the orientation of the scan"
            findings.append(Finding("WARN", "SIDE_SWAP", f"{structures[left]} lies {apart}", fix))
    return findings
