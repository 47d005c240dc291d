"""The exact twin of a model, which computes with integers only (``docs/arithmetic.md``)."""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar

import torch

from tessella.errors import InputError
from tessella.exact.conversion import convertible, integer_constants
from tessella.exact.integer_distributions import IntegerDistribution
from tessella.exact.integer_heads import integer_head
from tessella.exact.integer_predictor import integer_predictor
from tessella.grid import to_tensor
from tessella.heads import Head
from tessella.models.condition import UNCONDITIONAL, Cond, Condition
from tessella.models.density_model import DensityModel
from tessella.models.program_model import TwinModel
from tessella.nn.integer.constants import IntegerConstants
from tessella.nn.stepping.state import State
from tessella.nn.stepping.step import StateMemory

ARITHMETIC_VERSION = 1
"""Version of ``docs/arithmetic.md``; twins of different versions give different probabilities."""

CALIBRATION_IMAGES = 16
"""How many images a conversion draws from the model if it is given none."""


class KnownFrequencies(IntegerDistribution):
    """A distribution whose frequencies are given.

    Args:
        values: ``int64 [..., levels]``, at least 1 each, which sum to ``TOTAL``.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def frequencies(self) -> torch.Tensor:
        return self.values


class FrequencyHead(Head):
    """The head of an exact twin, whose parameters are the frequencies of all levels."""

    name = "frequencies"

    @property
    def size(self) -> int:
        return self.grid.levels

    def __call__(self, parameters: torch.Tensor) -> KnownFrequencies:
        return KnownFrequencies(parameters)

    def symbol(self, parameters: torch.Tensor) -> KnownFrequencies:
        return KnownFrequencies(parameters)


class ExactModel(DensityModel):
    """The exact twin of a model: the same network, computed with integers.

    It gives the same frequencies on every machine, for every batch size and number of threads, and
    is a density model like any other: ``ts.sample`` draws from it, and :meth:`log_prob` is what a
    file costs that its frequencies code.

    Args:
        network: the model as :func:`tessella.exact.conversion.convertible` returns it. Its weights
            are not used, only how its step is written.
        constants: all numbers of the step.
    """

    name: ClassVar[str] = "exact"

    def __init__(self, network: TwinModel, constants: IntegerConstants) -> None:
        super().__init__(network.grid, FrequencyHead(network.grid), network.conditioning)
        self.network = network
        self.constants = constants
        self.null_class = network.null_class
        self.arithmetic_version = ARITHMETIC_VERSION
        self._network_config = network.config()
        network.head = integer_head(network.head)
        if network.predictor is not None:
            network.predictor = integer_predictor(network.predictor, constants)
        # There is nothing to train, and sampling asks for a model that is not in training.
        self.eval()
        self.id = self._digest()
        """SHA-256 of the configuration and of all integers, 64 hexadecimal digits."""

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> State:
        return self._state(self.condition(cond, batch), batch)

    def _state(self, condition: Condition, batch: int) -> State:
        rows = condition.labels
        if rows is None:
            rows = torch.zeros(batch, dtype=torch.int64, device=self.device)
        # A model that was moved to another device takes its constants along.
        self.constants = self.constants.on(self.device)
        memory = StateMemory(constants=self.constants, rows=rows)
        return self.network.state_in(memory, condition, batch)

    def next(
        self, previous: torch.Tensor, index: int, state: State
    ) -> tuple[IntegerDistribution, State]:
        """The distribution of the next symbol of each image, over ``[batch]``.

        Cheaper than :meth:`step` for whoever needs the interval of one level only.

        Args:
            previous, index, state: see :meth:`DensityModel.step`.
        """
        parameters, state = self.network.step(previous, index, state)
        distribution = self.network.head.symbol(parameters)
        assert isinstance(distribution, IntegerDistribution)
        return distribution, state

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        distribution, state = self.next(previous, index, state)
        return distribution.frequencies(), state

    @torch.no_grad()
    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        # Integers are only defined for steps, so this walks along the grid.
        state = self._state(condition, len(x))
        symbols = x.flatten(1)
        parts = []
        for index in range(self.grid.symbols):
            frequencies, state = self.step(symbols[:, index - 1], index, state)
            parts.append(frequencies)
        return torch.stack(parts, dim=1).unflatten(1, self.grid.shape)

    @torch.no_grad()
    def log_prob(self, x: object, cond: Cond = None, reduce: bool = True) -> torch.Tensor:
        images = self.grid.check(to_tensor("symbols", x)).to(self.device)
        condition = self.condition(cond, len(images))
        scores = []
        for piece in self._pieces(images):
            places = torch.arange(len(images))[piece]
            scores.append(self._score(images[piece], condition.select(places)))
        nats = torch.cat(scores)
        return nats.flatten(1).sum(1) if reduce else nats

    def _score(self, x: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Log-probability of each symbol in nats: ``float64 [batch, height, width, channels]``."""
        state = self._state(condition, len(x))
        symbols = x.flatten(1)
        nats = []
        for index in range(self.grid.symbols):
            distribution, state = self.next(symbols[:, index - 1], index, state)
            nats.append(distribution.log_prob(symbols[:, index]))
        return torch.stack(nats, dim=1).view(x.shape)

    def sizes(self) -> dict[str, object]:
        return self.network.sizes()

    def config(self) -> dict[str, object]:
        return {"arithmetic": self.arithmetic_version, "network": self._network_config}

    def receptive_field(self) -> torch.Tensor:
        # This model has no predictor of its own, but its network has.
        return self.network.dependencies()

    def _digest(self) -> str:
        digest = hashlib.sha256()
        digest.update(json.dumps(self.config(), sort_keys=True).encode())
        for name, tensor in self.constants.named_tensors():
            shape = list(tensor.shape)
            digest.update(f"{name} {tensor.dtype} {shape}\n".encode())
            digest.update(tensor.cpu().contiguous().numpy().astype(tensor_layout(tensor)).tobytes())
        return digest.hexdigest()


def tensor_layout(tensor: torch.Tensor) -> str:
    """The little-endian NumPy type of an integer tensor."""
    return f"<i{tensor.element_size()}"


def convert(model: DensityModel, images: object = None, cond: Cond = None) -> ExactModel:
    """Make the exact twin of a trained model.

    Args:
        model: a model whose step consists of programs, with a categorical, ordinal or
            logistic-mixture head.
        images: typical images, ``[n, height, width, channels]``, whose activations set the scales
            of the integers; a handful is enough. Without any, the model draws some itself.
        cond: their condition.

    Raises:
        ConfigError: when the model has no exact twin, naming what stands in the way.
        InputError: for images or a condition that do not fit.
        NumericalError: when weights are NaN or infinite.
    """
    model.check_eval_mode()
    network = convertible(model)
    if images is None:
        from tessella.sampling import sample

        images = sample(model, n=CALIBRATION_IMAGES, seed=0, cond=_spread(model))
        cond = _spread(model)
    symbols = model.grid.check(to_tensor("images", images))
    if not len(symbols):
        raise InputError("images for calibration: give at least one, or leave them out")
    constants = integer_constants(network, symbols, cond)
    return ExactModel(network, constants)


def _spread(model: DensityModel) -> torch.Tensor | None:
    """Classes for the images that calibrate a model: all of them in turn."""
    if not model.classes:
        return None
    return torch.arange(CALIBRATION_IMAGES, device=model.device) % model.classes
