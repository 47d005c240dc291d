"""Options of verbs that draw images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tessella.cli.flags import Within
from tessella.sampling import BATCH, Method, Rule, Unmasking

Weights = Literal["own", "int8", "bfloat16"]
BatchSize = Annotated[int, Within(1, 1 << 20)]
Seed = Annotated[int, Within(0, (1 << 64) - 1)]


@dataclass(frozen=True)
class Drawing:
    """How symbols are drawn."""

    seed: Seed = 0
    """Image i has this seed plus i."""
    method: Method = "auto"
    """cached: cached steps. windows: passes over the next pixels, for transformers. parallel:
    passes over the whole grid until nothing changes. naive: a pass for every symbol, the slow
    oracle. All draw the same images; auto takes cached or parallel, by rules for the model."""
    rule: Rule = field(default_factory=Rule)
    unmasking: Unmasking = field(default_factory=Unmasking)
    class_label: Annotated[int | None, Within(0)] = None
    """Class to draw, for a model with classes."""
    batch: BatchSize = BATCH
    """Images at a time; changes memory and speed only."""
    weights: Weights = "own"
    """The density model with its own weights, or with its hidden matrices rounded to int8 or
    bfloat16, which is another model: of one that does not fit into the caches, single images are
    drawn faster."""
