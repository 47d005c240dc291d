"""Training: one loop for density models, tokenizers and priors, and the run directories it fills.

:mod:`~tessella.training.trainer` is the way in, :mod:`~tessella.training.loop` the loop.
"""

from __future__ import annotations

from tessella.training.trainer import Run, train, train_recipe

__all__ = ["Run", "train", "train_recipe"]
