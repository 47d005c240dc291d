"""Seconds of a training step: our Gated PixelCNN and a peer's, in turn, on equal work.

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
from harness import Row, StandIn, alternate, count_parameters, gauge_other_load, write
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tessella as ts

GRID = ts.Grid(32, 32, 3, 256)
BATCH = 16
LAYERS = 10
HIDDEN = 128
PRODUCT = "product of 2048x2048 matrices"
OURS = "tessella"
PEER = "pytorch-generative"
UNUSED = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.datasets.utils",
    "torchvision.datasets.vision",
    "torchvision.transforms",
    "sklearn",
    "sklearn.datasets",
    "torch.utils.tensorboard",
)
"""Modules that the peer imports and this work does not use."""

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def our_loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Nats of a symbol."""
    # Calls the module, not distribution(), so that a compiled module runs compiled.
    logits = model(x)
    # [16, 32, 32, 3, 256] against [16, 32, 32, 3].
    return F.cross_entropy(logits.flatten(0, -2), x.flatten())


def peer_loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Nats of a symbol for the peer, which takes values in [0, 1]."""
    images = (x.movedim(-1, 1) / 255).contiguous(memory_format=_memory_format(model))
    # The peer gives [batch, 3 * 256, 32, 32]; levels come before channels.
    return F.cross_entropy(model(images).reshape(BATCH, 256, 3, 32, 32), x.movedim(-1, 1))


def _memory_format(model: nn.Module) -> torch.memory_format:
    """The memory format of a model's convolutions."""
    for parameter in model.parameters():
        # A kernel of one row or one channel lies alike in both formats.
        if parameter.dim() != 4 or parameter.shape[1] == 1 or parameter.shape[2] == 1:
            continue
        if not parameter.is_contiguous(memory_format=torch.channels_last):
            return torch.contiguous_format
    return torch.channels_last


def import_peer(folder: Path) -> Callable[[], nn.Module]:
    """The function that creates the peer's model."""
    for name in UNUSED:
        sys.modules.setdefault(name, StandIn(name))
    sys.path.insert(0, str(folder))
    from pytorch_generative import models  # type: ignore[import-not-found]

    # Per pixel it has one output of 256 levels for each channel.
    return lambda: models.GatedPixelCNN(3, 3 * 256, LAYERS, HIDDEN, HIDDEN // 4)


def create() -> nn.Module:
    """Our model with fresh weights."""
    return ts.create("gated-pixelcnn", GRID, layers=LAYERS, hidden=HIDDEN)


def step_of(model: nn.Module, loss: Loss, x: torch.Tensor) -> Callable[[], None]:
    """A function that takes one training step."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model, x).backward()
        optimizer.step()

    return step


def count_gflop(step: Callable[[], object]) -> float:
    """Operations of the products of one step, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def measure(chosen: argparse.Namespace) -> list[Row]:
    """The rows: the circumstances, each way of training, and ratios of their medians."""
    x = torch.randint(256, (BATCH, *GRID.shape), generator=torch.Generator().manual_seed(0))
    work: dict[str, Callable[[], object]] = {OURS: step_of(create(), our_loss, x)}
    counts = {OURS: {"parameters": count_parameters(create()), "gflop": count_gflop(work[OURS])}}

    folder = Path(os.environ.get("PEERS_DIR", "peers")) / "pytorch-generative"
    create_peer = None
    if folder.is_dir():
        create_peer = import_peer(folder)

        def create_last() -> nn.Module:
            model = create_peer()
            return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        work[PEER] = step_of(create_peer(), peer_loss, x)
        # Convolutions on a CPU are faster this way, and a user of the peer could choose it.
        work[f"{PEER}, channels last"] = step_of(create_last(), peer_loss, x)
        counts[PEER] = {
            "parameters": count_parameters(create_peer()),
            "gflop": count_gflop(work[PEER]),
        }
    if chosen.compile:
        # nn.Module.compile, since torch.compile() returns what a type checker takes for a function.
        model = create()
        model.compile()
        work[f"{OURS}, compiled"] = step_of(model, our_loss, x)
        if create_peer is not None:
            peer = create_last()
            peer.compile()
            work[f"{PEER}, compiled"] = step_of(peer, peer_loss, x)

    other_load = gauge_other_load()
    a = torch.randn(2048, 2048)
    work[PRODUCT] = lambda: a @ a
    started = time.perf_counter()
    # Two runs to warm up: torch.compile works in the first ones.
    seconds = alternate(work, chosen.rounds, warm=2)
    product = seconds.pop(PRODUCT)["median"]
    # First in the file, where scripts/model_tables.py expects it.
    circumstances = {
        "work": f"gated-pixelcnn {LAYERS}x{HIDDEN}, {GRID}, batch {BATCH}, "
        "forward, backward and Adam",
        "machine_gflops": 2 * 2048**3 / product / 1e9,
        "busy_others": other_load(),
        "seconds": time.perf_counter() - started,
    }
    rows = []
    for name, times in seconds.items():
        rows.append({"name": name, "seconds": times, **counts.get(name, {})})
    return [circumstances, *rows, {"ratio_of_medians": ratios(seconds)}]


def ratios(seconds: dict[str, dict[str, float]]) -> dict[str, float]:
    """Our median time over that of every other way; compiled ways are compared with each other."""
    found = {}
    for name, times in seconds.items():
        if "compiled" not in name:
            found[name] = seconds[OURS]["median"] / times["median"]
    peer = seconds.get(f"{PEER}, compiled")
    if peer is not None:
        found["compiled"] = seconds[f"{OURS}, compiled"]["median"] / peer["median"]
    return found


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    chosen = parser.parse_args()
    write("training", measure(chosen), chosen.out)


if __name__ == "__main__":
    main()
