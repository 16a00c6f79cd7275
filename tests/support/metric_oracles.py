"""Values that every metric must give, as functions without pytest: `python metric_oracles.py` runs all of
them.

test_metric_oracles.py runs them one by one, test_metric_mutations.py against damaged copies of ctseg.scoring.
All shapes are made up (synthetic). Where not said otherwise the values were computed outside this project, by
hand or by other packages, and the tolerance is 1e-6.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from unittest import mock

import numpy as np

from ctseg.scoring import distances, surfel, tolerances
from ctseg.scoring.metrics import Counts, Structure, score_case, surface_metrics
from ctseg.scoring.statistics import bca_interval, describe
from ctseg.scoring.summary import mean, summarise

UNIT = (1.0, 1.0, 1.0)
THICK = (1.0, 1.0, 5.0)
MODES = ("surfel", "voxel")
# Which of its ways `distances` takes: what a step costs there is changed until only one is left.
ENGINES = {
    "auto": {"NEAR_VOXELS": distances.NEAR_VOXELS},
    "shells": {"NEAR_VOXELS": math.inf, "TRANSFORM_PER_VOXEL": math.inf},
    "scipy": {"NEAR_VOXELS": -1.0, "TRANSFORM_PER_VOXEL": 0.0},
    "tree": {"NEAR_VOXELS": -1.0, "TRANSFORM_PER_VOXEL": math.inf},
}
ORACLES: list[Callable[[], None]] = []


def oracle(function: Callable[[], None]) -> Callable[[], None]:
    ORACLES.append(function)
    return function


def using(engine: str) -> AbstractContextManager:
    """A place where distances are found in this way alone."""
    return mock.patch.multiple(distances, **ENGINES[engine])


def cube(size: int, low: int, high: int, axis: int = 0, shift: int = 0) -> np.ndarray:
    mask = np.zeros((size,) * 3, bool)
    mask[tuple(slice(low + shift * (i == axis), high + shift * (i == axis)) for i in range(3))] = True
    return mask


def ball(
    centre: tuple[float, ...],
    radius: float,
    shape: tuple[int, ...] = (64, 64, 64),
    spacing: tuple[float, ...] = UNIT,
) -> np.ndarray:
    """A ball; centre and radius in mm."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum((axis * s - c) ** 2 for axis, s, c in zip(axes, spacing, centre)) <= radius**2


def mask_metrics(
    *,
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float],
    tolerances_mm: Sequence[float] = tolerances.DEFAULT_MM,
    boundary_mode: str = "surfel",
    engine: str = "auto",
) -> dict[str, float | None]:
    """Every metric of one pair of masks by its plain formula (Dice of a hallucination is 0; both empty:
    None).

    Keys: dice, iou, precision, recall, specificity, volume_error, volume_error_ml, hd_mm, hd95_mm, assd_mm,
    masd_mm, and nsd_{tolerance}mm.
    """
    prediction, reference, spacing_mm = distances.check_masks(prediction, reference, spacing_mm)
    counts = Counts.of(prediction=prediction, reference=reference)
    with using(engine):
        pair = distances.surface_distances(
            prediction=prediction, reference=reference, spacing_mm=spacing_mm, boundary_mode=boundary_mode
        )
    if pair is None:
        one_sided = 0.0 if counts.tp + counts.fp + counts.fn else None
        surface: dict[str, float | None] = {"hd_mm": None, "hd95_mm": None, "assd_mm": None, "masd_mm": None}
        surface |= {tolerances.key(t): one_sided for t in tolerances_mm}
    else:
        surface = surface_metrics(pair, tolerances_mm)
    return {
        **counts.ratios(),
        "volume_error_ml": (counts.fp - counts.fn) * math.prod(spacing_mm) / 1000.0,
        **surface,
    }


def scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, ...] = UNIT,
    taus: tuple[float, ...] = (1.0, 2.0),
    mode: str = "surfel",
    engine: str = "auto",
) -> dict[str, float | None]:
    return mask_metrics(
        prediction=prediction,
        reference=reference,
        spacing_mm=spacing,
        tolerances_mm=taus,
        boundary_mode=mode,
        engine=engine,
    )


def check(found: dict[str, float | None], within: float = 1e-6, **expected: float | None) -> None:
    for name, value in expected.items():
        got = found[name]
        good = got is None if value is None else got is not None and abs(got - value) <= within
        assert good, f"{name} is {got}, not {value}"


