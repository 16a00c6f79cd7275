"""Stage 1: raw scans to 128^3 tensors.

Reads the data set given as --data (or writes a synthetic cohort into synthetic_data/ and reads that).
Writes processed_data/: tensors/, references/, splits.json, preprocess_report.json and, last, manifest.json.
Nothing is done twice: what is there for the same scan and settings is kept.

    python preprocessing.py --data ../my_scans --structures liver,spleen --set data.grid=windows
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg import artifacts, cli, config_file, laterality, structure_names
from ctseg.config import DataSettings, Settings, did_you_mean
from ctseg.errors import Finding, IntegrityError, PreconditionError, ResourceError, UsageError
from ctseg.laterality import Sides
from ctseg.processes import ordered_map

if TYPE_CHECKING:
    from ctseg.geometry.grids import GridPlan
    from ctseg.scans.case_to_tensors import CaseJob, CaseOutcome
    from ctseg.scans.datasets.case import CaseRecord, DataSet
    from ctseg.scans.guide_organs import GuideSource

LOG = logging.getLogger("ctseg")
REPORT_VERSION = 1
TENSOR_BYTES = 3 * artifacts.TENSOR_SIZE**3  # float16 image + uint8 label
NO_FAULT = {
    "LABEL_MISSING",
    "LABEL_EMPTY",
    "ARCHIVE_INPUT",
}  # a scan without labels, or an archive beside the scans, says nothing against the others
PREVIEW_S, PREVIEW_LINES = 60.0, 20  # how long --list reads scans, and how many lines of one kind it shows
SHOWN_PER_CODE = 3  # lines of one kind on the terminal; all of them stand in the report and the log


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run the stage; the exit code comes back."""
    return cli.run_stage("preprocessing.py", __doc__, run, argv)


def run(workspace: artifacts.Workspace, settings: Settings, options: cli.Options) -> int:
    """Make tensors of every case. Exit code 0, or 3 when cases were skipped (and that was not allowed)."""
    spacing_mm = check_options(workspace, settings, options)
    data_set = _open(workspace, settings.data, options)
    structures = _choose_structures(data_set, settings.data)
    guide, guide_splits = _guide_source(workspace, settings, options, data_set, structures)
    sides = _find_sides(data_set, settings.data, guide)
    LOG.info(
        "Data: %s, layout %s, %d cases; structures: %s",
        "synthetic cohort" if data_set.synthetic else workspace.relative(data_set.root),
        data_set.layout,
        len(data_set.cases),
        ", ".join(structures),
    )
    artifacts.sweep_temporaries(workspace.processed)
    previous = _previous_manifest(workspace)
    known = _known_entries(workspace, previous)
    findings = list(data_set.findings) + _stale_note(previous, settings, structures)
    workers = min(cli.worker_count(options), len(data_set.cases))
    if guide is not None and guide.kind == "totalsegmentator":
        workers = 1  # it is a large program that uses all cores itself

    jobs = _jobs(
        workspace,
        settings.data,
        data_set,
        structures,
        _known_plan(settings.data, spacing_mm),
        guide,
        known,
        sides,
    )
    _require_disk(workspace, len([job for job in jobs if job.previous is None]) * TENSOR_BYTES)
    outcomes = _in_parallel(jobs, workers, "reading scans")
    entries = {outcome.case_id: outcome.entry for outcome in outcomes if outcome.entry is not None}
    _stop_on_skips(workspace, data_set, outcomes, findings, settings.data.skip_limit)
    splits, notes = _draw_splits(workspace, entries, settings.data)
    _write_if_changed(workspace.splits, splits)
    findings += notes

    plan = jobs[0].plan or _choose_plan(
        [entry for entry in entries.values() if entry["split"] == "train"], settings.data, spacing_mm
    )
    if jobs[0].plan is None:
        outcomes = _write_tensors(workspace, jobs, outcomes, plan, workers)
        entries = {
            outcome.case_id: {**outcome.entry, "split": entries[outcome.case_id]["split"]}
            for outcome in outcomes
            if outcome.entry is not None
        }
        _stop_on_skips(workspace, data_set, outcomes, findings, settings.data.skip_limit)
    _remove_stale(workspace, known, entries)
    report = _report(data_set, outcomes, findings)
    _write_if_changed(workspace.preprocess_report, report)
    manifest = _manifest(workspace, settings.data, options, data_set, structures, plan, entries, splits)
    manifest["guide"], manifest["sides"] = _guide_record(guide), sides.record()
    if guide_splits not in (None, manifest["splits_hash"]):
        LOG.warning(
            "WARN GUIDE_MODEL_SPLIT: the guide model was trained with another split than this one: it may have seen test patients of this run."
        )
    manifest["content_hash"] = artifacts.content_hash(manifest)
    _write_if_changed(workspace.manifest, manifest)
    shutil.rmtree(workspace.finished, ignore_errors=True)
    config_file.note(workspace, {"data": manifest["settings"]}, options.task)
    return _tell(report, manifest, options)


