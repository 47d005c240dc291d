"""Neural autoregressive distribution estimator (NADE).

Larochelle and Murray 2011; Uria et al. 2016, "Neural Autoregressive Distribution Estimation",
section 2.

Each symbol ``t`` has hidden units ``h_t = sigmoid(c + sum over s < t of W_s x_s)`` (Uria et al.,
eq. 3) and parameters ``b_t + V_t h_t`` (eq. 2). The sums of consecutive symbols differ in one term,
so a running vector ``a_(t + 1) = a_t + W_t x_t`` (section 2) yields all of them in time linear in
the number of symbols and of hidden units.

Training goes through the sequence in chunks, forwards and then backwards for the gradient. It keeps
only the running vector before each chunk and computes the rest again, so that memory does not grow
with symbols times hidden units (:class:`NADESequence`). With two levels, ``S`` symbols and ``H``
hidden units take ``2 S H + S + H`` parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import JointWalk
from tessella.models.sequence_model import SequenceModel, SequenceState, SymbolInputs

CHUNK_UNITS = 1 << 18
"""Hidden units of a chunk, over all images of a batch: few enough for a processor's cache."""

CHUNK_UNITS_CUDA = 1 << 25
"""The same limit on a GPU, where few large calls are faster than many small ones."""


@dataclass
class NADEState(SequenceState):
    """The cached state of a walk: the running vector, and the weights laid out for steps."""

    shared: ClassVar[frozenset[str]] = frozenset({"table", "encode", "decode", "bias"})

    table: torch.Tensor
    """Input vector of every channel and level, ``[channels, levels, embedding]``."""
    encode: torch.Tensor
    """Weights from each symbol to the hidden units, ``[symbols, embedding, hidden]``."""
    decode: torch.Tensor
    """Weights from the hidden units to each place's parameters, ``[places, hidden, free_size]``."""
    bias: torch.Tensor
    """``[classes + 1, places, free_size]``."""
    running: torch.Tensor
    """Input of the hidden units, summed so far: ``[batch, hidden]``."""
    classes: torch.Tensor | slice
    """Each image's row in the tables of biases, see :meth:`SequenceModel.class_rows`."""


