"""Programs: each operation against its formula in float64, by each runner; where operands move;
without a compiler."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tessella as ts
from tessella import kernel
from tessella.errors import ArtifactError, InputError
from tessella.nn.lstm_cell import lstm_cell
from tessella.nn.stepping import compiled
from tessella.nn.stepping.compiled import CompiledRunner
from tessella.nn.stepping.operation import ACTIVATIONS, OPERATIONS
from tessella.nn.stepping.program import Matrix, Places, Plane, Program, Vectors
from tessella.nn.stepping.runners import IndexedRunner, TorchRunner
from tessella.nn.stepping.torch_operations import TORCH_OPERATIONS, splits_in_halves

RUNNERS = [TorchRunner, IndexedRunner, CompiledRunner]
BATCHES = [1, 2, 3, 7, 9, 70]
"""Below, at and above the rows that the kernel takes together."""


@pytest.fixture(params=RUNNERS, ids=lambda runner: runner.__name__.lower())
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a program by one of the runners."""
    if request.param is CompiledRunner and not kernel.available():
        pytest.skip("no C++ compiler")

    def act(program: Program, *values: int) -> None:
        request.param(program).run(values)

    return act


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def program(batch: int, *variables: str, places: int = 0) -> Program:
    return Program(batch, variables, normal(1), places)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


FORMULAS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "": lambda s: s,
    "relu": lambda s: s.clamp(min=0),
    "silu": lambda s: s / (1 + (-s).exp()),
    "elu": lambda s: torch.where(s > 0, s, s.exp() - 1),
    "concat-elu": lambda s: torch.cat([F.elu(s), F.elu(-s)], dim=-1),
    "gate": lambda s: s.chunk(2, -1)[0].tanh() * s.chunk(2, -1)[1].sigmoid(),
    "glu": lambda s: s.chunk(2, -1)[0] * s.chunk(2, -1)[1].sigmoid(),
    "swiglu": lambda s: F.silu(s.chunk(2, -1)[0]) * s.chunk(2, -1)[1],
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("activation", FORMULAS)
@pytest.mark.parametrize("outputs", [6, 32, 44])
def test_a_product_and_what_follows_it(
    run: Callable[..., None], batch: int, activation: str, outputs: int
) -> None:
    x = normal(batch, 13)
    weight = normal(13, outputs, seed=1) / 3
    added = normal(batch, outputs, seed=2)
    expected = FORMULAS[activation](x @ weight + added)
    residual = normal(*expected.shape, seed=3) if activation in ("gate", "glu", "swiglu") else None
    out = torch.full_like(expected, torch.nan)
    listed = program(batch)
    listed.linear(x, Matrix(weight), out, added, activation, residual)
    run(listed)
    close(out, expected if residual is None else expected + residual)


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_a_product_over_the_windows_of_a_row(run: Callable[..., None], batch: int) -> None:
    memory = normal(batch, 9, 5)
    weight = normal(15, 8, seed=1)
    bias = normal(batch, 1, 8, seed=2)
    out = torch.zeros(batch, 9, 4, dtype=torch.float64)
    listed = program(batch, places=3)
    listed.linear(
        Places(memory, 2, 6).windows(1, 1, every=2), Matrix(weight), out[:, 2:5], bias, "glu"
    )
    run(listed)
    seen = torch.stack([memory[:, 1 + 2 * i : 4 + 2 * i].flatten(1) for i in range(3)], dim=1)
    close(out[:, 2:5], F.glu(seen @ weight + bias, dim=-1))
    assert not out[:, :2].any()
    assert not out[:, 5:].any()


@pytest.mark.parametrize("batch", [1, 5])
def test_operands_move_with_their_variable(run: Callable[..., None], batch: int) -> None:
    memory = normal(batch, 7, 4)
    links = normal(batch, 7, 6, seed=1)
    weight = normal(8, 6, seed=2)
    out = torch.zeros(batch, 20, 6, dtype=torch.float64)
    listed = program(batch, "row", "column")
    window = Places(memory).window("column", right=1)
    target = Places(out, margin=1).at("row", every=3)
    listed.linear(window, Matrix(weight), target, add=Places(links).at("column"))
    for row, column in ((0, 0), (5, 3), (2, 5)):
        run(listed, row, column)
        expected = memory[:, column : column + 2].flatten(1) @ weight + links[:, column]
        close(out[:, 1 + 3 * row], expected)
    assert int(out.any(dim=2).any(dim=0).sum()) == 3


