"""Many symbols in one call of the kernel: those that torch draws, whatever the parameters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella import kernel
from tessella.errors import ArtifactError, NumericalError
from tessella.heads import CategoricalHead, Head, create_head
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import DensityModel, JointWalk
from tessella.models.lstm import LSTM
from tessella.models.program_model import ProgramState
from tessella.nn.stepping import compiled
from tessella.nn.stepping.program import Program
from tessella.nn.stepping.runs import ListedRuns, Numbers, Runs, SteppedSymbols, Truths
from tessella.nn.stepping.state import State
from tessella.nn.stepping.step import StateMemory
from tessella.noise import Noise
from tessella.sampling import Rule, kernel_walk
from tessella.sampling.kernel_walk import KernelWalk
from tessella.sampling.walk import Draw, Steps, walk

pytestmark = pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")

GREY = ts.Grid(6, 5, 1, 37)
COLOUR = ts.Grid(4, 3, 3, 256)


class Constant(DensityModel):
    """Gives all symbols, or pixels, of an image the same parameters, ``[images, size]``."""

    name = "constant"
    programs_are_final = True

    def __init__(self, head: Head, parameters: torch.Tensor, classes: int = 0) -> None:
        super().__init__(head.grid, head, Conditioning(classes))
        self.register_buffer("table", parameters)
        self.table: torch.Tensor
        if self.predictor is not None:
            self.predictor.to(parameters.dtype).requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.table.device

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        raise NotImplementedError

    def sizes(self) -> dict[str, object]:
        return {}

    def receptive_field(self) -> torch.Tensor:
        raise NotImplementedError

    def init_state(self, batch: int, cond: Cond = None) -> ProgramState:
        return ProgramState(JointWalk(), None, StateMemory())

    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        assert isinstance(state, ProgramState)
        parameters = self.table[: len(previous)].clone()
        if not self.head.joint:
            return parameters, state
        return self.walk_pixel(parameters, previous, index, state.walk), state

    def stepped(self, state: State) -> SteppedSymbols:
        newest = torch.zeros(len(self.table), dtype=torch.int64)

        def no_runs(runs: Runs, index: Numbers) -> None:
            # The predictor's correction is added to what the programs make, so make it anew.
            program = Program(len(self.table), (), self.table)
            program.map(self.table, parameters)
            runs.add(program, when=index % self.grid.channels == 0)

        parameters = self.table.clone()
        return SteppedSymbols([newest] * self.grid.channels, no_runs, parameters)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def drawn(model: DensityModel, n: int, **options: Any) -> torch.Tensor:
    """Cached samples, drawn by the kernel."""
    state = model.init_state(n, options.get("cond"))
    assert KernelWalk.of(model, state, n) is not None
    return ts.sample(model, n=n, method="cached", **options)


@pytest.fixture
def without_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Draws cached samples in torch."""

    def draw(model: DensityModel, n: int, **options: Any) -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setenv("TESSELLA_KERNEL", "0")
            return ts.sample(model, n=n, method="cached", **options)

    return draw


@pytest.fixture
def with_threads() -> Callable[[int], AbstractContextManager[None]]:
    """For some lines, torch and the kernel have so many threads."""

    @contextmanager
    def change(threads: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return change


RULES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 300.0},
    {"temperature": 1e-40},
    {"top_k": 1},
    {"top_k": 5},
    {"top_p": 0.7},
    {"temperature": 1.3, "top_k": 9, "top_p": 0.8},
    {"guidance": 2.5},
    {"guidance": -0.5, "temperature": 0.9, "top_k": 20},
]


def guided(rule: dict[str, Any], n: int) -> dict[str, Any]:
    """The rule, with the class that guidance needs."""
    return rule | {"cond": torch.zeros(n, dtype=torch.int64)} if "guidance" in rule else rule


def rows(rule: dict[str, Any], n: int) -> int:
    """Rows of parameters for ``n`` images: with guidance there is another one for each."""
    return 2 * n if "guidance" in rule else n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_a_softmax_is_drawn_from_as_in_torch(
    rule: dict[str, Any], dtype: torch.dtype, without_kernel: Any
) -> None:
    logits = 2 * random(rows(rule, 12), 37).to(dtype)
    # Equal levels, and some that are never drawn.
    logits[:, 5:9] = logits[:, 4:5]
    logits[3] = 0
    if "guidance" not in rule:
        logits[:, 20] = -torch.inf
    model = Constant(create_head("categorical", GREY), logits, classes=int("guidance" in rule))
    options = guided(rule, 12)
    assert torch.equal(drawn(model, 12, **options), without_kernel(model, 12, **options))


