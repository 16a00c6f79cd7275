"""Which parameters are decayed, and that the memory estimate leaves a network as it was."""

from __future__ import annotations

import platform

import psutil
import pytest
import torch

import train
from ctseg import config
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


def test_a_learning_rate_that_was_not_planned_is_refused():
    with pytest.raises(ValueError, match="plan it first"):
        make_optimizer(small("tubes"), TrainSettings())


@pytest.mark.parametrize(
    ("name", "model", "spacing_mm", "stem"),
    [
        ("cpu", {}, (2.5, 3.9, 3.9), 2),
        ("cpu", {}, (5.0, 1.0, 1.0), 1),  # half of such voxels would leave too little along D
        ("cpu", {"model.name": "airway_multitask_unet"}, (1.0, 1.0, 1.0), 1),  # thin tubes
        ("cpu", {"model.name": "vnet"}, (1.0, 1.0, 1.0), 1),  # not measured
        ("cpu", {"model.stem": 1}, (1.0, 1.0, 1.0), 1),
        ("cpu", {"model.stem": 2, "model.name": "vnet"}, (5.0, 1.0, 1.0), 2),
        ("full", {}, (1.0, 1.0, 1.0), 1),
    ],
)
def test_the_stem_is_planned_where_the_settings_leave_it_open(name, model, spacing_mm, stem):
    planned = train.with_network_plan(config.resolve(name, model), spacing_mm)
    assert (planned.model.stem, planned.train.learning_rate) == (stem, {1: 2e-3, 2: 4e-3}[stem])
    asked = config.resolve(name, {**model, "train.learning_rate": 0.003})
    assert train.with_network_plan(asked, spacing_mm).train.learning_rate == 0.003


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_weights_of_convolutions_and_linear_layers_are_decayed(kind, optimizer):
    network = small(kind)
    asked = TrainSettings(optimizer=optimizer, weight_decay=0.1, learning_rate=1e-3)
    groups = make_optimizer(network, asked).param_groups
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_stays_while_it_is_asked_to_and_goes_afterwards():
    """Seen in the page faults of filling 64 MB again, and in what the process holds."""
    resource = pytest.importorskip("resource")

    def faults(times: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(times):
            torch.ones(16 << 20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = (64 << 20) // resource.getpagesize()
    usual = faults(4)
    with hardware.freed_memory_kept():
        faults(1)
        kept = faults(4)
        held = psutil.Process().memory_info().rss
    assert kept < 1.5 * pages < usual
    assert psutil.Process().memory_info().rss < held - (32 << 20)