def test_sums_may_grow_in_place(run: Callable[..., None]) -> None:
    x = normal(3, 4)
    weight = normal(4, 4, seed=1)
    sums = normal(3, 4, seed=2)
    before = sums.clone()
    listed = program(3)
    listed.linear(x, Matrix(weight), sums, add=sums)
    listed.add(sums, x, sums)
    run(listed)
    close(sums, before + x @ weight + x)


@pytest.mark.parametrize("activation", ["", "relu", "silu", "elu", "concat-elu", "glu"])
def test_a_function_of_each_number(run: Callable[..., None], activation: str) -> None:
    x = normal(3, 22) * 4
    expected = FORMULAS[activation](x)
    out = torch.zeros_like(expected)
    listed = program(3)
    listed.map(x, out, activation)
    run(listed)
    close(out, expected)


def test_a_vector_is_added_to_all(run: Callable[..., None]) -> None:
    x = normal(2, 5, 9)
    row = normal(4, 5, 9, seed=1)
    listed = program(2, "row", places=5)
    out = torch.zeros_like(x)
    listed.add(Plane(row).row("row").moving_row(), x, out, "elu")
    run(listed, 3)
    close(out, F.elu(row[3] + x))


def test_a_norm_is_by_the_root_of_the_mean_square(run: Callable[..., None]) -> None:
    x = normal(4, 21)
    scale = normal(21, seed=1)
    listed = program(4)
    out = torch.zeros_like(x)
    listed.norm(x, scale, out, 1e-2)
    run(listed)
    close(out, x / (x.square().mean(1, keepdim=True) + 1e-2).sqrt() * scale)


def test_a_rotation_turns_pairs(run: Callable[..., None]) -> None:
    x = normal(3, 2, 4, 2)
    angles = normal(5, 4, seed=1)
    listed = program(3, "position")
    cosines = angles.cos()
    sines = angles.sin()
    cos_sin = torch.cat(
        [cosines.repeat_interleave(2, 1), torch.stack([-sines, sines], 2).flatten(1)], dim=1
    )
    out = torch.zeros(3, 16, dtype=torch.float64)
    listed.rotate(x.flatten(1), Vectors(cos_sin).at("position"), out, heads=2)
    run(listed, 3)
    turned = torch.view_as_complex(x) * torch.polar(torch.ones_like(angles), angles)[3]
    close(out, torch.view_as_real(turned).flatten(1))


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (2, 1)])
@pytest.mark.parametrize("known", [0, 1, 6, 9])
def test_attention_to_the_first_places(
    run: Callable[..., None], heads: int, groups: int, known: int
) -> None:
    size = 5
    listed = program(3, "known")
    query = normal(3, heads * size)
    keys = normal(3, 9, groups * size, seed=1)
    contents = normal(3, 9, groups * size, seed=2)
    out = torch.full((3, heads * size), torch.nan, dtype=torch.float64)
    listed.attend(query, keys, contents, out, "known", heads, groups)
    run(listed, known)
    expected = torch.zeros_like(out)
    for head in range(heads if known else 0):
        group = slice(head // (heads // groups) * size, (head // (heads // groups) + 1) * size)
        own = slice(head * size, (head + 1) * size)
        scores = (keys[:, :known, group] @ query[:, own, None])[..., 0] / math.sqrt(size)
        expected[:, own] = (scores.softmax(1)[:, None] @ contents[:, :known, group])[:, 0]
    close(out, expected)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (2, 1)])
@pytest.mark.parametrize("known", [0, 1, 6])
def test_each_place_attends_to_one_more_than_the_place_before(
    run: Callable[..., None], heads: int, groups: int, known: int
) -> None:
    size = 5
    query = normal(3, 4, heads * size)
    keys = normal(3, 9, groups * size, seed=1)
    contents = normal(3, 9, groups * size, seed=2)
    together = program(3, "known", places=4)
    out = torch.full_like(query, torch.nan)
    together.attend(query, keys, contents, out, "known", heads, groups)
    run(together, known)
    for place in range(4):
        alone = program(3, "known")
        expected = torch.zeros(3, heads * size, dtype=torch.float64)
        alone.attend(query[:, place].contiguous(), keys, contents, expected, "known", heads, groups)
        run(alone, known + place)
        close(out[:, place], expected)


