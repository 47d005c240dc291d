"""Memory of a folder: the peaks of training and of evaluation, for few and for many images.

    python benchmarks/memory.py --out results/memory.json
    python benchmarks/memory.py --images 200 1000 --size 64

Small generated JPEG images are scaled to ``--size``, so that the pixels of the many would fill the
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
"""The command line; at its end it prints its peak of memory in MiB."""

EVALUATED = 2000
"""Images that are evaluated at most."""


def generate(folder: Path, images: int) -> None:
    """Write so many pictures of soft colours."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(images):
        # Noise enlarged fourfold is smooth, which makes small files.
        pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((48, 48))
        picture.save(folder / f"{number:06d}.jpg", quality=80)


def peak(folder: Path, *words: str) -> int:
    """MiB that a command holds at most."""
    environment = {
        **os.environ,
        # An empty cache, so that every measurement decodes its images.
        "TESSELLA_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(harness.ROOT),
    }
    command = [sys.executable, "-c", WATCHED, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def measure(folder: Path, images: int, size: int) -> dict[str, int]:
    """One row: the peaks for so many images."""
    source = folder / f"images-{images}"
    run = str(folder / f"run-{images}")
    generate(source, images)

    # A small model, so that the images are what fills the memory.
    small = [f"data.size={size}", "tokenizer.hidden=16", "train.batch=8", "--steps", "3"]
    trained = peak(
        folder, "train", "folder-vqvae", "--data", f"folder:{source}", *small, "--out", run
    )
    limit = []
    if images > EVALUATED:
        limit.append(f"data.limit={EVALUATED}")
    # Of the training images, since those of a test split are few.
    evaluated = peak(folder, "eval", run, "--split", "train", "--batch", "16", *limit)
    return {
        "images": images,
        "pixels_mib": images * size * size * 3 >> 20,
        "train_mib": trained,
        "eval_mib": evaluated,
    }


def main() -> None:
    """Measure each number of images that the command line names."""
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
