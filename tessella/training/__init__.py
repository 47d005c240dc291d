"""Training: one loop for density models, tokenizers and priors, and the run directories it fills.

Training itself is imported on first use: its engine takes as long to import as torch, and
readers of run directories do not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tessella.training.trainer import Run, train, train_recipe

__all__ = ["Run", "train", "train_recipe"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'tessella.training' has no attribute {name!r}")
    value: object = getattr(import_module("tessella.training.trainer"), name)
    globals()[name] = value
    return value
