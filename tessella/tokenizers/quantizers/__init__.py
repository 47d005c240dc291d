"""Quantizers: vectors to discrete codes, and back.

All share one interface: :meth:`Quantizer.encode` gives the codes of vectors,
:meth:`Quantizer.decode` the vectors of codes, and a call gives both, with the gradient that passes
through and the terms to add to the loss.

===============  ==============================================
============================================== name             what
when ===============  ==============================================
============================================== ``vq-ema``       nearest code, a moving average of
its vectors   the default: learns fast, little to tune ``rotation``     ``vq-ema`` with rotated
gradients               an encoder that straight-through trains badly ``vq``           nearest code,
learnt by gradients               VQGAN and its checkpoints; short or unit codes ``simvq``
nearest code, fixed behind a learnt linear map  large codebooks, without revival ``fsq``
each of a few numbers rounded to fixed levels   no codebook, no loss, nothing that can die ``lfq``
signs of a few numbers                          codebooks beyond 2^14, where search is slow
``residual-vq``  several codes a vector, each for what is left   more bits a vector than one
codebook holds ===============  ==============================================
==============================================
"""

from __future__ import annotations

import inspect
from typing import Any

from tessella.errors import ConfigError, unknown
from tessella.tokenizers.quantizers.ema import EMAVectorQuantizer
from tessella.tokenizers.quantizers.fsq import FSQ
from tessella.tokenizers.quantizers.lfq import LFQ
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput
from tessella.tokenizers.quantizers.residual import ResidualVectorQuantizer
from tessella.tokenizers.quantizers.rotation import RotationQuantizer
from tessella.tokenizers.quantizers.simvq import SimVQ
from tessella.tokenizers.quantizers.usage import CodeUsage, perplexity
from tessella.tokenizers.quantizers.vq import GradientVectorQuantizer
from tessella.tokenizers.tokenizer import construct

__all__ = [
    "QUANTIZERS",
    "CodeUsage",
    "Quantizer",
    "QuantizerOutput",
    "create_quantizer",
    "perplexity",
    "quantizer_arguments",
]

QUANTIZERS: dict[str, type[Quantizer]] = {
    quantizer.name: quantizer
    for quantizer in (
        EMAVectorQuantizer,
        RotationQuantizer,
        GradientVectorQuantizer,
        SimVQ,
        FSQ,
        LFQ,
        ResidualVectorQuantizer,
    )
}
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


def quantizer_arguments(name: str) -> tuple[str, ...]:
    """The arguments that a registered quantizer takes.

    Raises:
        ConfigError: for an unknown name.

    >>> quantizer_arguments("fsq")
    ('dim', 'codebook_size', 'levels')
    """
    if name not in QUANTIZERS:
        raise ConfigError(unknown("quantizer", name, QUANTIZERS))
    return tuple(inspect.signature(QUANTIZERS[name]).parameters)
