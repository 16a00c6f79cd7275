"""One case from raw scan to tensors: the function that preprocessing runs in parallel.

A worker gets paths and settings and returns a small record; arrays never travel between processes. Whatever goes
wrong in one case becomes a finding of that case.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.artifacts import (
    TENSOR_SIZE,
    Workspace,
    canonical_hash,
    file_hash,
    safe_name,
    seen_files,
    write_json,
    write_tensor,
)
from ctseg.errors import SYSTEM_FAULTS, CaseError, Finding, IntegrityError, PipelineError, ResourceError
from ctseg.geometry import grids
from ctseg.geometry.boxes import box_shape, box_start, whole_box
from ctseg.geometry.distance_maps import coarse_maps
from ctseg.geometry.intensity import window
from ctseg.geometry.volume import Grid, Volume, canonical_axes, limit_threads
from ctseg.laterality import Sides, find_sides
from ctseg.processes import end_with_parent
from ctseg.scans.datasets.case import PRESENT, UNLABELLED, CaseRecord, LoadedCase
from ctseg.scans.datasets.load_case import load_case, source_hash, source_to_record
from ctseg.scans.formats import nifti
from ctseg.scans.guide_organs import GuideSource, load_guide, write_guide

PREPROCESS_VERSION = 3  # goes up whenever the same scan and settings would give other tensors
CROP_LOSS_WARNING = 0.01
RESOLUTION_WARNING = 0.5  # a structure that keeps less than this share of its volume is too thin for the grid


@dataclasses.dataclass(frozen=True)
class CaseJob:
    """What a worker needs for one case. plan None: only read and measure (the grid depends on all cases).

    previous: the case's entry in the manifest of an earlier run, reused when nothing changed. split: of the case, for the roi grid,
    where only training may know where the structures lie. keep: note the case as finished, for a run that goes on.
    """

    record: CaseRecord
    root: Path
    workspace: Workspace
    structures: tuple[str, ...]
    window_hu: tuple[float, float]
    margin_mm: float
    plan: grids.GridPlan | None = None
    previous: dict[str, Any] | None = None
    split: str | None = None
    guide: GuideSource | None = None
    crop: str = "body"
    sides: Sides | None = None
    keep: bool = True

    def case_key(self, survey_key: str, plan: grids.GridPlan, split: str | None) -> str:
        """The idempotence key: equal keys mean equal tensors."""
        guide = self.guide.digest(self.record.case_id) if self.guide is not None else None
        return canonical_hash(
            [
                survey_key,
                dataclasses.asdict(plan),
                self.window_hu,
                TENSOR_SIZE,
                split if plan.kind == "roi" else None,
                guide,
            ]
        )


@dataclasses.dataclass(frozen=True)
class CaseOutcome:
    """What came of one case. entry: its manifest entry (without split), None when it was refused.

    reused: the entry is the earlier run's and all its files are there unchanged. trace: for the log file.
    """

    case_id: str
    entry: dict[str, Any] | None
    findings: tuple[Finding, ...]
    reused: bool = False
    trace: str | None = None


def start_worker() -> None:
    """Prepare a worker: one thread each, it ends with its parent, and Ctrl-C is the parent's business."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    limit_threads(1)


def prepare_case(job: CaseJob) -> CaseOutcome:
    """Read one case and, when the grid is known, write its tensors and reference. Raises only ResourceError."""
    case_id = job.record.case_id
    try:
        return _prepare(job)
    except ResourceError:
        raise
    except PipelineError as error:  # a CaseError, or a guide that cannot be used for this case
        return CaseOutcome(case_id, None, (Finding.from_error(error, case=case_id),))
    except MemoryError:
        finding = Finding(
            "ERROR",
            "TOO_LARGE",
            "the memory does not suffice for this scan",
            "use --workers 1 or a machine with more memory",
            case_id,
        )
        return CaseOutcome(case_id, None, (finding,), trace=traceback.format_exc())
    except Exception as error:  # the case boundary: one bad case never stops the run
        if isinstance(error, OSError) and error.errno in SYSTEM_FAULTS:
            return CaseOutcome(
                case_id,
                None,
                (Finding.from_error(ResourceError.from_os(error), case=case_id),),
                trace=traceback.format_exc(),
            )
        finding = Finding(
            "ERROR",
            "INTERNAL",
            f"unforeseen {type(error).__name__}",
            "please report it with logs/pipeline.log",
            case_id,
        )
        return CaseOutcome(case_id, None, (finding,), trace=traceback.format_exc())


