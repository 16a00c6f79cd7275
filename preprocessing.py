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
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg import artifacts, cli, config_file, processes
from ctseg.artifacts import Workspace
from ctseg.cli import LOG, Options
from ctseg.config import DataSettings, Settings
from ctseg.datasets import layouts, splits
from ctseg.datasets.case import DataSet
from ctseg.errors import Finding, IntegrityError, PreconditionError, ResourceError, UsageError
from ctseg.manifest import Case, Guide, Manifest, from_record, to_record
from ctseg.preparation import case_to_tensors, choices
from ctseg.preparation.case_to_tensors import CaseJob, CaseOutcome, Recipe
from ctseg.preparation.guide_organs import GuideSource, check_source
from ctseg.preparation.preprocess_report import Report

PREVIEW_S, PREVIEW_LINES = 60.0, 20  # how long --list reads scans, and how many lines of one kind it shows
SHOWN_PER_CODE = 3  # lines of one kind on the terminal; all of them stand in the report and the log


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run the stage; the exit code comes back."""
    return cli.run_stage("preprocessing.py", __doc__, run, argv)


def run(workspace: Workspace, settings: Settings, options: Options) -> int:
    """Make tensors of every case. Exit code 0, or 3 when cases were skipped (and that was not allowed)."""
    data = settings.data
    check_options(workspace, settings, options)
    data_set = open_data(workspace, data, options)
    recipe, guide_splits = make_recipe(workspace, settings, options, data_set)
    artifacts.sweep_temporaries(workspace.processed)
    known, notes = earlier_run(workspace, settings, recipe.structures)
    findings = [*data_set.findings, *notes]
    workers = cli.worker_count(options)
    if recipe.guide is not None and recipe.guide.kind == "totalsegmentator":
        workers = 1  # it is a large program that uses all cores itself

    jobs = [
        CaseJob(choices.with_leave(record, data), recipe, known.get(record.case_id))
        for record in sorted(data_set.cases, key=lambda record: record.case_id)
    ]
    require_disk(workspace, jobs)
    outcomes = in_parallel(case_to_tensors.prepare_case, jobs, workers, "reading scans")
    stop_on_skips(workspace, Report.of(data_set, outcomes, findings), data.skip_limit)
    cases, drawn, notes = splits.assign(cases_of(outcomes), workspace, data)
    write_if_changed(workspace.splits, drawn)
    findings += notes
    if recipe.plan is None:
        plan = choices.choose_plan([case for case in cases if case.split == "train"], data)
        recipe = dataclasses.replace(recipe, plan=plan)
        surveyed = {case.case_id: case for case in cases}
        jobs = [
            CaseJob(job.record, recipe, surveyed=surveyed[job.record.case_id])
            for job in jobs
            if job.record.case_id in surveyed
        ]
        require_disk(workspace, jobs)
        written = in_parallel(case_to_tensors.prepare_case, jobs, workers, "writing tensors")
        latest = {outcome.case_id: outcome for outcome in [*outcomes, *written]}
        outcomes = list(latest.values())
        stop_on_skips(workspace, Report.of(data_set, outcomes, findings), data.skip_limit)
        cases = cases_of(outcomes)
    remove_stale(workspace, known.values(), cases)
    report = Report.of(data_set, outcomes, findings)
    write_if_changed(workspace.preprocess_report, to_record(report))
    manifest = make_manifest(recipe, settings, options, data_set, cases, drawn)
    if guide_splits not in (None, manifest.splits_hash):
        LOG.warning(
            "WARN GUIDE_MODEL_SPLIT: the guide model was trained with another split than this one: "
            "it may have seen test patients of this run."
        )
    write_if_changed(workspace.manifest, to_record(manifest))
    shutil.rmtree(workspace.finished, ignore_errors=True)
    config_file.note(workspace, {"data": manifest.settings}, options.task)
    tell_findings(report.findings)
    LOG.info(
        "Preprocessed %d cases: %d new, %d cached, %d skipped; %d train, %d val, %d test; "
        "%d tensors on grid %s%s",
        *(report.found, report.processed, report.cached, report.skipped),
        *(len(manifest.of_split(split)) for split in splits.SPLITS),
        sum(len(case.tensors) for case in cases),
        manifest.grid,
        " (synthetic)" if manifest.synthetic else "",
    )
    return 3 if report.skipped and not options.allow_skips else 0


def preview(workspace: Workspace, settings: Settings, options: Options) -> int:
    """What `run` would use and refuse, told without writing anything; the exit code is the one it would have.

    Scans are read as `run` reads them, for PREVIEW_S seconds; the rest is counted as not looked at. Raises
    what stops `run`.
    """
    data = settings.data
    check_options(workspace, settings, options)
    data_set = open_data(workspace, data, options)
    structures, sides = choices.choose_structures(data_set, data), choices.sides_of(data_set, data, ())
    recipe = Recipe(data_set.root, workspace, structures, data, sides)
    told = ", ".join(data_set.structures)
    LOG.info("%d cases in the layout '%s'. Structures: %s", len(data_set.cases), data_set.layout, told)
    jobs = [CaseJob(choices.with_leave(record, data), recipe) for record in data_set.cases]
    work = functools.partial(case_to_tensors.survey_until, deadline=time.time() + PREVIEW_S)
    outcomes = in_parallel(work, jobs, cli.worker_count(options), "reading scans")
    looked_at = [outcome for outcome in outcomes if outcome.case is not None or outcome.findings]
    report = Report.of(data_set, looked_at, data_set.findings)
    tell = functools.partial(tell_findings, shown=PREVIEW_LINES, more="preprocessing lists all")
    tell(report.findings)
    left = len(jobs) - len(looked_at)
    if left:
        LOG.info("%d more cases were not looked at: --list reads for %g seconds.", left, PREVIEW_S)
    LOG.info(
        "Of %d cases read %d can be used, %d will be left out. "
        "Not checked: the grid of the tensors, guide organs, room on the disk.",
        report.found,
        report.found - report.skipped,
        report.skipped,
    )
    if not left:
        report.check_skips(data.skip_limit, "the lines above")
        tell(splits.assign(cases_of(outcomes), workspace, data)[2])
    return 3 if report.skipped and not options.allow_skips else 0


# ---- before reading ------------------------------------------------------------------------------


def check_options(workspace: Workspace, settings: Settings, options: Options) -> None:
    """Refuse what can be refused without a scan.

    Raises UsageError, and PreconditionError where there is no data or no TotalSegmentator.
    """
    choices.wanted_spacing(settings.data)
    layouts.check_folder(options.data, options.layout)
    if options.data is None:
        from ctseg.anatomy import DEFAULT, load_task

        choices.keep_tensors_of_scans(workspace)
        for name in settings.data.structures:
            choices.known_name(name, name, list(load_task(options.task or DEFAULT).IDS))
    choices.guide_source(workspace, settings.data)


def open_data(workspace: Workspace, data: DataSettings, options: Options) -> DataSet:
    """The user's data set, or the synthetic cohort, which is drawn first when it is not there yet."""
    if options.data is not None:
        return layouts.open_data_set(options.data, options.layout, follow_links=data.follow_links)
    from ctseg.anatomy import DEFAULT, write_cohort

    folder, task = workspace.synthetic_data, options.task or DEFAULT
    LOG.info(
        "No --data given: using a synthetic cohort (%s), drawn into %s unless it is there already.",
        task,
        workspace.relative(folder),
    )
    with cli.counting_bar("Drawing synthetic scans") as bar:
        write_cohort(folder, task=task, progress=bar, workers=cli.worker_count(options))
    return layouts.open_data_set(folder, options.layout)


