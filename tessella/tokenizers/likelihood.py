"""The probability of 8-bit pixels around a reconstruction, which makes a density model of a
decoder."""

from __future__ import annotations

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.heads import LogisticMixture

LEVELS = 256
"""Values of a sub-pixel."""

START = -2.0
"""Log-scale at which learning starts, on the axis where the values span [-1, 1]: about 17 of 256
values."""


def discretized_logistic(
    x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor, levels: int = LEVELS
) -> torch.Tensor:
    """Log-probability in nats of values under logistics integrated over their bins, the outer bins
    open.

    The mixture of Salimans et al. (2017), eq. 2, with one component.

    Args:
        x: values ``0 .. levels - 1``, of any type.
        mean, log_scale: on the axis where the values span [-1, 1], broadcast against ``x``.
        levels: number of values.
    """
    one = torch.stack(torch.broadcast_tensors(torch.zeros_like(mean), mean, log_scale), dim=-1)
    return LogisticMixture(one, levels).log_prob(x)


class PixelLikelihood(nn.Module):
    """Log-probability of images given what a decoder makes of their codes.

    Kinds:

    ``mse``: the decoder gives means, and one log-scale for each channel is learnt beside it, from
    residuals that pass no gradient on: the decoder minimizes the squared error alone.

    ``logistic``: the decoder gives a mean and a log-scale for each sub-pixel, and is to maximize
    this likelihood.

    Args:
        kind: one of these.
        channels: of the images.

    Raises:
        ConfigError: for another kind.
    """

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        if kind not in ("mse", "logistic"):
            raise ConfigError(f"likelihood must be 'mse' or 'logistic', got {kind!r}")
        self.kind, self.channels = kind, channels
        self.log_scale = nn.Parameter(torch.full((channels,), START)) if kind == "mse" else None

    @property
    def outputs(self) -> int:
        """Numbers that the decoder gives for a pixel."""
        return self.channels if self.kind == "mse" else 2 * self.channels

    def forward(self, images: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        """Nats of each image: ``[n]``.

        Args:
            images: ``[n, h, w, channels]`` of values 0..255, of any type.
            decoded: ``[n, h, w, outputs]``: means on the scale -1..1; of ``logistic`` also
                log-scales from ``START``.
        """
        wide = decoded if decoded.dtype == torch.float64 else decoded.float()
        if self.log_scale is not None:
            mean, log_scale = wide.detach(), self.log_scale.to(wide.dtype)
        else:
            mean, log_scale = wide.chunk(2, dim=-1)
            log_scale = log_scale + START
        return discretized_logistic(images, mean, log_scale).flatten(1).sum(1)