# ---- overlap ----------------------------------------------------------------------------------------------


@oracle
def counts_of_partly_overlapping_boxes() -> None:
    reference = cube(24, 10, 20)
    prediction = np.zeros_like(reference)
    prediction[12:22, 10:20, 10:15] = True
    check(
        scores(prediction, reference),
        dice=8 / 15,
        iou=4 / 11,
        precision=0.8,
        recall=0.4,
        volume_error=-0.5,
        volume_error_ml=-0.5,
    )
    check(scores(reference, prediction), precision=0.4, recall=0.8, volume_error=1.0)


# ---- surfaces ---------------------------------------------------------------------------------------------


@oracle
def cubes_shifted_by_one() -> None:
    for engine in ENGINES:
        for mode in MODES:
            found = scores(
                cube(32, 10, 20, 0, 1), cube(32, 10, 20), taus=(0, 0.5, 1), mode=mode, engine=engine
            )
            check(found, dice=0.9, iou=9 / 11, hd_mm=1, hd95_mm=1, nsd_1mm=1)
            if mode == "voxel":
                check(
                    found,
                    **{
                        "assd_mm": 164 / 488,
                        "masd_mm": 164 / 488,
                        "nsd_0mm": 81 / 122,
                        "nsd_0.5mm": 81 / 122,
                    },
                )
            else:
                check(found, **{"assd_mm": 0.333845, "nsd_0.5mm": 0.666155})


@oracle
def cubes_across_and_within_thick_slices() -> None:
    for engine in ENGINES:
        across = {
            mode: scores(cube(32, 10, 20, 2, 2), cube(32, 10, 20), THICK, (0, 1, 2), mode, engine)
            for mode in MODES
        }
        check(across["voxel"], hd_mm=10, hd95_mm=10, assd_mm=1300 / 488, nsd_0mm=36 / 61, nsd_2mm=0.688525)
        check(across["surfel"], hd_mm=10, hd95_mm=10, assd_mm=1.380601, nsd_1mm=0.800239, nsd_2mm=0.811668)
        within = {
            mode: scores(cube(32, 10, 20, 0, 3), cube(32, 10, 20), THICK, (0, 2), mode, engine)
            for mode in MODES
        }
        check(within["voxel"], hd_mm=3, assd_mm=552 / 488, nsd_0mm=63 / 122, nsd_2mm=0.729508)
        check(within["surfel"], hd_mm=3, assd_mm=1.359009, nsd_2mm=0.646140)


@oracle
def cubes_that_do_not_overlap() -> None:
    for engine in ENGINES:
        for shift, assd in ((10, {"voxel": 5.5, "surfel": 5.0}), (15, {"voxel": 10.5, "surfel": 10.0})):
            for mode in MODES:
                check(
                    scores(cube(36, 10, 20, 0, shift), cube(36, 10, 20), mode=mode, engine=engine),
                    dice=0,
                    hd_mm=shift,
                    assd_mm=assd[mode],
                )
    check(scores(cube(36, 10, 20, 0, 10), cube(36, 10, 20), mode="voxel"), nsd_1mm=0.204918)
    check(scores(cube(36, 10, 20, 0, 10), cube(36, 10, 20), mode="surfel"), nsd_1mm=0.259086)


@oracle
def spacing_belongs_to_its_own_axis() -> None:
    for mode in MODES:
        for axis, expected in enumerate((2, 4, 6)):
            check(scores(cube(24, 10, 16, axis, 2), cube(24, 10, 16), (1, 2, 3), mode=mode), hd_mm=expected)


@oracle
def single_voxels() -> None:
    one, other = np.zeros((9, 10, 11), bool), np.zeros((9, 10, 11), bool)
    one[2, 3, 4] = other[5, 7, 4] = True
    for mode in MODES:
        check(scores(one, one, mode=mode), dice=1, hd_mm=0, hd95_mm=0, assd_mm=0, masd_mm=0, nsd_1mm=1)
        check(scores(other, one, taus=(5, 4.9), mode=mode), dice=0, hd_mm=5, hd95_mm=5, nsd_5mm=1)
    check(scores(other, one, taus=(5, 4.9), mode="voxel"), **{"assd_mm": 5, "nsd_4.9mm": 0})
    check(scores(other, one, mode="surfel"), assd_mm=4.330082)


