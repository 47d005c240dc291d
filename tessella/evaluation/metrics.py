"""How alike two images are, and how sure a mean is. Everything is per image, in float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def standard_error(values: torch.Tensor) -> float:
    """Standard error of the mean of ``values [n]``: their standard deviation (n - 1) over √n; NaN
    for a single one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def mean_squared_error(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image on the scale 0..255: uint8 ``[n, h, w, c]`` twice to float64
    ``[n]``."""
    return (images.double() - others.double()).square().flatten(1).mean(1)


def psnr(mse: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of errors on the scale 0..255; infinite at 0."""
    return 10 * torch.log10(255.0**2 / mse)


def ssim(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image (Wang et al. 2004): uint8 ``[n, h, w, c]`` twice to
    float64 ``[n]``.

    Gaussian window of standard deviation 1.5 and side min(11, largest odd number the image holds),
    constants 0.01 and 0.03 of the range 255, over the places where the window fits, averaged over
    places and channels.
    """
    n, height, width, channels = images.shape
    side = min(11, min(height, width) - (min(height, width) + 1) % 2)
    at = torch.arange(side, dtype=torch.float64) - side // 2
    window = torch.exp(-(at**2) / (2 * 1.5**2))
    window /= window.sum()

    def averaged(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(values, window[None, None, :, None]), window[None, None, None, :])

    x, y = (
        part.double().movedim(-1, 1).reshape(n * channels, 1, height, width)
        for part in (images, others)
    )
    mean_x, mean_y, xx, yy, xy = (averaged(part) for part in (x, y, x * x, y * y, x * y))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return (luminance * structure).view(n, -1).mean(1)
