"""Masked autoencoder for distribution estimation (Germain et al. 2015).

Hidden units have degrees: a unit of degree ``d`` sees the first ``d`` places only (eq. 8 and 12),
the output of place ``t`` sees units of degree ``t`` and less (eq. 9 and 13, whose ``d`` counts
places from 1). The order is always the raster order; what differs between the ``masks`` sets of
degrees is the connectivity (sec. 4.4). All sets share the weights.

The model is the average of the joint distributions that the ``M`` sets give,
``p(x) = 1/M sum over m of p_m(x)`` (sec. 4.4), and it is this average whose likelihood is told and
trained. (The paper draws one set for each batch instead, which maximizes a lower bound.) Its
conditionals are mixtures, ``p(x_t | x_<t) = sum over m of w_m p_m(x_t | x_<t)``, with weights
``w_m`` proportional to ``p_m(x_<t)``. With a joint head each set gives a share of the mixture's
components, and the weights ``w_m`` go into the weights of the components. Hidden units are SiLU
(ReLU in the paper).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import CategoricalHead, Head, LogisticMixture, LogisticMixtureHead
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import symbol_field
from tessella.models.sequence_model import MASKED, SequenceModel, SequenceState, SymbolInputs
from tessella.nn.condition_embedding import ClassEmbedding


@dataclass
class Weights:
    """Weights laid out for stepping, in lists by set of degrees; hidden units are sorted by
    degree."""

    table: torch.Tensor
    """Inputs of every channel and level: ``[channels, levels, embedding]``."""
    hidden: list[list[torch.Tensor]]
    """Of each layer ``[units, inputs]``."""
    ends: list[list[list[int]]]
    """Of each layer how many units have degree ``t`` or less, by place ``t``."""
    output: list[torch.Tensor]
    """``[places, free, units]``."""
    direct: torch.Tensor | None
    """``[places, free, symbols * embedding]``."""


@dataclass
class MADEState(SequenceState):
    """What is known of the inputs and the hidden units."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})

    weights: Weights
    inputs: torch.Tensor
    """``[batch, symbols * embedding]``, zero for the symbols to come."""
    units: list[list[torch.Tensor]]
    """Of each set and layer, activations by degree; before they are final, biases:
    ``[batch, units]``."""
    classes: torch.Tensor | slice
    """Rows of the classes' biases that the images take."""
    log_weights: torch.Tensor
    """``log w_m`` of the sets given what is known: ``[batch, masks]``."""
    told: torch.Tensor | None = None
    """Of the place that was told last, the log-probabilities under each set:
    ``[batch, masks, levels]``."""


