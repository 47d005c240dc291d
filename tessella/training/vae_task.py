"""Training a variational autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tessella.evaluation.metrics import mean_squared_error, psnr
from tessella.files import pictures
from tessella.grid import LN2
from tessella.models import create
from tessella.models.independent import Independent
from tessella.pipeline import save_model
from tessella.training.examples import Examples
from tessella.training.tasks import BASELINE_BATCH, DRAWN, RECONSTRUCTED, Task, above
from tessella.vae import VAE

SAMPLES = 8
"""Samples of the latents of each image in the bound that a validation takes."""


class VAETask(Task):
    """Minus the evidence lower bound of a VAE, in bits per sub-pixel.

    It is validated by the importance-weighted bound (Burda et al. 2016). The noise of a step needs
    no place in checkpoints, as the loop seeds torch's generator anew for each step. Validations use
    equal noise for equal images.
    """

    unit = "bits/dim"
    metric = "bits_per_dim"

    def __init__(self, model: VAE) -> None:
        super().__init__(model)

    def networks(self) -> list[torch.nn.Module]:
        # The parts each by itself: what lies between them draws random numbers.
        return list(self.module.children())

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        # ELBO = E[log p(x|z)] - KL(q(z|x) || p(z)): both in nats, [b].
        log_pixels, divergence = self.module(x)
        dims = x[0].numel()
        pixel_bits = -log_pixels.mean() / LN2 / dims
        latent_bits = divergence.mean() / LN2 / dims
        return {
            "loss": latent_bits + pixel_bits,
            "pixel_bits": pixel_bits.detach(),
            "latent_bits": latent_bits.detach(),
        }

    def validate(
        self, module: torch.nn.Module, examples: Examples, batch: int, steps: int
    ) -> dict[str, float]:
        assert isinstance(module, VAE)
        bits: list[float] = []
        errors: list[float] = []
        for places in torch.arange(len(examples)).split(batch):
            images = examples.plain(places)  # uint8 [b, h, w, c]
            # The seed follows the place of the image, so that validations can be compared.
            bits += module.bits_per_dim(images, SAMPLES, seed=int(places[0])).tolist()
            errors += mean_squared_error(images, module.reconstruct(images).cpu()).tolist()
        # float64, and the mean over images of the PSNR, not the PSNR of the mean error.
        decibels = psnr(torch.tensor(errors, dtype=torch.float64))
        mean = torch.tensor(bits, dtype=torch.float64).mean()
        return {"bits_per_dim": float(mean), "psnr_db": float(decibels.mean())}

    def save(self, module: torch.nn.Module, out: Path, figures: dict[str, object]) -> None:
        assert isinstance(module, VAE)
        save_model(module, out, figures)

    def pictures(self, module: torch.nn.Module, examples: Examples) -> dict[str, np.ndarray]:
        assert isinstance(module, VAE)
        images = examples.plain(torch.arange(min(RECONSTRUCTED, len(examples))))
        drawn = module.sample(DRAWN, seed=0).cpu().numpy()
        return {
            "reconstructions": above(images, module.reconstruct(images).cpu()),
            "samples": pictures.sheet(drawn),
        }

    def save_baseline(self, examples: Examples, out: Path) -> None:
        assert isinstance(self.module, VAE)
        # Histograms of each sub-pixel: what a model without any dependence would reach.
        baseline = create("independent", self.module.grid)
        assert isinstance(baseline, Independent)
        baseline.fit(self._levels(examples))
        save_model(baseline, out / "baseline")

    def describe(self) -> dict[str, object]:
        assert isinstance(self.module, VAE)
        return {"kind": "vae", "model": {"name": self.module.name} | self.module.config()}

    def _levels(self, examples: Examples) -> Iterator[torch.Tensor]:
        """Pixels as levels of the model, a batch at a time."""
        assert isinstance(self.module, VAE)
        for part in torch.arange(len(examples)).split(BASELINE_BATCH):
            yield self.module.pixels.encode(examples.plain(part)).cpu()
