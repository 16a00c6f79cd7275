"""This run beside others on the same test patients, for one table of the report.

Runs of another split, of other references or another surface definition are refused: their means cannot be
compared.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.errors import IntegrityError, PreconditionError
from ctseg.reporting import results
from ctseg.reporting.comparison import FORMAT
from ctseg.reporting.method_sentences import described
from ctseg.reporting.page import plural, short_hash
from ctseg.reporting.results import Results, dig
from ctseg.scoring.comparison import ALL, METRICS, Comparison, compare
from ctseg.typed_values import fits

THIS = "this run"


class Words(TypedDict):
    """What `described` adds to a comparison."""

    sentences: dict[str, str]
    warnings: list[str]


class ComparisonRecord(TypedDict):
    """What the report reads of the record of a comparison."""

    format: Annotated[str, FORMAT.__eq__]
    statistics: Annotated[Comparison, functools.partial(fits, kind=Words)]
    warnings: list[str]


def read_comparison(workspace: Workspace) -> dict[str, Any] | None:
    """The record of `run_pipeline.py --compare` of this workspace; None when there is none."""
    path = workspace.comparison / "comparison.json"
    if not path.exists():
        return None
    record = artifacts.read_json(path)
    if not fits(record, ComparisonRecord) or not all(
        score[key].keys() == METRICS.keys()
        for score in record["statistics"]["methods"]
        for key in ("macro", "macro_ci95", "seed_sd")
    ):
        raise IntegrityError(
            "ARTIFACT_CORRUPT",
            "it is no record of a comparison",
            "run `python run_pipeline.py --compare ...` again",
            file=workspace.relative(path),
        )
    return record


def gather(found: Results, folders: Sequence[Path]) -> dict[str, Any]:
    """A record like that of a comparison, of this run and the finished workspaces in `folders`.

    PreconditionError where one has no results, IntegrityError where it cannot be compared.
    """
    if not found.evaluated:
        raise PreconditionError(
            "MISSING_ARTIFACT", "this workspace has no test results to compare", results.EVALUATE_AGAIN
        )
    runs = {_titled(THIS, found): found}
    for folder in folders:
        name = folder.absolute().name
        other = results.read_other(Workspace(folder), name, f"{{fix}}, with --workspace {folder}")
        _check(found, other, folder)
        title = _titled(name, other)
        while title in runs:
            title += "′"
        runs[title] = other
    rows = {title: run.rows_by_key for title, run in runs.items()}
    shared = set.intersection(*map(set, rows.values()))
    if not shared:
        raise IntegrityError(
            "CASES_DIFFER",
            "the runs share no scored test case and structure",
            "evaluate them on the same test split",
        )
    statistics = compare(
        {
            title: {
                run.history["settings"]["train"]["seed"]: {
                    key: row for key, row in rows[title].items() if key in shared
                }
            }
            for title, run in runs.items()
        }
    )
    left_out = max(map(len, rows.values())) - len(shared)
    warning = (
        f"Only what all runs scored is compared; up to {plural(left_out, 'result')} of a run are "
        "left out, so its mean can differ from that at the top of its own page."
    )
    return {"statistics": described(statistics), "warnings": [warning] if left_out else []}


def _titled(name: str, run: Results) -> str:
    return f"{name} ({run.history['model']})"


def _check(found: Results, other: Results, folder: Path) -> None:
    name = folder.absolute().name
    if not other.evaluated:
        raise PreconditionError(
            "MISSING_ARTIFACT",
            f"'{name}' after --compare-with has no test results",
            f"{results.EVALUATE_AGAIN} with --workspace {folder}",
        )
    for code, key, what, fix in (
        (
            "SPLITS_DIFFER",
            "split_hash",
            "split of the patients",
            "train and test both on one split: share the tensors by --processed",
        ),
        (
            "SETTINGS_DIFFER",
            "boundary_mode",
            "definition of a surface",
            "evaluate both with the same --boundary-mode",
        ),
    ):
        mine, theirs = (dig(run.summary, "settings", key) for run in (found, other))
        if mine != theirs or mine is None:
            raise IntegrityError(
                code,
                f"'{name}' was tested with another {what} "
                f"({short_hash(theirs, 'not recorded')}, here {short_hash(mine, 'not recorded')})",
                fix,
            )


def table(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The statistics of the record, its warnings, and the runs' macro Dice against the first one (main:
    method -> pair); empty without a record.
    """
    if not record:
        return {}
    found = record["statistics"]
    main = {
        pair["method"]: pair
        for pair in found["pairs"]
        if pair["with_reference"] and pair["metric"] == "dice" and pair["structure"] == ALL
    }
    return {**found, "main": main, "warnings": [*found["warnings"], *record.get("warnings", [])]}