def preview(workspace: artifacts.Workspace, settings: Settings, options: cli.Options) -> int:
    """What `run` would use and refuse, told without writing anything; the exit code is the one it would have.

    Scans are read as `run` reads them, for PREVIEW_S seconds; the rest is counted as not looked at. Raises what stops `run`.
    """
    from ctseg.scans.case_to_tensors import survey_until

    check_options(workspace, settings, options)
    data_set = _open(workspace, settings.data, options)
    structures = _choose_structures(data_set, settings.data)
    LOG.info(
        "%d cases in the layout '%s'. Structures: %s",
        len(data_set.cases),
        data_set.layout,
        ", ".join(data_set.structures),
    )
    jobs = _jobs(
        workspace,
        settings.data,
        data_set,
        structures,
        None,
        None,
        {},
        _find_sides(data_set, settings.data, None),
    )
    work = functools.partial(survey_until, deadline=time.time() + PREVIEW_S)
    outcomes = _in_parallel(jobs, min(cli.worker_count(options), len(jobs)), "reading scans", work)
    looked_at = [outcome for outcome in outcomes if outcome.entry is not None or outcome.findings]
    report = _report(data_set, looked_at, list(data_set.findings))
    _tell_findings(report["findings"], shown=PREVIEW_LINES, more="preprocessing lists all")
    if len(looked_at) < len(jobs):
        LOG.info(
            "%d more cases were not looked at: --list reads for %g seconds.",
            len(jobs) - len(looked_at),
            PREVIEW_S,
        )
    LOG.info(
        "Of %d cases read %d can be used, %d will be left out. Not checked: the grid of the tensors, guide organs, room on the disk.",
        report["found"],
        report["found"] - report["skipped"],
        report["skipped"],
    )
    if len(looked_at) == len(jobs):
        _check_skips(report, settings.data.skip_limit, "the lines above")
        entries = {outcome.case_id: outcome.entry for outcome in outcomes if outcome.entry is not None}
        _tell_findings(
            [finding.record() for finding in _draw_splits(workspace, entries, settings.data)[1]],
            shown=PREVIEW_LINES,
            more="preprocessing lists all",
        )
    return 3 if report["skipped"] and not options.allow_skips else 0


# ---- before reading -----------------------------------------------------------------------------------------


def check_options(
    workspace: artifacts.Workspace, settings: Settings, options: cli.Options
) -> tuple[float, float, float] | None:
    """Refuse what can be refused without a scan; data.spacing_mm comes back as three numbers (D, H, W), None when it is to be chosen.

    Raises UsageError, and PreconditionError where there is no data or no TotalSegmentator.
    """
    from ctseg.scans.datasets.layouts import check_folder

    spacing_mm = _check_settings(settings.data)
    check_folder(options.data, options.layout)
    if options.data is None:
        _keep_tensors_of_scans(workspace)
    _check_guide(workspace, settings.data)
    return spacing_mm


def _keep_tensors_of_scans(workspace: artifacts.Workspace) -> None:
    """UsageError where a synthetic cohort would take the place of what was made from somebody's scans."""
    try:
        manifest = artifacts.read_json(workspace.manifest)
    except (OSError, IntegrityError):
        return
    if isinstance(manifest, dict) and manifest.get("synthetic") is False:
        name = Path(str(manifest.get("data_root"))).name
        raise UsageError(
            "DATA_NEEDED",
            f"the tensors here were made from '{name}'; without --data a synthetic cohort would replace them",
            "give --data again, or another --workspace",
            file=workspace.relative(workspace.manifest),
        )


