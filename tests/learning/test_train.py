"""The train stage on synthetic blobs: it learns, resumes bit-exactly after kill -9, and refuses what does not
fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import forked
import pytest
import tiny_workspace
import torch

import train
from ctseg import artifacts
from ctseg.config import EvaluateSettings, TrainSettings
from ctseg.laterality import Sides
from ctseg.learning import trainer
from ctseg.learning.training_state import Budget, Epoch, TrainingState
from ctseg.manifest import Manifest
from ctseg.prediction import predictor
from ctseg.runtime import checkpoints
from models import build_network


def weights(workspace: artifacts.Workspace) -> dict[str, torch.Tensor]:
    return checkpoints.load(workspace.last_model)["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def epochs_done(workspace: artifacts.Workspace) -> int:
    return len(json.loads(workspace.history.read_text())["epochs"]) if workspace.history.exists() else 0


def wait_until(done: Callable[[], bool], process: BaseProcess) -> None:
    """Until then, or until the process ends, or for two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.is_alive():
        with contextlib.suppress(FileNotFoundError):
            if done():
                break
        time.sleep(0.005)


@pytest.mark.slow
def test_it_learns_and_leaves_its_artifacts(tmp_path):
    workspace = tiny_workspace.make(tmp_path)
    arguments = tiny_workspace.arguments(
        workspace,
        **{
            "train.seed": 1,  # others need up to twice as many steps to tell left from right
            "train.epochs": 8,
            "train.steps_per_epoch": 24,
            "train.patch_size": "16,16,16",
            "train.ema_decay": 0.9,
            "train.learning_rate": 0.01,
        },
    )
    assert train.main(arguments) == 0
    history = artifacts.read_json(workspace.history)
    assert (
        history["synthetic"] is True
        and history["stopped"] == "epochs"
        and history["epochs"] == list(range(1, 9))
    )
    assert history["best_val_dice"] > 0.7
    assert history["train_loss"][-1] < history["train_loss"][0]
    assert history["learning_rate"][-1] < 0.05 * max(history["learning_rate"])
    best = checkpoints.load(workspace.best_model)
    assert best["epoch"] == history["best_epoch"] and best["structures"] == tiny_workspace.STRUCTURES
    assert train.main(arguments) == 0  # finished: nothing is trained again
    assert checkpoints.load(workspace.best_model)["epoch"] == history["best_epoch"]


@pytest.mark.parametrize("model", ["unet", "multi_decoder"])
def test_the_test_split_is_never_opened(tmp_path, model):
    workspace = tiny_workspace.make(tmp_path)
    (workspace.tensors / "case_5_00.npz").unlink()
    assert train.main([*tiny_workspace.arguments(workspace, **{"train.epochs": 1}), "--model", model]) == 0


