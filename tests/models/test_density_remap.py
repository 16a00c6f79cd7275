"""The density table and the lung region, on a synthetic thorax of ellipses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import ndimage

from ctseg.errors import IntegrityError, PreconditionError, UsageError
from ctseg.geometry.body_regions import lung_box, lung_region
from ctseg.geometry.intensity import window
from ctseg.learning.density_remap import fit_lookup
from models import build_network
from models.density_remap import DensityRemap

WINDOW_HU = (-1024.0, 400.0)
SPACING_MM = (3.0, 2.0, 1.0)
SHAPE = (40, 80, 200)


def ellipse(centre, radii_mm, shape=SHAPE) -> np.ndarray:
    """(D, H, W) bool; centre in voxels."""
    grids = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum(((g - c) * s / r) ** 2 for g, c, s, r in zip(grids, centre, SPACING_MM, radii_mm)) <= 1


def thorax(*, merged: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """Image 0..1 and masks: lungs with a vessel and thin airways, a trachea that leaves at the top, bowel
    gas.
    """
    noise = np.random.default_rng(seed).normal(0, 40, SHAPE)
    hu = np.full(SHAPE, -1024.0)
    body = ellipse((20, 40, 100), (1000, 70, 90))
    body[:2], body[-2:] = False, False  # filling beyond the scan
    hu[body] = 40
    right, left = ellipse((18, 40, 65), (40, 40, 25)), ellipse((18, 40, 135), (40, 40, 25))
    lungs = right | left
    if merged:
        lungs[15:18, 38:42, 60:140] = True
    hu[lungs] = -850
    vessel = np.zeros(SHAPE, bool)
    vessel[10:26, 40:42, 62:66] = True
    hu[vessel] = 40
    trachea = ellipse((34, 40, 100), (1000, 8, 8)) & body
    trachea[:28] = False
    hu[trachea] = -1000
    bowel = ellipse((4, 40, 100), (9, 12, 12)) & body
    hu[bowel] = -900
    wall, lumen = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    # thin airways: walls and lumen far from tissue and air, for they share voxels with lung
    for w in (50, 75, 120, 145):
        wall[8:28, 30:34, w : w + 5], lumen[8:28, 31:33, w + 1 : w + 4] = True, True
    hu[wall], hu[lumen] = -600, -930
    masks = {
        "body": body,
        "lungs": lungs,
        "vessel": vessel,
        "trachea": trachea,
        "bowel": bowel,
        "lumen": lumen,
        "wall": wall & ~lumen,
    }
    return {"image": window(hu + noise * body, WINDOW_HU).astype(np.float16), **masks}


class LookupCase(NamedTuple):
    """What of a TrainingCase the table looks at."""

    case_id: str
    split: str
    image: torch.Tensor
    label: torch.Tensor
    spacing_mm: tuple[float, float, float]


def label_of(tube: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(tube.astype(np.uint8))


def case(split: str = "train", seed: int = 0) -> LookupCase:
    drawn = thorax(seed=seed)
    image, label = torch.from_numpy(drawn["image"]), label_of(drawn["lumen"] | drawn["trachea"])
    return LookupCase(f"synthetic_{seed}", split, image, label, SPACING_MM)


@pytest.mark.parametrize("merged", [False, True])
def test_the_lung_region_holds_lungs_vessels_and_trachea_and_nothing_outside(merged):
    drawn = thorax(merged=merged)
    region = lung_region(drawn["image"], WINDOW_HU, SPACING_MM)
    assert region.shape == SHAPE and region.dtype == bool
    core = ndimage.binary_erosion(drawn["lungs"], np.ones((1, 3, 5)))
    assert region[core].mean() > 0.99
    assert region[drawn["vessel"]].all()
    assert region[drawn["trachea"]].mean() > 0.9
    assert not region[drawn["bowel"]].any()
    assert not region[~drawn["body"]].any()


def test_the_lung_box_has_a_margin_of_10_mm():
    region = np.zeros((20, 30, 60), bool)
    region[8:10, 12:16, 30:40] = True
    assert lung_box(region, SPACING_MM) == (slice(4, 14), slice(7, 21), slice(20, 50))
    assert lung_box(~region, SPACING_MM) == (slice(0, 20), slice(0, 30), slice(0, 60))


def test_without_lungs_the_region_is_empty_and_the_box_everything():
    image = np.full((10, 12, 14), 0.8, np.float32)
    region = lung_region(image, WINDOW_HU, SPACING_MM)
    assert not region.any() and lung_box(region, SPACING_MM) == (slice(0, 10), slice(0, 12), slice(0, 14))


def test_a_window_that_cannot_show_lung_is_refused():
    with pytest.raises(UsageError, match="BAD_WINDOW"):
        lung_region(np.zeros((4, 4, 4), np.float32), (-250.0, 750.0), SPACING_MM)


def test_the_table_rises_strictly_from_0_to_1_and_spreads_lumen_and_wall():
    table = fit_lookup([case(seed=0), case(seed=1)], WINDOW_HU)
    assert table.shape == (90,) and table.dtype == np.float32  # 1424 HU in bins of 16
    assert table[0] == 0 and table[-1] == 1 and (np.diff(table) > 0).all()
    drawn = thorax(seed=2)  # a case the table does not know
    lumen, wall = (np.median(drawn["image"][drawn[name]].astype(np.float32)) for name in ("lumen", "wall"))
    new_lumen, new_wall = np.interp([lumen, wall], np.linspace(0, 1, 90), table)
    assert new_wall - new_lumen > wall - lumen  # the same interval gets more of the range
    # which refuses what does not rise strictly
    DensityRemap(build_network("unet", n_structures=1, width=2, levels=2)).set_lookup(table)


def test_the_table_gives_the_three_classes_equal_shares():
    """Three intensities only, one per class: each bin holds a third of the curve, whatever the size."""
    image = np.full((20, 24, 28), 40.0)
    tube = np.zeros(image.shape, bool)
    tube[9:11, 9:11, 4:24] = True
    image[ndimage.binary_dilation(tube, np.ones((3, 3, 3)), iterations=2)] = -300
    image[tube] = -980
    table = fit_lookup(
        [
            LookupCase(
                "synthetic",
                "train",
                torch.from_numpy(window(image, WINDOW_HU)),
                label_of(tube),
                (1.0, 1.0, 1.0),
            )
        ],
        WINDOW_HU,
    )
    steps = np.diff(table)
    bins = [int((hu + 1024) // 16) for hu in (-980, -300, 40)]
    assert steps[bins] == pytest.approx([0.7 / 3 + 0.3 / 89] * 3, rel=1e-4)
    assert np.delete(steps, bins) == pytest.approx(0.3 / 89, rel=1e-3)


@pytest.mark.parametrize("window_hu", [(-1000.0, -500.0), (-900.0, -800.0)])
def test_a_window_wholly_inside_lung_has_a_table_too(window_hu):
    """No tissue in it, so that the lungs cannot be told from the rest: whatever is no air counts."""
    given = case()
    hu = given.image.float().numpy() * (WINDOW_HU[1] - WINDOW_HU[0]) + WINDOW_HU[0]
    table = fit_lookup([given._replace(image=torch.from_numpy(window(hu, window_hu)))], window_hu)
    assert table[0] == 0 and table[-1] == 1 and (np.diff(table) > 0).all()
    network = DensityRemap(build_network("unet", n_structures=1, width=2, levels=2))
    network.set_lookup(table)
    assert bool(network(torch.full((1, 1, 8, 8, 8), 0.3))["logits"].isfinite().all())


def test_a_mix_of_1_is_the_identity(monkeypatch):
    monkeypatch.setattr("ctseg.learning.density_remap.MIX", 1.0)
    assert np.array_equal(fit_lookup([case()], WINDOW_HU), np.linspace(0, 1, 90, dtype=np.float32))


@pytest.mark.parametrize("split", ["val", "test", ""])
def test_only_training_cases_are_accepted(split):
    with pytest.raises(IntegrityError, match=r"LEAKAGE.*synthetic_1"):
        fit_lookup([case(seed=0), case(split, seed=1)], WINDOW_HU)


def test_cases_without_any_tube_are_an_error():
    drawn = case()
    with pytest.raises(PreconditionError, match="NO_TUBES"):
        fit_lookup([drawn._replace(label=label_of(np.zeros(SHAPE, bool)))], WINDOW_HU)
    with pytest.raises(PreconditionError, match="NO_TUBES"):
        fit_lookup([], WINDOW_HU)
