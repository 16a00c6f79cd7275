"""The backbones: laws that hold for every registered one, and what attention between decoders must and must
not do.

All inputs are synthetic: noise, or bright cubes in noise.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import BACKBONES, PRESETS, Parts, build_network
from models.blocks import (
    FULL_SIZE_CHANNELS,
    LEAKY_SLOPE,
    ConvUnit,
    InstanceNorm,
    Norm,
    PReLU,
    Size,
    Style,
    normalisation,
)
from models.multi_decoder import CrossDecoderAttention, StructureHeads
from models.published import PublishedNetwork

HALVED = " of half size"
ALONE = sorted(BACKBONES)  # each has a preset of its name, without techniques
ALL = [*ALONE, *(name + HALVED for name in ALONE)]
FORMS = ["voxel", "global_gate", "published"]


def tiny(name: str = "multi_decoder", *, n_structures: int = 3, seed: int = 0, **options) -> nn.Module:
    """A small network with known weights."""
    torch.manual_seed(seed)
    stem = 2 if name.endswith(HALVED) else 1
    options = {"width": 4, "levels": 3, "stem": stem, **options}
    return build_network(name.removesuffix(HALVED), n_structures=n_structures, **options)


def scan(*shape: int, seed: int = 0) -> Tensor:
    """A synthetic input (B, 1, D, H, W)."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def soft_dice(prediction: Tensor, reference: Tensor) -> Tensor:
    """(C,) from two (B, C, D, H, W)."""
    return 2 * (prediction * reference).sum((0, 2, 3, 4)) / (prediction + reference).sum((0, 2, 3, 4))


def open_gate(network: nn.Module, value: float = 0.5) -> nn.Module:
    """The network as after some training: attention takes part."""
    with torch.no_grad():
        network.attention.gate.fill_(value)
    return network


# ---------------------------------------------------------------- every network


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_structures", [1, 3])
@pytest.mark.parametrize("levels", [2, 3, 4])  # the coarsest decoder level does not predict
def test_logits_have_the_input_size_and_deep_ones_halve_it(name, n_structures, levels):
    network = tiny(name, n_structures=n_structures, levels=levels).train()
    output = network(scan(2, 1, 8, 24, 16))
    assert output["logits"].shape == (2, n_structures + 1, 8, 24, 16)
    expected = [(2, n_structures + 1, 8 // 2**i, 24 // 2**i, 16 // 2**i) for i in range(1, levels - 2)]
    assert [tuple(x.shape) for x in output["deep"]] == expected
    assert set(network.eval()(scan(1, 1, 8, 24, 16))) == {"logits"}


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_gets_a_gradient(name):
    network = tiny(name).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):  # the first step opens the gate of the attention
        optimizer.zero_grad()
        output = network(scan(2, 1, 16, 16, 16))
        sum(x.log_softmax(1)[:, 1:].square().mean() for x in [output["logits"], *output["deep"]]).backward()
        optimizer.step()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ALL)
def test_evaluation_is_deterministic_and_independent_of_the_batch(name):
    network = tiny(name).eval()
    one, other = scan(1, 1, 8, 8, 16), scan(1, 1, 8, 8, 16, seed=1)
    with torch.inference_mode():
        first = network(one)["logits"]
        assert torch.equal(first, network(one)["logits"])
        torch.testing.assert_close(
            network(torch.cat((one, other)))["logits"][:1], first, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", ALL)
def test_state_dict_round_trip(name, tmp_path):
    network, copy = tiny(name).eval(), tiny(name, seed=1).eval()
    image = scan(1, 1, 8, 8, 8)
    assert not torch.equal(network(image)["logits"], copy(image)["logits"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    copy.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True), strict=True)
    assert torch.equal(network(image)["logits"], copy(image)["logits"])


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_autocast_in_channels_last_stays_near_float32(name):
    network = tiny(name, width=8).train()
    image = scan(2, 1, 16, 16, 16)
    exact = network(image)["logits"]
    network = network.to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(image.contiguous(memory_format=torch.channels_last_3d))["logits"]
    rough.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    relative = (rough.float() - exact).norm() / exact.norm()
    assert rough.dtype == torch.bfloat16 and relative < 0.05


@pytest.mark.parametrize("name", ALL)
def test_one_voxel_at_the_bottom_works(name):
    network = tiny(name, levels=4).train()
    network(scan(1, 1, 8, 8, 8))["logits"].square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ALL)