def test_layers_that_run_in_float32_are_told_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer.cpu_bfloat16, "count_in_float32", lambda network: 2)
    workspace = tiny_workspace.make(tmp_path)
    words = tiny_workspace.arguments(workspace, **{"train.epochs": 2, "train.steps_per_epoch": 1})
    assert train.main(words) == 0
    said = capsys.readouterr().out
    assert said.count("NOTE BF16_LAYERS: 2 convolutions") == 1
    assert said.index("NOTE BF16_LAYERS") < said.index("Epoch   1")


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tmp_path):
    whole, broken = tiny_workspace.make(tmp_path / "whole"), tiny_workspace.make(tmp_path / "broken")
    values = {"train.epochs": 5, "train.steps_per_epoch": 2, "train.validations": 3}
    assert train.main(tiny_workspace.arguments(whole, **values)) == 0
    words = tiny_workspace.arguments(broken, **values)
    killed_at = []
    for wanted in (1, 3):  # twice in one run: after the first and after the third epoch
        process = forked.start("train", words, tmp_path / "output.txt")
        wait_until(lambda wanted=wanted: epochs_done(broken) >= wanted, process)
        process.kill()
        process.join()
        killed_at.append(epochs_done(broken))
    assert 1 <= killed_at[0] < 5, "the first kill came too early or too late to mean anything"
    assert killed_at[1] >= 3
    assert train.main(words) == 0
    assert same(weights(whole), weights(broken))
    assert same(checkpoints.load(whole.best_model)["model"], checkpoints.load(broken.best_model)["model"])
    one, two = (artifacts.read_json(w.history) for w in (whole, broken))
    for key in ("train_loss", "val_dice", "val_mean_dice", "learning_rate", "train_dice", "best_epoch"):
        assert one[key] == two[key], key
    assert not list(broken.root.rglob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "number"),
    [
        ({}, signal.SIGINT),
        ({"model.passes": 2, "model.connectivity": "multitask", "model.remap": "lut"}, signal.SIGTERM),
    ],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_stopped_in_the_middle_of_an_epoch_and_gone_on_with_equals_undisturbed(
    tmp_path, parts, number, monkeypatch, capsys
):
    """The second time with all that a run has to remember: passes, missed places of tubes, the density
    table.
    """
    whole, broken = tiny_workspace.make(tmp_path / "whole"), tiny_workspace.make(tmp_path / "broken")
    values = {"train.epochs": 3, "train.steps_per_epoch": 4, "train.validations": 2, **parts}
    assert train.main(tiny_workspace.arguments(whole, **values)) == 0
    real_step, real_score, done = trainer.Trainer.train_step, trainer.Validation.add, []

    def then_stop(real):
        def call(self, *arguments):
            result = real(self, *arguments)
            done.append(1)
            if len(done) in stop_after:
                signal.raise_signal(number)
            return result

        return call

    # of the steps and validated scans of all runs: in the first epoch and in validations
    stop_after = {2, 5, 7, 9}
    monkeypatch.setattr(trainer.Trainer, "train_step", then_stop(real_step))
    monkeypatch.setattr(trainer.Validation, "add", then_stop(real_score))
    codes = [train.main(tiny_workspace.arguments(broken, **values))]
    assert artifacts.read_json(broken.history)["stopped"] == "interrupted"
    while codes[-1] and len(codes) < 9:
        codes.append(train.main(tiny_workspace.arguments(broken, **values)))
    assert codes == [128 + number] * 4 + [0]
    output = capsys.readouterr()
    assert (
        output.out.count("The same command goes on from there") == 4
        and "run the same command again to go on" in output.err
    )
    assert same(weights(whole), weights(broken)) and same(
        checkpoints.load(whole.best_model)["model"], checkpoints.load(broken.best_model)["model"]
    )
    one, two = (artifacts.read_json(w.history) for w in (whole, broken))
    for key in (
        "train_loss",
        "val_loss",
        "val_dice",
        "val_mean_dice",
        "learning_rate",
        "train_dice",
        "best_epoch",
        "stopped",
    ):
        assert one[key] == two[key], key


def test_ctrl_c_in_a_training_shorter_than_an_epoch_loses_nothing(tmp_path):
    workspace = tiny_workspace.make(tmp_path)
    words = tiny_workspace.arguments(workspace, **{"train.steps_per_epoch": 100_000})
    process = forked.start("train", words, tmp_path / "first.txt")
    wait_until(workspace.history.exists, process)
    time.sleep(2)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    said = (tmp_path / "first.txt").read_text()
    assert process.exitcode == 130 and "Traceback" not in said
    assert "run the same command again to go on" in said
    steps = checkpoints.load(workspace.last_model)["steps"]
    assert steps >= 1 and f"in epoch 1 after {steps} of its steps" in said
    again = forked.start("train", words, tmp_path / "again.txt")
    wait_until(lambda: "Going on" in (tmp_path / "again.txt").read_text(), again)
    again.kill()
    again.join()
    assert "Going on after epoch 0 and" in (tmp_path / "again.txt").read_text()