def _check_guide(workspace: artifacts.Workspace, data: DataSettings) -> None:
    from ctseg.scans import guide_organs

    path = Path(data.guide)
    if data.guide.endswith(".pth"):
        if not path.is_file():
            raise UsageError(
                "BAD_OPTION",
                f"the guide model '{data.guide}' does not exist",
                "give the best_model.pth of an earlier training",
                file=path.name,
            )
    elif data.guide not in ("none", "labels"):
        if not data.guide_organs:
            raise UsageError(
                "BAD_OPTION",
                f"--guide {data.guide} without the names of the organs",
                "name them, for example --set data.guide_organs=liver,spleen,aorta",
            )
        if data.guide != "totalsegmentator" and not path.is_dir():
            raise UsageError(
                "BAD_OPTION",
                f"'{data.guide}' after --guide is neither a folder nor one of labels, totalsegmentator",
                "check the path",
                file=path.name,
            )
        if (
            data.guide == "totalsegmentator" and not workspace.guide_masks.is_dir()
        ):  # kept masks need no program
            guide_organs.totalsegmentator_command()


def _check_settings(data: DataSettings) -> tuple[float, float, float] | None:
    """data.spacing_mm as three numbers (D, H, W), None when it is to be chosen."""
    values = data.spacing_mm * 3 if len(data.spacing_mm) == 1 else data.spacing_mm
    if values and (len(values) != 3 or not all(0.1 <= value <= 20 for value in values)):
        raise UsageError(
            "BAD_VALUE",
            f"data.spacing_mm={list(data.spacing_mm)} is not one number or three, each 0.1 to 20",
            "give mm along superior, posterior, left; for example --set data.spacing_mm=3,1.5,1.5",
        )
    if values and data.grid == "whole":
        raise UsageError(
            "BAD_VALUE",
            "data.spacing_mm has no meaning for data.grid=whole, where the body decides",
            "leave it out, or use --set data.grid=windows",
        )
    if data.val_fraction + data.test_fraction > 0.9:
        raise UsageError(
            "BAD_VALUE",
            f"data.val_fraction + data.test_fraction = {data.val_fraction + data.test_fraction:g} leaves nothing to train on",
            "keep their sum at 0.9 or below",
        )
    return (values[0], values[1], values[2]) if values else None


def _open(workspace: artifacts.Workspace, data: DataSettings, options: cli.Options) -> DataSet:
    """The user's data set, or the synthetic cohort, which is drawn first when it is not there yet."""
    from ctseg.scans.datasets.layouts import open_data_set

    if options.data is not None:
        return open_data_set(options.data, options.layout, follow_links=data.follow_links)
    folder = workspace.synthetic_data
    from ctseg.anatomy import DEFAULT, write_cohort

    task = options.task or DEFAULT
    LOG.info(
        "No --data given: using a synthetic cohort (%s), drawn into %s unless it is there already.",
        task,
        workspace.relative(folder),
    )
    with cli.CountingBar("Drawing synthetic scans") as bar:
        write_cohort(folder, task=task, progress=bar, workers=cli.worker_count(options))
    return open_data_set(folder, options.layout)


def _choose_structures(data_set: DataSet, data: DataSettings) -> tuple[str, ...]:
    """The structures asked for, in the order of the data set; for the synthetic cohort its own default."""
    wanted = tuple(data.structures)
    if not wanted and data_set.synthetic:
        wanted = tuple(artifacts.read_json(data_set.root / "synthetic.json").get("structures", ()))
    wanted = tuple(structure_names.find(name, data_set.structures) or name for name in wanted)
    for name in wanted:
        if name not in data_set.structures:
            raise UsageError(
                "UNKNOWN_ORGAN",
                f"the data set has no structure '{name}'{did_you_mean(name, data_set.structures)}",
                f"choose from {', '.join(data_set.structures)}",
            )
    chosen = tuple(name for name in data_set.structures if not wanted or name in wanted)
    if not chosen or not data_set.cases:
        raise PreconditionError(
            "NO_DATA",
            f"the folder has {len(data_set.cases)} usable cases and names {len(chosen)} structures",
            "see `python run_pipeline.py --list` for the layouts",
            file=data_set.root.name,
        )
    _check_spellings(chosen, data_set)
    return chosen


