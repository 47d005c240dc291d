"""The promises of a density model that predicts in any order, beside those of every other."""

from __future__ import annotations

import torch

from tessella.contracts.contract import Contract, require, require_close
from tessella.contracts.density_model_contracts import EXACT, ModelCase, all_grids, random_grids
from tessella.grid import Grid
from tessella.models.order_agnostic_model import OrderAgnosticModel
from tessella.sampling import complete

COUNTABLE = (Grid(2, 2, 1, 3), Grid(2, 1, 2, 3))
"""Grids so small that all of them can be listed."""

GRIDS = (Grid(1, 4, 1, 4), Grid(3, 2, 2, 6))
"""One row, two codes a place."""

ORDERS = 4
"""Orders that are tried of each grid."""


def build(case: ModelCase, grid: Grid) -> OrderAgnosticModel:
    """The model of a case on a grid."""
    model = case.build(grid)
    require(
        isinstance(model, OrderAgnosticModel),
        f"{case.name} says any_order and does not derive from OrderAgnosticModel",
    )
    assert isinstance(model, OrderAgnosticModel)
    return model


def every_order_sums_to_one(case: ModelCase) -> None:
    """Add the probabilities of all grids there are, under several orders."""
    for grid in COUNTABLE:
        model = build(case, grid)
        x = all_grids(grid)
        for order in model.random_orders(ORDERS):
            with torch.no_grad():
                total = model.log_prob(x, order=order).logsumexp(0)
            what = f"{grid}, order {order.tolist()}: log of the sum, nats"
            require_close(total, torch.zeros_like(total), EXACT, what)


@torch.no_grad()
def steps_follow_the_order(case: ModelCase) -> None:
    """Compare steps along an order of each image with the parallel pass."""
    for grid in GRIDS:
        model = build(case, grid)
        x = random_grids(grid, ORDERS)
        images = torch.arange(ORDERS)
        order = model.random_orders(ORDERS)
        condition = model.condition(None, ORDERS, order)
        # [n, symbols, levels], at the places of the grid.
        expected = model.distribution(x, condition).table(x).flatten(1, 3)
        state = model.init_state(ORDERS, condition)
        previous = torch.zeros(ORDERS, dtype=torch.int64)
        for index in range(grid.symbols):
            place = order[:, index]
            parameters, state = model.step(previous, index, state)
            table = model.head.symbol(parameters).table()
            what = f"{grid}: tables of step {index} along an order, and of forward"
            require_close(table, expected[images, place], EXACT, what)
            previous = x.flatten(1)[images, place]


@torch.no_grad()
def later_symbols_change_nothing(case: ModelCase) -> None:
    """Change the symbols of the second half of an order, and look at the first half."""
    for grid in GRIDS:
        model = build(case, grid)
        x = random_grids(grid, 1)
        half = grid.symbols // 2
        for order in model.random_orders(ORDERS):
            changed = x.flatten(1).clone()
            changed[:, order[half:]] = (changed[:, order[half:]] + 1) % grid.levels
            both = torch.cat([x, changed.view_as(x)])
            condition = model.condition(None, 2, order)
            tables = model.distribution(both, condition).table(both).flatten(1, 3)
            # The symbol at the half itself is predicted from those before it, too. A joint head
            # makes tables of a pixel from its earlier channels, so it begins with a whole pixel.
            first = order[: half + 1 - half % grid.channels]
            what = f"{grid}: tables of what comes first, after a change of what comes later"
            require_close(tables[0, first], tables[1, first], EXACT, what)


def completions_equal_slow_ones(case: ModelCase) -> None:
    """Draw what is missing with cached steps, and with a pass over the grid for every symbol."""
    for grid in GRIDS:
        model = build(case, grid)
        x = random_grids(grid, 3)
        known = torch.zeros(grid.height, grid.width, dtype=torch.bool)
        # What is known comes last in raster order.
        known.view(-1)[grid.pixels // 2 :] = True
        fast = complete(model, x, known, seed=5, order="known-first")
        slow = complete(model, x, known, seed=5, order="known-first", method="naive")
        differ = int((fast != slow).sum())
        require(differ == 0, f"{grid}: {differ} symbols differ between cached and naive")
        require(torch.equal(fast[:, known], x[:, known]), f"{grid}: a known symbol was not kept")


ANY_ORDER_CONTRACTS: tuple[Contract[ModelCase], ...] = (
    Contract("the probabilities sum to one under every order", every_order_sums_to_one),
    Contract("steps along an order equal the parallel pass", steps_follow_the_order),
    Contract("what comes later in an order changes nothing", later_symbols_change_nothing),
    Contract("completions draw the symbols of the slow way", completions_equal_slow_ones),
)
"""In the order of importance."""
