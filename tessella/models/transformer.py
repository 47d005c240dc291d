"""A decoder-only transformer over the pixels of a grid in raster order.

The sequence is a prefix (the class, or a learned vector) followed by all pixels but the last; the
output at each position predicts the pixel after it. The network is that of LLaMA (Touvron et al.
2023, section 2.2) as LlamaGen applies it to images (Sun et al. 2024, section 2.2): root-mean-square
norms before each part, SwiGLU feed-forward parts, no biases in the backbone, and positions encoded
by two-dimensional rotations. In addition, learned vectors for row and column tell the network where
the next pixel is, because rotations only encode the offset between two pixels.

A pixel is one token, the sum of the vectors of its channels (or of its depth of residual codes).
Its channels are ordered by the output stage (``tessella.models.channel_output``), so the backbone
runs once per pixel. A step caches the keys and values of all layers, and costs as much as one token
of the sequence.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from tessella.errors import ConfigError, unknown
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.channel_output import create_output
from tessella.models.condition import UNCONDITIONAL, Condition, Conditioning
from tessella.models.pixel_model import PixelModel, SteppedFeatures
from tessella.models.pixel_window import PixelWindow
from tessella.models.receptive_fields import symbol_field
from tessella.nn.attending_block import hidden_width
from tessella.nn.attention import CausalAttention, RMSNorm, SwiGLU
from tessella.nn.condition_embedding import ClassEmbedding, CodeEmbedding
from tessella.nn.embedding import EmbeddedSymbols, SymbolEmbedding, sum_over_channels
from tessella.nn.rotary import rotations
from tessella.nn.stepping.program import Operand, Places, Vectors
from tessella.nn.stepping.runs import RunsNow
from tessella.nn.stepping.step import MemoryAllocator, PixelStep, StateMemory, WindowStep

PREFIXES = ("origin", "nowhere")
"""Position of the prefix in the rotations: ``"origin"`` is the first pixel; with ``"nowhere"`` its
queries and keys are zero, as in LlamaGen."""


class TransformerBlock(nn.Module):
    """Attention and a feed-forward part, each with a residual connection.

    Args:
        width: length of the vectors.
        heads, kv_heads: see :class:`CausalAttention`.
        feedforward: hidden width, see :class:`SwiGLU`.
        dropout: dropout rate of the output of each part.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.before_attention = RMSNorm(width)
        self.attention = CausalAttention(width, heads, kv_heads)
        self.before_feedforward = RMSNorm(width)
        self.feedforward = SwiGLU(width, feedforward)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
        """Apply the block; the result has the shape of ``x``.

        Args:
            x: ``[batch, positions, width]``.
            cos_sin: rotation of each position, ``[positions, 2, size]``.
        """
        x = x + self.dropout(self.attention(self.before_attention(x), cos_sin))
        return x + self.dropout(self.feedforward(self.before_feedforward(x)))

    def write(self, step: PixelStep, x: Operand, cos_sin: Operand, length: int) -> None:
        """Append the block for one position.

        Args:
            step: the step to write to.
            x: ``[batch, width]``, updated in place.
            cos_sin: rotation of the position, ``[2 * size]``.
            length: positions of the sequence.
        """
        self.attention.write(step, self.before_attention.write(step, x), cos_sin, length, x)
        self.feedforward.write(step, self.before_feedforward.write(step, x), x)