def make_recipe(
    workspace: Workspace, settings: Settings, options: Options, data_set: DataSet
) -> tuple[Recipe, str | None]:
    """(what all cases share, with the grid where the settings decide it; hash of the guide model's split,
    None without a model).
    """
    data = settings.data
    structures = choices.choose_structures(data_set, data)
    guide, guide_splits = choices.guide_source(workspace, data), None
    if data.guide.endswith(".pth"):
        guide, guide_splits = predicted_guide(workspace, settings, options, data_set)
    if guide is not None and not guide.organs:
        organs = tuple(name for name in data_set.structures if name not in structures)
        guide = dataclasses.replace(guide, organs=organs)
    if guide is not None:
        check_source(guide, data_set.structures, structures)
    LOG.info(
        "Data: %s, layout %s, %d cases; structures: %s",
        "synthetic cohort" if data_set.synthetic else workspace.relative(data_set.root),
        data_set.layout,
        len(data_set.cases),
        ", ".join(structures),
    )
    sides = choices.sides_of(data_set, data, guide.organs if guide is not None else ())
    plan = choices.known_plan(data)
    return Recipe(data_set.root, workspace, structures, data, sides, guide, plan), guide_splits


def predicted_guide(
    workspace: Workspace, settings: Settings, options: Options, data_set: DataSet
) -> tuple[GuideSource, str]:
    """(guide organs as an earlier model of this pipeline predicts them in every scan, hash of that model's
    split).

    Raises UsageError, IntegrityError.
    """
    from ctseg.prediction.new_scans import predict_guide_masks
    from ctseg.prediction.predictor import load_predictor
    from models import build_network

    path = Path(settings.data.guide)
    predictor = load_predictor(
        path, settings.evaluate, device=options.device, build_network=build_network, file=path.name
    )
    if predictor.takes_guide:
        cause, fix = "the guide model needs a guide itself", "use a model that was trained without one"
        raise UsageError("BAD_OPTION", cause, fix, file=path.name)
    organs = settings.data.guide_organs or tuple(predictor.names)
    source = GuideSource("folder", organs, workspace.guide_masks)
    unknown = [organ for organ in organs if organ not in predictor.names]
    if unknown:
        cause = f"the guide model does not know {unknown[0]}"
        raise UsageError("BAD_OPTION", cause, f"choose from {', '.join(predictor.names)}", file=path.name)
    check_source(source, (), ())  # before scans are predicted
    LOG.info("Guide: %s, predicted by %s.", ", ".join(organs), path.name)
    predict_guide_masks(
        predictor,
        artifacts.file_hash(path),
        data_set.cases,
        workspace.guide_masks,
        progress=cli.bar("Predicting guide organs"),
    )
    return source, str(predictor.checkpoint["splits_hash"])


