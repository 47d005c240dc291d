"""What the borders of tiles cost: bits of the pixels of a tile, by their distance from its border.

    python benchmarks/tile_borders.py runs/natural-crops --data natural-crops.npz --images 32

A tile knows nothing of its neighbours, so its first row and column cost more than its middle. The
twin of the run scores held-out tiles, symbol by symbol; ``border`` is what all pixels of a tile
cost beyond those that are at least ``--depth`` pixels from the upper and the left border, as a
share of the tile.
"""

from __future__ import annotations

import argparse

import harness
import numpy as np
import torch

from tessella.cli.run_twin import twin_of_run


def main() -> None:
    """Score the tiles and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--data", required=True, help="an npz file with test_images")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    with np.load(options.data) as stored:
        every = stored["test_images"]
    chosen = np.linspace(0, len(every) - 1, options.images).astype(int)
    twin = twin_of_run(options.run)
    nats = twin.log_prob(torch.from_numpy(every[chosen]), reduce=False)
    bits = -(nats / np.log(2)).mean(dim=(0, 3))  # [height, width], of a sub-pixel
    middle = float(bits[options.depth :, options.depth :].mean())
    whole = float(bits.mean())
    row = {
        "run": options.run,
        "images": options.images,
        "bits_per_sub_pixel": whole,
        "first_pixel": float(bits[0, 0]),
        "first_row": float(bits[0, 1:].mean()),
        "first_column": float(bits[1:, 0].mean()),
        "middle": middle,
        "border": (whole - middle) / whole,
    }
    print(row)
    harness.write("tile_borders", [row], options.out)


if __name__ == "__main__":
    main()
