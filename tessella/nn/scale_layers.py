"""The network of a next-scale model: a transformer over the codes of several scales.

Tian et al. 2024, "Visual Autoregressive Modeling", section 3.2. A token stands for one place of one
scale. Its input is what the codes of the coarser scales sum up to there, and it attends to all
places of its own and of the coarser scales. So no token sees a code of its own scale, and the codes
of a scale are predicted all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.nn.attending_block import (
    AttendingBlock,
    check_block_sizes,
    hidden_width,
    initialize_blocks,
)
from tessella.nn.attention import RMSNorm
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.scales import enlarged, pooled

BLEND = 0.5
"""Share of a convolution's result among the enlarged codes of a scale; the rest is its input."""

POSITION_STD = 0.3
"""Standard deviation of the initial vectors of places."""

Recomputed = Callable[..., torch.Tensor]
"""Calls a part of the network, see :meth:`DensityModel.recomputed`."""


class ScaleBlock(AttendingBlock):
    """Attention under a mask and a feed-forward part, each with a residual connection."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Apply the block; the result has the shape of ``x``.

        Args:
            x: ``[batch, places, width]``.
            mask: whether a place (row) sees another (column), ``bool [places, places]``.
        """
        queries, keys, values = self.projected(x)
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.added(x, seen)


class ScaleNetwork(nn.Module):
    """Parameters of the codes of every scale, given those of the coarser scales.

    Args:
        grids: one for each scale, coarse to fine, with one channel and equally many levels.
        bias: initial parameters of a code, ``[size]``.
        classes: number of classes; 0 for none.
        layers: number of blocks.
        width: length of the tokens.
        heads: number of heads; a divisor of ``width``.
        feedforward: hidden width of the feed-forward parts; 0 means 8/3 of ``width``, rounded up to
            a multiple of 64.
        embedding: length of the vectors of codes, which are summed over scales.
        dropout: dropout rate of the tokens, and of the output of each part.

    Raises:
        ConfigError: for sizes out of range, or that do not fit each other.
    """

    def __init__(
        self,
        grids: Sequence[Grid],
        bias: torch.Tensor,
        classes: int,
        layers: int,
        width: int,
        heads: int,
        feedforward: int,
        embedding: int,
        dropout: float,
    ) -> None:
        super().__init__()
        check_block_sizes("next-scale", layers, width, heads, feedforward, dropout)
        if embedding < 1:
            raise ConfigError(f"next-scale needs embedding >= 1, got embedding={embedding}")
        self.grids = tuple(grids)
        self.vectors = nn.Parameter(torch.randn(grids[0].levels, embedding))
        # One for each scale that another one follows.
        self.blends = nn.ModuleList()
        for _ in grids[1:]:
            self.blends.append(nn.Conv2d(embedding, embedding, 3, padding=1))
        self.widen = nn.Linear(embedding, width)
        # The input of the coarsest scale, before which nothing is known.
        self.start = nn.Parameter(0.5 * torch.randn(width))
        places = sum(grid.symbols for grid in grids)
        # A place of one scale shares no vector with the same place of another.
        self.positions = nn.Parameter(POSITION_STD * torch.randn(places, width))
        self.class_embedding = ClassEmbedding(classes, width, std=0.5) if classes else None
        self.dropout = nn.Dropout(dropout)
        hidden = hidden_width(width, feedforward)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            self.blocks.append(ScaleBlock(width, heads, hidden, dropout))
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, len(bias))
        self._initialize(bias)

    def _initialize(self, bias: torch.Tensor) -> None:
        """Initialize the weights as those of ``transformer``; the output begins near ``bias``."""
        initialize_blocks(self.blocks)
        nn.init.normal_(self.output.weight, std=0.02)
        self.output.bias.data.copy_(bias)

    def forward(
        self, coarser: Sequence[torch.Tensor], labels: torch.Tensor | None, recomputed: Recomputed
    ) -> tuple[torch.Tensor, ...]:
        """Parameters of the scales whose codes are given, and of the scale after them.

        Args:
            coarser: codes of the coarsest scales, coarse to fine, ``int64 [batch, h, w, 1]`` each;
                those of the finest scale are never needed.
            labels: class of each image, ``int64 [batch]``; needed with classes.
            recomputed: calls each block.

        Returns:
            ``[batch, h, w, 1, size]`` of each scale.
        """
        # Without coarser codes only the labels say how many images there are.
        tokens = self._inputs(coarser)
        if self.class_embedding is not None:
            assert labels is not None
            tokens = tokens + self.class_embedding(labels)[:, None]
        places = tokens.shape[1]
        tokens = self.dropout(tokens + self.positions[:places])
        mask = self._mask(len(coarser) + 1, tokens.device)
        for block in self.blocks:
            tokens = recomputed(block, tokens, mask)
        parameters = self.output(self.norm(tokens))
        grids = self.grids[: len(coarser) + 1]
        of_scales = parameters.split([grid.symbols for grid in grids], dim=1)
        on_grids = []
        for grid, part in zip(grids, of_scales, strict=True):
            on_grids.append(part.unflatten(1, grid.shape))
        return tuple(on_grids)

    def _inputs(self, coarser: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tokens before positions and class are added: ``[batch, places, width]``.

        The batch is 1 where no codes are given.
        """
        batch = coarser[0].shape[0] if coarser else 1
        first = self.grids[0].symbols
        inputs = [self.start.expand(batch, first, -1)]
        total: torch.Tensor | float = 0.0
        for scale, codes in enumerate(coarser):
            total = total + self._enlarged(codes, scale)
            finer = self.grids[scale + 1]
            # [batch, embedding, h, w] to [batch, h * w, embedding]
            seen = pooled(total, (finer.height, finer.width)).flatten(2).transpose(1, 2)
            inputs.append(self.widen(seen))
        return torch.cat(inputs, dim=1)

    def _enlarged(self, codes: torch.Tensor, scale: int) -> torch.Tensor:
        """Vectors of the codes of a scale at the size of the finest: ``[batch, embedding, H, W]``.

        They are blended with their convolution, as VAR's tokenizer does.
        """
        finest = self.grids[-1]
        vectors = F.embedding(codes[..., 0], self.vectors).permute(0, 3, 1, 2)
        maps = enlarged(vectors, (finest.height, finest.width))
        return (1 - BLEND) * maps + BLEND * self.blends[scale](maps)

    def _mask(self, scales: int, device: torch.device) -> torch.Tensor:
        """Whether a place (row) sees another (column): ``bool [places, places]``."""
        of_places = []
        for scale, grid in enumerate(self.grids[:scales]):
            of_places += [scale] * grid.symbols
        scale_of = torch.tensor(of_places, device=device)
        return scale_of[:, None] >= scale_of
