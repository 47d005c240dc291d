"""The encoder and the decoder around a quantizer: residual convolutions (van den Oord et al. 2017,
section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ResidualBlock(nn.Module):
    """``x + conv1x1(relu(conv3x3(relu(x))))`` over ``[n, hidden, h, w]``, ``inner`` channels (0:
    half) inside."""

    def __init__(self, hidden: int, inner: int = 0) -> None:
        super().__init__()
        inner = inner or max(1, hidden // 2)
        self.conv = nn.Conv2d(hidden, inner, 3, padding=1)
        self.out = nn.Conv2d(inner, hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(F.relu(self.conv(F.relu(x))))


class Encoder(nn.Sequential):
    """Images ``[n, channels, h, w]`` to ``[n, code_dim, h / 2^stages, w / 2^stages]``.

    Args:
        channels: of the images.
        hidden: channels at the lowest resolution; half as many before it.
        code_dim: channels of the result.
        stages: times the sides are halved.
        blocks: residual blocks at the lowest resolution.
    """

    def __init__(self, channels: int, hidden: int, code_dim: int, stages: int, blocks: int) -> None:
        layers: list[nn.Module] = []
        for stage in range(stages):
            width = hidden if stage == stages - 1 else max(1, hidden // 2)
            layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU()]
            channels = width
        layers += [nn.Conv2d(channels, hidden, 3, padding=1)]
        layers += [ResidualBlock(hidden) for _ in range(blocks)]
        super().__init__(*layers, nn.ReLU(), nn.Conv2d(hidden, code_dim, 1))


class Decoder(nn.Sequential):
    """``[n, code_dim, h, w]`` to images ``[n, channels, h 2^stages, w 2^stages]``: the mirror of
    :class:`Encoder`."""

    def __init__(
        self, channels: int, hidden: int, code_dim: int, stages: int, blocks: int, inner: int = 0
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(code_dim, hidden, 3, padding=1)]
        layers += [ResidualBlock(hidden, inner) for _ in range(blocks)]
        layers += [nn.ReLU()]
        width = hidden
        for stage in range(stages):
            last = stage == stages - 1
            half = channels if last else max(1, hidden // 2)
            layers += [nn.ConvTranspose2d(width, half, 4, stride=2, padding=1)]
            layers += [] if last else [nn.ReLU()]
            width = half
        if not stages:
            layers += [nn.Conv2d(hidden, channels, 3, padding=1)]
        super().__init__(*layers)
