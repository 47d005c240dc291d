"""Exact sampling and completion, by four methods with identical results.

* ``cached`` goes through the grid symbol by symbol, with the model's cached state;
* ``windows`` guesses the symbols of the next few pixels and draws them in one pass
  (``tessella.sampling.windows``);
* ``parallel`` repeats passes over the whole grid until nothing changes
  (``tessella.sampling.parallel``);
* ``naive`` runs the network on the whole grid for every symbol; it is the slow reference.

Thanks to the noise of ``tessella.noise``, all of them draw the same symbols from the same seed,
whatever the batch size. ``auto`` takes the fastest, see :func:`choose`.

A model of masked symbols has no such methods: it draws several symbols a step, by
:class:`Unmasking` (``tessella.sampling.unmasking``).

The options (:class:`Sampling`, :class:`Rule`, :class:`Unmasking`) can be imported without torch.
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
    WalkOrder,
)
from tessella.sampling.unmasking_options import Unmasking

if TYPE_CHECKING:
    from tessella.sampling.known_symbols import KnownSymbols
    from tessella.sampling.ordered_walk import log_prob_missing
    from tessella.sampling.parallel import Passes
    from tessella.sampling.proof import Replay, replay
    from tessella.sampling.sampler import Sampler, choose, complete, sample, stream
    from tessella.sampling.walk import Draw, KeepKnown, Steps, SymbolSource

# These need torch, so they are imported on first use, from the module named here.
_MODULE_OF = {
    "Passes": "parallel",
    "Replay": "proof",
    "replay": "proof",
    "KnownSymbols": "known_symbols",
    "log_prob_missing": "ordered_walk",
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
    "Steps",
    "SymbolSource",
    "Unmasking",
    "WalkOrder",
    "choose",
    "complete",
    "log_prob_missing",
    "replay",
    "sample",
    "stream",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tessella.sampling' has no attribute {name!r}")
    value: object = getattr(import_module(f"tessella.sampling.{_MODULE_OF[name]}"), name)
    # From now on the name is found without calling this function.
    globals()[name] = value
    return value
