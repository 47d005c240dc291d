"""A tokenizer and a prior on its codes are one generator of images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tessella import sampling
from tessella.errors import ConfigError, InputError, TessellaWarning
from tessella.grid import Grid
from tessella.models import DensityModel, Hierarchy, Prior
from tessella.models.condition import Cond
from tessella.models.hierarchy import level_condition
from tessella.noise import check_seed
from tessella.pipeline.saving import save_generator
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.tokenizer import check_images, parts


class Generator:
    """Images from a prior and a tokenizer. Warns of a head that gives an order to codes, see
    :func:`warn_of_order`.

    Args:
        tokenizer: images to symbols and back.
        prior: a density model on the tokenizer's grid, or a :class:`~tessella.models.Hierarchy` on
            its grids.

    Raises:
        ConfigError: when the prior's grids are not the tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer, prior: Prior) -> None:
        self.tokenizer, self.prior = tokenizer.eval(), prior.eval()
        self.priors: tuple[DensityModel, ...] = (
            tuple(prior) if isinstance(prior, Hierarchy) else (prior,)
        )
        modelled = tuple(part.grid for part in self.priors)
        if tokenizer.grids() != modelled:
            wanted, found = (
                " and ".join(map(str, grids)) for grids in (modelled, tokenizer.grids())
            )
            raise ConfigError(
                f"this prior does not fit its tokenizer: the prior models {wanted}, the tokenizer makes {found}"
            )
        warn_of_order(tokenizer, prior)

    @property
    def symbols(self) -> int:
        """Symbols of an image, of all grids together."""
        return sum(part.grid.symbols for part in self.priors)

    @property
    def classes(self) -> int:
        """Classes it is conditioned on; index ``classes`` is the null class."""
        return self.prior.classes

    @property
    def device(self) -> torch.device:
        """Where the weights of the prior are."""
        return self.prior.device

    @property
    def two_stage(self) -> bool:
        """Whether the symbols are codes of a learned tokenizer rather than pixels."""
        return not self.tokenizer.of_pixels

    @property
    def image_grid(self) -> Grid:
        """The images as a grid of pixels with 256 levels."""
        height, width = self.tokenizer.image_size
        return Grid(height, width, self.tokenizer.channels, 256)

    def sample(self, n: int = 16, seed: int = 0, **options: Any) -> torch.Tensor:
        """Draw images: ``uint8 [n, height, width, channels]``. Options as in
        :func:`tessella.sample`."""
        drawn = list(self.batches(n, seed, **options))
        if not drawn:
            raise InputError(f"start must lie below n, {n}: there is nothing to draw")
        return torch.cat(drawn)

    def batches(
        self,
        n: int = 16,
        seed: int = 0,
        batch: int = sampling.BATCH,
        start: int = 0,
        cond: Cond = None,
        watch: Callable[[float], object] | None = None,
        **options: Any,
    ) -> Iterator[torch.Tensor]:
        """Draw images batch by batch, in the memory of one batch however many there are.

        Args:
            n, seed: image ``i`` of ``n`` has the seed ``seed + i``.
            batch: images drawn at a time.
            start: the first image to draw, to go on with a run: image ``start`` is the first that
                is yielded.
            cond: class or codes of each of the ``n`` images, see :data:`Cond`.
            watch: called once a row with the images drawn so far, of the batch at work the share of
                its symbols.
            options: ``method`` and the rule as in :func:`tessella.stream`; ``x`` and ``known`` are
                symbols as :meth:`encode` gives them, and where they are known.

        Yields:
            ``uint8 [batch, height, width, channels]``, the last one shorter where ``batch`` does
            not divide.

        Raises:
            InputError: at the first iteration, for an argument that does not fit.
        """
        for name, value, least in (("n", n, 1), ("batch", batch, 1), ("start", start, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                kind = "a positive integer" if least else "an integer of at least 0"
                raise InputError(f"{name} must be {kind}, got {value!r}")
        check_seed(seed, n)
        condition = self.prior.condition(cond, n) if cond is not None else None
        kept = _kept(options)
        samplers = [
            sampling.Sampler(prior, sampling.Sampling.from_keywords(**options), part)
            for part, prior in enumerate(self.priors)
        ]
        for first in range(start, n, batch):
            rows = slice(first, min(first + batch, n))
            of_rows = None if condition is None else condition.select(torch.arange(n)[rows])
            here = [[part[rows] for part in given] for given in kept]
            size = rows.stop - rows.start
            for done, symbols in self._grids(samplers, size, seed + first, of_rows, here):  # noqa: B007
                if watch is not None:
                    watch(first + size * done / self.symbols)
            yield self.tokenizer.decode(symbols)

    def stream(
        self, n: int = 16, seed: int = 0, **options: Any
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Draw images and watch: ``(symbols in place, uint8 images)``. Options as in
        :func:`tessella.stream`."""
        cond = options.pop("cond", None)
        kept = _kept(options)
        samplers = [
            sampling.Sampler(prior, sampling.Sampling.from_keywords(**options), part)
            for part, prior in enumerate(self.priors)
        ]
        for index, symbols in self._grids(samplers, n, seed, cond, kept):
            yield index, self.tokenizer.decode(symbols)

    def _grids(
        self,
        samplers: list[sampling.Sampler],
        n: int,
        seed: int,
        cond: Cond,
        kept: list[Any],
    ) -> Iterator[tuple[int, Any]]:
        """Draw the grids of ``n`` images one after another: ``(symbols in place, symbols)``, 0
        where there is none yet."""
        if len(samplers) == 1:
            known = self._known(0, kept)
            yield from samplers[0].stream(n, seed, cond, known)
            return
        labels = None if cond is None else self.prior.condition(cond, n).labels
        symbols = [
            torch.zeros(n, *prior.grid.shape, dtype=torch.int64, device=self.device)
            for prior in self.priors
        ]
        before = 0
        for level, (sampler, prior) in enumerate(zip(samplers, self.priors, strict=True)):
            known = self._known(level, kept)
            own = level_condition(prior, labels, symbols[:level]) or None
            for index, drawn in sampler.stream(n, seed, own, known):
                symbols[level] = drawn
                yield before + index, tuple(symbols)
            symbols[level] = symbols[level].clone()
            before += prior.grid.symbols

    def _known(self, level: int, kept: list[Any]) -> sampling.KnownSymbols | None:
        """What is kept of the grid of a level."""
        if not kept:
            return None
        x, known = (given[level] for given in kept)
        return sampling.KnownSymbols.check(self.priors[level], x, known)

    def complete(self, images: Any, known: Any, seed: int = 0, **options: Any) -> torch.Tensor:
        """Keep the known part of images, draw the rest.

        In a two-stage model a code is kept when all pixels of its cell are known, and what comes
        back is decoded: the known pixels are reconstructions. As in :func:`tessella.complete`,
        known symbols cannot influence earlier ones.

        Args:
            images: ``uint8 [n, height, width, channels]``.
            known: ``bool [height, width]`` or ``[n, height, width, channels]``, of pixels.
            seed, options: as in :func:`tessella.complete`; ``watch`` as in :meth:`batches`.
        """
        symbols = self.encode(images)
        mask = torch.as_tensor(known)
        if mask.dtype != torch.bool:
            raise InputError(f"known must be boolean, got {mask.dtype}: write known.bool()")
        n = len(parts(symbols)[0])
        return torch.cat(
            list(self.batches(n, seed, x=symbols, known=self._known_symbols(mask, n), **options))
        )

    def encode(self, images: Any) -> Any:
        """Images to the symbols that the prior models, checked for their size:
        ``int64 [n, h, w, depth]``, or a tuple of such grids."""
        images = check_images(images, self.tokenizer.channels)
        if tuple(images.shape[1:3]) != tuple(self.tokenizer.image_size):
            height, width = self.tokenizer.image_size
            raise InputError(
                f"the model takes images of {height}x{width}, got {images.shape[1]}x{images.shape[2]}"
            )
        return self.tokenizer.encode(images)

    def log_prob(self, images: Any, cond: Cond = None) -> torch.Tensor:
        """Exact log-probability in nats of the symbols of each image: ``[n]``.

        Of a pixel model this is the probability of the image (at the model's levels); of a
        two-stage model that of its codes.
        """
        return self.prior.log_prob(self.encode(images), cond)

    def bits_per_dim(self, images: Any, cond: Cond = None) -> torch.Tensor:
        """Bits per symbol that the prior models: ``[n]``; see :meth:`log_prob`."""
        return self.prior.bits_per_dim(self.encode(images), cond)

    def to(self, device: torch.device | str) -> Generator:
        """Move both parts to a device."""
        self.tokenizer.to(device)
        self.prior.to(device)
        return self

    def save(self, directory: Path | str, figures: Mapping[str, Any] | None = None) -> None:
        """Save to a directory, see the module's docstring.

        Args:
            figures: measured numbers for the card, as :func:`tessella.evaluate` returns them.

        Raises:
            ArtifactError: when it cannot be written.
        """
        save_generator(self.tokenizer, self.prior, directory, figures)

    def _known_symbols(self, known: torch.Tensor, n: int) -> tuple[torch.Tensor, ...]:
        """Which symbols of each grid are known: those of which all pixels are."""
        height, width = self.tokenizer.image_size
        if known.shape not in ((height, width), (n, height, width, self.tokenizer.channels)):
            raise InputError(
                f"known must have shape [{height}, {width}] or [{n}, {height}, {width}, {self.tokenizer.channels}], "
                f"got {list(known.shape)}"
            )
        if not self.two_stage:
            shape = self.priors[0].grid.shape
            return (known if known.dim() == 4 else known[:, :, None].expand(n, *shape),)
        whole = known.all(-1) if known.dim() == 4 else known.expand(n, height, width)
        finest, stride = self.priors[-1].grid, self.tokenizer.stride
        padding = (0, finest.width * stride - width, 0, finest.height * stride - height)
        padded = F.pad(whole, padding, value=True)
        return tuple(_whole_cells(padded, part.grid) for part in self.priors)


def _kept(options: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Take ``x`` and ``known`` out of options: what is kept of each grid; empty without them."""
    given = [parts(options.pop(name)) for name in ("x", "known") if name in options]
    if len(given) == 1:
        raise InputError("completion needs both: x, the symbols, and known, where to keep them")
    return given


def _whole_cells(known: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Pixels ``bool [n, h, w]`` to symbols ``[n, *grid.shape]``: those of which all pixels are
    known."""
    cells = known.unflatten(2, (grid.width, -1)).unflatten(1, (grid.height, -1)).all(4).all(2)
    return cells[..., None].expand(len(known), *grid.shape)


def warn_of_order(tokenizer: Tokenizer, prior: Prior) -> None:
    """Warn where the prior's head takes neighbouring levels to be alike, and its levels are codes,
    which have no order.

    The warning is a :class:`TessellaWarning` at the place that called the caller.
    """
    head = (prior.priors[0] if isinstance(prior, Hierarchy) else prior).head
    if head.ordered and not tokenizer.of_pixels:
        warnings.warn(
            f"the prior's head {head.name!r} takes neighbouring levels to be alike, and the codes of a tokenizer "
            'have no order; a prior on codes wants head="categorical" (in a recipe: model.head = "categorical")',
            TessellaWarning,
            stacklevel=3,
        )