def survey_until(job: CaseJob, *, deadline: float) -> CaseOutcome:
    """`prepare_case` that writes nothing, before a point in time (seconds since the epoch); after it neither an entry nor a finding."""
    if time.time() >= deadline:
        return CaseOutcome(job.record.case_id, None, ())
    return prepare_case(dataclasses.replace(job, keep=False))


def _prepare(job: CaseJob) -> CaseOutcome:
    source = source_to_record(job.record, job.root)
    digest = source_hash(job.record)
    content = {
        name: value for name, value in source.items() if name != "split"
    }  # the split changes no tensor
    survey_key = canonical_hash(
        [
            PREPROCESS_VERSION,
            digest,
            content,
            job.structures,
            job.margin_mm,
            job.crop,
            job.guide.organs if job.guide is not None and job.guide.kind == "labels" else (),
            *_declared_sides(job),
        ]
    )
    previous = job.previous
    if previous is not None and previous.get("survey_key") == survey_key:
        entry = {**previous, "source": source}
        intact = files_intact(job.workspace, previous)
        if job.plan is None or (intact and previous["key"] == job.case_key(survey_key, job.plan, job.split)):
            return CaseOutcome(job.record.case_id, entry, tuple(findings_of(entry)), reused=intact)
    loaded, organs = _load(job)
    entry, box, findings = _survey(job, loaded, source)
    entry |= {"source_hash": digest, "survey_key": survey_key}
    if job.plan is not None:
        findings = findings + _write(job, loaded, box, entry)
        if job.guide is not None:
            findings += _write_guide(job, job.guide, loaded, organs, entry)
        entry["key"] = job.case_key(survey_key, job.plan, job.split)
    entry["findings"] = [finding.record() for finding in findings]
    if job.keep:
        write_json(job.workspace.finished / f"{safe_name(job.record.case_id)}.json", entry)
    return CaseOutcome(job.record.case_id, entry, tuple(findings))


def _declared_sides(job: CaseJob) -> list[Any]:
    """The mirror pairs, where they are not what the structures' names alone say: findings about a case depend on them."""
    pairs = [] if job.sides is None else job.sides.indices(job.structures)
    return (
        [] if sorted(pairs) == sorted(find_sides(job.structures).indices(job.structures)) else [sorted(pairs)]
    )


def _load(job: CaseJob) -> tuple[LoadedCase, Volume | None]:
    """(the case with the wanted structures, label map of the guide organs when the case's own labels are the guide)."""
    organs = job.guide.organs if job.guide is not None and job.guide.kind == "labels" else ()
    # Organs first: where masks overlap the later one wins, and the target must not lose a voxel to its guide.
    loaded = load_case(job.record, (*organs, *job.structures), root=job.root, sides=job.sides)
    if not organs or loaded.label is None:
        return loaded, None
    array, count = loaded.label.array, np.uint8(len(organs))
    label = Volume(np.where(array > count, array - count, 0).astype(np.uint8), loaded.label.affine)
    guide = Volume(np.where(array <= count, array, 0).astype(np.uint8), loaded.label.affine)
    return dataclasses.replace(
        loaded, label=label, states={name: loaded.states[name] for name in job.structures}
    ), guide


def _write_guide(
    job: CaseJob, source: GuideSource, loaded: LoadedCase, organs: Volume | None, entry: dict[str, Any]
) -> list[Finding]:
    """Write the distances to the guide organs of a case and note the file in `entry`."""
    case_id = job.record.case_id
    if source.kind == "labels":
        found, findings = load_guide(source, case_id, loaded.image, organs, source.organs, job.structures)
    else:
        found, findings = load_guide(
            source, case_id, loaded.image, loaded.label, job.structures, job.structures
        )
    maps = coarse_maps(found.masks, Grid.from_record(entry["canvas"]))
    file = f"guides/{safe_name(case_id)}.npz"
    sha256 = write_guide(job.workspace.processed / file, maps.distance_mm, maps.presence, maps.stride)
    entry["guide"] = {
        "file": file,
        "sha256": sha256,
        "presence": dict(zip(source.organs, maps.presence.tolist())),
    }
    return findings


