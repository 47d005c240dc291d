"""The keywords of :func:`tessella.train`, for type checkers and editors."""

from __future__ import annotations

from typing import Literal, TypedDict


class TrainOptions(TypedDict, total=False):
    """Keywords of :func:`tessella.train`: the fields of :class:`~tessella.config.TrainConfig`."""

    # A test compares names and types with the fields, which have the documentation.

    steps: int
    epochs: float
    minutes: float
    batch: int
    accumulate: int
    checkpointing: bool
    compile: bool
    optimizer: Literal["adamw", "muon"]
    learning_rate: float
    warmup: int
    weight_decay: float
    l2: float
    betas: tuple[float, float]
    clip: float
    average: float
    condition_dropout: float
    validate_every: int
    checkpoint_every: int
    on_nonfinite: Literal["stop", "skip", "rollback"]
    nonfinite_in_a_row: int
    nonfinite_in_all: int
    seed: int
    device: str
    devices: int
    sharding: Literal["none", "full"]
    precision: str
    threads: int
    workers: int
    board: Literal["auto", "none", "tensorboard", "wandb"]
