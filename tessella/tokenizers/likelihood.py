"""The probability of 8-bit pixels given a reconstruction: a decoder as a density model."""

from __future__ import annotations

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.heads import LogisticMixture

LEVELS = 256
"""Values of a sub-pixel."""

INITIAL_LOG_SCALE = -2.0
"""Initial log-scale, for values on the scale -1..1; the scale is about 17 of 256 values."""


def discretized_logistic(
    x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor, levels: int = LEVELS
) -> torch.Tensor:
    """Log-probability, in nats, of values under discretized logistics.

    Each value has a bin over which the density is integrated; the outer bins are open. This is the
    mixture of Salimans et al. (2017), eq. 2, with one component.

    Args:
        x: values ``0 .. levels - 1``, of any type.
        mean, log_scale: means and log-scales for values on the scale -1..1, broadcast against
            ``x``.
        levels: number of values.
    """
    # A single component has all the weight, whatever its logit.
    logit = torch.zeros_like(mean)
    parameters = torch.stack(torch.broadcast_tensors(logit, mean, log_scale), dim=-1)  # [..., 3]
    return LogisticMixture(parameters, levels).log_prob(x)


class PixelLikelihood(nn.Module):
    """Log-probability of images, given what a decoder makes of their codes.

    Kinds:

    ``mse``: the decoder gives means, and one log-scale per channel is learned as well. No gradient
    reaches the decoder from here: it only minimizes the squared error.

    ``logistic``: the decoder gives a mean and a log-scale for each sub-pixel, and is trained to
    maximize this likelihood.

    Args:
        kind: ``mse`` or ``logistic``.
        channels: channels of the images.

    Raises:
        ConfigError: for any other kind.
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
        """Number of values that the decoder gives per pixel."""
        return self.channels if self.kind == "mse" else 2 * self.channels

    def forward(self, images: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        """Log-probability of each image in nats, at most 0: ``[n]``.

        Args:
            images: ``[n, h, w, channels]``, values 0..255 of any type.
            decoded: ``[n, h, w, outputs]``: means on the scale -1..1; for ``logistic`` also
                log-scales, relative to ``INITIAL_LOG_SCALE``.
        """
        # Half precision is too coarse for differences of tails.
        wide = decoded if decoded.dtype == torch.float64 else decoded.float()
        if self.log_scale is not None:
            mean = wide.detach()
            log_scale = self.log_scale.to(wide.dtype)
        else:
            mean, log_scale = wide.chunk(2, dim=-1)
            # An output of 0 means a moderate scale, so that learning starts from there.
            log_scale = log_scale + INITIAL_LOG_SCALE
        return discretized_logistic(images, mean, log_scale).flatten(1).sum(1)