@oracle
def balls_one_in_the_other() -> None:
    small, large = ball((32, 32, 32), 12), ball((32, 32, 32), 15)
    for engine in ENGINES:
        check(
            scores(small, large, mode="voxel", engine=engine),
            hd95_mm=3.605551,
            assd_mm=2.923060,
            masd_mm=2.914610,
            nsd_2mm=0,
        )
        check(
            scores(small, large, mode="surfel", engine=engine),
            hd95_mm=3.162278,
            assd_mm=2.613360,
            masd_mm=2.604475,
            nsd_2mm=0.041765,
        )


@oracle
def far_blob_is_seen_by_the_larger_directed_percentile() -> None:
    """A percentile of the pooled distances would be 8.307."""
    organ = ball((26, 32, 32), 14)
    far = organ | ball((52, 32, 32), 5)
    for pair in ((far, organ), (organ, far)):  # whichever of the two is the prediction
        check(scores(*pair, mode="voxel"), hd_mm=17, hd95_mm=13, assd_mm=0.682846, nsd_1mm=0.945721)
        check(scores(*pair, mode="surfel"), hd_mm=17, hd95_mm=12.727922, assd_mm=0.722239, nsd_1mm=0.939962)


@oracle
def small_far_blob_is_seen_by_hd_only() -> None:
    organ = ball((26, 32, 32), 14)
    blob = organ.copy()
    blob[52:56, 30:34, 30:34] = True
    for mode, nsd in (("voxel", 0.985729), ("surfel", 0.984980)):
        check(scores(blob, organ, mode=mode), hd_mm=15.264338, hd95_mm=0, nsd_1mm=nsd)


@oracle
def cavity() -> None:
    full = ball((32, 32, 32), 15)
    hollow = full & ~ball((32, 32, 32), 8)
    check(scores(hollow, full, mode="voxel"), hd_mm=6.403124, hd95_mm=6.164414, assd_mm=0.809411)
    check(scores(hollow, full, mode="surfel"), hd_mm=7.071068, hd95_mm=6.708204, assd_mm=0.786897)


@oracle
def single_slice() -> None:
    flat = np.zeros((40, 40, 3), bool)
    flat[10:30, 10:30, 1] = True
    moved = np.roll(flat, 1, axis=0)
    for cut in (slice(None), slice(1, 2)):  # the mask fills the axis: outside the image is background
        check(
            scores(moved[..., cut], flat[..., cut], THICK, mode="voxel"), hd_mm=1, hd95_mm=0.05, assd_mm=0.05
        )
        check(
            scores(moved[..., cut], flat[..., cut], THICK, mode="surfel"),
            hd_mm=1,
            hd95_mm=1,
            assd_mm=0.089957,
        )


@oracle
def mask_at_the_border_is_its_padded_copy() -> None:
    reference, prediction = np.zeros((6, 7, 8), bool), np.zeros((6, 7, 8), bool)
    reference[:4, :5, :6], prediction[:3, 2:, 1:] = True, True
    for mode in MODES:
        border, padded = (
            scores(*(np.pad(mask, width) for mask in (prediction, reference)), (1, 2, 3), mode=mode)
            for width in (0, 2)
        )
        check(
            border,
            1e-9,
            **{
                name: padded[name]
                for name in ("dice", "hd_mm", "hd95_mm", "assd_mm", "masd_mm", "nsd_1mm", "nsd_2mm")
            },
        )


@oracle
def tolerance_of_whole_voxels_is_reached() -> None:
    """3 x 0.6 is more than 1.8 in floating point; without the rule NSD is 0.771."""
    for mode in MODES:
        for spacing in (0.1, 0.6, 0.7, 0.8, 1.2):
            tau = round(3 * spacing, 1)
            found = scores(cube(20, 5, 12, 0, 3), cube(20, 5, 12), (spacing,) * 3, (tau, 1.0), mode)
            assert found[tolerances.key(tau)] == 1.0, f"{mode} {spacing}"


@oracle
def areas_of_the_cells() -> None:
    table = surfel.area_table(UNIT)
    assert table[0] == table[255] == 0
    assert np.allclose(table[[128, 192, 240, 224]], [0.216506, 0.707107, 1, 1.149519], atol=1e-6)
    for spacing, total in ((UNIT, 241.343140), (THICK, 971.885342), ((1, 2, 3), 950.489590)):
        assert abs(surfel.area_table(spacing).sum() - total) < 1e-6
    for mask, area, within in (
        (cube(32, 10, 20), 564.1, 0.1),
        (cube(5, 2, 3), 1.732051, 1e-6),
        (ball((31.5, 31.5, 31.5), 24), 7852.05, 0.01),
    ):
        assert abs(table[surfel.padded_codes(mask)].sum() - area) <= within


