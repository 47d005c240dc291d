"""Tokenizers with the deep encoder and decoder of VQGAN: taming-transformers and what follows it.

taming-transformers (Esser et al. 2021) named the tensors first. LlamaGen (Sun et al. 2024),
diffusers and VAR (Tian et al. 2024) have the same modules in the same order under other names, so
each layout turns its names into taming's, and one function turns taming's into ours.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.exchange.layouts.foreign_layout import (
    Facts,
    ForeignLayout,
    Origin,
    Tensors,
    constant,
    count,
    fixed_fact,
    integer_fact,
    numbers,
    same,
    shape_of,
    size_fact,
)
from tessella.tokenizers.construction import PlainValues
from tessella.tokenizers.convnet import DeepBlock, Down, SpatialAttention, Up
from tessella.tokenizers.multiscale import MultiscaleVQGAN
from tessella.tokenizers.vqgan import VQGAN

WEIGHTS = ("weight", "bias")

DeepTokenizer = VQGAN | MultiscaleVQGAN
"""Our tokenizers with this encoder and decoder."""

MIDDLE_PATHS = ["mid.block_1", "mid.attn_1", "mid.block_2"]
OUTPUT_PATHS = ["norm_out", "conv_out"]
"""Taming's names for the modules at the lowest resolution, and for the last ones."""


