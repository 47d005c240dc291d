"""The speed of a machine: reading, multiplying, and the cost of a small call of torch.

    python benchmarks/machine.py [--threads 2]     # a quarter of a minute; prints JSON

The benchmark of sampling measures this beside the models, in the same process, and sets the floor
of a step by it. All figures are the best of several repeats: a floor is what the machine can do,
not what it does on average.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

MEBIBYTE = 2**20
SETS = tuple(2**power for power in range(10))
"""Working sets, in MiB."""
SMALL_CALLS = 5000
"""Calls in a row that are timed together where one takes microseconds."""


@dataclass(frozen=True)
class Machine:
    """The figures of a machine."""

    gigabytes_a_second: dict[int, float]
    """Read bandwidth by working set in MiB: a smaller set is never slower."""
    gigaflops: float
    """Products of matrices in float32, in 10^9 operations a second."""
    product_us: float
    """One product of 1 x 128 by 128 x 256 into a given place, in microseconds."""
    elementwise_us: float
    """One elementwise operation on 128 numbers, in place, in microseconds."""
    threads: int

    def bandwidth(self, size: float) -> float:
        """Bytes a second where ``size`` bytes are read again and again.

        Between the measured sizes it is linear in the logarithm of the size.
        """
        # Speed depends on which cache a set fits into: a factor of its size counts, not a sum.
        points = []
        for mebibytes, gigabytes in self.gigabytes_a_second.items():
            points.append((math.log2(mebibytes * MEBIBYTE), 1e9 * gigabytes))

        place = math.log2(max(size, 1.0))
        if place <= points[0][0]:
            return points[0][1]
        for (low, slow), (high, fast) in itertools.pairwise(points):
            if place <= high:
                return slow + (fast - slow) * (place - low) / (high - low)
        return points[-1][1]

    def better(self, other: Machine) -> Machine:
        """The better of two measurements of one machine, figure by figure."""
        speeds = {}
        for mebibytes, speed in self.gigabytes_a_second.items():
            # The other one may have been measured at other sizes, so it is interpolated.
            speeds[mebibytes] = max(speed, other.bandwidth(mebibytes * MEBIBYTE) / 1e9)
        return Machine(
            gigabytes_a_second=speeds,
            gigaflops=max(self.gigaflops, other.gigaflops),
            product_us=min(self.product_us, other.product_us),
            elementwise_us=min(self.elementwise_us, other.elementwise_us),
            threads=self.threads,
        )

    def facts(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def best(work: Callable[[], object], calls: int, repeats: int = 3) -> float:
    """Seconds of a call: the best of ``repeats`` loops of ``calls`` each, after one to warm up."""
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        seconds.append((time.perf_counter() - started) / calls)
    return min(seconds[1:])


def bandwidth(mebibytes: int) -> float:
    """Bytes a second of the better of two readers: a sum, and a product of matrix and vector."""
    # Rows of 1,024 floats, as many as fill the working set.
    matrix = torch.rand(mebibytes * MEBIBYTE // 4 // 1024, 1024)
    vector = torch.rand(1024)
    out = torch.empty(len(matrix))
    calls = max(1, 256 // mebibytes)

    # Which of them reads faster differs from processor to processor.
    summing = best(matrix.sum, calls)
    multiplying = best(lambda: torch.mv(matrix, vector, out=out), calls)
    return mebibytes * MEBIBYTE / min(summing, multiplying)


def gigaflops(side: int) -> float:
    """10^9 operations a second of a product of two square matrices."""
    a = torch.rand(side, side)
    b = torch.rand(side, side)
    out = torch.empty(side, side)
    seconds = best(lambda: torch.mm(a, b, out=out), 1 + 2048 // side)
    # A multiplication and an addition for each of side^3 pairs.
    return 2 * side**3 / seconds / 1e9


@torch.no_grad()
def measure(sets: tuple[int, ...] = SETS, sweeps: int = 3) -> Machine:
    """Measure this machine with torch's number of threads as it is.

    All figures are the best of ``sweeps`` passes over everything, so that a neighbour who is busy
    for some seconds does not pass for a slow machine.
    """
    x = torch.randn(1, 128)
    w = torch.randn(128, 256)
    out = torch.empty(1, 256)

    speeds = dict.fromkeys(sets, 0.0)
    power = 0.0
    product = math.inf
    elementwise = math.inf
    for _ in range(sweeps):
        for mebibytes in sets:
            speeds[mebibytes] = max(speeds[mebibytes], bandwidth(mebibytes) / 1e9)
        power = max(power, gigaflops(1024), gigaflops(2048))
        product = min(product, best(lambda: torch.mm(x, w, out=out), SMALL_CALLS))
        elementwise = min(elementwise, best(x.tanh_, SMALL_CALLS))

    # A smaller set fits wherever a larger one does, so noise alone can make it look slower.
    rising = list(itertools.accumulate(reversed(speeds.values()), max))
    return Machine(
        gigabytes_a_second=dict(zip(speeds, reversed(rising), strict=True)),
        gigaflops=power,
        product_us=1e6 * product,
        elementwise_us=1e6 * elementwise,
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    print(json.dumps(measure().facts(), indent=2))
