"""``PixelCNN`` of pixel-cnn-pp, the PyTorch port of PixelCNN++, which is our ``pixelcnn++``.

Weights are a norm times a direction there as here, so most tensors stay as they are. Three things
differ. Theirs shifts the result of the first convolutions, ours their input, so in the first row
(or column) theirs has no bias: ours goes to the weight of the constant channel, which is one
wherever there is a pixel. Transposed convolutions have a norm for each input there, and one for
each output here. And the last layer holds the parameters of the mixture channel by channel there,
kind by kind here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.exchange.layouts.foreign_layout import (
    Facts,
    ForeignLayout,
    Origin,
    Tensors,
    count,
    grid_values,
    same,
    shape_of,
    size_fact,
)
from tessella.grid import Grid
from tessella.models.pixelcnn_pp import PixelCNNpp
from tessella.tokenizers.construction import PlainValues

LEVELS = 256

PARTS = {1: 3, 3: 10}
"""Numbers for each component of the mixture in the last layer, by colour channels."""

PARAMETRIZED = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
"""Names of norm and direction, and those that newer versions of torch give them."""

STREAMS = {"vertical": ("u_stream", "u"), "horizontal": ("ul_stream", "ul")}
"""Our streams, and their names for the blocks and for the convolutions between resolutions."""

Conversion = Callable[[Sequence[torch.Tensor]], torch.Tensor]


class PixelCNNppPort(ForeignLayout):
    """``PixelCNN`` of pclucas14's pixel-cnn-pp."""

    kind = "pixel-cnn-pp"
    about = "PixelCNN of pclucas14's pixel-cnn-pp (PixelCNN++)"
    network = "density-model"
    known_facts: ClassVar[Mapping[str, str]] = {
        "image_size": "side of the images (default 32 for colour, 28 for grey)"
    }

    def config(self, tensors: Tensors, facts: Facts) -> PlainValues:
        filters, inputs = shape_of(tensors, _direction(tensors, "u_init.conv"), 4)[:2]
        # The input has a constant channel beside the colours.
        channels = inputs - 1
        if channels not in PARTS:
            raise ConfigError(f"its images have {channels} channels; 1 and 3 can be converted")
        outputs = shape_of(tensors, _direction(tensors, "nin_out.lin_a"), 2)[0]
        if outputs % PARTS[channels]:
            raise ConfigError(
                f"nin_out makes {outputs} numbers, which is no multiple of {PARTS[channels]}"
            )
        height, width = size_fact(facts, ["image_size"], 32 if channels == 3 else 28)
        return {
            "name": PixelCNNpp.name,
            "grid": grid_values(Grid(height, width, channels, LEVELS)),
            "head": {"name": "logistic-mixture", "components": outputs // PARTS[channels]},
            "classes": 0,
            "null_class": True,
            "sizes": {
                "blocks": count(tensors, r"up_layers\.0\.u_stream\.(\d+)\.", "blocks"),
                "filters": filters,
                "scales": count(tensors, r"up_layers\.(\d+)\.", "resolutions"),
                "embedding": 0,
                "dropout": 0.5,
            },
        }

    def origins(self, outline: nn.Module, tensors: Tensors, facts: Facts) -> dict[str, Origin]:
        assert isinstance(outline, PixelCNNpp)
        origins: dict[str, Origin] = {}
        # The column of each kernel that sees the pixel straight above, or straight to the left.
        first = {"first_v": ("u_init", 1), "first_above": ("ul_init.0", 1)}
        first["first_left"] = ("ul_init.1", 0)
        for ours, (theirs, column) in first.items():
            origins |= _first_convolution(tensors, ours, f"{theirs}.conv", column)
        scales = len(outline.scales)
        for scale in range(scales):
            ours = f"scales.{scale}"
            last = scale == scales - 1
            ups = outline.blocks if last else outline.blocks + 1
            for stream, (blocks, _) in STREAMS.items():
                for block in range(outline.blocks):
                    path = f"up_layers.{scale}.{blocks}.{block}"
                    mine = f"{ours}.down.{block}.{stream}"
                    origins |= _block(tensors, mine, path, stream == "horizontal", False)
                for block in range(ups):
                    # Their way up counts from the lowest resolution.
                    path = f"down_layers.{scales - 1 - scale}.{blocks}.{block}"
                    mine = f"{ours}.up.{block}.{stream}"
                    origins |= _block(tensors, mine, path, True, stream == "horizontal")
            if not last:
                origins |= _resize(tensors, f"{ours}.resize", scale, scales - 2 - scale)
        channels = outline.grid.channels
        lin = "nin_out.lin_a"
        pair = (_direction(tensors, lin), _norm(tensors, lin))
        origins["output.last.weight"] = Origin(pair, _last_weight(channels))
        origins["output.last.bias"] = Origin((f"{lin}.bias",), _by_kind(channels))
        return origins


def _direction(tensors: Tensors, path: str) -> str:
    return _normed_name(tensors, path, "weight_v")


def _norm(tensors: Tensors, path: str) -> str:
    return _normed_name(tensors, path, "weight_g")


def _normed_name(tensors: Tensors, path: str, part: str) -> str:
    """The name of a norm or a direction, as whichever version of torch wrote it."""
    newer = f"{path}.{PARAMETRIZED[part]}"
    return newer if newer in tensors else f"{path}.{part}"


def _normed(tensors: Tensors, ours: str, path: str) -> dict[str, Origin]:
    """The three tensors of a layer whose weights are a norm times a direction."""
    return {
        f"{ours}.direction": same(_direction(tensors, path)),
        f"{ours}.gain": same(_norm(tensors, path)),
        f"{ours}.bias": same(f"{path}.bias"),
    }


def _block(tensors: Tensors, ours: str, path: str, skip: bool, two_maps: bool) -> dict[str, Origin]:
    """The tensors of a gated block.

    Args:
        skip: whether it sees another map.
        two_maps: whether it sees two, whose features are in another order here.
    """
    origins = _normed(tensors, f"{ours}.inner", f"{path}.conv_input.conv")
    origins |= _normed(tensors, f"{ours}.outer", f"{path}.conv_out.conv")
    if skip:
        lin = f"{path}.nin_skip.lin_a"
        origins |= _normed(tensors, f"{ours}.skip", lin)
        if two_maps:
            origins[f"{ours}.skip.direction"] = Origin((_direction(tensors, lin),), _map_by_map)
    return origins


def _resize(tensors: Tensors, ours: str, down: int, up: int) -> dict[str, Origin]:
    """The convolutions between two resolutions.

    Args:
        down, up: their numbers for the step on the way down, and on the way up.
    """
    origins: dict[str, Origin] = {}
    for axis, (_, stream) in zip("vh", STREAMS.values(), strict=True):
        path = f"downsize_{stream}_stream.{down}.conv"
        origins |= _normed(tensors, f"{ours}.shrink_{axis}", path)
        path = f"upsize_{stream}_stream.{up}.deconv"
        pair = (_direction(tensors, path), _norm(tensors, path))
        origins[f"{ours}.grow_{axis}.direction"] = Origin(pair, _grown_direction)
        origins[f"{ours}.grow_{axis}.gain"] = Origin(pair, _grown_gain)
        origins[f"{ours}.grow_{axis}.bias"] = same(f"{path}.bias")
    return origins


def _first_convolution(tensors: Tensors, ours: str, path: str, column: int) -> dict[str, Origin]:
    """The tensors of a convolution that reads pixels, its bias moved to the constant channel.

    Args:
        column: of the kernel, that of the pixel straight above or to the left.
    """
    names = (_direction(tensors, path), _norm(tensors, path), f"{path}.bias")

    def weight(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        folded = _product(parts[0], parts[1]).clone()
        # The last row of the kernel sees the pixel wherever there is one.
        folded[:, -1, -1, column] += parts[2]
        return folded

    def direction(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return _nonzero(weight(parts))

    def gain(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return _lengths(weight(parts))

    return {
        f"{ours}.direction": Origin(names, direction),
        f"{ours}.gain": Origin(names, gain),
        f"{ours}.bias": Origin(names[2:], lambda parts: torch.zeros_like(parts[0])),
    }


def _product(direction: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Weights from their directions and norms, which are those of the first dimension."""
    return direction * (norm / _lengths(direction).clamp_min(1e-30))


def _lengths(weight: torch.Tensor) -> torch.Tensor:
    """The length of the weights of each output: ``[outputs, 1, ...]``."""
    lengths = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return lengths.view(-1, *(1 for _ in weight.shape[1:]))


def _nonzero(weight: torch.Tensor) -> torch.Tensor:
    """Weights as directions: those of length zero, which point nowhere, become ones."""
    return torch.where(_lengths(weight) == 0, torch.ones_like(weight), weight)


def _grown_weight(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """``[inputs, outputs, rows, columns]`` to ``[outputs, inputs, rows, columns]``."""
    return _product(parts[0], parts[1]).transpose(0, 1)


def _grown_direction(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return _nonzero(_grown_weight(parts))


def _grown_gain(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return _lengths(_grown_weight(parts))


def _map_by_map(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Features of two maps ``(u, ul, -u, -ul)`` in our order, ``(u, -u, ul, -ul)``."""
    u, ul, minus_u, minus_ul = parts[0].chunk(4, dim=1)
    return torch.cat([u, minus_u, ul, minus_ul], dim=1)


def _by_kind(channels: int) -> Conversion:
    """Rows of the last layer in our order: weights, means, log-scales, coefficients.

    Theirs are the weights, and then means, log-scales and coefficients of each colour in turn. The
    coefficients of the first, second and third colour are those of the pairs (1, 0), (2, 0) and
    (2, 1); grey images have none.
    """
    kinds = 3 if channels > 1 else 2

    def convert(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = parts[0]
        components = len(rows) // PARTS[channels]
        by_colour = rows[components:].unflatten(0, (channels, kinds, components))
        ordered = [rows[:components]]
        for kind in range(kinds):
            ordered.append(by_colour[:, kind].flatten(0, 1))
        return torch.cat(ordered)

    return convert


def _last_weight(channels: int) -> Conversion:
    """The weights of the last layer, in our order of rows."""
    reorder = _by_kind(channels)

    def convert(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return reorder([_product(parts[0], parts[1])])

    return convert
