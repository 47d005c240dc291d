"""Models that are served while the tests run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.pipeline import pixel_generator, save_model
from tessella.vae import create_vae

for library in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(library, reason=f"the page and its tests need {library}")

if TYPE_CHECKING:
    from served_page import Served


def classes_model() -> ts.Generator:
    """A pixel model with three classes and random weights, on colours."""
    grid = ts.Grid(5, 6, 3, 256)
    model = ts.create("gated-pixelcnn", grid, classes=3, seed=4, layers=2, hidden=12)
    return pixel_generator(model)


def any_order_model() -> ts.Generator:
    """A model of digits with random weights that can see all that is known."""
    grid = ts.Grid(8, 8, 1, 17)
    return pixel_generator(ts.create("any-order", grid, seed=5, layers=1, width=16, heads=2))


def hierarchy_model() -> ts.Generator:
    """A two-stage model of two grids with random weights."""
    tokenizer = ts.create_tokenizer(
        "vqvae2", image_size=(16, 16), channels=3, codebook_size=16, hidden=8, code_dim=4, seed=1
    )
    prior = ts.create_prior("gated-pixelcnn", tokenizer.grids(), layers=1, hidden=8, seed=2)
    return ts.Generator(tokenizer, prior)


def large_tokenizer() -> ts.Tokenizer:
    """A tokenizer of random weights, with more codes than one request decodes."""
    return ts.create_tokenizer(
        "vqvae", image_size=(16, 16), channels=3, codebook_size=3000, hidden=8, code_dim=4, seed=3
    )


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The runs that are served: three that ship, and some with what those lack."""
    folder = tmp_path_factory.mktemp("served")
    classes_model().save(folder / "classes")
    any_order_model().save(folder / "any-order")
    hierarchy_model().save(folder / "hierarchy")
    save_model(large_tokenizer(), folder / "tokenizer")
    save_model(create_vae(image_size=(6, 5), channels=3, hidden=8, latent=3), folder / "vae")
    return [
        "digits",
        "digits-codes",
        "digits-vqvae",
        "cifar10-codes",
        str(folder / "classes"),
        str(folder / "any-order"),
        str(folder / "hierarchy"),
        str(folder / "tokenizer"),
        str(folder / "vae"),
    ]


@pytest.fixture(scope="session")
def served(runs: list[str]) -> Iterator[Served]:
    """The server that most tests ask."""
    from served_page import running

    with running(runs) as found:
        # The first steps of a session build the kernel, which takes a while.
        for model in found.models.values():
            if isinstance(model, ts.Generator):
                model.sample(1)
        yield found


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """Real test images, ``uint8 [n, 8, 8, 1]``."""
    return np.asarray(data.load(DataConfig("digits"), "test").images[:8])


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures of the page go: TESSELLA_SCREENSHOTS names a folder that is kept."""
    folder = Path(os.environ.get("TESSELLA_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
