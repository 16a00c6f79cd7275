"""Every metric against values computed by hand, other packages, and brute force; laws that always hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_oracles import mask_metrics

from ctseg.scoring import surfel, tolerances
from ctseg.scoring.metrics import Counts, Structure, confusion_matrix, image_diagonal_mm, score_case
from ctseg.scoring.statistics import bca_interval, describe
from ctseg.scoring.summary import mean, summarise

MODES = ("surfel", "voxel")
ENGINES = ("scipy", "tree", "shells")
UNIT = (1.0, 1.0, 1.0)
DISTANCES = ("hd_mm", "hd95_mm", "assd_mm", "masd_mm")


def cube(size: int, low: int, high: int, shift: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    mask = np.zeros((size,) * 3, bool)
    mask[tuple(slice(low + s, high + s) for s in shift)] = True
    return mask


def along(axis: int, steps: int) -> tuple[int, int, int]:
    shift = [0, 0, 0]
    shift[axis] = steps
    return shift[0], shift[1], shift[2]


def ball(centre: tuple[int, int, int], radius: float, size: int = 64) -> np.ndarray:
    grid = np.ogrid[:size, :size, :size]
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre)) <= radius**2


def score(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float] = UNIT,
    taus: tuple[float, ...] = (1.0, 2.0),
    mode: str = "surfel",
    engine: str = "auto",
) -> dict[str, float | None]:
    return mask_metrics(
        prediction=prediction,
        reference=reference,
        spacing_mm=spacing_mm,
        tolerances_mm=taus,
        boundary_mode=mode,
        engine=engine,
    )


def expect(result: dict[str, float | None], tolerance: float = 1e-6, **expected: float) -> None:
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=tolerance), name


# ---- values known beforehand ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
class TestShiftedCubes:
    reference = cube(40, 10, 20)

    def moved(
        self,
        axis: int,
        steps: int,
        spacing: tuple[float, float, float],
        mode: str,
        engine: str,
        taus: tuple[float, ...] = (0, 0.5, 1, 2),
    ):
        return score(cube(40, 10, 20, along(axis, steps)), self.reference, spacing, taus, mode, engine)

    def test_by_one_voxel(self, engine: str) -> None:
        for mode in MODES:
            expect(self.moved(0, 1, UNIT, mode, engine), dice=0.9, iou=9 / 11, hd_mm=1, hd95_mm=1, nsd_1mm=1)
        expect(
            self.moved(0, 1, UNIT, "voxel", engine),
            **{"assd_mm": 164 / 488, "masd_mm": 164 / 488, "nsd_0mm": 81 / 122, "nsd_0.5mm": 81 / 122},
        )
        expect(self.moved(0, 1, UNIT, "surfel", engine), **{"assd_mm": 0.333845, "nsd_0.5mm": 0.666155})

    def test_across_thick_slices(self, engine: str) -> None:
        for mode in MODES:
            expect(self.moved(2, 2, (1, 1, 5), mode, engine), dice=0.8, hd_mm=10, hd95_mm=10)
        expect(
            self.moved(2, 2, (1, 1, 5), "voxel", engine),
            assd_mm=1300 / 488,
            nsd_0mm=36 / 61,
            nsd_2mm=0.688525,
        )
        expect(
            self.moved(2, 2, (1, 1, 5), "surfel", engine),
            assd_mm=1.380601,
            nsd_1mm=0.800239,
            nsd_2mm=0.811668,
        )

    def test_within_thick_slices(self, engine: str) -> None:
        for mode in MODES:
            expect(self.moved(0, 3, (1, 1, 5), mode, engine), dice=0.7, hd_mm=3)
        expect(
            self.moved(0, 3, (1, 1, 5), "voxel", engine),
            assd_mm=552 / 488,
            nsd_0mm=63 / 122,
            nsd_2mm=0.729508,
        )
        expect(self.moved(0, 3, (1, 1, 5), "surfel", engine), assd_mm=1.359009, nsd_2mm=0.646140)

    def test_without_overlap(self, engine: str) -> None:
        expect(self.moved(0, 10, UNIT, "voxel", engine), dice=0, hd_mm=10, assd_mm=5.5, nsd_1mm=0.204918)
        expect(self.moved(0, 10, UNIT, "surfel", engine), dice=0, hd_mm=10, assd_mm=5, nsd_1mm=0.259086)
        expect(self.moved(0, 15, UNIT, "voxel", engine), dice=0, hd_mm=15, assd_mm=10.5)
        expect(self.moved(0, 15, UNIT, "surfel", engine), dice=0, hd_mm=15, assd_mm=10)

    @pytest.mark.parametrize("mode", MODES)
    def test_spacing_belongs_to_its_own_axis(self, engine: str, mode: str) -> None:
        for axis, expected in enumerate((2, 4, 6)):
            moved = score(
                cube(30, 10, 16, along(axis, 2)), cube(30, 10, 16), (1, 2, 3), mode=mode, engine=engine
            )
            expect(moved, hd_mm=expected)

    @pytest.mark.parametrize("mode", MODES)
    def test_a_distance_equal_to_the_tolerance_counts_as_near(self, engine: str, mode: str) -> None:
        for spacing in (0.1, 0.6, 0.7, 0.8, 1.2):
            tau = 3 * spacing
            result = score(
                cube(20, 5, 12, (3, 0, 0)), cube(20, 5, 12), (spacing,) * 3, (tau, 1.0), mode, engine
            )
            assert result[tolerances.key(tau)] == 1.0


@pytest.mark.parametrize("engine", ENGINES)
class TestShapes:
    def test_one_voxel(self, engine: str) -> None:
        one, other = np.zeros((10, 12, 14), bool), np.zeros((10, 12, 14), bool)
        one[2, 3, 4] = other[5, 7, 4] = True
        for mode in MODES:
            expect(
                score(one, one, mode=mode, engine=engine),
                dice=1,
                hd_mm=0,
                hd95_mm=0,
                assd_mm=0,
                masd_mm=0,
                nsd_1mm=1,
            )
            expect(score(other, one, taus=(5, 4.9), mode=mode, engine=engine), hd_mm=5, hd95_mm=5, nsd_5mm=1)
        expect(
            score(other, one, taus=(5, 4.9), mode="voxel", engine=engine), **{"assd_mm": 5, "nsd_4.9mm": 0}
        )
        expect(score(other, one, mode="surfel", engine=engine), assd_mm=4.330082)

    def test_concentric_balls(self, engine: str) -> None:
        small, large = ball((32, 32, 32), 12), ball((32, 32, 32), 15)
        expect(
            score(small, large, mode="voxel", engine=engine),
            hd95_mm=3.605551,
            assd_mm=2.923060,
            masd_mm=2.914610,
            nsd_2mm=0,
        )
        expect(
            score(small, large, mode="surfel", engine=engine),
            hd95_mm=3.162278,
            assd_mm=2.613360,
            masd_mm=2.604475,
            nsd_2mm=0.041765,
        )

    def test_hd95_is_the_larger_directed_percentile(self, engine: str) -> None:
        """A percentile of the pooled distances would be 8.307."""
        organ = ball((26, 32, 32), 14)
        far = organ | ball((52, 32, 32), 5)
        expect(
            score(far, organ, mode="voxel", engine=engine),
            hd_mm=17,
            hd95_mm=13,
            assd_mm=0.682846,
            nsd_1mm=0.945721,
        )
        expect(
            score(far, organ, mode="surfel", engine=engine),
            hd_mm=17,
            hd95_mm=12.727922,
            assd_mm=0.722239,
            nsd_1mm=0.939962,
        )

    def test_hd_sees_a_blob_that_hd95_does_not(self, engine: str) -> None:
        organ = ball((26, 32, 32), 14)
        blob = organ.copy()
        blob[52:56, 30:34, 30:34] = True
        for mode, nsd in (("voxel", 0.985729), ("surfel", 0.984980)):
            expect(score(blob, organ, mode=mode, engine=engine), hd_mm=15.264338, hd95_mm=0, nsd_1mm=nsd)

    def test_cavity(self, engine: str) -> None:
        full = ball((32, 32, 32), 15)
        hollow = full & ~ball((32, 32, 32), 8)
        expect(
            score(hollow, full, mode="voxel", engine=engine),
            hd_mm=6.403124,
            hd95_mm=6.164414,
            assd_mm=0.809411,
        )
        expect(
            score(hollow, full, mode="surfel", engine=engine),
            hd_mm=7.071068,
            hd95_mm=6.708204,
            assd_mm=0.786897,
        )

    def test_single_slice(self, engine: str) -> None:
        flat = np.zeros((40, 40, 3), bool)
        flat[10:30, 10:30, 1] = True
        moved = np.roll(flat, 1, axis=0)
        expect(
            score(moved, flat, (1, 1, 5), mode="voxel", engine=engine), hd_mm=1, hd95_mm=0.05, assd_mm=0.05
        )
        expect(
            score(moved, flat, (1, 1, 5), mode="surfel", engine=engine), hd_mm=1, hd95_mm=1, assd_mm=0.089957
        )

    @pytest.mark.parametrize("mode", MODES)
    def test_spheres_of_known_distance(self, engine: str, mode: str) -> None:
        result = score(ball((32, 32, 32), 20), ball((32, 32, 32), 24), taus=(6, 2), mode=mode, engine=engine)
        expect(result, tolerance=0.005, dice=0.7331)
        expect(result, tolerance=math.sqrt(3), hd95_mm=4)
        expect(result, nsd_6mm=1)


def test_counts_of_partly_overlapping_boxes() -> None:
    reference = cube(40, 10, 20)
    prediction = np.zeros_like(reference)
    prediction[12:22, 10:20, 10:15] = True
    counts = Counts.of(prediction=prediction, reference=reference)
    assert (counts.tp, counts.fp, counts.fn) == (400, 100, 600)
    expect(
        score(prediction, reference),
        dice=8 / 15,
        iou=4 / 11,
        precision=0.8,
        recall=0.4,
        volume_error=-0.5,
        volume_error_ml=-0.5,
    )


def test_image_diagonal() -> None:
    assert image_diagonal_mm((128, 128, 128), UNIT) == pytest.approx(221.7025, abs=1e-4)
    assert image_diagonal_mm((3, 4, 12), (1, 1, 1)) == 13


# ---- surface area -----------------------------------------------------------------------------------------


def test_area_table_known_values() -> None:
    table = surfel.area_table(UNIT)
    two, face, bend = 128 | 64, 128 | 64 | 32 | 16, 128 | 64 | 32
    assert [table[0], table[255]] == [0, 0]
    assert table[[128, two, face, bend]] == pytest.approx([0.216506, 0.707107, 1, 1.149519], abs=1e-6)
    assert table.sum() == pytest.approx(241.343140, abs=1e-6)
    assert surfel.area_table((1, 1, 5)).sum() == pytest.approx(971.885342, abs=1e-6)
    assert surfel.area_table((1, 2, 3)).sum() == pytest.approx(950.489590, abs=1e-6)


def test_area_table_symmetries() -> None:
    """A cell seen along other axes, or mirrored, has the same area with the permuted spacing."""
    spacing = (1.0, 2.0, 3.0)
    table = surfel.area_table(spacing)
    bits = np.array([128, 64, 32, 16, 8, 4, 2, 1])
    cells = (np.arange(256)[:, None] & bits > 0).reshape(256, 2, 2, 2)
    for order in itertools.permutations(range(3)):
        codes = cells.transpose(0, *(axis + 1 for axis in order)).reshape(256, 8) @ bits
        np.testing.assert_allclose(
            surfel.area_table(tuple(spacing[axis] for axis in order))[codes], table, atol=1e-12
        )
    for axis in range(1, 4):
        np.testing.assert_allclose(table[np.flip(cells, axis).reshape(256, 8) @ bits], table, atol=1e-12)


def test_area_of_solids() -> None:
    for mask, expected in ((cube(40, 10, 20), 564.1), (cube(5, 2, 3), 8 * 0.21650635)):
        codes = surfel.padded_codes(mask)[:-1, :-1, :-1]
        assert surfel.area_table(UNIT)[codes].sum() == pytest.approx(
            expected, abs=0.1 if expected > 2 else 1e-6
        )


def test_cell_codes_by_definition() -> None:
    mask = np.random.default_rng(0).random((3, 4, 5)) > 0.5
    padded = np.pad(mask, 1)
    codes = surfel.padded_codes(mask)[:-1, :-1, :-1]
    for index in np.ndindex(codes.shape):
        cell = padded[tuple(slice(i, i + 2) for i in index)]
        assert codes[index] == sum(128 >> (4 * i + 2 * j + k) for (i, j, k), on in np.ndenumerate(cell) if on)


# ---- other packages ---------------------------------------------------------------------------------------


def random_pair(seed: int, shape: tuple[int, int, int] = (10, 12, 14)) -> tuple[np.ndarray, np.ndarray]:
    """Two smooth blobs that overlap in part."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    common = rng.normal(size=shape)
    fields = [gaussian_filter(common + 0.6 * rng.normal(size=shape), 1.5) for _ in range(2)]
    return fields[0] > np.quantile(fields[0], 0.7), fields[1] > np.quantile(fields[1], 0.75)


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 2, 1), (0.7, 0.9, 2.5)])
def test_surfel_mode_agrees_with_surface_distance_package(spacing: tuple[float, float, float]) -> None:
    package = pytest.importorskip("surface_distance", reason="the surface-distance package is not installed")
    from surface_distance import lookup_tables

    np.testing.assert_allclose(
        surfel.area_table(spacing),
        lookup_tables.create_table_neighbour_code_to_surface_area(spacing),
        atol=1e-9,
    )
    for seed in range(5):
        prediction, reference = random_pair(seed)
        theirs = package.compute_surface_distances(reference, prediction, spacing)
        ours = score(prediction, reference, spacing)
        there, back = package.compute_average_surface_distance(theirs)
        expect(
            ours,
            1e-5,
            hd_mm=package.compute_robust_hausdorff(theirs, 100),
            hd95_mm=package.compute_robust_hausdorff(theirs, 95),
            masd_mm=(there + back) / 2,
        )
        for tau in (1.0, 2.0):  # their comparison has no float rule, so the tolerance is nudged for them
            assert ours[tolerances.key(tau)] == pytest.approx(
                package.compute_surface_dice_at_tolerance(theirs, tau * (1 + 1e-6)), abs=1e-9
            )


