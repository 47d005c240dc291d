"""Tasks: a module in training, its loss with a unit, and how it is validated and saved.

Here are the tasks of density models and tokenizers; :mod:`tessella.training.vae_task` and
:mod:`tessella.training.adversarial` hold the others.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from tessella import files
from tessella.errors import ArtifactError, ConfigError
from tessella.evaluation.metrics import mean_squared_error, psnr
from tessella.files import pictures
from tessella.grid import LN2, Grid
from tessella.models import Condition, DensityModel, Hierarchy, Prior, create
from tessella.models.hierarchy import pack, unpack
from tessella.models.independent import Independent
from tessella.models.masked_model import MaskedModel
from tessella.nn import predictor_fit
from tessella.pipeline import (
    Generator,
    fingerprint,
    save_generator,
    save_model,
    warn_of_order,
)
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.codebook_health import CodebookMonitor
from tessella.tokenizers.quantizers import CodeUsage, Quantizer
from tessella.tokenizers.reconstructing import ReconstructingTokenizer
from tessella.tokenizers.tokenizer import channels
from tessella.training.examples import Examples
from tessella.training.progress import Rank

BASELINE_BATCH = 1024
"""Images that a baseline is fitted to at a time."""

DRAWN = 16
"""Images that a density model draws for a board."""

MOST_DRAWN = 4096
"""Most symbols of an image that is drawn for a board: each is a step of the model."""

RECONSTRUCTED = 8
"""Images that a tokenizer, or a VAE, reconstructs for a board."""


@dataclass(frozen=True)
class Validation:
    """Figures of a validation, and its rank among those of the run."""

    figures: dict[str, float]
    rank: Rank


class Task(nn.Module, ABC):
    """A module in training.

    Args:
        module: the model or tokenizer that is trained.
    """

    unit: ClassVar[str]
    """Unit of ``loss``, for people."""
    metric: ClassVar[str]
    """The validation figure that the best weights minimize."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @property
    def shown_unit(self) -> str:
        """:attr:`unit`, as messages name it."""
        return self.unit

    @property
    def shown_metric(self) -> str:
        """:attr:`metric`, as messages name it."""
        return self.metric

    def networks(self) -> list[nn.Module]:
        """The parts that torch.compile gets, each by itself."""
        return [self.module]

    @contextlib.contextmanager
    def adapted(self, checkpointing: bool, condition_dropout: float) -> Iterator[None]:
        """Apply the options of training that concern the model, until the end of the block.

        Args:
            checkpointing: keep less for the gradient, and compute it again.
            condition_dropout: share of labels that the null class replaces.

        Raises:
            ConfigError: for an option that this kind of model does not have.
        """
        if checkpointing:
            raise ConfigError(
                "train.checkpointing serves density models: leave it out for a tokenizer or a VAE"
            )
        yield

    def begin(self, examples: Examples) -> None:
        """Fit what is fitted in closed form, before the first step.

        Args:
            examples: of training.
        """

    def blocks(self) -> list[nn.Module]:
        """The parts that ``train.sharding`` divides each by itself; the rest is divided as one."""
        return []

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The weights that Muon trains, see :meth:`DensityModel.hidden_matrices`.

        Raises:
            ConfigError: where there are none, or nobody has found that Muon serves this kind.
        """
        raise ConfigError(
            "train.optimizer=muon serves density models, and tokenizers that are trained by their"
            " squared error or likelihood: leave it out here"
        )

    @abstractmethod
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Scalars of a batch; ``loss`` is minimized."""

    @abstractmethod
    def validate(
        self, module: nn.Module, examples: Examples, batch: int, steps: int
    ) -> dict[str, float]:
        """Figures of ``module``, a copy with averaged weights, on held-out examples.

        ``metric`` is among them.

        Args:
            module: the copy.
            examples: held out.
            batch: examples measured at a time.
            steps: optimizer steps that the run has taken, for judgements that need enough of them.
        """

    def judge(self, module: nn.Module, figures: dict[str, float]) -> Validation:
        """Rank a validation among those of the run.

        Args:
            module: the copy that was validated.
            figures: what :meth:`validate` gave.
        """
        return Validation(figures, Rank(0, figures[self.metric], f"least {self.metric}"))

    @abstractmethod
    def save(self, module: nn.Module, out: Path, figures: dict[str, object]) -> None:
        """Save ``module`` as the model of the run directory ``out``."""

    def pictures(self, module: nn.Module, examples: Examples) -> dict[str, np.ndarray]:
        """Sheets ``uint8 [h, w, c]`` that show what ``module`` makes, by name.

        Args:
            module: the copy with averaged weights.
            examples: held out.
        """
        return {}

    @abstractmethod
    def save_baseline(self, examples: Examples, out: Path) -> None:
        """Keep with the run what its figures are compared to."""

    def memory(self) -> dict[str, object]:
        """JSON values that validations remember of earlier ones; they go into every checkpoint."""
        return {}

    def recall(self, memory: Mapping[str, object]) -> None:
        """Restore what :meth:`memory` gave, in a resumed run.

        Raises:
            ArtifactError: when it is not what :meth:`memory` gives.
        """

    def summary(self) -> str | None:
        """A line about the terms of the loss that is printed before training; None for no line."""
        return None

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """The model as JSON values; a resumed run must be of an equal one."""


