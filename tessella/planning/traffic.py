"""What devices send each other in a step, and how long a step waits for it.

With ``train.sharding=none`` each device holds the whole model, and gradients are summed over all
devices. A ring of ``n`` devices sends ``2 (n - 1) / n`` times the gradients from each (Patarasuk
and Yuan 2009), while the backward pass goes on. With ``full`` each device holds an ``n``-th, and
weights are gathered in the forward and again in the backward pass, and gradients summed and spread:
``(n - 1) / n`` each time (Rajbhandari et al. 2020, ZeRO stage 3).
"""

from __future__ import annotations

from dataclasses import dataclass

from tessella.planning.accelerators import Hardware
from tessella.planning.compute_time import ComputeTime
from tessella.planning.held_bytes import WeightBytes

BUCKET = 25 * 2**20
"""Bytes of gradients that DistributedDataParallel sends together."""

LATENCY = 10e-6
"""Seconds from one device to the next within a machine: assumed, not measured."""

NETWORK_LATENCY = 30e-6
"""The same from one machine to another."""


@dataclass(frozen=True)
class Traffic:
    """Exchange of a step."""

    sent: float
    """Bytes that each device sends."""
    seconds: float
    """Time that it takes."""
    exposed: float
    """The part of it in which nothing is computed."""


def traffic(
    held: WeightBytes, compute: ComputeTime, passes: int, full: bool, hardware: Hardware
) -> Traffic:
    """What a step sends, and what of it is not hidden behind computing.

    Args:
        held: bytes for the weights.
        compute: seconds of a pass.
        passes: of a step.
        full: whether weights are spread over the devices.
        hardware: the devices and their links.
    """
    if hardware.world == 1:
        return Traffic(0.0, 0.0, 0.0)
    if full:
        return _of_spread_weights(held, compute, passes, hardware)
    return _of_gradients(held, compute, hardware)


def ring_seconds(sent: float, messages: float, hardware: Hardware) -> float:
    """Seconds for each device to send so many bytes around the ring.

    Args:
        sent: bytes that each device sends to its neighbour.
        messages: pieces, one after the other, that these bytes are sent in.
        hardware: the ring goes through all devices of a machine before it leaves it, so that what
            a device sends also leaves each machine once.
    """
    rate = hardware.accelerator.link
    latency = LATENCY
    if hardware.nodes > 1:
        rate = min(rate, hardware.network)
        latency = NETWORK_LATENCY
    return sent / rate + messages * latency


def _of_gradients(held: WeightBytes, compute: ComputeTime, hardware: Hardware) -> Traffic:
    world = hardware.world
    sent = 2 * (world - 1) / world * held.gradients
    buckets = max(1, -(-held.gradients // BUCKET))
    seconds = ring_seconds(sent, 2 * (world - 1) * buckets, hardware)
    # The gradients of the last bucket come when the backward pass has ended.
    last = seconds / buckets
    exposed = max(last, seconds - compute.backward * (1 - 1 / buckets))
    return Traffic(sent, seconds, exposed)


def _of_spread_weights(
    held: WeightBytes, compute: ComputeTime, passes: int, hardware: Hardware
) -> Traffic:
    world = hardware.world
    once = (world - 1) / world * held.gradients
    # Each pass gathers the weights twice; the gradients of the last pass are summed and spread.
    times = 2 * passes + 1
    blocks = max(1, -(-held.gradients // max(1, held.largest_block)))
    seconds = ring_seconds(times * once, times * (world - 1) * blocks, hardware)
    # The first block is waited for; the others come while the block before computes.
    first = seconds / (times * blocks)
    exposed = max(first, seconds - compute.one_pass * passes)
    return Traffic(times * once, seconds, exposed)
