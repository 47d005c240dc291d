"""Seconds and memory of ``vq-ema`` and of other libraries' quantizers: forward and moving averages,
no backward.

    PEERS_DIR=... python benchmarks/quantizers.py [--series 3] [--rounds 5] [--cases 64x512 64x8192]
    [--only tessella]

65,536 vectors in training mode. Every way runs in processes of its own, three times in turn, each
telling the median of its calls (the middle process counts) and what its largest resident size is
beyond that before the second call (the first places the codes: ``first_s``, and ``first_mib``, the
most of both). ``tessella`` is the compiled search, ``tessella, torch`` the same without a compiler;
both are compared with a search in float64. Peers: vector-quantize-pytorch where it is installed
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
from typing import Any

import torch
from harness import alternate, importing, others, write

import tessella as ts

VECTORS = 65536
CASES = ("64x512", "64x8192", "256x16384")
TARGETS = {  # seconds in torch, seconds compiled, extra MB
    "64x512": (0.08, 0.04, 150),
    "64x8192": (1.3, 0.5, 150),
    "256x16384": (4.0, 3.0, 300),
}
CHECKED = 4096
"""Vectors that are searched in float64, too."""
LEAST_SECONDS = 2.0
"""Of calls, however short they are."""
NEAR = 1e-5
"""Relative gap of squared distances under which float32 may take the other code."""
PEERS = Path(os.environ.get("PEERS_DIR", "peers"))


def ours(dim: int, codes: int) -> Callable[[torch.Tensor], object]:
    return ts.create_quantizer("vq-ema", dim=dim, codebook_size=codes).train()


def vector_quantize_pytorch(dim: int, codes: int) -> Callable[[torch.Tensor], object]:
    package = importlib.import_module("vector_quantize_pytorch")
    model = package.VectorQuantize(
        dim=dim, codebook_size=codes, decay=0.99, commitment_weight=0.25
    ).train()
    return lambda z: model(z.view(64, -1, dim))


def rosinality(dim: int, codes: int) -> Callable[[torch.Tensor], object]:
    with importing(PEERS / "vq-vae-2-pytorch", ["vqvae", "distributed"]):
        model = importlib.import_module("vqvae").Quantize(dim, codes).train()
    return lambda z: model(z.view(64, 32, 32, dim))


WAYS: dict[str, Callable[[int, int], Callable[[torch.Tensor], object]]] = {
    "tessella": ours,
    "tessella, torch": ours,
    "vector-quantize-pytorch": vector_quantize_pytorch,
    "vq-vae-2-pytorch": rosinality,
}


def installed(name: str) -> bool:
    if name == "vector-quantize-pytorch":
        return importlib.util.find_spec("vector_quantize_pytorch") is not None
    return name.startswith("tessella") or (PEERS / name).is_dir()


def resident() -> int:
    """MiB now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def restart_peak() -> None:
    """Forget the largest resident size so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """MiB at most since :func:`restart_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) >> 10


def one(name: str, case: str, rounds: int) -> dict[str, Any]:
    """Measure one way in this process."""
    dim, codes = (int(number) for number in case.split("x"))
    torch.manual_seed(0)
    z, act = torch.randn(VECTORS, dim), WAYS[name](dim, codes)
    with torch.no_grad():
        base, started = resident(), time.perf_counter()
        restart_peak()
        act(z)
        row: dict[str, Any] = {"first_s": time.perf_counter() - started, "first_mib": peak() - base}
        base, noise, times = resident(), others(), list[float]()
        restart_peak()
        while (
            len(times) < (rounds if not times or times[0] < 4 else min(rounds, 2))
            or sum(times) < LEAST_SECONDS
        ):
            started = time.perf_counter()
            act(z)
            times.append(time.perf_counter() - started)
        row |= {
            "seconds": statistics.median(times),
            "least": min(times),
            "runs": len(times),
            "mib": peak() - base,
        }
        row |= {
            "others": noise(),
            "gflop_s": 2 * VECTORS * dim * codes / statistics.median(times) / 1e9,
        }
        if name.startswith("tessella"):
            row |= disagreements(z[:CHECKED], act.codebook)  # type: ignore[attr-defined]
    return row


def disagreements(vectors: torch.Tensor, codebook: torch.Tensor) -> dict[str, Any]:
    """Codes that differ from those of a search in float64, and the largest relative gap of their
    squared distances."""
    from tessella.tokenizers.quantizers.search import nearest

    symbols, exact = nearest(vectors, codebook)[0], nearest(vectors.double(), codebook.double())[0]
    differ = symbols != exact
    z, e = vectors[differ].double(), codebook.double()
    gaps = (z - e[symbols[differ]]).square().sum(1) / (z - e[exact[differ]]).square().sum(1) - 1
    gap = float(gaps.max()) if len(gaps) else 0.0
    return {
        "checked": len(vectors),
        "differ": int(differ.sum()),
        "largest_gap": gap,
        "exact_enough": gap < NEAR,
    }


def child(name: str, case: str, options: argparse.Namespace) -> dict[str, Any]:
    """:func:`one` in a process of its own; an ``error`` where that fails."""
    place = {**os.environ, "TESSELLA_KERNEL": "0" if name == "tessella, torch" else "1"}
    words = [
        "--one",
        name,
        "--cases",
        case,
        "--rounds",
        str(options.rounds),
        "--most",
        str(options.most),
    ]
    shown = subprocess.run(
        [sys.executable, __file__, *words], env=place, capture_output=True, text=True
    )
    if shown.returncode:
        last = (shown.stderr.strip().splitlines() or [f"exit {shown.returncode}"])[-1]
        return {"error": last[-160:]}
    return dict(json.loads(shown.stdout.splitlines()[-1]))


def middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of middle speed, with the seconds of all."""
    if any("error" in row for row in rows):
        return next(row for row in rows if "error" in row)
    ordered = sorted(rows, key=lambda row: row["seconds"])
    return ordered[len(rows) // 2] | {"series": [row["seconds"] for row in rows]}


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """Our row with its targets."""
    if not row["name"].startswith("tessella") or row["case"] not in TARGETS or "error" in row:
        return row
    in_torch, compiled, megabytes = TARGETS[row["case"]]
    seconds = compiled if row["name"] == "tessella" else in_torch
    met = row["seconds"] <= seconds and row["mib"] * 1.048576 <= megabytes
    return row | {"target_s": seconds, "target_mb": megabytes, "met": met}


def told(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['case']:>10} {row['name']:24} {row['error']}"
    facts = f"{row['seconds']:8.4f} s {row['mib']:6,} MiB {row['gflop_s']:6.0f} GFLOP/s"
    facts += f"  first {row['first_s']:.2f} s {row['first_mib']:,} MiB"
    facts += (
        f"  {row['differ']} of {row['checked']} differ, by {row['largest_gap']:.1e}"
        if "differ" in row
        else ""
    )
    met = {True: "  met", False: "  NOT MET", None: ""}[row.get("met")]
    return f"{row['case']:>10} {row['name']:24} {facts}{met}"


def main() -> None:
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
    options = parser.parse_args()
    if options.one:
        most = int(options.most * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        print(json.dumps(one(options.one, options.cases[0], options.rounds)))
        return
    for name in options.only:
        if not installed(name):
            print(f"{name} is not installed")
    rows: list[dict[str, Any]] = []
    for case in options.cases:
        names = [name for name in options.only if installed(name)]
        series = [[child(name, case, options) for name in names] for _ in range(options.series)]
        for name, of_one in zip(names, zip(*series, strict=True), strict=True):
            rows.append(judged({"name": name, "case": case, **middle(list(of_one))}))
            print(told(rows[-1]), flush=True)
    a = torch.randn(2048, 2048)
    product = alternate({"product": lambda: a @ a}, 5)["product"]["median"]
    rows.append({"name": "product of 2048x2048 matrices", "gflop_s": 2 * 2048**3 / product / 1e9})
    print(f"a product of matrices reaches {rows[-1]['gflop_s']:.0f} GFLOP/s")
    print(write("quantizers", rows, options.out))


if __name__ == "__main__":
    main()
