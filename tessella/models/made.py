"""Masked autoencoder for distribution estimation (Germain et al. 2015).

Hidden units have degrees: a unit of degree ``d`` sees the first ``d`` places only (eq. 8 and 12),
the output of place ``t`` sees units of degree ``t`` and less (eq. 9 and 13, whose ``d`` counts
places from 1). The order is always the raster order; the ``masks`` sets of degrees differ in their
connectivity (sec. 4.4). All sets share the weights.

The model is the average of the joint distributions of the ``M`` sets,
``p(x) = 1/M sum over m of p_m(x)`` (sec. 4.4), and it is the likelihood of this average that is
scored and trained. (The paper draws one set for each batch instead, which maximizes a lower bound.)
Its conditionals are mixtures, ``p(x_t | x_<t) = sum over m of w_m p_m(x_t | x_<t)``, with weights
``w_m`` proportional to ``p_m(x_<t)``. With a joint head each set makes a share of the mixture's
components, and the weights ``w_m`` go into the weights of the components. Hidden units are SiLU
(ReLU in the paper).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import AveragingJointHead, FactoredHead, Head
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import symbol_field
from tessella.models.sequence_model import (
    MASKED_TRAINING_BYTES,
    SequenceModel,
    SequenceState,
    SymbolInputs,
)
from tessella.nn.condition_embedding import ClassEmbedding


@dataclass
class MADEWeights:
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
    """The known part of the inputs and the hidden units."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})

    weights: MADEWeights
    inputs: torch.Tensor
    """``[batch, symbols * embedding]``, zero for the symbols to come."""
    units: list[list[torch.Tensor]]
    """Of each set and layer, activations by degree; before they are final, biases:
    ``[batch, units]``."""
    classes: torch.Tensor | slice
    """Rows of the classes' biases that the images take."""
    log_weights: torch.Tensor
    """``log w_m`` of the sets given the known symbols: ``[batch, masks]``."""
    tables: torch.Tensor | None = None
    """Log-probabilities of the last place under each set: ``[batch, masks, levels]``."""


