"""Checkpoints with the right keys and wrong content: each is refused by name, before memory is taken, or
gives what the true one gives.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_workspace
import torch

import evaluate
import infer
import train
from ctseg import artifacts
from ctseg.config import EvaluateSettings
from ctseg.errors import IntegrityError
from ctseg.geometry.volume import Volume
from ctseg.learning import training
from ctseg.prediction.predictor import load_predictor
from ctseg.runtime import checkpoints
from ctseg.scans.formats import nifti
from models import build_network

TINY = {"train.epochs": 1, "train.steps_per_epoch": 1, "model.width": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> artifacts.Workspace:
    workspace = tiny_workspace.make(tmp_path_factory.mktemp("trained"))
    assert train.main(tiny_workspace.arguments(workspace, **TINY)) == 0
    return workspace


@pytest.fixture
def true_content(trained) -> dict[str, Any]:
    return torch.load(trained.best_model, weights_only=True)


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change: content[a][b] = value for the key "a.b"; a function is called with the old value."""

    def change(content: dict[str, Any]) -> None:
        *path, last = key.split("/")
        for name in path:
            content = content[name]
        content[last] = value(content[last]) if callable(value) else value

    return change


def first(value: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    """A change of the first weight."""

    def change(content: dict[str, Any]) -> None:
        name = next(iter(content["model"]))
        content["model"][name] = value(content["model"][name])

    return change


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *path, last = key.split("/")
        for name in path:
            content = content[name]
        content.pop(last)

    return change


nan, inf = math.nan, math.inf
DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
SPACED = {"grid": "windows", "window_hu": [-250.0, 750.0], "settings": {}}
MUTANTS: list[Callable[[dict[str, Any]], None]] = [
    *(
        put("preprocess/window_hu", value)
        for value in (
            [nan, 750.0],
            [750.0, -250.0],
            [0.0, 0.0],
            [-250.0, inf],
            [-250.0],
            None,
            "wide",
            ["-250", "750"],
            [-250.0, 600.0],
            torch.tensor([-250.0, 750.0]),
        )
    ),
    *(
        put("preprocess", SPACED | {"spacing_mm": value})
        for value in ([-1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [nan] * 3, [1e-6] * 3, [1.0, 1.0], 1.5, "1", None)
    ),
    *(put("preprocess/grid", value) for value in ("hole", None, 3, "roi", "windows", ["whole"])),
    put("preprocess/spacing_mm", [1.0, 1.0, 1.0]),
    drop("preprocess/settings"),
    put("preprocess/settings/margin_mm", nan),
    put("preprocess/settings/margin_mm", -5.0),
    put("preprocess/settings/crop", "hat"),
    put("preprocess", SPACED | {"grid": "roi", "spacing_mm": [1.0, 1.0, 1.0]}),
    put("preprocess", None),
    put("preprocess", []),
    *(
        put("structures", value)
        for value in (
            ["left_blob", "left_blob", "middle"],
            ["left_blob", "", "middle"],
            [1, 2, 3],
            [],
            None,
            "abc",
            ["left_blob", "right_blob"],
            [f"s{n}" for n in range(300)],
            ("left_blob", None, "middle"),
            DEEP,
        )
    ),
    *(put("arch/width", value) for value in (10**9, 512, -1, 0, 2.5, "2", nan, None, [2], 10**400)),
    *(put("arch/levels", value) for value in (10**9, 7, 1, "3", True)),
    *(put("arch/n_structures", value) for value in (10**9, 2, 0, "3", 3.0, None)),
    put("arch/blocks", [10**9] * 3),
    put("arch/blocks", [1]),
    put("arch/name", "unnet"),
    put("arch/name", None),
    put("arch/name", ["unet"]),
    put("arch/extra", 1),
    put("arch/guide_channels", -3),
    put("arch/name", "anatomy_guided_unet"),
    put("arch/passes", 2),
    put("arch/max_channels", 2),
    put("arch", {}),
    put("arch", None),
    drop("arch/name"),
    put("settings/train/patch_size", []),
    put("settings/train/patch_size", [33, 32, 32]),
    put("settings/train/patch_size", [0, 0, 0]),
    put("settings/train/patch_size", [10**6] * 3),
    put("settings/train/patch_size", [nan] * 3),
    put("settings/train/precision", "fp8"),
    put("settings/train/from_the_future", 1),
    put("settings/train/epochs", inf),
    put("settings/model/width", 16),
    put("settings", None),
    put("settings", {"train": None}),
    put("largest_component", ["liver"]),
    put("largest_component", None),
    put("largest_component", "middle"),
    put("synthetic", "yes"),
    drop("synthetic"),
    put("epoch", -1),
    put("epoch", "last"),
    put("manifest_hash", None),
    put("splits_hash", 7),
    put("guide", {"organs": None}),
    put("guide", 3),
    put("locator", 3),
    put("locator", {"arch": {}, "model": {}}),
    put("version", 2),
    put("version", torch.ones(2)),
    put("format", "other"),
    drop("model"),
    put("model", {}),
    put("model", []),
    put("model", {"w": 1}),
    put("model", {1: torch.zeros(1)}),
    first(lambda w: w * nan),
    first(lambda w: w / 0),
    first(lambda w: w.half()),
    first(lambda w: w.double()),
    first(lambda w: w.int()),
    first(lambda w: w[..., :1]),
    first(lambda w: w.flatten()),
    first(lambda w: torch.zeros(1).expand(10**12)),
    first(lambda w: w.to_sparse()),
    first(lambda w: torch.empty(10**12, device="meta")),
    first(lambda w: torch.complex(w, w)),
    first(lambda w: None),
    put("model", lambda model: {f"module.{key}": value for key, value in model.items()}),
    put("model", lambda model: dict(list(model.items())[:-1])),
    put("note", torch.zeros(1).expand(10**12)),
]


@pytest.mark.parametrize("number", range(len(MUTANTS)))
def test_wrong_content_is_refused_by_name(tmp_path, true_content, number):
    content = copy.deepcopy(true_content)
    MUTANTS[number](content)
    torch.save(content, path := tmp_path / "mutant.pth")
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(
        IntegrityError, match=r"^ERROR (CHECKPOINT|UNSAFE)_\w+ case=- file=mutant\.pth: .+ Fix: \w+"
    ) as caught:
        load_predictor(path, EvaluateSettings(), device="cpu", build_network=build_network, file=path.name)
    assert caught.value.exit_code == 5 and len(str(caught.value)) < 600
    # kB, s
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
        and time.process_time() - started < 10
    )


def _repacked(
    path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(stream, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return stream.getvalue()


ARCHIVES: dict[str, Callable[[Path], bytes]] = {
    "compressed zeros": lambda path: _repacked(
        path, lambda name, data: bytes(10**8) if name.endswith("data/0") else data, zipfile.ZIP_DEFLATED
    ),
    "bytearray of 400 MB": lambda path: _repacked(
        path,
        lambda name, data: (
            b"\x80\x02cbuiltins\nbytearray\n\x8a\x04\x00\x84\xd7\x17\x85R."
            if name.endswith("data.pkl")
            else data
        ),
    ),
    "200 thousand levels": lambda path: _repacked(
        path,
        lambda name, data: (
            b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"." if name.endswith("data.pkl") else data
        ),
    ),
    "short storage": lambda path: _repacked(path, lambda name, data: data[:8] if "/data/" in name else data),
    "noise": lambda path: _repacked(
        path, lambda name, data: bytes(range(256)) if name.endswith("data.pkl") else data
    ),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_are_none_of_ours_are_refused_before_they_take_memory(tmp_path, trained, kind):
    path = tmp_path / "a.pth"
    path.write_bytes(ARCHIVES[kind](trained.best_model))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError, match=r"(CHECKPOINT|UNSAFE)_\w+ case=- file=a\.pth"):
        checkpoints.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_flipped_bytes_of_the_description_are_refused_or_change_nothing(tmp_path, trained, true_content):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.pth"

    def flipped(name: str, data: bytes) -> bytes:
        array = np.frombuffer(data, np.uint8).copy()
        if name.endswith("data.pkl"):
            array[rng.integers(0, len(array), rng.integers(1, 4))] = rng.integers(0, 256)
        return array.tobytes()

    used = 0
    for _ in range(100):
        path.write_bytes(_repacked(trained.best_model, flipped))
        try:
            content = checkpoints.load(path)
        except IntegrityError as error:
            assert error.exit_code == 5 and error.file == "a.pth"
            continue
        used += 1
        assert all(
            content[key] == true_content[key]
            for key in ("structures", "arch", "preprocess", "largest_component")
        )
    assert used < 50


def test_the_true_content_is_taken_in_other_equal_forms(tmp_path, true_content):
    content = copy.deepcopy(true_content) | {"note": "of a later version"}
    content["arch"] |= {
        "residual": 1,
        # as good as true; a network without guide has no channels of one
        "guide_channels": 10**9,
    }
    torch.save(content, path := tmp_path / "same.pth")
    assert (
        load_predictor(
            path, EvaluateSettings(), device="cpu", build_network=build_network, file=path.name
        ).names
        == tiny_workspace.STRUCTURES
    )


def _as_last(content: dict[str, Any]) -> None:
    content["averaged"] = dict(list(content["averaged"].items())[1:])


STATES: list[Callable[[dict[str, Any]], None]] = [
    _as_last,
    drop("averaged"),
    put("averaged", lambda weights: {key: value.double() for key, value in weights.items()}),
    put("optimizer", {}),
    put("optimizer/state", {}),
    put("optimizer/state", {0: {}}),
    put(
        "optimizer/state",
        {0: {"step": torch.ones(()), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}},
    ),
    put("optimizer/state", {10**6: {}}),
    put("optimizer/state", {"momentum": 1}),
    put("scaler", {"scale": nan}),
    put("scaler", None),
    put("best", nan),
    put("best", "high"),
    put("best_epoch", -1),
    put("steps", 1.5),
    put("stale", None),
    put("rate_scale", inf),
    put("seconds", -5),
    put("seconds", nan),
    put("threads", 0),
    put("history", "{"),
    put("history", 5),
    put("history", "[]"),
    put("history", '{"epochs": []}'),
    put("history", lambda text: text.replace("[1]", "[1, 2]")),
    put("history", lambda text: json.dumps(json.loads(text) | {"resource_usage": []})),
    put("history", lambda text: json.dumps(json.loads(text) | {"resource_usage": ["much"]})),
    put("missed", [("case_0", torch.full((2, 3), 10**6))]),
    put("missed", [("nobody", torch.zeros(2, 3))]),
    put("missed", ["case_0"]),
    put("partial", {"steps": 1}),
    put("partial", {"steps": -1, "begun": 0, "total": 0, "rate": 0, "dice": []}),
    put("partial/dice", [None]),
    put("later_passes", "yes"),
    put("epoch", 7),
    put("optimizer/state", lambda state: state | {0: state[0] | {"exp_avg": state[0]["exp_avg"] * nan}}),
]


@pytest.fixture(scope="module")
def interrupted(trained, tmp_path_factory) -> artifacts.Workspace:
    """The same workspace, as if it had been killed after its only epoch."""
    workspace = artifacts.Workspace(tmp_path_factory.mktemp("interrupted"), trained.processed)
    assert (
        train.main([*tiny_workspace.arguments(workspace, **TINY), "--processed", str(workspace.processed)])
        == 0
    )
    artifacts.write_json(workspace.history, artifacts.read_json(workspace.history) | {"stopped": "running"})
    return workspace


@pytest.mark.parametrize("number", range(len(STATES)))
def test_a_wrong_state_of_training_is_refused(interrupted, number, capsys):
    true = torch.load(interrupted.last_model, weights_only=True)
    files = {path: path.read_bytes() for path in interrupted.checkpoints.iterdir()}
    content = copy.deepcopy(true)
    STATES[number](content)
    torch.save(content, interrupted.last_model)
    interrupted.last_model.with_name("last.pth.json").unlink()
    command = [*tiny_workspace.arguments(interrupted, **TINY), "--processed", str(interrupted.processed)]
    assert train.main(command) == 5
    error = capsys.readouterr().err
    assert (
        "ERROR CHECKPOINT_" in error
        and "last.pth" in error
        and "--restart" in error
        and "Traceback" not in error
    )
    assert interrupted.best_model.read_bytes() == files[interrupted.best_model]
    for path, data in files.items():
        path.write_bytes(data)


def _scan(folder: Path) -> Path:
    image, _ = tiny_workspace.draw(0)
    volume = Volume(
        (image.astype(np.float32) * 1000 - 600).round().astype(np.int16),
        np.diag([2.0, 2.0, 2.0, 1.0])[:, [2, 1, 0, 3]],
    )
    nifti.write_image(folder / "ct.nii.gz", volume)
    return folder / "ct.nii.gz"


def _pipe(path: Path) -> None:
    os.mkfifo(path)


PLACES: dict[str, Callable[[Path], Any]] = {
    "folder": Path.mkdir,
    "named pipe": _pipe,
    "empty": lambda path: path.write_bytes(b""),
    "link loop": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "text": lambda path: path.write_text("<html>"),
    "truncated": lambda path: path.write_bytes(b"PK\x03\x04" * 20),
}


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_checkpoint_is_refused_on_every_command_line(tmp_path, trained, capsys, kind):
    PLACES[kind](bad := tmp_path / "bad.pth")
    (tmp_path / "scan").mkdir()
    assert (
        infer.main(
            [
                "--input",
                str(_scan(tmp_path / "scan")),
                "--output",
                str(tmp_path / "masks"),
                "--checkpoint",
                str(bad),
                "--device",
                "cpu",
            ]
        )
        == 5
    )
    assert (
        "bad.pth" in (message := capsys.readouterr().err)
        and "Traceback" not in message
        and not (tmp_path / "masks").exists()
    )
    workspace = artifacts.Workspace(tmp_path / "w", trained.processed)
    workspace.checkpoints.mkdir(parents=True)
    bad.rename(workspace.best_model)
    if kind == "link loop":
        workspace.best_model.unlink()
        PLACES[kind](workspace.best_model)
    assert evaluate.main([*tiny_workspace.arguments(workspace), "--processed", str(workspace.processed)]) in (
        4,
        5,
    )
    assert "best_model.pth" in (message := capsys.readouterr().err) and "Traceback" not in message


def test_wrong_content_on_the_real_command_lines(tmp_path, trained, true_content, capsys):
    scan = _scan(tmp_path)
    for number, change in enumerate(
        (
            put("preprocess/window_hu", [nan, 750.0]),
            put("structures", ["left_blob", "left_blob", "middle"]),
            put("arch/width", 10**9),
            first(lambda w: w * nan),
        )
    ):
        content = copy.deepcopy(true_content)
        change(content)
        torch.save(content, path := tmp_path / f"{number}.pth")
        assert (
            infer.main(
                [
                    "--input",
                    str(scan),
                    "--output",
                    str(tmp_path / "masks"),
                    "--checkpoint",
                    str(path),
                    "--device",
                    "cpu",
                ]
            )
            == 5
        )
        assert f"file={number}.pth" in capsys.readouterr().err and not (tmp_path / "masks").exists()
    assert (
        infer.main(
            [
                "--input",
                str(scan),
                "--output",
                str(tmp_path / "masks"),
                "--checkpoint",
                str(trained.best_model),
                str(trained.best_model),
                "--device",
                "cpu",
            ]
        )
        == 2
    )
    assert "same model twice" in capsys.readouterr().err
    content = copy.deepcopy(true_content) | {"preprocess": SPACED | {"spacing_mm": [1.0, 1.0, 1.0]}}
    torch.save(content, tmp_path / "other_grid.pth")
    assert (
        infer.main(
            [
                "--input",
                str(scan),
                "--output",
                str(tmp_path / "masks"),
                "--checkpoint",
                str(trained.best_model),
                str(tmp_path / "other_grid.pth"),
                "--device",
                "cpu",
            ]
        )
        == 2
    )
    assert "ENSEMBLE_MISMATCH" in capsys.readouterr().err


def test_a_checkpoint_with_another_window_than_the_tensors_is_not_evaluated(
    tmp_path, trained, true_content, capsys
):
    workspace = artifacts.Workspace(tmp_path, trained.processed)
    window = [-100.0, 200.0]
    true_content["preprocess"] |= {"window_hu": window, "settings": {"window_hu": window}}
    checkpoints.save(workspace.best_model, true_content)
    assert evaluate.main([*tiny_workspace.arguments(workspace), "--processed", str(workspace.processed)]) == 5
    assert "window_hu" in capsys.readouterr().err


def test_scores_of_an_unfinished_training_say_so(tmp_path, interrupted, capsys):
    _, label = tiny_workspace.draw(5)
    nifti.write_label(
        interrupted.processed / "references" / "case_5.nii.gz", Volume(label, np.eye(4)[:, [2, 1, 0, 3]])
    )
    command = [
        *tiny_workspace.arguments(interrupted),
        "--processed",
        str(interrupted.processed),
        "--workers",
        "1",
    ]
    assert evaluate.main(command) == 0 and "TRAINING_UNFINISHED" in capsys.readouterr().out
    history = artifacts.read_json(interrupted.history)
    for changed, said in (
        (history | {"stopped": "epochs"}, None),
        (history | {"manifest_hash": "other"}, "BEST_MISMATCH"),
    ):
        artifacts.write_json(interrupted.history, changed)
        assert evaluate.main(command) == 0
        output = capsys.readouterr().out
        assert said in output if said else "WARN" not in output
    artifacts.write_json(interrupted.history, [])
    assert evaluate.main(command) == 5 and "it holds no JSON object" in capsys.readouterr().err
    assert not training.is_finished(interrupted)
    artifacts.write_json(interrupted.history, history)