def test_overfits_one_tiny_phantom(name):
    """Two bright cubes in noise, distinguished by brightness alone."""
    label = torch.zeros(1, 16, 16, 16, dtype=torch.long)
    label[:, 2:7, 3:9, 2:6], label[:, 9:14, 8:14, 7:15] = 1, 2
    image = (label.unsqueeze(1) * 0.4 + 0.1 * scan(1, 1, 16, 16, 16)).contiguous()
    network = tiny(name, n_structures=2, width=8).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    reference = functional.one_hot(label, 3).movedim(-1, 1)
    for _ in range(60):
        optimizer.zero_grad()
        logits = network(image)["logits"]
        loss = (
            functional.cross_entropy(logits, label) + 1 - soft_dice(logits.softmax(1), reference)[1:].mean()
        )
        loss.backward()
        optimizer.step()
    prediction = network.eval()(image)["logits"].argmax(1)
    for structure in (1, 2):
        overlap = ((prediction == structure) & (label == structure)).sum()
        assert 2 * overlap / ((prediction == structure).sum() + (label == structure).sum()) > 0.95


@pytest.mark.parametrize("name", ALL)
def test_interface_that_techniques_rely_on(name):
    network = tiny(name, levels=4, in_channels=2).train()
    assert network.inputs == ("image",) and network.passes == 1 and network.in_channels == 2
    assert network.n_decoders == (3 if name.startswith("multi_decoder") else 1)
    image = scan(2, 2, 8, 24, 16)
    output = network(image)
    features = output["features"]
    of_decoders = [level if isinstance(level, list) else [level] for level in features]
    assert [len(level) for level in of_decoders] == [network.n_decoders] * 3
    for i, (level, channels) in enumerate(zip(of_decoders, network.decoder_channels)):
        assert {tuple(x.shape) for x in level} == {
            (2, channels, 8 // 2 ** (2 - i), 24 // 2 ** (2 - i), 16 // 2 ** (2 - i))
        }
    assert torch.equal(network.predict(features)["logits"], output["logits"])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("in_channels", [3, 5])  # 5: more than the width
def test_every_input_channel_matters(name, in_channels):
    image = scan(1, in_channels, 8, 8, 8).requires_grad_()
    tiny(name, in_channels=in_channels)(image)["logits"][:, 1].square().sum().backward()
    assert bool((image.grad.abs().sum((0, 2, 3, 4)) > 0).all())


def per_decoder(network: nn.Module, hook) -> list:
    """hooks[decoder][level] out of hook(decoder, level)."""
    levels = range(len(network.decoder_channels))
    return [[hook(decoder, level) for level in levels] for decoder in range(network.n_decoders)]


@pytest.mark.parametrize("name", ALL)
def test_hooks_are_called_once_per_decoder_and_level_before_the_activation(name):
    network = tiny(name, n_structures=2, levels=4).eval()
    seen = {}

    def watch(decoder: int, level: int):
        def modulate(x: Tensor) -> Tensor:
            assert (decoder, level) not in seen
            # normalised, and not yet activated; beside the image nothing is
            beside_image = x.shape[1] == FULL_SIZE_CHANNELS + 1
            centred = beside_image or bool((x.mean((2, 3, 4)).abs() < 1e-3).all())
            seen[decoder, level] = (x.shape[1], x.shape[2], centred)
            return x

        return modulate

    image = scan(1, 1, 16, 16, 16)
    watched = network(image, hooks=per_decoder(network, watch))["logits"]
    assert seen == {
        (decoder, level): (channels, 16 // 2 ** (2 - level), True)
        for decoder in range(network.n_decoders)
        for level, channels in enumerate(network.decoder_channels)
    }
    assert torch.equal(watched, network(image)["logits"])


@pytest.mark.parametrize("name", ALL)
def test_a_hook_changes_its_own_decoder_from_its_level_on(name):
    network = tiny(name, n_structures=2, levels=4).eval()
    image, target = scan(1, 1, 16, 16, 16), network.n_decoders - 1

    def shift(decoder: int, level: int):
        return (lambda x: x + 1) if (decoder, level) == (target, 1) else (lambda x: x)

    network.train()
    plain, shifted = (network(image, hooks)["features"] for hooks in (None, per_decoder(network, shift)))
    for level, (before, after) in enumerate(zip(plain, shifted)):
        before, after = (x if isinstance(x, list) else [x] for x in (before, after))
        for decoder in range(network.n_decoders):
            same = decoder != target or level < 1
            assert torch.allclose(before[decoder], after[decoder], atol=1e-3) == same
    moved = network(image, hooks=per_decoder(network, shift))["logits"]
    assert not torch.allclose(moved, network(image)["logits"], atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_hooks_for_other_decoders_or_levels_are_refused(name):
    network = tiny(name, n_structures=2, levels=4).eval()
    right = per_decoder(network, lambda decoder, level: nn.Identity())
    for wrong in ([*right, right[0]], [of_decoder[:-1] for of_decoder in right]):
        with pytest.raises(ValueError, match=rf"for each of {network.n_decoders} decoders, 3"):
            network(scan(1, 1, 8, 8, 8), hooks=wrong)


@pytest.mark.parametrize("name", ALL)
def test_no_batch_normalisation_by_default(name):
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in tiny(name).modules())


@pytest.mark.parametrize(("name", "budget"), [("unet", 3e6), ("multi_decoder", 3e6)])
def test_parameter_budget_of_the_low_vram_profile(name, budget):
    network = build_network(name, n_structures=3, width=8, levels=5)
    assert sum(p.numel() for p in network.parameters()) < budget


def test_every_preset_names_a_known_backbone():
    assert {preset.backbone for preset in PRESETS.values()} <= set(BACKBONES)
    assert PRESETS["unet"] == Parts()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ALL)
def test_wrong_sizes_are_refused_with_the_nearest_legal_ones(name):
    network = tiny(name, levels=4)
    assert network.size_multiple == Size(3, 4, 4).multiple == 8
    with pytest.raises(ValueError, match=r"H=20,.*multiples of 8.*16 or 24"):
        network(scan(1, 1, 16, 20, 16))
    with pytest.raises(ValueError, match=r"W=5,.*nearest legal size is 8\."):
        network(scan(1, 1, 16, 16, 5))
    with pytest.raises(ValueError, match=r"shape \(1, 2, 8, 8, 8\); expected \(B, 1, D, H, W\)"):
        network(scan(1, 2, 8, 8, 8))


def test_unknown_names_are_refused_with_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"no model 'u-net'.*did you mean 'unet'\?"):
        tiny("u-net")
    with pytest.raises(ValueError, match=r"no model 'multidecoder'.*did you mean 'multi_decoder'\?"):
        tiny("multidecoder")
    with pytest.raises(ValueError, match=r"no attention 'voxels'.*did you mean 'voxel'\?"):
        tiny(attention="voxels")


