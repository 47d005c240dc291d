"""The cell of an LSTM (van den Oord et al. 2016, "Pixel Recurrent Neural Networks", eq. 3)."""

from __future__ import annotations

import torch

GATES = 4
"""Inputs of a cell, concatenated: output gate, forget gate, input gate, content."""


def lstm_cell(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One update of an LSTM cell.

    Args:
        gates: the :data:`GATES` before their activations, ``[..., 4 n]``.
        cell: the previous cell state, ``[..., n]``. It may have a wider type than the gates, so
            that small updates over a long sequence are not rounded away.

    Returns:
        The new hidden state and the new cell state, ``[..., n]`` each.
    """
    n = cell.shape[-1]
    # The three gates with a sigmoid are contiguous, so one call computes them all.
    output_gate, forget_gate, input_gate = gates[..., : 3 * n].sigmoid().chunk(3, dim=-1)
    cell = forget_gate * cell + input_gate * gates[..., 3 * n :].tanh()
    return (output_gate * cell.tanh()).to(gates.dtype), cell


def lstm_cell_(gates: torch.Tensor, cell: torch.Tensor, out: torch.Tensor) -> None:
    """:func:`lstm_cell` in place, for stepping without gradients.

    It updates ``cell [..., n]`` and writes the hidden state to ``out [..., n]``.
    """
    n = cell.shape[-1]
    output_gate, forget_gate, input_gate = gates[..., : 3 * n].sigmoid().chunk(3, dim=-1)
    # c = f c + i tanh(content)
    cell.mul_(forget_gate).addcmul_(input_gate, gates[..., 3 * n :].tanh())
    # h = o tanh(c), with the updated c.
    torch.mul(output_gate, cell.tanh(), out=out)


def cell_dtype(gates: torch.Tensor) -> torch.dtype:
    """Type of the cell state for these ``gates``: float32 or wider, or integers for integers."""
    if not gates.dtype.is_floating_point:
        return gates.dtype
    return torch.promote_types(gates.dtype, torch.float32)