def files_intact(workspace: Workspace, entry: dict[str, Any]) -> bool:
    """Whether every file of a manifest entry is there with the hash written down."""
    files = [*seen_files(entry), entry.get("reference") or {}]
    try:
        return all(file_hash(workspace.processed / file["file"]) == file["sha256"] for file in files)
    except (OSError, KeyError, IntegrityError):
        return False


def findings_of(entry: dict[str, Any]) -> list[Finding]:
    """The findings that stand in a manifest entry."""
    names = {field.name for field in dataclasses.fields(Finding)}
    return [
        Finding(**{name: value for name, value in record.items() if name in names})
        for record in entry["findings"]
    ]


def _survey(
    job: CaseJob, loaded: LoadedCase, source: dict[str, Any]
) -> tuple[dict[str, Any], grids.Extent, list[Finding]]:
    """(what is known before the grid is, the box to keep, findings) of a case."""
    case_id = job.record.case_id
    if loaded.label is None or all(state == UNLABELLED for state in loaded.states.values()):
        raise CaseError(
            "LABEL_MISSING",
            "none of the wanted structures is annotated",
            "add labels, remove the case, or choose other --structures",
            case=case_id,
        )
    findings = list(loaded.findings)
    body = grids.kept_extent(loaded.image, job.crop, job.margin_mm)
    box = grids.extent_with(body, loaded.label)
    wider = max(
        np.abs(np.subtract(box.low_mm, body.low_mm)).max(),
        np.abs(np.subtract(box.high_mm, body.high_mm)).max(),
    )
    if wider > 1e-3:
        findings.append(
            Finding(
                "WARN",
                "BOX_EXTENDED",
                f"labelled voxels lie up to {wider:.0f} mm outside the {job.crop} found in the image; the box was widened to hold them",
                "check that image and label belong together",
                case_id,
            )
        )
    counts = grids.count_voxels(loaded.label.array)
    entry: dict[str, Any] = {
        "case_id": case_id,
        "patient_id": job.record.patient_id,
        "split": None,
        "states": dict(loaded.states),
        "source": source,
        "source_hash": "",
        "content_hash": content_hash(loaded.image),
        "survey_key": "",
        "key": "",
        "scan": loaded.image.grid.record(),
        "body_box": {"low_mm": list(box.low_mm), "high_mm": list(box.high_mm)},
        "canvas": None,
        "tensors": [],
        "reference": None,
        "voxels": {
            name: counts.get(number, 0)
            for number, name in enumerate(job.structures, 1)
            if loaded.states[name] != UNLABELLED
        },
        "lost_fraction": {},
        "findings": [],
    }
    return entry, box, findings


def _write(job: CaseJob, loaded: LoadedCase, box: grids.Extent, entry: dict[str, Any]) -> list[Finding]:
    """Write tensors and reference of a case and note them in `entry`; what the grid costs comes back as findings."""
    label = loaded.label
    if job.plan is None or label is None:
        raise ValueError("tensors need a grid and labels")
    name = safe_name(job.record.case_id)
    canvas, canvas_label, tensors = _write_tensors(
        job, loaded.image, label, job.plan.canvas(loaded.image.grid, box), name
    )
    if job.plan.kind == "roi":
        whole, _, (tensor,) = _write_tensors(
            job, loaded.image, label, grids.whole_grid(loaded.image.grid, box), f"{name}_whole"
        )
        entry["locator"] = {**tensor, "canvas": whole.record()}
    file = f"references/{name}.nii.gz"
    nifti.write_label(job.workspace.processed / file, label, names=dict(enumerate(job.structures, start=1)))
    lost = grids.lost_fractions(label, canvas)
    entry["canvas"], entry["tensors"] = canvas.record(), tensors
    entry["reference"] = {"file": file, "sha256": file_hash(job.workspace.processed / file)}
    entry["lost_fraction"] = {
        name: round(lost[number], 6)
        for number, name in enumerate(job.structures, 1)
        if loaded.states[name] == PRESENT
    }
    return _grid_findings(job, label, canvas_label, entry)


