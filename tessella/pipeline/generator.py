"""A tokenizer and a prior on its codes are one generator of images."""

from __future__ import annotations

import warnings
from collections.abc import Generator as Stream
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import nn

from tessella import files, sampling
from tessella.data.array_checks import check_scale
from tessella.errors import ConfigError, InputError, TessellaWarning, check_integer
from tessella.grid import Grid
from tessella.models import DensityModel, Hierarchy, NextScale, Prior
from tessella.models.condition import Cond
from tessella.models.hierarchy import level_condition
from tessella.models.masked_model import MASKS, MaskedModel
from tessella.nn.outline import IN_PARTS, check_drawn
from tessella.nn.pretrained import Pretrained
from tessella.noise import check_seed
from tessella.pipeline.kept_grids import KeptGrids, as_mask, kept_grids, whole_cells
from tessella.pipeline.saved_model import Watch
from tessella.pipeline.saving import save_generator
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.images import Images
from tessella.tokenizers.tokenizer import Symbols, as_tuple, check_images


class Generator(Pretrained):
    """Images from a prior and a tokenizer.

    Warns of a head that takes codes to be ordered, see :func:`warn_of_order`.

    Args:
        tokenizer: images to symbols and back.
        prior: a density model on the tokenizer's grid, or a :class:`~tessella.models.Hierarchy` on
            its grids.

    Raises:
        ConfigError: when the prior's grids are not the tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer, prior: Prior) -> None:
        self.tokenizer = tokenizer.eval()
        self.prior = prior.eval()
        # One model for each grid; most tokenizers make one grid.
        self.priors: tuple[DensityModel, ...]
        if isinstance(prior, Hierarchy):
            self.priors = tuple(prior)
        else:
            self.priors = (prior,)
        if tokenizer.grids() != self.grids:
            raise ConfigError(
                "this prior does not fit its tokenizer: the prior models "
                f"{grids_text(self.grids)}, the tokenizer makes {grids_text(tokenizer.grids())}"
            )
        warn_of_order(tokenizer, prior)

    def __repr__(self) -> str:
        height, width = self.tokenizer.image_size
        grids = grids_text(self.grids)
        names: tuple[str, ...] = (self.prior.name,)
        if isinstance(self.prior, Hierarchy):
            names = self.prior.family_names
        prior = " and ".join(names)
        classes = ""
        if self.classes:
            classes = f", classes={self.classes}"
        return (
            f"Generator({height}x{width}x{self.tokenizer.channels} images, "
            f"tokenizer={self.tokenizer.name}, prior={prior} on {grids}{classes}, "
            f"parameters={self.prior.parameter_count():,}, device={self.device})"
        )

    @property
    def kind(self) -> str:
        """``generator`` where the symbols are codes, ``density-model`` where they are pixels."""
        if self.two_stage:
            return "generator"
        return "density-model"

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids that the prior models, coarse to fine."""
        return tuple(part.grid for part in self.priors)

    @property
    def symbols(self) -> int:
        """Symbols of an image, of all grids together."""
        return sum(grid.symbols for grid in self.grids)

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
    def completes(self) -> bool:
        """Whether part of an image can be kept, see :meth:`complete`."""
        # The coarse codes of next-scale describe the whole image.
        return not isinstance(self.prior, NextScale)

    @property
    def image_grid(self) -> Grid:
        """The images as a grid of pixels with 256 levels."""
        return self.tokenizer.image_grid

    @property
    def _pixel_levels(self) -> int:
        """Levels of a pixel in the model; 0 where the symbols are codes."""
        if self.two_stage:
            return 0
        return self.grids[0].levels

    def components(self) -> dict[str, nn.Module]:
        """The networks to save, by role: a pixel model has one, its prior."""
        if not self.two_stage:
            return {"model": self.prior}
        return {"tokenizer": self.tokenizer, "prior": self.prior}

    def sample(
        self,
        n: int = 16,
        seed: int = 0,
        batch: int = sampling.BATCH,
        start: int = 0,
        *,
        cond: Cond = None,
        watch: Watch | None = None,
        x: Symbols | None = None,
        known: Symbols | None = None,
        **options: Unpack[sampling.SamplingKeywords],
    ) -> Images:
        """Draw images: ``uint8 [n, height, width, channels]``. Arguments as of :meth:`batches`."""
        kept = kept_grids(x, known)
        count = check_integer("n", n, least=1) - check_integer("start", start)
        check_drawn(count, self.image_grid.symbols, IN_PARTS)
        # Checked and drawn as batches are, so that both give the same images.
        drawn = list(self._batches(n, seed, batch, start, cond, watch, kept, options))
        if not drawn:
            raise InputError(f"start must lie below n, {n}: there is nothing to draw")
        return Images.of(torch.cat(drawn))

    def batches(
        self,
        n: int = 16,
        seed: int = 0,
        batch: int = sampling.BATCH,
        start: int = 0,
        *,
        cond: Cond = None,
        watch: Watch | None = None,
        x: Symbols | None = None,
        known: Symbols | None = None,
        **options: Unpack[sampling.SamplingKeywords],
    ) -> Iterator[torch.Tensor]:
        """Draw images batch by batch, in the memory of one batch however many there are.

        Args:
            n, seed: image ``i`` of ``n`` has the seed ``seed + i``.
            batch: images drawn at a time.
            start: the first image to draw, to go on with a run: image ``start`` is the first that
                is yielded.
            cond: class or codes of each of the ``n`` images, see :data:`Cond`.
            watch: called once a row with the images drawn so far; of the batch being drawn, the
                share of its symbols counts.
            x, known: symbols to keep, as :meth:`encode` gives them, and a mask of where they are.
            options: ``method`` and the rule, see :func:`tessella.stream`.

        Yields:
            ``uint8 [batch, height, width, channels]``, the last one shorter where ``batch`` does
            not divide.

        Raises:
            InputError: at the first iteration, for an argument that does not fit.
        """
        kept = kept_grids(x, known)
        yield from self._batches(n, seed, batch, start, cond, watch, kept, options)

    def stream(
        self,
        n: int = 16,
        seed: int = 0,
        *,
        cond: Cond = None,
        every: int = 0,
        x: Symbols | None = None,
        known: Symbols | None = None,
        **options: Unpack[sampling.SamplingKeywords],
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Draw images and watch: ``(symbols in place, uint8 images)``.

        Arguments as of :func:`tessella.stream`.
        """
        # Symbols that are still missing are zeros, and are decoded like any others.
        for index, symbols in self.stream_symbols(
            n, seed, cond=cond, every=every, x=x, known=known, **options
        ):
            yield index, self.tokenizer.decode(symbols)

    def stream_symbols(
        self,
        n: int = 16,
        seed: int = 0,
        *,
        cond: Cond = None,
        every: int = 0,
        x: Symbols | None = None,
        known: Symbols | None = None,
        **options: Unpack[sampling.SamplingKeywords],
    ) -> Stream[tuple[int, Symbols], None, None]:
        """:meth:`stream` before it is decoded: ``(symbols in place, symbols)``.

        The same tensors come every time, with 0 where nothing is in place yet; clone them to keep
        them.
        """
        samplers = self._samplers(sampling.Sampling.from_keywords(every=every, **options))
        yield from self._grids(samplers, n, seed, cond, kept_grids(x, known))

    def complete(
        self,
        images: object,
        known: object,
        seed: int = 0,
        *,
        batch: int = sampling.BATCH,
        cond: Cond = None,
        watch: Watch | None = None,
        **options: Unpack[sampling.SamplingKeywords],
    ) -> Images:
        """Keep the known part of images, draw the rest.

        In a two-stage model a code is kept when all pixels of its cell are known, and what comes
        back is decoded: the known pixels are reconstructions. As in :func:`tessella.complete`,
        known symbols cannot influence earlier ones, unless ``order="known-first"`` has them first.

        Args:
            images: ``uint8 [n, height, width, channels]``.
            known: ``bool [height, width]`` or ``[n, height, width, channels]``, of pixels.
            seed, batch, cond, watch, options: as of :meth:`batches`.

        Raises:
            InputError: for an argument that does not fit.
        """
        x, masks = self.symbols_to_keep(images, known)
        # Every grid holds all images.
        n = len(x[0])
        kept = KeptGrids(x, masks)
        batches = self._batches(n, seed, batch, 0, cond, watch, kept, options)
        return Images.of(torch.cat(list(batches)))

    def log_prob_missing(self, images: object, known: object, cond: Cond = None) -> torch.Tensor:
        """Exact log-probability in nats of the missing part of images given all that is known.

        Of a two-stage model, this is the probability of the codes whose cells are not known.

        Args:
            images, known: as of :meth:`complete`; of the images nothing is really missing.
            cond: class of each image, see :data:`Cond`.

        Returns:
            ``[n]``.

        Raises:
            InputError: see :func:`tessella.log_prob_missing`; also for a prior on several grids.
        """
        if isinstance(self.prior, Hierarchy):
            raise InputError(
                "log_prob_missing is for models of one grid of symbols; this one has "
                f"{grids_text(self.grids)}"
            )
        x, masks = self.symbols_to_keep(images, known)
        return sampling.log_prob_missing(self.prior, x[0], masks[0], cond)

    def any_order_bound(
        self, images: object, cond: Cond = None, masks: int = MASKS, seed: int = 0
    ) -> torch.Tensor:
        """An estimate of a lower bound of the log-probability of each image: nats ``[n]``.

        See :meth:`MaskedModel.any_order_bound`. Other models refuse it.
        """
        if not isinstance(self.prior, MaskedModel):
            raise InputError(
                f"any_order_bound is for masked models: {self.prior.name} states exact "
                "probabilities, see log_prob"
            )
        return self.prior.any_order_bound(self.encode(images), cond, masks, seed)

    def symbols_to_keep(
        self, images: object, known: object
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """The symbols that :meth:`complete` keeps, as :meth:`stream` takes ``x`` and ``known``.

        Args:
            images, known: as of :meth:`complete`.

        Returns:
            The symbols of each grid, and for each grid a mask of those that are kept.

        Raises:
            InputError: for an argument that does not fit.
        """
        if not self.completes:
            raise InputError(
                "next-scale cannot keep part of an image: its coarse codes describe all of it, and"
                " are drawn first; take a prior in raster order (such as vqvae with transformer),"
                " or give the codes to keep yourself: generator.sample(x=codes, known=masks)"
            )
        x = as_tuple(self.encode(images))
        return x, self._known_symbols(as_mask(known), len(x[0]))

    def encode(self, images: object) -> Any:
        """Images to the symbols that the prior models.

        Args:
            images: ``uint8 [n, height, width, channels]`` of the model's size.

        Returns:
            ``int64 [n, h, w, depth]``, or a tuple of such grids.

        Warns of images so dark that they are probably symbols, or of another scale than 0..255.

        Raises:
            InputError: for images of another type or size, or surely of another scale.
        """
        # Tokenizers take images of other sizes as well, but the prior's grid is fixed.
        checked = check_images(images, self.tokenizer.channels)
        height, width = self.tokenizer.image_size
        if tuple(checked.shape[1:3]) != (height, width):
            raise InputError(
                f"the model takes images of {height}x{width}, "
                f"got {checked.shape[1]}x{checked.shape[2]}"
            )
        # Pictures of a data set come here too, so only what cannot be meant is refused, and what
        # hardly can be leads to a warning.
        check_scale(images, self._pixel_levels, sure=True)
        return self.tokenizer.encode(checked)

    def check_condition(self, cond: Cond, n: int) -> None:
        """Refuse a condition that is not one of ``n`` images of this model.

        Raises:
            InputError: see :meth:`tessella.DensityModel.condition`.
        """
        if cond is not None:
            self.prior.condition(cond, n)

    def grid_log_probs(self, symbols: Symbols, cond: Cond = None) -> list[torch.Tensor]:
        """Exact log-probability in nats of the symbols of each grid given the coarser ones.

        Args:
            symbols: as :meth:`encode` gives them.
            cond: class of each image; None for the null class.

        Returns:
            ``[n]`` for each grid, coarse to fine.
        """
        # Each grid given the coarser ones, so that the terms add up to log p of all symbols.
        if isinstance(self.prior, Hierarchy):
            return self.prior.log_probs(symbols, cond)
        return [self.prior.log_prob(symbols, cond)]

    def log_prob(self, images: object, cond: Cond = None) -> torch.Tensor:
        """Exact log-probability in nats of the symbols of each image: ``[n]``.

        Of a pixel model this is the probability of the image (at the model's levels); of a
        two-stage model that of its codes.
        """
        return self.prior.log_prob(self.encode(images), cond)

    def bits_per_dim(self, images: object, cond: Cond = None) -> torch.Tensor:
        """Bits per symbol that the prior models: ``[n]``; see :meth:`log_prob`."""
        return self.prior.bits_per_dim(self.encode(images), cond)

    def to(self, device: torch.device | str) -> Generator:
        """Move both networks to a device."""
        self.tokenizer.to(device)
        self.prior.to(device)
        return self

    def save(
        self,
        directory: Path | str,
        figures: Mapping[str, object] | None = None,
        force: bool = False,
    ) -> None:
        """Save to a directory, see the docstring of :mod:`tessella.pipeline`.

        Args:
            directory: new, empty, or made here.
            figures: measured numbers for the card, as :func:`tessella.evaluate` returns them.
            force: also write into a directory that holds something else.

        Raises:
            InputError: when the directory holds something that was not made here.
            ArtifactError: when it cannot be written.
        """
        # Before the first file is written: a model that is refused leaves the directory as it was.
        files.check_replaceable(directory, force)
        save_generator(self.tokenizer, self.prior, directory, figures)

    def _batches(
        self,
        n: int,
        seed: int,
        batch: int,
        start: int,
        cond: Cond,
        watch: Watch | None,
        kept: KeptGrids | None,
        options: sampling.SamplingKeywords,
    ) -> Iterator[torch.Tensor]:
        """:meth:`batches`, around symbols that are kept."""
        check_integer("n", n, least=1)
        check_integer("batch", batch, least=1)
        check_integer("start", start)
        check_seed(seed, n)
        # Checked for all images at once, so that no batch is drawn before the refusal.
        condition = None
        if cond is not None:
            condition = self.prior.condition(cond, n)
        how = sampling.Sampling.from_keywords(**options)
        if watch is None:
            # Nobody sees partial grids, so each grid is drawn in one go.
            how = replace(how, every=max(grid.symbols for grid in self.grids))
        samplers = self._samplers(how)
        for first in range(start, n, batch):
            rows = slice(first, min(first + batch, n))
            size = rows.stop - rows.start
            cond_here = None
            if condition is not None:
                cond_here = condition.select(torch.arange(n)[rows])
            kept_here = None
            if kept is not None:
                kept_here = kept.rows(rows)
            drawing = self._grids(samplers, size, seed + first, cond_here, kept_here)
            # Partial grids are drawn over until the last one, which is the batch.
            for placed, symbols in drawing:  # noqa: B007
                if watch is not None:
                    watch(first + size * placed / self.symbols)
            yield self.tokenizer.decode(symbols)

    def _samplers(self, options: sampling.Sampling) -> list[sampling.Sampler]:
        """One sampler for each grid, each with its own stream of noise."""
        samplers = []
        for part, prior in enumerate(self.priors):
            # The part numbers the streams of noise: grids must not share theirs.
            samplers.append(sampling.Sampler(prior, options, part))
        return samplers

    def _grids(
        self,
        samplers: list[sampling.Sampler],
        n: int,
        seed: int,
        cond: Cond,
        kept: KeptGrids | None,
    ) -> Iterator[tuple[int, Symbols]]:
        """Draw the grids of ``n`` images one after another.

        Yields:
            ``(symbols in place, symbols)``, 0 where there is none yet.
        """
        if len(samplers) == 1:
            yield from samplers[0].stream(n, seed, cond, self._kept_of(0, kept))
            return
        # Classes condition every grid; codes are each other's condition, which is made below.
        labels = None
        if cond is not None:
            labels = self.prior.condition(cond, n).labels
        symbols = []
        for grid in self.grids:
            symbols.append(torch.zeros(n, *grid.shape, dtype=torch.int64, device=self.device))
        # Symbols of the grids that are complete, to count those in place.
        before = 0
        for level, (sampler, prior) in enumerate(zip(samplers, self.priors, strict=True)):
            known = self._kept_of(level, kept)
            # A finer grid is drawn given the coarser one, which is complete by now.
            condition = level_condition(prior, labels, symbols[:level]) or None
            for index, drawn in sampler.stream(n, seed, condition, known):
                symbols[level] = drawn
                yield before + index, tuple(symbols)
            # The sampler reuses its array for the next batch.
            symbols[level] = symbols[level].clone()
            before += prior.grid.symbols

    def _kept_of(self, level: int, kept: KeptGrids | None) -> sampling.KnownSymbols | None:
        """The symbols to keep of one grid, checked; None where all of it is drawn."""
        if kept is None:
            return None
        return kept.check(level, self.priors[level])

    def _known_symbols(self, known: torch.Tensor, n: int) -> tuple[torch.Tensor, ...]:
        """Which symbols of each grid are known: those of which all pixels are."""
        height, width = self.tokenizer.image_size
        channels = self.tokenizer.channels
        if known.shape not in ((height, width), (n, height, width, channels)):
            raise InputError(
                f"known must have shape [{height}, {width}] or "
                f"[{n}, {height}, {width}, {channels}], got {list(known.shape)}"
            )
        # Pixels are symbols themselves: nothing has to be gathered into cells.
        if not self.two_stage:
            if known.dim() == 2:
                known = known[:, :, None].expand(n, height, width, channels)
            return (known,)
        # A code is kept where its whole cell is known: all channels of all its pixels.
        # [n, h, w, c] -> [n, h, w]
        if known.dim() == 4:
            whole = known.all(-1)
        else:
            whole = known.expand(n, height, width)
        # The cells at the border may reach beyond the image, where nothing is unknown.
        finest = self.grids[-1]
        stride = self.tokenizer.stride
        padding = (0, finest.width * stride - width, 0, finest.height * stride - height)
        padded = F.pad(whole, padding, value=True)
        return tuple(whole_cells(padded, grid) for grid in self.grids)


def grids_text(grids: Sequence[Grid]) -> str:
    """Grids in words, coarse to fine."""
    return " and ".join(str(grid) for grid in grids)


def warn_of_order(tokenizer: Tokenizer, prior: Prior) -> None:
    """Warn of a head that takes neighbouring levels to be alike on codes, which have no order.

    The warning is a :class:`TessellaWarning` at the place that called the caller.
    """
    first = prior
    # All grids of a hierarchy have heads of one kind.
    if isinstance(prior, Hierarchy):
        first = prior.priors[0]
    assert isinstance(first, DensityModel)
    # Only a warning: some codes, such as those of FSQ, are ordered in part.
    if first.head.ordered and not tokenizer.of_pixels:
        also = ""
        if first.predictor is not None:
            also = " and predicts them from the pixels around"
        warnings.warn(
            f"the prior's head {first.head.name!r} takes neighbouring levels to be alike{also}, "
            'and the codes of a tokenizer have no order; a prior on codes wants head="categorical" '
            '(in a recipe: model.head = "categorical")',
            TessellaWarning,
            stacklevel=3,
        )
