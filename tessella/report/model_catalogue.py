"""What there is to choose from: the families of density models and the heads, with their sizes on
two known grids."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import HEADS
from tessella.models import MODELS, create

GRIDS = {"28x28x1 of 2 levels": Grid(28, 28, 1, 2), "32x32x3 of 256 levels": Grid(32, 32, 3, 256)}
"""Binarized MNIST and CIFAR-10."""


def catalogue() -> dict[str, Any]:
    """Families and heads by name: ``about``, a line, and of families ``parameters``, the count with
    the default sizes for each of :data:`GRIDS`, None where the family refuses the grid as too
    large."""
    return {
        "models": {
            name: {
                "about": _about(cls),
                "parameters": {text: _parameters(name, grid) for text, grid in GRIDS.items()},
            }
            for name, cls in MODELS.items()
        },
        "heads": {name: {"about": _about(cls)} for name, cls in HEADS.items()},
    }


def render(facts: dict[str, Any]) -> list[str]:
    """The lines of a :func:`catalogue` for people."""
    lines = ["models, and parameters of the default sizes with the categorical head:"]
    lines.append("  ".join([" " * 18, *(f"{text:>21}" for text in GRIDS)]))
    for name, of_model in facts["models"].items():
        counts = (
            "too large" if count is None else f"{count:,}"
            for count in of_model["parameters"].values()
        )
        lines.append(
            "  ".join([f"  {name:16}", *(f"{count:>21}" for count in counts), of_model["about"]])
        )
    lines += [
        "heads:",
        *(f"  {name:16}  {of_head['about']}" for name, of_head in facts["heads"].items()),
    ]
    return lines


def _about(cls: type) -> str:
    """The first paragraph of a class's docstring, behind the name it begins with, as plain text."""
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

    Everything else is computed, so that masks tell what they hold at zero.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.randn, torch.rand):
            return torch.empty(*args, **kwargs or {})
        if (
            func in (torch.Tensor.normal_, torch.Tensor.uniform_)
            or getattr(func, "__module__", "") == nn.init.__name__
        ):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs or {})