class DeepLayout(ForeignLayout):
    """Base of the layouts whose names can be turned into those of taming-transformers."""

    network = "tokenizer"
    ignored: ClassVar[tuple[str, ...]] = ("loss.",)
    levels_pattern: ClassVar[str] = r"encoder\.down\.(\d+)\."
    """Captures the number of a resolution in the names of the encoder."""

    @abstractmethod
    def taming_name(self, name: str, levels: int) -> str:
        """Taming's name for a tensor.

        Args:
            levels: number of resolutions.
        """

    def renamed(self, tensors: Tensors) -> dict[str, str]:
        """The names of the checkpoint by taming's names."""
        levels = max(numbers(tensors, self.levels_pattern), default=0) + 1
        return {self.taming_name(name, levels): name for name in tensors}

    def by_taming_name(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """The tensors under taming's names."""
        return {taming: tensors[name] for taming, name in self.renamed(tensors).items()}

    def origins(self, outline: nn.Module, tensors: Tensors, facts: Facts) -> dict[str, Origin]:
        assert isinstance(outline, (VQGAN, MultiscaleVQGAN))
        theirs = self.renamed(tensors)
        origins: dict[str, Origin] = {}
        for ours, names in taming_names(outline, theirs).items():
            known = tuple(_their_name(name, theirs) for name in names)
            origins[ours] = Origin(known, _joined)
        return {**origins, **self.codebook(outline, tensors)}

    def codebook(self, outline: DeepTokenizer, tensors: Tensors) -> dict[str, Origin]:
        """Where the tensors of the quantizer come from."""
        codes = outline.quantizer.levels
        return {
            "quantizer.codebook": same("quantize.embedding.weight"),
            "quantizer.counts": constant(torch.zeros(codes)),
            # The codes are placed, after an unknown number of steps; 1 stands for that.
            "quantizer.steps": constant(torch.tensor(1)),
            "quantizer.seed": constant(torch.tensor(0)),
        }


def deep_sizes(tensors: Tensors) -> PlainValues:
    """The sizes of encoder, decoder and codebook, from taming's names and shapes.

    Raises:
        ConfigError: when a tensor that shows a size is missing, or widths are no multiples.
    """
    # Weights of convolutions are [out, in, rows, columns].
    hidden, channels = shape_of(tensors, "encoder.conv_in.weight", 4)[:2]
    levels = count(tensors, r"encoder\.down\.(\d+)\.", "resolutions")
    multipliers: list[int] = []
    attention: list[int] = []
    for level in range(levels):
        name = f"encoder.down.{level}.block.0.conv1.weight"
        width = shape_of(tensors, name, 4)[0]
        if width % hidden:
            raise ConfigError(
                f"{name} makes {width} channels, which is no multiple of the {hidden} that "
                "encoder.conv_in.weight makes; such widths cannot be converted"
            )
        multipliers.append(width // hidden)
        if numbers(tensors, rf"encoder\.down\.{level}\.attn\.(\d+)\."):
            attention.append(level)
    codes, code_dim = shape_of(tensors, "quantize.embedding.weight", 2)
    return {
        "channels": channels,
        "hidden": hidden,
        "multipliers": multipliers,
        "residual_blocks": count(tensors, r"encoder\.down\.0\.block\.(\d+)\.", "blocks"),
        "attention": attention,
        "codebook_size": codes,
        "code_dim": code_dim,
        "quantizer": "vq",
    }


class TamingVQGAN(DeepLayout):
    """``VQModel`` of taming-transformers."""

    kind = "taming-vqgan"
    about = "VQModel of taming-transformers, also the VQ models of latent-diffusion"
    known_facts: ClassVar[Mapping[str, str]] = {"resolution": "side of the images (default 256)"}

    def taming_name(self, name: str, levels: int) -> str:
        return name

    def config(self, tensors: Tensors, facts: Facts) -> PlainValues:
        sizes = deep_sizes(self.by_taming_name(tensors))
        latent = shape_of(tensors, "quant_conv.weight", 4)[1]
        size = size_fact(facts, ["resolution", "image_size"], 256)
        return {"name": VQGAN.name, **sizes, "latent": latent, "image_size": size}


LLAMAGEN_MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}
"""LlamaGen's numbers for the modules at the lowest resolution, and taming's names."""


class LlamaGenVQ(DeepLayout):
    """``VQModel`` of LlamaGen, whose codes are unit vectors."""

    kind = "llamagen-vq"
    about = "VQModel of LlamaGen"
    ignored = ("loss.", "quantize.codebook_used")
    levels_pattern = r"encoder\.conv_blocks\.(\d+)\."
    known_facts: ClassVar[Mapping[str, str]] = {
        "image_size": "side of the images (default 256)",
        "codebook_l2_norm": "whether codes are unit vectors (default true)",
    }

    def taming_name(self, name: str, levels: int) -> str:
        def resolution(found: re.Match[str]) -> str:
            part = "block" if found[3] == "res" else found[3]
            path = f"down.{found[2]}"
            if found[1] == "decoder":
                # LlamaGen's decoder counts from the lowest resolution.
                path = f"up.{levels - 1 - int(found[2])}"
            return f"{found[1]}.{path}.{part}."

        def middle(found: re.Match[str]) -> str:
            return f".mid.{LLAMAGEN_MIDDLE[found[1]]}."

        name = re.sub(r"^(encoder|decoder)\.conv_blocks\.(\d{1,4})\.(\w+)\.", resolution, name)
        return re.sub(r"\.mid\.([012])\.", middle, name)

    def config(self, tensors: Tensors, facts: Facts) -> PlainValues:
        sizes = deep_sizes(self.by_taming_name(tensors))
        cosine = facts.get("codebook_l2_norm", True)
        if not isinstance(cosine, bool):
            raise ConfigError(f"codebook_l2_norm must be true or false, got {cosine!r:.60}")
        return {
            "name": VQGAN.name,
            **sizes,
            "latent": shape_of(tensors, "quant_conv.weight", 4)[1],
            "options": {"cosine": cosine},
            "image_size": size_fact(facts, ["image_size"], 256),
        }


DIFFUSERS_PARTS = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.downsamplers\.0\.", ".downsample."),
    (r"\.upsamplers\.0\.", ".upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(to_q|query)\.", ".q."),
    (r"\.(to_k|key)\.", ".k."),
    (r"\.(to_v|value)\.", ".v."),
    (r"\.(to_out\.0|proj_attn)\.", ".proj_out."),
)
"""Parts of diffusers' names, of old versions too, and of taming's."""


