"""The promises of every density model, with any head (``docs/architecture.md`` says why)."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tessella.contracts.contract import Contract, Options, require, require_close
from tessella.grid import Grid
from tessella.models import DensityModel, create, from_config
from tessella.pipeline import load_model, save_model
from tessella.sampling import replay, sample

EXACT = 1e-11
"""Largest difference of log-probabilities (nats) between two ways to compute them in float64."""

GRIDS = (
    Grid(1, 1, 1, 3),
    Grid(1, 4, 1, 4),
    Grid(5, 4, 1, 3),
    Grid(3, 4, 3, 5),
    Grid(3, 2, 2, 6),
)
"""One pixel, one row, one channel, three channels, two codes a place."""

COUNTABLE = (Grid(2, 2, 1, 3), Grid(2, 1, 2, 3))
"""Grids so small that all of them can be listed."""


@dataclass(frozen=True)
class ModelCase:
    """A density model with a head, to be built on any grid.

    Args:
        name: registered name of the model.
        head: registered name of the head.
        sizes: sizes of the model and the head that differ from their defaults.
    """

    name: str
    head: str
    sizes: Options = field(default_factory=dict)

    def build(self, grid: Grid, classes: int = 0) -> DensityModel:
        """The model in float64, with every parameter moved.

        Layers often begin at zero, and zeros hide what is wrong behind them.
        """
        sizes: Options = dict(self.sizes)
        model = create(self.name, grid, self.head, classes, seed=3, **sizes)
        # In float64 two ways to compute a number differ by 1e-13; an error of 1e-9 is a mistake.
        model = model.double().eval()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                shape = parameter.shape
                moved = torch.randn(shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * moved)
        return model


def random_grids(grid: Grid, n: int, seed: int = 0) -> torch.Tensor:
    """Random symbols, ``int64 [n, height, width, channels]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(grid.levels, (n, *grid.shape), generator=generator)


def all_grids(grid: Grid) -> torch.Tensor:
    """Every grid there is: ``int64 [levels ** symbols, height, width, channels]``."""
    # Like counting in base `levels`, with one digit for each symbol.
    sequences = itertools.product(range(grid.levels), repeat=grid.symbols)
    return torch.tensor(list(sequences)).view(-1, *grid.shape)


@torch.no_grad()
def tables(model: DensityModel, x: torch.Tensor, cond: torch.Tensor | None = None) -> torch.Tensor:
    """Log-probabilities of all levels of all symbols, in parallel: ``[n, symbols, levels]``."""
    distribution = model.distribution(x, model.condition(cond, len(x)))
    # [n, h, w, c, levels] -> [n, symbols, levels]
    return distribution.table(x).flatten(1, 3)


@torch.no_grad()
def stepped_tables(
    model: DensityModel, x: torch.Tensor, cond: torch.Tensor | None = None
) -> torch.Tensor:
    """The result of :func:`tables`, computed one step after another."""
    state = model.init_state(len(x), cond)
    sequence = x.flatten(1)
    # The first step has no symbol before it, and must not look at what it is given.
    previous = torch.zeros(len(x), dtype=torch.int64)
    rows = []
    for index in range(model.grid.symbols):
        parameters, state = model.step(previous, index, state)
        rows.append(model.head.symbol(parameters).table())
        previous = sequence[:, index]
    return torch.stack(rows, dim=1)


def depends_on_receptive_field(case: ModelCase) -> None:
    """Change one symbol at a time, and see which distributions change with it."""
    for grid in GRIDS:
        model = case.build(grid)
        declared = model.dependencies()
        require(
            declared.shape == (grid.symbols, grid.symbols) and declared.dtype == torch.bool,
            f"{grid}: receptive_field() must be bool [{grid.symbols}, {grid.symbols}]",
        )
        measured = torch.zeros_like(declared)
        # One image alone can hide a dependence behind a ReLU.
        for seed in range(3):
            x = random_grids(grid, 1, seed)
            # Row s of `changed` differs from x in symbol s alone, by at least one level.
            changed = x.flatten(1).repeat(grid.symbols, 1)
            changed.diagonal().add_(1 + seed % (grid.levels - 1)).remainder_(grid.levels)
            changed = changed.view(-1, *grid.shape)
            # [changed symbol, symbol]; transposed below, as a receptive field has rows of readers.
            difference = (tables(model, changed) - tables(model, x)).abs().amax(-1)
            measured |= (difference > 1e-13).T
        leaks = measured & ~declared
        if leaks.any():
            symbol, source = leaks.nonzero()[0].tolist()
            require(
                False, f"{grid}: symbol {symbol} depends on symbol {source}, which is not declared"
            )
        # The other way round: samplers skip what is not declared, so both must be exact.
        unused = declared & ~measured
        if unused.any():
            symbol, source = unused.nonzero()[0].tolist()
            require(False, f"{grid}: symbol {symbol} should depend on symbol {source} and does not")
        require(
            not declared.triu().any(),
            f"{grid}: a receptive field holds symbols that are not drawn yet",
        )


