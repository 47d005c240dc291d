"""The deep encoder and decoder of VQGAN (Esser et al. 2021, table 7): residual convolutions with
group normalization, and attention at the lowest resolution.

Inside, activations lie channels last on a CPU, as the images do, and channel by channel on a GPU,
as its group normalization wants them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.GroupNorm):
    """Group normalization over ``[n, channels, h, w]`` and, if ``swish``, ``x sigmoid(x)`` of the
    result.

    There are 32 groups where that divides the channels, else groups of about four channels.
    Statistics are float32 (or wider), also under autocast.
    """

    def __init__(self, channels: int, swish: bool = True) -> None:
        super().__init__(
            32 if channels % 32 == 0 else math.gcd(channels, max(1, channels // 4)),
            channels,
            eps=1e-6,
        )
        self.swish = swish

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        return F.silu(x, inplace=not torch.is_grad_enabled()) if self.swish else x


class Block(nn.Module):
    """``x + conv3x3(norm(conv3x3(norm(x))))``, where ``x`` passes a 1x1 convolution if the width
    changes."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(channels), nn.Conv2d(channels, width, 3, padding=1)
        self.norm2, self.conv2 = Norm(width), nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _added(self.conv2(self.norm2(self.conv1(self.norm1(x)))), self.shortcut(x))


class Attention(nn.Module):
    """``x +`` a mixture of values from all places of ``[n, channels, h, w]``, by one head as wide
    as the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels, swish=False)
        self.project = nn.Conv2d(channels, 3 * channels, 1)
        self.merge = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = x.shape
        projected = (
            self.project(self.norm(x))
            .permute(0, 2, 3, 1)
            .reshape(n, 1, height * width, 3 * channels)
        )
        mixed = F.scaled_dot_product_attention(*projected.chunk(3, dim=3))
        return _added(self.merge(mixed.reshape(n, height, width, channels).permute(0, 3, 1, 2)), x)


class Down(nn.Module):
    """Half the sides: a convolution over 3x3 pixels, of which the last row and column may be zeros
    beyond the edge."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)[
            :, :, 1:, 1:
        ]  # zeros before the edge are not wanted; this spares a padded copy


class Up(nn.Module):
    """Twice the sides: each pixel four times, then a 3x3 convolution.

    Of the nine weights of a pixel of the result some meet the same pixel before it is repeated.
    They are added first: what remains is a transposed convolution, with 4/9 of the multiplications
    and no larger copy.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = _met(_met(self.conv.weight, 2), 3).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


def stage(channels: int, width: int, blocks: int, attention: bool) -> list[nn.Module]:
    """So many blocks of one resolution, each followed by attention if that is wanted."""
    layers: list[nn.Module] = []
    for block in range(blocks):
        layers += [Block(width if block else channels, width)]
        layers += [Attention(width)] if attention else []
    return layers


class Encoder(nn.Sequential):
    """Images ``[n, channels, h, w]`` to ``[n, latent, h', w']``, the sides halved between every two
    multipliers.

    Args:
        channels: of the images.
        hidden: channels of the convolutions, times
        multipliers: of each resolution, highest first. The last has attention.
        blocks: residual blocks of each resolution; two more, around attention, follow the last.
        latent: channels of the result.
    """

    def __init__(
        self, channels: int, hidden: int, multipliers: Sequence[int], blocks: int, latent: int
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 3, padding=1)]
        before, last = hidden, len(multipliers) - 1
        for level, multiplier in enumerate(multipliers):
            layers += stage(before, hidden * multiplier, blocks, attention=level == last)
            before = hidden * multiplier
            layers += [Down(before)] if level != last else []
        layers += [Block(before, before), Attention(before), Block(before, before)]
        super().__init__(*layers, Norm(before), nn.Conv2d(before, latent, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(_laid_out(x))


class Decoder(nn.Sequential):
    """``[n, latent, h', w']`` to images ``[n, channels, h, w]``: the mirror of :class:`Encoder`,
    with one block more for each resolution."""

    def __init__(
        self, channels: int, hidden: int, multipliers: Sequence[int], blocks: int, latent: int
    ) -> None:
        before, last = hidden * multipliers[-1], len(multipliers) - 1
        layers: list[nn.Module] = [nn.Conv2d(latent, before, 3, padding=1)]
        layers += [Block(before, before), Attention(before), Block(before, before)]
        for level in range(last, -1, -1):
            layers += stage(
                before, hidden * multipliers[level], blocks + 1, attention=level == last
            )
            before = hidden * multipliers[level]
            layers += [Up(before)] if level else []
        super().__init__(*layers, Norm(before), nn.Conv2d(before, channels, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(_laid_out(x))


def _met(weight: torch.Tensor, side: int) -> torch.Tensor:
    """Three weights along a side, applied to repeated pixels, as the four weights of each pixel
    before."""
    first, middle, last = weight.unbind(side)
    return torch.stack([last, middle + last, first + middle, first], side)


def _laid_out(x: torch.Tensor) -> torch.Tensor:
    """The same values in the memory format that suits the device."""
    return x.contiguous(
        memory_format=torch.channels_last if x.device.type == "cpu" else torch.contiguous_format
    )


def _added(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y if torch.is_grad_enabled() else x.add_(y)
