"""``VQVAE`` of rosinality's vq-vae-2-pytorch, which is our ``vqvae2``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from tessella.exchange.layouts.foreign_layout import (
    Facts,
    ForeignLayout,
    Origin,
    Tensors,
    constant,
    numbers,
    same,
    shape_of,
    size_fact,
)
from tessella.tokenizers.construction import PlainValues
from tessella.tokenizers.vqvae2 import LEVELS, VQVAE2

PREFIXES = {
    "encode_bottom.": "enc_b.blocks.",
    "encode_top.": "enc_t.blocks.",
    "to_top.": "quantize_conv_t.",
    "decode_top.": "dec_t.blocks.",
    "to_bottom.": "quantize_conv_b.",
    "enlarge_top.": "upsample_t.",
    "decoder.": "dec.blocks.",
}
"""Prefixes of our tensors, and theirs."""

CONVOLUTIONS = {"conv": "conv.1", "out": "conv.3"}
"""Our names for the convolutions of a residual block, and theirs: 0 and 2 are activations."""

AVERAGES = {"codebook": "embed", "sums": "embed_avg"}
"""Our names for tensors of a codebook with codes in rows, and theirs with codes in columns."""


class RosinalityVQVAE2(ForeignLayout):
    """``VQVAE`` of vq-vae-2-pytorch."""

    kind = "vq-vae-2-pytorch"
    about = "VQVAE of rosinality's vq-vae-2-pytorch (VQ-VAE-2)"
    network = "tokenizer"
    known_facts: ClassVar[Mapping[str, str]] = {"image_size": "side of the images (default 256)"}

    def config(self, tensors: Tensors, facts: Facts) -> PlainValues:
        # Without residual blocks, nothing shows their width, and it does not matter.
        inner = 1
        if "dec.blocks.1.conv.1.weight" in tensors:
            inner = shape_of(tensors, "dec.blocks.1.conv.1.weight", 4)[0]
        code_dim, codes = shape_of(tensors, "quantize_t.embed", 2)
        return {
            "name": VQVAE2.name,
            "image_size": size_fact(facts, ["image_size"], 256),
            "channels": shape_of(tensors, "enc_b.blocks.0.weight", 4)[1],
            "codebook_size": codes,
            "code_dim": code_dim,
            "hidden": shape_of(tensors, "quantize_conv_t.weight", 4)[1],
            "residual_blocks": len(numbers(tensors, r"dec\.blocks\.(\d+)\.conv\.1\.weight")),
            "residual_hidden": inner,
        }

    def origins(self, outline: nn.Module, tensors: Tensors, facts: Facts) -> dict[str, Origin]:
        origins: dict[str, Origin] = {}
        for ours in outline.state_dict():
            level, _, rest = ours.partition(".")
            if level not in LEVELS:
                origins[ours] = same(_their_name(ours))
                continue
            codebook = f"quantize_{level[0]}"
            if rest in AVERAGES:
                origins[ours] = Origin((f"{codebook}.{AVERAGES[rest]}",), _transposed)
            elif rest == "counts":
                origins[ours] = same(f"{codebook}.cluster_size")
            elif rest == "steps":
                # The codes are placed, after an unknown number of steps; 1 stands for that.
                origins[ours] = constant(torch.tensor(1))
            else:
                assert rest == "seed"
                origins[ours] = constant(torch.tensor(0))
        return origins


def _their_name(ours: str) -> str:
    """Their name for one of our tensors outside the codebooks."""
    # Example: encode_bottom.3.conv.weight is enc_b.blocks.3.conv.1.weight there.
    for prefix, theirs in PREFIXES.items():
        if ours.startswith(prefix):
            rest = ours.removeprefix(prefix)
            return theirs + re.sub(r"\.(conv|out)\.", _convolution, rest)
    raise AssertionError(f"{ours} belongs to no part of a vqvae2")


def _convolution(found: re.Match[str]) -> str:
    return f".{CONVOLUTIONS[found[1]]}."


def _transposed(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Codes in rows instead of columns: ``[dim, codes]`` to ``[codes, dim]``."""
    return parts[0].T
