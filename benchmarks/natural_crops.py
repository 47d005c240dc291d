"""Natural crops of 32x32 pixels: photographs halved, cut into tiles, split by photograph.

    python benchmarks/natural_crops.py kodak24.zip bsds500.zip --out natural-crops.npz

Each side of a photograph is halved: a pixel is the mean of four. That removes most of what JPEG
compression left in the photographs of BSDS500, which would otherwise be learned and predicted. What
does not fill a tile is cut off at the right and at the bottom. All tiles of a photograph are in the
split of the photograph, so no test image has a neighbour among the training images. The array
``test_photographs`` says which tiles are of one photograph.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
SHARES = {"test": 0.1, "valid": 0.04}
"""Share of the photographs in each split; the rest is for training."""

VALID_TILES = 128
"""More would take as long as the training of a quick model."""


def main() -> None:
    """Read archives of photographs and write the tiles of all splits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", nargs="+", type=Path, help="zip files of photographs")
    parser.add_argument("--out", type=Path, required=True, help="npz file to write")
    chosen = parser.parse_args()
    arrays = split_tiles(chosen.archives)
    for split in ("train", "valid", "test"):
        print(f"{split}: {len(arrays[f'{split}_images'])} tiles")
    print(f"{arrays['test_photographs'].max() + 1} photographs in test")
    np.savez_compressed(chosen.out, **arrays)


def split_tiles(archives: Sequence[Path]) -> dict[str, np.ndarray]:
    """The tiles of all splits, ``uint8 [n, 32, 32, 3]``, and of test which photograph each is of.

    Args:
        archives: zip files of photographs.
    """
    tiles: dict[str, list[np.ndarray]] = {"train": [], "valid": [], "test": []}
    names: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for archive in archives:
        for name, pixels in photographs(archive):
            split = choose_split(name)
            cut = cut_tiles(reduced(pixels, 2))
            tiles[split].append(cut)
            names[split] += [name] * len(cut)

    arrays = {}
    for split, parts in tiles.items():
        images = np.concatenate(parts)
        if split == "valid":
            # Evenly spaced, so that they are still of all photographs.
            images = images[np.arange(VALID_TILES) * len(images) // VALID_TILES]
        arrays[f"{split}_images"] = images
    # Numbers in the order of the names: tiles of one photograph are no independent images.
    arrays["test_photographs"] = np.unique(names["test"], return_inverse=True)[1].astype(np.int32)
    return arrays


def photographs(archive: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pixels, uint8 ``[height, width, 3]``, of the photographs in a zip file."""
    with zipfile.ZipFile(archive) as opened:
        for name in sorted(opened.namelist()):
            if not name.lower().endswith((".png", ".jpg", ".jpeg")):
                continue
            image = Image.open(io.BytesIO(opened.read(name))).convert("RGB")
            yield f"{archive.stem}/{name}", np.asarray(image)


def choose_split(name: str) -> str:
    """The split of a photograph, by the hash of its name."""
    digest = hashlib.sha256(name.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "train"


def reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of ``factor x factor`` pixels, rounded (a box filter).

    Args:
        pixels: ``uint8 [height, width, 3]``; what does not fill a square is cut off.
        factor: side of a square, from 1.

    Returns:
        ``uint8 [height // factor, width // factor, 3]``.
    """
    height = pixels.shape[0] // factor
    width = pixels.shape[1] // factor
    squares = pixels[: factor * height, : factor * width].astype(np.uint32)
    sums = squares.reshape(height, factor, width, factor, 3).sum(axis=(1, 3))
    area = factor**2
    return ((sums + area // 2) // area).astype(np.uint8)


def cut_tiles(pixels: np.ndarray) -> np.ndarray:
    """Tiles from left to right and from top to bottom, uint8 ``[tiles, 32, 32, 3]``."""
    rows = pixels.shape[0] // SIDE
    columns = pixels.shape[1] // SIDE
    whole = pixels[: rows * SIDE, : columns * SIDE]
    tiles = whole.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2)
    return tiles.reshape(rows * columns, SIDE, SIDE, 3)


if __name__ == "__main__":
    main()
