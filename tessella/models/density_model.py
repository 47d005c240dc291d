"""The base class of density models, which give exact probabilities to grids of symbols.

A model predicts each symbol ``t`` of the sequence ``x.flatten(1)`` from all symbols before it, so
that ``log p(x) = sum over t of log p(x_t | x_0 .. x_(t-1))``. There are two ways to evaluate it,
which the contract tests prove equal: :meth:`DensityModel.forward` evaluates a whole grid in
parallel, and :meth:`DensityModel.step` goes one symbol at a time with an explicit cached state. The
base class steps by running ``forward`` on the whole grid. That is slow but correct, and the tests
use it as the reference (the *oracle*) for faster steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tessella.errors import ConfigError, InputError, NumericalError, check_integer
from tessella.grid import Grid, to_tensor
from tessella.heads import Distribution, Head, JointHead
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning, split
from tessella.models.pixel_window import PixelWindow, WholeGridWindow
from tessella.models.receptive_fields import symbol_field
from tessella.nn import predictor_fit
from tessella.nn.masked import Masked
from tessella.nn.pretrained import Pretrained
from tessella.nn.stepping.runs import SteppedSymbols
from tessella.nn.stepping.state import State

if TYPE_CHECKING:
    import tessella.exact.exact_model

PASS_VALUES = 1 << 26
"""Roughly how many values a layer may hold in one pass; larger batches are split."""

PIXEL_VALUES = 1 << 10
"""Assumed number of values per pixel in a layer, for the estimate of a pass's memory."""

Result = TypeVar("Result")


@dataclass
class JointWalk(State):
    """The part of a state that follows a joint head through the pixels of a grid."""

    pixel: State | None = None
    """State of the head within the current pixel; None at first."""
    known: torch.Tensor | None = None
    """The symbols so far, for a model with a predictor; see :meth:`LinearPredictor.empty`."""


@dataclass
class WholeGridState(State):
    """The state of steps that run ``forward`` on the whole grid."""

    x: torch.Tensor
    """The symbols so far, and random symbols after them: ``int64 [batch, height, width,
    channels]``."""
    condition: Condition


