"""The oracles of metric_oracles.py one by one, and a few that are slower."""

from __future__ import annotations

from collections.abc import Callable

import metric_oracles
import numpy as np
import pytest
from metric_oracles import ORACLES, THICK, UNIT, ball, cube, scores

from ctseg.scoring import distances, tolerances


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.__name__)
def test_oracle(oracle: Callable[[], None]) -> None:
    oracle()


@pytest.mark.parametrize("engine", metric_oracles.ENGINES)
@pytest.mark.parametrize("mode", metric_oracles.MODES)
def test_percentile_of_a_far_false_blob(mode: str, engine: str) -> None:
    """170 mm, where a percentile of the pooled distances gives a few mm."""
    reference = ball((20, 20, 20), 12, (40, 40, 240))
    prediction = reference | ball((20, 20, 206), 5, (40, 40, 240))
    found = scores(prediction, reference, mode=mode, engine=engine)
    pair = distances.surface_distances(
        prediction=prediction, reference=reference, spacing_mm=UNIT, boundary_mode=mode
    )
    assert (
        pair is not None
        and found["hd95_mm"] == pytest.approx(found["hd_mm"], abs=15)
        and found["hd_mm"] > 170
    )
    assert np.percentile(np.concatenate([distance for distance, _ in pair.sides]), 90) == 0


@pytest.mark.parametrize(
    ("spacing", "assd"), [(UNIT, {"surfel": 3.50, "voxel": 3.82}), (THICK, {"surfel": 3.02, "voxel": 3.45})]
)
def test_spheres_of_24_and_20_mm(spacing: tuple[float, float, float], assd: dict[str, float]) -> None:
    """The truth is 4 mm.

    How far off a mode is depends on where the centre lies between the voxels: within 0.3 mm.
    """
    shape = tuple(int(60 / s) for s in spacing)
    centre = tuple(n * s / 2 for n, s in zip(shape, spacing))
    large, small = ball(centre, 24, shape, spacing), ball(centre, 20, shape, spacing)
    for mode, expected in assd.items():
        found = scores(small, large, spacing, (6, 2), mode)
        assert found["assd_mm"] == pytest.approx(expected, abs=0.3) and found["nsd_6mm"] == 1
        assert abs(found["hd95_mm"] - 4) <= float(np.linalg.norm(spacing))
        if spacing == UNIT:
            assert found["dice"] == pytest.approx(0.7331, abs=0.005)


@pytest.mark.parametrize("mode", metric_oracles.MODES)
def test_without_the_float_rule_a_shift_by_the_tolerance_is_far(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction, reference = cube(20, 5, 12, 0, 3), cube(20, 5, 12)
    assert scores(prediction, reference, (0.1,) * 3, (0.3, 1), mode)["nsd_0.3mm"] == 1
    monkeypatch.setattr(distances, "TOLERANCE_EPSILON", 0.0)
    assert scores(prediction, reference, (0.1,) * 3, (0.3, 1), mode)["nsd_0.3mm"] < 0.85


def test_tolerance_of_every_named_structure() -> None:
    expected = {
        "liver": 5,
        "kidney_left": 3,
        "spleen": 3,
        "pancreas": 5,
        "aorta": 2,
        "inferior_vena_cava": 2,
        "adrenal_gland_right": 2,
        "gallbladder": 2,
        "esophagus": 3,
        "oesophagus": 3,
        "stomach": 5,
        "duodenum": 7,
        "liver_lesion": 2,
        "bladder": 3,
        "prostate": 3,
        "rectum": 3,
        "sacrum": 2,
        "airway": 1,
        "vertebra": 2,
    }
    table = tolerances.tolerances_for(expected)
    assert {name: values[0] for name, values in table.items()} == expected
    assert (
        all(len(values) >= 2 for values in table.values())
        and table["airway"] == (1, 2)
        and table["bladder"] == (3, 2, 5)
    )