class Transformer(PixelModel):
    """``transformer``: a decoder-only transformer over pixels or codes with cached keys and values.

    Args:
        grid, head, conditioning: see :class:`DensityModel`; can be conditioned on codes.
        layers: number of blocks.
        width: length of the vectors.
        heads: number of query heads; ``4 * heads`` must divide ``width``.
        kv_heads: number of heads of keys and values, a divisor of ``heads``; 0 means ``heads``.
        feedforward: width of the feed-forward parts; 0 means 8/3 of ``width``, rounded up to a
            multiple of 64.
        dropout: dropout rate of the tokens, and of the output of each part.
        prefix: position of the prefix in the rotations: ``"origin"`` is the first pixel; with
            ``"nowhere"`` its queries and keys are zero, as in LlamaGen.

    Raises:
        ConfigError: for sizes out of range, or that do not fit each other.
    """

    name = "transformer"
    takes_codes = True

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        layers: int = 4,
        width: int = 64,
        heads: int = 4,
        kv_heads: int = 0,
        feedforward: int = 0,
        dropout: float = 0.0,
        prefix: str = "origin",
    ) -> None:
        super().__init__(grid, head, conditioning)
        if layers < 1 or width < 1 or feedforward < 0 or kv_heads < 0 or not 0 <= dropout < 1:
            raise ConfigError(
                "transformer needs layers >= 1, width >= 1, feedforward >= 0, kv_heads >= 0 and "
                f"0 <= dropout < 1, got layers={layers}, width={width}, "
                f"feedforward={feedforward}, kv_heads={kv_heads}, dropout={dropout}"
            )
        if prefix not in PREFIXES:
            raise ConfigError(unknown("prefix", prefix, PREFIXES))
        self._sizes: dict[str, object] = {
            "layers": layers,
            "width": width,
            "heads": heads,
            "kv_heads": kv_heads,
            "feedforward": feedforward,
            "dropout": dropout,
            "prefix": prefix,
        }
        self.embedding = SymbolEmbedding(grid, width)
        self.class_embedding = None
        if self.classes:
            self.class_embedding = ClassEmbedding(self.classes, width, std=0.5)
        # Without classes the prefix is one learned vector.
        self.start = None if self.classes else nn.Parameter(torch.randn(width) * 0.5)
        # Row and column of the pixel to be predicted, not of the pixel in the token.
        self.rows = nn.Parameter(torch.randn(grid.height, 1, width) * 0.3)
        self.columns = nn.Parameter(torch.randn(grid.width, width) * 0.3)
        self.code_embedding = None
        if conditioning.codes:
            self.code_embedding = CodeEmbedding(conditioning.codes, grid, width)
        self.dropout = nn.Dropout(dropout)
        hidden = hidden_width(width, feedforward)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            self.blocks.append(TransformerBlock(width, heads, kv_heads or heads, hidden, dropout))
        self.norm = RMSNorm(width)
        self.output = create_output(grid, head, width, direct=True)
        self.register_buffer("cos_sin", self._rotations(width // heads), persistent=False)
        self.cos_sin: torch.Tensor
        self._initialize()

    def _rotations(self, size: int) -> torch.Tensor:
        """Rotations of the prefix and of all pixels but the last: ``[pixels, 2, size]``."""
        # A token has the position of its own pixel, and predicts the pixel after it.
        cos_sin = rotations(self.grid.height, self.grid.width, size)
        prefix = cos_sin[:1]
        if self._sizes["prefix"] == "nowhere":
            prefix = torch.zeros_like(prefix)
        return torch.cat([prefix, cos_sin[:-1]]).to(torch.get_default_dtype())

    def _initialize(self) -> None:
        """Initialize the weights from normal distributions.

        Layers that write to the residual stream, and the last layer, start with small weights.
        """
        for block in self._blocks():
            attention = block.attention
            feedforward = block.feedforward
            added = (attention.merge, feedforward.narrow)
            for layer in (
                attention.project,
                attention.merge,
                feedforward.widen,
                feedforward.narrow,
            ):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            # The residual stream sums two such outputs per block; this keeps its variance at 1.
            for layer in added:
                layer.weight.data /= math.sqrt(2 * len(self.blocks))
        # A fresh model starts near the head's preferred distribution.
        nn.init.normal_(self.output.last.weight, std=0.02)

    def _blocks(self) -> list[TransformerBlock]:
        return [block for block in self.blocks if isinstance(block, TransformerBlock)]

    def symbol_embedding(self) -> EmbeddedSymbols:
        return self.embedding

    def code_features(self, codes: torch.Tensor) -> torch.Tensor:
        assert self.code_embedding is not None
        features: torch.Tensor = self.code_embedding(codes)
        return features

    def blocks_to_recompute(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        # [batch, pixels, width]: the prefix, then all pixels but the last.
        tokens = self.embedding(x).flatten(1, 2)
        prefix = self._prefix(condition.labels, x.shape[0])
        tokens = torch.cat([prefix[:, None], tokens[:, :-1]], dim=1)
        tokens = tokens + self._places()
        if condition.codes is not None:
            tokens = tokens + self.code_features(condition.codes).flatten(1, 2)
        tokens = self.dropout(tokens)
        for block in self.blocks:
            tokens = self.recomputed(block, tokens, self.cos_sin)
        features = self.norm(tokens).unflatten(1, (self.grid.height, self.grid.width))
        return self.output(features, x)

    def _places(self) -> torch.Tensor:
        """Learned vectors of the pixels' rows and columns: ``[pixels, width]``."""
        return (self.rows + self.columns).flatten(0, 1)

    def _prefix(self, labels: torch.Tensor | None, batch: int) -> torch.Tensor:
        """The token before the first pixel: ``[batch, width]``."""
        if self.class_embedding is not None:
            return self.class_embedding(labels)
        assert self.start is not None
        return self.start.expand(batch, -1)

    def write(
        self, step: PixelStep, labels: torch.Tensor | None, codes: torch.Tensor | None
    ) -> SteppedFeatures:
        # The token holds the prefix at first, and then the previous pixel, channel by channel.
        token = step.memory.keep(self._prefix(labels, step.memory.batch))
        x = self.write_token(step, token, codes)
        # Clear the token, to which the symbols of this pixel will be added.
        step.pixel.map(torch.zeros_like(token), token)
        # All symbols are added to the same token, whatever their column.
        return SteppedFeatures(token, self.write_blocks(step, x))

    def write_token(
        self, step: PixelStep, token: torch.Tensor, codes: torch.Tensor | None
    ) -> torch.Tensor:
        """Append the sum of a token and what is known of its place, the input of the blocks.

        Args:
            step: the step to write to.
            token: ``[batch, width]``, or ``[batch, pixels, width]`` in a step on several pixels.
            codes: see :meth:`write`.

        Returns:
            The memory of the sum, of the shape of ``token``.
        """
        x = step.pixel.zeros(token.shape[-1])
        step.pixel.add(token, step.here(Vectors(step.memory.table(self._places()))), x)
        if codes is not None:
            step.pixel.add(x, step.here(Places(codes.flatten(1, 2))), x)
        return x

    def write_blocks(self, step: PixelStep, x: torch.Tensor) -> torch.Tensor:
        """Append all blocks and the last norm.

        Args:
            step: the step to write to.
            x: what :meth:`write_token` returns, updated in place.

        Returns:
            The memory of the features, of the shape of ``x``.
        """
        cos_sin = step.here(Vectors(step.memory.table(self.cos_sin.flatten(1))))
        for block in self._blocks():
            block.write(step, x, cos_sin, self.grid.pixels)
        return self.norm.write(step, x)

    def window(self, batch: int, pixels: int) -> PixelWindow:
        # The window knows neither predictions nor what a derived class does otherwise.
        if self.predictor is not None or type(self) is not Transformer:
            return super().window(batch, pixels)
        return TransformerWindow(self, batch, min(pixels, self.grid.pixels))

    def sizes(self) -> dict[str, object]:
        return dict(self._sizes)

    def receptive_field(self) -> torch.Tensor:
        # Every pixel attends to all earlier pixels.
        pixels = torch.ones(self.grid.pixels, self.grid.pixels).tril(-1).bool()
        return symbol_field(self.grid, pixels, inside=True)


class TransformerWindow(PixelWindow):
    """Several neighbouring pixels of a transformer in one pass over its weights and caches.

    The pass writes keys and values of its own pixels to the caches. A later pass that begins after
    some of them relies on those, and writes the others again.

    Args:
        model: the transformer; its weights must not change.
        batch, pixels: see :class:`PixelWindow`.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer, batch: int, pixels: int) -> None:
        super().__init__(batch, pixels)
        self._model = model
        # [channels, levels, width]
        self._table = model.embedding.table()
        memory = MemoryAllocator(StateMemory(), batch, self._table)
        width = self._table.shape[2]
        self._tokens = memory.zeros(pixels, width)
        self._codes: torch.Tensor | None = None
        if model.conditioning.codes:
            self._codes = memory.zeros(model.grid.height, model.grid.width, width)
        step = WindowStep(memory, model.grid.width, pixels)
        x = model.write_token(step, self._tokens, self._codes)
        # [batch, pixels, width]
        self._features = model.write_blocks(step, x)
        self._step = step

    @torch.no_grad()
    def begin(self, condition: Condition) -> None:
        self._prefix = self._model._prefix(condition.labels, self.batch)
        if self._codes is not None:
            assert condition.codes is not None
            self._codes.copy_(self._model.code_features(condition.codes))

    @torch.no_grad()
    def parameters(self, x: torch.Tensor, first: int) -> torch.Tensor:
        pixels = x.flatten(1, 2)  # a view: [batch, pixels of the grid, channels]
        # The token of a pixel is the pixel before it; that of the first one is the prefix.
        before = pixels[:, max(0, first - 1) : first + self.pixels - 1]
        tokens = sum_over_channels(before, self._table)
        if first == 0:
            tokens = torch.cat([self._prefix[:, None], tokens], dim=1)
        self._tokens.copy_(tokens)
        row, column = divmod(first, self._model.grid.width)
        self._step.start_pixel(RunsNow(), row, column)
        # For the output stage, the window is a grid of one row.
        here = pixels[:, None, first : first + self.pixels]
        return self._model.output(self._features[:, None], here)
