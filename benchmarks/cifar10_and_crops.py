"""CIFAR-10 with original pixels, and what else may teach its statistics, as one npz file.

    python benchmarks/cifar10_and_crops.py FOLDER --out cifar10-originals.npz
    python benchmarks/cifar10_and_crops.py FOLDER --out cifar10-originals-and-crops.npz \\
        --crops imagenet_sample.zip bsds500.zip kodak24.zip

The folder holds ``cifar10_lossless_part.npz``: the original pixels of 4,265 training images and of
the first 164 test images. The file that is written has

- ``test_images``: these 164;
- ``valid_images``: 165 of the 4,265, chosen by numpy's ``default_rng(0)``;
- ``train_images``: the other 4,100; then tiles of 32x32 pixels of the photographs in the archives
  of ``--crops``, each photograph reduced by the factors of ``--reduce`` with a box filter; then,
  with ``--jpeg``, the images of ``cifar10_jpeg_recompressed_train.npz``.

Nothing that is validated or tested on is trained on, in whatever form. The indices of the
JPEG-recompressed images tell which ones they are: those whose original pixels are in the file are
left out, be they held out or trained on already. CIFAR-10 has near copies of its own images, though
(Barz and Denzler 2020), so images of it that are closer than 22 dB to a held-out one or to its
mirror image are left out too. A JPEG version of an image is at least 23 dB from its original. A
crop is left out only if it equals a held-out image.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from natural_crops import cut_tiles, photographs, reduced
from PIL import Image

ORIGINALS = "cifar10_lossless_part.npz"
RECOMPRESSED = "cifar10_jpeg_recompressed_train.npz"
HELD_OUT = 165
"""Original training images to validate with: about as many as there are to test on."""
FACTORS = (2, 3, 4, 6, 8)
"""The photographs are reduced by these: a small image shows a whole scene, a large one a corner."""
NEAR_DB = 22.0
"""Images closer than this PSNR are copies of each other."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Choice:
    """What the training images are, besides originals.

    Args:
        crops: names of archives of photographs.
        factors: by which the photographs are reduced.
        jpeg: whether JPEG-recompressed images are among them.
    """

    crops: tuple[str, ...] = ()
    factors: tuple[int, ...] = FACTORS
    jpeg: bool = False


def build(folder: Path, choice: Choice) -> tuple[Arrays, dict[str, object]]:
    """The arrays of the file, and what they are made of.

    Args:
        folder: where the sources lie.
        choice: which of them to take.

    Returns:
        ``train_images``, ``valid_images`` and ``test_images``, uint8 ``[n, 32, 32, 3]``; and JSON
        values: the number of training images by kind, and of those left out as near copies.
    """
    with np.load(folder / ORIGINALS) as source:
        originals = source["train_images"]
        indices = source["train_indices"]
        test = source["test_images"]
    chosen = hold_out(len(originals))
    valid = originals[chosen]
    held_out = np.concatenate([valid, test])

    parts = {"originals": np.delete(originals, chosen, axis=0)}
    if choice.jpeg:
        # All originals of the file are left out: the held-out ones must be, the others are there.
        parts["jpeg"] = recompressed(folder / RECOMPRESSED, leave_out=indices)
    near = {}
    for kind, images in parts.items():
        copies = near_copies(images, held_out)
        near[kind] = int(copies.sum())
        parts[kind] = images[~copies]
    if choice.crops:
        tiles = crops([folder / name for name in choice.crops], choice.factors)
        parts["crops"] = tiles[~equal_to_any(tiles, held_out)]

    order = [kind for kind in ("originals", "crops", "jpeg") if kind in parts]
    arrays = {
        "train_images": np.concatenate([parts[kind] for kind in order]),
        "valid_images": valid,
        "test_images": test,
    }
    counts = {kind: len(parts[kind]) for kind in order}
    return arrays, {"train_images": counts, "near_copies_left_out": near}


def hold_out(count: int, number: int = HELD_OUT) -> np.ndarray:
    """Places of the images that validate, in order: ``number`` of ``count``."""
    return np.sort(np.random.default_rng(0).permutation(count)[:number])


def recompressed(path: Path, leave_out: np.ndarray) -> np.ndarray:
    """The JPEG-recompressed images, uint8 ``[n, 32, 32, 3]``.

    Args:
        path: npz file with ``jpeg``, ``offsets`` and ``train_indices``.
        leave_out: indices, in the standard order of CIFAR-10, of images that are not wanted.
    """
    with np.load(path) as source:
        content = source["jpeg"]
        offsets = source["offsets"]
        wanted = ~np.isin(source["train_indices"], leave_out)
    images = []
    for place in np.flatnonzero(wanted):
        file = io.BytesIO(content[offsets[place] : offsets[place + 1]].tobytes())
        images.append(np.asarray(Image.open(file).convert("RGB")))
    return np.stack(images)


def crops(archives: Sequence[Path], factors: Sequence[int]) -> np.ndarray:
    """Tiles of all photographs, reduced by every factor: uint8 ``[n, 32, 32, 3]``."""
    tiles = []
    for archive in archives:
        for _, pixels in photographs(archive):
            for factor in factors:
                tiles.append(cut_tiles(reduced(pixels, factor)))
    return np.concatenate(tiles)


def near_copies(images: np.ndarray, held_out: np.ndarray, psnr: float = NEAR_DB) -> np.ndarray:
    """Which images are copies of a held-out one, or of its mirror image.

    Args:
        images: uint8 ``[n, height, width, channels]``.
        held_out: of the same shape but for their number.
        psnr: images that are closer than so many dB are copies.

    Returns:
        bool ``[n]``.
    """
    # Training mirrors images, so the mirror image of a held-out one would be trained on too.
    others = np.concatenate([held_out, held_out[:, :, ::-1]])
    others = others.reshape(len(others), -1).astype(np.float32)  # [m, values]
    squares = (others**2).sum(axis=1)
    most = 255**2 / 10 ** (psnr / 10)
    found = np.zeros(len(images), bool)
    # Some thousand at a time, to bound the memory of their floats.
    for start in range(0, len(images), 4096):
        part = images[start : start + 4096].reshape(-1, others.shape[1]).astype(np.float32)
        # |a - b|² = |a|² - 2 a b + |b|², of all pairs by one product of matrices.
        distances = (part**2).sum(axis=1, keepdims=True) - 2 * part @ others.T + squares
        found[start : start + 4096] = distances.min(axis=1) / others.shape[1] < most
    return found


def equal_to_any(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which images equal one of the others, pixel for pixel: bool ``[n]``."""
    known = {image.tobytes() for image in others}
    return np.array([image.tobytes() in known for image in images], bool)


def fingerprint(arrays: Arrays) -> str:
    """SHA-256 of arrays with their names, types and shapes, however they are stored."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def main() -> None:
    """Build the file that the command line describes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the sources lie")
    parser.add_argument("--crops", nargs="*", default=[], help="archives of photographs in it")
    parser.add_argument("--reduce", nargs="*", type=int, default=FACTORS, help="factors")
    parser.add_argument("--jpeg", action="store_true", help="add JPEG-recompressed images")
    parser.add_argument("--out", type=Path, required=True, help="npz file to write")
    chosen = parser.parse_args()
    choice = Choice(tuple(chosen.crops), tuple(chosen.reduce), chosen.jpeg)
    arrays, made_of = build(chosen.folder, choice)
    np.savez(chosen.out, **arrays)
    print(json.dumps({**made_of, "sha256": fingerprint(arrays)}, indent=2))


if __name__ == "__main__":
    main()
