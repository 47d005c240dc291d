"""Reconstructions through a learned tokenizer, and the use of its codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tessella.evaluation.aspect import Aspect, ImageBatch, Measured, Values
from tessella.evaluation.metrics import mean_squared_error, psnr, ssim, standard_error
from tessella.files import JSONValue
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
        self.mean_image: torch.Tensor | None = None
        if mean_image is not None:
            self.mean_image = mean_image.round().to(torch.uint8)
        # One codebook for each channel of each grid, coarse to fine.
        self.books: list[CodeUsage] = []
        for grid in tokenizer.grids():
            for _ in range(grid.channels):
                self.books.append(CodeUsage(grid.levels))

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

    def figures(self, measured: Measured) -> dict[str, JSONValue]:
        mse = measured.values["mse"]
        structure = measured.values["ssim"]
        decibels = psnr(mse)
        figures: dict[str, JSONValue] = {
            "mse": float(mse.mean()),
            "mse_se": standard_error(mse),
            # A perfect reconstruction has an infinite PSNR, of which there is no mean.
            "psnr_db": None,
            "psnr_db_se": None,
            "ssim": float(structure.mean()),
            "ssim_se": standard_error(structure),
        }
        if bool(torch.isfinite(decibels).all()):
            figures["psnr_db"] = float(decibels.mean())
            figures["psnr_db_se"] = standard_error(decibels)
        figures |= _usage_figures(measured.counts)
        if "mean_image_mse" in measured.values:
            decibels_of_mean = psnr(measured.values["mean_image_mse"])
            figures["mean_image_psnr_db"] = float(decibels_of_mean.mean())
        # Whether the codebook is healthy, and what to change where it is not.
        facts = codebook_health.examine(self.tokenizer, list(measured.counts), self.steps)
        return figures | codebook_health.summarize(facts)

    def counts(self) -> tuple[torch.Tensor, ...]:
        return tuple(book.counts for book in self.books)


def reconstruction_of(
    model: SavedModel, mean_image: torch.Tensor | None = None, steps: int | None = None
) -> Reconstruction | None:
    """The reconstructions of a model; None of one without a learned tokenizer."""
    tokenizer = learned_tokenizer(model)
    if tokenizer is None:
        return None
    return Reconstruction(tokenizer, mean_image, steps)


def reconstruction_columns(values: Values) -> dict[str, torch.Tensor]:
    """Distortions of each image, named with their unit."""
    mse = values["mse"]
    return {"mse": mse, "psnr_db": psnr(mse), "ssim": values["ssim"]}


def _usage_figures(counts: Sequence[torch.Tensor]) -> dict[str, JSONValue]:
    """How the codes of each codebook are used, from the counts of all processes.

    Each figure is a number where there is one codebook, else a list.
    """
    columns: dict[str, list[JSONValue]] = {
        "codebook_size": [],
        "codebook_used": [],
        "code_perplexity": [],
        "code_entropy_bits": [],
    }
    for book_counts in counts:
        book = CodeUsage(len(book_counts))
        book.counts = book_counts
        columns["codebook_size"].append(len(book_counts))
        columns["codebook_used"].append(book.used)
        columns["code_perplexity"].append(book.perplexity)
        columns["code_entropy_bits"].append(book.entropy_bits)
    if len(counts) == 1:
        return {name: values[0] for name, values in columns.items()}
    return dict(columns)
