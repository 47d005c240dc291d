"""Priors on codes: the transformers of LlamaGen and of taming-transformers.

LlamaGen's (Sun et al. 2024) equals our ``transformer`` with the prefix ``"nowhere"``, one channel,
and zeros for the parts that it lacks: the vectors of rows and columns, the direction in the
embedding of symbols, and the bias of the output. Taming's minGPT (Esser et al. 2021) equals our
``gpt``; its condition is a code in front of the others, whose vector becomes the one of a class, or
of the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.exchange.layouts.foreign_layout import (
    Facts,
    ForeignLayout,
    Origin,
    Tensors,
    constant,
    count,
    grid_values,
    integer_fact,
    same,
    shape_of,
    stacked,
)
from tessella.grid import Grid
from tessella.models.gpt import GPT
from tessella.models.transformer import Transformer
from tessella.tokenizers.construction import PlainValues

CATEGORICAL = {"name": "categorical"}

GRID_FACT = "grid"
"""Height and width of the grid of codes, as a pair; a tokenizer that is given says it, too."""

LLAMAGEN_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2560: 40, 2048: 32, 3200: 32, 4096: 32}
"""Heads of LlamaGen's published models by their width, which tensors do not show."""

TAMING_HEADS = {1024: 16, 1408: 16}
"""Heads of published transformers of taming-transformers by their width, where all agree."""

CLASSES = "cls_embedding.embedding_table.weight"
TOKENS = "tok_embeddings.weight"


def heads_of(facts: Facts, width: int, published: Mapping[int, int]) -> int:
    """The number of heads: a fact, or that of the published models of this width.

    Raises:
        ConfigError: when it is not known, or does not divide the width.
    """
    heads = integer_fact(facts, "n_head", published.get(width))
    if heads is None:
        raise ConfigError(
            f"tensors do not show the number of heads, and no published model is {width} wide: "
            "give n_head=..."
        )
    if width % heads:
        raise ConfigError(f"n_head={heads} does not divide the width, {width}")
    return heads


def grid_of(facts: Facts, levels: int, most: int | None) -> Grid:
    """The grid of the codes.

    Args:
        facts: may hold ``grid``, or ``block_size`` for a square one.
        levels: number of codes.
        most: places that the model has vectors for; None where it has none.

    Raises:
        ConfigError: when nothing says it, or it has more places than that.
    """
    given = facts.get(GRID_FACT)
    if given is not None:
        if not isinstance(given, (list, tuple)) or len(given) != 2:
            raise ConfigError(f"grid must be a height and a width, [16,16], got {given!r:.60}")
        sides = {"the height of grid": given[0], "the width of grid": given[1]}
        height, width = (integer_fact(sides, name) for name in sides)
        assert height is not None
        assert width is not None
    else:
        block = most if most is not None else integer_fact(facts, "block_size")
        if block is None:
            raise ConfigError(
                "tensors do not show the size of the grid of codes: give --tokenizer RUN, or "
                "grid=[16,16]"
            )
        height = width = square_side(block)
    if most is not None and height * width > most:
        raise ConfigError(
            f"a grid of {height}x{width} codes does not fit: there are vectors for {most} places"
        )
    return Grid(height, width, 1, levels)


def square_side(block: int) -> int:
    """The side of the square grid that a sequence of ``block`` places was meant for.

    The condition takes some of the places. Where it takes one or none the side is the root; else
    the largest power of two that fits is taken, as VQGANs halve the sides of images.

    >>> square_side(256), square_side(257), square_side(512), square_side(80)
    (16, 16, 16, 8)
    """
    root = math.isqrt(block)
    if block - root**2 <= 1:
        return root
    return 1 << (root.bit_length() - 1)


def start_code(facts: Facts, levels: int) -> int:
    """The code in front of the others of an unconditional model.

    Raises:
        ConfigError: when it is none.
    """
    start = facts.get("sos_token", 0)
    if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < levels:
        raise ConfigError(f"sos_token must be a code, 0..{levels - 1}, got {start!r:.60}")
    return start


