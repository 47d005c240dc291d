"""Codes on disk: what is written, read, gone on with and refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella import files
from tessella.data import ImageSet
from tessella.errors import ArtifactError, ConfigError, InputError, TessellaWarning
from tessella.models.hierarchy import pack
from tessella.storage import code_store
from tessella.tokenizers import Tokenizer
from tessella.training.prepare import prepare

KINDS: dict[str, dict[str, Any]] = {
    "vqvae": {"codebook_size": 300, "hidden": 8, "code_dim": 4},
    "residual": {
        "codebook_size": 16,
        "hidden": 8,
        "code_dim": 4,
        "quantizer": "residual-vq",
        "options": {"depth": 3},
    },
    "vqvae2": {"codebook_size": 16, "hidden": 8, "code_dim": 4},
}
every = pytest.mark.parametrize("kind", KINDS)


def tokenizer(kind: str = "vqvae", seed: int = 0) -> Tokenizer:
    name = "vqvae" if kind == "residual" else kind
    return ts.create_tokenizer(name, image_size=(12, 8), channels=1, seed=seed, **KINDS[kind])


def images(n: int = 100, labelled: bool = True) -> ImageSet:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (n, 12, 8, 1), dtype=np.uint8)
    names = tuple(f"folder/{i}.png" for i in range(n))
    return ImageSet(pixels, np.arange(n) % 7 if labelled else None, names=names, split="train")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_store, "SHARD_IMAGES", 16)
    monkeypatch.setattr(code_store, "AT_ONCE", 7)


def contents(folder: Path) -> dict[str, bytes]:
    return {place.name: place.read_bytes() for place in folder.iterdir() if place.name != ".lock"}


@every
def test_what_is_read_is_what_the_tokenizer_makes(kind: str, tmp_path: Path) -> None:
    made, given = tokenizer(kind), images()
    stored = code_store.tokenize(made, given, tmp_path, mirrored=True)
    expected = made.encode(given.images)
    whole = expected if isinstance(expected, tuple) else (expected,)
    for places in (slice(None), slice(10, 40), np.array([99, 0, 17, 16, 17])):
        read = stored[places]
        for part, truth in zip(read if isinstance(read, tuple) else (read,), whole, strict=True):
            assert part.dtype == torch.int64
            assert torch.equal(part, truth[places])
    packed = pack(whole) if len(whole) > 1 else whole[0]
    assert np.array_equal(stored.variant()[np.array([3, 50])], packed[[3, 50]].numpy())
    flipped = made.encode(given.images[:, :, ::-1])
    packed = pack(flipped) if isinstance(flipped, tuple) else flipped
    assert np.array_equal(stored.variant(mirrored=True)[:], packed.numpy())
    assert (len(stored), stored.shape, stored.grids) == (100, (100, 12, 8, 1), made.grids())
    assert np.array_equal(stored.labels, given.labels)
    assert np.array_equal(stored.hashes(), given.hashes())
    assert stored.names == given.names
    stored.check()


def test_codes_take_the_least_type_that_holds_them(tmp_path: Path) -> None:
    for kind, dtype in (("vqvae", np.int16), ("residual", np.uint8)):
        stored = code_store.tokenize(tokenizer(kind), images(20), tmp_path / kind)
        assert stored.shard(0)["codes.0"].dtype == dtype
        assert isinstance(stored.shard(0)["codes.0"].base, np.ndarray | np.memmap), (
            "not read, but mapped"
        )


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    for workers in (1, 2, 5):
        code_store.tokenize(tokenizer(), images(), tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "5")
    assert torch.get_num_threads() == before


def test_what_is_whole_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code_store.tokenize(tokenizer(), images(), tmp_path)
    before = contents(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "made.json")
    (tmp_path / "codes-00003.safetensors").unlink()
    made, shard = [], code_store.encoded_shard
    monkeypatch.setattr(
        code_store, "encoded_shard", lambda *args: made.append(args[2].start) or shard(*args)
    )
    code_store.tokenize(tokenizer(), images(), tmp_path)
    assert made == [48]
    assert {
        name: data for name, data in contents(tmp_path).items() if name != "made.json"
    } == before
    code_store.tokenize(tokenizer(), images(), tmp_path)
    assert made == [48]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokenizer": tokenizer(seed=1)}, "tokenizer vqvae"),
        ({"images": images(99)}, "count 100 .now 99"),
        ({"images": ImageSet(255 - images().images, images().labels)}, "data"),
        ({"mirrored": True}, "mirrored False .now True"),
    ],
)
def test_another_run_in_the_same_place_is_refused(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    code_store.tokenize(tokenizer(), images(), tmp_path)
    before = contents(tmp_path)
    given = {"tokenizer": tokenizer(), "images": images()} | change
    with pytest.raises(InputError, match=f"holds other codes.*{told}"):
        code_store.tokenize(given.pop("tokenizer"), given.pop("images"), tmp_path, **given)
    assert contents(tmp_path) == before


def test_codes_of_another_tokenizer_are_not_opened(tmp_path: Path) -> None:
    code_store.tokenize(tokenizer(), images(), tmp_path)
    with pytest.raises(InputError, match="codes of different tokenizers do not mix"):
        code_store.open_codes(tmp_path, tokenizer(seed=1))


def test_a_place_without_codes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no codes"):
        code_store.open_codes(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="something else than codes"):
        code_store.tokenize(tokenizer(), images(), tmp_path)
    code_store.tokenize(tokenizer(), images(), tmp_path / "train")
    with pytest.raises(ArtifactError, match="there are some in .*train"):
        code_store.open_codes(tmp_path)


def test_codes_of_one_split_name_the_folder_above(tmp_path: Path) -> None:
    code_store.tokenize(tokenizer(), images(), tmp_path / "codes" / "train")
    with pytest.raises(ArtifactError, match="name the folder above it, .*codes:.*/codes$"):
        code_store.load_split(tmp_path / "codes" / "train", "train")


def test_a_damaged_shard_is_noticed(tmp_path: Path) -> None:
    stored = code_store.tokenize(tokenizer(), images(), tmp_path)
    place = tmp_path / "codes-00002.safetensors"
    whole = place.read_bytes()
    place.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="codes-00002.* missing or damaged"):
        code_store.open_codes(tmp_path)[:]
    place.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="codes-00002.* missing or damaged"):
        stored.check()


def test_decoding_gives_the_reconstructions(tmp_path: Path) -> None:
    made, given = tokenizer("vqvae2"), images()
    stored = code_store.tokenize(made, given, tmp_path)
    back = np.concatenate(list(code_store.decoded(stored, made, start=20, n=90, batch=32)))
    assert np.array_equal(back, made.decode(made.encode(given.images[20:90]), (12, 8)).numpy())


KILLED = """
import sys, numpy as np, tessella as ts
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_codes import code_store, images, tokenizer
code_store.SHARD_IMAGES, code_store.AT_ONCE = 16, 7
code_store.tokenize(tokenizer(), images(2000), Path(sys.argv[1]), workers=1)
"""


def test_killed_and_gone_on_with_ends_in_the_same_bytes(tmp_path: Path) -> None:
    code_store.tokenize(tokenizer(), images(2000), tmp_path / "whole")
    draws, out = random.Random(0), tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(out), str(Path(__file__).parent)]
    for _ in range(2):
        process = subprocess.Popen(command)
        while not (out / "codes-00002.safetensors").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.2 * draws.random())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if (out / "config.json").exists():
            break
        with pytest.raises(ArtifactError, match="not all made yet"):
            code_store.open_codes(out)
    subprocess.run(command, check=True)
    assert contents(out) == contents(tmp_path / "whole")


def prior(made: Tokenizer) -> Any:
    return ts.create_prior("gated-pixelcnn", made.grids(), layers=1, hidden=8)


@every
def test_a_prior_sees_the_same_from_disk_as_from_images(kind: str, tmp_path: Path) -> None:
    made, given = tokenizer(kind), images()
    model = prior(made)
    stored = code_store.tokenize(made, given, tmp_path, mirrored=True)
    plain = prepare(model, given.images, None, made, flip=True)
    from_disk = prepare(model, stored, None, made, flip=True)
    for one, other in zip(plain.variants, from_disk.variants, strict=True):
        assert isinstance(one, torch.Tensor)
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)


def test_many_codes_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = tokenizer("vqvae2"), images()
    stored = code_store.tokenize(made, given, tmp_path / "codes")
    figures = []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(ts.training.prepare, "IN_MEMORY", limit)  # type: ignore[attr-defined]
        options: dict[str, Any] = {"steps": 3, "batch": 8, "say": lambda line: None}
        run = ts.train(
            prior(made),
            stored,
            valid=stored,
            tokenizer=made,
            out=tmp_path / f"run{limit}",
            **options,
        )
        figures.append(run.figures)
    assert figures[0] == figures[1]


def test_training_refuses_codes_that_do_not_fit(tmp_path: Path) -> None:
    made = tokenizer()
    stored = code_store.tokenize(made, images(), tmp_path)
    with pytest.raises(InputError, match="do not mix"):
        prepare(prior(made), stored, None, tokenizer(seed=1))
    with pytest.raises(ConfigError, match="--mirrored"):
        prepare(prior(made), stored, None, made, flip=True)
    with pytest.raises(InputError, match="give the tokenizer that made them"):
        prepare(prior(made), stored, None, None)


def test_codes_made_for_a_prior_are_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    monkeypatch.setattr(code_store, "LEAST", 50)
    made, given = tokenizer(), images()
    first = prepare(prior(made), given.images, None, made)
    assert len(list((tmp_path / "codes").iterdir())) == 1
    monkeypatch.setattr(code_store, "encoded_shard", None)  # nothing may be encoded again
    second = prepare(prior(made), given.images, None, made)
    assert torch.equal(
        torch.as_tensor(first.variants[0][:]), torch.as_tensor(second.variants[0][:])
    )
    monkeypatch.setenv("TESSELLA_CODES", "0")
    assert code_store.cached(made, given.images, False) is None
    assert files.read_json(next((tmp_path / "codes").iterdir()) / "config.json")["count"] == 100


def damaged_config(path: Path, **changes: Any) -> None:
    config = files.read_json(path / "config.json")
    files.write_json(path / "config.json", config | changes)


def test_training_and_decoding_notice_zeroed_bytes(tmp_path: Path) -> None:
    made = tokenizer()
    code_store.tokenize(made, images(), tmp_path)
    place = tmp_path / "codes-00002.safetensors"
    content = bytearray(place.read_bytes())
    content[-400:] = bytes(400)
    place.write_bytes(content)
    stored = code_store.open_codes(tmp_path, made)
    with pytest.raises(ArtifactError, match=r"codes-00002.*damaged.*tessella tokenize"):
        list(code_store.decoded(stored, made))
    with pytest.raises(ArtifactError, match="codes-00002"):
        stored.variant()[np.array([40])]


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_every_flipped_byte_of_a_shard_is_noticed(tmp_path: Path, where: str) -> None:
    made = tokenizer()
    code_store.tokenize(made, images(20), tmp_path)
    place = tmp_path / "codes-00000.safetensors"
    content = place.read_bytes()
    at = {"first": 8, "middle": len(content) // 2, "last": len(content) - 1}[where]
    for offset in range(max(0, at - 8), min(len(content), at + 8)):
        changed = bytearray(content)
        changed[offset] ^= 1
        place.write_bytes(changed)
        with pytest.raises(ArtifactError, match="codes-00000"):
            list(code_store.decoded(code_store.open_codes(tmp_path, made), made))


def test_codes_without_hashes_load_with_a_note_and_their_range_is_checked(tmp_path: Path) -> None:
    made = tokenizer()
    code_store.tokenize(made, images(20), tmp_path)
    config = files.read_json(tmp_path / "config.json")
    without = [{k: v for k, v in shard.items() if k != "sha256"} for shard in config["shards"]]
    damaged_config(tmp_path, shards=without)
    with pytest.warns(TessellaWarning, match="no hashes"):
        stored = code_store.open_codes(tmp_path, made)
    assert len(list(code_store.decoded(stored, made, batch=20))) == 1
    shard = tmp_path / "codes-00000.safetensors"
    tensors = files.read_tensors(shard)
    tensors["codes.0"][3] = 300  # of a codebook of 300
    files.write_tensors(shard, tensors)
    with pytest.warns(TessellaWarning):
        stored = code_store.open_codes(tmp_path, made)
    with pytest.raises(ArtifactError, match=r"outside 0\.\.299"):
        stored[:]


@pytest.mark.parametrize(
    "changes",
    [
        {"count": -1},
        {"count": 10**12},
        {"count": "x"},
        {"count": 21},
        {"grids": []},
        {"grids": 5},
        {"grids": [{"height": 0}]},
        {"shape": [12, 8]},
        {"shape": [24, 16, 1]},
        {"shape": [12, 8, 3]},
        {"shard_images": 0},
        {"shards": []},
        {"shards": [5, 6]},
        {"shards": [{"name": "../x", "bytes": 3, "sha256": ""}] * 2},
        {"mirrored": 5},
        {"mirrored": True},
        {"labelled": None},
        {"tokenizer": 5},
        {"data": []},
    ],
    ids=str,
)
def test_a_configuration_that_contradicts_its_codes_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = tokenizer()
    code_store.tokenize(made, images(20), tmp_path)
    damaged_config(tmp_path, **changes)
    with pytest.raises((ArtifactError, InputError), match=str(tmp_path)):
        code_store.open_codes(tmp_path, made).check()


def test_tokenizing_again_makes_damaged_shards_again(tmp_path: Path) -> None:
    made = tokenizer()
    code_store.tokenize(made, images(), tmp_path)
    before = contents(tmp_path)
    place = tmp_path / "codes-00001.safetensors"
    place.write_bytes(place.read_bytes()[:-3] + b"abc")
    (tmp_path / "codes-00004.safetensors").unlink()
    code_store.tokenize(made, images(), tmp_path)
    assert contents(tmp_path) == before


def test_a_refused_tokenize_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").touch()
    with pytest.raises(InputError, match="something else"):
        code_store.tokenize(tokenizer(), images(20), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["holiday.txt"]
    with pytest.raises(InputError, match="workers"):
        code_store.tokenize(tokenizer(), images(20), tmp_path / "new", workers=-1)
    assert not (tmp_path / "new").exists()
    code_store.tokenize(tokenizer(), images(20), tmp_path / "codes")
    assert not (tmp_path / "codes" / ".lock").exists()


@pytest.mark.parametrize(
    "numbers", [{"batch": -3}, {"batch": 0}, {"start": -1}, {"n": 101}, {"n": True}]
)
def test_numbers_of_decoding_are_checked_at_the_call(
    tmp_path: Path, numbers: dict[str, Any]
) -> None:
    made = tokenizer()
    stored = code_store.tokenize(made, images(), tmp_path)
    with pytest.raises(InputError, match=next(iter(numbers))):
        code_store.decoded(stored, made, **numbers)


@every
def test_one_image_is_a_row_of_several(kind: str, tmp_path: Path) -> None:
    codes = ts.tokenize(tokenizer(kind), images(20), tmp_path / "codes")
    several = codes[[19, 3]]
    for index, place in ((19, 0), (-1, 0), (np.int64(3), 1)):
        one = codes[index]
        if isinstance(several, tuple):
            assert isinstance(one, tuple)
            for part, row in zip(one, several, strict=True):
                assert torch.equal(part, row[place])
        else:
            assert torch.equal(one, several[place])
    with pytest.raises(IndexError):
        codes[20]


@pytest.mark.parametrize("key", ["count", "shard_images"])
def test_absurd_numbers_of_images_are_refused(key: str, tmp_path: Path) -> None:
    ts.tokenize(tokenizer(), images(20), tmp_path / "codes")
    config = files.read_json_object(tmp_path / "codes" / "config.json")
    files.write_json(tmp_path / "codes" / "config.json", {**config, key: 2**70})
    with pytest.raises(ArtifactError):
        ts.open_codes(tmp_path / "codes")


def test_grids_larger_than_their_shards_are_refused(tmp_path: Path) -> None:
    ts.tokenize(tokenizer(), images(20), tmp_path / "codes")
    config = files.read_json_object(tmp_path / "codes" / "config.json")
    config["grids"][0]["height"] = 2**40
    files.write_json(tmp_path / "codes" / "config.json", config)
    with pytest.raises(ArtifactError, match="too small"):
        ts.open_codes(tmp_path / "codes")
