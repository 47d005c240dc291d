"""Draw the pictures of the documentation from finished runs.

python scripts/pictures.py photographs runs/photos kodak24.zip python scripts/pictures.py two-stage
cifar10 runs/cifar10-prior npz:cifar10_test.npz "CIFAR-10, JPEG, test" python scripts/pictures.py
binary-mnist runs/likelihood/binary-mnist/pixelcnn++ python scripts/pictures.py side-by-side mnist
npz:mnist.npz runs/mnist-pixels runs/mnist
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
from tessella.pipeline import fingerprint
from tessella.storage import pictures

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def photographs(photos: Path, kodak: str) -> None:
    """Photographs that the model was not trained on, small and large."""
    source = DataConfig(f"folder:{kodak}", size="64")
    shown = data.load(source, "all").images[:16]
    draw_two_stage("kodak", photos, shown, "Kodak photographs at 64x64, none trained on")
    large(photos, replace(source, size="256x384"))


def two_stage(name: str, run: Path, tests: str, title: str) -> None:
    """Test images, what comes back from their codes, and samples of the prior."""
    draw_two_stage(name, run, data.load(DataConfig(tests), "test").images[:36], title)


def binary_mnist(run: Path) -> None:
    """Test images beside samples of a model of their pixels."""
    model = ts.load(run)
    assert isinstance(model, ts.Generator)
    held_out = data.load(data_config(run), "test").images[:]
    panels = [
        ("test digits", pictures.sheet(held_out[::200][:48], 8, 2)),
        (
            f"drawn by {model.priors[0].name}",
            pictures.sheet(model.sample(48, seed=0).numpy(), 8, 2),
        ),
    ]
    save("binary-mnist", panels, model)


def draw_two_stage(name: str, run: Path, images: np.ndarray, title: str) -> None:
    """Images, what comes back from their codes, and samples of the prior, side by side."""
    generator = ts.load(run)
    assert isinstance(generator, ts.Generator)
    grid, side = generator.priors[-1].grid, round(len(images) ** 0.5)
    rebuilt = generator.tokenizer.decode(generator.tokenizer.encode(images)).numpy()
    drawn = generator.sample(len(images), seed=0).numpy()
    panels = [
        (title, pictures.sheet(images, side, 2)),
        (
            f"rebuilt from {grid.height}x{grid.width} codes of {grid.levels}",
            pictures.sheet(rebuilt, side, 2),
        ),
        ("drawn by the prior", pictures.sheet(drawn, side, 2)),
    ]
    save(name, panels, generator)


def side_by_side(name: str, tests: str, pixels: Path, codes: Path) -> None:
    """Test images, samples of a model of their pixels, and samples of a model of their codes."""
    one, two = ts.load(pixels), ts.load(codes)
    images = data.load(DataConfig(tests), "test").images[:36]
    assert isinstance(one, ts.Generator)
    assert isinstance(two, ts.Generator)
    side, count = round(len(images) ** 0.5), len(images)
    lengths = [sum(prior.grid.symbols for prior in model.priors) for model in (one, two)]
    panels = [
        ("test images", pictures.sheet(images, side, 2)),
        (
            f"drawn as {lengths[0]:,} pixels and channels",
            pictures.sheet(one.sample(count, seed=0).numpy(), side, 2),
        ),
        (
            f"drawn as {lengths[1]:,} codes",
            pictures.sheet(two.sample(count, seed=0).numpy(), side, 2),
        ),
    ]
    save(f"{name}-pixels-and-codes", panels, one, two)


def large(run: Path, source: DataConfig) -> None:
    """A photograph larger than any the tokenizer was trained on: it is convolutional and takes
    every size."""
    generator = ts.load(run)
    assert isinstance(generator, ts.Generator)
    tokenizer = generator.tokenizer
    photograph = data.load(source, "all").images[4:5]
    height, width = photograph.shape[1:3]
    codes = tokenizer.encode(photograph)
    rebuilt = tokenizer.decode(codes, (height, width)).numpy()
    panels = [
        (f"{width}x{height}, not trained on", photograph[0]),
        (f"rebuilt from {codes.shape[2]}x{codes.shape[1]} codes", rebuilt[0]),
    ]
    save("kodak-large", panels, generator)


def save(name: str, panels: list[tuple[str, np.ndarray]], *generators: ts.Generator) -> None:
    """Write a picture that says which models made it."""
    made = {"tessella": ts.__version__, "seed": 0, "model": " ".join(map(fingerprint, generators))}
    pictures.save_png(IMAGES / f"{name}.png", pictures.captioned(panels), made)


if __name__ == "__main__":
    command, *given = sys.argv[1:]
    if command == "photographs":
        photographs(Path(given[0]), given[1])
    elif command == "two-stage":
        two_stage(given[0], Path(given[1]), given[2], given[3])
    elif command == "binary-mnist":
        binary_mnist(Path(given[0]))
    elif command == "side-by-side":
        side_by_side(given[0], given[1], Path(given[2]), Path(given[3]))
    else:
        sys.exit(__doc__)
