"""``categorical``: any probability for any level."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tessella.heads.head import Distribution, FactoredHead, at_least_float32


class Categorical(Distribution):
    """Any probability for any level: the softmax of logits ``[..., levels]``.

    With two levels, a Bernoulli.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = at_least_float32(logits)

    def table(self, x: torch.Tensor | None = None) -> torch.Tensor:
        return F.log_softmax(self.logits, dim=-1)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        # The fused loss does not keep a table of all levels for the gradient.
        nats = F.cross_entropy(self.logits.flatten(0, -2), x.flatten(), reduction="none")
        return -nats.view(x.shape)

    def mode(self) -> torch.Tensor:
        return self.logits.argmax(dim=-1)


class CategoricalHead(FactoredHead):
    """``categorical``: a softmax over the levels; a Bernoulli at two levels."""

    name = "categorical"

    @property
    def size(self) -> int:
        return self.grid.levels

    def __call__(self, parameters: torch.Tensor) -> Distribution:
        return Categorical(parameters)

    def symbol(self, parameters: torch.Tensor) -> Distribution:
        # [batch, levels], where a grid has [..., levels]: the softmax is the same.
        return Categorical(parameters)

    def parameters_from_table(self, table: torch.Tensor) -> torch.Tensor:
        # Logits are log-probabilities up to a constant, and the table is one choice of them.
        return table