# ---- rows and means ---------------------------------------------------------------------------------------

GRID_SPACING = (3.0, 2.0, 1.0)
NOTHING = np.zeros((10, 12, 14), np.uint8)
DIAGONAL_MM = math.sqrt(30**2 + 24**2 + 14**2)


def organ(shift: int = 0, label: int = 1) -> np.ndarray:
    array = NOTHING.copy()
    array[2 + shift : 6 + shift, 2:6, 2:6] = label
    return array


def rows(prediction: np.ndarray, reference: np.ndarray, case: int = 0, **more) -> list[dict]:
    return [
        {"case_id": f"c{case:02d}", "patient_id": f"p{case:02d}"} | row
        for row in score_case(
            prediction=prediction,
            reference=reference,
            spacing_mm=GRID_SPACING,
            structures=[Structure("liver", (1,))],
            tolerances_mm={"liver": (5.0, 2.0)},
            **more,
        )
    ]


def summary(predictions: list[np.ndarray], references: list[np.ndarray]) -> dict:
    found = [row for i, pair in enumerate(zip(predictions, references)) for row in rows(*pair, case=i)]
    nothing = [row for i, reference in enumerate(references) for row in rows(NOTHING, reference, case=i)]
    return summarise(found, nothing, {})


OVERLAP, DISTANCE, IMPUTED = (
    ("dice", "iou", "nsd", "nsd2"),
    ("hd_mm", "hd95_mm", "assd_mm", "masd_mm"),
    ("hd_imputed_mm", "hd95_imputed_mm", "assd_imputed_mm"),
)


@oracle
def every_cell_of_the_table_of_states() -> None:
    for mode in MODES:
        (present,), (missed,), (invented,), (absent,) = (
            rows(p, r, boundary_mode=mode)
            for p, r in ((organ(1), organ()), (NOTHING, organ()), (organ(), NOTHING), (NOTHING, NOTHING))
        )
        assert [row["state"] for row in (present, missed, invented, absent)] == [
            "present",
            "missed",
            "hallucinated",
            "absent",
        ]
        check(
            present,
            dice=0.75,
            iou=0.6,
            precision=0.75,
            recall=0.75,
            volume_error=0,
            hd_mm=3,
            hd_imputed_mm=3,
            hd95_mm=3,
            hd95_imputed_mm=3,
            assd_imputed_mm=present["assd_mm"],
            nsd=1,
        )
        check(
            missed,
            **dict.fromkeys(OVERLAP, 0.0),
            **dict.fromkeys(DISTANCE),
            **dict.fromkeys(IMPUTED, DIAGONAL_MM),
            precision=None,
            recall=0,
            volume_error=-1,
        )
        check(
            invented,
            **dict.fromkeys((*OVERLAP, *DISTANCE, *IMPUTED)),
            precision=0,
            recall=None,
            volume_error=None,
            prediction_ml=64 * 6 / 1000,
            reference_ml=0,
        )
        check(
            absent,
            **dict.fromkeys((*OVERLAP, *DISTANCE, *IMPUTED)),
            precision=None,
            recall=None,
            volume_error=None,
            prediction_ml=0,
            reference_ml=0,
        )
        for said in ("unannotated", "unevaluable"):
            (row,) = rows(organ(), organ(), boundary_mode=mode, annotation={"liver": said})
            assert row["state"] == said
            check(
                row,
                **dict.fromkeys(
                    (*OVERLAP, *DISTANCE, *IMPUTED, "precision", "recall", "volume_error", "prediction_ml")
                ),
            )


@oracle
def plain_formulas_of_empty_masks() -> None:
    some, none = organ() > 0, NOTHING > 0
    check(
        scores(none, none),
        **dict.fromkeys(("dice", "iou", "precision", "recall", "volume_error", "nsd_1mm", *DISTANCE)),
        volume_error_ml=0,
    )
    check(
        scores(some, none), dice=0, iou=0, precision=0, recall=None, volume_error=None, nsd_1mm=0, hd_mm=None
    )
    check(scores(none, some), dice=0, iou=0, precision=None, recall=0, volume_error=-1, nsd_1mm=0, hd_mm=None)