@pytest.mark.filterwarnings("ignore:monai.metrics:FutureWarning")
@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 2, 1), (0.7, 0.9, 2.5)])
def test_voxel_mode_agrees_with_monai(spacing: tuple[float, float, float]) -> None:
    pytest.importorskip("monai", reason="MONAI is not installed")
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    for seed in range(5):
        prediction, reference = random_pair(seed)
        theirs = {
            "y_pred": torch.from_numpy(prediction)[None, None].float(),
            "y": torch.from_numpy(reference)[None, None].float(),
            "include_background": True,
            "spacing": spacing,
        }
        ours = score(prediction, reference, spacing, mode="voxel")
        expect(
            ours,
            1e-5,
            hd_mm=float(compute_hausdorff_distance(**theirs)),
            hd95_mm=float(compute_hausdorff_distance(percentile=95, **theirs)),
            assd_mm=float(compute_average_surface_distance(symmetric=True, **theirs)),
        )


def test_voxel_mode_agrees_with_all_pairs_of_points() -> None:
    spacing = (3.0, 2.0, 1.0)
    for seed in range(5):
        prediction, reference = random_pair(seed, (6, 7, 8))
        points = []
        for mask in (reference, prediction):
            padded = np.pad(mask, 1)
            points.append(
                np.array(
                    [
                        p
                        for p in np.argwhere(mask)
                        if any(
                            not padded[tuple(p + 1 + np.array(along(axis, step)))]
                            for axis in range(3)
                            for step in (-1, 1)
                        )
                    ]
                )
                * spacing
            )
        table = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
        there, back = table.min(axis=1), table.min(axis=0)
        pooled = np.concatenate([there, back])
        expect(
            score(prediction, reference, spacing, mode="voxel"),
            1e-5,
            hd_mm=pooled.max(),
            hd95_mm=max(np.percentile(there, 95), np.percentile(back, 95)),
            assd_mm=pooled.mean(),
            masd_mm=(there.mean() + back.mean()) / 2,
            nsd_2mm=(pooled <= 2 * (1 + 1e-6)).mean(),
        )


