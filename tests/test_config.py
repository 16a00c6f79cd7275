"""Settings: conversion, refusal with a hint, profiles, and the command line."""

from __future__ import annotations

import ast
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tiny_workspace
import torch

import run_pipeline
import train
from ctseg import artifacts, cli, config, config_file
from ctseg.errors import UsageError
from models import OPTIONS

ROOT = Path(__file__).resolve().parent.parent


def test_command_line_wins_over_profile_wins_over_defaults():
    assert config.Settings().train.batch_size == 2
    assert config.resolve("low_vram", {}).train.batch_size == 1
    assert config.resolve("low_vram", {"train.batch_size": "3"}).train.batch_size == 3


def test_values_are_converted_to_their_type():
    settings = config.resolve(
        None,
        {
            "train.patch_size": "32,48,64",
            "data.window_hu": "-100,200",
            "evaluate.flip": "no",
            "data.structures": "a,b",
        },
    )
    assert settings.train.patch_size == (32, 48, 64)
    assert settings.data.window_hu == (-100.0, 200.0)
    assert settings.evaluate.flip is False
    assert settings.data.structures == ("a", "b")
    assert config.resolve(None, {"data.structures": "Kidney (L), left kidney,肝臓"}).data.structures == (
        "Kidney (L)",
        "left kidney",
        "肝臓",
    )


@pytest.mark.parametrize(
    ("key", "value", "code", "hint"),
    [
        ("train.epochz", "5", "UNKNOWN_KEY", "train.epochs"),
        ("train.epochs", "many", "BAD_VALUE", "whole number"),
        ("train.epochs", "0", "BAD_VALUE", "1"),
        ("train.learning_rate", "nan", "BAD_VALUE", "1e-08"),
        ("train.learning_rate", "-1", "BAD_VALUE", "1e-08"),
        ("train.batch_size", "0", "BAD_VALUE", "1"),
        ("train.patch_size", "65,64,64", "BAD_SIZE", "64 or 80"),
        ("train.schedule", "cosinus", "BAD_VALUE", "cosine"),
        ("data.window_hu", "300,-200", "BAD_VALUE", "lower end first"),
    ],
)
def test_wrong_settings_are_refused_with_a_remedy(key, value, code, hint):
    with pytest.raises(UsageError) as caught:
        config.resolve(None, {key: value})
    assert caught.value.code == code
    assert hint in str(caught.value)


def test_settings_survive_json():
    settings = config.resolve("full", {"train.seed": 7})
    assert config.from_record(settings.record()) == settings


def test_unknown_profile_names_the_known_ones():
    with pytest.raises(UsageError, match="standard"):
        config.resolve("standart", {})


