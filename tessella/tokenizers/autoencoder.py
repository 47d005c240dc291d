"""The encoder and the decoder around a quantizer: strided and residual convolutions.

Van den Oord et al. (2017), section 4.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class AutoencoderBlock(nn.Module):
    """``x + conv1x1(relu(conv3x3(relu(x))))`` over ``[n, hidden, h, w]``.

    Args:
        hidden: channels of input and output.
        inner: channels between the two convolutions; 0 for half of ``hidden``.
    """

    def __init__(self, hidden: int, inner: int = 0) -> None:
        super().__init__()
        # The 3x3 convolution is the expensive one, so it makes fewer channels.
        inner = inner or max(1, hidden // 2)
        self.conv = nn.Conv2d(hidden, inner, 3, padding=1)
        self.out = nn.Conv2d(inner, hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(F.relu(self.conv(F.relu(x))))


class Encoder(nn.Sequential):
    """Images ``[n, channels, h, w]`` to ``[n, code_dim, h / 2^stages, w / 2^stages]``.

    Args:
        channels: channels of the images.
        hidden: channels at the lowest resolution; half as many at higher ones.
        code_dim: channels of the result.
        stages: how often height and width are halved.
        blocks: residual blocks at the lowest resolution.
    """

    def __init__(self, channels: int, hidden: int, code_dim: int, stages: int, blocks: int) -> None:
        layers: list[nn.Module] = []
        for stage in range(stages):
            is_last = stage == stages - 1
            width = hidden if is_last else max(1, hidden // 2)
            # A 4x4 kernel with stride 2 covers every pixel equally often.
            layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.Conv2d(channels, hidden, 3, padding=1))
        for _ in range(blocks):
            layers.append(AutoencoderBlock(hidden))
        layers += [nn.ReLU(), nn.Conv2d(hidden, code_dim, 1)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """``[n, code_dim, h, w]`` to images ``[n, channels, h 2^stages, w 2^stages]``.

    The mirror of :class:`Encoder`.

    Args:
        channels: numbers that are decoded for each pixel.
        hidden, code_dim, stages, blocks: see :class:`Encoder`.
        inner: channels inside a residual block; 0 for half of ``hidden``.
    """

    def __init__(
        self, channels: int, hidden: int, code_dim: int, stages: int, blocks: int, inner: int = 0
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(code_dim, hidden, 3, padding=1)]
        for _ in range(blocks):
            layers.append(AutoencoderBlock(hidden, inner))
        layers.append(nn.ReLU())
        width = hidden
        for stage in range(stages):
            is_last = stage == stages - 1
            wanted = channels if is_last else max(1, hidden // 2)
            layers.append(nn.ConvTranspose2d(width, wanted, 4, stride=2, padding=1))
            # No ReLU after the last one: pixels on the scale -1..1 can be negative.
            if not is_last:
                layers.append(nn.ReLU())
            width = wanted
        # Without any transposed convolution, another one must produce the pixels.
        if stages == 0:
            layers.append(nn.Conv2d(hidden, channels, 3, padding=1))
        super().__init__(*layers)
