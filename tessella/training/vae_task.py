"""Training a variational autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tessella.evaluation.metrics import mean_squared_error, psnr
from tessella.grid import LN2
from tessella.models import create
from tessella.models.independent import Independent
from tessella.pipeline import save_model
from tessella.training.examples import Examples
from tessella.training.tasks import Task
from tessella.vae import VAE

SAMPLES = 8
"""Samples of the latents of each image in the bound that a validation takes."""


class VAETask(Task):
    """Minus the evidence lower bound of a VAE, in bits per sub-pixel; validated by the
    importance-weighted bound.

    Of the noise of a step nothing is kept: the loop seeds torch's generator anew for each.
    Validations use the same noise for the same image.
    """

    unit = "bits/dim"
    metric = "bits_per_dim"

    def __init__(self, model: VAE) -> None:
        super().__init__(model)

    def networks(self) -> list[torch.nn.Module]:
        return list(self.module.children())

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        pixels, divergence = (part.mean() / LN2 / x[0].numel() for part in self.module(x))
        return {
            "loss": divergence - pixels,
            "pixel_bits": -pixels.detach(),
            "latent_bits": divergence.detach(),
        }

    def validate(self, module: torch.nn.Module, examples: Examples, batch: int) -> dict[str, float]:
        assert isinstance(module, VAE)
        bits: list[float] = []
        errors: list[float] = []
        for places in torch.arange(len(examples)).split(batch):
            part = examples.plain(places)
            bits += module.bits_per_dim(part, SAMPLES, seed=int(places[0])).tolist()
            errors += mean_squared_error(part, module.reconstruct(part).cpu()).tolist()
        decibels = psnr(torch.tensor(errors, dtype=torch.float64))
        mean = torch.tensor(bits, dtype=torch.float64).mean()
        return {"bits_per_dim": float(mean), "psnr_db": float(decibels.mean())}

    def save(self, module: torch.nn.Module, out: Path, figures: dict[str, Any]) -> None:
        assert isinstance(module, VAE)
        save_model(module, out, figures)

    def save_baseline(self, examples: Examples, out: Path) -> None:
        assert isinstance(self.module, VAE)
        baseline, pixels = create("independent", self.module.grid), self.module.pixels
        assert isinstance(baseline, Independent)
        baseline.fit(
            pixels.encode(examples.plain(part)).cpu()
            for part in torch.arange(len(examples)).split(1024)
        )
        save_model(baseline, out / "baseline")

    def describe(self) -> dict[str, Any]:
        assert isinstance(self.module, VAE)
        return {"kind": "vae", "model": {"name": self.module.name} | self.module.config()}