@pytest.mark.parametrize(
    "bad", [{"n_structures": 0}, {"levels": 1}, {"width": 0}, {"attention_stride": 0}, {"blocks": (1, 2)}]
)
def test_impossible_numbers_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        tiny(**bad)


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("batch", [1, 3])
def test_instance_norm_equals_the_one_of_pytorch(batch):
    torch.manual_seed(0)
    ours, reference = InstanceNorm(4), nn.InstanceNorm3d(4, affine=True)
    with torch.no_grad():
        for ours_p, reference_p in zip((ours.weight, ours.bias), (reference.weight, reference.bias)):
            ours_p.normal_()
            reference_p.copy_(ours_p)
    x = 3 * torch.randn(batch, 4, 5, 6, 7) + 2
    torch.testing.assert_close(ours(x), reference(x))
    small = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
    result = ours(small)
    assert result.dtype == torch.bfloat16 and result.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(result.float(), reference(small.float()), rtol=0.02, atol=0.02)


def test_instance_norm_of_one_voxel_only_scales_and_shifts():
    norm = InstanceNorm(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([10.0, 0.0]))
    assert norm(torch.ones(1, 2, 1, 1, 1)).flatten().tolist() == [12.0, 3.0]


def test_conv_unit_modulates_between_normalisation_and_activation():
    unit = ConvUnit(1, 2, style=Style())
    result = unit(scan(1, 1, 4, 4, 4), lambda x: torch.full_like(x, -1.0))
    assert torch.equal(result, torch.full((1, 2, 4, 4, 4), -LEAKY_SLOPE))


