"""Convolutions in bfloat16 on a CPU against float32, and training at the depth where they went wrong."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_workspace
import torch
from torch import nn

import train
from ctseg import artifacts
from ctseg.errors import DivergedError
from ctseg.learning import trainer
from ctseg.runtime import checkpoints, cpu_bfloat16, hardware

BF16 = hardware.Machine(torch.device("cpu"), "bf16", True, "test")


def worst_error(layer: nn.Module, size: tuple[int, ...]) -> float:
    """Largest error of output and gradients in bfloat16, as a share of the largest value in float32."""
    image = torch.randn(2, layer.in_channels, *size).bfloat16().float()
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
    results = []
    for rough in (False, True):
        junk = [torch.full((n * layer.weight.numel() // 2,), 1e30) for n in (1, 2, 4)]
        del junk
        layer.zero_grad()
        seen = BF16.image(image).clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=rough):
            output = layer(seen)
        (
            output.float() * torch.linspace(-1, 1, output.numel()).view_as(output).bfloat16().float()
        ).sum().backward()
        results.append((output.detach().float(), seen.grad.clone(), layer.weight.grad.clone()))
    return max(
        float(((a - b).abs().max() / b.abs().max()).nan_to_num(9e9)) for a, b in zip(results[1], results[0])
    )


@pytest.mark.parametrize(
    "size", [(2, 2, 2), (2, 4, 6), (1, 2, 3), (4, 4, 4), (3, 3, 1), (6, 6, 2), (4, 1, 4)], ids=str
)
@pytest.mark.parametrize("kind", ["3", "5", "3 strided", "2 strided", "1", "odd", "transposed"])
def test_gradients_in_bfloat16_are_those_of_float32_at_every_small_size(kind, size):
    torch.manual_seed(0)
    layers = {
        "3": lambda: nn.Conv3d(32, 32, 3, padding=1, bias=False),
        "5": lambda: nn.Conv3d(16, 16, 5, padding=2),
        "3 strided": lambda: nn.Conv3d(16, 32, 3, 2, padding=1),
        "2 strided": lambda: nn.Conv3d(20, 5, 2, 2),
        "1": lambda: nn.Conv3d(16, 8, 1),
        "odd": lambda: nn.Conv3d(7, 9, 3, padding=1),
        "transposed": lambda: nn.ConvTranspose3d(7, 5, 2, 2, bias=False),
    }
    if "strided" in kind and any(n % 2 for n in size):
        pytest.skip("levels are halved where they are even")
    layer = BF16.place(nn.Sequential(layers[kind]()))[0]
    assert worst_error(layer, size) < 0.05


def test_a_trial_that_fails_sends_the_layer_to_float32_and_one_that_passes_does_not(monkeypatch):
    network = BF16.place(nn.Sequential(nn.Conv3d(4, 4, 3, padding=1)))
    for size, right, expected in ((8, False, 0), (2, True, 0), (2, False, 1)):
        monkeypatch.setattr(cpu_bfloat16, "_is_right", lambda call, right=right: right)
        with BF16.autocast():
            assert network(torch.rand(1, 4, size, size, size)).dtype == torch.bfloat16
        assert cpu_bfloat16.count_in_float32(network) == expected


def test_a_trial_draws_from_a_generator_of_its_own():
    network = BF16.place(nn.Sequential(nn.Conv3d(4, 11, 3, padding=1)))
    image, state = torch.rand(1, 4, 3, 3, 3), torch.get_rng_state()
    with BF16.autocast():
        network(image)
    assert torch.equal(state, torch.get_rng_state())


OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}  # without AMX, where the weight gradients are wrong
# trains each of its arguments, with freed memory filled with another byte each time (glibc's M_PERTURB)
TRAIN_IN_DIRT = """
import ctypes, shlex, sys, train
for byte, words in zip((0, 127), sys.argv[1:], strict=True):
    ctypes.CDLL(None).mallopt(-6, byte)
    assert train.main(shlex.split(words)) == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="M_PERTURB is glibc's")
