"""Everything the report is made from, read once: history, processed data and evaluation of one workspace.

Training must have run. Evaluation and processed data may be missing or belong to another run: then
`notices` says so, and the page shows what is left. Nothing is corrected or recomputed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.errors import IntegrityError, PipelineError
from ctseg.evaluation.result_files import TEXT_COLUMNS
from ctseg.manifest import Manifest
from ctseg.reporting.pictures.slices import LUNG_HU, SOFT_TISSUE_HU
from ctseg.reporting.result_kinds import HISTORY, REPORT, RUN, SUMMARY, Kinds, Means, Statistic, Undefined
from ctseg.scoring.metrics import STATES, Row, has_reference
from ctseg.tables import read_csv
from ctseg.typed_values import fits

EVALUATE_AGAIN = "run `python run_pipeline.py --eval --analyze`"
METRICS = ("dice", "nsd", "hd95_imputed", "hd95")
SCORES = ("dice", "nsd", "hd95_mm", "hd95_imputed_mm")


@dataclasses.dataclass
class Results:
    """history is always there; the others are empty when their stage did not run.

    notices: sentences for the top of the page, most important first.
    """

    history: dict[str, Any]
    manifest: Manifest | None = None
    preprocess_report: dict[str, Any] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    run: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[Row] = dataclasses.field(default_factory=list)
    notices: list[str] = dataclasses.field(default_factory=list)

    @property
    def evaluated(self) -> bool:
        """Whether there are test results to show."""
        return bool(self.summary and self.rows)

    @property
    def synthetic(self) -> bool:
        """Whether anything here was made from synthetic scans."""
        said = [record.get("synthetic") for record in (self.history, self.run)]
        return any(said) or (self.manifest is not None and self.manifest.synthetic)

    @property
    def structures(self) -> list[str]:
        """Names in label order."""
        return list(
            self.run.get("structures")
            or self.history.get("structures")
            or (self.manifest.structures if self.manifest is not None else [])
        )

    @property
    def scored(self) -> list[Row]:
        """The rows whose reference holds the structure."""
        return list(filter(has_reference, self.rows))

    @property
    def rows_by_key(self) -> dict[tuple[str, str, str], Row]:
        """(patient, case, structure) -> row: what the comparison of runs takes."""
        return {(row["patient_id"], row["case_id"], row["structure"]): row for row in self.rows}

    @property
    def display_hu(self) -> tuple[float, float]:
        """The window of pictures: for lungs when the network saw everything down to air, else for soft
        tissue.
        """
        seen = self.manifest is not None and self.manifest.window_hu[0] <= -900
        return LUNG_HU if seen else SOFT_TISSUE_HU


def dig(record: Any, *keys: str) -> Any:
    """What stands under keys inside each other; None where one of them is missing or null."""
    for key in keys:
        record = (record or {}).get(key)
    return record


def read(workspace: Workspace) -> Results:
    """Read a workspace.

    PreconditionError MISSING_ARTIFACT when training has not run, IntegrityError for damage.
    """
    history = _read(workspace.require(workspace.history, stage="train"), HISTORY, workspace, stage="train")
    of_structures = [history[key] for key in artifacts.SERIES_OF_STRUCTURES]
    names = all(series.keys() == set(history["structures"]) for series in of_structures)
    lengths = {len(history[key]) for key in (*artifacts.SERIES, "resource_usage")}
    lengths |= {len(values) for series in of_structures for values in series.values()}
    if not names or len(lengths) > 1:
        cause = "not every series has a value per epoch"
        raise _corrupt(cause, workspace.history, workspace, stage="train")
    found = Results(history)
    if workspace.manifest.exists():
        found.manifest = Manifest.load(workspace)
    if workspace.preprocess_report.exists():
        found.preprocess_report = _read(workspace.preprocess_report, REPORT, workspace, stage="preprocess")
    _read_evaluation(workspace, found)
    if found.manifest is None:
        found.notices.append(
            "processed_data/ is gone: data set, findings and pictures of cases are missing here; run "
            "`python run_pipeline.py --preprocess` again."
        )
    elif history.get("manifest_hash") != found.manifest.data_hash():
        found.notices.append(
            "The processed data changed after training: cases and findings below describe the new "
            "data; run `python run_pipeline.py --train --eval --analyze`."
        )
    stopped = history.get("stopped")
    if stopped in artifacts.UNFINISHED:
        again = "run `python run_pipeline.py --train` to go on"
        if stopped == "diverged":
            again = "run `python run_pipeline.py --train --restart` with a smaller train.learning_rate"
        said = artifacts.UNFINISHED[stopped]
        found.notices.append(f"Training: {said}. The curves show how far it came; {again}.")
    return found


def read_other(workspace: Workspace, name: str, fix: str) -> Results:
    """`read`, where errors name the workspace. fix: the remedy; {fix} in it is that of the error."""
    try:
        return read(workspace)
    except PipelineError as error:
        file = error.file if error.file == "-" else f"{name}/{error.file}"
        remedy = fix.replace("{fix}", error.fix)
        raise type(error)(error.code, error.cause, remedy, case=error.case, file=file) from None


def _read_evaluation(workspace: Workspace, found: Results) -> None:
    summary, rows = (workspace.evaluation / name for name in ("summary_statistics.json", "per_case.csv"))
    missing = [path for path in (summary, rows, workspace.run_record) if not path.exists()]
    if missing:
        found.notices.append(
            f"The model has not been evaluated ({workspace.relative(missing[0])} does not exist): this "
            f"page has no test results; {EVALUATE_AGAIN}."
        )
        return
    run = _read(workspace.run_record, RUN, workspace, stage="eval")
    if run.get("manifest_hash") != found.history.get("manifest_hash"):
        found.notices.append(
            "evaluation_results/ belongs to other processed data than this training run and is left "
            f"out; {EVALUATE_AGAIN}."
        )
        return
    if not of_best_model(run, workspace):
        found.notices.append(
            "The test results below were made with other weights than checkpoints/best_model.pth, for "
            f"example before the last training; {EVALUATE_AGAIN}."
        )
    statistics = {
        f"{name}_{metric}": Statistic | Undefined for name in run["structures"] for metric in METRICS
    }
    found.run, found.rows = run, read_rows(rows)
    found.summary = _read(summary, {**SUMMARY, **statistics}, workspace, stage="eval")
    if not _belongs(found):
        raise _corrupt(f"it is not about what {rows.name} says", summary, workspace, stage="eval")


def _belongs(found: Results) -> bool:
    """Whether summary, record of the run and rows are about the same structures, and scores stand where there
    is a reference.
    """
    summary, names = found.summary, found.run["structures"]
    headline, nothing = summary["headline"], summary["baselines"]["all_background"]
    scored = {row["structure"] for row in found.scored}
    known = summary["presence"].keys() == set(names) == {row["structure"] for row in found.rows}
    known &= all(summary["settings"]["tolerances_mm"].get(name) for name in names)
    with_mean = {name for name in names if summary[f"{name}_dice"]["mean"] is not None}
    whole = all(
        (means[key] is not None) == bool(scored)
        for means in (headline, nothing)
        for key in Means.__annotations__
    )
    return known and whole and set(headline["structures"]) == scored == with_mean


def of_best_model(run: Mapping[str, Any], workspace: Workspace) -> bool:
    """Whether an evaluation's record is of the weights that lie in the workspace."""
    path = workspace.best_model
    return path.is_file() and bool(run.get("checkpoint_sha256") == artifacts.file_hash(path))