def test_conv_unit_adds_the_shortcut_before_the_activation():
    unit, x = ConvUnit(1, 2, style=Style()), scan(1, 1, 4, 4, 4)
    shortcut = torch.full((1, 2, 4, 4, 4), -100.0)
    expected = functional.leaky_relu(unit.norm(unit.conv(x)) - 100, LEAKY_SLOPE)
    torch.testing.assert_close(unit(x, shortcut=shortcut), expected)
    assert expected.max() < 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_prelu_equals_the_one_of_pytorch(dtype, tolerance):
    ours, reference = PReLU(3), nn.PReLU(3).to(dtype)
    slopes = torch.tensor([0.5, -0.25, 2.0])
    results = []
    for module in (ours, reference):
        with torch.no_grad():
            module.weight.copy_(slopes)
        x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        y = module(x)
        (y.float() * torch.arange(6)).sum().backward()
        assert y.dtype == dtype
        results.append((y.float(), x.grad.float(), module.weight.grad.float()))
    for mine, theirs in zip(*results):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("channels", [8, 12, 5])
def test_every_normalisation_centres_the_batch(norm, channels):
    x = 3 * torch.randn(2, channels, 4, 5, 6, generator=torch.Generator().manual_seed(0)) + 2
    result = normalisation(Style(norm=norm), channels)(x)
    assert result.mean().abs() < 1e-4 and abs(result.std() - 1) < 1e-2


# ---------------------------------------------------------------- unet


def test_the_published_unet_counts_the_published_parameters():
    with torch.device("meta"):
        network = PublishedNetwork(1, 32, 3, in_channels=2, several=False)
    assert sum(p.numel() for p in network.parameters()) == 1_357_505


def test_the_published_unet_pools_and_has_one_logit_beside_a_zero_background():
    network = PublishedNetwork(1, 4, 3, in_channels=2, several=False).train()
    output = network(scan(2, 2, 8, 12, 16))
    assert output["logits"].shape == (2, 2, 8, 12, 16)
    assert not output["logits"][:, 0].any() and output["logits"][:, 1].any()
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(nn.MaxPool3d) == 2 and kinds.count(nn.BatchNorm3d) == kinds.count(nn.ReLU) == 10
    assert InstanceNorm not in kinds
    assert [m.stride for m in network.modules() if isinstance(m, nn.Conv3d)] == [(1, 1, 1)] * 11


# ---------------------------------------------------------------- multi_decoder


@pytest.mark.parametrize(("width", "parameters"), [(8, 2_765_067), (32, 44_181_027)])
def test_the_published_network_of_several_decoders_counts_its_parameters(width, parameters):
    with torch.device("meta"):
        network = PublishedNetwork(3, width, 5, several=True)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_published_network_of_several_decoders_has_batch_normalisation_and_a_zero_background():
    network = PublishedNetwork(3, 4, 3, several=True).train()
    output = network(scan(2, 1, 8, 8, 8))
    assert output["logits"].shape == (2, 4, 8, 8, 8)
    assert not output["logits"][:, 0].any() and output["logits"][:, 1:].any()
    assert any(isinstance(module, nn.BatchNorm3d) for module in network.modules())


