"""One case from raw scan to tensors: the function that preprocessing runs in parallel.

A worker gets paths and settings and returns a small record; arrays never travel between processes. Whatever
goes wrong in one case becomes a finding of that case.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.artifacts import (
    TENSOR_SIZE,
    Workspace,
    canonical_hash,
    file_hash,
    safe_name,
    write_arrays,
    write_json,
)
from ctseg.config import DataSettings
from ctseg.datasets.case import IGNORED, PRESENT, UNLABELLED, CaseRecord, LoadedCase
from ctseg.datasets.case_sources import source_hash, source_to_record
from ctseg.datasets.load_case import load_case
from ctseg.errors import SYSTEM_FAULTS, CaseError, Finding, PipelineError, ResourceError
from ctseg.geometry import grids
from ctseg.geometry.boxes import box_shape, box_start, whole_box
from ctseg.geometry.distance_maps import coarse_maps
from ctseg.geometry.intensity import window
from ctseg.geometry.volume import Grid, Volume, canonical_axes
from ctseg.laterality import Sides, find_sides
from ctseg.manifest import Case, GuideFile, LocatorFile, StoredFile, TensorFile, to_record
from ctseg.preparation.guide_organs import GuideSource, load_guide, write_guide
from ctseg.scans.formats import nifti

PREPROCESS_VERSION = 4  # goes up whenever the same scan and settings would give other tensors
CROP_LOSS_WARNING = 0.01
TENSOR_BYTES = 3 * TENSOR_SIZE**3  # float16 image + uint8 label
RESOLUTION_WARNING = 0.5  # a structure that keeps less than this share of its volume is too thin for the grid


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What all cases of a run share. root: the data folder. plan None: only read and measure (the grid
    depends on all cases).
    """

    root: Path
    workspace: Workspace
    structures: tuple[str, ...]
    data: DataSettings
    sides: Sides | None = None
    guide: GuideSource | None = None
    plan: grids.GridPlan | None = None

    @property
    def own_organs(self) -> tuple[str, ...]:
        """The guide organs that stand in the case's own labels."""
        return self.guide.organs if self.guide is not None and self.guide.kind == "labels" else ()


@dataclasses.dataclass(frozen=True)
class CaseJob:
    """What a worker needs for one case. previous: what an earlier run knows of it, reused when nothing
    changed.

    surveyed: what the first pass of this run found, with its split: on the roi grid only training may know
    where the structures lie. keep: note the case as finished, for a run that goes on.
    """

    record: CaseRecord
    recipe: Recipe
    previous: Case | None = None
    surveyed: Case | None = None
    keep: bool = True

    def key_of(self, case: Case, plan: grids.GridPlan) -> str:
        """The idempotence key: equal keys mean equal tensors."""
        guide = self.recipe.guide
        return canonical_hash(
            [
                case.survey_key,
                dataclasses.asdict(plan),
                self.recipe.data.window_hu,
                TENSOR_SIZE,
                case.split if plan.kind == "roi" else None,
                guide.digest(self.record.case_id) if guide is not None else None,
            ]
        )


@dataclasses.dataclass(frozen=True)
class CaseOutcome:
    """What came of one case. case: None when it was refused.

    reused: the case is the earlier run's and all its files are there unchanged. trace: for the log file.
    """

    case_id: str
    case: Case | None
    findings: tuple[Finding, ...]
    reused: bool = False
    trace: str | None = None


def prepare_case(job: CaseJob) -> CaseOutcome:
    """Read one case and, when the grid is known, write its tensors and reference. Raises ResourceError."""
    trace, case_id = None, job.record.case_id
    try:
        return _prepare(job)
    except ResourceError:
        raise
    except PipelineError as error:  # a CaseError, or a guide that cannot be used for this case
        fault = error
    except MemoryError:
        cause, fix = (
            "the memory does not suffice for this scan",
            "use --workers 1 or a machine with more memory",
        )
        fault = CaseError("TOO_LARGE", cause, fix)
    except Exception as error:  # the case boundary: one bad case never stops the run
        trace, cause = traceback.format_exc(), f"unforeseen {type(error).__name__}"
        fault = CaseError("INTERNAL", cause, "please report it with logs/pipeline.log")
        if isinstance(error, OSError) and error.errno in SYSTEM_FAULTS:
            fault = ResourceError.from_os(error)
    return CaseOutcome(case_id, None, (Finding.from_error(fault, case=case_id),), trace=trace)


