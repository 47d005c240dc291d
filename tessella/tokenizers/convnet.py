"""The deep encoder and decoder of VQGAN (Esser et al. 2021, table 7).

They consist of residual convolutions with group normalization, and attention at the lowest
resolution (or at others, see :class:`DeepOptions`).

Inside, activations are stored channels last on a CPU, like the images, and channels first on a GPU,
which suits its group normalization.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.tokenizers.construction import check_count

GROUPS = 32
"""Number of groups of channels that are normalized together, if it divides the channels."""

MAX_GROUPS = 2**16

GROUP_CHANNELS = 4
"""Approximate number of channels per group otherwise."""


@dataclass(frozen=True)
class DeepOptions:
    """Where a deep encoder and its decoder attend, and how they normalize.

    Args:
        attention: the resolutions at which each block is followed by attention; 0 is the highest,
            -1 the lowest. The two blocks in the middle, below the lowest, always have attention
            between them.
        groups: number of groups of channels that are normalized together, if it divides the
            channels.
    """

    attention: tuple[int, ...] = (-1,)
    groups: int = GROUPS

    def attended(self, resolutions: int) -> list[int]:
        """The resolutions with attention, counted from the highest.

        Args:
            resolutions: how many there are.

        Raises:
            ConfigError: when one of them does not exist, or there are no groups.
        """
        check_count("groups", self.groups, 1, MAX_GROUPS)
        for level in self.attention:
            if not -resolutions <= level < resolutions:
                raise ConfigError(
                    f"attention must name resolutions in {-resolutions}..{resolutions - 1}, "
                    f"got {level}"
                )
        return sorted({level % resolutions for level in self.attention})


class Norm(nn.GroupNorm):
    """Group normalization over ``[n, channels, h, w]``, by default followed by ``x sigmoid(x)``.

    There are ``groups`` groups if that divides the channels, else groups of about four channels.
    Statistics are float32 (or wider), also under autocast.

    Args:
        channels: channels of the input.
        swish: whether ``x sigmoid(x)`` is applied to the result.
        groups: see :class:`DeepOptions`.
    """

    def __init__(self, channels: int, swish: bool = True, groups: int = GROUPS) -> None:
        if channels % groups != 0:
            groups = math.gcd(channels, max(1, channels // GROUP_CHANNELS))
        super().__init__(groups, channels, eps=1e-6)
        self.swish = swish

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        if self.swish:
            # Nothing else uses the normalized values, except for a gradient.
            x = F.silu(x, inplace=not torch.is_grad_enabled())
        return x


class DeepBlock(nn.Module):
    """``x + conv3x3(norm(conv3x3(norm(x))))``.

    A 1x1 convolution is applied to the first ``x`` if the number of channels changes.

    Args:
        channels: channels of the input ``[n, channels, h, w]``.
        width: channels of the result.
        groups: see :class:`DeepOptions`.
    """

    def __init__(self, channels: int, width: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm1 = Norm(channels, groups=groups)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = Norm(width, groups=groups)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(self.norm1(x))
        return _add(self.conv2(self.norm2(hidden)), self.shortcut(x))


class SpatialAttention(nn.Module):
    """``x`` plus self-attention over all positions of ``[n, channels, h, w]``.

    There is a single head, as wide as the channels.
    """

    def __init__(self, channels: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm = Norm(channels, swish=False, groups=groups)
        self.project = nn.Conv2d(channels, 3 * channels, 1)
        self.merge = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = x.shape
        projected = self.project(self.norm(x)).permute(0, 2, 3, 1)  # [n, h, w, 3 channels]
        projected = projected.reshape(n, 1, height * width, 3 * channels)
        query, key, value = projected.chunk(3, dim=3)  # [n, 1, h w, channels] each
        # softmax(q k^T / sqrt(channels)) v
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.reshape(n, height, width, channels).permute(0, 3, 1, 2)
        return _add(self.merge(mixed), x)


class Down(nn.Module):
    """Halve height and width: a 3x3 convolution with stride 2.

    ``[n, channels, h, w]`` is padded with zeros at the bottom and on the right only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Padding on one side only would need a padded copy. With two rows of zeros on both sides,
        # only the first row and column of the result see unwanted zeros, and they are dropped.
        return self.conv(x)[:, :, 1:, 1:]


