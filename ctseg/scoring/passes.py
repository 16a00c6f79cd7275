"""What each pass of a multi-pass network adds: scores pass by pass, and the paired difference between the last and the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctseg.scoring.paired import median_interval, wilcoxon_p

SMALLEST_TEST_N = 6  # below, no outcome could be significant
Row = Mapping[str, Any]


def pass_lines(rows_by_pass: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """One line per case, structure and pass: dice, hd95_mm, assd_mm, and what was predicted outside the structure in mL."""
    lines = []
    for number, rows in enumerate(rows_by_pass, start=1):
        for row in rows:
            voxel_ml = row["spacing_d_mm"] * row["spacing_h_mm"] * row["spacing_w_mm"] / 1000
            outside = None if row["fp"] is None else row["fp"] * voxel_ml
            lines.append(
                {
                    "case_id": row["case_id"],
                    "patient_id": row["patient_id"],
                    "structure": row["structure"],
                    "state": row["state"],
                    "pass": number,
                    **{key: row[key] for key in ("dice", "hd95_mm", "assd_mm")},
                    "fp_volume_ml": outside,
                }
            )
    return sorted(lines, key=lambda line: (line["case_id"], line["structure"], line["pass"]))


@dataclasses.dataclass(frozen=True)
class PassGain:
    """Last pass minus first in Dice over patients: median difference with its 95 % interval, and the two-sided p (None below 6 patients)."""

    n: int
    first: float
    last: float
    difference: float
    ci95: list[float] | None
    p: float | None

    def sentence(self) -> str:
        """The result in words."""
        interval = f", 95 % interval {self.ci95[0]:+.4f} to {self.ci95[1]:+.4f}" if self.ci95 else ""
        evidence = f", p = {self.p:.2g}" if self.p is not None else ", too few patients for a test"
        return f"Passes: mean Dice {self.first:.3f} after the first, {self.last:.3f} after the last; median difference {self.difference:+.4f} (n = {self.n} patients{interval}{evidence})."


def pass_gain(rows_by_pass: Sequence[Sequence[Row]]) -> PassGain | None:
    """The gain over present and missed structures, averaged per patient; None when no test case shows a structure."""
    first, last = (_per_patient(rows) for rows in (rows_by_pass[0], rows_by_pass[-1]))
    if not first:
        return None
    patients = sorted(first)
    differences = np.array([last[patient] - first[patient] for patient in patients])
    return PassGain(
        len(patients),
        float(np.mean(list(first.values()))),
        float(np.mean(list(last.values()))),
        float(np.median(differences)),
        median_interval(differences)[0],
        wilcoxon_p(differences) if len(patients) >= SMALLEST_TEST_N else None,
    )


def _per_patient(rows: Sequence[Row]) -> dict[str, float]:
    """Mean Dice of each patient over the structures that the reference shows; a missed one counts 0."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["state"] in ("present", "missed"):
            values.setdefault(row["patient_id"], []).append(row["dice"] or 0.0)
    return {patient: float(np.mean(dices)) for patient, dices in values.items()}
