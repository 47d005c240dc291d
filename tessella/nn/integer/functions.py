"""Functions of integers (``docs/arithmetic.md``, "Notation" and "Functions").

Their tables are computed with Python's integers only, because ``exp`` differs in the last digit
between machines. Arguments are tensors of int32 or int64 on any device; results are int64.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import numpy.typing as npt
import torch

FRACTION_BITS = 16
"""A number ``x`` in memory stands for ``x / 2**FRACTION_BITS``."""

LIMIT = 2**30 - 1
"""Largest absolute value of a number in memory."""

SIGMOID_BITS = 15
"""Fraction bits of :func:`sigmoid` and :func:`tanh`."""

FINE_BITS = 24
"""Fraction bits of :func:`fine_decay` and :func:`fine_sigmoid`."""

TOTAL = 2**FINE_BITS
"""Sum of the frequencies of all levels of a symbol."""

_FINE_END = (17 << 16) - 1
"""From where on, on both sides, :func:`fine_sigmoid` is constant."""

_FEW = 1 << 14
"""Up to how many results of :func:`fine_sigmoid` are looked up, each in one step."""

_WIDE_BITS = 128
"""Fraction bits of the fixed-point numbers from which the tables are rounded."""


def rounded(a: torch.Tensor, shift: int | torch.Tensor) -> torch.Tensor:
    """``a / 2**shift``, rounded to the nearest integer, halves up: ``int64 [...]``.

    Args:
        a: any integers, ``[...]``.
        shift: at least 0; a number, or integers that broadcast with ``a``.
    """
    a = a.long()
    if isinstance(shift, int):
        return (a + (1 << shift >> 1)) >> shift
    shift = shift.long()
    # With a shift of 0, half a unit becomes 0.
    return (a + ((torch.ones_like(shift) << shift) >> 1)) >> shift


def clamp(a: torch.Tensor, limit: int) -> torch.Tensor:
    """``a`` limited to ``-limit .. limit``: ``int64 [...]``."""
    return a.long().clamp(-limit, limit)


def store(a: torch.Tensor) -> torch.Tensor:
    """``a`` limited to what a number in memory can be: ``int64 [...]``."""
    return clamp(a, LIMIT)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """``1 / (1 + exp(-x / 2**16))`` in units of 2**-15, ``0 .. 2**15``."""
    # Looking up one of all results takes a third of the calls that computing it would.
    return dense_table("sigmoid", x.device)[x.long().clamp(-(2**20), 2**20) + 2**20]


def _computed_sigmoid(x: torch.Tensor) -> torch.Tensor:
    limited = clamp(x, 2**20)
    nearest = (limited + 128) >> 8
    rest = limited - (nearest << 8)
    value = device_table("SIGMOID", x.device)[nearest + 4096]
    slope = (value * (32768 - value)) >> 15
    return value + rounded(slope * rest, 16)


def tanh(x: torch.Tensor) -> torch.Tensor:
    """``tanh(x / 2**16)`` in units of 2**-15, ``-2**15 .. 2**15``."""
    # Beyond the ends of the table the sigmoid of twice the number is constant.
    return dense_table("tanh", x.device)[x.long().clamp(-(2**19), 2**19) + 2**19]


def decay(n: torch.Tensor) -> torch.Tensor:
    """``exp(-n / 2**16)`` in units of 2**-16, for ``n >= 0``."""
    return dense_table("decay", n.device)[n.long().clamp(max=2**20)]


def _computed_decay(n: torch.Tensor) -> torch.Tensor:
    # The last entry of the table is 0, as is everything beyond it.
    limited = n.long().clamp(max=2**20)
    nearest = (limited + 128) >> 8
    rest = limited - (nearest << 8)
    value = device_table("EXP", n.device)[nearest]
    return value - rounded(value * rest, 16)


def fine_decay(n: torch.Tensor) -> torch.Tensor:
    """``exp(-n / 2**16)`` in units of 2**-24, for ``n >= 0``."""
    # The last entry of the coarse table is 0, as is everything beyond it.
    limited = n.long().clamp(max=18 << 16)
    coarse = device_table("EXP_COARSE", n.device)[limited >> 8]
    fine = device_table("EXP_FINE", n.device)[limited & 255]
    return rounded(coarse * fine, 24)


def fine_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """``1 / (1 + exp(-x / 2**16))`` in units of 2**-24, ``1 .. 2**24 - 1``."""
    # Looking up results takes fewer calls, but their table is too large for the caches of a
    # processor: for many numbers, computing them is faster.
    if x.numel() > _FEW:
        return _computed_fine_sigmoid(x)
    indices = x.long().clamp(-_FINE_END, _FINE_END).add_(_FINE_END)
    return dense_table("fine_sigmoid", x.device)[indices]


def _computed_fine_sigmoid(x: torch.Tensor) -> torch.Tensor:
    x = x.long()
    limited = x.abs().clamp(max=_FINE_END)
    index = limited >> 6
    table = device_table("LOGISTIC", x.device)
    low = table[index]
    value = low + (((table[index + 1] - low) * (limited & 63)) >> 6)
    return torch.where(x < 0, TOTAL - value, value)


def attention_scale(size: int) -> int:
    """``1 / sqrt(size)`` in units of 2**-16, for heads of ``size`` elements."""
    # Twice the root, rounded down, is enough to round to the nearest integer.
    return (math.isqrt((1 << 34) // size) + 1) // 2


def norm_epsilon(epsilon: float) -> int:
    """The epsilon of a norm in units of 2**-44, rounded to the nearest integer."""
    return math.floor(epsilon * 2.0**44 + 0.5)


@functools.cache
def dense_table(name: str, device: torch.device) -> torch.Tensor:
    """All results of a function between the ends of its range: ``int64 [results]``."""
    if name == "decay":
        return _computed_decay(torch.arange(2**20 + 1, device=device))
    if name == "fine_sigmoid":
        return _computed_fine_sigmoid(torch.arange(-_FINE_END, _FINE_END + 1, device=device))
    results = _computed_sigmoid(torch.arange(-(2**20), 2**20 + 1, device=device))
    if name == "sigmoid":
        return results
    assert name == "tanh"
    return 2 * results[::2] - 32768


@functools.cache
def wide_table(name: str, device: torch.device) -> torch.Tensor:
    """:func:`dense_table` as ``float64 [results]``."""
    return dense_table(name, device).double()


@functools.cache
def device_table(name: str, device: torch.device) -> torch.Tensor:
    """A table of :func:`tables` as ``int64 [entries]`` on a device, copied there once."""
    return torch.from_numpy(tables()[name].astype(np.int64)).to(device)


@functools.cache
def tables() -> dict[str, npt.NDArray[np.int32]]:
    """The tables by name, in the order of ``docs/arithmetic.md``: ``int32 [entries]`` each."""
    one = 1 << _WIDE_BITS
    by_256th = _powers(256, 4608)
    sigmoid_entries = []
    for j in range(-4096, 4097):
        # Only exponentials of negative numbers are needed: those of positive ones are large.
        power = by_256th[abs(j)]
        numerator = one if j >= 0 else power
        sigmoid_entries.append(_quotient(numerator << SIGMOID_BITS, one + power))
    logistic_entries = []
    for power in _powers(1024, 17408):
        logistic_entries.append(_quotient(one << FINE_BITS, one + power))
    entries = {
        "SIGMOID": sigmoid_entries,
        "EXP": _in_units(by_256th[:4097], 16),
        "EXP_COARSE": _in_units(by_256th, FINE_BITS),
        "EXP_FINE": _in_units(_powers(65536, 255), FINE_BITS),
        "LOGISTIC": logistic_entries,
    }
    result = {}
    for name, values in entries.items():
        result[name] = np.array(values, dtype=np.int32)
        result[name].flags.writeable = False
    return result


def digest() -> str:
    """SHA-256 of the little-endian bytes of all tables, as hexadecimal digits."""
    sha = hashlib.sha256()
    for table in tables().values():
        sha.update(table.astype("<i4").tobytes())
    return sha.hexdigest()


def _powers(steps: int, last: int) -> list[int]:
    """``exp(-j / steps)`` for ``j = 0 .. last``, in units of ``2**-_WIDE_BITS``.

    Each is off by less than ``2 * last + 2`` units, far too little to round an entry of a table
    differently.
    """
    one = 1 << _WIDE_BITS
    # exp(-1 / steps) = 1 - 1 / steps + 1 / (2 steps^2) - ..., until a term is 0.
    step = 0
    term = one
    order = 0
    while term:
        step += -term if order % 2 else term
        order += 1
        term //= order * steps
    powers = [one]
    for _ in range(last):
        powers.append((powers[-1] * step) >> _WIDE_BITS)
    return powers


def _in_units(wide: list[int], bits: int) -> list[int]:
    """Numbers of ``2**-_WIDE_BITS``, rounded to units of ``2**-bits``."""
    shift = _WIDE_BITS - bits
    values = []
    for number in wide:
        values.append((number + (1 << (shift - 1))) >> shift)
    return values


def _quotient(numerator: int, denominator: int) -> int:
    """The quotient of two positive integers, rounded to the nearest integer, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)
