"""Seconds of a training step: our Gated PixelCNN and a peer's, in turn, on the same work.

    python benchmarks/training.py [--out results/training.json] [--compile] [--rounds 7]

10 layers of 128, images of 32x32x3 with 256 levels, batches of 16, forward, backward and Adam. The
peer is the GatedPixelCNN of pytorch-generative (https://github.com/EugenHotaj/pytorch-generative),
with three outputs of 256 levels that do not see each other, in a checkout under the folder that
PEERS_DIR names; without it only ours runs. ``--compile`` adds both under torch.compile, which takes
minutes. A product of matrices says what the machine gives.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import StandIn, alternate, others, write
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tessella as ts

GRID, BATCH, LAYERS, HIDDEN = ts.Grid(32, 32, 3, 256), 16, 10, 128

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def ours(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Nats of a symbol. Calls the module itself, so that a compiled one is."""
    parameters = model(x)
    return F.cross_entropy(parameters.flatten(0, -2), x.flatten())


def theirs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The same of the peer, which takes values in [0, 1] and gives ``[batch, 3 * 256, 32, 32]``."""
    images = (x.movedim(-1, 1) / 255).contiguous(memory_format=_format(model))
    return F.cross_entropy(model(images).reshape(BATCH, 256, 3, 32, 32), x.movedim(-1, 1))


def _format(model: nn.Module) -> torch.memory_format:
    kernels = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    last = all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    return torch.channels_last if last else torch.contiguous_format


def peer(folder: Path) -> Callable[[], nn.Module]:
    """The peer's class, with stand-ins for what its package imports and this work does not use."""
    for name in (
        "torchvision",
        "torchvision.datasets",
        "torchvision.datasets.utils",
        "torchvision.datasets.vision",
        "torchvision.transforms",
        "sklearn",
        "sklearn.datasets",
        "torch.utils.tensorboard",
    ):
        sys.modules.setdefault(name, StandIn(name))
    sys.path.insert(0, str(folder))
    from pytorch_generative import models

    return lambda: models.GatedPixelCNN(3, 3 * 256, LAYERS, HIDDEN, HIDDEN // 4)  # type: ignore[no-any-return]


def step_of(model: nn.Module, loss: Loss, x: torch.Tensor) -> Callable[[], None]:
    """One training step."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model, x).backward()
        optimizer.step()

    return step


def gflop(step: Callable[[], None]) -> float:
    """Products of one step, in 10^9 operations."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    x = torch.randint(256, (BATCH, *GRID.shape), generator=torch.Generator().manual_seed(0))

    def create() -> nn.Module:
        return ts.create("gated-pixelcnn", GRID, layers=LAYERS, hidden=HIDDEN)

    work = {"tessella": step_of(create(), ours, x)}
    counts = {
        "tessella": {
            "parameters": sum(p.numel() for p in create().parameters()),
            "gflop": gflop(work["tessella"]),
        }
    }
    folder = Path(os.environ.get("PEERS_DIR", "peers")) / "pytorch-generative"
    make = peer(folder) if folder.is_dir() else None
    if make is not None:
        work["pytorch-generative"] = step_of(make(), theirs, x)
        work["pytorch-generative, channels last"] = step_of(
            make().to(memory_format=torch.channels_last), theirs, x
        )
        size = sum(p.numel() for p in make().parameters())
        counts["pytorch-generative"] = {
            "parameters": size,
            "gflop": gflop(work["pytorch-generative"]),
        }
    if options.compile:
        work["tessella, compiled"] = step_of(torch.compile(create()), ours, x)  # type: ignore[arg-type]
        if make is not None:
            theirs_compiled = torch.compile(make().to(memory_format=torch.channels_last))
            work["pytorch-generative, compiled"] = step_of(theirs_compiled, theirs, x)  # type: ignore[arg-type]
    noise, a = others(), torch.randn(2048, 2048)
    work["product of 2048x2048 matrices"] = lambda: a @ a
    started = time.perf_counter()
    seconds = alternate(work, options.rounds, warm=2)
    product = 2 * 2048**3 / seconds.pop("product of 2048x2048 matrices")["median"] / 1e9
    rows = {name: {"seconds": t, **counts.get(name, {})} for name, t in seconds.items()}
    ratios = {
        name: seconds["tessella"]["median"] / t["median"]
        for name, t in seconds.items()
        if "compiled" not in name
    }
    if "pytorch-generative, compiled" in seconds:
        ours_compiled, their_compiled = (
            seconds[f"{n}, compiled"]["median"] for n in ("tessella", "pytorch-generative")
        )
        ratios["compiled"] = ours_compiled / their_compiled
    work_done = (
        f"gated-pixelcnn {LAYERS}x{HIDDEN}, {GRID}, batch {BATCH}, forward, backward and Adam"
    )
    facts = {
        "work": work_done,
        "machine_gflops": product,
        "busy_others": noise(),
        "seconds": time.perf_counter() - started,
    }
    rows = [{"name": name, **row} for name, row in rows.items()]
    write("training", [facts, *rows, {"ratio_of_medians": ratios}], options.out)


if __name__ == "__main__":
    main()
