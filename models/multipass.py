"""The network reads its own previous prediction and corrects it: multi-pass U-Net (Wang, Connolly, de Oliveira Lopes,
Frangi, Smedby 2018, doi 10.1007/978-3-030-11166-3_5; after github.com/DigiDxDoc/CT-Segmentation).

    image, blank context  ->  network  ->  logits of pass 0
    image, softmax of 0   ->  network  ->  logits of pass 1  -> ...

One network serves all passes (or one each) and each pass is supervised. A later pass starts from what the one before found, sees
that far around, and can mend it; contexts corrupted on purpose keep it from learning to copy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import Modulations, Output, choose
from models.context_corruption import corrupted
from models.context_distance import signed_distances
from models.technique import Technique, chained

CONTEXTS = ("soft", "hard", "sdm", "zeros")
CONTEXT_GRADS = ("detach", "through")
AGREEMENT = 0.999  # Dice of two passes above which another one is not worth its time


class MultiPass(Technique):
    """`network` run several times; of its input channels the last S are the context: probabilities of the structures.

    Args:
        n_train: passes of a training step, 1 or more. Set `draw_passes` to 1..n_train to run fewer in the next steps;
            the caller draws, so that a run can be repeated.
        n_infer: at most so many when predicting; may exceed n_train. Fill `pass_limit` with a smaller number to have fewer.
        context: "soft", softmax; "hard", one-hot of the most likely class; "sdm", signed distances to that (see
            context_distance); "zeros", a control without any.
        context_grad: "detach", a pass learns only from its own loss; "through", also from those after it, which only
            a soft context lets through.
        corruption: chance per sample and pass that a training context is corrupted (see context_corruption).
        pass_embedding: a learned bias per pass, decoder level and channel, zero at first, tells a pass its number. Passes
            beyond n_train get that of the last.
        later: empty, one network serves all passes; or a network of its own for each of the n_train - 1 passes after
            the first, built as `network` is. The last one serves all passes from its own on.
    """

    pass_limit: Tensor

    def __init__(
        self,
        network: nn.Module,
        n_structures: int,
        n_train: int = 2,
        n_infer: int = 4,
        context: str = "soft",
        *,
        context_grad: str = "detach",
        corruption: float = 0.3,
        pass_embedding: bool = True,
        later: Sequence[nn.Module] = (),
    ):
        super().__init__(network, own_channels=n_structures)
        if len(later) not in (0, n_train - 1):
            raise ValueError(
                f"{len(later)} networks for later passes; expected none or n_train - 1 = {n_train - 1}."
            )
        self.later = nn.ModuleList(later)
        if n_train < 1 or n_infer < 1 or not 0 <= corruption <= 1:
            raise ValueError(
                f"n_train={n_train} and n_infer={n_infer} must be 1 or more, corruption={corruption} a probability."
            )
        self.n_structures, self.n_train, self.n_infer = n_structures, n_train, n_infer
        self.register_buffer(
            "pass_limit", torch.tensor(n_infer)
        )  # a buffer, so that it is kept with the weights it was chosen for
        self.context = choose("context", context, CONTEXTS)
        self.context_grad = choose("context_grad", context_grad, CONTEXT_GRADS)
        self.corruption = corruption
        self.draw_passes: int | None = None
        self.biases: Any = nn.ModuleList()  # per decoder, per level: (n_train, C)
        if pass_embedding:
            for _ in range(self.n_decoders):
                self.biases.append(
                    nn.ParameterList(torch.zeros(n_train, channels) for channels in self.decoder_channels)
                )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(
            f"{prefix}pass_limit", torch.tensor(self.n_infer)
        )  # weights from before it was there
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def passes(self) -> int:
        """Passes of a prediction at most."""
        return int(self.pass_limit)

    def forward(
        self,
        ct: Tensor,
        guide: Tensor | None = None,
        *,
        context: Tensor | None = None,
        pass_number: int | None = None,
        modulations: Modulations | None = None,
    ) -> Output:
        """With `context` or `pass_number` that one pass; without, all of them, and their logits as "passes".

        context: (B, S, D, H, W) probabilities of the structures, None is blank. pass_number: from 0; by default 0
        without a context and 1 with one. When predicting, passes end when they agree for every sample; a sample that
        agreed earlier keeps its result, so it does not depend on its neighbours in the batch.
        """
        if context is not None or pass_number is not None:
            return self._single_pass(ct, guide, modulations, context, pass_number)
        passes: list[Tensor] = []
        settled = torch.zeros(len(ct), dtype=torch.bool, device=ct.device)
        for number in range(self._passes_now()):
            if passes:
                context = self._next_context(passes[-1])
            output = self._single_pass(ct, guide, modulations, context, number)
            logits = output["logits"]
            if passes and not self.training:
                logits = torch.where(settled.view(-1, 1, 1, 1, 1), passes[-1], logits)
                settled = settled | agree(passes[-1], logits)
            passes.append(logits)
            if settled.all():
                break
        return {**output, "logits": passes[-1], "passes": passes}

    def features(
        self,
        ct: Tensor,
        guide: Tensor | None = None,
        modulations: Modulations | None = None,
        *,
        context: Tensor | None = None,
        pass_number: int | None = None,
    ) -> list[Any]:
        """Decoder features of a single pass; arguments as for `forward`."""
        if ("guide" in self.inputs) != (guide is not None):
            raise ValueError(
                f"This network reads {', '.join(self.inputs)}: a guide is {'missing' if guide is None else 'not wanted'}."
            )
        expected = (len(ct), self.n_structures, *ct.shape[2:])
        if context is not None and tuple(context.shape) != expected:
            raise ValueError(
                f"The context has shape {tuple(context.shape)}; expected (B, S, D, H, W) = {expected}."
            )
        pass_number = _numbered(context, pass_number)
        seen = torch.cat((ct, self._as_read(context, expected, ct)), dim=1)
        guides = () if guide is None else (guide,)
        return self._serving(pass_number).features(
            seen, *guides, modulations=self._with_bias(pass_number, modulations)
        )

    def predict(self, features: Sequence[Any], *, pass_number: int = 0) -> Output:
        """Logits from what `features` returned for that pass."""
        return self._serving(pass_number).predict(features)

    def _single_pass(
        self,
        ct: Tensor,
        guide: Tensor | None,
        modulations: Modulations | None,
        context: Tensor | None,
        pass_number: int | None,
    ) -> Output:
        features = self.features(ct, guide, modulations, context=context, pass_number=pass_number)
        return self.predict(features, pass_number=_numbered(context, pass_number))

    def _serving(self, pass_number: int) -> Any:
        """The network of a pass."""
        return (
            self.later[min(pass_number, len(self.later)) - 1]
            if pass_number and len(self.later)
            else self.network
        )

    def _passes_now(self) -> int:
        if not self.training:
            return self.passes
        drawn = self.n_train if self.draw_passes is None else self.draw_passes
        if not 1 <= drawn <= self.n_train:
            raise ValueError(f"draw_passes={drawn} must be 1 to n_train={self.n_train}.")
        return drawn

    def _next_context(self, logits: Tensor) -> Tensor:
        """Probabilities of the structures, (B, S, D, H, W), from logits; corrupted by chance while training."""
        probabilities = logits.float().softmax(dim=1)[
            :, 1:
        ]  # float32: bfloat16 knows nothing between 0.996 and 1
        if self.context_grad == "detach":
            probabilities = probabilities.detach()
        if self.training and self.corruption > 0:
            samples = [
                corrupted(sample) if torch.rand(()) < self.corruption else sample for sample in probabilities
            ]
            probabilities = torch.stack(samples)
        return probabilities

    def _as_read(self, context: Tensor | None, shape: tuple[int, ...], ct: Tensor) -> Tensor:
        """The context in the form that the network is trained on. A blank one is what an empty prediction gives."""
        if context is None or self.context == "zeros":
            return ct.new_ones(shape) if self.context == "sdm" else ct.new_zeros(shape)
        if self.context in ("hard", "sdm"):
            background = 1 - context.sum(dim=1, keepdim=True)
            winner = torch.cat((background, context), dim=1).argmax(dim=1)
            context = functional.one_hot(winner, self.n_structures + 1).movedim(-1, 1)[:, 1:]
        if self.context == "sdm":
            context = signed_distances(context > 0)
        return context.to(ct.dtype)

    def _with_bias(self, pass_number: int, modulations: Modulations | None) -> Modulations | None:
        if not len(self.biases):
            return modulations
        row = min(pass_number, self.n_train - 1)
        return chained(
            [[functools.partial(_shifted, level[row]) for level in decoder] for decoder in self.biases],
            modulations,
        )


def _numbered(context: Tensor | None, pass_number: int | None) -> int:
    """The number of a pass, by default 0 without a context and 1 with one."""
    if pass_number is None:
        return 0 if context is None else 1
    if pass_number < 0:
        raise ValueError(f"pass_number={pass_number} must be 0 or more.")
    return pass_number


def agree(before: Tensor, after: Tensor) -> Tensor:
    """(B,) bool: whether two passes (logits or probabilities) give every structure almost the same voxels.

    That is a Dice above AGREEMENT between their most likely classes; a structure that neither found agrees.
    """
    n_classes = before.shape[1]
    same = torch.ones(len(before), dtype=torch.bool, device=before.device)
    before, after = before.argmax(dim=1).flatten(1), after.argmax(dim=1).flatten(1)
    for structure in range(1, n_classes):
        a, b = before == structure, after == structure
        common, sizes = (a & b).sum(1), a.sum(1) + b.sum(1)
        same &= (2 * common > AGREEMENT * sizes) | (sizes == 0)
    return same


def _shifted(bias: Tensor, x: Tensor) -> Tensor:
    return x + bias.view(-1, 1, 1, 1).to(x.dtype)
