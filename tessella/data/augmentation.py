"""Random changes of training images, drawn anew each epoch. The one part of this package that uses
torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessella.errors import InputError

if TYPE_CHECKING:
    import torch


def augment(
    images: torch.Tensor, generator: torch.Generator, *, flip: bool, binarize: bool
) -> torch.Tensor:
    """Mirror half of the images left to right, then draw each value v anew as 255 with probability
    v/255, else 0.

    Args:
        images: ``uint8 [batch, height, width, channels]``; not changed.
        generator: the randomness; drawn on its own device, so that images on any device are changed
            alike.
        flip: mirror each image with probability 1/2.
        binarize: make the Bernoulli(v/255) draw.

    Returns:
        ``uint8 [batch, height, width, channels]`` on the device of ``images``.

    Raises:
        InputError: when ``images`` is not a uint8 tensor of four dimensions.
    """
    import torch

    if images.dtype != torch.uint8 or images.dim() != 4:
        raise InputError(
            f"augment takes a uint8 tensor [batch, height, width, channels], got {images.dtype} {list(images.shape)}"
        )
    if flip:
        mirrored = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
        images = torch.where(
            mirrored.to(images.device)[:, None, None, None], images.flip(2), images
        )
    if binarize:
        # A whole number u of 0..254 is below v with probability exactly v/255.
        draw = torch.randint(
            255, images.shape, generator=generator, device=generator.device, dtype=torch.uint8
        )
        images = (images > draw.to(images.device)).to(torch.uint8) * 255
    return images
