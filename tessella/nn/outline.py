"""What does not fit into memory is refused before the work: networks, and images to be drawn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from tessella.errors import ConfigError, InputError
from tessella.files import byte_count

N = TypeVar("N", bound=nn.Module)

TOO_LARGE = ("overflow", "too large", "can't allocate memory", "invalid size")
"""Words of torch's errors about tensors that cannot exist."""

IN_PARTS = (
    "batches() yields one batch after another, and tessella sample --out DIRECTORY writes them to"
    " files"
)
"""What draws more images than memory holds, for a message."""


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def build_within_memory(construct: Callable[[], N]) -> N:
    """What ``construct`` builds, after a check that this machine can hold it.

    Args:
        construct: builds a network; it is called twice, first on the meta device.

    Raises:
        ConfigError: naming what the network takes and what there is.
    """
    # Somebody else is looking at the shapes alone: on the meta device, or with tensors of a class
    # that has no memory.
    probe = torch.empty(0)
    if probe.is_meta or type(probe) is not torch.Tensor:
        return construct()
    # On the meta device tensors have shapes and take no memory. A class from outside may not be
    # able to live there; then nothing is known beforehand.
    with contextlib.suppress(RuntimeError):
        _check_memory(_outline(construct))
    return construct()


def check_drawn(n: int, bytes_each: int, advice: str) -> None:
    """Refuse a number of images that together do not fit into this machine's memory.

    Args:
        n: images to be drawn.
        bytes_each: memory of the result for one of them.
        advice: what draws so many, for the message.

    Raises:
        InputError: naming what they take and what there is.
    """
    memory = machine_memory()
    if n * bytes_each > memory:
        raise InputError(
            f"n={n} images take {byte_count(n * bytes_each)} together, and this machine has"
            f" {byte_count(memory)}: {advice}"
        )


def _outline(construct: Callable[[], N]) -> N:
    """The network on the meta device."""
    try:
        with torch.device("meta"):
            return construct()
    except RuntimeError as error:
        # A size so large that even the number of bytes is no longer one.
        if any(words in str(error) for words in TOO_LARGE):
            raise ConfigError(
                f"no machine can hold a network of these sizes ({error}): take smaller ones"
            ) from error
        raise


def _check_memory(outline: nn.Module) -> None:
    weights = 0
    needed = 0
    for parameter in outline.parameters():
        weights += parameter.numel()
        needed += parameter.numel() * parameter.element_size()
    # Tables such as masks are made from the sizes too.
    for buffer in outline.buffers():
        needed += buffer.numel() * buffer.element_size()
    memory = machine_memory()
    if needed > memory:
        raise ConfigError(
            f"a network of these sizes has {weights / 1e9:.3g} G parameters and takes"
            f" {byte_count(needed)}, and this machine has {byte_count(memory)}: take smaller sizes"
        )
