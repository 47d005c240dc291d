"""A transformer that is told which place to predict, so that it can go through a grid in any order.

The sequence is a prefix (the class, or a learned vector) followed by all places but the last, in
the order of the walk. Each token holds a symbol, where it is, and which place comes next; the
output predicts that place. Telling each token its target is the idea of sigma-GPT (Pannatier,
Courdier and Fleuret 2024), and of the target-aware positions of RAR (Yu et al. 2024). It keeps the
attention causal, so that a cached step costs one token along any order; two-stream attention
(XLNet, Yang et al. 2019) needs two. Queries are rotated by the target and keys by the place of the
symbol (``tessella.nn.targeted_attention``). The blocks are those of ``transformer``: norms by root
mean square, SwiGLU, no biases.

A symbol is a token, or with a joint head a pixel. Steps compute in torch.

**Training** draws an order for every image of a step. A share of the images keeps raster order, in
which models are scored and sampled. A second share has a random part of the image first and then
the rest, both in raster order, as completions do: there are far fewer such orders than
permutations, and so more to learn about each (Shih, Sadigh and Ermon 2022, "Training and Inference
on Any-Order Autoregressive Models the Right Way"). The others are random permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head, JointHead
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import JointWalk
from tessella.models.order_agnostic_model import OrderAgnosticModel
from tessella.models.sequence_model import FlattenedModel
from tessella.nn import orders
from tessella.nn.attending_block import check_block_sizes, hidden_width, initialize_blocks
from tessella.nn.attention import RMSNorm
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.rotary import rotations
from tessella.nn.stepping.state import State
from tessella.nn.targeted_attention import PlaceVectors, TargetedBlock, Turns


@dataclass
class AnyOrderState(State):
    """The cached state of a walk along an order."""

    shared: ClassVar[frozenset[str]] = frozenset({"symbols", "targets", "sources"})

    walk: JointWalk
    """The walk of a joint head."""
    order: torch.Tensor
    """Places in the order of the walk, ``int64 [batch, places]``."""
    token: torch.Tensor
    """Sum of the vectors of the symbols of the newest place, ``[batch, width]``; at first the
    prefix."""
    keys: list[torch.Tensor]
    """Of each layer, ``[batch, heads, places, size]``; filled up to the newest token."""
    values: list[torch.Tensor]
    """Of each layer, like the keys."""
    symbols: torch.Tensor
    """Vector of every channel and level, ``[channels, levels, width]``."""
    targets: torch.Tensor
    """Vector of every place as the one to be predicted, ``[places, width]``."""
    sources: torch.Tensor
    """Vector of every place as that of a symbol, ``[places, width]``."""


class AnyOrderTransformer(FlattenedModel, OrderAgnosticModel):
    """``any-order``: a transformer that predicts the symbols of a grid in any order.

    So completions can see all that is known, see :func:`tessella.complete`.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: number of blocks.
        width: length of the vectors.
        heads: number of heads; ``4 * heads`` must divide ``width``.
        feedforward: width of the feed-forward parts; 0 means 8/3 of ``width``, rounded up to a
            multiple of 64.
        dropout: dropout rate of the tokens, and of the output of each part.
        raster_share: share of the images of a training step that keep raster order.
        known_first_share: share of the images of a training step that have a random part first,
            and then the rest.

    Raises:
        ConfigError: for sizes out of range, or that do not fit each other.
    """

    name = "any-order"

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        layers: int = 4,
        width: int = 64,
        heads: int = 4,
        feedforward: int = 0,
        dropout: float = 0.0,
        raster_share: float = 0.25,
        known_first_share: float = 0.5,
    ) -> None:
        super().__init__(grid, head, conditioning)
        check_block_sizes("any-order", layers, width, heads, feedforward, dropout)
        if raster_share < 0 or known_first_share < 0 or raster_share + known_first_share > 1:
            raise ConfigError(
                "any-order needs raster_share and known_first_share of at least 0 that add up to "
                f"at most 1, got {raster_share} and {known_first_share}"
            )
        self._sizes: dict[str, object] = {
            "layers": layers,
            "width": width,
            "heads": heads,
            "feedforward": feedforward,
            "dropout": dropout,
            "raster_share": raster_share,
            "known_first_share": known_first_share,
        }
        self.raster_share = raster_share
        self.known_first_share = known_first_share
        # Places of a pixel: its channels, unless a joint head takes them together.
        self.pixel_places = grid.channels // self.symbols_per_place
        self.embedding = SymbolEmbedding(grid, width)
        self.class_embedding = None
        if self.classes:
            self.class_embedding = ClassEmbedding(self.classes, width, std=0.5)
        # Without classes the prefix is one learned vector.
        self.start = None if self.classes else nn.Parameter(torch.randn(width) * 0.5)
        self.targets = PlaceVectors(grid, self.pixel_places, width)
        self.sources = PlaceVectors(grid, self.pixel_places, width)
        self.dropout = nn.Dropout(dropout)
        hidden = hidden_width(width, feedforward)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            self.blocks.append(TargetedBlock(width, heads, hidden, dropout))
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, self.free_size)
        # All channels of a pixel are rotated alike: [places, 2, size].
        cos_sin = rotations(grid.height, grid.width, width // heads)
        cos_sin = cos_sin.repeat_interleave(self.pixel_places, 0).to(torch.get_default_dtype())
        self.register_buffer("cos_sin", cos_sin, persistent=False)
        self.cos_sin: torch.Tensor
        self._initialize()

    def _initialize(self) -> None:
        """Initialize the weights from normal distributions, as ``transformer`` does."""
        initialize_blocks(self.blocks)
        # A fresh model starts near the head's preferred distribution.
        nn.init.normal_(self.output.weight, std=0.02)
        self.output.bias.data.copy_(self.free_bias())

    def _blocks(self) -> list[TargetedBlock]:
        return [block for block in self.blocks if isinstance(block, TargetedBlock)]

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        order = self._place_order(condition)  # [batch or 1, places]
        # The symbols in the order of the walk, each with its place: [batch, places, width].
        known = _in_order(self._vectors(x), order) + self.sources.table()[order]
        prefix = self._prefix(condition.labels, x.shape[0])
        tokens = torch.cat([prefix[:, None], known[:, :-1]], dim=1)
        tokens = self.dropout(tokens + self.targets.table()[order])
        turns = Turns.along(self.cos_sin, order)
        for block in self.blocks:
            tokens = self.recomputed(block, tokens, turns)
        parameters = self.parameters_from_free(self.output(self.norm(tokens)))
        # Back to where the places are in the grid.
        return self.on_grid(_in_order(parameters, order.argsort(dim=1)))

    def _place_order(self, condition: Condition) -> torch.Tensor:
        """The places in the order of the walk: ``int64 [batch, places]``; ``[1, places]`` for
        raster order."""
        if condition.order is None:
            return torch.arange(self.places, device=self.device)[None]
        return orders.of_places(condition.order, self.symbols_per_place)

    def _vectors(self, x: torch.Tensor) -> torch.Tensor:
        """The vector of the symbols of every place: ``[batch, places, width]``."""
        # The channels' tables are stacked: level k of channel c is row c * levels + k.
        first_row = torch.arange(self.grid.channels, device=x.device) * self.grid.levels
        vectors = F.embedding((x + first_row).flatten(1), self.embedding.table().flatten(0, 1))
        # With a joint head a place is a pixel, whose channels are summed.
        return vectors.unflatten(1, (self.places, self.symbols_per_place)).sum(2)

    def _prefix(self, labels: torch.Tensor | None, batch: int) -> torch.Tensor:
        """The token before the first place: ``[batch, width]``."""
        if self.class_embedding is not None:
            return self.class_embedding(labels)
        assert self.start is not None
        return self.start.expand(batch, -1)

    def training_condition(self, condition: Condition, batch: int) -> Condition:
        drawn = self._training_orders(batch)
        symbols = orders.of_symbols(drawn, self.symbols_per_place)
        return Condition(condition.labels, condition.codes, symbols.to(self.device))

    def _training_orders(self, batch: int) -> torch.Tensor:
        """Draw an order for each image of a step: ``int64 [batch, places]``.

        A step seeds the global generator, so a resumed run draws them again.
        """
        kind = torch.rand(batch, 1)
        is_raster = kind < self.raster_share
        is_known_first = kind < self.raster_share + self.known_first_share
        drawn = orders.random_permutations(batch, self.places, None)
        part_first = orders.known_first(self._training_masks(batch))
        drawn = torch.where(is_known_first, part_first, drawn)
        return torch.where(is_raster, torch.arange(self.places), drawn)

    def _training_masks(self, batch: int) -> torch.Tensor:
        """Draw what comes first in each image: ``bool [batch, places]``."""
        scattered = orders.scattered_masks(batch, self.places, None)
        rectangles = orders.rectangle_masks(batch, self.grid.height, self.grid.width, None)
        rectangles = rectangles.repeat_interleave(self.pixel_places, 1)
        return torch.where(torch.rand(batch, 1) < 0.5, scattered, rectangles)

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> AnyOrderState:
        condition = self.condition(cond, batch)
        prefix = self._prefix(condition.labels, batch).clone()
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for block in self._blocks():
            shape = (batch, block.heads, self.places, prefix.shape[1] // block.heads)
            keys.append(prefix.new_zeros(shape))
            values.append(prefix.new_zeros(shape))
        return AnyOrderState(
            walk=JointWalk(),
            order=self._place_order(condition).expand(batch, -1).clone(),
            token=prefix,
            keys=keys,
            values=values,
            symbols=self.embedding.table(),
            targets=self.targets.table(),
            sources=self.sources.table(),
        )

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        assert isinstance(state, AnyOrderState)
        # The previous symbol has just become known.
        if index:
            self._observe(previous, index - 1, state)
        place, within = divmod(index, self.symbols_per_place)
        parameters = self._predict(place, state) if within == 0 else None
        if not isinstance(self.head, JointHead):
            assert parameters is not None
            return parameters, state
        # One prediction is made for each pixel, and the head turns it into its channels, in order.
        return self.walk_pixel(parameters, previous, index, state.walk), state

    def _observe(self, symbol: torch.Tensor, index: int, state: AnyOrderState) -> None:
        """Add the vector of a symbol that has become known to the token of its place."""
        number, within = divmod(index, self.symbols_per_place)
        place = state.order[:, number]  # [batch]
        # A place is a channel with a factored head, and all channels of a pixel with a joint one.
        channel = place % self.pixel_places + within
        # The token of a place starts anew with its first symbol.
        if within == 0:
            state.token.copy_(state.sources[place])
        state.token.add_(state.symbols[channel, symbol])

    def _predict(self, number: int, state: AnyOrderState) -> torch.Tensor:
        """Parameters of the place that comes as ``number``: ``[batch, size]``."""
        target = state.order[:, number]
        queries = self.cos_sin[target]  # [batch, 2, size]
        if number:
            keys = self.cos_sin[state.order[:, number - 1]]
        else:
            keys = torch.zeros_like(queries)
        turns = Turns(queries[:, None, None], keys[:, None, None])
        x = state.token + state.targets[target]
        for layer, block in enumerate(self._blocks()):
            x = block.step(x, turns, number, state.keys[layer], state.values[layer])
        return self.parameters_from_free(self.output(self.norm(x)))

    def output_weights(self) -> Sequence[torch.Tensor]:
        return [self.output.weight]

    def last_layers(self) -> Sequence[nn.Module]:
        return [self.output]

    def sizes(self) -> dict[str, object]:
        return dict(self._sizes)


def _in_order(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """``values [batch, places, size]`` in an order ``[batch or 1, places]`` of the places."""
    # len(values) would fix the batch of an exported graph.
    index = order[..., None].expand(values.shape[0], -1, values.shape[2])
    return values.gather(1, index)