class DiffusersVQModel(DeepLayout):
    """``VQModel`` of diffusers."""

    kind = "diffusers-vqmodel"
    about = "VQModel of diffusers"
    levels_pattern = r"encoder\.down_blocks\.(\d+)\."
    known_facts: ClassVar[Mapping[str, str]] = {
        "sample_size": "side of the images (default 256)",
        "norm_num_groups": "groups of the normalization (default 32)",
    }

    def taming_name(self, name: str, levels: int) -> str:
        def up(found: re.Match[str]) -> str:
            # Diffusers' decoder counts from the lowest resolution.
            return f"decoder.up.{levels - 1 - int(found[1])}."

        name = re.sub(r"^encoder\.down_blocks\.", "encoder.down.", name)
        name = re.sub(r"^decoder\.up_blocks\.(\d{1,4})\.", up, name)
        for theirs, taming in DIFFUSERS_PARTS:
            name = re.sub(theirs, taming, name)
        return name

    def config(self, tensors: Tensors, facts: Facts) -> PlainValues:
        fixed_fact(facts, "act_fn", "silu")
        fixed_fact(facts, "norm_type", "group")
        sizes = deep_sizes(self.by_taming_name(tensors))
        return {
            "name": VQGAN.name,
            **sizes,
            "latent": shape_of(tensors, "quant_conv.weight", 4)[1],
            "groups": integer_fact(facts, "norm_num_groups", 32),
            "image_size": size_fact(facts, ["sample_size", "image_size"], 256),
        }


