"""Convert tokenizers of other projects to those of this package.

VQGANs of taming-transformers (Esser et al. 2021) and of LlamaGen (Sun et al. 2024) have the same
network as our :class:`VQGAN`, with the same tensors in the same order under other names; LlamaGen's
codes are unit vectors. A VQ-VAE-2 of rosinality's vq-vae-2-pytorch has that of our :class:`VQVAE2`.
This module maps the names of their tensors to ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.tokenizers import TokenizerArguments, create_tokenizer
from tessella.tokenizers.convnet import DeepBlock, Down, SpatialAttention, Up
from tessella.tokenizers.vqgan import VQGAN
from tessella.tokenizers.vqvae2 import LEVELS, VQVAE2

StateDict = Mapping[str, torch.Tensor]
"""Tensors by their names in a checkpoint."""

TRAINING = ("loss.", "quantize.codebook_used")
"""Prefixes of tensors that only training needs."""

KINDS = ("weight", "bias")

LLAMAGEN_MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}
"""LlamaGen's numbers for the modules at the lowest resolution, and taming's names."""

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
"""Prefixes of rosinality's tensors, and ours."""

ROSINALITY_CONVOLUTIONS = {"1": ".conv.", "3": ".out."}
"""Rosinality's numbers for the convolutions of a residual block, and our names."""

ROSINALITY_AVERAGES = {"embed": "codebook", "embed_avg": "sums", "cluster_size": "counts"}
"""Rosinality's names for the tensors of a codebook, with codes in columns, and ours."""


def from_taming(state: StateDict, image_size: tuple[int, int] = (256, 256)) -> VQGAN:
    """Convert the weights of a ``VQModel`` of taming-transformers to a VQGAN.

    Args:
        state: tensors by the names they have there (``encoder.conv_in.weight``, ...). The
            discriminator and the perceptual network (``loss.*``) are left out.
        image_size: height and width of the images that it is meant for.

    Raises:
        ConfigError: naming tensors that are missing, unknown or of another shape. Attention at any
            but the lowest resolution counts as unknown.

    Returns:
        A ``vqgan`` in eval mode, float32.
    """
    return _vqgan(state, image_size, cosine=False)


def from_llamagen_vq(state: StateDict, image_size: tuple[int, int] = (256, 256)) -> VQGAN:
    """Convert the weights of a ``VQModel`` of LlamaGen to a VQGAN; see :func:`from_taming`."""
    levels = 1 + max(_numbers(state, r"decoder\.conv_blocks\.(\d+)\."), default=0)
    renamed = {_llamagen_to_taming(name, levels): tensor for name, tensor in state.items()}
    return _vqgan(renamed, image_size, cosine=True)


def from_rosinality(state: StateDict, image_size: tuple[int, int] = (256, 256)) -> VQVAE2:
    """Convert the weights of a ``VQVAE`` of rosinality's vq-vae-2-pytorch to a VQ-VAE-2.

    Args:
        state: tensors by the names they have there (``enc_b.blocks.0.weight``, ...).
        image_size: height and width of the images that it is meant for.

    Raises:
        ConfigError: naming tensors that are missing, unknown or of another shape.

    Returns:
        A ``vqvae2`` in eval mode, float32.
    """
    sizes = _vqvae2_sizes(state)
    sizes["image_size"] = image_size
    model = create_tokenizer("vqvae2", **sizes)
    assert isinstance(model, VQVAE2)
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        name = _rosinality_to_ours(name)
        if name.endswith((".codebook", ".sums")):
            # Their codes are columns, ours are rows: [dim, codes] to [codes, dim].
            tensor = tensor.T
        renamed[name] = tensor.float().contiguous()
    for level in LEVELS:
        # The codes are placed, after an unknown number of steps; 1 stands for that.
        renamed[f"{level}.steps"] = torch.tensor(1)
        renamed[f"{level}.seed"] = model.state_dict()[f"{level}.seed"]
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise ConfigError(
            f"these tensors are not those of a VQ-VAE-2 of {sizes['hidden']} channels: {error}"
        ) from error
    return model


