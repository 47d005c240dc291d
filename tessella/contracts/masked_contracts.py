"""The promises of models of masked symbols, which state a bound on probabilities."""

from __future__ import annotations

import itertools
import math
import tempfile
from pathlib import Path

import torch

from tessella.contracts import any_order_contracts, density_model_contracts
from tessella.contracts.contract import Contract, require, require_close
from tessella.contracts.density_model_contracts import EXACT, ModelCase, all_grids, random_grids
from tessella.grid import Grid
from tessella.models.masked_model import MaskedModel
from tessella.pipeline import load_model, save_model
from tessella.sampling import Unmasking, sample

COUNTABLE = Grid(2, 1, 2, 3)
"""A grid so small that all of its contents, masks and orders can be listed."""

GRID = Grid(3, 2, 2, 6)
"""Two codes a place."""


def build(case: ModelCase, grid: Grid) -> MaskedModel:
    """The model of a case on a grid."""
    model = case.build(grid)
    require(
        isinstance(model, MaskedModel),
        f"{case.name} says states_bound and does not derive from MaskedModel",
    )
    assert isinstance(model, MaskedModel)
    return model


@torch.no_grad()
def masked_symbols_are_not_seen(case: ModelCase) -> None:
    """Change all masked symbols, and look at all predictions."""
    model = build(case, GRID)
    x = random_grids(GRID, 4)
    generator = torch.Generator().manual_seed(1)
    known = torch.rand(x.shape, generator=generator) < 0.5
    changed = torch.where(known, x, (x + 1) % GRID.levels)
    condition = model.condition(None, len(x))
    before = model.predictions(x, known, condition)
    after = model.predictions(changed, known, condition)
    require_close(after, before, 0.0, f"{GRID}: predictions after a change of masked symbols")


@torch.no_grad()
def bound_is_mean_over_orders(case: ModelCase) -> None:
    """Add the terms of all masks, and compare with the mean of log_prob over all orders."""
    model = build(case, COUNTABLE)
    x = all_grids(COUNTABLE)
    symbols = COUNTABLE.symbols
    under_each = []
    for order in itertools.permutations(range(symbols)):
        under_each.append(model.log_prob(x, order=order))
    expected = torch.stack(under_each).mean(0)
    found = torch.zeros_like(expected)
    condition = model.condition(None, len(x))
    for places in itertools.product((False, True), repeat=symbols):
        masked = symbols - sum(places)
        # All is known: there is nothing to predict.
        if not masked:
            continue
        known = torch.tensor(places).view(COUNTABLE.shape).expand_as(x)
        table = model.head(model.predictions(x, known, condition)).log_prob(x)
        nats = table.masked_fill(known, 0.0).flatten(1).sum(1)
        found += nats / masked / math.comb(symbols, masked)
    require_close(found, expected, EXACT, f"{COUNTABLE}: sum over masks, mean over orders, nats")


def batches_do_not_matter(case: ModelCase) -> None:
    """Draw and bound images together and one by one."""
    model = build(case, GRID)
    unmasking = Unmasking(steps=5)
    together = sample(model, n=5, seed=3, unmasking=unmasking)
    bounds = model.any_order_bound(together, seed=3)
    for image in range(5):
        alone = sample(model, n=1, seed=3 + image, unmasking=unmasking)
        require(torch.equal(alone[0], together[image]), f"image {image} depends on its batch")
        bound = model.any_order_bound(alone, seed=3 + image)
        require_close(bound[0], bounds[image], EXACT, f"bound of image {image}, nats")


def probabilities_of_orders_are_drawn(case: ModelCase) -> None:
    """Draw one random place a step, and compare with the mixture over all orders."""
    model = build(case, COUNTABLE)
    n = 4000
    one_each = Unmasking(COUNTABLE.symbols, "linear", math.inf)
    drawn = sample(model, n=n, seed=11, batch=n, unmasking=one_each)
    every = all_grids(COUNTABLE)
    orders = list(itertools.permutations(range(COUNTABLE.symbols)))
    with torch.no_grad():
        nats = torch.stack([model.log_prob(every, order=order) for order in orders])
    expected = n * nats.exp().mean(0)
    weights = COUNTABLE.levels ** torch.arange(COUNTABLE.symbols).flip(0)
    seen = torch.bincount(drawn.flatten(1) @ weights, minlength=len(every))
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    # Mean and standard deviation of chi-square with one degree of freedom less than there are.
    freedom = len(every) - 1
    limit = freedom + 5 * math.sqrt(2 * freedom)
    require(chi_square < limit, f"chi-square {chi_square:.0f} of at most {limit:.0f}")


def saving_keeps_the_bound(case: ModelCase) -> None:
    """Save a float32 model to a directory and load it again."""
    model = case.build(GRID, classes=2).float()
    assert isinstance(model, MaskedModel)
    x = random_grids(GRID, 3)
    cond = torch.tensor([0, 1, 2])
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        loaded = load_model(Path(folder))
    require(isinstance(loaded, MaskedModel), f"what was loaded is a {type(loaded).__name__}")
    assert isinstance(loaded, MaskedModel)
    bound = loaded.any_order_bound(x, cond)
    require_close(bound, model.any_order_bound(x, cond), 0.0, "any-order bound, nats")


SHARED = {
    "creation follows its seed alone",
    "the probabilities sum to one under every order",
    "steps along an order equal the parallel pass",
    "what comes later in an order changes nothing",
}
"""Promises of other models that it makes too: they speak of no probability without an order."""


def _shared() -> list[Contract[ModelCase]]:
    """The contracts of :data:`SHARED`."""
    found = []
    for contract in (*any_order_contracts.ANY_ORDER_CONTRACTS, *density_model_contracts.CONTRACTS):
        if contract.promise in SHARED:
            found.append(contract)
    return found


MASKED_CONTRACTS: tuple[Contract[ModelCase], ...] = (
    Contract("a masked symbol does not matter", masked_symbols_are_not_seen),
    Contract("the bound is the mean over all orders", bound_is_mean_over_orders),
    Contract("the batch does not change an image", batches_do_not_matter),
    Contract(
        "one random place a step draws the mixture of orders", probabilities_of_orders_are_drawn
    ),
    Contract("saving and loading keep the bound", saving_keeps_the_bound),
    *_shared(),
)
"""In the order of importance."""