def test_a_finished_model_is_lost_to_no_other_training(tmp_path, capsys):
    """Same command: nothing to do. Other settings: told, and --restart is needed. The old model stays beside
    the new one.
    """
    workspace = tiny_workspace.make(tmp_path)
    assert train.main(tiny_workspace.arguments(workspace)) == 0
    files = {path: path.read_bytes() for path in workspace.checkpoints.iterdir()}
    for change, named in (
        ({"train.epochs": 1}, "train.epochs was 3, is 1"),
        ({"train.epochs": 5}, "train.epochs was 3, is 5"),
        ({"train.minutes": 0.01}, "train.minutes was 0.0, is 0.01"),
        ({"train.seed": 1}, "train.seed was 0, is 1"),
        ({"model.width": 2}, "model.width was 4, is 2"),
        ({"model.name": "vnet"}, "model.name was unet, is vnet"),
    ):
        assert train.main(tiny_workspace.arguments(workspace, **change)) == 2
        message = capsys.readouterr().err
        assert "RESUME_CONFLICT" in message and named in message and "--restart" in message
        assert {path: path.read_bytes() for path in workspace.checkpoints.iterdir()} == files
    # of the tensors, not of training
    assert train.main([*tiny_workspace.arguments(workspace), "--set", "data.window_hu=0,100"]) == 0
    assert train.main([*tiny_workspace.arguments(workspace, **{"train.epochs": 1}), "--restart"]) == 0
    assert files[workspace.best_model] in [
        path.read_bytes() for path in workspace.checkpoints.glob("best_model.*.pth")
    ]
    assert "is kept as checkpoints/best_model." in capsys.readouterr().out
    for kept in workspace.checkpoints.glob("best_model*.pth"):
        assert checkpoints.load(kept)["structures"] == tiny_workspace.STRUCTURES


def test_a_model_of_other_data_is_kept(tmp_path, capsys):
    workspace = tiny_workspace.make(tmp_path)
    assert train.main(tiny_workspace.arguments(workspace, **{"train.epochs": 1})) == 0
    old = workspace.best_model.read_bytes()
    tiny_workspace.make(tmp_path, cases=7)
    assert train.main(tiny_workspace.arguments(workspace, **{"train.epochs": 1})) == 0
    assert "other data (other tensors)" in capsys.readouterr().out
    assert workspace.best_model.read_bytes() != old and old in [
        path.read_bytes() for path in workspace.checkpoints.glob("best_model.*.pth")
    ]


def test_a_lost_best_model_is_replaced_and_said(tmp_path, capsys):
    workspace = tiny_workspace.make(tmp_path)
    command = tiny_workspace.arguments(workspace)
    assert train.main(command) == 0
    history = artifacts.read_json(workspace.history)
    workspace.best_model.unlink()
    assert train.main(command) == 0 and "BEST_MISMATCH" in capsys.readouterr().out
    assert checkpoints.load(workspace.best_model)["epoch"] == 3
    assert all(
        artifacts.read_json(workspace.history)[key] == history[key]
        for key in ("stopped", "epochs", "train_loss", "val_dice")
    )
    workspace.best_model.write_bytes(b"")
    assert train.main(command) == 0 and "BEST_MISMATCH" in capsys.readouterr().out
    assert train.main(command) == 0 and "Already trained" in capsys.readouterr().out


def test_a_budget_cut_to_less_than_is_trained_ends_with_a_model(tmp_path):
    workspace = tiny_workspace.make(tmp_path)
    assert train.main(tiny_workspace.arguments(workspace, **{"train.epochs": 4, "train.validations": 1})) == 0
    last = torch.load(workspace.last_model, weights_only=True)
    history = json.loads(last["history"])
    checkpoints.remove(workspace.last_model)
    checkpoints.save(
        workspace.last_model, last | {"best": None, "best_epoch": 0, "history": json.dumps(history)}
    )
    artifacts.write_json(workspace.history, history | {"stopped": "interrupted"})
    workspace.best_model.unlink()
    assert train.main(tiny_workspace.arguments(workspace, **{"train.epochs": 2, "train.validations": 1})) == 0
    assert checkpoints.load(workspace.best_model)["epoch"] == 4


