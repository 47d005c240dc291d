"""The functions of exact twins, against exact references."""

from __future__ import annotations

import decimal
import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from tessella.nn.integer import functions

GOLDEN = Path(__file__).parents[1] / "golden"


def exact_entry(table: str, j: int) -> int:
    """An entry of a table, from its definition in docs/arithmetic.md, by 40 decimal digits."""
    with decimal.localcontext(prec=40):
        if table == "SIGMOID":
            real = 2**15 / (1 + (-(Decimal(j) - 4096) / 256).exp())
        elif table == "LOGISTIC":
            real = 2**24 / (1 + (-Decimal(j) / 1024).exp())
        else:
            scale, steps = {
                "EXP": (2**16, 256),
                "EXP_COARSE": (2**24, 256),
                "EXP_FINE": (2**24, 65536),
            }[table]
            real = scale * (-Decimal(j) / steps).exp()
        return math.floor(real + Decimal("0.5"))


def float_table(table: str, entries: int) -> np.ndarray:
    """All entries of a table in float64, not rounded."""
    j = np.arange(entries)
    if table == "SIGMOID":
        return 2**15 / (1 + np.exp(-(j - 4096) / 256))
    if table == "LOGISTIC":
        return 2**24 / (1 + np.exp(-j / 1024))
    if table == "EXP":
        return 2**16 * np.exp(-j / 256)
    return 2**24 * np.exp(-j / (256 if table == "EXP_COARSE" else 65536))


def dense(last: int) -> torch.Tensor:
    """Integers from 0 to a little beyond ``last``: all of a range at each end, and every 7th."""
    ends = torch.cat([torch.arange(5000), torch.arange(last - 2500, last + 2500)])
    return torch.cat([ends, torch.arange(0, last, 7)])


def error(values: torch.Tensor, reference: torch.Tensor, bits: int) -> float:
    """Largest difference of values in units of ``2**-bits``, in those units."""
    return float((values.double() - reference * 2**bits).abs().max())


def test_the_tables_are_those_of_version_1() -> None:
    assert functions.digest() == (GOLDEN / "functions.sha256").read_text().strip()


@pytest.mark.parametrize(
    ("table", "entries"),
    [
        ("SIGMOID", 8193),
        ("EXP", 4097),
        ("EXP_COARSE", 4609),
        ("EXP_FINE", 256),
        ("LOGISTIC", 17409),
    ],
)
def test_every_entry_is_rounded_correctly(table: str, entries: int) -> None:
    values = functions.tables()[table]
    assert values.shape == (entries,)
    assert values.dtype == np.int32
    assert np.abs(values - float_table(table, entries)).max() <= 0.5 + 1e-6
    for j in [*range(0, entries, 17), entries - 1]:
        assert values[j] == exact_entry(table, j), (table, j)


def test_tables_cannot_be_written_to() -> None:
    with pytest.raises(ValueError):
        functions.tables()["EXP"][0] = 1


def test_rounded_rounds_halves_up() -> None:
    a = torch.tensor([-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6])
    assert functions.rounded(a, 0).tolist() == a.tolist()
    assert functions.rounded(a, 1).tolist() == [-3, -2, -2, -1, -1, 0, 0, 1, 1, 2, 2, 3, 3]
    assert functions.rounded(a, 2).tolist() == [-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_rounded_takes_a_shift_for_each_element() -> None:
    a = torch.randint(-(2**31), 2**31, (40, 31), generator=torch.Generator().manual_seed(1))
    shifts = torch.arange(31, dtype=torch.int32)
    together = functions.rounded(a.int(), shifts)
    assert together.dtype == torch.int64
    for shift in range(31):
        assert torch.equal(together[:, shift], functions.rounded(a[:, shift], shift))
        for number, result in zip(a[:, shift].tolist(), together[:, shift].tolist(), strict=True):
            assert result == math.floor(number / 2**shift + 0.5)


def test_store_limits_to_the_numbers_of_memory() -> None:
    a = torch.tensor([-(2**40), -(2**30), 1 - 2**30, 7, 2**30 - 1, 2**30, 2**62])
    limit = 2**30 - 1
    assert functions.store(a).tolist() == [-limit, -limit, -limit, 7, limit, limit, limit]
    assert functions.clamp(a, 3).tolist() == [-3, -3, -3, 3, 3, 3, 3]


def test_sigmoid_and_tanh_are_accurate() -> None:
    x = torch.cat([dense(2**20), -dense(2**20)])
    assert error(functions.sigmoid(x), torch.sigmoid(x.double() / 2**16), 15) < 1.01
    assert error(functions.tanh(x), torch.tanh(x.double() / 2**16), 15) < 2.02


def test_decays_are_accurate() -> None:
    n = dense(2**20)
    assert error(functions.decay(n), torch.exp(-n.double() / 2**16), 16) < 1.15
    n = dense(18 * 2**16)
    assert error(functions.fine_decay(n), torch.exp(-n.double() / 2**16), 24) < 1.45


def test_few_fine_sigmoids_are_those_of_many() -> None:
    x = torch.arange(-(2**21), 2**21, 97)
    many = functions.fine_sigmoid(x)
    few = torch.cat([functions.fine_sigmoid(part) for part in x.split(1000)])
    assert torch.equal(few, many)


def test_fine_sigmoid_is_accurate_and_never_falls() -> None:
    x = torch.arange(-17 * 2**16 - 100, 17 * 2**16 + 101)
    values = functions.fine_sigmoid(x)
    assert error(values, torch.sigmoid(x.double() / 2**16), 24) < 1.7
    assert bool((values.diff() >= 0).all())
    assert torch.equal(values + values.flip(0), torch.full_like(values, 2**24))


def test_functions_saturate() -> None:
    far = torch.tensor([-(2**62), -(2**30), 2**30, 2**62])
    assert functions.sigmoid(far).tolist() == [0, 0, 32768, 32768]
    assert functions.tanh(far).tolist() == [-32768, -32768, 32768, 32768]
    assert functions.fine_sigmoid(far).tolist() == [1, 1, 2**24 - 1, 2**24 - 1]
    assert functions.decay(far[2:]).tolist() == [0, 0]
    assert functions.fine_decay(far[2:]).tolist() == [0, 0]
    zero = torch.tensor([0])
    assert functions.sigmoid(zero).tolist() == [2**14]
    assert functions.tanh(zero).tolist() == [0]
    assert functions.fine_sigmoid(zero).tolist() == [2**23]
    assert functions.decay(zero).tolist() == [2**16]
    assert functions.fine_decay(zero).tolist() == [2**24]


def test_int32_and_int64_give_the_same() -> None:
    x = torch.randint(-(2**22), 2**22, (1000,), generator=torch.Generator().manual_seed(2))
    for function in (functions.sigmoid, functions.tanh, functions.fine_sigmoid, functions.store):
        assert function(x.int()).dtype == torch.int64
        assert torch.equal(function(x.int()), function(x))
    # 2 * LIMIT does not fit into 32 bits.
    large = torch.tensor([-functions.LIMIT, functions.LIMIT], dtype=torch.int32)
    assert functions.tanh(large).tolist() == [-32768, 32768]
    for function in (functions.decay, functions.fine_decay):
        assert torch.equal(function(x.abs().int()), function(x.abs()))
