"""Training: one loop for density models, tokenizers and priors, and the run directories it
leaves."""

from __future__ import annotations

from tessella.training.api import Run, train, train_recipe

__all__ = ["Run", "train", "train_recipe"]
