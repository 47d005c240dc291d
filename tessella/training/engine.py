"""The surroundings of the loop: devices and precision, compilation, threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.pipeline import pick_device

try:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.strategy import Strategy
except ImportError:  # the same engine as a part of the lightning package
    from lightning.fabric import Fabric  # type: ignore[no-redef]
    from lightning.fabric.strategies.strategy import Strategy  # type: ignore[no-redef]

__all__ = [
    "Fabric",
    "compiled",
    "create_fabric",
    "cuda_devices",
    "kept_memory",
    "threads",
]

TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
"""Options of ``mallopt``, from glibc's ``malloc.h``."""

LARGEST_ADAPTED = 32 * 2**20
"""Bytes up to which glibc adapts its threshold of mapping to what a program frees."""

KEPT = 2**30
"""Bytes of free memory at the end of the heap up to which a training keeps them."""


def create_fabric(
    device: str,
    devices: int = 1,
    precision: str = "auto",
    nodes: int = 1,
    strategy: Strategy | str = "ddp",
) -> Fabric:
    """Start the engine on these devices.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        devices: processes on each machine, each with a device.
        precision: ``32``, ``bf16``, or ``auto``: bf16 on a GPU that has it, 32 elsewhere.
        nodes: machines.
        strategy: how several processes share a model.

    Raises:
        ConfigError: for a device or a precision that is not there.
    """
    # "auto" becomes the device that is there.
    kind = pick_device(device).type
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise ConfigError(
            f"devices={devices}, but this machine has {torch.cuda.device_count()} CUDA devices"
        )
    if precision not in ("auto", "32", "bf16"):
        raise ConfigError(f"precision must be auto, 32 or bf16, got {precision!r}")
    half = precision == "bf16"
    if precision == "auto":
        half = kind == "cuda" and torch.cuda.is_bf16_supported()
    # bf16-mixed keeps the weights in float32 and multiplies in bfloat16.
    return Fabric(
        accelerator=kind,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy if devices * nodes > 1 else "auto",
        precision="bf16-mixed" if half else "32-true",
    )


def cuda_devices(fabric: Fabric) -> list[torch.device]:
    """The GPU of this process, whose random generator must be kept; none on the CPU."""
    return [fabric.device] if fabric.device.type == "cuda" else []


@contextlib.contextmanager
def compiled(networks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Run these networks compiled until the end of the block.

    Raises:
        ConfigError: where there is no compiler.
    """
    if device.type == "cpu" and not _has_compiler():
        raise ConfigError(
            "train.compile needs a C++ compiler (CXX names one), and there is none: leave it out"
        )
    # In place: parameters, hooks and names of the network stay as they are.
    for network in networks:
        network.compile()
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Use this many CPU threads until the end of the block; 0 keeps torch's choice."""
    # The number is one of the process, so it is put back.
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Have glibc keep freed memory for the next step, until the end of the block.

    By default it gives the end of its heap back to the system at every step and takes it again, and
    the system clears each page anew. That is some percent of a step on a CPU, and up to a fifth of
    one whose logits are large. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    # Larger pieces are mapped by themselves, as ever: kept, they would leave gaps in the heap.
    libc.mallopt(MMAP_THRESHOLD, LARGEST_ADAPTED)
    libc.mallopt(TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        # What was set before cannot be asked for. With the threshold above, this is what glibc
        # itself comes to in a program that frees large pieces.
        libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST_ADAPTED)
        libc.malloc_trim(0)


def _has_compiler() -> bool:
    names = (os.environ.get("CXX", "c++"), "g++", "clang++")
    return any(shutil.which(name) for name in names)
