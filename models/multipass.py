"""The network reads its own previous prediction and corrects it: multi-pass U-Net (Wang, Connolly, de
Oliveira Lopes, Frangi, Smedby 2018, doi 10.1007/978-3-030-11166-3_5; after
github.com/DigiDxDoc/CT-Segmentation).

    image, blank context  ->  network  ->  logits of pass 0
    image, softmax of 0   ->  network  ->  logits of pass 1  -> ...

One network serves all passes (or one each) and each pass is supervised. A later pass starts from what the one
before found, sees that far around, and can mend it; contexts corrupted on purpose keep it from learning to
copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import Hook, Hooks, Options, Output
from models.context_corruption import corrupted
from models.context_distance import signed_distances
from models.technique import Technique, chained

AGREEMENT = 0.999  # Dice of two passes above which another one is not worth its time
N_INFER = 4


@dataclasses.dataclass(frozen=True)
class PassOptions(Options):
    """Options of several passes.

    passes: of a training step, 1 to 3. infer_passes: at most so many when predicting, may exceed those of
    training; 0, N_INFER. context: "soft", softmax; "hard", one-hot of the most likely class; "sdm", signed
    distances to that (see context_distance); "zeros", a control without any. context_grad: "detach", a pass
    learns only from its own loss; "through", also from those after it, which only a soft context lets
    through. context_corruption: chance per sample and pass that a training context is corrupted (see
    context_corruption). pass_embedding: a learned bias per pass, decoder level and channel, zero at first,
    tells a pass its number. Passes beyond the trained ones get that of the last. shared_passes: False gives
    each pass of the training a network of its own.
    """

    passes: int = 2
    infer_passes: int = 0
    context: Literal["soft", "hard", "sdm", "zeros"] = "soft"
    context_grad: Literal["detach", "through"] = "detach"
    context_corruption: float = 0.3
    pass_embedding: bool = True
    shared_passes: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.passes <= 3 or self.infer_passes < 0:
            raise ValueError(
                f"passes={self.passes} must be 1 to 3, infer_passes={self.infer_passes} 0 or more."
            )
        if not 0 <= self.context_corruption <= 1:
            raise ValueError(f"context_corruption={self.context_corruption} must be a probability.")


class MultiPass(Technique):
    """`network` run several times; of its input channels the last S are the context: probabilities of the
    structures.

    Set `draw_passes` to 1..n_train to run fewer in the next training steps; the caller draws, so that a run
    can be repeated. Fill `pass_limit` with a smaller number than n_infer to have fewer when predicting.

    later: empty, one network serves all passes; or a network of its own for each of the n_train - 1 passes
    after the first, built as `network` is. The last one serves all passes from its own on.
    """

    pass_limit: Tensor

    def __init__(
        self,
        network: nn.Module,
        n_structures: int,
        options: PassOptions = PassOptions(),
        later: Sequence[nn.Module] = (),
    ):
        super().__init__(network, own_channels=n_structures)
        self.n_structures, self.options = n_structures, options
        self.n_train, self.n_infer = options.passes, options.infer_passes or N_INFER
        if len(later) not in (0, self.n_train - 1):
            raise ValueError(
                f"{len(later)} networks for later passes; expected none or n_train - 1 = {self.n_train - 1}."
            )
        self.later = nn.ModuleList(later)
        # a buffer, so that it is kept with the weights it was chosen for
        self.register_buffer("pass_limit", torch.tensor(self.n_infer))
        self.draw_passes = self.n_train
        # per decoder, per level: (n_train, C)
        self.biases: Any = nn.ModuleList(
            nn.ParameterList(torch.zeros(self.n_train, channels) for channels in self.decoder_channels)
            for _ in range(self.n_decoders if options.pass_embedding else 0)
        )

    @property
    def passes(self) -> int:
        """Passes of a prediction at most."""
        return int(self.pass_limit)

    def forward(
        self,
        ct: Tensor,
        guide: Tensor | None = None,
        hooks: Hooks | None = None,
        *,
        context: Tensor | None = None,
        pass_number: int | None = None,
    ) -> Output:
        """With `context` or `pass_number` that one pass; without, all of them, and their logits as "passes".

        context: (B, S, D, H, W) probabilities of the structures, None is blank. pass_number: from 0; by
        default 0 without a context and 1 with one. When predicting, passes end when they agree for every
        sample; a sample that agreed earlier keeps its result, so it does not depend on its neighbours in the
        batch.
        """
        if ("guide" in self.inputs) != (guide is not None):
            raise ValueError(
                f"This network reads {', '.join(self.inputs)}: "
                f"a guide is {'missing' if guide is None else 'not wanted'}."
            )
        inputs = (ct,) if guide is None else (ct, guide)
        if context is not None or pass_number is not None:
            return self.single_pass(inputs, 1 if pass_number is None else pass_number, context, hooks)
        if not 1 <= self.draw_passes <= self.n_train:
            raise ValueError(f"draw_passes={self.draw_passes} must be 1 to n_train={self.n_train}.")
        passes: list[Tensor] = []
        settled = torch.zeros(len(ct), dtype=torch.bool, device=ct.device)
        for number in range(self.draw_passes if self.training else self.passes):
            if passes:
                context = self.next_context(passes[-1])
            output = self.single_pass(inputs, number, context, hooks)
            logits = output["logits"]
            if passes and not self.training:
                logits = torch.where(settled.view(-1, 1, 1, 1, 1), passes[-1], logits)
                settled = settled | agree(passes[-1], logits)
            passes.append(logits)
            if settled.all():
                break
        return {**output, "logits": passes[-1], "passes": passes}

    def single_pass(
        self, inputs: Sequence[Tensor], number: int, context: Tensor | None, hooks: Hooks | None
    ) -> Output:
        """Output of pass `number`, from 0. inputs: image, and guide if there is one."""
        if number < 0:
            raise ValueError(f"pass_number={number} must be 0 or more.")
        ct, *guides = inputs
        expected = (len(ct), self.n_structures, *ct.shape[2:])
        if context is not None and tuple(context.shape) != expected:
            raise ValueError(
                f"The context has shape {tuple(context.shape)}; expected (B, S, D, H, W) = {expected}."
            )
        if len(self.biases):
            row = min(number, self.n_train - 1)
            hooks = chained([[adding(level[row]) for level in decoder] for decoder in self.biases], hooks)
        later = min(number, len(self.later))
        network = self.later[later - 1] if later else self.network
        return network(torch.cat((ct, self.as_read(context, expected, ct)), dim=1), *guides, hooks=hooks)

    def next_context(self, logits: Tensor) -> Tensor:
        """Probabilities of the structures, (B, S, D, H, W), from logits; in training corrupted by chance."""
        # float32: bfloat16 knows nothing between 0.996 and 1
        probabilities = logits.float().softmax(dim=1)[:, 1:]
        if self.options.context_grad == "detach":
            probabilities = probabilities.detach()
        chance = self.options.context_corruption
        if self.training and chance > 0:
            samples = [corrupted(one) if torch.rand(()) < chance else one for one in probabilities]
            probabilities = torch.stack(samples)
        return probabilities

    def as_read(self, context: Tensor | None, shape: tuple[int, ...], ct: Tensor) -> Tensor:
        """The context in the form that the network is trained on. A blank one is what an empty prediction
        gives.
        """
        form = self.options.context
        if context is None or form == "zeros":
            return ct.new_ones(shape) if form == "sdm" else ct.new_zeros(shape)
        if form in ("hard", "sdm"):
            background = 1 - context.sum(dim=1, keepdim=True)
            winner = torch.cat((background, context), dim=1).argmax(dim=1)
            context = functional.one_hot(winner, self.n_structures + 1).movedim(-1, 1)[:, 1:]
        if form == "sdm":
            context = signed_distances(context > 0)
        return context.to(ct.dtype)


def agree(before: Tensor, after: Tensor) -> Tensor:
    """(B,) bool: whether two passes (logits or probabilities) give every structure almost the same voxels.

    That is a Dice above AGREEMENT between their most likely classes; a structure that neither found agrees.
    """
    labels = [each.argmax(dim=1).flatten(1) for each in (before, after)]
    same = torch.ones(len(before), dtype=torch.bool, device=before.device)
    for structure in range(1, before.shape[1]):
        a, b = (label == structure for label in labels)
        common, sizes = (a & b).sum(1), a.sum(1) + b.sum(1)
        same &= (2 * common > AGREEMENT * sizes) | (sizes == 0)
    return same


def adding(bias: Tensor) -> Hook:
    """The hook that adds a bias (C,) to features (B, C, D, H, W)."""
    return lambda x: x + bias.view(-1, 1, 1, 1).to(x.dtype)
