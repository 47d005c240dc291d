"""The probability of 8-bit pixels around a reconstruction.

It makes a density model of a decoder.
"""

from __future__ import annotations

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.heads import LogisticMixture

LEVELS = 256
"""Values of a sub-pixel."""

INITIAL_LOG_SCALE = -2.0
"""Log-scale at which learning starts, on the axis where the values span [-1, 1]: about 17 of 256
values."""


def discretized_logistic(
    x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor, levels: int = LEVELS
) -> torch.Tensor:
    """Log-probability in nats of values under logistics, integrated over the values' bins.

    The outer bins are open. This is the mixture of Salimans et al. (2017), eq. 2, with one
    component.

    Args:
        x: values ``0 .. levels - 1``, of any type.
        mean, log_scale: on the axis where the values span [-1, 1], broadcast against ``x``.
        levels: number of values.
    """
    # The one component has all the weight: any logit will do.
    logit = torch.zeros_like(mean)
    parameters = torch.stack(torch.broadcast_tensors(logit, mean, log_scale), dim=-1)  # [..., 3]
    return LogisticMixture(parameters, levels).log_prob(x)


class PixelLikelihood(nn.Module):
    """Log-probability of images given the result of a decoder for their codes.

    Kinds:

    ``mse``: the decoder gives means, and one log-scale for each channel is learned beside it,
    from residuals that pass no gradient on: the decoder minimizes the squared error alone.

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
        self.kind = kind
        self.channels = channels
        self.log_scale: nn.Parameter | None = None
        if kind == "mse":
            self.log_scale = nn.Parameter(torch.full((channels,), INITIAL_LOG_SCALE))

    @property
    def outputs(self) -> int:
        """Numbers that the decoder gives for a pixel."""
        return self.channels if self.kind == "mse" else 2 * self.channels

    def forward(self, images: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        """Nats of each image: ``[n]``.

        Args:
            images: ``[n, h, w, channels]`` of values 0..255, of any type.
            decoded: ``[n, h, w, outputs]``: means on the scale -1..1; of ``logistic`` also
                log-scales from ``INITIAL_LOG_SCALE``.
        """
        # Half precision is too coarse for differences of tails.
        wide = decoded if decoded.dtype == torch.float64 else decoded.float()
        if self.log_scale is not None:
            mean = wide.detach()
            log_scale = self.log_scale.to(wide.dtype)
        else:
            mean, log_scale = wide.chunk(2, dim=-1)
            # The decoder's zeros stand for a moderate scale, at which learning starts.
            log_scale = log_scale + INITIAL_LOG_SCALE
        return discretized_logistic(images, mean, log_scale).flatten(1).sum(1)
