"""Code lengths: minus the exact log-probability of the symbols of each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tessella.evaluation.aspect import Aspect, ImageBatch, Measured, Values
from tessella.evaluation.metrics import standard_error
from tessella.files import JSONValue
from tessella.grid import LN2, Grid
from tessella.models import DensityModel
from tessella.pipeline import SavedModel, ScoresImages, learned_tokenizer
from tessella.pipeline.generator import grids_text
from tessella.pipeline.saved_model import states_bound
from tessella.tokenizers.tokenizer import as_tuple


class CodeLength(Aspect):
    """The cost of the symbols of images under a model that gives exact probabilities.

    Args:
        model: scores the symbols.
        two_stage: whether the symbols are codes.
        image_grid: the images as a grid of pixels.
        baseline: independent symbols of each grid, to compare with; empty where there are none.
    """

    def __init__(
        self,
        model: ScoresImages,
        two_stage: bool,
        image_grid: Grid,
        baseline: Sequence[DensityModel] = (),
    ) -> None:
        self.model = model
        self.two_stage = two_stage
        self.image_grid = image_grid
        self.baseline = baseline

    def values(self, batch: ImageBatch) -> dict[str, torch.Tensor]:
        # Grids are scored one given another, so their nats add up to those of the image.
        grid_nats = []
        for log_probs in self.model.grid_log_probs(batch.symbols, batch.cond):
            grid_nats.append(-log_probs)
        values = {}
        if len(grid_nats) == 1:
            values["nats"] = grid_nats[0]
        else:
            for level, nats in enumerate(grid_nats):
                values[f"nats_{level}"] = nats
            values["nats"] = torch.stack(grid_nats).sum(0)
        if self.baseline:
            values["baseline_nats"] = baseline_nats(self.baseline, batch)
        return values

    def columns(self, values: Values) -> dict[str, torch.Tensor]:
        nats = values["nats"]
        bits = nats / LN2
        return {"nats": nats, "bits": bits, "bits_per_dim": bits / self.model.symbols}

    def figures(self, measured: Measured) -> dict[str, JSONValue]:
        nats = measured.values["nats"]
        mean = float(nats.mean())
        error = standard_error(nats)
        # Nats of an image to bits per symbol.
        to_bits = 1 / (LN2 * self.model.symbols)
        figures: dict[str, JSONValue] = {
            "bits_per_dim": mean * to_bits,
            "bits_per_dim_se": error * to_bits,
            "nats_per_image": mean,
            "nats_per_image_se": error,
            "scored_grid": grids_text(self.model.grids),
        }
        if self.model.classes:
            figures["condition"] = "labels" if measured.conditional else "null class"
        # Codes are few: their bits are also given per image and per sub-pixel of the image.
        if self.two_stage:
            figures["bits_per_code"] = figures["bits_per_dim"]
            figures["bits_per_code_se"] = figures["bits_per_dim_se"]
            figures["bits_per_image"] = mean / LN2
            figures["bits_per_image_se"] = error / LN2
            figures["bits_per_image_dim"] = self.image_grid.bits_per_dim(mean)
            figures["bits_per_image_dim_se"] = self.image_grid.bits_per_dim(error)
        # How the cost is divided among the grids, each by its number of symbols.
        if len(self.model.grids) > 1:
            per_code: list[float] = []
            for level, grid in enumerate(self.model.grids):
                per_code.append(grid.bits_per_dim(float(measured.values[f"nats_{level}"].mean())))
            figures["bits_per_code_of_grids"] = per_code
        if "baseline_nats" in measured.values:
            baseline = float(measured.values["baseline_nats"].mean())
            figures["baseline_bits_per_dim"] = baseline * to_bits
        return figures


def code_length_of(model: SavedModel, baseline: Sequence[DensityModel] = ()) -> CodeLength | None:
    """The code lengths of a model; None of one that gives no exact probabilities."""
    # Tokenizers alone and VAEs give no exact probability.
    if not isinstance(model, ScoresImages) or states_bound(model):
        return None
    two_stage = learned_tokenizer(model) is not None
    return CodeLength(model, two_stage, model.image_grid, baseline)


def baseline_nats(baseline: Sequence[DensityModel], batch: ImageBatch) -> torch.Tensor:
    """Nats of the symbols of each image under independent symbols: ``[n]``."""
    grid_nats = []
    for model, symbols in zip(baseline, as_tuple(batch.symbols), strict=True):
        # Baselines are histograms, which stay on the CPU.
        grid_nats.append(-model.log_prob(symbols.cpu()))
    return torch.stack(grid_nats).sum(0)