class DensityModel(Pretrained, nn.Module, ABC):
    """An exact distribution over grids of symbols.

    A subclass (a *family*) defines :meth:`forward`, :meth:`sizes` and :meth:`receptive_field`. Its
    constructor takes ``grid``, ``head``, ``conditioning``, and then its sizes, each with a default.
    That is enough to train, score and sample. Overriding :meth:`init_state` and :meth:`step` makes
    sampling fast. A class outside this package registers itself with
    ``@ts.register_model("name")``. A saved model stores its :meth:`config`, so sizes must be plain
    numbers, booleans or strings.

    Args:
        grid: the grid to model.
        head: turns the network's parameters into distributions.
        conditioning: the classes and the grid of codes that the model is conditioned on.

    Raises:
        ConfigError: when codes are given to a family that does not take them.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "density-model"
    """The kind of model in a saved ``config.json``."""
    takes_codes: ClassVar[bool] = False
    """Whether the model can be conditioned on a grid of codes."""
    takes_joint_heads: ClassVar[bool] = True
    """Whether it can have a head that takes all channels of a pixel together."""
    mixes: ClassVar[bool] = False
    """Whether its last layers are all of the class :class:`~tessella.nn.last_layer.LastLayer`,
    which does part of the head's work."""
    sees_all_coarser: ClassVar[bool] = False
    """Whether its condition holds the codes of all coarser grids, packed into one row; otherwise
    those of the next coarser grid."""
    symbols_independent: ClassVar[bool] = False
    """Whether no symbol depends on another of the same grid, so that one pass draws all."""
    pass_is_cheap: ClassVar[bool] = False
    """Whether a pass over the whole grid costs little more than one cached step in torch."""
    any_order: ClassVar[bool] = False
    """Whether it can predict the symbols in an order other than raster; see
    :class:`~tessella.models.order_agnostic_model.OrderAgnosticModel`."""
    states_bound: ClassVar[bool] = False
    """Whether it states a bound on log-probabilities instead of exact ones; see
    :class:`~tessella.models.masked_model.MaskedModel`."""
    programs_are_final: bool = False
    """Whether cached steps consist of programs that make the parameters as the head takes them."""

    def __init__(self, grid: Grid, head: Head, conditioning: Conditioning) -> None:
        super().__init__()
        if conditioning.codes is not None and not self.takes_codes:
            raise ConfigError(f"{self.name} cannot be conditioned on a grid of codes (codes=)")
        self.grid = grid
        self.head = head.of_mixed() if self.mixes else head
        self.conditioning = conditioning
        self.predictor = head.create_predictor()
        """Predicts each pixel from pixels before it, for a head that corrects predictions."""
        self.null_class = True
        """Whether the model has learned the null class; training without label dropout clears
        this."""
        self.checkpointing = False
        """Whether to use activation checkpointing, for slower training in less memory; see
        :meth:`recomputed`."""

    @abstractmethod
    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        """Parameters of every symbol, in parallel.

        Args:
            x: ``int64 [batch, height, width, channels]``.
            condition: condition of each image, as :meth:`condition` returns it.

        Returns:
            The argument of :meth:`Head.__call__`: ``[batch, height, width, channels, size]``, or
            ``[batch, height, width, size]`` for a joint head. The predictions of a predictor are
            missing; :meth:`head_parameters` appends them. The parameters of symbol ``t`` depend
            only on symbols before ``t``.
        """

    def forward_from(self, x: torch.Tensor, condition: Condition, row: int) -> torch.Tensor:
        """:meth:`forward`, but only for the rows from ``row`` on.

        A family can override it to skip computations that these rows do not depend on.
        """
        return self(x, condition)[:, row:]

    def head_parameters(self, x: torch.Tensor, condition: Condition, row: int = 0) -> torch.Tensor:
        """What the head takes: the network's parameters, and behind them any predictions.

        Args:
            x, condition: see :meth:`forward`.
            row: the first row wanted.

        Returns:
            The argument of :meth:`Head.__call__`, for the rows from ``row`` on.
        """
        parameters = self.forward_from(x, condition, row) if row else self(x, condition)
        if self.predictor is None:
            return parameters
        return self.predictor.complete(parameters, x, row)

    def output_weights(self) -> Sequence[torch.Tensor]:
        """The weights that make the head's parameters of the last features.

        Where they are zero, so is the network's correction of a prediction.
        """
        return []

    @torch.no_grad()
    def fit_predictor(self, x: object) -> None:
        """Fit the predictor to images, and have the network begin without a correction.

        Training does this before its first step, in seconds. Without a predictor, and with one that
        is fitted already, nothing happens. Otherwise the weights of the network's last layer are
        lost, because they corrected another prediction.

        Args:
            x: symbols of any integer type, ``[n, height, width, channels]``, at least one image.
                Of many images some are used, evenly spaced.

        Raises:
            InputError: for symbols that do not fit the grid, or none.
        """
        if self.predictor is None or bool(self.predictor.fitted):
            return
        images = to_tensor("symbols", x)
        if images.dim() == 0 or not len(images):
            raise InputError("a predictor is fitted to at least one image, got none")
        places = predictor_fit.images_to_use(self.grid, len(images))
        predictor_fit.fit(self.predictor, self.grid.check(images[places.to(images.device)]))
        # Without these weights the network's correction is its bias, which begins as zero.
        for weights in self.output_weights():
            weights.zero_()
        if self.predictor.hidden:
            self.predictor.last.weight.zero_()
            self.predictor.last.bias.zero_()

    def walk_pixel(
        self, parameters: torch.Tensor | None, previous: torch.Tensor, index: int, walk: JointWalk
    ) -> torch.Tensor:
        """Parameters of the next symbol under a joint head, for the steps of families.

        Args:
            parameters: what the network makes of a pixel, ``[batch, size]``; needed at its first
                channel only.
            previous, index: see :meth:`step`.
            walk: updated in place.

        Returns:
            The parameters of symbol ``index`` as :meth:`Head.symbol` takes them.
        """
        assert isinstance(self.head, JointHead)
        row, column, channel = self.grid.place(index)
        if self.predictor is not None:
            if index == 0:
                walk.known = self.predictor.empty(len(previous))
            else:
                assert walk.known is not None
                self.predictor.observe(walk.known, previous, index - 1)
        if channel == 0:
            assert parameters is not None
            if self.predictor is not None:
                assert walk.known is not None
                parameters = self.predictor.complete_at(parameters, walk.known, row, column)
            walk.pixel = self.head.start(parameters)
        assert walk.pixel is not None
        before = previous if channel else None
        step, walk.pixel = self.head.next(before, channel, walk.pixel)
        return step

    @abstractmethod
    def sizes(self) -> dict[str, object]:
        """The sizes the model was built with, as keywords of :func:`tessella.create`."""

    @abstractmethod
    def receptive_field(self) -> torch.Tensor:
        """Which symbols the prediction of each symbol depends on: ``bool [symbols, symbols]``.

        Row ``t``, column ``s`` is True if the distribution of symbol ``t`` depends on symbol ``s``.
        """

    def dependencies(self) -> torch.Tensor:
        """:meth:`receptive_field` of the network and of the predictor together."""
        field = self.receptive_field()
        if self.predictor is None:
            return field
        pixels = self.predictor.receptive_field()
        return field | symbol_field(self.grid, pixels, inside=True)

    def distribution(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> Distribution:
        """The distribution of every symbol of ``x``, given the symbols before it.

        Args:
            x: symbols as :meth:`Grid.check` returns them, on the device of the model.
            condition: condition of each image, as :meth:`condition` returns it.

        Raises:
            InputError: for a condition that belongs to another model.
        """
        # A condition of another model would silently broadcast, or be ignored.
        unfit_labels = (condition.labels is not None) != bool(self.classes)
        unfit_codes = (condition.codes is not None) != bool(self.conditioning.codes)
        unfit_order = condition.order is not None and not self.any_order
        if unfit_labels or unfit_codes or unfit_order:
            raise InputError(
                "the condition is not this model's: give what model.condition(cond, batch) returns"
            )
        return self.head(self.head_parameters(x, condition))

    def log_prob(self, x: object, cond: Cond = None, reduce: bool = True) -> torch.Tensor:
        """Exact log-probability in nats.

        Large batches are scored in pieces, to limit memory.

        Args:
            x: symbols, any integer type, ``[batch, height, width, channels]``.
            cond: class of each image (int64 ``[batch]``), codes, or a dictionary of both; without a
                class, the null class is used.
            reduce: whether to sum over the symbols of an image.

        Returns:
            ``[batch]``, or ``[batch, height, width, channels]`` without ``reduce``.

        Raises:
            InputError: for symbols or a condition that do not fit the model, or a model with
                dropout in training mode.
            NumericalError: when the result would be NaN or infinite, because weights are.
        """
        self.check_eval_mode()
        images = to_tensor("symbols", x)
        if images.dim() == 0:
            raise InputError(f"symbols must have four dimensions, got the number {images.item()}")
        pieces = list(self._pieces(images))
        # Check all images before scoring the first. This goes piece by piece, because int64 copies
        # of all images would take eight times the memory of uint8 symbols.
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
        """Slices of a batch that are scored at a time."""
        # A rough estimate is enough: it affects memory and speed, not results. The parameters of
        # a pixel take more memory than its features if the head has very many of them.
        features = self.grid.pixels * PIXEL_VALUES
        parameters = self.grid.symbols * self.head.size
        at_a_time = max(1, PASS_VALUES // max(features, parameters))
        # An empty batch is one empty piece.
        for start in range(0, max(1, len(images)), at_a_time):
            yield slice(start, start + at_a_time)

    def bits_per_dim(self, x: object, cond: Cond = None) -> torch.Tensor:
        """Bits per symbol of each image: ``[batch]``. See :meth:`log_prob`."""
        return -self.grid.bits_per_dim(self.log_prob(x, cond))

    def exact(
        self, images: object = None, cond: Cond = None
    ) -> tessella.exact.exact_model.ExactModel:
        """The exact twin of this model, which computes with integers only.

        Its probabilities are the same on every machine, as compressed files need them.

        Args:
            images: typical images, ``[n, height, width, channels]``, for calibration; a handful is
                enough. Without any, the model draws some itself.
            cond: their condition.

        Raises:
            ConfigError: when the model has no exact twin, naming what stands in the way.
            InputError: for images or a condition that do not fit.
        """
        from tessella.exact import convert

        return convert(self, images, cond)

    def init_state(self, batch: int, cond: Cond = None) -> State:
        """The state before the first symbol of ``batch`` images."""
        return self.whole_grid_state(batch, cond)

    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        """Advance by one symbol.

        Args:
            previous: symbol ``index - 1``, ``int64 [batch]``; ignored at index 0.
            index: index of the symbol to predict.
            state: returned by :meth:`init_state` or the previous step. It may be updated in place
                and must not be used again.

        Returns:
            The parameters of symbol ``index`` as :meth:`Head.symbol` takes them, ``[batch, ...]``,
            and the next state.
        """
        return self.whole_grid_step(previous, index, state)

    def stepped(self, state: State) -> SteppedSymbols | None:
        """The programs of a state, for models whose step consists of programs; None for others."""
        return None

    def whole_grid_state(self, batch: int, cond: Cond = None, seed: int = 0) -> WholeGridState:
        """The initial state of :meth:`whole_grid_step`.

        Symbols that are not known yet are random, because zeros could hide a leak from the future.

        Args:
            batch, cond: as in :meth:`init_state`.
            seed: seed of the random symbols; no result may depend on it.
        """
        condition = self.condition(cond, batch)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(self.grid.levels, (batch, *self.grid.shape), generator=generator)
        return WholeGridState(x.to(self.device), condition)

    def whole_grid_step(
        self, previous: torch.Tensor, index: int, state: State
    ) -> tuple[torch.Tensor, WholeGridState]:
        """:meth:`step` by a forward pass over the whole grid: slow, but simple and correct."""
        assert isinstance(state, WholeGridState)
        if index:
            # flatten makes a view, so the grid itself is changed.
            state.x.flatten(1)[:, index - 1] = previous
        row, column, channel = self.grid.place(index)
        with torch.no_grad():
            parameters = self.head_parameters(state.x, state.condition)[:, row, column]
        if not isinstance(self.head, JointHead):
            return parameters[:, channel], state
        # A joint head repeats its walk from the first channel on. The channels not drawn yet hold
        # random symbols, which it must not look at.
        pixel = state.x[:, row, column]
        return self.head.unroll(parameters, pixel, channel + 1)[-1], state

    def window(self, batch: int, pixels: int) -> PixelWindow:
        """Predicts the next ``pixels`` pixels of ``batch`` images at once.

        A family whose layers see earlier pixels through a cache overrides this; the base class runs
        ``forward`` on the whole grid.
        """
        return WholeGridWindow(self, batch, min(pixels, self.grid.pixels))

    def condition(self, cond: Cond, batch: int) -> Condition:
        """Check a caller's condition for ``batch`` images.

        Raises:
            InputError: for a condition that the model does not take, a missing one, a class out of
                range, or the null class of a model that was trained without it.
        """
        batch = check_integer("batch", batch)
        labels, codes = split(cond)
        if isinstance(cond, Condition) and cond.order is not None and not self.any_order:
            raise InputError(
                f"{self.name} predicts symbols in raster order only: leave the order out"
            )
        # First what the model cannot take, then what it needs.
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
                raise InputError(f"cond holds the codes of {len(codes)} images, expected {batch}")
        return Condition(self._labels(labels, batch) if self.classes else None, codes)

    def training_condition(self, condition: Condition, batch: int) -> Condition:
        """The condition under which a training step scores ``batch`` images.

        A family that trains under random orders adds them here; they come from the global
        generator, which every step seeds.
        """
        return condition

    def training_nats(self, x: torch.Tensor, condition: Condition) -> torch.Tensor:
        """What a training step minimizes: minus the log-probability of each image, ``[batch]``.

        Args:
            x: ``int64 [batch, height, width, channels]``.
            condition: condition of each image, as :meth:`condition` returns it.
        """
        distribution = self.distribution(x, self.training_condition(condition, len(x)))
        return -distribution.log_prob(x).flatten(1).sum(1)

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
        # As in Grid.check, unsigned numbers too large for int64 become negative.
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
        """Raise InputError if dropout is active, because probabilities would not be exact."""
        # Without dropout both modes compute the same, so training mode is harmless.
        if not self.training:
            return
        for module in self.modules():
            if isinstance(module, nn.Dropout) and module.p > 0:
                raise InputError(
                    "the model is in training mode and has dropout: call model.eval() first"
                )

    def blocks_to_recompute(self) -> list[nn.Module]:
        """The modules that :meth:`recomputed` calls; none where it calls methods or other parts.

        Nothing but their own ``forward`` reads their weights while the model is trained, so that
        these may lie on several devices meanwhile (see :mod:`tessella.training.sharding`).
        """
        return []

    def recomputed(self, part: Callable[..., Result], *inputs: object) -> Result:
        """Call ``part(*inputs)``, one part of the network, with checkpointing if that is enabled.

        With :attr:`checkpointing`, activations inside the part are not stored for the backward
        pass, but computed again.
        """
        # Without gradients, nothing is stored anyway.
        if self.checkpointing and torch.is_grad_enabled():
            result: Result = checkpoint(part, *inputs, use_reentrant=False)
            return result
        return part(*inputs)

    @property
    def classes(self) -> int:
        """Number of classes the model is conditioned on; label ``classes`` is the null class."""
        return self.conditioning.classes

    def last_layers(self) -> Sequence[nn.Module]:
        """The layers that make the head's parameters; none where they are no modules."""
        return []

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices and convolution kernels between embeddings and last layers.

        They are the attributes ``weight`` of all modules, or what a module lists in its attribute
        ``matrices``: of two or four dimensions, or stacks of matrices, of three. What moves them
        may rely on their being hidden (see :class:`tessella.training.optimizers.Muon`).
        """
        last: set[nn.Module] = set(self.last_layers())
        if self.predictor is not None and self.predictor.hidden:
            last.add(self.predictor.last)
        found: dict[nn.Parameter, None] = {}
        for module in self.modules():
            # Rows of a table are vectors by themselves, of which a step sees few.
            if module in last or isinstance(module, nn.Embedding):
                continue
            for name in getattr(module, "matrices", ("weight",)):
                weight = getattr(module, name, None)
                # Gains of norms are weights too, but vectors; some layers compute their weight.
                if isinstance(weight, nn.Parameter) and weight.requires_grad and weight.dim() > 1:
                    found[weight] = None
        return list(found)

    def parameter_count(self) -> int:
        """Number of trainable parameters, not counting weights that a mask holds at zero."""
        count = sum(parameter.numel() for parameter in self.parameters())
        for module in self.modules():
            if isinstance(module, Masked):
                count -= module.masked
        return count

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def config(self) -> dict[str, object]:
        """Plain values from which :func:`tessella.models.from_config` rebuilds the model.

        The weights are not included.
        """
        config: dict[str, object] = {
            "name": self.name,
            "grid": asdict(self.grid),
            "head": self.head.config(),
            "classes": self.classes,
        }
        # Without codes the key is omitted, as in models saved before codes existed.
        if self.conditioning.codes is not None:
            config["codes"] = asdict(self.conditioning.codes)
        config["null_class"] = self.null_class
        config["sizes"] = self.sizes()
        return config

    def extra_repr(self) -> str:
        """The line that ``print(model)`` shows above the list of layers."""
        sizes = "".join(f", {key}={value}" for key, value in self.sizes().items())
        return f"{self.name!r}, {self.grid}, head={self.head!r}, classes={self.classes}{sizes}"


def check_finite(nats: torch.Tensor) -> None:
    """Check that log-probabilities are finite.

    Raises:
        NumericalError: when a value is NaN or infinite.
    """
    if not bool(torch.isfinite(nats).all()):
        raise NumericalError(
            "the model gives no probabilities: its parameters are NaN or infinite, as weights that "
            "are damaged or too large make them; take another checkpoint, or try model.double()"
        )
