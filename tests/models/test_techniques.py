"""The techniques around the networks: several passes, guidance by anatomy, heads for connectivity, density
remap.

Laws of each one, what it may and may not change, and every combination of them with every backbone. All
inputs are synthetic: noise, or hand-made volumes.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import BACKBONES, PRESETS, build_network
from models import context_corruption as corruption
from models.anatomy_guidance import AnatomyGuidance, GuidedLevel, GuideOptions
from models.blocks import Backbone, Size
from models.connectivity import ConnectivityMultitask
from models.density_remap import LOOKUP_SIZE, DensityRemap
from models.multipass import MultiPass, PassOptions, agree

ALL = sorted(BACKBONES)
N_GUIDE = 3


def tiny(name: str = "unet", *, seed: int = 0, **options) -> nn.Module:
    """A small network with known weights."""
    torch.manual_seed(seed)
    small = {"n_structures": 2, "width": 4, "levels": 3, "blocks": (1, 1, 1), "kernel": 3, "guide_hidden": 4}
    return build_network(name, **{**small, **options})


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Synthetic values 0..1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def guided(backbone: str = "unet", **options) -> AnatomyGuidance:
    network = tiny(backbone=backbone, **{"guidance": "film_spatial", "guide_channels": N_GUIDE, **options})
    assert isinstance(network, AnatomyGuidance)
    return network


def multipass(**options) -> MultiPass:
    network = tiny("multipass_unet", **options)
    assert isinstance(network, MultiPass)
    return network


class Shell(Backbone):
    """A network with nothing inside, to count what a technique adds."""

    def __init__(self, decoder_channels: list[int], *, n_decoders: int = 1):
        super().__init__(Size(1, 1, 2), decoder_channels, n_decoders=n_decoders)


class Growing(Backbone):
    """Finds the bright voxels of the image, and the neighbours along W of what the context shows: 1 voxel per
    pass.
    """

    def __init__(self):
        super().__init__(Size(1, 1, 2, in_channels=2), [1])

    def forward(self, ct, hooks=None):
        image, context = ct[:, :1], ct[:, 1:]
        found = torch.maximum(image, functional.max_pool3d(context, (1, 1, 3), stride=1, padding=(0, 0, 1)))
        return {"logits": torch.cat((10 - 20 * found, 20 * found - 10), dim=1)}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ---------------------------------------------------------------- several passes


@pytest.mark.parametrize("backbone", ALL)
def test_first_pass_is_the_network_inside_given_a_blank_context(backbone):
    network = multipass(backbone=backbone).eval()
    image = noise(2, 1, 8, 12, 16)
    inside = network.network(torch.cat((image, torch.zeros(2, 2, 8, 12, 16)), dim=1))["logits"]
    assert torch.equal(network(image, pass_number=0)["logits"], inside)
    assert torch.equal(network(image)["passes"][0], inside)


@pytest.mark.parametrize("training", [True, False])
def test_last_pass_is_the_result_and_differs_from_the_first(training):
    network = multipass(passes=3).train(training)
    output = network(noise(1, 1, 8, 12, 16))
    assert output["passes"][-1] is output["logits"]
    assert len(output["passes"]) == 3 if training else len(output["passes"]) in (2, 3, 4)
    assert not torch.equal(output["passes"][0], output["logits"])
    assert ("deep" in output) == training


def test_a_smaller_number_of_passes_stays_with_the_weights():
    network = multipass(passes=3, infer_passes=4)
    network.pass_limit.fill_(2)
    again = multipass(passes=3, infer_passes=4).eval()
    again.load_state_dict(network.state_dict())
    assert again.passes == 2 and len(again(noise(1, 1, 8, 12, 16))["passes"]) == 2


def test_a_density_table_around_passes_knows_their_number():
    network = tiny("multipass_unet", remap="lut", infer_passes=4)
    network.network.pass_limit.fill_(1)
    assert network.passes == 1 and len(network.eval()(noise(1, 1, 8, 12, 16))["passes"]) == 1


@pytest.mark.parametrize(("context_grad", "reached"), [("detach", False), ("through", True)])
def test_gradient_through_the_context_only_when_asked(context_grad, reached):
    network = multipass(context_grad=context_grad, context_corruption=0.0).train()
    passes = network(noise(1, 1, 8, 12, 16))["passes"]
    passes[0].retain_grad()
    passes[1].square().mean().backward()
    assert (passes[0].grad is not None and bool(passes[0].grad.abs().sum() > 0)) == reached


def test_gradient_through_a_corrupted_context_is_finite():
    network = multipass(context_grad="through", context_corruption=1.0).train()
    for seed in range(4):
        torch.manual_seed(seed)
        network(noise(2, 1, 8, 12, 16))["logits"].square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_passes_driven_from_outside_are_those_inside():
    network = multipass(infer_passes=3).eval()
    image = noise(1, 1, 8, 12, 16)
    expected = network(image)["passes"]
    context = None
    for number, logits in enumerate(expected):
        output = network(image, context=context, pass_number=number)
        torch.testing.assert_close(output["logits"], logits)
        assert set(output) == {"logits"}
        context = output["logits"].softmax(1)[:, 1:]
    torch.testing.assert_close(network(image, context=expected[0].softmax(1)[:, 1:])["logits"], expected[1])


def test_hard_context_is_one_hot_and_zeros_is_blank():
    image, context = noise(1, 1, 8, 8, 8), noise(1, 2, 8, 8, 8, seed=1) / 2
    hard, soft, zeros = (multipass(context=form).eval() for form in ("hard", "soft", "zeros"))
    likely = torch.cat((1 - context.sum(1, keepdim=True), context), dim=1).argmax(1)
    one_hot = torch.stack((likely == 1, likely == 2), dim=1).float()
    assert torch.equal(hard(image, context=context)["logits"], soft(image, context=one_hot)["logits"])
    assert torch.equal(hard(image, context=one_hot)["logits"], hard(image, context=context)["logits"])
    assert torch.equal(zeros(image, context=context)["logits"], zeros(image, pass_number=1)["logits"])
    assert not torch.equal(soft(image, context=context)["logits"], soft(image, pass_number=1)["logits"])


def test_more_passes_than_trained_stop_when_nothing_changes():
    steady = multipass(context="zeros", infer_passes=8).eval()
    assert (steady.n_train, steady.passes) == (2, 8)
    assert len(steady(noise(1, 1, 8, 8, 8))["passes"]) == 2
    growing = MultiPass(Growing(), 1, PassOptions(infer_passes=6, pass_embedding=False)).eval()
    image = torch.zeros(1, 1, 2, 2, 16)
    image[..., 8] = 1
    assert [int(p.argmax(1).sum()) for p in growing(image)["passes"]] == [4, 12, 20, 28, 36, 44]
    image[..., 6:11] = 0
    image[..., 0] = 1
    image[..., 3:] = 1
    assert [int(p.argmax(1).sum()) for p in growing(image)["passes"]] == [56, 64, 64]


def test_result_of_a_sample_does_not_depend_on_the_others_in_its_batch():
    network = MultiPass(Growing(), 1, PassOptions(infer_passes=6, pass_embedding=False)).eval()
    image = torch.zeros(2, 1, 10, 12, 16)
    image[0] = 1
    image[0, 0, 0, 0, 1:] = (
        0  # grows by 1 voxel of 1905 per pass: agrees at once, though it would change again
    )
    image[1, 0, :, :, 3] = 1
    alone, together = network(image[:1]), network(image)
    assert (len(alone["passes"]), len(together["passes"])) == (2, 6)
    assert torch.equal(alone["logits"][0], together["logits"][0])
    assert not torch.equal(together["passes"][1][1], together["logits"][1])


def test_passes_agree_when_every_structure_has_almost_the_same_voxels():
    label = torch.zeros(2, 10, 10, 30, dtype=torch.long)
    label[:, :, :, :25] = 1  # 2500 voxels
    label[:, :, :, 29] = 2
    after = label.clone()
    after[0, 0, 0, :2] = 0  # Dice 4998/5000... of structure 1: 0.9996
    after[1, 0, 0, 29] = 0  # Dice of structure 2: 198/199 = 0.995
    # structure 3 is in neither
    before, after = (functional.one_hot(x, 4).movedim(-1, 1).float() for x in (label, after))
    assert agree(before, before).tolist() == [True, True]
    assert agree(before, after).tolist() == [True, False]
    nothing, something = before[:1, :, :, :, 25:26], before[:1, :, :, :, 29:]
    assert agree(nothing, nothing).tolist() == [True] and agree(nothing, something).tolist() == [False]


def test_bias_of_a_pass_starts_at_zero_and_passes_beyond_take_the_last():
    network = multipass(backbone="multi_decoder").eval()
    image, context = noise(1, 1, 8, 8, 8), noise(1, 2, 8, 8, 8)
    logits = [network(image, context=context, pass_number=number)["logits"] for number in range(4)]
    assert all(torch.equal(logits[0], other) for other in logits)
    assert [[tuple(level.shape) for level in decoder] for decoder in network.biases] == [[(2, 8), (2, 4)]] * 2
    with torch.no_grad():
        network.biases[1][0][1] = 1.0  # second decoder, coarse level, second pass
    changed = [network(image, context=context, pass_number=number)["logits"] for number in range(4)]
    assert torch.equal(changed[0], logits[0]) and not torch.equal(changed[1], logits[1])
    assert torch.equal(changed[1], changed[2]) and torch.equal(changed[1], changed[3])
    assert not list(multipass(pass_embedding=False).biases)


def test_fewer_passes_are_drawn_from_outside():
    network = multipass(passes=3).train()
    image = noise(1, 1, 8, 8, 8)
    assert len(network(image)["passes"]) == 3
    for drawn in (1, 2, 3):
        network.draw_passes = drawn
        assert len(network(image)["passes"]) == drawn
    network.draw_passes = 4
    with pytest.raises(ValueError, match="draw_passes=4 must be 1 to n_train=3"):
        network(image)
    network.draw_passes = 1
    assert len(network.eval()(image)["passes"]) > 1  # for training only


def test_training_contexts_are_corrupted_by_chance_and_others_never():
    image = noise(4, 1, 16, 16, 16)
    corrupt, never = multipass(context_corruption=1.0), multipass(context_corruption=0.0)
    with torch.no_grad():
        results = []
        for network, seed in ((never, 1), (never, 2), (corrupt, 1), (corrupt, 1), (corrupt, 2)):
            torch.manual_seed(seed)
            results.append(network.train()(image)["logits"])
        assert torch.equal(results[0], results[1]) and torch.equal(results[2], results[3])  # the seed decides
        assert not torch.equal(results[0], results[2]) and not torch.equal(results[2], results[4])
        assert torch.equal(never.eval()(image)["logits"], corrupt.eval()(image)["logits"])


def test_passes_refuse_what_does_not_fit():
    image = noise(1, 1, 8, 8, 8)
    network = multipass()
    with pytest.raises(
        ValueError, match=r"context has shape \(1, 3, 8, 8, 8\); expected .* = \(1, 2, 8, 8, 8\)"
    ):
        network(image, context=noise(1, 3, 8, 8, 8))
    with pytest.raises(ValueError, match="pass_number=-1"):
        network(image, pass_number=-1)
    with pytest.raises(ValueError, match="a guide is not wanted"):
        network(image, noise(1, 3, 8, 8, 8))
    with pytest.raises(ValueError, match="a guide is missing"):
        tiny("anatomy_guided_unet", passes=2, guide_channels=3)(image)
    with pytest.raises(ValueError, match=r"no context 'softt'.*did you mean 'soft'"):
        multipass(context="softt")


# ---------------------------------------------------------------- several passes, trained


def bars(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Synthetic (n, 1, 4, 16, 24) and labels: at four places a bar along W, or none; those with a bright end
    are the structure.

    The far end of a bar is 20 voxels from the mark, the small network below sees about 6: a pass can only
    carry on from where the one before got to. Bars are marked independently, so that nothing else tells.
    """
    generator = torch.Generator().manual_seed(seed)
    image = 0.2 * torch.randn(n, 1, 4, 16, 24, generator=generator)
    label = torch.zeros(n, 4, 16, 24, dtype=torch.long)
    for case, h in itertools.product(range(n), (1, 5, 9, 13)):
        kind = int(torch.randint(0, 3, (), generator=generator))
        if kind > 0:
            image[case, 0, 1:3, h : h + 2, 2:22] += 1
        if kind > 1:
            image[case, 0, 1:3, h : h + 2, 2:5] += 1.5
            label[case, 1:3, h : h + 2, 2:22] = 1
    return image, label


