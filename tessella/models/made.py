"""Masked autoencoder for distribution estimation, MADE (Germain et al. 2015).

Each hidden unit has a degree. A unit of degree ``d`` sees only the first ``d`` places (eq. 8 and
12), and the output of place ``t`` sees only units of degree ``t`` or less (eq. 9 and 13, whose
``d`` counts places from 1). Places are always in raster order. A *set* of degrees assigns one to
every hidden unit; the ``masks`` sets differ in their connectivity (sec. 4.4) and share the weights.

The model is the average of the joint distributions of the ``M`` sets,
``p(x) = 1/M sum over m of p_m(x)`` (sec. 4.4). Training and scoring use the likelihood of this
average. (The paper draws one set for each batch instead, which maximizes a lower bound.) The
conditional distributions are mixtures, ``p(x_t | x_<t) = sum over m of w_m p_m(x_t | x_<t)``, with
weights ``w_m`` proportional to ``p_m(x_<t)``. With a joint head, each set makes a share of the
mixture's components, whose weights are multiplied by ``w_m``. Hidden units are SiLU (ReLU in the
paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import AveragingJointHead, FactoredHead, Head
from tessella.models.condition import UNCONDITIONAL, Condition, Conditioning
from tessella.models.density_model import JointWalk
from tessella.models.program_model import ProgramState
from tessella.models.receptive_fields import symbol_field
from tessella.models.sequence_model import (
    MASKED_TRAINING_BYTES,
    SequenceModel,
    SymbolInputs,
)
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.made_layers import UnitLayer
from tessella.nn.sequence_step import SequenceStep, place_variables, write_known
from tessella.nn.stepping.memory import Operand, Vectors
from tessella.nn.stepping.runs import SteppedSymbols
from tessella.nn.stepping.state import State
from tessella.nn.stepping.step import MemoryAllocator, StateMemory


@dataclass
class MADEState(ProgramState):
    """The cached state of a walk, which knows the weights of the sets of degrees."""

    log_weights: torch.Tensor = field(kw_only=True)
    """``log w_m`` of each set given the known symbols: ``[batch, masks]``."""
    tables: torch.Tensor | None = None
    """Log-probabilities at the newest place under each set: ``[batch, masks, levels]``."""


class MADE(SequenceModel):
    """``made``: a masked autoencoder; each hidden unit sees only the first few symbols.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: number of hidden layers.
        hidden: units in a hidden layer.
        masks: number of sets of degrees whose distributions are averaged.
        direct: whether to add direct connections from inputs to outputs (sec. 4.1).
        embedding: length of the vectors of symbols, if there are more than two levels.
        dropout: dropout rate of the hidden units.
        mask_seed: seed of the degrees.

    Raises:
        ConfigError: for sizes out of range, a grid whose matrices are too large, a number of
            mixture components that does not divide by ``masks``, or several masks with a head that
            cannot express an average.
    """

    name = "made"
    undecayed = ("bias",)  # weight decay must not shrink the biases of places
    pass_is_cheap = True
    # The programs leave only an average over the sets to do, which `SteppedSymbols.sets` tells of.
    programs_are_final = True

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
        # With a joint head, the sets share out the components, so each makes fewer parameters.
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
        # Not saved: they are drawn again from the seed when a model is loaded.
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
        """Draw the degrees of all units: ``int64 [masks, layers, hidden]``.

        No degree is below the least degree of the layer before (sec. 4.2).
        """
        generator = torch.Generator().manual_seed(self.mask_seed)
        largest = max(self.places - 1, 1)
        degrees = torch.empty(self.masks, layers, self.hidden, dtype=torch.int64)
        for set_degrees in degrees:
            least = 1
            for layer_degrees in set_degrees:
                # Draw on the CPU, even if the model is built on the meta device.
                drawn = torch.randint(
                    least, largest + 1, (self.hidden,), generator=generator, device="cpu"
                )
                layer_degrees.copy_(drawn)
                least = int(drawn.min())
        return degrees

    def mask(self, set_index: int, layer: int) -> torch.Tensor:
        """Which units of a layer see which units (or inputs) of the layer before.

        Args:
            set_index: index of the set of degrees.
            layer: index of the hidden layer; ``layers`` stands for the output, whose units are the
                places.

        Returns:
            ``bool [units, inputs]``.
        """
        # A unit sees units of its own degree and below. A place sees units of degrees up to its
        # index, which depend only on earlier places.
        degrees = self.degrees[set_index]
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
        for set_index in range(self.masks):
            sets.append(self.recomputed(self._network, inputs, unit_bias, bias, set_index))
        if self.masks == 1:
            return self.on_grid(sets[0])
        parameters = torch.stack(sets, dim=2)  # [batch, places, masks, size]
        return self.on_grid(self._average(parameters, x))

    def _earlier_inputs(self) -> torch.Tensor:
        """Which inputs come before each place: ``bool [places, inputs]``."""
        places = torch.arange(self.places, device=self.input_degrees.device)
        return self.input_degrees <= places[:, None]

    def _unit_bias(self, classes: torch.Tensor | slice) -> torch.Tensor:
        """Biases of the hidden units: ``[batch or 1, layers, hidden]``."""
        bias = torch.stack([layer.bias for layer in self._linear()])[None]
        if self.class_units is not None:
            bias = bias + self.class_units.weight[classes].unflatten(1, bias.shape[1:])
        return bias

    def _bias(self, classes: torch.Tensor | slice, places: slice) -> torch.Tensor:
        """Biases of the outputs of some places: ``[batch or 1, places, free_size]``."""
        bias = self.bias[None, places]
        if self.class_bias is not None:
            part = slice(places.start * self.free_size, places.stop * self.free_size)
            bias = bias + self.class_bias.weight[classes, part].unflatten(1, bias.shape[1:])
        return bias

    def _linear(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def _network(
        self, inputs: torch.Tensor, unit_bias: torch.Tensor, bias: torch.Tensor, set_index: int
    ) -> torch.Tensor:
        """Run the network with the masks of one set of degrees.

        Args:
            inputs: ``[batch, symbols * embedding]``.
            unit_bias: ``[batch or 1, layers, hidden]``.
            bias: ``[batch or 1, places, free_size]``.
            set_index: index of the set.

        Returns:
            Parameters of the set's head, ``[batch, places, size of a set]``.
        """
        units = inputs  # [batch, features of this layer]
        for i, layer in enumerate(self._linear()):
            sums = F.linear(units, layer.weight * self.mask(set_index, i)) + unit_bias[:, i]
            units = self.drop(F.silu(sums))
        weights = self.output * self.mask(set_index, len(self.layers))[:, None]
        free = F.linear(units, weights.flatten(0, 1)).unflatten(1, (self.places, self.free_size))
        return self._set_parameters(free + bias)

    def _set_parameters(self, free: torch.Tensor) -> torch.Tensor:
        """Add the fixed parameters of a set's head: ``[..., free_size]`` to ``[..., size]``."""
        return F.pad(free, (self.set_head.size - self.free_size, 0))

    def _average(self, parameters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Parameters of the average of all sets.

        Args:
            parameters: parameters of each set, ``[batch, places, masks, size of a set]``.
            x: ``int64 [batch, height, width, channels]``.

        Returns:
            ``[batch, places, size]``.
        """
        if isinstance(self.set_head, AveragingJointHead):
            # Every set scores the same pixels: [batch, pixels, masks, channels].
            pixels = x.flatten(1, 2)[:, :, None].expand(-1, -1, self.masks, -1)
            log_probs = self.set_head.pixel_log_prob(parameters, pixels)
            return self._average_pixels(parameters, log_weights_before(log_probs))
        tables = self.set_head.symbol(parameters).table()  # [batch, places, masks, levels]
        chosen = x.flatten(1)[..., None, None].expand(-1, -1, self.masks, 1)
        log_probs = tables.gather(-1, chosen)[..., 0]
        return self._average_tables(tables, log_weights_before(log_probs))

    def _average_tables(self, tables: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        """Parameters ``[..., size]`` of a weighted average, for factored heads.

        Args:
            tables: log-probabilities under each set, ``[..., masks, levels]``.
            log_weights: ``[..., masks]``.
        """
        assert isinstance(self.head, FactoredHead)
        mixed = (log_weights[..., None] + tables).logsumexp(dim=-2)
        return self.head.parameters_from_table(mixed)

    def _average_pixels(self, parameters: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        """Parameters ``[..., size]`` of a weighted average, for joint heads.

        Args:
            parameters: parameters of each set's mixture, ``[..., masks, size of a set]``.
            log_weights: ``[..., masks]``.
        """
        assert isinstance(self.head, AveragingJointHead)
        return self.head.average(parameters, log_weights)

    def new_state(self, memory: StateMemory, labels: torch.Tensor | None, batch: int) -> MADEState:
        # The weights of the sets are float32 or wider, like all arithmetic of heads.
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        weights = self.bias.new_zeros(batch, self.masks, dtype=dtype).log_softmax(dim=-1)
        return MADEState(JointWalk(), labels, memory, log_weights=weights)

    def write(self, memory: MemoryAllocator, labels: torch.Tensor | None) -> SequenceStep:
        classes = slice(0, 1) if labels is None else labels
        unit_bias = self._unit_bias(classes).expand(memory.batch, -1, -1)
        sets = [self._unit_layers(set_index) for set_index in range(self.masks)]
        values = place_variables(self.places, self.symbols_per_place * self.inputs.width)
        for layers in sets:
            for layer in layers:
                values |= layer.variables
        # The parameters of all sets, one after the other.
        step = self.new_step(memory, values, self.masks * self.set_head.size)
        known = write_known(step, self.inputs.table(), self.places)
        straight = None
        if self.direct is not None:
            straight = step.every.zeros(self.free_size)
            weights = memory.table(self.direct).unflatten(0, (self.places, -1)).transpose(1, 2)
            step.every.product(known, Vectors(weights).at("place"), straight, known="known")
        outs = []
        for set_index, layers in enumerate(sets):
            units, counted = self._write_units(step, known, layers, unit_bias)
            # [places, free, units], the units in the order in which they become known.
            weights = memory.table(layers[-1].sorted_inputs(self.output))
            weight = Vectors(weights.transpose(1, 2)).at("place")
            # Parameters that are not computed stay zero.
            stop = (set_index + 1) * self.set_head.size
            out = step.parameters[:, stop - self.free_size : stop]
            step.every.product(units, weight, out, add=straight, known=counted)
            outs.append(out)
        step.write_bias(labels, self._bias(slice(None), slice(0, self.places)), outs)
        return step

    def write_programs(self, state: ProgramState, batch: int) -> SteppedSymbols:
        return replace(super().write_programs(state, batch), sets=self.masks)

    def _unit_layers(self, set_index: int) -> list[UnitLayer]:
        """The hidden layers of a set of degrees, for a step."""
        layers = []
        for i, degrees in enumerate(self.degrees[set_index]):
            layers.append(UnitLayer(f"{set_index}-{i}", degrees, self.places))
        return layers

    def _write_units(
        self, step: SequenceStep, x: Operand, layers: Sequence[UnitLayer], bias: torch.Tensor
    ) -> tuple[Operand, str]:
        """Append the hidden layers of a set of degrees to a step.

        Args:
            step: the step to write to.
            x: the inputs known, ``[batch, features]``.
            layers: result of :meth:`_unit_layers`.
            bias: biases of all units, ``[batch, layers, hidden]``.

        Returns:
            The units of the last layer, ``[batch, hidden]``, and the name of the variable that
            counts those that are known.
        """
        known = "known"
        before = None
        for i, (linear, layer) in enumerate(zip(self._linear(), layers, strict=True)):
            weight = linear.weight.index_select(0, layer.order)
            if before is not None:
                weight = before.sorted_inputs(weight)
            x = layer.write(step, x, known, weight, bias[:, i, layer.order])
            known = layer.known
            before = layer
        return x, known

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        # The place before is complete, so update the weights of the sets by Bayes' rule.
        if self.masks > 1 and index and index % self.symbols_per_place == 0:
            assert isinstance(state, MADEState)
            self._update_weights(previous, state)
        return super().step(previous, index, state)

    def _update_weights(self, symbol: torch.Tensor, state: MADEState) -> None:
        """Update the weights of the sets with the last symbol of a place, ``int64 [batch]``."""
        if isinstance(self.head, AveragingJointHead):
            assert state.walk.pixel is not None
            log_weights = self.head.log_weights_after(symbol, state.walk.pixel, self.masks)
        else:
            assert state.tables is not None
            chosen = symbol[:, None, None].expand(-1, self.masks, 1)
            log_weights = state.log_weights + state.tables.gather(-1, chosen)[..., 0]
        state.log_weights = log_weights.log_softmax(dim=-1)

    def finished(self, parameters: torch.Tensor, state: State) -> torch.Tensor:
        if self.masks == 1:
            return parameters
        assert isinstance(state, MADEState)
        parameters = parameters.unflatten(1, (self.masks, -1))  # [batch, masks, size]
        if self.head.joint:
            wide = parameters.to(state.log_weights.dtype)
            return self._average_pixels(wide, state.log_weights)
        # Kept for the next step, which updates the weights of the sets once the symbol is known.
        state.tables = self.set_head.symbol(parameters).table()
        return self._average_tables(state.tables, state.log_weights)

    def output_weights(self) -> Sequence[torch.Tensor]:
        if self.direct is None:
            return [self.output]
        return [self.output, self.direct]

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
            # A weight counts if any set of degrees uses it.
            used = torch.stack(
                [self.mask(set_index, layer) for set_index in range(self.masks)]
            ).any(0)
            weights_each = self.free_size if layer == len(self.layers) else 1
            masked += int((~used).sum()) * weights_each
        if self.direct is not None:
            masked += int((~self._earlier_inputs()).sum()) * self.free_size
        return super().parameter_count() - masked

    def receptive_field(self) -> torch.Tensor:
        # If the weights of the sets were constant, the union of the sets' fields would be all.
        fields = torch.stack([self._field(set_index) for set_index in range(self.masks)])
        field = fields.any(0)
        for one, other in combinations(range(self.masks), 2):
            # The odds of two sets change at every place where the sets differ. They influence the
            # prediction of all later places where the sets differ too.
            differ = torch.tensor([self._differ(one, other, place) for place in range(self.places)])
            seen = fields[one] | fields[other] | torch.eye(self.places, dtype=torch.bool)
            changes_odds = seen & differ[:, None]
            changed_before = changes_odds.cumsum(0) > 0
            field[1:] |= changed_before[:-1] & differ[1:, None]
        if self.head.joint:
            return symbol_field(self.grid, field, inside=True)
        return field

    def _field(self, set_index: int) -> torch.Tensor:
        """Receptive field of one set, over places: ``bool [places, places]``.

        Row ``t``, column ``s`` is True if the parameters of place ``t`` depend on place ``s``.
        """
        paths = torch.eye(self.places)[self.input_degrees - 1].cpu()  # [inputs, places]
        for i in range(len(self.layers) + 1):
            # Extend the paths through the layer. Only whether there is one matters.
            paths = (self.mask(set_index, i).cpu().float() @ paths).clamp(max=1)
        if self.direct is not None:
            paths += torch.ones_like(paths).tril(-1)
        return paths > 0

    def _differ(self, one: int, other: int, place: int) -> bool:
        """Whether two sets of degrees have different connections that lead to a place."""
        # Going from the output to the inputs, the units that reach the place.
        active: torch.Tensor | None = None
        for i in reversed(range(len(self.layers) + 1)):
            rows = torch.tensor([place]) if active is None else active.nonzero()[:, 0]
            mine = self.mask(one, i).cpu()[rows]
            theirs = self.mask(other, i).cpu()[rows]
            if not torch.equal(mine, theirs):
                return True
            active = mine.any(0)
        return False


def log_weights_before(log_probs: torch.Tensor) -> torch.Tensor:
    """``log w_m`` at each place, given the symbols before it.

    Args:
        log_probs: log-probability of each place under each set, ``[batch, places, masks]``.

    Returns:
        The same shape.
    """
    # In float64: the sum over thousands of places is so large that float32 would have no digits
    # left for the differences between sets.
    wide = log_probs.double()
    before = wide.cumsum(dim=1) - wide
    return F.log_softmax(before, dim=-1).to(log_probs.dtype)