class LlamaGenGPT(ForeignLayout):
    """``Transformer`` of LlamaGen, conditioned on classes."""

    kind = "llamagen-gpt"
    about = "class-conditional Transformer of LlamaGen"
    network = "prior"
    known_facts: ClassVar[Mapping[str, str]] = {
        "n_head": "number of heads (default: that of the published model of its width)",
        "num_classes": "number of classes (default: all rows of the table but the null class)",
        "grid": "height and width of the grid of codes, [16,16]",
        "block_size": "number of codes of a square grid",
    }

    def config(self, tensors: Tensors, facts: Facts) -> PlainValues:
        # One matrix makes queries, keys and values; keys and values may have fewer heads. So
        # inner = width + 2 * kv_heads * (width / heads).
        inner, width = shape_of(tensors, "layers.0.attention.wqkv.weight", 2)
        heads = heads_of(facts, width, LLAMAGEN_HEADS)
        size = width // heads
        if inner <= width or (inner - width) % (2 * size):
            raise ConfigError(
                f"n_head={heads} does not fit queries, keys and values of shape [{inner}, {width}]"
            )
        rows = shape_of(tensors, CLASSES, 2)[0]
        classes = integer_fact(facts, "num_classes", rows - 1)
        if classes not in (rows, rows - 1):
            raise ConfigError(f"num_classes={classes} does not fit {CLASSES} with {rows} rows")
        grid = grid_of(facts, shape_of(tensors, TOKENS, 2)[0], None)
        return {
            "name": Transformer.name,
            "grid": grid_values(grid),
            "head": CATEGORICAL,
            "classes": classes,
            # The last row is the null class, which models without dropped labels lack.
            "null_class": rows == classes + 1,
            "sizes": {
                "layers": count(tensors, r"layers\.(\d+)\.", "layers"),
                "width": width,
                "heads": heads,
                "kv_heads": (inner - width) // (2 * size),
                "feedforward": shape_of(tensors, "layers.0.feed_forward.w1.weight", 2)[0],
                "prefix": "nowhere",
            },
        }

    def origins(self, outline: nn.Module, tensors: Tensors, facts: Facts) -> dict[str, Origin]:
        assert isinstance(outline, Transformer)
        width = outline.rows.shape[-1]
        levels = outline.grid.levels
        origins = {
            "embedding.vectors": Origin((TOKENS,), _one_channel),
            "embedding.direction": constant(torch.zeros(1, 1, width)),
            "class_embedding.weight": Origin((CLASSES,), _rows(outline.classes + 1)),
            "norm.weight": same("norm.weight"),
            "output.last.weight": same("output.weight"),
            "output.last.bias": constant(torch.zeros(levels)),
            # There are no learned vectors of positions.
            "rows": constant(torch.zeros(outline.rows.shape)),
            "columns": constant(torch.zeros(outline.columns.shape)),
        }
        for layer in range(len(outline.blocks)):
            theirs = f"layers.{layer}"
            ours = f"blocks.{layer}"
            gate_and_value = [f"{theirs}.feed_forward.{part}.weight" for part in ("w1", "w3")]
            origins |= {
                f"{ours}.before_attention.weight": same(f"{theirs}.attention_norm.weight"),
                f"{ours}.attention.project.weight": same(f"{theirs}.attention.wqkv.weight"),
                f"{ours}.attention.merge.weight": same(f"{theirs}.attention.wo.weight"),
                f"{ours}.before_feedforward.weight": same(f"{theirs}.ffn_norm.weight"),
                # Our layer computes gate and value with one product.
                f"{ours}.feedforward.widen.weight": stacked(gate_and_value),
                f"{ours}.feedforward.narrow.weight": same(f"{theirs}.feed_forward.w2.weight"),
            }
        return origins


