"""The sizes that density models and heads take, for type checkers and editors."""

from __future__ import annotations

from typing import TypedDict


class ModelSizes(TypedDict, total=False):
    """Keywords of :func:`tessella.create`; its documentation lists which model takes which.

    A custom model or head may have others. To pass those past a type checker, use ``**sizes`` with
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
    raster_share: float
    known_first_share: float
    schedule: str
    masks: int
    direct: bool
    mask_seed: int
    components: int
    predictor: bool
    predictor_hidden: int