def test_each_place_may_turn_by_its_own_angles(run: Callable[..., None]) -> None:
    x = normal(3, 2, 16)
    cos_sin = normal(7, 16, seed=1)
    out = torch.zeros_like(x)
    together = program(3, "position", places=2)
    together.rotate(x, Vectors(cos_sin).span("position", 2), out, heads=2)
    run(together, 4)
    for place in range(2):
        alone = program(3)
        expected = torch.zeros(3, 16, dtype=torch.float64)
        alone.rotate(x[:, place].contiguous(), cos_sin[4 + place], expected, heads=2)
        run(alone)
        close(out[:, place], expected)


def test_vectors_of_symbols_are_added(run: Callable[..., None]) -> None:
    symbols = torch.tensor([4, 0, 2])
    table = normal(5, 7)
    memory = normal(3, 6, 7, seed=1)
    before = memory.clone()
    listed = program(3, "column")
    listed.lookup(symbols, table, Places(memory, margin=1).at("column"))
    run(listed, 2)
    before[:, 3] += table[symbols]
    close(memory, before)


def test_a_cell_remembers(run: Callable[..., None]) -> None:
    gates = normal(3, 44)
    cells = normal(3, 11, seed=1)
    listed = program(3)
    kept = cells.clone()
    out = torch.zeros(3, 11, dtype=torch.float64)
    listed.cell(gates, cells, out)
    run(listed)
    emit, forget, write, content = gates.chunk(4, dim=1)
    expected = forget.sigmoid() * kept + write.sigmoid() * content.tanh()
    close(cells, expected)
    close(out, emit.sigmoid() * expected.tanh())


def test_a_cell_may_move(run: Callable[..., None]) -> None:
    gates = normal(3, 20)
    cells = normal(3, 6, 5, seed=1)
    hidden = normal(3, 6, 9, seed=2)
    listed = program(3, "column")
    expected = cells.clone()
    kept = hidden[:, :, 5:].clone()
    new, expected[:, 4] = lstm_cell(gates, cells[:, 4])
    listed.cell(gates, Places(cells, 1).at("column"), Places(hidden, 1).at("column").first(5))
    run(listed, 3)
    close(cells, expected)
    close(hidden[:, 4, :5], new)
    close(hidden[:, :, 5:], kept)


PLAIN = ["", "relu", "silu", "elu"]
"""Activations whose result is as wide as their argument."""


def moving(count: int, inputs: int, outputs: int, turned: bool) -> torch.Tensor:
    """Weights of several places, ``[count, inputs, outputs]``, contiguous by inputs or outputs."""
    weights = normal(count, inputs, outputs, seed=1) / 3
    return weights.transpose(1, 2).contiguous().transpose(1, 2) if turned else weights


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1, 1), (37, 1), (1, 50), (13, 3), (40, 22), (9, 70)]
)
def test_weights_of_a_product_move(
    run: Callable[..., None], batch: int, turned: bool, inputs: int, outputs: int
) -> None:
    x = normal(batch, inputs)
    weights = moving(3, inputs, outputs, turned)
    added = normal(4, outputs, seed=2)
    for place, activation in enumerate(PLAIN[1:]):
        out = torch.full((batch, outputs), torch.nan, dtype=torch.float64)
        listed = program(batch, "place")
        weight = Vectors(weights).at("place")
        listed.product(x, weight, out, Vectors(added).at("place"), activation)
        run(listed, place)
        close(out, FORMULAS[activation](x @ weights[place] + added[place]))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("known", [0, 1, 8, 21])
@pytest.mark.parametrize("count", [0, 1, 5, 19])
def test_inputs_and_outputs_of_a_product_are_counted(
    run: Callable[..., None], turned: bool, known: int, count: int
) -> None:
    x = normal(3, 21)
    # What does not count may be anything.
    x[:, known:] = torch.nan
    weights = moving(2, 21, 19, turned)
    out = normal(3, 19, seed=4)
    expected = out.clone()
    sums = x[:, :known] @ weights[1, :known, :count] + out[:, :count]
    expected[:, :count] = F.silu(sums)
    listed = program(3, "place", "known", "count")
    weight = Vectors(weights).at("place")
    listed.product(x, weight, out, out, "silu", known="known", count="count")
    run(listed, 1, known, count)
    close(out, expected)


