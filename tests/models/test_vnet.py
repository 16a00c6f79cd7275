"""V-Net: size of its variants, residual stages, options. The laws of every backbone are in test_models.py.

All inputs are synthetic noise.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import InstanceNorm, Size
from models.vnet import STAGE_CONVS, Stage, UpStage, VNet, VNetOptions, tile_channels

SMALL = VNetOptions(kernel=3)


def tiny(**options) -> VNet:
    torch.manual_seed(0)
    sizes = ("width", "levels", "max_channels", "in_channels")
    size = {key: options.pop(key) for key in sizes if key in options}
    return VNet(
        Size(**{"n_structures": 2, "width": 4, "levels": 3, **size}), VNetOptions(**{"kernel": 3, **options})
    )


def scan(*shape: int) -> Tensor:
    """A synthetic input (B, C, D, H, W)."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def unit_counts(network: VNet) -> tuple[list[int], list[int]]:
    """Convolutions per stage of the encoder, fine to coarse, and of the decoder, fine to coarse."""
    stages = [len(module.units) for module in network.encoder.modules() if isinstance(module, Stage)]
    return stages, [len(block.stage.units) for block in network.decoder][::-1]


# ---------------------------------------------------------------- size


@pytest.mark.parametrize(
    ("stage_convs", "kernel", "millions"),
    [
        ("paper", 5, 65.2),  # convolutions per stage of the paper: encoder 1, 2, 3, 3, 3, decoder 3, 3, 2, 1
        ("reference", 5, 45.6),  # of most implementations: encoder 1, 1, 2, 3, 2, decoder 2, 2, 1, 1
        ("paper", 3, 14.7),  # the same two with 3^3 instead of 5^3 convolutions
        ("reference", 3, 10.5),
    ],
)
@pytest.mark.parametrize(
    "form", [{}, {"norm": "batch", "deep_supervision": False}], ids=["default", "parity"]
)  # parity: normalisation and heads of the common implementation
def test_parameters_of_each_variant_within_one_percent_of_the_known_size(stage_convs, kernel, millions, form):
    """All four known sizes are met, with 1 structure as with 4: the output layer is too small to matter."""
    for n_structures in (1, 4):
        with torch.device("meta"):
            options = VNetOptions(kernel=kernel, stage_convs=stage_convs, **form)
            network = VNet(Size(n_structures, width=16, levels=5), options)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_channels_and_convolutions_of_the_published_size():
    with torch.device("meta"):
        networks = {name: VNet(Size(1, 16, 5), VNetOptions(stage_convs=name)) for name in STAGE_CONVS}
    assert networks["paper"].decoder_channels == [256, 128, 64, 32]
    assert unit_counts(networks["paper"]) == ([1, 2, 3, 3, 3], [1, 2, 3, 3])
    assert unit_counts(networks["reference"]) == ([1, 1, 2, 3, 2], [1, 1, 2, 2])
    downs = [
        m for m in networks["paper"].encoder.modules() if isinstance(m, nn.Conv3d) and m.stride == (2, 2, 2)
    ]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in downs] == [
        (16 * 2**i, 32 * 2**i, (2, 2, 2)) for i in range(4)
    ]


@pytest.mark.parametrize(
    ("levels", "encoder", "decoder"), [(2, [1, 2], [1]), (7, [1, 2, 3, 3, 3, 3, 3], [1, 2, 3, 3, 3, 3])]
)
def test_other_numbers_of_levels_take_the_same_counts_from_the_finest_on(levels, encoder, decoder):
    with torch.device("meta"):
        assert unit_counts(VNet(Size(1, 4, levels), VNetOptions(stage_convs="paper"))) == (encoder, decoder)


def test_no_stage_has_more_than_the_largest_number_of_channels():
    """Not even a decoder stage, which has twice the channels of its skip."""
    network = tiny(levels=5, max_channels=24)
    assert network.decoder_channels == [24, 24, 16, 8]
    assert max(m.out_channels for m in network.modules() if isinstance(m, nn.Conv3d)) == 24
    assert network(scan(1, 1, 16, 16, 16))["logits"].shape == (1, 3, 16, 16, 16)


# ---------------------------------------------------------------- residual stages


