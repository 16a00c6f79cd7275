"""Other packages: the same values where they are right, and the difference by name where they are not.

A package that is not installed is skipped. tests/test_metrics.py compares HD, HD95, ASSD and MASD too. All
masks are made up (synthetic).
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from metric_oracles import ball, organ, scores, summary
from scipy.ndimage import gaussian_filter

from ctseg.scoring import tolerances
from ctseg.scoring.summary import mean

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 2.0, 1.0), (0.7, 0.9, 2.5)]
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)


def blobs(seed: int, shape: tuple[int, int, int] = (10, 12, 14)) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, reference): two smooth blobs that overlap in part."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=shape)
    fields = [gaussian_filter(common + 0.6 * rng.normal(size=shape), 1.5) for _ in range(2)]
    return fields[0] > np.quantile(fields[0], 0.7), fields[1] > np.quantile(fields[1], 0.75)


def far_blob() -> tuple[np.ndarray, np.ndarray]:
    """(prediction, reference): a ball, and the same with a small one 170 mm away."""
    reference = ball((14, 14, 14), 10, (28, 28, 210))
    return reference | ball((14, 14, 194), 3, (28, 28, 210)), reference


# ---- MONAI ------------------------------------------------------------------------------------------------


@pytest.fixture
def monai_metrics():
    pytest.importorskip("monai", reason="MONAI is not installed")
    from monai import metrics

    return metrics


def tensors(prediction: np.ndarray, reference: np.ndarray) -> dict:
    import torch

    return {
        "y_pred": torch.from_numpy(prediction)[None, None].float(),
        "y": torch.from_numpy(reference)[None, None].float(),
    }


@pytest.mark.parametrize("spacing", SPACINGS)
def test_voxel_nsd_agrees_with_monai(monai_metrics, spacing: tuple[float, float, float]) -> None:
    for seed in range(4):
        pair = blobs(seed)
        for tau in (1.3, 2.2):
            theirs = monai_metrics.compute_surface_dice(
                class_thresholds=[tau], include_background=True, spacing=list(spacing), **tensors(*pair)
            )
            assert scores(*pair, spacing, (tau, 1.0), "voxel")[tolerances.key(tau)] == pytest.approx(
                float(theirs), abs=1e-6
            )


def test_monai_drops_missed_organs_from_hd95_and_gives_0_for_nothing_found(monai_metrics) -> None:
    """Ours: null for undefined, and the image diagonal in the imputed mean; missing an organ must not improve
    it.
    """
    nothing = np.zeros_like(organ())
    moved = np.roll(organ(), 2, axis=2)

    def aggregated(*predictions: np.ndarray) -> float:
        metric = monai_metrics.HausdorffDistanceMetric(include_background=True, percentile=95)
        for prediction in predictions:
            metric(**tensors(prediction, organ()), spacing=[3, 2, 1])
        return float(metric.aggregate())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert aggregated(nothing, nothing) == 0.0
        assert aggregated(moved, nothing) == aggregated(moved, moved)
    assert mean([None, None]) is None
    found, missed = summary([moved, moved], [organ(), organ()]), summary([moved, nothing], [organ(), organ()])
    assert summary([nothing] * 2, [organ()] * 2)["liver_hd95"]["mean"] is None
    assert missed["liver_hd95_imputed"]["mean"] > found["liver_hd95_imputed"]["mean"] + 10
    assert missed["headline"]["macro_hd95_imputed"] > found["headline"]["macro_hd95_imputed"] + 10


def test_monai_dice_drops_organs_invented_in_empty_references(monai_metrics) -> None:
    nothing = np.zeros_like(organ())
    metric = monai_metrics.DiceMetric(include_background=True)
    metric(**tensors(organ(), nothing))
    metric(**tensors(organ(), organ()))
    assert float(metric.aggregate()) == 1.0
    ours = summary([organ(), organ()], [nothing, organ()])
    assert ours["all_cases"]["liver_dice"]["mean"] == 0.5 and ours["presence"]["liver"]["n_hallucinated"] == 1


# ---- surface-distance -------------------------------------------------------------------------------------


@pytest.fixture
def deepmind():
    return pytest.importorskip("surface_distance", reason="the surface-distance package is not installed")


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surfel_nsd_and_directed_means_agree_with_surface_distance(
    deepmind, spacing: tuple[float, float, float]
) -> None:
    for prediction, reference in (blobs(1), blobs(2), far_blob()):
        theirs = deepmind.compute_surface_distances(reference, prediction, spacing)
        ours = scores(prediction, reference, spacing, (1.3, 2.2))
        for tau in (1.3, 2.2):
            assert ours[tolerances.key(tau)] == pytest.approx(
                deepmind.compute_surface_dice_at_tolerance(theirs, tau * (1 + 1e-6)), abs=1e-9
            )
        assert ours["masd_mm"] == pytest.approx(
            sum(deepmind.compute_average_surface_distance(theirs)) / 2, abs=1e-5
        )
        for percent, key in ((95, "hd95_mm"), (100, "hd_mm")):
            assert ours[key] == pytest.approx(deepmind.compute_robust_hausdorff(theirs, percent), abs=1e-4)


def test_surface_distance_has_no_null_for_empty_masks(deepmind) -> None:
    """It crashes or says infinite; ours is None."""
    nothing = np.zeros((6, 6, 6), bool)
    try:
        value = float(
            deepmind.compute_robust_hausdorff(
                deepmind.compute_surface_distances(nothing, nothing, (1, 1, 1)), 95
            )
        )
    except Exception:
        value = math.inf
    assert math.isinf(value) or math.isnan(value)
    assert scores(nothing, nothing)["hd95_mm"] is None


# ---- MedPy and SimpleITK ----------------------------------------------------------------------------------


@pytest.fixture
def medpy():
    pytest.importorskip("medpy", reason="MedPy is not installed")
    from medpy.metric import binary

    return binary


@pytest.mark.parametrize("spacing", SPACINGS)
def test_voxel_hd_and_assd_agree_with_medpy(medpy, spacing: tuple[float, float, float]) -> None:
    for seed in range(4):
        pair = blobs(seed)
        ours = scores(*pair, spacing, mode="voxel")
        assert ours["hd_mm"] == pytest.approx(medpy.hd(*pair, spacing), abs=1e-5)
        assert ours["assd_mm"] == pytest.approx(medpy.assd(*pair, spacing), abs=1e-5)


def test_medpy_hd95_pools_the_directions_and_overlooks_a_far_blob(medpy) -> None:
    prediction, reference = far_blob()
    assert medpy.hd95(prediction, reference, (1, 1, 1)) < 1
    for mode in ("surfel", "voxel"):
        assert scores(prediction, reference, mode=mode)["hd95_mm"] > 165


def test_simpleitk_hausdorff_is_that_of_the_solids_not_of_the_surfaces() -> None:
    """A cavity of radius 8 in a ball: its middle is 8 mm from the rest; the surfaces are 6.4 mm apart."""
    import SimpleITK

    full = ball((20, 20, 20), 15, (40, 40, 40))
    hollow = full & ~ball((20, 20, 20), 8, (40, 40, 40))
    images = [SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (hollow, full)]
    measured = SimpleITK.HausdorffDistanceImageFilter()
    measured.Execute(*images)
    ours = scores(hollow, full, mode="voxel")["hd_mm"]
    assert ours is not None and measured.GetHausdorffDistance() > ours + 1.5
    assert ours == pytest.approx(6.403124, abs=1e-6)
