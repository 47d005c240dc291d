"""Quantizers: vectors to discrete codes, and back.

All share one interface: :meth:`Quantizer.encode` turns vectors into symbols,
:meth:`Quantizer.decode` turns symbols into vectors, and calling a quantizer does both, with
gradients and with terms to add to the loss.

``vq-ema`` The nearest code, which is a moving average of the vectors assigned to it. This is the
    default: it learns fast, and there is little to tune.
``rotation``
    ``vq-ema`` with rotated gradients, for an encoder that straight-through trains badly.
``vq`` The nearest code, learned by gradients, as in VQGAN and its checkpoints. Codes can be short,
    or unit vectors.
``simvq`` The nearest code of a fixed codebook, seen through a learned linear map, for large
    codebooks without revival.
``fsq`` A few numbers, each rounded to fixed levels: no codebook, no loss, no codes that could die.
``lfq``
    The signs of a few numbers, for codebooks beyond 2^14, where a search is slow.
``residual-vq`` Several codes per vector, each for the residual of those before it: more bits per
    vector than a single codebook can encode.

To add another one, write a class and register it: see :class:`Quantizer` and
:data:`register_quantizer`.
"""

from __future__ import annotations

import inspect
import textwrap
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
"""Decorator that registers a quantizer: ``@ts.register_quantizer("mine")``."""


class QuantizerArguments(TypedDict, total=False):
    """Arguments of the quantizers of this package; each class takes some of them.

    The classes document their meaning and their defaults.
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
        name: a name in :data:`QUANTIZERS`.
        arguments: arguments of its class; see the list below.

    Raises:
        ConfigError: for an unknown name or argument, or a value of the wrong type or range.

    >>> create_quantizer("fsq", dim=4, levels=(8, 5, 5, 5))
    FSQ(dim=4, levels=1000)
    """
    return construct("quantizer", QUANTIZERS, name, arguments)


# The list is generated from the classes, so help(ts.create_quantizer) is never out of date.
create_quantizer.__doc__ = "\n\n".join(
    [
        inspect.cleandoc(create_quantizer.__doc__ or ""),
        "Arguments by name::",
        textwrap.indent(describe_arguments(QUANTIZERS), "    "),
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