def _check_spellings(names: tuple[str, ...], data_set: DataSet) -> None:
    """PreconditionError STRUCTURES_ALIKE for a name that says nothing, and for two that differ in spelling alone: they would be taken for each other."""
    seen: dict[tuple[str, str | None], str] = {}
    for name in names:
        other = seen.setdefault(laterality.spelling(name), name)
        if other != name or not name.strip():
            cause = (
                f"'{other}' and '{name}' are one name in two spellings"
                if name.strip()
                else "a structure has no name"
            )
            raise PreconditionError(
                "STRUCTURES_ALIKE",
                cause,
                "rename it in the data, or leave it out: --structures takes the names that are meant",
                file=data_set.root.name,
            )


def _find_sides(data_set: DataSet, data: DataSettings, guide: GuideSource | None) -> Sides:
    """Left and right among all structures of the data and the guide organs, and as data.pairs says. Raises UsageError."""
    names = list(dict.fromkeys([*data_set.structures, *(guide.organs if guide is not None else ())]))
    declared = []
    for text in (part.strip() for item in data.pairs for part in item.split(";") if part.strip()):
        left, separator, right = text.partition(":")
        if not separator:
            raise UsageError(
                "BAD_VALUE",
                f"data.pairs={text} has no ':'",
                "write left:right, for example --set data.pairs=kidney_a:kidney_b",
            )
        known = [structure_names.find(name.strip(), names) for name in (left, right)]
        for name, found in zip((left, right), known):
            if found is None:
                raise UsageError(
                    "UNKNOWN_ORGAN",
                    f"data.pairs={text}: the data set has no structure '{name.strip()}'{did_you_mean(name, names)}",
                    f"choose from {', '.join(names)}",
                )
        declared.append((str(known[0]), str(known[1])))
    return laterality.find_sides(names, declared)


def _guide_source(
    workspace: artifacts.Workspace,
    settings: Settings,
    options: cli.Options,
    data_set: DataSet,
    structures: tuple[str, ...],
) -> tuple[GuideSource | None, str | None]:
    """(which organs guide the network and where their masks come from, split hash of the guide model), None where there is no such thing.

    Raises UsageError, GUIDE_LEAK among them.
    """
    from ctseg.scans.guide_organs import GuideSource, check_source

    data = settings.data
    if data.guide == "none":
        return None, None
    organs = data.guide_organs
    if data.guide.endswith(".pth"):
        return _predicted_guide(workspace, settings, options, data_set, structures)
    if data.guide == "labels":
        source = GuideSource(
            "labels", organs or tuple(name for name in data_set.structures if name not in structures)
        )
    elif data.guide == "totalsegmentator":
        source = GuideSource("totalsegmentator", organs, workspace.guide_masks)
    else:
        source = GuideSource("folder", organs, Path(data.guide))
    check_source(source, data_set.structures, structures)
    return source, None


def _predicted_guide(
    workspace: artifacts.Workspace,
    settings: Settings,
    options: cli.Options,
    data_set: DataSet,
    structures: tuple[str, ...],
) -> tuple[GuideSource, str]:
    """Guide organs as an earlier model of this pipeline predicts them in every scan. Raises UsageError, IntegrityError."""
    from ctseg.prediction.guide_masks import predict_guide_masks
    from ctseg.prediction.predictor import load_predictor
    from ctseg.scans.guide_organs import GuideSource, check_source
    from models import build_network

    path = Path(settings.data.guide)
    predictor = load_predictor(
        path, settings.evaluate, device=options.device, build_network=build_network, file=path.name
    )
    if predictor.takes_guide:
        raise UsageError(
            "BAD_OPTION",
            "the guide model needs a guide itself",
            "use a model that was trained without one",
            file=path.name,
        )
    folder = workspace.guide_masks
    source = GuideSource("folder", settings.data.guide_organs or tuple(predictor.names), folder)
    unknown = [organ for organ in source.organs if organ not in predictor.names]
    if unknown:
        raise UsageError(
            "BAD_OPTION",
            f"the guide model does not know {unknown[0]}",
            f"choose from {', '.join(predictor.names)}",
            file=path.name,
        )
    check_source(source, data_set.structures, structures)
    LOG.info("Guide: %s, predicted by %s.", ", ".join(source.organs), path.name)
    predict_guide_masks(
        predictor,
        artifacts.file_hash(path),
        data_set.cases,
        folder,
        progress=cli.bar("Predicting guide organs"),
    )
    return source, str(predictor.checkpoint["splits_hash"])


