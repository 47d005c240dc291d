"""Orders in which the symbols of a grid become known.

An order is a permutation: entry ``i`` is the place of the symbol that becomes known as number
``i``. Places count the symbols in raster order, or, where a head orders the channels of a pixel by
itself, the pixels.
"""

from __future__ import annotations

import torch

from tessella.errors import InputError
from tessella.grid import Grid, to_tensor


def known_first(known: torch.Tensor) -> torch.Tensor:
    """The known places in raster order, and then the missing ones in raster order.

    Args:
        known: ``bool [n, places]``.

    Returns:
        ``int64 [n, places]``.
    """
    # A stable sort keeps the raster order within both parts.
    missing = (~known).to(torch.uint8)
    return missing.argsort(dim=1, stable=True)


def check_order(grid: Grid, order: object, batch: int, whole_pixels: bool) -> torch.Tensor:
    """Check an order that a caller gives.

    Args:
        grid: the grid.
        order: a permutation of the symbols for all images, ``[symbols]``, or one for each,
            ``[batch, symbols]``.
        batch: number of images.
        whole_pixels: whether the channels of a pixel must follow each other in their own order.

    Returns:
        ``int64 [batch, symbols]``.

    Raises:
        InputError: for anything else.
    """
    given = to_tensor("order", order)
    raster = torch.arange(grid.symbols, device=given.device)
    if given.shape == raster.shape:
        given = given.expand(batch, grid.symbols)
    if given.is_floating_point() or given.shape != (batch, grid.symbols):
        raise InputError(
            f"order must hold integers of shape [{grid.symbols}] or [{batch}, {grid.symbols}], "
            f"got {given.dtype} of shape {list(given.shape)}"
        )
    given = given.long()
    if not bool((given.sort(dim=1).values == raster).all()):
        raise InputError(
            f"order must hold each place 0..{grid.symbols - 1} once, as torch.randperm gives them"
        )
    if whole_pixels:
        _check_whole_pixels(grid, given)
    return given


def _check_whole_pixels(grid: Grid, order: torch.Tensor) -> None:
    """Raise InputError unless the channels of every pixel follow each other."""
    by_pixel = order.unflatten(1, (grid.pixels, grid.channels))
    first = by_pixel[..., :1]
    channels = torch.arange(grid.channels, device=order.device)
    is_first_channel = bool((first % grid.channels == 0).all())
    if not is_first_channel or not bool((by_pixel == first + channels).all()):
        raise InputError(
            "the head of this model describes all channels of a pixel together: an order, or what "
            "is known, must keep them together; or take head='categorical'"
        )


def of_places(order: torch.Tensor, symbols: int) -> torch.Tensor:
    """An order of symbols as one of places of ``symbols`` symbols each: ``[n, places]``."""
    return order[:, ::symbols] // symbols


def of_symbols(order: torch.Tensor, symbols: int) -> torch.Tensor:
    """An order of places as one of the symbols in them: the reverse of :func:`of_places`."""
    within = torch.arange(symbols, device=order.device)
    return (order[..., None] * symbols + within).flatten(1)


def random_permutations(n: int, places: int, generator: torch.Generator | None) -> torch.Tensor:
    """Orders of which all are equally likely: ``int64 [n, places]``.

    Args:
        n: number of orders.
        places: length of each.
        generator: None for the global one.
    """
    return torch.rand(n, places, generator=generator).argsort(dim=1)


def scattered_masks(n: int, places: int, generator: torch.Generator | None) -> torch.Tensor:
    """Masks of single places: ``bool [n, places]``; the share of a mask is uniform in (0, 1)."""
    share = torch.rand(n, 1, generator=generator)
    return torch.rand(n, places, generator=generator) < share


def rectangle_masks(
    n: int, height: int, width: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Masks of random rectangles, or of all around them: ``bool [n, height * width]``.

    Many rectangles reach to the border, so that halves and margins of images are among them.
    """
    rows = _random_intervals(n, height, generator)
    columns = _random_intervals(n, width, generator)
    inside = (rows[:, :, None] & columns[:, None, :]).flatten(1)
    # Half of the masks hold the rectangle, half of them the rest.
    turned_round = torch.rand(n, 1, generator=generator) < 0.5
    return inside ^ turned_round


def _random_intervals(n: int, size: int, generator: torch.Generator | None) -> torch.Tensor:
    """Random intervals of ``0 .. size - 1``: ``bool [n, size]``."""
    # The ends are drawn from three times the length, so that each lies beyond a border as often as
    # between them.
    ends = torch.randint(-size, 2 * size + 1, (n, 2), generator=generator)
    first, last = ends.sort(dim=1).values.split(1, dim=1)
    places = torch.arange(size)
    return (places >= first) & (places < last)
