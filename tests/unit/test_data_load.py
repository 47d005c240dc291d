"""What is done to images after they are read: size, channels, levels, binarization, augmentation,
identity."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tessella.data
from tessella.config import DataConfig
from tessella.data import SOURCES, SPLITS, ImageSet, augment, load
from tessella.data.splits import by_hash
from tessella.errors import ConfigError, DataError, InputError, TessellaError

RANDOM = np.random.default_rng(6)


def digits(split: str = "train", **options: Any) -> ImageSet:
    return load(DataConfig("digits", **options), split)


def array(tmp_path: Path, images: np.ndarray, **options: Any) -> ImageSet:
    np.savez(tmp_path / "x.npz", test=images)
    return load(DataConfig(f"npz:{tmp_path / 'x.npz'}", **options), "test")


def test_limit_takes_the_first() -> None:
    part, whole = digits(limit=7), digits()
    np.testing.assert_array_equal(part.images, whole.images[:7])
    assert part.labels is not None
    assert whole.labels is not None
    assert part.labels.tolist() == whole.labels[:7].tolist()
    assert len(part) == 7


def test_resampled_digits_take_any_value() -> None:
    part = digits(size="16", limit=3)
    assert part.images.shape == (3, 16, 16, 1)
    assert part.levels == 256
    source = Image.fromarray(digits().images[2, ..., 0])
    np.testing.assert_array_equal(
        part.images[2, ..., 0], source.resize((16, 16), Image.Resampling.LANCZOS)
    )
    assert digits(size="8").levels == digits(size="8x8", channels=3).levels == 17
    assert digits(size="8").recipe["resampling"] == ""
    assert digits(size="16", levels=17).levels == 17


@pytest.mark.parametrize("crop", ["center", "squash", "tiles"])
def test_arrays_meet_a_size_as_files_do(tmp_path: Path, crop: str) -> None:
    images = RANDOM.integers(0, 256, (2, 12, 8, 3), dtype=np.uint8)
    from_array = array(tmp_path, images, size="4", crop=crop)
    (tmp_path / "files").mkdir()
    names = [name for i in range(20) if by_hash([name := f"{i:02}.png", "x"])[0] == "train"]
    for image, name in zip(images, names, strict=False):
        Image.fromarray(image).save(tmp_path / "files" / name)
    from_files = load(DataConfig(f"folder:{tmp_path / 'files'}", size="4", crop=crop), "train")
    np.testing.assert_array_equal(from_array.images, from_files.images)
    assert len(from_array) == (12 if crop == "tiles" else 2)


def test_tiles_of_arrays_repeat_the_labels() -> None:
    tiles, whole = digits(size="4", crop="tiles", limit=8), digits(limit=2)
    assert whole.labels is not None
    assert tiles.labels is not None
    assert tiles.labels.tolist() == np.repeat(whole.labels, 4).tolist()
    assert tiles.levels == 17
    rebuilt = tiles.images[:4].reshape(2, 2, 4, 4).transpose(0, 2, 1, 3).reshape(8, 8)
    np.testing.assert_array_equal(rebuilt, whole.images[0, ..., 0])
    with pytest.raises(
        InputError, match="8 pixels wide and 8 high are smaller than tiles 9 wide and 9 high"
    ):
        digits(size="9", crop="tiles")


def test_channels_of_arrays(tmp_path: Path) -> None:
    grey = digits(limit=4).images
    np.testing.assert_array_equal(digits(limit=4, channels=3).images, np.repeat(grey, 3, axis=-1))
    assert digits(limit=4, channels=4).images[..., 3].min() == 255
    rgba = RANDOM.integers(0, 256, (3, 4, 4, 4), dtype=np.uint8)
    np.testing.assert_array_equal(array(tmp_path, rgba).images, rgba)
    alpha = rgba[..., 3:] / 255
    on_white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(array(tmp_path, rgba, channels=3).images, on_white, atol=1)
    luma = on_white @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(array(tmp_path, rgba, channels=1).images[..., 0], luma, atol=1.6)


def test_grey_made_of_two_valued_colours_has_more_values(tmp_path: Path) -> None:
    colours = RANDOM.integers(0, 2, (3, 4, 4, 3)).astype(bool)
    assert array(tmp_path, colours).levels == 2
    assert array(tmp_path, colours, channels=1).levels == 256


def test_the_fixed_draw_is_bernoulli_and_repeats(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4000, 1))[:, None, :]
    part = array(tmp_path, ramp, binarize="fixed")
    assert part.levels == 2
    assert np.unique(part.images).tolist() == [0, 255]
    share = (part.images > 0).mean(axis=0).ravel()
    assert (share[0], share[255]) == (0.0, 1.0)
    p = np.arange(1, 255) / 255
    deviation = (share[1:255] - p) / np.sqrt(p * (1 - p) / 4000)
    assert abs(deviation).max() < 4.5
    assert 0.85 < deviation.std() < 1.15
    np.testing.assert_array_equal(part.images, array(tmp_path, ramp, binarize="fixed").images)
    assert (part.images != array(tmp_path, ramp, binarize="fixed", binarize_seed=1).images).any()
    np.testing.assert_array_equal(
        array(tmp_path, ramp[:9], binarize="fixed").images, part.images[:9]
    )
    assert array(tmp_path, ramp, binarize="fixed", levels=4).levels == 4


def test_the_fixed_draw_is_pinned() -> None:
    """Saved figures depend on it; a change of this hash is a change of every binarized data set."""
    draw = digits(binarize="fixed", limit=100).images
    assert hashlib.sha256(draw.tobytes()).hexdigest()[:16] == "8dda9213faf0ee66"


def test_splits_are_drawn_apart(tmp_path: Path) -> None:
    grey = np.full((100, 4, 4), 128, np.uint8)
    np.savez(tmp_path / "x.npz", train=grey, valid=grey, test=grey)
    draws = [
        load(DataConfig(f"npz:{tmp_path / 'x.npz'}", binarize="fixed"), split).images
        for split in SPLITS
    ]
    assert all((draws[i] != draws[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_dynamic_draw_leaves_training_images_grey() -> None:
    train = digits(binarize="dynamic")
    np.testing.assert_array_equal(train.images, digits().images)
    assert train.levels == 2
    for split in ("valid", "test"):
        fixed = digits(split, binarize="fixed").images
        np.testing.assert_array_equal(digits(split, binarize="dynamic").images, fixed)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augment_mirrors_half() -> None:
    images = torch.from_numpy(RANDOM.integers(0, 256, (400, 3, 5, 3), dtype=np.uint8))
    before = images.clone()
    flipped = augment(images, generator(), flip=True, binarize=False)
    mirrored = [bool((flipped[i] == images[i].flip(1)).all()) for i in range(400)]
    kept = [bool((flipped[i] == images[i]).all()) for i in range(400)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 160 < sum(mirrored) < 240
    assert torch.equal(images, before)
    assert not torch.equal(flipped, augment(images, generator(1), flip=True, binarize=False))
    assert torch.equal(flipped, augment(images, generator(), flip=True, binarize=False))


def test_augment_draws_bernoulli() -> None:
    images = torch.arange(256, dtype=torch.uint8).expand(4000, 1, 256)[..., None]
    draws = generator()
    drawn = augment(images, draws, flip=False, binarize=True)
    assert drawn.dtype == torch.uint8
    assert drawn.unique().tolist() == [0, 255]
    share = (drawn > 0).double().mean(0).flatten().numpy()
    p = np.arange(256) / 255
    assert (share[0], share[255]) == (0.0, 1.0)
    assert abs(share - p)[1:255].max() < 4.5 * 0.5 / np.sqrt(4000)
    assert not torch.equal(drawn, augment(images, draws, flip=False, binarize=True))


def test_augment_without_options_changes_nothing_and_the_global_generator_is_left_alone() -> None:
    images = torch.from_numpy(digits(limit=4).images)
    state = torch.get_rng_state()
    assert torch.equal(augment(images, generator(), flip=False, binarize=False), images)
    augment(images, generator(), flip=True, binarize=True)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 2, 2, 1), torch.zeros(2, 2, 1, dtype=torch.uint8)]
)
def test_augment_refuses_other_tensors(images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="uint8 tensor"):
        augment(images, generator(), flip=True, binarize=False)


def test_identity_says_which_images_they_are(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (3, 4, 5), dtype=np.uint8)
    part = array(tmp_path, images, binarize="fixed", binarize_seed=3)
    identity = part.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert str(tmp_path) not in json.dumps(identity)
    assert (identity["source"], identity["split"], identity["count"]) == ("npz:x.npz", "test", 3)
    assert identity["shape"] == [4, 5, 1]
    assert identity["sha256"] == hashlib.sha256(part.images.tobytes()).hexdigest()
    wanted = {
        "levels": 2,
        "binarize": "fixed",
        "binarize_seed": 3,
        "channels": 1,
        "size": "",
        "crop": "",
    }
    assert wanted.items() <= identity["preprocessing"].items()
    assert digits(size="4").identity()["preprocessing"]["resampling"].startswith("lanczos")


def test_an_image_set_can_be_made_of_an_array() -> None:
    part = ImageSet(np.zeros((2, 3, 3, 1), np.uint8)[:, :, ::-1], labels=np.array([0, 4]))
    assert (len(part), part.classes, part.identity()["sha256"]) == (
        2,
        5,
        hashlib.sha256(bytes(18)).hexdigest(),
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": "6x"}, "data.size must be"),
        ({"size": "0"}, "data.size must be"),
        ({"size": "-3"}, "data.size must be"),
        ({"crop": "middle"}, "'center', 'squash', 'tiles'"),
        ({"crop": "tiles"}, "needs data.size"),
        ({"channels": 2}, "data.channels must be one of 0, 1, 3, 4"),
        ({"levels": 1}, "data.levels"),
        ({"levels": 257}, "data.levels"),
        ({"binarize": "yes"}, "data.binarize must be one of"),
        ({"binarize_seed": -1}, "negative"),
        ({"limit": -1}, "negative"),
        ({"bits": "8x8"}, "data.bits is for npz"),
    ],
)
def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    config = DataConfig("digits")
    for key, value in options.items():
        object.__setattr__(
            config, key, value
        )  # past the annotations, which are checked under test only
    with pytest.raises(ConfigError, match=says):
        load(config, "train")


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(DataError) as caught:
        load(DataConfig("minst:here"), "train")
    message = str(caught.value)
    assert "did you mean 'mnist'" in message
    assert all(source.form in message for source in SOURCES.values())
    with pytest.raises(DataError, match="write folder:/"):
        load(DataConfig("/"), "train")
    with pytest.raises(DataError, match="did you mean 'train'"):
        load(DataConfig("digits"), "trian")


@pytest.mark.parametrize("path", ["~nobody-here/x", "a\0b", "x" * 5000, "missing"])
@pytest.mark.parametrize("kind", ["mnist", "cifar10", "npz", "folder", "zip"])
def test_impossible_paths(kind: str, path: str) -> None:
    with pytest.raises(TessellaError):
        load(DataConfig(f"{kind}:{path}"), "train")
    with pytest.raises(TessellaError):
        load(DataConfig(path), "train")


def test_no_module_imports_torch_at_the_top() -> None:
    for file in Path(tessella.data.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = (
                [alias.name for alias in getattr(node, "names", [])]
                if isinstance(node, ast.Import)
                else []
            )
            assert not any(name.split(".")[0] == "torch" for name in names), file.name
            assert not (
                isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch")
            ), file.name
