"""Pairs of masks scored case by case in processes of their own, and what a result file says of how it was
done.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ctseg.artifacts import Workspace
from ctseg.errors import IntegrityError
from ctseg.evaluation.mask_comparison import MaskPair
from ctseg.evaluation.mask_pairs import Pair, ScoreSettings, check_names, check_sets, score_pair
from ctseg.manifest import Manifest
from ctseg.processes import ordered_map
from ctseg.scoring import distances, statistics
from ctseg.scoring.metrics import Row, Structure


@dataclasses.dataclass(frozen=True)
class Scored:
    """Pairs and their scores, ordered by case id and structure.

    rows: of the predictions. nothing: of a model that predicts nothing. notes: lines of what was noticed.
    """

    pairs: Sequence[Pair] | Sequence[MaskPair]
    structures: Sequence[Structure]
    how: ScoreSettings
    rows: list[Row]
    nothing: list[Row]
    notes: list[str]

    @property
    def names(self) -> list[str]:
        """The structures' names in order."""
        return [structure.name for structure in self.structures]

    @property
    def missing(self) -> int:
        """How many predictions there are none of."""
        return sum(pair.prediction is None for pair in self.pairs)

    @property
    def warnings(self) -> list[str]:
        """The notes, after a line about predictions that are missing."""
        line = f"{self.missing} predictions are missing; their structures count as missed"
        return [line, *self.notes] if self.missing else self.notes

    def settings(self, *, split_hash: str | None, synthetic: bool) -> dict[str, Any]:
        """How the scores were made, as the result files hold it (JSON values)."""
        return {
            "boundary_mode": self.how.boundary_mode,
            "hd95": "max_of_directed_percentiles",
            "tolerance_epsilon": distances.TOLERANCE_EPSILON,
            "empty_policy": "present_only",
            "tolerances_mm": {name: list(values) for name, values in self.how.tolerances_mm.items()},
            "distance_unit": "mm",
            "bootstrap": {"method": "bca", "resamples": statistics.RESAMPLES, "seed": statistics.SEED},
            "split_hash": split_hash,
            "n_patients": len({pair.patient_id for pair in self.pairs}),
            "n_cases": len(self.pairs),
            "n_missing_predictions": self.missing,
            "synthetic": synthetic,
        }


def score_pairs(
    pairs: Sequence[Pair] | Sequence[MaskPair],
    structures: Sequence[Structure],
    how: ScoreSettings,
    *,
    workers: int = 1,
    score: Callable[..., Any] = score_pair,
    progress: Callable[..., Any] | None = None,
) -> Scored:
    """Score every pair: one process per case at a time, one thread each.

    The result does not depend on the number of workers. score: what scores one pair. progress: as
    `ordered_map` takes it.
    """
    ordered: Any = sorted(pairs, key=lambda pair: pair.case_id)
    job = functools.partial(score, structures=structures, settings=how)
    scored = ordered_map(job, ordered, workers=workers, progress=progress)
    rows, nothing, notes = ([entry for case in scored for entry in case[part]] for part in range(3))
    return Scored(ordered, structures, how, rows, nothing, notes)


def pairs_of_test_split(workspace: Workspace, manifest: Manifest, record: Mapping[str, Any]) -> list[Pair]:
    """The predictions that `evaluation_run.json` lists, beside the references of the test split.

    Raises IntegrityError when the two are about other structures or cases.
    """
    if record["structures"] != list(manifest.structures):
        raise IntegrityError(
            "ORGAN_MAP_MISMATCH",
            "the predictions name other structures than processed_data",
            "run `python evaluate.py` again",
            file=workspace.relative(workspace.run_record),
        )
    check_names(manifest.structures)
    expected = {case.case_id: case for case in manifest.of_split("test")}
    predicted = {case["case_id"]: case for case in record["cases"]}
    check_sets("test case", expected, predicted)
    return [
        Pair(
            case_id,
            case.patient_id,
            workspace.evaluation / predicted[case_id]["prediction"],
            workspace.processed / predicted[case_id]["reference"],
            predicted[case_id]["prediction"],
            f"processed_data/{predicted[case_id]['reference']}",
            case.states,
        )
        for case_id, case in expected.items()
    ]
