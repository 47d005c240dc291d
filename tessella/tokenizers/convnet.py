"""The deep encoder and decoder of VQGAN (Esser et al. 2021, table 7).

They are residual convolutions with group normalization, and attention at the lowest resolution.

Inside, activations lie channels last on a CPU, as the images do, and channel by channel on a GPU,
as its group normalization wants them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 32
"""Groups of channels that are normalized together, where that divides the channels."""

GROUP_CHANNELS = 4
"""Channels of a group, about, elsewhere."""


class Norm(nn.GroupNorm):
    """Group normalization over ``[n, channels, h, w]``, by default followed by ``x sigmoid(x)``.

    There are 32 groups where that divides the channels, else groups of about four channels.
    Statistics are float32 (or wider), also under autocast.

    Args:
        channels: of the input.
        swish: whether ``x sigmoid(x)`` is applied to the result.
    """

    def __init__(self, channels: int, swish: bool = True) -> None:
        groups = GROUPS
        if channels % GROUPS != 0:
            groups = math.gcd(channels, max(1, channels // GROUP_CHANNELS))
        super().__init__(groups, channels, eps=1e-6)
        self.swish = swish

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        if self.swish:
            # The normalized values are nobody else's, but a gradient needs them.
            x = F.silu(x, inplace=not torch.is_grad_enabled())
        return x


class DeepBlock(nn.Module):
    """``x + conv3x3(norm(conv3x3(norm(x))))``.

    ``x`` passes a 1x1 convolution where the width changes.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm1 = Norm(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = Norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(self.norm1(x))
        return _add(self.conv2(self.norm2(hidden)), self.shortcut(x))


class SpatialAttention(nn.Module):
    """``x +`` a mixture of values from all places of ``[n, channels, h, w]``.

    There is one head as wide as the channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels, swish=False)
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
    """Half the sides: a convolution over 3x3 pixels, from each second pixel on.

    Beyond the last row and column of an even side there is a row and a column of zeros.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Padding on one side alone would need a padded copy. With two rows of zeros on both sides
        # only the first result sees zeros that are not wanted, and it is left out.
        return self.conv(x)[:, :, 1:, 1:]


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
        rows = _merge_repeated(self.conv.weight, 2)
        kernel = _merge_repeated(rows, 3).transpose(0, 1)  # [in, out, 4, 4]
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


def resolution_layers(channels: int, width: int, blocks: int, attention: bool) -> list[nn.Module]:
    """The blocks of one resolution, each followed by attention if that is wanted.

    Args:
        channels: of the input.
        width: channels of the result.
    """
    layers: list[nn.Module] = []
    for block in range(blocks):
        layers.append(DeepBlock(width if block else channels, width))
        if attention:
            layers.append(SpatialAttention(width))
    return layers


def middle_layers(width: int) -> list[nn.Module]:
    """Two blocks around attention, at the lowest resolution of encoder and decoder."""
    return [DeepBlock(width, width), SpatialAttention(width), DeepBlock(width, width)]


class DeepEncoder(nn.Sequential):
    """Images ``[n, channels, h, w]`` to ``[n, latent, h', w']``.

    The sides are halved between every two multipliers.

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
        before = hidden
        last = len(multipliers) - 1
        for level, multiplier in enumerate(multipliers):
            width = hidden * multiplier
            layers += resolution_layers(before, width, blocks, attention=level == last)
            before = width
            if level != last:
                layers.append(Down(before))
        # Two more blocks at the lowest resolution, where every place sees the whole image.
        layers += middle_layers(before)
        super().__init__(*layers, Norm(before), nn.Conv2d(before, latent, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(_in_best_layout(x))


class DeepDecoder(nn.Sequential):
    """``[n, latent, h', w']`` to images ``[n, channels, h, w]``.

    The mirror of :class:`DeepEncoder`, with one block more for each resolution.
    """

    def __init__(
        self, channels: int, hidden: int, multipliers: Sequence[int], blocks: int, latent: int
    ) -> None:
        before = hidden * multipliers[-1]
        last = len(multipliers) - 1
        layers: list[nn.Module] = [nn.Conv2d(latent, before, 3, padding=1)]
        layers += middle_layers(before)
        for level in range(last, -1, -1):
            width = hidden * multipliers[level]
            layers += resolution_layers(before, width, blocks + 1, attention=level == last)
            before = width
            if level > 0:
                layers.append(Up(before))
        super().__init__(*layers, Norm(before), nn.Conv2d(before, channels, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(_in_best_layout(x))


def _merge_repeated(weight: torch.Tensor, side: int) -> torch.Tensor:
    """Three weights along a side, applied to repeated pixels, as four applied to single ones.

    A result at an even place sees pixels (a, b, b), one at an odd place (b, b, c): the weights
    (w0, w1, w2) act as (w0, w1 + w2) and as (w0 + w1, w2).
    """
    first, middle, last = weight.unbind(side)
    return torch.stack([last, middle + last, first + middle, first], side)


def _in_best_layout(x: torch.Tensor) -> torch.Tensor:
    """Equal values in the memory format that suits the device."""
    if x.device.type == "cpu":
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def _add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The sum; without gradients it takes the place of ``x``, which nobody else needs."""
    return x + y if torch.is_grad_enabled() else x.add_(y)
