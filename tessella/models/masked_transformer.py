"""A transformer that sees a grid in both directions and predicts its masked symbols (MaskGIT).

Chang et al. 2022, "MaskGIT: Masked Generative Image Transformer". A token stands for a symbol, and
holds its vector, or the vector of a masked symbol; its place; the class; and which share of the
places is masked. The blocks are those of ``transformer`` (norms by root mean square, rotary
positions, SwiGLU, no biases), but every place sees every other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.condition import UNCONDITIONAL, Condition, Conditioning
from tessella.models.masked_model import MaskedModel
from tessella.models.sequence_model import FlattenedModel
from tessella.nn.attending_block import check_block_sizes, hidden_width, initialize_blocks
from tessella.nn.attention import RMSNorm
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.mutual_attention import MutualBlock, ShareEmbedding
from tessella.nn.rotary import rotations
from tessella.nn.targeted_attention import PlaceVectors


class MaskedTransformer(FlattenedModel, MaskedModel):
    """``masked``: a transformer that predicts masked symbols, and draws many of them at once.

    It states a bound on log-probabilities instead of exact ones, see
    :mod:`tessella.models.masked_model`.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: number of blocks.
        width: length of the vectors.
        heads: number of heads; ``4 * heads`` must divide ``width``.
        feedforward: width of the feed-forward parts; 0 means 8/3 of ``width``, rounded up to a
            multiple of 64.
        dropout: dropout rate of the tokens, and of the output of each part.
        schedule: how training draws the share of masked places, see
            :meth:`MaskedModel.use_schedule`.

    Raises:
        ConfigError: for sizes out of range, or that do not fit each other, and for a head that
            takes the channels of a pixel together.
    """

    name = "masked"

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
        schedule: str = "uniform",
    ) -> None:
        super().__init__(grid, head, conditioning)
        self.use_schedule(schedule)
        check_block_sizes("masked", layers, width, heads, feedforward, dropout)
        self._sizes: dict[str, object] = {
            "layers": layers,
            "width": width,
            "heads": heads,
            "feedforward": feedforward,
            "dropout": dropout,
            "schedule": schedule,
        }
        self.embedding = SymbolEmbedding(grid, width)
        # Of a masked symbol of each channel.
        self.mask = nn.Parameter(torch.randn(grid.channels, width) * 0.5)
        self.place_vectors = PlaceVectors(grid, grid.channels, width)
        self.share = ShareEmbedding(width)
        self.class_embedding = None
        if self.classes:
            self.class_embedding = ClassEmbedding(self.classes, width, std=0.5)
        self.dropout = nn.Dropout(dropout)
        hidden = hidden_width(width, feedforward)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            self.blocks.append(MutualBlock(width, heads, hidden, dropout))
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, self.free_size)
        # All channels of a pixel are rotated alike: [symbols, 2, size].
        cos_sin = rotations(grid.height, grid.width, width // heads)
        cos_sin = cos_sin.repeat_interleave(grid.channels, 0).to(torch.get_default_dtype())
        self.register_buffer("cos_sin", cos_sin, persistent=False)
        self.cos_sin: torch.Tensor
        self._initialize()

    def _initialize(self) -> None:
        """Initialize the weights from normal distributions, as ``transformer`` does."""
        initialize_blocks(self.blocks)
        # A fresh model starts near the head's preferred distribution.
        nn.init.normal_(self.output.weight, std=0.02)
        self.output.bias.data.copy_(self.free_bias())

    def predictions(
        self, x: torch.Tensor, known: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> torch.Tensor:
        known = known.flatten(1)  # [batch, symbols]
        share = 1 - known.to(self.mask.dtype).mean(1)
        # What all tokens of an image have in common: [batch, width].
        common = self.share(share)
        if self.class_embedding is not None:
            common = common + self.class_embedding(condition.labels)
        tokens = torch.where(known[..., None], self._vectors(x), self._masked())
        tokens = self.dropout(tokens + self.place_vectors.table() + common[:, None])
        for block in self.blocks:
            tokens = self.recomputed(block, tokens, self.cos_sin)
        parameters = self.parameters_from_free(self.output(self.norm(tokens)))
        return self.on_grid(parameters)

    def _vectors(self, x: torch.Tensor) -> torch.Tensor:
        """The vector of every symbol: ``[batch, symbols, width]``."""
        # The channels' tables are stacked: level k of channel c is row c * levels + k.
        first_row = torch.arange(self.grid.channels, device=x.device) * self.grid.levels
        return F.embedding((x + first_row).flatten(1), self.embedding.table().flatten(0, 1))

    def _masked(self) -> torch.Tensor:
        """The vector of every place where its symbol is masked: ``[symbols, width]``."""
        return self.mask.repeat(self.grid.pixels, 1)

    def output_weights(self) -> Sequence[torch.Tensor]:
        return [self.output.weight]

    def last_layers(self) -> Sequence[nn.Module]:
        return [self.output]

    def sizes(self) -> dict[str, object]:
        return dict(self._sizes)
