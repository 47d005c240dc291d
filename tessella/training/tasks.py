"""What is trained: a density model on pixels or codes, or a tokenizer. A task is the loss, its
unit, and how to validate it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from tessella import files
from tessella.evaluation.metrics import mean_squared_error, psnr
from tessella.grid import LN2, Grid
from tessella.models import Condition, DensityModel, Hierarchy, Prior, create
from tessella.models.hierarchy import pack, unpack
from tessella.models.independent import Independent
from tessella.pipeline import fingerprint, save_generator, save_model, warn_of_order
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.codebook_health import Watch
from tessella.tokenizers.quantizers import CodeUsage, Quantizer
from tessella.tokenizers.tokenizer import channels
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

    def networks(self) -> list[nn.Module]:
        """What torch.compile gets, each on its own."""
        return [self.module]

    @abstractmethod
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Scalars of a batch; ``loss`` is what is minimized."""

    @abstractmethod
    def validate(self, module: nn.Module, examples: Examples, batch: int) -> dict[str, float]:
        """Figures of ``module`` (a copy with averaged weights) on held-out examples, ``metric``
        among them."""

    @abstractmethod
    def save(self, module: nn.Module, out: Path, figures: dict[str, Any]) -> None:
        """Save ``module`` as the model of the run directory ``out``."""

    @abstractmethod
    def save_baseline(self, examples: Examples, out: Path) -> None:
        """Keep with the run what its figures are compared to."""

    def memory(self) -> dict[str, Any]:
        """What validations remember of the ones before, as JSON values; it goes into every
        checkpoint."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take up what :meth:`memory` gave, in a resumed run."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What is trained, as JSON values; a resumed run must be of the same."""


