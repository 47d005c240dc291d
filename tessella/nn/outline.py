"""Networks built without memory first, so that one that no machine can hold is refused at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.files import byte_count

N = TypeVar("N", bound=nn.Module)

TOO_LARGE = ("overflow", "too large", "can't allocate memory", "invalid size")
"""Words of torch's errors about tensors that cannot exist."""


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
    # Somebody else is looking at the shapes alone.
    if torch.empty(0).is_meta:
        return construct()
    # On the meta device tensors have shapes and take no memory. A class from outside may not be
    # able to live there; then nothing is known beforehand.
    with contextlib.suppress(RuntimeError, NotImplementedError):
        _check_memory(_outline(construct))
    return construct()


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
