"""Files of the package: strict JSON, checked readers, and the rule of what may be replaced."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tessella import files
from tessella.errors import ArtifactError, InputError
from tessella.files import pictures


def test_json_is_strict_whatever_the_values() -> None:
    value = {"a": float("inf"), "b": [float("nan"), -float("inf"), 1.5], "c": {"d": (1, 2)}}
    text = files.json_text(value, indent=None)
    read = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert read == {"a": None, "b": [None, None, 1.5], "c": {"d": [1, 2]}}


def test_names_that_are_not_utf8_survive_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    files.write_json(tmp_path / "names.json", [name])
    assert files.read_json(tmp_path / "names.json") == [name]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1000 + "]" * 1000,
        "[" * 200_000,
        '{"a":' * 200_000,
        "[1e999]",
        "[-1e999]",
        "[NaN]",
        "[Infinity]",
        "[" + "9" * 5000 + "]",
        "[1,",
        "",
        "\ufeff{}",
        b"\xff\xfe",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_json_that_is_not_plain_is_refused_by_name(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtifactError, match=r"config\.json"):
        files.read_json(path)


def test_nesting_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" * 64 + "]" * 64)
    files.read_json(path)
    path.write_text("[" * 65 + "]" * 65)
    with pytest.raises(ArtifactError, match="nested"):
        files.read_json(path)


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe.json", "zero.json", "folder.json"):
        with pytest.raises(ArtifactError, match="not a regular file"):
            files.read_json(tmp_path / name)
        with pytest.raises(ArtifactError, match="not a regular file"):
            files.read_tensors(tmp_path / name)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 33)  # a sparse file of 8 GiB
    with pytest.raises(ArtifactError, match="more than 16 MiB"):
        files.read_json(tmp_path / "large.json")


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    files.write_json(tmp_path / "real.json", {"a": 1})
    (tmp_path / "link.json").symlink_to("real.json")
    assert files.read_json_object(tmp_path / "link.json") == {"a": 1}


def test_an_object_is_demanded_where_there_must_be_one(tmp_path: Path) -> None:
    files.write_json(tmp_path / "run.json", [])
    with pytest.raises(ArtifactError, match="holds a list"):
        files.read_json_object(tmp_path / "run.json")


def test_a_header_tells_shapes_without_reading_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.zeros(3, 4), "b": torch.zeros(2, dtype=torch.int64)}
    files.write_tensors(path, tensors)
    header = files.read_tensors_header(path)
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == {
        "a": (3, 4),
        "b": (2,),
    }
    assert header.tensors["b"].dtype == "I64"
    assert "sha256" in header.metadata


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}},
        {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "Z9", "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 16]}},
        {"a": {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [True, 16]}},
        {"a": 5},
        [],
        {"__metadata__": 5},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(ArtifactError, match=r"x\.safetensors"):
        files.read_tensors_header(path)


def test_a_file_of_tensors_that_is_cut_off_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    files.write_tensors(path, {"weight": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match="'weight' goes on beyond the end of the file"):
        files.read_tensors_header(path)


def test_a_header_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"", b"abc", (1 << 62).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="header"):
            files.read_tensors_header(path)


def ours(folder: Path) -> list[Path]:
    """Outputs of every kind as the package writes them."""
    pictures.save_png(folder / "x.png", np.zeros((2, 2, 1), np.uint8), {"seed": 0})
    files.write_json(folder / "x.json", {"bits_per_dim": 1.0, "made": {"tessella": "0"}})
    files.write_text(folder / "x.csv", "index,hash,in_training,nats\n0,00,,1.0\n")
    files.write_text(folder / "x.html", f'<!doctype html>{files.HTML_MARK} 0">')
    files.write_json(folder / "saved" / "config.json", {"format": 1, "kind": "tokenizer"})
    files.write_json(folder / "run" / "run.json", {"format": 1, "status": "running"})
    (folder / "empty").mkdir()
    return sorted(folder.iterdir())


def test_what_the_package_made_may_be_replaced(tmp_path: Path) -> None:
    for path in ours(tmp_path):
        files.check_replaceable(path)
        assert files.made_here(path)


@pytest.mark.parametrize("name", ["x.png", "x.npz", "x.json", "x.csv", "x.html", "folder"])
def test_a_foreign_output_is_refused_unless_forced(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        (path / "holiday").mkdir(parents=True)
    else:
        path.write_bytes(b"\x89PNG\r\n\x1a\nsomething of somebody else")
    with pytest.raises(InputError, match="--force"):
        files.check_replaceable(path)
    files.check_replaceable(path, force=True)


def test_a_link_is_never_replaced(tmp_path: Path) -> None:
    target = ours(tmp_path)[-1]
    for name, points_to in (("link.png", target), ("dangling.png", tmp_path / "nothing")):
        link = tmp_path / name
        link.symlink_to(points_to)
        for force in (False, True):
            with pytest.raises(InputError, match="is a link"):
                files.check_replaceable(link, force)


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(InputError, match="not a regular file"):
        files.check_replaceable("/dev/null", force=True)


def test_space_is_looked_at_before_writing(tmp_path: Path) -> None:
    files.check_free_space(tmp_path / "a" / "b.npz", 1, "a small thing")
    with pytest.raises(ArtifactError, match="free"):
        files.check_free_space(tmp_path / "a" / "b.npz", 1 << 60, "a large thing")
    assert not (tmp_path / "a").exists()


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text("old")

    def write_half() -> None:
        with files.atomic_file(path) as temporary:
            temporary.write_text("ne")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match=r"cannot write .*figures\.json: No space left"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_about_to_be_replaced_is_put_back_where_nothing_took_its_place(
    tmp_path: Path,
) -> None:
    for name, content in {".first.old": "old", ".second.old": "old", "second": "new"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(content)
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    assert (tmp_path / "first" / "a.txt").read_text() == "old"
    assert (tmp_path / "second" / "a.txt").read_text() == "new"


def test_a_private_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.write_bytes(tmp_path / "x", b"1", private=True)
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_reading_and_writing_json_needs_no_torch() -> None:
    code = "import sys; from tessella import files; files.json_text({}); print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "torch" not in loaded.split()
