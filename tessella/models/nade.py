"""Neural autoregressive distribution estimator (Larochelle and Murray 2011; Uria et al. 2016, "Neural Autoregressive
Distribution Estimation", section 2).

Symbol ``t`` has hidden units of its own, ``h_t = sigmoid(c + sum over s < t of W_s x_s)`` (Uria et al., eq. 3), and
parameters ``b_t + V_t h_t`` (eq. 2). Neighbouring symbols share all but one term of the sum, so a running vector
``a_(t + 1) = a_t + W_t x_t`` (section 2) makes all of them in time linear in symbols and in hidden units.

Training walks over chunks of the sequence. Within a chunk the running vectors are cumulative sums; for the gradient
only the vector that enters a chunk is kept, and the rest computed again, so that memory does not grow with symbols
times hidden units. With two levels there are ``2 S H + S + H`` parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.sequence import SequenceModel, SequenceState, SymbolInputs

CHUNK = 64
"""Places whose hidden units are in memory at a time."""


@dataclass
class NADEState(SequenceState):
    """The running vector."""

    shared: ClassVar[frozenset[str]] = frozenset({"table", "encode", "decode", "bias"})

    table: torch.Tensor
    """Input vector of every channel and level."""
    encode: torch.Tensor
    """The weights of each symbol, ``[symbols, inputs, hidden]``."""
    decode: torch.Tensor
    bias: torch.Tensor
    running: torch.Tensor
    """What enters the hidden units: ``[batch, hidden]``."""
    classes: torch.Tensor | slice
    """Rows of the biases that the images take."""


class NADE(SequenceModel):
    """``nade``: neural autoregressive distribution estimator, a hidden layer for each symbol with shared weights.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        hidden: hidden units.
        embedding: length of the vectors that stand for symbols of more than two levels.

    Raises:
        ConfigError: for sizes below 1, or a grid whose matrices no machine holds.
    """

    name = "nade"

    def __init__(
        self, grid: Grid, head: Head, conditioning: Conditioning, hidden: int = 128, embedding: int = 4
    ) -> None:
        super().__init__(grid, head, conditioning)
        if hidden < 1 or embedding < 1:
            raise ConfigError(f"nade needs hidden >= 1 and embedding >= 1, got hidden={hidden}, embedding={embedding}")
        self.hidden, self.embedding = hidden, embedding
        self.inputs = SymbolInputs(grid, embedding)
        of_place = self.group * self.inputs.width
        self.refuse_absurd(
            self.places * hidden * max(self.free, of_place),
            "take a smaller grid, fewer levels, or a head with few parameters (head='logistic-mixture')",
        )
        self.refuse_absurd_biases()
        self.encode = nn.Parameter(torch.randn(self.places, of_place, hidden) * (self.places * of_place) ** -0.5)
        self.decode = nn.Parameter(torch.randn(self.places, hidden, self.free) * 0.3 * hidden**-0.5)
        self.hidden_bias = nn.Parameter(0.5 * torch.randn(self.classes + 1, hidden))
        self.bias = nn.Parameter(self.free_bias().repeat(self.classes + 1, self.places, 1))
        if self.classes:
            self.bias.data += 0.1 * torch.randn(self.bias.shape)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        inputs = self.inputs(x).view(len(x), self.places, self.group * self.inputs.width)
        classes = self.classes_of(condition)
        running, parts = self.hidden_bias[classes].expand(len(x), -1), []
        for start in range(0, self.places, CHUNK):
            part = slice(start, start + CHUNK)
            chunk = inputs[:, part], self.encode[part], self.decode[part], running
            if torch.is_grad_enabled() and self.places > CHUNK:
                out, running = checkpoint(walk_chunk, *chunk, use_reentrant=False)
            else:
                out, running = walk_chunk(*chunk)
            parts.append(out)
        return self.on_grid(self.complete(torch.cat(parts, dim=1) + self.bias[classes]))

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> NADEState:
        classes = self.classes_of(self.condition(cond, batch))
        running = self.hidden_bias[classes].expand(batch, -1).clone()
        return NADEState(
            pixel=None,
            table=self.inputs.table(),
            encode=self.encode.detach().unflatten(1, (self.group, -1)).flatten(0, 1),
            decode=self.decode.detach(),
            bias=self.bias.detach(),
            running=running,
            classes=classes,
        )

    def learn(self, symbol: torch.Tensor, index: int, state: NADEState) -> None:
        state.running.addmm_(state.table[index % self.grid.channels, symbol], state.encode[index])

    def predict(self, place: int, state: NADEState) -> torch.Tensor:
        bias = state.bias[state.classes, place]
        return self.complete(torch.addmm(bias, state.running.sigmoid(), state.decode[place]))

    def sizes(self) -> dict[str, Any]:
        return {"hidden": self.hidden, "embedding": self.embedding}


def walk_chunk(
    inputs: torch.Tensor, encode: torch.Tensor, decode: torch.Tensor, running: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The places of a chunk.

    Args:
        inputs: ``[batch, places, inputs]``.
        encode: ``[places, inputs, hidden]``.
        decode: ``[places, hidden, size]``.
        running: what has entered the hidden units before, ``[batch, hidden]``.

    Returns:
        Parameters without their bias ``[batch, places, size]``, and the running vector after the chunk.
    """
    added = torch.bmm(inputs.transpose(0, 1), encode).cumsum(dim=0)  # [places, batch, hidden]
    before = torch.cat([running[None], running + added[:-1]])
    return torch.bmm(before.sigmoid(), decode).transpose(0, 1), running + added[-1]
