"""Losses, patches, sliding windows and checkpoints, on synthetic blobs."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_workspace
import torch
from scipy import ndimage

from ctseg import config
from ctseg.datasets.case import IGNORED
from ctseg.errors import IntegrityError
from ctseg.learning import dataset, losses, planning
from ctseg.learning.optimizer import learning_rate_factor
from ctseg.learning.validation import Validation, dice_per_structure
from ctseg.manifest import Manifest
from ctseg.prediction import guide_input, largest_component, mirroring, sliding_windows
from ctseg.prediction.network_input import NetworkInput
from ctseg.runtime import checkpoints, hardware
from ctseg.runtime.hardware import Machine
from models import build_network


def sampler_of(cases: list[dataset.TrainingCase], **train) -> dataset.PatchSampler:
    """A sampler of patches with these training settings."""
    return dataset.PatchSampler(
        cases, tiny_workspace.STRUCTURES, dataclasses.replace(config.TrainSettings(), **train)
    )


CPU = Machine(torch.device("cpu"), "fp32", False, "test")


def brute_force_loss(
    logits: torch.Tensor, label: torch.Tensor, labelled: torch.Tensor, *, focal: bool = False
) -> torch.Tensor:
    """The loss from its definition, voxel by voxel in double precision."""
    probabilities = torch.softmax(logits.double(), 1)
    entropy, dices = [], []
    for b in range(len(label)):
        merged = probabilities[b].clone()
        for s in range(labelled.shape[1]):
            if not labelled[b, s]:
                merged[0] += merged[s + 1]
        entropy.append(-torch.log(merged.gather(0, label[b].long()[None])[0]))
    if focal:
        entropy = [losses * (1 - torch.exp(-losses)) ** 2 for losses in entropy]
    for s in range(labelled.shape[1]):
        target = (
            torch.stack([(label[b] == s + 1) for b in range(len(label)) if labelled[b, s]]).double()
            if labelled[:, s].any()
            else torch.zeros(1)
        )
        if target.sum() > 0:
            own = torch.stack([probabilities[b, s + 1] for b in range(len(label)) if labelled[b, s]])
            dices.append(2 * (own * target).sum() / (own.sum() + target.sum()))
    return torch.stack(entropy).mean() + (1 - torch.stack(dices).mean() if dices else 0)


@pytest.mark.parametrize("labelled", [[[1, 1, 1], [1, 1, 1]], [[1, 0, 1], [1, 1, 1]], [[0, 0, 0], [1, 0, 1]]])
@pytest.mark.parametrize("kind", ["dice_ce", "dice_focal"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_loss_and_its_gradient_equal_their_definition(labelled, kind, layout, monkeypatch):
    monkeypatch.setattr(losses, "PART", 4 * 50)  # 50 voxels: four and a half parts for each image
    torch.manual_seed(0)
    mask = torch.tensor(labelled).bool()
    logits, label = 3 * torch.randn(2, 4, 5, 6, 7), torch.randint(0, 4, (2, 5, 6, 7))
    logits = logits.contiguous(memory_format=layout).requires_grad_()
    for b in range(2):
        for s in range(3):
            if not mask[b, s]:
                label[b][label[b] == s + 1] = 0
    loss, _ = losses.segmentation_loss(logits=logits, label=label, labelled=mask, kind=kind)
    wanted = brute_force_loss(logits, label, mask, focal=kind == "dice_focal")
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    (found,), (expected,) = (torch.autograd.grad(value, logits) for value in (loss, wanted))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7) and float(expected.abs().max()) > 1e-3


def test_an_unlabelled_structure_gets_no_gradient_for_being_predicted_on_background():
    logits = torch.zeros(1, 3, 4, 4, 4, requires_grad=True)
    label = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    label[0, 0, 0, 0] = 1
    loss, dice = losses.segmentation_loss(logits=logits, label=label, labelled=torch.tensor([[True, False]]))
    loss.backward()
    assert logits.grad is not None
    background, hidden = logits.grad[0, 0, 2:], logits.grad[0, 2, 2:]
    assert torch.allclose(background, hidden)  # both may grow: "not the labelled one" is all that is known
    assert float(hidden.max()) < 0
    assert torch.isnan(dice[1]) and not torch.isnan(dice[0])


def test_an_absent_structure_stays_in_the_cross_entropy():
    logits = torch.zeros(1, 3, 4, 4, 4, requires_grad=True)
    loss, dice = losses.segmentation_loss(
        logits=logits, label=torch.zeros(1, 4, 4, 4), labelled=torch.ones(1, 2).bool()
    )
    loss.backward()
    assert bool(torch.isfinite(loss)) and bool(torch.isnan(dice).all())
    assert logits.grad is not None and float(logits.grad[0, 2].min()) > 0  # predicting it costs


def test_kinds_of_loss_are_its_parts():
    torch.manual_seed(1)
    arguments = {
        "logits": torch.randn(2, 3, 5, 6, 7),
        "label": torch.randint(0, 3, (2, 5, 6, 7)),
        "labelled": torch.ones(2, 2).bool(),
    }
    both, dice, entropy, focal = (
        float(losses.segmentation_loss(**arguments, kind=kind)[0])
        for kind in ("dice_ce", "dice", "ce", "dice_focal")
    )
    assert both == pytest.approx(dice + entropy, rel=1e-6)
    assert dice < focal < both  # easy voxels count less, none counts more


def test_every_pass_is_supervised_and_the_last_one_counts_most():
    assert (
        losses.pass_weights(1) == [1.0]
        and losses.pass_weights(2) == pytest.approx([1 / 3, 2 / 3])
        and losses.pass_weights(3) == pytest.approx([2 / 9, 3 / 9, 4 / 9])
    )
    torch.manual_seed(2)
    first, last = (
        torch.randn(1, 3, 4, 4, 4, requires_grad=True),
        torch.randn(1, 3, 4, 4, 4, requires_grad=True),
    )
    arguments = {"label": torch.randint(0, 3, (1, 4, 4, 4)), "labelled": torch.ones(1, 2).bool()}
    total, _ = losses.passes_loss({"logits": last, "passes": [first, last]}, **arguments)
    alone = [losses.segmentation_loss(logits=logits, **arguments)[0] for logits in (first, last)]
    assert float(total.detach()) == pytest.approx(float((alone[0] / 3 + 2 * alone[1] / 3).detach()), rel=1e-5)
    total.backward()
    assert first.grad is not None and float(first.grad.abs().sum()) > 0


def test_image_label_and_targets_of_a_patch_move_together(tmp_path):
    workspace = tiny_workspace.make(tmp_path, cases=3)
    (case,) = dataset.load_cases(workspace, Manifest.load(workspace), "train", with_tubes=True)
    # the picture is the label, so that a shift between them would show
    case.image, strength = (case.label.half() / 3, "standard")
    sampler = sampler_of(
        [case], batch_size=1, patch_size=(32, 32, 32), augmentation=strength, sampling="tubes", seed=3
    )
    for step in range(12):
        batch = sampler.batch(0, step)
        assert batch.inputs == {} and set(batch.targets) == {"centreline", "skeleton", "radius_mm"}
        inside = (batch.label[0] > 0) & (batch.label[0] != IGNORED)
        # the distance to the surface is positive where the label is
        assert float((batch.targets["radius_mm"][0][inside] > 0).float().mean()) > 0.9
        seen = (batch.targets["centreline"][0] > 0) & (batch.label[0] != IGNORED)
        # names are swapped alike
        assert bool((batch.label[0][seen] == batch.targets["centreline"][0][seen]).float().mean() > 0.7)


def test_mirror_swaps_pairs_and_twice_is_the_identity():
    table = mirroring.mirror_labels(tiny_workspace.STRUCTURES)
    assert table.tolist() == [0, 2, 1, 3]
    assert table[table].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("strength", ["light", "standard"])
def test_after_augmentation_left_is_still_left(strength, tmp_path):
    workspace = tiny_workspace.make(tmp_path)
    cases = dataset.load_cases(workspace, Manifest.load(workspace), "train")
    sampler = sampler_of(
        cases, batch_size=1, patch_size=(32, 32, 32), foreground_fraction=1, augmentation=strength, seed=1
    )
    for step in range(20):
        label = sampler.batch(0, step).label[0].numpy()
        left, right = (np.argwhere(label == value)[:, 2].mean() for value in (1, 2))
        assert left > right + 8


def test_a_mirrored_patch_swaps_which_side_was_annotated(tmp_path):
    workspace = tiny_workspace.make(tmp_path, cases=3, unlabelled={0: ["right_blob"]})
    cases = dataset.load_cases(workspace, Manifest.load(workspace), "train")
    sampler = sampler_of(
        cases, batch_size=1, patch_size=(32, 32, 32), foreground_fraction=1, augmentation="light", seed=1
    )
    seen = set()
    for step in range(20):
        batch = sampler.batch(0, step)
        states = tuple(batch.labelled[0].tolist())
        seen.add(states)
        assert not bool((batch.label == (1 if not states[0] else 2)).any())
    assert seen == {(True, False, True), (False, True, True)}


def test_foreground_is_forced_with_its_probability_also_at_batch_size_1(tmp_path):
    workspace = tiny_workspace.make(tmp_path)
    cases = dataset.load_cases(workspace, Manifest.load(workspace), "train")
    for case in cases:  # body voxels in a corner, so that a patch shows how it was drawn
        case.body = np.array([[1, 1, 1]])
    sampler = sampler_of(
        cases, batch_size=1, patch_size=(8, 8, 8), foreground_fraction=0.4, augmentation="none", seed=0
    )
    forced = [bool((sampler.batch(0, step).label > 0).any()) for step in range(1000)]
    assert np.mean(forced) == pytest.approx(0.4, abs=0.05)


def test_each_organ_of_a_guide_is_hidden_by_itself_as_often_as_asked(tmp_path):
    workspace = tiny_workspace.make(tmp_path)
    cases = dataset.load_cases(workspace, Manifest.load(workspace), "train")
    maps = np.zeros((4, 2, 2, 2), np.float16)
    stride = tuple(size // 2 for size in cases[0].image.shape)
    organs = ["liver", "spleen", "kidney_left", "kidney_right"]
    for case in cases:
        case.guide = guide_input.make_guide(maps, np.array([True, True, True, False]), stride, organs)

    def presence(dropout: float) -> np.ndarray:
        """(patches, 4): whether the guide shows an organ; its presence is the last channel of each."""
        sampler = sampler_of(
            cases, batch_size=1, patch_size=(2, 2, 2), augmentation="none", guidance_dropout=dropout
        )
        guides = [sampler.draw(0, step, 0).inputs["guide"] for step in range(1000)]
        return np.array([guide[-4:, 0, 0, 0].numpy() for guide in guides])

    drawn = presence(0.15)
    assert np.allclose(drawn[:, :3].mean(axis=0), 0.85, atol=0.04) and not drawn[:, 3].any()
    assert np.allclose(np.corrcoef(drawn[:, :3].T), np.eye(3), atol=0.12)
    assert presence(0.0)[:, :3].all() and np.array_equal(drawn, presence(0.15))


def test_threads_draw_the_same_batches(tmp_path):
    workspace = tiny_workspace.make(tmp_path)
    cases = dataset.load_cases(workspace, Manifest.load(workspace), "train")
    sampler = sampler_of(
        cases, batch_size=2, patch_size=(16, 16, 16), foreground_fraction=0.5, augmentation="standard", seed=0
    )
    alone = list(sampler.batches(3, 0, 6, threads=0))
    together = list(sampler.batches(3, 0, 6, threads=3))
    assert len(alone) == len(together) == 6
    assert all(
        torch.equal(a.image, b.image) and torch.equal(a.label, b.label) for a, b in zip(alone, together)
    )
    assert not torch.equal(alone[0].image, alone[1].image)


class Echo(torch.nn.Module):
    """Logits that repeat the image's own value, so that blending must give it back."""

    def forward(self, ct: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": torch.cat([torch.zeros_like(ct), 4 * ct - 2], 1)}


def test_sliding_windows_put_every_voxel_back_in_its_place():
    image = torch.rand(32, 32, 64) * 0.9 + 0.1
    image[:, :, :32] = 0  # air: windows that see nothing else are not computed
    windows = sliding_windows.Windows(2, (16, 16, 24), 0.5)
    found = sliding_windows.predict_probabilities(Echo(), NetworkInput(image), windows, CPU, least=0.0)
    result = torch.from_numpy(found.dense())
    expected = torch.sigmoid(4 * image - 2)
    assert torch.allclose(result[1, :, :, 32:], expected[:, :, 32:], atol=1e-5)
    assert float(result[1, :, :, :8].max()) == 0 and float(result[0, :, :, :8].min()) == 1
    assert torch.allclose(result.sum(0), torch.ones(32, 32, 64), atol=1e-5)


def test_windows_cover_with_the_overlap_asked_for():
    for length, size, overlap in [
        (128, 64, 0.5),
        (128, 48, 0.25),
        (100, 64, 0.5),
        (64, 64, 0.5),
        (50, 64, 0.5),
    ]:
        starts = sliding_windows.window_starts(length, size, overlap)
        assert starts[0] == 0 and starts[-1] == max(0, length - size)
        assert all(b - a <= size * (1 - overlap) + 1 for a, b in itertools.pairwise(starts))


class Sided(torch.nn.Module):
    """Calls the W-upper half of its window "left", the other half "right": right in one mirror view, wrong in
    none.
    """

    def forward(self, ct: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = torch.zeros(len(ct), 3, *ct.shape[2:])
        half = ct.shape[4] // 2
        logits[:, 1, :, :, half:] = 9
        logits[:, 2, :, :, :half] = 9
        return {"logits": logits}


def test_mirrored_prediction_swaps_the_sides_back():
    image = torch.ones(16, 16, 16)
    table = torch.tensor([0, 2, 1])
    plain, both = (
        sliding_windows.predict_probabilities(
            Sided(), NetworkInput(image), sliding_windows.Windows(3, (16, 16, 16), 0, swaps), CPU, least=0.0
        ).dense()
        for swaps in (None, table)
    )
    assert np.array_equal(plain, both)


def test_dice_of_an_absent_structure_is_undefined_not_one():
    empty = torch.zeros(4, 4, 4, dtype=torch.uint8)
    full = torch.ones(4, 4, 4, dtype=torch.uint8)
    assert dice_per_structure(empty, empty, 2) == [None, None]
    assert dice_per_structure(empty, full, 2) == [0.0, None]
    assert dice_per_structure(full, full, 2) == [1.0, None]


@pytest.mark.parametrize("name", ["cosine", "poly"])
def test_learning_rate_warms_up_and_ends_at_zero(name):
    rates = [learning_rate_factor(name, progress, 0.1) for progress in (0.0, 0.05, 0.1, 0.5, 0.99, 1.0)]
    assert rates[0] < rates[1] < rates[2] == 1 and rates[3] < 1 and rates[4] < 0.02 and rates[5] == 0


CONTENT = {
    "arch": {"name": "unet", "n_structures": 1},
    "structures": ["a"],
    "preprocess": {"grid": "whole", "spacing_mm": None, "window_hu": [-250.0, 750.0], "settings": {}},
    "settings": {"train": {"patch_size": [32, 32, 32]}},
    "manifest_hash": "",
    "splits_hash": "",
    "synthetic": True,
    "epoch": 1,
    "largest_component": [],
    **dict.fromkeys(("guide", "locator", "sides")),
    "model": {"w": torch.arange(64.0)},
}


def test_checkpoint_round_trip_and_every_damage_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    checkpoints.save(path, CONTENT)
    assert torch.equal(checkpoints.load(path)["model"]["w"], CONTENT["model"]["w"])
    good = path.read_bytes()
    for damaged in (
        good[: len(good) // 3],
        good[:-3],
        good[:200] + bytes([good[200] ^ 4]) + good[201:],
        b"version https://git-lfs.github.com/spec/v1\n",
        b"",
    ):
        path.write_bytes(damaged)
        for sidecar in (True, False):
            if not sidecar:
                (tmp_path / "a.pth.json").unlink(missing_ok=True)
            with pytest.raises(IntegrityError, match=r"CHECKPOINT_CORRUPT.*a\.pth"):
                checkpoints.load(path)
        checkpoints.save(path, CONTENT)


class Canary:
    def __reduce__(self):
        return (eval, ("open('canary', 'w')",))


def test_a_checkpoint_with_code_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "ctseg-checkpoint", "model": Canary()}, tmp_path / "a.pth")
    with pytest.raises(IntegrityError, match="UNSAFE_CHECKPOINT"):
        checkpoints.load(tmp_path / "a.pth")
    assert not (tmp_path / "canary").exists()


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    bad = CONTENT | {"model": {"w": torch.tensor([1.0, float("nan")])}}
    with pytest.raises(IntegrityError, match="CHECKPOINT_NONFINITE"):
        checkpoints.save(tmp_path / "a.pth", bad)
    torch.save({"format": "ctseg-checkpoint", "version": 1, **bad}, tmp_path / "b.pth")
    with pytest.raises(IntegrityError, match="CHECKPOINT_NONFINITE"):
        checkpoints.load(tmp_path / "b.pth")


def test_an_expanded_tensor_is_refused(tmp_path):
    torch.save(
        {"format": "ctseg-checkpoint", "version": 1, **CONTENT, "model": {"w": torch.zeros(1).expand(10**9)}},
        tmp_path / "a.pth",
    )
    with pytest.raises(IntegrityError, match="CHECKPOINT_SIZE"):
        checkpoints.load(tmp_path / "a.pth")


def test_the_checkpoint_before_the_last_serves_when_the_last_is_damaged(tmp_path):
    path = tmp_path / "last.pth"
    for epoch in (1, 2):
        checkpoints.rotate(path)
        checkpoints.save(path, CONTENT | {"epoch": epoch})
    path.write_bytes(path.read_bytes()[:100])
    content, warning = checkpoints.load_last(path)
    assert content is not None and content["epoch"] == 1
    assert warning is not None and "CHECKPOINT_CORRUPT" in warning


def test_weights_of_another_network_are_named(tmp_path):
    with pytest.raises(IntegrityError, match=r"CHECKPOINT_MISMATCH.*weight"):
        checkpoints.require_same_form(torch.nn.Linear(3, 2), torch.nn.Linear(4, 2).state_dict(), "a.pth")


def test_the_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        from ctseg.errors import UsageError

        with pytest.raises(UsageError, match="NO_GPU"):
            hardware.choose_device("cuda")
    assert hardware.choose_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("extent", "budget", "expected"),
    [
        ((94, 41, 36), 64**3, (112, 48, 48)),
        ((40, 40, 40), 64**3, (48, 48, 48)),
        ((128, 128, 128), 64**3, (64, 64, 64)),
        ((10, 10, 10), 64**3, (32, 32, 32)),
        ((200, 20, 20), 128**3, (128, 32, 32)),
    ],
)
def test_planned_patches_hold_the_structures_or_what_the_budget_allows(extent, budget, expected):
    assert planning.fit_patch(extent, budget, multiple=16) == expected


