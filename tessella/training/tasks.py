"""What is trained: a density model on pixels or codes, or a tokenizer. A task is the loss, its unit, and how to
validate it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from tessella import files
from tessella.metrics import mean_squared_error, psnr
from tessella.models import Condition, DensityModel, create
from tessella.models.independent import Independent
from tessella.pipeline import fingerprint, save_generator, save_model, warn_of_order
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.quantizers import CodeUsage
from tessella.training.examples import Examples


class Task(nn.Module, ABC):
    """A module in training.

    Args:
        module: what is trained.
    """

    unit: ClassVar[str]
    """Unit of ``loss``, for people."""
    metric: ClassVar[str]
    """The validation figure that the best weights minimize."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @abstractmethod
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Scalars of a batch; ``loss`` is what is minimized."""

    @abstractmethod
    def validate(self, module: nn.Module, examples: Examples, batch: int) -> dict[str, float]:
        """Figures of ``module`` (a copy with averaged weights) on held-out examples, ``metric`` among them."""

    @abstractmethod
    def save(self, module: nn.Module, out: Path, figures: dict[str, Any]) -> None:
        """Save ``module`` as the model of the run directory ``out``."""

    @abstractmethod
    def save_baseline(self, examples: Examples, out: Path) -> None:
        """Keep with the run what its figures are compared to."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What is trained, as JSON values; a resumed run must be of the same."""


class DensityTask(Task):
    """Minus the log-likelihood of a density model, in bits per symbol.

    Args:
        model: on pixels or codes.
        tokenizer: the identity for pixels; for a prior, the trained tokenizer, which stays as it is; None where the
            examples are symbols already.
    """

    unit = "bits/dim"
    metric = "bits_per_dim"

    def __init__(self, model: DensityModel, tokenizer: Tokenizer | None) -> None:
        super().__init__(model)
        # Kept out of the module tree: it is neither trained nor saved in checkpoints.
        self.__dict__["tokenizer"] = tokenizer
        if tokenizer is not None:
            warn_of_order(tokenizer, model)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        model = self.module
        assert isinstance(model, DensityModel)
        x = self._symbols(x)
        nats = -model.distribution(x, Condition(labels)).log_prob(x).flatten(1).sum(1).mean()
        return {"loss": model.grid.bits_per_dim(nats)}

    def validate(self, module: nn.Module, examples: Examples, batch: int) -> dict[str, float]:
        assert isinstance(module, DensityModel)
        nats: list[float] = []
        with torch.no_grad():
            for part in torch.arange(len(examples)).split(batch):
                cond = None if examples.labels is None else examples.labels[part]
                symbols = self._symbols(examples.plain(part).to(module.device))
                nats += (-module.log_prob(symbols, cond)).tolist()
        return {"bits_per_dim": float(module.grid.bits_per_dim(torch.tensor(nats, dtype=torch.float64).mean()))}

    def save(self, module: nn.Module, out: Path, figures: dict[str, Any]) -> None:
        assert isinstance(module, DensityModel)
        self._save(module, out, figures)

    def save_baseline(self, examples: Examples, out: Path) -> None:
        model = self.module
        assert isinstance(model, DensityModel)
        baseline = create("independent", model.grid)
        assert isinstance(baseline, Independent)
        generator = torch.Generator().manual_seed(0)
        cpu = torch.device("cpu")
        parts = torch.arange(len(examples)).split(1024)
        # Images that are binarized anew each time are drawn once here.
        baseline.fit(
            self._symbols(examples.batch(part, generator, cpu)[0])
            if examples.binarize
            else self._symbols(examples.plain(part))
            for part in parts
        )
        save_model(baseline, out / "baseline")

    def describe(self) -> dict[str, Any]:
        assert isinstance(self.module, DensityModel)
        tokenizer: Any = self.tokenizer
        learned = tokenizer is not None and not tokenizer.of_pixels
        return {
            "kind": "density-model",
            "model": self.module.config(),
            "tokenizer": fingerprint(tokenizer) if learned else None,
        }

    def _save(self, model: DensityModel, out: Path, figures: dict[str, Any] | None = None) -> None:
        if isinstance(self.tokenizer, Tokenizer):
            save_generator(self.tokenizer, model, out, figures)
        else:
            save_model(model, out, figures)

    def _symbols(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.uint8:
            return x.long()
        tokenizer = self.tokenizer
        assert isinstance(tokenizer, Tokenizer)
        return tokenizer.encode(x).to(x.device)


class TokenizerTask(Task):
    """The loss of a tokenizer: reconstruction and what its quantizer adds."""

    unit = "loss"
    metric = "mse"

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        out = self.module(x)
        return {**out.losses, **out.stats}

    def validate(self, module: nn.Module, examples: Examples, batch: int) -> dict[str, float]:
        assert isinstance(module, Tokenizer)
        usage, errors = CodeUsage(module.grid().levels), list[float]()
        for places in torch.arange(len(examples)).split(batch):
            part = examples.plain(places)
            symbols = module.encode(part)
            usage.update(symbols)
            errors += mean_squared_error(part, module.decode(symbols, (part.shape[1], part.shape[2])).cpu()).tolist()
        mse = torch.tensor(errors, dtype=torch.float64)
        return {
            "mse": float(mse.mean()),
            "psnr_db": float(psnr(mse).mean()),
            "codebook_used": float(usage.used),
            "code_perplexity": usage.perplexity,
        }

    def save(self, module: nn.Module, out: Path, figures: dict[str, Any]) -> None:
        assert isinstance(module, Tokenizer)
        save_model(module, out, figures)

    def save_baseline(self, examples: Examples, out: Path) -> None:
        total = torch.zeros(examples.variants[0].shape[1:], dtype=torch.int64)
        for part in torch.arange(len(examples)).split(64):
            total += examples.plain(part).sum(0, dtype=torch.int64)
        mean = (total.double() / len(examples)).float()
        files.write_tensors(out / "baseline" / "mean.safetensors", {"mean": mean})

    def describe(self) -> dict[str, Any]:
        assert isinstance(self.module, Tokenizer)
        return {"kind": "tokenizer", "model": {"name": self.module.name} | self.module.config()}