def dice_per_case(logits: Tensor, label: Tensor) -> Tensor:
    """(n,) for the only structure."""
    prediction, reference = logits.argmax(1) > 0, label > 0
    return (
        2 * (prediction & reference).sum((1, 2, 3)) / (prediction.sum((1, 2, 3)) + reference.sum((1, 2, 3)))
    )


@pytest.fixture(scope="module")
def tracer() -> MultiPass:
    """A two-pass network after a short training on bars.

    With the plain decoder: a residual one leaves the first pass less to be mended.
    """
    network = multipass(n_structures=1, levels=2, blocks=(1, 1), decoder_unit="plain").train()
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    for step in range(300):
        image, label = bars(4, step)
        first, second = network(image)["passes"]
        loss = 0.5 * functional.cross_entropy(first, label) + functional.cross_entropy(second, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def unseen_bars() -> tuple[Tensor, Tensor]:
    """24 cases that hold the structure and were not trained on."""
    image, label = bars(40, 10**6)
    there = label.flatten(1).any(1)
    return image[there][:24], label[there][:24]


@pytest.mark.slow
def test_second_pass_is_better_than_the_first(tracer, unseen_bars):
    image, label = unseen_bars
    with torch.inference_mode():
        first, second = (dice_per_case(logits, label) for logits in tracer(image)["passes"][:2])
    gain = second - first
    assert len(gain) == 24
    assert gain.mean() > 0.05 and gain.mean() > 3 * gain.std() / len(gain) ** 0.5  # paired
    assert (gain > 0).sum() > 3 * (gain < 0).sum()


@pytest.mark.slow
def test_context_is_used_and_not_copied(tracer, unseen_bars):
    image, label = unseen_bars
    true = (label[:, None] > 0).float()
    foreign = true.roll(1, 0)
    differ = (foreign != true).flatten(1).any(1)
    static = 0.2 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        blank = dice_per_case(tracer(image, pass_number=0)["logits"], label)
        helped = dice_per_case(tracer(image, context=true)["logits"], label)
        misled = dice_per_case(tracer(image, context=foreign)["logits"], label)
        copied = dice_per_case(tracer(static, context=true)["logits"], label)
    assert helped.mean() > blank.mean() + 0.05
    assert misled[differ].mean() < helped[differ].mean() - 0.05
    assert misled[differ].mean() < blank[differ].mean()
    assert copied.mean() < 0.5  # where the image shows nothing, a copy would score 1


# ---------------------------------------------------------------- corrupted contexts


def two_boxes() -> Tensor:
    """A synthetic context (2, 10, 12, 14): two boxes that do not touch, probability 0.9."""
    context = torch.zeros(2, 10, 12, 14)
    context[0, 1:5, 2:6, 3:9] = 0.9
    context[1, 6:9, 7:11, 2:12] = 0.9
    return context


@pytest.mark.parametrize(
    "mistake", [corruption.erased, corruption.resized, corruption.shifted, corruption.with_blob]
)
def test_a_corrupted_context_differs_and_holds_probabilities(mistake):
    context = two_boxes()
    for seed in range(20):
        torch.manual_seed(seed)
        result = mistake(context)
        assert result.shape == context.shape and not torch.equal(result, context)
        assert result.min() >= 0 and result.sum(0).max() <= 1 + 1e-6
    assert torch.equal(context, two_boxes())


def test_each_mistake_does_what_its_name_says():
    context, changes = two_boxes(), []
    point = torch.zeros_like(context)
    point[1, 5, 6, 7] = 1
    for seed in range(30):
        torch.manual_seed(seed)
        erased = corruption.erased(context)
        assert (erased <= context).all() and sum(not torch.equal(a, b) for a, b in zip(erased, context)) == 1
        torch.manual_seed(seed)
        (offset,) = (corruption.shifted(point)[1].nonzero() - point[1].nonzero()).abs().tolist()
        assert min(offset) >= 1 and max(offset) <= corruption.LARGEST_SHIFT
        torch.manual_seed(seed)
        blob = corruption.with_blob(context) - context
        assert sum(bool((x > 0).any()) for x in blob) == 1 and blob.max() <= 1
        torch.manual_seed(seed)
        changes.append(float(corruption.resized(context).sum() - context.sum()))
    assert min(changes) < 0 < max(changes)
    kinds = set()
    for seed in range(40):
        torch.manual_seed(seed)
        kinds.add(round(float(corruption.corrupted(context).sum()), 2))
    assert len(kinds) > 5


# ---------------------------------------------------------------- guidance by anatomy


@pytest.mark.parametrize("backbone", ALL)
@pytest.mark.parametrize(
    ("form", "stride"), [("film_spatial", 1), ("film_spatial", 2), ("film_global", 1), ("spade", 1)]
)
def test_guidance_starts_as_nothing_bit_for_bit(backbone, form, stride):
    network = guided(backbone, guidance=form, guide_stride=stride).train()
    image = noise(2, 1, 8, 12, 16)
    plain = network.network(image)
    for guide in (
        torch.zeros(2, N_GUIDE, 8, 12, 16),
        2 * noise(2, N_GUIDE, 8, 12, 16) - 1,
        torch.full((2, N_GUIDE, 8, 12, 16), 1000.0),
    ):
        output = network(image, guide)
        assert torch.equal(output["logits"], plain["logits"])
        assert all(torch.equal(a, b) for a, b in zip(output["deep"], plain["deep"]))
    assert torch.equal(network.eval()(image, guide)["logits"], network.network(image)["logits"])


@pytest.mark.parametrize("backbone", ALL)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_level_learns_after_one_step_and_what_is_shared_after_two(backbone, stride):
    network = guided(backbone, guide_stride=stride, levels=4, blocks=(1, 1, 1, 1)).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    image, guide = noise(2, 1, 16, 16, 16), 2 * noise(2, N_GUIDE, 16, 16, 16, seed=1) - 1
    assert sorted(network.levels) == ["0", "1", "2"]
    for step in (1, 2):
        optimizer.zero_grad()
        network(image, guide)["logits"].log_softmax(1)[:, 1:].square().mean().backward()
        shared = [level.shared.weight.grad for level in network.levels.values()]
        assert all(bool(g.abs().sum() > 0) == (step == 2) for g in shared)
        optimizer.step()
        for level in network.levels.values():
            assert len(level.gamma) == len(level.beta) == network.n_decoders
            assert all(bool(p.abs().sum() > 0) for p in (*level.gamma.parameters(), *level.beta.parameters()))


@pytest.mark.parametrize(
    ("channels", "added"), [([256, 128, 64, 32], 104_384), ([320, 256, 128, 64, 32], 143_680)]
)
def test_guidance_adds_as_many_parameters_as_its_formula(channels, added):
    assert count(AnatomyGuidance(Shell(channels), 21)) == added
    assert added == sum(27 * 21 * 32 + 32 + 2 * (32 * c + c) for c in channels)
    three = count(AnatomyGuidance(Shell(channels, n_decoders=3), 21))  # what is shared, once per level
    assert three == sum(27 * 21 * 32 + 32 + 3 * 2 * (32 * c + c) for c in channels)


def test_spade_counts_the_published_parameters():
    assert count(AnatomyGuidance(Shell([64, 32, 16]), 8, form="spade")) == 857_696


def test_a_level_scales_and_shifts_each_voxel_as_written():
    torch.manual_seed(0)
    level = GuidedLevel(N_GUIDE, 5, 2, "film_spatial", GuideOptions(guide_hidden=4, film_init="default"))
    guide, x = noise(1, N_GUIDE, 3, 4, 5), noise(1, 5, 3, 4, 5, seed=1)
    hooks = level(guide)
    hidden = functional.silu(level.shared(guide))
    for decoder, hook in enumerate(hooks):
        gamma, beta = level.gamma[decoder](hidden), level.beta[decoder](hidden)
        torch.testing.assert_close(hook(x), x * (1 + gamma) + beta)
    assert not torch.allclose(hooks[0](x), hooks[1](x))


def test_each_level_sees_the_mean_of_the_guide_over_its_voxels():
    network = guided(levels=4, blocks=(1, 1, 1, 1))
    guide = noise(1, N_GUIDE, 8, 16, 24)
    coarse, middle, fine = network._guide_of_each_level(guide)
    assert torch.equal(fine, guide)
    torch.testing.assert_close(middle, functional.avg_pool3d(guide, 2))
    torch.testing.assert_close(coarse, functional.avg_pool3d(guide, 4))
    halved = guided(levels=4, blocks=(1, 1, 1, 1), guide_stride=2)._guide_of_each_level(guide)
    assert [tuple(g.shape[2:]) for g in halved] == [(2, 4, 6), (4, 8, 12), (4, 8, 12)]


def test_computing_at_half_the_size_changes_little_for_a_smooth_guide():
    options = {"film_init": "default", "guide_hidden": 8}
    exact, cheap = guided(**options).eval(), guided(guide_stride=2, **options).eval()
    ramp = torch.linspace(-1, 1, 32).view(1, 1, 1, 1, -1).expand(1, N_GUIDE, 16, 16, 32)
    image = noise(1, 1, 16, 16, 32)
    with torch.no_grad():
        a, b, without = (
            exact(image, ramp)["logits"],
            cheap(image, ramp)["logits"],
            exact.network(image)["logits"],
        )
    inner = (..., slice(4, -4), slice(4, -4), slice(4, -4))  # at the edge the padding reaches twice as far
    assert (a - b)[inner].norm() < 0.1 * (a - without)[inner].norm()


@pytest.mark.parametrize(
    ("levels", "changed"), [("all", [True, True]), ("top", [False, True]), ("bottom", [True, True])]
)
def test_only_the_chosen_levels_are_guided(levels, changed):
    network = guided(guide_levels=levels, film_init="default").train()
    image, guide = noise(1, 1, 8, 8, 8), noise(1, N_GUIDE, 8, 8, 8)
    steered, plain = network(image, guide)["features"], network.network(image)["features"]
    differs = [not torch.equal(a, b) for a, b in zip(steered, plain)]
    assert differs == changed  # the finest level reads what is below it
    assert sorted(network.levels) == {"all": ["0", "1"], "top": ["1"], "bottom": ["0"]}[levels]


def test_global_form_ignores_where_the_guide_is():
    image, guide = noise(1, 1, 8, 8, 8), noise(1, N_GUIDE, 8, 8, 8)
    everywhere = guide.mean((2, 3, 4), keepdim=True).expand_as(guide)
    with torch.no_grad():
        for form, same in (("film_global", True), ("film_spatial", False)):
            network = guided(guidance=form, film_init="default").eval()
            a, b = network(image, guide)["logits"], network(image, everywhere)["logits"]
            assert torch.allclose(a, b, atol=1e-5) == same
            assert not torch.allclose(a, network(image, guide + 1)["logits"], atol=1e-3)


def test_concatenated_guide_is_input_of_the_first_convolution():
    network = guided(guidance="concat_input").eval()
    assert (network.in_channels, network.network.in_channels) == (1, 1 + N_GUIDE)
    assert len(network.levels) == 0
    image, guide = noise(1, 1, 8, 8, 8), noise(1, N_GUIDE, 8, 8, 8)
    assert torch.equal(
        network(image, guide)["logits"], network.network(torch.cat((image, guide), 1))["logits"]
    )
    assert not torch.equal(network(image, guide)["logits"], network(image, 1 - guide)["logits"])


def test_guides_of_any_float_type_and_under_autocast():
    network = guided(film_init="default", guide_stride=2, width=8).eval()
    image, guide = noise(1, 1, 16, 16, 16), (2 * noise(1, N_GUIDE, 16, 16, 16) - 1).half()
    with torch.no_grad():
        exact = network(image, guide)["logits"]
        with torch.autocast("cpu", torch.bfloat16):
            rough = network.to(memory_format=torch.channels_last_3d)(image, guide)["logits"]
    assert exact.dtype == torch.float32 and rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_guidance_refuses_what_does_not_fit():
    network, image = guided(), noise(1, 1, 8, 8, 8)
    with pytest.raises(
        ValueError, match=r"guide has shape \(1, 2, 8, 8, 8\); expected .* = \(1, 3, 8, 8, 8\)"
    ):
        network(image, noise(1, 2, 8, 8, 8))
    with pytest.raises(ValueError, match=r"guide has shape \(1, 3, 4, 4, 4\)"):
        network(image, noise(1, 3, 4, 4, 4))
    with pytest.raises(ValueError, match="guide is missing"):
        network(image, None)
    with pytest.raises(ValueError, match="needs a guide, but there is none: guide_channels=0"):
        tiny("anatomy_guided_unet")
    for bad in ({"guide_stride": 3}, {"guide_levels": "some"}, {"film_init": "ones"}, {"guidance": "film"}):
        with pytest.raises(ValueError, match=f"'{next(iter(bad.values()))}'"):
            guided(**bad)


# ---------------------------------------------------------------- guidance by anatomy, trained


def blob_patches(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Synthetic patches (n, 1, 8, 8, 16) of one blob each, their guides and labels: only a blob left of the
    organ counts.

    The organ lies 14 to 24 voxels off, outside the patch; a second organ 28 voxels to its right tells which
    side that is. The guide is tanh of the distance along W to each, over 20 voxels.
    """
    generator = torch.Generator().manual_seed(seed)
    image, label = (
        0.2 * torch.randn(n, 1, 8, 8, 16, generator=generator),
        torch.zeros(n, 8, 8, 16, dtype=torch.long),
    )
    guide = torch.zeros(n, 2, 8, 8, 16)
    for case in range(n):
        left = bool(torch.randint(0, 2, (), generator=generator))
        centre, far = (
            int(torch.randint(5, 11, (), generator=generator)),
            float(14 + 10 * torch.rand((), generator=generator)),
        )
        organ = centre - far if left else centre + far  # W grows towards the patient's left
        for channel, place in enumerate((organ, organ - 28)):
            guide[case, channel] = torch.tanh(((torch.arange(16) - place).abs() - 4) / 20)
        image[case, 0, 2:6, 2:6, centre - 2 : centre + 2] += 1
        label[case, 2:6, 2:6, centre - 2 : centre + 2] = int(left)
    return image, guide, label


def blobs_told_apart(guidance: str, steps: int) -> tuple[float, float]:
    """Share of 40 new blobs that are rightly taken or left, with their own guides and with those of other
    cases.
    """
    network = tiny(levels=2, n_structures=1, guidance=guidance, guide_channels=2, guide_hidden=8).train()
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)

    def logits_of(image: Tensor, guide: Tensor) -> Tensor:
        return network(image, guide)["logits"] if guidance != "none" else network(image)["logits"]

    for step in range(steps):
        image, guide, label = blob_patches(8, step)
        loss = functional.cross_entropy(logits_of(image, guide), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    image, guide, label = blob_patches(40, 10**6)
    with torch.inference_mode():
        # half of a blob
        taken = [logits_of(image, g).argmax(1).flatten(1).sum(1) > 32 for g in (guide, guide.roll(1, 0))]
    own, foreign = ((t == label.flatten(1).any(1)).float().mean().item() for t in taken)
    return own, foreign


def test_two_identical_blobs_are_told_apart_by_the_guide_alone():
    solved, shuffled = blobs_told_apart("film_spatial", 120)
    chance, _ = blobs_told_apart("none", 60)
    assert solved > 0.9
    assert shuffled < 0.7 and 0.3 < chance < 0.7


# ---------------------------------------------------------------- heads for connectivity


@pytest.mark.parametrize("backbone", ALL)
@pytest.mark.parametrize("n_structures", [1, 2])
def test_connectivity_heads_leave_the_logits_alone_and_go_when_predicting(backbone, n_structures):
    network = tiny(backbone=backbone, connectivity="multitask", n_structures=n_structures)
    assert isinstance(network, ConnectivityMultitask)
    image = noise(2, 1, 8, 12, 16)
    for training in (True, False):
        network.train(training)
        output, plain = network(image), network.network(image)
        assert torch.equal(output["logits"], plain["logits"])
        assert set(output) - set(plain) == ({"centreline", "radius"} if training else set())
    output = network.train()(image)
    assert output["centreline"].shape == output["radius"].shape == (2, n_structures, 8, 12, 16)
    assert output["radius"].min() >= 0 and output["centreline"].min() < 0


def test_connectivity_of_a_structure_is_read_from_its_own_decoder():
    network = tiny("multi_decoder", connectivity="multitask").train()
    image = noise(1, 1, 8, 8, 8)
    # the finest level of decoder 1 is silent
    other = [[nn.Identity()] * 2, [nn.Identity(), torch.zeros_like]]
    before, after = network(image), network(image, [[level[d] for level in other] for d in (0, 1)])
    for key in ("centreline", "radius"):
        assert torch.equal(before[key][:, 0], after[key][:, 0])
        assert not torch.equal(before[key][:, 1], after[key][:, 1])


# ---------------------------------------------------------------- density remap


def remapping(values=None, **options) -> DensityRemap:
    network = tiny("airway_multitask_unet", **options)
    assert isinstance(network, DensityRemap)
    if values is not None:
        network.set_lookup(values)
    return network


def test_remap_follows_its_table_and_clips_outside():
    image = torch.tensor([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5]).view(1, 1, 1, 1, -1)
    expected = torch.tensor([0.0, 0.0, 0.4, 0.8, 0.9, 1.0, 1.0]).view(1, 1, 1, 1, -1)
    torch.testing.assert_close(remapping([0, 0.8, 1]).remap(image), expected)
    torch.testing.assert_close(remapping().remap(image), image.clamp(0, 1))
    both = remapping([0, 0.8, 1], remap="lut_linear").remap(image)
    torch.testing.assert_close(both, torch.cat((expected, image), dim=1))


def test_table_of_sixteen_hu_bins_is_kept_exactly():
    values = torch.cat((torch.zeros(1), noise(89).cumsum(0)))
    values = values / values[-1]
    network = remapping(values)
    torch.testing.assert_close(network.remap(torch.linspace(0, 1, 90).view(1, 1, 1, 1, -1)).flatten(), values)
    assert network.lookup.shape == (LOOKUP_SIZE,) and (network.lookup.diff() > 0).all()


def test_remap_keeps_type_layout_and_rising_order():
    network = remapping([0, 0.7, 0.9, 1], remap="lut_linear")
    image = noise(2, 1, 4, 6, 8)
    exact = network.remap(image)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        result = network.remap(image.to(dtype).contiguous(memory_format=torch.channels_last_3d))
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), exact, rtol=0.02, atol=0.02)
    mixed = torch.cat((image, image), 1)[:, :1]  # a slice: not contiguous
    torch.testing.assert_close(network.remap(mixed), exact)
    assert (network.remap(torch.linspace(0, 1, 5000).view(1, 1, 1, 1, -1))[0, 0].diff() >= 0).all()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ([0.0, 0.5, 0.5, 1.0], "does not, after entry 1"),
        ([0.0, 0.6, 0.5, 1.0], "does not, after entry 1"),
        ([0.1, 0.5, 1.0], "from 0.1 to 1"),
        ([0.0, 0.5, 0.9], "from 0 to 0.9"),
        ([0.0, float("nan"), 1.0], "NaN"),
        ([0.0], "from 0 to 0"),
        ([[0.0, 1.0]], r"shape \(1, 2\)"),
    ],
)
def test_tables_that_do_not_rise_from_0_to_1_are_refused(values, complaint):
    network = remapping()
    before = network.lookup.clone()
    with pytest.raises(ValueError, match=complaint):
        network.set_lookup(values)
    assert torch.equal(network.lookup, before)


def test_table_travels_with_the_weights(tmp_path):
    network, fresh = remapping([0, 0.8, 1]).eval(), remapping(seed=1).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    fresh.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True), strict=True)
    image = noise(1, 1, 8, 8, 8)
    assert torch.equal(network(image)["logits"], fresh(image)["logits"])
    assert not torch.equal(network(image)["logits"], network.network(image)["logits"])
    assert torch.equal(network(image)["logits"], network.network(network.remap(image))["logits"])


# ---------------------------------------------------------------- presets and combinations


def chain(network: nn.Module) -> list[str]:
    """Names of the classes from outside to inside."""
    names = [type(network).__name__]
    while hasattr(network, "network"):
        network = network.network
        names.append(type(network).__name__)
    return names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unet", ["UNet"]),
        ("vnet", ["VNet"]),
        ("multi_decoder", ["MultiDecoder"]),
        ("multipass_unet", ["MultiPass", "UNet"]),
        ("anatomy_guided_unet", ["AnatomyGuidance", "UNet"]),
        ("airway_multitask_unet", ["DensityRemap", "ConnectivityMultitask", "UNet"]),
    ],
)
def test_presets_are_what_they_are_called(name, expected):
    assert chain(tiny(name, guide_channels=N_GUIDE)) == expected
    assert PRESETS[name].backbone in BACKBONES


def test_every_preset_is_tested():
    names = {
        "unet",
        "vnet",
        "multi_decoder",
        "multipass_unet",
        "anatomy_guided_unet",
        "airway_multitask_unet",
    }
    assert set(PRESETS) == names


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("multipass_unet", {"passes": 1}, ["UNet"]),
        ("unet", {"passes": 3}, ["MultiPass", "UNet"]),
        ("anatomy_guided_unet", {"guidance": "none"}, ["UNet"]),
        ("anatomy_guided_unet", {"backbone": "multi_decoder"}, ["AnatomyGuidance", "MultiDecoder"]),
        ("vnet", {"guidance": "sdm"}, ["AnatomyGuidance", "VNet"]),
        ("airway_multitask_unet", {"connectivity": "none"}, ["DensityRemap", "UNet"]),
        ("airway_multitask_unet", {"remap": "none", "backbone": "vnet"}, ["ConnectivityMultitask", "VNet"]),
        (
            "multipass_unet",
            {"guidance": "spade", "connectivity": "multitask", "remap": "lut_linear"},
            ["DensityRemap", "MultiPass", "AnatomyGuidance", "ConnectivityMultitask", "UNet"],
        ),
    ],
)
def test_settings_overrule_the_preset(name, options, expected):
    assert chain(tiny(name, guide_channels=N_GUIDE, **options)) == expected


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"backbone": "unett"}, r"no backbone 'unett'.*did you mean 'unet'"),
        (
            {"guidance": "flim_spatial", "guide_channels": 3},
            r"no guidance 'flim_spatial'.*did you mean 'film_spatial'",
        ),
        ({"connectivity": "multi"}, r"no connectivity 'multi'.*did you mean 'multitask'"),
        ({"remap": "luts"}, r"no remap 'luts'.*did you mean 'lut'"),
        ({"passes": 4}, "passes=4"),
        ({"passes": 2, "infer_passes": -1}, "infer_passes=-1"),
        ({"pases": 2}, r"no network option 'pases'.*did you mean 'passes'"),
        ({"passes": 2, "context_corruption": 2.0}, "corruption=2.0"),
        ({"passes": 2, "context_grad": "both"}, "no context_grad 'both'"),
    ],
)
def test_unknown_options_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        tiny(**options)


def test_techniques_keep_the_interface_of_the_network_inside():
    everything = {
        "passes": 2,
        "infer_passes": 5,
        "guidance": "concat_input",
        "guide_channels": N_GUIDE,
        "connectivity": "multitask",
        "remap": "lut_linear",
    }
    for backbone in ALL:
        plain, network = tiny(backbone=backbone), tiny(backbone=backbone, **everything)
        for name in ("in_channels", "size_multiple", "decoder_channels", "n_decoders"):
            assert getattr(network, name) == getattr(plain, name), name
        assert (plain.inputs, network.inputs) == (("image",), ("image", "guide"))
        assert (plain.passes, network.passes) == (1, 5)
        assert network.guide_channels == N_GUIDE
        inside = network.network.network.network.network
        assert inside.in_channels == 2 * 1 + 2 + N_GUIDE


def test_hooks_from_outside_reach_the_decoders_through_all_techniques():
    network = tiny(
        "multi_decoder",
        passes=2,
        guidance="sdm",
        guide_channels=N_GUIDE,
        connectivity="multitask",
        remap="lut",
    ).eval()
    seen = []

    def watch(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[1:3]))
        return x + 1

    image, guide = noise(1, 1, 8, 8, 8), noise(1, N_GUIDE, 8, 8, 8)
    plain = network(image, guide, pass_number=0)["logits"]
    hooked = network(image, guide, [[watch, watch]] * 2, pass_number=0)["logits"]
    assert seen == [(8, 4)] * 2 + [(4, 8)] * 2
    assert not torch.equal(plain, hooked)


SWITCHES = {
    "multipass": {"passes": 2},
    "anatomy_guidance": {"guidance": "sdm", "guide_channels": N_GUIDE},
    "connectivity_multitask": {"connectivity": "multitask"},
    "density_remap": {"remap": "lut_linear"},
}
SUBSETS = [subset for size in range(5) for subset in itertools.combinations(SWITCHES, size)]


@pytest.mark.parametrize("backbone", ALL)
@pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: "+".join(subset) or "plain")
def test_every_combination_trains_a_step_predicts_and_reloads(backbone, subset):
    options = {"backbone": backbone} | {
        key: value for name in subset for key, value in SWITCHES[name].items()
    }
    network = tiny(**options).train()
    assert network.inputs == (("image", "guide") if "anatomy_guidance" in subset else ("image",))
    shapes = {"image": (1, 1, 16, 16, 16), "guide": (1, N_GUIDE, 16, 16, 16)}
    inputs = [noise(*shapes[name]) for name in network.inputs]
    output = network(*inputs)
    assert output["logits"].shape == (1, 3, 16, 16, 16)
    assert len(output.get("passes", [0])) == (2 if "multipass" in subset else 1)
    assert ("centreline" in output) == ("connectivity_multitask" in subset)
    del output["features"]
    sum(
        x.square().mean()
        for value in output.values()
        for x in (value if isinstance(value, list) else [value])
    ).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

    small = [x[..., :8, :8, :8].contiguous() for x in inputs]
    copy = tiny(seed=1, **options).eval()
    copy.load_state_dict(network.state_dict(), strict=True)
    with torch.inference_mode():
        result = copy(*small)
        assert set(result) == ({"logits", "passes"} if "multipass" in subset else {"logits"})
        assert torch.equal(result["logits"], network.eval()(*small)["logits"])