def test_the_comparison_above_can_fail(tmp_path):
    one, two = tiny_workspace.make(tmp_path / "one"), tiny_workspace.make(tmp_path / "two")
    assert train.main(tiny_workspace.arguments(one)) == 0
    assert train.main(tiny_workspace.arguments(two, **{"train.seed": 1})) == 0
    assert not same(weights(one), weights(two))


def test_an_interrupted_run_with_other_settings_is_not_mixed(tmp_path, capsys):
    workspace = tiny_workspace.make(tmp_path)
    assert train.main(tiny_workspace.arguments(workspace)) == 0
    history = artifacts.read_json(workspace.history)
    artifacts.write_json(workspace.history, history | {"stopped": "running"})
    assert train.main(tiny_workspace.arguments(workspace, **{"train.learning_rate": 0.5})) == 2
    message = capsys.readouterr().err
    assert "RESUME_CONFLICT" in message and "train.learning_rate" in message and "--restart" in message
    assert (
        train.main([*tiny_workspace.arguments(workspace, **{"train.learning_rate": 0.005}), "--restart"]) == 0
    )


def test_minutes_end_in_time_with_the_rate_near_zero(tmp_path):
    workspace = tiny_workspace.make(tmp_path)
    started = time.monotonic()
    assert (
        train.main([*tiny_workspace.arguments(workspace, **{"train.steps_per_epoch": 5}), "--minutes", "0.1"])
        == 0
    )
    assert time.monotonic() - started < 6 * 1.2 + 9
    history = artifacts.read_json(workspace.history)
    assert history["stopped"] == "minutes" and history["learning_rate"][-1] < 0.03 * max(
        history["learning_rate"]
    )


def test_a_short_run_is_validated_at_its_end_alone(tmp_path, monkeypatch):
    state = TrainingState(Epoch(0.0, []), validation_seconds=36.0, validation_total=4.0)
    budget = Budget(TrainSettings(minutes=10), state)
    for seconds, progress, due in ((60, 0.1, False), (550, 0.97, False), (561, 1.0, True), (900, 0.5, True)):
        monkeypatch.setattr(budget, "seconds", lambda seconds=seconds: seconds)
        assert budget.validation_due(progress) == due

    workspace = tiny_workspace.make(tmp_path)
    seen = []
    monkeypatch.setattr(Budget, "validation_due", lambda self, progress: seen.append(self) or progress >= 1)
    words = tiny_workspace.arguments(workspace, **{"train.steps_per_epoch": 2})
    assert train.main([*words, "--minutes", "0.05"]) == 0
    assert all(budget.state.validation_seconds > 0 for budget in seen)  # known before the first was due


