"""The logarithm of a logistic's integral over the bin of a level, with its gradient in closed form.

Autograd would keep and pass again each of the dozen tensors of the formula, which in training on a
CPU takes longer than the products of a small network's last layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def level_log_prob(
    x: torch.Tensor, means: torch.Tensor, log_scales: torch.Tensor, levels: int
) -> torch.Tensor:
    """Log-probability of a level under each of several discretized logistics, in nats.

    With the standardized edges ``a`` and ``b`` of the level's bin, which are ``d`` apart,
    ``log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - exp(-d))``
    (Salimans et al. 2017, eq. 2). The first level has no lower edge, the last one no upper edge.

    Args:
        x: levels, ``int64 [..., 1]``.
        means: on the axis where the levels span [-1, 1], ``[..., components]``.
        log_scales: natural logarithms of the scales, ``[..., components]``.
        levels: number of levels.

    Returns:
        ``[..., components]``.
    """
    return LevelLogProb.apply(x, means, log_scales, levels)


class LevelLogProb(torch.autograd.Function):
    """:func:`level_log_prob`, whose gradient is that of its formula, written out."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, means: torch.Tensor, log_scales: torch.Tensor, levels: int
    ) -> torch.Tensor:
        half_bin = 1.0 / (levels - 1)
        inverse_scale = torch.exp(-log_scales)
        centred = 2.0 * half_bin * x.to(means.dtype) - 1.0 - means
        # b and -a, and log(1 - exp(a - b)), where b - a is one bin wide.
        upper = (centred + half_bin) * inverse_scale
        lower = (half_bin - centred) * inverse_scale
        gap = torch.log(-torch.expm1(-2.0 * half_bin * inverse_scale))
        below_upper_edge = F.logsigmoid(upper)
        above_lower_edge = F.logsigmoid(lower)
        inside = below_upper_edge + above_lower_edge + gap
        ctx.levels = levels
        ctx.save_for_backward(x, upper, lower, inverse_scale)
        # The outermost bins have only one edge.
        not_first = torch.where(x == levels - 1, above_lower_edge, inside)
        return torch.where(x == 0, below_upper_edge, not_first)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor, torch.Tensor, None]:
        x, upper, lower, inverse_scale = ctx.saved_tensors
        # 1 where the bin has the edge, 0 where it extends to infinity.
        has_upper = (x != ctx.levels - 1).to(gradient.dtype)
        has_lower = (x != 0).to(gradient.dtype)
        # The derivative of log sigmoid(z) is sigmoid(-z).
        for_upper = torch.sigmoid(-upper).mul_(has_upper).mul_(gradient)
        for_lower = torch.sigmoid(-lower).mul_(has_lower).mul_(gradient)
        for_mean = (for_lower - for_upper) * inverse_scale
        # Both edges are in proportion to exp(-log_scale), and so is d, with derivative
        # -d / (exp(d) - 1) of log(1 - exp(-d)).
        width = inverse_scale * (2.0 / (ctx.levels - 1))
        for_gap = width / torch.expm1(width) * (has_upper * has_lower) * gradient
        for_log_scale = -(for_upper.mul_(upper) + for_lower.mul_(lower) + for_gap)
        # One mixture may stand beside many levels, as in a table.
        shape = inverse_scale.shape
        return None, for_mean.sum_to_size(shape), for_log_scale.sum_to_size(shape), None
