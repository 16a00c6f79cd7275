"""Laws that hold for any pair of masks, in both boundary modes and with every engine."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_oracles import ENGINES, MODES, mask_metrics, scores, using

from ctseg.geometry.boxes import label_boxes
from ctseg.scoring import distances, metrics, shells, tolerances
from ctseg.scoring.metrics import Structure, confusion_matrix, score_case
from ctseg.scoring.summary import summarise

DISTANCES = ("hd_mm", "hd95_mm", "assd_mm", "masd_mm")
SHARES = ("dice", "iou", "precision", "recall", "nsd_1mm", "nsd_2mm")
FAST = settings(max_examples=20, deadline=None, derandomize=True)
SPACINGS = (0.5, 0.8, 1.0, 1.7, 2.0, 3.0)


@st.composite
def pairs(draw) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Two masks of 3 to 12 voxels per axis, neither empty: noise of any density, or blocks that overlap or
    not.
    """
    shape = tuple(draw(st.integers(3, 12)) for _ in range(3))
    spacing = tuple(draw(st.sampled_from(SPACINGS)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    if draw(st.booleans()):
        reference = rng.random(shape) < draw(st.sampled_from([0.02, 0.1, 0.5, 0.9]))
        prediction = reference ^ (rng.random(shape) < draw(st.sampled_from([0.02, 0.3])))
    else:
        reference, prediction = np.zeros(shape, bool), np.zeros(shape, bool)
        for mask in (reference, prediction):
            ends = [np.sort(rng.choice(n + 1, 2, replace=False)) for n in shape]
            mask[tuple(slice(a, b) for a, b in ends)] = True
    for mask in (prediction, reference):
        mask[tuple(rng.integers(0, n) for n in shape)] = True
    return prediction, reference, spacing  # type: ignore[return-value]


def same(one: dict, other: dict, within: float = 1e-9, skip: tuple[str, ...] = ()) -> None:
    for key in one:
        if key not in skip:
            assert one[key] == pytest.approx(other[key], abs=within), key


@pytest.mark.parametrize(("mode", "engine"), list(itertools.product(MODES, ENGINES)))
@FAST
@given(pairs(), st.permutations(range(3)), st.integers(0, 2), st.tuples(*[st.integers(0, 5)] * 3))
def test_place_and_direction_do_not_matter(
    mode: str, engine: str, pair, order, axis: int, shift: tuple[int, int, int]
) -> None:
    prediction, reference, spacing = pair

    def scored(one: np.ndarray, other: np.ndarray, spacing_mm=spacing) -> dict:
        return scores(one, other, spacing_mm, mode=mode, engine=engine)

    result = scored(prediction, reference)
    same(
        result,
        scored(prediction.transpose(order), reference.transpose(order), tuple(spacing[i] for i in order)),
        1e-9,
    )
    same(result, scored(np.flip(prediction, axis), np.flip(reference, axis)))
    wider = [(a, 5 - a) for a in shift]  # the same masks anywhere in a larger grid
    same(result, scored(np.pad(prediction, wider), np.pad(reference, wider)), skip=("specificity",))
    same(
        result,
        scored(
            np.asfortranarray(prediction).astype(np.uint8),
            np.ascontiguousarray(reference[::-1, :, ::-1])[::-1, :, ::-1],
        ),
        0,
    )


@pytest.mark.parametrize(("mode", "engine"), list(itertools.product(MODES, ENGINES)))
@FAST
@given(pairs(), st.sampled_from([0.5, 2.0, 3.7]))
def test_swap_identity_and_scale(mode: str, engine: str, pair, scale: float) -> None:
    prediction, reference, spacing = pair
    result = scores(prediction, reference, spacing, mode=mode, engine=engine)
    swapped = scores(reference, prediction, spacing, mode=mode, engine=engine)
    same(
        result, swapped, 1e-9, skip=("precision", "recall", "specificity", "volume_error", "volume_error_ml")
    )
    assert (result["precision"], result["recall"]) == (swapped["recall"], swapped["precision"])
    itself = scores(reference, reference, spacing, mode=mode, engine=engine)
    assert [itself[key] for key in (*SHARES, *DISTANCES)] == [1.0] * 6 + [0.0] * 4
    scaled = mask_metrics(
        prediction=prediction,
        reference=reference,
        spacing_mm=tuple(scale * s for s in spacing),
        tolerances_mm=(scale, 2 * scale),
        boundary_mode=mode,
        engine=engine,
    )
    for key in DISTANCES:
        assert scaled[key] == pytest.approx(scale * result[key], abs=scale * 1e-9)
    assert [scaled[tolerances.key(t * scale)] for t in (1, 2)] == pytest.approx(
        [result["nsd_1mm"], result["nsd_2mm"]], abs=1e-9
    )


@pytest.mark.parametrize(("mode", "engine"), list(itertools.product(MODES, ENGINES)))
@FAST
@given(pairs())
def test_ranges(mode: str, engine: str, pair) -> None:
    prediction, reference, spacing = pair
    taus = (0.0, 0.5, 1.0, 2.0, 4.0)
    result = scores(prediction, reference, spacing, taus, mode, engine)
    assert 0 <= result["iou"] <= result["dice"] <= 1
    assert result["dice"] == pytest.approx(2 * result["iou"] / (1 + result["iou"]))
    assert 0 <= result["hd95_mm"] <= result["hd_mm"]
    assert max(result["assd_mm"], result["masd_mm"]) <= result["hd_mm"] + 1e-9
    nsd = [result[tolerances.key(t)] for t in taus]
    assert nsd == sorted(nsd) and nsd[0] >= 0 and nsd[-1] <= 1 + 1e-12
    farthest = result["hd_mm"]
    assert scores(prediction, reference, spacing, (farthest, 1), mode, engine)[
        tolerances.key(farthest)
    ] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
@FAST
@given(pairs())
def test_every_engine_agrees_with_all_pairs_of_points(mode: str, pair) -> None:
    """Boundaries by definition, distances of all pairs, in both modes."""
    prediction, reference, spacing = pair
    points, weights = zip(*(boundary(mask, spacing, mode) for mask in (reference, prediction)))
    table = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
    there, back = table.min(axis=1), table.min(axis=0)
    pooled, weight = np.concatenate([there, back]), np.concatenate(weights)
    for engine in ENGINES:
        with using(engine):
            found = distances.surface_distances(
                prediction=prediction, reference=reference, spacing_mm=spacing, boundary_mode=mode
            )
        assert found is not None
        np.testing.assert_allclose(found.sides[0][0], np.sort(there), atol=1e-9)
        np.testing.assert_allclose(found.sides[1][0], np.sort(back), atol=1e-9)
        assert distances.hausdorff_mm(found) == pytest.approx(pooled.max(), abs=1e-5)
        assert distances.average_symmetric_mm(found) == pytest.approx(
            (pooled * weight).sum() / weight.sum(), abs=1e-5
        )
        assert distances.surface_dice(found, 1.0) == pytest.approx(
            weight[pooled <= 1 + 1e-6].sum() / weight.sum(), abs=1e-9
        )
        if mode == "voxel":
            assert distances.percentile_hausdorff_mm(found) == pytest.approx(
                max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-5
            )


def boundary(
    mask: np.ndarray, spacing: tuple[float, float, float], mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """Points in mm and weights, voxel by voxel."""
    padded = np.pad(mask, 1)
    if mode == "surfel":
        from ctseg.scoring.surfel import area_table

        codes = {
            cell: sum(
                128 >> i
                for i, on in enumerate(padded[tuple(slice(c, c + 2) for c in cell)].reshape(-1))
                if on
            )
            for cell in np.ndindex(*(n + 1 for n in mask.shape))
        }
        cells = [cell for cell, code in codes.items() if code not in (0, 255)]
        return np.array(cells) * spacing, area_table(spacing)[[codes[cell] for cell in cells]]
    neighbours = [
        np.array(step) for step in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
    ]
    voxels = [p for p in np.argwhere(mask) if any(not padded[tuple(p + 1 + step)] for step in neighbours)]
    return np.array(voxels) * spacing, np.ones(len(voxels))


@pytest.mark.parametrize("mode", MODES)
@FAST
@given(pairs())
def test_the_automatic_choice_changes_no_value(mode: str, pair) -> None:
    prediction, reference, spacing = pair
    expected = scores(prediction, reference, spacing, mode=mode, engine="scipy")
    # look around, hardly, a little, not at all
    for near, per_voxel in ((2.5, 8.0), (99.0, 0.01), (99.0, 0.3), (0.0, 8.0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distances, "NEAR_VOXELS", near)
            patch.setattr(distances, "TRANSFORM_PER_VOXEL", per_voxel)
            same(expected, scores(prediction, reference, spacing, mode=mode), 1e-9)


def test_shells_hold_every_offset_once_in_order() -> None:
    for spacing in ((1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.5, 3.0, 1.7), (0.1, 10.0, 10.0)):
        table = shells.shells_of(spacing)
        assert [distance for distance, _ in table] == sorted({distance for distance, _ in table})
        offsets = np.concatenate([part for _, part in table])
        assert len(np.unique(offsets, axis=0)) == len(offsets) and len(offsets) < 2 * shells.MAX_OFFSETS
        for distance, part in table:
            np.testing.assert_allclose(np.linalg.norm(part * spacing, axis=1), distance, rtol=1e-9)
        farthest = table[-1][0]
        wide = [np.arange(-int(farthest / s) - 1, int(farthest / s) + 2) * s for s in spacing]
        away = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*wide, indexing="ij", sparse=True)))
        assert np.count_nonzero((away > 0) & (away < farthest * (1 - 1e-9))) == sum(
            len(part) for _, part in table[:-1]
        )


@FAST
@given(pairs())
def test_a_false_voxel_or_a_deleted_organ_never_helps(pair) -> None:
    prediction, reference, spacing = pair
    for mode in MODES:
        result = scores(prediction, reference, spacing, mode=mode)
        wrong = np.flatnonzero(~(prediction | reference))
        if wrong.size:
            more = prediction.copy()
            more.flat[wrong[len(wrong) // 2]] = True
            worse = scores(more, reference, spacing, mode=mode)
            assert worse["dice"] <= result["dice"] and worse["precision"] <= result["precision"]
        rows, nothing = (
            rows_of(mask, reference, spacing, mode) for mask in (prediction, np.zeros_like(prediction))
        )
        for key in ("dice", "iou", "nsd", "nsd2", "recall"):
            assert nothing[0][key] <= rows[0][key]
        for key in ("hd_imputed_mm", "hd95_imputed_mm", "assd_imputed_mm"):
            assert nothing[0][key] >= rows[0][key]
        ids = {"case_id": "c", "patient_id": "p"}
        ranked = [summarise([ids | row[0]], [ids | nothing[0]], {})["headline"] for row in (rows, nothing)]
        assert (
            ranked[1]["macro_dice"] == 0 <= ranked[0]["macro_dice"]
            and ranked[1]["macro_hd95_imputed"] >= ranked[0]["macro_hd95_imputed"]
        )


def rows_of(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    mode: str,
    ids: tuple[int, ...] = (1,),
) -> list[dict]:
    structures = [Structure(f"s{label}", (label,)) for label in ids]
    return score_case(
        prediction=prediction.astype(np.uint8),
        reference=reference.astype(np.uint8),
        spacing_mm=spacing,
        structures=structures,
        tolerances_mm={s.name: (1.0, 2.0) for s in structures},
        boundary_mode=mode,
    )


@pytest.mark.parametrize("mode", MODES)
@FAST
@given(st.integers(0, 10_000), st.permutations([1, 2, 3, 4, 200]))
def test_names_of_labels_do_not_matter(mode: str, seed: int, order: list[int]) -> None:
    """Permuted labels permute the rows, and every row is what its mask alone scores."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(5, 20, 3))
    maps = [
        np.kron(rng.integers(0, 5, [-(-n // 4) for n in shape]), np.ones((4, 4, 4), int))[
            tuple(slice(0, n) for n in shape)
        ]
        for _ in range(2)
    ]
    spacing = tuple(rng.choice(SPACINGS, 3).tolist())
    plain = rows_of(*maps, spacing, mode, (1, 2, 3, 4))
    table = np.array([0, *order[:4]])
    renamed = rows_of(table[maps[0]], table[maps[1]], spacing, mode, tuple(order[:4]))
    for label, one, other in zip((1, 2, 3, 4), plain, renamed):
        assert {key: one[key] for key in one if key not in ("structure", "label")} == {
            key: other[key] for key in other if key not in ("structure", "label")
        }
        if one["state"] == "present":
            alone = scores(maps[0] == label, maps[1] == label, spacing, mode=mode)
            for column, key in (
                ("dice", "dice"),
                ("iou", "iou"),
                ("precision", "precision"),
                ("recall", "recall"),
                ("specificity", "specificity"),
                ("nsd", "nsd_1mm"),
                *zip(DISTANCES, DISTANCES),
            ):
                assert one[column] == pytest.approx(alone[key], abs=1e-6), column


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 100_000),
    st.sampled_from([np.uint8, np.uint16]),
    st.sampled_from([1, 2, 7, 256, 300]),
    st.sampled_from(["C", "F"]),
)
def test_counts_and_boxes_of_labels_are_those_of_plain_loops(
    seed: int, dtype: type, n_labels: int, order: str
) -> None:
    rng = np.random.default_rng(seed)
    n_labels = min(n_labels, np.iinfo(dtype).max + 1)
    shape = tuple(rng.integers(1, 30, 3))
    maps = []
    for _ in range(2):
        blocks = np.kron(rng.integers(0, n_labels, [-(-n // 5) for n in shape]), np.ones((5, 5, 5), int))[
            tuple(slice(0, n) for n in shape)
        ]
        noisy = np.where(rng.random(shape) < rng.choice([0, 0.1]), rng.integers(0, n_labels, shape), blocks)
        noisy[:, rng.integers(0, shape[1]) :] = 0
        maps.append(np.asarray(noisy, dtype, order=order))  # type: ignore[call-overload]
    with pytest.MonkeyPatch.context() as patch:  # pieces so small that a map takes many
        patch.setattr(metrics, "_PIECE", int(rng.choice([700, 1 << 16])))
        matrix = confusion_matrix(prediction=maps[0], reference=maps[1], n_labels=n_labels)
    expected = np.zeros((n_labels, n_labels), np.int64)
    np.add.at(expected, (maps[1].reshape(-1).astype(int), maps[0].astype(int).reshape(-1)), 1)
    assert np.array_equal(matrix, expected)
    boxes = label_boxes(maps[0])
    for label in range(1, n_labels):
        either = np.argwhere(maps[0] == label)
        box = (
            tuple(slice(int(a), int(b) + 1) for a, b in zip(either.min(axis=0), either.max(axis=0)))
            if len(either)
            else None
        )
        assert boxes.get(label) == box
