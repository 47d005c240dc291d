"""Seconds and memory of ``vq-ema`` and of other libraries' quantizers.

    PEERS_DIR=... python benchmarks/quantizers.py [--series 3] [--rounds 5]
        [--cases 64x512 64x8192] [--only tessella]

Timed are the forward pass and the moving averages, no backward, on 65,536 vectors in training mode.
Every way runs in separate processes, three times in turn. Each reports the median of its calls
(the middle process counts) and how far its largest resident size exceeds that before the second
call (the first places the codes: ``first_s``, and ``first_mib``, the most of both). ``tessella`` is
the compiled search, ``tessella, torch`` the search without a compiler; both are compared with a
search in float64. Peers: vector-quantize-pytorch where it is installed
(``pip install vector-quantize-pytorch``), and vq-vae-2-pytorch
(github.com/rosinality/vq-vae-2-pytorch) in a checkout in the folder that PEERS_DIR names. An
address space of ``--most`` GiB is all that a process gets.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Row, alternate, gauge_other_load, importing, write

import tessella as ts
from tessella.tokenizers.quantizers.search import nearest

VECTORS = 65536
CASES = ("64x512", "64x8192", "256x16384")
TARGETS = {  # seconds in torch, seconds compiled, extra MB
    "64x512": (0.08, 0.04, 150),
    "64x8192": (1.3, 0.5, 150),
    "256x16384": (4.0, 3.0, 300),
}
MEGABYTES_A_MEBIBYTE = 1.048576
CHECKED = 4096
"""Vectors that are searched in float64, too."""
LEAST_SECONDS = 2.0
"""Seconds of calls, however short each is."""
SLOW = 4.0
"""Seconds of a call from which on two calls are enough."""
NEAR = 1e-5
"""Relative gap of squared distances under which float32 may take the other code."""
PEERS = Path(os.environ.get("PEERS_DIR", "peers"))

Quantize = Callable[[torch.Tensor], object]


def create_ours(dim: int, codes: int) -> Quantize:
    """Our quantizer in training mode."""
    return ts.create_quantizer("vq-ema", dim=dim, codebook_size=codes).train()


def create_vector_quantize_pytorch(dim: int, codes: int) -> Quantize:
    """The quantizer of vector-quantize-pytorch, with our decay and weight of the commitment."""
    package = importlib.import_module("vector_quantize_pytorch")
    model = package.VectorQuantize(
        dim=dim, codebook_size=codes, decay=0.99, commitment_weight=0.25
    ).train()
    # It takes sequences of vectors.
    return lambda z: model(z.view(64, -1, dim))


def create_rosinality(dim: int, codes: int) -> Quantize:
    """The quantizer of vq-vae-2-pytorch."""
    with importing(PEERS / "vq-vae-2-pytorch", ["vqvae", "distributed"]):
        model = importlib.import_module("vqvae").Quantize(dim, codes).train()
    # It takes images, channels last.
    return lambda z: model(z.view(64, 32, 32, dim))


WAYS: dict[str, Callable[[int, int], Quantize]] = {
    "tessella": create_ours,
    "tessella, torch": create_ours,
    "vector-quantize-pytorch": create_vector_quantize_pytorch,
    "vq-vae-2-pytorch": create_rosinality,
}


def is_installed(name: str) -> bool:
    """Whether a way can run here."""
    if name.startswith("tessella"):
        return True
    if name == "vector-quantize-pytorch":
        return importlib.util.find_spec("vector_quantize_pytorch") is not None
    return (PEERS / name).is_dir()


def resident() -> int:
    """Memory of this process now, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def forget_peak() -> None:
    """Forget the largest resident size so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The largest resident size since :func:`forget_peak`, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) >> 10
    raise RuntimeError("/proc/self/status has no line VmHWM")


@torch.no_grad()
def measure(name: str, case: str, rounds: int) -> Row:
    """Measure one way in this process."""
    dim, codes = (int(number) for number in case.split("x"))
    torch.manual_seed(0)
    # Random vectors do: the work of a search does not depend on them.
    z = torch.randn(VECTORS, dim)
    quantize = WAYS[name](dim, codes)

    # The first call places the codes by k-means, which happens once in a training.
    before = resident()
    forget_peak()
    started = time.perf_counter()
    quantize(z)
    first_s = time.perf_counter() - started
    first_mib = peak() - before

    before = resident()
    other_load = gauge_other_load()
    forget_peak()
    times = time_calls(quantize, z, rounds)
    # The median, since a neighbour who wakes up makes a few calls slow.
    seconds = statistics.median(times)
    row = {
        "first_s": first_s,
        "first_mib": first_mib,
        "seconds": seconds,
        "least": min(times),
        "runs": len(times),
        "mib": peak() - before,
        "others": other_load(),
        # The product of all vectors with all codes is nearly all of the work.
        "gflop_s": 2 * VECTORS * dim * codes / seconds / 1e9,
    }
    if name.startswith("tessella"):
        row |= disagreements(z[:CHECKED], quantize.codebook)  # type: ignore[attr-defined]
    return row


def time_calls(quantize: Quantize, z: torch.Tensor, rounds: int) -> list[float]:
    """Seconds of each of at least ``rounds`` calls (two where they are slow)."""
    times: list[float] = []
    wanted = rounds
    while len(times) < wanted or sum(times) < LEAST_SECONDS:
        started = time.perf_counter()
        quantize(z)
        times.append(time.perf_counter() - started)
        if times[0] >= SLOW:
            wanted = min(rounds, 2)
    return times


def disagreements(vectors: torch.Tensor, codebook: torch.Tensor) -> Row:
    """Codes that differ from those of a search in float64.

    Returns:
        Their number, and the largest relative gap of their squared distances.
    """
    symbols = nearest(vectors, codebook)[0]
    exact = nearest(vectors.double(), codebook.double())[0]
    differ = symbols != exact

    # In float64 again, so that the gap is that of the codes and not of rounding.
    z = vectors[differ].double()
    e = codebook.double()
    distances = (z - e[symbols[differ]]).square().sum(1)
    least_distances = (z - e[exact[differ]]).square().sum(1)
    gaps = distances / least_distances - 1
    gap = 0.0
    if len(gaps):
        gap = float(gaps.max())
    return {
        "checked": len(vectors),
        "differ": int(differ.sum()),
        "largest_gap": gap,
        "exact_enough": gap < NEAR,
    }


def measure_apart(name: str, case: str, chosen: argparse.Namespace) -> Row:
    """:func:`measure` in a separate process; an ``error`` if that fails."""
    kernel = "1"
    if name == "tessella, torch":
        kernel = "0"
    command = [sys.executable, __file__, "--one", name, "--cases", case]
    command += ["--rounds", str(chosen.rounds), "--most", str(chosen.most)]
    # Read when the search is first used, hence a process for each.
    environment = {**os.environ, "TESSELLA_KERNEL": kernel}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return {"error": lines[-1][-160:]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def middle(rows: list[Row]) -> Row:
    """The row of middle speed, with the seconds of all; a failed one if there is one."""
    for row in rows:
        if "error" in row:
            return row
    ordered = sorted(rows, key=lambda row: row["seconds"])
    return ordered[len(rows) // 2] | {"series": [row["seconds"] for row in rows]}


def judge(row: Row) -> Row:
    """A row of ours with its targets; every other row as it is."""
    if not row["name"].startswith("tessella") or row["case"] not in TARGETS or "error" in row:
        return row
    in_torch, compiled, megabytes = TARGETS[row["case"]]
    seconds = in_torch
    if row["name"] == "tessella":
        seconds = compiled
    fast_enough = row["seconds"] <= seconds
    small_enough = row["mib"] * MEGABYTES_A_MEBIBYTE <= megabytes
    met = fast_enough and small_enough
    return row | {"target_s": seconds, "target_mb": megabytes, "met": met}


def describe(row: Row) -> str:
    """A row as a line to read."""
    heading = f"{row['case']:>10} {row['name']:24}"
    if "error" in row:
        return f"{heading} {row['error']}"
    line = (
        f"{heading} {row['seconds']:8.4f} s {row['mib']:6,} MiB {row['gflop_s']:6.0f} GFLOP/s"
        f"  first {row['first_s']:.2f} s {row['first_mib']:,} MiB"
    )
    if "differ" in row:
        line += f"  {row['differ']} of {row['checked']} differ, by {row['largest_gap']:.1e}"
    if "met" in row:
        line += "  met" if row["met"] else "  NOT MET"
    return line


def measure_case(case: str, names: list[str], chosen: argparse.Namespace) -> list[Row]:
    """The rows of one case, a row for each way."""
    series: dict[str, list[Row]] = {name: [] for name in names}
    # In turn, so that all ways meet the noise of the machine alike.
    for _ in range(chosen.series):
        for name in names:
            series[name].append(measure_apart(name, case, chosen))

    rows = []
    for name, measured in series.items():
        row = judge({"name": name, "case": case, **middle(measured)})
        rows.append(row)
        print(describe(row), flush=True)
    return rows


def main() -> None:
    """Measure all cases, or one way in a child process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), help="length of a vector x codes"
    )
    parser.add_argument("--only", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--series", type=int, default=3, help="processes of each, in turn")
    parser.add_argument("--most", type=float, default=15, help="GiB of a process")
    parser.add_argument("--out", default="")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        # Beyond this an allocation fails here, instead of the machine killing something else.
        most = int(chosen.most * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        print(json.dumps(measure(chosen.one, chosen.cases[0], chosen.rounds)))
        return

    names = []
    for name in chosen.only:
        if is_installed(name):
            names.append(name)
        else:
            print(f"{name} is not installed")
    rows: list[Row] = []
    for case in chosen.cases:
        rows += measure_case(case, names, chosen)

    a = torch.randn(2048, 2048)
    seconds = alternate({"product": lambda: a @ a}, 5)["product"]["median"]
    gflop_s = 2 * 2048**3 / seconds / 1e9
    rows.append({"name": "product of 2048x2048 matrices", "gflop_s": gflop_s})
    print(f"a product of matrices reaches {gflop_s:.0f} GFLOP/s")
    print(write("quantizers", rows, chosen.out))


if __name__ == "__main__":
    main()