class Up(nn.Module):
    """Double height and width: repeat each pixel, then apply a 3x3 convolution.

    Several of the nine weights of an output pixel apply to the same input pixel. They are added
    first; what remains is a transposed convolution, with 4/9 of the multiplications and no enlarged
    copy of the input ``[n, channels, h, w]``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = _merge_repeated(self.conv.weight, 2)
        kernel = _merge_repeated(rows, 3).transpose(0, 1)  # [in, out, 4, 4]
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


def resolution_layers(
    channels: int, width: int, blocks: int, attention: bool, groups: int
) -> list[nn.Module]:
    """The blocks of one resolution, each followed by attention if that is wanted.

    Args:
        channels: channels of the input.
        width: channels of the result.
        blocks: number of residual blocks.
        attention: whether each block is followed by attention.
        groups: see :class:`DeepOptions`.
    """
    layers: list[nn.Module] = []
    for block in range(blocks):
        layers.append(DeepBlock(width if block else channels, width, groups))
        if attention:
            layers.append(SpatialAttention(width, groups))
    return layers


def middle_layers(width: int, groups: int) -> list[nn.Module]:
    """Two blocks around attention, at the lowest resolution of encoder and decoder."""
    return [
        DeepBlock(width, width, groups),
        SpatialAttention(width, groups),
        DeepBlock(width, width, groups),
    ]


class DeepEncoder(nn.Sequential):
    """Images ``[n, channels, h, w]`` to ``[n, latent, h', w']``.

    Height and width are halved between consecutive resolutions.

    Args:
        channels: channels of the images.
        hidden: channels of the convolutions, before multiplication.
        multipliers: a factor for ``hidden`` at each resolution, highest first.
        blocks: residual blocks per resolution; two more, around attention, follow the last.
        latent: channels of the result.
        options: where it attends, and how it normalizes.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        multipliers: Sequence[int],
        blocks: int,
        latent: int,
        options: DeepOptions,
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 3, padding=1)]
        before = hidden
        last = len(multipliers) - 1
        attended = options.attended(len(multipliers))
        groups = options.groups
        for level, multiplier in enumerate(multipliers):
            width = hidden * multiplier
            layers += resolution_layers(before, width, blocks, level in attended, groups)
            before = width
            if level != last:
                layers.append(Down(before))
        # Two more blocks at the lowest resolution, where attention covers the whole image.
        layers += middle_layers(before, groups)
        norm = Norm(before, groups=groups)
        super().__init__(*layers, norm, nn.Conv2d(before, latent, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(_in_best_layout(x))


class DeepDecoder(nn.Sequential):
    """``[n, latent, h', w']`` to images ``[n, channels, h, w]``.

    It mirrors :class:`DeepEncoder`, which has the same arguments, with one more block per
    resolution.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        multipliers: Sequence[int],
        blocks: int,
        latent: int,
        options: DeepOptions,
    ) -> None:
        before = hidden * multipliers[-1]
        attended = options.attended(len(multipliers))
        groups = options.groups
        layers: list[nn.Module] = [nn.Conv2d(latent, before, 3, padding=1)]
        layers += middle_layers(before, groups)
        for level in range(len(multipliers) - 1, -1, -1):
            width = hidden * multipliers[level]
            layers += resolution_layers(before, width, blocks + 1, level in attended, groups)
            before = width
            if level > 0:
                layers.append(Up(before))
        norm = Norm(before, groups=groups)
        super().__init__(*layers, norm, nn.Conv2d(before, channels, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(_in_best_layout(x))


def _merge_repeated(weight: torch.Tensor, side: int) -> torch.Tensor:
    """Turn three weights for repeated pixels, along one side, into four for single pixels.

    A result at an even place sees pixels (a, b, b), one at an odd place (b, b, c): the weights
    (w0, w1, w2) act as (w0, w1 + w2) and as (w0 + w1, w2).
    """
    first, middle, last = weight.unbind(side)
    return torch.stack([last, middle + last, first + middle, first], side)


def _in_best_layout(x: torch.Tensor) -> torch.Tensor:
    """The same values in the memory format that suits the device."""
    if x.device.type == "cpu":
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def _add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The sum; without gradients it overwrites ``x``, which is not used again."""
    return x + y if torch.is_grad_enabled() else x.add_(y)
