"""The base of every density model: an exact probability for a grid of symbols, in raster order.

A model gives, for symbol ``t`` of the sequence ``x.flatten(1)``, a distribution given all symbols
before it, so that ``log p(x) = sum over t of log p(x_t | x_0 .. x_(t-1))``. There are two ways to
evaluate it, proven equal by the contract tests: :meth:`DensityModel.forward` over a whole grid in
parallel, and :meth:`DensityModel.step` one symbol at a time with an explicit cached state. The base
class steps by running ``forward`` on the whole grid: slow, right, and the oracle of the fast ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tessella.errors import ConfigError, InputError, NumericalError, check_integer
from tessella.grid import Grid, to_tensor
from tessella.heads import Distribution, Head, JointHead
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning, split
from tessella.nn.masked import Masked
from tessella.nn.stepping.state import State

PASS_VALUES = 1 << 26
"""Numbers that one layer of a pass may hold, about: more images are scored in several passes."""

PIXEL_VALUES = 1 << 10
"""Numbers of one pixel in a layer, for the estimate of what a pass holds."""

Result = TypeVar("Result")


@dataclass
class WholeGridState(State):
    """The state of the oracle: the grid so far, random symbols in the places not yet drawn."""

    x: torch.Tensor
    condition: Condition


class DensityModel(nn.Module, ABC):
    """An exact distribution over grids of symbols.

    A family defines :meth:`forward`, :meth:`sizes` and :meth:`receptive_field`, and takes ``grid``,
    ``head`` and ``conditioning`` and then its sizes, each with a default, in its constructor. That
    is enough to train, score and sample; :meth:`init_state` and :meth:`step` make sampling fast.
    From outside the package, it is added with ``@ts.register_model("name")``. Its :meth:`config` is
    what a saved model keeps, so sizes must be plain numbers, booleans and strings.

    Args:
        grid: the grid that is modelled.
        head: turns the network's parameters into distributions.
        conditioning: the classes and the grid of codes it is conditioned on.

    Raises:
        ConfigError: for a grid of codes where the model takes none.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "density-model"
    """The kind of model that a saved ``config.json`` names."""
    takes_codes: ClassVar[bool] = False
    """Whether it can be conditioned on a grid of codes."""
    pass_is_cheap: ClassVar[bool] = False
    """Whether a pass over the whole grid costs not much more than a cached step."""

    def __init__(self, grid: Grid, head: Head, conditioning: Conditioning) -> None:
        super().__init__()
        if conditioning.codes is not None and not self.takes_codes:
            raise ConfigError(f"{self.name} cannot be conditioned on a grid of codes (codes=)")
        self.grid = grid
        self.head = head
        self.conditioning = conditioning
        self.null_class = True
        """Whether the null class means something; training without label dropout clears it."""
        self.checkpointing = False
        """Keep only what enters each part of the network for the gradient, and compute the rest
        again: slower training in less memory. See :meth:`recomputed`."""

    @abstractmethod
    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        """Parameters of every symbol, in parallel.

        Args:
            x: ``int64 [batch, height, width, channels]``.
            condition: of each image, as :meth:`condition` returns it.

        Returns:
            The argument of :meth:`Head.__call__`: ``[batch, height, width, channels, size]``, or
            ``[batch, height, width, size]`` of a joint head. The part of symbol ``t`` depends on
            symbols before ``t`` only.
        """

    def forward_from(self, x: torch.Tensor, condition: Condition, row: int) -> torch.Tensor:
        """:meth:`forward` of the rows from ``row`` on. A family may leave out what only the rows
        above depend on."""
        return self(x, condition)[:, row:]

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """The sizes it was built with, as :func:`tessella.create` takes them."""

    @abstractmethod
    def receptive_field(self) -> torch.Tensor:
        """``bool [symbols, symbols]``: whether the distribution of symbol ``t`` (row) depends on
        symbol ``s`` (column)."""

    def distribution(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> Distribution:
        """The distributions of all symbols of ``x``, each given the symbols before it. Takes
        checked input.

        Raises:
            InputError: for a condition that :meth:`condition` did not make.
        """
        # A condition of another model would broadcast, or be left out, without a word.
        has_labels = condition.labels is not None
        has_codes = condition.codes is not None
        if has_labels != bool(self.classes) or has_codes != bool(self.conditioning.codes):
            raise InputError(
                "the condition is not this model's: give what model.condition(cond, batch) returns"
            )
        return self.head(self(x, condition))

    def log_prob(self, x: object, cond: Cond = None, reduce: bool = True) -> torch.Tensor:
        """Exact log-probability in nats.

        Many images are scored a piece at a time, in the memory of one piece.

        Args:
            x: symbols, any integer type, ``[batch, height, width, channels]``.
            cond: class of each image (int64 ``[batch]``), codes, or a dictionary of both; without a
                class, the null class.
            reduce: sum over the symbols of an image.

        Returns:
            ``[batch]``, or ``[batch, height, width, channels]`` without ``reduce``.

        Raises:
            InputError: for symbols or a condition that do not fit, or a model left in training mode
                with dropout.
            NumericalError: where the model gives no probabilities, since its parameters are NaN or
                infinite.
        """
        self.check_eval_mode()
        images = to_tensor("symbols", x)
        if images.dim() == 0:
            raise InputError(f"symbols must have four dimensions, got the number {images.item()}")
        pieces = list(self._pieces(images))
        # All images are checked before the first is scored; int64 copies of all of them at once
        # would take eight times the memory of uint8 symbols.
        for piece in pieces:
            self.grid.check(images[piece])
        condition = self.condition(cond, len(images))
        scores = []
        for piece in pieces:
            symbols = self.grid.check(images[piece]).to(self.device)
            condition_here = condition
            if len(pieces) > 1:
                places = torch.arange(len(images))[piece]
                condition_here = condition.select(places)
            nats = self.distribution(symbols, condition_here).log_prob(symbols)
            score = nats.flatten(1).sum(1) if reduce else nats
            check_finite(score)
            scores.append(score)
        return torch.cat(scores)

    def _pieces(self, images: torch.Tensor) -> Iterator[slice]:
        """Parts of a batch that are scored at a time."""
        # An estimate serves: it decides about memory and speed, not about results. The parameters
        # of a pixel outgrow its features where a head has more than ``PIXEL_VALUES`` of them.
        features = self.grid.pixels * PIXEL_VALUES
        parameters = self.grid.symbols * self.head.size
        at_a_time = max(1, PASS_VALUES // max(features, parameters))
        # Of no images there is one piece, whose score is empty.
        for start in range(0, max(1, len(images)), at_a_time):
            yield slice(start, start + at_a_time)

    def bits_per_dim(self, x: object, cond: Cond = None) -> torch.Tensor:
        """Bits per symbol of each image: ``[batch]``. See :meth:`log_prob`."""
        return -self.grid.bits_per_dim(self.log_prob(x, cond))

    def init_state(self, batch: int, cond: Cond = None) -> State:
        """The state before the first symbol of ``batch`` images."""
        return self.whole_grid_state(batch, cond)

    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        """One symbol further.

        Args:
            previous: ``int64 [batch]``, symbol ``index - 1``; ignored at 0.
            index: which symbol of the sequence comes next.
            state: what :meth:`init_state` or the step before returned; it may be updated in place
                and is spent.

        Returns:
            The parameters of symbol ``index`` as :meth:`Head.symbol` takes them, ``[batch, ...]``,
            and the next state.
        """
        return self.whole_grid_step(previous, index, state)

    def whole_grid_state(self, batch: int, cond: Cond = None, seed: int = 0) -> WholeGridState:
        """The state of the oracle: random symbols everywhere, since zeros would hide a leak.

        Args:
            batch, cond: as in :meth:`init_state`.
            seed: of these random symbols, on which no result may depend.
        """
        condition = self.condition(cond, batch)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(self.grid.levels, (batch, *self.grid.shape), generator=generator)
        return WholeGridState(x.to(self.device), condition)

    def whole_grid_step(
        self, previous: torch.Tensor, index: int, state: State
    ) -> tuple[torch.Tensor, WholeGridState]:
        """:meth:`step` by a forward pass over the whole grid."""
        assert isinstance(state, WholeGridState)
        if index:
            # flatten makes a view, so the grid itself is changed.
            state.x.flatten(1)[:, index - 1] = previous
        row, column, channel = self.grid.place(index)
        with torch.no_grad():
            parameters = self(state.x, state.condition)[:, row, column]
        if not isinstance(self.head, JointHead):
            return parameters[:, channel], state
        # A joint head walks through the channels from the first one again; those that are not drawn
        # yet hold random symbols, which it must not look at.
        pixel = state.x[:, row, column]
        return self.head.unroll(parameters, pixel, channel + 1)[-1], state

    def condition(self, cond: Cond, batch: int) -> Condition:
        """The condition of each of ``batch`` images, checked.

        Raises:
            InputError: for a condition the model does not take or lacks, a class out of range, or
                the null class of a model that never trained with it.
        """
        batch = check_integer("batch", batch)
        labels, codes = split(cond)
        if labels is not None and not self.classes:
            raise InputError(
                "this model has no classes: leave cond (--class-label) out, "
                "or train one that is conditional"
            )
        code_grid = self.conditioning.codes
        if codes is not None and code_grid is None:
            raise InputError(f"this {self.name} does not take a grid of codes as condition")
        if code_grid is not None:
            if codes is None:
                raise InputError(
                    "this model is conditioned on codes: give cond, int64 "
                    f"{[batch, *code_grid.shape]} of {code_grid.levels} levels"
                )
            codes = code_grid.check(codes).to(self.device)
            if len(codes) != batch:
                raise InputError(f"cond holds the codes of {len(codes)} images, wanted are {batch}")
        return Condition(self._labels(labels, batch) if self.classes else None, codes)

    def _labels(self, cond: torch.Tensor | None, batch: int) -> torch.Tensor:
        """The class of each image, checked: ``int64 [batch]``."""
        if cond is None:
            if not self.null_class:
                raise InputError(
                    "this model was trained with a class for every image: "
                    f"give cond, int64 [{batch}] in 0..{self.classes - 1}"
                )
            # The index after the last class is the null class.
            return torch.full((batch,), self.classes, device=self.device)
        if cond.is_floating_point() or cond.is_complex() or cond.shape != (batch,):
            raise InputError(
                f"classes must be integers of shape [{batch}], "
                f"got {cond.dtype} of shape {list(cond.shape)}"
            )
        # As in Grid.check, unsigned numbers that int64 does not hold become negative.
        labels = cond.long()
        largest = self.classes if self.null_class else self.classes - 1
        if batch and (int(labels.min()) < 0 or int(labels.max()) > largest):
            null = f" (or {self.classes}, the null class)" if self.null_class else ""
            raise InputError(
                f"classes must lie in 0..{self.classes - 1}{null}, "
                f"got {int(labels.min())}..{int(labels.max())}"
            )
        return labels.to(self.device)

    def check_eval_mode(self) -> None:
        """Raise InputError in training mode with dropout, where no probability is exact."""
        # Without dropout both modes compute the same, so training mode is no mistake then.
        if not self.training:
            return
        for module in self.modules():
            if isinstance(module, nn.Dropout) and module.p > 0:
                raise InputError(
                    "the model is in training mode and has dropout: call model.eval() first"
                )

    def recomputed(self, part: Callable[..., Result], *inputs: object) -> Result:
        """``part(*inputs)``, a piece of the network; with ``checkpointing`` nothing inside it is
        kept for the gradient."""
        # Sampling and scoring keep nothing for a gradient anyway.
        if self.checkpointing and torch.is_grad_enabled():
            result: Result = checkpoint(part, *inputs, use_reentrant=False)
            return result
        return part(*inputs)

    @property
    def classes(self) -> int:
        """Classes it is conditioned on; index ``classes`` is the null class."""
        return self.conditioning.classes

    def parameter_count(self) -> int:
        """Numbers that training sets: weights that a mask holds at zero do not count."""
        count = sum(parameter.numel() for parameter in self.parameters())
        for module in self.modules():
            if isinstance(module, Masked):
                count -= module.masked
        return count

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def config(self) -> dict[str, Any]:
        """Plain values that rebuild the model, without its weights, by
        :func:`tessella.models.from_config`."""
        config: dict[str, Any] = {
            "name": self.name,
            "grid": asdict(self.grid),
            "head": self.head.config(),
            "classes": self.classes,
        }
        # The key is left out where there are no codes: saved models without it stay readable.
        if self.conditioning.codes is not None:
            config["codes"] = asdict(self.conditioning.codes)
        config["null_class"] = self.null_class
        config["sizes"] = self.sizes()
        return config

    def extra_repr(self) -> str:
        """The line that ``print(model)`` shows above the layers."""
        sizes = ""
        for key, value in self.sizes().items():
            sizes += f", {key}={value}"
        return f"{self.name!r}, {self.grid}, head={self.head!r}, classes={self.classes}{sizes}"


def check_finite(nats: torch.Tensor) -> None:
    """Refuse log-probabilities that are none.

    Raises:
        NumericalError: where a value is NaN or infinite.
    """
    if not bool(torch.isfinite(nats).all()):
        raise NumericalError(
            "the model gives no probabilities: its parameters are NaN or infinite, as weights that "
            "are damaged or too large make them; take another checkpoint, or try model.double()"
        )


def symbol_field(grid: Grid, pixels: torch.Tensor, inside: bool) -> torch.Tensor:
    """A receptive field over pixels to one over symbols.

    Args:
        grid: the grid.
        pixels: ``bool [pixels, pixels]``: whether pixel ``t`` (row) sees pixel ``s`` (column).
        inside: whether a symbol sees the channels before it in its own pixel.
    """
    c = grid.channels
    # A pixel that is seen is seen in all its channels, by all channels.
    field = pixels.repeat_interleave(c, 0).repeat_interleave(c, 1)
    if inside:
        # On the diagonal blocks, one for each pixel: channel t sees the channels s < t.
        earlier_channels = torch.ones(c, c).tril(-1)
        field |= torch.block_diag(*[earlier_channels] * grid.pixels).bool()
    return field