class SymbolEncoder:
    """Turns what a step sees into symbols, with a tokenizer that is not trained.

    It is no module: the tokenizer is neither trained, moved nor saved in checkpoints with the task.

    Args:
        tokenizer: the identity for pixels, a trained one for codes; None where examples are symbols
            already.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Symbols ``int64 [b, h, w, c]`` of uint8 images; symbols of other types as they are.

        Those of several grids come packed, ``[b, symbols]``.
        """
        if x.dtype != torch.uint8:
            return x.long()
        assert self.tokenizer is not None
        # A tokenizer of several grids gives one tensor for each.
        symbols = self.tokenizer.encode(x)
        if isinstance(symbols, tuple):
            symbols = pack(symbols)
        return symbols.to(x.device)

    def fingerprint(self) -> str | None:
        """Which trained tokenizer this is; None for the identity or none."""
        if self.tokenizer is None or self.tokenizer.of_pixels:
            return None
        return fingerprint(self.tokenizer)


class DensityTask(Task):
    """Minus the log-likelihood of a density model, in bits per symbol; of a masked one, its bound.

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
        self.symbols_of = SymbolEncoder(tokenizer)
        if tokenizer is not None:
            warn_of_order(tokenizer, model)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer whose symbols are modelled."""
        return self.symbols_of.tokenizer

    @property
    def of_codes(self) -> bool:
        """Whether the symbols are codes rather than pixels, as far as is known."""
        if self.tokenizer is None:
            return isinstance(self.prior, Hierarchy)
        return not self.tokenizer.of_pixels

    @property
    def shown_unit(self) -> str:
        unit = "bits/code" if self.of_codes else self.unit
        return f"{unit} (bound)" if self.is_bound else unit

    @property
    def shown_metric(self) -> str:
        # Logs and records keep one name, so that they can be read alike.
        metric = "bits_per_code" if self.of_codes else self.metric
        return f"bound_{metric}" if self.is_bound else metric

    @property
    def is_bound(self) -> bool:
        """Whether the model is validated by a bound on its bits."""
        return isinstance(self.prior, MaskedModel)

    @property
    def prior(self) -> Prior:
        """The model that is trained."""
        return _as_prior(self.module)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids that are modelled."""
        return tuple(model.grid for model in _levels(self.prior))

    @property
    def symbols(self) -> int:
        """Symbols of an image, over all grids."""
        return sum(grid.symbols for grid in self.grids)

    def networks(self) -> list[nn.Module]:
        prior = self.prior
        if isinstance(prior, Hierarchy):
            return prior.networks()
        return [prior]

    def blocks(self) -> list[nn.Module]:
        found: list[nn.Module] = []
        for model in _levels(self.prior):
            found += model.blocks_to_recompute()
        return found

    @contextlib.contextmanager
    def adapted(self, checkpointing: bool, condition_dropout: float) -> Iterator[None]:
        model = self.prior
        if model.classes and not condition_dropout:
            # The null class has never been seen, so it must not be asked for later.
            model.null_class = False
        before = model.checkpointing
        model.checkpointing = before or checkpointing
        try:
            yield
        finally:
            model.checkpointing = before

    def begin(self, examples: Examples) -> None:
        for level, model in enumerate(_levels(self.prior)):
            if model.predictor is None or bool(model.predictor.fitted):
                continue
            # The others need not be read, nor encoded.
            places = predictor_fit.images_to_use(model.grid, len(examples))
            model.fit_predictor(self._unpacked(self.symbols_of(examples.plain(places)))[level])

    def hidden_matrices(self) -> list[nn.Parameter]:
        matrices = self.prior.hidden_matrices()
        if not matrices:
            raise ConfigError(
                f"train.optimizer=muon is for matrices between hidden layers, and {self.prior.name}"
                " has none: leave it out, or take another model"
            )
        return matrices

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        grids = self._unpacked(self.symbols_of(x))
        prior = self.prior
        if isinstance(prior, Hierarchy):
            nats_of_grids = prior.training_nats(grids, labels)
        else:
            nats_of_grids = [prior.training_nats(grids[0], Condition(labels))]
        bits: list[torch.Tensor] = []
        for nats in nats_of_grids:
            bits.append(nats.mean() / LN2)
        # Bits of all grids over the symbols of all grids.
        figures = {"loss": torch.stack(bits).sum() / self.symbols}
        if len(bits) > 1:
            for level, grid in enumerate(self.grids):
                figures[f"bits_per_code/{level}"] = bits[level].detach() / grid.symbols
        return figures

    def validate(
        self, module: nn.Module, examples: Examples, batch: int, steps: int
    ) -> dict[str, float]:
        model = _as_prior(module)
        # float64 and one number for each image: the mean must not depend on the batch.
        nats: list[float] = []
        with torch.no_grad():
            for part in torch.arange(len(examples)).split(batch):
                cond = None if examples.labels is None else examples.labels[part]
                symbols = self.symbols_of(examples.plain(part).to(model.device))
                if isinstance(model, Hierarchy):
                    nats += (-model.log_prob(unpack(symbols, self.grids), cond)).tolist()
                elif isinstance(model, MaskedModel):
                    # The seed follows the place of the image, so that validations can be compared.
                    bound = model.any_order_bound(symbols, cond, seed=int(part[0]))
                    nats += (-bound).tolist()
                else:
                    nats += (-model.log_prob(symbols, cond)).tolist()
        mean = float(torch.tensor(nats, dtype=torch.float64).mean())
        return {"bits_per_dim": mean / LN2 / self.symbols}

    def save(self, module: nn.Module, out: Path, figures: dict[str, object]) -> None:
        model = _as_prior(module)
        if self.tokenizer is None:
            save_model(model, out, figures)
        else:
            save_generator(self.tokenizer, model, out, figures)

    def pictures(self, module: nn.Module, examples: Examples) -> dict[str, np.ndarray]:
        # Symbols without a tokenizer, such as codes from elsewhere, have no pixels.
        if self.tokenizer is None or self.symbols > MOST_DRAWN:
            return {}
        prior = _as_prior(module)
        cond = None
        if prior.classes:
            cond = torch.arange(DRAWN) % prior.classes
        images = Generator(self.tokenizer, prior).sample(DRAWN, seed=0, cond=cond)
        return {"samples": pictures.sheet(images.cpu().numpy())}

    def save_baseline(self, examples: Examples, out: Path) -> None:
        for level, grid in enumerate(self.grids):
            # Histograms of each place: what a model without any dependence would reach.
            baseline = create("independent", grid)
            assert isinstance(baseline, Independent)
            baseline.fit(self._baseline_symbols(examples, level))
            folder = out / "baseline"
            if len(self.grids) > 1:
                folder = folder / f"grid-{level}"
            save_model(baseline, folder)

    def describe(self) -> dict[str, object]:
        return {
            "kind": "density-model",
            "model": self.prior.config(),
            "tokenizer": self.symbols_of.fingerprint(),
        }

    def _baseline_symbols(self, examples: Examples, level: int) -> Iterator[torch.Tensor]:
        """Symbols of one grid, a batch at a time."""
        generator = torch.Generator().manual_seed(0)
        cpu = torch.device("cpu")
        for part in torch.arange(len(examples)).split(BASELINE_BATCH):
            if examples.binarize:
                # Images that are binarized anew each time are drawn once here.
                x, _ = examples.batch(part, generator, cpu)
            else:
                x = examples.plain(part)
            yield self._unpacked(self.symbols_of(x))[level]

    def _unpacked(self, symbols: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The symbols of each grid, ``[b, h, w, c]``."""
        if len(self.grids) == 1:
            return (symbols,)
        return unpack(symbols, self.grids)


