"""The families of density models and the heads, with their sizes on two well-known grids."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import HEADS
from tessella.models import MODELS, create

GRIDS = {"28x28x1 of 2 levels": Grid(28, 28, 1, 2), "32x32x3 of 256 levels": Grid(32, 32, 3, 256)}
"""Binarized MNIST and CIFAR-10."""


class ModelEntry(TypedDict):
    """A family: a line on it, and its parameters with the default sizes on each of the grids.

    None where the family refuses the grid as too large.
    """

    about: str
    parameters: dict[str, int | None]


class HeadEntry(TypedDict):
    """A head: a line on it."""

    about: str


class Catalogue(TypedDict):
    """Families and heads by name."""

    models: dict[str, ModelEntry]
    heads: dict[str, HeadEntry]


def catalogue() -> Catalogue:
    """All families and heads."""
    models: dict[str, ModelEntry] = {}
    for name, family in MODELS.items():
        parameters = {}
        for text, grid in GRIDS.items():
            parameters[text] = _parameters(name, grid)
        models[name] = {"about": _about(family), "parameters": parameters}
    heads: dict[str, HeadEntry] = {}
    for name, head in HEADS.items():
        heads[name] = {"about": _about(head)}
    return {"models": models, "heads": heads}


def render(facts: Catalogue) -> list[str]:
    """The lines of a :func:`catalogue` for people."""
    lines = ["models, and parameters of the default sizes with the categorical head:"]
    titles = "".join(f"  {text:>21}" for text in GRIDS)
    lines.append(f"{'':18}{titles}")
    for name, model in facts["models"].items():
        line = f"  {name:16}"
        for count in model["parameters"].values():
            text = "too large"
            if count is not None:
                text = f"{count:,}"
            line += f"  {text:>21}"
        lines.append(f"{line}  {model['about']}")
    lines.append("heads:")
    for name, head in facts["heads"].items():
        lines.append(f"  {name:16}  {head['about']}")
    return lines


def _about(cls: type) -> str:
    """The first paragraph of a class's docstring as plain text.

    The name that some begin with is left out.
    """
    # "``name``: What it is." becomes "What it is".
    paragraph = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    return paragraph.split("``: ", 1)[-1].replace("``", "").removesuffix(".")


def _parameters(name: str, grid: Grid) -> int | None:
    """Parameters of a family with its default sizes; None where it refuses the grid."""
    try:
        with _Unfilled():
            return create(name, grid).parameter_count()
    except ConfigError:
        return None


class _Unfilled(TorchFunctionMode):
    """Tensors that would get random values are left as they are in memory, which costs no time.

    Everything else is computed: masks say which weights they hold at zero, and those do not count.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in (torch.randn, torch.rand):
            return torch.empty(*args, **kwargs)
        in_place = func in (torch.Tensor.normal_, torch.Tensor.uniform_)
        if in_place or getattr(func, "__module__", "") == nn.init.__name__:
            # All of torch.nn.init fills its first argument and returns it.
            if args:
                return args[0]
            return kwargs["tensor"]
        return func(*args, **kwargs)