class NADE(SequenceModel[NADEState]):
    """``nade``: for each symbol one hidden layer, all of which share their weights.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        hidden: number of hidden units.
        embedding: length of the vectors of symbols, if there are more than two levels.

    Raises:
        ConfigError: for sizes below 1, or a grid whose matrices are too large.
    """

    name = "nade"
    undecayed = ("bias", "hidden_bias")  # weight decay must not shrink the biases of classes

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
        # Length of the input vector of one place.
        inputs = self.symbols_per_place * self.inputs.width
        self.check_matrix(
            self.places * hidden * max(self.free_size, inputs),
            "take a smaller grid, fewer levels, or a head with few parameters "
            "(head='logistic-mixture')",
        )
        self.check_biases()
        encode = torch.randn(self.places, inputs, hidden)
        # Scaled so that the sum over all places has variance 1.
        self.encode = nn.Parameter(encode * (self.places * inputs) ** -0.5)
        decode = torch.randn(self.places, hidden, self.free_size)
        self.decode = nn.Parameter(decode * 0.3 * hidden**-0.5)
        self.hidden_bias = nn.Parameter(0.5 * torch.randn(self.classes + 1, hidden))
        self.bias = nn.Parameter(self.free_bias().repeat(self.classes + 1, self.places, 1))
        if self.classes:
            # Break the symmetry between classes, which would otherwise get the same gradient.
            self.bias.data += 0.1 * torch.randn(self.bias.shape)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        # With a joint head a place is a pixel, and its input is all of its channels.
        inputs = self.inputs(x).view(
            x.shape[0], self.places, self.symbols_per_place * self.inputs.width
        )
        classes = self.class_rows(condition)
        running = self.hidden_bias[classes].expand(x.shape[0], -1)
        by_place = inputs.transpose(0, 1)  # [places, batch, inputs]
        out: torch.Tensor = NADESequence.apply(by_place, self.encode, self.decode, running)
        return self.on_grid(self.parameters_from_free(out.transpose(0, 1) + self.bias[classes]))

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> NADEState:
        classes = self.class_rows(self.condition(cond, batch))
        return NADEState(
            walk=JointWalk(),
            table=self.inputs.table(),
            # [places, symbols_per_place * width, hidden] to [symbols, width, hidden].
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

    def output_weights(self) -> Sequence[torch.Tensor]:
        return [self.decode]

    def sizes(self) -> dict[str, object]:
        return {"hidden": self.hidden, "embedding": self.embedding}


class NADESequence(torch.autograd.Function):
    """NADE over a whole sequence, with a backward pass that recomputes the hidden units.

    ``apply(inputs, encode, decode, running)`` takes ``inputs [places, batch, inputs]``,
    ``encode [places, inputs, hidden]``, ``decode [places, hidden, size]`` and
    ``running [batch, hidden]``, and returns parameters without their bias,
    ``[places, batch, size]``.

    The running sum goes one place at a time, while its chunk is in the processor's cache. Only the
    running vector before each chunk is saved. The backward pass visits the chunks in reverse and
    computes each of them again. With ``s_t`` the gradient with respect to ``a_t``, the gradient
    with respect to ``W_t`` is ``x_t`` times the sum of ``s_u`` over ``u > t``.
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
            # Use the type of the weights: sums over thousands of places lose digits in bfloat16.
            inputs = inputs.to(encode.dtype).contiguous()
            running = running.clone()
            outputs = []
            before_chunks = []
            for chunk in chunks(inputs, running):
                before_chunks.append(running)
                units, running = hidden_units(inputs[chunk], encode[chunk], running)
                outputs.append(torch.bmm(units, decode[chunk]))
        # For each chunk, save only the running vector before it. The rest is recomputed from it.
        ctx.save_for_backward(inputs, encode, decode, *before_chunks)
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, encode, decode, *before_chunks = ctx.saved_tensors
        with torch.autocast(inputs.device.type, enabled=False):
            gradient = gradient.to(encode.dtype)
            # Gradients with respect to inputs, encode and decode.
            by_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None
            by_encode = torch.empty_like(encode)
            by_decode = torch.empty_like(decode)
            # The sum of s_u over all places after the current chunk.
            later = torch.zeros_like(before_chunks[0])
            backwards = reversed(list(zip(chunks(inputs, later), before_chunks, strict=True)))
            for chunk, running in backwards:
                units, _ = hidden_units(inputs[chunk], encode[chunk], running)
                torch.bmm(units.transpose(1, 2), gradient[chunk], out=by_decode[chunk])
                # sums[:-1] becomes s_t: the gradient of the hidden units, then of their inputs.
                sums = later.new_empty(len(units) + 1, *later.shape)
                outer(gradient[chunk], decode[chunk].transpose(1, 2), sums[:-1])
                torch.ops.aten.sigmoid_backward.grad_input(sums[:-1], units, grad_input=sums[:-1])
                sums[-1] = later
                add_up(sums, backward=True)
                later = sums[0].clone()
                # The symbol of a place contributes to all later places.
                after = sums[1:]
                torch.bmm(inputs[chunk].transpose(1, 2), after, out=by_encode[chunk])
                if by_inputs is not None:
                    torch.bmm(after, encode[chunk].transpose(1, 2), out=by_inputs[chunk])
        return by_inputs, by_encode, by_decode, later


def outer(one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> None:
    """``torch.bmm(one, other, out=out)``, but faster if the inner dimension is 1.

    Args:
        one: ``[n, a, inner]``.
        other: ``[n, inner, b]``.
        out: receives the product, ``[n, a, b]``.
    """
    # An outer product is a plain broadcast multiplication, for which bmm is slow.
    if one.shape[-1] == 1:
        torch.mul(one, other, out=out)
    else:
        torch.bmm(one, other, out=out)


def chunks(inputs: torch.Tensor, running: torch.Tensor) -> list[slice]:
    """Split the sequence so that each chunk has at most ``CHUNK_UNITS`` hidden units.

    On a GPU the limit is ``CHUNK_UNITS_CUDA``.

    Args:
        inputs: ``[places, batch, inputs]``.
        running: ``[batch, hidden]``.
    """
    limit = CHUNK_UNITS_CUDA if running.is_cuda else CHUNK_UNITS
    places = max(1, limit // max(1, running.numel()))
    parts = []
    for start in range(0, len(inputs), places):
        parts.append(slice(start, min(start + places, len(inputs))))
    return parts


def hidden_units(
    inputs: torch.Tensor, encode: torch.Tensor, running: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden units of a chunk of places.

    Args:
        inputs: ``[places, batch, inputs]``.
        encode: ``[places, inputs, hidden]``.
        running: the running vector before the chunk, ``[batch, hidden]``.

    Returns:
        The hidden units, ``[places, batch, hidden]``, and the running vector after the chunk.
    """
    sums = running.new_empty(len(inputs) + 1, *running.shape)
    sums[0] = running
    outer(inputs, encode, sums[1:])
    add_up(sums)
    return sums[:-1].sigmoid_(), sums[-1].clone()


def add_up(parts: torch.Tensor, backward: bool = False) -> None:
    """Replace ``parts [places, ...]`` by their cumulative sum along the places, in place.

    With ``backward``, the sum runs from the last place to the first.
    """
    if parts.is_cuda:
        # One call per place would cost more than the work itself.
        parts.copy_(parts.flip(0).cumsum(0).flip(0) if backward else parts.cumsum(0))
    elif backward:
        for place in reversed(range(len(parts) - 1)):
            parts[place] += parts[place + 1]
    else:
        for place in range(1, len(parts)):
            parts[place] += parts[place - 1]
