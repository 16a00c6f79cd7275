"""Everything the report is made from, read once: history, processed data and evaluation of one workspace.

Training must have run. Evaluation and processed data may be missing or belong to another run: then
`notices` says so, and the page shows what is left. Nothing is corrected or recomputed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.errors import IntegrityError, PreconditionError
from ctseg.evaluation.result_files import TEXT_COLUMNS
from ctseg.manifest import Manifest, to_record
from ctseg.tables import read_csv

EVALUATE_AGAIN = "run `python run_pipeline.py --eval --analyze`"


@dataclasses.dataclass
class Results:
    """history is always there; the others are empty when their stage did not run.

    notices: sentences for the top of the page, most important first.
    """

    history: dict[str, Any]
    manifest: dict[str, Any] = dataclasses.field(default_factory=dict)
    data_hash: str | None = None  # of the processed data as they are now
    preprocess_report: dict[str, Any] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    run: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    notices: list[str] = dataclasses.field(default_factory=list)

    @property
    def evaluated(self) -> bool:
        """Whether there are test results to show."""
        return bool(self.summary) and bool(self.rows)

    @property
    def synthetic(self) -> bool:
        """Whether anything here was made from synthetic scans."""
        return any(bool(source.get("synthetic")) for source in (self.history, self.manifest, self.run))

    @property
    def structures(self) -> list[str]:
        """Names in label order."""
        return [
            str(name)
            for name in self.run.get("structures")
            or self.history.get("structures")
            or self.manifest.get("structures")
            or []
        ]

    @property
    def rows_by_key(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        """(patient, case, structure) -> row: what the comparison of runs takes."""
        return {(row["patient_id"], row["case_id"], row["structure"]): row for row in self.rows}

    def entry(self, case_id: str) -> dict[str, Any] | None:
        """The manifest entry of a case."""
        return next((case for case in self.manifest.get("cases", []) if case["case_id"] == case_id), None)


def dig(record: Any, *keys: str) -> Any:
    """What stands under keys inside each other; None where one of them is missing or null."""
    for key in keys:
        record = (record or {}).get(key)
    return record


def patient_of(row: Mapping[str, Any]) -> str:
    """The patient of a row; its case where no patient is recorded."""
    return str(row.get("patient_id") or row["case_id"])


def read(workspace: Workspace) -> Results:
    """Read a workspace.

    PreconditionError MISSING_ARTIFACT when training has not run, IntegrityError for damage.
    """
    results = Results(
        history=_mapping(workspace.require(workspace.history, stage="train"), workspace, stage="train")
    )
    if workspace.manifest.exists():
        manifest = Manifest.load(workspace)
        results.manifest, results.data_hash = to_record(manifest), manifest.data_hash()
    if workspace.preprocess_report.exists():
        results.preprocess_report = _mapping(workspace.preprocess_report, workspace, stage="preprocess")
    _read_evaluation(workspace, results)
    if not results.manifest:
        results.notices.append(
            "processed_data/ is gone: data set, findings and pictures of cases are missing here; run "
            "`python run_pipeline.py --preprocess` again."
        )
    elif results.history.get("manifest_hash") not in (None, results.data_hash):
        results.notices.append(
            "The processed data changed after training: cases and findings below describe the new "
            "data; run `python run_pipeline.py --train --eval --analyze`."
        )
    if (stopped := results.history.get("stopped")) in artifacts.UNFINISHED:
        again = "run `python run_pipeline.py --train` to go on"
        if stopped == "diverged":
            again = "run `python run_pipeline.py --train --restart` with a smaller train.learning_rate"
        said = artifacts.UNFINISHED[stopped]
        results.notices.append(f"Training: {said}. The curves show how far it came; {again}.")
    return results


def _read_evaluation(workspace: Workspace, results: Results) -> None:
    summary_file, rows_file = (
        workspace.evaluation / "summary_statistics.json",
        workspace.evaluation / "per_case.csv",
    )
    missing = [path for path in (summary_file, rows_file, workspace.run_record) if not path.exists()]
    if missing:
        results.notices.append(
            f"The model has not been evaluated ({workspace.relative(missing[0])} does not exist): this "
            f"page has no test results; {EVALUATE_AGAIN}."
        )
        return
    run = _mapping(workspace.run_record, workspace, stage="eval")
    if (
        None not in (trained := results.history.get("manifest_hash"), tested := run.get("manifest_hash"))
        and trained != tested
    ):
        results.notices.append(
            "evaluation_results/ belongs to other processed data than this training run and is left "
            f"out; {EVALUATE_AGAIN}."
        )
        return
    if run.get("checkpoint_sha256") not in (
        None,
        artifacts.file_hash(workspace.best_model) if workspace.best_model.is_file() else None,
    ):
        results.notices.append(
            "The test results below were made with other weights than checkpoints/best_model.pth, for "
            f"example before the last training; {EVALUATE_AGAIN}."
        )
    results.run = run
    results.summary = _mapping(summary_file, workspace, stage="eval")
    results.rows = read_rows(rows_file)


def _mapping(path: Path, workspace: Workspace, *, stage: str) -> dict[str, Any]:
    content = artifacts.read_json(path)
    if not isinstance(content, dict):
        raise IntegrityError(
            "ARTIFACT_CORRUPT",
            "it holds no JSON object",
            f"run `python run_pipeline.py --{stage}` again",
            file=workspace.relative(path),
        )
    return content


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of `per_case.csv` or `topology.csv`: numbers as float, empty cells None, text and lists as
    they are.
    """
    required = ("case_id", "structure", "state")
    return read_csv(path, text=TEXT_COLUMNS, required=required, fix=EVALUATE_AGAIN)


def data_root(workspace: Workspace, manifest: dict[str, Any]) -> Path:
    """The folder of the raw scans; a relative one counts from the workspace of their preprocessing."""
    recorded = manifest.get("data_root")
    if not recorded:
        raise PreconditionError(
            "NO_DATA", "the manifest names no data folder", "run `python run_pipeline.py --preprocess` again"
        )
    return workspace.processed.parent / str(recorded)
