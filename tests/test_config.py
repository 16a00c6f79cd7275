"""Settings: conversion, refusal with a hint, profiles, and the command line."""

from __future__ import annotations

import pytest

import run_pipeline
from ctseg import cli, config
from ctseg.errors import UsageError


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