def steps_equal_forward(case: ModelCase) -> None:
    """Compare one step after another with the parallel pass, with and without classes."""
    for grid in GRIDS:
        for classes in (0, 3):
            model = case.build(grid, classes)
            x = random_grids(grid, 4)
            cond = torch.arange(4) if classes else None
            # The null class, index 3, is among the four.
            what = f"{grid}, {classes} classes: tables of step and forward"
            require_close(stepped_tables(model, x, cond), tables(model, x, cond), EXACT, what)


def probabilities_sum_to_one(case: ModelCase) -> None:
    """Add the probabilities of all grids there are."""
    for grid in COUNTABLE:
        model = case.build(grid)
        with torch.no_grad():
            # log sum exp(log p) = log 1 = 0
            total = model.log_prob(all_grids(grid)).logsumexp(0)
        require_close(total, torch.zeros_like(total), EXACT, f"{grid}: log of the sum, nats")


def fast_samples_equal_slow_ones(case: ModelCase) -> None:
    """Draw with cached steps, and with a pass over the whole grid for every symbol."""
    for grid in GRIDS:
        model = case.build(grid)
        # Equal noise, so equal symbols: nothing here is compared in distribution only.
        fast = sample(model, n=5, seed=11, method="cached")
        for method in ("naive", "parallel", "windows"):
            slow = sample(model, n=5, seed=11, method=method)
            differ = int((fast != slow).sum())
            require(
                differ == 0,
                f"{grid}: {differ} of {fast.numel()} symbols differ between cached and {method}",
            )
        require(
            not replay(model, fast, seed=11).differs.any(), f"{grid}: replay draws other symbols"
        )


def batches_do_not_matter(case: ModelCase) -> None:
    """Draw seven images at once, in threes, and one alone."""
    model = case.build(Grid(3, 3, 2, 5))
    together = sample(model, n=7, seed=4)
    require(torch.equal(together, sample(model, n=7, seed=4, batch=3)), "batches of 3 differ")
    # Image i of seed s has the seed s + i.
    alone = sample(model, n=1, seed=9)
    require(torch.equal(together[5:6], alone), "image 5 of seed 4 is not image 0 of seed 9")


def samples_are_as_frequent_as_probable(case: ModelCase) -> None:
    """Compare how often each of nine grids is drawn with its probability, by chi-square."""
    grid = Grid(2, 1, 1, 3)
    n = 4000
    model = case.build(grid)
    drawn = sample(model, n=n, seed=100, batch=n).flatten(1)
    with torch.no_grad():
        expected = n * model.log_prob(all_grids(grid)).exp()
    # [n, 2] symbols of three levels to the number of the grid, in the order of all_grids.
    seen = torch.bincount(drawn @ torch.tensor([3, 1]), minlength=9)
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    # 8 degrees of freedom; an exact sampler exceeds 26.1 once in a thousand seeds.
    require(chi_square < 26.1, f"chi-square is {chi_square:.1f}, an exact sampler stays below 26.1")


@torch.no_grad()
def states_can_be_cloned(case: ModelCase) -> None:
    """Go on from a copy and from selected rows of a state, half-way through the grid."""
    for grid in GRIDS:
        model = case.build(grid, classes=2)
        x = random_grids(grid, 3)
        cond = torch.tensor([0, 1, 2])
        # Half-way, so that caches are neither empty nor full.
        half = grid.symbols // 2
        state = model.init_state(3, cond)
        previous = torch.zeros(3, dtype=torch.int64)
        for index in range(half):
            _, state = model.step(previous, index, state)
            previous = x.flatten(1)[:, index]
        copy = state.clone()
        # In another order, and one row fewer.
        rows = torch.tensor([2, 0])
        expected, _ = model.step(previous, half, state)
        again, _ = model.step(previous, half, copy.clone())
        require_close(again, expected, 0.0, f"{grid}: a step from a clone of the state")
        selected, _ = model.step(previous[rows], half, copy.select(rows))
        require_close(selected, expected[rows], EXACT, f"{grid}: a step from selected rows")