def test_sums_of_a_product_grow_in_place(run: Callable[..., None]) -> None:
    x = normal(3, 6, 2)
    weights = normal(6, 2, 90, seed=1)
    sums = normal(3, 90, seed=2)
    before = sums.clone()
    listed = program(3, "place")
    listed.product(Places(x).at("place"), Vectors(weights).at("place"), sums, add=sums)
    for place in range(6):
        run(listed, place)
    close(sums, before + x.flatten(1) @ weights.flatten(0, 1))


def test_a_table_may_be_that_of_a_place(run: Callable[..., None]) -> None:
    symbols = torch.tensor([4, 0, 2])
    tables = normal(5, 6, 7)
    out = normal(3, 7, seed=1)
    before = out.clone()
    listed = program(3, "place")
    listed.lookup(symbols, Vectors(tables.transpose(0, 1)).at("place"), out)
    run(listed, 3)
    close(out, before + tables[symbols, 3])


def test_weights_that_move_are_contiguous_one_way() -> None:
    if not kernel.available():
        pytest.skip("no C++ compiler")
    listed = program(1, "place")
    weights = normal(2, 6, 8)[:, ::2, ::2]
    listed.product(normal(1, 3), Vectors(weights).at("place"), listed.zeros(4))
    with pytest.raises(AssertionError, match="must be contiguous"):
        CompiledRunner(listed)