class TokenizerTask(Task):
    """The loss of a tokenizer: reconstruction and what its quantizer adds."""

    unit = "loss"
    metric = "mse"

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.watch = CodebookMonitor(drift=True)

    def hidden_matrices(self) -> list[nn.Parameter]:
        if not isinstance(self.module, ReconstructingTokenizer):
            return super().hidden_matrices()
        return self.module.hidden_matrices()

    def memory(self) -> dict[str, object]:
        return {"counts": self.watch.before}

    def recall(self, memory: Mapping[str, object]) -> None:
        counts = memory.get("counts", [])
        self.watch.before = _checked_counts(counts)

    def networks(self) -> list[nn.Module]:
        # A quantizer keeps running counts and reads them: nothing of it would stay in one graph.
        return [child for child in self.module.children() if not isinstance(child, Quantizer)]

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        out = self.module(x)
        return {**out.losses, **out.stats}

    def validate(
        self, module: nn.Module, examples: Examples, batch: int, steps: int
    ) -> dict[str, float]:
        assert isinstance(module, Tokenizer)
        books: list[CodeUsage] = []
        for grid in module.grids():
            # One codebook for each channel, which is a depth of a residual code.
            books += [CodeUsage(grid.levels) for _ in range(grid.channels)]
        errors: list[float] = []
        for places in torch.arange(len(examples)).split(batch):
            images = examples.plain(places)  # uint8 [b, h, w, c]
            symbols = module.encode(images)
            for book, codes in zip(books, channels(symbols), strict=True):
                book.update(codes)
            made = module.decode(symbols, (images.shape[1], images.shape[2])).cpu()
            errors += mean_squared_error(images, made).tolist()
        mse = torch.tensor(errors, dtype=torch.float64)
        # The mean over images of the PSNR, not the PSNR of the mean error.
        figures = {"mse": float(mse.mean()), "psnr_db": float(psnr(mse).mean())}
        for number, book in enumerate(books):
            suffix = f"/{number}" if len(books) > 1 else ""
            figures[f"codebook_used{suffix}"] = float(book.used)
            figures[f"code_perplexity{suffix}"] = book.perplexity
        # Quantizers without a learned codebook, such as FSQ, cannot say themselves how long they
        # have trained.
        counts = [book.counts for book in books]
        return figures | self.watch.figures(module, counts, steps=steps)

    def save(self, module: nn.Module, out: Path, figures: dict[str, object]) -> None:
        assert isinstance(module, Tokenizer)
        save_model(module, out, figures)

    def pictures(self, module: nn.Module, examples: Examples) -> dict[str, np.ndarray]:
        assert isinstance(module, Tokenizer)
        images = examples.plain(torch.arange(min(RECONSTRUCTED, len(examples))))
        size = (images.shape[1], images.shape[2])
        made = module.decode(module.encode(images), size).cpu()
        return {"reconstructions": above(images, made)}

    def save_baseline(self, examples: Examples, out: Path) -> None:
        total = torch.zeros(examples.example_shape, dtype=torch.int64)  # [h, w, c]
        for part in torch.arange(len(examples)).split(64):
            total += examples.plain(part).sum(0, dtype=torch.int64)
        # The mean image: what a tokenizer must beat to be of any use.
        mean = (total.double() / len(examples)).float()
        files.write_tensors(out / "baseline" / "mean.safetensors", {"mean": mean})

    def describe(self) -> dict[str, object]:
        assert isinstance(self.module, Tokenizer)
        return {"kind": "tokenizer", "model": {"name": self.module.name} | self.module.config()}


def above(images: torch.Tensor, made: torch.Tensor) -> np.ndarray:
    """A sheet ``uint8 [H, W, c]`` with images in a row, and what a model made of them below.

    Args:
        images: ``uint8 [n, h, w, c]``.
        made: of the same shape.
    """
    return pictures.sheet(torch.cat([images, made]).numpy(), columns=len(images))


def _as_prior(module: nn.Module) -> Prior:
    assert isinstance(module, (DensityModel, Hierarchy))
    return module


def _levels(model: Prior) -> tuple[DensityModel, ...]:
    """The density models of a prior, coarse to fine."""
    if isinstance(model, Hierarchy):
        return tuple(model)
    return (model,)


def _checked_counts(value: object) -> list[list[int]]:
    """Counts of codes, by codebook, as a checkpoint holds them.

    Raises:
        ArtifactError: for anything else.
    """
    problem = ArtifactError(f"counts of codes must be lists of whole numbers, got {value!r}")
    if not isinstance(value, list):
        raise problem
    for counts in value:
        # type(), as True is an int too.
        if not isinstance(counts, list) or not all(type(count) is int for count in counts):
            raise problem
    return value
