"""Memory of a folder: peak of the process that trains and of the one that evaluates, for few and
for many images.

    python benchmarks/memory.py --out results/memory.json
    python benchmarks/memory.py --images 200 1000 --size 64

Small JPEG images of our own are scaled to ``--size``, so that the pixels of the many would fill the
memory that the few leave free. Training decodes them all and takes three steps; evaluation looks at
the training images, 2,000 at most.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
from PIL import Image

WATCHED = """
import resource, sys
from tessella.cli.entry import main
status = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(status)
"""


def make(folder: Path, images: int) -> None:
    """So many pictures of soft colours."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(images):
        pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48)).save(folder / f"{i:06d}.jpg", quality=80)


def peak(folder: Path, *words: str) -> int:
    """MiB that a command of the command line holds at most."""
    place = {**os.environ, "TESSELLA_CACHE": str(folder / "cache"), "PYTHONPATH": str(harness.ROOT)}
    shown = subprocess.run(
        [sys.executable, "-c", WATCHED, *words], env=place, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    return int(shown.stdout.split()[-1])


def measure(folder: Path, images: int, size: int) -> dict[str, int]:
    source, run = folder / f"images-{images}", str(folder / f"run-{images}")
    make(source, images)
    small = [f"data.size={size}", "tokenizer.hidden=16", "train.batch=8", "--steps", "3"]
    trained = peak(
        folder, "train", "folder-vqvae", "--data", f"folder:{source}", *small, "--out", run
    )
    limit = ["data.limit=2000"] if images > 2000 else []
    evaluated = peak(folder, "eval", run, "--split", "train", "--batch", "16", *limit)
    return {
        "images": images,
        "pixels_mib": images * size * size * 3 >> 20,
        "train_mib": trained,
        "eval_mib": evaluated,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder), images, chosen.size) for images in chosen.images]
    for row in rows:
        print(", ".join(f"{name} {value:,}" for name, value in row.items()))
    print(harness.write("memory", rows, chosen.out))


if __name__ == "__main__":
    main()