class MADE(SequenceModel[MADEState]):
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
            mixture components that do not divide by the masks; or several masks with a head that
            cannot average.
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
                "made needs layers, hidden, masks and embedding of at least 1 and "
                f"0 <= dropout < 1, got layers={layers}, hidden={hidden}, masks={masks}, "
                f"embedding={embedding}, dropout={dropout}"
            )
        self.hidden = hidden
        self.masks = masks
        self.embedding = embedding
        self.dropout = dropout
        self.mask_seed = mask_seed
        # With a joint head, the components are divided among the sets, so each makes fewer numbers.
        self.set_head = self._create_set_head()
        """The head whose parameters the network makes for each set of degrees."""
        if head.joint:
            self.free_size //= masks
        self.inputs = SymbolInputs(grid, embedding)
        features = grid.symbols * self.inputs.width
        outputs = self.places * self.free_size
        largest_hidden = hidden * max(hidden, features)
        largest_output = outputs * (features if direct else hidden)
        self.check_matrix(
            max(largest_hidden, largest_output),
            "take a smaller grid, fewer levels, smaller sizes, direct=False, "
            "or head='logistic-mixture'",
            MASKED_TRAINING_BYTES,
        )
        self.check_biases()
        # Made from the seed when a model is loaded, so they are not saved.
        self.register_buffer("degrees", self._draw_degrees(layers), persistent=False)
        self.degrees: torch.Tensor
        # The degree of each input: its place, counted from 1.
        input_degrees = torch.arange(self.places).repeat_interleave(features // self.places) + 1
        self.register_buffer("input_degrees", input_degrees, persistent=False)
        self.input_degrees: torch.Tensor
        self.layers = nn.ModuleList()
        for i in range(layers):
            self.layers.append(nn.Linear(hidden if i else features, hidden))
        self.output = nn.Parameter(
            torch.randn(self.places, self.free_size, hidden) * 0.3 * hidden**-0.5
        )
        self.direct: nn.Parameter | None = None
        if direct:
            self.direct = nn.Parameter(torch.randn(outputs, features) * 0.2 * features**-0.5)
        bias = self.set_head.bias()[-self.free_size :]
        self.bias = nn.Parameter(bias.repeat(self.places, 1))
        self.class_units = ClassEmbedding(self.classes, layers * hidden) if self.classes else None
        self.class_bias = ClassEmbedding(self.classes, outputs) if self.classes else None
        self.drop = nn.Dropout(dropout)

    def _create_set_head(self) -> Head:
        """The head whose parameters the network makes for each set of degrees."""
        if self.masks == 1 or isinstance(self.head, FactoredHead):
            return self.head
        if isinstance(self.head, AveragingJointHead):
            return self.head.part_of_average(self.masks)
        raise ConfigError(
            f"made averages masks={self.masks} under a head for each symbol or a mixture of "
            f"logistics, whose components it divides; with head={self.head.name!r} take masks=1"
        )

    def _draw_degrees(self, layers: int) -> torch.Tensor:
        """Degrees of the units of each set and layer: ``int64 [masks, layers, hidden]``; none is
        below the least of the layer before (sec. 4.2)."""
        generator = torch.Generator().manual_seed(self.mask_seed)
        largest = max(self.places - 1, 1)
        degrees = torch.empty(self.masks, layers, self.hidden, dtype=torch.int64)
        for set_degrees in degrees:
            least = 1
            for layer_degrees in set_degrees:
                # On the CPU even where the model is built without memory, on the meta device.
                drawn = torch.randint(
                    least, largest + 1, (self.hidden,), generator=generator, device="cpu"
                )
                layer_degrees.copy_(drawn)
                least = int(drawn.min())
        return degrees

    def mask(self, which: int, layer: int) -> torch.Tensor:
        """Which units of a layer see which inputs, ``bool [units, inputs]``; past the last layer
        which places do."""
        # A unit sees units of its degree and below; a place sees units of degrees up to its index,
        # that is, of the places before it.
        degrees = self.degrees[which]
        before = degrees[layer - 1] if layer else self.input_degrees
        if layer < len(degrees):
            after = degrees[layer]
        else:
            after = torch.arange(self.places, device=degrees.device)
        return before <= after[:, None]

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        inputs = self.inputs(x).flatten(1)
        classes = self.class_rows(condition)
        unit_bias = self._unit_bias(classes)
        bias = self._bias(classes, slice(0, self.places))
        if self.direct is not None:
            weights = self.direct.unflatten(0, (self.places, self.free_size))
            weights = weights * self._earlier_inputs()[:, None]
            straight = F.linear(inputs, weights.flatten(0, 1))
            bias = bias + straight.unflatten(1, (self.places, self.free_size))
        # All sets share weights, inputs and biases; only the masks differ.
        sets = []
        for which in range(self.masks):
            sets.append(self.recomputed(self._network, inputs, unit_bias, bias, which))
        if self.masks == 1:
            return self.on_grid(sets[0])
        parameters = torch.stack(sets, dim=2)  # [batch, places, masks, size]
        return self.on_grid(self._average(parameters, x))

    def _earlier_inputs(self) -> torch.Tensor:
        """Which inputs come before each place: ``bool [places, inputs]``."""
        places = torch.arange(self.places, device=self.input_degrees.device)
        return self.input_degrees <= places[:, None]

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
            part = slice(places.start * self.free_size, places.stop * self.free_size)
            bias = bias + self.class_bias.weight[classes, part].unflatten(1, bias.shape[1:])
        return bias

    def _linear(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def _network(
        self, inputs: torch.Tensor, unit_bias: torch.Tensor, bias: torch.Tensor, which: int
    ) -> torch.Tensor:
        """Parameters ``[batch, places, size]`` by one set of degrees."""
        units = inputs  # [batch, features of this layer]
        for i, layer in enumerate(self._linear()):
            sums = F.linear(units, layer.weight * self.mask(which, i)) + unit_bias[:, i]
            units = self.drop(F.silu(sums))
        weights = self.output * self.mask(which, len(self.layers))[:, None]
        free = F.linear(units, weights.flatten(0, 1)).unflatten(1, (self.places, self.free_size))
        return self._set_parameters(free + bias)

    def _set_parameters(self, free: torch.Tensor) -> torch.Tensor:
        """``[..., free]`` to parameters of a set's head, ``[..., size]``."""
        return F.pad(free, (self.set_head.size - self.free_size, 0))

    def _average(self, parameters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Parameters of the average of the sets, each place given the symbols before it.

        Args:
            parameters: of the sets, ``[batch, places, masks, size of a set]``.
            x: ``int64 [batch, height, width, channels]``.
        """
        if isinstance(self.set_head, AveragingJointHead):
            # The same pixels for each set: [batch, pixels, masks, channels].
            pixels = x.flatten(1, 2)[:, :, None].expand(-1, -1, self.masks, -1)
            each = self.set_head.pixel_log_prob(parameters, pixels)
            return self._average_pixels(parameters, log_weights_before(each))
        tables = self.set_head.symbol(parameters).table()  # [batch, places, masks, levels]
        chosen = x.flatten(1)[..., None, None].expand(-1, -1, self.masks, 1)
        each = tables.gather(-1, chosen)[..., 0]
        return self._average_tables(tables, log_weights_before(each))

    def _average_tables(self, tables: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        """Parameters of the mixture of ``tables [..., masks, levels]`` under
        ``log_weights [..., masks]``."""
        assert isinstance(self.head, FactoredHead)
        mixed = (log_weights[..., None] + tables).logsumexp(dim=-2)
        return self.head.parameters_from_table(mixed)

    def _average_pixels(self, parameters: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        """Parameters of the mixture of the sets' mixtures ``[..., masks, size of a set]`` under
        ``log_weights [..., masks]``."""
        assert isinstance(self.head, AveragingJointHead)
        return self.head.average(parameters, log_weights)

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> MADEState:
        classes = self.class_rows(self.condition(cond, batch))
        # Units in the order of their degrees, so that those known at a place are the first ones.
        orders = self.degrees.argsort(dim=-1, stable=True)
        unit_bias = self._unit_bias(classes).expand(batch, -1, -1)
        units = []
        for set_orders in orders:
            units.append([unit_bias[:, i, order] for i, order in enumerate(set_orders)])
        # The weights of the sets are float32 or wider, as all arithmetic of heads.
        dtype = torch.promote_types(unit_bias.dtype, torch.float32)
        equal_weights = unit_bias.new_zeros(batch, self.masks, dtype=dtype).log_softmax(dim=-1)
        return MADEState(
            pixel=None,
            weights=self._weights(orders),
            inputs=unit_bias.new_zeros(batch, len(self.input_degrees)),
            units=units,
            classes=classes,
            log_weights=equal_weights,
        )

    def _weights(self, orders: torch.Tensor) -> MADEWeights:
        hidden = []
        output = []
        for set_orders in orders:
            weights = []
            for i, layer in enumerate(self._linear()):
                weight = layer.weight[set_orders[i]]
                if i:
                    # The units of the layer before are sorted as well.
                    weight = weight[:, set_orders[i - 1]].contiguous()
                weights.append(weight)
            hidden.append(weights)
            output.append(self.output[:, :, set_orders[-1]].contiguous())
        places = torch.arange(self.places, device=self.degrees.device)
        # [masks, layers, places]: since units are sorted, a count is also where they end.
        ends = (self.degrees[:, :, None] <= places[:, None]).sum(-1).tolist()
        direct = None
        if self.direct is not None:
            direct = self.direct.unflatten(0, (self.places, self.free_size))
        return MADEWeights(self.inputs.table(), hidden, ends, output, direct)

    def observe(self, symbol: torch.Tensor, index: int, state: MADEState) -> None:
        width = self.inputs.width
        vectors = state.weights.table[index % self.grid.channels, symbol]
        state.inputs[:, index * width : (index + 1) * width] = vectors
        if self.masks == 1 or (index + 1) % self.symbols_per_place:
            return
        # The place is complete: Bayes' rule for the weights of the sets.
        if isinstance(self.head, AveragingJointHead):
            assert state.pixel is not None
            log_weights = self.head.log_weights_after(symbol, state.pixel, self.masks)
        else:
            assert state.tables is not None
            chosen = symbol[:, None, None].expand(-1, self.masks, 1)
            log_weights = state.log_weights + state.tables.gather(-1, chosen)[..., 0]
        state.log_weights = log_weights.log_softmax(dim=-1)

    def predict(self, place: int, state: MADEState) -> torch.Tensor:
        weights = state.weights
        # Of the inputs, those of the places before.
        known = place * self.symbols_per_place * self.inputs.width
        bias = self._bias(state.classes, slice(place, place + 1))[:, 0]
        if weights.direct is not None:
            bias = torch.addmm(bias, state.inputs[:, :known], weights.direct[place, :, :known].T)
        sets = []
        for which in range(self.masks):
            sets.append(self._set_parameters(self._advance_units(which, place, bias, state)))
        if self.masks == 1:
            return sets[0]
        parameters = torch.stack(sets, dim=1)  # [batch, masks, size]
        if self.head.joint:
            wide = parameters.to(state.log_weights.dtype)
            return self._average_pixels(wide, state.log_weights)
        # Kept for the moment when the symbol is known and the sets are weighed anew.
        state.tables = self.set_head.symbol(parameters).table()
        return self._average_tables(state.tables, state.log_weights)

    def _advance_units(
        self, which: int, place: int, bias: torch.Tensor, state: MADEState
    ) -> torch.Tensor:
        """Finish the units whose degree is ``place``, all of whose inputs are known now.

        Returns:
            The set's free parameters of the place, ``[batch, free]``.
        """
        weights = state.weights
        inputs = state.inputs[:, : place * self.symbols_per_place * self.inputs.width]
        layers = zip(weights.hidden[which], weights.ends[which], state.units[which], strict=True)
        for packed, ends, units in layers:
            start = ends[place - 1] if place else 0
            stop = ends[place]
            if stop > start:
                new = units[:, start:stop]  # biases so far
                rows = packed[start:stop, : inputs.shape[1]]
                new.copy_(F.silu(torch.addmm(new, inputs, rows.T)))
            inputs = units[:, :stop]
        return torch.addmm(bias, inputs, weights.output[which][place, :, : inputs.shape[1]].T)

    def sizes(self) -> dict[str, object]:
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
        masked = 0
        for layer in range(len(self.layers) + 1):
            # A weight counts where any set of degrees uses it.
            used = torch.stack([self.mask(which, layer) for which in range(self.masks)]).any(0)
            weights_each = self.free_size if layer == len(self.layers) else 1
            masked += int((~used).sum()) * weights_each
        if self.direct is not None:
            masked += int((~self._earlier_inputs()).sum()) * self.free_size
        return super().parameter_count() - masked

    def receptive_field(self) -> torch.Tensor:
        # Where the weights of the sets did not matter, the union of their fields would be all.
        fields = torch.stack([self._field(which) for which in range(self.masks)])
        field = fields.any(0)
        for one, other in combinations(range(self.masks), 2):
            # The odds of two sets change with every place where they differ, and matter at later
            # places that differ too.
            differ = torch.tensor([self._differ(one, other, place) for place in range(self.places)])
            seen = fields[one] | fields[other] | torch.eye(self.places, dtype=torch.bool)
            changes_odds = seen & differ[:, None]
            changed_before = changes_odds.cumsum(0) > 0
            field[1:] |= changed_before[:-1] & differ[1:, None]
        if self.head.joint:
            return symbol_field(self.grid, field, inside=True)
        return field

    def _field(self, which: int) -> torch.Tensor:
        """Which places a set's parameters of each place depend on: ``bool [places, places]``."""
        paths = torch.eye(self.places)[self.input_degrees - 1].cpu()  # [inputs, places]
        for i in range(len(self.layers) + 1):
            # A path through the layer, counted as one however many there are.
            paths = (self.mask(which, i).cpu().float() @ paths).clamp(max=1)
        if self.direct is not None:
            paths += torch.ones_like(paths).tril(-1)
        return paths > 0

    def _differ(self, one: int, other: int, place: int) -> bool:
        """Whether two sets have other connections to a place."""
        # From the output down, the units that reach the place.
        active: torch.Tensor | None = None
        for i in reversed(range(len(self.layers) + 1)):
            rows = torch.tensor([place]) if active is None else active.nonzero()[:, 0]
            mine = self.mask(one, i).cpu()[rows]
            theirs = self.mask(other, i).cpu()[rows]
            if not torch.equal(mine, theirs):
                return True
            active = mine.any(0)
        return False


def log_weights_before(each: torch.Tensor) -> torch.Tensor:
    """``log w_m`` of each place, from the places' log-probabilities under each set: both
    ``[batch, places, masks]``.

    Sums are float64: thousands of places add up to numbers that leave float32 no digits for how the
    sets differ.
    """
    wide = each.double()
    before = wide.cumsum(dim=1) - wide
    return F.log_softmax(before, dim=-1).to(each.dtype)
