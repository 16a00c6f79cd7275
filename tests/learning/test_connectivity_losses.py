"""Connectivity losses on hand-made tubes: values from their definitions, and gradients that mend breaks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ctseg.config import TrainSettings
from ctseg.learning import connectivity_losses as losses
from ctseg.learning.connectivity_losses import connectivity_loss
from ctseg.learning.tubes import tube_targets

SHAPE = (10, 12, 24)
NOTHING = TrainSettings(
    union_weight=0, centreline_weight=0, radius_weight=0, cldice_weight=0, consistency_weight=0
)
TERMS = ("union", "cldice", "centreline", "radius", "consistency")


def two_tubes() -> np.ndarray:
    """A tube 3 x 3 along W with id 1, and a line of single voxels with id 2."""
    label = np.zeros(SHAPE, np.uint8)
    label[3:6, 4:7, 2:22] = 1
    label[8, 9, 2:22] = 2
    return label


def targets(*labels: np.ndarray) -> dict[str, torch.Tensor]:
    """What `connectivity_loss` takes beside the outputs, for a batch of labels; every structure annotated."""
    made = [(label, *tube_targets(label, [1, 2], (1, 1, 1))) for label in labels]
    names = ("label", "centreline", "skeleton", "radius_mm")
    return {name: torch.from_numpy(np.stack(items)) for name, items in zip(names, zip(*made))}


def logits_of(label: np.ndarray, n_structures: int = 2, sharpness: float = 6.0) -> torch.Tensor:
    """(1, S+1, D, H, W) logits that predict a label with near certainty."""
    return (
        sharpness
        * F.one_hot(torch.from_numpy(label).long(), n_structures + 1).permute(3, 0, 1, 2)[None].float()
    )


def only(**weights: float) -> TrainSettings:
    return dataclasses.replace(NOTHING, **{f"{name}_weight": value for name, value in weights.items()})


def all_labelled(n_cases: int = 1) -> torch.Tensor:
    return torch.ones(n_cases, 2, dtype=torch.bool)


@pytest.mark.parametrize("term", ["union", "cldice"])
@pytest.mark.parametrize("structure", [1, 2])
def test_a_break_costs_and_the_gradient_mends_it(term, structure):
    whole = two_tubes()
    broken = np.where(
        (whole == structure) & (np.arange(SHAPE[2]) >= 10) & (np.arange(SHAPE[2]) < 13), 0, whole
    ).astype(np.uint8)
    half = np.where((whole == structure) & (np.arange(SHAPE[2]) == 10), 0, whole).astype(np.uint8)
    values = []
    for prediction in (whole, half, broken):
        logits = logits_of(prediction).requires_grad_()
        loss, parts = connectivity_loss(
            {"logits": logits},
            **targets(whole),
            labelled=all_labelled(),
            weights=only(**{term: 1.0}),
            progress=0.5,
        )
        loss.backward()
        values.append(loss.item())
        assert set(parts) == {term} and parts[term].item() == pytest.approx(loss.item())
    assert values[0] < values[1] < values[2]
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())
    link = logits.grad[0, :, 3:6, 4:7, 10:13] if structure == 1 else logits.grad[0, :, 8, 9, 10:13]
    axis = link[:, 1, 1] if structure == 1 else link
    # a step against it links the two parts
    assert bool((axis[structure] < 0).all()) and bool((axis[0] > 0).all())


def test_a_break_costs_more_of_connectivity_than_of_dice():
    whole = two_tubes()
    broken = whole.copy()
    broken[8, 9, 10:12] = 0
    logits, mask = logits_of(broken, sharpness=20.0), torch.from_numpy(whole == 2)[None]
    p = torch.softmax(logits, 1)[:, 2]
    dice_loss = 1 - 2 * (p * mask).sum() / (p.sum() + mask.sum())
    union = losses.general_union_loss(p, mask, losses.Sums(torch.tensor([0]), 1), alpha=0.1)
    assert float(union) > 1.5 * float(dice_loss)


def test_the_link_of_a_centreline_is_learned_too():
    given = targets(two_tubes())
    whole = torch.where(
        given["centreline"][:, None] == torch.tensor([1, 2])[:, None, None, None], 12.0, -12.0
    )
    broken = whole.clone()
    broken[:, 1, :, :, 10:13] = -12.0
    broken.requires_grad_()
    loss, less = (
        connectivity_loss(
            {"logits": logits_of(two_tubes()), "centreline": line},
            **given,
            labelled=all_labelled(),
            weights=only(centreline=1.0),
            progress=0.5,
        )[0]
        for line in (broken, whole)
    )
    loss.backward()
    assert broken.grad is not None and float(broken.grad[0, 1, 8, 9, 10:13].max()) < 0
    assert less.item() < 0.01 < loss.item()


def test_general_union_equals_its_definition():
    rng = np.random.default_rng(0)
    p, mask = rng.random((2, 10, 12, 14)), rng.random((2, 10, 12, 14)) > 0.9
    weight = np.ones(mask.shape)
    for n, d, h, w in np.argwhere(mask):
        around = mask[n, max(0, d - 3) : d + 4, max(0, h - 3) : h + 4, max(0, w - 3) : w + 4]
        weight[n, d, h, w] = (-np.log10(around.mean())) ** 2.5
    assert losses.imbalance_weight(torch.from_numpy(mask)).numpy() == pytest.approx(weight, rel=1e-4)
    expected = []
    for items in ([0], [1]), ([0, 1],):
        values = [
            1
            - ((weight * (p + 1e-4) ** 0.7 * mask)[i].sum() + 1)
            / ((weight * (0.2 * p + 0.8 * mask))[i].sum() + 1)
            for i in items
        ]
        expected.append(np.mean(values))
    for owner, value in zip(([0, 1], [0, 0]), expected):
        sums = losses.Sums(torch.tensor(owner), max(owner) + 1)
        loss = losses.general_union_loss(torch.from_numpy(p).float(), torch.from_numpy(mask), sums, alpha=0.2)
        assert loss.item() == pytest.approx(value, rel=1e-4)


def test_trunks_weigh_nothing_and_lines_most():
    mask = torch.zeros(1, 24, 26, 28, dtype=torch.bool)
    mask[:, 2:14, 2:14] = True
    mask[:, 20, 20] = True
    weight = losses.imbalance_weight(mask)
    assert float(weight[0, 8, 8, 14]) == pytest.approx(0, abs=1e-6)
    assert float(weight[0, 20, 20, 14]) == pytest.approx((-np.log10(7 / 343)) ** 2.5, rel=1e-4)
    assert bool((weight[~mask] == 1).all())


def test_the_soft_skeleton_equals_pooling_and_finds_lines():
    p = torch.rand(2, 10, 12, 14)
    skeleton, image = torch.zeros_like(p), p
    for _ in range(4):
        cross = [-F.max_pool3d(-image, k, 1, [n // 2 for n in k]) for k in ((3, 1, 1), (1, 3, 1), (1, 1, 3))]
        eroded = torch.stack(cross).amin(0)
        thin = F.relu(image - F.max_pool3d(eroded, 3, 1, 1))
        skeleton, image = skeleton + F.relu(thin - skeleton * thin), eroded
    assert torch.allclose(losses.soft_skeleton(p, 3), skeleton, atol=1e-6)
    tube = torch.from_numpy(two_tubes() == 1)[None].float()
    places = torch.nonzero(losses.soft_skeleton(tube, 3)[0, :, :, 6:18])
    assert {(d, h) for d, h, _ in places.tolist()} == {(4, 5)}  # only the axis


def test_cldice_of_lines_is_the_hard_one():
    line, prediction = torch.zeros(1, *SHAPE, dtype=torch.bool), torch.zeros(1, *SHAPE)
    line[:, 4, 5, 2:22] = True
    prediction[:, 4, 5, 2:12], prediction[:, 8, 9, 2:7] = 1, 1
    precision, recall = (10 + 1) / (15 + 1), (10 + 1) / (20 + 1)
    loss = losses.soft_cldice_loss(prediction, line, line, losses.Sums(torch.tensor([0]), 1))
    assert float(loss) == pytest.approx(1 - 2 * precision * recall / (precision + recall), abs=1e-5)


def outputs_like(n_cases: int, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        "logits": torch.randn(n_cases, 3, *SHAPE, requires_grad=True),
        "centreline": torch.randn(n_cases, 2, *SHAPE, requires_grad=True),
        "radius": torch.rand(n_cases, 2, *SHAPE, requires_grad=True),
    }


@pytest.mark.parametrize(
    "labels",
    [
        [two_tubes() * 0],
        [two_tubes()],
        [two_tubes(), two_tubes() * 0],
        [np.where(two_tubes() == 2, 2, 0).astype(np.uint8)],
    ],
)
def test_every_term_is_finite_with_and_without_structures(labels):
    outputs = outputs_like(len(labels))
    weights = TrainSettings()
    loss, parts = connectivity_loss(
        outputs, **targets(*labels), labelled=all_labelled(len(labels)), weights=weights, progress=0.9
    )
    loss.backward()
    assert set(parts) == set(TERMS) and all(
        bool(torch.isfinite(part)) and not part.requires_grad for part in parts.values()
    )
    assert loss.item() == pytest.approx(
        sum(getattr(weights, f"{name}_weight") * part.item() for name, part in parts.items()), rel=1e-5
    )
    for value in outputs.values():
        assert value.grad is not None and bool(torch.isfinite(value.grad).all())
    if not any(label.any() for label in labels):
        assert all(parts[name].item() == 0 for name in ("union", "cldice", "radius"))


def test_an_absent_structure_does_not_dilute_the_others():
    label = np.where(two_tubes() == 2, 2, 0).astype(np.uint8)
    outputs = outputs_like(1)
    together, _ = connectivity_loss(
        outputs, **targets(label), labelled=all_labelled(), weights=only(union=1.0, cldice=1.0), progress=0.5
    )
    alone, _ = connectivity_loss(
        outputs,
        **targets(label),
        labelled=torch.tensor([[False, True]]),
        weights=only(union=1.0, cldice=1.0),
        progress=0.5,
    )
    assert together.item() == pytest.approx(alone.item())


def test_what_was_not_annotated_has_no_part():
    given, outputs = targets(two_tubes(), two_tubes()), outputs_like(2)
    weights = TrainSettings()
    labelled = torch.tensor([[True, False], [True, False]])
    loss, _ = connectivity_loss(outputs, **given, labelled=labelled, weights=weights, progress=0.5)
    loss.backward()
    assert not outputs["centreline"].grad[:, 1].any() and not outputs["radius"].grad[:, 1].any()
    given["label"] = torch.where(given["label"] == 2, 0, given["label"])
    again, _ = connectivity_loss(outputs, **given, labelled=labelled, weights=weights, progress=0.5)
    assert again.item() == pytest.approx(loss.item())


def test_a_batch_without_annotation_gives_nothing():
    outputs = outputs_like(1)
    loss, parts = connectivity_loss(
        outputs, **targets(two_tubes()), labelled=~all_labelled(), weights=TrainSettings(), progress=0.5
    )
    loss.backward()
    assert loss.item() == 0 and parts == {}


def test_a_weight_of_zero_skips_the_term_and_a_missing_head_its_terms():
    outputs = outputs_like(1)
    nan = {**outputs, "radius": torch.full_like(outputs["radius"], torch.nan)}
    loss, parts = connectivity_loss(
        nan,
        **targets(two_tubes()),
        labelled=all_labelled(),
        weights=only(union=1.0, centreline=1.0),
        progress=0.5,
    )
    assert bool(torch.isfinite(loss)) and set(parts) == {"union", "centreline"}
    _, parts = connectivity_loss(
        {"logits": outputs["logits"]},
        **targets(two_tubes()),
        labelled=all_labelled(),
        weights=TrainSettings(),
        progress=0.5,
    )
    assert set(parts) == {"union", "cldice"}
    _, parts = connectivity_loss(
        {key: outputs[key] for key in ("logits", "centreline")},
        **targets(two_tubes()),
        labelled=all_labelled(),
        weights=TrainSettings(),
        progress=0.5,
    )
    assert set(parts) == {"union", "cldice", "centreline", "consistency"}


def test_training_progress_starts_the_consistency_and_moves_the_union():
    outputs, given = outputs_like(1), targets(two_tubes())
    seen = {
        progress: connectivity_loss(
            outputs, **given, labelled=all_labelled(), weights=TrainSettings(), progress=progress
        )[1]
        for progress in (0.0, 0.09, 0.1, 0.49, 0.5, 1.0)
    }
    assert ["consistency" in parts for parts in seen.values()] == [False, False, True, True, True, True]
    union = [round(parts["union"].item(), 6) for parts in seen.values()]
    assert union[0] == union[3] != union[4] == union[5]


def test_half_precision_outputs_are_scored_in_full_precision():
    outputs = {name: value.detach().bfloat16() for name, value in outputs_like(1).items()}
    loss, parts = connectivity_loss(
        outputs, **targets(two_tubes()), labelled=all_labelled(), weights=TrainSettings(), progress=0.5
    )
    assert loss.dtype == torch.float32 and all(part.dtype == torch.float32 for part in parts.values())


def test_the_radius_counts_inside_the_structure_only_and_is_capped():
    given = targets(two_tubes())
    given["radius_mm"] = torch.where(given["label"] == 1, 25.0, given["radius_mm"].float())
    radius = torch.stack([torch.ones(1, *SHAPE), given["radius_mm"].float() / 10], 1)
    radius[given["label"][:, None].expand(-1, 2, -1, -1, -1) == 0] = 7.0  # outside anything goes
    loss, _ = connectivity_loss(
        {"logits": logits_of(two_tubes()), "radius": radius},
        **given,
        labelled=all_labelled(),
        weights=only(radius=1.0),
        progress=0.5,
    )
    assert loss.item() == pytest.approx(0, abs=1e-6)
    radius[0, 1, 8, 9, 10] += 0.25  # one voxel of twenty, in the linear part: 0.25 - beta / 2
    loss, _ = connectivity_loss(
        {"logits": logits_of(two_tubes()), "radius": radius},
        **given,
        labelled=all_labelled(),
        weights=only(radius=1.0),
        progress=0.5,
    )
    assert loss.item() == pytest.approx(0.2 / 20 / 2, rel=1e-4)


def test_inconsistent_partners_move_towards_each_other():
    p = torch.full((1, 2, 2, 2), 0.1, requires_grad=True)
    line = torch.full((1, 2, 2, 2), 2.0, requires_grad=True)
    losses.consistency_loss(p, line, None).backward()
    assert p.grad is not None and line.grad is not None
    assert float(p.grad.max()) < 0 < float(line.grad.min())  # a centreline outside: mask up, line down
    q = torch.full((1, 2, 2, 2), 0.9, requires_grad=True)
    radius = torch.full((1, 2, 2, 2), 0.02, requires_grad=True)
    losses.consistency_loss(q, None, radius).backward()
    assert q.grad is not None and radius.grad is not None
    assert float(q.grad.min()) > 0 > float(radius.grad.max())  # no radius inside: mask down, radius up
    expected = (torch.sigmoid(torch.tensor((0.02 - 0.05) / 0.02)) - 0.9).abs()
    assert losses.consistency_loss(q, None, radius).item() == pytest.approx(float(expected), rel=1e-5)
