"""The speed of exact twins beside that of their models: cached steps, and coding beside sampling.

    python benchmarks/exact_speed.py --out results/exact_speed.json
    python benchmarks/exact_speed.py --rounds 1 --symbols 8 --only lstm --out tiny.json

Model and twin take the same steps in turn, with the same batch: compiled, and in plain torch
(``TESSELLA_KERNEL=0``). A step is everything from the newest symbol to the parameters of the next
one; ``ratio`` is the twin's time over the model's. Then, for whole images, files are encoded and
decoded beside samples drawn from the model: the seconds of all three, and symbols a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from typing import Any

import harness
import torch

import tessella as ts
from tessella.exact import ExactModel
from tessella.models import DensityModel
from tessella.models.program_model import ProgramModel

GRID = ts.Grid(28, 28, 1, 16)

MODELS: dict[str, dict[str, Any]] = {
    "gated-pixelcnn": {"layers": 5, "hidden": 64},
    "pixelcnn++": {"filters": 64, "blocks": 1, "scales": 2},
    "pixelsnail": {},
    "transformer": {"layers": 4, "width": 128, "heads": 4},
    "pixelcnn": {"layers": 5, "hidden": 64},
    "row-lstm": {"layers": 2, "hidden": 64},
    "diagonal-bilstm": {"layers": 2, "hidden": 64},
    "lstm": {"layers": 2, "hidden": 128},
}
"""Every family with a twin, and its sizes here."""

BATCHES = (1, 64)


@torch.no_grad()
def confident(model: DensityModel) -> DensityModel:
    """The model with a last layer of large weights.

    It knows its own samples well. Those of a fresh model are noise, which files hold as it is.
    """
    assert isinstance(model, ProgramModel)
    for layer in model.last_layers():
        layer.weight.mul_(30)
    return model


def steps(model: DensityModel, batch: int, symbols: int) -> float:
    """Seconds of a step, without the preparation of the state."""
    network = model.network if isinstance(model, ExactModel) else model
    state = model.init_state(batch)
    previous = torch.zeros(batch, dtype=torch.int64)
    # The first step lays out the programs.
    _, state = network.step(previous, 0, state)
    started = time.perf_counter()
    for index in range(1, symbols):
        _, state = network.step(previous, index, state)
    return (time.perf_counter() - started) / (symbols - 1)


def step_rows(family: str, model: DensityModel, twin: ExactModel, options: Any) -> list[Any]:
    """Time steps of a model and its twin."""
    rows = []
    for kernel in ("1", "0"):
        os.environ["TESSELLA_KERNEL"] = kernel
        # Torch takes ten times as long as the kernel.
        symbols = options.symbols if kernel == "1" else max(8, options.symbols // 8)
        for batch in BATCHES:
            work = {
                "model": lambda n=batch, s=symbols: steps(model, n, s),
                "twin": lambda n=batch, s=symbols: steps(twin, n, s),
            }
            spread = harness.alternate(work, options.rounds)
            row = {
                "family": family,
                "work": "step",
                "compiled": kernel == "1",
                "batch": batch,
                "model_seconds": spread["model"]["median"],
                "twin_seconds": spread["twin"]["median"],
                "ratio": spread["twin"]["median"] / spread["model"]["median"],
            }
            rows.append(row)
            how = "compiled" if kernel == "1" else "torch"
            print(f"{family:16} {how:9} batch {batch:3}: {row['ratio']:.2f}", flush=True)
    os.environ["TESSELLA_KERNEL"] = "1"
    return rows


def coding_row(family: str, model: DensityModel, twin: ExactModel, options: Any) -> Any:
    """Time coding of images beside sampling them."""
    images = ts.sample(model, n=options.images, seed=0)
    data = ts.compress(images.to(torch.uint8), twin)
    work = {
        "sample": lambda: ts.sample(model, n=options.images, seed=0, method="cached"),
        "encode": lambda: ts.compress(images.to(torch.uint8), twin),
        "decode": lambda: ts.decompress(data, twin),
    }
    spread = harness.alternate(work, max(1, options.rounds // 3))
    row: dict[str, Any] = {"family": family, "work": "coding", "images": options.images}
    for name, times in spread.items():
        row[f"{name}_seconds"] = times["median"]
        row[f"{name}_symbols_per_second"] = options.images * GRID.symbols / times["median"]
    print(
        f"{family:16} {options.images} images: sampled in {row['sample_seconds']:.2f} s, "
        f"encoded in {row['encode_seconds']:.2f} s, decoded in {row['decode_seconds']:.2f} s",
        flush=True,
    )
    return row


def main() -> None:
    """Measure all families and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--symbols", type=int, default=392, help="steps of a measurement")
    parser.add_argument("--images", type=int, default=64, help="images to encode and decode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="a single family")
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for family, sizes in MODELS.items():
        if options.only not in ("", family):
            continue
        model = confident(ts.create(family, GRID, seed=0, **sizes).eval())
        calibration = torch.randint(
            16, (4, *GRID.shape), generator=torch.Generator().manual_seed(0)
        )
        twin = model.exact(calibration)
        rows += step_rows(family, model, twin, options)
        # Coding needs the entropy coder of the extra `compress`.
        if importlib.util.find_spec("constriction"):
            rows.append(coding_row(family, model, twin, options))
    harness.write("exact_speed", rows, options.out)


if __name__ == "__main__":
    main()
