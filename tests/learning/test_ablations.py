"""Settings that leave out or exchange one part of a method, as `--set model.X=...` chooses them.

Each takes part in a training step and comes back from a checkpoint; then what makes it different. All inputs
are synthetic: noise, balls, flat organs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from ctseg import config
from ctseg.errors import UsageError
from ctseg.learning.losses import passes_loss, segmentation_loss
from ctseg.prediction import guide_input
from ctseg.prediction.predictor import load_predictor
from ctseg.runtime import checkpoints
from models import OPTIONS, PRESETS, build_network
from models.anatomy_guidance import DELIVERED_TAU_MM, SMOOTHING_MM, GuideForm, GuideOptions
from models.context_distance import REACH, signed_distances
from models.multi_decoder import CrossDecoderAttention
from models.multipass import MultiPass, PassOptions

N_ORGANS = 2
N_GUIDE = N_ORGANS * (len(guide_input.TAUS_MM) + 1)
SMALL = {"width": 4, "levels": 3, "blocks": "1,1,1", "kernel": 3, "guide_hidden": 4}


def arch(model: str, **settings) -> dict:
    """What train.py hands to build_network, from settings as the command line gives them."""
    chosen = {f"model.{key}": value for key, value in {**SMALL, "name": model, **settings}.items()}
    return {"n_structures": 2, "guide_channels": N_GUIDE, **config.resolve(None, chosen).record()["model"]}


def network_of(model: str, *, seed: int = 0, **settings) -> nn.Module:
    """A small network with known weights."""
    torch.manual_seed(seed)
    return build_network(**arch(model, **settings))


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Synthetic values 0..1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def flat_guide(size: tuple[int, int, int] = (16, 16, 24)) -> Tensor:
    """Synthetic (1, K', D, H, W) as the data layer makes it: 2 mm voxels, an organ that fills W from 10 on,
    and one that is not there.
    """
    along = (9.5 - torch.arange(size[2])) * 2.0
    distance_mm = torch.stack((along.expand(size), torch.full(size, 300.0)))
    return guide_input.guide_channels(distance_mm, torch.tensor([True, False]))[None]


def inputs_of(network: nn.Module) -> list[Tensor]:
    image = noise(1, 1, 16, 16, 24)
    return [image, flat_guide()] if "guide" in network.inputs else [image]


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ---------------------------------------------------------------- every setting

CHANGES = [
    ("multi_decoder", {"decoders": "shared"}),
    (
        "multi_decoder",
        {"decoders": "shared", "passes": 2, "guidance": "sdm", "connectivity": "multitask", "remap": "lut"},
    ),
    ("multi_decoder", {"attention_levels": 2}),
    ("multi_decoder", {"attention_levels": 2, "passes": 2, "guidance": "sdm"}),
    ("multi_decoder", {"output": "sigmoid"}),
    (
        "multi_decoder",
        {"output": "sigmoid", "decoders": "shared", "passes": 2, "guidance": "sdm", "remap": "lut"},
    ),
    ("unet", {"activation": "prelu"}),
    ("multi_decoder", {"activation": "prelu"}),
    ("multipass_unet", {"context": "sdm"}),
    ("multipass_unet", {"shared_passes": "false"}),
    ("multipass_unet", {"shared_passes": "false", "passes": 3, "guidance": "sdm", "remap": "lut_linear"}),
    ("multipass_unet", {"context_grad": "through", "context_corruption": 0}),
    ("multipass_unet", {"context_corruption": 1}),
    ("multipass_unet", {"pass_embedding": "false"}),
    ("vnet", {"norm": "group"}),
    ("vnet", {"norm": "batch"}),
    ("vnet", {"residual": "no"}),
    ("vnet", {"deep_supervision": "no"}),
    ("anatomy_guided_unet", {"guidance": "segmap"}),
    ("anatomy_guided_unet", {"guidance": "segmap", "guide_presence": "no", "backbone": "multi_decoder"}),
    ("anatomy_guided_unet", {"guide_levels": "top"}),
    ("anatomy_guided_unet", {"guide_levels": "bottom"}),
    ("anatomy_guided_unet", {"film_init": "default"}),
    ("anatomy_guided_unet", {"guide_tau_mm": "60"}),
    ("anatomy_guided_unet", {"guide_presence": "no"}),
    (
        "anatomy_guided_unet",
        {"guidance": "concat_input", "guide_tau_mm": "10,30,100", "guide_presence": "no"},
    ),
    *((preset, {"stem": "2"}) for preset in PRESETS),
    ("multi_decoder", {"stem": "2", "decoders": "shared"}),
    ("anatomy_guided_unet", {"stem": "2", "guidance": "concat_input", "passes": "2", "backbone": "vnet"}),
]


@pytest.mark.parametrize(
    ("model", "changes"),
    CHANGES,
    ids=lambda value: value if isinstance(value, str) else "+".join(f"{k}={v}" for k, v in value.items()),
)
def test_it_trains_a_step_and_comes_back_from_its_weights(model, changes):
    network = network_of(model, **changes).train()
    inputs = inputs_of(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    label = torch.zeros(1, 16, 16, 24, dtype=torch.uint8)
    label[:, 2:9, 3:12, 4:9], label[:, 9:14, 8:14, 7:15] = 1, 2
    outputs = network(*inputs)
    loss, dice = passes_loss(outputs, label=label, labelled=torch.ones(1, 2, dtype=torch.bool))
    sum(
        (loss, *(outputs[key].square().mean() for key in ("centreline", "radius") if key in outputs))
    ).backward()
    optimizer.step()
    assert loss.isfinite() and dice.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert any(not torch.equal(value, before[key]) for key, value in network.state_dict().items())
    copy = network_of(model, seed=1, **changes).eval()
    copy.load_state_dict(network.state_dict(), strict=True)
    with torch.inference_mode():
        expected, found = network.eval()(*inputs), copy(*inputs)
    assert torch.equal(found["logits"], expected["logits"]) and set(found) <= {"logits", "passes"}


def test_settings_and_networks_have_the_same_options_words_and_defaults():
    """They cannot import each other: `models/` knows no settings, and `--help` no torch."""
    of_networks, defaults = {}, {}
    for kind in OPTIONS:
        of_networks |= get_type_hints(kind)
        defaults |= {field.name: field.default for field in dataclasses.fields(kind)}
    of_settings = get_type_hints(config.ModelSettings)
    assert set(of_settings) - set(of_networks) == {"name"}
    assert set(of_networks) - set(of_settings) == {"n_structures", "in_channels"}
    from_preset = {"backbone", "passes", "guidance", "connectivity", "remap"}
    for key in set(of_settings) & set(of_networks):
        words, known = get_args(of_settings[key]), get_args(of_networks[key])
        if get_origin(of_networks[key]) is Literal:
            more = {"auto"} | ({"sdm"} if key == "guidance" else set())  # film_spatial has two names
            more = more if key in from_preset else {0} if key == "stem" else set()  # 0: planned
            assert set(words) - more == set(known), key
        if key not in from_preset and defaults[key] is not dataclasses.MISSING:
            assert getattr(config.ModelSettings(), key) == defaults[key], key
    assert all(getattr(config.ModelSettings(), key) in ("auto", 0) for key in from_preset)


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("decoders", "share", "shared"),
        ("attention_levels", "3", "1, 2"),
        ("output", "sigmoids", "sigmoid"),
        ("context", "sdf", "sdm"),
        ("context_grad", "trough", "through"),
        ("context_corruption", "2", "0 to 1"),
        ("norm", "instant", "instance"),
        ("guidance", "segmaps", "segmap"),
        ("guide_levels", "tops", "top"),
        ("film_init", "zeros", "zero"),
        ("guide_tau_mm", "", "20,100"),
        ("guide_tau_mm", "20,nan", "1 to 1000"),
    ],
)
def test_wrong_values_are_refused_with_a_remedy(key, value, hint):
    with pytest.raises(UsageError) as caught:
        config.resolve(None, {f"model.{key}": value})
    assert caught.value.code == "BAD_VALUE" and hint in str(caught.value)


# ---------------------------------------------------------------- multi_decoder


@pytest.mark.parametrize(
    ("n_structures", "width", "levels"), [(3, 16, 5), (3, 8, 5), (2, 4, 3), (10, 8, 4), (1, 8, 3), (4, 4, 2)]
)
def test_shared_decoder_has_the_parameters_of_all(n_structures, width, levels):
    with torch.device("meta"):
        each, shared = (
            build_network(
                "multi_decoder", n_structures=n_structures, width=width, levels=levels, decoders=form
            )
            for form in ("per_structure", "shared")
        )
    assert abs(count(shared) / count(each) - 1) < 0.1
    assert shared.n_decoders == 1 and len(shared.decoders) == 1 and shared.attention is None
    assert (shared.decoder_channels == each.decoder_channels) == (n_structures == 1)


def test_all_heads_read_the_shared_decoder():
    network = network_of("multi_decoder", decoders="shared").train()
    output = network(noise(1, 1, 8, 8, 16))
    features, logits = output["features"], output["logits"]
    assert [tuple(x.shape[1:3]) for (x,) in features] == [
        (network.decoder_channels[0], 4),
        (network.decoder_channels[1], 8),
    ]
    head, (finest,) = network.heads[-1], features[-1]
    torch.testing.assert_close(
        logits, torch.cat([conv(finest) for conv in (head.background, *head.structures)], dim=1)
    )
    features[-1] = [finest + torch.eye(finest.shape[1])[0].view(1, -1, 1, 1, 1)]
    moved = (network.predict(features)["logits"] - logits).abs().amax((0, 2, 3, 4))
    assert (moved > 1e-4).all()


def test_second_level_of_attention_starts_as_nothing_and_then_carries_on():
    both, one = network_of("multi_decoder", attention_levels=2).train(), network_of("multi_decoder").train()
    one.load_state_dict(
        {key: value for key, value in both.state_dict().items() if not key.startswith("attention_before")}
    )
    image = noise(1, 1, 8, 8, 16)
    ours, theirs = both(image), one(image)
    assert torch.equal(ours["logits"], theirs["logits"]) and len(ours["deep"]) == len(theirs["deep"])
    assert isinstance(both.attention_before, CrossDecoderAttention)

    def heard() -> list[bool]:
        """Whether decoder 0 notices, level by level, that decoder 1 was changed at its coarsest."""
        hooks = [[lambda x: x] * 2, [lambda x: x + 1, lambda x: x]]
        plain, moved = (both(image, given)["features"] for given in (None, hooks))
        return [not torch.equal(a[0], b[0]) for a, b in zip(plain, moved)]

    assert heard() == [False, False]
    with torch.no_grad():
        both.attention_before.gate.fill_(0.5)
    assert heard() == [True, True]
    with pytest.raises(ValueError, match="attention_levels=2 must be 1, or 2 with levels=3"):
        build_network("multi_decoder", n_structures=2, width=4, levels=2, attention_levels=2)


def test_sigmoid_output_says_so_and_decides_as_sigmoids_do():
    network = network_of("multi_decoder", output="sigmoid", passes=2, guidance="sdm", remap="lut")
    output = network.train()(*inputs_of(network))
    assert output["independent"] is True and "independent" not in network.eval()(*inputs_of(network))
    assert "independent" not in network_of("multi_decoder").train()(noise(1, 1, 8, 8, 16))
    for logits in (output["logits"], *output["deep"], *output["passes"]):
        assert not logits[:, 0].any() and logits[:, 1:].any()
    probability, winner = output["logits"][:, 1:].sigmoid().max(1)
    decided = torch.where(probability > 0.5, winner + 1, 0)
    assert torch.equal(output["logits"].softmax(1).argmax(1), decided) and set(decided.unique().tolist()) == {
        0,
        1,
        2,
    }


def a_batch() -> dict[str, Tensor]:
    """Synthetic logits (2, 3, 4, 5, 6), their labels, and a case whose second structure was not annotated."""
    label = (3 * noise(2, 4, 5, 6, seed=1)).long()
    label[1][label[1] == 2] = 0
    return {
        "logits": 4 * noise(2, 3, 4, 5, 6) - 2,
        "label": label,
        "labelled": torch.tensor([[True, True], [True, False]]),
    }


def test_independent_loss_is_the_formula():
    batch = a_batch()
    p, truth = (
        batch["logits"][:, 1:].sigmoid().double(),
        functional.one_hot(batch["label"], 3).movedim(-1, 1)[:, 1:].double(),
    )
    entropy = -(truth * p.log() + (1 - truth) * (1 - p).log())
    entropy[1, 1] = 0
    dices = [
        2 * (p[:, 0] * truth[:, 0]).sum() / (p[:, 0] + truth[:, 0]).sum(),
        2 * (p[0, 1] * truth[0, 1]).sum() / (p[0, 1] + truth[0, 1]).sum(),
    ]
    wanted = {"ce": entropy.sum(1).mean(), "dice": 1 - sum(dices) / 2}
    wanted["dice_ce"] = wanted["ce"] + wanted["dice"]
    wanted["dice_focal"] = wanted["dice"] + (entropy * (1 - (-entropy).exp()) ** 2).sum(1).mean()
    for kind, value in wanted.items():
        loss, dice = segmentation_loss(**batch, kind=kind, independent=True)
        assert loss.item() == pytest.approx(value.item(), rel=1e-5), kind
        assert dice.tolist() == pytest.approx([d.item() for d in dices], rel=1e-5)


def test_structures_learn_independently_of_each_other_only_with_sigmoids():
    batch = a_batch()
    for independent in (True, False):
        gradients = []
        for other in (0.0, 3.0):
            logits = batch["logits"].clone()
            logits[:, 2] += other
            logits.requires_grad_()
            segmentation_loss(**{**batch, "logits": logits}, independent=independent)[0].backward()
            gradients.append(logits.grad)
        assert torch.equal(gradients[0][:, 1], gradients[1][:, 1]) == independent
        # the background has no logit of its own to learn
        assert bool(gradients[0][:, 0].any()) != independent
        # not annotated: nothing to learn, or to merge with the background
        assert bool(gradients[0][1, 2].any()) != independent


def test_deep_and_earlier_outputs_are_learned_independently_too():
    batch = a_batch()
    logits, small = batch["logits"], noise(2, 3, 2, 2, 3, seed=2)
    label, labelled = batch["label"], batch["labelled"]
    outputs = {"logits": logits, "deep": [small], "passes": [logits + 1, logits], "independent": True}
    loss, _ = passes_loss(outputs, label=label, labelled=labelled)
    coarse = functional.interpolate(label[:, None].float(), (2, 2, 3), mode="nearest-exact")[:, 0]

    def of(x: Tensor, reference: Tensor = label) -> Tensor:
        return segmentation_loss(logits=x, label=reference, labelled=labelled, independent=True)[0]

    torch.testing.assert_close(
        loss, 1 / 3 * of(logits + 1) + 2 / 3 * (of(logits) + of(small, coarse) / 2) / 1.5
    )


def test_sigmoid_network_overfits_one_tiny_phantom_under_softmax_prediction():
    label = torch.zeros(1, 16, 16, 16, dtype=torch.long)
    label[:, 2:7, 3:9, 2:6], label[:, 9:14, 8:14, 7:15] = 1, 2
    image = label.unsqueeze(1) * 0.4 + 0.1 * noise(1, 1, 16, 16, 16)
    network = network_of("multi_decoder", output="sigmoid").train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        passes_loss(network(image), label=label, labelled=torch.ones(1, 2, dtype=torch.bool))[0].backward()
        optimizer.step()
    prediction = network.eval()(image)["logits"].softmax(1).argmax(1)
    for structure in (1, 2):
        overlap = ((prediction == structure) & (label == structure)).sum()
        assert 2 * overlap / ((prediction == structure).sum() + (label == structure).sum()) > 0.9


# ---------------------------------------------------------------- passes


def ball(size: tuple[int, int, int], centre: tuple[int, int, int], radius: float) -> Tensor:
    axes = torch.meshgrid(*[torch.arange(n) for n in size], indexing="ij")
    return sum((axis - c) ** 2 for axis, c in zip(axes, centre)) <= radius**2


def test_signed_distances_are_euclidean_negative_inside_and_clipped():
    size = (30, 50, 40)
    masks = torch.stack(
        (ball(size, (14, 20, 18), 9), ball(size, (3, 40, 5), 4), torch.zeros(size) > 0, torch.ones(size) > 0)
    )[None]
    found = signed_distances(masks)
    assert (
        found.shape == masks.shape and found.dtype == torch.float32 and found.min() == -1 and found.max() == 1
    )
    assert (found[0, 2] == 1).all() and (found[0, 3] == -1).all()  # nothing there, nothing else there
    for mask, values in zip(masks[0, :2].numpy(), found[0, :2].numpy()):
        signed = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
        expected = np.clip((signed - np.sign(signed) / 2) / (REACH - 0.5), -1, 1)
        np.testing.assert_allclose(values, expected, atol=1e-6)
        assert (values[mask] < 0).all() and (values[~mask] > 0).all()


def test_surface_lies_between_the_voxels():
    mask = (torch.arange(40) >= 20).expand(1, 1, 2, 3, 40)
    line = signed_distances(mask)[0, 0, 1, 2] * (REACH - 0.5)
    assert line[17:23].tolist() == pytest.approx([2.5, 1.5, 0.5, -0.5, -1.5, -2.5])
    assert signed_distances(mask, reach=2)[0, 0, 1, 2].tolist() == pytest.approx(
        [1.0] * 19 + [1 / 3, -1 / 3] + [-1.0] * 19
    )


def test_a_pass_reads_the_shape_of_the_one_before():
    network = network_of("multipass_unet", context="sdm").eval()
    read, image = [], noise(1, 1, 8, 8, 16)
    network.network.register_forward_pre_hook(lambda part, inputs: read.append(inputs[0][:, 1:]))
    shape = ball((8, 8, 16), (4, 4, 6), 3)
    context = torch.stack((0.8 * shape, 0.1 * shape))[None]
    results = [
        network(image, context=given, pass_number=1)["logits"]
        for given in (context, torch.zeros_like(context), None)
    ]
    torch.testing.assert_close(read[0], signed_distances(torch.stack((shape, shape & False))[None]))
    # blank: as after an empty prediction
    assert torch.equal(read[1], torch.ones_like(context)) and torch.equal(read[2], read[1])
    assert torch.equal(results[1], results[2]) and not torch.equal(results[0], results[1])


@pytest.mark.parametrize("remap", ["none", "lut"])
def test_each_pass_has_its_own_network_when_asked(remap):
    network = network_of(
        "multipass_unet",
        passes=3,
        shared_passes=False,
        pass_embedding=False,
        context_corruption=0,
        remap=remap,
    )
    together = network_of("multipass_unet", passes=3, pass_embedding=False)
    assert count(network) == 3 * count(together)
    passes = network if isinstance(network, MultiPass) else network.network
    image, context = noise(1, 1, 8, 8, 16), noise(1, 2, 8, 8, 16, seed=1) / 2
    parts = [passes.network, *passes.later]
    with torch.no_grad():
        plain = [network.eval()(image, context=context, pass_number=number)["logits"] for number in range(5)]
        # the last serves what follows
        assert [torch.equal(a, b) for a, b in itertools.pairwise(plain)] == [False, False, True, True]
        for logits, part in zip(plain, parts):  # a remap that changes nothing still rounds
            torch.testing.assert_close(
                logits, part(torch.cat((image, context), dim=1))["logits"], atol=1e-3, rtol=1e-3
            )
        chain = network.train()(image)["passes"]
        assert len(chain) == 3
        torch.testing.assert_close(
            chain[0],
            parts[0](torch.cat((image, torch.zeros_like(context)), 1))["logits"],
            atol=1e-3,
            rtol=1e-3,
        )
    for drawn in (1, 2, 3):
        network.zero_grad()
        passes.draw_passes = drawn
        passes_loss(
            network(image), label=(3 * noise(1, 8, 8, 16)).long(), labelled=torch.ones(1, 2, dtype=torch.bool)
        )[0].backward()
        assert [any(p.grad is not None for p in part.parameters()) for part in parts] == [
            number < drawn for number in range(3)
        ]


def test_networks_for_other_numbers_of_passes_are_refused():
    inside = [build_network("unet", n_structures=2, width=4, levels=2, in_channels=3) for _ in range(2)]
    with pytest.raises(ValueError, match="1 networks for later passes; expected none or n_train - 1 = 2"):
        MultiPass(inside[0], 2, PassOptions(passes=3), inside[1:])


def test_settings_of_the_context_reach_the_passes():
    chosen = network_of("multipass_unet", context_grad="through", context_corruption=0.5, pass_embedding="no")
    assert (chosen.options.context_grad, chosen.options.context_corruption) == ("through", 0.5)
    assert not len(chosen.biases)
    usual = network_of("multipass_unet")
    assert (usual.options.context_grad, usual.options.context_corruption) == ("detach", 0.3)
    assert len(usual.biases) == 1


# ---------------------------------------------------------------- vnet


def test_settings_of_the_vnet_reach_it():
    def kinds(network: nn.Module) -> set[str]:
        return {type(module).__name__ for module in network.modules() if "Norm" in type(module).__name__}

    assert [kinds(network_of("vnet", norm=norm)) for norm in ("instance", "group", "batch")] == [
        {"InstanceNorm"},
        {"GroupNorm"},
        {"BatchNorm3d"},
    ]
    image = noise(1, 1, 16, 16, 16)
    deep, finest = (
        network_of("vnet", levels=4, blocks="1,1,1,1", deep_supervision=on).train() for on in (True, False)
    )
    assert len(deep(image)["deep"]) == 1 and finest(image)["deep"] == []
    plain, usual = network_of("vnet", residual=False).eval(), network_of("vnet").eval()
    plain.load_state_dict(usual.state_dict())
    assert not torch.allclose(plain(image)["logits"], usual(image)["logits"], atol=1e-3)
    # of vnet alone
    assert count(network_of("unet", norm="batch", residual=False, deep_supervision=False)) == count(
        network_of("unet")
    )


# ---------------------------------------------------------------- guides


def test_networks_know_the_channels_that_the_data_layer_makes(monkeypatch):
    assert DELIVERED_TAU_MM == guide_input.TAUS_MM
    distance_mm = (
        torch.tensor([-120.0, -8.0, 0.0, 3.0, 55.0, 299.0, 12.0]).view(1, 1, 1, 7).repeat(2, 2, 3, 1)
    )
    presence = torch.tensor([True, False])
    guide = guide_input.guide_channels(distance_mm, presence, scale=1.25)[None]
    for taus in ((20.0,), (100.0,), (60.0,), (10.0, 30.0, 100.0)):
        with monkeypatch.context() as patch:
            patch.setattr(guide_input, "TAUS_MM", taus)
            made = guide_input.guide_channels(distance_mm, presence, scale=1.25)[None]
        for there in (True, False):
            form = GuideForm(6, GuideOptions(guide_tau_mm=taus, guide_presence=there))
            expected = made if there else made[:, :-2]
            assert form.channels == expected.shape[1]
            torch.testing.assert_close(form(guide), expected, atol=2e-5, rtol=1e-4)
    assert GuideForm(6)(guide) is guide
    assert GuideForm(6)(guide).shape == GuideForm(6, GuideOptions(guide_tau_mm=(20.0, 99.0)))(guide).shape
    with pytest.raises(ValueError, match="guide_channels=7 must be 3 per organ"):
        GuideForm(7, masks=True)
    with pytest.raises(ValueError, match=r"guide_tau_mm=\(0.0,\) must be"):
        GuideForm(6, GuideOptions(guide_tau_mm=(0.0,)))


def test_smoothed_masks_are_what_a_gaussian_makes_of_the_organ():
    form = GuideForm(N_GUIDE, masks=True)
    masks = form(flat_guide())
    assert form.channels == masks.shape[1] == 2 * N_ORGANS and masks.isfinite().all()
    organ = (np.arange(24) >= 10).astype(float)
    voxel_mm = 2.0
    expected = ndimage.gaussian_filter1d(organ, SMOOTHING_MM / voxel_mm, mode="nearest", truncate=8)
    # the filter sums, where the network integrates
    np.testing.assert_allclose(masks[0, 0, 3, 4].numpy(), expected, atol=0.02)
    assert not masks[0, 1].any()  # not there
    assert masks[0, 2:, 0, 0, 0].tolist() == [1, 0]
    assert GuideForm(N_GUIDE, GuideOptions(guide_presence=False), masks=True).channels == N_ORGANS
    # half a voxel outside: 0.309
    assert 0.5 * math.erfc(1 / math.sqrt(2)) == pytest.approx(
        form(flat_guide())[0, 0, 0, 0, 9].item() - 0.15, abs=0.01
    )


@pytest.mark.parametrize("backbone", ["unet", "vnet", "multi_decoder"])
def test_smoothed_masks_begin_as_nothing_and_differ_from_distances(backbone):
    segmap, film = (
        network_of("anatomy_guided_unet", backbone=backbone, guidance=form)
        for form in ("segmap", "film_spatial")
    )
    inputs = inputs_of(segmap)
    assert torch.equal(segmap.eval()(*inputs)["logits"], segmap.network(inputs[0])["logits"])
    assert segmap.guide_channels == film.guide_channels == N_GUIDE
    assert (
        segmap.levels["0"].shared.in_channels == 2 * N_ORGANS
        and film.levels["0"].shared.in_channels == N_GUIDE
    )
    open_film = network_of(
        "anatomy_guided_unet", backbone=backbone, guidance="segmap", film_init="default"
    ).eval()
    plain, guided = open_film.network(inputs[0])["logits"], open_film(*inputs)["logits"]
    assert not torch.allclose(plain, guided, atol=1e-3)
    # far from any surface masks are constant and distances are not
    seen = [network.read(inputs[1])[0, :N_ORGANS, 0, 0] for network in (segmap, film)]
    assert [bool((x.diff(dim=1)[:, -4:].abs() > 1e-4).any()) for x in seen] == [False, True]


def test_lengths_and_presence_change_what_the_network_reads():
    inputs = inputs_of(network_of("anatomy_guided_unet"))
    results = []
    for changes in ({}, {"guide_tau_mm": "40,100"}, {"guide_tau_mm": "60"}, {"guide_presence": "no"}):
        network = network_of("anatomy_guided_unet", film_init="default", **changes).eval()
        results.append((network.levels["0"].shared.in_channels, network(*inputs)["logits"]))
    assert [channels for channels, _ in results] == [6, 6, 4, 4]
    assert not torch.equal(results[0][1], results[1][1])  # the same weights, other maps
    hidden = network_of("anatomy_guided_unet", film_init="default", guide_presence="no").eval()
    other = inputs[1].clone()
    other[:, -N_ORGANS:] = 1 - other[:, -N_ORGANS:]
    assert torch.equal(hidden(inputs[0], inputs[1])["logits"], hidden(inputs[0], other)["logits"])
    usual = network_of("anatomy_guided_unet", film_init="default").eval()
    assert not torch.equal(usual(inputs[0], inputs[1])["logits"], usual(inputs[0], other)["logits"])


@pytest.mark.parametrize(
    "changes", [{"guide_tau_mm": "10,60", "guide_presence": "no"}, {"guidance": "segmap"}]
)
def test_what_of_the_guide_is_read_travels_in_the_checkpoint(tmp_path, changes):
    """Whoever predicts makes the usual channels; the network of the checkpoint reads them as it was trained
    to.
    """
    settings = config.resolve(
        "cpu", {"train.patch_size": "16,16,24", "model.levels": 3, "train.precision": "fp32"}
    )
    chosen = arch("anatomy_guided_unet", film_init="default", **changes)
    torch.manual_seed(0)
    network = build_network(**chosen).eval()
    checkpoints.save(
        tmp_path / "best_model.pth",
        {
            "arch": chosen,
            "structures": ["a", "b"],
            "manifest_hash": "0",
            "splits_hash": "0",
            "synthetic": True,
            "preprocess": {"grid": "whole", "spacing_mm": None, "window_hu": [-250.0, 750.0], "settings": {}},
            "settings": {"model": {"levels": 3}, "train": settings.record()["train"]},
            "guide": {"organs": ["c", "d"]},
            "locator": None,
            "sides": None,
            "epoch": 1,
            "model": network.state_dict(),
            "largest_component": [],
        },
    )
    predictor = load_predictor(
        tmp_path / "best_model.pth",
        settings.evaluate,
        device="cpu",
        build_network=build_network,
        file="best_model.pth",
    )
    inputs, network = inputs_of(network), predictor.machine.place(network)
    with torch.inference_mode():
        assert torch.equal(predictor.network(*inputs)["logits"], network(*inputs)["logits"])
    assert predictor.takes_guide and predictor.network.read.tau_mm == network.read.tau_mm
    assert predictor.network.read.channels == network.read.channels == 4