# ---- laws -------------------------------------------------------------------------------------------------


@st.composite
def cases(draw) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float], str]:
    shape = tuple(draw(st.integers(3, 12)) for _ in range(3))
    spacing = tuple(draw(st.sampled_from([0.5, 0.8, 1.0, 1.7, 2.0, 3.0])) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    reference = rng.random(shape) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    prediction = reference ^ (rng.random(shape) < draw(st.sampled_from([0.02, 0.3])))
    for mask in (prediction, reference):
        mask[tuple(rng.integers(0, n) for n in shape)] = True
    return prediction, reference, spacing, draw(st.sampled_from(MODES))


def same(one: dict, other: dict, tolerance: float = 1e-6, skip: tuple[str, ...] = ()) -> None:
    for key in one:
        if key not in skip:
            assert one[key] == pytest.approx(other[key], abs=tolerance), key


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_engines_agree_and_ranges_hold(case) -> None:
    prediction, reference, spacing, mode = case
    result = score(prediction, reference, spacing, (0.5, 1, 2, 4), mode)
    for engine in ENGINES:
        same(result, score(prediction, reference, spacing, (0.5, 1, 2, 4), mode, engine), 1e-5)
    assert 0 <= result["iou"] <= result["dice"] <= 1
    assert result["dice"] == pytest.approx(2 * result["iou"] / (1 + result["iou"]))
    assert 0 <= result["hd95_mm"] <= result["hd_mm"]
    assert max(result["assd_mm"], result["masd_mm"]) <= result["hd_mm"] + 1e-9
    nsd = [result[tolerances.key(t)] for t in (0.5, 1, 2, 4)]
    assert nsd == sorted(nsd)
    assert (
        score(prediction, reference, spacing, (result["hd_mm"], 1), mode)[tolerances.key(result["hd_mm"])]
        == 1
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases(), st.permutations(range(3)), st.sampled_from([0, 1, 2]))
def test_invariances(case, order, axis) -> None:
    prediction, reference, spacing, mode = case
    result = score(prediction, reference, spacing, mode=mode)
    same(
        score(reference, reference, spacing, mode=mode),
        {
            **dict.fromkeys(("dice", "iou", "precision", "recall", "nsd_1mm", "nsd_2mm"), 1.0),
            **dict.fromkeys(DISTANCES, 0.0),
        },
        skip=("specificity", "volume_error", "volume_error_ml"),
    )
    swapped = score(reference, prediction, spacing, mode=mode)
    same(result, swapped, skip=("precision", "recall", "specificity", "volume_error", "volume_error_ml"))
    assert (result["precision"], result["recall"]) == (swapped["recall"], swapped["precision"])
    same(
        result,
        score(
            prediction.transpose(order),
            reference.transpose(order),
            tuple(spacing[i] for i in order),
            mode=mode,
        ),
    )
    same(result, score(np.flip(prediction, axis), np.flip(reference, axis), spacing, mode=mode))
    same(
        result, score(np.pad(prediction, 2), np.pad(reference, 2), spacing, mode=mode), skip=("specificity",)
    )
    same(
        result,
        score(
            np.asfortranarray(prediction).astype(np.uint8),
            np.ascontiguousarray(reference[::-1])[::-1],
            spacing,
            mode=mode,
        ),
    )
    doubled = score(prediction, reference, tuple(2 * s for s in spacing), (2, 4), mode)
    for key in DISTANCES:
        assert doubled[key] == pytest.approx(2 * result[key], abs=1e-5)
    assert (doubled["nsd_2mm"], doubled["nsd_4mm"]) == pytest.approx((result["nsd_1mm"], result["nsd_2mm"]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases())
def test_worse_masks_never_score_better(case) -> None:
    prediction, reference, spacing, mode = case
    result = score(prediction, reference, spacing, mode=mode)
    wrong = np.flatnonzero(~(prediction | reference))
    if wrong.size:
        more = prediction.copy()
        more.flat[wrong[0]] = True
        worse = score(more, reference, spacing, mode=mode)
        assert worse["dice"] <= result["dice"] and worse["precision"] <= result["precision"]
    nothing = score(np.zeros_like(prediction), reference, spacing, mode=mode)
    for key in ("dice", "iou", "recall", "nsd_1mm", "nsd_2mm"):
        assert nothing[key] <= result[key]
    assert image_diagonal_mm(reference.shape, spacing) >= result["hd_mm"]


def test_inputs_stay_as_they_are() -> None:
    prediction, reference = random_pair(1)
    before = prediction.copy(), reference.copy()
    prediction.setflags(write=False)
    reference.setflags(write=False)
    score(prediction, reference)
    assert np.array_equal(prediction, before[0]) and np.array_equal(reference, before[1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"spacing_mm": (1, 1)},
        {"spacing_mm": (1, 0, 1)},
        {"reference": np.zeros((2, 2, 3), bool)},
        {"boundary_mode": "pixel"},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict) -> None:
    good = {"prediction": np.ones((2, 2, 2), bool), "reference": np.ones((2, 2, 2), bool), "spacing_mm": UNIT}
    with pytest.raises(ValueError):
        mask_metrics(**(good | wrong))


# ---- empty masks and rows ---------------------------------------------------------------------------------

NOTHING = np.zeros((10, 12, 14), np.uint8)


def label_map(*filled: tuple[int, slice]) -> np.ndarray:
    array = NOTHING.copy()
    for label, where in filled:
        array[where, 2:6, 2:6] = label
    return array


def rows_of(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    annotation: dict | None = None,
    names: tuple[str, ...] = ("liver",),
    mode: str = "surfel",
    **more,
):
    structures = [Structure(name, (i,)) for i, name in enumerate(names, start=1)]
    return score_case(
        prediction=prediction,
        reference=reference,
        spacing_mm=(3, 2, 1),
        structures=structures,
        tolerances_mm=tolerances.tolerances_for(names),
        annotation=annotation,
        boundary_mode=mode,
        **more,
    )


@pytest.mark.parametrize("mode", MODES)
class TestEmptyMasks:
    organ, elsewhere = label_map((1, slice(2, 6))), label_map((1, slice(3, 7)))
    diagonal = math.sqrt(30**2 + 24**2 + 14**2)
    undefined = (
        "dice",
        "iou",
        "nsd",
        "nsd2",
        "hd_mm",
        "hd95_mm",
        "assd_mm",
        "masd_mm",
        "hd_imputed_mm",
        "hd95_imputed_mm",
        "assd_imputed_mm",
        "recall",
        "volume_error",
    )

    def test_present(self, mode: str) -> None:
        (row,) = rows_of(self.elsewhere, self.organ, mode=mode)
        assert row["state"] == "present" and row["dice"] == 0.75
        assert row["hd_imputed_mm"] == row["hd_mm"] == 3.0 and all(
            row[key] is not None for key in self.undefined
        )

    def test_missed(self, mode: str) -> None:
        (row,) = rows_of(NOTHING, self.organ, mode=mode)
        assert row["state"] == "missed"
        assert [row[key] for key in ("dice", "iou", "nsd", "nsd2", "recall", "volume_error")] == [
            0,
            0,
            0,
            0,
            0,
            -1,
        ]
        assert [row[key] for key in ("hd_mm", "hd95_mm", "assd_mm", "masd_mm", "precision")] == [None] * 5
        assert [row[f"{key}_imputed_mm"] for key in ("hd", "hd95", "assd")] == pytest.approx(
            [self.diagonal] * 3
        )

    def test_hallucinated(self, mode: str) -> None:
        (row,) = rows_of(self.organ, NOTHING, mode=mode)
        assert (
            row["state"] == "hallucinated"
            and row["precision"] == 0
            and row["prediction_ml"] == pytest.approx(64 * 6 / 1000)
        )
        assert [row[key] for key in self.undefined] == [None] * len(self.undefined)

    def test_absent(self, mode: str) -> None:
        (row,) = rows_of(NOTHING, NOTHING, mode=mode)
        assert (
            row["state"] == "absent"
            and row["prediction_ml"] == row["reference_ml"] == 0
            and row["precision"] is None
        )
        assert [row[key] for key in self.undefined] == [None] * len(self.undefined)

    @pytest.mark.parametrize("said, state", [("unlabelled", "unannotated"), ("unevaluable", "unevaluable")])
    def test_nobody_knows(self, mode: str, said: str, state: str) -> None:
        (row,) = rows_of(self.organ, NOTHING, annotation={"liver": said}, mode=mode)
        assert row["state"] == state
        assert [
            row[key]
            for key in (*self.undefined, "precision", "specificity", "tp", "reference_ml", "prediction_ml")
        ] == [None] * (len(self.undefined) + 5)

    def test_annotated_as_absent_still_counts_a_hallucination(self, mode: str) -> None:
        (row,) = rows_of(self.organ, NOTHING, annotation={"liver": "absent"}, mode=mode)
        assert row["state"] == "hallucinated"

    def test_plain_functions(self, mode: str) -> None:
        mask, none = self.organ > 0, NOTHING > 0
        expect(score(mask, none, mode=mode), dice=0, iou=0, precision=0, nsd_1mm=0)
        expect(score(none, mask, mode=mode), dice=0, recall=0, nsd_1mm=0, volume_error=-1)
        both = score(none, none, mode=mode)
        assert [
            both[key] for key in ("dice", "iou", "precision", "recall", "volume_error", "nsd_1mm", *DISTANCES)
        ] == [None] * 10
        assert both["specificity"] == 1 and both["volume_error_ml"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_many_structures_equal_one_at_a_time(mode: str) -> None:
    """Confusion matrix, boxes and crops give what whole masks give, whatever the label ids are."""
    rng = np.random.default_rng(3)
    reference, prediction = rng.integers(0, 6, (10, 12, 14)), rng.integers(0, 6, (10, 12, 14))
    prediction[prediction == 4] = 0
    reference[:, :, 5:][reference[:, :, 5:] == 2] = 0
    ids = (1, 2, 3, 4, 5)
    for new, dtype in ((ids, np.int64), ((7, 30, 2, 9, 41), np.uint8), ((7, 300, 2, 9, 41), np.int32)):
        table = np.array([0, *new], dtype)
        structures = [Structure(f"s{i}", (label,)) for i, label in zip(ids, new)] + [
            Structure("region", tuple(sorted(new[:2])))
        ]
        taus = tolerances.tolerances_for([s.name for s in structures])
        rows = score_case(
            prediction=table[prediction],
            reference=table[reference],
            spacing_mm=(3, 2, 1),
            structures=structures,
            tolerances_mm=taus,
            boundary_mode=mode,
        )
        assert [row["state"] for row in rows] == ["present"] * 3 + ["missed"] + ["present"] * 2
        for row, members in zip(rows, [(1,), (2,), (3,), (4,), (5,), (1, 2)]):
            alone = score(
                np.isin(prediction, members), np.isin(reference, members), (3, 2, 1), (2.0, 1.0), mode
            )
            for key in ("dice", "iou", "precision", "recall", "specificity", "volume_error", *DISTANCES):
                assert row[key] == (
                    pytest.approx(alone[key], abs=1e-6) if alone[key] is not None else None
                ), (row["structure"], key)
            assert row["nsd"] == pytest.approx(alone["nsd_2mm"])
    assert rows[-1]["label"] == "(7, 300)"


def test_labels_outside_the_structures_are_background() -> None:
    (row,) = rows_of(
        label_map((1, slice(2, 6)), (9, slice(7, 9))), label_map((1, slice(2, 6)), (200, slice(8, 10)))
    )
    assert row["dice"] == 1 and row["tp"] + row["fp"] + row["fn"] + row["tn"] == NOTHING.size


def test_ignored_voxels_leave_every_count() -> None:
    reference, prediction = label_map((1, slice(2, 6)), (9, slice(6, 8))), label_map((1, slice(2, 8)))
    (row,) = rows_of(prediction, reference, ignore_label=9)
    assert row["dice"] == 1 and row["hd_mm"] == 0
    assert row["tp"] + row["fp"] + row["fn"] + row["tn"] == NOTHING.size - np.count_nonzero(reference == 9)
    assert np.array_equal(reference, label_map((1, slice(2, 6)), (9, slice(6, 8))))


def test_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    one, other = (
        rng.integers(0, 4, (40, 50, 60)).astype(np.uint8),
        rng.integers(0, 4, (40, 50, 60)).astype(np.uint8),
    )
    matrix = confusion_matrix(prediction=other, reference=one, n_labels=4)
    assert matrix[2, 3] == np.count_nonzero((one == 2) & (other == 3)) and matrix.sum() == one.size


# ---- aggregation ------------------------------------------------------------------------------------------


def cohort(
    predictions: list[np.ndarray],
    references: list[np.ndarray],
    names: tuple[str, ...] = ("liver",),
    annotation: list[dict] | None = None,
) -> dict:
    rows, nothing = [], []
    for number, (prediction, reference) in enumerate(zip(predictions, references)):
        ids = {"case_id": f"c{number:02d}", "patient_id": f"p{number:02d}"}
        said = annotation[number] if annotation else None
        rows += [ids | row for row in rows_of(prediction, reference, names=names, annotation=said)]
        nothing += [ids | row for row in rows_of(NOTHING, reference, names=names, annotation=said)]
    return summarise(rows, nothing, {})


ORGAN = label_map((1, slice(2, 6)))


def test_absent_cases_change_no_headline_value() -> None:
    shifted = label_map((1, slice(3, 7)))
    few = cohort([shifted, ORGAN], [ORGAN, ORGAN])
    many = cohort([shifted, ORGAN, *[NOTHING] * 9], [ORGAN, ORGAN, *[NOTHING] * 9])
    assert (
        few["liver_dice"] == many["liver_dice"]
        and few["headline"] == many["headline"]
        and few["mean_dice"] == many["mean_dice"]
    )
    assert many["presence"]["liver"]["n_absent"] == 9 and many["presence"]["liver"]["specificity"] == 1


def test_headline_and_all_table() -> None:
    result = cohort(
        [ORGAN, NOTHING, ORGAN, NOTHING, ORGAN],
        [ORGAN, ORGAN, NOTHING, NOTHING, NOTHING],
        annotation=[{}, {}, {}, {}, {"liver": "unlabelled"}],
    )
    assert (result["liver_dice"]["mean"], result["liver_dice"]["n"]) == (0.5, 2)
    assert result["all_cases"]["liver_dice"] == {"mean": pytest.approx(1 / 3), "n": 3}
    assert result["presence"]["liver"] == {
        "n_present": 1,
        "n_missed": 1,
        "n_hallucinated": 1,
        "n_absent": 1,
        "n_unannotated": 1,
        "n_unevaluable": 0,
        "sensitivity": 0.5,
        "specificity": 0.5,
        "false_volume_ml_mean": pytest.approx(0.384),
    }
    diagonal = image_diagonal_mm(NOTHING.shape, (3, 2, 1))
    assert result["all_cases"]["liver_hd95_imputed"]["mean"] == pytest.approx(2 / 3 * diagonal)
    assert [case["state"] for case in result["worst_cases"]["liver"]] == ["missed", "present"]


def test_missing_an_organ_does_not_improve_its_distance() -> None:
    near = label_map((1, slice(3, 7)))
    result = cohort([near, NOTHING], [ORGAN, ORGAN])
    assert (result["liver_hd95"]["mean"], result["liver_hd95"]["n"], result["liver_hd95"]["n_undefined"]) == (
        3,
        1,
        1,
    )
    assert result["liver_hd95_imputed"]["mean"] > 15 and result["liver_hd95_imputed"]["n"] == 2


def test_predicting_nothing_scores_zero_and_is_called_so() -> None:
    result = cohort([NOTHING] * 3, [ORGAN, ORGAN, NOTHING])
    nothing = result["baselines"]["all_background"]
    assert (
        result["headline"]["macro_dice"] == nothing["macro_dice"] == 0
        and nothing["better_than_baseline"] is False
    )
    assert any("NOT BETTER THAN PREDICTING NOTHING" in text for text in result["warnings"])
    assert [
        nothing[f"liver_{key}"]
        for key in ("dice", "iou", "nsd", "sensitivity", "precision", "hd95", "volume_error")
    ] == [0, 0, 0, 0, None, None, -1]
    assert nothing["liver_hd95_imputed"] == pytest.approx(image_diagonal_mm(NOTHING.shape, (3, 2, 1)))
    assert (nothing["liver_presence_sensitivity"], nothing["liver_presence_specificity"]) == (0, 1)
    assert cohort([ORGAN], [ORGAN])["baselines"]["all_background"]["better_than_baseline"] is True


def test_structure_without_reference_has_no_score() -> None:
    result = cohort([ORGAN, ORGAN], [ORGAN, ORGAN], names=("liver", "spleen"))
    assert result["spleen_dice"]["mean"] is None and result["spleen_dice"]["n"] == 0
    assert (
        result["headline"]["structures_without_reference"] == ["spleen"]
        and result["headline"]["macro_dice"] == 1
    )
    assert result["baselines"]["all_background"]["spleen_dice"] is None
    empty = cohort([ORGAN], [NOTHING])
    assert (
        empty["headline"]["macro_dice"] is None
        and empty["baselines"]["all_background"]["better_than_baseline"] is None
    )


def test_statistics_of_little() -> None:
    assert mean([]) is None and mean([None, None]) is None
    assert describe([None], ["a"])["mean"] is None
    one = describe([0.5, None], ["a", "b"])
    assert (one["mean"], one["std"], one["n"], one["n_undefined"], one["ci95"], one["ci_method"]) == (
        0.5,
        None,
        1,
        1,
        None,
        None,
    )


def test_interval_of_the_mean() -> None:
    values = np.array([0.91, 0.88, 0, 0.93, 0.90, 0.86, 0.92, 0.89, 0.84, 0.95])
    interval, flags = bca_interval(values, list(range(10)))
    assert interval == pytest.approx([0.448, 0.905], abs=0.02) and flags == ["optimistic_ci"]
    assert bca_interval(values, list(range(10)))[0] == interval
    assert bca_interval(np.full(6, 0.7), list(range(6))) == ([0.7, 0.7], ["optimistic_ci", "degenerate"])
    assert bca_interval(values[:4], list(range(4))) == (None, [])
    # four patients, however many scans
    assert bca_interval(values, [0, 0, 0, 1, 1, 1, 2, 2, 3, 3])[0] is None
    wide = bca_interval(np.repeat(values, 2), np.repeat(range(10), 2).tolist())[0]
    assert wide == pytest.approx(interval)  # scans of one patient carry no further information


def test_tolerances() -> None:
    table = tolerances.tolerances_for(
        (
            "Liver",
            "kidney_left",
            "gall_bladder",
            "urinary_bladder",
            "hip_left",
            "SpinalCord",
            "inferior_vena_cava",
            "liver_lesion",
        ),
        {"SpinalCord": [4]},
    )
    assert [values[0] for values in table.values()] == [5, 3, 2, 3, 2, 4, 2, 2]
    assert all(len(values) >= 2 for values in table.values()) and table["SpinalCord"] == (4, 2)
    with pytest.raises(ValueError):
        tolerances.tolerances_for(("liver",), {"liver": [-1]})
