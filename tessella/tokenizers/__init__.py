"""Tokenizers by name."""

from __future__ import annotations

from typing import Any

import torch

from tessella.tokenizers.identity import IdentityTokenizer
from tessella.tokenizers.tokenizer import Tokenizer, TokenizerOutput, check_images, construct
from tessella.tokenizers.vqgan import VQGAN
from tessella.tokenizers.vqvae import VQVAE
from tessella.tokenizers.vqvae2 import VQVAE2

TOKENIZERS: dict[str, type[Tokenizer]] = {
    tokenizer.name: tokenizer for tokenizer in (IdentityTokenizer, VQVAE, VQVAE2, VQGAN)
}

__all__ = ["TOKENIZERS", "Tokenizer", "TokenizerOutput", "check_images", "create_tokenizer"]


def create_tokenizer(name: str, *, seed: int = 0, **config: Any) -> Tokenizer:
    """Build a tokenizer with fresh weights, in eval mode.

    Args:
        name: a key of ``TOKENIZERS``.
        seed: of the weights, and of the codebook's first placement; the global generator is left
            alone.
        config: what the tokenizer's class takes (``image_size=``, ``channels=``, ...).

    Raises:
        ConfigError: for an unknown name or argument (the known ones are listed), or a value of the
            wrong type or range.

    >>> tokenizer = create_tokenizer("identity", image_size=(8, 8), channels=1)
    >>> tokenizer.encode(torch.full((1, 8, 8, 1), 7, dtype=torch.uint8)).unique()
    tensor([7])
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return construct("tokenizer", TOKENIZERS, name, config).eval()
