"""Memory and programs of a step: places of a row, what layers get, what a copy of a state gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tessella as ts
from tessella.nn.stepping.program import Moving, Places, Plane, Program, SeveralPrograms, Vectors
from tessella.nn.stepping.runs import RunsNow
from tessella.nn.stepping.step import GridStep, MemoryAllocator, StateMemory


def numbers(*shape: int) -> torch.Tensor:
    """0, 1, 2, ... in that shape."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)


def test_a_window_holds_the_places_around_its_column() -> None:
    memory = numbers(2, 7, 3)
    row = Places(memory, margin=2, count=4)
    window = row.window("column", left=2, right=1)
    for column in range(4):
        assert torch.equal(window.at(column), memory[:, column : column + 4].flatten(1))
    before = row.window("column", left=2, right=-1)
    assert torch.equal(before.at(3), memory[:, 3:5].flatten(1))


@pytest.mark.parametrize("every", [1, 2])
def test_the_windows_of_a_row_are_those_of_its_places(every: int) -> None:
    row = Places(numbers(2, 8, 3), margin=1, count=6)
    windows = row.windows(1, 1, every)
    assert isinstance(windows, torch.Tensor)
    assert windows.shape == (2, 6 // every, 9)
    moving = row.window("column", left=1, right=1, every=every)
    for i in range(6 // every):
        assert torch.equal(windows[:, i], moving.at(i))


def test_a_window_may_not_reach_beyond_the_margin() -> None:
    row = Places(numbers(1, 5, 2), margin=1)
    with pytest.raises(AssertionError):
        row.window("column", left=2)


def test_a_delayed_row_is_read_one_place_later() -> None:
    memory = numbers(1, 6, 2)
    row = Places(memory, margin=1, count=4)
    assert torch.equal(row.delayed().at("column").at(0), row.at("column").at(1))
    assert row.delayed().width == 4


@pytest.mark.parametrize("shared", [False, True])
def test_a_plane_gives_its_rows(shared: bool) -> None:
    memory = numbers(4, 5, 3) if shared else numbers(2, 4, 5, 3)
    row = Plane(memory, count=4).row("row").moving_row()
    assert isinstance(row, Moving)
    for r in range(4):
        assert torch.equal(row.at(r), memory[..., r, :4, :])
    part = Plane(memory).row("row").features(slice(1, 3)).moving_row()
    assert isinstance(part, Moving)
    assert torch.equal(part.at(2), memory[..., 2, :, 1:3])


def test_vectors_are_chosen_by_number() -> None:
    table = numbers(5, 3)
    assert torch.equal(Vectors(table).at("row").at(4), table[4])
    assert torch.equal(Vectors(table).span("row", 2).at(3), table[3:5])


def test_a_span_holds_the_places_from_its_variable_on() -> None:
    memory = numbers(2, 7, 3)
    span = Places(memory, margin=1).span("position", 2)
    assert torch.equal(span.at(0), memory[:, 1:3])
    assert torch.equal(span.at(3), memory[:, 4:6])


def test_an_operation_goes_to_several_programs() -> None:
    x = numbers(2, 3)
    programs = [Program(2, (), x), Program(2, (), x)]
    both = SeveralPrograms(programs)
    total = both.zeros(3)
    both.add(total, x, total)
    for program in programs:
        program.run()
    assert torch.equal(total, 2 * x)


def test_a_program_that_has_run_takes_no_further_operation() -> None:
    program = Program(1, (), numbers(1, 2))
    program.map(numbers(1, 2), program.zeros(2))
    program.run()
    with pytest.raises(AssertionError, match="complete"):
        program.map(numbers(1, 2), program.zeros(2))


def test_layers_get_the_memory_of_a_copy_in_the_same_order() -> None:
    memory = StateMemory()
    first = MemoryAllocator(memory, 2, numbers(1))
    cache = first.zeros(3)
    kept = first.keep(numbers(2, 4))
    matrix = first.matrix(numbers(3, 4))
    cache.fill_(7)
    copy = memory.select(torch.tensor([1, 1, 0]))
    again = MemoryAllocator(copy, 3, numbers(1))
    assert torch.equal(again.zeros(3), torch.full((3, 3), 7.0, dtype=torch.float64))
    # The value that is asked for again loses to the one of the copied state.
    assert torch.equal(again.keep(torch.zeros(3, 4)), kept[[1, 1, 0]])
    assert again.matrix(numbers(3, 4)) is matrix


def test_layers_that_ask_in_another_order_are_found_out() -> None:
    memory = StateMemory()
    MemoryAllocator(memory, 2, numbers(1)).zeros(3)
    with pytest.raises(AssertionError, match="same order"):
        MemoryAllocator(memory, 2, numbers(1)).zeros(4)


def test_cleared_memory_is_zero_after_the_work_of_a_row() -> None:
    step = GridStep(MemoryAllocator(StateMemory(), 1, numbers(1)), width=2)
    pixels = step.places(3)
    seen = step.row.zeros(3)
    step.row.map(pixels.row, seen)
    step.cleared.append(pixels.row)
    pixels.row.fill_(5)
    step.start_row(RunsNow(), 0)
    assert torch.equal(seen, torch.full((1, 2, 3), 5.0, dtype=torch.float64))
    assert not pixels.row.any()


def test_rows_advance_before_every_row_but_the_first() -> None:
    step = GridStep(MemoryAllocator(StateMemory(), 1, numbers(1)), width=2)
    total = step.places(1)
    step.advance.add(total.row, torch.ones(1, dtype=torch.float64), total.row)
    for row, expected in ((0, 0), (1, 1), (2, 2)):
        step.start_row(RunsNow(), row)
        assert total.row.flatten().tolist() == [expected, expected]


CODES = ts.Grid(2, 2, 1, 5)


TAKE_CODES = ("gated-pixelcnn", "pixelsnail", "transformer")


@pytest.mark.parametrize("name", [*TAKE_CODES, "pixelcnn++", "lstm", "fvsbn", "nade", "made"])
def test_a_state_that_takes_over_another_condition_steps_with_it(name: str) -> None:
    grid = ts.Grid(4, 3, 2, 4)
    codes = CODES if name in TAKE_CODES else None
    model = ts.create(name, grid, classes=3, codes=codes).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def condition(label: int) -> dict[str, torch.Tensor]:
        given = {"class": torch.full((2,), label)}
        if codes is not None:
            given["codes"] = torch.full((2, 2, 2, 1), label)
        return given

    x = torch.randint(4, (2, *grid.shape), generator=generator)
    symbols = x.flatten(1)
    state = model.init_state(2, condition(0))
    for index in range(9):
        _, state = model.step(symbols[:, index - 1], index, state)
    state.load(model.init_state(2, condition(2)))
    expected = model.distribution(x, model.condition(condition(2), 2)).table(x).flatten(1, 3)
    for index in range(grid.symbols):
        parameters, state = model.step(symbols[:, index - 1], index, state)
        table = model.head.symbol(parameters).table()
        torch.testing.assert_close(table, expected[:, index], rtol=0, atol=1e-12)


def test_models_compute_no_offsets_in_memory() -> None:
    folder = Path(ts.__file__).parent / "models"
    for path in sorted(folder.glob("*.py")):
        for word in (".stride(", "as_strided", "storage_offset"):
            assert word not in path.read_text(), f"{path.name}: {word} belongs to tessella.nn"