def saving_keeps_log_prob(case: ModelCase) -> None:
    """Save a float32 model to a directory and load it again."""
    # Weights are saved as they are, so float32 must come back bit for bit.
    model = case.build(Grid(3, 2, 2, 6), classes=2).float()
    x = random_grids(model.grid, 3)
    cond = torch.tensor([0, 1, 2])
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        loaded = load_model(Path(folder))
    require(isinstance(loaded, DensityModel), f"what was loaded is a {type(loaded).__name__}")
    assert isinstance(loaded, DensityModel)
    with torch.no_grad():
        require_close(loaded.log_prob(x, cond), model.log_prob(x, cond), 0.0, "log_prob, nats")


def configurations_rebuild(case: ModelCase) -> None:
    """Build a second model of the first one's configuration and give it the first one's weights."""
    model = case.build(Grid(3, 2, 2, 6), classes=2)
    again = from_config(model.config()).double()
    require(again.config() == model.config(), "the rebuilt model has another configuration")
    again.load_state_dict(model.state_dict())
    x = random_grids(model.grid, 3)
    with torch.no_grad():
        require_close(again.log_prob(x), model.log_prob(x), 0.0, "log_prob, nats")


def creation_follows_its_seed(case: ModelCase) -> None:
    """Create a model twice with one seed and once with another."""
    before = torch.get_rng_state()
    grid = Grid(2, 2, 1, 4)
    sizes: Options = dict(case.sizes)
    models = []
    for seed in (1, 1, 2):
        models.append(create(case.name, grid, case.head, seed=seed, **sizes))
    require(torch.equal(before, torch.get_rng_state()), "create() moves the global generator")
    require(not models[0].training, "create() returns a model in training mode")
    first, second, other = (list(model.parameters()) for model in models)
    # The first two were made with one seed.
    for a, b in zip(first, second, strict=True):
        require(torch.equal(a, b), "one seed gives two different models")
    # Some parameters begin at zero with every seed, but not all of them.
    differing = 0
    for a, b in zip(first, other, strict=True):
        differing += int(not torch.equal(a, b))
    require(differing > 0 or not first, "another seed gives the same model")


def every_parameter_learns(case: ModelCase) -> None:
    """Take the gradient of the log-probability with and without activation checkpointing."""
    model = case.build(Grid(4, 3, 2, 5), classes=2).train()
    # Dropout would make two passes differ.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x = random_grids(model.grid, 3)
    condition = model.condition(torch.tensor([0, 1, 2]), 3)
    gradients: list[dict[str, torch.Tensor]] = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        model.zero_grad()
        model.distribution(x, condition).log_prob(x).sum().backward()
        found = {}
        for name, parameter in model.named_parameters():
            require(
                parameter.grad is not None and parameter.grad.abs().sum() > 0,
                f"{name} has no gradient: it does nothing",
            )
            assert parameter.grad is not None
            found[name] = parameter.grad
        gradients.append(found)
    for name, gradient in gradients[0].items():
        what = f"gradient of {name} with and without checkpointing"
        # Relative to large gradients, absolute for small ones.
        scale = 1 + float(gradient.abs().max())
        require_close(gradients[1][name] / scale, gradient / scale, 1e-10, what)


def classes_matter(case: ModelCase) -> None:
    """Score the same symbols under every class."""
    model = case.build(Grid(2, 2, 1, 4), classes=3)
    x = random_grids(model.grid, 4)
    with torch.no_grad():
        scores = [model.log_prob(x, torch.full((4,), label)) for label in range(4)]
        without = model.log_prob(x)
    for one, other in itertools.combinations(range(4), 2):
        require(
            not torch.equal(scores[one], scores[other]),
            f"classes {one} and {other} give the same probabilities",
        )
    require_close(without, scores[3], 0.0, "without a class, and with the null class (the last)")


CONTRACTS: tuple[Contract[ModelCase], ...] = (
    Contract("a symbol depends on its declared receptive field", depends_on_receptive_field),
    Contract("steps equal the parallel pass", steps_equal_forward),
    Contract("the probabilities of all grids sum to one", probabilities_sum_to_one),
    Contract("fast sampling draws the symbols of the slow way", fast_samples_equal_slow_ones),
    Contract("the batch does not change an image", batches_do_not_matter),
    Contract("samples are as frequent as probable", samples_are_as_frequent_as_probable),
    Contract("a state can be cloned and its rows selected", states_can_be_cloned),
    Contract("saving and loading keep log_prob", saving_keeps_log_prob),
    Contract("a configuration rebuilds the model", configurations_rebuild),
    Contract("creation follows its seed alone", creation_follows_its_seed),
    Contract("every parameter has a gradient", every_parameter_learns),
    Contract("classes change the distribution", classes_matter),
)
"""In the order of importance: what is wrong further up often breaks what comes below."""
