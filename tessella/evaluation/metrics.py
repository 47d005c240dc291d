"""How alike two images are, and how sure a mean is. Everything is per image, in float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

ROUNDING = 64 * torch.finfo(torch.float64).eps
"""Standard deviations below this share of the values are rounding: they count as 0."""

WINDOW_SIDE = 11
"""Side of SSIM's window, where images are large enough."""

WINDOW_DEVIATION = 1.5
"""Standard deviation of SSIM's window, in pixels."""


def standard_error(values: torch.Tensor) -> float:
    """Standard error of the mean of ``values [n]``: their standard deviation (n - 1) over √n.

    It is NaN for a single value. Values that differ by rounding only have an error of exactly 0,
    so that no figure is printed with digits that mean nothing.

    >>> standard_error(torch.full((49,), 46.4613248125, dtype=torch.float64))
    0.0
    """
    if len(values) < 2:
        return math.nan
    deviation = float(values.std())
    largest = float(values.abs().max())
    if deviation <= ROUNDING * largest:
        return 0.0
    return deviation / math.sqrt(len(values))


def mean_squared_error(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image on the scale 0..255.

    Args:
        images, others: uint8 ``[n, h, w, c]``.

    Returns:
        float64 ``[n]``.
    """
    return (images.double() - others.double()).square().flatten(1).mean(1)


def psnr(mse: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of errors on the scale 0..255; infinite at 0."""
    return 10 * torch.log10(255.0**2 / mse)


def ssim(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image (Wang et al. 2004).

    Gaussian window of standard deviation 1.5 and side min(11, largest odd number the image holds),
    constants 0.01 and 0.03 of the range 255, over the places where the window fits, averaged over
    places and channels.

    Args:
        images, others: uint8 ``[n, h, w, c]``.

    Returns:
        float64 ``[n]``.
    """
    n, height, width, channels = images.shape
    window = _window(min(height, width))

    def planes(part: torch.Tensor) -> torch.Tensor:
        # Each channel is treated as an image: [n, h, w, c] -> [n * c, 1, h, w].
        return part.double().movedim(-1, 1).reshape(n * channels, 1, height, width)

    def averaged(values: torch.Tensor) -> torch.Tensor:
        # The window is separable: columns first, then rows.
        down = F.conv2d(values, window[None, None, :, None])
        return F.conv2d(down, window[None, None, None, :])

    x = planes(images)
    y = planes(others)
    mean_x = averaged(x)
    mean_y = averaged(y)
    variances = averaged(x * x) - mean_x**2 + averaged(y * y) - mean_y**2
    covariance = averaged(x * y) - mean_x * mean_y
    # The constants keep both ratios finite where an image is flat.
    c1 = (0.01 * 255) ** 2
    c2 = (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).view(n, -1).mean(1)


def _window(least_side: int) -> torch.Tensor:
    """The Gaussian weights of one dimension of the window, float64 ``[side]``; they sum to 1."""
    largest_odd = least_side - (least_side + 1) % 2
    side = min(WINDOW_SIDE, largest_odd)
    at = torch.arange(side, dtype=torch.float64) - side // 2
    window = torch.exp(-(at**2) / (2 * WINDOW_DEVIATION**2))
    return window / window.sum()
