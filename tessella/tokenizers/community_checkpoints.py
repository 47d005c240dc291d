"""Tokenizers of others as ours: VQGANs of taming-transformers (Esser et al. 2021) and of LlamaGen
(Sun et al. 2024).

Both have the network of our :class:`VQGAN`, and the same tensors in the same order by other names;
LlamaGen's codes have length 1. This module maps their tensors, by their names, to ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.tokenizers import create_tokenizer
from tessella.tokenizers.convnet import Attention, Block, Down, Up
from tessella.tokenizers.vqgan import VQGAN
from tessella.tokenizers.vqvae2 import VQVAE2

TRAINING = ("loss.", "quantize.codebook_used")
"""Beginnings of names of tensors that only training needs."""

KINDS = ("weight", "bias")


def from_taming(
    state: Mapping[str, torch.Tensor], image_size: tuple[int, int] = (256, 256)
) -> VQGAN:
    """The VQGAN whose weights are those of a ``VQModel`` of taming-transformers.

    Args:
        state: tensors by the names they have there (``encoder.conv_in.weight``, ...). The
            discriminator and the perceptual network (``loss.*``) are left out.
        image_size: height and width of the images it is for.

    Raises:
        ConfigError: naming tensors that are missing, left over or of another shape; attention at a
            higher than the lowest resolution counts as left over.

    Returns:
        A ``vqgan`` in eval mode, float32.
    """
    return _vqgan(state, image_size, cosine=False)


def from_llamagen_vq(
    state: Mapping[str, torch.Tensor], image_size: tuple[int, int] = (256, 256)
) -> VQGAN:
    """The VQGAN whose weights are those of a ``VQModel`` of LlamaGen; see :func:`from_taming`."""
    levels = 1 + max(_numbers(state, r"decoder\.conv_blocks\.(\d+)\."), default=0)

    def theirs(match: re.Match[str]) -> str:
        half, level = match[1], int(match[2])
        place = f"down.{level}" if half == "encoder" else f"up.{levels - 1 - level}"
        return f"{half}.{place}.{'block' if match[3] == 'res' else match[3]}."

    middle = {"0": "block_1", "1": "attn_1", "2": "block_2"}
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^(encoder|decoder)\.conv_blocks\.(\d+)\.(\w+)\.", theirs, name)
        renamed[re.sub(r"\.mid\.([012])\.", lambda m: f".mid.{middle[m[1]]}.", name)] = tensor
    return _vqgan(renamed, image_size, cosine=True)


def _vqgan(state: Mapping[str, torch.Tensor], image_size: tuple[int, int], cosine: bool) -> VQGAN:
    """A VQGAN from tensors by taming's names."""
    given = {name: tensor for name, tensor in state.items() if not name.startswith(TRAINING)}
    codes: dict[str, Any] = {"quantizer": "vq", "options": {"cosine": cosine}}
    model = create_tokenizer("vqgan", image_size=image_size, **codes, **_sizes(given))
    assert isinstance(model, VQGAN)
    own = model.state_dict()
    renamed = {
        f"quantizer.{name}": own[f"quantizer.{name}"] for name in ("counts", "steps", "seed")
    }
    renamed["quantizer.steps"] = torch.ones_like(
        renamed["quantizer.steps"]
    )  # the codes have their places
    wanted = _names(model)
    missing = sorted({name for names in wanted.values() for name in names} - given.keys())
    extra = sorted(given.keys() - {name for names in wanted.values() for name in names})
    if missing or extra:
        told = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (("missing", missing), ("unknown", extra))
            if names
        ]
        raise ConfigError(
            f"these tensors are no VQGAN with attention at the lowest level only: {'; '.join(told)}"
        )
    for name, names in wanted.items():
        tensor = torch.cat([given[part] for part in names]).float()
        if tensor.shape != own[name].shape:
            raise ConfigError(
                f"{names[0]} would be {list(tensor.shape)}, wanted is {list(own[name].shape)}"
            )
        renamed[name] = tensor
    model.load_state_dict(renamed)
    return model


def _sizes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The sizes of the VQGAN, read from names and shapes.

    Raises:
        ConfigError: when the names that tell them are not there.
    """
    try:
        hidden, channels = state["encoder.conv_in.weight"].shape[:2]
        levels = 1 + max(_numbers(state, r"encoder\.down\.(\d+)\."))
        widths = [
            state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)
        ]
        code_dim, latent = state["quant_conv.weight"].shape[:2]
        codes = state["quantize.embedding.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"these tensors are not those of a VQGAN: {error} tells a size and is not there"
        ) from error
    return {
        "channels": channels,
        "codebook_size": codes,
        "hidden": hidden,
        "multipliers": tuple(width // hidden for width in widths),
        "residual_blocks": len(_numbers(state, r"encoder\.down\.0\.block\.(\d+)\.")),
        "latent": latent,
        "code_dim": code_dim,
    }


def _numbers(state: Mapping[str, torch.Tensor], pattern: str) -> set[int]:
    """The numbers that a pattern finds at the beginning of names."""
    return {int(found[1]) for name in state if (found := re.match(pattern, name))}


def _names(model: VQGAN) -> dict[str, list[str]]:
    """Our names to taming's, of all weights; several of theirs where ours is one matrix of them."""
    last, blocks = len(model.multipliers) - 1, model.residual_blocks
    down = [
        part
        for level in range(last + 1)
        for part in _level("down", level, blocks, last, "downsample")
    ]
    up = [
        part
        for level in range(last, -1, -1)
        for part in _level("up", level, blocks + 1, last, "upsample")
    ]
    middle, out = ["mid.block_1", "mid.attn_1", "mid.block_2"], ["norm_out", "conv_out"]
    halves = {
        "encoder": ["conv_in", *down, *middle, *out],
        "decoder": ["conv_in", *middle, *up, *out],
    }
    names = {"quantizer.codebook": ["quantize.embedding.weight"]}
    for own, theirs in (("to_code", "quant_conv"), ("from_code", "post_quant_conv")):
        names |= {f"{own}.{kind}": [f"{theirs}.{kind}"] for kind in KINDS}
    for half, places in halves.items():
        for number, (part, place) in enumerate(zip(getattr(model, half), places, strict=True)):
            for own, theirs_of in _of_part(part).items():
                names[f"{half}.{number}.{own}"] = [f"{half}.{place}.{name}" for name in theirs_of]
    return names


