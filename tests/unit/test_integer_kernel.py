"""Exact programs in the compiled kernel: the integers of the torch runner, and those of the
arithmetic written in Python; by any number of threads and any instruction set."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tessella import kernel
from tessella.errors import ArtifactError, InputError
from tessella.nn.integer import compiled_integers
from tessella.nn.integer.compiled_integers import IntegerCompiledRunner
from tessella.nn.integer.functions import LIMIT, tables
from tessella.nn.integer.matrix import IntegerMatrix
from tessella.nn.integer.operations import IntegerTorchRunner
from tessella.nn.stepping.operation import ACTIVATIONS, OPERATIONS, PAIRED
from tessella.nn.stepping.program import Places, Plane, Program, Vectors
from tessella.nn.stepping.runners import create_runner

pytestmark = pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")

ROWS = [1, 2, 5, 16, 70]
"""Below, at and above the rows that the kernel takes together."""

SIZES = [(1, 2), (2, 6), (7, 16), (8, 18), (9, 30), (16, 32), (33, 34), (40, 66), (100, 130)]
"""Inputs and outputs of products, around the numbers of lanes and of panels."""

Memory = list[torch.Tensor]
"""What a program has written."""

Build = Callable[[], tuple[Program, Memory, list[tuple[int, ...]]]]
"""A new program, the memory it writes, and the variables of each run."""


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of all magnitudes, some as large as they get."""
    generator = torch.Generator().manual_seed(seed)
    full = torch.randint(-LIMIT, LIMIT + 1, shape, generator=generator)
    values = full >> torch.randint(0, 30, shape, generator=generator)
    kinds = torch.randint(0, 16, shape, generator=generator)
    values[kinds == 0] = LIMIT
    values[kinds == 1] = -LIMIT
    values[kinds == 2] = 0
    return values.int()