def survey_until(job: CaseJob, *, deadline: float) -> CaseOutcome:
    """`prepare_case` that writes nothing, before a point in time (seconds since the epoch); after it neither
    case nor finding.
    """
    if time.time() >= deadline:
        return CaseOutcome(job.record.case_id, None, ())
    return prepare_case(dataclasses.replace(job, keep=False))


def after_death(job: CaseJob, outcome: CaseOutcome | None) -> CaseOutcome:
    """What came of a case whose worker was killed. outcome: of the second try, None where that was killed
    too.
    """
    case_id = job.record.case_id
    if outcome is None:
        cause = "the process that read this scan was killed twice (memory, or a fault in a library)"
        fix = "use --workers 1 or a machine with more memory; check the scan"
        return CaseOutcome(case_id, None, (Finding("ERROR", "WORKER_DIED", cause, fix, case_id),))
    cause = "a process died while this scan was worked on or waiting; the second try went well"
    note = Finding("WARN", "WORKER_DIED", cause, case=case_id)
    return dataclasses.replace(outcome, findings=(*outcome.findings, note))


def bytes_needed(jobs: Sequence[CaseJob]) -> float:
    """About how much disk the jobs of a run take."""
    size = 0
    for job in jobs:
        case, plan = job.surveyed, job.recipe.plan
        if case is None or plan is None or case.body_box is None:
            size += TENSOR_BYTES if job.previous is None else 0
        elif case.key != job.key_of(case, plan) or not all(
            (job.recipe.workspace.processed / file).exists() for file in case.files()
        ):
            tensors = grids.tensor_origins(plan.canvas(case.scan, case.body_box).shape)
            size += len(tensors) * TENSOR_BYTES + math.prod(case.scan.shape) // 20
    return 1.1 * size + 50e6 if size else 0


def _prepare(job: CaseJob) -> CaseOutcome:
    recipe, case, known = job.recipe, job.surveyed, {}
    if case is None:
        source, digest = source_to_record(job.record, recipe.root), source_hash(job.record)
        # Left and right count as they were declared: findings about a case depend on them.
        sides = recipe.sides or find_sides(recipe.structures)
        survey_key = canonical_hash(  # equal keys: the same is known of a case before its grid is
            [
                PREPROCESS_VERSION,
                digest,
                source | {"split": None},  # which changes no tensor
                recipe.structures,
                recipe.data.margin_mm,
                recipe.data.crop,
                recipe.own_organs,
                sorted(sides.indices(recipe.structures)),
            ]
        )
        known = {"source": source, "source_hash": digest, "survey_key": survey_key}
        if job.previous is not None and job.previous.survey_key == survey_key:
            case = dataclasses.replace(job.previous, source=source)
    if case is not None:
        intact = case.intact(recipe.workspace)
        if recipe.plan is None or (intact and case.key == job.key_of(case, recipe.plan)):
            return CaseOutcome(case.case_id, case, case.findings, reused=intact)
    loaded = load_with_organs(job)
    case = job.surveyed or survey(job, loaded, **known)
    if recipe.plan is not None:
        case = write_case(recipe, recipe.plan, loaded, case)
        if recipe.guide is not None:
            case = write_guide_of(recipe, recipe.guide, loaded, case)
        case = dataclasses.replace(case, key=job.key_of(case, recipe.plan))
    if job.keep:
        write_json(recipe.workspace.finished / f"{safe_name(case.case_id)}.json", to_record(case))
    return CaseOutcome(case.case_id, case, case.findings)


