"""``tessella complete`` with masks and orders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tessella as ts
from tessella.cli.entry import main
from tessella.cli.known_pixels import kept_after_missing, read_mask, upper_rows
from tessella.errors import DataError, InputError
from tessella.files.pictures import read_made
from tessella.pipeline import save_model


@pytest.fixture(scope="module")
def any_order(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained any-order model of the digits."""
    out = tmp_path_factory.mktemp("any-order") / "run"
    save_model(ts.create("any-order", ts.Grid(8, 8, 1, 17), layers=1, width=8, heads=2), out)
    return out


def test_a_mask_and_what_is_kept_reach_the_model(any_order: Path, tmp_path: Path) -> None:
    hole = np.zeros((8, 8), dtype=np.uint8)
    hole[:5, 2:6] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    words = ["complete", str(any_order), "--data", "digits", "--n", "2", "--variants", "3"]
    words += ["--mask", f"{tmp_path}/hole.png", "--order", "known-first", "--no-preview"]
    assert main([*words, "--seed", "4", "--out", f"{tmp_path}/x.png"]) == 0
    made = read_made(tmp_path / "x.png")
    assert (made["mask"], made["order"]) == ("hole.png", "known-first")
    assert "keep" not in made

    generator = ts.load(any_order)
    images = ts.data.load(ts.config.DataConfig("digits"), "test").images[:2]
    known = torch.from_numpy(hole == 0)
    repeated = np.repeat(images, 3, axis=0)
    expected = generator.complete(repeated, known, 4, order="known-first").numpy()
    from tessella.files import pictures

    masked = np.where((hole == 0)[None, :, :, None], images, 128).astype(np.uint8)
    rows = [images[:, None], masked[:, None], expected.reshape(2, 3, 8, 8, 1)]
    sheet = pictures.sheet(np.concatenate(rows, axis=1).reshape(-1, 8, 8, 1), columns=5)
    with Image.open(tmp_path / "x.png") as shown:
        assert np.array_equal(np.asarray(shown).reshape(sheet.shape), sheet)


def test_raster_order_is_the_default(any_order: Path, tmp_path: Path) -> None:
    words = ["complete", str(any_order), "--data", "digits", "--n", "1", "--variants", "1"]
    assert main([*words, "--no-preview", "--out", f"{tmp_path}/x.png"]) == 0
    made = read_made(tmp_path / "x.png")
    assert (made["keep"], made["order"]) == (0.5, "raster")


def test_upper_rows_are_a_share_of_the_height() -> None:
    assert upper_rows(0.5, 5, 2).sum(1).tolist() == [2, 2, 0, 0, 0]
    assert not upper_rows(0.0, 4, 4).any()
    assert upper_rows(1.0, 4, 4).all()


def test_the_order_matters_where_something_is_kept_below_what_is_missing(
    any_order: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for share in (0.0, 0.5, 1.0):
        assert not kept_after_missing(upper_rows(share, 4, 4))
    assert kept_after_missing(~upper_rows(0.5, 4, 4))
    Image.fromarray(np.full((8, 8), 255, dtype=np.uint8) * np.eye(8, dtype=np.uint8)).save(
        tmp_path / "line.png"
    )
    words = ["complete", str(any_order), "--data", "digits", "--n", "1", "--variants", "1"]
    words += ["--mask", f"{tmp_path}/line.png", "--no-preview", "--out", f"{tmp_path}/x.png"]
    for order, warned in (("raster", True), ("known-first", False)):
        assert main([*words, "--order", order]) == 0
        assert ("do not count for it" in capsys.readouterr().out) == warned


def test_a_mask_that_does_not_fit_or_is_no_image_is_refused(tmp_path: Path) -> None:
    Image.new("L", (4, 3), 255).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="small.png is 3x4, .* 8x8"):
        read_mask(f"{tmp_path}/small.png", 8, 8)
    assert not read_mask(f"{tmp_path}/small.png", 3, 4).any()
    (tmp_path / "text.png").write_text("white")
    with pytest.raises(DataError, match="text.png cannot be read"):
        read_mask(f"{tmp_path}/text.png", 8, 8)