def test_the_last_epoch_is_validated_even_if_the_clock_runs_out_right_after_it(tmp_path, monkeypatch):
    """The time may end between the question whether to validate and the one whether to go on; the model of
    that epoch must not be lost.
    """
    workspace = tiny_workspace.make(tmp_path)
    # before the first epoch, at its steps; 0.99 after it, and 1 from then on
    asked = iter([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
    monkeypatch.setattr(Budget, "progress", lambda self: next(asked, 1.0))
    monkeypatch.setattr(Budget, "validation_due", lambda self, progress: progress >= 1)
    assert (
        train.main([*tiny_workspace.arguments(workspace, **{"train.steps_per_epoch": 5}), "--minutes", "9"])
        == 0
    )
    history = artifacts.read_json(workspace.history)
    # a last epoch has at least one step
    assert history["val_mean_dice"][-1] is not None and history["steps"] == 6


def test_divergence_stops_with_the_cases_named(tmp_path, capsys, monkeypatch):
    workspace = tiny_workspace.make(tmp_path)
    real, calls = trainer.objective, []

    def sometimes_nan(*arguments):
        calls.append(1)
        loss, dice = real(*arguments)
        return (loss * float("nan") if len(calls) > 6 else loss), dice

    monkeypatch.setattr(trainer, "objective", sometimes_nan)
    assert train.main(tiny_workspace.arguments(workspace, **{"train.steps_per_epoch": 4})) == 1
    message = capsys.readouterr().err
    assert "DIVERGED" in message and "case_" in message
    assert checkpoints.load(workspace.last_model)["epoch"] == 1  # the last good one is kept
    assert artifacts.read_json(workspace.history)["stopped"] == "diverged"


def test_partial_labels_train(tmp_path):
    workspace = tiny_workspace.make(tmp_path, unlabelled={0: ["left_blob"], 1: ["middle", "right_blob"]})
    assert train.main(tiny_workspace.arguments(workspace)) == 0


def test_no_labels_at_all_is_refused(tmp_path, capsys):
    workspace = tiny_workspace.make(tmp_path, unlabelled=dict.fromkeys(range(6), tiny_workspace.STRUCTURES))
    assert train.main(tiny_workspace.arguments(workspace)) == 4
    assert "NO_LABELS" in capsys.readouterr().err


def test_missing_and_changed_predecessors_are_named(tmp_path, capsys):
    assert train.main(["--workspace", str(tmp_path / "empty")]) == 4
    assert "--preprocess" in capsys.readouterr().err
    workspace = tiny_workspace.make(tmp_path / "w")
    splits = artifacts.read_json(workspace.splits)
    splits["assignment"]["case_0"] = "test"
    artifacts.write_json(workspace.splits, splits)
    assert train.main(tiny_workspace.arguments(workspace)) == 5
    assert "SPLIT_CHANGED" in capsys.readouterr().err


def test_unknown_model_is_refused_with_a_hint(tmp_path, capsys):
    workspace = tiny_workspace.make(tmp_path)
    assert train.main([*tiny_workspace.arguments(workspace), "--model", "unnet"]) == 2
    assert "did you mean 'unet'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("structures", "sides", "mirrors"),
    [
        (["Niere_links", "other", "middle"], None, False),
        (["one", "other", "middle"], {"pairs": [["one", "third"]], "lone": []}, False),
        (["one", "other", "middle"], {"pairs": [["one", "other"]], "lone": []}, True),
        (["one", "other", "middle"], None, True),
    ],
)
def test_one_side_alone_is_not_mirrored_in_training_and_prediction(
    tmp_path, capsys, structures, sides, mirrors
):
    workspace = tiny_workspace.make(tmp_path, cases=3)
    cases = [
        dataclasses.replace(case, states=dict.fromkeys(structures, "present"))
        for case in Manifest.load(workspace).cases
    ]
    tiny_workspace.write_manifest(workspace, cases, structures, sides=sides and Sides.of(sides, ()))

    def fit(**settings: object) -> tuple[bool, torch.Tensor | None]:
        """(whether patches were mirrored, label ids after a mirror in prediction) of a training run."""
        assert (
            train.main([*tiny_workspace.arguments(workspace, **{"train.epochs": 1, **settings}), "--restart"])
            == 0
        )
        trained = predictor.load_predictor(
            workspace.best_model, EvaluateSettings(), device="cpu", build_network=build_network, file="-"
        )
        assert (trained.why_not_mirrored is None) == mirrors
        return trained.checkpoint["settings"]["train"]["mirror"], trained.windows.swaps

    mirrored, swaps = fit()
    told = capsys.readouterr().out
    assert (
        mirrored == mirrors
        and ("NOTE ONE_SIDED" in told) == (not mirrors)
        and (mirrors or structures[0] in told)
    )
    assert (swaps is None) if not mirrors else swaps.tolist() == ([0, 2, 1, 3] if sides else [0, 1, 2, 3])
    # asked for by name: done, with a warning, and never in prediction
    mirrored, swaps = fit(**{"train.mirror": True})
    assert (
        mirrored
        and (swaps is not None) == mirrors
        and ("WARN ONE_SIDED" in capsys.readouterr().out) == (not mirrors)
    )
