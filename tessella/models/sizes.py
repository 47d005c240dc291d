"""The sizes that density models and heads take, for type checkers and editors."""

from __future__ import annotations

from typing import TypedDict


class ModelSizes(TypedDict, total=False):
    """Keywords of :func:`tessella.create`, which says which family takes which.

    A model or head from outside may have others: give them as ``**sizes``, with
    ``sizes: dict[str, Any]``.
    """

    layers: int
    hidden: int
    kernel: int
    last: int
    dropout: float
    blocks: int
    filters: int
    scales: int
    embedding: int
    residual_blocks: int
    channels: int
    residual_channels: int
    width: int
    heads: int
    kv_heads: int
    feedforward: int
    prefix: str
    masks: int
    direct: bool
    mask_seed: int
    components: int
