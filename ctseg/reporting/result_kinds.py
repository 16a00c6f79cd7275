"""What pages and plots read of the files of other stages, as types: `results` refuses anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from ctseg.artifacts import SERIES, SERIES_OF_STRUCTURES
from ctseg.errors import Finding


class Statistic(TypedDict):
    """Of one metric and structure."""

    mean: float
    median: float
    p05: float
    n: int
    ci95: tuple[float, float] | None
    flags: list[str]


class Undefined(TypedDict):
    """A metric that no scan has."""

    mean: None
    median: None
    p05: None
    n: Literal[0]
    ci95: None
    flags: list[str]


class Means(TypedDict):
    """Over the structures that some reference shows."""

    macro_dice: float | None
    macro_nsd: float | None
    macro_hd95_imputed: float | None


class Headline(Means):
    """Means and whose they are."""

    structures: list[str]
    structures_without_reference: list[str]


class Nothing(Means):
    """The predictor that leaves every voxel background."""

    better_than_baseline: bool | None


class Baselines(TypedDict):
    """What the headline stands beside."""

    all_background: Nothing


class Presence(TypedDict):
    """In how many scans a structure is in each state."""

    n_present: int
    n_missed: int
    n_hallucinated: int
    n_absent: int
    n_unannotated: int
    n_unevaluable: int


class Bin(TypedDict):
    """Voxels of about one probability: how many, its mean and how often it was right."""

    n: int
    p: float
    y: float


class EmptyBin(TypedDict):
    """A probability that no voxel has."""

    n: Literal[0]


class Calibration(TypedDict):
    """Of one structure in one region."""

    ece: float | None
    brier: float | None
    nll: float | None
    bins: list[EmptyBin | Bin]


class Regions(TypedDict):
    """Of one structure."""

    band: Calibration
    whole: Calibration


class FailureDetection(TypedDict):
    """Whether confidence warns."""

    aurc: float | None
    spearman: float | None


class TopologyColumns(TypedDict, total=False):
    """Those of one kind of structure."""

    td_lcc: Statistic | Undefined
    bd_lcc: Statistic | Undefined
    precision_lcc: Statistic | Undefined
    leakage_lcc: Statistic | Undefined
    td_full: Statistic | Undefined
    precision_full: Statistic | Undefined
    breaks: Statistic | Undefined
    cldice: Statistic | Undefined
    betti_error: Statistic | Undefined


class Topology(TopologyColumns):
    """Of one tube or tree."""

    n_reference: int
    all_background: dict[str, float | None]


class ScoreSettings(TypedDict):
    """How scores were made."""

    boundary_mode: str
    split_hash: str | None
    tolerances_mm: dict[str, list[float]]
    n_missing_predictions: int


class PredictedCase(TypedDict):
    """A test case of `evaluation_run.json`."""

    case_id: str
    prediction: str
    seconds: float


class Training(TypedDict):
    """How long and on what was trained."""

    minutes: float
    epochs: int
    steps_per_epoch: int
    batch_size: int
    patch_size: tuple[int, int, int]
    seed: int


class HistorySettings(TypedDict):
    """The settings of a training."""

    train: Training


Series = list[float | None]  # a value per epoch, null where it was not measured
Kinds = Mapping[str, Any]
HISTORY: Kinds = {
    **dict.fromkeys(SERIES, Series),
    **dict.fromkeys(SERIES_OF_STRUCTURES, dict[str, Series]),
    "epochs": list[int],
    "resource_usage": list[dict[str, float | None]],
    **dict.fromkeys(("model", "manifest_hash", "stopped"), str),
    **dict.fromkeys(("parameters", "steps"), int),
    "synthetic": bool,
    "structures": list[str],
    "best_epoch": int | None,
    "best_val_dice": float | None,
    "seconds": float,
    **dict.fromkeys(("step_seconds", "peak_memory_gb"), float | None),
    "settings": HistorySettings,
}
RUN: Kinds = {
    "structures": Annotated[list[str], bool],  # at least one
    "cases": list[PredictedCase],
    "settings": dict | None,
    "device": str | None,
    "synthetic": bool,
}
SUMMARY: Kinds = {
    "settings": ScoreSettings,
    "presence": dict[str, Presence],
    "headline": Headline,
    "baselines": Baselines,
    "topology": dict[str, Topology],
    "calibration": dict[str, Regions],
    "failure_detection": FailureDetection,
    "warnings": list[str],
}
REPORT: Kinds = {**dict.fromkeys(("found", "processed", "cached", "skipped"), int), "findings": list[Finding]}