@pytest.mark.parametrize("more", [OLDER, {}], ids=["without AMX", "as it is"])
def test_training_at_depth_32_in_bfloat16_repeats_itself_whatever_memory_holds(tmp_path, more):
    settings = {
        "train.precision": "bf16",
        "model.levels": 5,
        "model.width": 8,
        "train.epochs": 1,
        "train.steps_per_epoch": 3,
        "train.validations": 1,
    }
    workspaces = [tiny_workspace.make(tmp_path / name, cases=3) for name in ("clean", "dirty")]
    result = subprocess.run(
        [
            *(sys.executable, "-c", TRAIN_IN_DIRT),
            *(shlex.join(tiny_workspace.arguments(workspace, **settings)) for workspace in workspaces),
        ],
        cwd=Path(__file__).parents[2],
        env=os.environ | more | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    histories = []
    for workspace in workspaces:
        histories.append(
            (
                artifacts.read_json(workspace.history)["train_loss"],
                checkpoints.load(workspace.last_model)["model"],
            )
        )
    (loss, weights), (again, others) = histories
    assert loss == again and all(torch.equal(weights[key], others[key]) for key in weights)


def spoil(monkeypatch, steps: set[int]) -> None:
    """Make the gradients of these steps (from 1) infinite."""
    real, calls = trainer.objective, []

    def spoilt(outputs, *rest):
        calls.append(1)
        if len(calls) in steps:
            outputs["logits"].register_hook(lambda gradient: gradient * float("inf"))
        return real(outputs, *rest)

    monkeypatch.setattr(trainer, "objective", spoilt)


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_counted(tmp_path, monkeypatch, caplog, capfd):
    workspace = tiny_workspace.make(tmp_path)
    spoil(monkeypatch, {2, 3, 7})
    assert train.main(tiny_workspace.arguments(workspace, **{"train.steps_per_epoch": 4})) == 0
    history, last = artifacts.read_json(workspace.history), checkpoints.load(workspace.last_model)
    assert (history["steps"], history["skipped_steps"], last["skipped_in_a_row"]) == (9, 3, 0)
    assert all(
        bool(torch.isfinite(value).all()) for value in (*last["model"].values(), *last["averaged"].values())
    )
    assert "STEPS_SKIPPED: 3" in "".join(capfd.readouterr()) + caplog.text


def test_a_step_left_out_changes_nothing(tmp_path, monkeypatch):
    weights = []
    for place, spoilt in (("none", set()), ("last", {2})):
        workspace = tiny_workspace.make(tmp_path / place)
        with monkeypatch.context() as patch:
            spoil(patch, spoilt)
            settings = {
                "train.epochs": 1,
                "train.steps_per_epoch": 1 + len(spoilt),
                "train.schedule": "plateau",
                "train.warmup_fraction": 0,
            }
            assert train.main(tiny_workspace.arguments(workspace, **settings)) == 0
        weights.append(checkpoints.load(workspace.last_model))
    for part in ("model", "averaged"):
        assert all(torch.equal(weights[0][part][key], weights[1][part][key]) for key in weights[0][part])


def test_many_in_a_row_stop_the_run_with_shape_and_precision_and_a_remedy_that_works(
    tmp_path, monkeypatch, capsys
):
    workspace = tiny_workspace.make(tmp_path)
    settings = {"train.precision": "bf16", "train.steps_per_epoch": 6}
    with monkeypatch.context() as patch:
        spoil(patch, set(range(4, 99)))  # the count goes on from one epoch to the next
        assert train.main(tiny_workspace.arguments(workspace, **settings)) == 1
    message = capsys.readouterr().err
    assert (
        "DIVERGED" in message
        and "32 x 32 x 32 voxels, bf16" in message
        and "after step 3" in message
        and "case_" in message
    )
    assert (
        message.index("--restart")
        < message.index("train.precision=fp32")
        < message.index("train.learning_rate")
    )
    assert checkpoints.load(workspace.last_model)["skipped_in_a_row"] == 3  # survives the resume
    assert (
        train.main(
            [*tiny_workspace.arguments(workspace, **settings | {"train.precision": "fp32"}), "--restart"]
        )
        == 0
    )


def test_a_float16_scale_that_is_still_falling_does_not_count_as_divergence(monkeypatch):
    class Scaler:
        scale = 2.0**16
        unscale_ = step = lambda self, optimizer: None

        def update(self):
            self.scale /= 2

        def get_scale(self):
            return self.scale

    job = trainer.Trainer.__new__(trainer.Trainer)
    job.network, job.scaler, job.history = nn.Linear(2, 2), Scaler(), {"skipped_steps": 0}
    job.state = trainer.TrainingState(trainer.Epoch(0.0, []))
    job.settings, job.optimizer, job.patch_size, job.machine = trainer.Settings(), None, (32, 32, 32), BF16
    job.network(torch.ones(1, 2)).sum().mul(float("inf")).backward()
    for _ in range(15):
        job.change_weights(None)
    with pytest.raises(DivergedError):
        job.change_weights(None)
    assert job.history["skipped_steps"] == 16 and job.state.steps == 0


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_that_only_emulates_bfloat16_gets_float16(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )
    assert hardware.choose_machine("cuda", "auto").precision == expected
