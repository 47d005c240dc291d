"""Threads and processes that a verb computes with."""

from __future__ import annotations

import torch

from tessella.pipeline import pick_device


def set_threads(threads: int) -> None:
    """Use so many CPU threads; 0 keeps torch's choice."""
    if threads:
        torch.set_num_threads(threads)


def start_processes(device: str, devices: int) -> tuple[torch.device, bool]:
    """Start the processes that share the work of a verb.

    Returns:
        The device of this one, and whether it is the first.
    """
    # One process needs no engine, which takes a second to import.
    if devices == 1:
        return pick_device(device), True
    from tessella.training.engine import create_fabric

    # float32 everywhere: figures must not depend on the number of devices.
    fabric = create_fabric(device, devices, precision="32")
    fabric.launch()
    return fabric.device, fabric.is_global_zero