def test_only_the_largest_component_of_the_chosen_structures_is_kept():
    label = np.zeros((10, 12, 14), np.uint8)
    label[1:4, 1:4, 1:4] = 1
    label[4, 4, 4] = 1  # touches by a corner: the same component
    label[8, 8, 8] = 1
    label[6:8, 1:3, 1:3] = 2
    label[9, 11, 13] = 2
    kept = largest_component.keep_largest(label, [1, 3])
    assert (kept == 1).sum() == 28 and kept[8, 8, 8] == 0 and kept[4, 4, 4] == 1
    assert np.array_equal(kept == 2, label == 2)
    assert (label == 1).sum() == 29  # the input is not changed


@pytest.mark.parametrize("seed", range(8))
def test_the_largest_components_are_those_that_scipy_finds(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        shape = rng.integers(1, 12, 3)
        label = (rng.integers(0, 5, shape) * (rng.random(shape) < rng.random())).astype(np.uint8)
        chosen = sorted(rng.choice([1, 2, 3, 4, 7], rng.integers(0, 4), replace=False).tolist())
        expected = label.copy()
        for value in chosen:
            components, _ = ndimage.label(label == value, np.ones((3, 3, 3)))
            if components.any():
                sizes = np.bincount(components.ravel())
                sizes[0] = 0
                expected[(label == value) & (sizes[components] < sizes.max())] = 0
        assert np.array_equal(largest_component.keep_largest(label, chosen), expected)
        assert np.array_equal(largest_component.keep_largest(np.asfortranarray(label), chosen), expected)


def test_one_piece_is_what_every_reference_shows_so_but_for_crumbs():
    label, other = np.zeros((2, 10, 12, 14), np.uint8)
    label[1:6, 1:6, 1:6], label[8, 8, 8] = 1, 1  # a crumb: 1 of 126 voxels
    label[7, 1, 1:4], label[7, 1, 6:9] = 2, 2  # two pieces
    label[9, 9:11, 9:11], label[8, 8, 9] = 3, 3  # joined by a corner
    other[2:4, 2:4, 2:4], other[5, 5, 5:9] = 1, 2
    # 4 is shown nowhere
    assert largest_component.in_one_piece([label, other], 4) == [True, False, True, False]
    assert largest_component.in_one_piece([other], 2) == [True, True]


def test_the_largest_component_alone_stays_where_validation_gains_or_loses_nothing_of_one_piece():
    scores = Validation("abcde")
    scores.dice[:], scores.dice_of_largest[:] = (
        [[0.8, 0.7], [0.8], [0.8], [0.8], []],
        [[0.9, 0.7], [0.8], [0.8], [0.7], []],
    )
    assert scores.keeps_largest([False, True, False, True, True]) == [True, True, False, False, True]


def test_small_single_images_go_the_fast_way_through_convolutions_and_give_the_same(monkeypatch):
    torch.manual_seed(0)
    network = build_network("unet", n_structures=2, width=4, levels=3, deep_supervision=False)
    placed = CPU.place(CPU.place(copy.deepcopy(network)))  # twice, as a network that is used again
    batches = []
    forward = torch.nn.Conv3d.forward
    monkeypatch.setattr(
        torch.nn.Conv3d,
        "forward",
        lambda layer, image: batches.append((len(image), max(layer.kernel_size))) or forward(layer, image),
    )
    for count, expected in ((1, 2), (2, 2), (3, 3)):
        image = torch.rand(count, 1, 16, 16, 16)
        results = []
        for one in (network, placed):
            batches.clear()
            logits = one(image)["logits"]
            one.zero_grad()
            logits.square().mean().backward()
            results.append((logits, [parameter.grad for parameter in one.parameters()]))
        assert {size for size, kernel in batches if kernel == 3} == {expected}
        assert results[0][0].shape == results[1][0].shape == (count, 3, 16, 16, 16)
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-3, atol=1e-4)
        for ours, plain in zip(results[1][1], results[0][1]):
            torch.testing.assert_close(ours, plain, rtol=1e-2, atol=1e-4)
    assert list(placed.state_dict()) == list(network.state_dict())


def test_peak_memory_is_that_of_this_process_and_not_of_the_one_that_started_it():
    """getrusage tells of the larger of both on Linux."""
    heavy = np.ones(400_000_000, np.uint8)
    code = (
        "import torch; from ctseg.runtime.hardware import peak_memory_gb; "
        "print(peak_memory_gb(torch.device('cpu')))"
    )
    child = float(
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        ).stdout
    )
    mine = hardware.peak_memory_gb(torch.device("cpu"))
    assert heavy.nbytes / 2**30 < mine < 64
    assert 0.05 < child < mine - 0.3


def test_bfloat16_is_not_chosen_where_the_processor_has_no_instructions_for_it() -> None:
    """A probe of the forward pass alone once chose it there, and training took twice as long."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if "avx2" not in flags or "bf16" in flags:
        pytest.skip("this processor has bfloat16 instructions, or does not say")
    assert hardware.choose_machine("cpu", "auto").precision == "fp32"
