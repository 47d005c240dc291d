"""The ``categorical`` head: an arbitrary probability for each level."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tessella.heads.head import Distribution, FactoredHead, at_least_float32


class Categorical(Distribution):
    """An arbitrary distribution over levels; with two levels, a Bernoulli.

    Args:
        logits: ``[..., levels]``; their softmax gives the probabilities.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = at_least_float32(logits)

    def table(self, x: torch.Tensor | None = None) -> torch.Tensor:
        return F.log_softmax(self.logits, dim=-1)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        # The fused loss does not store a table of all levels for the backward pass.
        nats = F.cross_entropy(self.logits.flatten(0, -2), x.flatten(), reduction="none")
        return -nats.view(x.shape)

    def mode(self) -> torch.Tensor:
        return self.logits.argmax(dim=-1)


class CategoricalHead(FactoredHead):
    """``categorical``: a softmax over the levels; with two levels, a Bernoulli."""

    name = "categorical"

    @property
    def size(self) -> int:
        return self.grid.levels

    def __call__(self, parameters: torch.Tensor) -> Distribution:
        return Categorical(parameters)

    def symbol(self, parameters: torch.Tensor) -> Distribution:
        # The softmax is over the last dimension, for one symbol as for a whole grid.
        return Categorical(parameters)

    def parameters_from_table(self, table: torch.Tensor) -> torch.Tensor:
        # Logits are log-probabilities plus any constant, so the table itself will do.
        return table