def _vqgan(state: StateDict, image_size: tuple[int, int], cosine: bool) -> VQGAN:
    """Build a VQGAN from tensors under taming's names."""
    given = {name: tensor for name, tensor in state.items() if not name.startswith(TRAINING)}
    sizes = _vqgan_sizes(given)
    sizes["image_size"] = image_size
    sizes["quantizer"] = "vq"
    sizes["options"] = {"cosine": cosine}
    model = create_tokenizer("vqgan", **sizes)
    assert isinstance(model, VQGAN)
    fresh = model.state_dict()
    renamed = {
        "quantizer.counts": fresh["quantizer.counts"],
        "quantizer.seed": fresh["quantizer.seed"],
        # The codes are placed, after an unknown number of steps; 1 stands for that.
        "quantizer.steps": torch.ones_like(fresh["quantizer.steps"]),
    }
    wanted = _names(model)
    _check_names(wanted, given)
    for name, names in wanted.items():
        # Query, key and value are three convolutions there and one here, in this order.
        tensor = torch.cat([given[part] for part in names]).float()
        if tensor.shape != fresh[name].shape:
            raise ConfigError(
                f"{names[0]} makes a tensor {list(tensor.shape)}, but {name} must be "
                f"{list(fresh[name].shape)}"
            )
        renamed[name] = tensor
    model.load_state_dict(renamed)
    return model


def _check_names(wanted: Mapping[str, Sequence[str]], given: StateDict) -> None:
    """Refuse tensors whose names do not match, and list them.

    Args:
        wanted: for each of our names, the names there.
    """
    expected: set[str] = set()
    for names in wanted.values():
        expected.update(names)
    found = []
    differences = {"missing": expected - given.keys(), "unknown": given.keys() - expected}
    for what, unmatched in differences.items():
        if unmatched:
            first = sorted(unmatched)[:3]
            dots = ", ..." if len(unmatched) > 3 else ""
            found.append(f"{len(unmatched)} {what} ({', '.join(first)}{dots})")
    if found:
        raise ConfigError(
            "these tensors are not those of a VQGAN with attention at the lowest level only: "
            f"{'; '.join(found)}"
        )