def load_with_organs(job: CaseJob) -> LoadedCase:
    """The case with the wanted structures, and with its guide organs when its own labels are the guide."""
    recipe, organs = job.recipe, job.recipe.own_organs
    # Organs first: where masks overlap the later one wins, and the target must not lose a voxel to its guide.
    loaded = load_case(job.record, (*organs, *recipe.structures), root=recipe.root, sides=recipe.sides)
    if not organs or loaded.label is None:
        return loaded
    stored, affine, values = loaded.label.array, loaded.label.affine, np.arange(256, dtype=np.uint8)
    target, guide = np.maximum(values, len(organs)) - np.uint8(len(organs)), values.copy()
    target[IGNORED], guide[len(organs) + 1 :] = IGNORED, 0  # a guide has no ignored voxels
    states = {name: loaded.states[name] for name in recipe.structures}
    label, organ_label = Volume(target[stored], affine), Volume(guide[stored], affine)
    return dataclasses.replace(loaded, label=label, organs=organ_label, states=states)


def survey(job: CaseJob, loaded: LoadedCase, **known: Any) -> Case:
    """What is known of a case before its grid is. known: its source and hashes. Raises CaseError
    LABEL_MISSING.
    """
    recipe, case_id = job.recipe, job.record.case_id
    label = loaded.annotated()
    findings = list(loaded.findings)
    body = grids.kept_extent(loaded.image, recipe.data.crop, recipe.data.margin_mm)
    box = grids.extent_with(body, without_ignored(label))
    wider = np.abs(np.subtract([box.low_mm, box.high_mm], [body.low_mm, body.high_mm])).max()
    if wider > 1e-3:
        cause = (
            f"labelled voxels lie up to {wider:.0f} mm outside the {recipe.data.crop} found in the image; "
            "the box was widened to hold them"
        )
        fix = "check that image and label belong together"
        findings.append(Finding("WARN", "BOX_EXTENDED", cause, fix, case_id))
    counts = grids.count_voxels(label.array)
    return Case(
        case_id,
        job.record.patient_id,
        dict(loaded.states),
        scan=loaded.image.grid,
        content_hash=content_hash(loaded.image),
        body_box=box,
        voxels={
            name: counts.get(number, 0)
            for number, name in enumerate(recipe.structures, start=1)
            if loaded.states[name] != UNLABELLED
        },
        ignored_voxels=counts.get(IGNORED, 0),
        findings=tuple(findings),
        **known,
    )


def without_ignored(label: Volume) -> Volume:
    """A label map in which ignored voxels are background."""
    return Volume(label.array % IGNORED, label.affine)