class DensityTask(Task):
    """Minus the log-likelihood of a density model, in bits per symbol.

    Args:
        model: on pixels or codes, or a hierarchy on codes of several grids; these travel packed,
            ``[n, symbols]``.
        tokenizer: the identity for pixels; for a prior, the trained tokenizer, which stays as it
            is; None where the examples are symbols already.
    """

    unit = "bits/dim"
    metric = "bits_per_dim"

    def __init__(self, model: Prior, tokenizer: Tokenizer | None) -> None:
        super().__init__(model)
        # Kept out of the module tree: it is neither trained nor saved in checkpoints.
        self.__dict__["tokenizer"] = tokenizer
        if tokenizer is not None:
            warn_of_order(tokenizer, model)

    def networks(self) -> list[nn.Module]:
        return list(self._priors(self.module))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        x = self._symbols(x)
        bits = []
        whole = unpack(x, self.grids) if len(self.grids) > 1 else (x,)
        for level, model in enumerate(self._priors(self.module)):
            condition = Condition(
                labels, None if model.conditioning.codes is None else whole[level - 1]
            )
            log_prob = model.distribution(whole[level], condition).log_prob(whole[level])
            bits.append(-log_prob.flatten(1).sum(1).mean() / LN2)
        losses = {"loss": torch.stack(bits).sum() / sum(grid.symbols for grid in self.grids)}
        if len(bits) > 1:
            pairs = enumerate(zip(bits, self.grids, strict=True))
            losses |= {
                f"bits_per_code/{level}": part.detach() / grid.symbols
                for level, (part, grid) in pairs
            }
        return losses

    def validate(self, module: nn.Module, examples: Examples, batch: int) -> dict[str, float]:
        assert isinstance(module, (DensityModel, Hierarchy))
        nats: list[float] = []
        with torch.no_grad():
            for part in torch.arange(len(examples)).split(batch):
                cond = None if examples.labels is None else examples.labels[part]
                symbols: Any = self._symbols(examples.plain(part).to(module.device))
                if isinstance(module, Hierarchy):
                    symbols = unpack(symbols, self.grids)
                nats += (-module.log_prob(symbols, cond)).tolist()
        mean = float(torch.tensor(nats, dtype=torch.float64).mean())
        return {"bits_per_dim": mean / LN2 / sum(grid.symbols for grid in self.grids)}

    def save(self, module: nn.Module, out: Path, figures: dict[str, Any]) -> None:
        assert isinstance(module, (DensityModel, Hierarchy))
        self._save(module, out, figures)

    def save_baseline(self, examples: Examples, out: Path) -> None:
        generator, cpu = torch.Generator().manual_seed(0), torch.device("cpu")

        def symbols(level: int) -> Iterator[torch.Tensor]:
            for part in torch.arange(len(examples)).split(1024):
                # Images that are binarized anew each time are drawn once here.
                x = (
                    examples.batch(part, generator, cpu)[0]
                    if examples.binarize
                    else examples.plain(part)
                )
                x = self._symbols(x)
                yield unpack(x, self.grids)[level] if len(self.grids) > 1 else x

        for level, grid in enumerate(self.grids):
            baseline = create("independent", grid)
            assert isinstance(baseline, Independent)
            baseline.fit(symbols(level))
            save_model(
                baseline, out / "baseline" / (f"grid-{level}" if len(self.grids) > 1 else "")
            )

    def describe(self) -> dict[str, Any]:
        assert isinstance(self.module, (DensityModel, Hierarchy))
        tokenizer: Any = self.tokenizer
        learned = tokenizer is not None and not tokenizer.of_pixels
        return {
            "kind": "density-model",
            "model": self.module.config(),
            "tokenizer": fingerprint(tokenizer) if learned else None,
        }

    def _save(self, model: Prior, out: Path, figures: dict[str, Any] | None = None) -> None:
        if isinstance(self.tokenizer, Tokenizer):
            save_generator(self.tokenizer, model, out, figures)
        else:
            save_model(model, out, figures)

    def _symbols(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.uint8:
            return x.long()
        tokenizer = self.tokenizer
        assert isinstance(tokenizer, Tokenizer)
        symbols = tokenizer.encode(x)
        return (pack(symbols) if isinstance(symbols, tuple) else symbols).to(x.device)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids that are modelled."""
        return tuple(model.grid for model in self._priors(self.module))

    @staticmethod
    def _priors(module: nn.Module) -> tuple[DensityModel, ...]:
        if isinstance(module, Hierarchy):
            return tuple(module)
        assert isinstance(module, DensityModel)
        return (module,)


class TokenizerTask(Task):
    """The loss of a tokenizer: reconstruction and what its quantizer adds."""

    unit = "loss"
    metric = "mse"

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.watch = Watch(drift=True)

    def memory(self) -> dict[str, Any]:
        return {"counts": self.watch.before}

    def recall(self, memory: Mapping[str, Any]) -> None:
        self.watch.before = memory.get("counts", [])

    def networks(self) -> list[nn.Module]:
        # A quantizer keeps running counts and reads them: nothing of it would stay in one graph.
        return [child for child in self.module.children() if not isinstance(child, Quantizer)]

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        out = self.module(x)
        return {**out.losses, **out.stats}

    def validate(self, module: nn.Module, examples: Examples, batch: int) -> dict[str, float]:
        assert isinstance(module, Tokenizer)
        books = [CodeUsage(grid.levels) for grid in module.grids() for _ in range(grid.channels)]
        errors: list[float] = []
        for places in torch.arange(len(examples)).split(batch):
            part = examples.plain(places)
            symbols = module.encode(part)
            for book, codes in zip(books, channels(symbols), strict=True):
                book.update(codes)
            errors += mean_squared_error(
                part, module.decode(symbols, (part.shape[1], part.shape[2])).cpu()
            ).tolist()
        mse = torch.tensor(errors, dtype=torch.float64)
        figures = {"mse": float(mse.mean()), "psnr_db": float(psnr(mse).mean())}
        for number, book in enumerate(books):
            of = f"/{number}" if len(books) > 1 else ""
            figures |= {
                f"codebook_used{of}": float(book.used),
                f"code_perplexity{of}": book.perplexity,
            }
        return figures | self.watch.figures(module, [book.counts for book in books])

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