@pytest.mark.parametrize("form", ["voxel", "global_gate"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_attention_starts_as_nothing_bit_for_bit(form, stride):
    attending = tiny(attention=form, attention_stride=stride).train()
    without = tiny(attention="none").train()
    without.load_state_dict(
        {key: value for key, value in attending.state_dict().items() if not key.startswith("attention.")}
    )
    image = scan(2, 1, 8, 16, 8)
    ours, theirs = attending(image), without(image)
    assert torch.equal(ours["logits"], theirs["logits"])
    assert all(torch.equal(a, b) for a, b in zip(ours["deep"], theirs["deep"]))
    assert not torch.equal(open_gate(attending)(image)["logits"], theirs["logits"])


def features_of(size: int, *, n_decoders: int, channels: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        functional.leaky_relu(torch.randn(1, channels, size, size, size, generator=generator), 0.01)
        for _ in range(n_decoders)
    ]


@pytest.mark.parametrize("form", ["voxel", "global_gate"])
@pytest.mark.parametrize("size", [16, 96])
def test_query_and_key_learn_after_one_step_at_any_size(form, size):
    torch.manual_seed(0)
    attention = CrossDecoderAttention(4, 3, form=form, stride=2)
    features = features_of(size, n_decoders=3, channels=4)
    target = features_of(size, n_decoders=3, channels=4)[::-1]  # each decoder is to become another one
    optimizer = torch.optim.AdamW(attention.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        attended, _ = attention(features)
        sum((a - t).square().mean() for a, t in zip(attended, target)).backward()
        optimizer.step()
    for part in (attention.query.weight, attention.key.weight, attention.identity):
        assert part.grad.isfinite().all() and part.grad.norm() > 1e-8


def test_published_attention_is_one_hot_at_full_size_and_learns_nothing():
    """The defect: logits summed over all voxels. At 96^3 each row of the weights is one-hot."""
    rows, gradients = {}, {}
    for form in ("published", "global_gate"):
        torch.manual_seed(0)
        attention = CrossDecoderAttention(8, 3, form=form, stride=1)
        _, weights = attention(features_of(96, n_decoders=3, channels=8))
        weights.square().sum().backward()
        rows[form], gradients[form] = weights.amax(3).mean().item(), attention.query.weight.grad.norm().item()
    assert rows["published"] > 0.99
    assert rows["global_gate"] < 0.9
    assert gradients["published"] < 1e-6 < gradients["global_gate"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("autocast", [False, True])
def test_rows_of_the_weights_sum_to_one_in_float32(form, autocast):
    network = tiny(attention=form).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _, weights = network.attention(network(scan(2, 1, 8, 8, 16))["features"][-1])
    voxels = 4 * 4 * 8 if form == "voxel" else 1
    assert weights.shape == (2, 4, 3, 3, voxels) and weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 4, 3, voxels))
    assert weights.std() > 0


def test_voxel_weights_equal_the_formula():
    """Written out for one voxel and one head, identity included."""
    torch.manual_seed(0)
    attention = CrossDecoderAttention(8, 3, form="voxel", stride=1)  # 4 heads of 2 channels
    features = features_of(3, n_decoders=3, channels=8)
    attended, weights = attention(features)
    assert all(torch.equal(a, f) for a, f in zip(attended, features))  # the gate is still closed
    head, (d, h, w) = slice(4, 6), (2, 0, 1)
    q = torch.stack([attention.query(f)[0, head, d, h, w] for f in features]) + attention.identity[:, head]
    k = torch.stack([attention.key(f)[0, head, d, h, w] for f in features]) + attention.identity[:, head]
    expected = (q @ k.T / 2**0.5).softmax(dim=1)
    torch.testing.assert_close(weights[0, 2, :, :, d * 9 + h * 3 + w], expected)
    with torch.no_grad():
        attention.gate.fill_(1.0)
    v = [attention.value(f) for f in features]
    a = weights[0].view(4, 3, 3, 1, 3, 3, 3)
    for n in range(3):
        mixed = sum((a[:, n, m] * v[m].view(4, 2, 3, 3, 3)).view(1, 8, 3, 3, 3) for m in range(3))
        torch.testing.assert_close(attention(features)[0][n], features[n] + attention.output(mixed))


@pytest.mark.parametrize("form", FORMS)
def test_permuting_the_structures_permutes_the_outputs(form):
    """The same weights under another order of structures give the same maps in that order."""
    order = [2, 0, 1]
    network, permuted = tiny(attention=form).eval(), tiny(attention=form, seed=1).eval()
    if form != "published":
        open_gate(network)
    state = network.state_dict()
    renamed = dict(state)
    for new, old in enumerate(order):
        for key, value in state.items():
            if key.startswith(f"decoders.{old}."):
                renamed[key.replace(f"decoders.{old}.", f"decoders.{new}.", 1)] = value
            elif f".structures.{old}." in key:
                renamed[key.replace(f".structures.{old}.", f".structures.{new}.")] = value
    if form != "published":
        renamed["attention.identity"] = state["attention.identity"][order]
    permuted.load_state_dict(renamed)
    image = scan(1, 1, 8, 16, 8)
    channels = [0, *(old + 1 for old in order)]
    torch.testing.assert_close(
        permuted(image)["logits"], network(image)["logits"][:, channels], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("form", [*FORMS, "none"])
def test_decoders_hear_each_other_only_through_attention(form):
    network = tiny(attention=form).eval()
    if form in ("voxel", "global_gate"):
        open_gate(network)
    *_, finest = network.train()(scan(1, 1, 16, 16, 16))["features"]
    network.eval()
    if (
        form == "published"
        # unscaled: with features of usual size each decoder reads one other alone, and that need not be the
        # one below
    ):
        finest = [0.1 * features for features in finest]
    before = network.predict([finest])["logits"]
    after = network.predict([[finest[0], torch.zeros_like(finest[1]), finest[2]]])["logits"]
    for other in (1, 3):  # channels of the structures whose own decoder was left alone
        assert torch.equal(before[:, other], after[:, other]) == (form == "none")
    assert not torch.equal(before[:, 2], after[:, 2])


def test_a_single_structure_has_nobody_to_attend_to():
    network = tiny(n_structures=1, attention="voxel")
    assert network.attention is None
    assert network.eval()(scan(1, 1, 8, 8, 8))["logits"].shape == (1, 2, 8, 8, 8)


def test_background_logit_reads_the_mean_of_all_decoders():
    heads = StructureHeads(4, 3)
    features = features_of(4, n_decoders=3, channels=4)
    expected = heads.background(sum(features) / 3)
    torch.testing.assert_close(heads(features)[:, :1], expected)


def coupled_scans(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Synthetic: cube A is bright; B, 3 rows and 4 columns on, has no trace in the image. (n, 1, 12^3), (n,
    2, 12^3).
    """
    image, masks = 0.3 * torch.randn(n, 1, 12, 12, 12, generator=generator), torch.zeros(n, 2, 12, 12, 12)
    for i in range(n):
        d, h, w = (int(torch.randint(1, high, (1,), generator=generator)) for high in (8, 5, 4))
        image[i, 0, d : d + 3, h : h + 3, w : w + 3] += 1.5
        masks[i, 0, d : d + 3, h : h + 3, w : w + 3] = 1
        masks[i, 1, d : d + 3, h + 3 : h + 6, w + 4 : w + 7] = 1
    return image, masks


def dice_of_b(attention: str, seed: int) -> float:
    """Dice of B on new synthetic scans, after a short training in which the decoder of B sees no image.

    Only through A's decoder can it know where B lies. (With the image in view it would find A by itself, and
    a better score would not show that anything was exchanged.) A sigmoid per structure: the shared background
    logit of a softmax would be another channel between them.
    """
    network = tiny(n_structures=2, levels=2, seed=seed, attention=attention).train()
    for block in network.decoders[1]:
        block.register_forward_pre_hook(
            lambda module, inputs: (torch.zeros_like(inputs[0]), torch.zeros_like(inputs[1]), *inputs[2:])
        )
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(80):
        image, masks = coupled_scans(4, generator)
        logits = network(image)["logits"][:, 1:]
        loss = (
            functional.binary_cross_entropy_with_logits(logits, masks)
            + 1
            - soft_dice(logits.sigmoid(), masks).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image, masks = coupled_scans(16, torch.Generator().manual_seed(99))
    with torch.inference_mode():
        prediction = network.eval()(image)["logits"][:, 2] > 0
    reference = masks[:, 1] > 0
    return float(2 * (prediction & reference).sum() / (prediction.sum() + reference.sum()))


def test_attention_carries_the_place_of_one_structure_to_another():
    assert dice_of_b("none", seed=0) < 0.1
    assert dice_of_b("voxel", seed=0) > 0.6


@pytest.mark.parametrize("name", ["unet", "multi_decoder"])
def test_a_residual_decoder_level_adds_what_it_reads(name):
    """With its convolution silenced a level still passes both inputs on; a plain one passes nothing."""
    passed = {}
    for unit in ("residual", "plain"):
        network = build_network(name, n_structures=2, width=4, levels=3, decoder_unit=unit).eval()
        decoder = network.decoder if name == "unet" else network.decoders[0]
        block = decoder[-1]
        torch.nn.init.zeros_(block.conv.conv.weight)
        below, skip = torch.rand(1, network.decoder_channels[-2], 4, 6, 8), torch.rand(1, 4, 8, 12, 16)
        with torch.inference_mode():
            passed[unit] = [
                float((block(below + shift, skip + other) - block(below, skip)).abs().max())
                for shift, other in ((1, 0), (0, 1))
            ]
    assert min(passed["residual"]) > 0.1 and max(passed["plain"]) == 0