def write_case(recipe: Recipe, plan: grids.GridPlan, loaded: LoadedCase, case: Case) -> Case:
    """The case with its tensors and reference written, and with warnings for structures that the grid cuts
    off or is too coarse for.
    """
    if case.body_box is None:
        raise ValueError("tensors need a box")
    label, name, locator = loaded.annotated(), safe_name(case.case_id), None
    canvas = plan.canvas(case.scan, case.body_box)
    part_only = plan.kind == "roi" and case.split == "train"
    canvas_label, tensors = write_tensors(recipe, loaded.image, label, canvas, name, part_only=part_only)
    if plan.kind == "roi":
        whole = grids.whole_grid(case.scan, case.body_box)
        _, (tensor,) = write_tensors(recipe, loaded.image, label, whole, f"{name}_whole")
        locator = LocatorFile(tensor.file, tensor.sha256, tensor.origin, whole)
    path = recipe.workspace.references / f"{name}.nii.gz"
    numbers = dict(enumerate(recipe.structures, start=1))
    nifti.write_label(path, label, names=numbers | {IGNORED: "ignore"})
    lost, kept, findings = grids.lost_fractions(label, canvas), grids.count_voxels(canvas_label.array), []
    lost_fraction = {
        structure: round(lost[number], 6)
        for number, structure in numbers.items()
        if loaded.states[structure] == PRESENT
    }
    voxel_ml, canvas_voxel_ml = (float(np.prod(volume.spacing_mm)) / 1000 for volume in (label, canvas_label))
    for number, structure in numbers.items():
        if structure not in lost_fraction:
            continue
        before, after = case.voxels[structure] * voxel_ml, kept.get(number, 0) * canvas_voxel_ml
        if lost_fraction[structure] > CROP_LOSS_WARNING:
            cause = f"{100 * lost_fraction[structure]:.1f} % of {structure} lies outside the tensors"
            fix = "use --set data.grid=whole, or check the label"
            findings.append(Finding("WARN", "CROP_LOSS", cause, fix, case.case_id))
        elif after < RESOLUTION_WARNING * before:
            cause = (
                f"{structure} has {before:.2f} mL in the scan and {after:.2f} mL in the tensors: "
                "it is too thin for this grid"
            )
            fix = "use --set data.grid=windows with a finer data.spacing_mm"
            findings.append(Finding("WARN", "RESOLUTION_LOSS", cause, fix, case.case_id))
    return dataclasses.replace(
        case,
        canvas=canvas,
        tensors=tensors,
        locator=locator,
        reference=StoredFile(f"references/{path.name}", file_hash(path)),
        lost_fraction=lost_fraction,
        findings=tuple(dict.fromkeys((*case.findings, *findings))),
    )


def write_tensors(
    recipe: Recipe, image: Volume, label: Volume, canvas: Grid, name: str, *, part_only: bool = False
) -> tuple[Volume, tuple[TensorFile, ...]]:
    """(label on the canvas, the tensors written) of a case. part_only: only those around the structures."""
    scaled = window(grids.image_on_canvas(image, canvas).array, recipe.data.window_hu).astype(np.float16)
    canvas_label = grids.label_on_canvas(label, canvas)
    box = whole_box(canvas.shape)
    if part_only:
        box = grids.labelled_region(without_ignored(canvas_label))
    start = box_start(box)
    tensors = []
    for number, (d, h, w) in enumerate(grids.tensor_origins(box_shape(box))):
        origin = (start[0] + d, start[1] + h, start[2] + w)
        part = tuple(slice(first, first + TENSOR_SIZE) for first in origin)
        path = recipe.workspace.tensors / f"{name}_{number:02d}.npz"
        sha256 = write_arrays(path, {"image": scaled[part], "label": canvas_label.array[part]})
        tensors.append(TensorFile(f"tensors/{path.name}", sha256, origin))
    return canvas_label, tuple(tensors)


def write_guide_of(recipe: Recipe, source: GuideSource, loaded: LoadedCase, case: Case) -> Case:
    """The case with the distances to its guide organs written."""
    label, names = loaded.label, recipe.structures
    if recipe.own_organs:
        label, names = loaded.organs, source.organs
    found, findings = load_guide(source, case.case_id, loaded.image, label, names, recipe.structures)
    maps = coarse_maps(found.masks, case.on_canvas())
    path = recipe.workspace.guides / f"{safe_name(case.case_id)}.npz"
    sha256 = write_guide(path, maps.distance_mm, maps.presence, maps.stride)
    guide = GuideFile(f"guides/{path.name}", sha256, dict(zip(source.organs, maps.presence.tolist())))
    return dataclasses.replace(case, guide=guide, findings=tuple(dict.fromkeys((*case.findings, *findings))))


def content_hash(image: Volume) -> str:
    """sha256 of the voxels in canonical order, in whole HU: equal for one scan in two file formats."""
    order, flips = canonical_axes(image.affine)
    array = np.transpose(image.array, order)  # a view: a copy would take the memory of another scan
    array = np.flip(array, tuple(axis for axis, flip in enumerate(flips) if flip))
    digest = hashlib.sha256(repr(array.shape).encode())
    for plane in array:
        digest.update(np.clip(np.rint(plane), -32768, 32767).astype("<i2").tobytes())
    return digest.hexdigest()