def _guide_record(guide: GuideSource | None) -> dict[str, Any] | None:
    return (
        {"kind": guide.kind, "source": guide.provenance, "organs": list(guide.organs)}
        if guide is not None
        else None
    )


def _previous_manifest(workspace: artifacts.Workspace) -> dict[str, Any] | None:
    """The manifest of an earlier run, None when there is none that can be built upon."""
    if not workspace.manifest.exists():
        return None
    try:
        manifest = artifacts.read_json(workspace.manifest)
    except IntegrityError:
        return None
    usable = (
        isinstance(manifest, dict)
        and manifest.get("version") == artifacts.MANIFEST_VERSION
        and not artifacts.edited(manifest)
    )
    return manifest if usable else None


def _known_entries(
    workspace: artifacts.Workspace, previous: dict[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Case id -> entry, of the earlier manifest and of what an interrupted run finished; the unreadable is made again."""
    entries = list(previous["cases"]) if previous else []
    for path in sorted(workspace.finished.glob("*.json")):
        with contextlib.suppress(OSError, IntegrityError):
            entries.append(artifacts.read_json(path))
    return {entry["case_id"]: entry for entry in entries if isinstance(entry, dict) and "case_id" in entry}


def _stale_note(
    previous: dict[str, Any] | None, settings: Settings, structures: tuple[str, ...]
) -> list[Finding]:
    if previous is None or (
        previous["settings"] == settings.record()["data"] and previous["structures"] == list(structures)
    ):
        return []
    return [
        Finding(
            "NOTE",
            "STALE_CACHE",
            "settings or structures changed since the tensors were made: what depends on them is made again",
        )
    ]


def _known_plan(data: DataSettings, spacing_mm: tuple[float, float, float] | None) -> GridPlan | None:
    """The grid when the settings alone decide it; None when the training scans do."""
    from ctseg.geometry.grids import GridPlan

    if data.grid == "whole":
        return GridPlan("whole", None)
    if data.grid == "roi":  # which part of a case is kept depends on its split
        return None
    return GridPlan("windows", spacing_mm) if spacing_mm else None


def _jobs(
    workspace: artifacts.Workspace,
    data: DataSettings,
    data_set: DataSet,
    structures: tuple[str, ...],
    plan: GridPlan | None,
    guide: GuideSource | None,
    known: dict[str, dict[str, Any]],
    sides: Sides,
) -> list[CaseJob]:
    from ctseg.scans.case_to_tensors import CaseJob

    return [
        CaseJob(
            _as_allowed(record, data),
            data_set.root,
            workspace,
            structures,
            data.window_hu,
            data.margin_mm,
            plan,
            known.get(record.case_id),
            guide=guide,
            crop=data.crop,
            sides=sides,
        )
        for record in sorted(data_set.cases, key=lambda record: record.case_id)
    ]


def _as_allowed(record: CaseRecord, data: DataSettings) -> CaseRecord:
    """The case, with the leave to read what is refused otherwise; it stands in the manifest, so that every later stage reads the same."""
    image, labels = record.image, record.labels
    if image.format == "dicom" and data.assume_hu:
        image = dataclasses.replace(image, assume_hu=True)
    if labels is not None and labels.format == "dicom_seg" and data.fractional_threshold > 0:
        labels = dataclasses.replace(labels, fractional_threshold=data.fractional_threshold)
    if labels is not None and labels.format in ("dicom_seg", "rtstruct") and data.fill_contour_gaps:
        labels = dataclasses.replace(labels, fill_gaps=True)
    return dataclasses.replace(record, image=image, labels=labels)


def _require_disk(workspace: artifacts.Workspace, needed: float) -> None:
    workspace.processed.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(workspace.processed).free
    needed = 1.1 * needed + 50e6 if needed else 0
    if free < needed:
        raise ResourceError(
            "DISK_FULL",
            f"about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            "free some space, choose another --workspace, or use --set data.grid=whole",
        )


# ---- reading and writing the cases --------------------------------------------------------------------------


def _in_parallel(
    jobs: list[CaseJob], workers: int, title: str, work: Callable[[CaseJob], CaseOutcome] | None = None
) -> list[CaseOutcome]:
    """What came of each job, in their order; tracebacks go to the log file. work: `prepare_case` unless said otherwise."""
    from ctseg.scans.case_to_tensors import after_death, prepare_case

    with cli.CountingBar(title) as bar:
        outcomes = ordered_map(
            work or prepare_case, jobs, workers=workers, progress=bar, after_death=after_death
        )
    for outcome in outcomes:
        if outcome.trace:
            LOG.debug("case %s\n%s", outcome.case_id, outcome.trace)
    return outcomes


def _write_tensors(
    workspace: artifacts.Workspace,
    jobs: list[CaseJob],
    surveyed: list[CaseOutcome],
    plan: GridPlan,
    workers: int,
) -> list[CaseOutcome]:
    """The outcomes with the tensors of every case written; those of an earlier run are kept where they still hold."""
    import dataclasses

    from ctseg.geometry.grids import tensor_origins
    from ctseg.geometry.volume import Grid
    from ctseg.scans.case_to_tensors import box_of

    pending, size = [], 0
    for job, outcome in zip(jobs, surveyed):
        entry = outcome.entry
        if entry is None or (
            outcome.reused and entry["key"] == job.case_key(entry["survey_key"], plan, entry["split"])
        ):
            continue
        pending.append(dataclasses.replace(job, plan=plan, previous=None, split=entry["split"]))
        scan = Grid.from_record(entry["scan"])
        size += (
            TENSOR_BYTES * len(tensor_origins(plan.canvas(scan, box_of(entry)).shape))
            + scan.shape[0] * scan.shape[1] * scan.shape[2] // 20
        )
    _require_disk(workspace, size)
    written = (
        {outcome.case_id: outcome for outcome in _in_parallel(pending, workers, "writing tensors")}
        if pending
        else {}
    )
    return [written.get(outcome.case_id, outcome) for outcome in surveyed]


def _choose_plan(
    train: list[dict[str, Any]], data: DataSettings, spacing_mm: tuple[float, float, float] | None
) -> GridPlan:
    """The grid that the training scans ask for: their median spacing, and for grid=auto whether one tensor holds the body."""
    import numpy as np

    from ctseg.geometry.grids import GridPlan
    from ctseg.scans.case_to_tensors import box_of, canonical_spacing

    median = (
        np.median([canonical_spacing(entry) for entry in train], axis=0)
        if spacing_mm is None
        else np.array(spacing_mm)
    )
    d, h, w = (round(float(value), 4) for value in median)
    voxels = np.median([np.array(box_of(entry).size_mm) / (d, h, w) for entry in train], axis=0)
    if data.grid == "auto" and (np.ceil(voxels - 1e-3) > artifacts.TENSOR_SIZE).any():
        LOG.info(
            "Grid: whole (at the scans' own spacing of %g x %g x %g mm the body needs %d x %d x %d voxels, more than one tensor)",
            d,
            h,
            w,
            *np.ceil(voxels),
        )
        return GridPlan("whole", None)
    kind = "roi" if data.grid == "roi" else "windows"
    LOG.info(
        "Grid: %s of %g x %g x %g mm%s",
        kind,
        d,
        h,
        w,
        " (median of the training scans)" if spacing_mm is None else "",
    )
    return GridPlan(kind, (d, h, w))


def _draw_splits(
    workspace: artifacts.Workspace, entries: dict[str, dict[str, Any]], data: DataSettings
) -> tuple[dict[str, Any], list[Finding]]:
    """Draw or complete the splits and write each case's split into its entry. (new content of splits.json, findings)"""
    from ctseg.scans.datasets import splits

    existing = artifacts.read_json(workspace.splits) if workspace.splits.exists() else None
    frozen = splits.frozen_assignment(existing) if existing is not None else {}
    cases = [
        splits.SplitCase(
            entry["case_id"],
            entry["patient_id"],
            entry["states"],
            entry["source"]["image"]["format"],
            entry["content_hash"],
            entry["source"]["split"],
        )
        for entry in entries.values()
    ]
    assignment, findings = splits.draw_splits(
        cases, frozen=frozen, val_fraction=data.val_fraction, test_fraction=data.test_fraction, seed=data.seed
    )
    if existing is not None and existing["seed"] != data.seed:
        findings.append(
            Finding(
                "NOTE",
                "SPLIT_FROZEN",
                f"splits.json was drawn with seed {existing['seed']} and is kept",
                "delete it to draw again",
            )
        )
    for entry in entries.values():
        entry["split"] = assignment[entry["patient_id"]]
    # Patients that are gone stay written down: should they come back, they return to the same split.
    return splits.splits_record(
        {**frozen, **assignment}, existing["seed"] if existing is not None else data.seed
    ), findings


def _remove_stale(
    workspace: artifacts.Workspace, known: dict[str, dict[str, Any]], entries: dict[str, dict[str, Any]]
) -> None:
    """Delete what earlier runs wrote and no case of this run owns; other files there are not ours."""
    owned, made = (
        {
            file["file"]
            for entry in some.values()
            for file in (*artifacts.seen_files(entry), entry["reference"] or {})
            if file
        }
        for some in (entries, known)
    )
    for folder, pattern in (
        (workspace.tensors, "*.npz"),
        (workspace.guides, "*.npz"),
        (workspace.references, "*.nii.gz"),
    ):
        for path in folder.glob(pattern):
            if path.relative_to(workspace.processed).as_posix() in made - owned:
                path.unlink()


# ---- what is left behind ------------------------------------------------------------------------------------


def _write_if_changed(path: Path, content: dict[str, Any]) -> None:
    try:
        if artifacts.read_json(path) == content:
            return
    except (OSError, IntegrityError):
        pass
    artifacts.write_json(path, content)


def _report(data_set: DataSet, outcomes: list[CaseOutcome], findings: list[Finding]) -> dict[str, Any]:
    """The content of preprocess_report.json: found = processed + cached + skipped."""
    refused = {
        finding.case for finding in data_set.findings if finding.severity == "ERROR" and finding.case != "-"
    }
    skipped = sorted(refused | {outcome.case_id for outcome in outcomes if outcome.entry is None})
    cached = sum(outcome.reused for outcome in outcomes if outcome.entry is not None)
    everything = [*findings, *(finding for outcome in outcomes for finding in outcome.findings)]
    found = len(outcomes) + len(refused - {outcome.case_id for outcome in outcomes})
    return {
        "version": REPORT_VERSION,
        "layout": data_set.layout,
        "found": found,
        "processed": found - cached - len(skipped),
        "cached": cached,
        "skipped": len(skipped),
        "skipped_cases": skipped,
        "findings": [finding.record() for finding in everything],
    }


def _stop_on_skips(
    workspace: artifacts.Workspace,
    data_set: DataSet,
    outcomes: list[CaseOutcome],
    findings: list[Finding],
    limit: float,
) -> None:
    """Stop when so many cases are faulty that the folder cannot be what we take it for; the report is written."""
    report, file = _report(data_set, outcomes, findings), workspace.relative(workspace.preprocess_report)
    try:
        _check_skips(report, limit, file)
    except PreconditionError:
        _write_if_changed(workspace.preprocess_report, report)
        _tell_findings(report["findings"])
        raise


def _check_skips(report: dict[str, Any], limit: float, file: str) -> None:
    """PreconditionError SKIP_LIMIT or NO_DATA when too few cases of a report can be used. file: where they are named.

    One faulty case alone never stops a run, unless the limit is 0. Cases without labels are left out and do not count.
    """
    found, usable = report["found"], report["found"] - report["skipped"]
    faulty = len(
        {
            record["case"]
            for record in report["findings"]
            if record["severity"] == "ERROR" and record["code"] not in NO_FAULT
        }
    )
    if usable and faulty <= max(limit * found, 1 if limit else 0):
        return
    if not usable:
        raise PreconditionError(
            "NO_DATA",
            f"none of {found} cases can be used",
            f"correct the cases ({file} lists what is wrong with each)",
            file=file,
        )
    enough = math.ceil(100 * faulty / found) / 100
    raise PreconditionError(
        "SKIP_LIMIT",
        f"{faulty} of {found} cases are faulty, more than data.skip_limit={limit:g}",
        f"see {file}; correct the cases, or go on without them with --set data.skip_limit={enough:g}",
        file=file,
    )


def _manifest(
    workspace: artifacts.Workspace,
    data: DataSettings,
    options: cli.Options,
    data_set: DataSet,
    structures: tuple[str, ...],
    plan: GridPlan,
    entries: dict[str, dict[str, Any]],
    splits: dict[str, Any],
) -> dict[str, Any]:
    from ctseg.scans.case_to_tensors import PREPROCESS_VERSION

    settings = Settings(data=data).record()["data"]
    return {
        "format": "ctseg-manifest",
        "version": artifacts.MANIFEST_VERSION,
        "task": options.task,
        "layout": data_set.layout,
        "synthetic": data_set.synthetic,
        "data_root": _data_root(workspace, options.data or data_set.root),
        "structures": list(structures),
        "grid": plan.kind,
        "spacing_mm": list(plan.spacing_mm) if plan.spacing_mm else None,
        "window_hu": list(data.window_hu),
        "settings": settings,
        "settings_hash": artifacts.canonical_hash(settings),
        "splits_hash": artifacts.canonical_hash(splits),
        "versions": {"preprocess": PREPROCESS_VERSION, **artifacts.package_versions()},
        "cases": list(entries.values()),
    }


def _data_root(workspace: artifacts.Workspace, root: Path) -> str:
    """Where the raw scans lie: relative to the workspace when below it or given as a relative path, else as given."""
    absolute, home = root.absolute(), workspace.processed.parent
    if absolute.is_relative_to(home) or not root.is_absolute():
        return Path(os.path.relpath(absolute, home)).as_posix()
    return str(root)


def _tell_findings(
    records: list[dict[str, str]],
    shown: int = SHOWN_PER_CODE,
    more: str = "see processed_data/preprocess_report.json",
) -> None:
    """Print the first lines of each kind of finding; all go to the log file."""
    counts: dict[tuple[str, str], int] = {}
    for record in records:
        line = Finding(
            **{name: record[name] for name in ("severity", "code", "cause", "fix", "case", "file", "stage")}
        ).line()
        kind = (record["severity"], record["code"])
        counts[kind] = counts.get(kind, 0) + 1
        LOG.log(logging.INFO if counts[kind] <= shown else logging.DEBUG, "%s", line)
    for (severity, code), count in counts.items():
        if count > shown:
            LOG.info("%s %s: %d more, %s", severity, code, count - shown, more)


def _tell(report: dict[str, Any], manifest: dict[str, Any], options: cli.Options) -> int:
    """Print what was done and return the exit code."""
    _tell_findings(report["findings"])
    sizes = {
        split: sum(case["split"] == split for case in manifest["cases"]) for split in ("train", "val", "test")
    }
    tensors = sum(len(case["tensors"]) for case in manifest["cases"])
    LOG.info(
        "Preprocessed %d cases: %d new, %d cached, %d skipped; %d train, %d val, %d test; %d tensors on grid %s%s",
        report["found"],
        report["processed"],
        report["cached"],
        report["skipped"],
        *sizes.values(),
        tensors,
        manifest["grid"],
        " (synthetic)" if manifest["synthetic"] else "",
    )
    return 3 if report["skipped"] and not options.allow_skips else 0


if __name__ == "__main__":
    sys.exit(main())
