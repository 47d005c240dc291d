"""What a device can do: memory, operations a second, and the links to other devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tessella.nn.outline import machine_memory

GB = 1e9
"""Memory of devices is sold in powers of ten."""

GPU_USABLE = 0.9
"""Share of a GPU's memory that a plan fills, as its allocator leaves gaps: assumed."""

CPU_USABLE = 0.6
"""The same of main memory: the heap of the C library leaves more and larger gaps.
``benchmarks/planning.py`` measures steps with and without them."""


@dataclass(frozen=True)
class Accelerator:
    """A kind of device that trains.

    Args:
        title: for people.
        memory: bytes of one device.
        flops: products a second by ``train.precision``, without sparsity, a multiplication and an
            addition counting as two.
        bandwidth: bytes a second between the device and its own memory.
        link: bytes a second to another device of the same machine, one way.
        program: bytes that the program takes before there is a model: libraries, context.
        is_gpu: whether it is none of the processors of this machine.
        source: where the figures come from.
    """

    title: str
    memory: float
    flops: Mapping[str, float]
    bandwidth: float
    link: float
    program: float
    is_gpu: bool
    source: str


CUDA_PROGRAM = 0.6 * GB
"""Context and libraries of CUDA on a device: assumed, not measured."""

CPU_PROGRAM = 0.35 * GB
"""Python, torch and the libraries of a run in main memory, before there is a model:
``benchmarks/planning.py`` measures it."""

CPU_FLOPS = {"32": 91e9, "bf16": 205e9}
"""Of one core of an AMD EPYC with AVX-512, as ``results/training_share.json`` has them."""

ACCELERATORS: Mapping[str, Accelerator] = {
    "cpu": Accelerator(
        title="one core of an AMD EPYC (AVX-512)",
        memory=float(machine_memory()),
        flops=CPU_FLOPS,
        bandwidth=10 * GB,
        link=1 * GB,
        program=CPU_PROGRAM,
        is_gpu=False,
        source="operations measured (results/training_share.json), links assumed",
    ),
    "a100": Accelerator(
        title="NVIDIA A100 80 GB SXM",
        memory=80 * GB,
        flops={"32": 19.5e12, "bf16": 312e12},
        bandwidth=2039 * GB,
        link=300 * GB,
        program=CUDA_PROGRAM,
        is_gpu=True,
        source="NVIDIA A100 Tensor Core GPU, data sheet, June 2021",
    ),
    "h100": Accelerator(
        title="NVIDIA H100 80 GB SXM",
        memory=80 * GB,
        flops={"32": 67e12, "bf16": 989e12},
        bandwidth=3350 * GB,
        link=450 * GB,
        program=CUDA_PROGRAM,
        is_gpu=True,
        source="NVIDIA H100 Tensor Core GPU, data sheet; half of what it says with sparsity",
    ),
    "h200": Accelerator(
        title="NVIDIA H200 141 GB SXM",
        memory=141 * GB,
        flops={"32": 67e12, "bf16": 989e12},
        bandwidth=4800 * GB,
        link=450 * GB,
        program=CUDA_PROGRAM,
        is_gpu=True,
        source="NVIDIA H200 Tensor Core GPU, data sheet; half of what it says with sparsity",
    ),
    "rtx4090": Accelerator(
        title="NVIDIA GeForce RTX 4090",
        memory=24 * GB,
        flops={"32": 82.6e12, "bf16": 165.2e12},
        bandwidth=1008 * GB,
        link=25 * GB,
        program=CUDA_PROGRAM,
        is_gpu=True,
        source="NVIDIA Ada GPU Architecture, white paper, appendix A; link: PCIe 4.0, assumed",
    ),
}
"""Devices by the name that ``tessella plan --gpu`` takes; ``cpu`` is one core of a processor."""


@dataclass(frozen=True)
class Hardware:
    """The machines of a plan.

    Args:
        kind: a name of :data:`ACCELERATORS`.
        devices: of each machine.
        nodes: machines.
        memory: bytes of a device; 0 takes the kind's.
        flops: products a second of a device, in the precision of the run; 0 takes the kind's.
        network: bytes a second that leave a machine for another.
    """

    kind: str = "cpu"
    devices: int = 1
    nodes: int = 1
    memory: float = 0.0
    flops: float = 0.0
    network: float = 12.5 * GB

    @property
    def accelerator(self) -> Accelerator:
        """The kind of device."""
        return ACCELERATORS[self.kind]

    @property
    def world(self) -> int:
        """Devices of all machines."""
        return self.devices * self.nodes

    @property
    def device_memory(self) -> float:
        """Bytes of a device. Processes on one machine's processors share its memory."""
        if self.memory:
            return self.memory
        if self.accelerator.is_gpu:
            return self.accelerator.memory
        return self.accelerator.memory / self.devices

    @property
    def usable(self) -> float:
        """Share of :attr:`device_memory` that a plan fills."""
        return GPU_USABLE if self.accelerator.is_gpu else CPU_USABLE

    def peak(self, precision: str) -> float:
        """Products a second of a device."""
        return self.flops or self.accelerator.flops[precision]

    def describe(self) -> str:
        """The machines in words."""
        devices = f"{self.devices} x {self.accelerator.title}"
        if self.nodes == 1:
            return devices
        return f"{self.nodes} machines, each {devices}"