class MADE(SequenceModel):
    """``made``: masked autoencoder, hidden layers whose units see so many symbols and no more.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: hidden layers.
        hidden: units of a layer.
        masks: sets of degrees whose distributions are averaged.
        direct: whether inputs go straight to later outputs too (sec. 4.1).
        embedding: length of the vectors that stand for symbols of more than two levels.
        dropout: share of the hidden units dropped in training.
        mask_seed: of the degrees.

    Raises:
        ConfigError: for sizes that make no network, a grid whose matrices no machine holds, or
            mixture components that do not divide by the masks; or several masks with another joint
            head.
    """

    name = "made"
    undecayed = ("bias",)  # of each place: not shrunk by weight decay
    pass_is_cheap = True

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        layers: int = 2,
        hidden: int = 256,
        masks: int = 1,
        direct: bool = False,
        embedding: int = 4,
        dropout: float = 0.3,
        mask_seed: int = 0,
    ) -> None:
        super().__init__(grid, head, conditioning)
        if min(layers, hidden, masks, embedding) < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                "made needs layers, hidden, masks and embedding of at least 1 and 0 <= dropout < 1, got "
                f"layers={layers}, hidden={hidden}, masks={masks}, embedding={embedding}, dropout={dropout}"
            )
        self.hidden, self.masks, self.embedding = hidden, masks, embedding
        self.dropout, self.mask_seed = dropout, mask_seed
        self.one = self._head_of_a_set()
        self.free //= masks if head.joint else 1
        self.inputs = SymbolInputs(grid, embedding)
        features, outputs = grid.symbols * self.inputs.width, self.places * self.free
        self.refuse_absurd(
            max(hidden * max(hidden, features), outputs * (features if direct else hidden)),
            "take a smaller grid, fewer levels, smaller sizes, direct=False, or head='logistic-mixture'",
            MASKED,
        )
        self.refuse_absurd_biases()
        self.register_buffer("degrees", self._draw_degrees(layers), persistent=False)
        self.degrees: torch.Tensor
        self.register_buffer(
            "owners",
            torch.arange(self.places).repeat_interleave(features // self.places) + 1,
            persistent=False,
        )
        self.owners: torch.Tensor
        self.layers = nn.ModuleList(
            nn.Linear(hidden if i else features, hidden) for i in range(layers)
        )
        self.output = nn.Parameter(torch.randn(self.places, self.free, hidden) * 0.3 * hidden**-0.5)
        self.direct = (
            nn.Parameter(torch.randn(outputs, features) * 0.2 * features**-0.5) if direct else None
        )
        self.bias = nn.Parameter(self.one.bias()[-self.free :].repeat(self.places, 1))
        self.class_units = ClassEmbedding(self.classes, layers * hidden) if self.classes else None
        self.class_bias = ClassEmbedding(self.classes, outputs) if self.classes else None
        self.drop = nn.Dropout(dropout)

    def _head_of_a_set(self) -> Head:
        """The head whose parameters the network makes for each set of degrees."""
        if self.masks == 1 or not self.head.joint:
            return self.head
        if not isinstance(self.head, LogisticMixtureHead):
            raise ConfigError(
                f"made averages masks={self.masks} under a head for each symbol or a mixture of logistics, whose "
                f"components it divides; with head={self.head.name!r} take masks=1"
            )
        if self.head.components % self.masks:
            raise ConfigError(
                f"made gives each of its masks a share of the mixture's components: {self.head.components} components "
                f"do not divide by masks={self.masks}; take for example components={10 * self.masks}"
            )
        return LogisticMixtureHead(self.grid, self.head.components // self.masks)

    def _draw_degrees(self, layers: int) -> torch.Tensor:
        """Degrees of the units of each set and layer: ``int64 [masks, layers, hidden]``; none is
        below the least of the layer before (sec. 4.2)."""
        generator, most = torch.Generator().manual_seed(self.mask_seed), max(self.places - 1, 1)
        degrees = torch.empty(self.masks, layers, self.hidden, dtype=torch.int64)
        for of_set in degrees:
            least = 1
            for of_layer in of_set:
                of_layer.copy_(torch.randint(least, most + 1, (self.hidden,), generator=generator))
                least = int(of_layer.min())
        return degrees

    def mask(self, which: int, layer: int) -> torch.Tensor:
        """Which units of a layer see which inputs, ``bool [units, inputs]``; past the last layer
        which places do."""
        degrees = self.degrees[which]
        before = degrees[layer - 1] if layer else self.owners
        seen_by = (
            degrees[layer]
            if layer < len(degrees)
            else torch.arange(self.places, device=degrees.device)
        )
        return before <= seen_by[:, None]

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        inputs, classes = self.inputs(x).flatten(1), self.classes_of(condition)
        unit_bias, bias = self._unit_bias(classes), self._bias(classes, slice(0, self.places))
        if self.direct is not None:
            past = self.owners <= torch.arange(self.places, device=x.device)[:, None]
            weights = self.direct.unflatten(0, (self.places, self.free)) * past[:, None]
            bias = bias + F.linear(inputs, weights.flatten(0, 1)).unflatten(
                1, (self.places, self.free)
            )
        sets = [
            self.recomputed(self._network, inputs, unit_bias, bias, which)
            for which in range(self.masks)
        ]
        if self.masks == 1:
            return self.on_grid(sets[0])
        told = torch.stack(sets, dim=2)
        if self.head.joint:
            return self.on_grid(self._merged_pixels(told, x))
        tables = self.head.symbol(told).table()
        each = tables.gather(-1, x.flatten(1)[..., None, None].expand(-1, -1, self.masks, 1))[
            ..., 0
        ]
        return self.on_grid(self._merged_tables(tables, log_weights_before(each)))

    def _unit_bias(self, classes: torch.Tensor | slice) -> torch.Tensor:
        """Of the hidden units: ``[batch or 1, layers, hidden]``."""
        bias = torch.stack([layer.bias for layer in self._linear()])[None]
        if self.class_units is not None:
            bias = bias + self.class_units.weight[classes].unflatten(1, bias.shape[1:])
        return bias

    def _bias(self, classes: torch.Tensor | slice, places: slice) -> torch.Tensor:
        """Of the outputs of some places: ``[batch or 1, places, free]``."""
        bias = self.bias[None, places]
        if self.class_bias is not None:
            part = slice(places.start * self.free, places.stop * self.free)
            bias = bias + self.class_bias.weight[classes, part].unflatten(1, bias.shape[1:])
        return bias

    def _linear(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def _network(
        self, inputs: torch.Tensor, unit_bias: torch.Tensor, bias: torch.Tensor, which: int
    ) -> torch.Tensor:
        """Parameters ``[batch, places, size]`` by one set of degrees."""
        units = inputs
        for i, layer in enumerate(self._linear()):
            units = self.drop(
                F.silu(F.linear(units, layer.weight * self.mask(which, i)) + unit_bias[:, i])
            )
        weights = self.output * self.mask(which, len(self.layers))[:, None]
        free = F.linear(units, weights.flatten(0, 1)).unflatten(1, (self.places, self.free))
        return self._of_set(free + bias)

    def _of_set(self, free: torch.Tensor) -> torch.Tensor:
        """Parameters of a set's head, ``[..., size]``, of ``[..., free]``."""
        return F.pad(free, (self.one.size - self.free, 0))

    def _merged_tables(self, tables: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        """Parameters of the mixture of ``tables [..., masks, levels]`` under
        ``log_weights [..., masks]``."""
        return cast(CategoricalHead, self.head).parameters_of(
            (log_weights[..., None] + tables).logsumexp(dim=-2)
        )

    def _merged_pixels(self, told: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Parameters of the whole mixture, of the sets' ``told [batch, pixels, masks, size]`` and
        the symbols."""
        head, pixels = (
            cast(LogisticMixtureHead, self.one),
            x.flatten(1, 2)[:, :, None].expand(-1, -1, self.masks, -1),
        )
        steps = head.unroll(told, pixels, self.grid.channels)
        last = LogisticMixture(steps[-1], self.grid.levels)
        joint = steps[-1].chunk(3, dim=-1)[0] + last.components(pixels[..., -1])
        first = steps[0].chunk(3, dim=-1)[0].logsumexp(dim=-1)
        return self._merged_pixel(told, log_weights_before(joint.logsumexp(dim=-1) - first))

    def _merged_pixel(self, told: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        """Parameters ``[..., size]`` of the mixture of the sets' mixtures
        ``told [..., masks, size of a set]``."""
        head = cast(LogisticMixtureHead, self.one)
        told = told.unflatten(-1, (-1, head.components)).to(log_weights.dtype)
        weights = F.log_softmax(told[..., :1, :], dim=-1) + log_weights[..., None, None]
        return torch.cat([weights, told[..., 1:, :]], dim=-2).transpose(-3, -2).flatten(-3)

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> MADEState:
        classes = self.classes_of(self.condition(cond, batch))
        orders = self.degrees.argsort(dim=-1, stable=True)
        unit_bias = self._unit_bias(classes).expand(batch, -1, -1)
        wide = (
            unit_bias.float()
            if unit_bias.dtype not in (torch.float32, torch.float64)
            else unit_bias
        )
        return MADEState(
            pixel=None,
            weights=self._weights(orders),
            inputs=unit_bias.new_zeros(batch, len(self.owners)),
            units=[[unit_bias[:, i, order] for i, order in enumerate(of_set)] for of_set in orders],
            classes=classes,
            log_weights=wide.new_zeros(batch, self.masks).log_softmax(dim=-1),
        )

    def _weights(self, orders: torch.Tensor) -> Weights:
        hidden, direct = [], self.direct
        for of_set in orders:
            first, *rest = [
                layer.weight[order] for layer, order in zip(self._linear(), of_set, strict=True)
            ]
            hidden.append(
                [first, *(weight[:, of_set[i]].contiguous() for i, weight in enumerate(rest))]
            )
        places = torch.arange(self.places, device=self.degrees.device)
        return Weights(
            table=self.inputs.table(),
            hidden=hidden,
            ends=(self.degrees[:, :, None] <= places[:, None]).sum(-1).tolist(),
            output=[self.output[:, :, of_set[-1]].contiguous() for of_set in orders],
            direct=None if direct is None else direct.unflatten(0, (self.places, self.free)),
        )

    def learn(self, symbol: torch.Tensor, index: int, state: MADEState) -> None:
        width = self.inputs.width
        vectors = state.weights.table[index % self.grid.channels, symbol]
        state.inputs[:, index * width : (index + 1) * width] = vectors
        if self.masks == 1 or (index + 1) % self.group:
            return
        if isinstance(self.head, LogisticMixtureHead):
            mixture = LogisticMixture(state.pixel.current, self.grid.levels)
            joint = mixture.log_weights + mixture.components(symbol)
            log_weights = joint.unflatten(-1, (self.masks, -1)).logsumexp(dim=-1)
        else:
            assert state.told is not None
            chosen = symbol[:, None, None].expand(-1, self.masks, 1)
            log_weights = state.log_weights + state.told.gather(-1, chosen)[..., 0]
        state.log_weights = log_weights.log_softmax(dim=-1)

    def predict(self, place: int, state: MADEState) -> torch.Tensor:
        weights, known = state.weights, place * self.group * self.inputs.width
        bias = self._bias(state.classes, slice(place, place + 1))[:, 0]
        if weights.direct is not None:
            bias = torch.addmm(bias, state.inputs[:, :known], weights.direct[place, :, :known].T)
        sets = [
            self._of_set(self._advance_units(which, place, bias, state))
            for which in range(self.masks)
        ]
        if self.masks == 1:
            return sets[0]
        told = torch.stack(sets, dim=1)
        if self.head.joint:
            return self._merged_pixel(told.to(state.log_weights.dtype), state.log_weights)
        state.told = self.head.symbol(told).table()
        return self._merged_tables(state.told, state.log_weights)

    def _advance_units(
        self, which: int, place: int, bias: torch.Tensor, state: MADEState
    ) -> torch.Tensor:
        """Finish the units whose degree is ``place``, all of whose inputs are known now, and return
        what the set gives for the place, ``[batch, free]``."""
        weights = state.weights
        inputs = state.inputs[:, : place * self.group * self.inputs.width]
        for packed, ends, units in zip(
            weights.hidden[which], weights.ends[which], state.units[which], strict=True
        ):
            start, stop = ends[place - 1] if place else 0, ends[place]
            if stop > start:
                new = units[:, start:stop]
                new.copy_(F.silu(torch.addmm(new, inputs, packed[start:stop, : inputs.shape[1]].T)))
            inputs = units[:, :stop]
        return torch.addmm(bias, inputs, weights.output[which][place, :, : inputs.shape[1]].T)

    def sizes(self) -> dict[str, Any]:
        return {
            "layers": len(self.layers),
            "hidden": self.hidden,
            "masks": self.masks,
            "direct": self.direct is not None,
            "embedding": self.embedding,
            "dropout": self.dropout,
            "mask_seed": self.mask_seed,
        }

    def parameter_count(self) -> int:
        sides = [
            torch.stack([self.mask(m, i) for m in range(self.masks)]).any(0)
            for i in range(len(self.layers) + 1)
        ]
        masked = (
            sum(int((~side).sum()) for side in sides[:-1]) + int((~sides[-1]).sum()) * self.free
        )
        if self.direct is not None:
            past = self.owners <= torch.arange(self.places, device=self.device)[:, None]
            masked += int((~past).sum()) * self.free
        return super().parameter_count() - masked

    def receptive_field(self) -> torch.Tensor:
        fields = torch.stack([self._field(which) for which in range(self.masks)])
        field = fields.any(0)
        for one, other in combinations(range(self.masks), 2):
            # The odds of two sets are told by every place where they differ; they matter at later
            # ones that differ too.
            differ = torch.tensor([self._differ(one, other, place) for place in range(self.places)])
            telling = (
                fields[one] | fields[other] | torch.eye(self.places, dtype=torch.bool)
            ) & differ[:, None]
            field[1:] |= (telling.cumsum(0) > 0)[:-1] & differ[1:, None]
        return symbol_field(self.grid, field, inside=True) if self.head.joint else field

    def _field(self, which: int) -> torch.Tensor:
        """Which places a set's parameters of each place depend on: ``bool [places, places]``."""
        paths = torch.eye(self.places)[self.owners - 1].cpu()
        for i in range(len(self.layers) + 1):
            paths = (self.mask(which, i).cpu().float() @ paths).clamp(max=1)
        if self.direct is not None:
            paths += torch.ones_like(paths).tril(-1)
        return paths > 0

    def _differ(self, one: int, other: int, place: int) -> bool:
        """Whether two sets have other connections to a place."""
        active: torch.Tensor | None = None
        for i in reversed(range(len(self.layers) + 1)):
            rows = torch.tensor([place]) if active is None else active.nonzero()[:, 0]
            mine, theirs = self.mask(one, i).cpu()[rows], self.mask(other, i).cpu()[rows]
            if not torch.equal(mine, theirs):
                return True
            active = mine.any(0)
        return False


def log_weights_before(each: torch.Tensor) -> torch.Tensor:
    """``log w_m`` of each place, of the places' log-probabilities under each set: both
    ``[batch, places, masks]``.

    Sums are float64: thousands of places add up to numbers that leave float32 no digits for how the
    sets differ.
    """
    wide = each.double()
    return F.log_softmax(wide.cumsum(dim=1) - wide, dim=-1).to(each.dtype)