def _write_tensors(
    job: CaseJob, image: Volume, label: Volume, canvas: Grid, name: str
) -> tuple[Grid, Volume, list[dict[str, Any]]]:
    """(canvas, label on it, records of the tensors written) of a case on one canvas."""
    scaled = window(grids.image_on_canvas(image, canvas).array, job.window_hu).astype(np.float16)
    canvas_label = grids.label_on_canvas(label, canvas)
    box = whole_box(canvas.shape)
    if job.plan is not None and job.plan.kind == "roi" and job.split == "train":
        box = grids.labelled_region(canvas_label)
    tensors = []
    for number, offset in enumerate(
        grids.tensor_origins(box_shape(box), job.plan.overlap if job.plan is not None else 0.0)
    ):
        origin = [first + more for first, more in zip(box_start(box), offset)]
        part = tuple(slice(first, first + TENSOR_SIZE) for first in origin)
        file = f"tensors/{name}_{number:02d}.npz"
        sha256 = write_tensor(
            job.workspace.processed / file, image=scaled[part], label=canvas_label.array[part]
        )
        tensors.append({"file": file, "origin": origin, "sha256": sha256})
    return canvas, canvas_label, tensors


def _grid_findings(job: CaseJob, label: Volume, canvas_label: Volume, entry: dict[str, Any]) -> list[Finding]:
    """Warnings for structures that the grid cuts off or is too coarse for."""
    case_id, findings = job.record.case_id, []
    voxel_ml, canvas_voxel_ml = (float(np.prod(volume.spacing_mm)) / 1000 for volume in (label, canvas_label))
    kept = grids.count_voxels(canvas_label.array)
    for number, name in enumerate(job.structures, start=1):
        lost = entry["lost_fraction"].get(name)
        if lost is None:
            continue
        before, after = entry["voxels"][name] * voxel_ml, kept.get(number, 0) * canvas_voxel_ml
        if lost > CROP_LOSS_WARNING:
            findings.append(
                Finding(
                    "WARN",
                    "CROP_LOSS",
                    f"{100 * lost:.1f} % of {name} lies outside the tensors",
                    "use --set data.grid=whole, or check the label",
                    case_id,
                )
            )
        elif after < RESOLUTION_WARNING * before:
            findings.append(
                Finding(
                    "WARN",
                    "RESOLUTION_LOSS",
                    f"{name} has {before:.2f} mL in the scan and {after:.2f} mL in the tensors: it is too thin for this grid",
                    "use --set data.grid=windows with a finer data.spacing_mm",
                    case_id,
                )
            )
    return findings


def content_hash(image: Volume) -> str:
    """sha256 of the voxels in canonical order, rounded to whole HU: equal for one scan in two file formats."""
    order, flips = canonical_axes(image.affine)
    array = np.transpose(image.array, order)
    array = np.flip(array, tuple(axis for axis, flip in enumerate(flips) if flip))
    digest = hashlib.sha256(repr(array.shape).encode())
    for plane in array:
        digest.update(np.clip(np.rint(plane), -32768, 32767).astype("<i2").tobytes())
    return digest.hexdigest()


def canonical_spacing(entry: dict[str, Any]) -> tuple[float, float, float]:
    """Voxel size of a surveyed case in mm along canonical D, H, W."""
    return grids.canonical_grid(Grid.from_record(entry["scan"])).spacing_mm


def box_of(entry: dict[str, Any]) -> grids.Extent:
    """The box to keep of a surveyed case."""
    (d0, h0, w0), (d1, h1, w1) = entry["body_box"]["low_mm"], entry["body_box"]["high_mm"]
    return grids.Extent((d0, h0, w0), (d1, h1, w1))
