"""The surroundings of the training loop."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from tessella.training.engine import kept_memory

PAGE = resource.getpagesize()
BYTES = 48 * 2**20
"""More than glibc would keep by itself."""


def pages_of_a_step() -> int:
    """Pages that the system gives while a large tensor is filled, twice over."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(2):
        torch.zeros(BYTES, dtype=torch.uint8).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_memory_is_kept_within_a_training_and_given_back_after_it() -> None:
    with kept_memory():
        pages_of_a_step()
        assert pages_of_a_step() < 0.1 * BYTES / PAGE
    pages_of_a_step()
    assert pages_of_a_step() > 0.9 * BYTES / PAGE
