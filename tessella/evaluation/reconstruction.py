"""Reconstructions through a learned tokenizer, and the use of its codes."""

from __future__ import annotations

from typing import Any

import torch

from tessella.evaluation.aspect import Aspect, ImageBatch, Measured, Values
from tessella.evaluation.metrics import mean_squared_error, psnr, ssim, standard_error
from tessella.pipeline import SavedModel, learned_tokenizer
from tessella.tokenizers import Tokenizer, codebook_health
from tessella.tokenizers.quantizers import CodeUsage
from tessella.tokenizers.reconstructing import ReconstructingTokenizer
from tessella.tokenizers.tokenizer import channels


class Reconstruction(Aspect):
    """How good reconstructions are, and how the codes are used.

    Args:
        tokenizer: makes the codes.
        mean_image: of the training images, float ``[h, w, c]``, to compare with; None where it is
            unknown.
        steps: training steps of the tokenizer; None where they are unknown.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        mean_image: torch.Tensor | None = None,
        steps: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.steps = steps
        self.mean_image = None if mean_image is None else mean_image.round().to(torch.uint8)
        # One codebook for each channel of each grid, coarse to fine.
        self.books: list[CodeUsage] = []
        for grid in tokenizer.grids():
            self.books += [CodeUsage(grid.levels) for _ in range(grid.channels)]

    def values(self, batch: ImageBatch) -> dict[str, torch.Tensor]:
        images = batch.images
        for book, codes in zip(self.books, channels(batch.symbols), strict=True):
            # Codes of one channel: [n, h', w'].
            book.update(codes)
        size = (images.shape[1], images.shape[2])
        # Cropped to the images, whose sides the stride need not divide.
        back = self.tokenizer.decode(batch.symbols, size).cpu()
        values = {"mse": mean_squared_error(images, back), "ssim": ssim(images, back)}
        tokenizer = self.tokenizer
        if isinstance(tokenizer, ReconstructingTokenizer) and tokenizer.likelihood is not None:
            values["pixel_nats"] = -tokenizer.log_likelihood(images, batch.symbols)
        # Images of other sizes than those trained on have no mean image.
        if self.mean_image is not None and self.mean_image.shape == images.shape[1:]:
            mean_images = self.mean_image.expand(images.shape)
            values["mean_image_mse"] = mean_squared_error(images, mean_images)
        return values

    def columns(self, values: Values) -> dict[str, torch.Tensor]:
        return reconstruction_columns(values)

    def figures(self, measured: Measured) -> dict[str, Any]:
        mse = measured.values["mse"]
        structure = measured.values["ssim"]
        decibels = psnr(mse)
        # A perfect reconstruction has an infinite PSNR, of which there is no mean.
        finite = bool(torch.isfinite(decibels).all())
        # The counts of all processes, not only of this one.
        books = [_usage(counts) for counts in measured.counts]
        figures: dict[str, Any] = {
            "mse": float(mse.mean()),
            "mse_se": standard_error(mse),
            "psnr_db": float(decibels.mean()) if finite else None,
            "psnr_db_se": standard_error(decibels) if finite else None,
            "ssim": float(structure.mean()),
            "ssim_se": standard_error(structure),
            "codebook_size": _one_or_all([len(book.counts) for book in books]),
            "codebook_used": _one_or_all([book.used for book in books]),
            "code_perplexity": _one_or_all([book.perplexity for book in books]),
            "code_entropy_bits": _one_or_all([book.entropy_bits for book in books]),
        }
        if "mean_image_mse" in measured.values:
            of_mean_image = psnr(measured.values["mean_image_mse"])
            figures["mean_image_psnr_db"] = float(of_mean_image.mean())
        facts = codebook_health.examine(self.tokenizer, list(measured.counts), self.steps)
        return figures | codebook_health.summarize(facts)

    def counts(self) -> tuple[torch.Tensor, ...]:
        return tuple(book.counts for book in self.books)


def reconstruction_of(
    model: SavedModel, mean_image: torch.Tensor | None = None, steps: int | None = None
) -> Reconstruction | None:
    """The reconstructions of a model; None of one without a learned tokenizer."""
    tokenizer = learned_tokenizer(model)
    return None if tokenizer is None else Reconstruction(tokenizer, mean_image, steps)


def reconstruction_columns(values: Values) -> dict[str, torch.Tensor]:
    """Distortions of each image, named with their unit."""
    mse = values["mse"]
    return {"mse": mse, "psnr_db": psnr(mse), "ssim": values["ssim"]}


def _usage(counts: torch.Tensor) -> CodeUsage:
    usage = CodeUsage(len(counts))
    usage.counts = counts
    return usage


def _one_or_all(values: list[Any]) -> Any:
    """The value of the one codebook there is, or a list of those of all."""
    return values[0] if len(values) == 1 else values
