"""Fully visible sigmoid belief network.

Frey, Hinton and Dayan 1996, "Does the wake-sleep algorithm produce good density estimators?"; the
notation is that of Larochelle and Murray 2011, section 2.

Each symbol is a logistic regression on all symbols before it: the logit of symbol ``t`` is
``b_t + sum over s < t of W_ts x_s``. With more than two levels, the inputs are learned vectors of
the symbols, and the outputs are the logits of all levels or the parameters of another head. All
regressions of an image are computed by one product with a masked matrix. With two levels, an image
of ``S`` symbols takes ``S (S - 1) / 2 + S`` parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import JointWalk
from tessella.models.sequence_model import (
    MASKED_TRAINING_BYTES,
    SequenceModel,
    SequenceState,
    SymbolInputs,
)
from tessella.nn.masked import MaskedLinear


@dataclass
class FVSBNState(SequenceState):
    """The cached state of a walk: the inputs so far."""

    shared: ClassVar[frozenset[str]] = frozenset({"table"})

    table: torch.Tensor
    """Input vector of every channel and level, ``[channels, levels, embedding]``."""
    classes: torch.Tensor | slice
    """Each image's row in the table of biases, see :meth:`SequenceModel.class_rows`."""
    inputs: torch.Tensor
    """Input vectors, zero for unknown symbols: ``[batch, symbols * embedding]``."""


class FVSBN(SequenceModel[FVSBNState]):
    """``fvsbn``: a logistic or softmax regression of each symbol on the symbols before it.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        embedding: length of the vectors of symbols, if there are more than two levels. 1 is enough
            for intensities; codes need more.

    Raises:
        ConfigError: for an embedding below 1, or a grid whose matrix is too large.
    """

    name = "fvsbn"
    undecayed = ("bias",)  # weight decay must not shrink the biases of classes and places

    def __init__(
        self, grid: Grid, head: Head, conditioning: Conditioning, embedding: int = 1
    ) -> None:
        super().__init__(grid, head, conditioning)
        if embedding < 1:
            raise ConfigError(f"fvsbn needs embedding >= 1, got {embedding}")
        self.embedding = embedding
        self.inputs = SymbolInputs(grid, embedding)
        outputs = self.places * self.free_size
        width = self.inputs.width
        self.check_matrix(
            outputs * grid.symbols * width,
            "take a smaller grid, fewer levels, or a head with few parameters "
            "(head='logistic-mixture')",
            MASKED_TRAINING_BYTES,
        )
        self.check_biases()
        # [outputs, inputs]: each place sees the symbols of all earlier places.
        output_place = torch.arange(self.places).repeat_interleave(self.free_size)
        input_place = torch.arange(grid.symbols).repeat_interleave(width) // self.symbols_per_place
        self.regression = MaskedLinear(input_place < output_place[:, None], bias=False)
        self.regression.weight.data *= 0.3
        self.bias = nn.Parameter(self.free_bias().repeat(self.classes + 1, self.places))
        if self.classes:
            # Break the symmetry between classes, which would otherwise get the same gradient.
            self.bias.data += 0.1 * torch.randn(self.bias.shape)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        logits = self.regression(self.inputs(x).flatten(1)) + self.bias[self.class_rows(condition)]
        # [batch, outputs] -> [batch, places, free]
        free = logits.unflatten(1, (self.places, self.free_size))
        return self.on_grid(self.parameters_from_free(free))

    def last_layers(self) -> Sequence[nn.Module]:
        return [self.regression]

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> FVSBNState:
        return FVSBNState(
            walk=JointWalk(),
            table=self.inputs.table(),
            classes=self.class_rows(self.condition(cond, batch)),
            inputs=self.bias.new_zeros(batch, self.regression.weight.shape[1]),
        )

    def observe(self, symbol: torch.Tensor, index: int, state: FVSBNState) -> None:
        width = self.inputs.width
        # Channels alternate in the sequence, and each has its own table.
        vectors = state.table[index % self.grid.channels, symbol]
        state.inputs[:, index * width : (index + 1) * width] = vectors

    def predict(self, place: int, state: FVSBNState) -> torch.Tensor:
        rows = slice(place * self.free_size, (place + 1) * self.free_size)
        known = place * self.symbols_per_place * self.inputs.width
        # No weight of a known input is masked, so the raw weights can be used.
        logits = F.linear(state.inputs[:, :known], self.regression.weight[rows, :known])
        return self.parameters_from_free(logits + self.bias[state.classes, rows])

    def output_weights(self) -> Sequence[torch.Tensor]:
        return [self.regression.weight]

    def sizes(self) -> dict[str, object]:
        return {"embedding": self.embedding}
