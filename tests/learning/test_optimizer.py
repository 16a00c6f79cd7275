"""Which parameters are decayed, and that the memory estimate leaves a network as it was."""

from __future__ import annotations

import pytest
import torch

from ctseg.config import TrainSettings
from ctseg.learning.optimizer import make_optimizer
from ctseg.runtime import hardware
from models import build_network

CPU = hardware.Machine(torch.device("cpu"), "fp32", False, "test")
NETWORKS = {
    "passes": {"name": "multipass_unet"},
    "decoders": {"name": "multi_decoder", "attention": "voxel"},
    "guided": {"name": "anatomy_guided_unet", "guide_channels": 6},
    "batch norm": {"name": "vnet", "norm": "batch", "kernel": 3},
    "tubes": {"name": "airway_multitask_unet"},
}


def small(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(n_structures=2, width=4, levels=3, **NETWORKS[kind])


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_weights_of_convolutions_and_linear_layers_are_decayed(kind, optimizer):
    network = small(kind)
    groups = make_optimizer(network, TrainSettings(optimizer=optimizer, weight_decay=0.1)).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    everything = [id(p) for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in network.parameters())
    for name, parameter in network.named_parameters():
        convolution = name.endswith("weight") and parameter.ndim > 1
        assert (id(parameter) in decayed) == convolution, name
    embeddings = [p for name, p in network.named_parameters() if "biases" in name or "identity" in name]
    assert bool(embeddings) == (kind in ("passes", "decoders"))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_the_memory_estimate_leaves_the_network_as_it_was(kind, training):
    network = small(kind).train(training)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert hardware.estimate_memory_gb(network, (32, 32, 64), 2, CPU) > 0
    after = network.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert network.training == training and all(p.grad is None for p in network.parameters())
