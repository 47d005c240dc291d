"""Exact sampling and completion, by three methods that draw the same.

``cached`` walks along the grid with the model's cached state, symbol after symbol; ``parallel``
repeats passes over the whole grid until nothing changes (``tessella.sampling.parallel``); ``naive``
runs the network on the whole grid for every symbol and is the oracle of both. With the noise of
``tessella.noise`` all give the same symbols for the same seed, whatever the batch. ``auto`` takes
the one that is fastest, see :func:`choose`.

The options (:class:`Sampling`, :class:`Rule`) are readable without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tessella.sampling.rule import Rule, RuleKeywords
from tessella.sampling.sampling_options import (
    BATCH,
    METHODS,
    Method,
    Sampling,
    SamplingKeywords,
)

if TYPE_CHECKING:
    from tessella.sampling.known_symbols import KnownSymbols
    from tessella.sampling.parallel import Passes
    from tessella.sampling.proof import Replay, replay
    from tessella.sampling.sampler import Sampler, choose, complete, sample, stream
    from tessella.sampling.walk import Draw, KeepKnown, Steps, SymbolSource

# What needs torch loads on first use.
_MODULE_OF = {
    "Passes": "parallel",
    "Replay": "proof",
    "replay": "proof",
    "KnownSymbols": "known_symbols",
    "Sampler": "sampler",
    "choose": "sampler",
    "complete": "sampler",
    "sample": "sampler",
    "stream": "sampler",
    "Draw": "walk",
    "KeepKnown": "walk",
    "SymbolSource": "walk",
    "Steps": "walk",
}

__all__ = [
    "BATCH",
    "METHODS",
    "Draw",
    "KeepKnown",
    "KnownSymbols",
    "Method",
    "Passes",
    "Replay",
    "Rule",
    "RuleKeywords",
    "Sampler",
    "Sampling",
    "SamplingKeywords",
    "SymbolSource",
    "Steps",
    "choose",
    "complete",
    "replay",
    "sample",
    "stream",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tessella.sampling' has no attribute {name!r}")
    value: object = getattr(import_module(f"tessella.sampling.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