def _vqgan_sizes(state: StateDict) -> TokenizerArguments:
    """Infer the sizes of a VQGAN from taming's names and shapes.

    Raises:
        ConfigError: when a tensor that shows a size is missing.
    """
    try:
        # Weights of convolutions are [out, in, rows, columns].
        hidden, channels = state["encoder.conv_in.weight"].shape[:2]
        levels = 1 + max(_numbers(state, r"encoder\.down\.(\d+)\."))
        multipliers: list[int] = []
        for level in range(levels):
            width = state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0]
            multipliers.append(width // hidden)
        code_dim, latent = state["quant_conv.weight"].shape[:2]
        codes = state["quantize.embedding.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"these tensors are not those of a VQGAN: {error}, which shows a size, is missing"
        ) from error
    return {
        "channels": channels,
        "codebook_size": codes,
        "hidden": hidden,
        "multipliers": tuple(multipliers),
        "residual_blocks": len(_numbers(state, r"encoder\.down\.0\.block\.(\d+)\.")),
        "latent": latent,
        "code_dim": code_dim,
    }


def _vqvae2_sizes(state: StateDict) -> TokenizerArguments:
    """Infer the sizes of a VQ-VAE-2 from rosinality's names and shapes.

    Raises:
        ConfigError: when a tensor that shows a size is missing.
    """
    try:
        channels = state["enc_b.blocks.0.weight"].shape[1]
        code_dim, codes = state["quantize_t.embed"].shape
        hidden = state["quantize_conv_t.weight"].shape[1]
    except KeyError as error:
        raise ConfigError(
            f"these tensors are not those of a VQ-VAE-2: {error}, which shows a size, is missing"
        ) from error
    # Without residual blocks, nothing shows this size, and it does not matter.
    inner = 1
    if "dec.blocks.1.conv.1.weight" in state:
        inner = state["dec.blocks.1.conv.1.weight"].shape[0]
    return {
        "channels": channels,
        "codebook_size": codes,
        "hidden": hidden,
        "code_dim": code_dim,
        "residual_blocks": len(_numbers(state, r"dec\.blocks\.(\d+)\.conv\.1\.weight")),
        "residual_hidden": inner,
    }


def _numbers(state: Iterable[str], pattern: str) -> set[int]:
    """The numbers that a pattern captures at the beginning of names."""
    numbers: set[int] = set()
    for name in state:
        found = re.match(pattern, name)
        if found is not None:
            numbers.add(int(found[1]))
    return numbers


def _llamagen_to_taming(name: str, levels: int) -> str:
    """Taming's name for one of LlamaGen's tensors.

    Args:
        levels: number of resolutions, which LlamaGen's decoder counts from the lowest.
    """

    def resolution(found: re.Match[str]) -> str:
        half = found[1]
        level = int(found[2])
        part = "block" if found[3] == "res" else found[3]
        path = f"down.{level}"
        if half == "decoder":
            path = f"up.{levels - 1 - level}"
        return f"{half}.{path}.{part}."

    def middle(found: re.Match[str]) -> str:
        return f".mid.{LLAMAGEN_MIDDLE[found[1]]}."

    name = re.sub(r"^(encoder|decoder)\.conv_blocks\.(\d+)\.(\w+)\.", resolution, name)
    return re.sub(r"\.mid\.([012])\.", middle, name)


def _names(model: VQGAN) -> dict[str, list[str]]:
    """For each of our weights, taming's names; several if ours is their concatenation."""
    paths = {"encoder": _encoder_paths(model), "decoder": _decoder_paths(model)}
    names = {"quantizer.codebook": ["quantize.embedding.weight"]}
    # The 1x1 convolutions around the codes, which belong to neither half.
    for ours, theirs in (("to_code", "quant_conv"), ("from_code", "post_quant_conv")):
        for kind in KINDS:
            names[f"{ours}.{kind}"] = [f"{theirs}.{kind}"]
    for half, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        # Both networks are sequences of the same modules in the same order, so indices match.
        for number, (part, path) in enumerate(zip(network, paths[half], strict=True)):
            for ours, theirs_of_part in _part_names(part).items():
                names[f"{half}.{number}.{ours}"] = [
                    f"{half}.{path}.{name}" for name in theirs_of_part
                ]
    return names


MIDDLE_PATHS = ["mid.block_1", "mid.attn_1", "mid.block_2"]
OUTPUT_PATHS = ["norm_out", "conv_out"]


def _encoder_paths(model: VQGAN) -> list[str]:
    """Taming's names for the modules of the encoder, in the order of execution."""
    lowest = len(model.multipliers) - 1
    paths = ["conv_in"]
    for level in range(lowest + 1):
        paths += _blocks("down", level, model.residual_blocks, level == lowest)
        if level != lowest:
            paths.append(f"down.{level}.downsample")
    return paths + MIDDLE_PATHS + OUTPUT_PATHS


def _decoder_paths(model: VQGAN) -> list[str]:
    """Taming's names for the modules of the decoder, in the order of execution."""
    lowest = len(model.multipliers) - 1
    paths = ["conv_in", *MIDDLE_PATHS]
    # Executed from the lowest resolution up, though the names count from the highest.
    for level in range(lowest, -1, -1):
        paths += _blocks("up", level, model.residual_blocks + 1, level == lowest)
        if level > 0:
            paths.append(f"up.{level}.upsample")
    return paths + OUTPUT_PATHS


def _blocks(direction: str, level: int, blocks: int, attention: bool) -> list[str]:
    """Taming's names for the blocks of one resolution, each followed by its attention, if any."""
    paths: list[str] = []
    for block in range(blocks):
        paths.append(f"{direction}.{level}.block.{block}")
        if attention:
            paths.append(f"{direction}.{level}.attn.{block}")
    return paths


def _part_names(part: nn.Module) -> dict[str, list[str]]:
    """For each of our weights within a module, taming's names."""
    # A convolution or a normalization by itself has only its weight and bias.
    pairs = {"": [""]}
    if isinstance(part, DeepBlock):
        pairs = {f"{name}.": [f"{name}."] for name in ("norm1", "conv1", "norm2", "conv2")}
        # A shortcut has weights only where the width changes.
        if not isinstance(part.shortcut, nn.Identity):
            pairs["shortcut."] = ["nin_shortcut."]
    elif isinstance(part, SpatialAttention):
        pairs = {"norm.": ["norm."], "project.": ["q.", "k.", "v."], "merge.": ["proj_out."]}
    elif isinstance(part, (Down, Up)):
        pairs = {"conv.": ["conv."]}
    names: dict[str, list[str]] = {}
    for ours, theirs in pairs.items():
        for kind in KINDS:
            names[f"{ours}{kind}"] = [f"{name}{kind}" for name in theirs]
    return names


def _rosinality_to_ours(name: str) -> str:
    """Our name for one of rosinality's tensors."""
    # Example: enc_b.blocks.3.conv.1.weight to encode_bottom.3.conv.weight. In the inner sequence, 0
    # and 2 are activations, so the convolutions have the numbers 1 and 3.
    name = re.sub(r"\.blocks\.(\d+)\.", r".\1.", name)
    name = re.sub(r"\.conv\.([13])\.", lambda found: ROSINALITY_CONVOLUTIONS[found[1]], name)
    for theirs, ours in ROSINALITY.items():
        if name.startswith(theirs):
            rest = name.removeprefix(theirs)
            if theirs.startswith("quantize_"):
                # Codebooks and the convolutions before them share this prefix.
                rest = ROSINALITY_AVERAGES.get(rest, rest)
            return ours + rest
    return name