def test_a_symbol_that_is_none_is_refused() -> None:
    model = ts.create("gated-pixelcnn", ts.Grid(2, 2, 1, 4), layers=1, hidden=4)
    state = model.init_state(2)
    _, state = model.step(torch.zeros(2, dtype=torch.int64), 0, state)
    with pytest.raises((InputError, IndexError)):
        model.step(torch.tensor([0, 50]), 1, state)


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
@pytest.mark.parametrize("value", [0.0, 1e-9, 1.0, -30.0, 90.0, -120.0, 800.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_functions_hold_over_all_numbers(value: float, dtype: torch.dtype) -> None:
    x = torch.full((1, 4), value, dtype=dtype)
    for activation in ("relu", "silu", "elu", "gate"):
        expected = FORMULAS[activation](x.double())
        out = torch.zeros_like(expected, dtype=dtype)
        listed = Program(1, (), x)
        listed.linear(x, Matrix(torch.eye(4, dtype=dtype)), out, activation=activation)
        CompiledRunner(listed).run(())
        torch.testing.assert_close(
            out.double(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=3e-7
        )


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("batch", [1, 6, 80])
def test_threads_share_the_work_and_give_the_same(batch: int) -> None:
    x = normal(batch, 200)
    outs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        listed = program(batch)
        first = listed.zeros(300)
        second = listed.zeros(70)
        listed.linear(x, Matrix(normal(200, 600, seed=1)), first, activation="gate")
        listed.linear(first, Matrix(normal(300, 70, seed=2)), second)
        for turned in (False, True):
            listed.product(first, moving(1, 300, 70, turned)[0], second, add=second)
        runner = CompiledRunner(listed)
        for _ in range(20):
            runner.run(())
        outs.append(second)
    assert torch.equal(*outs)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library is looked for again, in the test and after it; a build does not optimize."""
    for function in (kernel.library, kernel._load_or_explain):
        function.cache_clear()
    quick = [[flag.replace("-O3", "-O0") for flag in flags] for flags in kernel.FLAG_SETS]
    monkeypatch.setattr(kernel, "FLAG_SETS", tuple(map(tuple, quick)))
    yield
    for function in (kernel.library, kernel._load_or_explain):
        function.cache_clear()


@pytest.mark.usefixtures("anew")
def test_without_a_compiler_programs_run_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ts.create("gated-pixelcnn", ts.Grid(3, 3, 1, 4), layers=2, hidden=8).double()
    expected = ts.sample(model, n=2)
    monkeypatch.setenv("CXX", "no-such-compiler")
    for function in (kernel.library, kernel._load_or_explain):
        function.cache_clear()
    assert not kernel.available()
    assert "no-such-compiler" in kernel.describe()
    assert torch.equal(ts.sample(model, n=2), expected)


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
@pytest.mark.usefixtures("anew")
def test_without_a_place_to_keep_it_the_kernel_serves_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "file"))
    assert kernel.available()


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
@pytest.mark.usefixtures("anew")
def test_a_damaged_library_is_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    path = kernel._library_path(shutil.which("c++") or "", kernel.FLAG_SETS[0])
    path.parent.mkdir()
    path.write_bytes(b"\x7fELF and then nothing")
    assert kernel.available()
    assert path.stat().st_size > 10_000


@pytest.mark.usefixtures("anew")
def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] || { echo no such luck >&2; exit 1; }\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert not kernel.available()
    assert "no such luck" in kernel.describe()


def test_the_kernel_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_KERNEL", "0")
    listed = program(1)
    listed.map(normal(1, 2), listed.zeros(2))
    listed.run()
    assert isinstance(listed._runner, TorchRunner)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("activation", ["", "silu"])
@pytest.mark.parametrize("added", [False, True])
def test_a_large_product_in_torch_is_cut_in_halves(
    rows: int, turned: bool, activation: str, added: bool
) -> None:
    x = normal(rows, 512)
    weight = normal(512, 300, seed=1) / 20
    out = normal(rows, 300, seed=2)
    matrix = weight.T.contiguous().T if turned else weight
    before = out.clone()
    listed = program(rows)
    assert splits_in_halves(rows, matrix)
    listed.linear(x, Matrix(matrix), out, out if added else None, activation)
    TorchRunner(listed).run(())
    close(out, FORMULAS[activation](x @ weight + before * added))


FAMILIES = [
    "gated-pixelcnn",
    "pixelcnn++",
    "pixelsnail",
    "transformer",
    "pixelcnn",
    "row-lstm",
    "diagonal-bilstm",
    "lstm",
    "fvsbn",
    "nade",
    "made",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_draws_the_same_where_its_place_stands_on_the_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ts.create(name, ts.Grid(4, 5, 2, 5), classes=2).double()
    expected = ts.sample(model, n=3, cond=torch.tensor([0, 1, 2]), method="cached")
    monkeypatch.setattr("tessella.nn.stepping.program.create_runner", IndexedRunner)
    assert torch.equal(
        ts.sample(model, n=3, cond=torch.tensor([0, 1, 2]), method="cached"), expected
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_steps_in_torch(name: str) -> None:
    model = ts.create(name, ts.Grid(3, 4, 2, 5)).bfloat16()
    drawn = ts.sample(model, n=2, method="cached")
    assert ts.replay(model, drawn).gap.max() < 0.2, (
        "a difference must be a near-tie of the coarser numbers"
    )


def test_every_operation_can_be_written_and_run_in_torch() -> None:
    assert tuple(TORCH_OPERATIONS) == OPERATIONS
    for name in OPERATIONS:
        assert callable(getattr(Program, name))
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
def test_the_kernel_was_compiled_with_our_operations_and_records() -> None:
    library = kernel.library()
    assert library is not None
    assert library.tessella_layout().decode() == compiled.layout()
    assert library.tessella_record_bytes() == compiled.RECORD.itemsize


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
@pytest.mark.parametrize("changed", ["operations", "activations", "record"])
def test_a_kernel_with_another_list_is_refused(
    changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changed == "operations":
        monkeypatch.setattr(compiled, "OPERATIONS", tuple(reversed(OPERATIONS)))
    elif changed == "activations":
        monkeypatch.setattr(compiled, "ACTIVATIONS", (*ACTIVATIONS, "softplus"))
    else:
        fields = [(name, compiled.RECORD[name]) for name in compiled.RECORD.names or ()]
        fields[1], fields[2] = fields[2], fields[1]
        monkeypatch.setattr(compiled, "RECORD", np.dtype(fields))
    listed = program(1)
    listed.map(normal(1, 2), listed.zeros(2))
    compiled.check_layout.cache_clear()
    with pytest.raises(ArtifactError, match="other operations or records"):
        CompiledRunner(listed)


@pytest.mark.parametrize("symbol", [-1, 5])
def test_a_symbol_outside_the_table_is_refused_by_every_runner(
    run: Callable[..., None], symbol: int
) -> None:
    listed = program(2)
    out = torch.zeros(2, 3, dtype=torch.float64)
    listed.lookup(torch.tensor([0, symbol]), normal(5, 3), out)
    with pytest.raises((InputError, IndexError)):
        run(listed)