@oracle
def a_case_is_scored_with_its_spacing() -> None:
    moved = NOTHING.copy()
    moved[2:6, 2:6, 4:8] = 1
    check(rows(moved, organ())[0], hd_mm=2, hd95_mm=2, reference_ml=64 * 6 / 1000)
    assert (
        rows(organ(1)[:, :, :4], organ()[:, :, :4])[0]["precision"],
        rows(organ(1) | organ(), organ())[0]["recall"],
    ) == (0.75, 1.0)
    check(rows(organ(1) | organ(), organ())[0], precision=0.8, volume_error=0.25)


@oracle
def thirty_nine_cases_mostly_without_the_organ() -> None:
    """Counting an absent organ as 1 makes 0.880342 out of a model that finds nothing."""
    wrong = []
    for with_organ in (8, 4, 2):
        result = summary([NOTHING] * 39, [organ()] * with_organ + [NOTHING] * (39 - with_organ))
        check(result["liver_dice"], mean=0, n=with_organ, n_undefined=0)
        assert (
            result["headline"]["macro_dice"] == 0
            and result["baselines"]["all_background"]["better_than_baseline"] is False
        )
        wrong.append((39 - with_organ) / 39)
        assert all(
            abs(value - wrong[-1]) > 1e-3
            for key, value in numbers(result)
            if not key.endswith("_specificity")
        )
    assert abs(sum(wrong) / 3 - 0.880342) < 1e-6


def numbers(content: object, key: str = "") -> list[tuple[str, float]]:
    """All floats below `content` with the keys that lead there."""
    if isinstance(content, dict):
        return [pair for name, value in content.items() for pair in numbers(value, f"{key}_{name}")]
    if isinstance(content, (list, tuple)):
        return [pair for value in content for pair in numbers(value, key)]
    return [(key, content)] if isinstance(content, float) else []


@oracle
def a_missed_organ_does_not_improve_the_distance() -> None:
    moved = NOTHING.copy()
    moved[2:6, 3:7, 2:6] = 1
    result = summary([moved, NOTHING], [organ(), organ()])
    check(result["liver_hd95"], mean=2, n=1, n_undefined=1)
    check(result["liver_hd95_imputed"], mean=(2 + DIAGONAL_MM) / 2, n=2)
    check(result["liver_dice"], mean=0.375, n=2)


@oracle
def only_undefined_distances_have_no_mean() -> None:
    result = summary([NOTHING, NOTHING], [organ(), organ()])
    check(result["liver_hd95"], mean=None, median=None, n=0, n_undefined=2)
    check(result["liver_hd95_imputed"], mean=DIAGONAL_MM)


@oracle
def an_invented_organ_is_counted_and_enters_the_second_table() -> None:
    result = summary([organ(), organ(), NOTHING], [organ(), NOTHING, NOTHING])
    check(result["liver_dice"], mean=1, n=1, n_undefined=0)
    check(result["all_cases"]["liver_dice"], mean=0.5, n=2)
    check(result["all_cases"]["liver_hd95_imputed"], mean=DIAGONAL_MM / 2)
    check(
        result["presence"]["liver"],
        n_present=1,
        n_hallucinated=1,
        n_absent=1,
        sensitivity=1,
        specificity=0.5,
        false_volume_ml_mean=0.384,
    )


@oracle
def means_of_little() -> None:
    assert mean([]) is None and mean([None]) is None
    check(describe([0.5, None], ["a", "b"]), mean=0.5, std=None, n=1, n_undefined=1, ci95=None)
    values = np.array([0.91, 0.88, 0, 0.93, 0.90, 0.86, 0.92, 0.89, 0.84, 0.95])
    interval, flags = bca_interval(values, list(range(10)))
    assert (
        interval is not None
        and np.allclose(interval, (0.448, 0.905), atol=0.02)
        and flags == ["optimistic_ci"]
    )
    assert bca_interval(np.full(6, 0.7), list(range(6))) == ([0.7, 0.7], ["optimistic_ci", "degenerate"])


def main() -> int:
    """Runs the oracles up to the first that fails; says where the code came from, and which one failed."""
    print(distances.__file__)
    for function in reversed(ORACLES):  # the quick ones first
        try:
            function()
        except Exception as error:  # any error of a damaged copy counts as found
            print(f"{function.__name__}: {type(error).__name__} {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