def earlier_run(
    workspace: Workspace, settings: Settings, structures: tuple[str, ...]
) -> tuple[dict[str, Case], list[Finding]]:
    """(what is known of each case from the manifest of an earlier run and from a run that was interrupted, a
    note when settings changed).

    What cannot be read, or was edited, is made again.
    """
    cases, notes = [], []
    with contextlib.suppress(OSError, IntegrityError):
        previous = Manifest.read(workspace.manifest)
        if previous.content_hash == previous.sealed().content_hash:
            cases = list(previous.cases)
            if (previous.settings, previous.structures) != (settings.record()["data"], structures):
                cause = (
                    "settings or structures changed since the tensors were made: "
                    "what depends on them is made again"
                )
                notes.append(Finding("NOTE", "STALE_CACHE", cause))
    for path in sorted(workspace.finished.glob("*.json")):
        with contextlib.suppress(OSError, IntegrityError, KeyError, TypeError, ValueError):
            cases.append(from_record(Case, artifacts.read_json(path)))
    return {case.case_id: case for case in cases}, notes


def require_disk(workspace: Workspace, jobs: Sequence[CaseJob]) -> None:
    """ResourceError DISK_FULL unless there is room for what the jobs write."""
    workspace.processed.mkdir(parents=True, exist_ok=True)
    needed = case_to_tensors.bytes_needed(jobs)
    free = shutil.disk_usage(workspace.processed).free
    if free < needed:
        raise ResourceError(
            "DISK_FULL",
            f"about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            "free some space, choose another --workspace, or use --set data.grid=whole",
        )


# ---- reading and writing the cases ---------------------------------------------------------------


