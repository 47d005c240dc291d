"""Draw the pictures of the documentation from finished runs.

    python scripts/pictures.py photographs runs/photos kodak24.zip
    python scripts/pictures.py two-stage cifar10 runs/cifar10-prior npz:cifar10_test.npz \\
        "CIFAR-10, JPEG, test"
    python scripts/pictures.py binary-mnist runs/likelihood/binary-mnist/pixelcnn++
    python scripts/pictures.py side-by-side mnist npz:mnist.npz runs/mnist-pixels runs/mnist
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.evaluation import data_config
from tessella.files import pictures
from tessella.pipeline import Generator, fingerprint, load

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
ENLARGED = 2
"""Times that a pixel is repeated in a sheet."""

Panel = tuple[str, np.ndarray]
"""A caption and a picture."""


def photographs(run: Path, kodak: str) -> None:
    """Photographs that the model was not trained on, small and large."""
    source = DataConfig(f"folder:{kodak}", size="64")
    shown = data.load(source, "all").images[:16]
    draw_two_stage("kodak", run, shown, "Kodak photographs at 64x64, none trained on")
    large(run, replace(source, size="256x384"))


def two_stage(name: str, run: Path, source: str, title: str) -> None:
    """Test images, their reconstructions from codes, and samples of the prior."""
    images = data.load(DataConfig(source), "test").images[:36]
    draw_two_stage(name, run, images, title)


def binary_mnist(run: Path) -> None:
    """Test images beside samples of a model of their pixels."""
    model = load(run, expect=Generator)
    held_out = data.load(data_config(run), "test").images[:]
    # Spread over the whole split, in which neighbours may look alike.
    digits = held_out[::200][:48]
    drawn = model.sample(48, seed=0).numpy()
    panels = [
        ("test digits", pictures.sheet(digits, 8, ENLARGED)),
        (f"drawn by {model.priors[0].name}", pictures.sheet(drawn, 8, ENLARGED)),
    ]
    save("binary-mnist", panels, model)


def draw_two_stage(name: str, run: Path, images: np.ndarray, title: str) -> None:
    """Draw images, their reconstructions and samples of the prior, side by side."""
    generator = load(run, expect=Generator)
    # The last prior is that of the finest codes.
    grid = generator.priors[-1].grid
    side = round(len(images) ** 0.5)
    rebuilt = generator.tokenizer.decode(generator.tokenizer.encode(images)).numpy()
    # As many as there are images, so that the sheets have equal sizes.
    drawn = generator.sample(len(images), seed=0).numpy()
    rebuilt_from = f"rebuilt from {grid.height}x{grid.width} codes of {grid.levels}"
    panels = [
        (title, pictures.sheet(images, side, ENLARGED)),
        (rebuilt_from, pictures.sheet(rebuilt, side, ENLARGED)),
        ("drawn by the prior", pictures.sheet(drawn, side, ENLARGED)),
    ]
    save(name, panels, generator)


def side_by_side(name: str, source: str, pixel_run: Path, code_run: Path) -> None:
    """Test images, samples of a model of their pixels, and samples of a model of their codes."""
    images = data.load(DataConfig(source), "test").images[:36]
    pixels = load(pixel_run, expect=Generator)
    codes = load(code_run, expect=Generator)
    count = len(images)
    side = round(count**0.5)
    drawn_pixels = pixels.sample(count, seed=0).numpy()
    drawn_codes = codes.sample(count, seed=0).numpy()
    panels = [
        ("test images", pictures.sheet(images, side, ENLARGED)),
        (
            f"drawn as {count_symbols(pixels):,} pixels and channels",
            pictures.sheet(drawn_pixels, side, ENLARGED),
        ),
        (
            f"drawn as {count_symbols(codes):,} codes",
            pictures.sheet(drawn_codes, side, ENLARGED),
        ),
    ]
    save(f"{name}-pixels-and-codes", panels, pixels, codes)


def count_symbols(model: Generator) -> int:
    """Symbols that a model draws for an image."""
    return sum(prior.grid.symbols for prior in model.priors)


def large(run: Path, source: DataConfig) -> None:
    """A photograph larger than any that the tokenizer was trained on, and its reconstruction."""
    generator = load(run, expect=Generator)
    tokenizer = generator.tokenizer
    photograph = data.load(source, "all").images[4:5]
    height, width = photograph.shape[1:3]
    # The tokenizer is convolutional and takes every size.
    codes = tokenizer.encode(photograph)
    rebuilt = tokenizer.decode(codes, (height, width)).numpy()
    panels = [
        (f"{width}x{height}, not trained on", photograph[0]),
        (f"rebuilt from {codes.shape[2]}x{codes.shape[1]} codes", rebuilt[0]),
    ]
    save("kodak-large", panels, generator)


def save(name: str, panels: list[Panel], *generators: Generator) -> None:
    """Write a picture that says which models made it."""
    models = " ".join(fingerprint(generator) for generator in generators)
    # Written into the PNG, so that a picture can be made again.
    facts = {"tessella": ts.__version__, "seed": 0, "model": models}
    pictures.save_png(IMAGES / f"{name}.png", pictures.captioned(panels), facts)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:] or [""]
    if command == "photographs":
        photographs(Path(arguments[0]), arguments[1])
    elif command == "two-stage":
        two_stage(arguments[0], Path(arguments[1]), arguments[2], arguments[3])
    elif command == "binary-mnist":
        binary_mnist(Path(arguments[0]))
    elif command == "side-by-side":
        side_by_side(arguments[0], arguments[1], Path(arguments[2]), Path(arguments[3]))
    else:
        sys.exit(__doc__)