def _read(path: Path, kinds: Kinds, workspace: Workspace, *, stage: str) -> dict[str, Any]:
    """The JSON object of a file, in which each key holds a value of its kind."""
    content = artifacts.read_json(path)
    if not isinstance(content, dict):
        raise _corrupt("it holds no JSON object", path, workspace, stage=stage)
    for key, kind in kinds.items():
        if key not in content or not fits(content[key], kind):
            cause = f"what it says of '{key}' is missing or of another kind"
            raise _corrupt(cause, path, workspace, stage=stage)
    return content


def _corrupt(cause: str, path: Path, workspace: Workspace, *, stage: str) -> IntegrityError:
    # a finished training looks no further than whether its files are there
    fix = f"delete it and run `python run_pipeline.py --{stage}` again"
    return IntegrityError("ARTIFACT_CORRUPT", cause, fix, file=workspace.relative(path))


def read_rows(path: Path, scores: Collection[str] = SCORES) -> list[Row]:
    """The rows of `per_case.csv` or, with other `scores`, of `topology.csv`: numbers as float, empty cells
    None, text and lists as they are.

    scores: columns that must be there; all but HD95 are defined where the reference holds the structure.
    """
    required = ("case_id", "patient_id", "structure", "state")
    rows = read_csv(path, text=TEXT_COLUMNS, required=required, fix=EVALUATE_AGAIN)
    for row in rows:
        needed = ("dice", "nsd", "hd95_imputed_mm") if has_reference(row) else ()
        lacking = [key for key in scores if key not in row or (key in needed and row[key] is None)]
        if row["state"] not in STATES:
            lacking = ["known state"]
        if lacking:
            cause = f"'{row['structure']}' has no {lacking[0]}"
            raise IntegrityError(
                "ARTIFACT_CORRUPT", cause, EVALUATE_AGAIN, case=row["case_id"], file=path.name
            )
    return rows
