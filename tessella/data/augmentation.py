"""Random changes of training images, different in every epoch.

This is the only module of the folder that uses torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessella.errors import InputError

if TYPE_CHECKING:
    import torch


def augment(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    flip: bool,
    binarize: bool,
    start: int = 0,
    total: int | None = None,
) -> torch.Tensor:
    """Mirror half of the images left to right, then draw each value as black or white.

    Both are optional. A binarized value v becomes 255 with probability v/255, else 0.

    Args:
        images: ``uint8 [batch, height, width, channels]``; not changed.
        generator: source of the random numbers. They are drawn on its device, so that the changes
            do not depend on the device of the images.
        flip: mirror each image with probability 1/2.
        binarize: make the Bernoulli(v/255) draw.
        start, total: the images are those from ``start`` on of a batch of ``total``, and change as
            they do there. Numbers are drawn for the whole batch; None is for a batch of its own.

    Returns:
        ``uint8 [batch, height, width, channels]`` on the device of ``images``.

    Raises:
        InputError: when ``images`` is not a uint8 tensor of four dimensions.
    """
    import torch

    if images.dtype != torch.uint8 or images.dim() != 4:
        raise InputError(
            "augment takes a uint8 tensor [batch, height, width, channels],"
            f" got {images.dtype} {list(images.shape)}"
        )
    # Those who hold parts of one batch draw the same numbers, and take their own rows.
    if total is None:
        total = len(images)
    rows = slice(start, start + len(images))
    if flip:
        draw = torch.rand(total, generator=generator, device=generator.device)
        mirrored = draw[rows] < 0.5
        mirrored = mirrored.to(images.device)[:, None, None, None]  # [batch, 1, 1, 1]
        images = torch.where(mirrored, images.flip(2), images)  # dimension 2 is the width
    if binarize:
        # A uniform integer in 0..254 is below v with probability exactly v/255.
        draw = torch.randint(
            255,
            (total, *images.shape[1:]),
            generator=generator,
            device=generator.device,
            dtype=torch.uint8,
        )
        images = (images > draw[rows].to(images.device)).to(torch.uint8) * 255
    return images
