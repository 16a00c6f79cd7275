"""Which method is better, by how much, and is it more than chance: paired statistics over patients.

The unit is the patient: several scans of one patient are averaged first, and several training runs (seeds) of
one method are averaged per scan. Only structures that the reference holds take part; a missed one counts 0 in
Dice and NSD. HD95 is undefined where a structure was missed, so two methods are paired only where every run
of both found it, and how often each missed is reported beside it: nobody wins by missing.

Tests are corrected by Holm over the whole family of pairs, metrics and structures. Intervals: percentile
bootstrap of a median, BCa of a macro mean. `paired.py` has the formulas, `reporting/method_sentences.py` the
sentences.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctseg.errors import IntegrityError, UsageError, listed
from ctseg.scoring.metrics import MISSED, has_reference
from ctseg.scoring.paired import (
    SMALLEST_TEST_N,
    Rank,
    holm,
    macro,
    macro_interval,
    median_interval,
    nan_mean,
    rank,
    wilcoxon_p,
)

CaseKey = tuple[str, str, str]  # patient_id, case_id, structure
Rows = Mapping[CaseKey, Mapping[str, Any]]  # -> metric values (None: undefined) and "state"
Scores = Mapping[str, Mapping[int, Rows]]  # method -> seed -> rows

METRICS = {"dice": 1, "nsd": 1, "hd95_mm": -1}  # +1: higher is better
ZERO_WHEN_MISSED = ("dice", "nsd")
ALL = "all structures"
LEVEL = 0.05
TOO_SMALL, NOT_SEPARABLE, BETTER, WORSE, NOTHING_SHOWN = (
    "n too small",
    "not separable",
    "better",
    "worse",
    "no difference shown",
)


@dataclasses.dataclass
class MethodScore:
    """One method by itself. `macro`: metric -> mean over the structures of the structure's mean over
    patients; hd95_mm there is "where defined" and never to be read without `missed`. `seed_macro`: metric ->
    seed -> macro.
    `seed_sd`: metric -> deviation (ddof 1) of `seed_macro`, None with one seed. `structures`: name -> metric
    -> mean. missed, scored: structures in scans, all runs counted."""

    method: str
    seeds: list[int]
    macro: dict[str, float | None]
    macro_ci95: dict[str, list[float] | None]
    flags: list[str]
    seed_macro: dict[str, dict[str, float | None]]
    seed_sd: dict[str, float | None]
    structures: dict[str, dict[str, float | None]]
    missed: int
    scored: int


@dataclasses.dataclass
class PairTest:
    """`method` against `reference` in one metric and one structure (or ALL of them).

    difference: method minus reference; the median over patients, for ALL the difference of the macro means.
    n: patients in it. p: two-sided, None when it could not be tested; p_holm: corrected over the whole
    family. sd_*: deviation over the seeds of the mean. separable: False when the difference is below twice
    the larger sd, None with single seeds. verdict: about `method`. missed_*: of scored_* structures in scans,
    all runs counted.
    """

    reference: str
    method: str
    metric: str
    structure: str
    with_reference: bool
    n: int
    difference: float | None
    ci95: list[float] | None
    flags: list[str]
    p: float | None
    p_holm: float | None
    sd_reference: float | None
    sd_method: float | None
    separable: bool | None
    verdict: str
    missed_reference: int
    scored_reference: int
    missed_method: int
    scored_method: int


@dataclasses.dataclass
class Comparison:
    """Everything said about the methods. kendall_tau: mean tau-b of the resampled rankings to that of all
    patients."""

    reference: str
    structures: list[str]
    structures_without_reference: list[str]
    n_patients: int
    n_cases: int
    n_tests: int
    methods: list[MethodScore]
    pairs: list[PairTest]
    ranking: list[Rank]
    kendall_tau: float | None

    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dataclasses.asdict(self)


def compare(scores: Scores) -> Comparison:
    """Compare all methods; the first one is the reference that the sentences speak of.

    Raises UsageError with fewer than one method or run, IntegrityError CASES_DIFFER when two runs were not
    scored on the same cases, structures and references.
    """
    data = _Data.of(scores)
    names = list(data.runs)
    pairs = [
        compare_pair(data, a, b, metric, structure)
        for a, b in itertools.combinations(names, 2)
        for metric in METRICS
        for structure in [ALL, *data.structures]
    ]
    correct_family(pairs)
    ranking, tau = rank(np.stack([data.matrix(data.mean_over_runs(name, "dice")) for name in names]), names)
    return Comparison(
        reference=names[0],
        structures=data.structures,
        structures_without_reference=data.without,
        n_patients=len(data.patients),
        n_cases=data.n_cases,
        n_tests=sum(pair.p is not None for pair in pairs),
        methods=[score_method(data, name) for name in names],
        pairs=pairs,
        ranking=ranking,
        kendall_tau=tau,
    )


# ---- the numbers as arrays --------------------------------------------------------------------------------


@dataclasses.dataclass
class _Data:
    """runs: method -> metric -> (runs, rows) values, NaN where undefined, and under MISSED 1 or 0; the rows
    are those with a reference. patient, structure: (rows,) numbers in `patients` and `structures`."""

    runs: dict[str, dict[str, np.ndarray]]
    seeds: dict[str, list[int]]
    patient: np.ndarray
    structure: np.ndarray
    patients: list[str]
    structures: list[str]
    without: list[str]
    n_cases: int

    @classmethod
    def of(cls, scores: Scores) -> _Data:
        keys = check_same_cases(scores)
        everyone = next(iter(next(iter(scores.values())).values()))
        used = [key for key in keys if has_reference(everyone[key])]
        patients = sorted({key[0] for key in keys})
        named = list(dict.fromkeys(key[2] for key in everyone))
        structures = [name for name in named if any(key[2] == name for key in used)]
        if not structures:
            raise UsageError(
                "NOTHING_TO_COMPARE",
                "the references hold none of the structures",
                "compare on scans that show them",
            )
        return cls(
            runs={
                name: {
                    metric: np.array([[_value(rows[key], metric) for key in used] for rows in runs.values()])
                    for metric in (*METRICS, MISSED)
                }
                for name, runs in scores.items()
            },
            seeds={name: list(runs) for name, runs in scores.items()},
            patient=np.array([patients.index(key[0]) for key in used], dtype=np.intp),
            structure=np.array([structures.index(key[2]) for key in used], dtype=np.intp),
            patients=patients,
            structures=structures,
            without=[name for name in named if name not in structures],
            n_cases=len({key[:2] for key in keys}),
        )

    def mean_over_runs(self, method: str, metric: str) -> np.ndarray:
        """(rows,) mean over the seeds in which the value is defined."""
        return nan_mean(self.runs[method][metric], axis=0)

    def matrix(self, values: np.ndarray) -> np.ndarray:
        """(patients, structures) from (rows,): several scans of one patient averaged, NaN where there is
        nothing."""
        total, count = (np.zeros((len(self.patients), len(self.structures))) for _ in range(2))
        defined = ~np.isnan(values)
        place = self.patient[defined], self.structure[defined]
        np.add.at(total, place, values[defined])
        np.add.at(count, place, 1)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def columns(self, structure: str) -> slice:
        """The columns of a matrix that hold a structure, or ALL."""
        first = 0 if structure == ALL else self.structures.index(structure)
        return slice(first, None if structure == ALL else first + 1)

    def seed_means(self, method: str, metric: str, structure: str = ALL) -> list[float]:
        """The mean of each run: over patients, for ALL over the structures too; NaN for nothing."""
        columns = self.columns(structure)
        return [macro(self.matrix(run)[:, columns]) for run in self.runs[method][metric]]

    def seed_deviation(self, method: str, metric: str, structure: str = ALL) -> float | None:
        """Deviation (ddof 1) of `seed_means`; None with fewer than two that are defined."""
        defined = [value for value in self.seed_means(method, metric, structure) if not np.isnan(value)]
        return float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def _value(row: Mapping[str, Any], metric: str) -> float:
    if metric == MISSED:
        return float(row["state"] == MISSED)
    if row["state"] == MISSED:
        return 0.0 if metric in ZERO_WHEN_MISSED else np.nan
    value = row.get(metric)
    return np.nan if value is None else float(value)


def check_same_cases(scores: Scores) -> list[CaseKey]:
    """The keys that all runs share, sorted; an error that names what differs."""
    runs = [
        (f"{method} (seed {seed})", rows) for method, seeds in scores.items() for seed, rows in seeds.items()
    ]
    if not runs or any(not seeds for seeds in scores.values()):
        raise UsageError(
            "NOTHING_TO_COMPARE", "a method has no scored run", "train and evaluate every method first"
        )
    first_name, first = runs[0]
    for name, rows in runs[1:]:
        strange = sorted(set(first) ^ set(rows)) or sorted(
            key for key in first if has_reference(first[key]) != has_reference(rows[key])
        )
        if strange:
            cases = sorted({key[1] for key in strange})
            raise IntegrityError(
                "CASES_DIFFER",
                f"{first_name} and {name} were not scored on the same cases and references: {listed(cases)}",
                "evaluate both on the same test split",
                case=cases[0],
            )
    return sorted(first)


# ---- one method, two methods ------------------------------------------------------------------------------


def score_method(data: _Data, name: str) -> MethodScore:
    """One method by itself: means over the structures, their intervals, and what it missed."""
    matrices = {metric: data.matrix(data.mean_over_runs(name, metric)) for metric in METRICS}
    intervals = {metric: macro_interval(matrix) for metric, matrix in matrices.items()}
    return MethodScore(
        method=name,
        seeds=data.seeds[name],
        macro={metric: _plain(macro(matrix)) for metric, matrix in matrices.items()},
        macro_ci95={metric: interval for metric, (interval, _) in intervals.items()},
        flags=intervals["dice"][1],
        seed_macro={
            metric: {
                str(seed): _plain(value)
                for seed, value in zip(data.seeds[name], data.seed_means(name, metric))
            }
            for metric in METRICS
        },
        seed_sd={metric: data.seed_deviation(name, metric) for metric in METRICS},
        structures={
            structure: {
                metric: _plain(macro(matrix[:, data.columns(structure)]))
                for metric, matrix in matrices.items()
            }
            for structure in data.structures
        },
        missed=int(data.runs[name][MISSED].sum()),
        scored=int(data.runs[name][MISSED].size),
    )


def compare_pair(data: _Data, reference: str, method: str, metric: str, structure: str) -> PairTest:
    """One row of the table; p_holm and verdict are filled in when the family is complete."""
    one, other = data.runs[reference][metric], data.runs[method][metric]
    chosen = np.isin(data.structure, np.arange(len(data.structures))[data.columns(structure)])
    use = chosen & ~np.isnan(one).any(axis=0) & ~np.isnan(other).any(axis=0)  # every run of both methods
    difference = np.full(len(use), np.nan)
    difference[use] = other[:, use].mean(axis=0) - one[:, use].mean(axis=0)
    # a last bit of rounding is neither a difference nor breaks a tie
    matrix = np.round(data.matrix(difference), 12)
    per_patient = nan_mean(matrix, axis=1)
    per_patient = np.round(per_patient[~np.isnan(per_patient)], 12)
    if structure == ALL:
        effect, (interval, flags) = macro(matrix), macro_interval(matrix)
    else:
        effect = float(np.median(per_patient)) if len(per_patient) else np.nan
        interval, flags = median_interval(per_patient)
    sd = [data.seed_deviation(name, metric, structure) for name in (reference, method)]
    largest = max((value for value in sd if value is not None), default=None)
    missed = [data.runs[name][MISSED][:, chosen] for name in (reference, method)]
    return PairTest(
        reference=reference,
        method=method,
        metric=metric,
        structure=structure,
        with_reference=reference == next(iter(data.runs)),
        n=len(per_patient),
        difference=_plain(effect),
        ci95=interval,
        flags=flags,
        p=wilcoxon_p(per_patient) if len(per_patient) >= SMALLEST_TEST_N else None,
        p_holm=None,
        sd_reference=sd[0],
        sd_method=sd[1],
        separable=None if largest is None or np.isnan(effect) else bool(abs(effect) >= 2 * largest),
        verdict="",
        missed_reference=int(missed[0].sum()),
        scored_reference=missed[0].size,
        missed_method=int(missed[1].sum()),
        scored_method=missed[1].size,
    )


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def correct_family(pairs: Sequence[PairTest]) -> None:
    """Fill in p_holm and verdict of all pairs, which are one family of tests."""
    tested = [pair for pair in pairs if pair.p is not None]
    for pair, p in zip(tested, holm([pair.p for pair in tested if pair.p is not None])):
        pair.p_holm = p
    for pair in pairs:
        pair.verdict = verdict_of(pair)


def verdict_of(pair: PairTest) -> str:
    """What may be said of `method`. Better or worse: significant after correction, more than the seeds
    scatter, and an interval that agrees (median and ranks can point different ways)."""
    if pair.p_holm is None or pair.difference is None:
        return TOO_SMALL
    if pair.separable is False and pair.difference:
        return NOT_SEPARABLE
    if pair.p_holm >= LEVEL or pair.ci95 is None or pair.ci95[0] <= 0 <= pair.ci95[1]:
        return NOTHING_SHOWN
    return BETTER if pair.difference * METRICS[pair.metric] > 0 else WORSE
