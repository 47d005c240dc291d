"""Bounds on the code length of symbols, of models that state no exact one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tessella.data.hashes import image_hashes
from tessella.evaluation.aspect import Aspect, ImageBatch, Measured, Values
from tessella.evaluation.code_length import baseline_nats
from tessella.evaluation.metrics import standard_error
from tessella.files import JSONValue
from tessella.grid import LN2
from tessella.models import DensityModel
from tessella.models.masked_model import MASKS, MaskedModel
from tessella.pipeline import Generator, SavedModel
from tessella.tokenizers.tokenizer import as_tuple


class SymbolBound(Aspect):
    """The any-order bound of a masked model, see :mod:`tessella.models.masked_model`.

    Args:
        generator: the model with its tokenizer.
        prior: the masked model.
        baseline: independent symbols, to compare with; empty where there are none.
    """

    def __init__(
        self, generator: Generator, prior: MaskedModel, baseline: Sequence[DensityModel] = ()
    ) -> None:
        self.generator = generator
        self.prior = prior
        self.baseline = baseline

    @property
    def name(self) -> str:
        """Of the figure: bits of a pixel model's dimension, or of a code."""
        if self.generator.two_stage:
            return "bound_bits_per_code"
        return "bound_bits_per_dim"

    def values(self, batch: ImageBatch) -> dict[str, torch.Tensor]:
        symbols = as_tuple(batch.symbols)[0]
        # The masks of an image are seeded by its pixels, so that they are the same in any batch.
        seeds = image_hashes(batch.images.numpy()) >> np.uint64(1)
        bounds = []
        for place, seed in enumerate(seeds):
            cond = None if batch.cond is None else batch.cond[place : place + 1]
            image = symbols[place : place + 1]
            bounds.append(self.prior.any_order_bound(image, cond, seed=int(seed)))
        values = {"bound_nats": -torch.cat(bounds)}
        if self.baseline:
            values["baseline_nats"] = baseline_nats(self.baseline, batch)
        return values

    def columns(self, values: Values) -> dict[str, torch.Tensor]:
        # Minus a lower bound of log p is an upper bound of the bits.
        return {self.name: values["bound_nats"] / LN2 / self.generator.symbols}

    def figures(self, measured: Measured) -> dict[str, JSONValue]:
        bits = measured.values["bound_nats"] / LN2 / self.generator.symbols
        figures: dict[str, JSONValue] = {
            self.name: float(bits.mean()),
            f"{self.name}_se": standard_error(bits),
            "bound_masks": MASKS,
            "scored_grid": str(self.prior.grid),
        }
        if self.prior.classes:
            figures["condition"] = "labels" if measured.conditional else "null class"
        if "baseline_nats" in measured.values:
            baseline = float(measured.values["baseline_nats"].mean())
            figures["baseline_bits_per_dim"] = self.prior.grid.bits_per_dim(baseline)
        return figures


def symbol_bound_of(model: SavedModel, baseline: Sequence[DensityModel] = ()) -> SymbolBound | None:
    """The any-order bound of a masked model; None of others."""
    if not isinstance(model, Generator) or not isinstance(model.prior, MaskedModel):
        return None
    return SymbolBound(model, model.prior, baseline)
