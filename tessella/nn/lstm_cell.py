"""The cell of an LSTM (van den Oord et al. 2016, "Pixel Recurrent Neural Networks", eq. 3)."""

from __future__ import annotations

import torch

GATES = 4
"""Maps that a cell takes, side by side: output gate, forget gate, input gate, content."""


def lstm_cell(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden state and cell state one step on, ``[..., n]`` each.

    Args:
        gates: sums before their activations, ``[..., 4 n]``.
        cell: the cell state before, ``[..., n]``. It may be of a wider type than the gates, so that
            what it adds up over a long walk is not rounded away.
    """
    n = cell.shape[-1]
    # One call for the three sigmoids, as they lie side by side.
    emit, forget, write = gates[..., : 3 * n].sigmoid().chunk(3, dim=-1)
    cell = forget * cell + write * gates[..., 3 * n :].tanh()
    return (emit * cell.tanh()).to(gates.dtype), cell


def lstm_cell_(gates: torch.Tensor, cell: torch.Tensor, out: torch.Tensor) -> None:
    """:func:`lstm_cell` in place, for stepping, without gradients: ``cell`` is renewed and ``out``
    gets the hidden state."""
    n = cell.shape[-1]
    emit, forget, write = gates[..., : 3 * n].sigmoid().chunk(3, dim=-1)
    # c = f c + i tanh(content)
    cell.mul_(forget).addcmul_(write, gates[..., 3 * n :].tanh())
    # h = o tanh(c), of the renewed cell.
    torch.mul(emit, cell.tanh(), out=out)


def cell_dtype(gates: torch.Tensor) -> torch.dtype:
    """The type of the cell states that go with ``gates``: float32 or wider."""
    return torch.promote_types(gates.dtype, torch.float32)
