"""Voxels nobody looked at take no part in learning: not in losses, sampling, targets, validation scores."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny_workspace
import torch

from ctseg import config
from ctseg.datasets.case import IGNORED
from ctseg.learning import augment, dataset, losses, planning, tubes
from ctseg.learning.connectivity_losses import connectivity_loss
from ctseg.learning.validation import Validation
from ctseg.manifest import Manifest

KEPT = slice(0, 6)  # rows of axis D that somebody looked at; the others are ignored


def batch_of(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, label) of two cases with three structures."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 10, 8, 12, generator=generator)
    return logits, torch.randint(0, 4, (2, 10, 8, 12), generator=generator).to(torch.uint8)


def ignored_below(label: torch.Tensor) -> torch.Tensor:
    label = label.clone()
    label[:, KEPT.stop :] = IGNORED
    return label


@pytest.mark.parametrize("independent", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["dice_ce", "dice", "ce", "dice_focal"])
@pytest.mark.parametrize("labelled", [[1, 1, 1], [1, 0, 1]])
def test_the_loss_is_that_of_the_voxels_somebody_looked_at(kind, independent, labelled):
    logits, label = batch_of()
    annotated = torch.tensor([labelled] * 2).bool()
    label[label == 2] *= int(labelled[1])
    options = {"labelled": annotated, "kind": kind, "independent": independent}
    given = logits.clone().requires_grad_()
    loss, dice = losses.segmentation_loss(logits=given, label=ignored_below(label), **options)
    alone, dice_alone = losses.segmentation_loss(logits=logits[:, :, KEPT], label=label[:, KEPT], **options)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
    assert torch.allclose(dice, dice_alone, equal_nan=True)
    loss.backward()
    assert not given.grad[:, :, KEPT.stop :].any() and given.grad[:, :, KEPT].any()


def test_deep_losses_leave_them_out_too_and_a_patch_without_any_other_voxel_is_harmless():
    logits, label = batch_of()
    outputs = {
        "logits": logits.requires_grad_(),
        "deep": [logits[:, :, ::2, ::2, ::2].detach().requires_grad_()],
    }
    everything = torch.full_like(label, IGNORED)
    loss, dice = losses.passes_loss(outputs, label=everything, labelled=torch.ones(2, 3).bool())
    loss.backward()
    assert loss.item() == 0 and bool(dice.isnan().all()) and not logits.grad.any()


def test_connectivity_learns_nothing_from_them():
    label = np.zeros((10, 12, 24), np.uint8)
    label[3:6, 4:7, 2:22] = 1
    label[:, :, 15:] = IGNORED
    made = tubes.tube_targets(label, [1], (1.0, 1.0, 1.0))
    targets = dict(
        zip(
            ("label", "centreline", "skeleton", "radius_mm"),
            (torch.from_numpy(a)[None] for a in (label, *made)),
        )
    )
    results = []
    for seed in (1, 2):  # the outputs differ where nobody looked
        outputs = {}
        for name, channels in (("logits", 2), ("centreline", 1), ("radius", 1)):
            generator = torch.Generator().manual_seed(0)
            value = torch.rand(1, channels, *label.shape, generator=generator)
            value[..., 15:] = torch.rand(value[..., 15:].shape, generator=generator.manual_seed(seed))
            outputs[name] = value.requires_grad_()
        loss, parts = connectivity_loss(
            outputs, **targets, labelled=torch.ones(1, 1).bool(), weights=config.TrainSettings(), progress=0.5
        )
        loss.backward()
        results.append(loss.item())
        assert len(parts) == 5 and all(not value.grad[..., 15:].any() for value in outputs.values())
    assert results[0] == results[1]
    assert not (made[1][..., 15:].any() or (made[0] == IGNORED).any())
    missed = tubes.missed_points(made[1], np.zeros_like(label), rng=np.random.default_rng(0))
    assert len(missed) and missed[:, 2].max() < 15


@pytest.fixture
def case(tmp_path) -> dataset.TrainingCase:
    """A case of which nobody looked at the upper half; all that is left lies in the other one."""
    workspace = tiny_workspace.make(tmp_path, cases=3)
    entry = Manifest.load(workspace).cases[0]
    image, label = (torch.from_numpy(array) for array in tiny_workspace.draw(0))
    label[16:] = IGNORED
    return dataset.prepare_case(entry, image, label, tiny_workspace.STRUCTURES)


def test_patches_are_centred_and_planned_where_somebody_looked(case):
    assert set(case.points) == {1, 2, 3} and all(places[:, 0].max() < 16 for places in case.points.values())
    assert case.body[:, 0].max() < 16
    sizes = [places.max(0) - places.min(0) + 1 for places in [np.concatenate(list(case.points.values()))]]
    settings = planning.with_patch(config.Settings(), [case], tiny_workspace.STRUCTURES)
    assert settings.train.patch_size == planning.fit_patch(sizes[0], 64**3, multiple=16)


def test_a_mirrored_patch_keeps_them(case):
    settings = dataclasses.replace(
        config.TrainSettings(), batch_size=1, patch_size=(32, 32, 32), augmentation="light"
    )
    sampler = dataset.PatchSampler([case], tiny_workspace.STRUCTURES, settings)
    sampler.strength = dataclasses.replace(augment.STRENGTHS["none"], mirror=1.0)
    label = sampler.batch(0, 0).label[0]
    assert bool((label[16:] == IGNORED).all()) and not (label[:16] == IGNORED).any()


def test_validation_scores_only_what_somebody_looked_at(case):
    label = case.label.long().clone()
    label[16:] = 1  # wrong, if anybody knew
    probabilities = torch.nn.functional.one_hot(label, 4).movedim(-1, 0).float()
    scores = Validation(tiny_workspace.STRUCTURES)
    scores.add(case, probabilities)
    assert scores.mean_dice() == [1.0, 1.0, 1.0] and scores.losses[0] < 1e-3
    assert scores.mean_hd95_mm() == [0.0, 0.0, 0.0]


def test_outside_the_canvas_the_picture_goes_on_and_nobody_looked():
    image = torch.linspace(0, 1, 16).expand(16, 16, 16).contiguous()
    label = torch.full((16, 16, 16), 2, dtype=torch.uint8)
    axes = torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij")
    beyond = torch.stack(axes) + torch.tensor([0.0, 0.0, 5.0]).view(3, 1, 1, 1)  # five voxels too far along W
    for mirror in (False, True):
        sampling = augment.Sampling(np.zeros(3, int), (16, 16, 16), beyond, 1.0, mirror)
        patch, picture = sampling.label(label), sampling.image(image)
        if mirror:
            patch, picture = patch.flip(2), picture.flip(2)
        assert bool((patch[..., :11] == 2).all()) and bool((patch[..., 11:] == IGNORED).all())
        assert torch.allclose(picture[..., 11:], torch.ones(()))


def test_deformed_patches_of_a_case_that_fills_its_canvas_show_no_background(tmp_path):
    """A structure that is cut by the canvas goes on in the picture, so background beyond it is a lie."""
    rng = np.random.default_rng(0)
    label = torch.ones(24, 24, 24, dtype=torch.uint8)
    seen = set()
    for _ in range(10):
        sampling = augment.draw_sampling(
            (24, 24, 24), np.full(3, 12), (24, 24, 24), augment.STRENGTHS["standard"], (1.0, 1.0, 1.0), rng
        )
        seen |= set(sampling.label(label).unique().tolist())
    assert seen == {1, IGNORED}
