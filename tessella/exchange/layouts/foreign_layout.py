"""What a layout is: how another project names and shapes the tensors of a network we have."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.tokenizers.construction import PlainValues

Tensors = Mapping[str, torch.Tensor]
"""Tensors by the names they have in a checkpoint."""

Facts = Mapping[str, object]
"""What tensors do not show, under the names that the project uses."""

NAMES_SHOWN = 3
"""How many tensor names a message lists before "..."."""

MOST_LEVELS = 10_000
"""Largest number in the name of a tensor."""


@dataclass(frozen=True)
class Origin:
    """Where one of our tensors comes from.

    Args:
        names: of the tensors there.
        convert: makes ours of them. It is called with tensors without memory first, so it must not
            look at values.
    """

    names: tuple[str, ...]
    convert: Callable[[Sequence[torch.Tensor]], torch.Tensor]


def same(name: str) -> Origin:
    """The tensor of a name, as it is."""
    return Origin((name,), lambda parts: parts[0])


def stacked(names: Sequence[str]) -> Origin:
    """Several tensors, concatenated along their first dimension."""
    return Origin(tuple(names), lambda parts: torch.cat(list(parts)))


def constant(value: torch.Tensor) -> Origin:
    """A tensor that no checkpoint holds, always of this value."""

    def made(_: Sequence[torch.Tensor]) -> torch.Tensor:
        return value

    return Origin((), made)


class ForeignLayout(ABC):
    """A kind of checkpoint of another project, and the network that it becomes."""

    kind: ClassVar[str]
    """What the command line calls it."""

    about: ClassVar[str]
    """The class whose weights it holds, and the project."""

    network: ClassVar[str]
    """``tokenizer``, ``prior`` (on codes) or ``density-model`` (on pixels)."""

    known_facts: ClassVar[Mapping[str, str]] = {}
    """What tensors do not show and can be given as ``key=value``: names and what they mean."""

    ignored: ClassVar[tuple[str, ...]] = ()
    """Prefixes of tensors that only training needs."""

    @abstractmethod
    def config(self, tensors: Tensors, facts: Facts) -> PlainValues:
        """The configuration of our network, inferred from names and shapes.

        Raises:
            ConfigError: naming the tensor or the fact that is missing or does not fit.
        """

    @abstractmethod
    def origins(self, outline: nn.Module, tensors: Tensors, facts: Facts) -> dict[str, Origin]:
        """Where each tensor of our network comes from.

        Args:
            outline: our network on the meta device.
            tensors: those of the checkpoint.
            facts: those that :meth:`config` was given.
        """

    def is_ignored(self, name: str) -> bool:
        """Whether only training needs a tensor."""
        return name.startswith(self.ignored)

    def check(self, tensors: Tensors) -> None:
        """Refuse values that our network cannot stand for; most layouts have none.

        Raises:
            ConfigError: naming the tensor.
        """
        return None


def shape_of(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that shows sizes.

    Raises:
        ConfigError: when it is missing, empty, or has another number of dimensions.
    """
    if name not in tensors:
        raise ConfigError(f"{name}, which shows a size, is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or min(shape) < 1:
        raise ConfigError(f"{name} must have {dimensions} dimensions, got {list(shape)}")
    return shape


def numbers(tensors: Tensors, pattern: str) -> set[int]:
    """The numbers that a pattern captures at the beginning of names.

    Raises:
        ConfigError: when one is far too large to count anything.
    """
    found: set[int] = set()
    for name in tensors:
        match = re.match(pattern, name)
        if match is not None and len(match[1]) > 5:
            raise ConfigError(f"{name} counts further than any network has layers")
        if match is not None:
            found.add(int(match[1]))
    return found


def count(tensors: Tensors, pattern: str, what: str) -> int:
    """How many parts there are, from the largest number in their names.

    Raises:
        ConfigError: when there are none, or so many that the name must be wrong.
    """
    largest = max(numbers(tensors, pattern), default=-1)
    if not 0 <= largest < MOST_LEVELS:
        raise ConfigError(f"no tensor has the name of one of its {what}")
    return largest + 1


def integer_fact(facts: Facts, name: str, default: int | None = None) -> int | None:
    """A fact that must be a positive integer.

    Raises:
        ConfigError: when it is something else.
    """
    value = facts.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1, got {value!r:.60}")
    return value


def fixed_fact(facts: Facts, name: str, allowed: object) -> None:
    """Refuse a fact of a variant that our network cannot be.

    Raises:
        ConfigError: when it is given and is not the value that is allowed.
    """
    value = facts.get(name, allowed)
    if value != allowed:
        raise ConfigError(f"{name} must be {allowed!r} to be converted, got {value!r:.60}")


def size_fact(facts: Facts, names: Sequence[str], default: int) -> tuple[int, int]:
    """Height and width of images, the first fact of those names that is given.

    Raises:
        ConfigError: when it is neither a side nor a height and a width.
    """
    for name in names:
        value = facts.get(name)
        if isinstance(value, (list, tuple)) and len(value) == 2:
            sides = {"height": value[0], "width": value[1]}
            height = integer_fact(sides, "height")
            width = integer_fact(sides, "width")
            assert height is not None
            assert width is not None
            return height, width
        side = integer_fact(facts, name)
        if side is not None:
            return side, side
    return default, default


def grid_values(grid: Grid) -> dict[str, int]:
    """A grid as a configuration holds it."""
    height, width, channels = grid.shape
    return {"height": height, "width": width, "channels": channels, "levels": grid.levels}


def some(names: Sequence[str]) -> str:
    """The first few names of a list, for a message."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown + ", ..." if len(names) > NAMES_SHOWN else shown
