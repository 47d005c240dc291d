"""Draw the pictures of the documentation from finished runs: python scripts/pictures.py runs/kodak runs/binary-mnist"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import tessella as ts
from tessella import data, report
from tessella.evaluation import data_config
from tessella.pipeline import fingerprint

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def main(photographs: Path, digits: Path) -> None:
    """Test images beside what the two models make of them and draw themselves."""
    two_stage, pixels = ts.load(photographs), ts.load(digits)
    assert isinstance(two_stage, ts.Generator)
    assert isinstance(pixels, ts.Generator)
    tiles = data.load(data_config(photographs), "test").images
    chosen = tiles[np.linspace(0, len(tiles) - 1, 16).astype(int)]
    rebuilt = two_stage.tokenizer.decode(two_stage.tokenizer.encode(chosen)).numpy()
    panels = [
        ("64x64 pieces of Kodak photographs", report.sheet(chosen, 4, 2)),
        ("rebuilt from 16x16 codes of 512", report.sheet(rebuilt, 4, 2)),
        ("drawn by the prior", report.sheet(two_stage.sample(16, seed=0).numpy(), 4, 2)),
    ]
    made = {"tessella": ts.__version__, "seed": 0}
    report.save_png(IMAGES / "kodak.png", report.captioned(panels), made | {"model": fingerprint(two_stage)})
    panels = [
        ("test digits", report.sheet(data.load(data_config(digits), "test").images[::200][:48], 8, 2)),
        ("drawn by the gated PixelCNN", report.sheet(pixels.sample(48, seed=0).numpy(), 8, 2)),
    ]
    report.save_png(IMAGES / "binary-mnist.png", report.captioned(panels), made | {"model": fingerprint(pixels)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