def silence(stage: nn.Module) -> None:
    """All convolutions of the stage return 0, which normalisation leaves."""
    for module in stage.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.zeros_(module.weight)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_silent_stage_returns_its_input_through_the_activation(count, kernel):
    stage = Stage(4, 4, count, VNetOptions(kernel=kernel))
    x = scan(2, 4, 4, 6, 5)
    assert not torch.allclose(stage(x), functional.prelu(x, torch.tensor(0.25)), atol=0.1)
    silence(stage)
    torch.testing.assert_close(stage(x), functional.prelu(x, torch.tensor(0.25)))


def test_a_silent_first_stage_returns_the_tiled_image():
    network = tiny(in_channels=3, width=4)
    silence(network.encoder[0])
    image = scan(1, 3, 8, 8, 8)
    expected = functional.prelu(image[:, [0, 1, 2, 0]], torch.tensor(0.25))
    torch.testing.assert_close(network.encoder(image)[0], expected)


def test_a_silent_decoder_stage_returns_what_came_up_beside_the_skip():
    block = UpStage(8, 4, 2, SMALL)
    below, skip = scan(1, 8, 2, 3, 4), scan(1, 4, 4, 6, 8)
    silence(block.stage)
    expected = functional.prelu(torch.cat((block.up(below), skip), dim=1), torch.tensor(0.25))
    torch.testing.assert_close(block(below, skip), expected)


def test_without_residuals_a_silent_stage_returns_nothing():
    stage = Stage(4, 4, 2, VNetOptions(kernel=3, residual=False))
    silence(stage)
    assert not stage(scan(1, 4, 4, 4, 4)).any()


@pytest.mark.parametrize(
    ("available", "wanted", "order"),
    [(1, 3, [0, 0, 0]), (2, 5, [0, 1, 0, 1, 0]), (3, 3, [0, 1, 2]), (5, 2, [0, 1])],
)
def test_tiled_channels_repeat_in_order(available, wanted, order):
    x = scan(2, available, 2, 3, 4)
    assert torch.equal(tile_channels(x, wanted), x[:, order])


def test_autocast_keeps_the_first_stage_in_bfloat16_and_channels_last():
    """The image that is added there is float32 and has a single channel: it sets neither type nor layout."""
    network = tiny(width=8).to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        features = network.encoder(scan(2, 1, 8, 16, 8).contiguous(memory_format=torch.channels_last_3d))
    assert {x.dtype for x in features} == {torch.bfloat16}
    assert all(x.is_contiguous(memory_format=torch.channels_last_3d) for x in features)


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options",
    [{"kernel": 5}, {"stage_convs": "paper"}, {"residual": False}, {"norm": "batch"}, {"norm": "group"}],
    ids=lambda options: str(next(iter(options.values()))),
)
def test_every_option_trains_every_parameter(options):
    network = tiny(levels=4, **options).train()
    output = network(scan(2, 1, 8, 16, 8))
    sum(x.log_softmax(1)[:, 1:].square().mean() for x in [output["logits"], *output["deep"]]).backward()
    assert [
        key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []
    kind = {"batch": nn.BatchNorm3d, "group": nn.GroupNorm}.get(options.get("norm", "instance"), InstanceNorm)
    assert isinstance(network.encoder[0].units[0].norm, kind)


def test_without_deep_supervision_only_the_finest_level_predicts():
    with_it, without = tiny(levels=4).train(), tiny(levels=4, deep_supervision=False).train()
    image = scan(1, 1, 8, 8, 8)
    assert len(with_it(image)["deep"]) == 1
    assert without(image)["deep"] == [] and len(without.heads) == 1


def test_the_output_is_not_normalised_per_patch():
    """A patch may be full of a structure or empty of it: its logits are free to lie on one side."""
    assert not [m for m in tiny().heads.modules() if isinstance(m, InstanceNorm)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"kernel": 4}, r"no kernel '4'. Choose one of 3, 5"),
        ({"stage_convs": "papr"}, r"no stage_convs 'papr'.*did you mean 'paper'\?"),
        ({"norm": "instanse"}, r"no norm 'instanse'.*did you mean 'instance'\?"),
        ({"max_channels": 1}, r"max_channels=1 must be 2 or more"),
    ],
)
def test_impossible_options_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        tiny(**bad)
