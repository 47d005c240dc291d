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

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.condition import UNCONDITIONAL, Condition, Conditioning
from tessella.models.sequence_model import (
    MASKED_TRAINING_BYTES,
    SequenceModel,
    SymbolInputs,
)
from tessella.nn.masked import MaskedLinear
from tessella.nn.sequence_step import SequenceStep, place_variables, write_known
from tessella.nn.stepping.memory import Vectors
from tessella.nn.stepping.step import MemoryAllocator


class FVSBN(SequenceModel):
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

    def write(self, memory: MemoryAllocator, labels: torch.Tensor | None) -> SequenceStep:
        width = self.symbols_per_place * self.inputs.width
        step = self.new_step(memory, place_variables(self.places, width))
        known = write_known(step, self.inputs.table(), self.places)
        # With two levels the first parameter is not computed, and stays zero.
        out = step.parameters[:, -self.free_size :]
        # [places, inputs, free]. No weight of a known input is masked, so these are the raw ones.
        weights = memory.table(self.regression.weight).unflatten(0, (self.places, -1))
        weight = Vectors(weights.transpose(1, 2)).at("place")
        step.every.product(known, weight, out, known="known")
        step.write_bias(labels, self.bias.unflatten(1, (self.places, -1)), [out])
        return step

    def output_weights(self) -> Sequence[torch.Tensor]:
        return [self.regression.weight]

    def sizes(self) -> dict[str, object]:
        return {"embedding": self.embedding}
