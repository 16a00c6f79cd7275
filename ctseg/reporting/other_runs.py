"""This run beside others on the same test patients, for one table of the report.

Runs of another split, of other references or another surface definition are refused: their means cannot be
compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.errors import IntegrityError, PreconditionError
from ctseg.reporting import results
from ctseg.reporting.comparison import FORMAT, bare_p
from ctseg.reporting.method_sentences import described
from ctseg.reporting.page import interval_text, minus, plural, short_hash, starred, text_of
from ctseg.reporting.results import Results, dig
from ctseg.scoring.comparison import ALL, compare

THIS = "this run"
Key = tuple[str, str, str]


def read_comparison(workspace: Workspace) -> dict[str, Any] | None:
    """The record of `run_pipeline.py --compare` of this workspace; None when there is none."""
    path = workspace.comparison / "comparison.json"
    if not path.exists():
        return None
    record = artifacts.read_json(path)
    if (
        not isinstance(record, dict)
        or record.get("format") != FORMAT
        or not isinstance(record.get("statistics"), dict)
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
    runs = {f"{THIS} ({found.history.get('model') or 'model'})": found}
    for folder in folders:
        other = results.read(Workspace(folder))
        _check(found, other, folder.absolute().name)
        name = f"{folder.absolute().name} ({other.history.get('model') or 'model'})"
        while name in runs:
            name += "′"
        runs[name] = other
    rows = {name: run.rows_by_key for name, run in runs.items()}
    shared = set.intersection(*(set(mine) for mine in rows.values()))
    if not shared:
        raise IntegrityError(
            "CASES_DIFFER",
            "the runs share no scored test case and structure",
            "evaluate them on the same test split",
        )
    scores = {
        name: {
            int(dig(runs[name].history, "settings", "train", "seed") or 0): {
                key: row for key, row in mine.items() if key in shared
            }
        }
        for name, mine in rows.items()
    }
    left_out = max(len(mine) - len(shared) for mine in rows.values())
    warnings = (
        [
            f"Only what all runs scored is compared; up to {plural(left_out, 'result')} of a run are "
            "left out, so its mean can differ from that at the top of its own page."
        ]
        if left_out
        else []
    )
    return {"statistics": described(compare(scores)), "warnings": warnings}


def _check(found: Results, other: Results, name: str) -> None:
    if not other.evaluated:
        raise PreconditionError(
            "MISSING_ARTIFACT",
            f"'{name}' after --compare-with has no test results",
            f"{results.EVALUATE_AGAIN} with --workspace for it",
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
    """The runs as words: headline of each and its difference to the first; empty without a record."""
    if not record:
        return {}
    found = record["statistics"]
    main = {
        pair["method"]: pair
        for pair in found["pairs"]
        if pair["metric"] == "dice" and pair["structure"] == ALL and pair["reference"] == found["reference"]
    }
    lines = []
    for score in found["methods"]:
        pair = main.get(score["method"], {})
        lines.append(
            {
                "name": score["method"],
                "dice": text_of(score["macro"]["dice"]),
                "interval": starred(score["macro_ci95"]["dice"], score["flags"]),
                "nsd": text_of(score["macro"]["nsd"]),
                "hd95": text_of(score["macro"]["hd95_mm"], "{:.1f}"),
                "missed": f"{score['missed']} of {score['scored']}",
                "any_missed": bool(score["missed"]),
                "sd": text_of(score["seed_sd"]["dice"]),
                "runs": plural(len(score["seeds"]), "run"),
                "difference": minus(text_of(pair.get("difference"), "{:+.3f}")),
                "difference_ci": minus(interval_text(pair.get("ci95"), "{:+.3f}")),
                "p": bare_p(pair.get("p_holm")),
                "verdict": pair.get("verdict", "reference"),
            }
        )
    return {
        "lines": lines,
        "sentences": [line[:1].upper() + line[1:] for line in found["sentences"].values()],
        "warnings": [*found["warnings"], *(record.get("warnings") or [])],
        "n_patients": found["n_patients"],
        "n_structures": len(found["structures"]),
        "n_tests": found["n_tests"],
        "reference": found["reference"],
    }
