"""Tokenizers, which turn images into grids of symbols and back, by name."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, Unpack

import torch

from tessella.names import check_sizes
from tessella.nn.outline import build_within_memory
from tessella.registry import Registry
from tessella.tokenizers.construction import construct, describe_arguments
from tessella.tokenizers.identity import IdentityTokenizer
from tessella.tokenizers.multiscale import MultiscaleVQGAN
from tessella.tokenizers.patch_vqvae import PatchVQVAE
from tessella.tokenizers.tokenizer import Tokenizer, TokenizerOutput, check_images
from tessella.tokenizers.vqgan import VQGAN
from tessella.tokenizers.vqvae import VQVAE
from tessella.tokenizers.vqvae2 import VQVAE2

__all__ = [
    "TOKENIZERS",
    "Tokenizer",
    "TokenizerArguments",
    "TokenizerOutput",
    "check_images",
    "create_tokenizer",
    "register_tokenizer",
]

TOKENIZERS: Registry[type[Tokenizer]] = Registry("tokenizer", base=Tokenizer)
"""Every tokenizer that :func:`create_tokenizer` can build."""

for _tokenizer in (
    IdentityTokenizer,
    VQVAE,
    PatchVQVAE,
    VQVAE2,
    VQGAN,
    MultiscaleVQGAN,
):
    TOKENIZERS.register(_tokenizer.name)(_tokenizer)

register_tokenizer = TOKENIZERS.register
"""Decorator that registers a tokenizer: ``@ts.register_tokenizer("mine")``."""


class TokenizerArguments(TypedDict, total=False):
    """Arguments of the tokenizers of this package; each class takes some of them.

    The classes document their meaning and their defaults.
    """

    # Of all tokenizers; ``levels`` of the identity only
    image_size: tuple[int, int] | list[int]
    channels: int
    levels: int
    # Codes
    codebook_size: int
    code_dim: int
    quantizer: str
    options: Mapping[str, Any] | None
    beta: float | None
    # Networks
    hidden: int
    downsample: int
    residual_blocks: int
    patch: int
    encoder_blocks: int
    decoder_blocks: int
    residual_hidden: int
    multipliers: tuple[int, ...] | list[int]
    latent: int
    attention: tuple[int, ...] | list[int]
    groups: int
    scales: tuple[int, ...] | list[int]
    blends: int
    blend: float
    code_kernel: int
    likelihood: Literal["", "mse", "logistic"]


def create_tokenizer(
    name: str, *, seed: int = 0, **config: Unpack[TokenizerArguments]
) -> Tokenizer:
    """Build a tokenizer with fresh weights, in eval mode.

    Args:
        name: a key of ``TOKENIZERS``.
        seed: seed of the weights and of the initial codes; the global generator is not affected.
        config: arguments of the tokenizer (``image_size=``, ``channels=``, ...); see the list
            below.

    Raises:
        ConfigError: for an unknown name or argument (the known ones are listed), or a value of the
            wrong type or range.

    >>> tokenizer = create_tokenizer("identity", image_size=(8, 8), channels=1)
    >>> tokenizer.encode(torch.full((1, 8, 8, 1), 7, dtype=torch.uint8)).unique()
    tensor([7])
    """
    check_sizes("", config)

    def build() -> Tokenizer:
        torch.default_generator.manual_seed(seed)
        return construct("tokenizer", TOKENIZERS, name, config)

    # Weights are drawn on the CPU, so only its generator has to be restored.
    with torch.random.fork_rng(devices=[]):
        return build_within_memory(build).eval()


# The list is generated from the classes, so help(ts.create_tokenizer) is never out of date.
create_tokenizer.__doc__ = "\n\n".join(
    [
        inspect.cleandoc(create_tokenizer.__doc__ or ""),
        "Arguments by name::",
        textwrap.indent(describe_arguments(TOKENIZERS), "    "),
    ]
)