class TamingGPT(ForeignLayout):
    """``GPT`` of taming-transformers, with one code or class in front."""

    kind = "taming-gpt"
    about = "GPT of taming-transformers, or Net2NetTransformer with its first stage"
    network = "prior"
    known_facts: ClassVar[Mapping[str, str]] = {
        "n_head": "number of heads (default: that of the published model of its width)",
        "n_classes": "number of classes; without it the model is unconditional",
        "sos_token": "code in front of the others of an unconditional model (default 0)",
        "grid": "height and width of the grid of codes (default: the largest square that fits)",
    }

    def is_ignored(self, name: str) -> bool:
        # Masks of attention follow from the sizes; check() compares them.
        return name.endswith(".attn.mask")

    def config(self, tensors: Tensors, facts: Facts) -> PlainValues:
        levels, width = shape_of(tensors, "tok_emb.weight", 2)
        block = shape_of(tensors, "pos_emb", 3)[1]
        classes = integer_fact(facts, "n_classes", 0)
        assert classes is not None
        if classes > levels:
            raise ConfigError(f"n_classes={classes} is more than the {levels} codes and classes")
        return {
            "name": GPT.name,
            "grid": grid_values(grid_of(facts, levels, block)),
            "head": CATEGORICAL,
            "classes": classes,
            # An unconditional model counts as one of the null class.
            "null_class": classes == 0,
            "sizes": {
                "layers": count(tensors, r"blocks\.(\d+)\.", "layers"),
                "width": width,
                "heads": heads_of(facts, width, TAMING_HEADS),
                "feedforward": shape_of(tensors, "blocks.0.mlp.0.weight", 2)[0],
            },
        }

    def origins(self, outline: nn.Module, tensors: Tensors, facts: Facts) -> dict[str, Origin]:
        assert isinstance(outline, GPT)
        origins = {
            "positions": Origin(("pos_emb",), _first_places(outline.places)),
            "norm.weight": same("ln_f.weight"),
            "norm.bias": same("ln_f.bias"),
            "output.weight": Origin(("head.weight",), _free_rows(outline.free_size)),
            "output.bias": constant(torch.zeros(outline.free_size)),
            "vectors": Origin(("tok_emb.weight",), _one_channel),
        }
        # Conditions are codes: their vectors are rows of the same table.
        if outline.classes:
            rows = Origin(("tok_emb.weight",), _first_rows(outline.classes))
            origins["class_embedding.weight"] = rows
        else:
            start = start_code(facts, outline.grid.levels)
            origins["start"] = Origin(("tok_emb.weight",), _row(start))
        for layer in range(len(outline.blocks)):
            for ours, theirs in GPT_PARTS.items():
                for part in ("weight", "bias"):
                    names = [f"blocks.{layer}.{name}.{part}" for name in theirs]
                    origins[f"blocks.{layer}.{ours}.{part}"] = stacked(names)
        return origins

    def check(self, tensors: Tensors) -> None:
        for name, mask in tensors.items():
            if name.endswith(".attn.mask") and not torch.equal(mask != 0, mask.bool().tril()):
                raise ConfigError(
                    f"{name} lets places look ahead (n_unmasked), which no autoregressive model of "
                    "the codes can"
                )


GPT_PARTS = {
    "before_attention": ["ln1"],
    "project": ["attn.query", "attn.key", "attn.value"],
    "merge": ["attn.proj"],
    "before_feedforward": ["ln2"],
    "widen": ["mlp.0"],
    "narrow": ["mlp.2"],
}
"""Parts of our blocks, and of minGPT's."""

Conversion = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def _one_channel(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """A table of vectors with a dimension of channels in front, of size 1."""
    return parts[0][None]


def _rows(rows: int) -> Conversion:
    """A table with that many rows; zeros for those that it lacks, which are never used."""

    def convert(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        table = parts[0]
        return torch.cat([table, torch.zeros_like(table[:1])]) if len(table) < rows else table

    return convert


def _first_rows(classes: int) -> Conversion:
    """The vectors of classes, and zeros for the null class, which such a model never uses."""

    def convert(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([parts[0][:classes], torch.zeros_like(parts[0][:1])])

    return convert


def _row(index: int) -> Conversion:
    def convert(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return parts[0][index]

    return convert


def _first_places(places: int) -> Conversion:
    """``[1, block, width]`` to ``[places, width]``."""

    def convert(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return parts[0][0, :places]

    return convert


def _free_rows(free: int) -> Conversion:
    """The rows of the output that our network computes.

    With two codes it computes one logit, and the other is fixed at zero.
    """

    def convert(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        weight = parts[0]
        return weight[1:] - weight[:1] if len(weight) == free + 1 else weight

    return convert