def test_stages_run_in_the_pipelines_order_whatever_the_order_of_flags():
    arguments = run_pipeline.build_parser().parse_args(["--analyze", "--eval", "--train"])
    assert run_pipeline.chosen_stages(arguments) == ["train", "eval", "analyze"]
    arguments = run_pipeline.build_parser().parse_args(["--all", "--no-preprocess"])
    assert run_pipeline.chosen_stages(arguments) == ["train", "eval", "analyze"]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--no-preprocess"],
        ["--al"],
        ["--device", "tpu", "--all"],
        ["--all", "--minutes", "-3"],
        ["--all", "--minutes", "x"],
        ["--all", "--low-vram", "--profile", "full"],
        ["--all", "--set", "train.epochs"],
        ["--all", "--workers", "0"],
    ],
)
def test_wrong_command_lines_end_with_2_and_a_remedy(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_pipeline.main(argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("ERROR BAD_")
    assert "Fix:" in message and "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_hints_at_the_nearest(capsys):
    assert run_pipeline.main(["--preproces"]) == 2
    assert "did you mean '--preprocess'" in capsys.readouterr().err


def test_low_vram_is_the_profile():
    arguments = run_pipeline.build_parser().parse_args(["--all", "--low-vram"])
    _, settings, options = cli.settings_from(arguments)
    assert (options.profile, settings.model.width, settings.train.batch_size) == ("low_vram", 8, 1)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--model", "unett"], "UNKNOWN_MODEL", "did you mean 'unet'"),
        (["--set", "model.backbone=unett"], "BAD_VALUE", "model.backbone='unett' is not one of"),
        (["--layout", "nnunett"], "UNKNOWN_LAYOUT", "nnunet"),
        (["--model", "anatomy_guided_unet"], "BAD_VALUE", "needs a guide"),
        (["--guide-model", "nowhere.pth"], "BAD_OPTION", "does not exist"),
        (["--set", "train.precision=fp16", "--device", "cpu"], "BAD_VALUE", "GPU"),
        (["--guide", "nowhere", "--set", "data.guide_organs=liver"], "BAD_OPTION", "neither a folder"),
        (["--seed", "-1"], "BAD_VALUE", "outside"),
        (["--set", "model.blocks=1,2"], "BAD_VALUE", "blocks"),
    ],
)
def test_options_of_later_stages_are_refused_before_any_work(options, code, said, capsys, tmp_path):
    assert run_pipeline.main(["--all", "--workspace", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert code in error and said in error and list(tmp_path.iterdir()) == []


def test_a_missing_device_is_refused_before_any_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run_pipeline.main(["--all", "--workspace", str(tmp_path), "--device", "cuda"]) == 2
    assert "NO_GPU" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- every setting


def other_values(kind: Any, default: Any) -> Iterator[Any]:
    """Values of that type, one of which is not the default."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        yield from arguments
    elif typing.get_origin(kind) is Annotated:
        yield from (arguments[1].low, arguments[1].high)
    elif typing.get_origin(kind) is tuple:
        yield [next(other_values(one, None)) for one in arguments if one is not Ellipsis]
    else:
        yield from {bool: (True, False), str: ("another",)}[kind]


def wrong_values(kind: Any) -> Iterator[Any]:
    """Values that a setting of that type must refuse."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    yield {"a": 1}
    if origin is Annotated:
        yield from ("nan", arguments[1].low - 1, arguments[1].high + 1, "many", True)
    elif origin is tuple:
        yield from ([wrong] for wrong in wrong_values(arguments[0]))
    elif kind is not str:
        yield from ("nonsense", "", 7)


# lengths and orders that a field alone cannot say
TOGETHER = {"data.window_hu": [-100, 200], "train.patch_size": [64, 64, 64]}


@pytest.mark.parametrize("key", config.setting_types())
def test_every_setting_takes_other_values_and_refuses_wrong_ones_with_a_remedy(key):
    kind, section, name = config.setting_types()[key], *key.split(".")
    default = config.Settings().record()[section][name]
    values = [TOGETHER[key]] if key in TOGETHER else list(other_values(kind, default))
    records = [config.resolve(None, {key: value}).record() for value in values]
    assert any(record[section][name] != default for record in records)
    for record in records:  # nothing else has changed
        assert {**record[section], name: 0} == {**config.Settings().record()[section], name: 0}
        assert config.from_record(record).record() == record
    for wrong in wrong_values(kind):
        with pytest.raises(UsageError, match="Fix: ") as caught:
            config.resolve(None, {key: wrong})
        assert key in caught.value.cause and caught.value.exit_code == 2


def test_every_setting_is_read_by_something():
    """A setting without effect would be a promise that nobody keeps."""
    read = {field for kind in OPTIONS for field in kind.__dataclass_fields__}  # options of networks
    for path in (*ROOT.glob("*.py"), *(ROOT / "ctseg").rglob("*.py")):
        if path.name != "config.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {key for key in config.setting_types() if key.split(".")[1] not in read} == set()


# ---------------------------------------------------------------- settings in a file


def file_with(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_may_begin_with_the_mark_of_windows_editors(tmp_path):
    assert config_file.read(file_with(tmp_path, "\ufeff[train]\nepochs = 7\n")) == (None, {"train.epochs": 7})


def test_a_file_lies_between_task_and_command_line(tmp_path):
    path = file_with(
        tmp_path,
        'task = "heart_like"\n[train]\nepochs = 7\nminutes = 3\n[model]\nwidth = '
        "12\n[data]\nwindow_hu = [-100, 400]\n",
    )
    words = ["--config", str(path), "--low-vram", "--set", "train.seed=3", "--set", "model.width=6"]
    _, settings, options = cli.settings_from(run_pipeline.build_parser().parse_args(words))
    assert options.task == "heart_like" and settings.model.name == "anatomy_guided_unet"  # of the task
    assert settings.train.batch_size == 1 and settings.model.kernel == 3  # of the profile
    assert settings.data.window_hu == (-100.0, 400.0) and settings.train.minutes == 3  # of the file
    assert (settings.model.width, settings.train.seed) == (6, 3)  # of the command line
    _, settings, _ = cli.settings_from(run_pipeline.build_parser().parse_args([*words, "--epochs", "2"]))
    assert (settings.train.epochs, settings.train.minutes) == (2, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train]\nepochz = 5\n", "UNKNOWN_KEY case=- file=mine.toml: there is no setting 'train.epochz'"),
        ("[trian]\nepochs = 5\n", "there is no setting 'trian.epochs'"),
        ("epochs = 5\n", "there is no setting 'epochs'"),
        ("[train]\nepochs = true\n", "train.epochs=True is not a whole number"),
        ("[train]\nepochs = [1, 2]\n", "train.epochs=[1, 2] is not a whole number"),
        ("[data]\nguide = 5\n", "data.guide=5 is not a text"),
        ("[data]\nstructures = [1]\n", "data.structures=1 is not a text"),
        ("[train.epochs]\na = 5\n", "train.epochs={'a': 5} is not a whole number"),
        ("[evaluate]\nflip = 2\n", "evaluate.flip=2 is not true or false"),
        ("task = 3\n", "task=3 is not a text"),
        ('task = "heart"\n', "UNKNOWN_TASK"),
        ("[train]\nepochs: 5\n", "BAD_CONFIG case=- file=mine.toml: it is not TOML"),
        ("\udcff", "it is not TOML"),
        (None, "does not exist"),
    ],
)
def test_a_wrong_file_ends_with_2_and_a_remedy(text, said, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert run_pipeline.main(["--all", "--workspace", str(tmp_path / "w"), "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error and "Fix: " in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "2"], "--seeds 2 is for --compare"),
        (["--structures", "bladder,prostat"], "did you mean 'prostate'?"),
        (["--task", "airway", "--structures", "liver"], "choose from airway, lung_left, lung_right"),
    ],
)
def test_what_can_be_known_before_any_work_is_refused_before(words, said, tmp_path, capsys):
    assert run_pipeline.main(["--all", "--workspace", str(tmp_path / "w"), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "w").exists()


def test_every_value_comes_back_from_a_written_file(tmp_path):
    changes = {
        "data.structures": ["Kidney (L)", 'a "quoted" \\ name', "\x7f\n\t", "肝臓 😀"],
        "data.guide": os.fsdecode(b"M\xfcller"),
        "train.learning_rate": 1e-8,
        "evaluate.flip": False,
    }
    settings = config.resolve("cpu", changes)
    config_file.note(artifacts.Workspace(tmp_path), settings.record(), "pelvis")
    task, overrides = config_file.read(tmp_path / "config.toml")
    again = config.resolve(None, overrides).record()
    assert task == "pelvis" and set(overrides) == set(config.setting_types())
    assert again.pop("data") == {**settings.record()["data"], "guide": "M?ller"}
    assert again == {key: value for key, value in settings.record().items() if key != "data"}


def test_stages_add_their_sections_and_leave_a_foreign_file_alone(tmp_path):
    workspace, record = artifacts.Workspace(tmp_path), config.Settings().record()
    config_file.note(workspace, {"data": record["data"]}, "pelvis")
    config_file.note(workspace, {"evaluate": {**record["evaluate"], "flip": False}}, None)
    config_file.note(workspace, {"evaluate": {**record["evaluate"], "overlap": 0.25}}, None)
    task, overrides = config_file.read(workspace.config)
    assert task == "pelvis" and overrides["evaluate.overlap"] == 0.25 and overrides["evaluate.flip"] is True
    assert overrides["data.grid"] == "auto" and not any(key.startswith("train") for key in overrides)
    workspace.config.write_text("[train]\nepochs = 3\n")
    config_file.note(workspace, {"data": record["data"]}, None)
    assert workspace.config.read_text() == "[train]\nepochs = 3\n"


def test_the_written_file_repeats_the_training(tmp_path):
    first = tiny_workspace.make(tmp_path / "first")
    words = tiny_workspace.arguments(first, **{"train.epochs": 1, "train.steps_per_epoch": 2})
    assert train.main([*words, "--model", "multi_decoder", "--set", "train.learning_rate=3e-3"]) == 0
    second = artifacts.Workspace(tmp_path / "second", first.processed)
    words = ["--workspace", str(second.root), "--processed", str(first.processed), "--device", "cpu"]
    assert train.main([*words, "--config", str(first.config)]) == 0
    assert second.config.read_text() == first.config.read_text()
    weights = [torch.load(one.best_model, weights_only=True)["model"] for one in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
