"""Neural autoregressive distribution estimator (Larochelle and Murray 2011; Uria et al. 2016,
"Neural Autoregressive Distribution Estimation", section 2).

Symbol ``t`` has hidden units of its own, ``h_t = sigmoid(c + sum over s < t of W_s x_s)`` (Uria et
al., eq. 3), and parameters ``b_t + V_t h_t`` (eq. 2). Neighbouring symbols share all but one term
of the sum, so a running vector ``a_(t + 1) = a_t + W_t x_t`` (section 2) makes all of them in time
linear in symbols and in hidden units.

Training walks along the sequence, and back for the gradient, in chunks: only the vector that enters
a chunk is kept, and the rest computed again, so that memory does not grow with symbols times hidden
units (:class:`Walk`). With two levels there are ``2 S H + S + H`` parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.sequence_model import SequenceModel, SequenceState, SymbolInputs

CHUNK, CHUNK_CUDA = 1 << 18, 1 << 25
"""Hidden units (of all images of a batch) that are in memory at a time; on a processor few, so that
its cache holds them."""


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
    """``nade``: neural autoregressive distribution estimator, a hidden layer for each symbol with
    shared weights.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        hidden: hidden units.
        embedding: length of the vectors that stand for symbols of more than two levels.

    Raises:
        ConfigError: for sizes below 1, or a grid whose matrices no machine holds.
    """

    name = "nade"
    undecayed = ("bias", "hidden_bias")  # of each class: not shrunk by weight decay

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        hidden: int = 128,
        embedding: int = 4,
    ) -> None:
        super().__init__(grid, head, conditioning)
        if hidden < 1 or embedding < 1:
            raise ConfigError(
                f"nade needs hidden >= 1 and embedding >= 1, got hidden={hidden}, embedding={embedding}"
            )
        self.hidden, self.embedding = hidden, embedding
        self.inputs = SymbolInputs(grid, embedding)
        of_place = self.group * self.inputs.width
        self.refuse_absurd(
            self.places * hidden * max(self.free, of_place),
            "take a smaller grid, fewer levels, or a head with few parameters (head='logistic-mixture')",
        )
        self.refuse_absurd_biases()
        self.encode = nn.Parameter(
            torch.randn(self.places, of_place, hidden) * (self.places * of_place) ** -0.5
        )
        self.decode = nn.Parameter(torch.randn(self.places, hidden, self.free) * 0.3 * hidden**-0.5)
        self.hidden_bias = nn.Parameter(0.5 * torch.randn(self.classes + 1, hidden))
        self.bias = nn.Parameter(self.free_bias().repeat(self.classes + 1, self.places, 1))
        if self.classes:
            self.bias.data += 0.1 * torch.randn(self.bias.shape)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        inputs = self.inputs(x).view(len(x), self.places, self.group * self.inputs.width)
        classes = self.classes_of(condition)
        running = self.hidden_bias[classes].expand(len(x), -1)
        out: torch.Tensor = Walk.apply(inputs.transpose(0, 1), self.encode, self.decode, running)
        return self.on_grid(self.complete(out.transpose(0, 1) + self.bias[classes]))

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


class Walk(torch.autograd.Function):
    """The whole sequence: the running vector, the hidden units, and what they tell of each place.

    ``walk(inputs [places, batch, inputs], encode [places, inputs, hidden], decode [places, hidden, size], running [batch, hidden])``
    gives parameters without their bias, ``[places, batch, size]``.

    Sums along the sequence are taken a place at a time, while the chunk they fill is in the
    processor's cache. Only the running vector before each chunk is kept; the gradient walks back
    over the chunks, each computed once more, and with ``s_t`` the gradient by ``a_t``, that by
    ``W_t`` is ``x_t`` times the sum of ``s_u`` over ``u > t``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        encode: torch.Tensor,
        decode: torch.Tensor,
        running: torch.Tensor,
    ) -> torch.Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            inputs, running = inputs.to(encode.dtype).contiguous(), running.clone()
            parts, before = [], []
            for part in chunks(inputs, running):
                before.append(running)
                units, running = hidden_units(inputs[part], encode[part], running)
                parts.append(torch.bmm(units, decode[part]))
        ctx.save_for_backward(inputs, encode, decode, *before)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, encode, decode, *before = ctx.saved_tensors
        with torch.autocast(inputs.device.type, enabled=False):
            gradient = gradient.to(encode.dtype)
            of_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None
            of_encode, of_decode = torch.empty_like(encode), torch.empty_like(decode)
            later = torch.zeros_like(before[0])
            for part, running in reversed(list(zip(chunks(inputs, later), before, strict=True))):
                units, _ = hidden_units(inputs[part], encode[part], running)
                torch.bmm(units.transpose(1, 2), gradient[part], out=of_decode[part])
                sums = later.new_empty(len(units) + 1, *later.shape)
                outer(gradient[part], decode[part].transpose(1, 2), sums[:-1])
                torch.ops.aten.sigmoid_backward.grad_input(sums[:-1], units, grad_input=sums[:-1])
                sums[-1] = later
                add_up(sums, backward=True)
                later, sums = (
                    sums[0].clone(),
                    sums[1:],
                )  # what the symbol of each place has a part in
                torch.bmm(inputs[part].transpose(1, 2), sums, out=of_encode[part])
                if of_inputs is not None:
                    torch.bmm(sums, encode[part].transpose(1, 2), out=of_inputs[part])
        return of_inputs, of_encode, of_decode, later


def outer(one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> None:
    """``torch.bmm``, which is slow where it sums over a single number."""
    (torch.mul if one.shape[-1] == 1 else torch.bmm)(one, other, out=out)


def chunks(inputs: torch.Tensor, running: torch.Tensor) -> list[slice]:
    """Parts of the sequence whose hidden units of a batch are ``CHUNK`` numbers, or
    ``CHUNK_CUDA``."""
    room = CHUNK_CUDA if running.is_cuda else CHUNK
    places = max(1, room // max(1, running.numel()))
    return [
        slice(start, min(start + places, len(inputs))) for start in range(0, len(inputs), places)
    ]


def hidden_units(
    inputs: torch.Tensor, encode: torch.Tensor, running: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden units of a chunk of places, ``[places, batch, hidden]``, and the running vector
    after it."""
    sums = running.new_empty(len(inputs) + 1, *running.shape)
    sums[0] = running
    outer(inputs, encode, sums[1:])
    add_up(sums)
    return sums[:-1].sigmoid_(), sums[-1].clone()


def add_up(parts: torch.Tensor, backward: bool = False) -> None:
    """Put in the place of each part the sum of those up to it, or from it on."""
    if parts.is_cuda:  # a call costs more than what it does for one place
        parts.copy_(parts.flip(0).cumsum(0).flip(0) if backward else parts.cumsum(0))
    elif backward:
        for place in reversed(range(len(parts) - 1)):
            parts[place] += parts[place + 1]
    else:
        for place in range(1, len(parts)):
            parts[place] += parts[place - 1]
