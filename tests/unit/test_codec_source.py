"""Compressed files as a source of images, and how their models are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_twin import FakeTwin
from PIL import Image

import tessella as ts
from tessella.codec import archive_images, model_lookup
from tessella.codec.archive_writer import ArchiveWriter
from tessella.codec.container import HAS_FILES, IS_LIST
from tessella.codec.model_lookup import find_twin
from tessella.codec.picture_files import PictureFile, read_picture
from tessella.config import DataConfig
from tessella.data import load
from tessella.data.splits import by_hash
from tessella.errors import ArtifactError, DataError, InputError

pytest.importorskip("constriction", reason="the entropy coder is an optional library")

TWIN = FakeTwin(ts.Grid(4, 4, 1, 256))
FEW = FakeTwin(ts.Grid(4, 4, 1, 17))


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(model: bytes, given: str, beside: Path) -> FakeTwin:
        return {twin.id[:32]: twin for twin in (TWIN, FEW)}[model.hex()]

    monkeypatch.setattr(archive_images, "find_twin", find)


def images(count: int, *shape: int) -> torch.Tensor:
    dice = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), generator=dice).to(torch.uint8)


def test_arrays_are_divided_like_those_of_a_file_of_arrays(tmp_path: Path) -> None:
    values = images(60, 4, 5, 1)
    path = tmp_path / "x.tsl"
    path.write_bytes(ts.compress(values, TWIN, group=16))
    source = DataConfig(f"archive:{path}")
    order = np.random.default_rng(0).permutation(60)
    for split, numbers in (("train", order[:54]), ("valid", order[54:57]), ("test", order[57:])):
        found = load(source, split)
        assert np.array_equal(found.images, values[np.sort(numbers)])
        assert found.levels == 256
    assert np.array_equal(load(source, "all").images, values)
    assert load(DataConfig(f"archive:{path}", limit=7), "all").images.shape == (7, 4, 5, 1)
    assert load(DataConfig(f"archive:{path}", channels=3), "test").images.shape == (3, 4, 5, 3)


def test_files_are_divided_by_their_names(tmp_path: Path) -> None:
    writer = ArchiveWriter(TWIN)
    names = [f"{number}.png" for number in range(25)]
    for number, name in enumerate(names):
        values = images(1, 3 + number % 3, 4, 3)[0].numpy()
        Image.fromarray(values if number % 2 else values[:, :, 0]).save(tmp_path / name)
        writer.add(read_picture(PictureFile(tmp_path / name, name), 256))
    path = tmp_path / "x.tsl"
    path.write_bytes(writer.finish(HAS_FILES | IS_LIST))
    splits = by_hash(names)
    with pytest.raises(InputError, match=r"from 3x4 to 5x4.*data\.size"):
        load(DataConfig(f"archive:{path}"), "all")
    for split in ("train", "valid", "test"):
        found = load(DataConfig(f"archive:{path}", size="3x4", crop="tiles"), split)
        chosen = [name for name, of in zip(names, splits, strict=True) if of == split]
        assert [name.split("#")[0] for name in found.names or ()] == chosen
    found = load(DataConfig(f"archive:{path}", size="3x4", crop="tiles"), "all")
    with Image.open(tmp_path / "7.png") as opened:
        assert np.array_equal(found.images[7], np.asarray(opened)[:3])
    assert found.images.shape == (25, 3, 4, 3)


def test_symbols_of_few_levels_become_values(tmp_path: Path) -> None:
    symbols = images(30, 4, 4, 1) % 17
    path = tmp_path / "x.tsl"
    path.write_bytes(ts.compress(symbols, FEW))
    found = load(DataConfig(f"archive:{path}"), "all")
    assert found.levels == 17
    expected = (symbols.long() * 510 + 16) // 32
    assert np.array_equal(found.images, expected.numpy())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tsl"
    data = ts.compress(images(3, 4, 4, 1), TWIN)
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"x\.tsl.*checksum"):
        load(DataConfig(f"archive:{path}"), "all")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"write archive:.*x\.tsl"):
        load(DataConfig(str(path)), "all")
    path.write_bytes(ts.compress(images(3, 4, 4, 5), TWIN))
    with pytest.raises(DataError, match="no pictures"):
        load(DataConfig(f"archive:{path}"), "all")


def test_models_are_found_by_their_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []

    def load_twin(folder: Path) -> FakeTwin:
        loaded.append(folder)
        return TWIN

    monkeypatch.setattr(model_lookup, "load_twin", load_twin)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    wanted = bytes.fromhex(TWIN.id)[:16]
    with pytest.raises(ArtifactError, match=f"needs the model {TWIN.id[:32]}.*--model"):
        find_twin(wanted)
    with pytest.raises(ArtifactError, match="not in some/where"):
        find_twin(wanted, "some/where")
    places = {
        "cache/models/a": TWIN,
        "runs/another": FEW,
        "runs/two/prior": TWIN,
        "runs/one": TWIN,
        "beside/x": TWIN,
    }
    for place, twin in places.items():
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "exact.json").write_text(f'{{"id": "{twin.id}"}}')
    assert find_twin(wanted, "runs/one") is TWIN
    assert find_twin(wanted, "runs/two") is TWIN
    assert find_twin(wanted, "", tmp_path / "beside") is TWIN
    (tmp_path / "cache/models/a/exact.json").unlink()
    assert find_twin(wanted, "", tmp_path / "beside") is TWIN
    (tmp_path / "beside/x/exact.json").unlink()
    assert find_twin(wanted, "", tmp_path / "beside") is TWIN
    found = [str(folder.relative_to(tmp_path)) for folder in map(Path.absolute, loaded)]
    assert found == ["runs/one", "runs/two/prior", "cache/models/a", "beside/x", "runs/one"]
