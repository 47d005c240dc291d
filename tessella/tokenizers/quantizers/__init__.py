"""Quantizers: vectors to discrete codes, and back.

All share one interface: :meth:`Quantizer.encode` gives the codes of vectors,
:meth:`Quantizer.decode` the vectors of codes, and a call gives both, with the gradient that passes
through and the terms to add to the loss.

``vq-ema``
    The nearest code, a moving average of the vectors that chose it. The default: it learns fast,
    and there is little to tune.
``rotation``
    ``vq-ema`` with rotated gradients, for an encoder that straight-through trains badly.
``vq``
    The nearest code, learned by gradients, as in VQGAN and its checkpoints; also short codes and
    codes of length 1.
``simvq``
    The nearest code, fixed behind a learned linear map, for large codebooks without revival.
``fsq``
    Each of a few numbers, rounded to fixed levels: no codebook, no loss, nothing that can die.
``lfq``
    The signs of a few numbers, for codebooks beyond 2^14, where a search is slow.
``residual-vq``
    Several codes a vector, each for what is left: more bits a vector than one codebook holds.

Another one is added by a file of one class: see :class:`Quantizer` and
:data:`register_quantizer`.
"""

from __future__ import annotations

import inspect
from typing import TypedDict, Unpack

from tessella.registry import Registry
from tessella.tokenizers.construction import arguments_of, construct, describe_arguments
from tessella.tokenizers.quantizers.ema import EMAVectorQuantizer
from tessella.tokenizers.quantizers.fsq import FSQ
from tessella.tokenizers.quantizers.lfq import LFQ
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput, Remedies
from tessella.tokenizers.quantizers.residual import ResidualVectorQuantizer
from tessella.tokenizers.quantizers.rotation import RotationQuantizer
from tessella.tokenizers.quantizers.simvq import SimVQ
from tessella.tokenizers.quantizers.usage import CodeUsage, perplexity
from tessella.tokenizers.quantizers.vq import GradientVectorQuantizer

__all__ = [
    "QUANTIZERS",
    "CodeUsage",
    "Quantizer",
    "QuantizerArguments",
    "QuantizerOutput",
    "Remedies",
    "create_quantizer",
    "perplexity",
    "quantizer_arguments",
    "register_quantizer",
]

QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer", base=Quantizer)
"""Every quantizer that :func:`create_quantizer` can build."""

for _quantizer in (
    EMAVectorQuantizer,
    RotationQuantizer,
    GradientVectorQuantizer,
    SimVQ,
    FSQ,
    LFQ,
    ResidualVectorQuantizer,
):
    QUANTIZERS.register(_quantizer.name)(_quantizer)

register_quantizer = QUANTIZERS.register
"""Decorator that adds a quantizer from outside: ``@ts.register_quantizer("mine")``."""


class QuantizerArguments(TypedDict, total=False):
    """Arguments of the quantizers of this package; each class takes some of them.

    A class says what they mean and which defaults it has.
    """

    dim: int
    codebook_size: int
    # Losses, moving averages and revival
    beta: float
    decay: float
    revive: float
    seed: int
    # Of one quantizer each: vq, fsq, lfq, residual-vq
    code_dim: int
    cosine: bool
    levels: tuple[int, ...] | list[int]
    entropy: float
    temperature: float
    depth: int


def create_quantizer(name: str, **arguments: Unpack[QuantizerArguments]) -> Quantizer:
    """Build a registered quantizer.

    Args:
        name: one of :data:`QUANTIZERS`.
        arguments: of its class; see the list below.

    Raises:
        ConfigError: for an unknown name or argument, or a value of the wrong type or range.

    >>> create_quantizer("fsq", dim=4, levels=(8, 5, 5, 5))
    FSQ(dim=4, levels=1000)
    """
    return construct("quantizer", QUANTIZERS, name, arguments)


# The list is made of the classes, so that help(ts.create_quantizer) is never out of date.
create_quantizer.__doc__ = "\n\n".join(
    [
        inspect.cleandoc(create_quantizer.__doc__ or ""),
        "Arguments by name:",
        describe_arguments(QUANTIZERS),
    ]
)


def quantizer_arguments(name: str) -> tuple[str, ...]:
    """Names of the arguments that a registered quantizer takes.

    Raises:
        ConfigError: for an unknown name.

    >>> quantizer_arguments("fsq")
    ('dim', 'codebook_size', 'levels')
    """
    found = arguments_of(QUANTIZERS.get_or_explain(name))
    return tuple(argument.name for argument in found)
