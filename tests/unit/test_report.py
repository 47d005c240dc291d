"""Pictures: places on a sheet, what a PNG says of itself, files whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella import files
from tessella.errors import ArtifactError, InputError
from tessella.files import pictures


def test_a_sheet_puts_images_in_rows() -> None:
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((1, 2, 4, 1), np.uint8) + 10
    page = pictures.sheet(images, columns=2, magnify=3)
    assert page.shape == (2 * 6 + 3, 2 * 12 + 3, 1)
    assert (page[:6, :12] == 10).all()
    assert (page[:6, 15:] == 11).all()
    assert (page[9:, :12] == 12).all()
    assert (page[9:, 15:] == pictures.BACKGROUND).all()


def test_the_nearest_training_image_stands_beside() -> None:
    training = np.stack([np.full((2, 2, 1), v, np.uint8) for v in (0, 100, 200)])
    page = pictures.beside_nearest(
        np.full((1, 2, 2, 1), 120, np.uint8), training, columns=1, magnify=1
    )
    assert page[0, :, 0].tolist() == [120, 120, 128, 100, 100]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_says_how_it_was_made(tmp_path: Path, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    pictures.save_png(tmp_path / "x.png", image, {"seed": 7})
    assert pictures.read_made(tmp_path / "x.png") == {"seed": 7}
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")).reshape(image.shape), image)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="npz"):
        pictures.save_png(tmp_path / "x.png", np.zeros((2, 2, 2), np.uint8), {})
    assert not list(tmp_path.iterdir())


def test_captions_make_room_for_themselves() -> None:
    panels = [
        ("a", np.zeros((10, 10, 1), np.uint8)),
        ("a longer title", np.zeros((20, 10, 3), np.uint8)),
    ]
    across, down = pictures.captioned(panels), pictures.captioned(panels, across=False)
    assert across.shape[1] > down.shape[1]
    assert across.shape[0] < down.shape[0]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x.json"
    files.write_json(target, {"old": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        files.write_json(target, {"new": 2})
    assert files.read_json(target) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(fail: bool) -> None:
        with files.atomic_directory(tmp_path / "d") as path:
            files.write_text(path / "a", "new")
            if fail:
                raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left"):
        write(fail=True)
    assert not list(tmp_path.iterdir())
    write(fail=False)
    assert (tmp_path / "d" / "a").read_text() == "new"
