"""Training that starts from the weights of a trained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_workspace
import torch

import run_pipeline
import train
from ctseg import artifacts
from ctseg.errors import UsageError
from ctseg.learning.starting_weights import freeze, take_weights
from models import build_network

SHORT = {"train.epochs": 1, "train.steps_per_epoch": 2}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> artifacts.Workspace:
    """A workspace with a hardly trained model."""
    workspace = tiny_workspace.make(tmp_path_factory.mktemp("earlier"))
    assert train.main(tiny_workspace.arguments(workspace, **SHORT)) == 0
    return workspace


def stored(workspace: artifacts.Workspace) -> dict:
    return torch.load(workspace.best_model, weights_only=True)


def fresh(earlier: artifacts.Workspace, **changes) -> torch.nn.Module:
    """A network as the earlier one, with other weights."""
    torch.manual_seed(7)
    return build_network(**{**stored(earlier)["arch"], **changes})


def test_the_same_structures_take_every_weight(earlier):
    network = fresh(earlier)
    record = take_weights(network, earlier.best_model, tiny_workspace.STRUCTURES)
    weights = stored(earlier)["model"]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert record["share"] == 1 and record["heads"] and record["synthetic"]
    assert record["sha256"] == artifacts.file_hash(earlier.best_model)


def test_other_structures_take_all_but_the_heads(earlier):
    network = fresh(earlier, n_structures=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    record = take_weights(network, earlier.best_model, ["liver", "spleen"])
    weights = stored(earlier)["model"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("heads") else weights[name]), name
    assert 0.9 < record["share"] < 1 and not record["heads"]
    assert record["structures"] == tiny_workspace.STRUCTURES


def test_channels_that_are_new_begin_as_nothing(earlier):
    plain, wider = fresh(earlier), fresh(earlier, in_channels=3)
    for network in (plain, wider):
        take_weights(network.eval(), earlier.best_model, tiny_workspace.STRUCTURES)
    image = torch.rand(1, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(wider(image)["logits"], plain(image[:, :1])["logits"], atol=1e-5)


def test_weights_of_another_network_are_refused(earlier):
    for changes in ({"width": 8}, {"name": "vnet", "kernel": 3}):
        with pytest.raises(
            UsageError, match=r"INIT_MISMATCH.*only .* % .*unet of width 4.*Fix: train the same"
        ):
            take_weights(fresh(earlier, **changes), earlier.best_model, tiny_workspace.STRUCTURES)


@pytest.mark.parametrize("name", ["unet", "vnet", "multi_decoder", "multipass_unet"])
def test_a_frozen_encoder_is_the_encoder(name):
    network = build_network(name, n_structures=2, width=4, levels=3, kernel=3)
    freeze(network, "nothing")
    assert all(parameter.requires_grad for parameter in network.parameters())
    freeze(network, "encoder")
    frozen = {id(parameter) for parameter in network.parameters() if not parameter.requires_grad}
    inside = network.network if name == "multipass_unet" else network
    assert frozen == {id(parameter) for parameter in inside.encoder.parameters()}


def test_a_training_starts_from_it_and_says_so(earlier, tmp_path, capsys):
    workspace = tiny_workspace.make(tmp_path)
    words = tiny_workspace.arguments(workspace, **SHORT, **{"train.seed": 3, "train.freeze": "encoder"})
    assert train.main([*words, "--init", str(earlier.best_model)]) == 0
    assert "Starting from best_model.pth (trained on synthetic data): 100 % of the weights." in (
        capsys.readouterr().out
    )
    before, after = stored(earlier)["model"], stored(workspace)
    assert after["start"]["sha256"] == artifacts.file_hash(earlier.best_model)
    same = {name for name, value in after["model"].items() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.startswith("encoder")}
    history = json.loads(workspace.history.read_text())
    assert history["settings"]["train"]["init"] == str(earlier.best_model)


@pytest.mark.parametrize("given", ["--init", "--set"])
def test_a_missing_or_damaged_file_is_noticed_before_any_work(earlier, tmp_path, capsys, given):
    file, words = tmp_path / "best_model.pth", ["--all", "--workspace", str(tmp_path / "w")]
    words += ["--init", str(file)] if given == "--init" else ["--set", f"train.init={file}"]
    assert run_pipeline.main(words) == 2
    assert "there is no such file to start from" in capsys.readouterr().err
    file.write_bytes(earlier.best_model.read_bytes()[:-100])
    assert run_pipeline.main(words) == 5 and "CHECKPOINT_CORRUPT" in capsys.readouterr().err
    assert not Path(tmp_path / "w").exists()
