"""Bits and seconds of lossless files, against the image codecs of others.

    python benchmarks/compression.py binarized-mnist --data binarized_mnist_fixed.npz
    python benchmarks/compression.py binarized-mnist --data binarized_mnist_fixed.npz --run RUN

Without ``--run``, the test images are coded with PNG, WebP, JPEG XL, JPEG-LS and AVIF; with it,
with the exact twin of the model of that run. There are two ways: a *file* for each image, of so
many images, evenly spaced among the test images; and one *sheet*, a single picture of all test
images, tiled from left to right. Ours has no sheets: there it is one archive of all images. Of
every codec the smallest of its forms counts. Every file is decoded and compared with the images,
bit for bit. Sizes are those of the whole files, headers included; the size of our model, which a
reader needs once, is stated beside.

The sets: ``binarized-mnist`` and ``mnist`` are the npz files of these names, ``natural-crops`` is
what ``benchmarks/natural_crops.py`` wrote. Results are merged into ``results/compression.json``.
The codecs of others need ``pip install imagecodecs``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import harness
import imagecodecs
import numpy as np
import torch
from other_codecs import Form, make_codecs

import tessella as ts
from tessella.cli.run_twin import twin_of_run
from tessella.exact import ExactModel

KEYS = ("set", "codec", "way")


def main() -> None:
    """Measure one set with the codecs that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", choices=["binarized-mnist", "mnist", "natural-crops"])
    parser.add_argument("--data", type=Path, required=True, help="npz file of the images")
    parser.add_argument("--files", type=int, default=100, help="images coded as files of their own")
    parser.add_argument("--limit", type=int, default=0, help="images in all; 0 takes every one")
    parser.add_argument("--codecs", nargs="*", help="only those whose names begin like this")
    parser.add_argument("--run", type=Path, help="run of our model, to measure instead of others")
    parser.add_argument("--threads", type=int, default=1, help="of our coder")
    parser.add_argument("--json", default="", help="another file of results")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)

    images = spread(read_images(chosen.set, chosen.data), chosen.limit)
    few = spread(images, chosen.files)
    if chosen.run is not None:
        twin = twin_of_run(str(chosen.run))
        facts: harness.Row = {"set": chosen.set, "codec": "tessella", "model": twin.network.name}
        facts["run"] = chosen.run.name
        facts["model_bytes"] = model_bytes(chosen.run)
        forms = [our_form(twin)]
        keep(facts | {"way": "archive"}, images, [images], forms, chosen.json)
        keep(facts | {"way": "files"}, few, list(few[:, None]), forms, chosen.json)
        return

    levels = 2 if chosen.set == "binarized-mnist" else 256
    channels = 3 if images.ndim == 4 else 1
    for codec, forms in make_codecs(levels, channels).items():
        if chosen.codecs and not codec.startswith(tuple(chosen.codecs)):
            continue
        facts = {"set": chosen.set, "codec": codec, "imagecodecs": imagecodecs.__version__}
        keep(facts | {"way": "files"}, few, list(few), forms, chosen.json)
        keep(facts | {"way": "sheet"}, images, [make_sheet(images)], forms, chosen.json)


def keep(
    facts: harness.Row,
    images: np.ndarray,
    pictures: Sequence[np.ndarray],
    forms: Sequence[Form],
    out: str,
) -> None:
    """Measure a codec on images in the shape of pictures, keep the row and print it."""
    row = facts | {"images": len(images), "sub_pixels": images.size}
    row |= measure(pictures, forms)
    # The empty places at the end of a sheet are no images.
    row["bits_per_sub_pixel"] = 8 * row["bytes"] / images.size
    harness.merge("compression", row, KEYS, out)
    print(
        f"{row['codec']}, {row['way']}: {row['bits_per_sub_pixel']:.4f} bits ({row['form']}), "
        f"{row['encode_seconds']:.1f} s, {row['decode_seconds']:.1f} s",
        flush=True,
    )


def model_bytes(run: Path) -> int:
    """Size of the files of a twin, which a reader needs once."""
    return sum(path.stat().st_size for path in run.glob("exact.*"))


def our_form(twin: ExactModel) -> Form:
    """Ours, of pictures ``[n, height, width]`` or ``[n, height, width, 3]``."""
    shape = twin.grid.shape

    def encode(images: np.ndarray) -> bytes:
        return ts.compress(images.reshape(-1, *shape), twin)

    def decode(contents: bytes) -> np.ndarray:
        return np.asarray(ts.decompress(contents, twin))

    return Form("exact twin", encode, decode)


def read_images(name: str, path: Path) -> np.ndarray:
    """The test images, uint8 ``[n, height, width]`` or ``[n, height, width, 3]``."""
    with np.load(path) as arrays:
        if name == "binarized-mnist":
            # Eight pixels to a byte.
            return np.unpackbits(arrays["test"], axis=1).reshape(-1, 28, 28)
        return np.asarray(arrays["test_images"])


def spread(images: np.ndarray, count: int) -> np.ndarray:
    """``count`` images, evenly spaced; all of them for 0, or where there are no more."""
    if count == 0 or count >= len(images):
        return images
    # Some sets are sorted by class, so the first images would not stand for all.
    return images[np.arange(count) * len(images) // count]


def make_sheet(images: np.ndarray) -> np.ndarray:
    """All images in one picture, about as wide as it is high; the last row may end in zeros."""
    height, width = images.shape[1:3]
    columns = int(np.ceil(np.sqrt(len(images) * height / width)))
    rows = -(-len(images) // columns)
    full = np.zeros((rows * columns, *images.shape[1:]), dtype=np.uint8)
    full[: len(images)] = images
    grid = full.reshape(rows, columns, *images.shape[1:]).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, *images.shape[3:])


def measure(pictures: Sequence[np.ndarray], forms: Sequence[Form]) -> harness.Row:
    """Code and decode all pictures in the form that makes them smallest."""
    best: harness.Row | None = None
    for form in forms:
        row = measure_form(pictures, form)
        if best is None or row["bytes"] < best["bytes"]:
            best = row
    assert best is not None
    return best


def measure_form(pictures: Sequence[np.ndarray], form: Form) -> harness.Row:
    """Code, decode and compare all pictures in one form."""
    began = time.perf_counter()
    contents = [form.encode(picture) for picture in pictures]
    coded = time.perf_counter()
    decoded = [form.decode(content) for content in contents]
    ended = time.perf_counter()

    for picture, back in zip(pictures, decoded, strict=True):
        if not np.array_equal(picture, np.reshape(back, picture.shape)):
            raise SystemExit(f"{form.name}: a decoded picture differs from the original")
    return {
        "form": form.name,
        "bytes": sum(map(len, contents)),
        "encode_seconds": coded - began,
        "decode_seconds": ended - coded,
        "exact": True,
    }


if __name__ == "__main__":
    sys.exit(main())
