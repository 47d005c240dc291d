"""Quantizers: vectors to discrete codes, and back.

All share one interface: :meth:`Quantizer.encode` gives the codes of vectors, :meth:`Quantizer.decode` the vectors of
codes, and a call gives both, with the gradient that passes through and the terms to add to the loss.
"""

from __future__ import annotations

from typing import Any

from tessella.tokenizers.base import construct
from tessella.tokenizers.quantizers.base import Quantizer, QuantizerOutput
from tessella.tokenizers.quantizers.ema import EMAVectorQuantizer
from tessella.tokenizers.quantizers.usage import CodeUsage, perplexity

__all__ = ["QUANTIZERS", "CodeUsage", "Quantizer", "QuantizerOutput", "create_quantizer", "perplexity"]

QUANTIZERS: dict[str, type[Quantizer]] = {EMAVectorQuantizer.name: EMAVectorQuantizer}
"""Every quantizer that :func:`create_quantizer` can build."""


def create_quantizer(name: str, **arguments: Any) -> Quantizer:
    """Build a registered quantizer.

    Args:
        name: one of :data:`QUANTIZERS`.
        arguments: of its class.

    Raises:
        ConfigError: for an unknown name or argument, or a value of the wrong type or range.
    """
    return construct("quantizer", QUANTIZERS, name, arguments)