class VarVQVAE(DeepLayout):
    """``VQVAE`` of VAR: residual codes of several scales."""

    kind = "var-vqvae"
    about = "VQVAE of VAR (multi-scale residual codes)"
    ignored = ("loss.", "quantize.ema_vocab_hit_SV")
    known_facts: ClassVar[Mapping[str, str]] = {
        "v_patch_nums": "sides of the code grids, coarse to fine (default 1,2,3,4,5,6,8,10,13,16)",
        "quant_resi": "share of the convolution of enlarged codes (default 0.5)",
    }

    def taming_name(self, name: str, levels: int) -> str:
        return name

    def config(self, tensors: Tensors, facts: Facts) -> PlainValues:
        fixed_fact(facts, "using_znorm", False)
        sizes = deep_sizes(tensors)
        blend = facts.get("quant_resi", 0.5)
        if isinstance(blend, bool) or not isinstance(blend, (int, float)):
            raise ConfigError(f"quant_resi must be a number, got {blend!r:.60}")
        scales = self._scales(tensors, facts)
        # The finest grid is that of the features.
        side = scales[-1] * 2 ** (len(sizes["multipliers"]) - 1)
        return {
            "name": MultiscaleVQGAN.name,
            **sizes,
            "scales": scales,
            "blends": len(self._blend_paths(tensors)),
            # Only its absolute value is used there.
            "blend": abs(float(blend)),
            "code_kernel": shape_of(tensors, "quant_conv.weight", 4)[2],
            "image_size": (side, side),
        }

    def codebook(self, outline: DeepTokenizer, tensors: Tensors) -> dict[str, Origin]:
        origins = super().codebook(outline, tensors)
        for number, path in enumerate(self._blend_paths(tensors)):
            for part in WEIGHTS:
                origins[f"blends.{number}.{part}"] = same(f"{path}.{part}")
        return origins

    def _scales(self, tensors: Tensors, facts: Facts) -> list[int]:
        """The sides of the code grids, which no tensor shows."""
        counted = None
        if "quantize.ema_vocab_hit_SV" in tensors:
            # Its rows count how often codes were used at each scale.
            counted = shape_of(tensors, "quantize.ema_vocab_hit_SV", 2)[0]
        given = facts.get("v_patch_nums")
        if given is None and counted in (None, 10):
            return [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
        if given is None:
            raise ConfigError(
                f"it has {counted} scales, whose sides no tensor shows: give v_patch_nums=[1,2,...]"
            )
        if not isinstance(given, (list, tuple)) or not given:
            raise ConfigError(f"v_patch_nums must be a list of sides, got {given!r:.60}")
        scales: list[int] = []
        for value in given:
            side = integer_fact({"each of v_patch_nums": value}, "each of v_patch_nums")
            assert side is not None
            scales.append(side)
        return scales

    def _blend_paths(self, tensors: Tensors) -> list[str]:
        """The convolutions of enlarged codes: one, some or all scales have one of their own."""
        root = "quantize.quant_resi"
        if f"{root}.qresi.weight" in tensors:
            return [f"{root}.qresi"]
        for path in (f"{root}.qresi_ls", root):
            found = numbers(tensors, re.escape(path) + r"\.(\d+)\.")
            if found:
                return [f"{path}.{number}" for number in range(max(found) + 1)]
        raise ConfigError(f"{root}.*, the convolutions of enlarged codes, are missing")


def _their_name(taming: str, theirs: Mapping[str, str]) -> str:
    """The name of the checkpoint for one of taming's.

    Of a tensor that is missing it is known if the weight or bias beside it is there.
    """
    if taming in theirs:
        return theirs[taming]
    path, _, part = taming.rpartition(".")
    other = WEIGHTS[1 - WEIGHTS.index(part)]
    beside = theirs.get(f"{path}.{other}")
    return taming if beside is None else beside.removesuffix(other) + part


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Query, key and value are three layers there and one here, in this order.

    Matrices of attention become 1x1 convolutions.
    """
    tensor = torch.cat(list(parts))
    return tensor[:, :, None, None] if tensor.dim() == 2 else tensor


def taming_names(model: DeepTokenizer, known: Mapping[str, object]) -> dict[str, list[str]]:
    """For each of our weights, taming's names; several if ours is their concatenation.

    Args:
        model: our tokenizer.
        known: taming's names that there are, which decides between ways to store attention.
    """
    paths = {"encoder": _encoder_paths(model), "decoder": _decoder_paths(model)}
    names: dict[str, list[str]] = {}
    # The convolutions around the codes, which belong to neither half.
    for ours, theirs in (("to_code", "quant_conv"), ("from_code", "post_quant_conv")):
        for part in WEIGHTS:
            names[f"{ours}.{part}"] = [f"{theirs}.{part}"]
    for half, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        assert isinstance(network, nn.Sequential)
        # Both networks are sequences of the same modules in the same order, so indices match.
        for number, (module, path) in enumerate(zip(network, paths[half], strict=True)):
            fused = f"{half}.{path}.qkv.weight" in known
            for ours, theirs_of_part in _part_names(module, fused).items():
                names[f"{half}.{number}.{ours}"] = [
                    f"{half}.{path}.{name}" for name in theirs_of_part
                ]
    return names


def _encoder_paths(model: DeepTokenizer) -> list[str]:
    """Taming's names for the modules of the encoder, in the order of execution."""
    levels = len(model.multipliers)
    attended = model.deep.attended(levels)
    paths = ["conv_in"]
    for level in range(levels):
        paths += _blocks("down", level, model.residual_blocks, level in attended)
        if level != levels - 1:
            paths.append(f"down.{level}.downsample")
    return paths + MIDDLE_PATHS + OUTPUT_PATHS


def _decoder_paths(model: DeepTokenizer) -> list[str]:
    """Taming's names for the modules of the decoder, in the order of execution."""
    levels = len(model.multipliers)
    attended = model.deep.attended(levels)
    paths = ["conv_in", *MIDDLE_PATHS]
    # Executed from the lowest resolution up, though the names count from the highest.
    for level in range(levels - 1, -1, -1):
        paths += _blocks("up", level, model.residual_blocks + 1, level in attended)
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


def _part_names(module: nn.Module, fused: bool) -> dict[str, list[str]]:
    """For each of our weights within a module, taming's names.

    Args:
        fused: whether query, key and value are one tensor there, too.
    """
    # A convolution or a normalization by itself has only its weight and bias.
    pairs = {"": [""]}
    if isinstance(module, DeepBlock):
        pairs = {f"{name}.": [f"{name}."] for name in ("norm1", "conv1", "norm2", "conv2")}
        # A shortcut has weights only where the width changes.
        if not isinstance(module.shortcut, nn.Identity):
            pairs["shortcut."] = ["nin_shortcut."]
    elif isinstance(module, SpatialAttention):
        project = ["qkv."] if fused else ["q.", "k.", "v."]
        pairs = {"norm.": ["norm."], "project.": project, "merge.": ["proj_out."]}
    elif isinstance(module, (Down, Up)):
        pairs = {"conv.": ["conv."]}
    names: dict[str, list[str]] = {}
    for ours, theirs in pairs.items():
        for part in WEIGHTS:
            names[f"{ours}{part}"] = [f"{name}{part}" for name in theirs]
    return names