def matrix(inputs: int, outputs: int, seed: int = 0, shift: int = -1) -> IntegerMatrix:
    """A matrix whose sums fit into 32 bits, and for some inputs only just."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-32767, 32768, (inputs, outputs), generator=generator)
    # Of one sign, so that saturated inputs add up.
    weight[:, ::3] = weight[:, ::3].abs()
    shifts = torch.randint(1, 31, (outputs,), generator=generator)
    most = (2**31 - 1 - 2 ** (shifts - 1)) // 8191
    sums = weight.abs().sum(0).clamp(min=1)
    scaled = torch.where(sums > most, weight.abs() * most // sums, weight.abs())
    if shift < 0:
        shift = int(torch.randint(0, 19, (), generator=generator))
    return IntegerMatrix((weight.sign() * scaled).short(), shift, shifts.int())


def program(batch: int, *variables: str, places: int = 0) -> Program:
    return Program(batch, variables, torch.zeros(1, dtype=torch.int32), places)


def empty(*shape: int) -> torch.Tensor:
    """Memory that has not been written."""
    return torch.full(shape, 12345, dtype=torch.int32)


def written(build: Build, threads: int = 1) -> Memory:
    """What the kernel writes."""
    listed, memory, runs = build()
    runner = IntegerCompiledRunner(listed)
    # However little there is to do.
    runner._threads = threads
    for values in runs:
        runner.run(values)
    return memory


def agree(*builds: Build, threads: int = 1) -> None:
    for build in builds:
        listed, expected, runs = build()
        runner = IntegerTorchRunner(listed)
        for values in runs:
            runner.run(values)
        got = written(build, threads)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def width(activation: str, outputs: int) -> int:
    if activation in PAIRED:
        return outputs // 2
    return 2 * outputs if activation == "concat-elu" else outputs


def product(
    rows: int, inputs: int, outputs: int, activation: str, added: bool, kept: bool = False
) -> Build:
    def build() -> tuple[Program, Memory, list[tuple[int, ...]]]:
        out = empty(rows, width(activation, outputs))
        plus = numbers(rows, outputs, seed=2) if added else None
        residual = numbers(*out.shape, seed=3) if kept and activation in PAIRED else None
        listed = program(rows)
        weight = matrix(inputs, outputs, seed=inputs + outputs)
        listed.linear(numbers(rows, inputs), weight, out, plus, activation, residual)
        return listed, [out], [()]

    return build


def pointwise(name: str, rows: int, size: int, activation: str) -> Build:
    def build() -> tuple[Program, Memory, list[tuple[int, ...]]]:
        x = numbers(rows, size)
        out = empty(rows, width(activation, size))
        listed = program(rows)
        if name == "add":
            listed.add(x, numbers(rows, size, seed=1), out, activation)
        else:
            listed.map(x, out, activation)
        return listed, [out], [()]

    return build


def norm(rows: int, size: int, epsilon: float, bits: int) -> Build:
    def build() -> tuple[Program, Memory, list[tuple[int, ...]]]:
        x = numbers(rows, size) >> (30 - bits)
        out = empty(rows, size)
        listed = program(rows)
        listed.norm(x, numbers(size, seed=1), out, epsilon)
        return listed, [out], [()]

    return build


def rotation(rows: int, size: int, heads: int) -> Build:
    def build() -> tuple[Program, Memory, list[tuple[int, ...]]]:
        out = empty(rows, heads * size)
        turns = Vectors(numbers(4, 2 * size, seed=1)).at("position")
        listed = program(rows, "position")
        listed.rotate(numbers(rows, heads * size), turns, out, heads)
        return listed, [out], [(3,)]

    return build


def attention(rows: int, size: int, heads: int, groups: int, known: int, bits: int = 30) -> Build:
    def build() -> tuple[Program, Memory, list[tuple[int, ...]]]:
        keys = numbers(rows, 21, groups * size, seed=1) >> (30 - bits)
        contents = numbers(rows, 21, groups * size, seed=2)
        query = numbers(rows, heads * size) >> (30 - bits)
        out = empty(rows, heads * size)
        listed = program(rows, "known")
        listed.attend(query, keys, contents, out, "known", heads, groups)
        return listed, [out], [(known,)]

    return build


def lookup(rows: int, size: int) -> Build:
    def build() -> tuple[Program, Memory, list[tuple[int, ...]]]:
        memory = numbers(rows, 6, size, seed=1)
        listed = program(rows, "column")
        target = Places(memory, margin=1).at("column")
        listed.lookup(torch.arange(rows) * 3 % 5, numbers(5, size), target)
        return listed, [memory], [(2,), (0,)]

    return build


def cell(rows: int, size: int) -> Build:
    def build() -> tuple[Program, Memory, list[tuple[int, ...]]]:
        gates = numbers(rows, 4 * size)
        cells = numbers(rows, 5, size, seed=1)
        hidden = empty(rows, 5, size + 3)
        listed = program(rows, "column")
        out = Places(hidden, 1).at("column").first(size)
        listed.cell(gates, Places(cells, 1).at("column"), out)
        return listed, [cells, hidden], [(2,), (0,)]

    return build


def over_places(rows: int) -> Build:
    """Products and sums over the windows of moving rows, into part of a wider memory."""

    def build() -> tuple[Program, Memory, list[tuple[int, ...]]]:
        maps = numbers(rows, 3, 9, 5)
        out = empty(rows, 9, 20)
        after = empty(rows, 3, 32)
        listed = program(rows, "row", places=3)
        windows = Places(maps[:, 0], 2, 6, "row", maps.stride(1)).windows(1, 1, every=2)
        shared = Plane(numbers(4, 3, 26, seed=2)).row("row").moving_row()
        residual = numbers(rows, 3, 13, seed=3)
        listed.linear(windows, matrix(15, 26), out[:, 2:5, 4:17], shared, "glu", residual)
        listed.add(out[:, 2:5, :16], numbers(rows, 1, 16, seed=4), after, "concat-elu")
        return listed, [out, after], [(1,), (2,)]

    return build


def along_a_row(rows: int) -> Build:
    """Several operations at moving places, each reading what another wrote."""

    def build() -> tuple[Program, Memory, list[tuple[int, ...]]]:
        memory = numbers(rows, 8, 24) >> 12
        sums = numbers(rows, 72, seed=1) >> 10
        out = empty(rows, 20, 30)
        listed = program(rows, "row", "column")
        window = Places(memory).window("column", left=0, right=1)
        listed.linear(window, matrix(48, 72, shift=4), sums, add=sums)
        half = listed.zeros(36)
        listed.linear(memory[:, 0], matrix(24, 72, seed=1, shift=3), half, sums, "gate")
        target = Places(out, margin=1).at("row", every=3)
        listed.linear(half, matrix(36, 30, seed=2, shift=2), target, None, "silu")
        return listed, [memory, sums, out], [(0, 0), (5, 3), (2, 5)]

    return build


def every_operation(rows: int) -> Iterator[Build]:
    """One program of each kind."""
    for inputs, outputs in SIZES:
        for index, activation in enumerate(ACTIVATIONS):
            yield product(rows, inputs, outputs, activation, bool(index % 2), outputs > 16)
    for activation in ACTIVATIONS:
        yield pointwise("map", rows, 38, activation)
    yield pointwise("add", rows, 37, "silu")
    yield norm(rows, 37, 1e-6, 30)
    yield rotation(rows, 6, 3)
    yield attention(rows, 20, 4, 2, 19, bits=20)
    yield lookup(rows, 37)
    yield cell(rows, 37)
    yield over_places(rows)
    yield along_a_row(rows)


def digest() -> str:
    """SHA-256 of what the kernel writes in every operation."""
    sha = hashlib.sha256()
    for rows in (1, 6, 70):
        for build in every_operation(rows):
            for memory in written(build):
                sha.update(memory.numpy().tobytes())
    return sha.hexdigest()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", ROWS)
def test_every_operation_gives_the_integers_of_torch(rows: int, threads: int) -> None:
    agree(*every_operation(rows), threads=threads)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_products_of_all_sizes(activation: str, added: bool, kept: bool) -> None:
    for inputs, outputs in SIZES:
        for rows in (1, 3, 9):
            agree(product(rows, inputs, outputs, activation, added, kept))


@pytest.mark.parametrize("size", [2, 8, 14, 16, 46])
def test_functions_of_each_number(size: int) -> None:
    for activation in ACTIVATIONS:
        agree(pointwise("map", 5, size, activation))
        if activation not in PAIRED:
            agree(pointwise("add", 5, size, activation))


@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-6, 1e-2, 100.0])
@pytest.mark.parametrize("bits", [0, 1, 5, 15, 16, 30])
def test_norms_of_all_magnitudes(epsilon: float, bits: int) -> None:
    for size in (1, 2, 8, 33, 300):
        agree(norm(4, size, epsilon, bits))


@pytest.mark.parametrize("known", [0, 1, 7, 8, 21])
@pytest.mark.parametrize("bits", [10, 18, 21, 30])
def test_attention(known: int, bits: int) -> None:
    for size, heads, groups in ((1, 1, 1), (2, 4, 2), (8, 2, 1), (9, 4, 4), (33, 6, 3)):
        agree(attention(3, size, heads, groups, known, bits))


@pytest.mark.parametrize("rows", [1, 3])
def test_rotations_lookups_and_cells(rows: int) -> None:
    agree(rotation(rows, 2, 1), rotation(rows, 4, 5), rotation(rows, 30, 2))
    for size in (1, 8, 17):
        agree(lookup(rows, size), cell(rows, size))


# ---- the arithmetic, written in Python's integers


def rounded(a: int, shift: int) -> int:
    return (a + (1 << (shift - 1))) >> shift if shift else a


def clamped(a: int, limit: int = LIMIT) -> int:
    return max(-limit, min(a, limit))


def sigmoid(x: int) -> int:
    t = clamped(x, 2**20)
    j = (t + 128) >> 8
    s = int(tables()["SIGMOID"][j + 4096])
    return s + rounded(((s * (32768 - s)) >> 15) * (t - 256 * j), 16)


def tanh(x: int) -> int:
    return 2 * sigmoid(clamped(x) * 2) - 32768


def decay(n: int) -> int:
    if n >= 2**20:
        return 0
    j = (n + 128) >> 8
    e = int(tables()["EXP"][j])
    return e - rounded(e * (n - 256 * j), 16)


def elu(x: int) -> int:
    return x if x >= 0 else decay(-x) - 65536


def silu(x: int) -> int:
    return rounded(x * sigmoid(x), 15)


FORMULAS: dict[str, Callable[..., int]] = {
    "": lambda x: x,
    "relu": lambda x: max(x, 0),
    "silu": silu,
    "elu": elu,
    "gate": lambda a, b: rounded(tanh(a) * sigmoid(b), 14),
    "glu": lambda a, b: rounded(a * sigmoid(b), 15),
    "swiglu": lambda a, b: rounded(silu(a) * b, 16),
}


def activated(name: str, x: Sequence[int]) -> list[int]:
    if name == "concat-elu":
        return [elu(a) for a in x] + [elu(-a) for a in x]
    if name in PAIRED:
        half = len(x) // 2
        return [FORMULAS[name](*pair) for pair in zip(x[:half], x[half:], strict=True)]
    return [FORMULAS[name](a) for a in x]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_product_is_what_the_arithmetic_says(activation: str) -> None:
    rows, inputs, outputs = 3, 9, 30
    (got,) = written(product(rows, inputs, outputs, activation, True, kept=True))
    weight = matrix(inputs, outputs, seed=inputs + outputs)
    residual = numbers(*got.shape, seed=3).tolist()
    for row in range(rows):
        x = [
            clamped(rounded(a, weight.input_shift), 8191)
            for a in numbers(rows, inputs)[row].tolist()
        ]
        plus = numbers(rows, outputs, seed=2)[row].tolist()
        sums = []
        for o, column in enumerate(weight.weight.T.tolist()):
            total = sum(a * w for a, w in zip(x, column, strict=True))
            sums.append(clamped(rounded(total, int(weight.output_shift[o])) + plus[o]))
        expected = activated(activation, sums)
        if activation in PAIRED:
            expected = [a + b for a, b in zip(expected, residual[row], strict=True)]
        assert got[row].tolist() == [clamped(a) for a in expected]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["map", "add"])
def test_a_function_is_what_the_arithmetic_says(name: str, activation: str) -> None:
    if name == "add" and activation in PAIRED:
        return
    (got,) = written(pointwise(name, 1, 400, activation))
    x = numbers(1, 400)[0].tolist()
    if name == "add":
        others = numbers(1, 400, seed=1)[0].tolist()
        x = [clamped(a + b) for a, b in zip(x, others, strict=True)]
    assert got[0].tolist() == [clamped(a) for a in activated(activation, x)]


@pytest.mark.parametrize(("size", "bits", "epsilon"), [(13, 30, 0.0), (7, 3, 0.5), (5, 16, 1e-6)])
def test_a_norm_is_what_the_arithmetic_says(size: int, bits: int, epsilon: float) -> None:
    (got,) = written(norm(2, size, epsilon, bits))
    scale = numbers(size, seed=1).tolist()
    for row, x in enumerate((numbers(2, size) >> (30 - bits)).tolist()):
        h = max(0, max(abs(a) for a in x).bit_length() - 15)
        narrow = [rounded(a, h) for a in x]
        mean = (sum(a * a for a in narrow) << 12) // size
        d = max(1, math.isqrt(mean + (math.floor(epsilon * 2**44 + 0.5) >> (2 * h))))
        r = (2**36 + d // 2) // d
        units = [rounded(a * r, 14) for a in narrow]
        expected = [clamped(rounded(u * s, 16)) for u, s in zip(units, scale, strict=True)]
        assert got[row].tolist() == expected


def test_a_rotation_is_what_the_arithmetic_says() -> None:
    size, heads = 6, 2
    (got,) = written(rotation(1, size, heads))
    x = numbers(1, heads * size)[0].tolist()
    turns = numbers(4, 2 * size, seed=1)[3].tolist()
    expected = []
    for i, value in enumerate(x):
        turned = value * turns[i % size] + x[i ^ 1] * turns[size + i % size]
        expected.append(clamped(rounded(turned, 16)))
    assert got[0].tolist() == expected


@pytest.mark.parametrize("bits", [19, 22, 30])
def test_attention_is_what_the_arithmetic_says(bits: int) -> None:
    size, heads, groups, known = 5, 4, 2, 11
    (got,) = written(attention(1, size, heads, groups, known, bits))
    query = (numbers(1, heads * size) >> (30 - bits))[0].tolist()
    keys = (numbers(1, 21, groups * size, seed=1) >> (30 - bits))[0].tolist()
    contents = numbers(1, 21, groups * size, seed=2)[0].tolist()
    expected = []
    for head in range(heads):
        q = [clamped(rounded(a, 6), 2**20) for a in query[head * size :][:size]]
        offset = head // (heads // groups) * size
        scores = []
        for p in range(known):
            k = [clamped(rounded(a, 6), 2**20) for a in keys[p][offset:][:size]]
            total = sum(a * b for a, b in zip(q, k, strict=True))
            scores.append(rounded((total >> 4) * math.floor(2**16 / math.sqrt(size) + 0.5), 16))
        e = [decay(max(scores) - s) for s in scores]
        for i in range(size):
            v = [clamped(rounded(contents[p][offset + i], 4), 2**26) for p in range(known)]
            n = sum(a * b for a, b in zip(e, v, strict=True))
            expected.append(clamped(16 * ((2 * n + sum(e)) // (2 * sum(e)))))
    assert got[0].tolist() == expected


def test_a_lookup_is_what_the_arithmetic_says() -> None:
    (got,) = written(lookup(3, 9))
    expected = numbers(3, 6, 9, seed=1).long()
    for row in range(3):
        for column in (3, 1):
            expected[row, column] += numbers(5, 9)[row * 3 % 5]
    assert got.tolist() == expected.clamp(-LIMIT, LIMIT).tolist()


def test_a_cell_is_what_the_arithmetic_says() -> None:
    size = 11
    cells, hidden = written(cell(1, size))
    before = numbers(1, 5, size, seed=1)
    emit, forget, write, content = numbers(1, 4 * size)[0].view(4, size).tolist()
    for column in (3, 1):
        for i in range(size):
            kept = rounded(sigmoid(forget[i]) * int(before[0, column, i]), 15)
            state = clamped(kept + rounded(sigmoid(write[i]) * tanh(content[i]), 14))
            assert int(cells[0, column, i]) == state
            assert int(hidden[0, column, i]) == rounded(sigmoid(emit[i]) * tanh(state), 14)
    assert (hidden[0, :, size:] == 12345).all()


# ---- how the kernel is chosen and called


def test_the_kernel_was_compiled_with_our_records(monkeypatch: pytest.MonkeyPatch) -> None:
    library = kernel.library()
    assert library is not None
    library.tessella_integer_layout.restype = ctypes.c_char_p
    assert library.tessella_integer_layout().decode() == compiled_integers.integer_layout()
    record = compiled_integers.INTEGER_RECORD
    fields = [(name, record[name]) for name in record.names or ()]
    fields[7], fields[8] = fields[8], fields[7]
    monkeypatch.setattr(compiled_integers, "INTEGER_RECORD", np.dtype(fields))
    compiled_integers.check_integer_layout.cache_clear()
    with pytest.raises(ArtifactError, match="other operations or records"):
        compiled_integers.check_integer_layout(library)


@pytest.mark.parametrize("symbol", [-1, 5])
def test_a_symbol_outside_the_table_is_refused(symbol: int) -> None:
    listed = program(2)
    listed.lookup(torch.tensor([0, symbol]), numbers(5, 3), listed.zeros(3))
    with pytest.raises(InputError):
        IntegerCompiledRunner(listed).run(())


def test_the_kernel_runs_programs_of_integers_unless_it_is_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = program(1)
    listed.map(numbers(1, 2), listed.zeros(2))
    assert isinstance(create_runner(listed), IntegerCompiledRunner)
    monkeypatch.setenv("TESSELLA_KERNEL", "0")
    assert isinstance(create_runner(listed), IntegerTorchRunner)


def test_packed_weights_are_kept() -> None:
    weight = matrix(3, 4)
    assert compiled_integers.pack(weight, False, 32) is compiled_integers.pack(weight, False, 32)
    assert compiled_integers.pack(weight, True, 32).shape == (1, 2, 2, 8)


def test_every_operation_is_tested() -> None:
    names = set()
    for build in every_operation(1):
        names |= {operation.name for operation in build()[0].operations}
    # No model with a twin has weights that move.
    assert names == set(OPERATIONS) - {"product"}


# Each builds the whole kernel, which takes some ten seconds of a processor.
@pytest.mark.parametrize("processor", ["x86-64", pytest.param("x86-64-v3", marks=pytest.mark.slow)])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="another kind of processor")
def test_other_instruction_sets_give_the_same_integers(processor: str) -> None:
    command = [sys.executable, str(Path(__file__))]
    environment = {
        **os.environ,
        "TESSELLA_KERNEL_MARCH": processor,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [digest(), f"{16 if processor == 'x86-64' else 32}"]


if __name__ == "__main__":
    built = kernel.library()
    assert built is not None
    print(digest(), built.tessella_lane_bytes())