def in_parallel(
    work: Callable[[CaseJob], CaseOutcome], jobs: Sequence[CaseJob], workers: int, title: str
) -> list[CaseOutcome]:
    """What came of each job, in their order; tracebacks go to the log file."""
    after_death = case_to_tensors.after_death
    with cli.counting_bar(title) as bar:
        outcomes = processes.ordered_map(work, jobs, workers=workers, progress=bar, after_death=after_death)
    for outcome in outcomes:
        if outcome.trace:
            LOG.debug("case %s\n%s", outcome.case_id, outcome.trace)
    return outcomes


def cases_of(outcomes: Iterable[CaseOutcome]) -> list[Case]:
    """The cases that were not refused."""
    return [outcome.case for outcome in outcomes if outcome.case is not None]


def stop_on_skips(workspace: Workspace, report: Report, limit: float) -> None:
    """Stop when so many cases are faulty that the folder cannot be what we take it for; the report is
    written.
    """
    try:
        report.check_skips(limit, workspace.relative(workspace.preprocess_report))
    except PreconditionError:
        write_if_changed(workspace.preprocess_report, to_record(report))
        tell_findings(report.findings)
        raise


def remove_stale(workspace: Workspace, earlier: Iterable[Case], cases: Iterable[Case]) -> None:
    """Delete what earlier runs wrote and no case of this run owns; other files there are not ours."""
    made, owned = ({file for case in some for file in case.files()} for some in (earlier, cases))
    for path in (workspace.processed / file for file in made - owned):
        if path.parent in (workspace.tensors, workspace.guides, workspace.references):
            path.unlink(missing_ok=True)


# ---- what is left behind -------------------------------------------------------------------------


def write_if_changed(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON unless the same stands there."""
    with contextlib.suppress(OSError, IntegrityError):
        if artifacts.read_json(path) == content:
            return
    artifacts.write_json(path, content)


def make_manifest(
    recipe: Recipe,
    settings: Settings,
    options: Options,
    data_set: DataSet,
    cases: Sequence[Case],
    drawn: Mapping[str, Any],
) -> Manifest:
    """The manifest of a run. drawn: the content of splits.json."""
    guide, plan, made_with = recipe.guide, recipe.plan, settings.record()["data"]
    if plan is None:
        raise ValueError("a manifest needs a grid")
    # relative to the workspace when below it or given as a relative path, else as given
    root, home = options.data or data_set.root, recipe.workspace.processed.parent
    inside = root.absolute().is_relative_to(home) or not root.is_absolute()
    return Manifest(
        structures=recipe.structures,
        grid=plan.kind,
        spacing_mm=plan.spacing_mm,
        window_hu=settings.data.window_hu,
        settings=made_with,
        settings_hash=artifacts.canonical_hash(made_with),
        splits_hash=artifacts.canonical_hash(drawn),
        cases=tuple(cases),
        layout=data_set.layout,
        synthetic=data_set.synthetic,
        data_root=Path(os.path.relpath(root.absolute(), home)).as_posix() if inside else str(root),
        task=options.task,
        guide=Guide(guide.kind, guide.provenance, guide.organs) if guide is not None else None,
        sides=recipe.sides,
        versions={"preprocess": case_to_tensors.PREPROCESS_VERSION, **artifacts.package_versions()},
    ).sealed()


def tell_findings(
    findings: Iterable[Finding],
    shown: int = SHOWN_PER_CODE,
    more: str = "see processed_data/preprocess_report.json",
) -> None:
    """Print the first lines of each kind of finding; all go to the log file."""
    counts: Counter[tuple[str, str]] = Counter()
    for finding in findings:
        kind = (finding.severity, finding.code)
        counts[kind] += 1
        LOG.log(logging.INFO if counts[kind] <= shown else logging.DEBUG, "%s", finding.line())
    for (severity, code), count in counts.items():
        if count > shown:
            LOG.info("%s %s: %d more, %s", severity, code, count - shown, more)


if __name__ == "__main__":
    sys.exit(main())
