"""Neural autoregressive distribution estimator (Larochelle and Murray 2011; Uria et al. 2016,
"Neural Autoregressive Distribution Estimation", section 2).

Each symbol ``t`` has hidden units ``h_t = sigmoid(c + sum over s < t of W_s x_s)`` (Uria et al.,
eq. 3) and parameters ``b_t + V_t h_t`` (eq. 2). Neighbouring symbols share all but one term of the
sum, so a running vector ``a_(t + 1) = a_t + W_t x_t`` (section 2) makes all of them in time linear
in symbols and in hidden units.

Training walks along the sequence, and back for the gradient, in chunks: only the vector that enters
a chunk is kept, and the rest computed again, so that memory does not grow with symbols times hidden
units (:class:`NADESequence`). With two levels there are ``2 S H + S + H`` parameters.
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

CHUNK_UNITS = 1 << 18
"""Hidden units (of all images of a batch) that are in memory at a time: few, so that the cache of a
processor holds them."""

CHUNK_UNITS_CUDA = 1 << 25
"""The same limit on a GPU, where a call costs more than the numbers it works on."""


@dataclass
class NADEState(SequenceState):
    """The running vector."""

    shared: ClassVar[frozenset[str]] = frozenset({"table", "encode", "decode", "bias"})

    table: torch.Tensor
    """Input vector of every channel and level."""
    encode: torch.Tensor
    """The weights of each symbol, ``[symbols, inputs, hidden]``."""
    decode: torch.Tensor
    """``[places, hidden, free]``."""
    bias: torch.Tensor
    """``[classes + 1, places, free]``."""
    running: torch.Tensor
    """The sum that enters the hidden units: ``[batch, hidden]``."""
    classes: torch.Tensor | slice
    """Rows of the biases that the images take."""


class NADE(SequenceModel[NADEState]):
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
                f"nade needs hidden >= 1 and embedding >= 1, got hidden={hidden}, "
                f"embedding={embedding}"
            )
        self.hidden = hidden
        self.embedding = embedding
        self.inputs = SymbolInputs(grid, embedding)
        inputs = self.symbols_per_place * self.inputs.width  # of a place
        self.check_matrix(
            self.places * hidden * max(self.free_size, inputs),
            "take a smaller grid, fewer levels, or a head with few parameters "
            "(head='logistic-mixture')",
        )
        self.check_biases()
        encode = torch.randn(self.places, inputs, hidden)
        # The sum over all places starts with variance 1.
        self.encode = nn.Parameter(encode * (self.places * inputs) ** -0.5)
        decode = torch.randn(self.places, hidden, self.free_size)
        self.decode = nn.Parameter(decode * 0.3 * hidden**-0.5)
        self.hidden_bias = nn.Parameter(0.5 * torch.randn(self.classes + 1, hidden))
        self.bias = nn.Parameter(self.free_bias().repeat(self.classes + 1, self.places, 1))
        if self.classes:
            # Classes must differ at first, or they would all get the same gradient.
            self.bias.data += 0.1 * torch.randn(self.bias.shape)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        # With a joint head a place is a pixel, and takes in all its channels at once.
        inputs = self.inputs(x).view(
            len(x), self.places, self.symbols_per_place * self.inputs.width
        )
        classes = self.class_rows(condition)
        running = self.hidden_bias[classes].expand(len(x), -1)
        by_place = inputs.transpose(0, 1)  # [places, batch, inputs]
        out: torch.Tensor = NADESequence.apply(by_place, self.encode, self.decode, running)
        return self.on_grid(self.parameters_from_free(out.transpose(0, 1) + self.bias[classes]))

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> NADEState:
        classes = self.class_rows(self.condition(cond, batch))
        return NADEState(
            pixel=None,
            table=self.inputs.table(),
            # From [places, group * width, hidden] to a matrix for each symbol.
            encode=self.encode.detach().unflatten(1, (self.symbols_per_place, -1)).flatten(0, 1),
            decode=self.decode.detach(),
            bias=self.bias.detach(),
            running=self.hidden_bias[classes].expand(batch, -1).clone(),
            classes=classes,
        )

    def observe(self, symbol: torch.Tensor, index: int, state: NADEState) -> None:
        vectors = state.table[index % self.grid.channels, symbol]
        state.running.addmm_(vectors, state.encode[index])

    def predict(self, place: int, state: NADEState) -> torch.Tensor:
        bias = state.bias[state.classes, place]
        free = torch.addmm(bias, state.running.sigmoid(), state.decode[place])
        return self.parameters_from_free(free)

    def sizes(self) -> dict[str, object]:
        return {"hidden": self.hidden, "embedding": self.embedding}


class NADESequence(torch.autograd.Function):
    """The whole sequence: the running vector, the hidden units, and each place's parameters.

    ``apply(inputs, encode, decode, running)`` takes ``inputs [places, batch, inputs]``,
    ``encode [places, inputs, hidden]``, ``decode [places, hidden, size]`` and
    ``running [batch, hidden]``, and returns parameters without their bias,
    ``[places, batch, size]``.

    Sums along the sequence are taken a place at a time, while the chunk they fill is in the
    processor's cache. Only the running vector before each chunk is kept. The gradient walks back
    over the chunks, each computed once more: with ``s_t`` the gradient by ``a_t``, the gradient by
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
            # In the type of the weights: sums over thousands of places lose digits in bfloat16.
            inputs = inputs.to(encode.dtype).contiguous()
            running = running.clone()
            outputs = []
            before_chunks = []
            for chunk in chunks(inputs, running):
                before_chunks.append(running)
                units, running = hidden_units(inputs[chunk], encode[chunk], running)
                outputs.append(torch.bmm(units, decode[chunk]))
        # Of each chunk only the vector that enters it, from which the rest is computed again.
        ctx.save_for_backward(inputs, encode, decode, *before_chunks)
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, encode, decode, *before_chunks = ctx.saved_tensors
        with torch.autocast(inputs.device.type, enabled=False):
            gradient = gradient.to(encode.dtype)
            by_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None
            by_encode = torch.empty_like(encode)
            by_decode = torch.empty_like(decode)
            # The sum of s_u over all places after the chunk.
            later = torch.zeros_like(before_chunks[0])
            backwards = reversed(list(zip(chunks(inputs, later), before_chunks, strict=True)))
            for chunk, running in backwards:
                units, _ = hidden_units(inputs[chunk], encode[chunk], running)
                torch.bmm(units.transpose(1, 2), gradient[chunk], out=by_decode[chunk])
                # sums[:-1] becomes s_t of the chunk, by way of the hidden units.
                sums = later.new_empty(len(units) + 1, *later.shape)
                outer(gradient[chunk], decode[chunk].transpose(1, 2), sums[:-1])
                torch.ops.aten.sigmoid_backward.grad_input(sums[:-1], units, grad_input=sums[:-1])
                sums[-1] = later
                add_up(sums, backward=True)
                later = sums[0].clone()
                # The symbol of a place takes part in all places after it.
                after = sums[1:]
                torch.bmm(inputs[chunk].transpose(1, 2), after, out=by_encode[chunk])
                if by_inputs is not None:
                    torch.bmm(after, encode[chunk].transpose(1, 2), out=by_inputs[chunk])
        return by_inputs, by_encode, by_decode, later


def outer(one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> None:
    """``torch.bmm``, which is slow where it sums over a single number."""
    if one.shape[-1] == 1:
        torch.mul(one, other, out=out)
    else:
        torch.bmm(one, other, out=out)


def chunks(inputs: torch.Tensor, running: torch.Tensor) -> list[slice]:
    """Parts of the sequence whose hidden units of a batch are ``CHUNK_UNITS`` numbers, or
    ``CHUNK_UNITS_CUDA``."""
    limit = CHUNK_UNITS_CUDA if running.is_cuda else CHUNK_UNITS
    places = max(1, limit // max(1, running.numel()))
    parts = []
    for start in range(0, len(inputs), places):
        parts.append(slice(start, min(start + places, len(inputs))))
    return parts


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
    if parts.is_cuda:
        # A call for each place would cost more than its work.
        parts.copy_(parts.flip(0).cumsum(0).flip(0) if backward else parts.cumsum(0))
    elif backward:
        for place in reversed(range(len(parts) - 1)):
            parts[place] += parts[place + 1]
    else:
        for place in range(1, len(parts)):
            parts[place] += parts[place - 1]
