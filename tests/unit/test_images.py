"""Images that a notebook shows, and that are tensors in every other respect."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tessella as ts

PIXELS = torch.arange(3 * 4 * 5 * 3, dtype=torch.uint8).reshape(3, 4, 5, 3)


@pytest.fixture
def images() -> ts.Images:
    return ts.Images.of(PIXELS.clone())


def shown(images: ts.Images) -> np.ndarray:
    png = images._repr_png_()
    assert png is not None
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_notebook_shows_every_image(images: ts.Images) -> None:
    sheet = shown(images)
    colours = {tuple(colour) for colour in sheet.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in PIXELS.reshape(-1, 3).tolist()} <= colours


def test_grey_images_and_parts_are_shown(images: ts.Images) -> None:
    grey = ts.Images.of(PIXELS[..., :1].clone())
    assert shown(grey).ndim == 2
    part = images[:2]
    assert isinstance(part, ts.Images)
    assert shown(part).shape != shown(images).shape


def test_what_is_no_image_is_not_shown(images: ts.Images) -> None:
    assert images[:0]._repr_png_() is None  # type: ignore[attr-defined]
    assert ts.Images.of(torch.zeros(2, 2))._repr_png_() is None
    assert ts.Images.of(torch.zeros(2, 4, 4, 2, dtype=torch.uint8))._repr_png_() is None


def test_results_are_plain_tensors(images: ts.Images) -> None:
    for result in (images.float() / 255, images + 1, torch.cat([images, images]), images[0]):
        assert type(result) is torch.Tensor
    assert torch.equal(images, PIXELS)
    assert np.array_equal(images.numpy(), PIXELS.numpy())
    images[0] = 7
    assert bool((images.plain()[0] == 7).all())


def test_files_hold_plain_tensors(images: ts.Images, tmp_path: Path) -> None:
    torch.save({"images": images}, tmp_path / "images.pt")
    # weights_only allows no class but torch's.
    loaded = torch.load(tmp_path / "images.pt", weights_only=True)["images"]
    assert torch.equal(loaded, PIXELS)
    for copied in (pickle.loads(pickle.dumps(images)), copy.deepcopy(images)):
        assert torch.equal(copied, PIXELS)


def test_models_give_images() -> None:
    model = ts.load("digits")
    tokenizer = ts.load("digits-vqvae")
    drawn = model.sample(2)  # type: ignore[union-attr]
    known = torch.zeros(8, 8, dtype=torch.bool)
    completed = model.complete(drawn, known)  # type: ignore[union-attr]
    decoded = tokenizer.decode(tokenizer.encode(drawn))  # type: ignore[union-attr]
    for images in (drawn, completed, decoded):
        assert isinstance(images, ts.Images)
        assert images._repr_png_() is not None