def mixtures(head: Head, n: int, spread: float) -> torch.Tensor:
    """Parameters of mixtures: some narrow, some wide, some far outside of the levels."""
    parameters = spread * random(n, head.size)
    # The means of half of the images are near the levels.
    parameters[::2, 4:16] *= 0.6 / spread
    # One image's mixtures are so narrow that most levels have no probability in double precision.
    parameters[2, 16:28] = -6.9
    return parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1.0, 6.0])
@pytest.mark.parametrize("rule", RULES)
def test_a_mixture_is_drawn_from_as_in_torch(
    rule: dict[str, Any], spread: float, dtype: torch.dtype, without_kernel: Any
) -> None:
    head = create_head("logistic-mixture", COLOUR, components=4)
    parameters = mixtures(head, rows(rule, 12), spread).to(dtype)
    model = Constant(head, parameters, classes=int("guidance" in rule))
    options = guided(rule, 12)
    assert torch.equal(drawn(model, 12, **options), without_kernel(model, 12, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_correction_of_predictions_is_drawn_from_as_in_torch(
    threads: int, hidden: int, dtype: torch.dtype, without_kernel: Any, with_threads: Any
) -> None:
    grid = ts.Grid(5, 6, 3, 64)
    head = create_head(
        "logistic-mixture", grid, components=3, predictor=True, predictor_hidden=hidden
    )
    model = Constant(head, 0.5 * random(10, head.size).to(dtype))
    ramp = torch.arange(5 * 6)[:, None].expand(-1, 3).reshape(5, 6, 3)
    noise = torch.randint(0, 30, (40, *grid.shape), generator=torch.Generator().manual_seed(1))
    model.fit_predictor(ramp + noise)
    assert model.predictor is not None
    with torch.no_grad():
        for i, parameter in enumerate(model.predictor.parameters()):
            parameter.copy_(0.3 * random(*parameter.shape, seed=i))
    expected = without_kernel(model, 10)
    with with_threads(threads):
        assert torch.equal(drawn(model, 10), expected)


@pytest.mark.parametrize("every", [1, 2, 7, 0])
def test_a_walk_may_stop_anywhere_and_go_on(every: int) -> None:
    head = create_head("logistic-mixture", COLOUR, components=4)
    model = Constant(head, mixtures(head, 3, 1.0))
    whole = drawn(model, 3)
    shown = []
    for index, x in ts.stream(model, n=3, method="cached", every=every):
        seen = x.flatten(1).clone()
        assert torch.equal(seen[:, :index], whole.flatten(1)[:, :index])
        assert not seen[:, index:].any()
        shown.append(index)
    step = every or COLOUR.row_symbols
    assert shown == [min(i + step, 36) for i in range(0, 36, step)]


@pytest.mark.parametrize("name", ["gated-pixelcnn", "pixelcnn", "lstm"])
def test_the_kernel_goes_on_after_steps_in_torch(name: str) -> None:
    model = ts.create(name, ts.Grid(5, 4, 3, 8), seed=1)
    # A symbol must matter for those after it.
    for parameter in model.parameters():
        parameter.data *= 3
    expected = drawn(model, 12).flatten(1)
    steps = Steps(model, 12, None, cached=True, guidance=1)
    noise = Noise(model.grid, 12)
    source = Draw(noise, Rule())
    x = torch.zeros_like(expected)
    previous = x[:, 0]
    with torch.no_grad():
        for index in range(17):
            previous = source(index, steps.next(previous, index))
            x[:, index] = previous
        in_kernel = steps.kernel_walk()
        assert in_kernel is not None
        in_kernel.begin(x, noise, Rule(), None)
        in_kernel.draw(17, model.grid.symbols)
    assert torch.equal(x, expected)


def test_known_symbols_are_kept_and_seen() -> None:
    model = ts.create("gated-pixelcnn", ts.Grid(5, 4, 3, 8), layers=2, hidden=8, seed=1)
    x = torch.randint(8, (6, 5, 4, 3), generator=torch.Generator().manual_seed(0))
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    known[:, 1] = True
    assert KernelWalk.of(model, model.init_state(6), 6) is not None
    completed = ts.complete(model, x, known, seed=3, method="cached")
    assert torch.equal(completed[known], x[known])
    assert torch.equal(completed, ts.complete(model, x, known, seed=3, method="naive"))


@pytest.mark.parametrize("head", ["categorical", "logistic-mixture"])
@pytest.mark.parametrize("rule", [{}, {"top_k": 3}, {"top_p": 0.5, "temperature": 2.0}])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_parameters_that_are_no_numbers_are_an_error(
    head: str, rule: dict[str, Any], value: float
) -> None:
    made = create_head(head, COLOUR)
    parameters = random(3, made.size)
    # The first parameter is a logit in either head.
    parameters[2, 0] = value
    with pytest.raises(NumericalError):
        ts.sample(Constant(made, parameters), n=3, method="cached", **rule)


def test_calls_are_short_and_lists_of_runs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ts.create("pixelcnn++", ts.Grid(9, 7, 2, 5), scales=3, filters=8, seed=2)
    expected = drawn(model, 3)
    monkeypatch.setattr(kernel_walk, "SECONDS_A_CALL", 0.0)
    # A call looks at the clock every 16 symbols.
    monkeypatch.setattr(kernel_walk, "LISTED_SYMBOLS", 43)
    assert torch.equal(drawn(model, 3), expected)


def test_threads_share_programs_and_draws(without_kernel: Any, with_threads: Any) -> None:
    model = ts.create(
        "gated-pixelcnn", ts.Grid(4, 4, 3, 256), head="logistic-mixture", hidden=32, layers=2
    )
    expected = without_kernel(model, 20)
    with with_threads(2):
        assert torch.equal(drawn(model, 20), expected)


SPLIT: list[dict[str, Any]] = [
    {"name": "fvsbn"},
    {"name": "nade", "hidden": 9},
    {"name": "made", "hidden": 12},
    {"name": "made", "hidden": 12, "masks": 2},
    {"name": "made", "hidden": 12, "masks": 2, "head": "logistic-mixture"},
    {"name": "lstm", "hidden": 8},
    {"name": "row-lstm", "hidden": 8, "layers": 2},
    {"name": "diagonal-bilstm", "hidden": 8, "layers": 2},
    {"name": "pixelcnn", "hidden": 8, "layers": 2},
    {"name": "gated-pixelcnn", "hidden": 8, "layers": 2},
    {"name": "pixelcnn++", "filters": 8, "scales": 2},
    {"name": "pixelsnail", "channels": 8, "blocks": 1, "residual_blocks": 1},
    {"name": "transformer", "width": 16, "layers": 2, "heads": 2},
]
"""Models whose images threads can take for themselves."""


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("made_of", SPLIT, ids=lambda made_of: "-".join(map(str, made_of.values())))
def test_threads_that_take_images_for_themselves_draw_the_same(
    without_kernel: Any, with_threads: Any, made_of: dict[str, Any], threads: int
) -> None:
    model = ts.create(grid=ts.Grid(5, 4, 2, 9), classes=3, seed=4, **made_of).double()
    options = {"cond": torch.tensor([0, 1, 2, 1, 0]), "guidance": 1.7, "seed": 8}
    expected = without_kernel(model, 5, **options)
    with with_threads(threads):
        assert torch.equal(drawn(model, 5, **options), expected)


@pytest.mark.parametrize("bytes_an_operation", [0, 1 << 30])
def test_threads_that_share_operations_draw_what_one_draws(
    monkeypatch: pytest.MonkeyPatch, with_threads: Any, bytes_an_operation: int
) -> None:
    # Large weights are shared by all threads at a batch of 3, however small an operation is.
    monkeypatch.setattr(compiled, "THREAD_BYTES", max(1, bytes_an_operation))
    model = ts.create("gated-pixelcnn", ts.Grid(3, 5, 1, 16), layers=5, hidden=128).double()
    expected = drawn(model, 3)
    with with_threads(2):
        assert torch.equal(drawn(model, 3), expected)


def test_python_is_not_in_the_inner_loop() -> None:
    model = ts.create("gated-pixelcnn", ts.Grid(32, 32, 3, 256), layers=2, hidden=8)
    steps = Steps(model, 1, None, cached=True, guidance=1)
    draw = Draw(Noise(model.grid, 1), Rule())
    walking = walk(steps, draw, every=3072)
    # Before the first symbol the programs are made and their runs are listed.
    in_kernel = steps.kernel_walk()
    assert in_kernel is not None
    # numpy imports its generators at the first use.
    Noise(model.grid, 1).at(0)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        # Calls by the checks of annotations, which are there in tests only, do not count.
        calls += event in ("call", "c_call") and "beartype" not in frame.f_code.co_filename

    sys.setprofile(count)
    try:
        index, _ = next(walking)
    finally:
        sys.setprofile(None)
    assert index == 3072
    assert calls < 0.1 * 3072


class Sharper(CategoricalHead):
    """A head that the kernel does not know."""

    def symbol(self, parameters: torch.Tensor) -> Any:
        return super().symbol(2 * parameters)


def test_what_the_kernel_does_not_know_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Constant(Sharper(GREY), random(2, 37))
    state = model.init_state(2)
    assert KernelWalk.of(model, state, 2) is None
    grid = ts.Grid(2, 2, 1, 3)
    without_programs = ts.create("gpt", grid, layers=1, width=8, heads=2)
    half = ts.create("gated-pixelcnn", grid).bfloat16()
    for other in (without_programs, half):
        assert KernelWalk.of(other, other.init_state(2), 2) is None
    monkeypatch.setenv("TESSELLA_KERNEL", "0")
    grey = Constant(create_head("categorical", GREY), random(2, 37))
    assert KernelWalk.of(grey, state, 2) is None


class Brighter(LSTM):
    """A step that does more than its programs."""

    name = "brighter"

    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        parameters, state = super().step(previous, index, state)
        return parameters + torch.arange(parameters.shape[-1]), state


def test_a_model_with_a_step_of_its_own_is_left_to_torch() -> None:
    head = create_head("categorical", GREY)
    plain = LSTM(GREY, head, Conditioning(0))
    brighter = Brighter(GREY, head, Conditioning(0))
    assert KernelWalk.of(plain, plain.init_state(2), 2) is not None
    assert KernelWalk.of(brighter, brighter.init_state(2), 2) is None


def test_another_record_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Constant(create_head("categorical", GREY), random(2, 37))
    fields = [(name, "f8" if name == "top_k" else "i8") for name in ("bytes", "top_k")]
    kernel_walk._check_layout.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(kernel_walk, "WALK", np.dtype(fields))
        with pytest.raises(ArtifactError, match="other operations or records"):
            KernelWalk.of(model, model.init_state(2), 2)
    assert KernelWalk.of(model, model.init_state(2), 2) is not None


class Noted(Runs):
    """Notes which programs would run, and with what values."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def add(self, program: Program, *values: Numbers, when: Truths = True) -> None:
        if when and program.operations:
            self.seen.append((id(program), *values))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gated-pixelcnn", {"layers": 1}),
        ("pixelcnn++", {"scales": 3}),
        ("pixelcnn", {"layers": 1}),
        ("diagonal-bilstm", {"layers": 1}),
        ("lstm", {}),
    ],
)
@pytest.mark.parametrize("head", ["categorical", "logistic-mixture"])
def test_the_runs_of_many_symbols_are_those_of_each(
    name: str, sizes: dict[str, Any], head: str
) -> None:
    model = ts.create(name, ts.Grid(5, 6, 2, 3), head=head, **sizes)
    stepped = model.stepped(model.init_state(1))
    assert stepped is not None
    listed = ListedRuns(60)
    stepped.add_runs(listed, np.arange(60))
    timetable = listed.timetable()
    for index in range(60):
        noted = Noted()
        stepped.add_runs(noted, index)
        runs = range(timetable.starts[index], timetable.starts[index + 1])
        seen = []
        for run in runs:
            program = timetable.programs[timetable.runs[run]]
            values = timetable.values[run, : len(program.variables)].tolist()
            seen.append((id(program), *values))
        assert seen == noted.seen, index


def test_noise_ahead_of_time_is_that_of_each_symbol() -> None:
    noise = Noise(GREY, n=3, seed=5)
    held = noise.held(7)
    assert len(held) > 1
    other = Noise(GREY, n=3, seed=5)
    for i, values in enumerate(held):
        assert torch.equal(values, other.at(7 + i))


def test_a_rule_leaves_the_same_levels(without_kernel: Any) -> None:
    # Masses that are reached exactly: a quarter and a half.
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log().repeat(8, 1)
    model = Constant(create_head("categorical", ts.Grid(8, 8, 1, 4)), logits)
    for top_p in (0.5, 0.75, 0.875):
        assert torch.equal(drawn(model, 8, top_p=top_p), without_kernel(model, 8, top_p=top_p))
    assert Rule(top_p=0.5).applies