def _level(direction: str, level: int, blocks: int, last: int, change: str) -> list[str]:
    """Their names of the parts of one resolution, in the order they are passed."""
    names = []
    for block in range(blocks):
        names += [f"{direction}.{level}.block.{block}"] + [f"{direction}.{level}.attn.{block}"] * (
            level == last
        )
    changes = level != last if direction == "down" else level != 0
    return names + [f"{direction}.{level}.{change}"] * changes


def _of_part(part: nn.Module) -> dict[str, list[str]]:
    """Our names of the weights within a part to theirs."""
    pairs = {"": [""]}
    if isinstance(part, Block):
        pairs = {f"{name}.": [f"{name}."] for name in ("norm1", "conv1", "norm2", "conv2")}
        if not isinstance(part.shortcut, nn.Identity):
            pairs["shortcut."] = ["nin_shortcut."]
    elif isinstance(part, Attention):
        pairs = {"norm.": ["norm."], "project.": ["q.", "k.", "v."], "merge.": ["proj_out."]}
    elif isinstance(part, (Down, Up)):
        pairs = {"conv.": ["conv."]}
    return {
        f"{own}{kind}": [f"{name}{kind}" for name in theirs]
        for own, theirs in pairs.items()
        for kind in KINDS
    }


ROSINALITY = {
    "enc_b.": "encode_bottom.",
    "enc_t.": "encode_top.",
    "quantize_conv_t.": "to_top.",
    "dec_t.": "decode_top.",
    "quantize_conv_b.": "to_bottom.",
    "upsample_t.": "enlarge_top.",
    "dec.": "decoder.",
    "quantize_t.": "top.",
    "quantize_b.": "bottom.",
}
"""Beginnings of rosinality's names of tensors, and of ours."""

AVERAGES = {"embed": "codebook", "embed_avg": "sums", "cluster_size": "counts"}
"""Its names of what a codebook keeps, codes in columns, and ours."""


def from_rosinality(
    state: Mapping[str, torch.Tensor], image_size: tuple[int, int] = (256, 256)
) -> VQVAE2:
    """The VQ-VAE-2 whose weights are those of a ``VQVAE`` of rosinality's vq-vae-2-pytorch.

    Args:
        state: tensors by the names they have there (``enc_b.blocks.0.weight``, ...).
        image_size: height and width of the images it is for.

    Raises:
        ConfigError: naming tensors that are missing, left over or of another shape.

    Returns:
        A ``vqvae2`` in eval mode, float32.
    """
    try:
        half, channels = state["enc_b.blocks.0.weight"].shape[:2]
        code_dim, codes = state["quantize_t.embed"].shape
        hidden = state["quantize_conv_t.weight"].shape[1]
        inner = (
            state["dec.blocks.1.conv.1.weight"].shape[0]
            if "dec.blocks.1.conv.1.weight" in state
            else 1
        )
    except KeyError as error:
        raise ConfigError(
            f"these tensors are not those of a VQ-VAE-2: {error} tells a size and is not there"
        ) from error
    model = create_tokenizer(
        "vqvae2",
        image_size=image_size,
        channels=channels,
        codebook_size=codes,
        hidden=hidden,
        code_dim=code_dim,
        residual_blocks=len(_numbers(state, r"dec\.blocks\.(\d+)\.conv\.1\.weight")),
        residual_hidden=inner,
    )
    assert isinstance(model, VQVAE2)
    renamed = {_of_rosinality(name): tensor.float() for name, tensor in state.items()}
    for name in list(renamed):
        if name.endswith((".codebook", ".sums")):
            renamed[name] = renamed[name].T.contiguous()
    for level in ("top", "bottom"):
        renamed |= {
            f"{level}.steps": torch.tensor(1),
            f"{level}.seed": model.state_dict()[f"{level}.seed"],
        }
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise ConfigError(
            f"these tensors are not those of a VQ-VAE-2 of {half} to {hidden} channels: {error}"
        ) from error
    return model


def _of_rosinality(name: str) -> str:
    """Our name of one of its tensors."""
    name = re.sub(r"\.blocks\.(\d+)\.", r".\1.", name)
    name = re.sub(r"\.conv\.([13])\.", lambda found: ".conv." if found[1] == "1" else ".out.", name)
    start = next((start for start in ROSINALITY if name.startswith(start)), "")
    rest = name.removeprefix(start)
    return ROSINALITY.get(start, "") + (
        AVERAGES.get(rest, rest) if start.startswith("quantize_") else rest
    )
